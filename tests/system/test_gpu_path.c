/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocks from a GPU's memory to the store and back, through a real daemon and its helper: the same bytes whatever the
 * layout, each key's status, the order that streams promise, and arguments that are refused. On the fake driver, or on a real
 * GPU with SPILLWAY_TEST_GPU=1.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/system/support/gpu.h"

#define TIMEOUT_MS 20000

static struct gpu_rig rig;

static uint32_t sum(const uint32_t *bytes, size_t n)
{
    uint32_t total = 0;

    for (size_t i = 0; i < n; i++)
        total += bytes[i];
    return total;
}

static void wait_done(spw_gpu_job *job, uint64_t n)
{
    SPW(spw_gpu_job_wait(job, SPW_GPU_DONE, TIMEOUT_MS));
    ck_assert_uint_eq(spw_gpu_job_value(job), n);
    spw_gpu_job_free(job);
}

/* Spills n blocks in a scattered order, forgets them, and fetches them to where others were. */
static void there_and_back(const uint32_t *piece_bytes, size_t n_pieces, uint32_t gap_bytes, uint32_t n_blocks,
                           size_t n, uint64_t dram_bytes, uint64_t disk_bytes)
{
    struct gpu_cache cache;
    struct spw_key *keys = calloc(n, sizeof(*keys));
    uint32_t *from = calloc(n, sizeof(*from)), *to = calloc(n, sizeof(*to));
    int32_t *status = calloc(n, sizeof(*status));
    spw_gpu_job *job;

    gpu_rig_driver(&rig);
    gpu_rig_open(&rig, dram_bytes, disk_bytes, sum(piece_bytes, n_pieces));
    gpu_cache_new(&rig, &cache, piece_bytes, n_pieces, gap_bytes, n_blocks);
    for (size_t i = 0; i < n; i++) {
        keys[i] = gpu_key(i);
        from[i] = (uint32_t)(i * 7 % n_blocks); /* n_blocks is no multiple of 7 or 11 */
        to[i] = (uint32_t)((i * 11 + 3) % n_blocks);
    }
    gpu_cache_fill(&rig, &cache, 1);
    SPW(spw_spill(cache.layout, keys, from, n, NULL, SPW_CHAIN, TIMEOUT_MS, status, &job));
    SPW(spw_gpu_job_wait(job, SPW_GPU_SOURCE_FREE, TIMEOUT_MS));
    gpu_cache_fill(&rig, &cache, 0); /* the source is free: what is stored is what was there */
    wait_done(job, n);
    for (size_t i = 0; i < n; i++)
        ck_assert_int_eq(status[i], 0);
    SPW(spw_fetch(cache.layout, keys, to, n, NULL, SPW_CHAIN, TIMEOUT_MS, status, &job));
    wait_done(job, n);
    gpu_cache_check(&rig, &cache, 1, to, from, n);
    gpu_cache_free(&rig, &cache);
    gpu_rig_close(&rig);
    free(keys);
    free(from);
    free(to);
    free(status);
}

/* Of a page each: more than a slot takes, several times around. */
START_TEST(small_blocks)
{
    static const uint32_t pieces[] = {4096};

    there_and_back(pieces, 1, 0, 20001, 20000, 256 * MIB, 0);
}
END_TEST

/* As a model of 16 layers has them, keys and values, with gaps. */
START_TEST(pieces_of_layers)
{
    uint32_t pieces[32];

    for (size_t i = 0; i < ARRAY_LEN(pieces); i++)
        pieces[i] = 2048;
    there_and_back(pieces, ARRAY_LEN(pieces), 64, 1501, 1500, 256 * MIB, 0);
}
END_TEST

/* Sizes down to 16 bytes, none a power of two, objects that are no multiple of a sector. */
START_TEST(odd_pieces)
{
    static const uint32_t pieces[] = {16, 4080, 48, 1008, 16, 112};

    there_and_back(pieces, ARRAY_LEN(pieces), 16, 997, 990, 256 * MIB, 0);
}
END_TEST

