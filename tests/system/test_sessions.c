/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many sessions, and their ends: idle ones cost no time, killed ones leave nothing behind, and an ordinary user's
 * daemon works with what little it may lock.
 */
#include <check.h>
#include <errno.h>
#include <glob.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/system/support/daemon.h"
#include "tests/system/support/rawclient.h"

#define BLOCK (256 * 1024)
#define SECTIONS "[tier.dram]\nsize = 64 MiB\n[pool default]\n"
#define IDLE_CLIENTS 5
#define IDLE_SESSIONS 40 /* of each */
#define KILL_ROUNDS 20
#define N_BLOCKS 400
#define ORDINARY_UID 65533

static struct daemon d;
static int ready_fd; /* in a client */

static void setup(void)
{
    daemon_init(&d);
    daemon_format(&d, 192 * DAEMON_MIB);
    daemon_configure(&d, "", SECTIONS);
}

static void teardown(void)
{
    daemon_deinit(&d);
}

/* Runs `work` in a child that dies with us; the child says by one byte that it is ready. */
static pid_t client_start(void (*work)(void), int *ret_ready_fd)
{
    int fds[2];

    ck_assert_int_eq(pipe(fds), 0);
    fflush(NULL);
    pid_t pid = fork();

    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        ready_fd = fds[1];
        work();
        _exit(0);
    }
    close(fds[1]);
    *ret_ready_fd = fds[0];
    return pid;
}

static void say_ready(void)
{
    ck_assert_int_eq(write(ready_fd, "r", 1), 1);
}

static void wait_ready(int fd)
{
    char byte;

    ck_assert_int_eq(read(fd, &byte, 1), 1);
    close(fd);
}

static void client_kill(pid_t pid)
{
    kill(pid, SIGKILL);
    ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
}

/* --- Idle -------------------------------------------------------------------------------------------------------- */

static void idle_work(void)
{
    for (int i = 0; i < IDLE_SESSIONS; i++) {
        spw_session *session = daemon_connect(&d);
        spw_space *space = daemon_space(session, "default", "x", 0, SPW_CLASS_KV, SPW_CACHE);

        ck_assert_int_eq(spw_nop(space), 0);
    }
    say_ready();
    for (;;)
        pause();
}

/* How often its threads went to sleep so far. */
static uint64_t daemon_sleeps(void)
{
    char pattern[64];
    uint64_t n = 0;
    glob_t tasks;

    snprintf(pattern, sizeof(pattern), "/proc/%d/task/*/status", (int)d.pid);
    ck_assert_int_eq(glob(pattern, 0, NULL, &tasks), 0);
    for (size_t i = 0; i < tasks.gl_pathc; i++) {
        FILE *f = fopen(tasks.gl_pathv[i], "re");
        unsigned long long count;
        char line[256];

        while (f && fgets(line, sizeof(line), f))
            if (sscanf(line, "voluntary_ctxt_switches: %llu", &count) == 1)
                n += count;
        if (f)
            (void)fclose(f);
    }
    globfree(&tasks);
    return n;
}

START_TEST(test_idle)
{
    pid_t clients[IDLE_CLIENTS];

    daemon_start(&d);
    for (int i = 0; i < IDLE_CLIENTS; i++) {
        int fd;

        clients[i] = client_start(idle_work, &fd);
        wait_ready(fd);
    }
    spw_session *session = daemon_connect(&d);

    ck_assert_int_eq(daemon_admin_number(session, "status", "sessions"), IDLE_CLIENTS * IDLE_SESSIONS + 1);
    sleep_ms(2500); /* rings go cold, and the engine has its last look at the chunks */
    uint64_t before = daemon_cpu_ticks(&d), sleeps_before = daemon_sleeps();

    sleep_ms(3000);
    uint64_t ticks = daemon_cpu_ticks(&d) - before, sleeps = daemon_sleeps() - sleeps_before;

    ck_assert_msg(ticks <= 10, "%llu ticks in 3 s, without any work", (unsigned long long)ticks);
    ck_assert_msg(sleeps <= 2, "it woke %llu times in 3 s, without any work", (unsigned long long)sleeps);
    for (int i = 0; i < IDLE_CLIENTS; i++)
        client_kill(clients[i]);
    for (int i = 0; i < 250 && daemon_admin_number(session, "status", "sessions") > 1; i++)
        sleep_ms(20);
    ck_assert_int_eq(daemon_admin_number(session, "status", "sessions"), 1);
    spw_close(session);
}
END_TEST

/* --- Killed ------------------------------------------------------------------------------------------------------ */

/* Leases and reservations, and loads from the device that never end being asked for. */
static void busy_work(void)
{
    spw_session *session = daemon_connect(&d);
    spw_space *space = daemon_space(session, "default", "cache", BLOCK, SPW_CLASS_KV, SPW_CACHE);
    struct spw_key keys[64];
    struct spw_view views[64], reserved[32];
    spw_queue *queue;

    ck_assert_int_eq(spw_queue_new(session, space, 0, &queue), 0);
    for (uint64_t i = 0; i < 32; i++)
        keys[i] = block_key((uint64_t)getpid() << 32 | i);
    ck_assert_int_eq(spw_reserve(space, keys, NULL, 32, 0, 5000, reserved), 0);
    for (uint64_t i = 0; i < 32; i++)
        keys[i] = block_key(i * 7 % N_BLOCKS);
    ck_assert_int_eq(spw_acquire(space, keys, 32, 0, 5000, views), 0);
    say_ready();
    for (uint64_t round = 0;; round++) {
        spw_job *job;

        for (uint64_t i = 0; i < 64; i++)
            keys[i] = block_key((round * 64 + i) % N_BLOCKS);
        ck_assert_int_eq(spw_submit_acquire(queue, space, keys, 64, 0, 5000, views, NULL, &job), 0);
        (void)spw_job_wait(job, 10000);
        spw_job_free(job);
        (void)spw_release(space, views, 64, 0);
    }
}

