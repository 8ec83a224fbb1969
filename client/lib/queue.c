/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Queues and jobs: asynchronous calls with a descriptor to poll.
 *
 *   job: FREE ── spw_submit_… ──▶ RUNS ── its end ──▶ ENDED ── spw_queue_next() ──▶ TAKEN ── spw_job_free() ──▶ FREE
 *
 * A queue owns a ring and all its jobs, made with it: submitting allocates nothing. queue.lock guards both. Whoever
 * comes by takes completions off the ring for everybody: the user's loop, a thread that waits for one job, a submitter.
 * So the descriptor that the user polls is an epoll of two: the ring's doorbell, for completions that the daemon rings
 * for, and an eventfd of our own (no other process has it), for what another thread of ours saw first, and for jobs that
 * run on copy threads.
 *
 * Small gets (small_get.c) are copied by whoever runs a turn, without the lock: spw_queue_next() until it has an ended job,
 * spw_job_wait() the job that it waits for. What a turn leaves in `due` is for the next caller: spw_queue_arm() says so.
 *
 * Threads that wait for a job: one of them sleeps on the ring, the others on `changed`; it tells them when it wakes.
 * cq_flags has SPW_RING_WAKE_DOORBELL while the user polls (armed), and SPW_RING_WAKE_FUTEX while there is a sleeper.
 */
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "client/lib/client.h"

#include "include/base/ring.h"

#define QUEUE_ENTRIES_DEFAULT 256

/* --- Jobs end --------------------------------------------------------------------------------------------------------- */

void client_queue_changed_locked(spw_queue *queue)
{
    if (queue->armed && !queue->signaled) {
        queue->signaled = true;
        (void)!eventfd_write(queue->event_fd, 1); /* there is hardly anything in it: cannot block */
    }
    pthread_cond_broadcast(&queue->changed);
}

void client_job_end_locked(struct spw_job *job, int status, unsigned detail, uint64_t value)
{
    spw_queue *queue = job->queue;

    job->status = status;
    job->detail = detail;
    job->value = value;
    job->state = CLIENT_JOB_ENDED;
    list_push_tail(&queue->ended, &job->link);
    queue->n_running--;
    client_queue_changed_locked(queue);
}

/* Of a call on the ring; the lock is held. */
void client_job_call_ended(struct client_call *call)
{
    struct spw_job *job = container_of(call, struct spw_job, call);
    uint64_t value = call->opcode == SPW_OP_LOOKUP ? call->prefix : call->value;

    client_job_end_locked(job, client_call_status(call), call->detail, value);
}

/* On a copy thread. */
void client_job_transfer_run(struct client_task *task)
{
    struct spw_job *job = container_of(task, struct spw_job, task);
    spw_queue *queue = job->queue;
    int r = client_transfer_run(job->transfer.kind == CLIENT_PUT ? "spw_submit_put" : "spw_submit_get", &job->transfer);

    pthread_mutex_lock(&queue->lock);
    client_job_end_locked(job, r, spw_error_limit(), job->transfer.value);
    pthread_mutex_unlock(&queue->lock);
}

/* --- Queues ----------------------------------------------------------------------------------------------------------- */

