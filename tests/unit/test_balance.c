/* SPDX-License-Identifier: Apache-2.0 */
/* Budgets that change hands: who gets what, and that the sum is never exceeded on the way. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/balance.h"

#define NS_PER_S UINT64_C(1000000000)
#define LOOK_NS (NS_PER_S / 4)
#define ENGINES 3
#define SHARE (1 * GIB)
#define STEP (SHARE / 8)

/* Engines that obey: each holds what it was granted, a look later; `stuck` ones let nothing go. */
static struct balance_engine engines[ENGINES];
static struct balance budget;
static struct balance_view views[ENGINES];
static bool stuck[ENGINES];
static uint64_t now_ns;

static void open_budget(uint32_t n, bool is_device)
{
    uint64_t shares[ENGINES], most[ENGINES];

    memset(engines, 0, sizeof(engines));
    memset(views, 0, sizeof(views));
    memset(stuck, 0, sizeof(stuck));
    now_ns = NS_PER_S;
    budget = (struct balance){.engines = engines, .n_engines = n, .is_device = is_device};
    for (uint32_t i = 0; i < n; i++) {
        shares[i] = SHARE;
        most[i] = UINT64_MAX;
    }
    balance_set(&budget, shares, most);
    for (uint32_t i = 0; i < n; i++) {
        engines[i].granted = SHARE;
        views[i].held = is_device ? 0 : SHARE;
    }
}

static uint64_t held(void)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < budget.n_engines; i++)
        sum += views[i].held;
    return sum;
}

/* n looks; what engines hold follows what they are granted. */
static void look(uint32_t n)
{
    for (; n > 0; n--) {
        uint64_t granted = 0, target = 0, before = held();

        now_ns += LOOK_NS;
        (void)balance_look(&budget, views, now_ns);
        for (uint32_t i = 0; i < budget.n_engines; i++) {
            granted += engines[i].granted;
            target += engines[i].target;
            if (!budget.is_device && (engines[i].granted > views[i].held || !stuck[i]))
                views[i].held = engines[i].granted;
        }
        ck_assert_uint_le(granted, budget.total);
        ck_assert_uint_eq(target, budget.total);
        ck_assert_uint_le(held(), MAX(budget.total, before));
    }
}

static void press(uint32_t engine, uint32_t n)
{
    for (; n > 0; n--) {
        views[engine].pressure++;
        views[engine].uses++;
        look(1);
    }
}

/* What one engine comes to have in the end, whose neighbours are idle. */
START_TEST(most_is_what_one_gets)
{
    ck_assert_uint_eq(balance_most_bytes(SHARE, 1), SHARE);
    ck_assert_uint_eq(balance_most_bytes(0, ENGINES), 0);
    open_budget(ENGINES, false);
    for (uint32_t i = 0; i < 4000; i++) {
        views[0].used = views[0].held;
        press(0, 1);
    }
    ck_assert_uint_eq(engines[0].granted, balance_most_bytes(ENGINES * SHARE, ENGINES));
}
END_TEST

/* Nobody wants anything: nothing changes hands. */
START_TEST(quiet)
{
    open_budget(ENGINES, false);
    look(1000);
    for (uint32_t i = 0; i < ENGINES; i++)
        ck_assert_uint_eq(engines[i].granted, SHARE);
}
END_TEST

/* A lone space takes what the others do not use, up to what they need to begin again. */
START_TEST(lone_space_takes_all)
{
    open_budget(2, false);
    press(0, 100);
    ck_assert_uint_eq(engines[0].granted, 2 * SHARE - STEP);
    ck_assert_uint_eq(engines[1].granted, STEP);
    open_budget(3, false);
    press(2, 200);
    ck_assert_uint_eq(engines[2].granted, 3 * SHARE - 2 * STEP);
}
END_TEST

/* It gives back as soon as another is short, however much it needs it itself; and no more than the other's share. */
START_TEST(share_comes_back)
{
    open_budget(2, false);
    press(0, 100);
    for (int i = 0; i < 100; i++) {
        views[0].pressure++;
        views[0].used = views[0].held;
        views[1].used = views[1].held;
        press(1, 1);
    }
    ck_assert_uint_eq(engines[0].granted, SHARE);
    ck_assert_uint_eq(engines[1].granted, SHARE);
}
END_TEST

/* What is in use stays where it is; what nobody has used for a while does not. */
START_TEST(idle_gives)
{
    open_budget(2, false);
    views[1].used = SHARE;
    for (int i = 0; i < 400; i++) {
        views[1].uses++;
        press(0, 1);
    }
    ck_assert_uint_eq(engines[0].granted, SHARE);
    press(0, 400);
    ck_assert_uint_eq(engines[0].granted, 2 * SHARE - STEP);
}
END_TEST

/* Leases keep the giver's memory: it may keep it, and nobody got what was not there. */
START_TEST(stuck_giver_keeps_it)
{
    open_budget(2, false);
    stuck[1] = true;
    press(0, 4);
    ck_assert_uint_eq(engines[1].granted, SHARE - STEP);
    ck_assert_uint_eq(engines[0].granted, SHARE);
    press(0, 60);
    ck_assert_uint_eq(engines[0].granted, SHARE);
    ck_assert_uint_eq(engines[1].granted, SHARE);
    stuck[1] = false;
    press(0, 400);
    ck_assert_uint_eq(engines[0].granted, 2 * SHARE - STEP);
}
END_TEST

