/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two engines, one space: it gets more than its engine's share of the pool; when a second space comes on the other
 * engine, that one gets its share back. At no time do both together have more than the pool's budget.
 */
#include <check.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/system/support/daemon.h"

#define BLOCK DAEMON_MIB
#define POOL (256 * DAEMON_MIB)
#define LONE (192 * DAEMON_MIB) /* all but what the other one keeps to begin with */
#define SECTIONS "[tier.dram]\nsize = 256 MiB\n[pool default]\n"

static struct daemon d;
static spw_session *session;

static void setup(void)
{
    daemon_init(&d);
    daemon_configure(&d, "engines = 2", SECTIONS);
    daemon_start(&d);
    session = daemon_connect(&d);
}

static void teardown(void)
{
    spw_close(session);
    daemon_deinit(&d);
}

static uint64_t number(unsigned engine, const char *what)
{
    char path[64];

    snprintf(path, sizeof(path), "pools/0/engines/%u/%s", engine, what);
    return (uint64_t)daemon_admin_number(session, "pools", path);
}

/* Both engines in one reply: what they may have, and what they have taken from the machine. */
static void check_sums(void)
{
    char *reply = daemon_admin(session, "pools");
    unsigned long long budgets = 0, chunks = 0, n = 0, value;

    for (const char *at = reply; (at = strstr(at, "\"dram_budget_bytes\"")); at++, n++) {
        ck_assert_int_eq(sscanf(at, "\"dram_budget_bytes\" : %llu", &value), 1);
        budgets += value;
    }
    for (const char *at = reply; (at = strstr(at, "\"dram_chunk_bytes\"")); at++) {
        ck_assert_int_eq(sscanf(at, "\"dram_chunk_bytes\" : %llu", &value), 1);
        chunks += value;
    }
    free(reply);
    ck_assert_uint_eq(n, 2);
    ck_assert_msg(budgets <= POOL && chunks <= POOL, "budgets %llu, chunks %llu", budgets, chunks);
}

/* Puts blocks until the engine may have so much; the test's time is the limit. */
static uint64_t put_until(spw_space *space, uint64_t from, unsigned engine, uint64_t bytes)
{
    uint64_t i = from;

    while (number(engine, "dram_budget_bytes") < bytes || number(engine, "dram_chunk_bytes") < bytes) {
        for (int n = 0; n < 8; n++, i++)
            ck_assert_int_eq(block_put(space, i, BLOCK), 0);
        check_sums();
        sleep_ms(5);
    }
    return i;
}

static uint64_t count_readable(spw_space *space, uint64_t from, uint64_t to)
{
    uint64_t n = 0;

    for (uint64_t i = from; i < to; i++) {
        int r = block_get(space, i, BLOCK);

        ck_assert_msg(r == 0 || r == -ENOENT, "block %llu: %d", (unsigned long long)i, r);
        n += r == 0;
    }
    return n;
}

START_TEST(test_trade)
{
    spw_space *first = daemon_space(session, "default", "first", BLOCK, SPW_CLASS_GENERIC, SPW_CACHE);
    ck_assert_int_eq(block_put(first, 0, BLOCK), 0);
    unsigned engine = number(1, "dram_used_bytes") > 0, other = !engine;

    ck_assert_uint_eq(number(engine, "dram_budget_bytes"), POOL / 2);
    uint64_t n = put_until(first, 1, engine, LONE);
    for (uint64_t i = 0; i < LONE / BLOCK; i++)
        ck_assert_int_eq(block_put(first, n + i, BLOCK), 0);
    ck_assert_uint_gt(count_readable(first, n, n + LONE / BLOCK), POOL / 2 / BLOCK + 16);

    /* The second one is short at once, and gets what is its own, though the first is as busy. */
    spw_space *second = daemon_space(session, "default", "second", BLOCK, SPW_CLASS_GENERIC, SPW_CACHE);
    n = put_until(second, 0, other, POOL / 2);
    ck_assert_uint_le(number(engine, "dram_budget_bytes"), POOL / 2);
    ck_assert_uint_gt(number(other, "dram_used_bytes"), 0);
    ck_assert_uint_gt(count_readable(second, 0, n), 0);
    ck_assert_uint_gt(daemon_admin_number(session, "pools", "pools/0/evacuations"), 0);
    check_sums();
}
END_TEST

/* The reload of a traded pool: everybody to the new share. */
START_TEST(test_reload_after_trade)
{
    spw_space *first = daemon_space(session, "default", "first", BLOCK, SPW_CLASS_GENERIC, SPW_CACHE);
    ck_assert_int_eq(block_put(first, 0, BLOCK), 0);
    unsigned engine = number(1, "dram_used_bytes") > 0;

    (void)put_until(first, 1, engine, LONE);
    daemon_configure(&d, "engines = 2", "[tier.dram]\nsize = 256 MiB\n[pool default]\ndram = 128 MiB\n");
    ck_assert_int_eq(kill(d.pid, SIGHUP), 0);
    while (!daemon_logged(&d, "[pool default] dram: has 128 MiB now"))
        ck_assert(daemon_lives(&d));
    ck_assert_uint_le(number(0, "dram_chunk_bytes") + number(1, "dram_chunk_bytes"), POOL / 2);
    ck_assert_int_eq(block_put(first, 1000000, BLOCK), 0);
    ck_assert_int_eq(block_get(first, 1000000, BLOCK), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("two_engines");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 140);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_trade);
    tcase_add_test(tc, test_reload_after_trade);
    suite_add_tcase(suite, tc);
    return suite_main(suite);
}
