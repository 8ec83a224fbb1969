/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the record array's contents, the hash index over it and the list of free records. Engine thread only.
 *
 * The index is linear probing with backward-shift deletion, so there are no tombstones to clean up and a probe ends at
 * the first empty slot. It is sized once; at most 2/3 of its slots are ever used.
 */
#include "tiering/record.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/atomic.h"
#include "io/checksum.h"

#define RECORD_MAGIC UINT64_C(0x31434552574c5053) /* "SPLWREC1" */

/* First page of the memory. The redo slot is on cache lines of its own. */
struct record_header {
    uint64_t magic;
    uint32_t max;
    uint32_t record_bytes;
    uint8_t reserved[112];
    uint32_t redo_valid; /* 1: `redo` is whole and belongs over records[redo_index] */
    uint32_t redo_index;
    uint8_t reserved2[56];
    struct record redo;
};
static_assert(sizeof(struct record_header) <= TIERING_RECORD_HEADER_BYTES, "it has the first page");

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
        t->records[h->redo_index] = h->redo;
    fence_compiler();
    h->redo_valid = 0;
}

int record_table_init(struct record_table *t, void *memory, uint32_t max, uint64_t hash_seed)
{
    uint64_t n_slots = 64;

    assert(max > 0 && max < RECORD_NONE / 2);
    while (n_slots * 2 < (uint64_t)max * 3)
        n_slots *= 2;
    *t = (struct record_table){
        .header = memory, .max = max, .free_head = RECORD_NONE, .n_slots = (uint32_t)n_slots, .hash_seed = hash_seed};
    t->records = (struct record *)(void *)((char *)memory + TIERING_RECORD_HEADER_BYTES);
    t->hot = calloc(max, sizeof(*t->hot));
    t->nodes = calloc(max, sizeof(*t->nodes));
    t->slots = calloc(n_slots, sizeof(*t->slots));
    if (!t->hot || !t->nodes || !t->slots) {
        record_table_deinit(t);
        return -ENOMEM;
    }
    t->header->magic = RECORD_MAGIC;
    t->header->max = max;
    t->header->record_bytes = sizeof(struct record);
    record_table_recover(t);
    return 0;
}

void record_table_deinit(struct record_table *t)
{
    free(t->hot);
    free(t->nodes);
    free(t->slots);
    *t = (struct record_table){0};
}

static bool record_is(const struct record *r, const struct tiering_id *id)
{
    return r->space == id->space && r->group == id->group && r->piece == id->piece && r->part == id->part &&
           r->key_len == id->key_len && memcmp(r->key, id->key, sizeof(r->key)) == 0;
}

uint32_t record_find(const struct record_table *t, const struct tiering_id *id, uint64_t hash)
{
    uint32_t mask = t->n_slots - 1;

    for (uint32_t at = (uint32_t)hash & mask; t->slots[at]; at = (at + 1) & mask) {
        uint32_t index = t->slots[at] - 1;

        if (record_is(&t->records[index], id))
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
    uint32_t slot = t->slots[(uint32_t)hash & (t->n_slots - 1)]; /* most are found where they belong */

    if (slot)
        record_warm(t, slot - 1);
}

void record_warm(const struct record_table *t, uint32_t index)
{
    __builtin_prefetch(&t->records[index]);
    __builtin_prefetch((const char *)&t->records[index] + sizeof(struct record) - 1);
    __builtin_prefetch(&t->hot[index], 1);
    __builtin_prefetch(&t->nodes[index], 1);
}

uint32_t record_find_low(const struct record_table *t, uint32_t hash_low, uint32_t *at)
{
    uint32_t mask = t->n_slots - 1, slot;

    while ((slot = t->slots[*at & mask]) != 0) {
        ++*at;
        if ((uint32_t)record_hash(t, &t->records[slot - 1]) == hash_low)
            return slot - 1;
    }
    return RECORD_NONE;
}

static uint32_t record_take_free(struct record_table *t)
{
    uint32_t index = t->free_head;

    if (index != RECORD_NONE)
        t->free_head = t->hot[index].seg_next;
    else if (t->high < t->max)
        index = t->high++;
    return index;
}

int record_new(struct record_table *t, const struct tiering_id *id, uint64_t hash, uint32_t *ret_index)
{
    uint32_t mask = t->n_slots - 1;
    uint32_t index = record_take_free(t);

    if (index == RECORD_NONE)
        return -ENOSPC;
    t->hot[index] = (struct record_hot){.seg_prev = RECORD_NONE, .seg_next = RECORD_NONE};
    t->nodes[index] = (struct policy_node){0};
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

    uint32_t at = (uint32_t)hash & mask;
    while (t->slots[at])
        at = (at + 1) & mask;
    t->slots[at] = index + 1;
    t->n_used++;
    *ret_index = index;
    return 0;
}

void record_unindex(struct record_table *t, uint32_t index)
{
    uint32_t mask = t->n_slots - 1;
    uint32_t hole = (uint32_t)record_hash(t, &t->records[index]) & mask;

    while (t->slots[hole] != index + 1) {
        if (!t->slots[hole])
            return; /* it was taken out before */
        hole = (hole + 1) & mask;
    }
    /* Pull every later entry of the run back that may move to the hole without passing its home slot. */
    for (uint32_t at = (hole + 1) & mask; t->slots[at]; at = (at + 1) & mask) {
        uint32_t home = (uint32_t)record_hash(t, &t->records[t->slots[at] - 1]) & mask;

        if (((at - home) & mask) >= ((at - hole) & mask)) {
            t->slots[hole] = t->slots[at];
            hole = at;
        }
    }
    t->slots[hole] = 0;
}

void record_free(struct record_table *t, uint32_t index)
{
    record_begin(t, index)->state = RECORD_FREE;
    record_end(t);
    t->hot[index] = (struct record_hot){.seg_prev = RECORD_NONE, .seg_next = t->free_head};
    t->free_head = index;
    t->n_used--;
}

struct record *record_begin(struct record_table *t, uint32_t index)
{
    struct record_header *h = t->header;

    assert(!h->redo_valid);
    h->redo_index = index;
    h->redo = t->records[index];
    return &h->redo;
}

void record_end(struct record_table *t)
{
    struct record_header *h = t->header;

    fence_compiler(); /* the redo slot is whole before it is valid */
    store_relaxed(&h->redo_valid, 1);
    fence_compiler(); /* and stays valid until the record is */
    t->records[h->redo_index] = h->redo;
    fence_compiler();
    store_relaxed(&h->redo_valid, 0);
}

uint64_t record_index_bytes(const struct record_table *t)
{
    return (uint64_t)t->n_slots * sizeof(*t->slots);
}
