/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the chain policy remembers of blocks that are not resident: 16 bytes each, in buckets of sixteen, each a first-in
 * first-out queue of its own. No links and no free list: the place is the hash's, so that a lookup touches a few cache
 * lines, side by side. Two blocks whose hashes have the same lower half are one ghost: a wrong guess, never a wrong byte.
 *
 * How many are remembered may change at any time: the table grows and shrinks by a bucket (linear hashing: a bucket is
 * split in two, or two become one), so that no step costs more than that.
 */
#pragma once

#include "include/base/base.h"

struct chain_ghost {
    uint32_t tag;
    uint32_t state[3]; /* as in a policy_node; state[1] is 0 in a free one */
};
static_assert(sizeof(struct chain_ghost) == 16, "a ghost");

#define CHAIN_GHOST_WAYS 16

struct chain_ghosts {
    struct chain_ghost *entries;
    uint32_t n_buckets, max_buckets; /* in use; allocated */
    uint32_t n;
};

/* Room for n of them, rounded down to whole buckets; as many are remembered at first. 0, -ENOMEM, or -EINVAL above
 * GHOSTS_MAX. */
must_check int chain_ghosts_init(struct chain_ghosts *g, uint32_t n);
void chain_ghosts_deinit(struct chain_ghosts *g);

/* About n are to be remembered from now on. Call it again and again: one call goes a bounded way there. */
void chain_ghosts_limit(struct chain_ghosts *g, uint64_t n);

/* All are valid until the next push, renewal or limit. NULL: not remembered; or, from push, there is no room for any. */
struct chain_ghost *chain_ghosts_find(const struct chain_ghosts *g, uint64_t hash);
/* A fresh one, its state zeroed: the caller fills it at once. The hash is not in the table. */
struct chain_ghost *chain_ghosts_push(struct chain_ghosts *g, uint64_t hash);
/* As if it had just been pushed. */
struct chain_ghost *chain_ghosts_renew(struct chain_ghosts *g, struct chain_ghost *ghost);
void chain_ghosts_drop(struct chain_ghosts *g, struct chain_ghost *ghost);

uint64_t chain_ghosts_bytes(const struct chain_ghosts *g);
/* Recounts; every ghost is where its hash says. */
bool chain_ghosts_check(const struct chain_ghosts *g);
