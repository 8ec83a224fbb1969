/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jobs: what spw_spill() and spw_fetch() start, and how one waits for it. Any thread.
 *
 * A job has copies of the lists that it was given, and statuses of its own until its end: so it can end while requests of
 * it are still with a daemon that does not answer.
 */
#include <string.h>

#include "client/lib/gpu.h"

/* --- Beginning ------------------------------------------------------------------------------------------------------- */

static int job_check(const char *name, const spw_gpu_layout *layout, const struct spw_key *keys,
                     const uint32_t *block_ids, size_t n, unsigned flags, unsigned allowed)
{
    if (n > 0 && (!keys || !block_ids))
        return client_error(-EINVAL, 0, "%s: a list is NULL", name);
    if (flags & ~allowed)
        return client_error(-EINVAL, 0, "%s: flags 0x%x are not for this call", name, flags & ~allowed);
    for (size_t i = 0; i < n; i++)
        if (block_ids[i] >= layout->n_blocks)
            return client_error(-EINVAL, 0, "%s: block %u of element %zu: the layout has %u", name, block_ids[i], i,
                                layout->n_blocks);
    struct client_call call = {.space = layout->space, .keys = keys, .n = n};
    return client_call_check(name, &call);
}

struct spw_gpu_job *client_gpu_job_new(struct spw_gpu *gpu, enum gpu_direction direction, spw_space *space, size_t n,
                                       size_t n_parts, size_t n_callers)
{
    size_t n_ranges = n_parts > 0 ? n : 0;
    struct spw_gpu_job *job =
        calloc(1, sizeof(*job) + n * (sizeof(*job->keys) + sizeof(*job->ids) + sizeof(*job->statuses)) +
                      n_ranges * (2 * sizeof(uint64_t) + sizeof(*job->parts_end)) + n_parts * sizeof(*job->parts));

    if (!job)
        return NULL;
    list_init(&job->link);
    list_init(&job->all);
    list_init(&job->again);
    job->gpu = gpu;
    job->direction = direction;
    job->space = space;
    job->n = n;
    job->n_callers = n_callers;
    job->offsets = (uint64_t *)(job + 1); /* what must be aligned most comes first */
    job->sizes = job->offsets + n_ranges;
    job->parts = (struct gpu_part *)(job->sizes + n_ranges);
    job->keys = (struct spw_key *)(job->parts + n_parts);
    job->parts_end = (uint32_t *)(job->keys + n);
    job->ids = job->parts_end + n_ranges;
    job->statuses = (int32_t *)(job->ids + n);
    return job;
}

/* Refuses a stream that is being captured: what we would put into it has no place in a graph, and would end the capture. */
static int stream_check(const char *name, const struct cuda_driver *cuda, struct CUstream_st *stream)
{
    int capturing = NV_CAPTURE_STATUS_NONE;
    int r = cuda->StreamIsCapturing(stream, &capturing);

    if (r == NV_SUCCESS && capturing != NV_CAPTURE_STATUS_NONE)
        return client_error(-EPERM, 0, "%s: the stream is being captured: a transfer cannot be part of a graph", name);
    return r == NV_SUCCESS ? 0 : client_gpu_error(r, name);
}

/* Marks where the caller's stream is. */
static int job_mark(const char *name, struct spw_gpu_job *job, struct CUstream_st *stream)
{
    const struct cuda_driver *cuda = job->gpu->cuda;
    int r = stream_check(name, cuda, stream);

    if (r < 0)
        return r;
    r = cuda->EventCreate(&job->begin, NV_EVENT_DISABLE_TIMING);
    if (r == NV_SUCCESS)
        r = cuda->EventRecord(job->begin, stream);
    return r == NV_SUCCESS ? 0 : client_gpu_error(r, name);
}

void client_gpu_job_destroy(struct spw_gpu_job *job)
{
    list_unlink(&job->all);
    free(job);
}

void client_gpu_job_free_locked(struct spw_gpu_job *job)
{
    if (!job->done || job->freed)
        return;
    if (job->begin)
        (void)job->gpu->cuda->EventDestroy(job->begin);
    job->begin = NULL;
    list_unlink(&job->all);
    job->freed = true;
    if (job->n_orphans == 0)
        client_gpu_job_destroy(job);
}

/* With the lock and the context. */
static int job_start(const char *name, struct spw_gpu_job *job, struct CUstream_st *stream)
{
    struct spw_gpu *gpu = job->gpu;
    struct gpu_lane *lane;
    int r = job_mark(name, job, stream);

    if (r == 0 && job->memory && job->memory->lane->over < 0)
        r = client_error(-EPIPE, 0, "%s: this memory's lane to the daemon has ended: it must be allocated anew", name);
    else if (r == 0 && !job->memory && !gpu->awaits_lane)
        r = client_gpu_lane(gpu, &lane);
    if (r < 0) {
        if (job->begin)
            (void)gpu->cuda->EventDestroy(job->begin);
        return r;
    }
    if (job->layout)
        job->layout->n_jobs++;
    if (job->memory)
        job->memory->n_jobs++;
    list_push_tail(&gpu->jobs, &job->link);
    list_push_tail(&gpu->all_jobs, &job->all);
    (void)client_gpu_pump(gpu);
    return 0;
}

