/* SPDX-License-Identifier: Apache-2.0 */
#include <check.h>
#include <stdlib.h>
#include <string.h>

/* Programs are no libraries, so the files themselves are compiled in. NOLINTBEGIN(bugprone-suspicious-include) */
#include "client/bench/generator.c"
#include "client/bench/payload.c"
#include "client/bench/trace.c"

/* NOLINTEND(bugprone-suspicious-include) */

START_TEST(test_equal_seeds_give_equal_traces)
{
    struct generator_options o = {.seed = 3, .n_requests = 500};
    struct trace a, b;

    ck_assert_int_eq(generator_run(&o, &a), 0);
    ck_assert_int_eq(generator_run(&o, &b), 0);
    ck_assert_uint_eq(a.n_requests, 500);
    ck_assert_uint_eq(a.n_ids, b.n_ids);
    ck_assert_int_eq(memcmp(a.ids, b.ids, a.n_ids * sizeof(*a.ids)), 0);
    trace_deinit(&b);
    o.seed = 4;
    ck_assert_int_eq(generator_run(&o, &b), 0);
    ck_assert_uint_ne(a.n_ids, b.n_ids);
    trace_deinit(&a);
    trace_deinit(&b);
}
END_TEST

/* The shape that generator.c promises: 24 blocks a request, two references in five seen before, within wide bounds. */
START_TEST(test_shape)
{
    struct generator_options o = {.seed = 1, .n_distinct = 40000};
    struct trace t;

    ck_assert_int_eq(generator_run(&o, &t), 0);
    ck_assert_uint_ge(t.n_distinct, 40000);
    double length = (double)t.n_ids / (double)t.n_requests;
    double seen = 1 - (double)t.n_distinct / (double)t.n_ids;
    ck_assert(length > 18 && length < 36);
    ck_assert(seen > 0.3 && seen < 0.5);
    ck_assert_uint_gt(t.longest, 100);
    trace_deinit(&t);
}
END_TEST

START_TEST(test_time_runs_forward_and_chains_have_no_repeats)
{
    struct generator_options o = {.seed = 2, .n_requests = 1000};
    struct trace t;

    ck_assert_int_eq(generator_run(&o, &t), 0);
    for (uint64_t i = 0; i < t.n_requests; i++) {
        const struct trace_request *q = &t.requests[i];
        const uint64_t *ids = t.ids + q->first;

        ck_assert(i == 0 || q->time_ms >= t.requests[i - 1].time_ms);
        for (uint32_t k = 0; k < q->n; k++)
            for (uint32_t l = 0; l < k; l++)
                ck_assert_uint_ne(ids[k], ids[l]);
    }
    trace_deinit(&t);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("generator");
    TCase *tc = tcase_create("generator");

    tcase_add_test(tc, test_equal_seeds_give_equal_traces);
    tcase_add_test(tc, test_shape);
    tcase_add_test(tc, test_time_runs_forward_and_chains_have_no_repeats);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
