/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the requests of one engine: their memory, how one begins and how it ends. Engine thread only.
 *
 * Invariants
 * - An SQE is looked at only in its private copy. A violation breaks the peer (request_peer.c).
 * - A request that was taken off a ring gives exactly one CQE, unless its ring goes first.
 * - Callbacks of tiering only put what has ended on a list; the turn (request_turn.c) takes it from there.
 */
#include "daemon/request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/request_core.h"
#include "include/base/checked.h"
#include "include/base/kill_point.h"

#define NS_PER_MS UINT64_C(1000000)

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
    rq->users = calloc(USERS_MAX, sizeof(*rq->users));
    rq->staged = calloc(LIST_ITEMS_MAX, sizeof(*rq->staged));
    rq->targets = calloc(LIST_ITEMS_MAX, sizeof(*rq->targets));
    if (!rq->requests || !rq->pieces || !rq->users || !rq->staged || !rq->targets ||
        deadlines_init(&rq->deadlines, config->max_requests) < 0) {
        requests_free(rq);
        return -ENOMEM;
    }
    list_init(&rq->free_requests);
    list_init(&rq->free_pieces);
    list_init(&rq->peers);
    list_init(&rq->active);
    list_init(&rq->ended);
    list_init(&rq->ended_runs);
    list_init(&rq->dirty);
    for (uint32_t i = 0; i < config->max_requests; i++)
        list_push_tail(&rq->free_requests, &rq->requests[i].link);
    for (uint32_t i = 0; i < config->max_waits; i++)
        list_push_tail(&rq->free_pieces, &rq->pieces[i].link);
    rq->n_free_requests = config->max_requests;
    rq->n_free_pieces = config->max_waits;
    requests_set_user_percent(rq, config->user_percent);
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
    free(rq->users);
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
        tiering_user_stat(rq->tiering, &peer->tiering, &stat->user);
        list_for_each (r, &peer->rings)
            stat->rings++;
        n++;
    }
    return n;
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
    req->peer->user->n_requests--;
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
    request_set_state(req, req->runs ? REQUEST_DETACHED : REQUEST_FREE);
    rq->stat.cqes++;
    kill_point("request.answer");
    ring_complete(ring, &cqe);
    ring_set_dirty(rq, ring);
}

void request_arm_deadline(struct request *req)
{
    if (req->deadline.place == DEADLINE_UNSET)
        deadline_set(&req->rq->deadlines, &req->deadline, req->expires_ns);
}

bool request_stop(struct request *req, int status, uint32_t detail)
{
    if (req->op->stop)
        return req->op->stop(req, status, detail);
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
static const char *sqe_violation(const struct spw_sqe *sqe, const struct op *op)
{
    if (!op)
        return "unknown opcode";
    if ((sqe->flags & ~SPW_SQE_FLAGS) != 0 || sqe->reserved0 != 0 || sqe->reserved != 0)
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
    if (!range_ok(sqe->items, sqe->n_items * item_bytes, size))
        return -ERANGE;
    if (req->op->no_results)
        return sqe->results == 0 ? 0 : -EINVAL;
    if (!range_ok(sqe->results, sqe->n_items * (uint64_t)sizeof(struct spw_result), size))
        return -ERANGE;
    req->max_results = (uint32_t)((size - sqe->results) / sizeof(struct spw_result));
    return 0;
}

static int request_check(struct request *req)
{
    const struct spw_sqe *sqe = &req->sqe;
    const struct op *op = req->op;

    unsigned known = op->flags | (req->peer->may_retry ? (unsigned)SPW_SQE_RETRY : 0);

    if ((sqe->flags & ~known) != 0)
        return -EINVAL;
    for (unsigned i = op->n_args; i < ARRAY_LEN(sqe->arg); i++)
        if (sqe->arg[i] != 0)
            return -EINVAL;
    if (!op->needs_space && sqe->space != 0)
        return -EINVAL;
    if (op->needs_space) {
        int r = peer_space_find(req->rq, req->peer, sqe->space, &req->space);

        if (r < 0)
            return r;
    }
    int r = request_check_ranges(req);

    return r < 0 || !op->begin ? r : op->begin(req);
}

static struct request *request_new(struct requests *rq, struct ring *ring, const struct spw_sqe *sqe,
                                   const struct op *op)
{
    struct request *req = list_entry(list_pop(&rq->free_requests), struct request, link);
    uint64_t timeout_ms = sqe->timeout_ms;

    rq->n_free_requests--;
    memset(req, 0, offsetof(struct request, sqe));
    req->rq = rq;
    req->ring = ring;
    req->peer = ring->peer;
    req->sqe = *sqe;
    req->op = op;
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
    req->peer->user->n_requests++;
    kill_point("request.new");
    rq->stat.sqes++;
    return req;
}

uint32_t request_begin(struct requests *rq, struct ring *ring, const struct spw_sqe *sqe)
{
    const struct op *op = op_find(sqe->opcode);
    const char *violation = sqe_violation(sqe, op);

    if (violation) {
        peer_break(rq, ring->peer, violation);
        return 1;
    }
    struct request *req = request_new(rq, ring, sqe, op);

    request_set_state(req, REQUEST_LISTING);
    int r = request_check(req);

    if (r < 0)
        request_end(req, r, 0, 0);
    else if (req->op->list == OP_LIST_NONE)
        request_end(req, 0, 0, (uint64_t)r);
    return 1;
}

uint32_t request_run(struct request *req, uint32_t budget)
{
    if (req->op->run)
        return req->op->run(req);
    uint32_t n = request_name(req);

    return n + (request_is_all(req) ? all_run(req) : list_run(req, budget));
}
