/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The session's link to the daemon, and how it gets over a restart of the daemon.
 *
 *   era: 2 ── the connection ends ──▶ 3 ── the session goes on ──▶ 4 ── … ──▶        (odd: there is no connection)
 *                                      └── it does not ──▶ the session is dead
 *
 * A session with pools has a thread that watches its socket, and brings it to the daemon's next process: a client may be
 * busy with what it has leased for longer than the daemon waits for it. Whoever else sees a hang-up only makes the number
 * odd. While it is, nothing is sent; calls keep what they asked for, and wait, until their own deadlines. When it is even again each
 * ring, by whoever uses it next, notices that the number is not its own, and is made anew (ring_renew.c).
 *
 * The socket keeps its number (dup3), so nobody holds one that means something else meanwhile. Requests have it under
 * control_lock, and so has this thread while it makes a new connection.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

#include "client/lib/client.h"

#define PAUSE_MS_MAX 50

uint32_t client_reattach_max_ms = REATTACH_NS_MAX / 1000000;

bool client_link_lost(spw_session *session, uint32_t era)
{
    /* Release: pairs with load_acquire of the watcher. An odd one, or a newer one, stays. */
    return era % 2 == 0 &&
           __atomic_compare_exchange_n(&session->era, &era, era + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

int client_link_wait(spw_session *session)
{
    pthread_mutex_lock(&session->link_lock);
    while (!client_link_is_up(session) && load_acquire(&session->dead) == 0)
        client_cond_wait(&session->link_changed, &session->link_lock, UINT64_MAX);
    pthread_mutex_unlock(&session->link_lock);
    return client_session_check(session);
}

/* --- The next process ------------------------------------------------------------------------------------------------ */

/* Waits, unless the session is closed meanwhile. */
static void link_pause(spw_session *session, uint32_t ms)
{
    pthread_mutex_lock(&session->link_lock);
    if (load_acquire(&session->dead) == 0)
        client_cond_wait(&session->link_changed, &session->link_lock, ms * UINT64_C(1000000));
    pthread_mutex_unlock(&session->link_lock);
}

/* Who waits anywhere looks again. Each queue's eventfd is readable from now on, until its user comes. */
static void link_tell(spw_session *session)
{
    pthread_mutex_lock(&session->link_lock);
    pthread_cond_broadcast(&session->link_changed);
    pthread_mutex_unlock(&session->link_lock);
    pthread_mutex_lock(&session->lock);
    list_for_each (pos, &session->rings)
        client_ring_rouse(list_entry(pos, struct client_ring, link));
    list_for_each (pos, &session->queues) {
        struct spw_queue *queue = list_entry(pos, struct spw_queue, link);

        (void)!eventfd_write(queue->event_fd, 1);
        store_release(&queue->is_roused, 1); /* after it: else it would be read too early, and stay readable */
    }
    pthread_mutex_unlock(&session->lock);
}

/* Does the session go on? 0, -EAGAIN: perhaps later; else the session is over. Holds control_lock. */
static int link_try_locked(spw_session *session)
{
    cleanup_close int fd = -1;
    int r = client_control_dial(session, &fd);

    if (r == 0)
        r = client_control_reattach(session, fd);
    if (r < 0)
        return r;
    if (dup3(fd, session->socket, O_CLOEXEC) < 0)
        return client_error(-errno, 0, "the new connection cannot be kept: %s", strerrordesc_np(errno));
    return 0;
}

static int link_try(spw_session *session)
{
    pthread_mutex_lock(&session->control_lock);
    int r = link_try_locked(session);

    if (r == 0) /* Release: who sees the new era sees what the pools and spaces are called now */
        store_release(&session->era, load_relaxed(&session->era) + 1);
    pthread_mutex_unlock(&session->control_lock);
    return r;
}

/* What the daemon's last words were: for how long it is worth trying. 0: not at all. */
static uint32_t link_last_words(spw_session *session)
{
    pthread_mutex_lock(&session->control_lock); /* whoever waits for a reply has seen the hang-up, too */
    client_control_last_words(session);
    uint32_t ms = session->away_ms > 0 ? session->away_ms : session->reattach_ms;

    session->away_ms = 0;
    pthread_mutex_unlock(&session->control_lock);
    return MIN(ms, client_reattach_max_ms);
}

static void link_restore(spw_session *session)
{
    uint32_t limit_ms = link_last_words(session), pause_ms = 1;
    int r = limit_ms > 0 ? -EAGAIN : -ENOTCONN;

    session->lost_until_ms = client_now_ms() + limit_ms;

    while (r == -EAGAIN && load_acquire(&session->dead) == 0) {
        r = link_try(session);
        if (r != -EAGAIN)
            break;
        if (client_now_ms() > session->lost_until_ms)
            r = -ENOTCONN;
        else
            link_pause(session, pause_ms);
        pause_ms = MIN(pause_ms * 2, (uint32_t)PAUSE_MS_MAX);
    }
    if (r < 0)
        (void)client_session_end(session, NULL);
    link_tell(session);
}

/* --- The watcher ------------------------------------------------------------------------------------------------------ */

static void *watch(void *arg)
{
    spw_session *session = arg;

    while (load_acquire(&session->dead) == 0) {
        uint32_t era = load_acquire(&session->era);
        struct pollfd pfd = {.fd = session->socket}; /* POLLHUP and POLLERR come unasked */

        if (era % 2 == 0 && poll(&pfd, 1, -1) <= 0)
            continue;
        (void)client_link_lost(session, era);
        if (load_acquire(&session->dead) == 0)
            link_restore(session);
    }
    return NULL;
}

int client_link_watch(spw_session *session)
{
    int r = 0;

    pthread_mutex_lock(&session->link_lock);
    if (!session->has_watcher) {
        r = client_thread_start(watch, session, &session->watcher);
        store_release(&session->has_watcher, r == 0);
    }
    pthread_mutex_unlock(&session->link_lock);
    return r;
}

void client_link_unwatch(spw_session *session)
{
    if (!session->has_watcher)
        return;
    pthread_mutex_lock(&session->link_lock);
    pthread_cond_broadcast(&session->link_changed); /* it is dead */
    pthread_mutex_unlock(&session->link_lock);
    pthread_join(session->watcher, NULL);
    session->has_watcher = false;
}
