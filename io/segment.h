/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The segments of one partition: their states, who pays for them, what lives in them, which should be emptied next,
 * and the table of granule checksums. A data structure: no I/O.
 */
#pragma once

#include "include/base/base.h"
#include "io/store.h"
#include "io/superblock.h"

/*
 * FREE       nothing in it counts. -> OPEN
 * OPEN       being filled by one stream of one pool, from its beginning or behind what was put there before. -> CLOSING
 * CLOSING    nothing more is placed in it, but puts are in flight, which an evacuation could not see. -> SEALED
 * SEALED     pieces live in it. -> EVACUATING, EMPTY, OPEN
 * EVACUATING its owner was asked to empty it. -> EMPTY, OPEN
 * EMPTY      nothing lives in it and nobody reads it, but the log does not say so yet. -> FREEING
 * FREEING    the log says so, but perhaps not durably. -> FREE
 * Only segment_set_state() assigns.
 */
enum segment_state {
    SEGMENT_FREE,
    SEGMENT_OPEN,
    SEGMENT_CLOSING,
    SEGMENT_SEALED,
    SEGMENT_EVACUATING,
    SEGMENT_EMPTY,
    SEGMENT_FREEING,
    SEGMENT_STATES,
};

struct segment {
    uint32_t prev, next;   /* of the list that its state (SEALED: also its pool and live bytes) puts it in */
    uint32_t readers;      /* gets in flight */
    uint16_t live_sectors; /* of pieces, those being written included */
    uint16_t pool;
    uint16_t writers;        /* puts in flight */
    uint16_t placed_sectors; /* of pieces, dead or alive, since it was opened */
    uint8_t state;
    uint8_t durability;
    uint8_t bucket;
    uint8_t sums_loaded : 1;  /* the table has what the device has, or better */
    uint8_t sums_dirty : 1;   /* and the device lacks something of it */
    uint8_t sums_durable : 1; /* of a durable piece: must not wait for sealing */
    uint8_t touched : 1;      /* recovery: the log has put something there */
    union {
        uint64_t freed_seq;  /* FREEING: position of its entry in the log's queue */
        uint32_t end_sector; /* others but OPEN: where nothing was put that the log may know of */
    };
};

struct segment_list {
    uint32_t first, last;
};

/*
 * Sealed segments by how much of them lives, in sixteenths; in each, those that came first, first. Of the segment for
 * what would have to be copied; for `cache`, which is dropped, of what was placed in it: so what has no dead goes in
 * the order of its age, whatever room was left at segments' ends.
 */
#define SEGMENT_BUCKETS 17

struct segment_pool {
    uint64_t budget_bytes;
    uint32_t n_segments;   /* that it pays for: all but FREE */
    uint32_t n_reclaiming; /* of these EVACUATING, EMPTY or FREEING */
    uint32_t n_evacuating;
    uint32_t n_copying; /* of these not of `cache`: what lives in them is copied */
    uint32_t n_kept;    /* not of `cache` */
    uint32_t n_closing;
    uint64_t dead_sectors;   /* in SEALED segments that are not of `cache`: what copying could free */
    uint32_t n_sealed_cache; /* SEALED, of durability STORE_CACHE */
    uint32_t roomiest[2];    /* of scratch, of durable: SEALED, with the most room behind its end; NONE, or UNKNOWN */
    struct segment_list bucket[2][SEGMENT_BUCKETS]; /* [0] cache, [1] the others */
};

struct segment_table {
    uint32_t n;
    uint32_t n_pools;
    uint32_t segment_sectors;
    uint32_t segment_bytes;
    uint32_t slots;
    uint32_t reserve; /* free segments that only evacuation may take */
    uint32_t count[SEGMENT_STATES];
    struct segment *segments;
    struct segment_pool *pools;
    struct segment_list list[SEGMENT_STATES]; /* FREE, EMPTY, FREEING */
    uint64_t *sums;                           /* n * slots */
};

must_check int segment_table_init(struct segment_table *t, const struct geometry *g, uint32_t n_pools);
void segment_table_deinit(struct segment_table *t);

