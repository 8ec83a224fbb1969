/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening a partition: superblock, header, memory, replay, and what its owner adopts. Blocking, on the thread that
 * opens; after store_adopt_done() the store runs.
 *
 * Everything that the store will ever need is allocated here. The device is written to for the first time when all of
 * the log was read and believed: a partition that is refused was not touched.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/checked.h"
#include "include/base/cleanup.h"
#include "include/base/kill_point.h"
#include "include/base/point.h"
#include "io/store_private.h"

#define DEFAULT_INTERVAL_MS 1000

static int open_put(struct store *s, const struct store_entry *entry)
{
    int r = s->events->replay_put(s->ctx, entry);

    if (r != STORE_LEFT_BEHIND)
        return r;
    sim_reached("recovery: a second copy is left behind");
    log_leave_to_sweep(&s->log, log_put_bytes(entry->id.key_len));
    return 0;
}

static void segment_touch(struct store *s, const struct store_entry *entry)
{
    struct segment *seg = store_segment(s, entry->loc.segment);

    seg->touched = 1;
    seg->end_sector = MAX(seg->end_sector, entry->loc.sector + sectors_of(entry->size_bytes));
}

static int open_record(void *ctx, const struct log_record *record)
{
    struct store *s = ctx;
    const struct store_entry *e = &record->put.entry;

    switch (record->type) {
    case FORMAT_ENTRY_SPACE:
        kill_point("open.space");
        s->log.space_bytes += record->space.deleted ? 0 : sizeof(struct format_space);
        return s->events->replay_space(s->ctx, &record->space);
    case FORMAT_ENTRY_PUT:
        kill_point("open.put");
        segment_touch(s, e);
        s->next_generation = MAX(s->next_generation, e->generation + 1);
        return open_put(s, e);
    case FORMAT_ENTRY_DELETE:
        kill_point("open.delete");
        s->next_generation = MAX(s->next_generation, record->delete.generation + 1);
        return s->events->replay_delete(s->ctx, &record->delete.id, record->delete.generation);
    case FORMAT_ENTRY_SEGMENT_FREED:
        kill_point("open.segment_freed");
        store_segment(s, record->segment_freed.segment)->touched = 0;
        store_segment(s, record->segment_freed.segment)->end_sector = 0;
        s->next_generation = MAX(s->next_generation, record->segment_freed.generation);
        return s->events->replay_segment_freed(s->ctx, record->segment_freed.segment, record->segment_freed.generation);
    default:
        return 0;
    }
}

static void open_warm(void *ctx, struct log_record *record)
{
    const struct store *s = ctx;

    if (s->events->replay_warm && record->type == FORMAT_ENTRY_PUT)
        s->events->replay_warm(s->ctx, &record->put.entry);
}

static void open_block(void *ctx, const struct format_block *b)
{
    const struct store *s = ctx;

    if (s->events->replay_block)
        s->events->replay_block(s->ctx, b->lsn, b->sectors, b->entries);
}

/* Bounce memory in one piece: log block, header, sums, batches. */
static int open_memory(struct store *s)
{
    const uint64_t fixed = FORMAT_BLOCK_BYTES_MAX + SECTOR_BYTES * (1 + STORE_SUMS_BUFFERS);
    struct io_buf buf;
    void *mem;

    int r = s->be->ops->bounce_alloc(s->be, fixed + STORE_BATCHES * STORE_BATCH_BYTES, &buf, &mem);
    if (r < 0)
        return r;
    uint8_t *at = mem;
    s->block_buf = buf;
    s->block_mem = at;
    buf.off += FORMAT_BLOCK_BYTES_MAX;
    at += FORMAT_BLOCK_BYTES_MAX;
    s->header_buf = buf;
    s->header_mem = (struct format_partition *)(void *)at;
    buf.off += SECTOR_BYTES;
    at += SECTOR_BYTES;
    for (uint32_t i = 0; i < STORE_SUMS_BUFFERS; i++) {
        s->sums_buffers[i] = (struct sums_buffer){.store = s, .buf = buf, .mem = (uint64_t *)(void *)at};
        list_push_tail(&s->sums_free, &s->sums_buffers[i].link);
        buf.off += SECTOR_BYTES;
        at += SECTOR_BYTES;
    }
    for (uint32_t i = 0; i < STORE_BATCHES; i++) {
        struct batch *b = &s->batches[i];
        *b = (struct batch){.store = s, .buf = buf, .mem = at};
        list_init(&b->puts);
        list_push_tail(&s->batches_free, &b->link);
        buf.off += STORE_BATCH_BYTES;
        at += STORE_BATCH_BYTES;
    }
    return 0;
}

