/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What it takes to lease so many objects of so many sizes at once, before there is any of them. Pure arithmetic, on numbers
 * that a client chose: each sum has a bound, and none is narrowed before that.
 *
 * Leases are admitted by bytes, so their limit gives one bound of the memory. Memory is given out in slabs of one size: what
 * those of all sizes take together is the other one, where there are many sizes with few leases each. What a slab has beyond
 * the leases of its size is not counted: it can be cut off for others (room_clear_run()). But what is left between two slabs
 * may be too short for the largest piece: that is counted once for each size beside the first.
 */
#include <errno.h>

#include "include/base/checked.h"
#include "tiering/arena.h"
#include "tiering/tiering.h"

#define SUM_MAX (UINT64_C(1) << 60)
#define FIT_TRIES 8

/* Extents of one size: of whole pieces, and of what is left at an object's end. */
struct extents {
    uint32_t sectors;
    uint64_t n, n_private;
};

struct sums {
    struct extents extents[2 * SIZING_ENTRIES_MAX];
    uint32_t n_sizes;
    uint64_t leased_bytes, stored_bytes, leases;
};

static bool sum_add(uint64_t *sum, uint64_t a, uint64_t b)
{
    uint64_t product, result;

    if (!mul_u64(a, b, &product) || !add_u64(*sum, product, &result) || result > SUM_MAX)
        return false;
    *sum = result;
    return true;
}

static struct extents *extents_of(struct sums *s, uint32_t sectors)
{
    for (uint32_t i = 0; i < s->n_sizes; i++)
        if (s->extents[i].sectors == sectors)
            return &s->extents[i];
    s->extents[s->n_sizes] = (struct extents){.sectors = sectors};
    return &s->extents[s->n_sizes++];
}

/* So many pieces of each object have this size. */
static bool pieces_add(struct sums *s, const struct tiering_manifest_entry *e, uint64_t n_pieces, uint64_t size_bytes)
{
    uint32_t sectors = (uint32_t)div_round_up(size_bytes, SECTOR_BYTES);
    uint64_t count = MAX(e->count, (uint64_t)e->slots), slots = 0, pieces = 0;

    if (n_pieces == 0 || size_bytes == 0)
        return true;
    if (!sum_add(&slots, n_pieces, e->slots) || !sum_add(&pieces, n_pieces, count) ||
        !sum_add(&s->leased_bytes, slots, sectors * SECTOR_BYTES) ||
        !sum_add(&s->stored_bytes, pieces, sectors * SECTOR_BYTES) || !sum_add(&s->leases, slots, 1))
        return false;
    struct extents *x = extents_of(s, sectors);

    return sum_add(&x->n, slots, 1) && (!e->writes || sum_add(&x->n_private, slots, 1));
}

static uint64_t slabs_bytes(const struct sums *s, uint64_t memory_bytes, bool is_private)
{
    uint64_t frames = 0, total = memory_bytes / FRAME_BYTES, longest = 0, n_sizes = 0;

    for (uint32_t i = 0; i < s->n_sizes; i++) {
        const struct extents *x = &s->extents[i];
        uint64_t n = is_private ? x->n_private : x->n;

        frames += arena_frames_of(x->sectors, n, total);
        n_sizes += n > 0;
        longest = n > 0 ? MAX(longest, div_round_up(x->sectors, FRAME_SECTORS)) : longest;
    }
    return (frames + (n_sizes > 0 ? (n_sizes - 1) * longest : 0)) * FRAME_BYTES;
}

/* How long slabs are depends on how much memory there is: from this much on, as much as they take in so much. */
static uint64_t slabs_fit(const struct sums *s, uint64_t bytes)
{
    for (uint32_t i = 0; i < FIT_TRIES; i++) {
        uint64_t slabs = slabs_bytes(s, bytes, false);

        if (slabs <= bytes)
            break;
        bytes = slabs;
    }
    return bytes;
}

/* As admission reckons. */
static uint64_t pool_limit(const struct tiering_sizing_limits *l)
{
    return l->memory_bytes / 100 * l->max_leases_percent;
}

static bool has_user_limit(const struct tiering_sizing_limits *l)
{
    return l->user_leases_percent > 0 && l->user_leases_percent < 100;
}

static uint64_t user_limit(const struct tiering_sizing_limits *l)
{
    return has_user_limit(l) ? pool_limit(l) / 100 * l->user_leases_percent : pool_limit(l);
}

/* The least memory of which a user may lease so much. */
static uint64_t admitting_bytes(const struct tiering_sizing_limits *l, uint64_t bytes)
{
    uint64_t pool = has_user_limit(l) ? div_round_up(bytes, l->user_leases_percent) * 100 : bytes;

    return div_round_up(pool, l->max_leases_percent) * 100;
}

/* The first limit that does not allow it. */
static uint32_t limit_met(const struct tiering_sizing_limits *l, const struct tiering_sizing *s, uint64_t slabs)
{
    if (s->leased_bytes > pool_limit(l))
        return TIERING_LIMIT_POOL_LEASES;
    if (s->leased_bytes > s->leasable_bytes)
        return TIERING_LIMIT_UID_LEASES;
    if (slabs > l->memory_bytes)
        return TIERING_LIMIT_POOL_DRAM;
    if (s->private_bytes > l->session_bytes)
        return TIERING_LIMIT_SESSION_BYTES;
    if (s->leases > l->session_leases)
        return TIERING_LIMIT_SESSION_LEASES;
    if (s->stored_bytes > l->memory_bytes && s->stored_bytes - l->memory_bytes > l->device_bytes)
        return l->device_bytes ? TIERING_LIMIT_POOL_NVME : TIERING_LIMIT_POOL_DRAM;
    return TIERING_LIMIT_NONE;
}

int tiering_sizing(const struct tiering_sizing_limits *l, const struct tiering_manifest_entry *entries, uint32_t n,
                   struct tiering_sizing *ret_sizing)
{
    struct sums s = {.n_sizes = 0};

    assert(n <= SIZING_ENTRIES_MAX && l->piece_bytes > 0 && l->piece_bytes <= PIECE_BYTES_MAX &&
           l->max_leases_percent > 0);
    for (uint32_t i = 0; i < n; i++) {
        const struct tiering_manifest_entry *e = &entries[i];

        if (!pieces_add(&s, e, e->size_bytes / l->piece_bytes, l->piece_bytes) ||
            !pieces_add(&s, e, 1, e->size_bytes % l->piece_bytes))
            return -E2BIG;
    }
    struct tiering_sizing sizing = {
        .leased_bytes = s.leased_bytes,
        .leasable_bytes = user_limit(l),
        .memory_bytes = slabs_fit(&s, round_up(admitting_bytes(l, s.leased_bytes), FRAME_BYTES)),
        .private_bytes = l->trusted ? 0 : slabs_bytes(&s, l->session_bytes, true),
        .stored_bytes = s.stored_bytes,
        .leases = s.leases,
    };

    sizing.limit = limit_met(l, &sizing, slabs_bytes(&s, l->memory_bytes, false));
    *ret_sizing = sizing;
    return 0;
}
