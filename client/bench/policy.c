/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the eviction policies are worth: hits, insertions and cost a reference, on a trace and on generated traffic of
 * several shapes, with memory for a part of the distinct blocks. Hits and insertions are counted, and the same in every
 * run; cost is the CPU time of whole replays, the simulator's own part included, the policies taking turns. One thread.
 *
 * Whether the chain policy is better than LRU on traffic that nobody tuned it on is a matter of the seed where nearly all
 * that is asked for twice fits into memory. So it is asked over many seeds, each replayed by both: the differences' median
 * lies in an interval (that of the sign test, as everywhere), and the goal is for its worse end.
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
#define SEEDS 20
#define SEEDS_QUICK 6
#define REPLAYS 7     /* of a trace */
#define SAMPLES SEEDS /* the larger one */
#define BLOCKS 100000 /* distinct ones of generated traffic */
#define BLOCKS_QUICK 20000
#define GOAL_NS 500.0           /* a reference */
#define PUBLISHED_TOLERANCE 0.3 /* points */
#define ADAPTIVE_TOLERANCE 0.5
#define LRU_TOLERANCE 0.1 /* a tie */

static const struct argp_option rows[] = {ROW_TRACE, ROW_SEED, ROW_QUIET, ROW_QUICK, ROW_OUTPUT, {0}};
static const char doc[] = "Simulates the eviction policies, on a trace and on generated traffic.";

static const double capacities[] = {0.5, 2, 5, 10, 30}; /* percent of the distinct blocks */
static const double capacities_quick[] = {2, 10};

DEFINE_CLEANUP(struct policy_sim *, policy_sim_free)

struct policy_runs {
    const char *name;
    double hit_percent[SAMPLES], insertions[SAMPLES], cost_ns[SAMPLES]; /* the latter two: a reference */
};

/* One capacity. A sample is a replay of the trace, or of what one seed makes. */
struct round {
    double capacity_percent;
    uint32_t n_samples, n_policies;
    double optimum_percent[SAMPLES];
    struct policy_runs policies[POLICIES_MAX];
};

#define ROUNDS_MAX 5

struct traffic {
    const char *name;          /* in figures' names */
    const struct trace *trace; /* that of the latest sample */
    bool is_generated;
    bool adaptive_has_goal; /* it learns for longer than the other shapes last */
    struct round rounds[ROUNDS_MAX];
    uint32_t n_rounds;
    struct live live;
};

/* ── replays ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static double percent_of(const struct trace *t, uint64_t n)
{
    return 100.0 * (double)n / (double)t->n_ids;
}

static void traffic_init(const struct options *o, const char *name, struct traffic *t)
{
    const double *shares = o->quick ? capacities_quick : capacities;

    *t = (struct traffic){.name = name};
    t->n_rounds = o->quick ? ARRAY_LEN(capacities_quick) : ARRAY_LEN(capacities);
    for (uint32_t i = 0; i < t->n_rounds; i++) {
        struct round *rd = &t->rounds[i];

        rd->capacity_percent = shares[i];
        for (const char *const *policy = policy_sim_names(); *policy; policy++) {
            assert(rd->n_policies < POLICIES_MAX);
            rd->policies[rd->n_policies++].name = *policy;
        }
    }
    live_init(&t->live, o->quiet);
}

static int replay_once(struct policy_runs *p, uint32_t sample, const struct trace *trace, struct policy_sim *sim,
                       uint32_t capacity)
{
    struct policy_sim_result result;
    int r = policy_sim_run(sim, p->name, capacity, &result);

    if (r < 0) {
        fprintf(stderr, "spillbench: %s: %s\n", p->name, strerror(-r));
        return r;
    }
    p->hit_percent[sample] = percent_of(trace, result.hits);
    p->insertions[sample] = (double)result.kept / (double)trace->n_ids;
    p->cost_ns[sample] = (double)result.cpu_ns / (double)trace->n_ids;
    return 0;
}

static int round_sample(struct round *rd, const struct trace *trace, struct policy_sim *sim)
{
    uint32_t capacity = MAX((uint32_t)((double)trace->n_distinct * rd->capacity_percent / 100), 1u);
    uint32_t sample = rd->n_samples;
    uint64_t optimum;

    assert(sample < SAMPLES);
    int r = policy_sim_optimum(sim, capacity, &optimum);
    if (r < 0)
        return r;
    rd->optimum_percent[sample] = percent_of(trace, optimum);
    for (uint32_t i = 0; r == 0 && i < rd->n_policies; i++)
        r = live_interrupted() ? -EINTR : replay_once(&rd->policies[i], sample, trace, sim, capacity);
    rd->n_samples++;
    return r;
}

/* One more sample of each capacity. */
static int traffic_sample(struct traffic *t, const struct trace *trace, struct policy_sim *sim)
{
    int r = 0;

    t->trace = trace;
    for (uint32_t i = 0; r == 0 && i < t->n_rounds; i++) {
        r = round_sample(&t->rounds[i], trace, sim);
        if (live_due(&t->live))
            live_print(&t->live, "  %s, memory for %g %%: replay %u", t->name, t->rounds[i].capacity_percent,
                       t->rounds[i].n_samples);
    }
    return r;
}

