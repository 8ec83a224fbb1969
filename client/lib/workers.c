/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads that compute beside the caller. A call holds the workers, posts a run, takes part in it, closes it, and waits
 * for those that are still inside: so it ends even if no worker wakes in time, and a worker that wakes late touches nothing
 * of a run that is over.
 *
 *   idle ── run posted ──▶ open ── caller has nothing left ──▶ closed ── last worker leaves ──▶ idle
 *
 * How the work is divided is the run's matter: each thread takes pieces until there are none. Unlike copy threads (copy.c)
 * these are as many as the CPUs, start at once, and are no session's; what they do lasts for milliseconds, so that a spin
 * that adapts itself would gain nothing.
 *
 * workers.lock guards the run and the counts; hold_lock is the callers' turn, taken before it. Neither is held during the
 * work. A forked child touches neither: somebody may have held them.
 */
#include <sched.h>
#include <string.h>

#include "client/lib/train.h"

struct spw_workers {
    pthread_mutex_t hold_lock;
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    void (*run)(void *arg); /* NULL: none is open */
    void *arg;
    uint64_t n_runs;   /* posted so far */
    unsigned n_wanted; /* that may still enter */
    unsigned n_idle;
    uint32_t n_inside; /* atomic, as a hint for the caller that looks */
    uint32_t is_open;  /* atomic: a hint for workers that look */
    bool stop;
    uint32_t fork_mark;
    unsigned n_threads; /* without the caller */
    double sums[CLIENT_TRAIN_ROUND_BLOCKS];
    pthread_t threads[];
};

/* Looks for a moment whether a hint has changed: to be woken takes longer. Called with the lock, which it gives up
 * meanwhile. */
static void look(spw_workers *workers, const uint32_t *hint, bool until_zero)
{
    uint64_t until_ns = client_now_ns() + CLIENT_WORKERS_SPIN_NS;

    pthread_mutex_unlock(&workers->lock);
    while ((load_relaxed(hint) == 0) != until_zero && client_now_ns() < until_ns)
        cpu_relax();
    pthread_mutex_lock(&workers->lock);
}

/* Called with the lock, which it gives up meanwhile. */
static void worker_enter(spw_workers *workers)
{
    void (*run)(void *) = workers->run;
    void *arg = workers->arg;

    workers->n_wanted--;
    store_relaxed(&workers->n_inside, workers->n_inside + 1);
    pthread_mutex_unlock(&workers->lock);
    run(arg);
    pthread_mutex_lock(&workers->lock);
    store_relaxed(&workers->n_inside, workers->n_inside - 1);
    if (workers->n_inside == 0)
        pthread_cond_signal(&workers->done);
}

static void *worker_main(void *arg)
{
    spw_workers *workers = arg;
    uint64_t last_run = 0;
    bool has_looked = false;

    pthread_mutex_lock(&workers->lock);
    while (!workers->stop) {
        if (workers->run && workers->n_runs != last_run && workers->n_wanted > 0) {
            last_run = workers->n_runs;
            worker_enter(workers);
            has_looked = false;
        } else if (!has_looked) {
            look(workers, &workers->is_open, false);
            has_looked = true;
        } else {
            workers->n_idle++;
            pthread_cond_wait(&workers->work, &workers->lock);
            workers->n_idle--;
        }
    }
    pthread_mutex_unlock(&workers->lock);
    return NULL;
}

static void run_open(spw_workers *workers, unsigned n_threads, void (*run)(void *arg), void *arg)
{
    pthread_mutex_lock(&workers->lock);
    workers->run = run;
    workers->arg = arg;
    workers->n_runs++;
    workers->n_wanted = MIN(n_threads - 1, workers->n_threads);
    store_relaxed(&workers->is_open, true);
    unsigned n_wake = MIN(workers->n_wanted, workers->n_idle);
    if (n_wake == workers->n_idle && n_wake > 1)
        pthread_cond_broadcast(&workers->work);
    else
        for (unsigned i = 0; i < n_wake; i++)
            pthread_cond_signal(&workers->work);
    pthread_mutex_unlock(&workers->lock);
}