static int open_tables(struct store *s, uint32_t n_pools)
{
    int r = log_init(&s->log, &s->g, s->partition, s->events, s->ctx);
    if (r == 0)
        r = segment_table_init(&s->table, &s->g, n_pools);
    if (r < 0)
        return r;
    s->streams = calloc((size_t)n_pools * STORE_STREAMS_POOL, sizeof(*s->streams));
    s->dirty = calloc(s->g.n_segments, sizeof(*s->dirty));
    s->commit.writing = calloc(s->g.n_segments, sizeof(*s->commit.writing));
    if (!s->streams || !s->dirty || !s->commit.writing)
        return -ENOMEM;
    for (uint32_t i = 0; i < n_pools * STORE_STREAMS_POOL; i++)
        put_stream_init(&s->streams[i]);
    return open_memory(s);
}

/*
 * From here on the partition is in use: another epoch, not clean. What replay found is flushed first, since it may only
 * be in the drive's cache (or the kernel's) if it was a process that died, and the header will call it needed.
 */
static int open_header(struct store *s)
{
    s->header.sequence++;
    s->header.epoch++;
    s->header.clean = 0;
    kill_point("open.header");
    s->header.needed_lsn = s->log.head.lsn;
    s->header.next_generation = s->next_generation;
    *s->header_mem = s->header;
    uint64_t off = superblock_header_fill(&s->g, s->partition, s->header_mem);
    int r = s->be->ops->blk_now(s->be, IO_BLK_FLUSH, s->dev, 0, NULL, 0);
    kill_point("open.header_flushed");
    if (r == 0)
        r = s->be->ops->blk_now(s->be, IO_BLK_WRITE, s->dev, off, s->header_mem, SECTOR_BYTES);
    if (r == 0)
        r = s->be->ops->blk_now(s->be, IO_BLK_FLUSH, s->dev, 0, NULL, 0);
    kill_point("open.header_written");
    s->log.epoch = s->header.epoch;
    s->log.flushed_lsn = s->log.head.lsn;
    return r;
}

static int open_device(struct store *s, const struct store_config *config, const char **ret_why)
{
    const struct log_recovery recovery = {.record = open_record, .block = open_block, .warm = open_warm, .ctx = s};
    struct store_format format;
    uint32_t version;

    int r = superblock_read(s->be, s->dev, config->device_bytes, &format, &version, ret_why);
    if (r < 0)
        return r;
    *ret_why = "the device has no such partition";
    r = geometry_of(&format, s->partition, &s->g);
    if (r < 0)
        return r;
    *ret_why = "both headers of the partition are damaged";
    r = superblock_header_read(s->be, s->dev, &s->g, s->partition, &s->header);
    if (r < 0)
        return r;
    *ret_why = "out of memory";
    s->next_generation = MAX(s->header.next_generation, UINT64_C(1));
    kill_point("open.tables");
    r = open_tables(s, config->n_pools);
    if (r < 0)
        return r;
    kill_point("open.log");
    *ret_why = "the log is damaged or cannot be read";
    r = log_recover(&s->log, s->be, s->dev, &s->g, &s->header, &recovery);
    if (r < 0)
        return r;
    s->stat.recovered_log_bytes = log_used_sectors(&s->log) * SECTOR_BYTES;
    kill_point("open.log_read");
    *ret_why = "the partition's header cannot be written";
    return open_header(s);
}

static void store_freep(struct store **s)
{
    if (*s)
        store_free(*s);
}

int store_open(const struct store_config *config, struct store **ret_store, const char **ret_why)
{
    *ret_why = "out of memory";
    cleanup_(store_freep) struct store *s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->be = config->backend;
    s->events = config->events;
    s->ctx = config->ctx;
    s->dev = config->dev;
    s->partition = config->partition;
    s->interval_ns = UINT64_C(1000000) * (config->flush_interval_ms ? config->flush_interval_ms : DEFAULT_INTERVAL_MS);
    list_init(&s->sums_free);
    list_init(&s->sums_waiting);
    list_init(&s->batches_free);
    list_init(&s->puts);
    list_init(&s->copies);
    list_init(&s->syncs_puts);
    list_init(&s->syncs_log);
    if (config->n_pools == 0 || config->n_pools > POOLS_MAX) {
        *ret_why = "too many pools";
        return -EINVAL;
    }
    kill_point("open.begin");
    int r = open_device(s, config, ret_why);
    if (r < 0)
        return r;
    kill_point("open.done");
    *ret_store = steal_ptr(s);
    return 0;
}

