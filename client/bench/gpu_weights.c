/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A model's weights into a GPU, as one set: from the daemon's memory, beside the link, or from its device, whose memory holds
 * a small part of them, beside the device. They are tensors, and were put there from the GPU. On the GPU they lie in memory
 * of this process's own, through staging memory, or in memory that the daemon handed out, straight. One thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/bench/gpu.h"
#include "client/bench/payload.h"
#include "client/bench/process.h"

#define GOAL 0.97
#define TENSOR_BYTES (256 * MIB)
#define TENSOR_BYTES_QUICK (8 * MIB)

/* ── a set ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

static int ranges_new(struct gpu_bench *b)
{
    struct gpu_weights *w = &b->weights;
    int r = 0;

    w->ranges = calloc(w->n, sizeof(*w->ranges));
    w->statuses = calloc(w->n, sizeof(*w->statuses));
    if (!w->ranges || !w->statuses)
        return -ENOMEM;
    for (uint32_t i = 0; r == 0 && i < w->n; i++) {
        w->ranges[i] =
            (struct spw_gpu_range){.bytes = w->tensor_bytes, .address = w->address + (uint64_t)i * w->tensor_bytes};
        payload_key(w->tensor_bytes, i, &w->ranges[i].key);
        r = spw_tensor_open(w->space, &w->ranges[i].key, w->tensor_bytes);
    }
    return r < 0 ? micro_say("spw_tensor_open", r) : 0;
}

static int weights_open(struct gpu_bench *b, uint64_t tensor_bytes, bool is_straight)
{
    struct spw_space_options so = {.class_id = SPW_CLASS_WEIGHTS, .durability = SPW_SCRATCH};
    struct gpu_weights *w = &b->weights;
    struct gpu_numbers numbers = {0};

    *w = (struct gpu_weights){
        .address = b->cache, .tensor_bytes = tensor_bytes, .n = (uint32_t)(b->set_bytes / tensor_bytes)};
    memcpy(so.digest, &tensor_bytes, sizeof(tensor_bytes));
    int r = spw_space_open(b->micro->pool, &so, &w->space);
    if (r < 0)
        return micro_say("a space", r);
    r = gpu_attach(w->space, &w->gpu);
    if (r == 0 && is_straight) {
        r = spw_gpu_alloc(w->gpu, b->set_bytes, &w->memory);
        if (r < 0)
            return micro_say("spw_gpu_alloc", r);
        w->address = spw_gpu_memory_address(w->memory);
    }
    if (r == 0)
        r = ranges_new(b);
    if (r == 0)
        r = gpu_numbers_get(b->micro->session, &numbers);
    gpu_cpu_init(&b->cpu, b->daemon_pid, numbers.helper_pid);
    return r;
}

static int weights_close(struct gpu_bench *b)
{
    struct gpu_weights *w = &b->weights;
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < w->n; i++)
        r = spw_delete(w->space, &w->ranges[i].key, 1, w->statuses);
    spw_gpu_memory_free(w->memory);
    spw_gpu_detach(w->gpu);
    free(w->ranges);
    free(w->statuses);
    *w = (struct gpu_weights){.n = 0};
    return r < 0 ? micro_say("delete", r) : 0;
}

/* ── moving it ──────────────────────────────────────────────────────────────────────────────────────────────────── */

static int job_end(const struct gpu_weights *w, const char *what, spw_gpu_job *job)
{
    int r = spw_gpu_job_wait(job, SPW_GPU_DONE, GPU_TIMEOUT_MS);

    if (r < 0) {
        (void)micro_say(what, r);
    } else if (spw_gpu_job_value(job) != w->n) {
        fprintf(stderr, "spillbench: %s: %u of %u tensors\n", what, (unsigned)spw_gpu_job_value(job), w->n);
        r = -EIO;
    }
    spw_gpu_job_free(job);
    return r;
}

static int put(struct gpu_bench *b)
{
    struct gpu_weights *w = &b->weights;
    spw_gpu_job *job;
    int r = spw_gpu_put_ranges(w->gpu, w->space, w->ranges, w->n, b->streams[0], GPU_TIMEOUT_MS, w->statuses, &job);

    return r < 0 ? micro_say("spw_gpu_put_ranges", r) : job_end(w, "spw_gpu_put_ranges", job);
}

