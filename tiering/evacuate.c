/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The emptying of segments: a store names one, and every piece in it must leave. Engine thread only.
 *
 * `cache` pieces are forgotten (the segment's end in the log is their end: so this goes on until all is idle), others
 * are put elsewhere in the same store: from memory if they are there, else through the relocations' buffer. A changed
 * durable tensor's last copy (its shadow) moves the same way.
 *
 * Each piece is looked at once, not at every turn. The pieces of a segment are a ring: those that were not looked at come
 * first, then, from `seen` on, those that are on their way out or busy. Whatever made a piece busy ends with
 * evacuate_again(), which puts it in front once more if it is still there. One segment is emptied after the other, so
 * that the first is free before the next one's copies need its room.
 */
#include <errno.h>

#include "include/base/kill_point.h"
#include "tiering/core.h"

#define EVACUATE_STEPS 256 /* pieces of one segment that one turn looks at */
#define RETRY_NS UINT64_C(100000000)

/* --- The rings ------------------------------------------------------------------------------------------------------- */

void segment_link(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    struct tsegment *seg = &t->stores[r->dev_store].segments[r->dev_segment];

    record_ring_add(&t->records, seg->head, object);
    seg->head = object;
}

void segment_unlink(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    struct tsegment *seg = &t->stores[r->dev_store].segments[r->dev_segment];
    uint32_t next = record_ring_after(&t->records, seg->head, object);

    if (seg->seen == object)
        seg->seen = next;
    if (seg->head == object)
        seg->head = next;
    record_ring_remove(&t->records, object);
}

/* The first piece is on its way out, or busy: it becomes the last. */
static void segment_saw(struct tiering *t, struct tsegment *seg)
{
    if (seg->seen == RECORD_NONE)
        seg->seen = seg->head;
    seg->head = hot_at(t, seg->head)->seg_next;
}

void evacuate_again(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);

    if (hot_at(t, object)->flags & HOT_SHADOWED)
        shadow_again(t, object);
    if (!(r->flags & RECORD_HAS_DEV) || t->stores[r->dev_store].segments[r->dev_segment].seen == RECORD_NONE)
        return;
    segment_unlink(t, object);
    segment_link(t, object);
    t->kicked = true;
}

/* --- Emptying -------------------------------------------------------------------------------------------------------- */

enum evacuated { EVACUATE_FULL, EVACUATE_SEEN, EVACUATE_GONE };

void evacuate_later(struct tstore *ts)
{
    ts->evacuate_ns = ts->tiering->now_ns + RETRY_NS;
}

static enum evacuated evacuate_cache(struct tiering *t, uint32_t object)
{
    if (hot_at(t, object)->flags & HOT_LOADING)
        return EVACUATE_SEEN;
    t->stat.evacuated++;
    kill_point("evacuate.cache");
    if (record_at(&t->records, object)->flags & RECORD_HAS_MEM) {
        object_drop_dev(t, object, false);
        return EVACUATE_GONE;
    }
    t->forgets = object;
    object_kill_all(t, object);
    t->forgets = RECORD_NONE;
    return EVACUATE_GONE;
}

static enum evacuated evacuate_one(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    const struct record_hot *hot = hot_at(t, object);
    struct store_entry entry;

    if (hot->flags & HOT_PUT)
        return EVACUATE_SEEN;
    if (durability_of(t, r) == STORE_CACHE)
        return evacuate_cache(t, object);
    if (t->stopping)
        return EVACUATE_FULL;
    if ((r->flags & RECORD_HAS_MEM) && !hot_writers(hot) && !(r->flags & RECORD_TORN)) {
        int status =
            pool_of(t, r)->spilling < SPILLS_MAX ? move_spill(t, object, false, r->dev_store, 0, true, NULL) : -EAGAIN;

        if (status < 0 && status != -EAGAIN && status != -EBUSY)
            evacuate_later(&t->stores[r->dev_store]);
        t->stat.evacuated += status == 0;
        if (status != -EBUSY) /* else it must not be read from memory now */
            return status == 0 ? EVACUATE_SEEN : EVACUATE_FULL;
    }
    object_to_entry(t, object, &entry);
    kill_point("evacuate.relocate");
    return relocate(t, object, r->dev_store, &entry) ? EVACUATE_SEEN : EVACUATE_FULL;
}

