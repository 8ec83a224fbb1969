/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who has to go when memory is short, and what is done ahead of need. Engine thread only.
 *
 * In the order of the policies, one tier at a time: clean pieces lose their memory, `cache` pieces that no device can
 * take are dropped, dirty ones are first written (a spill), which takes a while. Ahead of need: pieces that will leave
 * memory soon are written, so that in a steady state a victim is clean; and where a pool has CXL memory, what is
 * coldest in DRAM moves there before DRAM is full. So with CXL memory pieces leave memory from there, and DRAM loses
 * them to CXL memory.
 */
#include <errno.h>

#include "include/base/kill_point.h"
#include "include/base/point.h"
#include "tiering/core.h"

#define VICTIM_SEARCHES 16

/* True if a device may take the pool's pieces. */
static bool room_can_spill(const struct tiering *t, const struct tpool *p)
{
    if (!p->config.nvme_bytes)
        return false;
    for (uint32_t i = 0; i < t->n_stores; i++) {
        if (!t->stores[i].failed)
            return true;
    }
    return false;
}

/* Why no device takes what must stay. A pool that has none lacks memory. */
static uint32_t room_limit(const struct tiering *t, const struct tpool *p, uint8_t store, uint32_t pool)
{
    if (!p->config.nvme_bytes || t->n_stores == 0)
        return TIERING_LIMIT_NONE;
    return room_can_spill(t, p) ? place_limit(t, store, pool) : TIERING_LIMIT_DEVICE_FAILED;
}

static void room_evict_clean(struct tiering *t, uint32_t object)
{
    struct tpool *p = pool_of(t, record_at(&t->records, object));

    policy_leave(t, object, true);
    object_drop_mem(t, object);
    kill_point("evict.clean");
    rank_used(t, object); /* "not again" has had its effect */
    hot_at(t, object)->is_warm = 0;
    p->stat.evictions++;
    p->look_ahead = true;
}

/* True if some device takes the pool's pieces without anything having to go for them. */
static bool room_is_on_devices(const struct tiering *t, uint32_t pool)
{
    for (uint32_t i = 0; i < t->n_stores; i++) {
        if (!t->stores[i].failed && !store_pool_is_full(t->stores[i].store, pool))
            return true;
    }
    return false;
}

/* --- What is not worth a write ------------------------------------------------------------------------------------- */

/*
 * A policy gives some blocks no hope: little of their kind was asked for again, as far as its ghosts reach. Whether that
 * also holds for as long as a device keeps them, and whether what they would push out there is better, only the devices
 * can tell. So:
 *   found / offered      how often what is there is used: loads for each piece that comes, as each pushes out another
 *   tried_found / tried  the same of those without hope that were written all the same: all as long as the devices have
 *                        room, or what they have is used as seldom; and always one in HOPELESS_TRIED
 * Both fade. Without hope is what the policy calls so, if the first says that the devices are used and the second agrees.
 */
#define HOPELESS_USES 20  /* used less often than once in so many */
#define HOPELESS_TRIED 16 /* of the others, one in so many finds out whether that is still so */
#define HOPES_MIN 64U
#define HOPES_SEEN 4096U /* before they fade */

static void hopes_fade(uint32_t *of, uint32_t *n, uint32_t seen)
{
    if (*of > seen) {
        *of /= 2;
        *n /= 2;
    }
}

static bool hopes_say_used(const struct hopes *h)
{
    return (uint64_t)h->found * HOPELESS_USES > h->offered;
}

static bool hopes_say_hopeless(const struct hopes *h)
{
    return h->tried >= HOPES_MIN && (uint64_t)h->tried_found * HOPELESS_USES < h->tried;
}

static void room_offered(struct tpool *p)
{
    p->hopes.offered++;
    hopes_fade(&p->hopes.offered, &p->hopes.found, MAX(HOPES_SEEN, (uint32_t)MIN(p->stat.objects, UINT32_MAX)));
}

/* What its policy says. */
static bool room_has_no_hope(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);

    if (durability_of(t, r) != STORE_CACHE || !(hot_at(t, object)->flags & HOT_IN_POLICY))
        return false;
    const struct policy *policy = policy_in(pool_of(t, r), tier_of_mem(t, r), space_of(t, r)->info.class_id);
    return policy->ops->is_hopeless && policy->ops->is_hopeless(policy, object);
}