/* After it, nobody enters any more, and nobody is inside. */
static void run_close(spw_workers *workers)
{
    pthread_mutex_lock(&workers->lock);
    workers->run = NULL;
    workers->n_wanted = 0;
    store_relaxed(&workers->is_open, false);
    if (workers->n_inside > 0)
        look(workers, &workers->n_inside, true);
    while (workers->n_inside > 0)
        pthread_cond_wait(&workers->done, &workers->lock);
    pthread_mutex_unlock(&workers->lock);
}

double *client_workers_hold(spw_workers *workers)
{
    pthread_mutex_lock(&workers->hold_lock);
    return workers->sums;
}

void client_workers_release(spw_workers *workers)
{
    pthread_mutex_unlock(&workers->hold_lock);
}

void client_workers_run(spw_workers *workers, unsigned n_threads, void (*run)(void *arg), void *arg)
{
    bool is_shared = n_threads > 1 && workers->n_threads > 0;

    if (is_shared)
        run_open(workers, n_threads, run, arg);
    run(arg);
    if (is_shared)
        run_close(workers);
}

int client_workers_check(const char *name, const spw_workers *workers)
{
    if (workers && !client_fork_is(workers->fork_mark))
        return client_error(-ECHILD, 0, "%s: the workers are the parent process's: make others after fork()", name);
    return 0;
}

/* --- Their life ------------------------------------------------------------------------------------------------------- */

static unsigned cpus_count(void)
{
    cpu_set_t cpus;

    /* A set is too small where the kernel knows more CPUs than it has bits. */
    return sched_getaffinity(0, sizeof(cpus), &cpus) < 0 ? CLIENT_WORKERS_MAX : (unsigned)CPU_COUNT(&cpus);
}

int spw_workers_new(unsigned n_threads, spw_workers **ret_workers)
{
    uint32_t mark;

    if (!ret_workers)
        return client_error(-EINVAL, 0, "spw_workers_new: there is nowhere to put the workers");
    if (n_threads > CLIENT_WORKERS_MAX)
        return client_error(-EINVAL, 0, "spw_workers_new: %u threads; %d are allowed", n_threads, CLIENT_WORKERS_MAX);
    int r = client_thread_fork_mark(&mark);
    if (r < 0)
        return client_error(r, 0, "spw_workers_new: cannot watch for forks: %s", strerrordesc_np(-r));
    unsigned n = (n_threads > 0 ? n_threads : cpus_count()) - 1;
    spw_workers *workers = calloc(1, sizeof(*workers) + n * sizeof(workers->threads[0]));
    if (!workers)
        return client_error(-ENOMEM, 0, "out of memory");
    pthread_mutex_init(&workers->hold_lock, NULL);
    pthread_mutex_init(&workers->lock, NULL);
    pthread_cond_init(&workers->work, NULL);
    pthread_cond_init(&workers->done, NULL);
    workers->fork_mark = mark;
    for (; workers->n_threads < n; workers->n_threads++) {
        r = client_thread_start(worker_main, workers, &workers->threads[workers->n_threads]);
        if (r < 0) {
            unsigned started = workers->n_threads;
            spw_workers_free(workers);
            return client_error(r, 0, "spw_workers_new: thread %u of %u cannot be started: %s", started + 1, n,
                                strerrordesc_np(-r));
        }
    }
    *ret_workers = workers;
    return 0;
}

unsigned spw_workers_count(const spw_workers *workers)
{
    return workers ? workers->n_threads + 1 : 1;
}

void spw_workers_free(spw_workers *workers)
{
    if (!workers)
        return;
    if (client_fork_is(workers->fork_mark)) {
        pthread_mutex_lock(&workers->lock);
        workers->stop = true;
        pthread_cond_broadcast(&workers->work);
        pthread_mutex_unlock(&workers->lock);
        for (unsigned i = 0; i < workers->n_threads; i++)
            pthread_join(workers->threads[i], NULL);
        pthread_cond_destroy(&workers->done);
        pthread_cond_destroy(&workers->work);
        pthread_mutex_destroy(&workers->lock);
        pthread_mutex_destroy(&workers->hold_lock);
    }
    free(workers);
}
