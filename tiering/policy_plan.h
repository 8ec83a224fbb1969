/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to the policy `plan`: its state, and what its files know of each other.
 *
 *   policy_plan.c        residents, what is learned and told, who goes, what is fetched
 *   policy_plan_order.c  the orders: slots, where objects are due, how they go on
 *   plan_learn.c         whether accesses repeat themselves
 */
#pragma once

#include "include/base/limits.h"
#include "tiering/plan_learn.h"
#include "tiering/policy.h"
#include "tiering/policy_queue.h"
#include "tiering/slot_set.h"

#define PLAN_ANY POLICY_NONE /* the owner of an order that was learned: all */
#define PLAN_STEPS 64        /* slots that are copied, linked or met at one access */

/* Trust: an access that was foretold gives 1 back, any other costs so much; an order that has lost more than the maximum is
 * dropped. */
#define PLAN_DEVIATION_COST 16
#define PLAN_ERRORS_MAX (32 * PLAN_DEVIATION_COST)

enum stage { LEARNING, COPYING, LINKING, FOLLOWING };

struct slot {
    uint32_t hash; /* lower half */
    uint32_t next; /* slot of its next use; its own if there is no other */
    uint32_t obj;  /* that is due here, if `due` has the slot */
};

struct order {
    uint32_t owner;          /* who told it; PLAN_ANY: it was learned, and is all accesses' */
    uint32_t base, period;   /* its slots; period 0: there is no order */
    uint32_t pos;            /* the slot of the next access; while it is copied: how many came since, and its period */
    uint32_t n_objects;      /* that it has, once all slots are linked */
    uint32_t met;            /* slots whose objects were looked for among the residents */
    bool is_cycle;           /* each object has one slot */
    bool is_asleep;          /* the others have gone on without it for long */
    uint32_t phase;          /* on a cycle: the number of the next access modulo period - 1 */
    uint32_t n_stay;         /* on a cycle: stays that begin in period - 1 accesses; else residents but the margin */
    uint32_t fewest;         /* residents when room was wanted, since n_stay was looked at */
    uint32_t errors;         /* lost trust */
    uint32_t stray, n_stray; /* the slot after the last access that was not foretold, and how many came in order so */
    uint32_t fetched_at;     /* pos when fetch() was last at work */
    uint32_t n_early;        /* of its slots */
    uint64_t moved_at;       /* by the clock; */
    uint64_t round_at;       /* when it was at its first slot, */
    uint64_t round;          /* and how long the round before that was: its period, if it is alone */
};

struct plan {
    struct policy policy;
    struct policy_queue queue;
    struct plan_learner learner;
    struct slot *slots;    /* of all orders */
    uint32_t *first;       /* by hash, with linear probing: 1 + an object's first slot */
    uint32_t max_period;   /* slots; 0: there are none */
    uint32_t first_mask;   /* there are twice as many at least, and a power of two */
    struct slot_set due;   /* slots at which a resident object is used next */
    struct slot_set spare; /* of these, where one is due that need not stay until then */
    struct slot_set early; /* slots whose object was asked for by fetch(), and not used since */
    enum stage stage;
    uint32_t done; /* slots copied or linked */
    struct order orders[PLANS_MAX];
    uint32_t n_orders; /* from there on there is none; 0: LEARNING */
    uint64_t clock;    /* slots that orders have gone on by */
    uint64_t n_plans, n_deviations, n_early_used, n_early_wasted;
    uint32_t (*find)(void *ctx, uint32_t hash_low);
    uint32_t (*owner)(void *ctx, uint32_t obj);
    void *ctx;
};

static inline struct policy_node *node_of(const struct plan *a, uint32_t obj)
{
    return policy_node_at(a->queue.nodes, obj);
}

/* Where the object is due; POLICY_NONE: no order knows. */
static inline uint32_t due_of(const struct plan *a, uint32_t obj)
{
    return (node_of(a, obj)->state[1] >> 8) - 1;
}

static inline bool has_slot(const struct order *o, uint32_t slot)
{
    return slot - o->base < o->period; /* no order: never */
}

/* The slot that is so far ahead. */
static inline uint32_t slot_at(const struct order *o, uint32_t far)
{
    uint32_t wrapped = o->base + o->period - o->pos; /* from so far ahead on slots begin again */

    return far < wrapped ? o->pos + far : o->base + far - wrapped;
}

static inline uint32_t owner_of(const struct plan *a, uint32_t obj)
{
    return a->owner ? a->owner(a->ctx, obj) : 0;
}

/* Whose order has the access; NULL: nobody's. */
struct order *order_of(struct plan *a, uint32_t owner);
/* In a place where there is none. Then all slots are copied, the last one first, and linked; pos is set, and it is followed. */
void order_begin(struct plan *a, struct order *o, uint32_t owner, uint32_t base, uint32_t period);
void order_slot_copy(struct plan *a, const struct order *o, uint32_t slot, uint32_t hash);
void order_slot_link(struct plan *a, struct order *o, uint32_t slot);
void order_follow(struct plan *a, struct order *o);
void order_drop(struct plan *a, struct order *o);
/* Residents that nobody has asked for since the order is known, of PLAN_STEPS slots. */
void order_meet_some(struct plan *a, struct order *o);
/* An access: it goes on. */
void order_see(struct plan *a, struct order *o, uint32_t hash);
/* The next slot of this hash from pos on; POLICY_NONE: it has none. */
uint32_t order_slot_next(const struct plan *a, const struct order *o, uint32_t hash);
/* Another object may be due there, if two have the same lower half: the first one stays. */
void order_due_set(struct plan *a, const struct order *o, uint32_t obj, uint32_t slot);
void order_due_drop(struct plan *a, uint32_t obj);
void order_early_end(struct plan *a, uint32_t slot, bool is_used);
