/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of the GPU that the daemon hands out: what goes straight there and back, what of a job may be missing, the pool's
 * budget, and a helper that dies. On the fake driver, or on a real GPU with SPILLWAY_TEST_GPU=1.
 */
#include <check.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>

#include "tests/system/support/gpu.h"

#define TIMEOUT_MS 20000
#define ALLOC_BYTES (64 * MIB)
#define USED "pools/0/gpu/used_bytes"

static struct gpu_rig rig;
static spw_space *space;
static spw_gpu_memory *memory;
static uint64_t at; /* the memory's address */

static uint8_t byte_at(uint32_t seed, uint64_t i)
{
    return (uint8_t)((i * 2654435761u ^ seed * 40503u) >> 11);
}

static void fill(uint64_t address, uint32_t seed, uint64_t from, uint64_t n)
{
    uint8_t *bytes = malloc(n);

    ck_assert_ptr_nonnull(bytes);
    for (uint64_t i = 0; i < n; i++)
        bytes[i] = byte_at(seed, from + i);
    CU(rig.cu->MemcpyHtoD(address, bytes, n));
    free(bytes);
}

/* An assertion for each byte would take minutes. */
static void check_at(uint64_t address, uint32_t seed, uint64_t from, uint64_t n)
{
    uint8_t *bytes = malloc(n);

    ck_assert_ptr_nonnull(bytes);
    CU(rig.cu->MemcpyDtoH(bytes, address, n));
    for (uint64_t i = 0; i < n; i++)
        if (bytes[i] != byte_at(seed, from + i))
            ck_abort_msg("byte %llu of %llu is %u, not %u", (unsigned long long)i, (unsigned long long)n, bytes[i],
                         byte_at(seed, from + i));
    free(bytes);
}

static uint64_t kernels(void)
{
    const struct fake_cuda_role *role = rig.control ? &rig.control->roles[FAKE_CUDA_CLIENT] : NULL;

    return role ? load_relaxed(&role->n_gathers) + load_relaxed(&role->n_scatters) : 0;
}

static void open_all(uint64_t dram_bytes, uint64_t disk_bytes)
{
    gpu_rig_driver(&rig);
    gpu_rig_open(&rig, dram_bytes, disk_bytes, 64 * KIB);
    space = daemon_space(rig.session, "default", "any", 0, SPW_CLASS_WEIGHTS, SPW_CACHE);
    SPW(spw_gpu_alloc(rig.gpu, ALLOC_BYTES, &memory));
    at = spw_gpu_memory_address(memory);
}

static void close_all(void)
{
    spw_gpu_memory_free(memory);
    gpu_rig_close(&rig);
}

static void tensors(uint32_t n, uint64_t size_bytes)
{
    for (uint32_t i = 0; i < n; i++) {
        struct spw_key key = gpu_key(i);

        SPW(spw_tensor_open(space, &key, size_bytes));
    }
}

static void wait_done(spw_gpu_job *job, uint64_t n)
{
    SPW(spw_gpu_job_wait(job, SPW_GPU_DONE, TIMEOUT_MS));
    ck_assert_uint_eq(spw_gpu_job_value(job), n);
    spw_gpu_job_free(job);
}

/* A tensor of several pieces from one end of the memory, and back to the other; and what others see of it. */
START_TEST(there_and_back)
{
    const uint64_t size_bytes = 20 * MIB + 48;
    struct spw_key name = gpu_key(0);
    struct spw_gpu_range range = {.key = name, .bytes = size_bytes};
    spw_gpu_job *job;

    open_all(256 * MIB, 0);
    tensors(1, size_bytes);
    range.address = at + ALLOC_BYTES - size_bytes;
    uint8_t *host = calloc(1, size_bytes);
    CU(rig.cu->MemcpyDtoH(host, at + ALLOC_BYTES - MIB, MIB));
    ck_assert(host[0] == 0 && memcmp(host, host + 1, MIB - 1) == 0);
    fill(range.address, 3, 0, size_bytes);
    SPW(spw_gpu_put_ranges(rig.gpu, space, &range, 1, NULL, TIMEOUT_MS, NULL, &job));
    SPW(spw_gpu_job_wait(job, SPW_GPU_SOURCE_FREE, TIMEOUT_MS));
    CU(rig.cu->MemsetD8(range.address, 0, size_bytes));
    wait_done(job, 1);
    SPW(spw_get_range(space, &name, 0, host, size_bytes, TIMEOUT_MS));
    for (uint64_t i = 0; i < size_bytes; i++)
        if (host[i] != byte_at(3, i))
            ck_abort_msg("byte %llu", (unsigned long long)i);
    free(host);
    fill(at, 4, 0, 32 * MIB);
    range.address = at + 16;
    range.offset_bytes = 4096;
    range.bytes -= 4096;
    SPW(spw_gpu_get_ranges(rig.gpu, space, &range, 1, NULL, 0, TIMEOUT_MS, NULL, &job));
    wait_done(job, 1);
    check_at(at, 4, 0, 16);
    check_at(at + 16, 3, 4096, range.bytes);
    check_at(at + 16 + range.bytes, 4, 16 + range.bytes, 32 * MIB - 16 - range.bytes);
    ck_assert_uint_eq(kernels(), 0);
    close_all();
}
END_TEST

