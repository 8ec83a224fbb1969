/* SPDX-License-Identifier: Apache-2.0 */
/* See clients.h. */
#include "tests/fuzz/support/clients.h"

#include <errno.h>
#include <sys/mman.h>

#include "daemon/request.h"
#include "include/base/atomic.h"
#include "include/spillway/abi.h"
#include "tests/fuzz/support/changing.h"

#define ENTRIES 8
#define RESULTS 4096 /* in scratch, of most requests */
#define LEASES 64    /* that a client remembers */
#define STEPS_MAX 200
#define TURNS_MAX 100
#define NS_PER_MS UINT64_C(1000000)
#define SLOT_BYTES (256 * KIB)

struct client {
    bool is_there, is_broken;
    uint64_t session;
    struct peer peer;
    struct ring ring;
    uint32_t sq_tail, cq_head;
    uint32_t spaces[3];
    uint32_t n_spaces;
    uint64_t leases[LEASES];
    uint32_t n_leases;
    uint64_t next_seq[2]; /* of its lane */
    uint64_t plan_items;  /* that it has sent */
    bool has_lane, lane_goes;
    struct spw_gpu_fences fences;
};

static struct {
    struct requests *rq;
    struct ring_geometry geometry;
    struct pool_gpu_stat gpus[2];
    struct client clients[CLIENTS];
    uint64_t sessions; /* ever */
} e;

/* --- Memory ---------------------------------------------------------------------------------------------------------- */

