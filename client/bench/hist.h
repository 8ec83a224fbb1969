/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Histogram of durations (or any u64) with a relative error of at most 1/64: logarithmic buckets, 32 to an octave.
 * Fixed size, no allocation, adding is a few instructions. One thread writes; merging is addition.
 */
#pragma once

#include "include/base/base.h"

#define HIST_SUB_BITS 5
#define HIST_BUCKETS ((64 - HIST_SUB_BITS + 1) << HIST_SUB_BITS)

struct hist {
    uint64_t n, sum, max;
    uint64_t counts[HIST_BUCKETS];
};

void hist_add(struct hist *h, uint64_t value);
void hist_merge(struct hist *into, const struct hist *from);
/* The value below which per_mille thousandths of all lie; 0 if there is none. per_mille 1000 is the maximum. */
uint64_t hist_quantile(const struct hist *h, unsigned per_mille);
uint64_t hist_mean(const struct hist *h);
