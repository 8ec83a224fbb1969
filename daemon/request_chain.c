/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tells tiering's policies which blocks a request is about, in one go, before any of them is served. A leaf: it changes
 * nothing of the request but that this was done. Engine thread only.
 *
 * The items are copied a second time for this. A client that changes them between the two copies fools the policy about
 * its own chain, and nobody else: what is checked and used for anything that matters is the other copy.
 */
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
