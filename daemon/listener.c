/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the listening socket. A connection over a limit is told so: one that cannot even get a descriptor takes the
 * spare one for a moment. If that fails too, the listener rests for a second rather than spin on a socket that stays
 * readable.
 */
#include "daemon/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/control.h"
#include "daemon/log.h"
#include "daemon/session.h"
#include "include/base/cleanup.h"
#include "include/base/kill_point.h"

#define LISTENER_BACKLOG 256
#define LISTENER_RETRY_NS UINT64_C(1000000000)
#define ACCEPTS_PER_TURN 64

static int spare_open(void)
{
    return open("/dev/null", O_RDONLY | O_CLOEXEC);
}

/* Somebody who answers at that path is another daemon; a socket that refuses is a dead one's. */
static int path_is_taken(const struct sockaddr_un *addr, socklen_t len)
{
    cleanup_close int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return -errno;
    if (connect(fd, (const struct sockaddr *)addr, len) == 0 || errno == EAGAIN)
        return -EADDRINUSE;
    if (errno == ENOENT)
        return 0;
    if (errno != ECONNREFUSED)
        return -errno;
    return unlink(addr->sun_path) < 0 && errno != ENOENT ? -errno : 0;
}

static int socket_make(const char *path, bool user_mode, int *ret_fd, const char **ret_why)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    size_t len = strlen(path);

    *ret_why = "the path is too long for a socket";
    if (len >= sizeof(addr.sun_path))
        return -ENAMETOOLONG;
    memcpy(addr.sun_path, path, len + 1);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + 1);
    kill_point("listener.path");
    int r = path_is_taken(&addr, size);

    *ret_why = r == -EADDRINUSE ? "another spillwayd answers there" : log_errno(r);
    if (r < 0)
        return r;
    cleanup_close int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    /* Nobody connects before listen(), so the mode is right from the first moment on. */
    if (fd < 0 || bind(fd, (struct sockaddr *)&addr, size) < 0 || chmod(path, user_mode ? 0600 : 0660) < 0 ||
        listen(fd, LISTENER_BACKLOG) < 0) {
        r = -errno;
        *ret_why = log_errno(r);
        return r;
    }
    kill_point("listener.socket");
    *ret_fd = steal_fd(&fd);
    return 0;
}

static int socket_take(int fd, const char **ret_why)
{
    int type;
    socklen_t size = sizeof(type);

    *ret_why = "systemd's socket is no SOCK_SEQPACKET (ListenSequentialPacket=)";
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0 || type != SOCK_SEQPACKET)
        return -EINVAL;
    return fcntl(fd, F_SETFL, O_NONBLOCK) < 0 ? -errno : 0;
}

/* Tells a connection that it cannot be had; it is closed by the caller. */
static void refuse(int fd, int status, uint32_t detail, const char *text)
{
    struct spw_msg_error msg = {
        .msg = {SPW_ABI_MAGIC, SPW_MSG_HELLO | SPW_MSG_REPLY, SPW_ABI_VERSION, sizeof(msg), 0, status, detail}};

    snprintf(msg.text, sizeof(msg.text), "%s", text);
    (void)!send(fd, &msg, sizeof(msg), MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Nobody wants the peer's address: Unix clients have none. */
static int accept_any(int listening_fd)
{
    // cppcheck-suppress nullPointer
    return accept4(listening_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
}

/* Out of descriptors. False: even so nothing could be accepted. */
static bool refuse_with_spare(struct listener *listener)
{
    if (listener->spare_fd < 0)
        return false;
    close(listener->spare_fd);
    int fd = accept_any(listener->source.fd);

    if (fd >= 0) {
        refuse(fd, -EMFILE, SPW_LIMIT_DESCRIPTORS,
               "spillwayd has no descriptor left for this connection: raise LimitNOFILE=");
        close(fd);
    }
    listener->spare_fd = spare_open();
    return fd >= 0;
}

static void listener_rest(struct listener *listener)
{
    log_warning("out of descriptors: no connections for a second; raise LimitNOFILE=");
    loop_modify(&listener->control->loop, &listener->source, 0);
    loop_timer_set(&listener->control->loop, &listener->retry, loop_now_ns() + LISTENER_RETRY_NS);
}

static void listener_ready(struct loop_source *source, uint32_t events)
{
    struct listener *listener = container_of(source, struct listener, source);

    (void)events;
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        int fd = accept_any(source->fd);

        if (fd >= 0) {
            int r = session_accept(listener->control, fd);

            if (r < 0) {
                refuse(fd, r, r == -EMFILE ? SPW_LIMIT_DESCRIPTORS : SPW_LIMIT_SESSIONS,
                       "spillwayd cannot take another connection: see max_sessions in [daemon], and LimitNOFILE=");
                close(fd);
            }
            continue;
        }
        if ((errno == EMFILE || errno == ENFILE) && refuse_with_spare(listener))
            continue;
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
            listener_rest(listener);
        return; /* EAGAIN, or a connection that died meanwhile: the loop comes back */
    }
}

static void listener_retry(struct loop_timer *timer)
{
    struct listener *listener = container_of(timer, struct listener, retry);

    if (listener->spare_fd < 0)
        listener->spare_fd = spare_open();
    loop_modify(&listener->control->loop, &listener->source, EPOLLIN);
}

int listener_open(struct control *control, int fd, const char *path, bool user_mode, struct listener *listener,
                  const char **ret_why)
{
    *listener = LISTENER_NONE;
    listener->control = control;
    listener->source.ready = listener_ready;
    loop_timer_init(&listener->retry, listener_retry);
    if (fd >= 0) {
        int r = socket_take(fd, ret_why);

        if (r < 0)
            return r;
        listener->source.fd = fd;
    } else {
        int r = socket_make(path, user_mode, &listener->source.fd, ret_why);

        if (r < 0)
            return r;
        snprintf(listener->path, sizeof(listener->path), "%s", path);
    }
    listener->spare_fd = spare_open();
    return 0;
}

void listener_own(struct listener *listener, const char *path)
{
    snprintf(listener->path, sizeof(listener->path), "%s", path);
}

int listener_start(struct listener *listener)
{
    listener->source.events = EPOLLIN;
    return loop_add(&listener->control->loop, &listener->source);
}

void listener_pause(struct listener *listener)
{
    loop_timer_cancel(&listener->retry);
    loop_remove(&listener->control->loop, &listener->source);
}

void listener_close(struct listener *listener)
{
    if (listener->source.fd < 0)
        return;
    loop_timer_cancel(&listener->retry);
    loop_remove(&listener->control->loop, &listener->source);
    if (listener->path[0])
        (void)unlink(listener->path);
    close(listener->source.fd);
    if (listener->spare_fd >= 0)
        close(listener->spare_fd);
    *listener = LISTENER_NONE;
}
