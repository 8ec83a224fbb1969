/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the indices of the engine's side, the uses that wait for room, and the table by which a completion is recognised.
 * Engine thread only.
 *
 * Invariants
 * - Commands of a use are published together, or not at all: so whatever is in the ring can complete, and each completion
 *   makes room. Nobody needs to be told that a command was taken.
 * - A use in the ring has a seat; there are as many seats as completions fit into the ring, so that never overflows. The
 *   cookie is the seat's number and generation: a completion that names no use in flight, or not as it was given, breaks
 *   the port for good.
 */
#include "io/gpu_port.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "include/base/atomic.h"
#include "include/base/limits.h"
#include "include/base/ring.h"

#define NS_PER_MS UINT64_C(1000000)
#define ERRNO_MAX 4095
#define SEAT_NONE UINT32_MAX

struct seat {
    struct io_dma *dma; /* NULL: free */
    uint32_t generation;
    uint32_t next_free;
};

struct gpu_port {
    struct gpu_ring *shared;
    struct gpu_cmd *cmds;
    const struct gpu_completion *completions;
    uint32_t entries;
    int doorbell_fd;
    uint32_t cmd_tail; /* ours; what was written */
    uint32_t cmd_head; /* the helper's, as last believed */
    uint32_t done_head;
    uint32_t n_sleeps; /* of ours */
    uint32_t rung;     /* the helper's sleep that it was last woken from */
    uint32_t n_in_flight;
    bool is_broken;
    struct list queued, in_flight; /* struct io_dma */
    uint32_t free_seat;
    struct seat seats[]; /* entries */
};

static_assert(GPU_RING_ENTRIES >= LIST_ITEMS_MAX, "every use fits the ring");

int gpu_port_new(void *ring_mem, uint32_t entries, int doorbell_fd, struct gpu_port **ret_port)
{
    struct gpu_port *port;

    if (!is_pow2(entries) || entries > GPU_RING_ENTRIES)
        return -EINVAL;
    port = calloc(1, sizeof(*port) + entries * sizeof(port->seats[0]));
    if (!port)
        return -ENOMEM;
    port->shared = ring_mem;
    port->cmds = gpu_ring_cmds(ring_mem);
    port->completions = gpu_ring_completions(ring_mem, entries);
    port->entries = entries;
    port->doorbell_fd = doorbell_fd;
    list_init(&port->queued);
    list_init(&port->in_flight);
    for (uint32_t i = 0; i < entries; i++)
        port->seats[i].next_free = i + 1 < entries ? i + 1 : SEAT_NONE;
    *ret_port = port;
    return 0;
}

void gpu_port_free(struct gpu_port *port)
{
    assert(!port || gpu_port_is_idle(port));
    free(port);
}

bool gpu_port_is_idle(const struct gpu_port *port)
{
    return port->n_in_flight == 0 && list_is_empty(&port->queued);
}

/* --- Commands ---------------------------------------------------------------------------------------------------- */

static uint32_t dma_n_cmds(const struct io_dma *dma)
{
    return dma->op == IO_DMA_CANCEL ? 1 : dma->n_runs;
}

void gpu_port_submit(struct gpu_port *port, struct io_dma *dma)
{
    assert(dma_n_cmds(dma) > 0 && dma_n_cmds(dma) <= port->entries);
    if (dma->op == IO_DMA_CANCEL)
        list_push_head(&port->queued, &dma->link);
    else
        list_push_tail(&port->queued, &dma->link);
}

/* Looks at the helper's head only when the last known one is not enough. */
static bool port_has_room(struct gpu_port *port, uint32_t n_cmds)
{
    if (port->free_seat == SEAT_NONE)
        return false;
    if (port->entries - ring_count(port->cmd_head, port->cmd_tail) >= n_cmds)
        return true;
    /* Pairs with the helper's release: it has copied what lies before. */
    uint32_t head = load_acquire(&port->shared->helper.cmd_head);

    if (!ring_peer_ok(head, port->cmd_tail, port->entries) || !ring_peer_ok(port->cmd_head, head, port->entries)) {
        port->is_broken = true;
        return false;
    }
    port->cmd_head = head;
    return port->entries - ring_count(head, port->cmd_tail) >= n_cmds;
}

static uint64_t seat_take(struct gpu_port *port, struct io_dma *dma)
{
    uint32_t index = port->free_seat;
    struct seat *seat = &port->seats[index];

    port->free_seat = seat->next_free;
    seat->dma = dma;
    port->n_in_flight++;
    list_push_tail(&port->in_flight, &dma->link);
    return (uint64_t)seat->generation << 32 | index;
}

static void put_cmd(struct gpu_port *port, const struct gpu_cmd *cmd)
{
    port->cmds[port->cmd_tail++ & (port->entries - 1)] = *cmd;
}

static void put_dma(struct gpu_port *port, struct io_dma *dma)
{
    struct gpu_cmd cmd = {.op = GPU_CMD_CANCEL, .lane = dma->lane, .seq = dma->seq, .expires_ns = dma->expires_ns};
    uint64_t at_bytes = dma->base_bytes;

    cmd.cookie = seat_take(port, dma);
    if (dma->op == IO_DMA_CANCEL) {
        put_cmd(port, &cmd);
        return;
    }
    cmd.op = dma->op == IO_DMA_SPILL ? GPU_CMD_SPILL : GPU_CMD_FETCH;
    dma->run_first(dma);
    for (uint32_t i = 0; i < dma->n_runs; i++) {
        struct io_dma_run run;

        dma->run_next(dma, &run);
        cmd.flags = i + 1 == dma->n_runs ? GPU_CMD_LAST : 0;
        cmd.region = run.region;
        cmd.epoch = run.epoch;
        cmd.offset_bytes = run.off_bytes;
        cmd.gpu_offset_bytes = at_bytes;
        cmd.len_bytes = run.len_bytes;
        put_cmd(port, &cmd);
        at_bytes += run.len_bytes;
    }
    assert(at_bytes == dma->base_bytes + dma->bytes);
}

