/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SYNC: a set becomes durable, and a set of tensors atomically so. Engine thread only.
 *
 * Blocks are immutable: each is written if it is not yet, and the store is flushed. Tensors change in place in memory,
 * so their pieces are written under a transaction that the log commits at once. Between two SYNCs a changed piece of a
 * durable tensor keeps its last durable copy on the device (its shadow), which is what a crash would find, and which a
 * checkpoint writes. The shadow is dropped when the next SYNC is durable. If a SYNC fails, what it wrote is dropped and
 * the pieces are dirty again.
 */
#include <errno.h>

#include "tiering/core.h"

/* --- Shadows: open addressing by record number, at most 1/2 full ---------------------------------------------------- */

#define SHADOW_SLOTS (2 * SHADOWS_MAX)

static uint32_t shadow_home(uint32_t object)
{
    return object * UINT32_C(2654435761) % SHADOW_SLOTS;
}

struct shadow *shadow_of(const struct tiering *t, uint32_t object)
{
    for (uint32_t at = shadow_home(object); t->shadows[at].object; at = (at + 1) % SHADOW_SLOTS) {
        if (t->shadows[at].object == object + 1)
            return &t->shadows[at];
    }
    return NULL;
}

static void shadow_remove(struct tiering *t, struct shadow *shadow)
{
    uint32_t hole = (uint32_t)(shadow - t->shadows);

    hot_at(t, shadow->object - 1)->flags &= (uint16_t)~HOT_SHADOWED;
    for (uint32_t at = (hole + 1) % SHADOW_SLOTS; t->shadows[at].object; at = (at + 1) % SHADOW_SLOTS) {
        uint32_t home = shadow_home(t->shadows[at].object - 1);

        if ((at + SHADOW_SLOTS - home) % SHADOW_SLOTS >= (at + SHADOW_SLOTS - hole) % SHADOW_SLOTS) {
            t->shadows[hole] = t->shadows[at];
            hole = at;
        }
    }
    t->shadows[hole].object = 0;
    t->n_shadows--;
}

int shadow_keep(struct tiering *t, uint32_t object)
{
    uint32_t at = shadow_home(object);

    if (hot_at(t, object)->flags & HOT_SHADOWED)
        return 0;
    if (t->n_shadows == SHADOWS_MAX)
        return -ENOSPC;
    while (t->shadows[at].object)
        at = (at + 1) % SHADOW_SLOTS;
    t->shadows[at] = (struct shadow){.object = object + 1, .store = record_at(&t->records, object)->dev_store};
    object_to_entry(t, object, &t->shadows[at].entry);
    object_detach_dev(t, object);
    hot_at(t, object)->flags |= HOT_SHADOWED;
    t->n_shadows++;
    return 0;
}

void shadow_drop(struct tiering *t, uint32_t object)
{
    struct shadow *shadow = hot_at(t, object)->flags & HOT_SHADOWED ? shadow_of(t, object) : NULL;

    if (!shadow)
        return;
    store_drop(t->stores[shadow->store].store, &shadow->entry);
    shadow_remove(t, shadow);
}

bool shadow_restore(struct tiering *t, uint32_t object)
{
    struct shadow *shadow = hot_at(t, object)->flags & HOT_SHADOWED ? shadow_of(t, object) : NULL;

    if (!shadow || shadow->changed)
        return false;
    uint8_t store = shadow->store;
    struct store_entry entry = shadow->entry;
    shadow_remove(t, shadow);
    object_set_dev(t, object, store, &entry);
    return true;
}

/* --- Running a SYNC ------------------------------------------------------------------------------------------------- */

static void sync_ref_free(struct tiering *t, struct sync_ref *ref)
{
    list_unlink(&ref->link);
    list_push_head(&t->sync_refs_free, &ref->link);
}

