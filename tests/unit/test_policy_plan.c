/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plan: an order that repeats is learned, or told, and from then on each eviction is the one that Belady would make; what comes
 * otherwise is borne, counted, and in the end believed.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/limits.h"
#include "include/base/mix.h"
#include "tiering/plan_learn.h"
#include "tiering/policy.h"
#include "tiering/slot_set.h"

#define OBJECTS 1024
#define GHOSTS 4096
#define STEP_MAX (4 * OBJECTS)

/* Objects of one sector; an object's hash is its index + 1. */
static struct world {
    struct policy *policy;
    struct policy_node nodes[OBJECTS];
    bool is_there[OBJECTS];
    uint32_t n_there, capacity;
    uint64_t hits, misses;
    uint32_t per_owner; /* objects with an owner in common; 0: all have */
} world;

static uint32_t owner_of(uint32_t obj)
{
    return world.per_owner ? obj / world.per_owner : 0;
}

static uint32_t world_owner(void *ctx, uint32_t obj)
{
    (void)ctx;
    ck_assert(world.is_there[obj]);
    return owner_of(obj);
}

static uint32_t world_find(void *ctx, uint32_t hash_low)
{
    (void)ctx;
    return hash_low > 0 && hash_low <= OBJECTS && world.is_there[hash_low - 1] ? hash_low - 1 : POLICY_NONE;
}

static void world_open_small(uint32_t capacity, bool finds, uint32_t max_ghosts)
{
    world = (struct world){.capacity = capacity};
    struct policy_config config = {.nodes = POLICY_NODES(world.nodes),
                                   .n_nodes = OBJECTS,
                                   .capacity_sectors = capacity,
                                   .max_ghosts = max_ghosts,
                                   .find = finds ? world_find : NULL,
                                   .owner = world_owner};

    ck_assert_int_eq(policy_plan.new(&config, &world.policy), 0);
}

static void world_open(uint32_t capacity, bool finds)
{
    world_open_small(capacity, finds, GHOSTS);
}

static void world_close(void)
{
    policy_plan.free(world.policy);
}

static enum policy_pin never_pinned(void *ctx, uint32_t obj)
{
    (void)ctx;
    ck_assert(world.is_there[obj]);
    return POLICY_FREE;
}

static bool refer(uint32_t obj)
{
    if (world.is_there[obj]) {
        policy_plan.hit(world.policy, obj);
        world.hits++;
        return true;
    }
    policy_plan.miss(world.policy, owner_of(obj), obj + 1, 1);
    world.misses++;
    if (world.n_there == world.capacity) {
        uint32_t victim = policy_plan.victim(world.policy, obj + 1, never_pinned, NULL), coldest;

        ck_assert_uint_eq(policy_plan.coldest(world.policy, &coldest, 1, never_pinned, NULL), 1);
        ck_assert_uint_eq(coldest, victim);
        policy_plan.evict(world.policy, victim, victim + 1, 1);
        world.is_there[victim] = false;
        world.n_there--;
    }
    world.is_there[obj] = true;
    policy_plan.insert(world.policy, obj, obj + 1, 1);
    world.n_there++;
    return false;
}

static struct policy_stat stat_of(void)
{
    struct policy_stat stat;

    policy_plan.stat(world.policy, &stat);
    ck_assert_uint_eq(stat.resident, world.n_there);
    ck_assert_int_eq(policy_plan.check(world.policy), 0);
    return stat;
}

/* A step of training: what it accesses, in order. */
static struct step {
    uint32_t n;
    uint32_t at[STEP_MAX];
} step;

static void step_run(void)
{
    for (uint32_t i = 0; i < step.n; i++)
        refer(step.at[i]);
}

/* An optimizer's groups, one after the other. */
static void step_cycle(uint32_t n)
{
    step.n = n;
    for (uint32_t i = 0; i < n; i++)
        step.at[i] = (i * 7) % n; /* some order; 7 does not divide n */
}

/* Weights: forward, then backward. */
static void step_there_and_back(uint32_t n)
{
    step.n = 2 * n;
    for (uint32_t i = 0; i < n; i++)
        step.at[i] = step.at[2 * n - 1 - i] = i;
}

/* So many accesses of the step's order, again and again. */
static int tell(uint32_t n)
{
    static uint32_t hashes[GHOSTS + 1];

    for (uint32_t i = 0; i < n; i++)
        hashes[i] = step.at[i % step.n] + 1;
    return policy_plan.tell(world.policy, owner_of(step.at[0]), hashes, n);
}

/* How many of `n_steps` steps' accesses hit if each eviction is Belady's, from what is resident now. */
static uint64_t optimum(uint32_t n_steps)
{
    static bool there[OBJECTS];
    uint64_t hits = 0;
    uint32_t n_there = world.n_there;

    memcpy(there, world.is_there, sizeof(there));
    for (uint32_t k = 0; k < n_steps * step.n; k++) {
        uint32_t obj = step.at[k % step.n], farthest = 0, victim = POLICY_NONE;

        if (there[obj]) {
            hits++;
            continue;
        }
        for (uint32_t o = 0; n_there == world.capacity && o < OBJECTS; o++) {
            uint32_t far = 1;

            if (!there[o])
                continue;
            while (far <= step.n && step.at[(k + far) % step.n] != o)
                far++;
            if (far > farthest) {
                farthest = far;
                victim = o;
            }
        }
        if (victim != POLICY_NONE) {
            there[victim] = false;
            n_there--;
        }
        there[obj] = true;
        n_there++;
    }
    return hits;
}

static void steps_run(uint32_t n_steps)
{
    for (uint32_t i = 0; i < n_steps; i++)
        step_run();
}

static void steps_are_optimal(uint32_t n_steps)
{
    uint64_t best = optimum(n_steps), before = world.hits;

    steps_run(n_steps);
    ck_assert_uint_eq(world.hits - before, best);
    ck_assert_uint_gt(best, 0);
}

