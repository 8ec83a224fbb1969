/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The GPUs of this machine, as the driver names them: a pool's gpu tier is configured by UUID. Asks the driver only, and
 * makes no context: that would cost some hundred MiB of each GPU's memory.
 */
#include <errno.h>

#include "client/ctl/doctor.h"
#include "include/base/units.h"
#include "io/cuda_driver.h"

#define GPUS_SHOWN_MAX 64

static int check_one(struct json_object *checks, const struct cuda_driver *cuda, int ordinal, int version)
{
    char name[128] = "", uuid_text[CUDA_UUID_TEXT_BYTES], size[UNITS_TEXT_BYTES];
    struct cuda_uuid uuid;
    size_t memory_bytes = 0;
    int device, r;

    if ((r = cuda->DeviceGet(&device, ordinal)) != NV_SUCCESS)
        return r;
    if ((r = cuda->DeviceGetUuid(&uuid, device)) != NV_SUCCESS)
        return r;
    if ((r = cuda->DeviceGetName(name, sizeof(name), device)) != NV_SUCCESS)
        return r;
    if ((r = cuda->DeviceTotalMem(&memory_bytes, device)) != NV_SUCCESS)
        return r;
    doctor_add(checks, "gpu", "OK", NULL, "%s: %s, %s, driver for CUDA %d.%d", cuda_uuid_print(&uuid, uuid_text), name,
               size_print(memory_bytes, size), version / 1000, version % 1000 / 10);
    return NV_SUCCESS;
}

void doctor_check_gpus(struct json_object *checks)
{
    const struct cuda_driver *cuda;
    int n = 0, version = 0, result, r = cuda_driver_load(&cuda);

    if (r == -ENOENT) {
        doctor_add(checks, "gpu", "WARN", "install the driver's libcuda1, if this machine has a GPU",
                   "GPU tier: " CUDA_LIBRARY " not found: GPU offload is off; everything else works");
        return;
    }
    if (r < 0) {
        doctor_add(checks, "gpu", "WARN", "install a driver for CUDA 12.0 or newer", "GPU tier is off: %s",
                   cuda_driver_problem());
        return;
    }
    if ((result = cuda->Init(0)) == NV_SUCCESS && (result = cuda->DriverGetVersion(&version)) == NV_SUCCESS)
        result = cuda->DeviceGetCount(&n);
    for (int i = 0; result == NV_SUCCESS && i < n && i < GPUS_SHOWN_MAX; i++)
        result = check_one(checks, cuda, i, version);
    if (result != NV_SUCCESS)
        doctor_add(checks, "gpu", "WARN", "nvidia-smi tells more; the kernel's log too",
                   "GPU tier is off: the driver says %s", cuda_error_name(result));
    else if (n == 0)
        doctor_add(checks, "gpu", "WARN", "see CUDA_VISIBLE_DEVICES", "GPU tier is off: the driver shows no GPU");
}
