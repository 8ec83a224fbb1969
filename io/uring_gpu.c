/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rings to GPUs' helpers, as the turn sees them: filled when it begins, looked at for completions as long as something
 * is in flight, and before the engine sleeps their doorbells are armed. The engine's thread only.
 */
#include <errno.h>

#include "io/uring_private.h"

#define for_each_gpu(u, gpu)                                                                                           \
    for (uint64_t left_ = (u)->gpu_mask; left_ != 0; left_ &= left_ - 1)                                               \
        if (((gpu) = &(u)->gpus[__builtin_ctzll(left_)])->port)

static_assert(GPUS_MAX <= 64, "bits of gpu_mask");

void uring_gpu_init(struct uring *u)
{
    list_init(&u->failed_dmas);
}

void uring_gpu_deinit(struct uring *u)
{
    for (uint32_t i = 0; i < GPUS_MAX; i++)
        gpu_port_free(u->gpus[i].port);
}

int uring_gpu_add(struct uring *u, uint32_t gpu, void *ring_mem, uint32_t entries, int doorbell_fd)
{
    if (gpu >= GPUS_MAX || entries < LIST_ITEMS_MAX)
        return -EINVAL;
    if (u->gpus[gpu].port)
        return -EEXIST;
    struct gpu_port *port;
    int r = gpu_port_new(ring_mem, entries, doorbell_fd, &port);

    if (r < 0)
        return r;
    u->gpus[gpu] = (struct uring_gpu){.port = port};
    u->gpu_mask |= UINT64_C(1) << gpu;
    return 0;
}

void uring_gpu_remove(struct uring *u, uint32_t gpu)
{
    struct gpu_port *port = gpu < GPUS_MAX ? u->gpus[gpu].port : NULL;

    if (!port)
        return;
    if (u->gpus[gpu].poll)
        uring_poll_cancel(u, u->gpus[gpu].poll);
    u->gpus[gpu] = (struct uring_gpu){0}; /* before anybody is told: what is submitted now fails */
    u->gpu_mask &= ~(UINT64_C(1) << gpu);
    gpu_port_end(port, -EIO);
    gpu_port_free(port);
}

bool uring_gpu_is_there(const struct uring *u, uint32_t gpu)
{
    return gpu < GPUS_MAX && u->gpus[gpu].port;
}

uint64_t uring_gpus_bad(const struct uring *u, uint64_t now_ns)
{
    const struct uring_gpu *gpu;
    uint64_t bad = 0;

    for_each_gpu(u, gpu)
    {
        if (gpu_port_is_bad(gpu->port, now_ns))
            bad |= UINT64_C(1) << (gpu - u->gpus);
    }
    return bad;
}

void uring_dma_submit(struct io_backend *be, struct io_dma *dma)
{
    struct uring *u = uring_of(be);

    if (!uring_gpu_is_there(u, dma->gpu)) {
        dma->result = -EIO;
        list_push_tail(&u->failed_dmas, &dma->link);
        return;
    }
    gpu_port_submit(u->gpus[dma->gpu].port, dma);
}

void uring_gpu_fill(struct uring *u)
{
    const struct uring_gpu *gpu;

    for_each_gpu(u, gpu) gpu_port_fill(gpu->port);
}

uint32_t uring_gpu_take(struct uring *u)
{
    const struct uring_gpu *gpu;
    struct list failed, *l;
    uint32_t n = 0;

    for_each_gpu(u, gpu) n += gpu_port_take(gpu->port);
    list_init(&failed);
    list_splice_tail(&failed, &u->failed_dmas);
    for (; (l = list_pop(&failed)); n++) {
        struct io_dma *dma = list_entry(l, struct io_dma, link);

        dma->done(dma);
    }
    return n;
}

bool uring_gpu_peek(const struct uring *u)
{
    const struct uring_gpu *gpu;

    for_each_gpu(u, gpu)
    {
        if (gpu_port_peek(gpu->port))
            return true;
    }
    return !list_is_empty(&u->failed_dmas);
}

bool uring_gpu_is_idle(const struct uring *u)
{
    const struct uring_gpu *gpu;

    for_each_gpu(u, gpu)
    {
        if (!gpu_port_is_idle(gpu->port))
            return false;
    }
    return list_is_empty(&u->failed_dmas);
}

void uring_gpu_arm(struct uring *u)
{
    struct uring_gpu *gpu;

    for_each_gpu(u, gpu)
    {
        if (!gpu->poll && !gpu->is_deaf && !gpu_port_is_idle(gpu->port) &&
            uring_poll_arm_gpu(u, gpu_port_doorbell(gpu->port), gpu, &gpu->poll) < 0)
            gpu->poll = 0; /* no poll is free: polls_max is too small for the owner's and GPUS_MAX more */
    }
}

bool uring_gpu_sleep(struct uring *u)
{
    const struct uring_gpu *gpu;
    bool may_sleep = list_is_empty(&u->failed_dmas);

    for_each_gpu(u, gpu)
    {
        if (!gpu_port_is_idle(gpu->port))
            may_sleep &= gpu_port_sleep(gpu->port);
    }
    return may_sleep;
}

void uring_gpu_wake(struct uring *u)
{
    const struct uring_gpu *gpu;

    for_each_gpu(u, gpu) gpu_port_wake(gpu->port);
}

void uring_gpu_polled(struct uring *u, struct uring_gpu *gpu)
{
    (void)u;
    gpu->poll = 0;
    gpu->is_deaf = !gpu_port_drain(gpu->port);
}
