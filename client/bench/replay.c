/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole trace, every reference counted: a hit in DRAM moved no byte, a hit on NVMe did, a miss was computed. DRAM alone
 * is then a cache of its own, whose hit rate can be set beside what is published for single-tier caches. Also whether the
 * daemon's memory grows. One thread.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sysexits.h>

#include "client/bench/bench.h"
#include "client/bench/harness.h"
#include "client/bench/options.h"
#include "client/bench/published.h"
#include "client/bench/report.h"
#include "include/base/cleanup.h"
#include "include/base/limits.h"
#include "include/base/units.h"

#define OBJECT_GROWTH_BYTES 512 /* of the daemon's memory for each object more: record, index, tables, ghosts */
#define SLACK_BYTES (8 * MIB)

static const struct argp_option rows[] = {ROW_TRACE,  ROW_BLOCK, ROW_DRAM,      ROW_DRAM_PERCENT, ROW_DEVICE,
                                          ROW_POLICY, ROW_LIST,  ROW_NO_LOOKUP, ROW_PRIVATE,      ROW_SOCKET,
                                          ROW_POOL,   ROW_KEEP,  ROW_SECONDS,   ROW_SEED,         ROW_QUIET,
                                          ROW_OUTPUT, {0}};
static const char doc[] = "Replays a trace, against the running daemon or, with --private, one of its own.";

static void growth_figure(const struct run *run, struct figures *figures)
{
    double before = (double)run->quarters[1].anonymous_bytes, after = (double)run->quarters[3].anonymous_bytes;
    double n_objects = run->after.objects - run->before.objects;

    if (before == 0 || after == 0)
        return;
    struct figure *f =
        figure_add(figures, "MiB", (after - before) / (double)MIB, "growth beside the pools, 50 to 100 %%");
    if (!isnan(n_objects))
        figure_goal(f, GOAL_AT_MOST, (n_objects / 2 * OBJECT_GROWTH_BYTES + (double)SLACK_BYTES) / (double)MIB);
}

static int print_results(const struct options *o, const struct run *run, const struct trace *t)
{
    const struct engine_stats *s = run->engine.stats;
    struct figures figures = {0};
    double known = published_percent(t, o->dram_percent, o->policy);
    double percent = s->blocks ? 100.0 * (double)s->hits_dram / (double)s->blocks : 0;

    report_figures(run, &figures);
    growth_figure(run, &figures);
    if (!isnan(known) && !run->stopped_early) {
        /* The published figures count one block at a time. A chain's blocks are leased together, which keeps them from
         * evicting each other: that may be better, and must not be worse. */
        struct figure *f = figure_add(&figures, "%", percent, "hits in DRAM, a reference");
        figure_beside(f, "published, single tier", known);
        figure_goal(f, GOAL_AT_LEAST, known - (strcmp(o->policy, "chain") == 0 ? 0.3 : 0.5));
        if (o->list_max == 1)
            figure_goal(figure_add(&figures, "points", fabs(percent - known), "off the published hit rate"),
                        GOAL_AT_MOST, 0.5);
    }
    (void)figure_add(&figures, "s", run->wall_s, "duration");
    if (o->json) {
        if (figures_print_json(&figures, stdout) < 0)
            return BENCH_BROKEN;
    } else {
        report_table(run, stdout);
        figures_print_table(&figures, true, stdout);
    }
    return figures_hold(&figures) ? BENCH_OK : BENCH_WRONG;
}

/* daemon_pid: 0 if it is not ours. */
static int replay_run(const struct options *o, const char *socket_path, const char *pool, pid_t daemon_pid,
                      const struct trace *t)
{
    struct run_options ro = {.socket_path = socket_path,
                             .daemon_pid = daemon_pid,
                             .pool = pool,
                             .mode = o->no_lookup ? ENGINE_BLIND : ENGINE_EACH,
                             .seed = o->seed,
                             .block_bytes = o->block_bytes,
                             .list_max = o->list_max,
                             .seconds_max = o->seconds,
                             .quiet = o->quiet};
    cleanup_(run_close) struct run run = {0};

    int r = run_open(&ro, t->longest, &run);
    if (r == 0)
        r = run_trace(&run, t);
    if (r < 0)
        return BENCH_BROKEN;
    int status = print_results(o, &run, t);
    return report_is_right(&run) ? status : BENCH_WRONG;
}

/* A daemon of our own, of the right size. */
static int replay_private(const struct options *o, const struct trace *t)
{
    cleanup_(harness_deinit) struct harness h = HARNESS_NONE;
    double share = (double)(t->n_distinct * o->block_bytes) * o->dram_percent / 100;
    char need[UNITS_TEXT_BYTES], have[UNITS_TEXT_BYTES];
    uint64_t room;
    struct harness_options ho = {
        .policy = o->policy,
        .dram_bytes = o->dram_bytes ? o->dram_bytes : round_up((uint64_t)share, SECTOR_BYTES),
        .device_bytes =
            o->device_bytes < UINT64_MAX ? o->device_bytes : harness_device_bytes(t->n_distinct * o->block_bytes),
        .keep = o->keep,
        .quiet = o->quiet,
    };

    if (ho.dram_bytes < TIER_BYTES_MIN) {
        fprintf(stderr, "spillbench: that would be %s of memory, and a daemon has at least %s: use larger blocks\n",
                size_print(ho.dram_bytes, have), size_print(TIER_BYTES_MIN, need));
        return BENCH_BROKEN;
    }
    if (harness_room(&room) < 0)
        return BENCH_BROKEN;
    if (room < ho.device_bytes) {
        fprintf(stderr, "spillbench: the device file needs %s, there is room for %s: set TMPDIR\n",
                size_print(ho.device_bytes, need), size_print(room, have));
        return BENCH_BROKEN;
    }
    if (harness_start(&ho, &h) < 0)
        return BENCH_BROKEN;
    return harness_finish(&h, replay_run(o, h.socket_path, "bench", h.pid, t));
}

int bench_replay(int argc, char **argv)
{
    struct options o = {
        .block_bytes = 64 * KIB, .dram_percent = 10, .device_bytes = UINT64_MAX, .seed = 1, .pool = "default"};
    cleanup_(trace_deinit) struct trace t = {0};
    char a[UNITS_TEXT_BYTES], b[UNITS_TEXT_BYTES];
    uint64_t bad_line = 0;

    options_parse(argc, argv, rows, doc, &o);
    if (!o.trace_path) {
        fprintf(stderr, "spillbench replay: --trace FILE is missing\n");
        return EX_USAGE;
    }
    int r = trace_load(o.trace_path, &t, &bad_line);
    if (r < 0 && bad_line)
        fprintf(stderr, "spillbench: %s:%llu: not a request\n", o.trace_path, (unsigned long long)bad_line);
    else if (r < 0)
        fprintf(stderr, "spillbench: %s: %s\n", o.trace_path, strerror(-r));
    if (r < 0)
        return BENCH_BROKEN;
    if (!o.quiet)
        fprintf(stderr, "%llu requests for %llu blocks of %s, %llu of them distinct: %s\n",
                (unsigned long long)t.n_requests, (unsigned long long)t.n_ids, size_print(o.block_bytes, a),
                (unsigned long long)t.n_distinct, size_print(t.n_distinct * o.block_bytes, b));
    return o.private_daemon ? replay_private(&o, &t) : replay_run(&o, o.socket_path, o.pool, 0, &t);
}