/* Guard pages around: what is written outside of it is seen whoever writes. */
static uint8_t *memory_of(uint32_t i, bool scratch)
{
    static uint8_t *memory[CLIENTS][2];
    const size_t bytes[2] = {CLIENT_RING_BYTES, CLIENT_SCRATCH_BYTES};

    if (!memory[i][scratch]) {
        uint8_t *base = mmap(NULL, bytes[scratch] + 2 * SECTOR_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        fuzz_check(base != MAP_FAILED && mprotect(base + SECTOR_BYTES, bytes[scratch], PROT_READ | PROT_WRITE) == 0);
        memory[i][scratch] = base + SECTOR_BYTES;
    }
    return memory[i][scratch];
}

uint8_t *client_ring(uint32_t i)
{
    return memory_of(i, false);
}

uint8_t *client_scratch(uint32_t i)
{
    return memory_of(i, true);
}

/* --- Events ---------------------------------------------------------------------------------------------------------- */

static struct client *client_of(const struct peer *peer)
{
    for (uint32_t i = 0; i < CLIENTS; i++)
        if (peer == &e.clients[i].peer)
            return &e.clients[i];
    abort();
}

static void on_broken(void *ctx, struct peer *peer, const char *why)
{
    struct client *c = client_of(peer);

    (void)ctx;
    fuzz_check(why && !c->is_broken, "a session is told twice that it is over");
    c->is_broken = true;
}

static int on_cold(void *ctx, struct ring *ring)
{
    (void)ctx;
    (void)ring;
    return 0;
}

static void on_lane_gone(void *ctx, void *removal)
{
    struct client *c = removal;

    (void)ctx;
    fuzz_check(c->lane_goes);
    c->has_lane = c->lane_goes = false;
}

static const struct requests_events events = {on_broken, on_cold, on_lane_gone};

/* --- A session's life ------------------------------------------------------------------------------------------------ */

static uint32_t pool_of(uint32_t i)
{
    return i / 2;
}

static void client_begin(uint32_t i)
{
    struct client *c = &e.clients[i];

    *c = (struct client){.is_there = true, .session = ++e.sessions, .next_seq = {1, 1}};
    memset(client_ring(i), 0, CLIENT_RING_BYTES);
    memset(client_scratch(i), 0, CLIENT_SCRATCH_BYTES);
    ring_init(&c->ring, 1, &e.geometry, client_ring(i), client_scratch(i), CLIENT_SCRATCH_BYTES, -1);
    requests_peer_add(e.rq, &c->peer, c->session, c->session, 48);
    requests_ring_add(e.rq, &c->peer, &c->ring);
    for (uint8_t durability = STORE_CACHE; durability <= STORE_DURABLE; durability++) {
        struct tiering_space_spec spec = {.pool = pool_of(i),
                                          .class_id = durability,
                                          .durability = (uint8_t)(durability + 1),
                                          .item_bytes = durability == STORE_SCRATCH ? 5000 : 0,
                                          .digest = {durability, 1}};
        struct tiering_space_info info;

        if (tiering_space_open(world.t, &spec, &info) == 0)
            fuzz_check(requests_space_add(e.rq, &c->peer, &info, 100, &c->spaces[c->n_spaces++]) == 0);
    }
}

static void turn(uint32_t io, uint64_t ns)
{
    world_turn(io, ns);
    (void)requests_run(e.rq, world.now_ns);
}

/* Its lane first; the engine tells when nothing of it is in flight any more. */
static void lane_remove(struct client *c)
{
    if (!c->has_lane || c->lane_goes)
        return;
    c->lane_goes = true;
    if (requests_lane_remove(e.rq, &c->peer, (uint32_t)(c - e.clients), c))
        c->has_lane = c->lane_goes = false;
}

static void client_end(uint32_t i)
{
    struct client *c = &e.clients[i];

    if (!c->is_there)
        return;
    lane_remove(c);
    for (int n = 0; c->has_lane; n++) {
        fuzz_check(n < TURNS_MAX, "a lane never goes");
        turn(64, NS_PER_MS);
    }
    requests_peer_remove(e.rq, &c->peer, false);
    c->is_there = false;
}

/* --- What a client does ---------------------------------------------------------------------------------------------- */

static void item_make(struct fuzz *f, struct spw_item *ret_item)
{
    static const uint64_t lengths[] = {0, 1, 4096, 5000, WORLD_PIECE_BYTES, 2 * WORLD_PIECE_BYTES + 77, 100000, 65536};
    uint8_t what = fuzz_u8(f), range = fuzz_u8(f);

    *ret_item = (struct spw_item){.key = {(uint8_t)('a' + what % 8)}, .key_len = 1};
    if (what & 64)
        *ret_item =
            (struct spw_item){.key = {(uint8_t)('a' + what % 8)}, .key_len = 1, .n_parts = 2, .part = what >> 7};
    ret_item->length_bytes = lengths[range % ARRAY_LEN(lengths)];
    ret_item->offset_bytes = range & 64 ? lengths[(range >> 3) % ARRAY_LEN(lengths)] : 0;
}

static uint64_t lease_any(struct client *c, uint8_t what)
{
    return c->n_leases ? c->leases[what % c->n_leases] : 0;
}

static bool is_gpu(uint8_t op)
{
    return op == SPW_OP_GPU_SPILL || op == SPW_OP_GPU_FETCH;
}

static bool takes_handles(uint8_t op)
{
    return op == SPW_OP_COMMIT || op == SPW_OP_ABORT || op == SPW_OP_RELEASE || is_gpu(op);
}

static void list_write(struct fuzz *f, uint32_t i, const struct spw_sqe *sqe)
{
    struct client *c = &e.clients[i];
    bool handles = takes_handles(sqe->opcode);

    for (uint32_t n = 0; n < sqe->n_items && n < 16; n++) {
        if (handles) {
            uint8_t what = fuzz_u8(f);
            struct spw_handle handle = {.lease = lease_any(c, what), .flags = what >> 6};

            if (sqe->opcode != SPW_OP_RELEASE)
                handle.flags = 0;
            memcpy(client_scratch(i) + sqe->items + n * sizeof(handle), &handle, sizeof(handle));
        } else {
            struct spw_item item;

            item_make(f, &item);
            memcpy(client_scratch(i) + sqe->items + n * sizeof(item), &item, sizeof(item));
        }
    }
}

static void sqe_make(struct fuzz *f, uint32_t i, struct spw_sqe *ret_sqe)
{
    struct client *c = &e.clients[i];
    uint8_t shape = fuzz_u8(f);
    uint8_t any = fuzz_u8(f), op = any < 252 ? any % SPW_OP_PLAN : SPW_OP_PLAN; /* older inputs say what they said */
    static const uint8_t n_args[SPW_OPS] = {[SPW_OP_PREFETCH] = 1,  [SPW_OP_ADVISE] = 2,    [SPW_OP_PIN] = 1,
                                            [SPW_OP_CANCEL] = 1,    [SPW_OP_PUT_RANGE] = 2, [SPW_OP_GET_RANGE] = 2,
                                            [SPW_OP_GPU_SPILL] = 3, [SPW_OP_GPU_FETCH] = 3, [SPW_OP_PLAN] = 2};
    bool plain = op == SPW_OP_NOP || op == SPW_OP_CANCEL;
    bool handles = takes_handles(op);

    *ret_sqe = (struct spw_sqe){.opcode = op, .user_data = shape % 4, .results = RESULTS};
    if (!plain && !handles && c->n_spaces)
        ret_sqe->space = c->spaces[(shape >> 2) % c->n_spaces];
    if (!plain && op != SPW_OP_STAT) {
        ret_sqe->n_items = op == SPW_OP_TENSOR ? 1 : 1 + fuzz_below(f, op == SPW_OP_PLAN ? 12 : 5);
        ret_sqe->flags = fuzz_u8(f) & SPW_SQE_FLAGS;
    }
    if (shape & 64)
        ret_sqe->timeout_ms = 20;
    if (op == SPW_OP_NOP || op == SPW_OP_PLAN || is_gpu(op))
        ret_sqe->results = 0;
    for (uint32_t a = 0; a < n_args[op]; a++)
        ret_sqe->arg[a] = fuzz_below(f, 6);
    if (op == SPW_OP_PUT_RANGE || op == SPW_OP_GET_RANGE)
        ret_sqe->arg[0] = lease_any(c, (uint8_t)ret_sqe->arg[0]);
    if (op == SPW_OP_PLAN) { /* a list of one, or all of it; some begin anew */
        ret_sqe->n_items = ret_sqe->arg[0] == 5 ? 0 : ret_sqe->n_items;
        ret_sqe->flags &= SPW_SQE_CHAIN; /* which it does not have */
        ret_sqe->arg[0] = ret_sqe->arg[0] < 4 ? c->plan_items : 0;
        c->plan_items = ret_sqe->arg[1] > 1 ? ret_sqe->arg[0] + ret_sqe->n_items : 0;
        ret_sqe->arg[1] = ret_sqe->arg[0] + ret_sqe->n_items + (ret_sqe->arg[1] > 1);
    }
    if (is_gpu(op)) {
        ret_sqe->arg[0] = i;
        ret_sqe->arg[1] = c->next_seq[op - SPW_OP_GPU_SPILL];
        ret_sqe->arg[2] = 0;
        c->next_seq[op - SPW_OP_GPU_SPILL] += ret_sqe->flags == 0;
    }
}

/* In the ring's place for it; `patched`: not quite as it should be. */
static void submit(struct fuzz *f, uint32_t i, bool patched)
{
    struct client *c = &e.clients[i];
    struct spw_ring *shared = (void *)client_ring(i);
    struct spw_sqe sqe;

    sqe_make(f, i, &sqe);
    list_write(f, i, &sqe);
    if (patched)
        fuzz_patch(f, &sqe, sizeof(sqe));
    memcpy(client_ring(i) + e.geometry.sq_offset + c->sq_tail % ENTRIES * sizeof(sqe), &sqe, sizeof(sqe));
    c->sq_tail++;
    store_release(&shared->client.sq_tail, c->sq_tail);
    if (load_acquire(&shared->daemon.sq_flags) & SPW_RING_NEED_WAKEUP)
        requests_ring_hot(e.rq, &c->ring, world.now_ns);
}

/* Does the session hold that lease? Then its bytes are where it may map them. */
static void lease_check(uint32_t i, uint64_t lease)
{
    struct client *c = &e.clients[i];
    struct tiering_grant grant;
    uint32_t pool;

    if (tiering_lease_info(world.t, &c->peer.tiering, lease, &grant, &pool) < 0)
        return;
    const struct world_chunk *chunk = &world.chunks[grant.region];

    fuzz_check(pool == pool_of(i), "a lease in a pool that the session has not opened");
    fuzz_check(chunk->is_there && chunk->pool == pool, "a lease in another pool's memory");
    fuzz_check(chunk->kind != IO_CHUNK_PRIVATE || chunk->session == c->session, "a lease in another session's memory");
    fuzz_check(disk_has(grant.region, grant.offset_bytes, grant.length_bytes), "a lease outside of its chunk");
    if (c->n_leases < LEASES)
        c->leases[c->n_leases++] = lease;
    else
        c->leases[lease % LEASES] = lease;
}

static void consume(uint32_t i)
{
    struct client *c = &e.clients[i];
    struct spw_ring *shared = (void *)client_ring(i);
    const struct spw_result *results = (const void *)(client_scratch(i) + RESULTS);

    c->cq_head = load_acquire(&shared->daemon.cq_tail);
    store_release(&shared->client.cq_head, c->cq_head);
    for (uint32_t n = 0; n < 16; n++)
        if (load_relaxed(&results[n].lease))
            lease_check(i, load_relaxed(&results[n].lease));
}

static void lane_add(uint32_t i)
{
    struct client *c = &e.clients[i];
    struct lane_spec spec = {
        .lane = i, .gpu = 0, .pool = pool_of(i), .slots = 2, .slot_bytes = SLOT_BYTES, .fences = &c->fences};

    if (c->has_lane || requests_lane_add(e.rq, &c->peer, &spec) < 0)
        return;
    c->has_lane = true;
    c->next_seq[0] = c->next_seq[1] = 1;
}

static void budgets_change(struct fuzz *f)
{
    uint8_t how = fuzz_u8(f);
    uint64_t bytes[TIERING_BUDGETS] = {
        [TIERING_BUDGET_DRAM] = (1 + how / 2 % 4) * MIB / 2, [TIERING_BUDGET_NVME] = UINT64_MAX};

    tiering_pool_budget(world.t, how & 1, bytes);
}

/* What is not of one client. */
static void engine_step(struct fuzz *f, uint8_t what)
{
    switch (what % 8) {
    case 0:
        turn(fuzz_below(f, 16), fuzz_u8(f) * NS_PER_MS);
        break;
    case 1:
        budgets_change(f);
        break;
    case 2:
        disk_fail_next(-EIO);
        break;
    case 3:
        requests_set_spin(e.rq, fuzz_u8(f) * NS_PER_MS);
        break;
    case 4:
        requests_gpu_gone(e.rq, 0);
        break;
    case 5:
        tiering_owner_end(world.t, fuzz_u8(f));
        break;
    case 6:
        (void)requests_next_ns(e.rq, world.now_ns);
        (void)requests_peek(e.rq);
        break;
    default:
        changing_arm(f);
        break;
    }
}

static void client_step(struct fuzz *f, uint32_t i, uint8_t what)
{
    struct client *c = &e.clients[i];

    if (!c->is_there) {
        client_begin(i);
        return;
    }
    switch (what) {
    case 0:
    case 1:
    case 2:
    case 3:
        submit(f, i, false);
        turn(0, 1000);
        consume(i);
        break;
    case 4:
        submit(f, i, false);
        break;
    case 5:
        submit(f, i, true);
        break;
    case 6:
        consume(i);
        break;
    case 7:
        fuzz_patch(f, client_scratch(i), CLIENT_SCRATCH_BYTES);
        break;
    case 8:
        fuzz_patch(f, client_ring(i), CLIENT_RING_BYTES);
        break;
    case 9:
        fuzz_patch(f, client_ring(i), 16); /* its indices */
        break;
    case 10:
        requests_ring_hot(e.rq, &c->ring, world.now_ns);
        break;
    case 11:
        lane_add(i);
        break;
    case 12:
        lane_remove(c);
        break;
    case 13:
        client_end(i);
        break;
    default:
        turn(4, NS_PER_MS);
        break;
    }
    if (c->is_broken)
        client_end(i);
}

void clients_run(struct fuzz *f)
{
    uint8_t how = fuzz_u8(f);
    struct requests_config config = {.engine = 2,
                                     .max_requests = how & 2 ? 4 : 16,
                                     .max_waits = how & 4 ? 4 : 32,
                                     .spin_ns = 1000,
                                     .gpus = e.gpus,
                                     .events = &events};

    memset(&e, 0, sizeof(e));
    disk_reset();
    if (how & 1)
        world_format();
    fuzz_check(world_open((how & 1 ? WORLD_DEVICE : 0) | ((how & 0x38) == 0x38 ? WORLD_CHAIN : 0) |
                          ((how & 0x38) == 0x30 ? WORLD_PLAN : 0)) == 0);
    config.tiering = world.t;
    fuzz_check(requests_new(&config, &e.rq) == 0 && ring_geometry(ENTRIES, ENTRIES, &e.geometry) == 0);
    fuzz_check(e.geometry.ring_bytes <= CLIENT_RING_BYTES);
    for (uint32_t i = 0; i + (how >> 6) < CLIENTS; i++)
        client_begin(i);
    for (int n = 0; n < STEPS_MAX && fuzz_more(f); n++) {
        uint8_t what = fuzz_u8(f);

        if (what >= 240)
            engine_step(f, what);
        else
            client_step(f, what / 15 % CLIENTS, what % 15);
    }
    for (uint32_t i = 0; i < CLIENTS; i++)
        client_end(i);
    for (int n = 0; !requests_is_idle(e.rq); n++) {
        fuzz_check(n < TURNS_MAX, "requests are left, though no session is");
        turn(64, 100 * NS_PER_MS);
    }
    requests_free(e.rq);
    (void)world_close();
    world_forget();
}
