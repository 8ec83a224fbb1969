/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plan: for what is used in the same order again and again, as training does with its states. It learns that order, or is
 * told it, and then evicts what is used farthest in the future (Belady, 1966): on a cycle that does not fit LRU has no hit
 * at all, and this has as many as can be had. Until an order is known, and when it is no longer kept to, it is LRU.
 *
 *   LEARNING ──the last two periods were equal──▶ COPYING ──▶ LINKING ──▶ FOLLOWING
 *      ▲ │              │ another access than foretold │           │       ▲  │ too many of them
 *      └─┼──────────────┴──────────────────────────────┴───────────┴───────┼──┘
 *        └──tell()─────────────────────────────────────────────────────────┘      from any other stage, too
 *
 * COPYING takes the period out of the history into slots, LINKING links each slot with the next one of the same object and
 * says of residents where they are due: a few slots for each access, so that no access is slow. tell() does all of that at
 * once, for its caller pays by the access.
 *
 * Owners that tell have an order each; what one is, and how it goes on, is in policy_plan_order.c.
 *
 * FOLLOWING: `pos` is the slot that is expected. A resident object that the plan knows is due at its next slot: that slot
 * names it, and the object's node names the slot (state[1] from its second byte on, plus one). The one to go is due
 * farthest from pos; before it goes what the plan does not know and nobody has asked for since everything else was.
 *
 * Owns history, slots, orders and one queue of all residents. One engine's thread; nothing is allocated after new().
 */
#include <errno.h>
#include <stdlib.h>

#include "include/base/limits.h"
#include "include/base/touched.h"
#include "tiering/policy_plan.h"

#define PERIOD_MIN 8   /* a shorter order is an accident, or fits */
#define FETCH_AHEAD 64 /* slots */
#define NONE POLICY_NONE

static struct plan *plan_of(struct policy *p)
{
    return container_of(p, struct plan, policy);
}

static const struct plan *plan_of_const(const struct policy *p)
{
    return (const struct plan *)(const void *)p; /* policy is the first member */
}

/* --- Learned ----------------------------------------------------------------------------------------------------- */

static void learned_begin(struct plan *a)
{
    order_begin(a, &a->orders[0], PLAN_ANY, 0, a->learner.period);
    a->orders[0].pos = a->learner.period; /* slot 0 is what comes next */
    a->done = 0;
    a->stage = COPYING;
}

/* The history has gone on since the order began: by as many accesses as `pos` is ahead of the period. */
static void copy_some(struct plan *a, struct order *o)
{
    for (uint32_t i = 0; i < PLAN_STEPS && a->done < o->period; i++, a->done++) {
        uint32_t since = o->pos - o->period;

        order_slot_copy(a, o, o->period - 1 - a->done, plan_learner_back(&a->learner, since + a->done));
    }
    if (a->done < o->period)
        return;
    o->pos %= o->period;
    a->done = 0;
    a->stage = LINKING;
}

static void link_some(struct plan *a, struct order *o)
{
    for (uint32_t i = 0; i < PLAN_STEPS && a->done < o->period; i++, a->done++)
        order_slot_link(a, o, a->done);
    if (a->done == o->period)
        order_follow(a, o);
}

/* --- Accesses ---------------------------------------------------------------------------------------------------- */

/* An access, where an order is being made of what was learned. */
static void see_more(struct plan *a, struct order *o)
{
    if (a->learner.period != o->period) {
        order_drop(a, o);
    } else if (a->stage == COPYING) {
        o->pos++;
        copy_some(a, o);
    } else {
        o->pos = (o->pos + 1) % o->period;
        link_some(a, o);
    }
}

/* An access, before what is to be said of the object that is accessed. */
static void see(struct plan *a, uint32_t owner, uint32_t hash)
{
    plan_learner_see(&a->learner, hash);
    if (a->stage == LEARNING) {
        if (plan_learner_is_sure(&a->learner) && a->learner.period >= PERIOD_MIN && a->learner.period <= a->max_period)
            learned_begin(a);
        return;
    }
    struct order *o = order_of(a, owner);

    if (!o)
        return;
    if (a->stage != FOLLOWING) {
        see_more(a, o);
        return;
    }
    order_see(a, o, hash);
    order_meet_some(a, o);
    if (o->errors > PLAN_ERRORS_MAX)
        order_drop(a, o);
}

