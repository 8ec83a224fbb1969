/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing a piece: a place in an open segment, the hash by a worker, the write, then the entry in the log. On the
 * engine's thread.
 *
 * Each pool has a stream (an open segment, or two) for each durability, and apart from these one for what evacuation
 * moves: what has survived long will survive longer, so old and new do not share a segment.
 *
 * Large pieces are written from where they lie. Small ones are copied and hashed in one pass into a batch, a piece of
 * bounce memory that mirrors consecutive sectors of the segment and is written as one I/O: when it is full, when it has
 * waited long enough, or when a client waits and the device has not much else to write. A batch's sectors come from
 * a region that the stream has set aside, so small pieces stay contiguous although large ones are placed between them;
 * what a batch leaves of its region, the next one takes.
 *
 * A piece counts as living in its segment from the moment it is placed, so the segment cannot be freed under its write.
 * If the write fails, the piece dies and its sectors stay unused until the segment is freed.
 */
#include <errno.h>
#include <string.h>

#include "include/base/kill_point.h"
#include "include/base/point.h"
#include "io/checksum.h"
#include "io/store_private.h"

#define REGION_SECTORS_MAX ((uint32_t)(STORE_BATCH_BYTES / SECTOR_BYTES))

/* --- Ending --- */

static void put_finish(struct store_put *put, int status)
{
    struct store *s = put->store_;
    struct store_entry *e = &put->entry;
    struct store_txn *txn = put->txn ? put_txn_find(s, put->txn) : NULL;
    uint32_t bytes = log_put_bytes(e->id.key_len);

    list_unlink(&put->link_);
    kill_point("put.finish");
    store_segment(s, e->loc.segment)->writers--;
    if (status == 0 && s->failed)
        status = -EIO;
    if (put->cancel) {
        sim_reached("put: deleted while it was written");
        status = -ECANCELED;
    }
    if (status < 0) {
        s->stat.write_errors += status == -EIO;
        kill_point("put.came_to_nothing");
        log_unreserve(&s->log, bytes);
        segment_live_sub(&s->table, e->loc.segment, sectors_of(e->size_bytes));
        store_segment_check(s, e->loc.segment);
        s->room = true;
        put->done(put, status);
        return;
    }
    if (txn && !txn->has_mark) {
        txn->has_mark = true;
        txn->mark = s->log.head;
    }
    kill_point("put.to_log");
    log_append_put(&s->log, e, put->txn ? (uint64_t)s->log.epoch << 32 | put->txn : 0);
    s->log.live_bytes += bytes;
    kill_point("put.logged");
    if (e->size_bytes > GRANULE_BYTES)
        commit_sums_dirty(s, e->loc.segment, e->durability != STORE_CACHE);
    /* `scratch` too: it is copied forward and the old copy dropped, and a crash in between must not cost a synced one. */
    if (e->durability != STORE_CACHE)
        s->durable_unflushed = true;
    s->stat.put_bytes += e->size_bytes;
    s->stat.live_bytes += (uint64_t)sectors_of(e->size_bytes) * SECTOR_BYTES;
    store_segment_check(s, e->loc.segment);
    kill_point("put.done");
    put->done(put, 0);
}

/* --- Batches --- */

static void batch_free(struct batch *b)
{
    struct store *s = b->store;

    b->state = BATCH_FREE;
    list_push_tail(&s->batches_free, &b->link);
    s->room = true;
}

static void batch_finish(struct batch *b, int status)
{
    struct list puts = LIST_INIT(puts);

    /* The batch first: done() may put again, into this very memory. */
    list_splice_tail(&puts, &b->puts);
    batch_free(b);
    kill_point("put.batch_finish");
    while (!list_is_empty(&puts)) {
        struct list *l = list_pop(&puts);
        put_finish(list_entry(l, struct store_put, batch_link_), status);
    }
}