int client_gpu_job_start(const char *name, struct spw_gpu_job *job, struct CUstream_st *stream, uint32_t timeout_ms,
                         spw_gpu_job **ret_job)
{
    struct spw_gpu *gpu = job->gpu;

    job->deadline_ns = client_now_ns() + UINT64_C(1000000) * MIN(timeout_ms, (uint32_t)REQUEST_TIMEOUT_MS_MAX);
    int r = client_gpu_enter(name, gpu);
    if (r == 0) {
        r = job_start(name, job, stream);
        client_gpu_leave(gpu);
    }
    if (r < 0) {
        free(job);
        return r;
    }
    client_gpu_wake(gpu); /* without the lock, which is what it needs first */
    *ret_job = job;
    return 0;
}

static int start(const char *name, enum gpu_direction direction, spw_gpu_layout *layout, const struct spw_key *keys,
                 const uint32_t *block_ids, size_t n, struct CUstream_st *stream, unsigned flags, unsigned allowed,
                 uint32_t timeout_ms, int32_t *ret_status, spw_gpu_job **ret_job)
{
    if (!layout || !ret_job)
        return client_error(-EINVAL, 0, "%s: an argument is NULL", name);
    int r = job_check(name, layout, keys, block_ids, n, flags, allowed);
    if (r < 0)
        return r;
    struct spw_gpu_job *job = client_gpu_job_new(layout->gpu, direction, layout->space, n, 0, n);
    if (!job)
        return client_error(-ENOMEM, 0, "%s: out of memory", name);
    memcpy(job->keys, keys, n * sizeof(*keys));
    memcpy(job->ids, block_ids, n * sizeof(*block_ids));
    job->layout = layout;
    job->item_bytes = layout->item_bytes;
    job->total_bytes = job->left_bytes = (uint64_t)n * layout->item_bytes;
    job->flags = flags;
    job->ret_status = ret_status;
    return client_gpu_job_start(name, job, stream, timeout_ms, ret_job);
}

int spw_spill(spw_gpu_layout *layout, const struct spw_key *keys, const uint32_t *block_ids, size_t n,
              struct CUstream_st *stream, unsigned flags, uint32_t timeout_ms, int32_t *ret_status,
              spw_gpu_job **ret_job)
{
    return start("spw_spill", GPU_SPILL, layout, keys, block_ids, n, stream, flags, SPW_CHAIN, timeout_ms, ret_status,
                 ret_job);
}

int spw_fetch(spw_gpu_layout *layout, const struct spw_key *keys, const uint32_t *block_ids, size_t n,
              struct CUstream_st *stream, unsigned flags, uint32_t timeout_ms, int32_t *ret_status,
              spw_gpu_job **ret_job)
{
    return start("spw_fetch", GPU_FETCH, layout, keys, block_ids, n, stream, flags, SPW_CHAIN | SPW_NO_WAIT, timeout_ms,
                 ret_status, ret_job);
}

/* --- Waiting --------------------------------------------------------------------------------------------------------- */

enum job_point { POINT_STREAMED, POINT_SOURCE_FREE, POINT_DONE };

static bool job_is_at(const struct spw_gpu_job *job, enum job_point point)
{
    bool all_begun = job->next == job->n || job->error < 0 || job->cancel;

    if (job->done)
        return true;
    if (point == POINT_STREAMED)
        return all_begun && job->n_waiting == 0 && !job->relaid;
    return point == POINT_SOURCE_FREE && job->direction == GPU_SPILL && all_begun && job->n_sources == 0;
}

static void set_spinning(struct spw_gpu *gpu, bool *spins, bool wanted)
{
    if (*spins != wanted)
        store_relaxed(&gpu->n_spinning, wanted ? gpu->n_spinning + 1 : gpu->n_spinning - 1);
    *spins = wanted;
}

/* With the lock, and the context. While we spin, the thread leaves everything to us. For an end it is left to work alone after
 * that; of what comes before nobody is told, so one has to look. */
static bool job_wait_locked(struct spw_gpu_job *job, enum job_point point, uint64_t timeout_ns)
{
    struct spw_gpu *gpu = job->gpu;
    uint64_t start_ns = client_now_ns(), waited_ns = 0;
    bool spins = false;

    for (;;) {
        (void)client_gpu_pump(gpu);
        if (job_is_at(job, point) || (waited_ns = client_now_ns() - start_ns) >= timeout_ns)
            break;
        set_spinning(gpu, &spins, waited_ns < GPU_SPIN_NS);
        if (!spins && point == POINT_DONE) {
            client_cond_wait(&gpu->changed, &gpu->lock, timeout_ns - waited_ns);
            continue;
        }
        pthread_mutex_unlock(&gpu->lock);
        if (spins)
            cpu_relax();
        else
            nanosleep(&(struct timespec){.tv_nsec = GPU_NAP_NS}, NULL);
        pthread_mutex_lock(&gpu->lock);
    }
    set_spinning(gpu, &spins, false);
    bool is_there = job_is_at(job, point);

    job->observed |= is_there;
    return is_there;
}