/* ── learning ────────────────────────────────────────────────────────────────────────────────────────────────── */

START_TEST(a_period_is_learned_when_it_has_come_twice)
{
    struct plan_learner l;

    ck_assert_int_eq(plan_learner_init(&l, 64), 0);
    for (uint32_t i = 0; i < 20; i++) {
        plan_learner_see(&l, 100 + i % 10);
        ck_assert(plan_learner_is_sure(&l) == (i == 19));
    }
    ck_assert_uint_eq(l.period, 10);
    for (uint32_t i = 0; i < 10; i++)
        ck_assert_uint_eq(plan_learner_back(&l, i), 109 - i);
    plan_learner_see(&l, 5);
    ck_assert(!plan_learner_is_sure(&l));
    plan_learner_deinit(&l);
}
END_TEST

START_TEST(a_period_may_have_objects_twice)
{
    static const uint32_t period[] = {1, 2, 1, 3, 3, 4, 2, 5};
    struct plan_learner l;

    ck_assert_int_eq(plan_learner_init(&l, 64), 0);
    for (uint32_t i = 0; i < 4 * ARRAY_LEN(period); i++)
        plan_learner_see(&l, period[i % ARRAY_LEN(period)]);
    ck_assert(plan_learner_is_sure(&l));
    ck_assert_uint_eq(l.period, ARRAY_LEN(period));
    plan_learner_deinit(&l);
}
END_TEST

START_TEST(a_period_that_is_too_long_is_none)
{
    struct plan_learner l;

    ck_assert_int_eq(plan_learner_init(&l, 64), 0);
    for (uint32_t i = 0; i < 1000; i++) {
        plan_learner_see(&l, 1 + i % 64);
        ck_assert(!plan_learner_is_sure(&l));
    }
    plan_learner_deinit(&l);
    ck_assert_int_eq(plan_learner_init(&l, 0), 0); /* learns nothing, and may be asked */
    plan_learner_see(&l, 1);
    ck_assert(!plan_learner_is_sure(&l));
    plan_learner_deinit(&l);
}
END_TEST

START_TEST(random_accesses_have_no_period)
{
    struct plan_learner l;
    uint64_t seed = 1;

    ck_assert_int_eq(plan_learner_init(&l, 1024), 0);
    for (uint32_t i = 0; i < 100000; i++) {
        plan_learner_see(&l, (uint32_t)(splitmix64_next(&seed) % 300));
        ck_assert(!plan_learner_is_sure(&l) || l.period < 8);
    }
    plan_learner_deinit(&l);
}
END_TEST

/* ── slots ───────────────────────────────────────────────────────────────────────────────────────────────────── */

START_TEST(the_largest_below_is_found)
{
    static bool has[5000];
    struct slot_set s;
    uint64_t seed = 3;
    uint32_t len = 0;

    ck_assert_int_eq(slot_set_init(&s, ARRAY_LEN(has)), 0);
    for (uint32_t i = 0; i < 20000; i++) {
        uint32_t at = (uint32_t)(splitmix64_next(&seed) % ARRAY_LEN(has)),
                 end = (uint32_t)(splitmix64_next(&seed) % (ARRAY_LEN(has) + 1));
        bool add = splitmix64_next(&seed) % 100 < (i < 10000 ? 20 : 60);

        len = len - has[at] + add;
        has[at] = add;
        if (add)
            slot_set_add(&s, at);
        else
            slot_set_drop(&s, at);
        ck_assert_uint_eq(s.len, len);
        uint32_t found = slot_set_below(&s, end);

        while (end > 0 && !has[end - 1])
            end--;
        ck_assert_uint_eq(found, end > 0 ? end - 1 : SLOT_SET_NONE);
    }
    slot_set_deinit(&s);
}
END_TEST

/* ── following ───────────────────────────────────────────────────────────────────────────────────────────────── */

static const uint32_t percents[] = {25, 50, 75};

START_TEST(a_cycle_is_held_as_well_as_can_be)
{
    uint32_t n = 400;

    step_cycle(n);
    world_open(n * percents[_i] / 100, false);
    steps_run(2);
    ck_assert_uint_eq(world.hits, 0); /* LRU */
    step_run();                       /* is learned and copied */
    step_run();                       /* each resident is met */
    ck_assert_uint_eq(stat_of().plan_accesses, n);
    steps_are_optimal(20);
    ck_assert_uint_eq(stat_of().deviations, 0);
    ck_assert_uint_eq(stat_of().plans, 1);
    world_close();
}
END_TEST

START_TEST(there_and_back_is_held_as_well_as_can_be)
{
    uint32_t n = 300;

    step_there_and_back(n);
    world_open(n * percents[_i] / 100, true);
    steps_run(4);
    ck_assert_uint_eq(stat_of().plan_accesses, 2 * n);
    steps_are_optimal(20);
    ck_assert_uint_eq(stat_of().deviations, 0);
    world_close();
}
END_TEST

/* Of any accesses that follow each other about as many hit as of all: so what computes on hits hides the loads between. */
START_TEST(hits_are_spread_over_a_cycle)
{
    static bool hits[400];
    uint32_t n = ARRAY_LEN(hits), window = 16, expected = window * percents[_i] / 100;

    step_cycle(n);
    world_open(n * percents[_i] / 100, true);
    steps_run(5);
    steps_are_optimal(5);
    for (uint32_t i = 0; i < n; i++)
        hits[i] = refer(step.at[i]);
    /* But for a margin of a 16th of those that are, or are not, resident. */
    for (uint32_t i = 0, uneven = 0; i < n; i++) {
        uint32_t found = 0;

        for (uint32_t k = 0; k < window; k++)
            found += hits[(i + k) % n];
        uneven += found + 3 < expected || found > expected + 3;
        ck_assert_uint_le(uneven, n / 8 + 2 * window);
    }
    world_close();
}
END_TEST

