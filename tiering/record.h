/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The array of object records: the one truth about which pieces exist and where their bytes are.
 *
 * It lies in memory that is never passed to a client. Everything else (index, lists, free maps, policies) is derived
 * from it and can be rebuilt by a scan. A record is changed through record_begin() and record_end(): the new version is
 * written to a redo slot in the header, marked valid, copied over the old one, and unmarked. A SIGKILL between any two
 * stores therefore leaves the old record or the new one: record_table_recover() finishes a marked copy. Only the order
 * of one thread's stores matters for that, since the memory itself survives; so compiler fences are enough.
 *
 * Behind each record, derived: the policy's node (20 bytes) and struct record_hot (12 bytes). 96 + 32 = 128 bytes a
 * piece. With millions of them neither caches nor TLBs hold much of it, so each further line or page that an operation
 * touches is a wait of its own. The hash index is open addressing over 32-bit slots, at most 2/3 full.
 */
#pragma once

#include "include/base/base.h"
#include "include/base/limits.h"
#include "tiering/policy.h"
#include "tiering/tiering.h"

#define RECORD_NONE UINT32_MAX
#define RECORD_REGION_NONE UINT16_MAX
#define RECORD_TOUCH_BYTES (2 * MIB) /* of the table's memory, that become used at a time */

/*
 *   FREE ──▶ RESERVED ──▶ COMMITTED ──▶ DEAD ──▶ FREE
 *                └──────────────────────▶┘
 * DEAD: deleted, no longer in the index, but leases or I/O still use its memory.
 */
enum record_state { RECORD_FREE, RECORD_RESERVED, RECORD_COMMITTED, RECORD_DEAD };

enum {
    RECORD_HAS_MEM = 1 << 0, /* mem_region, mem_sector are valid, and hold the current bytes (if COMMITTED) */
    RECORD_HAS_DEV = 1 << 1, /* dev_*, generation, sum are valid, and hold the current bytes: it is clean */
    RECORD_TENSOR = 1 << 2,
    RECORD_INCOMPLETE = 1 << 3, /* other parts or pieces of the object are not committed yet: invisible */
    RECORD_TORN = 1 << 4,       /* a writer died in the middle: reads are -EBADMSG */
    RECORD_ZERO = 1 << 5,       /* never written: reads as zeros without I/O */
};

struct record {
    uint8_t key[KEY_BYTES_MAX];
    uint32_t group;
    uint32_t piece;
    uint64_t generation;
    uint64_t sum;
    uint64_t object_bytes;
    uint32_t size_bytes;
    uint32_t space; /* index */
    union {
        uint32_t owner;      /* `scratch`: with whose end it ends */
        uint32_t first_back; /* `durable`: its generation less that of the first copy it had; UINT32_MAX: who knows */
    };
    uint32_t mem_sector;
    uint32_t dev_segment;
    uint16_t mem_region;
    uint16_t dev_sector;
    uint16_t part;
    uint16_t n_parts;
    uint8_t dev_store;
    uint8_t key_len;
    uint8_t state;
    uint8_t flags;
};
static_assert(sizeof(struct record) == TIERING_RECORD_BYTES, "the array is sized by it");

enum {
    HOT_IN_POLICY = 1 << 0,
    HOT_LOADING = 1 << 1,  /* a move brings its bytes to memory; its number is in node.state[0] (not in the policy) */
    HOT_SPILLING = 1 << 2, /* a move writes its bytes to a device: no writer is let in */
    HOT_COUNTED = 1 << 3,  /* advised: so many uses are left (advice.c) */
    HOT_TIMED_PIN = 1 << 4,
    HOT_UNCOMMITTED = 1 << 5, /* written under the transaction of a SYNC that has not ended */
    HOT_RELOCATING = 1 << 6,  /* its copy on the device is on its way to another segment: nothing else is put */
    HOT_MIGRATING = 1 << 7,   /* it is copied to another extent: no writer is let in, nothing is put */
    HOT_SHADOWED = 1 << 8,    /* a durable tensor's piece, changed since the last SYNC: its old copy is kept */
    HOT_RANK = 1 << 9,        /* advised: three bits */
    HOT_WRITER = 1 << 12,     /* one write lease: the upper four bits count them */
};

#define HOT_WRITERS_MAX 15
#define HOT_PINS_MAX 16383
#define HOT_RANK_MASK (7 * HOT_RANK)
#define HOT_RANK_CREDITS 6 /* 1 to 6: so often is it passed over when it is the victim */
#define HOT_RANK_FIRST 7   /* leaves memory as soon as nothing holds it */
/* A put of it is under way, or waits for its SYNC's commit: another would have a larger generation. */
#define HOT_PUT (HOT_SPILLING | HOT_RELOCATING | HOT_UNCOMMITTED)

struct record_hot {
    uint32_t seg_prev, seg_next; /* the ring of its device segment; of what is on none, of its space (dirty.c) */
    uint16_t pins : 14;          /* leases and I/O on its memory */
    uint16_t is_tried : 1;       /* on a device though its policy gave no hope, and not found there yet (evict.c) */
    uint16_t is_warm : 1;        /* asked for since it came to its tier, or since a promotion has passed over it */
    uint16_t flags;
};

