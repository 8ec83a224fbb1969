/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is written back before a stop. Engine thread only; no session is left.
 *
 * It must end, also where memory holds more than the devices take. So a walk over the records tries each piece once:
 * what has found no room by then is dropped with the memory, and so is the `cache` that was forgotten to make room for
 * what came later. To write that again would push out others, which would be dirty then, and so on for ever.
 *
 * Room that is said to come may not come: what is to leave a segment can need room itself. When nothing has been in flight
 * for a while, that is so, and nothing waits any more.
 *
 * Writes that failed are worth another try for what is not `cache`: more walks follow, each over what the one before
 * has begun and not ended well. A device whose writes go on failing fails itself, so the last walk begins nothing.
 */
#include <errno.h>

#include "tiering/core.h"

#define STUCK_NS UINT64_C(5000000000) /* some rounds of the log, which frees segments, and of evacuation's retries */

/* Scratch ends with the daemon, only a SYNC may make a tensor durable, and parts alone are nothing. */
static bool may_be_kept(const struct tiering *t, const struct record *r)
{
    return record_is_dirty(r) && durability_of(t, r) != STORE_SCRATCH && !record_waits_for_sync(t, r) &&
           !(r->flags & RECORD_INCOMPLETE);
}

static bool drain_wants(const struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);

    return may_be_kept(t, r) && !(t->drain.again && durability_of(t, r) == STORE_CACHE);
}

/* Nothing is in flight. What is to leave a segment is not: its room may never come, and its read may fail for ever. */
static bool drain_is_idle(const struct tiering *t)
{
    return t->n_moves == relocations_running(t);
}

/* False: not now. */
static bool drain_one(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);

    if (!drain_wants(t, object) || (hot_at(t, object)->flags & HOT_SPILLING))
        return true;
    if ((hot_at(t, object)->flags & (HOT_RELOCATING | HOT_MIGRATING)) || spills_are_enough(t, pool_of(t, r)))
        return false;
    int status = move_spill(t, object, false, store_pick(t, r), 0, false, NULL);

    t->drain.begun |= status == 0;
    return status != -EAGAIN || (t->drain.stuck && drain_is_idle(t));
}

static void drain_look(struct tiering *t, uint32_t before)
{
    struct drain *d = &t->drain;

    if (!d->active || d->at != before || !drain_is_idle(t) || d->n_relocated != t->relocations.n_moved)
        d->moved_ns = t->now_ns;
    d->n_relocated = t->relocations.n_moved;
    d->active = true;
    d->stuck |= t->now_ns - d->moved_ns >= STUCK_NS;
}

bool tiering_drain(struct tiering *t)
{
    uint32_t before = t->drain.at;

    drain_look(t, before);
    while (t->drain.at < t->records.high) {
        if (!drain_one(t, t->drain.at)) {
            drain_look(t, before);
            return false;
        }
        t->drain.at++;
    }
    for (uint32_t i = 0; i <= t->n_pools; i++) {
        if (t->pools[i].spilling > 0)
            return false;
    }
    bool done = !t->drain.begun;

    t->drain = (struct drain){.moved_ns = t->now_ns, .active = !done, .again = !done, .stuck = !done && t->drain.stuck};
    return done;
}

void tiering_drain_left(const struct tiering *t, struct tiering_left *ret_left)
{
    *ret_left = (struct tiering_left){0};
    for (uint32_t i = 0; t->n_stores > 0 && i < t->records.high; i++) {
        const struct record *r = record_at(&t->records, i);

        if (!may_be_kept(t, r))
            continue;
        bool is_durable = durability_of(t, r) == STORE_DURABLE;

        *(is_durable ? &ret_left->durable_pieces : &ret_left->cache_pieces) += 1;
        *(is_durable ? &ret_left->durable_bytes : &ret_left->cache_bytes) += r->size_bytes;
    }
}
