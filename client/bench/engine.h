/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An inference engine as Spillway sees it: for each request it looks up the chain of the prompt's blocks, acquires what
 * is there, checks every byte, and stores what is not there. It computes nothing.
 */
#pragma once

#include "client/bench/hist.h"
#include "client/bench/trace.h"
#include "include/spillway/spillway.h"

enum engine_mode {
    ENGINE_PREFIX, /* acquires the longest prefix, as an engine would: what follows a gap is no use to it */
    ENGINE_EACH,   /* acquires every block that is there: for hit rates per reference */
    ENGINE_BLIND,  /* the same, without looking them up before */
};

struct engine_stats {
    uint64_t requests;
    uint64_t blocks;               /* references; the four below add up to it */
    uint64_t hits_dram, hits_nvme; /* acquired; without, with a read from a device */
    uint64_t computed;             /* stored, or was there already behind a gap */
    uint64_t not_stored;           /* computed, but there was no room in time */
    uint64_t behind_gap;           /* part of computed: someone has it, but its prefix was gone */
    uint64_t vanished;             /* promised by the lookup, gone at the acquire */
    uint64_t bytes_verified, bytes_dram, bytes_nvme, bytes_committed;
    uint64_t wrong_blocks, errors;
    struct hist lookup, acquire_dram, acquire_nvme, reserve, commit, release; /* ns a call */
};

struct engine {
    spw_space *space;
    enum engine_mode mode;
    uint64_t seed; /* of keys */
    uint64_t block_bytes;
    uint32_t list_max;   /* blocks of one call: what may be leased at once */
    uint32_t timeout_ms; /* for room and for devices */
    struct engine_stats *stats;
    /* For the longest chain. */
    struct spw_key *keys, *missing;
    struct spw_hit *hits;
    struct spw_view *views;
};

/* Opens the space. dram_bytes is what the pool has: an eighth of it is leased at a time. */
must_check int engine_init(struct engine *engine, spw_pool *pool, enum engine_mode mode, uint64_t seed,
                           uint64_t block_bytes, uint64_t dram_bytes, uint32_t longest_chain);
void engine_deinit(struct engine *engine);

/* One request. Wrong bytes and errors of single blocks are counted and printed; a call that failed is returned. */
must_check int engine_request(struct engine *engine, const uint64_t *ids, uint32_t n);
