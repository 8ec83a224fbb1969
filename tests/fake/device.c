/* SPDX-License-Identifier: Apache-2.0 */
/* Devices, their one (primary) context each, which of them a thread has current, and the search for functions. */
#include <stdlib.h>
#include <strings.h>

#include "tests/fake/fake.h"

#define CONTEXTS_DEPTH 16

static struct CUctx_st contexts[FAKE_CUDA_DEVICES_MAX];
static _Thread_local struct CUctx_st *current[CONTEXTS_DEPTH];
static _Thread_local int n_current;
_Thread_local bool fake_in_host_fn;

struct CUctx_st *fake_context(void)
{
    return n_current > 0 ? current[n_current - 1] : NULL;
}

int cuDriverGetVersion(int *ret_version)
{
    ENTER("cuDriverGetVersion", FAKE_NOTHING);
    *ret_version = fake.version;
    return NV_SUCCESS;
}

int cuGetErrorName(int result, const char **ret_text)
{
    switch (result) {
    case NV_SUCCESS:
        *ret_text = "CUDA_SUCCESS";
        return NV_SUCCESS;
#define NAME(name, value)                                                                                              \
    case value:                                                                                                        \
        *ret_text = "CUDA_ERROR_" #name;                                                                               \
        return NV_SUCCESS;
        CUDA_RESULTS(NAME)
    case 720:
        *ret_text = "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE";
        return NV_SUCCESS;
    default:
        *ret_text = NULL;
        return NV_ERROR_INVALID_VALUE;
    }
}

int cuGetErrorString(int result, const char **ret_text)
{
    return cuGetErrorName(result, ret_text);
}

/* The device that an entry of the list means, or -1. */
static int device_named(const char *entry, size_t len, bool is_mig)
{
    char name[64];

    for (int i = 0; i < fake.n_devices; i++) {
        if (!is_mig && len == 1 && entry[0] == '0' + i)
            return i;
        snprintf(name, sizeof(name), "%s-fa4ec0da-0000-4000-8000-%012x", is_mig ? "MIG" : "GPU", (unsigned)i);
        if (len > 4 && len <= strlen(name) && strncasecmp(entry, name, len) == 0)
            return i;
    }
    return -1;
}

void fake_devices_show(void)
{
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    bool is_mig = getenv("FAKE_CUDA_MIG") != NULL;
    int n_max = is_mig ? MIN(fake.n_devices, 1) : fake.n_devices;

    fake.n_visible = 0;
    for (int i = 0; !list && i < n_max; i++)
        fake.visible[fake.n_visible++] = i;
    while (list && fake.n_visible < n_max) {
        size_t len = strcspn(list, ",");
        int device = device_named(list, len, is_mig);

        if (device < 0)
            break;
        fake.visible[fake.n_visible++] = device;
        if (list[len] == '\0')
            break;
        list += len + 1;
    }
}

int cuDeviceGetCount(int *ret_n)
{
    ENTER("cuDeviceGetCount", FAKE_INIT);
    *ret_n = fake.n_visible;
    return NV_SUCCESS;
}

static bool is_device(int device)
{
    for (int i = 0; i < fake.n_visible; i++)
        if (fake.visible[i] == device)
            return true;
    return false;
}

int cuDeviceGet(int *ret_device, int ordinal)
{
    ENTER("cuDeviceGet", FAKE_INIT);
    if (ordinal < 0 || ordinal >= fake.n_visible)
        return NV_ERROR_INVALID_DEVICE;
    *ret_device = fake.visible[ordinal];
    return NV_SUCCESS;
}

/* GPU-fa4ec0da-0000-4000-8000-00000000000N, N its number among all. */
int cuDeviceGetUuid_v2(struct cuda_uuid *ret_uuid, int device)
{
    ENTER("cuDeviceGetUuid", FAKE_INIT);
    if (!is_device(device))
        return NV_ERROR_INVALID_DEVICE;
    *ret_uuid = (struct cuda_uuid){{0xfa, 0x4e, 0xc0, 0xda, 0, 0, 0x40, 0, 0x80, [15] = (uint8_t)device}};
    return NV_SUCCESS;
}

