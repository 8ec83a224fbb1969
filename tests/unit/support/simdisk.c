/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See simdisk.h. One thread. Requests wait in an array; simdisk_step() takes a random one, so completions come in every
 * order that real devices and workers could produce. Bytes of a write are taken when it completes, as DMA might.
 *
 * Two arrays a device rather than a list of unflushed writes: a sector that was written twice between two flushes is
 * either its last state or its flushed one, which loses only histories that a drive with one cache line a sector could
 * not have either.
 */
#include "tests/unit/support/simdisk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/mix.h"
#include "io/checksum.h"
#include "tests/unit/support/zeroed.h"

#define REGIONS_MAX 128
#define DEVS_MAX 8
#define TORN_PERCENT 2
#define PART_BYTES 512
#define STAMP_GIVEN_UP UINT64_MAX /* newer than any flush */

enum request_kind { REQUEST_BLK, REQUEST_WORK, REQUEST_CHUNK, REQUEST_DMA };

struct request {
    enum request_kind kind;
    void *ptr;
    uint64_t stamp;
};

struct device {
    uint64_t size_bytes;
    uint8_t *image, *durable;
    uint64_t *stamp; /* of the last completed write that is not durable, by sector; 0: durable */
    uint32_t *dirty; /* sectors with a stamp */
    size_t n_dirty;
    bool is_dead;
};

struct region {
    uint8_t *mem;
    uint64_t size_bytes;
    uint32_t node;
    bool is_chunk;
    bool spare; /* closed by a restart: its pages may serve the next region of its size */
};

struct lane {
    uint8_t *slots[2]; /* by enum io_dma_op */
    uint32_t n_slots;
    uint64_t slot_bytes;
    int32_t status; /* 0, or why it is over */
};

struct simdisk {
    struct io_backend be;
    uint64_t rng[4];
    uint64_t clock; /* counts submissions and completions */
    struct simdisk_faults faults;
    struct simdisk_stat stat;
    struct device devs[DEVS_MAX];
    uint32_t n_devs;
    struct region regions[REGIONS_MAX];
    uint32_t n_regions;
    struct request *requests;
    size_t n_requests, room;
    uint32_t refuse_chunks;
    struct lane lanes[SIMDISK_LANES_MAX];
    int32_t fail_dma;
    bool fail_set[3], short_set[3];
    simdisk_watch_fn watch; /* or NULL */
    void *watch_ctx;
    int32_t fail[3];
};

/* --- Randomness: xoshiro256**, seeded by splitmix64 --- */

static uint64_t rotl(uint64_t x, int k)
{
    return (x << k) | (x >> (64 - k));
}

uint64_t simdisk_random(struct simdisk *d)
{
    uint64_t *s = d->rng, result = rotl(s[1] * 5, 7) * 9, t = s[1] << 17;

    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 45);
    return result;
}

uint64_t simdisk_below(struct simdisk *d, uint64_t n)
{
    return (uint64_t)(((unsigned __int128)simdisk_random(d) * n) >> 64);
}

static bool chance(struct simdisk *d, uint32_t millionths)
{
    return millionths > 0 && simdisk_below(d, 1000000) < millionths;
}

/* --- Memory --- */

static void *must(void *p)
{
    if (!p)
        abort();
    return p;
}

/* Regions come and go, hundreds in a run, and are used again. Not under AddressSanitizer, which should see who uses one that
 * is gone. */
#define KEPT_MAX 32
#define KEPT_BYTES_MAX (2 * MIB)

struct kept_region {
    void *mem;
    uint64_t size_bytes;
};

static _Thread_local struct kept_region kept_regions[KEPT_MAX];

static void *region_alloc(uint64_t size_bytes)
{
    for (uint32_t i = 0; i < KEPT_MAX; i++) {
        void *mem = kept_regions[i].mem;

        if (!mem || kept_regions[i].size_bytes != size_bytes)
            continue;
        kept_regions[i] = (struct kept_region){0};
        zeroed_again(mem, size_bytes);
        return mem;
    }
    return must(zeroed_alloc(size_bytes));
}

static void region_free(void *mem, uint64_t size_bytes)
{
    for (uint32_t i = 0; i < KEPT_MAX && mem && size_bytes <= KEPT_BYTES_MAX && !ZEROED_ON_HEAP; i++) {
        if (kept_regions[i].mem)
            continue;
        kept_regions[i] = (struct kept_region){.mem = mem, .size_bytes = size_bytes};
        return;
    }
    zeroed_free(mem, size_bytes);
}