/* Says where it is due. */
static void expect(struct plan *a, uint32_t obj)
{
    const struct order *o = a->stage == FOLLOWING ? order_of(a, owner_of(a, obj)) : NULL;
    uint32_t slot = o ? order_slot_next(a, o, node_of(a, obj)->state[2]) : NONE;

    if (slot != NONE)
        order_due_set(a, o, obj, slot);
}

static void plan_miss(struct policy *p, uint32_t owner, uint64_t hash, uint32_t sectors)
{
    (void)sectors;
    see(plan_of(p), owner, (uint32_t)hash);
}

static void plan_insert(struct policy *p, uint32_t obj, uint64_t hash, uint32_t sectors)
{
    struct plan *a = plan_of(p);

    policy_queue_insert(&a->queue, obj, sectors);
    node_of(a, obj)->state[2] = (uint32_t)hash;
    expect(a, obj);
}

static void plan_hit(struct policy *p, uint32_t obj)
{
    struct plan *a = plan_of(p);

    see(a, owner_of(a, obj), node_of(a, obj)->state[2]);
    policy_queue_warm(&a->queue, obj);
    expect(a, obj);
}

static void plan_remove(struct policy *p, uint32_t obj, uint32_t sectors)
{
    struct plan *a = plan_of(p);

    order_early_end(a, due_of(a, obj), false);
    order_due_drop(a, obj);
    policy_queue_drop(&a->queue, obj, sectors);
}

static void plan_evict(struct policy *p, uint32_t obj, uint64_t hash, uint32_t sectors)
{
    (void)hash;
    plan_remove(p, obj, sectors);
}

/* --- Told -------------------------------------------------------------------------------------------------------- */

/* An order that lies within these slots; one that was learned gives way, and so does `but`. */
static const struct order *order_within(const struct plan *a, const struct order *but, uint32_t base, uint32_t n)
{
    for (uint32_t i = 0; i < a->n_orders; i++) {
        const struct order *o = &a->orders[i];

        if (o->period > 0 && o != but && o->owner != PLAN_ANY && o->base < base + n && base < o->base + o->period)
            return o;
    }
    return NULL;
}

/* The first n slots in a row that are free; NONE: there are none. */
static uint32_t slots_for(const struct plan *a, const struct order *but, uint32_t n)
{
    const struct order *o;
    uint32_t base = 0;

    while (n <= a->max_period - base && (o = order_within(a, but, base, n)))
        base = o->base + o->period;
    return n <= a->max_period - base ? base : NONE;
}

static void order_tell(struct plan *a, struct order *o, const uint32_t *hashes)
{
    for (uint32_t i = o->period; i-- > 0;)
        order_slot_copy(a, o, o->base + i, hashes[i]);
    for (uint32_t i = 0; i < o->period; i++)
        order_slot_link(a, o, o->base + i);
    o->pos = o->base;
    order_follow(a, o);
    o->n_stay = 0; /* until the first period is over: only then it is known how many there is room for */
    for (uint32_t i = 0; i < o->period; i += PLAN_STEPS)
        order_meet_some(a, o);
}

static int plan_tell(struct policy *p, uint32_t owner, const uint32_t *hashes, uint32_t n)
{
    struct plan *a = plan_of(p);
    struct order *o = order_of(a, owner);
    uint32_t base = slots_for(a, o, n), i = 0;

    if (base == NONE)
        return -E2BIG;
    while (!o && i < PLANS_MAX && a->orders[i].period > 0)
        i++;
    if (i == PLANS_MAX && n >= PERIOD_MIN)
        return -ENOSPC;
    if (o)
        order_drop(a, o);
    else
        o = &a->orders[i];
    if (n < PERIOD_MIN)
        return 0;
    order_begin(a, o, owner, base, n);
    order_tell(a, o, hashes);
    return (int)n;
}

static void plan_forget(struct policy *p, bool (*is_gone)(const void *ctx, uint32_t owner), const void *ctx)
{
    struct plan *a = plan_of(p);

    for (uint32_t i = PLANS_MAX; i-- > 0;)
        if (a->orders[i].period > 0 && a->orders[i].owner != PLAN_ANY && is_gone(ctx, a->orders[i].owner))
            order_drop(a, &a->orders[i]);
}

/* --- Who goes ---------------------------------------------------------------------------------------------------- */

