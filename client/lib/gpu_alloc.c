/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of the GPU that the daemon hands out, and the direct lane that it comes with. Its helper has that memory too, so its
 * copy engine reaches every byte of it: what moves needs no slot and no kernel here, only leave to begin (client_seq), and
 * somebody who waits for the end (daemon_seq). These are two streams, as on one alone each copy would begin only when the
 * one before has been seen to end.
 *
 * A lane that is over can move nothing any more, but its memory stays as it is until the caller frees it. Any thread.
 */
#include "client/lib/gpu.h"
#include "include/base/checked.h"

int client_gpu_direct_launch(struct gpu_lane *lane, const struct gpu_use *use)
{
    const struct cuda_driver *cuda = lane->gpu->cuda;
    const struct gpu_direction_state *d = &lane->directions[use->job->direction];
    int r = cuda->StreamWriteValue64(d->stream, d->fence_address + offsetof(struct spw_gpu_fence, client_seq), use->seq,
                                     NV_STREAM_WRITE_VALUE_DEFAULT);

    if (r == NV_SUCCESS)
        r = cuda->StreamWaitValue64(d->ends, d->fence_address + offsetof(struct spw_gpu_fence, daemon_seq), use->seq,
                                    NV_STREAM_WAIT_VALUE_GEQ);
    if (r == NV_SUCCESS)
        r = cuda->EventRecord(d->emptied[(use->seq - 1) % lane->slots], d->ends);
    return r == NV_SUCCESS ? 0 : client_gpu_error(r, "a copy of a lane");
}

struct spw_gpu_memory *client_gpu_memory_find(const struct spw_gpu *gpu, uint64_t address, uint64_t bytes)
{
    list_for_each (l, &gpu->lanes) {
        const struct gpu_lane *lane = list_entry(l, struct gpu_lane, link);
        struct spw_gpu_memory *memory = lane->memory;

        if (memory && range_within(address, bytes, lane->staging, memory->bytes))
            return memory;
    }
    return NULL;
}

int spw_gpu_alloc(spw_gpu *gpu, uint64_t bytes, spw_gpu_memory **ret_memory)
{
    struct gpu_lane *lane;

    if (!gpu || !ret_memory || bytes == 0 || bytes > GPU_ALLOC_BYTES_MAX)
        return client_error(-EINVAL, 0, "spw_gpu_alloc: an argument is NULL, or no such size");
    if (gpu->options.flags & SPW_GPU_MAP_ONLY)
        return client_error(-ENOTSUP, 0, "spw_gpu_alloc: this attachment only maps");
    struct spw_gpu_memory *memory = calloc(1, sizeof(*memory));
    if (!memory)
        return client_error(-ENOMEM, 0, "spw_gpu_alloc: out of memory");
    memory->bytes = bytes;
    int r = client_gpu_enter("spw_gpu_alloc", gpu);
    if (r < 0) {
        free(memory);
        return r;
    }
    pthread_mutex_unlock(&gpu->lock); /* it takes a while, and jobs go on: nobody knows of it yet */
    r = client_gpu_lane_new(gpu, memory, &lane);
    pthread_mutex_lock(&gpu->lock);
    if (r == 0)
        list_push_tail(&gpu->lanes, &lane->link);
    client_gpu_leave(gpu);
    if (r < 0)
        free(memory);
    else
        *ret_memory = memory;
    return r;
}

uint64_t spw_gpu_memory_address(const spw_gpu_memory *memory)
{
    return memory ? memory->lane->staging : 0;
}

/* What jobs had leases on may be with the daemon still, though they have ended. Of a daemon that is silent all of it stays. */
void spw_gpu_memory_free(spw_gpu_memory *memory)
{
    if (!memory)
        return;
    struct gpu_lane *lane = memory->lane;
    struct spw_gpu *gpu = lane->gpu;
    uint64_t until_ns = client_now_ns() + GPU_GRACE_MS * UINT64_C(1000000);

    if (client_gpu_enter("spw_gpu_memory_free", gpu) < 0)
        return;
    while (memory->n_jobs == 0 && !client_gpu_lane_is_idle(lane) && client_now_ns() < until_ns) {
        pthread_mutex_unlock(&gpu->lock);
        nanosleep(&(struct timespec){.tv_nsec = GPU_NAP_NS}, NULL);
        pthread_mutex_lock(&gpu->lock);
        (void)client_gpu_pump(gpu);
    }
    if (memory->n_jobs == 0 && client_gpu_lane_is_idle(lane)) {
        client_gpu_lane_free(lane);
        client_gpu_wake(gpu); /* it may sleep on its queue */
    }
    client_gpu_leave(gpu);
}
