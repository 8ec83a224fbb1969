/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One queue under one lock, N threads. A job above WORK_PART_BYTES is handed out part by part (whole granules), so that
 * one large copy uses all threads; it stays at the head of the queue until its last part is taken, and whoever finishes
 * the last of its parts posts it home. Bytes are touched outside the lock only.
 *
 * What is copied and hashed is hashed as it was copied: each granule goes to a buffer of the worker, is hashed there,
 * and goes on to its destination; or at once to a destination that no client reaches, and is hashed there. A client that
 * changes the source meanwhile cannot make bytes and sum disagree.
 *
 * Idle workers look at n_parts_queued for up to spin_us, then sleep on the condition variable. A submitter signals as many
 * sleepers as there are parts; both happen under the lock, so no wake-up is lost.
 */
#include "io/workers.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "include/base/cleanup.h"
#include "include/base/kill_point.h"
#include "include/base/limits.h"
#include "io/checksum.h"
#include "io/copy.h"
#include "io/sandbox.h"

#define SPIN_NS_MIN 1000

static_assert(WORK_PART_BYTES % GRANULE_BYTES == 0, "parts are whole granules");

struct workers {
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct list jobs;        /* with parts not taken yet */
    uint32_t n_parts_queued; /* atomic for the spinners; written under the lock */
    uint32_t n_sleeping;
    bool stopping;
    uint32_t spin_us; /* atomic */
    uint32_t n_threads;
    pthread_t threads[WORKERS_MAX];
};

/* --- The work ---------------------------------------------------------------------------------------------------- */

static void copy_part(char *dst, const char *src, size_t len_bytes, bool stream)
{
    if (stream)
        copy_stream(dst, src, len_bytes);
    else
        memcpy(dst, src, len_bytes);
}

static void copy_hash_part(const struct workers_job *job, size_t off, size_t len_bytes, char *granule)
{
    bool stream = job->len_bytes >= STREAM_COPY_BYTES_MIN;

    for (size_t done = 0; done < len_bytes; done += GRANULE_BYTES) {
        size_t len = MIN(len_bytes - done, (size_t)GRANULE_BYTES), at = off + done;
        size_t index = at / GRANULE_BYTES;

        char *copy = job->dst_is_ours ? (char *)job->dst + at : granule;

        memcpy(copy, (const char *)job->src + at, len);
        job->sums[index] = checksum_granule(job->seed, job->first_granule + index, copy, len);
        if (copy == granule)
            copy_part((char *)job->dst + at, granule, len, stream);
    }
}

static void do_part(struct workers_job *job, uint32_t part, char *granule)
{
    size_t off = part * (size_t)WORK_PART_BYTES;
    size_t len_bytes = MIN(job->len_bytes - off, (size_t)WORK_PART_BYTES);
    const char *src = (const char *)job->src + off;

    kill_point("worker.part");
    switch (job->op) {
    case IO_WORK_HASH:
        checksum_granules(job->seed, job->first_granule + off / GRANULE_BYTES, src, len_bytes,
                          job->sums + off / GRANULE_BYTES);
        break;
    case IO_WORK_COPY:
        copy_part((char *)job->dst + off, src, len_bytes, job->len_bytes >= STREAM_COPY_BYTES_MIN);
        break;
    case IO_WORK_COPY_HASH:
        copy_hash_part(job, off, len_bytes, granule);
        break;
    }
}

static bool is_poisoned(const uint32_t *poisoned)
{
    return poisoned && load_acquire(poisoned);
}

static int32_t job_result(const struct workers_job *job)
{
    return is_poisoned(job->src_poisoned) || is_poisoned(job->dst_poisoned) ? -EFAULT : 0;
}

int32_t workers_do_here(struct workers_job *job, char *granule)
{
    assert(job->len_bytes <= WORK_PART_BYTES);
    do_part(job, 0, granule);
    return job_result(job);
}