/* The memory becomes less, then more again. */
START_TEST(a_spread_follows_the_memory)
{
    static const uint32_t capacities[] = {200, 100, 300, 200};

    step_cycle(400);
    world_open(200, true);
    steps_run(3);
    for (uint32_t k = 0; k < ARRAY_LEN(capacities); k++) {
        world.capacity = capacities[k];
        while (world.n_there > world.capacity) {
            uint32_t victim = policy_plan.victim(world.policy, 0, never_pinned, NULL);

            policy_plan.evict(world.policy, victim, victim + 1, 1);
            world.is_there[victim] = false;
            world.n_there--;
        }
        steps_run(3);
        steps_are_optimal(5);
    }
    world_close();
}
END_TEST

START_TEST(residents_are_met_at_once)
{
    step_cycle(400);
    world_open(200, true);
    step_run();
    step_run();
    for (uint32_t i = 0; i < 3 * 400 / 64 + 3; i++) /* copied, linked, met: 64 slots for each access */
        refer(step.at[i]);
    ck_assert_uint_eq(stat_of().plan_accesses, 400);
    uint64_t before = world.hits;

    for (uint32_t i = 3 * 400 / 64 + 3; i < 400; i++)
        refer(step.at[i]);
    ck_assert_uint_ge(world.hits - before, 90); /* of 200: about half of them go for those that are spread */
    world_close();
}
END_TEST

/* What the plan does not know goes first, once it is older than all else. */
START_TEST(strangers_go_first)
{
    step_cycle(100);
    world_open(50, true);
    steps_run(5);
    uint64_t before = world.hits;

    step_run();
    uint64_t usual = world.hits - before;

    for (uint32_t i = 0; i < 5; i++)
        refer(OBJECTS - 1 - i);
    step_run();
    step_run();
    before = world.hits;
    step_run();
    ck_assert_uint_ge(world.hits - before + 1, usual); /* 49 or 50 of 99 */
    for (uint32_t i = 0; i < 5; i++)
        ck_assert(!world.is_there[OBJECTS - 1 - i]);
    ck_assert_uint_eq(stat_of().deviations, 5);
    world_close();
}
END_TEST

/* Two that change places, one that is left out, one that comes twice: the plan stays. */
START_TEST(small_deviations_are_borne)
{
    step_cycle(200);
    world_open(100, true);
    steps_run(5);
    uint64_t before = world.hits;

    step_run();
    uint64_t usual = world.hits - before;

    for (uint32_t k = 0; k < 20; k++) {
        before = world.hits;
        for (uint32_t i = 0; i < step.n; i++) {
            uint32_t at = i == 50 ? 51 : i == 51 ? 50 : i;

            if (i != 120)
                refer(step.at[at]);
            if (i == 150)
                refer(step.at[at]);
        }
        ck_assert_uint_ge(world.hits - before + 5, usual);
    }
    struct policy_stat stat = stat_of();

    ck_assert_uint_eq(stat.plan_accesses, 200);
    ck_assert_uint_eq(stat.plans, 1);
    ck_assert_uint_ge(stat.deviations, 20 * 3);
    ck_assert_uint_le(stat.deviations, 20 * 5);
    world_close();
}
END_TEST

static uint32_t n_busy;
static uint32_t farthest[OBJECTS];

static enum policy_pin farthest_are_busy(void *ctx, uint32_t obj)
{
    (void)ctx;
    for (uint32_t i = 0; i < n_busy; i++)
        if (farthest[i] == obj)
            return POLICY_BUSY;
    return POLICY_FREE;
}

/* Those due farthest are on their way out: nobody who is due before them goes in their place. */
START_TEST(the_farthest_are_worth_waiting_for)
{
    step_cycle(200);
    world_open(100, true);
    steps_run(5);
    ck_assert_uint_eq(policy_plan.coldest(world.policy, farthest, 100, never_pinned, NULL), 100);
    n_busy = 0;
    ck_assert_uint_eq(policy_plan.victim(world.policy, 0, farthest_are_busy, NULL), farthest[0]);
    n_busy = 1;
    ck_assert_uint_eq(policy_plan.victim(world.policy, 0, farthest_are_busy, NULL), POLICY_SOON);
    n_busy = 100;
    ck_assert_uint_eq(policy_plan.victim(world.policy, 0, farthest_are_busy, NULL), POLICY_SOON);
    world_close();
}
END_TEST

START_TEST(what_is_not_there_is_counted_ahead)
{
    step_cycle(200);
    world_open(100, true);
    ck_assert_uint_eq(policy_plan.misses_ahead(world.policy, 8), UINT32_MAX);
    steps_run(5);
    for (uint32_t i = 0; i < step.n; i++) {
        uint32_t misses = 0;

        for (uint32_t k = 0; k < 8; k++)
            misses += !world.is_there[step.at[(i + k) % step.n]];
        ck_assert_uint_eq(policy_plan.misses_ahead(world.policy, 8), misses);
        refer(step.at[i]);
    }
    ck_assert_uint_eq(policy_plan.misses_ahead(world.policy, UINT32_MAX - 1), 100);
    world_close();
}
END_TEST

static uint32_t fetched[OBJECTS], n_fetched;

/* Brings it at once, in the place of a victim. */
static bool fetch_now(void *ctx, uint32_t hash_low)
{
    uint32_t obj = hash_low - 1, victim = policy_plan.victim(world.policy, hash_low, never_pinned, NULL);

    (void)ctx;
    ck_assert(!world.is_there[obj]);
    for (uint32_t i = 0; i < n_fetched; i++)
        ck_assert_uint_ne(victim, fetched[i]);
    policy_plan.evict(world.policy, victim, victim + 1, 1);
    world.is_there[victim] = false;
    world.is_there[obj] = true;
    policy_plan.insert(world.policy, obj, hash_low, 1);
    fetched[n_fetched++] = obj;
    return true;
}

