/* SPDX-License-Identifier: Apache-2.0 */
/* The simulated cleaner copies what the theory says, and nothing where nothing need be copied. */
#include <check.h>
#include <stdlib.h>

/* Programs are no libraries, so the files themselves are compiled in. NOLINTBEGIN(bugprone-suspicious-include) */
#include "client/bench/cleaner.c"

/* NOLINTEND(bugprone-suspicious-include) */

enum { SEGMENTS = 256, PER_SEGMENT = 64, ALL = SEGMENTS * PER_SEGMENT };

static double amplification(uint32_t n_blocks, bool is_random)
{
    struct cleaner *c;

    ck_assert_int_eq(cleaner_new(SEGMENTS, PER_SEGMENT, n_blocks, &c), 0);
    srand48(3);
    for (uint32_t i = 0; i < 8 * ALL; i++)
        cleaner_write(c, is_random ? (uint32_t)(drand48() * n_blocks) : i % n_blocks, 0);
    uint64_t before = cleaner_written(c);
    for (uint32_t i = 0; i < 8 * ALL; i++)
        cleaner_write(c, is_random ? (uint32_t)(drand48() * n_blocks) : i % n_blocks, 0);
    double x = (double)(cleaner_written(c) - before) / (8.0 * ALL);
    /* Every block is where it is said to be. */
    for (uint32_t i = 0; i < n_blocks; i++)
        ck_assert(c->where[i] == NOWHERE || c->slots[c->where[i]] == i);
    cleaner_free(c);
    return x;
}

/* Round and round, segments die as a whole. */
START_TEST(test_a_round_copies_nothing)
{
    ck_assert_double_eq(amplification(ALL * 9 / 10, false), 1);
}
END_TEST

/* Known of large devices: a victim's live part v satisfies (v - 1) / ln v = how full the device is, and what is written is
 * 1 / (1 - v): 1.25 when it is half full (v = 0.20), 2.7 at 80 % (v = 0.63). */
START_TEST(test_uniform_overwrites)
{
    double half = amplification(ALL / 2, true), most = amplification(ALL * 8 / 10, true);

    ck_assert(half > 1.15 && half < 1.32);
    ck_assert(most > 2.3 && most < 3.1);
}
END_TEST

START_TEST(test_no_room_to_clean)
{
    struct cleaner *c;

    ck_assert_int_eq(cleaner_new(SEGMENTS, PER_SEGMENT, ALL, &c), -EINVAL);
    ck_assert_int_eq(cleaner_new(4, PER_SEGMENT, 1, &c), -EINVAL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cleaner");
    TCase *tc = tcase_create("cleaner");

    tcase_add_test(tc, test_a_round_copies_nothing);
    tcase_add_test(tc, test_uniform_overwrites);
    tcase_add_test(tc, test_no_room_to_clean);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
