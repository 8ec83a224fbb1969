/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client that breaks every rule: it lies about indices, lists and handles, changes what it has submitted, names what
 * is not its own, and takes what it can get. What it has to show for it is its own end; nobody else may notice, and the
 * others' checks see to that. It keeps to keys of its own, since a pool's sessions may delete each other's objects.
 */
#include <errno.h>
#include <string.h>

#include "include/base/mix.h"
#include "tests/sim/ring.h"

static struct spw_item item_any(struct sim *sim)
{
    struct spw_item item = {.key = {0xff, (uint8_t)sim_below(sim, 24), 0xff, 0xff}, .key_len = 4};

    item.length_bytes =
        sim_percent(sim, 90) ? 1 + sim_below(sim, 2 * SIM_PIECE_BYTES) : sim_random(sim) >> sim_below(sim, 64);
    if (sim_percent(sim, 10))
        item.offset_bytes = sim_random(sim) >> sim_below(sim, 64);
    if (sim_percent(sim, 5))
        item.key_len = (uint8_t)sim_random(sim);
    if (sim_percent(sim, 5)) {
        item.n_parts = (uint16_t)sim_random(sim);
        item.part = (uint16_t)sim_below(sim, 3);
    }
    if (sim_below(sim, 300) == 0)
        item.reserved1 = 1;
    return item;
}

/* Its own, the neighbours', or none at all. */
static struct spw_handle handle_any(struct sim *sim, struct ring_client *c)
{
    const struct ring_client *other = &sim->rings->clients[sim_below(sim, RING_HOSTILE)];
    const struct ring_lease *l = &other->leases[sim_below(sim, RING_LEASES)];
    struct spw_handle handle = {.lease = c->leases[sim_below(sim, RING_LEASES)].handle};

    if (sim_percent(sim, 40))
        handle.lease = l->used ? l->handle : sim_random(sim) & 0xffff000000ff;
    if (sim_below(sim, 300) == 0)
        handle.flags = (uint32_t)sim_random(sim);
    return handle;
}

static void fill(struct sim *sim, struct ring_client *c, const struct ring_call *call)
{
    bool handles = call->opcode == SPW_OP_COMMIT || call->opcode == SPW_OP_ABORT || call->opcode == SPW_OP_RELEASE ||
                   call->opcode == SPW_OP_GPU_SPILL || call->opcode == SPW_OP_GPU_FETCH;

    for (uint32_t i = 0; i < call->n; i++) {
        if (handles)
            ((struct spw_handle *)ring_call_items(c, call))[i] = handle_any(sim, c);
        else
            ((struct spw_item *)ring_call_items(c, call))[i] = item_any(sim);
    }
}

/* PLAN: in a quarter of the runs, those with the plan policy among them. Not drawn: other seeds are the runs that they were. */
static uint8_t opcode_any(struct sim *sim)
{
    if (mix64(sim->seed) % 4 == 0 && sim_percent(sim, 15))
        return SPW_OP_PLAN;
    return (uint8_t)sim_below(sim, SPW_OP_PLAN);
}

/* A list of a plan: the first one, or what comes behind the last one, or neither. */
static void declare(struct sim *sim, struct ring_client *c, struct spw_sqe *sqe)
{
    bool ends = sim_percent(sim, 50);

    sqe->results = 0;
    sqe->arg[0] = sim_percent(sim, 60) ? c->planned : 0;
    c->planned = sqe->arg[0] + sqe->n_items;
    sqe->arg[1] = c->planned + (ends ? 0 : 1 + sim_below(sim, RING_ITEMS));
    if (ends)
        c->planned = 0;
    if (sim_percent(sim, 20))
        sqe->arg[sim_below(sim, 3)] = sim_random(sim) >> sim_below(sim, 64);
}

/* A field of the SQE that is not what it should be. */
static void spoil(struct sim *sim, struct spw_sqe *sqe)
{
    uint64_t any = sim_random(sim) >> sim_below(sim, 64);

    switch (sim_below(sim, 9)) {
    case 0:
        sqe->items = (uint32_t)any;
        break;
    case 1:
        sqe->n_items = (uint32_t)any;
        break;
    case 2:
        sqe->results = (uint32_t)any;
        break;
    case 3:
        sqe->space = (uint32_t)any;
        break;
    case 4:
        sqe->arg[sim_below(sim, 3)] = any;
        break;
    case 5:
        sqe->flags = (uint8_t)sim_below(sim, 16);
        break;
    case 6:
        sqe->timeout_ms = (uint32_t)any;
        break;
    case 7:
        sqe->user_data = any;
        break;
    default:
        if (sim_percent(sim, 20))
            ((uint8_t *)sqe)[sim_below(sim, sizeof(*sqe))] ^= (uint8_t)sim_random(sim);
        break;
    }
}

static void lie_about_indices(struct sim *sim, struct ring_client *c)
{
    struct spw_ring *shared = (void *)c->mem;

    if (sim_percent(sim, 50))
        store_release(&shared->client.sq_tail, c->sq_tail + (uint32_t)sim_random(sim));
    else
        store_release(&shared->client.cq_head, c->cq_head + (uint32_t)sim_random(sim));
    if (load_acquire(&shared->daemon.sq_flags) & SPW_RING_NEED_WAKEUP) {
        requests_ring_hot(sim->rings->rq, &c->ring, sim->now_ns);
        sim->rings->rang = true;
    }
}

void ring_hostile_op(struct sim *sim, struct ring_client *c)
{
    struct ring_call *call;

    if (sim_below(sim, 150) == 0) {
        lie_about_indices(sim, c);
        return;
    }
    if (sim_percent(sim, 10)) /* what is being read changes */
        for (uint32_t i = 0; i < 64; i++)
            c->scratch[sim_below(sim, RING_SCRATCH_BYTES)] ^= (char)sim_random(sim);
    call = ring_call_new(sim, c, opcode_any(sim));
    if (!call) {
        memset(c->calls, 0, sizeof(c->calls)); /* it does not wait for answers */
        return;
    }
    if (call->opcode == SPW_OP_PUT_RANGE && sim_percent(sim, 80))
        call->opcode = SPW_OP_RESERVE;
    call->n = (uint8_t)sim_below(sim, RING_ITEMS + 1);
    fill(sim, c, call);
    struct spw_sqe sqe = ring_call_sqe(c, call, c->spaces[sim_below(sim, RING_SPACES)]);

    if (call->opcode == SPW_OP_PLAN)
        declare(sim, c, &sqe);
    if (sim_percent(sim, 40))
        spoil(sim, &sqe);
    ring_submit(sim, c, &sqe);
}
