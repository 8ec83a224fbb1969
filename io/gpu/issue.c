/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The copy engines: who is next, what is under way, what has ended. A few uses at a time go to each direction
 * (GPU_AHEAD_SLOTS): enough that the link is never idle, and so few that whoever comes is soon served.
 *
 * Turns are counted in bytes. Each direction has a clock; a queue's turn begins at the clock or where its last one ended,
 * whichever is later, and lasts as many bytes as the use has. The queue whose turn begins first is next, and sets the
 * clock. So lanes that always have something get equal shares whatever their slots hold, and who waited for his own client
 * has saved nothing up.
 *
 * A use may go when its client's stream says so. The word it says it with is the client's to write: it is read once, says
 * "now" or "not yet" and nothing else. A lie makes us copy that same client's memory too early, or never.
 */
#include <errno.h>

#include "include/base/atomic.h"
#include "io/gpu/helper.h"

static uint64_t n_flights(const struct helper_copier *copier)
{
    return copier->tail - copier->head + (copier->issuing ? 1 : 0);
}

bool helper_issue_is_busy(const struct helper *h)
{
    for (size_t d = 0; d < HELPER_DIRECTIONS; d++)
        if (n_flights(&h->copiers[d]) > 0)
            return true;
    return false;
}

bool helper_issue_is_ahead(const struct helper *h)
{
    bool any = false;

    for (size_t d = 0; d < HELPER_DIRECTIONS; d++) {
        const struct helper_copier *copier = &h->copiers[d];

        if (n_flights(copier) == 1 || (n_flights(copier) == 0 && !list_is_empty(&copier->waiting)))
            return false;
        any |= n_flights(copier) > 1;
    }
    return any;
}

/* --- What has ended ------------------------------------------------------------------------------------------------ */

static void flight_end(struct helper *h, enum helper_direction d, const struct helper_flight *flight)
{
    struct helper_lane *lane = flight->lane;
    struct helper_queue *queue = &lane->queues[d];
    struct helper_use *use = helper_use_at(queue, queue->n_done++);

    lane->n_flights--;
    use->status = flight->status;
    if (use->status == 0) {
        if (!helper_lane_is_awaited(lane, d))
            store_release(&helper_fence(lane, d)->daemon_seq, use->seq);
        *(d == HELPER_SPILL ? &h->stat.spilled_bytes : &h->stat.fetched_bytes) += use->bytes;
    }
    helper_lane_settle(h, lane);
}

bool helper_issue_finish(struct helper *h, uint64_t now_ns)
{
    bool progress = false;

    for (size_t d = 0; d < HELPER_DIRECTIONS; d++) {
        struct helper_copier *copier = &h->copiers[d];

        while (copier->head != copier->tail && !h->is_lost) {
            const struct helper_flight *flight = &copier->flights[copier->head % GPU_AHEAD_SLOTS];

            if (!helper_driver_has_come_to(h, copier, copier->head)) {
                /* Looked at after the question: who was stopped himself blames nobody. */
                if (now_ns > flight->since_ns + GPU_HANG_MS * UINT64_C(1000000))
                    helper_lose(h, "copy engine", "a copy does not end");
                break;
            }
            copier->head++;
            flight_end(h, (enum helper_direction)d, flight);
            progress = true;
        }
    }
    return progress;
}

/* --- Who is next --------------------------------------------------------------------------------------------------- */

static bool is_ready(const struct helper_queue *queue, enum helper_direction d, const struct helper_use *use)
{
    /* Pairs with the client's stream, which wrote what is read there, or has done with what is overwritten, before. */
    uint64_t client_seq = load_acquire(&helper_fence(queue->lane, d)->client_seq);

    if (d == HELPER_SPILL || queue->lane->alloc_bytes)
        return client_seq >= use->seq;
    return use->seq <= queue->lane->slots || client_seq >= use->seq - queue->lane->slots;
}

/* 1: all of its memory is known to the driver. 0: not yet. Or what ends the lane. */
static int look_at_memory(struct helper *h, struct helper_queue *queue, const struct helper_use *use)
{
    for (; queue->n_known < use->n_parts; queue->n_known++) {
        struct helper_chunk *chunk;
        uint32_t window;
        int r = helper_chunk_look(queue->lane->ring, helper_part_at(queue, queue->part_head + queue->n_known), &chunk,
                                  &window);

        if (r < 0)
            return r;
        if (r > 0)
            continue;
        if (chunk && !h->urgent.chunk) {
            h->urgent.chunk = chunk;
            h->urgent.window = window;
            h->urgent.queue = queue;
        }
        return 0;
    }
    return 1;
}

static uint64_t turn_begins(const struct helper_copier *copier, const struct helper_queue *queue)
{
    return MAX(copier->clock_bytes, queue->served_bytes);
}

static struct helper_queue *pick(struct helper *h, enum helper_direction d)
{
    struct helper_copier *copier = &h->copiers[d];
    struct helper_queue *best = NULL;

    list_for_each_safe (l, &copier->waiting) {
        struct helper_queue *queue = list_entry(l, struct helper_queue, waiting);
        const struct helper_use *use = helper_use_at(queue, queue->n_issued);
        int r;

        if ((best && turn_begins(copier, queue) >= turn_begins(copier, best)) || !is_ready(queue, d, use))
            continue;
        r = look_at_memory(h, queue, use);
        if (r < 0)
            helper_lane_fail_first(h, queue, -EINVAL);
        else if (r > 0)
            best = queue;
    }
    return best;
}

