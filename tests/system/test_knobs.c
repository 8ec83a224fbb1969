/* SPDX-License-Identifier: Apache-2.0 */
/* Keys of the config that must show in what a real daemon does: budgets of writes, memory on demand, hugepages. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>

#include "tests/system/support/daemon.h"

#define BLOCK_BYTES ((size_t)DAEMON_MIB)
#define DRAM "[tier.dram]\nsize = 64 MiB\n"
#define POOL "[pool default]\n"

static struct daemon d;

static void setup(void)
{
    daemon_init(&d);
}

static void teardown(void)
{
    daemon_deinit(&d);
}

static void reload(const char *expected)
{
    ck_assert_int_eq(kill(d.pid, SIGHUP), 0);
    ck_assert_msg(daemon_logged(&d, expected), "no '%s': %s", expected, daemon_log(&d));
    ck_assert(daemon_logged(&d, "spillwayd: reloaded"));
}

static void put_blocks(spw_space *space, uint64_t first, uint64_t n)
{
    for (uint64_t i = first; i < first + n; i++)
        ck_assert_int_eq(block_put(space, i, BLOCK_BYTES), 0);
}

START_TEST(test_a_pools_write_budget)
{
    daemon_format(&d, 512 * DAEMON_MIB);
    daemon_configure(&d, "", DRAM POOL "write_budget = 1 KiB/day\n");
    daemon_start(&d);
    spw_session *session = daemon_connect(&d);
    spw_space *space = daemon_space(session, "default", "x", BLOCK_BYTES, SPW_CLASS_KV, SPW_CACHE);

    ck_assert_int_eq(daemon_admin_number(session, "pools", "pools/0/writes/budget_day_bytes"), 1024);
    put_blocks(space, 0, 200);
    int64_t used = daemon_admin_number(session, "pools", "pools/0/writes/used_bytes");
    ck_assert_int_le(used, (int64_t)BLOCK_BYTES); /* one, if the first 84 seconds were over by then */
    ck_assert_int_gt(daemon_admin_number(session, "pools", "pools/0/writes/dropped"), 100);
    ck_assert_int_eq(daemon_admin_number(session, "pools", "pools/0/writes/over_bytes"), 0);
    ck_assert_int_le(daemon_admin_number(session, "pools", "pools/0/io/written_bytes"), (int64_t)BLOCK_BYTES);

    daemon_configure(&d, "", DRAM POOL);
    reload("[pool default] write_budget: none, was 1 KiB/day");
    put_blocks(space, 1000, 200);
    ck_assert_int_gt(daemon_admin_number(session, "pools", "pools/0/writes/used_bytes"), 50 * (int64_t)BLOCK_BYTES);
    ck_assert_int_gt(daemon_admin_number(session, "pools", "pools/0/io/written_bytes"), 50 * (int64_t)BLOCK_BYTES);
    spw_close(session);
}
END_TEST

START_TEST(test_a_devices_write_budget)
{
    daemon_format(&d, 512 * DAEMON_MIB);
    daemon_configure(&d, "", "write_budget = 0.001\n" DRAM POOL);
    daemon_start(&d);
    spw_session *session = daemon_connect(&d);
    spw_space *cache = daemon_space(session, "default", "x", BLOCK_BYTES, SPW_CLASS_KV, SPW_CACHE);
    spw_space *scratch = daemon_space(session, "default", "y", BLOCK_BYTES, SPW_CLASS_ACTIVATION, SPW_SCRATCH);

    ck_assert_int_eq(daemon_admin_number(session, "devices", "devices/0/writes/budget_day_bytes"),
                     512 * (int64_t)DAEMON_MIB / 1000);
    put_blocks(cache, 0, 150);
    ck_assert_int_gt(daemon_admin_number(session, "devices", "devices/0/writes/dropped_bytes"),
                     50 * (int64_t)BLOCK_BYTES);
    put_blocks(scratch, 0, 150); /* whatever it costs */
    ck_assert_int_gt(daemon_admin_number(session, "devices", "devices/0/writes/over_bytes"), 50 * (int64_t)BLOCK_BYTES);
    for (uint64_t i = 0; i < 150; i++)
        ck_assert_int_eq(block_get(scratch, i, BLOCK_BYTES), 0);
    spw_close(session);
}
END_TEST

