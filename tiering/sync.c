/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SYNC: a set becomes durable, and a set of tensors atomically so. Engine thread only.
 *
 * Blocks are immutable: each is written if it is not yet, and the store is flushed. Tensors change in place in memory,
 * so their pieces are written under a transaction that the log commits at once; nothing else ever writes them. Between
 * two SYNCs a changed piece of a durable tensor keeps its last durable copy on the device (its shadow), which is what a
 * crash would find, and which a checkpoint writes. The shadow is dropped when the next SYNC commits: the log drops it
 * behind the commit, so a crash finds the one or the other. If a SYNC fails, what it wrote is dropped and the pieces are
 * dirty again. What it has written stays in memory until it is durable: a process that finds the records of one that died
 * before makes it dirty again (reconcile.c).
 */
#include <errno.h>

#include "include/base/kill_point.h"
#include "include/base/mix.h"
#include "include/base/point.h"
#include "tiering/core.h"

/* --- Shadows: open addressing by record number, at most 1/2 full ---------------------------------------------------- */

#define SHADOW_SLOTS (UINT32_C(2) * SHADOWS_MAX)
/* With those that a SYNC had written already, and that are dirty again, there may be more than ever before. */
#define SHADOWS_RECOVERED_MAX (SHADOWS_MAX / 4 * 7)

static uint32_t shadow_home(uint32_t object)
{
    return (uint32_t)(mix64(object) % SHADOW_SLOTS);
}

struct shadow *shadow_of(const struct tiering *t, uint32_t object)
{
    for (uint32_t at = shadow_home(object); t->shadows[at].object; at = (at + 1) % SHADOW_SLOTS) {
        if (t->shadows[at].object == object + 1)
            return &t->shadows[at];
    }
    return NULL;
}

/* --- Those in a segment: a ring of slots, the ones that were not seen first --- */

static struct tsegment *shadow_segment(struct tiering *t, const struct shadow *shadow)
{
    return &t->stores[shadow->store].segments[shadow->entry.loc.segment];
}

static void shadow_link(struct tiering *t, struct shadow *shadow)
{
    uint32_t slot = (uint32_t)(shadow - t->shadows);
    struct tsegment *seg = shadow_segment(t, shadow);

    shadow->seen = false;
    shadow->prev = shadow->next = slot;
    if (seg->shadows != SHADOW_NONE) {
        shadow->next = seg->shadows;
        shadow->prev = t->shadows[seg->shadows].prev;
        t->shadows[shadow->prev].next = slot;
        t->shadows[shadow->next].prev = slot;
    }
    seg->shadows = slot;
}

static void shadow_unlink(struct tiering *t, struct shadow *shadow)
{
    uint32_t slot = (uint32_t)(shadow - t->shadows);
    struct tsegment *seg = shadow_segment(t, shadow);

    if (seg->shadows == slot)
        seg->shadows = shadow->next == slot ? SHADOW_NONE : shadow->next;
    t->shadows[shadow->prev].next = shadow->next;
    t->shadows[shadow->next].prev = shadow->prev;
}

static void shadow_entry_set(struct tiering *t, struct shadow *shadow, const struct store_entry *entry)
{
    shadow->entry = *entry;
    shadow->has_entry = true;
    shadow_link(t, shadow);
}

static void shadow_entry_drop(struct tiering *t, struct shadow *shadow)
{
    if (!shadow->has_entry)
        return;
    shadow_unlink(t, shadow);
    shadow->has_entry = false;
    kill_point("sync.old_dropped");
    store_drop(t->stores[shadow->store].store, &shadow->entry);
}

void shadow_moved(struct tiering *t, struct shadow *shadow, const struct store_entry *entry)
{
    shadow_entry_drop(t, shadow);
    shadow_entry_set(t, shadow, entry);
}

const struct shadow *shadow_unseen(const struct tiering *t, const struct tsegment *seg)
{
    return seg->shadows == SHADOW_NONE || t->shadows[seg->shadows].seen ? NULL : &t->shadows[seg->shadows];
}

