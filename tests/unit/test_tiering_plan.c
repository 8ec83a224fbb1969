/* SPDX-License-Identifier: Apache-2.0 */
/* A training step's states in a pool that holds half of them: what the plan policy saves in loads, with real moves. */
#include <check.h>
#include <errno.h>
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

/* Whoever asks for what is being read waits for it, and is counted beside those that had it read. */
START_TEST(waits_for_a_load_that_goes_on_are_counted)
{
    struct tiering_grant grant;
    struct rig_wait waits[3];
    uint32_t away = 0;

    open_with(&policy_plan, 0);
    (void)step_run(0);
    for (struct tiering_id id; id = rig_id(&rig, RIG_SCRATCH, away), away < TENSORS; away++)
        if (tiering_acquire(rig.t, &rig.s, &id, 0, 0, TIERING_NO_FETCH, NULL, &grant) == -EAGAIN)
            break;
        else
            ck_assert_int_eq(rig_release(&rig, &rig.s, grant.lease, 0), 0);
    ck_assert_uint_lt(away, TENSORS);
    struct tiering_pool_stat before = rig_pool_stat(&rig, 0);
    struct tiering_id id = rig_id(&rig, RIG_SCRATCH, away);

    for (uint32_t i = 0; i < ARRAY_LEN(waits); i++) {
        rig_wait_init(&waits[i]);
        ck_assert_int_eq(tiering_acquire(rig.t, &rig.s, &id, 0, 0, 0, &waits[i].wait, &grant), TIERING_WAIT);
    }
    struct tiering_pool_stat after = rig_pool_stat(&rig, 0);

    ck_assert_uint_eq(after.hits_nvme - before.hits_nvme, ARRAY_LEN(waits));
    ck_assert_uint_eq(after.hits_loading - before.hits_loading, ARRAY_LEN(waits) - 1);
    for (uint32_t i = 0; i < ARRAY_LEN(waits); i++) {
        ck_assert_int_eq(rig_wait(&rig, &waits[i]), 0);
        ck_assert_int_eq(rig_release(&rig, &rig.s, waits[i].wait.grant.lease, 0), 0);
    }
    rig_close(&rig);
}
END_TEST

/* Of the tensors from `first` on, as a list that comes after so many others. */
static int declare(struct tiering_session *s, uint32_t first, uint32_t n)
{
    int r = tiering_plan_begin(rig.t, s, RIG_SCRATCH, first);

    for (uint32_t i = first; i < first + n && r == 0; i++) {
        struct tiering_id id = rig_id(&rig, RIG_SCRATCH, i);

        r = tiering_plan_add(rig.t, &id);
    }
    if (r < 0 || first + n == TENSORS)
        return r < 0 ? r : tiering_plan_end(rig.t);
    tiering_plan_pause(rig.t, s, first + n);
    return 0;
}

/* Belady's from the first access on: the first step has nothing to hit, the second one loads what does not fit. */
START_TEST(a_plan_that_is_declared_counts_at_once)
{
    uint64_t loads[2], fits = DRAM / RIG_PIECE - 3; /* the watermark keeps some free */

    open_with(&policy_plan, 0);
    (void)step_run(0);
    loads[0] = step_run(1);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).plans, 0);
    rig_close(&rig);

    open_with(&policy_plan, 0);
    ck_assert_int_eq(declare(&rig.s, 0, TENSORS), TENSORS);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).plan_accesses, TENSORS);
    (void)step_run(0);
    loads[1] = step_run(1);
    for (uint32_t step = 2; step < 6; step++)
        ck_assert_uint_le(step_run(step), TENSORS - fits);
    struct tiering_pool_stat stat = rig_pool_stat(&rig, 0);

    ck_assert_uint_eq(stat.plans, 1);
    ck_assert_uint_eq(stat.deviations, 0);
    rig_close(&rig);
    ck_assert_uint_eq(loads[0], TENSORS);
    ck_assert_uint_le(loads[1], TENSORS - fits);
}
END_TEST

