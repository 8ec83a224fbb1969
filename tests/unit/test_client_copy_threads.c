/* SPDX-License-Identifier: Apache-2.0 */
/* The copy threads of a session, as several owners of batches and jobs see them: run under TSan as well. */
#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "client/lib/client.h"

#define OWNERS 3
#define ROUNDS 200
#define OPS_MAX 24
#define OP_BYTES_MAX (3 * CLIENT_COPY_SLICE_BYTES)

static struct client_copy *copy;

struct owner {
    unsigned seed;
    pthread_t thread;
    uint8_t *from, *to;
};

static size_t op_bytes(unsigned *seed)
{
    static const size_t sizes[] = {1, 4095, CLIENT_STREAM_BYTES, CLIENT_COPY_SLICE_BYTES, CLIENT_COPY_SLICE_BYTES + 1};
    unsigned i = (unsigned)rand_r(seed);

    return i % 2 ? sizes[i / 2 % ARRAY_LEN(sizes)] : 1 + (size_t)rand_r(seed) % OP_BYTES_MAX;
}

/* Batches as a transfer makes them: two at a time, the next one begun before the last one is finished. */
static void *owner_main(void *arg)
{
    struct owner *o = arg;
    struct client_copy_op ops[2][OPS_MAX];
    struct client_copy_batch batches[2];

    for (unsigned round = 0; round < ROUNDS; round++) {
        size_t at = 0, from = (size_t)rand_r(&o->seed) % 64;

        memset(o->to, 0xee, 2 * OPS_MAX * (size_t)OP_BYTES_MAX);
        for (unsigned b = 0; b < 2; b++) {
            size_t n = (size_t)rand_r(&o->seed) % OPS_MAX;
            for (size_t i = 0; i < n; i++) {
                size_t size_bytes = op_bytes(&o->seed);
                ops[b][i] = (struct client_copy_op){o->to + at, o->from + from + at, size_bytes};
                at += size_bytes;
            }
            batches[b].ops = ops[b];
            batches[b].n_ops = n;
            client_copy_begin(copy, &batches[b], rand_r(&o->seed) % 4 > 0);
        }
        client_copy_work(copy, &batches[0], (uint64_t)rand_r(&o->seed) % OP_BYTES_MAX);
        client_copy_finish(copy, &batches[0]);
        client_copy_finish(copy, &batches[1]);
        ck_assert_int_eq(memcmp(o->to, o->from + from, at), 0);
        ck_assert_uint_eq(o->to[at], 0xee);
    }
    return NULL;
}

START_TEST(test_batches_of_several_owners)
{
    struct owner owners[OWNERS];
    size_t size_bytes = 2 * OPS_MAX * (size_t)OP_BYTES_MAX + 64;

    ck_assert_int_eq(client_copy_new(2, &copy), 0);
    for (unsigned i = 0; i < OWNERS; i++) {
        owners[i] = (struct owner){.seed = i + 1, .from = malloc(size_bytes), .to = malloc(size_bytes)};
        for (size_t k = 0; k < size_bytes; k++)
            owners[i].from[k] = (uint8_t)(k * 31 + k / 251 + i);
        ck_assert_int_eq(pthread_create(&owners[i].thread, NULL, owner_main, &owners[i]), 0);
    }
    for (unsigned i = 0; i < 100; i++)
        (void)client_copy_wake(copy, i % 2 ? UINT64_MAX : 1);
    for (unsigned i = 0; i < OWNERS; i++) {
        ck_assert_int_eq(pthread_join(owners[i].thread, NULL), 0);
        free(owners[i].from);
        free(owners[i].to);
    }
    client_copy_free(copy);
}
END_TEST

static uint32_t n_run;

static void task_run(struct client_task *task)
{
    (void)task;
    __atomic_fetch_add(&n_run, 1, __ATOMIC_RELAXED);
}

/* Each is run once, and all before the threads are gone. */
START_TEST(test_tasks)
{
    static struct client_task tasks[1000];

    ck_assert_int_eq(client_copy_new(2, &copy), 0);
    for (unsigned i = 0; i < ARRAY_LEN(tasks); i++) {
        tasks[i].run = task_run;
        ck_assert_int_eq(client_copy_post(copy, &tasks[i]), 0);
    }
    client_copy_free(copy);
    ck_assert_uint_eq(n_run, ARRAY_LEN(tasks));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("client_copy_threads");
    TCase *t = tcase_create("copy threads");

    tcase_set_timeout(t, 120);
    tcase_add_test(t, test_batches_of_several_owners);
    tcase_add_test(t, test_tasks);
    suite_add_tcase(s, t);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