void shadow_saw(struct tiering *t, struct tsegment *seg)
{
    struct shadow *shadow = &t->shadows[seg->shadows];

    shadow->seen = true;
    seg->shadows = shadow->next;
}

void shadow_again(struct tiering *t, uint32_t object)
{
    struct shadow *shadow = shadow_of(t, object);

    if (!shadow->has_entry || !shadow->seen)
        return;
    shadow_unlink(t, shadow);
    shadow_link(t, shadow);
    t->kicked = true;
}

/* It lies in another slot now. */
static void shadow_slot_changed(struct tiering *t, uint32_t from, uint32_t to)
{
    struct shadow *shadow = &t->shadows[to];

    if (!shadow->has_entry)
        return;
    shadow->prev = shadow->prev == from ? to : shadow->prev;
    shadow->next = shadow->next == from ? to : shadow->next;
    t->shadows[shadow->prev].next = to;
    t->shadows[shadow->next].prev = to;
    if (shadow_segment(t, shadow)->shadows == from)
        shadow_segment(t, shadow)->shadows = to;
}

/* --- Beginning and end --- */

static void shadow_remove(struct tiering *t, struct shadow *shadow)
{
    uint32_t hole = (uint32_t)(shadow - t->shadows);

    assert(!shadow->has_entry);
    hot_at(t, shadow->object - 1)->flags &= (uint16_t)~HOT_SHADOWED;
    for (uint32_t at = (hole + 1) % SHADOW_SLOTS; t->shadows[at].object; at = (at + 1) % SHADOW_SLOTS) {
        uint32_t home = shadow_home(t->shadows[at].object - 1);

        if ((at + SHADOW_SLOTS - home) % SHADOW_SLOTS >= (at + SHADOW_SLOTS - hole) % SHADOW_SLOTS) {
            sim_reached_rarely("shadow: another takes the slot of one that went");
            t->shadows[hole] = t->shadows[at];
            shadow_slot_changed(t, at, hole);
            hole = at;
        }
    }
    t->shadows[hole].object = 0;
    t->n_shadows--;
}

static struct shadow *shadow_put(struct tiering *t, uint32_t object)
{
    uint32_t at = shadow_home(object);

    while (t->shadows[at].object)
        at = (at + 1) % SHADOW_SLOTS;
    t->shadows[at] = (struct shadow){.object = object + 1, .store = record_at(&t->records, object)->dev_store};
    hot_at(t, object)->flags |= HOT_SHADOWED;
    t->n_shadows++;
    return &t->shadows[at];
}

static struct shadow *shadow_new(struct tiering *t, uint32_t object)
{
    return t->n_shadows >= SHADOWS_MAX || sim_point("shadow: none is free") ? NULL : shadow_put(t, object);
}

int shadow_recovered(struct tiering *t, uint32_t object, uint8_t store, const struct store_entry *entry)
{
    if (t->n_shadows >= SHADOWS_RECOVERED_MAX)
        return -ENOSPC;
    struct shadow *shadow = shadow_put(t, object);
    shadow->store = store;
    shadow->changed = true; /* as far as anybody knows */
    shadow_entry_set(t, shadow, entry);
    return 0;
}

static bool shadow_is_due(const struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);

    return durability_of(t, r) == STORE_DURABLE && (r->flags & RECORD_HAS_DEV);
}

/* The copy on the device becomes the shadow's, or what it will be when its SYNC has ended. */
static void shadow_take(struct tiering *t, uint32_t object, struct shadow *shadow)
{
    bool uncommitted = hot_at(t, object)->flags & HOT_UNCOMMITTED;

    assert(uncommitted ? !shadow->has_pending : !shadow->has_entry);
    if (uncommitted) {
        object_to_entry(t, object, &shadow->pending);
        shadow->has_pending = true;
    } else {
        struct store_entry entry;

        object_to_entry(t, object, &entry);
        shadow_entry_set(t, shadow, &entry);
    }
    kill_point("sync.old_kept");
    shadow->changed = false;
    object_detach_dev(t, object);
}

