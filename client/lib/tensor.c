/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tensors: opening them, and moving blocks between the store and a leased range of one. Moving a tensor's own bytes to
 * and from the caller's memory is a transfer, like put and get. No state; any thread.
 */
#include <errno.h>
#include <string.h>

#include "client/lib/client.h"

#include "include/base/checked.h"

#define VIEWS_AT_ONCE 32 /* the daemon's workers copy several at a time */

int spw_tensor_open(spw_space *space, const struct spw_key *name, uint64_t size_bytes)
{
    int32_t status;

    if (!space || !name)
        return client_error(-EINVAL, 0, "spw_tensor_open: an argument is NULL");
    if (size_bytes == 0 || size_bytes > OBJECT_BYTES_MAX)
        return client_error(-EINVAL, SPW_LIMIT_OBJECT_BYTES, "spw_tensor_open: %llu bytes",
                            (unsigned long long)size_bytes);
    struct client_call call = {
        .space = space, .keys = name, .n = 1, .opcode = SPW_OP_TENSOR, .statuses = &status, .length_bytes = size_bytes};
    int r = client_op_run("spw_tensor_open", &call);
    if (r == 0 && status < 0)
        r = client_error(status, 0, "spw_tensor_open: %s", strerrordesc_np(-status));
    return r;
}

/* Checks that the elements lie in the arena one after the other. */
static int arena_check(const char *name, const spw_space *space, const struct spw_key *keys, const uint64_t *sizes,
                       size_t n, const struct spw_view *arena, uint64_t offset_bytes)
{
    if (!space || !arena || (n > 0 && !keys))
        return client_error(-EINVAL, 0, "%s: an argument is NULL", name);
    if (arena->status != 0 || arena->lease == 0)
        return client_error(-EINVAL, 0, "%s: the arena is not leased", name);
    if (!sizes && space->item_bytes == 0)
        return client_error(-EINVAL, 0, "%s: the space has no fixed size, so sizes cannot be NULL", name);
    for (size_t i = 0; i < n; i++) {
        uint64_t size_bytes = sizes ? sizes[i] : space->item_bytes;
        if (size_bytes > space->piece_bytes)
            return client_error(-EMSGSIZE, 0, "%s: element %zu has more than one piece (%u bytes)", name, i,
                                space->piece_bytes);
        if (offset_bytes % SECTOR_BYTES != 0 || size_bytes % SECTOR_BYTES != 0)
            return client_error(-EINVAL, 0, "%s: element %zu is not a multiple of %lu bytes, or does not begin at one",
                                name, i, SECTOR_BYTES);
        if (!range_ok(offset_bytes, size_bytes, arena->size_bytes))
            return client_error(-ERANGE, 0, "%s: element %zu is empty, or lies outside of the arena", name, i);
        offset_bytes += size_bytes;
    }
    return 0;
}

/* Of blocks that lie in the arena one after the other. sizes NULL: length_bytes each. */
static struct client_call arena_call(enum spw_op op, const spw_space *space, const struct spw_key *keys,
                                     const uint64_t *sizes, uint64_t length_bytes, size_t n,
                                     const struct spw_view *arena, uint64_t offset_bytes, uint32_t timeout_ms,
                                     int32_t *ret_status)
{
    return (struct client_call){.space = space,
                                .keys = keys,
                                .n = n,
                                .sizes = sizes,
                                .length_bytes = length_bytes,
                                .opcode = (uint8_t)op,
                                .timeout_ms = timeout_ms,
                                .whole = true,
                                .statuses = ret_status,
                                .arg = {arena->lease, offset_bytes}};
}

/* As many elements a request as it takes; the arena's position goes along. */
static int arena_move(const char *name, enum spw_op op, spw_space *space, const struct spw_key *keys,
                      const uint64_t *sizes, size_t n, const struct spw_view *arena, uint64_t offset_bytes,
                      uint32_t timeout_ms, int32_t *ret_status)
{
    int r = arena_check(name, space, keys, sizes, n, arena, offset_bytes);

    for (size_t i = 0, n_here; r == 0 && i < n; i += n_here) {
        size_t n_fit = space->session->scratch_bytes / (sizeof(struct spw_item) + sizeof(struct spw_result)) - 1;
        n_fit = MIN(n_fit, (size_t)space->session->list_max);
        n_here = MIN(n - i, n_fit);
        struct client_call call = arena_call(op, space, keys + i, sizes ? sizes + i : NULL, space->item_bytes, n_here,
                                             arena, offset_bytes, timeout_ms, ret_status ? ret_status + i : NULL);
        r = client_op_run(name, &call);
        for (size_t k = i; k < i + n_here; k++)
            offset_bytes += sizes ? sizes[k] : space->item_bytes;
    }
    return r;
}

