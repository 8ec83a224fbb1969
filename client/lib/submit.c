/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The spw_submit_… functions: the same arguments as the blocking calls', built by the same builders, started on a
 * queue's ring instead of the thread's. Puts and large gets are handed to a copy thread. Any thread.
 */
#include <string.h>

#include "client/lib/client.h"

/* Takes a free job. The queue's lock is held. */
static int job_take_locked(const char *name, spw_queue *queue, void *user, spw_job **ret_job)
{
    struct list *link = list_pop(&queue->free);

    if (!link)
        return client_error(-EAGAIN, 0,
                            "%s: the queue's %u jobs are all in use: take and free ended ones, or make it "
                            "larger",
                            name, queue->n_jobs);
    spw_job *job = list_entry(link, struct spw_job, link);
    struct spw_view *views = job->views;
    *job = (struct spw_job){.queue = queue, .user = user, .state = CLIENT_JOB_RUNS, .views = views};
    list_init(&job->link);
    queue->n_running++;
    *ret_job = job;
    return 0;
}

/* It never began. */
static void job_untake_locked(spw_job *job)
{
    job->state = CLIENT_JOB_FREE;
    job->queue->n_running--;
    list_push_tail(&job->queue->free, &job->link);
}

static int queue_check(const char *name, const spw_queue *queue, const spw_space *space)
{
    if (!queue || !space)
        return client_error(-EINVAL, 0, "%s: the queue or the space is NULL", name);
    if (space->session != queue->session)
        return client_error(-EINVAL, 0, "%s: the space is of another session than the queue", name);
    if (space->engine != queue->ring->engine)
        return client_error(-EXDEV, 0, "%s: the space is served by engine %u, the queue by engine %u", name,
                            space->engine, queue->ring->engine);
    return client_session_check(queue->session);
}

int client_queue_submit(const char *name, spw_queue *queue, int r, const struct client_call *call, void *user,
                        spw_job **ret_job)
{
    spw_job *job;

    if (r == 0)
        r = queue_check(name, queue, call->space);
    if (r == 0)
        r = client_call_check(name, call);
    if (r < 0)
        return r;
    pthread_mutex_lock(&queue->lock);
    r = job_take_locked(name, queue, user, &job);
    if (r == 0) {
        job->call = *call;
        job->call.on_end = client_job_call_ended;
        r = client_ring_start(queue->ring, &job->call);
        if (r < 0)
            job_untake_locked(job);
    }
    if (r == 0 && ret_job)
        *ret_job = job;
    pthread_mutex_unlock(&queue->lock);
    return r;
}

int spw_submit_lookup(spw_queue *q, spw_space *space, const struct spw_key *keys, size_t n, unsigned flags,
                      struct spw_hit *hits, void *user, spw_job **ret_job)
{
    struct client_call call;
    int r = client_build_lookup("spw_submit_lookup", &call, space, keys, n, flags, hits);

    return client_queue_submit("spw_submit_lookup", q, r, &call, user, ret_job);
}

int spw_submit_reserve(spw_queue *q, spw_space *space, const struct spw_key *keys, const uint64_t *sizes, size_t n,
                       unsigned flags, uint32_t timeout_ms, struct spw_view *views, void *user, spw_job **ret_job)
{
    struct client_call call;
    int r = client_build_reserve("spw_submit_reserve", &call, space, keys, sizes, n, flags, timeout_ms, views);

    return client_queue_submit("spw_submit_reserve", q, r, &call, user, ret_job);
}

int spw_submit_commit(spw_queue *q, spw_space *space, struct spw_view *views, size_t n, unsigned flags, void *user,
                      spw_job **ret_job)
{
    struct client_call call;
    int r = client_build_handles("spw_submit_commit", &call, SPW_OP_COMMIT, space, views, n, flags, SPW_CHAIN);

    return client_queue_submit("spw_submit_commit", q, r, &call, user, ret_job);
}

int spw_submit_acquire(spw_queue *q, spw_space *space, const struct spw_key *keys, size_t n, unsigned flags,
                       uint32_t timeout_ms, struct spw_view *views, void *user, spw_job **ret_job)
{
    struct client_call call;
    int r = client_build_acquire("spw_submit_acquire", &call, space, keys, n, flags, timeout_ms, views);

    return client_queue_submit("spw_submit_acquire", q, r, &call, user, ret_job);
}

