/* SPDX-License-Identifier: Apache-2.0 */
/* A real daemon over a device file: more objects than memory, a restart, refusals in words. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/system/support/rawclient.h"

#define OBJECT_BYTES 262144
#define OBJECTS 800 /* 200 MiB over 64 MiB of memory */

static struct raw_daemon d;

static const char *sections(void)
{
    static char text[512];

    snprintf(text, sizeof(text),
             "[tier.dram]\nsize = 64 MiB\n[pool default]\nusers = %u\n[device one]\npath = %s/device\n", getuid(),
             d.dir);
    return text;
}

static void setup(void)
{
    raw_daemon_folder(&d);
    raw_daemon_format(&d, "device", 512, 1);
}

static void teardown(void)
{
    raw_daemon_end(&d);
}

static void get_all(struct raw_session *s, uint64_t from, uint64_t to)
{
    for (uint64_t i = from; i < to; i++)
        ck_assert_int_eq(raw_get(s, i, OBJECT_BYTES, (uint8_t)(i * 7)), 0);
}

START_TEST(test_paging_and_restart)
{
    struct raw_session s;

    raw_daemon_start(&d, "", sections());
    raw_session_full(&s, &d, "default", 1, OBJECT_BYTES);
    ck_assert_uint_eq(s.welcome.features & SPW_FEATURE_NVME, SPW_FEATURE_NVME);
    for (uint64_t i = 0; i < OBJECTS; i++)
        ck_assert_int_eq(raw_put(&s, i, OBJECT_BYTES, (uint8_t)(i * 7)), 0);
    get_all(&s, 0, OBJECTS);
    ck_assert_uint_gt(raw_admin_number(&d, "pools", "hits_nvme"), OBJECTS / 4);
    raw_session_close(&s);

    ck_assert_int_eq(raw_daemon_stop(&d), 0);
    raw_daemon_restart(&d);
    raw_session_full(&s, &d, "default", 1, OBJECT_BYTES);
    get_all(&s, 0, OBJECTS);
    raw_session_close(&s);
}
END_TEST

/* Durable and synced: a SIGKILL loses nothing. */
START_TEST(test_sync_and_kill)
{
    struct raw_session s;

    raw_daemon_start(&d, "", sections());
    raw_session_open(&s, &d);
    ck_assert_int_eq(raw_pool_open(&s, "default"), 0);
    ck_assert_int_eq(raw_space_open(&s, 3, OBJECT_BYTES, SPW_CLASS_WEIGHTS, SPW_DURABLE), 0);
    ck_assert_int_eq(raw_ring_new(&s, &s.ring, 64, RAW_SCRATCH_BYTES), 0);
    for (uint64_t i = 0; i < 20; i++)
        ck_assert_int_eq(raw_put(&s, i, OBJECT_BYTES, (uint8_t)(i * 7)), 0);
    struct spw_sqe sqe = raw_sqe(&s, SPW_OP_SYNC, 10);

    for (uint64_t i = 0; i < 10; i++)
        raw_items(&s.ring)[i] = raw_item(i, 0);
    ck_assert_int_eq(raw_call(&s.ring, &sqe).status, 0);
    sqe = raw_sqe(&s, SPW_OP_SYNC, 0); /* the space */
    sqe.results = 0;
    ck_assert_int_eq(raw_call(&s.ring, &sqe).status, 0);
    kill(d.pid, SIGKILL);
    waitpid(d.pid, NULL, 0);
    ck_assert(raw_is_closed(s.fd, 5000));
    raw_session_close(&s);

    raw_daemon_restart(&d);
    raw_session_open(&s, &d);
    ck_assert_int_eq(raw_pool_open(&s, "default"), 0);
    ck_assert_int_eq(raw_space_open(&s, 3, OBJECT_BYTES, SPW_CLASS_WEIGHTS, SPW_DURABLE), 0);
    ck_assert_int_eq(raw_ring_new(&s, &s.ring, 64, RAW_SCRATCH_BYTES), 0);
    get_all(&s, 0, 20);
    raw_session_close(&s);
}
END_TEST

