/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one table of operations through which the deciding code (tiering/, and the on-device format in io/store*.c and
 * io/log.c) touches the world. The daemon implements it with io_uring, worker threads and memfds (io/uring.c); the
 * simulator implements it with arrays and a seeded scheduler, so the same deciding code runs in both.
 *
 * Rules of the seam
 * - Every request is a struct that the caller owns and keeps until its done() was called. Nothing is allocated here.
 * - done() is called from the backend's dispatch, on the engine's own thread, never from within a submit call. It may
 *   submit further requests.
 * - Bytes are named by region and offset, never by address: a region is a chunk of a pool, or the backend's bounce
 *   memory. An address appears only where the deciding code itself reads or writes the bytes (bounce memory).
 * - A backend belongs to one engine thread; none of these functions may be called from another.
 */
#pragma once

#include "include/base/base.h"
#include "include/base/limits.h"
#include "include/base/list.h"

#define IO_REGION_NONE UINT32_MAX

/* Bytes that I/O and workers can reach. `off` is in bytes; for device I/O a multiple of SECTOR_BYTES. */
struct io_buf {
    uint32_t region;
    uint32_t reserved;
    uint64_t off;
};

enum io_blk_op {
    IO_BLK_READ,
    IO_BLK_WRITE,
    IO_BLK_FLUSH, /* everything written and completed before this was submitted is on stable storage after it */
};

/* Requests of equal urgency share a device by the weights of their lanes: one a pool, one for the daemon's own (log,
 * checksums, reclaim). One pool more than are configured: what lies on devices of those that no longer are. */
#define IO_LANE_OWN 0
#define IO_LANES (POOLS_MAX + 2)

static inline uint16_t io_lane_of(uint32_t pool)
{
    return (uint16_t)(pool + 1);
}

/* Users share a lane's reads that they wait for, evenly. 0 is nobody in particular; of many users some have one place. */
#define IO_USERS 16

static inline uint8_t io_user_of(uint32_t user)
{
    return user == 0 ? 0 : (uint8_t)(1 + (user - 1) % (IO_USERS - 1));
}

/*
 * One device request. off, len and buf.off are multiples of SECTOR_BYTES. `result` is the number of bytes (which may
 * be short: the caller resubmits the rest or fails), or a negative errno. For IO_BLK_FLUSH 0 or a negative errno.
 */
struct io_blk {
    struct list link; /* the backend's while submitted */
    uint8_t op;
    uint8_t urgent; /* a client waits for it: goes before background requests that are queued */
    uint16_t dev;
    uint32_t len_bytes;
    uint64_t off_bytes;
    struct io_buf buf;
    int32_t result;
    uint16_t lane;  /* whose share of the device it uses: IO_LANE_OWN, or io_lane_of(pool) */
    uint8_t queued; /* the backend's; 0 before it is submitted */
    uint8_t user;   /* io_user_of() who waits for it */
    void (*done)(struct io_blk *blk);
};

enum io_work_op {
    IO_WORK_HASH,      /* sums[] of src */
    IO_WORK_COPY,      /* src to dst */
    IO_WORK_COPY_HASH, /* src to dst and sums[] of what was copied, in one pass */
};

/*
 * One job for the worker threads: a copy, a hash of each granule (io/checksum.h), or both. sums has room for
 * ceil(len_bytes / GRANULE_BYTES) values. `result` is 0, or -EFAULT when the memory went away under the worker (a
 * client punched a hole in a file that it may write, say).
 */
struct io_work {
    struct list link;
    uint8_t op;
    uint32_t len_bytes;
    struct io_buf src, dst;
    uint64_t seed; /* of the first granule's checksum; see checksum_seed() */
    uint32_t first_granule;
    uint64_t *sums;
    int32_t result;
    void (*done)(struct io_work *work);
};

enum io_chunk_kind {
    IO_CHUNK_TRUSTED, /* every session of the (trusted) pool may map it for writing */
    IO_CHUNK_SHARED,  /* sessions may map it for reading; only the daemon writes */
    IO_CHUNK_PRIVATE, /* one session maps it for writing */
};

/*
 * Asks for memory. It takes as long as touching its pages takes, on another thread. On success result is 0, region and
 * size_bytes are set (size_bytes may be smaller than asked for, never 0); else a negative errno.
 */
struct io_chunk {
    struct list link;
    uint8_t kind;
    uint32_t node; /* NUMA node, or UINT32_MAX for any */
    uint64_t size_bytes;
    uint32_t region;
    int32_t result;
    void (*done)(struct io_chunk *chunk);
};

