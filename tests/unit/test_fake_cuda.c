/* SPDX-License-Identifier: Apache-2.0 */
/* The fake CUDA driver behaves as the real one where our code depends on it: devices, contexts, memory, faults. */
#include "tests/unit/support/cuda_rig.h"

START_TEST(test_devices)
{
    struct cuda_uuid uuids[3];
    struct cuda_rig rig;
    char name[64];
    size_t bytes;
    int n, device;

    setenv("FAKE_CUDA_DEVICES", "3", 1);
    setenv("FAKE_CUDA_HBM", "0x4000000", 1);
    cuda_rig_load(&rig);
    IS(rig.cu.DeviceGetCount(&n), NV_ERROR_NOT_INITIALIZED);
    OK(rig.cu.Init(0));
    OK(rig.cu.DeviceGetCount(&n));
    ck_assert_int_eq(n, 3);
    for (int i = 0; i < n; i++) {
        OK(rig.cu.DeviceGet(&device, i));
        OK(rig.cu.DeviceGetUuid(&uuids[i], device));
        OK(rig.cu.DeviceGetName(name, sizeof(name), device));
        OK(rig.cu.DeviceTotalMem(&bytes, device));
        ck_assert_uint_eq(bytes, 64 * MIB);
        for (int j = 0; j < i; j++)
            ck_assert_mem_ne(&uuids[i], &uuids[j], sizeof(uuids[i]));
    }
    IS(rig.cu.DeviceGet(&device, 3), NV_ERROR_INVALID_DEVICE);
    cuda_rig_forget_file();
}
END_TEST

START_TEST(test_no_device)
{
    struct cuda_rig rig;

    setenv("FAKE_CUDA_DEVICES", "0", 1);
    cuda_rig_load(&rig);
    IS(rig.cu.Init(0), NV_ERROR_NO_DEVICE);
    cuda_rig_forget_file();
}
END_TEST

START_TEST(test_contexts)
{
    struct CUctx_st *ctx, *other;
    struct cuda_rig rig;
    size_t free_bytes, total_bytes;
    uint64_t ptr;

    setenv("FAKE_CUDA_DEVICES", "2", 1);
    cuda_rig_load(&rig);
    OK(rig.cu.Init(0));
    IS(rig.cu.MemAlloc(&ptr, 4096), NV_ERROR_INVALID_CONTEXT);
    OK(rig.cu.DevicePrimaryCtxRetain(&ctx, 0));
    OK(rig.cu.DevicePrimaryCtxRetain(&other, 1));
    ck_assert_ptr_ne(ctx, other);
    OK(rig.cu.CtxPushCurrent(ctx));
    OK(rig.cu.MemGetInfo(&free_bytes, &total_bytes));
    ck_assert_uint_eq(free_bytes, total_bytes - FAKE_CUDA_CONTEXT_BYTES);
    OK(rig.cu.MemAlloc(&ptr, 4096));
    OK(rig.cu.CtxPushCurrent(other));
    OK(rig.cu.MemGetInfo(&free_bytes, &total_bytes));
    ck_assert_uint_eq(free_bytes, total_bytes - FAKE_CUDA_CONTEXT_BYTES);
    OK(rig.cu.CtxPopCurrent(&other));
    OK(rig.cu.CtxGetCurrent(&other));
    ck_assert_ptr_eq(other, ctx);

    /* With the context ends what is in it, and a test can see that it was left. */
    OK(rig.cu.DevicePrimaryCtxRelease(0));
    ck_assert_uint_eq(rig.role->n_reclaimed, 1);
    IS(rig.cu.MemAlloc(&ptr, 4096), NV_ERROR_CONTEXT_IS_DESTROYED);
    IS(rig.cu.DevicePrimaryCtxRelease(0), NV_ERROR_INVALID_CONTEXT);
    ck_assert_int_eq(FAKE_CUDA_LIVE(rig.control, FAKE_CUDA_CLIENT, n_contexts), 1);
    ck_assert_int_eq(FAKE_CUDA_LIVE(rig.control, FAKE_CUDA_CLIENT, n_allocations), 0);
    cuda_rig_forget_file();
}
END_TEST

