/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The request path (daemon/request*.c, ring.c) above a stub of tiering that does what the first byte of a key says:
 *   h  it is there       m  it is not       w  it must be waited for       e  the device fails
 *   q  tiering has no transfer left (once), then as h
 * The client's half of a ring is played by hand, with and without manners.
 */
#include <check.h>
#include <errno.h>
#include <pthread.h>
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
    bool full; /* admission */
    uint32_t q_left;
    struct tiering_sync *sync;
    uint32_t syncs, sync_adds;
    uint64_t sessions_ended;
    uint64_t arena[64]; /* offsets that get_to() was asked for */
    uint32_t n_arena;
    uint32_t last_len, last_off, last_piece;
    uint64_t last_object_bytes;
};
static struct tiering stub;

static void grant(struct tiering_grant *g, const struct tiering_id *id, uint32_t len)
{
    stub.leases++;
    *g = (struct tiering_grant){.lease = ++stub.next_lease,
                                .region = 1,
                                .epoch = 1,
                                .offset_bytes = id->piece * (uint64_t)PIECE_BYTES,
                                .length_bytes = len,
                                .tier = TIERING_DRAM};
}

static int take(const struct tiering_id *id, uint32_t len, struct tiering_wait *wait, struct tiering_grant *g)
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
static void stub_finish(int status)
{
    struct tiering_wait *wait = list_entry(list_pop(&stub.waits), struct tiering_wait, link);
    struct tiering_id id = {0};

    stub.n_waits--;
    wait->grant = (struct tiering_grant){0};
    if (status == 0)
        grant(&wait->grant, &id, 7);
    wait->done(wait, status);
}

void tiering_session_init(struct tiering *t, struct tiering_session *s, uint64_t number, uint64_t owner,
                          uint32_t max_leases)
{
    (void)t;
    *s = (struct tiering_session){.number = number, .owner = owner, .max_leases = max_leases};
}
void tiering_session_end(struct tiering *t, struct tiering_session *s)
{
    (void)s;
    t->leases = 0;
    t->sessions_ended++;
}
bool tiering_wait_cancel(struct tiering *t, struct tiering_wait *wait)
{
    list_unlink(&wait->link);
    t->n_waits--;
    t->cancelled++;
    return true;
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
static int give(struct tiering *t, uint64_t lease)
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
    (void)value;
    (void)now_ns;
    return tiering_touch(t, id);
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
    return 0;
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
    (void)id;
    t->sync_adds++;
    return 0;
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
};

static struct requests *rq;
static struct client a, b;
static const char *broken_why;
static struct peer *broken_peer;
static uint32_t n_cold;
static uint64_t now_ns;

static void on_broken(void *ctx, struct peer *peer, const char *why)
{
    (void)ctx;
    broken_peer = peer;
    broken_why = why;
}

static int on_cold(void *ctx, struct ring *ring)
{
    (void)ctx;
    (void)ring;
    n_cold++;
    return 0;
}

static const struct requests_events events = {on_broken, on_cold};

static void client_new(struct client *c, uint64_t session, uint32_t weight)
{
    struct tiering_space_info info = {.index = 3, .pool = 0, .piece_bytes = PIECE_BYTES};

    memset(c, 0, sizeof(*c));
    ck_assert_int_eq(ring_geometry(ENTRIES, ENTRIES, &c->geometry), 0);
    c->mem = calloc(1, c->geometry.ring_bytes);
    c->scratch = calloc(1, SCRATCH_BYTES + CANARY_BYTES);
    memset(c->scratch + SCRATCH_BYTES, 0x77, CANARY_BYTES);
    c->shared = (void *)c->mem;
    ring_init(&c->ring, 1, &c->geometry, c->mem, c->scratch, SCRATCH_BYTES, -1);
    requests_peer_add(rq, &c->peer, session, 1, 100);
    requests_ring_add(rq, &c->peer, &c->ring);
    ck_assert_int_eq(requests_space_add(rq, &c->peer, &info, weight, &c->space), 0);
}

static void client_free(struct client *c)
{
    for (int i = 0; i < CANARY_BYTES; i++)
        ck_assert_msg(c->scratch[SCRATCH_BYTES + i] == 0x77, "written past the scratch");
    requests_peer_remove(rq, &c->peer);
    free(c->mem);
    free(c->scratch);
}

static void engine_new(uint32_t max_requests, uint32_t max_waits)
{
    struct requests_config config = {.tiering = &stub,
                                     .engine = 2,
                                     .max_requests = max_requests,
                                     .max_waits = max_waits,
                                     .spin_ns = 1000,
                                     .events = &events};

    memset(&stub, 0, sizeof(stub));
    list_init(&stub.waits);
    now_ns = 1000000;
    broken_why = NULL;
    broken_peer = NULL;
    n_cold = 0;
    ck_assert_int_eq(requests_new(&config, &rq), 0);
}

static void setup(void)
{
    engine_new(64, 64);
    client_new(&a, 7, 100);
}

static void teardown(void)
{
    client_free(&a);
    ck_assert(requests_is_idle(rq));
    ck_assert_uint_eq(stub.n_waits, 0);
    requests_free(rq);
}

static uint32_t turns(int n)
{
    uint32_t done = 0;

    for (int i = 0; i < n; i++)
        done += requests_run(rq, now_ns);
    return done;
}

