/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Transfers as small state machines. Engine thread only.
 *
 * A move belongs to one piece and pins it while it transfers. It has a phase (core.h lists the transitions), may wait
 * for room in its pool's queue, and ends by waking those who wait for it. What it holds (an extent that the piece does
 * not own yet, a pin, a place among the spills) is given back in exactly one function for each kind.
 */
#include <errno.h>
#include <string.h>

#include "include/base/kill_point.h"
#include "include/base/point.h"
#include "tiering/core.h"

void move_set_phase(struct move *m, enum move_phase phase)
{
    m->phase = phase;
}

struct move *move_new(struct tiering *t, enum move_kind kind, uint32_t object)
{
    struct list *l;

    if (kind != MOVE_MIGRATE && t->n_moves > 0 && sim_point("move: none is free")) /* a migration has looked before */
        return NULL;
    l = list_pop(&t->moves_free);
    if (!l)
        return NULL;
    struct move *m = list_entry(l, struct move, link);
    list_init(&m->link);
    list_init(&m->waiters);
    list_init(&m->syncs);
    m->t = t;
    m->object = object;
    m->pool = t->spaces[record_at(&t->records, object)->space].info.pool;
    m->kind = (uint8_t)kind;
    m->chunk = NULL;
    m->session = NULL;
    m->io = MOVE_IO_NONE;
    m->step = 0;
    move_set_phase(m, MOVE_IDLE);
    kill_point("move.new");
    t->n_moves++;
    return m;
}

void move_free(struct move *m)
{
    struct tiering *t = m->t;

    assert(list_is_empty(&m->waiters) && list_is_empty(&m->syncs));
    list_unlink(&m->link);
    m->held = false;
    move_set_phase(m, MOVE_IDLE);
    list_push_head(&t->moves_free, &m->link);
    t->n_moves--;
    t->kicked = true;
}

struct move *move_of(struct tiering *t, uint32_t object)
{
    return &t->moves[t->records.objects[object].node.state[0]];
}

void move_attach(struct tiering *t, struct move *m, struct tiering_wait *wait)
{
    wait->move_ = (uint32_t)(m - t->moves);
    wait->object_ = m->object;
    list_push_tail(&m->waiters, &wait->link);
    move_urge(m);
}

/* One wait of a move ends. With status 0 it gets the lease that it asked for. */
static void move_wake_one(struct tiering *t, struct tiering_wait *w, int status)
{
    uint32_t object = w->object_;
    const struct record *r = record_at(&t->records, object);
    uint32_t pool = t->spaces[r->space].info.pool;

    w->move_ = MOVE_NONE;
    if (w->mode_ != LEASE_FREE) {
        if (status == 0 && (r->flags & RECORD_TORN) && !(w->mode_ == LEASE_WRITE && w->len_ == r->size_bytes))
            status = -EBADMSG; /* found out while it waited */
        if (status == 0 && w->mode_ == LEASE_WRITE && piece_is_published(t, r)) {
            status = fill_begin(t, object, w, &w->grant.limit);
            if (status == TIERING_WAIT)
                return;
        } else if (status == 0) {
            status = lease_grant(t, w->session_, object, (enum lease_mode)w->mode_, w->off_, w->len_, &w->grant);
        }
        if (status < 0)
            tiering_unadmit(t, w->session_, pool, r->size_bytes);
        if (status < 0 && w->mode_ == LEASE_RESERVE)
            object_kill(t, object); /* nobody could commit it */
    }
    if (status != -ENOSPC && status != -EAGAIN)
        w->grant.limit = TIERING_LIMIT_NONE; /* it is not room that was missing */
    else if (status == -ENOSPC && w->grant.limit == TIERING_LIMIT_POOL_DRAM)
        w->grant.limit = tiering_room_limit(t, pool);
    kill_point("move.wake");
    w->done(w, status);
}

void move_wake(struct move *m, int status)
{
    struct list woken;
    struct list *l;

    /* done() may ask for the next thing at once: the list is taken off first. */
    list_init(&woken);
    list_splice_tail(&woken, &m->waiters);
    while ((l = list_pop(&woken)))
        move_wake_one(m->t, list_entry(l, struct tiering_wait, link), status);
}

void move_queue(struct move *m)
{
    move_set_phase(m, MOVE_ROOM);
    list_push_tail(&m->t->pools[m->pool].room, &m->link);
}

/* --- Load -------------------------------------------------------------------------------------------------------- */

