/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the chain policy remembers of blocks that are not resident: 16 bytes each, in buckets of 32, each a first-in
 * first-out queue of its own: enough for the whole to forget nearly in order. No links and no free list: the place is the
 * hash's, so that a lookup touches two or three cache lines. Two blocks whose hashes have the same lower half are one ghost: a wrong guess, never a wrong byte.
 *
 * How many are remembered may change at any time: the table grows and shrinks by a bucket (linear hashing: a bucket is
 * split in two, or two become one), so that no step costs more than that.
 */
#pragma once

#include "include/base/base.h"

#define CHAIN_GHOST_WAYS 32
#define CHAIN_GHOST_WORDS 3 /* of state: as in a policy_node; the second is 0 in a free one */

struct chain_ghost_bucket {
    uint32_t tags[CHAIN_GHOST_WAYS];
    uint32_t states[CHAIN_GHOST_WAYS][CHAIN_GHOST_WORDS];
};
static_assert(sizeof(struct chain_ghost_bucket) == 16 * (size_t)CHAIN_GHOST_WAYS, "16 bytes a ghost");

struct chain_ghosts {
    struct chain_ghost_bucket *buckets;
    uint32_t n_buckets, max_buckets; /* in use; allocated */
    uint32_t n;
};

/* Room for n of them, rounded down to whole buckets; of that, n_first at first. 0, -ENOMEM, or -EINVAL above GHOSTS_MAX. */
must_check int chain_ghosts_init(struct chain_ghosts *g, uint32_t n, uint32_t n_first);
void chain_ghosts_deinit(struct chain_ghosts *g);

/* About n are to be remembered from now on. Call it again and again: one call goes a bounded way there. */
void chain_ghosts_limit(struct chain_ghosts *g, uint64_t n);

/*
 * A ghost is known by its state, which is valid until the next change of the table. NULL: not remembered; or, from push,
 * there is no room for any.
 */
uint32_t *chain_ghosts_find(const struct chain_ghosts *g, uint64_t hash);
/* A fresh one, all zeros: the caller fills it at once. The hash is not in the table. */
uint32_t *chain_ghosts_push(struct chain_ghosts *g, uint64_t hash);
/* As if it had just been pushed. */
uint32_t *chain_ghosts_renew(struct chain_ghosts *g, uint64_t hash, const uint32_t *state);
void chain_ghosts_drop(struct chain_ghosts *g, uint64_t hash, const uint32_t *state);

uint64_t chain_ghosts_bytes(const struct chain_ghosts *g);
/* Recounts; every ghost is where its hash says. Slow. */
bool chain_ghosts_check(const struct chain_ghosts *g);