/* One write that fails costs its puts, which will be tried elsewhere; when none succeeds, that would go on for ever. */
static void count_write(struct store *s, const struct io_blk *blk, int status)
{
    if (status >= 0)
        s->write_failures = 0;
    else if (status == -EIO && ++s->write_failures == STORE_WRITE_FAILURES_MAX)
        store_fail(s, blk->result < 0 ? blk->result : -EIO);
}

static void batch_written(struct io_blk *blk)
{
    struct batch *b = container_of(blk, struct batch, blk);

    int r = store_blk_more(b->store, blk, &b->moved_bytes, b->n_sectors * SECTOR_BYTES);
    if (r == -EAGAIN)
        return;
    kill_point("put.batch_written");
    count_write(b->store, blk, r);
    batch_finish(b, r);
}

static void batch_write(struct batch *b)
{
    struct store *s = b->store;

    b->state = BATCH_WRITING;
    if (list_is_empty(&b->puts)) { /* all of its copies failed */
        batch_free(b);
        return;
    }
    b->moved_bytes = 0;
    b->blk = (struct io_blk){
        .op = IO_BLK_WRITE,
        .urgent = b->urgent,
        .lane = store_lane(s, b->segment, b->evacuating),
        .dev = s->dev,
        .len_bytes = b->n_sectors * SECTOR_BYTES,
        .off_bytes = store_off(s, b->segment, b->sector),
        .buf = b->buf,
        .done = batch_written,
    };
    s->stat.written_bytes += b->blk.len_bytes;
    kill_point("put.batch_submit");
    s->be->ops->blk_submit(s->be, &b->blk);
    kill_point("put.batch_submitted");
}

static void batch_close(struct batch *b)
{
    b->state = BATCH_CLOSED;
    b->stream->batch = NULL;
    b->stream = NULL;
    kill_point("put.batch_closed");
    if (b->n_copying == 0)
        batch_write(b);
}

/* Somebody waits for it, and the device has little to do meanwhile: what comes later goes into the next one. */
static bool batch_is_due(const struct store *s, const struct batch *b, uint32_t n_closed)
{
    return b->deadline_ns <= s->now_ns || (b->urgent && n_closed < STORE_BATCHES_BUSY) ||
           sim_point("put: a batch is closed early");
}

void put_batches_close(struct store *s, bool all)
{
    uint32_t n_closed = 0;

    for (uint32_t i = 0; i < STORE_BATCHES; i++)
        n_closed += s->batches[i].state == BATCH_CLOSED || s->batches[i].state == BATCH_WRITING;
    for (uint32_t i = 0; i < STORE_BATCHES; i++) {
        struct batch *b = &s->batches[i];
        if (b->state == BATCH_FILLING && (all || batch_is_due(s, b, n_closed))) {
            batch_close(b);
            n_closed++;
        }
    }
}

uint64_t put_batches_deadline_ns(const struct store *s)
{
    uint64_t first = UINT64_MAX;

    for (uint32_t i = 0; i < STORE_BATCHES; i++)
        if (s->batches[i].state == BATCH_FILLING)
            first = MIN(first, s->batches[i].deadline_ns);
    return first;
}

/* The batch that a small piece was copied into. */
static struct batch *batch_of(const struct store_put *put)
{
    struct store *s = put->store_;

    return &s->batches[(put->work_.dst.off - s->batches[0].buf.off) / STORE_BATCH_BYTES];
}

static void small_copied(struct io_work *work)
{
    struct store_put *put = container_of(work, struct store_put, work_);
    struct batch *b = batch_of(put);

    b->n_copying--;
    kill_point("put.small_copied");
    put->entry.sum = put->sum_one_;
    if (work->result < 0) {
        /* What another pool left in this memory must not reach this pool's sectors. */
        memset(b->mem + (work->dst.off - b->buf.off), 0, sectors_of(put->size_bytes) * SECTOR_BYTES);
        list_unlink(&put->batch_link_);
        put_finish(put, work->result);
    }
    if (b->state == BATCH_CLOSED && b->n_copying == 0)
        batch_write(b);
}

