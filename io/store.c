/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One partition, from opening to closing: who owns what, and what each turn of the engine's loop does for it. Belongs
 * to one engine thread; deterministic, all effects through the backend.
 *
 * All memory is taken in store_open(). The owner's callbacks are called from store_tick() and from completions only
 * (and while opening, adopting and closing), never from store_put() and its like.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/checked.h"
#include "include/base/cleanup.h"
#include "io/checksum.h"
#include "io/store_private.h"

#define DEFAULT_INTERVAL_MS 1000

uint64_t store_seed(const struct store_entry *entry)
{
    struct checksum_identity id = {
        .space = entry->id.space,
        .generation = entry->generation,
        .group = entry->id.group,
        .piece = entry->id.piece,
        .part = entry->id.part,
        .key_len = entry->id.key_len,
    };

    memcpy(id.key, entry->id.key, entry->id.key_len);
    return checksum_seed(&id);
}

int store_blk_more(struct store *s, struct io_blk *blk, uint32_t *moved_bytes, uint32_t total_bytes)
{
    if (blk->result < 0)
        return blk->result;
    if (blk->op == IO_BLK_FLUSH)
        return 0;
    uint32_t moved = (uint32_t)blk->result / SECTOR_BYTES * SECTOR_BYTES;
    if (moved == 0 || moved > blk->len_bytes)
        return -EIO;
    *moved_bytes += moved;
    if (*moved_bytes == total_bytes)
        return 0;
    blk->off_bytes += moved;
    blk->buf.off += moved;
    blk->len_bytes -= moved;
    s->be->ops->blk_submit(s->be, blk);
    return -EAGAIN;
}

void store_fail(struct store *s, int why)
{
    if (s->failed)
        return;
    s->failed = why;
    s->events->failed(s->ctx, why);
}

static bool segment_free_log(struct store *s, uint32_t segment)
{
    if (!log_append_segment_freed(&s->log, segment, s->next_generation))
        return false;
    store_segment(s, segment)->freed_seq = s->log.queue_in;
    segment_set_state(&s->table, segment, SEGMENT_FREEING);
    return true;
}

void store_segment_check(struct store *s, uint32_t segment)
{
    const struct segment *seg = store_segment(s, segment);

    if (seg->state == SEGMENT_CLOSING && seg->writers == 0) {
        segment_set_state(&s->table, segment, SEGMENT_SEALED);
        s->room = true; /* it may be reclaimed now */
    }
    if ((seg->state != SEGMENT_SEALED && seg->state != SEGMENT_EVACUATING) || seg->live_sectors > 0 ||
        seg->readers > 0)
        return;
    segment_set_state(&s->table, segment, SEGMENT_EMPTY);
    segment_free_log(s, segment);
}

/* --- Opening --- */

static int open_record(void *ctx, const struct log_record *record)
{
    struct store *s = ctx;
    const struct store_entry *e = &record->put.entry;

    switch (record->type) {
    case FORMAT_ENTRY_SPACE:
        s->log.space_bytes += record->space.deleted ? 0 : sizeof(struct format_space);
        return s->events->replay_space(s->ctx, &record->space);
    case FORMAT_ENTRY_PUT:
        store_segment(s, e->loc.segment)->touched = 1;
        s->next_generation = MAX(s->next_generation, e->generation + 1);
        return s->events->replay_put(s->ctx, e);
    case FORMAT_ENTRY_DELETE:
        s->next_generation = MAX(s->next_generation, record->delete.generation + 1);
        return s->events->replay_delete(s->ctx, &record->delete.id, record->delete.generation);
    case FORMAT_ENTRY_SEGMENT_FREED:
        store_segment(s, record->segment_freed.segment)->touched = 0;
        s->next_generation = MAX(s->next_generation, record->segment_freed.generation);
        return s->events->replay_segment_freed(s->ctx, record->segment_freed.segment,
                                               record->segment_freed.generation);
    default:
        return 0;
    }
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
        s->streams[i].segment = STORE_SEGMENT_NONE;
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
    s->header.needed_lsn = s->log.head.lsn;
    s->header.next_generation = s->next_generation;
    *s->header_mem = s->header;
    uint64_t off = superblock_header_fill(&s->g, s->partition, s->header_mem);
    int r = s->be->ops->blk_now(s->be, IO_BLK_FLUSH, s->dev, 0, NULL, 0);
    if (r == 0)
        r = s->be->ops->blk_now(s->be, IO_BLK_WRITE, s->dev, off, s->header_mem, SECTOR_BYTES);
    if (r == 0)
        r = s->be->ops->blk_now(s->be, IO_BLK_FLUSH, s->dev, 0, NULL, 0);
    s->log.epoch = s->header.epoch;
    s->log.flushed_lsn = s->log.head.lsn;
    return r;
}

