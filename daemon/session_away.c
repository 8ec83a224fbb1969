/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions that outlive the process: what the last one left, until its clients are back, and what this one leaves. Control
 * thread.
 *
 * A session that is away has its number, its token, its owner and its seats, and so its leases; it has no socket. The
 * first HELLO with its token, from who it was, makes it open again: the connection's own session, which was to be a new
 * one, gives the socket away and ends. A token that nobody waits with tells nothing: it may be one that was guessed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon/control.h"
#include "daemon/fdstore.h"
#include "daemon/log.h"
#include "daemon/session.h"
#include "daemon/session_kept.h"

#define NS_PER_MS UINT64_C(1000000)

uint32_t session_reattach_ms(const struct control *control)
{
    return (uint32_t)(MIN(control->config->daemon.reattach_ns, REATTACH_NS_MAX) / NS_PER_MS);
}

/* --- What was left ----------------------------------------------------------------------------------------------- */

static void away_too_long(struct loop_timer *timer)
{
    session_end(container_of(timer, struct session, timer), "its client did not come back after a restart", false);
}

static void away_wait(struct session *session)
{
    loop_timer_set(&session->control->loop, &session->timer,
                   loop_now_ns() + session_reattach_ms(session->control) * NS_PER_MS);
}

/* The process that has the client's number now, if there is one: it may be another one by now, which then does not know the
 * token. */
static bool away_client_lives(struct session *session)
{
    if (session->who.pid <= 0)
        return true;
    session->pidfd.fd = (int)syscall(SYS_pidfd_open, session->who.pid, 0);
    if (session->pidfd.fd < 0)
        return errno != ESRCH;
    session->pidfd.events = EPOLLIN;
    if (loop_add(&session->control->loop, &session->pidfd) < 0) {
        close(session->pidfd.fd);
        session->pidfd.fd = -1;
    }
    return true;
}

/* A row of which nothing can be made: what it leased goes when the engines start. */
static int away_forget(struct kept *kept, struct kept_session *row)
{
    kept_session_free(kept, row);
    return 0;
}

static int away_restore(struct control *control, struct kept_session *row)
{
    struct account *account = account_get(control, row->uid);
    struct session *session = account ? session_alloc(control, row->number) : NULL;

    if (!session) {
        account_put(control, account);
        return -ENOMEM;
    }
    session->who = (struct access){.uid = row->uid, .gid = row->gid, .pid = row->pid};
    session->owner = owner_rejoin(control, account, row->owner);
    if (!session->owner || !away_client_lives(session)) {
        if (session->owner)
            owner_leave(session->owner, false);
        account_put(control, account);
        free(session);
        return away_forget(control->kept, row);
    }
    session->account = account;
    session->kept = row;
    session->is_reattached = true;
    memcpy(session->token, row->token, sizeof(session->token));
    memcpy(session->name, row->name, sizeof(session->name));
    session->timer.fire = away_too_long;
    session_set_state(session, SESSION_AWAY);
    list_push_tail(&control->sessions, &session->link);
    control->n_sessions++;
    account->n_sessions++;
    account->n_descriptors += SESSION_DESCRIPTORS; /* it counts already: no limit stops it */
    for (uint32_t e = 0; e < control->n_engines; e++)
        if ((row->engines >> e & 1) != 0 && !session_seat_restore(session, e))
            return -ENOMEM;
    return 0;
}

int sessions_restore(struct control *control)
{
    struct kept_owner *owner;
    struct kept_session *row;
    uint32_t at = 0;
    int r = 0;

    while (r == 0 && (owner = kept_owner_next(control->kept, &at)) != NULL)
        r = owner_restore(control, owner);
    at = 0;
    while (r == 0 && (row = kept_session_next(control->kept, &at)) != NULL)
        r = away_restore(control, row);
    if (r == 0 && control->n_sessions > 0)
        log_notice("%u session%s of the last process: waiting for the clients", control->n_sessions,
                   control->n_sessions == 1 ? "" : "s");
    return r;
}

void sessions_wait(struct control *control)
{
    list_for_each (l, &control->sessions) {
        struct session *session = list_entry(l, struct session, link);

        if (session->state == SESSION_AWAY)
            away_wait(session);
    }
}

/* --- A client is back --------------------------------------------------------------------------------------------- */

/* All are compared, so the time that it takes tells nothing. */
static struct session *away_find(const struct control *control, const uint8_t *token)
{
    struct session *found = NULL;

    list_for_each (l, &control->sessions) {
        struct session *session = list_entry(l, struct session, link);
        bool same = token_equal(session->token, token);

        if (same && session->state == SESSION_AWAY)
            found = session;
    }
    return found;
}

static bool away_is_of(const struct session *away, const struct access *who)
{
    return away->who.uid == who->uid && away->who.gid == who->gid && (away->who.pid == who->pid || away->who.pid == 0);
}

/* The socket and who is behind it. */
static int away_take(struct session *away, struct session *session)
{
    int fd = session->socket.fd;

    loop_remove(&session->control->loop, &session->socket);
    session->socket.fd = -1;
    session_source_close(session, &session->pidfd);
    session_source_close(away, &away->pidfd);
    access_deinit(&away->who);
    away->who = session->who;
    session->who = (struct access){.uid = away->who.uid, .gid = away->who.gid, .pid = away->who.pid};
    int r = session_watch(away, fd);

    if (r < 0)
        close(fd);
    return r;
}

struct session *session_reattach(struct session *session, const struct spw_msg_hello *hello)
{
    struct session *away = away_find(session->control, hello->session_token);

    if (!away || !away_is_of(away, &session->who)) {
        if (away)
            log_print_limited(LOG_LEVEL_WARNING, "session %llu: uid %u, pid %d has its token, but is not its client",
                              (unsigned long long)away->number, session->who.uid, session->who.pid);
        session_reply_error(session, -ENOENT, 0, "no session of this process waits for its client with that token");
        session_end(session, "its token is of no session", false);
        return NULL;
    }
    away->request = session->request;
    int r = away_take(away, session);

    session_end(session, NULL, false);
    if (r < 0) {
        session_end(away, "its client's process cannot be watched", false);
        return NULL;
    }
    session_timer_reset(away);
    away->is_confirmed = false;
    session_set_state(away, SESSION_OPEN);
    log_debug("session %llu (%s, uid %u, pid %d) is back", (unsigned long long)away->number, away->name, away->who.uid,
              away->who.pid);
    return away;
}

void session_hung_up(struct session *session, const char *why)
{
    if (session->state != SESSION_OPEN || !session->is_reattached || session->is_confirmed || session->busy) {
        session_end(session, why, false);
        return;
    }
    session_source_close(session, &session->socket); /* its process is watched */
    session_set_state(session, SESSION_AWAY);
    session->timer.fire = away_too_long;
    away_wait(session);
}

/* --- What is left ------------------------------------------------------------------------------------------------- */

void sessions_leave(struct control *control)
{
    list_for_each_safe (l, &control->sessions) {
        struct session *session = list_entry(l, struct session, link);

        if (session == control->successor)
            continue;
        if (session->state == SESSION_HELLO || !session->kept)
            session_end(session, "the daemon stops", false);
        else
            session_leave(session);
    }
}