/* Of an order that was just learned, some who are there were not met yet. */
static bool fetch_unless_there(void *ctx, uint32_t hash_low)
{
    return !world.is_there[hash_low - 1] && fetch_now(ctx, hash_low);
}

/* What is brought early is what comes next, does not go before it is used, and costs no hits. */
START_TEST(what_comes_next_is_brought)
{
    step_cycle(200);
    world_open(100, true);
    steps_run(5);
    for (uint32_t i = 0; i < step.n; i++) {
        uint32_t slot = i, before = (uint32_t)stat_of().prefetched_used;

        n_fetched = 0;
        policy_plan.fetch(world.policy, 4, fetch_now, NULL);
        ck_assert_uint_le(n_fetched, 4);
        for (uint32_t k = 0; k < n_fetched; k++, slot++)
            while (step.at[slot % step.n] != fetched[k])
                ck_assert(world.is_there[step.at[slot++ % step.n]]);
        ck_assert(refer(step.at[i]));
        ck_assert_uint_le(stat_of().prefetched_used, before + 1);
    }
    ck_assert_uint_ge(stat_of().prefetched_used, 95);
    ck_assert_uint_le(stat_of().prefetched_used, 110);
    ck_assert_uint_eq(stat_of().prefetched_wasted, 0);
    refer(OBJECTS - 1);
    n_fetched = 0;
    policy_plan.fetch(world.policy, 100, fetch_now, NULL); /* not so soon after a stranger */
    ck_assert_uint_eq(n_fetched, 0);
    world_close();
}
END_TEST

/* So with what is used twice in a period: all that an eviction could not save is there in time, and no more is brought. */
START_TEST(what_comes_next_is_brought_there_and_back)
{
    uint32_t n_brought = 0;

    step_there_and_back(200);
    world_open(100, true);
    steps_run(5);
    uint64_t misses = 5 * step.n - optimum(5);

    for (uint32_t i = 0; i < 5 * step.n; i++) {
        n_fetched = 0;
        policy_plan.fetch(world.policy, 4, fetch_unless_there, NULL);
        n_brought += n_fetched;
        ck_assert(refer(step.at[i % step.n]));
    }
    ck_assert_uint_gt(misses, 0);
    ck_assert_uint_le(n_brought, misses + 5 * 4);
    ck_assert_uint_ge(stat_of().prefetched_used + 4, n_brought);
    ck_assert_uint_eq(stat_of().prefetched_wasted, 0);
    world_close();
}
END_TEST

/* A step that is begun anew in its middle: the place is found again. */
START_TEST(a_step_begun_anew_is_followed)
{
    step_cycle(200);
    world_open(100, true);
    steps_run(5);
    for (uint32_t i = 0; i < 100; i++)
        refer(step.at[i]);
    step_run();
    ck_assert_uint_eq(stat_of().plan_accesses, 200);
    ck_assert_uint_le(stat_of().deviations, 4);
    steps_are_optimal(3);
    world_close();
}
END_TEST

START_TEST(another_order_is_learned)
{
    step_cycle(200);
    world_open(100, true);
    steps_run(5);
    ck_assert_uint_eq(stat_of().plan_accesses, 200);
    for (uint32_t i = 0; i < step.n; i++)
        step.at[i] = (i * 11 + 300) % 500; /* others, and in another order */
    step_run();
    ck_assert_uint_eq(stat_of().plan_accesses, 0);
    steps_run(4);
    ck_assert_uint_eq(stat_of().plans, 2);
    steps_are_optimal(5);
    world_close();
}
END_TEST

/* Objects that leave and come at any time, and orders that change: the sums stay right. */
START_TEST(random_use_keeps_the_sums)
{
    uint64_t seed = (uint64_t)_i + 10;

    world_open(60, _i % 2);
    for (uint32_t k = 0; k < 60; k++) {
        if (k % 12 == 0)
            step_cycle(97 + (uint32_t)(splitmix64_next(&seed) % 3) * 16);
        for (uint32_t i = 0; i < step.n; i++) {
            uint64_t dice = splitmix64_next(&seed) % 400;

            if (dice == 0 && k % 12 > 6) {
                refer((uint32_t)(splitmix64_next(&seed) % 300));
            } else if (dice == 2 && k % 4 == 0) {
                (void)tell((uint32_t)(splitmix64_next(&seed) % step.n));
            } else if (dice == 1) {
                uint32_t obj = (uint32_t)(splitmix64_next(&seed) % 300);

                if (world.is_there[obj]) {
                    policy_plan.remove(world.policy, obj, 1);
                    world.is_there[obj] = false;
                    world.n_there--;
                }
            }
            refer(step.at[i]);
            if (dice % 16 == 0)
                (void)stat_of();
        }
    }
    ck_assert_uint_gt(stat_of().plans, 1);
    world_close();
}
END_TEST

/* ── told ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Belady's from the first access on; what is only learned has no hit in the first two steps. */
START_TEST(a_cycle_that_is_told_is_held_at_once)
{
    uint32_t n = 400;

    step_cycle(n);
    world_open(n * percents[_i] / 100, true);
    steps_run(2);
    ck_assert_uint_eq(world.hits, 0);
    world_close();

    world_open(n * percents[_i] / 100, _i % 2);
    ck_assert_int_eq(tell(n), (int)n);
    ck_assert_uint_eq(stat_of().plan_accesses, n);
    steps_are_optimal(2);
    steps_are_optimal(1);
    steps_are_optimal(5);
    ck_assert_uint_eq(stat_of().deviations, 0);
    ck_assert_uint_eq(stat_of().plans, 1);
    world_close();
}
END_TEST

