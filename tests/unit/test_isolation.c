/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What others do does not move a session's service, in virtual time: the real request path, tiering, store and device queue, on
 * the simulator's device, with a clock that says what things cost: an engine's turn, each item that it serves in it, a
 * device's latency and bytes. A victim asks for one thing after the other; its mean time is compared.
 *
 * Who stalls or lies costs nothing: the victim's time is as if nobody was there. Who floods cannot be had for nothing, since an
 * engine and a device are shared: the victim's time is what it is beside one neighbour with manners that always has something
 * to do, or, for a read, what a device needs for the bytes that it has of several at a time, if that is longer: a newcomer
 * stands behind those, and behind nothing else. So with who makes objects of many pieces, and deletes them. However many sessions a user has, and whatever they ask for, it does not get more
 * than that. 5 % at most. Neighbours are of another pool, or of the victim's own.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/request.h"
#include "io/blk_queue.h"
#include "tests/unit/support/tiering_rig.h"

#define TURN_NS 1000
#define ITEM_NS 150
#define DEVICE_NS 70000 /* latency of a request */
#define DEVICE_BYTES_PER_US 6000
#define DEVICE_DEPTH 128
#define ENTRIES 64
#define SCRATCH_BYTES (1 << 20)
#define RESULTS (512 << 10)
#define OBJECTS 60 /* of each of the two; twice as many as their memory holds */
#define SESSIONS 16
#define PIECES 200   /* of an object that is made to be deleted */
#define HIT_OPS 4000 /* what comes in bursts must be seen as often as it comes */
#define READ_OPS 400
#define WARM_OPS 50

enum service { HITS, READS };
enum neighbour { NOBODY, HONEST, FLOODS, PARKS, MAKES, STALLS, LIES };

struct flight {
    struct io_blk copy; /* what the simulated device is told: a part of it, perhaps */
    struct io_blk *blk;
    uint32_t part_bytes;
    uint64_t ends_ns;
    struct isolation *iso;
    bool used, done;
};

struct party {
    struct peer peer;
    struct ring ring;
    struct ring_geometry geometry;
    struct spw_ring *shared;
    char *mem, *scratch;
    uint32_t space, sq_tail, cq_head;
    bool alive;
};

struct isolation {
    struct io_backend be;
    struct io_backend *disk;
    struct rig rig;
    struct requests *rq;
    struct blk_queue queue;
    uint32_t weights[IO_LANES];
    struct flight flights[DEVICE_DEPTH];
    uint32_t n_flights;
    uint64_t now_ns, device_free_ns;
    bool is_on; /* time costs something */
    enum neighbour neighbour;
    enum service service;
    enum rig_space own, space; /* the victim's; the neighbours' */
    uint32_t n_parties;
    struct party victim, parties[SESSIONS];
    uint64_t n_broken, n_served;
};

static struct isolation *iso;
static struct pool_gpu_stat gpus[POOLS_MAX];

/* --- The device -------------------------------------------------------------------------------------------------------- */

static struct io_backend *disk_of(struct io_backend *be)
{
    return container_of(be, struct isolation, be)->disk;
}

static void wire_blk_submit(struct io_backend *be, struct io_blk *blk)
{
    if (iso->is_on)
        blk_queue_push(&iso->queue, blk);
    else
        disk_of(be)->ops->blk_submit(disk_of(be), blk);
}

static void wire_blk_urge(struct io_backend *be, struct io_blk *blk)
{
    (void)be;
    if (iso->is_on && blk->queued)
        blk_queue_urge(&iso->queue, blk);
}

static void wire_work_submit(struct io_backend *be, struct io_work *work)
{
    disk_of(be)->ops->work_submit(disk_of(be), work);
}

static void wire_chunk_request(struct io_backend *be, struct io_chunk *chunk)
{
    disk_of(be)->ops->chunk_request(disk_of(be), chunk);
}

static void wire_chunk_close(struct io_backend *be, uint32_t region)
{
    disk_of(be)->ops->chunk_close(disk_of(be), region);
}

