/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device requests: a queue a device, a limit on what a device has in flight, and a slot for each request that the kernel
 * has. The engine's thread only.
 *
 * Requests stay in our queues until the device has room, because what the kernel has can no longer be overtaken: a read
 * that a client waits for must not stand behind 500 write-backs. blk_queue.c says whose turn it is.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "include/base/kill_point.h"
#include "io/uring_private.h"

#define SLOT_NONE UINT32_MAX

/* --- Devices ----------------------------------------------------------------------------------------------------- */

int uring_block_init(struct uring *u)
{
    for (uint32_t i = 0; i < IO_LANES; i++)
        u->weights[i] = DEFAULT_WEIGHT;
    u->weights[IO_LANE_OWN] = WEIGHT_MAX; /* the log, and reclaim: everybody waits for it in the end */
    u->slots = calloc(u->config.entries, sizeof(*u->slots));
    u->devices = calloc(u->config.devices_max, sizeof(*u->devices));
    list_init(&u->failed_blks);
    if (!u->slots || !u->devices)
        return -ENOMEM;
    for (uint32_t i = 0; i < u->config.entries; i++)
        u->slots[i].next_free = i + 1 < u->config.entries ? i + 1 : SLOT_NONE;
    for (uint32_t i = 0; i < u->config.devices_max; i++)
        u->devices[i].fd = -1;
    return 0;
}

int uring_device_add(struct uring *u, const struct device *device, uint32_t depth, uint16_t *ret_dev)
{
    for (uint32_t i = 0; i < u->config.devices_max; i++) {
        struct uring_device *d = &u->devices[i];

        if (d->fd >= 0)
            continue;
        int r = uring_kernel_set_file(u->kernel, i, device->fd);
        if (r < 0)
            return r;
        blk_queue_init(&d->queue);
        d->fd = device->fd;
        d->depth = depth ? depth : DEFAULT_DEVICE_DEPTH;
        *ret_dev = (uint16_t)i;
        return 0;
    }
    return -ENOSPC;
}

static struct uring_device *device_find(const struct uring *u, uint32_t dev)
{
    return dev < u->config.devices_max && u->devices[dev].fd >= 0 ? &u->devices[dev] : NULL;
}

int uring_device_remove(struct uring *u, uint16_t dev)
{
    struct uring_device *d = device_find(u, dev);

    if (!d)
        return -ENODEV;
    if (d->in_flight > 0 || d->queue.n > 0)
        return -EBUSY;
    d->fd = -1;
    return uring_kernel_set_file(u->kernel, dev, -1);
}

void uring_pool_weight(struct uring *u, uint32_t pool, uint32_t weight)
{
    assert(pool <= POOLS_MAX && weight >= 1 && weight <= WEIGHT_MAX);
    u->weights[io_lane_of(pool)] = weight;
}

/* --- Submitting -------------------------------------------------------------------------------------------------- */

static int blk_check(const struct uring *u, const struct io_blk *blk)
{
    uint32_t window;

    if (!device_find(u, blk->dev))
        return -ENODEV;
    if (blk->lane >= IO_LANES)
        return -EINVAL;
    if (blk->op == IO_BLK_FLUSH)
        return 0;
    if (blk->op > IO_BLK_FLUSH || blk->len_bytes > INT32_MAX ||
        (blk->len_bytes | blk->off_bytes | blk->buf.off) % SECTOR_BYTES != 0)
        return -EINVAL;
    return uring_region_resolve(u, blk->buf, blk->len_bytes, &window) ? 0 : -EINVAL;
}

void uring_block_submit(struct io_backend *be, struct io_blk *blk)
{
    struct uring *u = uring_of(be);
    int r = blk_check(u, blk);

    if (r < 0) {
        blk->result = r;
        list_push_tail(&u->failed_blks, &blk->link);
        return;
    }
    blk_queue_push(&u->devices[blk->dev].queue, blk);
    kill_point("device.queued");
    u->lanes[blk->lane].queued++;
    u->lanes[blk->lane].queued_bytes += blk->len_bytes;
    u->stat.blks_queued++;
}

void uring_block_urge(struct io_backend *be, struct io_blk *blk)
{
    struct uring *u = uring_of(be);

    if (blk->queued)
        blk_queue_urge(&u->devices[blk->dev].queue, blk);
}

static void count_submitted(struct uring *u, const struct io_blk *blk, uint32_t window)
{
    u->stat.reads += blk->op == IO_BLK_READ;
    u->stat.writes += blk->op == IO_BLK_WRITE;
    u->stat.flushes += blk->op == IO_BLK_FLUSH;
    u->stat.unregistered += blk->op != IO_BLK_FLUSH && window == URING_WINDOW_NONE;
    u->lanes[blk->lane].queued--;
    u->lanes[blk->lane].queued_bytes -= blk->len_bytes;
    u->stat.blks_queued--;
    u->stat.blks_in_flight++;
}

