/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One array of what waits, and two hashes with chains over it: from a transaction to the first of its puts, which are a
 * list, and from a generation to its put. What was dropped stays in the list, marked, until its transaction's commit.
 * The thread that opens.
 */
#include "io/log_hold.h"

#include <errno.h>
#include <stdlib.h>

#include "include/base/mix.h"

#define NONE UINT32_MAX
#define ROOM_FIRST 64

struct log_held {
    struct log_record put;
    uint32_t next; /* of its transaction; of the free ones */
    uint32_t last; /* the first of a transaction: its last */
    uint32_t txn_chain, generation_chain;
    bool is_first, is_dropped;
};

void log_hold_init(struct log_hold *h)
{
    *h = (struct log_hold){.free = NONE};
}

void log_hold_deinit(struct log_hold *h)
{
    free(h->held);
    free(h->by_txn);
    free(h->by_generation);
    log_hold_init(h);
}

static uint32_t *txn_chain(const struct log_hold *h, uint64_t txn)
{
    return &h->by_txn[splitmix64(txn) & (h->room - 1)];
}

static uint32_t *generation_chain(const struct log_hold *h, uint64_t generation)
{
    return &h->by_generation[splitmix64(generation) & (h->room - 1)];
}

static void chain_first(struct log_hold *h, uint32_t i)
{
    uint32_t *chain = txn_chain(h, h->held[i].put.put.txn);

    h->held[i].txn_chain = *chain;
    *chain = i;
}

static void chain_generation(struct log_hold *h, uint32_t i)
{
    uint32_t *chain = generation_chain(h, h->held[i].put.put.entry.generation);

    h->held[i].generation_chain = *chain;
    *chain = i;
}

static void unchain_generation(struct log_hold *h, uint32_t i)
{
    uint32_t *at = generation_chain(h, h->held[i].put.put.entry.generation);

    while (*at != i)
        at = &h->held[*at].generation_chain;
    *at = h->held[i].generation_chain;
}

/* The link to the first of a transaction, or the end of its chain. */
static uint32_t *first_of(struct log_hold *h, uint64_t txn)
{
    uint32_t *at;

    for (at = txn_chain(h, txn); *at != NONE; at = &h->held[*at].txn_chain)
        if (h->held[*at].put.put.txn == txn)
            break;
    return at;
}

/* All are in use: none is free. */
static int hold_grow(struct log_hold *h)
{
    uint32_t room = h->room ? 2 * h->room : ROOM_FIRST;

    if (room > NONE / 2)
        return -ENOMEM;
    struct log_held *held = realloc(h->held, room * sizeof(*held));
    if (!held)
        return -ENOMEM;
    h->held = held;
    uint32_t *by_txn = malloc(room * sizeof(*by_txn));
    uint32_t *by_generation = malloc(room * sizeof(*by_generation));
    if (!by_txn || !by_generation) {
        free(by_txn);
        free(by_generation);
        return -ENOMEM;
    }
    free(h->by_txn);
    free(h->by_generation);
    h->by_txn = by_txn;
    h->by_generation = by_generation;
    h->room = room;
    for (uint32_t i = 0; i < room; i++)
        by_txn[i] = by_generation[i] = NONE;
    for (uint32_t i = 0; i < h->n; i++) {
        chain_generation(h, i);
        if (held[i].is_first)
            chain_first(h, i);
    }
    return 0;
}

static int hold_take(struct log_hold *h, uint32_t *ret_index)
{
    if (h->free != NONE) {
        *ret_index = h->free;
        h->free = h->held[h->free].next;
        return 0;
    }
    int r = h->n == h->room ? hold_grow(h) : 0;
    if (r < 0)
        return r;
    *ret_index = h->n++;
    return 0;
}

int log_hold_add(struct log_hold *h, const struct log_record *put)
{
    uint32_t i;
    int r = hold_take(h, &i);

    if (r < 0)
        return r;
    uint32_t first = *first_of(h, put->put.txn);
    h->held[i] = (struct log_held){.put = *put, .next = NONE, .last = i, .is_first = first == NONE};
    chain_generation(h, i);
    if (first == NONE) {
        chain_first(h, i);
    } else {
        h->held[h->held[first].last].next = i;
        h->held[first].last = i;
    }
    return 0;
}

void log_hold_drop(struct log_hold *h, uint64_t generation)
{
    if (h->room == 0)
        return;
    for (uint32_t i = *generation_chain(h, generation); i != NONE; i = h->held[i].generation_chain)
        h->held[i].is_dropped |= h->held[i].put.put.entry.generation == generation;
}

int log_hold_commit(struct log_hold *h, uint64_t txn, int (*fn)(void *ctx, const struct log_record *put), void *ctx)
{
    int r = 0;

    if (h->room == 0)
        return 0;
    uint32_t *link = first_of(h, txn), i = *link;
    if (i == NONE)
        return 0;
    *link = h->held[i].txn_chain;
    for (uint32_t next; i != NONE; i = next) {
        struct log_held *held = &h->held[i];

        next = held->next;
        if (r == 0 && !held->is_dropped)
            r = fn(ctx, &held->put);
        unchain_generation(h, i);
        held->next = h->free;
        h->free = i;
    }
    return r;
}
