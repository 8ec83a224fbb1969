/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The optimizer step on states in a store: all of them in its memory; 75, 50 and 25 % of them; and next to none, the rest on
 * a device. Gradients and parameters are bf16, in this process's memory. The store is a daemon of its own for each row; the
 * policy of states is the default one, `plan`, which has learned the order before anything counts.
 *
 * Beside it the longer of two times, of which neither can be avoided: the same step on states in this process's memory, with
 * the same threads; and reading and writing, both at once, as many bytes as do not fit into the store's memory, from and to
 * a file beside the device, as fast as io_uring can. Both sides make as many steps from the same beginning, so in the end
 * their parameters must be equal bit for bit.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "client/bench/admin.h"
#include "client/bench/bench.h"
#include "client/bench/compare.h"
#include "client/bench/devices.h"
#include "client/bench/disk_limit.h"
#include "client/bench/memory.h"
#include "client/bench/micro.h"
#include "client/bench/optimizer.h"
#include "client/bench/payload.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define PARAMETERS (128 * MIB)
#define PARAMETERS_QUICK (32 * MIB)
#define WINDOW 8        /* chunks that are leased, or on their way */
#define DEVICE_SHARE 16 /* of the states in memory where all are on the device */
#define DRAM_BYTES_MIN (64 * MIB)
#define LEARNED_STEPS 4
#define RAW_DEPTH 16
#define RAW_BLOCK_BYTES (1 * MIB)
#define SECONDS 12
#define SECONDS_QUICK 0.2
#define GOAL 1.15

static const struct argp_option rows[] = {ROW_PARAMETERS,
                                          ROW_ONLY("memory, 75, 50, 25, device"),
                                          ROW_DRAM,
                                          ROW_DEPTH,
                                          ROW_SECONDS,
                                          ROW_SEED,
                                          ROW_KEEP,
                                          ROW_QUIET,
                                          ROW_QUICK,
                                          ROW_OUTPUT,
                                          {0}};
static const char doc[] =
    "Measures the optimizer step on states in the store, beside the device and the step in memory.";

static const struct row {
    const char *word, *name;
    unsigned dram_percent; /* of the states */
} table[] = {{"memory", "all in memory", 100},
             {"75", "75 % in memory", 75},
             {"50", "50 % in memory", 50},
             {"25", "25 % in memory", 25},
             {"device", "on the device", 0}};
static const char *const words[] = {"memory", "75", "50", "25", "device", NULL};

/* What else is known of a row's pairs. */
enum { IO_MS, MEMORY_MS, WAITED_MS, READ_MB, WRITTEN_MB, N_SERIES };

struct series {
    uint32_t n;
    double at[SAMPLES_MAX];
};

struct bench {
    const struct options *options;
    const struct row *row; /* that is measured now */
    struct optimizer_model model;
    struct optimizer_stream *stream;
    spw_session *session;
    float *states; /* in memory, and the rest of what is there */
    uint16_t *param;
    uint64_t step;
    uint64_t states_bytes, dram_bytes;
    struct devices raw; /* a file for the ceiling */
    struct series series[N_SERIES];
};

static void series_add(struct series *series, double value)
{
    if (series->n < SAMPLES_MAX)
        series->at[series->n++] = value;
}

/* ── both sides ─────────────────────────────────────────────────────────────────────────────────────────────────── */

static int device_bytes(const struct bench *b, double *ret_read, double *ret_written)
{
    cleanup_json struct json_object *reply = NULL;
    int r = admin_get(b->session, "iostat", &reply);

    if (r < 0)
        return r;
    *ret_read = admin_number(reply, "engines.read_bytes");
    *ret_written = admin_number(reply, "engines.written_bytes");
    return 0;
}

static int sample_store(void *ctx, double ret_ms[static METRICS_MAX])
{
    struct bench *b = ctx;
    uint64_t waited_ns;
    double read[2], written[2];

    int r = device_bytes(b, &read[0], &written[0]);
    if (r < 0)
        return r;
    uint64_t start_ns = now_ns();
    r = optimizer_stream_step(b->stream, &waited_ns);
    ret_ms[0] = seconds_since(start_ns) * 1e3;
    if (r == 0)
        r = device_bytes(b, &read[1], &written[1]);
    if (r != 0)
        return r;
    series_add(&b->series[WAITED_MS], (double)waited_ns * 1e-6);
    series_add(&b->series[READ_MB], (read[1] - read[0]) * 1e-6);
    series_add(&b->series[WRITTEN_MB], (written[1] - written[0]) * 1e-6);
    return 0;
}

