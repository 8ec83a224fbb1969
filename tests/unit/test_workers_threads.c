/* SPDX-License-Identifier: Apache-2.0 */
/* The mailbox and the worker pool, as threads see them: run under TSan as well. */
#include <check.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/cleanup.h"
#include "include/base/limits.h"
#include "io/checksum.h"
#include "io/copy.h"
#include "io/engine_queue.h"
#include "io/workers.h"

#if defined(__SANITIZE_THREAD__)
#define UNDER_TSAN
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN
#endif
#endif

/* --- The mailbox ------------------------------------------------------------------------------------------------- */

#define N_PRODUCERS 4
#define N_MESSAGES 20000

struct numbered {
    struct engine_msg msg;
    uint32_t producer, number;
};

struct producer {
    struct engine_queue *queue;
    struct numbered *messages;
    uint32_t index;
};

static uint32_t next_number[N_PRODUCERS];
static uint32_t n_run;

static void run_numbered(struct engine_msg *msg)
{
    struct numbered *n = container_of(msg, struct numbered, msg);

    ck_assert_uint_eq(n->number, next_number[n->producer]); /* of one producer: in order, each once */
    next_number[n->producer]++;
    n_run++;
}

static void *producer_main(void *arg)
{
    struct producer *p = arg;

    for (uint32_t i = 0; i < N_MESSAGES; i++) {
        p->messages[i] = (struct numbered){.msg.run = run_numbered, .producer = p->index, .number = i};
        engine_queue_post(p->queue, &p->messages[i].msg);
    }
    return NULL;
}

/* What the engine does through io_uring: sleeps on the eventfd, without a timeout. A lost wake-up hangs the test. */
static void sleep_for_message(struct engine_queue *q)
{
    uint64_t value;

    if (!engine_queue_sleep_prepare(q))
        return;
    ck_assert_int_eq(read(q->wake_fd, &value, sizeof(value)), sizeof(value));
    engine_queue_sleep_end(q);
}

START_TEST(test_mailbox_loses_nothing_and_wakes)
{
    struct engine_queue q;
    struct producer producers[N_PRODUCERS];
    pthread_t threads[N_PRODUCERS];

    ck_assert_int_eq(engine_queue_init(&q), 0);
    memset(next_number, 0, sizeof(next_number));
    n_run = 0;
    for (uint32_t i = 0; i < N_PRODUCERS; i++) {
        producers[i] =
            (struct producer){.queue = &q, .index = i, .messages = calloc(N_MESSAGES, sizeof(struct numbered))};
        ck_assert_int_eq(pthread_create(&threads[i], NULL, producer_main, &producers[i]), 0);
    }
    while (n_run < N_PRODUCERS * N_MESSAGES)
        if (engine_queue_run(&q) == 0)
            sleep_for_message(&q);
    for (uint32_t i = 0; i < N_PRODUCERS; i++) {
        pthread_join(threads[i], NULL);
        free(producers[i].messages);
    }
    ck_assert(engine_queue_is_empty(&q));
    engine_queue_deinit(&q);
}
END_TEST

START_TEST(test_mailbox_rings_only_sleepers)
{
    struct engine_queue q;
    struct numbered m = {.msg.run = run_numbered};
    struct pollfd p;

    memset(next_number, 0, sizeof(next_number));
    ck_assert_int_eq(engine_queue_init(&q), 0);
    p = (struct pollfd){.fd = q.wake_fd, .events = POLLIN};
    engine_queue_post(&q, &m.msg);
    ck_assert_int_eq(poll(&p, 1, 0), 0);
    ck_assert(!engine_queue_sleep_prepare(&q)); /* there is a message: no sleep */
    ck_assert_uint_eq(engine_queue_run(&q), 1);
    ck_assert(engine_queue_sleep_prepare(&q));
    engine_queue_wake(&q);
    ck_assert_int_eq(poll(&p, 1, 0), 1);
    engine_queue_wake(&q); /* one is enough */
    uint64_t value = 0;
    ck_assert_int_eq(read(q.wake_fd, &value, sizeof(value)), sizeof(value));
    ck_assert_uint_eq(value, 1);
    engine_queue_deinit(&q);
}
END_TEST

