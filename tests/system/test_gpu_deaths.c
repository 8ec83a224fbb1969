/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is promised when something of the GPU tier fails: jobs end with an error soon after their deadline, streams go on,
 * nothing is left behind, what comes next attaches anew, and the same keys can be stored. The daemon, its helper and the client
 * are killed and stopped while copies are on their way, jobs are cancelled, and the driver fails on command. On the fake
 * driver alone.
 */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "tests/system/support/gpu.h"

#define PIECE_BYTES (256 * KIB)
#define N_BLOCKS 128
#define HALF (N_BLOCKS / 2)
#define DRAM_BYTES (192 * MIB)
#define DEADLINE_MS 2000
#define ENDS_MS 1000   /* after the deadline, as promised */
#define SLACK_MS 10000 /* of a busy machine */
#define SLOW_US 150000 /* of a copy that is to be caught on its way */
#define BUSY_MS 30     /* of a GPU that is waited for at the end */
#define LONG_MS 30000

static struct gpu_rig rig;
static struct gpu_cache cache;
static struct CUstream_st *stream;
static struct spw_key keys[N_BLOCKS];
static uint32_t ids[N_BLOCKS];
static int32_t spill_status[HALF], fetch_status[HALF];
static spw_gpu_job *spill, *fetch;
static int64_t started_ms;

static struct fake_cuda_role *helper_role(void)
{
    return &rig.control->roles[FAKE_CUDA_HELPER];
}

static void keys_are(uint32_t round)
{
    for (uint32_t i = 0; i < N_BLOCKS; i++)
        keys[i] = gpu_key(round * 10000 + i);
}

static void cache_new(void)
{
    static const uint32_t piece = PIECE_BYTES;

    gpu_cache_new(&rig, &cache, &piece, 1, 0, N_BLOCKS);
    CU(rig.cu->StreamCreateWithPriority(&stream, NV_STREAM_NON_BLOCKING, 0));
    for (uint32_t i = 0; i < N_BLOCKS; i++)
        ids[i] = i;
    keys_are(0);
}

static void cache_free(void)
{
    CU(rig.cu->StreamDestroy(stream));
    gpu_cache_free(&rig, &cache);
}

static void begin(void)
{
    gpu_rig_driver(&rig);
    gpu_rig_open(&rig, DRAM_BYTES, 0, PIECE_BYTES);
    cache_new();
}

static void finish(void)
{
    cache_free();
    gpu_rig_close(&rig);
}

static void wait_all(spw_gpu_job *job, uint64_t n)
{
    SPW(spw_gpu_job_wait(job, SPW_GPU_DONE, LONG_MS));
    ck_assert_uint_eq(spw_gpu_job_value(job), n);
    spw_gpu_job_free(job);
}

/* A call that may be told to come again while a helper is started. */
static spw_gpu_job *start(bool is_spill, size_t first, size_t n, int32_t *status)
{
    spw_gpu_job *job = NULL;
    int r = -EAGAIN;

    for (int64_t end = clock_ms() + LONG_MS; r == -EAGAIN && clock_ms() < end; sleep_ms(r == -EAGAIN ? 10 : 0))
        r = is_spill ? spw_spill(cache.layout, keys + first, ids + first, n, stream, 0, LONG_MS, status, &job)
                     : spw_fetch(cache.layout, keys + first, ids + first, n, stream, 0, LONG_MS, status, &job);
    ck_assert_msg(r == 0, "it does not attach anew: %d: %s", r, spw_error_text());
    return job;
}

/* The second half goes out, the first half, that is stored already, comes in, and the caller's stream waits for both. */
static void set_out(uint32_t delay_us)
{
    gpu_cache_fill(&rig, &cache, 1);
    wait_all(start(true, 0, HALF, spill_status), HALF);
    store_relaxed(&helper_role()->dma_delay_us, delay_us);
    started_ms = clock_ms();
    SPW(spw_spill(cache.layout, keys + HALF, ids + HALF, HALF, stream, 0, DEADLINE_MS, spill_status, &spill));
    SPW(spw_fetch(cache.layout, keys, ids, HALF, stream, 0, DEADLINE_MS, fetch_status, &fetch));
    SPW(spw_gpu_job_join(fetch, stream, LONG_MS));
    ck_assert_int_eq(spw_gpu_job_status(fetch, SPW_GPU_DONE), -EINPROGRESS);
    ck_assert_int_eq(spw_gpu_job_status(spill, SPW_GPU_DONE), -EINPROGRESS);
}

