/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For the tests of the request path (daemon/request*.c, ring.c): a stub of tiering that does what the first byte of a key
 * says, an engine around it, and clients whose half of a ring is played by hand. A header, because it defines
 * tiering's functions: each test that includes it is a program of its own, and shares nothing.
 *   h  it is there       m  it is not       w  it must be waited for       e  the device fails
 *   q  tiering has no transfer left (q_left times), then as h
 */
#pragma once

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/request.h"
#include "include/base/atomic.h"
#include "include/spillway/abi.h"

#define SCRATCH_BYTES 65536
#define CANARY_BYTES 4096
#define ENTRIES 16
#define RESULTS 32768
#define PIECE_BYTES 65536
#define MS UINT64_C(1000000)

/* --- The stub of tiering ----------------------------------------------------------------------------------------- */

struct tiering {
    int64_t leases; /* out */
    uint64_t next_lease;
    struct list waits;
    uint32_t n_waits, cancelled;
    bool full;   /* admission */
    bool small;  /* it would be even if nothing were leased */
    bool shared; /* a dirty release has to wait */
    uint32_t q_left;
    struct tiering_sync *sync;
    uint32_t syncs, sync_adds;
    uint64_t sessions_ended, sessions_left;
    uint64_t lease_requests[32]; /* by lease: which request's it was said to be */
    uint64_t lost[8];            /* what session_lost() was told */
    size_t n_lost;
    uint64_t arena[64]; /* offsets that get_to() was asked for */
    uint32_t n_arena;
    uint32_t last_len, last_off, last_piece;
    uint64_t last_object_bytes;
    uint64_t walked, tensor_pieces;  /* so many are walked over for a tensor */
    uint32_t room_limit;             /* why there is no room; 0: the pool's memory is full */
    uint64_t advised;                /* the value of the last advice */
    struct tiering_dma *in_dma[300]; /* by lease */
    struct tiering_dma *dmas[64];
    uint32_t n_dmas;
    bool chain_unwanted;
    char chain[64]; /* what the last list named */
    uint32_t n_chain, n_chains;
    enum policy_use chain_use;
    char plan[64]; /* what it names so far */
    uint32_t n_plan, n_plans;
    uint64_t plan_items; /* of lists that were paused */
    int plan_status;     /* that the next ones end with, if it is an error */
};
static struct tiering stub;

static __attribute__((unused)) void grant(struct tiering_grant *g, const struct tiering_id *id, uint32_t len)
{
    stub.leases++;
    *g = (struct tiering_grant){.lease = ++stub.next_lease,
                                .region = 1,
                                .epoch = 1,
                                .offset_bytes = id->piece * (uint64_t)PIECE_BYTES,
                                .length_bytes = len,
                                .tier = TIERING_DRAM};
}

static __attribute__((unused)) int take(const struct tiering_id *id, uint32_t len, struct tiering_wait *wait,
                                        struct tiering_grant *g)
{
    *g = (struct tiering_grant){0};
    switch (id->key[0]) {
    case 'm':
        return -ENOENT;
    case 'e':
        return -EIO;
    case 'w':
        if (!wait)
            return -EAGAIN;
        list_push_tail(&stub.waits, &wait->link);
        stub.n_waits++;
        return TIERING_WAIT;
    case 'q':
        if (stub.q_left > 0) {
            stub.q_left--;
            g->limit = TIERING_LIMIT_REQUESTS;
            return -EAGAIN;
        }
        break;
    default:
        break;
    }
    grant(g, id, len);
    return 0;
}

/* The oldest wait ends. */
static __attribute__((unused)) void stub_finish(int status)
{
    struct tiering_wait *wait = list_entry(list_pop(&stub.waits), struct tiering_wait, link);
    struct tiering_id id = {0};

    stub.n_waits--;
    wait->grant = (struct tiering_grant){0};
    if (status == 0)
        grant(&wait->grant, &id, 7);
    wait->done(wait, status);
}

void tiering_warm_index(const struct tiering *t, struct tiering_id *id)
{
    (void)t;
    id->hash = 1;
}

