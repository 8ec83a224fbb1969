/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a daemon finds again: after a clean stop all of its cache, after SIGKILL all that a SYNC acknowledged, and of its cache
 * what the device had when the log was written for the last time.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/system/support/daemon.h"

#define BLOCK (256 * 1024)
#define SECTIONS "[tier.dram]\nsize = 64 MiB\n[pool default]\n"
#define N_CACHE 400 /* more than memory holds */
#define N_DURABLE 40
#define N_WARM 120 /* the device has at least so many of N_CACHE: memory holds 256 */
#define TENSOR_BYTES (3 * DAEMON_MIB)

static struct daemon d;
static spw_session *session;

static void setup(void)
{
    daemon_init(&d);
    daemon_format(&d, 192 * DAEMON_MIB);
    daemon_configure(&d, "", SECTIONS);
    daemon_start(&d);
    session = daemon_connect(&d);
}

static void teardown(void)
{
    spw_close(session);
    daemon_deinit(&d);
}

static void restart(bool cleanly)
{
    spw_close(session);
    if (cleanly)
        ck_assert_int_eq(daemon_stop(&d), 0);
    else
        daemon_kill(&d);
    daemon_start(&d);
    session = daemon_connect(&d);
}

static spw_space *cache(void)
{
    return daemon_space(session, "default", "cache", 0, SPW_CLASS_KV, SPW_CACHE);
}

static spw_space *durable(void)
{
    return daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);
}

static uint64_t count_there(spw_space *space, uint64_t first, uint64_t n)
{
    uint64_t there = 0;

    for (uint64_t i = first; i < first + n; i++) {
        int r = block_get(space, i, BLOCK);

        ck_assert_msg(r == 0 || r == -ENOENT, "block %llu: %d", (unsigned long long)i, r);
        there += r == 0;
    }
    return there;
}

START_TEST(test_clean_stop)
{
    spw_space *space = cache();

    for (uint64_t i = 0; i < N_CACHE; i++)
        ck_assert_int_eq(block_put(space, i, BLOCK), 0);
    uint64_t before = count_there(space, 0, N_CACHE);

    restart(true);
    space = cache();
    uint64_t after = count_there(space, 0, N_CACHE);

    ck_assert_uint_eq(before, N_CACHE);
    ck_assert_msg(after == before, "%llu blocks of %llu", (unsigned long long)after, (unsigned long long)before);
}
END_TEST

/* Blocks that the device has, and the log knows or will know with the next SYNC. */
static uint64_t count_written(void)
{
    return (uint64_t)daemon_admin_number(session, "devices", "devices/0/partitions/0/live_bytes") / BLOCK;
}

START_TEST(test_killed)
{
    spw_space *hot = cache(), *kept = durable();

    for (uint64_t i = 0; i < N_CACHE; i++)
        ck_assert_int_eq(block_put(hot, i, BLOCK), 0);
    for (uint64_t i = 0; i < N_DURABLE; i++)
        ck_assert_int_eq(block_put(kept, i, BLOCK), 0);
    ck_assert_int_eq(spw_sync(kept, NULL, 0, 20000), 0);
    for (uint64_t i = 0; i < 10; i++) { /* acknowledged deletions too */
        struct spw_key key = block_key(i);

        ck_assert_int_eq(spw_delete(kept, &key, 1, NULL), 0);
    }
    uint64_t n_written = count_written() - N_DURABLE;

    ck_assert_int_eq(spw_sync(kept, NULL, 0, 20000), 0);
    for (uint64_t i = 1000; i < 1040; i++)
        ck_assert_int_eq(block_put(kept, i, BLOCK), 0);
    restart(false);
    kept = durable();
    for (uint64_t i = 0; i < N_DURABLE; i++)
        ck_assert_int_eq(block_get(kept, i, BLOCK), i < 10 ? -ENOENT : 0);
    (void)count_there(kept, 1000, 40);
    uint64_t n_warm = count_there(cache(), 0, N_CACHE);

    printf("of %d blocks of cache the device had %llu or more; after SIGKILL %llu were there\n", N_CACHE,
           (unsigned long long)n_written, (unsigned long long)n_warm);
    ck_assert_uint_ge(n_written, N_WARM);
    ck_assert_uint_ge(n_warm, n_written);

    /* And once more, in the middle of that. */
    restart(false);
    ck_assert_uint_eq(count_there(durable(), 10, N_DURABLE - 10), N_DURABLE - 10);
}
END_TEST