START_TEST(large_blocks)
{
    static const uint32_t pieces[] = {MIB, 2 * MIB};

    there_and_back(pieces, ARRAY_LEN(pieces), 0, 31, 30, 256 * MIB, 0);
}
END_TEST

/* Most of it has to go to the device, and comes from there. */
START_TEST(by_way_of_a_device)
{
    static const uint32_t pieces[] = {64 * KIB, 64 * KIB};

    there_and_back(pieces, ARRAY_LEN(pieces), 0, 1201, 1200, 64 * MIB, 512 * MIB);
}
END_TEST

/* One byte of what the device has there is another one. */
static void damage(const uint8_t *bytes, size_t n_bytes)
{
    int fd = open(rig.daemon.disk, O_RDWR | O_CLOEXEC);

    ck_assert_int_ge(fd, 0);
    off_t size = lseek(fd, 0, SEEK_END);
    uint8_t *disk = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    ck_assert(disk != MAP_FAILED);
    uint8_t *found = memmem(disk, (size_t)size, bytes, n_bytes);
    ck_assert_ptr_nonnull(found);
    found[n_bytes / 2] ^= 1;
    munmap(disk, (size_t)size);
    close(fd);
}

/* Of a job, one block is damaged on its device: it alone is not fetched, and what was at its place stays. */
START_TEST(a_damaged_block_is_not_fetched)
{
    enum { N = 64, BAD = 5 };
    static const uint32_t piece = 64 * KIB;
    struct gpu_cache cache;
    struct spw_key keys[N];
    uint32_t ids[N];
    int32_t status[N];
    spw_gpu_job *job;
    uint8_t *bytes = malloc(piece);

    gpu_rig_driver(&rig);
    gpu_rig_open(&rig, 64 * MIB, 512 * MIB, piece);
    gpu_cache_new(&rig, &cache, &piece, 1, 0, N);
    gpu_cache_fill(&rig, &cache, 1);
    for (uint32_t i = 0; i < N; i++) {
        keys[i] = gpu_key(i);
        ids[i] = i;
    }
    SPW(spw_spill(cache.layout, keys, ids, N, NULL, 0, TIMEOUT_MS, status, &job));
    wait_done(job, N);
    CU(rig.cu->MemcpyDtoH(bytes, cache.memory + BAD * piece, piece));
    spw_gpu_layout_free(cache.layout);
    gpu_rig_disconnect(&rig);
    ck_assert_int_eq(daemon_stop(&rig.daemon), 0);
    damage(bytes, piece);
    daemon_start(&rig.daemon);
    gpu_rig_connect(&rig, piece);
    SPW(spw_gpu_layout_new(rig.gpu, rig.space, cache.pieces, 1, N, &cache.layout));
    gpu_cache_fill(&rig, &cache, 2);
    SPW(spw_fetch(cache.layout, keys, ids, N, NULL, 0, TIMEOUT_MS, status, &job));
    wait_done(job, N - 1);
    for (uint32_t i = 0; i < N; i++)
        ck_assert_msg(i == BAD ? status[i] == -EBADMSG || status[i] == -ENOENT : status[i] == 0, "block %u: %d", i,
                      status[i]);
    gpu_cache_check(&rig, &cache, 1, ids, ids, BAD);
    gpu_cache_check(&rig, &cache, 2, ids + BAD, ids + BAD, 1);
    gpu_cache_check(&rig, &cache, 1, ids + BAD + 1, ids + BAD + 1, N - BAD - 1);
    gpu_cache_free(&rig, &cache);
    gpu_rig_close(&rig);
    free(bytes);
}
END_TEST