START_TEST(test_capacity)
{
    uint64_t ptrs[3];
    struct cuda_rig rig;

    setenv("FAKE_CUDA_HBM", "67108864", 1);
    cuda_rig_init(&rig);
    OK(rig.cu.MemAlloc(&ptrs[0], 32 * MIB));
    IS(rig.cu.MemAlloc(&ptrs[1], 16 * MIB + 1), NV_ERROR_OUT_OF_MEMORY);
    OK(rig.cu.MemAlloc(&ptrs[1], 16 * MIB));
    IS(rig.cu.MemAlloc(&ptrs[2], 1), NV_ERROR_OUT_OF_MEMORY);
    OK(rig.cu.MemFree(ptrs[0]));
    OK(rig.cu.MemAlloc(&ptrs[2], 1));
    ck_assert_int_eq(FAKE_CUDA_LIVE(rig.control, FAKE_CUDA_CLIENT, n_allocations), 2);
    OK(rig.cu.MemFree(ptrs[1]));
    OK(rig.cu.MemFree(ptrs[2]));
    IS(rig.cu.MemFree(ptrs[2]), NV_ERROR_INVALID_VALUE);
    cuda_rig_deinit(&rig);
}
END_TEST

/* The kernel is asked to read there, so that no sanitizer complains. */
static bool cpu_can_read(uint64_t address)
{
    int fds[2];
    bool can;

    ck_assert_int_eq(pipe(fds), 0);
    can = write(fds[1], (const void *)(uintptr_t)address, 1) == 1;
    close(fds[0]);
    close(fds[1]);
    return can;
}

START_TEST(test_copies)
{
    enum { BYTES = 10000 };
    uint8_t *in = malloc(BYTES), *out = malloc(BYTES);
    uint64_t a, b;
    struct cuda_rig rig;

    cuda_rig_init(&rig);
    cuda_rig_fill(in, BYTES, 1);
    OK(rig.cu.MemAlloc(&a, BYTES));
    OK(rig.cu.MemAlloc(&b, BYTES));
    ck_assert(!cpu_can_read(a));
    ck_assert(cpu_can_read((uintptr_t)in));
    OK(rig.cu.MemcpyHtoD(a, in, BYTES));
    OK(rig.cu.MemsetD8(b, 0x5a, BYTES));
    OK(rig.cu.MemcpyDtoDAsync(b + 100, a + 100, BYTES - 200, NULL));
    OK(rig.cu.MemcpyDtoH(out, b, BYTES));
    memset(in, 0x5a, 100);
    memset(in + BYTES - 100, 0x5a, 100);
    ck_assert_mem_eq(in, out, BYTES);
    ck_assert_uint_eq(rig.role->bytes_htod, BYTES);
    ck_assert_uint_eq(rig.role->bytes_dtod, BYTES - 200);
    ck_assert_uint_eq(rig.role->bytes_dtoh, BYTES);
    ck_assert_uint_eq(rig.role->n_pageable_copies, 2);

    OK(rig.cu.MemHostRegister(out, BYTES, NV_HOST_REGISTER_DEVICEMAP));
    OK(rig.cu.MemcpyDtoH(out, b, BYTES));
    ck_assert_uint_eq(rig.role->n_pageable_copies, 2);
    OK(rig.cu.MemHostUnregister(out));

    /* What nobody knows is refused, and no harm is done. */
    IS(rig.cu.MemcpyDtoH(out, a + 4096 * 4, 1), NV_ERROR_INVALID_VALUE);
    IS(rig.cu.MemcpyDtoH(out, (uintptr_t)in, 1), NV_ERROR_INVALID_VALUE);
    OK(rig.cu.CtxSynchronize());
    OK(rig.cu.MemFree(a));
    OK(rig.cu.MemFree(b));
    cuda_rig_deinit(&rig);
    free(in);
    free(out);
}
END_TEST

