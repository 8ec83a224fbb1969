/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the requests of one engine: who has a turn, when a request begins, expires and ends. Engine thread only.
 *
 * Invariants
 * - An SQE is looked at only in its private copy. A violation breaks the peer: it is taken off every list at once, and
 *   whoever owns it is told to end the session.
 * - Turns are deficit round robin over sessions: each earns a quantum of items, scaled by its weight, and a session
 *   with nothing to do saves nothing up. Within a session its rings take turns.
 * - A session gets a request or a wait only while it holds fewer than are free. So however many one of them takes,
 *   another finds some; and none is capped while it is alone.
 * - Callbacks of tiering only put what has ended on a list; this file's turn takes it from there.
 */
#include "daemon/request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/request_core.h"
#include "include/base/checked.h"

#define NS_PER_MS UINT64_C(1000000)
#define RETRY_NS (10 * NS_PER_MS) /* parked requests, and rings that wait for their client */

/* --- Making and freeing ------------------------------------------------------------------------------------------ */

int requests_new(const struct requests_config *config, struct requests **ret_rq)
{
    struct requests *rq = calloc(1, sizeof(*rq));

    if (!rq)
        return -ENOMEM;
    rq->config = *config;
    rq->tiering = config->tiering;
    rq->requests = calloc(config->max_requests, sizeof(*rq->requests));
    rq->pieces = calloc(config->max_waits, sizeof(*rq->pieces));
    rq->staged = calloc(LIST_ITEMS_MAX, sizeof(*rq->staged));
    rq->targets = calloc(LIST_ITEMS_MAX, sizeof(*rq->targets));
    if (!rq->requests || !rq->pieces || !rq->staged || !rq->targets ||
        deadlines_init(&rq->deadlines, config->max_requests) < 0) {
        requests_free(rq);
        return -ENOMEM;
    }
    list_init(&rq->free_requests);
    list_init(&rq->free_pieces);
    list_init(&rq->peers);
    list_init(&rq->active);
    list_init(&rq->ended);
    list_init(&rq->ended_syncs);
    list_init(&rq->dirty);
    for (uint32_t i = 0; i < config->max_requests; i++)
        list_push_tail(&rq->free_requests, &rq->requests[i].link);
    for (uint32_t i = 0; i < config->max_waits; i++)
        list_push_tail(&rq->free_pieces, &rq->pieces[i].link);
    rq->n_free_requests = config->max_requests;
    rq->n_free_pieces = config->max_waits;
    *ret_rq = rq;
    return 0;
}

void requests_free(struct requests *rq)
{
    if (!rq)
        return;
    deadlines_deinit(&rq->deadlines);
    free(rq->requests);
    free(rq->pieces);
    free(rq->staged);
    free(rq->targets);
    free(rq);
}

bool requests_is_idle(const struct requests *rq)
{
    return rq->n_free_requests == rq->config.max_requests;
}

void requests_set_spin(struct requests *rq, uint64_t spin_ns)
{
    rq->config.spin_ns = spin_ns;
}

void requests_stat(const struct requests *rq, struct requests_stat *ret_stat)
{
    *ret_stat = rq->stat;
    ret_stat->requests_max = rq->config.max_requests;
    ret_stat->requests = rq->config.max_requests - rq->n_free_requests;
    ret_stat->waits_max = rq->config.max_waits;
    ret_stat->waits = rq->config.max_waits - rq->n_free_pieces;
    ret_stat->rings = rq->n_rings;
    ret_stat->rings_hot = rq->n_hot;
    list_for_each (l, &rq->peers)
        ret_stat->peers++;
}

uint32_t requests_peers(const struct requests *rq, struct peer_stat *ret_peers, uint32_t max)
{
    uint32_t n = 0;

    list_for_each (l, &rq->peers) {
        const struct peer *peer = list_entry(l, struct peer, link);
        struct peer_stat *stat = &ret_peers[n];

        if (n == max)
            break;
        *stat = (struct peer_stat){.session = peer->session,
                                   .leases = peer->tiering.n_leases,
                                   .requests = peer->n_requests,
                                   .waits = peer->n_waits,
                                   .spaces = peer->n_spaces};
        list_for_each (r, &peer->rings)
            stat->rings++;
        n++;
    }
    return n;
}

/* --- Peers and rings --------------------------------------------------------------------------------------------- */

