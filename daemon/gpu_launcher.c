/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the launcher, on both sides of its socket.
 *
 * A helper is made with CLONE_PARENT, so that it is the daemon's child, who waits for it. Whether the program could be run is
 * told through a pipe that closes when it is. The launcher ends when the daemon's end of its socket does, by no signal that
 * is meant for the daemon, and by no call that fails: there cannot be another one. A request that was given up, and is
 * answered later all the same, is known by its number.
 */
#include "daemon/gpu_launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "include/base/cleanup.h"
#include "include/base/socket.h"
#include "io/gpu_wire.h"

/* With the helper's socket. */
struct launcher_request {
    uint64_t number; /* from 1 on */
    char path[PATH_MAX];
    char environment[GPU_LAUNCHER_ENV_BYTES];
};

struct launcher_answer {
    uint64_t number; /* of the request; 0: it cannot be received, and is refused without having been seen */
    int32_t pid;     /* 0: there is none */
    int32_t error;
};

#define ANSWER_S 10 /* of a process that is ours: it can only be stopped, or starved */
#define RETRY_NS 1000000
#define TRIES_SILENT 20 /* what fails for longer is told */

/* --- The launcher ------------------------------------------------------------------------------------------------ */

static void nap(void)
{
    (void)nanosleep(&(struct timespec){.tv_nsec = RETRY_NS}, NULL);
}

static bool is_end(int r)
{
    return r == -EPIPE || r == -ECONNRESET;
}

/* As long as there is somebody to hear it: an answer that is late is recognised by its number. */
static int answer_send(int fd, const struct launcher_answer *answer)
{
    int r;

    while ((r = socket_send(fd, answer, sizeof(*answer), NULL, 0, 0)) < 0 && !is_end(r))
        nap();
    return r;
}

/* 1 with a request, whose socket is -1 if it did not come along; 0 at the end; a negative errno: it is there, but cannot be
 * had. */
static int request_receive(int fd, struct launcher_request *ret_request, int *ret_socket_fd)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = ret_request, .iov_len = sizeof(*ret_request)};
    struct msghdr header = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
    ssize_t n = recvmsg(fd, &header, MSG_CMSG_CLOEXEC);

    if (n < 0)
        return is_end(-errno) ? 0 : -errno;
    *ret_socket_fd = -1;
    (void)socket_take_fds(&header, ret_socket_fd, 1);
    assert(n == 0 || n == sizeof(*ret_request)); /* messages come whole, or not */
    return n > 0;
}

/* The same, but what fails is tried again, for good: without this process there is no GPU any more. */
static int request_wait(int fd, struct launcher_request *ret_request, int *ret_socket_fd)
{
    int r;

    for (unsigned tries = 1; (r = request_receive(fd, ret_request, ret_socket_fd)) < 0; tries++) {
        const struct launcher_answer refusal = {.error = r};

        if (tries % TRIES_SILENT == 0 && answer_send(fd, &refusal) < 0)
            return 0;
        nap();
    }
    return r;
}

/* Who asked was told that it failed, and has closed the other end. */
static bool is_forgotten(int socket_fd)
{
    struct pollfd pfd = {.fd = socket_fd};

    return poll(&pfd, 1, 0) > 0 && (pfd.revents & POLLHUP);
}

/* Nothing of this may be missing: without its environment a helper would run without its filter. */
static int helper_prepare(struct launcher_request *request, int socket_fd)
{
    int r = socket_fd == GPU_WIRE_FD ? fcntl(socket_fd, F_SETFD, 0) : dup2(socket_fd, GPU_WIRE_FD);

    if (r >= 0 && request->environment[0])
        r = putenv(request->environment) == 0 ? 0 : -1;
    return r < 0 ? -errno : 0;
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
    int error = -helper_prepare(request, socket_fd);

    if (error == 0) {
        (void)execve(request->path, argv, environ);
        error = errno;
    }
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
    int socket_fd = -1;

    while (request_wait(fd, &request, &socket_fd) > 0) {
        struct launcher_answer answer = {.error = -EMFILE};

        if (socket_fd >= 0 && is_forgotten(socket_fd))
            answer.error = -ECANCELED;
        else if (socket_fd >= 0)
            answer = helper_start(&request, socket_fd);
        answer.number = request.number;
        if (socket_fd >= 0)
            close(socket_fd);
        if (answer_send(fd, &answer) < 0)
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
        /* By itself: with it here there would be no end, and old kernels and containers refuse what follows. */
        close(ours);
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

/* Of a request that we had given up: who was started for it has nobody to talk to. */
static void answer_late(const struct launcher_answer *answer)
{
    if (answer->pid > 0) {
        (void)kill(answer->pid, SIGKILL);
        (void)waitpid(answer->pid, NULL, 0);
    }
}

/* A negative errno: there is none, or not yet. Flags are recv()'s. */
static int answer_receive(int fd, uint64_t number, int flags, struct launcher_answer *ret_answer)
{
    for (;;) {
        ssize_t n = recv(fd, ret_answer, sizeof(*ret_answer), flags);

        if (n < 0 && errno == EINTR)
            continue;
        if (n != sizeof(*ret_answer))
            return n < 0 ? -errno : -ECHILD;
        if (number != 0 && (ret_answer->number == number || ret_answer->number == 0))
            return 0;
        answer_late(ret_answer);
    }
}

int gpu_launcher_spawn(struct gpu_launcher *launcher, const char *path, const char *environment, int socket_fd,
                       pid_t *ret_pid)
{
    static struct launcher_request request; /* one thread */
    struct launcher_answer answer;

    snprintf(request.path, sizeof(request.path), "%s", path);
    snprintf(request.environment, sizeof(request.environment), "%s", environment);
    request.number = ++launcher->n_requests;
    (void)answer_receive(launcher->fd, 0, MSG_DONTWAIT, &answer); /* what comes late */
    int r = launcher->fd < 0 ? -ECHILD : socket_send(launcher->fd, &request, sizeof(request), &socket_fd, 1, 0);

    if (r == 0)
        r = answer_receive(launcher->fd, request.number, 0, &answer);
    if (r < 0)
        return r;
    if (answer.error < 0) {
        if (answer.pid > 0) /* it has ended, or does so next */
            (void)waitpid(answer.pid, NULL, 0);
        return answer.error;
    }
    *ret_pid = answer.pid;
    return 0;
}
