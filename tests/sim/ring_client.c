/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Seats, rings, calls, answers. The engine's loop is imitated to the point: the request path gets a turn only when
 * something has ended, a doorbell rang, it asked to be called again, or its time has come. So a wake-up that is lost is
 * a call that is never answered, and that is a failure.
 */
#include <stdlib.h>
#include <string.h>

#include "include/base/ring.h"
#include "tests/sim/ring.h"

#define SPACE_DIGEST 200
#define REQUESTS 20
#define WAITS 40
#define SPIN_NS 50000
#define LATE_TURNS 100 /* of the engine, after a call's time is over */

/* --- Calls ---------------------------------------------------------------------------------------------------------- */

struct ring_call *ring_call_new(struct sim *sim, struct ring_client *c, uint8_t opcode)
{
    struct ring_world *w = sim->rings;
    const struct spw_ring *shared = (const void *)c->mem;

    if (c->sq_tail - load_acquire(&shared->daemon.sq_head) == RING_ENTRIES)
        return NULL;
    for (uint32_t i = 0; i < RING_CALLS; i++) {
        struct ring_call *call = &c->calls[i];

        if (call->used)
            continue;
        *call = (struct ring_call){.used = true,
                                   .opcode = opcode,
                                   .index = c->sq_tail,
                                   .asked_ns = sim->now_ns,
                                   .user_data = (c->next_call++ << 8) | i};
        for (uint32_t o = 0; o < RING_OBJECTS; o++) {
            call->floor[o] = w->objects[o].floor;
            call->deletes[o] = w->objects[o].deleting ? UINT32_MAX : w->objects[o].deletes;
            call->present[o] = w->objects[o].present;
            call->last[o] = w->objects[o].last;
        }
        memset(c->scratch + (size_t)i * RING_SLICE_BYTES, 0x5a, RING_SLICE_BYTES);
        return call;
    }
    return NULL;
}

static size_t slice_of(const struct ring_client *c, const struct ring_call *call)
{
    return (size_t)(call - c->calls) * RING_SLICE_BYTES;
}

void *ring_call_items(struct ring_client *c, const struct ring_call *call)
{
    return c->scratch + slice_of(c, call);
}

const struct spw_result *ring_call_results(const struct ring_client *c, const struct ring_call *call)
{
    return (const void *)(c->scratch + slice_of(c, call) + RING_RESULTS_AT);
}

struct spw_sqe ring_call_sqe(struct ring_client *c, struct ring_call *call, uint32_t space)
{
    return (struct spw_sqe){.opcode = call->opcode,
                            .space = space,
                            .user_data = call->user_data,
                            .items = call->n ? (uint32_t)slice_of(c, call) : 0,
                            .n_items = call->n,
                            .results = (uint32_t)slice_of(c, call) + RING_RESULTS_AT,
                            .timeout_ms = call->timeout_ms};
}

void ring_submit(struct sim *sim, struct ring_client *c, const struct spw_sqe *sqe)
{
    struct spw_sqe *sqes = (void *)(c->mem + c->geometry.sq_offset);
    struct spw_ring *shared = (void *)c->mem;

    sim_event(sim, 200 + sqe->opcode, sqe->user_data);
    sqes[c->sq_tail++ % RING_ENTRIES] = *sqe;
    store_release(&shared->client.sq_tail, c->sq_tail);
    if (load_acquire(&shared->daemon.sq_flags) & SPW_RING_NEED_WAKEUP) {
        requests_ring_hot(sim->rings->rq, &c->ring, sim->now_ns);
        sim->rings->rang = true;
    }
}

struct ring_lease *ring_lease_new(struct sim *sim, struct ring_client *c)
{
    for (uint32_t i = 0; i < RING_LEASES; i++) {
        if (c->leases[i].used)
            continue;
        c->leases[i] = (struct ring_lease){.used = true};
        return &c->leases[i];
    }
    sim_fail(sim, "client %u was given more leases than it may have", (uint32_t)(c - sim->rings->clients));
}

/* --- Answers -------------------------------------------------------------------------------------------------------- */

