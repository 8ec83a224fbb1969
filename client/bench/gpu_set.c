/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns a set of blocks: their keys, their ids in an order that is far from theirs in memory, what became of each. An object
 * of several pieces has each of them in another tensor, as blocks of a paged cache have. One thread, beside the library's.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/bench/gpu.h"
#include "client/bench/live.h"
#include "client/bench/payload.h"
#include "client/bench/process.h"

/* ── one shape ──────────────────────────────────────────────────────────────────────────────────────────────────── */

static int layout_new(struct gpu_bench *b, uint64_t memory, spw_gpu_layout **ret_layout)
{
    struct spw_gpu_piece pieces[GPU_PIECES_MAX];
    const struct gpu_set *s = &b->set;
    uint32_t n = s->item_bytes / s->piece_bytes;

    for (uint32_t i = 0; i < n; i++)
        pieces[i] = (struct spw_gpu_piece){.base = memory + (uint64_t)i * s->n * s->piece_bytes,
                                           .stride_bytes = s->piece_bytes,
                                           .bytes = s->piece_bytes};
    int r = spw_gpu_layout_new(s->gpu, s->space, pieces, n, s->n, ret_layout);

    return r < 0 ? micro_say("spw_gpu_layout_new", r) : 0;
}

static int lists_new(struct gpu_set *s)
{
    s->keys = calloc(s->n, sizeof(*s->keys));
    s->ids = calloc(s->n, sizeof(*s->ids));
    s->spill_statuses = calloc(s->n, sizeof(*s->spill_statuses));
    s->fetch_statuses = calloc(s->n, sizeof(*s->fetch_statuses));
    if (!s->keys || !s->ids || !s->spill_statuses || !s->fetch_statuses)
        return -ENOMEM;
    for (uint32_t i = 0; i < s->n; i++) {
        payload_key(s->item_bytes, i, &s->keys[i]);
        s->ids[i] = i;
    }
    for (uint32_t i = s->n - 1; i > 0; i--) {
        uint32_t k = (uint32_t)(payload_mix(i, 7) % (i + 1)), id = s->ids[i];

        s->ids[i] = s->ids[k];
        s->ids[k] = id;
    }
    return 0;
}

int gpu_set_open(struct gpu_bench *b, const struct gpu_shape *shape)
{
    struct gpu_set *s = &b->set;
    struct spw_space_options so = {
        .item_bytes = shape->item_bytes, .class_id = shape->class_id, .durability = shape->durability};
    struct gpu_numbers numbers = {0};

    *s = (struct gpu_set){.piece_bytes = shape->piece_bytes,
                          .item_bytes = shape->item_bytes,
                          .n = (uint32_t)(b->set_bytes / shape->item_bytes)};
    static_assert(sizeof(so.digest) >= sizeof(*shape), "room for all of it");
    memcpy(so.digest, shape, sizeof(*shape));
    int r = spw_space_open(b->micro->pool, &so, &s->space);
    if (r < 0)
        return micro_say("a space", r);
    r = gpu_attach(s->space, &s->gpu);
    if (r == 0)
        r = lists_new(s);
    if (r == 0)
        r = layout_new(b, b->cache, &s->from);
    s->to = s->from;
    if (r == 0 && b->back != b->cache)
        r = layout_new(b, b->back, &s->to);
    if (r == 0)
        r = gpu_numbers_get(b->micro->session, &numbers);
    gpu_cpu_init(&b->cpu, b->daemon_pid, numbers.helper_pid);
    return r;
}

int gpu_set_close(struct gpu_bench *b)
{
    struct gpu_set *s = &b->set;
    int r = gpu_set_forget(b, 0, s->n);

    spw_gpu_detach(s->gpu);
    free(s->keys);
    free(s->ids);
    free(s->spill_statuses);
    free(s->fetch_statuses);
    *s = (struct gpu_set){.n = 0};
    return r;
}

/* ── jobs ───────────────────────────────────────────────────────────────────────────────────────────────────────── */

int gpu_set_forget(struct gpu_bench *b, uint32_t from, uint32_t n)
{
    int r = spw_delete(b->set.space, b->set.keys + from, n, b->set.spill_statuses + from);

    return r < 0 ? micro_say("delete", r) : 0;
}

int gpu_set_spill(struct gpu_bench *b, uint32_t from, uint32_t n, spw_gpu_job **ret_job)
{
    const struct gpu_set *s = &b->set;
    int r = spw_spill(s->from, s->keys + from, s->ids + from, n, b->streams[0], 0, GPU_TIMEOUT_MS,
                      s->spill_statuses + from, ret_job);

    return r < 0 ? micro_say("spw_spill", r) : 0;
}

int gpu_set_fetch(struct gpu_bench *b, uint32_t from, uint32_t n, spw_gpu_job **ret_job)
{
    const struct gpu_set *s = &b->set;
    int r = spw_fetch(s->to, s->keys + from, s->ids + from, n, b->streams[1], 0, GPU_TIMEOUT_MS,
                      s->fetch_statuses + from, ret_job);

    return r < 0 ? micro_say("spw_fetch", r) : 0;
}

