/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small get jobs with a real device: many more in flight than there are copy threads, taken by several threads, canceled,
 * freed while they are on their way, and left behind by a daemon that is killed.
 */
#include <check.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/base.h"
#include "tests/system/support/daemon.h"

#define BLOCK ((size_t)64 << 10)
#define BLOCKS 1536 /* more than fit into memory */
#define JOBS 64
#define THREADS 3

struct get {
    uint64_t number;
    struct spw_key key;
    uint8_t *bytes;
    struct spw_iovec to;
    int32_t status;
};

static struct daemon d;
static spw_session *session;
static spw_space *space;
static spw_queue *queue;
static struct get gets[JOBS];
static uint32_t n_submitted, n_taken;

static void setup(void)
{
    daemon_init(&d);
    daemon_format(&d, 256 * DAEMON_MIB);
    daemon_configure(&d, "", "[tier.dram]\nsize = 64 MiB\n[pool default]\n");
    daemon_start(&d);
    session = daemon_connect(&d);
    space = daemon_space(session, "default", "gets", BLOCK, SPW_CLASS_GENERIC, SPW_SCRATCH);
    for (uint64_t i = 0; i < BLOCKS; i++)
        ck_assert_int_eq(block_put(space, i, BLOCK), 0);
    ck_assert_int_eq(spw_queue_new(session, space, 0, &queue), 0);
    for (unsigned i = 0; i < JOBS; i++)
        gets[i].bytes = malloc(BLOCK);
    n_submitted = n_taken = 0;
}

static void teardown(void)
{
    for (unsigned i = 0; i < JOBS; i++)
        free(gets[i].bytes);
    spw_close(session);
    daemon_deinit(&d);
}

/* Fetches the next block, in an order that is not the one of their writing. Returns false if that were all. */
static bool submit_next(struct get *g, spw_job **ret_job)
{
    uint32_t n = __atomic_fetch_add(&n_submitted, 1, __ATOMIC_RELAXED);

    if (n >= BLOCKS)
        return false;
    g->number = n * 541 % BLOCKS;
    g->key = block_key(g->number);
    g->to = (struct spw_iovec){g->bytes, BLOCK};
    g->status = 7;
    memset(g->bytes, 0, BLOCK);
    ck_assert_int_eq(spw_submit_get(queue, space, &g->key, &g->to, 1, 0, 20000, &g->status, g, ret_job), 0);
    return true;
}

static void leases_are_given_back(void)
{
    struct spw_stat stat;

    spw_queue_free(queue);
    ck_assert_int_eq(spw_stat(space, &stat), 0);
    ck_assert_uint_eq(stat.leased, 0);
}

static void *thread_takes(void *arg)
{
    spw_job *job;

    (void)arg;
    while (__atomic_load_n(&n_taken, __ATOMIC_RELAXED) < BLOCKS) {
        if (spw_queue_next(queue, &job) == -EAGAIN) {
            struct pollfd pfd = {.fd = spw_queue_fd(queue), .events = POLLIN};
            if (spw_queue_arm(queue) == 0)
                (void)poll(&pfd, 1, 10); /* another thread may take it back */
            continue;
        }
        struct get *g = spw_job_user(job);
        ck_assert_int_eq(spw_job_status(job), 0);
        ck_assert_int_eq(g->status, 0);
        ck_assert(pattern_is(g->bytes, BLOCK, g->number, 0));
        spw_job_free(job);
        __atomic_fetch_add(&n_taken, 1, __ATOMIC_RELAXED);
        (void)submit_next(g, NULL);
    }
    return NULL;
}

START_TEST(test_threads_fetch_all)
{
    pthread_t threads[THREADS];
    struct spw_stat stat;

    for (unsigned i = 0; i < JOBS; i++)
        ck_assert(submit_next(&gets[i], NULL));
    for (unsigned i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, thread_takes, NULL), 0);
    for (unsigned i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
    ck_assert_uint_eq(n_taken, BLOCKS);
    ck_assert_int_eq(spw_stat(space, &stat), 0);
    ck_assert_uint_gt(stat.hits_nvme, 0); /* they did come from there */
    leases_are_given_back();
}
END_TEST

/* Whatever becomes of each, it ends once, and no lease stays. */
START_TEST(test_cancel_on_the_way)
{
    spw_job *jobs[JOBS];
    unsigned n_canceled = 0;

    for (unsigned i = 0; i < JOBS; i++)
        ck_assert(submit_next(&gets[i], &jobs[i]));
    for (unsigned i = 0; i < JOBS; i += 2)
        ck_assert_int_eq(spw_job_cancel(jobs[i]), 0);
    for (unsigned i = 0; i < JOBS; i++) {
        int r = spw_job_wait(jobs[i], SPW_FOREVER);
        ck_assert_msg(r == 0 || (r == -ECANCELED && i % 2 == 0), "job %u: %d", i, r);
        ck_assert_msg(gets[i].status == 0 || (gets[i].status == -ECANCELED && i % 2 == 0), "job %u: status %d", i,
                      gets[i].status);
        n_canceled += gets[i].status < 0;
        if (gets[i].status == 0)
            ck_assert(pattern_is(gets[i].bytes, BLOCK, gets[i].number, 0));
        spw_job_free(jobs[i]);
    }
    ck_assert_uint_le(n_canceled, JOBS / 2);
    leases_are_given_back();
}
END_TEST

START_TEST(test_free_on_the_way)
{
    for (unsigned i = 0; i < JOBS; i++)
        ck_assert(submit_next(&gets[i], NULL));
    leases_are_given_back();
    for (unsigned i = 0; i < JOBS; i++)
        ck_assert(gets[i].status == 0 || gets[i].status == -ECANCELED);
}
END_TEST

START_TEST(test_daemon_killed)
{
    spw_job *jobs[JOBS];

    for (unsigned i = 0; i < JOBS; i++)
        ck_assert(submit_next(&gets[i], &jobs[i]));
    daemon_kill(&d);
    for (unsigned i = 0; i < JOBS; i++) { /* some may have been answered before */
        int r = spw_job_wait(jobs[i], SPW_FOREVER);
        ck_assert_msg(r == -ENOTCONN || (r == 0 && gets[i].status == 0), "job %u: %d", i, r);
        ck_assert(gets[i].status == 0 || gets[i].status == -ENOTCONN);
    }
    ck_assert_int_eq(spw_queue_arm(queue), 1); /* they were waited for, not taken */
    spw_queue_free(queue);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("small_gets");
    TCase *tcase = tcase_create("small_gets");

    tcase_set_timeout(tcase, 200);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, test_threads_fetch_all);
    tcase_add_test(tcase, test_cancel_on_the_way);
    tcase_add_test(tcase, test_free_on_the_way);
    tcase_add_test(tcase, test_daemon_killed);
    suite_add_tcase(suite, tcase);
    return suite_main(suite);
}
