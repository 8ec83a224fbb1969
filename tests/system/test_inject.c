/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `spillctl inject` against a real daemon: what is ordered happens, to nobody but who uses that device, and ends; and where
 * nobody has allowed it, it cannot be ordered.
 */
#include <check.h>
#include <errno.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/system/support/daemon.h"

#define BLOCK (256 * 1024)
#define N_BLOCKS 30
#define HALF (N_BLOCKS / 2)
#define SECTIONS "[tier.dram]\nsize = 64 MiB\n[pool default]\n"

static struct daemon d;
static spw_session *session;
static char text[8192];

static void begin(const char *daemon_keys)
{
    daemon_init(&d);
    daemon_format(&d, 128 * DAEMON_MIB);
    daemon_configure(&d, daemon_keys, SECTIONS);
    daemon_start(&d);
    session = daemon_connect(&d);
}

static int ctl(const char *const words[])
{
    const char *args[16] = {"--socket", d.socket, "inject"};
    size_t n = 3;

    for (size_t i = 0; words[i]; i++)
        args[n++] = words[i];
    args[n] = NULL;
    return daemon_run_program("spillctl", args, text, sizeof(text));
}
#define CTL(...) ctl((const char *const[]){__VA_ARGS__, NULL})

/* A clean restart: nothing is in memory any more. */
static void restart(void)
{
    spw_close(session);
    ck_assert_int_eq(daemon_stop(&d), 0);
    daemon_start(&d);
    session = daemon_connect(&d);
}

static void put_blocks(spw_space *space)
{
    for (uint64_t i = 0; i < N_BLOCKS; i++)
        ck_assert_int_eq(block_put(space, i, BLOCK), 0);
}

/* Blocks that lie on the device alone. */
static spw_space *cold_blocks(void)
{
    spw_space *space = daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);

    put_blocks(space);
    ck_assert_int_eq(spw_sync(space, NULL, 0, 20000), 0);
    restart();
    return daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);
}

static uint32_t n_of_status_within(spw_space *space, uint64_t from, uint64_t to, int status)
{
    uint32_t n = 0;

    for (uint64_t i = from; i < to; i++)
        n += block_get(space, i, BLOCK) == status;
    return n;
}

static uint32_t n_of_status(spw_space *space, int status)
{
    return n_of_status_within(space, 0, N_BLOCKS, status);
}

START_TEST(test_reads)
{
    begin("inject = yes");
    spw_space *space = cold_blocks();

    ck_assert_int_eq(CTL("device", "disk", "eio", "--count", "2"), 0);
    ck_assert_msg(strstr(text, "eio") && strstr(text, "disk"), "%s", text);
    ck_assert_int_eq(block_get(space, 0, BLOCK), -EIO);
    ck_assert_int_eq(block_get(space, 1, BLOCK), -EIO);
    ck_assert_int_eq(CTL("list"), 0);
    ck_assert_msg(strstr(text, "eio") == NULL, "%s", text); /* it has been used up */
    ck_assert_int_eq(CTL("device", "disk", "corrupt"), 0);
    ck_assert_int_eq(block_get(space, 2, BLOCK), -EBADMSG);
    ck_assert_int_eq(block_get(space, 3, BLOCK), -EBADMSG);
    ck_assert_int_eq(CTL("clear"), 0);
    ck_assert_int_eq(CTL("list"), 0);
    ck_assert_msg(strstr(text, "corrupt") == NULL, "%s", text);
    ck_assert(daemon_logged(&d, "[device disk] corrupt ordered by uid"));
    ck_assert_uint_eq(n_of_status(space, 0), N_BLOCKS); /* nothing of it was on the device */
    spw_close(session);
    daemon_deinit(&d);
}
END_TEST

/* Late, and right; no time is asserted but that it is not early. */
START_TEST(test_latency)
{
    begin("inject = yes");
    spw_space *space = cold_blocks();

    ck_assert_int_eq(CTL("device", "disk", "latency", "--latency", "300", "--count", "1"), 0);
    int64_t before = clock_ms();

    ck_assert_int_eq(block_get(space, 5, BLOCK), 0);
    ck_assert_int_ge(clock_ms() - before, 299);
    ck_assert_int_eq(CTL("device", "disk", "latency", "--latency", "50", "--probability", "0.5"), 0);
    ck_assert_uint_eq(n_of_status(space, 0), N_BLOCKS);
    spw_close(session);
    daemon_deinit(&d);
}
END_TEST