static int open_device(struct store *s, const struct store_config *config, const char **ret_why)
{
    const struct log_recovery recovery = {.record = open_record, .ctx = s};
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
    r = open_tables(s, config->n_pools);
    if (r < 0)
        return r;
    *ret_why = "the log is damaged or cannot be read";
    r = log_recover(&s->log, s->be, s->dev, &s->g, &s->header, &recovery);
    if (r < 0)
        return r;
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
    list_init(&s->syncs_puts);
    list_init(&s->syncs_log);
    if (config->n_pools == 0 || config->n_pools > POOLS_MAX) {
        *ret_why = "too many pools";
        return -EINVAL;
    }
    int r = open_device(s, config, ret_why);
    if (r < 0)
        return r;
    *ret_store = steal_ptr(s);
    return 0;
}

int store_adopt(struct store *s, uint32_t pool, const struct store_entry *entry)
{
    uint32_t sectors = sectors_of(entry->size_bytes);

    if (pool >= s->table.n_pools || entry->loc.segment >= s->table.n || entry->size_bytes > PIECE_BYTES_MAX ||
        !range_ok(entry->loc.sector, sectors, s->g.segment_sectors) ||
        !store_segment(s, entry->loc.segment)->touched)
        return -EINVAL;
    int r = segment_adopt(&s->table, entry->loc.segment, pool, entry->durability, sectors);
    if (r < 0)
        return r;
    s->log.live_bytes += log_put_bytes(entry->id.key_len);
    s->stat.live_bytes += (uint64_t)sectors * SECTOR_BYTES;
    return 0;
}

/*
 * What the log has in a segment, but the owner did not keep, must end in the log before the segment is used again: else
 * a later replay could bring it back, pointing at other bytes.
 *
 * If a crash cut a sweep off, there may be room for nothing but another one. Then it runs here, before anything else.
 */
void store_adopt_done(struct store *s)
{
    for (uint32_t i = 0; i < s->table.n; i++) {
        struct segment *seg = store_segment(s, i);
        if (seg->state == SEGMENT_FREE && seg->touched) {
            seg->pool = 0;
            segment_set_state(&s->table, i, SEGMENT_EMPTY);
        }
    }
    s->blocking = true;
    while (!s->failed && !log_has_room(&s->log)) {
        uint64_t before = s->stat.checkpoints;
        commit_run(s);
        if (s->stat.checkpoints == before)
            break;
    }
    s->blocking = false;
}

/* --- Closing --- */

void store_stop(struct store *s)
{
    s->stopping = true;
}

bool store_is_idle(const struct store *s)
{
    return list_is_empty(&s->puts) && s->n_gets == 0 && list_is_empty(&s->syncs_puts) &&
           list_is_empty(&s->syncs_log) && s->commit.n_in_flight == 0 && !s->commit.pending &&
           (s->failed || s->commit.state == COMMIT_IDLE);
}

void store_free(struct store *s)
{
    if (!s)
        return;
    log_deinit(&s->log);
    segment_table_deinit(&s->table);
    free(s->streams);
    free(s->dirty);
    free(s->commit.writing);
    free(s);
}

static int close_header(struct store *s)
{
    s->header.sequence++;
    s->header.clean = 1;
    s->header.tail_lsn = s->log.tail.lsn;
    s->header.tail_prev = s->log.tail.prev;
    s->header.needed_lsn = s->log.head.lsn;
    s->header.next_generation = s->next_generation;
    *s->header_mem = s->header;
    uint64_t off = superblock_header_fill(&s->g, s->partition, s->header_mem);
    int r = s->be->ops->blk_now(s->be, IO_BLK_WRITE, s->dev, off, s->header_mem, SECTOR_BYTES);
    return r < 0 ? r : s->be->ops->blk_now(s->be, IO_BLK_FLUSH, s->dev, 0, NULL, 0);
}

int store_close_clean(struct store *s)
{
    store_stop(s);
    if (!store_is_idle(s))
        return -EBUSY;
    memset(s->txns, 0, sizeof(s->txns)); /* what was not committed never will be */
    for (uint32_t pool = 0; pool < s->table.n_pools && !s->failed; pool++)
        put_streams_seal(s, pool);
    s->blocking = true;
    while (!s->failed && (s->log.queue_in > s->log.queue_out || s->n_dirty > 0 || log_has_unlogged(&s->log) ||
                          s->log.flushed_lsn < s->log.head.lsn)) {
        uint64_t before = s->commit.started;
        commit_run(s);
        if (s->commit.started == before && !s->failed)
            store_fail(s, -ENOSPC);
    }
    s->blocking = false;
    if (s->failed)
        return -EIO;
    int r = close_header(s);
    if (r < 0)
        store_fail(s, r);
    return r;
}

/* --- Running --- */

void store_drop(struct store *s, const struct store_entry *entry)
{
    log_append_delete(&s->log, &entry->id, entry->generation);
    store_forget(s, entry);
}

void store_forget(struct store *s, const struct store_entry *entry)
{
    uint32_t sectors = sectors_of(entry->size_bytes), bytes = log_put_bytes(entry->id.key_len);

    assert(s->log.live_bytes >= bytes);
    s->log.live_bytes -= bytes;
    s->stat.live_bytes -= (uint64_t)sectors * SECTOR_BYTES;
    segment_live_sub(&s->table, entry->loc.segment, sectors);
    store_segment_check(s, entry->loc.segment);
    s->room = true;
}