static struct spw_sqe sqe_of(const struct client *c, uint8_t opcode, uint32_t n_items)
{
    return (struct spw_sqe){
        .opcode = opcode, .space = c->space, .user_data = 42, .n_items = n_items, .results = RESULTS};
}

static struct spw_item *items(struct client *c)
{
    return (void *)c->scratch;
}

static struct spw_handle *handles(struct client *c)
{
    return (void *)c->scratch;
}

static struct spw_result *results(struct client *c)
{
    return (void *)(c->scratch + RESULTS);
}

static struct spw_item item_of(char kind, uint8_t number)
{
    return (struct spw_item){.key = {(uint8_t)kind, number, 1}, .key_len = 3};
}

static void put_items(struct client *c, const char *kinds)
{
    for (uint8_t i = 0; kinds[i]; i++)
        items(c)[i] = item_of(kinds[i], i);
}

static void submit(struct client *c, const struct spw_sqe *sqe)
{
    struct spw_sqe *sqes = (void *)(c->mem + c->geometry.sq_offset);

    sqes[c->sq_tail++ % ENTRIES] = *sqe;
    store_release(&c->shared->client.sq_tail, c->sq_tail);
    if (load_acquire(&c->shared->daemon.sq_flags) & SPW_RING_NEED_WAKEUP)
        requests_ring_hot(rq, &c->ring, now_ns);
}

static bool consume(struct client *c, struct spw_cqe *ret_cqe)
{
    struct spw_cqe *cqes = (void *)(c->mem + c->geometry.cq_offset);

    if (load_acquire(&c->shared->daemon.cq_tail) == c->cq_head)
        return false;
    *ret_cqe = cqes[c->cq_head++ % ENTRIES];
    store_release(&c->shared->client.cq_head, c->cq_head);
    return true;
}

static struct spw_cqe call(struct client *c, const struct spw_sqe *sqe)
{
    struct spw_cqe cqe = {0};

    submit(c, sqe);
    turns(4);
    ck_assert_msg(consume(c, &cqe), "no CQE");
    ck_assert_uint_eq(cqe.user_data, sqe->user_data);
    return cqe;
}

static int status_of(struct client *c, const struct spw_sqe *sqe)
{
    return call(c, sqe).status;
}

/* One item through ACQUIRE: its status. */
static int acquire_item(const struct spw_item *item)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 1);

    items(&a)[0] = *item;
    results(&a)[0].status = 1;
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    return results(&a)[0].status;
}

/* --- Manners ----------------------------------------------------------------------------------------------------- */

START_TEST(test_nop)
{
    struct spw_sqe sqe = {.opcode = SPW_OP_NOP, .user_data = 99};

    ck_assert_int_eq(status_of(&a, &sqe), 0);
}
END_TEST

START_TEST(test_lookup_counts_prefix)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_LOOKUP, 5);

    put_items(&a, "hhmhh");
    struct spw_cqe cqe = call(&a, &sqe);

    ck_assert_int_eq(cqe.status, 0);
    ck_assert_uint_eq(cqe.value, 2);
    ck_assert_int_eq(results(&a)[2].status, -ENOENT);
    ck_assert_int_eq(results(&a)[4].status, 0);
    ck_assert_uint_eq(results(&a)[4].length_bytes, 4096);
}
END_TEST

START_TEST(test_acquire_partial)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 6);
    struct spw_cqe cqe;

    put_items(&a, "hmwewh");
    submit(&a, &sqe);
    turns(2);
    ck_assert(!consume(&a, &cqe));
    ck_assert_uint_eq(stub.n_waits, 2);
    stub_finish(0);
    turns(1);
    ck_assert(!consume(&a, &cqe));
    stub_finish(-EBADMSG);
    turns(1);
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, 0);
    ck_assert_uint_eq(cqe.value, 3);
    const int expected[] = {0, -ENOENT, 0, -EIO, -EBADMSG, 0};

    for (int i = 0; i < 6; i++) {
        ck_assert_int_eq(results(&a)[i].status, expected[i]);
        ck_assert_int_eq(results(&a)[i].lease != 0, expected[i] == 0);
    }
    ck_assert_int_eq(stub.leases, 3);
}
END_TEST

START_TEST(test_handles)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_RELEASE, 3);

    put_items(&a, "hh");
    struct spw_sqe acquire = sqe_of(&a, SPW_OP_ACQUIRE, 2);

    ck_assert_int_eq(status_of(&a, &acquire), 0);
    sqe.space = 0;
    handles(&a)[0] = (struct spw_handle){.lease = 1};
    handles(&a)[1] = (struct spw_handle){.lease = 999};
    handles(&a)[2] = (struct spw_handle){.lease = 2, .flags = SPW_RELEASE_DIRTY | SPW_RELEASE_DISCARD};
    struct spw_cqe cqe = call(&a, &sqe);

    ck_assert_uint_eq(cqe.value, 1);
    ck_assert_int_eq(results(&a)[1].status, -EBADF);
    ck_assert_int_eq(results(&a)[2].status, -EINVAL);
    ck_assert_int_eq(stub.leases, 1);
}
END_TEST

