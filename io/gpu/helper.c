/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The turn of the helper, and its sleep. One thread does everything, so that nothing here needs a lock; what could hold it
 * up (a registration, a lane's new memory) takes at most some 30 ms at a time, and comes between two turns.
 *
 * Polling: what a stream writes to memory, and what a copy engine finishes, wakes nobody. So while something of that kind
 * is expected we look again and again, for spin_us without progress at full speed, then every 20 to 50 µs; and only so often
 * from the beginning while every copy engine that has work has some left when its present copy ends, as then nobody waits
 * for us. Otherwise the process sleeps until a message or a doorbell comes.
 */
#include "io/gpu/helper.h"

#include <errno.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "include/base/atomic.h"

#define NAP_STEP_NS 10000

uint64_t helper_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

void helper_lose(struct helper *h, const char *what, const char *why)
{
    if (h->is_lost)
        return;
    h->is_lost = true;
    snprintf(h->lost_text, sizeof(h->lost_text), "%s: %.100s", what, why);
}

static struct helper_ring *ring_at(const struct helper *h, uint32_t i)
{
    return h->rings[h->engines[i]];
}

static bool expire(struct helper *h, uint64_t now_ns)
{
    bool progress = false;

    for (size_t d = 0; d < HELPER_DIRECTIONS; d++)
        list_for_each_safe (l, &h->copiers[d].waiting)
            progress |= helper_lane_expire(h, list_entry(l, struct helper_queue, waiting), now_ns);
    return progress;
}

static void settle(struct helper *h)
{
    struct list again = LIST_INIT(again);

    list_splice_tail(&again, &h->unsettled);
    while (!list_is_empty(&again))
        helper_lane_settle(h, list_first_entry(&again, struct helper_lane, unsettled));
}

/* Whether anything has moved. */
static bool turn(struct helper *h)
{
    uint64_t now_ns = helper_now_ns();
    bool progress = false;

    for (uint32_t i = 0; i < h->n_rings; i++)
        progress |= helper_ring_take(h, ring_at(h, i));
    progress |= helper_issue_finish(h, now_ns);
    settle(h);
    progress |= expire(h, now_ns);
    progress |= helper_issue_start(h, now_ns);
    for (uint32_t i = 0; i < h->n_rings; i++)
        helper_ring_flush(ring_at(h, i));
    if (helper_chunk_register(h)) { /* after everything else, as it takes long; the daemon awaits answers meanwhile */
        progress = true;
        h->must_listen = true;
    }
    if (progress) {
        h->progress_ns = now_ns;
        h->nap_ns = GPU_NAP_NS_MIN;
    }
    h->n_turns++;
    return progress;
}

/* Something is expected that wakes nobody. */
static bool must_look_again(const struct helper *h)
{
    return helper_issue_is_busy(h) || !list_is_empty(&h->copiers[HELPER_SPILL].waiting) ||
           !list_is_empty(&h->copiers[HELPER_FETCH].waiting) || !list_is_empty(&h->unsettled);
}

/* False: commands have come. */
static bool rings_sleep(struct helper *h)
{
    for (uint32_t i = 0; i < h->n_rings; i++)
        if (!helper_ring_sleep(ring_at(h, i))) {
            for (uint32_t k = 0; k <= i; k++)
                helper_ring_wake(ring_at(h, k));
            return false;
        }
    return true;
}

static void sleep_a_while(struct helper *h)
{
    struct timespec nap = {.tv_nsec = (long)h->nap_ns};

    if (!rings_sleep(h))
        return;
    h->stat.sleeps++;
    (void)ppoll(h->polls, 1 + h->n_rings, must_look_again(h) ? &nap : NULL, NULL);
    h->nap_ns = MIN(h->nap_ns + NAP_STEP_NS, (uint64_t)GPU_NAP_NS_MAX);
    for (uint32_t i = 0; i < h->n_rings; i++) {
        struct helper_ring *ring = ring_at(h, i);

        helper_ring_wake(ring);
        if (h->polls[1 + i].revents != 0)
            helper_ring_drain_doorbell(ring);
        h->polls[1 + i].fd = ring->doorbell_fd;
    }
}

/* For a moment in which nothing can come that will not wait. */
static void doze(struct helper *h)
{
    h->stat.sleeps++;
    nanosleep(&(struct timespec){.tv_nsec = (long)h->nap_ns}, NULL);
    h->nap_ns = MIN(h->nap_ns + NAP_STEP_NS, (uint64_t)GPU_NAP_NS_MAX);
}

static void serve(struct helper *h)
{
    h->must_listen = true;
    while (!h->is_lost) {
        if ((h->must_listen || h->n_turns % GPU_SOCKET_TURNS == 0) && !helper_control_serve(h))
            return;
        h->must_listen = false;
        if (h->is_lost || turn(h))
            continue;
        if (helper_issue_is_ahead(h)) {
            doze(h);
        } else if (helper_now_ns() - h->progress_ns < h->spin_ns) {
            cpu_relax();
        } else {
            sleep_a_while(h);
            h->must_listen = true;
        }
    }
}

/* The daemon has gone. Everything is given back, after what is under way has ended, and the streams of clients go on.
 * False: it does not end, and only our own end helps. */
static bool stop(struct helper *h)
{
    uint64_t until_ns = helper_now_ns() + GPU_STOP_MS * UINT64_C(1000000);

    for (uint32_t i = 0; i < h->n_rings; i++)
        helper_ring_fail(h, ring_at(h, i));
    while (helper_issue_is_busy(h)) {
        uint64_t now_ns = helper_now_ns();

        (void)helper_issue_finish(h, now_ns);
        (void)helper_issue_start(h, now_ns); /* no more than an end to what is half issued */
        if (h->is_lost || now_ns > until_ns)
            return false;
        usleep(GPU_NAP_NS_MIN / 1000);
    }
    for (uint32_t i = 0; i < h->n_rings; i++)
        helper_ring_free(h, ring_at(h, i));
    helper_driver_stop(h);
    return true;
}

int helper_run(int socket_fd)
{
    static struct helper only; /* reachable to the end, also where nothing can be freed */
    struct helper *h = &only;

    h->socket_fd = socket_fd;
    h->polls[0] = (struct pollfd){.fd = socket_fd, .events = POLLIN};
    h->nap_ns = GPU_NAP_NS_MIN;
    list_init(&h->todo);
    list_init(&h->unsettled);
    for (size_t d = 0; d < HELPER_DIRECTIONS; d++)
        list_init(&h->copiers[d].waiting);
    (void)prctl(PR_SET_TIMERSLACK, 1000UL); /* ns; 50 µs else, as long as a nap */
    serve(h);
    if (h->is_lost)
        helper_control_tell_lost(h);
    /* Of a context that is lost nothing can be freed; the kernel does it, when the process ends. */
    if (h->is_lost || !stop(h))
        return -EIO;
    return 0;
}