/* False: the submission queue is full. */
static bool blk_prepare(struct uring *u, struct uring_device *d, struct io_blk *blk)
{
    uint32_t index = u->first_free_slot, window = URING_WINDOW_NONE;
    uint32_t part_bytes = blk_queue_part(&d->queue, blk);
    struct uring_slot *slot = &u->slots[index];
    void *mem = NULL;

    if (blk->op != IO_BLK_FLUSH)
        mem = uring_region_resolve(u, blk->buf, part_bytes, &window);
    if (!uring_kernel_prep_blk(u->kernel, blk, mem, part_bytes, window,
                               uring_user_data(URING_KIND_BLK, slot->generation, index)))
        return false;
    blk_queue_take(&d->queue, blk, part_bytes, u->weights);
    d->in_flight++;
    kill_point("device.prepared");
    u->first_free_slot = slot->next_free;
    slot->blk = blk;
    slot->part_bytes = part_bytes;
    count_submitted(u, blk, window);
    return true;
}

/* One request of each device in turn, so that a device with a long queue does not take all the slots. */
bool uring_block_fill(struct uring *u)
{
    uint32_t n = u->config.devices_max, n_idle = 0;

    if (u->stat.blks_queued == 0)
        return true;
    while (n_idle < n && u->first_free_slot != SLOT_NONE) {
        struct uring_device *d = &u->devices[u->next_device];
        struct io_blk *blk = d->fd >= 0 && d->in_flight < d->depth ? blk_queue_next(&d->queue) : NULL;

        if (blk && !blk_prepare(u, d, blk))
            return false;
        n_idle = blk ? 0 : n_idle + 1;
        u->next_device = u->next_device + 1 == n ? 0 : u->next_device + 1;
    }
    return true;
}

/* --- Completing -------------------------------------------------------------------------------------------------- */

static void count_completed(struct uring *u, const struct io_blk *blk, uint32_t part_bytes)
{
    struct uring_lane_stat *lane = &u->lanes[blk->lane];
    struct uring_stat *s = &u->stat;
    uint64_t moved_bytes = blk->result > 0 ? (uint64_t)blk->result : 0;

    s->blks_in_flight--;
    s->errors += blk->result < 0;
    s->shorts += blk->op != IO_BLK_FLUSH && blk->result >= 0 && moved_bytes < part_bytes;
    s->reads_done += blk->op == IO_BLK_READ;
    s->writes_done += blk->op == IO_BLK_WRITE;
    s->flushes_done += blk->op == IO_BLK_FLUSH;
    lane->reads += blk->op == IO_BLK_READ;
    lane->writes += blk->op == IO_BLK_WRITE;
    *(blk->op == IO_BLK_READ ? &s->read_bytes : &s->written_bytes) += moved_bytes;
    *(blk->op == IO_BLK_READ ? &lane->read_bytes : &lane->written_bytes) += moved_bytes;
}

/* The kernel could not reach the memory: as bad as a SIGBUS of ours. */
static void poison(struct uring *u, const struct io_blk *blk)
{
    struct memory_chunk *chunk = blk->op == IO_BLK_FLUSH ? NULL : uring_region_chunk(u, blk->buf.region);

    if (chunk)
        store_release(&chunk->poisoned, 1);
}

bool uring_block_complete(struct uring *u, uint32_t generation, uint32_t index, int32_t result)
{
    if (index >= u->config.entries)
        return false;
    struct uring_slot *slot = &u->slots[index];
    struct io_blk *blk = slot->blk;
    if (!blk || (slot->generation & 0xffffff) != generation)
        return false;
    slot->blk = NULL;
    kill_point("device.reaped");
    slot->generation++;
    slot->next_free = u->first_free_slot;
    u->first_free_slot = index;
    u->devices[blk->dev].in_flight--;
    blk_queue_done(&u->devices[blk->dev].queue, blk, slot->part_bytes);
    blk->result = result;
    if (result == -EFAULT)
        poison(u, blk);
    count_completed(u, blk, slot->part_bytes);
    kill_point("device.completed");
    blk->done(blk);
    return true;
}

uint32_t uring_block_fail(struct uring *u)
{
    struct list failed, *l;
    uint32_t n = 0;

    list_init(&failed);
    list_splice_tail(&failed, &u->failed_blks);
    for (; (l = list_pop(&failed)); n++) {
        struct io_blk *blk = list_entry(l, struct io_blk, link);

        u->stat.errors++;
        blk->done(blk);
    }
    return n;
}

/* --- Blocking ---------------------------------------------------------------------------------------------------- */

int uring_block_now(struct io_backend *be, enum io_blk_op op, uint32_t dev, uint64_t off_bytes, void *mem,
                    uint64_t len_bytes)
{
    const struct uring_device *d = device_find(uring_of(be), dev);
    char *p = mem;

    if (!d)
        return -ENODEV;
    if (op == IO_BLK_FLUSH)
        return fdatasync(d->fd) < 0 ? -errno : 0;
    kill_point("device.now");
    while (len_bytes > 0) {
        ssize_t n = op == IO_BLK_READ ? pread(d->fd, p, len_bytes, (off_t)off_bytes)
                                      : pwrite(d->fd, p, len_bytes, (off_t)off_bytes);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0 || n % SECTOR_BYTES != 0)
            return -EIO;
        p += n, off_bytes += (uint64_t)n, len_bytes -= (uint64_t)n;
    }
    return 0;
}
