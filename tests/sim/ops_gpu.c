/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocks to and from slots of a GPU's staging memory, with sessions that die meanwhile, and transfers that fail. One lane
 * a pool; one that is over is made anew when nothing of it is in flight. Bytes that a spill brought are what the block must
 * have from then on, and a fetch must bring the block's, whatever has become of session and block since it began.
 */
#include <errno.h>
#include <string.h>

#include "tests/sim/sim.h"

static void dma_done(struct tiering_dma *dma, int status)
{
    struct sim_dma *d = container_of(dma, struct sim_dma, dma);

    if (!d->used || d->done)
        sim_fail(d->sim, "a transfer ended twice");
    d->done = true;
    d->status = status;
}

static void lane_renew(struct sim *sim, uint32_t lane)
{
    sim->lanes[lane] = (struct sim_lane){.next_seq = {1, 1}};
    simdisk_lane_new(sim->disk, lane, SIM_SLOTS, SIM_SLOT_BYTES);
}

void gpu_restarted(struct sim *sim)
{
    for (uint32_t i = 0; i < SIM_DMAS; i++)
        sim->dmas[i].used = false;
    for (uint32_t lane = 0; lane < SIM_LANES; lane++)
        lane_renew(sim, lane);
}

/* --- The end ----------------------------------------------------------------------------------------------------- */

static void dma_lease_ended(struct sim *sim, const struct sim_dma *d, const struct sim_dma_lease *dl, uint8_t *bytes)
{
    struct object *o = &sim->objects[dl->object];
    struct sim_lease *l = &sim->leases[dl->lease];
    bool is_held = l->used && l->handle == dl->handle && l->in_dma;

    if (is_held)
        l->in_dma = false;
    if (d->op == IO_DMA_FETCH && d->status == 0)
        block_verify(sim, o, dl->part, dl->piece, dl->version, bytes);
    if (d->op == IO_DMA_SPILL && is_held) {
        l->filled = d->status == 0;
        if (l->filled)
            block_verify(sim, o, dl->part, dl->piece, dl->version, world_memory(sim, &l->grant));
    }
}

static void dma_ended(struct sim *sim, struct sim_dma *d)
{
    struct sim_lane *lane = &sim->lanes[d->lane];
    uint8_t *slot = simdisk_slot(sim->disk, d->lane, d->op, d->seq);

    sim_event(sim, 40 + d->op, (uint64_t)(int64_t)d->status);
    sim_log(sim, "transfer %u of lane %u, %u leases: %d", d->op, d->lane, d->n, d->status);
    for (uint32_t i = 0, at = 0; i < d->n; i++) {
        const struct sim_dma_lease *dl = &d->leases[i];

        dma_lease_ended(sim, d, dl, slot + at);
        at += object_piece_bytes(&sim->objects[dl->object], dl->piece);
    }
    d->used = false;
    lane->n_uses--;
    lane->is_over |= d->status < 0;
    sim->counts->gpu_spills += d->status == 0 && d->op == IO_DMA_SPILL;
    sim->counts->gpu_fetches += d->status == 0 && d->op == IO_DMA_FETCH;
    sim->counts->gpu_failures += d->status < 0;
    if (d->status < 0 && d->status != -EIO && d->status != -EPIPE)
        sim_fail(sim, "a transfer failed: %s", strerror(-d->status));
    if (lane->is_over && lane->n_uses == 0)
        lane_renew(sim, d->lane);
}

void gpu_ended(struct sim *sim)
{
    for (uint32_t i = 0; i < SIM_DMAS; i++)
        if (sim->dmas[i].used && sim->dmas[i].done)
            dma_ended(sim, &sim->dmas[i]);
}

/* --- The beginning ----------------------------------------------------------------------------------------------- */

static struct sim_dma *dma_new(struct sim *sim)
{
    for (uint32_t i = 0; i < SIM_DMAS; i++)
        if (!sim->dmas[i].used)
            return &sim->dmas[i];
    return NULL;
}

/* What must be said of the lease: 0, or why it is refused. */
static int expected(const struct sim *sim, const struct sim_dma *d, const struct sim_lease *l)
{
    if (sim->spaces[sim->objects[l->object].space].pool != d->lane)
        return -EXDEV;
    if (l->in_dma)
        return -EBUSY;
    return d->op == IO_DMA_SPILL && l->kind == HELD_READ ? -EROFS : 0;
}

