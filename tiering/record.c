/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the record array's contents, the hash index over it and the list of free records. Engine thread only.
 *
 * The index is linear probing with backward-shift deletion, so there are no tombstones to clean up and a probe ends at
 * the first empty slot. It is sized once; at most 2/3 of its slots are ever used.
 */
#include "tiering/record.h"

#include <errno.h>
#include <string.h>

#include "include/base/atomic.h"
#include "include/base/cache.h"
#include "include/base/kill_point.h"
#include "io/checksum.h"

#define RECORDS_WARM 12                           /* so far before a record is new, it is asked for */
#define RECORD_MAGIC UINT64_C(0x31434552574c5053) /* "SPLWREC1" */

/* The identity as bytes: what is hashed has no padding. */
struct record_identity {
    uint8_t key[KEY_BYTES_MAX];
    uint32_t space, group, piece;
    uint16_t part;
    uint8_t key_len;
    uint8_t zero;
};
static_assert(sizeof(struct record_identity) == 48, "hashed as bytes");

uint64_t record_hash_id(const struct record_table *t, const struct tiering_id *id)
{
    if (id->hash)
        return id->hash;
    struct record_identity identity = {
        .space = id->space, .group = id->group, .piece = id->piece, .part = id->part, .key_len = id->key_len};

    memcpy(identity.key, id->key, sizeof(identity.key));
    return checksum_bytes(&identity, sizeof(identity), t->hash_seed);
}

void record_to_id(const struct record *r, struct tiering_id *ret_id)
{
    *ret_id = (struct tiering_id){.space = r->space,
                                  .group = r->group,
                                  .piece = r->piece,
                                  .part = r->part,
                                  .n_parts = r->n_parts,
                                  .key_len = r->key_len};
    memcpy(ret_id->key, r->key, sizeof(ret_id->key));
}

uint64_t record_hash(const struct record_table *t, const struct record *r)
{
    struct tiering_id id;

    record_to_id(r, &id);
    return record_hash_id(t, &id);
}

/* The header of a dead daemon may hold a change that was cut off: finish it. */
static void record_table_recover(struct record_table *t)
{
    struct record_header *h = t->header;

    if (h->redo_valid && h->redo_index < t->max)
        t->objects[h->redo_index].record = h->redo;
    fence_compiler();
    h->redo_valid = 0;
}

static uint32_t slots_for(uint32_t max)
{
    uint64_t n_slots = 64;

    while (n_slots * 2 < (uint64_t)max * 3)
        n_slots *= 2;
    return (uint32_t)n_slots;
}

uint64_t record_table_bytes(uint32_t max)
{
    return TIERING_RECORD_HEADER_BYTES + (uint64_t)max * sizeof(struct record_object) +
           slots_for(max) * sizeof(uint32_t);
}

void record_table_init(struct record_table *t, void *memory, uint32_t max, uint64_t hash_seed)
{
    assert(max > 0 && max < RECORD_NONE / 2);
    *t = (struct record_table){
        .header = memory, .max = max, .free_head = RECORD_NONE, .n_slots = slots_for(max), .hash_seed = hash_seed};
    t->objects = (struct record_object *)(void *)((char *)memory + TIERING_RECORD_HEADER_BYTES);
    t->slots = (uint32_t *)(void *)(t->objects + max);
    if (t->header->magic == RECORD_MAGIC) {
        t->high = MIN(t->header->high, max);
        for (uint32_t i = 0; i < t->high; i++) {
            t->objects[i].hot = (struct record_hot){.seg_prev = RECORD_NONE, .seg_next = RECORD_NONE};
            t->objects[i].node = (struct policy_node){0};
        }
        memset(t->slots, 0, t->n_slots * sizeof(*t->slots));
    }
    t->header->magic = RECORD_MAGIC;
    t->header->max = max;
    t->header->record_bytes = sizeof(struct record_object);
    record_table_recover(t);
}

static void record_index(struct record_table *t, uint32_t index, uint64_t hash)
{
    uint32_t mask = t->n_slots - 1, at = (uint32_t)hash & mask;

    while (t->slots[at])
        at = (at + 1) & mask;
    t->slots[at] = ((uint32_t)hash & ~mask) | (index + 1);
}

#define REBUILD_AHEAD 32 /* index slots that are on their way to the cache: each is a miss of its own */

static bool record_is_indexed(const struct record *r)
{
    return r->state == RECORD_RESERVED || r->state == RECORD_COMMITTED;
}

