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

#define STEPS_MAX 64 /* buckets that one call of chain_ghosts_limit() splits or joins */

static uint32_t bucket_number(uint32_t n_buckets, uint32_t tag)
{
    uint32_t mask = n_buckets > 1 ? (UINT32_C(2) << (31 - __builtin_clz(n_buckets - 1))) - 1 : 0;
    uint32_t number = tag & mask;

    return number < n_buckets ? number : number & mask >> 1;
}

static struct chain_ghost *bucket_at(const struct chain_ghosts *g, uint32_t number)
{
    return g->entries + (uint64_t)number * CHAIN_GHOST_WAYS;
}

static struct chain_ghost *bucket_of(const struct chain_ghosts *g, uint32_t tag)
{
    return bucket_at(g, bucket_number(g->n_buckets, tag));
}

static bool is_free(const struct chain_ghost *ghost)
{
    return ghost->state[1] == 0;
}

int chain_ghosts_init(struct chain_ghosts *g, uint32_t n)
{
    uint32_t n_buckets = n / CHAIN_GHOST_WAYS;

    if (n > GHOSTS_MAX)
        return -EINVAL;
    *g = (struct chain_ghosts){.n_buckets = n_buckets, .max_buckets = n_buckets};
    if (n_buckets == 0)
        return 0;
    g->entries = calloc((size_t)n_buckets * CHAIN_GHOST_WAYS, sizeof(*g->entries));
    return g->entries ? 0 : -ENOMEM;
}

void chain_ghosts_deinit(struct chain_ghosts *g)
{
    free(g->entries);
    *g = (struct chain_ghosts){0};
}

/* --- Growing and shrinking --------------------------------------------------------------------------------------- */

/* The last bucket takes from its older half what belongs there now. */
static void grow(struct chain_ghosts *g)
{
    uint32_t new = g->n_buckets++;
    struct chain_ghost *to = bucket_at(g, new), *from, *kept;

    if (new == 0)
        return;
    from = kept = bucket_of(g, new & ~(UINT32_C(1) << (31 - __builtin_clz(new))));
    for (uint32_t i = 0; i < CHAIN_GHOST_WAYS; i++) {
        struct chain_ghost ghost = from[i];

        if (is_free(&ghost))
            break;
        from[i] = (struct chain_ghost){0};
        *(bucket_number(g->n_buckets, ghost.tag) == new ? to++ : kept++) = ghost;
    }
}

/* The last bucket joins its older half: turn by turn, the newest of each, as long as there is room. */
static void shrink(struct chain_ghosts *g)
{
    struct chain_ghost both[2][CHAIN_GHOST_WAYS], *last = bucket_at(g, --g->n_buckets), *to;
    uint32_t n = 0;

    to = bucket_of(g, g->n_buckets);
    memcpy(both[0], to, sizeof(both[0]));
    memcpy(both[1], last, sizeof(both[1]));
    memset(to, 0, sizeof(both[0]));
    memset(last, 0, sizeof(both[0]));
    for (uint32_t i = 0; i < 2 * CHAIN_GHOST_WAYS; i++) {
        const struct chain_ghost *ghost = &both[i % 2][i / 2];

        if (is_free(ghost))
            continue;
        if (n < CHAIN_GHOST_WAYS)
            to[n++] = *ghost;
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

struct chain_ghost *chain_ghosts_find(const struct chain_ghosts *g, uint64_t hash)
{
    if (g->n_buckets == 0)
        return NULL;
    struct chain_ghost *bucket = bucket_of(g, (uint32_t)hash);

    for (uint32_t i = 0; i < CHAIN_GHOST_WAYS && !is_free(&bucket[i]); i++) {
        if (bucket[i].tag == (uint32_t)hash)
            return &bucket[i];
    }
    return NULL;
}

/* Moves [bucket, at) one place on, over `at`. */
static void bucket_shift(struct chain_ghost *bucket, const struct chain_ghost *at)
{
    memmove(bucket + 1, bucket, (size_t)(at - bucket) * sizeof(*bucket));
}

struct chain_ghost *chain_ghosts_push(struct chain_ghosts *g, uint64_t hash)
{
    if (g->n_buckets == 0)
        return NULL;
    struct chain_ghost *bucket = bucket_of(g, (uint32_t)hash), *last = bucket;

    while (!is_free(last) && last < bucket + CHAIN_GHOST_WAYS - 1)
        last++;
    g->n += is_free(last);
    bucket_shift(bucket, last);
    *bucket = (struct chain_ghost){.tag = (uint32_t)hash};
    return bucket;
}

struct chain_ghost *chain_ghosts_renew(struct chain_ghosts *g, struct chain_ghost *ghost)
{
    struct chain_ghost *bucket = bucket_of(g, ghost->tag), copy = *ghost;

    bucket_shift(bucket, ghost);
    *bucket = copy;
    return bucket;
}

void chain_ghosts_drop(struct chain_ghosts *g, struct chain_ghost *ghost)
{
    struct chain_ghost *bucket = bucket_of(g, ghost->tag), *end = bucket + CHAIN_GHOST_WAYS;

    memmove(ghost, ghost + 1, (size_t)(end - ghost - 1) * sizeof(*ghost));
    end[-1] = (struct chain_ghost){0};
    g->n--;
}

uint64_t chain_ghosts_bytes(const struct chain_ghosts *g)
{
    return (uint64_t)g->max_buckets * CHAIN_GHOST_WAYS * sizeof(*g->entries);
}

bool chain_ghosts_check(const struct chain_ghosts *g)
{
    uint64_t n = 0;

    for (uint32_t b = 0; b < g->max_buckets; b++) {
        const struct chain_ghost *bucket = bucket_at(g, b);

        for (uint32_t i = 0; i < CHAIN_GHOST_WAYS; i++) {
            if (is_free(&bucket[i]))
                continue;
            if (b >= g->n_buckets || bucket_of(g, bucket[i].tag) != bucket || (i > 0 && is_free(&bucket[i - 1])))
                return false;
            n++;
        }
    }
    return n == g->n;
}
