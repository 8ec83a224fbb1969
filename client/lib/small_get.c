/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small GET jobs: on the queue's own ring, copied by whoever runs its turn.
 *
 *   WAITS ─ others gave leases back ─▶ ASKED
 *   ASKED ─ ACQUIRE ends ─▶ ANSWERED ─ a turn ─▶ COPIED ─ copied, lock taken again ─▶ GIVEN ─ RELEASE posted ─▶ end
 *   GIVEN ─ an object has several pieces ─▶ SIZED ─ LOOKUP ends ─▶ ANSWERED_SIZE ─ a turn ─▶ the next one, or end
 *   GIVEN ─ others had leased too much ─▶ AGAIN ─ ACQUIRE ends, which waited for that ─▶ ANSWERED_AGAIN ─ a turn ─▶ COPIED
 *
 * To wake a copy thread, and to be woken by it, takes longer than to copy 64 KiB; and a copy thread blocks in a transfer,
 * so that no more of them are at the daemon than there are threads. Here all that were submitted are there together (up to
 * a bound: the daemon refuses leases beyond a part of the pool, and they are held until the caller comes), and a copy
 * costs no wake-up. The lock is not held during a copy: COPIED belongs to one thread, and several threads copy
 * several jobs at once. Jobs that a turn has to go on with are in queue.due; those whose leases found no room in the ring are in
 * queue.giving, and are tried again after each completion.
 *
 * Small PUTs do not go this way. RESERVE could be submitted at once, but the copy and COMMIT would need a turn: with a caller
 * that computes for long before it comes back nobody would see the block meanwhile, its room would be taken, and who
 * wants to write the same key would be told -EINPROGRESS. A fetch that comes late is late for its caller alone.
 */
#include "client/lib/client.h"

#include "include/base/cache.h"

#define WARM_BYTES 2048

bool client_small_get_is(const struct client_transfer *t, uint64_t *ret_bytes)
{
    uint64_t total_bytes = 0;

    if (t->kind != CLIENT_GET || t->n > MIN((uint32_t)CLIENT_SMALL_GET_VIEWS, t->space->session->list_max))
        return false;
    for (size_t i = 0; i < t->n; i++) {
        uint64_t size_bytes = client_transfer_element_bytes(t, i);
        if (size_bytes > t->space->piece_bytes)
            return false;
        total_bytes += MAX(size_bytes, (uint64_t)CLIENT_SMALL_GET_BYTES_MIN);
    }
    *ret_bytes = total_bytes;
    return total_bytes <= CLIENT_SMALL_GET_BYTES;
}

/* Of an ACQUIRE, or of a LOOKUP; the lock is held. */
static void small_get_answered(struct client_call *call)
{
    struct spw_job *job = container_of(call, struct spw_job, call);

    job->get = job->get == CLIENT_GET_ASKED   ? CLIENT_GET_ANSWERED
               : job->get == CLIENT_GET_AGAIN ? CLIENT_GET_ANSWERED_AGAIN
                                              : CLIENT_GET_ANSWERED_SIZE;
    list_push_tail(&job->queue->due, &job->link);
    client_queue_changed_locked(job->queue);
}

static bool has_room(const spw_queue *queue, const struct spw_job *job)
{
    return queue->small_bytes + job->room_bytes <= CLIENT_SMALL_GETS_BYTES;
}

/* So many elements from `first` on; as a whole, it waits for others' leases. */
static int acquire_locked(struct spw_job *job, size_t first, size_t n, bool is_whole)
{
    const struct client_transfer *t = &job->transfer;

    job->call = (struct client_call){
        .space = t->space,
        .keys = &t->keys[first],
        .n = n,
        .opcode = SPW_OP_ACQUIRE,
        .flags = (uint8_t)(t->flags | (is_whole ? SPW_ALL : 0)),
        .whole = is_whole,
        .timeout_ms = t->timeout_ms,
        .views = &job->views[first],
        .on_end = small_get_answered,
    };
    return client_ring_start(job->queue->ring, &job->call);
}

static int ask_locked(struct spw_job *job)
{
    job->get = CLIENT_GET_ASKED;
    int r = acquire_locked(job, 0, job->transfer.n, false);
    if (r == 0)
        job->queue->small_bytes += job->room_bytes;
    return r;
}

int client_small_get_start(struct spw_job *job)
{
    spw_queue *queue = job->queue;

    if (list_is_empty(&queue->waiting) && has_room(queue, job))
        return ask_locked(job);
    job->get = CLIENT_GET_WAITS;
    list_push_tail(&queue->waiting, &job->link);
    return 0;
}

/* It never asked for anything. */
static void fail_locked(struct spw_job *job, int error)
{
    struct client_transfer *t = &job->transfer;

    for (size_t i = 0; t->statuses && i < t->n; i++)
        t->statuses[i] = error;
    client_job_end_locked(job, error, 0, 0);
}

/* The job's leases are gone: who waited for that asks. */
static void leave_locked(struct spw_job *job)
{
    spw_queue *queue = job->queue;

    queue->small_bytes -= job->room_bytes;
    job->room_bytes = 0;
    while (!list_is_empty(&queue->waiting)) {
        struct spw_job *next = list_entry(queue->waiting.next, struct spw_job, link);
        if (!has_room(queue, next))
            break;
        list_unlink(&next->link);
        int r = ask_locked(next);
        if (r < 0)
            fail_locked(next, r);
    }
}