static void move_load_end(struct move *m, int status)
{
    struct tiering *t = m->t;
    uint32_t object = m->object;
    const struct record *r = record_at(&t->records, object);
    struct tpool *p = &t->pools[m->pool];

    hot_at(t, object)->flags &= (uint16_t)~HOT_LOADING;
    kill_point("move.load_end");
    if (status == 0 && r->state != RECORD_COMMITTED)
        status = -ENOENT; /* deleted meanwhile */
    if (status == 0) {
        object_set_mem(t, object, m->chunk->region, m->sector);
        policy_enter(t, object);
        room_found(t, object);
        p->stat.loads++;
        p->stat.load_bytes += r->size_bytes;
        if (++p->n_unlooked >= LOOK_EVERY) {
            p->n_unlooked = 0;
            p->look_ahead = true;
        }
    } else if (m->chunk) {
        room_give(t, m->chunk->region, m->sector);
    }
    kill_point("move.loaded");
    move_wake(m, status);
    if (status == -EBADMSG && r->state == RECORD_COMMITTED && durability_of(t, r) == STORE_CACHE)
        object_kill_all(t, object);
    move_free(m);
    evacuate_again(t, object);
    object_unpin(t, object);
}

static void move_load_got(struct store_get *get, int status)
{
    move_load_end(container_of(get, struct move, get), status);
}

static void move_load_zeroed(struct io_work *work)
{
    move_load_end(container_of(work, struct move, work), work->result);
}

uint8_t move_user(const struct move *m)
{
    if (list_is_empty(&m->waiters))
        return 0;
    const struct tiering_session *s = list_entry(m->waiters.next, struct tiering_wait, link)->session_;
    return s ? io_user_of(s->user) : 0;
}

static void move_load_go(struct move *m)
{
    struct tiering *t = m->t;
    const struct record *r = record_at(&t->records, m->object);
    struct io_buf to = {.region = m->chunk->region, .off = (uint64_t)m->sector * SECTOR_BYTES};

    if (r->flags & RECORD_HAS_DEV) {
        memset(&m->get, 0, offsetof(struct store_get, store_));
        object_to_entry(t, m->object, &m->get.entry);
        m->get.len_bytes = r->size_bytes;
        m->get.buf = to;
        m->get.urgent = !list_is_empty(&m->waiters);
        m->get.user = move_user(m);
        m->get.done = move_load_got;
        m->io = MOVE_IO_GET;
        kill_point("move.load_read");
        store_get(t->stores[r->dev_store].store, &m->get);
    } else {
        m->work = (struct io_work){.op = IO_WORK_COPY,
                                   .len_bytes = sectors_of(r->size_bytes) * SECTOR_BYTES,
                                   .src = t->zeros,
                                   .dst = to,
                                   .done = move_load_zeroed};
        t->config.backend->ops->work_submit(t->config.backend, &m->work);
    }
}

void move_load_asked(struct tiering *t, struct move *m)
{
    const struct record *r = record_at(&t->records, m->object);
    struct policy *policy = t->pools[m->pool].policies[space_of(t, r)->info.class_id];

    if (!m->is_asked)
        policy->ops->miss(policy, r->space, record_hash(&t->records, r), sectors_of(r->size_bytes));
    m->is_asked = true;
}

int move_load(struct tiering *t, uint32_t object, bool urgent, struct move **ret_move)
{
    struct move *m = move_new(t, MOVE_LOAD, object);

    if (!m)
        return -EAGAIN;
    m->is_asked = false;
    if (urgent) /* else nobody has asked for it yet */
        move_load_asked(t, m);
    hot_at(t, object)->flags |= HOT_LOADING;
    t->records.objects[object].node.state[0] = (uint32_t)(m - t->moves);
    object_pin(t, object);
    kill_point("move.load");
    move_queue(m);
    room_kick(t, m->pool);
    *ret_move = m;
    return 0;
}

/* --- Spill ------------------------------------------------------------------------------------------------------- */

/* No writer was let in meanwhile, so what was written is what the memory holds. */
static void move_spill_end(struct move *m, int status)
{
    struct tiering *t = m->t;
    uint32_t object = m->object;
    const struct record *r = record_at(&t->records, object);
    struct tpool *p = &t->pools[m->pool];

    assert(!hot_writers(hot_at(t, object)));
    hot_at(t, object)->flags &= (uint16_t)~HOT_SPILLING;
    p->spilling--;
    p->spilling_bytes -= m->put.size_bytes;
    kill_point("move.spill_end");
    if (status == 0) {
        assert(r->state == RECORD_COMMITTED); /* else the put was cancelled */
        room_written(t, object);
        p->stat.spills++;
        p->stat.spill_bytes += r->size_bytes;
        object_set_dev(t, object, m->store, &m->put.entry);
        kill_point("move.spilled");
    }
    if (status < 0)
        rank_used(t, object);                           /* advice that wants it out of memory must not try for ever */
    sync_spilled(m, status == -ECANCELED ? 0 : status); /* what is deleted needs no writing */
    move_wake(m, r->state == RECORD_COMMITTED ? 0 : -ENOENT); /* writers that waited */
    kill_point("move.spill_told");
    move_free(m);
    evacuate_again(t, object);
    object_unpin(t, object);
    p->look_ahead = true;
    room_kick(t, (uint32_t)(p - t->pools));
}

