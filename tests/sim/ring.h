/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clients of the request path: the daemon's own code (daemon/request*.c, ring.c) under the same seed, beside sessions
 * that call tiering directly. They share pools, devices and the engine with those, but not their objects.
 *
 *   ring_client.c   seats and rings, calls and answers, when the engine would be awake; deaths
 *   ring_ops.c      what well-behaved clients ask for, and what each answer may be
 *   ring_hostile.c  what the other one does
 */
#pragma once

#include "daemon/request.h"
#include "include/spillway/abi.h"
#include "tests/sim/sim.h"

#define RING_CLIENTS 4
#define RING_HOSTILE (RING_CLIENTS - 1) /* this one breaks every rule */
#define RING_ENTRIES 16
#define RING_CALLS 12
#define RING_ITEMS 8
#define RING_RESULTS (RING_ITEMS * SIM_PIECES_MAX)
#define RING_SLICE_BYTES 2048 /* of scratch, for a call: items, then results */
#define RING_RESULTS_AT 1024
#define RING_SCRATCH_BYTES (RING_CALLS * RING_SLICE_BYTES)
#define RING_CANARY_BYTES 4096
#define RING_OBJECTS 160
#define RING_LEASES 48
#define RING_SPACES 4

/*
 * A block. Versions count up; whoever got its reservation gives the next one. While the engine runs, a read that was
 * asked for when `floor` was known sees that version or a later one, up to `top`.
 */
struct ring_object {
    uint8_t space, n_pieces, key_len;
    uint8_t owner;    /* of several pieces: the client that builds it, so that versions do not mix */
    uint8_t building; /* leases on it for writing */
    uint64_t bytes;
    uint32_t last;     /* that was given */
    uint32_t top;      /* whose COMMIT was begun */
    uint32_t floor;    /* older ones were replaced or deleted, as somebody was told */
    uint32_t present;  /* the version that must be there; 0: it may be gone */
    uint32_t kept;     /* older ones do not come back even after a crash */
    uint32_t must;     /* `present` after a crash */
    uint32_t deletes;  /* that were begun */
    uint32_t deleting; /* of these, not answered yet */
};

struct ring_lease {
    bool used, busy, filled; /* busy: a call is to end it */
    bool writing;
    uint8_t piece;
    uint16_t object;
    uint32_t version; /* of a reservation, 0: it is not wanted */
    uint64_t handle;
    uint64_t asked_ns; /* of a reservation */
    uint32_t region;
    uint64_t offset_bytes;
};

struct ring_call {
    bool used, is_cancelled;
    uint8_t opcode, n;
    bool all_space; /* SYNC */
    uint32_t timeout_ms;
    uint64_t user_data;
    uint32_t index; /* in the ring */
    uint64_t asked_ns;
    uint64_t taken_ns; /* when the engine had taken it; 0: not yet. Its time counts from then on */
    uint32_t late_turns;
    uint16_t object[RING_ITEMS];
    uint16_t lease[RING_ITEMS];
    /* Of each object, when it was asked for. deletes is UINT32_MAX while one was under way: it may come later, too. */
    uint32_t floor[RING_OBJECTS], deletes[RING_OBJECTS], present[RING_OBJECTS], last[RING_OBJECTS];
};

struct ring_client {
    struct peer peer;
    struct ring ring;
    struct ring_geometry geometry;
    bool alive, broken;
    bool pauses; /* asks for nothing more until all is answered: then what it has can be compared */
    uint32_t sq_tail, cq_head;
    uint32_t spaces[RING_SPACES]; /* handles */
    uint64_t next_call;
    uint64_t planned;       /* items of a plan that the hostile one has sent so far */
    uint32_t unheard_turns; /* of the engine, in which it neither looked nor could be told */
    struct ring_call calls[RING_CALLS];
    struct ring_lease leases[RING_LEASES];
    char *mem, *scratch;
};

struct ring_world {
    struct requests *rq;
    struct tiering_space_info spaces[RING_SPACES];
    struct ring_client clients[RING_CLIENTS];
    struct ring_object objects[RING_OBJECTS];
    struct pool_gpu_stat gpus[POOLS_MAX];
    uint64_t turns, next_ns, tick_due_ns;
    bool rang, wants_turn;
    bool with_rings; /* in this run */
};

/* ring_client.c */
/* A slot for a call, with its slice of scratch; NULL: all are in use, or the ring is full. */
struct ring_call *ring_call_new(struct sim *sim, struct ring_client *c, uint8_t opcode);
void *ring_call_items(struct ring_client *c, const struct ring_call *call);
const struct spw_result *ring_call_results(const struct ring_client *c, const struct ring_call *call);
/* What its SQE says before it is changed: operation, places in scratch, user_data. */
struct spw_sqe ring_call_sqe(struct ring_client *c, struct ring_call *call, uint32_t space);
void ring_submit(struct sim *sim, struct ring_client *c, const struct spw_sqe *sqe);
struct ring_lease *ring_lease_new(struct sim *sim, struct ring_client *c);

/* ring_ops.c */
void ring_objects_make(struct sim *sim);
void ring_op(struct sim *sim, struct ring_client *c);
/* It wants no answer any more: each of its calls is cancelled once. */
void ring_drain(struct sim *sim, struct ring_client *c);
void ring_answer(struct sim *sim, struct ring_client *c, struct ring_call *call, const struct spw_cqe *cqe);
void ring_client_died(struct sim *sim, struct ring_client *c);

/* ring_hostile.c */
void ring_hostile_op(struct sim *sim, struct ring_client *c);
