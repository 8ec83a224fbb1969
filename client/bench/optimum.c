/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Belady's optimum: of those that are there, what is used latest goes, and the newcomer is one of them. A block that is
 * kept stands for the reference that it is kept for, which no other block has; so who is there is a set of references to
 * come, in a heap with the latest on top. References that came lie at the bottom, and are never looked at again. Pure; one
 * thread.
 */
#include "client/bench/optimum.h"

#include <errno.h>
#include <stdlib.h>

#include "include/base/cleanup.h"

struct future {
    uint64_t *next;  /* of each reference: the next one to the same block; UINT64_MAX: none */
    uint64_t *heap;  /* references */
    bool *kept;      /* of each reference: its block is there until then */
    uint64_t n_heap; /* references that came included */
};

static void future_deinit(struct future *f)
{
    free(f->next);
    free(f->heap);
    free(f->kept);
}

static int future_init(struct future *f, const uint32_t *refs, uint64_t n, uint32_t n_blocks)
{
    cleanup_free uint64_t *first = malloc(((size_t)n_blocks + 1) * sizeof(*first));

    f->next = malloc((n + 1) * sizeof(*f->next));
    f->heap = malloc((n + 1) * sizeof(*f->heap));
    f->kept = calloc(n + 1, sizeof(*f->kept));
    if (!first || !f->next || !f->heap || !f->kept)
        return -ENOMEM;
    for (uint32_t block = 0; block < n_blocks; block++)
        first[block] = UINT64_MAX;
    for (uint64_t i = n; i-- > 0;) {
        f->next[i] = first[refs[i]];
        first[refs[i]] = i;
    }
    return 0;
}

static void future_push(struct future *f, uint64_t ref)
{
    uint64_t i = f->n_heap++;

    for (; i > 0 && f->heap[(i - 1) / 2] < ref; i = (i - 1) / 2)
        f->heap[i] = f->heap[(i - 1) / 2];
    f->heap[i] = ref;
}

static void future_pop(struct future *f)
{
    uint64_t last = f->heap[--f->n_heap], i = 0, child;

    for (; (child = 2 * i + 1) < f->n_heap; i = child) {
        if (child + 1 < f->n_heap && f->heap[child + 1] > f->heap[child])
            child++;
        if (f->heap[child] <= last)
            break;
        f->heap[i] = f->heap[child];
    }
    f->heap[i] = last;
}

int optimum_hits(const uint32_t *refs, uint64_t n_refs, uint32_t n_blocks, uint32_t capacity, uint64_t *ret_hits)
{
    cleanup_(future_deinit) struct future f = {0};
    uint64_t hits = 0;
    uint32_t n_kept = 0;
    int r = future_init(&f, refs, n_refs, n_blocks);

    if (r < 0)
        return r;
    for (uint64_t i = 0; i < n_refs; i++) {
        hits += f.kept[i];
        n_kept -= f.kept[i];
        if (f.next[i] == UINT64_MAX || capacity == 0)
            continue;
        if (n_kept == capacity) {
            if (f.heap[0] < f.next[i])
                continue;
            f.kept[f.heap[0]] = false;
            future_pop(&f);
            n_kept--;
        }
        f.kept[f.next[i]] = true;
        future_push(&f, f.next[i]);
        n_kept++;
    }
    *ret_hits = hits;
    return 0;
}
