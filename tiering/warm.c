/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A new process over the memory that another one has left (truth.h): what is derived is derived again. On the thread
 * that makes the engine, before it runs.
 *
 * In this order, each from what is before it: spaces and pools by name; chunks that the backend still has; leases that
 * make sense; records; the maps of extents, from what records and leases name; and what leases hold. Then the devices'
 * logs are read (reconcile.c), sessions come back and claim their leases, and tiering_start() ends the rest.
 *
 * The process may have ended between any two stores, in the middle of whatever needs several records or leases. What was
 * begun and nobody was told of is either carried to its end or as if it had never begun:
 *   RESERVED without a lease      nobody can commit it: free
 *   DEAD without a lease          nothing uses it: free
 *   a lease on bytes that are     it was about to end: it has ended
 *     no longer its piece's
 *   complete in part              made visible in full, if all pieces are there; else deleted in full
 *   COMMITTED, with no bytes      it was about to be deleted, or its memory is gone: deleted
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/atomic.h"
#include "tiering/core.h"

/* An extent that a lease alone names; else the record's number. In both cases + 1, and 0 for none. */
#define OWN_EXTENT (UINT32_C(1) << 31)

/* Extents by their place, while their maps are made. */
struct places {
    struct tiering *t;
    uint32_t *at[CHUNKS_MAX];
};

int warm_new(struct tiering *t)
{
    const struct tiering_config *c = &t->config;

    truth_at(&t->truth, c->records, c->max_leases);
    if (!c->survived)
        return 0;
    t->distrust = truth_distrust(c->records, c->max_objects, c->max_leases);
    if (t->distrust)
        memset(c->records, 0, tiering_records_bytes(c->max_objects, c->max_leases));
    t->is_warm = !t->distrust;
    if (!t->is_warm)
        return 0;
    t->warm = calloc(1, sizeof(*t->warm));
    if (!t->warm)
        return -ENOMEM;
    for (uint32_t i = 0; i < WARM_BUCKETS; i++)
        t->warm->unclaimed[i] = RECORD_NONE;
    t->config.hash_seed = t->truth.header->hash_seed;
    t->piece_bytes = t->truth.header->piece_bytes;
    return 0;
}

void warm_free(struct tiering *t)
{
    if (!t->warm)
        return;
    for (uint32_t i = 0; i < DEVICES_MAX; i++)
        free(t->warm->freed[i]);
    free(t->warm->logged);
    free(t->warm->ended);
    free(t->warm);
    t->warm = NULL;
}

/* --- Spaces, chunks ---------------------------------------------------------------------------------------------- */

static void warm_spaces(struct tiering *t)
{
    for (uint32_t i = 0; i < t->truth.header->n_spaces; i++) {
        const struct truth_space *from = &t->truth.spaces[i];
        struct space *space = &t->spaces[i];

        *space = (struct space){.info = {.id = from->id,
                                         .item_bytes = from->item_bytes,
                                         .index = i,
                                         .pool = pool_by_name(t, from->pool),
                                         .piece_bytes = t->piece_bytes,
                                         .class_id = MIN(from->class_id, (uint8_t)(TIERING_CLASSES - 1)),
                                         .durability = from->durability},
                                .dirty = DIRTY_INIT,
                                .home = STORE_NONE};
        memcpy(space->info.digest, from->digest, sizeof(from->digest));
        memcpy(space->pool_name, from->pool, sizeof(from->pool));
    }
    t->n_spaces = t->truth.header->n_spaces;
}

/* Private memory of a session that did not come back yet. */
static struct arena *warm_private_arena(struct tiering *t, uint64_t number, uint32_t pool)
{
    list_for_each (l, &t->orphans) {
        struct session_arena *sa = list_entry(l, struct session_arena, link);

        if (sa->number == number && sa->pool == pool)
            return &sa->arena;
    }
    struct session_arena *sa = room_arena_new(t, pool);
    if (!sa)
        return NULL;
    sa->number = number;
    list_push_tail(&t->orphans, &sa->link);
    return &sa->arena;
}

static struct arena *warm_arena(struct tiering *t, const struct truth_chunk *c)
{
    uint32_t pool = pool_by_name(t, c->pool);

    if (pool == t->n_pools || t->pools[pool].config.trusted != (c->kind == IO_CHUNK_TRUSTED))
        return NULL; /* of a pool that is no longer configured, or whose sessions may do something else now */
    if (c->kind == IO_CHUNK_PRIVATE)
        return warm_private_arena(t, c->session, pool);
    return c->tier < MEM_TIERS && t->n_nodes[c->tier] > 0 ? &t->pools[pool].arenas[c->tier] : NULL;
}

