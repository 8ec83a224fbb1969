/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log's writer: one cycle at a time takes a block from the queue to stable storage, with whatever must be there
 * before it. On the engine's thread; the states are in store_private.h.
 *
 *   sums of granules, flush, block, flush, then: segments whose freeing is durable become free, syncs are answered,
 *   and if a sweep has ended, the partition's header moves the log's tail; header, flush.
 *
 * The first flush is left out if no durable data was written since the last one, the second if nobody waits for it
 * (but never for more than LOG_BLOCKS_UNFLUSHED_MAX blocks: recovery looks for damage only so far). One cycle at a time
 * means group commit for free: what arrives meanwhile is in the next block.
 *
 * While opening and closing the same steps run with blocking I/O.
 *
 * Any failure here is the end of the store as a writer: after a failed write or flush nobody knows what is on the
 * device, and trying again would only hide it.
 */
#include <errno.h>
#include <string.h>

#include "include/base/atomic.h"
#include "include/base/kill_point.h"
#include "include/base/point.h"
#include "io/store_private.h"

static bool commit_closing(const struct store *s)
{
    return s->stopping && s->blocking;
}

struct log_mark commit_oldest(const struct store *s)
{
    struct log_mark oldest = s->log.head;

    for (uint32_t i = 0; i < STORE_TXNS_MAX; i++)
        if (s->txns[i].number && s->txns[i].has_mark && s->txns[i].mark.lsn < oldest.lsn)
            oldest = s->txns[i].mark;
    return oldest;
}

/* --- I/O of a step --- */

static void commit_io_failed(struct store *s, enum io_blk_op op, int why)
{
    store_fail(s, why);
    if (op == IO_BLK_FLUSH)
        s->events->flush_failed(s->ctx, why);
}

static void commit_io_done(struct io_blk *blk)
{
    struct commit *c = container_of(blk, struct commit, blk);
    struct store *s = container_of(c, struct store, commit);

    int r = store_blk_more(s, blk, &c->moved_bytes, c->io_bytes);
    if (r == -EAGAIN)
        return;
    c->pending = false;
    kill_point("commit.io_done");
    if (r < 0)
        commit_io_failed(s, blk->op, r);
    commit_run(s);
}

/* Begins the I/O of a step. True if it is complete already (blocking, and without error). */
static bool commit_io(struct store *s, enum io_blk_op op, uint64_t off_bytes, struct io_buf buf, void *mem,
                      uint32_t len_bytes)
{
    struct commit *c = &s->commit;

    s->stat.flushes += op == IO_BLK_FLUSH;
    if (op == IO_BLK_WRITE) {
        s->stat.written_bytes += len_bytes;
        s->stat.written_log_bytes += len_bytes;
    }
    if (s->blocking) {
        int r = s->be->ops->blk_now(s->be, op, s->dev, off_bytes, mem, len_bytes);
        if (r < 0)
            commit_io_failed(s, op, r);
        return r == 0;
    }
    c->moved_bytes = 0;
    c->io_bytes = len_bytes;
    c->pending = true;
    c->blk = (struct io_blk){
        .op = (uint8_t)op,
        .urgent = 1, /* one small request at a time, and SYNCs and freed segments wait for it */
        .lane = IO_LANE_OWN,
        .dev = s->dev,
        .len_bytes = len_bytes,
        .off_bytes = off_bytes,
        .buf = buf,
        .done = commit_io_done,
    };
    s->be->ops->blk_submit(s->be, &c->blk);
    return false;
}

static bool commit_flush(struct store *s)
{
    s->durable_unflushed = s->sums_unflushed = false; /* if it fails, that does not matter any more */
    kill_point("commit.flush");
    return commit_io(s, IO_BLK_FLUSH, 0, (struct io_buf){.region = IO_REGION_NONE}, NULL, 0);
}

/* --- Sums --- */

void commit_sums_dirty(struct store *s, uint32_t segment, bool durable)
{
    struct segment *seg = store_segment(s, segment);

    seg->sums_durable |= durable;
    if (seg->sums_dirty)
        return;
    seg->sums_dirty = 1;
    s->dirty[s->n_dirty++] = segment;
}

struct sums_buffer *commit_sums_take(struct store *s)
{
    if (list_is_empty(&s->sums_free) || (s->commit.n_in_flight > 0 && sim_point("sums: every buffer is busy")))
        return NULL;
    return list_entry(list_pop(&s->sums_free), struct sums_buffer, link);
}

