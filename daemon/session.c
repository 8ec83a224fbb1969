/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns sessions from accept() to the last thing that hangs off them. Control thread.
 *
 * Invariants
 * - A session works on one request at a time; while an engine has it, the socket is not read. Its end is noticed all
 *   the same: by hang-up or pidfd, whichever comes first (a forked child may keep the socket open).
 * - Nothing that an engine may still touch is freed: ENDING asks each engine to let go, and frees when all have.
 * - Descriptors that a client sends are closed: no message takes any.
 */
#include "daemon/session.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/admin.h"
#include "daemon/control.h"
#include "daemon/fdstore.h"
#include "daemon/gpu.h"
#include "daemon/log.h"
#include "daemon/session_kept.h"
#include "include/base/kill_point.h"
#include "include/base/socket.h"

#define NS_PER_MS UINT64_C(1000000)
#define REPLY_TIMEOUT_MS 5000 /* for a client that does not read a long reply */

/* --- The end ----------------------------------------------------------------------------------------------------- */

void session_set_state(struct session *session, enum session_state state)
{
    session->state = state;
}

/* Nothing that this process has of its rings is written any more: now the client may look at them for the last time. */
static void session_say_away(struct session *session)
{
    struct spw_msg_away away = {.msg = {.magic = SPW_ABI_MAGIC,
                                        .type = SPW_MSG_AWAY | SPW_MSG_REPLY,
                                        .version = SPW_ABI_VERSION,
                                        .size_bytes = sizeof(away)},
                                .reattach_ms = session_reattach_ms(session->control)};

    if (session->socket.fd < 0)
        return;
    (void)!socket_send(session->socket.fd, &away, sizeof(away), NULL, 0, MSG_DONTWAIT);
    close(session->socket.fd);
}

static void session_free(struct engine_msg *msg)
{
    struct session *session = container_of(msg, struct session, free_msg);
    struct control *control = session->control;

    if (session->state == SESSION_LEAVING)
        session_say_away(session);

    list_for_each_safe (l, &session->rings)
        session_ring_free(session, list_entry(l, struct session_ring, link));
    for (uint32_t i = 0; i < control->n_engines; i++)
        free(session->seats[i]);
    if (session->owner)
        owner_leave(session->owner, session->state == SESSION_LEAVING);
    if (session->refusal) {
        control->n_refused--;
        session->account->n_refused--;
    } else {
        control->n_sessions--;
        session->account->n_sessions--;
        session->account->n_descriptors -= SESSION_DESCRIPTORS;
    }
    kill_point("session.free");
    account_put(control, session->account);
    access_deinit(&session->who);
    free(session->out);
    list_unlink(&session->link);
    free(session);
    control_session_gone(control);
}

static void session_let_go(struct session *session)
{
    if (--session->n_ending > 0)
        return;
    session->free_msg.run = session_free;
    engine_queue_post(&session->control->mailbox, &session->free_msg);
}

static void session_seat_ended(struct call *call)
{
    session_let_go(call->at_control_ctx);
}

static void session_end_seats(struct session *session);

static void session_seat_quiet(struct call *call)
{
    struct session *session = call->at_control_ctx;

    if (--session->n_ending > 0)
        return;
    session->is_quiet = true;
    session_end_seats(session);
}

/* Engines serve its rings no more: what a lane's end does to its requests is not for the client to hear, who asks the next
 * daemon for them. */
static void session_silence(struct session *session)
{
    struct control *control = session->control;
    uint32_t n = 0;

    for (uint32_t i = 0; i < control->n_engines; i++)
        n += session->seats[i] != NULL;
    session->n_ending = n;
    for (uint32_t i = 0; i < control->n_engines; i++) {
        if (!session->seats[i])
            continue;
        struct engine_peer *peer = &session->seats[i]->peer;

        peer->end_call.at_control = session_seat_quiet;
        peer->end_call.at_control_ctx = session;
        engine_peer_silence(peer);
    }
}