/* The one who finishes the last part owns the job from then on; the release and acquire carry the others' stores. */
static void finish_part(struct workers_job *job)
{
    if (__atomic_sub_fetch(&job->parts_left_, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    kill_point("worker.over");
    job->result = job_result(job);
    engine_queue_post(job->home, &job->msg);
}

/* --- The queue --------------------------------------------------------------------------------------------------- */

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * UINT64_C(1000000000) + (uint64_t)ts.tv_nsec;
}

/*
 * Returns early once there is something to take. A spin that was for nothing halves the thread's next one, one that was
 * not doubles it: jobs that come seldom, as from a device, must not cost spin_us each on top.
 */
static void spin(const struct workers *w, uint32_t *spin_ns)
{
    uint32_t most_ns = load_relaxed(&w->spin_us) * 1000;

    *spin_ns = MIN(*spin_ns, most_ns);
    for (uint64_t until_ns = now_ns() + *spin_ns; now_ns() < until_ns;)
        for (int i = 0; i < 32; i++) {
            if (load_relaxed(&w->n_parts_queued) > 0) {
                *spin_ns = MIN(2 * *spin_ns, most_ns);
                return;
            }
            cpu_relax();
        }
    *spin_ns = MAX(*spin_ns / 2, MIN(most_ns, (uint32_t)SPIN_NS_MIN));
}

/* Under the lock. NULL if there is nothing. */
static struct workers_job *take_part(struct workers *w, uint32_t *ret_part)
{
    struct workers_job *job = list_first_entry(&w->jobs, struct workers_job, link);

    if (!job)
        return NULL;
    *ret_part = job->next_part_++;
    if (job->next_part_ == job->n_parts_)
        list_unlink(&job->link);
    store_relaxed(&w->n_parts_queued, w->n_parts_queued - 1);
    return job;
}

/* Blocks; NULL when the pool stops and the queue is empty. */
static struct workers_job *wait_for_part(struct workers *w, uint32_t *spin_ns, uint32_t *ret_part)
{
    struct workers_job *job;

    pthread_mutex_lock(&w->lock);
    job = take_part(w, ret_part);
    if (!job && !w->stopping && load_relaxed(&w->spin_us) > 0) {
        pthread_mutex_unlock(&w->lock);
        spin(w, spin_ns);
        pthread_mutex_lock(&w->lock);
    }
    while (!job && !(job = take_part(w, ret_part)) && !w->stopping) {
        w->n_sleeping++;
        pthread_cond_wait(&w->more, &w->lock);
        w->n_sleeping--;
    }
    pthread_mutex_unlock(&w->lock);
    return job;
}

static void *worker_main(void *arg)
{
    struct workers *w = arg;
    struct workers_job *job;
    uint32_t part, spin_ns = SPIN_NS_MIN;
    _Alignas(64) char granule[GRANULE_BYTES];

    (void)sandbox_enter(SANDBOX_WORKER); /* sandbox_stat() tells of a failure */
    while ((job = wait_for_part(w, &spin_ns, &part))) {
        do_part(job, part, granule);
        finish_part(job);
    }
    return NULL;
}

void workers_submit(struct workers *w, struct list *jobs)
{
    uint32_t n_parts = 0, n_wake;

    list_for_each (l, jobs) {
        struct workers_job *job = list_entry(l, struct workers_job, link);

        job->n_parts_ = (uint32_t)MAX(div_round_up(job->len_bytes, WORK_PART_BYTES), UINT64_C(1));
        job->parts_left_ = job->n_parts_;
        job->next_part_ = 0;
        n_parts += job->n_parts_;
    }
    if (n_parts == 0)
        return;
    pthread_mutex_lock(&w->lock);
    list_splice_tail(&w->jobs, jobs);
    store_relaxed(&w->n_parts_queued, w->n_parts_queued + n_parts);
    n_wake = MIN(n_parts, w->n_sleeping);
    if (n_wake > 1)
        pthread_cond_broadcast(&w->more);
    else if (n_wake == 1)
        pthread_cond_signal(&w->more);
    pthread_mutex_unlock(&w->lock);
}

/* --- Start and stop ---------------------------------------------------------------------------------------------- */

/* Signals are the main thread's, except SIGBUS, which is whose access it was. */
static int start_threads(struct workers *w, uint32_t n)
{
    sigset_t all, old;
    int r = 0;

    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (w->n_threads < n && r == 0) {
        r = pthread_create(&w->threads[w->n_threads], NULL, worker_main, w);
        w->n_threads += r == 0;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return -r;
}

int workers_new(const struct workers_config *config, struct workers **ret_workers)
{
    if (config->threads == 0 || config->threads > WORKERS_MAX)
        return -EINVAL;
    struct workers *w = calloc(1, sizeof(*w));
    if (!w)
        return -ENOMEM;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->more, NULL);
    list_init(&w->jobs);
    w->spin_us = config->spin_us;
    int r = start_threads(w, config->threads);
    if (r < 0) {
        workers_free(w);
        return r;
    }
    *ret_workers = w;
    return 0;
}

void workers_set_spin(struct workers *w, uint32_t spin_us)
{
    store_relaxed(&w->spin_us, spin_us);
}

void workers_free(struct workers *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    w->stopping = true;
    pthread_cond_broadcast(&w->more);
    pthread_mutex_unlock(&w->lock);
    for (uint32_t i = 0; i < w->n_threads; i++)
        pthread_join(w->threads[i], NULL);
    pthread_cond_destroy(&w->more);
    pthread_mutex_destroy(&w->lock);
    free(w);
}