void requests_peer_add(struct requests *rq, struct peer *peer, uint64_t session, uint64_t owner, uint32_t max_leases)
{
    list_push_tail(&rq->peers, &peer->link);
    list_init(&peer->active_link);
    list_init(&peer->rings);
    list_init(&peer->hot);
    list_init(&peer->parked);
    peer->session = session;
    peer->generation = (uint16_t)(session % UINT16_MAX + 1);
    peer->weight = DEFICIT_PER_ITEM;
    tiering_session_init(rq->tiering, &peer->tiering, session, owner, max_leases);
}

/* A handle is the engine's number, the index in the peer's table, and a generation that tells sessions apart. */
static uint32_t space_handle(const struct requests *rq, const struct peer *peer, uint32_t index)
{
    static_assert(ENGINES_MAX <= 64 && SESSION_SPACES_MAX <= 1024, "6 and 10 bits of the handle");
    return rq->config.engine << 26 | index << 16 | peer->generation;
}

int requests_space_add(struct requests *rq, struct peer *peer, const struct tiering_space_info *info, uint32_t weight,
                       uint32_t *ret_handle)
{
    uint32_t index = 0;

    while (index < peer->n_spaces && peer->spaces[index].index != info->index)
        index++;
    if (index == SESSION_SPACES_MAX)
        return -ENOSPC;
    if (index == peer->n_spaces) {
        peer->spaces[peer->n_spaces++] = (struct peer_space){
            .index = info->index,
            .pool = info->pool,
            .piece_bytes = info->piece_bytes,
            .item_bytes = info->item_bytes,
        };
        peer->weight = MAX(peer->n_spaces == 1 ? 1 : peer->weight, weight);
    }
    *ret_handle = space_handle(rq, peer, index);
    return 0;
}

static int space_find(const struct requests *rq, const struct peer *peer, uint32_t handle, struct peer_space *ret_space)
{
    uint32_t index = handle >> 16 & 1023;

    if ((handle & UINT16_MAX) != peer->generation)
        return -EBADF;
    if (handle >> 26 != rq->config.engine)
        return -EXDEV;
    if (index >= peer->n_spaces)
        return -EBADF;
    *ret_space = peer->spaces[index];
    return 0;
}

static void peer_update_active(struct requests *rq, struct peer *peer)
{
    bool is_active = !list_is_empty(&peer->active_link);
    bool wants = !peer->broken && (!list_is_empty(&peer->hot) || !list_is_empty(&peer->parked));

    if (wants && !is_active)
        list_push_tail(&rq->active, &peer->active_link);
    else if (!wants)
        list_unlink(&peer->active_link);
}

static void ring_set_hot(struct requests *rq, struct ring *ring, bool hot)
{
    bool is_hot = !list_is_empty(&ring->hot_link);

    if (hot && !is_hot) {
        list_push_tail(&ring->peer->hot, &ring->hot_link);
        ring->peer->n_hot++;
        rq->n_hot++;
    } else if (!hot && is_hot) {
        list_unlink(&ring->hot_link);
        ring->peer->n_hot--;
        rq->n_hot--;
    }
    peer_update_active(rq, ring->peer);
}

void requests_ring_add(struct requests *rq, struct peer *peer, struct ring *ring)
{
    ring->peer = peer;
    ring->last_work_ns = rq->now_ns;
    list_push_tail(&peer->rings, &ring->link);
    rq->n_rings++;
    if (!peer->broken)
        ring_set_hot(rq, ring, true);
}

void requests_ring_hot(struct requests *rq, struct ring *ring, uint64_t now_ns)
{
    if (ring->peer->broken)
        return;
    ring_wake(ring);
    ring->last_work_ns = now_ns;
    ring_set_hot(rq, ring, true);
}

void peer_break(struct requests *rq, struct peer *peer, const char *why)
{
    if (peer->broken)
        return;
    peer->broken = true;
    rq->stat.violations++;
    list_for_each (l, &peer->rings)
        ring_set_hot(rq, list_entry(l, struct ring, link), false);
    peer_update_active(rq, peer);
    rq->config.events->broken(rq->config.ctx, peer, why);
}

/* The session goes: no CQE, and what its pieces were granted is released with the session. */
static void request_drop(struct request *req)
{
    list_for_each_safe (l, &req->pieces) {
        struct piece *piece = list_entry(l, struct piece, link);

        if (piece->state == PIECE_WAITING)
            (void)tiering_wait_cancel(req->rq->tiering, &piece->wait);
        piece_free(piece);
    }
    req->waiting = 0;
    request_set_state(req, req->sync_running ? REQUEST_DETACHED : REQUEST_FREE);
}

