/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Both policies are one: who goes is whose number is the largest. To LRU that is for how long nobody has asked for it, to the
 * optimum (Belady, 1966) when it is asked for next, which is looked up in the order.
 */
#include "client/bench/order.h"

struct places {
    uint32_t n;
    bool has[ORDER_OBJECTS_MAX];
    int64_t number[ORDER_OBJECTS_MAX];
};

/* When the object of access `now` is asked for next; time goes on from round to round. */
static int64_t next_use(const struct order *o, uint64_t now)
{
    uint32_t object = o->at[now % o->n];
    uint64_t next = now + 1;

    while (o->at[next % o->n] != object)
        next++;
    return (int64_t)next;
}

static void largest_drop(struct places *p)
{
    uint32_t largest = ORDER_OBJECTS_MAX;

    for (uint32_t i = 0; i < ORDER_OBJECTS_MAX; i++)
        if (p->has[i] && (largest == ORDER_OBJECTS_MAX || p->number[i] > p->number[largest]))
            largest = i;
    assert(largest < ORDER_OBJECTS_MAX);
    p->has[largest] = false;
    p->n--;
}

uint64_t order_hits(const struct order *o, enum order_policy policy, uint32_t places, uint32_t n_before,
                    uint32_t n_rounds)
{
    uint64_t first = (uint64_t)n_before * o->n, end = first + (uint64_t)n_rounds * o->n, hits = 0;
    struct places p = {0};

    for (uint64_t now = 0; now < end; now++) {
        uint32_t object = o->at[now % o->n];

        hits += p.has[object] && now >= first;
        if (!p.has[object] && p.n == places)
            largest_drop(&p);
        p.n += !p.has[object];
        p.has[object] = true;
        p.number[object] = policy == ORDER_LRU ? -(int64_t)now : next_use(o, now);
    }
    return hits;
}
