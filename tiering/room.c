/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Room for a piece: extents, the queue of those who wait, and sessions' private memory. Engine thread only.
 *
 * Taking room never blocks. It uses free extents; else it makes some (evict.c, migrate.c), which takes a while if what
 * has to go must first be written or copied: then the answer is -EAGAIN, and the end of that kicks the queue.
 *
 * DRAM comes first. When it is full, and the pool has CXL memory: classes that only DMA touches go to CXL memory,
 * where the coldest are evicted for them; for the others the coldest in DRAM move to CXL memory. Leases count in each
 * tier, so a tier at its limit is passed over.
 *
 * The queue of a pool is served in order. Sessions' private memory is apart: waiting for it holds up nobody. And where
 * nothing can be done for the one at the head, since all that has the memory must stay, others pass it, for room in slabs
 * of their own size, which it could not use.
 */
#include <errno.h>
#include <stdlib.h>

#include "include/base/kill_point.h"
#include "include/base/point.h"
#include "tiering/core.h"

#define PRIVATE_CHUNK_BYTES (64 * MIB)
#define PASS_MAX 256 /* those behind one that is stuck that are looked at */
#define STUCK_MAX 64 /* victims that can neither be written nor dropped, in one search for room */
#define VAIN_NS UINT64_C(1000000000)

/* --- Taking ------------------------------------------------------------------------------------------------------ */

uint64_t room_tier_sectors(const struct tpool *p, enum mem_tier tier)
{
    return p->want_chunks[tier] / SECTOR_BYTES; /* on demand, what is not taken yet is free */
}

bool room_is_ample(const struct tiering *t, const struct tpool *p, enum mem_tier tier, uint64_t sectors)
{
    uint64_t total = room_tier_sectors(p, tier), used = p->arenas[tier].used_sectors + sectors;

    return used <= total && (total - used) * 100 > total * t->config.clean_percent;
}

/* Nothing more can go, nor is on its way; but what is free would do, if it were not in slabs of other sizes. */
static bool room_is_scattered(const struct tpool *p, enum mem_tier tier, uint32_t sectors)
{
    const struct arena *a = &p->arenas[tier];

    return !p->spilling && a->total_sectors - a->used_sectors >= sectors;
}

int room_take_in(struct tiering *t, struct tpool *p, enum mem_tier tier, uint32_t object, uint32_t sectors,
                 struct arena_chunk **ret_chunk, uint32_t *ret_sector)
{
    uint64_t incoming = record_hash(&t->records, record_at(&t->records, object));
    uint64_t spilling = 0, freed = 0;
    struct refused refused = {0};
    uint32_t stuck = 0;
    bool cleared = false, was_stuck = p->stuck_object[tier] == object;

    for (int tries = 0; tries < 4096 && p->arenas[tier].total_frames; tries++) {
        if (arena_alloc(&p->arenas[tier], sectors, object, ret_chunk, ret_sector) == 0) {
            if (was_stuck)
                p->stuck_object[tier] = RECORD_NONE;
            return 0;
        }
        if (spilling >= sectors)
            return -EAGAIN;
        if (cleared)
            break;
        struct victim_search search = {.tiering = t, .refused = &refused};
        uint32_t victim = room_victim(t, p, tier, incoming, victim_pin_state, &search, CLASSES_ALL);
        if (victim == RECORD_NONE ? !room_is_scattered(p, tier, sectors) : room_may_wait(t, victim))
            break;
        uint32_t victim_sectors = victim == RECORD_NONE ? 0 : sectors_of(record_at(&t->records, victim)->size_bytes);
        if (victim == RECORD_NONE || was_stuck || (freed > 2 * (uint64_t)sectors && victim_sectors != sectors)) {
            /* Other sizes were freed, and it did not help: memory has to change hands. Once; then whoever leases or
             * writes what is in the way has to end first, and no more is evicted for it until then. */
            sim_reached("room: other sizes are in the way");
            cleared = true;
            p->stuck_object[tier] = object;
            room_clear_run(t, p, tier, sectors);
            continue;
        }
        int status = room_evict(t, victim);
        if (status == 0) {
            freed += victim_sectors;
        } else if (status == -EAGAIN) {
            spilling += victim_sectors;
        } else {
            /* It must stay: out of the way of those that need not, as are all that are like it from now on. */
            refused_note(t, &refused, victim);
            if (++stuck == STUCK_MAX)
                break;
            policy_leave(t, victim, false);
            policy_enter(t, victim);
        }
        if (spills_are_enough(t, p))
            break;
    }
    spills_urge(p, sectors);
    return p->spilling || spilling || p->asked_chunks[tier] ? -EAGAIN : -ENOSPC;
}