static int wire_bounce_alloc(struct io_backend *be, uint64_t size_bytes, struct io_buf *ret_buf, void **ret_mem)
{
    return disk_of(be)->ops->bounce_alloc(disk_of(be), size_bytes, ret_buf, ret_mem);
}

static void wire_records_touch(struct io_backend *be, void *mem, uint64_t size_bytes)
{
    disk_of(be)->ops->records_touch(disk_of(be), mem, size_bytes);
}

static int wire_blk_now(struct io_backend *be, enum io_blk_op op, uint32_t dev, uint64_t off_bytes, void *mem,
                        uint64_t len_bytes)
{
    return disk_of(be)->ops->blk_now(disk_of(be), op, dev, off_bytes, mem, len_bytes);
}

static const struct io_backend_ops wire_ops = {
    .blk_submit = wire_blk_submit,
    .blk_urge = wire_blk_urge,
    .work_submit = wire_work_submit,
    .chunk_request = wire_chunk_request,
    .chunk_close = wire_chunk_close,
    .bounce_alloc = wire_bounce_alloc,
    .records_touch = wire_records_touch,
    .blk_now = wire_blk_now,
};

/* The device takes what its queue gives, moves bytes one after the other, and answers a while later. */
static void device_fill(void)
{
    struct io_blk *blk;

    while (iso->n_flights < DEVICE_DEPTH && (blk = blk_queue_next(&iso->queue)) != NULL) {
        struct flight *f = iso->flights;
        uint32_t part_bytes = blk_queue_part(&iso->queue, blk);

        while (f->used)
            f++;
        blk_queue_take(&iso->queue, blk, part_bytes, iso->weights);
        iso->device_free_ns = MAX(iso->device_free_ns, iso->now_ns) + (uint64_t)part_bytes * 1000 / DEVICE_BYTES_PER_US;
        *f = (struct flight){
            .used = true, .blk = blk, .part_bytes = part_bytes, .ends_ns = iso->device_free_ns + DEVICE_NS};
        iso->n_flights++;
    }
}

static void part_done(struct io_blk *copy)
{
    container_of(copy, struct flight, copy)->done = true;
}

static uint64_t device_next_ns(void)
{
    uint64_t next_ns = UINT64_MAX;

    for (uint32_t i = 0; i < DEVICE_DEPTH; i++)
        if (iso->flights[i].used)
            next_ns = MIN(next_ns, iso->flights[i].ends_ns);
    return next_ns;
}

static void device_ends(void)
{
    for (uint64_t next_ns; (next_ns = device_next_ns()) <= iso->now_ns;) {
        struct flight *f = iso->flights;

        while (!f->used || f->ends_ns != next_ns)
            f++;
        f->copy = *f->blk;
        f->copy.len_bytes = f->part_bytes;
        f->copy.done = part_done;
        f->done = false;
        iso->disk->ops->blk_submit(iso->disk, &f->copy);
        while (!f->done)
            ck_assert(simdisk_step(iso->rig.disk));
        f->used = false;
        iso->n_flights--;
        f->blk->result = f->copy.result;
        blk_queue_done(&iso->queue, f->blk, f->part_bytes);
        f->blk->done(f->blk);
    }
    while (simdisk_step(iso->rig.disk)) /* what workers have */
        ;
}

/* --- Clients ----------------------------------------------------------------------------------------------------------- */

static void on_broken(void *ctx, struct peer *peer, const char *why)
{
    (void)ctx;
    (void)why;
    ck_assert_ptr_ne(peer, &iso->victim.peer);
    container_of(peer, struct party, peer)->alive = false;
    iso->n_broken++;
}

static int on_cold(void *ctx, struct ring *ring)
{
    (void)ctx;
    (void)ring;
    return 0;
}

static void on_lane_gone(void *ctx, void *removal)
{
    (void)ctx;
    (void)removal;
}