/* --- The pool ---------------------------------------------------------------------------------------------------- */

struct rig {
    struct engine_queue queue;
    struct workers *workers;
};

static uint32_t n_done;

static void run_done(struct engine_msg *msg)
{
    (void)msg;
    n_done++;
}

static void rig_init(struct rig *rig, uint32_t threads, uint32_t spin_us)
{
    struct workers_config config = {.threads = threads, .spin_us = spin_us};

    n_done = 0;
    ck_assert_int_eq(engine_queue_init(&rig->queue), 0);
    ck_assert_int_eq(workers_new(&config, &rig->workers), 0);
}

static void rig_wait(struct rig *rig, uint32_t n)
{
    while (n_done < n)
        if (engine_queue_run(&rig->queue) == 0)
            sleep_for_message(&rig->queue);
}

static void rig_deinit(struct rig *rig)
{
    workers_free(rig->workers);
    engine_queue_deinit(&rig->queue);
}

static void submit_one(struct rig *rig, struct workers_job *job)
{
    struct list jobs;

    list_init(&jobs);
    job->msg.run = run_done;
    job->home = &rig->queue;
    list_push_tail(&jobs, &job->link);
    workers_submit(rig->workers, &jobs);
    ck_assert(list_is_empty(&jobs));
}

static char *random_bytes(size_t size_bytes, uint32_t seed)
{
    char *mem = aligned_alloc(4096, round_up(size_bytes, 4096));

    ck_assert_ptr_nonnull(mem);
    for (size_t i = 0; i < size_bytes; i++) {
        seed = seed * 1664525 + 1013904223;
        mem[i] = (char)(seed >> 24);
    }
    return mem;
}

/* Every operation, at sizes around the bounds: granule, streaming, part. */
START_TEST(test_copy_and_hash_give_the_right_bytes_and_sums)
{
    static const uint32_t sizes[] = {1,      4095,   4096,    65535,   65536,   65537,    262143,
                                     262144, 300001, 1048575, 1048576, 1048577, 3u << 20, (5u << 20) + 12345};
    struct rig rig;
    char *src = random_bytes(6 * MIB, 1), *dst = aligned_alloc(4096, 6 * MIB);
    uint64_t sums[96], expected[96];

    rig_init(&rig, 3, 20);
    uint32_t n = 0;
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
        for (int op = IO_WORK_HASH; op <= IO_WORK_COPY_HASH; op++) {
            struct workers_job job = {.op = (enum io_work_op)op,
                                      .src = src + i,
                                      .dst = dst + 3 * i,
                                      .sums = sums,
                                      .seed = 99,
                                      .first_granule = 7,
                                      .len_bytes = sizes[i],
                                      .result = 1};

            memset(dst, 0x5a, 6 * MIB);
            memset(sums, 0, sizeof(sums));
            checksum_granules(99, 7, src + i, sizes[i], expected);
            submit_one(&rig, &job);
            rig_wait(&rig, ++n);
            ck_assert_int_eq(job.result, 0);
            if (op != IO_WORK_HASH) {
                ck_assert_mem_eq(dst + 3 * i, src + i, sizes[i]);
                ck_assert_int_eq(dst[3 * i + sizes[i]], 0x5a);
            }
            if (op != IO_WORK_COPY)
                ck_assert_mem_eq(sums, expected, checksum_granule_count(sizes[i]) * sizeof(*sums));
        }
    rig_deinit(&rig);
    free(src);
    free(dst);
}
END_TEST

#define N_JOBS 400

