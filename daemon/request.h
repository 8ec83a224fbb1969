/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The request path of one engine: SQEs become requests, their lists become calls into tiering, outcomes become results
 * and CQEs. Wire types end here.
 *
 * Pure but for the wake-up of clients (ring.c): time is an argument, and the world is tiering. One engine thread. All
 * memory is allocated by requests_new(); when it runs out, rings are not consumed until something completes.
 */
#pragma once

#include "daemon/ring.h"
#include "include/base/base.h"
#include "include/base/limits.h"
#include "include/base/list.h"
#include "tiering/tiering.h"

struct requests;

/* One space that a session opened at this engine. */
struct peer_space {
    uint32_t index; /* tiering's */
    uint32_t pool;
    uint32_t piece_bytes;
    uint64_t item_bytes;
};

enum lane_direction { LANE_SPILL, LANE_FETCH, LANE_DIRECTIONS };

/* A lane between a GPU and this engine, as it is asked for. */
struct lane_spec {
    uint32_t lane; /* number: no other lane of the engine has it */
    uint32_t gpu, pool, slots;
    uint64_t slot_bytes;
    uint64_t alloc_bytes;          /* of a direct lane; 0: it has slots */
    struct spw_gpu_fences *fences; /* the client writes here, too */
};

/* The request path's. */
struct peer_lane {
    struct lane_spec spec;
    uint64_t next_seq[LANE_DIRECTIONS];
    uint32_t n_uses[LANE_DIRECTIONS];   /* on their way */
    uint32_t n_leases[LANE_DIRECTIONS]; /* of these uses */
    bool is_used;                       /* of the table's entry */
    bool is_over;                       /* a use failed, or the GPU's helper is gone */
    bool is_cancelled, cancel_runs;
    void *removal; /* not NULL: it is to go; given back by lane_gone() */
    struct requests *rq;
    struct peer *peer;
    struct tiering_dma cancel;
};

/* A session as one engine sees it. Memory comes from whoever adds it; the fields are the request path's. */
struct peer {
    struct list link;        /* all peers of the engine */
    struct list active_link; /* peers with hot rings or parked requests, in the order of their turns */
    struct list rings;
    struct list hot;    /* rings that are polled */
    struct list parked; /* requests that wait for lease bytes, all or nothing */
    uint64_t session;
    struct tiering_session tiering;
    int64_t deficit; /* in hundredths of an item */
    uint32_t weight; /* the largest of the pools that it opened here */
    uint32_t n_waits, n_requests, n_hot;
    struct request_user *user; /* all sessions of its user */
    uint16_t generation;       /* of its space handles */
    bool broken;               /* it violated the protocol: nothing of it is looked at any more */
    bool may_retry;            /* it was at another process of ours: SPW_SQE_RETRY means something */
    uint32_t n_spaces;
    struct peer_space spaces[SESSION_SPACES_MAX];
    struct peer_lane lanes[SESSION_GPU_LANES_MAX];
};

struct requests_events {
    /* The session violated the protocol; it is to be ended. Once for a peer. */
    void (*broken)(void *ctx, struct peer *peer, const char *why);
    /* The ring went cold: arm its doorbell. A negative errno keeps it hot. */
    int (*ring_cold)(void *ctx, struct ring *ring);
    /* The end of requests_lane_remove() that had to wait. */
    void (*lane_gone)(void *ctx, void *removal);
};

/* What a pool has of GPUs' memory, for STAT. Atomic: the control thread writes it. */
struct pool_gpu_stat {
    uint64_t budget_bytes, used_bytes;
};

struct requests_config {
    struct tiering *tiering;
    uint32_t engine; /* its number: part of every space handle */
    uint32_t max_requests;
    uint32_t max_waits;               /* pieces that wait for room, a device or a copy */
    uint64_t spin_ns;                 /* how long a ring without work stays hot */
    uint32_t user_percent;            /* of both, for the sessions of one user; 0: all */
    const struct pool_gpu_stat *gpus; /* of each pool */
    const struct requests_events *events;
    void *ctx;
};

