/* SPDX-License-Identifier: Apache-2.0 */
/* Small get jobs, which whoever runs the queue's turn copies: what they end with, whoever comes, and when. */
#include <check.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "include/base/base.h"
#include "include/base/limits.h"
#include "include/spillway/spillway.h"
#include "tests/unit/support/fakedaemon.h"

#define BLOCK_BYTES 4096
#define MANY 64 /* jobs: more than there are copy threads */

static struct fake *fake;
static spw_session *session;
static spw_space *space;
static spw_queue *queue;

/* What one job names. */
struct get {
    struct spw_key key;
    uint8_t bytes[BLOCK_BYTES];
    struct spw_iovec to;
    int32_t status;
    uint64_t number;
    spw_job *job;
};
static struct get gets[MANY];

static void open_all(uint32_t ring_entries)
{
    struct spw_connect_options options = {
        .socket_path = fake_path(fake), .name = "test", .timeout_ms = 2000, .ring_entries = ring_entries};
    spw_pool *pool;

    ck_assert_int_eq(spw_connect(&options, &session), 0);
    ck_assert_int_eq(spw_pool_open(session, "default", &pool), 0);
    ck_assert_int_eq(spw_space_open(pool, &(struct spw_space_options){.item_bytes = 0}, &space), 0);
    ck_assert_int_eq(spw_queue_new(session, space, 0, &queue), 0);
}

static void setup(void)
{
    fake = fake_start();
    open_all(0);
}

static void teardown(void)
{
    spw_close(session);
    fake_stop(fake);
}

static struct spw_key key_of(uint64_t number, uint32_t group)
{
    struct spw_key key;

    ck_assert_int_eq(spw_key_init(&key, &number, sizeof(number), group), 0);
    return key;
}

static void fill(uint8_t *bytes, size_t size_bytes, uint64_t number)
{
    for (size_t i = 0; i < size_bytes; i++)
        bytes[i] = (uint8_t)(number * 131 + i * 7 + (i >> 8));
}

static void verify(const struct get *g)
{
    uint8_t expected[BLOCK_BYTES];

    fill(expected, sizeof(expected), g->number);
    ck_assert_int_eq(memcmp(g->bytes, expected, sizeof(expected)), 0);
}

/* Requests of the group HOLD are kept, so the object is put as a list that begins with another one. */
static void put(uint64_t number, uint32_t group, size_t size_bytes)
{
    struct spw_key keys[2] = {key_of(number + 1000000, 0), key_of(number, group)};
    uint8_t *bytes = malloc(size_bytes);
    struct spw_iovec from[2] = {{bytes, 1}, {bytes, size_bytes}};
    int32_t status[2];

    fill(bytes, size_bytes, number);
    ck_assert_int_eq(spw_put(space, keys, from, 2, 0, 1000, status), 0);
    ck_assert_int_eq(status[1], 0);
    free(bytes);
}

static void submit(struct get *g)
{
    g->to = (struct spw_iovec){g->bytes, sizeof(g->bytes)};
    g->status = 7;
    ck_assert_int_eq(spw_submit_get(queue, space, &g->key, &g->to, 1, 0, 1000, &g->status, g, &g->job), 0);
}

static void put_and_submit(unsigned n, uint32_t group)
{
    for (unsigned i = 0; i < n; i++) {
        gets[i].number = i;
        gets[i].key = key_of(i, group);
        put(i, group, BLOCK_BYTES);
    }
    for (unsigned i = 0; i < n; i++)
        submit(&gets[i]);
}

/* The next ended job; polls as a program does. */
static struct get *take(void)
{
    spw_job *job;

    while (spw_queue_next(queue, &job) == -EAGAIN) {
        int r = spw_queue_arm(queue);
        ck_assert_int_ge(r, 0);
        if (r == 0) {
            struct pollfd pfd = {.fd = spw_queue_fd(queue), .events = POLLIN};
            ck_assert_int_eq(poll(&pfd, 1, 10000), 1);
        }
    }
    struct get *g = spw_job_user(job);
    ck_assert_ptr_eq(g->job, job);
    return g;
}

static void take_good(void)
{
    struct get *g = take();

    ck_assert_int_eq(spw_job_status(g->job), 0);
    ck_assert_uint_eq(spw_job_value(g->job), 1);
    ck_assert_int_eq(g->status, 0);
    ck_assert_uint_eq(g->to.size_bytes, BLOCK_BYTES);
    verify(g);
    spw_job_free(g->job);
}

