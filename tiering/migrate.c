/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pieces that change their place in memory: demotion (DRAM to CXL memory), promotion (back), and evacuation (out of a
 * chunk that closes). Engine thread only.
 *
 * A worker copies the bytes, then the record is switched: before that the old extent is the truth, after it the new
 * one, and a crash in between leaves one of them. What nobody leases may move; who wants to write meanwhile waits for
 * the end, readers do not: if one of them still has its lease then, the piece stays where it was.
 *
 * Each tier has a policy of its own. A piece that is demoted leaves DRAM's as an evicted one does, so DRAM's policy
 * remembers it, and sees in its promotion a reuse.
 *
 * A piece is promoted when it was hit twice in CXL memory; in place it is served at once all the same. Against
 * ping-pong: if DRAM has no room to spare, the piece that would have to go for it must not have been asked for since
 * the last time that this was the question; and there is a rate.
 */
#include <errno.h>

#include "include/base/point.h"
#include "tiering/core.h"

#define RETRY_NS UINT64_C(100000000)

/* --- The move ---------------------------------------------------------------------------------------------------- */

/* A pin of the user's choice (PIN) keeps a piece in memory, not in its place. */
static uint32_t migrate_pins(const struct record_hot *hot)
{
    return hot->flags & HOT_TIMED_PIN ? 1 : 0;
}

/* For the policies; ctx is the tiering. Unlike eviction this may move what waits for its SYNC. */
static enum policy_pin migrate_state(void *ctx, uint32_t object)
{
    const struct tiering *t = ctx;
    const struct record_hot *hot = &t->records.objects[object].hot;

    if (hot->pins == migrate_pins(hot))
        return POLICY_FREE;
    return hot->pins == migrate_pins(hot) + 1 && (hot->flags & (HOT_SPILLING | HOT_MIGRATING)) ? POLICY_BUSY
                                                                                               : POLICY_HELD;
}

struct move *migrate_of(struct tiering *t, uint32_t object)
{
    list_for_each (l, &pool_of(t, record_at(&t->records, object))->migrations) {
        struct move *m = list_entry(l, struct move, link);

        if (m->object == object)
            return m;
    }
    assert(!"HOT_MIGRATING says that there is one");
    return NULL;
}

/* Its bytes are in the new extent. */
static void migrate_switch(struct tiering *t, struct move *m)
{
    struct tpool *p = &t->pools[m->pool];
    uint32_t object = m->object;
    const struct record *r = record_at(&t->records, object);
    enum mem_tier from = tier_of_mem(t, r), to = tier_of_chunk(p, m->chunk);

    if (from == to) {
        object_move_mem(t, object, m->chunk->region, m->sector); /* its place in the policy is the same */
        return;
    }
    policy_leave(t, object, to == MEM_CXL);
    object_move_mem(t, object, m->chunk->region, m->sector);
    hot_at(t, object)->is_warm = 0;
    if (to == MEM_DRAM) {
        struct policy *policy = p->policies[space_of(t, r)->info.class_id];

        policy->ops->miss(policy, r->space, record_hash(&t->records, r), sectors_of(r->size_bytes));
        p->stat.promotions++;
    } else {
        p->stat.demotions++;
    }
    policy_enter(t, object);
    p->look_ahead = true;
}

static void migrate_end(struct io_work *work)
{
    struct move *m = container_of(work, struct move, work);
    struct tiering *t = m->t;
    uint32_t object = m->object;
    const struct record *r = record_at(&t->records, object);
    struct record_hot *hot = hot_at(t, object);
    struct tpool *p = &t->pools[m->pool];

    assert(!hot_writers(hot));
    hot->flags &= (uint16_t)~HOT_MIGRATING;
    p->migrating--;
    if (m->leaves_dram)
        p->leaving_sectors -= sectors_of(r->size_bytes);
    if (work->result < 0)
        p->migrate_ns = t->now_ns + RETRY_NS;
    /* The chunk may have begun to close meanwhile: then it would only have to move again. */
    if (work->result == 0 && r->state == RECORD_COMMITTED && hot->pins == migrate_pins(hot) + 1 && !m->chunk->closing)
        migrate_switch(t, m);
    else
        room_give(t, m->chunk->region, m->sector);
    move_wake(m, r->state == RECORD_COMMITTED ? 0 : -ENOENT); /* writers that waited */
    move_free(m);
    object_unpin(t, object);
}