int spw_submit_release(spw_queue *q, spw_space *space, struct spw_view *views, size_t n, unsigned flags, void *user,
                       spw_job **ret_job)
{
    struct client_call call;
    int r = client_build_handles("spw_submit_release", &call, SPW_OP_RELEASE, space, views, n, flags,
                                 SPW_DIRTY | SPW_DISCARD);

    return client_queue_submit("spw_submit_release", q, r, &call, user, ret_job);
}

int spw_submit_prefetch(spw_queue *q, spw_space *space, const struct spw_key *keys, size_t n, unsigned flags,
                        uint32_t deadline_ms, int32_t *status, void *user, spw_job **ret_job)
{
    struct client_call call;
    int r = client_build_keys("spw_submit_prefetch", &call, SPW_OP_PREFETCH, space, keys, n, flags, SPW_CHAIN, status);

    call.arg[0] = deadline_ms;
    return client_queue_submit("spw_submit_prefetch", q, r, &call, user, ret_job);
}

int spw_submit_sync(spw_queue *q, spw_space *space, const struct spw_key *keys, size_t n, uint32_t timeout_ms,
                    void *user, spw_job **ret_job)
{
    struct client_call call;
    int r = client_build_keys("spw_submit_sync", &call, SPW_OP_SYNC, space, keys, n, 0, 0, NULL);

    call.timeout_ms = timeout_ms;
    return client_queue_submit("spw_submit_sync", q, r, &call, user, ret_job);
}

/* Begins the job's transfer. The queue's lock is held. */
static int transfer_start_locked(const char *name, spw_job *job)
{
    if (client_small_get_is(&job->transfer, &job->room_bytes)) {
        job->kind = CLIENT_JOB_SMALL_GET;
        return client_small_get_start(job);
    }
    job->kind = CLIENT_JOB_TRANSFER;
    job->task.run = client_job_transfer_run;
    int r = client_copy_post(job->queue->session->copy, &job->task);
    return r < 0 ? client_error(r, 0, "%s: cannot start a copy thread: %s", name, strerrordesc_np(-r)) : 0;
}

static int submit_transfer(const char *name, spw_queue *queue, const struct client_transfer *transfer, void *user,
                           spw_job **ret_job)
{
    spw_job *job;
    int r = queue_check(name, queue, transfer->space);

    if (r == 0)
        r = client_transfer_check(name, transfer);
    if (r < 0)
        return r;
    pthread_mutex_lock(&queue->lock);
    r = job_take_locked(name, queue, user, &job);
    if (r == 0) {
        job->transfer = *transfer;
        r = transfer_start_locked(name, job);
        if (r < 0)
            job_untake_locked(job);
    }
    if (r == 0 && ret_job)
        *ret_job = job;
    pthread_mutex_unlock(&queue->lock);
    return r;
}

int spw_submit_put(spw_queue *q, spw_space *space, const struct spw_key *keys, const struct spw_iovec *from, size_t n,
                   unsigned flags, uint32_t timeout_ms, int32_t *status, void *user, spw_job **ret_job)
{
    struct client_transfer transfer = {.kind = CLIENT_PUT,
                                       .space = space,
                                       .keys = keys,
                                       .n = n,
                                       .flags = flags,
                                       .memory = (struct spw_iovec *)(uintptr_t)from,
                                       .timeout_ms = timeout_ms,
                                       .statuses = status};

    return submit_transfer("spw_submit_put", q, &transfer, user, ret_job);
}

int spw_submit_get(spw_queue *q, spw_space *space, const struct spw_key *keys, struct spw_iovec *to, size_t n,
                   unsigned flags, uint32_t timeout_ms, int32_t *status, void *user, spw_job **ret_job)
{
    struct client_transfer transfer = {.kind = CLIENT_GET,
                                       .space = space,
                                       .keys = keys,
                                       .memory = to,
                                       .n = n,
                                       .flags = flags,
                                       .timeout_ms = timeout_ms,
                                       .statuses = status};

    return submit_transfer("spw_submit_get", q, &transfer, user, ret_job);
}
