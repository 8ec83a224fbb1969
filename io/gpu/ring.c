/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The helper's side of an engine's ring. Commands are taken as soon as they are there, to their lanes, so that no lane
 * stands before another one in here. The engine never has more of them than a lane has room for, and takes its completions;
 * if it does not, they stay with their lanes (helper.unsettled) until it does.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "include/base/atomic.h"
#include "include/base/ring.h"
#include "io/gpu/helper.h"

static uint64_t memory_bytes(uint32_t entries)
{
    return round_up(gpu_ring_bytes(entries), SECTOR_BYTES);
}

int helper_ring_new(struct helper *h, const struct gpu_msg *msg, int memory_fd, int doorbell_fd)
{
    struct helper_ring *ring;
    void *mem = NULL;
    int r;

    if (msg->engine >= ENGINES_MAX || h->rings[msg->engine] || !is_pow2(msg->entries) ||
        msg->entries > GPU_RING_ENTRIES)
        return -EINVAL;
    r = helper_map(memory_fd, memory_bytes(msg->entries), SECTOR_BYTES, true, &mem);
    if (r < 0)
        return r;
    ring = calloc(1, sizeof(*ring));
    if (!ring) {
        helper_unmap(mem, memory_bytes(msg->entries));
        return -ENOMEM;
    }
    ring->engine = msg->engine;
    ring->entries = msg->entries;
    ring->shared = mem;
    ring->cmds = gpu_ring_cmds(mem);
    ring->completions = gpu_ring_completions(mem, msg->entries);
    ring->doorbell_fd = fcntl(doorbell_fd, F_DUPFD_CLOEXEC, 0);
    for (size_t i = 0; i < HELPER_LANE_BUCKETS; i++)
        list_init(&ring->lanes[i]);
    h->rings[msg->engine] = ring;
    h->engines[h->n_rings++] = msg->engine;
    h->polls[h->n_rings] = (struct pollfd){.fd = ring->doorbell_fd, .events = POLLIN};
    return 0;
}

void helper_ring_free(struct helper *h, struct helper_ring *ring)
{
    if (!ring)
        return;
    for (size_t i = 0; i < HELPER_LANE_BUCKETS; i++)
        while (!list_is_empty(&ring->lanes[i]))
            helper_lane_free(h, list_first_entry(&ring->lanes[i], struct helper_lane, link));
    for (size_t i = 0; i < CHUNKS_MAX; i++)
        helper_chunk_free(h, ring->chunks[i]);
    if (ring->doorbell_fd >= 0)
        close(ring->doorbell_fd);
    helper_unmap(ring->shared, memory_bytes(ring->entries));
    free(ring);
}

void helper_ring_fail(struct helper *h, struct helper_ring *ring)
{
    for (size_t i = 0; i < HELPER_LANE_BUCKETS; i++)
        list_for_each (l, &ring->lanes[i])
            helper_lane_fail(h, list_entry(l, struct helper_lane, link), -EIO);
}

struct helper_lane *helper_ring_lane(struct helper_ring *ring, uint32_t number)
{
    list_for_each (l, &ring->lanes[number % HELPER_LANE_BUCKETS]) {
        struct helper_lane *lane = list_entry(l, struct helper_lane, link);

        if (lane->number == number)
            return lane;
    }
    return NULL;
}

/* Of a lane that there is not. It cannot keep the answer, so there must be room for it. */
static void refuse(struct helper *h, struct helper_ring *ring, const struct gpu_cmd *cmd)
{
    struct gpu_completion completion = {.cookie = cmd->cookie, .lane = cmd->lane, .status = -EBADF};

    if (cmd->op != GPU_CMD_CANCEL && !(cmd->flags & GPU_CMD_LAST))
        return;
    if (!helper_ring_post(h, ring, &completion))
        helper_lose(h, "ring", "commands for a lane that is not there, and no room to say so");
}

bool helper_ring_take(struct helper *h, struct helper_ring *ring)
{
    uint32_t tail = load_acquire(&ring->shared->engine.cmd_tail); /* the commands before it are there */
    uint32_t n = ring_count(ring->cmd_head, tail);
    struct helper_lane *lane = NULL;

    if (n == 0)
        return false;
    if (!ring_peer_ok(ring->cmd_head, tail, ring->entries)) {
        helper_lose(h, "ring", "a tail that is further ahead than the ring is long");
        return false;
    }
    n = MIN(n, (uint32_t)GPU_TAKE_MAX);
    for (uint32_t i = 0; i < n; i++) {
        struct gpu_cmd cmd;

        copy_once(&cmd, &ring->cmds[(ring->cmd_head + i) & (ring->entries - 1)], sizeof(cmd));
        if (!lane || lane->number != cmd.lane)
            lane = helper_ring_lane(ring, cmd.lane);
        if (lane)
            helper_lane_command(h, lane, &cmd);
        else
            refuse(h, ring, &cmd);
    }
    ring->cmd_head += n;
    /* The copies come before the engine may use the entries again. */
    store_release(&ring->shared->helper.cmd_head, ring->cmd_head);
    return true;
}

bool helper_ring_post(struct helper *h, struct helper_ring *ring, const struct gpu_completion *completion)
{
    if (ring_count(ring->done_head, ring->done_tail) == ring->entries) {
        uint32_t head = load_acquire(&ring->shared->engine.done_head);

        if (!ring_peer_ok(head, ring->done_tail, ring->entries)) {
            helper_lose(h, "ring", "a head of completions that cannot be");
            return false;
        }
        ring->done_head = head;
        if (ring_count(head, ring->done_tail) == ring->entries)
            return false;
    }
    ring->completions[ring->done_tail & (ring->entries - 1)] = *completion;
    ring->done_tail++;
    return true;
}

void helper_ring_flush(struct helper_ring *ring)
{
    uint32_t word;

    if (ring->done_published == ring->done_tail)
        return;
    ring->done_published = ring->done_tail;
    word = ring_publish(&ring->shared->helper.done_tail, ring->done_tail, &ring->shared->engine.flags);
    if (ring_must_wake(word, GPU_RING_SLEEPS, &ring->rung) && ring->doorbell_fd >= 0)
        (void)!send(ring->doorbell_fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL); /* EAGAIN: one is under way already */
}

bool helper_ring_sleep(struct helper_ring *ring)
{
    ring_sleep_prepare(&ring->shared->helper.flags, ring_sleep_word(GPU_RING_SLEEPS, &ring->n_sleeps));
    return load_acquire(&ring->shared->engine.cmd_tail) == ring->cmd_head; /* S3, pairs with the engine's W1 */
}

void helper_ring_wake(struct helper_ring *ring)
{
    ring_sleep_cancel(&ring->shared->helper.flags);
}

void helper_ring_drain_doorbell(struct helper_ring *ring)
{
    char bytes[16];
    ssize_t n = 1;

    for (int i = 0; i < GPU_DRAIN_MAX && n > 0; i++)
        n = recv(ring->doorbell_fd, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (n == 0) { /* an engine that has gone: the socket will tell the rest */
        close(ring->doorbell_fd);
        ring->doorbell_fd = -1;
    }
}