static void client_consume(struct sim *sim, struct ring_client *c)
{
    const struct spw_cqe *cqes = (const void *)(c->mem + c->geometry.cq_offset);
    struct spw_ring *shared = (void *)c->mem;
    bool hostile = c == &sim->rings->clients[RING_HOSTILE];

    while (load_acquire(&shared->daemon.cq_tail) != c->cq_head) {
        struct spw_cqe cqe = cqes[c->cq_head++ % RING_ENTRIES];
        struct ring_call *call = &c->calls[(cqe.user_data & 255) % RING_CALLS];

        store_release(&shared->client.cq_head, c->cq_head);
        if (hostile && (!call->used || call->user_data != cqe.user_data))
            continue; /* it may lie about those, too */
        if (!call->used || call->user_data != cqe.user_data)
            sim_fail(sim, "an answer to a call that was not made, or twice: %lx", cqe.user_data);
        sim_event(sim, 230 + call->opcode, (uint64_t)(int64_t)cqe.status);
        if (!hostile)
            ring_answer(sim, c, call, &cqe);
        sim->counts->ring_plans += call->opcode == SPW_OP_PLAN && cqe.status == 0 && cqe.value > 0;
        call->used = false;
    }
}

/* Its answer is there, and the client has not looked yet. */
static bool client_was_answered(const struct ring_client *c, const struct ring_call *call)
{
    const struct spw_cqe *cqes = (const void *)(c->mem + c->geometry.cq_offset);
    const struct spw_ring *shared = (const void *)c->mem;
    uint32_t tail = load_acquire(&shared->daemon.cq_tail);

    for (uint32_t at = c->cq_head; at != tail; at++)
        if (cqes[at % RING_ENTRIES].user_data == call->user_data)
            return true;
    return false;
}

/* The engine's promise: every request ends when its time is over, whatever happens. */
static void client_check_late(struct sim *sim, struct ring_client *c)
{
    const struct ring_world *w = sim->rings;

    for (uint32_t i = 0; i < RING_CALLS; i++) {
        struct ring_call *call = &c->calls[i];

        if (!call->used || !call->timeout_ms)
            continue;
        if (!call->taken_ns && (int32_t)(c->ring.sq_head - call->index) > 0)
            call->taken_ns = sim->now_ns;
        call->late_turns += call->taken_ns && sim->now_ns - call->taken_ns > call->timeout_ms * UINT64_C(1000000) &&
                            !client_was_answered(c, call);
        if (call->late_turns > LATE_TURNS)
            sim_fail(sim, "client %u: no answer to operation %u after %lu ms; it had %u", (uint32_t)(c - w->clients),
                     call->opcode, (sim->now_ns - call->taken_ns) / 1000000, call->timeout_ms);
    }
}

/* A ring that is not looked at has something, and its client was not asked to ring the doorbell. */
static void client_check_unheard(struct sim *sim, struct ring_client *c)
{
    const struct spw_ring *shared = (const void *)c->mem;
    bool is_unheard = list_is_empty(&c->ring.hot_link) && !c->broken && ring_has_news(&c->ring) &&
                      !(load_acquire(&shared->daemon.sq_flags) & SPW_RING_NEED_WAKEUP);

    c->unheard_turns = is_unheard ? c->unheard_turns + 1 : 0;
    if (c->unheard_turns > LATE_TURNS)
        sim_fail(sim, "client %u has submitted something, and nobody looks", (uint32_t)(c - sim->rings->clients));
}

/* --- Life ----------------------------------------------------------------------------------------------------------- */

static void on_broken(void *ctx, struct peer *peer, const char *why)
{
    struct sim *sim = ctx;
    struct ring_client *c = container_of(peer, struct ring_client, peer);

    sim_log(sim, "client %u broke the protocol: %s", (uint32_t)(c - sim->rings->clients), why);
    if (c != &sim->rings->clients[RING_HOSTILE])
        sim_fail(sim, "client %u is said to have broken the protocol: %s", (uint32_t)(c - sim->rings->clients), why);
    c->broken = true;
    sim->counts->broken++;
}

static int on_cold(void *ctx, struct ring *ring)
{
    struct sim *sim = ctx;

    (void)ring;
    sim->counts->cold++;
    return 0;
}

