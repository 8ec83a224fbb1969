/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The optimizer step beside memory: the same arrays read and written by as many threads that compute next to nothing. With
 * gradients in fp32 and the parameters in place, and with gradients and parameters in bf16: 28 bytes of memory traffic a
 * parameter, both ways. Then what is told of gradients before a step, beside reading them. No daemon: the states lie in this
 * process's memory, a part each touched first by the thread that has it as a ceiling.
 *
 * What a step tells of the gradients must be the same in each sample.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "client/bench/bench.h"
#include "client/bench/ceiling_states.h"
#include "client/bench/compare.h"
#include "client/bench/memory.h"
#include "client/bench/micro.h"
#include "client/bench/process.h"
#include "client/bench/team.h"
#include "include/base/cleanup.h"
#include "include/spillway/train.h"

#define PARAMETERS (64 * MIB)
#define PARAMETERS_QUICK (4 * MIB)
#define STEP_BYTES 28 /* of memory traffic a parameter */
#define GOAL 0.9

static const struct argp_option options[] = {ROW_SECONDS, ROW_SEED, ROW_QUIET, ROW_QUICK, ROW_OUTPUT, {0}};
static const char doc[] = "Measures the optimizer step beside reading and writing the same memory.";

struct states {
    const struct options *options;
    size_t n;
    float *master, *m, *v;
    float *grad;          /* or bf16, in half of it */
    uint16_t *param;      /* bf16 */
    unsigned n_threads;   /* of both sides */
    spw_workers *workers; /* NULL: one thread */
    struct team *team;    /* the ceiling's */
    uint64_t step;
    struct spw_adam_slice slice; /* what is measured now */
    struct spw_grad_stat stat;
    bool has_stat;
    float ceiling_result; /* so that it is computed */
};

static void states_deinit(struct states *s)
{
    memory_unmap(s->master, s->n * sizeof(float));
    memory_unmap(s->m, s->n * sizeof(float));
    memory_unmap(s->v, s->n * sizeof(float));
    memory_unmap(s->grad, s->n * sizeof(float));
    memory_unmap(s->param, s->n * sizeof(uint16_t));
    spw_workers_free(s->workers);
    team_free(s->team);
}

/* Parts are of whole blocks. */
static struct spw_adam_slice part_of(const struct states *s, unsigned thread)
{
    size_t each = div_round_up(s->n / SPW_TRAIN_BLOCK, s->n_threads) * SPW_TRAIN_BLOCK;
    size_t from = MIN(each * thread, s->n);
    struct spw_adam_slice part = s->slice;

    part.n = MIN(each, s->n - from);
    part.grad = (const char *)part.grad + from * (part.grad_dtype == SPW_DTYPE_F32 ? sizeof(float) : sizeof(uint16_t));
    part.master += from;
    part.m += from;
    part.v += from;
    if (part.param)
        part.param = (uint16_t *)part.param + from;
    return part;
}

static void part_fill(void *arg, unsigned thread)
{
    const struct states *s = arg;
    struct spw_adam_slice part = part_of(s, thread);
    float *grad = (float *)s->grad + (part.master - s->master);
    uint64_t x = s->options->seed + thread + 1;

    for (size_t i = 0; i < part.n; i++) {
        x = x * UINT64_C(6364136223846793005) + 1442695040888963407;
        float number = (float)(int32_t)(x >> 32) * 0x1p-31f;
        uint32_t half = 0x3c00 | (uint32_t)(x >> 40 & 0x3ff),
                 two = half << 16 | half; /* in fp32 and bf16: 0.008 to 2 */
        memcpy(&grad[i], &two, sizeof(two));
        part.master[i] = number;
        part.m[i] = part.v[i] = 0;
    }
    memset((uint16_t *)s->param + (part.master - s->master), 0, part.n * sizeof(uint16_t));
}

/* ── both sides ─────────────────────────────────────────────────────────────────────────────────────────────────── */

/* GB/s, and parameters a ns. */
static void speeds(const struct states *s, uint64_t start_ns, double bytes, double ret_speed[static METRICS_MAX])
{
    double ns = (double)(now_ns() - start_ns);

    ret_speed[0] = (double)s->n * bytes / ns;
    ret_speed[1] = (double)s->n / ns;
}

static int stat_check(struct states *s, const struct spw_grad_stat *stat)
{
    if (s->has_stat && !(stat->sum_squares == s->stat.sum_squares)) {
        fprintf(stderr, "spillbench: the gradients' sum of squares is %.17g now, and was %.17g\n", stat->sum_squares,
                s->stat.sum_squares);
        return -EBADMSG;
    }
    s->stat = *stat;
    s->has_stat = true;
    return stat->has_nonfinite ? -EBADMSG : 0;
}

static int sample_step(void *ctx, double ret_speed[static METRICS_MAX])
{
    struct states *s = ctx;
    struct spw_adam_options o = {.lr = 1e-3,
                                 .beta1 = 0.9,
                                 .beta2 = 0.999,
                                 .eps = 1e-8,
                                 .weight_decay = 0.01,
                                 .grad_scale = 1,
                                 .step = ++s->step};
    struct spw_grad_stat stat;

    uint64_t start_ns = now_ns();
    int r = spw_adam(s->workers, &o, &s->slice, 1, &stat);
    speeds(s, start_ns, STEP_BYTES, ret_speed);
    return r < 0 ? micro_say("step", r) : stat_check(s, &stat);
}

