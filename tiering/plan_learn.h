/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Learns whether a stream of accesses repeats itself: training touches the same objects in the same order each step. It
 * remembers the last accesses, by the lower half of each object's hash, and says with what period they repeat.
 */
#pragma once

#include "include/base/base.h"

struct plan_learner {
    uint32_t *history; /* what was accessed, by number modulo n */
    uint32_t *last;    /* by a hash of the last few accesses: when they came last; or of others, or long forgotten */
    uint32_t n;        /* a power of two; 0: nothing is learned */
    uint32_t seen;     /* accesses so far: the number of the next one */
    uint32_t period;   /* that the last accesses agree with; 0: none */
    uint32_t run;      /* how many in a row do */
};

/* Periods of up to n - 4 accesses can be learned: it takes 8 bytes for each. 0 or -ENOMEM. */
must_check int plan_learner_init(struct plan_learner *l, uint32_t n);
void plan_learner_deinit(struct plan_learner *l);
uint64_t plan_learner_bytes(const struct plan_learner *l);

void plan_learner_see(struct plan_learner *l, uint32_t hash);

/* What was accessed so many before the newest (0: the newest itself); fewer than n, and than were seen. */
static inline uint32_t plan_learner_back(const struct plan_learner *l, uint32_t back)
{
    return l->history[(l->seen - 1 - back) & (l->n - 1)];
}

/* The last two periods were equal. */
static inline bool plan_learner_is_sure(const struct plan_learner *l)
{
    return l->period > 0 && l->run >= l->period;
}
