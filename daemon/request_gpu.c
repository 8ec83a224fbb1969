/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the lanes of sessions at this engine, and GPU_SPILL and GPU_FETCH: one list of handles is one use of a lane.
 * Engine thread only.
 *
 * Invariants
 * - A list is checked as a whole before anything is begun. A refused request has changed nothing; one that is begun has
 *   advanced the sequence of its direction, whatever becomes of it.
 * - There is no deadline here: the helper ends what is late, and with it the lane. The CQE comes when nobody touches the
 *   leases' bytes any more, and not before; if the helper hangs, when its process is gone.
 * - What one lane has on its way is bounded, so that the helper can take it from the ring, whatever the client does or
 *   leaves undone, and no lane waits for another.
 * - Fences are the helper's to write, and ours only once it has ended.
 */
#include <errno.h>

#include "daemon/request_core.h"
#include "include/base/atomic.h"

/* --- Lanes ------------------------------------------------------------------------------------------------------- */

static struct peer_lane *lane_find(struct peer *peer, uint64_t number)
{
    for (uint32_t i = 0; i < SESSION_GPU_LANES_MAX; i++)
        if (peer->lanes[i].is_used && peer->lanes[i].spec.lane == number)
            return &peer->lanes[i];
    return NULL;
}

int requests_lane_add(struct requests *rq, struct peer *peer, const struct lane_spec *spec)
{
    if (lane_find(peer, spec->lane))
        return -EEXIST;
    for (uint32_t i = 0; i < SESSION_GPU_LANES_MAX; i++) {
        if (peer->lanes[i].is_used)
            continue;
        peer->lanes[i] = (struct peer_lane){.spec = *spec, .next_seq = {1, 1}, .is_used = true, .rq = rq, .peer = peer};
        return 0;
    }
    return -ENOSPC;
}

static bool lane_is_idle(const struct peer_lane *lane)
{
    return lane->n_uses[LANE_SPILL] == 0 && lane->n_uses[LANE_FETCH] == 0 && !lane->cancel_runs;
}

/* Something of it has ended. */
static void lane_settle(struct peer_lane *lane)
{
    void *removal = lane->removal;

    if (!removal || !lane_is_idle(lane))
        return;
    lane->is_used = false;
    lane->rq->config.events->lane_gone(lane->rq->config.ctx, removal);
}

static void lane_cancelled(struct tiering_dma *dma, int status)
{
    struct peer_lane *lane = container_of(dma, struct peer_lane, cancel);

    (void)status; /* whatever it says, the lane is over */
    lane->cancel_runs = false;
    lane->is_over = true;
    lane_settle(lane);
}

/* The uses end by themselves after that, each with its own completion. */
static void lane_cancel(struct peer_lane *lane)
{
    if (lane->is_cancelled || lane->is_over)
        return;
    lane->is_cancelled = lane->cancel_runs = true;
    lane->cancel.done = lane_cancelled;
    tiering_dma_begin(lane->rq->tiering, &lane->cancel,
                      &(struct tiering_dma_spec){.op = IO_DMA_CANCEL,
                                                 .gpu = lane->spec.gpu,
                                                 .lane = lane->spec.lane,
                                                 .pool = lane->spec.pool,
                                                 .expires_ns = lane->rq->now_ns});
    tiering_dma_run(lane->rq->tiering, &lane->cancel);
}

bool requests_lane_remove(struct requests *rq, struct peer *peer, uint32_t number, void *removal)
{
    struct peer_lane *lane = lane_find(peer, number);

    (void)rq;
    if (!lane)
        return true;
    assert(removal && !lane->removal);
    if (lane_is_idle(lane)) {
        lane->is_used = false;
        return true;
    }
    lane->removal = removal;
    lane_cancel(lane);
    return false;
}

/* As the helper would: the status, then the end that every wait is content with. It may have come as far as the status. */
static void fences_end(struct spw_gpu_fences *fences)
{
    struct spw_gpu_fence *both[LANE_DIRECTIONS] = {&fences->spill, &fences->fetch};

    for (int d = 0; d < LANE_DIRECTIONS; d++)
        if (load_relaxed(&both[d]->status) == 0)
            store_relaxed(&both[d]->status, (uint64_t)EIO);
    for (int d = 0; d < LANE_DIRECTIONS; d++)
        store_release(&both[d]->daemon_seq,
                      SPW_GPU_SEQ_OVER); /* pairs with the client's wait, then load of the status */
}

void requests_gpu_gone(struct requests *rq, uint32_t gpu)
{
    list_for_each (l, &rq->peers) {
        struct peer *peer = list_entry(l, struct peer, link);

        for (uint32_t i = 0; i < SESSION_GPU_LANES_MAX; i++) {
            struct peer_lane *lane = &peer->lanes[i];

            if (!lane->is_used || lane->spec.gpu != gpu)
                continue;
            lane->is_over = true;
            fences_end(lane->spec.fences);
        }
    }
}

/* --- Uses -------------------------------------------------------------------------------------------------------- */

static enum lane_direction request_direction(const struct request *req)
{
    return req->sqe.opcode == SPW_OP_GPU_SPILL ? LANE_SPILL : LANE_FETCH;
}