void room_written(struct tiering *t, uint32_t object)
{
    struct tpool *p = pool_of(t, record_at(&t->records, object));
    bool is_tried = room_has_no_hope(t, object);

    room_offered(p);
    hot_at(t, object)->is_tried = is_tried;
    if (!is_tried)
        return;
    p->hopes.tried++;
    hopes_fade(&p->hopes.tried, &p->hopes.tried_found, HOPES_SEEN);
}

void room_found(struct tiering *t, uint32_t object)
{
    struct hopes *h = &pool_of(t, record_at(&t->records, object))->hopes;
    uint32_t *found = hot_at(t, object)->is_tried ? &h->tried_found : &h->found;

    if (*found < UINT32_MAX)
        ++*found;
    hot_at(t, object)->is_tried = 0;
}

/* It may be dropped, and writing it to a device would be in vain. */
static bool room_is_hopeless(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    const struct hopes *h = &pool_of(t, r)->hopes;

    return hopes_say_used(h) && hopes_say_hopeless(h) && object % HOPELESS_TRIED != 0 && room_has_no_hope(t, object) &&
           !room_is_on_devices(t, space_of(t, r)->info.pool);
}

/* --- Victims ------------------------------------------------------------------------------------------------------- */

int room_evict(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    struct tpool *p = pool_of(t, r);
    int status = -ENOSPC;
    uint8_t store = STORE_NONE;

    if (!record_is_dirty(r)) {
        room_evict_clean(t, object);
        return 0;
    }
    if (record_waits_for_sync(t, r))
        return -ENOSPC;
    if (hot_at(t, object)->flags & HOT_SPILLING)
        return -EAGAIN;
    if (room_can_spill(t, p) && !room_is_hopeless(t, object)) {
        store = store_pick(t, r);
        status = move_spill(t, object, true, store, 0, false, NULL);
        if (status == 0 || status == -EBUSY)
            return -EAGAIN;
        if (status == -EAGAIN && t->stores[store].room_wanted)
            return -EAGAIN;
    }
    if (durability_of(t, r) != STORE_CACHE) {
        if (status != -EAGAIN)
            p->stuck = room_limit(t, p, store, space_of(t, r)->info.pool);
        return status == -EAGAIN ? status : -ENOSPC;
    }
    if (room_can_spill(t, p)) {
        place_dropped(t, r);
        room_offered(p);
    }
    policy_leave(t, object, true);
    object_kill_all(t, object);
    p->stat.drops++;
    return 0;
}

/* --- What no device takes ------------------------------------------------------------------------------------------ */

static uint32_t refused_slot(struct tiering *t, const struct record *r)
{
    const struct space *space = space_of(t, r);

    static_assert(STORE_NONE >= DEVICES_MAX, "no store is the last slot");
    return space->info.durability == STORE_DURABLE ? MIN((uint32_t)space->home, (uint32_t)DEVICES_MAX) : DEVICES_MAX;
}

void refused_note(struct tiering *t, struct refused *refused, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    uint32_t *sectors = &refused->sectors[refused_slot(t, r)];

    *sectors = *sectors ? MIN(*sectors, sectors_of(r->size_bytes)) : sectors_of(r->size_bytes);
}

bool refused_is(struct tiering *t, const struct refused *refused, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    uint32_t sectors = refused->sectors[refused_slot(t, r)];

    return sectors && sectors_of(r->size_bytes) >= sectors && record_is_dirty(r) &&
           durability_of(t, r) != STORE_CACHE && !(hot_at(t, object)->flags & HOT_SPILLING);
}

/* A search passes over a bounded number of leased pieces, and moves them out of the next one's way. */
static uint32_t room_victim_of_class(struct policy *policy, uint64_t incoming, policy_pin_fn state, void *ctx)
{
    for (int search = 0; search < VICTIM_SEARCHES; search++) {
        uint32_t victim = policy->ops->victim(policy, incoming, state, ctx);

        if (victim != POLICY_NONE)
            return victim;
    }
    return POLICY_NONE;
}

