/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A set of numbers below a bound that finds its largest member at or below any number in a few steps: words of bits, above
 * them words that say which of those are not empty, and so on.
 */
#pragma once

#include <errno.h>
#include <stdlib.h>

#include "include/base/base.h"
#include "include/base/touched.h"

#define SLOT_SET_LEVELS 4
#define SLOT_SET_MAX (UINT32_C(1) << (6 * SLOT_SET_LEVELS))
#define SLOT_SET_NONE UINT32_MAX

struct slot_set {
    uint64_t *words[SLOT_SET_LEVELS]; /* one allocation, the first's */
    uint32_t n;                       /* the bound */
    uint32_t len;
};

static inline uint64_t slot_set_words(uint32_t n)
{
    uint64_t words = 0, bits = n;

    for (uint32_t level = 0; level < SLOT_SET_LEVELS; level++) {
        bits = bits / 64 + 1;
        words += bits;
    }
    return words;
}

/* For numbers below n, which is at most SLOT_SET_MAX. 0 or -ENOMEM. */
must_check static inline int slot_set_init(struct slot_set *s, uint32_t n)
{
    uint64_t bits = n;
    uint64_t *words = calloc_touched(slot_set_words(n), sizeof(*words));

    *s = (struct slot_set){.n = n};
    if (!words)
        return -ENOMEM;
    for (uint32_t level = 0; level < SLOT_SET_LEVELS; level++) {
        s->words[level] = words;
        bits = bits / 64 + 1;
        words += bits;
    }
    return 0;
}

static inline void slot_set_deinit(struct slot_set *s)
{
    free(s->words[0]);
    *s = (struct slot_set){0};
}

static inline bool slot_set_has(const struct slot_set *s, uint32_t i)
{
    return s->words[0][i / 64] >> (i % 64) & 1;
}

static inline void slot_set_add(struct slot_set *s, uint32_t i)
{
    s->len += !slot_set_has(s, i);
    for (uint32_t level = 0; level < SLOT_SET_LEVELS; level++, i /= 64)
        s->words[level][i / 64] |= UINT64_C(1) << (i % 64);
}

static inline void slot_set_drop(struct slot_set *s, uint32_t i)
{
    s->len -= slot_set_has(s, i);
    for (uint32_t level = 0; level < SLOT_SET_LEVELS; level++, i /= 64) {
        s->words[level][i / 64] &= ~(UINT64_C(1) << (i % 64));
        if (s->words[level][i / 64])
            return;
    }
}

/* The largest member below `end`, or SLOT_SET_NONE. */
static inline uint32_t slot_set_below(const struct slot_set *s, uint32_t end)
{
    for (uint32_t level = 0; level < SLOT_SET_LEVELS; level++, end /= 64) {
        uint64_t word = end % 64 ? s->words[level][end / 64] & ((UINT64_C(1) << (end % 64)) - 1) : 0;

        if (!word)
            continue;
        uint32_t found = end / 64 * 64 + 63 - (uint32_t)__builtin_clzll(word);

        while (level-- > 0)
            found = found * 64 + 63 - (uint32_t)__builtin_clzll(s->words[level][found]);
        return found;
    }
    return SLOT_SET_NONE;
}
