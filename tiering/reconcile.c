/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the devices' logs say, beside records that outlived the process. The records are the truth: the log must end up
 * telling what they tell, and what it told before must stay true for whoever recovers from it alone. On the thread that
 * makes the engine, before it runs.
 *
 * A record and its last entry in the log part because the log is behind: it was in memory. So there are
 *   pieces that the log lacks. Their bytes are on the device, since the record was changed after the write had ended.
 *     They are logged again. But what a SYNC wrote of tensors, and did not commit, takes effect as a whole or not at
 *     all: it is in memory still (the SYNC holds it until it is durable), so it is dirty again.
 *   entries that no record names. Of a durable tensor's piece that has changed since, the last is its shadow: what a
 *     power loss must find until the next SYNC. All others are of what was deleted, replaced or moved, and are deleted
 *     from the log, else they would come back with it one day.
 *
 * Objects of several parts or pieces are looked at as a whole; see warm.c for what is cut short.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tiering/core.h"

/* While the logs are read: the log has the record's entry; the object was looked at. No move uses these yet. */
#define HOT_LOGGED HOT_SPILLING
#define HOT_LOOKED_AT HOT_MIGRATING

static bool entry_is_of(const struct record *r, uint8_t store, const struct store_entry *e)
{
    return r->state == RECORD_COMMITTED && (r->flags & RECORD_HAS_DEV) && r->dev_store == store &&
           r->generation == e->generation && r->dev_segment == e->loc.segment && r->dev_sector == e->loc.sector;
}

/* --- While the logs are read ------------------------------------------------------------------------------------- */

static uint32_t record_of_entry(struct tiering *t, const struct store_id *store_id, uint16_t n_parts)
{
    uint32_t space = space_by_id(t, store_id->space);
    struct tiering_id id;

    if (space == UINT32_MAX)
        return RECORD_NONE;
    id_from_store(&id, store_id, space, n_parts);
    return record_find(&t->records, &id, record_hash_id(&t->records, &id));
}

static int grow(void **array, size_t n, size_t *room, size_t size_bytes)
{
    if (n < *room)
        return 0;
    size_t more = *room ? 2 * *room : 256;
    void *p = realloc(*array, more * size_bytes);

    if (!p)
        return -ENOMEM;
    *array = p;
    *room = more;
    return 0;
}

int reconcile_put(struct tiering *t, uint8_t store, const struct store_entry *entry)
{
    struct warm *w = t->warm;
    uint32_t object = record_of_entry(t, &entry->id, entry->n_parts);

    if (object != RECORD_NONE && entry_is_of(record_at(&t->records, object), store, entry)) {
        hot_at(t, object)->flags |= HOT_LOGGED;
        return 0;
    }
    int r = grow((void **)&w->logged, w->n_logged, &w->logged_room, sizeof(*w->logged));

    if (r == 0)
        w->logged[w->n_logged++] = (struct logged){.entry = *entry, .store = store};
    return r;
}

int reconcile_delete(struct tiering *t, uint8_t store, uint64_t generation)
{
    struct warm *w = t->warm;
    int r = grow((void **)&w->ended, w->n_ended, &w->ended_room, sizeof(*w->ended));

    if (r == 0)
        w->ended[w->n_ended++] = (struct logged_end){.generation = generation, .store = store};
    return r;
}

int reconcile_segment_freed(struct tiering *t, uint8_t store, uint32_t segment, uint64_t generation)
{
    uint64_t **freed = &t->warm->freed[store];

    if (!*freed)
        *freed = calloc(t->stores[store].n_segments, sizeof(**freed));
    if (!*freed)
        return -ENOMEM;
    (*freed)[segment] = MAX((*freed)[segment], generation);
    return 0;
}

/* --- Entries that no record names -------------------------------------------------------------------------------- */

static int by_store_and_generation(uint8_t store_a, uint64_t a, uint8_t store_b, uint64_t b)
{
    if (store_a != store_b)
        return store_a < store_b ? -1 : 1;
    return a < b ? -1 : a > b;
}

static int compare_logged(const void *a, const void *b)
{
    const struct logged *x = a, *y = b;

    return by_store_and_generation(x->store, x->entry.generation, y->store, y->entry.generation);
}

static int compare_ended(const void *a, const void *b)
{
    const struct logged_end *x = a, *y = b;

    return by_store_and_generation(x->store, x->generation, y->store, y->generation);
}

static bool logged_has_ended(const struct warm *w, const struct logged *l)
{
    struct logged_end end = {.generation = l->entry.generation, .store = l->store};
    const uint64_t *freed = w->freed[l->store];

    return (freed && l->entry.generation < freed[l->entry.loc.segment]) ||
           (w->n_ended > 0 && bsearch(&end, w->ended, w->n_ended, sizeof(end), compare_ended));
}

