/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leases, and the admission that keeps them from eating a pool's memory. Engine thread only.
 *
 * A lease pins its piece. Its handle is index and generation, checked at every use, and only its own session can use
 * it. Whoever takes a lease has had its piece's bytes admitted before; the lease gives them back at its end. Admitted
 * bytes, and changed pieces of durable tensors that wait for their SYNC, stay together below the pool's lease limit, so
 * some of the memory can always be evicted: no list of leases can make another wait for ever. (For another size it is
 * cut out from between leased pieces: see room_clear_run().)
 *
 * The limit holds for each tier, too, if there are two: what would be leased where it is, is refused at its tier's
 * limit; what still comes to memory goes to the tier that is not at its limit.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/atomic.h"
#include "include/base/kill_point.h"
#include "tiering/core.h"

/* Of the memory that serves: what is to be given back must not be leased anew. */
static uint64_t tier_lease_limit(const struct tpool *p, enum mem_tier tier)
{
    return p->want_chunks[tier] / 100 * p->config.max_leases_percent;
}

bool lease_tier_is_full(const struct tpool *p, enum mem_tier tier, uint64_t bytes)
{
    return pool_has_cxl(p) && p->leased_bytes[tier] + bytes > tier_lease_limit(p, tier);
}

int tiering_admit(struct tiering *t, struct tiering_session *s, uint32_t pool, uint64_t bytes, uint32_t *ret_limit)
{
    struct tpool *p = &t->pools[pool];
    uint64_t limit = pool_lease_limit(p);

    if (p->admitted_bytes + p->unsynced_bytes + bytes > limit) {
        *ret_limit = TIERING_LIMIT_POOL_LEASES;
        return -ENOSPC;
    }
    if (!user_admit(t, s->user, pool, limit, bytes)) {
        *ret_limit = TIERING_LIMIT_UID_LEASES;
        return -ENOSPC;
    }
    p->admitted_bytes += bytes;
    return 0;
}

bool tiering_may_admit(const struct tiering *t, const struct tiering_session *s, uint32_t pool, uint64_t bytes)
{
    const struct tpool *p = &t->pools[pool];
    uint64_t limit = pool_lease_limit(p);

    return bytes <= limit && (s->user == 0 || bytes <= user_limit(p, limit));
}

void lease_unadmit(struct tiering *t, uint32_t user, uint32_t pool, uint64_t bytes)
{
    struct tpool *p = &t->pools[pool];

    assert(p->admitted_bytes >= bytes);
    p->admitted_bytes -= bytes;
    user_unadmit(t, user, pool, bytes);
}

void tiering_unadmit(struct tiering *t, struct tiering_session *s, uint32_t pool, uint64_t bytes)
{
    lease_unadmit(t, s->user, pool, bytes);
}

static uint64_t lease_handle(const struct tiering *t, const struct lease *l)
{
    return (uint64_t)l->generation << 32 | (uint32_t)(l - t->leases);
}

void tiering_warm_lease(const struct tiering *t, uint64_t lease)
{
    if ((uint32_t)lease < t->config.max_leases)
        __builtin_prefetch(&t->leases[(uint32_t)lease], 1);
}

void tiering_warm_leased(const struct tiering *t, uint64_t lease)
{
    uint32_t object = (uint32_t)lease < t->config.max_leases ? t->leases[(uint32_t)lease].object : RECORD_NONE;

    if (object < t->config.max_objects)
        record_warm_leased(&t->records, object);
}

struct io_buf lease_buf(const struct lease *l)
{
    uint32_t off_bytes = l->is_own ? l->off_bytes % SECTOR_BYTES : l->off_bytes;

    return (struct io_buf){.region = l->region, .off = (uint64_t)l->sector * SECTOR_BYTES + off_bytes};
}

static void grant_fill(const struct tiering *t, const struct lease *l, struct tiering_grant *ret_grant)
{
    const struct record *r = record_at(&t->records, l->object);
    const struct arena_chunk *chunk = t->chunk_of[l->region];
    const struct tpool *p = &t->pools[t->spaces[r->space].info.pool];

    ret_grant->lease = lease_handle(t, l);
    ret_grant->region = l->region;
    ret_grant->epoch = chunk->epoch;
    ret_grant->offset_bytes = lease_buf(l).off;
    ret_grant->length_bytes = l->len_bytes;
    ret_grant->limit = TIERING_LIMIT_NONE;
    if (!ret_grant->fetched)
        ret_grant->tier = tier_of_chunk(p, chunk) == MEM_CXL ? TIERING_CXL : TIERING_DRAM;
}

