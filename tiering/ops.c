/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The operations that sessions ask for, one piece at a time: new blocks, tensors, what is known, what is deleted. (For
 * leases see access.c, for advice advice.c.) Engine thread only.
 *
 * Each function decides with what it sees now: refuse, do it at once, or attach the caller's wait to the move that will
 * make it possible. Nothing here transfers bytes.
 */
#include <errno.h>
#include <string.h>

#include "include/base/kill_point.h"
#include "tiering/core.h"

int tiering_lookup(const struct tiering *t, const struct tiering_id *id, struct tiering_found *ret_found)
{
    int status = 0;
    uint32_t object = object_find(t, id, &status);

    if (object == RECORD_NONE)
        return status;
    const struct record *r = record_at(&t->records, object);
    *ret_found = (struct tiering_found){.object_bytes = r->object_bytes,
                                        .size_bytes = r->size_bytes,
                                        .tier = object_tier(t, r),
                                        .kind = r->flags & RECORD_TENSOR ? TIERING_TENSOR : TIERING_BLOCK,
                                        .pending = t->records.objects[object].hot.flags & HOT_LOADING};
    return 0;
}

/* --- Reserve, commit, abort --------------------------------------------------------------------------------------- */

/* -EINPROGRESS for a piece that exists but is not visible yet. */
static int reserve_check(struct tiering *t, const struct tiering_id *id, uint64_t hash, uint64_t object_bytes)
{
    if (!id->n_parts || id->part >= id->n_parts || id->n_parts > PARTS_MAX)
        return -EINVAL;

    uint32_t object = record_find(&t->records, id, hash);

    if (object == RECORD_NONE)
        return 0;
    const struct record *r = record_at(&t->records, object);
    if (r->state == RECORD_COMMITTED && !(r->flags & RECORD_INCOMPLETE))
        return -EEXIST;
    return r->n_parts == id->n_parts && r->object_bytes == object_bytes ? -EINPROGRESS : -EINVAL;
}

static int reserve_room(struct tiering *t, struct tiering_session *s, uint32_t object, struct arena_chunk **ret_chunk,
                        uint32_t *ret_sector, uint32_t *ret_limit)
{
    const struct record *r = record_at(&t->records, object);
    uint32_t pool = t->spaces[r->space].info.pool, sectors = sectors_of(r->size_bytes);
    struct tpool *p = &t->pools[pool];

    *ret_limit = TIERING_LIMIT_POOL_DRAM;
    if (!p->config.trusted)
        return room_take_private(t, s, pool, object, sectors, ret_chunk, ret_sector, ret_limit);
    int status = -EAGAIN; /* others wait already */
    if (list_is_empty(&p->room)) {
        p->stuck = TIERING_LIMIT_NONE;
        status = room_take(t, pool, object, sectors, ret_chunk, ret_sector);
    }
    *ret_limit = tiering_room_limit(t, pool);
    return status;
}

