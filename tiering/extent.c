/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Extents that are held for themselves, not through their piece. Engine thread only.
 *
 * In a shared pool a tensor's piece changes by getting another extent (publish.c). Whoever reads the old one goes on
 * reading it, and what a writer has in private memory is the extent of no piece at all. So leases and transfers hold such
 * extents here, by place. One that is no longer its piece's (or never was) is an orphan: it is freed with its last hold.
 *
 * What a stale extent takes from the pool was admitted once for the piece, which has another extent now: so an orphan may
 * keep an admission, and gives it back at its end. Then pinned memory never exceeds what was admitted.
 *
 * Open addressing by place; at most one entry for each lease and two for each move, so it is never more than half full.
 */
#include "tiering/core.h"

static uint32_t extent_slots(const struct tiering *t)
{
    return 2 * (t->config.max_leases + 2 * t->config.max_moves);
}

uint64_t extent_table_bytes(const struct tiering *t)
{
    return (uint64_t)extent_slots(t) * sizeof(struct extent);
}

static uint32_t extent_home(const struct tiering *t, uint32_t region, uint32_t sector)
{
    return (uint32_t)(((uint64_t)region << 32 | sector) * UINT64_C(0x9e3779b97f4a7c15) >> 32) % extent_slots(t);
}

/* Its slot, or the empty one where it would be. */
static struct extent *extent_slot(const struct tiering *t, uint32_t region, uint32_t sector)
{
    uint32_t at = extent_home(t, region, sector);

    while (t->extents[at].holds && (t->extents[at].region != region || t->extents[at].sector != sector))
        at = (at + 1) % extent_slots(t);
    return &t->extents[at];
}

static void extent_remove(struct tiering *t, struct extent *e)
{
    uint32_t n = extent_slots(t), hole = (uint32_t)(e - t->extents);

    for (uint32_t at = (hole + 1) % n; t->extents[at].holds; at = (at + 1) % n) {
        uint32_t home = extent_home(t, t->extents[at].region, t->extents[at].sector);

        if ((at + n - home) % n >= (at + n - hole) % n) {
            t->extents[hole] = t->extents[at];
            hole = at;
        }
    }
    t->extents[hole] = (struct extent){0};
    t->n_extents--;
}

static void extent_unadmit(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);

    lease_unadmit(t, 0, t->spaces[r->space].info.pool, r->size_bytes);
}

void extent_hold(struct tiering *t, uint32_t region, uint32_t sector, uint32_t object)
{
    struct extent *e = extent_slot(t, region, sector);

    if (!e->holds) {
        *e = (struct extent){.region = (uint16_t)region, .sector = sector, .object = object};
        t->n_extents++;
    }
    assert(e->object == object);
    e->holds++;
}

void extent_release(struct tiering *t, uint32_t region, uint32_t sector)
{
    struct extent *e = extent_slot(t, region, sector);

    assert(e->holds > 0);
    if (--e->holds)
        return;
    if (e->orphan)
        room_give(t, region, sector);
    if (e->admitted)
        extent_unadmit(t, e->object);
    extent_remove(t, e);
}

void extent_orphan(struct tiering *t, uint32_t region, uint32_t sector, uint32_t object, bool admitted)
{
    struct extent *e = extent_slot(t, region, sector);

    if (e->holds) {
        assert(!e->orphan && e->object == object);
        e->orphan = true;
        e->admitted = admitted;
        return;
    }
    room_give(t, region, sector);
    if (admitted)
        extent_unadmit(t, object);
}

bool extent_is_orphan(const struct tiering *t, uint32_t region, uint32_t sector)
{
    return extent_slot(t, region, sector)->orphan;
}

const char *extent_check(const struct tiering *t)
{
    uint64_t holds = 0, entries = 0;

    for (uint32_t i = 0; i < extent_slots(t); i++) {
        holds += t->extents[i].holds;
        entries += t->extents[i].holds > 0;
    }
    if (entries != t->n_extents)
        return "the number of extents that are held";
    for (uint32_t i = 0; i < t->config.max_leases; i++)
        holds -= t->leases[i].mode != LEASE_FREE && t->leases[i].holds;
    for (uint32_t i = 0; i < t->config.max_moves; i++)
        holds -= t->moves[i].held;
    return holds == 0 ? NULL : "the holds of extents";
}
