/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What fails on the way between a GPU and the store: the helper or the daemon is killed or stopped in the middle, a copy
 * fails, a launch fails. Jobs end by their deadline and a little, streams go on, and attaching again works. Fake driver only.
 */
#include <check.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>

#include "tests/system/support/gpu.h"

#define BLOCKS 256
static const uint32_t BLOCK = 256 * KIB;
#define TIMEOUT_MS 2000
#define SLACK_MS 8000 /* beyond what is promised: the machine may be busy */

static struct gpu_rig rig;
static struct gpu_cache cache;
static struct spw_key keys[BLOCKS];
static uint32_t ids[BLOCKS];
static int32_t statuses[BLOCKS], others[BLOCKS];
static struct CUstream_st *stream;

static void setup(void)
{
    gpu_rig_driver(&rig);
    if (!rig.control) {
        fprintf(stderr, "SKIP: not for a real GPU\n");
        exit(77);
    }
    gpu_rig_open(&rig, 256 * MIB, 0, BLOCK);
    gpu_cache_new(&rig, &cache, &BLOCK, 1, 0, BLOCKS);
    CU(rig.cu->StreamCreateWithPriority(&stream, NV_STREAM_NON_BLOCKING, 0));
    for (uint32_t i = 0; i < BLOCKS; i++) {
        keys[i] = gpu_key(i);
        ids[i] = i;
    }
}

static void helper_is_slow(uint32_t us)
{
    store_relaxed(&rig.control->roles[FAKE_CUDA_HELPER].dma_delay_us, us);
}

/* All of the blocks out; the stream waits for it. */
static spw_gpu_job *spill_begin(uint32_t timeout_ms)
{
    spw_gpu_job *job;

    gpu_cache_fill(&rig, &cache, 1);
    SPW(spw_spill(cache.layout, keys, ids, BLOCKS, stream, 0, timeout_ms, statuses, &job));
    return job;
}

static void ends_in_time(spw_gpu_job *job, int64_t begun_ms, uint32_t timeout_ms)
{
    int r = spw_gpu_job_wait(job, SPW_GPU_DONE, timeout_ms + SLACK_MS);

    ck_assert_msg(r < 0 && r != -EINPROGRESS && spw_gpu_job_status(job, SPW_GPU_DONE) != -EINPROGRESS,
                  "the job ends with %d: %s", r, spw_error_text());
    ck_assert_int_le(clock_ms() - begun_ms, timeout_ms + SLACK_MS);
    ck_assert_uint_lt(spw_gpu_job_value(job), BLOCKS);
    spw_gpu_job_free(job);
    CU(rig.cu->StreamSynchronize(stream));
}

/* All of them, with right bytes. A negative errno. */
static int spill_all(void)
{
    spw_gpu_job *job;
    int r = spw_spill(cache.layout, keys, ids, BLOCKS, stream, 0, 10000, statuses, &job);

    if (r < 0)
        return r;
    r = spw_gpu_job_wait(job, SPW_GPU_DONE, 20000);
    if (r == 0 && spw_gpu_job_value(job) < BLOCKS)
        r = -EINPROGRESS; /* what was reserved before is given back when the daemon has heard of it */
    spw_gpu_job_free(job);
    return r;
}

/* Out and back, once whatever was broken is whole again. */
static void works_again(void)
{
    spw_gpu_job *job;
    int r = -EAGAIN;

    helper_is_slow(0);
    gpu_cache_fill(&rig, &cache, 7);
    for (int64_t end = clock_ms() + 20000; r < 0 && clock_ms() < end; sleep_ms(20)) {
        (void)spw_delete(rig.space, keys, BLOCKS, others);
        r = spill_all();
    }
    ck_assert_msg(r == 0, "spill: %d: %s", r, spw_error_text());
    gpu_cache_fill(&rig, &cache, 0);
    SPW(spw_fetch(cache.layout, keys, ids, BLOCKS, stream, 0, 20000, statuses, &job));
    SPW(spw_gpu_job_wait(job, SPW_GPU_DONE, 20000));
    ck_assert_uint_eq(spw_gpu_job_value(job), BLOCKS);
    spw_gpu_job_free(job);
    gpu_cache_check(&rig, &cache, 7, ids, ids, BLOCKS);
}

static void teardown(void)
{
    CU(rig.cu->StreamDestroy(stream));
    gpu_cache_free(&rig, &cache);
    gpu_rig_close(&rig);
}

START_TEST(the_helper_is_killed)
{
    setup();
    works_again();
    pid_t helper = gpu_rig_helper(&rig, 0);
    (void)spw_delete(rig.space, keys, BLOCKS, others);
    helper_is_slow(50000);
    int64_t begun_ms = clock_ms();
    spw_gpu_job *job = spill_begin(TIMEOUT_MS);
    sleep_ms(50);
    ck_assert_int_eq(kill(helper, SIGKILL), 0);
    ends_in_time(job, begun_ms, TIMEOUT_MS);
    ck_assert_int_ne(gpu_rig_helper(&rig, helper), helper);
    works_again();
    teardown();
}
END_TEST