static void migrate_go(struct tiering *t, uint32_t object, struct arena_chunk *chunk, uint32_t sector)
{
    struct move *m = move_new(t, MOVE_MIGRATE, object);
    const struct record *r = record_at(&t->records, object);
    struct tpool *p = &t->pools[m->pool];

    m->chunk = chunk;
    m->sector = sector;
    m->leaves_dram = tier_of_mem(t, r) == MEM_DRAM && tier_of_chunk(p, chunk) == MEM_CXL;
    move_set_phase(m, MOVE_BUSY);
    list_push_tail(&p->migrations, &m->link);
    p->migrating++;
    if (m->leaves_dram)
        p->leaving_sectors += sectors_of(r->size_bytes);
    m->work = (struct io_work){.op = IO_WORK_COPY,
                               .len_bytes = sectors_of(r->size_bytes) * SECTOR_BYTES,
                               .src = {.region = r->mem_region, .off = (uint64_t)r->mem_sector * SECTOR_BYTES},
                               .dst = {.region = chunk->region, .off = (uint64_t)sector * SECTOR_BYTES},
                               .done = migrate_end};
    t->stat.migrated_bytes += r->size_bytes;
    t->config.backend->ops->work_submit(t->config.backend, &m->work);
}

int migrate_begin(struct tiering *t, uint32_t object, enum mem_tier tier, bool may_evict)
{
    struct record_hot *hot = hot_at(t, object);
    const struct record *r = record_at(&t->records, object);
    struct tpool *p = pool_of(t, r);
    uint32_t sectors = sectors_of(r->size_bytes), sector;
    struct arena_chunk *chunk;
    int status;

    if (!(hot->flags & HOT_IN_POLICY) || hot->pins != migrate_pins(hot))
        return -EBUSY;
    if (!p->arenas[tier].total_frames)
        return -ENOSPC;
    if (p->migrating >= MIGRATIONS_MAX || list_is_empty(&t->moves_free) || t->now_ns < p->migrate_ns)
        return -EAGAIN;
    /* Before there is room: it must not be evicted to make it. Not object_pin(): a failure is nobody's news. */
    hot->pins++;
    hot->flags |= HOT_MIGRATING;
    status = may_evict ? room_take_in(t, p, tier, object, sectors, &chunk, &sector)
                       : arena_alloc(&p->arenas[tier], sectors, object, &chunk, &sector);
    if (status == 0 &&
        (list_is_empty(&t->moves_free) || sim_point("migrate: the last move was taken"))) { /* by spills */
        arena_free(chunk, sector);
        status = -EAGAIN;
    }
    if (status < 0) {
        hot->flags &= (uint16_t)~HOT_MIGRATING;
        hot->pins--;
        object_settle(t, object); /* evicting a part of its object may have been its end too */
        return status;
    }
    migrate_go(t, object, chunk, sector);
    return 0;
}

/* --- Down -------------------------------------------------------------------------------------------------------- */

/* What the CPU works on all the time goes last. */
static uint32_t demote_victim(struct tiering *t, struct tpool *p)
{
    uint32_t last = 0;

    for (uint32_t c = 0; c < TIERING_CLASSES; c++) {
        if (t->config.classes[c].placement == TIERING_PLACE_DRAM)
            last |= UINT32_C(1) << c;
    }
    uint32_t victim = room_victim(t, p, MEM_DRAM, 0, migrate_state, t, CLASSES_ALL & ~last);
    return victim != RECORD_NONE ? victim : room_victim(t, p, MEM_DRAM, 0, migrate_state, t, last);
}

