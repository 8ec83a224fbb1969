/* SPDX-License-Identifier: Apache-2.0 */
/* See disk.h. */
#include "tests/fuzz/support/disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "io/checksum.h"
#include "tests/fuzz/support/snapshot.h"

#define REGIONS_MAX 512
#define REQUESTS_MAX 8192

enum kind { KIND_BLK, KIND_WORK, KIND_CHUNK, KIND_DMA };

struct request {
    enum kind kind;
    void *ptr;
};

struct region {
    uint8_t *mem; /* NULL: not there */
    uint64_t size_bytes;
    bool is_chunk;
};

/* Taken from the front. */
struct area {
    uint8_t *mem;
    uint64_t size_bytes, used_bytes;
};

static struct {
    struct io_backend be;
    uint8_t *device;
    uint32_t dirty[DISK_BYTES / SECTOR_BYTES]; /* sectors of the device that are not as they began */
    uint32_t n_dirty;
    bool is_dirty[DISK_BYTES / SECTOR_BYTES];
    struct area memory, bounce;
    struct region regions[REGIONS_MAX];
    uint32_t n_regions;
    uint32_t first, n; /* of requests[] */
    int32_t fail;
} disk;

static struct request requests[REQUESTS_MAX]; /* a ring; none is pending where a snapshot is kept */

/* --- Memory ---------------------------------------------------------------------------------------------------------- */

static uint8_t *map(uint64_t size_bytes)
{
    void *mem = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (mem == MAP_FAILED)
        abort();
    return mem;
}

bool disk_has(uint32_t region, uint64_t off_bytes, uint64_t len_bytes)
{
    const struct region *r = region < disk.n_regions ? &disk.regions[region] : NULL;

    return r && r->mem && off_bytes <= r->size_bytes && len_bytes <= r->size_bytes - off_bytes;
}

uint8_t *disk_memory(uint32_t region)
{
    if (!disk_has(region, 0, 0))
        abort();
    return disk.regions[region].mem;
}

static uint8_t *buf_at(struct io_buf buf, uint64_t len_bytes)
{
    if (!disk_has(buf.region, buf.off, len_bytes))
        abort(); /* the code under test named memory that it does not have */
    return disk.regions[buf.region].mem + buf.off;
}

static uint32_t region_add(struct area *area, uint64_t size_bytes)
{
    size_bytes = round_up(size_bytes, SECTOR_BYTES);
    if (disk.n_regions == REGIONS_MAX || size_bytes > area->size_bytes - area->used_bytes)
        return IO_REGION_NONE;
    disk.regions[disk.n_regions] =
        (struct region){area->mem + area->used_bytes, size_bytes, .is_chunk = area == &disk.memory};
    area->used_bytes += size_bytes;
    return disk.n_regions++;
}

static const uint8_t *device_at(uint64_t off_bytes, uint64_t len_bytes)
{
    if (off_bytes > DISK_BYTES || len_bytes > DISK_BYTES - off_bytes || off_bytes % SECTOR_BYTES != 0 ||
        len_bytes % SECTOR_BYTES != 0)
        abort();
    return disk.device + off_bytes;
}

uint8_t *disk_change(uint64_t off_bytes, uint64_t len_bytes)
{
    if (off_bytes >= DISK_BYTES || len_bytes == 0 || len_bytes > DISK_BYTES - off_bytes)
        abort();
    for (uint64_t s = off_bytes / SECTOR_BYTES; s <= (off_bytes + len_bytes - 1) / SECTOR_BYTES; s++)
        if (!disk.is_dirty[s]) {
            disk.is_dirty[s] = true;
            disk.dirty[disk.n_dirty++] = (uint32_t)s;
        }
    return disk.device + off_bytes;
}

static void device_write(uint64_t off_bytes, const void *bytes, uint64_t len_bytes)
{
    (void)device_at(off_bytes, len_bytes); /* aligned */
    memcpy(disk_change(off_bytes, len_bytes), bytes, len_bytes);
}

