/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Applications that use the GPU's side of the library as they must not: after a fork, under stream capture, with layouts that
 * overlap or leave their memory. They are told, and nothing is left behind. On the fake driver.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "tests/system/support/hostile.h"

#define SLOW_US 200000 /* of a copy that is to be caught on its way */

/* --- Applications ---------------------------------------------------------------------------------------------------- */

/* The child has nothing of it, and takes nothing from its parent. */
START_TEST(a_child_uses_what_is_its_parents)
{
    struct spw_key key = gpu_key(1);
    struct spw_view view = {.data = &key, .size_bytes = 16, .lease = 1};
    struct spw_gpu_piece piece;
    uint32_t id = 0;
    spw_gpu_job *job, *none;
    spw_gpu_layout *layout;
    uint64_t address;
    int status;

    hostile_begin();
    piece = hostile_cache.pieces[0];
    others_are_served();
    gpu_cache_fill(&hostile_rig, &hostile_cache, 1);
    store_relaxed(&hostile_role()->dma_delay_us, SLOW_US);
    SPW(spw_spill(hostile_cache.layout, &key, &id, 1, NULL, 0, HOSTILE_LONG_MS, NULL, &job));
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        bool ok = spw_spill(hostile_cache.layout, &key, &id, 1, NULL, 0, 100, NULL, &none) == -ECHILD;

        ok = ok && spw_fetch(hostile_cache.layout, &key, &id, 1, NULL, 0, 100, NULL, &none) == -ECHILD;
        ok = ok && spw_gpu_layout_new(hostile_rig.gpu, hostile_rig.space, &piece, 1, 1, &layout) == -ECHILD;
        ok = ok && spw_gpu_attach(hostile_rig.space, NULL, &hostile_rig.gpu) == -ECHILD;
        ok = ok && spw_gpu_job_wait(job, SPW_GPU_DONE, 100) == -ECHILD;
        ok = ok && spw_gpu_job_status(job, SPW_GPU_DONE) == -ECHILD;
        ok = ok && spw_gpu_job_join(job, NULL, 100) == -ECHILD;
        ok = ok && spw_gpu_job_cancel(job) == -ECHILD;
        ok = ok && spw_gpu_map(hostile_rig.gpu, &view, &address) == -ECHILD;
        spw_gpu_unmap(hostile_rig.gpu);
        spw_gpu_job_free(job);
        spw_gpu_layout_free(hostile_cache.layout);
        spw_gpu_detach(hostile_rig.gpu);
        spw_close(hostile_rig.session);
        _exit(ok ? 0 : 1);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
    store_relaxed(&hostile_role()->dma_delay_us, 0);
    SPW(spw_gpu_job_wait(job, SPW_GPU_DONE, HOSTILE_LONG_MS));
    ck_assert_uint_eq(spw_gpu_job_value(job), 1);
    spw_gpu_job_free(job);
    hostile_finish();
}
END_TEST

static int64_t client_events(void)
{
    return FAKE_CUDA_LIVE(hostile_rig.control, FAKE_CUDA_CLIENT, n_events);
}

START_TEST(under_capture)
{
    struct spw_key key = gpu_key(1);
    struct CUstream_st *stream;
    uint32_t id = 0;
    spw_gpu_job *job, *begun;

    hostile_begin();
    CU(hostile_rig.cu->StreamCreateWithPriority(&stream, NV_STREAM_NON_BLOCKING, 0));
    others_are_served();
    gpu_cache_fill(&hostile_rig, &hostile_cache, 1);
    SPW(spw_spill(hostile_cache.layout, &key, &id, 1, stream, 0, HOSTILE_LONG_MS, NULL, &begun));
    SPW(spw_gpu_job_wait(begun, SPW_GPU_DONE, HOSTILE_LONG_MS));
    int64_t before = client_events();
    store_relaxed(&hostile_rig.control->roles[FAKE_CUDA_CLIENT].capturing, 1);
    for (int i = 0; i < 100; i++) {
        ck_assert_int_eq(spw_spill(hostile_cache.layout, &key, &id, 1, stream, 0, HOSTILE_LONG_MS, NULL, &job), -EPERM);
        ck_assert_int_eq(spw_fetch(hostile_cache.layout, &key, &id, 1, stream, 0, HOSTILE_LONG_MS, NULL, &job), -EPERM);
    }
    ck_assert_msg(strstr(spw_error_text(), "captured") != NULL, "%s", spw_error_text());
    ck_assert_int_eq(spw_gpu_job_join(begun, stream, HOSTILE_LONG_MS), -EPERM); /* it would end the capture */
    store_relaxed(&hostile_rig.control->roles[FAKE_CUDA_CLIENT].capturing, 0);
    ck_assert_int_eq(client_events(), before);
    SPW(spw_gpu_job_join(begun, stream, HOSTILE_LONG_MS));
    spw_gpu_job_free(begun);
    nothing_is_left();
    CU(hostile_rig.cu->StreamDestroy(stream));
    hostile_finish();
}
END_TEST

/* --- Layouts --------------------------------------------------------------------------------------------------------- */

#define GRAIN 16
#define GRAINS 64 /* of memory that layouts are about */

static uint32_t next_random(uint32_t below)
{
    static uint64_t state = 42;

    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)((state >> 33) % below);
}

