/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control thread's event loop: descriptors and timers. Sources and timers are members of what they are about;
 * the loop allocates nothing. Any callback may remove any source, its own included.
 */
#pragma once

#include "include/base/base.h"
#include "include/base/list.h"

#define LOOP_BATCH 64

struct loop_source {
    int fd;
    uint32_t events; /* EPOLL…; 0: only errors and hang-ups */
    void (*ready)(struct loop_source *source, uint32_t events);
};

struct loop_timer {
    struct list link; /* sorted by at_ns */
    uint64_t at_ns;
    void (*fire)(struct loop_timer *timer);
};

struct loop {
    int epoll_fd;
    uint32_t n_batch;
    struct loop_source *batch[LOOP_BATCH]; /* of the turn under way; NULL: removed meanwhile */
    uint32_t batch_events[LOOP_BATCH];
    struct list timers;
    bool stop;
};

must_check int loop_init(struct loop *loop);
void loop_deinit(struct loop *loop);

must_check int loop_add(struct loop *loop, struct loop_source *source);
/* Of a source that was added: cannot fail. */
void loop_modify(struct loop *loop, struct loop_source *source, uint32_t events);
/* Before its descriptor is closed. Harmless for one that was never added (fd -1). */
void loop_remove(struct loop *loop, struct loop_source *source);

void loop_timer_init(struct loop_timer *timer, void (*fire)(struct loop_timer *timer));
void loop_timer_set(struct loop *loop, struct loop_timer *timer, uint64_t at_ns);
void loop_timer_cancel(struct loop_timer *timer);

/* Until loop->stop. Negative errno if epoll itself fails. */
must_check int loop_run(struct loop *loop);
/* One turn; sleeps for at most timeout_ns. */
must_check int loop_turn(struct loop *loop, uint64_t timeout_ns);

uint64_t loop_now_ns(void);
