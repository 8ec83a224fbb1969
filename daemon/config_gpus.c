/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns how lists of GPUs are read and written: UUIDs as nvidia-smi -L prints them, or a word for all, or none. A list is
 * what the admin wrote; whether the machine has such a GPU is known only when a helper has asked the driver.
 */
#include <errno.h>
#include <string.h>

#include "daemon/config_keys.h"
#include "io/cuda_driver.h"

static_assert(CONFIG_GPU_BYTES == CUDA_UUID_TEXT_BYTES, "room for a UUID");
static_assert(GPUS_MAX * (CONFIG_GPU_BYTES + 1) - 2 <= CONFIG_TEXT_BYTES_MAX, "room for all, with ', ' between");

static bool is_listed(const struct config_gpus *gpus, const uint8_t uuid[static 16])
{
    for (uint32_t i = 0; i < gpus->n; i++)
        if (memcmp(gpus->at[i].uuid, uuid, sizeof(gpus->at[i].uuid)) == 0)
            return true;
    return false;
}

bool config_gpus_have(const struct config_gpus *gpus, const uint8_t uuid[static 16])
{
    return gpus->kind == CONFIG_GPUS_ALL || (gpus->kind == CONFIG_GPUS_LIST && is_listed(gpus, uuid));
}

static int parse_gpu(const char *word, struct config_gpu *ret_gpu)
{
    struct cuda_uuid uuid;
    bool is_mig = strncmp(word, "MIG-", 4) == 0;

    if ((!is_mig && strncmp(word, "GPU-", 4) != 0) || cuda_uuid_parse(word, &uuid) < 0)
        return -EINVAL;
    memcpy(ret_gpu->uuid, uuid.bytes, sizeof(ret_gpu->uuid));
    ret_gpu->is_mig = is_mig;
    return 0;
}

int config_gpus_parse(const char *all, const char *text, struct config_gpus *ret_gpus,
                      char ret_message[static CONFIG_VALUE_BYTES_MAX + 1])
{
    char copy[CONFIG_TEXT_BYTES_MAX + 1], *rest = copy, *word;
    struct config_gpus gpus = {.kind = CONFIG_GPUS_LIST};
    struct config_gpu gpu;

    if (strcmp(text, all) == 0 || strcmp(text, "none") == 0) {
        *ret_gpus = (struct config_gpus){.kind = strcmp(text, all) == 0 ? CONFIG_GPUS_ALL : CONFIG_GPUS_NONE};
        return 0;
    }
    snprintf(copy, sizeof(copy), "%s", text);
    while ((word = strsep(&rest, ", \t")) != NULL) {
        if (*word == '\0')
            continue;
        if (parse_gpu(word, &gpu) < 0) {
            snprintf(ret_message, CONFIG_VALUE_BYTES_MAX + 1,
                     "'%.80s' is not a GPU as nvidia-smi -L prints it (GPU-..., MIG-...), and not '%s' or 'none'", word,
                     all);
            return -EINVAL;
        }
        if (is_listed(&gpus, gpu.uuid))
            continue;
        if (gpus.n == GPUS_MAX) {
            snprintf(ret_message, CONFIG_VALUE_BYTES_MAX + 1, "more than %d GPUs", GPUS_MAX);
            return -EINVAL;
        }
        gpus.at[gpus.n++] = gpu;
    }
    if (gpus.n == 0) {
        snprintf(ret_message, CONFIG_VALUE_BYTES_MAX + 1, "'%.80s' names no GPU", text);
        return -EINVAL;
    }
    *ret_gpus = gpus;
    return 0;
}

void config_gpu_print(const struct config_gpu *gpu, char ret_text[static CONFIG_GPU_BYTES])
{
    char text[CUDA_UUID_TEXT_BYTES];
    struct cuda_uuid uuid;

    memcpy(uuid.bytes, gpu->uuid, sizeof(uuid.bytes));
    snprintf(ret_text, CONFIG_GPU_BYTES, "%s%s", gpu->is_mig ? "MIG" : "GPU",
             cuda_uuid_print(&uuid, text) + strlen("GPU"));
}

void config_gpus_print(const char *all, const struct config_gpus *gpus, char ret_text[static CONFIG_TEXT_BYTES_MAX + 1])
{
    size_t len = 0;

    if (gpus->kind != CONFIG_GPUS_LIST)
        snprintf(ret_text, CONFIG_TEXT_BYTES_MAX + 1, "%s", gpus->kind == CONFIG_GPUS_NONE ? "none" : all);
    for (uint32_t i = 0; i < gpus->n; i++) {
        char gpu[CONFIG_GPU_BYTES];

        config_gpu_print(&gpus->at[i], gpu);
        len += (size_t)snprintf(ret_text + len, CONFIG_TEXT_BYTES_MAX + 1 - len, "%s%s", len ? ", " : "", gpu);
    }
}
