/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copy on write in sectors: opening a partition writes a header and no more, so a list that is searched is enough.
 * Pieces are read in the order in which they lie, which is where reading ahead pays: direct I/O of small ones would be
 * one request each.
 */
#include "client/ctl/fsck_backend.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/checked.h"
#include "io/checksum.h"

/* The first that is allocated is the store's; what it reads there are sums, far from the pieces. */
#define REGION_STORE 0

struct fsck_sector {
    uint64_t off_bytes;
    uint8_t *mem;
};

static struct fsck_backend *backend_of(struct io_backend *be)
{
    return container_of(be, struct fsck_backend, backend);
}

/* ── what was written ───────────────────────────────────────────────────────────────────────────────────────────── */

static struct fsck_sector *sector_find(const struct fsck_backend *b, uint64_t off_bytes)
{
    for (size_t i = 0; i < b->n_sectors; i++)
        if (b->sectors[i].off_bytes == off_bytes)
            return &b->sectors[i];
    return NULL;
}

static int sector_add(struct fsck_backend *b, uint64_t off_bytes, struct fsck_sector **ret_sector)
{
    if (b->n_sectors == b->room_sectors) {
        size_t room = b->room_sectors ? b->room_sectors * 2 : 64;
        struct fsck_sector *sectors = realloc(b->sectors, room * sizeof(*sectors));

        if (!sectors)
            return -ENOMEM;
        b->sectors = sectors;
        b->room_sectors = room;
    }
    uint8_t *mem = malloc(SECTOR_BYTES);
    if (!mem)
        return -ENOMEM;
    b->sectors[b->n_sectors] = (struct fsck_sector){.off_bytes = off_bytes, .mem = mem};
    *ret_sector = &b->sectors[b->n_sectors++];
    return 0;
}

static int overlay_write(struct fsck_backend *b, uint64_t off_bytes, const uint8_t *mem, uint64_t len_bytes)
{
    for (uint64_t at = 0; at < len_bytes; at += SECTOR_BYTES) {
        struct fsck_sector *sector = sector_find(b, off_bytes + at);
        int r = sector ? 0 : sector_add(b, off_bytes + at, &sector);

        if (r < 0)
            return r;
        memcpy(sector->mem, mem + at, SECTOR_BYTES);
    }
    return 0;
}

static void overlay_read(const struct fsck_backend *b, uint64_t off_bytes, uint8_t *mem, uint64_t len_bytes)
{
    for (size_t i = 0; i < b->n_sectors; i++) {
        const struct fsck_sector *s = &b->sectors[i];

        if (s->off_bytes >= off_bytes && s->off_bytes < off_bytes + len_bytes)
            memcpy(mem + (s->off_bytes - off_bytes), s->mem, SECTOR_BYTES);
    }
}

/* ── the operations ─────────────────────────────────────────────────────────────────────────────────────────────── */

static int blk_now(struct io_backend *be, enum io_blk_op op, uint32_t dev, uint64_t off_bytes, void *mem,
                   uint64_t len_bytes)
{
    struct fsck_backend *b = backend_of(be);
    struct io_backend *device = &b->device.backend;

    if (op == IO_BLK_WRITE)
        b->ahead_bytes = 0;
    if (op != IO_BLK_READ && !b->writes_through)
        return op == IO_BLK_WRITE ? overlay_write(b, off_bytes, mem, len_bytes) : 0;
    int r = device->ops->blk_now(device, op, dev, off_bytes, mem, len_bytes);
    if (r == 0 && op == IO_BLK_READ)
        overlay_read(b, off_bytes, mem, len_bytes);
    return r;
}

static bool is_ahead(const struct fsck_backend *b, uint64_t off_bytes, uint64_t len_bytes)
{
    return off_bytes >= b->ahead_off_bytes && off_bytes + len_bytes <= b->ahead_off_bytes + b->ahead_bytes;
}

