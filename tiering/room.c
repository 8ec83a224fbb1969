/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory for pieces: chunks, extents, eviction, and the queue of those who wait. Engine thread only.
 *
 * Taking room never blocks. It uses free extents; else it evicts in the order of the policies: clean pieces lose their
 * memory, `cache` pieces that no device can take are dropped, dirty ones are first written (a spill), which takes a
 * while: then the answer is -EAGAIN, and the end of the spill kicks the queue. Pieces that will be evicted soon are
 * written ahead of need, so that in a steady state a victim is clean.
 *
 * The queue of a pool is served in order. Only sessions' private memory is apart: waiting for it holds up nobody.
 */
#include <errno.h>
#include <stdlib.h>

#include "tiering/core.h"

#define PRIVATE_CHUNK_BYTES (64 * MIB)
#define ON_DEMAND_BYTES_MIN (64 * MIB)
#define VICTIM_SEARCHES 16
#define STUCK_MAX 64 /* victims that can neither be written nor dropped, in one search for room */

/* --- Chunks ------------------------------------------------------------------------------------------------------ */

static void room_chunk_done(struct io_chunk *io);

static int room_chunk_ask(struct tiering *t, uint32_t pool, uint8_t arena, struct session_arena *private_arena,
                          uint64_t size_bytes)
{
    struct chunk_request *req = calloc(1, sizeof(*req));

    if (!req)
        return -ENOMEM;
    *req = (struct chunk_request){.t = t, .pool = pool, .arena = arena, .private_arena = private_arena};
    req->io = (struct io_chunk){.kind = private_arena                   ? IO_CHUNK_PRIVATE
                                        : t->pools[pool].config.trusted ? IO_CHUNK_TRUSTED
                                                                        : IO_CHUNK_SHARED,
                                .node = arena ? t->config.cxl_nodes[0] : t->config.node,
                                .size_bytes = size_bytes,
                                .done = room_chunk_done};
    list_push_tail(&t->chunk_requests, &req->link);
    t->config.backend->ops->chunk_request(t->config.backend, &req->io);
    return 0;
}

/*
 * The first chunk is the smaller of the budget and 1 GiB, then 8 GiB, then 64 GiB at a time. On demand somebody waits
 * until all of it is touched: what there is at most doubles.
 */
static uint64_t room_next_chunk_bytes(const struct tiering *t, uint64_t have, uint64_t want)
{
    uint64_t size = have < GIB ? GIB : have < 9 * GIB ? 8 * GIB : 64 * GIB;

    if (t->config.memory_on_demand)
        size = MIN(size, MAX(have, ON_DEMAND_BYTES_MIN));
    if (t->config.chunk_bytes_max)
        size = MIN(size, (uint64_t)t->config.chunk_bytes_max);
    return MIN(size, want - have) / FRAME_BYTES * FRAME_BYTES;
}

static int room_grow(struct tiering *t, uint32_t pool)
{
    struct tpool *p = &t->pools[pool];

    for (uint8_t a = 0; a < 2; a++) {
        uint64_t have = p->arenas[a].total_sectors * SECTOR_BYTES;
        uint64_t size;

        if (p->asked_chunks[a] || have >= p->want_chunks[a])
            continue;
        size = room_next_chunk_bytes(t, have, p->want_chunks[a]);
        if (!size)
            continue;
        p->asked_chunks[a] = size;
        int r = room_chunk_ask(t, pool, a, NULL, size);
        if (r < 0) {
            p->asked_chunks[a] = 0;
            return r;
        }
        if (t->config.memory_on_demand)
            break; /* the slower memory only when the faster is all taken */
    }
    return 0;
}

/* The pool needs room: true if memory that it has not taken yet is on its way, so that nothing need go for it. */
static bool room_grow_on_demand(struct tiering *t, uint32_t pool)
{
    const struct tpool *p = &t->pools[pool];

    if (!t->config.memory_on_demand)
        return false;
    if (!p->asked_chunks[0] && !p->asked_chunks[1] && room_grow(t, pool) < 0)
        t->config.events->notice(t->config.ctx, "memory chunk could not be asked for", pool, -ENOMEM);
    return p->asked_chunks[0] || p->asked_chunks[1];
}

int room_start(struct tiering *t)
{
    for (uint32_t i = 0; i < t->n_pools; i++) {
        struct tpool *p = &t->pools[i];

        p->want_chunks[0] = p->config.dram_bytes / FRAME_BYTES * FRAME_BYTES;
        p->want_chunks[1] = t->config.n_cxl_nodes ? p->config.cxl_bytes / FRAME_BYTES * FRAME_BYTES : 0;
        int r = t->config.memory_on_demand ? 0 : room_grow(t, i);
        if (r < 0)
            return r;
    }
    return 0;
}