/* DRAM for what the CPU touches: something colder moves to CXL memory for it. */
static int room_take_by_demotion(struct tiering *t, struct tpool *p, uint32_t object, uint32_t sectors,
                                 struct arena_chunk **ret_chunk, uint32_t *ret_sector)
{
    const struct arena *a = &p->arenas[MEM_DRAM];
    bool sizes_are_in_the_way = a->total_sectors - a->used_sectors >= 4 * (uint64_t)sectors;
    int status = sizes_are_in_the_way ? -ENOSPC : migrate_demote(t, p, sectors);

    if (status != -ENOSPC)
        return -EAGAIN;
    status = room_take_in(t, p, MEM_DRAM, object, sectors, ret_chunk, ret_sector);
    return status == -ENOSPC ? room_take_in(t, p, MEM_CXL, object, sectors, ret_chunk, ret_sector) : status;
}

int room_take(struct tiering *t, uint32_t pool, uint32_t object, uint32_t sectors, struct arena_chunk **ret_chunk,
              uint32_t *ret_sector)
{
    struct tpool *p = &t->pools[pool];
    const struct record *r = record_at(&t->records, object);
    uint8_t placement = t->config.classes[space_of(t, r)->info.class_id].placement;
    bool dram_is_leased = lease_tier_is_full(p, MEM_DRAM, r->size_bytes);

    if (!dram_is_leased && arena_alloc(&p->arenas[MEM_DRAM], sectors, object, ret_chunk, ret_sector) == 0)
        return 0;
    if (chunk_grow_on_demand(t, pool))
        return -EAGAIN;
    p->pressure[MEM_DRAM]++;
    p->look_ahead = true;
    if (!pool_has_cxl(p))
        return room_take_in(t, p, MEM_DRAM, object, sectors, ret_chunk, ret_sector);
    if ((placement == TIERING_PLACE_DMA || dram_is_leased) && !lease_tier_is_full(p, MEM_CXL, r->size_bytes)) {
        if (arena_alloc(&p->arenas[MEM_CXL], sectors, object, ret_chunk, ret_sector) == 0)
            return 0;
        p->pressure[MEM_CXL]++;
        int status = room_take_in(t, p, MEM_CXL, object, sectors, ret_chunk, ret_sector);
        if (status != -ENOSPC)
            return status;
    }
    return room_take_by_demotion(t, p, object, sectors, ret_chunk, ret_sector);
}

void room_give(struct tiering *t, uint32_t region, uint32_t sector)
{
    struct arena_chunk *chunk = t->chunk_of[region];

    assert(chunk != NULL);
    arena_free(chunk, sector);
    t->kicked = true;
}

void room_kick(struct tiering *t, uint32_t pool)
{
    (void)pool;
    t->kicked = true;
}

/* --- Those who wait ---------------------------------------------------------------------------------------------- */

/* Beside pieces of its own size. */
static int room_take_beside(struct tiering *t, struct tpool *p, uint32_t object, uint32_t sectors,
                            struct arena_chunk **ret_chunk, uint32_t *ret_sector)
{
    uint32_t size_bytes = record_at(&t->records, object)->size_bytes;

    for (enum mem_tier tier = MEM_DRAM; tier < MEM_TIERS; tier++)
        if (arena_has_room(&p->arenas[tier], sectors) && !lease_tier_is_full(p, tier, size_bytes))
            return arena_alloc(&p->arenas[tier], sectors, object, ret_chunk, ret_sector);
    return -EAGAIN;
}

/* The one at the head waits for what a failed device will never take. Leases may end, and something may be deleted: that is
 * waited for, but not for a minute by each of those who come. */
static bool room_waits_in_vain(struct tiering *t, struct tpool *p, const struct move *m)
{
    if (p->stuck != TIERING_LIMIT_DEVICE_FAILED)
        p->vain_ns = 0;
    else if (p->vain_ns == 0)
        p->vain_ns = t->now_ns;
    return p->vain_ns != 0 && t->now_ns - p->vain_ns >= VAIN_NS && (m->kind == MOVE_LOAD || m->kind == MOVE_RESERVE);
}