void gpu_port_fill(struct gpu_port *port)
{
    uint32_t before = port->cmd_tail;

    while (!port->is_broken && !list_is_empty(&port->queued)) {
        struct io_dma *dma = list_entry(port->queued.next, struct io_dma, link);

        if (!port_has_room(port, dma_n_cmds(dma)))
            break;
        list_unlink(&dma->link);
        put_dma(port, dma);
    }
    if (port->cmd_tail == before)
        return;
    uint32_t word = ring_publish(&port->shared->engine.cmd_tail, port->cmd_tail, &port->shared->helper.flags);

    if (ring_must_wake(word, GPU_RING_SLEEPS, &port->rung) & GPU_RING_SLEEPS)
        (void)!send(port->doorbell_fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL); /* EAGAIN: one is under way already */
}

/* --- Completions ------------------------------------------------------------------------------------------------- */

/* The use in flight that it is about, or NULL: there is none, or it says what cannot be. */
static struct io_dma *completion_check(struct gpu_port *port, const struct gpu_completion *completion)
{
    uint32_t index = (uint32_t)completion->cookie;
    const struct seat *seat = index < port->entries ? &port->seats[index] : NULL;
    struct io_dma *dma = seat ? seat->dma : NULL;

    if (!dma || seat->generation != completion->cookie >> 32 || completion->lane != dma->lane)
        return NULL;
    if (completion->status > 0 || completion->status < -ERRNO_MAX)
        return NULL;
    if (completion->status == 0 && dma->op != IO_DMA_CANCEL && completion->bytes != dma->bytes)
        return NULL;
    return dma;
}

static void seat_leave(struct gpu_port *port, uint32_t index)
{
    struct seat *seat = &port->seats[index];

    list_unlink(&seat->dma->link);
    seat->dma = NULL;
    seat->generation++;
    seat->next_free = port->free_seat;
    port->free_seat = index;
    port->n_in_flight--;
}

uint32_t gpu_port_take(struct gpu_port *port)
{
    if (port->is_broken)
        return 0;
    /* Pairs with the helper's release of its tail: the completions before it are there, and so are the bytes. */
    uint32_t tail = load_acquire(&port->shared->helper.done_tail), n = ring_count(port->done_head, tail);

    if (n == 0)
        return 0;
    port->is_broken = n > port->entries;
    for (uint32_t i = 0; i < n && !port->is_broken; i++) {
        struct gpu_completion completion;

        copy_once(&completion, &port->completions[port->done_head & (port->entries - 1)], sizeof(completion));
        struct io_dma *dma = completion_check(port, &completion);

        port->done_head++;
        port->is_broken = dma == NULL;
        if (!dma)
            break;
        seat_leave(port, (uint32_t)completion.cookie);
        dma->result = completion.status;
        dma->done(dma);
    }
    store_release(&port->shared->engine.done_head, port->done_head); /* the copies come before it */
    return n;
}

bool gpu_port_peek(const struct gpu_port *port)
{
    return !port->is_broken && load_relaxed(&port->shared->helper.done_tail) != port->done_head;
}

void gpu_port_end(struct gpu_port *port, int status)
{
    struct list *l;

    port->is_broken = true;
    for (uint32_t i = 0; i < port->entries && port->n_in_flight > 0; i++) {
        struct io_dma *dma = port->seats[i].dma;

        if (!dma)
            continue;
        seat_leave(port, i);
        dma->result = status;
        dma->done(dma);
    }
    while ((l = list_pop(&port->queued))) {
        struct io_dma *dma = list_entry(l, struct io_dma, link);

        dma->result = status;
        dma->done(dma);
    }
}

static bool is_late(const struct list *dmas, uint64_t now_ns)
{
    list_for_each (l, dmas) {
        const struct io_dma *dma = list_entry(l, struct io_dma, link);

        if (now_ns > dma->expires_ns && now_ns - dma->expires_ns > GPU_LATE_MS * NS_PER_MS)
            return true;
    }
    return false;
}

bool gpu_port_is_bad(const struct gpu_port *port, uint64_t now_ns)
{
    return port->is_broken || is_late(&port->in_flight, now_ns) || is_late(&port->queued, now_ns);
}

/* --- Sleeping ---------------------------------------------------------------------------------------------------- */

bool gpu_port_sleep(struct gpu_port *port)
{
    ring_sleep_prepare(&port->shared->engine.flags, ring_sleep_word(GPU_RING_SLEEPS, &port->n_sleeps));
    /* S3, pairs with the helper's W1. A broken port has nothing to say. */
    return port->is_broken || load_acquire(&port->shared->helper.done_tail) == port->done_head;
}

void gpu_port_wake(struct gpu_port *port)
{
    ring_sleep_cancel(&port->shared->engine.flags);
}

int gpu_port_doorbell(const struct gpu_port *port)
{
    return port->doorbell_fd;
}

bool gpu_port_drain(const struct gpu_port *port)
{
    char bytes[16];

    for (int i = 0; i < GPU_DRAIN_MAX; i++) {
        ssize_t n = recv(port->doorbell_fd, bytes, sizeof(bytes), MSG_DONTWAIT);

        if (n < 0)
            return errno == EAGAIN || errno == EINTR;
        if (n == 0)
            return false;
    }
    return true;
}
