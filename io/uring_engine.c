/* SPDX-License-Identifier: Apache-2.0 */
/*
 * struct uring: set-up, the engine's turn, and descriptors that it waits for. The engine's thread only, after start.
 *
 * A turn submits what was queued since the last one, takes what has completed, runs the mailbox, and only if all of
 * that was nothing, sleeps. So the engine enters the kernel when it has something to submit, when the kernel says that
 * a completion is due, or to sleep; a spinning engine with nothing to do makes no system call.
 *
 * Everything that comes back carries index, generation and kind in user_data, and is believed only if they name
 * something that is out. The wake-up eventfd is read through the ring; the read is armed when the engine first sleeps
 * and stays armed until somebody rings.
 */
#include <errno.h>
#include <stdlib.h>

#include "include/base/cleanup.h"
#include "include/base/kill_point.h"
#include "io/uring_private.h"

#define EVENTS_A_REAP 64

/* --- Set-up ------------------------------------------------------------------------------------------------------ */

static const struct io_backend_ops uring_ops = {
    .blk_submit = uring_block_submit,
    .blk_urge = uring_block_urge,
    .work_submit = uring_work_submit,
    .chunk_request = uring_chunk_request,
    .chunk_survived = uring_chunk_survived,
    .records_touch = uring_records_touch,
    .chunk_close = uring_chunk_close,
    .dma_submit = uring_dma_submit,
    .bounce_alloc = uring_bounce_alloc,
    .blk_now = uring_block_now,
    .ahead_begin = uring_ahead_begin,
    .ahead_wait = uring_ahead_wait,
    .ahead_over = uring_ahead_over,
};

static bool config_fill(struct uring_config *c)
{
    c->entries = c->entries ? c->entries : DEFAULT_URING_ENTRIES;
    c->devices_max = c->devices_max ? c->devices_max : DEVICES_MAX;
    c->polls_max = c->polls_max ? c->polls_max : DEFAULT_POLLS;
    c->works_max = c->works_max ? c->works_max : DEFAULT_WORKS;
    c->chunks_max = c->chunks_max ? c->chunks_max : CHUNKS_MAX;
    return c->entries <= URING_ENTRIES_MAX && c->devices_max <= DEVICES_MAX && c->polls_max <= POLLS_MAX &&
           c->works_max <= POLLS_MAX && c->chunks_max <= CHUNKS_MAX && c->mode <= URING_MODE_PLAIN;
}

static int polls_init(struct uring *u)
{
    list_init(&u->polls_free);
    list_init(&u->polls_wanted);
    list_init(&u->polls_cancelled);
    u->polls = calloc(u->config.polls_max, sizeof(*u->polls));
    if (!u->polls)
        return -ENOMEM;
    for (uint32_t i = 0; i < u->config.polls_max; i++)
        list_push_tail(&u->polls_free, &u->polls[i].link);
    return 0;
}

static int tables_init(struct uring *u)
{
    int r = uring_block_init(u);

    if (r == 0)
        r = polls_init(u);
    if (r == 0)
        r = uring_work_init(u);
    if (r == 0)
        r = uring_region_init(u);
    uring_gpu_init(u);
    return r;
}

DEFINE_CLEANUP(struct uring *, uring_free)

int uring_new(const struct uring_config *config, struct uring **ret_uring, const char **ret_why)
{
    cleanup_(uring_freep) struct uring *u = calloc(1, sizeof(*u));

    *ret_why = "no memory";
    if (!u)
        return -ENOMEM;
    u->backend.ops = &uring_ops;
    u->queue.wake_fd = -1;
    uring_ahead_init(u);
    u->config = *config;
    if (!config_fill(&u->config)) {
        *ret_why = "a limit in the configuration is out of range";
        return -EINVAL;
    }
    int r = tables_init(u);
    if (r < 0)
        return r;
    r = engine_queue_init(&u->queue);
    if (r < 0) {
        *ret_why = "no descriptor left for an eventfd (LimitNOFILE)";
        return r;
    }
    u->caps.mode = u->config.mode;
    /* Room for what is usual; when completions outrun it, the kernel keeps the rest (NODROP). */
    r = uring_kernel_new(u->config.entries, 4 * u->config.entries, u->config.devices_max, WINDOWS_MAX, &u->caps,
                         &u->kernel, ret_why);
    if (r < 0)
        return r;
    *ret_uring = steal_ptr(u);
    return 0;
}

void uring_free(struct uring *u)
{
    if (!u)
        return;
    uring_ahead_deinit(u);
    if (u->kernel)
        uring_region_deinit(u); /* unregisters, so before the ring goes */
    uring_kernel_free(u->kernel);
    uring_gpu_deinit(u);
    engine_queue_deinit(&u->queue);
    free(u->slots);
    free(u->devices);
    free(u->polls);
    free(u->jobs);
    free(u->granule);
    free(u);
}

