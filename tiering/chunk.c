/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory of pools: chunks are asked for until the budget is there, and given back when it has become smaller.
 * Engine thread only.
 *
 * Invariants, for each pool and tier: chunks that serve are within the budget at all times; with those that are closing
 * and those that were asked for they never exceed the larger of the budget and what was there before it shrank. So
 * whoever is told that memory is gone can give it to somebody else.
 *
 * A chunk that is closing gives nothing out any more. A few pieces in each tick leave it: for free room elsewhere, or
 * for the room of something colder, which is evicted. What is leased is waited for. When it is empty, its memory goes
 * back to the machine, and clients are told by the next chunk's epoch.
 */
#include <errno.h>
#include <stdlib.h>

#include "include/base/kill_point.h"
#include "tiering/core.h"

#define LOOKS_MAX 1024   /* extents of closing chunks that one tick looks at */
#define HELD_SAMPLE 1024 /* extents of a chunk that are looked at before it is chosen */
#define ON_DEMAND_BYTES_MIN (64 * MIB)
#define CAP_ALIGN_BYTES (2 * MIB) /* so that a chunk is whole hugepages */

static void chunk_done(struct io_chunk *io);

uint64_t chunk_held_bytes(const struct tpool *p, enum mem_tier tier)
{
    const struct arena *a = &p->arenas[tier];

    return (a->total_sectors + a->closing_sectors) * SECTOR_BYTES + p->asked_chunks[tier];
}

/* --- More -------------------------------------------------------------------------------------------------------- */

static int chunk_ask(struct tiering *t, const struct chunk_request *wanted, uint32_t node, uint64_t size_bytes)
{
    struct chunk_request *req = calloc(1, sizeof(*req));

    if (!req)
        return -ENOMEM;
    *req = *wanted;
    req->t = t;
    req->io = (struct io_chunk){.kind = req->private_arena                   ? IO_CHUNK_PRIVATE
                                        : t->pools[req->pool].config.trusted ? IO_CHUNK_TRUSTED
                                                                             : IO_CHUNK_SHARED,
                                .node = node,
                                .size_bytes = size_bytes,
                                .done = chunk_done};
    list_push_tail(&t->chunk_requests, &req->link);
    t->config.backend->ops->chunk_request(t->config.backend, &req->io);
    return 0;
}

int chunk_ask_private(struct tiering *t, struct session_arena *sa, uint64_t size_bytes)
{
    struct chunk_request req = {.pool = sa->pool, .tier = MEM_PRIVATE, .private_arena = sa};

    return chunk_ask(t, &req, t->config.node, size_bytes);
}

/*
 * 1 GiB at first, then 8, then 64 at a time; no more than an eighth of the pool where memory is to change hands. On demand
 * somebody waits until all of it is touched: what there is at most doubles.
 */
static uint64_t chunk_next_bytes(const struct tiering *t, uint64_t have, uint64_t want)
{
    uint64_t size = have < GIB ? GIB : have < 9 * GIB ? 8 * GIB : 64 * GIB;

    if (t->config.memory_on_demand)
        size = MIN(size, MAX(have, ON_DEMAND_BYTES_MIN));
    if (t->config.chunk_bytes_max)
        size = MIN(size, t->config.chunk_bytes_max);
    if (t->config.chunk_cap_min)
        size = MIN(size, MAX(want / 8 / CAP_ALIGN_BYTES * CAP_ALIGN_BYTES, t->config.chunk_cap_min));
    return size;
}

/* Our own node's, until it has nothing left; then any other's. False: every node has refused. */
static bool chunk_pick_dram(const struct tiering *t, const struct tpool *p, uint32_t *ret_node)
{
    for (uint32_t i = 0; i < t->n_nodes[MEM_DRAM]; i++) {
        if (p->refused_nodes[MEM_DRAM] >> i & 1)
            continue;
        *ret_node = i;
        return true;
    }
    return false;
}

/*
 * The node of CXL memory that has least for its weight, and what it lacks of its part of the budget. So a pool's memory
 * lies on all nodes, and each gives as much as it has for all. False: every node has refused.
 */