void requests_ring_remove(struct requests *rq, struct ring *ring)
{
    list_for_each_safe (l, &ring->requests)
        request_drop(list_entry(l, struct request, link));
    ring->current = NULL;
    ring_set_hot(rq, ring, false);
    list_unlink(&ring->dirty_link);
    list_unlink(&ring->link);
    rq->n_rings--;
    rq->changes++;
}

void requests_peer_remove(struct requests *rq, struct peer *peer)
{
    list_for_each_safe (l, &peer->rings)
        requests_ring_remove(rq, list_entry(l, struct ring, link));
    tiering_session_end(rq->tiering, &peer->tiering);
    list_unlink(&peer->active_link);
    list_unlink(&peer->link);
    rq->changes++;
}

/* --- Requests ---------------------------------------------------------------------------------------------------- */

static void request_unlink(struct request *req)
{
    struct requests *rq = req->rq;

    if (!req->ring)
        return;
    if (req->ring->current == req)
        req->ring->current = NULL;
    list_unlink(&req->link);
    list_unlink(&req->parked_link);
    deadline_clear(&rq->deadlines, &req->deadline);
    req->ring->n_requests--;
    req->peer->n_requests--;
    req->ring = NULL;
    req->peer = NULL;
}

void request_set_state(struct request *req, enum request_state state)
{
    struct requests *rq = req->rq;

    if (req->state == REQUEST_DETACHED)
        rq->n_detached--;
    if (req->state == REQUEST_LISTING && req->ring && req->ring->current == req)
        req->ring->current = NULL;
    list_unlink(&req->parked_link);
    req->state = state;
    switch (state) {
    case REQUEST_LISTING:
        req->ring->current = req;
        break;
    case REQUEST_WAITING:
        break;
    case REQUEST_PARKED:
        list_push_tail(&req->peer->parked, &req->parked_link);
        peer_update_active(rq, req->peer);
        break;
    case REQUEST_DETACHED:
        request_unlink(req);
        rq->n_detached++;
        break;
    case REQUEST_FREE:
        request_unlink(req);
        list_unlink(&req->ended_link);
        list_push_head(&rq->free_requests, &req->link);
        rq->n_free_requests++;
        break;
    }
}

void request_end(struct request *req, int status, uint32_t detail, uint64_t value)
{
    struct requests *rq = req->rq;
    struct ring *ring = req->ring;
    struct spw_cqe cqe = {.user_data = req->sqe.user_data, .status = status, .detail = detail, .value = value};

    assert(req->waiting == 0 && list_is_empty(&req->pieces));
    request_set_state(req, req->sync_running ? REQUEST_DETACHED : REQUEST_FREE);
    rq->stat.cqes++;
    ring_complete(ring, &cqe);
    if (list_is_empty(&ring->dirty_link))
        list_push_tail(&rq->dirty, &ring->dirty_link);
}

void request_arm_deadline(struct request *req)
{
    if (req->deadline.place == DEADLINE_UNSET)
        deadline_set(&req->rq->deadlines, &req->deadline, req->expires_ns);
}

bool request_stop(struct request *req, int status, uint32_t detail)
{
    if (req->op->whole_list) { /* a sync cannot be called back: only its end is no longer waited for */
        request_end(req, status, detail, 0);
        return true;
    }
    if (request_is_all(req))
        return all_stop(req, status, detail);
    req->stop_status = status;
    req->stop_detail = detail;
    list_for_each_safe (l, &req->pieces) {
        struct piece *piece = list_entry(l, struct piece, link);

        /* Whatever is not waiting any more is on its way here with its own status. */
        if (piece->state == PIECE_WAITING && tiering_wait_cancel(req->rq->tiering, &piece->wait)) {
            piece->wait.grant = (struct tiering_grant){.limit = detail};
            piece_done(&piece->wait, status);
        }
    }
    return true;
}

/* Reserved bits end the session, and so does an operation that does not exist. */
static const char *sqe_violation(const struct spw_sqe *sqe)
{
    if (!op_find(sqe->opcode))
        return "unknown opcode";
    if ((sqe->flags & ~SPW_SQE_FLAGS) != 0 || sqe->reserved0 != 0 || sqe->reserved[0] != 0 || sqe->reserved[1] != 0)
        return "a reserved field of an SQE is not zero";
    return NULL;
}