static void room_chunk_add(struct tiering *t, struct chunk_request *req, struct arena *arena)
{
    struct arena_chunk *chunk;
    uint32_t epoch = ++t->next_epoch;
    struct session_arena *sa = req->private_arena;
    int r = -EMFILE;

    if (sa && !sa->session)
        r = -EPIPE; /* nobody is there any more to use it */
    else if (req->io.region < CHUNKS_MAX)
        r = arena_chunk_add(arena, req->io.region, epoch, req->io.size_bytes, &chunk);
    if (r < 0) {
        t->config.backend->ops->chunk_close(t->config.backend, req->io.region);
        if (r != -EPIPE)
            t->config.events->notice(t->config.ctx, "memory chunk could not be used", req->pool, r);
        if (sa)
            sa->want_bytes = arena->total_sectors * SECTOR_BYTES;
        else
            t->pools[req->pool].want_chunks[req->arena] = arena->total_sectors * SECTOR_BYTES;
        return;
    }
    t->chunk_of[req->io.region] = chunk;
    t->config.events->chunk_new(t->config.ctx, req->io.region, epoch, req->pool, req->io.kind,
                                sa && sa->session ? sa->session->number : 0);
}

static void room_chunk_done(struct io_chunk *io)
{
    struct chunk_request *req = container_of(io, struct chunk_request, io);
    struct tiering *t = req->t;
    struct tpool *p = &t->pools[req->pool];
    struct session_arena *sa = req->private_arena;

    list_unlink(&req->link);
    if (sa)
        sa->asked_bytes = 0;
    else
        p->asked_chunks[req->arena] = 0;
    if (io->result < 0) {
        /* Go on with what there is, and say so. */
        if (sa)
            sa->want_bytes = sa->arena.total_sectors * SECTOR_BYTES;
        else
            p->want_chunks[req->arena] = p->arenas[req->arena].total_sectors * SECTOR_BYTES;
        t->stat.refused_bytes += io->size_bytes;
        t->config.events->notice(t->config.ctx, "memory chunk was refused", req->pool, io->result);
    } else {
        room_chunk_add(t, req, sa ? &sa->arena : &p->arenas[req->arena]);
    }
    if (!sa && !t->config.memory_on_demand && room_grow(t, req->pool) < 0)
        t->config.events->notice(t->config.ctx, "memory chunk could not be asked for", req->pool, -ENOMEM);
    if (!sa && io->result == 0) {
        uint64_t sectors = p->arenas[0].total_sectors + p->arenas[1].total_sectors;

        for (uint32_t c = 0; c < TIERING_CLASSES; c++)
            p->policies[c]->ops->resize(p->policies[c], sectors);
    }
    room_kick(t, req->pool);
    free(req);
}

/* --- Eviction ---------------------------------------------------------------------------------------------------- */

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

static void room_evict_clean(struct tiering *t, uint32_t object)
{
    struct tpool *p = pool_of(t, record_at(&t->records, object));

    policy_leave(t, object, true);
    object_drop_mem(t, object);
    rank_used(t, object); /* "not again" has had its effect */
    p->stat.evictions++;
    p->look_ahead = true;
}

/* It may be dropped, and writing it to a device would be in vain. */
static bool room_is_hopeless(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    struct policy *policy = pool_of(t, r)->policies[space_of(t, r)->info.class_id];

    return durability_of(t, r) == STORE_CACHE && (hot_at(t, object)->flags & HOT_IN_POLICY) &&
           policy->ops->is_hopeless && policy->ops->is_hopeless(policy, object);
}

int room_evict(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    struct tpool *p = pool_of(t, r);
    int status = -ENOSPC;

    if (!record_is_dirty(r)) {
        room_evict_clean(t, object);
        return 0;
    }
    if (record_waits_for_sync(t, r))
        return -ENOSPC;
    if (hot_at(t, object)->flags & HOT_SPILLING)
        return -EAGAIN;
    if (room_can_spill(t, p) && !room_is_hopeless(t, object)) {
        uint8_t store = store_pick(t, r);

        status = move_spill(t, object, true, store, 0, false, NULL);
        if (status == 0 || status == -EBUSY)
            return -EAGAIN;
        if (status == -EAGAIN && t->stores[store].room_wanted)
            return -EAGAIN;
    }
    if (durability_of(t, r) != STORE_CACHE)
        return status == -EAGAIN ? status : -ENOSPC;
    if (room_can_spill(t, p))
        place_dropped(t, r);
    policy_leave(t, object, true);
    object_kill_all(t, object);
    p->stat.drops++;
    return 0;
}