static inline uint32_t hot_rank(const struct record_hot *hot)
{
    return (hot->flags & HOT_RANK_MASK) / HOT_RANK;
}

static inline uint32_t hot_writers(const struct record_hot *hot)
{
    return hot->flags / HOT_WRITER;
}

/* What serving an object touches lies together: two cache lines, one page. */
struct record_object {
    struct record record;
    struct record_hot hot;   /* derived */
    struct policy_node node; /* derived */
};
static_assert(sizeof(struct record_object) == TIERING_OBJECT_BYTES, "whole cache lines");

/* First page of the memory. The redo slot is on cache lines of its own. */
struct record_header {
    uint64_t magic;
    uint32_t max;
    uint32_t record_bytes;
    uint32_t high; /* records at and above were never used: nobody need look at their memory */
    uint8_t reserved[108];
    uint32_t redo_valid; /* 1: `redo` is whole and belongs over records[redo_index] */
    uint32_t redo_index;
    uint8_t reserved2[56];
    struct record redo;
};
static_assert(sizeof(struct record_header) <= TIERING_RECORD_HEADER_BYTES, "it has the first page");

struct record_table {
    struct record_header *header; /* borrowed memory: header, objects, slots */
    struct record_object *objects;
    /* Derived. 0: empty. Else record number + 1; in the bits above those that n_slots needs, what the hash has there. */
    uint32_t *slots;
    uint32_t n_slots;
    uint32_t max;
    uint32_t high;      /* as the header's */
    uint32_t free_head; /* list through hot.seg_next */
    uint32_t n_used;
    /* May be NULL: records at and behind this one will be used from now on. */
    void (*touch)(void *ctx, const void *mem);
    void *touch_ctx;
    uint64_t hash_seed; /* secret: clients choose the keys */
};

/* Of its memory. */
uint64_t record_table_bytes(uint32_t max);
/*
 * The memory is zeroed, or that of an earlier table of the same size, and begins a cache line. Of that the records are
 * there then, and a change that was cut off is finished; but nothing is in the index, and nothing is known to be free.
 */
void record_table_init(struct record_table *t, void *memory, uint32_t max, uint64_t hash_seed);
/* Derives the index (of what is RESERVED or COMMITTED) and the list of free records from what an earlier table left. */
void record_table_rebuild(struct record_table *t);

/* What an identity hashes to: index, ghosts and checks share it. Taken from id->hash if that is known. */
uint64_t record_hash_id(const struct record_table *t, const struct tiering_id *id);
uint64_t record_hash(const struct record_table *t, const struct record *r);

/* RECORD_NONE if it is not in the index. */
uint32_t record_find(const struct record_table *t, const struct tiering_id *id, uint64_t hash);
/* The next record whose hash has this lower half, from *at on (hash_low at first), which moves behind it; RECORD_NONE. */
uint32_t record_find_low(const struct record_table *t, uint32_t hash_low, uint32_t *at);
/* A fresh RESERVED record in the index (state, key and so on set from id). -ENOSPC. The id is not in the index. */
must_check int record_new(struct record_table *t, const struct tiering_id *id, uint64_t hash, uint32_t *ret_index);
/* The same while a log is replayed: if the process ends, nobody goes on with this memory. So the caller writes all of the
 * record where it is, at once. */
must_check int record_new_in_place(struct record_table *t, uint64_t hash, struct record **ret_record,
                                   uint32_t *ret_index);
/* Out of the index; the record stays until record_free(). */
void record_unindex(struct record_table *t, uint32_t index);
void record_free(struct record_table *t, uint32_t index);

/* Towards the cache: the index slot of a hash; the object behind the slot. */
void record_warm_slot(const struct record_table *t, uint64_t hash);
void record_warm_found(const struct record_table *t, uint64_t hash);
/* The half of it without the key: what the end of a lease needs. */
void record_warm_leased(const struct record_table *t, uint32_t index);
/* What is linked to it in its policy's list, where it moves when it is used: to be called when it has come itself. */
void record_warm_neighbours(const struct record_table *t, uint64_t hash);

/*
 * Rings through hot.seg_next and seg_prev. A record is in one at most: that of its segment, or that of what its space has
 * on no device. `head` is the ring's first, RECORD_NONE if it has none; its owner moves it.
 */
/* Puts one in front of the head: behind the last. */
void record_ring_add(struct record_table *t, uint32_t head, uint32_t index);
void record_ring_remove(struct record_table *t, uint32_t index);
/* RECORD_NONE behind the last. */
uint32_t record_ring_after(const struct record_table *t, uint32_t head, uint32_t index);

/* Change a record: edit what begin returns, then end. One at a time. */
struct record *record_begin(struct record_table *t, uint32_t index);
void record_end(struct record_table *t);

static inline const struct record *record_at(const struct record_table *t, uint32_t index)
{
    return &t->objects[index].record;
}

static inline struct policy_nodes record_nodes(const struct record_table *t)
{
    return (struct policy_nodes){.first = &t->objects[0].node, .stride_bytes = sizeof(t->objects[0])};
}

void record_to_id(const struct record *r, struct tiering_id *ret_id);
uint64_t record_index_bytes(const struct record_table *t);
