/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tiering's side of the stores: what the log says at start, what a checkpoint must hold, and the emptying of segments.
 * Engine thread only.
 *
 * Replay applies the log in its order: a later entry overrides an earlier one. Spaces come back by their persistent id;
 * one whose pool is no longer configured belongs to the last pool (`n_pools`), which nobody can open: nothing is lost,
 * and it is counted. After the replay, objects that lack a part or a piece go.
 */
#include <errno.h>
#include <string.h>

#include "tiering/core.h"

#define EVACUATE_AT_ONCE 32

/* ctx of the events is the store's own slot. */
static struct tiering *replay_tiering(void *ctx, uint8_t *ret_store)
{
    const struct tstore *ts = ctx;

    *ret_store = ts->number;
    return ts->tiering;
}

/* --- Spaces ---------------------------------------------------------------------------------------------------------- */

static uint32_t space_by_id(const struct tiering *t, uint64_t id)
{
    for (uint32_t i = 0; i < t->n_spaces; i++) {
        if (t->spaces[i].info.id == id)
            return i;
    }
    return UINT32_MAX;
}

static uint32_t pool_by_name(const struct tiering *t, const char *name)
{
    for (uint32_t i = 0; i < t->n_pools; i++) {
        if (strcmp(t->pools[i].config.name, name) == 0)
            return i;
    }
    return t->n_pools;
}

static int recover_space(void *ctx, const struct store_space *space)
{
    uint8_t store;
    struct tiering *t = replay_tiering(ctx, &store);
    uint32_t index = space_by_id(t, space->id);

    if (index == UINT32_MAX) {
        if (t->n_spaces == SPACES_MAX)
            return -ENOSPC;
        index = t->n_spaces++;
        t->spaces[index] = (struct space){.info = {.id = space->id,
                                                   .item_bytes = space->item_bytes,
                                                   .index = index,
                                                   .pool = pool_by_name(t, space->pool),
                                                   .piece_bytes = t->piece_bytes,
                                                   .class_id = space->class_id,
                                                   .durability = space->durability}};
        memcpy(t->spaces[index].info.digest, space->digest, sizeof(space->digest));
        memcpy(t->spaces[index].pool_name, space->pool, sizeof(space->pool));
    }
    if (space->class_id >= TIERING_CLASSES || space->durability > STORE_DURABLE)
        return -EUCLEAN;
    t->spaces[index].known_to_store[store] = true;
    return 0;
}

int store_know_space(struct tiering *t, uint8_t store, uint32_t space)
{
    struct space *sp = &t->spaces[space];
    struct store_space put = {.id = sp->info.id,
                              .item_bytes = sp->info.item_bytes,
                              .class_id = sp->info.class_id,
                              .durability = sp->info.durability};

    if (sp->known_to_store[store])
        return 0;
    memcpy(put.digest, sp->info.digest, sizeof(put.digest));
    memcpy(put.pool, sp->pool_name, sizeof(put.pool));
    int r = store_space_put(t->stores[store].store, &put);
    if (r == 0)
        sp->known_to_store[store] = true;
    return r;
}

static bool recover_next_space(void *ctx, uint64_t *cursor, struct store_space *ret_space)
{
    uint8_t store;
    struct tiering *t = replay_tiering(ctx, &store);

    for (; *cursor < t->n_spaces; (*cursor)++) {
        const struct space *sp = &t->spaces[*cursor];

        if (!sp->known_to_store[store])
            continue;
        *ret_space = (struct store_space){.id = sp->info.id,
                                          .item_bytes = sp->info.item_bytes,
                                          .class_id = sp->info.class_id,
                                          .durability = sp->info.durability};
        memcpy(ret_space->digest, sp->info.digest, sizeof(ret_space->digest));
        memcpy(ret_space->pool, sp->pool_name, sizeof(ret_space->pool));
        (*cursor)++;
        return true;
    }
    return false;
}

/* --- Pieces ---------------------------------------------------------------------------------------------------------- */

static void id_from_store(struct tiering_id *ret_id, const struct store_id *id, uint32_t space, uint16_t n_parts)
{
    *ret_id = (struct tiering_id){.space = space,
                                  .group = id->group,
                                  .piece = id->piece,
                                  .part = id->part,
                                  .n_parts = n_parts,
                                  .key_len = id->key_len};
    memcpy(ret_id->key, id->key, sizeof(ret_id->key));
}

/* Forgets where it lies without telling the store: its log is what we are reading. */
static void replay_forget(struct tiering *t, uint32_t object)
{
    if (record_at(&t->records, object)->flags & RECORD_HAS_DEV)
        object_detach_dev(t, object);
}