START_TEST(test_pieces)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 2);
    struct spw_cqe cqe;

    /* From the last byte of piece 0 to the first of piece 2; and one that waits, whose second piece fails. */
    put_items(&a, "hw");
    items(&a)[0].offset_bytes = PIECE_BYTES - 1;
    items(&a)[0].length_bytes = PIECE_BYTES + 2;
    items(&a)[1].length_bytes = PIECE_BYTES + 1;
    submit(&a, &sqe);
    turns(2);
    ck_assert_uint_eq(stub.n_waits, 2);
    ck_assert_uint_eq(stub.last_piece, 1);
    ck_assert_uint_eq(stub.last_len, 1);
    stub_finish(0);
    stub_finish(-EIO);
    turns(1);
    ck_assert(consume(&a, &cqe));
    ck_assert_uint_eq(cqe.value, 1); /* items, not pieces */
    ck_assert_uint_eq(results(&a)[0].length_bytes, 1);
    ck_assert_uint_eq(results(&a)[1].length_bytes, PIECE_BYTES);
    ck_assert_uint_eq(results(&a)[2].length_bytes, 1);
    ck_assert_uint_eq(results(&a)[2].offset_bytes, 2 * PIECE_BYTES);
    ck_assert_int_eq(results(&a)[3].status, 0);
    ck_assert_int_eq(results(&a)[4].status, -EIO);
}
END_TEST

START_TEST(test_reserve_sizes)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_RESERVE, 1);

    items(&a)[0] = item_of('h', 0);
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    ck_assert_int_eq(results(&a)[0].status, -EINVAL); /* no size, and the space has none */
    items(&a)[0].length_bytes = PIECE_BYTES + 100;
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    ck_assert_uint_eq(stub.last_object_bytes, PIECE_BYTES + 100);
    ck_assert_uint_eq(stub.last_piece, 1);
    ck_assert_uint_eq(stub.last_len, 100);
    items(&a)[0].length_bytes = OBJECT_BYTES_MAX + 1;
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    ck_assert_int_eq(results(&a)[0].status, -EFBIG);
    ck_assert_uint_eq(results(&a)[0].detail, SPW_LIMIT_OBJECT_BYTES);
    items(&a)[0].length_bytes = 10;
    items(&a)[0].offset_bytes = 1;
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    ck_assert_int_eq(results(&a)[0].status, -EINVAL);
}
END_TEST

START_TEST(test_reserve_without_waiting)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_RESERVE, 1);

    items(&a)[0] = item_of('w', 0);
    items(&a)[0].length_bytes = 10;
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    ck_assert_int_eq(results(&a)[0].status, -ENOSPC);
    ck_assert_uint_eq(results(&a)[0].detail, SPW_LIMIT_POOL_DRAM);
}
END_TEST

START_TEST(test_arena_offsets)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_GET_RANGE, 4);

    put_items(&a, "hmhh");
    for (int i = 0; i < 4; i++)
        items(&a)[i].length_bytes = 3000;
    items(&a)[1].key_len = 40; /* refused, and takes its place all the same */
    sqe.arg[0] = 1;
    sqe.arg[1] = 500;
    struct spw_cqe cqe = call(&a, &sqe);

    ck_assert_uint_eq(cqe.value, 2);
    ck_assert_uint_eq(stub.n_arena, 2);
    ck_assert_uint_eq(stub.arena[0], 500);
    ck_assert_uint_eq(stub.arena[1], 6500);
    ck_assert_int_eq(results(&a)[1].status, -EINVAL);
    ck_assert_int_eq(results(&a)[3].status, -ERANGE); /* the lease has 10000 bytes */
    sqe.arg[1] = UINT64_MAX;
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    ck_assert_int_eq(results(&a)[0].status, -ERANGE);
    sqe.arg[0] = 77;
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    ck_assert_int_eq(results(&a)[0].status, -EBADF);
}
END_TEST

START_TEST(test_each_operation_once)
{
    static const uint8_t ops[] = {SPW_OP_TOUCH, SPW_OP_PREFETCH, SPW_OP_ADVISE, SPW_OP_PIN, SPW_OP_DELETE};

    for (size_t i = 0; i < sizeof(ops); i++) {
        struct spw_sqe sqe = sqe_of(&a, ops[i], 2);

        put_items(&a, "hm");
        sqe.arg[0] = ops[i] == SPW_OP_ADVISE ? SPW_ADVICE_NOT_AGAIN : 0;
        struct spw_cqe cqe = call(&a, &sqe);

        ck_assert_int_eq(cqe.status, 0);
        ck_assert_uint_eq(cqe.value, 1);
        ck_assert_int_eq(results(&a)[0].status, 0);
        ck_assert_int_eq(results(&a)[1].status, -ENOENT);
    }
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_TENSOR, 1);

    put_items(&a, "h");
    items(&a)[0].length_bytes = 100 * MIB;
    ck_assert_uint_eq(call(&a, &sqe).value, 1);
    ck_assert_uint_eq(stub.last_object_bytes, 100 * MIB);
    sqe = sqe_of(&a, SPW_OP_STAT, 0);
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    ck_assert_uint_eq(((struct spw_stat *)(void *)results(&a))->dram_budget, 12345);
}
END_TEST

/* --- Waiting ----------------------------------------------------------------------------------------------------- */

