/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which elements of a transfer go into the next batch: small ones by the run, a large one window by window. The
 * transfer's thread.
 */
#include "client/lib/transfer.h"

uint64_t client_transfer_window_bytes(const spw_space *space)
{
    uint64_t pieces = MAX(CLIENT_BATCH_BYTES / space->piece_bytes, UINT64_C(1));

    return MIN(pieces, (uint64_t)CLIENT_BATCH_VIEWS - 1) * space->piece_bytes;
}

/* --- Elements ------------------------------------------------------------------------------------------------------- */

void client_transfer_element_end(struct transfer_state *s, size_t element, int status)
{
    if (s->t->statuses)
        s->t->statuses[element] = status;
    if (status == 0)
        s->t->value++;
}

uint64_t client_transfer_element_bytes(const struct client_transfer *t, size_t element)
{
    uint64_t size_bytes = t->memory[element].size_bytes;

    return t->kind == CLIENT_GET && t->space->item_bytes != 0 ? MIN(size_bytes, t->space->item_bytes) : size_bytes;
}

/* Does it go in windows, or as one large reservation? */
static bool element_is_large(const struct client_transfer *t, size_t element)
{
    return transfer_is_range(t) || client_transfer_element_bytes(t, element) > t->space->piece_bytes;
}

/* The size of a large element, once, when its first window is asked for. */
static int large_begin(struct transfer_state *s)
{
    struct client_transfer *t = s->t;
    struct spw_iovec *memory = &t->memory[s->element];

    s->at_bytes = 0;
    s->large = &s->larges[s->n_larges % ARRAY_LEN(s->larges)];
    if (s->n_larges++ >= ARRAY_LEN(s->larges)) /* it was another element's */
        client_transfer_whole_end(s, s->large);
    *s->large = (struct transfer_large){.element = s->element, .room_bytes = memory->size_bytes};
    s->large_bytes = memory->size_bytes;
    if (t->kind != CLIENT_GET)
        return 0;
    s->large_bytes = t->space->item_bytes;
    s->large->is_whole = s->large_bytes == 0;
    if (s->large->is_whole) {
        int r = client_transfer_size(s, s->element, &s->large_bytes);
        if (r < 0)
            return r;
        s->large->size_bytes = s->large_bytes;
    }
    memory->size_bytes = s->large_bytes;
    return s->large_bytes > s->large->room_bytes ? -EMSGSIZE : 0;
}

/* --- Filling a batch ------------------------------------------------------------------------------------------------ */

/* While the first batch is asked for and the last one is given back, nothing is copied: so those are small. */
static uint64_t batch_bytes(const struct transfer_state *s)
{
    if (s->element == 0)
        return CLIENT_BATCH_END_BYTES;
    if (s->left_bytes > 2 * (uint64_t)CLIENT_BATCH_END_BYTES)
        return MIN(s->left_bytes - CLIENT_BATCH_END_BYTES, (uint64_t)CLIENT_BATCH_BYTES);
    return CLIENT_BATCH_BYTES;
}

static void batch_fill_small(struct transfer_state *s, struct transfer_batch *b)
{
    const struct client_transfer *t = s->t;
    uint64_t bytes = 0, bytes_max = batch_bytes(s);

    b->first = s->element;
    while (s->element < t->n && b->n < CLIENT_BATCH_VIEWS && !element_is_large(t, s->element)) {
        uint64_t size_bytes = t->memory[s->element].size_bytes;
        if (b->n > 0 && bytes + size_bytes > bytes_max)
            break;
        bytes += size_bytes;
        s->left_bytes -= size_bytes;
        b->sizes[b->n++] = size_bytes;
        s->element++;
    }
    b->n_views = b->n;
}

void client_transfer_batch_reset(struct transfer_batch *b)
{
    if (b->views != b->few_views)
        free(b->views);
    if (b->ops != b->few_ops)
        free(b->ops);
    b->views = b->few_views;
    b->ops = b->few_ops;
    b->state = BATCH_IDLE;
    b->n = 0;
    b->n_views = 0;
    b->large = NULL;
    b->last = false;
    b->is_again = false;
    b->lacking = 0;
    b->at_bytes = 0;
    b->length_bytes = 0;
}

/* The next window of a large element; all of it for a put. */
static int batch_fill_large(struct transfer_state *s, struct transfer_batch *b, bool is_last)
{
    const struct client_transfer *t = s->t;
    uint64_t window = client_transfer_window_bytes(t->space), piece = t->space->piece_bytes;
    uint64_t offset = t->offset_bytes + s->at_bytes;

    b->large = s->large;
    b->first = s->element;
    b->n = 1;
    b->at_bytes = s->at_bytes;
    b->length_bytes = s->large_bytes - s->at_bytes;
    if (t->kind != CLIENT_PUT)
        b->length_bytes = MIN(b->length_bytes, window - offset % window);
    b->n_views = (offset + b->length_bytes - 1) / piece - offset / piece + 1;
    if (b->n_views > CLIENT_BATCH_VIEWS) {
        b->views = calloc(b->n_views, sizeof(*b->views));
        b->ops = calloc(b->n_views, sizeof(*b->ops));
        if (!b->views || !b->ops) {
            client_transfer_batch_reset(b);
            return client_error(-ENOMEM, 0, "out of memory");
        }
    }
    s->at_bytes += b->length_bytes;
    b->last = is_last || s->at_bytes == s->large_bytes;
    if (b->last) {
        s->element++;
        s->large_bytes = 0;
    }
    return 0;
}

bool client_transfer_fill(struct transfer_state *s, struct transfer_batch *b)
{
    while (s->element < s->t->n) {
        client_transfer_batch_reset(b);
        if (!element_is_large(s->t, s->element)) {
            batch_fill_small(s, b);
            return true;
        }
        bool begins = s->large_bytes == 0;
        int r = begins ? large_begin(s) : s->large->status;
        bool is_other = !begins && r == -ERANGE && s->large->is_whole; /* it ends when what was asked for has ended */
        if (r == 0 || is_other)
            r = batch_fill_large(s, b, is_other);
        if (r == 0)
            return true;
        client_transfer_whole_end(s, s->large);
        client_transfer_element_end(s, s->element, r); /* and the next one */
        s->element++;
        s->large_bytes = 0;
    }
    return false;
}
