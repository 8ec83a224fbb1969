/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One list operation: the caller's elements become items or handles in scratch memory, and the daemon's results become
 * the caller's views, hits and statuses. Pure, but for the chunks that a first sight maps.
 *
 * A call goes out in slices, one SQE each, and its parts come back in any order. What it remembers is therefore free
 * of order: how many slices were served, the first error, the smallest end of the prefix. While a slice is in flight
 * its scratch memory is the daemon's; results are copied out once and checked as copies.
 */
#include <string.h>

#include "client/lib/client.h"

#include "include/base/cache.h"

#define WARM_BYTES 4096 /* that are asked for at once: as many lines as are worth it */

/* A lease that is to be given back; the others are passed over. COMMIT takes whole reservations only. */
static bool handle_is_sent(const struct client_call *call, size_t i)
{
    const struct spw_view *view = &call->handles[i];

    return view->lease != 0 && (call->opcode != SPW_OP_COMMIT || view->status == 0);
}

static uint64_t item_length(const struct client_call *call, size_t i)
{
    return call->sizes ? call->sizes[i] : call->length_bytes;
}

static uint64_t item_offset(const struct client_call *call, size_t i)
{
    return call->offsets ? call->offsets[i] : call->offset_bytes;
}

/* As abi.h counts them. */
static uint64_t item_results(const struct client_call *call, size_t i)
{
    uint64_t offset = item_offset(call, i), length = item_length(call, i), piece = call->space->piece_bytes;

    if (length == 0 || call->opcode == SPW_OP_TENSOR || (offset == 0 && length <= piece))
        return 1;
    return (offset + length - 1) / piece - offset / piece + 1;
}

static int key_check(const char *name, const struct spw_key *key, size_t i)
{
    if (key->len == 0 || key->len > SPW_KEY_BYTES)
        return client_error(-EINVAL, 0, "%s: key %zu has %u bytes; 1 to %d are allowed", name, i, key->len,
                            SPW_KEY_BYTES);
    for (unsigned b = key->len; b < SPW_KEY_BYTES; b++)
        if (key->bytes[b] != 0)
            return client_error(-EINVAL, 0, "%s: key %zu is not zero past its %u bytes", name, i, key->len);
    if (key->reserved0 != 0 || key->reserved1 != 0)
        return client_error(-EINVAL, 0, "%s: key %zu has a reserved field that is not 0", name, i);
    if (key->n_parts > PARTS_MAX || (key->part != 0 && key->part >= key->n_parts))
        return client_error(-EINVAL, 0, "%s: key %zu is part %u of %u", name, i, key->part, key->n_parts);
    return 0;
}

int client_call_check(const char *name, const struct client_call *call)
{
    struct client_slice slice;

    if (call->n > 0 && !call->keys && !call->handles)
        return client_error(-EINVAL, 0, "%s: the list is NULL", name);
    for (size_t i = 0; call->keys && i < call->n; i++) {
        int r = key_check(name, &call->keys[i], i);
        if (r < 0)
            return r;
    }
    if (call->whole && call->n > 0) {
        client_call_slice(call, call->space->session->list_max, call->space->session->scratch_bytes, &slice);
        if (slice.n < call->n)
            return client_error(-E2BIG, 0,
                                "%s: %zu elements are more than one request takes (%zu here: list_max %u, "
                                "scratch_bytes %llu); without SPW_ALL they are split",
                                name, call->n, slice.n, call->space->session->list_max,
                                (unsigned long long)call->space->session->scratch_bytes);
    }
    return 0;
}

static uint64_t slice_bytes(const struct client_call *call, uint64_t n_items, uint64_t n_results,
                            uint64_t *ret_items_bytes)
{
    uint64_t item_bytes = call->handles ? sizeof(struct spw_handle) : sizeof(struct spw_item);

    *ret_items_bytes = round_up(n_items * item_bytes, 64);
    return *ret_items_bytes + (call->stat ? sizeof(struct spw_stat) : n_results * sizeof(struct spw_result));
}

void client_call_slice(const struct client_call *call, uint32_t list_max, uint64_t budget_bytes,
                       struct client_slice *ret_slice)
{
    uint64_t n_items = 0, n_results = 0, items_bytes;
    size_t i = call->n_sent;

    for (; i < call->n && n_items < list_max; i++) {
        if (call->handles && !handle_is_sent(call, i))
            continue;
        uint64_t more = call->no_results ? 0 : call->handles ? 1 : item_results(call, i);
        if (n_items > 0 && slice_bytes(call, n_items + 1, n_results + more, &items_bytes) > budget_bytes)
            break;
        n_items++;
        n_results += more;
    }
    while (call->handles && i < call->n && !handle_is_sent(call, i)) /* no slice for those alone */
        i++;
    uint64_t size_bytes = slice_bytes(call, n_items, n_results, &items_bytes);
    *ret_slice = (struct client_slice){
        .first = call->n_sent,
        .n = i - call->n_sent,
        .first_result = call->n_results_sent,
        .n_items = (uint32_t)n_items,
        .n_results = n_results > UINT32_MAX ? UINT32_MAX : (uint32_t)n_results, /* then size_bytes fits nowhere */
        .items_bytes = items_bytes,
        .size_bytes = size_bytes,
    };
}

