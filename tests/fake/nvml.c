/* SPDX-License-Identifier: Apache-2.0 */
/* As much of NVML as tells how much of a device is in use; found by the name libnvidia-ml.so.1 beside this library. */
#include "tests/fake/fake.h"

#define NVML_NOT_FOUND 6
#define EXPORT __attribute__((visibility("default")))

struct nvmlDevice_st;
struct fake_nvml_memory {
    unsigned long long total_bytes, free_bytes, used_bytes;
};

EXPORT int nvmlInit_v2(void);
EXPORT int nvmlShutdown(void);
EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, struct nvmlDevice_st **ret_device);
EXPORT int nvmlDeviceGetMemoryInfo(struct nvmlDevice_st *device, struct fake_nvml_memory *ret_memory);

int nvmlInit_v2(void)
{
    return fake_enter("nvmlInit", FAKE_NOTHING);
}

int nvmlShutdown(void)
{
    return 0;
}

/* The handle is the number of the device, from 1 on. Needs no cuInit, unlike cuDeviceGetUuid. */
int nvmlDeviceGetHandleByUUID(const char *uuid, struct nvmlDevice_st **ret_device)
{
    static const char known[] = "GPU-fa4ec0da-0000-4000-8000-00000000000";
    size_t n = strlen(known);
    int device = strncmp(uuid, known, n) == 0 ? uuid[n] - '0' : -1;

    if (device < 0 || device >= fake.n_devices)
        return NVML_NOT_FOUND;
    *ret_device = (struct nvmlDevice_st *)(intptr_t)(device + 1);
    return 0;
}

int nvmlDeviceGetMemoryInfo(struct nvmlDevice_st *device, struct fake_nvml_memory *ret_memory)
{
    size_t free_bytes = fake_hbm_free((int)(intptr_t)device - 1);

    *ret_memory = (struct fake_nvml_memory){fake.hbm_bytes, free_bytes, fake.hbm_bytes - free_bytes};
    return 0;
}