/* --- Requests -------------------------------------------------------------------------------------------------------- */

static void push(enum kind kind, void *ptr)
{
    if (disk.n == REQUESTS_MAX)
        abort();
    requests[(disk.first + disk.n++) % REQUESTS_MAX] = (struct request){kind, ptr};
}

static void blk_submit(struct io_backend *be, struct io_blk *blk)
{
    (void)be;
    blk->queued = 1;
    push(KIND_BLK, blk);
}

static void blk_urge(struct io_backend *be, struct io_blk *blk)
{
    (void)be;
    blk->urgent = 1;
}

static void work_submit(struct io_backend *be, struct io_work *work)
{
    (void)be;
    push(KIND_WORK, work);
}

static void chunk_request(struct io_backend *be, struct io_chunk *chunk)
{
    (void)be;
    push(KIND_CHUNK, chunk);
}

static uint64_t chunk_survived(struct io_backend *be, uint32_t region)
{
    (void)be;
    return disk_has(region, 0, 0) && disk.regions[region].is_chunk ? disk.regions[region].size_bytes : 0;
}

static void chunk_close(struct io_backend *be, uint32_t region)
{
    (void)be;
    disk_memory(region);
    disk.regions[region].mem = NULL;
}

static void dma_submit(struct io_backend *be, struct io_dma *dma)
{
    (void)be;
    push(KIND_DMA, dma);
}

static int bounce_alloc(struct io_backend *be, uint64_t size_bytes, struct io_buf *ret_buf, void **ret_mem)
{
    uint32_t region = region_add(&disk.bounce, size_bytes);

    (void)be;
    if (region == IO_REGION_NONE)
        return -ENOMEM;
    *ret_buf = (struct io_buf){.region = region};
    *ret_mem = disk.regions[region].mem;
    return 0;
}

/* Whether it is asked for depends on where the records lie. */
static void records_touch(struct io_backend *be, void *mem, uint64_t size_bytes)
{
    (void)be;
    (void)mem;
    (void)size_bytes;
}

static int blk_now(struct io_backend *be, enum io_blk_op op, uint32_t dev, uint64_t off_bytes, void *mem,
                   uint64_t len_bytes)
{
    (void)be;
    if (dev != 0)
        abort();
    if (op == IO_BLK_READ)
        memcpy(mem, device_at(off_bytes, len_bytes), len_bytes);
    else if (op == IO_BLK_WRITE)
        device_write(off_bytes, mem, len_bytes);
    return 0;
}

static const struct io_backend_ops ops = {
    .blk_submit = blk_submit,
    .blk_urge = blk_urge,
    .work_submit = work_submit,
    .chunk_request = chunk_request,
    .chunk_survived = chunk_survived,
    .chunk_close = chunk_close,
    .dma_submit = dma_submit,
    .bounce_alloc = bounce_alloc,
    .records_touch = records_touch,
    .blk_now = blk_now,
};

struct io_backend *disk_backend(void)
{
    return &disk.be;
}

void disk_restart_hot(void)
{
    for (uint32_t i = 0; i < disk.n_regions; i++)
        if (!disk.regions[i].is_chunk)
            disk.regions[i].mem = NULL;
    disk.n = 0;
    disk.fail = 0;
}

static void area_empty(struct area *area)
{
    if (area->used_bytes && madvise(area->mem, area->used_bytes, MADV_DONTNEED) < 0)
        abort();
    area->used_bytes = 0;
}

void disk_snapshot(void)
{
    memset(&disk, 0, sizeof(disk));
    disk.memory = (struct area){snapshot_pages(DISK_MEMORY_BYTES), DISK_MEMORY_BYTES, 0};
    disk.bounce = (struct area){snapshot_pages(DISK_BOUNCE_BYTES), DISK_BOUNCE_BYTES, 0};
    disk.device = snapshot_pages(DISK_BYTES);
    disk.be.ops = &ops;
    snapshot_also(&disk, sizeof(disk));
}

