/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranges of objects to and from a GPU's memory, through a real daemon and its helper: tensors of several pieces, parts of a
 * block, whole sets, and what is refused. On the fake driver, or on a real GPU with SPILLWAY_TEST_GPU=1.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "tests/system/support/gpu.h"

#define TIMEOUT_MS 20000

static struct gpu_rig rig;

static uint8_t byte_at(uint32_t seed, uint64_t i)
{
    return (uint8_t)((i * 2654435761u ^ seed * 40503u) >> 11);
}

static uint8_t *bytes_new(uint32_t seed, uint64_t n)
{
    uint8_t *bytes = malloc(n);

    ck_assert_ptr_nonnull(bytes);
    for (uint64_t i = 0; i < n; i++)
        bytes[i] = byte_at(seed, i);
    return bytes;
}

/* An assertion for each byte would take minutes. */
static void check_bytes(const uint8_t *bytes, uint32_t seed, uint64_t from, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (bytes[i] != byte_at(seed, from + i))
            ck_abort_msg("byte %llu of %llu at %llu is %u, not %u", (unsigned long long)i, (unsigned long long)n,
                         (unsigned long long)from, bytes[i], byte_at(seed, from + i));
}

static uint64_t memory_new(uint32_t seed, uint64_t n)
{
    uint8_t *bytes = bytes_new(seed, n);
    uint64_t memory;

    CU(rig.cu->MemAlloc(&memory, n));
    CU(rig.cu->MemcpyHtoD(memory, bytes, n));
    free(bytes);
    return memory;
}

static void memory_check(uint64_t memory, uint32_t seed, uint64_t from, uint64_t n)
{
    uint8_t *bytes = malloc(n);

    ck_assert_ptr_nonnull(bytes);
    CU(rig.cu->MemcpyDtoH(bytes, memory, n));
    check_bytes(bytes, seed, from, n);
    free(bytes);
}

static void wait_done(spw_gpu_job *job, uint64_t n)
{
    SPW(spw_gpu_job_wait(job, SPW_GPU_DONE, TIMEOUT_MS));
    ck_assert_uint_eq(spw_gpu_job_value(job), n);
    spw_gpu_job_free(job);
}

/* The rig's space has blocks of one size; this one has objects of any. */
static spw_space *any_size(enum spw_durability durability)
{
    return daemon_space(rig.session, "default", "any", 0, SPW_CLASS_WEIGHTS, durability);
}

