/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What load does to others. First, fetches of one pool while another pool is written as fast as the device takes it and
 * every piece of its memory is dirty, beside the same fetches alone. Then two pools whose weights are 3:1, both written
 * as fast as it goes: each gets its share. Then one that has a write budget: what the device is given keeps to it. The
 * writers are processes (mix_writers.h); all else is one thread.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "client/bench/admin.h"
#include "client/bench/bench.h"
#include "client/bench/compare.h"
#include "client/bench/micro.h"
#include "client/bench/mix.h"
#include "client/bench/mix_writers.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define DATA_BYTES (512 * MIB)
#define DATA_BYTES_QUICK (128 * MIB)
#define DRAM_BYTES (256 * MIB)
#define DRAM_BYTES_QUICK (128 * MIB)
#define FETCH_DEPTH 4
#define SETTLE_NS 100000000L
#define SETTLE_SECONDS 30
#define WEIGHT_LEFT 300
#define WEIGHT_RIGHT 100
#define BUDGET_A_S (64 * MIB) /* much less than any device writes */

struct speed {
    const struct options *options;
    struct mix_writers writers;
    double sample_seconds;
    uint64_t data_bytes;
    struct disk_load load; /* the fetches */
    spw_session *session;
};

static void sleep_ns(long ns)
{
    nanosleep(&(struct timespec){ns / 1000000000, ns % 1000000000}, NULL);
}

static int device_written(const struct speed *s, double *ret_bytes)
{
    cleanup_json struct json_object *reply = NULL;
    int r = admin_get(s->session, "iostat", &reply);

    if (r == 0)
        *ret_bytes = admin_number(reply, "engines.written_bytes");
    return r;
}

/* ── fetches beside a writer ────────────────────────────────────────────────────────────────────────────────────── */

/* Until the daemon writes no more. */
static int settle(const struct speed *s)
{
    uint64_t start_ns = now_ns();
    double last = -1, bytes = 0;

    while (seconds_since(start_ns) < SETTLE_SECONDS) {
        int r = device_written(s, &bytes);
        if (r < 0 || bytes == last)
            return r;
        last = bytes;
        sleep_ns(SETTLE_NS);
    }
    return 0; /* it writes all the time, for nobody: that is then part of what is measured */
}

enum { P99, SPEED_GB };

static int fetch(struct speed *s, double ret[static METRICS_MAX])
{
    uint64_t start_ns = now_ns();
    int r = disk_load_fetch(&s->load, 0, s->sample_seconds);

    ret[P99] = (double)hist_quantile(s->load.hist, 990) / 1e3;
    ret[SPEED_GB] = (double)s->load.bytes * 1e-9 / seconds_since(start_ns);
    return r;
}

static int sample_beside(void *ctx, double ret[static METRICS_MAX])
{
    struct speed *s = ctx;

    mix_writers_switch(&s->writers, true);
    mix_writers_wait(&s->writers, mix_written(&s->writers, 0),
                     DRAM_BYTES); /* its memory is full of what must go first */
    int r = fetch(s, ret);
    mix_writers_switch(&s->writers, false);
    return r < 0 ? r : mix_writers_live(&s->writers) ? 0 : -ECHILD;
}

static int sample_alone(void *ctx, double ret[static METRICS_MAX])
{
    struct speed *s = ctx;
    int r = settle(s);

    return r < 0 ? r : fetch(s, ret);
}

static int contest_fetch(struct speed *s, struct figures *figures)
{
    const struct contest c = {
        .metrics = {[P99] = {"fetch of 64 KiB under full demotion, p99", "us", GOAL_AT_MOST, false, 2},
                    [SPEED_GB] = {"fetch of 64 KiB under full demotion", "GB/s", GOAL_NONE, false, 0}},
        .n_metrics = 2,
        .neighbour = "fetches alone",
        .ours = sample_beside,
        .theirs = sample_alone,
        .ctx = s,
        .seconds = s->options->seconds,
        .quiet = s->options->quiet,
    };
    uint64_t start_ns = now_ns(), first = mix_written(&s->writers, 0);

    int r = contest_run(&c, figures);
    double speed = (double)(mix_written(&s->writers, 0) - first) * 1e-9 / seconds_since(start_ns);
    (void)figure_add(figures, "GB/s", speed, "written meanwhile, pauses included");
    return r;
}

static int measure_fetch(struct micro *m)
{
    struct speed *s = m->ctx;
    cleanup_free struct hist *hist = calloc(1, sizeof(*hist));

    if (!hist)
        return -ENOMEM;
    s->session = m->session;
    s->load = (struct disk_load){.seed = s->options->seed,
                                 .block_bytes = MIX_BLOCK_BYTES,
                                 .block_bytes_min = MIX_BLOCK_BYTES,
                                 .depth = FETCH_DEPTH,
                                 .list = 1,
                                 .hist = hist};
    int r = mix_writer_start(&s->writers, 0, m->socket_path, "back", s->options->seed + 1);
    if (r == 0)
        r = mix_load_open(m->session, "bench", &s->load);
    if (r == 0)
        r = disk_load_spill(&s->load, s->data_bytes, 0);
    if (r == 0) {
        disk_load_stored(&s->load, s->load.next);
        r = disk_load_fetch(&s->load, s->load.bytes, 0);
    }
    if (r == 0)
        r = contest_fetch(s, m->figures);
    mix_writers_end(&s->writers);
    spw_queue_free(s->load.queue);
    return r;
}