uint32_t simdisk_region_add(struct simdisk *d, uint64_t size_bytes)
{
    for (uint32_t i = 0; i < d->n_regions; i++)
        if (d->regions[i].spare && d->regions[i].size_bytes == size_bytes) {
            d->regions[i].spare = d->regions[i].is_chunk = false;
            zeroed_again(d->regions[i].mem, size_bytes);
            return i;
        }
    for (uint32_t i = 0; i < REGIONS_MAX; i++)
        if (!d->regions[i].mem) {
            d->regions[i].mem = region_alloc(size_bytes);
            d->regions[i].size_bytes = size_bytes;
            d->n_regions = MAX(d->n_regions, i + 1);
            return i;
        }
    abort();
}

uint8_t *simdisk_memory(struct simdisk *d, uint32_t region)
{
    return d->regions[region].mem;
}

uint64_t simdisk_region_bytes(const struct simdisk *d, uint32_t region, uint32_t node)
{
    const struct region *r = &d->regions[region];

    return r->mem && !r->spare && r->node == node ? r->size_bytes : 0;
}

void simdisk_refuse_chunks(struct simdisk *d, uint32_t n)
{
    d->refuse_chunks = n;
}

static uint8_t *buf_at(struct simdisk *d, struct io_buf buf, uint64_t len_bytes)
{
    if (buf.region >= d->n_regions || !d->regions[buf.region].mem || d->regions[buf.region].spare ||
        buf.off + len_bytes > d->regions[buf.region].size_bytes)
        abort(); /* the code under test named memory that it does not have */
    return d->regions[buf.region].mem + buf.off;
}

uint32_t simdisk_device_add(struct simdisk *d, uint64_t size_bytes)
{
    uint64_t sectors = size_bytes / SECTOR_BYTES;

    if (d->n_devs == DEVS_MAX)
        abort();
    d->devs[d->n_devs] = (struct device){
        .size_bytes = size_bytes,
        .image = must(calloc(1, size_bytes)),
        .durable = must(calloc(1, size_bytes)),
        .stamp = must(calloc(sectors, sizeof(uint64_t))),
        .dirty = must(calloc(sectors, sizeof(uint32_t))),
    };
    return d->n_devs++;
}

/* --- The device --- */

void simdisk_watch_writes(struct simdisk *d, simdisk_watch_fn watch, void *ctx)
{
    d->watch = watch;
    d->watch_ctx = ctx;
}

static void device_write(struct simdisk *d, struct device *v, uint64_t off, const uint8_t *bytes, uint64_t len)
{
    if (d->watch)
        d->watch(d->watch_ctx, (uint32_t)(v - d->devs), off, len);
    memcpy(v->image + off, bytes, len);
    for (uint64_t s = off / SECTOR_BYTES; s < (off + len) / SECTOR_BYTES; s++) {
        if (!v->stamp[s])
            v->dirty[v->n_dirty++] = (uint32_t)s;
        v->stamp[s] = d->clock;
    }
}

static void device_flush(struct device *v, uint64_t before)
{
    size_t kept = 0;

    for (size_t i = 0; i < v->n_dirty; i++) {
        uint64_t s = v->dirty[i];
        if (v->stamp[s] >= before) {
            v->dirty[kept++] = v->dirty[i];
            continue;
        }
        memcpy(v->durable + s * SECTOR_BYTES, v->image + s * SECTOR_BYTES, SECTOR_BYTES);
        v->stamp[s] = 0;
    }
    v->n_dirty = kept;
}

/* What the flush should have made durable is not made so by another one, but by writing it again. */
static void device_flush_failed(struct device *v, uint64_t before)
{
    for (size_t i = 0; i < v->n_dirty; i++)
        if (v->stamp[v->dirty[i]] < before)
            v->stamp[v->dirty[i]] = STAMP_GIVEN_UP;
}

/* Whoever starts on the device anew begins with a flush, and is to be told whether that works. */
static void device_is_asked_again(struct simdisk *d, struct device *v)
{
    for (size_t i = 0; i < v->n_dirty; i++)
        if (v->stamp[v->dirty[i]] == STAMP_GIVEN_UP)
            v->stamp[v->dirty[i]] = d->clock;
}