uint32_t room_victim(struct tiering *t, struct tpool *p, enum mem_tier tier, uint64_t incoming, policy_pin_fn state,
                     void *ctx, uint32_t classes)
{
    bool tried[TIERING_CLASSES] = {false};

    for (int round = 0; round < TIERING_CLASSES; round++) {
        int best = -1;
        double best_share = 0;

        /* The class that holds most for its weight gives first. */
        for (int c = 0; c < TIERING_CLASSES; c++) {
            double share = (double)p->class_sectors[tier][c] / (double)MAX(t->config.classes[c].weight, 1U);

            if (!tried[c] && (classes >> c & 1) && p->class_sectors[tier][c] && share > best_share) {
                best_share = share;
                best = c;
            }
        }
        if (best < 0)
            break;
        tried[best] = true;
        uint32_t victim = room_victim_of_class(policy_in(p, tier, (uint32_t)best), incoming, state, ctx);

        if (victim == POLICY_SOON)
            return RECORD_NONE;
        if (victim != POLICY_NONE)
            return victim;
    }
    return RECORD_NONE;
}

/* --- For other sizes --------------------------------------------------------------------------------------------- */

static void room_evict_each(struct tiering *t, const uint32_t *owners, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        /* One eviction may take others along (an object's parts): those are in no policy any more. */
        if (owners[i] != ARENA_OWNER_NONE && (hot_at(t, owners[i])->flags & HOT_IN_POLICY) &&
            !object_is_pinned(t, owners[i]))
            (void)room_evict(t, owners[i]);
    }
}

/* Evicts all that can go from the slab at this place, so that another size can have it. */
static void room_empty_slab(struct tiering *t, const struct arena_chunk *chunk, uint32_t sector)
{
    uint32_t owners[64], cursor = 0, n;

    while (arena_has_slab(chunk, sector) &&
           (n = arena_slab_owners(chunk, sector, &cursor, owners, ARRAY_LEN(owners))) > 0)
        room_evict_each(t, owners, n);
}

/* The same from between what is leased, in slabs that stay. */
static void room_empty_run(struct tiering *t, const struct arena_chunk *chunk, uint32_t first, uint32_t n_frames)
{
    uint32_t owners[64], cursor = 0, n;

    while ((n = arena_run_owners(chunk, first, n_frames, &cursor, owners, ARRAY_LEN(owners))) > 0)
        room_evict_each(t, owners, n);
}

/*
 * It need not stay: it is clean, or may be dropped, or its write-back has begun (here, if it had not). Only the store can
 * tell that there is no place for it, so it is asked before anything is evicted beside it.
 */
static bool room_may_go(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    const struct tpool *p = pool_of(t, r);

    if (!record_is_dirty(r) || durability_of(t, r) == STORE_CACHE || (hot_at(t, object)->flags & HOT_SPILLING))
        return true;
    if (!room_can_spill(t, p))
        return false;
    if (spills_are_enough(t, p))
        return true; /* as far as one knows: when one of them ends, it is tried again */
    int status = move_spill(t, object, true, store_pick(t, r), 0, false, NULL);
    return status == 0 || status == -EBUSY || status == -EAGAIN;
}

typedef bool (*owner_fn)(struct tiering *t, uint32_t object);

static bool room_all_owners(struct tiering *t, const struct arena_chunk *chunk, const struct arena_slab *slab,
                            owner_fn holds)
{
    uint32_t owners[64], cursor = 0, n;

    while ((n = arena_slab_owners(chunk, slab->first_frame * FRAME_SECTORS, &cursor, owners, ARRAY_LEN(owners))) > 0) {
        for (uint32_t i = 0; i < n; i++) {
            if (owners[i] == ARENA_OWNER_NONE || !holds(t, owners[i]))
                return false;
        }
    }
    return true;
}

static bool room_is_unheld(struct tiering *t, uint32_t object)
{
    return object_pin_state(t, object) != POLICY_HELD;
}

/* A leased piece keeps its slab where it is, and so does one that must stay in memory because no device takes it; one
 * that is only being written will be free soon. */
static bool room_slab_is_stuck(void *ctx, const struct arena_chunk *chunk, const struct arena_slab *slab)
{
    struct tiering *t = ctx;

    return !room_all_owners(t, chunk, slab, room_is_unheld) || !room_all_owners(t, chunk, slab, room_may_go);
}

static bool room_is_stuck(void *ctx, uint32_t object)
{
    struct tiering *t = ctx;

    return object == ARENA_OWNER_NONE || !room_is_unheld(t, object) || !room_may_go(t, object);
}

/*
 * Whole slabs, if there are any that nothing must stay in. Else each has a leased piece or more, and what is between
 * those is cut out: leases of one size must not keep another size from memory that is nobody's.
 */