static int activate(struct gpu_bench *b)
{
    struct gpu_weights *w = &b->weights;
    spw_gpu_job *job;
    int r = spw_gpu_activate(w->gpu, w->space, w->ranges, w->n, b->streams[0], GPU_TIMEOUT_MS, &job);

    return r < 0 ? micro_say("spw_gpu_activate", r) : job_end(w, "spw_gpu_activate", job);
}

static int check(struct gpu_bench *b)
{
    uint64_t bytes = b->weights.n * b->weights.tensor_bytes;
    int r = gpu_driver_fill(b, b->weights.address, bytes, b->weights.tensor_bytes);

    if (r == 0)
        r = put(b);
    if (r == 0)
        r = CU(b, MemsetD8(b->weights.address, 0, bytes));
    if (r == 0)
        r = CU(b, StreamSynchronize(NULL)); /* it may return before it is done, and ours do not wait for it */
    if (r == 0)
        r = activate(b);
    return r < 0 ? r : gpu_driver_check(b, b->weights.address, bytes, b->weights.tensor_bytes);
}

static int sample(void *ctx, double ret_values[static METRICS_MAX])
{
    struct gpu_bench *b = ctx;
    uint64_t bytes = b->weights.n * b->weights.tensor_bytes;

    gpu_cpu_begin(&b->cpu);
    uint64_t start_ns = now_ns();
    int r = activate(b);
    ret_values[0] = (double)bytes / (double)(now_ns() - start_ns);
    gpu_cpu_end(&b->cpu, bytes);
    return r;
}

/* Only what was read meanwhile counts: what is in memory was no work. */
static int sample_stored(void *ctx, double ret_values[static METRICS_MAX])
{
    struct gpu_bench *b = ctx;
    double before = 0, after = 0, all = (double)(b->weights.n * b->weights.tensor_bytes);
    int r = gpu_disk_counted(b, true, &before);

    if (r == 0)
        r = sample(b, ret_values);
    if (r == 0)
        r = gpu_disk_counted(b, true, &after);
    ret_values[0] *= MIN(all, after - before) / all;
    return r;
}

static int measure(struct gpu_bench *b, bool is_stored, bool is_straight)
{
    struct contest c = {.metrics = {{"", "GB/s", GOAL_AT_LEAST, false, is_stored ? GPU_DISK_GOAL : GOAL}},
                        .n_metrics = 1,
                        .neighbour = is_stored ? GPU_RAW_READS : GPU_LINK,
                        .ours = is_stored ? sample_stored : sample,
                        .theirs = is_stored ? gpu_disk_sample_raw_in : gpu_dma_sample_in,
                        .ctx = b,
                        .seconds = b->options->seconds,
                        .quiet = b->options->quiet};
    char what[FIGURE_NAME_BYTES / 2];
    int r = weights_open(b, b->options->quick ? TENSOR_BYTES_QUICK : TENSOR_BYTES, is_straight);

    if (r == 0)
        r = check(b);
    snprintf(what, sizeof(what), "weights, %s to GPU, %s", is_stored ? "NVMe" : "memory",
             is_straight ? "spw_gpu_alloc()" : "staged");
    snprintf(c.metrics[0].name, FIGURE_NAME_BYTES, "%s, %llu MiB in tensors of %u MiB", what,
             (unsigned long long)(b->set_bytes / MIB), (unsigned)(b->weights.tensor_bytes / MIB));
    if (r == 0)
        r = contest_run(&c, b->micro->figures);
    if (r == 0)
        gpu_cpu_say(&b->cpu, what, b->micro->figures);
    return r < 0 ? r : weights_close(b);
}

int gpu_weights_measure(struct micro *m)
{
    int r = gpu_driver_open(m->ctx, true);

    if (r == 0)
        r = measure(m->ctx, false, false);
    return r < 0 ? r : measure(m->ctx, false, true);
}

int gpu_stored_weights_measure(struct micro *m)
{
    int r = gpu_driver_open(m->ctx, true);

    return r < 0 ? r : measure(m->ctx, true, true);
}