START_TEST(test_timeout)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 2);
    struct spw_cqe cqe;

    put_items(&a, "hw");
    sqe.timeout_ms = 100;
    submit(&a, &sqe);
    turns(2);
    ck_assert_uint_eq(requests_next_ns(rq, now_ns), now_ns + 100 * MS);
    now_ns += 100 * MS - 1;
    turns(2);
    ck_assert(!consume(&a, &cqe));
    now_ns += 1;
    turns(2);
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, 0); /* one was granted: look at the results */
    ck_assert_int_eq(results(&a)[0].status, 0);
    ck_assert_int_eq(results(&a)[1].status, -ETIMEDOUT);
    ck_assert_uint_eq(stub.cancelled, 1);
    ck_assert_uint_eq(requests_next_ns(rq, now_ns), UINT64_MAX);

    items(&a)[0] = item_of('w', 0);
    items(&a)[0].length_bytes = 10;
    sqe = sqe_of(&a, SPW_OP_RESERVE, 1);
    sqe.timeout_ms = UINT32_MAX; /* the daemon's own bound */
    submit(&a, &sqe);
    turns(2);
    now_ns += REQUEST_TIMEOUT_MS_MAX * MS;
    turns(2);
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, -ENOSPC);
    ck_assert_int_eq(results(&a)[0].status, -ENOSPC);
}
END_TEST

START_TEST(test_cancel)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 2);
    struct spw_sqe cancel = {.opcode = SPW_OP_CANCEL, .user_data = 43, .arg = {42}};
    struct spw_cqe cqe;

    ck_assert_int_eq(status_of(&a, &cancel), -ENOENT);
    put_items(&a, "ww");
    submit(&a, &sqe);
    turns(2);
    submit(&a, &cancel);
    turns(2);
    ck_assert(consume(&a, &cqe));
    ck_assert_uint_eq(cqe.user_data, 43);
    ck_assert_int_eq(cqe.status, 0);
    ck_assert(consume(&a, &cqe));
    ck_assert_uint_eq(cqe.user_data, 42);
    ck_assert_int_eq(cqe.status, -ECANCELED);
    ck_assert_uint_eq(stub.n_waits, 0);
}
END_TEST

START_TEST(test_waits_run_out)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 100);
    struct spw_cqe cqe;

    for (uint8_t i = 0; i < 100; i++)
        items(&a)[i] = item_of('w', i);
    submit(&a, &sqe);
    turns(10);
    /* Alone, a session gets half: a wait only while it holds fewer than are free. */
    ck_assert_uint_eq(stub.n_waits, 32);
    ck_assert_uint_eq(turns(3), 0); /* it does not spin, */
    ck_assert(!requests_wants_spin(rq));
    ck_assert_uint_le(requests_next_ns(rq, now_ns), now_ns + 10 * MS); /* but comes back */
    for (int i = 0; i < 100; i++) {
        ck_assert(!consume(&a, &cqe));
        stub_finish(0);
        turns(2);
    }
    ck_assert(consume(&a, &cqe));
    ck_assert_uint_eq(cqe.value, 100);
}
END_TEST

START_TEST(test_tiering_runs_out)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 3);
    struct spw_cqe cqe;

    put_items(&a, "hqh");
    stub.q_left = 4; /* two tries in the turn that gets there, one in each that follows */
    submit(&a, &sqe);
    turns(2);
    ck_assert(!consume(&a, &cqe));
    turns(2);
    ck_assert(consume(&a, &cqe));
    ck_assert_uint_eq(cqe.value, 3);
}
END_TEST

START_TEST(test_requests_run_out)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 1);
    struct spw_cqe cqe;

    client_free(&a);
    requests_free(rq);
    engine_new(8, 64);
    client_new(&a, 7, 100);
    client_new(&b, 8, 100);
    put_items(&a, "w");
    for (int i = 0; i < 10; i++)
        submit(&a, &sqe);
    turns(5);
    ck_assert_uint_eq(stub.n_waits, 4); /* the other half is for others */
    struct spw_sqe nop = {.opcode = SPW_OP_NOP, .user_data = 1};

    ck_assert_int_eq(status_of(&b, &nop), 0);
    for (int i = 0; i < 10; i++) {
        stub_finish(0);
        turns(2);
        ck_assert(consume(&a, &cqe));
    }
    client_free(&b);
}
END_TEST

START_TEST(test_cq_is_never_overrun)
{
    struct spw_sqe nop = {.opcode = SPW_OP_NOP};
    struct spw_cqe cqe;
    uint64_t expected = 0, sent = 0;

    for (; sent < ENTRIES; sent++) {
        nop.user_data = sent;
        submit(&a, &nop);
    }
    turns(2);
    for (; sent < 2 * ENTRIES; sent++) {
        nop.user_data = sent;
        submit(&a, &nop);
    }
    turns(4);
    ck_assert_uint_eq(a.shared->daemon.cq_tail, ENTRIES);
    ck_assert_uint_eq(a.shared->daemon.sq_head, ENTRIES);
    ck_assert(!requests_wants_spin(rq));
    for (; consume(&a, &cqe); expected++) {
        ck_assert_uint_eq(cqe.user_data, expected);
        turns(1);
    }
    ck_assert_uint_eq(expected, 2 * ENTRIES);
    ck_assert_ptr_null(broken_why);
}
END_TEST