static void device_crash(struct simdisk *d, struct device *v)
{
    for (size_t i = 0; i < v->n_dirty; i++) {
        uint64_t s = v->dirty[i];
        uint8_t *image = v->image + s * SECTOR_BYTES, *durable = v->durable + s * SECTOR_BYTES;
        bool torn = simdisk_below(d, 100) < TORN_PERCENT;
        for (uint32_t part = 0; torn && part < SECTOR_BYTES; part += PART_BYTES)
            if (simdisk_random(d) & 1)
                memcpy(durable + part, image + part, PART_BYTES);
        bool kept = !torn && (simdisk_random(d) & 1);
        if (kept)
            memcpy(durable, image, SECTOR_BYTES);
        d->stat.torn_sectors += torn;
        d->stat.lost_sectors += !torn && !kept;
        memcpy(image, durable, SECTOR_BYTES);
        v->stamp[s] = 0;
    }
    v->n_dirty = 0;
}

/* --- Completing --- */

static void blk_write(struct simdisk *d, struct device *v, const struct io_blk *blk, uint32_t len)
{
    const struct simdisk_faults *f = &d->faults;
    uint64_t off = blk->off_bytes, room = v->size_bytes - f->first_byte - len;
    bool may_go_wrong = off >= f->first_byte;

    if (may_go_wrong && chance(d, f->lose)) {
        d->stat.lost_writes++;
        return;
    }
    if (may_go_wrong && chance(d, f->misdirect)) {
        d->stat.misdirected_writes++;
        off = f->first_byte + simdisk_below(d, room / SECTOR_BYTES) * SECTOR_BYTES;
    }
    device_write(d, v, off, buf_at(d, blk->buf, len), len);
    if (may_go_wrong && chance(d, f->bit_flip)) {
        d->stat.flipped_writes++;
        v->image[off + simdisk_below(d, len)] ^= (uint8_t)(1 << simdisk_below(d, 8));
    }
}

/* What becomes of a transfer: a negative errno, or how many bytes are moved. */
static int32_t blk_fate(struct simdisk *d, const struct io_blk *blk)
{
    const struct simdisk_faults *f = &d->faults;
    uint32_t sectors = blk->len_bytes / SECTOR_BYTES;
    uint32_t error = blk->op == IO_BLK_READ ? f->read_error : blk->op == IO_BLK_WRITE ? f->write_error : f->flush_error;

    if (d->fail_set[blk->op]) {
        d->fail_set[blk->op] = false;
        d->stat.errors++;
        return d->fail[blk->op];
    }
    if (d->devs[blk->dev].is_dead || chance(d, error)) {
        d->stat.errors++;
        return -EIO;
    }
    if (d->short_set[blk->op] && sectors > 1) {
        d->short_set[blk->op] = false;
        return SECTOR_BYTES;
    }
    if (sectors > 1 && chance(d, f->short_count)) {
        d->stat.short_counts++;
        return (int32_t)((1 + simdisk_below(d, sectors - 1)) * SECTOR_BYTES);
    }
    return (int32_t)blk->len_bytes;
}

static void blk_complete(struct simdisk *d, struct io_blk *blk, uint64_t stamp)
{
    struct device *v = &d->devs[blk->dev];
    int32_t fate = blk_fate(d, blk);

    if (fate > 0 && blk->op == IO_BLK_READ)
        memcpy(buf_at(d, blk->buf, (uint32_t)fate), v->image + blk->off_bytes, (uint32_t)fate);
    else if (fate > 0 && blk->op == IO_BLK_WRITE)
        blk_write(d, v, blk, (uint32_t)fate);
    else if (fate == 0 && blk->op == IO_BLK_FLUSH)
        device_flush(v, stamp);
    else if (blk->op == IO_BLK_FLUSH)
        device_flush_failed(v, stamp);
    blk->result = fate;
    blk->queued = 0;
    blk->done(blk);
}

static void work_complete(struct simdisk *d, struct io_work *work)
{
    const uint8_t *src = buf_at(d, work->src, work->len_bytes);

    work->result = 0;
    if (chance(d, d->faults.work_fault)) {
        work->result = -EFAULT;
    } else {
        if (work->op != IO_WORK_HASH)
            memcpy(buf_at(d, work->dst, work->len_bytes), src, work->len_bytes);
        if (work->op != IO_WORK_COPY)
            checksum_granules(work->seed, work->first_granule, src, work->len_bytes, work->sums);
    }
    work->done(work);
}