int uring_start(struct uring *u)
{
    int r = uring_kernel_start(u->kernel, &u->caps);

    u->is_started = r == 0;
    return r;
}

struct io_backend *uring_backend(struct uring *u)
{
    return &u->backend;
}

struct engine_queue *uring_queue(struct uring *u)
{
    return &u->queue;
}

const struct uring_caps *uring_caps(const struct uring *u)
{
    return &u->caps;
}

void uring_stat(const struct uring *u, struct uring_stat *ret_stat)
{
    *ret_stat = u->stat;
}

void uring_pool_stat(const struct uring *u, uint32_t pool, struct uring_lane_stat *ret_stat)
{
    *ret_stat = u->lanes[io_lane_of(pool)];
}

bool uring_is_idle(const struct uring *u)
{
    return u->stat.blks_in_flight == 0 && u->stat.blks_queued == 0 && u->stat.works_in_flight == 0 &&
           u->stat.works_queued == 0 && u->n_growing == 0 && list_is_empty(&u->failed_blks) &&
           list_is_empty(&u->failed_works) && list_is_empty(&u->failed_chunks) && uring_gpu_is_idle(u);
}

/* --- Polls ------------------------------------------------------------------------------------------------------- */

static uint64_t poll_user_data(const struct uring *u, const struct uring_poll *p)
{
    return uring_user_data(URING_KIND_POLL, p->generation, (uint32_t)(p - u->polls));
}

static void poll_free(struct uring *u, struct uring_poll *p)
{
    list_unlink(&p->link);
    p->generation++;
    p->state = URING_POLL_FREE;
    list_push_head(&u->polls_free, &p->link);
}

static int poll_arm(struct uring *u, int fd, uint64_t token, struct uring_gpu *gpu, uint64_t *ret_poll)
{
    struct list *l = list_pop(&u->polls_free);

    if (!l)
        return -ENOSPC;
    struct uring_poll *p = list_entry(l, struct uring_poll, link);
    p->fd = fd;
    p->token = token;
    p->gpu = gpu;
    p->state = URING_POLL_WANTED;
    list_push_tail(&u->polls_wanted, &p->link);
    *ret_poll = poll_user_data(u, p);
    return 0;
}

int uring_poll_arm(struct uring *u, int fd, uint64_t token, uint64_t *ret_poll)
{
    return poll_arm(u, fd, token, NULL, ret_poll);
}

int uring_poll_arm_gpu(struct uring *u, int fd, struct uring_gpu *gpu, uint64_t *ret_poll)
{
    return poll_arm(u, fd, 0, gpu, ret_poll);
}

static struct uring_poll *poll_find(const struct uring *u, uint64_t user_data)
{
    uint32_t index = (uint32_t)user_data;
    struct uring_poll *p = index < u->config.polls_max ? &u->polls[index] : NULL;

    return p && p->state != URING_POLL_FREE && poll_user_data(u, p) == user_data ? p : NULL;
}

void uring_poll_cancel(struct uring *u, uint64_t poll)
{
    struct uring_poll *p = poll_find(u, poll);

    if (!p || p->state == URING_POLL_CANCELLING)
        return;
    if (p->state == URING_POLL_WANTED) {
        poll_free(u, p);
        return;
    }
    p->state = URING_POLL_CANCELLING;
    list_push_tail(&u->polls_cancelled, &p->link);
}

static bool poll_complete(struct uring *u, uint64_t user_data, int32_t result)
{
    struct uring_poll *p = poll_find(u, user_data);

    if (!p || p->state == URING_POLL_WANTED)
        return false;
    bool is_wanted = p->state == URING_POLL_ARMED;
    uint64_t token = p->token;
    struct uring_gpu *gpu = p->gpu;
    poll_free(u, p);
    if (!is_wanted)
        return true;
    u->stat.polls++;
    if (gpu) {
        uring_gpu_polled(u, gpu);
        return true;
    }
    /* An error of the poll itself (a descriptor that is none) is told as the descriptor's. */
    u->config.on_poll(u->config.ctx, token, result < 0 ? URING_POLL_ERROR : (uint32_t)result);
    return true;
}

/* False: the submission queue is full. */
static bool polls_fill(struct uring *u)
{
    list_for_each_safe (l, &u->polls_cancelled) {
        struct uring_poll *p = list_entry(l, struct uring_poll, link);

        if (!uring_kernel_prep_poll_remove(u->kernel, poll_user_data(u, p),
                                           uring_user_data(URING_KIND_POLL_REMOVE, 0, 0)))
            return false;
        list_unlink(l);
    }
    list_for_each_safe (l, &u->polls_wanted) {
        struct uring_poll *p = list_entry(l, struct uring_poll, link);

        if (!uring_kernel_prep_poll(u->kernel, p->fd, poll_user_data(u, p)))
            return false;
        list_unlink(l);
        p->state = URING_POLL_ARMED;
    }
    return true;
}