/* A RELEASE is not waited for, but freeing the queue waits for all of them. */
static void no_leases_after_free(void)
{
    spw_queue_free(queue);
    ck_assert_uint_eq(fake_leases(fake), 0);
}

/* --- What they end with --------------------------------------------------------------------------------------------- */

START_TEST(test_all_are_in_flight_at_once)
{
    put_and_submit(MANY, FAKE_GROUP_HOLD);
    fake_wait_held(fake, MANY);
    ck_assert_int_eq(spw_queue_arm(queue), 0);
    fake_let_go(fake);
    struct pollfd pfd = {.fd = spw_queue_fd(queue), .events = POLLIN};
    ck_assert_int_eq(poll(&pfd, 1, 10000), 1);                   /* for the answers alone: */
    ck_assert_int_eq(spw_job_status(gets[0].job), -EINPROGRESS); /* nobody has copied anything */
    for (unsigned i = 0; i < MANY; i++)
        take_good();
    no_leases_after_free();
}
END_TEST

/* Arm says that there is something, next finds only what was given back, and then one may sleep. */
START_TEST(test_answers_to_releases_are_no_news)
{
    spw_job *job;

    put_and_submit(1, 0);
    take_good();
    for (unsigned i = 0; i < 100 && fake_leases(fake) > 0; i++)
        ck_assert_int_eq(spw_nop(space), 0);
    ck_assert_int_eq(spw_nop(space), 0); /* the answer is published */
    ck_assert_int_eq(spw_queue_arm(queue), 0);
    ck_assert_int_eq(spw_queue_next(queue, &job), -EAGAIN);
    ck_assert_int_eq(spw_queue_arm(queue), 0);
}
END_TEST

/* The same list as spw_get(), and the same answers. */
START_TEST(test_statuses_and_sizes)
{
    enum { N = 6 };
    static uint8_t bytes[2][N][FAKE_PIECE_BYTES];
    static const size_t rooms[N] = {BLOCK_BYTES, 100, BLOCK_BYTES, FAKE_PIECE_BYTES, 5, FAKE_PIECE_BYTES};
    static const int expected[N] = {0, -EMSGSIZE, -ENOENT, -EMSGSIZE, -EMSGSIZE, 0};
    static const uint64_t sizes[N] = {BLOCK_BYTES,          BLOCK_BYTES,          BLOCK_BYTES,
                                      3 * FAKE_PIECE_BYTES, FAKE_PIECE_BYTES + 1, 777};
    struct spw_iovec to[2][N];
    int32_t status[2][N];
    struct spw_key keys[N];
    spw_job *job;

    for (unsigned i = 0; i < N; i++) {
        keys[i] = key_of(i, 0);
        if (expected[i] != -ENOENT)
            put(i, 0, sizes[i]);
        for (unsigned k = 0; k < 2; k++)
            to[k][i] = (struct spw_iovec){bytes[k][i], rooms[i]};
    }
    ck_assert_int_eq(spw_get(space, keys, to[0], N, 0, 1000, status[0]), 0);
    ck_assert_int_eq(spw_submit_get(queue, space, keys, to[1], N, 0, 1000, status[1], NULL, &job), 0);
    ck_assert_int_eq(spw_job_wait(job, SPW_FOREVER), 0);
    ck_assert_uint_eq(spw_job_value(job), 2);
    for (unsigned i = 0; i < N; i++) {
        ck_assert_int_eq(status[0][i], expected[i]);
        ck_assert_int_eq(status[1][i], expected[i]);
        ck_assert_uint_eq(to[0][i].size_bytes, sizes[i]);
        ck_assert_uint_eq(to[1][i].size_bytes, sizes[i]);
    }
    ck_assert_int_eq(memcmp(bytes[0], bytes[1], sizeof(bytes[0])), 0);
    spw_job_free(job);
    ck_assert_int_eq(spw_submit_get(queue, space, keys, to[1], 0, 0, 1000, NULL, NULL, &job), 0); /* of nothing */
    ck_assert_int_eq(spw_job_wait(job, SPW_FOREVER), 0);
    spw_job_free(job);
    ck_assert_int_eq(spw_submit_get(queue, space, keys, to[1], 1, 0, 1000, NULL, NULL, &job), 0); /* no statuses */
    ck_assert_int_eq(spw_job_wait(job, SPW_FOREVER), 0);
    ck_assert_uint_eq(spw_job_value(job), 1);
    no_leases_after_free();
}
END_TEST

