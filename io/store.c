/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One partition while it is open and when it closes: what each turn of the engine's loop does for it. Belongs to one
 * engine thread; deterministic, all effects through the backend. Opening is in store_open.c.
 *
 * All memory is taken in store_open(). The owner's callbacks are called from store_tick() and from completions only
 * (and while opening, adopting and closing), never from store_put() and its like.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/kill_point.h"
#include "include/base/point.h"
#include "io/checksum.h"
#include "io/store_private.h"

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
    /* Whatever a device says (ENODATA, EFBIG, even EAGAIN), it failed; only memory that was taken away is not its fault. */
    if (blk->result < 0)
        return blk->result == -EFAULT ? -EFAULT : -EIO;
    if (blk->op == IO_BLK_FLUSH)
        return 0;
    uint32_t moved = (uint32_t)blk->result / SECTOR_BYTES * SECTOR_BYTES;
    if (moved == 0 || moved > blk->len_bytes)
        return -EIO;
    *moved_bytes += moved;
    if (*moved_bytes == total_bytes)
        return 0;
    sim_reached("store: the rest of a short transfer");
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
    kill_point("store.freeing_logged");
    segment_set_state(&s->table, segment, SEGMENT_FREEING);
    kill_point("store.segment_freeing");
    return true;
}

void store_segment_check(struct store *s, uint32_t segment)
{
    const struct segment *seg = store_segment(s, segment);

    if (seg->state == SEGMENT_CLOSING && seg->writers == 0) {
        segment_set_state(&s->table, segment, SEGMENT_SEALED);
        kill_point("store.segment_sealed");
        s->room = true; /* it may be reclaimed now */
    }
    if ((seg->state != SEGMENT_SEALED && seg->state != SEGMENT_EVACUATING) || seg->live_sectors > 0 || seg->readers > 0)
        return;
    segment_set_state(&s->table, segment, SEGMENT_EMPTY);
    kill_point("store.segment_empty");
    segment_free_log(s, segment);
}

/* Those whose end found no room in the log. */
static void segments_empty_free(struct store *s)
{
    uint32_t segment;

    while ((segment = segment_first(&s->table, SEGMENT_EMPTY)) != STORE_SEGMENT_NONE)
        if (!segment_free_log(s, segment))
            return;
}

/* --- Closing --- */

void store_stop(struct store *s)
{
    s->stopping = true;
}

bool store_is_idle(const struct store *s)
{
    return list_is_empty(&s->puts) && list_is_empty(&s->copies) && s->n_gets == 0 && list_is_empty(&s->syncs_puts) &&
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
    kill_point("store.close_header");
    uint64_t off = superblock_header_fill(&s->g, s->partition, s->header_mem);
    int r = s->be->ops->blk_now(s->be, IO_BLK_WRITE, s->dev, off, s->header_mem, SECTOR_BYTES);
    kill_point("store.close_written");
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
    kill_point("store.close");
    segments_empty_free(s);
    while (!s->failed && (s->log.queue_in > s->log.queue_out || s->n_dirty > 0 || log_has_unlogged(&s->log) ||
                          s->log.flushed_lsn < s->log.head.lsn)) {
        uint64_t before = s->commit.started;
        commit_run(s);
        segments_empty_free(s); /* what there was no room for */
        if (s->commit.started == before && !s->failed)
            store_fail(s, -ENOSPC); /* cannot be: see the room, in log.c */
    }
    s->blocking = false;
    if (s->failed)
        return -EIO;
    kill_point("store.close_logged");
    int r = close_header(s);
    if (r < 0)
        store_fail(s, r);
    return r;
}

/* --- Running --- */

void store_delete_logged(struct store *s, const struct store_entry *entry)
{
    struct commit *c = &s->commit;

    log_append_delete(&s->log, &entry->id, entry->generation);
    kill_point("store.drop_logged");
    c->delete_last_seq = s->log.queue_in;
    if (!c->delete_first_seq)
        c->delete_first_seq = c->delete_last_seq;
    kill_point("store.drop");
}

void store_drop(struct store *s, const struct store_entry *entry)
{
    store_delete_logged(s, entry);
    store_forget(s, entry);
}

void store_forget(struct store *s, const struct store_entry *entry)
{
    uint32_t sectors = sectors_of(entry->size_bytes), bytes = log_put_bytes(entry->id.key_len);

    assert(s->log.live_bytes >= bytes);
    s->log.live_bytes -= bytes;
    s->stat.live_bytes -= (uint64_t)sectors * SECTOR_BYTES;
    kill_point("store.forget");
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
    kill_point("store.space");
    log_append_space(&s->log, space);
    return 0;
}

