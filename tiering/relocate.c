/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From one segment of a store to another, for pieces that are not in memory. Engine thread only.
 *
 * The bytes go through a buffer of our own: so the emptying of segments needs no room in any pool, and works for spaces
 * whose pool is no longer configured. The buffer is a ring: what was begun first gives its room back first. Each
 * relocation is read, waits (if it must) for room in the store without being read again, and is put.
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

#include "include/base/kill_point.h"
#include "include/base/point.h"
#include "tiering/core.h"

/* --- The ring -------------------------------------------------------------------------------------------------------- */

static struct relocation *ring_at(struct relocations *ring, uint32_t i)
{
    return &ring->slots[(ring->first + i) % RELOCATIONS_MAX];
}

/* NULL: no room. One sector at least stays free between the newest and the oldest, so that full is not empty. */
static struct relocation *ring_take(struct relocations *ring, uint32_t sectors)
{
    uint32_t oldest = ring->n ? ring_at(ring, 0)->sector : UINT32_MAX, at = ring->n ? ring->next_sector : 0;
    bool wrapped = ring->n && at < oldest;

    if (ring->n == RELOCATIONS_MAX || (ring->n && sim_point("relocate: the buffer is full")))
        return NULL;
    if (!wrapped && at + sectors > ring->n_sectors) {
        wrapped = true;
        at = 0;
    }
    if (wrapped && at + sectors >= oldest)
        return NULL;
    struct relocation *x = ring_at(ring, ring->n++);
    *x = (struct relocation){.phase = RELOCATION_READ, .sector = at};
    ring->next_sector = at + sectors;
    return x;
}

static void ring_give(struct relocations *ring, struct relocation *x)
{
    x->phase = RELOCATION_FREE;
    while (ring->n && ring_at(ring, 0)->phase == RELOCATION_FREE) {
        ring->first = (ring->first + 1) % RELOCATIONS_MAX;
        ring->n--;
    }
}

static struct relocation *relocation_of(const struct move *m)
{
    return &m->t->relocations.slots[m->other];
}

static struct io_buf relocation_buf(const struct move *m)
{
    struct io_buf buf = m->t->relocations.buf;

    buf.off += (uint64_t)relocation_of(m)->sector * SECTOR_BYTES;
    return buf;
}

/* --- One relocation ---------------------------------------------------------------------------------------------------- */

static void relocate_end(struct move *m, int status)
{
    struct tiering *t = m->t;
    uint32_t object = m->object;
    struct relocation *x = relocation_of(m);
    const struct record *r = record_at(&t->records, object);
    const struct store_entry *old = &x->old;
    struct shadow *shadow = hot_at(t, object)->flags & HOT_SHADOWED ? shadow_of(t, object) : NULL;

    hot_at(t, object)->flags &= (uint16_t)~HOT_RELOCATING;
    t->relocations.n_moved += status >= 0;
    if (status == -ECANCELED) {
        assert(r->state != RECORD_COMMITTED); /* deleted, and the old copy with it */
    } else if (status < 0) {
        if (status != -EALREADY)
            evacuate_later(&t->stores[m->store]);
    } else if (r->state == RECORD_COMMITTED && (r->flags & RECORD_HAS_DEV) && r->dev_store == m->store &&
               r->generation == old->generation) {
        object_set_dev(t, object, m->store, &m->put.entry);
        kill_point("relocate.moved");
    } else if (shadow && shadow->has_entry && shadow->entry.generation == old->generation) {
        shadow_moved(t, shadow, &m->put.entry);
    } else {
        sim_reached("relocate: the piece has changed meanwhile");
        store_drop(t->stores[m->store].store, &m->put.entry); /* the old one is gone: so is this */
    }
    ring_give(&t->relocations, x);
    move_free(m);
    evacuate_again(t, object);
    object_unpin(t, object);
}

static void relocate_put_done(struct store_put *put, int status)
{
    relocate_end(container_of(put, struct move, put), status);
}

static void relocate_put_fill(struct move *m, bool damaged)
{
    const struct store_entry *old = &relocation_of(m)->old;

    m->put = (struct store_put){
        .id = old->id,
        .buf = relocation_buf(m),
        .object_bytes = old->object_bytes,
        .size_bytes = old->size_bytes,
        .pool = m->pool,
        .n_parts = old->n_parts,
        .class_id = old->class_id,
        .durability = old->durability,
        .kind = (uint8_t)(old->kind | (damaged ? STORE_KIND_DAMAGED : 0)),
        .urgent = m->t->stores[m->store].room_wanted,
        .evacuating = 1,
        .done = relocate_put_done,
    };
}

