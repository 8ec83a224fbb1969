/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tells tiering's policies which blocks a request is about, in one go, before any of them is served. A leaf: it changes
 * nothing of the request but that this was done. And what will be asked for, of which PLAN is a list. Engine thread only.
 *
 * A request's items are copied a second time for this. A client that changes them between the two copies fools the policy about
 * its own chain, and nobody else: what is checked and used for anything that matters is the other copy.
 */
#include <errno.h>

#include "daemon/request_core.h"
#include "include/base/atomic.h"

#define NAMED_PER_ITEM 4 /* so many items are named in the time that one takes to be served */

/* How many pieces RESERVE and its like will make of it. What does not fit an item will be refused anyway. */
static uint32_t chain_pieces(const struct request *req, const struct spw_item *item)
{
    uint64_t size = item->length_bytes ? item->length_bytes : req->space.item_bytes;

    if (req->op->span != OP_SPAN_SIZE || size <= req->space.piece_bytes || size > OBJECT_BYTES_MAX)
        return 1;
    return (uint32_t)MIN(div_round_up(size, req->space.piece_bytes), (uint64_t)ITEM_PIECES_MAX);
}

/* As many as are warmed ahead; like request_list.c does it. */
static void name_some(const struct request *req, uint32_t first, uint32_t n)
{
    const char *items = req->ring->scratch + req->sqe.items + (uint64_t)first * sizeof(struct spw_item);
    struct tiering *tiering = req->rq->tiering;
    struct tiering_id ids[LIST_WARM_ITEMS];
    uint32_t n_pieces[LIST_WARM_ITEMS]; /* 0: no key */

    for (uint32_t i = 0; i < n; i++) {
        struct spw_item item;

        copy_once(&item, items + i * sizeof(item), sizeof(item));
        n_pieces[i] = list_key(req, &item, &ids[i]) == 0 ? chain_pieces(req, &item) : 0;
        if (n_pieces[i])
            tiering_warm_index(tiering, &ids[i]);
    }
    for (uint32_t i = 0; i < n; i++)
        if (n_pieces[i])
            tiering_warm_record(tiering, &ids[i]);
    for (uint32_t i = 0; i < n; i++)
        if (n_pieces[i])
            tiering_chain_add(tiering, &ids[i], n_pieces[i]);
}

uint32_t request_name(struct request *req)
{
    struct tiering *tiering = req->rq->tiering;
    bool wanted = req->op->is_request && (req->sqe.flags & SPW_SQE_CHAIN) && !req->named;

    req->named = true;
    if (!wanted || !tiering_chain_begin(tiering, &req->peer->tiering, req->space.index, req->op->use))
        return 0;
    for (uint32_t i = 0; i < req->sqe.n_items; i += LIST_WARM_ITEMS)
        name_some(req, i, MIN((uint32_t)LIST_WARM_ITEMS, req->sqe.n_items - i));
    tiering_chain_end(tiering);
    return req->sqe.n_items / NAMED_PER_ITEM;
}

static int plan_add(const struct request *req, const struct target *target)
{
    struct step step;
    int r = 0;

    for (uint32_t i = 0; i < target->n_pieces && r == 0; i++) {
        target_step(req, target, i, &step);
        r = tiering_plan_add(req->rq->tiering, &step.id);
    }
    return r;
}

/* Once all items are there: how many accesses are followed, or a negative errno. */
static int plan_end(struct request *req)
{
    uint64_t items = req->sqe.arg[0] + req->sqe.n_items;

    if (items == req->sqe.arg[1])
        return tiering_plan_end(req->rq->tiering);
    tiering_plan_pause(req->rq->tiering, &req->peer->tiering, items);
    return 0;
}

uint32_t plan_run(struct request *req)
{
    uint32_t n_items = req->sqe.n_items, detail = 0;
    int r = tiering_plan_begin(req->rq->tiering, &req->peer->tiering, req->space.index, req->sqe.arg[0]);

    for (uint32_t i = 0; i < n_items && r == 0; i++) {
        struct spw_item item;

        if (!list_copy_item(req, i, &item))
            return n_items;
        r = list_target(req, &item, &req->target, &detail);
        if (r == 0)
            r = plan_add(req, &req->target);
    }
    if (r == 0)
        r = plan_end(req);
    uint32_t accesses = r > 0 ? (uint32_t)r : 0;

    if (r == -E2BIG || r == -ENOSPC)
        detail = r == -E2BIG ? SPW_LIMIT_PLAN : SPW_LIMIT_PLANS;
    request_end(req, MIN(r, 0), detail, accesses);
    return MAX(n_items + accesses / NAMED_PER_ITEM, 1U);
}
