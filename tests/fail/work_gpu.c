/* SPDX-License-Identifier: Apache-2.0 */
/* A paged cache in a GPU's memory (the fake driver's): spilled, fetched, ranges of a tensor, memory that the daemon gives. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "include/base/limits.h"
#include "include/spillway/gpu.h"
#include "io/cuda_driver.h"
#include "tests/fail/workload.h"

#define PIECE_BYTES 16384
#define PIECES 4
#define BLOCKS 8
#define CACHE_BYTES ((size_t)PIECE_BYTES * PIECES * BLOCKS)
#define FIRST 60
#define SLOT_BYTES ((uint64_t)8 << 20)
#define ATTACH_PAUSE_MS 20
#define ATTACH_SHORT_MS 3000                    /* where calls may fail */
#define ATTACH_LONG_MS (2 * GPU_RESTART_MS_MAX) /* where they may not: the longest pause, and a start */

static const struct cuda_driver *cu;
static char pattern[CACHE_BYTES], found[CACHE_BYTES];

static bool driver_begin(struct work *w)
{
    struct CUctx_st *ctx;
    int device;

    /* The application's own: it works before any of this begins. */
    int r = cuda_driver_load(&cu);

    if (r == 0)
        r = cu->Init(0);
    if (r == 0)
        r = cu->DeviceGet(&device, 0);
    if (r == 0)
        r = cu->DevicePrimaryCtxRetain(&ctx, device);
    if (r == 0)
        r = cu->CtxSetCurrent(ctx);
    if (r != 0)
        work_broken(w, "the fake driver does not work; its answer is the key", (uint64_t)(int64_t)r);
    return true;
}

/* A helper that could not be started is started again after a moment: where nothing may fail, that is waited for. */
static int attach(const struct work *w, spw_space *space, spw_gpu **ret_gpu)
{
    /* Small: the driver that is faked clears it all. */
    struct spw_gpu_options options = {.slot_bytes = SLOT_BYTES, .slots = 2};
    int tries = (w->is_strict ? ATTACH_LONG_MS : ATTACH_SHORT_MS) / ATTACH_PAUSE_MS, r = -EAGAIN;

    for (int i = 0; (r == -EAGAIN || (r == -ENODEV && w->is_strict)) && i < tries; i++) {
        r = spw_gpu_attach(space, &options, ret_gpu);
        if (r < 0)
            nanosleep(&(struct timespec){.tv_nsec = ATTACH_PAUSE_MS * 1000000L}, NULL);
    }
    return r;
}

/* Its end; a job that was not begun has none. */
static int job_end(struct work *w, const char *step, int begun, spw_gpu_job *job)
{
    if (work_answer(w, step, begun) < 0)
        return begun;
    int r = spw_gpu_job_wait(job, SPW_GPU_DONE, 2 * work_timeout_ms(w));

    if (r == -ETIMEDOUT && spw_gpu_job_status(job, SPW_GPU_DONE) == -EINPROGRESS)
        work_broken(w, "a job has no end", 0);
    spw_gpu_job_free(job);
    return work_answer(w, step, r);
}

static void spill_fetch(struct work *w, spw_gpu *gpu, spw_space *space, uint64_t memory)
{
    struct spw_gpu_piece pieces[PIECES];
    struct spw_key keys[BLOCKS];
    uint32_t ids[BLOCKS];
    int32_t status[BLOCKS];
    spw_gpu_layout *layout = NULL;
    spw_gpu_job *job = NULL;

    for (uint32_t p = 0; p < PIECES; p++)
        pieces[p] = (struct spw_gpu_piece){memory + (uint64_t)p * PIECE_BYTES * BLOCKS, PIECE_BYTES, PIECE_BYTES};
    for (uint32_t b = 0; b < BLOCKS; b++) {
        keys[b] = work_key(w, FIRST + b);
        ids[b] = b;
    }
    if (work_answer(w, "layout_new", spw_gpu_layout_new(gpu, space, pieces, PIECES, BLOCKS, &layout)) < 0)
        return;
    (void)cu->MemcpyHtoD(memory, pattern, CACHE_BYTES);
    int r = spw_spill(layout, keys, ids, BLOCKS, NULL, SPW_CHAIN, work_timeout_ms(w), status, &job);

    if (job_end(w, "spill", r, job) == 0) {
        memset(found, 0, CACHE_BYTES);
        (void)cu->MemcpyHtoD(memory, found, CACHE_BYTES);
        r = spw_fetch(layout, keys, ids, BLOCKS, NULL, SPW_CHAIN, work_timeout_ms(w), status, &job);
        if (job_end(w, "fetch", r, job) == 0) {
            (void)cu->MemcpyDtoH(found, memory, CACHE_BYTES);
            for (uint32_t b = 0; b < BLOCKS; b++)
                for (uint32_t p = 0; p < PIECES; p++)
                    if (status[b] == 0 && memcmp(found + ((size_t)p * BLOCKS + b) * PIECE_BYTES,
                                                 pattern + ((size_t)p * BLOCKS + b) * PIECE_BYTES, PIECE_BYTES) != 0)
                        work_broken(w, "fetch: wrong bytes", FIRST + b);
        }
    }
    spw_gpu_layout_free(layout);
    (void)work_answer(w, "delete", spw_delete(space, keys, BLOCKS, status));
}