/* Chooses what this cycle writes: what is complete or durable; for a sync, all. */
static void sums_choose(struct store *s)
{
    bool all = !list_is_empty(&s->syncs_log) || commit_closing(s);
    struct commit *c = &s->commit;
    uint32_t kept = 0;

    c->n_writing = c->n_issued = 0;
    for (uint32_t i = 0; i < s->n_dirty; i++) {
        struct segment *seg = store_segment(s, s->dirty[i]);
        if (!all && seg->state == SEGMENT_OPEN && !seg->sums_durable) {
            s->dirty[kept++] = s->dirty[i];
            continue;
        }
        seg->sums_dirty = 0;
        s->durable_unflushed |= seg->sums_durable;
        seg->sums_durable = 0;
        if (seg->state != SEGMENT_FREE)
            c->writing[c->n_writing++] = s->dirty[i];
    }
    s->n_dirty = kept;
    kill_point("commit.sums_chosen");
    s->sums_unflushed |= c->n_writing > 0;
}

/* Workers may be writing sums of pieces that are not in the log yet: relaxed loads, and nobody believes those. */
static void sums_copy(struct store *s, uint32_t segment, uint64_t *out)
{
    const uint64_t *sums = s->table.sums + (uint64_t)segment * s->table.slots;

    for (uint32_t i = 0; i < s->table.slots; i++)
        out[i] = load_relaxed(&sums[i]);
    memset(out + s->table.slots, 0, SECTOR_BYTES - s->table.slots * sizeof(*out));
}

static void sums_written(struct io_blk *blk)
{
    struct sums_buffer *b = container_of(blk, struct sums_buffer, blk);
    struct store *s = b->store;

    s->commit.n_in_flight--;
    kill_point("commit.sums_written");
    if (blk->result != (int32_t)SECTOR_BYTES)
        store_fail(s, blk->result < 0 ? blk->result : -EIO);
    commit_sums_release(s, b);
    commit_run(s);
}

void commit_sums_release(struct store *s, struct sums_buffer *b)
{
    struct list *l = list_pop(&s->sums_waiting);

    if (l) {
        get_sums_load(b, list_entry(l, struct store_get, link_));
        return;
    }
    list_push_tail(&s->sums_free, &b->link);
    if (s->commit.state == COMMIT_SUMS)
        commit_run(s);
}

static void sums_write(struct store *s, uint32_t segment, struct sums_buffer *b)
{
    uint64_t off = s->g.sums_off_bytes + (uint64_t)segment * SECTOR_BYTES;

    sums_copy(s, segment, b->mem);
    kill_point("commit.sums_copied");
    s->stat.written_bytes += SECTOR_BYTES;
    s->stat.written_log_bytes += SECTOR_BYTES;
    if (s->blocking) {
        int r = s->be->ops->blk_now(s->be, IO_BLK_WRITE, s->dev, off, b->mem, SECTOR_BYTES);
        list_push_tail(&s->sums_free, &b->link);
        if (r < 0)
            store_fail(s, r);
        return;
    }
    b->get = NULL;
    b->segment = segment;
    b->blk = (struct io_blk){
        .op = IO_BLK_WRITE,
        .urgent = 1, /* the log's block comes after it */
        .lane = IO_LANE_OWN,
        .dev = s->dev,
        .len_bytes = SECTOR_BYTES,
        .off_bytes = off,
        .buf = b->buf,
        .done = sums_written,
    };
    s->commit.n_in_flight++;
    kill_point("commit.sums_submit");
    s->be->ops->blk_submit(s->be, &b->blk);
    kill_point("commit.sums_submitted");
}

/* True when all are written. */
static bool sums_step(struct store *s)
{
    struct commit *c = &s->commit;

    while (c->n_issued < c->n_writing && !s->failed) {
        struct sums_buffer *b = commit_sums_take(s);
        if (!b)
            return false;
        sums_write(s, c->writing[c->n_issued++], b);
    }
    return c->n_in_flight == 0 && !s->failed;
}

/* --- Syncs --- */

static void sync_finish(struct store_sync *sync, int status)
{
    list_unlink(&sync->link_);
    kill_point("commit.sync_answer");
    sync->done(sync, status);
}

/* From waiting for puts to waiting for the log: those before which no older put is in flight. */
void commit_syncs_advance(struct store *s)
{
    const struct store_put *oldest = list_first_entry(&s->puts, struct store_put, link_);

    while (!list_is_empty(&s->syncs_puts)) {
        struct store_sync *sync = list_first_entry(&s->syncs_puts, struct store_sync, link_);
        if (oldest && oldest->entry.generation < sync->lsn_) {
            sim_reached("sync: an older put is in flight");
            return;
        }
        bool clean = s->n_dirty == 0 && !s->sums_unflushed && s->commit.state == COMMIT_IDLE;
        sync->lsn_ = s->log.queue_in;
        sync->cycle_ = clean ? 0 : s->commit.started + 1;
        list_unlink(&sync->link_);
        list_push_tail(&s->syncs_log, &sync->link_);
        kill_point("commit.sync_to_log");
    }
}