/* False: what is left must wait until something has ended, or for more steps. */
static bool evacuate_pieces(struct tiering *t, struct tsegment *seg, uint32_t steps_max)
{
    for (uint32_t steps = 0; seg->head != RECORD_NONE && seg->head != seg->seen; steps++) {
        if (steps == steps_max) {
            t->kicked = true;
            return false;
        }
        t->stat.evacuated_looks++;
        switch (evacuate_one(t, seg->head)) {
        case EVACUATE_FULL:
            return false;
        case EVACUATE_SEEN:
            segment_saw(t, seg);
            break;
        case EVACUATE_GONE: /* and perhaps its neighbours, which were of the same object */
            break;
        }
    }
    return true;
}

static bool evacuate_shadows(struct tiering *t, const struct tstore *ts, struct tsegment *seg)
{
    const struct shadow *shadow;

    while ((shadow = shadow_unseen(t, seg))) {
        struct store_entry entry = shadow->entry;
        uint32_t object = shadow->object - 1;

        if (t->stopping)
            return false;
        if (!(hot_at(t, object)->flags & HOT_PUT) && !relocate(t, object, ts->number, &entry))
            return false;
        shadow_saw(t, seg);
    }
    return true;
}

void evacuate_step(struct tiering *t, struct tstore *ts)
{
    uint32_t n = 0;

    if (t->now_ns < ts->evacuate_ns && !t->stopping)
        return;
    for (uint32_t i = 0; i < ts->n_evacuating; i++) {
        uint32_t segment = ts->evacuating[i];

        if (!store_is_evacuating(ts->store, segment))
            continue; /* it is empty */
        if (evacuate_pieces(t, &ts->segments[segment], EVACUATE_STEPS))
            (void)evacuate_shadows(t, ts, &ts->segments[segment]);
        ts->evacuating[n++] = segment;
    }
    ts->n_evacuating = n;
}

void evacuate_finish(struct tiering *t)
{
    for (uint32_t i = 0; i < t->n_stores; i++) {
        struct tstore *ts = &t->stores[i];

        for (uint32_t k = 0; k < ts->n_evacuating; k++) {
            struct tsegment *seg = &ts->segments[ts->evacuating[k]];

            if (store_is_evacuating(ts->store, ts->evacuating[k]))
                (void)evacuate_pieces(t, seg, UINT32_MAX);
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

/* --- Self-check ------------------------------------------------------------------------------------------------------ */

const char *evacuate_check(const struct tiering *t)
{
    uint64_t n = 0;

    for (uint32_t s = 0; s < t->n_stores; s++) {
        for (uint32_t i = 0; i < t->stores[s].n_segments; i++) {
            const struct tsegment *seg = &t->stores[s].segments[i];
            bool saw = false;

            for (uint32_t o = seg->head; o != RECORD_NONE;) {
                const struct record *r = record_at(&t->records, o);

                saw |= o == seg->seen;
                if (!(r->flags & RECORD_HAS_DEV) || r->dev_store != s || r->dev_segment != i)
                    return "a segment's ring has what does not lie there";
                if (saw && !(t->records.objects[o].hot.flags & (HOT_PUT | HOT_LOADING)))
                    return "a piece that is idle waits to leave its segment";
                n++;
                o = t->records.objects[o].hot.seg_next == seg->head ? RECORD_NONE : t->records.objects[o].hot.seg_next;
            }
            if (saw != (seg->seen != RECORD_NONE))
                return "a segment's ring lacks what was seen";
        }
    }
    for (uint32_t i = 0; i < t->records.high; i++)
        n -= t->records.objects[i].record.state != RECORD_FREE && (t->records.objects[i].record.flags & RECORD_HAS_DEV);
    return n ? "the pieces of all segments" : NULL;
}
