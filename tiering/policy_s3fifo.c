/* SPDX-License-Identifier: Apache-2.0 */
/*
 * S3-FIFO (Yang and others, SOSP 2023), counted in sectors. A newcomer enters `small`, a tenth of the capacity; when it
 * gets to the cold end it moves on to `main_queue` if it was asked for more than once since, else it leaves and is
 * remembered as a ghost. What comes back while it is a ghost enters the main queue at once. The main queue gives second
 * chances: a counter up to 3, one less each time the object passes the cold end. Ghosts sum up to no more than the main
 * queue's share. A hit is one counter, no link moves.
 *
 * Owns the queues' heads and the ghosts. One engine's thread. Invariant: ghosts' sectors <= main_share.
 *
 * victim() moves objects between and within the queues on its way, which is how the policy works: each step uses up a
 * hit, so they are paid for, and POLICY_TURNS_MAX bounds one call. Beyond it counters are ignored.
 */
#include "tiering/policy.h"

#include <errno.h>
#include <stdlib.h>

#include "tiering/ghost.h"
#include "tiering/policy_queue.h"

#define COUNT_MAX 3
#define COUNT_PROMOTED 2 /* hits in the small queue that make an object worth keeping */
#define SMALL_DIVISOR 10

enum { GHOSTS = 0 };

struct s3fifo {
    struct policy policy;
    uint64_t small_share, main_share; /* sectors; their sum is the capacity */
    struct policy_queue small, main_queue;
    struct ghost ghosts;
};

/* What is left of one call's bounds. */
struct search {
    policy_pin_fn pin;
    void *ctx;
    uint32_t turns, small_passes, main_passes;
};

static struct s3fifo *s3fifo_of(struct policy *p)
{
    return container_of(p, struct s3fifo, policy);
}

static const struct s3fifo *s3fifo_of_const(const struct policy *p)
{
    return (const struct s3fifo *)(const void *)p; /* policy is the first member */
}

static struct policy_queue *queue_of(struct s3fifo *s3, uint32_t obj)
{
    uint32_t id = policy_node_queue(policy_node_at(s3->small.nodes, obj));

    assert(id != 0);
    return id == s3->small.id ? &s3->small : &s3->main_queue;
}

/* The counter lies above the queue's name in state[1]; a move to another place in a queue resets it. */
static uint32_t count_get(const struct policy_queue *q, uint32_t obj)
{
    return policy_node_at(q->nodes, obj)->state[1] >> 8;
}

static void count_set(const struct policy_queue *q, uint32_t obj, uint32_t count)
{
    policy_node_at(q->nodes, obj)->state[1] = q->id | count << 8;
}

static void requeue(struct policy_queue *q, uint32_t obj, uint32_t count)
{
    policy_queue_move(q, q, obj);
    count_set(q, obj, count);
}

static void s3fifo_trim(struct s3fifo *s3)
{
    while (s3->ghosts.queues[GHOSTS].sectors > s3->main_share)
        ghost_pop(&s3->ghosts, GHOSTS);
}

static void s3fifo_resize(struct policy *p, uint64_t capacity_sectors)
{
    struct s3fifo *s3 = s3fifo_of(p);

    s3->small_share = MIN(MAX(capacity_sectors / SMALL_DIVISOR, UINT64_C(1)), capacity_sectors);
    s3->main_share = capacity_sectors - s3->small_share;
    s3fifo_trim(s3);
}

static int s3fifo_new(const struct policy_config *config, struct policy **ret_policy)
{
    struct s3fifo *s3 = calloc(1, sizeof(*s3));

    if (!s3)
        return -ENOMEM;

    int r = ghost_init(&s3->ghosts, config->max_ghosts);
    if (r < 0) {
        free(s3);
        return r;
    }
    s3->policy.ops = &policy_s3fifo;
    s3->small = policy_queue_make(config->nodes, 1);
    s3->main_queue = policy_queue_make(config->nodes, 2);
    s3fifo_resize(&s3->policy, config->capacity_sectors);
    *ret_policy = &s3->policy;
    return 0;
}

static void s3fifo_free(struct policy *p)
{
    if (!p)
        return;
    ghost_deinit(&s3fifo_of(p)->ghosts);
    free(s3fifo_of(p));
}

