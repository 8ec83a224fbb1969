/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Restarts of the daemon, by SIGKILL and in good order, under a client that has a GPU: sessions go on, and so do attachments.
 * Jobs are not failed by it, but for those that somebody already relies on; and those say so. On the fake driver alone:
 * copies are caught on their way.
 */
#include <check.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>

#include "tests/system/support/gpu.h"
#include "tests/system/support/keeper.h"

#define PIECE_BYTES (256 * KIB)
#define N_BLOCKS 128
#define HALF (N_BLOCKS / 2)
#define DRAM_BYTES (192 * MIB)
#define SLOW_US 100000 /* of a copy that is to be caught on its way */
#define LONG_MS 60000

static struct gpu_rig rig;
static struct gpu_cache cache;
static struct keeper k;
static struct CUstream_st *stream;
static struct spw_key keys[N_BLOCKS];
static uint32_t ids[N_BLOCKS];
static int32_t status[N_BLOCKS];

static void setup(void)
{
    static const uint32_t piece = PIECE_BYTES;

    gpu_rig_driver(&rig);
    gpu_rig_configure(&rig, DRAM_BYTES, 0);
    keeper_start(&k, &rig.daemon);
    gpu_rig_connect(&rig, PIECE_BYTES);
    gpu_cache_new(&rig, &cache, &piece, 1, 0, N_BLOCKS);
    CU(rig.cu->StreamCreateWithPriority(&stream, NV_STREAM_NON_BLOCKING, 0));
    for (uint32_t i = 0; i < N_BLOCKS; i++) {
        ids[i] = i;
        keys[i] = gpu_key(i);
    }
}

static void teardown(void)
{
    CU(rig.cu->StreamDestroy(stream));
    gpu_cache_free(&rig, &cache);
    gpu_rig_disconnect(&rig);
    gpu_rig_nothing_is_left(&rig);
    int r = keeper_stop(&k);
    ck_assert_msg(r == 0, "%d: %s", r, daemon_log_end(&rig.daemon));
    daemon_deinit(&rig.daemon);
    const char *path = getenv("FAKE_CUDA_CONTROL");

    if (path)
        unlink(path);
}

static void copies_take(uint32_t us)
{
    store_relaxed(&rig.control->roles[FAKE_CUDA_HELPER].dma_delay_us, us);
}

static spw_gpu_job *spill(size_t first, size_t n)
{
    spw_gpu_job *job;

    SPW(spw_spill(cache.layout, keys + first, ids + first, n, stream, 0, LONG_MS, status + first, &job));
    return job;
}

static spw_gpu_job *fetch(size_t first, size_t n)
{
    spw_gpu_job *job;

    SPW(spw_fetch(cache.layout, keys + first, ids + first, n, stream, 0, LONG_MS, status + first, &job));
    return job;
}

static void wait_all(spw_gpu_job *job, uint64_t n)
{
    int r = spw_gpu_job_wait(job, SPW_GPU_DONE, LONG_MS);

    ck_assert_msg(r == 0, "%d: %s: %s", r, spw_error_text(), daemon_log_end(&rig.daemon));
    ck_assert_uint_eq(spw_gpu_job_value(job), n);
    spw_gpu_job_free(job);
}

/* What the store has of the first n blocks is what the cache was filled with. */
static void check_stored(size_t n, uint32_t seed)
{
    gpu_cache_fill(&rig, &cache, 0);
    wait_all(fetch(0, n), n);
    gpu_cache_check(&rig, &cache, seed, ids, ids, n);
}

/* --- Tests ----------------------------------------------------------------------------------------------------------- */

static void restart(int how)
{
    keeper_restart(&k, how % 2 ? SIGTERM : SIGKILL);
}

START_TEST(an_attachment_goes_on)
{
    gpu_cache_fill(&rig, &cache, 1);
    wait_all(spill(0, N_BLOCKS), N_BLOCKS);
    restart(_i);
    check_stored(N_BLOCKS, 1);
    restart(_i);
    restart(_i + 1);
    check_stored(N_BLOCKS, 1);
}
END_TEST

/* Both directions are caught on their way, several times. */
START_TEST(jobs_go_on)
{
    gpu_cache_fill(&rig, &cache, 1);
    wait_all(spill(0, HALF), HALF);
    copies_take(SLOW_US);
    spw_gpu_job *out = spill(HALF, HALF), *in = fetch(0, HALF);

    for (int i = 0; i < 3; i++) {
        sleep_ms(50);
        restart(_i + i);
    }
    copies_take(0);
    wait_all(out, HALF);
    wait_all(in, HALF);
    gpu_cache_check(&rig, &cache, 1, ids, ids, HALF);
    check_stored(N_BLOCKS, 1);
}
END_TEST

/* A job that is started while there is no daemon. */
START_TEST(a_job_waits_for_the_next_daemon)
{
    gpu_cache_fill(&rig, &cache, 1);
    wait_all(spill(0, HALF), HALF);
    keeper_kill(&k);
    spw_gpu_job *out = spill(HALF, HALF), *in = fetch(0, HALF);
    sleep_ms(100);
    keeper_revive(&k);
    wait_all(out, HALF);
    wait_all(in, HALF);
    check_stored(N_BLOCKS, 1);
}
END_TEST