START_TEST(test_memory_on_demand)
{
    daemon_configure(&d, "", "[tier.dram]\nsize = 160 MiB\npretouch = no\n" POOL);
    daemon_start(&d);
    spw_session *session = daemon_connect(&d);
    spw_space *space = daemon_space(session, "default", "x", BLOCK_BYTES, SPW_CLASS_KV, SPW_CACHE);

    ck_assert_int_eq(daemon_admin_number(session, "status", "engines/0/memory_bytes"), 0);
    ck_assert_int_eq(daemon_admin_number(session, "status", "engines/0/memory_wanted_bytes"),
                     160 * (int64_t)DAEMON_MIB);
    put_blocks(space, 0, 1);
    ck_assert_int_eq(daemon_admin_number(session, "status", "engines/0/memory_bytes"), 32 * (int64_t)DAEMON_MIB);
    put_blocks(space, 1, 149);
    ck_assert_int_eq(daemon_admin_number(session, "status", "engines/0/memory_bytes"), 160 * (int64_t)DAEMON_MIB);
    for (uint64_t i = 0; i < 150; i++)
        ck_assert_int_eq(block_get(space, i, BLOCK_BYTES), 0); /* all are there: nothing was evicted meanwhile */
    ck_assert_int_eq(daemon_admin_number(session, "pools", "pools/0/evictions"), 0);
    ck_assert_int_eq(daemon_admin_number(session, "pools", "pools/0/drops"), 0);
    spw_close(session);
}
END_TEST

static unsigned long huge_free(void)
{
    FILE *f = fopen("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "r");
    char line[64] = "0";

    if (f) {
        (void)!fgets(line, sizeof(line), f);
        fclose(f);
    }
    return strtoul(line, NULL, 10);
}

START_TEST(test_hugepages_required)
{
    static const char *const pretouch[] = {"yes", "no"};
    char sections[256], expected[256];
    int lock_fd = open("/proc/sys/vm/nr_hugepages", O_RDONLY | O_CLOEXEC); /* other tests turn that knob */

    ck_assert_int_eq(flock(lock_fd, LOCK_EX), 0); /* until the process ends */
    unsigned long n_free = huge_free();

    if (n_free > 512) {
        printf("SKIP: more than 1 GiB of hugepages is free, so none is missing\n");
        return;
    }
    for (size_t i = 0; i < 2; i++) {
        snprintf(sections, sizeof(sections), "[tier.dram]\nsize = %lu MiB\nhugepages = require\npretouch = %s\n" POOL,
                 2 * (n_free + 32), pretouch[i]);
        daemon_configure(&d, "", sections);
        ck_assert_int_eq(daemon_start_refused(&d), 1);
        snprintf(expected, sizeof(expected), "%lu pages of 2 MiB are needed, %lu are free, 32 are missing: raise ",
                 n_free + 32, n_free);
        ck_assert_msg(daemon_logged(&d, expected), "no '%s': %s", expected, daemon_log(&d));
        ck_assert(daemon_logged(&d, "nr_hugepages"));
    }
    /* The same memory is no trouble when it need not be in hugepages. */
    snprintf(sections, sizeof(sections), "[tier.dram]\nsize = %lu MiB\n" POOL, 2 * (n_free + 32));
    daemon_configure(&d, "", sections);
    daemon_start(&d);
}
END_TEST

START_TEST(test_config_show)
{
    static char text[16384];
    const char *const args[] = {"--socket", d.socket, "config", "show", NULL};

    daemon_configure(&d, "", DRAM POOL);
    daemon_start(&d);
    ck_assert_int_eq(daemon_run_program("spillctl", args, text, sizeof(text)), 0);
    ck_assert_ptr_null(strstr(text, "after a restart"));
    ck_assert_ptr_null(strstr(text, "state_dir"));
    daemon_configure(&d, "workers = 2\nspin_us = 7",
                     "[tier.dram]\nsize = 64 MiB\npretouch = no\n" POOL "weight = 7\n[pool new]\n");
    reload("[daemon] workers: auto stays until a restart");
    ck_assert_int_eq(daemon_run_program("spillctl", args, text, sizeof(text)), 0);
    const char *workers = strstr(text, "\nworkers = auto"), *spin = strstr(text, "\nspin_us = 7");
    ck_assert_msg(workers && spin && strstr(text, "\nweight = 7"), "%s", text);
    ck_assert_ptr_nonnull(strstr(workers, "; after a restart: 2\n"));
    ck_assert_ptr_nonnull(strstr(spin, " [R]\n"));
    ck_assert_ptr_nonnull(strstr(text, "; after a restart: no\n")); /* pretouch */
    ck_assert_ptr_nonnull(strstr(text, "; [pool new] comes with a restart\n"));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("knobs");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_a_pools_write_budget);
    tcase_add_test(tc, test_a_devices_write_budget);
    tcase_add_test(tc, test_memory_on_demand);
    tcase_add_test(tc, test_hugepages_required);
    tcase_add_test(tc, test_config_show);
    suite_add_tcase(suite, tc);
    return suite_main(suite);
}
