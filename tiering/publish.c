/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tensors that are written in shared pools, where nobody but the daemon may write what others read. Engine thread only.
 *
 * A writer gets a copy of its range in its session's private memory (a fill), and a RELEASE that says "dirty" publishes
 * it: the rest of the piece and the new range are copied to a new extent, which then takes the old one's place. Who reads
 * the old extent keeps it until its lease ends (extent.c), so no reader ever sees bytes change. Whatever else ends the
 * lease, a RELEASE without "dirty", a discard, the session's death, just frees the private memory: the piece is what it
 * was last published as, and is never torn.
 *
 * From the beginning of a fill to the end of its publication the move or the lease counts as one of the piece's writers,
 * so the piece is not written to a device meanwhile, and stays in memory. Two publications of one piece come one after
 * the other: each begins with what the one before has left. The lease lives until the end, though its session cannot use
 * it any more: so if the process ends before, the writer finds it as it was, and can release it again.
 */
#include <errno.h>

#include "include/base/kill_point.h"
#include "include/base/point.h"
#include "tiering/core.h"

enum publish_step { PUBLISH_HEAD, PUBLISH_TAIL, PUBLISH_RANGE, PUBLISH_STEPS };

bool piece_is_published(const struct tiering *t, const struct record *r)
{
    return (r->flags & RECORD_TENSOR) && !t->pools[t->spaces[r->space].info.pool].config.trusted;
}

uint32_t range_sectors(uint32_t off_bytes, uint32_t len_bytes)
{
    return sectors_of(off_bytes % SECTOR_BYTES + len_bytes);
}

uint32_t move_sectors(const struct move *m)
{
    return m->kind == MOVE_FILL ? range_sectors(m->off_bytes, m->len_bytes)
                                : sectors_of(record_at(&m->t->records, m->object)->size_bytes);
}

static void writer_is_gone(struct tiering *t, uint32_t object)
{
    if (!hot_writers(hot_at(t, object)) && record_at(&t->records, object)->state == RECORD_COMMITTED)
        (void)shadow_restore(t, object); /* if nobody has changed it */
}

static void writer_gone(struct tiering *t, uint32_t object)
{
    hot_at(t, object)->flags -= HOT_WRITER;
    writer_is_gone(t, object);
}

/* --- Fill --------------------------------------------------------------------------------------------------------------- */

void fill_end(struct move *m, int status)
{
    struct tiering *t = m->t;
    uint32_t object = m->object;
    struct list *l = list_pop(&m->waiters);
    struct tiering_wait *w = l ? list_entry(l, struct tiering_wait, link) : NULL;

    if (m->held)
        extent_release(t, m->held_region, m->held_sector);
    if (status == 0 && record_at(&t->records, object)->state != RECORD_COMMITTED)
        status = -ENOENT; /* deleted meanwhile */
    writer_gone(t, object);
    if (status == 0 && w)
        status = lease_grant_own(t, w->session_, object, w->off_, w->len_, m->chunk, m->sector, &w->grant);
    if (m->chunk && (status < 0 || !w))
        room_give(t, m->chunk->region, m->sector);
    if (w) {
        const struct record *r = record_at(&t->records, object);

        w->move_ = MOVE_NONE;
        if (status < 0)
            tiering_unadmit(t, w->session_, t->spaces[r->space].info.pool, r->size_bytes);
        w->done(w, status);
    }
    kill_point("publish.filled");
    move_free(m);
    object_unpin(t, object);
}

static void fill_copied(struct io_work *work)
{
    fill_end(container_of(work, struct move, work), work->result);
}