/* On the extent that the piece has now. */
static int lease_new(struct tiering *t, struct tiering_session *s, uint32_t object, enum lease_mode mode,
                     uint32_t off_bytes, uint32_t len_bytes, struct tiering_grant *ret_grant, struct lease **ret_lease)
{
    uint32_t index = t->lease_free;

    if (index == RECORD_NONE || s->n_leases >= s->max_leases || hot_at(t, object)->pins > HOT_PINS_MAX - 16) {
        ret_grant->limit = TIERING_LIMIT_SESSION_LEASES;
        return -ENOSPC;
    }
    if (mode == LEASE_WRITE) {
        assert(!(hot_at(t, object)->flags & (HOT_SPILLING | HOT_MIGRATING)));
        if (hot_writers(hot_at(t, object)) == HOT_WRITERS_MAX)
            return -EBUSY;
        int status = shadow_keep(t, object);
        if (status < 0) {
            ret_grant->limit = TIERING_LIMIT_REQUESTS;
            return status;
        }
        hot_at(t, object)->flags += HOT_WRITER;
    }
    const struct record *r = record_at(&t->records, object);
    struct lease *l = &t->leases[index];
    t->lease_free = l->next;
    /* All but the generation, which a process that ends here must not have lost. */
    memset((char *)l + sizeof(l->generation), 0, sizeof(*l) - sizeof(l->generation));
    l->object = object;
    l->off_bytes = off_bytes;
    l->len_bytes = len_bytes;
    l->number = s->number;
    l->user = (uint16_t)s->user;
    l->region = r->mem_region;
    l->sector = r->mem_sector;
    fence_compiler(); /* it is whole before it counts: see truth.h */
    store_relaxed(&l->mode, (uint8_t)mode);
    lease_join_session(t, s, index);
    t->n_leases++;
    kill_point("lease.new");
    object_pin(t, object);
    if (mode != LEASE_RESERVE)
        uses_spend(t, object);
    pool_of(t, r)->stat.leased += r->size_bytes;
    *ret_lease = l;
    return 0;
}

/* It counts where its bytes are, and to the end there: the piece may get another extent meanwhile. */
static void lease_count(struct tiering *t, struct lease *l)
{
    const struct record *r = record_at(&t->records, l->object);
    struct tpool *p = pool_of(t, r);

    l->tier = (uint8_t)tier_of_chunk(p, t->chunk_of[l->region]);
    if (l->tier != MEM_PRIVATE)
        p->leased_bytes[l->tier] += r->size_bytes;
}

static void lease_hold(struct tiering *t, struct lease *l)
{
    l->holds = true;
    extent_hold(t, l->region, l->sector, l->object);
}

int lease_grant(struct tiering *t, struct tiering_session *s, uint32_t object, enum lease_mode mode, uint32_t off_bytes,
                uint32_t len_bytes, struct tiering_grant *ret_grant)
{
    struct lease *l;
    int status = lease_new(t, s, object, mode, off_bytes, len_bytes, ret_grant, &l);

    if (status < 0)
        return status;
    lease_count(t, l);
    if (piece_is_published(t, record_at(&t->records, object)))
        lease_hold(t, l); /* the piece may get another extent meanwhile */
    grant_fill(t, l, ret_grant);
    return 0;
}

int lease_grant_own(struct tiering *t, struct tiering_session *s, uint32_t object, uint32_t off_bytes,
                    uint32_t len_bytes, const struct arena_chunk *chunk, uint32_t sector,
                    struct tiering_grant *ret_grant)
{
    struct lease *l;
    int status = lease_new(t, s, object, LEASE_WRITE, off_bytes, len_bytes, ret_grant, &l);

    if (status < 0)
        return status;
    l->is_own = true;
    l->region = (uint16_t)chunk->region;
    l->sector = sector;
    lease_count(t, l);
    lease_hold(t, l);
    extent_orphan(t, l->region, l->sector, object, false); /* of no piece: it ends with the lease */
    grant_fill(t, l, ret_grant);
    return 0;
}

void lease_join_session(struct tiering *t, struct tiering_session *s, uint32_t lease)
{
    struct lease *l = &t->leases[lease];

    l->session = s;
    l->prev = RECORD_NONE;
    l->next = s->first_lease;
    if (s->first_lease != RECORD_NONE)
        t->leases[s->first_lease].prev = lease;
    s->first_lease = lease;
    s->n_leases++;
}

void lease_leave_session(struct tiering *t, struct lease *l)
{
    struct tiering_session *s = l->session;

    assert(s != NULL);

    if (l->prev != RECORD_NONE)
        t->leases[l->prev].next = l->next;
    else
        s->first_lease = l->next;
    if (l->next != RECORD_NONE)
        t->leases[l->next].prev = l->prev;
    s->n_leases--;
    l->session = NULL;
}

