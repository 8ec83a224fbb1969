/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A transfer on its way: what transfer_fill.c (which elements come next) and transfer.c (what becomes of them) share.
 */
#pragma once

#include "client/lib/client.h"

#define BATCHES 4
static_assert(CLIENT_BATCH_VIEWS <= 64, "transfer_batch.lacking has a bit for each element");

enum transfer_batch_state { BATCH_IDLE, BATCH_ASKED, BATCH_COPIED, BATCH_GIVEN };

/* A large element on its way; several batches may be windows of it. */
struct transfer_large {
    int status; /* its first error */
    size_t element;
    uint64_t room_bytes;
    bool is_whole;         /* transfer_whole.c: the rest is its */
    uint64_t size_bytes;   /* that was asked for */
    struct spw_view first; /* the lease of its first piece, kept until the end */
};

struct transfer_batch {
    enum transfer_batch_state state;
    struct client_call call;
    size_t first, n;              /* elements */
    struct transfer_large *large; /* one element, of several pieces; NULL: small ones */
    bool last;                    /* its last window */
    bool is_again;                /* all or nothing, which waits for others' leases */
    uint64_t lacking;             /* elements, bit by bit, for which too much was leased */
    uint64_t at_bytes;            /* where in its memory the window begins */
    uint64_t length_bytes;
    struct spw_view *views; /* few, or allocated */
    struct client_copy_op *ops;
    size_t n_views;
    struct client_copy_batch copies; /* ops */
    int32_t statuses[CLIENT_BATCH_VIEWS];
    uint64_t sizes[CLIENT_BATCH_VIEWS];
    struct spw_view few_views[CLIENT_BATCH_VIEWS];
    struct client_copy_op few_ops[CLIENT_BATCH_VIEWS];
};

struct transfer_state {
    struct client_transfer *t;
    struct client_ring *ring;
    size_t element;               /* the next one */
    uint64_t left_bytes;          /* of it and those after it that are small */
    uint64_t at_bytes;            /* windows: done of it */
    uint64_t large_bytes;         /* windows: its size, 0: not known yet */
    struct transfer_large *large; /* windows: one of `larges` */
    unsigned n_larges;            /* begun so far */
    int error;                    /* the first of a request as a whole */
    unsigned detail;
    bool served;                               /* some request was */
    unsigned lacking_detail;                   /* the limit that others' leases met */
    bool gave_up;                              /* they were waited for, and did not end in time */
    bool is_shared;                            /* with a copy thread */
    struct transfer_large larges[BATCHES + 1]; /* in turn: each batch may be of another one */
    struct transfer_batch batches[BATCHES];
};

static inline bool transfer_is_put(const struct client_transfer *t)
{
    return t->kind == CLIENT_PUT || t->kind == CLIENT_PUT_RANGE;
}

static inline bool transfer_is_range(const struct client_transfer *t)
{
    return t->kind == CLIENT_PUT_RANGE || t->kind == CLIENT_GET_RANGE;
}

/* An element has its status. */
void client_transfer_element_end(struct transfer_state *s, size_t element, int status);
/* A window of a large element, as large as may be. */
uint64_t client_transfer_window_bytes(const spw_space *space);
/* Frees what it allocated. It is idle, and of no elements. */
void client_transfer_batch_reset(struct transfer_batch *b);
/* Takes the next elements, or the next window. Returns false if there are none. */
bool client_transfer_fill(struct transfer_state *s, struct transfer_batch *b) must_check;

/* --- transfer_whole.c ----------------------------------------------------------------------------------------------- */

/* Asks for the size of an object, in a call of its own. */
int client_transfer_size(struct transfer_state *s, size_t element, uint64_t *ret_size_bytes) must_check;
/* It had one piece when it was asked for its size: it comes as a whole, whatever its size is by then. */
static inline bool transfer_is_one_piece(const spw_space *space, const struct transfer_large *large)
{
    return large->is_whole && large->size_bytes <= space->piece_bytes;
}
/* The first window is given back: its first lease stays here. */
static inline void client_transfer_whole_keep(struct transfer_large *large, struct spw_view *views)
{
    large->first = views[0];
    views[0].lease = 0;
}
/* All windows have ended, or one of them has failed: how the element ends, after as many more tries as it takes. */
int client_transfer_whole_finish(struct transfer_state *s, struct transfer_large *large) must_check;
/* Gives back what is kept, if anything is. */
void client_transfer_whole_end(struct transfer_state *s, struct transfer_large *large);
