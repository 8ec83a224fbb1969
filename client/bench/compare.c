/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the order of samples and the decision to stop. One pair of each is taken before counting, to warm up. The end
 * depends on how narrow the intervals are and on the time, never on whether a goal is met: to go on until it is would be
 * to choose. One thread.
 */
#include "client/bench/compare.h"

#include <errno.h>
#include <string.h>

#include "client/bench/live.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define NARROW 0.01
#define PAIRS_MAX 256

struct samples {
    uint32_t n;
    double ours[METRICS_MAX][PAIRS_MAX], theirs[METRICS_MAX][PAIRS_MAX], scratch[PAIRS_MAX];
};

static int pair_take(const struct contest *c, bool ours_first, double ours[static METRICS_MAX],
                     double theirs[static METRICS_MAX])
{
    int r = 0;

    if (ours_first)
        r = c->ours(c->ctx, ours);
    if (r == 0 && c->neighbour)
        r = c->theirs(c->ctx, theirs);
    if (r == 0 && !ours_first)
        r = c->ours(c->ctx, ours);
    return r;
}

static struct estimate estimate_of(struct samples *s, const double *values)
{
    memcpy(s->scratch, values, s->n * sizeof(*values));
    return pairs_estimate(s->scratch, s->n);
}

static struct estimate estimate_ratio(struct samples *s, unsigned metric)
{
    for (uint32_t i = 0; i < s->n; i++)
        s->scratch[i] = s->ours[metric][i] / s->theirs[metric][i];
    return pairs_estimate(s->scratch, s->n);
}

static struct estimate estimate_goal(const struct contest *c, struct samples *s, unsigned metric)
{
    return c->neighbour && !c->metrics[metric].goal_of_value ? estimate_ratio(s, metric)
                                                             : estimate_of(s, s->ours[metric]);
}

static bool is_enough(const struct contest *c, struct samples *s, double seconds)
{
    if (s->n < SAMPLES_MIN)
        return false;
    if (s->n == PAIRS_MAX || seconds >= c->seconds)
        return true;
    for (unsigned m = 0; m < c->n_metrics; m++) {
        struct estimate e = estimate_goal(c, s, m);
        if (c->metrics[m].goal_kind != GOAL_NONE && !pairs_is_narrow(&e, NARROW))
            return false;
    }
    return s->n >= 2 * (uint32_t)SAMPLES_MIN;
}

static void figures_make(const struct contest *c, struct samples *s, struct figures *figures)
{
    for (unsigned m = 0; m < c->n_metrics; m++) {
        const struct metric *metric = &c->metrics[m];
        struct estimate goal = estimate_goal(c, s, m);
        struct figure *f = figure_add(figures, metric->unit, estimate_of(s, s->ours[m]).median, "%s", metric->name);

        if (c->neighbour) {
            figure_beside(f, c->neighbour, estimate_of(s, s->theirs[m]).median);
            f->ratio = estimate_ratio(s, m).median;
        }
        if (c->neighbour && !metric->goal_of_value)
            figure_goal_ratio(f, metric->goal_kind, metric->goal);
        else
            figure_goal(f, metric->goal_kind, metric->goal);
        f->estimate = goal;
    }
}

int contest_run(const struct contest *c, struct figures *figures)
{
    cleanup_free struct samples *s = calloc(1, sizeof(*s));
    double ours[METRICS_MAX] = {0}, theirs[METRICS_MAX] = {0};
    struct live live;

    if (!s)
        return -ENOMEM;
    live_init(&live, c->quiet);
    int r = pair_take(c, true, ours, theirs);
    uint64_t start_ns = now_ns();
    while (r == 0 && !is_enough(c, s, seconds_since(start_ns))) {
        if (live_interrupted()) {
            r = -EINTR;
            break;
        }
        r = pair_take(c, s->n % 2 == 0, ours, theirs);
        for (unsigned m = 0; r == 0 && m < c->n_metrics; m++) {
            s->ours[m][s->n] = ours[m];
            s->theirs[m][s->n] = theirs[m];
        }
        s->n++;
        if (live_due(&live))
            live_print(&live, "  %s: %u pairs, %.0f s", c->metrics[0].name, s->n, seconds_since(start_ns));
    }
    live_end(&live);
    if (r == 0)
        figures_make(c, s, figures);
    return r;
}
