/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leases on what is there: acquire and release, one piece at a time. Engine thread only.
 *
 * A hit is answered at once. What is on a device attaches the caller's wait to the load that brings it; a writer waits
 * for the spill that reads the bytes it wants to change.
 */
#include <errno.h>

#include "include/base/kill_point.h"
#include "tiering/core.h"

void object_used(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    struct space *space = space_of(t, r);

    rank_used(t, object);
    if (!(hot_at(t, object)->flags & HOT_IN_POLICY))
        return;
    struct policy *p = policy_in(&t->pools[space->info.pool], tier_of_mem(t, r), space->info.class_id);
    p->ops->hit(p, object);
    migrate_used(t, object);
}

uint8_t object_tier(const struct tiering *t, const struct record *r)
{
    if (!(r->flags & RECORD_HAS_MEM))
        return r->flags & RECORD_HAS_DEV ? TIERING_NVME : TIERING_NONE;
    return tier_of_mem(t, r) == MEM_CXL ? TIERING_CXL : TIERING_DRAM;
}

void wait_prepare(struct tiering_wait *w, struct tiering_session *s, enum lease_mode mode, uint32_t off_bytes,
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

/* --- Acquire ---------------------------------------------------------------------------------------------- */

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

int acquire_move(struct tiering *t, uint32_t object, bool urgent, struct move **ret_move)
{
    if (hot_at(t, object)->flags & HOT_LOADING) {
        *ret_move = move_of(t, object);
        if (urgent)
            move_load_asked(t, *ret_move);
        return 0;
    }
    return move_load(t, object, urgent, ret_move);
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
    bool is_published = piece_is_published(t, r);
    if (resident && mode == LEASE_WRITE &&
        (is_published || (hot_at(t, object)->flags & (HOT_SPILLING | HOT_MIGRATING)))) {
        /* The writer's own copy takes a while; and what is written to a device, or moved, must not change meanwhile. */
        if (!wait) {
            status = -EAGAIN;
            goto unadmit;
        }
        wait_prepare(wait, s, mode, off_bytes, len_bytes);
        if (is_published)
            status = fill_begin(t, object, wait, &ret_grant->limit);
        else
            move_attach(t, move_that_bars_writers(t, object), wait);
        if (status < 0)
            goto unadmit;
        object_used(t, object);
        count_found(t, object, object_tier(t, r));
        return TIERING_WAIT;
    }
    if (resident) {
        status = lease_grant(t, s, object, mode, off_bytes, len_bytes, ret_grant);
        if (status < 0)
            goto unadmit;
        object_used(t, object);
        count_found(t, object, ret_grant->tier);
        return 0;
    }
    kill_point("acquire.miss");
    bool is_loading = hot_at(t, object)->flags & HOT_LOADING;
    status = acquire_move(t, object, true, &m);
    if (status < 0) {
        ret_grant->limit = TIERING_LIMIT_REQUESTS;
        goto unadmit;
    }
    wait_prepare(wait, s, mode, off_bytes, len_bytes);
    wait->grant.fetched = true;
    wait->grant.tier = object_tier(t, r);
    wait->grant.limit = TIERING_LIMIT_POOL_DRAM;
    move_attach(t, m, wait);
    count_found(t, object, TIERING_NVME);
    pool_of(t, r)->stat.hits_loading += is_loading;
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
    kill_point("release.dirtied");
    object_clear_flags(t, object, (uint8_t)(RECORD_ZERO | (whole ? RECORD_TORN : 0)));
    pool_of(t, r)->look_ahead = true;
}

/* --- Release ---------------------------------------------------------------------------------------------- */

/* What a writer left behind is not to be kept: back to the copy on the device, or torn. */
static void piece_reverted(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);

    if (r->state != RECORD_COMMITTED)
        return;
    /* This lease is still one pin, and a copy that leaves its segment on the device is one that uses no memory of the
     * piece: with more, somebody reads or writes the same memory. */
    bool alone = hot_at(t, object)->pins == (hot_at(t, object)->flags & HOT_RELOCATING ? 2 : 1);
    if (alone && ((r->flags & (RECORD_HAS_DEV | RECORD_ZERO)) || shadow_restore(t, object))) {
        policy_leave(t, object, true);
        kill_point("release.reverted");
        object_drop_mem(t, object);
    } else {
        object_drop_dev(t, object, true);
        object_set_flags(t, object, RECORD_TORN);
        kill_point("release.torn");
    }
}

void release_end(struct tiering *t, struct lease *l, unsigned flags)
{
    const struct record *r = record_at(&t->records, l->object);
    bool is_dirty = ((flags & TIERING_DIRTY) || l->spilled) && !l->is_own;

    if ((flags & TIERING_DISCARD) && !l->is_own) {
        piece_reverted(t, l->object);
    } else if (is_dirty && r->state == RECORD_COMMITTED) {
        piece_dirtied(t, l->object, l->len_bytes == r->size_bytes);
        if (l->torn)
            object_set_flags(t, l->object, RECORD_TORN);
    } else if (l->mode == LEASE_WRITE && hot_writers(hot_at(t, l->object)) == 1) {
        (void)shadow_restore(t, l->object); /* nobody has changed it */
    }
    lease_end(t, l);
}

int tiering_release_wait(struct tiering *t, struct tiering_session *s, uint64_t lease, unsigned flags,
                         struct tiering_wait *wait, struct tiering_grant *ret_grant)
{
    struct lease *l = lease_get(t, s, lease);

    *ret_grant = (struct tiering_grant){0};
    if (!l || l->mode == LEASE_RESERVE)
        return -EBADF;
    if ((flags & (TIERING_DIRTY | TIERING_DISCARD)) && l->mode != LEASE_WRITE)
        return -EROFS;
    if (l->in_dma)
        return -EBUSY;
    if (flags & TIERING_UNUSED)
        uses_give_back(t, l->object);
    const struct record *r = record_at(&t->records, l->object);
    if (l->is_own && (flags & TIERING_DIRTY) && r->state == RECORD_COMMITTED && !l->torn)
        return wait ? publish_begin(t, l, wait, &ret_grant->limit) : -EAGAIN;
    int status = l->is_own && (flags & TIERING_DIRTY) && l->torn ? -EIO : 0;
    release_end(t, l, flags);
    return status;
}

int tiering_release(struct tiering *t, struct tiering_session *s, uint64_t lease, unsigned flags)
{
    struct tiering_grant unused;

    return tiering_release_wait(t, s, lease, flags, NULL, &unused);
}
