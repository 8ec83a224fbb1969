/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a caller says of the future: pins for a time, uses that are left, scores, "not again". Engine thread only.
 *
 * Advice is never trusted: whatever a caller says, leases, the pool's limits and durability hold, and each hint costs a
 * bounded amount of work.
 *
 * The rank of a piece is three bits beside its record. 1 to HOT_RANK_CREDITS are credits, from the caller's score: when
 * the policy names the piece as a victim it is passed over, as if it were leased, and loses one. So a score orders
 * evictions within any policy, cannot outlive its credits, and no search passes over more than VICTIM_REPRIEVES_MAX.
 * HOT_RANK_FIRST means that it leaves memory as soon as nothing holds it; whoever uses it first proves the hint wrong.
 *
 * Uses that are left are counted in a table of a fixed size, open addressing by record number, at most half full. The
 * object goes when none is left and its last lease has ended: until then the list that took the last use may still be
 * undone, and others may still find it.
 */
#include <errno.h>

#include "tiering/core.h"

/* --- Pins for a time -------------------------------------------------------------------------------------------------- */

static void timed_pin_end(struct tiering *t, uint32_t i)
{
    uint32_t object = t->pins[i].object;

    t->pins[i] = t->pins[--t->n_pins];
    hot_at(t, object)->flags &= (uint16_t)~HOT_TIMED_PIN;
    object_unpin(t, object);
}

void timed_pin_drop(struct tiering *t, uint32_t object)
{
    for (uint32_t i = 0; i < t->n_pins; i++) {
        if (t->pins[i].object == object) {
            timed_pin_end(t, i);
            return;
        }
    }
}

void timed_pins_expire(struct tiering *t)
{
    for (uint32_t i = 0; i < t->n_pins;) {
        if (t->pins[i].until_ns > t->now_ns)
            i++;
        else
            timed_pin_end(t, i);
    }
}

static int timed_pin(struct tiering *t, uint32_t object, uint64_t until_ns)
{
    struct record_hot *hot = hot_at(t, object);

    if (hot->flags & HOT_TIMED_PIN) {
        for (uint32_t i = 0; i < t->n_pins; i++) {
            if (t->pins[i].object == object)
                t->pins[i].until_ns = until_ns;
        }
        return 0;
    }
    if (until_ns <= t->now_ns)
        return 0;
    if (t->n_pins == TIMED_PINS_MAX)
        return -ENOSPC;
    t->pins[t->n_pins++] = (struct timed_pin){.object = object, .until_ns = until_ns};
    hot->flags |= HOT_TIMED_PIN;
    /* It keeps the record's number from being reused while the pin names it. */
    object_pin(t, object);
    return 0;
}

int tiering_pin(struct tiering *t, const struct tiering_id *id, uint64_t until_ns)
{
    int status = 0;
    uint32_t object = object_find(t, id, &status);

    if (object == RECORD_NONE)
        return status;
    return timed_pin(t, object, until_ns);
}

/* --- Uses that are left ------------------------------------------------------------------------------------------------ */

#define USES_SLOTS (2 * COUNTED_OBJECTS_MAX)

static uint32_t uses_home(uint32_t object)
{
    return object * UINT32_C(2654435761) % USES_SLOTS;
}

/* Its slot, or the empty one where it would be. */
static struct uses *uses_slot(const struct tiering *t, uint32_t object)
{
    uint32_t at = uses_home(object);

    while (t->uses[at].object && t->uses[at].object != object + 1)
        at = (at + 1) % USES_SLOTS;
    return &t->uses[at];
}

static int uses_set(struct tiering *t, uint32_t object, uint32_t left)
{
    struct uses *uses = uses_slot(t, object);

    if (!uses->object && t->n_uses == COUNTED_OBJECTS_MAX)
        return -ENOSPC;
    t->n_uses += !uses->object;
    *uses = (struct uses){.object = object + 1, .left = left};
    hot_at(t, object)->flags |= HOT_COUNTED;
    return 0;
}

void uses_forget(struct tiering *t, uint32_t object)
{
    if (!(hot_at(t, object)->flags & HOT_COUNTED))
        return;
    uint32_t hole = (uint32_t)(uses_slot(t, object) - t->uses);

    hot_at(t, object)->flags &= (uint16_t)~HOT_COUNTED;
    for (uint32_t at = (hole + 1) % USES_SLOTS; t->uses[at].object; at = (at + 1) % USES_SLOTS) {
        uint32_t home = uses_home(t->uses[at].object - 1);

        if ((at + USES_SLOTS - home) % USES_SLOTS >= (at + USES_SLOTS - hole) % USES_SLOTS) {
            t->uses[hole] = t->uses[at];
            hole = at;
        }
    }
    t->uses[hole].object = 0;
    t->n_uses--;
}

