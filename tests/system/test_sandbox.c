/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the daemon gives up once it serves: its user, its capabilities, the system calls that a thread has no use for. That
 * a whole test run needs no call that is not in a list is what the lists are made of; here one is made in a thread of the
 * daemon's that does not want it, as somebody would who has taken it over.
 */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "include/base/base.h"
#include "tests/system/support/daemon.h"

#define SECTIONS "[tier.dram]\nsize = 128 MiB\n[pool default]\nusers = any\n"
#define ORDINARY "daemon" /* a user that every system has */

static struct daemon d;

static void setup(void)
{
    daemon_init(&d);
    d.system_mode = true;
}

static void teardown(void)
{
    daemon_deinit(&d);
}

static void start(const char *keys)
{
    daemon_configure(&d, keys, SECTIONS);
    daemon_start(&d);
}

/* A line of a task's status, as a number in that base; -1: there is none. */
static long long task_number(pid_t pid, const char *task, const char *name, int base)
{
    char path[300], line[256];
    long long value = -1;

    snprintf(path, sizeof(path), "/proc/%d/task/%s/status", pid, task);
    FILE *f = fopen(path, "r");

    while (f && fgets(line, sizeof(line), f))
        if (strncmp(line, name, strlen(name)) == 0)
            value = strtoll(line + strlen(name), NULL, base);
    if (f)
        fclose(f);
    return value;
}

/* As the kernel says: to ask for another user's limits takes a capability. */
static bool no_core(void)
{
    char path[64], line[256];
    unsigned long soft = 1, hard = 1;

    snprintf(path, sizeof(path), "/proc/%d/limits", d.pid);
    FILE *f = fopen(path, "r");

    while (f && fgets(line, sizeof(line), f))
        (void)sscanf(line, "Max core file size %lu %lu", &soft, &hard);
    if (f)
        fclose(f);
    return soft == 0 && hard == 0;
}

/* The thread of that name, or the process's first one. */
static pid_t thread_find(const char *name)
{
    char path[300], comm[32];
    pid_t found = 0;

    snprintf(path, sizeof(path), "/proc/%d/task", d.pid);
    DIR *dir = opendir(path);

    ck_assert_ptr_nonnull(dir);
    // cppcheck-suppress readdirCalled; nobody else reads this stream
    for (const struct dirent *e; (e = readdir(dir)) != NULL;) {
        snprintf(path, sizeof(path), "/proc/%d/task/%s/comm", d.pid, e->d_name);
        FILE *f = e->d_name[0] == '.' ? NULL : fopen(path, "r");

        if (f && fgets(comm, sizeof(comm), f) && strncmp(comm, name, strlen(name)) == 0)
            found = atoi(e->d_name);
        if (f)
            fclose(f);
    }
    closedir(dir);
    ck_assert_int_gt(found, 0);
    return found;
}

/* How many of the process's threads have one. */
static unsigned threads_filtered(unsigned *ret_n)
{
    unsigned n_filtered = 0;
    char path[300];

    *ret_n = 0;
    snprintf(path, sizeof(path), "/proc/%d/task", d.pid);
    DIR *dir = opendir(path);

    ck_assert_ptr_nonnull(dir);
    // cppcheck-suppress readdirCalled; nobody else reads this stream
    for (const struct dirent *e; (e = readdir(dir)) != NULL;) {
        if (e->d_name[0] == '.')
            continue;
        (*ret_n)++;
        n_filtered += task_number(d.pid, e->d_name, "Seccomp:", 10) == 2;
    }
    closedir(dir);
    return n_filtered;
}

/* Root's daemon serves only pools of one user; whoever we are, it answers. */
static void it_serves(void)
{
    ck_assert_int_ge(daemon_status_number(&d, "seccomp_threads"), 0);
    ck_assert(daemon_lives(&d));
}

static bool is_root(const char *what)
{
    if (geteuid() != 0)
        printf("SKIP: %s (not root)\n", what);
    return geteuid() == 0;
}

/* --- Who it is ----------------------------------------------------------------------------------------------------- */

