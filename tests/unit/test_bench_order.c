/* SPDX-License-Identifier: Apache-2.0 */
#include <check.h>
#include <stdlib.h>

/* Programs are no libraries, so the files themselves are compiled in. NOLINTBEGIN(bugprone-suspicious-include) */
#include "client/bench/order.c"

/* NOLINTEND(bugprone-suspicious-include) */

#define N 10

static const uint32_t cycle[N] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
static const uint32_t there_and_back[2 * N] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0};
static const struct order in_turn = {.at = cycle, .n = N}, back = {.at = there_and_back, .n = 2 * N};

/* Each place but the one that is asked for has one hit in N - 1 accesses. */
START_TEST(test_a_cycle)
{
    for (uint32_t places = 1; places < N; places++) {
        ck_assert_uint_eq(order_hits(&in_turn, ORDER_OPTIMUM, places, 4, N - 1), N * (places - 1));
        ck_assert_uint_eq(order_hits(&in_turn, ORDER_LRU, places, 4, N - 1), 0);
    }
}
END_TEST

/* At each turn what was used last is used next, which LRU has. */
START_TEST(test_there_and_back)
{
    for (uint32_t places = 1; places < N; places++) {
        ck_assert_uint_eq(order_hits(&back, ORDER_LRU, places, 4, 3), UINT64_C(3) * 2 * places);
        ck_assert_uint_ge(order_hits(&back, ORDER_OPTIMUM, places, 4, 3), UINT64_C(3) * 2 * places);
    }
}
END_TEST

START_TEST(test_what_fits_always_hits)
{
    ck_assert_uint_eq(order_hits(&in_turn, ORDER_OPTIMUM, N, 1, 2), 2 * N);
    ck_assert_uint_eq(order_hits(&in_turn, ORDER_LRU, N + 5, 1, 2), 2 * N);
    ck_assert_uint_eq(order_hits(&in_turn, ORDER_LRU, N, 0, 2), N);
    ck_assert_uint_eq(order_hits(&back, ORDER_OPTIMUM, N, 0, 1), N);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("bench_order");
    TCase *tc = tcase_create("order");
    SRunner *runner = srunner_create(suite);

    tcase_add_test(tc, test_a_cycle);
    tcase_add_test(tc, test_there_and_back);
    tcase_add_test(tc, test_what_fits_always_hits);
    suite_add_tcase(suite, tc);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
