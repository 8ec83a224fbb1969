/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Adaptive: LRU, S3-FIFO or ARC, whichever does best on what is asked for now, as small shadows of each find out
 * (shadow.h). Owns the three members and the shadows. One engine's thread.
 *
 * All members work on the same nodes, and each object is in one of them (state[2] says which). One member is `active` and
 * takes what comes in. After a change of mind the one before is `leaving`: it hands its objects over, coldest first, a few
 * at each call, and gives the victims until it is empty. An object takes along how often it was asked for, since the
 * members have no words for each other's order.
 */
#include "tiering/policy.h"

#include <errno.h>
#include <stdlib.h>

#include "tiering/shadow.h"

#define MEMBERS SHADOWS
#define HAND_OVER 32      /* objects at a time */
#define HAND_OVER_EVERY 8 /* calls */

/* In state[2]: the member, the uses since it came in (up to HEAT_MAX), and what the shadows know it by. */
#define MEMBER_BITS 2
#define HEAT_BITS 2
#define HEAT_MAX 3

static const struct policy_ops *const member_ops[MEMBERS] = {&policy_lru, &policy_s3fifo, &policy_arc};

struct adaptive {
    struct policy policy;
    struct policy_nodes nodes; /* borrowed */
    struct policy *members[MEMBERS];
    uint64_t n[MEMBERS]; /* objects of each */
    uint64_t resident_sectors;
    uint32_t active, leaving; /* MEMBERS: none is leaving */
    uint32_t n_calls;
    struct shadow shadow;
};

static struct adaptive *adaptive_of(struct policy *p)
{
    return container_of(p, struct adaptive, policy);
}

static const struct adaptive *adaptive_of_const(const struct policy *p)
{
    return (const struct adaptive *)(const void *)p; /* policy is the first member */
}

static uint32_t member_of(const struct adaptive *a, uint32_t obj)
{
    uint32_t member = policy_node_at(a->nodes, obj)->state[2] & ((1U << MEMBER_BITS) - 1);

    assert(member < MEMBERS);
    return member;
}

static uint32_t heat_of(const struct adaptive *a, uint32_t obj)
{
    return policy_node_at(a->nodes, obj)->state[2] >> MEMBER_BITS & HEAT_MAX;
}

static uint32_t bound_of(const struct adaptive *a, uint32_t obj)
{
    return policy_node_at(a->nodes, obj)->state[2] >> (MEMBER_BITS + HEAT_BITS);
}

static void set_own(struct adaptive *a, uint32_t obj, uint32_t member, uint32_t heat, uint32_t bound)
{
    policy_node_at(a->nodes, obj)->state[2] = member | heat << MEMBER_BITS | bound << (MEMBER_BITS + HEAT_BITS);
}

static void adaptive_free(struct policy *p)
{
    if (!p)
        return;
    struct adaptive *a = adaptive_of(p);

    for (uint32_t i = 0; i < MEMBERS; i++) {
        if (a->members[i])
            member_ops[i]->free(a->members[i]);
    }
    shadow_deinit(&a->shadow);
    free(a);
}

static int adaptive_new(const struct policy_config *config, struct policy **ret_policy)
{
    struct adaptive *a = calloc(1, sizeof(*a));
    struct policy_config half = *config;

    if (!a)
        return -ENOMEM;
    a->policy.ops = &policy_adaptive;
    a->nodes = config->nodes;
    a->leaving = MEMBERS;
    half.max_ghosts = config->max_ghosts / 2; /* two of the members have some */
    int r = shadow_init(&a->shadow, member_ops, config->capacity_sectors, config->max_ghosts);
    for (uint32_t i = 0; i < MEMBERS && r == 0; i++)
        r = member_ops[i]->new (&half, &a->members[i]);
    if (r < 0) {
        adaptive_free(&a->policy);
        return r;
    }
    *ret_policy = &a->policy;
    return 0;
}

/* --- Changes of mind --------------------------------------------------------------------------------------------- */

static enum policy_pin never_pinned(void *ctx, uint32_t obj)
{
    (void)ctx;
    (void)obj;
    return POLICY_FREE;
}

static void hand_over(struct adaptive *a)
{
    const struct policy_ops *from = member_ops[a->leaving], *to = member_ops[a->active];
    uint32_t objs[HAND_OVER], n = from->coldest(a->members[a->leaving], objs, HAND_OVER, never_pinned, NULL);

    for (uint32_t i = 0; i < n; i++) {
        uint32_t obj = objs[i], heat = heat_of(a, obj), bound = bound_of(a, obj),
                 sectors = policy_node_at(a->nodes, obj)->state[0];

        from->remove(a->members[a->leaving], obj, sectors);
        to->insert(a->members[a->active], obj, 0, sectors);
        for (uint32_t use = 0; use < heat; use++)
            to->hit(a->members[a->active], obj);
        set_own(a, obj, a->active, heat, bound);
    }
    a->n[a->leaving] -= n;
    a->n[a->active] += n;
    if (a->n[a->leaving] == 0)
        a->leaving = MEMBERS;
}

/* Once a call, before or after which all is as it should be. */
static void step(struct adaptive *a)
{
    a->n_calls++;
    if (a->leaving == MEMBERS) {
        uint32_t best = shadow_best(&a->shadow, a->active);

        if (best == a->active)
            return;
        a->leaving = a->n[a->active] ? a->active : MEMBERS;
        a->active = best;
    } else if (a->n_calls % HAND_OVER_EVERY == 0) {
        hand_over(a);
    }
}

/* --- Objects ----------------------------------------------------------------------------------------------------- */

