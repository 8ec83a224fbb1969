/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Limits as an application meets them: the device is full, the pool's memory is leased. Always an answer that names the
 * limit and its knob, at once or when the time is over; never a hang, and never at somebody else's cost.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/system/support/daemon.h"

#define BLOCK (512 * 1024)
#define SECTIONS "[tier.dram]\nsize = 64 MiB\n[pool default]\n"
#define DISK_BYTES (64 * DAEMON_MIB)
#define HOT 100000

static struct daemon d;
static spw_session *session;

static void setup(void)
{
    daemon_init(&d);
    daemon_format(&d, DISK_BYTES);
    daemon_configure(&d, "", SECTIONS);
    daemon_start(&d);
    session = daemon_connect(&d);
}

static void teardown(void)
{
    spw_close(session);
    daemon_deinit(&d);
}

/* Durable blocks until there is no room; how many. */
static uint64_t fill(spw_space *space, unsigned *ret_limit)
{
    uint64_t n = 0;
    int r = 0;

    while (r == 0 && n < 4 * DISK_BYTES / BLOCK) {
        r = block_put_within(space, n, BLOCK, 500, ret_limit);
        n += r == 0;
        if (r == 0 && n % 16 == 0 && (r = spw_sync(space, NULL, 0, 20000)) < 0)
            *ret_limit = spw_error_limit();
    }
    ck_assert_msg(r == -ENOSPC, "%llu blocks, then %d: %s", (unsigned long long)n, r, spw_error_text());
    return n;
}

START_TEST(test_disk_full)
{
    spw_space *durable = daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);
    spw_space *cache = daemon_space(session, "default", "cache", 0, SPW_CLASS_KV, SPW_CACHE);
    unsigned limit = 0;
    uint64_t n = fill(durable, &limit);

    ck_assert_uint_ge(n, DISK_BYTES / BLOCK / 2);
    ck_assert_msg(limit == SPW_LIMIT_DEVICE_BYTES, "limit %u: %s", limit, spw_limit_text(limit));
    ck_assert_ptr_nonnull(strstr(spw_limit_text(limit), "device"));

    /* The cache in the same pool goes on, with what memory is left. */
    for (uint64_t i = HOT; i < HOT + 200; i++) {
        int r = block_put(cache, i, BLOCK);

        ck_assert_msg(r == 0, "cache block %llu: %d", (unsigned long long)(i - HOT), r);
        ck_assert_int_eq(block_get(cache, i, BLOCK), 0);
    }
    for (uint64_t i = HOT; i < HOT + 200; i++) {
        int r = block_get(cache, i, BLOCK);

        ck_assert_msg(r == 0 || r == -ENOENT, "cache block %llu: %d", (unsigned long long)(i - HOT), r);
    }
    for (uint64_t i = 0; i < n; i++)
        ck_assert_int_eq(block_get(durable, i, BLOCK), 0);

    /* What is deleted makes room, and what was synced is there after a crash. */
    for (uint64_t i = 0; i < n / 2; i++) {
        struct spw_key key = block_key(i);

        ck_assert_int_eq(spw_delete(durable, &key, 1, NULL), 0);
    }
    ck_assert_int_eq(spw_sync(durable, NULL, 0, 20000), 0);
    for (uint64_t i = 0; i < 8; i++)
        ck_assert_int_eq(block_put(durable, 1000 + i, BLOCK), 0);
    ck_assert_int_eq(spw_sync(durable, NULL, 0, 20000), 0);
    spw_close(session);
    daemon_kill(&d);
    daemon_start(&d);
    session = daemon_connect(&d);
    durable = daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);
    for (uint64_t i = 0; i < n; i++)
        ck_assert_int_eq(block_get(durable, i, BLOCK), i < n / 2 ? -ENOENT : 0);
    for (uint64_t i = 0; i < 8; i++)
        ck_assert_int_eq(block_get(durable, 1000 + i, BLOCK), 0);
}
END_TEST

/* Blocks that are not committed hold the pool's memory. */
START_TEST(test_all_leased)
{
    static struct spw_view views[128];
    spw_space *space = daemon_space(session, "default", "cache", BLOCK, SPW_CLASS_KV, SPW_CACHE);
    struct spw_key key;
    struct spw_view view;
    size_t n = 0;
    int r = 0;

    while (n < 128 && r == 0) {
        key = block_key(n);
        r = spw_reserve(space, &key, NULL, 1, 0, 0, &views[n]);
        if (r == 0)
            r = views[n].status;
        n += r == 0;
    }
    ck_assert_int_eq(r, -ENOSPC);
    ck_assert_uint_ge(n * BLOCK, 64 * DAEMON_MIB * 70 / 100);
    ck_assert_uint_le(n * BLOCK, 64 * DAEMON_MIB * 80 / 100);
    ck_assert_uint_eq(views[n].detail, SPW_LIMIT_POOL_LEASES);
    ck_assert_ptr_nonnull(strstr(spw_limit_text(views[n].detail), "max_leases_percent"));

    /* As a whole, the call tells it in words; a wait has an end. */
    int64_t start = clock_ms();

    r = spw_reserve(space, &key, NULL, 1, SPW_ALL, 300, &view);
    ck_assert_int_eq(r < 0 ? r : view.status, -ENOSPC);
    if (r < 0)
        ck_assert_msg(strstr(spw_error_text(), "max_leases_percent") != NULL, "%s", spw_error_text());
    ck_assert_int_lt(clock_ms() - start, 20000);

    /* What is given back is room again, for one who waits too. */
    ck_assert_int_eq(spw_abort(space, views, n / 2), 0);
    ck_assert_int_eq(block_put(space, 1000, BLOCK), 0);
    ck_assert_int_eq(block_get(space, 1000, BLOCK), 0);
    ck_assert_int_eq(spw_abort(space, views, n), 0);
    ck_assert_int_eq(daemon_admin_number(session, "pools", "pools/0/dram/leased_bytes"), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("full");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_disk_full);
    tcase_add_test(tc, test_all_leased);
    suite_add_tcase(suite, tc);
    return suite_main(suite);
}