int cuDeviceGetName(char *ret_name, int name_bytes, int device)
{
    ENTER("cuDeviceGetName", FAKE_INIT);
    if (!is_device(device))
        return NV_ERROR_INVALID_DEVICE;
    snprintf(ret_name, (size_t)name_bytes, "Fake GPU %d", device);
    return NV_SUCCESS;
}

int cuDeviceTotalMem_v2(size_t *ret_bytes, int device)
{
    ENTER("cuDeviceTotalMem", FAKE_INIT);
    if (!is_device(device))
        return NV_ERROR_INVALID_DEVICE;
    *ret_bytes = fake.hbm_bytes;
    return NV_SUCCESS;
}

int cuDeviceGetPCIBusId(char *ret_text, int text_bytes, int device)
{
    ENTER("cuDeviceGetPCIBusId", FAKE_INIT);
    if (!is_device(device))
        return NV_ERROR_INVALID_DEVICE;
    snprintf(ret_text, (size_t)text_bytes, "0000:%02X:00.0", 0xf0 + device);
    return NV_SUCCESS;
}

int cuDeviceGetAttribute(int *ret_value, int attribute, int device)
{
    ENTER("cuDeviceGetAttribute", FAKE_INIT);
    if (!is_device(device))
        return NV_ERROR_INVALID_DEVICE;
    switch (attribute) {
    case NV_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
        *ret_value = 132;
        return NV_SUCCESS;
    case NV_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT:
        *ret_value = 3;
        return NV_SUCCESS;
    case NV_DEVICE_ATTRIBUTE_PCI_BUS_ID:
        *ret_value = 0xf0 + device;
        return NV_SUCCESS;
    case NV_DEVICE_ATTRIBUTE_PCI_DEVICE_ID:
    case NV_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID:
    case NV_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
        *ret_value = 0;
        return NV_SUCCESS;
    case NV_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
        *ret_value = 9;
        return NV_SUCCESS;
    case NV_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case NV_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM:
    case NV_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
    case NV_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED:
    case NV_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS:
        *ret_value = 1;
        return NV_SUCCESS;
    default:
        return NV_ERROR_INVALID_VALUE;
    }
}

/* A context takes memory of its device, as the real ones do: see FAKE_CUDA_CONTEXT_BYTES. */
int cuDevicePrimaryCtxRetain(struct CUctx_st **ret_ctx, int device)
{
    int r = NV_SUCCESS;

    ENTER("cuDevicePrimaryCtxRetain", FAKE_INIT);
    if (!is_device(device))
        return NV_ERROR_INVALID_DEVICE;
    if ((r = fake_lost()) != NV_SUCCESS)
        return r;
    pthread_mutex_lock(&fake.lock);
    if (contexts[device].n_refs == 0) {
        if (fake_charge(device, FAKE_CUDA_CONTEXT_BYTES)) {
            contexts[device].device = device;
            GAUGE(n_contexts, 1);
        } else {
            r = NV_ERROR_OUT_OF_MEMORY;
        }
    }
    if (r == NV_SUCCESS) {
        contexts[device].n_refs++;
        *ret_ctx = &contexts[device];
    }
    pthread_mutex_unlock(&fake.lock);
    return r;
}

/* With the last reference everything in the context ends. */
int cuDevicePrimaryCtxRelease_v2(int device)
{
    int r = NV_SUCCESS;

    ENTER("cuDevicePrimaryCtxRelease", FAKE_INIT);
    if (!is_device(device))
        return NV_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&fake.lock);
    if (contexts[device].n_refs == 0) {
        r = NV_ERROR_INVALID_CONTEXT;
    } else if (--contexts[device].n_refs == 0) {
        fake_drain(&contexts[device]);
        fake_events_reclaim(&contexts[device]);
        fake_streams_reclaim(&contexts[device]);
        fake_modules_reclaim(&contexts[device]);
        fake_memory_reclaim(&contexts[device]);
        fake_charge(device, -(int64_t)FAKE_CUDA_CONTEXT_BYTES);
        GAUGE(n_contexts, -1);
    }
    pthread_mutex_unlock(&fake.lock);
    return r;
}