/* ── shares ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* How far the writers are from their weights, as a part; and what the left one gets for each byte of the right one. */
static int sample_shares(void *ctx, double ret[static METRICS_MAX])
{
    struct speed *s = ctx;
    uint64_t left = mix_written(&s->writers, 0), right = mix_written(&s->writers, 1);

    sleep_ns((long)(s->sample_seconds * 1e9));
    left = mix_written(&s->writers, 0) - left;
    right = mix_written(&s->writers, 1) - right;
    double ratio = right ? (double)left / (double)right : INFINITY;
    ret[0] = fabs(ratio / ((double)WEIGHT_LEFT / WEIGHT_RIGHT) - 1);
    ret[1] = ratio;
    ret[2] = (double)(left + right) * 1e-9 / s->sample_seconds;
    return mix_writers_live(&s->writers) ? 0 : -ECHILD;
}

static int measure_shares(struct micro *m)
{
    struct speed *s = m->ctx;
    const struct contest c = {
        .metrics = {{"two saturating pools, 3:1, off by", "", GOAL_AT_MOST, true, 0.1},
                    {"two saturating pools, 3:1, bytes left for one right", "", GOAL_NONE, false, 0},
                    {"two saturating pools, together", "GB/s", GOAL_NONE, false, 0}},
        .n_metrics = 3,
        .ours = sample_shares,
        .ctx = s,
        .seconds = s->options->seconds,
        .quiet = s->options->quiet,
    };

    int r = mix_writer_start(&s->writers, 0, m->socket_path, "bench", s->options->seed + 1);
    if (r == 0)
        r = mix_writer_start(&s->writers, 1, m->socket_path, "right", s->options->seed + 2);
    if (r == 0) {
        mix_writers_switch(&s->writers, true);
        mix_writers_wait(&s->writers, 0, 2 * DRAM_BYTES);
        r = contest_run(&c, m->figures);
    }
    mix_writers_end(&s->writers);
    return r;
}

/* ── a write budget ─────────────────────────────────────────────────────────────────────────────────────────────── */

/* How far what the device is given is from the budget, as a part; and how much it is. */
static int sample_budget(void *ctx, double ret[static METRICS_MAX])
{
    struct speed *s = ctx;
    double before = 0, after = 0;

    int r = device_written(s, &before);
    uint64_t start_ns = now_ns();
    sleep_ns((long)(s->sample_seconds * 1e9));
    double seconds = seconds_since(start_ns);
    if (r == 0)
        r = device_written(s, &after);
    ret[1] = (after - before) / seconds * 1e-6;
    ret[0] = fabs(ret[1] / ((double)BUDGET_A_S * 1e-6) - 1);
    return r < 0 ? r : mix_writers_live(&s->writers) ? 0 : -ECHILD;
}

static int measure_budget(struct micro *m)
{
    struct speed *s = m->ctx;
    const struct contest c = {
        .metrics = {{"a pool's write budget, off by", "", GOAL_AT_MOST, true, 0.05},
                    {"written for a pool with a budget of 64 MiB/s", "MB/s", GOAL_NONE, false, 0}},
        .n_metrics = 2,
        .ours = sample_budget,
        .ctx = s,
        .seconds = s->options->seconds,
        .quiet = s->options->quiet,
    };

    s->session = m->session;
    int r = mix_writer_start(&s->writers, 0, m->socket_path, "bench", s->options->seed + 1);
    if (r == 0) {
        mix_writers_switch(&s->writers, true);
        mix_writers_wait(&s->writers, 0, 2 * DRAM_BYTES); /* from then on each new block drives one out */
        r = contest_run(&c, m->figures);
    }
    mix_writers_end(&s->writers);
    return r;
}

/* ── all ────────────────────────────────────────────────────────────────────────────────────────────────────────── */

struct part {
    const char *word, *pools;
    micro_fn measure;
};
static const struct part parts[] = {
    {"fetch", "[pool bench]\ndram = 50 %\nnvme = 50 %\n\n[pool back]\ndram = 50 %\nnvme = 50 %\n", measure_fetch},
    {"shares",
     "[pool bench]\ndram = 50 %\nnvme = 50 %\nweight = 300\n\n[pool right]\ndram = 50 %\nnvme = 50 %\nweight = 100\n",
     measure_shares},
    {"budget", "[pool bench]\nwrite_budget = 64 MiB/s\n", measure_budget},
};

int mix_speed(const struct options *o)
{
    static const char *const words[] = {"fetch", "shares", "budget", NULL};
    static struct figures figures;
    static struct speed s; /* too large for the stack */
    struct harness_options ho = {
        .dram_bytes = o->quick ? DRAM_BYTES_QUICK : DRAM_BYTES, .policy = "lru", .keep = o->keep, .quiet = o->quiet};
    int r = 0;

    options_check_choice("only", o->only, words);
    s.options = o;
    s.sample_seconds = o->quick ? 0.3 : 2;
    s.data_bytes = o->quick ? DATA_BYTES_QUICK : DATA_BYTES;
    ho.device_bytes = harness_device_bytes(4 * s.data_bytes);
    for (size_t i = 0; r == 0 && i < ARRAY_LEN(parts); i++) {
        ho.pools = parts[i].pools;
        if (options_choose(o->only, parts[i].word))
            r = micro_daemon(o, &ho, parts[i].measure, &s, &figures);
    }
    return micro_end(o, &figures, r);
}
