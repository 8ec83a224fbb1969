/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the log of one partition leaves alive: a table of pieces by identity, and the spaces. The store fills it while
 * it replays (fsck_pieces_events, ctx is the table), by the rules of tiering/recover.c, but for what depends on the
 * config: nothing is left out here because its pool, its durability or the way the daemon ended would end it.
 */
#pragma once

#include "io/store.h"

#define FSCK_NONE UINT32_MAX

struct fsck_piece {
    struct store_entry entry; /* size_bytes 0: a free place */
    uint32_t bucket_next;     /* or of the free places */
    uint32_t segment_prev, segment_next;
};

struct fsck_pieces {
    uint16_t partition;
    bool prints;
    uint32_t n_segments; /* at most */
    struct fsck_piece *pieces;
    uint32_t n, high, room, free; /* alive; places used so far; allocated; the first free one */
    uint32_t *buckets;
    uint32_t n_buckets; /* a power of two */
    uint32_t *segments; /* the first piece in each */
    struct store_space *spaces;
    uint32_t n_spaces, room_spaces;
    /* Of the log that was read. */
    uint64_t to_lsn, blocks, entries, lsn; /* the last one is of the block that is replayed */
    const char *contradiction;             /* why replay was refused; NULL: not by us */
    int failed;
};

extern const struct store_events fsck_pieces_events;

must_check int fsck_pieces_init(struct fsck_pieces *p, uint16_t partition, uint64_t n_segments, bool prints);
void fsck_pieces_deinit(struct fsck_pieces *p);
/* All that live, by their place. */
must_check int fsck_pieces_sort(const struct fsck_pieces *p, const struct store_entry ***ret_entries);
/* Live pieces of spaces that the log does not tell of. */
uint64_t fsck_pieces_homeless(const struct fsck_pieces *p);
