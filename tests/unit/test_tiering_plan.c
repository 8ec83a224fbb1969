/* SPDX-License-Identifier: Apache-2.0 */
/* A training step's states in a pool that holds half of them: what the plan policy saves in loads, with real moves. */
#include <check.h>
#include <stdlib.h>

#include "tests/unit/support/tiering_rig.h"
#include "tiering/policy.h"

#define TENSORS 24
#define WINDOW 4
#define STREAMED 6            /* steps */
#define DRAM (16 * RIG_PIECE) /* less what leases and the watermark need */

static struct rig rig;
static bool is_computing; /* between the accesses, while I/O goes on */

static void open_with(const struct policy_ops *policy, uint64_t prefetch_bytes)
{
    struct rig_memory memory = {.dram_bytes = DRAM, .device_bytes = 64 * MIB};

    rig_policy = policy;
    rig_prepare(&rig, &memory, 1);
    rig.pools[0].prefetch_bytes = prefetch_bytes;
    rig_start(&rig);
    rig_policy = &policy_lru;
    for (uint32_t i = 0; i < TENSORS; i++) {
        struct tiering_id id = rig_id(&rig, RIG_SCRATCH, i);

        ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &id, RIG_PIECE), 0);
    }
}

/* Reads, changes and gives back each, in order: what was written the step before is there. Returns the loads. */
static uint64_t step_run(uint32_t step)
{
    uint64_t loads = rig_pool_stat(&rig, 0).loads;

    for (uint32_t i = 0; i < TENSORS; i++) {
        struct tiering_id id = rig_id(&rig, RIG_SCRATCH, i);
        struct tiering_grant grant;

        ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, TIERING_WRITE, &grant), 0);
        ck_assert(rig_is(rig_memory(&rig, &grant), RIG_PIECE, step == 0 ? 0 : 1000 * step + i));
        rig_fill(rig_memory(&rig, &grant), RIG_PIECE, 1000 * (step + 1) + i);
        ck_assert_int_eq(rig_release(&rig, &rig.s, grant.lease, TIERING_DIRTY), 0);
        for (uint32_t turn = 0; is_computing && turn < 20; turn++)
            rig_turn(&rig, 8, 100000);
    }
    rig_check(&rig);
    return rig_pool_stat(&rig, 0).loads - loads;
}

/* Of four steps, after four others. */
static uint64_t steps_run(void)
{
    uint64_t loads = 0;

    for (uint32_t step = 0; step < 8; step++) {
        uint64_t n = step_run(step);

        loads += step >= 4 ? n : 0;
    }
    return loads;
}

START_TEST(a_cycle_that_does_not_fit_is_loaded_in_part)
{
    uint64_t lru, plan;

    open_with(&policy_lru, 0);
    lru = steps_run();
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).plans, 0);
    rig_close(&rig);

    open_with(&policy_plan, 0);
    plan = steps_run();
    struct tiering_pool_stat stat = rig_pool_stat(&rig, 0);

    ck_assert_uint_eq(stat.plans, 1);
    ck_assert_uint_eq(stat.plan_accesses, TENSORS);
    ck_assert_uint_eq(stat.deviations, 0);
    rig_close(&rig);
    ck_assert_uint_eq(lru, 4 * TENSORS);
    ck_assert_uint_le(plan, 4 * (TENSORS - DRAM / RIG_PIECE + 3)); /* the watermark keeps some free */
}
END_TEST

/* The same with WINDOW of them leased or on their way at a time. */
static void step_stream(uint32_t step)
{
    static struct rig_wait waits[TENSORS];
    static struct tiering_grant grants[TENSORS];
    static bool has_waited[TENSORS];
    uint32_t asked = 0;

    for (uint32_t i = 0; i < TENSORS; i++) {
        for (; asked < MIN(i + WINDOW, (uint32_t)TENSORS); asked++) {
            struct tiering_id id = rig_id(&rig, RIG_SCRATCH, asked);
            struct rig_wait *w = &waits[asked];

            rig_wait_init(w);
            int r = tiering_acquire(rig.t, &rig.s, &id, 0, 0, TIERING_WRITE, &w->wait, &grants[asked]);
            ck_assert(r == 0 || r == TIERING_WAIT);
            has_waited[asked] = r == TIERING_WAIT;
        }
        if (has_waited[i]) {
            ck_assert_int_eq(rig_wait(&rig, &waits[i]), 0);
            grants[i] = waits[i].wait.grant;
        }
        ck_assert(rig_is(rig_memory(&rig, &grants[i]), RIG_PIECE, 1000 * step + i));
        rig_fill(rig_memory(&rig, &grants[i]), RIG_PIECE, 1000 * (step + 1) + i);
        ck_assert_int_eq(rig_release(&rig, &rig.s, grants[i].lease, TIERING_DIRTY), 0);
        rig_turn(&rig, 0, 100000); /* computed, while I/O goes on */
    }
    rig_check(&rig);
}

/* What stays is not evicted because what goes is still being written; nor is all of it written although it stays. */
START_TEST(a_stream_moves_little_more_than_does_not_fit)
{
    open_with(&policy_plan, 0);
    for (uint32_t step = 0; step < 4; step++)
        (void)step_run(step);
    struct tiering_pool_stat before = rig_pool_stat(&rig, 0);

    for (uint32_t step = 4; step < 4 + STREAMED; step++)
        step_stream(step);
    struct tiering_pool_stat after = rig_pool_stat(&rig, 0);
    uint64_t fits = DRAM / RIG_PIECE - 2;

    ck_assert_uint_eq(after.deviations, 0);
    ck_assert_uint_le(after.loads - before.loads, STREAMED * (TENSORS - fits + WINDOW));
    ck_assert_uint_lt(after.spills - before.spills, STREAMED * TENSORS * 9 / 10);
    rig_close(&rig);
}
END_TEST

/* The daemon's own loads: as many as misses, but for a few, and each of them is used. */
START_TEST(what_comes_next_is_there)
{
    static const uint64_t budgets[] = {0, 16 * RIG_PIECE};
    uint64_t loads[ARRAY_LEN(budgets)], found[ARRAY_LEN(budgets)];

    for (uint32_t k = 0; k < ARRAY_LEN(budgets); k++) {
        open_with(&policy_plan, budgets[k]);
        for (uint32_t step = 0; step < 4; step++)
            (void)step_run(step);
        struct tiering_pool_stat before = rig_pool_stat(&rig, 0);

        for (uint32_t step = 4; step < 4 + STREAMED; step++) {
            is_computing = true;
            (void)step_run(step);
            is_computing = false;
        }
        struct tiering_pool_stat after = rig_pool_stat(&rig, 0);

        loads[k] = after.loads - before.loads;
        found[k] = after.hits_dram - before.hits_dram;
        ck_assert_uint_eq(after.deviations, 0);
        ck_assert_uint_eq(after.prefetched > 0, k);
        ck_assert_uint_ge(after.prefetched_used + 2 + after.prefetched_wasted, after.prefetched);
        ck_assert_uint_le(after.prefetched_wasted, 4);
        rig_close(&rig);
    }
    ck_assert_uint_le(loads[1], loads[0] + 2 * STREAMED);
    ck_assert_uint_gt(found[1], found[0] + 2 * STREAMED);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("tiering_plan");
    TCase *tc = tcase_create("plan");

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, a_cycle_that_does_not_fit_is_loaded_in_part);
    tcase_add_test(tc, a_stream_moves_little_more_than_does_not_fit);
    tcase_add_test(tc, what_comes_next_is_there);
    suite_add_tcase(s, tc);

    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
