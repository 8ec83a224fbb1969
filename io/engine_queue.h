/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mailbox of an engine: any thread posts, the engine runs. A message is a member of whatever it is about, so
 * posting allocates nothing and cannot fail. Messages of one producer are run in the order in which it posted them.
 */
#pragma once

#include "include/base/atomic.h"
#include "include/base/base.h"
#include "include/base/list.h"

struct engine_msg {
    struct list link;                    /* the queue's while posted */
    void (*run)(struct engine_msg *msg); /* on the engine's thread; may post, may free msg */
};

struct engine_queue {
    _Alignas(64) struct list *newest; /* what producers write */
    uint32_t n_posting;               /* producers that still touch the queue */
    _Alignas(64) uint32_t sleeping;   /* what the engine writes, and the producer that wakes it */
    int wake_fd;                      /* the engine's own eventfd: never passed to a client */
};

must_check int engine_queue_init(struct engine_queue *q);
/* Every message was run. Waits for producers that have posted the last ones but are not out of the call yet. */
void engine_queue_deinit(struct engine_queue *q);

/* Any thread. Makes a system call only if the engine sleeps. */
void engine_queue_post(struct engine_queue *q, struct engine_msg *msg);

/* Any thread, also from a signal handler: wakes the engine if it sleeps. */
void engine_queue_wake(struct engine_queue *q);

/* The engine's thread. Runs what was posted before the call; returns how many messages. */
uint32_t engine_queue_run(struct engine_queue *q);

static inline bool engine_queue_is_empty(const struct engine_queue *q)
{
    return load_relaxed(&q->newest) == NULL;
}

/* The engine's thread: from here on producers ring wake_fd. False if there is a message already: do not sleep. */
bool engine_queue_sleep_prepare(struct engine_queue *q);
void engine_queue_sleep_end(struct engine_queue *q);
