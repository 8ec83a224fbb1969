/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns one array, allocated at the start and touched as it fills. Belongs to one policy, and so to one engine thread.
 *
 * With 2^k the power of two that n_buckets reaches into, a hash belongs into the bucket that its lowest k bits name; or, if
 * there is none yet, into the one that k - 1 bits name. Invariant: the ghosts of a bucket lie at its front, newest first.
 */
#include "tiering/chain_ghost.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/limits.h"
#include "include/base/touched.h"

#define STEPS_MAX 64 /* buckets that one call of chain_ghosts_limit() splits or joins */

static uint32_t bucket_number(uint32_t n_buckets, uint32_t tag)
{
    uint32_t mask = n_buckets > 1 ? (UINT32_C(2) << (31 - __builtin_clz(n_buckets - 1))) - 1 : 0;
    uint32_t number = tag & mask;

    return number < n_buckets ? number : number & mask >> 1;
}

static struct chain_ghost_bucket *bucket_of(const struct chain_ghosts *g, uint32_t tag)
{
    return &g->buckets[bucket_number(g->n_buckets, tag)];
}

static bool is_free(const struct chain_ghost_bucket *b, uint32_t i)
{
    return b->states[i][1] == 0;
}

static uint32_t bucket_len(const struct chain_ghost_bucket *b)
{
    uint32_t n = 0;

    if (!is_free(b, CHAIN_GHOST_WAYS - 1))
        return CHAIN_GHOST_WAYS;
    while (!is_free(b, n))
        n++;
    return n;
}

/* Without a branch for each, and so several in one step: most hashes that are looked for are not there. */
static bool has_tag(const struct chain_ghost_bucket *b, uint32_t tag)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < CHAIN_GHOST_WAYS; i++)
        n += b->tags[i] == tag;
    return n > 0;
}

static uint32_t index_of(const struct chain_ghost_bucket *b, const uint32_t *state)
{
    return (uint32_t)(state - b->states[0]) / CHAIN_GHOST_WORDS;
}

static void copy_one(struct chain_ghost_bucket *to, uint32_t i, const struct chain_ghost_bucket *from, uint32_t j)
{
    to->tags[i] = from->tags[j];
    memcpy(to->states[i], from->states[j], sizeof(to->states[i]));
}

/* Moves the first `n` of a bucket one place on. */
static void shift(struct chain_ghost_bucket *b, uint32_t n)
{
    memmove(b->tags + 1, b->tags, n * sizeof(b->tags[0]));
    memmove(b->states + 1, b->states, n * sizeof(b->states[0]));
}

int chain_ghosts_init(struct chain_ghosts *g, uint32_t n, uint32_t n_first)
{
    uint32_t n_buckets = n / CHAIN_GHOST_WAYS, first = MAX(n_first / CHAIN_GHOST_WAYS, UINT32_C(1));

    if (n > GHOSTS_MAX)
        return -EINVAL;
    *g = (struct chain_ghosts){.n_buckets = MIN(n_buckets, first), .max_buckets = n_buckets};
    if (n_buckets == 0)
        return 0;
    g->buckets = calloc_touched(n_buckets, sizeof(*g->buckets));
    return g->buckets ? 0 : -ENOMEM;
}

void chain_ghosts_deinit(struct chain_ghosts *g)
{
    free(g->buckets);
    *g = (struct chain_ghosts){0};
}

/* --- Growing and shrinking --------------------------------------------------------------------------------------- */

/* The last bucket takes from its older half what belongs there now. */
static void grow(struct chain_ghosts *g)
{
    uint32_t new = g->n_buckets++, n_moved = 0, n_kept = 0;
    struct chain_ghost_bucket *half = &g->buckets[new & ~(UINT32_C(1) << (31 - __builtin_clz(new)))];
    struct chain_ghost_bucket copy = *half;

    memset(half, 0, sizeof(*half));
    for (uint32_t i = 0; i < CHAIN_GHOST_WAYS && !is_free(&copy, i); i++) {
        if (bucket_number(g->n_buckets, copy.tags[i]) == new)
            copy_one(&g->buckets[new], n_moved++, &copy, i);
        else
            copy_one(half, n_kept++, &copy, i);
    }
}

