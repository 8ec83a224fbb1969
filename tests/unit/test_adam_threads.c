/* SPDX-License-Identifier: Apache-2.0 */
/* The optimizer step by several threads, and for several callers: run under TSan as well. Forks, and the workers' life. */
#include <check.h>
#include <errno.h>
#include <fenv.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "tests/unit/support/adam_rig.h"

#define TENSORS 4

static const size_t sizes[TENSORS] = {40 * SPW_TRAIN_BLOCK + 100, 1, 25 * SPW_TRAIN_BLOCK, 777};

static void tensors_new(struct spw_adam_slice *ret_tensors, unsigned seed)
{
    for (unsigned i = 0; i < TENSORS; i++)
        ret_tensors[i] = adam_rig_new(sizes[i], i % 2 ? SPW_DTYPE_F32 : SPW_DTYPE_BF16, SPW_DTYPE_BF16, seed + i);
}

static void tensors_free(struct spw_adam_slice *tensors)
{
    for (unsigned i = 0; i < TENSORS; i++)
        adam_rig_free(&tensors[i]);
}

/* Some steps with these workers, beside the same ones alone. */
static void steps(spw_workers *workers, unsigned seed, unsigned n_steps)
{
    struct spw_adam_options o = ADAM_RIG_OPTIONS;
    struct spw_adam_slice alone[TENSORS], shared[TENSORS];
    struct spw_grad_stat alone_stat, shared_stat, before;

    tensors_new(alone, seed);
    tensors_new(shared, seed);
    for (o.step = 1; o.step <= n_steps; o.step++) {
        ck_assert_int_eq(spw_adam(NULL, &o, alone, TENSORS, &alone_stat), 0);
        ck_assert_int_eq(spw_grad_stat(workers, shared, TENSORS, &before), 0);
        ck_assert_int_eq(spw_adam(workers, &o, shared, TENSORS, &shared_stat), 0);
        ck_assert(adam_rig_stats_equal(&alone_stat, &shared_stat));
        ck_assert(adam_rig_stats_equal(&alone_stat, &before));
    }
    for (unsigned i = 0; i < TENSORS; i++)
        adam_rig_assert_equal(&alone[i], &shared[i]);
    tensors_free(alone);
    tensors_free(shared);
}

START_TEST(test_threads_do_not_matter)
{
    static const unsigned counts[] = {1, 2, 3, 5, 16};
    spw_workers *workers;

    ck_assert_int_eq(spw_workers_new(counts[_i], &workers), 0);
    ck_assert_uint_eq(spw_workers_count(workers), counts[_i]);
    steps(workers, (unsigned)_i, 4);
    spw_workers_free(workers);
}
END_TEST

/* Threads have the rounding mode of who made them, and callers theirs. */
START_TEST(test_rounding_modes_do_not_matter)
{
    spw_workers *workers;

    ck_assert_int_eq(fesetround(FE_UPWARD), 0);
    int r = spw_workers_new(4, &workers);
    fesetround(FE_TONEAREST);
    ck_assert_int_eq(r, 0);
    steps(workers, 50, 4);
    spw_workers_free(workers);
}
END_TEST

static void *caller_main(void *arg)
{
    static unsigned seeds;

    steps(arg, 100 * (1 + __atomic_fetch_add(&seeds, 1, __ATOMIC_RELAXED)), 3);
    return NULL;
}

START_TEST(test_callers_take_turns)
{
    spw_workers *workers;
    pthread_t callers[3];

    ck_assert_int_eq(spw_workers_new(3, &workers), 0);
    for (unsigned i = 0; i < ARRAY_LEN(callers); i++)
        ck_assert_int_eq(pthread_create(&callers[i], NULL, caller_main, workers), 0);
    for (unsigned i = 0; i < ARRAY_LEN(callers); i++)
        ck_assert_int_eq(pthread_join(callers[i], NULL), 0);
    spw_workers_free(workers);
}
END_TEST