START_TEST(test_peer_removed_while_waiting)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 4);

    put_items(&a, "hwww");
    submit(&a, &sqe);
    turns(2);
    stub_finish(0); /* ended, not yet collected */
    client_free(&a);
    ck_assert_uint_eq(stub.n_waits, 0);
    ck_assert_uint_eq(stub.cancelled, 2);
    turns(2);
    ck_assert(requests_is_idle(rq));
    client_new(&a, 9, 100);
}
END_TEST

START_TEST(test_weights)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_TOUCH, 500);

    client_new(&b, 8, 300);
    for (int i = 0; i < 500; i++)
        items(&a)[i] = items(&b)[i] = item_of('h', (uint8_t)i);
    submit(&a, &sqe);
    sqe.space = b.space;
    submit(&b, &sqe);
    results(&a)[63].status = results(&b)[63].status = 1;
    for (int i = 0; i < 500; i++)
        results(&a)[i].status = results(&b)[i].status = 1;
    turns(2);
    int served[2] = {0, 0};

    for (int i = 0; i < 500; i++) {
        served[0] += results(&a)[i].status == 0;
        served[1] += results(&b)[i].status == 0;
    }
    ck_assert_int_ge(served[0], 2 * QUANTUM_ITEMS - 2);
    ck_assert_int_le(served[0], 2 * QUANTUM_ITEMS);
    ck_assert_int_ge(served[1], 6 * QUANTUM_ITEMS - 2);
    ck_assert_int_le(served[1], 6 * QUANTUM_ITEMS);
    client_free(&b);
}
END_TEST

START_TEST(test_sleep)
{
    struct spw_sqe nop = {.opcode = SPW_OP_NOP};

    ck_assert_int_eq(status_of(&a, &nop), 0);
    n_cold = 0;
    turns(1);
    ck_assert(requests_wants_spin(rq));
    now_ns += 1001;
    turns(1);
    ck_assert_uint_eq(n_cold, 1);
    ck_assert(!requests_wants_spin(rq));
    ck_assert_uint_eq(a.shared->daemon.sq_flags, SPW_RING_NEED_WAKEUP);
    ck_assert_int_eq(status_of(&a, &nop), 0);
    ck_assert_uint_eq(a.shared->daemon.sq_flags, 0);
}
END_TEST

/* --- All or nothing, and SYNC ------------------------------------------------------------------------------------ */

START_TEST(test_all_succeeds)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 3);
    struct spw_cqe cqe;

    put_items(&a, "hwh");
    sqe.flags = SPW_SQE_ALL;
    results(&a)[0].status = 1;
    submit(&a, &sqe);
    turns(2);
    ck_assert_int_eq(results(&a)[0].status, 1); /* nothing is told before the end */
    stub_finish(0);
    turns(1);
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, 0);
    ck_assert_uint_eq(cqe.value, 3);
    for (int i = 0; i < 3; i++)
        ck_assert_uint_ne(results(&a)[i].lease, 0);
}
END_TEST

START_TEST(test_all_fails_at_once)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 4);

    put_items(&a, "hweh"); /* fails in tiering, after two were taken */
    sqe.flags = SPW_SQE_ALL;
    ck_assert_int_eq(status_of(&a, &sqe), -EIO);
    ck_assert_int_eq(stub.leases, 0);
    ck_assert_uint_eq(stub.n_waits, 0);
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(results(&a)[i].status, i == 2 ? -EIO : -ECANCELED);
        ck_assert_uint_eq(results(&a)[i].lease, 0);
    }
    put_items(&a, "hhm"); /* fails before anything is taken */
    sqe.n_items = 3;
    ck_assert_int_eq(status_of(&a, &sqe), -ENOENT);
    ck_assert_int_eq(results(&a)[2].status, -ENOENT);
    ck_assert_int_eq(results(&a)[0].status, -ECANCELED);
}
END_TEST

START_TEST(test_all_fails_late)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 4);
    struct spw_cqe cqe;

    put_items(&a, "hwww");
    sqe.flags = SPW_SQE_ALL;
    submit(&a, &sqe);
    turns(2);
    stub_finish(0);
    stub_finish(-EBADMSG);
    turns(2);
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, -EBADMSG);
    ck_assert_int_eq(results(&a)[2].status, -EBADMSG);
    ck_assert_int_eq(results(&a)[1].status, -ECANCELED);
    ck_assert_int_eq(stub.leases, 0);
    ck_assert_uint_eq(stub.n_waits, 0);
}
END_TEST

START_TEST(test_all_waits_for_lease_bytes)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 2);
    struct spw_cqe cqe;

    put_items(&a, "hh");
    sqe.flags = SPW_SQE_ALL;
    stub.full = true;
    ck_assert_int_eq(status_of(&a, &sqe), -ENOSPC); /* timeout 0 */
    sqe.timeout_ms = 50;
    submit(&a, &sqe);
    turns(3);
    ck_assert(!consume(&a, &cqe));
    ck_assert_int_eq(stub.leases, 0);
    stub.full = false;
    turns(1);
    ck_assert(!consume(&a, &cqe)); /* nothing tells it yet, */
    now_ns += 10 * MS;
    turns(1); /* so it looks again by itself */
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, 0);
    stub.full = true;
    submit(&a, &sqe);
    turns(2);
    now_ns += 50 * MS;
    turns(2);
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, -ETIMEDOUT);
    ck_assert_int_eq(results(&a)[1].status, -ECANCELED);
}
END_TEST

