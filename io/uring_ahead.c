/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the opening thread wants done beside it: reads of a log, and the first touch of records' memory, which is the
 * kernel's work of clearing it. Some threads, that begin with the first job and end with ahead_over(), and one lock.
 *
 * Whoever waits for a job that no thread has taken does it: so it is not waited for in vain where threads cannot be had.
 */
#include <signal.h>

#include "include/base/kill_point.h"
#include "io/uring_private.h"

enum { AHEAD_NONE, AHEAD_QUEUED, AHEAD_RUNNING, AHEAD_DONE };

void uring_ahead_init(struct uring *u)
{
    pthread_mutex_init(&u->ahead.lock, NULL);
    pthread_cond_init(&u->ahead.more, NULL);
    pthread_cond_init(&u->ahead.done, NULL);
    list_init(&u->ahead.jobs);
}

/* Under the lock, which is let go meanwhile. */
static void ahead_do(struct uring *u, struct io_ahead *job)
{
    int32_t result = 0;

    job->state = AHEAD_RUNNING;
    pthread_mutex_unlock(&u->ahead.lock);
    kill_point("ahead.job");
    if (job->op == IO_AHEAD_READ)
        result = uring_block_now(&u->backend, IO_BLK_READ, job->dev, job->off_bytes, job->mem, job->len_bytes);
    else
        uring_records_touch(&u->backend, job->mem, job->len_bytes);
    pthread_mutex_lock(&u->ahead.lock);
    job->result = result;
    job->state = AHEAD_DONE;
    pthread_cond_broadcast(&u->ahead.done);
}

static void *ahead_main(void *arg)
{
    struct uring *u = arg;
    struct list *l;

    (void)pthread_setname_np(pthread_self(), "ahead");
    pthread_mutex_lock(&u->ahead.lock);
    for (;;) {
        while (!(l = list_pop(&u->ahead.jobs)) && !u->ahead.is_stopping)
            pthread_cond_wait(&u->ahead.more, &u->ahead.lock);
        if (!l)
            break;
        ahead_do(u, list_entry(l, struct io_ahead, link));
    }
    pthread_mutex_unlock(&u->ahead.lock);
    return NULL;
}

/* As many as can be had. Signals are the main thread's. */
static void ahead_start(struct uring *u)
{
    sigset_t all, old;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (u->ahead.n_threads < AHEAD_THREADS &&
           pthread_create(&u->ahead.threads[u->ahead.n_threads], NULL, ahead_main, u) == 0)
        u->ahead.n_threads++;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

void uring_ahead_begin(struct io_backend *be, struct io_ahead *job)
{
    struct uring *u = uring_of(be);

    if (u->ahead.n_threads == 0)
        ahead_start(u);
    pthread_mutex_lock(&u->ahead.lock);
    job->state = AHEAD_QUEUED;
    list_push_tail(&u->ahead.jobs, &job->link);
    pthread_cond_signal(&u->ahead.more);
    pthread_mutex_unlock(&u->ahead.lock);
}

int uring_ahead_wait(struct io_backend *be, struct io_ahead *job)
{
    struct uring *u = uring_of(be);

    pthread_mutex_lock(&u->ahead.lock);
    if (job->state == AHEAD_QUEUED) {
        list_unlink(&job->link);
        ahead_do(u, job);
    }
    while (job->state != AHEAD_DONE)
        pthread_cond_wait(&u->ahead.done, &u->ahead.lock);
    pthread_mutex_unlock(&u->ahead.lock);
    return job->result;
}

void uring_ahead_over(struct io_backend *be)
{
    struct uring *u = uring_of(be);

    pthread_mutex_lock(&u->ahead.lock);
    u->ahead.is_stopping = true;
    pthread_cond_broadcast(&u->ahead.more);
    pthread_mutex_unlock(&u->ahead.lock);
    for (; u->ahead.n_threads > 0; u->ahead.n_threads--)
        pthread_join(u->ahead.threads[u->ahead.n_threads - 1], NULL);
    u->ahead.is_stopping = false;
}

void uring_ahead_deinit(struct uring *u)
{
    uring_ahead_over(&u->backend);
    pthread_mutex_destroy(&u->ahead.lock);
    pthread_cond_destroy(&u->ahead.more);
    pthread_cond_destroy(&u->ahead.done);
}
