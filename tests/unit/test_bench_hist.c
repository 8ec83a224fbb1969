/* SPDX-License-Identifier: Apache-2.0 */
#include <check.h>
#include <stdlib.h>

/* Programs are no libraries, so the files themselves are compiled in. NOLINTBEGIN(bugprone-suspicious-include) */
#include "client/bench/hist.c"

/* NOLINTEND(bugprone-suspicious-include) */

static struct hist h;

static void reset(void)
{
    h = (struct hist){0};
}

START_TEST(test_empty_has_no_quantiles)
{
    ck_assert_uint_eq(hist_quantile(&h, 500), 0);
    ck_assert_uint_eq(hist_mean(&h), 0);
}
END_TEST

START_TEST(test_small_values_are_exact)
{
    for (uint64_t i = 0; i < 32; i++)
        hist_add(&h, i);
    ck_assert_uint_eq(hist_quantile(&h, 500), 15);
    ck_assert_uint_eq(hist_quantile(&h, 1000), 31);
}
END_TEST

START_TEST(test_error_is_bounded)
{
    for (uint64_t value = 1; value < UINT64_MAX / 3; value = value * 3 + 1) {
        reset();
        hist_add(&h, value);
        hist_add(&h, UINT64_MAX);
        uint64_t found = hist_quantile(&h, 500), off = found > value ? found - value : value - found;
        ck_assert_msg(off <= value / 64 + 1, "%lu for %lu", found, value);
    }
}
END_TEST

START_TEST(test_quantile_never_exceeds_maximum)
{
    hist_add(&h, 1000000);
    ck_assert_uint_le(hist_quantile(&h, 999), 1000000);
}
END_TEST

START_TEST(test_tail_is_found)
{
    for (int i = 0; i < 9990; i++)
        hist_add(&h, 100);
    for (int i = 0; i < 10; i++)
        hist_add(&h, 1000000);
    ck_assert_uint_lt(hist_quantile(&h, 990), 110);
    ck_assert_uint_lt(hist_quantile(&h, 999), 110);
    ck_assert_uint_eq(hist_quantile(&h, 1000), 1000000);
}
END_TEST

START_TEST(test_merge_adds_up)
{
    static struct hist other;

    hist_add(&h, 10);
    hist_add(&other, 30);
    hist_merge(&h, &other);
    ck_assert_uint_eq(h.n, 2);
    ck_assert_uint_eq(h.max, 30);
    ck_assert_uint_eq(hist_mean(&h), 20);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("hist");
    TCase *tc = tcase_create("hist");

    tcase_add_checked_fixture(tc, reset, NULL);
    tcase_add_test(tc, test_empty_has_no_quantiles);
    tcase_add_test(tc, test_small_values_are_exact);
    tcase_add_test(tc, test_error_is_bounded);
    tcase_add_test(tc, test_quantile_never_exceeds_maximum);
    tcase_add_test(tc, test_tail_is_found);
    tcase_add_test(tc, test_merge_adds_up);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