static void move_spill_put(struct store_put *put, int status)
{
    move_spill_end(container_of(put, struct move, put), status);
}

struct move *move_spill_of(struct tiering *t, uint32_t object)
{
    list_for_each (l, &pool_of(t, record_at(&t->records, object))->spills) {
        struct move *m = list_entry(l, struct move, link);

        if (m->object == object)
            return m;
    }
    assert(!"HOT_SPILLING says that there is one");
    return NULL;
}

struct move *move_that_bars_writers(struct tiering *t, uint32_t object)
{
    return hot_at(t, object)->flags & HOT_SPILLING ? move_spill_of(t, object) : migrate_of(t, object);
}

void move_put_cancel(struct tiering *t, uint32_t object)
{
    if (hot_at(t, object)->flags & HOT_SPILLING)
        move_spill_of(t, object)->put.cancel = 1;
    if (hot_at(t, object)->flags & HOT_RELOCATING)
        relocate_cancel(t, object);
}

/* Nothing came of it. Nobody is told that a move ended: nothing has changed, and to try again at once would spin. */
static void move_unused(struct move *m)
{
    bool kicked = m->t->kicked;

    move_free(m);
    m->t->kicked = kicked;
}

int move_spill(struct tiering *t, uint32_t object, bool urgent, uint8_t store, uint32_t txn, bool evacuating,
               struct move **ret_move)
{
    const struct record *r = record_at(&t->records, object);
    const struct space *space = &t->spaces[r->space];
    struct store_entry entry;

    if (store == STORE_NONE)
        return -ENOSPC;
    assert(!(hot_at(t, object)->flags & HOT_SPILLING));
    if (hot_writers(hot_at(t, object)))
        return -EBUSY; /* the bytes may change under the checksum */
    if (hot_at(t, object)->flags & (HOT_RELOCATING | HOT_MIGRATING))
        return -EBUSY; /* what is newer must be put later; and what is moving is not where it will be */
    if (!evacuating && !txn && t->stores[store].pool_waits[space->info.pool]) /* others may wait for the transaction */
        return -EAGAIN;
    struct move *m = move_new(t, MOVE_SPILL, object);
    if (!m)
        return -EAGAIN;
    int status = store_know_space(t, store, r->space);
    if (status < 0) {
        move_unused(m);
        return status;
    }
    object_to_entry(t, object, &entry);
    m->store = store;
    memset(&m->put, 0, sizeof(m->put));
    m->put.id = entry.id;
    m->put.object_bytes = entry.object_bytes;
    m->put.size_bytes = entry.size_bytes;
    m->put.n_parts = entry.n_parts;
    m->put.class_id = entry.class_id;
    m->put.durability = entry.durability;
    m->put.kind = entry.kind;
    m->put.pool = space->info.pool;
    m->put.urgent = urgent;
    m->put.txn = txn;
    m->put.evacuating = evacuating;
    m->put.buf = (struct io_buf){.region = r->mem_region, .off = (uint64_t)r->mem_sector * SECTOR_BYTES};
    m->put.done = move_spill_put;
    kill_point("move.spill");
    status = store_put(t->stores[store].store, &m->put);
    if (status < 0) {
        if (status == -EAGAIN)
            t->stores[store].room_wanted = t->stores[store].pool_waits[space->info.pool] = true;
        move_unused(m);
        return status;
    }
    kill_point("move.spill_placed");
    place_charge(t, space->info.pool, store, r->size_bytes);
    m->io = MOVE_IO_PUT;
    move_set_phase(m, MOVE_BUSY);
    hot_at(t, object)->flags |= HOT_SPILLING;
    list_push_tail(&t->pools[m->pool].spills, &m->link);
    t->pools[m->pool].spilling++;
    t->pools[m->pool].spilling_bytes += m->put.size_bytes;
    object_pin(t, object);
    kill_point("move.spill_begun");
    if (ret_move)
        *ret_move = m;
    return 0;
}

/* --- Commit: from private to shared memory ------------------------------------------------------------------------ */

static void move_commit_end(struct move *m, int status)
{
    struct tiering *t = m->t;
    uint32_t object = m->object;
    const struct record *r = record_at(&t->records, object);

    if (status == 0 && r->state != RECORD_RESERVED)
        status = -ESTALE; /* the rest of its object was dropped meanwhile */
    if (status == 0) {
        kill_point("move.commit");
        object_commit_at(t, object, m->chunk->region, m->sector);
    } else if (m->chunk) {
        room_give(t, m->chunk->region, m->sector);
    }
    if (status < 0)
        object_kill(t, object);
    lease_end(t, &t->leases[m->lease]);
    move_wake(m, status);
    move_free(m);
    object_unpin(t, object);
}

