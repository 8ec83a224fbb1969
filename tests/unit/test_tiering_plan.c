/* SPDX-License-Identifier: Apache-2.0 */
/* A training step's states in a pool that holds half of them: what the plan policy saves in loads, with real moves. */
#include <check.h>
#include <stdlib.h>

#include "tests/unit/support/tiering_rig.h"
#include "tiering/policy.h"

#define TENSORS 24
#define DRAM (16 * RIG_PIECE) /* less what leases and the watermark need */

static struct rig rig;

static void open_with(const struct policy_ops *policy)
{
    rig_policy = policy;
    rig_open(&rig, DRAM, 64 * MIB);
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

    open_with(&policy_lru);
    lru = steps_run();
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).plans, 0);
    rig_close(&rig);

    open_with(&policy_plan);
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

int main(void)
{
    Suite *s = suite_create("tiering_plan");
    TCase *tc = tcase_create("plan");

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, a_cycle_that_does_not_fit_is_loaded_in_part);
    suite_add_tcase(s, tc);

    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