/* Many jobs of many sizes from one batch, by workers that spin and by workers that sleep. */
START_TEST(test_batches)
{
    for (uint32_t spin_us = 0; spin_us <= 50; spin_us += 50) {
        struct rig rig;
        struct list jobs;
        struct workers_job job[N_JOBS];
        uint64_t(*sums)[32] = calloc(N_JOBS, sizeof(*sums)), expected[32];
        char *src = random_bytes(2 * MIB, 5);

        rig_init(&rig, 4, spin_us);
        list_init(&jobs);
        workers_submit(rig.workers, &jobs); /* nothing */
        for (uint32_t i = 0; i < N_JOBS; i++) {
            job[i] = (struct workers_job){.op = IO_WORK_HASH,
                                          .src = src,
                                          .sums = sums[i],
                                          .seed = i,
                                          .len_bytes = 1 + i * 4000 % (2u << 20),
                                          .home = &rig.queue,
                                          .msg.run = run_done};
            list_push_tail(&jobs, &job[i].link);
            if (i % 50 == 49)
                workers_submit(rig.workers, &jobs);
        }
        rig_wait(&rig, N_JOBS);
        for (uint32_t i = 0; i < N_JOBS; i++) {
            checksum_granules(i, 0, src, job[i].len_bytes, expected);
            ck_assert_int_eq(job[i].result, 0);
            ck_assert_mem_eq(sums[i], expected, checksum_granule_count(job[i].len_bytes) * sizeof(**sums));
        }
        rig_deinit(&rig);
        free(src);
        free(sums);
    }
}
END_TEST

START_TEST(test_poisoned_memory_is_efault)
{
    struct rig rig;
    char src[100] = "x", dst[100];
    uint32_t healthy = 0, poisoned = 1;
    struct workers_job a = {.op = IO_WORK_COPY, .src = src, .dst = dst, .len_bytes = 100, .src_poisoned = &poisoned};
    struct workers_job b = {.op = IO_WORK_COPY, .src = src, .dst = dst, .len_bytes = 100, .dst_poisoned = &poisoned};
    struct workers_job c = {.op = IO_WORK_COPY,
                            .src = src,
                            .dst = dst,
                            .len_bytes = 100,
                            .src_poisoned = &healthy,
                            .dst_poisoned = &healthy};

    rig_init(&rig, 1, 0);
    submit_one(&rig, &a);
    submit_one(&rig, &b);
    submit_one(&rig, &c);
    rig_wait(&rig, 3);
    ck_assert_int_eq(a.result, -EFAULT);
    ck_assert_int_eq(b.result, -EFAULT);
    ck_assert_int_eq(c.result, 0);
    /* The same without a worker. */
    memset(dst, 0, sizeof(dst));
    ck_assert_int_eq(workers_do_here(&a, NULL), -EFAULT);
    ck_assert_int_eq(workers_do_here(&b, NULL), -EFAULT);
    ck_assert_int_eq(workers_do_here(&c, NULL), 0);
    ck_assert_mem_eq(dst, src, sizeof(dst));
    rig_deinit(&rig);
}
END_TEST

/* Whoever changes the source while it is copied gets some mix of bytes, but the sums are of the bytes that arrived. */
#if !defined(UNDER_TSAN) /* a race on purpose */
static void *scribbler_main(void *arg)
{
    uint64_t *mem = arg;

    for (uint64_t i = 1; !load_relaxed(&mem[0]); i++)
        for (size_t at = 64; at < MIB / 8; at += 97)
            store_relaxed(&mem[at], i);
    return NULL;
}