int shadow_keep(struct tiering *t, uint32_t object)
{
    if (!shadow_is_due(t, object))
        return 0;
    struct shadow *shadow = hot_at(t, object)->flags & HOT_SHADOWED ? shadow_of(t, object) : shadow_new(t, object);
    if (!shadow)
        return -ENOSPC;
    shadow_take(t, object, shadow);
    return 0;
}

int shadow_keep_again(struct tiering *t, uint32_t object)
{
    if (!shadow_is_due(t, object))
        return 0;
    if (t->n_shadows >= SHADOWS_RECOVERED_MAX)
        return -ENOSPC;
    shadow_take(t, object, shadow_put(t, object));
    return 0;
}

static struct shadow *shadow_if_any(const struct tiering *t, uint32_t object)
{
    return t->records.objects[object].hot.flags & HOT_SHADOWED ? shadow_of(t, object) : NULL;
}

void shadow_drop(struct tiering *t, uint32_t object)
{
    struct shadow *shadow = shadow_if_any(t, object);

    if (!shadow)
        return;
    shadow_entry_drop(t, shadow);
    if (shadow->has_pending)
        store_drop(t->stores[shadow->store].store, &shadow->pending);
    shadow_remove(t, shadow);
}

bool shadow_restore(struct tiering *t, uint32_t object)
{
    struct shadow *shadow = shadow_if_any(t, object);

    if (!shadow || shadow->changed || (record_at(&t->records, object)->flags & RECORD_TORN))
        return false;
    uint8_t store = shadow->store;
    struct store_entry entry = shadow->has_pending ? shadow->pending : shadow->entry;
    bool last = !shadow->has_pending || !shadow->has_entry;

    sim_reached("shadow: a piece is what its device has again");
    shadow->has_pending = false;
    if (last) {
        if (shadow->has_entry)
            shadow_unlink(t, shadow); /* it is the current copy again */
        shadow->has_entry = false;
        shadow_remove(t, shadow);
    } else {
        shadow->changed = true; /* what is left is older than the current copy */
    }
    kill_point("sync.old_restored");
    object_set_dev(t, object, store, &entry);
    return true;
}

/* The SYNC that wrote the piece takes effect: its copy takes the old one's place. */
static void shadow_commit(struct tiering *t, uint32_t object)
{
    struct shadow *shadow = shadow_if_any(t, object);

    hot_at(t, object)->flags &= (uint16_t)~HOT_UNCOMMITTED;
    if (!shadow)
        return;
    kill_point("sync.piece_commit");
    shadow_entry_drop(t, shadow);
    if (!shadow->has_pending) {
        shadow_remove(t, shadow);
        return;
    }
    shadow_entry_set(t, shadow, &shadow->pending);
    shadow->has_pending = false;
}

/* It never will: the piece is dirty again. */
static void shadow_abort(struct tiering *t, uint32_t object)
{
    struct shadow *shadow = shadow_if_any(t, object);

    sim_reached("sync: what it wrote is taken back");
    if (!(hot_at(t, object)->flags & HOT_UNCOMMITTED))
        return; /* deleted meanwhile */
    hot_at(t, object)->flags &= (uint16_t)~HOT_UNCOMMITTED;
    if (!shadow || !shadow->has_pending) {
        object_drop_dev(t, object, true);
        return;
    }
    store_drop(t->stores[shadow->store].store, &shadow->pending);
    shadow->has_pending = false;
    shadow->changed = true;
    if (!shadow->has_entry)
        shadow_remove(t, shadow);
}

/* --- Running a SYNC ------------------------------------------------------------------------------------------------- */

static void sync_ref_free(struct tiering *t, struct sync_ref *ref)
{
    uint32_t object = ref->object;

    list_unlink(&ref->link);
    list_push_head(&t->sync_refs_free, &ref->link);
    object_unpin(t, object);
}

static void sync_refs_free(struct tiering_sync *sync)
{
    struct sync_ref *ref;

    while ((ref = list_first_entry(&sync->refs_, struct sync_ref, link)))
        sync_ref_free(sync->t_, ref);
}