static void s3fifo_miss(struct policy *p, uint32_t owner, uint64_t hash, uint32_t sectors)
{
    (void)p;
    (void)owner;
    (void)hash;
    (void)sectors;
}

static void s3fifo_insert(struct policy *p, uint32_t obj, uint64_t hash, uint32_t sectors)
{
    struct s3fifo *s3 = s3fifo_of(p);
    bool known = ghost_remove(&s3->ghosts, hash);

    policy_queue_insert(known ? &s3->main_queue : &s3->small, obj, sectors);
}

static void s3fifo_hit(struct policy *p, uint32_t obj)
{
    struct policy_queue *q = queue_of(s3fifo_of(p), obj);

    count_set(q, obj, MIN(count_get(q, obj) + 1, (uint32_t)COUNT_MAX));
}

/* The coldest object of the main queue that has no hit left. */
static uint32_t main_victim(struct s3fifo *s3, struct search *s)
{
    struct policy_queue *q = &s3->main_queue;
    uint32_t next;

    for (uint32_t obj = q->head; obj != POLICY_NONE; obj = next) {
        uint32_t count = count_get(q, obj);

        next = policy_node_at(q->nodes, obj)->next;
        if (count > 0 && s->turns > 0) {
            s->turns--;
            requeue(q, obj, count - 1);
            if (next == POLICY_NONE)
                next = obj; /* it was the last, and is so again */
            continue;
        }

        enum policy_pin state = s->pin(s->ctx, obj);
        if (state == POLICY_FREE)
            return obj;
        if (s->main_passes == 0)
            break;
        s->main_passes--;
        if (state == POLICY_HELD)
            requeue(q, obj, count);
    }
    return POLICY_NONE;
}

/* The coldest object of the small queue that has earned no promotion; or, if those that had overfill it, of the main. */
static uint32_t small_victim(struct s3fifo *s3, struct search *s)
{
    struct policy_queue *q = &s3->small;
    uint32_t next;

    for (uint32_t obj = q->head; obj != POLICY_NONE; obj = next) {
        uint32_t count = count_get(q, obj);

        next = policy_node_at(q->nodes, obj)->next;
        if (count >= COUNT_PROMOTED && s->turns > 0) {
            s->turns--;
            policy_queue_move(q, &s3->main_queue, obj);
            if (s3->main_queue.sectors <= s3->main_share)
                continue;
            uint32_t victim = main_victim(s3, s);
            if (victim != POLICY_NONE)
                return victim;
            continue;
        }

        enum policy_pin state = s->pin(s->ctx, obj);
        if (state == POLICY_FREE)
            return obj;
        if (s->small_passes == 0)
            break;
        s->small_passes--;
        if (state == POLICY_HELD)
            requeue(q, obj, count);
    }
    return POLICY_NONE;
}

static uint32_t s3fifo_victim(struct policy *p, uint64_t incoming, policy_pin_fn pin, void *ctx)
{
    struct s3fifo *s3 = s3fifo_of(p);
    uint32_t small_passes = MIN(s3->small.len, (uint32_t)POLICY_SCAN_MAX);
    uint32_t main_passes = MIN(s3->main_queue.len, (uint32_t)POLICY_SCAN_MAX);
    struct search s = {pin, ctx, POLICY_TURNS_MAX, small_passes, main_passes};
    uint32_t obj = POLICY_NONE;

    (void)incoming;
    if (s3->small.sectors < s3->small_share)
        obj = main_victim(s3, &s);
    if (obj == POLICY_NONE)
        obj = small_victim(s3, &s);
    if (obj == POLICY_NONE)
        obj = main_victim(s3, &s); /* what was just promoted may be all there is */
    return obj;
}

static void s3fifo_remove(struct policy *p, uint32_t obj, uint32_t sectors)
{
    policy_queue_drop(queue_of(s3fifo_of(p), obj), obj, sectors);
}

static void s3fifo_evict(struct policy *p, uint32_t obj, uint64_t hash, uint32_t sectors)
{
    struct s3fifo *s3 = s3fifo_of(p);

    if (queue_of(s3, obj) == &s3->small) {
        ghost_push(&s3->ghosts, GHOSTS, hash, sectors);
        s3fifo_trim(s3);
    }
    s3fifo_remove(p, obj, sectors);
}