int tiering_reserve(struct tiering *t, struct tiering_session *s, const struct tiering_id *id, uint64_t object_bytes,
                    uint32_t size_bytes, struct tiering_wait *wait, struct tiering_grant *ret_grant)
{
    uint64_t hash = record_hash_id(&t->records, id);
    const struct tiering_space_info *space = &t->spaces[id->space].info;
    struct tpool *p = &t->pools[space->pool];
    struct policy *policy = p->policies[space->class_id];
    struct arena_chunk *chunk;
    uint32_t object, sector, limit = TIERING_LIMIT_NONE;
    int r = reserve_check(t, id, hash, object_bytes);

    *ret_grant = (struct tiering_grant){0};
    if (r < 0)
        return r;
    if (!size_bytes || id->piece >= object_pieces(t, object_bytes) ||
        size_bytes != MIN(object_bytes - (uint64_t)id->piece * t->piece_bytes, (uint64_t)t->piece_bytes)) {
        ret_grant->limit = TIERING_LIMIT_OBJECT_BYTES;
        return -EINVAL;
    }
    if (s->n_leases >= s->max_leases) {
        ret_grant->limit = TIERING_LIMIT_SESSION_LEASES;
        return -ENOSPC;
    }
    r = tiering_admit(t, s, space->pool, size_bytes, &ret_grant->limit);
    if (r < 0)
        return r;
    r = object_new(t, id, hash, object_bytes, size_bytes, s->owner, &object, &ret_grant->limit);
    if (r < 0)
        goto unadmit;
    policy->ops->miss(policy, id->space, hash, sectors_of(size_bytes));
    p->stat.misses++;
    object_pin(t, object);
    r = reserve_room(t, s, object, &chunk, &sector, &limit);
    if (record_at(&t->records, object)->state != RECORD_RESERVED) {
        /* Its room was another part's, so that its object is gone, and itself with it. */
        if (r == 0)
            room_give(t, chunk->region, sector);
        ret_grant->limit = limit;
        object_unpin(t, object);
        r = -ENOSPC;
        goto unadmit;
    }
    object_unpin(t, object);
    if (r == 0) {
        kill_point("reserve.room");
        object_set_mem(t, object, chunk->region, sector);
        r = lease_grant(t, s, object, LEASE_RESERVE, 0, size_bytes, ret_grant);
        if (r == 0)
            return 0;
        goto kill;
    }
    struct move *m = wait ? move_new(t, MOVE_RESERVE, object) : NULL;
    if (!m) {
        ret_grant->limit = wait ? TIERING_LIMIT_REQUESTS : limit;
        r = wait ? -EAGAIN : r;
        goto kill;
    }
    m->session = s;
    object_pin(t, object);
    wait_prepare(wait, s, LEASE_RESERVE, 0, size_bytes);
    wait->grant.limit = limit;
    move_attach(t, m, wait);
    move_queue(m);
    return TIERING_WAIT;

kill:
    object_kill(t, object);
unadmit:
    tiering_unadmit(t, s, space->pool, size_bytes);
    return r;
}

int tiering_commit(struct tiering *t, struct tiering_session *s, uint64_t lease, struct tiering_wait *wait,
                   struct tiering_grant *ret_grant)
{
    struct lease *l = lease_get(t, s, lease);

    *ret_grant = (struct tiering_grant){0};
    if (!l || l->mode != LEASE_RESERVE)
        return -EBADF;
    if (l->in_dma)
        return -EBUSY;
    uint32_t object = l->object;
    const struct record *r = record_at(&t->records, object);
    if (r->state != RECORD_RESERVED) {
        lease_end(t, l); /* it was deleted, or its parts ran out of time */
        return -ESTALE;
    }
    if (pool_of(t, r)->config.trusted) {
        object_commit(t, object);
        kill_point("commit_op.trusted");
        lease_end(t, l);
        return 0;
    }
    struct move *m;
    if (!wait)
        return -EAGAIN;
    int status = move_commit(t, s, l, &m);
    if (status < 0) {
        ret_grant->limit = TIERING_LIMIT_REQUESTS;
        return status;
    }
    wait_prepare(wait, s, LEASE_FREE, 0, 0);
    move_attach(t, m, wait);
    return TIERING_WAIT;
}

int tiering_abort(struct tiering *t, struct tiering_session *s, uint64_t lease)
{
    struct lease *l = lease_get(t, s, lease);

    if (!l || l->mode != LEASE_RESERVE)
        return -EBADF;
    if (l->in_dma)
        return -EBUSY;
    object_kill(t, l->object);
    kill_point("abort_op.killed");
    lease_end(t, l);
    return 0;
}

/* --- Knowing and steering ------------------------------------------------------------------------------------------ */

int tiering_touch(struct tiering *t, const struct tiering_id *id)
{
    int status = 0;
    uint32_t object = object_find(t, id, &status);

    if (object == RECORD_NONE)
        return status;
    object_used(t, object);
    return 0;
}