static void ranges(struct work *w, spw_gpu *gpu, spw_space *space, uint64_t memory)
{
    struct spw_gpu_range range = {.key = work_key(w, FIRST + BLOCKS), .bytes = CACHE_BYTES, .address = memory};
    spw_gpu_job *job = NULL;
    int32_t status = 0;

    if (work_answer(w, "tensor_open", spw_tensor_open(space, &range.key, CACHE_BYTES)) < 0)
        return;
    (void)cu->MemcpyHtoD(memory, pattern, CACHE_BYTES);
    int r = spw_gpu_put_ranges(gpu, space, &range, 1, NULL, work_timeout_ms(w), &status, &job);

    if (job_end(w, "put_ranges", r, job) == 0 && status == 0) {
        memset(found, 0, CACHE_BYTES);
        (void)cu->MemcpyHtoD(memory, found, CACHE_BYTES);
        r = spw_gpu_activate(gpu, space, &range, 1, NULL, work_timeout_ms(w), &job);
        if (job_end(w, "activate", r, job) == 0) {
            (void)cu->MemcpyDtoH(found, memory, CACHE_BYTES);
            if (memcmp(found, pattern, CACHE_BYTES) != 0)
                work_broken(w, "activate: wrong bytes", FIRST + BLOCKS);
        }
    }
    (void)work_answer(w, "delete", spw_delete(space, &range.key, 1, &status));
}

static void mapped(struct work *w, spw_gpu *gpu, spw_space *space)
{
    struct spw_key key = work_key(w, FIRST + BLOCKS + 1);
    struct spw_view view = {0};
    uint64_t size = (uint64_t)PIECE_BYTES * PIECES, address;

    if (work_answer(w, "reserve", spw_reserve(space, &key, &size, 1, 0, work_timeout_ms(w), &view)) < 0 ||
        view.status < 0)
        return;
    (void)work_answer(w, "map", spw_gpu_map(gpu, &view, &address));
    spw_gpu_unmap(gpu);
    (void)work_answer(w, "abort", spw_abort(space, &view, 1));
}

void work_gpu(struct work *w, spw_pool *pool)
{
    struct spw_space_options options = {.digest = "gpu",
                                        .item_bytes = (uint64_t)PIECE_BYTES * PIECES,
                                        .class_id = SPW_CLASS_KV,
                                        .durability = SPW_CACHE};
    struct spw_space_options tensors = {.digest = "weights", .class_id = SPW_CLASS_WEIGHTS, .durability = SPW_CACHE};
    spw_space *space = NULL, *weights = NULL;
    spw_gpu_memory *direct = NULL;
    spw_gpu *gpu = NULL;
    uint64_t memory = 0;

    if (!driver_begin(w) || cu->MemAlloc(&memory, CACHE_BYTES))
        work_broken(w, "the fake driver has no memory", 0);
    work_fill(pattern, CACHE_BYTES, work_seed(w, FIRST));
    if (work_answer(w, "space_open", spw_space_open(pool, &options, &space)) == 0 &&
        work_answer(w, "gpu_attach", attach(w, space, &gpu)) == 0) {
        spill_fetch(w, gpu, space, memory);
        mapped(w, gpu, space);
        spw_gpu_detach(gpu);
    }
    /* Of another engine, perhaps: so an attachment of its own. */
    if (work_answer(w, "space_open", spw_space_open(pool, &tensors, &weights)) == 0 &&
        work_answer(w, "gpu_attach", attach(w, weights, &gpu)) == 0) {
        ranges(w, gpu, weights, memory);
        if (work_answer(w, "gpu_alloc", spw_gpu_alloc(gpu, CACHE_BYTES, &direct)) == 0)
            ranges(w, gpu, weights, spw_gpu_memory_address(direct));
        spw_gpu_memory_free(direct);
        spw_gpu_detach(gpu);
    }
    (void)cu->MemFree(memory);
}