/* A tensor of three pieces goes out as one range, and comes back in parts that begin and end anywhere. */
static void tensor_there_and_back(enum spw_durability durability)
{
    const uint64_t size_bytes = 20 * MIB + 48;
    struct spw_key name = gpu_key(7);
    int32_t status[64];
    struct spw_gpu_range back[64];
    spw_gpu_job *job;
    uint64_t total;
    size_t n = 0;

    gpu_rig_driver(&rig);
    gpu_rig_open(&rig, 256 * MIB, durability == SPW_DURABLE ? 512 * MIB : 0, 64 * KIB);
    spw_space *space = any_size(durability);
    uint64_t memory = memory_new(3, size_bytes), other = memory_new(4, size_bytes);
    SPW(spw_tensor_open(space, &name, size_bytes));
    struct spw_gpu_range whole = {.key = name, .bytes = size_bytes, .address = memory};
    SPW(spw_gpu_put_ranges(rig.gpu, space, &whole, 1, NULL, TIMEOUT_MS, status, &job));
    SPW(spw_gpu_job_wait(job, SPW_GPU_SOURCE_FREE, TIMEOUT_MS));
    CU(rig.cu->MemsetD8Async(memory, 0, size_bytes, NULL));
    SPW(spw_gpu_job_wait(job, SPW_GPU_DONE, TIMEOUT_MS));
    ck_assert_uint_eq(spw_gpu_job_progress(job, &total), size_bytes);
    ck_assert_uint_eq(total, size_bytes);
    wait_done(job, 1);
    ck_assert_int_eq(status[0], 0);

    uint8_t *host = malloc(size_bytes); /* others see it */
    SPW(spw_get_range(space, &name, 0, host, size_bytes, TIMEOUT_MS));
    check_bytes(host, 3, 0, size_bytes);
    for (uint64_t at = 0, bytes; at < size_bytes; at += bytes, n++) {
        bytes = MIN((n * 97 % 40 + 1) * 16 * KIB + n * 16, size_bytes - at);
        back[n] = (struct spw_gpu_range){.key = name, .offset_bytes = at, .bytes = bytes, .address = other + at};
        if (n == 63)
            back[n].bytes = bytes = size_bytes - at;
    }
    ck_assert_uint_gt(n, 10);
    SPW(spw_gpu_get_ranges(rig.gpu, space, back, n, NULL, 0, TIMEOUT_MS, status, &job));
    SPW(spw_gpu_job_wait(job, SPW_GPU_DONE, TIMEOUT_MS));
    for (size_t i = 0; i < n; i++)
        ck_assert_msg(status[i] == 0, "range %zu: %d", i, status[i]);
    wait_done(job, n);
    memory_check(other, 3, 0, size_bytes);

    /* A few bytes in the middle, over the end of a piece, are written anew, from two places, and some behind a gap. */
    CU(rig.cu->MemcpyHtoD(memory + 1024, host, 1024)); /* what is at 0 goes to 8 MiB - 2048 */
    CU(rig.cu->MemcpyHtoD(memory + 65536, host + 1024, 3072));
    CU(rig.cu->MemcpyHtoD(memory, host + 8 * MIB + 3072, 1024)); /* what was there already */
    struct spw_gpu_range some[] = {
        {.key = name, .offset_bytes = 8 * MIB - 2048, .bytes = 1024, .address = memory + 1024},
        {.key = name, .offset_bytes = 8 * MIB - 1024, .bytes = 3072, .address = memory + 65536},
        {.key = name, .offset_bytes = 8 * MIB + 3072, .bytes = 1024, .address = memory},
    };
    SPW(spw_gpu_put_ranges(rig.gpu, space, some, 3, NULL, TIMEOUT_MS, status, &job));
    wait_done(job, 3);
    SPW(spw_get_range(space, &name, 0, host, size_bytes, TIMEOUT_MS));
    check_bytes(host, 3, 0, 8 * MIB - 2048);
    check_bytes(host + 8 * MIB - 2048, 3, 0, 4096);
    check_bytes(host + 8 * MIB + 2048, 3, 8 * MIB + 2048, size_bytes - 8 * MIB - 2048);
    free(host);
    CU(rig.cu->MemFree(memory));
    CU(rig.cu->MemFree(other));
    gpu_rig_close(&rig);
}

START_TEST(a_tensor_of_cache)
{
    tensor_there_and_back(SPW_CACHE);
}
END_TEST

START_TEST(a_durable_tensor)
{
    tensor_there_and_back(SPW_DURABLE);
}
END_TEST

/* One head of each token, of a block that is in memory: near each other, or too far apart to be brought together. */
static void parts_of_a_block(uint32_t token_bytes, uint32_t n_tokens)
{
    enum { HEAD = 256 };
    struct spw_key key = gpu_key(1);
    struct spw_gpu_range *ranges = calloc(n_tokens, sizeof(*ranges));
    int32_t status;
    spw_gpu_job *job;

    gpu_rig_driver(&rig);
    gpu_rig_open(&rig, 256 * MIB, 0, 64 * KIB);
    spw_space *space = any_size(SPW_CACHE);
    uint8_t *host = bytes_new(9, (uint64_t)n_tokens * token_bytes);
    struct spw_iovec from = {host, (uint64_t)n_tokens * token_bytes};
    SPW(spw_put(space, &key, &from, 1, 0, TIMEOUT_MS, &status));
    ck_assert_int_eq(status, 0);
    uint64_t memory = memory_new(1, (uint64_t)n_tokens * HEAD);
    for (size_t i = 0; i < n_tokens; i++)
        ranges[i] = (struct spw_gpu_range){
            .key = key, .offset_bytes = i * token_bytes + 3 * HEAD, .bytes = HEAD, .address = memory + i * HEAD};
    SPW(spw_gpu_get_ranges(rig.gpu, space, ranges, n_tokens, NULL, 0, TIMEOUT_MS, NULL, &job));
    wait_done(job, n_tokens);
    uint8_t *got = malloc((uint64_t)n_tokens * HEAD);
    CU(rig.cu->MemcpyDtoH(got, memory, (uint64_t)n_tokens * HEAD));
    for (uint64_t i = 0; i < n_tokens; i++)
        check_bytes(got + i * HEAD, 9, i * token_bytes + 3 * HEAD, HEAD);
    free(got);
    free(host);
    free(ranges);
    CU(rig.cu->MemFree(memory));
    gpu_rig_close(&rig);
}

