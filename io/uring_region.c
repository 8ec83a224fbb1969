/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Regions: memory that I/O and workers can reach, by number. A region is a chunk of a pool or bounce memory; its memory
 * is registered with the ring in windows of WINDOW_BYTES (the kernel's limit on one buffer), consecutive windows for
 * consecutive memory, so the window of a request is one division. The engine's thread only.
 *
 * Registering is all or nothing for a region. Where the limit on locked memory forbids it, the region works with
 * addresses instead, a little slower, and caps.degraded_memlock tells. A request that crosses a window (which extents
 * do not) goes by address too.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/checked.h"
#include "io/uring_private.h"

/* --- Windows ----------------------------------------------------------------------------------------------------- */

static uint32_t window_count(uint64_t size_bytes)
{
    return (uint32_t)div_round_up(size_bytes, WINDOW_BYTES);
}

/* First fit; seldom. URING_WINDOW_NONE: no such run. */
static uint32_t windows_take(struct uring *u, uint32_t n)
{
    for (uint32_t i = 0, run = 0; i < u->n_windows; i++) {
        run = u->windows[i] ? 0 : run + 1;
        if (run == n) {
            memset(&u->windows[i + 1 - n], 1, n);
            u->stat.windows_used += n;
            return i + 1 - n;
        }
    }
    return URING_WINDOW_NONE;
}

/* The first n_registered of n are registered. */
static void windows_release(struct uring *u, uint32_t first, uint32_t n, uint32_t n_registered)
{
    for (uint32_t i = 0; i < n_registered; i++)
        (void)uring_kernel_set_window(u->kernel, first + i, NULL, 0);
    memset(&u->windows[first], 0, n);
    u->stat.windows_used -= n;
}

static void note_degraded(struct uring *u, int r)
{
    if (r == -ENOMEM) {
        u->caps.degraded_memlock = true;
        u->caps.note = "memory is not locked: raise LimitMEMLOCK= of the unit (or `ulimit -l`), or grant CAP_IPC_LOCK";
    } else {
        u->caps.note = "memory could not be registered with io_uring: transfers work, but cost more CPU";
    }
}

static void region_register(struct uring *u, struct uring_region *region)
{
    uint32_t n = window_count(region->size_bytes), done;
    int r = 0;

    region->first_window = u->caps.windows ? windows_take(u, n) : URING_WINDOW_NONE;
    if (region->first_window == URING_WINDOW_NONE) {
        note_degraded(u, -ENOSPC);
        return;
    }
    for (done = 0; done < n; done++) {
        uint64_t off = done * WINDOW_BYTES;

        r = uring_kernel_set_window(u->kernel, region->first_window + done, (char *)region->mem + off,
                                    MIN(region->size_bytes - off, WINDOW_BYTES));
        if (r < 0)
            break;
    }
    if (r < 0) {
        windows_release(u, region->first_window, n, done);
        region->first_window = URING_WINDOW_NONE;
        note_degraded(u, r);
    }
}

/* --- Regions ----------------------------------------------------------------------------------------------------- */

int uring_region_init(struct uring *u)
{
    struct memory_limits limits;

    memory_limits_read(&limits); /* what the kernel says in files is read now: an engine opens none */
    u->caps.memlock_limit_bytes = limits.memlock_bytes;
    u->records_by_collapse = memory_records_by_collapse();
    u->n_regions_max = u->config.chunks_max;
    u->n_windows = WINDOWS_MAX;
    u->regions = calloc(u->n_regions_max, sizeof(*u->regions));
    u->windows = calloc(u->n_windows, 1);
    list_init(&u->grows_free);
    list_init(&u->chunks_queued);
    list_init(&u->failed_chunks);
    for (uint32_t i = 0; i < GROW_REQUESTS_MAX; i++)
        list_push_tail(&u->grows_free, &u->grows[i].link);
    return u->regions && u->windows ? 0 : -ENOMEM;
}

static int region_add(struct uring *u, void *mem, uint64_t size_bytes, struct memory_chunk *chunk, uint32_t *ret_region)
{
    for (uint32_t i = 0; i < u->n_regions_max; i++) {
        struct uring_region *region = &u->regions[i];

        if (region->mem)
            continue;
        *region = (struct uring_region){.mem = mem, .size_bytes = size_bytes, .chunk = chunk};
        region_register(u, region);
        u->stat.regions++;
        *ret_region = i;
        return 0;
    }
    return -ENOSPC;
}

static struct uring_region *region_find(const struct uring *u, uint32_t region)
{
    return region < u->n_regions_max && u->regions[region].mem ? &u->regions[region] : NULL;
}

static void region_remove(struct uring *u, struct uring_region *region)
{
    uint32_t n = window_count(region->size_bytes);

    if (region->first_window != URING_WINDOW_NONE)
        windows_release(u, region->first_window, n, n);
    if (region->chunk)
        memory_chunk_unref(region->chunk);
    else
        memory_private_destroy(region->mem, region->size_bytes);
    *region = (struct uring_region){0};
    u->stat.regions--;
}

int uring_region_add(struct uring *u, struct memory_chunk *chunk, uint32_t *ret_region)
{
    int r = region_add(u, chunk->mem, chunk->size_bytes, chunk, ret_region);

    if (r == 0)
        memory_chunk_ref(chunk);
    return r;
}

struct memory_chunk *uring_region_chunk(const struct uring *u, uint32_t region)
{
    const struct uring_region *found = region_find(u, region);

    return found ? found->chunk : NULL;
}

void *uring_region_resolve(const struct uring *u, struct io_buf buf, uint64_t len_bytes, uint32_t *ret_window)
{
    const struct uring_region *region = region_find(u, buf.region);

    if (!region || !range_ok(buf.off, len_bytes, region->size_bytes))
        return NULL;
    bool crosses = buf.off / WINDOW_BYTES != (buf.off + len_bytes - 1) / WINDOW_BYTES;
    *ret_window = region->first_window == URING_WINDOW_NONE || crosses
                      ? URING_WINDOW_NONE
                      : region->first_window + (uint32_t)(buf.off / WINDOW_BYTES);
    return (char *)region->mem + buf.off;
}

void *uring_address(const struct uring *u, struct io_buf buf, uint64_t len_bytes)
{
    uint32_t window;

    return uring_region_resolve(u, buf, len_bytes, &window);
}

void uring_records_touch(struct io_backend *be, void *mem, uint64_t size_bytes)
{
    if (uring_of(be)->records_by_collapse)
        memory_records_touch(mem, size_bytes);
}

uint64_t uring_chunk_survived(struct io_backend *be, uint32_t region)
{
    const struct uring_region *found = region_find(uring_of(be), region);

    return found && found->chunk ? found->size_bytes : 0;
}

int uring_chunk_adopt(struct uring *u, uint32_t region, int fd, uint32_t node, enum io_chunk_kind kind)
{
    struct memory_chunk *chunk;
    int r = memory_chunk_adopt(fd, node, kind == IO_CHUNK_SHARED, &chunk);

    if (r < 0)
        return r;
    if (region >= u->n_regions_max || u->regions[region].mem) {
        memory_chunk_unref(chunk);
        return -EINVAL;
    }
    u->regions[region] = (struct uring_region){.mem = chunk->mem, .size_bytes = chunk->size_bytes, .chunk = chunk};
    region_register(u, &u->regions[region]);
    u->stat.regions++;
    return 0;
}

void uring_chunk_close(struct io_backend *be, uint32_t region)
{
    struct uring *u = uring_of(be);
    struct uring_region *found = region_find(u, region);

    assert(found && found->chunk);
    if (u->config.grower)
        grower_discard(u->config.grower, memory_chunk_ref(found->chunk)); /* behind the reference of the region */
    region_remove(u, found);
}

int uring_bounce_alloc(struct io_backend *be, uint64_t size_bytes, struct io_buf *ret_buf, void **ret_mem)
{
    struct uring *u = uring_of(be);
    uint32_t region;
    void *mem;
    int r = memory_private_create(size_bytes, u->config.chunk.node, &mem);

    if (r < 0)
        return r;
    size_bytes = round_up(size_bytes, MEMORY_PAGE_BYTES);
    r = region_add(u, mem, size_bytes, NULL, &region);
    if (r < 0) {
        memory_private_destroy(mem, size_bytes);
        return r;
    }
    *ret_buf = (struct io_buf){.region = region};
    *ret_mem = mem;
    return 0;
}

/* --- Asking for chunks ------------------------------------------------------------------------------------------- */

static void grow_next(struct uring *u);

static void grow_finished(struct engine_msg *msg)
{
    struct uring_grow *grow = container_of(msg, struct uring_grow, job.msg);
    struct uring *u = grow->uring;
    struct io_chunk *chunk = grow->chunk;
    struct memory_chunk *memory = grow->job.chunk;

    chunk->result = grow->job.result;
    if (chunk->result == 0) {
        chunk->result = uring_region_add(u, memory, &chunk->region);
        chunk->size_bytes = memory->size_bytes;
        memory_chunk_unref(memory); /* the region has its own reference, if there is one */
    }
    list_push_tail(&u->grows_free, &grow->link);
    u->n_growing--;
    grow_next(u);
    if (chunk->result == 0 && u->config.on_chunk)
        u->config.on_chunk(u->config.ctx, chunk->region, memory);
    chunk->done(chunk);
}

static void grow_waits(struct engine_msg *msg)
{
    const struct uring_grow *grow = container_of(msg, struct uring_grow, job.wait_msg);
    const struct uring *u = grow->uring;

    u->config.on_chunk_wait(u->config.ctx, grow->job.config.size_bytes, grow->job.config.node);
}

static void grow_start(struct uring *u, struct uring_grow *grow, struct io_chunk *chunk)
{
    grow->uring = u;
    grow->chunk = chunk;
    grow->job = (struct grower_job){.msg.run = grow_finished, .home = &u->queue, .config = u->config.chunk};
    grow->job.wait_msg.run = u->config.on_chunk_wait ? grow_waits : NULL;
    grow->job.config.size_bytes = chunk->size_bytes;
    grow->job.config.node = chunk->node;
    grow->job.config.read_only_fd = chunk->kind == IO_CHUNK_SHARED;
    /* What was promised is the tier's memory: not another node's, nor what a session asks for later. */
    if (chunk->kind == IO_CHUNK_PRIVATE || chunk->node != u->config.chunk.node)
        grow->job.config.no_fallback = false;
    grower_submit(u->config.grower, &grow->job);
}

static void grow_next(struct uring *u)
{
    while (!list_is_empty(&u->chunks_queued) && !list_is_empty(&u->grows_free)) {
        struct list *chunk = list_pop(&u->chunks_queued), *grow = list_pop(&u->grows_free);

        grow_start(u, list_entry(grow, struct uring_grow, link), list_entry(chunk, struct io_chunk, link));
    }
}

void uring_chunk_request(struct io_backend *be, struct io_chunk *chunk)
{
    struct uring *u = uring_of(be);

    if (!u->config.grower) {
        chunk->result = -ENOSYS;
        list_push_tail(&u->failed_chunks, &chunk->link);
        return;
    }
    u->n_growing++;
    list_push_tail(&u->chunks_queued, &chunk->link);
    grow_next(u);
}

uint32_t uring_chunk_fail(struct uring *u)
{
    struct list failed, *l;
    uint32_t n = 0;

    list_init(&failed);
    list_splice_tail(&failed, &u->failed_chunks);
    for (; (l = list_pop(&failed)); n++) {
        struct io_chunk *chunk = list_entry(l, struct io_chunk, link);

        chunk->done(chunk);
    }
    return n;
}

void uring_region_deinit(struct uring *u)
{
    for (uint32_t i = 0; u->regions && i < u->n_regions_max; i++)
        if (u->regions[i].mem)
            region_remove(u, &u->regions[i]);
    free(u->regions);
    free(u->windows);
}
