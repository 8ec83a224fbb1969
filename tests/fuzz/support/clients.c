/* SPDX-License-Identifier: Apache-2.0 */
/* See clients.h. */
#include "tests/fuzz/support/clients.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "include/base/atomic.h"
#include "tests/fuzz/support/changing.h"
#include "tests/fuzz/support/snapshot.h"
#include "tests/fuzz/support/sqe.h"

#define ENTRIES 8
#define LANES 3 /* of a client */
#define STEPS_MAX 200
#define RESTARTS_MAX 1 /* it costs as much as all the rest of an input */
#define TURNS_MAX 100
#define NS_PER_MS UINT64_C(1000000)
#define SLOT_BYTES (256 * KIB)

struct lane {
    bool is_there, goes;
    struct spw_gpu_fences fences;
};

struct client {
    bool is_there, is_broken;
    uint64_t session;
    struct peer peer;
    struct ring ring;
    uint32_t sq_tail, cq_head;
    struct sqe_names names;
    struct lane lanes[LANES];
};

static struct {
    struct requests *rq;
    struct requests_config config;
    struct ring_geometry geometry;
    struct pool_gpu_stat gpus[2];
    struct client clients[CLIENTS];
    uint64_t sessions; /* ever */
    unsigned how;      /* of the world */
    uint32_t restarts;
    bool with_users, stays_hot;
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

/* Both ends of its doorbell; ours is made anew when the client has closed the other. */
static int *door_of(uint32_t i)
{
    static int doors[CLIENTS][2] = {{-1, -1}, {-1, -1}, {-1, -1}, {-1, -1}};
    int *door = doors[i];
    char byte;

    if (door[0] >= 0 && door[1] < 0) {
        close(door[0]);
        door[0] = -1;
    }
    if (door[0] < 0)
        fuzz_check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, door) == 0);
    for (int end = 0; end < 2; end++)
        while (recv(door[end], &byte, 1, 0) > 0)
            ;
    return door;
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
    return e.stays_hot ? -ENOMEM : 0;
}

static void on_lane_gone(void *ctx, void *removal)
{
    struct lane *lane = removal;

    (void)ctx;
    fuzz_check(lane->goes);
    lane->is_there = lane->goes = false;
}

static_assert(CLIENT_SCRATCH_BYTES == SQE_SCRATCH_BYTES, "the language's");

static const struct requests_events events = {on_broken, on_cold, on_lane_gone};

/* --- A session's life ------------------------------------------------------------------------------------------------ */

static uint32_t pool_of(uint32_t i)
{
    return i / 2;
}

/* One that was at the engine before has leases still. */
static void client_seat(uint32_t i, bool is_back)
{
    struct client *c = &e.clients[i];

    c->is_there = true;
    c->is_broken = false;
    c->sq_tail = c->cq_head = 0;
    if (is_back)
        memset(&c->peer, 0, sizeof(c->peer));
    c->names.peer = &c->peer;
    c->names.scratch = client_scratch(i);
    c->names.n_spaces = 0;
    memset(client_ring(i), 0, CLIENT_RING_BYTES);
    memset(client_scratch(i), 0, CLIENT_SCRATCH_BYTES);
    ring_init(&c->ring, 1, &e.geometry, client_ring(i), client_scratch(i), CLIENT_SCRATCH_BYTES, *door_of(i));
    requests_peer_add(e.rq, &c->peer, c->session, c->session, 48);
    if (e.with_users)
        requests_peer_user(e.rq, &c->peer, 1 + i % 2);
    c->peer.may_retry = is_back;
}

static void client_open(uint32_t i)
{
    static const struct tiering_space_spec specs[SQE_SPACES] = {
        {.class_id = 0, .durability = STORE_CACHE + 1, .digest = {1}},
        {.class_id = 1, .durability = STORE_SCRATCH + 1, .digest = {2}, .item_bytes = 5000},
        {.class_id = 2, .durability = STORE_DURABLE + 1, .digest = {3}},
        {.class_id = 0, .durability = STORE_DURABLE + 1, .digest = {4}, .item_bytes = SQE_OBJECT_BYTES}};
    struct client *c = &e.clients[i];

    requests_ring_add(e.rq, &c->peer, &c->ring);
    for (uint32_t n = 0; n < SQE_SPACES; n++) {
        struct tiering_space_spec spec = specs[n];
        struct tiering_space_info info;

        spec.pool = pool_of(i);
        fuzz_check(tiering_space_open(world.t, &spec, &info) == 0);
        fuzz_check(requests_space_add(e.rq, &c->peer, &info, 100, &c->names.spaces[c->names.n_spaces++]) == 0);
    }
}

