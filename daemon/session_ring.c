/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns what a session has at engines: its seats, and its rings with the memory below them. Control thread.
 *
 * Memory is made, sealed and counted here, before an engine or a client sees it; the client's end of the doorbell is
 * closed as soon as it was sent.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/control.h"
#include "daemon/log.h"
#include "daemon/session.h"
#include "daemon/session_kept.h"
#include "daemon/shm.h"
#include "include/base/cleanup.h"
#include "include/base/kill_point.h"

/* --- Seats ------------------------------------------------------------------------------------------------------- */

static void seat_added(struct call *call)
{
    (void)call; /* messages are run in order: whatever was sent after it comes after it */
}

static void seat_broken(struct engine_peer *peer, const char *why)
{
    session_end(peer->session, why, true);
}

static struct seat *seat_new(struct session *session)
{
    struct seat *seat = calloc(1, sizeof(*seat));

    if (!seat)
        return NULL;
    seat->peer.session = session;
    seat->peer.broken = seat_broken;
    seat->add = (struct peer_add_call){
        .peer = &seat->peer,
        .session = session->number,
        .owner = session->owner->number,
        .uid = session->who.uid,
        .max_leases = session->control->config->daemon.session_leases,
        .is_reattached = session->is_reattached,
    };
    seat->add.call.at_control = seat_added;
    return seat;
}

struct seat *session_seat(struct session *session, uint32_t engine)
{
    if (session->seats[engine])
        return session->seats[engine];
    struct seat *seat = seat_new(session);

    if (!seat)
        return NULL;
    if (session->kept) /* first, so that no lease there is without it */
        session->kept->engines |= UINT64_C(1) << engine;
    engine_peer_add(session->control->engines[engine], &seat->add);
    session->seats[engine] = seat;
    return seat;
}

struct seat *session_seat_restore(struct session *session, uint32_t engine)
{
    struct seat *seat = seat_new(session);

    if (!seat)
        return NULL;
    engine_peer_restore(session->control->engines[engine], &seat->add);
    session->seats[engine] = seat;
    return seat;
}

/* --- UNANSWERED -------------------------------------------------------------------------------------------------- */

static void unanswered_done(struct call *base)
{
    struct session *session = base->at_control_ctx;
    struct spw_msg reply = {0};

    free(session->call.unanswered.requests);
    if (session_call_over(session))
        session_reply(session, &reply, sizeof(reply), NULL, 0);
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

void session_unanswered(struct session *session, const void *message, size_t size)
{
    struct spw_msg_unanswered told;

    if (size < sizeof(told)) {
        session_end(session, "a message of the wrong size", true);
        return;
    }
    memcpy(&told, message, sizeof(told));
    if (told.n > SPW_LIST_MAX || size != sizeof(told) + told.n * sizeof(uint64_t)) {
        session_end(session, "a message of the wrong size", true);
        return;
    }
    if (told.engine >= session->control->n_engines) {
        session_reply_error(session, -EINVAL, 0, "there is no engine %u", told.engine);
        return;
    }
    struct seat *seat = session_seat(session, told.engine);
    uint64_t *requests = calloc(told.n + 1, sizeof(*requests));

    if (!seat || !requests) {
        free(requests);
        session_reply_error(session, -ENOMEM, 0, "out of memory");
        return;
    }
    memcpy(requests, (const char *)message + sizeof(told), told.n * sizeof(*requests));
    qsort(requests, told.n, sizeof(*requests), compare_u64);
    session->call.unanswered = (struct unanswered_call){.peer = &seat->peer, .requests = requests, .n = told.n};
    session->call.unanswered.call.at_control = unanswered_done;
    session->call.unanswered.call.at_control_ctx = session;
    session->busy = true;
    engine_unanswered(session->control->engines[told.engine], &session->call.unanswered);
}

/* --- RING_NEW, RING_FREE ----------------------------------------------------------------------------------------- */

struct session_ring *session_ring_free(struct session *session, struct session_ring *ring)
{
    if (!ring)
        return NULL;
    if (!list_is_empty(&ring->link))
        session->n_rings--;
    list_unlink(&ring->link);
    session->scratch_bytes -= ring->scratch_mem.size_bytes;
    session->account->scratch_bytes -= ring->scratch_mem.size_bytes;
    session->account->n_descriptors -= RING_DESCRIPTORS;
    memory_shared_destroy(&ring->ring_mem);
    memory_shared_destroy(&ring->scratch_mem);
    if (ring->doorbell_fd >= 0)
        close(ring->doorbell_fd);
    if (ring->doorbell_peer >= 0)
        close(ring->doorbell_peer);
    free(ring);
    return NULL;
}

static int ring_memory_new(struct session_ring *ring, uint64_t scratch_bytes)
{
    int doorbell[2];
    int r = shm_client_new("spillway-ring", ring->geometry.ring_bytes, &ring->ring_mem);

    if (r == 0)
        r = shm_client_new("spillway-scratch", scratch_bytes, &ring->scratch_mem);
    if (r < 0)
        return r;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, doorbell) < 0)
        return -errno;
    ring->doorbell_fd = doorbell[0];
    ring->doorbell_peer = doorbell[1];
    return 0;
}