static bool sync_is_done(const struct store *s, const struct store_sync *sync)
{
    return s->commit.flushed_seq >= sync->lsn_ && s->commit.flushed_cycle >= sync->cycle_ && !log_has_unlogged(&s->log);
}

static void commit_syncs_finish(struct store *s)
{
    while (!list_is_empty(&s->syncs_log)) {
        struct store_sync *sync = list_first_entry(&s->syncs_log, struct store_sync, link_);
        if (!s->failed && !sync_is_done(s, sync))
            return;
        if (s->failed)
            sim_reached("sync: the store has failed meanwhile");
        sync_finish(sync, s->failed ? -EIO : 0);
    }
    while (s->failed && !list_is_empty(&s->syncs_puts))
        sync_finish(list_first_entry(&s->syncs_puts, struct store_sync, link_), -EIO);
}

/* --- The cycle --- */

static bool commit_wants_segments(const struct store *s)
{
    return s->table.count[SEGMENT_FREEING] > 0 &&
           (s->want_room || s->table.count[SEGMENT_FREE] <= s->table.reserve + 1);
}

/* Nobody can wait for the deletion of `cache`, so none stays in a drive's own cache for long. */
static bool commit_deletion_is_due(const struct store *s)
{
    const struct commit *c = &s->commit;

    return c->delete_first_seq && c->delete_first_seq <= s->log.queue_out &&
           s->now_ns - c->flushed_ns >= s->interval_ns;
}

bool commit_is_wanted(const struct store *s)
{
    const struct log *l = &s->log;
    bool queued = l->queue_in > l->queue_out, time = s->now_ns - s->commit.last_ns >= s->interval_ns;

    if (s->failed || s->commit.state != COMMIT_IDLE || (s->stopping && !s->blocking && list_is_empty(&s->syncs_log)))
        return false;
    return !list_is_empty(&s->syncs_log) || commit_closing(s) || commit_wants_segments(s) ||
           l->queue_in - l->queue_out >= l->block_sectors_max * SECTOR_BYTES / 2 ||
           ((queued || s->n_dirty > 0) && time) || (l->sweep.active && (l->sweep.hurry || time)) ||
           log_has_unlogged(l) || !log_has_room(l) || commit_deletion_is_due(s) ||
           sim_point("commit: a block before its time");
}

/* Does somebody wait for a flush, though there is no block to write? */
static bool commit_wants_flush(const struct store *s)
{
    const struct store_sync *sync = list_first_entry(&s->syncs_log, const struct store_sync, link_);
    const struct segment_table *t = &s->table;

    if (commit_closing(s))
        return s->n_dirty > 0 || s->log.flushed_lsn < s->log.head.lsn;
    if (commit_wants_segments(s) && t->segments[segment_first(t, SEGMENT_FREEING)].freed_seq <= s->log.queue_out &&
        s->commit.unflushed > 0)
        return true;
    if (commit_deletion_is_due(s))
        return true;
    return sync && (s->commit.flushed_cycle < sync->cycle_ ||
                    (s->commit.flushed_seq < sync->lsn_ && sync->lsn_ <= s->log.queue_out));
}

static bool commit_begin(struct store *s)
{
    struct commit *c = &s->commit;
    struct log_mark oldest = commit_oldest(s);

    if (!commit_is_wanted(s))
        return false;
    if (log_sweep_due(&s->log, oldest))
        log_sweep_begin(&s->log, oldest, !log_has_room(&s->log));
    if (s->log.sweep.active && !log_has_room(&s->log))
        s->log.sweep.hurry = true;
    bool sums = s->n_dirty > 0 && s->now_ns - c->last_ns >= s->interval_ns;
    uint32_t sectors = log_compose(&s->log, s->block_mem, &c->block_lsn);
    /* Without a block there may still be sums to write, a flush that is waited for, or an empty sweep to finish. */
    if (sectors == 0 && !sums && !commit_wants_flush(s) && !s->log.sweep.ended)
        return false;
    s->room = true; /* in the queue */
    kill_point("commit.begin");
    c->last_ns = s->now_ns;
    c->started++;
    c->block_bytes = sectors * SECTOR_BYTES;
    c->state = COMMIT_SUMS;
    c->entered = false;
    sums_choose(s);
    return true;
}

/* Not for a block that only brings the first sync nearer: the flush after its last block covers them all. */
static bool commit_wants_post_flush(const struct store *s)
{
    const struct store_sync *sync = list_first_entry(&s->syncs_log, const struct store_sync, link_);

    return (sync && sync->lsn_ <= s->log.queue_out) || s->log.sweep.ended ||
           s->commit.unflushed >= LOG_BLOCKS_UNFLUSHED_MAX || commit_wants_segments(s) || commit_closing(s) ||
           commit_deletion_is_due(s) || sim_point("commit: a flush that nobody waits for");
}

