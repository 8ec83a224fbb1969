/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One block of 128 KiB that is in memory, from a call until a stream has it, beside a copy from pinned memory that another
 * stream waits for by an event. A sample is the median of many in a row, one at a time, so that the helper and the engine
 * are awake. Where ours goes: the same rounds, cut at what this side sees; and a kernel that does next to nothing, launched
 * and waited for, which is the least that a scatter adds. And the CPU time of all when nothing is to be done. One thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "client/bench/cpus.h"
#include "client/bench/gpu.h"
#include "client/bench/gpu_load.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define ROUNDS 200
#define BLOCK_BYTES (128 * KIB)
#define GOAL 3

/* Until the request is away, until the block's copy is on its way (and the stream waits for it), until the stream has it. */
enum { ASKED, ANSWERED, ARRIVED, ALL, STEPS };
static const char *const steps[STEPS] = {
    [ASKED] = "one block of 128 KiB, of this: spw_fetch() returns",
    [ANSWERED] = "one block of 128 KiB, of this: then spw_gpu_job_join()",
    [ARRIVED] = "one block of 128 KiB, of this: then copy, scatter, wake-up",
    [ALL] = "one block of 128 KiB in memory, stream to stream",
};

struct latency {
    struct gpu_bench *bench;
    struct gpu_load load;
    bool has_load;
    double us[STEPS][ROUNDS];
    uint32_t n[STEPS]; /* samples, of medians of rounds */
    double medians[STEPS][SAMPLES_MAX];
};

static double us_between(uint64_t from_ns, uint64_t to_ns)
{
    return (double)(to_ns - from_ns) / 1e3;
}

static int round_ours(struct latency *l, uint32_t i)
{
    struct gpu_bench *b = l->bench;
    uint32_t block = i % b->set.n;
    spw_gpu_job *job = NULL;
    uint64_t start_ns = now_ns();
    int r = gpu_set_fetch(b, block, 1, &job);
    uint64_t asked_ns = now_ns();

    if (r == 0 && (r = spw_gpu_job_join(job, b->streams[0], GPU_TIMEOUT_MS)) < 0)
        r = micro_say("spw_gpu_job_join", r);
    uint64_t answered_ns = now_ns();
    if (r == 0)
        r = CU(b, StreamSynchronize(b->streams[0]));
    uint64_t end_ns = now_ns();
    l->us[ASKED][i] = us_between(start_ns, asked_ns);
    l->us[ANSWERED][i] = us_between(asked_ns, answered_ns);
    l->us[ARRIVED][i] = us_between(answered_ns, end_ns);
    l->us[ALL][i] = us_between(start_ns, end_ns);
    return r < 0 ? r : gpu_set_end(b, true, block, 1, job);
}

static int sample_ours(void *ctx, double ret_us[static METRICS_MAX])
{
    struct latency *l = ctx;
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < ROUNDS; i++)
        r = round_ours(l, i);
    for (unsigned s = 0; r == 0 && s < STEPS; s++) {
        double median = pairs_estimate(l->us[s], ROUNDS).median;

        if (s == ALL)
            ret_us[0] = median;
        if (l->n[s] < SAMPLES_MAX)
            l->medians[s][l->n[s]++] = median;
    }
    return r;
}

static int sample_copy(void *ctx, double ret_us[static METRICS_MAX])
{
    struct latency *l = ctx;
    struct gpu_bench *b = l->bench;
    int r = 0;

    for (unsigned i = 0; r == 0 && i < ROUNDS; i++) {
        uint64_t start_ns = now_ns();

        r = CU(b, MemcpyHtoDAsync(b->dma, b->pinned, BLOCK_BYTES, b->streams[1]));
        if (r == 0)
            r = CU(b, EventRecord(b->event, b->streams[1]));
        if (r == 0)
            r = CU(b, StreamWaitEvent(b->streams[0], b->event, 0));
        if (r == 0)
            r = CU(b, StreamSynchronize(b->streams[0]));
        l->us[ALL][i] = us_between(start_ns, now_ns());
    }
    ret_us[0] = pairs_estimate(l->us[ALL], ROUNDS).median;
    return r;
}

static int sample_kernel(void *ctx, double ret_us[static METRICS_MAX])
{
    struct latency *l = ctx;
    struct gpu_bench *b = l->bench;
    int r = 0;

    for (unsigned i = 0; r == 0 && i < ROUNDS; i++) {
        uint64_t start_ns = now_ns();

        r = gpu_load_multiply(&l->load, 0, b->streams[0]);
        if (r == 0)
            r = CU(b, StreamSynchronize(b->streams[0]));
        l->us[ALL][i] = us_between(start_ns, now_ns());
    }
    ret_us[0] = pairs_estimate(l->us[ALL], ROUNDS).median;
    return r;
}

