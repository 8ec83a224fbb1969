/* SPDX-License-Identifier: Apache-2.0 */
/* See keeper.h. Messages that a daemon sent before it died are taken before the next one is started, as systemd does. */
#include "tests/system/support/keeper.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "include/base/socket.h"

#define READY_MS 60000
#define MESSAGE_FDS_MAX 32
#define FDS_FIRST 3
#define FDS_ASIDE 600 /* where descriptors are put while 3 and the following are filled */

static int socket_bound(int type, const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    ck_assert_int_ge(fd, 0);
    ck_assert_uint_lt(strlen(path), sizeof(addr.sun_path));
    memcpy(addr.sun_path, path, strlen(path) + 1);
    unlink(path);
    ck_assert_int_eq(bind(fd, (const struct sockaddr *)&addr, sizeof(addr)), 0);
    return fd;
}

/* --- What the daemon says ------------------------------------------------------------------------------------------- */

static void keep_locked(struct keeper *k, const char *name, int fd)
{
    if (k->forgets || k->n == KEEPER_DESCRIPTORS_MAX) {
        close(fd);
        return;
    }
    snprintf(k->kept[k->n].name, sizeof(k->kept[k->n].name), "%s", name);
    k->kept[k->n++].fd = fd;
}

static void forget_locked(struct keeper *k, const char *name)
{
    for (unsigned i = 0; i < k->n;) {
        if (strcmp(k->kept[i].name, name) != 0) {
            i++;
            continue;
        }
        close(k->kept[i].fd);
        k->kept[i] = k->kept[--k->n];
    }
}

static void message_take(struct keeper *k, char *text, const int *fds, unsigned n_fds)
{
    char *state = NULL, name[64] = "stored";
    bool store = false, remove = false;

    for (char *line = strtok_r(text, "\n", &state); line; line = strtok_r(NULL, "\n", &state)) {
        store |= strcmp(line, "FDSTORE=1") == 0;
        remove |= strcmp(line, "FDSTOREREMOVE=1") == 0;
        k->n_ready += strcmp(line, "READY=1") == 0;
        k->n_alive += strcmp(line, "WATCHDOG=1") == 0;
        if (strncmp(line, "FDNAME=", 7) == 0)
            snprintf(name, sizeof(name), "%s", line + 7);
    }
    if (remove)
        forget_locked(k, name);
    for (unsigned i = 0; i < n_fds; i++) {
        if (store)
            keep_locked(k, name, fds[i]);
        else
            close(fds[i]);
    }
}

static void messages_take(struct keeper *k)
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
        ssize_t n = recvmsg(k->notify_fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

        if (n < 0)
            return;
        uint32_t n_fds = socket_take_fds(&msg, fds, MESSAGE_FDS_MAX);

        text[n] = '\0';
        pthread_mutex_lock(&k->lock);
        message_take(k, text, fds, n_fds);
        pthread_mutex_unlock(&k->lock);
    }
}

/* --- The daemon ------------------------------------------------------------------------------------------------------ */

/* In the child: puts them where the protocol wants them, and says so. */
static void pass_descriptors(const struct keeper *k)
{
    char names[KEEPER_DESCRIPTORS_MAX * 33] = "spillwayd.socket", number[16];
    size_t len = strlen(names);
    unsigned n = k->n + 1;

    for (unsigned i = 0; i < n; i++)
        if (fcntl(i == 0 ? k->listen_fd : k->kept[i - 1].fd, F_DUPFD, FDS_ASIDE + (int)i) < 0)
            _exit(125);
    for (unsigned i = 0; i < n; i++) {
        if (dup2(FDS_ASIDE + (int)i, FDS_FIRST + (int)i) < 0) /* without FD_CLOEXEC */
            _exit(125);
        close(FDS_ASIDE + (int)i);
        if (i > 0)
            len += (size_t)snprintf(names + len, sizeof(names) - len, ":%.31s", k->kept[i - 1].name);
    }
    snprintf(number, sizeof(number), "%u", n);
    setenv("LISTEN_FDS", number, 1);
    setenv("LISTEN_FDNAMES", names, 1);
    snprintf(number, sizeof(number), "%d", getpid());
    setenv("LISTEN_PID", number, 1);
    setenv("NOTIFY_SOCKET", k->notify_path, 1);
    snprintf(number, sizeof(number), "%u", k->max);
    if (k->max > 0)
        setenv("FDSTORE", number, 1);
}

static void child_prepare(void *ctx)
{
    pass_descriptors(ctx);
}

static void daemon_launch(struct keeper *k)
{
    k->daemon->in_child = child_prepare;
    k->daemon->in_child_ctx = k;
    daemon_spawn(k->daemon);
    k->n_starts++;
}

