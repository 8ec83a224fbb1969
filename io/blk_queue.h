/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device requests that wait for their turn at one device: two classes (what a client waits for, and the rest), in each
 * a lane for every pool and one for the daemon's own, and in a lane the users whose reads wait. A data structure: no I/O,
 * no clock. Belongs to one engine.
 */
#pragma once

#include "include/base/base.h"
#include "include/base/limits.h"
#include "io/backend.h"

#define BLK_LANE_IDLE UINT32_MAX

/* A flush goes with the writes. */
enum blk_way { BLK_READS, BLK_WRITES, BLK_WAYS };

/* Reads of a lane that this user waits for. */
struct blk_user {
    struct list blks;
    uint64_t tag; /* as a lane's, among the users of the lane */
    uint32_t in_flight;
};

struct blk_lane {
    struct list blks[BLK_WAYS];
    struct blk_user *users; /* IO_USERS, which have its reads; NULL in the background */
    uint32_t waiting;       /* bit by bit, users whose reads wait */
    uint64_t users_served;
    uint32_t places[BLK_WAYS]; /* in the heaps; BLK_LANE_IDLE: nothing waits */
    uint64_t tag;              /* where on its class's scale of service its next request begins */
    uint32_t in_flight;
};

struct blk_heap {
    uint32_t n;
    uint16_t lanes[IO_LANES]; /* lanes in which something waits, the smallest tag first */
};

struct blk_class {
    uint64_t served;       /* the tag of what went last: where a lane that was idle joins */
    uint32_t n_busy;       /* pools' lanes in which something waits or is in flight */
    uint32_t n_users;      /* the same of users in lanes, without nobody */
    uint64_t shared_bytes; /* as long as that much has not been moved since several were at it, they may come back */
    uint32_t in_flight;    /* requests that the device has, of all lanes */
    uint64_t in_flight_bytes;
    struct blk_heap heaps[BLK_WAYS];
    struct blk_lane lanes[IO_LANES];
};

struct blk_queue {
    uint32_t n;         /* requests that wait */
    uint64_t owed;      /* sectors that urgent requests took while background ones waited */
    uint32_t n_awaited; /* urgent reads that wait or are in flight, but for long ones */
    uint32_t n_pressed; /* all urgent requests of pools, but for long reads */
    uint32_t n_writes;  /* in flight, of both classes */
    uint64_t write_bytes, write_bytes_max;
    bool is_full; /* no more writes, until it has been emptied a little */
    struct blk_class urgent, background;
    struct blk_user users[IO_LANES][IO_USERS]; /* of the urgent ones */
};

void blk_queue_init(struct blk_queue *q);
/* blk->lane is below IO_LANES, blk->user below IO_USERS. */
void blk_queue_push(struct blk_queue *q, struct io_blk *blk);
/* Whose turn it is; NULL if nothing may go now. It stays in the queue. */
struct io_blk *blk_queue_next(const struct blk_queue *q);
/* How many of its bytes may go at once: all, or a part, after which it is pushed again with the rest. */
uint32_t blk_queue_part(const struct blk_queue *q, const struct io_blk *blk);
/* That part of it goes to the device. weights: of each lane, 1 to WEIGHT_MAX. */
void blk_queue_take(struct blk_queue *q, struct io_blk *blk, uint32_t part_bytes, const uint32_t *weights);
/* The device is through with what blk_queue_take() gave it. */
void blk_queue_done(struct blk_queue *q, const struct io_blk *blk, uint32_t part_bytes);
/* A client waits for it from now on. Nothing happens if it does not wait in a queue, or is urgent already. */
void blk_queue_urge(struct blk_queue *q, struct io_blk *blk);