void store_space_again(struct store *s, const struct store_space *space)
{
    log_append_space(&s->log, space);
}

uint32_t store_txn_begin(struct store *s)
{
    struct store_txn *txn = put_txn_find(s, 0);

    if (!txn)
        return 0;
    if (++s->next_txn == 0)
        s->next_txn = 1;
    *txn = (struct store_txn){.number = s->next_txn};
    kill_point("store.txn_begin");
    return txn->number;
}

void store_txn_commit(struct store *s, uint32_t txn)
{
    struct store_txn *t = put_txn_find(s, txn);

    assert(txn != 0 && t);
    kill_point("store.txn_commit");
    if (t->has_mark)
        log_append_txn_commit(&s->log, (uint64_t)s->log.epoch << 32 | txn);
    kill_point("store.txn_logged");
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
    kill_point("store.sync");
    put_urge_all(s);
}

static void tick_evacuate(struct store *s, uint32_t segment)
{
    segment_set_state(&s->table, segment, SEGMENT_EVACUATING);
    kill_point("store.evacuate");
    s->events->evacuate(s->ctx, segment);
    kill_point("store.evacuate_told");
}

static uint32_t tick_victim(const struct store *s, uint32_t pool)
{
    uint32_t victim = segment_victim(&s->table, pool);

    return victim == STORE_SEGMENT_NONE || segment_copy_fits(&s->table, victim) ? victim : STORE_SEGMENT_NONE;
}

/* Ahead of need: each pool against its budget, and all together against the reserve. */
static void tick_reclaim(struct store *s)
{
    uint32_t victim;

    for (uint32_t pool = 0; pool < s->table.n_pools; pool++)
        while (segment_pool_wants_reclaim(&s->table, pool) && (victim = tick_victim(s, pool)) != STORE_SEGMENT_NONE)
            tick_evacuate(s, victim);
    while ((segment_table_wants_reclaim(&s->table) ||
            (s->table.count[SEGMENT_EVACUATING] == 0 && sim_point("store: a segment is emptied without need"))) &&
           (victim = tick_victim(s, SEGMENT_POOL_ANY)) != STORE_SEGMENT_NONE)
        tick_evacuate(s, victim);
    /* The oldest `cache` makes way in the log too, not the newest. */
    if (s->want_entries && s->table.count[SEGMENT_EVACUATING] == 0 &&
        (victim = segment_cache_victim(&s->table)) != STORE_SEGMENT_NONE)
        tick_evacuate(s, victim);
    s->want_entries = false;
}

uint64_t store_tick(struct store *s, uint64_t now_ns)
{
    uint64_t next = UINT64_MAX;

    s->now_ns = now_ns;
    put_batches_close(s, s->stopping || s->failed || !list_is_empty(&s->syncs_puts));
    if (!s->failed)
        segments_empty_free(s);
    if (!s->failed && !s->stopping)
        tick_reclaim(s);
    commit_syncs_advance(s);
    commit_run(s);
    if (s->want_room && s->room) {
        s->want_room = false;
        s->room = false;
        kill_point("store.room");
        s->events->room(s->ctx);
    }
    s->room = false;
    uint64_t deadline = put_batches_deadline_ns(s);
    if (deadline != UINT64_MAX)
        next = deadline > now_ns ? deadline - now_ns : 0;
    bool waits =
        s->log.queue_in > s->log.queue_out || s->n_dirty > 0 || s->log.sweep.active || s->commit.delete_first_seq > 0;
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

bool store_pool_is_full(const struct store *s, uint32_t pool)
{
    return segment_pool_is_full(&s->table, pool);
}

enum store_lack store_lacks(const struct store *s, uint32_t pool)
{
    if (!log_live_room(&s->log, log_put_bytes(KEY_BYTES_MAX), false))
        return STORE_LACKS_LOG;
    switch (segment_lack(&s->table, pool)) {
    case SEGMENT_LACKS_BUDGET:
        return STORE_LACKS_BUDGET;
    case SEGMENT_LACKS_FREE:
        return STORE_LACKS_SEGMENTS;
    default:
        return STORE_LACKS_NOTHING;
    }
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

uint64_t store_written_log_bytes(const struct store *s)
{
    return s->stat.written_log_bytes;
}