/* Many that lie together, of devices and of more uses than may be on their way; set by set, and again. */
START_TEST(a_set_is_activated)
{
    enum { N = 40 };
    const uint64_t each = MIB + 16 * KIB;
    struct spw_gpu_range ranges[N];
    spw_gpu_job *job;
    uint64_t total;

    open_all(256 * MIB, 512 * MIB);
    tensors(N, each);
    for (uint32_t i = 0; i < N; i++) {
        ranges[i] = (struct spw_gpu_range){.key = gpu_key(i), .bytes = each, .address = at + i * each};
        fill(ranges[i].address, i, 0, each);
    }
    SPW(spw_gpu_put_ranges(rig.gpu, space, ranges, N, NULL, TIMEOUT_MS, NULL, &job));
    wait_done(job, N);
    for (uint32_t round = 0; round < 2; round++) {
        CU(rig.cu->MemsetD8(at, 0, ALLOC_BYTES));
        for (uint32_t i = 0; i < N; i++) /* the second time each lies alone */
            ranges[i].address = at + (round ? (N - 1 - i) * (each + 64) : i * each);
        SPW(spw_gpu_activate(rig.gpu, space, ranges, N, NULL, TIMEOUT_MS, &job));
        SPW(spw_gpu_job_wait(job, SPW_GPU_DONE, TIMEOUT_MS));
        ck_assert_uint_eq(spw_gpu_job_progress(job, &total), N * each);
        ck_assert_uint_eq(total, N * each);
        wait_done(job, N);
        for (uint32_t i = 0; i < N; i++)
            check_at(ranges[i].address, i, 0, each);
    }
    ck_assert_uint_eq(kernels(), 0);
    close_all();
}
END_TEST

/* Of ranges that lie together some are not there: the others are right, and nothing came to where those would be. */
START_TEST(some_are_missing)
{
    enum { N = 12 };
    const uint64_t each = 512 * KIB;
    static const bool is_missing[N] = {true, false, false, true, true, false, true, false, false, false, false, true};
    struct spw_gpu_range ranges[N];
    int32_t status[N];
    spw_gpu_job *job;

    open_all(GIB, 0); /* or a use would have no more than two of them */
    tensors(N, each);
    for (uint32_t i = 0; i < N; i++) {
        ranges[i] = (struct spw_gpu_range){.key = gpu_key(i), .bytes = each, .address = at + i * each};
        fill(ranges[i].address, i, 0, each);
    }
    SPW(spw_gpu_put_ranges(rig.gpu, space, ranges, N, NULL, TIMEOUT_MS, NULL, &job));
    wait_done(job, N);
    fill(at, 99, 0, N * each);
    for (uint32_t i = 0; i < N; i++)
        ranges[i].key = gpu_key(is_missing[i] ? 1000 + i : i);
    SPW(spw_gpu_get_ranges(rig.gpu, space, ranges, N, NULL, 0, TIMEOUT_MS, status, &job));
    wait_done(job, 7);
    for (uint32_t i = 0; i < N; i++) {
        ck_assert_int_eq(status[i], is_missing[i] ? -ENOENT : 0);
        check_at(ranges[i].address, is_missing[i] ? 99 : i, is_missing[i] ? i * each : 0, each);
    }
    fill(at, 98, 0, N * each);
    SPW(spw_gpu_put_ranges(rig.gpu, space, ranges, N, NULL, TIMEOUT_MS, status, &job));
    wait_done(job, 7);
    CU(rig.cu->MemsetD8(at, 0, N * each));
    SPW(spw_gpu_get_ranges(rig.gpu, space, ranges, N, NULL, 0, TIMEOUT_MS, status, &job));
    wait_done(job, 7);
    for (uint32_t i = 0; i < N; i++) {
        ck_assert_int_eq(status[i], is_missing[i] ? -ENOENT : 0);
        if (!is_missing[i])
            check_at(ranges[i].address, 98, i * each, each);
    }
    ck_assert_uint_eq(kernels(), 0);
    close_all();
}
END_TEST

