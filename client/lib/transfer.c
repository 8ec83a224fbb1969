/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PUT and GET: between leased bytes and the caller's own memory.
 *
 * A transfer goes through its elements in batches, four at a time, so that copying overlaps with the ring, and two
 * threads with each other:
 *
 *   IDLE ─ ask: RESERVE or ACQUIRE ─▶ ASKED ─ begin to copy ─▶ COPIED ─ finish, give: COMMIT or RELEASE ─▶ GIVEN ─ settle ─▶ IDLE
 *
 * While batch i is copied, i + 1 has been asked for and i − 1 is being given back. A batch is a run of elements of one
 * piece each, or one large element: all of it for a put (a block is reserved whole), a window of it otherwise, so that
 * a transfer never leases more than four windows. It never waits for leases that it holds itself: batches are asked
 * for in order, and it waits for an answer only when the batch before has been given back. A GET gives back without waiting
 * for the answer, which could not change what was copied.
 *
 * Nor is it refused for leases that others will give back soon, as their copies do: what lacked room for its leases is
 * asked for anew, element by element, as a whole, which the daemon lets wait; when all else has been given back.
 *
 * Runs on the calling thread, or on a copy thread for a job; the batches lie on its stack. Large puts alone allocate.
 */
#include <string.h>

#include "client/lib/transfer.h"

int client_transfer_check(const char *name, const struct client_transfer *t)
{
    if (!t->space)
        return client_error(-EINVAL, 0, "%s: the space is NULL", name);
    if (t->n > 0 && (!t->keys || !t->memory))
        return client_error(-EINVAL, 0, "%s: the list is NULL", name);
    if (t->flags & ~(unsigned)(t->kind == CLIENT_GET ? SPW_CHAIN | SPW_NO_WAIT : SPW_CHAIN))
        return client_error(-EINVAL, 0, "%s: flags 0x%x are not for this call", name, t->flags);
    for (size_t i = 0; i < t->n; i++) {
        if (!t->memory[i].data)
            return client_error(-EINVAL, 0, "%s: element %zu has no memory", name, i);
        if (t->memory[i].size_bytes == 0 || t->memory[i].size_bytes > OBJECT_BYTES_MAX)
            return client_error(-EINVAL, SPW_LIMIT_OBJECT_BYTES, "%s: element %zu has %llu bytes", name, i,
                                (unsigned long long)t->memory[i].size_bytes);
    }
    struct client_call keys = {.space = t->space, .keys = t->keys, .n = t->n};
    return client_call_check(name, &keys);
}

/* --- A batch's life -------------------------------------------------------------------------------------------------- */

static int batch_ask(struct transfer_state *s, struct transfer_batch *b)
{
    const struct client_transfer *t = s->t;

    b->call = (struct client_call){
        .space = t->space,
        .keys = &t->keys[b->first],
        .n = b->n,
        .opcode = t->kind == CLIENT_PUT ? SPW_OP_RESERVE : SPW_OP_ACQUIRE,
        .flags = (uint8_t)(t->flags | (t->kind == CLIENT_PUT_RANGE ? SPW_WRITE : 0) | (b->is_again ? SPW_ALL : 0)),
        .whole = b->is_again,
        .timeout_ms = t->timeout_ms,
        .views = b->views,
    };
    if (b->large) {
        b->call.offset_bytes = t->offset_bytes + b->at_bytes;
        b->call.length_bytes = transfer_is_one_piece(t->space, b->large) ? 0 : b->length_bytes;
    } else if (t->kind == CLIENT_PUT) {
        b->call.sizes = b->sizes;
    }
    int r = client_ring_start(s->ring, &b->call);
    if (r == 0)
        b->state = BATCH_ASKED;
    return r;
}

/* Was it refused for what others have leased, and may that be waited for? */
static bool view_lacks(const struct transfer_state *s, const struct transfer_batch *b, const struct spw_view *view)
{
    return client_view_lacks(view) && !b->is_again && !s->gave_up && client_transfer_may_wait(s->t);
}