/* How far ahead the farthest slot of the set is, of those that are nearer than `end`; NONE: there is none. */
static uint32_t farthest(const struct order *o, const struct slot_set *set, uint32_t end)
{
    uint32_t wrapped = o->base + o->period - o->pos; /* from so far ahead on slots begin again */

    if (end > wrapped) {
        uint32_t slot = slot_set_below(set, o->base + end - wrapped);

        if (slot != SLOT_SET_NONE && slot >= o->base)
            return slot - o->base + wrapped;
        end = wrapped;
    }
    uint32_t slot = slot_set_below(set, o->pos + end);

    return slot == SLOT_SET_NONE || slot < o->pos ? NONE : slot - o->pos;
}

/* How long a round of the order takes: the one before, or this one if it takes longer already. */
static uint64_t round_of(const struct plan *a, const struct order *o)
{
    return MIN(MAX(o->round, a->clock - o->round_at), (uint64_t)UINT32_MAX);
}

/* Of a search over all orders: in each, who is due nearer than that has not been looked at. */
struct search {
    uint32_t end[PLANS_MAX];
};

static struct search search_begin(const struct plan *a)
{
    struct search s = {0};

    for (uint32_t i = 0; i < a->n_orders; i++)
        s.end[i] = a->orders[i].period;
    return s;
}

/*
 * Who is used farthest in the future, of those that are spare (of an order that is asleep, all are); else of the others, too,
 * that are awake. NONE: there is nobody left.
 */
static uint32_t search_next(const struct plan *a, struct search *s, bool spare)
{
    uint32_t best = NONE, best_far = 0;
    uint64_t best_use = 0;

    for (uint32_t i = 0; i < a->n_orders; i++) {
        const struct order *o = &a->orders[i];

        if (o->period == 0 || (o->is_asleep && !spare))
            continue;
        uint32_t far = farthest(o, spare && !o->is_asleep ? &a->spare : &a->due, s->end[i]);
        uint64_t use = far * round_of(a, o) / o->period;

        if (far == NONE || (best != NONE && use <= best_use))
            continue;
        best = i;
        best_far = far;
        best_use = use;
    }
    if (best == NONE)
        return NONE;
    s->end[best] = best_far;
    return a->slots[slot_at(&a->orders[best], best_far)].obj;
}

static bool is_following(const struct plan *a)
{
    return a->stage == FOLLOWING && a->due.len > 0;
}

/* Each order goes on by as many of its slots as it has lately. */
static uint32_t plan_misses_ahead(const struct policy *p, uint32_t n)
{
    const struct plan *a = plan_of_const(p);
    uint32_t misses = 0;

    if (!is_following(a))
        return UINT32_MAX;
    for (uint32_t k = 0; k < a->n_orders; k++) {
        const struct order *o = &a->orders[k];

        if (o->period == 0 || o->is_asleep)
            continue;
        uint64_t own = div_round_up((uint64_t)n * o->period, round_of(a, o));

        for (uint32_t i = 0; i < MIN(own, (uint64_t)o->period); i++)
            misses += !slot_set_has(&a->due, slot_at(o, i));
    }
    return misses;
}

/* Not as long as an access that was not foretold is fresh. A slot that is left out counts until its turn comes again. */
static void fetch_for(struct plan *a, struct order *o, uint32_t own_max, uint32_t max, policy_fetch_fn fetch, void *ctx)
{
    if (o->n_stay == 0 || o->errors >= PLAN_DEVIATION_COST || o->fetched_at == o->pos)
        return;
    o->fetched_at = o->pos;
    for (uint32_t i = 0; i < MIN((uint32_t)FETCH_AHEAD, o->period) && o->n_early < own_max && a->early.len < max; i++) {
        uint32_t slot = slot_at(o, i);

        if (slot_set_has(&a->due, slot) || slot_set_has(&a->early, slot))
            continue;
        slot_set_add(&a->early, slot);
        o->n_early++;
        if (fetch(ctx, a->slots[slot].hash) || !slot_set_has(&a->early, slot)) /* or there is no such order any more */
            continue;
        slot_set_drop(&a->early, slot);
        o->n_early--;
    }
}

/*
 * No more than half of the margin, which those that come have to share with those that go; and the same for each order that is
 * awake.
 */