void uses_spend(struct tiering *t, uint32_t object)
{
    if (!(hot_at(t, object)->flags & HOT_COUNTED))
        return;
    struct uses *uses = uses_slot(t, object);

    uses->left -= uses->left > 0;
}

void uses_give_back(struct tiering *t, uint32_t object)
{
    if (hot_at(t, object)->flags & HOT_COUNTED)
        uses_slot(t, object)->left++;
}

static bool uses_are_spent(struct tiering *t, uint32_t object)
{
    return (hot_at(t, object)->flags & HOT_COUNTED) && uses_slot(t, object)->left == 0;
}

/* The object goes once none of its pieces and parts has uses left. Most are used in order: the next one is looked at
 * first, and says no. */
static bool object_is_spent(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    uint32_t n_pieces = object_pieces(t, r->object_bytes), n = n_pieces * r->n_parts;
    uint32_t from = r->part * n_pieces + r->piece;
    struct tiering_id id;

    record_to_id(r, &id);
    for (uint32_t i = 1; i < n; i++) {
        uint32_t at = (from + i) % n;

        id.part = (uint16_t)(at / n_pieces);
        id.piece = at % n_pieces;
        uint32_t sibling = record_find(&t->records, &id, record_hash_id(&t->records, &id));
        if (sibling != RECORD_NONE && !uses_are_spent(t, sibling))
            return false;
    }
    return uses_are_spent(t, object);
}

/* --- Rank -------------------------------------------------------------------------------------------------------------- */

static void rank_set(struct tiering *t, uint32_t object, uint32_t rank)
{
    struct record_hot *hot = hot_at(t, object);

    hot->flags = (uint16_t)((hot->flags & ~HOT_RANK_MASK) | rank * HOT_RANK);
}

void rank_used(struct tiering *t, uint32_t object)
{
    if (hot_rank(hot_at(t, object)) == HOT_RANK_FIRST)
        rank_set(t, object, 0);
}

enum policy_pin victim_pin_state(void *ctx, uint32_t object)
{
    struct victim_search *search = ctx;
    enum policy_pin state = object_pin_state(search->tiering, object);
    uint32_t rank = hot_rank(hot_at(search->tiering, object));

    if (state == POLICY_FREE && refused_is(search->tiering, search->refused, object))
        return POLICY_HELD;
    if (state != POLICY_FREE || rank == 0 || rank == HOT_RANK_FIRST || search->reprieves == VICTIM_REPRIEVES_MAX)
        return state;
    search->reprieves++;
    rank_set(search->tiering, object, rank - 1);
    return POLICY_HELD;
}

/* Scores count by powers of two: 1, 2, 4 and so on. */
static uint32_t score_credits(uint64_t score)
{
    uint32_t bits = 0;

    while (score > 0 && bits < HOT_RANK_CREDITS) {
        score /= 2;
        bits++;
    }
    return bits;
}

/* --- Advice ------------------------------------------------------------------------------------------------------------ */

static void spent(struct tiering *t, uint32_t object)
{
    if (durability_of(t, record_at(&t->records, object)) == STORE_DURABLE) {
        uses_forget(t, object);
        rank_set(t, object, HOT_RANK_FIRST); /* only a DELETE ends it */
    } else if (object_is_spent(t, object)) {
        object_kill_all(t, object);
    }
}

void advice_unpinned(struct tiering *t, uint32_t object)
{
    if (uses_are_spent(t, object))
        spent(t, object);
    const struct record *r = record_at(&t->records, object);
    if (r->state == RECORD_COMMITTED && (r->flags & RECORD_HAS_MEM) && hot_rank(hot_at(t, object)) == HOT_RANK_FIRST)
        (void)room_evict(t, object); /* a hint: what cannot go now stays */
}

static int advise_uses(struct tiering *t, uint32_t object, uint64_t n)
{
    if (n > UINT32_MAX) { /* as good as for ever */
        uses_forget(t, object);
        return 0;
    }
    int status = uses_set(t, object, (uint32_t)n);

    if (status == 0 && n == 0 && !object_is_pinned(t, object))
        advice_unpinned(t, object);
    return status;
}

int tiering_advise(struct tiering *t, const struct tiering_id *id, enum tiering_advice advice, uint64_t value,
                   uint64_t now_ns)
{
    int status = 0;
    uint32_t object = object_find(t, id, &status);

    if (object == RECORD_NONE)
        return status;
    switch (advice) {
    case TIERING_USES_LEFT:
        return advise_uses(t, object, value);
    case TIERING_NOT_AGAIN:
        rank_set(t, object, HOT_RANK_FIRST);
        if (!object_is_pinned(t, object))
            advice_unpinned(t, object);
        return 0;
    case TIERING_KEEP_UNTIL:
        return timed_pin(t, object, value > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + value);
    case TIERING_SCORE:
        rank_set(t, object, score_credits(value));
        return 0;
    }
    return -EINVAL;
}