static void small_submit(struct store *s, struct store_put *put, struct batch *b)
{
    uint32_t sectors = sectors_of(put->size_bytes), at = b->n_sectors * SECTOR_BYTES;

    memset(b->mem + at + put->size_bytes, 0, sectors * SECTOR_BYTES - put->size_bytes);
    b->n_sectors += sectors;
    b->n_copying++;
    b->urgent |= put->urgent;
    list_push_tail(&b->puts, &put->batch_link_);
    s->stat.bounced_bytes += put->size_bytes;
    put->work_ = (struct io_work){
        .op = IO_WORK_COPY_HASH,
        .len_bytes = put->size_bytes,
        .src = put->buf,
        .dst = {.region = b->buf.region, .off = b->buf.off + at},
        .seed = store_seed(&put->entry),
        .sums = &put->sum_one_,
        .done = small_copied,
    };
    kill_point("put.small_submit");
    s->be->ops->work_submit(s->be, &put->work_);
    kill_point("put.small_submitted");
    if (b->n_sectors == b->max_sectors)
        batch_close(b);
}

/* --- Large pieces --- */

static void large_written(struct io_blk *blk)
{
    struct store_put *put = container_of(blk, struct store_put, blk_);

    int r = store_blk_more(put->store_, blk, &put->moved_, sectors_of(put->size_bytes) * SECTOR_BYTES);
    if (r == -EAGAIN)
        return;
    kill_point("put.large_written");
    count_write(put->store_, blk, r);
    put_finish(put, r);
}

static void large_hashed(struct io_work *work)
{
    struct store_put *put = container_of(work, struct store_put, work_);
    struct store *s = put->store_;

    if (work->result < 0) {
        put_finish(put, work->result);
        return;
    }
    put->entry.sum = checksum_of_sums(work->seed, work->sums, checksum_granule_count(put->size_bytes));
    put->blk_ = (struct io_blk){
        .op = IO_BLK_WRITE,
        .urgent = put->urgent,
        .lane = store_lane(s, put->entry.loc.segment, put->evacuating),
        .dev = s->dev,
        .len_bytes = sectors_of(put->size_bytes) * SECTOR_BYTES,
        .off_bytes = store_off(s, put->entry.loc.segment, put->entry.loc.sector),
        .buf = put->buf,
        .done = large_written,
    };
    s->stat.written_bytes += put->blk_.len_bytes;
    kill_point("put.large_submit");
    s->be->ops->blk_submit(s->be, &put->blk_);
    kill_point("put.large_submitted");
}

static void large_submit(struct store *s, struct store_put *put)
{
    put->work_ = (struct io_work){
        .op = IO_WORK_HASH,
        .len_bytes = put->size_bytes,
        .src = put->buf,
        .seed = store_seed(&put->entry),
        .sums = put->size_bytes > GRANULE_BYTES ? segment_sums(&s->table, put->entry.loc) : &put->sum_one_,
        .done = large_hashed,
    };
    kill_point("put.large_hash");
    s->be->ops->work_submit(s->be, &put->work_);
}

/* --- Placing --- */

static struct stream *stream_of(struct store *s, uint32_t pool, uint8_t durability, bool evacuating)
{
    return &s->streams[pool * STORE_STREAMS_POOL + durability * 2 + evacuating];
}

static const struct filling filling_none = {.segment = STORE_SEGMENT_NONE};

void put_stream_init(struct stream *t)
{
    *t = (struct stream){.fillings = {filling_none, filling_none}, .region_segment = STORE_SEGMENT_NONE};
}

static uint32_t filling_room(const struct store *s, const struct filling *f)
{
    return f->segment == STORE_SEGMENT_NONE ? 0 : s->g.segment_sectors - f->next;
}

