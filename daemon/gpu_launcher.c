/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the launcher, on both sides of its socket.
 *
 * A helper is made with CLONE_PARENT, so that it is the daemon's child, who waits for it. Whether the program could be run is
 * told through a pipe that closes when it is. The launcher ends when the daemon's end of its socket does, and by no
 * signal that is meant for the daemon.
 */
#include "daemon/gpu_launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "include/base/cleanup.h"
#include "include/base/socket.h"
#include "io/gpu_wire.h"

/* With the helper's socket. */
struct launcher_request {
    char path[PATH_MAX];
    char environment[GPU_LAUNCHER_ENV_BYTES];
};

struct launcher_answer {
    int32_t pid; /* 0: there is none */
    int32_t error;
};

#define ANSWER_S 10 /* of a process that is ours: it can only be stopped, or starved */

/* --- The launcher ------------------------------------------------------------------------------------------------ */

/* 1 with a descriptor, 0 at the end. */
static int request_receive(int fd, struct launcher_request *ret_request, int *ret_socket_fd)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = ret_request, .iov_len = sizeof(*ret_request)};
    struct msghdr header = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
    ssize_t n;

    do
        n = recvmsg(fd, &header, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);

    const struct cmsghdr *cmsg = n == sizeof(*ret_request) ? CMSG_FIRSTHDR(&header) : NULL;

    if (!cmsg || cmsg->cmsg_type != SCM_RIGHTS)
        return 0;
    memcpy(ret_socket_fd, CMSG_DATA(cmsg), sizeof(*ret_socket_fd));
    return 1;
}

/* In the new process: the socket becomes GPU_WIRE_FD; everything else closes itself. */
_Noreturn static void become_helper(struct launcher_request *request, int socket_fd, int failure_fd)
{
    char *const argv[] = {(char *)"spillway-gpu", NULL};
    sigset_t none;

    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (int i = 1; i < NSIG; i++) /* what is ignored stays so across execve() */
        (void)signal(i, SIG_DFL);
    if (socket_fd == GPU_WIRE_FD)
        (void)fcntl(socket_fd, F_SETFD, 0);
    else
        (void)dup2(socket_fd, GPU_WIRE_FD);
    if (request->environment[0])
        (void)putenv(request->environment);
    (void)execve(request->path, argv, environ);
    int error = errno;

    (void)!write(failure_fd, &error, sizeof(error));
    _exit(127);
}

static struct launcher_answer helper_start(struct launcher_request *request, int socket_fd)
{
    struct launcher_answer answer = {0};
    int pipe_fds[2], error = 0;

    if (pipe2(pipe_fds, O_CLOEXEC) < 0)
        return (struct launcher_answer){.error = -errno};
    cleanup_close int reader = pipe_fds[0], writer = pipe_fds[1];
    if (writer == GPU_WIRE_FD) { /* it would be closed by what comes to lie there */
        writer = fcntl(writer, F_DUPFD_CLOEXEC, GPU_WIRE_FD + 1);
        close(pipe_fds[1]);
    }
    answer.pid = (int32_t)syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);
    if (answer.pid < 0)
        return (struct launcher_answer){.error = -errno};
    if (answer.pid == 0)
        become_helper(request, socket_fd, writer);
    close(steal_fd(&writer));
    if (read(reader, &error, sizeof(error)) == sizeof(error))
        answer.error = -error;
    return answer;
}

_Noreturn static void launcher_run(int fd)
{
    static struct launcher_request request;
    int socket_fd;

    while (request_receive(fd, &request, &socket_fd) > 0) {
        struct launcher_answer answer = helper_start(&request, socket_fd);

        close(socket_fd);
        if (socket_send(fd, &answer, sizeof(answer), NULL, 0, 0) < 0)
            break;
    }
    _exit(EXIT_SUCCESS);
}

/* --- The daemon -------------------------------------------------------------------------------------------------- */

int gpu_launcher_start(struct gpu_launcher *launcher)
{
    static const int ignored[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE};
    const struct timeval patience = {.tv_sec = ANSWER_S};
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
        return -errno;
    cleanup_close int ours = fds[0], theirs = fds[1];
    pid_t pid = fork();

    if (pid < 0)
        return -errno;
    if (pid == 0) {
        (void)prctl(PR_SET_NAME, "spillway-launch");
        for (size_t i = 0; i < ARRAY_LEN(ignored); i++)
            (void)signal(ignored[i], SIG_IGN);
        (void)close_range(STDERR_FILENO + 1, (unsigned)theirs - 1, 0);
        (void)close_range((unsigned)theirs + 1, ~0U, 0);
        launcher_run(theirs);
    }
    if (setsockopt(ours, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) < 0)
        return -errno;
    *launcher = (struct gpu_launcher){.fd = steal_fd(&ours), .pid = pid};
    return 0;
}

void gpu_launcher_end(struct gpu_launcher *launcher)
{
    if (launcher->fd < 0)
        return;
    close(launcher->fd);
    while (waitpid(launcher->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    *launcher = GPU_LAUNCHER_NONE;
}

int gpu_launcher_spawn(const struct gpu_launcher *launcher, const char *path, const char *environment, int socket_fd,
                       pid_t *ret_pid)
{
    static struct launcher_request request; /* one thread */
    struct launcher_answer answer;
    ssize_t n;

    snprintf(request.path, sizeof(request.path), "%s", path);
    snprintf(request.environment, sizeof(request.environment), "%s", environment);
    int r = launcher->fd < 0 ? -ECHILD : socket_send(launcher->fd, &request, sizeof(request), &socket_fd, 1, 0);

    if (r < 0)
        return r;
    do
        n = recv(launcher->fd, &answer, sizeof(answer), 0);
    while (n < 0 && errno == EINTR);
    if (n != sizeof(answer))
        return n < 0 ? -errno : -ECHILD;
    if (answer.error < 0) {
        if (answer.pid > 0) /* it has ended, or does so next */
            (void)waitpid(answer.pid, NULL, 0);
        return answer.error;
    }
    *ret_pid = answer.pid;
    return 0;
}