static void dma_add(struct sim *sim, struct sim_dma *d, struct sim_lease *l)
{
    const struct object *o = &sim->objects[l->object];

    if (object_is_tensor(o) || (d->op == IO_DMA_FETCH && l->kind == HELD_RESERVED))
        return;
    if (d->dma.bytes + object_piece_bytes(o, l->piece) > SIM_SLOT_BYTES)
        return;
    int must = expected(sim, d, l), r = tiering_dma_add(sim->tiering, &d->dma, &sim->sessions[l->session].s, l->handle);

    if (r != must)
        sim_fail(sim, "a lease of block %u in a transfer: %d, not %d", l->object, r, must);
    if (r < 0)
        return;
    l->in_dma = true;
    d->leases[d->n++] = (struct sim_dma_lease){.object = l->object,
                                               .part = l->part,
                                               .piece = l->piece,
                                               .lease = (uint16_t)(l - sim->leases),
                                               .version = l->version,
                                               .handle = l->handle};
}

/* The client's kernel: before the transfer begins, or after, as long as the slot is awaited. */
static void slot_fill(struct sim *sim, const struct sim_dma *d)
{
    uint8_t *slot = simdisk_slot(sim->disk, d->lane, d->op, d->seq);

    for (uint32_t i = 0, at = 0; i < d->n; i++) {
        const struct sim_dma_lease *dl = &d->leases[i];
        const struct object *o = &sim->objects[dl->object];

        if (d->op == IO_DMA_SPILL)
            block_fill(sim, o, dl->part, dl->piece, dl->version, slot + at);
        else
            memset(slot + at, 0xee, object_piece_bytes(o, dl->piece));
        at += object_piece_bytes(o, dl->piece);
    }
}

void ops_gpu(struct sim *sim, uint32_t session)
{
    struct sim_dma *d = dma_new(sim);
    uint32_t n = 1 + (uint32_t)sim_below(sim, 2 * SIM_DMA_LEASES), lane = (uint32_t)sim_below(sim, SIM_LANES);
    uint8_t op = sim_percent(sim, 50) ? IO_DMA_SPILL : IO_DMA_FETCH;

    if (!d || sim->lanes[lane].n_uses == SIM_SLOTS)
        return;
    *d = (struct sim_dma){
        .dma.done = dma_done, .sim = sim, .op = op, .lane = (uint8_t)lane, .seq = sim->lanes[lane].next_seq[op]};
    tiering_dma_begin(
        sim->tiering, &d->dma,
        &(struct tiering_dma_spec){.op = op, .lane = lane, .pool = lane, .slot_bytes = SIM_SLOT_BYTES, .seq = d->seq});
    for (uint32_t i = 0; i < n && d->n < SIM_DMA_LEASES; i++) {
        struct sim_lease *l = lease_any(sim, session);

        if (l)
            dma_add(sim, d, l);
    }
    if (d->n == 0 || sim_percent(sim, 5)) {
        tiering_dma_abandon(sim->tiering, &d->dma);
        for (uint32_t i = 0; i < d->n; i++)
            sim->leases[d->leases[i].lease].in_dma = false;
        return;
    }
    d->used = true;
    sim->lanes[lane].next_seq[op]++;
    sim->lanes[lane].n_uses++;
    slot_fill(sim, d);
    tiering_dma_run(sim->tiering, &d->dma);
}

bool gpu_has(struct sim *sim, struct sim_lease *l)
{
    struct tiering_session *s = &sim->sessions[l->session].s;
    struct tiering_grant grant;
    int r;

    if (!l->in_dma)
        return false;
    if (l->kind == HELD_RESERVED)
        r = sim_percent(sim, 50) ? tiering_abort(sim->tiering, s, l->handle)
                                 : tiering_commit(sim->tiering, s, l->handle, NULL, &grant);
    else
        r = tiering_release(sim->tiering, s, l->handle, 0);
    if (r != -EBUSY)
        sim_fail(sim, "a lease could end though it is in a transfer: %d", r);
    return true;
}