void tiering_warm_record(const struct tiering *t, const struct tiering_id *id)
{
    (void)t;
    ck_assert_uint_eq(id->hash, 1);
}

void tiering_warm_neighbours(const struct tiering *t, const struct tiering_id *id)
{
    (void)t;
    ck_assert_uint_eq(id->hash, 1);
}

void tiering_warm_lease(const struct tiering *t, uint64_t lease)
{
    (void)t;
    (void)lease;
}

uint32_t tiering_room_limit(const struct tiering *t, uint32_t pool)
{
    (void)pool;
    return t->room_limit ? t->room_limit : SPW_LIMIT_POOL_DRAM;
}

uint32_t tiering_sync_limit(const struct tiering_sync *sync)
{
    (void)sync;
    return SPW_LIMIT_POOL_NVME;
}

void tiering_warm_leased(const struct tiering *t, uint64_t lease)
{
    (void)t;
    (void)lease;
}

void tiering_session_init(struct tiering *t, struct tiering_session *s, uint64_t number, uint64_t owner,
                          uint32_t max_leases)
{
    (void)t;
    *s = (struct tiering_session){.number = number, .owner = owner, .max_leases = max_leases};
}
void tiering_session_user(struct tiering *t, struct tiering_session *s, uint64_t name)
{
    (void)t;
    s->user = (uint32_t)name; /* a row for each name */
}
void tiering_user_stat(const struct tiering *t, const struct tiering_session *s, struct tiering_user_stat *ret_stat)
{
    (void)t;
    (void)s;
    *ret_stat = (struct tiering_user_stat){0};
}
void tiering_session_end(struct tiering *t, struct tiering_session *s)
{
    (void)s;
    t->leases = 0;
    t->sessions_ended++;
}
void tiering_leave(struct tiering *t)
{
    (void)t;
}
void tiering_session_leave(struct tiering *t, struct tiering_session *s)
{
    (void)s;
    t->sessions_left++;
}
void tiering_session_lost(struct tiering *t, struct tiering_session *s, const uint64_t *requests, size_t n)
{
    (void)s;
    ck_assert_uint_le(n, ARRAY_LEN(t->lost));
    memcpy(t->lost, requests, n * sizeof(*requests));
    t->n_lost = n;
}
void tiering_lease_request(struct tiering *t, struct tiering_session *s, uint64_t lease, uint64_t request)
{
    (void)s;
    t->lease_requests[lease % ARRAY_LEN(t->lease_requests)] = request;
}
bool tiering_wait_cancel(struct tiering *t, struct tiering_wait *wait)
{
    list_unlink(&wait->link);
    t->n_waits--;
    t->cancelled++;
    return true;
}
bool tiering_chain_begin(struct tiering *t, struct tiering_session *s, uint32_t space, enum policy_use use)
{
    (void)s;
    (void)space;
    t->chain_use = use;
    t->n_chain = 0;
    return !t->chain_unwanted;
}
void tiering_chain_add(struct tiering *t, const struct tiering_id *id, uint32_t n_pieces)
{
    for (uint32_t i = 0; i < n_pieces; i++)
        t->chain[t->n_chain++ % sizeof(t->chain)] = (char)id->key[0];
}
void tiering_chain_end(struct tiering *t)
{
    t->n_chains++;
}
int tiering_plan_begin(struct tiering *t, const struct tiering_session *s, uint32_t space, uint64_t items_before)
{
    bool goes_on = items_before == t->plan_items;

    (void)s;
    (void)space;
    t->plan_items = 0;
    t->n_plan = items_before ? t->n_plan : 0;
    return items_before == 0 || goes_on ? 0 : -ESTALE;
}
int tiering_plan_add(struct tiering *t, const struct tiering_id *id)
{
    if (t->n_plan == sizeof(t->plan))
        return -E2BIG;
    t->plan[t->n_plan++] = (char)id->key[0];
    t->last_piece = id->piece;
    return 0;
}
void tiering_plan_pause(struct tiering *t, const struct tiering_session *s, uint64_t items)
{
    (void)s;
    t->plan_items = items;
}
int tiering_plan_end(struct tiering *t)
{
    if (t->plan_status < 0)
        return t->plan_status;
    t->n_plans++;
    return (int)t->n_plan;
}
int tiering_admit(struct tiering *t, struct tiering_session *s, uint32_t pool, uint64_t bytes, uint32_t *ret_limit)
{
    (void)s;
    (void)pool;
    (void)bytes;
    if (!t->full)
        return 0;
    *ret_limit = TIERING_LIMIT_POOL_LEASES;
    return -ENOSPC;
}
bool tiering_may_admit(const struct tiering *t, const struct tiering_session *s, uint32_t pool, uint64_t bytes)
{
    (void)s;
    (void)pool;
    (void)bytes;
    return !t->small;
}
void tiering_unadmit(struct tiering *t, struct tiering_session *s, uint32_t pool, uint64_t bytes)
{
    (void)t;
    (void)s;
    (void)pool;
    (void)bytes;
}
int tiering_lookup(const struct tiering *t, const struct tiering_id *id, struct tiering_found *ret_found)
{
    (void)t;
    if (id->key[0] == 'm')
        return -ENOENT;
    *ret_found = (struct tiering_found){.object_bytes = 4096, .size_bytes = 4096, .tier = TIERING_DRAM};
    return 0;
}
int tiering_reserve(struct tiering *t, struct tiering_session *s, const struct tiering_id *id, uint64_t object_bytes,
                    uint32_t size_bytes, struct tiering_wait *wait, struct tiering_grant *ret_grant)
{
    (void)s;
    t->last_object_bytes = object_bytes;
    t->last_len = size_bytes;
    t->last_piece = id->piece;
    return take(id, size_bytes, wait, ret_grant);
}
static __attribute__((unused)) int give(struct tiering *t, uint64_t lease)
{
    if (lease == 0 || lease > t->next_lease)
        return -EBADF;
    t->leases--;
    return 0;
}
int tiering_commit(struct tiering *t, struct tiering_session *s, uint64_t lease, struct tiering_wait *wait,
                   struct tiering_grant *ret_grant)
{
    (void)s;
    (void)wait;
    *ret_grant = (struct tiering_grant){0};
    return give(t, lease);
}
int tiering_abort(struct tiering *t, struct tiering_session *s, uint64_t lease)
{
    (void)s;
    return give(t, lease);
}
int tiering_acquire(struct tiering *t, struct tiering_session *s, const struct tiering_id *id, uint32_t off_bytes,
                    uint32_t len_bytes, unsigned flags, struct tiering_wait *wait, struct tiering_grant *ret_grant)
{
    (void)s;
    (void)flags;
    t->last_off = off_bytes;
    t->last_len = len_bytes;
    t->last_piece = id->piece;
    return take(id, len_bytes, wait, ret_grant);
}
int tiering_release(struct tiering *t, struct tiering_session *s, uint64_t lease, unsigned flags)
{
    (void)s;
    (void)flags;
    return give(t, lease);
}
int tiering_release_wait(struct tiering *t, struct tiering_session *s, uint64_t lease, unsigned flags,
                         struct tiering_wait *wait, struct tiering_grant *ret_grant)
{
    (void)ret_grant;
    if (!t->shared || !(flags & TIERING_DIRTY))
        return tiering_release(t, s, lease, flags);
    if (!wait)
        return -EAGAIN;
    list_push_tail(&t->waits, &wait->link);
    t->n_waits++;
    return TIERING_WAIT;
}
int tiering_lease_info(const struct tiering *t, const struct tiering_session *s, uint64_t lease,
                       struct tiering_grant *ret_grant, uint32_t *ret_pool)
{
    (void)t;
    (void)s;
    if (lease != 1)
        return -EBADF;
    *ret_grant = (struct tiering_grant){.lease = 1, .length_bytes = 10000};
    *ret_pool = 0;
    return 0;
}
int tiering_touch(struct tiering *t, const struct tiering_id *id)
{
    (void)t;
    return id->key[0] == 'm' ? -ENOENT : 0;
}
int tiering_prefetch(struct tiering *t, const struct tiering_id *id, struct tiering_wait *wait,
                     struct tiering_grant *ret_grant)
{
    int r = take(id, 0, wait, ret_grant);