/* A put reads what the caller's stream has written by then, and what comes after a join sees all of a get. */
START_TEST(ordered_with_streams)
{
    const uint64_t each = 8 * MIB;
    struct spw_gpu_range range = {.key = gpu_key(0), .bytes = each};
    struct CUstream_st *stream;
    spw_gpu_job *job;
    uint8_t *host = malloc(each);

    open_all(256 * MIB, 0);
    tensors(1, each);
    CU(rig.cu->StreamCreateWithPriority(&stream, NV_STREAM_NON_BLOCKING, 0));
    if (rig.control)
        store_release(&rig.control->roles[FAKE_CUDA_CLIENT].hang, 1);
    CU(rig.cu->MemsetD8Async(at, 7, each, stream));
    range.address = at;
    SPW(spw_gpu_put_ranges(rig.gpu, space, &range, 1, stream, TIMEOUT_MS, NULL, &job));
    if (rig.control) {
        ck_assert_int_eq(spw_gpu_job_wait(job, SPW_GPU_SOURCE_FREE, 50), -ETIMEDOUT);
        store_release(&rig.control->roles[FAKE_CUDA_CLIENT].hang, 0);
    }
    SPW(spw_gpu_job_join(job, stream, TIMEOUT_MS));
    CU(rig.cu->MemsetD8Async(at, 8, each, stream)); /* after it has been read */
    wait_done(job, 1);
    range.address = at + each;
    SPW(spw_gpu_get_ranges(rig.gpu, space, &range, 1, stream, 0, TIMEOUT_MS, NULL, &job));
    SPW(spw_gpu_job_join(job, stream, TIMEOUT_MS));
    CU(rig.cu->StreamSynchronize(stream));
    CU(rig.cu->MemcpyDtoH(host, at + each, each));
    ck_assert(host[0] == 7 && memcmp(host, host + 1, each - 1) == 0);
    CU(rig.cu->MemcpyDtoH(host, at, each));
    ck_assert(host[0] == 8 && memcmp(host, host + 1, each - 1) == 0);
    wait_done(job, 1);
    CU(rig.cu->StreamDestroy(stream));
    free(host);
    close_all();
}
END_TEST

/* Small ones all over the place, ranges that lie elsewhere too, and blocks: by staging memory, and as right. */
START_TEST(others_are_staged)
{
    enum { N = 64, EACH = 8192 };
    struct spw_gpu_range ranges[N];
    uint64_t elsewhere, before;
    spw_gpu_job *job;

    open_all(256 * MIB, 0);
    tensors(N, EACH);
    CU(rig.cu->MemAlloc(&elsewhere, MIB));
    for (uint32_t mixed = 0; mixed < 2; mixed++) {
        before = kernels();
        for (uint32_t i = 0; i < N; i++) {
            ranges[i] = (struct spw_gpu_range){.key = gpu_key(i),
                                               .bytes = EACH,
                                               .address = mixed && i == 0 ? elsewhere
                                                          : mixed         ? at + i * EACH
                                                                          : at + i * UINT64_C(3) * EACH};
            fill(ranges[i].address, 100 * mixed + i, 0, EACH);
        }
        SPW(spw_gpu_put_ranges(rig.gpu, space, ranges, N, NULL, TIMEOUT_MS, NULL, &job));
        wait_done(job, N);
        CU(rig.cu->MemsetD8(at, 0, MIB * 2));
        SPW(spw_gpu_get_ranges(rig.gpu, space, ranges, N, NULL, 0, TIMEOUT_MS, NULL, &job));
        wait_done(job, N);
        for (uint32_t i = 0; i < N; i++)
            check_at(ranges[i].address, 100 * mixed + i, 0, EACH);
        ck_assert(!rig.control || kernels() > before);
    }
    CU(rig.cu->MemFree(elsewhere));
    close_all();
}
END_TEST