static int recover_put(void *ctx, const struct store_entry *entry)
{
    uint8_t store;
    struct tiering *t = replay_tiering(ctx, &store);
    uint32_t space = space_by_id(t, entry->id.space), object, limit;
    struct tiering_id id;

    if (space == UINT32_MAX || !entry->n_parts || entry->id.part >= entry->n_parts || !entry->size_bytes ||
        entry->size_bytes > PIECE_BYTES_MAX || entry->loc.segment >= t->stores[store].n_segments)
        return -EUCLEAN;
    id_from_store(&id, &entry->id, space, entry->n_parts);
    uint64_t hash = record_hash_id(&t->records, &id);
    object = record_find(&t->records, &id, hash);
    if (object == RECORD_NONE) {
        int r = object_new(t, &id, hash, entry->object_bytes, entry->size_bytes, 0, &object, &limit);

        if (r < 0)
            return r;
        object_recovered(t, object, entry->kind == TIERING_TENSOR);
    } else if ((record_at(&t->records, object)->flags & RECORD_HAS_DEV) &&
               record_at(&t->records, object)->generation > entry->generation) {
        return 0; /* a checkpoint wrote down what was older than what the log had already */
    } else {
        replay_forget(t, object);
    }
    object_set_dev(t, object, store, entry);
    return 0;
}

static void replay_kill(struct tiering *t, uint32_t object)
{
    replay_forget(t, object);
    object_kill(t, object);
}

static int recover_delete(void *ctx, const struct store_id *store_id, uint64_t generation)
{
    uint8_t store;
    struct tiering *t = replay_tiering(ctx, &store);
    uint32_t space = space_by_id(t, store_id->space);
    struct tiering_id id;

    if (space == UINT32_MAX)
        return 0;
    id_from_store(&id, store_id, space, 1);
    uint32_t object = record_find(&t->records, &id, record_hash_id(&t->records, &id));
    if (object == RECORD_NONE)
        return 0;
    const struct record *r = record_at(&t->records, object);
    if (r->dev_store == store && r->generation <= generation)
        replay_kill(t, object);
    return 0;
}

static int recover_segment_freed(void *ctx, uint32_t segment, uint64_t generation)
{
    uint8_t store;
    struct tiering *t = replay_tiering(ctx, &store);
    uint32_t next;

    if (segment >= t->stores[store].n_segments)
        return -EUCLEAN;
    for (uint32_t o = t->stores[store].segment_head[segment]; o != RECORD_NONE; o = next) {
        next = hot_at(t, o)->seg_next;
        if (record_at(&t->records, o)->generation <= generation)
            replay_kill(t, o);
    }
    return 0;
}

static bool recover_next_entry(void *ctx, uint64_t *cursor, struct store_entry *ret_entry)
{
    uint8_t store;
    struct tiering *t = replay_tiering(ctx, &store);

    for (; *cursor < t->records.high; (*cursor)++) {
        uint32_t object = (uint32_t)*cursor;
        const struct record *r = record_at(&t->records, object);
        const struct shadow *shadow = hot_at(t, object)->flags & HOT_SHADOWED ? shadow_of(t, object) : NULL;

        if (shadow) {
            if (shadow->store != store)
                continue;
            *ret_entry = shadow->entry;
        } else {
            if (r->state != RECORD_COMMITTED || !(r->flags & RECORD_HAS_DEV) || r->dev_store != store)
                continue;
            if (hot_at(t, object)->flags & HOT_UNCOMMITTED)
                continue; /* the log has it under its SYNC's transaction */
            object_to_entry(t, object, ret_entry);
        }
        (*cursor)++;
        return true;
    }
    return false;
}

/* --- After the replay -------------------------------------------------------------------------------------------------- */

/* All parts and pieces of the object that this (part 0, piece 0) begins: marks them if they are all there. A tensor's
 * piece that was never written is in no log: it is made anew. */
static int recover_check_whole(struct tiering *t, uint32_t object)
{
    const struct record *first = record_at(&t->records, object);
    uint32_t n_pieces = object_pieces(t, first->object_bytes), sibling, limit;
    bool tensor = first->flags & RECORD_TENSOR;
    struct tiering_id id;

    record_to_id(first, &id);
    uint64_t object_bytes = first->object_bytes;
    for (int mark = 0; mark < 2; mark++) {
        for (uint32_t i = 0; i < n_pieces * id.n_parts; i++) {
            id.part = (uint16_t)(i / n_pieces);
            id.piece = i % n_pieces;
            uint64_t hash = record_hash_id(&t->records, &id);
            sibling = record_find(&t->records, &id, hash);
            if (sibling == RECORD_NONE && !tensor)
                return 0;
            if (sibling == RECORD_NONE) {
                uint64_t left = object_bytes - (uint64_t)id.piece * t->piece_bytes;
                int r = object_new(t, &id, hash, object_bytes, (uint32_t)MIN(left, (uint64_t)t->piece_bytes), 0,
                                   &sibling, &limit);

                if (r < 0)
                    return r;
                object_commit_unwritten(t, sibling);
            }
            if (mark)
                hot_at(t, sibling)->flags |= HOT_WHOLE;
        }
    }
    return 0;
}

