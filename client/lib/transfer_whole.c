/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A GET of an object whose size nobody knows, and that may have several pieces: all its bytes must be of one object, and
 * so must its size, though others may delete it and put another one in its place between any two requests.
 *
 * An object of one piece comes with its lease, size and all. Of a larger one the size is asked for, its windows follow, and
 * the lease of its first piece is kept until all is copied. What is leased neither moves nor does its memory become
 * somebody else's, and what was deleted does not come back: so if the name leads to that memory again in the end, it has led
 * to that object all the time since the first window; and if its size is the one that was asked for before that, it was that
 * object's. If not, the GET begins again, window by window, as often as it takes within its time.
 *
 * The transfer's thread.
 */
#include "client/lib/transfer.h"

/* The size, in a call of its own. */
int client_transfer_size(struct transfer_state *s, size_t element, uint64_t *ret_size_bytes)
{
    struct spw_hit hit = {0};
    struct client_call call = {
        .space = s->t->space, .keys = &s->t->keys[element], .n = 1, .opcode = SPW_OP_LOOKUP, .hits = &hit};
    int r = client_ring_start(s->ring, &call);

    if (r < 0)
        return r;
    client_ring_wait(s->ring, &call);
    r = client_call_status(&call);
    if (r == 0)
        r = hit.status;
    if (r == 0 && hit.size_bytes == 0)
        return client_session_end(s->t->space->session, "an object of no bytes");
    if (r == 0)
        *ret_size_bytes = hit.size_bytes;
    return r;
}

/* Leases of a range, or none; length 0: of an object of one piece. As a whole: it waits for others' leases. */
static int whole_acquire(struct transfer_state *s, size_t element, uint64_t at_bytes, uint64_t length_bytes,
                         struct spw_view *views, size_t n)
{
    struct client_call call = {.space = s->t->space,
                               .keys = &s->t->keys[element],
                               .n = 1,
                               .opcode = SPW_OP_ACQUIRE,
                               .flags = (uint8_t)(s->t->flags | SPW_ALL),
                               .whole = true,
                               .timeout_ms = s->t->timeout_ms,
                               .offset_bytes = at_bytes,
                               .length_bytes = length_bytes,
                               .views = views};
    int r = client_ring_start(s->ring, &call);

    if (r < 0)
        return r;
    client_ring_wait(s->ring, &call);
    r = client_call_status(&call);
    if (r < 0 && s->error == 0) {
        s->error = r;
        s->detail = call.detail;
    }
    s->served |= r == 0;
    for (size_t i = 0; r == 0 && i < n; i++)
        r = views[i].status;
    return r;
}

static void whole_release(struct transfer_state *s, struct spw_view *views, size_t n)
{
    struct client_call call = {.space = s->t->space, .handles = views, .n = n, .opcode = SPW_OP_RELEASE};

    if (!client_ring_post_release(s->ring, s->t->space, views, n) && client_ring_start(s->ring, &call) == 0)
        client_ring_wait(s->ring, &call);
}

void client_transfer_whole_end(struct transfer_state *s, struct transfer_large *large)
{
    if (large->first.lease != 0)
        whole_release(s, &large->first, 1);
    large->first.lease = 0;
}

static void whole_copy(struct transfer_state *s, const struct client_copy_op *ops, size_t n)
{
    struct client_copy *copy = s->t->space->session->copy;
    struct client_copy_batch batch = {.ops = ops, .n_ops = n};

    client_copy_begin(copy, &batch, s->is_shared);
    client_copy_finish(copy, &batch);
}

/* An object of one piece. -EMSGSIZE: it has more, or there is no room for it, and then *ret_size_bytes is its size. */
static int whole_one_piece(struct transfer_state *s, const struct transfer_large *large, uint64_t *ret_size_bytes)
{
    struct spw_view view = {0};
    int r = whole_acquire(s, large->element, 0, 0, &view, 1);

    if (r == 0) {
        *ret_size_bytes = view.size_bytes;
        if (view.size_bytes > large->room_bytes)
            r = -EMSGSIZE;
        else
            whole_copy(s, &(struct client_copy_op){s->t->memory[large->element].data, view.data, view.size_bytes}, 1);
    }
    if (view.lease != 0)
        whole_release(s, &view, 1);
    return r;
}