static uint32_t warm_node(const struct tiering *t, const struct truth_chunk *c)
{
    for (uint32_t i = 0; c->tier < MEM_TIERS && i < t->n_nodes[c->tier]; i++)
        if (t->nodes[c->tier][i] == c->node)
            return i;
    return 0;
}

static bool warm_chunk(struct tiering *t, uint32_t region, const struct truth_chunk *c)
{
    struct io_backend *be = t->config.backend;
    struct arena *arena;
    struct arena_chunk *chunk;

    if (!c->is_used || c->size_bytes < FRAME_BYTES || be->ops->chunk_survived(be, region) < c->size_bytes)
        return false;
    arena = warm_arena(t, c);
    if (!arena || arena_chunk_add(arena, region, c->epoch, c->size_bytes, &chunk) < 0)
        return false;
    chunk->node = warm_node(t, c);
    t->chunk_of[region] = chunk;
    t->warm_counts.memory_bytes += c->size_bytes;
    t->config.events->chunk_new(t->config.ctx, region, c->epoch, pool_by_name(t, c->pool), (enum io_chunk_kind)c->kind,
                                c->session);
    return true;
}

static void warm_chunks(struct tiering *t)
{
    struct io_backend *be = t->config.backend;

    for (uint32_t region = 0; region < CHUNKS_MAX; region++) {
        struct truth_chunk *c = &t->truth.chunks[region];
        bool was_used = c->is_used;

        if (warm_chunk(t, region, c))
            continue;
        c->is_used = 0;
        if (was_used)
            t->config.events->chunk_gone(t->config.ctx, region, c->epoch);
        if (be->ops->chunk_survived(be, region) > 0)
            be->ops->chunk_close(be, region);
    }
}

/* --- Leases ------------------------------------------------------------------------------------------------------ */

static bool place_exists(const struct tiering *t, uint32_t region, uint32_t sector, uint32_t sectors)
{
    const struct arena_chunk *c = region < CHUNKS_MAX ? t->chunk_of[region] : NULL;

    return c && sector < c->n_frames * FRAME_SECTORS && sectors <= c->n_frames * FRAME_SECTORS - sector;
}

static bool record_is_sane(const struct tiering *t, const struct record *r)
{
    return r->state <= RECORD_DEAD && r->space < t->n_spaces && r->size_bytes > 0 && r->size_bytes <= t->piece_bytes &&
           r->key_len <= KEY_BYTES_MAX && r->n_parts > 0 && r->part < r->n_parts &&
           r->piece < object_pieces(t, r->object_bytes);
}

/* Whose memory the chunk is: MEM_PRIVATE of that session, or a tier of that pool. */
static bool chunk_is_of(const struct tiering *t, const struct arena_chunk *c, uint32_t pool, bool is_private,
                        uint64_t number)
{
    if (tier_of_chunk(&t->pools[pool], c) != MEM_PRIVATE)
        return !is_private;
    for (uint32_t i = 0; i < t->n_pools; i++)
        if (tier_of_chunk(&t->pools[i], c) != MEM_PRIVATE)
            return false; /* another pool's */
    const struct session_arena *sa = container_of(c->arena, struct session_arena, arena);
    return is_private && sa->pool == pool && sa->number == number;
}

/* Is it still a lease? Else it was about to end, or what it is on did not come back. */
static bool lease_is_whole(const struct tiering *t, const struct lease *l)
{
    if (l->mode == LEASE_FREE || l->mode > LEASE_RESERVE || l->object >= t->records.high)
        return false;
    const struct record *r = record_at(&t->records, l->object);
    if (r->state == RECORD_FREE || !record_is_sane(t, r) || l->off_bytes > r->size_bytes ||
        l->len_bytes > r->size_bytes - l->off_bytes)
        return false;
    uint32_t pool = t->spaces[r->space].info.pool;
    uint32_t sectors = l->is_own ? range_sectors(l->off_bytes, l->len_bytes) : sectors_of(r->size_bytes);
    if (pool == t->n_pools || !place_exists(t, l->region, l->sector, sectors))
        return false;
    bool is_private = l->is_own || (l->mode == LEASE_RESERVE && !t->pools[pool].config.trusted);
    if (!chunk_is_of(t, t->chunk_of[l->region], pool, is_private, l->number))
        return false;
    bool is_there = (r->flags & RECORD_HAS_MEM) && r->mem_region == l->region && r->mem_sector == l->sector;
    if (l->mode == LEASE_RESERVE)
        return is_there && r->state != RECORD_COMMITTED;
    return r->state != RECORD_RESERVED && (is_there || piece_is_published(t, r));
}