static void filling_seal(struct store *s, struct stream *t, struct filling *f)
{
    uint32_t segment = f->segment;

    if (segment == STORE_SEGMENT_NONE)
        return;
    if (t->region_segment == segment) {
        if (t->batch)
            batch_close(t->batch);
        t->region_segment = STORE_SEGMENT_NONE;
        t->region_next = t->region_end = 0;
    }
    store_segment(s, segment)->end_sector = f->next;
    *f = filling_none;
    segment_set_state(&s->table, segment, SEGMENT_CLOSING);
    kill_point("put.segment_closing");
    store_segment_check(s, segment);
}

static void stream_seal(struct store *s, struct stream *t)
{
    filling_seal(s, t, &t->fillings[0]);
    filling_seal(s, t, &t->fillings[1]);
}

void put_streams_seal(struct store *s, uint32_t pool)
{
    for (uint32_t i = 0; i < STORE_STREAMS_POOL; i++)
        stream_seal(s, &s->streams[pool * STORE_STREAMS_POOL + i]);
}

/* The one with less room, perhaps none. */
static struct filling *stream_fullest(const struct store *s, struct stream *t)
{
    return &t->fillings[filling_room(s, &t->fillings[1]) < filling_room(s, &t->fillings[0])];
}

static struct filling *stream_other(struct stream *t, const struct filling *f)
{
    return &t->fillings[f == &t->fillings[0]];
}

/* Which these sectors fit in; if both, that with less room, so that a larger piece finds the other. */
static struct filling *stream_fits(const struct store *s, struct stream *t, uint32_t sectors)
{
    struct filling *fullest = stream_fullest(s, t), *other = stream_other(t, fullest);

    if (filling_room(s, fullest) >= sectors) {
        if (other->segment != STORE_SEGMENT_NONE)
            sim_reached("put: one of two open segments has just the room");
        return fullest;
    }
    return filling_room(s, other) >= sectors ? other : NULL;
}

/* No stream keeps a second segment while any lacks one: what has room, segment_reopen() may give to who needs it most. */
static void streams_keep_one(struct store *s, uint32_t pool)
{
    for (uint32_t i = 0; i < STORE_STREAMS_POOL; i++) {
        struct stream *t = &s->streams[pool * STORE_STREAMS_POOL + i];

        if (t->fillings[0].segment != STORE_SEGMENT_NONE && t->fillings[1].segment != STORE_SEGMENT_NONE)
            filling_seal(s, t, stream_fullest(s, t));
    }
}

/*
 * A fresh segment for the stream. The fullest is sealed first: then it can be reclaimed, whatever comes of this. The
 * other stays open for what fits in it, unless that is next to nothing. Sealed, it would keep its room until no segment
 * is free; but then pieces that need a whole one find no place, although much of the device may be such ends.
 */
static int stream_open(struct store *s, struct stream *t, const struct store_put *put, struct filling **ret_filling)
{
    struct filling *f = stream_fullest(s, t), *other = stream_other(t, f);

    filling_seal(s, t, f);
    if (filling_room(s, other) < s->g.segment_sectors / (SEGMENT_BUCKETS - 1))
        filling_seal(s, t, other);
    kill_point("put.segment_wanted");
    int r = segment_take(&s->table, put->pool, put->durability, put->evacuating, &f->segment);
    if (r == -ENOSPC) {
        /* The pool's other open segments may be what it has left to give. */
        put_streams_seal(s, put->pool);
        r = segment_take(&s->table, put->pool, put->durability, put->evacuating, &f->segment);
    }
    if (r < 0) {
        stream_seal(s, t);
        streams_keep_one(s, put->pool);
        if (segment_reopen(&s->table, put->pool, put->durability, put->evacuating, sectors_of(put->size_bytes),
                           &f->segment) == 0) {
            f->next = store_segment(s, f->segment)->end_sector;
            r = 0;
        }
    }
    if (r == 0)
        *ret_filling = f;
    return r;
}

