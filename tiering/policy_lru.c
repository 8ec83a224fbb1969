/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LRU: one queue, an object goes to the warm end when it is asked for. Owns nothing but the queue's head; no ghosts.
 * One engine's thread. It is here because it is what everybody compares with, and because it is hard to beat where the
 * working set nearly fits.
 */
#include "tiering/policy.h"

#include <errno.h>
#include <stdlib.h>

#include "tiering/policy_queue.h"

struct lru {
    struct policy policy;
    struct policy_queue queue;
};

static struct lru *lru_of(struct policy *p)
{
    return container_of(p, struct lru, policy);
}

static const struct lru *lru_of_const(const struct policy *p)
{
    return (const struct lru *)(const void *)p; /* policy is the first member */
}

static int lru_new(const struct policy_config *config, struct policy **ret_policy)
{
    struct lru *lru = calloc(1, sizeof(*lru));

    if (!lru)
        return -ENOMEM;
    lru->policy.ops = &policy_lru;
    lru->queue = policy_queue_make(config->nodes, 1);
    *ret_policy = &lru->policy;
    return 0;
}

static void lru_free(struct policy *p)
{
    if (p)
        free(lru_of(p));
}

static void lru_miss(struct policy *p, uint32_t owner, uint64_t hash, uint32_t sectors)
{
    (void)p;
    (void)owner;
    (void)hash;
    (void)sectors;
}

static void lru_insert(struct policy *p, uint32_t obj, uint64_t hash, uint32_t sectors)
{
    (void)hash;
    policy_queue_insert(&lru_of(p)->queue, obj, sectors);
}

static void lru_hit(struct policy *p, uint32_t obj)
{
    struct policy_queue *q = &lru_of(p)->queue;

    policy_queue_move(q, q, obj);
}

static uint32_t lru_victim(struct policy *p, uint64_t incoming, policy_pin_fn pin, void *ctx)
{
    (void)incoming;
    return policy_queue_victim(&lru_of(p)->queue, pin, ctx);
}

static void lru_remove(struct policy *p, uint32_t obj, uint32_t sectors)
{
    policy_queue_drop(&lru_of(p)->queue, obj, sectors);
}

static void lru_evict(struct policy *p, uint32_t obj, uint64_t hash, uint32_t sectors)
{
    (void)hash;
    lru_remove(p, obj, sectors);
}

static uint32_t lru_coldest(const struct policy *p, uint32_t *ret_objs, uint32_t n, policy_pin_fn pin, void *ctx)
{
    const struct policy_queue *q = &lru_of_const(p)->queue;
    uint64_t left = (uint64_t)n + POLICY_SCAN_MAX;
    uint32_t found = 0;

    for (uint32_t obj = q->head; obj != POLICY_NONE && found < n && left > 0;
         obj = policy_node_at(q->nodes, obj)->next, left--) {
        if (pin(ctx, obj) == POLICY_FREE)
            ret_objs[found++] = obj;
    }
    return found;
}

static void lru_resize(struct policy *p, uint64_t capacity_sectors)
{
    (void)p;
    (void)capacity_sectors; /* the order is the same at any capacity */
}

static void lru_stat(const struct policy *p, struct policy_stat *ret_stat)
{
    const struct lru *lru = lru_of_const(p);

    *ret_stat = (struct policy_stat){
        .resident = lru->queue.len,
        .resident_sectors = lru->queue.sectors,
        .ghost_bytes = sizeof(*lru),
    };
}

static int lru_check(const struct policy *p)
{
    return policy_queue_check(&lru_of_const(p)->queue) ? 0 : -EUCLEAN;
}

const struct policy_ops policy_lru = {
    .name = "lru",
    .new = lru_new,
    .free = lru_free,
    .miss = lru_miss,
    .insert = lru_insert,
    .hit = lru_hit,
    .victim = lru_victim,
    .evict = lru_evict,
    .remove = lru_remove,
    .coldest = lru_coldest,
    .resize = lru_resize,
    .stat = lru_stat,
    .check = lru_check,
};