/* Where items and results lie: at full width, before anything is narrowed. */
static int request_check_ranges(struct request *req)
{
    const struct spw_sqe *sqe = &req->sqe;
    uint64_t size = req->ring->scratch_bytes;
    uint64_t item_bytes = req->op->list == OP_LIST_HANDLES ? sizeof(struct spw_handle) : sizeof(struct spw_item);

    if (req->op->list == OP_LIST_NONE || (sqe->n_items == 0 && req->op->may_be_empty))
        return sqe->n_items == 0 && sqe->items == 0 ? 0 : -EINVAL;
    if (sqe->n_items == 0 || sqe->n_items > SPW_LIST_MAX || sqe->items % 64 != 0 || sqe->results % 64 != 0)
        return -EINVAL;
    if (!range_ok(sqe->items, sqe->n_items * item_bytes, size) ||
        !range_ok(sqe->results, sqe->n_items * (uint64_t)sizeof(struct spw_result), size))
        return -ERANGE;
    req->max_results = (uint32_t)((size - sqe->results) / sizeof(struct spw_result));
    return 0;
}

static int request_check(struct request *req)
{
    const struct spw_sqe *sqe = &req->sqe;
    const struct op *op = req->op;

    if ((sqe->flags & ~op->flags) != 0)
        return -EINVAL;
    for (unsigned i = op->n_args; i < ARRAY_LEN(sqe->arg); i++)
        if (sqe->arg[i] != 0)
            return -EINVAL;
    if (!op->needs_space && sqe->space != 0)
        return -EINVAL;
    if (op->needs_space) {
        int r = space_find(req->rq, req->peer, sqe->space, &req->space);

        if (r < 0)
            return r;
    }
    int r = request_check_ranges(req);

    return r < 0 || !op->begin ? r : op->begin(req);
}

static struct request *request_new(struct requests *rq, struct ring *ring, const struct spw_sqe *sqe)
{
    struct request *req = list_entry(list_pop(&rq->free_requests), struct request, link);
    uint64_t timeout_ms = sqe->timeout_ms;

    rq->n_free_requests--;
    memset(req, 0, offsetof(struct request, sync));
    req->rq = rq;
    req->ring = ring;
    req->peer = ring->peer;
    req->sqe = *sqe;
    req->op = op_find(sqe->opcode);
    req->deadline.place = DEADLINE_UNSET;
    if (timeout_ms == 0 || timeout_ms > REQUEST_TIMEOUT_MS_MAX)
        timeout_ms = REQUEST_TIMEOUT_MS_MAX;
    req->expires_ns = rq->now_ns + timeout_ms * NS_PER_MS;
    list_init(&req->parked_link);
    list_init(&req->ended_link);
    list_init(&req->pieces);
    list_push_tail(&ring->requests, &req->link);
    ring->n_requests++;
    req->peer->n_requests++;
    rq->stat.sqes++;
    return req;
}

/* Returns what it cost; the request may be over already. */
static uint32_t request_begin(struct requests *rq, struct ring *ring, const struct spw_sqe *sqe)
{
    const char *violation = sqe_violation(sqe);

    if (violation) {
        peer_break(rq, ring->peer, violation);
        return 1;
    }
    struct request *req = request_new(rq, ring, sqe);

    request_set_state(req, REQUEST_LISTING);
    int r = request_check(req);

    if (r < 0)
        request_end(req, r, 0, 0);
    else if (req->op->list == OP_LIST_NONE)
        request_end(req, 0, 0, (uint64_t)r);
    return 1;
}

static uint32_t request_run(struct request *req, uint32_t budget)
{
    if (req->op->whole_list)
        return sync_run(req);
    return request_is_all(req) ? all_run(req) : list_run(req, budget);
}

/* --- Turns ------------------------------------------------------------------------------------------------------- */

static uint32_t ring_serve(struct requests *rq, struct ring *ring, uint32_t budget)
{
    struct peer *peer = ring->peer;
    struct spw_sqe sqe;

    if (ring->current)
        return request_run(ring->current, budget);
    if (peer->n_requests >= rq->n_free_requests)
        return 0;
    int r = ring_take(ring, &sqe);

    if (r < 0)
        peer_break(rq, peer, "an index of a ring is out of its bounds");
    return r > 0 ? request_begin(rq, ring, &sqe) : 0;
}

static uint32_t peer_serve_parked(struct requests *rq, struct peer *peer)
{
    uint32_t used = 0;

    list_for_each_safe (l, &peer->parked) {
        struct request *req = list_entry(l, struct request, parked_link);

        if (req->tried_at == rq->changes && rq->now_ns < req->retry_ns)
            continue;
        req->retry_ns = rq->now_ns + RETRY_NS;
        used += request_run(req, QUANTUM_ITEMS);
        if (peer->broken)
            return used;
    }
    return used;
}

