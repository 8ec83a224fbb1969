/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns sessions' seats at this engine: their spaces and rings, which of them are hot, and their end. Engine thread only.
 *
 * A peer that broke the protocol is taken off every list at once and nothing of it is looked at any more; whoever owns
 * it is told to end the session, and removes it. Removal gives back everything: requests, waits, leases.
 */
#include <errno.h>

#include "daemon/request_core.h"
#include "include/base/kill_point.h"
#include "include/base/point.h"

#define SPIN_NS_MIN 2000  /* unless spin_us says less */
#define SPIN_AWAKE_PART 5 /* of spin_us, for a client that sleeps */

void requests_peer_add(struct requests *rq, struct peer *peer, uint64_t session, uint64_t owner, uint32_t max_leases)
{
    list_push_tail(&rq->peers, &peer->link);
    list_init(&peer->active_link);
    list_init(&peer->rings);
    list_init(&peer->hot);
    list_init(&peer->parked);
    peer->session = session;
    peer->generation = (uint16_t)(session % UINT16_MAX + 1);
    peer->weight = DEFICIT_PER_ITEM;
    peer->user = &rq->users[0];
    tiering_session_init(rq->tiering, &peer->tiering, session, owner, max_leases);
}

void requests_peer_user(struct requests *rq, struct peer *peer, uint64_t name)
{
    tiering_session_user(rq->tiering, &peer->tiering, name);
    peer->user = &rq->users[peer->tiering.user];
}

void requests_set_user_percent(struct requests *rq, uint32_t percent)
{
    for (uint32_t i = 0; i < USERS_MAX; i++) {
        bool is_free = i == 0 || percent == 0;

        rq->users[i].max_requests =
            is_free ? UINT32_MAX : (uint32_t)((uint64_t)rq->config.max_requests * percent / 100);
        rq->users[i].max_waits = is_free ? UINT32_MAX : (uint32_t)((uint64_t)rq->config.max_waits * percent / 100);
    }
}

void requests_set_weights(struct requests *rq, const uint32_t *weights)
{
    list_for_each (l, &rq->peers) {
        struct peer *peer = list_entry(l, struct peer, link);
        uint32_t largest = 0;

        for (uint32_t i = 0; i < peer->n_spaces; i++)
            largest = MAX(largest, weights[peer->spaces[i].pool]);
        if (largest > 0)
            peer->weight = largest;
    }
}

/* A handle is the engine's number, the index in the peer's table, and a generation that tells sessions apart. */
static uint32_t space_handle(const struct requests *rq, const struct peer *peer, uint32_t index)
{
    static_assert(ENGINES_MAX <= 64 && SESSION_SPACES_MAX <= 1024, "6 and 10 bits of the handle");
    return rq->config.engine << 26 | index << 16 | peer->generation;
}

int requests_space_add(struct requests *rq, struct peer *peer, const struct tiering_space_info *info, uint32_t weight,
                       uint32_t *ret_handle)
{
    uint32_t index = 0;

    while (index < peer->n_spaces && peer->spaces[index].index != info->index)
        index++;
    if (index == SESSION_SPACES_MAX)
        return -ENOSPC;
    if (index == peer->n_spaces) {
        peer->spaces[peer->n_spaces++] = (struct peer_space){
            .index = info->index,
            .pool = info->pool,
            .piece_bytes = info->piece_bytes,
            .item_bytes = info->item_bytes,
        };
        peer->weight = MAX(peer->n_spaces == 1 ? 1 : peer->weight, weight);
    }
    *ret_handle = space_handle(rq, peer, index);
    return 0;
}

int peer_space_find(const struct requests *rq, const struct peer *peer, uint32_t handle, struct peer_space *ret_space)
{
    uint32_t index = handle >> 16 & 1023;

    if ((handle & UINT16_MAX) != peer->generation)
        return -EBADF;
    if (handle >> 26 != rq->config.engine)
        return -EXDEV;
    if (index >= peer->n_spaces)
        return -EBADF;
    *ret_space = peer->spaces[index];
    return 0;
}

/* Counted, so that peers of one user can share its turns. */
static void peer_set_active(struct requests *rq, struct peer *peer, bool active)
{
    if (active == !list_is_empty(&peer->active_link))
        return;
    if (active)
        list_push_tail(&rq->active, &peer->active_link);
    else
        list_unlink(&peer->active_link);
    if (peer->user == &rq->users[0])
        return;
    peer->user->n_active += active ? 1 : -1U;
    if (peer->user->n_active == (active ? 1 : 0))
        rq->n_active_users += active ? 1 : -1U;
}

void peer_update_active(struct requests *rq, struct peer *peer)
{
    bool wants = !peer->broken && (!list_is_empty(&peer->hot) || !list_is_empty(&peer->parked));

    peer_set_active(rq, peer, wants);
}

void ring_set_hot(struct requests *rq, struct ring *ring, bool hot)
{
    bool is_hot = !list_is_empty(&ring->hot_link);

    if (hot && !is_hot) {
        list_push_tail(&ring->peer->hot, &ring->hot_link);
        ring->peer->n_hot++;
        rq->n_hot++;
    } else if (!hot && is_hot) {
        list_unlink(&ring->hot_link);
        ring->peer->n_hot--;
        rq->n_hot--;
    }
    peer_update_active(rq, ring->peer);
}