/* Every engine lets go; nothing of the session is with an engine otherwise. Lanes first: an engine keeps what they use. */
static void session_end_seats(struct session *session)
{
    struct control *control = session->control;

    if (session->state == SESSION_LEAVING && !session->is_quiet && !list_is_empty(&session->lanes)) {
        session_silence(session);
        return;
    }
    if (session_gpu_end(session, session_end_seats))
        return;

    kill_point("session.seats_end");
    session->n_ending = 1; /* ours */
    for (uint32_t i = 0; i < control->n_engines; i++) {
        if (!session->seats[i])
            continue;
        struct engine_peer *peer = &session->seats[i]->peer;

        session->n_ending++;
        peer->leaves = session->state == SESSION_LEAVING;
        peer->end_call.at_control = session_seat_ended;
        peer->end_call.at_control_ctx = session;
        engine_peer_end(peer);
    }
    session_let_go(session);
}

void session_source_close(struct session *session, struct loop_source *source)
{
    if (source->fd < 0)
        return;
    loop_remove(&session->control->loop, source);
    close(source->fd);
    source->fd = -1;
}

void session_end(struct session *session, const char *why, bool violation)
{
    if (session_is_going(session))
        return;
    if (session ==
        session->control->successor) { /* what it was to get is in this process only: kept until the end, in vain */
        session_source_close(session, &session->socket);
        session_source_close(session, &session->pidfd);
        return;
    }
    if (why)
        log_print_limited(violation ? LOG_LEVEL_WARNING : LOG_LEVEL_DEBUG, "session %llu (%s, uid %u, pid %d) ends: %s",
                          (unsigned long long)session->number, session->name, session->who.uid, session->who.pid, why);
    session_set_state(session, SESSION_ENDING);
    kill_point("session.end");
    session->kept = kept_session_free(session->control->kept, session->kept);
    loop_timer_cancel(&session->timer);
    session_source_close(session, &session->socket);
    session_source_close(session, &session->pidfd);
    if (!session->busy)
        session_end_seats(session);
}

void session_leave(struct session *session)
{
    if (session_is_going(session))
        return;
    session_set_state(session, SESSION_LEAVING);
    loop_timer_cancel(&session->timer);
    loop_remove(&session->control->loop, &session->socket); /* closed when the engines have let go */
    session_source_close(session, &session->pidfd);
    if (!session->busy)
        session_end_seats(session);
}

void sessions_end(struct control *control, const char *why)
{
    list_for_each_safe (l, &control->sessions)
        session_end(list_entry(l, struct session, link), why, false);
}

bool session_call_over(struct session *session)
{
    session->busy = false;
    if (session_is_going(session)) {
        session_end_seats(session);
        return false;
    }
    loop_modify(&session->control->loop, &session->socket, EPOLLIN | EPOLLRDHUP);
    return true;
}

/* --- Replies ----------------------------------------------------------------------------------------------------- */

/* 1: sent; 0: the socket is full; else the session has ended. */
static int session_send(struct session *session, const void *message, size_t size, const int *fds, unsigned n_fds)
{
    int r = socket_send(session->socket.fd, message, size, fds, n_fds, MSG_DONTWAIT);

    if (r == 0)
        return 1;
    if (r == -EAGAIN)
        return 0;
    session_end(session, "its socket is closed", false);
    return -EPIPE;
}

void session_reply(struct session *session, void *message, size_t size, const int *fds, unsigned n_fds)
{
    struct spw_msg *msg = message;

    msg->magic = SPW_ABI_MAGIC;
    msg->type = session->request.type | SPW_MSG_REPLY;
    msg->version = SPW_ABI_VERSION;
    msg->size_bytes = (uint32_t)size;
    msg->request = session->request.request;
    if (session_send(session, message, size, fds, n_fds) == 0)
        session_end(session, "it does not read its replies", true);
}

void session_reply_error(struct session *session, int status, uint32_t detail, const char *fmt, ...)
{
    struct spw_msg_error error = {.msg = {.status = status, .detail = detail}};
    va_list args;

    va_start(args, fmt);
    vsnprintf(error.text, sizeof(error.text), fmt, args);
    va_end(args);
    session_reply(session, &error, sizeof(error), NULL, 0);
}