static int stream_place(struct store *s, struct stream *t, const struct store_put *put, struct store_loc *ret_loc)
{
    uint32_t sectors = sectors_of(put->size_bytes);
    struct filling *f = sim_point("put: a segment is sealed before it is full") ? NULL : stream_fits(s, t, sectors);

    if (!f) {
        int r = stream_open(s, t, put, &f);
        if (r < 0)
            return r;
    }
    *ret_loc = (struct store_loc){.segment = f->segment, .sector = (uint16_t)f->next};
    f->next += sectors;
    return 0;
}

/* Makes sure that the stream's region has room for these sectors. */
static int stream_region(struct store *s, struct stream *t, const struct store_put *put)
{
    uint32_t sectors = sectors_of(put->size_bytes);
    uint32_t want = MAX(MIN(REGION_SECTORS_MAX, s->g.segment_sectors / 16), sectors);

    if (t->region_end - t->region_next >= sectors)
        return 0;
    struct filling *f = stream_fits(s, t, sectors);
    if (!f) {
        int r = stream_open(s, t, put, &f);
        if (r < 0)
            return r;
    }
    /* Right behind the old region, what is left of that is not lost. */
    if (t->region_segment != f->segment || t->region_end != f->next)
        t->region_next = f->next;
    kill_point("put.region");
    t->region_segment = f->segment;
    f->next += MIN(want, filling_room(s, f));
    t->region_end = f->next;
    return 0;
}

static int stream_batch(struct store *s, struct stream *t, const struct store_put *put, struct batch **ret_batch)
{
    uint32_t sectors = sectors_of(put->size_bytes);
    struct batch *b = t->batch;

    if (b && b->n_sectors + sectors <= b->max_sectors) {
        *ret_batch = b;
        return 0;
    }
    if (b)
        batch_close(b);
    if (list_is_empty(&s->batches_free))
        return -EAGAIN;
    int r = stream_region(s, t, put);
    if (r < 0)
        return r;
    b = list_entry(list_pop(&s->batches_free), struct batch, link);
    b->state = BATCH_FILLING;
    b->stream = t;
    b->urgent = 0;
    b->evacuating = put->evacuating;
    b->segment = t->region_segment;
    b->sector = t->region_next;
    b->n_sectors = 0;
    b->max_sectors = MIN(t->region_end - t->region_next, REGION_SECTORS_MAX);
    b->n_copying = 0;
    b->deadline_ns = s->now_ns + STORE_BATCH_WAIT_NS;
    kill_point("put.batch_new");
    t->batch = b;
    *ret_batch = b;
    return 0;
}

static int put_place(struct store *s, struct store_put *put, struct batch **ret_batch, struct store_loc *ret_loc)
{
    struct stream *t = stream_of(s, put->pool, put->durability, put->evacuating);

    if (put->size_bytes >= STORE_SMALL_BYTES)
        return stream_place(s, t, put, ret_loc);
    int r = stream_batch(s, t, put, ret_batch);
    if (r < 0)
        return r;
    *ret_loc = (struct store_loc){.segment = t->region_segment, .sector = (uint16_t)t->region_next};
    t->region_next += sectors_of(put->size_bytes);
    return 0;
}

/* --- Beginning --- */

struct store_txn *put_txn_find(struct store *s, uint32_t txn)
{
    for (uint32_t i = 0; i < STORE_TXNS_MAX; i++)
        if (s->txns[i].number == txn)
            return &s->txns[i];
    return NULL;
}