static const struct requests_events events = {on_broken, on_cold, on_lane_gone};

static void party_begin(struct party *p, uint64_t session, enum rig_space space, uint64_t user)
{
    ck_assert_int_eq(ring_geometry(ENTRIES, ENTRIES, &p->geometry), 0);
    *p = (struct party){.geometry = p->geometry, .alive = true};
    p->mem = calloc(1, p->geometry.ring_bytes);
    p->scratch = aligned_alloc(64, SCRATCH_BYTES);
    ck_assert(p->mem && p->scratch);
    memset(p->scratch, 0, SCRATCH_BYTES);
    p->shared = (void *)p->mem;
    ring_init(&p->ring, 0, &p->geometry, p->mem, p->scratch, SCRATCH_BYTES, -1);
    requests_peer_add(iso->rq, &p->peer, session, session, 1000);
    requests_peer_user(iso->rq, &p->peer, user);
    requests_ring_add(iso->rq, &p->peer, &p->ring);
    ck_assert_int_eq(requests_space_add(iso->rq, &p->peer, &iso->rig.spaces[space], 100, &p->space), 0);
}

static void party_end(struct party *p)
{
    requests_peer_remove(iso->rq, &p->peer, false);
    free(p->mem);
    free(p->scratch);
    p->alive = false;
}

static void submit(struct party *p, const struct spw_sqe *sqe)
{
    ((struct spw_sqe *)(void *)(p->mem + p->geometry.sq_offset))[p->sq_tail++ % ENTRIES] = *sqe;
    store_release(&p->shared->client.sq_tail, p->sq_tail);
    if (load_acquire(&p->shared->daemon.sq_flags) & SPW_RING_NEED_WAKEUP)
        requests_ring_hot(iso->rq, &p->ring, iso->now_ns);
}

static bool has_room(const struct party *p)
{
    return p->sq_tail - load_acquire(&p->shared->daemon.sq_head) < ENTRIES;
}

static bool consume(struct party *p, struct spw_cqe *ret_cqe)
{
    if (load_acquire(&p->shared->daemon.cq_tail) == p->cq_head)
        return false;
    *ret_cqe = ((const struct spw_cqe *)(const void *)(p->mem + p->geometry.cq_offset))[p->cq_head++ % ENTRIES];
    store_release(&p->shared->client.cq_head, p->cq_head);
    return true;
}

static struct spw_item item_of(enum rig_space space, uint32_t key)
{
    struct tiering_id id = rig_id(&iso->rig, space, key % OBJECTS);
    struct spw_item item = {.key_len = id.key_len, .group = id.group};

    memcpy(item.key, id.key, id.key_len);
    return item;
}

static void ask(struct party *p, uint8_t opcode, enum rig_space space, uint32_t first, uint32_t n)
{
    struct spw_item *items = (void *)p->scratch;
    struct spw_sqe sqe = {.opcode = opcode,
                          .space = p->space,
                          .n_items = n,
                          .results = RESULTS,
                          .user_data = opcode,
                          .timeout_ms = 60000};

    for (uint32_t i = 0; i < n; i++)
        items[i] = item_of(space, first + i);
    submit(p, &sqe);
}

static void release(struct party *p, uint32_t n)
{
    const struct spw_result *results = (const void *)(p->scratch + RESULTS);
    struct spw_handle *handles = (void *)p->scratch;
    struct spw_sqe sqe = {.opcode = SPW_OP_RELEASE, .results = RESULTS, .user_data = SPW_OP_RELEASE};

    for (uint32_t i = 0; i < n; i++)
        if (results[i].status == 0 && results[i].lease)
            handles[sqe.n_items++] = (struct spw_handle){.lease = results[i].lease};
    if (sqe.n_items > 0)
        submit(p, &sqe);
}

/* --- The neighbours ---------------------------------------------------------------------------------------------------- */

