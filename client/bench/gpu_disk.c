/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between a GPU and a device, by way of a memory that holds a small part of it, out and in, beside what the device itself
 * can do. Only what was written or read meanwhile counts: what is still or already in memory was no
 * work. Our reads are compared with raw ones of the daemon's own file, where its blocks lie, our writes with raw ones to
 * another. Blocks are `scratch`, which is never dropped. One thread.
 */
#include <stdio.h>

#include "client/bench/admin.h"
#include "client/bench/disk_limit.h"
#include "client/bench/gpu.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define DEPTH 32
#define RAW_BLOCK_BYTES (2 * MIB)
#define RAW_BYTES (4 * GIB) /* of a sample, at most */
#define STAGING_GOAL_MIB 128

int gpu_disk_counted(struct gpu_bench *b, bool is_in, double *ret_bytes)
{
    cleanup_json struct json_object *reply = NULL;
    int r = admin_get(b->micro->session, "iostat", &reply);

    if (r == 0)
        *ret_bytes = admin_number(reply, is_in ? "engines.read_bytes" : "engines.written_bytes");
    return r;
}

static int sample(struct gpu_bench *b, bool is_in, double ret_values[static METRICS_MAX])
{
    double before = 0, after = 0, all = (double)b->set.n * b->set.item_bytes;
    int r = gpu_disk_counted(b, is_in, &before);

    if (r < 0)
        return r;
    r = is_in ? gpu_set_sample_fetch(b, ret_values) : gpu_set_sample_spill(b, ret_values);
    if (r == 0)
        r = gpu_disk_counted(b, is_in, &after);
    ret_values[0] *= MIN(all, after - before) / all;
    return r;
}

static int sample_out(void *ctx, double ret_values[static METRICS_MAX])
{
    return sample(ctx, false, ret_values);
}

static int sample_in(void *ctx, double ret_values[static METRICS_MAX])
{
    return sample(ctx, true, ret_values);
}

static int raw(const struct gpu_bench *b, bool is_in, double ret_values[static METRICS_MAX])
{
    const struct disk_limit limit = {.path = b->disk_paths[is_in ? 0 : 1],
                                     .file_bytes = is_in ? b->set_bytes : b->disk_bytes,
                                     .block_bytes = RAW_BLOCK_BYTES,
                                     .depth = DEPTH,
                                     .is_write = !is_in,
                                     .bytes = MIN(b->set_bytes, RAW_BYTES)};
    double bytes_a_s = 0;
    int r = disk_limit_run(&limit, &bytes_a_s);

    ret_values[0] = bytes_a_s / 1e9;
    return r;
}

static int sample_raw_out(void *ctx, double ret_values[static METRICS_MAX])
{
    return raw(ctx, false, ret_values);
}

int gpu_disk_sample_raw_in(void *ctx, double ret_values[static METRICS_MAX])
{
    return raw(ctx, true, ret_values);
}

static int contest(struct gpu_bench *b, const char *name, bool is_in)
{
    struct contest c = {.metrics = {{"", "GB/s", GOAL_AT_LEAST, false, GPU_DISK_GOAL}},
                        .n_metrics = 1,
                        .neighbour = is_in ? GPU_RAW_READS : "raw writes, 2 MiB, depth 32",
                        .ours = is_in ? sample_in : sample_out,
                        .theirs = is_in ? gpu_disk_sample_raw_in : sample_raw_out,
                        .ctx = b,
                        .seconds = b->options->seconds,
                        .quiet = b->options->quiet};

    snprintf(c.metrics[0].name, FIGURE_NAME_BYTES, "%s, %llu MiB in objects of %u MiB", name,
             (unsigned long long)(b->set_bytes / MIB), (unsigned)(b->set.item_bytes / MIB));
    return contest_run(&c, b->micro->figures);
}

/* In whatever the helper has for all lanes, of which this is the only one. */
static int say_staging(struct gpu_bench *b)
{
    struct gpu_numbers numbers;
    int r = gpu_numbers_get(b->micro->session, &numbers);

    if (r == 0)
        figure_goal(
            figure_add(b->micro->figures, "MiB", numbers.staging_bytes / (double)MIB, "staging memory of the GPU"),
            GOAL_AT_MOST, STAGING_GOAL_MIB);
    return r;
}

int gpu_disk_measure(struct micro *m)
{
    struct gpu_bench *b = m->ctx;
    double ignored[METRICS_MAX];
    int r = gpu_driver_open(b, true);

    if (r == 0)
        r = gpu_set_open(b, &(struct gpu_shape){.piece_bytes = 64 * KIB,
                                                .item_bytes = 2 * MIB,
                                                .class_id = SPW_CLASS_KV,
                                                .durability = SPW_SCRATCH});
    if (r == 0)
        r = gpu_set_check(b);
    if (r == 0)
        r = raw(b, false, ignored); /* space that was never written to is slower */
    if (r == 0)
        r = contest(b, "GPU to NVMe", false);
    if (r == 0)
        gpu_cpu_say(&b->cpu, "GPU to NVMe", m->figures);
    if (r == 0)
        r = contest(b, "NVMe to GPU", true);
    if (r == 0)
        gpu_cpu_say(&b->cpu, "NVMe to GPU", m->figures);
    if (r == 0)
        r = say_staging(b);
    return r < 0 ? r : gpu_set_close(b);
}
