/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One tiering on a simulated disk, and short words for what tests do with it. Everything that can wait is waited for:
 * the disk steps and the clock goes on until the answer is there.
 *
 * Pool 0 is trusted, pool 1 is shared. A piece is 256 KiB, so objects of several pieces are small.
 */
#pragma once

#include "tests/unit/support/simdisk.h"
#include "tiering/tiering.h"

#define RIG_PIECE ((uint32_t)(256 * KIB))
#define RIG_DEVICES_MAX 4

enum rig_space {
    RIG_CACHE,   /* pool 0 */
    RIG_SCRATCH, /* pool 0 */
    RIG_DURABLE, /* pool 0 */
    RIG_SHARED,  /* pool 1, cache */
    RIG_SHARED_DURABLE,
    RIG_SPACES,
};

struct rig {
    struct simdisk *disk;
    struct tiering *t;
    struct tiering_config config;
    struct tiering_pool_config pools[2];
    struct tiering_space_info spaces[RIG_SPACES];
    struct tiering_session s, other; /* two sessions, of owners 1 and 2 */
    void *records;
    uint64_t now_ns;
    uint32_t n_gone;       /* chunks */
    uint64_t device_bytes; /* of each */
    uint32_t n_devices;
    uint16_t partitions;                                 /* of each; a store for each */
    struct tiering_store_config stores[RIG_DEVICES_MAX]; /* weight 0: as they come */
    uint32_t chunk_kind[64];                             /* by region: enum io_chunk_kind + 1; 0: none */
    uint64_t chunk_session[64];
    uint64_t n_sessions, request;
    bool failed; /* a store */
};

struct rig_memory {
    uint64_t dram_bytes, cxl_bytes; /* of each pool; CXL memory on two nodes, the second three times as large */
    uint64_t device_bytes;
    uint64_t chunk_bytes; /* 0: as large as may be */
    uint16_t partitions;  /* of each device; 0: 1 */
    uint8_t placement;    /* of all classes */
};
#define RIG_CXL_NODE 4 /* and the next one; DRAM is on node 0 */
/* Of all classes, from the next rig_open() on; LRU if nobody sets it. */
extern const struct policy_ops *rig_policy;

struct rig_wait {
    struct tiering_wait wait;
    int status; /* 1: not ended */
};

/* A device of device_bytes (0: none) with segments of 1 MiB, and pools of dram_bytes each. */
void rig_open(struct rig *rig, uint64_t dram_bytes, uint64_t device_bytes);
void rig_open_memory(struct rig *rig, const struct rig_memory *memory);
/* In two steps: between them the config, the pools and the stores can be changed. */
void rig_prepare(struct rig *rig, const struct rig_memory *memory, uint32_t n_devices);
void rig_start(struct rig *rig);
/* Everything in memory is lost; what was not flushed too, if `power`. Opened again. */
void rig_crash(struct rig *rig, bool power);
/* The process dies, and its memory does not; nothing has its end any more. Sessions that return have what they had of what
 * rig_reserve() and rig_acquire() were answered. */
void rig_hot(struct rig *rig, bool s_returns, bool other_returns);
/* In two steps: between them that memory can be changed. */
void rig_hot_end(struct rig *rig);
void rig_hot_start(struct rig *rig, bool s_returns, bool other_returns);
/* Written back, closed in order, opened again. */
void rig_restart(struct rig *rig);
void rig_close(struct rig *rig);

/* Spaces may get other numbers after a restart: ask again then. */
struct tiering_id rig_id(const struct rig *rig, enum rig_space space, uint32_t key);
/* One turn: `io` requests end, time passes, tick. */
void rig_turn(struct rig *rig, uint32_t io, uint64_t ns);
/* Until nothing is in flight. */
void rig_settle(struct rig *rig);
/* To the device, out of memory. */
void rig_evict(struct rig *rig, const struct tiering_id *id);
void rig_wait_init(struct rig_wait *w);
/* What w ended with, after as many turns as it takes; -ETIMEDOUT if it never ends. */
int rig_wait(struct rig *rig, struct rig_wait *w);
uint8_t *rig_memory(struct rig *rig, const struct tiering_grant *grant);
/* Counts balance, and tiering_check() is content. */
void rig_check(struct rig *rig);
/* Bytes of the pools' memory that lie on this node. */
uint64_t rig_node_bytes(const struct rig *rig, uint32_t node);
struct tiering_pool_stat rig_pool_stat(const struct rig *rig, uint32_t pool);

/* As the calls of tiering, waited for; what is granted is in *ret_grant. */
int rig_reserve(struct rig *rig, struct tiering_session *s, const struct tiering_id *id, uint64_t object_bytes,
                uint32_t size_bytes, struct tiering_grant *ret_grant);
int rig_commit(struct rig *rig, struct tiering_session *s, uint64_t lease);
int rig_acquire(struct rig *rig, struct tiering_session *s, const struct tiering_id *id, unsigned flags,
                struct tiering_grant *ret_grant);
int rig_release(struct rig *rig, struct tiering_session *s, uint64_t lease, unsigned flags);
/* The whole way: a block of one piece, filled with a pattern that `seed` chooses. */
int rig_put(struct rig *rig, const struct tiering_id *id, uint32_t size_bytes, uint32_t seed);
/* Reads it, and compares. -EILSEQ: other bytes. */
int rig_get(struct rig *rig, const struct tiering_id *id, uint32_t seed);
/* Writes the pattern to a whole piece of a tensor; releases it dirty. */
int rig_write(struct rig *rig, const struct tiering_id *id, uint32_t seed);
/* SYNC of these, or with n = 0 of the whole space. */
int rig_sync(struct rig *rig, enum rig_space space, const struct tiering_id *ids, uint32_t n);
/* Puts into the first store what tiering is not told of: under the id that `like` has, and as that, but of one piece of so many
 * bytes, with the pattern. May use the reserve. As store_put(), waited for. */
int rig_raw_put(struct rig *rig, const struct store_entry *like, uint32_t size_bytes, uint32_t seed);
void rig_fill(uint8_t *bytes, uint32_t size_bytes, uint32_t seed);
bool rig_is(const uint8_t *bytes, uint32_t size_bytes, uint32_t seed); /* seed 0: zeros */
