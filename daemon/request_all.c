/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the lists that are served as a whole: all-or-nothing RESERVE and ACQUIRE, and SYNC. Engine thread only.
 *
 * An attempt is one turn. The list is copied once into the engine's own buffer, checked there, and what it needs is
 * added up; only if the pool has that many lease bytes left is anything taken. So it never holds some leases while it
 * waits for others. An attempt that must wait leaves nothing behind: the next one begins with a fresh copy, checked
 * afresh. Once everything is taken, pieces may wait for a device, and the first failure gives all of it back.
 *
 * The client sees nothing before the end: grants stay in the pieces until the last one is there.
 */
#include <errno.h>

#include "daemon/request_core.h"
#include "include/base/checked.h"
#include "include/base/point.h"

#define LOOK_NS UINT64_C(10000000) /* for each so many elements */
#define ALL_NONE UINT32_MAX        /* no piece in particular failed */

struct attempt {
    uint32_t n_results, n_pieces;
    uint64_t lease_bytes;
    int status; /* of the first item or piece that cannot be had */
    uint32_t detail;
    uint32_t failed_result;
};

/* --- Looking at the list ----------------------------------------------------------------------------------------- */

static void attempt_fail(struct attempt *a, int status, uint32_t detail, uint32_t result)
{
    if (a->status != 0)
        return;
    a->status = status;
    a->detail = detail;
    a->failed_result = result;
}

/* What a piece needs; SYNC needs it to be there. */
static int attempt_piece(const struct request *req, const struct step *step, struct attempt *a)
{
    struct tiering_found found;
    uint64_t bytes = 0;
    int r;

    if (req->op->run)
        r = tiering_lookup(req->rq->tiering, &step->id, &found);
    else
        r = op_lease_bytes(req, step, &bytes);
    a->lease_bytes += bytes;
    return r;
}

static void attempt_item(const struct request *req, const struct target *target, struct attempt *a)
{
    struct step step;

    for (uint32_t i = 0; i < target->n_pieces && a->status == 0; i++) {
        target_step(req, target, i, &step);
        int r = attempt_piece(req, &step, a);

        if (r < 0)
            attempt_fail(a, r, 0, a->n_results + MIN(i, target->n_results - 1));
    }
}

/* Copies and checks the whole list. False: the peer was broken, or the request is over. */
static bool attempt_begin(struct request *req, struct attempt *a)
{
    struct requests *rq = req->rq;

    *a = (struct attempt){.failed_result = ALL_NONE};
    for (uint32_t i = 0; i < req->sqe.n_items; i++) {
        uint32_t detail;

        if (!list_copy_item(req, i, &rq->staged[i]))
            return false;
        int r = list_target(req, &rq->staged[i], &rq->targets[i], &detail);

        if (rq->targets[i].n_results > req->max_results - a->n_results) {
            request_end(req, -EOVERFLOW, 0, 0);
            return false;
        }
        if (r < 0)
            attempt_fail(a, r, detail, a->n_results);
        else if (a->n_pieces + rq->targets[i].n_pieces > peer_max_waits(rq, req->peer) / 2)
            attempt_fail(a, -E2BIG, SPW_LIMIT_PIECES, a->n_results);
        else
            attempt_item(req, &rq->targets[i], a);
        a->n_results += rq->targets[i].n_results;
        a->n_pieces += rq->targets[i].n_pieces;
    }
    req->next_result = a->n_results;
    return true;
}

/* --- The end ----------------------------------------------------------------------------------------------------- */

static void all_give_back(struct request *req)
{
    struct tiering *tiering = req->rq->tiering;

    list_for_each_safe (l, &req->pieces) {
        struct piece *piece = list_entry(l, struct piece, link);

        if (piece->state == PIECE_WAITING)
            (void)tiering_wait_cancel(tiering, &piece->wait);
        else if (piece->status == 0)
            req->op->undo(req, piece->wait.grant.lease);
        piece_free(piece);
    }
    req->waiting = 0;
    req->rq->changes++;
}

static void all_fail(struct request *req, uint32_t failed_result, int status, uint32_t detail)
{
    struct spw_result failed = {.detail = (uint16_t)detail};

    all_give_back(req);
    for (uint32_t i = 0; i < req->next_result; i++)
        list_put_result(req, i, i == failed_result ? status : -ECANCELED, i == failed_result ? &failed : NULL);
    request_end(req, status, detail, 0);
}