START_TEST(test_all_too_many)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 33);

    for (uint8_t i = 0; i < 33; i++)
        items(&a)[i] = item_of('h', i);
    sqe.flags = SPW_SQE_ALL;
    struct spw_cqe cqe = call(&a, &sqe);

    ck_assert_int_eq(cqe.status, -E2BIG);
    ck_assert_uint_eq(cqe.detail, SPW_LIMIT_PIECES);
    ck_assert_int_eq(stub.leases, 0);
}
END_TEST

START_TEST(test_sync)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_SYNC, 2);
    struct spw_cqe cqe;

    put_items(&a, "hm");
    ck_assert_int_eq(status_of(&a, &sqe), -ENOENT);
    ck_assert_uint_eq(stub.syncs, 0);
    put_items(&a, "hh");
    submit(&a, &sqe);
    turns(2);
    ck_assert_uint_eq(stub.sync_adds, 2);
    ck_assert(!consume(&a, &cqe));
    stub.sync->done(stub.sync, 0);
    turns(1);
    ck_assert(consume(&a, &cqe));
    ck_assert_uint_eq(cqe.value, 2);
    ck_assert_int_eq(results(&a)[1].status, 0);

    /* The whole space; the client's patience ends first, then its session, then the sync. */
    sqe.n_items = 0;
    sqe.timeout_ms = 10;
    submit(&a, &sqe);
    turns(2);
    ck_assert_uint_eq(stub.sync_adds, 1000);
    now_ns += 10 * MS;
    turns(1);
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, -ETIMEDOUT);
    struct tiering_sync *first = stub.sync;

    submit(&a, &sqe);
    turns(2);
    client_free(&a);
    ck_assert(!requests_is_idle(rq));
    first->done(first, 0);
    stub.sync->done(stub.sync, -EIO);
    turns(1);
    ck_assert(requests_is_idle(rq));
    client_new(&a, 9, 100);
}
END_TEST

/* --- No manners -------------------------------------------------------------------------------------------------- */

START_TEST(test_tail_too_far)
{
    store_release(&a.shared->client.sq_tail, UINT32_C(1) << 31);
    turns(1);
    ck_assert_ptr_eq(broken_peer, &a.peer);
    turns(3);
    ck_assert_uint_eq(a.shared->daemon.sq_head, 0);
}
END_TEST

START_TEST(test_tail_one_too_far)
{
    store_release(&a.shared->client.sq_tail, ENTRIES + 1);
    turns(1);
    ck_assert_ptr_nonnull(broken_why);
}
END_TEST

START_TEST(test_cq_head_from_nowhere)
{
    struct spw_sqe nop = {.opcode = SPW_OP_NOP};

    for (int i = 0; i < ENTRIES; i++)
        submit(&a, &nop);
    turns(1);
    store_release(&a.shared->client.cq_head, ENTRIES + 1); /* past what was published */
    submit(&a, &nop);
    turns(2);
    ck_assert_ptr_nonnull(broken_why);
}
END_TEST

/* Each reserved bit of an SQE, one by one. */
START_TEST(test_sqe_reserved)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_LOOKUP, 1);

    put_items(&a, "h");
    switch (_i) {
    case 0:
        sqe.reserved0 = 1;
        break;
    case 1:
        sqe.reserved[0] = 1;
        break;
    case 2:
        sqe.reserved[1] = UINT64_C(1) << 63;
        break;
    case 3:
        sqe.flags = 0x10;
        break;
    case 4:
        sqe.opcode = SPW_OPS;
        break;
    case 5:
        sqe.opcode = 255;
        break;
    }
    submit(&a, &sqe);
    turns(2);
    ck_assert_ptr_eq(broken_peer, &a.peer);
    ck_assert_uint_eq(a.shared->daemon.cq_tail, 0);
}
END_TEST

START_TEST(test_item_reserved)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_LOOKUP, 2);

    put_items(&a, "hh");
    switch (_i) {
    case 0:
        items(&a)[1].flags = 1;
        break;
    case 1:
        items(&a)[1].reserved0 = 1;
        break;
    case 2:
        items(&a)[1].reserved1 = 1;
        break;
    case 3:
        sqe = sqe_of(&a, SPW_OP_RELEASE, 1);
        sqe.space = 0;
        handles(&a)[0] = (struct spw_handle){.lease = 1, .flags = 4};
        break;
    case 4:
        sqe = sqe_of(&a, SPW_OP_COMMIT, 1);
        sqe.space = 0;
        handles(&a)[0] = (struct spw_handle){.lease = 1, .flags = SPW_RELEASE_DIRTY};
        break;
    case 5:
        sqe = sqe_of(&a, SPW_OP_RELEASE, 1);
        sqe.space = 0;
        handles(&a)[0] = (struct spw_handle){.lease = 1, .reserved = 1};
        break;
    case 6:
        sqe.opcode = SPW_OP_ACQUIRE;
        sqe.flags = SPW_SQE_ALL;
        items(&a)[1].flags = 1;
        break;
    }
    submit(&a, &sqe);
    turns(2);
    ck_assert_ptr_eq(broken_peer, &a.peer);
}
END_TEST