static void commit_flushed(struct store *s)
{
    struct commit *c = &s->commit;
    struct segment_table *t = &s->table;

    c->flushed_seq = s->log.queue_out;
    c->flushed_cycle = c->started;
    c->flushed_ns = s->now_ns;
    c->unflushed = 0;
    if (c->delete_first_seq <= c->flushed_seq)
        c->delete_first_seq = c->delete_last_seq > c->flushed_seq ? c->delete_last_seq : 0;
    s->log.flushed_lsn = s->log.head.lsn;
    kill_point("commit.flushed");
    for (uint32_t i; (i = segment_first(t, SEGMENT_FREEING)) != STORE_SEGMENT_NONE;) {
        if (t->segments[i].freed_seq > c->flushed_seq)
            break;
        segment_set_state(t, i, SEGMENT_FREE);
        kill_point("commit.segment_free");
        s->stat.reclaimed_segments++;
        s->room = true;
    }
}

/* A header that moves the tail to where the finished sweep began. */
static uint64_t commit_header_fill(struct store *s)
{
    struct format_partition *h = &s->header;

    h->sequence++;
    kill_point("commit.header_fill");
    h->tail_lsn = s->log.sweep.ended ? s->log.sweep.start.lsn : s->log.tail.lsn;
    h->tail_prev = s->log.sweep.ended ? s->log.sweep.start.prev : s->log.tail.prev;
    h->needed_lsn = s->log.head.lsn;
    h->next_generation = s->next_generation;
    uint64_t off = superblock_header_fill(&s->g, s->partition, h);
    *s->header_mem = *h;
    return off;
}

/* The I/O of the state just entered. True if there is none to wait for. */
static bool commit_enter(struct store *s)
{
    struct commit *c = &s->commit;

    switch (c->state) {
    case COMMIT_PRE_FLUSH:
        if (!s->durable_unflushed)
            return true;
        kill_point("commit.pre_flush");
        return commit_flush(s);
    case COMMIT_BLOCK:
        if (c->block_bytes == 0)
            return true;
        c->unflushed++;
        kill_point("commit.block");
        return commit_io(s, IO_BLK_WRITE, s->g.log_off_bytes + log_place(&s->log, c->block_lsn) * SECTOR_BYTES,
                         s->block_buf, s->block_mem, c->block_bytes);
    case COMMIT_POST_FLUSH:
        kill_point("commit.post_flush");
        return commit_flush(s);
    case COMMIT_HEADER: {
        uint64_t off = commit_header_fill(s);
        kill_point("commit.header");
        return commit_io(s, IO_BLK_WRITE, off, s->header_buf, s->header_mem, SECTOR_BYTES);
    }
    case COMMIT_HEADER_FLUSH:
        kill_point("commit.header_flush");
        return commit_flush(s);
    default:
        return true;
    }
}

/* What follows when a state's I/O is done. The only place that moves on. */
static enum commit_state commit_next(struct store *s)
{
    switch (s->commit.state) {
    case COMMIT_SUMS:
        kill_point("commit.sums_over");
        return COMMIT_PRE_FLUSH;
    case COMMIT_PRE_FLUSH:
        kill_point("commit.pre_flushed");
        return COMMIT_BLOCK;
    case COMMIT_BLOCK:
        kill_point("commit.block_written");
        return commit_wants_post_flush(s) ? COMMIT_POST_FLUSH : COMMIT_IDLE;
    case COMMIT_POST_FLUSH:
        commit_flushed(s);
        kill_point("commit.block_flushed");
        return s->log.sweep.ended ? COMMIT_HEADER : COMMIT_IDLE;
    case COMMIT_HEADER:
        kill_point("commit.header_written");
        return COMMIT_HEADER_FLUSH;
    case COMMIT_HEADER_FLUSH:
        log_sweep_finish(&s->log);
        kill_point("commit.sweep_over");
        s->stat.checkpoints++;
        s->room = true;
        return COMMIT_IDLE;
    default:
        return COMMIT_IDLE;
    }
}

/* One step. False if it must wait, or there is nothing to do. */
static bool commit_step(struct store *s)
{
    struct commit *c = &s->commit;

    if (c->state == COMMIT_IDLE)
        return commit_begin(s);
    if (c->state == COMMIT_SUMS && !sums_step(s))
        return false;
    if (!c->entered) {
        c->entered = true;
        if (!commit_enter(s))
            return false;
    }
    if (c->pending)
        return false;
    c->state = (uint8_t)commit_next(s);
    kill_point("commit.step");
    c->entered = false;
    return true;
}

void commit_run(struct store *s)
{
    while (!s->failed && commit_step(s))
        if (s->commit.state == COMMIT_IDLE)
            commit_syncs_finish(s);
    commit_syncs_finish(s);
}