void segment_set_state(struct segment_table *t, uint32_t segment, enum segment_state state);
/* Adds to (or takes from) what lives in a segment. */
void segment_live_add(struct segment_table *t, uint32_t segment, uint32_t sectors);
void segment_live_sub(struct segment_table *t, uint32_t segment, uint32_t sectors);

/*
 * A free segment for this pool, now OPEN. For what is not `cache` to be copied out of full segments, a pool needs
 * segments to copy to: these are kept from its own puts, and count as use. -EAGAIN: none now, but something of the pool (or of all pools, if the
 * partition is full) is being reclaimed or could be; -ENOSPC: nothing could.
 */
must_check int segment_take(struct segment_table *t, uint32_t pool, uint8_t durability, bool evacuating,
                            uint32_t *ret_segment);

/*
 * Without a free one: a SEALED segment, not of `cache`, with this much room behind its end; OPEN again. What is copied may
 * always have it. So what a stream leaves of its segment, because others needed the room or the process died, is not lost:
 * however often that comes between, the copies of a segment go on where they stopped. What is copied may, where there is
 * none, have an EVACUATING one: it is no longer emptied then. Else all that have room could be on their way out, and their
 * pieces have nowhere to go. At last it may have one of the other durability, which is the higher one's then. -ENOSPC.
 */
must_check int segment_reopen(struct segment_table *t, uint32_t pool, uint8_t durability, bool evacuating,
                              uint32_t sectors, uint32_t *ret_segment);
/* Recovery: this one counts as such as soon as its sums are loaded. */
bool segment_could_be_filled(const struct segment_table *t, uint32_t segment);
void segment_sums_there(struct segment_table *t, uint32_t segment);

/* The segment whose emptying costs the least, STORE_SEGMENT_NONE if none is worth it now. pool: or POOL_ANY. */
#define SEGMENT_POOL_ANY UINT32_MAX
uint32_t segment_victim(const struct segment_table *t, uint32_t pool);
/* Is there room for what lives in it, beside what is being copied already? For the first there always is: nothing else could
 * make some. */
bool segment_copy_fits(const struct segment_table *t, uint32_t segment);
/* The segment of `cache` to drop for the sake of its entries in the log, from the pool that has most; NONE: none. */
uint32_t segment_cache_victim(const struct segment_table *t);
/* How many segments more this pool, or the partition, should be emptying now. */
/* What is put for the pool next costs something else its place, now or soon. */
bool segment_pool_is_full(const struct segment_table *t, uint32_t pool);
/* Why segment_take() has none to give, other than for copies. A budget of all there is counts as the device's end. */
enum segment_lack { SEGMENT_LACKS_NOTHING, SEGMENT_LACKS_BUDGET, SEGMENT_LACKS_FREE };
enum segment_lack segment_lack(const struct segment_table *t, uint32_t pool);
bool segment_pool_wants_reclaim(const struct segment_table *t, uint32_t pool);
bool segment_table_wants_reclaim(const struct segment_table *t);

static inline uint32_t segment_first(const struct segment_table *t, enum segment_state state)
{
    return t->list[state].first;
}

/*
 * Where the granule checksums of a piece of more than one granule lie. A slot stands for 8 sectors (32 KiB).
 *
 * They never overlap and always fit: let a piece of n >= 2 granules take the sectors [a, b). It is longer than n - 1
 * granules, so b - a >= 16 (n - 1) + 1, hence ceil(b/8) >= ceil(a/8) + 2 (n - 1) >= ceil(a/8) + n. It uses the slots
 * ceil(a/8) to ceil(a/8) + n - 1, all smaller than ceil(b/8). The next piece begins at b or later, so its slots begin
 * at ceil(b/8) or later; and b is at most the segment's end, so the last slot is smaller than the number of slots.
 */
static inline uint64_t *segment_sums(const struct segment_table *t, struct store_loc loc)
{
    return t->sums + (uint64_t)loc.segment * t->slots + div_round_up(loc.sector, FORMAT_SLOT_SECTORS);
}

/* Recovery: something of this pool lives here. -EINVAL if another pool's does, or more than fits. */
must_check int segment_adopt(struct segment_table *t, uint32_t segment, uint32_t pool, uint8_t durability,
                             uint32_t sectors);