START_TEST(a_plan_comes_in_lists)
{
    open_with(&policy_plan, 0);
    ck_assert_int_eq(declare(&rig.s, 0, 10), 0);
    ck_assert_int_eq(declare(&rig.s, 10, 5), 0);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).plans, 0);
    ck_assert_int_eq(declare(&rig.s, 15, TENSORS - 15), TENSORS);
    ck_assert_int_eq(declare(&rig.s, 15, TENSORS - 15), -ESTALE); /* it has ended */

    ck_assert_int_eq(declare(&rig.s, 0, 10), 0);
    ck_assert_int_eq(declare(&rig.s, 11, TENSORS - 11), -ESTALE); /* one is missing */
    ck_assert_int_eq(declare(&rig.s, 10, TENSORS - 10), -ESTALE); /* so it was given up */

    ck_assert_int_eq(declare(&rig.s, 0, 10), 0);
    ck_assert_int_eq(declare(&rig.other, 10, TENSORS - 10), -ESTALE);
    ck_assert_int_eq(declare(&rig.s, 0, 10), 0);
    ck_assert_int_eq(declare(&rig.other, 0, 10), 0);
    ck_assert_int_eq(declare(&rig.s, 10, TENSORS - 10), -ESTALE); /* another one has begun */

    ck_assert_int_eq(declare(&rig.s, 0, 10), 0);
    tiering_session_end(rig.t, &rig.s);
    tiering_session_init(rig.t, &rig.s, ++rig.n_sessions, 1, 100);
    ck_assert_int_eq(declare(&rig.s, 10, TENSORS - 10), -ESTALE);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).plans, 1);
    rig_close(&rig);
}
END_TEST

/* As what was learned does. */
START_TEST(a_plan_outlives_its_session)
{
    open_with(&policy_plan, 0);
    ck_assert_int_eq(declare(&rig.other, 0, TENSORS), TENSORS);
    tiering_session_end(rig.t, &rig.other);
    tiering_session_init(rig.t, &rig.other, ++rig.n_sessions, 2, 100);
    (void)step_run(0);
    ck_assert_uint_le(step_run(1), TENSORS - DRAM / RIG_PIECE + 3);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).deviations, 0);
    rig_close(&rig);
}
END_TEST

START_TEST(a_plan_is_taken_back)
{
    open_with(&policy_plan, 0);
    ck_assert_int_eq(declare(&rig.s, 0, TENSORS), TENSORS);
    ck_assert_int_eq(tiering_plan_begin(rig.t, &rig.s, RIG_SCRATCH, 0), 0);
    ck_assert_int_eq(tiering_plan_end(rig.t), 0);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).plan_accesses, 0);
    (void)step_run(0);
    ck_assert_uint_eq(step_run(1), TENSORS); /* as if there had been none */
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).deviations, 0);
    rig_close(&rig);

    open_with(&policy_lru, 0);
    ck_assert_int_eq(declare(&rig.s, 0, TENSORS), 0); /* means nothing there */
    rig_close(&rig);
}
END_TEST

/* As one that was learned: deviations are counted, and in the end it is LRU. */
START_TEST(a_plan_that_is_not_kept_to_is_dropped)
{
    uint64_t n = 0;

    open_with(&policy_plan, 0);
    ck_assert_int_eq(declare(&rig.s, 0, TENSORS), TENSORS);
    (void)step_run(0);
    for (; n < 100 && rig_pool_stat(&rig, 0).plan_accesses > 0; n++) {
        struct tiering_id id = rig_id(&rig, RIG_SCRATCH, n % 2 ? 3 : 17);
        struct tiering_grant grant;

        ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, 0, &grant), 0);
        ck_assert_int_eq(rig_release(&rig, &rig.s, grant.lease, 0), 0);
    }
    ck_assert_uint_ge(rig_pool_stat(&rig, 0).deviations, 32);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).deviations, n);
    ck_assert_uint_lt(n, 100);
    rig_close(&rig);
}
END_TEST