START_TEST(test_refusals)
{
    put_and_submit(1, 0);
    take_good();
    fake_set_fault(fake, FAKE_NO_SPACE);
    submit(&gets[0]);
    struct get *g = take();
    ck_assert_int_eq(spw_job_status(g->job), 0);
    ck_assert_uint_eq(spw_job_value(g->job), 0);
    ck_assert_int_eq(g->status, -ENOSPC);
    ck_assert_uint_eq(g->to.size_bytes, BLOCK_BYTES);
    spw_job_free(g->job);
    fake_set_fault(fake, FAKE_REQUEST_FAILS); /* all of it */
    submit(&gets[0]);
    g = take();
    ck_assert_int_eq(spw_job_status(g->job), -EAGAIN);
    ck_assert_uint_eq(spw_error_limit(), SPW_LIMIT_REQUESTS);
    ck_assert_int_eq(g->status, -EAGAIN);
    spw_job_free(g->job);
    fake_set_fault(fake, FAKE_NONE);
    submit(&gets[0]);
    take_good();
    no_leases_after_free();
}
END_TEST

/* What could not be mapped was leased all the same. */
START_TEST(test_unmapped_views_are_given_back)
{
    put_and_submit(1, 0);
    take_good();
    spw_queue_free(queue);
    spw_close(session);
    open_all(0); /* has mapped nothing yet */
    fake_set_fault(fake, FAKE_NO_CHUNK);
    submit(&gets[0]);
    struct get *g = take();
    ck_assert_int_eq(spw_job_status(g->job), 0);
    ck_assert_int_eq(g->status, -ENFILE);
    spw_job_free(g->job);
    fake_set_fault(fake, FAKE_NONE);
    submit(&gets[0]);
    take_good();
    no_leases_after_free();
}
END_TEST

START_TEST(test_cancel)
{
    put_and_submit(2, FAKE_GROUP_HOLD);
    fake_wait_held(fake, 2);
    ck_assert_int_eq(spw_job_cancel(gets[0].job), 0);
    ck_assert_int_eq(spw_job_wait(gets[0].job, SPW_FOREVER), -ECANCELED);
    ck_assert_int_eq(gets[0].status, -ECANCELED);
    spw_job_free(gets[0].job);
    fake_wait_held(fake, 1);
    ck_assert_int_eq(spw_nop(space), 0); /* the answer to the CANCEL itself has been published */
    ck_assert_int_eq(spw_queue_arm(queue), 0);
    fake_let_go(fake);
    struct pollfd pfd = {.fd = spw_queue_fd(queue), .events = POLLIN};
    ck_assert_int_eq(poll(&pfd, 1, 10000), 1);
    ck_assert_int_eq(spw_job_cancel(gets[1].job), 0); /* too late: it has leases, and is copied */
    take_good();
    no_leases_after_free();
}
END_TEST

START_TEST(test_wait_times_out_and_goes_on)
{
    put_and_submit(1, FAKE_GROUP_HOLD);
    ck_assert_int_eq(spw_job_wait(gets[0].job, 1), -ETIMEDOUT);
    fake_wait_held(fake, 1);
    fake_let_go(fake);
    ck_assert_int_eq(spw_job_wait(gets[0].job, SPW_FOREVER), 0);
    verify(&gets[0]);
}
END_TEST

/* --- Bounds --------------------------------------------------------------------------------------------------------- */

#define LARGEST (CLIENT_SMALL_GET_BYTES / FAKE_PIECE_BYTES) /* elements of a job of the largest size */
#define JOBS_AT_ONCE (CLIENT_SMALL_GETS_BYTES / CLIENT_SMALL_GET_BYTES)
#define JOBS (JOBS_AT_ONCE + 3)

static struct large {
    struct spw_iovec to[LARGEST];
    int32_t status[LARGEST];
    spw_job *job;
} larges[JOBS];
static struct spw_key large_keys[LARGEST];

/* Of as many bytes together as may be leased, and three more. All fetch the same objects, into the same memory. */
static void larges_submit(void)
{
    static uint8_t memory[LARGEST][FAKE_PIECE_BYTES];

    for (unsigned i = 0; i < LARGEST; i++) {
        large_keys[i] = key_of(i, FAKE_GROUP_HOLD);
        put(i, FAKE_GROUP_HOLD, BLOCK_BYTES);
    }
    for (unsigned i = 0; i < JOBS; i++) {
        for (unsigned k = 0; k < LARGEST; k++)
            larges[i].to[k] = (struct spw_iovec){memory[k], FAKE_PIECE_BYTES};
        ck_assert_int_eq(spw_submit_get(queue, space, large_keys, larges[i].to, LARGEST, 0, 1000, larges[i].status,
                                        NULL, &larges[i].job),
                         0);
    }
}

