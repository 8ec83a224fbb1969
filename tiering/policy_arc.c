/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ARC (Megiddo and Modha, FAST 2003), counted in sectors. Two queues of residents, each in LRU order: `once` (T1) holds
 * what was asked for once since it came, `often` (T2) the rest. Two queues of ghosts remember what left each (B1, B2).
 * A miss that finds a ghost says which queue was too short, and moves `target`, the share of T1, that way.
 *
 * Owns the queues' heads and the ghosts. One engine's thread. Invariants, with c the capacity:
 *
 *   target <= c
 *   T1 + B1 <= c, or B1 is empty
 *   T1 + T2 + B1 + B2 <= 2c, or B2 is empty
 *
 * The paper makes room, forgets and inserts in one step at the moment of the miss. Here the steps are apart, with other
 * objects' steps between them, so each step stands alone: a miss moves target, an eviction turns a resident into a ghost
 * (which changes neither sum), and ghosts are forgotten until both sums fit again. Taken in lockstep these do
 * exactly what the paper's cases do; its case of a full T1 whose victim leaves no ghost is a ghost that is forgotten by
 * the very next insertion.
 *
 * A ghost moves the target once (`asked`): clients that look up one key again and again must not steer the pool.
 */
#include "tiering/policy.h"

#include <errno.h>
#include <stdlib.h>

#include "tiering/ghost.h"
#include "tiering/policy_queue.h"

enum {
    B1 = 0,
    B2 = 1,
};

struct arc {
    struct policy policy;
    uint64_t capacity, target; /* sectors */
    struct policy_queue once, often;
    struct ghost ghosts;
};

static struct arc *arc_of(struct policy *p)
{
    return container_of(p, struct arc, policy);
}

static const struct arc *arc_of_const(const struct policy *p)
{
    return (const struct arc *)(const void *)p; /* policy is the first member */
}

static struct policy_queue *queue_of(struct arc *arc, uint32_t obj)
{
    uint32_t id = policy_node_queue(policy_node_at(arc->once.nodes, obj));

    assert(id != 0);
    return id == arc->once.id ? &arc->once : &arc->often;
}

static int arc_new(const struct policy_config *config, struct policy **ret_policy)
{
    struct arc *arc = calloc(1, sizeof(*arc));

    if (!arc)
        return -ENOMEM;

    /* One more, because the eviction that makes a ghost comes before the insertion that forgets one. */
    bool one_more = config->max_ghosts > 0 && config->max_ghosts < GHOSTS_MAX;
    int r = ghost_init(&arc->ghosts, config->max_ghosts + one_more);
    if (r < 0) {
        free(arc);
        return r;
    }
    arc->policy.ops = &policy_arc;
    arc->capacity = config->capacity_sectors;
    arc->once = policy_queue_make(config->nodes, 1);
    arc->often = policy_queue_make(config->nodes, 2);
    *ret_policy = &arc->policy;
    return 0;
}

static void arc_free(struct policy *p)
{
    if (!p)
        return;
    ghost_deinit(&arc_of(p)->ghosts);
    free(arc_of(p));
}

/* How far a ghost moves the target: further if its queue is the shorter one. */
static uint64_t arc_step(const struct ghost_entry *ghost, const struct ghost_queue *own,
                         const struct ghost_queue *other)
{
    uint64_t ratio = own->sectors > 0 ? other->sectors / own->sectors : 1;

    return ghost->sectors * MAX(ratio, UINT64_C(1));
}

static void arc_miss(struct policy *p, uint32_t owner, uint64_t hash, uint32_t sectors)
{
    struct arc *arc = arc_of(p);
    const struct ghost_queue *b1 = &arc->ghosts.queues[B1], *b2 = &arc->ghosts.queues[B2];
    struct ghost_entry *ghost = ghost_find(&arc->ghosts, hash);

    (void)owner;
    (void)sectors; /* the ghost's count: the caller of a miss may not know the size */
    if (!ghost || ghost->asked)
        return;
    ghost->asked = true;
    if (ghost->queue == B1)
        arc->target += MIN(arc_step(ghost, b1, b2), arc->capacity - arc->target);
    else
        arc->target -= MIN(arc_step(ghost, b2, b1), arc->target);
}

/* Forgets ghosts until the sums fit. */
static void arc_trim(struct arc *arc)
{
    const struct ghost_queue *b1 = &arc->ghosts.queues[B1], *b2 = &arc->ghosts.queues[B2];

    while (b1->len > 0 && arc->once.sectors + b1->sectors > arc->capacity)
        ghost_pop(&arc->ghosts, B1);
    while (b2->len > 0 && arc->once.sectors + arc->often.sectors + b1->sectors + b2->sectors > 2 * arc->capacity)
        ghost_pop(&arc->ghosts, B2);
}

static void arc_insert(struct policy *p, uint32_t obj, uint64_t hash, uint32_t sectors)
{
    struct arc *arc = arc_of(p);
    bool known = ghost_remove(&arc->ghosts, hash);

    policy_queue_insert(known ? &arc->often : &arc->once, obj, sectors);
    arc_trim(arc);
}