/* A list, its answer, the next one: of what is there, or of what comes from the device. */
static void honest_step(struct party *p, uint32_t *seed)
{
    struct spw_cqe cqe;
    bool idle = p->sq_tail == 0;

    while (consume(p, &cqe)) {
        iso->n_served++;
        if (cqe.user_data == SPW_OP_ACQUIRE) {
            uint32_t before = p->sq_tail;

            release(p, 16);
            idle = p->sq_tail == before;
        } else {
            idle = true;
        }
    }
    if (idle && iso->service == HITS && iso->neighbour == HONEST)
        ask(p, SPW_OP_LOOKUP, iso->space, *seed, 4000);
    else if (idle)
        ask(p, SPW_OP_ACQUIRE, iso->space, *seed += 16, 16);
}

/* As much as the ring takes, and all of it at once; it reads answers so that more can come. */
static void flood_step(struct party *p, uint32_t *seed)
{
    struct spw_cqe cqe;

    while (consume(p, &cqe)) {
        iso->n_served++;
        if (cqe.user_data == SPW_OP_ACQUIRE && has_room(p))
            release(p, OBJECTS);
    }
    while (has_room(p))
        ask(p, iso->service == HITS ? SPW_OP_LOOKUP : SPW_OP_ACQUIRE, iso->space, *seed += 7,
            iso->service == HITS ? 4000 : OBJECTS / 2);
}

/* Lists that want all or nothing, and more than there is, so that they are tried again and again: whenever something changes,
 * and the first of its sessions sees to that. */
static void park_step(struct party *p, uint32_t *seed)
{
    struct spw_cqe cqe;

    if (p == &iso->parties[0]) {
        honest_step(p, seed);
        return;
    }
    while (consume(p, &cqe))
        ;
    while (has_room(p) && p->sq_tail < ENTRIES) {
        struct spw_item *items = (void *)p->scratch;
        struct spw_sqe sqe = {.opcode = SPW_OP_ACQUIRE,
                              .flags = SPW_SQE_ALL,
                              .space = p->space,
                              .n_items = 1000,
                              .results = RESULTS,
                              .timeout_ms = 60000};

        for (uint32_t i = 0; i < sqe.n_items; i++)
            items[i] = item_of(iso->space, i);
        submit(p, &sqe);
        iso->n_served++;
    }
}

/* Tensors of many pieces, made and deleted again and again: two requests of one item each. */
static void make_step(struct party *p)
{
    struct spw_cqe cqe;

    while (consume(p, &cqe)) {
        ck_assert_int_eq(cqe.status, 0);
        ck_assert_uint_eq(cqe.value, 1);
        iso->n_served++;
    }
    while (has_room(p)) {
        bool is_made = p->sq_tail % 2;
        struct spw_item *item = (struct spw_item *)(void *)p->scratch + p->sq_tail % ENTRIES;
        struct spw_sqe sqe = {.opcode = is_made ? SPW_OP_DELETE : SPW_OP_TENSOR,
                              .space = p->space,
                              .n_items = 1,
                              .items = p->sq_tail % ENTRIES * sizeof(*item),
                              .results = RESULTS};

        *item = item_of(iso->space, 0);
        item->key[0] ^= 0x80;
        item->key[1] ^= (uint8_t)(p - iso->parties);
        item->length_bytes = is_made ? 0 : (uint64_t)PIECES * RIG_PIECE;
        submit(p, &sqe);
    }
}

/* It takes what it can get, and keeps it; it never looks at an answer. */
static void stall_step(struct party *p)
{
    if (iso->service == READS && p->sq_tail == 0)
        ask(p, SPW_OP_ACQUIRE, iso->space, 0, 16);
    if (iso->service == HITS && has_room(p) && p->sq_tail < 2 * ENTRIES)
        ask(p, SPW_OP_LOOKUP, iso->space, 0, 1);
}

