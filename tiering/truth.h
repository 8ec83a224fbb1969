/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory of an engine that outlives its process: what is the truth about it, and cannot be derived from anything
 * else. It is the owner's (a memfd that somebody keeps), never passed to a client, and used in place: there is no other
 * copy that could be newer.
 *
 *   header    layout, sizes, hash seed, counters
 *   spaces    records name them by their index
 *   chunks    by region: which memory there is, whose it is
 *   leases    the lease table itself (struct lease)
 *   records   the record table (record.h), with its redo slot
 *
 * A SIGKILL may come between any two stores. A record changes through the redo slot. Whatever else consists of several
 * words has one that says whether it counts, stored last when it is made, and first when it ends: n_spaces, a chunk's
 * is_used, a lease's mode. As with the redo slot the order of one thread's stores is all that matters, so compiler
 * fences are enough.
 *
 * TRUTH_LAYOUT is raised whenever a word here, in struct lease or in struct record moves or changes its meaning. A
 * process that finds another number does not believe a word of it.
 */
#pragma once

#include "include/base/base.h"
#include "include/base/limits.h"
#include "io/backend.h"
#include "tiering/record.h"

#define TRUTH_MAGIC UINT64_C(0x31544f484c495053) /* "SPILHOT1" */
#define TRUTH_LAYOUT 2

/* Of a store, by its number: records name it by that. */
struct truth_store {
    uint64_t uuid[2];
    uint32_t partition;
    uint32_t reserved;
};

struct truth_header {
    uint64_t magic; /* TRUTH_MAGIC: all of it is there. Stored last when a cold engine has started */
    uint32_t layout;
    uint32_t max_objects, max_leases;
    uint32_t piece_bytes;
    uint32_t n_spaces;
    uint32_t next_epoch; /* of chunks: never given twice */
    uint64_t hash_seed;
    uint32_t n_stores;
    uint32_t reserved;
    struct truth_store stores[DEVICES_MAX];
};
static_assert(sizeof(struct truth_header) <= TIERING_RECORD_HEADER_BYTES, "it has the first page");

struct truth_space {
    uint64_t id;
    uint64_t item_bytes;
    uint8_t digest[32];
    char pool[NAME_BYTES_MAX + 1];
    uint8_t class_id;
    uint8_t durability;
    uint8_t reserved[14];
};
static_assert(sizeof(struct truth_space) == 128, "space");

struct truth_chunk {
    uint32_t epoch; /* the last that the region had, in use or not */
    uint32_t node;  /* the kernel's number */
    uint64_t size_bytes;
    uint64_t session; /* IO_CHUNK_PRIVATE: whose */
    char pool[NAME_BYTES_MAX + 1];
    uint8_t kind; /* enum io_chunk_kind */
    uint8_t tier; /* enum mem_tier */
    uint8_t is_used;
    uint8_t reserved[37];
};
static_assert(sizeof(struct truth_chunk) == 128, "chunk");

struct lease;

/* Where the parts lie. */
struct truth {
    struct truth_header *header;
    struct truth_space *spaces; /* SPACES_MAX */
    struct truth_chunk *chunks; /* CHUNKS_MAX */
    struct lease *leases;       /* max_leases */
    void *records;
};

void truth_at(struct truth *ret_truth, void *memory, uint32_t max_leases);
/* Is the memory what an engine of these sizes left? NULL, or why not. */
const char *truth_distrust(const void *memory, uint32_t max_objects, uint32_t max_leases);
