/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the way of a list through a request: each element is copied and checked (request_item.c) when its turn comes, cut
 * into pieces, and each piece's outcome is written to the result that abi.h promises for it. Engine thread only.
 *
 * Invariants
 * - Results are only written. The index of the next one is ours, and is checked against the room in scratch each time.
 * - A piece waits with a struct piece from the engine's pool. Where none is to be had the list stops in mid-item and
 *   goes on in a later turn; what was granted stays granted.
 *
 * Elements are copied and checked up to LIST_WARM_ITEMS ahead of their turn, within one turn: with millions of objects
 * everything that serving one touches lies in memory, not in a cache, and waiting for one after the other would be most
 * of the time it takes. What was copied ahead and not served (a stall) is copied afresh in the next turn.
 */
#include <errno.h>
#include <string.h>

#include "daemon/request_core.h"
#include "include/base/cache.h"
#include "include/base/checked.h"
#include "include/base/cleanup.h"
#include "include/base/point.h"

/* --- Pieces ------------------------------------------------------------------------------------------------------ */

struct piece *piece_new(struct request *req)
{
    struct requests *rq = req->rq;

    if (!pieces_available(req, 1))
        return NULL;
    struct piece *piece = list_entry(list_pop(&rq->free_pieces), struct piece, link);

    rq->n_free_pieces--;
    req->peer->n_waits++;
    req->peer->user->n_waits++;
    memset(piece, 0, sizeof(*piece));
    list_init(&piece->wait.link);
    piece->wait.done = piece_done;
    list_init(&piece->ended_link);
    piece->request = req;
    list_push_tail(&req->pieces, &piece->link);
    return piece;
}

void piece_free(struct piece *piece)
{
    struct requests *rq = piece->request->rq;

    piece->request->peer->n_waits--;
    piece->request->peer->user->n_waits--;
    piece->state = PIECE_FREE;
    list_unlink(&piece->ended_link);
    list_unlink(&piece->link);
    list_push_head(&rq->free_pieces, &piece->link);
    rq->n_free_pieces++;
}

void piece_done(struct tiering_wait *wait, int status)
{
    struct piece *piece = container_of(wait, struct piece, wait);

    assert(piece->state == PIECE_WAITING);
    piece->state = PIECE_ENDED;
    piece->status = status;
    list_push_tail(&piece->request->rq->ended, &piece->ended_link);
}

/* --- Results ----------------------------------------------------------------------------------------------------- */

void list_put_result(struct request *req, uint32_t index, int status, const struct spw_result *result)
{
    static const struct spw_result nothing;
    char *at = req->ring->scratch + req->sqe.results + (uint64_t)index * sizeof(*result);

    assert(index < req->max_results);
    memcpy(at, result ? result : &nothing, sizeof(*result));
    memcpy(at + offsetof(struct spw_result, status), &status, sizeof(status));
}

void list_grant_result(const struct tiering_grant *grant, struct spw_result *ret_result)
{
    *ret_result = (struct spw_result){
        .detail = (uint16_t)grant->limit,
        .tier = grant->tier,
        .flags = grant->fetched ? SPW_RESULT_FETCHED : 0,
        .lease = grant->lease,
        .chunk = grant->lease ? grant->region : 0,
        .epoch = grant->lease ? grant->epoch : 0,
        .offset_bytes = grant->lease ? grant->offset_bytes : 0,
        .length_bytes = grant->lease ? grant->length_bytes : 0,
    };
}

static void item_ended(struct request *req, bool ok)
{
    req->n_ok += ok;
    req->prefix_ended |= !ok;
    req->n_prefix += !req->prefix_ended;
}

/* One piece, or handle, less to wait for in its item. */
static void item_piece_ended(struct request *req, struct piece *group, int status, const struct tiering_grant *grant)
{
    /* Leases that there are now, or are no longer. */
    if (status == 0 || (req->op->list == OP_LIST_HANDLES && grant->lease == 0))
        req->must_look = true;
    if (!group) {
        item_ended(req, status == 0);
        return;
    }
    group->failed += status != 0;
    if (--group->left > 0)
        return;
    item_ended(req, group->failed == 0);
    if (req->group == group)
        req->group = NULL;
    piece_free(group);
}