enum io_dma_op {
    IO_DMA_SPILL,  /* memory of a GPU's lane to regions */
    IO_DMA_FETCH,  /* the other way */
    IO_DMA_CANCEL, /* the lane is over: its uses that have not ended do, with -ECANCELED. No runs; result 0 */
};

/* Bytes that are contiguous in the region and in the GPU's memory. */
struct io_dma_run {
    uint32_t region, epoch;
    uint64_t off_bytes;
    uint32_t len_bytes;
    uint32_t reserved;
};

/*
 * One use of a lane (include/spillway/abi.h, "Moving a GPU's bytes"). Uses of a lane's direction are submitted in the order of
 * their sequences. The runs lie one behind the other, from base_bytes on: in the slot, or in a direct lane's allocation. The
 * backend asks for them when it has room for
 * all, so nobody keeps a table: run_first() begins anew, and run_next() tells the n_runs runs one by one. No run crosses
 * a multiple of WINDOW_BYTES in its region. `result` is 0, or a negative errno: then the lane is over, and what the runs
 * hold is unknown (spill). Nobody touches the bytes any more once done() is called.
 */
struct io_dma {
    struct list link; /* the backend's while submitted */
    uint8_t op;
    uint8_t reserved0;
    uint16_t reserved1;
    uint32_t gpu, lane;
    uint32_t n_runs;
    uint64_t seq;
    uint64_t base_bytes;
    uint64_t bytes; /* of all runs */
    uint64_t expires_ns;
    int32_t result;
    void (*run_first)(struct io_dma *dma);
    void (*run_next)(struct io_dma *dma, struct io_dma_run *ret_run);
    void (*done)(struct io_dma *dma);
};

enum io_ahead_op {
    IO_AHEAD_READ,  /* as blk_now() */
    IO_AHEAD_TOUCH, /* as records_touch() */
};

/*
 * What goes on while its owner does something else, for opening and recovery only. dev to len_bytes are as for what it
 * stands for. Until ahead_wait() has returned the memory is not the owner's, and the struct stays where it is.
 */
struct io_ahead {
    struct list link; /* the backend's, like `state` */
    uint8_t op;
    uint8_t state;
    uint16_t reserved;
    uint32_t dev;
    uint64_t off_bytes;
    void *mem;
    uint64_t len_bytes;
    int32_t result; /* what ahead_wait() returns */
};

struct io_backend;

struct io_backend_ops {
    void (*blk_submit)(struct io_backend *be, struct io_blk *blk);
    /* A client waits for it from now on: urgent, if it is still queued. It was submitted, or its `queued` is 0. */
    void (*blk_urge)(struct io_backend *be, struct io_blk *blk);
    void (*work_submit)(struct io_backend *be, struct io_work *work);
    void (*chunk_request)(struct io_backend *be, struct io_chunk *chunk);
    /* How large the chunk is that a process before this one had as that region, and that is still there; 0: it is not. Only
     * while starting. */
    uint64_t (*chunk_survived)(struct io_backend *be, uint32_t region);
    /* No I/O or work may be in flight on it. Clients' mappings live on, but the memory goes back to the machine. */
    void (*chunk_close)(struct io_backend *be, uint32_t region);

    /* Ends with -EIO if that GPU is not there now. */
    void (*dma_submit)(struct io_backend *be, struct io_dma *dma);

    /* Memory of the daemon's own that I/O can reach, zeroed; only while starting. It lives as long as the backend. */
    int (*bounce_alloc)(struct io_backend *be, uint64_t size_bytes, struct io_buf *ret_buf, void **ret_mem);

    /* This part of the owner's records will be used from now on, at random: whatever makes that cheap. It begins and ends at
     * multiples of 2 MiB. */
    void (*records_touch)(struct io_backend *be, void *mem, uint64_t size_bytes);

    /*
     * Blocking device access, for opening, recovery and the last words before closing only. mem and len_bytes are
     * aligned to SECTOR_BYTES. Returns 0 if all bytes were moved, or a negative errno (a short transfer is -EIO).
     */
    int (*blk_now)(struct io_backend *be, enum io_blk_op op, uint32_t dev, uint64_t off_bytes, void *mem,
                   uint64_t len_bytes);

    /*
     * Work ahead. All three, or ahead_begin() is NULL: then it is done when it is needed. For each job that was begun there
     * is one ahead_wait(). ahead_over() ends all of them, and what is kept for them, until the next one.
     */
    void (*ahead_begin)(struct io_backend *be, struct io_ahead *ahead);
    int (*ahead_wait)(struct io_backend *be, struct io_ahead *ahead);
    void (*ahead_over)(struct io_backend *be);
};

struct io_backend {
    const struct io_backend_ops *ops;
};