/* The memory of view i, and whether its bytes are to be copied. Notes the status of its element. */
static bool view_plan(struct transfer_state *s, struct transfer_batch *b, size_t i, struct client_copy_op *ret_op)
{
    struct client_transfer *t = s->t;
    size_t e = b->large ? 0 : i;
    struct spw_iovec *memory = &t->memory[b->first + e];
    const struct spw_view *view = &b->views[i];
    uint8_t *bytes = memory->data;

    if (!b->large && t->kind == CLIENT_GET && view->status == 0) {
        if (view->size_bytes > memory->size_bytes)
            b->statuses[e] = -EMSGSIZE;
        memory->size_bytes = view->size_bytes;
    } else if (!b->large && t->kind == CLIENT_GET && view->status == -EMSGSIZE) {
        (void)!client_transfer_size(s, b->first + e, &memory->size_bytes);
    } else if (b->large && transfer_is_one_piece(t->space, b->large) && view->status == 0) {
        memory->size_bytes = view->size_bytes;
        if (view->size_bytes > b->large->room_bytes)
            b->statuses[e] = -EMSGSIZE;
    }
    if (b->statuses[e] == 0)
        b->statuses[e] = view->status;
    if (b->statuses[e] == -ENOSPC && view_lacks(s, b, view)) {
        b->lacking |= UINT64_C(1) << e;
        s->lacking_detail = view->detail;
    } else if (view->status < 0 && s->detail == 0) {
        s->detail = view->detail;
    }
    if (b->statuses[e] < 0)
        return false;
    if (b->large) { /* pieces lie one after the other; the first may begin in its middle */
        uint64_t piece = t->space->piece_bytes, offset = t->offset_bytes + b->at_bytes;
        bytes += i == 0 ? b->at_bytes : b->at_bytes + (piece - offset % piece) + (i - 1) * piece;
    }
    *ret_op = transfer_is_put(t) ? (struct client_copy_op){view->data, bytes, view->size_bytes}
                                 : (struct client_copy_op){bytes, view->data, view->size_bytes};
    return true;
}

/* Begins to copy what was leased. */
static void batch_copy_begin(struct transfer_state *s, struct transfer_batch *b)
{
    size_t n_ops = 0;

    memset(b->statuses, 0, b->n * sizeof(b->statuses[0]));
    if (b->large) { /* a large element is copied whole or not at all, as far as this window goes */
        b->statuses[0] = b->large->status;
        for (size_t i = 0; i < b->n_views && b->statuses[0] == 0; i++)
            b->statuses[0] = b->views[i].status;
    }
    for (size_t i = 0; i < b->n_views; i++)
        if (view_plan(s, b, i, &b->ops[n_ops]))
            n_ops++;
    b->copies.ops = b->ops;
    b->copies.n_ops = n_ops;
    client_copy_begin(s->t->space->session->copy, &b->copies, s->is_shared);
    b->state = BATCH_COPIED;
}

static int batch_give(struct transfer_state *s, struct transfer_batch *b)
{
    const struct client_transfer *t = s->t;
    bool failed = b->large && b->statuses[0] < 0;

    b->state = BATCH_IDLE;
    if (b->large && b->large->is_whole && b->at_bytes == 0 && !transfer_is_one_piece(t->space, b->large) && !b->lacking)
        client_transfer_whole_keep(b->large, b->views);
    if (!transfer_is_put(t) && client_ring_post_release(s->ring, t->space, b->views, b->n_views))
        return 0;
    b->call = (struct client_call){.space = t->space, .handles = b->views, .n = b->n_views};
    if (t->kind == CLIENT_PUT) {
        b->call.opcode = failed ? SPW_OP_ABORT : SPW_OP_COMMIT;
        b->call.flags = failed ? 0 : (uint8_t)t->flags;
    } else {
        b->call.opcode = SPW_OP_RELEASE;
        if (t->kind == CLIENT_PUT_RANGE)
            b->call.handle_flags = failed ? SPW_RELEASE_DISCARD : SPW_RELEASE_DIRTY;
    }
    int r = client_ring_start(s->ring, &b->call);
    if (r == 0)
        b->state = BATCH_GIVEN;
    return r;
}

/* Remembers how a request as a whole went; its elements have their status. */
static void request_ended(struct transfer_state *s, const struct client_call *call)
{
    if (call->error == 0) {
        s->served = true;
    } else if (s->error == 0) {
        s->error = call->error;
        s->detail = call->detail;
    }
}

/* Takes the answer, and begins to copy. */
static void batch_answered(struct transfer_state *s, struct transfer_batch *b)
{
    client_ring_wait(s->ring, &b->call);
    request_ended(s, &b->call);
    batch_copy_begin(s, b);
}

/* Ends the copying, and gives the leases back. The answer to the last one is waited for soon. */
static void batch_finish(struct transfer_state *s, struct transfer_batch *b, bool is_last)
{
    struct client_copy *copy = s->t->space->session->copy;

    if (is_last) {
        client_copy_work(copy, &b->copies, CLIENT_WAKE_AHEAD_BYTES);
        client_ring_wake_ahead(s->ring);
    }
    client_copy_finish(copy, &b->copies);
    int r = batch_give(s, b);
    for (size_t i = 0; r < 0 && i < b->n; i++)
        if (b->statuses[i] == 0)
            b->statuses[i] = r;
    if (b->large && b->large->status == 0 && !b->lacking) /* known before the next window is asked for */
        b->large->status = b->statuses[0];
}