/* ── figures ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static double mean(const double *values, uint32_t n)
{
    double sum = 0;

    for (uint32_t i = 0; i < n; i++)
        sum += values[i];
    return sum / n;
}

static const struct policy_runs *runs_of(const struct round *rd, const char *name)
{
    for (uint32_t i = 0; i < rd->n_policies; i++)
        if (strcmp(rd->policies[i].name, name) == 0)
            return &rd->policies[i];
    assert(!"the daemon has these policies");
    return NULL;
}

static double hits_of(const struct round *rd, const char *name)
{
    return mean(runs_of(rd, name)->hit_percent, rd->n_samples);
}

/* What a policy's hits stand beside, and what is promised of them. */
static void hits_compare(const struct traffic *t, const struct round *rd, const char *name, struct figure *f)
{
    double lru = hits_of(rd, "lru"), best = fmax(lru, fmax(hits_of(rd, "s3-fifo"), hits_of(rd, "arc")));
    double known = t->is_generated ? NAN : published_percent(t->trace, rd->capacity_percent, name);

    if (strcmp(name, "adaptive") == 0) {
        figure_beside(f, "the best of lru, s3-fifo, arc", best);
        if (t->adaptive_has_goal)
            figure_goal(f, GOAL_AT_LEAST, best - ADAPTIVE_TOLERANCE);
    } else if (strcmp(name, "chain") != 0) {
        figure_beside(f, "the optimum", mean(rd->optimum_percent, rd->n_samples));
    } else if (!isnan(known)) {
        figure_beside(f, "published, single tier", known);
        figure_goal(f, GOAL_AT_LEAST, known - PUBLISHED_TOLERANCE);
    } else {
        figure_beside(f, "lru", lru);
        if (!t->is_generated)
            figure_goal(f, GOAL_AT_LEAST, lru - LRU_TOLERANCE);
    }
}

/* Seed by seed. Counted, so not "noisy": the worse end holds, or it does not. */
static void chain_compare(const struct traffic *t, const struct round *rd, struct figures *figures)
{
    const struct policy_runs *chain = runs_of(rd, "chain"), *lru = runs_of(rd, "lru");
    double gains[SAMPLES];

    for (uint32_t i = 0; i < rd->n_samples; i++)
        gains[i] = chain->hit_percent[i] - lru->hit_percent[i];
    struct estimate e = pairs_estimate(gains, rd->n_samples);
    (void)figure_add(figures, "points", e.median, "chain less lru, median, %g %%, %s", rd->capacity_percent, t->name);
    struct figure *f =
        figure_add(figures, "points", e.low, "chain less lru, worse end, %g %%, %s", rd->capacity_percent, t->name);
    figure_goal(f, GOAL_AT_LEAST, -LRU_TOLERANCE);
}

