/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How likely blocks of one class are to be used again, by the time since their last use, learned as it happens; and from
 * that what each is worth keeping. Time is a count of requests, in bins two an octave wide.
 */
#pragma once

#include "include/base/base.h"

#define HAZARD_CLASSES 40
#define HAZARD_LONG 17 /* from here on: of long conversations, which do not go on for ever */
#define HAZARD_HOT 24  /* from here on classes are gaps: class HAZARD_HOT + k is used about every 2^k requests */
#define HAZARD_BINS 34
#define HAZARD_PERIOD 32 /* requests between two looks at one class */

struct hazard_class {
    float used[HAZARD_BINS];    /* weight of what was used again at this age */
    float reached[HAZARD_BINS]; /* weight of what was seen at this age */
    float waiting[HAZARD_BINS]; /* weight of what is at this age now */
    float index[HAZARD_BINS];   /* uses to be expected per request that it is kept, at the best time to stop */
    float ever;                 /* chance of any use */
};

struct hazard {
    struct hazard_class classes[HAZARD_CLASSES];
    float mean[HAZARD_BINS];  /* chance of being used in this bin, of all that is neither long nor hot */
    float width[HAZARD_BINS]; /* in requests */
    float moves[HAZARD_BINS]; /* share that leaves it in HAZARD_PERIOD requests */
    float poisson[HAZARD_CLASSES - HAZARD_HOT][HAZARD_BINS];
};

void hazard_init(struct hazard *h);
/* A block of this class was used: its age is 0 now. */
void hazard_enter(struct hazard *h, uint32_t class, float weight);
/* It is used again, or no longer of this class, at this age. */
void hazard_use(struct hazard *h, uint32_t class, uint32_t age, float weight);
void hazard_leave(struct hazard *h, uint32_t class, uint32_t age, float weight);
/* Once a request: a bounded share of the work, so that every class has its turn within HAZARD_PERIOD. */
void hazard_tick(struct hazard *h, uint32_t clock);

/* ages 0 and 1 share bin 0; the last bin has no end. */
static inline uint32_t hazard_bin(uint32_t age)
{
    uint32_t octave = age > 1 ? 31 - (uint32_t)__builtin_clz(age) : 0;
    uint32_t bin = 2 * octave + (octave > 0 && (age >> (octave - 1) & 1));

    return MIN(bin, (uint32_t)HAZARD_BINS - 1);
}

static inline float hazard_ever(const struct hazard *h, uint32_t class)
{
    return h->classes[class].ever;
}

static inline float hazard_index(const struct hazard *h, uint32_t class, uint32_t age)
{
    return h->classes[class].index[hazard_bin(age)];
}