static bool chunk_pick_cxl(const struct tiering *t, const struct tpool *p, uint32_t *ret_node, uint64_t *ret_bytes)
{
    uint64_t have[NODES_MAX] = {0}, want = shortage_goal_bytes(t, p, MEM_CXL);
    double total = 0, best = 0;
    bool found = false;

    list_for_each (l, &p->arenas[MEM_CXL].chunks) {
        const struct arena_chunk *c = list_entry(l, struct arena_chunk, link);

        have[c->node] += c->n_frames * FRAME_BYTES;
    }
    for (uint32_t i = 0; i < t->n_nodes[MEM_CXL]; i++)
        total += p->refused_nodes[MEM_CXL] >> i & 1 ? 0 : (double)t->cxl_weights[i];
    for (uint32_t i = 0; i < t->n_nodes[MEM_CXL]; i++) {
        double weight = (double)t->cxl_weights[i];

        if ((p->refused_nodes[MEM_CXL] >> i & 1) || (found && (double)have[i] / weight >= best))
            continue;
        uint64_t part = (uint64_t)((double)want * (weight / total));
        found = true;
        best = (double)have[i] / weight;
        *ret_node = i;
        *ret_bytes = part > have[i] ? MAX(part - have[i], FRAME_BYTES) : FRAME_BYTES;
    }
    return found;
}

int chunk_grow(struct tiering *t, uint32_t pool, enum mem_tier tier)
{
    struct tpool *p = &t->pools[pool];
    uint64_t have = p->arenas[tier].total_sectors * SECTOR_BYTES, held = chunk_held_bytes(p, tier);
    uint64_t want = shortage_goal_bytes(t, p, tier), part = UINT64_MAX;
    uint32_t node = 0;

    if (p->asked_chunks[tier] || held >= want)
        return 0;
    if (!(tier == MEM_CXL ? chunk_pick_cxl(t, p, &node, &part) : chunk_pick_dram(t, p, &node)))
        return 0;
    uint64_t size = MIN(chunk_next_bytes(t, have, want), want - held);

    size = MIN(size, part) / FRAME_BYTES * FRAME_BYTES;
    if (!size)
        return 0;
    struct chunk_request req = {.pool = pool, .tier = (uint8_t)tier, .node = (uint8_t)node};
    int r = chunk_ask(t, &req, t->nodes[tier][node], size);
    if (r == 0)
        p->asked_chunks[tier] = size;
    return r;
}

bool chunk_grow_on_demand(struct tiering *t, uint32_t pool)
{
    const struct tpool *p = &t->pools[pool];

    if (!t->config.memory_on_demand)
        return false;
    /* The slower memory only when the faster is all taken. */
    for (enum mem_tier tier = MEM_DRAM; tier < MEM_TIERS && !p->asked_chunks[MEM_DRAM] && !p->asked_chunks[MEM_CXL];
         tier++)
        if (chunk_grow(t, pool, tier) < 0)
            t->config.events->notice(t->config.ctx, "memory chunk could not be asked for", pool, -ENOMEM);
    return p->asked_chunks[MEM_DRAM] || p->asked_chunks[MEM_CXL];
}

/* --- Less -------------------------------------------------------------------------------------------------------- */

/* Is there something leased in it, as far as one looks? */
static bool chunk_is_held(struct tiering *t, const struct arena_chunk *c)
{
    struct arena_cursor cursor = {0};
    uint32_t owner, sector;

    for (int i = 0; i < HELD_SAMPLE && arena_chunk_next(c, &cursor, &owner, &sector); i++) {
        if (owner == ARENA_OWNER_NONE || object_is_pinned(t, owner))
            return true;
    }
    return false;
}

/* The one with the least in it, if nobody holds it. */
static struct arena_chunk *chunk_pick_to_close(struct tiering *t, const struct arena *a)
{
    struct arena_chunk *best = NULL;
    bool best_held = false;

    list_for_each (l, &a->chunks) {
        struct arena_chunk *c = list_entry(l, struct arena_chunk, link);

        if (c->closing)
            continue;
        bool held = chunk_is_held(t, c);
        if (!best || held < best_held ||
            (held == best_held && c->n_frames - c->n_free < best->n_frames - best->n_free)) {
            best = c;
            best_held = held;
        }
    }
    return best;
}

/* Chunks close until the rest is within the budget; those that are closing serve again if they are. */
static void chunk_fit(struct tiering *t, struct tpool *p, enum mem_tier tier)
{
    struct arena *a = &p->arenas[tier];
    uint64_t want = p->want_chunks[tier] / SECTOR_BYTES;
    struct arena_chunk *c;

    while (a->total_sectors > want && (c = chunk_pick_to_close(t, a)))
        arena_chunk_close(c);
    list_for_each (l, &a->chunks) {
        c = list_entry(l, struct arena_chunk, link);
        if (c->closing && a->total_sectors + (uint64_t)c->n_frames * FRAME_SECTORS <= want)
            arena_chunk_reopen(c);
    }
}