START_TEST(test_killed_in_flight)
{
    daemon_start(&d);
    spw_session *session = daemon_connect(&d);
    spw_space *space = daemon_space(session, "default", "cache", BLOCK, SPW_CLASS_KV, SPW_CACHE);

    for (uint64_t i = 0; i < N_BLOCKS; i++) /* more than memory holds: most of it lies on the device */
        ck_assert_int_eq(block_put(space, i, BLOCK), 0);
    for (int round = 0; round < KILL_ROUNDS; round++) {
        int64_t leased = 1, admitted = 1;
        int fd;
        pid_t pid = client_start(busy_work, &fd);

        wait_ready(fd);
        sleep_ms(round);
        client_kill(pid);
        for (int i = 0; i < 250 && leased + admitted > 0; i++) {
            if (i > 0)
                sleep_ms(20);
            leased = daemon_admin_number(session, "pools", "pools/0/dram/leased_bytes");
            admitted = daemon_admin_number(session, "pools", "pools/0/dram/admitted_bytes");
        }
        ck_assert_msg(leased == 0 && admitted == 0, "round %d: %lld bytes leased, %lld admitted", round,
                      (long long)leased, (long long)admitted);

        /* Somebody else has the memory: nearly all that may be leased at once. */
        struct spw_key keys[180];
        static struct spw_view views[180];

        for (uint64_t i = 0; i < 180; i++)
            keys[i] = block_key((uint64_t)(round + 1) << 40 | i);
        ck_assert_int_eq(spw_reserve(space, keys, NULL, 180, 0, 10000, views), 0);
        for (int i = 0; i < 180; i++)
            ck_assert_msg(views[i].status == 0, "round %d: reservation %d: %d: %s", round, i, views[i].status,
                          spw_limit_text(views[i].detail));
        ck_assert_int_eq(spw_abort(space, views, 180), 0);
    }
    for (uint64_t i = 0; i < N_BLOCKS; i++) {
        int r = block_get(space, i, BLOCK);

        ck_assert_msg(r == 0 || r == -ENOENT, "block %llu: %d", (unsigned long long)i, r);
    }
    spw_close(session);
}
END_TEST

/* --- An ordinary user -------------------------------------------------------------------------------------------- */

static void ordinary_work(void)
{
    struct raw_daemon raw = {.pid = d.pid};
    struct raw_session r;

    if (setgroups(0, NULL) < 0 || setgid(ORDINARY_UID) < 0 || setuid(ORDINARY_UID) < 0)
        _exit(1);
    snprintf(raw.socket, sizeof(raw.socket), "%s", d.socket);
    raw_session_open(&r, &raw);
    ck_assert_uint_eq(r.welcome.features & SPW_FEATURE_DEGRADED_MEMLOCK, SPW_FEATURE_DEGRADED_MEMLOCK);
    ck_assert_uint_eq(r.welcome.features & SPW_FEATURE_NVME, SPW_FEATURE_NVME);
    close(r.fd);

    spw_session *session = daemon_connect(&d);
    spw_space *space = daemon_space(session, "default", "cache", 0, SPW_CLASS_KV, SPW_CACHE);

    for (uint64_t i = 0; i < N_BLOCKS; i++)
        ck_assert_int_eq(block_put(space, i, BLOCK), 0);
    unsigned from_device = 0, tier;

    for (uint64_t i = 0; i < N_BLOCKS; i++) {
        ck_assert_int_eq(block_get_from(space, i, BLOCK, &tier), 0);
        from_device += tier == SPW_TIER_NVME;
    }
    ck_assert_uint_gt(from_device, N_BLOCKS / 4);
    spw_close(session);
    say_ready();
}

START_TEST(test_ordinary_user)
{
    int fd;

    if (geteuid() != 0) {
        fprintf(stderr, "SKIP test_ordinary_user: only root can become another user\n");
        return;
    }
    ck_assert_int_eq(chown(d.dir, ORDINARY_UID, ORDINARY_UID), 0);
    ck_assert_int_eq(chown(d.disk, ORDINARY_UID, ORDINARY_UID), 0);
    ck_assert_int_eq(chmod(d.config, 0644), 0);
    d.uid = ORDINARY_UID;
    d.memlock_bytes = 65536;
    daemon_start(&d);
    ck_assert_msg(daemon_logged(&d, "64 KiB of memory can be locked"), "%s", daemon_log(&d));
    ck_assert(daemon_logged(&d, "ulimit -l"));
    pid_t pid = client_start(ordinary_work, &fd);
    int status = -1;

    wait_ready(fd);
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sessions");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_idle);
    tcase_add_test(tc, test_killed_in_flight);
    tcase_add_test(tc, test_ordinary_user);
    suite_add_tcase(suite, tc);
    return suite_main(suite);
}