void disk_restart(void)
{
    if (!disk.device) {
        disk.memory = (struct area){map(DISK_MEMORY_BYTES), DISK_MEMORY_BYTES, 0};
        disk.bounce = (struct area){map(DISK_BOUNCE_BYTES), DISK_BOUNCE_BYTES, 0};
        disk.device = map(DISK_BYTES);
        disk.be.ops = &ops;
    }
    area_empty(&disk.memory);
    area_empty(&disk.bounce);
    disk.n_regions = disk.n = 0;
    disk.fail = 0;
}

void disk_reset(void)
{
    disk_restart();
    for (; disk.n_dirty > 0; disk.n_dirty--) {
        uint32_t sector = disk.dirty[disk.n_dirty - 1];

        memset(disk.device + sector * SECTOR_BYTES, 0, SECTOR_BYTES);
        disk.is_dirty[sector] = false;
    }
}

/* --- Ends ------------------------------------------------------------------------------------------------------------ */

static void blk_end(struct io_blk *blk, int32_t error)
{
    blk->result = error ? error : (int32_t)blk->len_bytes;
    if (!error && blk->op == IO_BLK_READ)
        memcpy(buf_at(blk->buf, blk->len_bytes), device_at(blk->off_bytes, blk->len_bytes), blk->len_bytes);
    else if (!error && blk->op == IO_BLK_WRITE)
        device_write(blk->off_bytes, buf_at(blk->buf, blk->len_bytes), blk->len_bytes);
    else if (!error)
        blk->result = 0;
    blk->queued = 0;
    blk->done(blk);
}

static void work_end(struct io_work *work, int32_t error)
{
    const uint8_t *src = buf_at(work->src, work->len_bytes);

    work->result = error ? -EFAULT : 0;
    if (!error && work->op != IO_WORK_HASH)
        memmove(buf_at(work->dst, work->len_bytes), src, work->len_bytes);
    if (!error && work->op != IO_WORK_COPY)
        checksum_granules(work->seed, work->first_granule, src, work->len_bytes, work->sums);
    work->done(work);
}

static void chunk_end(struct io_chunk *chunk, int32_t error)
{
    chunk->region = error ? IO_REGION_NONE : region_add(&disk.memory, chunk->size_bytes);
    chunk->result = chunk->region == IO_REGION_NONE ? -ENOMEM : 0;
    if (chunk->result == 0)
        chunk->size_bytes = disk.regions[chunk->region].size_bytes;
    chunk->done(chunk);
}

static void dma_end(struct io_dma *dma, int32_t error)
{
    uint64_t bytes = 0;

    if (dma->op != IO_DMA_CANCEL)
        dma->run_first(dma);
    for (uint32_t i = 0; dma->op != IO_DMA_CANCEL && i < dma->n_runs; i++) {
        struct io_dma_run run;

        dma->run_next(dma, &run);
        uint8_t *at = buf_at((struct io_buf){.region = run.region, .off = run.off_bytes}, run.len_bytes);

        if (!error && dma->op == IO_DMA_SPILL)
            memset(at, 0x5a, run.len_bytes);
        bytes += run.len_bytes;
    }
    if (dma->op != IO_DMA_CANCEL && bytes != dma->bytes)
        abort();
    dma->result = error;
    dma->done(dma);
}

void disk_fail_next(int32_t error)
{
    disk.fail = error;
}

uint32_t disk_pending(void)
{
    return disk.n;
}

bool disk_step(void)
{
    if (disk.n == 0)
        return false;
    struct request r = requests[disk.first];
    int32_t error = disk.fail;

    disk.first = (disk.first + 1) % REQUESTS_MAX;
    disk.n--;
    disk.fail = 0;
    switch (r.kind) {
    case KIND_BLK:
        blk_end(r.ptr, error);
        break;
    case KIND_WORK:
        work_end(r.ptr, error);
        break;
    case KIND_CHUNK:
        chunk_end(r.ptr, error);
        break;
    case KIND_DMA:
        dma_end(r.ptr, error);
        break;
    }
    return true;
}