static int queue_poll_add(const spw_queue *queue, int fd)
{
    struct epoll_event event = {.events = EPOLLIN};

    return epoll_ctl(queue->poll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static spw_queue *queue_alloc(spw_session *session, uint32_t entries)
{
    spw_queue *queue = calloc(1, sizeof(*queue));

    if (!queue)
        return NULL;
    queue->session = session;
    queue->poll_fd = queue->event_fd = -1;
    pthread_mutex_init(&queue->lock, NULL);
    client_cond_init(&queue->changed);
    list_init(&queue->link);
    list_init(&queue->free);
    list_init(&queue->ended);
    list_init(&queue->waiting);
    list_init(&queue->due);
    list_init(&queue->giving);
    queue->n_jobs = entries;
    queue->jobs = calloc(entries, sizeof(*queue->jobs));
    queue->views = calloc(entries, CLIENT_SMALL_GET_VIEWS * sizeof(*queue->views));
    for (uint32_t i = 0; queue->jobs && queue->views && i < entries; i++) {
        queue->jobs[i].views = &queue->views[(size_t)i * CLIENT_SMALL_GET_VIEWS];
        list_push_tail(&queue->free, &queue->jobs[i].link);
    }
    return queue;
}

/* Not the ring. */
static void queue_dispose(spw_queue *queue)
{
    if (queue->poll_fd >= 0)
        close(queue->poll_fd);
    if (queue->event_fd >= 0)
        close(queue->event_fd);
    pthread_cond_destroy(&queue->changed);
    pthread_mutex_destroy(&queue->lock);
    free(queue->views);
    free(queue->jobs);
    free(queue);
}
DEFINE_CLEANUP(spw_queue *, queue_dispose)

int spw_queue_new(spw_session *session, spw_space *space, uint32_t entries, spw_queue **ret_queue)
{
    if (!session || !space || !ret_queue || space->session != session)
        return client_error(-EINVAL, 0, "spw_queue_new: an argument is NULL, or the space is of another session");
    entries = entries ? entries : QUEUE_ENTRIES_DEFAULT;
    if (entries > CLIENT_QUEUE_JOBS_MAX)
        return client_error(-EINVAL, 0, "spw_queue_new: at most %d entries", CLIENT_QUEUE_JOBS_MAX);
    int r = client_session_check(session);
    if (r < 0)
        return r;
    cleanup_(queue_disposep) spw_queue *queue = queue_alloc(session, entries);
    if (!queue || !queue->jobs || !queue->views)
        return client_error(-ENOMEM, 0, "spw_queue_new: out of memory");
    queue->poll_fd = epoll_create1(EPOLL_CLOEXEC);
    queue->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (queue->poll_fd < 0 || queue->event_fd < 0)
        return client_error(-errno, 0, "spw_queue_new: %s", strerrordesc_np(errno));
    r = client_ring_new(session, space->engine, session->ring_entries, &queue->ring);
    if (r < 0)
        return r;
    r = queue_poll_add(queue, queue->ring->doorbell);
    if (r == 0)
        r = queue_poll_add(queue, queue->event_fd);
    queue->ring->poll_fd = queue->poll_fd;
    if (r < 0) {
        client_ring_free(queue->ring);
        return client_error(r, 0, "spw_queue_new: %s", strerrordesc_np(-r));
    }
    pthread_mutex_lock(&session->lock);
    list_push_tail(&session->queues, &queue->link);
    pthread_mutex_unlock(&session->lock);
    *ret_queue = steal_ptr(queue);
    return 0;
}

void client_queue_destroy(spw_queue *queue)
{
    client_ring_free(queue->ring);
    queue_dispose(queue);
}

int spw_queue_fd(const spw_queue *queue)
{
    return queue ? queue->poll_fd : client_error(-EINVAL, 0, "spw_queue_fd: the queue is NULL");
}

/* --- Turns ------------------------------------------------------------------------------------------------------------ */

/* Takes what has completed. If the session is over, every call has then ended. */
static void queue_turn_locked(spw_queue *queue)
{
    (void)client_ring_turn(queue->ring);
    while (!list_is_empty(&queue->giving)) {
        struct spw_job *job = list_entry(queue->giving.next, struct spw_job, link);
        list_unlink(&job->link);
        if (!client_small_get_give_locked(job)) {
            list_push_head(&queue->giving, &job->link);
            break;
        }
    }
}

/* The user is awake: what rang is taken back, so that the next poll sees what is new. */
static void queue_disarm_locked(spw_queue *queue)
{
    uint8_t byte;
    eventfd_t value;
    ssize_t n;

    if (!queue->armed)
        return;
    queue->armed = false;
    store_relaxed(&queue->ring->shared->client.cq_flags, queue->sleeper ? SPW_RING_WAKE_FUTEX : 0);
    /* Where that fails it may be readable still, which each poll would see: so it is read the next time. Or it is empty, as
     * a rouse was read before its mark was set: so ends are signaled all the same. */
    if ((__atomic_exchange_n(&queue->is_roused, 0, __ATOMIC_ACQUIRE) != 0 || queue->signaled) &&
        eventfd_read(queue->event_fd, &value) < 0)
        store_relaxed(&queue->is_roused, 1);
    queue->signaled = false;
    /* One, since it rings once for a sleep; more would be heard again, for nothing, but not lost. */
    n = recv(queue->ring->doorbell, &byte, 1, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) /* the other end was closed */
        (void)client_session_hangup(queue->session, queue->ring->era);
}

static int queue_arm(spw_queue *queue, bool looks)
{
    pthread_mutex_lock(&queue->lock);
    /* A sleep costs both sides two system calls and a wake-up: not for an answer that the engine is about to write. */
    if (looks && list_is_empty(&queue->ended))
        (void)client_ring_look(queue->ring);
    queue_turn_locked(queue); /* the answers to leases given back are nothing to stay awake for */
    bool ready = !list_is_empty(&queue->ended) || !list_is_empty(&queue->due);
    if (!ready) {
        client_ring_rewake(queue->ring);
        queue->armed = true;
        uint32_t flags = SPW_RING_WAKE_DOORBELL | (queue->sleeper ? SPW_RING_WAKE_FUTEX : 0);
        ring_sleep_prepare(&queue->ring->shared->client.cq_flags,
                           ring_sleep_word(flags, &queue->ring->n_sleeps)); /* S1, S2 */
        ready = client_ring_has_completions(queue->ring);                   /* S3 */
    }
    int r = ready ? 1 : client_session_check(queue->session);
    if (r < 0 && queue->n_running > 0)
        r = 1; /* spw_queue_next() will tell how they ended */
    pthread_mutex_unlock(&queue->lock);
    return r;
}

int spw_queue_arm(spw_queue *queue)
{
    if (!queue)
        return client_error(-EINVAL, 0, "spw_queue_arm: the queue is NULL");
    if (!client_fork_is(queue->session->fork_mark))
        return client_session_check(queue->session);
    return queue_arm(queue, true);
}

int client_queue_arm(spw_queue *queue)
{
    return queue_arm(queue, false);
}

void client_queue_disarm(spw_queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    queue_disarm_locked(queue);
    pthread_mutex_unlock(&queue->lock);
}

int spw_queue_next(spw_queue *queue, spw_job **ret_job)
{
    if (!queue || !ret_job)
        return client_error(-EINVAL, 0, "spw_queue_next: an argument is NULL");
    if (!client_fork_is(queue->session->fork_mark))
        return client_session_check(queue->session);
    pthread_mutex_lock(&queue->lock);
    queue_disarm_locked(queue);
    if (list_is_empty(&queue->ended))
        queue_turn_locked(queue);
    while (list_is_empty(&queue->ended) && !list_is_empty(&queue->due))
        client_small_get_step_locked(list_entry(queue->due.next, struct spw_job, link));
    struct list *link = list_pop(&queue->ended);
    if (link) {
        *ret_job = list_entry(link, struct spw_job, link);
        (*ret_job)->state = CLIENT_JOB_TAKEN;
    }
    pthread_mutex_unlock(&queue->lock);
    return link ? 0 : -EAGAIN;
}

void client_queue_turn(spw_queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    queue_turn_locked(queue);
    while (!list_is_empty(&queue->ended))
        list_entry(list_pop(&queue->ended), struct spw_job, link)->state = CLIENT_JOB_TAKEN;
    pthread_mutex_unlock(&queue->lock);
}

/* --- Waiting and ending jobs ------------------------------------------------------------------------------------------ */

/* Lets the lock go until something may have changed, a second has passed, or `left_ms`. */
static void queue_wait_locked(spw_queue *queue, bool on_ring, uint64_t left_ms)
{
    uint64_t ms = MIN(left_ms, UINT64_C(1000));
    uint32_t *cq_flags = &queue->ring->shared->client.cq_flags;

    client_ring_rewake(queue->ring);
    if (on_ring && !queue->sleeper) {
        uint32_t head = queue->ring->cq_head;
        queue->sleeper = queue->ring->has_sleeper = true;
        uint32_t flags = SPW_RING_WAKE_FUTEX | (queue->armed ? SPW_RING_WAKE_DOORBELL : 0);
        ring_sleep_prepare(cq_flags, ring_sleep_word(flags, &queue->ring->n_sleeps)); /* S1, S2 */
        pthread_mutex_unlock(&queue->lock);
        client_ring_sleep(queue->ring, head, (uint32_t)ms); /* S3 */
        pthread_mutex_lock(&queue->lock);
        queue->sleeper = queue->ring->has_sleeper = false;
        store_relaxed(cq_flags, queue->armed ? SPW_RING_WAKE_DOORBELL : 0);
        pthread_cond_broadcast(&queue->changed); /* another one may have to sleep on the ring now */
        return;
    }
    client_cond_wait(&queue->changed, &queue->lock, ms * 1000000);
}

/* The job of queue.due, if there is one, that keeps this one from going on: itself, or any if it waits for others' leases. */
static spw_job *job_due_for(const spw_job *job)
{
    if (job->state != CLIENT_JOB_RUNS || job->kind != CLIENT_JOB_SMALL_GET)
        return NULL;
    if (client_small_get_is_due(job))
        return (spw_job *)(uintptr_t)job;
    return job->get == CLIENT_GET_WAITS ? list_first_entry(&job->queue->due, struct spw_job, link) : NULL;
}

/* Does it go on with a completion, or is it another thread's? */
static bool job_is_on_ring(const spw_job *job)
{
    return job->kind == CLIENT_JOB_CALL || (job->kind == CLIENT_JOB_SMALL_GET && job->get != CLIENT_GET_COPIED);
}

/* Waits until the job has ended, or the deadline (UINT64_MAX: none). Returns whether it has. */
static bool job_wait_locked(spw_job *job, uint64_t deadline_ms)
{
    spw_queue *queue = job->queue;
    spw_job *due;

    for (;;) {
        queue_turn_locked(queue);
        while ((due = job_due_for(job)))
            client_small_get_step_locked(due);
        if (job->state != CLIENT_JOB_RUNS)
            return true;
        uint64_t now = client_now_ms();
        if (now >= deadline_ms)
            return false;
        queue_wait_locked(queue, job_is_on_ring(job), deadline_ms - now);
    }
}

static void job_cancel_locked(spw_job *job)
{
    if (job->state != CLIENT_JOB_RUNS)
        return;
    if (job->kind == CLIENT_JOB_TRANSFER)
        store_relaxed(&job->transfer.cancel, 1);
    else if (job->kind == CLIENT_JOB_SMALL_GET)
        client_small_get_cancel_locked(job);
    else
        client_ring_cancel(job->queue->ring, &job->call);
}

void spw_queue_free(spw_queue *queue)
{
    if (!queue || !client_fork_is(queue->session->fork_mark))
        return;
    pthread_mutex_lock(&queue->lock);
    for (uint32_t i = 0; i < queue->n_jobs; i++)
        job_cancel_locked(&queue->jobs[i]);
    for (uint32_t i = 0; i < queue->n_jobs; i++)
        if (queue->jobs[i].state == CLIENT_JOB_RUNS)
            (void)job_wait_locked(&queue->jobs[i], UINT64_MAX);
    pthread_mutex_unlock(&queue->lock);
    pthread_mutex_lock(&queue->session->lock);
    list_unlink(&queue->link);
    pthread_mutex_unlock(&queue->session->lock);
    client_queue_destroy(queue);
}

/* --- Jobs ------------------------------------------------------------------------------------------------------------- */

/* The checks that every function of a job begins with. */
static int job_check(const char *name, const spw_job *job)
{
    if (!job)
        return client_error(-EINVAL, 0, "%s: the job is NULL", name);
    return client_fork_is(job->queue->session->fork_mark) ? 0 : client_session_check(job->queue->session);
}

int spw_job_wait(spw_job *job, uint32_t timeout_ms)
{
    int r = job_check("spw_job_wait", job);

    if (r < 0)
        return r;
    uint64_t deadline_ms = timeout_ms == SPW_FOREVER ? UINT64_MAX : client_now_ms() + timeout_ms;
    pthread_mutex_lock(&job->queue->lock);
    bool ended = job_wait_locked(job, deadline_ms);
    pthread_mutex_unlock(&job->queue->lock);
    return ended ? spw_job_status(job) : client_error(-ETIMEDOUT, 0, "spw_job_wait: not in %u ms", timeout_ms);
}

int spw_job_status(const spw_job *job)
{
    int r = job_check("spw_job_status", job);

    if (r < 0)
        return r;
    pthread_mutex_lock(&job->queue->lock);
    r = job->state == CLIENT_JOB_RUNS ? -EINPROGRESS : job->status;
    unsigned detail = job->detail;
    pthread_mutex_unlock(&job->queue->lock);
    if (r == -ENOTCONN || r == -EPROTO) {
        int over = client_session_check(job->queue->session); /* with its own words */
        if (over < 0)
            return over;
    }
    return r < 0 && r != -EINPROGRESS ? client_error(r, detail, "the job: %s", strerrordesc_np(-r)) : r;
}

uint64_t spw_job_value(const spw_job *job)
{
    if (job_check("spw_job_value", job) < 0)
        return 0;
    pthread_mutex_lock(&job->queue->lock);
    uint64_t value = job->state == CLIENT_JOB_RUNS ? 0 : job->value;
    pthread_mutex_unlock(&job->queue->lock);
    return value;
}

void *spw_job_user(const spw_job *job)
{
    return job ? job->user : NULL;
}

int spw_job_cancel(spw_job *job)
{
    int r = job_check("spw_job_cancel", job);

    if (r < 0)
        return r;
    pthread_mutex_lock(&job->queue->lock);
    job_cancel_locked(job);
    pthread_mutex_unlock(&job->queue->lock);
    return 0;
}

void spw_job_free(spw_job *job)
{
    if (!job || job_check("spw_job_free", job) < 0)
        return;
    spw_queue *queue = job->queue;
    pthread_mutex_lock(&queue->lock);
    if (job->state == CLIENT_JOB_ENDED || job->state == CLIENT_JOB_TAKEN) {
        list_unlink(&job->link);
        job->state = CLIENT_JOB_FREE;
        list_push_tail(&queue->free, &job->link);
    }
    pthread_mutex_unlock(&queue->lock);
}