    if (r == 0)
        t->leases--;
    return r;
}
int tiering_advise(struct tiering *t, const struct tiering_id *id, enum tiering_advice advice, uint64_t value,
                   uint64_t now_ns)
{
    (void)advice;
    (void)now_ns;
    t->advised = value;
    return id->key[0] == 'f' ? -ENOSPC : tiering_touch(t, id);
}
int tiering_pin(struct tiering *t, const struct tiering_id *id, uint64_t until_ns)
{
    (void)until_ns;
    return tiering_touch(t, id);
}
int tiering_delete(struct tiering *t, const struct tiering_id *id)
{
    return tiering_touch(t, id);
}
int tiering_tensor(struct tiering *t, struct tiering_session *s, const struct tiering_id *id, uint64_t object_bytes)
{
    (void)s;
    (void)id;
    t->last_object_bytes = object_bytes;
    t->walked += t->tensor_pieces;
    return 0;
}
uint64_t tiering_walked(const struct tiering *t)
{
    return t->walked;
}
void tiering_sync_begin(struct tiering *t, struct tiering_sync *sync, uint32_t space)
{
    (void)space;
    t->sync = sync;
    t->sync_adds = 0;
}
int tiering_sync_add(struct tiering *t, struct tiering_sync *sync, const struct tiering_id *id)
{
    (void)sync;
    t->sync_adds++;
    return id->key[0] == 'f' ? -EAGAIN : 0;
}
int tiering_sync_add_space(struct tiering *t, struct tiering_sync *sync)
{
    (void)sync;
    t->sync_adds += 1000;
    return 0;
}
void tiering_sync_run(struct tiering *t, struct tiering_sync *sync)
{
    (void)sync;
    t->syncs++;
}
int tiering_get_to(struct tiering *t, struct tiering_session *s, const struct tiering_id *id, uint64_t lease,
                   uint64_t off_bytes, uint32_t len_bytes, struct tiering_wait *wait, struct tiering_grant *ret_grant)
{
    (void)s;
    (void)lease;
    (void)len_bytes;
    t->arena[t->n_arena++] = off_bytes;
    int r = take(id, 0, wait, ret_grant);

    if (r == 0)
        t->leases--;
    *ret_grant = (struct tiering_grant){0};
    return r;
}
int tiering_put_from(struct tiering *t, struct tiering_session *s, const struct tiering_id *id, uint64_t lease,
                     uint64_t off_bytes, uint32_t len_bytes, struct tiering_wait *wait, struct tiering_grant *ret_grant)
{
    return tiering_get_to(t, s, id, lease, off_bytes, len_bytes, wait, ret_grant);
}
/* Leases 1 to 99 are in the lane's pool, 100 to 199 in another, 200 to 299 are to read, and no others are there. */
void tiering_dma_begin(struct tiering *t, struct tiering_dma *dma, const struct tiering_dma_spec *spec)
{
    (void)t;
    *dma = (struct tiering_dma){.done = dma->done,
                                .io_ = {.op = spec->op,
                                        .lane = spec->lane,
                                        .gpu = spec->gpu,
                                        .seq = spec->seq,
                                        .base_bytes = spec->base_bytes,
                                        .expires_ns = spec->expires_ns},
                                .slot_bytes_ = spec->slot_bytes,
                                .pool_ = spec->pool};
}
int tiering_dma_add(struct tiering *t, struct tiering_dma *dma, const struct tiering_session *s, uint64_t lease)
{
    (void)s;
    if (lease == 0 || lease >= ARRAY_LEN(t->in_dma))
        return -EBADF;
    if (lease >= 100 && lease < 200)
        return -EXDEV;
    if (t->in_dma[lease])
        return -EBUSY;
    if (lease >= 200 && dma->io_.op == IO_DMA_SPILL)
        return -EROFS;
    if (dma->bytes + 100 > dma->slot_bytes_)
        return -EINVAL;
    t->in_dma[lease] = dma;
    dma->bytes += 100;
    dma->n_leases++;
    return 0;
}
void tiering_dma_abandon(struct tiering *t, struct tiering_dma *dma)
{
    for (uint32_t i = 0; i < ARRAY_LEN(t->in_dma); i++)
        if (t->in_dma[i] == dma)
            t->in_dma[i] = NULL;
}
void tiering_dma_run(struct tiering *t, struct tiering_dma *dma)
{
    ck_assert_uint_lt(t->n_dmas, ARRAY_LEN(t->dmas));
    t->dmas[t->n_dmas++] = dma;
}
/* That of this operation which was begun first ends. */
static __attribute__((unused)) void stub_dma_finish(enum io_dma_op op, int status)
{
    for (uint32_t i = 0; i < stub.n_dmas; i++) {
        struct tiering_dma *dma = stub.dmas[i];

        if (dma->io_.op != op)
            continue;
        for (stub.n_dmas--; i < stub.n_dmas; i++)
            stub.dmas[i] = stub.dmas[i + 1];
        tiering_dma_abandon(&stub, dma);
        dma->done(dma, status);
        return;
    }
    ck_abort_msg("no such transfer");
}
void tiering_pool_stat(const struct tiering *t, uint32_t pool, struct tiering_pool_stat *ret_stat)
{
    (void)t;
    (void)pool;
    *ret_stat = (struct tiering_pool_stat){.dram_budget = 12345};
}
void tiering_stat(const struct tiering *t, struct tiering_stat *ret_stat)
{
    (void)t;
    *ret_stat = (struct tiering_stat){0};
}
void tiering_store_stat(const struct tiering *t, uint32_t store, struct store_stat *ret_stat)
{
    (void)t;
    (void)store;
    *ret_stat = (struct store_stat){0};
}

