/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Extents of memory: which sectors of which chunk are in use, and by which record.
 *
 * Exact sizes: an extent has as many sectors as the piece needs. Extents of one size share slabs. A slab is a run of
 * frames (1 MiB each) that never crosses an I/O window; its length is chosen so that the tail that is too short for
 * one more extent wastes as little as possible (at most 1 % for multiples of 64 KiB), between 16 and 128 MiB, less in
 * a small arena. The first slabs of a size are short, and double: a size that is rare holds little memory. A slab whose
 * last extent is freed gives its frames back, so sizes do not hold memory for ever. Where each slab has an extent that
 * must stay, frames between those can be cut out of it (arena_cut()).
 *
 * An arena is one budget's memory on one kind of node: a pool's, or one session's private memory. It is pure
 * bookkeeping: nothing here touches the memory. Engine thread only.
 *
 * A chunk that is closing has left the arena's sums and gives nothing out any more: what is freed there stays free, and
 * once all of it is, the chunk can be removed.
 */
#pragma once

#include "include/base/base.h"
#include "include/base/limits.h"
#include "include/base/list.h"

#define FRAME_BYTES MIB
#define FRAME_SECTORS ((uint32_t)(FRAME_BYTES / SECTOR_BYTES))
#define EXTENT_SECTORS_MAX ((uint32_t)(PIECE_BYTES_MAX / SECTOR_BYTES))
#define ARENA_OWNER_NONE UINT32_MAX

struct arena_slab {
    struct list link;     /* its size's slabs that have room; unlinked when full */
    uint32_t first_frame; /* == its index in the chunk's array */
    uint32_t sectors;     /* of an extent */
    uint16_t n_frames, n_extents, n_used;
    uint16_t hint; /* word of the bitmap where a free extent was last seen */
    uint16_t lead; /* sectors before the first extent, if it was cut off from another slab: less than a frame */
};

/* A place in a walk over a chunk's extents; zeroed at its start. */
struct arena_cursor {
    uint32_t frame, extent;
};

struct arena_chunk {
    struct list link;
    struct arena *arena;
    uint32_t region, epoch;
    uint32_t node; /* the caller's */
    uint32_t n_frames, n_free;
    bool closing;
    struct arena_cursor scan; /* the caller's: how far a closing chunk has been looked through */
    uint32_t *slab_of;        /* frame → first frame of its slab + 1, or 0 */
    struct arena_slab *slabs; /* by first frame */
    uint64_t *used;           /* bitmaps: FRAME_SECTORS bits for each frame of a slab */
    uint32_t *owner;          /* FRAME_SECTORS entries for each frame: the record of extent i of the slab */
};

struct arena {
    struct list chunks;
    struct list *partial; /* by sectors: slabs with room */
    uint32_t *frames_of;  /* by sectors: frames of all its slabs */
    uint64_t total_sectors, used_sectors, slab_sectors;
    uint32_t free_frames, total_frames;
    uint64_t closing_sectors, closing_used_sectors; /* of closing chunks, which the sums above leave out */
    bool stripe;                                    /* new slabs go round the chunks: they lie on several nodes */
};

struct arena_extent {
    uint32_t region;
    uint32_t sector;
};

must_check int arena_init(struct arena *a);
void arena_deinit(struct arena *a);

/* Adds memory of size_bytes (rounded down to frames). -ENOMEM. The chunk is freed by arena_deinit(). */
must_check int arena_chunk_add(struct arena *a, uint32_t region, uint32_t epoch, uint64_t size_bytes,
                               struct arena_chunk **ret_chunk);

/*
 * The maps of a fresh chunk, from the extents that are in use in it: at[sector] is 0, or what extent() turns into the owner
 * and the length. Slabs come out shorter than they were, and as useful. -EUCLEAN: no slabs could have held these.
 */
typedef void (*arena_extent_fn)(void *ctx, uint32_t what, uint32_t *ret_owner, uint32_t *ret_sectors);
must_check int arena_chunk_restore(struct arena_chunk *c, const uint32_t *at, arena_extent_fn extent, void *ctx);

/* -ENOSPC: neither a slab of this size with room nor frames for a new one. */
must_check int arena_alloc(struct arena *a, uint32_t sectors, uint32_t owner, struct arena_chunk **ret_chunk,
                           uint32_t *ret_sector);
void arena_free(struct arena_chunk *c, uint32_t sector);
/* Has a slab of this size room? */
bool arena_has_room(const struct arena *a, uint32_t sectors);

/* Nothing more is given out from it. */
void arena_chunk_close(struct arena_chunk *c);
/* The opposite: the chunk serves again. */
void arena_chunk_reopen(struct arena_chunk *c);
/* It is closing, and nothing in it is in use. */
bool arena_chunk_is_empty(const struct arena_chunk *c);
/* Frees an empty one. */
void arena_chunk_remove(struct arena_chunk *c);
/* The owner of the next extent in use from the cursor on, which moves behind it. False: the end, the cursor is back at
 * the start. */
bool arena_chunk_next(const struct arena_chunk *c, struct arena_cursor *cursor, uint32_t *ret_owner,
                      uint32_t *ret_sector);

/* Does a slab hold this sector? Its last extent's end is the slab's. */
bool arena_has_slab(const struct arena_chunk *c, uint32_t sector);
/* The record that owns the extent at this sector. */
uint32_t arena_owner(const struct arena_chunk *c, uint32_t sector);

/*
 * A run of n frames that could be emptied: the first in which no slab is stuck, as the caller says. *ret_first is a
 * frame; slabs may reach over either end of the run. False if there is none.
 */
typedef bool (*arena_stuck_fn)(void *ctx, const struct arena_chunk *c, const struct arena_slab *s);
bool arena_find_clearable(const struct arena *a, uint32_t n_frames, arena_stuck_fn is_stuck, void *ctx,
                          struct arena_chunk **ret_chunk, uint32_t *ret_first);

/* All owners in the slab that holds `sector`: up to n of them from extent *cursor on; advances *cursor. Returns how
 * many, 0 at the end. For emptying a slab of another size. */
uint32_t arena_slab_owners(const struct arena_chunk *c, uint32_t sector, uint32_t *cursor, uint32_t *ret_owners,
                           uint32_t n);

/* --- Cutting: frames come back out of slabs that must stay, since some of their extents must --- */

/* The owner of an extent must stay where it is. */
typedef bool (*arena_owner_fn)(void *ctx, uint32_t owner);
/* As arena_find_clearable(), but from between the extents that must stay, whichever slabs they are in. */
bool arena_find_cuttable(const struct arena *a, uint32_t n_frames, arena_owner_fn is_stuck, void *ctx,
                         struct arena_chunk **ret_chunk, uint32_t *ret_first);
/* All owners of extents that reach into this run of frames, as arena_slab_owners(). */
uint32_t arena_run_owners(const struct arena_chunk *c, uint32_t first, uint32_t n_frames, uint32_t *cursor,
                          uint32_t *ret_owners, uint32_t n);
/* The run becomes free frames. False, and nothing done: an extent in use reaches into it, or the chunk is closing. */
bool arena_cut(struct arena_chunk *c, uint32_t first, uint32_t n_frames);

/* Bytes of slabs that no extent of their size can use. */
uint64_t arena_tail_waste_bytes(const struct arena *a);
/* How many frames a slab for extents of this size has, if it may have up to max_frames. */
uint32_t arena_slab_frames(uint32_t sectors, uint32_t max_frames);
/* How many frames of an arena of so many hold n extents of this size, the last slab being no longer than it must. */
uint64_t arena_frames_of(uint32_t sectors, uint64_t n, uint64_t total_frames);