/* Both ways at once, with staged jobs beside them, while memory comes and goes. */
START_TEST(beside_each_other)
{
    enum { N = 4, ROUNDS = 5 };
    const uint64_t each = 6 * MIB;
    struct spw_gpu_range ranges[N];
    spw_gpu_job *jobs[N];
    uint64_t elsewhere;

    open_all(256 * MIB, 0);
    tensors(N, each);
    CU(rig.cu->MemAlloc(&elsewhere, each));
    for (uint32_t round = 0; round < ROUNDS; round++) {
        spw_gpu_memory *other;

        SPW(spw_gpu_alloc(rig.gpu, each, &other));
        for (uint32_t i = 0; i < N; i++) {
            uint64_t address = i == 0 ? elsewhere : i == 1 ? spw_gpu_memory_address(other) : at + i * each;

            ranges[i] = (struct spw_gpu_range){.key = gpu_key(i), .bytes = each, .address = address};
            fill(address, round * N + i, 0, each);
        }
        for (uint32_t i = 0; i < N; i++)
            SPW(spw_gpu_put_ranges(rig.gpu, space, &ranges[i], 1, NULL, TIMEOUT_MS, NULL, &jobs[i]));
        for (uint32_t i = 0; i < N; i++)
            wait_done(jobs[i], 1);
        for (uint32_t i = 0; i < N; i++) {
            CU(rig.cu->MemsetD8(ranges[i].address, 0, each));
            SPW(spw_gpu_get_ranges(rig.gpu, space, &ranges[i], 1, NULL, 0, TIMEOUT_MS, NULL, &jobs[i]));
        }
        for (uint32_t i = 0; i < N; i++)
            wait_done(jobs[i], 1);
        for (uint32_t i = 0; i < N; i++)
            check_at(ranges[i].address, round * N + i, 0, each);
        spw_gpu_memory_free(other);
    }
    CU(rig.cu->MemFree(elsewhere));
    close_all();
}
END_TEST

START_TEST(the_budget_counts)
{
    spw_gpu_memory *other;

    open_all(256 * MIB, 0);
    int64_t used = daemon_admin_number(rig.session, "pools", USED);
    ck_assert_int_ge(used, ALLOC_BYTES);
    ck_assert_int_eq(spw_gpu_alloc(rig.gpu, 512 * MIB, &other), -ENOSPC); /* the pool's, as a whole */
    ck_assert_uint_eq(spw_error_limit(), SPW_LIMIT_POOL_GPU);
    SPW(spw_gpu_alloc(rig.gpu, 3 * MIB, &other));
    ck_assert_int_eq(daemon_admin_number(rig.session, "pools", USED), used + 4 * MIB);
    ck_assert_int_eq(daemon_admin_number(rig.session, "gpus", "gpus/0/lanes"), 3);
    spw_gpu_memory_free(other);
    ck_assert_int_eq(daemon_admin_number(rig.session, "pools", USED), used);
    spw_gpu_memory_free(memory);
    memory = NULL;
    ck_assert_int_eq(daemon_admin_number(rig.session, "pools", USED), used - (int64_t)ALLOC_BYTES);
    uint64_t rest = 512 * MIB - (uint64_t)used + ALLOC_BYTES;
    SPW(spw_gpu_alloc(rig.gpu, rest, &memory));
    ck_assert_int_eq(spw_gpu_alloc(rig.gpu, 1, &other), -ENOSPC);
    ck_assert_uint_eq(spw_error_limit(), SPW_LIMIT_POOL_GPU);
    ck_assert_int_eq(spw_gpu_alloc(rig.gpu, 0, &other), -EINVAL);
    ck_assert_int_eq(spw_gpu_alloc(rig.gpu, UINT64_MAX, &other), -EINVAL);
    spw_gpu_memory_free(NULL);
    gpu_rig_close(&rig); /* what was not freed goes with the attachment */
    memory = NULL;
}
END_TEST

