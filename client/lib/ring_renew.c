/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A ring after a restart of the daemon: the new process knows nothing of it. What it had completed was taken; the rest is
 * still in the slots, and its lists in the old scratch memory, which nobody but us writes to any more. So a ring is
 * made anew with the same geometry, the lists are copied, cell by cell, and every slot is submitted again under its name,
 * as a retry. What RESERVE and ACQUIRE may have been granted there without our hearing of it is given back first. A transfer
 * through a GPU's lane is not asked for again: the lane has ended with the daemon, and another one may have its number.
 *
 *   slot: CALL ── its deadline passed, or it was cancelled, with no daemon to ask ──▶ LOST ── the ring is renewed ──▶ FREE
 *
 * Runs in the turn of the ring's user; nobody sleeps on the ring then.
 */
#include <string.h>
#include <sys/epoll.h>

#include "client/lib/client.h"

/* --- While there is no daemon ----------------------------------------------------------------------------------------- */

static bool slot_is_late(const struct client_slot *slot, uint64_t now_ms)
{
    const struct client_call *call = slot->call;

    return slot->state == CLIENT_SLOT_CALL && call && (call->cancel || client_call_left_ms(call, now_ms) == 0);
}

void client_ring_expire(struct client_ring *ring)
{
    uint64_t now_ms = client_now_coarse_ms();

    for (uint32_t i = 0; i < ring->n_slots; i++) {
        struct client_slot *slot = &ring->slots[i];

        if (slot_is_late(slot, now_ms))
            client_ring_slot_lose(ring, slot, slot->call->cancel ? -ECANCELED : -ETIMEDOUT);
    }
    client_ring_expire_waiting(ring, now_ms);
    if (ring->poll_fd >= 0 && !ring->is_unpolled) /* its hang-up is no news any more */
        ring->is_unpolled = epoll_ctl(ring->poll_fd, EPOLL_CTL_DEL, ring->doorbell, NULL) == 0;
}

/* --- The new one ------------------------------------------------------------------------------------------------------ */

static bool slot_may_hold(const struct client_slot *slot)
{
    return slot->opcode == SPW_OP_RESERVE || slot->opcode == SPW_OP_ACQUIRE;
}

/* Tells which requests' leases nobody has heard of. */
static int tell_unanswered(struct client_ring *ring, uint32_t *era)
{
    struct spw_msg reply;
    uint32_t n = 0;
    cleanup_free struct spw_msg_unanswered *told = malloc(sizeof(*told) + ring->n_slots * sizeof(uint64_t));

    if (!told)
        return client_error(-ENOMEM, 0, "out of memory");
    uint64_t *names = (uint64_t *)(void *)(told + 1);

    for (uint32_t i = 0; i < ring->n_slots; i++)
        if (ring->slots[i].state != CLIENT_SLOT_FREE && slot_may_hold(&ring->slots[i]))
            names[n++] = ring->slots[i].name;
    if (n == 0)
        return 0;
    *told = (struct spw_msg_unanswered){.engine = ring->engine, .n = n};
    return client_control_request_on(ring->session, era, SPW_MSG_UNANSWERED, &told->msg,
                                     sizeof(*told) + n * sizeof(uint64_t), &reply, sizeof(reply), NULL, 0);
}

/* The old ring's place is the new one's; the old memory goes with `fresh`. */
static void ring_swap(struct client_ring *ring, struct client_ring *fresh)
{
    struct client_map memory = ring->memory, scratch_memory = ring->scratch_memory;
    int doorbell = ring->doorbell;

    pthread_mutex_lock(&ring->session->lock); /* client_ring_rouse() */
    ring->memory = fresh->memory;
    ring->scratch_memory = fresh->scratch_memory;
    ring->scratch.base = fresh->scratch.base; /* which cells are in use stays */
    ring->shared = fresh->shared;
    ring->sqes = fresh->sqes;
    ring->cqes = fresh->cqes;
    ring->number = fresh->number;
    ring->doorbell = fresh->doorbell;
    ring->era = fresh->era;
    pthread_mutex_unlock(&ring->session->lock);
    ring->sq_tail = ring->sq_published = ring->cq_head = ring->rung = 0;
    fresh->memory = memory;
    fresh->scratch_memory = scratch_memory;
    fresh->doorbell = doorbell;
}

static int ring_poll_again(struct client_ring *ring, int old_doorbell)
{
    struct epoll_event event = {.events = EPOLLIN};

    if (ring->poll_fd < 0)
        return 0;
    if (!ring->is_unpolled)
        (void)epoll_ctl(ring->poll_fd, EPOLL_CTL_DEL, old_doorbell, NULL);
    ring->is_unpolled = false;
    return epoll_ctl(ring->poll_fd, EPOLL_CTL_ADD, ring->doorbell, &event) < 0 ? -errno : 0;
}

/* Submits what is in flight again; `old` has the lists. */
static void ring_resubmit(struct client_ring *ring, const struct client_map *old)
{
    uint64_t now_ms = client_now_coarse_ms();

    for (uint32_t i = 0; i < ring->n_slots; i++) {
        struct client_slot *slot = &ring->slots[i];

        if (slot->state == CLIENT_SLOT_CALL && slot->call && client_call_is_stale(ring, slot->call))
            client_ring_slot_lose(ring, slot, -EPIPE);
        if (slot->state == CLIENT_SLOT_CALL) {
            size_t at = (size_t)slot->cell * CLIENT_CELL_BYTES;
            memcpy(ring->scratch.base + at, (const uint8_t *)old->base + at, slot->slice.items_bytes);
            client_ring_submit_again(ring, slot, now_ms);
        } else if (slot->state != CLIENT_SLOT_FREE) { /* a CANCEL that nothing is left of, or LOST */
            client_ring_slot_free(ring, slot);
        }
    }
    client_ring_flush(ring);
}

static bool has_same_shape(const struct client_ring *a, const struct client_ring *b)
{
    return a->sq_entries == b->sq_entries && a->cq_entries == b->cq_entries &&
           a->scratch_memory.size_bytes == b->scratch_memory.size_bytes;
}

int client_ring_renew(struct client_ring *ring)
{
    struct client_ring *fresh = NULL;
    uint32_t era = load_acquire(&ring->session->era);

    client_ring_expire(ring);
    int r = era % 2 == 0 ? tell_unanswered(ring, &era) : -ESTALE;
    if (r == 0)
        r = client_ring_make(ring->session, ring->engine, ring->sq_entries, ring->scratch_memory.size_bytes, &era,
                             &fresh);
    if (r == -ESTALE) /* the connection is gone again */
        return 0;
    if (r < 0 || !fresh)
        return client_session_end(ring->session, NULL);
    if (!has_same_shape(ring, fresh)) {
        client_ring_destroy(fresh);
        return client_session_end(ring->session, "it made a ring of another shape");
    }
    int old_doorbell = ring->doorbell;

    ring_swap(ring, fresh);
    ring_resubmit(ring, &fresh->scratch_memory);
    r = ring_poll_again(ring, old_doorbell);
    client_ring_destroy(fresh); /* the old one, by now */
    return r < 0 ? client_session_end(ring->session, NULL) : 0;
}