static void chunk_resize_policies(struct tpool *p)
{
    for (uint32_t c = 0; c < TIERING_CLASSES; c++) {
        p->policies[c]->ops->resize(p->policies[c], p->arenas[MEM_DRAM].total_sectors);
        if (p->cxl_policies[c])
            p->cxl_policies[c]->ops->resize(p->cxl_policies[c], p->arenas[MEM_CXL].total_sectors);
    }
}

/* What there is, against what is wanted. */
static int chunk_balance(struct tiering *t, uint32_t pool)
{
    struct tpool *p = &t->pools[pool];
    int first = 0;

    for (enum mem_tier tier = MEM_DRAM; tier < MEM_TIERS; tier++) {
        chunk_fit(t, p, tier);
        int r = t->config.memory_on_demand ? 0 : chunk_grow(t, pool, tier);

        if (r < 0)
            first = r;
    }
    chunk_resize_policies(p);
    t->kicked = true;
    return first;
}

static void chunk_want(const struct tiering *t, struct tpool *p)
{
    for (enum mem_tier tier = MEM_DRAM; tier < MEM_TIERS; tier++) {
        p->want_chunks[tier] = shortage_budget_bytes(t, p, tier);
        p->refused_nodes[tier] = 0;
        p->shortage[tier].asks = false;
    }
    p->arenas[MEM_CXL].stripe = t->n_nodes[MEM_CXL] > 1;
}

int chunk_start(struct tiering *t)
{
    t->started = true;
    for (uint32_t i = 0; i < t->n_pools; i++) {
        chunk_want(t, &t->pools[i]);
        int r = chunk_balance(t, i);
        if (r < 0)
            return r;
    }
    return 0;
}

void chunk_budget(struct tiering *t, uint32_t pool)
{
    if (!t->started || pool == t->n_pools)
        return;
    chunk_want(t, &t->pools[pool]);
    shortage_end(t, pool);
    if (chunk_balance(t, pool) < 0)
        t->config.events->notice(t->config.ctx, "more memory could not be asked for", pool, -ENOMEM);
}

void chunk_give_back(struct tiering *t, const struct arena_chunk *chunk)
{
    t->chunk_of[chunk->region] = NULL;
    kill_point("chunk.give_back");
    t->truth.chunks[chunk->region].is_used = 0;
    t->config.events->chunk_gone(t->config.ctx, chunk->region, chunk->epoch);
    t->config.backend->ops->chunk_close(t->config.backend, chunk->region);
}

/* A piece that lies there finds another place, or is found one later. False: nothing more can begin now. */
static bool chunk_move_out(struct tiering *t, struct tpool *p, enum mem_tier tier, uint32_t owner)
{
    int status = migrate_begin(t, owner, tier, true);

    if (status == -ENOSPC) /* all that is left in this tier must stay in memory */
        status = migrate_begin(t, owner, tier == MEM_DRAM ? MEM_CXL : MEM_DRAM, true);
    if (status == 0)
        p->stat.evacuations++;
    return status == 0 || status == -EBUSY;
}

static void chunk_empty(struct tiering *t, struct tpool *p, struct arena_chunk *c, uint32_t *looks)
{
    enum mem_tier tier = tier_of_chunk(p, c);
    uint32_t owner, sector;

    while (*looks > 0 && p->migrating < MIGRATIONS_MAX) {
        (*looks)--;
        if (!arena_chunk_next(c, &c->scan, &owner, &sector))
            return;
        const struct record *r = owner == ARENA_OWNER_NONE ? NULL : record_at(&t->records, owner);

        /* What is not there yet, or not any more, belongs to a transfer. */
        if (!r || !(r->flags & RECORD_HAS_MEM) || r->mem_region != c->region || r->mem_sector != sector)
            continue;
        if (!chunk_move_out(t, p, tier, owner))
            return;
    }
}