static void chunk_complete(struct simdisk *d, struct io_chunk *chunk)
{
    if (d->refuse_chunks > 0 || chance(d, d->faults.no_chunk)) {
        d->refuse_chunks -= d->refuse_chunks > 0;
        d->stat.refused_chunks++;
        chunk->result = -ENOMEM;
    } else {
        chunk->region = simdisk_region_add(d, chunk->size_bytes);
        d->regions[chunk->region].node = chunk->node;
        d->regions[chunk->region].is_chunk = true;
        chunk->result = 0;
    }
    chunk->done(chunk);
}

/* --- A GPU --- */

static void lane_free(struct lane *l)
{
    for (int op = 0; op < 2; op++)
        zeroed_free(l->slots[op], l->n_slots * l->slot_bytes);
}

void simdisk_lane_new(struct simdisk *d, uint32_t lane, uint32_t slots, uint64_t slot_bytes)
{
    struct lane *l = &d->lanes[lane];

    lane_free(l);
    for (int op = 0; op < 2; op++)
        l->slots[op] = must(zeroed_alloc(slots * slot_bytes));
    l->n_slots = slots;
    l->slot_bytes = slot_bytes;
    l->status = 0;
}

uint8_t *simdisk_slot(struct simdisk *d, uint32_t lane, enum io_dma_op op, uint64_t seq)
{
    const struct lane *l = &d->lanes[lane];

    return l->slots[op] + (seq - 1) % l->n_slots * l->slot_bytes;
}

void simdisk_fail_next_dma(struct simdisk *d, int32_t error)
{
    d->fail_dma = error;
}

/* The first of them, as told by the runs. */
static void dma_move(struct simdisk *d, struct io_dma *dma, uint64_t bytes)
{
    uint8_t *slot = simdisk_slot(d, dma->lane, dma->op, dma->seq) + dma->base_bytes;
    uint64_t at = 0;

    dma->run_first(dma);
    for (uint32_t i = 0; i < dma->n_runs; i++) {
        struct io_dma_run run;

        dma->run_next(dma, &run);
        uint8_t *mem = buf_at(d, (struct io_buf){.region = run.region, .off = run.off_bytes}, run.len_bytes);
        uint64_t len = at < bytes ? MIN(bytes - at, (uint64_t)run.len_bytes) : 0;
        if (dma->base_bytes + at + run.len_bytes > d->lanes[dma->lane].slot_bytes || run.len_bytes == 0)
            abort();
        if (dma->op == IO_DMA_SPILL)
            memcpy(mem, slot + at, len);
        else
            memcpy(slot + at, mem, len);
        at += run.len_bytes;
    }
    if (at != dma->bytes)
        abort();
}

static void dma_complete(struct simdisk *d, struct io_dma *dma)
{
    struct lane *l = &d->lanes[dma->lane];

    if (dma->op == IO_DMA_CANCEL) {
        l->status = l->status ? l->status : -ECANCELED;
        dma->result = 0;
        dma->done(dma);
        return;
    }
    dma->result = l->status == -ECANCELED ? -ECANCELED : l->status ? -EPIPE : d->fail_dma;
    if (l->status == 0 && dma->result == 0 && chance(d, d->faults.dma_error))
        dma->result = -EIO;
    if (l->status == 0)
        d->fail_dma = 0;
    if (dma->result == 0)
        dma_move(d, dma, dma->bytes);
    else if (l->status == 0 && dma->op == IO_DMA_SPILL)
        dma_move(d, dma, simdisk_below(d, dma->bytes));
    l->status = l->status ? l->status : dma->result;
    dma->done(dma);
}

/* The one of its lane and direction that was submitted first. */
static size_t dma_first(const struct simdisk *d, size_t i)
{
    const struct io_dma *dma = d->requests[i].ptr;

    for (size_t j = 0; j < d->n_requests; j++) {
        const struct io_dma *other = d->requests[j].ptr;
        if (d->requests[j].kind == REQUEST_DMA && other->lane == dma->lane && other->op == dma->op &&
            d->requests[j].stamp < d->requests[i].stamp)
            i = j;
    }
    return i;
}