/* Gives back what still has a lease: a reservation whose bytes could not be mapped, or whose commit was refused. */
static void batch_abort_rest(struct transfer_state *s, struct transfer_batch *b)
{
    bool any = false;

    for (size_t i = 0; i < b->n_views; i++)
        any |= b->views[i].lease != 0;
    if (!any)
        return;
    struct client_call call = {.space = s->t->space, .handles = b->views, .n = b->n_views, .opcode = SPW_OP_ABORT};
    if (client_ring_start(s->ring, &call) == 0)
        client_ring_wait(s->ring, &call);
}

/* Waits for the leases to be given back. A commit, or a dirty release, tells whether the bytes are there. */
static void batch_wait_given(struct transfer_state *s, struct transfer_batch *b)
{
    client_ring_wait(s->ring, &b->call);
    request_ended(s, &b->call);
    for (size_t i = 0; transfer_is_put(s->t) && i < b->n_views; i++) {
        int32_t *status = &b->statuses[b->large ? 0 : i];
        if (*status == 0)
            *status = b->views[i].lease != 0 ? b->call.error : b->views[i].status;
    }
    if (s->t->kind == CLIENT_PUT)
        batch_abort_rest(s, b);
}

static void batch_wait_idle(struct transfer_state *s, struct transfer_batch *b)
{
    if (b->state == BATCH_GIVEN)
        batch_wait_given(s, b);
    b->state = BATCH_IDLE;
}

/* How it went. */
static int again_status(struct transfer_state *s, const struct transfer_batch *b)
{
    int r = b->call.error;

    if (r != -ETIMEDOUT && r != -ENOSPC && r != -E2BIG) /* the last: more pieces than may wait together */
        return r < 0 ? r : b->statuses[0];
    s->gave_up = true; /* and the others are not waited for as long again */
    return -ENOSPC;
}

/* An element, or a window, that was refused for what others have leased waits for that. No other lease is this transfer's, but
 * that of the first piece of an object that it reads window by window. */
static void batch_again(struct transfer_state *s, struct transfer_batch *b)
{
    b->lacking = 0;
    b->is_again = true;
    memset(b->views, 0, b->n_views * sizeof(b->views[0])); /* leases that were given back */
    b->statuses[0] = load_relaxed(&s->t->cancel) ? -ECANCELED : s->gave_up ? -ENOSPC : batch_ask(s, b);
    if (b->state == BATCH_ASKED) {
        batch_answered(s, b);
        b->statuses[0] = again_status(s, b);
        batch_finish(s, b, true);
        batch_wait_idle(s, b);
    }
    if (b->statuses[0] == -ENOSPC && s->detail == 0)
        s->detail = s->lacking_detail;
}

/* The elements of a batch of small ones that lack. */
static void batch_again_each(struct transfer_state *s, struct transfer_batch *b)
{
    size_t first = b->first;
    uint64_t lacking = b->lacking;

    while (lacking != 0) {
        size_t i = (size_t)__builtin_ctzll(lacking);

        lacking &= lacking - 1;
        b->first = first + i;
        b->sizes[0] = b->sizes[i];
        b->n = b->n_views = 1;
        batch_again(s, b);
        client_transfer_element_end(s, first + i, b->statuses[0]);
    }
}

/* The end of a batch, and of its elements. Oldest first: a large element ends with its last window. */
static void batch_settle(struct transfer_state *s, struct transfer_batch *b)
{
    if (b->n == 0)
        return;
    batch_wait_idle(s, b);
    for (size_t i = 0; !b->large && i < b->n; i++)
        client_transfer_element_end(s, b->first + i, b->statuses[i]);
    if (b->lacking && !b->large)
        batch_again_each(s, b);
    else if (b->lacking && b->large->status == 0)
        batch_again(s, b);
    if (b->large && b->large->status == 0)
        b->large->status = b->statuses[0];
    if (b->large && b->last && b->large->is_whole)
        b->large->status = client_transfer_whole_finish(s, b->large);
    if (b->large && b->last)
        client_transfer_element_end(s, b->first, b->large->status);
    client_transfer_batch_reset(b);
}

/* --- The transfer ----------------------------------------------------------------------------------------------------- */

/* Moves `asked` on to being copied and `copied` to being given; either may be NULL. The next copies begin before the last
 * ones end, if it can be done without waiting: a pool may have no room until those leases are back. */
static void transfer_advance(struct transfer_state *s, struct transfer_batch *asked, struct transfer_batch *copied)
{
    if (copied) {
        if (asked && client_ring_turn(s->ring) == 0 && asked->call.ended)
            batch_answered(s, asked);
        batch_finish(s, copied, asked == NULL);
    }
    if (asked && asked->state == BATCH_ASKED)
        batch_answered(s, asked);
}