static void s3fifo_remember(struct policy *p, uint64_t hash, uint32_t sectors, uint32_t hits)
{
    struct s3fifo *s3 = s3fifo_of(p);

    if (hits >= COUNT_PROMOTED)
        return; /* it would have been in the main queue */
    ghost_push(&s3->ghosts, GHOSTS, hash, sectors);
    s3fifo_trim(s3);
}

/* One walk of coldest(): the objects of a queue whose counters lie in a range. */
struct walk {
    bool small;
    uint8_t count_min, count_max;
};

#define WALKS 6

/*
 * In which order victim() would come to the objects, by where its first one is. An object that earned its promotion
 * arrives in the main queue with no hit left, and so goes before those that have some.
 */
static const struct walk walks_small[WALKS] = {
    {true, 0, 1}, {false, 0, 0}, {true, 2, 3}, {false, 1, 1}, {false, 2, 2}, {false, 3, 3},
};
static const struct walk walks_overflow[WALKS] = {
    {false, 0, 0}, {true, 2, 3}, {false, 1, 1}, {false, 2, 2}, {false, 3, 3}, {true, 0, 1},
};
static const struct walk walks_main[WALKS] = {
    {false, 0, 0}, {false, 1, 1}, {false, 2, 2}, {false, 3, 3}, {true, 0, 1}, {true, 2, 3},
};

static const struct walk *walks_of(const struct s3fifo *s3, uint64_t bound)
{
    const struct policy_queue *q = &s3->small;
    uint64_t main_sectors = s3->main_queue.sectors;

    if (q->sectors < s3->small_share)
        return walks_main;
    for (uint32_t obj = q->head; obj != POLICY_NONE && bound > 0; obj = policy_node_at(q->nodes, obj)->next, bound--) {
        if (count_get(q, obj) < COUNT_PROMOTED)
            return walks_small;
        main_sectors += policy_node_sectors(policy_node_at(q->nodes, obj));
        if (main_sectors > s3->main_share)
            break;
    }
    return walks_overflow;
}

static uint32_t s3fifo_coldest(const struct policy *p, uint32_t *ret_objs, uint32_t n, policy_pin_fn pin, void *ctx)
{
    const struct s3fifo *s3 = s3fifo_of_const(p);
    const uint64_t bound = (uint64_t)n + POLICY_SCAN_MAX;
    const struct walk *walks = walks_of(s3, bound);
    uint32_t found = 0;

    for (uint32_t i = 0; i < WALKS; i++) {
        const struct policy_queue *q = walks[i].small ? &s3->small : &s3->main_queue;
        uint64_t left = bound;

        for (uint32_t obj = q->head; obj != POLICY_NONE && found < n && left > 0;
             obj = policy_node_at(q->nodes, obj)->next, left--) {
            uint32_t count = count_get(q, obj);

            if (count >= walks[i].count_min && count <= walks[i].count_max && pin(ctx, obj) == POLICY_FREE)
                ret_objs[found++] = obj;
        }
    }
    return found;
}

static void s3fifo_stat(const struct policy *p, struct policy_stat *ret_stat)
{
    const struct s3fifo *s3 = s3fifo_of_const(p);

    *ret_stat = (struct policy_stat){
        .resident = (uint64_t)s3->small.len + s3->main_queue.len,
        .resident_sectors = s3->small.sectors + s3->main_queue.sectors,
        .ghosts = ghost_len(&s3->ghosts),
        .ghost_bytes = sizeof(*s3) + ghost_bytes(&s3->ghosts),
    };
}

static int s3fifo_check(const struct policy *p)
{
    const struct s3fifo *s3 = s3fifo_of_const(p);

    if (!policy_queue_check(&s3->small) || !policy_queue_check(&s3->main_queue) || !ghost_check(&s3->ghosts))
        return -EUCLEAN;
    return s3->ghosts.queues[GHOSTS].sectors > s3->main_share ? -EUCLEAN : 0;
}

const struct policy_ops policy_s3fifo = {
    .name = "s3-fifo",
    .new = s3fifo_new,
    .free = s3fifo_free,
    .miss = s3fifo_miss,
    .insert = s3fifo_insert,
    .hit = s3fifo_hit,
    .victim = s3fifo_victim,
    .evict = s3fifo_evict,
    .remove = s3fifo_remove,
    .remember = s3fifo_remember,
    .coldest = s3fifo_coldest,
    .resize = s3fifo_resize,
    .stat = s3fifo_stat,
    .check = s3fifo_check,
};
