/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loads ahead of use, where a policy knows what is used next. Engine thread only.
 *
 * A load that nobody has asked for is like any other: it waits for room in its pool's queue, and whoever asks for the piece
 * meanwhile waits for it (then it is urgent). Where all that has the memory must stay, it is given up. The policy says what
 * comes, and counts what became of it; here are the bounds: bytes by the pool's configuration, counted as if each piece were
 * a whole one, and half of the engine's moves, so that requests find the others.
 */
#include "tiering/core.h"

struct prefetch {
    struct tiering *t;
    uint32_t pool, class_id;
};

static uint32_t prefetch_find(const struct prefetch *f, uint32_t hash_low)
{
    uint32_t at = hash_low, object;

    while ((object = record_find_low(&f->t->records, hash_low, &at)) != RECORD_NONE) {
        const struct record *r = record_at(&f->t->records, object);
        const struct space *space = space_of(f->t, r);

        if (space->info.pool == f->pool && space->info.class_id == f->class_id && r->state == RECORD_COMMITTED)
            return object;
    }
    return RECORD_NONE;
}

/* For policy->fetch(). */
static bool prefetch_begin(void *ctx, uint32_t hash_low)
{
    const struct prefetch *f = ctx;
    struct tiering *t = f->t;
    uint32_t object = prefetch_find(f, hash_low);
    struct move *m;

    if (object == RECORD_NONE || t->n_moves > t->config.max_moves / 2)
        return false;
    const struct record *r = record_at(&t->records, object);
    bool is_on_device = (r->flags & (RECORD_HAS_MEM | RECORD_HAS_DEV)) == RECORD_HAS_DEV;
    if (!is_on_device || (r->flags & (RECORD_TORN | RECORD_INCOMPLETE)) || (hot_at(t, object)->flags & HOT_LOADING) ||
        move_load(t, object, false, &m) < 0)
        return false;
    t->pools[f->pool].stat.prefetched++;
    return true;
}

void prefetch_go_on(struct tiering *t, uint32_t pool)
{
    struct tpool *p = &t->pools[pool];
    uint32_t max = (uint32_t)MIN(p->config.prefetch_bytes / t->piece_bytes, (uint64_t)t->config.max_moves);

    for (uint32_t c = 0; c < TIERING_CLASSES && max > 0 && !t->stopping; c++) {
        struct prefetch f = {.t = t, .pool = pool, .class_id = c};

        if (p->policies[c]->ops->fetch)
            p->policies[c]->ops->fetch(p->policies[c], max, prefetch_begin, &f);
    }
}