/* More blocks than one round has sums for: tensors of one element, many of which are one. */
START_TEST(test_more_than_a_round)
{
    enum { N = 2 * CLIENT_TRAIN_ROUND_BLOCKS + 3 };
    struct spw_adam_slice *slices = calloc(N, sizeof(*slices));
    struct spw_adam_slice tensor = adam_rig_new(1000, SPW_DTYPE_F32, 0, 1);
    struct spw_grad_stat alone, shared;
    spw_workers *workers;

    ck_assert_ptr_nonnull(slices);
    for (size_t i = 0; i < N; i++)
        slices[i] = adam_rig_part(&tensor, i * 7919 % tensor.n, 1);
    ck_assert_int_eq(spw_workers_new(3, &workers), 0);
    for (size_t n = N - 4; n <= N; n++) {
        ck_assert_int_eq(spw_grad_stat(NULL, slices, n, &alone), 0);
        ck_assert_int_eq(spw_grad_stat(workers, slices, n, &shared), 0);
        ck_assert(adam_rig_stats_equal(&alone, &shared));
    }
    /* Exactly full rounds. */
    ck_assert_int_eq(spw_grad_stat(NULL, slices, 2 * (size_t)CLIENT_TRAIN_ROUND_BLOCKS, &alone), 0);
    ck_assert_int_eq(spw_grad_stat(workers, slices, 2 * (size_t)CLIENT_TRAIN_ROUND_BLOCKS, &shared), 0);
    ck_assert(adam_rig_stats_equal(&alone, &shared));
    spw_workers_free(workers);
    adam_rig_free(&tensor);
    free(slices);
}
END_TEST

/* --- Life ------------------------------------------------------------------------------------------------------------- */

static double process_ms(void)
{
    struct timespec ts;

    ck_assert_int_eq(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts), 0);
    return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

START_TEST(test_idle_workers_sleep)
{
    spw_workers *workers;

    ck_assert_int_eq(spw_workers_new(4, &workers), 0);
    steps(workers, 1, 1);
    usleep(100000);
    double before_ms = process_ms();
    usleep(500000);
    ck_assert_double_lt(process_ms() - before_ms, 5);
    spw_workers_free(workers);
}
END_TEST

START_TEST(test_new_and_free)
{
    spw_workers *workers = NULL;

    ck_assert_int_eq(spw_workers_new(CLIENT_WORKERS_MAX + 1, &workers), -EINVAL);
    ck_assert_ptr_null(workers);
    ck_assert_int_eq(spw_workers_new(2, NULL), -EINVAL);
    ck_assert_int_eq(spw_workers_new(0, &workers), 0);
    ck_assert_uint_ge(spw_workers_count(workers), 1);
    spw_workers_free(workers);
    spw_workers_free(NULL);
    ck_assert_uint_eq(spw_workers_count(NULL), 1);
    for (unsigned i = 0; i < 50; i++) {
        ck_assert_int_eq(spw_workers_new(1 + i % 5, &workers), 0);
        if (i % 2)
            steps(workers, i, 1);
        spw_workers_free(workers);
    }
}
END_TEST

static int in_child(spw_workers *parents)
{
    static const float grad[2] = {3, 4};
    struct spw_adam_slice slice = {.n = 2, .grad = grad, .grad_dtype = SPW_DTYPE_F32};
    struct spw_adam_options o = ADAM_RIG_OPTIONS;
    float copied[2];
    struct spw_copy copy = {copied, grad, sizeof(copied)};
    struct spw_grad_stat stat;
    spw_workers *own;

    if (spw_grad_stat(parents, &slice, 1, &stat) != -ECHILD || !strstr(spw_error_text(), "fork"))
        return 1;
    if (spw_adam(parents, &o, NULL, 0, NULL) != -ECHILD)
        return 2;
    if (spw_copy(parents, &copy, 1) != -ECHILD)
        return 5;
    if (spw_grad_stat(NULL, &slice, 1, &stat) != 0 || stat.sum_squares < 25 || stat.sum_squares > 25)
        return 3;
    spw_workers_free(parents);
#ifndef BASE_TSAN /* it does not allow threads in a child of a program with threads */
    if (spw_workers_new(2, &own) != 0 || spw_grad_stat(own, &slice, 1, &stat) != 0)
        return 4;
    spw_workers_free(own);
#else
    (void)own;
#endif
    return 0;
}

START_TEST(test_fork)
{
    spw_workers *workers;
    int status;

    ck_assert_int_eq(spw_workers_new(3, &workers), 0);
    steps(workers, 1, 1);
    pid_t pid = fork();
    if (pid == 0)
        _exit(in_child(workers));
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
    steps(workers, 1, 1);
    spw_workers_free(workers);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("adam_threads");
    TCase *t = tcase_create("threads");

    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, test_threads_do_not_matter, 0, 5);
    tcase_add_test(t, test_rounding_modes_do_not_matter);
    tcase_add_test(t, test_callers_take_turns);
    tcase_add_test(t, test_more_than_a_round);
    tcase_add_test(t, test_idle_workers_sleep);
    tcase_add_test(t, test_new_and_free);
    tcase_add_test(t, test_fork);
    suite_add_tcase(s, t);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