/* More than a plan may have, and more than this pool may have pieces: the one before it stays. */
START_TEST(a_plan_has_a_limit)
{
    open_with(&policy_plan, 0);
    ck_assert_int_eq(declare(&rig.s, 0, TENSORS), TENSORS);
    struct tiering_id id = rig_id(&rig, RIG_SCRATCH, 0);

    ck_assert_int_eq(tiering_plan_begin(rig.t, &rig.s, RIG_SCRATCH, 0), 0);
    for (uint32_t i = 0; i < PLAN_ACCESSES_MAX; i++)
        ck_assert_int_eq(tiering_plan_add(rig.t, &id), 0);
    ck_assert_int_eq(tiering_plan_add(rig.t, &id), -E2BIG);
    ck_assert_int_eq(tiering_plan_end(rig.t), -E2BIG);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).plan_accesses, TENSORS);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).plans, 1);
    rig_close(&rig);
}
END_TEST

/* ── several ─────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Another space of pool 0, with so many tensors. */
static uint32_t space_with(uint8_t digest, uint32_t n)
{
    struct tiering_space_spec spec = {.durability = STORE_SCRATCH + 1, .digest = {[1] = digest}};
    struct tiering_space_info info;

    ck_assert_int_eq(tiering_space_open(rig.t, &spec, &info), 0);
    for (uint32_t i = 0; i < n; i++) {
        struct tiering_id id = {.space = info.index, .n_parts = 1, .key_len = 1, .key = {(uint8_t)i}};

        ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &id, RIG_PIECE), 0);
    }
    return info.index;
}

static int declare_in(uint32_t space, uint32_t n)
{
    int r = tiering_plan_begin(rig.t, &rig.s, space, 0);

    for (uint32_t i = 0; i < n && r == 0; i++) {
        struct tiering_id id = {.space = space, .n_parts = 1, .key_len = 1, .key = {(uint8_t)i}};

        r = tiering_plan_add(rig.t, &id);
    }
    return r < 0 ? r : tiering_plan_end(rig.t);
}

static void use_in(uint32_t space, uint32_t i)
{
    struct tiering_id id = {.space = space, .n_parts = 1, .key_len = 1, .key = {(uint8_t)i}};
    struct tiering_grant grant;

    ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, TIERING_WRITE, &grant), 0);
    ck_assert_int_eq(rig_release(&rig, &rig.s, grant.lease, TIERING_DIRTY), 0);
}

/* Two optimizers in one pool, together, or one after the other. */
START_TEST(two_spaces_have_a_plan_each)
{
    uint32_t n = TENSORS / 2, spaces[2];
    uint64_t before = 0;

    open_with(&policy_plan, (uint64_t)_i * 8 * RIG_PIECE);
    for (uint32_t k = 0; k < 2; k++)
        spaces[k] = space_with((uint8_t)(k + 1), n);
    for (uint32_t k = 0; k < 2; k++)
        ck_assert_int_eq(declare_in(spaces[k], n), (int)n);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).plan_accesses, TENSORS);
    for (uint32_t step = 0; step < 8; step++) {
        if (step == 2)
            before = rig_pool_stat(&rig, 0).loads;
        for (uint32_t i = 0; i < TENSORS; i++)
            use_in(spaces[step < 5 ? i % 2 : i / n], step < 5 ? i / 2 : i % n);
        rig_check(&rig);
    }
    struct tiering_pool_stat stat = rig_pool_stat(&rig, 0);

    ck_assert_uint_eq(stat.plan_accesses, TENSORS);
    ck_assert_uint_eq(stat.plans, 2);
    ck_assert_uint_eq(stat.deviations, 0);
    ck_assert_uint_le(stat.loads - before, 6 * (TENSORS - DRAM / RIG_PIECE + 4)); /* of 6 * TENSORS: as of one */
    ck_assert_uint_eq(stat.prefetched > 0, _i);
    rig_close(&rig);
}
END_TEST

