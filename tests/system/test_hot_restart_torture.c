/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Restarts by the hundred, under load: half by SIGKILL, the others by SIGTERM and by --upgrade. SPILLWAY_RESTARTS says how
 * many of each, SPILLWAY_SEED where the load begins.
 */
#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/system/support/hotload.h"
#include "tests/system/support/keeper.h"

#define SECTIONS "[tier.dram]\nsize = 128 MiB\n[pool default]\n"
#define N_RESTARTS 500

static struct daemon d;
static struct keeper k;

static unsigned long number_from(const char *name, unsigned long otherwise)
{
    const char *text = getenv(name);

    return text ? strtoul(text, NULL, 10) : otherwise;
}

static void torture(void (*restart)(unsigned long i))
{
    static struct hotload load;
    unsigned long n = number_from("SPILLWAY_RESTARTS", N_RESTARTS), seed = number_from("SPILLWAY_SEED", 1), i;

    hotload_start(&load, &d, seed);
    for (i = 0; i < n && !hotload_error(&load); i++) {
        /* Sometimes before anybody got through the last one. */
        if ((i * 2654435761U + seed) % 7 != 0)
            ck_assert_msg(hotload_progress(&load), "restart %lu: the load stands still: %s", i, daemon_log_end(&d));
        restart(i);
    }
    uint64_t calls = hotload_stop(&load);

    ck_assert_msg(!hotload_error(&load), "restart %lu, seed %lu: %s\n%s", i, seed, hotload_error(&load),
                  daemon_log_end(&d));
    printf("%lu restarts, %llu calls, no error\n", n, (unsigned long long)calls);
}

static void by_keeper(unsigned long i)
{
    keeper_restart(&k, i % 4 == 3 ? SIGTERM : SIGKILL);
}

static void by_upgrade(unsigned long i)
{
    (void)i;
    ck_assert_msg(daemon_upgrade(&d) == 0, "%s", daemon_log_end(&d));
}

static void with_keeper(bool has_device)
{
    daemon_init(&d);
    if (has_device)
        daemon_format(&d, 256 * DAEMON_MIB);
    daemon_configure(&d, "", SECTIONS);
    keeper_start(&k, &d);
    torture(by_keeper);
    ck_assert_int_eq(keeper_stop(&k), 0);
    daemon_deinit(&d);
}

START_TEST(test_memory)
{
    with_keeper(false);
}
END_TEST

START_TEST(test_device)
{
    with_keeper(true);
}
END_TEST

START_TEST(test_upgrade)
{
    daemon_init(&d);
    daemon_format(&d, 256 * DAEMON_MIB);
    daemon_configure(&d, "", SECTIONS);
    daemon_start(&d);
    torture(by_upgrade);
    daemon_deinit(&d);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("hot restart torture");
    TCase *tc = tcase_create("kept"), *upgrade = tcase_create("upgrade");

    tcase_set_timeout(tc, 7200);
    tcase_add_test(tc, test_memory);
    tcase_add_test(tc, test_device);
    suite_add_tcase(suite, tc);
    tcase_set_timeout(upgrade, 7200);
    tcase_add_test(upgrade, test_upgrade);
    suite_add_tcase(suite, upgrade);
    return suite_main(suite);
}