/* The next parts of a long reply, until all is sent or the socket is full. */
static void session_send_text(struct session *session)
{
    static char message[CONTROL_MESSAGE_BYTES_MAX]; /* one thread */
    const size_t part_max = sizeof(message) - sizeof(struct spw_msg);

    while (session->out_done < session->out_bytes) {
        size_t part = MIN(part_max, session->out_bytes - session->out_done);
        struct spw_msg msg = {
            .magic = SPW_ABI_MAGIC,
            .type = SPW_MSG_ADMIN | SPW_MSG_REPLY,
            .version = SPW_ABI_VERSION,
            .size_bytes = (uint32_t)(sizeof(msg) + part),
            .request = session->request.request,
            .detail = session->out_done + part < session->out_bytes ? SPW_MSG_MORE : 0,
        };

        memcpy(message, &msg, sizeof(msg));
        memcpy(message + sizeof(msg), session->out + session->out_done, part);
        int r = session_send(session, message, sizeof(msg) + part, NULL, 0);

        if (r < 0)
            return;
        if (r == 0) {
            loop_modify(&session->control->loop, &session->socket, EPOLLOUT | EPOLLRDHUP);
            loop_timer_set(&session->control->loop, &session->timer, loop_now_ns() + REPLY_TIMEOUT_MS * NS_PER_MS);
            return;
        }
        session->out_done += part;
    }
    free(session->out);
    session->out = NULL;
    loop_timer_cancel(&session->timer);
    loop_modify(&session->control->loop, &session->socket, EPOLLIN | EPOLLRDHUP);
}

void session_reply_text(struct session *session, char *text, uint64_t size)
{
    session->out = text;
    session->out_bytes = size;
    session->out_done = 0;
    session_send_text(session);
}

/* --- The socket -------------------------------------------------------------------------------------------------- */

static const char *header_violation(const struct spw_msg *msg, ssize_t n, int flags)
{
    if ((flags & MSG_TRUNC) || n < (ssize_t)sizeof(*msg))
        return "a message of the wrong size";
    if (msg->magic != SPW_ABI_MAGIC)
        return "a message without the magic number";
    if (msg->size_bytes != (size_t)n)
        return "a message whose size is not what it says";
    if (msg->status != 0 || msg->detail != 0)
        return "a reserved field of a message is not zero";
    return NULL;
}