bool simdisk_step(struct simdisk *d)
{
    if (d->n_requests == 0)
        return false;
    size_t i = simdisk_below(d, d->n_requests);
    if (d->requests[i].kind == REQUEST_DMA)
        i = dma_first(d, i);
    struct request r = d->requests[i];
    d->requests[i] = d->requests[--d->n_requests];
    d->clock++;
    if (r.kind == REQUEST_BLK)
        blk_complete(d, r.ptr, r.stamp);
    else if (r.kind == REQUEST_WORK)
        work_complete(d, r.ptr);
    else if (r.kind == REQUEST_DMA)
        dma_complete(d, r.ptr);
    else
        chunk_complete(d, r.ptr);
    return true;
}

uint32_t simdisk_pending(const struct simdisk *d)
{
    return (uint32_t)d->n_requests;
}

uint32_t simdisk_pending_blks(const struct simdisk *d, enum io_blk_op op, bool urgent, uint16_t lane)
{
    uint32_t n = 0;

    for (size_t i = 0; i < d->n_requests; i++) {
        const struct io_blk *blk = d->requests[i].ptr;

        n += d->requests[i].kind == REQUEST_BLK && blk->op == op && blk->urgent == urgent && blk->lane == lane;
    }
    return n;
}

/* --- The table of operations --- */

static struct simdisk *simdisk_of(struct io_backend *be)
{
    return container_of(be, struct simdisk, be);
}

static void submit(struct simdisk *d, enum request_kind kind, void *ptr)
{
    if (d->n_requests == d->room) {
        d->room = d->room ? d->room * 2 : 64;
        d->requests = must(realloc(d->requests, d->room * sizeof(*d->requests)));
    }
    d->requests[d->n_requests++] = (struct request){.kind = kind, .ptr = ptr, .stamp = ++d->clock};
}

static void sim_blk_submit(struct io_backend *be, struct io_blk *blk)
{
    struct simdisk *d = simdisk_of(be);

    if (blk->dev >= d->n_devs)
        abort();
    if (blk->op != IO_BLK_FLUSH) {
        uint64_t size = d->devs[blk->dev].size_bytes;
        if (blk->len_bytes == 0 || blk->off_bytes % SECTOR_BYTES || blk->len_bytes % SECTOR_BYTES ||
            blk->buf.off % SECTOR_BYTES || blk->off_bytes > size || blk->len_bytes > size - blk->off_bytes)
            abort();
        (void)buf_at(d, blk->buf, blk->len_bytes);
    }
    blk->queued = 1;
    submit(d, REQUEST_BLK, blk);
}

/* Whatever is pending counts as queued: its order is the seed's alone. */
static void sim_blk_urge(struct io_backend *be, struct io_blk *blk)
{
    (void)be;
    if (blk->queued)
        blk->urgent = 1;
}

static void sim_work_submit(struct io_backend *be, struct io_work *work)
{
    submit(simdisk_of(be), REQUEST_WORK, work);
}

static void sim_chunk_request(struct io_backend *be, struct io_chunk *chunk)
{
    submit(simdisk_of(be), REQUEST_CHUNK, chunk);
}

static void sim_records_touch(struct io_backend *be, void *mem, uint64_t size_bytes)
{
    (void)be;
    (void)mem;
    (void)size_bytes;
}

static uint64_t sim_chunk_survived(struct io_backend *be, uint32_t region)
{
    const struct simdisk *d = simdisk_of(be);
    const struct region *r = &d->regions[MIN(region, (uint32_t)REGIONS_MAX - 1)];

    return region < REGIONS_MAX && r->mem && r->is_chunk && !r->spare ? r->size_bytes : 0;
}

static void sim_chunk_close(struct io_backend *be, uint32_t region)
{
    struct region *r = &simdisk_of(be)->regions[region];

    region_free(r->mem, r->size_bytes);
    *r = (struct region){0};
}

static void sim_dma_submit(struct io_backend *be, struct io_dma *dma)
{
    struct simdisk *d = simdisk_of(be);

    if (dma->lane >= SIMDISK_LANES_MAX || !d->lanes[dma->lane].slots[0] ||
        (dma->n_runs == 0) != (dma->op == IO_DMA_CANCEL))
        abort();
    submit(d, REQUEST_DMA, dma);
}

