/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The operations that sessions ask for, one piece at a time. Engine thread only.
 *
 * Each function decides with what it sees now: refuse, do it at once, or attach the caller's wait to the move that will
 * make it possible. Nothing here transfers bytes.
 */
#include <errno.h>
#include <string.h>

#include "tiering/core.h"

static void count_use(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    struct space *space = space_of(t, r);

    if (!(hot_at(t, object)->flags & HOT_IN_POLICY))
        return;
    struct policy *p = policy_in(&t->pools[space->info.pool], tier_of_mem(t, r), space->info.class_id);
    p->ops->hit(p, object);
    migrate_used(t, object);
}

static uint8_t tier_of(const struct tiering *t, const struct record *r)
{
    if (!(r->flags & RECORD_HAS_MEM))
        return r->flags & RECORD_HAS_DEV ? TIERING_NVME : TIERING_NONE;
    return tier_of_mem(t, r) == MEM_CXL ? TIERING_CXL : TIERING_DRAM;
}

int tiering_lookup(const struct tiering *t, const struct tiering_id *id, struct tiering_found *ret_found)
{
    int status = 0;
    uint32_t object = object_find(t, id, &status);

    if (object == RECORD_NONE)
        return status;
    const struct record *r = record_at(&t->records, object);
    *ret_found = (struct tiering_found){.object_bytes = r->object_bytes,
                                        .size_bytes = r->size_bytes,
                                        .tier = tier_of(t, r),
                                        .kind = r->flags & RECORD_TENSOR ? TIERING_TENSOR : TIERING_BLOCK,
                                        .pending = t->records.hot[object].flags & HOT_LOADING};
    return 0;
}

static void wait_prepare(struct tiering_wait *w, struct tiering_session *s, enum lease_mode mode, uint32_t off_bytes,
                         uint32_t len_bytes)
{
    list_init(&w->link);
    w->grant = (struct tiering_grant){0};
    w->session_ = s;
    w->move_ = MOVE_NONE;
    w->off_ = off_bytes;
    w->len_ = len_bytes;
    w->mode_ = (uint8_t)mode;
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
    if (!list_is_empty(&p->room))
        return -EAGAIN; /* others wait already */
    return room_take(t, pool, object, sectors, ret_chunk, ret_sector);
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
    policy->ops->miss(policy, hash, sectors_of(size_bytes));
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
    uint32_t object = l->object;
    const struct record *r = record_at(&t->records, object);
    if (r->state != RECORD_RESERVED) {
        lease_end(t, l); /* it was deleted, or its parts ran out of time */
        return -ESTALE;
    }
    if (pool_of(t, r)->config.trusted) {
        object_commit(t, object);
        lease_end(t, l);
        return 0;
    }
    struct move *m;
    if (!wait)
        return -EAGAIN;
    int status = move_commit(t, s, object, &m);
    if (status < 0) {
        ret_grant->limit = TIERING_LIMIT_REQUESTS;
        return status;
    }
    wait_prepare(wait, s, LEASE_FREE, 0, 0);
    move_attach(t, m, wait);
    lease_end(t, l); /* the move pins it from now on */
    return TIERING_WAIT;
}

int tiering_abort(struct tiering *t, struct tiering_session *s, uint64_t lease)
{
    struct lease *l = lease_get(t, s, lease);

    if (!l || l->mode != LEASE_RESERVE)
        return -EBADF;
    object_kill(t, l->object);
    lease_end(t, l);
    return 0;
}

/* --- Acquire, release --------------------------------------------------------------------------------------------- */

static int acquire_check(const struct tiering *t, uint32_t object, uint32_t *off_bytes, uint32_t *len_bytes,
                         unsigned flags)
{
    const struct record *r = record_at(&t->records, object);

    if (*len_bytes == 0 && *off_bytes == 0)
        *len_bytes = r->size_bytes;
    if (*len_bytes == 0 || *len_bytes > r->size_bytes || *off_bytes > r->size_bytes - *len_bytes)
        return -ERANGE;
    if (flags & TIERING_WRITE) {
        if (!(r->flags & RECORD_TENSOR))
            return -EROFS;
        if (!t->pools[t->spaces[r->space].info.pool].config.trusted)
            return -EPERM; /* others read the same memory */
        if ((r->flags & RECORD_TORN) && *len_bytes == r->size_bytes)
            return 0; /* it will be written as a whole */
    }
    return r->flags & RECORD_TORN ? -EBADMSG : 0;
}

