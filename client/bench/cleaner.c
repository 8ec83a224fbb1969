/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A segment is free, open (one for each stream, and one for copies) or full. While a victim is emptied there is always a
 * segment to copy to: one is held back. Pure; one thread.
 */
#include "client/bench/cleaner.h"

#include <errno.h>
#include <stdlib.h>

#define NOWHERE UINT32_MAX
#define COPIES CLEANER_STREAMS
#define OPEN_MAX (CLEANER_STREAMS + 1)
#define HELD_BACK 1

struct cleaner {
    uint32_t n_segments, per_segment, n_free;
    uint32_t open[OPEN_MAX]; /* segments; NOWHERE: none */
    uint32_t *n_used;        /* slots of each segment that were written; 0: it is free */
    uint32_t *n_live;
    uint32_t *slots; /* blocks, n_segments × per_segment */
    uint32_t *where; /* of each block: its slot, or NOWHERE */
    uint64_t n_written;
};

int cleaner_new(uint32_t n_segments, uint32_t blocks_a_segment, uint32_t n_blocks, struct cleaner **ret_cleaner)
{
    if (blocks_a_segment == 0 || n_segments <= OPEN_MAX + HELD_BACK ||
        n_blocks > (uint64_t)(n_segments - OPEN_MAX - HELD_BACK) * blocks_a_segment)
        return -EINVAL;
    struct cleaner *c = calloc(1, sizeof(*c));

    if (!c)
        return -ENOMEM;
    c->n_segments = c->n_free = n_segments;
    c->per_segment = blocks_a_segment;
    c->n_used = calloc(n_segments, sizeof(*c->n_used));
    c->n_live = calloc(n_segments, sizeof(*c->n_live));
    c->slots = calloc((size_t)n_segments * blocks_a_segment, sizeof(*c->slots));
    c->where = calloc(n_blocks, sizeof(*c->where));
    if (!c->n_used || !c->n_live || !c->slots || !c->where) {
        cleaner_free(c);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < n_blocks; i++)
        c->where[i] = NOWHERE;
    for (unsigned i = 0; i < OPEN_MAX; i++)
        c->open[i] = NOWHERE;
    *ret_cleaner = c;
    return 0;
}

void cleaner_free(struct cleaner *c)
{
    if (!c)
        return;
    free(c->n_used);
    free(c->n_live);
    free(c->slots);
    free(c->where);
    free(c);
}

static bool is_open(const struct cleaner *c, uint32_t segment)
{
    for (unsigned i = 0; i < OPEN_MAX; i++)
        if (c->open[i] == segment)
            return true;
    return false;
}

static uint32_t free_take(struct cleaner *c)
{
    for (uint32_t i = 0; i < c->n_segments; i++) {
        if (c->n_used[i] == 0 && !is_open(c, i)) {
            c->n_free--;
            return i;
        }
    }
    abort(); /* cleaner_new() saw to it that there is one */
}

static void append(struct cleaner *c, uint32_t block, unsigned stream)
{
    uint32_t segment = c->open[stream];

    if (segment == NOWHERE || c->n_used[segment] == c->per_segment)
        segment = c->open[stream] = free_take(c);
    uint32_t slot = segment * c->per_segment + c->n_used[segment]++;
    c->slots[slot] = block;
    c->where[block] = slot;
    c->n_live[segment]++;
    c->n_written++;
}

static uint32_t victim_choose(const struct cleaner *c)
{
    uint32_t best = NOWHERE;

    for (uint32_t i = 0; i < c->n_segments; i++) {
        if (c->n_used[i] < c->per_segment || is_open(c, i))
            continue;
        if (best == NOWHERE || c->n_live[i] < c->n_live[best])
            best = i;
    }
    return best;
}

static void clean(struct cleaner *c)
{
    while (c->n_free <= HELD_BACK) {
        uint32_t victim = victim_choose(c);
        if (victim == NOWHERE)
            return;
        uint32_t first = victim * c->per_segment;
        for (uint32_t slot = first; slot < first + c->per_segment && c->n_live[victim] > 0; slot++) {
            if (c->where[c->slots[slot]] != slot)
                continue;
            c->n_live[victim]--;
            append(c, c->slots[slot], COPIES);
        }
        c->n_used[victim] = 0;
        c->n_free++;
    }
}

void cleaner_write(struct cleaner *c, uint32_t block, uint32_t stream)
{
    assert(stream < CLEANER_STREAMS);
    if (c->where[block] != NOWHERE)
        c->n_live[c->where[block] / c->per_segment]--;
    c->where[block] = NOWHERE;
    clean(c);
    append(c, block, stream);
}

uint64_t cleaner_written(const struct cleaner *c)
{
    return c->n_written;
}