START_TEST(each_key_has_its_status)
{
    static const uint32_t piece = 32 * KIB;
    struct gpu_cache cache;
    struct spw_key keys[40];
    uint32_t ids[40];
    int32_t status[40];
    spw_gpu_job *job;

    gpu_rig_driver(&rig);
    gpu_rig_open(&rig, 128 * MIB, 0, piece);
    gpu_cache_new(&rig, &cache, &piece, 1, 0, 40);
    gpu_cache_fill(&rig, &cache, 5);
    for (uint32_t i = 0; i < 40; i++) {
        keys[i] = gpu_key(i);
        ids[i] = i;
    }
    SPW(spw_spill(cache.layout, keys, ids, 20, NULL, 0, TIMEOUT_MS, status, &job));
    wait_done(job, 20);
    SPW(spw_spill(cache.layout, keys + 10, ids + 10, 20, NULL, 0, TIMEOUT_MS, status, &job));
    wait_done(job, 10);
    for (uint32_t i = 0; i < 20; i++)
        ck_assert_int_eq(status[i], i < 10 ? -EEXIST : 0);
    gpu_cache_fill(&rig, &cache, 0);
    SPW(spw_fetch(cache.layout, keys, ids, 40, NULL, 0, TIMEOUT_MS, status, &job));
    wait_done(job, 30);
    for (uint32_t i = 0; i < 40; i++)
        ck_assert_int_eq(status[i], i < 30 ? 0 : -ENOENT);
    gpu_cache_check(&rig, &cache, 5, ids, ids, 30);
    gpu_cache_check(&rig, &cache, 0, ids + 30, ids + 30, 10);                    /* untouched */
    SPW(spw_fetch(cache.layout, keys, ids, 0, NULL, 0, TIMEOUT_MS, NULL, &job)); /* nothing */
    wait_done(job, 0);
    gpu_cache_free(&rig, &cache);
    gpu_rig_close(&rig);
}
END_TEST

/* A spill comes after what its stream has at the call, and what is in a joined stream comes after a fetch. */
START_TEST(streams_order_it)
{
    static const uint32_t piece = 256 * KIB;
    struct gpu_cache cache;
    struct CUstream_st *stream;
    spw_gpu_job *job, *back;
    struct spw_key key = gpu_key(1);
    uint32_t from = 3, to = 1;
    uint8_t *bytes = malloc(piece);

    gpu_rig_driver(&rig);
    gpu_rig_open(&rig, 128 * MIB, 0, piece);
    gpu_cache_new(&rig, &cache, &piece, 1, 0, 8);
    CU(rig.cu->StreamCreateWithPriority(&stream, NV_STREAM_NON_BLOCKING, 0));
    for (uint8_t round = 1; round <= 20; round++) {
        int32_t status;

        (void)spw_delete(rig.space, &key, 1, &status);
        CU(rig.cu->MemsetD8Async(cache.memory + from * piece, round, piece, stream));
        SPW(spw_spill(cache.layout, &key, &from, 1, stream, 0, TIMEOUT_MS, &status, &job));
        SPW(spw_gpu_job_join(job, stream, TIMEOUT_MS));
        CU(rig.cu->MemsetD8Async(cache.memory + from * piece, 0xee, piece, stream));
        SPW(spw_gpu_job_wait(job, SPW_GPU_DONE, TIMEOUT_MS));
        SPW(spw_fetch(cache.layout, &key, &to, 1, stream, 0, TIMEOUT_MS, &status, &back));
        SPW(spw_gpu_job_join(back, stream, TIMEOUT_MS));
        CU(rig.cu->MemcpyDtoHAsync(bytes, cache.memory + to * piece, piece, stream));
        CU(rig.cu->StreamSynchronize(stream));
        for (uint32_t i = 0; i < piece; i++)
            if (bytes[i] != round)
                ck_abort_msg("round %u: byte %u is %u", round, i, bytes[i]);
        SPW(spw_gpu_job_wait(back, SPW_GPU_DONE, TIMEOUT_MS));
        spw_gpu_job_free(job);
        spw_gpu_job_free(back);
    }
    CU(rig.cu->StreamDestroy(stream));
    gpu_cache_free(&rig, &cache);
    gpu_rig_close(&rig);
    free(bytes);
}
END_TEST

