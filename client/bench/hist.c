/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Values below 32 have a bucket each. Above, an octave has 32 buckets: the position of the highest bit names the octave,
 * the five bits below it the bucket. A quantile is the middle of its bucket, and never above the largest value seen.
 */
#include "client/bench/hist.h"

#define SUB (UINT64_C(1) << HIST_SUB_BITS)

static unsigned bucket_of(uint64_t value)
{
    if (value < SUB)
        return (unsigned)value;
    unsigned shift = 63 - HIST_SUB_BITS - (unsigned)__builtin_clzll(value);
    return (unsigned)(((shift + 1) << HIST_SUB_BITS) + ((value >> shift) & (SUB - 1)));
}

static uint64_t bucket_middle(unsigned bucket)
{
    if (bucket < SUB)
        return bucket;
    unsigned shift = (bucket >> HIST_SUB_BITS) - 1;
    return ((SUB + (bucket & (SUB - 1))) << shift) + ((UINT64_C(1) << shift) >> 1);
}

void hist_add(struct hist *h, uint64_t value)
{
    h->counts[bucket_of(value)]++;
    h->n++;
    h->sum += value;
    h->max = MAX(h->max, value);
}

void hist_merge(struct hist *into, const struct hist *from)
{
    for (unsigned i = 0; i < HIST_BUCKETS; i++)
        into->counts[i] += from->counts[i];
    into->n += from->n;
    into->sum += from->sum;
    into->max = MAX(into->max, from->max);
}

uint64_t hist_quantile(const struct hist *h, unsigned per_mille)
{
    uint64_t wanted = (uint64_t)(((unsigned __int128)h->n * per_mille + 999) / 1000), seen = 0;

    if (h->n == 0)
        return 0;
    if (per_mille >= 1000)
        return h->max;
    for (unsigned i = 0; i < HIST_BUCKETS; i++) {
        seen += h->counts[i];
        if (seen >= wanted && seen > 0)
            return MIN(bucket_middle(i), h->max);
    }
    return h->max;
}

uint64_t hist_mean(const struct hist *h)
{
    return h->n ? h->sum / h->n : 0;
}