/* The records [from, to), at most REBUILD_AHEAD. */
static void rebuild_some(struct record_table *t, uint32_t from, uint32_t to)
{
    uint64_t hashes[REBUILD_AHEAD];

    for (uint32_t i = from; i < to; i++) {
        const struct record *r = &t->objects[i].record;

        hashes[i - from] = record_is_indexed(r) ? record_hash(t, r) : 0;
        record_warm_slot(t, hashes[i - from]);
    }
    for (uint32_t i = to; i-- > from;) {
        const struct record *r = &t->objects[i].record;

        t->n_used += r->state != RECORD_FREE;
        if (record_is_indexed(r))
            record_index(t, i, hashes[i - from]);
        if (r->state != RECORD_FREE)
            continue;
        t->objects[i].hot.seg_next = t->free_head;
        t->free_head = i;
    }
}

void record_table_rebuild(struct record_table *t)
{
    t->n_used = 0;
    t->free_head = RECORD_NONE;
    for (uint32_t to = t->high, from; to > 0; to = from) { /* the lowest free ones come first in their list */
        from = to > REBUILD_AHEAD ? to - REBUILD_AHEAD : 0;
        rebuild_some(t, from, to);
    }
}

static bool record_is(const struct record *r, const struct tiering_id *id)
{
    return r->space == id->space && r->group == id->group && r->piece == id->piece && r->part == id->part &&
           r->key_len == id->key_len && memcmp(r->key, id->key, sizeof(r->key)) == 0;
}

/* So most records that are not the right one are passed over without being read: that would be a miss in every cache. */
static bool slot_may_be(const struct record_table *t, uint32_t slot, uint32_t hash_low)
{
    return ((slot ^ hash_low) & ~(t->n_slots - 1)) == 0;
}

static uint32_t slot_index(const struct record_table *t, uint32_t slot)
{
    return (slot & (t->n_slots - 1)) - 1;
}

/* The first record that may have this hash; most are the right one. */
static uint32_t record_guess(const struct record_table *t, uint32_t hash_low)
{
    uint32_t mask = t->n_slots - 1;

    for (uint32_t at = hash_low & mask; t->slots[at]; at = (at + 1) & mask)
        if (slot_may_be(t, t->slots[at], hash_low))
            return slot_index(t, t->slots[at]);
    return RECORD_NONE;
}

uint32_t record_find(const struct record_table *t, const struct tiering_id *id, uint64_t hash)
{
    uint32_t mask = t->n_slots - 1;

    for (uint32_t at = (uint32_t)hash & mask; t->slots[at]; at = (at + 1) & mask) {
        uint32_t index = slot_index(t, t->slots[at]);

        if (slot_may_be(t, t->slots[at], (uint32_t)hash) && record_is(&t->objects[index].record, id))
            return index;
    }
    return RECORD_NONE;
}

void record_warm_slot(const struct record_table *t, uint64_t hash)
{
    __builtin_prefetch(&t->slots[(uint32_t)hash & (t->n_slots - 1)]);
}

void record_warm_found(const struct record_table *t, uint64_t hash)
{
    uint32_t index = record_guess(t, (uint32_t)hash);

    if (index != RECORD_NONE)
        cache_warm_to_write(&t->objects[index], sizeof(t->objects[index]));
}

void record_warm_leased(const struct record_table *t, uint32_t index)
{
    static_assert(offsetof(struct record_object, record.size_bytes) >= CACHE_LINE_BYTES, "the second line is enough");
    cache_warm_line_to_write(&t->objects[index].hot);
}

static void record_warm_node(const struct record_table *t, uint32_t index)
{
    if (index < t->max) /* the node's link may be none, or no link at all */
        cache_warm_line_to_write(&t->objects[index].node.next);
}

void record_warm_neighbours(const struct record_table *t, uint64_t hash)
{
    uint32_t index = record_guess(t, (uint32_t)hash);

    if (index == RECORD_NONE || !(t->objects[index].hot.flags & HOT_IN_POLICY))
        return;
    record_warm_node(t, t->objects[index].node.prev);
    record_warm_node(t, t->objects[index].node.next);
}

uint32_t record_find_low(const struct record_table *t, uint32_t hash_low, uint32_t *at)
{
    uint32_t mask = t->n_slots - 1, slot;

    while ((slot = t->slots[*at & mask]) != 0) {
        ++*at;
        uint32_t index = slot_index(t, slot);
        if (slot_may_be(t, slot, hash_low) && (uint32_t)record_hash(t, &t->objects[index].record) == hash_low)
            return index;
    }
    return RECORD_NONE;
}

static uint32_t record_take_free(struct record_table *t)
{
    uint32_t index = t->free_head;

    if (index != RECORD_NONE) {
        t->free_head = t->objects[index].hot.seg_next;
    } else if (t->high < t->max) {
        index = t->high++;
        t->header->high = t->high;
        if (t->touch && (uintptr_t)&t->objects[index] % RECORD_TOUCH_BYTES < sizeof(t->objects[index]))
            t->touch(t->touch_ctx, &t->objects[index]);
        /* Others will follow it. Who cleared the page was another core, often. */
        cache_warm_to_write(&t->objects[MIN(index + RECORDS_WARM, t->max - 1)], sizeof(t->objects[index]));
    }
    return index;
}