/* A client that dies with reads in flight costs nothing. */
START_TEST(test_killed_during_io)
{
    struct raw_session s;

    raw_daemon_start(&d, "", sections());
    raw_session_full(&s, &d, "default", 1, OBJECT_BYTES);
    for (uint64_t i = 0; i < OBJECTS; i++)
        ck_assert_int_eq(raw_put(&s, i, OBJECT_BYTES, (uint8_t)(i * 7)), 0);
    for (int round = 0; round < 20; round++) {
        pid_t pid = fork();

        if (pid == 0) {
            struct raw_session mine;

            raw_session_full(&mine, &d, "default", 1, OBJECT_BYTES);
            struct spw_sqe sqe = raw_sqe(&mine, SPW_OP_ACQUIRE, 100);

            for (uint64_t i = 0; i < 100; i++)
                raw_items(&mine.ring)[i] = raw_item((uint64_t)round * 37 + i, 0);
            raw_submit(&mine.ring, &sqe);
            kill(getpid(), SIGKILL);
        }
        waitpid(pid, NULL, 0);
    }
    ck_assert(raw_admin_becomes(&d, "pools", "leased_bytes", 0));
    ck_assert(raw_admin_becomes(&d, "status", "peers", 1));
    ck_assert(raw_admin_becomes(&d, "status", "waits", 0));
    get_all(&s, 0, OBJECTS);
    raw_session_close(&s);
}
END_TEST

/* Two engines with a partition each: every space is found again where it was, and handles do not cross. */
START_TEST(test_two_engines)
{
    struct raw_session s;
    uint32_t engines = 0, handles[2] = {0};

    raw_daemon_format(&d, "two", 256, 2);
    char text[512];

    snprintf(text, sizeof(text),
             "[tier.dram]\nsize = 128 MiB\n[pool default]\nusers = %u\n[device two]\npath = %s/two\n", getuid(), d.dir);
    raw_daemon_start(&d, "engines = 2", text);
    for (int run = 0; run < 2; run++) {
        for (uint8_t digest = 1; digest <= 6; digest++) {
            raw_session_full(&s, &d, "default", digest, OBJECT_BYTES);
            engines |= 1U << s.space.engine;
            handles[s.space.engine] = s.space.space;
            for (uint64_t i = 0; i < 20 && run == 0; i++)
                ck_assert_int_eq(raw_put(&s, i, OBJECT_BYTES, (uint8_t)(digest + i * 7)), 0);
            for (uint64_t i = 0; i < 20; i++)
                ck_assert_int_eq(raw_get(&s, i, OBJECT_BYTES, (uint8_t)(digest + i * 7)), 0);
            struct spw_sqe sqe = raw_sqe(&s, SPW_OP_TOUCH, 1);

            raw_items(&s.ring)[0] = raw_item(1, 0);
            sqe.space ^= 1U << 26;
            ck_assert_int_eq(raw_call(&s.ring, &sqe).status, -EXDEV);
            raw_session_close(&s);
        }
        ck_assert_uint_eq(engines, 3);
        if (run == 0) {
            ck_assert_int_eq(raw_daemon_stop(&d), 0);
            raw_daemon_restart(&d);
        }
    }
    ck_assert_uint_ne(handles[0], handles[1]);
}
END_TEST

/* Starts spillwayd on the folder's configuration and waits for its end: its status. */
static int run_to_end(void)
{
    char command[512];
    const char *bin = getenv("SPILLWAY_BIN");

    snprintf(command, sizeof(command), "%s/spillwayd --user --config %s/conf --socket %s/socket2 >>%s/log 2>&1",
             bin ? bin : ".", d.dir, d.dir, d.dir);
    int status = system(command);

    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

START_TEST(test_refusals)
{
    char path[128];

    raw_daemon_start(&d, "", sections());
    ck_assert_int_eq(run_to_end(), 1); /* two daemons on one device */
    ck_assert(raw_daemon_logged(&d, "[device one]"));
    ck_assert_int_eq(raw_daemon_stop(&d), 0);

    snprintf(path, sizeof(path), "%s/device", d.dir);
    ck_assert_int_eq(truncate(path, 100 << 20), 0);
    ck_assert_int_eq(run_to_end(), 1);
    ck_assert(raw_daemon_logged(&d, "smaller than when it was formatted"));

    int fd = open(path, O_WRONLY);
    static char zeros[1 << 20];

    for (int i = 0; i < 100; i++)
        ck_assert_int_eq(write(fd, zeros, sizeof(zeros)), sizeof(zeros));
    close(fd);
    ck_assert_int_eq(run_to_end(), 1);
    ck_assert(raw_daemon_logged(&d, "is not formatted for Spillway: spillctl device format"));
    unlink(path);
    ck_assert_int_eq(run_to_end(), 1);
    ck_assert(raw_daemon_logged(&d, "does not exist: spillctl device format"));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("daemon_device");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 200);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_paging_and_restart);
    tcase_add_test(tc, test_sync_and_kill);
    tcase_add_test(tc, test_killed_during_io);
    tcase_add_test(tc, test_two_engines);
    tcase_add_test(tc, test_refusals);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