static void round_report(const struct traffic *t, struct round *rd, struct figures *figures)
{
    double known = t->is_generated ? NAN : published_percent(t->trace, rd->capacity_percent, "optimum");
    struct figure *f = figure_add(figures, "%", mean(rd->optimum_percent, rd->n_samples), "hits, optimum, %g %%, %s",
                                  rd->capacity_percent, t->name);

    if (!isnan(known))
        figure_beside(f, "published, single tier", known);
    for (uint32_t i = 0; i < rd->n_policies; i++) {
        struct policy_runs *p = &rd->policies[i];
        double share = rd->capacity_percent;

        f = figure_add(figures, "%", hits_of(rd, p->name), "hits, %s, %g %%, %s", p->name, share, t->name);
        hits_compare(t, rd, p->name, f);
        (void)figure_add(figures, "/ref", mean(p->insertions, rd->n_samples), "insertions, %s, %g %%, %s", p->name,
                         share, t->name);
        struct estimate cost = pairs_estimate(p->cost_ns, rd->n_samples);
        f = figure_add(figures, "ns/ref", cost.median, "cost, %s, %g %%, %s", p->name, share, t->name);
        figure_goal(f, GOAL_AT_MOST, GOAL_NS);
        figure_measured(f, &cost);
    }
    if (t->is_generated)
        chain_compare(t, rd, figures);
}

static void traffic_report(struct traffic *t, struct figures *figures)
{
    for (uint32_t i = 0; i < t->n_rounds; i++)
        round_report(t, &t->rounds[i], figures);
}

/* ── traces ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

static int measure_file(const struct options *o, struct traffic *t, struct figures *figures)
{
    cleanup_(policy_sim_freep) struct policy_sim *sim = NULL;
    cleanup_(trace_deinit) struct trace trace = {0};
    uint64_t bad_line = 0;
    int r = trace_load(o->trace_path, &trace, &bad_line);

    if (r < 0 && bad_line)
        fprintf(stderr, "spillbench: %s:%llu: not a request\n", o->trace_path, (unsigned long long)bad_line);
    else if (r < 0)
        fprintf(stderr, "spillbench: %s: %s\n", o->trace_path, strerror(-r));
    if (r < 0)
        return -EIO; /* it could not be run, whatever is wrong with the file */
    traffic_init(o, "trace", t);
    t->adaptive_has_goal = true;
    r = policy_sim_new(&trace, &sim);
    for (uint32_t i = 0; r == 0 && i < REPLAYS; i++)
        r = traffic_sample(t, &trace, sim);
    live_end(&t->live);
    if (r == 0)
        traffic_report(t, figures);
    return r;
}

static int sample_seed(const struct generator_options *options, struct traffic *t)
{
    cleanup_(policy_sim_freep) struct policy_sim *sim = NULL;
    cleanup_(trace_deinit) struct trace trace = {0};
    int r = generator_run(options, &trace);

    if (r == 0)
        r = policy_sim_new(&trace, &sim);
    if (r == 0)
        r = traffic_sample(t, &trace, sim);
    t->trace = NULL;
    return r;
}

static int measure_shape(const struct options *o, enum generator_shape shape, struct traffic *t,
                         struct figures *figures)
{
    struct generator_options go = {.shape = shape, .n_distinct = o->quick ? BLOCKS_QUICK : BLOCKS};
    int r = 0;

    traffic_init(o, generator_shape_name(shape), t);
    t->is_generated = true;
    t->adaptive_has_goal = shape == GENERATOR_CHATS;
    for (uint32_t i = 0; r == 0 && i < (o->quick ? SEEDS_QUICK : SEEDS); i++) {
        go.seed = o->seed + i;
        r = sample_seed(&go, t);
    }
    live_end(&t->live);
    if (r == 0)
        traffic_report(t, figures);
    return r;
}

int bench_policy(int argc, char **argv)
{
    static struct figures figures;
    static struct traffic traffic;
    struct options o = {.seed = 1};
    int r = 0;

    options_parse(argc, argv, rows, doc, &o);
    cpus_pin(cpus_nth(0));
    if (o.trace_path)
        r = measure_file(&o, &traffic, &figures);
    for (enum generator_shape shape = 0; r == 0 && shape < GENERATOR_SHAPES; shape++)
        r = measure_shape(&o, shape, &traffic, &figures);
    return micro_end(&o, &figures, r);
}
