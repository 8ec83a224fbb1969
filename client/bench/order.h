/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an order of accesses that comes again and again is worth to a cache in which whatever is asked for must have a place,
 * as a lease needs one: offline, from empty. Pure; one thread.
 */
#pragma once

#include "include/base/base.h"

#define ORDER_OBJECTS_MAX 1024

struct order {
    const uint32_t *at; /* objects, in 0 to ORDER_OBJECTS_MAX - 1 */
    uint32_t n;         /* accesses of a round */
};

enum order_policy { ORDER_OPTIMUM, ORDER_LRU };

/* Hits with so many places (1 at least) in n_rounds rounds, after n_before. */
uint64_t order_hits(const struct order *order, enum order_policy policy, uint32_t places, uint32_t n_before,
                    uint32_t n_rounds);
