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

uint32_t request_name(struct request *req)
{
    struct tiering *tiering = req->rq->tiering;
    bool wanted = req->op->is_request && (req->sqe.flags & SPW_SQE_CHAIN) && !req->named;

    req->named = true;
    if (!wanted || !tiering_chain_begin(tiering, &req->peer->tiering, req->space.index, req->op->use))
        return 0;
    for (uint32_t i = 0; i < req->sqe.n_items; i++) {
        struct spw_item item;
        struct tiering_id id;

        copy_once(&item, req->ring->scratch + req->sqe.items + (uint64_t)i * sizeof(item), sizeof(item));
        if (list_key(req, &item, &id) == 0)
            tiering_chain_add(tiering, &id, chain_pieces(req, &item));
    }
    tiering_chain_end(tiering);
    return req->sqe.n_items / NAMED_PER_ITEM;
}
