/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Filters of system calls. There is no way back from one, and libcheck makes calls of its own: what is filtered is a child
 * of each test, which says by its exit status what it saw.
 */
#include "io/sandbox.h"

#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct {
    unsigned n;
    char thread[64], call[64];
    bool is_made;
} said;

static void say(const char *thread, const char *call, bool is_made)
{
    said.n++;
    snprintf(said.thread, sizeof(said.thread), "%s",
             thread); /* a test's call alone raises it: nothing is interrupted */
    snprintf(said.call, sizeof(said.call), "%s", call);
    said.is_made = is_made;
}

#define CHILD_SKIPS 3

/* In a child: what is not so ends it. */
#define MUST(what)                                                                                                     \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            static const char text_[] = "not so: " #what "\n";                                                         \
            (void)!write(STDERR_FILENO, text_, sizeof(text_) - 1);                                                     \
            _exit(EXIT_FAILURE);                                                                                       \
        }                                                                                                              \
    } while (0)

static void enter(enum sandbox_mode mode, enum sandbox_thread thread)
{
    int r = sandbox_init(mode, say);

    if (r == -ENOSYS)
        _exit(CHILD_SKIPS);
    MUST(r == 0);
    MUST(sandbox_enter(thread) == 0);
}

/* Its wait status. */
static int in_child(void (*child)(int i), int i)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        child(i);
        _exit(EXIT_SUCCESS);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == CHILD_SKIPS) {
        printf("SKIP: no filters of system calls here\n");
        return 0;
    }
    return status;
}

/* What a call says, without the C library's opinion. */
static long call(long number, long a, long b, long c)
{
    long r = syscall(number, a, b, c, 0L, 0L, 0L);

    return r < 0 ? -errno : r;
}

static void expect_said(const char *thread, const char *name)
{
    MUST(said.n > 0);
    MUST(strcmp(said.thread, thread) == 0);
    MUST(strcmp(said.call, name) == 0);
}

/* --- What is refused ---------------------------------------------------------------------------------------------- */

static const struct {
    enum sandbox_thread thread;
    const char *who, *name;
    long number, a, b, c;
} refused[] = {
    {SANDBOX_CONTROL, "the control thread", "execve", SYS_execve, 0, 0, 0},
    {SANDBOX_CONTROL, "the control thread", "socket", SYS_socket, AF_INET, SOCK_STREAM, 0},
    {SANDBOX_CONTROL, "the control thread", "mprotect", SYS_mprotect, 0, 0, PROT_READ | PROT_EXEC},
    {SANDBOX_CONTROL, "the control thread", "mmap", SYS_mmap, 0, 4096, PROT_WRITE | PROT_EXEC},
    {SANDBOX_CONTROL, "the control thread", "io_uring_setup", SYS_io_uring_setup, 8, 0, 0},
    {SANDBOX_CONTROL, "the control thread", "kill", SYS_kill, 0, SIGTERM, 0},
    {SANDBOX_CONTROL, "the control thread", "process_vm_writev", SYS_process_vm_writev, 1, 0, 0},
    {SANDBOX_ENGINE, "an engine", "socket", SYS_socket, AF_UNIX, SOCK_STREAM, 0},
    {SANDBOX_ENGINE, "an engine", "connect", SYS_connect, -1, 0, 0},
    {SANDBOX_ENGINE, "an engine", "memfd_create", SYS_memfd_create, 0, 0, 0},
    {SANDBOX_WORKER, "a worker", "io_uring_enter", SYS_io_uring_enter, -1, 0, 0},
    {SANDBOX_WORKER, "a worker", "sendmsg", SYS_sendmsg, -1, 0, 0},
    {SANDBOX_GROWER, "the grower", "accept4", SYS_accept4, -1, 0, 0},
    {SANDBOX_GROWER, "the grower", "move_pages", SYS_move_pages, 1, 0, 0},
    {SANDBOX_GPU, "spillway-gpu", "mount", SYS_mount, 0, 0, 0},
    {SANDBOX_GPU, "spillway-gpu", "unshare", SYS_unshare, 0, 0, 0},
};

static void what_is_not_in_the_list_is_refused(int i)
{
    struct sandbox_stat stat;

    enter(SANDBOX_ON, refused[i].thread);
    MUST(call(refused[i].number, refused[i].a, refused[i].b, refused[i].c) == -EPERM);
    expect_said(refused[i].who, refused[i].name);
    MUST(!said.is_made);
    MUST(call(refused[i].number, refused[i].a, refused[i].b, refused[i].c) == -EPERM);
    MUST(said.n == 1); /* each once */
    sandbox_stat(&stat);
    MUST(stat.refused == 2);
    MUST(stat.threads == 1);
    MUST(strcmp(stat.call, refused[i].name) == 0);
}

