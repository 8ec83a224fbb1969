/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the map from a space's identity to its engine: chains in a fixed number of buckets. A space is never forgotten
 * while the daemon lives, as tiering forgets none. Digests come from clients, but all that a bad choice costs is a
 * longer chain of that client's own SPACES_MAX / n_pools.
 */
#include "daemon/spaces.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SPACES_BUCKETS 4096

struct space_entry {
    struct space_entry *next;
    uint32_t pool, engine;
    uint8_t digest[SPW_DIGEST_BYTES];
};

struct spaces {
    struct space_entry *buckets[SPACES_BUCKETS];
    uint32_t n;
    uint32_t n_of_pool[POOLS_MAX];
    uint32_t n_of_engine[ENGINES_MAX];
};

int spaces_new(struct spaces **ret_spaces)
{
    *ret_spaces = calloc(1, sizeof(**ret_spaces));
    return *ret_spaces ? 0 : -ENOMEM;
}

struct spaces *spaces_free(struct spaces *spaces)
{
    for (uint32_t i = 0; spaces && i < SPACES_BUCKETS; i++) {
        for (struct space_entry *e = spaces->buckets[i], *next; e; e = next) {
            next = e->next;
            free(e);
        }
    }
    free(spaces);
    return NULL;
}

static uint32_t bucket_of(uint32_t pool, const uint8_t *digest)
{
    uint32_t hash;

    memcpy(&hash, digest, sizeof(hash));
    return (hash ^ pool * 2654435761U) % SPACES_BUCKETS;
}

static const struct space_entry *entry_find(const struct spaces *spaces, uint32_t pool, const uint8_t *digest)
{
    for (const struct space_entry *e = spaces->buckets[bucket_of(pool, digest)]; e; e = e->next)
        if (e->pool == pool && memcmp(e->digest, digest, sizeof(e->digest)) == 0)
            return e;
    return NULL;
}

int spaces_find(const struct spaces *spaces, uint32_t pool, const uint8_t *digest, uint32_t *ret_engine)
{
    const struct space_entry *e = entry_find(spaces, pool, digest);

    if (!e)
        return -ENOENT;
    *ret_engine = e->engine;
    return 0;
}

int spaces_add(struct spaces *spaces, uint32_t n_pools, uint32_t pool, const uint8_t *digest, uint32_t engine)
{
    if (entry_find(spaces, pool, digest))
        return 0;
    if (spaces->n == SPACES_MAX || spaces->n_of_pool[pool] >= SPACES_MAX / n_pools)
        return -ENOSPC;
    struct space_entry *e = malloc(sizeof(*e));
    struct space_entry **bucket = &spaces->buckets[bucket_of(pool, digest)];

    if (!e)
        return -ENOMEM;
    *e = (struct space_entry){.next = *bucket, .pool = pool, .engine = engine};
    memcpy(e->digest, digest, sizeof(e->digest));
    *bucket = e;
    spaces->n++;
    spaces->n_of_pool[pool]++;
    spaces->n_of_engine[engine]++;
    return 0;
}

uint32_t spaces_of_engine(const struct spaces *spaces, uint32_t engine)
{
    return spaces->n_of_engine[engine];
}

uint32_t spaces_count(const struct spaces *spaces)
{
    return spaces->n;
}
