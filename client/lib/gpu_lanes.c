/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which lanes an attachment has: the one with slots that is in use, those that are over and not yet idle, and one for each
 * allocation. What a restart of the daemon ends, and the lane that comes after it. With gpu.lock and the context.
 */
#include "client/lib/gpu.h"

bool client_gpu_lane_runs(const struct gpu_lane *lane)
{
    const struct cuda_driver *cuda = lane->gpu->cuda;

    for (unsigned i = 0; i < GPU_DIRECTIONS; i++) {
        const struct gpu_direction_state *d = &lane->directions[i];

        if (cuda->StreamQuery(d->stream) == NV_ERROR_NOT_READY ||
            (d->ends && cuda->StreamQuery(d->ends) == NV_ERROR_NOT_READY))
            return true;
    }
    return false;
}

bool client_gpu_lane_is_idle(const struct gpu_lane *lane)
{
    return list_is_empty(&lane->directions[GPU_SPILL].uses) && list_is_empty(&lane->directions[GPU_FETCH].uses) &&
           !client_gpu_lane_runs(lane);
}

int client_gpu_lane(struct spw_gpu *gpu, struct gpu_lane **ret_lane)
{
    if (gpu->options.flags & SPW_GPU_MAP_ONLY)
        return client_error(-ENOTSUP, 0, "this attachment only maps: it has no lane to move bytes through");
    for (struct list *l = gpu->lanes.next, *next; l != &gpu->lanes; l = next) {
        struct gpu_lane *lane = list_entry(l, struct gpu_lane, link);

        next = l->next;
        if (lane->memory)
            continue;
        if (lane->over == 0) {
            *ret_lane = lane;
            return 0;
        }
        if (client_gpu_lane_is_idle(lane))
            client_gpu_lane_free(lane);
    }
    int r = client_gpu_lane_new(gpu, NULL, ret_lane);
    if (r == 0) {
        gpu->awaits_lane = false;
        list_push_head(&gpu->lanes, &(*ret_lane)->link);
        client_gpu_wake(gpu); /* it sleeps on the old one's queue */
    }
    return r;
}

/* --- Restarts of the daemon ------------------------------------------------------------------------------------------ */

/* The daemon that it was made by has gone, and the session goes on with another one. */
static void lane_lose(struct gpu_lane *lane)
{
    lane->lost = true;
    client_gpu_lane_over(lane, -EPIPE);
    list_for_each (l, &lane->gpu->jobs) {
        struct spw_gpu_job *job = list_entry(l, struct spw_gpu_job, link);

        if (job->memory != lane->memory || job->n_begun == 0)
            continue;
        job->begun = false; /* the next lane has other streams */
        job->relaid = true;
        job->last = NULL;
    }
}

static void lanes_lose(struct spw_gpu *gpu)
{
    uint32_t era = load_acquire(&gpu->session->era); /* pairs with link.c's release */
    bool is_lost = false, has_next = false;

    if (era % 2 != 0) /* it is not known yet whether there will be a next daemon */
        return;
    list_for_each (l, &gpu->lanes) {
        struct gpu_lane *lane = list_entry(l, struct gpu_lane, link);
        bool is_old = lane->era != era;

        has_next |= !is_old && !lane->memory;
        if (!is_old || lane->lost)
            continue;
        lane_lose(lane);
        is_lost |= !lane->memory;
    }
    gpu->awaits_lane |= is_lost && !has_next;
}

/* Asks for the next lane, if a job wants one. A helper that is being started is waited for, until the jobs' deadlines. */
static void lane_next(struct spw_gpu *gpu, uint64_t now_ns)
{
    struct gpu_lane *lane;
    bool wanted = false;

    list_for_each (l, &gpu->jobs) {
        const struct spw_gpu_job *job = list_entry(l, struct spw_gpu_job, link);

        wanted |= !job->memory && job->error == 0 && !job->cancel && client_gpu_job_has_more(job);
    }
    if (!wanted || now_ns < gpu->lane_at_ns)
        return;
    int r = client_gpu_lane(gpu, &lane);
    if (r < 0 && r != -EAGAIN)
        gpu->awaits_lane = false; /* jobs that want it end */
    gpu->lane_at_ns = now_ns + GPU_LANE_PAUSE_NS;
}

void client_gpu_lanes_look(struct spw_gpu *gpu, uint64_t now_ns)
{
    lanes_lose(gpu);
    if (gpu->awaits_lane)
        lane_next(gpu, now_ns);
}
