/* SPDX-License-Identifier: Apache-2.0 */
/* SIGHUP: what can change changes, what cannot is said to need a restart, and a bad file changes nothing. */
#include <check.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/system/support/daemon.h"

#define SESSIONS_MAX 8
#define SECTIONS "[tier.dram]\nsize = 64 MiB\n[pool default]\n"

static struct daemon d;

static void setup(void)
{
    daemon_init(&d);
    daemon_configure(&d, "uid_sessions = 2", SECTIONS);
    daemon_start(&d);
}

static void teardown(void)
{
    daemon_deinit(&d);
}

/* Sessions that one user gets; tells the refusal's number and words. */
static unsigned sessions_max(int *ret_status, unsigned *ret_limit)
{
    struct spw_connect_options options = {.socket_path = d.socket};
    spw_session *sessions[SESSIONS_MAX];
    unsigned n = 0;
    int r = 0;

    while (n < SESSIONS_MAX && (r = spw_connect(&options, &sessions[n])) == 0)
        n++;
    *ret_status = r;
    *ret_limit = spw_error_limit();
    if (r < 0)
        ck_assert_msg(strstr(spw_error_text(), "uid_sessions") != NULL, "%s", spw_error_text());
    for (unsigned i = 0; i < n; i++)
        spw_close(sessions[i]);
    sleep_ms(100); /* they are not gone at once */
    return n;
}

static void reload(const char *expected)
{
    ck_assert_int_eq(kill(d.pid, SIGHUP), 0);
    ck_assert_msg(daemon_logged(&d, expected), "no '%s': %s", expected, daemon_log(&d));
}

START_TEST(test_limit)
{
    unsigned limit;
    int status;

    ck_assert_uint_eq(sessions_max(&status, &limit), 2);
    ck_assert_int_eq(status, -EUSERS);
    ck_assert_uint_eq(limit, SPW_LIMIT_UID_SESSIONS);
    daemon_configure(&d, "uid_sessions = 5", SECTIONS);
    reload("spillwayd: reloaded");
    ck_assert(daemon_logged(&d, "[daemon] uid_sessions: 5, was 2"));
    ck_assert_uint_eq(sessions_max(&status, &limit), 5);
}
END_TEST

START_TEST(test_needs_restart)
{
    daemon_configure(&d, "uid_sessions = 3\nworkers = 2", "[tier.dram]\nsize = 96 MiB\n[pool default]\n");
    reload("spillwayd: reloaded");
    ck_assert(daemon_logged(&d, "[daemon] workers: auto stays until a restart (the file says 2)"));
    ck_assert(daemon_logged(&d, "[tier.dram] size: 64 MiB stays until a restart (the file says 96 MiB)"));
    unsigned limit;
    int status;

    ck_assert_uint_eq(sessions_max(&status, &limit), 3);
}
END_TEST

START_TEST(test_bad_file)
{
    char where[128];
    unsigned limit;
    int status;

    daemon_configure(&d, "uid_sessions = 5\nuid_sesions = 6", SECTIONS);
    reload("not reloaded: the old configuration stays in force");
    snprintf(where, sizeof(where), "%s:6: ", d.config);
    ck_assert_msg(daemon_logged(&d, where), "no '%s': %s", where, daemon_log(&d));
    ck_assert_uint_eq(sessions_max(&status, &limit), 2);
    ck_assert_int_eq(remove(d.config), 0);
    reload("cannot read: No such file");
    ck_assert_uint_eq(sessions_max(&status, &limit), 2);
}
END_TEST

#define LESS "[tier.dram]\nsize = 64 MiB\n[pool default]\ndram = 32 MiB\n"

/* What a message of the test's has room for. */
static const char *log_end(void)
{
    const char *log = daemon_log(&d);
    size_t n = strlen(log);

    return n > 3000 ? log + n - 3000 : log;
}

/* Until the log has it: how long that takes is the machine's affair (the test's own limit is the end). */
static void wait_logged(const char *text)
{
    for (int n = 0; !daemon_logged(&d, text); n++)
        ck_assert_msg(n < 50 && daemon_lives(&d), "no '%s': %s", text, log_end());
}

static int64_t dram_bytes(spw_session *session, const char *what)
{
    char path[64];

    snprintf(path, sizeof(path), "pools/0/dram/%s", what);
    return daemon_admin_number(session, "pools", path);
}

/* Under traffic, and many at once: a share grows and shrinks, and what is read is right. */
START_TEST(test_pool_share)
{
    spw_session *session = daemon_connect(&d);
    spw_space *space = daemon_space(session, "default", "x", 65536, SPW_CLASS_KV, SPW_CACHE);

    for (uint64_t i = 0; i < 2000; i++) {
        if (i % 100 == 0) {
            daemon_configure(&d, "", i % 200 ? LESS : SECTIONS);
            ck_assert_int_eq(kill(d.pid, SIGHUP), 0);
        }
        ck_assert_int_eq(block_put(space, i, 65536), 0);
        int r = block_get(space, i, 65536);

        ck_assert_msg(r == 0 || r == -ENOENT, "%d", r);
    }
    ck_assert(daemon_logged(&d, "[pool default] dram: 32 MiB, was auto"));
    /* The last signals may have come while a reload was not through. */
    for (; dram_bytes(session, "budget_bytes") != 32 << 20; sleep_ms(50))
        ck_assert_int_eq(kill(d.pid, SIGHUP), 0);
    while (dram_bytes(session, "chunk_bytes") > 32 << 20)
        sleep_ms(20);
    ck_assert(daemon_logged(&d, "[pool default] dram: has 32 MiB now"));
    ck_assert_int_eq(block_put(space, 5000, 65536), 0);
    ck_assert_int_eq(block_get(space, 5000, 65536), 0);
    spw_close(session);
}
END_TEST

#define HELD 40

/* What is leased is not taken away; the daemon says what it waits for, and goes on when it is given back. */
START_TEST(test_shrink_waits_for_leases)
{
    spw_session *session = daemon_connect(&d);
    spw_space *space = daemon_space(session, "default", "x", 1 << 20, SPW_CLASS_KV, SPW_CACHE);
    struct spw_view views[HELD];
    struct spw_key keys[HELD];

    for (uint64_t i = 0; i < HELD; i++) {
        ck_assert_int_eq(block_put(space, i, 1 << 20), 0);
        keys[i] = block_key(i);
    }
    ck_assert_int_eq(spw_acquire(space, keys, HELD, SPW_ALL, 10000, views), 0);
    daemon_configure(&d, "", LESS);
    reload("spillwayd: reloaded");
    wait_logged("40 MiB of the pool are leased");
    ck_assert_int_eq(dram_bytes(session, "budget_bytes"), 32 << 20);
    ck_assert_int_gt(dram_bytes(session, "closing_bytes"), 0);
    for (uint64_t i = 0; i < HELD; i++)
        ck_assert(pattern_is(views[i].data, 1 << 20, i, 0));
    ck_assert_int_eq(spw_release(space, views, HELD, 0), 0);
    wait_logged("[pool default] dram: has 32 MiB now");
    ck_assert_int_le(dram_bytes(session, "chunk_bytes"), 32 << 20);
    ck_assert_int_eq(dram_bytes(session, "closing_bytes"), 0);
    spw_close(session);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("reload");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_limit);
    tcase_add_test(tc, test_needs_restart);
    tcase_add_test(tc, test_bad_file);
    tcase_add_test(tc, test_pool_share);
    suite_add_tcase(suite, tc);
    tc = tcase_create("shrink");
    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_shrink_waits_for_leases);
    suite_add_tcase(suite, tc);
    return suite_main(suite);
}
