/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a SYNC of a whole space must look at: a ring of the pieces that no device has. Engine thread only.
 *
 * Invariants
 * - A piece is in the ring of its space exactly while the space is durable and the piece COMMITTED, on no device, and
 *   written (not RECORD_ZERO). All of that is in the record: so object_edited(), through which every change of a record
 *   goes, is the one place from where rings are changed. The links are those of a segment's ring, which has the pieces
 *   that are on a device: never both.
 * - What comes to the ring comes to its end.
 *
 * A walk visits at least the pieces that are in the ring when it begins, as far as they have not left it by then. It
 * may take many turns, while pieces come and go. `next` is the first that it has not visited; whoever takes that one out
 * moves it on. Those that were there at the beginning lie before those that came later, and are at most `n_left`: so
 * after as many visits none is left, and a walk ends however fast new ones come.
 *
 * Leaving the ring means to be on a device, which the SYNC's flush covers, or to be deleted, with one exception: what
 * was written under the transaction of another SYNC is dropped if that fails. By then it is at the ring's end again,
 * though it has been dirty since before the walk began: dirty_walk_farther() lets the walk go on to there. (While the
 * transaction is open, the walk rests.)
 *
 * One walk a space: a second SYNC's begins when the first one's has ended, not the first SYNC itself.
 */
#include "tiering/core.h"

/* --- The ring -------------------------------------------------------------------------------------------------------- */

static void dirty_link(struct tiering *t, struct dirty *d, uint32_t object)
{
    assert(hot_at(t, object)->seg_next == RECORD_NONE && hot_at(t, object)->seg_prev == RECORD_NONE);
    record_ring_add(&t->records, d->head, object);
    if (d->head == RECORD_NONE)
        d->head = object;
    d->n++;
    if (d->walker && d->next == RECORD_NONE)
        d->next = object;
}

static uint32_t dirty_after(const struct tiering *t, const struct dirty *d, uint32_t object)
{
    return record_ring_after(&t->records, d->head, object);
}

static void dirty_unlink(struct tiering *t, struct dirty *d, uint32_t object)
{
    uint32_t next = dirty_after(t, d, object);

    if (d->next == object)
        d->next = next;
    if (d->head == object)
        d->head = next;
    record_ring_remove(&t->records, object);
    d->n--;
}

struct dirty_place dirty_place(const struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    bool counts = r->state == RECORD_COMMITTED && durability_of(t, r) == STORE_DURABLE && !t->recovering;

    return (struct dirty_place){
        .listed = counts && !(r->flags & (RECORD_HAS_DEV | RECORD_ZERO)),
        .torn = counts && (r->flags & RECORD_TORN),
    };
}

void dirty_moved(struct tiering *t, uint32_t object, struct dirty_place before)
{
    struct dirty *d = &space_of(t, record_at(&t->records, object))->dirty;
    struct dirty_place now = dirty_place(t, object);

    d->n_torn += (uint32_t)now.torn - (uint32_t)before.torn;
    if (now.listed && !before.listed)
        dirty_link(t, d, object);
    if (!now.listed && before.listed)
        dirty_unlink(t, d, object);
}

/* --- The walk -------------------------------------------------------------------------------------------------------- */

bool dirty_walk_begin(struct dirty *d, struct tiering_sync *sync)
{
    if (!d->walker) {
        d->walker = sync;
        d->next = d->head;
        d->n_left = d->n;
    }
    return d->walker == sync;
}

uint32_t dirty_walk_peek(const struct dirty *d)
{
    return d->n_left > 0 ? d->next : RECORD_NONE;
}

void dirty_walk_step(struct tiering *t, struct dirty *d)
{
    d->next = dirty_after(t, d, d->next);
    d->n_left--;
}

void dirty_walk_end(struct dirty *d, const struct tiering_sync *sync)
{
    if (d->walker != sync)
        return;
    d->walker = NULL;
    d->next = RECORD_NONE;
}

void dirty_walk_farther(struct dirty *d)
{
    d->n_left = d->n;
}

/* --- Self-check ------------------------------------------------------------------------------------------------------ */

static const char *dirty_check_ring(const struct tiering *t, uint32_t space)
{
    const struct dirty *d = &t->spaces[space].dirty;
    bool has_next = d->next == RECORD_NONE;
    uint32_t n = 0;

    for (uint32_t o = d->head; o != RECORD_NONE; o = dirty_after(t, d, o)) {
        if (record_at(&t->records, o)->space != space || !dirty_place(t, o).listed)
            return "a space's ring of dirty pieces has one that is not";
        if (t->records.objects[t->records.objects[o].hot.seg_next].hot.seg_prev != o || n++ == t->records.high)
            return "a space's ring of dirty pieces is torn";
        has_next |= o == d->next;
    }
    if (n != d->n)
        return "a space's number of dirty pieces";
    return has_next && (d->walker || d->next == RECORD_NONE) ? NULL : "the walk through a space's dirty pieces is lost";
}

/* Every ring has only what belongs there, each piece is in one at most, and as many belong there as are: so the rings
 * are the dirty pieces. */
const char *dirty_check(const struct tiering *t)
{
    uint64_t n = 0, n_torn = 0;

    for (uint32_t i = 0; i < t->n_spaces; i++) {
        const char *what = dirty_check_ring(t, i);

        if (what)
            return what;
        n += t->spaces[i].dirty.n;
        n_torn += t->spaces[i].dirty.n_torn;
    }
    for (uint32_t i = 0; i < t->records.high; i++) {
        struct dirty_place place = dirty_place(t, i);

        n -= place.listed;
        n_torn -= place.torn;
    }
    return n ? "dirty pieces of all spaces" : n_torn ? "torn pieces of all spaces" : NULL;
}