START_TEST(it_becomes_an_ordinary_user)
{
    // cppcheck-suppress getpwnamCalled; one thread
    const struct passwd *user = getpwnam(ORDINARY);
    char self[16];

    if (!is_root("a daemon that becomes another user"))
        return;
    ck_assert_ptr_nonnull(user);
    ck_assert_int_eq(chown(d.dir, user->pw_uid, user->pw_gid), 0);
    start("user = " ORDINARY);
    snprintf(self, sizeof(self), "%d", d.pid);
    ck_assert_int_eq(task_number(d.pid, self, "Uid:", 10), user->pw_uid);
    ck_assert_int_eq(task_number(d.pid, self, "Gid:", 10), user->pw_gid);
    ck_assert_int_eq(task_number(d.pid, self, "CapEff:", 16), 1 << 14); /* CAP_IPC_LOCK */
    ck_assert_int_eq(task_number(d.pid, self, "CapPrm:", 16), 1 << 14);
    ck_assert_int_eq(task_number(d.pid, self, "CapInh:", 16), 0);
    ck_assert_int_eq(task_number(d.pid, self, "CapBnd:", 16), 0);
    ck_assert_int_eq(task_number(d.pid, self, "CapAmb:", 16), 0);
    ck_assert_int_eq(task_number(d.pid, self, "NoNewPrivs:", 10), 1);
    ck_assert(no_core());
    ck_assert_int_eq(daemon_status_number(&d, "uid"), user->pw_uid);
    ck_assert_int_eq(daemon_status_number(&d, "engines/0/degraded_memlock"), 0); /* it may lock what it likes */
}
END_TEST

START_TEST(a_user_that_is_not_there)
{
    daemon_configure(&d, "user = nobody-of-that-name", SECTIONS);
    ck_assert_int_eq(daemon_start_refused(&d), 1);
    ck_assert(daemon_logged(&d, "[daemon] user: there is no user 'nobody-of-that-name'"));
}
END_TEST

START_TEST(only_root_can_become_another)
{
    if (!is_root("an ordinary user's daemon that should become another"))
        return;
    d.uid = 65533;
    ck_assert_int_eq(chmod(d.dir, 0777), 0);
    daemon_configure(&d, "user = " ORDINARY, SECTIONS);
    ck_assert_int_eq(daemon_start_refused(&d), 1);
    ck_assert(daemon_logged(&d, "only root can become '" ORDINARY "'"));
}
END_TEST

/* Nobody of its own uid looks into its memory. */
START_TEST(its_memory_is_its_own)
{
    char path[64];
    struct stat st;

    if (BASE_SANITIZED) {
        printf("SKIP: a process that cannot be looked into (a sanitizer has to)\n");
        return;
    }
    start("");
    snprintf(path, sizeof(path), "/proc/%d/mem", d.pid);
    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_uint_eq(st.st_uid, 0);
    if (is_root("whose process it is")) {
        daemon_stop(&d);
        ck_assert_int_eq(chmod(d.dir, 0777), 0);
        start("user = " ORDINARY);
        snprintf(path, sizeof(path), "/proc/%d/mem", d.pid);
        ck_assert_int_eq(stat(path, &st), 0);
        ck_assert_uint_eq(st.st_uid, 0); /* root's, though the process is another's */
    }
}
END_TEST

/* --- System calls -------------------------------------------------------------------------------------------------- */

START_TEST(every_thread_has_a_filter)
{
    unsigned n, n_filtered;

    start("workers = 3");
    n_filtered = threads_filtered(&n);
    ck_assert_uint_eq(n, 6); /* control, an engine, three workers, the grower */
    ck_assert_uint_eq(n_filtered, n);
    ck_assert_int_eq(daemon_status_number(&d, "seccomp_threads"), n);
    ck_assert_int_eq(daemon_status_number(&d, "seccomp_refused"), 0);
}
END_TEST

START_TEST(off_is_off)
{
    start("seccomp = off");
    ck_assert_int_eq(daemon_status_number(&d, "seccomp_threads"), 0);
}
END_TEST

#ifdef __x86_64__

static int wait_stopped(pid_t thread)
{
    int status;

    ck_assert_int_eq(waitpid(thread, &status, __WALL), thread);
    ck_assert(WIFSTOPPED(status));
    return WSTOPSIG(status);
}

static char thread_state(pid_t thread)
{
    char path[64], line[512] = "";

    snprintf(path, sizeof(path), "/proc/%d/stat", thread);
    FILE *f = fopen(path, "re");
    ck_assert_ptr_nonnull(f);
    ck_assert_ptr_nonnull(fgets(line, sizeof(line), f));
    (void)fclose(f);
    const char *name_end = strrchr(line, ')');
    return name_end && name_end[1] ? name_end[2] : '?';
}