START_TEST(there_and_back_that_is_told_is_held_at_once)
{
    uint32_t n = 300;

    step_there_and_back(n);
    world_open(n * percents[_i] / 100, true);
    ck_assert_int_eq(tell(step.n), (int)step.n);
    steps_are_optimal(1);
    steps_are_optimal(3);
    ck_assert_uint_eq(stat_of().deviations, 0);
    world_close();
}
END_TEST

/* Who is there already is met at once. */
START_TEST(residents_are_met_when_it_is_told)
{
    uint32_t coldest;

    step_cycle(400);
    world_open(200, true);
    steps_run(1);
    ck_assert_int_eq(tell(400), 400);
    ck_assert_uint_eq(policy_plan.coldest(world.policy, &coldest, 1, never_pinned, NULL), 1);
    ck_assert_uint_eq(coldest, step.at[399]);
    steps_are_optimal(1);
    ck_assert_uint_eq(stat_of().deviations, 0);
    world_close();

    step_there_and_back(300);
    world_open(150, true);
    steps_run(1);
    ck_assert_int_eq(tell(step.n), (int)step.n);
    steps_are_optimal(1);
    steps_are_optimal(3);
    ck_assert_uint_eq(stat_of().deviations, 0);
    world_close();
}
END_TEST

/* As one that was learned: borne, counted, in the end given up; what comes instead is learned. */
START_TEST(an_order_that_is_not_kept_to_is_given_up)
{
    step_cycle(200);
    world_open(100, true);
    ck_assert_int_eq(tell(step.n), (int)step.n);
    steps_run(2);
    refer(OBJECTS - 1);
    steps_run(1);
    ck_assert_uint_eq(stat_of().deviations, 1);
    ck_assert_uint_eq(stat_of().plan_accesses, 200);
    for (uint32_t i = 0; i < step.n; i++)
        step.at[i] = (i * 11 + 300) % 500;
    steps_run(1);
    ck_assert_uint_eq(stat_of().plan_accesses, 0);
    ck_assert_uint_gt(stat_of().deviations, 30);
    ck_assert_uint_le(stat_of().deviations, 40);
    steps_run(4);
    ck_assert_uint_eq(stat_of().plans, 2);
    steps_are_optimal(5);
    world_close();
}
END_TEST

/* Another order, or none: the table has nothing left of the last one, whether that was short or long. */
START_TEST(another_order_is_told)
{
    static const uint32_t lengths[] = {200, 33, 9, 130, 8, 400, 11};

    world_open(100, true);
    for (uint32_t i = 0; i < ARRAY_LEN(lengths); i++) {
        step_cycle(lengths[i]);
        if (i == 3)
            step_there_and_back(65);
        ck_assert_int_eq(tell(step.n), (int)step.n);
        steps_run(2);
        ck_assert_uint_eq(stat_of().deviations, 0);
        ck_assert_uint_eq(stat_of().plan_accesses, step.n);
    }
    steps_run(1); /* three: it has been learned meanwhile, too */
    ck_assert_int_eq(tell(0), 0);
    ck_assert_uint_eq(stat_of().plan_accesses, 0);
    for (uint32_t i = 0; i < 3; i++)
        refer(OBJECTS - 1 - i);
    ck_assert_uint_eq(stat_of().plan_accesses, 0);
    ck_assert_uint_eq(stat_of().deviations, 0);
    world_close();
}
END_TEST

START_TEST(an_order_that_is_too_short_or_too_long_is_none)
{
    step_cycle(200);
    world_open(100, true);
    ck_assert_int_eq(tell(200), 200);
    ck_assert_int_eq(tell(GHOSTS), -E2BIG);
    ck_assert_uint_eq(stat_of().plan_accesses, 200); /* as before */
    ck_assert_int_eq(tell(GHOSTS - GHOSTS / 32 - 2), GHOSTS - GHOSTS / 32 - 2);
    steps_run(2);
    ck_assert_int_eq(tell(7), 0);
    ck_assert_uint_eq(stat_of().plan_accesses, 0);
    world_close();
}
END_TEST

/* ── several ─────────────────────────────────────────────────────────────────────────────────────────────────── */

#define OWNERS 4
#define PER_OWNER (OBJECTS / OWNERS)

enum mix { IN_TURN, IN_BURSTS, AT_RANDOM, MIXES };

static bool turns_back; /* who goes through its objects: by there and back, of half as many */

static uint32_t object_of(uint32_t owner, uint32_t n, uint32_t i)
{
    i %= n;
    return owner * PER_OWNER + (turns_back ? MIN(i, n - 1 - i) : i * 7 % n);
}

/* A step of `owners`, each of which has an order of n accesses; the first goes through its own `laps` times. */
static void step_of_several(uint32_t owners, uint32_t n, uint32_t laps, enum mix mix, uint64_t *seed)
{
    uint32_t done[OWNERS] = {0}, owner = 0;

    step.n = 0;
    for (uint32_t left = (owners - 1 + laps) * n; left > 0; left--) {
        if (mix == AT_RANDOM)
            owner = (uint32_t)(splitmix64_next(seed) % owners);
        else if (mix == IN_TURN && (owner > 0 || done[0] % laps == 0))
            owner = (owner + 1) % owners;
        while (done[owner] == n * (owner == 0 ? laps : 1))
            owner = (owner + 1) % owners;
        step.at[step.n++] = object_of(owner, n, done[owner]++);
    }
}

static int tell_of(uint32_t owner, uint32_t n)
{
    uint32_t hashes[PER_OWNER];

    for (uint32_t i = 0; i < n; i++)
        hashes[i] = object_of(owner, n, i) + 1;
    return policy_plan.tell(world.policy, owner, hashes, n);
}

static void open_for_several(uint32_t capacity)
{
    world_open(capacity, true);
    world.per_owner = PER_OWNER;
}

