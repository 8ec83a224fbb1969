/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copy threads of a session: they help whoever has much to copy, and run put and get jobs.
 *
 * A batch of copies lies on the stack of the thread that waits for it. That thread copies as well, so a batch ends even
 * if no other thread has time for it, and a copy thread that runs a job cannot wait for itself. Threads take slices of
 * CLIENT_COPY_SLICE_BYTES from the oldest batch, under the lock: a slice takes a hundred times longer than the lock.
 * They start at the first need, and have all signals blocked: the program's handlers are not for them.
 *
 * The lock guards everything here; it is never held during a copy or a task.
 */
#include <signal.h>

#include "client/lib/client.h"

struct batch {
    struct list link; /* of client_copy.batches, while there is something to be taken */
    const struct client_copy_op *ops;
    size_t n_ops, at_op;
    size_t at_bytes; /* taken of that op */
    size_t unfinished;
};

struct client_copy {
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    struct list batches, tasks;
    uint32_t n_max, n_threads, n_idle, n_tasks;
    bool stop;
    pthread_t threads[];
};

static bool slice_take(struct batch *batch, struct client_copy_op *ret_slice)
{
    while (batch->at_op < batch->n_ops && batch->at_bytes == batch->ops[batch->at_op].size_bytes) {
        batch->at_op++;
        batch->at_bytes = 0;
    }
    if (batch->at_op == batch->n_ops) {
        list_unlink(&batch->link);
        return false;
    }
    const struct client_copy_op *op = &batch->ops[batch->at_op];
    size_t size_bytes = MIN(op->size_bytes - batch->at_bytes, (size_t)CLIENT_COPY_SLICE_BYTES);
    ret_slice->to = (uint8_t *)op->to + batch->at_bytes;
    ret_slice->from = (const uint8_t *)op->from + batch->at_bytes;
    ret_slice->size_bytes = size_bytes;
    batch->at_bytes += size_bytes;
    batch->unfinished++;
    return true;
}

/* Copies what is left of a batch. Called with the lock, which it gives up for the copies. */
static void batch_work(struct client_copy *copy, struct batch *batch)
{
    struct client_copy_op slice;

    while (slice_take(batch, &slice)) {
        pthread_mutex_unlock(&copy->lock);
        client_stream_copy(slice.to, slice.from, slice.size_bytes);
        pthread_mutex_lock(&copy->lock);
        /* The owner waits for the last slice and may be gone after it, so this is the last look at the batch. */
        if (--batch->unfinished == 0 && list_is_empty(&batch->link)) {
            pthread_cond_broadcast(&copy->done);
            return;
        }
    }
}

static void *thread_main(void *arg)
{
    struct client_copy *copy = arg;

    pthread_mutex_lock(&copy->lock);
    for (;;) {
        if (!list_is_empty(&copy->batches)) {
            batch_work(copy, list_first_entry(&copy->batches, struct batch, link));
        } else if (!list_is_empty(&copy->tasks)) {
            struct client_task *task = list_entry(list_pop(&copy->tasks), struct client_task, link);
            copy->n_tasks--;
            pthread_mutex_unlock(&copy->lock);
            task->run(task);
            pthread_mutex_lock(&copy->lock);
        } else if (copy->stop) {
            break;
        } else {
            copy->n_idle++;
            pthread_cond_wait(&copy->work, &copy->lock);
            copy->n_idle--;
        }
    }
    pthread_mutex_unlock(&copy->lock);
    return NULL;
}

/* Starts a thread if those that are idle have enough to do, and there may be more. Called with the lock. */
static int thread_start(struct client_copy *copy)
{
    sigset_t all, before;

    if (copy->n_idle > copy->n_tasks || copy->n_threads == copy->n_max)
        return 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int r = -pthread_create(&copy->threads[copy->n_threads], NULL, thread_main, copy);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r == 0)
        copy->n_threads++;
    return copy->n_threads > 0 ? 0 : r;
}

void client_copy_run(struct client_copy *copy, const struct client_copy_op *ops, size_t n_ops)
{
    size_t total_bytes = 0;

    for (size_t i = 0; i < n_ops; i++)
        total_bytes += ops[i].size_bytes;
    if (total_bytes < CLIENT_COPY_SHARE_BYTES) {
        for (size_t i = 0; i < n_ops; i++)
            client_stream_copy(ops[i].to, ops[i].from, ops[i].size_bytes);
        return;
    }

    struct batch batch = {.ops = ops, .n_ops = n_ops};
    pthread_mutex_lock(&copy->lock);
    list_push_tail(&copy->batches, &batch.link);
    (void)thread_start(copy); /* none: then we copy alone */
    pthread_cond_broadcast(&copy->work);
    batch_work(copy, &batch);
    while (batch.unfinished > 0)
        pthread_cond_wait(&copy->done, &copy->lock);
    pthread_mutex_unlock(&copy->lock);
}

int client_copy_post(struct client_copy *copy, struct client_task *task)
{
    pthread_mutex_lock(&copy->lock);
    int r = thread_start(copy);
    if (r == 0) {
        list_push_tail(&copy->tasks, &task->link);
        copy->n_tasks++;
        pthread_cond_signal(&copy->work);
    }
    pthread_mutex_unlock(&copy->lock);
    return r;
}

int client_copy_new(uint32_t threads, struct client_copy **ret_copy)
{
    struct client_copy *copy = calloc(1, sizeof(*copy) + threads * sizeof(copy->threads[0]));

    if (!copy)
        return -ENOMEM;
    pthread_mutex_init(&copy->lock, NULL);
    pthread_cond_init(&copy->work, NULL);
    pthread_cond_init(&copy->done, NULL);
    list_init(&copy->batches);
    list_init(&copy->tasks);
    copy->n_max = threads;
    *ret_copy = copy;
    return 0;
}

void client_copy_free(struct client_copy *copy)
{
    pthread_mutex_lock(&copy->lock);
    copy->stop = true;
    pthread_cond_broadcast(&copy->work);
    pthread_mutex_unlock(&copy->lock);
    for (uint32_t i = 0; i < copy->n_threads; i++)
        pthread_join(copy->threads[i], NULL);
    pthread_cond_destroy(&copy->done);
    pthread_cond_destroy(&copy->work);
    pthread_mutex_destroy(&copy->lock);
    free(copy);
}
