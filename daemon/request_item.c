/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an element of a list says: copied out of scratch, once, and checked in the copy. What passes here names an object
 * and a range that it may have; whether it is there is found later. Stateless; engine thread only.
 *
 * A reserved field that is not zero ends the session; every other mistake is the element's own, and its answer.
 */
#include <errno.h>
#include <string.h>

#include "daemon/request_core.h"
#include "include/base/atomic.h"
#include "include/base/checked.h"

bool list_copy_item(struct request *req, uint32_t index, struct spw_item *ret_item)
{
    copy_once(ret_item, req->ring->scratch + req->sqe.items + (uint64_t)index * sizeof(*ret_item), sizeof(*ret_item));
    if (ret_item->flags == 0 && ret_item->reserved0 == 0 && ret_item->reserved1 == 0)
        return true;
    peer_break(req->rq, req->peer, "a reserved field of an item is not zero");
    return false;
}

bool list_copy_handle(struct request *req, uint32_t index, struct spw_handle *ret_handle)
{
    copy_once(ret_handle, req->ring->scratch + req->sqe.items + (uint64_t)index * sizeof(*ret_handle),
              sizeof(*ret_handle));
    uint32_t known = req->sqe.opcode == SPW_OP_RELEASE ? SPW_RELEASE_DIRTY | SPW_RELEASE_DISCARD : 0;

    if ((ret_handle->flags & ~known) == 0 && ret_handle->reserved == 0)
        return true;
    peer_break(req->rq, req->peer, "a reserved field of a handle is not zero");
    return false;
}

int list_key(const struct request *req, const struct spw_item *item, struct tiering_id *ret_id)
{
    static const uint8_t zeros[SPW_KEY_BYTES];
    uint16_t n_parts = item->n_parts ? item->n_parts : 1;

    static_assert(SPW_KEY_BYTES == KEY_BYTES_MAX, "keys of the wire and of tiering");
    if (item->key_len == 0 || item->key_len > SPW_KEY_BYTES)
        return -EINVAL;
    if (memcmp(item->key + item->key_len, zeros, SPW_KEY_BYTES - item->key_len) != 0)
        return -EINVAL;
    if (n_parts > PARTS_MAX || item->part >= n_parts)
        return -EINVAL;
    *ret_id = (struct tiering_id){
        .space = req->space.index,
        .group = item->group,
        .part = item->part,
        .n_parts = n_parts,
        .key_len = item->key_len,
    };
    memcpy(ret_id->key, item->key, SPW_KEY_BYTES);
    return 0;
}

/* How many pieces [offset, offset + length) touches, and the first of them; false if no object can have that range. */
static bool pieces_of(uint64_t offset, uint64_t length, uint32_t piece_bytes, uint32_t *ret_first, uint32_t *ret_n)
{
    if (!range_ok(offset, length, OBJECT_BYTES_MAX))
        return false;
    *ret_first = (uint32_t)(offset / piece_bytes);
    *ret_n = (uint32_t)((offset + length - 1) / piece_bytes) - *ret_first + 1;
    return true;
}

/* The length says how large the object is: RESERVE and its like. */
static int target_size(const struct request *req, const struct spw_item *item, struct target *target,
                       uint32_t *ret_detail)
{
    uint64_t size = item->length_bytes ? item->length_bytes : req->space.item_bytes;
    uint32_t first;

    if (item->offset_bytes != 0 || size == 0)
        return -EINVAL;
    target->object_bytes = target->length_bytes = size;
    if (!pieces_of(0, size, req->space.piece_bytes, &first, &target->n_pieces)) {
        *ret_detail = SPW_LIMIT_OBJECT_BYTES;
        return -EFBIG;
    }
    if (item->length_bytes == 0 && target->n_pieces > 1 && req->op->span == OP_SPAN_SIZE)
        return -EMSGSIZE;
    target->n_results = req->op->span == OP_SPAN_TENSOR ? 1 : target->n_pieces;
    if (req->space.item_bytes != 0 && size != req->space.item_bytes && req->op->span == OP_SPAN_SIZE) {
        *ret_detail = SPW_LIMIT_OBJECT_BYTES;
        return -EINVAL;
    }
    return 0;
}

/* Without a range the item stands for an object of one piece; where that is not sure, tiering is asked. */
static int target_whole(const struct request *req, const struct target *target)
{
    struct tiering_found found;

    if (req->op->counts_prefix || (req->space.item_bytes != 0 && req->space.item_bytes <= req->space.piece_bytes))
        return 0;
    if (tiering_lookup(req->rq->tiering, &target->id, &found) == 0 && found.object_bytes > req->space.piece_bytes)
        return -EMSGSIZE;
    return 0;
}

/* SYNC without a range: the object, whatever its pieces; one result. That it is not there is found later. */
static int target_object(const struct request *req, struct target *target)
{
    struct tiering_found found;
    uint32_t first;

    if (tiering_lookup(req->rq->tiering, &target->id, &found) < 0 || found.object_bytes == 0)
        return 0;
    return pieces_of(0, found.object_bytes, req->space.piece_bytes, &first, &target->n_pieces) ? 0 : -ERANGE;
}

static int target_range(const struct request *req, const struct spw_item *item, struct target *target)
{
    if (item->length_bytes == 0 && item->offset_bytes != 0)
        return -EINVAL;
    if (item->length_bytes == 0)
        return req->op->run ? target_object(req, target) : target_whole(req, target);
    if (!pieces_of(item->offset_bytes, item->length_bytes, req->space.piece_bytes, &target->id.piece,
                   &target->n_pieces))
        return -ERANGE;
    target->n_results = target->n_pieces;
    target->offset_bytes = item->offset_bytes;
    target->length_bytes = item->length_bytes;
    return 0;
}

int list_target(const struct request *req, const struct spw_item *item, struct target *ret_target, uint32_t *ret_detail)
{
    int r = 0;

    *ret_target = (struct target){.n_pieces = 1, .n_results = 1};
    *ret_detail = 0;
    int key_status = list_key(req, item, &ret_target->id);

    switch ((enum op_span)req->op->span) {
    case OP_SPAN_RANGE:
        r = target_range(req, item, ret_target);
        break;
    case OP_SPAN_SIZE:
    case OP_SPAN_TENSOR:
        r = target_size(req, item, ret_target, ret_detail);
        break;
    case OP_SPAN_NAME:
        r = item->offset_bytes == 0 && item->length_bytes == 0 ? 0 : -EINVAL;
        break;
    }
    if (req->op->span == OP_SPAN_TENSOR)
        ret_target->n_pieces = 1;
    if (key_status < 0)
        return key_status;
    return r;
}

void target_step(const struct request *req, const struct target *target, uint32_t piece, struct step *ret_step)
{
    uint32_t piece_bytes = req->space.piece_bytes;

    *ret_step = (struct step){.id = target->id, .object_bytes = target->object_bytes};
    if (piece > 0) {
        ret_step->id.piece += piece;
        ret_step->id.hash = 0;
    }
    if (target->length_bytes == 0 || req->op->span == OP_SPAN_TENSOR)
        return;
    uint64_t from = MAX(target->offset_bytes, (uint64_t)ret_step->id.piece * piece_bytes);
    uint64_t to = MIN(target->offset_bytes + target->length_bytes, (ret_step->id.piece + UINT64_C(1)) * piece_bytes);

    ret_step->offset_bytes = (uint32_t)(from % piece_bytes);
    ret_step->length_bytes = (uint32_t)(to - from);
}
