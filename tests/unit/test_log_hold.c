/* SPDX-License-Identifier: Apache-2.0 */
/* Puts that wait for their transaction, beside a list that is gone through each time. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "include/base/mix.h"
#include "io/log_hold.h"

#define WAITING_MAX 4096

static struct {
    uint64_t txn, generation;
    bool is_dropped;
} waiting[WAITING_MAX];
static uint32_t n_waiting;
static uint64_t given[WAITING_MAX];
static uint32_t n_given;
static uint64_t seed;

static uint64_t below(uint64_t n)
{
    return splitmix64_next(&seed) % n;
}

static int give(void *ctx, const struct log_record *put)
{
    const int *fails_at = ctx;

    ck_assert_uint_lt(n_given, WAITING_MAX);
    given[n_given++] = put->put.entry.generation;
    return fails_at && (int)n_given == *fails_at ? -EUCLEAN : 0;
}

static void add(struct log_hold *h, uint64_t txn, uint64_t generation)
{
    const struct log_record put = {.type = FORMAT_ENTRY_PUT, .put = {.txn = txn, .entry = {.generation = generation}}};

    ck_assert_int_eq(log_hold_add(h, &put), 0);
    waiting[n_waiting].txn = txn;
    waiting[n_waiting].generation = generation;
    waiting[n_waiting++].is_dropped = false;
}

static void commit(struct log_hold *h, uint64_t txn)
{
    uint32_t kept = 0, n = 0;

    n_given = 0;
    ck_assert_int_eq(log_hold_commit(h, txn, give, NULL), 0);
    for (uint32_t i = 0; i < n_waiting; i++) {
        if (waiting[i].txn != txn)
            waiting[kept++] = waiting[i];
        else if (!waiting[i].is_dropped)
            ck_assert_uint_eq(given[n++], waiting[i].generation);
    }
    ck_assert_uint_eq(n, n_given);
    n_waiting = kept;
}

static void drop(struct log_hold *h, uint64_t generation)
{
    log_hold_drop(h, generation);
    for (uint32_t i = 0; i < n_waiting; i++)
        waiting[i].is_dropped |= waiting[i].generation == generation;
}

START_TEST(what_waits_comes_in_its_order)
{
    uint64_t generation = 0;
    struct log_hold h;

    log_hold_init(&h);
    commit(&h, 1); /* of nothing */
    drop(&h, 1);
    for (uint32_t i = 0; i < 100000; i++) {
        switch (below(8)) {
        case 0:
            commit(&h, 1 + below(40));
            break;
        case 1:
            drop(&h, 1 + below(generation + 1));
            break;
        case 2:
            drop(&h, n_waiting > 0 ? waiting[below(n_waiting)].generation : 0);
            break;
        default:
            if (n_waiting < WAITING_MAX)
                add(&h, 1 + below(40), ++generation);
        }
    }
    ck_assert_uint_le(h.n, WAITING_MAX); /* places are used again */
    for (uint64_t txn = 1; txn <= 40; txn++)
        commit(&h, txn);
    ck_assert_uint_eq(n_waiting, 0);
    log_hold_deinit(&h);
}
END_TEST

/* What a device says need not be true: the same generation twice. */
START_TEST(a_generation_that_comes_twice_is_dropped_twice)
{
    struct log_hold h;

    log_hold_init(&h);
    add(&h, 1, 7);
    add(&h, 2, 7);
    add(&h, 2, 8);
    drop(&h, 7);
    commit(&h, 1);
    ck_assert_uint_eq(n_given, 0);
    commit(&h, 2);
    ck_assert_uint_eq(n_given, 1);
    log_hold_deinit(&h);
}
END_TEST

START_TEST(a_failure_ends_it)
{
    int fails_at = 2;
    struct log_hold h;

    log_hold_init(&h);
    for (uint64_t i = 1; i <= 5; i++)
        add(&h, 1, i);
    n_given = 0;
    ck_assert_int_eq(log_hold_commit(&h, 1, give, &fails_at), -EUCLEAN);
    ck_assert_uint_eq(n_given, 2);
    ck_assert_int_eq(log_hold_commit(&h, 1, give, NULL), 0);
    ck_assert_uint_eq(n_given, 2);
    log_hold_deinit(&h);
}
END_TEST

/* A million that wait in vain cost those nothing that come and go beside them. Else this takes hours. */
START_TEST(what_waits_in_vain_costs_nothing)
{
    struct log_record put = {.type = FORMAT_ENTRY_PUT};
    struct log_hold h;

    log_hold_init(&h);
    for (uint64_t i = 1; i <= 1000000; i++) {
        put.put.txn = 1 + i % 3;
        put.put.entry.generation = i;
        ck_assert_int_eq(log_hold_add(&h, &put), 0);
    }
    for (uint64_t i = 1; i <= 1000000; i++) {
        put.put.txn = 10 + i;
        put.put.entry.generation = 1000000 + i;
        ck_assert_int_eq(log_hold_add(&h, &put), 0);
        log_hold_drop(&h, 1000000 + i);
        ck_assert_int_eq(log_hold_commit(&h, 10 + i, give, NULL), 0);
    }
    ck_assert_uint_eq(h.n, 1000001);
    log_hold_deinit(&h);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("log_hold");
    TCase *tc = tcase_create("log_hold");

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, what_waits_comes_in_its_order);
    tcase_add_test(tc, a_generation_that_comes_twice_is_dropped_twice);
    tcase_add_test(tc, a_failure_ends_it);
    tcase_add_test(tc, what_waits_in_vain_costs_nothing);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
