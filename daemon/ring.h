/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine's side of one ring pair (include/spillway/abi.h). Engine thread only.
 *
 * Everything that the client can write is read once and believed only after a check. Our own indices live here and are
 * only published. Geometry is fixed when the ring is made and never read from shared memory.
 */
#pragma once

#include "include/base/atomic.h"
#include "include/base/base.h"
#include "include/base/list.h"
#include "include/spillway/abi.h"

struct peer;
struct request;

struct ring_geometry {
    uint32_t sq_entries, cq_entries;
    uint32_t sq_offset, cq_offset;
    uint64_t ring_bytes; /* whole pages */
};

struct ring {
    struct list link;       /* peer's */
    struct list hot_link;   /* peer's rings that are polled; unlinked: cold */
    struct list dirty_link; /* indices are to be published */
    struct peer *peer;
    uint32_t number;

    struct spw_ring *shared;
    const struct spw_sqe *sqes;
    struct spw_cqe *cqes;
    char *scratch;
    uint64_t scratch_bytes;
    uint32_t sq_entries, cq_entries;

    uint32_t sq_head;      /* ours: what was taken */
    uint32_t sq_published; /* of sq_head */
    uint32_t sq_tail;      /* the client's, as last believed */
    uint32_t cq_tail;      /* ours: what was written */
    uint32_t cq_published; /* of cq_tail */
    uint32_t cq_head;      /* the client's, as last believed */

    uint32_t n_requests;     /* taken, not yet completed */
    struct list requests;    /* these */
    struct request *current; /* whose list is being worked on */
    uint64_t last_work_ns;
    uint64_t idle_since_ns; /* cold: of its last work */
    uint64_t spin_ns[2];    /* how long it stays hot without work: by peer_slept */
    bool peer_slept;        /* the client, when there was nothing to do */
    uint32_t n_sleeps;      /* of ours */
    uint32_t rung;          /* the client's sleep that it was last woken from */
    int doorbell_fd;
    bool rang;          /* since it was emptied */
    bool doorbell_gone; /* the client shut it down: it cannot wake us any more */
    uint64_t poll;      /* the engine's: armed poll, or 0 */
};

/* -EINVAL: sizes that are no powers of two or out of bounds. */
must_check int ring_geometry(uint32_t sq_entries, uint32_t cq_entries, struct ring_geometry *ret_geometry);
/* Memory and descriptor are borrowed. */
void ring_init(struct ring *ring, uint32_t number, const struct ring_geometry *geometry, void *ring_mem, void *scratch,
               uint64_t scratch_bytes, int doorbell_fd);

/* 1: *ret_sqe is a private copy of the next SQE; 0: nothing to take, or no CQE is free for it; -EPROTO: an index that
 * cannot be. */
int ring_take(struct ring *ring, struct spw_sqe *ret_sqe);
/* Something was submitted that waits for the client to consume CQEs. */
bool ring_is_choked(const struct ring *ring);

/* There is always room: ring_take() saw to it. */
void ring_complete(struct ring *ring, const struct spw_cqe *cqe);
/* Publishes what was taken and completed, and wakes the client if it sleeps and something was completed. */
void ring_flush(struct ring *ring);

/* A hint, for the price of one load: the client's tail is another one than ring_take() last saw. */
static inline bool ring_has_news(const struct ring *ring)
{
    return load_relaxed(&ring->shared->client.sq_tail) != ring->sq_tail;
}

/* A hint: has the client asked to be woken? */
static inline bool ring_peer_sleeps(const struct ring *ring)
{
    return load_relaxed(&ring->shared->client.cq_flags) != 0;
}

/* Cold: from now on the client rings the doorbell. False if it submitted something meanwhile: the ring stays hot. */
bool ring_sleep(struct ring *ring);
void ring_wake(struct ring *ring);
/* Empties the doorbell if it rang; before ring_sleep(), for what rings after that must be heard. Notes whether the client
 * has shut it down: no end of the session, the control thread sees to that. */
void ring_doorbell_empty(struct ring *ring);