static int step_in_memory(struct bench *b)
{
    struct spw_adam_options numbers = optimizer_numbers(++b->step);
    size_t n = b->model.n;
    const struct spw_adam_slice slice = {.n = n,
                                         .grad = b->model.grad,
                                         .master = b->states,
                                         .m = b->states + n,
                                         .v = b->states + 2 * n,
                                         .param = b->param,
                                         .grad_dtype = SPW_DTYPE_BF16,
                                         .param_dtype = SPW_DTYPE_BF16};

    int r = spw_adam(b->model.workers, &numbers, &slice, 1, NULL);
    return r < 0 ? micro_say("step", r) : 0;
}

/* What must go through the device in a step, each way. */
static uint64_t through_bytes(const struct bench *b)
{
    return b->states_bytes > b->dram_bytes ? b->states_bytes - b->dram_bytes : 0;
}

static int raw_io(const struct bench *b, double *ret_ms)
{
    const struct disk_limit limit = {.path = b->raw.paths[0],
                                     .file_bytes = 2 * b->states_bytes,
                                     .block_bytes = RAW_BLOCK_BYTES,
                                     .depth = RAW_DEPTH,
                                     .is_both = true,
                                     .bytes = 2 * through_bytes(b)};
    double bytes_a_s = 1;
    int r = limit.bytes ? disk_limit_run(&limit, &bytes_a_s) : 0;

    *ret_ms = (double)limit.bytes / bytes_a_s * 1e3;
    return r;
}

static int sample_bound(void *ctx, double ret_ms[static METRICS_MAX])
{
    struct bench *b = ctx;
    double io_ms;

    int r = raw_io(b, &io_ms);
    uint64_t start_ns = now_ns();
    if (r == 0)
        r = step_in_memory(b);
    double memory_ms = seconds_since(start_ns) * 1e3;
    series_add(&b->series[IO_MS], io_ms);
    series_add(&b->series[MEMORY_MS], memory_ms);
    ret_ms[0] = MAX(io_ms, memory_ms);
    return r;
}

/* ── a row ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

static struct figure *figure_series(struct bench *b, unsigned which, const char *unit, const char *name,
                                    const char *what, struct figures *figures)
{
    struct estimate e = pairs_estimate(b->series[which].at, b->series[which].n);
    struct figure *f = figure_add(figures, unit, e.median, "step, %s, %s", name, what);

    figure_measured(f, &e);
    return f;
}

/* What a policy that knows the future, and writes no byte that stays, would move: all that does not fit, once. */
static void figure_moved(struct bench *b, unsigned which, const char *name, const char *what, struct figures *figures)
{
    struct figure *f = figure_series(b, which, "MB", name, what, figures);
    struct estimate e = f->estimate;
    double fits = (double)through_bytes(b) * 1e-6;

    figure_beside(f, "what does not fit", fits);
    figure_measured(f, &(struct estimate){e.median / fits, e.low / fits, e.high / fits, e.n});
}

static void states_begin(struct bench *b)
{
    size_t n = b->model.n;

    for (size_t i = 0; i < n; i++)
        b->states[i] = optimizer_first(&b->model, i);
    memset(b->states + n, 0, 2 * n * sizeof(float));
    b->step = 0;
}

static int learn(struct bench *b)
{
    uint64_t waited_ns;
    int r = 0;

    for (unsigned i = 0; r == 0 && i < LEARNED_STEPS; i++) {
        r = optimizer_stream_step(b->stream, &waited_ns);
        if (r == 0)
            r = step_in_memory(b);
    }
    return r;
}

static int contest(struct bench *b, const struct row *row, struct figures *figures)
{
    struct contest c = {.metrics = {{"", "ms", GOAL_AT_MOST, false, GOAL}},
                        .n_metrics = 1,
                        .neighbour = through_bytes(b) ? "the longer of I/O and memory" : "the step in memory",
                        .ours = sample_store,
                        .theirs = sample_bound,
                        .ctx = b,
                        .seconds = b->options->seconds,
                        .quiet = b->options->quiet};

    snprintf(c.metrics[0].name, FIGURE_NAME_BYTES, "step, %s", row->name);
    int r = contest_run(&c, figures);
    if (r < 0)
        return r;
    (void)figure_series(b, MEMORY_MS, "ms", row->name, "in this process's memory", figures);
    (void)figure_series(b, WAITED_MS, "ms", row->name, "of it waiting for states", figures);
    if (!through_bytes(b))
        return 0;
    (void)figure_series(b, IO_MS, "ms", row->name, "what does not fit through a raw file", figures);
    figure_moved(b, READ_MB, row->name, "read", figures);
    figure_moved(b, WRITTEN_MB, row->name, "written", figures);
    return 0;
}