START_TEST(test_sums_are_of_what_was_copied)
{
    struct rig rig;
    uint64_t *src = calloc(2, MIB), *dst = calloc(2, MIB), sums[32], expected[32];
    pthread_t scribbler;

    rig_init(&rig, 2, 0);
    ck_assert_int_eq(pthread_create(&scribbler, NULL, scribbler_main, src), 0);
    for (uint32_t i = 1; i <= 200; i++) {
        struct workers_job job = {.op = IO_WORK_COPY_HASH,
                                  .src = src,
                                  .dst = dst,
                                  .len_bytes = i % 2 ? 128u << 10 : 2u << 20,
                                  .dst_is_ours = i % 4 < 2,
                                  .sums = sums,
                                  .seed = i};

        submit_one(&rig, &job);
        rig_wait(&rig, i);
        checksum_granules(i, 0, dst, job.len_bytes, expected);
        ck_assert_mem_eq(sums, expected, checksum_granule_count(job.len_bytes) * sizeof(*sums));
    }
    store_relaxed(&src[0], UINT64_C(1));
    pthread_join(scribbler, NULL);
    rig_deinit(&rig);
    free(src);
    free(dst);
}
END_TEST
#endif

START_TEST(test_free_does_what_was_submitted)
{
    struct rig rig;
    struct workers_job job[20];
    char *src = random_bytes(2 * MIB, 3), *dst = malloc(20 * 2 * MIB);

    rig_init(&rig, 2, 0);
    for (size_t i = 0; i < ARRAY_LEN(job); i++) {
        job[i] = (struct workers_job){.op = IO_WORK_COPY, .src = src, .dst = dst + i * 2 * MIB, .len_bytes = 2u << 20};
        submit_one(&rig, &job[i]);
    }
    workers_free(rig.workers);
    rig.workers = NULL;
    engine_queue_run(&rig.queue);
    ck_assert_uint_eq(n_done, ARRAY_LEN(job));
    for (size_t i = 0; i < ARRAY_LEN(job); i++)
        ck_assert_mem_eq(dst + i * 2 * MIB, src, 2 * MIB);
    rig_deinit(&rig);
    free(src);
    free(dst);
}
END_TEST

START_TEST(test_bad_configs)
{
    struct workers *w = NULL;
    struct workers_config config = {.threads = 0};

    ck_assert_int_eq(workers_new(&config, &w), -EINVAL);
    config.threads = WORKERS_MAX + 1;
    ck_assert_int_eq(workers_new(&config, &w), -EINVAL);
    ck_assert_ptr_null(w);
    workers_free(NULL);
}
END_TEST

START_TEST(test_streamed_copies_at_every_alignment)
{
    char *src = random_bytes(1024, 9), dst[1200];

    for (size_t at = 0; at < 70; at++)
        for (size_t len = 0; len < 400; len += 13) {
            memset(dst, 0x77, sizeof(dst));
            copy_stream(dst + at, src + at / 3, len);
            ck_assert_mem_eq(dst + at, src + at / 3, len);
            ck_assert_int_eq(dst[at + len], 0x77);
            if (at > 0)
                ck_assert_int_eq(dst[at - 1], 0x77);
        }
    free(src);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("workers");
    TCase *t = tcase_create("workers");
    SRunner *sr = srunner_create(s);

    tcase_set_timeout(t, 100);
    tcase_add_test(t, test_mailbox_loses_nothing_and_wakes);
    tcase_add_test(t, test_mailbox_rings_only_sleepers);
    tcase_add_test(t, test_copy_and_hash_give_the_right_bytes_and_sums);
    tcase_add_test(t, test_batches);
    tcase_add_test(t, test_poisoned_memory_is_efault);
#if !defined(UNDER_TSAN)
    tcase_add_test(t, test_sums_are_of_what_was_copied);
#endif
    tcase_add_test(t, test_free_does_what_was_submitted);
    tcase_add_test(t, test_bad_configs);
    tcase_add_test(t, test_streamed_copies_at_every_alignment);
    suite_add_tcase(s, t);
    srunner_set_fork_status(sr, CK_NOFORK); /* TSan and forks of threaded programs do not go together */
    srunner_run_all(sr, CK_NORMAL);
    int n_failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return n_failed == 0 ? 0 : 1;
}