/* Reads that go on near where the last one ended get more than they ask for. What fails is read again by itself. */
static int read_ahead(struct fsck_backend *b, uint64_t off_bytes, uint8_t *mem, uint64_t len_bytes)
{
    bool follows = off_bytes + FSCK_AHEAD_BYTES > b->read_end_bytes && off_bytes < b->read_end_bytes + GRANULE_BYTES;

    if (!is_ahead(b, off_bytes, len_bytes) && follows && len_bytes < FSCK_AHEAD_BYTES) {
        uint64_t want = MIN(FSCK_AHEAD_BYTES, b->size_bytes - off_bytes);

        b->ahead_off_bytes = off_bytes;
        b->ahead_bytes = blk_now(&b->backend, IO_BLK_READ, 0, off_bytes, b->ahead, want) == 0 ? want : 0;
    }
    if (!is_ahead(b, off_bytes, len_bytes)) {
        b->read_end_bytes = off_bytes + len_bytes;
        return blk_now(&b->backend, IO_BLK_READ, 0, off_bytes, mem, len_bytes);
    }
    b->read_end_bytes = b->ahead_off_bytes + b->ahead_bytes;
    memcpy(mem, b->ahead + (off_bytes - b->ahead_off_bytes), len_bytes);
    return 0;
}

static void blk_submit(struct io_backend *be, struct io_blk *blk)
{
    list_push_tail(&backend_of(be)->blks, &blk->link);
}

static void blk_urge(struct io_backend *be, struct io_blk *blk)
{
    (void)be, (void)blk;
}

static void work_submit(struct io_backend *be, struct io_work *work)
{
    list_push_tail(&backend_of(be)->works, &work->link);
}

static int bounce_alloc(struct io_backend *be, uint64_t size_bytes, struct io_buf *ret_buf, void **ret_mem)
{
    struct fsck_backend *b = backend_of(be);

    if (b->n_regions == FSCK_REGIONS_MAX)
        return -ENOSPC;
    size_bytes = round_up(size_bytes, SECTOR_BYTES);
    uint8_t *mem = aligned_alloc(SECTOR_BYTES, size_bytes);
    if (!mem)
        return -ENOMEM;
    memset(mem, 0, size_bytes);
    b->regions[b->n_regions] = mem;
    *ret_buf = (struct io_buf){.region = b->n_regions++};
    *ret_mem = mem;
    return 0;
}

static void run_blk(struct fsck_backend *b, struct io_blk *blk)
{
    uint8_t *mem = blk->op == IO_BLK_FLUSH ? NULL : b->regions[blk->buf.region] + blk->buf.off;
    int r = blk->op == IO_BLK_READ && blk->buf.region != REGION_STORE
                ? read_ahead(b, blk->off_bytes, mem, blk->len_bytes)
                : blk_now(&b->backend, (enum io_blk_op)blk->op, 0, blk->off_bytes, mem, blk->len_bytes);

    blk->result = r < 0 ? r : (int32_t)blk->len_bytes;
    blk->done(blk);
}

static void run_work(struct fsck_backend *b, struct io_work *work)
{
    const uint8_t *src = b->regions[work->src.region] + work->src.off;

    if (work->op != IO_WORK_HASH)
        memcpy(b->regions[work->dst.region] + work->dst.off, src, work->len_bytes);
    if (work->op != IO_WORK_COPY)
        checksum_granules(work->seed, work->first_granule, src, work->len_bytes, work->sums);
    work->result = 0;
    work->done(work);
}

void fsck_backend_run(struct fsck_backend *b)
{
    struct list *link;

    for (;;) {
        if ((link = list_pop(&b->blks)))
            run_blk(b, container_of(link, struct io_blk, link));
        else if ((link = list_pop(&b->works)))
            run_work(b, container_of(link, struct io_work, link));
        else
            return;
    }
}

int fsck_backend_init(struct fsck_backend *b, int fd, uint64_t size_bytes, bool writes_through)
{
    static const struct io_backend_ops ops = {
        .blk_submit = blk_submit,
        .blk_urge = blk_urge,
        .work_submit = work_submit,
        .bounce_alloc = bounce_alloc,
        .blk_now = blk_now,
    };
    uint8_t *ahead = aligned_alloc(SECTOR_BYTES, FSCK_AHEAD_BYTES);

    if (!ahead)
        return -ENOMEM;
    *b = (struct fsck_backend){
        .backend = {.ops = &ops}, .writes_through = writes_through, .size_bytes = size_bytes, .ahead = ahead};
    device_backend_init(&b->device, fd);
    list_init(&b->blks);
    list_init(&b->works);
    return 0;
}

void fsck_backend_deinit(struct fsck_backend *b)
{
    for (uint32_t i = 0; i < b->n_regions; i++)
        free(b->regions[i]);
    for (size_t i = 0; i < b->n_sectors; i++)
        free(b->sectors[i].mem);
    free(b->sectors);
    free(b->ahead);
}