static void count_found(struct tiering *t, uint32_t object, uint8_t tier)
{
    struct tiering_pool_stat *stat = &pool_of(t, record_at(&t->records, object))->stat;

    if (tier == TIERING_DRAM)
        stat->hits_dram++;
    else if (tier == TIERING_CXL)
        stat->hits_cxl++;
    else
        stat->hits_nvme++;
}

/* The move that brings it to memory: the one under way, or a new one. */
static int acquire_move(struct tiering *t, uint32_t object, struct move **ret_move)
{
    if (hot_at(t, object)->flags & HOT_LOADING) {
        *ret_move = move_of(t, object);
        return 0;
    }
    return move_load(t, object, true, ret_move);
}

int tiering_acquire(struct tiering *t, struct tiering_session *s, const struct tiering_id *id, uint32_t off_bytes,
                    uint32_t len_bytes, unsigned flags, struct tiering_wait *wait, struct tiering_grant *ret_grant)
{
    int status = 0;
    uint32_t object = object_find(t, id, &status);
    enum lease_mode mode = flags & TIERING_WRITE ? LEASE_WRITE : LEASE_READ;
    struct move *m;

    *ret_grant = (struct tiering_grant){0};
    if (object == RECORD_NONE)
        return status;
    status = acquire_check(t, object, &off_bytes, &len_bytes, flags);
    if (status < 0)
        return status;
    const struct record *r = record_at(&t->records, object);
    uint32_t pool = t->spaces[r->space].info.pool;
    bool resident = r->flags & RECORD_HAS_MEM;
    if (!resident && ((flags & TIERING_NO_FETCH) || !wait))
        return -EAGAIN;
    if (s->n_leases >= s->max_leases) {
        ret_grant->limit = TIERING_LIMIT_SESSION_LEASES;
        return -ENOSPC;
    }
    status = tiering_admit(t, s, pool, r->size_bytes, &ret_grant->limit);
    if (status < 0)
        return status;
    if (resident && lease_tier_is_full(pool_of(t, r), tier_of_mem(t, r), r->size_bytes)) {
        ret_grant->limit = TIERING_LIMIT_POOL_LEASES;
        status = -ENOSPC;
        goto unadmit;
    }
    if (resident && mode == LEASE_WRITE && (hot_at(t, object)->flags & (HOT_SPILLING | HOT_MIGRATING))) {
        /* What is written to a device, or moved, must not change meanwhile. */
        if (!wait) {
            status = -EAGAIN;
            goto unadmit;
        }
        wait_prepare(wait, s, mode, off_bytes, len_bytes);
        move_attach(t, hot_at(t, object)->flags & HOT_SPILLING ? move_spill_of(t, object) : migrate_of(t, object),
                    wait);
        count_use(t, object);
        count_found(t, object, tier_of(t, r));
        return TIERING_WAIT;
    }
    if (resident) {
        status = lease_grant(t, s, object, mode, off_bytes, len_bytes, ret_grant);
        if (status < 0)
            goto unadmit;
        count_use(t, object);
        count_found(t, object, ret_grant->tier);
        return 0;
    }
    status = acquire_move(t, object, &m);
    if (status < 0) {
        ret_grant->limit = TIERING_LIMIT_REQUESTS;
        goto unadmit;
    }
    wait_prepare(wait, s, mode, off_bytes, len_bytes);
    wait->grant.fetched = true;
    wait->grant.tier = tier_of(t, r);
    wait->grant.limit = TIERING_LIMIT_POOL_DRAM;
    move_attach(t, m, wait);
    count_found(t, object, TIERING_NVME);
    return TIERING_WAIT;

unadmit:
    tiering_unadmit(t, s, pool, r->size_bytes);
    return status;
}

void piece_dirtied(struct tiering *t, uint32_t object, bool whole)
{
    const struct record *r = record_at(&t->records, object);

    if (hot_at(t, object)->flags & HOT_SHADOWED)
        shadow_of(t, object)->changed = true; /* its last durable copy stays until the next SYNC */
    else
        object_drop_dev(t, object, true);
    object_clear_flags(t, object, (uint8_t)(RECORD_ZERO | (whole ? RECORD_TORN : 0)));
    pool_of(t, r)->look_ahead = true;
}

/* What a writer left behind is not to be kept: back to the copy on the device, or torn. */
static void piece_reverted(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);

    if (r->state != RECORD_COMMITTED)
        return;
    /* This lease is still one pin: with more, somebody reads or writes the same memory. */
    bool alone = hot_at(t, object)->pins == 1;
    if (alone && ((r->flags & (RECORD_HAS_DEV | RECORD_ZERO)) || shadow_restore(t, object))) {
        policy_leave(t, object, true);
        object_drop_mem(t, object);
    } else {
        object_drop_dev(t, object, true);
        object_set_flags(t, object, RECORD_TORN);
    }
}

