/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A ring pair of the client: submission, completion, waiting.
 *
 *   slot: FREE ── an SQE is written ──▶ CALL or CANCEL ── its CQE was taken ──▶ FREE
 *
 * Every SQE in flight has a slot, and there are as many slots as the smaller ring has entries: neither ring can then
 * overflow, and the daemon's sq_head is not needed. A CQE is believed only if it names a slot that is in flight, by
 * number and generation; and never more CQEs than that. What breaks this ends the session. Own indices are private.
 *
 * A ring has one user at a time: the thread that owns it, or the holder of its queue's lock. Waiting: spin for a while
 * that adapts itself (a hit answers in about a microsecond, a device does not), then sleep on cq_tail as ring.h has it.
 * A futex does not see the daemon die, so a sleep lasts a slice at most, and the socket is looked at in between.
 */
#include <linux/futex.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "client/lib/client.h"

#include "include/base/cache.h"
#include "include/base/ring.h"

#define SLEEP_SLICE_MS 100
#define SPIN_NS_MIN 1000
#define SPIN_TURNS_FIRST 32 /* pauses before the first look at the clock: up to a microsecond */
#define SPIN_TURNS_QUEUE                                                                                               \
    64 /* pauses before a queue's user goes to sleep, if the engine is awake: one to three microseconds */
#define SPIN_TURNS 16       /* pauses between two looks at the clock */
#define SPIN_LONG_EACH 32   /* waits for one that looks twice as long as any other */
#define SLEEP_COST_NS 10000 /* to fall asleep and be woken */

/* --- Submission ----------------------------------------------------------------------------------------------------- */

static struct client_slot *slot_take(struct client_ring *ring, struct client_call *call, enum client_slot_state state)
{
    struct client_slot *slot = &ring->slots[ring->free_slots[--ring->n_free]];

    slot->name += CLIENT_SLOT_GENERATION;
    slot->call = call;
    slot->state = state;
    slot->cancel_sent = false;
    slot->n_cells = 0;
    ring->in_flight++;
    return slot;
}

void client_ring_slot_free(struct client_ring *ring, struct client_slot *slot)
{
    if (slot->n_cells > 0)
        client_scratch_give(&ring->scratch, slot->cell, slot->n_cells);
    slot->state = CLIENT_SLOT_FREE;
    slot->call = NULL;
    ring->free_slots[ring->n_free++] = (uint32_t)(slot - ring->slots);
    ring->in_flight--;
}

static void sqe_write(struct client_ring *ring, const struct spw_sqe *sqe)
{
    ring->sqes[ring->sq_tail++ & (ring->sq_entries - 1)] = *sqe;
}

