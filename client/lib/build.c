/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the API's arguments to a struct client_call, once for the blocking call and the job of the same name. Arguments
 * that are wrong whatever the daemon says are refused here, with words. No state; any thread.
 */
#include "client/lib/client.h"

static int flags_check(const char *name, unsigned flags, unsigned allowed)
{
    if (flags & ~allowed)
        return client_error(-EINVAL, 0, "%s: flags 0x%x are not for this call", name, flags & ~allowed);
    return 0;
}

static int list_check(const char *name, const spw_space *space, const void *list, size_t n)
{
    if (!space)
        return client_error(-EINVAL, 0, "%s: the space is NULL", name);
    if (n > 0 && !list)
        return client_error(-EINVAL, 0, "%s: the list is NULL", name);
    return 0;
}

/* Clears the call first: callers may set more of its fields whatever the result. */
static int build(const char *name, struct client_call *ret_call, enum spw_op op, spw_space *space, const void *list,
                 size_t n, unsigned flags, unsigned allowed)
{
    *ret_call = (struct client_call){.space = space,
                                     .n = n,
                                     .opcode = (uint8_t)op,
                                     .flags = (uint8_t)(flags & SPW_SQE_FLAGS),
                                     .whole = flags & SPW_ALL};
    int r = list_check(name, space, list, n);
    return r < 0 ? r : flags_check(name, flags, allowed);
}

int client_build_lookup(const char *name, struct client_call *ret_call, spw_space *space, const struct spw_key *keys,
                        size_t n, unsigned flags, struct spw_hit *hits)
{
    int r = build(name, ret_call, SPW_OP_LOOKUP, space, keys, n, flags, SPW_CHAIN);

    ret_call->keys = keys;
    ret_call->hits = hits;
    return r;
}

int client_build_reserve(const char *name, struct client_call *ret_call, spw_space *space, const struct spw_key *keys,
                         const uint64_t *sizes, size_t n, unsigned flags, uint32_t timeout_ms, struct spw_view *views)
{
    int r = build(name, ret_call, SPW_OP_RESERVE, space, keys, n, flags, SPW_CHAIN | SPW_ALL);

    if (r < 0)
        return r;
    if (n > 0 && !views)
        return client_error(-EINVAL, 0, "%s: there is nowhere to put the views", name);
    if (!sizes && space->item_bytes == 0)
        return client_error(-EINVAL, 0, "%s: the space has no fixed size, so sizes cannot be NULL", name);
    for (size_t i = 0; i < n; i++) {
        uint64_t size_bytes = sizes ? sizes[i] : space->item_bytes;
        if (size_bytes == 0)
            return client_error(-EINVAL, 0, "%s: element %zu is empty", name, i);
        if (size_bytes > space->piece_bytes)
            return client_error(-EMSGSIZE, 0, "%s: element %zu has %llu bytes, more than one piece (%u): use spw_put()",
                                name, i, (unsigned long long)size_bytes, space->piece_bytes);
        if (!sizes)
            break; /* all alike */
    }
    ret_call->keys = keys;
    ret_call->sizes = sizes;
    ret_call->length_bytes = space->item_bytes;
    ret_call->timeout_ms = timeout_ms;
    ret_call->views = views;
    return 0;
}

int client_build_acquire(const char *name, struct client_call *ret_call, spw_space *space, const struct spw_key *keys,
                         size_t n, unsigned flags, uint32_t timeout_ms, struct spw_view *views)
{
    int r = build(name, ret_call, SPW_OP_ACQUIRE, space, keys, n, flags, SPW_CHAIN | SPW_ALL | SPW_WRITE | SPW_NO_WAIT);

    if (r == 0 && n > 0 && !views)
        r = client_error(-EINVAL, 0, "%s: there is nowhere to put the views", name);
    ret_call->keys = keys;
    ret_call->timeout_ms = timeout_ms;
    ret_call->views = views;
    return r;
}

int client_build_handles(const char *name, struct client_call *ret_call, enum spw_op op, spw_space *space,
                         struct spw_view *views, size_t n, unsigned flags, unsigned allowed)
{
    int r = build(name, ret_call, op, space, views, n, flags, allowed);

    if (r == 0 && (flags & SPW_DIRTY) && (flags & SPW_DISCARD))
        r = client_error(-EINVAL, 0, "%s: SPW_DIRTY and SPW_DISCARD exclude each other", name);
    ret_call->handles = views;
    ret_call->handle_flags = (flags & (SPW_DIRTY | SPW_DISCARD)) >> 8;
    return r;
}

int client_build_keys(const char *name, struct client_call *ret_call, enum spw_op op, spw_space *space,
                      const struct spw_key *keys, size_t n, unsigned flags, unsigned allowed, int32_t *statuses)
{
    int r = build(name, ret_call, op, space, keys, n, flags, allowed);

    ret_call->keys = keys;
    ret_call->statuses = statuses;
    ret_call->whole |= op == SPW_OP_SYNC;
    return r;
}