static void all_clear(void)
{
    store_relaxed(&helper_role()->dma_delay_us, 0);
    store_release(&helper_role()->lost, 0);
}

/* With that error, if it is not 0, and each key's status is there. Returns the error. */
static int ends_with(spw_gpu_job *job, const int32_t *status, size_t n, int error)
{
    int r = spw_gpu_job_wait(job, SPW_GPU_DONE, LONG_MS);
    int64_t took_ms = clock_ms() - started_ms;
    size_t n_failed = 0;

    ck_assert_int_ne(spw_gpu_job_status(job, SPW_GPU_DONE), -EINPROGRESS);
    ck_assert_int_lt(r, 0);
    ck_assert_uint_gt(strlen(spw_error_text()), 0);
    ck_assert_msg(error == 0 || r == error, "%d, not %d: %s", r, error, spw_error_text());
    ck_assert_int_le(took_ms, DEADLINE_MS + ENDS_MS + SLACK_MS);
    for (size_t i = 0; i < n; i++)
        n_failed += status[i] < 0;
    ck_assert_uint_gt(n_failed, 0);
    ck_assert_uint_eq(spw_gpu_job_value(job), n - n_failed);
    spw_gpu_job_free(job);
    return r;
}

static void stream_drains(void)
{
    int r = NV_ERROR_NOT_READY;

    for (int64_t end = started_ms + DEADLINE_MS + ENDS_MS + SLACK_MS; r == NV_ERROR_NOT_READY && clock_ms() < end;
         sleep_ms(5))
        r = rig.cu->StreamQuery(stream);
    ck_assert_msg(r == NV_SUCCESS, "the caller's stream: %s", cuda_error_name(r));
    CU(rig.cu->StreamSynchronize(stream));
}

static void both_end(int error)
{
    ends_with(spill, spill_status, HALF, error);
    ends_with(fetch, fetch_status, HALF, error);
    stream_drains();
}

/* All of the cache goes out, and comes back right. The keys are new ones. */
static void serves_again(uint32_t seed)
{
    int32_t status[N_BLOCKS];

    keys_are(100 + seed);
    gpu_cache_fill(&rig, &cache, seed);
    wait_all(start(true, 0, N_BLOCKS / 4, status), N_BLOCKS / 4);
    gpu_cache_fill(&rig, &cache, 0);
    wait_all(start(false, 0, N_BLOCKS / 4, status), N_BLOCKS / 4);
    gpu_cache_check(&rig, &cache, seed, ids, ids, N_BLOCKS / 4);
}

/* Keys that a failed spill had reserved: they can be stored as soon as the daemon has heard of its end. */
static void stores_the_same_again(uint32_t round)
{
    int32_t status[HALF];
    uint64_t n = 0;

    keys_are(round);
    for (int64_t end = clock_ms() + LONG_MS; n < HALF && clock_ms() < end; sleep_ms(10)) {
        (void)spw_delete(rig.space, keys + HALF, HALF, status);
        spw_gpu_job *job = start(true, HALF, HALF, status);
        (void)spw_gpu_job_wait(job, SPW_GPU_DONE, LONG_MS);
        n = spw_gpu_job_value(job);
        spw_gpu_job_free(job);
    }
    ck_assert_uint_eq(n, HALF);
}

/* --- Processes that die ---------------------------------------------------------------------------------------------- */

START_TEST(the_helper_is_killed)
{
    begin();
    for (uint32_t round = 0; round < 2; round++) {
        pid_t helper = gpu_rig_helper(&rig, 0);

        keys_are(round);
        set_out(SLOW_US);
        ck_assert_int_eq(kill(helper, SIGKILL), 0);
        both_end(0);
        all_clear();
        gpu_rig_helper(&rig, helper);
        stores_the_same_again(round);
        serves_again(round + 2);
    }
    finish();
}
END_TEST