/* What a start found and how long it took is in the log, and in what spillctl shows. */
START_TEST(test_is_reported)
{
    spw_space *kept = durable();

    ck_assert(daemon_logged(&d, "partition 0: 0 pieces from 0 B of log, read in "));
    for (uint64_t i = 0; i < N_DURABLE; i++)
        ck_assert_int_eq(block_put(kept, i, BLOCK), 0);
    ck_assert_int_eq(spw_sync(kept, NULL, 0, 20000), 0);
    restart(false);
    ck_assert(daemon_logged(&d, "partition 0: 40 pieces from "));
    ck_assert(daemon_logged(&d, "engine 0: recovery of 40 pieces took "));
    ck_assert_int_eq(daemon_admin_number(session, "devices", "devices/0/partitions/0/recovered_pieces"), N_DURABLE);
    ck_assert_int_gt(daemon_admin_number(session, "devices", "devices/0/partitions/0/recovered_log_bytes"), 0);
    ck_assert_int_gt(daemon_admin_number(session, "devices", "devices/0/partitions/0/log_ns"), 0);
    ck_assert_int_gt(daemon_status_number(&d, "engines/0/recovery_ns"), 0);
}
END_TEST

/* One of the versions, whole. */
static int tensor_version(spw_space *space, const struct spw_key *name, unsigned n_versions)
{
    char *bytes = malloc(TENSOR_BYTES);
    int found = -1, r = spw_get_range(space, name, 0, bytes, TENSOR_BYTES, 10000);

    ck_assert_msg(r == 0, "get_range: %d: %s", r, spw_error_text());
    for (unsigned v = 1; v <= n_versions; v++)
        if (pattern_is(bytes, TENSOR_BYTES, 7, v))
            found = (int)v;
    free(bytes);
    return found;
}

static void tensor_write(spw_space *space, const struct spw_key *name, uint64_t version, uint64_t size_bytes)
{
    char *bytes = malloc(TENSOR_BYTES);

    pattern_fill(bytes, TENSOR_BYTES, 7, version);
    int r = spw_put_range(space, name, 0, bytes, size_bytes, 10000);

    ck_assert_msg(r == 0, "put_range: %d: %s", r, spw_error_text());
    free(bytes);
}

START_TEST(test_tensor)
{
    struct spw_key name = block_key(7);
    spw_space *space = durable();

    ck_assert_int_eq(spw_tensor_open(space, &name, TENSOR_BYTES), 0);
    tensor_write(space, &name, 1, TENSOR_BYTES);
    ck_assert_int_eq(spw_sync(space, NULL, 0, 20000), 0);
    tensor_write(space, &name, 2, TENSOR_BYTES);
    ck_assert_int_eq(tensor_version(space, &name, 2), 2);
    restart(false);
    space = durable();
    ck_assert_int_eq(spw_tensor_open(space, &name, TENSOR_BYTES), 0);
    ck_assert_int_eq(tensor_version(space, &name, 2), 1);

    /* Changed in part, and other objects push it out of memory: still the old one. */
    tensor_write(space, &name, 3, DAEMON_MIB + 8192);
    for (uint64_t i = 0; i < N_CACHE; i++)
        ck_assert_int_eq(block_put(cache(), i, BLOCK), 0);
    restart(false);
    space = durable();
    ck_assert_int_eq(tensor_version(space, &name, 3), 1);

    tensor_write(space, &name, 4, TENSOR_BYTES);
    ck_assert_int_eq(spw_sync(space, &name, 1, 20000), 0);
    restart(false);
    space = durable();
    ck_assert_int_eq(tensor_version(space, &name, 4), 4);
    restart(true);
    space = durable();
    ck_assert_int_eq(tensor_version(space, &name, 4), 4);
}
END_TEST

/* A client that was in a call hears of it, and its views stay readable. */
START_TEST(test_client_hears)
{
    spw_space *space = cache();
    struct spw_key key = block_key(1);
    struct spw_view view;

    ck_assert_int_eq(block_put(space, 1, BLOCK), 0);
    ck_assert_int_eq(spw_acquire(space, &key, 1, 0, 1000, &view), 0);
    ck_assert_int_eq(view.status, 0);
    daemon_kill(&d);
    int64_t start = clock_ms();

    ck_assert_int_eq(block_get(space, 1, BLOCK), -ENOTCONN);
    ck_assert_int_lt(clock_ms() - start, 5000);
    ck_assert(pattern_is(view.data, BLOCK, 1, 0));
    ck_assert_int_eq(spw_nop(space), -ENOTCONN);
    daemon_start(&d);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("restart");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_clean_stop);
    tcase_add_test(tc, test_killed);
    tcase_add_test(tc, test_is_reported);
    tcase_add_test(tc, test_tensor);
    tcase_add_test(tc, test_client_hears);
    suite_add_tcase(suite, tc);
    return suite_main(suite);
}