static struct store *sync_store(const struct tiering_sync *sync)
{
    return sync->t_->stores[sync->t_->spaces[sync->space_].home].store;
}

/* Its pieces are written, or it failed: either way this decides what they are. */
static void sync_close_txn(struct tiering_sync *sync)
{
    struct tiering *t = sync->t_;

    if (!sync->txn_)
        return;
    kill_point("sync.close_txn");
    if (sync->status_ == 0)
        store_txn_commit(sync_store(sync), sync->txn_);
    else
        store_txn_abort(sync_store(sync), sync->txn_);
    kill_point("sync.txn_committed");
    list_for_each (l, &sync->refs_) {
        const struct sync_ref *ref = list_entry(l, struct sync_ref, link);

        if (sync->status_ == 0)
            shadow_commit(t, ref->object);
        else
            shadow_abort(t, ref->object);
        kill_point("sync.piece_committed");
        evacuate_again(t, ref->object);
    }
    if (sync->status_ < 0)
        sync_refs_free(sync);
    if (sync->status_ < 0)
        dirty_walk_farther(&t->spaces[sync->space_].dirty);
    sync->txn_ = 0;
    t->spaces[sync->space_].txn_sync = NULL;
    t->kicked = true; /* others of this space can go on */
}

static void sync_end(struct tiering_sync *sync)
{
    sync_refs_free(sync);
    list_unlink(&sync->link_);
    kill_point("sync.answer");
    sync->done(sync, sync->status_);
}

/* Whether it took effect nobody knows before the log is read again; it did for all of its pieces, or for none. So none may be
 * on the device alone: a hot restart would log it again, as one that was written by itself. */
static void sync_is_in_doubt(struct tiering_sync *sync)
{
    struct tiering *t = sync->t_;
    const uint8_t wanted = RECORD_TENSOR | RECORD_HAS_MEM | RECORD_HAS_DEV;

    list_for_each (l, &sync->refs_) {
        uint32_t object = list_entry(l, struct sync_ref, link)->object;
        const struct record *r = record_at(&t->records, object);

        if (hot_at(t, object)->flags & HOT_SHADOWED)
            shadow_of(t, object)->changed = true; /* nor may a writer that gives up fall back on it */
        if (r->state == RECORD_COMMITTED && (r->flags & wanted) == wanted) {
            sim_reached_rarely("sync: what it wrote is dirty again, since it may not be durable");
            object_drop_dev(t, object, true);
        }
    }
}

static void sync_flushed(struct store_sync *store_sync, int status)
{
    struct tiering_sync *sync = container_of(store_sync, struct tiering_sync, store_sync_);

    if (status < 0) {
        sync->status_ = sync->status_ ? sync->status_ : status;
        sync_is_in_doubt(sync);
    }
    sync_end(sync);
}

static void sync_maybe_written(struct tiering_sync *sync)
{
    struct tiering *t = sync->t_;

    if (!sync->running_ || sync->pending_ || sync->walks_)
        return;
    sync->running_ = false; /* only once */
    kill_point("sync.written");
    sync_close_txn(sync);
    if (sync->status_ < 0 || t->spaces[sync->space_].home == STORE_NONE) {
        sync_end(sync);
        return;
    }
    sync->store_sync_.done = sync_flushed;
    kill_point("sync.flush");
    store_sync(sync_store(sync), &sync->store_sync_);
}

/* Asked at once: what is deleted until the SYNC has ended would hide it. A device that refuses a piece, and lacks neither
 * segments nor room for entries that live, lacks a log that can hold a transaction open for so long. */
static void sync_refused(struct tiering_sync *sync, int status)
{
    const struct space *space = &sync->t_->spaces[sync->space_];

    sync->status_ = status;
    if (status != -ENOSPC)
        return;
    sync->limit_ = place_limit(sync->t_, space->home, space->info.pool);
    if (sync->limit_ == TIERING_LIMIT_NONE)
        sync->limit_ = TIERING_LIMIT_DEVICE_LOG;
}

