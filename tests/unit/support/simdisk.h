/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A backend of arrays, for tests and the simulator: devices with a volatile cache, regions of memory, workers. Nothing
 * happens until simdisk_step(), which completes one pending request, chosen by the seed. The same seed and the same
 * calls give the same run.
 *
 * A GPU is lanes of staging slots in plain arrays: uses of a lane's direction end in order, and one that fails ends the
 * lane, as a helper would do it. A spill that fails has moved some of its bytes.
 *
 * A device is what reads see (`image`) and what a power loss leaves (`durable`). A flush makes durable what was written
 * and completed before it was submitted. One that fails gives all of that up, as kernels and drives do that tell of such a
 * failure once: no later flush makes it durable, unless it is written again or the device is opened anew.
 * simdisk_crash() decides for each sector that was not flushed whether it is kept, lost or, rarely, torn between its
 * 512-byte parts; writes in flight may have reached the image in part.
 */
#pragma once

#include "include/base/base.h"
#include "io/backend.h"

struct simdisk;

/* In millionths, for each request. All 0 at the start. */
struct simdisk_faults {
    uint32_t read_error, write_error, flush_error;
    uint32_t short_count; /* reads and writes of more than a sector */
    uint32_t bit_flip;    /* one bit of what a write stored */
    uint32_t misdirect;   /* a write goes elsewhere on the device, aligned to a sector */
    uint32_t lose;        /* a write is said to be done, and was not */
    uint32_t work_fault;  /* -EFAULT from a worker */
    uint32_t no_chunk;    /* memory is refused */
    uint32_t dma_error;   /* -EIO from a GPU's copy engine */
    uint64_t first_byte;  /* what these three do to writes begins and stays at or above this place */
};

/* What happened so far. */
struct simdisk_stat {
    uint64_t lost_sectors, torn_sectors; /* at crashes, of what was not flushed */
    uint64_t short_counts, errors;
    uint64_t flipped_writes, misdirected_writes, lost_writes, late_writes, refused_chunks;
};

struct simdisk *simdisk_new(uint64_t seed);
void simdisk_free(struct simdisk *d);
struct io_backend *simdisk_backend(struct simdisk *d);
uint64_t simdisk_random(struct simdisk *d);
uint64_t simdisk_below(struct simdisk *d, uint64_t n); /* 0 to n - 1 */
struct simdisk_faults *simdisk_faults(struct simdisk *d);
const struct simdisk_stat *simdisk_stat(const struct simdisk *d);

/* Its number. Devices read as zeros at first. */
uint32_t simdisk_device_add(struct simdisk *d, uint64_t size_bytes);
/* Memory for payloads: its region number. */
uint32_t simdisk_region_add(struct simdisk *d, uint64_t size_bytes);
uint8_t *simdisk_memory(struct simdisk *d, uint32_t region);
/* Its size if it was asked for on this node, else 0. */
uint64_t simdisk_region_bytes(const struct simdisk *d, uint32_t region, uint32_t node);
/* The next n chunks are refused with -ENOMEM. */
void simdisk_refuse_chunks(struct simdisk *d, uint32_t n);

#define SIMDISK_LANES_MAX 8
/* A new lane, with zeroed slots; one of that number, with nothing pending, goes. With one slot it does for a direct lane,
 * but for its two directions, which have memory each. */
void simdisk_lane_new(struct simdisk *d, uint32_t lane, uint32_t slots, uint64_t slot_bytes);
uint8_t *simdisk_slot(struct simdisk *d, uint32_t lane, enum io_dma_op op, uint64_t seq);
/* The next use of any lane ends with this error. */
void simdisk_fail_next_dma(struct simdisk *d, int32_t error);

/* Completes one request. False if none is pending. */
bool simdisk_step(struct simdisk *d);
uint32_t simdisk_pending(const struct simdisk *d);
/* Device requests that are pending, by kind, urgency and lane. */
uint32_t simdisk_pending_blks(const struct simdisk *d, enum io_blk_op op, bool urgent, uint16_t lane);

/* Power loss: pending requests never complete (their structs are forgotten), memory regions are freed. */
void simdisk_crash(struct simdisk *d);
/* The process died, the device did not: regions are gone, every completed write stays, and of those in flight some are
 * still carried out. */
void simdisk_kill(struct simdisk *d);
/* The same with nothing in flight. */
void simdisk_restart(struct simdisk *d);
/* From now on every request to it ends with -EIO; or no longer. */
void simdisk_die(struct simdisk *d, uint32_t dev, bool is_dead);

/*
 * The process died, and what it had in memory did not: chunks stay as they are, bounce memory goes. What was in flight has
 * been carried out in part, reads into memory and copies included. Those who submitted it still exist.
 */
void simdisk_hot_restart(struct simdisk *d);

/* The next request of this kind ends with this error, or, for 0, moves nothing. */
void simdisk_fail_next(struct simdisk *d, enum io_blk_op op, int32_t error);
/* The next read or write of more than a sector moves only its first sector. */
void simdisk_short_next(struct simdisk *d, enum io_blk_op op);

/* Called before each write takes effect, with the bytes that go still there; simdisk_poke() is none. */
typedef void (*simdisk_watch_fn)(void *ctx, uint32_t dev, uint64_t off_bytes, uint64_t len_bytes);
void simdisk_watch_writes(struct simdisk *d, simdisk_watch_fn watch, void *ctx);

/* Direct access to what the device holds (image and durable alike). */
uint8_t *simdisk_bytes(struct simdisk *d, uint32_t dev);
void simdisk_poke(struct simdisk *d, uint32_t dev, uint64_t off_bytes, const void *bytes, size_t len_bytes);
void simdisk_flip(struct simdisk *d, uint32_t dev, uint64_t off_bytes, unsigned bit);