/* --- What is not --------------------------------------------------------------------------------------------------- */

static void *thread_main(void *arg)
{
    /* The filter is its creator's. */
    *(long *)arg = call(SYS_socket, AF_INET, SOCK_STREAM, 0);
    return NULL;
}

/* The C library's own road to a thread: clone3(), then clone(). */
static void threads_are_made_and_are_bound(int i)
{
    (void)i;
    pthread_t thread;
    long r = 0;

    enter(SANDBOX_ON, SANDBOX_GROWER);
    MUST(pthread_create(&thread, NULL, thread_main, &r) == 0);
    pthread_join(thread, NULL);
    MUST(r == -EPERM);
    expect_said("the grower", "socket");
    if (!BASE_SANITIZED)
        MUST(fork() == -1);
}

static void every_thread_may_do_what_all_do(int i)
{
    enter(SANDBOX_ON, (enum sandbox_thread)i);
    char *mem = malloc(8 << 20); /* by mmap() */

    memset(mem, 1, 8 << 20);
    free(mem);
    nanosleep(&(struct timespec){.tv_nsec = 1000}, NULL);
    MUST(write(STDERR_FILENO, "", 0) == 0);
    struct timespec now;

    MUST(call(SYS_clock_gettime, CLOCK_MONOTONIC, (long)&now, 0) == 0);
    MUST(said.n == 0);
}

/* A failed assertion still ends the process as one. */
static void abort_aborts(int i)
{
    enter(SANDBOX_ON, (enum sandbox_thread)i);
    abort();
}

static void one_cannot_be_undone(int i)
{
    (void)i;
    enter(SANDBOX_ON, SANDBOX_WORKER);
    if (!BASE_SANITIZED)
        MUST(call(SYS_prctl, PR_SET_SECCOMP, 0, 0) == -EPERM);
    MUST(call(SYS_seccomp, 0, 0, 0) == -EPERM);
}

/* --- Modes --------------------------------------------------------------------------------------------------------- */

/* The result is the call's own, all six arguments arrive, and errno is what it was. */
static void log_lets_it_happen(int i)
{
    (void)i;
    enter(SANDBOX_LOG, SANDBOX_WORKER);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);

    MUST(fd >= 0);
    expect_said("a worker", "socket");
    MUST(said.is_made);
    MUST(call(SYS_getpgrp, 0, 0, 0) == getpgrp());
    MUST(call(SYS_connect, -1, 0, 0) == -EBADF);

    /* Six of them: a page that is executable, at a place and of a file that we name. */
    int memfd = memfd_create("six", 0);

    MUST(ftruncate(memfd, 8192) == 0);
    MUST(pwrite(memfd, "6", 1, 4096) == 1);
    char *at = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *mem = mmap(at, 4096, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, memfd, 4096);

    MUST(mem == at);
    MUST(*mem == '6');
    expect_said("a worker", "mmap");
    pid_t pid = fork();

    if (pid == 0)
        _exit(7);
    int status;

    MUST(waitpid(pid, &status, 0) == pid);
    MUST(WEXITSTATUS(status) == 7);
}

static void off_is_off(int i)
{
    (void)i;
    MUST(sandbox_init(SANDBOX_OFF, say) == 0);
    MUST(sandbox_enter(SANDBOX_WORKER) == 0);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);

    MUST(fd >= 0);
    MUST(said.n == 0);
}

/* A signal that somebody sends is not a call. */
static void a_signal_alone_is_nothing(int i)
{
    (void)i;
    struct sandbox_stat stat;

    enter(SANDBOX_ON, SANDBOX_WORKER);
    raise(SIGSYS);
    sandbox_stat(&stat);
    MUST(stat.refused == 0);
}

/* --- The tests ----------------------------------------------------------------------------------------------------- */

START_TEST(test_refused)
{
    ck_assert_int_eq(in_child(what_is_not_in_the_list_is_refused, _i), 0);
}
END_TEST

START_TEST(test_all_threads)
{
    int status = in_child(abort_aborts, _i);

    ck_assert_int_eq(in_child(every_thread_may_do_what_all_do, _i), 0);
    ck_assert(status == 0 || (WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT)); /* 0: there are no filters */
}
END_TEST

static void (*const others[])(int i) = {threads_are_made_and_are_bound, one_cannot_be_undone, log_lets_it_happen,
                                        off_is_off, a_signal_alone_is_nothing};

START_TEST(test_others)
{
    ck_assert_int_eq(in_child(others[_i], 0), 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("sandbox");
    TCase *tc = tcase_create("sandbox");

    tcase_add_loop_test(tc, test_refused, 0, ARRAY_LEN(refused));
    tcase_add_loop_test(tc, test_all_threads, 0, SANDBOX_THREADS);
    tcase_add_loop_test(tc, test_others, 0, ARRAY_LEN(others));
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);

    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
