/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lanes: their memory, fences, the uses that wait, and the one end that a lane has.
 *
 * The order of the end is what clients and engine rely on: when no copy of the lane is under way any more, the status of
 * both directions, then SPW_GPU_SEQ_OVER, and only then completions that say so. So the engine may give memory back when
 * it has a completion, and a kernel that runs because of SPW_GPU_SEQ_OVER sees the status.
 *
 * Commands come from the daemon and are believed, but checked against the lane: a mistake there ends the lane and nothing
 * else. What the client writes into its fences is looked at in issue.c alone.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "include/base/atomic.h"
#include "include/base/checked.h"
#include "io/gpu/helper.h"

static void lane_set_state(struct helper_lane *lane, enum helper_lane_state state)
{
    assert(state > lane->state);
    lane->state = state;
}

static int queue_init(struct helper_queue *queue, struct helper_lane *lane)
{
    list_init(&queue->waiting);
    queue->lane = lane;
    queue->next_seq = 1;
    queue->earliest_ns = UINT64_MAX;
    queue->parts = calloc(lane->ring->entries, sizeof(*queue->parts));
    queue->uses = calloc(lane->ring->entries, sizeof(*queue->uses));
    return queue->parts && queue->uses ? 0 : -ENOMEM;
}

static uint64_t *lane_stat(struct helper *h, const struct helper_lane *lane)
{
    return lane->alloc_bytes ? &h->stat.allocated_bytes : &h->stat.staging_bytes;
}

static int lane_init(struct helper *h, struct helper_lane *lane, int fences_fd, int *ret_memory_fd)
{
    uint64_t bytes = lane->alloc_bytes ? lane->alloc_bytes : UINT64_C(2) * lane->slots * lane->slot_bytes;
    void *mem = NULL;
    int r = 0;

    for (size_t d = 0; d < HELPER_DIRECTIONS; d++)
        if (queue_init(&lane->queues[d], lane) < 0)
            r = -ENOMEM; /* of both, so that both can be freed */
    if (r == 0)
        r = helper_map(fences_fd, SECTOR_BYTES, SECTOR_BYTES, true, &mem);
    lane->fences = mem;
    if (r == 0)
        r = helper_driver_register_page(h, mem, &lane->fences_ptr);
    if (r == 0)
        r = helper_driver_memory_new(h, bytes, &lane->memory, ret_memory_fd);
    *lane_stat(h, lane) += lane->memory.size_bytes;
    return r;
}

int helper_lane_new(struct helper *h, struct helper_ring *ring, const struct gpu_msg *msg, int fences_fd,
                    struct helper_lane **ret_lane, int *ret_memory_fd)
{
    struct helper_lane *lane;
    int r;

    if (msg->slots == 0 || msg->slots > GPU_SLOTS_MAX || msg->slot_bytes == 0 || msg->slot_bytes > GPU_SLOT_BYTES_MAX ||
        msg->bytes > GPU_ALLOC_BYTES_MAX || helper_ring_lane(ring, msg->lane))
        return -EINVAL;
    if (h->stat.lanes == GPU_LANES_MAX)
        return -ENOSPC;
    lane = calloc(1, sizeof(*lane));
    if (!lane)
        return -ENOMEM;
    list_init(&lane->unsettled);
    list_push_tail(&ring->lanes[msg->lane % HELPER_LANE_BUCKETS], &lane->link);
    lane->ring = ring;
    lane->number = msg->lane;
    lane->slots = msg->slots;
    lane->slot_bytes = msg->slot_bytes;
    lane->alloc_bytes = msg->bytes;
    h->stat.lanes++;
    r = lane_init(h, lane, fences_fd, ret_memory_fd);
    if (r < 0) {
        helper_lane_free(h, lane);
        return r;
    }
    *ret_lane = lane;
    return 0;
}

void helper_lane_free(struct helper *h, struct helper_lane *lane)
{
    for (size_t d = 0; d < HELPER_DIRECTIONS; d++) {
        list_unlink(&lane->queues[d].waiting);
        free(lane->queues[d].parts);
        free(lane->queues[d].uses);
    }
    list_unlink(&lane->unsettled);
    list_unlink(&lane->link);
    *lane_stat(h, lane) -= lane->memory.size_bytes;
    h->stat.lanes--;
    if (h->urgent.chunk && h->urgent.queue->lane == lane)
        h->urgent.chunk = NULL;
    if (lane->memory.handle)
        helper_driver_memory_free(h, &lane->memory);
    if (lane->fences_ptr)
        helper_driver_unregister(h, lane->fences);
    helper_unmap(lane->fences, SECTOR_BYTES);
    free(lane);
}