/* Gives up or finishes; then tells the caller. */
static void sync_end(struct tiering_sync *sync)
{
    struct tiering *t = sync->t_;
    struct list *l;

    if (sync->txn_ && sync->status_ < 0)
        store_txn_abort(t->stores[sync->space_ % t->n_stores].store, sync->txn_);
    while ((l = list_pop(&sync->refs_))) {
        struct sync_ref *ref = list_entry(l, struct sync_ref, link);
        const struct record *r = record_at(&t->records, ref->object);

        hot_at(t, ref->object)->flags &= (uint16_t)~HOT_UNCOMMITTED;
        if (sync->status_ == 0)
            shadow_drop(t, ref->object);
        else if ((r->flags & RECORD_HAS_DEV) && r->generation == ref->generation)
            object_drop_dev(t, ref->object, true); /* never committed: dirty again */
        object_unpin(t, ref->object);
        sync_ref_free(t, ref);
    }
    list_unlink(&sync->link_);
    sync->running_ = false;
    sync->done(sync, sync->status_);
}

static void sync_flush_next(struct tiering_sync *sync);

static void sync_flushed(struct store_sync *store_sync, int status)
{
    struct tiering_sync *sync = container_of(store_sync, struct tiering_sync, store_sync_);

    if (status < 0 && sync->status_ == 0)
        sync->status_ = status;
    sync->stores_ &= ~(UINT32_C(1) << sync->store_);
    sync_flush_next(sync);
}

static void sync_flush_next(struct tiering_sync *sync)
{
    struct tiering *t = sync->t_;

    if (!sync->stores_ || sync->status_ < 0) {
        sync_end(sync);
        return;
    }
    sync->store_ = (uint32_t)__builtin_ctz(sync->stores_);
    sync->store_sync_.done = sync_flushed;
    store_sync(t->stores[sync->store_].store, &sync->store_sync_);
}

static void sync_maybe_written(struct tiering_sync *sync)
{
    struct tiering *t = sync->t_;

    if (!sync->running_ || sync->pending_ || sync->cursor_ != UINT32_MAX)
        return;
    if (sync->txn_ && sync->status_ == 0) {
        store_txn_commit(t->stores[sync->space_ % t->n_stores].store, sync->txn_);
        sync->txn_ = 0;
    }
    sync->running_ = false; /* only once */
    sync_flush_next(sync);
}

void sync_spilled(struct move *m, int status)
{
    struct list *l;

    while ((l = list_pop(&m->syncs))) {
        struct sync_ref *ref = list_entry(l, struct sync_ref, link);
        struct tiering_sync *sync = ref->sync;
        struct tiering *t = m->t;

        if (status == -EAGAIN) {
            /* It was changed meanwhile: once more. */
            list_push_tail(&t->sync_waiting, &ref->link);
            continue;
        }
        if (status < 0 && sync->status_ == 0)
            sync->status_ = status;
        sync->pending_--;
        if (status == 0 && m->put.txn && !(hot_at(t, ref->object)->flags & HOT_UNCOMMITTED)) {
            ref->generation = m->put.entry.generation;
            hot_at(t, ref->object)->flags |= HOT_UNCOMMITTED;
            object_pin(t, ref->object); /* its record's number must stay its own */
            list_push_tail(&sync->refs_, &ref->link);
        } else {
            sync_ref_free(t, ref);
        }
        sync_maybe_written(sync);
    }
}

static struct move *sync_find_spill(struct tiering *t, uint32_t object)
{
    for (uint32_t i = 0; i < t->config.max_moves; i++) {
        struct move *m = &t->moves[i];

        if (m->phase == MOVE_BUSY && m->kind == MOVE_SPILL && m->object == object)
            return m;
    }
    return NULL;
}