/* -EINVAL, -EIO and the limits that do not depend on a place. */
static int put_check(struct store *s, const struct store_put *put)
{
    bool goes_on = put->evacuating;

    if (s->failed)
        return -EIO;
    if (put->size_bytes == 0 || put->size_bytes > PIECE_BYTES_MAX || put->size_bytes > s->g.segment_bytes ||
        put->pool >= s->table.n_pools || put->id.key_len > KEY_BYTES_MAX || put->durability > STORE_DURABLE)
        return -EINVAL;
    if (put->txn) {
        const struct store_txn *txn = put_txn_find(s, put->txn);
        if (!txn)
            return -EINVAL;
        if ((txn->has_mark && s->log.head.lsn - txn->mark.lsn > s->log.ring_sectors / 4) ||
            sim_point("put: a transaction is too old"))
            return -ENOSPC;
        goes_on |= txn->has_mark;
    }
    if (!log_live_room(&s->log, log_put_bytes(put->id.key_len), put->evacuating)) {
        bool coming = s->table.count[SEGMENT_CLOSING] + s->table.count[SEGMENT_EVACUATING] > 0;
        if (put->evacuating || (!coming && segment_cache_victim(&s->table) == STORE_SEGMENT_NONE))
            return -ENOSPC;
        s->want_entries = true;
        return -EAGAIN;
    }
    /* What a sweep must make durable may come back after a crash: until then nothing may take its room. But that sweep
     * may wait for this transaction's end. */
    if (log_has_unlogged(&s->log) && put->txn && goes_on &&
        !log_live_room_if_back(&s->log, log_put_bytes(KEY_BYTES_MAX)))
        return -ENOSPC;
    return s->stopping || (log_has_unlogged(&s->log) && !goes_on) ? -EAGAIN : 0;
}

static void put_entry_fill(struct store *s, struct store_put *put, struct store_loc loc)
{
    put->entry = (struct store_entry){
        .id = put->id,
        .generation = s->next_generation++,
        .object_bytes = put->object_bytes,
        .size_bytes = put->size_bytes,
        .n_parts = put->n_parts,
        .class_id = put->class_id,
        .durability = put->durability,
        .kind = put->kind,
        .loc = loc,
    };
}

int store_put(struct store *s, struct store_put *put)
{
    struct batch *batch = NULL;
    struct store_loc loc = {0};

    int r = put_check(s, put);
    uint32_t bytes = log_put_bytes(put->id.key_len);
    if (r == 0 && sim_point("put: not now")) {
        s->room = true; /* so that it is tried again */
        r = -EAGAIN;
    }
    if (r == 0 && !log_reserve(&s->log, bytes))
        r = -EAGAIN;
    if (r == 0) {
        r = put_place(s, put, &batch, &loc);
        if (r < 0)
            log_unreserve(&s->log, bytes);
    }
    if (r == -EAGAIN)
        s->want_room = true;
    if (r < 0)
        return r;
    put_entry_fill(s, put, loc);
    kill_point("put.placed");
    put->store_ = s;
    put->moved_ = 0;
    put->blk_.queued = 0;
    list_init(&put->batch_link_);
    list_push_tail(put->evacuating ? &s->copies : &s->puts, &put->link_);
    segment_live_add(&s->table, loc.segment, sectors_of(put->size_bytes));
    kill_point("put.counted");
    store_segment(s, loc.segment)->writers++;
    if (batch)
        small_submit(s, put, batch);
    else
        large_submit(s, put);
    return 0;
}

void store_put_urge(struct store_put *put)
{
    struct store *s = put->store_;
    struct io_blk *blk = &put->blk_;

    if (put->urgent)
        return;
    put->urgent = 1;
    kill_point("put.urged");
    if (!list_is_empty(&put->batch_link_)) {
        struct batch *b = batch_of(put);

        b->urgent = 1;
        b->deadline_ns = s->now_ns;
        blk = b->state == BATCH_WRITING ? &b->blk : NULL;
    }
    if (blk)
        s->be->ops->blk_urge(s->be, blk); /* if it is still to be submitted, it will be as urgent as the put */
}

void put_urge_all(struct store *s)
{
    for (struct list *l = s->puts.prev; l != &s->puts; l = l->prev) {
        struct store_put *put = list_entry(l, struct store_put, link_);

        if (put->entry.generation < s->urged_generation)
            break;
        store_put_urge(put);
    }
    s->urged_generation = s->next_generation;
}