/* Of the step as it is now, by owner; returns all. */
static uint64_t step_count(uint64_t *hits, uint64_t *uses)
{
    uint64_t before = world.hits;

    for (uint32_t i = 0; i < step.n; i++) {
        uint32_t owner = owner_of(step.at[i]);

        uses[owner]++;
        hits[owner] += refer(step.at[i]);
    }
    return world.hits - before;
}

/* In lockstep, one after the other, or as it comes; or one of them is faster: then it has not all of what is to be had. */
START_TEST(several_orders_are_held_beside_each_other)
{
    static const struct {
        uint32_t owners, n, laps;
        enum mix mix;
        uint32_t percent; /* of the optimum */
    } cases[] = {{2, 200, 1, IN_TURN, 99},   {2, 200, 1, IN_BURSTS, 99}, {2, 200, 1, AT_RANDOM, 99},
                 {4, 100, 1, IN_TURN, 98},   {4, 100, 1, IN_BURSTS, 98}, {4, 100, 1, AT_RANDOM, 98},
                 {2, 200, 3, IN_BURSTS, 75}, {2, 200, 3, IN_TURN, 75}};
    uint32_t owners = cases[_i].owners, n = cases[_i].n;
    uint64_t seed = 5, found = 0, best = 0, hits[OWNERS] = {0}, uses[OWNERS] = {0};

    open_for_several(owners * n / 2);
    for (uint32_t k = 0; k < 3; k++) {
        step_of_several(owners, n, 1, AT_RANDOM, &seed);
        step_run();
    }
    ck_assert_uint_eq(world.hits, 0); /* by age */
    for (uint32_t owner = 0; owner < owners; owner++)
        ck_assert_int_eq(tell_of(owner, n), (int)n);
    for (uint32_t k = 0; k < 20; k++) {
        step_of_several(owners, n, cases[_i].laps, cases[_i].mix, &seed);
        best += k < 2 ? 0 : optimum(1);
        if (k < 2)
            step_run();
        else
            found += step_count(hits, uses);
    }
    ck_assert_uint_ge(100 * found, cases[_i].percent * best);
    for (uint32_t owner = 0; owner < owners; owner++)
        ck_assert_uint_ge(100 * hits[owner], 40 * uses[owner]); /* of 50 that would be its part */
    ck_assert_uint_eq(stat_of().deviations, 0);
    ck_assert_uint_eq(stat_of().plan_accesses, owners * n);
    ck_assert_uint_eq(stat_of().plans, owners);
    world_close();
}
END_TEST

/* Who goes there and back has no stays: there it is distances alone, and who is slower is farther. */
START_TEST(who_is_slower_is_farther)
{
    uint64_t seed = 5, found = 0, best = 0, hits[OWNERS] = {0}, uses[OWNERS] = {0};

    turns_back = true;
    open_for_several(100);
    ck_assert_int_eq(tell_of(0, 200), 200);
    ck_assert_int_eq(tell_of(1, 200), 200);
    for (uint32_t k = 0; k < 12; k++) {
        step_of_several(2, 200, 3, (enum mix)_i, &seed);
        best += k < 2 ? 0 : optimum(1);
        if (k < 2)
            step_run();
        else
            found += step_count(hits, uses);
    }
    ck_assert_uint_ge(100 * found, (_i == IN_TURN ? 100 : 75) * best); /* if a slot were a slot: 92, 61 and 69 */
    for (uint32_t owner = 0; owner < 2; owner++)
        ck_assert_uint_gt(hits[owner], 0);
    turns_back = false;
    world_close();
}
END_TEST

/* One after the other ends, and begins again: what the table has of the others is found, in whatever place it is by then. */
START_TEST(one_that_ends_leaves_the_others_in_place)
{
    uint64_t seed = 11;
    bool told[OWNERS] = {false};

    world_open_small(OWNERS * 15 / 2, true, 64); /* all owners' objects want the same places in it */
    world.per_owner = PER_OWNER;
    step_of_several(OWNERS, 15, 1, AT_RANDOM, &seed);
    step_run();
    for (uint32_t k = 0; k < 300; k++) {
        uint32_t owner = (uint32_t)(splitmix64_next(&seed) % OWNERS), n_told = 0, n_away = 0;

        told[owner] = !told[owner];
        ck_assert_int_eq(tell_of(owner, told[owner] ? 15 : 0), told[owner] ? 15 : 0);
        step_of_several(OWNERS, 15, 1, AT_RANDOM, &seed);
        step_run();
        for (uint32_t i = 0; i < step.n; i++)
            n_away += told[owner_of(step.at[i])] && !world.is_there[step.at[i]];
        for (uint32_t i = 0; i < OWNERS; i++)
            n_told += told[i];
        if (n_told > 0 && n_away < n_told * 15) {
            ck_assert_uint_eq(stat_of().plan_accesses, n_told * 15);
            ck_assert_uint_eq(policy_plan.misses_ahead(world.policy, 10000), n_away);
        }
    }
    world_close();
}
END_TEST