bool all_stop(struct request *req, int status, uint32_t detail)
{
    all_fail(req, ALL_NONE, status, detail);
    return true;
}

static void all_succeed(struct request *req)
{
    list_for_each_safe (l, &req->pieces) {
        struct piece *piece = list_entry(l, struct piece, link);
        struct spw_result result;

        request_granted(req, &piece->wait.grant);
        list_grant_result(&piece->wait.grant, &result);
        list_put_result(req, piece->result, 0, &result);
        piece_free(piece);
    }
    request_end(req, 0, 0, req->sqe.n_items);
}

void all_piece_ended(struct piece *piece)
{
    struct request *req = piece->request;

    piece->state = PIECE_SETTLED;
    if (piece->status != 0)
        all_fail(req, piece->result, piece->status, piece->wait.grant.limit);
    else if (req->waiting == 0)
        all_succeed(req);
}

/* --- All or nothing ---------------------------------------------------------------------------------------------- */

static void all_park(struct request *req, const struct attempt *a, uint32_t detail)
{
    req->parked_pieces = a ? a->n_pieces : 0;
    req->parked_bytes = a ? a->lease_bytes : 0;
    req->look_ns = req->rq->now_ns + LOOK_NS * div_round_up(req->sqe.n_items, LIST_WARM_ITEMS);
    req->tried_at = req->rq->changes;
    req->parked_detail = detail;
    request_arm_deadline(req);
    if (req->state != REQUEST_PARKED)
        request_set_state(req, REQUEST_PARKED);
}

/* Whether there is room for it, now. What is admitted is given back at once: tiering admits piece by piece itself, and
 * nothing comes in between, for this is one thread and one turn. */
static int all_admit(struct request *req, uint64_t bytes, uint32_t *ret_limit)
{
    struct requests *rq = req->rq;
    int r = tiering_admit(rq->tiering, &req->peer->tiering, req->space.pool, bytes, ret_limit);

    if (r == 0)
        tiering_unadmit(rq->tiering, &req->peer->tiering, req->space.pool, bytes);
    return r;
}

static bool all_may_admit(const struct request *req, uint64_t bytes)
{
    return tiering_may_admit(req->rq->tiering, &req->peer->tiering, req->space.pool, bytes);
}

static int all_take_piece(struct request *req, const struct target *target, uint32_t index, uint32_t result,
                          uint32_t *ret_limit)
{
    struct step step;
    struct spw_result unused;
    struct tiering_grant grant = {0};
    struct piece *piece = piece_new(req); /* that many are free: all_run() looked */

    piece->result = result;
    target_step(req, target, index, &step);
    int r = req->op->step(req, &step, &piece->wait, &grant, &unused);

    if (r == TIERING_WAIT) {
        piece->state = PIECE_WAITING;
        req->waiting++;
    } else {
        piece->state = PIECE_SETTLED;
        piece->status = r;
        piece->wait.grant = grant;
        *ret_limit = grant.limit;
    }
    return r;
}

/* Takes everything, or gives back what it took. */
static void all_take(struct request *req)
{
    struct requests *rq = req->rq;
    uint32_t result = 0, limit = 0;

    for (uint32_t i = 0; i < req->sqe.n_items; i++) {
        for (uint32_t p = 0; p < rq->targets[i].n_pieces; p++, result++) {
            int r = all_take_piece(req, &rq->targets[i], p, result, &limit);

            if (r == -EAGAIN && limit == TIERING_LIMIT_REQUESTS) { /* later: what uses tiering's moves ends some time */
                all_give_back(req);
                all_park(req, NULL, limit);
                return;
            }
            if (r < 0) {
                all_fail(req, result, r, limit);
                return;
            }
        }
    }
    if (req->waiting == 0) {
        all_succeed(req);
        return;
    }
    request_arm_deadline(req);
    request_set_state(req, REQUEST_WAITING);
}

/* Whoever parks lists that are long, and want too much, would otherwise have the engine look at all of them whenever anything
 * changes. What the list wanted when it was looked at is a hint: it is looked at again now and then, the longer it is the more
 * rarely, since its objects may have changed. */