void client_call_marshal(const struct client_call *call, const struct client_slice *slice, uint8_t *scratch)
{
    struct spw_handle *handle = (struct spw_handle *)(void *)scratch;
    struct spw_item *item = (struct spw_item *)(void *)scratch;

    cache_warm_to_write(scratch,
                        MIN(slice->items_bytes, (uint64_t)WARM_BYTES)); /* the daemon has read the last list there */
    for (size_t i = slice->first; i < slice->first + slice->n; i++) {
        if (call->handles) {
            if (handle_is_sent(call, i))
                *handle++ = (struct spw_handle){.lease = call->handles[i].lease, .flags = call->handle_flags};
            continue;
        }
        const struct spw_key *key = &call->keys[i];
        *item = (struct spw_item){.group = key->group,
                                  .key_len = key->len,
                                  .part = key->part,
                                  .n_parts = key->n_parts,
                                  .offset_bytes = item_offset(call, i),
                                  .length_bytes = item_length(call, i)};
        memcpy(item->key, key->bytes, sizeof(item->key));
        item++;
    }
}

/* --- Results -------------------------------------------------------------------------------------------------------- */

/* How long result k of an item must be; 0: any length. A caller copies as much as it asked for. */
static uint64_t result_expected(const struct client_call *call, size_t element, uint64_t k)
{
    uint64_t offset = item_offset(call, element), length = item_length(call, element);
    uint64_t piece = call->space->piece_bytes;

    if (length == 0)
        return 0;
    uint64_t end = offset + length;
    uint64_t piece_at = (offset / piece + k) * piece;
    return MIN(end, piece_at + piece) - MAX(offset, piece_at);
}

/* A lease and its bytes. If those cannot be mapped, the view keeps the lease, so that it can be given back. */
static int result_to_view(const struct client_call *call, const struct spw_result *result, uint64_t expected_bytes,
                          struct spw_view *ret_view)
{
    const struct spw_space *space = call->space;
    bool to_write = call->opcode == SPW_OP_RESERVE || (call->flags & SPW_SQE_WRITE);
    void *data = NULL;
    int r = result->status;

    if (r == 0) {
        if (expected_bytes != 0 && result->length_bytes != expected_bytes)
            return client_session_end(space->session, "a result has another length than was asked for");
        r = call->no_data ? 0 : client_chunk_resolve(space->session, space->engine, result, to_write, &data);
        if (r == -EPROTO || r == -ENOTCONN)
            return r;
    }
    *ret_view = (struct spw_view){
        .data = data,
        .size_bytes = r == 0 ? result->length_bytes : 0,
        .lease = result->lease,
        .status = r,
        .detail = result->detail,
        .tier = result->tier,
        .flags = result->flags,
    };
    return 0;
}

static int item_unmarshal(struct client_call *call, size_t element, uint64_t k, size_t view,
                          const struct spw_result *result)
{
    if (result->status > 0 || result->status < -4095)
        return client_session_end(call->space->session, "a result has an impossible status");
    if (call->handles) {
        struct spw_view *handle = &call->handles[element];
        if (result->status == 0 || result->lease != handle->lease) { /* else it is a lease still */
            handle->data = NULL;
            handle->lease = 0;
        }
        handle->status = result->status;
        handle->detail = result->detail;
    }
    if (call->hits)
        call->hits[element] = (struct spw_hit){
            .size_bytes = result->length_bytes, .status = result->status, .tier = result->tier, .flags = result->flags};
    if (call->statuses && (k == 0 || call->statuses[element] == 0))
        call->statuses[element] = result->status;
    if (!call->views)
        return 0;
    return result_to_view(call, result, result_expected(call, element, k), &call->views[view]);
}

int client_call_unmarshal(struct client_call *call, const struct client_slice *slice, const struct spw_cqe *cqe,
                          const uint8_t *scratch)
{
    const struct spw_result *results = (const struct spw_result *)(const void *)(scratch + slice->items_bytes);
    size_t view = slice->first_result;

    cache_warm_to_read(results, MIN(slice->n_results * sizeof(*results), (uint64_t)WARM_BYTES));
    if (call->stat)
        copy_once(call->stat, results, sizeof(*call->stat));
    for (size_t i = slice->first; slice->n_results > 0 && i < slice->first + slice->n; i++) {
        if (call->handles && !handle_is_sent(call, i))
            continue;
        uint64_t n = call->handles ? 1 : item_results(call, i);
        for (uint64_t k = 0; k < n; k++, view++) {
            struct spw_result result;
            copy_once(&result, results++, sizeof(result));
            int r = item_unmarshal(call, i, k, view, &result);
            if (r < 0)
                return r;
        }
    }
    if (call->opcode == SPW_OP_LOOKUP) {
        if (cqe->value > slice->n)
            return client_session_end(call->space->session, "a prefix is longer than its list");
        if (cqe->value < slice->n)
            call->prefix = MIN(call->prefix, slice->first + (size_t)cqe->value);
    }
    call->n_served++;
    call->value += cqe->value;
    return 0;
}

void client_call_fail(struct client_call *call, const struct client_slice *slice, int error, unsigned detail)
{
    if (call->error == 0) {
        call->error = error;
        call->detail = detail;
    }
    if (call->opcode == SPW_OP_LOOKUP)
        call->prefix = MIN(call->prefix, slice->first);
    for (size_t i = slice->first; i < slice->first + slice->n; i++) {
        if (call->hits)
            call->hits[i] = (struct spw_hit){.status = error};
        if (call->statuses)
            call->statuses[i] = error;
    }
    for (size_t i = 0; call->views && i < slice->n_results; i++)
        call->views[slice->first_result + i] = (struct spw_view){.status = error, .detail = (uint16_t)detail};
}

int client_call_status(const struct client_call *call)
{
    /* Elements with a status of their own tell what became of them, unless nothing was served at all. */
    bool each = call->hits || call->views || call->statuses;

    return each && call->n_served > 0 && !call->cancel ? 0 : call->error;
}