START_TEST(test_batch)
{
    struct cuda_memcpy_attributes attributes = {.src_access_order = NV_MEMCPY_SRC_ACCESS_ORDER_STREAM};
    uint8_t in[3 * 512], out[3 * 512];
    uint64_t ptr, dsts[3], srcs[3];
    size_t sizes[3] = {512, 100, 512}, first = 0, failed;
    struct CUstream_st *stream;
    struct cuda_rig rig;

    cuda_rig_init(&rig);
    cuda_rig_fill(in, sizeof(in), 2);
    OK(rig.cu.MemAlloc(&ptr, sizeof(in)));
    OK(rig.cu.MemHostRegister(in, sizeof(in), 0));
    OK(rig.cu.StreamCreateWithPriority(&stream, NV_STREAM_NON_BLOCKING, 0));
    OK(rig.cu.MemsetD8(ptr, 0, sizeof(in)));
    for (size_t i = 0; i < 3; i++) {
        dsts[i] = ptr + 512 * (2 - i);
        srcs[i] = (uintptr_t)in + 512 * i;
    }
    OK(rig.cu.MemcpyBatchAsync(dsts, srcs, sizes, 3, &attributes, &first, 1, &failed, stream));
    OK(rig.cu.StreamSynchronize(stream));
    OK(rig.cu.MemcpyDtoH(out, ptr, sizeof(out)));
    ck_assert_mem_eq(out + 1024, in, 512);
    ck_assert_mem_eq(out + 512, in + 512, 100);
    ck_assert_uint_eq(out[612], 0);
    ck_assert_mem_eq(out, in + 1024, 512);
    dsts[1] = 4096;
    srcs[1] = ptr;
    sizes[2] = 0;
    dsts[2] = ptr;
    IS(rig.cu.MemcpyBatchAsync(dsts, srcs, sizes, 3, &attributes, &first, 1, &failed, NULL), NV_ERROR_INVALID_VALUE);
    OK(rig.cu.StreamDestroy(stream));
    OK(rig.cu.MemHostUnregister(in));
    OK(rig.cu.MemFree(ptr));
    cuda_rig_deinit(&rig);
}
END_TEST