/* Another configuration: everybody to its new share, less first. */
START_TEST(new_shares)
{
    uint64_t shares[2] = {SHARE / 2, SHARE / 2}, most[2] = {UINT64_MAX, UINT64_MAX};

    open_budget(2, false);
    press(0, 100);
    stuck[0] = true;
    balance_set(&budget, shares, most);
    look(10);
    ck_assert_uint_eq(engines[0].granted, SHARE / 2);
    ck_assert_uint_eq(views[0].held, 2 * SHARE - STEP);
    ck_assert_uint_eq(views[1].held, STEP); /* there is no room for more */
    ck_assert(!balance_is_settled(&budget, views));
    stuck[0] = false;
    look(10);
    ck_assert_uint_eq(views[0].held, SHARE / 2);
    ck_assert_uint_eq(views[1].held, SHARE / 2);
    ck_assert(balance_is_settled(&budget, views));
}
END_TEST

/* On devices: only numbers, and no more than its own partitions have. */
START_TEST(device)
{
    uint64_t shares[2] = {SHARE, SHARE}, most[2] = {SHARE + SHARE / 2, 4 * SHARE};

    open_budget(2, true);
    balance_set(&budget, shares, most);
    look(10);
    ck_assert_uint_eq(engines[0].granted, SHARE);
    for (int i = 0; i < 100; i++) {
        views[0].used = views[0].held = engines[0].granted;
        look(1);
    }
    ck_assert_uint_eq(engines[0].granted, SHARE + SHARE / 2);
    ck_assert_uint_eq(engines[1].granted, SHARE / 2);
}
END_TEST

/* What is given must not be missed at once: two that need it by turns would hand it back and forth for ever, and each time
 * is a look at all engines. */
START_TEST(device_back_and_forth)
{
    for (uint64_t used = 0; used <= 76 * MIB; used += 4 * MIB) {
        uint64_t shares[2] = {76 * MIB, 76 * MIB}, most[2] = {UINT64_MAX, UINT64_MAX};
        uint32_t n_changes = 0;

        open_budget(2, true);
        balance_set(&budget, shares, most);
        look(5);
        views[0].used = views[0].held = 70 * MIB;
        views[1].used = views[1].held = used;
        for (int i = 0; i < 1000; i++)
            n_changes += balance_look(&budget, views, now_ns += LOOK_NS);
        ck_assert_msg(n_changes <= 8, "%u changes with %llu MiB in use", n_changes, (unsigned long long)(used / MIB));
    }
}
END_TEST

/* However it comes, trades do not follow each other faster than looks do by themselves. */
START_TEST(trades_take_time)
{
    uint32_t n_changes = 0;

    open_budget(2, false);
    for (int i = 0; i < 1000; i++) {
        for (int e = 0; e < 2; e++) {
            views[e].pressure++;
            views[e].used = engines[i & 1 ? e : 1 - e].granted / 4;
            views[e].held = engines[e].granted;
        }
        views[i & 1].pressure--;
        n_changes += balance_look(&budget, views, now_ns += 1000);
    }
    ck_assert_uint_le(n_changes, 2);
}
END_TEST

/* Pools of a few MiB, engines of which one is alone: nothing is divided by zero, nothing goes below zero. */
/* What the last process left: nobody has to give back what it holds, and the sum stays what it is. */
START_TEST(begin)
{
    uint64_t held[ENGINES] = {SHARE / 2, 2 * SHARE, 0};

    open_budget(3, false);
    balance_begin(&budget, held);
    ck_assert_uint_eq(engines[1].granted, 2 * SHARE);
    ck_assert_uint_ge(engines[0].granted, SHARE / 2);
    ck_assert_uint_eq(engines[0].granted + engines[1].granted + engines[2].granted, 3 * SHARE);

    held[2] = SHARE; /* together more than there is: a smaller budget in the configuration */
    balance_begin(&budget, held);
    for (int i = 0; i < 3; i++)
        ck_assert_uint_eq(engines[i].granted, SHARE);
    memset(held, 0, sizeof(held));
    balance_begin(&budget, held);
    for (int i = 0; i < 3; i++)
        ck_assert_uint_eq(engines[i].granted, SHARE);
}
END_TEST

START_TEST(small)
{
    for (uint64_t share = 0; share <= 96 * MIB; share += 16 * MIB) {
        uint64_t shares[2] = {share, share}, most[2] = {UINT64_MAX, UINT64_MAX};

        open_budget(2, false);
        balance_set(&budget, shares, most);
        look(5);
        press(0, 50);
        ck_assert_uint_ge(engines[1].granted, share / 2);
        ck_assert_uint_le(engines[0].granted + engines[1].granted, 2 * share);
    }
    open_budget(1, false);
    press(0, 50);
    ck_assert_uint_eq(engines[0].granted, SHARE);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("balance");
    TCase *t = tcase_create("all");

    tcase_add_test(t, quiet);
    tcase_add_test(t, lone_space_takes_all);
    tcase_add_test(t, share_comes_back);
    tcase_add_test(t, idle_gives);
    tcase_add_test(t, stuck_giver_keeps_it);
    tcase_add_test(t, new_shares);
    tcase_add_test(t, device);
    tcase_add_test(t, device_back_and_forth);
    tcase_add_test(t, trades_take_time);
    tcase_add_test(t, begin);
    tcase_add_test(t, most_is_what_one_gets);
    tcase_add_test(t, small);
    suite_add_tcase(s, t);
    SRunner *runner = srunner_create(s);

    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);

    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