int cuCtxGetCurrent(struct CUctx_st **ret_ctx)
{
    ENTER("cuCtxGetCurrent", FAKE_INIT);
    *ret_ctx = fake_context();
    return NV_SUCCESS;
}

static bool is_context(const struct CUctx_st *ctx)
{
    for (size_t i = 0; i < ARRAY_LEN(contexts); i++)
        if (ctx == &contexts[i])
            return load_relaxed(&ctx->n_refs) > 0;
    return false;
}

int cuCtxSetCurrent(struct CUctx_st *ctx)
{
    ENTER("cuCtxSetCurrent", FAKE_INIT);
    if (ctx && !is_context(ctx))
        return NV_ERROR_INVALID_CONTEXT;
    if (n_current > 0)
        n_current--;
    if (ctx)
        current[n_current++] = ctx;
    return NV_SUCCESS;
}

int cuCtxPushCurrent_v2(struct CUctx_st *ctx)
{
    ENTER("cuCtxPushCurrent", FAKE_INIT);
    if (!is_context(ctx))
        return NV_ERROR_INVALID_CONTEXT;
    if (n_current == CONTEXTS_DEPTH)
        return NV_ERROR_OUT_OF_MEMORY;
    current[n_current++] = ctx;
    return NV_SUCCESS;
}

int cuCtxPopCurrent_v2(struct CUctx_st **ret_ctx)
{
    ENTER("cuCtxPopCurrent", FAKE_INIT);
    if (n_current == 0)
        return NV_ERROR_INVALID_CONTEXT;
    n_current--;
    if (ret_ctx)
        *ret_ctx = current[n_current];
    return NV_SUCCESS;
}

int cuCtxGetDevice(int *ret_device)
{
    ENTER("cuCtxGetDevice", FAKE_CONTEXT);
    *ret_device = fake_context()->device;
    return NV_SUCCESS;
}

int cuCtxGetStreamPriorityRange(int *ret_least, int *ret_greatest)
{
    ENTER("cuCtxGetStreamPriorityRange", FAKE_CONTEXT);
    if (ret_least)
        *ret_least = 0;
    if (ret_greatest)
        *ret_greatest = -5;
    return NV_SUCCESS;
}

__attribute__((visibility("default"))) int cuGetProcAddress_v2(const char *name, void **ret_fn, int version,
                                                               uint64_t flags, int *ret_status);

/* The version that was asked for, or an older one, if this "driver" is new enough to have it. */
int cuGetProcAddress_v2(const char *name, void **ret_fn, int version, uint64_t flags, int *ret_status)
{
    static const struct {
        const char *name;
        void *fn;
        int version;
    } functions[] = {
#define FUNCTION(member, symbol, since, parameters) {"cu" #member, (void *)(symbol), since},
        CUDA_FUNCTIONS(FUNCTION) CUDA_FUNCTIONS_OPTIONAL(FUNCTION)};
    const char *without = getenv("FAKE_CUDA_WITHOUT");

    (void)flags;
    ENTER("cuGetProcAddress", FAKE_NOTHING);
    *ret_fn = NULL;
    for (size_t i = 0; i < ARRAY_LEN(functions); i++) {
        if (strcmp(name, functions[i].name) != 0 || (without && strcmp(name, without) == 0))
            continue;
        bool is_new_enough = functions[i].version <= version && version <= fake.version;
        if (ret_status)
            *ret_status = is_new_enough ? 0 : 2;
        if (!is_new_enough)
            return NV_ERROR_NOT_FOUND;
        *ret_fn = functions[i].fn;
        return NV_SUCCESS;
    }
    if (ret_status)
        *ret_status = 1;
    return NV_ERROR_NOT_FOUND;
}