/* It breaks a rule, is thrown out, and comes again, now and then. */
static void lie_step(struct party *p, uint32_t *seed)
{
    if (!p->alive) {
        party_end(p);
        party_begin(p, 1000 + iso->n_broken, iso->space, 2);
        return;
    }
    if (++*seed % 64 != 0)
        return;
    switch (*seed / 64 % 3) {
    case 0:
        store_release(&p->shared->client.sq_tail, p->sq_tail + (1U << 31));
        break;
    case 1:
        submit(p, &(struct spw_sqe){.opcode = SPW_OP_RELEASE, .reserved = 1});
        break;
    default:
        submit(p, &(struct spw_sqe){.opcode = 200});
        break;
    }
    requests_ring_hot(iso->rq, &p->ring, iso->now_ns);
}

static void neighbours_step(void)
{
    static uint32_t seed;

    for (uint32_t i = 0; i < iso->n_parties; i++) {
        switch (iso->neighbour) {
        case HONEST:
            honest_step(&iso->parties[i], &seed);
            break;
        case FLOODS:
            flood_step(&iso->parties[i], &seed);
            break;
        case PARKS:
            park_step(&iso->parties[i], &seed);
            break;
        case MAKES:
            make_step(&iso->parties[i]);
            break;
        case STALLS:
            stall_step(&iso->parties[i]);
            break;
        case LIES:
            lie_step(&iso->parties[i], &seed);
            break;
        case NOBODY:
            break;
        }
    }
}

/* --- A run ------------------------------------------------------------------------------------------------------------- */

static void turn(void)
{
    device_ends();
    tiering_tick(iso->rig.t, iso->now_ns);
    uint64_t walked = tiering_walked(iso->rig.t), n = requests_run(iso->rq, iso->now_ns);

    device_fill();
    neighbours_step();
    walked = tiering_walked(iso->rig.t) - walked; /* that takes its time, whether anybody pays for it or not */
    iso->now_ns += TURN_NS + MAX(n, walked / WALKED_PER_ITEM) * ITEM_NS;
    if (n == 0 && !requests_peek(iso->rq))
        iso->now_ns = MAX(iso->now_ns, MIN(device_next_ns(), iso->now_ns + 20000));
}

static void fill(enum rig_space space)
{
    for (uint32_t i = 0; i < OBJECTS; i++) {
        struct tiering_id id = rig_id(&iso->rig, space, i);

        ck_assert_int_eq(rig_put(&iso->rig, &id, RIG_PIECE, i + 1), 0);
    }
    rig_settle(&iso->rig);
}

static void begin(enum service service, enum neighbour neighbour, bool in_one_pool)
{
    iso = calloc(1, sizeof(*iso));
    ck_assert_ptr_nonnull(iso);
    iso->be.ops = &wire_ops;
    iso->service = service;
    iso->neighbour = neighbour;
    iso->own = in_one_pool ? RIG_SHARED : RIG_CACHE;
    iso->space = in_one_pool ? RIG_SHARED_DURABLE : RIG_SHARED;
    rig_prepare(&iso->rig, &(struct rig_memory){.dram_bytes = 8 * MIB, .device_bytes = 96 * MIB}, 1);
    iso->disk = iso->rig.config.backend;
    iso->rig.config.backend = &iso->be;
    if (in_one_pool)
        iso->rig.pools[1].user_leases_percent = 50;
    else
        iso->rig.pools[1].trusted = true;
    rig_start(&iso->rig);
    fill(iso->own);
    fill(iso->space);
    const struct requests_config config = {.tiering = iso->rig.t,
                                           .max_requests = 1024,
                                           .max_waits = 16384,
                                           .user_percent = 75,
                                           .spin_ns = 100000,
                                           .gpus = gpus,
                                           .events = &events,
                                           .ctx = iso};

    ck_assert_int_eq(requests_new(&config, &iso->rq), 0);
    blk_queue_init(&iso->queue);
    for (uint32_t i = 0; i < IO_LANES; i++)
        iso->weights[i] = 100;
    iso->now_ns = iso->rig.now_ns;
    iso->is_on = true;
    party_begin(&iso->victim, 500, iso->own, 1);
    iso->n_parties = neighbour == NOBODY ? 0 : neighbour == HONEST ? 1 : SESSIONS;
    for (uint32_t i = 0; i < iso->n_parties; i++)
        party_begin(&iso->parties[i], 600 + i, iso->space, 2);
}