/* False: the store has no room yet. */
static bool relocate_put(struct move *m)
{
    struct tiering *t = m->t;
    struct relocation *x = relocation_of(m);
    int status = -ECANCELED;

    if (record_at(&t->records, m->object)->state == RECORD_COMMITTED)
        status = store_is_evacuating(t->stores[m->store].store, x->old.loc.segment)
                     ? store_put(t->stores[m->store].store, &m->put)
                     : -EALREADY; /* it stays: what was to be emptied is filled up */
    bool waits = status == -EAGAIN && !t->stopping;
    x->phase = waits ? RELOCATION_WAIT : RELOCATION_PUT;
    if (waits) {
        sim_reached("relocate: waits for room");
        return false;
    }
    if (status < 0)
        relocate_end(m, status);
    else
        place_charge(t, m->pool, m->store, x->old.size_bytes);
    return true;
}

static void relocate_got(struct store_get *get, int status)
{
    struct move *m = container_of(get, struct move, get);

    if (status < 0 && status != -EBADMSG) {
        relocate_end(m, record_at(&m->t->records, m->object)->state == RECORD_COMMITTED ? status : -ECANCELED);
        return;
    }
    kill_point("relocate.read");
    if (status == -EBADMSG)
        sim_reached("relocate: what is damaged moves as damaged");
    relocate_put_fill(m, status == -EBADMSG);
    (void)relocate_put(m);
}

/* Whether they are written to the same segment. */
static bool is_same_stream(const struct move *a, const struct move *b)
{
    return a->store == b->store && a->pool == b->pool && a->put.durability == b->put.durability;
}

/* Those that wait for room, in their order: one that finds none speaks for the others of its stream, and for no more. What
 * another stream has room for may empty the segment that this one waits for. */
void relocate_step(struct tiering *t)
{
    struct relocations *ring = &t->relocations;
    const struct move *full[RELOCATIONS_MAX];
    uint32_t n_full = 0;

    for (uint32_t left = ring->n, at = ring->first; left > 0; left--, at = (at + 1) % RELOCATIONS_MAX) {
        const struct relocation *x = &ring->slots[at];
        struct move *m = &t->moves[x->move];
        bool is_full = x->phase != RELOCATION_WAIT;

        for (uint32_t i = 0; i < n_full && !is_full; i++)
            is_full = is_same_stream(full[i], m);
        if (is_full || relocate_put(m))
            continue;
        full[n_full++] = m;
    }
}

uint32_t relocations_running(const struct tiering *t)
{
    const struct relocations *ring = &t->relocations;
    uint32_t n = 0;

    for (uint32_t i = 0; i < ring->n; i++)
        n += ring->slots[(ring->first + i) % RELOCATIONS_MAX].phase != RELOCATION_FREE;
    return n;
}

bool relocate(struct tiering *t, uint32_t object, uint8_t store, const struct store_entry *entry)
{
    struct relocation *x = ring_take(&t->relocations, sectors_of(entry->size_bytes));
    struct move *m = x ? move_new(t, MOVE_RELOCATE, object) : NULL;

    if (x && !m)
        ring_give(&t->relocations, x);
    if (!m)
        return false;
    t->stat.evacuated++;
    x->move = (uint32_t)(m - t->moves);
    x->old = *entry;
    m->other = (uint32_t)(x - t->relocations.slots);
    m->store = store;
    move_set_phase(m, MOVE_BUSY);
    hot_at(t, object)->flags |= HOT_RELOCATING;
    object_pin(t, object);
    memset(&m->get, 0, offsetof(struct store_get, store_));
    m->get.entry = *entry;
    m->get.len_bytes = entry->size_bytes;
    m->get.buf = relocation_buf(m);
    m->get.urgent = t->stores[store].room_wanted;
    m->get.evacuating = 1;
    m->get.done = relocate_got;
    store_get(t->stores[store].store, &m->get);
    return true;
}

void relocate_cancel(struct tiering *t, uint32_t object)
{
    struct relocations *ring = &t->relocations;

    for (uint32_t i = 0; i < ring->n; i++) {
        const struct relocation *x = ring_at(ring, i);

        if (x->phase == RELOCATION_PUT && t->moves[x->move].object == object)
            t->moves[x->move].put.cancel = 1;
    }
}