int store_space_put(struct store *s, const struct store_space *space)
{
    if (s->failed)
        return -EIO;
    if (!space->deleted && !log_live_room(&s->log, sizeof(struct format_space), false))
        return -ENOSPC;
    log_append_space(&s->log, space);
    return 0;
}

uint32_t store_txn_begin(struct store *s)
{
    struct store_txn *txn = put_txn_find(s, 0);

    if (!txn)
        return 0;
    if (++s->next_txn == 0)
        s->next_txn = 1;
    *txn = (struct store_txn){.number = s->next_txn};
    return txn->number;
}

void store_txn_commit(struct store *s, uint32_t txn)
{
    struct store_txn *t = put_txn_find(s, txn);

    assert(txn != 0 && t);
    if (t->has_mark)
        log_append_txn_commit(&s->log, (uint64_t)s->log.epoch << 32 | txn);
    *t = (struct store_txn){0};
}

void store_txn_abort(struct store *s, uint32_t txn)
{
    struct store_txn *t = put_txn_find(s, txn);

    assert(txn != 0 && t);
    *t = (struct store_txn){0};
}

void store_sync(struct store *s, struct store_sync *sync)
{
    sync->lsn_ = s->next_generation;
    sync->cycle_ = 0;
    list_push_tail(&s->syncs_puts, &sync->link_);
}

static void tick_evacuate(struct store *s, uint32_t segment)
{
    segment_set_state(&s->table, segment, SEGMENT_EVACUATING);
    s->events->evacuate(s->ctx, segment);
}

/* Ahead of need: each pool against its budget, and all together against the reserve. */
static void tick_reclaim(struct store *s)
{
    uint32_t victim;

    for (uint32_t pool = 0; pool < s->table.n_pools; pool++)
        while (segment_pool_wants_reclaim(&s->table, pool) &&
               (victim = segment_victim(&s->table, pool)) != STORE_SEGMENT_NONE)
            tick_evacuate(s, victim);
    while (segment_table_wants_reclaim(&s->table) &&
           (victim = segment_victim(&s->table, SEGMENT_POOL_ANY)) != STORE_SEGMENT_NONE)
        tick_evacuate(s, victim);
}

static void tick_empties(struct store *s)
{
    uint32_t segment;

    while ((segment = segment_first(&s->table, SEGMENT_EMPTY)) != STORE_SEGMENT_NONE)
        if (!segment_free_log(s, segment))
            return;
}

uint64_t store_tick(struct store *s, uint64_t now_ns)
{
    uint64_t next = UINT64_MAX;

    s->now_ns = now_ns;
    put_batches_close(s, s->stopping || s->failed || !list_is_empty(&s->syncs_puts));
    if (!s->failed && !s->stopping) {
        tick_empties(s);
        tick_reclaim(s);
    }
    commit_syncs_advance(s);
    commit_run(s);
    if (s->want_room && s->room) {
        s->want_room = false;
        s->room = false;
        s->events->room(s->ctx);
    }
    s->room = false;
    uint64_t deadline = put_batches_deadline_ns(s);
    if (deadline != UINT64_MAX)
        next = deadline > now_ns ? deadline - now_ns : 0;
    bool waits = s->log.queue_in > s->log.queue_out || s->n_dirty > 0 || s->log.sweep.active;
    if (!s->failed && s->commit.state == COMMIT_IDLE && waits) {
        uint64_t due = s->commit.last_ns + s->interval_ns;
        next = MIN(next, due > now_ns ? due - now_ns : s->interval_ns);
    }
    return next;
}

void store_pool_budget(struct store *s, uint32_t pool, uint64_t budget_bytes)
{
    s->table.pools[pool].budget_bytes = budget_bytes;
    s->room = true;
}

bool store_is_evacuating(const struct store *s, uint32_t segment)
{
    return s->table.segments[segment].state == SEGMENT_EVACUATING;
}

uint64_t store_pool_used_bytes(const struct store *s, uint32_t pool)
{
    return (uint64_t)s->table.pools[pool].n_segments * s->g.segment_bytes;
}

void store_stat(const struct store *s, struct store_stat *ret_stat)
{
    *ret_stat = s->stat;
    ret_stat->segments = s->table.n;
    ret_stat->segments_free = s->table.count[SEGMENT_FREE];
    ret_stat->segments_open = s->table.count[SEGMENT_OPEN];
    ret_stat->segments_pending_free = s->table.count[SEGMENT_EMPTY] + s->table.count[SEGMENT_FREEING];
    ret_stat->segment_bytes = s->g.segment_bytes;
    ret_stat->log_bytes = log_live_limit_bytes(&s->log);
    ret_stat->log_live_bytes = s->log.live_bytes + s->log.space_bytes;
    ret_stat->log_used_bytes = log_used_sectors(&s->log) * SECTOR_BYTES;
    ret_stat->failed = s->failed;
}
