/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The emptying of segments: a store names one, and every piece in it must leave. Engine thread only.
 *
 * `cache` pieces are forgotten (the segment's end in the log is their end: so this goes on until all is idle), others are put elsewhere in the same store:
 * from memory if they are there, else through a buffer of our own, one at a time. So reclaim needs no room in any pool,
 * and works for spaces whose pool is no longer configured. A changed durable tensor's last copy (its shadow) moves the
 * same way.
 *
 * A newer put must have a larger generation than an older one of the same piece, else a replay would prefer the wrong
 * one. So at most one put of a piece is under way: what is being spilled, or waits for its SYNC's commit, is not moved,
 * and what is being moved is not spilled.
 *
 * A piece that cannot be read because it is damaged is moved as damaged: it reads as -EBADMSG from then on, after a
 * restart too.
 */
#include <errno.h>
#include <string.h>

#include "tiering/core.h"

#define EVACUATE_AT_ONCE 32
#define RETRY_NS UINT64_C(100000000)

/* --- Through the buffer ------------------------------------------------------------------------------------------------ */

static void relocate_end(struct move *m, int status)
{
    struct tiering *t = m->t;
    uint32_t object = m->object;
    const struct record *r = record_at(&t->records, object);
    const struct store_entry *old = &t->relocation.old;
    struct store *store = t->stores[m->store].store;
    struct shadow *shadow = hot_at(t, object)->flags & HOT_SHADOWED ? shadow_of(t, object) : NULL;

    hot_at(t, object)->flags &= (uint16_t)~HOT_RELOCATING;
    if (status == -ECANCELED) {
        assert(r->state != RECORD_COMMITTED); /* deleted, and the old copy with it */
    } else if (status < 0) {
        t->stores[m->store].evacuate_ns = t->now_ns + RETRY_NS;
    } else if (r->state == RECORD_COMMITTED && (r->flags & RECORD_HAS_DEV) && r->dev_store == m->store &&
               r->generation == old->generation) {
        object_drop_dev(t, object, true);
        object_set_dev(t, object, m->store, &m->put.entry);
    } else if (shadow && shadow->has_entry && shadow->entry.generation == old->generation) {
        store_drop(store, old);
        shadow->entry = m->put.entry;
    } else {
        store_drop(store, &m->put.entry); /* the old one is gone: so is this */
    }
    t->relocation.busy = false;
    t->relocation.put = NULL;
    move_free(m);
    object_unpin(t, object);
}

static void relocate_put_done(struct store_put *put, int status)
{
    relocate_end(container_of(put, struct move, put), status);
}

static void relocate_got(struct store_get *get, int status)
{
    struct move *m = container_of(get, struct move, get);
    struct tiering *t = m->t;
    const struct store_entry *old = &t->relocation.old;
    bool damaged = status == -EBADMSG;

    if (record_at(&t->records, m->object)->state != RECORD_COMMITTED)
        status = -ECANCELED;
    if (status < 0 && status != -EBADMSG) {
        relocate_end(m, status);
        return;
    }
    memset(&m->put, 0, sizeof(m->put));
    m->put.id = old->id;
    m->put.object_bytes = old->object_bytes;
    m->put.size_bytes = old->size_bytes;
    m->put.n_parts = old->n_parts;
    m->put.class_id = old->class_id;
    m->put.durability = old->durability;
    m->put.kind = (uint8_t)(old->kind | (damaged ? STORE_KIND_DAMAGED : 0));
    m->put.pool = m->pool;
    m->put.evacuating = 1;
    m->put.buf = t->relocation.buf;
    m->put.done = relocate_put_done;
    status = store_put(t->stores[m->store].store, &m->put);
    if (status < 0) {
        relocate_end(m, status);
        return;
    }
    t->relocation.put = m;
    place_charge(t, m->pool, m->store, old->size_bytes);
}

/* False: the buffer, or all moves, are in use. */
static bool relocate(struct tiering *t, uint32_t object, uint8_t store, const struct store_entry *entry)
{
    struct move *m = t->relocation.busy ? NULL : move_new(t, MOVE_RELOCATE, object);

    if (!m)
        return false;
    t->relocation.busy = true;
    t->relocation.old = *entry;
    m->store = store;
    move_set_phase(m, MOVE_BUSY);
    hot_at(t, object)->flags |= HOT_RELOCATING;
    object_pin(t, object);
    memset(&m->get, 0, offsetof(struct store_get, store_));
    m->get.entry = *entry;
    m->get.len_bytes = entry->size_bytes;
    m->get.buf = t->relocation.buf;
    m->get.evacuating = 1;
    m->get.done = relocate_got;
    store_get(t->stores[store].store, &m->get);
    return true;
}

/* --- Segments ---------------------------------------------------------------------------------------------------------- */

enum evacuated { EVACUATE_LATER, EVACUATE_BEGUN, EVACUATE_GONE };

static enum evacuated evacuate_one(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    struct record_hot *hot = hot_at(t, object);
    bool resident = r->flags & RECORD_HAS_MEM;
    struct store_entry entry;

    if (hot->flags & HOT_PUT)
        return EVACUATE_LATER;
    if (durability_of(t, r) == STORE_CACHE) {
        if (hot->flags & HOT_LOADING)
            return EVACUATE_LATER;
        object_drop_dev(t, object, false);
        if (!resident)
            object_kill_all(t, object);
        return EVACUATE_GONE;
    }
    if (t->stopping)
        return EVACUATE_LATER;
    if (resident && !hot_writers(hot) && !(r->flags & RECORD_TORN))
        return move_spill(t, object, false, r->dev_store, 0, true, NULL) == 0 ? EVACUATE_BEGUN : EVACUATE_LATER;
    object_to_entry(t, object, &entry);
    return relocate(t, object, r->dev_store, &entry) ? EVACUATE_BEGUN : EVACUATE_LATER;
}

static void evacuate_segment(struct tiering *t, struct tstore *ts, uint32_t segment)
{
    uint32_t begun = 0, o = ts->segment_head[segment];

    while (o != RECORD_NONE && begun < EVACUATE_AT_ONCE) {
        uint32_t next = hot_at(t, o)->seg_next;

        switch (evacuate_one(t, o)) {
        case EVACUATE_GONE: /* and perhaps its neighbours, which were of the same object */
            next = ts->segment_head[segment];
            break;
        case EVACUATE_BEGUN:
            begun++;
            break;
        case EVACUATE_LATER:
            break;
        }
        o = next;
    }
    if (t->relocation.busy || t->stopping)
        return;
    const struct shadow *shadow = shadow_in_segment(t, ts->number, segment);
    if (shadow) {
        struct store_entry entry = shadow->entry;

        (void)relocate(t, shadow->object - 1, ts->number, &entry);
    }
}

void evacuate_step(struct tiering *t, struct tstore *ts)
{
    if (t->now_ns < ts->evacuate_ns && !t->stopping)
        return;
    for (uint32_t i = 0; i < ts->n_evacuating;) {
        /* A put that was on its way into it may arrive there later: the store says when it is over. */
        if (store_is_evacuating(ts->store, ts->evacuating[i])) {
            evacuate_segment(t, ts, ts->evacuating[i]);
            i++;
        } else {
            ts->evacuating[i] = ts->evacuating[--ts->n_evacuating];
        }
    }
}

void evacuate_add(struct tstore *ts, uint32_t segment)
{
    ts->tiering->kicked = true;
    for (uint32_t i = 0; i < ts->n_evacuating; i++) {
        if (ts->evacuating[i] == segment)
            return; /* it was emptied, used, and is to be emptied again */
    }
    assert(ts->n_evacuating < EVACUATIONS_MAX);
    ts->evacuating[ts->n_evacuating++] = segment;
}