static void *keeper_main(void *arg)
{
    struct keeper *k = arg;
    bool stops = false;

    while (!stops) {
        struct pollfd pfds[] = {{.fd = k->notify_fd, .events = POLLIN}, {.fd = k->pipe[0]}};
        int status;

        poll(pfds, 2, 2);
        stops = pfds[1].revents != 0;
        pid_t pid = k->daemon->pid; /* this thread alone changes it */
        bool died = pid > 0 && waitpid(pid, &status, WNOHANG) == pid;

        messages_take(k);
        pthread_mutex_lock(&k->lock);
        if (died) {
            k->daemon->pid = 0;
            k->last_status = status;
        }
        if (k->daemon->pid == 0 && k->restarts && !stops)
            daemon_launch(k);
        pthread_mutex_unlock(&k->lock);
    }
    if (k->daemon->pid != 0) {
        kill(k->daemon->pid, SIGTERM);
        waitpid(k->daemon->pid, &k->last_status, 0);
        k->daemon->pid = 0;
    }
    return NULL;
}

/* --- The test's side ------------------------------------------------------------------------------------------------- */

void keeper_init(struct keeper *k, struct daemon *d)
{
    *k = (struct keeper){.daemon = d, .restarts = true};
    pthread_mutex_init(&k->lock, NULL);
    snprintf(k->notify_path, sizeof(k->notify_path), "%s/notify", d->dir);
    k->notify_fd = socket_bound(SOCK_DGRAM, k->notify_path);
    k->listen_fd = socket_bound(SOCK_SEQPACKET, d->socket);
    ck_assert_int_eq(listen(k->listen_fd, 256), 0);
    ck_assert_int_eq(pipe2(k->pipe, O_CLOEXEC), 0);
}

void keeper_go(struct keeper *k)
{
    fflush(NULL);
    ck_assert_int_eq(pthread_create(&k->thread, NULL, keeper_main, k), 0);
    keeper_wait_ready(k, 1);
}

void keeper_start(struct keeper *k, struct daemon *d)
{
    keeper_init(k, d);
    keeper_go(k);
}

void keeper_kill(struct keeper *k)
{
    pthread_mutex_lock(&k->lock);
    k->restarts = false;
    if (k->daemon->pid != 0)
        kill(k->daemon->pid, SIGKILL);
    pthread_mutex_unlock(&k->lock);
    for (bool lives = true; lives; sleep_ms(1)) {
        pthread_mutex_lock(&k->lock);
        lives = k->daemon->pid != 0;
        pthread_mutex_unlock(&k->lock);
    }
}

void keeper_revive(struct keeper *k)
{
    pthread_mutex_lock(&k->lock);
    unsigned count = k->n_ready + 1;

    k->restarts = true;
    pthread_mutex_unlock(&k->lock);
    keeper_wait_ready(k, count);
}

int keeper_stop(struct keeper *k)
{
    close(k->pipe[1]);
    pthread_join(k->thread, NULL);
    close(k->pipe[0]);
    for (unsigned i = 0; i < k->n; i++)
        close(k->kept[i].fd);
    close(k->notify_fd);
    close(k->listen_fd);
    pthread_mutex_destroy(&k->lock);
    return WIFEXITED(k->last_status) ? WEXITSTATUS(k->last_status) : 128 + WTERMSIG(k->last_status);
}

unsigned keeper_count(struct keeper *k)
{
    pthread_mutex_lock(&k->lock);
    unsigned n = k->n_ready;

    pthread_mutex_unlock(&k->lock);
    return n;
}

void keeper_wait_ready(struct keeper *k, unsigned count)
{
    for (int64_t end = clock_ms() + READY_MS; clock_ms() < end; sleep_ms(1))
        if (keeper_count(k) >= count)
            return;
    ck_abort_msg("spillwayd does not become ready: %s", daemon_log_end(k->daemon));
}

void keeper_restart(struct keeper *k, int signal_number)
{
    pthread_mutex_lock(&k->lock);
    unsigned count = k->n_ready + 1;

    if (k->daemon->pid != 0)
        kill(k->daemon->pid, signal_number);
    pthread_mutex_unlock(&k->lock);
    keeper_wait_ready(k, count);
}

unsigned keeper_has(struct keeper *k, const char *prefix)
{
    unsigned n = 0;

    pthread_mutex_lock(&k->lock);
    for (unsigned i = 0; i < k->n; i++)
        n += strncmp(k->kept[i].name, prefix, strlen(prefix)) == 0;
    pthread_mutex_unlock(&k->lock);
    return n;
}

void keeper_give(struct keeper *k, const char *name, int fd)
{
    pthread_mutex_lock(&k->lock);
    keep_locked(k, name, fd);
    pthread_mutex_unlock(&k->lock);
}
