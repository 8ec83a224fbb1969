/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much of a GPU's memory is in use, asked without a context: the driver itself tells that only to who has one, and the
 * context's own memory is what we want to know. NVML comes with the driver; where it is missing the answer is not known.
 */
#include <dlfcn.h>

#include "io/gpu/helper.h"

#define NVML_LIBRARY "libnvidia-ml.so.1"
#define NVML_SUCCESS 0

struct nvmlDevice_st;

/* nvmlMemory_t */
struct nvml_memory {
    unsigned long long total_bytes, free_bytes, used_bytes;
};

/* The functions of NVML that we use. */
struct nvml {
    int (*init)(void);
    int (*shutdown)(void);
    int (*by_uuid)(const char *uuid, struct nvmlDevice_st **ret_device);
    int (*memory)(struct nvmlDevice_st *device, struct nvml_memory *ret_memory);
};

static bool load(void *library, struct nvml *ret_nvml)
{
    *(void **)&ret_nvml->init = dlsym(library, "nvmlInit_v2");
    *(void **)&ret_nvml->shutdown = dlsym(library, "nvmlShutdown");
    *(void **)&ret_nvml->by_uuid = dlsym(library, "nvmlDeviceGetHandleByUUID");
    *(void **)&ret_nvml->memory = dlsym(library, "nvmlDeviceGetMemoryInfo");
    return ret_nvml->init && ret_nvml->shutdown && ret_nvml->by_uuid && ret_nvml->memory;
}

/* The same bytes name a GPU, or an instance of one; the text says which, and only one of the two is there. */
static bool ask(const struct nvml *nvml, const struct cuda_uuid *uuid, struct nvml_memory *ret_memory)
{
    struct nvmlDevice_st *device;
    char text[CUDA_UUID_TEXT_BYTES];

    cuda_uuid_print(uuid, text);
    if (nvml->by_uuid(text, &device) != NVML_SUCCESS) {
        text[0] = 'M';
        text[1] = 'I';
        text[2] = 'G';
        if (nvml->by_uuid(text, &device) != NVML_SUCCESS)
            return false;
    }
    return nvml->memory(device, ret_memory) == NVML_SUCCESS;
}

bool helper_hbm_used(const struct cuda_uuid *uuid, uint64_t *ret_bytes)
{
    void *library = dlopen(NVML_LIBRARY, RTLD_NOW | RTLD_LOCAL); /* stays */
    struct nvml_memory memory;
    struct nvml nvml = {.init = NULL};
    bool is_known;

    if (!library || !load(library, &nvml) || nvml.init() != NVML_SUCCESS)
        return false;
    is_known = ask(&nvml, uuid, &memory);
    (void)nvml.shutdown();
    if (is_known)
        *ret_bytes = memory.used_bytes;
    return is_known;
}