static void list_finish(struct request *req)
{
    if (req->waiting > 0) {
        request_set_state(req, REQUEST_WAITING);
        return;
    }
    /* Stopped before anything has happened: nothing in the results needs to be looked at. */
    int status = req->list_status ? req->list_status : req->must_look ? 0 : req->stop_status;
    uint32_t detail = req->list_status == -E2BIG ? SPW_LIMIT_PIECES : status ? req->stop_detail : 0;

    request_end(req, status, detail, req->op->counts_prefix ? req->n_prefix : req->n_ok);
}

void piece_ended(struct piece *piece)
{
    struct request *req = piece->request;
    struct piece *group = piece->group;
    struct spw_result result;
    int status = piece->status;

    req->waiting--;
    if (request_is_all(req)) {
        all_piece_ended(piece);
        return;
    }
    request_granted(req, &piece->wait.grant);
    list_grant_result(&piece->wait.grant, &result);
    list_put_result(req, piece->result, status, &result);
    struct tiering_grant grant = piece->wait.grant;

    piece_free(piece);
    item_piece_ended(req, group, status, &grant);
    if (request_is_listed(req) && req->waiting == 0)
        list_finish(req);
}

/* --- The list ---------------------------------------------------------------------------------------------------- */

enum { LIST_STALLED, LIST_WENT_ON, LIST_BROKEN };

/* False: the peer was broken. */
static bool list_copy_ahead(struct request *req, uint32_t index, struct ahead *ret_ahead)
{
    struct spw_item item;

    if (req->op->list == OP_LIST_HANDLES) {
        if (!list_copy_handle(req, index, &ret_ahead->handle))
            return false;
        tiering_warm_lease(req->rq->tiering, ret_ahead->handle.lease);
        return true;
    }
    if (!list_copy_item(req, index, &item))
        return false;
    ret_ahead->status = list_target(req, &item, &ret_ahead->target, &ret_ahead->detail);
    if (ret_ahead->status == 0)
        tiering_warm_index(req->rq->tiering, &ret_ahead->target.id);
    return true;
}

/* Lines of scratch that the client wrote last: the elements of this look and the next one, and where the results go. */
static void list_warm_scratch(const struct request *req, uint32_t n)
{
    const char *scratch = req->ring->scratch;
    uint64_t element_bytes = req->op->list == OP_LIST_HANDLES ? sizeof(struct spw_handle) : sizeof(struct spw_item);
    uint32_t n_items = MIN(n + LIST_WARM_ITEMS, req->sqe.n_items - req->next_item);
    uint32_t n_results = MIN(n, req->max_results - req->next_result);

    cache_warm_to_read(scratch + req->sqe.items + req->next_item * element_bytes, n_items * element_bytes);
    cache_warm_to_write(scratch + req->sqe.results + req->next_result * sizeof(struct spw_result),
                        n_results * sizeof(struct spw_result));
}

/* The next elements of the list, copied, checked and warmed. False: the peer was broken. */
static bool list_look_ahead(struct request *req, uint32_t max)
{
    struct requests *rq = req->rq;
    uint32_t left = req->sqe.n_items - req->next_item, n = MIN(max, (uint32_t)LIST_WARM_ITEMS);

    n = MIN(n, left);
    rq->n_ahead = rq->next_ahead = 0;
    list_warm_scratch(req, n);
    for (uint32_t i = 0; i < n; i++)
        if (!list_copy_ahead(req, req->next_item + i, &rq->ahead[i]))
            return false;
    for (uint32_t i = 0; i < n && n > 1; i++) {
        if (req->op->list == OP_LIST_HANDLES)
            tiering_warm_leased(rq->tiering, rq->ahead[i].handle.lease);
        else if (rq->ahead[i].status == 0)
            tiering_warm_record(rq->tiering, &rq->ahead[i].target.id);
    }
    for (uint32_t i = 0; i < n && n > 1 && req->op->list != OP_LIST_HANDLES && !req->op->counts_prefix; i++)
        if (rq->ahead[i].status == 0)
            tiering_warm_neighbours(rq->tiering, &rq->ahead[i].target.id);
    rq->n_ahead = n;
    return true;
}