/* 0, or why this use is refused. */
static int dma_check_lane(struct request *req, uint32_t *ret_detail)
{
    struct peer_lane *lane = lane_find(req->peer, req->sqe.arg[0]);
    enum lane_direction d = request_direction(req);

    if (!lane || lane->removal)
        return -EBADF;
    if (lane->is_over || lane->is_cancelled)
        return -EPIPE;
    if (req->sqe.arg[1] != lane->next_seq[d] || req->sqe.arg[2] > lane->spec.alloc_bytes)
        return -EINVAL;
    req->lane = lane;
    if (lane->n_uses[d] == GPU_LANE_AHEAD * lane->spec.slots ||
        req->sqe.n_items > GPU_RING_ENTRIES - lane->n_leases[d]) {
        *ret_detail = SPW_LIMIT_REQUESTS;
        return -EBUSY;
    }
    return 0;
}

/* How many bytes the use may have: what a slot has; in an allocation no more than there are behind its beginning. */
static uint64_t dma_room(const struct request *req)
{
    const struct lane_spec *spec = &req->lane->spec;

    return spec->alloc_bytes ? MIN(spec->slot_bytes, spec->alloc_bytes - req->sqe.arg[2]) : spec->slot_bytes;
}

/* Copies the next few handles. False: the peer was broken. */
static bool dma_look_ahead(struct request *req, uint32_t first, uint32_t n)
{
    struct requests *rq = req->rq;

    for (uint32_t i = 0; i < n; i++) {
        if (!list_copy_handle(req, first + i, &rq->ahead[i].handle))
            return false;
        tiering_warm_lease(rq->tiering, rq->ahead[i].handle.lease);
    }
    for (uint32_t i = 0; i < n; i++)
        tiering_warm_leased(rq->tiering, rq->ahead[i].handle.lease);
    return true;
}

enum { DMA_PEER_BROKEN = 1 };

/* All handles of the list: 0, DMA_PEER_BROKEN, or why one cannot be had. */
static int dma_add(struct request *req)
{
    struct requests *rq = req->rq;
    uint32_t n;

    for (uint32_t first = 0; first < req->sqe.n_items; first += n) {
        n = MIN(req->sqe.n_items - first, (uint32_t)LIST_WARM_ITEMS);
        if (!dma_look_ahead(req, first, n))
            return DMA_PEER_BROKEN;
        for (uint32_t i = 0; i < n; i++) {
            int r = tiering_dma_add(rq->tiering, &req->dma, &req->peer->tiering, rq->ahead[i].handle.lease);

            if (r < 0)
                return r;
        }
    }
    return 0;
}

static void dma_done(struct tiering_dma *dma, int status)
{
    struct request *req = container_of(dma, struct request, dma);

    req->run_status = status;
    list_push_tail(&req->rq->ended_runs, &req->ended_link);
}

uint32_t dma_run(struct request *req)
{
    struct requests *rq = req->rq;
    enum lane_direction d = request_direction(req);
    uint32_t n_items = req->sqe.n_items, detail = 0;
    int r = dma_check_lane(req, &detail);

    if (r < 0) {
        request_end(req, r, detail, 0);
        return 1;
    }
    rq->n_ahead = rq->next_ahead = 0; /* another list's */
    req->dma.done = dma_done;
    tiering_dma_begin(rq->tiering, &req->dma,
                      &(struct tiering_dma_spec){.op = d == LANE_SPILL ? IO_DMA_SPILL : IO_DMA_FETCH,
                                                 .gpu = req->lane->spec.gpu,
                                                 .lane = req->lane->spec.lane,
                                                 .pool = req->lane->spec.pool,
                                                 .slot_bytes = dma_room(req),
                                                 .base_bytes = req->sqe.arg[2],
                                                 .seq = req->lane->next_seq[d],
                                                 .expires_ns = req->expires_ns});
    r = dma_add(req);
    rq->stat.items += n_items;
    if (r != 0) {
        tiering_dma_abandon(rq->tiering, &req->dma);
        if (r != DMA_PEER_BROKEN)
            request_end(req, r, 0, 0);
        return n_items;
    }
    req->lane->next_seq[d]++;
    req->lane->n_uses[d]++;
    req->lane->n_leases[d] += n_items;
    req->runs = true;
    request_set_state(req, REQUEST_WAITING);
    tiering_dma_run(rq->tiering, &req->dma);
    return n_items;
}

void dma_ended(struct request *req)
{
    struct peer_lane *lane = req->lane;
    enum lane_direction d = request_direction(req);
    int status = req->run_status;
    uint64_t bytes = req->dma.bytes;

    lane->n_uses[d]--;
    lane->n_leases[d] -= req->sqe.n_items;
    lane->is_over |= status < 0;
    req->rq->changes++;
    if (req->state == REQUEST_DETACHED)
        request_set_state(req, REQUEST_FREE);
    else
        request_end(req, status, status == -EIO ? SPW_LIMIT_GPU_FAILED : SPW_LIMIT_NONE, status == 0 ? bytes : 0);
    lane_settle(lane);
}

/* Its lane ends with it: what comes behind in the same slots could not be told from it. */
bool dma_stop(struct request *req, int status, uint32_t detail)
{
    (void)status;
    (void)detail;
    if (!req->runs)
        return false;
    lane_cancel(req->lane);
    return true;
}