START_TEST(the_daemon_is_killed)
{
    begin();
    set_out(SLOW_US);
    daemon_kill(&rig.daemon);
    both_end(0);
    all_clear();
    cache_free();
    gpu_rig_disconnect(&rig);
    gpu_rig_nothing_is_left(&rig);
    daemon_start(&rig.daemon);
    gpu_rig_connect(&rig, PIECE_BYTES);
    cache_new();
    serves_again(2);
    finish();
}
END_TEST

/* Nobody waits for the jobs: the attachment's end is enough. */
START_TEST(the_daemon_is_killed_and_we_leave_at_once)
{
    begin();
    set_out(SLOW_US);
    daemon_kill(&rig.daemon);
    gpu_rig_disconnect(&rig);
    ck_assert_int_le(clock_ms() - started_ms, DEADLINE_MS + ENDS_MS + SLACK_MS);
    stream_drains();
    CU(rig.cu->StreamDestroy(stream));
    CU(rig.cu->MemFree(cache.memory));
    gpu_rig_nothing_is_left(&rig);
    all_clear();
    daemon_start(&rig.daemon);
    gpu_rig_connect(&rig, PIECE_BYTES);
    cache_new();
    serves_again(2);
    finish();
}
END_TEST

/* --- Processes that stand still -------------------------------------------------------------------------------------- */

START_TEST(the_daemon_is_stopped)
{
    begin();
    set_out(SLOW_US);
    ck_assert_int_eq(kill(rig.daemon.pid, SIGSTOP), 0);
    both_end(-ETIMEDOUT);
    all_clear();
    cache_free(); /* answers are still to come for its jobs */
    ck_assert_int_eq(kill(rig.daemon.pid, SIGCONT), 0);
    cache_new();
    serves_again(2);
    finish();
}
END_TEST

/* What the daemon would still have answered is not waited for; what it says when it goes on finds nobody. */
START_TEST(the_daemon_is_stopped_and_we_leave)
{
    begin();
    set_out(SLOW_US);
    ck_assert_int_eq(kill(rig.daemon.pid, SIGSTOP), 0);
    both_end(-ETIMEDOUT);
    all_clear();
    cache_free();
    gpu_rig_disconnect(&rig);
    gpu_rig_nothing_is_left(&rig);
    ck_assert_int_eq(kill(rig.daemon.pid, SIGCONT), 0);
    gpu_rig_connect(&rig, PIECE_BYTES);
    cache_new();
    serves_again(2);
    finish();
}
END_TEST

START_TEST(the_helper_is_stopped)
{
    begin();
    pid_t helper = gpu_rig_helper(&rig, 0);
    set_out(SLOW_US);
    ck_assert_int_eq(kill(helper, SIGSTOP), 0);
    both_end(-ETIMEDOUT);
    all_clear();
    gpu_rig_helper(&rig, helper);
    serves_again(2);
    finish();
}
END_TEST

/* --- The driver fails ------------------------------------------------------------------------------------------------ */

static void one_spill_fails(uint64_t number, int error)
{
    struct spw_key key = gpu_key(number);
    int32_t status;
    spw_gpu_job *job;

    started_ms = clock_ms();
    SPW(spw_spill(cache.layout, &key, ids, 1, stream, 0, DEADLINE_MS, &status, &job));
    (void)spw_gpu_job_join(job, stream, LONG_MS);
    ends_with(job, &status, 1, error);
    stream_drains();
}

START_TEST(a_copy_fails)
{
    begin();
    gpu_cache_fill(&rig, &cache, 1);
    fake_cuda_fail(helper_role(), "cuMemcpyDtoHAsync", 1, 1, NV_ERROR_INVALID_VALUE);
    one_spill_fails(7000, 0);
    serves_again(2);
    pid_t helper = gpu_rig_helper(&rig, 0); /* it lives on: it was a lane that ended */
    fake_cuda_fail(helper_role(), "cuMemcpyDtoHAsync", 1, 1, NV_ERROR_ILLEGAL_ADDRESS);
    one_spill_fails(7001, 0);
    gpu_rig_helper(&rig, helper); /* and that is for good */
    serves_again(3);
    finish();
}
END_TEST