static void on_lane_gone(void *ctx, void *removal)
{
    (void)removal;
    sim_fail(ctx, "a lane that nobody had is gone");
}

static const struct requests_events events = {on_broken, on_cold, on_lane_gone};

static void client_begin(struct sim *sim, uint32_t i)
{
    struct ring_world *w = sim->rings;
    struct ring_client *c = &w->clients[i];
    char *mem = c->mem, *scratch = c->scratch;

    *c = (struct ring_client){.mem = mem, .scratch = scratch, .alive = true};
    if (ring_geometry(RING_ENTRIES, RING_ENTRIES, &c->geometry) < 0)
        abort();
    if (!c->mem)
        c->mem = calloc(1, c->geometry.ring_bytes);
    if (!c->scratch) {
        c->scratch = aligned_alloc(64, RING_SCRATCH_BYTES + RING_CANARY_BYTES);
        if (c->scratch)
            memset(c->scratch, 0, RING_SCRATCH_BYTES); /* a liar names what it never wrote */
    }
    if (!c->mem || !c->scratch)
        abort();
    memset(c->mem, 0, c->geometry.ring_bytes);
    memset(c->scratch + RING_SCRATCH_BYTES, 0x77, RING_CANARY_BYTES);
    ring_init(&c->ring, 0, &c->geometry, c->mem, c->scratch, RING_SCRATCH_BYTES, -1);
    requests_peer_add(w->rq, &c->peer, ++sim->last_session, 100 + i, RING_LEASES / 2);
    requests_peer_user(w->rq, &c->peer, SIM_USER(i));
    requests_ring_add(w->rq, &c->peer, &c->ring);
    for (uint32_t s = 0; s < RING_SPACES; s++)
        if (requests_space_add(w->rq, &c->peer, &w->spaces[s], 100, &c->spaces[s]) < 0)
            abort();
}

static void client_end(struct sim *sim, uint32_t i, bool leaves)
{
    struct ring_client *c = &sim->rings->clients[i];

    if (!c->alive)
        return;
    for (uint32_t at = 0; at < RING_CANARY_BYTES; at++)
        if (c->scratch[RING_SCRATCH_BYTES + at] != 0x77)
            sim_fail(sim, "client %u: bytes past its scratch memory were written", i);
    requests_peer_remove(sim->rings->rq, &c->peer, leaves);
    c->alive = false;
    ring_client_died(sim, c);
}

void rings_make(struct sim *sim)
{
    sim->rings = calloc(1, sizeof(*sim->rings));
    if (!sim->rings)
        abort();
    sim->rings->with_rings = sim_percent(sim, 60);
    ring_objects_make(sim);
}

void rings_open(struct sim *sim)
{
    struct ring_world *w = sim->rings;
    const struct requests_config config = {.tiering = sim->tiering,
                                           .max_requests = REQUESTS,
                                           .max_waits = WAITS,
                                           .spin_ns = SPIN_NS,
                                           .gpus = w->gpus,
                                           .events = &events,
                                           .ctx = sim};

    if (!w->with_rings)
        return;
    for (uint32_t i = 0; i < RING_SPACES; i++) {
        struct tiering_space_spec spec = {
            .pool = i / 2, .class_id = i % 2 ? 1 : 0, .durability = (i % 2 ? STORE_DURABLE : STORE_CACHE) + 1};

        spec.digest[0] = (uint8_t)(SPACE_DIGEST + i);
        if (tiering_space_open(sim->tiering, &spec, &w->spaces[i]) < 0)
            sim_fail(sim, "the clients' space %u cannot be opened", i);
    }
    if (requests_new(&config, &w->rq) < 0)
        abort();
    w->wants_turn = true;
    w->next_ns = w->tick_due_ns = sim->now_ns;
    for (uint32_t i = 0; i < RING_CLIENTS; i++)
        client_begin(sim, i);
}

void rings_end_clients(struct sim *sim, bool leaves)
{
    for (uint32_t i = 0; i < RING_CLIENTS && sim->rings->rq; i++)
        client_end(sim, i, leaves);
}

bool rings_are_idle(const struct sim *sim)
{
    return !sim->rings->rq || requests_is_idle(sim->rings->rq);
}

