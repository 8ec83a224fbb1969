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
 * FOLLOWING: `pos` is the slot that is expected. A resident object that the plan knows is due at its next slot: that slot
 * names it, and the object's node names the slot (state[1] from its second byte on, plus one). The one to go is due
 * farthest from pos; before it goes what the plan does not know and nobody has asked for since everything else was.
 *
 * On a cycle, where each object has one slot, who is due farthest is always who was used last, so what stays remains one
 * run of the order for ever: first all misses, then all hits, and the device and who computes wait for each other in turn.
 * But any access may begin a stay (until the object's next one, a period later) that is as good as any other, if only its
 * place in memory is never idle: after a stay that began at access x, the next one in its place begins at x + period - 1.
 * So n_stay numbers below period - 1 are chosen, evenly, and a stay begins at each access whose number modulo period - 1
 * is one of them. Who does not stay is `spare`: goes first, and among them who is due farthest. Hits are as many, and the
 * pattern moves by one slot in each period.
 *
 * Accesses may come a little early, late, twice or not at all: each is a deviation and costs a little trust, which is
 * regained by those that were foretold. Objects are told apart by the lower half of their hashes, state[2]: two that have
 * it in common are a wrong guess, never a wrong byte.
 *
 * Owns history, slots and one queue of all residents. One engine's thread; nothing is allocated after new().
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/limits.h"
#include "include/base/touched.h"
#include "tiering/plan_learn.h"
#include "tiering/policy.h"
#include "tiering/policy_queue.h"
#include "tiering/slot_set.h"

#define PERIOD_MIN 8   /* a shorter order is an accident, or fits */
#define STEPS 64       /* slots that are copied or linked at one access */
#define USES_MAX 64    /* of an object in a period that are looked at */
#define FETCH_AHEAD 64 /* slots */
#define SHORT_PART 128 /* of the table: to empty so many places one by one costs as much as all of it at once */
#define NONE POLICY_NONE

/*
 * A margin of the residents does not stay: those that are leased, or on their way out, or were brought early. It is an 8th of
 * those that are or are not resident, whichever are fewer: as it fills the gaps between the others, a larger one would be a
 * run again. Another number is chosen only if it became less than a 16th or more than a 4th: each choice costs hits once.
 */
#define MARGIN(fewer) ((fewer) / 8 + 1)
#define MARGIN_MIN(fewer) ((fewer) / 16 + 1)
#define MARGIN_MAX(fewer) ((fewer) / 4 + 1)

/* Trust: an access that was foretold gives 1 back, any other costs DEVIATION_COST; above ERRORS_MAX the plan is dropped. */
#define DEVIATION_COST 16
#define ERRORS_MAX (32 * DEVIATION_COST)
#define AHEAD_MAX 64 /* so many slots may be left out */
#define STREAK 4     /* so many in order elsewhere, and that is where we are */

enum stage { LEARNING, COPYING, LINKING, FOLLOWING };

struct slot {
    uint32_t hash; /* lower half */
    uint32_t next; /* slot of its next use; its own if there is no other */
    uint32_t obj;  /* that is due here, if `due` has the slot */
};

struct plan {
    struct policy policy;
    struct policy_queue queue;
    struct plan_learner learner;
    struct slot *slots;
    uint32_t *first;       /* by hash, with linear probing: 1 + an object's first slot */
    uint32_t max_period;   /* slots; 0: there are none */
    uint32_t first_mask;   /* there are twice as many at least, and a power of two */
    struct slot_set due;   /* slots at which a resident object is used next */
    struct slot_set spare; /* of these, where one is due that need not stay until then */
    struct slot_set early; /* slots whose object was asked for by fetch(), and not used since */
    enum stage stage;
    uint32_t period, pos;    /* of the plan: pos is the slot of the next access */
    uint32_t done;           /* slots copied or linked */
    bool is_cycle;           /* each object has one slot */
    uint32_t phase;          /* on a cycle: the number of the next access modulo period - 1 */
    uint32_t n_stay;         /* stays that begin in period - 1 accesses */
    uint32_t fewest;         /* residents when room was wanted, since n_stay was looked at */
    uint32_t errors;         /* lost trust */
    uint32_t stray, n_stray; /* the slot after the last access that was not foretold, and how many came in order so */
    uint32_t fetched_at;     /* pos when fetch() was last at work */
    uint64_t n_plans, n_deviations, n_early_used, n_early_wasted;
    uint32_t (*find)(void *ctx, uint32_t hash_low);
    void *ctx;
};

static struct plan *plan_of(struct policy *p)
{
    return container_of(p, struct plan, policy);
}

static const struct plan *plan_of_const(const struct policy *p)
{
    return (const struct plan *)(const void *)p; /* policy is the first member */
}

/* --- Slots ------------------------------------------------------------------------------------------------------- */

static struct policy_node *node_of(const struct plan *a, uint32_t obj)
{
    return policy_node_at(a->queue.nodes, obj);
}

/* Where the object is due; NONE: the plan does not know. */
static uint32_t due_of(const struct plan *a, uint32_t obj)
{
    return (node_of(a, obj)->state[1] >> 8) - 1;
}

static void early_end(struct plan *a, uint32_t slot, bool is_used)
{
    if (slot == NONE || !slot_set_has(&a->early, slot))
        return;
    slot_set_drop(&a->early, slot);
    *(is_used ? &a->n_early_used : &a->n_early_wasted) += 1;
}

static void due_drop(struct plan *a, uint32_t obj)
{
    uint32_t slot = due_of(a, obj);

    if (slot == NONE)
        return;
    slot_set_drop(&a->due, slot);
    slot_set_drop(&a->spare, slot);
    node_of(a, obj)->state[1] &= 0xff;
}

/* How far ahead a slot is. */
static uint32_t ahead(const struct plan *a, uint32_t slot)
{
    return slot >= a->pos ? slot - a->pos : slot + a->period - a->pos;
}

/* Who is due there was used a period before: does a stay begin at that access? */
static bool stays_until(const struct plan *a, uint32_t slot)
{
    uint32_t turn = a->period - 1;
    uint64_t number = ((uint64_t)a->phase + ahead(a, slot) + turn - 1) % turn;

    return number * a->n_stay % turn < a->n_stay;
}

/* Another object may be due there, if two have the same lower half: the first one stays. */
static void due_set(struct plan *a, uint32_t obj, uint32_t slot)
{
    due_drop(a, obj);
    if (slot_set_has(&a->due, slot))
        return;
    a->slots[slot].obj = obj;
    slot_set_add(&a->due, slot);
    if (!stays_until(a, slot) && !slot_set_has(&a->early, slot))
        slot_set_add(&a->spare, slot);
    node_of(a, obj)->state[1] |= (slot + 1) << 8;
}

/* The place in `first` of this hash, or the empty one where it would go. */
static uint32_t *first_of(const struct plan *a, uint32_t hash)
{
    uint32_t at = hash & a->first_mask;

    while (a->first[at] != 0 && a->slots[a->first[at] - 1].hash != hash)
        at = (at + 1) & a->first_mask;
    return &a->first[at];
}

/* The next slot of this hash from pos on; NONE: it has none. */
static uint32_t slot_next(const struct plan *a, uint32_t hash)
{
    uint32_t slot = *first_of(a, hash) - 1, best = slot;

    if (slot == NONE)
        return NONE;
    for (uint32_t i = 1, s = a->slots[slot].next; i < USES_MAX && s != slot; i++, s = a->slots[s].next) {
        if (ahead(a, s) < ahead(a, best))
            best = s;
    }
    return best;
}

/* --- The plan's life --------------------------------------------------------------------------------------------- */

static void plan_drop(struct plan *a)
{
    for (uint32_t slot; (slot = slot_set_below(&a->due, a->due.n)) != SLOT_SET_NONE;)
        due_drop(a, a->slots[slot].obj);
    for (uint32_t slot; (slot = slot_set_below(&a->early, a->early.n)) != SLOT_SET_NONE;)
        early_end(a, slot, false);
    a->stage = LEARNING;
}

/* Once a period. Those that are resident by an older choice are what they were until they are used. */
static void stay_choose(struct plan *a)
{
    uint32_t residents = MIN(a->fewest, a->period), fewer = MIN(residents, a->period - residents);
    uint32_t margin = residents - MIN(residents, a->n_stay);

    if (a->is_cycle && a->fewest != UINT32_MAX && (margin < MARGIN_MIN(fewer) || margin > MARGIN_MAX(fewer)))
        a->n_stay = residents - MIN(residents, MARGIN(fewer));
    a->fewest = UINT32_MAX;
}

/* Of the last plan. Where that is short, only from where its objects would be on: the rest is empty. */
static void table_clear(struct plan *a)
{
    if (a->period > a->first_mask / SHORT_PART) {
        memset(a->first, 0, ((size_t)a->first_mask + 1) * sizeof(*a->first));
        return;
    }
    for (uint32_t slot = 0; slot < a->period; slot++)
        for (uint32_t at = a->slots[slot].hash & a->first_mask; a->first[at] != 0; at = (at + 1) & a->first_mask)
            a->first[at] = 0;
}

static void plan_begin(struct plan *a, uint32_t period)
{
    table_clear(a);
    a->period = period;
    a->pos = a->period; /* slot 0 is what comes next */
    a->done = 0;
    a->errors = a->n_stray = 0;
    a->is_cycle = true;
    a->stage = COPYING;
}

/* From the last slot to the first, so that `first` has the first in the end, and `next` the later one of two. */
static void slot_copy(struct plan *a, uint32_t slot, uint32_t hash)
{
    uint32_t *first = first_of(a, hash);

    a->slots[slot] = (struct slot){.hash = hash, .next = *first - 1, .obj = NONE};
    *first = slot + 1;
}

/* The history has gone on since the plan began: by as many accesses as `pos` is ahead of the period. */
static void copy_some(struct plan *a)
{
    for (uint32_t i = 0; i < STEPS && a->done < a->period; i++, a->done++) {
        uint32_t since = a->pos - a->period;

        slot_copy(a, a->period - 1 - a->done, plan_learner_back(&a->learner, since + a->done));
    }
    if (a->done < a->period)
        return;
    a->pos %= a->period;
    a->done = 0;
    a->stage = LINKING;
}

static void link_some(struct plan *a)
{
    for (uint32_t i = 0; i < STEPS && a->done < a->period; i++, a->done++) {
        struct slot *s = &a->slots[a->done];

        if (s->next == NONE)
            s->next = *first_of(a, s->hash) - 1;
        a->is_cycle = a->is_cycle && s->next == a->done;
    }
    if (a->done < a->period)
        return;
    a->done = 0;
    a->phase = a->pos % (a->period - 1);
    a->n_stay = 0;
    a->fewest = a->queue.len;
    a->fetched_at = NONE;
    stay_choose(a);
    a->stage = FOLLOWING;
    a->n_plans++;
}

/* Residents that nobody has asked for since the plan is known. */
static void meet_some(struct plan *a)
{
    for (uint32_t i = 0; i < STEPS && a->done < a->period && a->find; i++, a->done++) {
        uint32_t hash = a->slots[a->done].hash, obj = a->find(a->ctx, hash);

        if (obj != NONE && due_of(a, obj) == NONE && policy_node_queue(node_of(a, obj)) != 0)
            due_set(a, obj, slot_next(a, hash));
    }
}

/* --- Accesses ---------------------------------------------------------------------------------------------------- */

static void go_on_at(struct plan *a, uint32_t slot)
{
    bool is_round = slot < a->pos;

    a->phase = (uint32_t)(((uint64_t)a->phase + ahead(a, slot)) % (a->period - 1));
    a->pos = slot;
    if (is_round)
        stay_choose(a);
}

static void follow(struct plan *a, uint32_t hash)
{
    if (a->slots[a->pos].hash == hash) {
        early_end(a, a->pos, true);
        go_on_at(a, (a->pos + 1) % a->period);
        a->errors -= a->errors > 0;
        return;
    }
    a->n_deviations++;
    a->errors += DEVIATION_COST;
    uint32_t slot = slot_next(a, hash);

    if (slot == NONE)
        return;
    early_end(a, slot, true);
    a->n_stray = slot == a->stray ? a->n_stray + 1 : 1;
    a->stray = (slot + 1) % a->period;
    if (ahead(a, slot) <= MIN((uint32_t)AHEAD_MAX, a->period / 8) || a->n_stray == STREAK)
        go_on_at(a, a->stray);
}

/* An access, before what is to be said of the object that is accessed. */
static void see(struct plan *a, uint32_t hash)
{
    plan_learner_see(&a->learner, hash);
    if (a->stage == LEARNING) {
        if (plan_learner_is_sure(&a->learner) && a->learner.period >= PERIOD_MIN && a->learner.period <= a->max_period)
            plan_begin(a, a->learner.period);
        return;
    }
    if (a->stage == FOLLOWING) {
        follow(a, hash);
        meet_some(a);
        if (a->errors > ERRORS_MAX)
            plan_drop(a);
        return;
    }
    if (a->learner.period != a->period) {
        plan_drop(a);
        return;
    }
    if (a->stage == COPYING) {
        a->pos++;
        copy_some(a);
    } else {
        a->pos = (a->pos + 1) % a->period;
        link_some(a);
    }
}

/* Says where it is due. */
static void expect(struct plan *a, uint32_t obj)
{
    if (a->stage != FOLLOWING)
        return;
    uint32_t slot = slot_next(a, node_of(a, obj)->state[2]);

    if (slot != NONE)
        due_set(a, obj, slot);
}

static void plan_miss(struct policy *p, uint64_t hash, uint32_t sectors)
{
    (void)sectors;
    see(plan_of(p), (uint32_t)hash);
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

    see(a, node_of(a, obj)->state[2]);
    policy_queue_warm(&a->queue, obj);
    expect(a, obj);
}

static void plan_remove(struct policy *p, uint32_t obj, uint32_t sectors)
{
    struct plan *a = plan_of(p);

    early_end(a, due_of(a, obj), false);
    due_drop(a, obj);
    policy_queue_drop(&a->queue, obj, sectors);
}

static void plan_evict(struct policy *p, uint32_t obj, uint64_t hash, uint32_t sectors)
{
    (void)hash;
    plan_remove(p, obj, sectors);
}

static int plan_tell(struct policy *p, const uint32_t *hashes, uint32_t n)
{
    struct plan *a = plan_of(p);

    if (n > a->max_period)
        return -E2BIG;
    plan_drop(a);
    if (n < PERIOD_MIN)
        return 0;
    plan_begin(a, n);
    for (uint32_t slot = n; slot-- > 0;)
        slot_copy(a, slot, hashes[slot]);
    a->pos = 0;
    a->stage = LINKING;
    while (a->stage == LINKING)
        link_some(a);
    a->n_stay = 0; /* until the first period is over: only then it is known how many there is room for */
    for (uint32_t i = 0; i < n; i += STEPS)
        meet_some(a);
    return (int)n;
}

/* --- Who goes ---------------------------------------------------------------------------------------------------- */

/* How far ahead the farthest slot of the set is, of those that are nearer than `end`; NONE: there is none. */
static uint32_t farthest(const struct plan *a, const struct slot_set *set, uint32_t end)
{
    uint32_t wrapped = a->period - a->pos; /* from so far ahead on slots begin at 0 */

    if (end > wrapped) {
        uint32_t slot = slot_set_below(set, end - wrapped);

        if (slot != SLOT_SET_NONE)
            return slot + wrapped;
        end = wrapped;
    }
    uint32_t slot = slot_set_below(set, a->pos + end);

    return slot == SLOT_SET_NONE || slot < a->pos ? NONE : slot - a->pos;
}

static uint32_t due_obj(const struct plan *a, uint32_t far)
{
    return a->slots[far < a->period - a->pos ? a->pos + far : a->pos + far - a->period].obj;
}

static bool is_following(const struct plan *a)
{
    return a->stage == FOLLOWING && a->due.len > 0;
}

static uint32_t plan_misses_ahead(const struct policy *p, uint32_t n)
{
    const struct plan *a = plan_of_const(p);
    uint32_t misses = 0;

    if (!is_following(a))
        return UINT32_MAX;
    for (uint32_t i = 0; i < MIN(n, a->period); i++)
        misses += !slot_set_has(&a->due, (a->pos + i) % a->period);
    return misses;
}

/*
 * No more than half of the margin, which those that come have to share with those that go; and not as long as an access that
 * was not foretold is fresh. A slot that is left out counts until its turn comes again.
 */
static void plan_fetch(struct policy *p, uint32_t max, policy_fetch_fn fetch, void *ctx)
{
    struct plan *a = plan_of(p);

    if (a->stage != FOLLOWING || a->n_stay == 0 || a->errors >= DEVIATION_COST || a->fetched_at == a->pos)
        return;
    uint32_t margin = a->queue.len - MIN(a->queue.len, a->n_stay);

    a->fetched_at = a->pos;
    max = MIN(max, margin / 2);
    for (uint32_t i = 0; i < MIN((uint32_t)FETCH_AHEAD, a->period) && a->early.len < max; i++) {
        uint32_t slot = (a->pos + i) % a->period;

        if (!slot_set_has(&a->due, slot) && !slot_set_has(&a->early, slot) && fetch(ctx, a->slots[slot].hash))
            slot_set_add(&a->early, slot);
    }
}

/* Who is due farthest may be on its way out: then it is waited for, since whoever is due sooner would be loaded again. */
static uint32_t victim_in(const struct plan *a, const struct slot_set *set, policy_pin_fn pin, void *ctx)
{
    uint32_t far = a->period;

    for (uint32_t left = POLICY_SCAN_MAX; left > 0 && (far = farthest(a, set, far)) != NONE; left--) {
        enum policy_pin state = pin(ctx, due_obj(a, far));

        if (state == POLICY_FREE)
            return due_obj(a, far);
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
    a->fewest = MIN(a->fewest, a->queue.len);
    if (due_of(a, a->queue.head) == NONE && pin(ctx, a->queue.head) == POLICY_FREE)
        return a->queue.head;
    uint32_t victim = victim_in(a, &a->spare, pin, ctx);

    if (victim == NONE)
        victim = victim_in(a, &a->due, pin, ctx);
    return victim == NONE ? policy_queue_victim(&a->queue, pin, ctx) : victim;
}

/* Of those that are due: who is spare or not, farthest first. */
static uint32_t coldest_due(const struct plan *a, bool spare, uint32_t *ret_objs, uint32_t n, policy_pin_fn pin,
                            void *ctx)
{
    const struct slot_set *set = spare ? &a->spare : &a->due;
    uint32_t far = a->period, found = 0;

    for (uint64_t left = (uint64_t)n + POLICY_SCAN_MAX; found < n && left > 0; left--) {
        far = farthest(a, set, far);
        if (far == NONE)
            break;
        uint32_t obj = due_obj(a, far);

        if (slot_set_has(&a->spare, due_of(a, obj)) == spare && pin(ctx, obj) == POLICY_FREE)
            ret_objs[found++] = obj;
    }
    return found;
}

/* What victim() would name: the oldest as long as the plan does not know them, then what is due, then what is left. */
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

    *ret_stat = (struct policy_stat){
        .resident = a->queue.len,
        .resident_sectors = a->queue.sectors,
        .ghost_bytes = sizeof(*a) + plan_learner_bytes(&a->learner) + a->max_period * sizeof(*a->slots) +
                       (a->first_mask + 1) * sizeof(*a->first) + 3 * slot_set_words(a->due.n) * sizeof(uint64_t),
        .plan_accesses = a->stage == FOLLOWING ? a->period : 0,
        .plans = a->n_plans,
        .deviations = a->n_deviations,
        .prefetched_used = a->n_early_used,
        .prefetched_wasted = a->n_early_wasted,
    };
}

static int plan_check(const struct policy *p)
{
    const struct plan *a = plan_of_const(p);
    uint32_t n = 0, spare = 0;

    if (!policy_queue_check(&a->queue))
        return -EUCLEAN;
    for (uint32_t obj = a->queue.head; obj != NONE; obj = node_of(a, obj)->next) {
        uint32_t slot = due_of(a, obj);

        if (slot == NONE)
            continue;
        if (a->stage != FOLLOWING || slot >= a->period || a->slots[slot].obj != obj || !slot_set_has(&a->due, slot))
            return -EUCLEAN;
        n++;
        spare += slot_set_has(&a->spare, slot);
    }
    return n == a->due.len && spare == a->spare.len ? 0 : -EUCLEAN;
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
    .resize = plan_resize,
    .stat = plan_stat,
    .check = plan_check,
};