bool chunk_step(struct tiering *t, uint32_t pool)
{
    struct tpool *p = &t->pools[pool];
    uint32_t looks = LOOKS_MAX;
    bool gone = false;

    if (!p->arenas[MEM_DRAM].closing_sectors && !p->arenas[MEM_CXL].closing_sectors)
        return false;
    for (enum mem_tier tier = MEM_DRAM; tier < MEM_TIERS; tier++) {
        list_for_each_safe (l, &p->arenas[tier].chunks) {
            struct arena_chunk *c = list_entry(l, struct arena_chunk, link);

            if (!c->closing)
                continue;
            if (!t->stopping && t->now_ns >= p->migrate_ns)
                chunk_empty(t, p, c, &looks);
            if (!arena_chunk_is_empty(c))
                continue;
            chunk_give_back(t, c);
            arena_chunk_remove(c);
            gone = true;
        }
    }
    if (gone && chunk_balance(t, pool) < 0) /* one large chunk may have gone for a smaller one */
        t->config.events->notice(t->config.ctx, "memory chunk could not be asked for", pool, -ENOMEM);
    return p->arenas[MEM_DRAM].closing_sectors || p->arenas[MEM_CXL].closing_sectors;
}

/* --- It is there, or refused ------------------------------------------------------------------------------------- */

static void chunk_refused(struct tiering *t, struct chunk_request *req, const char *text, int status)
{
    struct tpool *p = &t->pools[req->pool];
    struct session_arena *sa = req->private_arena;

    /* Go on with what there is, and say so. */
    if (sa) {
        sa->want_bytes = sa->arena.total_sectors * SECTOR_BYTES;
        t->stat.refused_bytes += req->io.size_bytes;
        t->config.events->notice(t->config.ctx, text, req->pool, status);
        return;
    }
    p->refused_nodes[req->tier] |= UINT64_C(1) << req->node;
    if ((uint32_t)__builtin_popcountll(p->refused_nodes[req->tier]) == t->n_nodes[req->tier])
        shortage_begin(t, req->pool, req->tier, status);
    else if (!p->shortage[req->tier].is_on)
        t->config.events->notice(t->config.ctx, text, req->pool, status);
}

static void chunk_add(struct tiering *t, struct chunk_request *req, struct arena *arena, uint64_t asked_bytes)
{
    struct arena_chunk *chunk;
    uint32_t epoch = ++t->truth.header->next_epoch;
    struct session_arena *sa = req->private_arena;
    int r = -EMFILE;

    if (sa && !sa->session)
        r = -EPIPE;                       /* nobody is there any more to use it */
    else if (req->io.region < CHUNKS_MAX) /* what whole hugepages added is in no budget */
        r = arena_chunk_add(arena, req->io.region, epoch, MIN(req->io.size_bytes, asked_bytes), &chunk);
    if (r < 0) {
        t->config.backend->ops->chunk_close(t->config.backend, req->io.region);
        if (sa && !sa->session)
            sa->want_bytes = arena->total_sectors * SECTOR_BYTES;
        else
            chunk_refused(t, req, "memory chunk could not be used", r);
        return;
    }
    uint64_t session = sa ? sa->number : 0;
    chunk->node = req->node;
    t->chunk_of[req->io.region] = chunk;
    if (!sa)
        shortage_ease(t, &t->pools[req->pool], req->tier);
    kill_point("chunk.there");
    truth_chunk_set(t, chunk, req->pool,
                    &(struct truth_chunk){
                        .node = req->io.node, .session = session, .kind = (uint8_t)req->io.kind, .tier = req->tier});
    t->config.events->chunk_new(t->config.ctx, req->io.region, epoch, req->pool, req->io.kind, session);
}

static void chunk_done(struct io_chunk *io)
{
    struct chunk_request *req = container_of(io, struct chunk_request, io);
    struct tiering *t = req->t;
    struct tpool *p = &t->pools[req->pool];
    struct session_arena *sa = req->private_arena;
    uint64_t asked_bytes = sa ? sa->asked_bytes : p->asked_chunks[req->tier];

    list_unlink(&req->link);
    kill_point("chunk.asked");
    if (sa)
        sa->asked_bytes = 0;
    else
        p->asked_chunks[req->tier] = 0;
    if (io->result < 0)
        chunk_refused(t, req, "memory chunk was refused", io->result);
    else
        chunk_add(t, req, sa ? &sa->arena : &p->arenas[req->tier], asked_bytes);
    if (sa)
        user_count_private(t, sa, sa->arena.total_sectors * SECTOR_BYTES);
    if (!sa && chunk_balance(t, req->pool) < 0)
        t->config.events->notice(t->config.ctx, "memory chunk could not be asked for", req->pool, -ENOMEM);
    if (!sa)
        shortage_end(t, req->pool);
    room_kick(t, req->pool);
    free(req);
}