void room_serve(struct tiering *t, uint32_t pool)
{
    struct tpool *p = &t->pools[pool];
    uint32_t passed = 0; /* looked at since one was stuck */
    struct list mark;

    list_init(&mark);
    /* Whoever is woken may cancel any other that waits: only a mark of our own says where we are. */
    for (struct list *l = p->room.next; l != &p->room; l = mark.next) {
        struct move *m = list_entry(l, struct move, link);
        uint32_t sectors = move_sectors(m);
        bool is_idle = m->kind == MOVE_LOAD && !m->is_asked && list_is_empty(&m->waiters); /* nobody would miss it */
        bool private = m->kind == MOVE_FILL || (m->kind == MOVE_RESERVE && !p->config.trusted);
        struct arena_chunk *chunk;
        uint32_t sector, limit;
        int status = private  ? room_take_private(t, m->session, pool, m->object, sectors, &chunk, &sector, &limit)
                     : passed ? room_take_beside(t, p, m->object, sectors, &chunk, &sector)
                              : room_take(t, pool, m->object, sectors, &chunk, &sector);

        list_unlink(&mark);
        list_push_head(l, &mark);
        bool vain = !private && passed == 0 && status == -ENOSPC && room_waits_in_vain(t, p, m);
        passed += passed || (!private && !is_idle && !vain && status == -ENOSPC);
        if (status == 0) {
            if (passed == 0) {
                p->stuck = TIERING_LIMIT_NONE;
                p->vain_ns = 0;
            }
            kill_point("room.found");
            move_go(m, chunk, sector);
        } else if ((private || is_idle || vain) && status == -ENOSPC)
            move_fail(m, status);
        else if (!private && (!passed || passed > PASS_MAX))
            break;
    }
    list_unlink(&mark);
}

/* --- Private memory of sessions ---------------------------------------------------------------------------------- */

struct session_arena *room_arena_new(struct tiering *t, uint32_t pool)
{
    struct session_arena *sa = calloc(1, sizeof(*sa));

    if (!sa || arena_init(&sa->arena) < 0) {
        free(sa);
        return NULL;
    }
    list_init(&sa->link);
    sa->pool = pool;
    sa->want_bytes = t->pools[pool].config.session_bytes / FRAME_BYTES * FRAME_BYTES;
    return sa;
}

static struct session_arena *room_session_arena(struct tiering *t, struct tiering_session *s, uint32_t pool)
{
    list_for_each (l, &s->arenas) {
        struct session_arena *sa = list_entry(l, struct session_arena, link);

        if (sa->pool == pool)
            return sa;
    }
    struct session_arena *sa = room_arena_new(t, pool);
    if (!sa)
        return NULL;
    sa->session = s;
    sa->number = s->number;
    sa->user = s->user;
    list_push_tail(&s->arenas, &sa->link);
    return sa;
}

int room_take_private(struct tiering *t, struct tiering_session *s, uint32_t pool, uint32_t object, uint32_t sectors,
                      struct arena_chunk **ret_chunk, uint32_t *ret_sector, uint32_t *ret_limit)
{
    struct session_arena *sa = room_session_arena(t, s, pool);

    if (!sa)
        return -ENOMEM;
    if (arena_alloc(&sa->arena, sectors, object, ret_chunk, ret_sector) == 0)
        return 0;
    uint64_t have = sa->arena.total_sectors * SECTOR_BYTES;
    *ret_limit = TIERING_LIMIT_SESSION_BYTES;
    if (!sa->asked_bytes && have < sa->want_bytes) {
        uint64_t size = MIN(PRIVATE_CHUNK_BYTES, sa->want_bytes - have);

        if (have > 0 && !user_may_have_private(t, sa, size)) { /* each session has a first one */
            *ret_limit = TIERING_LIMIT_UID_LEASES;
        } else if (chunk_ask_private(t, sa, size) == 0) {
            sa->asked_bytes = size;
            user_count_private(t, sa, have + size);
        }
    }
    return sa->asked_bytes || sa->arena.used_sectors ? -EAGAIN : -ENOSPC;
}

void room_session_end(struct tiering *t, struct tiering_session *s)
{
    list_for_each_safe (l, &s->arenas) {
        struct session_arena *sa = list_entry(l, struct session_arena, link);

        sa->session = NULL;
        list_unlink(&sa->link);
        list_push_tail(&t->orphans, &sa->link);
    }
}

void room_orphans(struct tiering *t)
{
    list_for_each_safe (l, &t->orphans) {
        struct session_arena *sa = list_entry(l, struct session_arena, link);

        if (sa->asked_bytes || sa->arena.used_sectors)
            continue;
        list_for_each (c, &sa->arena.chunks)
            chunk_give_back(t, list_entry(c, struct arena_chunk, link));
        list_unlink(&sa->link);
        user_count_private(t, sa, 0);
        arena_deinit(&sa->arena);
        free(sa);
    }
}
