/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of ghosts. Owns one array of entries and one of slots, both allocated at the start; everything after that is
 * links. Belongs to one policy, and so to one engine thread.
 *
 * Invariants: an entry is either on the free list or in exactly one queue, and then reachable by its hash; there are at
 * least a third more slots than entries, so a probe ends. A slot is emptied by shifting its followers back, not by a
 * tombstone: the table lives for months and must not silt up.
 */
#include "tiering/ghost.h"

#include <errno.h>
#include <stdlib.h>

#include "include/base/limits.h"
#include "include/base/touched.h"

#define NONE UINT32_MAX

static uint32_t slot_mask(const struct ghost *g)
{
    return (uint32_t)((UINT64_C(1) << g->slot_bits) - 1);
}

/* Where the search for a hash begins. Multiplying spreads hashes whose low or high bits alone differ. */
static uint32_t slot_home(const struct ghost *g, uint64_t hash)
{
    return (uint32_t)((hash * UINT64_C(0x9e3779b97f4a7c15)) >> (64 - g->slot_bits));
}

/* The slot that holds the hash, or the empty one where it would go. */
static uint32_t slot_search(const struct ghost *g, uint64_t hash)
{
    uint32_t slot = slot_home(g, hash);

    while (g->slots[slot] != 0 && g->entries[g->slots[slot] - 1].hash != hash)
        slot = (slot + 1) & slot_mask(g);
    return slot;
}

/* Empties a slot. A follower moves into the hole if the hole lies between its home and where it is. */
static void slot_clear(struct ghost *g, uint32_t hole)
{
    uint32_t mask = slot_mask(g);

    for (uint32_t slot = (hole + 1) & mask; g->slots[slot] != 0; slot = (slot + 1) & mask) {
        uint32_t home = slot_home(g, g->entries[g->slots[slot] - 1].hash);

        if (((slot - home) & mask) >= ((slot - hole) & mask)) {
            g->slots[hole] = g->slots[slot];
            hole = slot;
        }
    }
    g->slots[hole] = 0;
}

static void queue_link(struct ghost *g, uint32_t queue, uint32_t index)
{
    struct ghost_queue *q = &g->queues[queue];
    struct ghost_entry *e = &g->entries[index];

    e->queue = (uint8_t)queue;
    e->prev = q->newest;
    e->next = NONE;
    if (q->newest == NONE)
        q->oldest = index;
    else
        g->entries[q->newest].next = index;
    q->newest = index;
    q->len++;
    q->sectors += e->sectors;
}

static void queue_unlink(struct ghost *g, uint32_t index)
{
    struct ghost_entry *e = &g->entries[index];
    struct ghost_queue *q = &g->queues[e->queue];

    if (e->prev == NONE)
        q->oldest = e->next;
    else
        g->entries[e->prev].next = e->next;
    if (e->next == NONE)
        q->newest = e->prev;
    else
        g->entries[e->next].prev = e->prev;
    q->len--;
    q->sectors -= e->sectors;
}

int ghost_init(struct ghost *g, uint32_t n_entries)
{
    struct ghost new = {.n_entries = n_entries, .slot_bits = 1, .free = NONE};

    if (n_entries > GHOSTS_MAX)
        return -EINVAL;
    while ((UINT64_C(3) << new.slot_bits) / 4 < n_entries)
        new.slot_bits++;
    for (uint32_t i = 0; i < GHOST_QUEUES; i++)
        new.queues[i] = (struct ghost_queue){.oldest = NONE, .newest = NONE};

    new.entries = calloc_touched((size_t)n_entries + 1, sizeof(*new.entries)); /* + 1: calloc(0) may be NULL */
    new.slots = calloc_touched((size_t)1 << new.slot_bits, sizeof(*new.slots));
    if (!new.entries || !new.slots) {
        ghost_deinit(&new);
        return -ENOMEM;
    }
    for (uint32_t i = n_entries; i-- > 0;) {
        new.entries[i].next = new.free;
        new.free = i;
    }
    *g = new;
    return 0;
}

void ghost_deinit(struct ghost *g)
{
    free(g->entries);
    free(g->slots);
    *g = (struct ghost){0};
}

struct ghost_entry *ghost_find(const struct ghost *g, uint64_t hash)
{
    uint32_t slot = slot_search(g, hash);

    return g->slots[slot] != 0 ? &g->entries[g->slots[slot] - 1] : NULL;
}

bool ghost_remove(struct ghost *g, uint64_t hash)
{
    uint32_t slot = slot_search(g, hash);

    if (g->slots[slot] == 0)
        return false;

    uint32_t index = g->slots[slot] - 1;
    slot_clear(g, slot);
    queue_unlink(g, index);
    g->entries[index].next = g->free;
    g->free = index;
    return true;
}

bool ghost_pop(struct ghost *g, uint32_t queue)
{
    uint32_t oldest = g->queues[queue].oldest;

    return oldest != NONE && ghost_remove(g, g->entries[oldest].hash);
}

void ghost_push(struct ghost *g, uint32_t queue, uint64_t hash, uint32_t sectors)
{
    ghost_remove(g, hash);
    if (g->free == NONE) {
        uint32_t longest = 0;

        for (uint32_t i = 1; i < GHOST_QUEUES; i++) {
            if (g->queues[i].len > g->queues[longest].len)
                longest = i;
        }
        if (!ghost_pop(g, longest))
            return; /* a table of no entries */
    }

    uint32_t index = g->free;
    struct ghost_entry *e = &g->entries[index];

    g->free = e->next;
    *e = (struct ghost_entry){.hash = hash, .sectors = sectors};
    g->slots[slot_search(g, hash)] = index + 1;
    queue_link(g, queue, index);
}

uint64_t ghost_len(const struct ghost *g)
{
    uint64_t len = 0;

    for (uint32_t i = 0; i < GHOST_QUEUES; i++)
        len += g->queues[i].len;
    return len;
}

uint64_t ghost_bytes(const struct ghost *g)
{
    return ((uint64_t)g->n_entries + 1) * sizeof(*g->entries) + (UINT64_C(1) << g->slot_bits) * sizeof(*g->slots);
}

static bool queue_check(const struct ghost *g, uint32_t queue)
{
    const struct ghost_queue *q = &g->queues[queue];
    uint32_t prev = NONE, len = 0;
    uint64_t sectors = 0;

    for (uint32_t i = q->oldest; i != NONE; prev = i, i = g->entries[i].next) {
        const struct ghost_entry *e = &g->entries[i];

        if (len++ == q->len || e->prev != prev || e->queue != queue || ghost_find(g, e->hash) != e)
            return false;
        sectors += e->sectors;
    }
    return len == q->len && prev == q->newest && sectors == q->sectors;
}

bool ghost_check(const struct ghost *g)
{
    uint64_t used = 0, free_len = 0;

    for (uint32_t i = 0; i < GHOST_QUEUES; i++) {
        if (!queue_check(g, i))
            return false;
    }
    for (uint64_t slot = 0; slot <= slot_mask(g); slot++)
        used += g->slots[slot] != 0;
    for (uint32_t i = g->free; i != NONE && free_len <= g->n_entries; i = g->entries[i].next)
        free_len++;
    return used == ghost_len(g) && used + free_len == g->n_entries;
}
