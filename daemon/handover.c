/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns both ends of a handover, for where no service manager keeps descriptors. The new process has read its configuration
 * when it asks, so little is left that it can stumble over. The old one lets its sessions go, stops its engines, and sends
 * what is kept by name, and the listening socket: whoever connects meanwhile waits in its backlog, and nobody is refused.
 * Then it ends; the new one waits for the devices' locks as after any end.
 */
#include "daemon/handover.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/control.h"
#include "daemon/fdstore.h"
#include "daemon/log.h"
#include "daemon/session.h"
#include "include/base/cleanup.h"
#include "include/base/socket.h"

#define PART_MAX 64 /* names of one message */
#define GIVE_TIMEOUT_S 10
#define TAKE_TIMEOUT_MS 300000 /* I/O that is under way, and the flush of logs */
#define SOCKET_NAME "socket"

union fds_control {
    char bytes[CMSG_SPACE(PART_MAX * sizeof(int))];
    struct cmsghdr align;
};

/* --- The old process --------------------------------------------------------------------------------------------- */

void handover_asked(struct session *session)
{
    struct control *control = session->control;

    if (session->who.uid != control->uid)
        session_reply_error(session, -EACCES, 0, "only the daemon's own user may take its place");
    else if (!control_hand_over(control, session))
        session_reply_error(session, -EAGAIN, 0, "the daemon is starting, stopping, or being reloaded");
}

static void part_add(struct spw_msg_handover *part, int *fds, const char *name, int fd)
{
    snprintf(part->names[part->n], sizeof(part->names[0]), "%s", name);
    fds[part->n++] = fd;
}

static int part_send(struct session *session, struct spw_msg_handover *part, const int *fds, bool is_last)
{
    struct iovec iov = {.iov_base = part, .iov_len = sizeof(*part)};
    union fds_control control = {.bytes = {0}};
    struct msghdr header = {.msg_iov = &iov,
                            .msg_iovlen = 1,
                            .msg_control = control.bytes,
                            .msg_controllen = CMSG_SPACE(part->n * sizeof(int))};

    part->msg = (struct spw_msg){.magic = SPW_ABI_MAGIC,
                                 .type = SPW_MSG_HANDOVER | SPW_MSG_REPLY,
                                 .version = SPW_ABI_VERSION,
                                 .size_bytes = sizeof(*part),
                                 .request = session->request.request,
                                 .detail = is_last ? 0 : SPW_MSG_MORE};
    socket_add_fds(&header, fds, part->n);
    return sendmsg(session->socket.fd, &header, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

void handover_give(struct control *control)
{
    struct session *session = control->successor;
    struct timeval timeout = {.tv_sec = GIVE_TIMEOUT_S};
    struct spw_msg_handover part = {0};
    int fds[PART_MAX], fd, r = 0;
    const char *name;

    if (session->socket.fd < 0) {
        log_error("the process that was to take over has gone: what is in memory is lost");
        return;
    }
    (void)fcntl(session->socket.fd, F_SETFL, 0);
    (void)setsockopt(session->socket.fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
    for (uint32_t at = 0; r == 0 && fdstore_at(control->fdstore, at, &name, &fd); at++) {
        part_add(&part, fds, name, fd);
        if (part.n == PART_MAX) {
            r = part_send(session, &part, fds, false);
            part = (struct spw_msg_handover){0};
        }
    }
    part_add(&part, fds, SOCKET_NAME, control->listener.source.fd);
    if (r == 0)
        r = part_send(session, &part, fds, true);
    if (r < 0)
        log_error("cannot hand over: %s: what is in memory is lost", log_errno(r));
    else
        control->listener.path[0] = '\0'; /* it is the other one's to remove */
}

/* --- The new process --------------------------------------------------------------------------------------------- */

static int dial(const char *path, int *ret_fd)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    cleanup_close int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    if (strlen(path) >= sizeof(addr.sun_path))
        return -ENAMETOOLONG;
    memcpy(addr.sun_path, path, strlen(path) + 1);
    if (connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0)
        return -errno;
    *ret_fd = steal_fd(&fd);
    return 0;
}

static int ask(int fd, uint16_t type, struct spw_msg *msg, size_t size)
{
    *msg = (struct spw_msg){.magic = SPW_ABI_MAGIC,
                            .type = type,
                            .version = SPW_ABI_VERSION,
                            .size_bytes = (uint32_t)size,
                            .request = type};
    return socket_send(fd, msg, size, NULL, 0, 0);
}

/* One message; how many descriptors came with it. */
static int hear(int fd, void *message, size_t room, size_t *ret_size, int fds[static PART_MAX])
{
    union fds_control control;
    struct iovec iov = {.iov_base = message, .iov_len = room};
    struct msghdr header = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    struct pollfd pfd = {.fd = fd, .events = POLLIN};

    if (poll(&pfd, 1, TAKE_TIMEOUT_MS) <= 0)
        return -ETIMEDOUT;
    ssize_t size = recvmsg(fd, &header, MSG_CMSG_CLOEXEC);

    if (size <= 0 || (size_t)size < sizeof(struct spw_msg))
        return size < 0 ? -errno : -ECONNRESET;
    int n = (int)socket_take_fds(&header, fds, PART_MAX);

    *ret_size = (size_t)size;
    return header.msg_flags & (MSG_TRUNC | MSG_CTRUNC) ? -EPROTO : n;
}

static int part_take(struct fdstore *store, const struct spw_msg_handover *part, const int *fds, int n, int *ret_socket)
{
    int r = part->n == (uint32_t)n ? 0 : -EPROTO;

    for (int i = 0; i < n; i++) {
        bool is_terminated = i < PART_MAX && memchr(part->names[i], '\0', sizeof(part->names[i])) != NULL;

        if (r == 0 && is_terminated && strcmp(part->names[i], SOCKET_NAME) == 0)
            *ret_socket = fds[i];
        else if (r == 0 && is_terminated)
            (void)!fdstore_put_left(store, part->names[i], fds[i]); /* what has no meaning is closed */
        else
            close(fds[i]);
    }
    return r;
}

int handover_take(const char *path, struct fdstore *store, int *ret_socket, const char **ret_why)
{
    struct spw_msg_hello hello = {.version_min = SPW_ABI_VERSION, .version_max = SPW_ABI_VERSION, .name = "upgrade"};
    struct spw_msg_handover part = {0};
    struct spw_msg wanted;
    cleanup_close int fd = -1;
    int fds[PART_MAX] = {0}, r = dial(path, &fd);
    size_t size = 0;

    *ret_why = "no spillwayd answers there";
    if (r == 0)
        r = ask(fd, SPW_MSG_HELLO, &hello.msg, sizeof(hello));
    if (r == 0)
        r = hear(fd, &part, sizeof(part), &size, fds);
    if (r >= 0)
        r = part.msg.status < 0 ? part.msg.status : ask(fd, SPW_MSG_HANDOVER, &wanted, sizeof(wanted));
    if (r < 0)
        return r;
    *ret_why = "it does not hand over";
    *ret_socket = -1;
    do {
        r = hear(fd, &part, sizeof(part), &size, fds);
        if (r < 0)
            return r;
        if (part.msg.status < 0)
            return part.msg.status;
        if (size != sizeof(part))
            return -EPROTO;
        r = part_take(store, &part, fds, r, ret_socket);
    } while (r == 0 && (part.msg.detail & SPW_MSG_MORE));
    return r < 0 ? r : *ret_socket < 0 ? -EPROTO : 0;
}
