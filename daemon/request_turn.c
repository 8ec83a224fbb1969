/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the order in which things are done: one turn of the request path. Engine thread only.
 *
 * - Turns are deficit round robin over sessions: each earns a quantum of items, scaled by its weight, and a session
 *   with nothing to do saves nothing up. Within a session its rings take turns. While several users want something, the
 *   sessions of one of them share what one session would earn.
 * - A session gets a request or a wait only while it holds fewer than are free. So however many one of them takes,
 *   another finds some. What counts as free is less once the sessions of its user have their part of all: so however
 *   many sessions a user has, another user's find some, too.
 * - A turn is bounded by the sessions' quanta. Whatever could not go on (no wait, no request, no CQE) is looked at again
 *   in the next turn, which something's end brings about, or RETRY_NS.
 */
#include "daemon/request_core.h"
#include "include/base/point.h"

#define RETRY_NS UINT64_C(10000000) /* parked requests, and rings that wait for their client */

static uint32_t ring_serve(struct requests *rq, struct ring *ring, uint32_t budget)
{
    struct peer *peer = ring->peer;
    struct spw_sqe sqe;

    if (ring->current)
        return request_run(ring->current, budget);
    if (!peer_may_begin(rq, peer) || sim_point("request: none is free"))
        return 0;
    int r = ring_take(ring, &sqe);

    if (r < 0)
        peer_break(rq, peer, "an index of a ring is out of its bounds");
    if (r <= 0)
        return 0;
    ring_set_dirty(rq, ring);
    return request_begin(rq, ring, &sqe);
}

static void ring_publish_turn(struct ring *ring)
{
    list_unlink(&ring->dirty_link);
    ring_flush(ring);
}

static uint32_t peer_serve_parked(struct requests *rq, struct peer *peer)
{
    struct list tried;
    uint32_t used = 0;

    list_init(&tried);
    while (peer->deficit > 0 && !peer->broken && !list_is_empty(&peer->parked)) {
        struct request *req = list_entry(peer->parked.next, struct request, parked_link);

        list_unlink(&req->parked_link);
        list_push_tail(&tried, &req->parked_link);
        if (req->tried_at == rq->changes && rq->now_ns < req->retry_ns)
            continue;
        req->retry_ns = rq->now_ns + RETRY_NS;
        uint32_t n = request_run(req, QUANTUM_ITEMS);

        peer->deficit -= (int64_t)n * DEFICIT_PER_ITEM;
        used += n;
    }
    if (!list_is_empty(&peer->parked)) /* the next turn begins with those that had none in this one */
        rq->n_idle_hot++;
    list_splice_tail(&peer->parked, &tried);
    return used;
}

/* A ring that had nothing to do for long enough goes cold. */
static void ring_idle(struct requests *rq, struct ring *ring)
{
    if (ring->current || ring_is_choked(ring) || ring->sq_head != ring->sq_tail) {
        rq->n_blocked++;
        rq->stat.stalls++;
        return;
    }
    ring->peer_slept = ring_peer_sleeps(ring);
    if (rq->now_ns - ring->last_work_ns < MIN(ring->spin_ns[ring->peer_slept], ring_spin_max_ns(rq, ring))) {
        rq->n_idle_hot++;
        return;
    }
    ring->idle_since_ns = ring->last_work_ns;
    ring->last_work_ns = rq->now_ns;
    ring_doorbell_empty(ring);
    if (!ring_sleep(ring)) {
        sim_reached("ring: a submission comes as it goes to sleep");
        rq->n_idle_hot++;
        return;
    }
    if (rq->config.events->ring_cold(rq->config.ctx, ring) < 0) { /* nobody would hear its doorbell */
        ring_wake(ring);
        ring->rang = true; /* perhaps: it slept for a moment */
        rq->n_idle_hot++;
        return;
    }
    ring_set_hot(rq, ring, false);
}

/* Until the session has had its share, or none of its rings has anything. */
static uint32_t peer_serve_rings(struct requests *rq, struct peer *peer)
{
    uint32_t used = 0, idle = 0;

    while (peer->deficit > 0 && idle < peer->n_hot) {
        struct ring *ring = list_entry(peer->hot.next, struct ring, hot_link);
        uint32_t budget = (uint32_t)div_round_up((uint64_t)peer->deficit, DEFICIT_PER_ITEM);
        uint32_t n = ring_serve(rq, ring, MIN(budget, (uint32_t)QUANTUM_ITEMS));

        if (peer->broken)
            return used + n;
        if (!list_is_empty(&ring->dirty_link) && !ring->current && ring->sq_head == ring->sq_tail)
            ring_publish_turn(ring); /* now, not when the others were served: nothing more is known of this one */
        list_unlink(&ring->hot_link);
        list_push_tail(&peer->hot, &ring->hot_link);
        idle = n > 0 ? 0 : idle + 1;
        if (n > 0) {
            ring_learn(rq, ring, rq->now_ns - ring->last_work_ns);
            ring->last_work_ns = rq->now_ns;
        }
        peer->deficit -= (int64_t)n * DEFICIT_PER_ITEM;
        used += n;
    }
    if (peer->deficit <= 0) { /* there may be more: come back at once */
        rq->n_idle_hot++;
        return used;
    }
    peer->deficit = 0;
    list_for_each_safe (l, &peer->hot)
        ring_idle(rq, list_entry(l, struct ring, hot_link));
    return used;
}

