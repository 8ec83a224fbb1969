/* SPDX-License-Identifier: Apache-2.0 */
/* Opening, locking, identifying and filling of files and of loop devices. */
#include "io/device.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "include/base/cleanup.h"
#include "include/base/limits.h"

static uint32_t n_skipped;
static char dir[200], path[256];

static void skip(const char *what)
{
    n_skipped++;
    printf("SKIP: %s\n", what);
}

static void setup(void)
{
    const char *tmp = getenv("TMPDIR");

    snprintf(dir, sizeof(dir), "%s/spillway-device-XXXXXX", tmp ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/disk", dir);
}

static void teardown(void)
{
    (void)unlink(path);
    (void)rmdir(dir);
}

static struct device create(uint64_t size_bytes)
{
    struct device d = DEVICE_NONE;
    const char *why = NULL;
    int r = device_create(path, size_bytes, 0, &d, &why);

    ck_assert_msg(r == 0, "device_create: %s (%s)", strerror(-r), why);
    return d;
}

static void assert_open_fails(const char *at, uint32_t flags, int r, const char *word)
{
    struct device d = {.fd = -77};
    const char *why = NULL;

    ck_assert_int_eq(device_open(at, flags, &d, &why), r);
    ck_assert_int_eq(d.fd, -77);
    ck_assert_ptr_nonnull(why);
    ck_assert_msg(strstr(why, word) != NULL, "`%s` in: %s", word, why);
}

struct watch {
    uint64_t last_bytes, cancel_at_bytes;
};

static bool on_progress(void *ctx, uint64_t done_bytes, uint64_t total_bytes)
{
    struct watch *w = ctx;

    ck_assert_uint_le(done_bytes, total_bytes);
    ck_assert_uint_ge(done_bytes, w->last_bytes);
    w->last_bytes = done_bytes;
    return done_bytes < w->cancel_at_bytes;
}

START_TEST(test_create_fill_and_open)
{
    struct watch w = {.cancel_at_bytes = UINT64_MAX};
    struct device d = create(10 * MIB + SECTOR_BYTES);
    const char *why = NULL;
    uint64_t now_bytes = 0;

    ck_assert_int_eq(device_fill(d.fd, d.size_bytes, on_progress, &w), 0);
    ck_assert_uint_eq(w.last_bytes, 10 * MIB + SECTOR_BYTES);
    device_close(&d);
    ck_assert_int_eq(d.fd, -1);
    ck_assert_int_eq(device_open(path, 0, &d, &why), 0);
    ck_assert(!d.is_block);
    ck_assert_uint_eq(d.size_bytes, 10 * MIB + SECTOR_BYTES);
    ck_assert_uint_le(d.logical_block_bytes, SECTOR_BYTES);
    ck_assert_uint_gt(d.memory_align_bytes, 0);
    ck_assert_int_ge(d.is_rotational, -1);
    ck_assert((fcntl(d.fd, F_GETFD) & FD_CLOEXEC) != 0);
    ck_assert(((fcntl(d.fd, F_GETFL) & O_DIRECT) != 0) == d.is_direct);
    ck_assert_int_eq(fcntl(d.fd, F_GETFL) & O_NONBLOCK, 0);
    ck_assert_int_eq(device_size_now(&d, &now_bytes), 0);
    ck_assert_uint_eq(now_bytes, d.size_bytes);
    ck_assert_int_eq(truncate(path, MIB), 0);
    ck_assert_int_eq(device_size_now(&d, &now_bytes), 0);
    ck_assert_uint_eq(now_bytes, MIB);
    device_close(&d);
    device_close(&d);
}
END_TEST

START_TEST(test_fill_can_be_cancelled_and_fails_with_words)
{
    struct watch w = {.cancel_at_bytes = 5 * MIB};
    struct device d = create(16 * MIB);

    ck_assert_int_eq(device_fill(d.fd, d.size_bytes, on_progress, &w), -ECANCELED);
    ck_assert_uint_lt(w.last_bytes, 16 * MIB);
    device_close(&d);
    int full = open("/dev/full", O_RDWR | O_CLOEXEC);
    ck_assert_int_eq(device_fill(full, MIB, NULL, NULL), -ENOSPC);
    close(full);
}
END_TEST

START_TEST(test_two_daemons)
{
    struct device d = create(MIB);

    assert_open_fails(path, 0, -EBUSY, "another daemon");
    assert_open_fails(path, DEVICE_READ_ONLY, -EBUSY, "another daemon");
    device_close(&d);
    const char *why = NULL;
    ck_assert_int_eq(device_open(path, 0, &d, &why), 0);
    device_close(&d);
}
END_TEST

START_TEST(test_holes_are_refused_unless_wanted)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    struct device d;
    const char *why = NULL;

    ck_assert_int_eq(ftruncate(fd, 8 * MIB), 0);
    close(fd);
    assert_open_fails(path, 0, -EINVAL, "holes");
    ck_assert_int_eq(device_open(path, DEVICE_SPARSE, &d, &why), 0);
    ck_assert_int_eq(device_fill(d.fd, d.size_bytes, NULL, NULL), 0);
    device_close(&d);
    ck_assert_int_eq(device_open(path, 0, &d, &why), 0);
    device_close(&d);
    unlink(path);
    ck_assert_int_eq(device_create(path, 8 * MIB, DEVICE_SPARSE, &d, &why), 0);
    ck_assert_uint_eq(d.size_bytes, 8 * MIB);
    device_close(&d);
    assert_open_fails(path, 0, -EINVAL, "holes");
}
END_TEST

