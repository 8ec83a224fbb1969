/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocks to and from a tensor that the client uses as an arena: the daemon moves the bytes, the client's memory is not
 * touched, and no lease is taken on the block. Engine thread only.
 *
 * A block that is only on a device is read straight into the tensor's extent. While a transfer writes to a tensor's
 * piece it counts as one of its writers, so the piece is not written to a device meanwhile; and it is pinned, so the
 * lease may end before the transfer does.
 */
#include <errno.h>
#include <string.h>

#include "tiering/core.h"

/* The lease, and where [off, off + len) of it lies in memory. */
static int range_of_lease(struct tiering *t, const struct tiering_session *s, uint64_t lease, uint64_t off_bytes,
                          uint32_t len_bytes, bool for_writing, const struct lease **ret_lease, struct io_buf *ret_buf)
{
    const struct lease *l = lease_get(t, s, lease);

    if (!l || l->mode == LEASE_RESERVE)
        return -EBADF;
    const struct record *r = record_at(&t->records, l->object);
    if (!(r->flags & RECORD_TENSOR))
        return -EINVAL;
    if (for_writing && l->mode != LEASE_WRITE)
        return -EROFS;
    if (!len_bytes || len_bytes > l->len_bytes || off_bytes > l->len_bytes - len_bytes)
        return -ERANGE;
    struct io_buf at = lease_buf(l);
    at.off += off_bytes;
    if (at.off % SECTOR_BYTES || len_bytes % SECTOR_BYTES)
        return -EINVAL; /* the device writes whole sectors there */
    *ret_lease = l;
    *ret_buf = at;
    return 0;
}

/* The lease may end before the transfer does: piece and extent stay. */
static void range_hold(struct tiering *t, struct move *m, const struct lease *l)
{
    m->other = l->object;
    object_pin(t, m->other);
    m->held = l->holds;
    m->held_region = l->region;
    m->held_sector = l->sector;
    if (m->held)
        extent_hold(t, l->region, l->sector, l->object);
}

static void range_let_go(struct tiering *t, const struct move *m)
{
    if (m->held)
        extent_release(t, m->held_region, m->held_sector);
}

static void range_wait(struct tiering *t, struct move *m, struct tiering_wait *wait)
{
    list_init(&wait->link);
    wait->grant = (struct tiering_grant){0};
    wait->session_ = NULL;
    wait->mode_ = LEASE_FREE;
    move_attach(t, m, wait);
}

/* --- Block to tensor -------------------------------------------------------------------------------------------------- */

static void range_get_end(struct move *m, int status)
{
    struct tiering *t = m->t;
    uint32_t block = m->object, tensor = m->other;

    hot_at(t, tensor)->flags -= HOT_WRITER;
    /* The lease may have ended before: then nobody else says that the bytes changed, or that only some of them did. In a
     * shared pool the bytes are the writer's own, until they are published. */
    if (!m->held && record_at(&t->records, tensor)->state == RECORD_COMMITTED) {
        piece_dirtied(t, tensor, false);
        if (status < 0 && !hot_writers(hot_at(t, tensor)))
            object_set_flags(t, tensor, RECORD_TORN);
    }
    range_let_go(t, m);
    move_wake(m, status);
    const struct record *r = record_at(&t->records, block);
    if (status == -EBADMSG && r->state == RECORD_COMMITTED && durability_of(t, r) == STORE_CACHE)
        object_kill_all(t, block);
    move_free(m);
    object_unpin(t, tensor);
    object_unpin(t, block);
}

static void range_get_read(struct store_get *get, int status)
{
    range_get_end(container_of(get, struct move, get), status);
}

static void range_get_copied(struct io_work *work)
{
    range_get_end(container_of(work, struct move, work), work->result);
}

static void range_get_go(struct move *m, struct io_buf to, uint32_t user)
{
    struct tiering *t = m->t;
    const struct record *r = record_at(&t->records, m->object);

    if (r->flags & RECORD_HAS_MEM) {
        m->work = (struct io_work){.op = IO_WORK_COPY,
                                   .len_bytes = r->size_bytes,
                                   .src = {.region = r->mem_region, .off = (uint64_t)r->mem_sector * SECTOR_BYTES},
                                   .dst = to,
                                   .done = range_get_copied};
        t->stat.copied_bytes += r->size_bytes;
        t->config.backend->ops->work_submit(t->config.backend, &m->work);
        return;
    }
    memset(&m->get, 0, offsetof(struct store_get, store_));
    object_to_entry(t, m->object, &m->get.entry);
    m->get.len_bytes = r->size_bytes;
    m->get.buf = to;
    m->get.urgent = 1;
    m->get.user = io_user_of(user);
    m->get.done = range_get_read;
    store_get(t->stores[r->dev_store].store, &m->get);
}

