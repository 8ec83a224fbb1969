/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tiering's side of the stores: what the log says at start, and what a checkpoint must hold. Engine thread only.
 *
 * Replay applies the log in its order: a later entry overrides an earlier one. Spaces come back by their persistent id;
 * one whose pool is no longer configured belongs to the last pool (`n_pools`), which nobody can open: nothing is lost,
 * and it is counted. After the replay, objects that lack a part or a piece go.
 *
 * What does not come back: `scratch`, whose owners are gone. And, if one of the stores was not closed cleanly, `cache`
 * objects of several pieces or parts: what is forgotten when a segment is emptied, and what is deleted on one store and
 * not on another, could make up an object from pieces of two. Nor `cache` tensors: the copy that the log has may be of
 * before the last write, which had ended it, but not durably; and nothing in a tensor's key tells the one from the other.
 */
#include <errno.h>
#include <string.h>

#include "include/base/kill_point.h"
#include "include/base/point.h"
#include "tiering/core.h"

/* ctx of the events is the store's own slot. */
static struct tiering *replay_tiering(void *ctx, uint8_t *ret_store)
{
    const struct tstore *ts = ctx;

    *ret_store = ts->number;
    return ts->tiering;
}

/* --- Spaces ---------------------------------------------------------------------------------------------------------- */

/* Asked for each entry of a log. */
uint32_t space_by_id(struct tiering *t, uint64_t id)
{
    uint32_t *guess = &t->space_guesses[id % SPACE_GUESSES];

    if (*guess < t->n_spaces && t->spaces[*guess].info.id == id)
        return *guess;
    for (uint32_t i = 0; i < t->n_spaces; i++) {
        if (t->spaces[i].info.id == id)
            return *guess = i;
    }
    return UINT32_MAX;
}

uint32_t pool_by_name(const struct tiering *t, const char *name)
{
    for (uint32_t i = 0; i < t->n_pools; i++) {
        if (strcmp(t->pools[i].config.name, name) == 0)
            return i;
    }
    return t->n_pools;
}

void space_is_at_home(struct tiering *t, uint32_t space, uint8_t store)
{
    if (t->spaces[space].home == STORE_NONE)
        t->spaces[space].home = store;
}

/* A space that is not in the table yet: all that is known of it is its id. */
static int space_new(struct tiering *t, uint64_t id, uint8_t class_id, uint8_t durability, uint32_t *ret_index)
{
    if (class_id >= TIERING_CLASSES || durability > STORE_DURABLE)
        return -EUCLEAN;
    if (t->n_spaces == SPACES_MAX)
        return -ENOSPC;
    t->spaces[t->n_spaces] = (struct space){.info = {.id = id,
                                                     .index = t->n_spaces,
                                                     .pool = t->n_pools,
                                                     .piece_bytes = t->piece_bytes,
                                                     .class_id = class_id,
                                                     .durability = durability},
                                            .dirty = DIRTY_INIT,
                                            .home = STORE_NONE};
    *ret_index = t->n_spaces++;
    return 0;
}

static int recover_space(void *ctx, const struct store_space *space)
{
    uint8_t store;
    struct tiering *t = replay_tiering(ctx, &store);
    uint32_t index = space_by_id(t, space->id);

    if (index == UINT32_MAX) {
        int r = space_new(t, space->id, space->class_id, space->durability, &index);

        if (r < 0)
            return r;
    }
    struct space *sp = &t->spaces[index];
    sp->info.item_bytes = space->item_bytes;
    sp->info.pool = pool_by_name(t, space->pool);
    memcpy(sp->info.digest, space->digest, sizeof(space->digest));
    memcpy(sp->pool_name, space->pool, sizeof(space->pool));
    truth_space_set(t, index);
    sp->known_to_store[store] = true;
    kill_point("recover.space");
    return 0;
}

static void space_to_store(const struct space *sp, struct store_space *ret_space)
{
    *ret_space = (struct store_space){.id = sp->info.id,
                                      .item_bytes = sp->info.item_bytes,
                                      .class_id = sp->info.class_id,
                                      .durability = sp->info.durability};
    memcpy(ret_space->digest, sp->info.digest, sizeof(ret_space->digest));
    memcpy(ret_space->pool, sp->pool_name, sizeof(ret_space->pool));
}

void store_know_again(struct tiering *t, uint8_t store, uint32_t space)
{
    struct space *sp = &t->spaces[space];
    struct store_space put;

    if (sp->known_to_store[store])
        return;
    space_to_store(sp, &put);
    store_space_again(t->stores[store].store, &put);
    sp->known_to_store[store] = true;
}