static int contest(struct latency *l, const char *name, const char *neighbour, sample_fn ours, sample_fn theirs)
{
    const struct options *o = l->bench->options;
    struct contest c = {.metrics = {{"", "us", neighbour ? GOAL_AT_MOST : GOAL_NONE, false, GOAL}},
                        .n_metrics = 1,
                        .neighbour = neighbour,
                        .ours = ours,
                        .theirs = theirs,
                        .ctx = l,
                        .seconds = o->seconds,
                        .quiet = o->quiet};

    snprintf(c.metrics[0].name, FIGURE_NAME_BYTES, "%s", name);
    return contest_run(&c, l->bench->micro->figures);
}

static int measure(struct latency *l)
{
    struct figures *figures = l->bench->micro->figures;
    int r = gpu_set_check(l->bench);

    if (r == 0)
        r = contest(l, steps[ALL], "a copy from pinned memory, and an event", sample_ours, sample_copy);
    for (unsigned s = 0; r == 0 && s < ALL; s++) {
        struct estimate e = pairs_estimate(l->medians[s], l->n[s]);

        figure_measured(figure_add(figures, "us", e.median, "%s", steps[s]), &e);
    }
    if (r == 0 && l->has_load)
        r = contest(l, "a kernel that does nothing, launched and waited for", NULL, sample_kernel, NULL);
    return r;
}

int gpu_latency_measure(struct micro *m)
{
    struct gpu_bench *b = m->ctx;
    cleanup_free struct latency *l = calloc(1, sizeof(*l));
    int r = l ? gpu_driver_open(b, false) : -ENOMEM;

    if (r < 0)
        return r;
    l->bench = b;
    r = gpu_load_open(b, LOAD_BYTES_UNIT, &l->load);
    l->has_load = r == 0;
    if (r == 0 || r == -ENOTSUP)
        r = gpu_set_open(b, &(struct gpu_shape){.piece_bytes = BLOCK_BYTES,
                                                .item_bytes = BLOCK_BYTES,
                                                .class_id = SPW_CLASS_KV,
                                                .durability = SPW_CACHE});
    if (r == 0)
        r = measure(l);
    return r < 0 ? r : gpu_set_close(b);
}

/* ── idle ───────────────────────────────────────────────────────────────────────────────────────────────────────── */

#define DRIVERS_THREAD "cuda-" /* as it is named in every process that has a context, whatever that does */
#define IDLE_GOAL_US 100       /* a second: 0.01 % of a core, which top shows as 0.0 */
#define IDLE_SECONDS 2
#define IDLE_SAMPLES SAMPLES_MIN

int gpu_idle_measure(struct micro *m)
{
    static const char *const names[] = {"client's CPU, idle after work, the driver's thread aside",
                                        "helper's CPU, idle after work, the driver's thread aside",
                                        "daemon's CPU, idle after work"};
    struct gpu_bench *b = m->ctx;
    double us[ARRAY_LEN(names)][IDLE_SAMPLES];
    int r = gpu_driver_open(b, false);

    if (r == 0)
        r = gpu_set_open(
            b, &(struct gpu_shape){
                   .piece_bytes = MIB, .item_bytes = 2 * MIB, .class_id = SPW_CLASS_KV, .durability = SPW_CACHE});
    for (unsigned i = 0; r == 0 && i < IDLE_SAMPLES; i++) {
        const pid_t pids[ARRAY_LEN(names)] = {0, b->cpu.helper_pid, b->cpu.daemon_pid};
        double before_ns[ARRAY_LEN(names)];

        r = gpu_set_check(b);
        nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL); /* what the work left to be done */
        uint64_t start_ns = now_ns();
        for (unsigned p = ARRAY_LEN(names); p-- > 0;) /* ourselves last, and first below: looking is work */
            before_ns[p] = cpus_used_but_ns(pids[p], DRIVERS_THREAD);
        if (b->options->quick)
            nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
        else
            nanosleep(&(struct timespec){.tv_sec = IDLE_SECONDS}, NULL);
        double took_s = seconds_since(start_ns);
        for (unsigned p = 0; p < ARRAY_LEN(names); p++)
            us[p][i] = (cpus_used_but_ns(pids[p], DRIVERS_THREAD) - before_ns[p]) / 1e3 / took_s;
    }
    for (unsigned p = 0; r == 0 && p < ARRAY_LEN(names); p++) {
        struct estimate e = pairs_estimate(us[p], IDLE_SAMPLES);
        struct figure *f = figure_add(m->figures, "us/s", e.median, "%s", names[p]);

        figure_goal(f, GOAL_AT_MOST, IDLE_GOAL_US);
        figure_measured(f, &e);
    }
    return r < 0 ? r : gpu_set_close(b);
}