int recover_finish(struct tiering *t)
{
    uint32_t high = t->records.high;

    for (uint32_t i = 0; i < high; i++) {
        const struct record *r = record_at(&t->records, i);
        bool grouped = r->n_parts > 1 || object_pieces(t, r->object_bytes) > 1;
        bool first = r->part == 0 && (r->piece == 0 || (r->flags & RECORD_TENSOR));

        if (r->state != RECORD_COMMITTED || !grouped || !first || (hot_at(t, i)->flags & HOT_WHOLE))
            continue;
        int status = recover_check_whole(t, i);
        if (status < 0)
            return status;
    }
    for (uint32_t i = 0; i < t->records.high; i++) {
        const struct record *r = record_at(&t->records, i);
        bool grouped = r->n_parts > 1 || object_pieces(t, r->object_bytes) > 1;

        if (r->state == RECORD_COMMITTED && grouped && !(hot_at(t, i)->flags & HOT_WHOLE))
            object_kill(t, i);
        hot_at(t, i)->flags &= (uint16_t)~HOT_WHOLE;
    }
    return 0;
}

int recover_adopt(struct tiering *t, uint8_t store)
{
    struct tstore *ts = &t->stores[store];
    struct store_entry entry;

    for (uint32_t i = 0; i < t->records.high; i++) {
        const struct record *r = record_at(&t->records, i);

        if (r->state != RECORD_COMMITTED || !(r->flags & RECORD_HAS_DEV) || r->dev_store != store)
            continue;
        object_to_entry(t, i, &entry);
        int status = store_adopt(ts->store, t->spaces[r->space].info.pool, &entry);
        if (status < 0)
            return status;
    }
    store_adopt_done(ts->store);
    return 0;
}

/* --- Emptying segments -------------------------------------------------------------------------------------------------- */

static void recover_evacuate(void *ctx, uint32_t segment)
{
    struct tstore *ts = ctx;

    assert(ts->n_evacuating < EVACUATIONS_MAX);
    ts->evacuating[ts->n_evacuating++] = segment;
    ts->tiering->kicked = true;
}

/* One piece has to leave its segment. False if it must be tried again later. */
static bool evacuate_one(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    struct record_hot *hot = hot_at(t, object);
    struct move *m;

    if (hot->flags & (HOT_SPILLING | HOT_LOADING))
        return true; /* under way */
    if (durability_of(t, r) == STORE_CACHE) {
        bool resident = r->flags & RECORD_HAS_MEM;

        object_drop_dev(t, object, false);
        if (!resident)
            object_kill_all(t, object);
        return true;
    }
    if (r->flags & RECORD_HAS_MEM)
        return move_spill(t, object, false, r->dev_store, 0, true, NULL) == 0;
    return move_load(t, object, false, &m) == 0;
}

/* True when it is empty, and no put is on its way into it. */
static bool evacuate_segment(struct tiering *t, struct tstore *ts, uint32_t segment)
{
    uint32_t next, steps = 0;

    for (uint32_t o = ts->segment_head[segment]; o != RECORD_NONE; o = next) {
        next = hot_at(t, o)->seg_next;
        bool resident = record_at(&t->records, o)->flags & RECORD_HAS_MEM;
        bool cache = durability_of(t, record_at(&t->records, o)) == STORE_CACHE;

        if (!evacuate_one(t, o))
            return false;
        if (cache && !resident)
            next = ts->segment_head[segment]; /* killing it may have killed its neighbours too */
        if (!cache && ++steps == EVACUATE_AT_ONCE)
            return false;
    }
    return !store_is_evacuating(ts->store, segment);
}

void recover_evacuate_step(struct tiering *t, struct tstore *ts)
{
    for (uint32_t i = 0; i < ts->n_evacuating;) {
        if (evacuate_segment(t, ts, ts->evacuating[i]))
            ts->evacuating[i] = ts->evacuating[--ts->n_evacuating];
        else
            i++;
    }
}

/* --- What else the store says ------------------------------------------------------------------------------------------- */

static void recover_room(void *ctx)
{
    struct tstore *ts = ctx;

    ts->room_wanted = false;
    for (uint32_t i = 0; i <= ts->tiering->n_pools; i++) {
        ts->tiering->pools[i].look_ahead = true;
        room_kick(ts->tiering, i);
    }
}

static void recover_failed(void *ctx, int why)
{
    struct tstore *ts = ctx;
    struct tiering *t = ts->tiering;

    ts->failed = true;
    t->config.events->notice(t->config.ctx, "device failed: it serves reads only from now on", UINT32_MAX, why);
    recover_room(ctx);
}

const struct store_events recover_events = {
    .replay_space = recover_space,
    .replay_put = recover_put,
    .replay_delete = recover_delete,
    .replay_segment_freed = recover_segment_freed,
    .next_entry = recover_next_entry,
    .next_space = recover_next_space,
    .evacuate = recover_evacuate,
    .room = recover_room,
    .failed = recover_failed,
};

uint8_t store_pick(struct tiering *t, const struct record *r)
{
    if (!t->n_stores)
        return STORE_NONE;
    /* A durable set must be atomic: one log, so one store for a space. */
    uint32_t first = durability_of(t, r) == STORE_DURABLE ? r->space : t->next_store++;
    for (uint32_t i = 0; i < t->n_stores; i++) {
        uint32_t store = (first + i) % t->n_stores;

        if (!t->stores[store].failed)
            return (uint8_t)store;
        if (durability_of(t, r) == STORE_DURABLE)
            break;
    }
    return STORE_NONE;
}