/* Those that live on in the log, each once, in the order of their generations. */
static void logged_settle(struct warm *w)
{
    size_t kept = 0;

    if (w->n_ended > 0)
        qsort(w->ended, w->n_ended, sizeof(*w->ended), compare_ended);
    if (w->n_logged > 0)
        qsort(w->logged, w->n_logged, sizeof(*w->logged), compare_logged);
    for (size_t i = 0; i < w->n_logged; i++) {
        bool again = kept > 0 && compare_logged(&w->logged[kept - 1], &w->logged[i]) == 0;

        if (!again && !logged_has_ended(w, &w->logged[i]))
            w->logged[kept++] = w->logged[i];
    }
    w->n_logged = kept;
}

/* Else it is of one that was deleted before this one was made, and whose deletion was in memory only. If too much has been put
 * since its first copy to tell, the deletion has long been durable. */
static bool entry_is_of_its_life(const struct record *r, uint8_t store, const struct store_entry *e)
{
    if (r->generation == 0)
        return false; /* it never had a copy on a device */
    return r->first_back == UINT32_MAX || store != r->dev_store || e->generation >= r->generation - r->first_back;
}

/* What a power loss must find of this piece until its next SYNC. */
static bool logged_is_shadow(const struct tiering *t, uint32_t object, const struct logged *l)
{
    const struct record *r = record_at(&t->records, object);
    const struct store_entry *e = &l->entry;

    return r->state == RECORD_COMMITTED && (r->flags & RECORD_TENSOR) && (e->kind & TIERING_TENSOR) &&
           !(r->flags & (RECORD_HAS_DEV | RECORD_ZERO)) && durability_of(t, r) == STORE_DURABLE &&
           entry_is_of_its_life(r, l->store, e) && r->object_bytes == e->object_bytes &&
           r->size_bytes == e->size_bytes && r->n_parts == e->n_parts;
}

/* The later of two with the same identity is the shadow; the other one is left in the list, to be deleted. */
static int reconcile_shadows(struct tiering *t)
{
    struct warm *w = t->warm;
    size_t kept = 0;

    for (size_t i = w->n_logged; i-- > 0;) { /* the latest first */
        struct logged *l = &w->logged[i];
        uint32_t object = record_of_entry(t, &l->entry.id, l->entry.n_parts);

        if (object == RECORD_NONE || !logged_is_shadow(t, object, l) || (hot_at(t, object)->flags & HOT_SHADOWED))
            continue;
        int r = shadow_recovered(t, object, l->store, &l->entry);
        if (r < 0)
            return r;
        space_is_at_home(t, record_at(&t->records, object)->space, l->store);
        l->store = STORE_NONE;
    }
    for (size_t i = 0; i < w->n_logged; i++)
        if (w->logged[i].store != STORE_NONE)
            w->logged[kept++] = w->logged[i];
    w->n_logged = kept;
    return 0;
}

static void reconcile_forget(struct tiering *t)
{
    struct warm *w = t->warm;

    for (size_t i = 0; i < w->n_logged; i++) {
        const struct logged *l = &w->logged[i];
        uint32_t space = space_by_id(t, l->entry.id.space);

        store_delete_logged(t->stores[l->store].store, &l->entry);
        if (space != UINT32_MAX)
            space_is_at_home(t, space, l->store); /* its next SYNC has to see to that, if to nothing else */
    }
    t->warm_counts.forgotten = w->n_logged;
}

/* --- Pieces that the log lacks ----------------------------------------------------------------------------------- */

/* True if it is to be logged again. */
static bool reconcile_record(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    bool has_dev = r->flags & RECORD_HAS_DEV;
    bool is_logged = hot_at(t, object)->flags & HOT_LOGGED;

    hot_at(t, object)->flags &= (uint16_t)~HOT_LOGGED;
    if (r->state != RECORD_COMMITTED || !has_dev)
        return false;
    if (r->dev_store >= t->n_stores || r->dev_segment >= t->stores[r->dev_store].n_segments)
        is_logged = has_dev = false;
    bool of_sync = (r->flags & RECORD_TENSOR) && (r->flags & RECORD_HAS_MEM) && durability_of(t, r) == STORE_DURABLE;
    if (!has_dev || (!is_logged && of_sync)) {
        t->warm_counts.redone++;
        object_forget_dev(t, object);
        return false;
    }
    segment_link(t, object);
    space_is_at_home(t, r->space, r->dev_store);
    return !is_logged;
}

static int reconcile_adopt(struct tiering *t, uint32_t object, bool again)
{
    const struct record *r = record_at(&t->records, object);
    struct store *store = t->stores[r->dev_store].store;
    uint32_t pool = t->spaces[r->space].info.pool;
    struct store_entry entry;

    object_to_entry(t, object, &entry);
    if (!again)
        return store_adopt(store, pool, &entry);
    t->warm_counts.redone++;
    store_know_again(t, r->dev_store, r->space);
    return store_adopt_again(store, pool, &entry);
}

