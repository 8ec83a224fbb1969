/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Orders: which object is used in which slot, where the resident ones are due next, and where the order is. The table of first
 * slots, the slots and the sets over them are this file's, and the orders but for what is fetched.
 *
 * Owners that tell have an order each, up to PLANS_MAX, and accesses of the others are nobody's business. What is learned is of
 * all accesses, and only where nobody has told: an order that is told takes its place. All share the slots (an order's are in a
 * row) and the table of first slots, so more orders take no more memory. When an order begins or ends, so do its own slots.
 *
 * Each order goes on by itself. When two are compared, a slot that is so far ahead in its order is worth as many slots as all
 * orders together go on by meanwhile, if they go on as they did: what the order's last round took, a slot's part of it. That is
 * exact for those in lockstep, and for those that take turns round by round, where a rate over a shorter time would be of
 * whose turn it is. A round that has taken longer than the last one counts itself. An order that the others have gone on
 * without for SLEEP_ROUNDS of its rounds is asleep: all it has may go, until its next access. Stays are shared out by slots:
 * each order that is awake hits as often, and none takes another's memory by being faster.
 *
 * On a cycle, where each object has one slot, who is due farthest is always who was used last, so what stays remains one
 * run of the order for ever: first all misses, then all hits, and the device and who computes wait for each other in turn.
 * But any access may begin a stay (until the object's next one, a period later) that is as good as any other, if only its
 * place in memory is never idle: after a stay that began at access x, the next one in its place begins at x + period - 1.
 * So n_stay numbers below period - 1 are chosen, evenly, and a stay begins at each access whose number modulo period - 1
 * is one of them. Who does not stay is `spare`: goes first, and among them who is due farthest. Hits are as many, and the
 * pattern moves by one slot in each period. Where objects have more slots than one nobody is chosen: all are spare, but what
 * was brought early and is not used yet. There, too, n_stay is what is not the margin.
 *
 * Accesses may come a little early, late, twice or not at all: each is a deviation and costs a little trust, which is
 * regained by those that were foretold. Objects are told apart by the lower half of their hashes, state[2]: two that have
 * it in common are a wrong guess, never a wrong byte.
 */
#include <string.h>

#include "tiering/policy_plan.h"

#define USES_MAX 64    /* of an object in a period that are looked at */
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

#define AHEAD_MAX 64 /* so many slots may be left out */
#define STREAK 4     /* so many in order elsewhere, and that is where we are */

#define SLEEP_ROUNDS 4 /* of its own, that the others go on for, until an order is asleep */

/* --- Slots ------------------------------------------------------------------------------------------------------- */

/* How far ahead a slot is. */
static uint32_t ahead(const struct order *o, uint32_t slot)
{
    return slot >= o->pos ? slot - o->pos : slot + o->period - o->pos;
}

static uint32_t slot_after(const struct order *o, uint32_t slot)
{
    return slot + 1 - o->base == o->period ? o->base : slot + 1;
}

/* The last one of the order's that the set has; NONE: it has none. */
static uint32_t last_in(const struct slot_set *set, const struct order *o)
{
    uint32_t slot = slot_set_below(set, o->base + o->period);

    return slot != SLOT_SET_NONE && has_slot(o, slot) ? slot : NONE;
}

void order_early_end(struct plan *a, uint32_t slot, bool is_used)
{
    if (slot == NONE || !slot_set_has(&a->early, slot))
        return;
    slot_set_drop(&a->early, slot);
    for (uint32_t i = 0; i < a->n_orders; i++)
        a->orders[i].n_early -= has_slot(&a->orders[i], slot);
    *(is_used ? &a->n_early_used : &a->n_early_wasted) += 1;
}

static void early_end_all(struct plan *a, const struct order *o)
{
    for (uint32_t slot; (slot = last_in(&a->early, o)) != NONE;)
        order_early_end(a, slot, false);
}

void order_due_drop(struct plan *a, uint32_t obj)
{
    uint32_t slot = due_of(a, obj);

    if (slot == NONE)
        return;
    slot_set_drop(&a->due, slot);
    slot_set_drop(&a->spare, slot);
    node_of(a, obj)->state[1] &= 0xff;
}

/* Who is due there was used a period before: does a stay begin at that access? */
static bool stays_until(const struct order *o, uint32_t slot)
{
    uint32_t turn = o->period - 1;
    uint64_t number = ((uint64_t)o->phase + ahead(o, slot) + turn - 1) % turn;

    return o->is_cycle && number * o->n_stay % turn < o->n_stay;
}

void order_due_set(struct plan *a, const struct order *o, uint32_t obj, uint32_t slot)
{
    order_due_drop(a, obj);
    if (slot_set_has(&a->due, slot))
        return;
    a->slots[slot].obj = obj;
    slot_set_add(&a->due, slot);
    if (!stays_until(o, slot) && !slot_set_has(&a->early, slot))
        slot_set_add(&a->spare, slot);
    node_of(a, obj)->state[1] |= (slot + 1) << 8;
}

/* The place in `first` of this hash, or the empty one where it would go. */
static uint32_t *first_of(const struct plan *a, const struct order *o, uint32_t hash)
{
    uint32_t at = hash & a->first_mask;

    while (a->first[at] != 0 && !(a->slots[a->first[at] - 1].hash == hash && has_slot(o, a->first[at] - 1)))
        at = (at + 1) & a->first_mask;
    return &a->first[at];
}

uint32_t order_slot_next(const struct plan *a, const struct order *o, uint32_t hash)
{
    uint32_t slot = *first_of(a, o, hash) - 1, best = slot;

    if (slot == NONE)
        return NONE;
    for (uint32_t i = 1, s = a->slots[slot].next; i < USES_MAX && s != slot; i++, s = a->slots[s].next) {
        if (ahead(o, s) < ahead(o, best))
            best = s;
    }
    return best;
}

struct order *order_of(struct plan *a, uint32_t owner)
{
    for (uint32_t i = 0; i < a->n_orders; i++)
        if (a->orders[i].period > 0 && (a->orders[i].owner == owner || a->orders[i].owner == PLAN_ANY))
            return &a->orders[i];
    return NULL;
}

/* --- An order's life --------------------------------------------------------------------------------------------- */

/* Of the one order that there is. Where that is short, only from where its objects would be on: the rest is empty. */
static void table_clear(struct plan *a, const struct order *o)
{
    if (o->period > a->first_mask / SHORT_PART) {
        memset(a->first, 0, ((size_t)a->first_mask + 1) * sizeof(*a->first));
        return;
    }
    for (uint32_t slot = o->base; has_slot(o, slot); slot++)
        for (uint32_t at = a->slots[slot].hash & a->first_mask; a->first[at] != 0; at = (at + 1) & a->first_mask)
            a->first[at] = 0;
}

/* One place is empty then: whoever would rather be there moves up. */
static void table_drop(struct plan *a, const struct order *o, uint32_t slot)
{
    uint32_t *first = first_of(a, o, a->slots[slot].hash), mask = a->first_mask, gap = (uint32_t)(first - a->first);

    if (*first != slot + 1)
        return;
    for (uint32_t at = (gap + 1) & mask; a->first[at] != 0; at = (at + 1) & mask) {
        uint32_t home = a->slots[a->first[at] - 1].hash & mask;

        if (((at - home) & mask) >= ((at - gap) & mask)) {
            a->first[gap] = a->first[at];
            gap = at;
        }
    }
    a->first[gap] = 0;
}

static bool is_alone(const struct plan *a, const struct order *o)
{
    for (uint32_t i = 0; i < a->n_orders; i++)
        if (a->orders[i].period > 0 && &a->orders[i] != o)
            return false;
    return true;
}

void order_drop(struct plan *a, struct order *o)
{
    for (uint32_t slot; (slot = last_in(&a->due, o)) != NONE;)
        order_due_drop(a, a->slots[slot].obj);
    early_end_all(a, o);
    if (is_alone(a, o))
        table_clear(a, o);
    else
        for (uint32_t slot = o->base; has_slot(o, slot); slot++)
            table_drop(a, o, slot);
    *o = (struct order){0};
    while (a->n_orders > 0 && a->orders[a->n_orders - 1].period == 0)
        a->n_orders--;
    if (a->n_orders == 0)
        a->stage = LEARNING;
}

/* Of so many places in memory, what is the order's part: those that are awake get the same for each of their slots. */
static uint32_t share_of(const struct plan *a, const struct order *o, uint32_t n)
{
    uint64_t slots = o->is_asleep ? o->period : 0;

    for (uint32_t i = 0; i < a->n_orders; i++)
        slots += a->orders[i].is_asleep ? 0 : a->orders[i].period;
    assert(slots > 0);
    return (uint32_t)((uint64_t)n * o->period / slots);
}

/* Once a period. Those that are resident by an older choice are what they were until they are used. */
static void stay_choose(const struct plan *a, struct order *o)
{
    uint32_t residents = MIN(share_of(a, o, o->fewest), o->n_objects), fewer = MIN(residents, o->n_objects - residents);
    uint32_t margin = residents - MIN(residents, o->n_stay);

    if (o->fewest != UINT32_MAX && (margin < MARGIN_MIN(fewer) || margin > MARGIN_MAX(fewer)))
        o->n_stay = residents - MIN(residents, MARGIN(fewer));
    o->fewest = UINT32_MAX;
}

void order_begin(struct plan *a, struct order *o, uint32_t owner, uint32_t base, uint32_t period)
{
    *o = (struct order){.owner = owner, .base = base, .period = period, .is_cycle = true, .fetched_at = NONE};
    a->n_orders = MAX(a->n_orders, (uint32_t)(o - a->orders) + 1);
}

/* All its slots are linked, and it is at pos. */
void order_follow(struct plan *a, struct order *o)
{
    o->phase = (o->pos - o->base) % (o->period - 1);
    o->fewest = a->queue.len;
    o->moved_at = a->clock;
    o->round_at = a->clock - (o->pos - o->base);
    o->round = o->period;
    stay_choose(a, o);
    a->stage = FOLLOWING;
    a->n_plans++;
}

/* From the last slot to the first, so that `first` has the first in the end, and `next` the later one of two. */
void order_slot_copy(struct plan *a, const struct order *o, uint32_t slot, uint32_t hash)
{
    uint32_t *first = first_of(a, o, hash);

    a->slots[slot] = (struct slot){.hash = hash, .next = *first - 1, .obj = NONE};
    *first = slot + 1;
}

void order_slot_link(struct plan *a, struct order *o, uint32_t slot)
{
    struct slot *s = &a->slots[slot];

    if (s->next == NONE) {
        s->next = *first_of(a, o, s->hash) - 1;
        o->n_objects++;
    }
    o->is_cycle = o->is_cycle && s->next == slot;
}

void order_meet_some(struct plan *a, struct order *o)
{
    for (uint32_t i = 0; i < PLAN_STEPS && o->met < o->period && a->find; i++, o->met++) {
        uint32_t hash = a->slots[o->base + o->met].hash, obj = a->find(a->ctx, hash);

        if (obj != NONE && due_of(a, obj) == NONE && policy_node_queue(node_of(a, obj)) != 0 &&
            order_of(a, owner_of(a, obj)) == o)
            order_due_set(a, o, obj, order_slot_next(a, o, hash));
    }
}

/* --- Accesses ---------------------------------------------------------------------------------------------------- */

/* Who has not gone on while the others did. */
static void fall_asleep(struct plan *a)
{
    for (uint32_t i = 0; i < a->n_orders; i++) {
        struct order *o = &a->orders[i];

        if (o->period == 0 || o->is_asleep || (a->clock - o->moved_at) / SLEEP_ROUNDS < o->round)
            continue;
        o->is_asleep = true;
        early_end_all(a, o);
    }
}

static void go_on_at(struct plan *a, struct order *o, uint32_t slot)
{
    bool is_round = slot < o->pos;

    assert(o->period > 1);
    a->clock += ahead(o, slot);
    o->phase = (uint32_t)(((uint64_t)o->phase + ahead(o, slot)) % (o->period - 1));
    o->pos = slot;
    o->moved_at = a->clock;
    o->is_asleep = false;
    if (!is_round)
        return;
    uint64_t round_at = a->clock - (slot - o->base);

    o->round = round_at - o->round_at;
    o->round_at = round_at;
    fall_asleep(a);
    stay_choose(a, o);
}

void order_see(struct plan *a, struct order *o, uint32_t hash)
{
    if (a->slots[o->pos].hash == hash) {
        order_early_end(a, o->pos, true);
        go_on_at(a, o, slot_after(o, o->pos));
        o->errors -= o->errors > 0;
        return;
    }
    a->n_deviations++;
    o->errors += PLAN_DEVIATION_COST;
    uint32_t slot = order_slot_next(a, o, hash);

    if (slot == NONE)
        return;
    order_early_end(a, slot, true);
    o->n_stray = slot == o->stray ? o->n_stray + 1 : 1;
    o->stray = slot_after(o, slot);
    if (ahead(o, slot) <= MIN((uint32_t)AHEAD_MAX, o->period / 8) || o->n_stray == STREAK)
        go_on_at(a, o, o->stray);
}