void lease_end(struct tiering *t, struct lease *l)
{
    uint32_t index = (uint32_t)(l - t->leases), object = l->object;
    const struct record *r = record_at(&t->records, object);
    uint32_t pool = t->spaces[r->space].info.pool, user = l->user;

    assert(!l->in_dma);
    if (l->session)
        lease_leave_session(t, l);
    t->n_leases--;
    kill_point("lease.end");
    if (l->mode == LEASE_WRITE)
        hot_at(t, object)->flags -= HOT_WRITER;
    if (l->tier != MEM_PRIVATE)
        t->pools[pool].leased_bytes[l->tier] -= r->size_bytes;
    if (l->holds)
        extent_release(t, l->region, l->sector);
    store_relaxed(&l->mode, (uint8_t)LEASE_FREE);
    fence_compiler();                         /* it is over before another one has its place: see truth.h */
    l->generation = lease_next_generation(l); /* the rest is cleared when it is taken again */
    l->next = t->lease_free;
    t->lease_free = index;
    t->pools[pool].stat.leased -= r->size_bytes;
    lease_unadmit(t, user, pool, r->size_bytes);
    object_unpin(t, object);
}

int tiering_lease_info(const struct tiering *t, const struct tiering_session *s, uint64_t lease,
                       struct tiering_grant *ret_grant, uint32_t *ret_pool)
{
    struct tiering *mutable = (struct tiering *)(uintptr_t)t; /* lease_get() changes nothing */
    const struct lease *l = lease_get(mutable, s, lease);

    if (!l)
        return -EBADF;
    *ret_pool = t->spaces[record_at(&t->records, l->object)->space].info.pool;
    *ret_grant = (struct tiering_grant){0};
    grant_fill(t, l, ret_grant);
    return 0;
}

/* --- Sessions ---------------------------------------------------------------------------------------------------- */

void tiering_session_init(struct tiering *t, struct tiering_session *s, uint64_t number, uint64_t owner,
                          uint32_t max_leases)
{
    (void)t;
    *s = (struct tiering_session){
        .number = number, .owner = owner, .max_leases = max_leases, .first_lease = RECORD_NONE};
    list_init(&s->link);
    list_init(&s->arenas);
    if (t->warm)
        warm_claim(t, s);
}

void tiering_lease_request(struct tiering *t, struct tiering_session *s, uint64_t lease, uint64_t request)
{
    struct lease *l = lease_get(t, s, lease);

    if (l)
        l->request = request;
}

static int compare_requests(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* Nobody has touched its bytes. */
void lease_lost(struct tiering *t, struct tiering_session *s, struct lease *l)
{
    uint64_t handle = lease_handle(t, l);
    int r = l->mode == LEASE_RESERVE ? tiering_abort(t, s, handle) : tiering_release(t, s, handle, TIERING_UNUSED);

    assert(r == 0);
    (void)r;
}

void tiering_session_lost(struct tiering *t, struct tiering_session *s, const uint64_t *requests, size_t n)
{
    for (uint32_t at = s->first_lease, next; at != RECORD_NONE; at = next) {
        struct lease *l = &t->leases[at];

        next = l->next;
        if (l->in_dma || l->in_move)
            continue;
        if (n > 0 && bsearch(&l->request, requests, n, sizeof(*requests), compare_requests))
            lease_lost(t, s, l);
    }
}

void tiering_leave(struct tiering *t)
{
    t->leaving = true;
}

void tiering_session_leave(struct tiering *t, struct tiering_session *s)
{
    tiering_leave(t);
    while (s->first_lease != RECORD_NONE)
        lease_leave_session(t, &t->leases[s->first_lease]);
    room_session_end(t, s);
    user_session_end(t, s);
    plan_session_end(t, s);
}

void tiering_session_end(struct tiering *t, struct tiering_session *s)
{
    while (s->first_lease != RECORD_NONE) {
        struct lease *l = &t->leases[s->first_lease];
        uint64_t handle = lease_handle(t, l);

        if (l->in_dma) {
            dma_session_end(t, l);
            continue;
        }
        if (l->in_move) { /* it ends with the move, which goes on */
            lease_leave_session(t, l);
            continue;
        }
        /* A reservation was never seen by anyone; a write lease leaves the range torn unless it can be taken back. */
        int r = l->mode == LEASE_RESERVE ? tiering_abort(t, s, handle)
                                         : tiering_release(t, s, handle, l->mode == LEASE_WRITE ? TIERING_DISCARD : 0);
        assert(r == 0);
        (void)r;
    }
    kill_point("lease.session_over");
    room_session_end(t, s);
    user_session_end(t, s);
    plan_session_end(t, s);
    room_orphans(t);
}