int tiering_release(struct tiering *t, struct tiering_session *s, uint64_t lease, unsigned flags)
{
    struct lease *l = lease_get(t, s, lease);

    if (!l || l->mode == LEASE_RESERVE)
        return -EBADF;
    if (flags && l->mode != LEASE_WRITE)
        return -EROFS;
    const struct record *r = record_at(&t->records, l->object);
    if (flags & TIERING_DISCARD)
        piece_reverted(t, l->object);
    else if ((flags & TIERING_DIRTY) && r->state == RECORD_COMMITTED)
        piece_dirtied(t, l->object, l->len_bytes == r->size_bytes);
    else if (l->mode == LEASE_WRITE && hot_writers(hot_at(t, l->object)) == 1)
        (void)shadow_restore(t, l->object); /* nobody has changed it */
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
    count_use(t, object);
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
    if (r->flags & RECORD_HAS_MEM)
        return 0;
    status = acquire_move(t, object, &m);
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

static void timed_pin_end(struct tiering *t, uint32_t i)
{
    uint32_t object = t->pins[i].object;

    t->pins[i] = t->pins[--t->n_pins];
    hot_at(t, object)->flags &= (uint16_t)~HOT_TIMED_PIN;
    object_unpin(t, object);
}

void timed_pin_drop(struct tiering *t, uint32_t object)
{
    for (uint32_t i = 0; i < t->n_pins; i++) {
        if (t->pins[i].object == object) {
            timed_pin_end(t, i);
            return;
        }
    }
}

void timed_pins_expire(struct tiering *t)
{
    for (uint32_t i = 0; i < t->n_pins;) {
        if (t->pins[i].until_ns > t->now_ns)
            i++;
        else
            timed_pin_end(t, i);
    }
}

static int timed_pin(struct tiering *t, uint32_t object, uint64_t until_ns)
{
    struct record_hot *hot = hot_at(t, object);

    if (hot->flags & HOT_TIMED_PIN) {
        for (uint32_t i = 0; i < t->n_pins; i++) {
            if (t->pins[i].object == object)
                t->pins[i].until_ns = until_ns;
        }
        return 0;
    }
    if (until_ns <= t->now_ns)
        return 0;
    if (t->n_pins == TIMED_PINS_MAX)
        return -ENOSPC;
    t->pins[t->n_pins++] = (struct timed_pin){.object = object, .until_ns = until_ns};
    hot->flags |= HOT_TIMED_PIN;
    /* It keeps the record's number from being reused while the pin names it. */
    object_pin(t, object);
    return 0;
}

int tiering_pin(struct tiering *t, const struct tiering_id *id, uint64_t until_ns)
{
    int status = 0;
    uint32_t object = object_find(t, id, &status);

    if (object == RECORD_NONE)
        return status;
    return timed_pin(t, object, until_ns);
}

int tiering_advise(struct tiering *t, const struct tiering_id *id, enum tiering_advice advice, uint64_t value,
                   uint64_t now_ns)
{
    int status = 0;
    uint32_t object = object_find(t, id, &status);

    if (object == RECORD_NONE)
        return status;
    const struct record *r = record_at(&t->records, object);
    switch (advice) {
    case TIERING_USES_LEFT:
        /* The policies do not count uses; only the last one matters. */
        if (value == 0 && durability_of(t, r) == STORE_CACHE)
            object_kill_all(t, object);
        return 0;
    case TIERING_NOT_AGAIN:
        if ((r->flags & RECORD_HAS_MEM) && !object_is_pinned(t, object))
            (void)room_evict(t, object); /* a hint: what cannot go now stays */
        return 0;
    case TIERING_KEEP_UNTIL:
        return timed_pin(t, object, now_ns + value);
    case TIERING_SCORE:
        return 0;
    }
    return -EINVAL;
}

int tiering_delete(struct tiering *t, const struct tiering_id *id)
{
    int status = 0;
    uint32_t object = object_find(t, id, &status);

    if (object == RECORD_NONE)
        return status;
    object_kill_all(t, object);
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
    for (at.piece = 0; at.piece < n_pieces; at.piece++) {
        uint64_t left = object_bytes - (uint64_t)at.piece * t->piece_bytes;

        status = object_new(t, &at, record_hash_id(&t->records, &at), object_bytes,
                            (uint32_t)MIN(left, (uint64_t)t->piece_bytes), s->owner, &object, &limit);
        if (status < 0)
            break;
        object_commit_unwritten(t, object);
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
        move_fail(m, -ECANCELED);
    return true;
}
