/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocks between a GPU's memory and the store, beside the link: large copies from and to pinned memory, in the same run.
 *
 * A sample moves SET_BYTES of scattered blocks, all of them resident in the daemon's memory; bytes are checked once for each
 * shape. CPU time is what this process, the daemon and the GPU's helper used during our samples. One thread, beside the
 * library's.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/bench/bench.h"
#include "client/bench/compare.h"
#include "client/bench/micro.h"
#include "client/bench/payload.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"
#include "include/spillway/gpu.h"
#include "io/cuda_driver.h"

#define SET_BYTES (2 * GIB)
#define SET_BYTES_QUICK (128 * MIB)
#define DMA_BYTES (16 * MIB) /* of one copy of the ceiling */
#define PINNED_BYTES (256 * MIB)
#define TIMEOUT_MS 30000
#define LATENCY_ROUNDS 200
#define LATENCY_BYTES (128 * KIB)
#define PIECES_MAX 512

static const char doc[] = "Measures blocks between a GPU's memory and the store, beside the link.";

struct gpu_bench {
    const struct cuda_driver *cu;
    const struct options *options;
    struct micro *micro;
    spw_space *space;
    spw_gpu *gpu;
    spw_gpu_layout *layout, *other;
    struct CUstream_st *streams[2];
    struct CUevent_st *event;
    uint64_t cache, back; /* device memory: where blocks are, and where they are fetched to */
    uint64_t dma;
    void *pinned;
    uint64_t set_bytes;
    uint32_t piece_bytes, item_bytes, n_blocks;
    size_t n;
    struct spw_key *keys;
    uint32_t *ids;
    int32_t *statuses;
    bool stored, both;
    double cpu_s, helper_cpu_s, busy_s; /* of our samples: this process; daemon and helper; how long */
    uint64_t moved_bytes;
};