/* As a real one: the device is not trusted any more, what memory has stays, and new durable writes are refused. */
START_TEST(test_flush)
{
    begin("inject = yes");
    spw_space *space = daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);

    ck_assert_int_eq(block_put(space, 1, BLOCK), 0);
    ck_assert_int_eq(CTL("device", "disk", "flush-fail", "--count", "1"), 0);
    ck_assert_int_eq(spw_sync(space, NULL, 0, 20000), -EIO);
    ck_assert_int_eq(daemon_admin_number(session, "devices", "devices/0/partitions/0/failed"), -EIO);
    ck_assert_int_eq(block_get(space, 1, BLOCK), 0);
    ck_assert_int_eq(spw_sync(space, NULL, 0, 20000), -EIO); /* also when flushes work again */
    spw_close(session);
    int status = daemon_stop(&d);

    ck_assert_msg(status == 0 || status == 1, "spillwayd ended with %d: %s", status, daemon_log(&d));
    daemon_deinit(&d);
}
END_TEST

/* A flush that failed for one engine is not trusted by the other, which has the other partition: its own would work. */
START_TEST(test_flush_of_another_engine)
{
    daemon_init(&d);
    daemon_format_partitions(&d, 128 * DAEMON_MIB, 2);
    daemon_configure(&d, "inject = yes\nengines = 2", SECTIONS);
    daemon_start(&d);
    session = daemon_connect(&d);
    spw_space *space = daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);

    ck_assert_int_eq(block_put(space, 1, BLOCK), 0);
    ck_assert_int_eq(CTL("device", "disk", "flush-fail", "--count", "1"), 0);
    ck_assert_int_eq(spw_sync(space, NULL, 0, 20000), -EIO);
    for (unsigned i = 0; i < 2; i++) {
        char path[64];

        snprintf(path, sizeof(path), "devices/0/partitions/%u/failed", i);
        while (daemon_admin_number(session, "devices", path) == 0) /* the test's time is the limit */
            sleep_ms(5);
        ck_assert_int_eq(daemon_admin_number(session, "devices", path), -EIO);
    }
    ck_assert(daemon_logged(&d, "[device disk] a flush failed"));
    ck_assert_int_eq(CTL("list"), 0);
    ck_assert_msg(strstr(text, "flush-fail"), "%s", text); /* the other one's is still there: it did not try */
    ck_assert_int_eq(block_get(space, 1, BLOCK), 0);
    spw_close(session);
    int status = daemon_stop(&d);

    ck_assert_msg(status == 0 || status == 1, "spillwayd ended with %d: %s", status, daemon_log(&d));
    daemon_deinit(&d);
}
END_TEST

/* Two engines, and two devices of which one has a partition for the first engine only. */
static void begin_uneven(unsigned disk_partitions, unsigned more_partitions)
{
    char sections[512];

    daemon_init(&d);
    struct daemon more = d;

    snprintf(more.disk, sizeof(more.disk), "%s/more.spill", d.dir);
    daemon_format_partitions(&d, 128 * DAEMON_MIB, disk_partitions);
    daemon_format_partitions(&more, 128 * DAEMON_MIB, more_partitions);
    snprintf(sections, sizeof(sections), SECTIONS "[device more]\npath = %s\n", more.disk);
    daemon_configure(&d, "inject = yes\nengines = 2", sections);
    daemon_start(&d);
    session = daemon_connect(&d);
}

static uint32_t n_of_text(const char *word)
{
    uint32_t n = 0;

    for (const char *at = text; (at = strstr(at, word)) != NULL; at++)
        n++;
    return n;
}

/* The first one is the first engine's, whose blocks lie on both devices; the second one has the other engine, and one device. */
static void open_caches(spw_space *ret_spaces[2])
{
    ret_spaces[0] = daemon_space(session, "default", "first", 0, SPW_CLASS_GENERIC, SPW_CACHE);
    ret_spaces[1] = daemon_space(session, "default", "second", 0, SPW_CLASS_GENERIC, SPW_CACHE);
}