/* Whether each block's pieces lie in memory, and no two of them touch: grain by grain. */
static bool lies_apart(const struct spw_gpu_piece *pieces, size_t n, uint32_t n_blocks, uint64_t memory)
{
    bool taken[GRAINS] = {false};

    for (size_t p = 0; p < n; p++)
        for (uint32_t b = 0; b < n_blocks; b++)
            for (uint64_t at = pieces[p].base + b * pieces[p].stride_bytes, end = at + pieces[p].bytes; at < end;
                 at += GRAIN) {
                uint64_t grain = (at - memory) / GRAIN;

                if (at < memory || grain >= GRAINS || taken[grain])
                    return false;
                taken[grain] = true;
            }
    return true;
}

/* Never one that overlaps or leaves its memory; and of those with one stride, all that do not. */
START_TEST(layouts_at_random)
{
    uint64_t memory, page;
    uint32_t n_taken = 0, n_refused = 0;

    gpu_rig_driver(&hostile_rig);
    gpu_rig_open(&hostile_rig, 128 * MIB, 0, 6 * GRAIN);
    CU(hostile_rig.cu->MemAlloc(&page, 4096));
    memory = page + 4096 - GRAINS * GRAIN; /* up to its last byte */
    for (int i = 0; i < 20000; i++) {
        static const uint64_t shapes[][3] = {{6, 0, 0}, {3, 3, 0}, {2, 2, 2}, {1, 2, 3}, {4, 1, 1}, {5, 1, 0}};
        const uint64_t *shape = shapes[next_random(ARRAY_LEN(shapes))];
        uint32_t n_blocks = 1 + next_random(8), n = 0;
        uint64_t stride = GRAIN * (1 + next_random(16));
        bool one_stride = next_random(4) > 0;
        struct spw_gpu_piece pieces[3];
        spw_gpu_layout *layout;

        for (; n < 3 && shape[n] > 0; n++)
            pieces[n] = (struct spw_gpu_piece){
                .base = memory + GRAIN * (uint64_t)next_random(GRAINS),
                .stride_bytes = one_stride ? stride : GRAIN * (1 + (uint64_t)next_random(16)),
                .bytes = GRAIN * shape[n],
            };
        bool is_right = lies_apart(pieces, n, n_blocks, memory);
        int r = spw_gpu_layout_new(hostile_rig.gpu, hostile_rig.space, pieces, n, n_blocks, &layout);

        ck_assert_msg(r == 0 || r == -EINVAL, "%d: %s", r, spw_error_text());
        ck_assert_msg(r < 0 || is_right, "round %d: a layout that overlaps or leaves its memory", i);
        ck_assert_msg(r == 0 || !is_right || !one_stride, "round %d: %s", i, spw_error_text());
        if (r == 0)
            spw_gpu_layout_free(layout);
        n_taken += r == 0;
        n_refused += r < 0;
    }
    ck_assert_uint_gt(n_taken, 500);
    ck_assert_uint_gt(n_refused, 500);
    CU(hostile_rig.cu->MemFree(page));
    gpu_rig_close(&hostile_rig);
}
END_TEST

static void layout_is_refused(const struct spw_gpu_piece *pieces, size_t n, uint32_t n_blocks)
{
    spw_gpu_layout *layout;

    ck_assert_int_eq(spw_gpu_layout_new(hostile_rig.gpu, hostile_rig.space, pieces, n, n_blocks, &layout), -EINVAL);
}

/* Numbers that are too large to be added or multiplied. */
START_TEST(layouts_at_the_edge)
{
    static const uint64_t large[] = {UINT64_MAX - 15,   UINT64_C(1) << 63,        (UINT64_C(1) << 63) + 16,
                                     UINT64_C(1) << 32, (UINT64_C(1) << 60) - 16, UINT64_MAX / 16 & ~UINT64_C(15)};
    struct spw_gpu_piece half = {.stride_bytes = HOSTILE_BLOCK_BYTES, .bytes = HOSTILE_BLOCK_BYTES / 2}, piece, two[2];

    hostile_begin();
    half.base = hostile_cache.memory;
    for (size_t i = 0; i < ARRAY_LEN(large); i++)
        for (uint32_t n_blocks = 1; n_blocks != 0; n_blocks = n_blocks == UINT32_MAX ? 0
                                                              : n_blocks == 1        ? 17
                                                                                     : UINT32_MAX) {
            piece = (struct spw_gpu_piece){large[i], HOSTILE_BLOCK_BYTES, HOSTILE_BLOCK_BYTES};
            layout_is_refused(&piece, 1, n_blocks);
            piece = (struct spw_gpu_piece){hostile_cache.memory, large[i], HOSTILE_BLOCK_BYTES};
            if (n_blocks > 1)
                layout_is_refused(&piece, 1, n_blocks);
            piece = (struct spw_gpu_piece){hostile_cache.memory, HOSTILE_BLOCK_BYTES, large[i]};
            layout_is_refused(&piece, 1, n_blocks);
            two[0] = two[1] = half;
            two[1].bytes = large[i]; /* the sum must not come round to what is right */
            layout_is_refused(two, 2, n_blocks);
            two[1].bytes = (uint64_t)0 - half.bytes + HOSTILE_BLOCK_BYTES;
            layout_is_refused(two, 2, n_blocks);
        }
    layout_is_refused(&half, 0, 1);
    layout_is_refused(&half, 1, 0);
    hostile_finish();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gpu_misuse");
    TCase *tc = tcase_create("misuse");

    if (getenv("SPILLWAY_TEST_GPU")) {
        fprintf(stderr, "SKIP: not for a real GPU\n");
        return 77;
    }
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, a_child_uses_what_is_its_parents);
    tcase_add_test(tc, under_capture);
    tcase_add_test(tc, layouts_at_random);
    tcase_add_test(tc, layouts_at_the_edge);
    suite_add_tcase(s, tc);
    return suite_main(s);
}
