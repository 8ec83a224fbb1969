/* SPDX-License-Identifier: Apache-2.0 */
/* Write budgets over simulated time: how much gets through, what can be saved up, what is owed. */
#include "tiering/budget.h"

#include <check.h>
#include <stdlib.h>

#include "include/base/limits.h"

#define SECOND UINT64_C(1000000000)
#define DAY (86400 * SECOND)

/* Wants to write one piece every step_ns, for as long as time_ns; how many bytes were allowed. */
static uint64_t write_while_allowed(struct budget *b, uint64_t *now_ns, uint64_t time_ns, uint64_t step_ns,
                                    uint64_t piece_bytes)
{
    uint64_t before = b->used_bytes;

    for (uint64_t end = *now_ns + time_ns; *now_ns < end; *now_ns += step_ns) {
        if (budget_allows(b, *now_ns))
            budget_charge(b, piece_bytes, *now_ns);
    }
    return b->used_bytes - before;
}

static void expect_within(uint64_t is, uint64_t wanted, unsigned percent)
{
    ck_assert_msg(is >= wanted - wanted * percent / 100 && is <= wanted + wanted * percent / 100, "%llu, wanted %llu",
                  (unsigned long long)is, (unsigned long long)wanted);
}

START_TEST(test_the_rate_holds)
{
    static const struct {
        uint64_t bytes, period_ns, step_ns, piece_bytes, time_ns;
    } cases[] = {
        {50 * MIB, SECOND, 1000000, 256 * KIB, 60 * SECOND},
        {50 * MIB, SECOND, 333333, 8 * MIB, 60 * SECOND},
        {4 * TIB, DAY, 100000000, 8 * MIB, DAY},
        {1 * GIB, DAY, 10 * SECOND, 4096, DAY}, /* asks for less than it may: gets all of it */
        {UINT64_C(7777777), SECOND, 1234567, 12288, 600 * SECOND},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct budget b = {0};
        uint64_t now_ns = 12345 * SECOND;
        uint64_t asked = cases[i].time_ns / cases[i].step_ns * cases[i].piece_bytes;
        uint64_t allowed = cases[i].time_ns / (cases[i].period_ns / 1000) * cases[i].bytes / 1000;

        budget_set(&b, cases[i].bytes, cases[i].period_ns, now_ns);
        expect_within(write_while_allowed(&b, &now_ns, cases[i].time_ns, cases[i].step_ns, cases[i].piece_bytes),
                      MIN(asked, allowed), 5);
        ck_assert_uint_eq(b.over_bytes, 0);
    }
}
END_TEST

START_TEST(test_little_is_saved_up)
{
    struct budget b = {0};
    uint64_t now_ns = DAY;

    budget_set(&b, 24 * GIB, DAY, now_ns);
    ck_assert(!budget_allows(&b, now_ns)); /* nothing at first: a restart is no gift */
    now_ns += 30 * DAY;
    uint64_t burst = write_while_allowed(&b, &now_ns, 4000, 1, MIB);
    expect_within(burst, GIB, 1); /* an hour's worth of a month of rest */
    expect_within(write_while_allowed(&b, &now_ns, DAY, SECOND, MIB), 24 * GIB, 1);
}
END_TEST

START_TEST(test_what_must_be_written_is_paid_off)
{
    struct budget b = {0};
    uint64_t now_ns = DAY;

    budget_set(&b, 10 * MIB, SECOND, now_ns);
    now_ns += SECOND / 10;
    budget_charge(&b, 9 * MIB, now_ns); /* allowed, though it is more than was left */
    ck_assert_uint_eq(b.over_bytes, 0);
    budget_charge(&b, 2 * MIB, now_ns);
    ck_assert_uint_eq(b.over_bytes, 2 * MIB);
    ck_assert_uint_eq(b.used_bytes, 11 * MIB);
    ck_assert(!budget_allows(&b, now_ns + SECOND - SECOND / 100)); /* 10 MiB are owed */
    ck_assert(budget_allows(&b, now_ns + SECOND + SECOND / 100));
    /* But not for ever: a whole budget at most. */
    now_ns += 10 * SECOND;
    for (int i = 0; i < 1000; i++)
        budget_charge(&b, 10 * MIB, now_ns);
    ck_assert(!budget_allows(&b, now_ns + SECOND - SECOND / 100));
    ck_assert(budget_allows(&b, now_ns + SECOND + SECOND / 100));
}
END_TEST

START_TEST(test_a_pause_longer_than_the_period_pays_all)
{
    struct budget b = {0};
    uint64_t now_ns = DAY;

    budget_set(&b, MIB, SECOND, now_ns); /* a piece is more than a second's worth */
    for (int i = 0; i < 10; i++)
        budget_charge(&b, 8 * MIB, now_ns);
    ck_assert(!budget_allows(&b, now_ns + 7 * SECOND));
    ck_assert(budget_allows(&b, now_ns + 8 * SECOND + 1000));
}
END_TEST

START_TEST(test_changes)
{
    struct budget b = {0};
    uint64_t now_ns = DAY;

    ck_assert(budget_allows(&b, now_ns));
    budget_charge(&b, GIB, now_ns);
    ck_assert_uint_eq(budget_day_bytes(&b), 0);
    budget_set(&b, MIB, SECOND, now_ns);
    ck_assert_uint_eq(budget_day_bytes(&b), 86400 * MIB);
    ck_assert_uint_eq(b.used_bytes, GIB);
    ck_assert(!budget_allows(&b, now_ns));
    now_ns += SECOND;
    ck_assert(budget_allows(&b, now_ns));
    budget_set(&b, MIB, SECOND, now_ns); /* the same again: what was saved stays */
    ck_assert(budget_allows(&b, now_ns));
    budget_set(&b, 100 * GIB, DAY, now_ns);
    ck_assert(budget_allows(&b, now_ns));
    budget_set(&b, 0, 0, now_ns);
    ck_assert(budget_allows(&b, now_ns));
    budget_set(&b, UINT64_MAX, SECOND, now_ns); /* as good as none, and nothing overflows */
    now_ns += 1;
    ck_assert(budget_allows(&b, now_ns));
    budget_charge(&b, GIB, now_ns);
    now_ns += 400 * DAY;
    ck_assert(budget_allows(&b, now_ns));
    /* A clock that has not begun gives nothing for the time before. */
    b = (struct budget){0};
    budget_set(&b, MIB, SECOND, 0);
    ck_assert(!budget_allows(&b, now_ns));
    ck_assert(budget_allows(&b, now_ns + SECOND));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("budget");
    TCase *tc = tcase_create("all");

    tcase_add_test(tc, test_the_rate_holds);
    tcase_add_test(tc, test_little_is_saved_up);
    tcase_add_test(tc, test_what_must_be_written_is_paid_off);
    tcase_add_test(tc, test_a_pause_longer_than_the_period_pays_all);
    tcase_add_test(tc, test_changes);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