/* A device that one engine has no partition of: that engine is not hit, and the other one only where the device is. */
START_TEST(test_device_of_one_engine)
{
    static const char *const names[] = {"disk", "more"};
    const char *lone = names[_i], *both = names[!_i];
    spw_space *spaces[2];

    begin_uneven(_i == 0 ? 1 : 2, _i == 0 ? 2 : 1);
    open_caches(spaces);
    put_blocks(spaces[0]);
    put_blocks(spaces[1]);
    restart();
    open_caches(spaces);

    ck_assert_int_eq(CTL("device", lone, "eio"), 0);
    ck_assert_uint_eq(n_of_status_within(spaces[1], 0, HALF, 0), HALF);
    uint32_t n_hit = n_of_status_within(spaces[0], 0, HALF, -EIO);

    ck_assert_msg(n_hit > 0 && n_hit < HALF, "%u of %d", n_hit, HALF);
    ck_assert_msg(n_of_text("eio") == 1 && n_of_text(lone) == 1 && n_of_text(both) == 0, "%s", text);
    ck_assert_int_eq(CTL("clear"), 0);

    ck_assert_int_eq(CTL("device", both, "eio"), 0);
    ck_assert_uint_eq(n_of_status_within(spaces[1], HALF, N_BLOCKS, -EIO), HALF);
    n_hit = n_of_status_within(spaces[0], HALF, N_BLOCKS, -EIO);
    ck_assert_msg(n_hit > 0 && n_hit < HALF, "%u of %d", n_hit, HALF);
    ck_assert_msg(n_of_text("eio") == 2 && n_of_text(both) == 2 && n_of_text(lone) == 0, "%s", text);
    ck_assert_int_eq(CTL("clear"), 0);

    ck_assert_uint_eq(n_of_status(spaces[0], 0), N_BLOCKS);
    ck_assert_uint_eq(n_of_status(spaces[1], 0), N_BLOCKS);
    spw_close(session);
    daemon_deinit(&d);
}
END_TEST

/* Off unless configured; words that are no order; and nobody but root. */
START_TEST(test_refused)
{
    begin("");
    ck_assert_int_eq(CTL("list"), 77);
    ck_assert_msg(strstr(text, "inject = yes"), "%s", text);
    ck_assert_int_eq(CTL("device", "disk", "eio"), 77);
    spw_close(session);
    daemon_deinit(&d);

    begin("inject = yes");
    ck_assert_int_eq(CTL("device", "disc", "eio"), 1);
    ck_assert_msg(strstr(text, "there is no [device disc]"), "%s", text);
    ck_assert_int_eq(CTL("device", "disk", "fire"), 1);
    ck_assert_msg(strstr(text, "flush-fail"), "%s", text);
    ck_assert_int_eq(CTL("device", "disk", "eio", "--probability", "2"), 1);
    ck_assert_int_eq(CTL("device", "disk", "eio", "--count", "none"), 64);
    ck_assert_int_eq(CTL("device", "disk", "eio", "--probability", "nan"), 64);
    ck_assert_int_eq(CTL("device", "disk", "eio", "--count", "nan"), 64);
    ck_assert_int_eq(CTL("device", "disk"), 64);
    ck_assert_int_eq(CTL("everything"), 64);
    for (int i = 0; i < 16; i++)
        ck_assert_int_eq(CTL("device", "disk", "eio", "--probability", "0.000001"), 0);
    ck_assert_int_eq(CTL("device", "disk", "eio"), 1);
    ck_assert_int_eq(CTL("clear"), 0);
    spw_close(session);
    daemon_deinit(&d);
}
END_TEST

static void expect_refused(const char *request, int error, const char *why)
{
    char *json = NULL;

    ck_assert_int_eq(spw_admin(session, request, &json), error);
    ck_assert_ptr_null(json);
    ck_assert_msg(strstr(spw_error_text(), why), "%s: %s", request, spw_error_text());
}

/* --- Somebody else --- */

#define STRANGER 12345U