int store_know_space(struct tiering *t, uint8_t store, uint32_t space)
{
    struct space *sp = &t->spaces[space];
    struct store_space put;

    if (sp->known_to_store[store])
        return 0;
    space_to_store(sp, &put);
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
        space_to_store(sp, ret_space);
        (*cursor)++;
        return true;
    }
    return false;
}

/* --- Pieces ---------------------------------------------------------------------------------------------------------- */

void id_from_store(struct tiering_id *ret_id, const struct store_id *id, uint32_t space, uint16_t n_parts)
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

static void replay_kill(struct tiering *t, uint32_t object)
{
    replay_forget(t, object);
    object_kill(t, object);
}

static int recover_put(void *ctx, const struct store_entry *entry)
{
    uint8_t store;
    struct tiering *t = replay_tiering(ctx, &store);
    uint32_t space = space_by_id(t, entry->id.space), object;
    struct tiering_id id;

    if (entry->id.key_len == 0 || !entry->n_parts || entry->n_parts > PARTS_MAX || entry->id.part >= entry->n_parts ||
        entry->object_bytes > OBJECT_BYTES_MAX || entry->loc.segment >= t->stores[store].n_segments)
        return -EUCLEAN;
    if (space == UINT32_MAX) {
        /* A checkpoint writes spaces behind what was put while it ran: the rest will come. */
        int r = space_new(t, entry->id.space, entry->class_id, entry->durability, &space);

        if (r < 0)
            return r;
    }
    uint64_t left = entry->object_bytes - (uint64_t)entry->id.piece * t->piece_bytes;
    if (entry->id.piece >= object_pieces(t, entry->object_bytes) || entry->size_bytes != MIN(left, t->piece_bytes))
        return -EUCLEAN; /* written with pieces of another size */
    if (t->warm)
        return reconcile_put(t, store, entry);
    if (t->spaces[space].info.durability == STORE_SCRATCH)
        return 0;
    id_from_store(&id, &entry->id, space, entry->n_parts);
    id.hash = entry->hint;
    uint64_t hash = record_hash_id(&t->records, &id);
    object = record_find(&t->records, &id, hash);
    if (object != RECORD_NONE) {
        const struct record *r = record_at(&t->records, object);
        bool has_dev = r->flags & RECORD_HAS_DEV;

        /* Its deletion on that store, or on this one, was not durable. Either may be kept, but not for later: the other
         * one would be back when this one is gone. After a clean stop it is deleted further on in the log. */
        if (has_dev && r->dev_store != store)
            return t->was_clean ? 0 : STORE_LEFT_BEHIND;
        if (has_dev && r->generation > entry->generation) {
            sim_reached_rarely("recovery: older than what the log had");
            return 0;
        } /* a checkpoint wrote down what was older than what the log had already */
        if (r->object_bytes == entry->object_bytes && r->n_parts == entry->n_parts &&
            !(r->flags & RECORD_TENSOR) == !(entry->kind & TIERING_TENSOR)) {
            replay_forget(t, object);
            object_clear_flags(t, object, RECORD_TORN);
        } else {
            replay_kill(t, object);
            object = RECORD_NONE;
        }
    }
    kill_point("recover.put");
    if (object == RECORD_NONE)
        return object_recovered(t, &id, hash, store, entry);
    object_set_dev(t, object, store, entry);
    return 0;
}

/* Its hash as the hint: with that, finding it is to look at a place that is in the cache by then. */
static void recover_warm(void *ctx, struct store_entry *entry)
{
    uint8_t store;
    struct tiering *t = replay_tiering(ctx, &store);
    uint32_t space = space_by_id(t, entry->id.space);
    struct tiering_id id;

    if (space == UINT32_MAX)
        return;
    id_from_store(&id, &entry->id, space, entry->n_parts);
    entry->hint = record_hash_id(&t->records, &id);
    record_warm_slot(&t->records, entry->hint);
}