static int transfer_loop(struct transfer_state *s)
{
    struct transfer_batch *asked = NULL, *copied = NULL;
    unsigned i;
    int r = 0;

    for (i = 0; r == 0; i++) {
        struct transfer_batch *b = &s->batches[i % BATCHES];
        if (b->lacking) { /* it will wait, with nothing else in its hands */
            transfer_advance(s, asked, copied);
            transfer_advance(s, NULL, asked);
            asked = copied = NULL;
        }
        batch_settle(s, b);
        if (load_relaxed(&s->t->cancel)) {
            r = -ECANCELED;
            break;
        }
        if (!client_transfer_fill(s, b))
            break;
        r = batch_ask(s, b);
        for (size_t k = 0; r < 0 && k < b->n; k++)
            b->statuses[k] = r;
        transfer_advance(s, asked, copied);
        copied = asked;
        asked = r == 0 ? b : NULL;
    }
    transfer_advance(s, asked, copied);
    transfer_advance(s, NULL, asked);
    for (unsigned k = 0; k < BATCHES; k++) /* from the oldest */
        batch_settle(s, &s->batches[(i + k) % BATCHES]);
    for (unsigned k = 0; k < MIN(s->n_larges, ARRAY_LEN(s->larges)); k++) /* whose last window was never asked for */
        client_transfer_whole_end(s, &s->larges[k]);
    while (r < 0 && s->element < s->t->n) /* never asked for, or not all of it */
        client_transfer_element_end(s, s->element++, r);
    return r;
}

/* Field by field: to clear all of it would take as long as a hit. */
static void transfer_init(struct transfer_state *s, struct client_transfer *transfer)
{
    uint64_t total_bytes = 0;

    s->t = transfer;
    s->element = 0;
    s->at_bytes = s->large_bytes = 0;
    s->large = NULL;
    s->n_larges = 0;
    s->error = 0;
    s->detail = 0;
    s->served = s->gave_up = false;
    for (unsigned i = 0; i < BATCHES; i++) {
        s->batches[i].views = s->batches[i].few_views;
        s->batches[i].ops = s->batches[i].few_ops;
        client_transfer_batch_reset(&s->batches[i]);
    }
    for (size_t i = 0; i < transfer->n; i++)
        total_bytes += transfer->memory[i].size_bytes;
    s->left_bytes = total_bytes;
    s->is_shared = client_copy_wake(transfer->space->session->copy, total_bytes);
}

int client_transfer_run(const char *name, struct client_transfer *transfer)
{
    struct transfer_state s;
    spw_session *session = transfer->space->session;
    int r = client_session_check(session);

    transfer->value = 0;
    if (r == 0)
        r = client_thread_ring(session, transfer->space->engine, &s.ring);
    if (r < 0)
        return r;
    transfer_init(&s, transfer);
    r = transfer_loop(&s);
    client_ring_flush(s.ring); /* leases given back */
    transfer->detail = s.detail;
    if (r == 0)
        r = client_session_check(session);
    else if (r == -ECANCELED)
        client_error_set(0, "%s: canceled", name);
    if (r == 0 && !s.served && s.error < 0)
        r = client_error(s.error, s.detail, "%s: %s", name, strerrordesc_np(-s.error));
    return r;
}

int spw_put(spw_space *space, const struct spw_key *keys, const struct spw_iovec *from, size_t n, unsigned flags,
            uint32_t timeout_ms, int32_t *ret_status)
{
    struct client_transfer transfer = {.kind = CLIENT_PUT,
                                       .space = space,
                                       .keys = keys,
                                       .n = n,
                                       .flags = flags,
                                       .memory = (struct spw_iovec *)(uintptr_t)from,
                                       .timeout_ms = timeout_ms,
                                       .statuses = ret_status};
    int r = client_transfer_check("spw_put", &transfer);

    return r < 0 ? r : client_transfer_run("spw_put", &transfer);
}

int spw_get(spw_space *space, const struct spw_key *keys, struct spw_iovec *to, size_t n, unsigned flags,
            uint32_t timeout_ms, int32_t *ret_status)
{
    struct client_transfer transfer = {.kind = CLIENT_GET,
                                       .space = space,
                                       .keys = keys,
                                       .memory = to,
                                       .n = n,
                                       .flags = flags,
                                       .timeout_ms = timeout_ms,
                                       .statuses = ret_status};
    int r = client_transfer_check("spw_get", &transfer);

    return r < 0 ? r : client_transfer_run("spw_get", &transfer);
}
