/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a row of samples says: its median, and an interval that holds the true median in 95 of 100 cases whatever the
 * samples' distribution. For a comparison the samples are the ratios of pairs that were measured one after the other.
 */
#pragma once

#include "include/base/base.h"

#define SAMPLES_MIN 6 /* of five, even the least and the largest enclose the median in 93.75 % of cases only */
#define SAMPLES_MAX 512

struct estimate {
    double median, low, high;
    uint32_t n; /* samples; 0: not measured but counted, and exact */
};

/* The interval lies between the k-th smallest and the k-th largest of n samples; 0: n is too few for one. */
uint32_t pairs_rank(uint32_t n);
/* Sorts the samples. n is from 1 to SAMPLES_MAX; below SAMPLES_MIN the interval is all that was seen. */
struct estimate pairs_estimate(double *samples, uint32_t n);
/* Whether more samples would tell little: the interval is narrower than that part of the median. */
bool pairs_is_narrow(const struct estimate *e, double part);
