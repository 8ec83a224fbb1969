/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One thread and a queue. One is enough: a chunk is touched by several threads anyway (memory_populate.c), and two
 * chunks at once would only share the same memory bandwidth.
 *
 * A daemon that is started when another one has just been killed finds its memory taken, and a moment later free. So a
 * chunk that the machine has the memory for is waited for, but not every one on a machine that is truly short: after a
 * wait in vain the next ones are refused at once.
 */
#include "io/grower.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#include "include/base/kill_point.h"
#include "io/sandbox.h"

struct grower {
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct list jobs;
    bool stopping;          /* atomic: progress() reads it without the lock */
    uint64_t wait_after_ns; /* the thread's: no wait before */
    pthread_t thread;
};

/* The job's own progress(), and an end when the process stops. */
struct grower_watch {
    struct grower *grower;
    const struct memory_chunk_config *config;
};

static bool watch_progress(void *ctx, uint64_t done_bytes, uint64_t total_bytes)
{
    const struct grower_watch *watch = ctx;

    if (load_relaxed(&watch->grower->stopping))
        return false;
    return !watch->config->progress || watch->config->progress(watch->config->progress_ctx, done_bytes, total_bytes);
}

static void do_discard(struct memory_chunk *chunk)
{
    (void)memory_chunk_discard(chunk); /* if it cannot be: with the last mapping */
    memory_chunk_unref(chunk);
}

static uint64_t clock_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void discard_job(struct grower_job *job)
{
    do_discard(job->chunk);
    kill_point("grower.discarded");
    free(job);
}

/* What we give back ourselves must not stand behind who waits for memory. */
static void discard_queued(struct grower *g)
{
    struct list discards, *l;

    list_init(&discards);
    pthread_mutex_lock(&g->lock);
    list_for_each_safe (at, &g->jobs) {
        if (!list_entry(at, struct grower_job, link)->is_discard)
            continue;
        list_unlink(at);
        list_push_tail(&discards, at);
    }
    pthread_mutex_unlock(&g->lock);
    while ((l = list_pop(&discards)))
        discard_job(list_entry(l, struct grower_job, link));
}

static void wait_for_memory(struct grower *g, struct grower_job *job)
{
    uint64_t now_ns = clock_now_ns(), end_ns = now_ns + MEMORY_WAIT_MS * UINT64_C(1000000);

    if (now_ns < g->wait_after_ns || !memory_chunk_is_early(&job->config))
        return;
    if (job->wait_msg.run)
        engine_queue_post(job->home, &job->wait_msg);
    while (memory_chunk_is_early(&job->config)) {
        if (load_relaxed(&g->stopping))
            return;
        discard_queued(g);
        if (clock_now_ns() >= end_ns) {
            g->wait_after_ns = end_ns + MEMORY_WAIT_AGAIN_MS * UINT64_C(1000000);
            return;
        }
        nanosleep(&(struct timespec){.tv_nsec = MEMORY_LOOK_MS * 1000000L}, NULL);
    }
}

static void do_job(struct grower *g, struct grower_job *job)
{
    if (job->is_discard) {
        discard_job(job);
        return;
    }
    wait_for_memory(g, job);
    struct grower_watch watch = {.grower = g, .config = &job->config};
    struct memory_chunk_config config = job->config;

    config.progress = watch_progress;
    config.progress_ctx = &watch;
    job->chunk = NULL;
    job->result = load_relaxed(&g->stopping) ? -ECANCELED : memory_chunk_create(&config, &job->chunk);
    kill_point("grower.chunk_made");
    engine_queue_post(job->home, &job->msg);
}

static void *grower_main(void *arg)
{
    struct grower *g = arg;
    struct list *l;

    (void)sandbox_enter(SANDBOX_GROWER); /* sandbox_stat() tells of a failure */
    pthread_mutex_lock(&g->lock);
    for (;;) {
        while (!(l = list_pop(&g->jobs)) && !g->stopping)
            pthread_cond_wait(&g->more, &g->lock);
        if (!l)
            break;
        pthread_mutex_unlock(&g->lock);
        do_job(g, list_entry(l, struct grower_job, link));
        pthread_mutex_lock(&g->lock);
    }
    pthread_mutex_unlock(&g->lock);
    return NULL;
}

int grower_new(struct grower **ret_grower)
{
    sigset_t all, old;
    struct grower *g = calloc(1, sizeof(*g));

    if (!g)
        return -ENOMEM;
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->more, NULL);
    list_init(&g->jobs);
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = pthread_create(&g->thread, NULL, grower_main, g);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r != 0) {
        pthread_cond_destroy(&g->more);
        pthread_mutex_destroy(&g->lock);
        free(g);
        return -r;
    }
    *ret_grower = g;
    return 0;
}

void grower_free(struct grower *g)
{
    if (!g)
        return;
    pthread_mutex_lock(&g->lock);
    store_relaxed(&g->stopping, true);
    pthread_cond_signal(&g->more);
    pthread_mutex_unlock(&g->lock);
    pthread_join(g->thread, NULL);
    pthread_cond_destroy(&g->more);
    pthread_mutex_destroy(&g->lock);
    free(g);
}

void grower_submit(struct grower *g, struct grower_job *job)
{
    pthread_mutex_lock(&g->lock);
    list_push_tail(&g->jobs, &job->link);
    pthread_cond_signal(&g->more);
    pthread_mutex_unlock(&g->lock);
}

void grower_discard(struct grower *g, struct memory_chunk *chunk)
{
    struct grower_job *job = calloc(1, sizeof(*job));

    if (!job) {
        do_discard(chunk);
        return;
    }
    job->is_discard = true;
    job->chunk = chunk;
    grower_submit(g, job);
}