/* Copies an element, and notes its status and the object's size. */
static int element_copy(struct spw_iovec *memory, const struct spw_view *view)
{
    uint64_t room_bytes = memory->size_bytes;

    if (view->status < 0)
        return view->status;
    memory->size_bytes = view->size_bytes;
    if (view->size_bytes > room_bytes)
        return -EMSGSIZE;
    client_stream_copy(memory->data, view->data, view->size_bytes);
    return 0;
}

/* Those from `begin` to `end`. Without the lock. */
static void elements_copy(struct spw_job *job, size_t begin, size_t end)
{
    struct client_transfer *t = &job->transfer;

    for (size_t i = begin; i < end; i++) {
        if (i + 1 < end && job->views[i + 1].status == 0) /* the processor cannot guess where it goes on */
            cache_warm_to_read(job->views[i + 1].data, MIN(job->views[i + 1].size_bytes, (size_t)WARM_BYTES));
        int status = element_copy(&t->memory[i], &job->views[i]);
        if (t->statuses)
            t->statuses[i] = status;
        if (status == 0)
            job->value++;
    }
    client_stream_fence();
}

static int ask_for_size_locked(struct spw_job *job)
{
    job->get = CLIENT_GET_SIZED;
    job->hit = (struct spw_hit){0};
    job->call = (struct client_call){.space = job->transfer.space,
                                     .keys = &job->transfer.keys[job->at],
                                     .n = 1,
                                     .opcode = SPW_OP_LOOKUP,
                                     .hits = &job->hit,
                                     .on_end = small_get_answered};
    return client_ring_start(job->queue->ring, &job->call);
}

/* Few at a time have such a lease: it does not count. */
static int ask_again_locked(struct spw_job *job)
{
    job->get = CLIENT_GET_AGAIN;
    job->views[job->at] = (struct spw_view){0};
    return acquire_locked(job, job->at, 1, true);
}

/* Goes on with the next object that has several pieces, or that was refused for others' leases; or ends the job. */
static void next_locked(struct spw_job *job)
{
    const struct client_transfer *t = &job->transfer;

    for (; job->at < t->n; job->at++) {
        if (job->views[job->at].status == -EMSGSIZE && ask_for_size_locked(job) == 0)
            return;
        if (client_view_lacks(&job->views[job->at]) && client_transfer_may_wait(t) && ask_again_locked(job) == 0)
            return;
    }
    int over = client_session_check(job->queue->session);
    client_job_end_locked(job, over < 0 ? over : job->status, job->detail, job->value);
}

static void size_answered_locked(struct spw_job *job)
{
    int r = client_call_status(&job->call);

    if (r == 0)
        r = job->hit.status;
    if (r == 0 && job->hit.size_bytes == 0)
        r = client_session_end(job->queue->session, "an object of no bytes");
    if (r == 0)
        job->transfer.memory[job->at].size_bytes = job->hit.size_bytes;
    job->at++;
    next_locked(job);
}

bool client_small_get_give_locked(struct spw_job *job)
{
    spw_queue *queue = job->queue;
    struct spw_view *views = job->is_again ? &job->views[job->at] : job->views;
    size_t n = job->is_again ? 1 : job->transfer.n;

    if (!client_ring_post_release(queue->ring, job->transfer.space, views, n) &&
        load_relaxed(&queue->session->dead) == 0)
        return false;
    leave_locked(job);
    client_ring_flush(queue->ring);
    next_locked(job);
    return true;
}

/* Copies what was leased, without the lock, and gives it back. */
static void copy_locked(struct spw_job *job, size_t begin, size_t end)
{
    spw_queue *queue = job->queue;

    job->get = CLIENT_GET_COPIED;
    pthread_mutex_unlock(&queue->lock);
    elements_copy(job, begin, end);
    pthread_mutex_lock(&queue->lock);
    job->get = CLIENT_GET_GIVEN;
    if (client_small_get_give_locked(job))
        return;
    list_push_tail(&queue->giving, &job->link);
    client_queue_changed_locked(queue); /* who waits for it waited for this thread; now for the ring */
}

/* The first time, all of it. */
static void answered_locked(struct spw_job *job)
{
    job->status = client_call_status(&job->call);
    job->detail = job->call.detail;
    copy_locked(job, 0, job->transfer.n);
}

/* One element. If it waited in vain, or for nothing since the job was canceled, so would the others. */
static void answered_again_locked(struct spw_job *job)
{
    int r = client_call_status(&job->call);

    job->is_again = true;
    if (r == 0)
        r = job->views[job->at].status;
    else if (r == -ETIMEDOUT)
        r = -ENOSPC;
    for (size_t i = job->at; (r == -ENOSPC || r == -ECANCELED) && i < job->transfer.n; i++)
        job->views[i].detail = SPW_LIMIT_NONE;
    if (r < 0)
        job->views[job->at].status = r;
    copy_locked(job, job->at, job->at + 1);
}

void client_small_get_step_locked(struct spw_job *job)
{
    list_unlink(&job->link);
    if (job->get == CLIENT_GET_ANSWERED)
        answered_locked(job);
    else if (job->get == CLIENT_GET_ANSWERED_AGAIN)
        answered_again_locked(job);
    else
        size_answered_locked(job);
}

void client_small_get_cancel_locked(struct spw_job *job)
{
    if (job->get == CLIENT_GET_ASKED || job->get == CLIENT_GET_SIZED || job->get == CLIENT_GET_AGAIN) {
        client_ring_cancel(job->queue->ring, &job->call);
    } else if (job->get == CLIENT_GET_WAITS) {
        list_unlink(&job->link);
        fail_locked(job, -ECANCELED);
    }
}