/* Blocks that lie apart in memory go to the driver together. */
START_TEST(a_copy_of_many_fails)
{
    int32_t status[HALF];

    begin();
    gpu_cache_fill(&rig, &cache, 1);
    wait_all(start(true, 0, HALF, status), HALF);
    for (uint32_t i = 0; i < HALF; i += 2)
        ck_assert_int_eq(spw_delete(rig.space, keys + i, 1, status), 0);
    fake_cuda_fail(helper_role(), "cuMemcpyBatchAsync", 1, 1, NV_ERROR_INVALID_VALUE);
    started_ms = clock_ms();
    SPW(spw_spill(cache.layout, keys + HALF, ids + HALF, HALF, stream, 0, DEADLINE_MS, status, &spill));
    ends_with(spill, status, HALF, 0);
    ck_assert_uint_eq(helper_role()->faults[0].n_fired, 1);
    stream_drains();
    stores_the_same_again(0);
    serves_again(2);
    finish();
}
END_TEST

START_TEST(the_helper_loses_its_context)
{
    begin();
    pid_t helper = gpu_rig_helper(&rig, 0);
    set_out(SLOW_US);
    store_release(&helper_role()->lost, NV_ERROR_LAUNCH_FAILED);
    both_end(0);
    all_clear();
    gpu_rig_helper(&rig, helper);
    serves_again(2);
    finish();
}
END_TEST

START_TEST(a_kernel_is_not_launched)
{
    begin();
    gpu_cache_fill(&rig, &cache, 1);
    fake_cuda_fail(&rig.control->roles[FAKE_CUDA_CLIENT], "cuLaunchKernel", 1, 1, NV_ERROR_OUT_OF_MEMORY);
    one_spill_fails(7000, -ENOMEM);
    serves_again(2);
    fake_cuda_fail(&rig.control->roles[FAKE_CUDA_CLIENT], "cuLaunchKernel", 2, 1, NV_ERROR_LAUNCH_OUT_OF_RESOURCES);
    started_ms = clock_ms();
    keys_are(1);
    ends_with(start(true, HALF, HALF, spill_status), spill_status, HALF, 0); /* in the middle of a job */
    stores_the_same_again(1);
    serves_again(3);
    finish();
}
END_TEST

START_TEST(cancelled_in_the_middle)
{
    begin();
    set_out(SLOW_US);
    SPW(spw_gpu_job_cancel(spill));
    (void)spw_gpu_job_wait(spill, SPW_GPU_DONE, LONG_MS);
    ck_assert_int_ne(spw_gpu_job_status(spill, SPW_GPU_DONE), -EINPROGRESS);
    uint64_t n = 0;
    for (uint32_t i = 0; i < HALF; i++) {
        ck_assert_int_ne(spill_status[i], -EINPROGRESS);
        n += spill_status[i] == 0;
    }
    ck_assert_uint_eq(n, spw_gpu_job_value(spill));
    spw_gpu_job_free(spill);
    (void)spw_gpu_job_wait(fetch, SPW_GPU_DONE, LONG_MS);
    spw_gpu_job_free(fetch);
    stream_drains();
    all_clear();
    stores_the_same_again(0);
    serves_again(2);
    finish();
}
END_TEST

static void *is_busy_no_more(void *arg)
{
    (void)arg;
    sleep_ms(BUSY_MS);
    store_release(&rig.control->roles[FAKE_CUDA_CLIENT].hang, 0);
    return NULL;
}

/* Without a job: what the attachment itself began on the GPU has not ended. */
START_TEST(we_leave_while_a_stream_runs)
{
    pthread_t thread;

    gpu_rig_driver(&rig);
    gpu_rig_daemon(&rig, DRAM_BYTES, 0);
    store_release(&rig.control->roles[FAKE_CUDA_CLIENT].hang, 1);
    gpu_rig_connect(&rig, PIECE_BYTES);
    ck_assert_int_eq(pthread_create(&thread, NULL, is_busy_no_more, NULL), 0);
    gpu_rig_close(&rig); /* nothing is left */
    pthread_join(thread, NULL);
}
END_TEST

