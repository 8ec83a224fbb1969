/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The interval is the sign test's: each sample lies below the true median with probability 1/2, so the number of those
 * that do is binomial, and the k-th smallest and k-th largest enclose the median unless fewer than k lie on one side.
 * No assumption about how noise is distributed, none about its mean: on a shared machine it has a long tail. Pure.
 */
#include "client/bench/pairs.h"

#include <math.h>
#include <stdlib.h>

#define MISS 0.05 /* both sides together */

uint32_t pairs_rank(uint32_t n)
{
    double term = ldexp(1, -(int)n), below = 0; /* term: C(n, k) / 2^n */
    uint32_t k = 0;

    assert(n <= SAMPLES_MAX); /* so that 2^-n is a normal number */
    while (2 * (below + term) <= MISS) {
        below += term;
        term = term * (n - k) / (k + 1);
        k++;
    }
    return k;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

struct estimate pairs_estimate(double *samples, uint32_t n)
{
    uint32_t k = MAX(pairs_rank(n), 1u);

    assert(n > 0);
    qsort(samples, n, sizeof(*samples), by_size);
    return (struct estimate){
        .median = n % 2 ? samples[n / 2] : (samples[n / 2 - 1] + samples[n / 2]) / 2,
        .low = samples[k - 1],
        .high = samples[n - k],
        .n = n,
    };
}

bool pairs_is_narrow(const struct estimate *e, double part)
{
    return e->n >= SAMPLES_MIN && e->high - e->low <= part * fabs(e->median);
}