START_TEST(test_registration)
{
    size_t bytes = 64 * KIB;
    char *memory = aligned_alloc(4096, bytes);
    uint64_t ptr;
    struct cuda_rig rig;

    cuda_rig_init(&rig);
    OK(rig.cu.MemHostRegister(memory, bytes / 2, NV_HOST_REGISTER_PORTABLE));
    IS(rig.cu.MemHostRegister(memory + 4096, 4096, 0), NV_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    IS(rig.cu.MemHostRegister(memory, bytes, 0), NV_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    OK(rig.cu.MemHostRegister(memory + bytes / 2, bytes / 2, NV_HOST_REGISTER_DEVICEMAP));
    ck_assert_int_eq(FAKE_CUDA_LIVE(rig.control, FAKE_CUDA_CLIENT, registered_bytes), bytes);
    OK(rig.cu.MemHostGetDevicePointer(&ptr, memory + 8, 0));
    ck_assert_uint_eq(ptr, (uintptr_t)memory + 8);
    OK(rig.cu.MemHostUnregister(memory));
    IS(rig.cu.MemHostUnregister(memory), NV_ERROR_HOST_MEMORY_NOT_REGISTERED);
    IS(rig.cu.MemHostUnregister(memory + bytes / 2 + 4096), NV_ERROR_HOST_MEMORY_NOT_REGISTERED);
    IS(rig.cu.MemHostGetDevicePointer(&ptr, memory, 0), NV_ERROR_INVALID_VALUE);
    OK(rig.cu.MemHostUnregister(memory + bytes / 2));
    ck_assert_int_eq(FAKE_CUDA_LIVE(rig.control, FAKE_CUDA_CLIENT, registered_bytes), 0);
    ck_assert_int_eq(FAKE_CUDA_LIVE(rig.control, FAKE_CUDA_CLIENT, n_registrations), 0);
    IS(rig.cu.MemHostRegister((void *)4096, 4096, 0), NV_ERROR_INVALID_VALUE);
    cuda_rig_deinit(&rig);
    free(memory);
}
END_TEST

START_TEST(test_pointer_attributes)
{
    int attributes[] = {NV_POINTER_ATTRIBUTE_MEMORY_TYPE, NV_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
                        NV_POINTER_ATTRIBUTE_RANGE_START_ADDR, NV_POINTER_ATTRIBUTE_RANGE_SIZE};
    unsigned type;
    int ordinal;
    uint64_t ptr, start;
    size_t size;
    void *values[] = {&type, &ordinal, &start, &size}, *host;
    struct cuda_rig rig;

    cuda_rig_init(&rig);
    OK(rig.cu.MemAlloc(&ptr, 8192));
    OK(rig.cu.MemHostAlloc(&host, 4096, NV_HOST_REGISTER_DEVICEMAP));
    OK(rig.cu.PointerGetAttributes(4, attributes, values, ptr + 5000));
    ck_assert_uint_eq(type, NV_MEMORYTYPE_DEVICE);
    ck_assert_int_eq(ordinal, 0);
    ck_assert_uint_eq(start, ptr);
    ck_assert_uint_eq(size, 8192);
    OK(rig.cu.PointerGetAttributes(2, attributes, values, (uintptr_t)host));
    ck_assert_uint_eq(type, NV_MEMORYTYPE_HOST);
    OK(rig.cu.PointerGetAttributes(2, attributes, values, (uintptr_t)&rig));
    ck_assert_uint_eq(type, 0);
    ck_assert_int_eq(ordinal, -2);
    OK(rig.cu.MemGetAddressRange(&start, &size, ptr + 8191));
    ck_assert_uint_eq(start, ptr);
    IS(rig.cu.MemGetAddressRange(&start, &size, (uintptr_t)&rig), NV_ERROR_NOT_FOUND);
    OK(rig.cu.MemFree(ptr));
    OK(rig.cu.MemFreeHost(host));
    cuda_rig_deinit(&rig);
}
END_TEST

/* The n-th call fails, so many times, and no other function. */
START_TEST(test_faults)
{
    struct cuda_rig rig;
    uint64_t ptr;
    void *host;

    cuda_rig_init(&rig);
    fake_cuda_fail(rig.role, "cuMemAlloc", 2, 2, NV_ERROR_OUT_OF_MEMORY);
    OK(rig.cu.MemAlloc(&ptr, 1));
    OK(rig.cu.MemFree(ptr));
    IS(rig.cu.MemAlloc(&ptr, 1), NV_ERROR_OUT_OF_MEMORY);
    OK(rig.cu.MemHostAlloc(&host, 1, 0));
    OK(rig.cu.MemFreeHost(host));
    IS(rig.cu.MemAlloc(&ptr, 1), NV_ERROR_OUT_OF_MEMORY);
    OK(rig.cu.MemAlloc(&ptr, 1));
    OK(rig.cu.MemFree(ptr));
    ck_assert_uint_eq(rig.role->faults[0].n_fired, 2);
    cuda_rig_deinit(&rig);
}
END_TEST

/* An error that takes the context with it stays, whatever is called. */
START_TEST(test_sticky)
{
    struct cuda_rig rig;
    uint64_t ptr;

    cuda_rig_init(&rig);
    OK(rig.cu.MemAlloc(&ptr, 1));
    fake_cuda_fail(rig.role, "cuCtxSynchronize", 1, 1, NV_ERROR_ECC_UNCORRECTABLE);
    IS(rig.cu.CtxSynchronize(), NV_ERROR_ECC_UNCORRECTABLE);
    IS(rig.cu.MemFree(ptr), NV_ERROR_ECC_UNCORRECTABLE);
    store_release(&rig.role->lost, NV_ERROR_LAUNCH_FAILED);
    IS(rig.cu.MemAlloc(&ptr, 1), NV_ERROR_ECC_UNCORRECTABLE);
}
END_TEST

START_TEST(test_lost_by_order)
{
    struct cuda_rig rig;
    uint64_t ptr;

    cuda_rig_init(&rig);
    store_release(&rig.role->lost, NV_ERROR_LAUNCH_FAILED);
    IS(rig.cu.MemAlloc(&ptr, 1), NV_ERROR_LAUNCH_FAILED);
    store_release(&rig.role->lost, 0);
    IS(rig.cu.MemAlloc(&ptr, 1), NV_ERROR_LAUNCH_FAILED);
}
END_TEST

/* What the table's loader makes of drivers that lack something. */
START_TEST(test_drivers)
{
    char problem[CUDA_PROBLEM_BYTES];
    struct cuda_driver driver;
    struct cuda_rig rig;

    cuda_rig_load(&rig);
    ck_assert_ptr_nonnull((void *)rig.cu.MemcpyBatchAsync);
    setenv("FAKE_CUDA_WITHOUT", "cuMemMap", 1);
    ck_assert_int_eq(cuda_driver_open(SPILLWAY_FAKE_CUDA, &driver, problem), -ENOTSUP);
    ck_assert_ptr_nonnull(strstr(problem, "lacks cuMemMap:"));
    setenv("FAKE_CUDA_WITHOUT", "cuMemcpyBatchAsync", 1);
    ck_assert_int_eq(cuda_driver_open(SPILLWAY_FAKE_CUDA, &driver, problem), 0);
    ck_assert_str_eq(problem, "");
    ck_assert_ptr_null((void *)driver.MemcpyBatchAsync);

    /* One that does not want to be asked is searched for symbols. */
    fake_cuda_fail(rig.role, "cuGetProcAddress", 1, UINT32_MAX, NV_ERROR_NOT_SUPPORTED);
    ck_assert_int_eq(cuda_driver_open(SPILLWAY_FAKE_CUDA, &driver, problem), 0);
    ck_assert_ptr_eq((void *)driver.MemAlloc, (void *)rig.cu.MemAlloc);
    ck_assert_ptr_nonnull((void *)driver.MemcpyBatchAsync);
    cuda_rig_forget_file();
}
END_TEST

START_TEST(test_old_driver)
{
    struct cuda_rig rig;
    int version;

    setenv("FAKE_CUDA_DRIVER_VERSION", "12000", 1);
    cuda_rig_load(&rig);
    OK(rig.cu.DriverGetVersion(&version));
    ck_assert_int_eq(version, 12000);
    ck_assert_ptr_null((void *)rig.cu.MemcpyBatchAsync);
    cuda_rig_forget_file();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("fake_cuda");
    TCase *tests = tcase_create("driver");

    tcase_add_test(tests, test_devices);
    tcase_add_test(tests, test_no_device);
    tcase_add_test(tests, test_contexts);
    tcase_add_test(tests, test_capacity);
    tcase_add_test(tests, test_copies);
    tcase_add_test(tests, test_batch);
    tcase_add_test(tests, test_registration);
    tcase_add_test(tests, test_pointer_attributes);
    tcase_add_test(tests, test_faults);
    tcase_add_test(tests, test_sticky);
    tcase_add_test(tests, test_lost_by_order);
    tcase_add_test(tests, test_drivers);
    tcase_add_test(tests, test_old_driver);
    suite_add_tcase(suite, tests);
    return cuda_rig_main(suite);
}