/* A stream that waits for a job goes on when the daemon is gone: the job must not be well then, unless it was there. */
START_TEST(a_job_that_was_joined_tells)
{
    gpu_cache_fill(&rig, &cache, 1);
    wait_all(spill(0, HALF), HALF);
    gpu_cache_fill(&rig, &cache, 0);
    copies_take(SLOW_US);
    spw_gpu_job *in = fetch(0, HALF);
    SPW(spw_gpu_job_join(in, stream, LONG_MS));
    restart(_i);
    CU(rig.cu->StreamSynchronize(stream));
    int r = spw_gpu_job_wait(in, SPW_GPU_DONE, LONG_MS);
    ck_assert_msg(r == -EPIPE, "%d", r); /* the last copy alone takes longer than the restart's beginning */
    for (uint32_t i = 0; i < HALF; i++)
        if (status[i] == 0)
            gpu_cache_check(&rig, &cache, 1, ids + i, ids + i, 1);
    spw_gpu_job_free(in);
    copies_take(0);
    check_stored(HALF, 1);
}
END_TEST

/* Its blocks were given back to the caller, who has put something else there: that must not be stored under its keys. */
START_TEST(a_source_that_is_free_is_not_read_again)
{
    gpu_cache_fill(&rig, &cache, 1);
    copies_take(SLOW_US);
    spw_gpu_job *out = spill(0, HALF);
    SPW(spw_gpu_job_wait(out, SPW_GPU_SOURCE_FREE, LONG_MS));
    gpu_cache_fill(&rig, &cache, 2);
    restart(_i);
    copies_take(0);
    int r = spw_gpu_job_wait(out, SPW_GPU_DONE, LONG_MS);
    ck_assert_msg(r == 0 || r == -EPIPE, "%d", r);
    spw_gpu_job_free(out);
    gpu_cache_fill(&rig, &cache, 0);
    for (uint32_t i = 0; i < HALF; i++) {
        spw_gpu_job *in = fetch(i, 1);

        r = spw_gpu_job_wait(in, SPW_GPU_DONE, LONG_MS);
        ck_assert_int_eq(r, 0);
        ck_assert_msg(status[i] == 0 || status[i] == -ENOENT, "%d", status[i]);
        if (status[i] == 0)
            gpu_cache_check(&rig, &cache, 1, ids + i, ids + i, 1);
        spw_gpu_job_free(in);
    }
}
END_TEST

/* What the daemon gave out stays the client's; it has no lane of its own any more, but moves as other memory does. */
START_TEST(an_allocation_stays)
{
    const uint64_t bytes = 8 * MIB;
    spw_space *space = daemon_space(rig.session, "default", "weights", 0, SPW_CLASS_WEIGHTS, SPW_CACHE);
    struct spw_gpu_range range = {.key = gpu_key(7000), .bytes = bytes};
    uint64_t *words = malloc(bytes), *again = malloc(bytes);
    spw_gpu_memory *memory;
    spw_gpu_job *job;

    SPW(spw_tensor_open(space, &range.key, bytes));
    SPW(spw_gpu_alloc(rig.gpu, bytes, &memory));
    range.address = spw_gpu_memory_address(memory);
    for (size_t i = 0; i < bytes / sizeof(*words); i++)
        words[i] = i * 3;
    CU(rig.cu->MemcpyHtoD(range.address, words, bytes));
    SPW(spw_gpu_put_ranges(rig.gpu, space, &range, 1, NULL, LONG_MS, NULL, &job));
    wait_all(job, 1);
    restart(_i);
    CU(rig.cu->MemsetD8(range.address, 0, bytes));
    SPW(spw_gpu_get_ranges(rig.gpu, space, &range, 1, NULL, 0, LONG_MS, NULL, &job));
    wait_all(job, 1);
    CU(rig.cu->MemcpyDtoH(again, range.address, bytes));
    ck_assert_mem_eq(again, words, bytes);
    spw_gpu_memory_free(memory);
    free(words);
    free(again);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gpu_restart");
    TCase *tc = tcase_create("restarts");

    if (getenv("SPILLWAY_TEST_GPU")) {
        fprintf(stderr, "SKIP: copies can be caught on their way only on the fake driver\n");
        return 77;
    }
    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, an_attachment_goes_on, 0, 2);
    tcase_add_loop_test(tc, jobs_go_on, 0, 2);
    tcase_add_test(tc, a_job_waits_for_the_next_daemon);
    tcase_add_loop_test(tc, a_job_that_was_joined_tells, 0, 2);
    tcase_add_loop_test(tc, a_source_that_is_free_is_not_read_again, 0, 2);
    tcase_add_loop_test(tc, an_allocation_stays, 0, 2);
    suite_add_tcase(s, tc);
    return suite_main(s);
}
