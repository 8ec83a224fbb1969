/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the link can do: large copies from and to pinned memory. And what one gets of it without us: as many copies as there
 * are scattered pieces, called one by one, or many in a call of cuMemcpyBatchAsync; on the host the pieces lie one behind
 * the other. One thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "client/bench/gpu.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define DMA_BYTES (16 * MIB) /* of one large copy */
#define BATCH 4096           /* pieces of one call */

/* ── the ceiling ────────────────────────────────────────────────────────────────────────────────────────────────── */

static int copy(struct gpu_bench *b, bool in, uint64_t device, char *host, size_t len_bytes, struct CUstream_st *stream)
{
    return in ? CU(b, MemcpyHtoDAsync(device, host, len_bytes, stream))
              : CU(b, MemcpyDtoHAsync(host, device, len_bytes, stream));
}

static int copy_all(struct gpu_bench *b, bool in, struct CUstream_st *stream, uint64_t at)
{
    int r = 0;

    for (uint64_t done = 0; r == 0 && done < b->set_bytes; done += DMA_BYTES) {
        uint64_t offset = (at + done) % b->pinned_bytes;

        r = copy(b, in, b->dma + offset, b->pinned + offset, DMA_BYTES, stream);
    }
    return r;
}

static int sample_large(struct gpu_bench *b, bool in, double *ret_speed)
{
    uint64_t start_ns = now_ns();
    int r = copy_all(b, in, b->streams[0], 0);

    if (r == 0 && b->both)
        r = copy_all(b, !in, b->streams[1], b->pinned_bytes / 2);
    if (r == 0)
        r = CU(b, StreamSynchronize(b->streams[0]));
    if (r == 0)
        r = CU(b, StreamSynchronize(b->streams[1]));
    *ret_speed = (double)(b->set_bytes * (b->both ? 2 : 1)) / (double)(now_ns() - start_ns);
    return r;
}

int gpu_dma_sample_out(void *ctx, double ret_values[static METRICS_MAX])
{
    return sample_large(ctx, false, &ret_values[0]);
}

int gpu_dma_sample_in(void *ctx, double ret_values[static METRICS_MAX])
{
    return sample_large(ctx, true, &ret_values[0]);
}

/* ── scattered pieces ───────────────────────────────────────────────────────────────────────────────────────────── */

struct pieces {
    struct gpu_bench *bench;
    bool in, batched;
    uint64_t piece_bytes;
    size_t n;
    uint64_t dsts[BATCH], srcs[BATCH];
    size_t sizes_bytes[BATCH];
};

/* Each one once, far from the one before; n is a power of two. */
static uint64_t device_of(const struct pieces *p, size_t i)
{
    return p->bench->cache + (i * 2654435761u & (p->n - 1)) * p->piece_bytes;
}

static int call_each(struct pieces *p)
{
    struct gpu_bench *b = p->bench;
    int r = 0;

    for (size_t i = 0; r == 0 && i < p->n; i++)
        r = copy(b, p->in, device_of(p, i), b->pinned + i * p->piece_bytes, p->piece_bytes, b->streams[0]);
    return r;
}

static int call_batches(struct pieces *p)
{
    struct cuda_memcpy_attributes attributes = {.src_access_order = NV_MEMCPY_SRC_ACCESS_ORDER_STREAM};
    struct gpu_bench *b = p->bench;
    size_t start = 0, failed;
    int r = 0;

    for (size_t at = 0; r == 0 && at < p->n; at += BATCH) {
        size_t n = MIN((size_t)BATCH, p->n - at);

        for (size_t i = 0; i < n; i++) {
            uint64_t host = (uintptr_t)b->pinned + (at + i) * p->piece_bytes, device = device_of(p, at + i);

            p->dsts[i] = p->in ? device : host;
            p->srcs[i] = p->in ? host : device;
            p->sizes_bytes[i] = p->piece_bytes;
        }
        r = CU(b,
               MemcpyBatchAsync(p->dsts, p->srcs, p->sizes_bytes, n, &attributes, &start, 1, &failed, b->streams[0]));
    }
    return r;
}

static int sample_pieces(void *ctx, double ret_values[static METRICS_MAX])
{
    struct pieces *p = ctx;
    uint64_t start_ns = now_ns();
    int r = p->batched ? call_batches(p) : call_each(p);

    if (r == 0)
        r = CU(p->bench, StreamSynchronize(p->bench->streams[0]));
    ret_values[0] = (double)(p->n * p->piece_bytes) / (double)(now_ns() - start_ns);
    return r;
}

static int sample_link(void *ctx, double ret_values[static METRICS_MAX])
{
    const struct pieces *p = ctx;

    return sample_large(p->bench, p->in, &ret_values[0]);
}

static int contest(struct pieces *p, struct figures *figures)
{
    const struct options *o = p->bench->options;
    struct contest c = {.metrics = {{"", "GB/s", GOAL_NONE, false, 0}},
                        .n_metrics = 1,
                        .neighbour = GPU_LINK,
                        .ours = sample_pieces,
                        .theirs = sample_link,
                        .ctx = p,
                        .seconds = o->seconds,
                        .quiet = o->quiet};

    snprintf(c.metrics[0].name, FIGURE_NAME_BYTES, "%s, %s, pieces of %u KiB",
             p->batched ? "cuMemcpyBatchAsync" : "a loop of cuMemcpyAsync", p->in ? "in" : "out",
             (unsigned)(p->piece_bytes / KIB));
    return contest_run(&c, figures);
}

int gpu_calls_measure(struct micro *m)
{
    static const uint64_t sizes[] = {4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 2 * MIB};
    struct gpu_bench *b = m->ctx;
    cleanup_free struct pieces *p = calloc(1, sizeof(*p));
    int r = p ? gpu_driver_open(b, true) : -ENOMEM;

    if (r < 0)
        return r;
    p->bench = b;
    if (!b->cu->MemcpyBatchAsync)
        fprintf(stderr, "SKIP: gpu: the driver has no cuMemcpyBatchAsync\n");
    for (size_t i = 0; r == 0 && i < ARRAY_LEN(sizes); i++) {
        p->piece_bytes = sizes[i];
        p->n = MIN(b->set_bytes, b->pinned_bytes) / sizes[i];
        for (unsigned way = 0; r == 0 && way < 4; way++) {
            p->in = way & 1;
            p->batched = way & 2;
            if (!p->batched || b->cu->MemcpyBatchAsync)
                r = contest(p, m->figures);
        }
    }
    return r;
}