/* --- A client and an engine -------------------------------------------------------------------------------------- */

struct client {
    struct peer peer;
    struct ring ring;
    struct ring_geometry geometry;
    struct spw_ring *shared;
    char *mem, *scratch; /* the canary lies behind the scratch */
    uint32_t sq_tail, cq_head;
    uint32_t space;
    struct spw_item *items; /* in scratch */
    struct spw_handle *handles;
    struct spw_result *results;
};

static struct requests *rq;
static struct client a;
static const char *broken_why;
static struct peer *broken_peer;
static uint32_t n_cold, n_cold_refused; /* rings that went cold; that are to stay hot */
static uint64_t now_ns;
static void *lane_removed;

static __attribute__((unused)) void on_broken(void *ctx, struct peer *peer, const char *why)
{
    (void)ctx;
    broken_peer = peer;
    broken_why = why;
}

static __attribute__((unused)) int on_cold(void *ctx, struct ring *ring)
{
    (void)ctx;
    (void)ring;
    n_cold++;
    if (n_cold_refused == 0)
        return 0;
    n_cold_refused--;
    return -ENOMEM;
}

static __attribute__((unused)) void on_lane_gone(void *ctx, void *removal)
{
    (void)ctx;
    lane_removed = removal;
}

static const struct requests_events events = {on_broken, on_cold, on_lane_gone};