int tiering_get_to(struct tiering *t, struct tiering_session *s, const struct tiering_id *id, uint64_t lease,
                   uint64_t off_bytes, uint32_t len_bytes, struct tiering_wait *wait, struct tiering_grant *ret_grant)
{
    int status = 0;
    uint32_t block = object_find(t, id, &status);
    const struct lease *l;
    struct io_buf to;

    *ret_grant = (struct tiering_grant){0};
    if (block == RECORD_NONE)
        return status;
    status = range_of_lease(t, s, lease, off_bytes, len_bytes, true, &l, &to);
    if (status < 0)
        return status;
    const struct record *r = record_at(&t->records, block);
    uint32_t tensor = l->object;
    if (r->size_bytes != len_bytes)
        return -EMSGSIZE;
    if (!(r->flags & (RECORD_HAS_MEM | RECORD_HAS_DEV)) || block == tensor)
        return -EINVAL;
    if (r->flags & RECORD_TORN)
        return -EBADMSG;
    if (t->spaces[r->space].info.pool != t->spaces[record_at(&t->records, tensor)->space].info.pool)
        return -EXDEV;
    if (hot_writers(hot_at(t, tensor)) == HOT_WRITERS_MAX || !wait)
        return -EAGAIN;
    struct move *m = move_new(t, MOVE_GET, block);
    if (!m) {
        ret_grant->limit = TIERING_LIMIT_REQUESTS;
        return -EAGAIN;
    }
    object_used(t, block);
    uses_spend(t, block);
    object_pin(t, block);
    range_hold(t, m, l);
    hot_at(t, tensor)->flags += HOT_WRITER;
    move_set_phase(m, MOVE_BUSY);
    range_wait(t, m, wait);
    range_get_go(m, to, s->user);
    return TIERING_WAIT;
}

/* --- Tensor to block -------------------------------------------------------------------------------------------------- */

void range_put_end(struct move *m, int status)
{
    struct tiering *t = m->t;
    uint32_t block = m->object, tensor = m->other;

    if (status == 0) {
        object_set_mem(t, block, m->chunk->region, m->sector);
        object_commit(t, block);
    } else if (m->chunk) {
        room_give(t, m->chunk->region, m->sector);
    }
    if (status < 0)
        object_kill(t, block);
    range_let_go(t, m);
    move_wake(m, status);
    move_free(m);
    object_unpin(t, tensor);
    object_unpin(t, block);
}

static void range_put_copied(struct io_work *work)
{
    range_put_end(container_of(work, struct move, work), work->result);
}

void range_put_go(struct move *m)
{
    struct tiering *t = m->t;
    const struct record *r = record_at(&t->records, m->object);

    m->work = (struct io_work){.op = IO_WORK_COPY,
                               .len_bytes = r->size_bytes,
                               .src = m->from,
                               .dst = {.region = m->chunk->region, .off = (uint64_t)m->sector * SECTOR_BYTES},
                               .done = range_put_copied};
    t->stat.copied_bytes += r->size_bytes;
    t->config.backend->ops->work_submit(t->config.backend, &m->work);
}

int tiering_put_from(struct tiering *t, struct tiering_session *s, const struct tiering_id *id, uint64_t lease,
                     uint64_t off_bytes, uint32_t len_bytes, struct tiering_wait *wait, struct tiering_grant *ret_grant)
{
    uint64_t hash = record_hash_id(&t->records, id);
    uint32_t block;
    const struct lease *l;
    struct io_buf from;
    int status = range_of_lease(t, s, lease, off_bytes, len_bytes, false, &l, &from);

    *ret_grant = (struct tiering_grant){0};
    if (status < 0)
        return status;
    block = record_find(&t->records, id, hash);
    if (block != RECORD_NONE)
        return record_at(&t->records, block)->state == RECORD_COMMITTED ? -EEXIST : -EINPROGRESS;
    if (t->spaces[id->space].info.pool != t->spaces[record_at(&t->records, l->object)->space].info.pool)
        return -EXDEV;
    if (id->n_parts != 1 || id->part || id->piece)
        return -EINVAL;
    if (!wait)
        return -EAGAIN;
    status = object_new(t, id, hash, len_bytes, len_bytes, s->owner, &block, &ret_grant->limit);
    if (status < 0)
        return status;
    struct move *m = move_new(t, MOVE_PUT, block);
    if (!m) {
        object_kill(t, block);
        ret_grant->limit = TIERING_LIMIT_REQUESTS;
        return -EAGAIN;
    }
    object_pin(t, block);
    range_hold(t, m, l);
    m->from = from;
    range_wait(t, m, wait);
    wait->grant.limit = TIERING_LIMIT_POOL_DRAM;
    move_queue(m);
    room_kick(t, m->pool);
    return TIERING_WAIT;
}