static int ring_new(struct session *session, const struct spw_msg_ring_new *wanted, struct session_ring **ret_ring)
{
    struct session_ring *ring = calloc(1, sizeof(*ring));

    if (!ring)
        return -ENOMEM;
    list_init(&ring->link);
    ring->ring_mem = ring->scratch_mem = MEMORY_SHARED_NONE;
    ring->doorbell_fd = ring->doorbell_peer = -1;
    int r = ring_geometry(wanted->sq_entries, wanted->cq_entries, &ring->geometry);

    if (r == 0)
        r = ring_memory_new(ring, round_up(wanted->scratch_bytes, SECTOR_BYTES));
    session->scratch_bytes += ring->scratch_mem.size_bytes;
    session->account->scratch_bytes += ring->scratch_mem.size_bytes;
    session->account->n_descriptors += RING_DESCRIPTORS;
    if (r < 0) {
        session_ring_free(session, ring);
        return r;
    }
    kill_point("session.ring_made");
    ring_init(&ring->ring, session->next_ring++, &ring->geometry, ring->ring_mem.mem, ring->scratch_mem.mem,
              ring->scratch_mem.size_bytes, ring->doorbell_fd);
    *ret_ring = ring;
    return 0;
}

static void ring_added(struct call *base)
{
    struct session *session = base->at_control_ctx;
    struct session_ring *ring = session->call.ring;

    if (ring->call.result < 0) {
        session_ring_free(session, ring);
        if (session_call_over(session))
            session_reply_error(session, -ENOSPC, SPW_LIMIT_SESSION_RINGS, "the engine has %d rings, and takes no more",
                                ENGINE_RINGS_MAX);
        return;
    }
    list_push_tail(&session->rings, &ring->link);
    session->n_rings++;
    if (!session_call_over(session))
        return;
    struct spw_msg_ring reply = {
        .ring = ring->ring.number,
        .sq_entries = ring->geometry.sq_entries,
        .cq_entries = ring->geometry.cq_entries,
        .sq_offset = ring->geometry.sq_offset,
        .cq_offset = ring->geometry.cq_offset,
        .ring_bytes = ring->ring_mem.size_bytes,
        .scratch_bytes = ring->scratch_mem.size_bytes,
    };
    int fds[] = {ring->ring_mem.fd, ring->scratch_mem.fd, ring->doorbell_peer};

    /* A client that does not read has ended its session by this; then the ring is gone too, by and by. */
    int peer = steal_fd(&ring->doorbell_peer);

    kill_point("session.ring");
    session_reply(session, &reply, sizeof(reply), fds, ARRAY_LEN(fds));
    close(peer);
}