static bool all_is_worth_it(struct request *req)
{
    uint32_t limit;

    if (req->state != REQUEST_PARKED || req->rq->now_ns >= req->look_ns)
        return true;
    req->tried_at = req->rq->changes;
    return pieces_available(req, req->parked_pieces) && all_admit(req, req->parked_bytes, &limit) == 0;
}

uint32_t all_run(struct request *req)
{
    uint32_t n_items = req->sqe.n_items, limit = 0;
    struct attempt a;

    if (!all_is_worth_it(req))
        return 1;
    if (!attempt_begin(req, &a))
        return n_items;
    if (a.status != 0) {
        all_fail(req, a.failed_result, a.status, a.detail);
        return n_items;
    }
    if (!pieces_available(req, a.n_pieces) || sim_point("request: too few waits for a whole list")) {
        all_park(req, &a, SPW_LIMIT_REQUESTS);
        return n_items;
    }
    int r = all_admit(req, a.lease_bytes, &limit);

    if (r == -ENOSPC && req->sqe.timeout_ms != 0 && all_may_admit(req, a.lease_bytes))
        all_park(req, &a, limit);
    else if (r < 0)
        all_fail(req, ALL_NONE, r, limit);
    else
        all_take(req);
    return MAX(n_items, a.n_pieces);
}

/* --- SYNC -------------------------------------------------------------------------------------------------------- */

static void sync_done(struct tiering_sync *sync, int status)
{
    struct request *req = container_of(sync, struct request, sync);

    req->run_status = status;
    list_push_tail(&req->rq->ended_runs, &req->ended_link);
}

static void sync_put_results(struct request *req, int status)
{
    for (uint32_t i = 0; i < req->next_result; i++)
        list_put_result(req, i, status, NULL);
}

/* Which limit a SYNC met. -EAGAIN: the engine's SYNCs together name too many pieces. */
static uint32_t sync_limit(const struct request *req, int status)
{
    switch (status) {
    case -EIO:
        return SPW_LIMIT_DEVICE_FAILED;
    case -ENOSPC:
        return tiering_sync_limit(&req->sync);
    case -EAGAIN:
        return SPW_LIMIT_PIECES;
    default:
        return SPW_LIMIT_NONE;
    }
}

void sync_ended(struct request *req)
{
    if (req->state == REQUEST_DETACHED) {
        request_set_state(req, REQUEST_FREE);
        return;
    }
    int status = req->list_status ? req->list_status : req->run_status;
    uint32_t detail = sync_limit(req, status);

    sync_put_results(req, status);
    request_end(req, status, detail, status == 0 ? req->sqe.n_items : 0);
}

/* A sync cannot be called back: only its end is no longer waited for. */
bool sync_forget(struct request *req, int status, uint32_t detail)
{
    request_end(req, status, detail, 0);
    return true;
}

static int sync_add(struct request *req, const struct target *target)
{
    struct step step;
    int r = 0;

    for (uint32_t i = 0; i < target->n_pieces && r == 0; i++) {
        target_step(req, target, i, &step);
        r = tiering_sync_add(req->rq->tiering, &req->sync, &step.id);
    }
    return r;
}

uint32_t sync_run(struct request *req)
{
    struct requests *rq = req->rq;
    struct attempt a = {0};
    int r = 0;

    if (req->sqe.n_items > 0 && !attempt_begin(req, &a))
        return req->sqe.n_items;
    if (a.status != 0) {
        sync_put_results(req, -ECANCELED);
        list_put_result(req, a.failed_result, a.status, NULL);
        request_end(req, a.status, a.detail, 0);
        return MAX(req->sqe.n_items, 1U);
    }
    req->sync = (struct tiering_sync){.done = sync_done};
    tiering_sync_begin(rq->tiering, &req->sync, req->space.index);
    if (req->sqe.n_items == 0)
        r = tiering_sync_add_space(rq->tiering, &req->sync);
    for (uint32_t i = 0; i < req->sqe.n_items && r == 0; i++)
        r = sync_add(req, &rq->targets[i]);
    req->list_status = r; /* what was begun is run in any case, and its end tells both */
    req->runs = true;
    request_arm_deadline(req);
    request_set_state(req, REQUEST_WAITING);
    tiering_sync_run(rq->tiering, &req->sync);
    return MAX(a.n_pieces, 1U);
}
