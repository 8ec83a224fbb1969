/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hit rates on one hour of a real chat service (Mooncake's conversation trace, FAST'25). The trace is not part of the
 * repository: where it is not found, the test skips. What is expected are the figures of single-tier caches published
 * with the design, computed by independent models: hits a reference, in tenths of a percent.
 */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/unit/support/trace.h"

#define TRACE_NAME "mooncake_conversation.jsonl"

static struct trace trace;

static const struct {
    uint32_t permille; /* capacity: share of the distinct blocks */
    double lru, s3fifo, arc, chain;
} table[] = {
    {5, 4.4, 5.5, 4.9, 8.0},       {20, 7.9, 10.7, 9.3, 15.1},    {50, 19.5, 18.8, 21.2, 23.4},
    {100, 27.8, 24.6, 28.4, 30.0}, {300, 35.8, 35.4, 34.9, 35.9},
};

static double hit_percent(const struct policy_ops *ops, const struct replay *how)
{
    int64_t hits = trace_replay(&trace, ops, how);

    ck_assert_msg(hits >= 0, "%s: error %d", ops->name, (int)hits);
    return 100.0 * (double)hits / (double)trace.n_refs;
}

/* Every row of the table, to within `tolerance` points. */
static void check_table(struct replay how, double tolerance)
{
    for (size_t i = 0; i < ARRAY_LEN(table); i++) {
        how.capacity = (uint64_t)trace.n_distinct * table[i].permille / 1000;
        double lru = hit_percent(&policy_lru, &how);
        double s3fifo = hit_percent(&policy_s3fifo, &how);
        double arc = hit_percent(&policy_arc, &how);

        printf("%4.1f %%: lru %.2f (%.1f)  s3-fifo %.2f (%.1f)  arc %.2f (%.1f)\n", table[i].permille / 10.0, lru,
               table[i].lru, s3fifo, table[i].s3fifo, arc, table[i].arc);
        ck_assert_double_eq_tol(lru, table[i].lru, tolerance);
        ck_assert_double_eq_tol(s3fifo, table[i].s3fifo, tolerance);
        ck_assert_double_eq_tol(arc, table[i].arc, tolerance);
    }
}

/* The chain policy's column, to within `tolerance` points, however engines tell of their requests. */
static void check_chain(struct replay how, const char *what, double tolerance)
{
    for (size_t i = 0; i < ARRAY_LEN(table); i++) {
        how.capacity = (uint64_t)trace.n_distinct * table[i].permille / 1000;
        double chain = hit_percent(&policy_chain_hazard, &how);

        printf("%4.1f %%: chain, %s: %.2f (%.1f)\n", table[i].permille / 10.0, what, chain, table[i].chain);
        ck_assert_double_ge(chain, table[i].chain - tolerance);
    }
}

START_TEST(adaptive_is_about_as_good_as_the_best)
{
    for (size_t i = 0; i < ARRAY_LEN(table); i++) {
        struct replay how = {.capacity = (uint64_t)trace.n_distinct * table[i].permille / 1000, .sectors = 16};
        double best = fmax(table[i].lru, fmax(table[i].s3fifo, table[i].arc));
        double adaptive = hit_percent(&policy_adaptive, &how);

        printf("%4.1f %%: adaptive %.2f (%.1f)\n", table[i].permille / 10.0, adaptive, best);
        ck_assert_double_ge(adaptive, best - 0.5);
    }
}
END_TEST

START_TEST(chains_that_are_looked_up)
{
    check_chain((struct replay){.sectors = 16, .check_every = 50000}, "looked up, block by block", 0.3);
    check_chain((struct replay){.sectors = 16, .list_max = 114, .store_max = 16}, "looked up, stored by 16", 0.3);
    check_chain((struct replay){.sectors = 16, .list_max = 114, .store_max = 32}, "looked up, stored by 32", 0.3);
}
END_TEST

START_TEST(chains_that_are_only_used)
{
    check_chain((struct replay){.sectors = 16, .list_max = 256, .store_max = 32, .unnamed = true}, "acquired whole",
                0.3);
    check_chain((struct replay){.sectors = 16, .store_max = 32, .prefix_only = true}, "prefix and rest", 0.3);
}
END_TEST

START_TEST(trace_is_the_one_of_the_table)
{
    ck_assert_uint_eq(trace.n_requests, 12031);
    ck_assert_uint_eq(trace.n_refs, 288500);
    ck_assert_uint_eq(trace.n_distinct, 182790);
}
END_TEST

/* The table has one decimal, so 0.05 of this is its rounding. */
START_TEST(rates_are_those_of_the_table)
{
    check_table((struct replay){.sectors = 1}, 0.1);
}
END_TEST

/* 64 KiB a block: shares of the capacity round otherwise, nothing else changes. */
START_TEST(rates_hold_for_larger_blocks)
{
    check_table((struct replay){.sectors = 16}, 0.1);
}
END_TEST

/* As in the daemon: a watermark keeps 1 % free, and 32 insertions are on their way. */
START_TEST(rates_hold_under_watermarks)
{
    check_table((struct replay){.sectors = 16, .low_percent = 99, .n_in_flight = 32, .check_every = 100000}, 0.5);
}
END_TEST

int main(void)
{
    char path[PATH_MAX];
    uint32_t bad_line = 0;

    if (!trace_find(TRACE_NAME, path)) {
        printf("SKIP: %s not found: set SPILLWAY_TRACE to it, or SPILLWAY_DATA to a folder with traces/\n", TRACE_NAME);
        return 77;
    }
    int r = trace_load(path, &trace, &bad_line);
    if (r < 0) {
        fprintf(stderr, "%s: error %d, line %u\n", path, r, bad_line);
        return EXIT_FAILURE;
    }

    Suite *s = suite_create("policy_trace");
    TCase *tc = tcase_create("rates");

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, trace_is_the_one_of_the_table);
    tcase_add_test(tc, rates_are_those_of_the_table);
    tcase_add_test(tc, rates_hold_for_larger_blocks);
    tcase_add_test(tc, rates_hold_under_watermarks);
    tcase_add_test(tc, adaptive_is_about_as_good_as_the_best);
    tcase_add_test(tc, chains_that_are_looked_up);
    tcase_add_test(tc, chains_that_are_only_used);
    suite_add_tcase(s, tc);

    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    trace_deinit(&trace);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
