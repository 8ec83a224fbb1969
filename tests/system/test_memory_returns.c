/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that somebody else still has: what a killed daemon had pinned is free only when the kernel is through with its
 * io_uring, some time after the process is gone. And memory that is refused for good: who looks must see it.
 *
 * Hugepages stand for the memory of a whole machine: they are set aside, so few of them are enough to run out.
 */
#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "tests/system/support/daemon.h"

#define N_PAGES 128UL
#define POOL_BYTES ((int64_t)(N_PAGES * 2 * DAEMON_MIB))
#define KNOB "/proc/sys/vm/nr_hugepages"
#define FREE "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"
#define REQUIRED "[tier.dram]\nsize = 256 MiB\nhugepages = require\n[pool default]\n"
#define REQUIRED_ON_DEMAND "[tier.dram]\nsize = 256 MiB\nhugepages = require\npretouch = no\n[pool default]\n"
#define ROUNDS 5

static struct daemon d;
static int lock_fd;
static unsigned long n_before;

static unsigned long number_read(const char *path)
{
    char line[64] = "0";
    FILE *f = fopen(path, "r");

    if (f) {
        (void)!fgets(line, sizeof(line), f);
        fclose(f);
    }
    return strtoul(line, NULL, 10);
}

static bool hugepages_set(unsigned long n)
{
    FILE *f = fopen(KNOB, "w");
    bool ok = f && fprintf(f, "%lu\n", n) > 0;

    if (f)
        ok = fclose(f) == 0 && ok;
    return ok;
}

static void setup(void)
{
    daemon_init(&d);
}

static void teardown(void)
{
    daemon_deinit(&d);
}

/* In the process that survives a test that fails. */
static void knob_take(void)
{
    lock_fd = open(KNOB, O_RDONLY | O_CLOEXEC); /* other tests change it, too */
    ck_assert_int_eq(flock(lock_fd, LOCK_EX), 0);
    n_before = number_read(KNOB);
}

static void knob_give_back(void)
{
    (void)hugepages_set(n_before);
    close(lock_fd);
}

/* So many are free; false: they cannot be had here. */
static bool hugepages_free(unsigned long n)
{
    unsigned long n_used = number_read(KNOB) - number_read(FREE);

    if (hugepages_set(n_used + n) && number_read(FREE) == n)
        return true;
    printf("SKIP: %lu hugepages (none could be had)\n", n);
    return false;
}

START_TEST(test_a_killed_daemons_memory_is_waited_for)
{
    daemon_configure(&d, "", REQUIRED);
    if (!hugepages_free(N_PAGES))
        return;
    daemon_start(&d);
    for (int i = 0; i < ROUNDS; i++) {
        daemon_kill(&d);
        daemon_start(&d);
        ck_assert_int_eq(daemon_status_number(&d, "engines/0/memory_bytes"), POOL_BYTES);
    }
}
END_TEST

static void put_blocks(spw_space *space, uint64_t first, uint64_t n)
{
    for (uint64_t i = first; i < first + n; i++)
        ck_assert_int_eq(block_put(space, i, DAEMON_MIB), 0);
}

/* What a command prints of this daemon; returns its exit status. */
static int spillctl(const char *command, char *ret_text, size_t text_bytes)
{
    const char *const args[] = {"--socket", d.socket, command, NULL};

    return daemon_run_program("spillctl", args, ret_text, text_bytes);
}

/* The pages go to somebody else after the start, and come back. */
START_TEST(test_what_is_missing_shows_and_is_asked_for_again)
{
    static char text[16384];

    if (!hugepages_free(N_PAGES))
        return;
    daemon_configure(&d, "", REQUIRED_ON_DEMAND);
    daemon_start(&d);
    spw_session *session = daemon_connect(&d);
    spw_space *space = daemon_space(session, "default", "x", DAEMON_MIB, SPW_CLASS_KV, SPW_CACHE);

    put_blocks(space, 0, 1);
    int64_t taken = daemon_admin_number(session, "status", "engines/0/memory_bytes");
    ck_assert_int_eq(daemon_admin_number(session, "status", "engines/0/memory_missing_bytes"), 0);
    (void)hugepages_free(0);
    put_blocks(space, 1, 60); /* goes on with what there is */
    ck_assert_int_eq(daemon_admin_number(session, "status", "engines/0/memory_missing_bytes"), POOL_BYTES - taken);
    ck_assert_int_eq(daemon_admin_number(session, "pools", "pools/0/dram/missing_bytes"), POOL_BYTES - taken);
    ck_assert(daemon_logged(&d, "warning: engine 0: pool default: memory was refused"));
    ck_assert_int_eq(spillctl("status", text, sizeof(text)), 0);
    ck_assert_msg(strstr(text, "degraded: engine 0: 224 MiB of its memory were refused"), "%s", text);
    ck_assert_int_ne(spillctl("doctor", text, sizeof(text)), 0);
    ck_assert_msg(strstr(text, "; the machine has refused 224 MiB, and is asked again"), "%s", text);

    (void)hugepages_free(N_PAGES - (unsigned long)taken / (2 * DAEMON_MIB));
    uint64_t n = 100;
    for (int64_t end = clock_ms() + 30000; clock_ms() < end; sleep_ms(100), n++) {
        put_blocks(space, n, 1);
        if (daemon_admin_number(session, "status", "engines/0/memory_missing_bytes") == 0)
            break;
    }
    ck_assert(daemon_logged(&d, "pool default: no memory is missing any more"));
    put_blocks(space, 1000, 300);
    ck_assert_int_eq(daemon_admin_number(session, "status", "engines/0/memory_bytes"), POOL_BYTES);
    spw_close(session);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("memory_returns");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    tcase_add_unchecked_fixture(tc, knob_take, knob_give_back);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_a_killed_daemons_memory_is_waited_for);
    tcase_add_test(tc, test_what_is_missing_shows_and_is_asked_for_again);
    suite_add_tcase(suite, tc);
    return suite_main(suite);
}
