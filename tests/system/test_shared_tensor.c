/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tensors in a pool that two users share: nobody can write what others read, so a writer has a copy, and a release
 * publishes it. Through libspillway, with a process for each user (where the test may become another one).
 */
#include <check.h>
#include <errno.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/system/support/daemon.h"

#define OUR_UID 65533 /* the daemon's too, so that we may ask it for numbers and end it; root may not use such a pool */
#define OTHER_UID 65532
#define TENSOR_BYTES (20 * DAEMON_MIB)
#define RANGE_BYTES (10 * DAEMON_MIB)
#define VIEWS 16
#define RANGE_AT (3 * DAEMON_MIB)

static struct daemon d;
static bool two_users;
static int to_child[2], to_parent[2];

static void setup(void)
{
    two_users = geteuid() == 0;
    if (!two_users)
        fprintf(stderr, "SKIP: only root can become another user; two sessions of one user instead\n");
    daemon_init(&d);
    daemon_format(&d, 192 * DAEMON_MIB);
    daemon_configure(&d, "",
                     two_users ? "[tier.dram]\nsize = 128 MiB\n[pool shared]\ntrusted = no\nusers = 65532, 65533\n"
                               : "[tier.dram]\nsize = 128 MiB\n[pool shared]\ntrusted = no\n");
    if (two_users) {
        d.system_mode = true;
        d.uid = OUR_UID;
        ck_assert_int_eq(chown(d.dir, OUR_UID, OUR_UID), 0);
        ck_assert_int_eq(chmod(d.dir, 0755), 0);
        ck_assert_int_eq(chown(d.disk, OUR_UID, OUR_UID), 0);
        ck_assert_int_eq(chmod(d.config, 0644), 0);
    }
    daemon_start(&d);
    ck_assert_int_eq(chmod(d.socket, 0666), 0);
    ck_assert_int_eq(pipe(to_child), 0);
    ck_assert_int_eq(pipe(to_parent), 0);
}

static void teardown(void)
{
    daemon_deinit(&d);
}

/* The two take turns. */
static void say(const int fds[2])
{
    ck_assert_int_eq(write(fds[1], "x", 1), 1);
}

static void hear(const int fds[2])
{
    char byte;

    ck_assert_int_eq(read(fds[0], &byte, 1), 1);
}

static void become(uid_t uid)
{
    if (two_users && (setgroups(0, NULL) < 0 || setgid(uid) < 0 || setuid(uid) < 0))
        _exit(2);
}

static spw_session *connect_us(void)
{
    become(OUR_UID);
    return daemon_connect(&d);
}