static void client_begin(uint32_t i)
{
    if (e.clients[i].session) /* else it is zero */
        memset(&e.clients[i], 0, sizeof(e.clients[i]));
    e.clients[i].session = ++e.sessions;
    client_seat(i, false);
    client_open(i);
}

static void turn(uint32_t io, uint64_t ns)
{
    world_turn(io, ns);
    (void)requests_run(e.rq, world.now_ns);
}

static uint32_t lane_number(uint32_t i, uint32_t n)
{
    return i * LANES + n;
}

static void lane_remove(uint32_t i, uint32_t n)
{
    struct client *c = &e.clients[i];
    struct lane *lane = &c->lanes[n];

    if (!lane->is_there || lane->goes)
        return;
    lane->goes = true;
    if (requests_lane_remove(e.rq, &c->peer, lane_number(i, n), lane))
        lane->is_there = lane->goes = false;
}

/* The engine tells when nothing of one is in flight any more. */
static void lanes_remove(uint32_t i)
{
    for (uint32_t n = 0; n < LANES; n++)
        lane_remove(i, n);
    for (uint32_t n = 0; n < LANES; n++) {
        for (int turns = 0; e.clients[i].lanes[n].is_there; turns++) {
            fuzz_check(turns < TURNS_MAX, "a lane never goes");
            turn(64, NS_PER_MS);
        }
    }
}

static void client_end(uint32_t i, bool leaves)
{
    struct client *c = &e.clients[i];

    if (!c->is_there)
        return;
    lanes_remove(i);
    requests_peer_remove(e.rq, &c->peer, leaves);
    c->is_there = false;
}

/* --- The engine's life ----------------------------------------------------------------------------------------------- */

/* Until no request is left, for no session is. */
static void engine_end(void)
{
    for (int n = 0; !requests_is_idle(e.rq); n++) {
        fuzz_check(n < TURNS_MAX, "requests are left, though no session is");
        turn(64, 100 * NS_PER_MS);
    }
    requests_free(e.rq);
    e.rq = NULL;
}

/* In order, and the sessions that the input says come back to what they had. */
static void engine_restart(struct fuzz *f)
{
    uint8_t who = fuzz_u8(f);
    uint64_t lost[3] = {who >> 4 & 3, 4, 5}; /* user_data of requests whose answers never came */
    const char *why = NULL;

    if (e.restarts == RESTARTS_MAX || world.failed)
        return;
    e.restarts++;
    for (uint32_t i = 0; i < CLIENTS; i++)
        if (e.clients[i].is_there)
            requests_peer_silence(e.rq, &e.clients[i].peer);
    for (uint32_t i = 0; i < CLIENTS; i++) {
        who &= e.clients[i].is_there && !e.clients[i].is_broken ? UINT8_MAX : (uint8_t) ~(1U << i);
        client_end(i, !e.clients[i].is_broken);
    }
    engine_end();
    world_leave();
    fuzz_check(world_make(e.how | WORLD_HOT) == 0 && tiering_is_warm(world.t, &why), "%s", why ? why : "not opened");
    e.config.tiering = world.t;
    fuzz_check(requests_new(&e.config, &e.rq) == 0);
    for (uint32_t i = 0; i < CLIENTS; i++)
        if (who & 1 << i)
            client_seat(i, true);
    fuzz_check(world_start() == 0);
    for (uint32_t i = 0; i < CLIENTS; i++) {
        if (!e.clients[i].is_there)
            continue;
        client_open(i);
        requests_unanswered(e.rq, &e.clients[i].peer, lost, who >> 6);
    }
}

/* --- What a client does ---------------------------------------------------------------------------------------------- */

/* In the ring's place for it; `patched`: not quite as it should be. */
static void submit(struct fuzz *f, uint32_t i, bool patched)
{
    struct client *c = &e.clients[i];
    struct spw_ring *shared = (void *)client_ring(i);
    struct spw_sqe sqe;

    sqe_make(f, &c->names, &sqe);
    if (patched)
        fuzz_patch(f, &sqe, sizeof(sqe));
    memcpy(client_ring(i) + e.geometry.sq_offset + c->sq_tail % ENTRIES * sizeof(sqe), &sqe, sizeof(sqe));
    c->sq_tail++;
    store_release(&shared->client.sq_tail, c->sq_tail);
    if (load_acquire(&shared->daemon.sq_flags) & SPW_RING_NEED_WAKEUP)
        requests_ring_hot(e.rq, &c->ring, world.now_ns);
}

