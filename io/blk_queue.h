/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device requests that wait for their turn at one device: two classes (what a client waits for, and the rest), in each
 * a lane for every pool and one for the daemon's own. A data structure: no I/O, no clock. Belongs to one engine.
 */
#pragma once

#include "include/base/base.h"
#include "include/base/limits.h"
#include "io/backend.h"

#define BLK_LANE_IDLE UINT32_MAX

struct blk_lane {
    struct list blks;
    uint64_t tag;   /* where on its class's scale of service its next request begins */
    uint32_t place; /* in the heap; BLK_LANE_IDLE: nothing waits */
    uint32_t in_flight;
};

struct blk_class {
    uint64_t served;    /* the tag of what went last: where a lane that was idle joins */
    uint32_t n_busy;    /* pools' lanes in which something waits or is in flight */
    uint32_t in_flight; /* requests that the device has, of all lanes */
    uint64_t in_flight_bytes;
    uint32_t n_heap;
    uint16_t heap[IO_LANES]; /* lanes in which something waits, the smallest tag first */
    struct blk_lane lanes[IO_LANES];
};

struct blk_queue {
    uint32_t n;    /* requests that wait */
    uint64_t owed; /* sectors that urgent requests took while background ones waited */
    struct blk_class urgent, background;
};

void blk_queue_init(struct blk_queue *q);
/* blk->lane is below IO_LANES. */
void blk_queue_push(struct blk_queue *q, struct io_blk *blk);
/* Whose turn it is; NULL if nothing may go now. It stays in the queue. */
struct io_blk *blk_queue_next(const struct blk_queue *q);
/* That request goes to the device. weights: of each lane, 1 to WEIGHT_MAX. */
void blk_queue_take(struct blk_queue *q, struct io_blk *blk, const uint32_t *weights);
/* The device is through with one that blk_queue_take() gave it. */
void blk_queue_done(struct blk_queue *q, const struct io_blk *blk);
/* A client waits for it from now on. Nothing happens if it does not wait in a queue, or is urgent already. */
void blk_queue_urge(struct blk_queue *q, struct io_blk *blk);
