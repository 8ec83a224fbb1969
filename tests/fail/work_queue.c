/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs: started, polled for, taken, cancelled. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fail/workload.h"

#define FIRST 50
#define JOBS 4
#define ROUNDS_MAX 200

static char source[WORK_BLOCK_BYTES], target[WORK_BLOCK_BYTES];
/* Of jobs that end with the queue. */
static struct spw_key keys[JOBS];
static int32_t statuses[JOBS];

/* Whichever has ended; NULL when none comes in time. */
static spw_job *next_job(struct work *w, spw_queue *queue)
{
    spw_job *job = NULL;

    for (int i = 0; i < ROUNDS_MAX; i++) {
        int r = spw_queue_next(queue, &job);

        if (r == 0)
            return job;
        if (r != -EAGAIN) {
            (void)work_answer(w, "queue_next", r);
            return NULL;
        }
        r = spw_queue_arm(queue);
        if (r == 0) {
            struct pollfd wait = {.fd = spw_queue_fd(queue), .events = POLLIN};

            (void)poll(&wait, 1, 20);
        } else if (r < 0) {
            (void)work_answer(w, "queue_arm", r);
            return NULL;
        }
    }
    (void)work_answer(w, "a job does not end", -ETIMEDOUT);
    return NULL;
}

/* The queue's only one. When this returns it has ended: what it writes to is the caller's. */
static int run_job(struct work *w, spw_queue *queue, const char *step, int submitted, spw_job *job)
{
    if (work_answer(w, step, submitted) < 0)
        return submitted;
    const spw_job *next = next_job(w, queue);
    int r = next ? spw_job_status(next) : -ECANCELED;

    if (next && r == -EINPROGRESS)
        work_broken(w, "a job was handed out that had not ended", 0);
    if (!next) {
        (void)spw_job_cancel(job);
        (void)spw_job_wait(job, SPW_FOREVER);
    }
    spw_job_free(job);
    return next ? work_answer(w, step, r) : r;
}

static void put_get(struct work *w, spw_queue *queue, spw_space *space)
{
    struct spw_key key = work_key(w, FIRST);
    struct spw_iovec from = {source, sizeof(source)}, to = {target, sizeof(target)};
    struct spw_hit hit;
    int32_t status = 0;
    spw_job *job = NULL;

    work_fill(source, sizeof(source), work_seed(w, FIRST));
    int r = spw_submit_put(queue, space, &key, &from, 1, 0, work_timeout_ms(w), &status, NULL, &job);
    (void)run_job(w, queue, "submit_put", r, job);
    r = spw_submit_lookup(queue, space, &key, 1, 0, &hit, NULL, &job);
    (void)run_job(w, queue, "submit_lookup", r, job);
    memset(target, 0, sizeof(target));
    status = -ECANCELED;
    r = spw_submit_get(queue, space, &key, &to, 1, 0, work_timeout_ms(w), &status, NULL, &job);
    if (run_job(w, queue, "submit_get", r, job) == 0 && status == 0 &&
        !work_is(target, sizeof(target), work_seed(w, FIRST)))
        work_broken(w, "submit_get: wrong bytes", FIRST);
}

static void reserve_commit(struct work *w, spw_queue *queue, spw_space *space)
{
    struct spw_key key = work_key(w, FIRST + 1);
    struct spw_view view = {0};
    uint64_t size = WORK_BLOCK_BYTES;
    spw_job *job = NULL;
    int r = spw_submit_reserve(queue, space, &key, &size, 1, 0, work_timeout_ms(w), &view, NULL, &job);

    if (run_job(w, queue, "submit_reserve", r, job) < 0 || view.status < 0)
        return;
    work_fill(view.data, WORK_BLOCK_BYTES, work_seed(w, FIRST + 1));
    r = spw_submit_commit(queue, space, &view, 1, 0, NULL, &job);
    (void)run_job(w, queue, "submit_commit", r, job);
    view = (struct spw_view){0};
    r = spw_submit_acquire(queue, space, &key, 1, 0, work_timeout_ms(w), &view, NULL, &job);
    if (run_job(w, queue, "submit_acquire", r, job) < 0 || view.status < 0)
        return;
    if (!work_is(view.data, WORK_BLOCK_BYTES, work_seed(w, FIRST + 1)))
        work_broken(w, "submit_acquire: wrong bytes", FIRST + 1);
    r = spw_submit_release(queue, space, &view, 1, 0, NULL, &job);
    (void)run_job(w, queue, "submit_release", r, job);
}

/* Several at once; one is cancelled, one is waited for, the others are the queue's to end. */
static void many(struct work *w, spw_queue *queue, spw_space *space)
{
    spw_job *jobs[JOBS] = {NULL};

    for (uint32_t i = 0; i < JOBS; i++) {
        keys[i] = work_key(w, FIRST);
        int r = spw_submit_prefetch(queue, space, &keys[i], 1, 0, work_timeout_ms(w), &statuses[i], NULL, &jobs[i]);

        if (work_answer(w, "submit_prefetch", r) < 0)
            jobs[i] = NULL;
    }
    if (jobs[0])
        (void)spw_job_cancel(jobs[0]);
    for (uint32_t i = 0; i < 2; i++)
        if (jobs[i] && spw_job_wait(jobs[i], work_timeout_ms(w)) != -ETIMEDOUT)
            spw_job_free(jobs[i]);
}

void work_queue(struct work *w, spw_session *session, spw_space *space)
{
    spw_queue *queue = NULL;

    if (work_answer(w, "queue_new", spw_queue_new(session, space, 16, &queue)) < 0)
        return;
    put_get(w, queue, space);
    reserve_commit(w, queue, space);
    many(w, queue, space);
    spw_queue_free(queue);

    struct spw_key both[2] = {work_key(w, FIRST), work_key(w, FIRST + 1)};
    int32_t status[2];

    (void)work_answer(w, "delete", spw_delete(space, both, 2, status));
}
