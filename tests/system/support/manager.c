/* SPDX-License-Identifier: Apache-2.0 */
/* See manager.h. */
#include "tests/system/support/manager.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "include/base/socket.h"

#define BACKLOG 256
#define MESSAGE_FDS_MAX 32
#define FDS_FIRST 3
#define FDS_ASIDE 600 /* where descriptors are put while 3 and the following are filled */

static int socket_bound(int type, const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(addr.sun_path))
        return -ENAMETOOLONG;
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return -errno;
    memcpy(addr.sun_path, path, strlen(path) + 1);
    unlink(path);
    if (bind(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0) {
        int r = -errno;

        close(fd);
        return r;
    }
    return fd;
}

int manager_init(struct manager *m, const char *notify_path, const char *listen_path)
{
    *m = (struct manager){.notify_fd = -1, .listen_fd = -1};
    if (strlen(notify_path) >= sizeof(m->notify_path))
        return -ENAMETOOLONG;
    memcpy(m->notify_path, notify_path, strlen(notify_path) + 1);
    m->notify_fd = socket_bound(SOCK_DGRAM, notify_path);
    if (m->notify_fd < 0)
        return m->notify_fd;
    m->listen_fd = socket_bound(SOCK_SEQPACKET, listen_path);
    int r = m->listen_fd < 0 ? m->listen_fd : listen(m->listen_fd, BACKLOG) < 0 ? -errno : 0;

    if (r < 0)
        manager_deinit(m);
    return r;
}

void manager_deinit(struct manager *m)
{
    manager_forget_all(m);
    if (m->notify_fd >= 0)
        close(m->notify_fd);
    if (m->listen_fd >= 0)
        close(m->listen_fd);
    m->notify_fd = m->listen_fd = -1;
}

/* --- What the daemon says ------------------------------------------------------------------------------------------- */

void manager_keep(struct manager *m, const char *name, int fd)
{
    if (m->forgets || m->n == MANAGER_DESCRIPTORS_MAX) {
        close(fd);
        return;
    }
    snprintf(m->kept[m->n].name, sizeof(m->kept[m->n].name), "%s", name);
    m->kept[m->n++].fd = fd;
}

static void manager_forget(struct manager *m, const char *name)
{
    for (unsigned i = 0; i < m->n;) {
        if (strcmp(m->kept[i].name, name) != 0) {
            i++;
            continue;
        }
        close(m->kept[i].fd);
        m->kept[i] = m->kept[--m->n];
    }
}

void manager_forget_all(struct manager *m)
{
    while (m->n > 0)
        close(m->kept[--m->n].fd);
}

static void message_take(struct manager *m, char *text, const int *fds, unsigned n_fds)
{
    char *state = NULL, name[64] = "stored";
    bool store = false, remove = false;

    for (char *line = strtok_r(text, "\n", &state); line; line = strtok_r(NULL, "\n", &state)) {
        store |= strcmp(line, "FDSTORE=1") == 0;
        remove |= strcmp(line, "FDSTOREREMOVE=1") == 0;
        m->n_ready += strcmp(line, "READY=1") == 0;
        m->n_alive += strcmp(line, "WATCHDOG=1") == 0;
        if (strncmp(line, "FDNAME=", 7) == 0)
            snprintf(name, sizeof(name), "%s", line + 7);
    }
    if (remove)
        manager_forget(m, name);
    for (unsigned i = 0; i < n_fds; i++) {
        if (store)
            manager_keep(m, name, fds[i]);
        else
            close(fds[i]);
    }
}

void manager_take(struct manager *m)
{
    char text[4096];
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(MESSAGE_FDS_MAX * sizeof(int))];
    } control;

    for (;;) {
        struct iovec iov = {text, sizeof(text) - 1};
        struct msghdr msg = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
        int fds[MESSAGE_FDS_MAX];
        ssize_t n = recvmsg(m->notify_fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

        if (n < 0)
            return;
        uint32_t n_fds = socket_take_fds(&msg, fds, MESSAGE_FDS_MAX);

        text[n] = '\0';
        message_take(m, text, fds, n_fds);
    }
}

/* --- The next daemon ------------------------------------------------------------------------------------------------- */

void manager_pass(const struct manager *m)
{
    char names[MANAGER_DESCRIPTORS_MAX * 33] = "spillwayd.socket", number[16];
    size_t len = strlen(names);
    unsigned n = m->n + 1;

    for (unsigned i = 0; i < n; i++)
        if (fcntl(i == 0 ? m->listen_fd : m->kept[i - 1].fd, F_DUPFD, FDS_ASIDE + (int)i) < 0)
            _exit(125);
    for (unsigned i = 0; i < n; i++) {
        if (dup2(FDS_ASIDE + (int)i, FDS_FIRST + (int)i) < 0) /* without FD_CLOEXEC */
            _exit(125);
        close(FDS_ASIDE + (int)i);
        if (i > 0)
            len += (size_t)snprintf(names + len, sizeof(names) - len, ":%.31s", m->kept[i - 1].name);
    }
    snprintf(number, sizeof(number), "%u", n);
    setenv("LISTEN_FDS", number, 1);
    setenv("LISTEN_FDNAMES", names, 1);
    snprintf(number, sizeof(number), "%d", getpid());
    setenv("LISTEN_PID", number, 1);
    setenv("NOTIFY_SOCKET", m->notify_path, 1);
    snprintf(number, sizeof(number), "%u", m->max);
    if (m->max > 0)
        setenv("FDSTORE", number, 1);
}