START_TEST(parts_near_each_other)
{
    parts_of_a_block(2560, 3000);
}
END_TEST

START_TEST(parts_far_apart)
{
    parts_of_a_block(36864, 600);
}
END_TEST

/* Objects of many sizes, more than memory has room for; all of them or nothing. */
START_TEST(a_set_is_activated)
{
    enum { N = 24 };
    struct spw_key keys[N];
    struct spw_gpu_range ranges[N];
    uint64_t size_bytes[N], total = 0, seen;
    int32_t status;
    spw_gpu_job *job;

    gpu_rig_driver(&rig);
    gpu_rig_open(&rig, 64 * MIB, 512 * MIB, 64 * KIB);
    spw_space *space = any_size(SPW_CACHE);
    for (size_t i = 0; i < N; i++) {
        size_bytes[i] = i % 5 == 4 ? 11 * MIB : (i + 1) * 256 * KIB + i * 16;
        uint8_t *host = bytes_new((uint32_t)i, size_bytes[i]);
        struct spw_iovec from = {host, size_bytes[i]};

        keys[i] = gpu_key(i);
        SPW(spw_put(space, &keys[i], &from, 1, 0, TIMEOUT_MS, &status));
        ck_assert_int_eq(status, 0);
        free(host);
        total += size_bytes[i];
    }
    uint64_t memory = memory_new(77, total), at = 0;
    for (size_t i = 0; i < N; at += size_bytes[i++])
        ranges[i] = (struct spw_gpu_range){.key = keys[i], .bytes = size_bytes[i], .address = memory + at};

    ranges[N - 1].key = gpu_key(1000);
    ck_assert_int_eq(spw_gpu_activate(rig.gpu, space, ranges, N, NULL, TIMEOUT_MS, &job), -ENOENT);
    ck_assert_ptr_nonnull(strstr(spw_error_text(), "object 23 of the set is not there"));
    ranges[N - 1].key = keys[N - 1];
    ranges[N - 1].offset_bytes = 16;
    ck_assert_int_eq(spw_gpu_activate(rig.gpu, space, ranges, N, NULL, TIMEOUT_MS, &job), -ERANGE);
    ranges[N - 1].offset_bytes = 0;
    memory_check(memory, 77, 0, total); /* untouched */

    SPW(spw_gpu_activate(rig.gpu, space, ranges, N, NULL, TIMEOUT_MS, &job));
    SPW(spw_gpu_job_wait(job, SPW_GPU_DONE, TIMEOUT_MS));
    ck_assert_uint_eq(spw_gpu_job_progress(job, &seen), total);
    ck_assert_uint_eq(seen, total);
    wait_done(job, N);
    at = 0;
    for (size_t i = 0; i < N; at += size_bytes[i++])
        memory_check(memory + at, (uint32_t)i, 0, size_bytes[i]);
    CU(rig.cu->MemFree(memory));
    gpu_rig_close(&rig);
}
END_TEST

START_TEST(each_range_has_its_status)
{
    struct spw_key tensor = gpu_key(1), block = gpu_key(2), nothing = gpu_key(3);
    int32_t status[4];
    spw_gpu_job *job;
    uint8_t *host = bytes_new(5, MIB);
    struct spw_iovec from = {host, MIB};

    gpu_rig_driver(&rig);
    gpu_rig_open(&rig, 128 * MIB, 0, 64 * KIB);
    spw_space *space = any_size(SPW_CACHE);
    uint64_t memory = memory_new(2, MIB);
    SPW(spw_tensor_open(space, &tensor, MIB));
    SPW(spw_put(space, &block, &from, 1, 0, TIMEOUT_MS, status));
    struct spw_gpu_range ranges[] = {
        {.key = tensor, .bytes = 64 * KIB, .address = memory},
        {.key = nothing, .bytes = 64 * KIB, .address = memory + 64 * KIB},
        {.key = tensor, .offset_bytes = MIB - 4096, .bytes = 8192, .address = memory + 128 * KIB},
        {.key = block, .bytes = 64 * KIB, .address = memory + 192 * KIB},
    };
    SPW(spw_gpu_put_ranges(rig.gpu, space, ranges, 4, NULL, TIMEOUT_MS, status, &job));
    wait_done(job, 1);
    ck_assert_int_eq(status[0], 0);
    ck_assert_int_eq(status[1], -ENOENT);
    ck_assert_int_eq(status[2], -ERANGE);
    ck_assert_int_eq(status[3], -EROFS);
    SPW(spw_gpu_get_ranges(rig.gpu, space, ranges, 4, NULL, 0, TIMEOUT_MS, status, &job));
    wait_done(job, 2);
    ck_assert_int_eq(status[0], 0);
    ck_assert_int_eq(status[1], -ENOENT);
    ck_assert_int_eq(status[2], -ERANGE);
    ck_assert_int_eq(status[3], 0);
    memory_check(memory, 2, 0, 192 * KIB); /* what came from there, and what nothing came to */
    memory_check(memory + 192 * KIB, 5, 0, 64 * KIB);
    SPW(spw_gpu_get_ranges(rig.gpu, space, NULL, 0, NULL, 0, TIMEOUT_MS, NULL, &job));
    wait_done(job, 0);
    CU(rig.cu->MemFree(memory));
    gpu_rig_close(&rig);
    free(host);
}
END_TEST