static void lease_forget(struct tiering *t, struct lease *l)
{
    l->mode = LEASE_FREE;
    fence_compiler();
    /* Whoever was told of it must not find the next one that has its place. */
    *l = (struct lease){.generation = lease_next_generation(l), .next = t->lease_free};
    t->lease_free = (uint32_t)(l - t->leases);
}

static void lease_hold_again(struct tiering *t, struct lease *l)
{
    const struct record *r = record_at(&t->records, l->object);
    struct tpool *p = pool_of(t, r);
    uint32_t *bucket = &t->warm->unclaimed[l->number % WARM_BUCKETS];

    if (l->in_spill && l->mode == LEASE_WRITE)
        l->spilled = l->torn = true; /* how far it came, nobody knows */
    l->in_spill = l->in_dma = l->in_move = false;
    l->session = NULL;
    l->user = 0;
    l->prev = RECORD_NONE;
    l->next = *bucket;
    *bucket = (uint32_t)(l - t->leases);
    hot_at(t, l->object)->pins++;
    if (l->mode == LEASE_WRITE)
        hot_at(t, l->object)->flags += HOT_WRITER;
    l->tier = (uint8_t)tier_of_chunk(p, t->chunk_of[l->region]);
    if (l->tier != MEM_PRIVATE)
        p->leased_bytes[l->tier] += r->size_bytes;
    p->stat.leased += r->size_bytes;
    p->admitted_bytes += r->size_bytes;
    l->holds = l->is_own || piece_is_published(t, r);
    if (l->holds)
        extent_hold(t, l->region, l->sector, l->object);
    t->n_leases++;
    t->warm_counts.leases++;
}

static void warm_leases(struct tiering *t)
{
    t->lease_free = RECORD_NONE;
    for (uint32_t i = t->config.max_leases; i-- > 0;) {
        if (lease_is_whole(t, &t->leases[i]))
            lease_hold_again(t, &t->leases[i]);
        else
            lease_forget(t, &t->leases[i]);
    }
}

/* What a lease alone names is an orphan: of no piece, or of one that has other bytes by now. That is admitted once more. */
static void warm_orphan(struct tiering *t, const struct lease *l)
{
    const struct record *r = record_at(&t->records, l->object);
    bool is_current = (r->flags & RECORD_HAS_MEM) && r->mem_region == l->region && r->mem_sector == l->sector;

    if (!l->holds || is_current || extent_is_orphan(t, l->region, l->sector))
        return;
    if (!l->is_own)
        pool_of(t, r)->admitted_bytes += r->size_bytes;
    extent_orphan(t, l->region, l->sector, l->object, !l->is_own);
}

/* --- Records ----------------------------------------------------------------------------------------------------- */

static void record_edit(struct tiering *t, uint32_t object, uint8_t state, uint8_t without)
{
    struct record *r = record_begin(&t->records, object);

    r->state = state;
    r->flags &= (uint8_t)~without;
    if (without & RECORD_HAS_MEM)
        r->mem_region = RECORD_REGION_NONE;
    record_end(&t->records);
}

static void warm_record(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    bool is_leased = hot_at(t, object)->pins > 0;

    if (r->state == RECORD_FREE)
        return;
    if (!record_is_sane(t, r) || (r->state != RECORD_COMMITTED && !is_leased)) {
        record_edit(t, object, RECORD_FREE, RECORD_HAS_MEM | RECORD_HAS_DEV);
        return;
    }
    if ((r->flags & RECORD_HAS_MEM) && !place_exists(t, r->mem_region, r->mem_sector, sectors_of(r->size_bytes)))
        record_edit(t, object, r->state, RECORD_HAS_MEM);
    if (r->state == RECORD_DEAD) /* how far its end had come */
        record_edit(t, object, RECORD_DEAD, RECORD_HAS_DEV);
}

/* --- Extents ----------------------------------------------------------------------------------------------------- */

static int place_note(struct places *places, uint32_t region, uint32_t sector, uint32_t what)
{
    uint32_t **at = &places->at[region];

    if (!*at)
        *at = calloc((size_t)places->t->chunk_of[region]->n_frames * FRAME_SECTORS, sizeof(**at));
    if (!*at)
        return -ENOMEM;
    if ((*at)[sector] && (*at)[sector] != what)
        return -EUCLEAN; /* two pieces in one place */
    (*at)[sector] = what;
    return 0;
}

/* For arena_chunk_restore(). */
static void place_extent(void *ctx, uint32_t what, uint32_t *ret_owner, uint32_t *ret_sectors)
{
    const struct places *places = ctx;
    const struct tiering *t = places->t;
    uint32_t number = (what & ~OWN_EXTENT) - 1;

    if (what & OWN_EXTENT) {
        *ret_owner = t->leases[number].object;
        *ret_sectors = range_sectors(t->leases[number].off_bytes, t->leases[number].len_bytes);
    } else {
        *ret_owner = number;
        *ret_sectors = sectors_of(record_at(&t->records, number)->size_bytes);
    }
}

