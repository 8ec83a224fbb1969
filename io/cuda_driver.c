/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the process's one table of the CUDA driver. It is filled under a lock and then read by everyone without one: who
 * has its address got it from cuda_driver_load(), after the lock. The library stays open, as its threads do.
 */
#include "io/cuda_driver.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static struct {
    pthread_mutex_t lock;
    const char *library;
    bool tried;
    int status;
    struct cuda_driver driver;
    char problem[CUDA_PROBLEM_BYTES];
} loaded = {.lock = PTHREAD_MUTEX_INITIALIZER, .library = CUDA_LIBRARY};

/* cuGetProcAddress_v2, which every driver since 12.0 has. */
typedef int get_proc(const char *name, void **ret_fn, int version, uint64_t flags, int *ret_status);

/* The function of that version, or NULL. Only a driver that cannot be asked is searched for the symbol. */
static void *find(void *library, get_proc *get, const char *name, const char *symbol, int version)
{
    void *fn = NULL;
    int status = 0;
    int r = get ? get(name, &fn, version, NV_PROC_ADDRESS_LEGACY_STREAM, &status) : NV_ERROR_NOT_SUPPORTED;

    if (r == NV_SUCCESS || r == NV_ERROR_NOT_FOUND)
        return r == NV_SUCCESS && status == 0 ? fn : NULL;
    return dlsym(library, symbol);
}

int cuda_driver_open(const char *library, struct cuda_driver *ret_driver, char ret_problem[static CUDA_PROBLEM_BYTES])
{
    struct cuda_driver driver = {0};
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);

    if (!handle) {
        const char *why = dlerror();

        snprintf(ret_problem, CUDA_PROBLEM_BYTES, "%s", why ? why : library);
        return -ENOENT;
    }
    /* POSIX's way from an object pointer to a function: a cast is no part of C. */
    get_proc *get;
    *(void **)&get = dlsym(handle, "cuGetProcAddress_v2");
