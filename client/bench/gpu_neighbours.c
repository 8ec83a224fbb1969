/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a spill at full rate takes from the rest of the GPU: work that has nothing to do with it, alone and beside it, in
 * turns. The work is timed by events in its own stream; the spill runs in a thread of its own from before the first of
 * them until after the last. Small products are as a decoder has them: a matrix times one column, which is reading that matrix.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "client/bench/gpu.h"
#include "client/bench/gpu_load.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define GOAL 0.95
#define SAMPLE_SECONDS 0.2
#define SAMPLE_SECONDS_QUICK 0.005
#define LAUNCHES_MAX 20000
#define LOAD_BYTES (1 * GIB)
#define LOAD_BYTES_QUICK (64 * MIB)
#define SMALL_READ_BYTES (32 * MIB)
#define ROUNDS 2000 /* of a large product of our own */
#define SIDE 8192   /* of cuBLAS's matrices */
#define SIDE_QUICK 1024
#define SETTLE_NS 5000000 /* until the spill is at its full rate */

enum work { READ, READ_SMALL, MULTIPLY, CUBLAS, CUBLAS_SMALL, WORKS };
static const char *const names[WORKS] = {
    [READ] = "reading memory",
    [READ_SMALL] = "reading 32 MiB at a time, as a small product does",
    [MULTIPLY] = "products of bf16 in registers",
    [CUBLAS] = "cuBLAS, bf16, a product of square matrices",
    [CUBLAS_SMALL] = "cuBLAS, bf16, a matrix times one column",
};

struct neighbours {
    struct gpu_bench *bench;
    struct gpu_load load;
    struct CUstream_st *stream;
    struct CUevent_st *begin, *end;
    enum work work;
    unsigned n_launches;
    int side;
    /* the spill */
    bool stop;
    int spill_result;
    struct gpu_pumped pumped;
    uint32_t n;
    double spilled[SAMPLES_MAX];
};

static int launch(struct neighbours *n, unsigned i)
{
    const struct gpu_load *load = &n->load;
    uint64_t matrix_bytes = (uint64_t)n->side * (uint64_t)n->side * 2;

    switch (n->work) {
    case READ:
        return gpu_load_read(load, load->size_bytes, 0, n->stream);
    case READ_SMALL:
        return gpu_load_read(load, SMALL_READ_BYTES, i, n->stream);
    case MULTIPLY:
        return gpu_load_multiply(load, n->bench->options->quick ? 10 : ROUNDS, n->stream);
    case CUBLAS:
        return gpu_cublas_multiply(load->cublas, load->memory, load->memory + matrix_bytes,
                                   load->memory + 2 * matrix_bytes, n->side, n->side, n->side);
    case CUBLAS_SMALL: /* not always the same matrix, which would be in a cache */
        return gpu_cublas_multiply(load->cublas, load->memory + i % 2 * matrix_bytes, load->memory + 2 * matrix_bytes,
                                   load->memory + 2 * matrix_bytes + MIB, n->side, 1, n->side);
    default:
        return -EINVAL;
    }
}

/* Launches it so many times; how long one took. */
static int work(struct neighbours *n, unsigned n_launches, double *ret_ms)
{
    struct gpu_bench *b = n->bench;
    float ms = 0;
    int r = CU(b, EventRecord(n->begin, n->stream));

    for (unsigned i = 0; r == 0 && i < n_launches; i++)
        r = launch(n, i);
    if (r == 0)
        r = CU(b, EventRecord(n->end, n->stream));
    if (r == 0)
        r = CU(b, EventSynchronize(n->end));
    if (r == 0)
        r = CU(b, EventElapsedTime(&ms, n->begin, n->end));
    *ret_ms = (double)ms / n_launches;
    return r;
}

/* As many launches as take a sample's time. */
static int calibrate(struct neighbours *n)
{
    double ms, sample_ms = (n->bench->options->quick ? SAMPLE_SECONDS_QUICK : SAMPLE_SECONDS) * 1e3;
    int r = work(n, 4, &ms);

    if (r == 0)
        r = work(n, 4, &ms);
    n->n_launches = ms > 0 ? (unsigned)MIN(sample_ms / ms + 1, (double)LAUNCHES_MAX) : LAUNCHES_MAX;
    if (n->bench->options->quick)
        n->n_launches = MIN(n->n_launches, 4U);
    return r;
}

