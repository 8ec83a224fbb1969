/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is written back before a stop. Engine thread only; no session is left.
 *
 * It must end, also where memory holds more than the devices take. So a walk over the records tries each piece once:
 * what has found no room by then is dropped with the memory, and so is the `cache` that was forgotten to make room for
 * what came later. To write that again would push out others, which would be dirty then, and so on for ever.
 *
 * Writes that failed are worth another try for what is not `cache`: more walks follow, each over what the one before
 * has begun and not ended well. A device whose writes go on failing fails itself, so the last walk begins nothing.
 */
#include <errno.h>

#include "tiering/core.h"

/* Scratch ends with the daemon, only a SYNC may make a tensor durable, and parts alone are nothing. */
static bool drain_wants(const struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    uint8_t durability = durability_of(t, r);

    return record_is_dirty(r) && durability != STORE_SCRATCH && !record_waits_for_sync(t, r) &&
           !(r->flags & RECORD_INCOMPLETE) && !(t->drain.again && durability == STORE_CACHE);
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
    return status != -EAGAIN;
}

bool tiering_drain(struct tiering *t)
{
    t->drain.active = true;
    for (; t->drain.at < t->records.high; t->drain.at++) {
        if (!drain_one(t, t->drain.at))
            return false;
    }
    for (uint32_t i = 0; i <= t->n_pools; i++) {
        if (t->pools[i].spilling > 0)
            return false;
    }
    bool done = !t->drain.begun;

    t->drain = (struct drain){.active = !done, .again = !done};
    return done;
}