/* The ref needs nothing more (or never gets it). It is in no list of waiting ones any more. */
static void sync_ref_done(struct tiering *t, struct sync_ref *ref, int status)
{
    struct tiering_sync *sync = ref->sync;

    if (status < 0 && sync->status_ == 0)
        sync_refused(sync, status);
    sync->pending_--;
    sync_ref_free(t, ref);
    sync_maybe_written(sync);
}

void sync_spilled(struct move *m, int status)
{
    struct tiering *t = m->t;
    struct list *l;

    while ((l = list_pop(&m->syncs))) {
        struct sync_ref *ref = list_entry(l, struct sync_ref, link);
        struct tiering_sync *sync = ref->sync;
        struct record_hot *hot = hot_at(t, ref->object);

        if (status < 0 || !m->put.txn || m->put.txn != sync->txn_ || (hot->flags & HOT_UNCOMMITTED) ||
            record_at(&t->records, ref->object)->state != RECORD_COMMITTED) {
            sync_ref_done(t, ref, status);
            continue;
        }
        hot->flags |= HOT_UNCOMMITTED;
        kill_point("sync.piece_written");
        list_push_tail(&sync->refs_, &ref->link);
        sync->pending_--;
        sync_maybe_written(sync);
    }
}

/* A tensor's piece that must be written: under the SYNC's transaction. */
static int sync_spill_tensor(struct tiering *t, struct sync_ref *ref, struct move **ret_move)
{
    struct tiering_sync *sync = ref->sync;
    struct space *space = &t->spaces[sync->space_];
    uint8_t store = store_pick(t, record_at(&t->records, ref->object));

    if (store == STORE_NONE)
        return -EIO;
    if (!sync->txn_) {
        sync->txn_ = sim_point("sync: too many transactions are open") ? 0 : store_txn_begin(t->stores[store].store);
        if (!sync->txn_)
            return -EAGAIN; /* too many are open */
        space->txn_sync = sync;
    }
    kill_point("sync.piece_spill");
    return move_spill(t, ref->object, true, store, sync->txn_, false, ret_move);
}

/*
 * Sees to it that the piece is written. 0: the ref has found its place, or is not needed; -EAGAIN: later, when there is
 * room; -EALREADY: later, but others need not wait. Tensors of a space are written by one SYNC at a time: two with some
 * pieces each could wait for each other for ever.
 */
static int sync_try(struct tiering *t, struct sync_ref *ref)
{
    const struct record *r = record_at(&t->records, ref->object);
    struct tiering_sync *sync = ref->sync;
    const struct tiering_sync *other = t->spaces[sync->space_].txn_sync;
    struct move *m = NULL;
    int status = 0;

    if (sync->status_ < 0 || r->state != RECORD_COMMITTED) {
        status = 0; /* it failed already; or the piece was deleted */
    } else if (r->flags & RECORD_TORN) {
        status = -EBADMSG;
    } else if ((r->flags & RECORD_TENSOR) && other && other != sync) {
        sim_reached("sync: another one writes this space's tensors");
        return -EALREADY;
    } else if (hot_at(t, ref->object)->flags & HOT_UNCOMMITTED) {
        status =
            0; /* this SYNC has written it: its list names the piece twice, and what was written since is not its */
    } else if (record_is_dirty(r)) {
        if (hot_at(t, ref->object)->flags & (HOT_RELOCATING | HOT_MIGRATING))
            return -EALREADY;
        if (hot_at(t, ref->object)->flags & HOT_SPILLING) {
            m = move_spill_of(t, ref->object);
            move_urge(m);
        } else if (r->flags & RECORD_TENSOR) {
            status = sync_spill_tensor(t, ref, &m);
        } else if (store_pick(t, r) == STORE_NONE) {
            status = -EIO;
        } else {
            status = move_spill(t, ref->object, true, store_pick(t, r), 0, false, &m);
        }
        if (status == -EAGAIN)
            return status;
    }
    list_unlink(&ref->link);
    if (m)
        list_push_tail(&m->syncs, &ref->link);
    else
        sync_ref_done(t, ref, status);
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
    kill_point("sync.add");
    object_pin(t, object);
    sync->pending_++;
    if (sync_try(t, ref) < 0)
        list_push_tail(&t->sync_waiting, &ref->link);
    return 0;
}