/* What others access is nothing that a plan has to foretell. */
START_TEST(a_plan_is_of_its_space)
{
    open_with(&policy_plan, 0);
    uint32_t space = space_with(1, 8);

    ck_assert_int_eq(declare(&rig.s, 0, TENSORS), TENSORS);
    for (uint32_t step = 0; step < 3; step++) {
        (void)step_run(step);
        for (uint32_t i = 0; i < 40; i++)
            use_in(space, i * 3 % 8);
    }
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).plan_accesses, TENSORS);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).deviations, 0);
    rig_close(&rig);
}
END_TEST

START_TEST(a_plan_goes_with_its_space)
{
    open_with(&policy_plan, 0);
    uint32_t space = space_with(1, 8);

    ck_assert_int_eq(declare(&rig.s, 0, TENSORS), TENSORS);
    ck_assert_int_eq(declare_in(space, 8), 8);
    for (uint32_t i = 0; i < 8; i++) {
        struct tiering_id id = {.space = space, .n_parts = 1, .key_len = 1, .key = {(uint8_t)i}};

        ck_assert_uint_eq(rig_pool_stat(&rig, 0).plan_accesses, TENSORS + 8);
        ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
    }
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).plan_accesses, TENSORS);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* PLANS_MAX; whoever declares for what never comes gives way. */
START_TEST(spaces_with_a_plan_have_a_limit)
{
    uint32_t spaces[PLANS_MAX + 1];

    open_with(&policy_plan, 0);
    for (uint32_t i = 0; i <= PLANS_MAX; i++)
        spaces[i] = space_with((uint8_t)(i + 1), 1);
    uint32_t none = space_with(PLANS_MAX + 2, 0);

    ck_assert_int_eq(declare_in(none, 100), 100);
    for (uint32_t i = 0; i < PLANS_MAX; i++)
        ck_assert_int_eq(declare_in(spaces[i], 8), 8);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).plan_accesses, PLANS_MAX * 8);
    ck_assert_int_eq(declare_in(spaces[PLANS_MAX], 8), -ENOSPC);
    ck_assert_int_eq(declare_in(spaces[3], 9), 9);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).plan_accesses, PLANS_MAX * 8 + 1);
    ck_assert_int_eq(declare_in(spaces[3], 0), 0);
    ck_assert_int_eq(declare_in(spaces[PLANS_MAX], 8), 8);

    for (uint32_t i = 0; i <= PLANS_MAX; i++)
        ck_assert_int_eq(declare_in(spaces[i], 0), 0);
    uint32_t most = PLAN_ACCESSES_MAX;
    while (declare_in(none, most) == -E2BIG) /* it has nearly all the slots that there are */
        most -= most / 32;
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).plan_accesses, most);
    ck_assert_int_eq(declare_in(spaces[0], most / 2), (int)most / 2);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).plan_accesses, most / 2);
    rig_close(&rig);
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
    tcase_add_test(tc, waits_for_a_load_that_goes_on_are_counted);
    tcase_add_test(tc, a_plan_that_is_declared_counts_at_once);
    tcase_add_test(tc, a_plan_comes_in_lists);
    tcase_add_test(tc, a_plan_outlives_its_session);
    tcase_add_test(tc, a_plan_is_taken_back);
    tcase_add_test(tc, a_plan_that_is_not_kept_to_is_dropped);
    tcase_add_test(tc, a_plan_has_a_limit);
    tcase_add_loop_test(tc, two_spaces_have_a_plan_each, 0, 2);
    tcase_add_test(tc, a_plan_is_of_its_space);
    tcase_add_test(tc, a_plan_goes_with_its_space);
    tcase_add_test(tc, spaces_with_a_plan_have_a_limit);
    suite_add_tcase(s, tc);

    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