/* It has nothing to do any more: else it might be in the handler for a call of its own. */
static void wait_asleep(pid_t thread)
{
    for (int looks = 0, asleep = 0; asleep < 10; looks++) {
        ck_assert_int_lt(looks, 3000);
        asleep = thread_state(thread) == 'S' ? asleep + 1 : 0;
        usleep(10000);
    }
}

/* Makes a stopped thread make that call, with zeros for arguments, and go on as if it had not. Returns what the call did. */
static long call_in(pid_t thread, long number)
{
    struct user_regs_struct saved, regs;
    int signal_number = 0;
    bool returns = false;

    wait_asleep(thread);
    ck_assert_int_eq(ptrace(PTRACE_SEIZE, thread, NULL, PTRACE_O_TRACESYSGOOD), 0);
    ck_assert_int_eq(ptrace(PTRACE_INTERRUPT, thread, NULL, NULL), 0);
    (void)wait_stopped(thread);
    ck_assert_int_eq(ptrace(PTRACE_GETREGS, thread, NULL, &saved), 0);
    regs = saved;
    regs.rip -= 2; /* it sleeps in a call: the instruction before */
    regs.rax = (unsigned long)number;
    regs.orig_rax = ~0UL;
    regs.rdi = regs.rsi = regs.rdx = regs.r10 = regs.r8 = regs.r9 = 0;
    ck_assert_int_eq(ptrace(PTRACE_SETREGS, thread, NULL, &regs), 0);
    /* The filter raises SIGSYS; the handler says so, and returns to behind the call. */
    for (;;) {
        ck_assert_int_eq(ptrace(PTRACE_SYSCALL, thread, NULL, (void *)(intptr_t)signal_number), 0);
        int stop = wait_stopped(thread);

        signal_number = stop == (SIGTRAP | 0x80) || stop == SIGTRAP ? 0 : stop;
        ck_assert_int_eq(ptrace(PTRACE_GETREGS, thread, NULL, &regs), 0);
        if (stop != (SIGTRAP | 0x80))
            continue;
        if (returns)
            break;
        returns = regs.orig_rax == SYS_rt_sigreturn;
    }
    ck_assert_int_eq(ptrace(PTRACE_SETREGS, thread, NULL, &saved), 0);
    ck_assert_int_eq(ptrace(PTRACE_DETACH, thread, NULL, NULL), 0);
    return (long)regs.rax;
}

static const struct {
    const char *thread, *name;
    long number;
} intruders[] = {
    {"spillwayd", "execve", SYS_execve}, /* one of those without a name: a worker, or the grower */
    {"engine-0", "socket", SYS_socket},
    {"engine-0", "execve", SYS_execve},
};

START_TEST(a_thread_that_was_taken_over)
{
    char words[128];

    if (!is_root("a call made in a thread of the daemon"))
        return;
    d.is_taken_over = true;
    start("spin_us = 0");
    pid_t thread = thread_find(intruders[_i].thread);

    ck_assert_int_eq(call_in(thread, intruders[_i].number), -EPERM);
    snprintf(words, sizeof(words), "was refused the system call %s", intruders[_i].name);
    ck_assert(daemon_logged(&d, words));
    ck_assert(daemon_logged(&d, "[daemon] seccomp = log"));
    it_serves();
    ck_assert_int_eq(daemon_status_number(&d, "seccomp_refused"), 1);
}
END_TEST

START_TEST(log_lets_it_pass)
{
    if (!is_root("a call made in a thread of the daemon"))
        return;
    start("spin_us = 0\nseccomp = log");
    pid_t thread = thread_find("engine-0");

    ck_assert_int_eq(call_in(thread, SYS_getpgrp), getpgid(d.pid));
    ck_assert(daemon_logged(&d, "an engine made the system call getpgrp"));
    it_serves();
}
END_TEST

#endif

int main(void)
{
    Suite *s = suite_create("sandbox");
    TCase *tc = tcase_create("all");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, it_becomes_an_ordinary_user);
    tcase_add_test(tc, a_user_that_is_not_there);
    tcase_add_test(tc, only_root_can_become_another);
    tcase_add_test(tc, its_memory_is_its_own);
    tcase_add_test(tc, every_thread_has_a_filter);
    tcase_add_test(tc, off_is_off);
#ifdef __x86_64__
    tcase_add_loop_test(tc, a_thread_that_was_taken_over, 0, ARRAY_LEN(intruders));
    tcase_add_test(tc, log_lets_it_pass);
#endif
    suite_add_tcase(s, tc);
    return suite_main(s);
}