int tiering_prefetch(struct tiering *t, const struct tiering_id *id, struct tiering_wait *wait,
                     struct tiering_grant *ret_grant)
{
    int status = 0;
    uint32_t object = object_find(t, id, &status);
    struct move *m;

    *ret_grant = (struct tiering_grant){0};
    if (object == RECORD_NONE)
        return status;
    const struct record *r = record_at(&t->records, object);
    rank_used(t, object); /* it will be */
    if (r->flags & RECORD_HAS_MEM)
        return 0;
    status = acquire_move(t, object, false, &m);
    if (status < 0) {
        ret_grant->limit = TIERING_LIMIT_REQUESTS;
        return status;
    }
    pool_of(t, r)->stat.prefetches++;
    if (!wait)
        return 0;
    wait_prepare(wait, NULL, LEASE_FREE, 0, 0);
    move_attach(t, m, wait);
    return TIERING_WAIT;
}

uint64_t tiering_walked(const struct tiering *t)
{
    return t->walked;
}

int tiering_delete(struct tiering *t, const struct tiering_id *id)
{
    int status = 0;
    uint32_t object = object_find(t, id, &status);

    if (object == RECORD_NONE)
        return status;
    kill_point("delete_op.begin");
    object_kill_all(t, object);
    kill_point("delete_op.killed");
    return 0;
}

int tiering_tensor(struct tiering *t, struct tiering_session *s, const struct tiering_id *id, uint64_t object_bytes)
{
    struct tiering_id at = *id;
    uint32_t object, limit, n_pieces = object_pieces(t, object_bytes);
    int status = 0;

    if (!object_bytes || id->n_parts != 1)
        return -EINVAL;
    at.piece = 0;
    at.hash = 0; /* each piece has its own */
    object = object_find(t, &at, &status);
    if (object != RECORD_NONE) {
        const struct record *r = record_at(&t->records, object);

        return (r->flags & RECORD_TENSOR) && r->object_bytes == object_bytes ? 0 : -EINVAL;
    }
    if (status != -ENOENT)
        return status;
    if (n_pieces > t->config.max_objects)
        return -ENOSPC;
    t->walked += n_pieces - 1;
    for (at.piece = 1; at.piece < n_pieces; at.piece++) { /* of a block that is being built any may be there */
        if (record_find(&t->records, &at, record_hash_id(&t->records, &at)) != RECORD_NONE)
            return -EINPROGRESS;
    }
    for (at.piece = 0; at.piece < n_pieces; at.piece++) {
        uint64_t left = object_bytes - (uint64_t)at.piece * t->piece_bytes;

        status = object_new(t, &at, record_hash_id(&t->records, &at), object_bytes,
                            (uint32_t)MIN(left, (uint64_t)t->piece_bytes), s->owner, &object, &limit);
        if (status < 0)
            break;
        object_commit_unwritten(t, object);
        kill_point("tensor_op.piece");
    }
    if (status < 0 && at.piece > 0) {
        at.piece = 0;
        object_kill_all(t, record_find(&t->records, &at, record_hash_id(&t->records, &at)));
    }
    return status;
}

/* --- Waits ---------------------------------------------------------------------------------------------------------- */

bool tiering_wait_cancel(struct tiering *t, struct tiering_wait *wait)
{
    if (wait->move_ == MOVE_NONE)
        return false;
    struct move *m = &t->moves[wait->move_];
    const struct record *r = record_at(&t->records, wait->object_);

    list_unlink(&wait->link); /* what is under way (a COMMIT's copy, say) ends by itself */
    wait->move_ = MOVE_NONE;
    if (wait->mode_ != LEASE_FREE)
        tiering_unadmit(t, wait->session_, t->spaces[r->space].info.pool, r->size_bytes);
    /* Nobody waits any more, and nothing is under way: the move itself ends. */
    if (list_is_empty(&m->waiters) && m->phase == MOVE_ROOM)
        move_cancel(m);
    return true;
}
