/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the protocol of one ring pair: indices, the rule that no SQE is taken without a CQE for it, sleeping and waking.
 * Belongs to the engine's thread. It ends nothing itself: a violation is returned, and the request path ends the
 * session.
 */
#include "daemon/ring.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "include/base/cache.h"
#include "include/base/checked.h"
#include "include/base/kill_point.h"
#include "include/base/limits.h"
#include "include/base/ring.h"

#define DOORBELL_DRAIN_MAX 64 /* messages of one drain; a poll that is armed again sees the rest */
#define FUTEX_WAKE_MAX 64     /* threads of the client that wait for one ring */

static bool entries_ok(uint32_t entries)
{
    return is_pow2(entries) && entries >= RING_ENTRIES_MIN && entries <= RING_ENTRIES_MAX;
}

int ring_geometry(uint32_t sq_entries, uint32_t cq_entries, struct ring_geometry *ret_geometry)
{
    if (!entries_ok(sq_entries) || !entries_ok(cq_entries))
        return -EINVAL;
    uint32_t cq_offset = (uint32_t)(sizeof(struct spw_ring) + sq_entries * sizeof(struct spw_sqe));

    *ret_geometry = (struct ring_geometry){
        .sq_entries = sq_entries,
        .cq_entries = cq_entries,
        .sq_offset = sizeof(struct spw_ring),
        .cq_offset = cq_offset,
        .ring_bytes = round_up(cq_offset + cq_entries * sizeof(struct spw_cqe), SECTOR_BYTES),
    };
    return 0;
}

void ring_init(struct ring *ring, uint32_t number, const struct ring_geometry *geometry, void *ring_mem, void *scratch,
               uint64_t scratch_bytes, int doorbell_fd)
{
    *ring = (struct ring){
        .number = number,
        .shared = ring_mem,
        .sqes = (const void *)((const char *)ring_mem + geometry->sq_offset),
        .cqes = (void *)((char *)ring_mem + geometry->cq_offset),
        .scratch = scratch,
        .scratch_bytes = scratch_bytes,
        .sq_entries = geometry->sq_entries,
        .cq_entries = geometry->cq_entries,
        .doorbell_fd = doorbell_fd,
    };
    list_init(&ring->link);
    list_init(&ring->hot_link);
    list_init(&ring->dirty_link);
    list_init(&ring->requests);
}

/* Is a CQE free for one more request? Looks at the client's head only when the last known one is not enough. */
static int ring_has_room(struct ring *ring)
{
    if (ring->n_requests + ring_count(ring->cq_head, ring->cq_tail) < ring->cq_entries)
        return 1;
    uint32_t head = load_acquire(&ring->shared->client.cq_head);

    if (!ring_peer_ok(head, ring->cq_published, ring->cq_entries) ||
        !ring_peer_ok(ring->cq_head, head, ring->cq_entries))
        return -EPROTO;
    ring->cq_head = head;
    return ring->n_requests + ring_count(ring->cq_head, ring->cq_tail) < ring->cq_entries;
}

int ring_take(struct ring *ring, struct spw_sqe *ret_sqe)
{
    if (ring->sq_head == ring->sq_tail) {
        /* Pairs with the client's release of its tail: the SQEs before it are there. */
        uint32_t tail = load_acquire(&ring->shared->client.sq_tail);

        if (!ring_peer_ok(ring->sq_head, tail, ring->sq_entries))
            return -EPROTO;
        ring->sq_tail = tail;
        if (ring->sq_head == tail)
            return 0;
    }
    int r = ring_has_room(ring);

    if (r <= 0)
        return r;
    copy_once(ret_sqe, &ring->sqes[ring->sq_head & (ring->sq_entries - 1)], sizeof(*ret_sqe));
    kill_point("ring.taken");
    ring->sq_head++;
    cache_warm_line_to_write(&ring->cqes[ring->cq_tail & (ring->cq_entries - 1)]); /* the client read it last */
    return 1;
}

bool ring_is_choked(const struct ring *ring)
{
    return ring->sq_head != ring->sq_tail &&
           ring->n_requests + ring_count(ring->cq_head, ring->cq_tail) >= ring->cq_entries;
}

void ring_complete(struct ring *ring, const struct spw_cqe *cqe)
{
    assert(ring_count(ring->cq_head, ring->cq_tail) < ring->cq_entries);
    ring->cqes[ring->cq_tail & (ring->cq_entries - 1)] = *cqe;
    kill_point("ring.answer_written");
    ring->cq_tail++;
}

/* Both in one go: the client spins on this very line, and each store to it takes the line away from the client. */
void ring_flush(struct ring *ring)
{
    if (ring->sq_published != ring->sq_head) {
        ring->sq_published = ring->sq_head;
        /* The copies come before the client may use the entries again. */
        store_release(&ring->shared->daemon.sq_head, ring->sq_head);
    }
    if (ring->cq_published == ring->cq_tail)
        return;
    ring->cq_published = ring->cq_tail;
    kill_point("ring.publish");
    uint32_t word = ring_publish(&ring->shared->daemon.cq_tail, ring->cq_tail, &ring->shared->client.cq_flags);
    uint32_t flags = ring_must_wake(word, SPW_RING_WAKE_DOORBELL, &ring->rung);

    kill_point("ring.published");
    /* What goes wrong here is the client's loss: it asked to be woken at memory and through a socket of its own. */
    if (flags & SPW_RING_WAKE_FUTEX)
        (void)syscall(SYS_futex, &ring->shared->daemon.cq_tail, FUTEX_WAKE, FUTEX_WAKE_MAX, NULL, NULL, 0);
    if ((flags & SPW_RING_WAKE_DOORBELL) && ring->doorbell_fd >= 0)
        (void)!send(ring->doorbell_fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL); /* EAGAIN: one is under way already */
}

bool ring_sleep(struct ring *ring)
{
    ring_sleep_prepare(&ring->shared->daemon.sq_flags, ring_sleep_word(SPW_RING_NEED_WAKEUP, &ring->n_sleeps));
    if (load_acquire(&ring->shared->client.sq_tail) == ring->sq_head) /* S3, pairs with the client's W1 */
        return true;
    ring_wake(ring);
    return false;
}

void ring_wake(struct ring *ring)
{
    ring_sleep_cancel(&ring->shared->daemon.sq_flags);
}

/* False: the client has shut it down. */
static bool doorbell_drain(const struct ring *ring)
{
    char bytes[16];

    for (int i = 0; i < DOORBELL_DRAIN_MAX; i++) {
        ssize_t n = recv(ring->doorbell_fd, bytes, sizeof(bytes), MSG_DONTWAIT);

        if (n < 0) /* other errors pass, and the ring must be heard then */
            return errno != ECONNRESET;
        if (n == 0)
            return false;
    }
    return true;
}

void ring_doorbell_empty(struct ring *ring)
{
    if (ring->rang && ring->doorbell_fd >= 0 && !doorbell_drain(ring))
        ring->doorbell_gone = true;
    ring->rang = false;
}