static void ring_wake(struct client_ring *ring)
{
    /* EAGAIN: the socket is full of wake-ups already. Others mean a hang-up, which the waiting side looks for, or that the
     * kernel has no memory now: then nobody was woken, and whoever waits has to try again. */
    ring->must_rewake = send(ring->doorbell, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno != EAGAIN;
    if (ring->must_rewake)
        (void)client_session_probe(ring->session);
}

void client_ring_rewake(struct client_ring *ring)
{
    if (ring->must_rewake)
        ring_wake(ring);
}

void client_ring_flush(struct client_ring *ring)
{
    if (ring->sq_published == ring->sq_tail)
        return;
    ring->sq_published = ring->sq_tail;
    /* Only here, in the line that is written anyway: the engine spins on it. It is never short of CQEs for want of a newer
     * head, because SQEs that it has not taken yet were published after this. */
    store_release(&ring->shared->client.cq_head, ring->cq_head); /* the entries may be written again */
    uint32_t word = ring_publish(&ring->shared->client.sq_tail, ring->sq_tail, &ring->shared->daemon.sq_flags);
    if (ring_must_wake(word, SPW_RING_NEED_WAKEUP, &ring->rung))
        ring_wake(ring);
}

void client_ring_wake_ahead(struct client_ring *ring)
{
    if (ring->sq_published != ring->sq_tail)
        client_ring_flush(ring);
    else if (ring_must_wake(load_relaxed(&ring->shared->daemon.sq_flags), SPW_RING_NEED_WAKEUP, &ring->rung))
        ring_wake(ring);
}

/* Of a slot: the slice of its call, or of a list of leases that nobody waits for. */
static void slot_send(struct client_ring *ring, const struct client_slot *slot, const struct client_call *call,
                      unsigned more_flags, uint32_t timeout_ms)
{
    uint32_t offset = slot->cell * CLIENT_CELL_BYTES;
    const struct client_slice *slice = &slot->slice;

    sqe_write(ring, &(struct spw_sqe){
                        .opcode = call->opcode,
                        .flags = (uint8_t)(call->flags | more_flags),
                        .space = call->handles || call->opcode == SPW_OP_NOP ? 0 : load_relaxed(&call->space->handle),
                        .user_data = slot->name,
                        .items = slice->n_items > 0 ? offset : 0,
                        .n_items = slice->n_items,
                        .results = slice->n_results > 0 || call->stat ? offset + (uint32_t)slice->items_bytes : 0,
                        .timeout_ms = timeout_ms,
                        .arg = {call->opcode == SPW_OP_PLAN ? slice->first : call->arg[0], call->arg[1], call->arg[2]},
                    });
}

static struct client_slot *slice_submit(struct client_ring *ring, struct client_call *call,
                                        const struct client_slice *slice, uint32_t cell, uint32_t n_cells)
{
    struct client_slot *slot = slot_take(ring, call, CLIENT_SLOT_CALL);

    slot->slice = *slice;
    slot->opcode = call->opcode;
    slot->cell = cell;
    slot->n_cells = n_cells;
    client_call_marshal(call, slice, ring->scratch.base + (size_t)cell * CLIENT_CELL_BYTES);
    slot_send(ring, slot, call, 0, call->timeout_ms);
    call->in_flight++;
    return slot;
}

static void call_sent(struct client_call *call)
{
    call->all_sent = true;
    list_unlink(&call->link);
}

static void call_end_if_done(struct client_call *call)
{
    if (!call->all_sent || call->in_flight > 0 || call->ended)
        return;
    call->ended = true;
    if (call->on_end)
        call->on_end(call);
}

/* What may wait for room in a pool leaves the last slot to what gives room back. */
static bool slot_is_free(const struct client_ring *ring, const struct client_call *call)
{
    return ring->n_free > (call->opcode == SPW_OP_ACQUIRE || call->opcode == SPW_OP_RESERVE ? 1U : 0U);
}

/* Sends the next slice. Returns false if there is no room now. */
static bool call_advance(struct client_ring *ring, struct client_call *call)
{
    struct client_slice slice;
    uint32_t cell, n_cells;
    uint64_t scratch_bytes = ring->scratch_memory.size_bytes;

    /* A quarter, so that the next call's lists fit while this one's are in flight. */
    client_call_slice(call, ring->session->list_max, call->whole ? scratch_bytes : scratch_bytes / 4, &slice);
    if (slice.size_bytes > scratch_bytes) {
        client_call_fail(call, &slice, -E2BIG, SPW_LIMIT_PIECES);
    } else if (slice.n_items > 0 || call->n == 0) {
        if (!slot_is_free(ring, call) || !client_scratch_take(&ring->scratch, slice.size_bytes, &cell, &n_cells))
            return false;
        (void)slice_submit(ring, call, &slice, cell, n_cells);
    }
    call->n_sent += slice.n;
    call->n_results_sent += slice.n_results;
    if (call->n_sent == call->n)
        call_sent(call);
    return true;
}

/* Sends one CANCEL for a slot. Returns false if there is no room now. */
static bool slot_cancel(struct client_ring *ring, struct client_slot *target)
{
    if (ring->n_free == 0)
        return false;
    struct client_slot *slot = slot_take(ring, NULL, CLIENT_SLOT_CANCEL);
    sqe_write(ring, &(struct spw_sqe){.opcode = SPW_OP_CANCEL, .user_data = slot->name, .arg = {target->name}});
    target->cancel_sent = true;
    return true;
}

/* The rest was never asked for, and will not be. */
static void call_fail_rest(struct client_call *call, int error)
{
    struct client_slice rest;

    call->cancel = true;
    if (call->all_sent)
        return;
    while (call->n_sent < call->n) {
        client_call_slice(call, UINT32_MAX, UINT64_MAX, &rest);
        client_call_fail(call, &rest, error, 0);
        call->n_sent += rest.n;
        call->n_results_sent += rest.n_results;
    }
    if (call->error == 0)
        call->error = error;
    call_sent(call);
}

/* Sends what there is room for, the oldest call first. */
static void ring_send(struct client_ring *ring)
{
    while (!list_is_empty(&ring->waiting)) {
        struct client_call *call = list_entry(ring->waiting.next, struct client_call, link);
        if (client_call_is_stale(ring, call))
            call_fail_rest(call, -EPIPE);
        else if (!call_advance(ring, call))
            break;
        call_end_if_done(call);
    }
    client_ring_flush(ring);
}

int client_ring_start(struct client_ring *ring, struct client_call *call)
{
    int r = client_session_check(ring->session);

    if (r < 0)
        return r;
    call->prefix = call->n;
    if (call->timeout_ms != 0)
        call->started_ms = client_now_coarse_ms();
    if (call->n == 0 && call->opcode != SPW_OP_NOP && call->opcode != SPW_OP_STAT && call->opcode != SPW_OP_SYNC &&
        call->opcode != SPW_OP_PLAN) {
        list_init(&call->link); /* an empty list is nothing to do */
        call_sent(call);
        call_end_if_done(call);
        return 0;
    }
    list_push_tail(&ring->waiting, &call->link);
    ring_send(ring);
    return 0;
}

bool client_ring_post_release(struct client_ring *ring, const struct spw_space *space, struct spw_view *views, size_t n)
{
    struct client_call call = {.space = space, .handles = views, .n = n, .opcode = SPW_OP_RELEASE};
    struct client_slice slice;
    uint32_t cell, n_cells;

    if (load_relaxed(&ring->session->dead) != 0 || ring->n_free == 0) /* it passes calls that wait for room */
        return false;
    client_call_slice(&call, ring->session->list_max, ring->scratch_memory.size_bytes / 4, &slice);
    if (slice.n < n)
        return false;
    if (slice.n_items > 0) {
        if (!client_scratch_take(&ring->scratch, slice.size_bytes, &cell, &n_cells))
            return false;
        slice_submit(ring, &call, &slice, cell, n_cells)->call = NULL; /* nobody waits for it */
    }
    return true;
}

void client_ring_cancel(struct client_ring *ring, struct client_call *call)
{
    if (call->ended)
        return;
    call_fail_rest(call, -ECANCELED);
    for (uint32_t i = 0; i < ring->n_slots && call->in_flight > 0; i++) {
        struct client_slot *slot = &ring->slots[i];
        if (slot->state == CLIENT_SLOT_CALL && slot->call == call && !slot->cancel_sent && !slot_cancel(ring, slot))
            break; /* no room: it was a request, and ends by itself */
    }
    client_ring_flush(ring);
    call_end_if_done(call);
}

/* --- Completion ----------------------------------------------------------------------------------------------------- */

/* The session is over: nothing will complete any more. The scratch memory is not touched: it is the daemon's. */
static int ring_fail(struct client_ring *ring, int error)
{
    for (uint32_t i = 0; i < ring->n_slots; i++) {
        struct client_slot *slot = &ring->slots[i];
        struct client_call *call = slot->call;
        if (slot->state == CLIENT_SLOT_FREE)
            continue;
        if (call) {
            client_call_fail(call, &slot->slice, error, 0);
            call->in_flight--;
        }
        client_ring_slot_free(ring, slot);
        if (call)
            call_end_if_done(call);
    }
    while (!list_is_empty(&ring->waiting)) {
        struct client_call *call = list_entry(ring->waiting.next, struct client_call, link);
        call_fail_rest(call, error);
        call_end_if_done(call);
    }
    return error;
}

static int cqe_take(struct client_ring *ring, const struct spw_cqe *cqe)
{
    uint32_t number = (uint32_t)cqe->user_data & ((1U << CLIENT_SLOT_BITS) - 1);

    if (number >= ring->n_slots)
        return client_session_end(ring->session, "a completion of a request that was never made");
    struct client_slot *slot = &ring->slots[number];
    if (slot->state == CLIENT_SLOT_FREE || slot->name != cqe->user_data)
        return client_session_end(ring->session, "a completion of a request that is not in flight");
    if (cqe->status > 0 || cqe->status < -4095)
        return client_session_end(ring->session, "a completion has an impossible status");
    struct client_call *call = slot->call;
    if (call) {
        if (cqe->status < 0) {
            client_call_fail(call, &slot->slice, cqe->status, cqe->detail);
        } else {
            const uint8_t *scratch = ring->scratch.base + (size_t)slot->cell * CLIENT_CELL_BYTES;
            int r = client_call_unmarshal(call, &slot->slice, cqe, scratch);
            if (r < 0)
                return r; /* the slot stays taken: ring_fail() ends the call */
        }
        call->in_flight--;
    }
    client_ring_slot_free(ring, slot);
    if (call)
        call_end_if_done(call);
    return 0;
}

/* --- Restarts of the daemon ------------------------------------------------------------------------------------------- */

/* Nobody waits for it any more, but its answer may have been leases. */
void client_ring_slot_lose(struct client_ring *ring, struct client_slot *slot, int error)
{
    struct client_call *call = slot->call;

    slot->state = CLIENT_SLOT_LOST;
    slot->call = NULL;
    client_call_fail(call, &slot->slice, error, 0);
    call->in_flight--;
    call_fail_rest(call, error);
    call_end_if_done(call);
    (void)ring;
}

/* The same for calls of which nothing was sent. */
void client_ring_expire_waiting(struct client_ring *ring, uint64_t now_ms)
{
    list_for_each_safe (pos, &ring->waiting) {
        struct client_call *call = list_entry(pos, struct client_call, link);

        if (client_call_left_ms(call, now_ms) > 0)
            continue;
        call_fail_rest(call, -ETIMEDOUT);
        call_end_if_done(call);
    }
}

void client_ring_submit_again(struct client_ring *ring, const struct client_slot *slot, uint64_t now_ms)
{
    static const struct client_call release = {.opcode = SPW_OP_RELEASE,
                                               .handles = (struct spw_view *)(uintptr_t)&release};
    const struct client_call *call = slot->call ? slot->call : &release;

    slot_send(ring, slot, call, SPW_SQE_RETRY, call->timeout_ms != 0 ? MAX(client_call_left_ms(call, now_ms), 1U) : 0);
}

void client_ring_rouse(struct client_ring *ring)
{
    (void)syscall(SYS_futex, &ring->shared->daemon.cq_tail, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

/* What the last connection completed was taken. */
static int ring_relink(struct client_ring *ring)
{
    if (!client_link_is_up(ring->session)) {
        client_ring_expire(ring);
        return 0;
    }
    if (ring->has_sleeper) /* it has been woken */
        return 0;
    int r = client_ring_renew(ring);

    if (r < 0)
        return ring_fail(ring, r);
    if (ring->era == load_acquire(&ring->session->era))
        ring_send(ring);
    return 0;
}

bool client_ring_has_completions(const struct client_ring *ring)
{
    /* Pairs with the daemon's store_release of cq_tail. */
    return load_acquire(&ring->shared->daemon.cq_tail) != ring->cq_head;
}

int client_ring_turn(struct client_ring *ring)
{
    int r = load_relaxed(&ring->session->dead) != 0 ? client_session_check(ring->session) : 0;

    uint32_t tail = load_acquire(&ring->shared->daemon.cq_tail); /* as above */
    if (r == 0 && !ring_peer_ok(ring->cq_head, tail, ring->in_flight))
        r = client_session_end(ring->session, "it completed more requests than are in flight");
    while (r == 0 && ring->cq_head != tail) {
        struct spw_cqe cqe;
        copy_once(&cqe, &ring->cqes[ring->cq_head & (ring->cq_entries - 1)], sizeof(cqe));
        ring->cq_head++;
        r = cqe_take(ring, &cqe);
    }
    if (r < 0)
        return ring_fail(ring, r);
    if (unlikely(load_acquire(&ring->session->era) != ring->era)) /* pairs with link.c's release */
        return ring_relink(ring);
    cache_warm_line_to_write(&ring->sqes[ring->sq_tail & (ring->sq_entries - 1)]); /* the engine read it last */
    ring_send(ring);
    return 0;
}

/* --- Waiting -------------------------------------------------------------------------------------------------------- */

static bool ring_look(const struct client_ring *ring, unsigned times)
{
    for (unsigned i = 0; i < times; i++) {
        if (client_ring_has_completions(ring))
            return true;
        cpu_relax();
    }
    return false;
}

bool client_ring_look(const struct client_ring *ring)
{
    bool engine_sleeps = load_relaxed(&ring->shared->daemon.sq_flags) & SPW_RING_NEED_WAKEUP;

    return ring_look(ring, engine_sleeps || ring->session->spin_ns_max == 0 ? 1 : SPIN_TURNS_QUEUE);
}

/* Looks for a completion for up to that long. Reading the clock takes a good part of what a hit takes, so it comes later. */
static bool ring_spin(const struct client_ring *ring, uint64_t spin_ns, uint64_t *ret_start_ns)
{
    if (ring_look(ring, SPIN_TURNS_FIRST))
        return true;
    uint64_t start_ns = client_now_ns();
    do {
        if (ring_look(ring, SPIN_TURNS))
            return true;
    } while (client_now_ns() - start_ns < spin_ns);
    *ret_start_ns = start_ns;
    return false;
}

static void ring_sleep(struct client_ring *ring)
{
    client_ring_rewake(ring);
    ring_sleep_prepare(&ring->shared->client.cq_flags, SPW_RING_WAKE_FUTEX); /* S1, S2 */
    client_ring_sleep(ring, ring->cq_head, UINT32_MAX);                      /* S3 */
    ring_sleep_cancel(&ring->shared->client.cq_flags);
}

/*
 * Spins for a while, then sleeps. The while grows if this answer could have been had by spinning, or nearly so, and
 * shrinks if not. What a sleep took counts, not that there was one: else a while that is too short for an answer would
 * stay so for ever. And where both sides sleep, each because the other one takes so long to wake, a long look now and
 * then finds out how fast answers are when neither does.
 */
static void ring_wait_once(struct client_ring *ring)
{
    uint32_t max_ns = ring->session->spin_ns_max;
    bool is_long = ++ring->n_waits % SPIN_LONG_EACH == 0;
    uint64_t start_ns = 0, spin_ns = is_long ? UINT64_C(2) * max_ns : ring->spin_ns;

    if (max_ns == 0) {
        ring_sleep(ring);
        return;
    }
    if (ring_spin(ring, spin_ns, &start_ns)) {
        ring->spin_ns = is_long ? max_ns : MIN(ring->spin_ns * 2, max_ns);
        return;
    }
    ring_sleep(ring);
    if (client_now_ns() - start_ns <= (uint64_t)max_ns + SLEEP_COST_NS)
        ring->spin_ns = MIN(ring->spin_ns * 2, max_ns);
    else
        ring->spin_ns = MAX(ring->spin_ns / 2, (uint32_t)SPIN_NS_MIN);
}

void client_ring_sleep(struct client_ring *ring, uint32_t head, uint32_t timeout_ms)
{
    uint32_t slice_ms = MIN(timeout_ms, (uint32_t)SLEEP_SLICE_MS);
    struct timespec slice = {.tv_nsec = (long)slice_ms * 1000000};
    uint32_t *cq_tail = &ring->shared->daemon.cq_tail;

    if (load_acquire(cq_tail) != head) /* S3 */
        return;
    /* The kernel compares once more, so a wake-up between S3 and here is not lost either. */
    if (syscall(SYS_futex, cq_tail, FUTEX_WAIT, head, &slice, NULL, 0) < 0 && errno == ETIMEDOUT)
        (void)client_session_probe(ring->session);
}

void client_ring_drain(struct client_ring *ring)
{
    while (ring->in_flight > 0 && client_ring_turn(ring) == 0 && ring->in_flight > 0)
        ring_wait_once(ring);
}

void client_ring_wait(struct client_ring *ring, const struct client_call *call)
{
    while (!call->ended) {
        if (client_ring_turn(ring) < 0 || call->ended)
            return;
        ring_wait_once(ring);
    }
}
