/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ten million pieces by way of a client would be 40 GiB to write first. A log is all that recovery reads, so only that is
 * written, block by block by the store's own code: the same entries in the same blocks. The header says that a daemon has
 * opened the partition and has not closed it. One thread.
 */
#include "client/bench/recover_log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/bench/payload.h"
#include "include/base/cleanup.h"
#include "include/base/limits.h"
#include "io/log.h"
#include "io/superblock.h"
#include "tiering/tiering.h"

#define SEGMENT_BYTES (4 * MIB)
#define PIECES_SPARE 8192 /* that others may put, and a daemon needs no room for */

struct writer {
    struct io_backend backend;
    int fd;
    struct geometry g;
    struct log log;
    uint8_t *block; /* FORMAT_BLOCK_BYTES_MAX */
    uint64_t space; /* its persistent id */
};

/* ── a device ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static int blk_now(struct io_backend *be, enum io_blk_op op, uint32_t dev, uint64_t off_bytes, void *mem,
                   uint64_t len_bytes)
{
    const struct writer *w = container_of(be, struct writer, backend);

    (void)dev;
    if (op == IO_BLK_FLUSH)
        return fdatasync(w->fd) < 0 ? -errno : 0;
    ssize_t n = op == IO_BLK_READ ? pread(w->fd, mem, len_bytes, (off_t)off_bytes)
                                  : pwrite(w->fd, mem, len_bytes, (off_t)off_bytes);
    return n < 0 ? -errno : (uint64_t)n == len_bytes ? 0 : -EIO;
}

uint64_t recover_ring_bytes(uint64_t n)
{
    return round_up((n + n / 16 + PIECES_SPARE) * FORMAT_LOG_BYTES_PER_OBJECT, FORMAT_PARTITION_ALIGN_BYTES);
}

uint64_t recover_device_bytes(uint64_t n)
{
    uint64_t segments = div_round_up((n + n / 4 + PIECES_SPARE) * SECTOR_BYTES, SEGMENT_BYTES) + 64;

    return round_up(recover_ring_bytes(n) + segments * (SEGMENT_BYTES + SECTOR_BYTES) + 4 * MIB, SEGMENT_BYTES);
}

static int device_format(struct writer *w, uint64_t n, uint64_t seed)
{
    const struct store_format format = {.device_bytes = recover_device_bytes(n),
                                        .segment_bytes = SEGMENT_BYTES,
                                        .partitions = 1,
                                        .log_bytes = recover_ring_bytes(n),
                                        .uuid = {payload_mix(seed, n), payload_mix(n, seed)},
                                        .label = "spillbench"};
    int r = store_format_write(&w->backend, 0, &format);

    return r < 0 ? r : geometry_of(&format, 0, &w->g);
}

/* As opening leaves it: a later epoch, not clean. */
static int header_write(struct writer *w)
{
    struct format_partition header;
    int r = superblock_header_read(&w->backend, 0, &w->g, 0, &header);

    if (r < 0)
        return r;
    header.sequence++;
    header.epoch++;
    header.clean = 0;
    w->log.epoch = header.epoch;
    w->log.head = w->log.tail = (struct log_mark){.lsn = header.tail_lsn, .prev = header.tail_prev};
    memcpy(w->block, &header, sizeof(header));
    uint64_t off = superblock_header_fill(&w->g, 0, (struct format_partition *)(void *)w->block);
    return blk_now(&w->backend, IO_BLK_WRITE, 0, off, w->block, SECTOR_BYTES);
}

/* ── its log ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* All that waits, or just as much as makes room. */
static int blocks_write(struct writer *w)
{
    uint64_t lsn = 0;
    uint32_t sectors;
    int r = 0;

    while (r == 0 && (sectors = log_compose(&w->log, w->block, &lsn)) > 0)
        r = blk_now(&w->backend, IO_BLK_WRITE, 0, w->g.log_off_bytes + log_place(&w->log, lsn) * SECTOR_BYTES, w->block,
                    (uint64_t)sectors * SECTOR_BYTES);
    return r;
}

static void space_append(struct writer *w, const struct recover_log *log)
{
    struct store_space space = {.id = w->space,
                                .item_bytes = log->space.item_bytes,
                                .class_id = log->space.class_id,
                                .durability = STORE_DURABLE};

    static_assert(sizeof(space.digest) == sizeof(log->space.digest), "one digest");
    memcpy(space.digest, log->space.digest, sizeof(space.digest));
    snprintf(space.pool, sizeof(space.pool), "%s", log->pool);
    log_append_space(&w->log, &space);
}

static int piece_append(struct writer *w, const struct recover_log *log, uint64_t i)
{
    struct spw_key key;
    struct store_entry entry = {
        .id = {.space = w->space},
        .generation = i + 1,
        .sum = i,
        .object_bytes = SECTOR_BYTES,
        .size_bytes = SECTOR_BYTES,
        .n_parts = 1,
        .class_id = log->space.class_id,
        .durability = STORE_DURABLE,
        .loc = {.segment = (uint32_t)(i / w->g.segment_sectors), .sector = (uint16_t)(i % w->g.segment_sectors)}};

    payload_key(log->seed, i, &key);
    entry.id.key_len = (uint8_t)key.len;
    memcpy(entry.id.key, key.bytes, key.len);
    if (!log_reserve(&w->log, log_put_bytes(entry.id.key_len))) {
        int r = blocks_write(w);

        if (r < 0 || !log_reserve(&w->log, log_put_bytes(entry.id.key_len)))
            return r < 0 ? r : -ENOSPC;
    }
    log_append_put(&w->log, &entry, 0);
    return 0;
}

static int log_fill(struct writer *w, const struct recover_log *log)
{
    int r = log_init(&w->log, &w->g, 0, NULL, NULL);

    if (r == 0)
        r = header_write(w);
    if (r == 0)
        space_append(w, log);
    for (uint64_t i = 0; r == 0 && i < log->n; i++)
        r = piece_append(w, log, i);
    if (r == 0)
        r = blocks_write(w);
    log_deinit(&w->log);
    return r < 0 ? r : blk_now(&w->backend, IO_BLK_FLUSH, 0, 0, NULL, 0);
}

int recover_log_write(const char *path, const struct recover_log *log, uint64_t *ret_log_off_bytes)
{
    static const struct io_backend_ops ops = {.blk_now = blk_now};
    cleanup_close int fd = open(path, O_RDWR | O_CLOEXEC);
    cleanup_free uint8_t *block = aligned_alloc(SECTOR_BYTES, FORMAT_BLOCK_BYTES_MAX);
    struct writer w = {
        .backend = {.ops = &ops}, .fd = fd, .block = block, .space = tiering_space_id(log->pool, log->space.digest)};
    int r = fd < 0 ? -errno : block ? 0 : -ENOMEM;

    if (r == 0)
        r = device_format(&w, log->n, log->seed);
    if (r == 0)
        r = log_fill(&w, log);
    if (r < 0)
        fprintf(stderr, "spillbench: a log of %llu pieces on %s: %s\n", (unsigned long long)log->n, path, strerror(-r));
    else
        *ret_log_off_bytes = w.g.log_off_bytes;
    return r;
}