int store_adopt_many(struct store *s, uint32_t pool, const struct store_adoption *a)
{
    if (pool >= s->table.n_pools || a->segment >= s->table.n || a->end_sector > s->g.segment_sectors ||
        !store_segment(s, a->segment)->touched)
        return -EINVAL;
    kill_point("open.adopt");
    int r = segment_adopt(&s->table, a->segment, pool, a->durability, a->sectors);
    if (r < 0)
        return r;
    s->log.live_bytes += a->n * (uint64_t)log_put_bytes(0) + a->key_bytes;
    s->stat.live_bytes += a->sectors * SECTOR_BYTES;
    s->stat.recovered_pieces += a->n;
    return 0;
}

int store_adopt(struct store *s, uint32_t pool, const struct store_entry *entry)
{
    uint32_t sectors = sectors_of(entry->size_bytes);

    if (entry->size_bytes > PIECE_BYTES_MAX || !range_ok(entry->loc.sector, sectors, s->g.segment_sectors))
        return -EINVAL;
    const struct store_adoption one = {.segment = entry->loc.segment,
                                       .n = 1,
                                       .sectors = sectors,
                                       .end_sector = entry->loc.sector + sectors,
                                       .key_bytes = round_up(entry->id.key_len, 8),
                                       .durability = entry->durability};
    return store_adopt_many(s, pool, &one);
}

int store_adopt_again(struct store *s, uint32_t pool, const struct store_entry *entry)
{
    uint32_t bytes = log_put_bytes(entry->id.key_len);

    if (entry->loc.segment >= s->table.n)
        return -EINVAL;
    segment_touch(s, entry);
    int r = store_adopt(s, pool, entry);
    if (r < 0)
        return r;
    s->next_generation = MAX(s->next_generation, entry->generation + 1);
    /* Where something was left to a sweep, so is this: it may be its space, which must not come later. */
    if (!log_has_unlogged(&s->log) && log_reserve(&s->log, bytes)) {
        log_append_put(&s->log, entry, 0);
    } else {
        log_leave_to_sweep(&s->log, 0);
        s->again_unlogged = true;
    }
    s->durable_unflushed |= entry->durability != STORE_CACHE;
    return 0;
}

/* Segments are short: what streams have left of theirs can be filled up, where the sums of what lives there can be read. */
static void open_partly_filled(struct store *s)
{
    uint64_t *sums = s->sums_buffers[0].mem;
    uint32_t n = 0;

    if (s->table.count[SEGMENT_FREE] > 2 * s->table.reserve)
        return;
    for (uint32_t i = 0; i < s->table.n && n < STORE_FILL_UP_MAX; i++) {
        uint64_t off = s->g.sums_off_bytes + (uint64_t)i * SECTOR_BYTES;

        if (!segment_could_be_filled(&s->table, i))
            continue;
        n++;
        if (s->be->ops->blk_now(s->be, IO_BLK_READ, s->dev, off, sums, SECTOR_BYTES) < 0)
            continue;
        memcpy(s->table.sums + (uint64_t)i * s->table.slots, sums, s->table.slots * sizeof(*sums));
        segment_sums_there(&s->table, i);
    }
}

/*
 * What the log has in a segment, but the owner did not keep, must end in the log before the segment is used again: else
 * a later replay could bring it back, pointing at other bytes.
 *
 * If a crash cut a sweep off, there may be room for nothing but another one. Then it runs here, before anything else. So
 * does one that has to log again what did not fit into the queue: what it replaced is still in the log, and may only end
 * there behind it.
 */
void store_adopt_done(struct store *s)
{
    s->blocking = true;
    while (!s->failed && s->again_unlogged && log_has_unlogged(&s->log)) {
        uint64_t before = s->commit.started;
        commit_run(s);
        if (s->commit.started == before && !s->failed)
            store_fail(s, -ENOSPC); /* cannot be: see the room, in log.c */
    }
    for (uint32_t i = 0; i < s->table.n; i++) {
        struct segment *seg = store_segment(s, i);
        if (seg->state == SEGMENT_FREE && seg->touched) {
            sim_reached("recovery: a segment of which nothing was kept");
            seg->pool = 0;
            segment_set_state(&s->table, i, SEGMENT_EMPTY);
            kill_point("open.segment_empty");
        }
    }
    kill_point("open.adopted");
    open_partly_filled(s);
    while (!s->failed && !log_has_room(&s->log)) {
        uint64_t before = s->stat.checkpoints;
        commit_run(s);
        if (s->stat.checkpoints == before && !s->failed)
            store_fail(s, -ENOSPC); /* no process of ours leaves such a log; nothing would ever be written */
    }
    s->blocking = false;
}