/* What one does otherwise than it said costs nobody else anything, and what comes of one who said nothing nobody at all. */
START_TEST(one_that_is_not_kept_to_is_given_up_alone)
{
    uint64_t seed = 7, hits[OWNERS] = {0}, uses[OWNERS] = {0};

    open_for_several(200);
    ck_assert_int_eq(tell_of(0, 200), 200);
    ck_assert_int_eq(tell_of(1, 200), 200);
    for (uint32_t k = 0; k < 3; k++) {
        step_of_several(2, 200, 1, AT_RANDOM, &seed);
        step_run();
    }
    for (uint32_t i = 0; i < 20; i++)
        refer(2 * PER_OWNER + i);
    ck_assert_uint_eq(stat_of().deviations, 0);
    for (uint32_t k = 0; k < 10; k++) {
        step_of_several(2, 200, 1, IN_TURN, &seed);
        for (uint32_t i = 0; i < step.n; i++)
            step.at[i] = owner_of(step.at[i]) ? step.at[i] : (uint32_t)(splitmix64_next(&seed) % 200);
        if (k < 3)
            step_run();
        else
            (void)step_count(hits, uses);
    }
    struct policy_stat stat = stat_of();

    ck_assert_uint_eq(stat.plan_accesses, 200);
    ck_assert_uint_ge(stat.deviations, 30);
    ck_assert_uint_le(stat.deviations, 40);
    ck_assert_uint_ge(100 * hits[1], 30 * uses[1]);
    ck_assert_int_eq(tell_of(0, 200), 200);
    ck_assert_uint_eq(stat_of().plan_accesses, 400);
    world_close();
}
END_TEST

/* One that stops keeps what it has for a while; then the other has all, until it comes back. */
START_TEST(one_that_stops_is_in_nobodys_way)
{
    uint64_t seed = 9, hits[OWNERS] = {0}, uses[OWNERS] = {0};

    open_for_several(200);
    ck_assert_int_eq(tell_of(0, 200), 200);
    ck_assert_int_eq(tell_of(1, 200), 200);
    step_of_several(2, 200, 1, AT_RANDOM, &seed);
    steps_run(5);
    step_of_several(1, 200, 1, IN_TURN, &seed);
    (void)step_count(hits, uses);
    ck_assert_uint_le(hits[0], 150);
    steps_run(12);
    hits[0] = 0;
    (void)step_count(hits, uses);
    ck_assert_uint_ge(hits[0], 198); /* all fits but for what it takes to find out */
    ck_assert_uint_eq(stat_of().plan_accesses, 400);
    for (uint32_t k = 0; k < 8; k++) {
        step_of_several(2, 200, 1, AT_RANDOM, &seed);
        hits[0] = hits[1] = 0;
        (void)step_count(hits, uses);
    }
    ck_assert_uint_ge(hits[0], 90);
    ck_assert_uint_ge(hits[1], 90);
    ck_assert_uint_eq(stat_of().deviations, 0);
    world_close();
}
END_TEST

static uint32_t gone;

static bool is_gone(const void *ctx, uint32_t owner)
{
    return owner == *(const uint32_t *)ctx;
}

/* PLANS_MAX of them, and all together no more than one alone may have; a place that is free again is as good as new. */
START_TEST(there_is_a_limit_to_several)
{
    uint32_t hashes[GHOSTS], most = GHOSTS - GHOSTS / 32 - 2;

    for (uint32_t i = 0; i < GHOSTS; i++)
        hashes[i] = i + 1;
    open_for_several(200);
    for (uint32_t owner = 0; owner < PLANS_MAX; owner++)
        ck_assert_int_eq(policy_plan.tell(world.policy, owner, hashes, 100), 100);
    ck_assert_int_eq(policy_plan.tell(world.policy, PLANS_MAX, hashes, 100), -ENOSPC);
    ck_assert_int_eq(policy_plan.tell(world.policy, PLANS_MAX, hashes, 7), 0);
    ck_assert_int_eq(policy_plan.tell(world.policy, 3, hashes, most - PLANS_MAX * 100 + 1), -E2BIG);
    ck_assert_uint_eq(stat_of().plan_accesses, PLANS_MAX * 100);
    ck_assert_uint_eq(stat_of().plans, PLANS_MAX);
    ck_assert_int_eq(policy_plan.tell(world.policy, 3, hashes, 99), 99);
    gone = 5;
    policy_plan.forget(world.policy, is_gone, &gone);
    policy_plan.forget(world.policy, is_gone, &gone);
    ck_assert_uint_eq(stat_of().plan_accesses, (PLANS_MAX - 2) * 100 + 99);
    ck_assert_int_eq(policy_plan.tell(world.policy, PLANS_MAX, hashes, 100), 100);
    ck_assert_int_eq(policy_plan.tell(world.policy, 5, hashes, 100), -ENOSPC);
    for (uint32_t owner = 0; owner <= PLANS_MAX; owner++)
        ck_assert_int_eq(policy_plan.tell(world.policy, owner, hashes, 0), 0);
    ck_assert_uint_eq(stat_of().plan_accesses, 0);
    ck_assert_int_eq(policy_plan.tell(world.policy, 1, hashes, most), (int)most);
    ck_assert_int_eq(policy_plan.tell(world.policy, 2, hashes, 8), -E2BIG);
    world_close();
}
END_TEST

/* What is brought early is each one's in turn, and together it is no more than may be. */
START_TEST(what_comes_next_is_brought_for_each)
{
    static const uint32_t most[] = {1, 2, 8};
    uint64_t seed = 3, hits[OWNERS] = {0}, uses[OWNERS] = {0};

    open_for_several(200);
    ck_assert_int_eq(tell_of(0, 200), 200);
    ck_assert_int_eq(tell_of(1, 200), 200);
    for (uint32_t k = 0; k < 6; k++) {
        step_of_several(2, 200, 1, AT_RANDOM, &seed);
        for (uint32_t i = 0; i < step.n; i++) {
            struct policy_stat before = stat_of();

            n_fetched = 0;
            if (k > 2)
                policy_plan.fetch(world.policy, most[_i], fetch_now, NULL);
            struct policy_stat after = stat_of();

            ck_assert_uint_eq(after.prefetched_used + after.prefetched_wasted,
                              before.prefetched_used + before.prefetched_wasted);
            uses[owner_of(step.at[i])]++;
            hits[owner_of(step.at[i])] += refer(step.at[i]) && k > 2;
        }
    }
    ck_assert_uint_ge(stat_of().prefetched_used, most[_i] > 1 ? 600 : 200);
    ck_assert_uint_eq(stat_of().prefetched_wasted, 0);
    for (uint32_t owner = 0; owner < 2; owner++)
        ck_assert_uint_ge(100 * hits[owner], (most[_i] > 1 ? 95 : 45) * (uses[owner] / 2));
    world_close();
}
END_TEST