START_TEST(test_more_than_may_be_leased_waits)
{
    larges_submit();
    fake_wait_held(fake, JOBS_AT_ONCE);
    ck_assert_int_eq(spw_nop(space), 0);
    fake_wait_held(fake, JOBS_AT_ONCE); /* and no more */
    ck_assert_int_eq(spw_job_cancel(larges[JOBS - 2].job), 0);
    ck_assert_int_eq(spw_job_status(larges[JOBS - 2].job), -ECANCELED); /* it never asked */
    ck_assert_int_eq(larges[JOBS - 2].status[LARGEST - 1], -ECANCELED);
    fake_let_go(fake);
    ck_assert_int_eq(spw_job_wait(larges[0].job, SPW_FOREVER), 0); /* copies this one: the next one asks */
    fake_wait_held(fake, 1);
    fake_let_go(fake);
    /* The last one waits for leases that nobody but its own waiter can give back. */
    ck_assert_int_eq(spw_job_wait(larges[JOBS - 1].job, 0), -ETIMEDOUT);
    fake_wait_held(fake, 1);
    fake_let_go(fake);
    ck_assert_int_eq(spw_job_wait(larges[JOBS - 1].job, SPW_FOREVER), 0);
    ck_assert_uint_eq(spw_job_value(larges[JOBS - 1].job), LARGEST);
    no_leases_after_free();
}
END_TEST

START_TEST(test_free_in_flight)
{
    larges_submit();
    fake_wait_held(fake, JOBS_AT_ONCE);
    no_leases_after_free();
    fake_wait_held(fake, 0);
    ck_assert_int_eq(larges[0].status[0], -ECANCELED);
    ck_assert_int_eq(larges[JOBS - 1].status[0], -ECANCELED);
}
END_TEST

START_TEST(test_free_of_what_was_answered)
{
    larges_submit();
    fake_wait_held(fake, JOBS_AT_ONCE);
    fake_let_go(fake);
    ck_assert_int_eq(spw_nop(space), 0);
    no_leases_after_free();
}
END_TEST

/* More jobs than the ring has entries: what is given back finds no room at times. */
START_TEST(test_small_ring)
{
    spw_close(session);
    open_all(RING_ENTRIES_MIN);
    for (unsigned round = 0; round < 20; round++) {
        if (round == 0)
            put_and_submit(MANY, 0);
        for (unsigned i = 0; round > 0 && i < MANY; i++)
            submit(&gets[i]);
        for (unsigned i = 0; i < MANY; i++)
            take_good();
    }
    no_leases_after_free();
}
END_TEST

/* --- Ends ----------------------------------------------------------------------------------------------------------- */

START_TEST(test_death)
{
    larges_submit();
    fake_wait_held(fake, JOBS_AT_ONCE);
    ck_assert_int_eq(spw_queue_arm(queue), 0);
    fake_die(fake);
    struct pollfd pfd = {.fd = spw_queue_fd(queue), .events = POLLIN};
    ck_assert_int_eq(poll(&pfd, 1, 10000), 1);
    for (unsigned i = 0; i < JOBS;) {
        spw_job *job;
        int r = spw_queue_next(queue, &job);
        if (r == -EAGAIN) { /* the daemon has gone; whether another one comes is not known yet */
            if (spw_queue_arm(queue) == 0)
                ck_assert_int_eq(poll(&pfd, 1, 10000), 1);
            continue;
        }
        ck_assert_int_eq(r, 0);
        ck_assert_int_eq(spw_job_status(job), -ENOTCONN);
        i++;
    }
    for (unsigned i = 0; i < JOBS; i++)
        ck_assert_int_eq(larges[i].status[LARGEST - 1], -ENOTCONN);
    ck_assert_int_eq(spw_queue_arm(queue), -ENOTCONN);
}
END_TEST

/* With more jobs than entries: some were never sent. */
START_TEST(test_death_with_a_small_ring)
{
    spw_close(session);
    open_all(RING_ENTRIES_MIN);
    put_and_submit(MANY, FAKE_GROUP_HOLD);
    fake_wait_held(fake, RING_ENTRIES_MIN - 1);
    fake_die(fake);
    for (unsigned i = 0; i < MANY; i++) {
        ck_assert_int_eq(spw_job_wait(gets[i].job, SPW_FOREVER), -ENOTCONN);
        ck_assert_int_eq(gets[i].status, -ENOTCONN);
    }
    spw_queue_free(queue);
}
END_TEST

