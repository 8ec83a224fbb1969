/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A contest between us and a ceiling: pairs of samples, one of each, taken in turns and in alternating order, so that
 * what the machine does meanwhile happens to both.
 */
#pragma once

#include "client/bench/figure.h"

#define METRICS_MAX 6

struct metric {
    char name[FIGURE_NAME_BYTES];
    const char *unit; /* static */
    enum figure_goal goal_kind;
    bool goal_of_value; /* the goal is for the value, not for the ratio */
    double goal;
};

/* One sample of every metric, in the figure's units; 0 or a negative errno after it has said what failed. */
typedef int (*sample_fn)(void *ctx, double ret_values[static METRICS_MAX]);

struct contest {
    struct metric metrics[METRICS_MAX];
    uint32_t n_metrics;
    const char *neighbour; /* static; NULL: we stand alone */
    sample_fn ours, theirs;
    void *ctx;
    double seconds; /* the longest, once there are SAMPLES_MIN pairs */
    bool quiet;
};

/* The contest's figures are appended. */
must_check int contest_run(const struct contest *contest, struct figures *figures);