int spw_put_from_view(spw_space *space, const struct spw_key *keys, const uint64_t *sizes, size_t n,
                      const struct spw_view *arena, uint64_t arena_offset_bytes, uint32_t timeout_ms,
                      int32_t *ret_status)
{
    return arena_move("spw_put_from_view", SPW_OP_PUT_RANGE, space, keys, sizes, n, arena, arena_offset_bytes,
                      timeout_ms, ret_status);
}

int spw_get_to_view(spw_space *space, const struct spw_key *keys, const uint64_t *sizes, size_t n,
                    const struct spw_view *arena, uint64_t arena_offset_bytes, uint32_t timeout_ms, int32_t *ret_status)
{
    return arena_move("spw_get_to_view", SPW_OP_GET_RANGE, space, keys, sizes, n, arena, arena_offset_bytes, timeout_ms,
                      ret_status);
}

/* Starts a request for each, and waits for all of those that were started, whatever becomes of one. */
static int views_put(const char *name, struct client_ring *ring, struct client_call *calls, size_t n)
{
    const struct client_call *failed = NULL;
    size_t n_started = 0;
    int r = 0;

    for (; n_started < n; n_started++) {
        r = client_ring_start(ring, &calls[n_started]);
        if (r < 0)
            break;
    }
    for (size_t i = 0; i < n_started; i++) {
        client_ring_wait(ring, &calls[i]);
        if (!failed && client_call_status(&calls[i]) < 0)
            failed = &calls[i];
    }
    return failed ? client_op_finish(name, failed) : r;
}

int spw_put_from_views(spw_space *space, const struct spw_key *keys, const struct spw_view *views, size_t n,
                       uint32_t timeout_ms, int32_t *ret_status)
{
    static const char name[] = "spw_put_from_views";
    struct client_call calls[VIEWS_AT_ONCE];
    struct client_ring *ring = NULL;
    int r = !space || (n > 0 && (!keys || !views)) ? client_error(-EINVAL, 0, "%s: an argument is NULL", name) : 0;

    for (size_t i = 0; r == 0 && i < n; i++)
        r = arena_check(name, space, &keys[i], &views[i].size_bytes, 1, &views[i], 0);
    if (r == 0)
        r = client_session_check(space->session);
    if (r == 0)
        r = client_thread_ring(space->session, space->engine, &ring);
    for (size_t first = 0, n_here; r == 0 && first < n; first += n_here) {
        n_here = MIN(n - first, ARRAY_LEN(calls));
        for (size_t i = 0; r == 0 && i < n_here; i++) {
            size_t k = first + i;
            calls[i] = arena_call(SPW_OP_PUT_RANGE, space, &keys[k], NULL, views[k].size_bytes, 1, &views[k], 0,
                                  timeout_ms, ret_status ? &ret_status[k] : NULL);
            r = client_call_check(name, &calls[i]);
        }
        if (r == 0)
            r = views_put(name, ring, calls, n_here);
    }
    return r;
}

static int tensor_transfer(const char *name, enum client_transfer_kind kind, spw_space *space,
                           const struct spw_key *key, uint64_t offset_bytes, void *memory, uint64_t length_bytes,
                           uint32_t timeout_ms)
{
    struct spw_iovec iov = {memory, length_bytes};
    int32_t status = 0;
    struct client_transfer transfer = {.kind = kind,
                                       .space = space,
                                       .keys = key,
                                       .memory = &iov,
                                       .n = 1,
                                       .offset_bytes = offset_bytes,
                                       .timeout_ms = timeout_ms,
                                       .statuses = &status};

    if (space && !range_ok(offset_bytes, length_bytes, OBJECT_BYTES_MAX))
        return client_error(-EINVAL, 0, "%s: the range is empty, or ends past the largest object", name);
    int r = client_transfer_check(name, &transfer);
    if (r == 0)
        r = client_transfer_run(name, &transfer);
    if (r == 0 && status < 0)
        r = client_error(status, transfer.detail, "%s: %s", name, strerrordesc_np(-status));
    return r;
}

int spw_put_range(spw_space *space, const struct spw_key *name, uint64_t offset_bytes, const void *from,
                  uint64_t length_bytes, uint32_t timeout_ms)
{
    return tensor_transfer("spw_put_range", CLIENT_PUT_RANGE, space, name, offset_bytes, (void *)(uintptr_t)from,
                           length_bytes, timeout_ms);
}

int spw_get_range(spw_space *space, const struct spw_key *name, uint64_t offset_bytes, void *to, uint64_t length_bytes,
                  uint32_t timeout_ms)
{
    return tensor_transfer("spw_get_range", CLIENT_GET_RANGE, space, name, offset_bytes, to, length_bytes, timeout_ms);
}
