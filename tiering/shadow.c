/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the small caches and the table of identities that they share. Belongs to one policy, and so to one engine thread.
 *
 * An identity is in the table as long as one of the caches holds it. The table never overflows: when it is full, the sample
 * is halved, and those that are no longer part of it leave all caches. That is the only step that is long (the table's
 * length), and it comes at most once for each doubling of the real cache.
 */
#include "tiering/shadow.h"

#include <errno.h>
#include <stdlib.h>

#include "include/base/touched.h"
#define SHIFT_MAX 30
#define LOOK_REFS 512 /* references between two looks at who is best */
#define FADE 0.998F   /* of the hits at each look: about 250,000 references count */
/* So many hits more, by the lesser of a share of the hits and one of the references, and a few besides: else noise would
 * switch, and a switch is not free. */
#define CLEARLY_HITS 0.03F
#define CLEARLY_REFS 0.008F
#define CLEARLY_MORE 12.0F
#define LEAD_LOOKS 100 /* or so often in a row half of that */

static const uint32_t none = POLICY_NONE;

static bool is_sampled(const struct shadow *s, uint64_t hash)
{
    return (hash >> 32 & ((UINT64_C(1) << s->shift) - 1)) == 0; /* not the bits that name the slot */
}

static uint32_t slot_home(const struct shadow *s, uint64_t hash)
{
    return (uint32_t)hash % s->n_slots;
}

static uint32_t slot_search(const struct shadow *s, uint64_t hash)
{
    uint32_t slot = slot_home(s, hash);

    while (s->slots[slot] != 0 && s->entries[s->slots[slot] - 1].hash != hash)
        slot = (slot + 1) % s->n_slots;
    return slot;
}

static void slot_clear(struct shadow *s, uint32_t hole)
{
    for (uint32_t slot = (hole + 1) % s->n_slots; s->slots[slot] != 0; slot = (slot + 1) % s->n_slots) {
        uint32_t home = slot_home(s, s->entries[s->slots[slot] - 1].hash);

        if ((slot + s->n_slots - home) % s->n_slots >= (slot + s->n_slots - hole) % s->n_slots) {
            s->slots[hole] = s->slots[slot];
            hole = slot;
        }
    }
    s->slots[hole] = 0;
}

/* --- Birth ------------------------------------------------------------------------------------------------------- */

static void caches_resize(struct shadow *s)
{
    for (uint32_t k = 0; k < SHADOWS; k++)
        s->caches[k].ops->resize(s->caches[k].policy, s->capacity >> s->shift);
}

int shadow_init(struct shadow *s, const struct policy_ops *const ops[SHADOWS], uint64_t capacity_sectors,
                uint32_t n_entries)
{
    uint32_t n = MIN(MAX(n_entries, (uint32_t)SHADOW_ENTRIES_MIN), (uint32_t)SHADOW_ENTRIES_MAX);
    int r = 0;

    *s = (struct shadow){.capacity = capacity_sectors, .free = none, .n_entries = n, .n_slots = 2 * n};
    s->entries = calloc_touched(s->n_entries, sizeof(*s->entries));
    s->slots = calloc_touched(s->n_slots, sizeof(*s->slots));
    if (!s->entries || !s->slots)
        r = -ENOMEM;
    for (uint32_t k = 0; k < SHADOWS && r == 0; k++) {
        struct shadow_cache *c = &s->caches[k];

        c->ops = ops[k];
        c->nodes = calloc_touched(s->n_entries, sizeof(*c->nodes));
        struct policy_config config = {.nodes = POLICY_NODES(c->nodes),
                                       .n_nodes = s->n_entries,
                                       .capacity_sectors = capacity_sectors,
                                       .max_ghosts = s->n_entries};
        r = c->nodes ? c->ops->new (&config, &c->policy) : -ENOMEM;
    }
    if (r < 0) {
        shadow_deinit(s);
        return r;
    }
    for (uint32_t i = s->n_entries; i-- > 0;) {
        s->entries[i].next = s->free;
        s->free = i;
    }
    s->n_free = s->n_entries;
    return 0;
}

void shadow_deinit(struct shadow *s)
{
    for (uint32_t k = 0; k < SHADOWS; k++) {
        if (s->caches[k].policy)
            s->caches[k].ops->free(s->caches[k].policy);
        free(s->caches[k].nodes);
    }
    free(s->entries);
    free(s->slots);
    *s = (struct shadow){0};
}

void shadow_resize(struct shadow *s, uint64_t capacity_sectors)
{
    s->capacity = capacity_sectors;
    caches_resize(s);
}

/* --- Entries ----------------------------------------------------------------------------------------------------- */

static void entry_free(struct shadow *s, uint32_t i)
{
    slot_clear(s, slot_search(s, s->entries[i].hash));
    s->entries[i] = (struct shadow_entry){.next = s->free};
    s->free = i;
    s->n_free++;
}