/* In the middle of a job: it ends, the memory stays readable, its lane is over; new memory works. */
START_TEST(the_helper_is_killed)
{
    enum { N = 6 };
    const uint64_t each = 8 * MIB;
    struct spw_gpu_range ranges[N];
    spw_gpu_job *job, *more;
    spw_gpu_memory *other;

    open_all(256 * MIB, 0);
    tensors(N, each);
    for (uint32_t i = 0; i < N; i++) {
        ranges[i] = (struct spw_gpu_range){.key = gpu_key(i), .bytes = each, .address = at + i * each};
        fill(ranges[i].address, i, 0, each);
    }
    SPW(spw_gpu_put_ranges(rig.gpu, space, ranges, N, NULL, TIMEOUT_MS, NULL, &job));
    wait_done(job, N);
    if (rig.control)
        store_release(&rig.control->roles[FAKE_CUDA_HELPER].dma_delay_us, 100000);
    SPW(spw_gpu_put_ranges(rig.gpu, space, ranges, N, NULL, TIMEOUT_MS, NULL, &job));
    pid_t pid = gpu_rig_helper(&rig, 0);
    kill(pid, SIGKILL);
    int r = spw_gpu_job_wait(job, SPW_GPU_DONE, TIMEOUT_MS);
    ck_assert_msg(!rig.control || r == -EIO || r == -EPIPE, "%d", r);
    spw_gpu_job_free(job);
    if (rig.control)
        store_release(&rig.control->roles[FAKE_CUDA_HELPER].dma_delay_us, 0);
    for (uint32_t i = 0; i < N; i++)
        check_at(ranges[i].address, i, 0, each);
    (void)gpu_rig_helper(&rig, pid);
    for (int i = 0; i < 2; i++) { /* the first may find out with a copy */
        r = spw_gpu_get_ranges(rig.gpu, space, ranges, 1, NULL, 0, TIMEOUT_MS, NULL, &more);
        if (r == 0) {
            r = spw_gpu_job_wait(more, SPW_GPU_DONE, TIMEOUT_MS);
            spw_gpu_job_free(more);
        }
        ck_assert_int_eq(r, -EPIPE);
    }
    r = -EAGAIN;
    for (int64_t end = clock_ms() + TIMEOUT_MS; r == -EAGAIN && clock_ms() < end; sleep_ms(10))
        r = spw_gpu_alloc(rig.gpu, ALLOC_BYTES, &other);
    ck_assert_msg(r == 0, "%d: %s", r, spw_error_text());
    spw_gpu_memory_free(memory);
    memory = other;
    at = spw_gpu_memory_address(memory);
    for (uint32_t i = 0; i < N; i++) { /* what the first job stored, or the second one again */
        ranges[i].address = at + i * each;
        fill(ranges[i].address, 50 + i, 0, each);
    }
    SPW(spw_gpu_put_ranges(rig.gpu, space, ranges, N, NULL, TIMEOUT_MS, NULL, &job));
    wait_done(job, N);
    CU(rig.cu->MemsetD8(at, 0, ALLOC_BYTES));
    SPW(spw_gpu_activate(rig.gpu, space, ranges, N, NULL, TIMEOUT_MS, &job));
    wait_done(job, N);
    for (uint32_t i = 0; i < N; i++)
        check_at(ranges[i].address, 50 + i, 0, each);
    close_all();
}
END_TEST

/* Nobody says anything any more: the job ends when its time is over, and so does its lane, but not the one with slots. */
START_TEST(the_helper_is_stopped)
{
    const uint64_t each = 8 * MIB, many = 96 * MIB; /* more than is under way at a time */
    struct spw_gpu_range range = {.key = gpu_key(0), .bytes = each}, staged = {.key = gpu_key(1), .bytes = many};
    spw_gpu_job *job, *other;

    open_all(256 * MIB, 0);
    tensors(1, each);
    SPW(spw_tensor_open(space, &staged.key, many));
    range.address = at;
    fill(at, 1, 0, each);
    CU(rig.cu->MemAlloc(&staged.address, many));
    pid_t pid = gpu_rig_helper(&rig, 0);
    kill(pid, SIGSTOP);
    SPW(spw_gpu_put_ranges(rig.gpu, space, &staged, 1, NULL, TIMEOUT_MS, NULL, &other));
    SPW(spw_gpu_put_ranges(rig.gpu, space, &range, 1, NULL, 300, NULL, &job));
    int64_t begin_ms = clock_ms();
    ck_assert_int_eq(spw_gpu_job_wait(job, SPW_GPU_DONE, TIMEOUT_MS), -ETIMEDOUT);
    ck_assert_int_lt(clock_ms() - begin_ms, TIMEOUT_MS);
    spw_gpu_job_free(job);
    kill(pid, SIGCONT);
    wait_done(other, 1);
    CU(rig.cu->MemFree(staged.address));
    ck_assert_int_eq(spw_gpu_put_ranges(rig.gpu, space, &range, 1, NULL, TIMEOUT_MS, NULL, &job), -EPIPE);
    ck_assert_ptr_nonnull(strstr(spw_error_text(), "allocated anew"));
    check_at(at, 1, 0, each);
    close_all();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gpu_alloc");
    TCase *tc = tcase_create("alloc");

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, there_and_back);
    tcase_add_test(tc, a_set_is_activated);
    tcase_add_test(tc, some_are_missing);
    tcase_add_test(tc, ordered_with_streams);
    tcase_add_test(tc, others_are_staged);
    tcase_add_test(tc, beside_each_other);
    tcase_add_test(tc, the_budget_counts);
    tcase_add_test(tc, the_helper_is_killed);
    tcase_add_test(tc, the_helper_is_stopped);
    suite_add_tcase(s, tc);
    return suite_main(s);
}