static bool ring_new_allowed(struct session *session, const struct spw_msg_ring_new *wanted)
{
    const struct control *control = session->control;
    struct ring_geometry geometry;

    if (wanted->engine >= control->n_engines || wanted->scratch_bytes == 0 ||
        wanted->scratch_bytes > SCRATCH_BYTES_MAX ||
        ring_geometry(wanted->sq_entries, wanted->cq_entries, &geometry) < 0) {
        session_reply_error(
            session, -EINVAL, 0,
            "a ring has %d to %d entries (a power of two), up to %llu MiB of scratch, and one of %u engines",
            RING_ENTRIES_MIN, RING_ENTRIES_MAX, (unsigned long long)(SCRATCH_BYTES_MAX / MIB), control->n_engines);
        return false;
    }
    if (session->n_rings >= control->config->daemon.session_rings) {
        session_reply_error(session, -EMFILE, SPW_LIMIT_SESSION_RINGS,
                            "this session has %u rings: raise session_rings in [daemon]", session->n_rings);
        return false;
    }
    if (session->account->scratch_bytes + wanted->scratch_bytes > UID_SCRATCH_BYTES_MAX) {
        session_reply_error(session, -ENOSPC, SPW_LIMIT_SESSION_RINGS,
                            "this user's rings have %llu MiB of scratch memory",
                            (unsigned long long)(session->account->scratch_bytes / MIB));
        return false;
    }
    if (!account_may_open(control, session->account, RING_DESCRIPTORS)) {
        session_reply_error(session, -EMFILE, SPW_LIMIT_UID_FDS,
                            "this user's connections and rings take %u descriptors: raise uid_descriptors in [daemon]",
                            session->account->n_descriptors);
        return false;
    }
    return true;
}

void session_ring_new(struct session *session, const void *message)
{
    struct spw_msg_ring_new wanted;
    struct session_ring *ring;

    memcpy(&wanted, message, sizeof(wanted));
    if (wanted.reserved0 != 0 || wanted.reserved[0] != 0 || wanted.reserved[1] != 0) {
        session_end(session, "a reserved field of RING_NEW is not zero", true);
        return;
    }
    if (!ring_new_allowed(session, &wanted))
        return;
    struct seat *seat = session_seat(session, wanted.engine);
    int r = seat ? ring_new(session, &wanted, &ring) : -ENOMEM;

    if (r < 0) {
        session_reply_error(session, r, r == -EMFILE || r == -ENFILE ? SPW_LIMIT_DESCRIPTORS : 0,
                            "the ring cannot be made: %s%s", log_errno(r),
                            r == -EMFILE || r == -ENFILE ? "; raise LimitNOFILE=" : "");
        return;
    }
    ring->peer = &seat->peer;
    ring->call = (struct ring_call){.peer = &seat->peer, .ring = &ring->ring};
    ring->call.call.at_control = ring_added;
    ring->call.call.at_control_ctx = session;
    session->call.ring = ring;
    session->busy = true;
    engine_ring_add(session->control->engines[wanted.engine], &ring->call);
}

static void ring_removed(struct call *base)
{
    struct session *session = base->at_control_ctx;
    struct spw_msg reply = {0};

    session_ring_free(session, session->call.ring);
    if (session_call_over(session))
        session_reply(session, &reply, sizeof(reply), NULL, 0);
}

void session_ring_free_asked(struct session *session, const void *message)
{
    struct spw_msg_ring_free wanted;
    struct session_ring *ring = NULL;

    memcpy(&wanted, message, sizeof(wanted));
    if (wanted.reserved0 != 0) {
        session_end(session, "a reserved field of RING_FREE is not zero", true);
        return;
    }
    list_for_each (l, &session->rings)
        if (list_entry(l, struct session_ring, link)->ring.number == wanted.ring)
            ring = list_entry(l, struct session_ring, link);
    if (!ring) {
        session_reply_error(session, -EBADF, 0, "this session has no such ring");
        return;
    }
    ring->call.call.at_control = ring_removed;
    session->call.ring = ring;
    session->busy = true;
    engine_ring_remove(ring->peer->engine, &ring->call);
}