/* Sees to it that the piece is written. 0: the ref has found its place, or is not needed; -EAGAIN: later. */
static int sync_try(struct tiering *t, struct sync_ref *ref)
{
    const struct record *r = record_at(&t->records, ref->object);
    struct move *m = NULL;
    int status = 0;

    if (r->state == RECORD_COMMITTED && record_is_dirty(r)) {
        bool tensor = r->flags & RECORD_TENSOR;

        if (hot_at(t, ref->object)->flags & HOT_SPILLING) {
            m = sync_find_spill(t, ref->object);
        } else {
            uint8_t store = store_pick(t, r);

            if (tensor && !ref->sync->txn_ && store != STORE_NONE)
                ref->sync->txn_ = store_txn_begin(t->stores[store].store);
            if (tensor && !ref->sync->txn_)
                return -EAGAIN; /* too many are open */
            status = move_spill(t, ref->object, true, store, tensor ? ref->sync->txn_ : 0, false, &m);
        }
    }
    if (status == -EAGAIN)
        return status;
    list_unlink(&ref->link);
    if (m) {
        list_push_tail(&m->syncs, &ref->link);
        return 0;
    }
    struct tiering_sync *sync = ref->sync;
    if (status < 0 && sync->status_ == 0)
        sync->status_ = status;
    sync->pending_--;
    sync_ref_free(t, ref);
    sync_maybe_written(sync);
    return 0;
}

static int sync_add(struct tiering_sync *sync, uint32_t object)
{
    struct tiering *t = sync->t_;
    struct list *l = list_pop(&t->sync_refs_free);

    if (!l)
        return -EAGAIN;
    struct sync_ref *ref = list_entry(l, struct sync_ref, link);
    *ref = (struct sync_ref){.sync = sync, .object = object};
    list_init(&ref->link);
    sync->pending_++;
    if (sync_try(t, ref) == -EAGAIN)
        list_push_tail(&t->sync_waiting, &ref->link);
    return 0;
}

static void sync_scan(struct tiering *t, struct tiering_sync *sync)
{
    for (int steps = 0; steps < 65536 && sync->cursor_ < t->records.high; sync->cursor_++, steps++) {
        const struct record *r = record_at(&t->records, sync->cursor_);

        if (r->state != RECORD_COMMITTED || r->space != sync->space_ || !record_is_dirty(r))
            continue;
        if (t->n_moves + TICK_STEPS > t->config.max_moves || sync_add(sync, sync->cursor_) < 0)
            return;
    }
    if (sync->cursor_ >= t->records.high) {
        sync->cursor_ = UINT32_MAX;
        sync_maybe_written(sync);
    }
}

void sync_step(struct tiering *t)
{
    list_for_each_safe(l, &t->sync_waiting) {
        struct sync_ref *ref = list_entry(l, struct sync_ref, link);

        if (sync_try(t, ref) == -EAGAIN)
            break;
    }
    list_for_each_safe(l, &t->syncs) {
        struct tiering_sync *sync = list_entry(l, struct tiering_sync, link_);

        if (sync->running_ && sync->cursor_ != UINT32_MAX)
            sync_scan(t, sync);
    }
}

void tiering_sync_begin(struct tiering *t, struct tiering_sync *sync, uint32_t space)
{
    void (*done)(struct tiering_sync *, int) = sync->done;

    *sync = (struct tiering_sync){.done = done, .t_ = t, .space_ = space, .cursor_ = UINT32_MAX};
    list_init(&sync->refs_);
    list_push_tail(&t->syncs, &sync->link_);
    for (uint32_t i = 0; i < t->n_stores; i++)
        sync->stores_ |= UINT32_C(1) << i;
}

int tiering_sync_add(struct tiering *t, struct tiering_sync *sync, const struct tiering_id *id)
{
    int status = 0;
    uint32_t object = object_find(t, id, &status);

    if (object == RECORD_NONE)
        return status;
    if (durability_of(t, record_at(&t->records, object)) != STORE_DURABLE)
        return -EINVAL;
    if (!t->n_stores)
        return -ENODEV;
    return sync_add(sync, object);
}

int tiering_sync_add_space(struct tiering *t, struct tiering_sync *sync)
{
    if (t->spaces[sync->space_].info.durability != STORE_DURABLE)
        return -EINVAL;
    if (!t->n_stores)
        return -ENODEV;
    sync->cursor_ = 0;
    return 0;
}

void tiering_sync_run(struct tiering *t, struct tiering_sync *sync)
{
    sync->running_ = true;
    t->kicked = true;
    sync_maybe_written(sync);
}