static int list_next_item(struct request *req)
{
    const struct ahead *ahead = &req->rq->ahead[req->rq->next_ahead++];
    uint32_t detail = ahead->detail;
    int r = ahead->status;

    req->target = ahead->target;
    if (req->target.n_results > ITEM_PIECES_MAX || req->target.n_results > req->max_results - req->next_result) {
        req->list_status = req->target.n_results > ITEM_PIECES_MAX ? -E2BIG : -EOVERFLOW;
        req->next_item = req->sqe.n_items;
        return LIST_WENT_ON;
    }
    if (r == 0 && req->target.n_pieces > 1 && !req->stop_status) { /* what is stopped needs nothing to wait with */
        req->group = piece_new(req);
        if (!req->group)
            return LIST_STALLED;
        req->group->state = PIECE_GROUP;
        req->group->left = req->target.n_pieces;
    }
    req->item_status = r;
    req->item_detail = detail;
    req->in_item = true;
    req->next_piece = 0;
    return LIST_WENT_ON;
}

/* The outcome of a piece or handle that did not have to wait. */
static void list_step_ended(struct request *req, int status, const struct tiering_grant *grant,
                            struct spw_result *result)
{
    request_granted(req, grant);
    if (!req->op->counts_prefix)
        list_grant_result(grant, result);
    list_put_result(req, req->next_result, status, result);
    item_piece_ended(req, req->group, status, grant);
}

/* Calls the operation, with a piece to wait in where that may be needed. False: none is to be had. */
static bool list_call(struct request *req, const struct step *step, int *ret_status, struct tiering_grant *ret_grant,
                      struct spw_result *ret_result)
{
    if (!req->op->waits || req->op->rarely) {
        *ret_status = req->op->step(req, step, NULL, ret_grant, ret_result);
        if (!req->op->rarely || *ret_status != -EAGAIN)
            return true;
    }
    if (!req->spare && !sim_point("request: no wait is free"))
        req->spare = piece_new(req);
    if (!req->spare)
        return false;
    *ret_status = req->op->step(req, step, &req->spare->wait, ret_grant, ret_result);
    return true;
}

/* The first try, at the process before this one, may have done it: then the handle, or the object, is gone. */
static int list_retried(const struct request *req, int status)
{
    switch (req->sqe.opcode) {
    case SPW_OP_COMMIT:
    case SPW_OP_ABORT:
    case SPW_OP_RELEASE:
        return status == -EBADF ? 0 : status;
    case SPW_OP_DELETE:
        return status == -ENOENT ? 0 : status;
    case SPW_OP_PUT_RANGE:
        return status == -EEXIST ? 0 : status;
    default:
        return status;
    }
}

/* Has the handle its lease still, after a step that failed or was not made? The result says so: it names it. */
static void list_keep_lease(const struct request *req, const struct step *step, struct tiering_grant *grant)
{
    struct tiering_grant unused;
    uint32_t pool;

    *grant = (struct tiering_grant){.limit = grant->limit};
    if (tiering_lease_info(req->rq->tiering, &req->peer->tiering, step->handle.lease, &unused, &pool) == 0)
        grant->lease = step->handle.lease;
}