/* --- The turn ---------------------------------------------------------------------------------------------------- */

static int submit(struct uring *u)
{
    u->stat.batches++;
    kill_point("uring.submit");
    u->stat.enters++;
    return uring_kernel_submit(u->kernel);
}

/* Fills the submission queue, and empties it into the kernel whenever it is full. The last batch is left in it. */
static int fill(struct uring *u)
{
    uring_work_flush(u);
    uring_gpu_fill(u);
    while (!polls_fill(u) || !uring_block_fill(u)) {
        uint32_t before = uring_kernel_unsubmitted(u->kernel);
        int r = submit(u);

        if (r < 0)
            return r;
        if (uring_kernel_unsubmitted(u->kernel) == before)
            break; /* the kernel takes nothing now; completions first */
    }
    return 0;
}

static bool dispatch(struct uring *u, const struct uring_event *event)
{
    uint32_t generation = (uint32_t)(event->user_data >> 32) & 0xffffff, index = (uint32_t)event->user_data;

    switch ((enum uring_kind)(event->user_data >> 56)) {
    case URING_KIND_BLK:
        return uring_block_complete(u, generation, index, event->result);
    case URING_KIND_POLL:
        return poll_complete(u, event->user_data, event->result);
    case URING_KIND_POLL_REMOVE: /* the poll's own completion tells */
        return true;
    case URING_KIND_WAKE:
        u->is_wake_armed = false;
        return true;
    }
    return false;
}

static uint32_t reap(struct uring *u)
{
    struct uring_event events[EVENTS_A_REAP];
    uint32_t n, n_total = 0;
    bool entered;

    if (!uring_kernel_is_due(u->kernel))
        return 0;
    do {
        n = uring_kernel_reap(u->kernel, events, EVENTS_A_REAP, &entered);
        u->stat.enters += entered;
        for (uint32_t i = 0; i < n; i++)
            u->stat.bogus += !dispatch(u, &events[i]);
        n_total += n;
    } while (n == EVENTS_A_REAP && n_total < u->config.entries); /* bounded: a turn ends */
    return n_total;
}

static uint32_t collect(struct uring *u)
{
    uint32_t n = reap(u), n_messages = engine_queue_run(&u->queue);

    u->stat.messages += n_messages;
    if (!list_is_empty(&u->works_here))
        n += uring_work_here(u);
    if (!list_is_empty(&u->failed_blks))
        n += uring_block_fail(u);
    if (!list_is_empty(&u->failed_works))
        n += uring_work_fail(u);
    if (!list_is_empty(&u->failed_chunks))
        n += uring_chunk_fail(u);
    n += uring_gpu_take(u);
    return n + n_messages;
}

bool uring_peek(const struct uring *u)
{
    return !engine_queue_is_empty(&u->queue) || !list_is_empty(&u->works_here) || uring_gpu_peek(u) ||
           uring_kernel_is_due(u->kernel);
}

static int sleep_once(struct uring *u, uint64_t timeout_ns)
{
    if (!u->is_wake_armed)
        u->is_wake_armed = uring_kernel_prep_read(u->kernel, u->queue.wake_fd, &u->wake_value, sizeof(u->wake_value),
                                                  uring_user_data(URING_KIND_WAKE, 0, 0));
    uring_gpu_arm(u);
    if (!u->is_wake_armed || !polls_fill(u) || !engine_queue_sleep_prepare(&u->queue))
        return submit(u);
    int r;

    if (uring_gpu_sleep(u)) {
        u->stat.sleeps++;
        u->stat.enters++;
        r = uring_kernel_sleep(u->kernel, timeout_ns);
    } else {
        r = submit(u);
    }
    uring_gpu_wake(u);
    engine_queue_sleep_end(&u->queue);
    return r;
}

int uring_run(struct uring *u, uint64_t timeout_ns)
{
    int r = fill(u);
    uint32_t n = 0;

    if (r == 0 && timeout_ns > 0) {
        n = collect(u);
        if (n == 0)
            r = sleep_once(u, timeout_ns); /* submits, too: one system call for both */
    }
    if (r == 0 && uring_kernel_unsubmitted(u->kernel) > 0)
        r = submit(u);
    if (r < 0)
        return r;
    kill_point("uring.collect");
    n += collect(u);
    uring_work_flush(u);
    return (int)n;
}