/* The class that holds most for its weight gives first. */
static uint32_t room_victim(struct tiering *t, struct tpool *p, uint64_t incoming)
{
    bool tried[TIERING_CLASSES] = {false};
    struct victim_search search = {.tiering = t};

    for (int round = 0; round < TIERING_CLASSES; round++) {
        int best = -1;
        double best_share = 0;

        for (int c = 0; c < TIERING_CLASSES; c++) {
            double share = (double)p->class_sectors[c] / (double)MAX(t->config.classes[c].weight, 1U);

            if (!tried[c] && p->class_sectors[c] && share > best_share) {
                best_share = share;
                best = c;
            }
        }
        if (best < 0)
            break;
        tried[best] = true;
        /* A search passes over a bounded number of leased pieces, and moves them out of the next one's way. */
        for (int i = 0; i < VICTIM_SEARCHES; i++) {
            uint32_t victim = p->policies[best]->ops->victim(p->policies[best], incoming, victim_pin_state, &search);

            if (victim != POLICY_NONE)
                return victim;
        }
    }
    return POLICY_NONE;
}

/* Evicts all that can go from the slab at this place, so that another size can have it. */
static void room_empty_slab(struct tiering *t, const struct arena_chunk *chunk, uint32_t sector)
{
    uint32_t owners[64], cursor = 0, n;

    while (arena_has_slab(chunk, sector) &&
           (n = arena_slab_owners(chunk, sector, &cursor, owners, ARRAY_LEN(owners))) > 0) {
        for (uint32_t i = 0; i < n; i++) {
            /* One eviction may take others along (an object's parts): those are in no policy any more. */
            if (owners[i] != ARENA_OWNER_NONE && (hot_at(t, owners[i])->flags & HOT_IN_POLICY) &&
                !object_is_pinned(t, owners[i]))
                (void)room_evict(t, owners[i]);
        }
    }
}

/* A leased piece keeps its slab where it is; one that is only being written will be free soon. */
static bool room_slab_is_stuck(void *ctx, const struct arena_chunk *chunk, const struct arena_slab *slab)
{
    struct tiering *t = ctx;
    uint32_t owners[64], cursor = 0, n;

    while ((n = arena_slab_owners(chunk, slab->first_frame * FRAME_SECTORS, &cursor, owners, ARRAY_LEN(owners))) > 0) {
        for (uint32_t i = 0; i < n; i++) {
            if (owners[i] == ARENA_OWNER_NONE || object_pin_state(t, owners[i]) == POLICY_HELD)
                return true;
        }
    }
    return false;
}

/* Room for one extent of this size where other sizes are: empties the first run of frames that nobody leases. */
static void room_clear_run(struct tiering *t, struct tpool *p, uint32_t sectors)
{
    uint32_t n = (uint32_t)div_round_up(sectors, FRAME_SECTORS), first;
    struct arena_chunk *chunk;

    for (int a = 0; a < 2; a++) {
        if (!p->arenas[a].total_frames ||
            !arena_find_clearable(&p->arenas[a], n, room_slab_is_stuck, t, &chunk, &first))
            continue;
        for (uint32_t i = first; i < MIN(first + n, chunk->n_frames); i++)
            room_empty_slab(t, chunk, i * FRAME_SECTORS);
        return;
    }
}

static int room_alloc(struct tpool *p, uint32_t object, uint32_t sectors, struct arena_chunk **ret_chunk,
                      uint32_t *ret_sector)
{
    for (int a = 0; a < 2; a++) {
        if (p->arenas[a].total_frames && arena_alloc(&p->arenas[a], sectors, object, ret_chunk, ret_sector) == 0)
            return 0;
    }
    return -ENOSPC;
}

