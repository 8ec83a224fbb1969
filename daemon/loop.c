/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns one epoll descriptor and a sorted list of timers. One thread.
 *
 * A callback may free the object that holds another source of the same batch. So a batch is copied into the loop, and
 * loop_remove() strikes the source from what is left of it.
 */
#include "daemon/loop.h"

#include <errno.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_MS UINT64_C(1000000)
#define LOOP_SLEEP_MAX_NS (UINT64_C(60000) * NS_PER_MS)

uint64_t loop_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * UINT64_C(1000000000) + (uint64_t)ts.tv_nsec;
}

int loop_init(struct loop *loop)
{
    int fd = epoll_create1(EPOLL_CLOEXEC);

    if (fd < 0)
        return -errno;
    *loop = (struct loop){.epoll_fd = fd};
    list_init(&loop->timers);
    return 0;
}

void loop_deinit(struct loop *loop)
{
    if (loop->epoll_fd >= 0)
        close(loop->epoll_fd);
    loop->epoll_fd = -1;
}

static int loop_control(struct loop *loop, int op, struct loop_source *source)
{
    struct epoll_event event = {.events = source->events, .data.ptr = source};

    return epoll_ctl(loop->epoll_fd, op, source->fd, &event) < 0 ? -errno : 0;
}

int loop_add(struct loop *loop, struct loop_source *source)
{
    return loop_control(loop, EPOLL_CTL_ADD, source);
}

void loop_modify(struct loop *loop, struct loop_source *source, uint32_t events)
{
    if (source->events == events)
        return;
    source->events = events;
    (void)loop_control(loop, EPOLL_CTL_MOD, source);
}

void loop_remove(struct loop *loop, struct loop_source *source)
{
    if (source->fd < 0)
        return;
    (void)epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
    for (uint32_t i = 0; i < loop->n_batch; i++)
        if (loop->batch[i] == source)
            loop->batch[i] = NULL;
}

void loop_timer_init(struct loop_timer *timer, void (*fire)(struct loop_timer *timer))
{
    *timer = (struct loop_timer){.fire = fire};
    list_init(&timer->link);
}

void loop_timer_set(struct loop *loop, struct loop_timer *timer, uint64_t at_ns)
{
    struct list *after;

    list_unlink(&timer->link);
    timer->at_ns = at_ns;
    after = loop->timers.prev;
    while (after != &loop->timers && list_entry(after, struct loop_timer, link)->at_ns > at_ns)
        after = after->prev;
    list_push_head(after, &timer->link); /* behind `after` */
}

void loop_timer_cancel(struct loop_timer *timer)
{
    list_unlink(&timer->link);
}

static int loop_timeout_ms(const struct loop *loop, uint64_t timeout_ns)
{
    if (!list_is_empty(&loop->timers)) {
        uint64_t now_ns = loop_now_ns();
        uint64_t at_ns = list_entry(loop->timers.next, struct loop_timer, link)->at_ns;

        timeout_ns = MIN(timeout_ns, at_ns > now_ns ? at_ns - now_ns : 0);
    }
    return (int)div_round_up(MIN(timeout_ns, LOOP_SLEEP_MAX_NS), NS_PER_MS);
}

static void loop_fire(struct loop *loop)
{
    uint64_t now_ns = loop_now_ns();

    while (!list_is_empty(&loop->timers)) {
        struct loop_timer *timer = list_entry(loop->timers.next, struct loop_timer, link);

        if (timer->at_ns > now_ns)
            return;
        list_unlink(&timer->link);
        timer->fire(timer);
    }
}

int loop_turn(struct loop *loop, uint64_t timeout_ns)
{
    struct epoll_event events[LOOP_BATCH];
    int n = epoll_wait(loop->epoll_fd, events, LOOP_BATCH, loop_timeout_ms(loop, timeout_ns));

    if (n < 0)
        return errno == EINTR ? 0 : -errno;
    for (int i = 0; i < n; i++) {
        loop->batch[i] = events[i].data.ptr;
        loop->batch_events[i] = events[i].events;
    }
    loop->n_batch = (uint32_t)n;
    for (uint32_t i = 0; i < loop->n_batch; i++)
        if (loop->batch[i])
            loop->batch[i]->ready(loop->batch[i], loop->batch_events[i]);
    loop->n_batch = 0;
    loop_fire(loop);
    return 0;
}

int loop_run(struct loop *loop)
{
    int r = 0;

    while (!loop->stop && r == 0)
        r = loop_turn(loop, LOOP_SLEEP_MAX_NS);
    return r;
}
