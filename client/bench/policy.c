/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the eviction policies are worth: hits, insertions and cost a reference, on a trace, or on generated chats from
 * several seeds, with memory for a part of the distinct blocks. Hits and insertions are counted, and the same in every run;
 * cost is the CPU time of whole replays, the simulator's own part included, the policies taking turns. One thread.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "client/bench/bench.h"
#include "client/bench/cpus.h"
#include "client/bench/generator.h"
#include "client/bench/live.h"
#include "client/bench/micro.h"
#include "client/bench/policy_sim.h"
#include "client/bench/published.h"
#include "include/base/cleanup.h"

#define POLICIES_MAX 8
#define SEEDS 3
#define SAMPLES 7
#define BLOCKS 100000 /* distinct ones of generated traffic */
#define BLOCKS_QUICK 20000
#define GOAL_NS 500.0           /* a reference */
#define PUBLISHED_TOLERANCE 0.3 /* points */
#define ADAPTIVE_TOLERANCE 0.5

static const struct argp_option rows[] = {ROW_TRACE, ROW_SEED, ROW_QUIET, ROW_QUICK, ROW_OUTPUT, {0}};
static const char doc[] = "Simulates the eviction policies, on a trace or on generated chats.";

static const double capacities[] = {0.5, 2, 5, 10, 30}; /* percent of the distinct blocks */
static const double capacities_quick[] = {2, 10};

DEFINE_CLEANUP(struct policy_sim *, policy_sim_free)

struct policy_runs {
    const char *name;
    double hit_percent, insertions; /* a reference */
    double cost_ns[SAMPLES];
};

/* One trace at one capacity. */
struct round {
    const struct trace *trace;
    const char *traffic; /* in figures' names */
    double capacity_percent;
    double optimum_percent;
    struct policy_runs policies[POLICIES_MAX];
    uint32_t n_policies;
};

/* ── replays ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static double percent_of(const struct trace *t, uint64_t n)
{
    return 100.0 * (double)n / (double)t->n_ids;
}

static int replay_once(struct round *rd, struct policy_sim *sim, uint32_t capacity, uint32_t policy, uint32_t sample)
{
    struct policy_runs *p = &rd->policies[policy];
    struct policy_sim_result result;
    int r = policy_sim_run(sim, p->name, capacity, &result);

    if (r < 0) {
        fprintf(stderr, "spillbench: %s: %s\n", p->name, strerror(-r));
        return r;
    }
    p->hit_percent = percent_of(rd->trace, result.hits);
    p->insertions = (double)result.kept / (double)rd->trace->n_ids;
    p->cost_ns[sample] = (double)result.cpu_ns / (double)rd->trace->n_ids;
    return 0;
}

static int round_run(struct round *rd, struct policy_sim *sim, struct live *live)
{
    uint32_t capacity = (uint32_t)((double)rd->trace->n_distinct * rd->capacity_percent / 100);
    uint64_t optimum;

    capacity = MAX(capacity, 1u);
    for (const char *const *name = policy_sim_names(); *name; name++) {
        assert(rd->n_policies < POLICIES_MAX);
        rd->policies[rd->n_policies++].name = *name;
    }
    int r = policy_sim_optimum(sim, capacity, &optimum);
    if (r < 0)
        return r;
    rd->optimum_percent = percent_of(rd->trace, optimum);
    for (uint32_t sample = 0; r == 0 && sample < SAMPLES; sample++) {
        for (uint32_t i = 0; r == 0 && i < rd->n_policies; i++)
            r = live_interrupted() ? -EINTR : replay_once(rd, sim, capacity, i, sample);
        if (live_due(live))
            live_print(live, "  %s, memory for %g %%: replay %u of %d", rd->traffic, rd->capacity_percent, sample + 1,
                       SAMPLES);
    }
    return r;
}

/* ── figures ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static double hit_percent_of(const struct round *rd, const char *name)
{
    for (uint32_t i = 0; i < rd->n_policies; i++)
        if (strcmp(rd->policies[i].name, name) == 0)
            return rd->policies[i].hit_percent;
    return NAN;
}

/* What a policy's hits stand beside, and what is promised of them. */
static void hits_compare(const struct round *rd, const char *name, struct figure *f)
{
    double lru = hit_percent_of(rd, "lru"), s3fifo = hit_percent_of(rd, "s3-fifo"), arc = hit_percent_of(rd, "arc");
    double best = fmax(lru, fmax(s3fifo, arc)), known = published_percent(rd->trace, rd->capacity_percent, name);

    if (strcmp(name, "adaptive") == 0) {
        figure_beside(f, "the best of lru, s3-fifo, arc", best);
        figure_goal(f, GOAL_AT_LEAST, best - ADAPTIVE_TOLERANCE);
    } else if (strcmp(name, "chain") != 0) {
        figure_beside(f, "the optimum", rd->optimum_percent);
    } else if (!isnan(known)) {
        figure_beside(f, "published, single tier", known);
        figure_goal(f, GOAL_AT_LEAST, known - PUBLISHED_TOLERANCE);
    } else {
        figure_beside(f, "lru", lru);
        figure_goal(f, GOAL_AT_LEAST, lru);
    }
}