/* The client's context has gone with all that was in it: every call says so, and all of it ends. */
START_TEST(the_client_loses_its_context)
{
    begin();
    set_out(SLOW_US);
    store_release(&rig.control->roles[FAKE_CUDA_CLIENT].lost, NV_ERROR_ILLEGAL_ADDRESS);
    ends_with(fetch, fetch_status, HALF, 0);
    (void)spw_gpu_job_wait(spill, SPW_GPU_DONE, LONG_MS); /* what was gathered before may be stored */
    ck_assert_int_ne(spw_gpu_job_status(spill, SPW_GPU_DONE), -EINPROGRESS);
    spw_gpu_job_free(spill);
    int32_t status;
    spw_gpu_job *job;
    ck_assert_int_eq(spw_spill(cache.layout, keys, ids, 1, NULL, 0, DEADLINE_MS, &status, &job), -ENODEV);
    ck_assert_msg(strstr(spw_error_text(), "ILLEGAL_ADDRESS") != NULL, "%s", spw_error_text());
    const char *control = getenv("FAKE_CUDA_CONTROL");
    gpu_rig_disconnect(&rig);
    daemon_deinit(&rig.daemon);
    if (control)
        unlink(control);
}
END_TEST

START_TEST(the_gpu_is_full)
{
    struct spw_gpu_options small = {.slots = 1, .slot_bytes = 16 * MIB};
    int r = -EAGAIN;

    setenv("FAKE_CUDA_HBM", "134217728", 1); /* two contexts and less than a lane */
    gpu_rig_driver(&rig);
    gpu_rig_daemon(&rig, DRAM_BYTES, 0);
    gpu_rig_context(&rig);
    rig.session = daemon_connect(&rig.daemon);
    rig.space = daemon_space(rig.session, "default", "kv", PIECE_BYTES, SPW_CLASS_KV, SPW_CACHE);
    for (int64_t end = clock_ms() + LONG_MS; r == -EAGAIN && clock_ms() < end; sleep_ms(10))
        r = spw_gpu_attach(rig.space, NULL, &rig.gpu);
    ck_assert_int_eq(r, -ENOMEM);
    ck_assert_msg(strstr(spw_error_text(), "MEMORY") != NULL, "%s", spw_error_text());
    SPW(spw_gpu_attach(rig.space, &small, &rig.gpu));
    struct gpu_cache few;
    static const uint32_t piece = PIECE_BYTES;
    gpu_cache_new(&rig, &few, &piece, 1, 0, 8);
    gpu_cache_free(&rig, &few);
    gpu_rig_close(&rig);
}
END_TEST

/* --- The client is killed -------------------------------------------------------------------------------------------- */

/* More than half of it: two do not fit. */
static const struct spw_gpu_options large_part = {.slots = 9, .slot_bytes = 16 * MIB};

static void connect_with_large_part(int64_t within_ms)
{
    int r = -EAGAIN;

    gpu_rig_context(&rig);
    rig.session = daemon_connect(&rig.daemon);
    rig.space = daemon_space(rig.session, "default", "kv", PIECE_BYTES, SPW_CLASS_KV, SPW_CACHE);
    for (int64_t end = clock_ms() + within_ms; (r == -EAGAIN || r == -ENOSPC) && clock_ms() < end; sleep_ms(10))
        r = spw_gpu_attach(rig.space, &large_part, &rig.gpu);
    ck_assert_msg(r == 0, "spw_gpu_attach: %d: %s", r, spw_error_text());
    cache_new();
}

static pid_t fork_client(uint32_t round)
{
    int ready[2];
    char byte;

    ck_assert_int_eq(pipe(ready), 0);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        connect_with_large_part(LONG_MS);
        keys_are(round);
        set_out(SLOW_US);
        (void)!write(ready[1], "", 1);
        for (;;)
            pause();
    }
    close(ready[1]);
    ck_assert_int_eq(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    return pid;
}

/* What it had is there for the next one: its part of the pool's budget, and the keys that it had reserved. */
START_TEST(the_client_is_killed)
{
    int32_t status[HALF];

    gpu_rig_driver(&rig);
    gpu_rig_daemon(&rig, DRAM_BYTES, 0);
    for (uint32_t round = 0; round < 2; round++) {
        pid_t pid = fork_client(round);

        kill(pid, SIGKILL);
        ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
        all_clear();
    }
    connect_with_large_part(2000 + SLACK_MS);
    keys_are(1);
    gpu_cache_fill(&rig, &cache, 1);
    spw_gpu_job *job = start(true, HALF, HALF, status);
    SPW(spw_gpu_job_wait(job, SPW_GPU_DONE, LONG_MS));
    spw_gpu_job_free(job);
    for (size_t i = 0; i < HALF; i++) /* some may have been stored; nothing is still being written by nobody */
        ck_assert_msg(status[i] == 0 || status[i] == -EEXIST, "block %zu: %d", i, status[i]);
    serves_again(2);
    finish();
}
END_TEST