/* A ring that had nothing to do for long enough goes cold. */
static void ring_idle(struct requests *rq, struct ring *ring)
{
    if (ring->current || ring_is_choked(ring) || ring->sq_head != ring->sq_tail) {
        rq->n_blocked++;
        rq->stat.stalls++;
        return;
    }
    if (rq->now_ns - ring->last_work_ns < rq->config.spin_ns) {
        rq->n_idle_hot++;
        return;
    }
    ring->last_work_ns = rq->now_ns;
    if (!ring_sleep(ring)) {
        rq->n_idle_hot++;
        return;
    }
    ring_set_hot(rq, ring, false);
    if (rq->config.events->ring_cold(rq->config.ctx, ring) < 0)
        requests_ring_hot(rq, ring, rq->now_ns);
}

/* Until the session has had its share, or none of its rings has anything. */
static uint32_t peer_serve_rings(struct requests *rq, struct peer *peer)
{
    uint32_t used = 0, idle = 0;

    while (peer->deficit > 0 && idle < peer->n_hot) {
        struct ring *ring = list_entry(peer->hot.next, struct ring, hot_link);
        uint32_t budget = (uint32_t)div_round_up((uint64_t)peer->deficit, DEFICIT_PER_ITEM);
        uint32_t n = ring_serve(rq, ring, MIN(budget, (uint32_t)QUANTUM_ITEMS));

        if (peer->broken)
            return used + n;
        list_unlink(&ring->hot_link);
        list_push_tail(&peer->hot, &ring->hot_link);
        idle = n > 0 ? 0 : idle + 1;
        if (n > 0)
            ring->last_work_ns = rq->now_ns;
        peer->deficit -= (int64_t)n * DEFICIT_PER_ITEM;
        used += n;
    }
    if (peer->deficit <= 0) { /* there may be more: come back at once */
        rq->n_idle_hot++;
        return used;
    }
    peer->deficit = 0;
    list_for_each_safe (l, &peer->hot)
        ring_idle(rq, list_entry(l, struct ring, hot_link));
    return used;
}

static uint32_t peer_turn(struct requests *rq, struct peer *peer)
{
    peer->deficit = MIN(peer->deficit, 0) + (int64_t)QUANTUM_ITEMS * peer->weight;
    uint32_t used = peer_serve_parked(rq, peer);

    peer->deficit -= (int64_t)used * DEFICIT_PER_ITEM;
    return peer->broken ? used : used + peer_serve_rings(rq, peer);
}

/* What tiering's callbacks have put aside. */
static uint32_t requests_collect(struct requests *rq)
{
    uint32_t n = 0;
    struct list *l;

    for (; (l = list_pop(&rq->ended)) != NULL; n++)
        piece_ended(list_entry(l, struct piece, ended_link));
    for (; (l = list_pop(&rq->ended_syncs)) != NULL; n++)
        sync_ended(list_entry(l, struct request, ended_link));
    return n;
}

static uint32_t requests_expire(struct requests *rq)
{
    struct deadline *deadline;
    uint32_t n = 0;

    for (; (deadline = deadlines_pop(&rq->deadlines, rq->now_ns)) != NULL; n++) {
        struct request *req = container_of(deadline, struct request, deadline);

        rq->stat.timeouts++;
        (void)request_stop(req, req->op->timeout_status, req->op->timeout_detail);
    }
    return n;
}

uint32_t requests_run(struct requests *rq, uint64_t now_ns)
{
    struct list *l;

    rq->now_ns = now_ns;
    rq->n_idle_hot = rq->n_blocked = 0;
    uint32_t n = requests_collect(rq) + requests_expire(rq);

    list_for_each_safe (a, &rq->active)
        n += peer_turn(rq, list_entry(a, struct peer, active_link));
    while ((l = list_pop(&rq->dirty)) != NULL)
        ring_flush(list_entry(l, struct ring, dirty_link));
    return n;
}

bool requests_wants_spin(const struct requests *rq)
{
    return rq->n_idle_hot > 0 || !list_is_empty(&rq->ended) || !list_is_empty(&rq->ended_syncs);
}

uint64_t requests_next_ns(const struct requests *rq, uint64_t now_ns)
{
    uint64_t next_ns = deadlines_next_ns(&rq->deadlines);
    bool is_retrying = rq->n_blocked > 0;

    list_for_each (l, &rq->active)
        is_retrying |= !list_is_empty(&list_entry(l, struct peer, active_link)->parked);
    return is_retrying ? MIN(next_ns, now_ns + RETRY_NS) : next_ns;
}