/* 0: it was one object all the time; -ESTALE: perhaps not. */
static int whole_check(struct transfer_state *s, const struct transfer_large *large)
{
    struct spw_view again = {0};
    uint64_t size_bytes = 0;
    int r = client_transfer_size(s, large->element, &size_bytes);

    if (r == 0 && size_bytes != large->size_bytes)
        r = -ESTALE;
    if (r == 0)
        r = whole_acquire(s, large->element, 0, large->first.size_bytes, &again, 1);
    if (r == 0 && again.data != large->first.data)
        r = -ESTALE;
    if (again.lease != 0)
        whole_release(s, &again, 1);
    return r == -ERANGE || r == -ENOENT || r == -EINPROGRESS ? -ESTALE : r;
}

/* The next window, one that nothing else is done beside. */
static int whole_window(struct transfer_state *s, struct transfer_large *large, uint64_t at_bytes,
                        uint64_t length_bytes)
{
    uint64_t piece = s->t->space->piece_bytes;
    struct spw_view views[CLIENT_BATCH_VIEWS] = {0};
    struct client_copy_op ops[CLIENT_BATCH_VIEWS];
    size_t n = div_round_up(length_bytes, piece);
    uint8_t *to = (uint8_t *)s->t->memory[large->element].data + at_bytes;
    int r = whole_acquire(s, large->element, at_bytes, length_bytes, views, n);

    if (r == 0) {
        for (size_t i = 0; i < n; i++)
            ops[i] = (struct client_copy_op){to + i * piece, views[i].data, views[i].size_bytes};
        whole_copy(s, ops, n);
    }
    if (at_bytes == 0)
        client_transfer_whole_keep(large, views);
    whole_release(s, views, n);
    return r;
}

static int whole_again(struct transfer_state *s, struct transfer_large *large)
{
    uint64_t window = client_transfer_window_bytes(s->t->space), *size_bytes = &s->t->memory[large->element].size_bytes;
    int r = client_transfer_size(s, large->element, size_bytes);

    if (r < 0)
        return r;
    large->size_bytes = *size_bytes;
    if (large->size_bytes > large->room_bytes)
        return -EMSGSIZE;
    if (transfer_is_one_piece(s->t->space, large)) {
        r = whole_one_piece(s, large, size_bytes);
        return r == -EMSGSIZE && *size_bytes <= large->room_bytes ? -ESTALE : r; /* of several pieces by now */
    }
    for (uint64_t at = 0; r == 0 && at < large->size_bytes; at += window)
        r = whole_window(s, large, at, MIN(window, large->size_bytes - at));
    if (r == 0)
        r = whole_check(s, large);
    client_transfer_whole_end(s, large);
    return r;
}

static bool whole_is_other(const struct transfer_state *s, const struct transfer_large *large, int status)
{
    uint64_t size_bytes = s->t->memory[large->element].size_bytes;

    return status == -ESTALE || status == -ERANGE || (status == -EMSGSIZE && size_bytes <= large->room_bytes);
}

int client_transfer_whole_finish(struct transfer_state *s, struct transfer_large *large)
{
    uint64_t end_ms = client_now_coarse_ms() + s->t->timeout_ms;
    int r = large->status;

    if (r == 0 && !transfer_is_one_piece(s->t->space, large))
        r = whole_check(s, large);
    client_transfer_whole_end(s, large);
    while (whole_is_other(s, large, r)) {
        if (load_relaxed(&s->t->cancel))
            return -ECANCELED;
        if (s->t->timeout_ms != 0 && client_now_coarse_ms() >= end_ms)
            return -ETIMEDOUT;
        r = whole_again(s, large);
    }
    return r;
}