START_TEST(test_what_is_no_device)
{
    assert_open_fails("/nonexistent/disk", 0, -ENOENT, "no such");
    assert_open_fails("/dev/null", 0, -EINVAL, "neither");
    assert_open_fails(dir, 0, -EISDIR, "directory");
    ck_assert_int_eq(mkfifo(path, 0600), 0);
    assert_open_fails(path, 0, -EINVAL, "neither");
    unlink(path);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    ck_assert_int_eq(write(fd, "tiny", 4), 4);
    close(fd);
    assert_open_fails(path, 0, -ENOSPC, "smaller");
}
END_TEST

START_TEST(test_create_does_not_touch_what_exists)
{
    struct device d = create(MIB), other = {.fd = -77};
    const char *why = NULL;
    struct stat st;

    device_close(&d);
    ck_assert_int_eq(device_create(path, 2 * MIB, 0, &other, &why), -EEXIST);
    ck_assert_ptr_nonnull(strstr(why, "exists"));
    ck_assert_int_eq(other.fd, -77);
    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_int_eq(st.st_size, MIB);
    ck_assert_uint_eq(st.st_mode & 0777, 0600);
    unlink(path);
    ck_assert_int_eq(device_create(path, 1000, 0, &other, &why), -EINVAL);
    ck_assert_int_eq(device_create(path, 4096 * TIB, 0, &other, &why) < 0, 1);
    ck_assert_int_eq(stat(path, &st), -1); /* nothing is left behind */
}
END_TEST

START_TEST(test_tmpfs_works_in_some_way)
{
    char on_tmpfs[] = "/dev/shm/spillway-device-XXXXXX";
    int fd = mkstemp(on_tmpfs);
    struct device d;
    const char *why = NULL;

    if (fd < 0) {
        skip("tmpfs (no /dev/shm)");
        return;
    }
    close(fd);
    ck_assert_int_eq(truncate(on_tmpfs, 2 * MIB), 0);
    ck_assert_int_eq(device_open(on_tmpfs, DEVICE_SPARSE, &d, &why), 0);
    ck_assert_int_eq(device_fill(d.fd, d.size_bytes, NULL, NULL), 0);
    device_close(&d);
    unlink(on_tmpfs);
}
END_TEST

/* Runs a command and takes its first line. */
static bool run_command(const char *command, char *line, int size)
{
    FILE *p = popen(command, "re");
    bool ok = p && fgets(line, size, p) != NULL;

    if (ok)
        line[strcspn(line, "\n")] = '\0';
    return p && pclose(p) == 0 && ok;
}

START_TEST(test_loop_device)
{
    struct device d = create(8 * MIB);
    char command[512], loop[128] = "";
    const char *why = NULL;

    device_close(&d);
    snprintf(command, sizeof(command), "losetup --find --show --direct-io=on %s 2>/dev/null", path);
    if (geteuid() != 0 || !run_command(command, loop, sizeof(loop))) {
        skip("loop device (needs root and losetup)");
        return;
    }
    int r = device_open(loop, 0, &d, &why);
    bool is_right = r == 0 && d.is_block && d.is_direct && d.size_bytes == 8 * MIB && d.logical_block_bytes <= 4096;
    struct device again = DEVICE_NONE;
    int r_again = device_open(loop, 0, &again, &why);
    int r_fill = r == 0 ? device_fill(d.fd, d.size_bytes, NULL, NULL) : -1;
    uint64_t now_bytes = 0;
    int r_size = r == 0 ? device_size_now(&d, &now_bytes) : -1;
    device_close(&d);
    device_close(&again);
    snprintf(command, sizeof(command), "losetup --detach %s && echo done", loop);
    ck_assert(run_command(command, loop, sizeof(loop)));
    ck_assert_int_eq(r, 0);
    ck_assert(is_right);
    ck_assert_int_eq(r_again, -EBUSY);
    ck_assert_int_eq(r_fill, 0);
    ck_assert_int_eq(r_size, 0);
    ck_assert_uint_eq(now_bytes, 8 * MIB);
}
END_TEST

START_TEST(test_blocks_above_4_kib_are_refused)
{
    char command[512], loop[128] = "";
    struct device d = create(8 * MIB);

    device_close(&d);
    snprintf(command, sizeof(command), "losetup --find --show --sector-size 8192 %s 2>/dev/null", path);
    if (geteuid() != 0 || !run_command(command, loop, sizeof(loop))) {
        skip("blocks above 4 KiB (no loop device can have them here)");
        return;
    }
    struct device none = DEVICE_NONE;
    const char *why = "";
    int r = device_open(loop, 0, &none, &why);
    snprintf(command, sizeof(command), "losetup --detach %s && echo done", loop);
    ck_assert(run_command(command, loop, sizeof(loop)));
    device_close(&none);
    ck_assert_int_eq(r, -EINVAL);
    ck_assert_ptr_nonnull(strstr(why, "4 KiB"));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("device");
    TCase *t = tcase_create("device");
    SRunner *sr = srunner_create(s);

    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, test_create_fill_and_open);
    tcase_add_test(t, test_fill_can_be_cancelled_and_fails_with_words);
    tcase_add_test(t, test_two_daemons);
    tcase_add_test(t, test_holes_are_refused_unless_wanted);
    tcase_add_test(t, test_what_is_no_device);
    tcase_add_test(t, test_create_does_not_touch_what_exists);
    tcase_add_test(t, test_tmpfs_works_in_some_way);
    tcase_add_test(t, test_loop_device);
    tcase_add_test(t, test_blocks_above_4_kib_are_refused);
    suite_add_tcase(s, t);
    srunner_set_fork_status(sr, CK_NOFORK); /* so that skips are counted here */
    srunner_run_all(sr, CK_NORMAL);
    int n_failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    printf("%u skipped\n", n_skipped);
    return n_failed == 0 ? 0 : 1;
}