static int list_step(struct request *req, const struct step *step)
{
    struct tiering_grant grant = {0};
    struct spw_result result = {0};
    int r = req->stop_status;

    if (r != 0)
        grant.limit = req->stop_detail;
    else if (!list_call(req, step, &r, &grant, &result))
        return LIST_STALLED;
    if (unlikely(req->sqe.flags & SPW_SQE_RETRY))
        r = list_retried(req, r);
    /* Tiering's own pools are used up: whatever uses them ends some time, and this list goes on. */
    if (r == -EAGAIN && grant.limit == TIERING_LIMIT_REQUESTS && req->spare && !(req->sqe.flags & SPW_SQE_NO_WAIT))
        return LIST_STALLED;
    if (r == TIERING_WAIT) {
        struct piece *piece = req->spare;

        assert(piece); /* only operations that wait were given one */
        req->spare = NULL;
        piece->state = PIECE_WAITING;
        piece->group = req->group;
        piece->result = req->next_result;
        req->waiting++;
        request_arm_deadline(req);
    } else {
        if (r < 0 && req->op->list == OP_LIST_HANDLES)
            list_keep_lease(req, step, &grant);
        list_step_ended(req, r, &grant, &result);
    }
    req->next_result++;
    return LIST_WENT_ON;
}

static int list_handle(struct request *req)
{
    struct step step = {0};

    if (!req->in_item)
        req->handle = req->rq->ahead[req->rq->next_ahead++].handle;
    req->in_item = true; /* a stall must not read it a second time */
    step.handle = req->handle;
    int r = list_step(req, &step);

    if (r == LIST_WENT_ON) {
        req->in_item = false;
        req->next_item++;
    }
    return r;
}

/* The item was refused as a whole: each of its results says why. */
static int list_refuse(struct request *req)
{
    struct spw_result result = {.detail = (uint16_t)req->item_detail};

    list_put_result(req, req->next_result++, req->item_status, &result);
    if (++req->next_piece == req->target.n_results) {
        if (!add_u64(req->arena_offset, req->target.object_bytes, &req->arena_offset))
            req->arena_offset = UINT64_MAX;
        req->in_item = false;
        req->next_item++;
        item_ended(req, false);
    }
    return LIST_WENT_ON;
}

static int list_item(struct request *req)
{
    struct step step;

    if (!req->in_item) {
        int r = list_next_item(req);

        if (r != LIST_WENT_ON || !req->in_item)
            return r;
    }
    if (req->item_status != 0)
        return list_refuse(req);
    target_step(req, &req->target, req->next_piece, &step);
    int r = list_step(req, &step);

    if (r != LIST_WENT_ON)
        return r;
    if (!add_u64(req->arena_offset, step.length_bytes, &req->arena_offset)) /* the next one lies behind this one */
        req->arena_offset = UINT64_MAX;
    if (++req->next_piece == req->target.n_pieces) {
        req->in_item = false;
        req->group = NULL; /* it lives on with its pieces */
        req->next_item++;
    }
    return r;
}

/* What objects of many pieces have cost since then, in items. */
static uint32_t walk_cost(const struct requests *rq, uint64_t walked)
{
    return (uint32_t)MIN((tiering_walked(rq->tiering) - walked) / WALKED_PER_ITEM, (uint64_t)UINT16_MAX);
}

uint32_t list_run(struct request *req, uint32_t budget)
{
    struct requests *rq = req->rq;
    uint64_t walked = tiering_walked(rq->tiering);
    uint32_t n = 0, cost = 0;
    int r = LIST_WENT_ON;

    if (sim_point("request: a turn of one element"))
        budget = 1;

    rq->n_ahead = rq->next_ahead = 0; /* another list's */
    for (; n + cost < budget && !request_is_listed(req) && r == LIST_WENT_ON; n++) {
        if (!req->in_item && rq->next_ahead == rq->n_ahead && !list_look_ahead(req, budget - n))
            r = LIST_BROKEN;
        else
            r = req->op->list == OP_LIST_HANDLES ? list_handle(req) : list_item(req);
        cost = walk_cost(rq, walked);
    }
    if (req->spare)
        piece_free(steal_ptr(req->spare));
    if (r == LIST_BROKEN)
        return n + cost;
    req->rq->stat.items += n;
    if (r == LIST_STALLED) {
        request_arm_deadline(req);
        return n - 1 + cost;
    }
    if (request_is_listed(req))
        list_finish(req);
    return MAX(n, 1U) + cost;
}