static void halve_sample(struct shadow *s)
{
    if (s->shift == SHIFT_MAX)
        return;
    s->shift++;
    for (uint32_t i = 0; i < s->n_entries; i++) {
        struct shadow_entry *e = &s->entries[i];

        if (!e->resident || is_sampled(s, e->hash))
            continue;
        for (uint32_t k = 0; k < SHADOWS; k++) {
            if (!(e->resident & 1U << k))
                continue;
            s->caches[k].ops->remove(s->caches[k].policy, i, e->sectors);
            s->caches[k].used -= e->sectors;
        }
        entry_free(s, i);
    }
    for (uint32_t k = 0; k < SHADOWS; k++)
        s->caches[k].hits /= 2;
    s->refs /= 2;
    caches_resize(s);
}

static uint32_t entry_new(struct shadow *s, uint64_t hash, uint32_t sectors)
{
    /* One at a time is being filled in, and belongs to no cache yet. */
    while (s->n_free < 2 && s->shift < SHIFT_MAX)
        halve_sample(s);
    if (s->n_free == 0 || !is_sampled(s, hash))
        return none;
    uint32_t i = s->free;

    s->free = s->entries[i].next;
    s->n_free--;
    s->entries[i] = (struct shadow_entry){.hash = hash, .obj = none, .sectors = sectors};
    s->slots[slot_search(s, hash)] = i + 1;
    return i;
}

/* --- References -------------------------------------------------------------------------------------------------- */

static enum policy_pin never_pinned(void *ctx, uint32_t obj)
{
    (void)ctx;
    (void)obj;
    return POLICY_FREE;
}

static void cache_refer(struct shadow *s, uint32_t k, uint32_t i)
{
    struct shadow_cache *c = &s->caches[k];
    struct shadow_entry *e = &s->entries[i];
    uint64_t capacity = s->capacity >> s->shift;

    if (e->resident & 1U << k) {
        c->ops->hit(c->policy, i);
        c->hits++;
        return;
    }
    c->ops->miss(c->policy, 0, e->hash, e->sectors);
    while (c->used + e->sectors > capacity) {
        uint32_t v = c->ops->victim(c->policy, e->hash, never_pinned, NULL);

        if (v == none)
            break;
        struct shadow_entry *victim = &s->entries[v];
        c->ops->evict(c->policy, v, victim->hash, victim->sectors);
        c->used -= victim->sectors;
        victim->resident &= (uint8_t) ~(1U << k);
        if (!victim->resident)
            entry_free(s, v);
    }
    if (e->sectors > capacity)
        return;
    c->ops->insert(c->policy, i, e->hash, e->sectors);
    c->used += e->sectors;
    e->resident |= (uint8_t)(1U << k);
}

static void refer(struct shadow *s, uint32_t i)
{
    struct shadow_entry *e = &s->entries[i];

    e->resident |= 1U << SHADOWS; /* it must not be freed on the way */
    for (uint32_t k = 0; k < SHADOWS; k++)
        cache_refer(s, k, i);
    e->resident &= (uint8_t) ~(1U << SHADOWS);
    s->n_refs++;
    if (!e->resident)
        entry_free(s, i);
}

void shadow_miss(struct shadow *s, uint64_t hash, uint32_t sectors)
{
    if (!is_sampled(s, hash))
        return;
    uint32_t slot = slot_search(s, hash);
    uint32_t i = s->slots[slot] ? s->slots[slot] - 1 : entry_new(s, hash, sectors);

    if (i != none)
        refer(s, i);
}

uint32_t shadow_bind(struct shadow *s, uint64_t hash, uint32_t obj)
{
    uint32_t slot;

    if (!is_sampled(s, hash) || !s->slots[slot = slot_search(s, hash)])
        return 0;
    s->entries[s->slots[slot] - 1].obj = obj;
    return s->slots[slot];
}

void shadow_hit(struct shadow *s, uint32_t bound, uint32_t obj)
{
    if (bound != 0 && s->entries[bound - 1].resident && s->entries[bound - 1].obj == obj)
        refer(s, bound - 1);
}

uint32_t shadow_best(struct shadow *s, uint32_t now)
{
    uint32_t best = now;

    if (s->n_refs < LOOK_REFS)
        return now;
    s->refs += (float)s->n_refs;
    s->n_refs = 0;
    for (uint32_t k = 0; k < SHADOWS; k++) {
        if (s->caches[k].hits > s->caches[best].hits)
            best = k;
    }
    float margin = MIN(s->caches[now].hits * CLEARLY_HITS, s->refs * CLEARLY_REFS) + CLEARLY_MORE;
    float ahead = s->caches[best].hits - s->caches[now].hits;

    s->lead = ahead > margin / 2 ? s->lead + 1 : 0;
    if (ahead < margin && s->lead < LEAD_LOOKS)
        best = now;
    s->refs *= FADE;
    for (uint32_t k = 0; k < SHADOWS; k++)
        s->caches[k].hits *= FADE;
    return best;
}

uint64_t shadow_bytes(const struct shadow *s)
{
    uint64_t bytes =
        s->n_entries * (sizeof(*s->entries) + SHADOWS * sizeof(struct policy_node)) + s->n_slots * sizeof(*s->slots);

    for (uint32_t k = 0; k < SHADOWS; k++) {
        struct policy_stat stat;

        s->caches[k].ops->stat(s->caches[k].policy, &stat);
        bytes += stat.ghost_bytes;
    }
    return bytes;
}
