/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process that starts helpers gets through calls of its own that fail: there cannot be another one. This program stands
 * before some functions of the C library, and lets them fail in the launcher, and in what it makes, as often as shared
 * memory says.
 */
#include "daemon/gpu_launcher.h"

#include <check.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "include/base/atomic.h"
#include "include/base/base.h"

#define HELPER "/bin/cat" /* ends when its input does, which is nothing */

static struct {
    pid_t test;
    uint32_t recvmsg, sendmsg, putenv, close_range; /* how many fail from now on */
} * fails;

static struct gpu_launcher launcher;

static bool fails_now(uint32_t *n)
{
    uint32_t left = getpid() != fails->test ? load_relaxed(n) : 0;

    if (left > 0) {
        store_relaxed(n, left - 1);
        errno = ENOMEM;
    }
    return left > 0;
}

/* The launcher waits here for its next request: whether that one fails is decided when it comes. */
ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    struct pollfd pfd = {.fd = fd, .events = POLLIN};

    (void)poll(&pfd, 1, -1);
    return fails && fails_now(&fails->recvmsg) ? -1 : syscall(SYS_recvmsg, fd, message, flags);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    return fails && fails_now(&fails->sendmsg) ? -1 : syscall(SYS_sendmsg, fd, message, flags);
}

int close_range(unsigned fd, unsigned max_fd, int flags)
{
    return fails && fails_now(&fails->close_range) ? -1 : (int)syscall(SYS_close_range, fd, max_fd, flags);
}

/* One variable, which is never taken away. */
int putenv(char *string)
{
    char *value = strchr(string, '=');
    char name[64];

    if (fails && fails_now(&fails->putenv))
        return -1;
    snprintf(name, sizeof(name), "%.*s", (int)(value - string), string);
    return setenv(name, value + 1, 1);
}

static void setup(void)
{
    fails = mmap(NULL, sizeof(*fails), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(fails, MAP_FAILED);
    fails->test = getpid();
    ck_assert_int_eq(gpu_launcher_start(&launcher), 0);
}

static void teardown(void)
{
    gpu_launcher_end(&launcher);
    ck_assert_int_eq(waitpid(-1, NULL, WNOHANG), -1); /* nobody was left behind */
    munmap(fails, sizeof(*fails));
}

/* What gpu_launcher_spawn() says of that program. A helper that there is gets to its end. */
static int spawn(const char *path)
{
    int sockets[2], status = -1;
    pid_t pid = 0;

    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
    int r = gpu_launcher_spawn(&launcher, path, "NAME=value", sockets[1], &pid);

    close(sockets[1]);
    close(sockets[0]);
    if (r == 0) {
        ck_assert_int_gt(pid, 0);
        (void)kill(pid, SIGKILL);
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    }
    return r;
}

START_TEST(a_program_that_is_not_there)
{
    ck_assert_int_eq(spawn("/nowhere/spillway-gpu"), -ENOENT);
    ck_assert_int_eq(spawn(HELPER), 0);
}
END_TEST

START_TEST(a_call_that_fails_once_costs_nothing)
{
    store_relaxed(&fails->recvmsg, 1);
    ck_assert_int_eq(spawn(HELPER), 0);
    ck_assert_uint_eq(load_relaxed(&fails->recvmsg), 0);
    store_relaxed(&fails->sendmsg, 1);
    ck_assert_int_eq(spawn(HELPER), 0);
    ck_assert_uint_eq(load_relaxed(&fails->sendmsg), 0);
}
END_TEST

/* It is told of, and the next one is served: with its own answer, not with the one before's. */
START_TEST(a_call_that_fails_for_long)
{
    int r;

    store_relaxed(&fails->recvmsg, 200);
    ck_assert_int_eq(spawn(HELPER), -ENOMEM);
    while ((r = spawn("/nowhere/spillway-gpu")) == -ENOMEM)
        ;
    ck_assert_int_eq(r, -ENOENT);
    ck_assert_int_eq(spawn(HELPER), 0);
    ck_assert_int_eq(spawn(HELPER), 0);
}
END_TEST

/* As in a container that forbids the call: the end of the daemon's socket that it has inherited must not keep it alive. */
START_TEST(a_launcher_that_cannot_close_what_it_inherited_ends)
{
    gpu_launcher_end(&launcher);
    store_relaxed(&fails->close_range, 2);
    ck_assert_int_eq(gpu_launcher_start(&launcher), 0);
    ck_assert_int_eq(spawn(HELPER), 0);
    ck_assert_uint_eq(load_relaxed(&fails->close_range), 0);
}
END_TEST

/* It would run without its filter. */
START_TEST(a_helper_without_its_environment_does_not_run)
{
    store_relaxed(&fails->putenv, 1);
    ck_assert_int_eq(spawn(HELPER), -ENOMEM);
    ck_assert_uint_eq(load_relaxed(&fails->putenv), 0);
    ck_assert_int_eq(spawn(HELPER), 0);
}
END_TEST

/* Whoever asked has given up, and the request waits: it must not come to life. */
START_TEST(given_up_requests_are_not_carried_out)
{
    for (int i = 0; i < 3; i++) {
        store_relaxed(&fails->recvmsg, 60);
        ck_assert_int_eq(spawn(HELPER), -ENOMEM);
        while (load_relaxed(&fails->recvmsg) > 0)
            usleep(1000);
    }
    ck_assert_int_eq(spawn(HELPER), 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gpu_launcher");
    TCase *tc = tcase_create("all");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, a_program_that_is_not_there);
    tcase_add_test(tc, a_call_that_fails_once_costs_nothing);
    tcase_add_test(tc, a_call_that_fails_for_long);
    tcase_add_test(tc, a_launcher_that_cannot_close_what_it_inherited_ends);
    tcase_add_test(tc, a_helper_without_its_environment_does_not_run);
    tcase_add_test(tc, given_up_requests_are_not_carried_out);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);

    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
