/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The main job, small enough to watch: a chat service's KV cache, ten times the size of the memory that it is given, on
 * a daemon that lives for the demonstration only. Fails on any wrong byte. One thread.
 */
#include <stdio.h>
#include <string.h>

#include "client/bench/bench.h"
#include "client/bench/generator.h"
#include "client/bench/harness.h"
#include "client/bench/options.h"
#include "client/bench/report.h"
#include "include/base/cleanup.h"
#include "include/base/units.h"

#define WORKING_SET_TENTHS 102 /* of the memory: a little more than ten times */
#define DRAM_DEFAULT (256 * MIB)
#define DRAM_LEAST (64 * MIB)
#define SPARE_BYTES (512 * MIB) /* of the file system, that we leave alone */
#define ENDURANCE_SECONDS 90

static const struct argp_option rows[] = {ROW_TRACE,  ROW_REQUESTS, ROW_BLOCK, ROW_DRAM,    ROW_DEVICE,
                                          ROW_POLICY, ROW_LIST,     ROW_KEEP,  ROW_SECONDS, ROW_SEED,
                                          ROW_QUIET,  ROW_OUTPUT,   {0}};
static const char doc[] =
    "Replays multi-turn conversations as an inference engine would, against a daemon of its own in a temporary folder, "
    "whose memory holds a tenth of what is stored; the rest goes to a file. Every byte that comes back is compared.";

static int make_trace(const struct options *o, struct trace *ret_trace)
{
    struct generator_options g = {.seed = o->seed, .n_requests = o->n_requests};
    uint64_t bad_line = 0;
    int r;

    g.n_distinct = o->dram_bytes / 10 * WORKING_SET_TENTHS / o->block_bytes;
    r = o->trace_path ? trace_load(o->trace_path, ret_trace, &bad_line) : generator_run(&g, ret_trace);
    if (r < 0 && bad_line)
        fprintf(stderr, "spillbench: %s:%llu: not a request\n", o->trace_path, (unsigned long long)bad_line);
    else if (r < 0)
        fprintf(stderr, "spillbench: %s: %s\n", o->trace_path ? o->trace_path : "generator", strerror(-r));
    return r;
}

/* Scales down what does not fit on the disk, and says so. */
static int plan(struct options *o, struct trace *ret_trace)
{
    cleanup_(trace_deinit) struct trace t = {0};
    char need[UNITS_TEXT_BYTES], have[UNITS_TEXT_BYTES];
    uint64_t room;

    int r = harness_room(&room);
    while (r == 0) {
        r = make_trace(o, &t);
        if (r < 0)
            return r;
        uint64_t device_bytes = o->device_bytes ? o->device_bytes : harness_device_bytes(t.n_distinct * o->block_bytes);
        if (device_bytes + SPARE_BYTES <= room) {
            o->device_bytes = device_bytes;
            *ret_trace = t;
            t = (struct trace){0};
            return 0;
        }
        fprintf(stderr, "spillbench: there is only %s of room for a device file of %s%s\n", size_print(room, have),
                size_print(device_bytes, need), o->dram_bytes / 2 >= DRAM_LEAST ? ": half of everything, then" : "");
        if (o->dram_bytes / 2 < DRAM_LEAST || o->device_bytes || o->trace_path || o->n_requests)
            return -ENOSPC;
        o->dram_bytes /= 2;
        trace_deinit(&t);
    }
    return r;
}

static int print_results(const struct options *o, const struct run *run)
{
    struct figures figures = {0};

    report_figures(run, &figures);
    double ratio = (double)run->working_set_bytes / (double)run->pool.dram_bytes;
    struct figure *f = figure_add(&figures, "", ratio, "stored, over memory");
    if (!o->trace_path && !o->n_requests && !run->stopped_early)
        figure_goal(f, GOAL_AT_LEAST, 10);
    (void)figure_add(&figures, "s", run->wall_s, "duration");
    if (o->json)
        return figures_print_json(&figures, stdout) < 0 ? BENCH_BROKEN : BENCH_OK;
    report_table(run, stdout);
    if (run->stopped_early)
        printf("  stopped after %.0f s, before the end of the trace\n", run->wall_s);
    if (run->after.degraded)
        printf("  degraded: see `spillctl doctor`\n");
    return BENCH_OK;
}

static int demo_run(const struct options *o, const struct harness *h, const struct trace *t)
{
    struct run_options ro = {.socket_path = h->socket_path,
                             .daemon_pid = h->pid,
                             .pool = "bench",
                             .mode = ENGINE_PREFIX,
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
    int status = print_results(o, &run);
    return report_is_right(&run) ? status : BENCH_WRONG;
}

int bench_demo(int argc, char **argv)
{
    struct options o = {.block_bytes = 64 * KIB, .dram_bytes = DRAM_DEFAULT, .seed = 1, .seconds = ENDURANCE_SECONDS};
    cleanup_(harness_deinit) struct harness h = HARNESS_NONE;
    cleanup_(trace_deinit) struct trace t = {0};
    char a[UNITS_TEXT_BYTES], b[UNITS_TEXT_BYTES], c[UNITS_TEXT_BYTES], d[UNITS_TEXT_BYTES];

    options_parse(argc, argv, rows, doc, &o);
    if (plan(&o, &t) < 0)
        return BENCH_BROKEN;
    if (!o.quiet)
        fprintf(stderr, "%llu requests for %llu blocks of %s, %llu of them distinct: %s; memory %s, device %s\n",
                (unsigned long long)t.n_requests, (unsigned long long)t.n_ids, size_print(o.block_bytes, a),
                (unsigned long long)t.n_distinct, size_print(t.n_distinct * o.block_bytes, b),
                size_print(o.dram_bytes, c), size_print(o.device_bytes, d));
    struct harness_options ho = {.policy = o.policy,
                                 .dram_bytes = o.dram_bytes,
                                 .device_bytes = o.device_bytes,
                                 .keep = o.keep,
                                 .quiet = o.quiet};
    if (harness_start(&ho, &h) < 0)
        return BENCH_BROKEN;
    return harness_finish(&h, demo_run(&o, &h, &t));
}
