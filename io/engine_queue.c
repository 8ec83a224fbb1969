/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stack that producers push with one compare-and-swap, and that the engine takes whole with one exchange and turns
 * round. Nothing is ever popped one by one, so there is no ABA problem, and no lock that a descheduled producer could
 * hold against the engine. Only link.next is used while a message is posted.
 *
 * The engine may run a message, and end, before the producer is out of engine_queue_post(); so producers count
 * themselves in and out, and engine_queue_deinit() waits for zero.
 *
 * The wake-up is that of include/base/ring.h: the "tail" is the stack's top. Of many producers that see the engine
 * asleep only one makes the system call: the one whose exchange takes the flag.
 */
#include "io/engine_queue.h"

#include <errno.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define WAKE_TRIES 4

int engine_queue_init(struct engine_queue *q)
{
    /* Blocking, because the engine reads it through io_uring, where a non-blocking one would answer EAGAIN at once. */
    int fd = eventfd(0, EFD_CLOEXEC);

    if (fd < 0)
        return -errno;
    *q = (struct engine_queue){.wake_fd = fd};
    return 0;
}

void engine_queue_deinit(struct engine_queue *q)
{
    while (load_acquire(&q->n_posting) > 0) /* pairs with the release in post_end() */
        sched_yield();
    if (q->wake_fd >= 0)
        close(q->wake_fd);
    q->wake_fd = -1;
}

/* Before the message can be seen: the release of the push keeps it there. */
static void post_begin(struct engine_queue *q)
{
    __atomic_fetch_add(&q->n_posting, 1, __ATOMIC_RELAXED);
}

/* The last that a producer does with the queue. */
static void post_end(struct engine_queue *q)
{
    __atomic_fetch_sub(&q->n_posting, 1, __ATOMIC_RELEASE);
}

static void ring_if_asleep(struct engine_queue *q)
{
    static const uint64_t one = 1;
    int saved_errno = errno;

    fence_full(); /* W2, pairs with S2 in engine_queue_sleep_prepare() */
    if (load_relaxed(&q->sleeping) && __atomic_exchange_n(&q->sleeping, 0, __ATOMIC_ACQ_REL)) {
        /* It fails for a signal, or never: but who sleeps would sleep for ever. */
        for (unsigned n = 0; n < WAKE_TRIES && write(q->wake_fd, &one, sizeof(one)) < 0; n++)
            ;
    }
    errno = saved_errno;
}

void engine_queue_wake(struct engine_queue *q)
{
    post_begin(q);
    ring_if_asleep(q);
    post_end(q);
}

void engine_queue_post(struct engine_queue *q, struct engine_msg *msg)
{
    struct list *top = load_relaxed(&q->newest);

    post_begin(q);
    do
        msg->link.next = top;
    while (!__atomic_compare_exchange_n(&q->newest, &top, &msg->link, true, __ATOMIC_RELEASE, /* W1 */
                                        __ATOMIC_RELAXED));
    ring_if_asleep(q);
    post_end(q);
}

uint32_t engine_queue_run(struct engine_queue *q)
{
    uint32_t n = 0;
    struct list *oldest = NULL;

    if (engine_queue_is_empty(q))
        return 0;
    /* Pairs with the release in engine_queue_post(). */
    for (struct list *l = __atomic_exchange_n(&q->newest, NULL, __ATOMIC_ACQUIRE), *next; l; l = next) {
        next = l->next;
        l->next = oldest;
        oldest = l;
    }
    for (struct list *next; oldest; oldest = next, n++) {
        struct engine_msg *msg = list_entry(oldest, struct engine_msg, link);

        next = oldest->next;
        list_init(&msg->link);
        msg->run(msg);
    }
    return n;
}

bool engine_queue_sleep_prepare(struct engine_queue *q)
{
    store_relaxed(&q->sleeping, 1); /* S1 */
    fence_full();                   /* S2, pairs with W2 in ring_if_asleep() */
    if (engine_queue_is_empty(q))   /* S3 */
        return true;
    engine_queue_sleep_end(q);
    return false;
}

void engine_queue_sleep_end(struct engine_queue *q)
{
    store_relaxed(&q->sleeping, 0);
}
