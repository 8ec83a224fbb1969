/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making and freeing rings. The daemon makes the memory; its geometry is checked here, once, and is private from then
 * on. A ring belongs to its session's list from its making to its end, under session.lock. Any thread.
 */
#include "client/lib/client.h"

#include "include/base/checked.h"

#define SPIN_NS_FIRST 5000

/* The geometry is checked once; ring_bytes was checked against the memfd by the mapping. */
static bool geometry_ok(const struct spw_msg_ring *msg)
{
    return is_pow2(msg->sq_entries) && is_pow2(msg->cq_entries) && msg->sq_entries <= RING_ENTRIES_MAX &&
           msg->cq_entries <= RING_ENTRIES_MAX && msg->sq_offset >= sizeof(struct spw_ring) &&
           msg->cq_offset >= sizeof(struct spw_ring) && msg->sq_offset % 64 == 0 && msg->cq_offset % 64 == 0 &&
           range_ok(msg->sq_offset, (uint64_t)msg->sq_entries * sizeof(struct spw_sqe), msg->ring_bytes) &&
           range_ok(msg->cq_offset, (uint64_t)msg->cq_entries * sizeof(struct spw_cqe), msg->ring_bytes) &&
           msg->scratch_bytes >= CLIENT_SCRATCH_BYTES_MIN && msg->scratch_bytes <= SCRATCH_BYTES_MAX;
}

static int slots_init(struct client_ring *ring)
{
    ring->n_slots = MIN(ring->sq_entries, ring->cq_entries);
    ring->slots = calloc(ring->n_slots, sizeof(*ring->slots));
    ring->free_slots = calloc(ring->n_slots, sizeof(*ring->free_slots));
    if (!ring->slots || !ring->free_slots)
        return client_error(-ENOMEM, 0, "out of memory");
    for (uint32_t i = 0; i < ring->n_slots; i++)
        ring->free_slots[i] = ring->n_slots - 1 - i;
    ring->n_free = ring->n_slots;
    return 0;
}

static int ring_map(struct client_ring *ring, const struct spw_msg_ring *msg, const int fds[static 2])
{
    if (!geometry_ok(msg))
        return client_error(-EPROTO, 0, "the daemon sent a ring with an impossible geometry");
    int r = client_map_open(fds[0], msg->ring_bytes, true, &ring->memory);
    if (r == 0)
        r = client_map_open(fds[1], msg->scratch_bytes, true, &ring->scratch_memory);
    if (r == 0)
        r = client_scratch_init(&ring->scratch, ring->scratch_memory.base, msg->scratch_bytes);
    if (r < 0)
        return r;
    ring->number = msg->ring;
    ring->sq_entries = msg->sq_entries;
    ring->cq_entries = msg->cq_entries;
    ring->shared = ring->memory.base;
    ring->sqes = (struct spw_sqe *)(void *)((uint8_t *)ring->memory.base + msg->sq_offset);
    ring->cqes = (struct spw_cqe *)(void *)((uint8_t *)ring->memory.base + msg->cq_offset);
    return slots_init(ring);
}

int client_ring_make(spw_session *session, uint32_t engine, uint32_t entries, uint64_t scratch_bytes, uint32_t *era,
                     struct client_ring **ret_ring)
{
    struct spw_msg_ring_new ask = {
        .engine = engine, .sq_entries = entries, .cq_entries = entries, .scratch_bytes = scratch_bytes};
    struct spw_msg_ring reply = {0};
    int fds[3] = {-1, -1, -1};
    struct client_ring *ring = calloc(1, sizeof(*ring));

    if (!ring)
        return client_error(-ENOMEM, 0, "out of memory");
    *ring = (struct client_ring){
        .session = session, .engine = engine, .doorbell = -1, .poll_fd = -1, .spin_ns = SPIN_NS_FIRST};
    list_init(&ring->link);
    list_init(&ring->waiting);
    int r = client_control_request_on(session, era, SPW_MSG_RING_NEW, &ask.msg, sizeof(ask), &reply.msg, sizeof(reply),
                                      fds, 3);
    if (r == 0) {
        ring->era = *era;
        ring->doorbell = fds[2];
        r = ring_map(ring, &reply, fds);
        close(fds[0]);
        close(fds[1]);
        if (r == -EPROTO)
            r = client_session_end(session, "it sent a ring that cannot be trusted");
    }
    if (r < 0) {
        client_ring_destroy(ring);
        return r;
    }
    *ret_ring = ring;
    return 0;
}

int client_ring_new(spw_session *session, uint32_t engine, uint32_t entries, struct client_ring **ret_ring)
{
    struct client_ring *ring;
    uint32_t era = 0;
    int r = client_ring_make(session, engine, entries, session->scratch_bytes, &era, &ring);

    if (r < 0)
        return r;
    pthread_mutex_lock(&session->lock);
    uint32_t serial = session->next_ring++ & (UINT32_MAX >> CLIENT_SLOT_BITS);
    for (uint32_t i = 0; i < ring->n_slots; i++)
        ring->slots[i].name = serial << CLIENT_SLOT_BITS | i;
    list_push_tail(&session->rings, &ring->link);
    pthread_mutex_unlock(&session->lock);
    *ret_ring = ring;
    return 0;
}

void client_ring_destroy(struct client_ring *ring)
{
    client_map_close(&ring->memory);
    client_map_close(&ring->scratch_memory);
    client_scratch_deinit(&ring->scratch);
    if (ring->doorbell >= 0)
        close(ring->doorbell);
    free(ring->slots);
    free(ring->free_slots);
    free(ring);
}

void client_ring_free(struct client_ring *ring)
{
    spw_session *session = ring->session;
    struct spw_msg_ring_free ask = {.ring = ring->number};
    struct spw_msg reply;

    client_ring_drain(ring); /* leases that are on their way back */
    pthread_mutex_lock(&session->lock);
    list_unlink(&ring->link);
    pthread_mutex_unlock(&session->lock);
    /* If it fails the session is over, or the daemon keeps the ring until it is. Its next process never had it. */
    uint32_t era = ring->era;
    if (load_relaxed(&session->dead) == 0)
        (void)!client_control_request_on(session, &era, SPW_MSG_RING_FREE, &ask.msg, sizeof(ask), &reply, sizeof(reply),
                                         NULL, 0);
    client_ring_destroy(ring);
}