static void end(void)
{
    party_end(&iso->victim);
    for (uint32_t i = 0; i < iso->n_parties; i++)
        party_end(&iso->parties[i]);
    for (uint32_t i = 0; i < 10000 && (iso->queue.n > 0 || iso->n_flights > 0 || !requests_is_idle(iso->rq)); i++) {
        iso->n_parties = 0;
        turn();
    }
    requests_free(iso->rq);
    iso->is_on = false;
    iso->rig.now_ns = iso->now_ns;
    rig_close(&iso->rig);
    free(iso);
}

static uint64_t victim_call(uint8_t opcode, uint32_t key)
{
    uint64_t begun_ns = iso->now_ns;
    struct spw_cqe cqe;

    if (opcode == SPW_OP_RELEASE)
        release(&iso->victim, 1);
    else
        ask(&iso->victim, opcode, iso->own, key, 1);
    while (!consume(&iso->victim, &cqe)) {
        turn();
        ck_assert_uint_lt(iso->now_ns - begun_ns, UINT64_C(10000000000));
    }
    ck_assert_int_eq(cqe.status, 0);
    ck_assert_int_eq(((const struct spw_result *)(const void *)(iso->victim.scratch + RESULTS))->status, 0);
    return iso->now_ns - begun_ns;
}

/* The victim's mean time, in nanoseconds: of a lookup, or of a piece that comes from the device. */
static uint64_t mean_ns(enum service service, enum neighbour neighbour, bool in_one_pool)
{
    uint64_t sum_ns = 0;
    uint32_t n = service == HITS ? HIT_OPS : READ_OPS;

    begin(service, neighbour, in_one_pool);
    for (uint32_t i = 0; i < n + WARM_OPS; i++) {
        uint64_t ns = victim_call(service == HITS ? SPW_OP_LOOKUP : SPW_OP_ACQUIRE, i * 17);

        if (service == READS)
            ns += victim_call(SPW_OP_RELEASE, 0);
        sum_ns += i < WARM_OPS ? 0 : ns;
        for (uint32_t k = 0; k < i % 5; k++) /* it does something else for a while */
            turn();
    }
    if (neighbour == LIES)
        ck_assert_uint_gt(iso->n_broken, 10);
    if (neighbour >= HONEST && neighbour <= MAKES)
        ck_assert_uint_gt(iso->n_served, 10);
    end();
    return sum_ns / n;
}

static const char *const names[] = {
    "nobody",     "one with manners", "who floods", "who asks for too much", "who makes large objects",
    "who stalls", "who lies"};

START_TEST(test_service)
{
    enum service service = _i % 2 ? READS : HITS;
    bool in_one_pool = _i / 2;
    uint64_t ns[LIES + 1];

    for (enum neighbour n = NOBODY; n <= LIES; n++) {
        ns[n] = mean_ns(service, n, in_one_pool);
        printf("%s beside %s%s: %llu ns\n", service == HITS ? "hits" : "reads", names[n],
               in_one_pool ? " in its pool" : "", (unsigned long long)ns[n]);
    }
    fflush(stdout);
    for (enum neighbour n = FLOODS; n <= LIES; n++) {
        uint64_t at_device_ns = service == READS ? SHARED_BYTES * 1000 / DEVICE_BYTES_PER_US : 0;
        uint64_t fair_ns = n <= MAKES ? MAX(ns[HONEST], ns[NOBODY] + at_device_ns) : ns[NOBODY];

        ck_assert_msg(ns[n] * 100 <= fair_ns * 105, "beside %s: %llu ns, not %llu", names[n], (unsigned long long)ns[n],
                      (unsigned long long)fair_ns);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("isolation");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, test_service, 0, 4);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