static int sim_bounce_alloc(struct io_backend *be, uint64_t size_bytes, struct io_buf *ret_buf, void **ret_mem)
{
    struct simdisk *d = simdisk_of(be);
    uint32_t region = simdisk_region_add(d, size_bytes);

    *ret_buf = (struct io_buf){.region = region};
    *ret_mem = simdisk_memory(d, region);
    return 0;
}

static int blk_now_fate(struct simdisk *d, enum io_blk_op op, struct device *v)
{
    int r = v->is_dead ? -EIO : 0;

    if (d->fail_set[op]) {
        d->fail_set[op] = false;
        r = d->fail[op] < 0 ? d->fail[op] : -EIO;
    }
    if (r < 0 && op == IO_BLK_FLUSH)
        device_flush_failed(v, d->clock);
    return r;
}

static int sim_blk_now(struct io_backend *be, enum io_blk_op op, uint32_t dev, uint64_t off_bytes, void *mem,
                       uint64_t len_bytes)
{
    struct simdisk *d = simdisk_of(be);
    struct device *v = &d->devs[dev];

    d->clock++;
    int r = blk_now_fate(d, op, v);
    if (r < 0)
        return r;
    if (op == IO_BLK_FLUSH) {
        device_flush(v, d->clock);
        return 0;
    }
    if (off_bytes % SECTOR_BYTES || len_bytes % SECTOR_BYTES || (uintptr_t)mem % SECTOR_BYTES)
        abort();
    if (off_bytes > v->size_bytes || len_bytes > v->size_bytes - off_bytes)
        return -EIO;
    if (op == IO_BLK_READ)
        memcpy(mem, v->image + off_bytes, len_bytes);
    else
        device_write(d, v, off_bytes, mem, len_bytes);
    return 0;
}

static const struct io_backend_ops sim_ops = {
    .blk_submit = sim_blk_submit,
    .blk_urge = sim_blk_urge,
    .work_submit = sim_work_submit,
    .chunk_request = sim_chunk_request,
    .chunk_survived = sim_chunk_survived,
    .records_touch = sim_records_touch,
    .chunk_close = sim_chunk_close,
    .dma_submit = sim_dma_submit,
    .bounce_alloc = sim_bounce_alloc,
    .blk_now = sim_blk_now,
};

/* --- Life --- */

struct simdisk *simdisk_new(uint64_t seed)
{
    struct simdisk *d = must(calloc(1, sizeof(*d)));

    d->be.ops = &sim_ops;
    for (int i = 0; i < 4; i++)
        d->rng[i] = splitmix64_next(&seed);
    return d;
}

void simdisk_free(struct simdisk *d)
{
    if (!d)
        return;
    for (uint32_t i = 0; i < d->n_devs; i++) {
        free(d->devs[i].image);
        free(d->devs[i].durable);
        free(d->devs[i].stamp);
        free(d->devs[i].dirty);
    }
    for (uint32_t i = 0; i < d->n_regions; i++)
        region_free(d->regions[i].mem, d->regions[i].size_bytes);
    for (uint32_t i = 0; i < SIMDISK_LANES_MAX; i++)
        lane_free(&d->lanes[i]);
    free(d->requests);
    free(d);
}

struct io_backend *simdisk_backend(struct simdisk *d)
{
    return &d->be;
}

struct simdisk_faults *simdisk_faults(struct simdisk *d)
{
    return &d->faults;
}

const struct simdisk_stat *simdisk_stat(const struct simdisk *d)
{
    return &d->stat;
}

/* Nothing is pending any more, and what was to fail next is forgotten. */
static void requests_drop(struct simdisk *d)
{
    d->n_requests = 0;
    memset(d->fail_set, 0, sizeof(d->fail_set));
    memset(d->short_set, 0, sizeof(d->short_set));
    for (uint32_t i = 0; i < d->n_devs; i++)
        device_is_asked_again(d, &d->devs[i]);
}

void simdisk_restart(struct simdisk *d)
{
    requests_drop(d);
    for (uint32_t i = 0; i < d->n_regions; i++)
        d->regions[i].spare = d->regions[i].mem != NULL;
}

void simdisk_die(struct simdisk *d, uint32_t dev, bool is_dead)
{
    d->devs[dev].is_dead = is_dead;
}