static void plan_fetch(struct policy *p, uint32_t max, policy_fetch_fn fetch, void *ctx)
{
    struct plan *a = plan_of(p);
    uint32_t awake = 0, stay = 0, n = a->n_orders;

    if (a->stage != FOLLOWING)
        return;
    for (uint32_t i = 0; i < n; i++) {
        awake += a->orders[i].period > 0 && !a->orders[i].is_asleep;
        stay += a->orders[i].is_asleep ? 0 : a->orders[i].n_stay;
    }
    uint32_t margin = a->queue.len - MIN(a->queue.len, stay);

    max = MIN(max, margin / 2);
    for (uint32_t i = 0; i < n; i++) {
        struct order *o = &a->orders[i];

        if (o->period > 0 && !o->is_asleep)
            fetch_for(a, o, MAX(max / awake, 1U), max, fetch, ctx);
    }
}

/* Who is due farthest may be on its way out: then it is waited for, since whoever is due sooner would be loaded again. */
static uint32_t victim_in(const struct plan *a, bool spare, policy_pin_fn pin, void *ctx)
{
    struct search s = search_begin(a);
    uint32_t obj;

    for (uint32_t left = POLICY_SCAN_MAX; left > 0 && (obj = search_next(a, &s, spare)) != NONE; left--) {
        enum policy_pin state = pin(ctx, obj);

        if (state == POLICY_FREE)
            return obj;
        if (state == POLICY_BUSY)
            return POLICY_SOON;
    }
    return NONE;
}

static uint32_t plan_victim(struct policy *p, uint64_t incoming, policy_pin_fn pin, void *ctx)
{
    struct plan *a = plan_of(p);

    (void)incoming;
    if (!is_following(a))
        return policy_queue_victim(&a->queue, pin, ctx);
    for (uint32_t i = 0; i < a->n_orders; i++)
        a->orders[i].fewest = MIN(a->orders[i].fewest, a->queue.len);
    if (due_of(a, a->queue.head) == NONE && pin(ctx, a->queue.head) == POLICY_FREE)
        return a->queue.head;
    uint32_t victim = victim_in(a, true, pin, ctx);

    if (victim == NONE)
        victim = victim_in(a, false, pin, ctx);
    return victim == NONE ? policy_queue_victim(&a->queue, pin, ctx) : victim;
}

/* Of those that are due: who is spare or not, farthest first. */
static uint32_t coldest_due(const struct plan *a, bool spare, uint32_t *ret_objs, uint32_t n, policy_pin_fn pin,
                            void *ctx)
{
    struct search s = search_begin(a);
    uint32_t obj, found = 0;

    for (uint64_t left = (uint64_t)n + POLICY_SCAN_MAX; found < n && left > 0; left--) {
        obj = search_next(a, &s, spare);
        if (obj == NONE)
            break;
        if ((spare || !slot_set_has(&a->spare, due_of(a, obj))) && pin(ctx, obj) == POLICY_FREE)
            ret_objs[found++] = obj;
    }
    return found;
}

/* What victim() would name: the oldest as long as no order knows them, then what is due, then what is left. */
static uint32_t plan_coldest(const struct policy *p, uint32_t *ret_objs, uint32_t n, policy_pin_fn pin, void *ctx)
{
    const struct plan *a = plan_of_const(p);
    uint32_t obj = a->queue.head, found = 0;
    uint64_t left = (uint64_t)n + POLICY_SCAN_MAX;
    bool follows = is_following(a);

    for (; obj != NONE && found < n && left > 0 && !(follows && due_of(a, obj) != NONE); left--) {
        if (pin(ctx, obj) == POLICY_FREE)
            ret_objs[found++] = obj;
        obj = node_of(a, obj)->next;
    }
    if (!follows)
        return found;
    found += coldest_due(a, true, ret_objs + found, n - found, pin, ctx);
    found += coldest_due(a, false, ret_objs + found, n - found, pin, ctx);
    for (left = (uint64_t)n + POLICY_SCAN_MAX; obj != NONE && found < n && left > 0; left--) {
        if (due_of(a, obj) == NONE && pin(ctx, obj) == POLICY_FREE)
            ret_objs[found++] = obj;
        obj = node_of(a, obj)->next;
    }
    return found;
}

/* --- Birth, numbers ---------------------------------------------------------------------------------------------- */

static void plan_free(struct policy *p)
{
    if (!p)
        return;
    struct plan *a = plan_of(p);

    plan_learner_deinit(&a->learner);
    slot_set_deinit(&a->due);
    slot_set_deinit(&a->spare);
    slot_set_deinit(&a->early);
    free(a->slots);
    free(a->first);
    free(a);
}