START_TEST(the_helper_stands_still)
{
    setup();
    works_again();
    pid_t helper = gpu_rig_helper(&rig, 0);
    (void)spw_delete(rig.space, keys, BLOCKS, others);
    ck_assert_int_eq(kill(helper, SIGSTOP), 0);
    int64_t begun_ms = clock_ms();
    ends_in_time(spill_begin(TIMEOUT_MS), begun_ms, TIMEOUT_MS);
    ck_assert_int_ne(gpu_rig_helper(&rig, helper), helper); /* the daemon finds out */
    works_again();
    teardown();
}
END_TEST

START_TEST(the_daemon_stands_still)
{
    setup();
    works_again();
    (void)spw_delete(rig.space, keys, BLOCKS, others);
    ck_assert_int_eq(kill(rig.daemon.pid, SIGSTOP), 0);
    int64_t begun_ms = clock_ms();
    ends_in_time(spill_begin(TIMEOUT_MS), begun_ms, TIMEOUT_MS);
    ck_assert_int_eq(kill(rig.daemon.pid, SIGCONT), 0);
    works_again();
    teardown();
}
END_TEST

START_TEST(the_daemon_is_killed)
{
    setup();
    works_again();
    (void)spw_delete(rig.space, keys, BLOCKS, others);
    helper_is_slow(50000);
    int64_t begun_ms = clock_ms();
    spw_gpu_job *job = spill_begin(TIMEOUT_MS);
    sleep_ms(50);
    daemon_kill(&rig.daemon);
    ends_in_time(job, begun_ms, TIMEOUT_MS);
    spw_gpu_job *none;
    ck_assert_int_lt(spw_spill(cache.layout, keys, ids, 1, stream, 0, 100, statuses, &none), 0);
    spw_gpu_layout_free(cache.layout);
    CU(rig.cu->MemFree(cache.memory));
    gpu_rig_disconnect(&rig);
    helper_is_slow(0);
    daemon_start(&rig.daemon);
    gpu_rig_connect(&rig, BLOCK);
    gpu_cache_new(&rig, &cache, &BLOCK, 1, 0, BLOCKS);
    works_again();
    teardown();
}
END_TEST

START_TEST(a_copy_fails)
{
    setup();
    works_again();
    (void)spw_delete(rig.space, keys, BLOCKS, others);
    fake_cuda_fail(&rig.control->roles[FAKE_CUDA_HELPER], "cuMemcpyDtoHAsync", 1, 1, NV_ERROR_INVALID_VALUE);
    fake_cuda_fail(&rig.control->roles[FAKE_CUDA_HELPER], "cuMemcpyBatchAsync", 1, 1, NV_ERROR_INVALID_VALUE);
    int64_t begun_ms = clock_ms();
    ends_in_time(spill_begin(TIMEOUT_MS), begun_ms, TIMEOUT_MS);
    works_again();
    teardown();
}
END_TEST

START_TEST(a_launch_fails)
{
    setup();
    works_again();
    (void)spw_delete(rig.space, keys, BLOCKS, others);
    fake_cuda_fail(&rig.control->roles[FAKE_CUDA_CLIENT], "cuLaunchKernel", 2, 1, NV_ERROR_LAUNCH_OUT_OF_RESOURCES);
    int64_t begun_ms = clock_ms();
    ends_in_time(spill_begin(TIMEOUT_MS), begun_ms, TIMEOUT_MS);
    works_again();
    teardown();
}
END_TEST

START_TEST(cancelled_in_the_middle)
{
    setup();
    works_again();
    (void)spw_delete(rig.space, keys, BLOCKS, others);
    helper_is_slow(20000);
    spw_gpu_job *job = spill_begin(20000);
    sleep_ms(30);
    SPW(spw_gpu_job_cancel(job));
    (void)spw_gpu_job_wait(job, SPW_GPU_DONE, 20000);
    ck_assert_int_ne(spw_gpu_job_status(job, SPW_GPU_DONE), -EINPROGRESS);
    uint64_t n = 0;
    for (uint32_t i = 0; i < BLOCKS; i++)
        n += statuses[i] == 0;
    ck_assert_uint_eq(n, spw_gpu_job_value(job));
    spw_gpu_job_free(job);
    CU(rig.cu->StreamSynchronize(stream));
    works_again();
    teardown();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gpu_faults");
    TCase *tc = tcase_create("faults");

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, the_helper_is_killed);
    tcase_add_test(tc, the_helper_stands_still);
    tcase_add_test(tc, the_daemon_stands_still);
    tcase_add_test(tc, the_daemon_is_killed);
    tcase_add_test(tc, a_copy_fails);
    tcase_add_test(tc, a_launch_fails);
    tcase_add_test(tc, cancelled_in_the_middle);
    suite_add_tcase(s, tc);
    return suite_main(s);
}