/* Does the session hold that lease? Then its bytes are where it may map them. */
static bool lease_check(uint32_t i, uint64_t lease)
{
    struct client *c = &e.clients[i];
    struct tiering_grant grant;
    uint32_t pool;

    if (tiering_lease_info(world.t, &c->peer.tiering, lease, &grant, &pool) < 0)
        return false;
    const struct world_chunk *chunk = &world.chunks[grant.region];

    fuzz_check(pool == pool_of(i), "a lease in a pool that the session has not opened");
    fuzz_check(chunk->is_there && chunk->pool == pool, "a lease in another pool's memory");
    fuzz_check(chunk->kind != IO_CHUNK_PRIVATE || chunk->session == c->session, "a lease in another session's memory");
    fuzz_check(disk_has(grant.region, grant.offset_bytes, grant.length_bytes), "a lease outside of its chunk");
    return true;
}

/* Those that have ended are forgotten, but for one. */
static void leases_tidy(uint32_t i)
{
    struct sqe_names *names = &e.clients[i].names;
    uint32_t n = 0;

    for (uint32_t k = 0; k < names->n_leases; k++) {
        if (lease_check(i, names->leases[k]))
            names->leases[n++] = names->leases[k];
        else
            names->ended = names->leases[k];
    }
    names->n_leases = n;
}

static void lease_note(uint32_t i, uint64_t lease)
{
    struct sqe_names *names = &e.clients[i].names;

    for (uint32_t k = 0; k < names->n_leases; k++)
        if (names->leases[k] == lease)
            return;
    if (names->n_leases < SQE_LEASES && lease_check(i, lease))
        names->leases[names->n_leases++] = lease;
}

static void consume(uint32_t i)
{
    struct client *c = &e.clients[i];
    struct spw_ring *shared = (void *)client_ring(i);
    const struct spw_result *results = (const void *)(client_scratch(i) + SQE_RESULTS);

    c->cq_head = load_acquire(&shared->daemon.cq_tail);
    store_release(&shared->client.cq_head, c->cq_head);
    leases_tidy(i);
    for (uint32_t n = 0; n < SQE_LEASES; n++)
        if (load_relaxed(&results[n].lease))
            lease_note(i, load_relaxed(&results[n].lease));
}

static void lane_add(struct fuzz *f, uint32_t i)
{
    struct client *c = &e.clients[i];
    uint8_t what = fuzz_u8(f);
    struct lane *lane = &c->lanes[what % LANES];
    struct lane_spec spec = {.lane = lane_number(i, what % LANES),
                             .gpu = what >> 4 & 1,
                             .pool = pool_of(i),
                             .slots = what & 32 ? 2 : 1,
                             .slot_bytes = what & 64 ? SLOT_BYTES : 2 * SLOT_BYTES,
                             .alloc_bytes = what & 128 ? 4 * SLOT_BYTES : 0,
                             .fences = &lane->fences};

    if (lane->goes)
        return;
    fuzz_check(requests_lane_add(e.rq, &c->peer, &spec) == (lane->is_there ? -EEXIST : 0));
    lane->is_there = true;
}

static void budgets_change(struct fuzz *f)
{
    uint8_t how = fuzz_u8(f);
    uint64_t bytes[TIERING_BUDGETS] = {[TIERING_BUDGET_DRAM] = (1 + how / 2 % 4) * MIB / 2,
                                       [TIERING_BUDGET_NVME] = how < 128 ? UINT64_MAX : (how / 16 % 4) * MIB};

    tiering_pool_budget(world.t, how & 1, bytes);
}

static void look(void)
{
    struct requests_stat stat;
    struct peer_stat peers[CLIENTS];

    (void)requests_next_ns(e.rq, world.now_ns);
    (void)requests_peek(e.rq);
    requests_stat(e.rq, &stat);
    fuzz_check(stat.rings_hot == requests_hot_rings(e.rq) && stat.peers == requests_peers(e.rq, peers, CLIENTS));
    (void)requests_wants_spin(e.rq);
}

static void session_break(uint8_t which)
{
    const struct client *c = &e.clients[which % CLIENTS];

    fuzz_check(requests_break_session(e.rq, c->session, "it is to be over") == c->is_there);
}

/* What is not of one client. */
static void engine_step(struct fuzz *f, uint8_t what)
{
    const uint32_t weights[2] = {what & 16 ? 1000 : 1, 100};

    switch (what % 16) {
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
        requests_gpu_gone(e.rq, what >> 4 & 1);
        break;
    case 5:
        tiering_owner_end(world.t, fuzz_u8(f));
        break;
    case 6:
        look();
        break;
    case 7:
        requests_set_weights(e.rq, weights);
        break;
    case 8:
        session_break(fuzz_u8(f));
        break;
    case 9:
        engine_restart(f);
        break;
    case 10: /* no request lives longer */
        turn(what & 16 ? 64 : 0, (REQUEST_TIMEOUT_MS_MAX + 1) * NS_PER_MS);
        break;
    case 11:
        e.stays_hot = !e.stays_hot;
        break;
    default:
        changing_arm(f);
        break;
    }
}