static __attribute__((unused)) void client_new(struct client *c, uint64_t session, uint32_t weight)
{
    struct tiering_space_info info = {.index = 3, .pool = 0, .piece_bytes = PIECE_BYTES};

    memset(c, 0, sizeof(*c));
    ck_assert_int_eq(ring_geometry(ENTRIES, ENTRIES, &c->geometry), 0);
    c->mem = calloc(1, c->geometry.ring_bytes);
    c->scratch = calloc(1, SCRATCH_BYTES + CANARY_BYTES);
    memset(c->scratch + SCRATCH_BYTES, 0x77, CANARY_BYTES);
    c->shared = (void *)c->mem;
    c->items = (void *)c->scratch;
    c->handles = (void *)c->scratch;
    c->results = (void *)(c->scratch + RESULTS);
    ring_init(&c->ring, 1, &c->geometry, c->mem, c->scratch, SCRATCH_BYTES, -1);
    requests_peer_add(rq, &c->peer, session, 1, 100);
    requests_ring_add(rq, &c->peer, &c->ring);
    ck_assert_int_eq(requests_space_add(rq, &c->peer, &info, weight, &c->space), 0);
}

static __attribute__((unused)) void client_free(struct client *c)
{
    for (int i = 0; i < CANARY_BYTES; i++)
        ck_assert_msg(c->scratch[SCRATCH_BYTES + i] == 0x77, "written past the scratch");
    requests_peer_remove(rq, &c->peer, false);
    free(c->mem);
    free(c->scratch);
}