START_TEST(test_sqe_mistakes)
{
    static const struct {
        uint32_t items, n_items, results;
        int expected;
    } cases[] = {
        {32, 1, RESULTS, -EINVAL},
        {0, 1, RESULTS + 8, -EINVAL},
        {0, 0, RESULTS, -EINVAL},
        {0, SPW_LIST_MAX + 1, RESULTS, -EINVAL},
        {0, UINT32_MAX, RESULTS, -EINVAL},
        {SCRATCH_BYTES, 1, RESULTS, -ERANGE},
        {UINT32_MAX - 63, 1, RESULTS, -ERANGE},
        {0, 1, SCRATCH_BYTES, -ERANGE},
        {0, 1, UINT32_MAX - 63, -ERANGE},
        {0, SPW_LIST_MAX, RESULTS, -ERANGE},
        {SCRATCH_BYTES - 64, 2, RESULTS, -ERANGE},
        {0, 2, SCRATCH_BYTES - 64, -ERANGE},
    };

    put_items(&a, "hh");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct spw_sqe sqe = sqe_of(&a, SPW_OP_LOOKUP, cases[i].n_items);

        sqe.items = cases[i].items;
        sqe.results = cases[i].results;
        ck_assert_msg(status_of(&a, &sqe) == cases[i].expected, "case %zu", i);
    }
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_LOOKUP, 1);

    sqe.flags = SPW_SQE_WRITE; /* known, but not here */
    ck_assert_int_eq(status_of(&a, &sqe), -EINVAL);
    sqe = sqe_of(&a, SPW_OP_LOOKUP, 1);
    sqe.arg[0] = 1;
    ck_assert_int_eq(status_of(&a, &sqe), -EINVAL);
    sqe = sqe_of(&a, SPW_OP_STAT, 0);
    sqe.results = SCRATCH_BYTES - 64;
    ck_assert_int_eq(status_of(&a, &sqe), -ERANGE);
    sqe = sqe_of(&a, SPW_OP_PIN, 1);
    sqe.arg[0] = UINT64_MAX;
    ck_assert_int_eq(status_of(&a, &sqe), -ERANGE);
    ck_assert_ptr_null(broken_why);
}
END_TEST

START_TEST(test_space_handles)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_LOOKUP, 1);

    put_items(&a, "h");
    sqe.space = a.space + 1; /* another generation: another session's */
    ck_assert_int_eq(status_of(&a, &sqe), -EBADF);
    sqe.space = a.space ^ (1U << 26); /* another engine's */
    ck_assert_int_eq(status_of(&a, &sqe), -EXDEV);
    sqe.space = a.space + (1U << 16); /* not opened */
    ck_assert_int_eq(status_of(&a, &sqe), -EBADF);
    sqe.space = 0;
    ck_assert_int_eq(status_of(&a, &sqe), -EBADF);
    sqe.space = UINT32_MAX;
    ck_assert_int_eq(status_of(&a, &sqe), -EBADF);
    sqe = (struct spw_sqe){.opcode = SPW_OP_NOP, .space = a.space};
    ck_assert_int_eq(status_of(&a, &sqe), -EINVAL);
}
END_TEST

START_TEST(test_item_mistakes)
{
    struct spw_item item = item_of('h', 0);

    ck_assert_int_eq(acquire_item(&item), 0);
    item.key_len = 0;
    ck_assert_int_eq(acquire_item(&item), -EINVAL);
    item.key_len = 33;
    ck_assert_int_eq(acquire_item(&item), -EINVAL);
    item.key_len = 255;
    ck_assert_int_eq(acquire_item(&item), -EINVAL);
    item.key_len = 2; /* the third byte is not zero */
    ck_assert_int_eq(acquire_item(&item), -EINVAL);
    item = item_of('h', 0);
    item.key[31] = 1;
    ck_assert_int_eq(acquire_item(&item), -EINVAL);
    item.key_len = 32;
    ck_assert_int_eq(acquire_item(&item), 0);
    item.part = 1;
    ck_assert_int_eq(acquire_item(&item), -EINVAL);
    item.n_parts = 2;
    ck_assert_int_eq(acquire_item(&item), 0);
    item.n_parts = PARTS_MAX + 1;
    ck_assert_int_eq(acquire_item(&item), -EINVAL);
    item = item_of('h', 0);
    item.offset_bytes = 1; /* without a length */
    ck_assert_int_eq(acquire_item(&item), -EINVAL);
    item.offset_bytes = UINT64_MAX - 4095;
    item.length_bytes = 8192;
    ck_assert_int_eq(acquire_item(&item), -ERANGE);
    item.offset_bytes = 0;
    item.length_bytes = UINT64_MAX;
    ck_assert_int_eq(acquire_item(&item), -ERANGE);
    ck_assert_ptr_null(broken_why);
}
END_TEST

/* 2^32 + 4096 is not 4096: it takes that many pieces, or is refused as a whole. */
START_TEST(test_length_is_not_narrowed)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 2);

    put_items(&a, "hh");
    items(&a)[0].length_bytes = UINT64_C(0x100001000); /* 65537 pieces */
    struct spw_cqe cqe = call(&a, &sqe);

    ck_assert_int_eq(cqe.status, -E2BIG);
    ck_assert_uint_eq(cqe.detail, SPW_LIMIT_PIECES);
    ck_assert_int_eq(stub.leases, 0);
}
END_TEST