void ring_set_dirty(struct requests *rq, struct ring *ring)
{
    if (list_is_empty(&ring->dirty_link))
        list_push_tail(&rq->dirty, &ring->dirty_link);
}

void requests_ring_add(struct requests *rq, struct peer *peer, struct ring *ring)
{
    ring->peer = peer;
    ring->last_work_ns = rq->now_ns;
    ring->spin_ns[false] = ring->spin_ns[true] = rq->config.spin_ns;
    list_push_tail(&peer->rings, &ring->link);
    rq->n_rings++;
    if (!peer->broken)
        ring_set_hot(rq, ring, true);
}

/* A client that is awake notices each microsecond; one that sleeps takes longer to wake than the engine does. */
uint64_t ring_spin_max_ns(const struct requests *rq, const struct ring *ring)
{
    return ring->peer_slept ? rq->config.spin_ns / SPIN_AWAKE_PART : rq->config.spin_ns;
}

/* A ring that had no work for so long has some. It stays hot long enough to see the next such gap to its end, or if that would
 * be too long, ever less: a client that waits for a device is not to be waited for. */
void ring_learn(const struct requests *rq, struct ring *ring, uint64_t gap_ns)
{
    uint64_t *spin_ns = &ring->spin_ns[ring->peer_slept], max_ns = ring_spin_max_ns(rq, ring);

    if (gap_ns > max_ns)
        *spin_ns = MAX(*spin_ns / 2, (uint64_t)SPIN_NS_MIN);
    else
        *spin_ns = MIN(MAX(*spin_ns, 2 * gap_ns), max_ns);
    ring->peer_slept = false;
}

void requests_ring_hot(struct requests *rq, struct ring *ring, uint64_t now_ns)
{
    if (ring->peer->broken)
        return;
    if (list_is_empty(&ring->hot_link)) /* it was cold */
        ring_learn(rq, ring, now_ns - ring->idle_since_ns);
    ring_wake(ring);
    ring->rang = true;
    ring->last_work_ns = now_ns;
    ring_set_hot(rq, ring, true);
}

void peer_break(struct requests *rq, struct peer *peer, const char *why)
{
    if (peer->broken)
        return;
    peer->broken = true;
    rq->stat.violations++;
    list_for_each (l, &peer->rings)
        ring_set_hot(rq, list_entry(l, struct ring, link), false);
    peer_update_active(rq, peer);
    rq->config.events->broken(rq->config.ctx, peer, why);
}

bool requests_break_session(struct requests *rq, uint64_t session, const char *why)
{
    list_for_each (l, &rq->peers) {
        struct peer *peer = list_entry(l, struct peer, link);

        if (peer->session != session)
            continue;
        peer_break(rq, peer, why);
        return true;
    }
    return false;
}

/* The session goes: no CQE, and what its pieces were granted is released with the session. */
static void request_drop(struct request *req)
{
    list_for_each_safe (l, &req->pieces) {
        struct piece *piece = list_entry(l, struct piece, link);

        if (piece->state == PIECE_WAITING) {
            sim_reached("peer: gone while it waits");
            (void)tiering_wait_cancel(req->rq->tiering, &piece->wait);
        }
        piece_free(piece);
    }
    req->waiting = 0;
    if (req->runs && req->op->run == dma_run)
        (void)dma_stop(req, -ECANCELED, 0); /* so that it ends soon */
    kill_point("request.drop");
    request_set_state(req, req->runs ? REQUEST_DETACHED : REQUEST_FREE);
}

void requests_ring_remove(struct requests *rq, struct ring *ring)
{
    list_for_each_safe (l, &ring->requests)
        request_drop(list_entry(l, struct request, link));
    ring->current = NULL;
    ring_set_hot(rq, ring, false);
    list_unlink(&ring->dirty_link);
    list_unlink(&ring->link);
    kill_point("request.ring_gone");
    rq->n_rings--;
    rq->changes++;
}

void requests_peer_silence(struct requests *rq, struct peer *peer)
{
    tiering_leave(rq->tiering);
    list_for_each_safe (l, &peer->rings)
        requests_ring_remove(rq, list_entry(l, struct ring, link));
}

void requests_peer_remove(struct requests *rq, struct peer *peer, bool leaves)
{
    if (leaves)
        tiering_leave(rq->tiering);
    list_for_each_safe (l, &peer->rings)
        requests_ring_remove(rq, list_entry(l, struct ring, link));
    for (uint32_t i = 0; i < SESSION_GPU_LANES_MAX; i++)
        assert(!peer->lanes[i].is_used);
    if (leaves)
        tiering_session_leave(rq->tiering, &peer->tiering);
    else
        tiering_session_end(rq->tiering, &peer->tiering);
    peer_set_active(rq, peer, false);
    list_unlink(&peer->link);
    rq->changes++;
}

void requests_unanswered(struct requests *rq, struct peer *peer, const uint64_t *user_data, uint32_t n)
{
    tiering_session_lost(rq->tiering, &peer->tiering, user_data, n);
    rq->changes++;
}