static struct pool_gpu_stat pool_gpus[POOLS_MAX];

static __attribute__((unused)) void engine_new(uint32_t max_requests, uint32_t max_waits)
{
    struct requests_config config = {.tiering = &stub,
                                     .engine = 2,
                                     .max_requests = max_requests,
                                     .max_waits = max_waits,
                                     .spin_ns = 1000,
                                     .gpus = pool_gpus,
                                     .events = &events};

    memset(&stub, 0, sizeof(stub));
    list_init(&stub.waits);
    now_ns = 1000000;
    broken_why = NULL;
    broken_peer = NULL;
    n_cold = n_cold_refused = 0;
    lane_removed = NULL;
    ck_assert_int_eq(requests_new(&config, &rq), 0);
}

static __attribute__((unused)) void setup(void)
{
    engine_new(64, 64);
    client_new(&a, 7, 100);
}

static __attribute__((unused)) void teardown(void)
{
    client_free(&a);
    ck_assert(requests_is_idle(rq));
    ck_assert_uint_eq(stub.n_waits, 0);
    requests_free(rq);
}

static __attribute__((unused)) uint32_t turns(int n)
{
    uint32_t done = 0;

    for (int i = 0; i < n; i++)
        done += requests_run(rq, now_ns);
    return done;
}

static __attribute__((unused)) struct spw_sqe sqe_of(const struct client *c, uint8_t opcode, uint32_t n_items)
{
    return (struct spw_sqe){
        .opcode = opcode, .space = c->space, .user_data = 42, .n_items = n_items, .results = RESULTS};
}

static __attribute__((unused)) struct spw_item item_of(char kind, uint8_t number)
{
    return (struct spw_item){.key = {(uint8_t)kind, number, 1}, .key_len = 3};
}

static __attribute__((unused)) void put_items(struct client *c, const char *kinds)
{
    for (uint8_t i = 0; kinds[i]; i++)
        c->items[i] = item_of(kinds[i], i);
}

static __attribute__((unused)) void submit(struct client *c, const struct spw_sqe *sqe)
{
    struct spw_sqe *sqes = (void *)(c->mem + c->geometry.sq_offset);

    sqes[c->sq_tail++ % ENTRIES] = *sqe;
    store_release(&c->shared->client.sq_tail, c->sq_tail);
    if (load_acquire(&c->shared->daemon.sq_flags) & SPW_RING_NEED_WAKEUP)
        requests_ring_hot(rq, &c->ring, now_ns);
}

static __attribute__((unused)) bool consume(struct client *c, struct spw_cqe *ret_cqe)
{
    struct spw_cqe *cqes = (void *)(c->mem + c->geometry.cq_offset);

    if (load_acquire(&c->shared->daemon.cq_tail) == c->cq_head)
        return false;
    *ret_cqe = cqes[c->cq_head++ % ENTRIES];
    store_release(&c->shared->client.cq_head, c->cq_head);
    return true;
}

static __attribute__((unused)) struct spw_cqe call(struct client *c, const struct spw_sqe *sqe)
{
    struct spw_cqe cqe = {0};

    submit(c, sqe);
    turns(4);
    ck_assert_msg(consume(c, &cqe), "no CQE");
    ck_assert_uint_eq(cqe.user_data, sqe->user_data);
    return cqe;
}

static __attribute__((unused)) int status_of(struct client *c, const struct spw_sqe *sqe)
{
    return call(c, sqe).status;
}

/* One item through ACQUIRE: its status. */
static __attribute__((unused)) int acquire_item(const struct spw_item *item)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 1);

    *a.items = *item;
    a.results->status = 1;
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    return a.results->status;
}

static inline int run_suite(Suite *suite)
{
    SRunner *sr = srunner_create(suite);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
