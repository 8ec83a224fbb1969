/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to the request path: its state, and what its files share.
 *
 *   request.c       memory; beginning and end of a request
 *   request_peer.c  sessions' seats: spaces, rings, hot and cold
 *   request_turn.c  who is served when: turns, deadlines
 *   request_item.c  an element of a list, copied and checked
 *   request_list.c  lists of items and handles: one piece at a time, each outcome written where the client expects it
 *   request_chain.c what a list says of the request that it is part of, for the policies; PLAN
 *   request_all.c   all or nothing, and SYNC: the list as a whole
 *   request_gpu.c   lanes, and the lists of handles that go over them
 *   request_op.c    the operations: what each takes, and the call into tiering that it is
 *
 * The life of a request
 *     FREE ─▶ LISTING ─▶ WAITING ─▶ FREE      pieces are taken; all are taken, some wait
 *                └──▶ PARKED ──▶┘             all or nothing: waits for lease bytes before it takes anything
 *                └──▶ DETACHED ─▶ FREE        its CQE was given (timeout) or its session ended; a sync, or a transfer
 *                                             to or from a GPU, still runs
 * request_set_state() is the one place that assigns it.
 */
#pragma once

#include "daemon/deadline.h"
#include "daemon/request.h"
#include "include/spillway/abi.h"

#define DEFICIT_PER_ITEM 100 /* so that a weight of 100 earns a quantum a turn */

enum request_state { REQUEST_FREE, REQUEST_LISTING, REQUEST_WAITING, REQUEST_PARKED, REQUEST_DETACHED };

/*
 * A piece of an item that waits (or, of an all-or-nothing list, any piece until the list's end). Also, without a wait
 * of its own, an item of several pieces: `group` of its pieces, counts what is left and what failed.
 */
enum piece_state { PIECE_FREE, PIECE_WAITING, PIECE_ENDED, PIECE_SETTLED, PIECE_GROUP };

struct piece {
    struct tiering_wait wait;
    struct list link;       /* request's */
    struct list ended_link; /* requests' ended; or free list */
    struct request *request;
    struct piece *group;
    uint32_t result;       /* index */
    uint32_t left, failed; /* of a group */
    int32_t status;
    enum piece_state state;
};

/* An item, checked: what it names. */
struct target {
    struct tiering_id id;                /* of its first piece */
    uint64_t object_bytes;               /* RESERVE, TENSOR: the size wanted; else 0 */
    uint64_t offset_bytes, length_bytes; /* 0, 0: the whole of an object of one piece */
    uint32_t n_pieces;                   /* that are taken */
    uint32_t n_results;                  /* that the client expects, whether the item is refused or not; at least 1 */
};

/* The piece of a target, or the handle, that is taken now. */
struct step {
    struct tiering_id id;
    uint64_t object_bytes;
    uint32_t offset_bytes, length_bytes; /* in the piece; 0, 0: all of it */
    struct spw_handle handle;
};

struct request {
    struct list link;        /* ring's, or free list */
    struct list parked_link; /* peer's */
    struct list ended_link;  /* what runs for it is over, for the next turn */
    struct list pieces;
    struct deadline deadline;
    struct requests *rq;
    struct ring *ring; /* NULL: detached */
    struct peer *peer;
    const struct op *op;
    struct peer_space space; /* a copy */
    enum request_state state;
    uint64_t expires_ns; /* given to `deadline` when it begins to wait */
    uint32_t next_item;  /* to be taken */
    uint32_t next_result;
    uint32_t max_results; /* that fit in scratch */
    uint32_t waiting;     /* pieces */
    struct piece *spare;  /* a piece that the next step may wait with; none between turns */
    uint32_t n_ok;        /* items */
    uint32_t n_prefix;    /* LOOKUP: leading items that are there */
    bool prefix_ended;
    bool must_look; /* there are leases that the client must learn of, of items that failed, too */
    bool in_item;   /* target holds an item that is not through */
    uint32_t next_piece;
    int stop_status; /* 0, or why what is left is no longer tried */
    uint32_t stop_detail;
    uint64_t arena_offset; /* PUT_RANGE, GET_RANGE: how far it has come */
    uint64_t retry_ns;     /* PARKED: try again then, whatever has changed */
    struct piece *group;
    int item_status; /* the item under way is refused */
    uint32_t item_detail;
    int list_status; /* the list ended early: too many pieces, or no room for results */
    bool named;      /* the policy knows what the list is about */
    bool runs;       /* tiering has its sync or dma */
    int run_status;
    struct peer_lane *lane; /* of dma */