/* RECORD_NONE: there is no room. */
static uint32_t record_take(struct record_table *t)
{
    uint32_t index = record_take_free(t);

    if (index == RECORD_NONE)
        return index;
    t->objects[index].hot = (struct record_hot){.seg_prev = RECORD_NONE, .seg_next = RECORD_NONE};
    t->objects[index].node = (struct policy_node){0};
    t->n_used++;
    return index;
}

int record_new(struct record_table *t, const struct tiering_id *id, uint64_t hash, uint32_t *ret_index)
{
    uint32_t index = record_take(t);

    if (index == RECORD_NONE)
        return -ENOSPC;
    struct record *r = record_begin(t, index);
    *r = (struct record){.group = id->group,
                         .piece = id->piece,
                         .space = id->space,
                         .part = id->part,
                         .n_parts = id->n_parts,
                         .key_len = id->key_len,
                         .mem_region = RECORD_REGION_NONE,
                         .state = RECORD_RESERVED};
    memcpy(r->key, id->key, sizeof(r->key));
    record_end(t);
    kill_point("record.new");
    record_index(t, index, hash);
    *ret_index = index;
    return 0;
}

int record_new_in_place(struct record_table *t, uint64_t hash, struct record **ret_record, uint32_t *ret_index)
{
    uint32_t index = record_take(t);

    if (index == RECORD_NONE)
        return -ENOSPC;
    record_index(t, index, hash);
    *ret_record = &t->objects[index].record;
    *ret_index = index;
    return 0;
}

void record_unindex(struct record_table *t, uint32_t index)
{
    uint32_t mask = t->n_slots - 1;
    uint32_t hole = (uint32_t)record_hash(t, &t->objects[index].record) & mask;

    while ((t->slots[hole] & mask) != index + 1) {
        if (!t->slots[hole])
            return; /* it was taken out before */
        hole = (hole + 1) & mask;
    }
    /* Pull every later entry of the run back that may move to the hole without passing its home slot. */
    for (uint32_t at = (hole + 1) & mask; t->slots[at]; at = (at + 1) & mask) {
        uint32_t home = (uint32_t)record_hash(t, &t->objects[slot_index(t, t->slots[at])].record) & mask;

        if (((at - home) & mask) >= ((at - hole) & mask)) {
            t->slots[hole] = t->slots[at];
            hole = at;
        }
    }
    kill_point("record.unindex");
    t->slots[hole] = 0;
}

void record_free(struct record_table *t, uint32_t index)
{
    record_begin(t, index)->state = RECORD_FREE;
    record_end(t);
    kill_point("record.free");
    t->objects[index].hot = (struct record_hot){.seg_prev = RECORD_NONE, .seg_next = t->free_head};
    t->free_head = index;
    t->n_used--;
}

void record_ring_add(struct record_table *t, uint32_t head, uint32_t index)
{
    struct record_hot *hot = &t->objects[index].hot;

    hot->seg_next = hot->seg_prev = index;
    if (head == RECORD_NONE)
        return;
    struct record_hot *first = &t->objects[head].hot;
    hot->seg_next = head;
    hot->seg_prev = first->seg_prev;
    t->objects[hot->seg_prev].hot.seg_next = index;
    first->seg_prev = index;
}

void record_ring_remove(struct record_table *t, uint32_t index)
{
    struct record_hot *hot = &t->objects[index].hot;

    t->objects[hot->seg_prev].hot.seg_next = hot->seg_next;
    t->objects[hot->seg_next].hot.seg_prev = hot->seg_prev;
    hot->seg_prev = hot->seg_next = RECORD_NONE;
}

uint32_t record_ring_after(const struct record_table *t, uint32_t head, uint32_t index)
{
    uint32_t next = t->objects[index].hot.seg_next;

    return next == head ? RECORD_NONE : next;
}

struct record *record_begin(struct record_table *t, uint32_t index)
{
    struct record_header *h = t->header;

    assert(!h->redo_valid);
    h->redo_index = index;
    kill_point("record.begin");
    h->redo = t->objects[index].record;
    kill_point("record.redo");
    return &h->redo;
}

void record_end(struct record_table *t)
{
    struct record_header *h = t->header;

    fence_compiler(); /* the redo slot is whole before it is valid */
    store_relaxed(&h->redo_valid, 1);
    kill_point("record.valid");
    fence_compiler(); /* and stays valid until the record is */
    t->objects[h->redo_index].record = h->redo;
    kill_point("record.copied");
    fence_compiler();
    store_relaxed(&h->redo_valid, 0);
}

uint64_t record_index_bytes(const struct record_table *t)
{
    return (uint64_t)t->n_slots * sizeof(*t->slots);
}