bool helper_lane_is_idle(const struct helper_lane *lane)
{
    for (size_t d = 0; d < HELPER_DIRECTIONS; d++)
        if (lane->queues[d].n_posted != lane->queues[d].n_uses)
            return false;
    return lane->n_flights == 0;
}

/* What has not been issued. Of a use that is just being given to the copy engine, issue.c lets go itself. */
static void drop_waiting(struct helper *h, struct helper_lane *lane)
{
    for (size_t d = 0; d < HELPER_DIRECTIONS; d++) {
        struct helper_queue *queue = &lane->queues[d];

        list_unlink(&queue->waiting);
        queue->part_head = queue->part_tail;
        queue->part_bytes = 0;
    }
    if (h->urgent.chunk && h->urgent.queue->lane == lane)
        h->urgent.chunk = NULL;
}

void helper_lane_fail(struct helper *h, struct helper_lane *lane, int status)
{
    if (lane->state == HELPER_LANE_LIVE) {
        lane->status = status;
        lane_set_state(lane, HELPER_LANE_ENDING);
        h->stat.lanes_over++;
        drop_waiting(h, lane);
    }
    helper_lane_settle(h, lane);
}

void helper_lane_fail_first(struct helper *h, struct helper_queue *queue, int status)
{
    helper_use_at(queue, queue->n_issued)->status = status;
    helper_lane_fail(h, queue->lane, status);
}

/* Those that the end has met; the one that caused it has its status already. */
static void end_uses(struct helper_queue *queue)
{
    int status = queue->lane->status == -ECANCELED ? -ECANCELED : -EPIPE;

    for (; queue->n_done != queue->n_uses; queue->n_done++) {
        struct helper_use *use = helper_use_at(queue, queue->n_done);

        if (use->status == 0 && !use->is_cancel)
            use->status = status;
    }
    queue->n_issued = queue->n_uses;
}

static void publish_end(struct helper_lane *lane)
{
    lane_set_state(lane, HELPER_LANE_OVER);
    for (size_t d = 0; d < HELPER_DIRECTIONS; d++)
        store_relaxed(&helper_fence(lane, d)->status, (uint64_t)-lane->status);
    for (size_t d = 0; d < HELPER_DIRECTIONS; d++) {
        /* Pairs with the wait of the client's stream, and its kernel's load of the status after that. */
        store_release(&helper_fence(lane, d)->daemon_seq, SPW_GPU_SEQ_OVER);
        end_uses(&lane->queues[d]);
    }
}

/* False: no room. A use that failed is told of after the fences are. */
static bool post_done(struct helper *h, struct helper_queue *queue)
{
    const struct helper_lane *lane = queue->lane;

    for (; queue->n_posted != queue->n_done; queue->n_posted++) {
        const struct helper_use *use = helper_use_at(queue, queue->n_posted);

        if (use->status < 0 && lane->state != HELPER_LANE_OVER)
            return true;
        if (!helper_ring_post(h, lane->ring,
                              &(struct gpu_completion){.cookie = use->cookie,
                                                       .status = use->status,
                                                       .lane = lane->number,
                                                       .bytes = use->status == 0 ? use->bytes : 0}))
            return false;
    }
    return true;
}

void helper_lane_settle(struct helper *h, struct helper_lane *lane)
{
    bool all = true;

    if (lane->state == HELPER_LANE_ENDING && lane->n_flights == 0)
        publish_end(lane);
    /* A CANCEL is in the queue of spills, and comes after everything. */
    for (int d = HELPER_DIRECTIONS - 1; d >= 0 && all; d--) {
        struct helper_queue *queue = &lane->queues[d];

        all = post_done(h, queue);
        if (queue->n_posted == queue->n_uses)
            queue->n_posted = queue->n_done = queue->n_issued = queue->n_uses = 0;
        if (queue->part_head == queue->part_tail)
            queue->part_head = queue->part_tail = 0;
    }
    list_unlink(&lane->unsettled);
    if (!all)
        list_push_tail(&h->unsettled, &lane->unsettled);
}