static void adaptive_miss(struct policy *p, uint32_t owner, uint64_t hash, uint32_t sectors)
{
    struct adaptive *a = adaptive_of(p);

    shadow_miss(&a->shadow, hash, sectors);
    step(a);
    for (uint32_t i = 0; i < MEMBERS; i++)
        member_ops[i]->miss(a->members[i], owner, hash, sectors); /* what it teaches, it teaches all */
}

static void adaptive_insert(struct policy *p, uint32_t obj, uint64_t hash, uint32_t sectors)
{
    struct adaptive *a = adaptive_of(p);

    member_ops[a->active]->insert(a->members[a->active], obj, hash, sectors);
    set_own(a, obj, a->active, 0, shadow_bind(&a->shadow, hash, obj));
    a->n[a->active]++;
    a->resident_sectors += sectors;
}

static void adaptive_hit(struct policy *p, uint32_t obj)
{
    struct adaptive *a = adaptive_of(p);
    uint32_t member = member_of(a, obj), bound = bound_of(a, obj);

    shadow_hit(&a->shadow, bound, obj);
    member_ops[member]->hit(a->members[member], obj);
    set_own(a, obj, member, MIN(heat_of(a, obj) + 1, (uint32_t)HEAT_MAX), bound);
    step(a);
}

/* The shadows are to be as large as what this class really has; another class may have grown at its expense. */
static void follow_occupancy(struct adaptive *a)
{
    uint64_t was = a->shadow.capacity, now = a->resident_sectors;

    if (now > was + was / 16 || now + was / 16 < was)
        shadow_resize(&a->shadow, now);
}

static uint32_t adaptive_victim(struct policy *p, uint64_t incoming, policy_pin_fn pin, void *ctx)
{
    struct adaptive *a = adaptive_of(p);
    uint32_t obj = POLICY_NONE;

    follow_occupancy(a);
    if (a->leaving < MEMBERS)
        obj = member_ops[a->leaving]->victim(a->members[a->leaving], incoming, pin, ctx);
    return obj != POLICY_NONE ? obj : member_ops[a->active]->victim(a->members[a->active], incoming, pin, ctx);
}

static uint32_t adaptive_coldest(const struct policy *p, uint32_t *ret_objs, uint32_t n, policy_pin_fn pin, void *ctx)
{
    const struct adaptive *a = adaptive_of_const(p);
    uint32_t found = 0;

    if (a->leaving < MEMBERS)
        found = member_ops[a->leaving]->coldest(a->members[a->leaving], ret_objs, n, pin, ctx);
    return found + member_ops[a->active]->coldest(a->members[a->active], ret_objs + found, n - found, pin, ctx);
}

static void left(struct adaptive *a, uint32_t member, uint32_t sectors)
{
    a->resident_sectors -= sectors;
    if (--a->n[member] == 0 && member == a->leaving)
        a->leaving = MEMBERS;
}

static void adaptive_evict(struct policy *p, uint32_t obj, uint64_t hash, uint32_t sectors)
{
    struct adaptive *a = adaptive_of(p);
    uint32_t member = member_of(a, obj), heat = heat_of(a, obj);

    for (uint32_t i = 0; i < MEMBERS; i++) {
        if (i != member && member_ops[i]->remember)
            member_ops[i]->remember(a->members[i], hash, sectors, heat);
    }
    member_ops[member]->evict(a->members[member], obj, hash, sectors);
    left(a, member, sectors);
}

static void adaptive_remove(struct policy *p, uint32_t obj, uint32_t sectors)
{
    struct adaptive *a = adaptive_of(p);
    uint32_t member = member_of(a, obj);

    member_ops[member]->remove(a->members[member], obj, sectors);
    left(a, member, sectors);
}

static void adaptive_resize(struct policy *p, uint64_t capacity_sectors)
{
    struct adaptive *a = adaptive_of(p);

    for (uint32_t i = 0; i < MEMBERS; i++)
        member_ops[i]->resize(a->members[i], capacity_sectors);
    shadow_resize(&a->shadow, capacity_sectors);
}

/* --- Numbers ----------------------------------------------------------------------------------------------------- */

static void adaptive_stat(const struct policy *p, struct policy_stat *ret_stat)
{
    const struct adaptive *a = adaptive_of_const(p);

    *ret_stat = (struct policy_stat){.ghost_bytes = sizeof(*a) + shadow_bytes(&a->shadow)};
    for (uint32_t i = 0; i < MEMBERS; i++) {
        struct policy_stat stat;

        member_ops[i]->stat(a->members[i], &stat);
        ret_stat->resident += stat.resident;
        ret_stat->resident_sectors += stat.resident_sectors;
        ret_stat->ghosts += stat.ghosts;
        ret_stat->ghost_bytes += stat.ghost_bytes;
    }
}

static int adaptive_check(const struct policy *p)
{
    const struct adaptive *a = adaptive_of_const(p);
    uint64_t sectors = 0;

    for (uint32_t i = 0; i < MEMBERS; i++) {
        struct policy_stat stat;

        if (member_ops[i]->check(a->members[i]) < 0)
            return -EUCLEAN;
        member_ops[i]->stat(a->members[i], &stat);
        if (stat.resident != a->n[i] || (stat.resident > 0 && i != a->active && i != a->leaving))
            return -EUCLEAN;
        sectors += stat.resident_sectors;
    }
    return sectors == a->resident_sectors ? 0 : -EUCLEAN;
}

const struct policy_ops policy_adaptive = {
    .name = "adaptive",
    .ghosts_min = 8192,
    .new = adaptive_new,
    .free = adaptive_free,
    .miss = adaptive_miss,
    .insert = adaptive_insert,
    .hit = adaptive_hit,
    .victim = adaptive_victim,
    .evict = adaptive_evict,
    .remove = adaptive_remove,
    .coldest = adaptive_coldest,
    .resize = adaptive_resize,
    .stat = adaptive_stat,
    .check = adaptive_check,
};