void fill_go(struct move *m)
{
    struct tiering *t = m->t;
    const struct record *r = record_at(&t->records, m->object);
    struct io_buf from = {.region = r->mem_region, .off = (uint64_t)r->mem_sector * SECTOR_BYTES + m->off_bytes};

    if ((r->flags & RECORD_TORN) && m->len_bytes < r->size_bytes) {
        fill_end(m, -EBADMSG); /* found out while it waited */
        return;
    }
    if (r->flags & RECORD_TORN) { /* all of it will be written: what is there is nobody's */
        from = t->zeros;
    } else {
        m->held = true;
        m->held_region = r->mem_region;
        m->held_sector = r->mem_sector;
        extent_hold(t, r->mem_region, r->mem_sector, m->object);
    }
    m->work = (struct io_work){
        .op = IO_WORK_COPY,
        .len_bytes = m->len_bytes,
        .src = from,
        .dst = {.region = m->chunk->region, .off = (uint64_t)m->sector * SECTOR_BYTES + m->off_bytes % SECTOR_BYTES},
        .done = fill_copied};
    t->stat.copied_bytes += m->len_bytes;
    t->config.backend->ops->work_submit(t->config.backend, &m->work);
}

int fill_begin(struct tiering *t, uint32_t object, struct tiering_wait *wait, uint32_t *ret_limit)
{
    struct arena_chunk *chunk;
    uint32_t sector;

    if (hot_at(t, object)->flags & (HOT_SPILLING | HOT_MIGRATING)) { /* no writer is let in: later */
        move_attach(t, move_that_bars_writers(t, object), wait);
        return TIERING_WAIT;
    }
    if (hot_writers(hot_at(t, object)) == HOT_WRITERS_MAX)
        return -EBUSY;
    struct move *m = move_new(t, MOVE_FILL, object);
    if (!m) {
        *ret_limit = TIERING_LIMIT_REQUESTS;
        return -EAGAIN;
    }
    m->session = wait->session_;
    m->off_bytes = wait->off_;
    m->len_bytes = wait->len_;
    int status = room_take_private(t, m->session, m->pool, object, move_sectors(m), &chunk, &sector, ret_limit);
    if (status < 0 && status != -EAGAIN) {
        move_free(m);
        return status;
    }
    *ret_limit = TIERING_LIMIT_NONE;
    object_pin(t, object);
    hot_at(t, object)->flags += HOT_WRITER;
    move_attach(t, m, wait);
    if (status == 0)
        move_go(m, chunk, sector);
    else
        move_queue(m);
    return TIERING_WAIT;
}

/* --- Publish ------------------------------------------------------------------------------------------------------------ */

static void publish_step(struct move *m);

/* The new extent takes the old one's place. */
static void publish_swap(struct move *m)
{
    struct tiering *t = m->t;
    const struct record *r = record_at(&t->records, m->object);
    uint32_t region = r->mem_region, sector = r->mem_sector;
    bool other_tier = tier_of_mem(t, r) != tier_of_chunk(pool_of(t, r), m->chunk);
    bool in_policy = hot_at(t, m->object)->flags & HOT_IN_POLICY;

    /* First it is not what a device, or nobody, has any more: else who comes after us might believe that. */
    piece_dirtied(t, m->object, false);
    if (other_tier)
        policy_leave(t, m->object, false);
    object_swap_mem(t, m->object, m->chunk->region, m->sector);
    kill_point("publish.swapped");
    if (other_tier && in_policy)
        policy_enter(t, m->object);
    /* An admission goes with it, of its own: that of the lease ends with the lease. */
    t->pools[m->pool].admitted_bytes += r->size_bytes;
    extent_orphan(t, region, sector, m->object, true);
    if (m->len_bytes == r->size_bytes)
        object_clear_flags(t, m->object, RECORD_TORN);
    kill_point("publish.dirty");
}

/* The next one that waits for this piece. */
static void publish_next(struct tiering *t, uint32_t object)
{
    list_for_each (l, &t->publish_waiting) {
        struct move *m = list_entry(l, struct move, link);

        if (m->object != object)
            continue;
        list_unlink(&m->link);
        list_push_tail(&t->publishing, &m->link);
        publish_step(m);
        return;
    }
}