    /* Nothing from here on is cleared when it begins: each is set before it is used. */
    struct spw_sqe sqe;
    struct target target;     /* of the item under way */
    struct spw_handle handle; /* the same, of a list of handles */
    uint64_t tried_at;        /* PARKED: requests.changes at the last try */
    uint32_t parked_detail;   /* PARKED: for want of what */
    uint32_t parked_pieces;   /* and what it wanted then, when all of its list was looked at */
    uint64_t parked_bytes;
    uint64_t look_ns; /* PARKED: all of it is looked at again then, if that is not to be had before */
    union {
        struct tiering_sync sync;
        struct tiering_dma dma;
    };
};

/* An element of a list that was copied and checked a little ahead of its turn. */
struct ahead {
    struct target target;
    struct spw_handle handle;
    int status;
    uint32_t detail;
};

/* By the number of tiering's account. */
struct request_user {
    uint32_t n_requests, n_waits;
    uint32_t max_requests, max_waits; /* UINT32_MAX: no limit of its own */
    uint32_t n_active;                /* peers that get turns */
    int64_t debt;                     /* in hundredths of an item: that one of them had beyond its quantum */
};

struct requests {
    struct requests_config config;
    struct tiering *tiering;
    uint64_t now_ns;
    struct request *requests;
    struct piece *pieces;
    uint32_t n_active_users;
    struct request_user *users; /* USERS_MAX; the first one's is nobody's, and has no limit */
    struct list free_requests, free_pieces;
    uint32_t n_free_requests, n_free_pieces;
    struct list peers, active;
    struct list ended; /* pieces whose waits are over, for the next turn */
    struct list ended_runs;
    struct list dirty; /* rings with indices to publish */
    struct deadlines deadlines;
    struct spw_item *staged; /* LIST_ITEMS_MAX: an all-or-nothing list, copied once, for one turn */
    struct target *targets;  /* the same, checked */
    struct ahead ahead[LIST_WARM_ITEMS];
    uint32_t n_ahead, next_ahead; /* of the list that is being run, and of no other */
    uint64_t changes;             /* counts what may let a parked request go on */
    uint32_t n_rings, n_hot;
    uint32_t n_idle_hot, n_blocked; /* of the last turn */
    uint32_t n_detached;
    struct requests_stat stat;
};

enum op_list { OP_LIST_NONE, OP_LIST_ITEMS, OP_LIST_HANDLES };
enum op_span {
    OP_SPAN_RANGE,  /* offset and length: a result a piece */
    OP_SPAN_SIZE,   /* length is the object's size: a result a piece */
    OP_SPAN_NAME,   /* the object by its name alone: one result */
    OP_SPAN_TENSOR, /* length is the size, and there is one result */
};

struct op {
    uint8_t list;   /* enum op_list */
    uint8_t span;   /* enum op_span */
    uint8_t flags;  /* SPW_SQE_… that it knows */
    uint8_t n_args; /* of arg[]; the others must be 0 */
    bool needs_space;
    bool may_be_empty; /* n_items = 0 means something */
    bool no_results;
    bool counts_prefix; /* LOOKUP: the CQE's value is how many leading items are there */
    bool waits;         /* its pieces may wait */
    bool rarely;        /* but seldom do: tried without a wait first, so that what must not be held up is not */
    bool is_request;    /* with SPW_SQE_CHAIN its list says, as `use`, what an engine's request is about */
    enum policy_use use;
    int32_t timeout_status;
    uint32_t timeout_detail;
    /* The request as a whole, before any list: a negative errno fails it. May be NULL. */
    int (*begin)(struct request *req);
    /* One piece or handle: 0, TIERING_WAIT or a negative errno. Leases go to *ret_grant; what else the client should
     * know to *ret_result. Both come zeroed. NULL for operations without a list. */
    int (*step)(struct request *req, const struct step *step, struct tiering_wait *wait,
                struct tiering_grant *ret_grant, struct spw_result *ret_result);
    /* Gives back what a piece was granted (all or nothing). */
    void (*undo)(struct request *req, uint64_t lease);
    /* Of a list that is always served as a whole, and no step: begins it, and returns what that cost; and, unless it is over
     * then: what runs for it has ended; it is to stop, as request_stop(). */
    uint32_t (*run)(struct request *req);
    void (*ended)(struct request *req);
    bool (*stop)(struct request *req, int status, uint32_t detail);
};

/* NULL: no such operation. */
const struct op *op_find(uint8_t opcode);
/* RESERVE and ACQUIRE: the lease bytes that this piece needs, as far as is known. A negative errno: it would fail. */
int op_lease_bytes(const struct request *req, const struct step *step, uint64_t *ret_bytes);