/* Told anew, taken back, left, forgotten: the table and the sums stay right. */
START_TEST(several_at_random_keep_the_sums)
{
    uint64_t seed = (uint64_t)_i + 20;

    open_for_several(150);
    for (uint32_t k = 0; k < 200; k++) {
        uint32_t owner = (uint32_t)(splitmix64_next(&seed) % OWNERS), n = 60 + (uint32_t)(splitmix64_next(&seed) % 100);
        uint64_t dice = splitmix64_next(&seed) % 8;

        if (dice < 4) {
            ck_assert_int_eq(tell_of(owner, n), (int)n);
        } else if (dice == 4) {
            ck_assert_int_eq(tell_of(owner, 0), 0);
        } else if (dice == 5) {
            gone = owner;
            policy_plan.forget(world.policy, is_gone, &gone);
        }
        for (uint32_t i = 0; dice == 6 && i < 40; i++)
            refer(owner * PER_OWNER + (uint32_t)(splitmix64_next(&seed) % PER_OWNER));
        step_of_several(1 + (uint32_t)(splitmix64_next(&seed) % OWNERS), n, 1, AT_RANDOM, &seed);
        for (uint32_t i = 0; i < step.n; i++) {
            if (i % 16 == 0) {
                n_fetched = 0;
                policy_plan.fetch(world.policy, world.n_there == world.capacity ? 4 : 0, fetch_unless_there, NULL);
                (void)stat_of();
            }
            refer(step.at[i]);
        }
    }
    for (uint32_t owner = 0; owner < OWNERS; owner++)
        ck_assert_int_eq(tell_of(owner, 50), 50);
    step_of_several(OWNERS, 50, 1, AT_RANDOM, &seed);
    uint64_t deviations = stat_of().deviations;

    steps_run(3);
    ck_assert_uint_eq(stat_of().deviations, deviations);
    ck_assert_uint_eq(stat_of().plan_accesses, OWNERS * 50);
    world_close();
}
END_TEST

static enum policy_pin half_is_held(void *ctx, uint32_t obj)
{
    (void)ctx;
    return obj % 2 ? POLICY_HELD : POLICY_FREE;
}

START_TEST(the_held_keep_their_places)
{
    step_cycle(201);
    world_open(100, true);
    steps_run(5);
    for (uint32_t i = 0; i < 40; i++) {
        uint32_t victim = policy_plan.victim(world.policy, 0, half_is_held, NULL);

        ck_assert_uint_eq(victim % 2, 0);
        policy_plan.evict(world.policy, victim, victim + 1, 1);
        world.is_there[victim] = false;
        world.n_there--;
        (void)stat_of();
    }
    world_close();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("policy_plan");
    TCase *tc = tcase_create("plan");

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, a_period_is_learned_when_it_has_come_twice);
    tcase_add_test(tc, a_period_may_have_objects_twice);
    tcase_add_test(tc, a_period_that_is_too_long_is_none);
    tcase_add_test(tc, random_accesses_have_no_period);
    tcase_add_test(tc, the_largest_below_is_found);
    tcase_add_loop_test(tc, a_cycle_is_held_as_well_as_can_be, 0, ARRAY_LEN(percents));
    tcase_add_loop_test(tc, there_and_back_is_held_as_well_as_can_be, 0, ARRAY_LEN(percents));
    tcase_add_loop_test(tc, hits_are_spread_over_a_cycle, 0, ARRAY_LEN(percents));
    tcase_add_test(tc, a_spread_follows_the_memory);
    tcase_add_test(tc, residents_are_met_at_once);
    tcase_add_test(tc, strangers_go_first);
    tcase_add_test(tc, small_deviations_are_borne);
    tcase_add_test(tc, the_farthest_are_worth_waiting_for);
    tcase_add_test(tc, what_is_not_there_is_counted_ahead);
    tcase_add_test(tc, what_comes_next_is_brought);
    tcase_add_test(tc, what_comes_next_is_brought_there_and_back);
    tcase_add_test(tc, a_step_begun_anew_is_followed);
    tcase_add_test(tc, another_order_is_learned);
    tcase_add_loop_test(tc, a_cycle_that_is_told_is_held_at_once, 0, ARRAY_LEN(percents));
    tcase_add_loop_test(tc, there_and_back_that_is_told_is_held_at_once, 0, ARRAY_LEN(percents));
    tcase_add_test(tc, residents_are_met_when_it_is_told);
    tcase_add_test(tc, an_order_that_is_not_kept_to_is_given_up);
    tcase_add_test(tc, another_order_is_told);
    tcase_add_test(tc, an_order_that_is_too_short_or_too_long_is_none);
    tcase_add_loop_test(tc, random_use_keeps_the_sums, 0, 6);
    tcase_add_loop_test(tc, several_orders_are_held_beside_each_other, 0, 8);
    tcase_add_loop_test(tc, who_is_slower_is_farther, 0, MIXES);
    tcase_add_test(tc, one_that_ends_leaves_the_others_in_place);
    tcase_add_test(tc, one_that_is_not_kept_to_is_given_up_alone);
    tcase_add_test(tc, one_that_stops_is_in_nobodys_way);
    tcase_add_test(tc, there_is_a_limit_to_several);
    tcase_add_loop_test(tc, what_comes_next_is_brought_for_each, 0, 3);
    tcase_add_loop_test(tc, several_at_random_keep_the_sums, 0, 6);
    tcase_add_test(tc, the_held_keep_their_places);
    suite_add_tcase(s, tc);

    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