static void door_step(struct fuzz *f, uint32_t i)
{
    struct spw_ring *shared = (void *)client_ring(i);
    uint8_t what = fuzz_u8(f);
    int *door = door_of(i);

    e.clients[i].ring.doorbell_fd = door[0];
    if (what < 128) { /* it sleeps, or is awake again */
        store_relaxed(&shared->client.cq_flags, what & 3U ? (uint32_t)what << 2 | (what & 3U) : 0);
        return;
    }
    if (what < 192) {
        fuzz_check(send(door[1], "", 1, 0) == 1);
    } else {
        close(door[1]);
        door[1] = -1;
    }
    requests_ring_hot(e.rq, &e.clients[i].ring, world.now_ns);
}

static void ring_again(uint32_t i)
{
    struct client *c = &e.clients[i];

    requests_ring_remove(e.rq, &c->ring);
    c->sq_tail = c->cq_head = 0;
    memset(client_ring(i), 0, CLIENT_RING_BYTES);
    ring_init(&c->ring, 1, &e.geometry, client_ring(i), client_scratch(i), CLIENT_SCRATCH_BYTES, *door_of(i));
    requests_ring_add(e.rq, &c->peer, &c->ring);
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
        submit(f, i, false);
        turn(0, 1000);
        consume(i);
        break;
    case 3:
    case 4: /* whatever it waits for */
        submit(f, i, false);
        for (int n = 0; n < 4; n++)
            turn(16, NS_PER_MS);
        consume(i);
        break;
    case 5:
        submit(f, i, false);
        break;
    case 6:
        submit(f, i, true);
        break;
    case 7:
        consume(i);
        break;
    case 8:
        fuzz_patch(f, client_scratch(i), CLIENT_SCRATCH_BYTES);
        break;
    case 9:
        fuzz_patch(f, client_ring(i), CLIENT_RING_BYTES);
        break;
    case 10:
        fuzz_patch(f, client_ring(i), 16); /* its indices */
        break;
    case 11:
        door_step(f, i);
        break;
    case 12:
        lane_add(f, i);
        break;
    case 13:
        lane_remove(i, fuzz_below(f, LANES));
        break;
    case 14:
        if (fuzz_u8(f) < 192)
            client_end(i, false);
        else
            ring_again(i);
        break;
    default:
        turn(4, NS_PER_MS);
        break;
    }
    if (c->is_broken)
        client_end(i, false);
}

/* Worlds and engines that are made once. */
#define KINDS 32

static struct {
    struct snapshot *snapshot;
    struct requests *rq;
} kinds[KINDS];

static void engine_make(uint8_t how)
{
    snapshot_begin();
    disk_snapshot();
    if (how & 1)
        world_format();
    fuzz_check(world_open(e.how) == 0);
    e.config.tiering = world.t;
    fuzz_check(requests_new(&e.config, &kinds[how].rq) == 0);
    kinds[how].snapshot = world_snapshot();
}

static void engine_begin(uint8_t how)
{
    static const unsigned policies[4] = {0, 0, WORLD_PLAN, WORLD_CHAIN};

    memset(&e, 0, sizeof(e));
    e.how = (how & 1 ? WORLD_DEVICE : 0) | policies[how >> 3];
    e.with_users = how & 4;
    e.config = (struct requests_config){.engine = 2,
                                        .max_requests = how & 2 ? 4 : 16,
                                        .max_waits = how & 2 ? 4 : 32,
                                        .spin_ns = 1000,
                                        .user_percent = e.with_users ? 50 : 0,
                                        .gpus = e.gpus,
                                        .events = &events};
    fuzz_check(ring_geometry(ENTRIES, ENTRIES, &e.geometry) == 0 && e.geometry.ring_bytes <= CLIENT_RING_BYTES);
    if (!kinds[how].snapshot)
        engine_make(how);
    snapshot_return(kinds[how].snapshot);
    e.rq = kinds[how].rq;
}

void clients_run(struct fuzz *f)
{
    uint8_t how = fuzz_u8(f);

    engine_begin(how % KINDS);
    for (uint32_t i = 0; i + (how >> 6) < CLIENTS; i++)
        client_begin(i);
    for (int n = 0; n < STEPS_MAX && fuzz_more(f); n++) {
        uint8_t what = fuzz_u8(f);

        if (what >= 224)
            engine_step(f, what);
        else
            client_step(f, what / 16 % CLIENTS, what % 16);
    }
    for (uint32_t i = 0; i < CLIENTS; i++)
        client_end(i, false);
    engine_end();
    (void)world_close();
    tiering_free(world.t);
    fuzz_check(snapshot_leaks(kinds[how % KINDS].snapshot) == 0);
}