static int sample_stat(void *ctx, double ret_speed[static METRICS_MAX])
{
    struct states *s = ctx;
    struct spw_grad_stat stat;

    uint64_t start_ns = now_ns();
    int r = spw_grad_stat(s->workers, &s->slice, 1, &stat);
    speeds(s, start_ns, sizeof(float), ret_speed);
    return r < 0 ? micro_say("gradients", r) : stat_check(s, &stat);
}

static void part_states(void *arg, unsigned thread)
{
    struct spw_adam_slice part = part_of(arg, thread);

    ceiling_states_run(&part, 0);
}

static void part_grad(void *arg, unsigned thread)
{
    struct states *s = arg;
    struct spw_adam_slice part = part_of(s, thread);
    float result = ceiling_grad_run(&part);

    if (thread == 0)
        s->ceiling_result = result;
}

static int sample_states(void *ctx, double ret_speed[static METRICS_MAX])
{
    struct states *s = ctx;

    uint64_t start_ns = now_ns();
    team_run(s->team, part_states, s);
    speeds(s, start_ns, STEP_BYTES, ret_speed);
    return 0;
}

static int sample_grad(void *ctx, double ret_speed[static METRICS_MAX])
{
    struct states *s = ctx;

    uint64_t start_ns = now_ns();
    team_run(s->team, part_grad, s);
    speeds(s, start_ns, sizeof(float), ret_speed);
    return 0;
}

/* ── contests ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static int contest(struct states *s, const char *what, sample_fn ours, sample_fn theirs, struct figures *figures)
{
    struct contest contest = {.metrics = {{"", "GB/s", GOAL_AT_LEAST, false, GOAL}, {"", "G/s", GOAL_NONE, false, 0}},
                              .n_metrics = 2,
                              .neighbour = "the same memory",
                              .ours = ours,
                              .theirs = theirs,
                              .ctx = s,
                              .seconds = s->options->seconds,
                              .quiet = s->options->quiet};
    const char *threads = s->n_threads == 1 ? "one thread" : "a thread a CPU";

    snprintf(contest.metrics[0].name, FIGURE_NAME_BYTES, "%s, %s", what, threads);
    snprintf(contest.metrics[1].name, FIGURE_NAME_BYTES, "%s, %s, parameters", what, threads);
    s->has_stat = false;
    return contest_run(&contest, figures);
}

static int contests(struct states *s, struct figures *figures)
{
    s->slice = (struct spw_adam_slice){
        .n = s->n, .grad = s->grad, .master = s->master, .m = s->m, .v = s->v, .grad_dtype = SPW_DTYPE_F32};
    int r = contest(s, "step, fp32", sample_step, sample_states, figures);
    if (r == 0)
        r = contest(s, "gradients, fp32", sample_stat, sample_grad, figures);
    s->slice.grad_dtype = s->slice.param_dtype = SPW_DTYPE_BF16;
    s->slice.param = s->param;
    return r < 0 ? r : contest(s, "step, bf16", sample_step, sample_states, figures);
}

/* 0: a thread a CPU. */
static int threads_set(struct states *s, unsigned n_threads)
{
    int r = spw_workers_new(n_threads, &s->workers);

    if (r < 0)
        return micro_say("workers", r);
    s->n_threads = spw_workers_count(s->workers);
    return team_new(s->n_threads, &s->team);
}

static void threads_end(struct states *s)
{
    spw_workers_free(steal_ptr(s->workers));
    team_free(steal_ptr(s->team));
}

static int measure(struct states *s, struct figures *figures)
{
    s->master = memory_map(s->n * sizeof(float), MEMORY_HUGE);
    s->m = memory_map(s->n * sizeof(float), MEMORY_HUGE);
    s->v = memory_map(s->n * sizeof(float), MEMORY_HUGE);
    s->grad = memory_map(s->n * sizeof(float), MEMORY_HUGE);
    s->param = memory_map(s->n * sizeof(uint16_t), MEMORY_HUGE);
    int r = s->master && s->m && s->v && s->grad && s->param ? threads_set(s, 0) : -ENOMEM;
    if (r < 0)
        return r;
    s->slice = (struct spw_adam_slice){.n = s->n, .master = s->master, .m = s->m, .v = s->v};
    team_run(s->team, part_fill, s);
    (void)figure_add(figures, "", (double)s->n_threads, "threads, of a thread a CPU");
    r = contests(s, figures);
    if (r < 0 || s->n_threads == 1)
        return r;
    threads_end(s);
    r = threads_set(s, 1);
    return r < 0 ? r : contests(s, figures);
}

int bench_adam(int argc, char **argv)
{
    static struct figures figures;
    struct options o = {.seed = 1};

    options_parse(argc, argv, options, doc, &o);
    if (o.seconds == 0)
        o.seconds = o.quick ? 0.2 : 3;
    cleanup_(states_deinit) struct states s = {.options = &o, .n = o.quick ? PARAMETERS_QUICK : PARAMETERS};
    return micro_end(&o, &figures, measure(&s, &figures));
}