static void is_refused(spw_space *space, struct spw_gpu_range range, int status, const char *word)
{
    spw_gpu_job *job;
    int r = spw_gpu_get_ranges(rig.gpu, space, &range, 1, NULL, 0, TIMEOUT_MS, NULL, &job);

    ck_assert_msg(r == status, "%d, not %d: %s", r, status, spw_error_text());
    ck_assert_msg(strstr(spw_error_text(), word) != NULL, "\"%s\" in: %s", word, spw_error_text());
}

START_TEST(wrong_arguments_are_refused)
{
    struct spw_key key = gpu_key(1);
    spw_gpu_job *job;
    uint64_t host = 0;

    gpu_rig_driver(&rig);
    gpu_rig_open(&rig, 128 * MIB, 0, 64 * KIB);
    spw_space *space = any_size(SPW_CACHE);
    uint64_t memory = memory_new(1, MIB);
    is_refused(space, (struct spw_gpu_range){.key = key, .address = memory}, -EINVAL, "range 0 is empty");
    is_refused(space,
               (struct spw_gpu_range){.key = key, .offset_bytes = UINT64_MAX - 15, .bytes = 32, .address = memory},
               -EINVAL, "past the largest object");
    is_refused(space, (struct spw_gpu_range){.key = key, .bytes = 24, .address = memory}, -EINVAL, "multiples of 16");
    is_refused(space, (struct spw_gpu_range){.key = key, .bytes = 32, .address = memory + 8}, -EINVAL,
               "multiples of 16");
    is_refused(space, (struct spw_gpu_range){.key = key, .bytes = 32, .address = UINT64_MAX - 15}, -EINVAL,
               "beyond all memory");
    is_refused(space, (struct spw_gpu_range){.key = key, .bytes = 2 * MIB, .address = memory + 16}, -EINVAL,
               "beyond its memory");
    is_refused(space, (struct spw_gpu_range){.key = key, .bytes = 16, .address = (uint64_t)(uintptr_t)&host / 16 * 16},
               -EINVAL, "no memory of this GPU");
    is_refused(space,
               (struct spw_gpu_range){
                   .key = key, .offset_bytes = spw_space_piece_bytes(space) - 8, .bytes = 32, .address = memory},
               -EINVAL, "crosses the end of its object's piece");
    is_refused(space, (struct spw_gpu_range){.bytes = 32, .address = memory}, -EINVAL, "key 0");
    ck_assert_int_eq(spw_gpu_get_ranges(rig.gpu, space, NULL, 1, NULL, 0, 100, NULL, &job), -EINVAL);
    ck_assert_int_eq(spw_gpu_get_ranges(rig.gpu, space, NULL, 0, NULL, SPW_WRITE, 100, NULL, &job), -EINVAL);
    CU(rig.cu->MemFree(memory));
    gpu_rig_close(&rig);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gpu_ranges");
    TCase *tc = tcase_create("ranges");

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, a_tensor_of_cache);
    tcase_add_test(tc, a_durable_tensor);
    tcase_add_test(tc, parts_near_each_other);
    tcase_add_test(tc, parts_far_apart);
    tcase_add_test(tc, a_set_is_activated);
    tcase_add_test(tc, each_range_has_its_status);
    tcase_add_test(tc, wrong_arguments_are_refused);
    suite_add_tcase(s, tc);
    return suite_main(s);
}