/* The last bucket joins its older half: turn by turn, the newest of each, as long as there is room. */
static void shrink(struct chain_ghosts *g)
{
    struct chain_ghost_bucket *last = &g->buckets[--g->n_buckets], *to = bucket_of(g, g->n_buckets);
    struct chain_ghost_bucket both[2] = {*to, *last};
    uint32_t n = 0;

    memset(to, 0, sizeof(*to));
    memset(last, 0, sizeof(*last));
    for (uint32_t i = 0; i < 2 * CHAIN_GHOST_WAYS; i++) {
        if (is_free(&both[i % 2], i / 2))
            continue;
        if (n < CHAIN_GHOST_WAYS)
            copy_one(to, n++, &both[i % 2], i / 2);
        else
            g->n--;
    }
}

void chain_ghosts_limit(struct chain_ghosts *g, uint64_t n)
{
    uint64_t wanted = MIN(MAX(n / CHAIN_GHOST_WAYS, UINT64_C(1)), (uint64_t)g->max_buckets);

    for (uint32_t i = 0; i < STEPS_MAX && g->n_buckets < wanted; i++)
        grow(g);
    for (uint32_t i = 0; i < STEPS_MAX && g->n_buckets > wanted; i++)
        shrink(g);
}

/* --- Ghosts ------------------------------------------------------------------------------------------------------ */

uint32_t *chain_ghosts_find(const struct chain_ghosts *g, uint64_t hash)
{
    if (g->n_buckets == 0)
        return NULL;
    struct chain_ghost_bucket *b = bucket_of(g, (uint32_t)hash);

    if (!has_tag(b, (uint32_t)hash))
        return NULL;
    for (uint32_t i = 0; i < CHAIN_GHOST_WAYS; i++) {
        if (b->tags[i] == (uint32_t)hash && !is_free(b, i))
            return b->states[i];
    }
    return NULL;
}

uint32_t *chain_ghosts_push(struct chain_ghosts *g, uint64_t hash)
{
    if (g->n_buckets == 0)
        return NULL;
    struct chain_ghost_bucket *b = bucket_of(g, (uint32_t)hash);
    uint32_t len = bucket_len(b);

    g->n += len < CHAIN_GHOST_WAYS;
    shift(b, MIN(len, (uint32_t)CHAIN_GHOST_WAYS - 1));
    b->tags[0] = (uint32_t)hash;
    memset(b->states[0], 0, sizeof(b->states[0]));
    return b->states[0];
}

uint32_t *chain_ghosts_renew(struct chain_ghosts *g, uint64_t hash, const uint32_t *state)
{
    struct chain_ghost_bucket *b = bucket_of(g, (uint32_t)hash);
    uint32_t copy[CHAIN_GHOST_WORDS];

    memcpy(copy, state, sizeof(copy));
    shift(b, index_of(b, state));
    b->tags[0] = (uint32_t)hash;
    memcpy(b->states[0], copy, sizeof(copy));
    return b->states[0];
}

void chain_ghosts_drop(struct chain_ghosts *g, uint64_t hash, const uint32_t *state)
{
    struct chain_ghost_bucket *b = bucket_of(g, (uint32_t)hash);
    uint32_t i = index_of(b, state), n = CHAIN_GHOST_WAYS - 1 - i;

    memmove(b->tags + i, b->tags + i + 1, n * sizeof(b->tags[0]));
    memmove(b->states + i, b->states + i + 1, n * sizeof(b->states[0]));
    memset(b->states[CHAIN_GHOST_WAYS - 1], 0, sizeof(b->states[0]));
    g->n--;
}

uint64_t chain_ghosts_bytes(const struct chain_ghosts *g)
{
    return (uint64_t)g->max_buckets * sizeof(*g->buckets);
}

bool chain_ghosts_check(const struct chain_ghosts *g)
{
    uint64_t n = 0;

    for (uint32_t b = 0; b < g->max_buckets; b++) {
        const struct chain_ghost_bucket *bucket = &g->buckets[b];
        uint32_t len = bucket_len(bucket);

        for (uint32_t i = 0; i < CHAIN_GHOST_WAYS; i++) {
            if (is_free(bucket, i) != (i >= len) || (i < len && b != bucket_number(g->n_buckets, bucket->tags[i])))
                return false;
        }
        n += len;
    }
    return n == g->n;
}