static void layout_is_refused(const struct spw_gpu_piece *pieces, size_t n, uint32_t n_blocks, int status,
                              const char *word)
{
    spw_gpu_layout *layout;
    int r = spw_gpu_layout_new(rig.gpu, rig.space, pieces, n, n_blocks, &layout);

    ck_assert_msg(r == status, "%d, not %d: %s", r, status, spw_error_text());
    ck_assert_msg(strstr(spw_error_text(), word) != NULL, "\"%s\" in: %s", word, spw_error_text());
}

START_TEST(wrong_arguments_are_refused)
{
    uint64_t memory;
    struct spw_key key = gpu_key(1);
    uint32_t id = 8;
    int32_t status;
    spw_gpu_job *job;
    struct gpu_cache cache;
    static const uint32_t piece = 64 * KIB;

    gpu_rig_driver(&rig);
    gpu_rig_open(&rig, 128 * MIB, 0, piece);
    CU(rig.cu->MemAlloc(&memory, MIB));
    layout_is_refused(&(struct spw_gpu_piece){memory + 8, piece, piece}, 1, 4, -EINVAL, "multiples of 16");
    layout_is_refused(&(struct spw_gpu_piece){memory, piece - 16, piece}, 1, 4, -EINVAL, "overlap");
    layout_is_refused(&(struct spw_gpu_piece){memory, piece, piece}, 1, 17, -EINVAL, "beyond its memory");
    layout_is_refused(&(struct spw_gpu_piece){memory, UINT64_MAX / 4 * 4 - 15, piece}, 1, 4, -EINVAL, "16");
    layout_is_refused(&(struct spw_gpu_piece){(uint64_t)(uintptr_t)&memory / 16 * 16, piece, piece}, 1, 1, -EINVAL,
                      "no memory of this GPU");
    layout_is_refused(&(struct spw_gpu_piece){memory, piece, piece / 2}, 1, 4, -EINVAL, "the space's blocks");
    struct spw_gpu_piece two[] = {{memory, piece, piece / 2}, {memory + piece / 4, piece, piece / 2}};
    layout_is_refused(two, 2, 4, -EINVAL, "pieces 0 and 1 overlap");
    two[1].base = memory + piece / 2; /* keys and values side by side are fine */
    spw_gpu_layout *layout;
    SPW(spw_gpu_layout_new(rig.gpu, rig.space, two, 2, 16, &layout));
    spw_gpu_layout_free(layout);
    CU(rig.cu->MemFree(memory));

    gpu_cache_new(&rig, &cache, &piece, 1, 0, 8);
    ck_assert_int_eq(spw_spill(cache.layout, &key, &id, 1, NULL, 0, 100, &status, &job), -EINVAL);
    id = 7;
    ck_assert_int_eq(spw_spill(cache.layout, &key, &id, 1, NULL, SPW_NO_WAIT, 100, &status, &job), -EINVAL);
    if (rig.control) {
        struct CUstream_st *stream;

        CU(rig.cu->StreamCreateWithPriority(&stream, NV_STREAM_NON_BLOCKING, 0));
        store_relaxed(&rig.control->roles[FAKE_CUDA_CLIENT].capturing, 1);
        ck_assert_int_eq(spw_spill(cache.layout, &key, &id, 1, stream, 0, 100, &status, &job), -EPERM);
        store_relaxed(&rig.control->roles[FAKE_CUDA_CLIENT].capturing, 0);
        CU(rig.cu->StreamDestroy(stream));
    }
    gpu_cache_free(&rig, &cache);
    gpu_rig_close(&rig);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gpu_path");
    TCase *tc = tcase_create("path");

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, small_blocks);
    tcase_add_test(tc, pieces_of_layers);
    tcase_add_test(tc, odd_pieces);
    tcase_add_test(tc, large_blocks);
    tcase_add_test(tc, by_way_of_a_device);
    tcase_add_test(tc, a_damaged_block_is_not_fetched);
    tcase_add_test(tc, each_key_has_its_status);
    tcase_add_test(tc, streams_order_it);
    tcase_add_test(tc, wrong_arguments_are_refused);
    suite_add_tcase(s, tc);
    return suite_main(s);
}