static int places_note_all(struct places *places)
{
    struct tiering *t = places->t;
    int r = 0;

    for (uint32_t i = 0; i < t->records.high && r == 0; i++) {
        const struct record *rec = record_at(&t->records, i);

        if (rec->state != RECORD_FREE && (rec->flags & RECORD_HAS_MEM))
            r = place_note(places, rec->mem_region, rec->mem_sector, i + 1);
    }
    for (uint32_t i = 0; i < t->config.max_leases && r == 0; i++) {
        const struct lease *l = &t->leases[i];

        if (l->mode != LEASE_FREE && l->holds)
            r = place_note(places, l->region, l->sector, l->is_own ? OWN_EXTENT | (i + 1) : l->object + 1);
    }
    return r;
}

static int warm_extents(struct tiering *t)
{
    struct places *places = calloc(1, sizeof(*places));

    if (!places)
        return -ENOMEM;
    places->t = t;
    int r = places_note_all(places);
    for (uint32_t i = 0; i < CHUNKS_MAX; i++) {
        if (places->at[i] && r == 0)
            r = arena_chunk_restore(t->chunk_of[i], places->at[i], place_extent, places);
        free(places->at[i]);
    }
    free(places);
    return r;
}

int warm_open(struct tiering *t)
{
    warm_spaces(t);
    warm_chunks(t);
    warm_leases(t);
    for (uint32_t i = 0; i < t->records.high; i++)
        warm_record(t, i);
    record_table_rebuild(&t->records);
    int r = warm_extents(t);
    for (uint32_t i = 0; i < t->config.max_leases && r == 0; i++)
        if (t->leases[i].mode != LEASE_FREE)
            warm_orphan(t, &t->leases[i]);
    for (uint32_t i = 0; i < t->records.high; i++) {
        const struct record *rec = record_at(&t->records, i);

        if (rec->state == RECORD_RESERVED || rec->state == RECORD_COMMITTED)
            t->spaces[rec->space].n_objects++;
    }
    return r;
}

/* --- Sessions that come back, and those that do not -------------------------------------------------------------- */

void warm_claim(struct tiering *t, struct tiering_session *s)
{
    uint32_t *at = &t->warm->unclaimed[s->number % WARM_BUCKETS];

    while (*at != RECORD_NONE) {
        struct lease *l = &t->leases[*at];

        if (l->number != s->number || !l->request) {
            at = &l->next;
            continue;
        }
        uint32_t index = *at;
        *at = l->next;
        lease_join_session(t, s, index);
    }
    list_for_each_safe (link, &t->orphans) {
        struct session_arena *sa = list_entry(link, struct session_arena, link);

        if (sa->number != s->number)
            continue;
        list_unlink(link);
        sa->session = s;
        sa->counted_bytes = sa->arena.total_sectors * SECTOR_BYTES;
        list_push_tail(&s->arenas, link);
    }
}

/* As their sessions' end; or, of what nobody was told of, as if it had never been granted. */
static void warm_end_unclaimed(struct tiering *t)
{
    struct tiering_session ghost = {.first_lease = RECORD_NONE};

    list_init(&ghost.link);
    list_init(&ghost.arenas);
    for (uint32_t i = 0; i < WARM_BUCKETS; i++) {
        while (t->warm->unclaimed[i] != RECORD_NONE) {
            uint32_t index = t->warm->unclaimed[i];

            t->warm->unclaimed[i] = t->leases[index].next;
            lease_join_session(t, &ghost, index);
            if (t->leases[index].request)
                t->warm_counts.leases_ended++;
            else
                lease_lost(t, &ghost, &t->leases[index]);
        }
    }
    tiering_session_end(t, &ghost);
}

void warm_end(struct tiering *t)
{
    for (uint32_t i = 0; i < t->records.high; i++) {
        const struct record *r = record_at(&t->records, i);

        if (r->state == RECORD_COMMITTED && (r->flags & RECORD_HAS_MEM))
            policy_enter(t, i);
        t->warm_counts.objects += r->state == RECORD_COMMITTED;
    }
    warm_end_unclaimed(t);
    warm_free(t);
}

bool tiering_is_warm(const struct tiering *t, const char **ret_why)
{
    *ret_why = t->distrust;
    return t->is_warm;
}

void tiering_warm_counts(const struct tiering *t, struct tiering_warm_counts *ret_counts)
{
    *ret_counts = t->warm_counts;
}