static void move_commit_copied(struct io_work *work)
{
    move_commit_end(container_of(work, struct move, work), work->result);
}

static void move_commit_go(struct move *m)
{
    struct tiering *t = m->t;
    const struct record *r = record_at(&t->records, m->object);

    m->work = (struct io_work){.op = IO_WORK_COPY,
                               .len_bytes = sectors_of(r->size_bytes) * SECTOR_BYTES,
                               .src = {.region = r->mem_region, .off = (uint64_t)r->mem_sector * SECTOR_BYTES},
                               .dst = {.region = m->chunk->region, .off = (uint64_t)m->sector * SECTOR_BYTES},
                               .done = move_commit_copied};
    t->stat.copied_bytes += r->size_bytes;
    kill_point("move.commit_copy");
    t->config.backend->ops->work_submit(t->config.backend, &m->work);
}

int move_commit(struct tiering *t, struct tiering_session *s, struct lease *l, struct move **ret_move)
{
    uint32_t object = l->object;
    struct move *m = move_new(t, MOVE_COMMIT, object);

    if (!m)
        return -EAGAIN;
    m->session = s;
    m->lease = (uint32_t)(l - t->leases);
    l->in_move = true; /* until the piece has its bytes in shared memory, they are where the lease is */
    object_pin(t, object);
    move_queue(m);
    room_kick(t, m->pool);
    *ret_move = m;
    return 0;
}

/* --- Room was found, or not --------------------------------------------------------------------------------------- */

static void move_reserve_end(struct move *m, int status)
{
    struct tiering *t = m->t;
    uint32_t object = m->object;

    if (status == 0)
        object_set_mem(t, object, m->chunk->region, m->sector);
    else if (m->chunk)
        room_give(t, m->chunk->region, m->sector);
    if (status < 0)
        object_kill(t, object);
    kill_point("move.reserved");
    move_wake(m, status);
    move_free(m);
    object_unpin(t, object);
}

void move_go(struct move *m, struct arena_chunk *chunk, uint32_t sector)
{
    list_unlink(&m->link);
    m->chunk = chunk;
    m->sector = sector;
    move_set_phase(m, MOVE_BUSY);
    kill_point("move.room_found");
    switch ((enum move_kind)m->kind) {
    case MOVE_RESERVE:
        move_reserve_end(m, 0);
        break;
    case MOVE_LOAD:
        move_load_go(m);
        break;
    case MOVE_COMMIT:
        move_commit_go(m);
        break;
    case MOVE_PUT:
        range_put_go(m);
        break;
    case MOVE_FILL:
        fill_go(m);
        break;
    case MOVE_PUBLISH:
        publish_go(m);
        break;
    case MOVE_GET:
    case MOVE_SPILL:
    case MOVE_MIGRATE:
    case MOVE_RELOCATE:
        assert(!"does not wait for room");
        break;
    }
}

void move_fail(struct move *m, int status)
{
    list_unlink(&m->link);
    switch ((enum move_kind)m->kind) {
    case MOVE_RESERVE:
        move_reserve_end(m, status);
        break;
    case MOVE_LOAD:
        move_load_end(m, status);
        break;
    case MOVE_COMMIT:
        move_commit_end(m, status);
        break;
    case MOVE_PUT:
        range_put_end(m, status);
        break;
    case MOVE_FILL:
        fill_end(m, status);
        break;
    case MOVE_PUBLISH:
        publish_end(m, status);
        break;
    case MOVE_GET:
    case MOVE_SPILL:
    case MOVE_MIGRATE:
    case MOVE_RELOCATE:
        assert(!"does not wait for room");
        break;
    }
}

/* It has the lease again that it would have ended. */
static void move_undo(struct move *m)
{
    struct tiering *t = m->t;
    uint32_t object = m->object;

    t->leases[m->lease].in_move = false;
    if (m->kind == MOVE_PUBLISH)
        extent_release(t, m->held_region, m->held_sector);
    kill_point("move.undone");
    move_free(m);
    object_unpin(t, object);
}

/* A client that leaves for the next process asks there again for the COMMIT or the dirty RELEASE; no lease would tell it that
 * all is done. */
void move_cancel(struct move *m)
{
    if (m->t->leaving && (m->kind == MOVE_COMMIT || m->kind == MOVE_PUBLISH))
        move_undo(m);
    else
        move_fail(m, -ECANCELED);
}