void publish_end(struct move *m, int status)
{
    struct tiering *t = m->t;
    uint32_t object = m->object;
    const struct record *r = record_at(&t->records, object);
    bool was_running = m->phase == MOVE_BUSY;

    list_unlink(&m->link);
    if (status == 0 && r->state == RECORD_COMMITTED) {
        publish_swap(m);
    } else {
        if (m->chunk)
            room_give(t, m->chunk->region, m->sector);
    }
    kill_point("publish.end");
    lease_end(t, &t->leases[m->lease]);
    writer_is_gone(t, object);
    extent_release(t, m->held_region, m->held_sector);
    move_wake(m, status);
    move_free(m);
    if (was_running)
        publish_next(t, object);
    object_unpin(t, object);
}

static void publish_copied(struct io_work *work)
{
    struct move *m = container_of(work, struct move, work);

    if (work->result < 0)
        publish_end(m, work->result);
    else
        publish_step(m);
}

/* The copies, one after the other: what lies before the range, what lies behind it, the range. */
static void publish_step(struct move *m)
{
    struct tiering *t = m->t;
    const struct record *r = record_at(&t->records, m->object);
    struct io_buf old = {.region = r->mem_region, .off = (uint64_t)r->mem_sector * SECTOR_BYTES};
    struct io_buf own = {.region = m->held_region,
                         .off = (uint64_t)m->held_sector * SECTOR_BYTES + m->off_bytes % SECTOR_BYTES};
    uint32_t end = m->off_bytes + m->len_bytes;
    uint32_t from[PUBLISH_STEPS] = {0, end, m->off_bytes};
    uint32_t len[PUBLISH_STEPS] = {m->off_bytes, r->size_bytes - end, m->len_bytes};

    while (m->step < PUBLISH_STEPS && len[m->step] == 0)
        m->step++;
    if (m->step == PUBLISH_STEPS || r->state != RECORD_COMMITTED) {
        if (r->state != RECORD_COMMITTED)
            sim_reached_rarely("publish: deleted meanwhile");
        publish_end(m, 0); /* what was deleted meanwhile needs no more bytes */
        return;
    }
    uint32_t i = m->step++;
    if (i != PUBLISH_RANGE)
        old.off += from[i];
    m->work = (struct io_work){.op = IO_WORK_COPY,
                               .len_bytes = len[i],
                               .src = i == PUBLISH_RANGE ? own : old,
                               .dst = {.region = m->chunk->region, .off = (uint64_t)m->sector * SECTOR_BYTES + from[i]},
                               .done = publish_copied};
    t->stat.copied_bytes += len[i];
    kill_point("publish.copy");
    t->config.backend->ops->work_submit(t->config.backend, &m->work);
}

void publish_go(struct move *m)
{
    struct tiering *t = m->t;

    list_for_each (l, &t->publishing) {
        if (list_entry(l, struct move, link)->object == m->object) {
            list_push_tail(&t->publish_waiting, &m->link);
            return;
        }
    }
    list_push_tail(&t->publishing, &m->link);
    publish_step(m);
}

int publish_begin(struct tiering *t, struct lease *l, struct tiering_wait *wait, uint32_t *ret_limit)
{
    uint32_t object = l->object;
    struct move *m = move_new(t, MOVE_PUBLISH, object);

    assert(l->is_own);
    if (!m) {
        *ret_limit = TIERING_LIMIT_REQUESTS;
        return -EAGAIN;
    }
    m->off_bytes = l->off_bytes;
    m->len_bytes = l->len_bytes;
    m->held = true;
    m->held_region = l->region;
    m->held_sector = l->sector;
    extent_hold(t, m->held_region, m->held_sector, object);
    object_pin(t, object);
    kill_point("publish.begin");
    /* The lease, with its admission and its place among the writers, stays until the piece has the bytes. */
    m->lease = (uint32_t)(l - t->leases);
    l->in_move = true;
    wait_prepare(wait, NULL, LEASE_FREE, 0, 0);
    wait->grant.limit = TIERING_LIMIT_POOL_DRAM;
    move_attach(t, m, wait);
    move_queue(m);
    room_kick(t, m->pool);
    return TIERING_WAIT;
}