START_TEST(test_results_do_not_fit)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 2);

    put_items(&a, "hh");
    items(&a)[1].length_bytes = 60 * PIECE_BYTES;
    sqe.results = SCRATCH_BYTES - 40 * 64; /* 64 results: 1 and 60 fit */
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    items(&a)[1].length_bytes = 64 * PIECE_BYTES;
    ck_assert_int_eq(status_of(&a, &sqe), -EOVERFLOW);
    sqe.flags = SPW_SQE_ALL;
    ck_assert_int_eq(status_of(&a, &sqe), -EOVERFLOW);
}
END_TEST

/* A refused item takes the results that were promised for it, so those behind it lie where the client looks. */
START_TEST(test_refused_item_keeps_its_results)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 2);

    put_items(&a, "hh");
    items(&a)[0].length_bytes = 3 * PIECE_BYTES;
    items(&a)[0].key_len = 0;
    struct spw_cqe cqe = call(&a, &sqe);

    ck_assert_uint_eq(cqe.value, 1);
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(results(&a)[i].status, -EINVAL);
    ck_assert_int_eq(results(&a)[3].status, 0);
}
END_TEST

/* --- Racing ------------------------------------------------------------------------------------------------------ */

static uint32_t race_stop;

static void *race_main(void *arg)
{
    struct client *c = arg;
    volatile struct spw_sqe *sqes = (void *)(c->mem + c->geometry.sq_offset);
    volatile struct spw_item *item = (void *)c->scratch;

    for (uint32_t x = 12345; !load_relaxed(&race_stop); x = x * 1664525 + 1013904223) {
        for (int i = 0; i < ENTRIES; i++) {
            sqes[i].n_items = x & 1 ? 1 : x;
            sqes[i].items = x & 2 ? 0 : x & ~63U;
            sqes[i].results = x & 4 ? RESULTS : x & ~63U;
        }
        item->length_bytes = x & 8 ? 4096 : (uint64_t)x << 20;
        item->offset_bytes = x & 16 ? 0 : (uint64_t)x << 33;
        item->key_len = (uint8_t)(x & 32 ? 3 : x >> 8);
    }
    return NULL;
}

/* TSan would be right to complain: races are what this is about. What must hold is that nothing outside is touched. */
START_TEST(test_racing_client)
{
    pthread_t thread;
    struct spw_cqe cqe;
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 1);

    put_items(&a, "hw");
    race_stop = 0;
    ck_assert_int_eq(pthread_create(&thread, NULL, race_main, &a), 0);
    for (uint32_t i = 0; i < 100000; i++) {
        sqe.flags = i & 1 ? SPW_SQE_ALL : 0;
        submit(&a, &sqe);
        turns(2);
        while (stub.n_waits > 0)
            stub_finish(0);
        turns(1);
        while (consume(&a, &cqe))
            ;
    }
    store_relaxed(&race_stop, 1);
    pthread_join(thread, NULL);
    while (stub.n_waits > 0) {
        stub_finish(0);
        turns(2);
    }
}
END_TEST

/* ----------------------------------------------------------------------------------------------------------------- */

int main(void)
{
    Suite *suite = suite_create("request");
    TCase *tc = tcase_create("manners");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_nop);
    tcase_add_test(tc, test_lookup_counts_prefix);
    tcase_add_test(tc, test_acquire_partial);
    tcase_add_test(tc, test_handles);
    tcase_add_test(tc, test_pieces);
    tcase_add_test(tc, test_reserve_sizes);
    tcase_add_test(tc, test_reserve_without_waiting);
    tcase_add_test(tc, test_arena_offsets);
    tcase_add_test(tc, test_each_operation_once);
    tcase_add_test(tc, test_timeout);
    tcase_add_test(tc, test_cancel);
    tcase_add_test(tc, test_waits_run_out);
    tcase_add_test(tc, test_tiering_runs_out);
    tcase_add_test(tc, test_requests_run_out);
    tcase_add_test(tc, test_cq_is_never_overrun);
    tcase_add_test(tc, test_peer_removed_while_waiting);
    tcase_add_test(tc, test_weights);
    tcase_add_test(tc, test_sleep);
    tcase_add_test(tc, test_all_succeeds);
    tcase_add_test(tc, test_all_fails_at_once);
    tcase_add_test(tc, test_all_fails_late);
    tcase_add_test(tc, test_all_waits_for_lease_bytes);
    tcase_add_test(tc, test_all_too_many);
    tcase_add_test(tc, test_sync);
    suite_add_tcase(suite, tc);
    tc = tcase_create("no manners");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, test_tail_too_far);
    tcase_add_test(tc, test_tail_one_too_far);
    tcase_add_test(tc, test_cq_head_from_nowhere);
    tcase_add_loop_test(tc, test_sqe_reserved, 0, 6);
    tcase_add_loop_test(tc, test_item_reserved, 0, 7);
    tcase_add_test(tc, test_sqe_mistakes);
    tcase_add_test(tc, test_space_handles);
    tcase_add_test(tc, test_item_mistakes);
    tcase_add_test(tc, test_length_is_not_narrowed);
    tcase_add_test(tc, test_results_do_not_fit);
    tcase_add_test(tc, test_refused_item_keeps_its_results);
    tcase_add_test(tc, test_racing_client);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