void room_clear_run(struct tiering *t, struct tpool *p, enum mem_tier tier, uint32_t sectors)
{
    uint32_t n = (uint32_t)div_round_up(sectors, FRAME_SECTORS), first;
    const struct arena *a = &p->arenas[tier];
    struct arena_chunk *chunk;

    if (arena_find_clearable(a, n, room_slab_is_stuck, t, &chunk, &first)) {
        for (uint32_t i = first; i < MIN(first + n, chunk->n_frames); i++)
            room_empty_slab(t, chunk, i * FRAME_SECTORS);
    } else if (arena_find_cuttable(a, n, room_is_stuck, t, &chunk, &first)) {
        room_empty_run(t, chunk, first, n);
        if (arena_cut(chunk, first, n))
            sim_reached("room: cut out from between what is leased");
    }
}

/* --- Ahead of need ----------------------------------------------------------------------------------------------- */

static uint32_t room_waiting(const struct tpool *p)
{
    uint32_t n = 0;

    list_for_each (l, &p->room)
        if (++n == CLEAN_AHEAD)
            break;
    return n;
}

/* How many of the coldest have to go soon: where that is known, as many as wait for room, and will be loaded next. */
static uint32_t room_leaving(const struct tpool *p, const struct policy *policy)
{
    uint32_t misses = policy->ops->misses_ahead ? policy->ops->misses_ahead(policy, KNOWN_AHEAD) : UINT32_MAX;

    if (misses == UINT32_MAX)
        return CLEAN_AHEAD;
    uint32_t wanted = MIN(misses + room_waiting(p), (uint32_t)CLEAN_AHEAD);
    return wanted - MIN(wanted, p->spilling);
}

bool room_may_wait(struct tiering *t, uint32_t victim)
{
    const struct record *r = record_at(&t->records, victim);
    struct tpool *p = pool_of(t, r);
    const struct policy *policy = policy_in(p, tier_of_mem(t, r), space_of(t, r)->info.class_id);

    return p->spilling > 0 && record_is_dirty(r) && policy->ops->misses_ahead && room_leaving(p, policy) == 0;
}

static void room_spill_ahead(struct tiering *t, struct tpool *p, enum mem_tier tier)
{
    uint32_t objects[CLEAN_AHEAD];

    if (!room_can_spill(t, p) || spills_are_enough(t, p))
        return;
    for (uint32_t c = 0; c < TIERING_CLASSES; c++) {
        const struct policy *policy = policy_in(p, tier, c);
        uint32_t n = policy->ops->coldest(policy, objects, room_leaving(p, policy), object_pin_state, t);

        for (uint32_t i = 0; i < n && !spills_are_enough(t, p); i++) {
            const struct record *r = record_at(&t->records, objects[i]);

            if (!record_is_dirty(r) || record_waits_for_sync(t, r) || (hot_at(t, objects[i])->flags & HOT_RELOCATING) ||
                room_is_hopeless(t, objects[i]))
                continue;
            uint8_t store = store_pick(t, r);

            if (store != STORE_NONE && move_spill(t, objects[i], false, store, 0, false, NULL) < 0)
                return;
        }
    }
}

/* Some DRAM stays free: what is coldest there is on its way to CXL memory before somebody needs its room. */
static void room_demote_ahead(struct tiering *t, struct tpool *p)
{
    const struct arena *a = &p->arenas[MEM_DRAM];
    uint64_t total = room_tier_sectors(p, MEM_DRAM), keep = total * t->config.clean_percent / 100;
    uint64_t free_sectors = total - MIN(a->used_sectors, total);

    if (free_sectors >= keep || p->leaving_sectors >= keep - free_sectors)
        return;
    if (!a->closing_sectors) /* else it is our own doing */
        p->pressure[MEM_DRAM]++;
    (void)migrate_demote(t, p, keep - free_sectors);
}

void room_clean_ahead(struct tiering *t, uint32_t pool)
{
    struct tpool *p = &t->pools[pool];
    enum mem_tier last = pool_has_cxl(p) ? MEM_CXL : MEM_DRAM;

    if (!p->look_ahead || t->stopping)
        return;
    p->look_ahead = false;
    if (last == MEM_CXL)
        room_demote_ahead(t, p);
    if (p->stat.dirty && !room_is_ample(t, p, last, 0)) /* else nobody will be evicted soon */
        room_spill_ahead(t, p, last);
}
