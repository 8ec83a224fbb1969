/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stop in order has an end, also where memory holds far more than the device takes: then cache is dropped, and what
 * is durable is not. How long it takes is the device's matter: a stop that has no end meets the test's timeout.
 */
#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/system/support/daemon.h"

#define BLOCK 4096
#define BLOCKS 20000
#define SECTIONS "[tier.dram]\nsize = 128 MiB\n[pool default]\n"
#define DISK_BYTES (64 * DAEMON_MIB)
#define EVERY 1000 /* one durable block for so many of cache */
#define LARGE (512 * 1024)

static struct daemon d;

/* A daemon with an empty device. */
static spw_session *begin(void)
{
    daemon_init(&d);
    daemon_format(&d, DISK_BYTES);
    daemon_configure(&d, "", SECTIONS);
    daemon_start(&d);
    return daemon_connect(&d);
}

START_TEST(test_more_than_the_device_takes)
{
    uint32_t n_cache = 0;

    spw_session *session = begin();
    spw_space *cache = daemon_space(session, "default", "cache", 0, SPW_CLASS_KV, SPW_CACHE);
    spw_space *durable = daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);

    for (uint64_t i = 0; i < BLOCKS; i++) {
        ck_assert_int_eq(block_put(cache, i, BLOCK), 0);
        if (i % EVERY == 0)
            ck_assert_int_eq(block_put(durable, i, BLOCK), 0);
        if (i == BLOCKS / 2)
            ck_assert_int_eq(spw_sync(durable, NULL, 0, 20000), 0);
    }
    spw_close(session);
    ck_assert_int_eq(daemon_stop(&d), 0);

    daemon_start(&d);
    session = daemon_connect(&d);
    cache = daemon_space(session, "default", "cache", 0, SPW_CLASS_KV, SPW_CACHE);
    durable = daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);
    for (uint64_t i = 0; i < BLOCKS; i++) {
        int r = block_get(cache, i, BLOCK);

        ck_assert(r == 0 || r == -ENOENT);
        n_cache += r == 0;
        if (i % EVERY == 0)
            ck_assert_int_eq(block_get(durable, i, BLOCK), 0);
    }
    ck_assert_uint_gt(n_cache, 0);
    ck_assert_uint_lt(n_cache, BLOCKS);
    spw_close(session);
    daemon_deinit(&d);
}
END_TEST

/* Durable blocks that no SYNC has written and that no device has room for are lost with the memory: the log says how many. */
START_TEST(test_what_is_lost_is_told)
{
    uint64_t n = 0, n_lost = 0, n_told = 0;
    unsigned limit;

    spw_session *session = begin();
    spw_space *durable = daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);

    while (n < 1000 && block_put_within(durable, n, LARGE, 500, &limit) == 0)
        n++;
    ck_assert_uint_gt(n, DISK_BYTES / LARGE);
    spw_close(session);
    ck_assert_int_eq(daemon_stop(&d), 0);
    const char *line = strstr(daemon_log(&d), "warning: engine 0: ");

    ck_assert_ptr_nonnull(line);
    ck_assert_int_eq(sscanf(line, "warning: engine 0: %" SCNu64 " durable pieces", &n_told), 1);
    ck_assert_int_eq(strncmp(strchr(line + 20, ' '), " durable pieces", 15), 0);

    daemon_start(&d);
    session = daemon_connect(&d);
    durable = daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);
    for (uint64_t i = 0; i < n; i++) {
        int r = block_get(durable, i, LARGE);

        ck_assert(r == 0 || r == -ENOENT);
        n_lost += r != 0;
    }
    ck_assert_uint_gt(n_lost, 0);
    ck_assert_uint_eq(n_told, n_lost);
    spw_close(session);
    daemon_deinit(&d);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("stop");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 240);
    tcase_add_test(tc, test_more_than_the_device_takes);
    tcase_add_test(tc, test_what_is_lost_is_told);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed ? 1 : 0;
}
