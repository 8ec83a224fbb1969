/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ghosts: identities that a policy remembers although their objects are gone. A fixed number of them, in up to
 * GHOST_QUEUES first-in first-out queues, found by their 64-bit hash. Two objects with one hash are one ghost: that costs
 * a wrong guess at eviction, never a wrong byte. The hash must be seeded by the caller, for its keys are a client's.
 */
#pragma once

#include "include/base/base.h"

#define GHOST_QUEUES 2

struct ghost_entry {
    uint64_t hash;
    uint32_t prev, next; /* in the queue: prev is older. On the free list: next alone */
    uint32_t sectors;
    uint8_t queue;
    bool asked; /* the policy's own mark; false when pushed */
};

struct ghost_queue {
    uint32_t oldest, newest, len;
    uint64_t sectors;
};

struct ghost {
    struct ghost_entry *entries;
    uint32_t *slots; /* open addressing, linear probing: index of an entry + 1, or 0 */
    uint32_t n_entries, slot_bits;
    uint32_t free; /* head of the free list */
    struct ghost_queue queues[GHOST_QUEUES];
};

/* 0, -ENOMEM, or -EINVAL above GHOSTS_MAX. With n_entries 0 nothing is ever remembered. */
int ghost_init(struct ghost *g, uint32_t n_entries);
void ghost_deinit(struct ghost *g);

/* The ghost, or NULL. Valid until the next call that changes the table. */
struct ghost_entry *ghost_find(const struct ghost *g, uint64_t hash);

/*
 * Remembers a hash as the newest of a queue, wherever it was before. If there is no room, the oldest of the queue that
 * remembers most is forgotten.
 */
void ghost_push(struct ghost *g, uint32_t queue, uint64_t hash, uint32_t sectors);

/* Forgets one hash, or the oldest of a queue. False if there is none. */
bool ghost_remove(struct ghost *g, uint64_t hash);
bool ghost_pop(struct ghost *g, uint32_t queue);

uint64_t ghost_len(const struct ghost *g);
uint64_t ghost_bytes(const struct ghost *g);

/* True if queues, sums and slots agree: slow, for tests and the simulator. */
bool ghost_check(const struct ghost *g);