void rings_close(struct sim *sim)
{
    struct ring_world *w = sim->rings;

    if (!w->rq)
        return;
    if (!sim->dead && !requests_is_idle(w->rq))
        sim_fail(sim, "requests are left, though everybody has gone and nothing runs");
    requests_free(w->rq);
    w->rq = NULL;
}

/* With the process: what the clients had asked for may have been done or not. */
void rings_die(struct sim *sim)
{
    struct ring_world *w = sim->rings;

    for (uint32_t i = 0; i < RING_CLIENTS && w->rq; i++) {
        if (!w->clients[i].alive)
            continue;
        w->clients[i].alive = false;
        ring_client_died(sim, &w->clients[i]);
    }
    requests_free(w->rq);
    w->rq = NULL;
}

void rings_free(struct sim *sim)
{
    for (uint32_t i = 0; i < RING_CLIENTS; i++) {
        free(sim->rings->clients[i].mem);
        free(sim->rings->clients[i].scratch);
    }
    free(sim->rings);
    sim->rings = NULL;
}

/* --- Turns ---------------------------------------------------------------------------------------------------------- */

void rings_run(struct sim *sim, bool io_ended, uint64_t tick_ns)
{
    struct ring_world *w = sim->rings;

    if (!w->rq)
        return;
    w->turns++;
    bool is_awake = io_ended || w->rang || w->wants_turn || requests_peek(w->rq) || sim->now_ns >= w->next_ns ||
                    sim->now_ns >= w->tick_due_ns;
    w->tick_due_ns = tick_ns > UINT64_MAX - sim->now_ns ? UINT64_MAX : sim->now_ns + tick_ns;
    if (is_awake) {
        w->rang = false;
        w->wants_turn = requests_run(w->rq, sim->now_ns) > 0 || requests_wants_spin(w->rq);
        w->next_ns = requests_next_ns(w->rq, sim->now_ns);
    }
    for (uint32_t i = 0; i < RING_CLIENTS; i++)
        if (w->clients[i].alive) {
            client_check_late(sim, &w->clients[i]);
            client_check_unheard(sim, &w->clients[i]);
        }
}

static uint32_t calls_in_flight(const struct ring_client *c)
{
    uint32_t calls = 0;

    for (uint32_t n = 0; n < RING_CALLS; n++)
        calls += c->calls[n].used;
    return calls;
}

void rings_step(struct sim *sim)
{
    struct ring_world *w = sim->rings;
    uint32_t i = (uint32_t)sim_below(sim, RING_CLIENTS);
    struct ring_client *c = &w->clients[i];

    if (!w->rq)
        return;
    if (!c->alive) {
        client_begin(sim, i);
        return;
    }
    if (c->broken || sim_below(sim, 1000) < 2) {
        client_end(sim, i, false);
        sim->counts->client_deaths++;
        return;
    }
    if (sim_percent(sim, 80))
        client_consume(sim, c);
    bool paused = c->pauses;

    c->pauses = calls_in_flight(c) > 0 && (paused || sim_percent(sim, 1));
    if (i == RING_HOSTILE)
        ring_hostile_op(sim, c);
    else if (c->pauses)
        ring_drain(sim, c);
    else if (!paused) /* else it is looked at what it has: rings_balance() */
        ring_op(sim, c);
}

/* --- What adds up ----------------------------------------------------------------------------------------------------- */

bool rings_want(const struct sim *sim)
{
    return sim->rings->rq != NULL;
}

void rings_balance(struct sim *sim)
{
    const struct ring_world *w = sim->rings;
    struct tiering_stat stat;

    if (!w->rq)
        return;
    tiering_stat(sim->tiering, &stat);
    for (uint32_t i = 0; i < RING_HOSTILE; i++) {
        const struct ring_client *c = &w->clients[i];
        uint32_t known = 0, has = c->peer.tiering.n_leases;

        for (uint32_t n = 0; n < RING_LEASES; n++)
            known += c->leases[n].used;
        /* A commit that was given up while its bytes were copied has its lease until that is over. */
        if (c->alive && calls_in_flight(c) == 0 && (has < known || has - known > stat.moves))
            sim_fail(sim, "client %u knows of %u leases, and is said to have %u", i, known, has);
    }
}