/* request.c */
void request_set_state(struct request *req, enum request_state state);
/* Its CQE, and its end; what still runs for it keeps it as DETACHED. */
void request_end(struct request *req, int status, uint32_t detail, uint64_t value);
/* From here on the clock runs: it waits. */
void request_arm_deadline(struct request *req);
/* Stops it as far as that can be done; whatever is left ends with `status`. False: nothing was left to stop. */
bool request_stop(struct request *req, int status, uint32_t detail);
/* Takes an SQE that was copied; it may be over already on return. Both return what it cost. */
uint32_t request_begin(struct requests *rq, struct ring *ring, const struct spw_sqe *sqe);
uint32_t request_run(struct request *req, uint32_t budget);

/* request_peer.c */
/* Ends it, for good: whoever owns it is told. */
void peer_break(struct requests *rq, struct peer *peer, const char *why);
/* -EBADF; -EXDEV: another engine's. */
int peer_space_find(const struct requests *rq, const struct peer *peer, uint32_t handle, struct peer_space *ret_space);
/* The peer has fewer requests than are free: of all, and of what its user may have. */
static inline bool peer_may_begin(const struct requests *rq, const struct peer *peer)
{
    return peer->n_requests < rq->n_free_requests &&
           peer->n_requests + peer->user->n_requests < peer->user->max_requests;
}
/* The most waits that may ever be free for it. */
static inline uint32_t peer_max_waits(const struct requests *rq, const struct peer *peer)
{
    return MIN(rq->config.max_waits, peer->user->max_waits);
}
void peer_update_active(struct requests *rq, struct peer *peer);
void ring_set_hot(struct requests *rq, struct ring *ring, bool hot);
uint64_t ring_spin_max_ns(const struct requests *rq, const struct ring *ring);
void ring_learn(const struct requests *rq, struct ring *ring, uint64_t gap_ns);
/* The turn's end publishes what was taken from it and completed. */
void ring_set_dirty(struct requests *rq, struct ring *ring);

/* request_item.c */
/* The index-th item, copied once. False: the peer was broken. */
bool list_copy_item(struct request *req, uint32_t index, struct spw_item *ret_item);
bool list_copy_handle(struct request *req, uint32_t index, struct spw_handle *ret_handle);
/* 0 or the negative errno that is the item's status; *ret_target is set in both cases. */
int list_target(const struct request *req, const struct spw_item *item, struct target *ret_target,
                uint32_t *ret_detail);
void target_step(const struct request *req, const struct target *target, uint32_t piece, struct step *ret_step);

/* request_list.c */
/* NULL: the engine's or the session's share is used up. */
struct piece *piece_new(struct request *req);
void piece_free(struct piece *piece);
/* One after the other: each that is taken is one more that the session and its user have, and one less that is free. */
static inline bool pieces_available(const struct request *req, uint32_t n)
{
    const struct request_user *user = req->peer->user;
    uint64_t wanted = req->peer->n_waits + 2 * (uint64_t)n - 1;

    return n == 0 || (wanted <= req->rq->n_free_pieces && wanted + user->n_waits <= user->max_waits);
}
/* Called by tiering: records, no more. */
void piece_done(struct tiering_wait *wait, int status);
/* The next turn's half of it. */
void piece_ended(struct piece *piece);
/* Takes up to `budget` pieces. Returns what was used of it; 0: nothing can be done now. */
uint32_t list_run(struct request *req, uint32_t budget);
void list_put_result(struct request *req, uint32_t index, int status, const struct spw_result *result);
void list_grant_result(const struct tiering_grant *grant, struct spw_result *ret_result);

int list_key(const struct request *req, const struct spw_item *item, struct tiering_id *ret_id);

/* request_chain.c */
/* Before any of the list is taken. What it cost, in items. */
uint32_t request_name(struct request *req);
/* PLAN: the whole list at once. */
uint32_t plan_run(struct request *req);

/* request_all.c */
/* As list_run(), but the whole list in one turn. */
uint32_t all_run(struct request *req);
void all_piece_ended(struct piece *piece);
bool all_stop(struct request *req, int status, uint32_t detail);
uint32_t sync_run(struct request *req);
void sync_ended(struct request *req);
bool sync_forget(struct request *req, int status, uint32_t detail);

/* request_gpu.c */
uint32_t dma_run(struct request *req);
void dma_ended(struct request *req);
bool dma_stop(struct request *req, int status, uint32_t detail);

/* What was granted is the client's when it has the answer: until then the lease says whose answer that is. */
static inline void request_granted(const struct request *req, const struct tiering_grant *grant)
{
    if (grant->lease != TIERING_LEASE_NONE)
        tiering_lease_request(req->rq->tiering, &req->peer->tiering, grant->lease, req->sqe.user_data);
}

static inline bool request_is_all(const struct request *req)
{
    return (req->sqe.flags & SPW_SQE_ALL) != 0;
}

static inline bool request_is_listed(const struct request *req)
{
    return !req->in_item && req->next_item == req->sqe.n_items;
}