int room_take(struct tiering *t, uint32_t pool, uint32_t object, uint32_t sectors, struct arena_chunk **ret_chunk,
              uint32_t *ret_sector)
{
    struct tpool *p = &t->pools[pool];
    uint64_t incoming = record_hash(&t->records, record_at(&t->records, object));
    uint64_t spilling = 0, freed = 0;
    uint32_t stuck = 0;
    bool cleared = false, was_stuck = p->stuck_object == object;

    for (int tries = 0; tries < 4096; tries++) {
        if (room_alloc(p, object, sectors, ret_chunk, ret_sector) == 0) {
            if (was_stuck)
                p->stuck_object = RECORD_NONE;
            return 0;
        }
        if (spilling >= sectors || room_grow_on_demand(t, pool))
            return -EAGAIN;
        if (cleared)
            break;
        uint32_t victim = room_victim(t, p, incoming);
        if (victim == POLICY_NONE)
            break;
        const struct record *r = record_at(&t->records, victim);
        uint32_t victim_sectors = sectors_of(r->size_bytes);
        if (was_stuck || (freed > 2 * (uint64_t)sectors && victim_sectors != sectors)) {
            /* Other sizes were freed, and it did not help: memory has to change hands. Once; then whoever leases or
             * writes what is in the way has to end first, and no more is evicted for it until then. */
            cleared = true;
            p->stuck_object = object;
            room_clear_run(t, p, sectors);
            continue;
        }
        int status = room_evict(t, victim);
        if (status == 0) {
            freed += victim_sectors;
        } else if (status == -EAGAIN) {
            spilling += victim_sectors;
        } else {
            /* It must stay: out of the way of those that need not. */
            if (++stuck == STUCK_MAX)
                break;
            policy_leave(t, victim, false);
            policy_enter(t, victim);
        }
        if (p->spilling >= SPILLS_MAX)
            break;
    }
    spills_urge(p, sectors);
    return p->spilling || spilling || p->asked_chunks[0] || p->asked_chunks[1] ? -EAGAIN : -ENOSPC;
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

void room_serve(struct tiering *t, uint32_t pool)
{
    struct tpool *p = &t->pools[pool];
    struct list mark;

    list_init(&mark);
    /* Whoever is woken may cancel any other that waits: only a mark of our own says where we are. */
    for (struct list *l = p->room.next; l != &p->room; l = mark.next) {
        struct move *m = list_entry(l, struct move, link);
        uint32_t sectors = move_sectors(m);
        bool private = m->kind == MOVE_FILL || (m->kind == MOVE_RESERVE && !p->config.trusted);
        struct arena_chunk *chunk;
        uint32_t sector, limit;
        int status = private ? room_take_private(t, m->session, pool, m->object, sectors, &chunk, &sector, &limit)
                             : room_take(t, pool, m->object, sectors, &chunk, &sector);

        list_unlink(&mark);
        list_push_head(l, &mark);
        if (status == 0)
            move_go(m, chunk, sector);
        else if (private && status == -ENOSPC)
            move_fail(m, status);
        else if (!private)
            break;
    }
    list_unlink(&mark);
}

void room_clean_ahead(struct tiering *t, uint32_t pool)
{
    struct tpool *p = &t->pools[pool];
    uint64_t total = (p->want_chunks[0] + p->want_chunks[1]) / SECTOR_BYTES; /* what is not taken yet is free */
    uint64_t used = p->arenas[0].used_sectors + p->arenas[1].used_sectors;
    uint32_t objects[CLEAN_AHEAD];

    if (!p->look_ahead || t->stopping)
        return;
    p->look_ahead = false;
    /* There is room enough: nobody will be evicted soon. */
    if ((total - used) * 100 > total * t->config.clean_percent)
        return;
    if (!room_can_spill(t, p) || p->spilling >= SPILLS_MAX)
        return;
    for (int c = 0; c < TIERING_CLASSES; c++) {
        uint32_t n = p->policies[c]->ops->coldest(p->policies[c], objects, CLEAN_AHEAD, object_pin_state, t);

        for (uint32_t i = 0; i < n && p->spilling < SPILLS_MAX; i++) {
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

/* --- Private memory of sessions ---------------------------------------------------------------------------------- */

static struct session_arena *room_session_arena(struct tiering *t, struct tiering_session *s, uint32_t pool)
{
    list_for_each (l, &s->arenas) {
        struct session_arena *sa = list_entry(l, struct session_arena, link);

        if (sa->pool == pool)
            return sa;
    }
    struct session_arena *sa = calloc(1, sizeof(*sa));
    if (!sa || arena_init(&sa->arena) < 0) {
        free(sa);
        return NULL;
    }
    sa->session = s;
    sa->pool = pool;
    sa->want_bytes = t->pools[pool].config.session_bytes / FRAME_BYTES * FRAME_BYTES;
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
    if (!sa->asked_bytes && have < sa->want_bytes) {
        uint64_t size = MIN(PRIVATE_CHUNK_BYTES, sa->want_bytes - have);

        if (room_chunk_ask(t, pool, 0, sa, size) == 0)
            sa->asked_bytes = size;
    }
    *ret_limit = TIERING_LIMIT_SESSION_BYTES;
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
        list_for_each (c, &sa->arena.chunks) {
            struct arena_chunk *chunk = list_entry(c, struct arena_chunk, link);

            t->chunk_of[chunk->region] = NULL;
            t->config.events->chunk_gone(t->config.ctx, chunk->region, chunk->epoch);
            t->config.backend->ops->chunk_close(t->config.backend, chunk->region);
        }
        list_unlink(&sa->link);
        arena_deinit(&sa->arena);
        free(sa);
    }
}