/* -ENOMEM. */
must_check int requests_new(const struct requests_config *config, struct requests **ret_rq);
/* All peers are gone, and all syncs have ended (requests_is_idle()). Takes NULL. */
void requests_free(struct requests *rq);
bool requests_is_idle(const struct requests *rq);
void requests_set_spin(struct requests *rq, uint64_t spin_ns);
/* Of max_requests and max_waits, what sessions of one user may have together: 50 to 100. */
void requests_set_user_percent(struct requests *rq, uint32_t percent);
/* Of every pool that a space was added for. */
void requests_set_weights(struct requests *rq, const uint32_t *weights);

/* The peer's memory is zeroed. */
void requests_peer_add(struct requests *rq, struct peer *peer, uint64_t session, uint64_t owner, uint32_t max_leases);
/* Right after that: whose it is. Sessions of one user share what one user may have in flight. */
void requests_peer_user(struct requests *rq, struct peer *peer, uint64_t name);
/* Its rings, of a session that leaves for the next process; the rest stays until it is removed. */
void requests_peer_silence(struct requests *rq, struct peer *peer);
/* Cancels and frees whatever the session has here; its rings are no longer touched. leaves: its leases stay as they are, for the
 * next process. */
void requests_peer_remove(struct requests *rq, struct peer *peer, bool leaves);
/* What requests with such user_data were granted ends, as if it had not been. Ascending. */
void requests_unanswered(struct requests *rq, struct peer *peer, const uint64_t *user_data, uint32_t n);
/* The handle that the client names the space by. -ENOSPC: SESSION_SPACES_MAX. The same space has one handle. */
must_check int requests_space_add(struct requests *rq, struct peer *peer, const struct tiering_space_info *info,
                                  uint32_t weight, uint32_t *ret_handle);

void requests_ring_add(struct requests *rq, struct peer *peer, struct ring *ring);
void requests_ring_remove(struct requests *rq, struct ring *ring);
/* Ends that session, as if it had broken the protocol: it damaged memory that it may write. False: it has gone. */
bool requests_break_session(struct requests *rq, uint64_t session, const char *why);
/* Its doorbell rang. */
void requests_ring_hot(struct requests *rq, struct ring *ring, uint64_t now_ns);

/* -ENOSPC: SESSION_GPU_LANES_MAX; -EEXIST: it has a lane of that number. */
must_check int requests_lane_add(struct requests *rq, struct peer *peer, const struct lane_spec *spec);
/* Cancels what is on its way. True: it is gone; false: lane_gone(removal) will say so. Before requests_peer_remove(). A lane
 * that there is not is gone. */
bool requests_lane_remove(struct requests *rq, struct peer *peer, uint32_t lane, void *removal);
/* The helper of that GPU has ended, and its uses with it: its lanes are over, and their fences say so. */
void requests_gpu_gone(struct requests *rq, uint32_t gpu);

/* One turn: what has ended, what expired, and up to a quantum for each session. How much was done. */
uint32_t requests_run(struct requests *rq, uint64_t now_ns);
/* Looks whether requests_run() would find something in a hot ring: a load a ring, no clock. A hint. */
bool requests_peek(const struct requests *rq);
uint32_t requests_hot_rings(const struct requests *rq);
/* Rings that are polled though the last turn found nothing in them: the engine spins rather than sleeps. */
bool requests_wants_spin(const struct requests *rq);
/* When requests_run() must be called again even if nothing happens; UINT64_MAX: need not. */
uint64_t requests_next_ns(const struct requests *rq, uint64_t now_ns);

struct requests_stat {
    uint64_t sqes, items, cqes;
    uint64_t stalls; /* turns in which a ring waited for a free request or wait */
    uint64_t timeouts, cancels, violations;
    uint32_t requests, requests_max, waits, waits_max;
    uint32_t peers, rings, rings_hot;
};
void requests_stat(const struct requests *rq, struct requests_stat *ret_stat);

struct peer_stat {
    uint64_t session;
    uint32_t leases, requests, waits, rings, spaces;
    struct tiering_user_stat user;
};
/* Up to max peers; returns how many. */
uint32_t requests_peers(const struct requests *rq, struct peer_stat *ret_peers, uint32_t max);