/* --- On the way ---------------------------------------------------------------------------------------------------- */

static void begin(struct helper_copier *copier, struct helper_queue *queue, uint64_t now_ns)
{
    const struct helper_use *use = helper_use_at(queue, queue->n_issued++);

    copier->issuing = queue->lane;
    copier->n_left = use->n_parts;
    copier->flights[copier->tail % GPU_AHEAD_SLOTS] = (struct helper_flight){.lane = queue->lane, .since_ns = now_ns};
    copier->clock_bytes = turn_begins(copier, queue);
    queue->served_bytes = copier->clock_bytes + use->bytes;
    queue->n_known = 0;
    queue->lane->n_flights++;
    /* Last, so that of those whose turns begin at once each has one. */
    list_unlink(&queue->waiting);
    if (queue->n_issued != queue->n_uses)
        list_push_tail(&copier->waiting, &queue->waiting);
}

/* Behind the copy: two microseconds before we see its end. */
static int tell_stream(struct helper *h, struct helper_copier *copier, enum helper_direction d)
{
    const struct helper_lane *lane = copier->issuing;
    const struct helper_queue *queue = &lane->queues[d];
    uint64_t offset_bytes = (uint64_t)((char *)&helper_fence(lane, d)->daemon_seq - (char *)lane->fences);

    return helper_driver_write(h, copier, lane->fences_ptr + offset_bytes,
                               helper_use_at(queue, queue->n_issued - 1)->seq);
}

static void end(struct helper *h, enum helper_direction d, int status)
{
    struct helper_copier *copier = &h->copiers[d];
    struct helper_lane *lane = copier->issuing;

    if (status == 0 && helper_lane_is_awaited(lane, d) && tell_stream(h, copier, d) < 0)
        status = -EIO;
    copier->flights[copier->tail % GPU_AHEAD_SLOTS].status = status;
    helper_driver_mark(h, copier, copier->tail);
    copier->tail++;
    copier->issuing = NULL;
    if (status < 0)
        helper_lane_fail(h, lane, status);
}

/* What is next of the use: as much of a part as lies in one window, as what was registered at once is copied at once. */
static void add_copy(struct helper_queue *queue, enum helper_direction d, uint64_t base_ptr,
                     struct helper_copies *copies)
{
    const struct helper_part *part = helper_part_at(queue, queue->part_head);
    struct helper_chunk *chunk = queue->lane->ring->chunks[part->region];
    uint64_t offset_bytes = part->offset_bytes + queue->part_bytes;
    uint64_t len_bytes = MIN(part->len_bytes - queue->part_bytes, GPU_WINDOW_BYTES - offset_bytes % GPU_WINDOW_BYTES);
    uint64_t host = (uintptr_t)chunk->mem + offset_bytes;
    uint64_t gpu = base_ptr + part->gpu_offset_bytes + queue->part_bytes;

    copies->to[copies->n] = d == HELPER_SPILL ? host : gpu;
    copies->from[copies->n] = d == HELPER_SPILL ? gpu : host;
    copies->len_bytes[copies->n++] = len_bytes;
    queue->part_bytes += (uint32_t)len_bytes;
    if (queue->part_bytes == part->len_bytes) {
        queue->part_bytes = 0;
        queue->part_head++;
    }
}

/* Where the offsets of a use begin. */
static uint64_t base_of(const struct helper_lane *lane, enum helper_direction d, const struct helper_use *use)
{
    uint64_t slot = (use->seq - 1) % lane->slots + (d == HELPER_FETCH ? lane->slots : 0);

    return lane->memory.ptr + (lane->alloc_bytes ? 0 : slot * lane->slot_bytes);
}

/* One lot of copies of the use that is being issued. How many. */
static size_t go_on(struct helper *h, enum helper_direction d)
{
    struct helper_copier *copier = &h->copiers[d];
    struct helper_lane *lane = copier->issuing;
    struct helper_queue *queue = &lane->queues[d];
    struct helper_copies copies = {.n = 0};
    uint64_t base_ptr;

    if (lane->state != HELPER_LANE_LIVE) {
        end(h, d, lane->status == -ECANCELED ? -ECANCELED : -EPIPE);
        return 0;
    }
    base_ptr = base_of(lane, d, helper_use_at(queue, queue->n_issued - 1));
    while (copies.n < HELPER_COPIES_MAX && copier->n_left > 0) {
        uint32_t head = queue->part_head;

        add_copy(queue, d, base_ptr, &copies);
        copier->n_left -= queue->part_head - head;
    }
    if (helper_driver_copy(h, d, &copies) < 0)
        end(h, d, -EIO);
    else if (copier->n_left == 0)
        end(h, d, 0);
    return copies.n;
}

bool helper_issue_start(struct helper *h, uint64_t now_ns)
{
    bool progress = false;

    for (size_t d = 0; d < HELPER_DIRECTIONS; d++) {
        struct helper_copier *copier = &h->copiers[d];
        size_t n = 0;

        while (n < HELPER_COPIES_MAX && !h->is_lost) {
            if (!copier->issuing) {
                struct helper_queue *queue =
                    n_flights(copier) < GPU_AHEAD_SLOTS ? pick(h, (enum helper_direction)d) : NULL;

                if (!queue)
                    break;
                begin(copier, queue, now_ns);
            }
            n += go_on(h, (enum helper_direction)d);
            progress = true;
        }
    }
    return progress;
}
