/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A queue of objects, linked by index through the caller's array of policy_node: what every policy is made of. The head
 * is the cold end. An object is in at most one queue; state[1] names it (its lowest byte), and a queue knows its length
 * and the sum of its objects' sectors. Private to the policies.
 */
#pragma once

#include "include/base/base.h"
#include "include/base/limits.h"
#include "tiering/policy.h"

struct policy_queue {
    struct policy_nodes nodes; /* borrowed */
    uint32_t head, tail, len;
    uint32_t id; /* 1 to 255: 0 marks a node that is in no queue */
    uint64_t sectors;
};

static inline struct policy_queue policy_queue_make(struct policy_nodes nodes, uint32_t id)
{
    return (struct policy_queue){.nodes = nodes, .head = POLICY_NONE, .tail = POLICY_NONE, .id = id};
}

static inline uint32_t policy_node_queue(const struct policy_node *node)
{
    return node->state[1] & 0xff;
}

static inline uint32_t policy_node_sectors(const struct policy_node *node)
{
    return node->state[0];
}

/* Links an object that is in no queue at the warm end. Its sectors are set; its own counters start at 0. */
static inline void policy_queue_push(struct policy_queue *q, uint32_t obj)
{
    struct policy_node *node = policy_node_at(q->nodes, obj);

    node->state[1] = q->id;
    node->prev = q->tail;
    node->next = POLICY_NONE;
    if (q->tail == POLICY_NONE)
        q->head = obj;
    else
        policy_node_at(q->nodes, q->tail)->next = obj;
    q->tail = obj;
    q->len++;
    q->sectors += policy_node_sectors(node);
}

static inline void policy_queue_unlink(struct policy_queue *q, uint32_t obj)
{
    struct policy_node *node = policy_node_at(q->nodes, obj);

    assert(policy_node_queue(node) == q->id);
    if (node->prev == POLICY_NONE)
        q->head = node->next;
    else
        policy_node_at(q->nodes, node->prev)->next = node->next;
    if (node->next == POLICY_NONE)
        q->tail = node->prev;
    else
        policy_node_at(q->nodes, node->next)->prev = node->prev;
    q->len--;
    q->sectors -= policy_node_sectors(node);
    node->state[1] = 0;
}

/* An object enters the policy: its node must be in no queue. */
static inline void policy_queue_insert(struct policy_queue *q, uint32_t obj, uint32_t sectors)
{
    assert(policy_node_queue(policy_node_at(q->nodes, obj)) == 0);
    policy_node_at(q->nodes, obj)->state[0] = sectors;
    policy_queue_push(q, obj);
}

/* An object leaves the policy: its node is as before insert(). */
static inline void policy_queue_drop(struct policy_queue *q, uint32_t obj, uint32_t sectors)
{
    assert(policy_node_sectors(policy_node_at(q->nodes, obj)) == sectors);
    (void)sectors; /* used by the assertion alone */
    policy_queue_unlink(q, obj);
    *policy_node_at(q->nodes, obj) = (struct policy_node){0};
}

/* Moves an object to the warm end of a queue, this one or another. */
static inline void policy_queue_move(struct policy_queue *from, struct policy_queue *to, uint32_t obj)
{
    policy_queue_unlink(from, obj);
    policy_queue_push(to, obj);
}

/* Moves an object to the warm end of its queue; what its policy has in the other bytes of state[1] stays. */
static inline void policy_queue_warm(struct policy_queue *q, uint32_t obj)
{
    uint32_t own = policy_node_at(q->nodes, obj)->state[1] & ~UINT32_C(0xff);

    policy_queue_move(q, q, obj);
    policy_node_at(q->nodes, obj)->state[1] |= own;
}

/* The coldest object that is free, in a queue without second chances; held ones on the way are moved to the warm end. */
static inline uint32_t policy_queue_victim(struct policy_queue *q, policy_pin_fn pin, void *ctx)
{
    uint32_t left = MIN(q->len, (uint32_t)POLICY_SCAN_MAX + 1);

    for (uint32_t obj = q->head; left > 0; left--) {
        uint32_t next = policy_node_at(q->nodes, obj)->next;
        enum policy_pin state = pin(ctx, obj);

        if (state == POLICY_FREE)
            return obj;
        if (state == POLICY_HELD)
            policy_queue_warm(q, obj);
        obj = next;
    }
    return POLICY_NONE;
}

/* True if the links, the length, the sum and the names in the nodes agree. */
static inline bool policy_queue_check(const struct policy_queue *q)
{
    uint32_t prev = POLICY_NONE, len = 0;
    uint64_t sectors = 0;

    for (uint32_t obj = q->head; obj != POLICY_NONE; prev = obj, obj = policy_node_at(q->nodes, obj)->next) {
        const struct policy_node *node = policy_node_at(q->nodes, obj);

        if (len++ == q->len || node->prev != prev || policy_node_queue(node) != q->id)
            return false;
        sectors += policy_node_sectors(node);
    }
    return len == q->len && prev == q->tail && sectors == q->sectors;
}
