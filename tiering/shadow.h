/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small caches without contents, one for each of a few policies, that see a sample of the references: what share of them
 * each policy would have found, had it been in charge. Objects are sampled by their hash, and the small caches have that
 * share of the capacity (miniature simulation: Waldspurger and others, ATC 2017).
 */
#pragma once

#include "tiering/policy.h"

#define SHADOWS 3
/* Identities that all of them hold together; when there are more, the sample shrinks. */
#define SHADOW_ENTRIES_MIN 1024
#define SHADOW_ENTRIES_MAX 8192

struct shadow_entry {
    uint64_t hash;
    uint32_t obj; /* by which the caller knows it, or POLICY_NONE */
    uint32_t sectors;
    uint32_t next;    /* free ones */
    uint8_t resident; /* bits: in which caches */
};

struct shadow_cache {
    const struct policy_ops *ops;
    struct policy *policy;
    struct policy_node *nodes;
    uint64_t used; /* sectors */
    float hits;    /* of the recent past */
};

struct shadow {
    struct shadow_cache caches[SHADOWS];
    struct shadow_entry *entries;
    uint32_t *slots; /* by hash: entry + 1 */
    uint32_t n_entries, n_slots;
    uint32_t free, n_free;
    uint32_t shift;    /* one in 2^shift is sampled */
    uint64_t capacity; /* sectors, of the real cache */
    uint32_t n_refs;   /* since the last look */
    uint32_t lead;     /* looks for which the same has been ahead */
    float refs;        /* of the recent past, as hits */
};

/* -ENOMEM, -EINVAL. */
must_check int shadow_init(struct shadow *s, const struct policy_ops *const ops[SHADOWS], uint64_t capacity_sectors,
                           uint32_t n_entries);
void shadow_deinit(struct shadow *s);
void shadow_resize(struct shadow *s, uint64_t capacity_sectors);

/* An object that was not there was asked for. */
void shadow_miss(struct shadow *s, uint64_t hash, uint32_t sectors);
/* It is there: the caller will know it by `obj`. Returns what to give to shadow_hit(): 0 if it is not sampled. */
uint32_t shadow_bind(struct shadow *s, uint64_t hash, uint32_t obj);
/* It was asked for. What is not bound any more is counted nowhere. */
void shadow_hit(struct shadow *s, uint32_t bound, uint32_t obj);

/* Which cache does clearly better than `now`, or `now`. */
uint32_t shadow_best(struct shadow *s, uint32_t now);
uint64_t shadow_bytes(const struct shadow *s);