#define CU(b, call)                                                                                                    \
    ({                                                                                                                 \
        int cu_ = (b)->cu->call;                                                                                       \
        cu_ == NV_SUCCESS ? 0 : cuda_say(#call, cu_);                                                                  \
    })

static int cuda_say(const char *what, int result)
{
    fprintf(stderr, "spillbench: %s: %s\n", what, cuda_error_name(result));
    return -EIO;
}

/* ── the ceiling ────────────────────────────────────────────────────────────────────────────────────────────────── */

static int dma_all(struct gpu_bench *b, bool in, struct CUstream_st *stream, uint64_t at)
{
    int r = 0;

    for (uint64_t done = 0; r == 0 && done < b->set_bytes; done += DMA_BYTES) {
        char *host = (char *)b->pinned + (at + done) % PINNED_BYTES;

        r = in ? CU(b, MemcpyHtoDAsync(b->dma + (at + done) % PINNED_BYTES, host, DMA_BYTES, stream))
               : CU(b, MemcpyDtoHAsync(host, b->dma + (at + done) % PINNED_BYTES, DMA_BYTES, stream));
    }
    return r;
}

static int sample_dma(struct gpu_bench *b, bool in, double *ret_speed)
{
    uint64_t start_ns = now_ns();
    int r = dma_all(b, in, b->streams[0], 0);

    if (r == 0 && b->both)
        r = dma_all(b, !in, b->streams[1], PINNED_BYTES / 2);
    if (r == 0)
        r = CU(b, StreamSynchronize(b->streams[0]));
    if (r == 0)
        r = CU(b, StreamSynchronize(b->streams[1]));
    *ret_speed = (double)(b->set_bytes * (b->both ? 2 : 1)) / (double)(now_ns() - start_ns);
    return r;
}

static int sample_dma_out(void *ctx, double ret_speed[static METRICS_MAX])
{
    return sample_dma(ctx, false, &ret_speed[0]);
}

static int sample_dma_in(void *ctx, double ret_speed[static METRICS_MAX])
{
    return sample_dma(ctx, true, &ret_speed[0]);
}

/* ── ours ───────────────────────────────────────────────────────────────────────────────────────────────────────── */

static double cpu_of(pid_t pid)
{
    struct process_usage usage;

    return process_usage(pid, &usage) == 0 ? usage.cpu_s : 0;
}

/* The daemon's children are helpers. */
static double cpu_of_daemon(pid_t daemon)
{
    double cpu_s = cpu_of(daemon);
    DIR *proc = opendir("/proc");

    // cppcheck-suppress readdirCalled; nobody else reads this stream
    for (struct dirent *e; proc && (e = readdir(proc));) {
        char path[288];
        int parent = 0;

        snprintf(path, sizeof(path), "/proc/%s/stat", e->d_name);
        cleanup_fclose FILE *f = atoi(e->d_name) > 0 ? fopen(path, "re") : NULL;
        if (f && fscanf(f, "%*d %*s %*c %d", &parent) == 1 && parent == daemon)
            cpu_s += cpu_of(atoi(e->d_name));
    }
    if (proc)
        closedir(proc);
    return cpu_s;
}

static int job_end(spw_gpu_job *job, const int32_t *statuses, size_t n)
{
    int r = spw_gpu_job_wait(job, SPW_GPU_DONE, TIMEOUT_MS);

    if (r < 0) {
        (void)micro_say("a job", r);
    } else if (spw_gpu_job_value(job) != n) {
        size_t i = 0;

        while (i < n && statuses[i] == 0)
            i++;
        fprintf(stderr, "spillbench: %zu of %zu blocks were moved; block %zu: %s\n", (size_t)spw_gpu_job_value(job), n,
                i, i < n ? strerrordesc_np(-statuses[i]) : "?");
        r = -EIO;
    }
    spw_gpu_job_free(job);
    return r;
}

static int forget(struct gpu_bench *b, size_t from, size_t n)
{
    int r = spw_delete(b->space, b->keys + from, n, b->statuses);

    return r < 0 ? micro_say("delete", r) : 0;
}

static int spill(struct gpu_bench *b, size_t from, size_t n, spw_gpu_job **ret_job)
{
    int r = spw_spill(b->layout, b->keys + from, b->ids + from, n, b->streams[0], 0, TIMEOUT_MS, b->statuses, ret_job);

    return r < 0 ? micro_say("spw_spill", r) : 0;
}

static int fetch(struct gpu_bench *b, size_t from, size_t n, spw_gpu_job **ret_job)
{
    int r = spw_fetch(b->other, b->keys + from, b->ids + from, n, b->streams[1], 0, TIMEOUT_MS, b->statuses + b->n,
                      ret_job);

    return r < 0 ? micro_say("spw_fetch", r) : 0;
}

/* Of this process, to the nanosecond. */
static double cpu_of_ours(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* Times a move of n blocks (with `both`: of n each way) and what CPUs had to do with it. Looking at other processes takes
 * milliseconds of our own, which are not the library's. */
static int timed(struct gpu_bench *b, bool spills, bool fetches, size_t n, double *ret_speed)
{
    double daemon_s = cpu_of_daemon(b->micro->daemon_pid), cpu_s = cpu_of_ours();
    uint64_t start_ns = now_ns(), bytes = n * b->item_bytes * ((spills ? 1 : 0) + (fetches ? 1 : 0));
    spw_gpu_job *out = NULL, *in = NULL;
    int r = spills ? spill(b, fetches ? n : 0, n, &out) : 0;

    if (r == 0 && fetches)
        r = fetch(b, 0, n, &in);
    if (r == 0 && out)
        r = job_end(out, b->statuses, n);
    if (r == 0 && in)
        r = job_end(in, b->statuses + b->n, n);
    double took_s = seconds_since(start_ns);

    b->busy_s += took_s;
    b->cpu_s += cpu_of_ours() - cpu_s;
    b->helper_cpu_s += cpu_of_daemon(b->micro->daemon_pid) - daemon_s;
    b->moved_bytes += bytes;
    *ret_speed = (double)bytes / took_s / 1e9;
    return r;
}

static int sample_spill(void *ctx, double ret_speed[static METRICS_MAX])
{
    struct gpu_bench *b = ctx;
    int r = forget(b, 0, b->n);

    return r < 0 ? r : timed(b, true, false, b->n, &ret_speed[0]);
}

static int sample_fetch(void *ctx, double ret_speed[static METRICS_MAX])
{
    struct gpu_bench *b = ctx;

    return timed(b, false, true, b->n, &ret_speed[0]);
}

/* Half of the set each way. */
static int sample_both(void *ctx, double ret_speed[static METRICS_MAX])
{
    struct gpu_bench *b = ctx;
    int r = forget(b, b->n / 2, b->n / 2);

    return r < 0 ? r : timed(b, true, true, b->n / 2, &ret_speed[0]);
}

static int sample_latency(void *ctx, double ret_us[static METRICS_MAX])
{
    struct gpu_bench *b = ctx;
    uint64_t took_ns = 0;

    for (unsigned i = 0; i < LATENCY_ROUNDS; i++) {
        uint64_t start_ns = now_ns();
        spw_gpu_job *job;
        int r = fetch(b, i % b->n, 1, &job);

        if (r == 0 && (r = spw_gpu_job_join(job, b->streams[0], TIMEOUT_MS)) < 0)
            r = micro_say("spw_gpu_job_join", r);
        if (r == 0)
            r = CU(b, StreamSynchronize(b->streams[0]));
        took_ns += now_ns() - start_ns;
        if (r == 0)
            r = job_end(job, b->statuses + b->n, 1);
        if (r < 0)
            return r;
    }
    ret_us[0] = (double)took_ns / LATENCY_ROUNDS / 1e3;
    return 0;
}

static int sample_copy_latency(void *ctx, double ret_us[static METRICS_MAX])
{
    struct gpu_bench *b = ctx;
    uint64_t start_ns = now_ns();
    int r = 0;

    for (unsigned i = 0; r == 0 && i < LATENCY_ROUNDS; i++) {
        r = CU(b, MemcpyHtoDAsync(b->dma, b->pinned, LATENCY_BYTES, b->streams[1]));
        if (r == 0)
            r = CU(b, EventRecord(b->event, b->streams[1]));
        if (r == 0)
            r = CU(b, StreamWaitEvent(b->streams[0], b->event, 0));
        if (r == 0)
            r = CU(b, StreamSynchronize(b->streams[0]));
    }
    ret_us[0] = (double)(now_ns() - start_ns) / LATENCY_ROUNDS / 1e3;
    return r;
}

/* ── shapes ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

static int layout_new(struct gpu_bench *b, uint64_t memory, spw_gpu_layout **ret_layout)
{
    struct spw_gpu_piece pieces[PIECES_MAX];
    uint32_t n = b->item_bytes / b->piece_bytes;

    for (uint32_t i = 0; i < n; i++) /* a tensor a piece */
        pieces[i] = (struct spw_gpu_piece){.base = memory + (uint64_t)i * b->n_blocks * b->piece_bytes,
                                           .stride_bytes = b->piece_bytes,
                                           .bytes = b->piece_bytes};
    int r = spw_gpu_layout_new(b->gpu, b->space, pieces, n, b->n_blocks, ret_layout);

    return r < 0 ? micro_say("spw_gpu_layout_new", r) : 0;
}

/* Blocks in an order that is far from theirs in memory. */
static int lists_new(struct gpu_bench *b)
{
    b->n = b->n_blocks;
    b->keys = calloc(b->n, sizeof(*b->keys));
    b->ids = calloc(b->n, sizeof(*b->ids));
    b->statuses = calloc(2 * b->n, sizeof(*b->statuses)); /* of a spill, and of a fetch */
    if (!b->keys || !b->ids || !b->statuses)
        return -ENOMEM;
    for (size_t i = 0; i < b->n; i++) {
        payload_key(b->item_bytes, i, &b->keys[i]);
        b->ids[i] = (uint32_t)i;
    }
    for (size_t i = b->n - 1; i > 0; i--) {
        size_t k = payload_mix(i, 7) % (i + 1);
        uint32_t id = b->ids[i];

        b->ids[i] = b->ids[k];
        b->ids[k] = id;
    }
    return 0;
}

/* What was spilled and fetched is what was there, all of it. */
static int check(struct gpu_bench *b)
{
    cleanup_free uint64_t *before = malloc(b->set_bytes), *after = malloc(b->set_bytes);
    double speed[METRICS_MAX];

    if (!before || !after)
        return -ENOMEM;
    for (uint64_t i = 0; i < b->set_bytes / sizeof(*before); i++)
        before[i] = (i + b->item_bytes) * UINT64_C(0x9e3779b97f4a7c15);
    int r = CU(b, MemcpyHtoD(b->cache, before, b->set_bytes));
    if (r == 0)
        r = CU(b, MemsetD8(b->back, 0, b->set_bytes));
    if (r == 0)
        r = sample_spill(b, speed);
    if (r == 0)
        r = sample_fetch(b, speed);
    if (r == 0)
        r = CU(b, MemcpyDtoH(after, b->back, b->set_bytes));
    if (r == 0 && memcmp(before, after, b->set_bytes) != 0) {
        fprintf(stderr, "spillbench: blocks of %u bytes: other bytes came back\n", b->item_bytes);
        r = -EBADMSG;
    }
    b->cpu_s = b->helper_cpu_s = b->busy_s = 0;
    b->moved_bytes = 0;
    return r;
}

static int contest(struct gpu_bench *b, const char *name, double goal, sample_fn ours, sample_fn theirs)
{
    struct contest c = {.metrics = {{"", "GB/s", GOAL_AT_LEAST, false, goal}},
                        .n_metrics = 1,
                        .neighbour = "large copies from and to pinned memory",
                        .ours = ours,
                        .theirs = theirs,
                        .ctx = b,
                        .seconds = b->options->seconds,
                        .quiet = b->options->quiet};

    snprintf(c.metrics[0].name, FIGURE_NAME_BYTES, "%s, pieces of %u KiB, objects of %u KiB", name,
             (unsigned)(b->piece_bytes / KIB), (unsigned)(b->item_bytes / KIB));
    return contest_run(&c, b->micro->figures);
}

static void say_cpu(struct gpu_bench *b)
{
    struct figures *figures = b->micro->figures;

    if (b->moved_bytes == 0)
        return;
    figure_goal(figure_add(figures, "ms/GiB", b->cpu_s * 1e3 / ((double)b->moved_bytes / (double)GIB),
                           "client's CPU, objects of %u KiB", (unsigned)(b->item_bytes / KIB)),
                GOAL_AT_MOST, 1);
    figure_goal(figure_add(figures, "cores", b->helper_cpu_s / b->busy_s,
                           "daemon's and helper's CPU, objects of %u KiB", (unsigned)(b->item_bytes / KIB)),
                GOAL_AT_MOST, 1);
}

static int speeds(struct gpu_bench *b)
{
    double goal = b->piece_bytes < 16 * KIB ? 0.95 : 0.98;
    int r = check(b);

    b->both = false;
    if (r == 0)
        r = contest(b, "spill", goal, sample_spill, sample_dma_out);
    if (r == 0)
        r = contest(b, "fetch", goal, sample_fetch, sample_dma_in);
    b->both = true;
    if (r == 0)
        r = contest(b, "both ways", 0.95, sample_both, sample_dma_in);
    if (r == 0)
        say_cpu(b);
    return r;
}

static int latency(struct gpu_bench *b)
{
    struct contest c = {.metrics = {{"one block of 128 KiB in memory, stream to stream", "us", GOAL_AT_MOST, false, 3}},
                        .n_metrics = 1,
                        .neighbour = "a copy from pinned memory, and an event",
                        .ours = sample_latency,
                        .theirs = sample_copy_latency,
                        .ctx = b,
                        .seconds = b->options->seconds,
                        .quiet = b->options->quiet};
    int r = check(b);

    return r < 0 ? r : contest_run(&c, b->micro->figures);
}

/* A space, an attachment and layouts for one shape. */
static int shape(struct gpu_bench *b, uint32_t piece_bytes, uint32_t item_bytes, int (*measure)(struct gpu_bench *b))
{
    struct spw_space_options so = {.item_bytes = item_bytes, .class_id = SPW_CLASS_KV, .durability = SPW_CACHE};
    int r;

    memcpy(so.digest, &item_bytes, sizeof(item_bytes));
    memcpy(so.digest + sizeof(item_bytes), &piece_bytes, sizeof(piece_bytes));
    b->piece_bytes = piece_bytes;
    b->item_bytes = item_bytes;
    b->n_blocks = (uint32_t)(b->set_bytes / item_bytes);
    r = spw_space_open(b->micro->pool, &so, &b->space);
    if (r < 0)
        return micro_say("a space", r);
    for (unsigned i = 0; i < 500 && (r = spw_gpu_attach(b->space, NULL, &b->gpu)) == -EAGAIN; i++)
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    if (r < 0)
        return micro_say("spw_gpu_attach", r);
    r = lists_new(b);
    if (r == 0)
        r = layout_new(b, b->cache, &b->layout);
    if (r == 0)
        r = layout_new(b, b->back, &b->other);
    if (r == 0)
        r = measure(b);
    if (r == 0)
        r = forget(b, 0, b->n);
    spw_gpu_detach(b->gpu);
    free(b->keys);
    free(b->ids);
    free(b->statuses);
    b->keys = NULL;
    b->ids = NULL;
    b->statuses = NULL;
    return r;
}

static int shapes(struct gpu_bench *b)
{
    static const struct {
        uint32_t piece_bytes, item_bytes;
    } all[] = {{2 * MIB, 2 * MIB},   {16 * KIB, 2 * MIB},  {4 * KIB, 2 * MIB}, {256 * KIB, 256 * KIB},
               {64 * KIB, 64 * KIB}, {16 * KIB, 16 * KIB}, {4 * KIB, 4 * KIB}};
    int r = 0;

    for (size_t i = 0; r == 0 && i < (b->options->quick ? 2 : ARRAY_LEN(all)); i++)
        r = shape(b, all[i].piece_bytes, all[i].item_bytes, speeds);
    return r < 0 ? r : shape(b, LATENCY_BYTES, LATENCY_BYTES, latency);
}

static int gpu_open(struct gpu_bench *b)
{
    struct CUctx_st *context;
    int r = CU(b, Init(0));

    if (r == 0)
        r = CU(b, DevicePrimaryCtxRetain(&context, 0));
    if (r == 0)
        r = CU(b, CtxSetCurrent(context));
    for (unsigned i = 0; r == 0 && i < ARRAY_LEN(b->streams); i++)
        r = CU(b, StreamCreateWithPriority(&b->streams[i], NV_STREAM_NON_BLOCKING, 0));
    if (r == 0)
        r = CU(b, EventCreate(&b->event, NV_EVENT_DISABLE_TIMING));
    if (r == 0)
        r = CU(b, MemAlloc(&b->cache, b->set_bytes));
    if (r == 0)
        r = CU(b, MemAlloc(&b->back, b->set_bytes));
    if (r == 0)
        r = CU(b, MemAlloc(&b->dma, PINNED_BYTES));
    return r < 0 ? r : CU(b, MemHostAlloc(&b->pinned, PINNED_BYTES, 0));
}

static int measure_gpu(struct micro *m)
{
    struct gpu_bench *b = m->ctx;
    int r = gpu_open(b);

    b->micro = m;
    return r < 0 ? r : shapes(b);
}

int bench_gpu(int argc, char **argv)
{
    static struct figures figures;
    struct options o;
    struct gpu_bench b = {.options = &o};

    micro_options(argc, argv, doc, &o);
    if (cuda_driver_load(&b.cu) < 0) {
        fprintf(stderr, "SKIP: %s\n", cuda_driver_problem());
        return BENCH_BROKEN;
    }
    b.set_bytes = o.quick ? SET_BYTES_QUICK : SET_BYTES;
    struct harness_options harness = {.dram_bytes = 2 * b.set_bytes, .quiet = o.quiet};

    return micro_end(&o, &figures, micro_daemon(&o, &harness, measure_gpu, &b, &figures));
}