/* As that user and group: 0 if it is refused, and told why; else which step was not as it should be. */
static int refused_to(gid_t gid, const char *request, const char *why)
{
    const struct spw_connect_options to = {.socket_path = d.socket, .timeout_ms = 10000};
    spw_session *other;
    char *json = NULL;
    int status = 0;

    fflush(NULL);
    pid_t pid = fork();

    ck_assert_int_ge(pid, 0);
    if (pid == 0) { /* no assertions */
        if (setgroups(0, NULL) < 0 || setgid(gid) < 0 || setuid(STRANGER) < 0)
            _exit(1);
        if (spw_connect(&to, &other) < 0)
            _exit(2);
        int r = spw_admin(other, request, &json);

        _exit(r == 0 ? 3 : r != -EACCES ? 4 : json || !strstr(spw_error_text(), why) ? 5 : 0);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Nobody but root orders a fault: no stranger, and no administrator who may look at everything. */
START_TEST(test_other_users)
{
    static const char add[] = "{\"inject\":\"add\",\"device\":\"disk\",\"what\":\"eio\"}",
                      list[] = "{\"inject\":\"list\"}";
    static const char get[] = "{\"get\":\"status\"}";
    // cppcheck-suppress getgrgidCalled; there is one thread
    const struct group *group = getgrgid(1);
    char keys[128];

    if (getuid() != 0 || !group) {
        printf("SKIP: needs root, to be others\n");
        return;
    }
    snprintf(keys, sizeof(keys), "inject = yes\nadmin_group = %s", group->gr_name);
    begin(keys);
    ck_assert_int_eq(chmod(d.socket, 0666), 0);
    ck_assert_int_eq(refused_to(STRANGER, add, "this takes root"), 0);
    ck_assert_int_eq(refused_to(STRANGER, get, "this takes root"), 0);
    ck_assert_int_eq(refused_to(1, get, ""), 3); /* an administrator */
    ck_assert_int_eq(refused_to(1, add, "this takes root"), 0);
    ck_assert_int_eq(refused_to(1, list, "this takes root"), 0);
    ck_assert_int_eq(refused_to(1, "{\"inject\":\"clear\"}", "this takes root"), 0);
    ck_assert_int_eq(CTL("list"), 0);
    ck_assert_msg(strstr(text, "eio") == NULL, "%s", text);
    ck_assert_ptr_null(strstr(daemon_log(&d), "ordered by uid"));
    spw_close(session);
    daemon_deinit(&d);
}
END_TEST

/* What is no request of any kind, and orders that spillctl does not make. */
START_TEST(test_requests)
{
    static const char usual[] = "a request is {\"get\": NAME}", bounds[] = "a count is at least 1";
    char long_name[512];

    begin("inject = yes");
    expect_refused("", -EINVAL, usual);
    expect_refused("{}", -EINVAL, usual);
    expect_refused("{\"get\":1}", -EINVAL, usual);
    expect_refused("{\"get\":\"status\"} {}", -EINVAL, usual);
    expect_refused("{\"inject\":[\"list\"]}", -EINVAL, usual);
    expect_refused("{\"inject\":\"list\",\"inject\":\"clear\"}", -EINVAL, usual);
    expect_refused("{\"get\":\"\"}", -EINVAL, "there is status, pools");
    expect_refused("{\"inject\":\"stop\"}", -EINVAL, "an order is list, clear or add");
    expect_refused("{\"inject\":\"add\"}", -ENOENT, "there is no [device ]");
    expect_refused("{\"inject\":\"add\",\"device\":\"disk\"}", -EINVAL, "what can be ordered is");
    expect_refused("{\"inject\":\"add\",\"device\":\"disk\",\"what\":\"eio\",\"count\":\"1\"}", -EINVAL, bounds);
    expect_refused("{\"inject\":\"add\",\"device\":\"disk\",\"what\":\"eio\",\"count\":1e999}", -EINVAL, bounds);
    snprintf(long_name, sizeof(long_name), "{\"get\":\"%0256d\"}", 0);
    expect_refused(long_name, -E2BIG, "a request has at most 8 members");
    ck_assert_int_eq(CTL("device", "disk", "eio", "--probability", "0.25", "--count", "1000000"), 0);
    ck_assert_msg(strstr(text, "250000"), "%s", text);
    spw_close(session);
    daemon_deinit(&d);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("inject");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, test_reads);
    tcase_add_test(tc, test_latency);
    tcase_add_test(tc, test_flush);
    tcase_add_test(tc, test_flush_of_another_engine);
    tcase_add_loop_test(tc, test_device_of_one_engine, 0, 2);
    tcase_add_test(tc, test_refused);
    tcase_add_test(tc, test_other_users);
    tcase_add_test(tc, test_requests);
    suite_add_tcase(suite, tc);
    return suite_main(suite);
}