#define FIND(member, symbol, version, parameters)                                                                      \
    *(void **)&driver.member = find(handle, get, "cu" #member, #symbol, version);
#define REQUIRE(member, symbol, version, parameters)                                                                   \
    if (!driver.member) {                                                                                              \
        snprintf(ret_problem, CUDA_PROBLEM_BYTES, "%s lacks %s: the driver is too old", library, #symbol);             \
        return -ENOTSUP;                                                                                               \
    }
    CUDA_FUNCTIONS(FIND)
    CUDA_FUNCTIONS_OPTIONAL(FIND)
    CUDA_FUNCTIONS(REQUIRE)
#undef FIND
#undef REQUIRE
    *ret_driver = driver;
    ret_problem[0] = '\0';
    return 0;
}

int cuda_driver_load(const struct cuda_driver **ret_driver)
{
    int r;

    pthread_mutex_lock(&loaded.lock);
    if (!loaded.tried || loaded.status == -ENOENT) { /* no memory for it, perhaps: the next time there may be */
        loaded.status = cuda_driver_open(loaded.library, &loaded.driver, loaded.problem);
        loaded.tried = true;
    }
    r = loaded.status;
    pthread_mutex_unlock(&loaded.lock);
    if (r == 0)
        *ret_driver = &loaded.driver;
    return r;
}

const char *cuda_driver_problem(void)
{
    const char *problem;

    pthread_mutex_lock(&loaded.lock);
    problem = loaded.tried ? loaded.problem : "";
    pthread_mutex_unlock(&loaded.lock);
    return problem;
}

void cuda_driver_set_library(const char *library)
{
    pthread_mutex_lock(&loaded.lock);
    assert(!loaded.tried);
    loaded.library = library;
    pthread_mutex_unlock(&loaded.lock);
}

bool cuda_is_fatal(int result)
{
    switch (result) {
    case NV_ERROR_DEINITIALIZED:
    case NV_ERROR_ECC_UNCORRECTABLE:
    case NV_ERROR_NVLINK_UNCORRECTABLE:
    case NV_ERROR_CONTAINED:
    case NV_ERROR_ILLEGAL_ADDRESS:
    case NV_ERROR_LAUNCH_TIMEOUT:
    case NV_ERROR_CONTEXT_IS_DESTROYED:
    case NV_ERROR_ASSERT:
    case NV_ERROR_HARDWARE_STACK_ERROR:
    case NV_ERROR_ILLEGAL_INSTRUCTION:
    case NV_ERROR_MISALIGNED_ADDRESS:
    case NV_ERROR_INVALID_ADDRESS_SPACE:
    case NV_ERROR_INVALID_PC:
    case NV_ERROR_LAUNCH_FAILED:
    case NV_ERROR_TENSOR_MEMORY_LEAK:
    case NV_ERROR_SYSTEM_DRIVER_MISMATCH:
    case NV_ERROR_MPS_RPC_FAILURE:
    case NV_ERROR_MPS_CLIENT_TERMINATED:
    case NV_ERROR_EXTERNAL_DEVICE:
        return true;
    default:
        return false;
    }
}

int cuda_errno(int result)
{
    if (cuda_is_fatal(result))
        return -ENODEV;
    switch (result) {
    case NV_SUCCESS:
        return 0;
    case NV_ERROR_OUT_OF_MEMORY:
        return -ENOMEM;
    case NV_ERROR_NOT_READY:
        return -EAGAIN;
    case NV_ERROR_INVALID_VALUE:
    case NV_ERROR_INVALID_CONTEXT:
    case NV_ERROR_INVALID_HANDLE:
        return -EINVAL;
    case NV_ERROR_HOST_MEMORY_ALREADY_REGISTERED:
        return -EEXIST;
    case NV_ERROR_NO_DEVICE:
    case NV_ERROR_INVALID_DEVICE:
    case NV_ERROR_DEVICE_UNAVAILABLE:
    case NV_ERROR_DEVICE_NOT_LICENSED:
    case NV_ERROR_STUB_LIBRARY:
    case NV_ERROR_SYSTEM_NOT_READY:
        return -ENODEV;
    case NV_ERROR_NOT_SUPPORTED:
    case NV_ERROR_CALL_REQUIRES_NEWER_DRIVER:
    case NV_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE:
    case NV_ERROR_NO_BINARY_FOR_GPU:
    case NV_ERROR_UNSUPPORTED_PTX_VERSION:
    case NV_ERROR_JIT_COMPILATION_DISABLED:
        return -ENOTSUP;
    case NV_ERROR_NOT_PERMITTED:
    case NV_ERROR_STREAM_CAPTURE_UNSUPPORTED:
    case NV_ERROR_STREAM_CAPTURE_INVALIDATED:
    case NV_ERROR_STREAM_CAPTURE_MERGE:
    case NV_ERROR_STREAM_CAPTURE_UNMATCHED:
    case NV_ERROR_STREAM_CAPTURE_UNJOINED:
    case NV_ERROR_STREAM_CAPTURE_ISOLATION:
    case NV_ERROR_STREAM_CAPTURE_IMPLICIT:
    case NV_ERROR_STREAM_CAPTURE_WRONG_THREAD:
    case NV_ERROR_CAPTURED_EVENT:
        return -EPERM;
    default:
        return -EIO;
    }
}

const char *cuda_error_name(int result)
{
    const char *name = NULL;

    switch (result) {
    case NV_SUCCESS:
        return "CUDA_SUCCESS";
#define NAME(name, value)                                                                                              \
    case value:                                                                                                        \
        return "CUDA_ERROR_" #name;
        CUDA_RESULTS(NAME)
#undef NAME
    default:
        break;
    }
    pthread_mutex_lock(&loaded.lock);
    if (!loaded.tried || loaded.status < 0 || loaded.driver.GetErrorName(result, &name) != NV_SUCCESS || !name)
        name = "a CUDA error that we do not know";
    pthread_mutex_unlock(&loaded.lock);
    return name;
}

const char *cuda_uuid_print(const struct cuda_uuid *uuid, char ret_text[static CUDA_UUID_TEXT_BYTES])
{
    const uint8_t *b = uuid->bytes;

    snprintf(ret_text, CUDA_UUID_TEXT_BYTES, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
             b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
    return ret_text;
}

static int hex_digit(char c)
{
    static const char digits[] = "0123456789abcdef";
    const char *found = c ? strchr(digits, c | 0x20) : NULL;

    return found ? (int)(found - digits) : -1;
}

int cuda_uuid_parse(const char *text, struct cuda_uuid *ret_uuid)
{
    struct cuda_uuid uuid;

    if (strncmp(text, "GPU-", 4) == 0 || strncmp(text, "MIG-", 4) == 0)
        text += 4;
    for (size_t i = 0; i < sizeof(uuid.bytes); i++) {
        int high, low;

        if ((i == 4 || i == 6 || i == 8 || i == 10) && *text++ != '-')
            return -EINVAL;
        if ((high = hex_digit(text[0])) < 0 || (low = hex_digit(text[1])) < 0)
            return -EINVAL;
        uuid.bytes[i] = (uint8_t)(high << 4 | low);
        text += 2;
    }
    if (*text != '\0')
        return -EINVAL;
    *ret_uuid = uuid;
    return 0;
}