static int reconcile_records(struct tiering *t)
{
    for (uint32_t i = 0; i < t->records.high; i++) {
        bool again = reconcile_record(t, i);
        const struct record *r = record_at(&t->records, i);

        if (r->state != RECORD_COMMITTED || !(r->flags & RECORD_HAS_DEV))
            continue;
        int status = reconcile_adopt(t, i, again);
        if (status < 0)
            return status;
    }
    return 0;
}

/* Of a durable tensor's piece that is written to, the copy on the device is the shadow. */
static int reconcile_writers(struct tiering *t)
{
    int status = 0;

    for (uint32_t i = 0; i < t->records.high && status == 0; i++)
        if (record_at(&t->records, i)->state == RECORD_COMMITTED && hot_writers(hot_at(t, i)) > 0)
            status = shadow_keep_again(t, i);
    return status;
}

static int reconcile_adopt_shadows(struct tiering *t)
{
    for (uint32_t i = 0; i < t->records.high; i++) {
        const struct record *r = record_at(&t->records, i);
        const struct shadow *shadow = hot_at(t, i)->flags & HOT_SHADOWED ? shadow_of(t, i) : NULL;
        int status =
            shadow ? store_adopt(t->stores[shadow->store].store, t->spaces[r->space].info.pool, &shadow->entry) : 0;

        if (status < 0)
            return status;
    }
    return 0;
}

/* --- Whole objects ----------------------------------------------------------------------------------------------- */

/* COMMITTED, and no bytes anywhere. */
static bool record_is_lost(const struct record *r)
{
    return r->state == RECORD_COMMITTED && !(r->flags & (RECORD_HAS_MEM | RECORD_HAS_DEV | RECORD_ZERO | RECORD_TORN));
}

static void object_lost(struct tiering *t, uint32_t object)
{
    t->warm_counts.lost++;
    object_kill(t, object);
}

struct whole {
    uint32_t wanted, found, committed, complete, lost;
};

static void whole_look(struct tiering *t, uint32_t first, struct whole *ret_whole)
{
    const struct record *r = record_at(&t->records, first);
    uint32_t n_pieces = object_pieces(t, r->object_bytes);
    struct whole whole = {.wanted = n_pieces * r->n_parts};
    struct tiering_id id;

    record_to_id(r, &id);
    for (uint32_t i = 0; i < whole.wanted; i++) {
        id.part = (uint16_t)(i / n_pieces);
        id.piece = i % n_pieces;
        uint32_t object = record_find(&t->records, &id, record_hash_id(&t->records, &id));
        const struct record *other = object == RECORD_NONE ? NULL : record_at(&t->records, object);

        if (!other || other->object_bytes != r->object_bytes || other->n_parts != r->n_parts)
            continue;
        hot_at(t, object)->flags |= HOT_LOOKED_AT;
        whole.found++;
        whole.committed += other->state == RECORD_COMMITTED;
        whole.complete += other->state == RECORD_COMMITTED && !(other->flags & RECORD_INCOMPLETE);
        whole.lost += record_is_lost(other);
    }
    *ret_whole = whole;
}

static void reconcile_whole(struct tiering *t, uint32_t object)
{
    bool is_tensor = record_at(&t->records, object)->flags & RECORD_TENSOR;
    struct whole whole;

    whole_look(t, object, &whole);
    if (whole.committed == whole.wanted && !whole.lost) {
        if (whole.complete < whole.wanted)
            object_complete_all(t, object);
    } else if (whole.complete > 0 || whole.lost > 0 || is_tensor) {
        t->warm_counts.lost += whole.lost > 0;
        object_kill_all(t, object);
    } else {
        group_recovered(t, object, whole.found, whole.committed);
    }
}

/* Each once. */
static void reconcile_objects(struct tiering *t)
{
    for (uint32_t i = 0; i < t->records.high; i++) {
        const struct record *r = record_at(&t->records, i);
        bool seen = hot_at(t, i)->flags & HOT_LOOKED_AT;

        if ((r->state != RECORD_RESERVED && r->state != RECORD_COMMITTED) || seen)
            continue;
        if (r->n_parts > 1 || object_pieces(t, r->object_bytes) > 1)
            reconcile_whole(t, i);
        else if (record_is_lost(r))
            object_lost(t, i);
    }
    for (uint32_t i = 0; i < t->records.high; i++)
        hot_at(t, i)->flags &= (uint16_t)~HOT_LOOKED_AT;
}

int reconcile(struct tiering *t)
{
    logged_settle(t->warm);
    int r = reconcile_records(t);
    if (r == 0)
        r = reconcile_shadows(t);
    if (r == 0)
        r = reconcile_adopt_shadows(t);
    if (r == 0)
        r = reconcile_writers(t); /* what the others were adopted as */
    if (r < 0)
        return r;
    t->recovering = false;
    for (uint32_t i = 0; i < t->records.high; i++)
        object_account_new(t, i);
    for (uint32_t i = 0; i < t->n_stores; i++)
        store_adopt_done(t->stores[i].store);
    reconcile_forget(t);
    reconcile_objects(t);
    return 0;
}