static void arc_hit(struct policy *p, uint32_t obj)
{
    struct arc *arc = arc_of(p);

    policy_queue_move(queue_of(arc, obj), &arc->often, obj);
}

/* True if T1 should give the next victim. */
static bool once_is_due(const struct arc *arc, uint64_t once_sectors, bool for_b2)
{
    return once_sectors > arc->target || (for_b2 && once_sectors == arc->target);
}

static uint32_t arc_victim(struct policy *p, uint64_t incoming, policy_pin_fn pin, void *ctx)
{
    struct arc *arc = arc_of(p);
    const struct ghost_entry *ghost = incoming ? ghost_find(&arc->ghosts, incoming) : NULL;
    bool once = once_is_due(arc, arc->once.sectors, ghost && ghost->queue == B2);
    uint32_t obj = policy_queue_victim(once ? &arc->once : &arc->often, pin, ctx);

    return obj != POLICY_NONE ? obj : policy_queue_victim(once ? &arc->often : &arc->once, pin, ctx);
}

static void arc_evict(struct policy *p, uint32_t obj, uint64_t hash, uint32_t sectors)
{
    struct arc *arc = arc_of(p);
    struct policy_queue *q = queue_of(arc, obj);

    ghost_push(&arc->ghosts, q == &arc->once ? B1 : B2, hash, sectors);
    policy_queue_drop(q, obj, sectors);
    arc_trim(arc); /* only where occupancy was above the capacity */
}

static void arc_remember(struct policy *p, uint64_t hash, uint32_t sectors, uint32_t hits)
{
    struct arc *arc = arc_of(p);

    ghost_push(&arc->ghosts, hits == 0 ? B1 : B2, hash, sectors);
    arc_trim(arc);
}

static void arc_remove(struct policy *p, uint32_t obj, uint32_t sectors)
{
    struct arc *arc = arc_of(p);

    policy_queue_drop(queue_of(arc, obj), obj, sectors);
}

/* Replays victim() on a cursor in each queue. */
static uint32_t arc_coldest(const struct policy *p, uint32_t *ret_objs, uint32_t n, policy_pin_fn pin, void *ctx)
{
    const struct arc *arc = arc_of_const(p);
    struct policy_nodes nodes = arc->once.nodes;
    uint32_t once = arc->once.head, often = arc->often.head, found = 0;
    uint64_t once_sectors = arc->once.sectors, left = (uint64_t)n + POLICY_SCAN_MAX;

    for (; found < n && left > 0 && (once != POLICY_NONE || often != POLICY_NONE); left--) {
        bool from_once = once != POLICY_NONE && (often == POLICY_NONE || once_is_due(arc, once_sectors, false));
        uint32_t *cursor = from_once ? &once : &often;
        uint32_t obj = *cursor;

        *cursor = policy_node_at(nodes, obj)->next;
        if (pin(ctx, obj) != POLICY_FREE)
            continue;
        if (from_once)
            once_sectors -= policy_node_sectors(policy_node_at(nodes, obj));
        ret_objs[found++] = obj;
    }
    return found;
}

static void arc_resize(struct policy *p, uint64_t capacity_sectors)
{
    struct arc *arc = arc_of(p);

    arc->capacity = capacity_sectors;
    arc->target = MIN(arc->target, capacity_sectors);
    arc_trim(arc);
}

static void arc_stat(const struct policy *p, struct policy_stat *ret_stat)
{
    const struct arc *arc = arc_of_const(p);

    *ret_stat = (struct policy_stat){
        .resident = (uint64_t)arc->once.len + arc->often.len,
        .resident_sectors = arc->once.sectors + arc->often.sectors,
        .ghosts = ghost_len(&arc->ghosts),
        .ghost_bytes = sizeof(*arc) + ghost_bytes(&arc->ghosts),
    };
}

static int arc_check(const struct policy *p)
{
    const struct arc *arc = arc_of_const(p);
    uint64_t t1 = arc->once.sectors, t2 = arc->often.sectors;
    uint64_t b1 = arc->ghosts.queues[B1].sectors, b2 = arc->ghosts.queues[B2].sectors;

    if (!policy_queue_check(&arc->once) || !policy_queue_check(&arc->often) || !ghost_check(&arc->ghosts))
        return -EUCLEAN;
    if (arc->target > arc->capacity || (b1 > 0 && t1 + b1 > arc->capacity))
        return -EUCLEAN;
    return b2 > 0 && t1 + t2 + b1 + b2 > 2 * arc->capacity ? -EUCLEAN : 0;
}

const struct policy_ops policy_arc = {
    .name = "arc",
    .new = arc_new,
    .free = arc_free,
    .miss = arc_miss,
    .insert = arc_insert,
    .hit = arc_hit,
    .victim = arc_victim,
    .evict = arc_evict,
    .remove = arc_remove,
    .remember = arc_remember,
    .coldest = arc_coldest,
    .resize = arc_resize,
    .stat = arc_stat,
    .check = arc_check,
};