static int recover_delete(void *ctx, const struct store_id *store_id, uint64_t generation)
{
    uint8_t store;
    struct tiering *t = replay_tiering(ctx, &store);
    uint32_t space = space_by_id(t, store_id->space);
    struct tiering_id id;

    if (t->warm)
        return reconcile_delete(t, store, generation);
    if (space == UINT32_MAX)
        return 0;
    id_from_store(&id, store_id, space, 1);
    uint32_t object = record_find(&t->records, &id, record_hash_id(&t->records, &id));
    if (object == RECORD_NONE)
        return 0;
    /* Exactly this one: an older copy may be what a SYNC made durable, and what is deleted a copy that never counted. */
    const struct record *r = record_at(&t->records, object);
    if ((r->flags & RECORD_HAS_DEV) && r->dev_store == store && r->generation == generation)
        replay_kill(t, object);
    return 0;
}

static int recover_segment_freed(void *ctx, uint32_t segment, uint64_t generation)
{
    uint8_t store;
    struct tiering *t = replay_tiering(ctx, &store);

    if (segment >= t->stores[store].n_segments)
        return -EUCLEAN;
    if (t->warm)
        return reconcile_segment_freed(t, store, segment, generation);
    const struct tsegment *seg = &t->stores[store].segments[segment];
    for (uint32_t o = seg->head, next; o != RECORD_NONE; o = next) {
        next = record_ring_after(&t->records, seg->head, o);
        if (record_at(&t->records, o)->generation < generation)
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
            if (shadow->store != store || !shadow->has_entry)
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

/* A piece of the object that `first` is of: a tensor's that was never written is in no log, and is made anew. Not of `cache`:
 * there it may have been torn, or found no room on a device. RECORD_NONE: it is missing. */
static int recover_sibling(struct tiering *t, uint32_t first, uint32_t part, uint32_t piece, uint32_t *ret_object)
{
    const struct record *r = record_at(&t->records, first), *other;
    uint32_t limit;
    struct tiering_id id;

    record_to_id(r, &id);
    id.part = (uint16_t)part;
    id.piece = piece;
    uint64_t hash = record_hash_id(&t->records, &id);
    *ret_object = record_find(&t->records, &id, hash);
    if (*ret_object != RECORD_NONE) {
        other = record_at(&t->records, *ret_object);
        if (other->object_bytes != r->object_bytes || other->n_parts != r->n_parts)
            *ret_object = RECORD_NONE; /* of another object that had the same key */
        return 0;
    }
    if (!(r->flags & RECORD_TENSOR) || durability_of(t, r) == STORE_CACHE)
        return 0;
    uint64_t left = r->object_bytes - (uint64_t)piece * t->piece_bytes;
    int status = object_new(t, &id, hash, r->object_bytes, (uint32_t)MIN(left, t->piece_bytes), 0, ret_object, &limit);
    if (status == 0)
        object_commit_unwritten(t, *ret_object);
    return status;
}

/* Makes the object visible if all its parts and pieces are there. */
static int recover_check_whole(struct tiering *t, uint32_t object)
{
    uint32_t n_pieces = object_pieces(t, record_at(&t->records, object)->object_bytes);
    uint32_t n = n_pieces * record_at(&t->records, object)->n_parts, sibling;

    for (int mark = 0; mark < 2; mark++) {
        for (uint32_t i = 0; i < n; i++) {
            int status = recover_sibling(t, object, i / n_pieces, i % n_pieces, &sibling);

            if (status < 0 || sibling == RECORD_NONE)
                return status;
            if (mark)
                object_clear_flags(t, sibling, RECORD_INCOMPLETE);
        }
    }
    return 0;
}

int recover_finish(struct tiering *t)
{
    uint32_t high = t->may_prune ? t->records.high : 0;

    for (uint32_t i = 0; i < t->n_spaces; i++) {
        if (!t->spaces[i].pool_name[0])
            return -EUCLEAN; /* no log says what it is */
    }
    for (uint32_t i = 0; i < high; i++) {
        const struct record *r = record_at(&t->records, i);
        bool first = r->part == 0 && (r->piece == 0 || (r->flags & RECORD_TENSOR));

        if (r->state != RECORD_COMMITTED || !(r->flags & RECORD_INCOMPLETE) || !first)
            continue;
        if (!t->was_clean && durability_of(t, r) == STORE_CACHE)
            continue;
        int status = recover_check_whole(t, i);
        if (status < 0)
            return status;
    }
    kill_point("recover.finish");
    t->recovering = false;
    return 0;
}

static bool recover_may_be_old(const struct tiering *t, const struct record *r)
{
    return !t->was_clean && (r->flags & RECORD_TENSOR) && durability_of(t, r) == STORE_CACHE;
}

void recover_prune(struct tiering *t)
{
    uint32_t high = t->may_prune ? t->records.high : 0;

    kill_point("recover.prune");
    for (uint32_t i = 0; i < high; i++) {
        const struct record *r = record_at(&t->records, i);

        if (r->state == RECORD_COMMITTED && ((r->flags & RECORD_INCOMPLETE) || recover_may_be_old(t, r)))
            object_kill(t, i);
    }
}

/* Pieces that lie in one segment follow each other, mostly: they are adopted together. */
struct adopting {
    uint32_t pool;
    uint8_t store;
    struct store_adoption run;
};

static int adopt_run(struct tiering *t, struct adopting *a)
{
    int r = a->run.n > 0 ? store_adopt_many(t->stores[a->store].store, a->pool, &a->run) : 0;

    a->run = (struct store_adoption){0};
    return r;
}

/* Looks at half of the record's lines only. */
static int adopt_record(struct tiering *t, struct adopting *a, const struct record *r)
{
    const struct space *space = &t->spaces[r->space];
    uint32_t sectors = sectors_of(r->size_bytes);

    if (a->run.segment != r->dev_segment || a->store != r->dev_store || a->pool != space->info.pool ||
        a->run.durability != space->info.durability || a->run.n == 0) {
        int status = adopt_run(t, a);

        if (status < 0)
            return status;
        a->store = r->dev_store;
        a->pool = space->info.pool;
        a->run.segment = r->dev_segment;
        a->run.durability = space->info.durability;
    }
    a->run.n++;
    a->run.sectors += sectors;
    a->run.end_sector = MAX(a->run.end_sector, r->dev_sector + sectors);
    a->run.key_bytes += round_up(r->key_len, 8);
    kill_point("recover.adopt");
    return 0;
}

/* One walk through the records, since with millions of them memory is what it costs. */
int recover_adopt(struct tiering *t)
{
    struct adopting adopting = {0};
    int status;

    for (uint32_t i = 0; i < t->records.high; i++) {
        const struct record *r = record_at(&t->records, i);

        object_account_new(t, i);
        if (r->state != RECORD_COMMITTED || !(r->flags & RECORD_HAS_DEV))
            continue;
        /* Where what is left of a space lies: of one that has moved on, another device's log may tell only of what was
         * deleted. */
        space_is_at_home(t, r->space, r->dev_store);
        status = adopt_record(t, &adopting, r);
        if (status < 0)
            return status;
    }
    status = adopt_run(t, &adopting);
    if (status < 0)
        return status;
    kill_point("recover.adopted");
    for (uint32_t i = 0; i < t->n_stores; i++)
        store_adopt_done(t->stores[i].store);
    return 0;
}

/* --- What else the store says ------------------------------------------------------------------------------------------- */

static void recover_evacuate(void *ctx, uint32_t segment)
{
    evacuate_add(ctx, segment);
}

static void recover_room(void *ctx)
{
    struct tstore *ts = ctx;

    ts->room_wanted = false;
    memset(ts->pool_waits, 0, sizeof(ts->pool_waits));
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

void tiering_device_distrust(struct tiering *t, uint16_t dev, int why)
{
    for (uint32_t i = 0; i < t->n_stores; i++)
        if (t->stores[i].dev == dev && t->stores[i].store)
            store_fail(t->stores[i].store, why);
}

static void recover_flush_failed(void *ctx, int why)
{
    const struct tstore *ts = ctx;
    struct tiering *t = ts->tiering;

    tiering_device_distrust(t, ts->dev, why);
    if (t->config.events->flush_failed)
        t->config.events->flush_failed(t->config.ctx, ts->dev, why);
}

static void recover_damaged(void *ctx, const struct store_entry *entry)
{
    const struct tstore *ts = ctx;
    struct tiering *t = ts->tiering;
    uint32_t space = space_by_id(t, entry->id.space);

    if (t->config.events->damaged)
        t->config.events->damaged(t->config.ctx, ts->number, space == UINT32_MAX ? space : t->spaces[space].info.pool,
                                  entry);
}

const struct store_events recover_events = {
    .replay_space = recover_space,
    .replay_put = recover_put,
    .replay_warm = recover_warm,
    .replay_delete = recover_delete,
    .replay_segment_freed = recover_segment_freed,
    .next_entry = recover_next_entry,
    .next_space = recover_next_space,
    .evacuate = recover_evacuate,
    .room = recover_room,
    .failed = recover_failed,
    .flush_failed = recover_flush_failed,
    .damaged = recover_damaged,
};
