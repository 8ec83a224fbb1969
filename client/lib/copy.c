/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copy threads of a session: they help whoever has much to copy, and run put and get jobs.
 *
 * A batch of copies belongs to a transfer, which posts it and goes on with its ring; later it finishes the batch: takes
 * what nobody took, and waits for what others took. So a batch ends even if no copy thread has time for it, and a copy
 * thread that runs a job cannot wait for itself. Slices of CLIENT_COPY_SLICE_BYTES are taken from the oldest batch, under
 * the lock: a slice takes a hundred times longer than the lock. Whoever waits for another's last slice copies from the
 * next batch meanwhile.
 *
 * To wake a thread takes longer than to copy a megabyte. So one is woken only for a transfer that is large, one for each
 * (two threads fill most of a socket's memory bandwidth); and a thread that has nothing to do looks for more for a while
 * that adapts itself before it sleeps. Where there are only two CPUs the engine needs the other one, and a helper that
 * has it makes each request wait: only what is very large is shared there. Threads start at the first need, and have all
 * signals blocked: the program's handlers are not for them.
 *
 * The lock guards everything here; it is never held during a copy or a task. Hints for those that spin are atomic.
 */
#include <limits.h>
#include <sched.h>

#include "client/lib/client.h"

#include "include/base/cache.h"

#define WARM_BYTES 2048
#define SPIN_NS_MIN 1000
#define SPIN_NS_MAX 100000
#define SLEEP_COST_NS 50000 /* to fall asleep and be woken */
#define SPIN_TURNS 32       /* pauses between two looks at the clock */
#define WAIT_NS_MAX 50000   /* for another's last slice, before sleeping */

struct client_copy {
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    struct list batches, tasks;
    uint32_t n_max, n_threads, n_idle, n_tasks, n_waiting;
    int n_cpus;
    uint32_t n_queued;   /* atomic: batches and tasks to be had */
    uint32_t n_spinning; /* atomic: threads that look for one */
    bool stop;           /* atomic */
    pthread_t threads[];
};

static void queued_add(struct client_copy *copy, uint32_t n)
{
    store_relaxed(&copy->n_queued, copy->n_queued + n);
}

/* --- Batches --------------------------------------------------------------------------------------------------------- */

/* The next slice of a batch that nobody else has, or with the lock. */
static struct client_copy_op slice_next(struct client_copy_batch *batch)
{
    const struct client_copy_op *op = &batch->ops[batch->at_op];
    struct client_copy_op slice = {
        .to = (uint8_t *)op->to + batch->at_bytes,
        .from = (const uint8_t *)op->from + batch->at_bytes,
        .size_bytes = MIN(op->size_bytes - batch->at_bytes, (size_t)CLIENT_COPY_SLICE_BYTES),
    };

    batch->at_bytes += slice.size_bytes;
    batch->left_bytes -= slice.size_bytes;
    if (batch->at_bytes == op->size_bytes) {
        batch->at_op++;
        batch->at_bytes = 0;
        if (batch->at_op < batch->n_ops) /* the processor cannot guess where it goes on */
            cache_warm_to_read(op[1].from, MIN(op[1].size_bytes, (size_t)WARM_BYTES));
    }
    return slice;
}

/* Called with the lock. Returns false if all of it was taken. */
static bool slice_take(struct client_copy *copy, struct client_copy_batch *batch, struct client_copy_op *ret_slice)
{
    if (list_is_empty(&batch->link))
        return false;
    *ret_slice = slice_next(batch);
    store_relaxed(&batch->n_unfinished, batch->n_unfinished + 1);
    if (batch->at_op == batch->n_ops) {
        list_unlink(&batch->link);
        queued_add(copy, -1u);
    }
    return true;
}

/* Copies a slice. Called with the lock, which it gives up meanwhile. Once the last slice is finished, the batch may be
 * gone as soon as the lock is. */
static void slice_work(struct client_copy *copy, struct client_copy_batch *batch, const struct client_copy_op *slice)
{
    pthread_mutex_unlock(&copy->lock);
    client_stream_copy(slice->to, slice->from, slice->size_bytes);
    client_stream_fence();
    pthread_mutex_lock(&copy->lock);
    store_release(&batch->n_unfinished, batch->n_unfinished - 1); /* what was copied comes before it */
    if (batch->n_unfinished == 0 && copy->n_waiting > 0)
        pthread_cond_broadcast(&copy->done);
}

/* Copies a slice of the oldest batch. Called with the lock, as above. Returns false if there is none. */
static bool work_once(struct client_copy *copy)
{
    struct client_copy_op slice;

    if (list_is_empty(&copy->batches))
        return false;
    struct client_copy_batch *batch = list_first_entry(&copy->batches, struct client_copy_batch, link);
    if (slice_take(copy, batch, &slice))
        slice_work(copy, batch, &slice);
    return true;
}

/* --- The threads ----------------------------------------------------------------------------------------------------- */

/* Looks for something to do for a while. Called with the lock, which it gives up meanwhile. */
static void thread_spin(struct client_copy *copy, uint64_t until_ns)
{
    bool found = false;

    store_relaxed(&copy->n_spinning, copy->n_spinning + 1);
    pthread_mutex_unlock(&copy->lock);
    while (!found && client_now_ns() < until_ns) {
        for (unsigned i = 0; !found && i < SPIN_TURNS; i++) {
            cpu_relax();
            found = load_relaxed(&copy->n_queued) > 0 || load_relaxed(&copy->stop);
        }
    }
    pthread_mutex_lock(&copy->lock);
    store_relaxed(&copy->n_spinning, copy->n_spinning - 1);
}

/* Waits for something to do: spins, then sleeps. The spin grows if this wait could have been spent spinning, whether it
 * was or not, and shrinks if not. Called with the lock. */
static void thread_wait(struct client_copy *copy, uint32_t *spin_ns)
{
    uint64_t start_ns = client_now_ns();

    thread_spin(copy, start_ns + *spin_ns);
    if (copy->n_queued == 0 && !copy->stop) { /* who is woken looks again for a while: more is on its way */
        copy->n_idle++;
        pthread_cond_wait(&copy->work, &copy->lock);
        copy->n_idle--;
    }
    if (client_now_ns() - start_ns <= SPIN_NS_MAX + SLEEP_COST_NS)
        *spin_ns = MIN(*spin_ns * 2, (uint32_t)SPIN_NS_MAX);
    else
        *spin_ns = MAX(*spin_ns / 2, (uint32_t)SPIN_NS_MIN);
}

static void *thread_main(void *arg)
{
    struct client_copy *copy = arg;
    uint32_t spin_ns = SPIN_NS_MAX;

    pthread_mutex_lock(&copy->lock);
    for (;;) {
        if (work_once(copy))
            continue;
        if (!list_is_empty(&copy->tasks)) {
            struct client_task *task = list_entry(list_pop(&copy->tasks), struct client_task, link);
            copy->n_tasks--;
            queued_add(copy, -1u);
            pthread_mutex_unlock(&copy->lock);
            task->run(task);
            pthread_mutex_lock(&copy->lock);
        } else if (copy->stop) {
            break;
        } else {
            thread_wait(copy, &spin_ns);
        }
    }
    pthread_mutex_unlock(&copy->lock);
    return NULL;
}

/* Starts a thread if those that are idle have enough to do, and there may be more. Called with the lock. */
static int thread_start(struct client_copy *copy)
{
    if (copy->n_idle + copy->n_spinning > copy->n_tasks || copy->n_threads == copy->n_max)
        return 0;
    int r = client_thread_start(thread_main, copy, &copy->threads[copy->n_threads]);

    if (r == 0)
        copy->n_threads++;
    return copy->n_threads > 0 ? 0 : r;
}

/* --- What others call ------------------------------------------------------------------------------------------------ */

bool client_copy_wake(struct client_copy *copy, uint64_t total_bytes)
{
    if (total_bytes < (copy->n_cpus > 2 ? CLIENT_COPY_SHARE_BYTES : CLIENT_COPY_SHARE_FEW_BYTES) || copy->n_cpus == 1)
        return false;
    if (load_relaxed(&copy->n_spinning) > 0)
        return true;
    pthread_mutex_lock(&copy->lock);
    (void)thread_start(copy); /* none: then the caller copies alone */
    pthread_cond_signal(&copy->work);
    pthread_mutex_unlock(&copy->lock);
    return true;
}

void client_copy_begin(struct client_copy *copy, struct client_copy_batch *batch, bool is_shared)
{
    list_init(&batch->link);
    batch->at_op = 0;
    batch->at_bytes = 0;
    batch->left_bytes = 0;
    batch->n_unfinished = 0;
    for (size_t i = 0; i < batch->n_ops; i++)
        batch->left_bytes += batch->ops[i].size_bytes;
    batch->is_posted = batch->left_bytes > 0 && is_shared;
    if (!batch->is_posted)
        return;
    pthread_mutex_lock(&copy->lock);
    list_push_tail(&copy->batches, &batch->link);
    queued_add(copy, 1);
    pthread_mutex_unlock(&copy->lock);
}

/* Waits for others' slices of a batch. Called with the lock. */
static void batch_wait(struct client_copy *copy, struct client_copy_batch *batch)
{
    uint64_t until_ns = client_now_ns() + WAIT_NS_MAX;

    pthread_mutex_unlock(&copy->lock);
    while (load_acquire(&batch->n_unfinished) > 0 && client_now_ns() < until_ns)
        cpu_relax();
    pthread_mutex_lock(&copy->lock);
    copy->n_waiting++;
    while (batch->n_unfinished > 0)
        pthread_cond_wait(&copy->done, &copy->lock);
    copy->n_waiting--;
}

void client_copy_work(struct client_copy *copy, struct client_copy_batch *batch, uint64_t keep_bytes)
{
    struct client_copy_op slice;

    while (!batch->is_posted && batch->left_bytes > keep_bytes) {
        slice = slice_next(batch);
        client_stream_copy(slice.to, slice.from, slice.size_bytes);
    }
    if (!batch->is_posted)
        return;
    pthread_mutex_lock(&copy->lock);
    while (batch->left_bytes > keep_bytes && slice_take(copy, batch, &slice))
        slice_work(copy, batch, &slice);
    pthread_mutex_unlock(&copy->lock);
}

void client_copy_finish(struct client_copy *copy, struct client_copy_batch *batch)
{
    client_copy_work(copy, batch, 0);
    if (!batch->is_posted) {
        client_stream_fence();
        return;
    }
    pthread_mutex_lock(&copy->lock);
    while (batch->n_unfinished > 0)
        if (!work_once(copy))
            batch_wait(copy, batch);
    pthread_mutex_unlock(&copy->lock);
}

int client_copy_post(struct client_copy *copy, struct client_task *task)
{
    pthread_mutex_lock(&copy->lock);
    int r = thread_start(copy);
    if (r == 0) {
        list_push_tail(&copy->tasks, &task->link);
        copy->n_tasks++;
        queued_add(copy, 1);
        pthread_cond_signal(&copy->work);
    }
    pthread_mutex_unlock(&copy->lock);
    return r;
}

int client_copy_new(uint32_t threads, struct client_copy **ret_copy)
{
    struct client_copy *copy = calloc(1, sizeof(*copy) + threads * sizeof(copy->threads[0]));
    pthread_mutexattr_t attr;
    cpu_set_t cpus;

    if (!copy)
        return -ENOMEM;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP); /* it is held for less than a sleep takes */
    pthread_mutex_init(&copy->lock, &attr);
    pthread_mutexattr_destroy(&attr);
    pthread_cond_init(&copy->work, NULL);
    pthread_cond_init(&copy->done, NULL);
    list_init(&copy->batches);
    list_init(&copy->tasks);
    copy->n_max = threads;
    copy->n_cpus = sched_getaffinity(0, sizeof(cpus), &cpus) < 0 ? INT_MAX : CPU_COUNT(&cpus);
    *ret_copy = copy;
    return 0;
}

void client_copy_free(struct client_copy *copy)
{
    pthread_mutex_lock(&copy->lock);
    store_relaxed(&copy->stop, true);
    pthread_cond_broadcast(&copy->work);
    pthread_mutex_unlock(&copy->lock);
    for (uint32_t i = 0; i < copy->n_threads; i++)
        pthread_join(copy->threads[i], NULL);
    pthread_cond_destroy(&copy->done);
    pthread_cond_destroy(&copy->work);
    pthread_mutex_destroy(&copy->lock);
    free(copy);
}
