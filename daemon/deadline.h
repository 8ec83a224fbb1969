/* SPDX-License-Identifier: Apache-2.0 */
/* A bounded heap of deadlines. Entries are members of what expires; nothing is allocated after deadlines_init(). */
#pragma once

#include "include/base/base.h"

#define DEADLINE_NEVER UINT64_MAX
#define DEADLINE_UNSET UINT32_MAX

struct deadline {
    uint64_t at_ns;
    uint32_t place; /* in the heap, or DEADLINE_UNSET */
};

struct deadlines {
    struct deadline **heap;
    uint32_t n, max;
};

must_check int deadlines_init(struct deadlines *d, uint32_t max);
void deadlines_deinit(struct deadlines *d);

/* The caller has no more than `max` of them. */
void deadline_set(struct deadlines *d, struct deadline *entry, uint64_t at_ns);
void deadline_clear(struct deadlines *d, struct deadline *entry);
/* Takes off the earliest one that has passed, or NULL. */
struct deadline *deadlines_pop(struct deadlines *d, uint64_t now_ns);
/* DEADLINE_NEVER if there is none. */
uint64_t deadlines_next_ns(const struct deadlines *d);
