/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the history. One engine's thread; nothing is allocated after the start.
 *
 * A period is guessed where the last GRAM accesses come again, in this order: the distance to where they came last. (One
 * access says little: a pass there and back over weights has each object twice, never at the distance of the whole.) The
 * guess stands as long as each further access is the one that it foretells. Numbers of accesses wrap after 2^32: a guess
 * may be missed there, no more.
 */
#include "tiering/plan_learn.h"

#include <errno.h>
#include <stdlib.h>

#include "include/base/touched.h"

#define GRAM 4

int plan_learner_init(struct plan_learner *l, uint32_t n)
{
    *l = (struct plan_learner){.n = is_pow2(n) ? n : 0};
    if (l->n == 0)
        return 0;
    l->history = calloc_touched(l->n, sizeof(*l->history));
    l->last = calloc_touched(l->n, sizeof(*l->last));
    if (l->history && l->last)
        return 0;
    plan_learner_deinit(l);
    return -ENOMEM;
}

void plan_learner_deinit(struct plan_learner *l)
{
    free(l->history);
    free(l->last);
    *l = (struct plan_learner){0};
}

uint64_t plan_learner_bytes(const struct plan_learner *l)
{
    return (uint64_t)l->n * (sizeof(*l->history) + sizeof(*l->last));
}

static uint32_t at(const struct plan_learner *l, uint32_t number)
{
    return l->history[number & (l->n - 1)];
}

/* Of the accesses up to this one. */
static uint32_t gram_hash(const struct plan_learner *l, uint32_t number)
{
    uint64_t hash = 0;

    for (uint32_t i = 0; i < GRAM; i++)
        hash = (hash ^ at(l, number - i)) * UINT64_C(0x9e3779b97f4a7c15);
    return (uint32_t)(hash >> 32) & (l->n - 1);
}

static bool gram_same(const struct plan_learner *l, uint32_t a, uint32_t b)
{
    for (uint32_t i = 0; i < GRAM; i++) {
        if (at(l, a - i) != at(l, b - i))
            return false;
    }
    return true;
}

void plan_learner_see(struct plan_learner *l, uint32_t hash)
{
    if (l->n == 0)
        return;
    uint32_t number = l->seen++;

    l->history[number & (l->n - 1)] = hash;
    uint32_t *last = &l->last[gram_hash(l, number)], ago = number - *last;

    if (l->period > 0 && at(l, number - l->period) == hash) {
        l->run += l->run < UINT32_MAX;
    } else if (ago >= 1 && ago <= l->n - GRAM && number >= ago + GRAM - 1 && gram_same(l, number, number - ago)) {
        l->period = ago;
        l->run = GRAM;
    } else {
        l->period = l->run = 0;
    }
    *last = number;
}