/* Of a quantum, what a session has if all of its user's share one. */
static int64_t peer_share(const struct requests *rq, const struct peer *peer)
{
    int64_t quantum = (int64_t)QUANTUM_ITEMS * peer->weight;

    return peer->user == &rq->users[0] ? quantum : MAX(quantum / peer->user->n_active, INT64_C(1));
}

/* What a session takes beyond its quantum (a list of all or nothing is one step) all of its user's pay back together, before any
 * of them has another turn: so there is one such step of each user at a time. */
static bool peer_pays(struct requests *rq, struct peer *peer)
{
    struct request_user *user = peer->user;

    if (user->debt <= 0)
        return false;
    user->debt -= peer_share(rq, peer);
    rq->n_idle_hot++;
    return true;
}

/* Peers of one user share a quantum as soon as another user wants one: so a user has no more of an engine for having many
 * sessions. */
static uint32_t peer_turn(struct requests *rq, struct peer *peer)
{
    if (peer_pays(rq, peer))
        return 0;
    peer->deficit =
        MIN(peer->deficit, 0) + (rq->n_active_users > 1 ? peer_share(rq, peer) : (int64_t)QUANTUM_ITEMS * peer->weight);
    uint32_t used = list_is_empty(&peer->parked) ? 0 : peer_serve_parked(rq, peer);

    if (!peer->broken)
        used += peer_serve_rings(rq, peer);
    if (peer->user != &rq->users[0] && peer->deficit < 0) {
        peer->user->debt += -peer->deficit;
        peer->deficit = 0;
    }
    return used;
}

static void request_run_ended(struct request *req)
{
    req->runs = false;
    req->op->ended(req);
}

/* What tiering's callbacks have put aside. */
static uint32_t requests_collect(struct requests *rq)
{
    uint32_t n = 0;
    struct list *l;

    for (; (l = list_pop(&rq->ended)) != NULL; n++)
        piece_ended(list_entry(l, struct piece, ended_link));
    for (; (l = list_pop(&rq->ended_runs)) != NULL; n++)
        request_run_ended(list_entry(l, struct request, ended_link));
    return n;
}

static uint32_t requests_expire(struct requests *rq)
{
    struct deadline *deadline;
    uint32_t n = 0;

    for (; (deadline = deadlines_pop(&rq->deadlines, rq->now_ns)) != NULL; n++) {
        struct request *req = container_of(deadline, struct request, deadline);

        uint32_t detail =
            req->state == REQUEST_PARKED && req->parked_detail ? req->parked_detail : req->op->timeout_detail;

        if (detail == SPW_LIMIT_POOL_DRAM && req->op->needs_space)
            detail = tiering_room_limit(rq->tiering, req->space.pool);
        rq->stat.timeouts++;
        (void)request_stop(req, req->op->timeout_status, detail);
    }
    return n;
}

uint32_t requests_run(struct requests *rq, uint64_t now_ns)
{
    rq->now_ns = now_ns;
    rq->n_idle_hot = rq->n_blocked = 0;
    uint32_t n = requests_collect(rq) + requests_expire(rq);

    list_for_each_safe (a, &rq->active)
        n += peer_turn(rq, list_entry(a, struct peer, active_link));
    while (!list_is_empty(&rq->dirty))
        ring_publish_turn(list_entry(rq->dirty.next, struct ring, dirty_link));
    return n;
}

bool requests_peek(const struct requests *rq)
{
    if (!list_is_empty(&rq->ended) || !list_is_empty(&rq->ended_runs))
        return true;
    list_for_each (a, &rq->active) {
        list_for_each (l, &list_entry(a, struct peer, active_link)->hot) {
            if (ring_has_news(list_entry(l, struct ring, hot_link)))
                return true;
        }
    }
    return false;
}

uint32_t requests_hot_rings(const struct requests *rq)
{
    return rq->n_hot;
}

bool requests_wants_spin(const struct requests *rq)
{
    return rq->n_idle_hot > 0 || !list_is_empty(&rq->ended) || !list_is_empty(&rq->ended_runs);
}

uint64_t requests_next_ns(const struct requests *rq, uint64_t now_ns)
{
    uint64_t next_ns = deadlines_next_ns(&rq->deadlines);
    bool is_retrying = rq->n_blocked > 0;

    list_for_each (l, &rq->active)
        is_retrying |= !list_is_empty(&list_entry(l, struct peer, active_link)->parked);
    return is_retrying ? MIN(next_ns, now_ns + RETRY_NS) : next_ns;
}