static uint64_t timeout_ns_of(uint32_t timeout_ms)
{
    return timeout_ms == SPW_FOREVER ? UINT64_MAX : timeout_ms * UINT64_C(1000000);
}

static int job_result(const char *name, const struct spw_gpu_job *job)
{
    return job->done && job->error < 0 ? client_error(job->error, 0, "%s: %s", name, strerrordesc_np(-job->error)) : 0;
}

int spw_gpu_job_wait(spw_gpu_job *job, enum spw_gpu_end end, uint32_t timeout_ms)
{
    if (!job || (end != SPW_GPU_SOURCE_FREE && end != SPW_GPU_DONE))
        return client_error(-EINVAL, 0, "spw_gpu_job_wait: the job is NULL, or no such end");
    int r = client_gpu_enter("spw_gpu_job_wait", job->gpu);
    if (r < 0)
        return r;
    bool is_there =
        job_wait_locked(job, end == SPW_GPU_DONE ? POINT_DONE : POINT_SOURCE_FREE, timeout_ns_of(timeout_ms));
    r = is_there ? job_result("spw_gpu_job_wait", job)
                 : client_error(-ETIMEDOUT, 0, "spw_gpu_job_wait: not in %u ms", timeout_ms);
    client_gpu_leave(job->gpu);
    return r;
}

int spw_gpu_job_status(spw_gpu_job *job, enum spw_gpu_end end)
{
    if (!job || (end != SPW_GPU_SOURCE_FREE && end != SPW_GPU_DONE))
        return client_error(-EINVAL, 0, "spw_gpu_job_status: the job is NULL, or no such end");
    int r = client_gpu_enter("spw_gpu_job_status", job->gpu);
    if (r < 0)
        return r;
    bool is_there = job_wait_locked(job, end == SPW_GPU_DONE ? POINT_DONE : POINT_SOURCE_FREE, 0);
    r = is_there ? job_result("spw_gpu_job_status", job) : -EINPROGRESS;
    client_gpu_leave(job->gpu);
    return r;
}

int spw_gpu_job_join(spw_gpu_job *job, struct CUstream_st *stream, uint32_t timeout_ms)
{
    if (!job)
        return client_error(-EINVAL, 0, "spw_gpu_job_join: the job is NULL");
    struct spw_gpu *gpu = job->gpu;
    int r = client_gpu_enter("spw_gpu_job_join", gpu);
    if (r < 0)
        return r;
    r = stream_check("spw_gpu_job_join", gpu->cuda, stream);
    if (r < 0) {
        client_gpu_leave(gpu);
        return r;
    }
    if (!job_wait_locked(job, POINT_STREAMED, timeout_ns_of(timeout_ms))) {
        r = timeout_ms == 0 ? client_error(-EAGAIN, 0, "spw_gpu_job_join: not all of it is on its way yet")
                            : client_error(-ETIMEDOUT, 0, "spw_gpu_job_join: not in %u ms", timeout_ms);
    } else if (!job->done && job->last) {
        r = gpu->cuda->StreamWaitEvent(stream, job->last, 0);
        r = r == NV_SUCCESS ? 0 : client_gpu_error(r, "spw_gpu_job_join");
    } else {
        r = job_result("spw_gpu_job_join", job);
    }
    client_gpu_leave(gpu);
    return r;
}

uint64_t spw_gpu_job_value(const spw_gpu_job *job)
{
    return job && load_acquire(&job->done) ? job->value : 0;
}

uint64_t spw_gpu_job_progress(spw_gpu_job *job, uint64_t *ret_total_bytes)
{
    if (!job || client_gpu_enter("spw_gpu_job_progress", job->gpu) < 0)
        return 0;
    uint64_t done_bytes = job->done_bytes;

    if (ret_total_bytes)
        *ret_total_bytes = job->total_bytes;
    client_gpu_leave(job->gpu);
    return done_bytes;
}

int spw_gpu_job_cancel(spw_gpu_job *job)
{
    if (!job)
        return client_error(-EINVAL, 0, "spw_gpu_job_cancel: the job is NULL");
    int r = client_gpu_enter("spw_gpu_job_cancel", job->gpu);
    if (r < 0)
        return r;
    job->cancel = true;
    client_gpu_wake(job->gpu);
    client_gpu_leave(job->gpu);
    return 0;
}

void spw_gpu_job_free(spw_gpu_job *job)
{
    if (!job)
        return;
    spw_gpu *gpu = job->gpu;

    if (client_gpu_enter("spw_gpu_job_free", gpu) < 0)
        return;
    client_gpu_job_free_locked(job);
    client_gpu_leave(gpu);
}
