/* SPDX-License-Identifier: Apache-2.0 */
/* The benchmarks' statistics, on inputs whose answers are known, and what becomes of an interval beside a goal. */
#include <check.h>
#include <json-c/json.h>
#include <stdlib.h>

/* Programs are no libraries, so the files themselves are compiled in. NOLINTBEGIN(bugprone-suspicious-include) */
#include "client/bench/figure.c"
#include "client/bench/pairs.c"

/* NOLINTEND(bugprone-suspicious-include) */

/* Published table of ranks for a 95 % interval of the median (two-sided sign test at 5 %). */
START_TEST(test_ranks_are_the_published_ones)
{
    static const struct {
        uint32_t n, rank;
    } table[] = {{1, 0},  {5, 0},  {6, 1},  {8, 1},  {9, 2},   {11, 2},
                 {12, 3}, {15, 4}, {20, 6}, {25, 8}, {50, 18}, {100, 40}};

    for (size_t i = 0; i < ARRAY_LEN(table); i++)
        ck_assert_uint_eq(pairs_rank(table[i].n), table[i].rank);
    ck_assert_uint_gt(pairs_rank(SAMPLES_MAX), 200);
}
END_TEST

START_TEST(test_median_and_interval)
{
    double odd[] = {9, 1, 8, 2, 7, 3, 6, 4, 5}, even[] = {4, 1, 3, 2}, six[] = {6, 1, 5, 2, 4, 3};
    struct estimate e = pairs_estimate(odd, 9);

    ck_assert_double_eq(e.median, 5);
    ck_assert_double_eq(e.low, 2);
    ck_assert_double_eq(e.high, 8);
    ck_assert_uint_eq(e.n, 9);
    ck_assert_double_eq(pairs_estimate(even, 4).median, 2.5);
    e = pairs_estimate(six, 6);
    ck_assert_double_eq(e.low, 1);
    ck_assert_double_eq(e.high, 6);
}
END_TEST

/* The interval misses the true median in at most 5 of 100 cases, however skewed the noise is. */
START_TEST(test_interval_covers_the_median)
{
    enum { TRIES = 4000, N = 15 };
    unsigned missed = 0;

    srand48(7);
    for (int t = 0; t < TRIES; t++) {
        double x[N];
        for (int i = 0; i < N; i++)
            x[i] = -log(1 - drand48()); /* exponential: median ln 2 */
        struct estimate e = pairs_estimate(x, N);
        missed += e.low > M_LN2 || e.high < M_LN2;
    }
    ck_assert_uint_lt(missed, TRIES * 6 / 100);
    ck_assert_uint_gt(missed, TRIES * 1 / 100); /* and it is not merely wide: 15 samples miss in 3.5 % */
}
END_TEST

START_TEST(test_narrow)
{
    ck_assert(pairs_is_narrow(&(struct estimate){.median = 100, .low = 99.6, .high = 100.4, .n = 12}, 0.01));
    ck_assert(!pairs_is_narrow(&(struct estimate){.median = 100, .low = 99, .high = 101, .n = 12}, 0.01));
    ck_assert(!pairs_is_narrow(&(struct estimate){.median = 100, .low = 100, .high = 100, .n = 5}, 0.01));
}
END_TEST

static enum figure_verdict verdict(enum figure_goal kind, double goal, double low, double high, uint32_t n)
{
    static struct figures figures;

    figures.n = 0;
    struct figure *f = figure_add(&figures, "ns", 3, "x");
    figure_beside(f, "y", 2);
    figure_measured(f, &(struct estimate){.median = (low + high) / 2, .low = low, .high = high, .n = n});
    figure_goal_ratio(f, kind, goal);
    return figure_verdict(f);
}

START_TEST(test_the_worse_end_decides)
{
    ck_assert_int_eq(verdict(GOAL_AT_MOST, 1.5, 1.2, 1.5, 6), FIGURE_HOLDS);
    ck_assert_int_eq(verdict(GOAL_AT_MOST, 1.5, 1.2, 1.6, 6), FIGURE_NOISY);
    ck_assert_int_eq(verdict(GOAL_AT_MOST, 1.5, 1.51, 1.6, 6), FIGURE_MISSED);
    ck_assert_int_eq(verdict(GOAL_AT_LEAST, 0.95, 0.95, 1.1, 6), FIGURE_HOLDS);
    ck_assert_int_eq(verdict(GOAL_AT_LEAST, 0.95, 0.9, 1.1, 6), FIGURE_NOISY);
    ck_assert_int_eq(verdict(GOAL_AT_LEAST, 0.95, 0.8, 0.9, 6), FIGURE_MISSED);
    ck_assert_int_eq(verdict(GOAL_AT_MOST, 1.5, 1, 1, 5), FIGURE_NOISY); /* too few to say */
    ck_assert_int_eq(verdict(GOAL_AT_MOST, 1.5, NAN, NAN, 6), FIGURE_MISSED);
}
END_TEST

START_TEST(test_only_what_was_counted_fails_a_run)
{
    static struct figures figures;

    figures.n = 0;
    struct figure *measured = figure_add(&figures, "ns", 100, "slow");
    figure_goal(measured, GOAL_AT_MOST, 10);
    figure_measured(measured, &(struct estimate){.median = 100, .low = 99, .high = 101, .n = 9});
    ck_assert_int_eq(figure_verdict(measured), FIGURE_MISSED);
    ck_assert(figures_hold(&figures));
    figure_goal(figure_add(&figures, "", 1, "wrong bytes"), GOAL_AT_MOST, 0);
    ck_assert(!figures_hold(&figures));
}
END_TEST

START_TEST(test_json_has_the_form)
{
    static struct figures figures;
    char *text = NULL;
    size_t size = 0;

    figures.n = 0;
    struct figure *f = figure_add(&figures, "ns", 300, "nop");
    figure_beside(f, "raw ring", 200);
    figure_measured(f, &(struct estimate){.median = 1.4, .low = 1.3, .high = 1.6, .n = 7});
    figure_goal_ratio(f, GOAL_AT_MOST, 1.5);
    (void)figure_add(&figures, "", 1, "alone");
    FILE *out = open_memstream(&text, &size);
    ck_assert_int_eq(figures_print_json(&figures, out), 0);
    fclose(out);
    struct json_object *list = json_tokener_parse(text), *o = json_object_array_get_idx(list, 0);
    ck_assert_double_eq(json_object_get_double(json_object_object_get(o, "ratio")), 1.4);
    ck_assert_str_eq(json_object_get_string(json_object_object_get(o, "holds")), "noisy");
    ck_assert_str_eq(json_object_get_string(json_object_object_get(o, "goal_of")), "ratio ≤");
    ck_assert_int_eq(json_object_get_int(json_object_object_get(o, "samples")), 7);
    o = json_object_array_get_idx(list, 1);
    ck_assert_ptr_null(json_object_object_get(o, "holds"));
    ck_assert_ptr_null(json_object_object_get(o, "beside"));
    json_object_put(list);
    free(text);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("pairs");
    TCase *tc = tcase_create("pairs");

    tcase_add_test(tc, test_ranks_are_the_published_ones);
    tcase_add_test(tc, test_median_and_interval);
    tcase_add_test(tc, test_interval_covers_the_median);
    tcase_add_test(tc, test_narrow);
    tcase_add_test(tc, test_the_worse_end_decides);
    tcase_add_test(tc, test_only_what_was_counted_fails_a_run);
    tcase_add_test(tc, test_json_has_the_form);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