int migrate_demote(struct tiering *t, struct tpool *p, uint64_t sectors)
{
    if (!pool_has_cxl(p))
        return -ENOSPC;
    while (p->leaving_sectors < sectors) {
        uint32_t victim = demote_victim(t, p);
        int status = victim == RECORD_NONE ? -ENOSPC : migrate_begin(t, victim, MEM_CXL, true);

        if (status < 0)
            return p->leaving_sectors ? -EAGAIN : status;
    }
    return 0;
}

/* --- Up ---------------------------------------------------------------------------------------------------------- */

void migrate_used(struct tiering *t, uint32_t object)
{
    struct record_hot *hot = hot_at(t, object);
    struct tpool *p = pool_of(t, record_at(&t->records, object));

    if (!pool_has_cxl(p))
        return;
    if (!hot->is_warm || tier_of_mem(t, record_at(&t->records, object)) != MEM_CXL) {
        hot->is_warm = 1;
        return;
    }
    /* The oldest gives way: it will be hit again if it deserves DRAM. */
    p->promote[(p->promote_first + p->n_promote) % PROMOTIONS_MAX] = object;
    if (p->n_promote < PROMOTIONS_MAX)
        p->n_promote++;
    else
        p->promote_first = (p->promote_first + 1) % PROMOTIONS_MAX;
    t->kicked = true;
}

/* It is not sure that the number still names what was hit. */
static bool promote_is_wanted(const struct tiering *t, const struct tpool *p, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    const struct record_hot *hot = &t->records.objects[object].hot;

    return r->state == RECORD_COMMITTED && &t->pools[t->spaces[r->space].info.pool] == p &&
           (hot->flags & HOT_IN_POLICY) && hot->is_warm && tier_of_mem(t, r) == MEM_CXL;
}

/* Has DRAM something colder? What is next to go there and was asked for meanwhile is not. */
static bool promote_is_worth_it(struct tiering *t, struct tpool *p, uint32_t sectors)
{
    if (room_is_ample(t, p, MEM_DRAM, sectors) || p->leaving_sectors >= sectors)
        return true;
    uint32_t victim = demote_victim(t, p);

    if (victim == RECORD_NONE || !hot_at(t, victim)->is_warm)
        return victim != RECORD_NONE;
    hot_at(t, victim)->is_warm = 0;
    return false;
}

/* 0: it is on its way, or not worth it; else later. */
static int promote_one(struct tiering *t, struct tpool *p, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    uint32_t sectors = sectors_of(r->size_bytes);

    if (hot_at(t, object)->pins != migrate_pins(hot_at(t, object)))
        return -EBUSY;
    if (!promote_is_worth_it(t, p, sectors))
        return 0;
    int status = migrate_begin(t, object, MEM_DRAM, false);
    if (status == 0)
        p->promote_bytes -= r->size_bytes;
    else if (status == -ENOSPC)
        (void)migrate_demote(t, p, sectors);
    return status;
}

void migrate_promote(struct tiering *t, uint32_t pool)
{
    struct tpool *p = &t->pools[pool];

    for (uint32_t n = t->stopping ? 0 : p->n_promote; n > 0; n--) {
        uint32_t object = p->promote[p->promote_first];
        bool wanted = promote_is_wanted(t, p, object);

        if (wanted && p->promote_bytes < record_at(&t->records, object)->size_bytes)
            return; /* until the next slow tick */
        /* Whoever still leases it, or room on its way, is waited for: behind the others. */
        p->promote_first = (p->promote_first + 1) % PROMOTIONS_MAX;
        p->n_promote--;
        if (wanted && promote_one(t, p, object) < 0)
            p->promote[(p->promote_first + p->n_promote++) % PROMOTIONS_MAX] = object;
    }
}