/* Sectors that a transfer has moved when nobody waits for it any more: none, all, or any. */
static bool blk_sector_moved(struct simdisk *d, uint64_t fate)
{
    return fate == 0 || (fate == 1 && (simdisk_random(d) & 1));
}

static void blk_cut(struct simdisk *d, const struct io_blk *blk)
{
    struct device *v = &d->devs[blk->dev];
    uint64_t fate = simdisk_below(d, 3);

    if (blk->op == IO_BLK_FLUSH)
        return;
    uint8_t *bytes = buf_at(d, blk->buf, blk->len_bytes);
    d->clock++;
    for (uint32_t at = 0; at < blk->len_bytes; at += SECTOR_BYTES) {
        if (!blk_sector_moved(d, fate))
            continue;
        if (blk->op == IO_BLK_WRITE)
            device_write(d, v, blk->off_bytes + at, bytes + at, SECTOR_BYTES);
        else
            memcpy(bytes + at, v->image + blk->off_bytes + at, SECTOR_BYTES);
    }
}

void simdisk_hot_restart(struct simdisk *d)
{
    for (size_t i = 0; i < d->n_requests; i++) {
        if (d->requests[i].kind == REQUEST_BLK) {
            blk_cut(d, d->requests[i].ptr);
        } else if (d->requests[i].kind == REQUEST_WORK) {
            const struct io_work *work = d->requests[i].ptr;

            if (work->op != IO_WORK_HASH)
                memcpy(buf_at(d, work->dst, work->len_bytes), buf_at(d, work->src, work->len_bytes),
                       simdisk_below(d, work->len_bytes + 1));
        } else if (d->requests[i].kind == REQUEST_DMA) {
            struct io_dma *dma = d->requests[i].ptr;

            if (dma->op == IO_DMA_SPILL && d->lanes[dma->lane].status == 0)
                dma_move(d, dma, simdisk_below(d, dma->bytes + 1));
        }
    }
    requests_drop(d);
    for (uint32_t i = 0; i < d->n_regions; i++)
        d->regions[i].spare = d->regions[i].mem && !d->regions[i].is_chunk;
}

/* What becomes of writes in flight when nobody waits for them any more: any of their sectors may be written. */
static void writes_land(struct simdisk *d)
{
    for (size_t i = 0; i < d->n_requests; i++) {
        const struct io_blk *blk = d->requests[i].ptr;
        if (d->requests[i].kind != REQUEST_BLK || blk->op != IO_BLK_WRITE || d->devs[blk->dev].is_dead)
            continue;
        const uint8_t *bytes = buf_at(d, blk->buf, blk->len_bytes);
        d->clock++;
        d->stat.late_writes++;
        for (uint32_t at = 0; at < blk->len_bytes; at += SECTOR_BYTES)
            if (simdisk_random(d) & 1)
                device_write(d, &d->devs[blk->dev], blk->off_bytes + at, bytes + at, SECTOR_BYTES);
    }
}

void simdisk_kill(struct simdisk *d)
{
    writes_land(d);
    simdisk_restart(d);
}

void simdisk_crash(struct simdisk *d)
{
    writes_land(d);
    for (uint32_t i = 0; i < d->n_devs; i++)
        device_crash(d, &d->devs[i]);
    simdisk_restart(d);
}

void simdisk_fail_next(struct simdisk *d, enum io_blk_op op, int32_t error)
{
    d->fail_set[op] = true;
    d->fail[op] = error;
}

void simdisk_short_next(struct simdisk *d, enum io_blk_op op)
{
    d->short_set[op] = true;
}

uint8_t *simdisk_bytes(struct simdisk *d, uint32_t dev)
{
    return d->devs[dev].image;
}

void simdisk_poke(struct simdisk *d, uint32_t dev, uint64_t off_bytes, const void *bytes, size_t len_bytes)
{
    struct device *v = &d->devs[dev];

    memcpy(v->image + off_bytes, bytes, len_bytes);
    memcpy(v->durable + off_bytes, bytes, len_bytes);
}

void simdisk_flip(struct simdisk *d, uint32_t dev, uint64_t off_bytes, unsigned bit)
{
    struct device *v = &d->devs[dev];
    uint8_t byte = v->image[off_bytes] ^ (uint8_t)(1U << bit);

    simdisk_poke(d, dev, off_bytes, &byte, 1);
}