static void round_report(struct round *rd, struct figures *figures)
{
    double known = published_percent(rd->trace, rd->capacity_percent, "optimum");
    struct figure *f =
        figure_add(figures, "%", rd->optimum_percent, "hits, optimum, %g %%, %s", rd->capacity_percent, rd->traffic);

    if (!isnan(known))
        figure_beside(f, "published, single tier", known);
    for (uint32_t i = 0; i < rd->n_policies; i++) {
        struct policy_runs *p = &rd->policies[i];
        struct estimate cost = pairs_estimate(p->cost_ns, SAMPLES);

        f = figure_add(figures, "%", p->hit_percent, "hits, %s, %g %%, %s", p->name, rd->capacity_percent, rd->traffic);
        hits_compare(rd, p->name, f);
        (void)figure_add(figures, "/ref", p->insertions, "insertions, %s, %g %%, %s", p->name, rd->capacity_percent,
                         rd->traffic);
        f = figure_add(figures, "ns/ref", cost.median, "cost, %s, %g %%, %s", p->name, rd->capacity_percent,
                       rd->traffic);
        figure_goal(f, GOAL_AT_MOST, GOAL_NS);
        figure_measured(f, &cost);
    }
}

/* ── traces ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

static int measure(const struct options *o, const struct trace *t, const char *traffic, struct figures *figures)
{
    const double *shares = o->quick ? capacities_quick : capacities;
    size_t n_shares = o->quick ? ARRAY_LEN(capacities_quick) : ARRAY_LEN(capacities);
    cleanup_(policy_sim_freep) struct policy_sim *sim = NULL;
    struct live live;
    int r = policy_sim_new(t, &sim);

    live_init(&live, o->quiet);
    for (size_t i = 0; r == 0 && i < n_shares; i++) {
        struct round rd = {.trace = t, .traffic = traffic, .capacity_percent = shares[i]};

        r = round_run(&rd, sim, &live);
        if (r == 0)
            round_report(&rd, figures);
    }
    live_end(&live);
    return r;
}

static int measure_file(const struct options *o, struct figures *figures)
{
    cleanup_(trace_deinit) struct trace t = {0};
    uint64_t bad_line = 0;
    int r = trace_load(o->trace_path, &t, &bad_line);

    if (r < 0 && bad_line)
        fprintf(stderr, "spillbench: %s:%llu: not a request\n", o->trace_path, (unsigned long long)bad_line);
    else if (r < 0)
        fprintf(stderr, "spillbench: %s: %s\n", o->trace_path, strerror(-r));
    if (r < 0)
        return -EIO; /* it could not be run, whatever is wrong with the file */
    return measure(o, &t, "trace", figures);
}

static int measure_generated(const struct options *o, uint64_t seed, struct figures *figures)
{
    struct generator_options go = {.seed = seed, .n_distinct = o->quick ? BLOCKS_QUICK : BLOCKS};
    cleanup_(trace_deinit) struct trace t = {0};
    char traffic[48];
    int r = generator_run(&go, &t);

    if (r < 0)
        return r;
    snprintf(traffic, sizeof(traffic), "chats, seed %llu", (unsigned long long)seed);
    return measure(o, &t, traffic, figures);
}

int bench_policy(int argc, char **argv)
{
    static struct figures figures;
    struct options o = {.seed = 1};
    int r = 0;

    options_parse(argc, argv, rows, doc, &o);
    cpus_pin(cpus_nth(0));
    if (o.trace_path)
        r = measure_file(&o, &figures);
    for (uint64_t i = 0; r == 0 && !o.trace_path && i < (o.quick ? 1 : SEEDS); i++)
        r = measure_generated(&o, o.seed + i, &figures);
    return micro_end(&o, &figures, r);
}