/* --- One hardware queue ---------------------------------------------------------------------------------------------- */

/* Everything of this process stands in one line, behind whatever waits there. */
START_TEST(one_hardware_queue_is_enough)
{
    static const uint32_t piece = PIECE_BYTES;
    struct gpu_rig other;
    struct gpu_cache others;
    int32_t status[4][HALF];
    spw_gpu_job *jobs[4];

    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1", 1);
    begin();
    other = rig;
    other.space = daemon_space(rig.session, "default", "other", PIECE_BYTES, SPW_CLASS_KV, SPW_CACHE);
    SPW(spw_gpu_attach(other.space, NULL, &other.gpu));
    gpu_cache_new(&other, &others, &piece, 1, 0, N_BLOCKS);
    gpu_cache_fill(&rig, &cache, 1);
    gpu_cache_fill(&other, &others, 2);
    wait_all(start(true, 0, HALF, status[0]), HALF);
    SPW(spw_spill(others.layout, keys, ids, HALF, NULL, 0, LONG_MS, status[0], &jobs[0]));
    wait_all(jobs[0], HALF);
    store_relaxed(&helper_role()->dma_delay_us, 2000);
    for (uint32_t round = 1; round <= 5; round++) {
        for (uint32_t i = 0; i < HALF; i++)
            keys[HALF + i] = gpu_key(round * 1000 + i);
        SPW(spw_fetch(cache.layout, keys, ids, HALF, stream, 0, LONG_MS, status[0], &jobs[0]));
        SPW(spw_fetch(others.layout, keys, ids, HALF, stream, 0, LONG_MS, status[1], &jobs[1]));
        SPW(spw_spill(cache.layout, keys + HALF, ids + HALF, HALF, stream, 0, LONG_MS, status[2], &jobs[2]));
        SPW(spw_spill(others.layout, keys + HALF, ids + HALF, HALF, stream, 0, LONG_MS, status[3], &jobs[3]));
        for (size_t i = 0; i < ARRAY_LEN(jobs); i++)
            SPW(spw_gpu_job_join(jobs[i], stream, LONG_MS));
        for (size_t i = 0; i < ARRAY_LEN(jobs); i++)
            wait_all(jobs[i], HALF);
    }
    gpu_cache_check(&rig, &cache, 1, ids, ids, HALF);
    gpu_cache_check(&other, &others, 2, ids, ids, HALF);
    gpu_cache_free(&other, &others);
    spw_gpu_detach(other.gpu);
    finish();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gpu_deaths");
    TCase *tc = tcase_create("deaths");

    if (getenv("SPILLWAY_TEST_GPU")) {
        fprintf(stderr, "SKIP: a real driver does not fail on command\n");
        return 77;
    }
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, the_helper_is_killed);
    tcase_add_test(tc, the_daemon_is_killed);
    tcase_add_test(tc, the_daemon_is_killed_and_we_leave_at_once);
    tcase_add_test(tc, the_daemon_is_stopped);
    tcase_add_test(tc, the_daemon_is_stopped_and_we_leave);
    tcase_add_test(tc, the_helper_is_stopped);
    tcase_add_test(tc, a_copy_fails);
    tcase_add_test(tc, a_copy_of_many_fails);
    tcase_add_test(tc, the_helper_loses_its_context);
    tcase_add_test(tc, a_kernel_is_not_launched);
    tcase_add_test(tc, cancelled_in_the_middle);
    tcase_add_test(tc, we_leave_while_a_stream_runs);
    tcase_add_test(tc, the_client_loses_its_context);
    tcase_add_test(tc, the_gpu_is_full);
    tcase_add_test(tc, the_client_is_killed);
    tcase_add_test(tc, one_hardware_queue_is_enough);
    suite_add_tcase(s, tc);
    return suite_main(s);
}