START_TEST(test_broken_protocol)
{
    put_and_submit(2, 0);
    take_good();
    take_good();
    fake_set_fault(fake, FAKE_RESULT_OUTSIDE);
    submit(&gets[0]);
    submit(&gets[1]);
    ck_assert_int_eq(spw_job_wait(gets[0].job, SPW_FOREVER), -EPROTO);
    ck_assert_int_eq(spw_job_wait(gets[1].job, SPW_FOREVER), -EPROTO);
    ck_assert_int_eq(gets[0].status, -EPROTO);
    spw_queue_free(queue);
}
END_TEST

START_TEST(test_fork)
{
    int status;

    put_and_submit(1, FAKE_GROUP_HOLD);
    fake_wait_held(fake, 1);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        spw_job *job;
        bool ok = spw_queue_next(queue, &job) == -ECHILD && spw_queue_arm(queue) == -ECHILD &&
                  spw_job_wait(gets[0].job, 0) == -ECHILD && spw_job_cancel(gets[0].job) == -ECHILD;
        spw_queue_free(queue);
        _exit(ok ? 0 : 1);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
    fake_let_go(fake);
    take_good();
}
END_TEST

/* --- Threads -------------------------------------------------------------------------------------------------------- */

#define THREADS 4
#define TURNS 2000

static uint32_t n_taken;

/* Takes jobs off the queue, checks them, and submits them again. */
static void *thread_takes(void *arg)
{
    spw_job *job;

    (void)arg;
    while (__atomic_load_n(&n_taken, __ATOMIC_RELAXED) < TURNS) {
        if (spw_queue_next(queue, &job) == -EAGAIN) {
            struct pollfd pfd = {.fd = spw_queue_fd(queue), .events = POLLIN};
            if (spw_queue_arm(queue) == 0)
                (void)poll(&pfd, 1, 10); /* another thread may take it back */
            continue;
        }
        struct get *g = spw_job_user(job);
        ck_assert_int_eq(spw_job_status(job), 0);
        ck_assert_int_eq(g->status, 0);
        verify(g);
        spw_job_free(job);
        __atomic_fetch_add(&n_taken, 1, __ATOMIC_RELAXED);
        memset(g->bytes, 0, sizeof(g->bytes));
        submit(g);
    }
    return NULL;
}

START_TEST(test_threads_take)
{
    pthread_t threads[THREADS];

    n_taken = 0;
    put_and_submit(MANY, 0);
    for (unsigned i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, thread_takes, NULL), 0);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    no_leases_after_free();
}
END_TEST

static void *thread_waits(void *arg)
{
    unsigned first = *(unsigned *)arg;

    for (unsigned i = 0; i < MANY; i++) { /* each job has a waiter in every thread */
        ck_assert_int_eq(spw_job_wait(gets[(first + i) % MANY].job, SPW_FOREVER), 0);
        verify(&gets[(first + i) % MANY]);
    }
    return NULL;
}

START_TEST(test_threads_wait)
{
    unsigned firsts[THREADS];
    pthread_t threads[THREADS];

    put_and_submit(MANY, FAKE_GROUP_HOLD);
    for (unsigned i = 0; i < THREADS; i++) {
        firsts[i] = i * MANY / THREADS;
        ck_assert_int_eq(pthread_create(&threads[i], NULL, thread_waits, &firsts[i]), 0);
    }
    fake_wait_held(fake, MANY);
    fake_let_go(fake);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    no_leases_after_free();
}
END_TEST

int main(void)
{
    const TTest *tests[] = {test_all_are_in_flight_at_once,
                            test_answers_to_releases_are_no_news,
                            test_statuses_and_sizes,
                            test_refusals,
                            test_unmapped_views_are_given_back,
                            test_cancel,
                            test_wait_times_out_and_goes_on,
                            test_more_than_may_be_leased_waits,
                            test_free_in_flight,
                            test_free_of_what_was_answered,
                            test_small_ring,
                            test_death,
                            test_death_with_a_small_ring,
                            test_broken_protocol,
                            test_fork,
                            test_threads_take,
                            test_threads_wait};
    Suite *s = suite_create("client_gets");
    TCase *tc = tcase_create("small gets");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    for (unsigned i = 0; i < ARRAY_LEN(tests); i++)
        tcase_add_test(tc, tests[i]);
    suite_add_tcase(s, tc);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
