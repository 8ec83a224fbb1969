/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A load on a daemon's device through a queue: so many requests outstanding, each for a list of blocks, fetched or stored
 * as fast as they are answered. Blocks carry a stamp of their number at both ends, which is checked: enough to know that
 * the right bytes came, and too little to cost time.
 */
#pragma once

#include "client/bench/hist.h"
#include "include/spillway/spillway.h"

#define DISK_DEPTH_MAX 32
#define DISK_LIST_MAX 16
#define DISK_SLOTS (2 * DISK_DEPTH_MAX) /* while the leases of one are given back, another asks */

struct disk_slot {
    uint64_t ids[DISK_LIST_MAX], sizes[DISK_LIST_MAX], start_ns, bytes;
    struct spw_key keys[DISK_LIST_MAX];
    struct spw_view views[DISK_LIST_MAX];
    bool is_reserved;  /* spilling: the commit is on its way */
    bool is_releasing; /* fetching: the leases are on their way back */
};

/* Sizes from block_bytes_min to block_bytes, multiples of block_bytes_min; one size if both are equal. */
struct disk_load {
    spw_space *space; /* without a size of its own */
    spw_queue *queue; /* of DISK_SLOTS jobs */
    uint64_t seed, block_bytes_min, block_bytes;
    unsigned depth, list;
    uint64_t n_stored;  /* blocks 0 to n_stored - 1 can be fetched */
    uint64_t next;      /* fetching: position in the round; spilling: the next number */
    uint64_t stride;    /* fetching: coprime to the number of lists, so that a round looks random */
    struct hist *hist;  /* of requests, in nanoseconds */
    uint64_t n_fetched; /* bytes that came from the device */
    uint64_t bytes;     /* all that was answered */
    uint64_t total;     /* the same, never started anew: another process may look at it */
    struct disk_slot slots[DISK_SLOTS];
    struct disk_slot *free[DISK_SLOTS];
    unsigned n_free, n_asked, n_releasing;
};

/* Both run until that many bytes or seconds (0: no limit), whichever is first; 0 or a negative errno (said; -EBADMSG:
 * wrong bytes). hist, n_fetched and bytes start anew. */
must_check int disk_load_fetch(struct disk_load *load, uint64_t bytes, double seconds);
must_check int disk_load_spill(struct disk_load *load, uint64_t bytes, double seconds);
/* Forgets blocks first to end - 1. */
must_check int disk_load_delete(struct disk_load *load, uint64_t first, uint64_t end);
/* Sets stride and next for blocks 0 to n - 1. */
void disk_load_stored(struct disk_load *load, uint64_t n);