static int sample_alone(void *ctx, double ret_values[static METRICS_MAX])
{
    struct neighbours *n = ctx;
    double ms = 0;
    int r = work(n, n->n_launches, &ms);

    ret_values[0] = 1e3 / ms;
    return r;
}

static void *spill_main(void *arg)
{
    struct neighbours *n = arg;

    n->spill_result = gpu_set_pump(n->bench, false, 0, &n->stop, &n->pumped);
    return NULL;
}

static int sample_beside(void *ctx, double ret_values[static METRICS_MAX])
{
    struct neighbours *n = ctx;
    pthread_t thread;

    n->stop = false;
    int r = -pthread_create(&thread, NULL, spill_main, n);
    if (r < 0)
        return r;
    nanosleep(&(struct timespec){.tv_nsec = SETTLE_NS}, NULL);
    r = sample_alone(n, ret_values);
    __atomic_store_n(&n->stop, true, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    if (r == 0)
        r = n->spill_result;
    if (r == 0 && n->n < SAMPLES_MAX)
        n->spilled[n->n++] = (double)n->pumped.bytes / (double)(n->pumped.end_ns - n->pumped.start_ns);
    return r;
}

static int contest(struct neighbours *n)
{
    struct gpu_bench *b = n->bench;
    struct contest c = {.metrics = {{"", "/s", GOAL_AT_LEAST, false, GOAL}},
                        .n_metrics = 1,
                        .neighbour = "alone",
                        .ours = sample_beside,
                        .theirs = sample_alone,
                        .ctx = n,
                        .seconds = b->options->seconds,
                        .quiet = b->options->quiet};
    int r = calibrate(n);

    n->n = 0;
    snprintf(c.metrics[0].name, FIGURE_NAME_BYTES, "beside a spill: %s", names[n->work]);
    if (r == 0)
        r = contest_run(&c, b->micro->figures);
    if (r < 0)
        return r;
    struct estimate e = pairs_estimate(n->spilled, n->n);
    figure_measured(figure_add(b->micro->figures, "GB/s", e.median, "the spill beside: %s", names[n->work]), &e);
    return 0;
}

static int measure(struct neighbours *n)
{
    struct gpu_bench *b = n->bench;
    int r = gpu_cublas_open(n->stream, &n->load.cublas);

    if (r < 0 && r != -ENOENT)
        return r;
    r = gpu_set_check(b);
    for (n->work = READ; r == 0 && n->work < WORKS; n->work++)
        if (n->work < CUBLAS || n->load.cublas)
            r = contest(n);
    return r;
}

int gpu_neighbours_measure(struct micro *m)
{
    struct gpu_bench *b = m->ctx;
    cleanup_free struct neighbours *n = calloc(1, sizeof(*n));
    int r = n ? gpu_driver_open(b, true) : -ENOMEM;

    if (r == 0)
        r = CU(b, StreamCreateWithPriority(&n->stream, NV_STREAM_NON_BLOCKING, 0));
    if (r == 0)
        r = CU(b, EventCreate(&n->begin, NV_EVENT_DEFAULT));
    if (r == 0)
        r = CU(b, EventCreate(&n->end, NV_EVENT_DEFAULT));
    if (r < 0)
        return r;
    n->bench = b;
    n->side = b->options->quick ? SIDE_QUICK : SIDE;
    r = gpu_load_open(b, b->options->quick ? LOAD_BYTES_QUICK : LOAD_BYTES, &n->load);
    if (r == -ENOTSUP)
        return 0;
    if (r == 0)
        r = gpu_set_open(
            b, &(struct gpu_shape){
                   .piece_bytes = 16 * KIB, .item_bytes = 2 * MIB, .class_id = SPW_CLASS_KV, .durability = SPW_CACHE});
    if (r == 0)
        r = measure(n);
    return r < 0 ? r : gpu_set_close(b);
}