static pid_t other_user(void (*work)(spw_space *space))
{
    fflush(NULL);
    pid_t pid = fork();

    ck_assert_int_ge(pid, 0);
    close(to_child[pid > 0 ? 0 : 1]); /* so that each hears of the other's end */
    close(to_parent[pid > 0 ? 1 : 0]);
    if (pid > 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    become(OTHER_UID);
    spw_session *session = daemon_connect(&d);

    work(daemon_space(session, "shared", "tensors", 0, SPW_CLASS_OPTIMIZER, SPW_SCRATCH));
    spw_close(session);
    _exit(0);
}

static void join(pid_t pid)
{
    int status = -1;

    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
}

static struct spw_key name_of(const char *name)
{
    struct spw_key key;

    ck_assert_int_eq(spw_key_init(&key, name, strlen(name), 0), 0);
    return key;
}

/* Written by the parent and the child in turn; what version they see where. */
static void expect_version(spw_space *space, uint64_t at, uint64_t size_bytes, uint64_t version)
{
    struct spw_key name = name_of("t");
    char *bytes = malloc(size_bytes);

    ck_assert_ptr_nonnull(bytes);
    ck_assert_int_eq(spw_get_range(space, &name, at, bytes, size_bytes, 10000), 0);
    ck_assert(version > 0 ? pattern_is(bytes, size_bytes, at, version)
                          : bytes[0] == 0 && memcmp(bytes, bytes + 1, size_bytes - 1) == 0);
    free(bytes);
}

static void write_version(spw_space *space, uint64_t version)
{
    struct spw_key name = name_of("t");
    char *bytes = malloc(RANGE_BYTES);

    ck_assert_ptr_nonnull(bytes);
    pattern_fill(bytes, RANGE_BYTES, RANGE_AT, version);
    int r = spw_put_range(space, &name, RANGE_AT, bytes, RANGE_BYTES, 10000);

    ck_assert_msg(r == 0, "%d: %s", r, spw_error_text());
    free(bytes);
}

/* --- Two who write and read ---------------------------------------------------------------------------------------- */

static void reader(spw_space *space)
{
    struct spw_key name = name_of("t");
    struct spw_view held;

    hear(to_child);
    expect_version(space, RANGE_AT, RANGE_BYTES, 1);
    expect_version(space, 0, RANGE_AT, 0);
    /* What is held does not change; what is read anew does. */
    ck_assert_int_eq(spw_acquire_range(space, &name, DAEMON_MIB, DAEMON_MIB, 0, 10000, &held, 1), 1);
    ck_assert_int_eq(held.status, 0);
    char *before = malloc(held.size_bytes);

    ck_assert_ptr_nonnull(before);
    memcpy(before, held.data, held.size_bytes);
    say(to_parent);
    hear(to_child);
    expect_version(space, RANGE_AT, RANGE_BYTES, 2);
    ck_assert_mem_eq(before, held.data, held.size_bytes);
    ck_assert_int_eq(spw_release(space, &held, 1, 0), 0);
    free(before);
    write_version(space, 3);
    say(to_parent);
}

START_TEST(test_two_users)
{
    pid_t pid = other_user(reader);
    spw_session *session = connect_us();
    spw_space *space = daemon_space(session, "shared", "tensors", 0, SPW_CLASS_OPTIMIZER, SPW_SCRATCH);
    struct spw_key name = name_of("t");

    ck_assert_int_eq(spw_tensor_open(space, &name, TENSOR_BYTES), 0);
    write_version(space, 1);
    say(to_child);
    hear(to_parent);
    write_version(space, 2);
    say(to_child);
    hear(to_parent);
    expect_version(space, RANGE_AT, RANGE_BYTES, 3);
    join(pid);
    spw_close(session);
}
END_TEST

/* --- A writer that is killed ----------------------------------------------------------------------------------------- */

static void doomed(spw_space *space)
{
    struct spw_key name = name_of("t");
    struct spw_view views[VIEWS];

    hear(to_child);
    long n = spw_acquire_range(space, &name, RANGE_AT, RANGE_BYTES, SPW_WRITE, 10000, views, VIEWS);
    ck_assert_int_gt(n, 1); /* several pieces */
    for (long i = 0; i < n; i++) {
        ck_assert_int_eq(views[i].status, 0);
        memset(views[i].data, 0xee, views[i].size_bytes);
    }
    say(to_parent);
    hear(to_child);
    raise(SIGKILL); /* another user could not */
}

static void expect_nothing_leased(spw_session *session)
{
    int64_t bytes = 1;

    for (int i = 0; i < 250 && bytes > 0; i++) {
        if (i > 0)
            sleep_ms(20);
        bytes = daemon_admin_number(session, "pools", "pools/0/dram/leased_bytes") +
                daemon_admin_number(session, "pools", "pools/0/dram/admitted_bytes");
    }
    ck_assert_int_eq(bytes, 0);
}

START_TEST(test_killed_writer)
{
    pid_t pid = other_user(doomed);
    spw_session *session = connect_us();
    spw_space *space = daemon_space(session, "shared", "tensors", 0, SPW_CLASS_OPTIMIZER, SPW_SCRATCH);
    struct spw_key name = name_of("t");

    ck_assert_int_eq(spw_tensor_open(space, &name, TENSOR_BYTES), 0);
    write_version(space, 1);
    say(to_child);
    hear(to_parent);
    expect_version(space, RANGE_AT, RANGE_BYTES, 1); /* nobody sees what it writes */
    say(to_child);
    ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
    expect_nothing_leased(session);
    expect_version(space, RANGE_AT, RANGE_BYTES, 1); /* and it is not torn */
    write_version(space, 2);
    expect_version(space, RANGE_AT, RANGE_BYTES, 2);
    spw_close(session);
}
END_TEST

/* --- In place, and as an arena ----------------------------------------------------------------------------------------- */

START_TEST(test_in_place)
{
    spw_session *session = connect_us();
    spw_space *space = daemon_space(session, "shared", "tensors", 0, SPW_CLASS_OPTIMIZER, SPW_SCRATCH);
    struct spw_key name = name_of("t"), block = block_key(7);
    const uint64_t size_bytes = 64 << 10;
    struct spw_view view;

    ck_assert_int_eq(spw_tensor_open(space, &name, TENSOR_BYTES), 0);
    ck_assert_int_eq(block_put(space, 7, size_bytes), 0);
    /* Without waiting there is no copy. */
    ck_assert_int_eq(spw_acquire_range(space, &name, 4096, 4096, SPW_WRITE | SPW_NO_WAIT, 0, &view, 1), 1);
    ck_assert_int_eq(view.status, -EAGAIN);
    for (int dirty = 0; dirty < 2; dirty++) {
        ck_assert_int_eq(spw_acquire_range(space, &name, 4096, 2 * size_bytes, SPW_WRITE, 10000, &view, 1), 1);
        ck_assert_int_eq(view.status, 0);
        int32_t status = 1;

        ck_assert_int_eq(spw_get_to_view(space, &block, &size_bytes, 1, &view, size_bytes, 10000, &status), 0);
        ck_assert_int_eq(status, 0);
        pattern_fill(view.data, size_bytes, 4096, 9);
        struct spw_key copy = block_key(100 + (uint64_t)dirty);

        ck_assert_int_eq(spw_put_from_view(space, &copy, &size_bytes, 1, &view, size_bytes, 10000, &status), 0);
        ck_assert_int_eq(status, 0);
        ck_assert_int_eq(spw_release(space, &view, 1, dirty ? SPW_DIRTY : SPW_DISCARD), 0);
        ck_assert_int_eq(view.status, 0);
        expect_version(space, 4096, size_bytes, dirty ? 9 : 0);
    }
    struct spw_view view7, copy;
    struct spw_key keys[2] = {block_key(7), block_key(101)};

    ck_assert_int_eq(spw_acquire(space, &keys[0], 1, 0, 10000, &view7), 0);
    ck_assert_int_eq(spw_acquire(space, &keys[1], 1, 0, 10000, &copy), 0);
    ck_assert_int_eq(copy.status, 0);
    ck_assert_mem_eq(view7.data, copy.data, size_bytes);
    ck_assert_int_eq(spw_release(space, &view7, 1, 0), 0);
    ck_assert_int_eq(spw_release(space, &copy, 1, 0), 0);
    expect_nothing_leased(session);
    spw_close(session);
}
END_TEST

/* More than are asked for at once, out of views in any order. */
START_TEST(test_blocks_of_views)
{
    enum { N = 40 };
    spw_session *session = connect_us();
    spw_space *space = daemon_space(session, "shared", "tensors", 0, SPW_CLASS_OPTIMIZER, SPW_SCRATCH);
    const uint64_t size_bytes = 4096;
    struct spw_key names[N], keys[N];
    struct spw_view views[N], blocks[N];
    int32_t statuses[N];
    uint8_t expected[4096];

    for (uint32_t i = 0; i < N; i++) {
        names[i] = block_key(1000 + i);
        keys[i] = block_key(2000 + i);
        statuses[i] = 1;
        pattern_fill(expected, size_bytes, 0, i);
        ck_assert_int_eq(spw_tensor_open(space, &names[i], size_bytes), 0);
        ck_assert_int_eq(spw_put_range(space, &names[i], 0, expected, size_bytes, 10000), 0);
        ck_assert_int_eq(spw_acquire(space, &names[i], 1, 0, 10000, &views[N - 1 - i]), 0);
    }
    ck_assert_int_eq(spw_put_from_views(space, keys, views, N, 10000, statuses), 0);
    ck_assert_int_eq(spw_put_from_views(space, keys, views, 0, 10000, NULL), 0);
    ck_assert_int_eq(spw_acquire(space, keys, N, 0, 10000, blocks), 0);
    for (uint32_t i = 0; i < N; i++) {
        ck_assert_int_eq(statuses[i], 0);
        pattern_fill(expected, size_bytes, 0, N - 1 - i);
        ck_assert_mem_eq(blocks[i].data, expected, size_bytes);
    }
    ck_assert_int_eq(spw_release(space, blocks, N, 0), 0);
    ck_assert_int_eq(spw_put_from_views(space, keys, views, 1, 10000, statuses), 0);
    ck_assert_int_eq(statuses[0], -EEXIST); /* a block is what it is */
    ck_assert_int_eq(spw_release(space, views, N, 0), 0);
    ck_assert_int_eq(spw_put_from_views(space, keys, views, N, 10000, statuses), -EINVAL); /* they are not leased */
    ck_assert_int_eq(spw_put_from_views(space, NULL, views, N, 10000, statuses), -EINVAL);
    expect_nothing_leased(session);
    spw_close(session);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("shared_tensor");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_two_users);
    tcase_add_test(tc, test_killed_writer);
    tcase_add_test(tc, test_blocks_of_views);
    tcase_add_test(tc, test_in_place);
    suite_add_tcase(suite, tc);
    return suite_main(suite);
}