int gpu_set_end(struct gpu_bench *b, bool is_fetch, uint32_t from, uint32_t n, spw_gpu_job *job)
{
    const int32_t *statuses = (is_fetch ? b->set.fetch_statuses : b->set.spill_statuses) + from;
    int r = spw_gpu_job_wait(job, SPW_GPU_DONE, GPU_TIMEOUT_MS);

    if (r < 0) {
        (void)micro_say("a job", r);
    } else if (spw_gpu_job_value(job) != n) {
        uint32_t i = 0;

        while (i < n && statuses[i] == 0)
            i++;
        fprintf(stderr, "spillbench: %u of %u blocks were moved; block %u: %s\n", (unsigned)spw_gpu_job_value(job), n,
                from + i, i < n ? strerrordesc_np(-statuses[i]) : "?");
        r = -EIO;
    }
    spw_gpu_job_free(job);
    return r;
}

/* Times a move of n blocks (with both: of n each way), and what CPUs had to do with it. */
static int timed(struct gpu_bench *b, bool spills, bool fetches, uint32_t n, double *ret_speed)
{
    uint64_t bytes = (uint64_t)n * b->set.item_bytes * ((spills ? 1 : 0) + (fetches ? 1 : 0));
    uint32_t from = fetches ? n : 0;
    spw_gpu_job *out = NULL, *in = NULL;

    gpu_cpu_begin(&b->cpu);
    uint64_t start_ns = now_ns();
    int r = spills ? gpu_set_spill(b, from, n, &out) : 0;
    if (r == 0 && fetches)
        r = gpu_set_fetch(b, 0, n, &in);
    if (r == 0 && out)
        r = gpu_set_end(b, false, from, n, out);
    if (r == 0 && in)
        r = gpu_set_end(b, true, 0, n, in);
    double took_s = seconds_since(start_ns);
    gpu_cpu_end(&b->cpu, bytes);
    *ret_speed = (double)bytes / took_s / 1e9;
    return r;
}

int gpu_set_sample_spill(void *ctx, double ret_values[static METRICS_MAX])
{
    struct gpu_bench *b = ctx;
    int r = gpu_set_forget(b, 0, b->set.n);

    return r < 0 ? r : timed(b, true, false, b->set.n, &ret_values[0]);
}

int gpu_set_sample_fetch(void *ctx, double ret_values[static METRICS_MAX])
{
    struct gpu_bench *b = ctx;

    return timed(b, false, true, b->set.n, &ret_values[0]);
}

int gpu_set_sample_both(void *ctx, double ret_values[static METRICS_MAX])
{
    struct gpu_bench *b = ctx;
    uint32_t half = b->set.n / 2;
    int r = gpu_set_forget(b, half, half);

    return r < 0 ? r : timed(b, true, true, half, &ret_values[0]);
}

/* ── all of it ──────────────────────────────────────────────────────────────────────────────────────────────────── */

int gpu_set_check(struct gpu_bench *b)
{
    uint64_t bytes = (uint64_t)b->set.n * b->set.item_bytes, seed = payload_mix(b->set.item_bytes, b->set.piece_bytes);
    double speed[METRICS_MAX];
    int r = gpu_driver_fill(b, b->cache, bytes, seed);

    if (r == 0)
        r = gpu_set_sample_spill(b, speed);
    if (r == 0)
        r = CU(b, MemsetD8(b->back, 0, bytes));
    if (r == 0)
        r = CU(b, StreamSynchronize(NULL)); /* it may return before it is done, and ours do not wait for it */
    if (r == 0)
        r = gpu_set_sample_fetch(b, speed);
    if (r == 0)
        r = gpu_driver_check(b, b->back, bytes, seed);
    b->cpu.n = 0;
    return r;
}

static int pump_start(struct gpu_bench *b, bool fetches, unsigned half, spw_gpu_job **ret_job)
{
    uint32_t n = b->set.n / 2, from = half * n;
    int r = fetches ? 0 : gpu_set_forget(b, from, n);

    if (r < 0)
        return r;
    return fetches ? gpu_set_fetch(b, from, n, ret_job) : gpu_set_spill(b, from, n, ret_job);
}

int gpu_set_pump(struct gpu_bench *b, bool fetches, uint64_t until_ns, const bool *stop, struct gpu_pumped *ret_pumped)
{
    struct gpu_pumped pumped = {.start_ns = now_ns()};
    uint32_t n = b->set.n / 2;
    spw_gpu_job *jobs[2] = {NULL, NULL};
    bool over = false;
    int r = 0;

    for (unsigned half = 0; r == 0 && (!over || jobs[half]); half ^= 1) {
        if (jobs[half]) {
            r = gpu_set_end(b, fetches, half * n, n, jobs[half]);
            jobs[half] = NULL;
            pumped.bytes += (uint64_t)n * b->set.item_bytes;
        }
        over = over || live_interrupted() || (until_ns && now_ns() >= until_ns) ||
               (stop && __atomic_load_n(stop, __ATOMIC_RELAXED));
        if (r == 0 && !over)
            r = pump_start(b, fetches, half, &jobs[half]);
    }
    pumped.end_ns = now_ns();
    if (r == 0)
        *ret_pumped = pumped;
    return r;
}