/* False: the engine gave more than it may. */
static bool push_use(struct helper *h, struct helper_queue *queue, const struct helper_use *use)
{
    if (queue->n_uses - queue->n_posted == queue->lane->ring->entries) {
        helper_lose(h, "ring", "more commands for a lane than a ring has entries");
        return false;
    }
    *helper_use_at(queue, queue->n_uses++) = *use;
    return true;
}

/* A use is whole: it waits for its turn, or learns that there is none any more. */
static void close_use(struct helper *h, struct helper_queue *queue, const struct gpu_cmd *cmd)
{
    struct helper_lane *lane = queue->lane;

    queue->open.seq = cmd->seq;
    queue->open.cookie = cmd->cookie;
    queue->open.expires_ns = cmd->expires_ns;
    if (!push_use(h, queue, &queue->open))
        return;
    queue->open = (struct helper_use){.seq = 0};
    if (lane->state == HELPER_LANE_LIVE) {
        queue->next_seq++;
        queue->earliest_ns = MIN(queue->earliest_ns, cmd->expires_ns);
        if (list_is_empty(&queue->waiting))
            list_push_tail(&h->copiers[queue - lane->queues].waiting, &queue->waiting);
    } else if (lane->state == HELPER_LANE_OVER) {
        end_uses(queue);
        helper_lane_settle(h, lane);
    }
}

static bool part_is_ok(const struct helper_queue *queue, const struct gpu_cmd *cmd)
{
    const struct helper_lane *lane = queue->lane;

    return cmd->seq == queue->next_seq && cmd->len_bytes <= lane->slot_bytes - queue->open.bytes &&
           range_ok(cmd->gpu_offset_bytes, cmd->len_bytes, lane->alloc_bytes ? lane->alloc_bytes : lane->slot_bytes);
}

static void add_part(struct helper *h, struct helper_queue *queue, const struct gpu_cmd *cmd)
{
    if (queue->part_tail - queue->part_head == queue->lane->ring->entries) {
        helper_lose(h, "ring", "more commands for a lane than a ring has entries");
        return;
    }
    *helper_part_at(queue, queue->part_tail++) = (struct helper_part){
        .offset_bytes = cmd->offset_bytes,
        .region = cmd->region,
        .epoch = cmd->epoch,
        .gpu_offset_bytes = cmd->gpu_offset_bytes,
        .len_bytes = cmd->len_bytes,
    };
    queue->open.n_parts++;
    queue->open.bytes += cmd->len_bytes;
}

static void cancel(struct helper *h, struct helper_lane *lane, const struct gpu_cmd *cmd)
{
    struct helper_queue *queue = &lane->queues[HELPER_SPILL];

    if (!push_use(h, queue, &(struct helper_use){.cookie = cmd->cookie, .is_cancel = true}))
        return;
    if (lane->state == HELPER_LANE_OVER)
        end_uses(queue);
    helper_lane_fail(h, lane, -ECANCELED);
}

void helper_lane_command(struct helper *h, struct helper_lane *lane, const struct gpu_cmd *cmd)
{
    struct helper_queue *queue = &lane->queues[cmd->op == GPU_CMD_FETCH ? HELPER_FETCH : HELPER_SPILL];

    if (cmd->op == GPU_CMD_CANCEL) {
        cancel(h, lane, cmd);
        return;
    }
    if (cmd->op != GPU_CMD_SPILL && cmd->op != GPU_CMD_FETCH) {
        helper_lose(h, "ring", "a command that we do not know");
        return;
    }
    if (lane->state == HELPER_LANE_LIVE && !part_is_ok(queue, cmd)) {
        queue->open.status = -EINVAL;
        helper_lane_fail(h, lane, -EINVAL);
    }
    if (lane->state == HELPER_LANE_LIVE)
        add_part(h, queue, cmd);
    if (cmd->flags & GPU_CMD_LAST)
        close_use(h, queue, cmd);
}

bool helper_lane_expire(struct helper *h, struct helper_queue *queue, uint64_t now_ns)
{
    uint64_t earliest_ns = UINT64_MAX;

    if (now_ns < queue->earliest_ns)
        return false;
    for (uint32_t i = queue->n_issued; i != queue->n_uses; i++) {
        struct helper_use *use = helper_use_at(queue, i);

        if (now_ns >= use->expires_ns) {
            use->status = -ETIMEDOUT;
            helper_lane_fail(h, queue->lane, -ETIMEDOUT);
            return true;
        }
        earliest_ns = MIN(earliest_ns, use->expires_ns);
    }
    queue->earliest_ns = earliest_ns;
    return false;
}