static void session_receive(struct session *session)
{
    static _Alignas(8) char message[CONTROL_MESSAGE_BYTES_MAX]; /* one thread */
    static union {
        char bytes[CMSG_SPACE(DESCRIPTORS_PER_MESSAGE_MAX * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {.iov_base = message, .iov_len = sizeof(message)};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(session->socket.fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    if (n < 0) {
        if (errno != EAGAIN && errno != EINTR)
            session_hung_up(session, "its socket failed");
        return;
    }
    (void)socket_take_fds(&msg, NULL, 0); /* MSG_CTRUNC means that the kernel has closed the rest */
    if (n == 0) {                         /* an empty message and the end look alike; neither is a request */
        session_hung_up(session, "it closed its socket");
        return;
    }
    session->is_confirmed = true;
    const char *violation = header_violation((const struct spw_msg *)(const void *)message, n, msg.msg_flags);

    if (violation) {
        session_end(session, violation, true);
        return;
    }
    memcpy(&session->request, message, sizeof(session->request));
    session_handle(session, message, (size_t)n);
    if (!session_is_going(session) && session->busy)
        loop_modify(&session->control->loop, &session->socket, EPOLLRDHUP);
}

static void session_socket_ready(struct loop_source *source, uint32_t events)
{
    struct session *session = container_of(source, struct session, socket);

    if (events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP))
        session_hung_up(session, "it closed its socket");
    else if (events & EPOLLOUT)
        session_send_text(session);
    else if (events & EPOLLIN)
        session_receive(session);
}

static void session_process_ended(struct loop_source *source, uint32_t events)
{
    (void)events;
    session_end(container_of(source, struct session, pidfd), "its process ended", false);
}

static void session_timeout(struct loop_timer *timer)
{
    struct session *session = container_of(timer, struct session, timer);

    session_end(session, session->state == SESSION_HELLO ? "it said nothing" : "it does not read its replies", true);
}

void session_timer_reset(struct session *session)
{
    loop_timer_cancel(&session->timer);
    session->timer.fire = session_timeout;
}

/* --- The beginning ----------------------------------------------------------------------------------------------- */

/* May this user have one more? What is refused now is told in the reply to HELLO, where the client can read it. */
static int session_check_limits(struct session *session)
{
    struct control *control = session->control;
    const struct config_daemon *limits = &control->config->daemon;

    if (control->n_sessions >= limits->max_sessions) {
        session->refusal = -EMFILE;
        session->refusal_detail = SPW_LIMIT_SESSIONS;
    } else if (session->account->n_sessions >= limits->uid_sessions) {
        session->refusal = -EUSERS;
        session->refusal_detail = SPW_LIMIT_UID_SESSIONS;
    } else if (fdstore_is_kept(control->fdstore) && fdstore_room(control->fdstore) == 0) {
        session->refusal = -EMFILE;
        session->refusal_detail = SPW_LIMIT_DESCRIPTORS;
    } else if (!account_may_open(control, session->account, SESSION_DESCRIPTORS)) {
        session->refusal = -EUSERS;
        session->refusal_detail = SPW_LIMIT_UID_FDS;
    }
    if (!session->refusal) {
        control->n_sessions++;
        session->account->n_sessions++;
        session->account->n_descriptors += SESSION_DESCRIPTORS;
        return 0;
    }
    if (control->n_refused >= REFUSED_SESSIONS_MAX)
        return -EMFILE;
    control->n_refused++;
    session->account->n_refused++;
    return 0;
}

int session_watch(struct session *session, int fd)
{
    struct loop *loop = &session->control->loop;
    int r = access_pidfd(fd, &session->who, &session->pidfd.fd);

    if (r < 0 && r != -ENOTSUP) /* then the socket alone tells */
        return r;
    session->pidfd.events = EPOLLIN;
    if (session->pidfd.fd >= 0)
        r = loop_add(loop, &session->pidfd);
    else
        r = 0;
    if (r < 0)
        return r;
    session->socket.fd = fd;
    session->socket.events = EPOLLIN | EPOLLRDHUP;
    r = loop_add(loop, &session->socket);
    if (r < 0) {
        session->socket.fd = -1;
        return r;
    }
    return 0;
}

static int session_init(struct session *session, struct control *control, int fd)
{
    int r = access_read(fd, &session->who);

    if (r < 0)
        return r;
    session->account = account_get(control, session->who.uid);
    if (!session->account)
        return -ENOMEM;
    r = token_new(session->token);
    if (r < 0)
        return r;
    r = session_watch(session, fd);
    return r < 0 ? r : session_check_limits(session);
}

struct session *session_alloc(struct control *control, uint64_t number)
{
    struct session *session = calloc(1, sizeof(*session));

    if (!session)
        return NULL;
    session->control = control;
    session->number = number;
    session->since_ns = loop_now_ns();
    session->socket = (struct loop_source){.fd = -1, .ready = session_socket_ready};
    session->pidfd = (struct loop_source){.fd = -1, .ready = session_process_ended};
    session->pool_generation = (uint32_t)(session->number % UINT16_MAX + 1);
    loop_timer_init(&session->timer, session_timeout);
    list_init(&session->link);
    list_init(&session->rings);
    list_init(&session->lanes);
    return session;
}

int session_accept(struct control *control, int fd)
{
    struct session *session = session_alloc(control, kept_next_session(control->kept));

    if (!session)
        return -ENOMEM;
    int r = session_init(session, control, fd);

    if (r < 0) {
        loop_remove(&control->loop, &session->socket); /* the descriptor itself stays the caller's */
        session_source_close(session, &session->pidfd);
        account_put(control, session->account);
        access_deinit(&session->who);
        free(session);
        return r;
    }
    kill_point("session.accept");
    list_push_tail(&control->sessions, &session->link);
    loop_timer_set(&control->loop, &session->timer, session->since_ns + HELLO_TIMEOUT_MS * NS_PER_MS);
    return 0;
}