/* The largest power of two that is at most n, and a period has a slot's number in 24 bits. */
static uint32_t accesses_for(uint32_t n)
{
    n = MIN(n, SLOT_SET_MAX / 2);
    return n < 2 * PERIOD_MIN ? 0 : UINT32_C(1) << (31 - __builtin_clz(n));
}

static int plan_new(const struct policy_config *config, struct policy **ret_policy)
{
    uint32_t n = accesses_for(config->max_ghosts);

    if (config->max_ghosts > GHOSTS_MAX)
        return -EINVAL;
    struct plan *a = calloc(1, sizeof(*a));

    if (!a)
        return -ENOMEM;
    a->policy.ops = &policy_plan;
    a->queue = policy_queue_make(config->nodes, 1);
    a->find = config->find;
    a->owner = config->owner;
    a->ctx = config->ctx;
    a->max_period = n ? n - n / 32 - 2 : 0; /* while a period is copied the history goes on */
    a->first_mask = n ? 2 * n - 1 : 0;
    a->slots = calloc_touched((size_t)a->max_period + 1, sizeof(*a->slots));
    a->first = calloc_touched((size_t)a->first_mask + 1, sizeof(*a->first));
    int r = a->slots && a->first ? slot_set_init(&a->due, a->max_period) : -ENOMEM;

    if (r == 0)
        r = slot_set_init(&a->spare, a->max_period);
    if (r == 0)
        r = slot_set_init(&a->early, a->max_period);
    if (r == 0)
        r = plan_learner_init(&a->learner, n);
    if (r < 0) {
        plan_free(&a->policy);
        return r;
    }
    *ret_policy = &a->policy;
    return 0;
}

static void plan_resize(struct policy *p, uint64_t capacity_sectors)
{
    (void)p;
    (void)capacity_sectors; /* the order is the same at any capacity */
}

static void plan_stat(const struct policy *p, struct policy_stat *ret_stat)
{
    const struct plan *a = plan_of_const(p);
    uint64_t slots = 0;

    for (uint32_t i = 0; i < a->n_orders; i++)
        slots += a->orders[i].period;
    *ret_stat = (struct policy_stat){
        .resident = a->queue.len,
        .resident_sectors = a->queue.sectors,
        .ghost_bytes = sizeof(*a) + plan_learner_bytes(&a->learner) + a->max_period * sizeof(*a->slots) +
                       (a->first_mask + 1) * sizeof(*a->first) + 3 * slot_set_words(a->due.n) * sizeof(uint64_t),
        .plan_accesses = a->stage == FOLLOWING ? slots : 0,
        .plans = a->n_plans,
        .deviations = a->n_deviations,
        .prefetched_used = a->n_early_used,
        .prefetched_wasted = a->n_early_wasted,
    };
}

static bool in_some_order(const struct plan *a, uint32_t slot)
{
    for (uint32_t i = 0; i < a->n_orders; i++)
        if (has_slot(&a->orders[i], slot))
            return true;
    return false;
}

static int plan_check(const struct policy *p)
{
    const struct plan *a = plan_of_const(p);
    uint32_t n = 0, spare = 0, early = 0;

    if (!policy_queue_check(&a->queue))
        return -EUCLEAN;
    for (uint32_t obj = a->queue.head; obj != NONE; obj = node_of(a, obj)->next) {
        uint32_t slot = due_of(a, obj);

        if (slot == NONE)
            continue;
        if (a->stage != FOLLOWING || !in_some_order(a, slot) || a->slots[slot].obj != obj ||
            !slot_set_has(&a->due, slot))
            return -EUCLEAN;
        n++;
        spare += slot_set_has(&a->spare, slot);
    }
    for (uint32_t i = 0; i < a->n_orders; i++)
        early += a->orders[i].n_early;
    return n == a->due.len && spare == a->spare.len && early == a->early.len ? 0 : -EUCLEAN;
}

const struct policy_ops policy_plan = {
    .name = "plan",
    .dram_only = true,
    .new = plan_new,
    .free = plan_free,
    .miss = plan_miss,
    .insert = plan_insert,
    .hit = plan_hit,
    .victim = plan_victim,
    .evict = plan_evict,
    .remove = plan_remove,
    .coldest = plan_coldest,
    .misses_ahead = plan_misses_ahead,
    .fetch = plan_fetch,
    .tell = plan_tell,
    .forget = plan_forget,
    .resize = plan_resize,
    .stat = plan_stat,
    .check = plan_check,
};