static int measure(struct micro *m)
{
    struct bench *b = m->ctx;

    b->session = m->session;
    memset(b->series, 0, sizeof(b->series));
    states_begin(b);
    int r = optimizer_stream_new(m->session, m->pool, &b->model, m->options->depth ? m->options->depth : WINDOW,
                                 &b->stream);
    if (r == 0)
        r = learn(b);
    if (r == 0)
        r = contest(b, b->row, m->figures);
    if (r == 0 && memcmp(b->model.param, b->param, b->model.n * sizeof(uint16_t)) != 0)
        r = micro_say("parameters", 0);
    optimizer_stream_free(steal_ptr(b->stream));
    return r;
}

static int measure_row(struct bench *b, struct figures *figures)
{
    const struct options *o = b->options;
    uint64_t share_bytes = b->row->dram_percent ? b->states_bytes / 100 * b->row->dram_percent
                                                : MAX(b->states_bytes / DEVICE_SHARE, (uint64_t)DRAM_BYTES_MIN);
    bool all_fit = b->row->dram_percent == 100;

    b->dram_bytes = o->dram_bytes ? o->dram_bytes : all_fit ? share_bytes + share_bytes / 4 : share_bytes;
    struct harness_options ho = {.dram_bytes = b->dram_bytes,
                                 .device_bytes = all_fit ? 0 : harness_device_bytes(2 * b->states_bytes),
                                 .object_bytes = BENCH_BLOCK_BYTES_MAX,
                                 .keep = o->keep,
                                 .quiet = o->quiet};
    return micro_daemon(o, &ho, measure, b, figures);
}

/* ── beginning and end ──────────────────────────────────────────────────────────────────────────────────────────── */

static void bench_deinit(struct bench *b)
{
    memory_unmap(b->states, b->states_bytes);
    memory_unmap(b->param, b->model.n * sizeof(uint16_t));
    memory_unmap(b->model.param, b->model.n * sizeof(uint16_t));
    memory_unmap(b->model.grad, b->model.n * sizeof(uint16_t));
    spw_workers_free(b->model.workers);
    devices_deinit(&b->raw);
}

static int memory_get(struct bench *b)
{
    struct optimizer_model *m = &b->model;

    b->states = memory_map(b->states_bytes, MEMORY_HUGE);
    b->param = memory_map(m->n * sizeof(uint16_t), MEMORY_HUGE);
    m->param = memory_map(m->n * sizeof(uint16_t), MEMORY_HUGE);
    m->grad = memory_map(m->n * sizeof(uint16_t), MEMORY_HUGE);
    if (!b->states || !b->param || !m->param || !m->grad)
        return -ENOMEM;
    for (size_t i = 0; i < m->n; i++)
        m->grad[i] = (uint16_t)(0x3c00 | (payload_mix(m->seed + 1, i) & 0x83ff)); /* ±0.008 to 2 */
    int r = spw_workers_new(0, &m->workers);
    return r < 0 ? micro_say("workers", r) : 0;
}

/* A file whose blocks have all been written: what was only promised by the file system would be slower. */
static int raw_make(struct bench *b)
{
    double unused;
    int r = devices_init(&b->raw, DEVICES_FILES, 1, 2 * b->states_bytes);

    if (r < 0) {
        fprintf(stderr, "spillbench: %s: %s\n", b->raw.folder, strerrordesc_np(-r));
        return r;
    }
    return disk_limit_run(&(const struct disk_limit){.path = b->raw.paths[0],
                                                     .file_bytes = 2 * b->states_bytes,
                                                     .block_bytes = RAW_BLOCK_BYTES,
                                                     .depth = RAW_DEPTH,
                                                     .is_write = true,
                                                     .bytes = 2 * b->states_bytes},
                          &unused);
}

static int measure_rows(struct bench *b, struct figures *figures)
{
    int r = memory_get(b);

    if (r == 0)
        r = raw_make(b);
    (void)figure_add(figures, "", (double)b->model.n, "parameters");
    (void)figure_add(figures, "MB", (double)b->states_bytes * 1e-6, "their states");
    for (size_t i = 0; r == 0 && i < ARRAY_LEN(table); i++) {
        b->row = &table[i];
        if (options_choose(b->options->only, b->row->word))
            r = measure_row(b, figures);
    }
    return r;
}

int bench_optimizer(int argc, char **argv)
{
    static struct figures figures;
    static struct options o = {.seed = 1};
    cleanup_(bench_deinit) struct bench b = {.options = &o};

    options_parse(argc, argv, rows, doc, &o);
    options_check_choice("only", o.only, words);
    o.seconds = o.seconds > 0 ? o.seconds : o.quick ? SECONDS_QUICK : SECONDS;
    b.model.seed = o.seed;
    b.model.n = round_up(o.n_parameters ? o.n_parameters : o.quick ? PARAMETERS_QUICK : PARAMETERS, SPW_TRAIN_BLOCK);
    b.states_bytes = b.model.n * STATE_BYTES;
    return micro_end(&o, &figures, measure_rows(&b, &figures));
}