/* Of what is torn nobody knows what to write. */
static void sync_refuse_torn(struct tiering_sync *sync)
{
    if (sync->status_ == 0 && sync->t_->spaces[sync->space_].dirty.n_torn > 0)
        sync->status_ = -EBADMSG;
}

/* As far as there are moves and refs. A SYNC that has failed looks no further. */
static void sync_walk(struct tiering *t, struct tiering_sync *sync)
{
    const struct tiering_sync *other = t->spaces[sync->space_].txn_sync;
    struct dirty *d = &t->spaces[sync->space_].dirty;
    uint32_t object;

    if (sync->status_ == 0 && ((other && other != sync) || !dirty_walk_begin(d, sync)))
        return;
    sync_refuse_torn(sync);
    while (sync->status_ == 0 && (object = dirty_walk_peek(d)) != RECORD_NONE) {
        if (t->n_moves + TICK_STEPS > t->config.max_moves || list_is_empty(&t->sync_refs_free))
            return;
        dirty_walk_step(t, d);
        t->stat.sync_looks++;
        (void)sync_add(sync, object);
    }
    sync_refuse_torn(sync);
    kill_point("sync.walked");
    dirty_walk_end(d, sync);
    sync->walks_ = false;
    sync_maybe_written(sync);
}

void sync_step(struct tiering *t)
{
    struct list waiting;
    struct list *l;
    bool room = true;

    /* What a SYNC's end calls may begin another: the list is taken off first. */
    list_init(&waiting);
    list_splice_tail(&waiting, &t->sync_waiting);
    while ((l = list_pop(&waiting))) {
        struct sync_ref *ref = list_entry(l, struct sync_ref, link);
        int status = room || ref->sync->status_ < 0 ? sync_try(t, ref) : -EAGAIN;

        if (status < 0)
            list_push_tail(&t->sync_waiting, &ref->link);
        room = room && status != -EAGAIN;
    }
    for (bool again = true; again;) {
        again = false;
        list_for_each (s, &t->syncs) {
            struct tiering_sync *sync = list_entry(s, struct tiering_sync, link_);

            if (!sync->running_ || !sync->walks_)
                continue;
            sync_walk(t, sync);
            if (!sync->walks_) {
                again = true; /* it may have ended, and another begun */
                break;
            }
        }
    }
}

void sync_stop(struct tiering *t)
{
    list_for_each (l, &t->syncs) {
        struct tiering_sync *sync = list_entry(l, struct tiering_sync, link_);

        if (sync->running_ && (sync->pending_ || sync->walks_) && sync->status_ == 0)
            sync->status_ = -ECANCELED;
    }
    sync_step(t);
}

void tiering_sync_begin(struct tiering *t, struct tiering_sync *sync, uint32_t space)
{
    void (*done)(struct tiering_sync *, int) = sync->done;

    *sync = (struct tiering_sync){.done = done, .t_ = t, .space_ = space};
    list_init(&sync->refs_);
    list_push_tail(&t->syncs, &sync->link_);
}

int tiering_sync_add(struct tiering *t, struct tiering_sync *sync, const struct tiering_id *id)
{
    int status = 0;
    uint32_t object = object_find(t, id, &status);

    if (object == RECORD_NONE)
        return status;
    if (id->space != sync->space_ || durability_of(t, record_at(&t->records, object)) != STORE_DURABLE)
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
    sync->walks_ = true;
    return 0;
}

void tiering_sync_run(struct tiering *t, struct tiering_sync *sync)
{
    sync->running_ = true;
    kill_point("sync.run");
    t->kicked = true;
    sync_maybe_written(sync);
}

uint32_t tiering_sync_limit(const struct tiering_sync *sync)
{
    return sync->limit_;
}
