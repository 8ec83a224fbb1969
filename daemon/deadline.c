/* SPDX-License-Identifier: Apache-2.0 */
/* Owns a binary heap of borrowed entries, each of which knows its place, so that clearing one is as cheap as setting. */
#include "daemon/deadline.h"

#include <errno.h>
#include <stdlib.h>

int deadlines_init(struct deadlines *d, uint32_t max)
{
    *d = (struct deadlines){.heap = calloc(max, sizeof(struct deadline *)), .max = max};
    return d->heap ? 0 : -ENOMEM;
}

void deadlines_deinit(struct deadlines *d)
{
    free(d->heap);
    *d = (struct deadlines){0};
}

static void place(struct deadlines *d, uint32_t at, struct deadline *entry)
{
    d->heap[at] = entry;
    entry->place = at;
}

static void sift_up(struct deadlines *d, uint32_t at, struct deadline *entry)
{
    while (at > 0 && d->heap[(at - 1) / 2]->at_ns > entry->at_ns) {
        place(d, at, d->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    place(d, at, entry);
}

static void sift_down(struct deadlines *d, uint32_t at, struct deadline *entry)
{
    for (;;) {
        uint32_t child = 2 * at + 1;

        if (child + 1 < d->n && d->heap[child + 1]->at_ns < d->heap[child]->at_ns)
            child++;
        if (child >= d->n || d->heap[child]->at_ns >= entry->at_ns)
            break;
        place(d, at, d->heap[child]);
        at = child;
    }
    place(d, at, entry);
}

void deadline_clear(struct deadlines *d, struct deadline *entry)
{
    uint32_t at = entry->place;

    if (at == DEADLINE_UNSET)
        return;
    entry->place = DEADLINE_UNSET;
    struct deadline *last = d->heap[--d->n];

    if (last == entry)
        return;
    if (last->at_ns < entry->at_ns)
        sift_up(d, at, last);
    else
        sift_down(d, at, last);
}

void deadline_set(struct deadlines *d, struct deadline *entry, uint64_t at_ns)
{
    deadline_clear(d, entry);
    assert(d->n < d->max);
    entry->at_ns = at_ns;
    sift_up(d, d->n++, entry);
}

struct deadline *deadlines_pop(struct deadlines *d, uint64_t now_ns)
{
    if (d->n == 0 || d->heap[0]->at_ns > now_ns)
        return NULL;
    struct deadline *first = d->heap[0];

    deadline_clear(d, first);
    return first;
}

uint64_t deadlines_next_ns(const struct deadlines *d)
{
    return d->n > 0 ? d->heap[0]->at_ns : DEADLINE_NEVER;
}
