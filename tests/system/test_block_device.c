/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A raw block device, for which a loop device stands in: formatted as a whole, used, found again, and kept for one
 * daemon. One whose backing store runs out under it: a thin disk that lies about its size. And one that disappears. Root
 * only.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "include/base/atomic.h"
#include "tests/system/support/daemon.h"

#define BLOCK (256 * 1024)
#define SECTIONS "[tier.dram]\nsize = 64 MiB\n[pool default]\n"
#define DISK_BYTES (96 * DAEMON_MIB)
#define SKIPPED 77

static struct daemon d;
static char backing[160], mount_point[128];

/* The loop device goes when its last user does. Returns a descriptor that is one, or a negative errno. */
static int loop_attach(const char *file, char *ret_path, size_t path_bytes)
{
    struct loop_info64 info = {.lo_flags = LO_FLAGS_AUTOCLEAR};
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    int number = control < 0 ? -1 : ioctl(control, LOOP_CTL_GET_FREE), r = -errno;

    if (control >= 0)
        close(control);
    if (number < 0)
        return r;
    snprintf(ret_path, path_bytes, "/dev/loop%d", number);
    int back = open(file, O_RDWR | O_CLOEXEC), loop = open(ret_path, O_RDWR | O_CLOEXEC);

    r = loop < 0 || back < 0 || ioctl(loop, LOOP_SET_FD, back) < 0 || ioctl(loop, LOOP_SET_STATUS64, &info) < 0 ? -errno
                                                                                                                : loop;
    if (back >= 0)
        close(back);
    if (r < 0 && loop >= 0)
        close(loop);
    return r;
}

static int make_backing(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    int r = fd < 0 || ftruncate(fd, (off_t)DISK_BYTES) < 0 ? -errno : 0;

    if (fd >= 0)
        close(fd);
    return r;
}

static int format(void)
{
    const char *const args[] = {"device", "format", "--force", "--partitions", "1", "--segment", "1 MiB", d.disk, NULL};
    char text[2048];
    int status = daemon_run_program("spillctl", args, text, sizeof(text));

    ck_assert_msg(status == 0, "spillctl device format: %d: %s", status, text);
    d.disk_bytes = DISK_BYTES;
    return status;
}

/* A daemon whose device is a loop device; its descriptor. */
static int start_on_loop(void)
{
    daemon_init(&d);
    snprintf(backing, sizeof(backing), "%s/backing", d.dir);
    ck_assert_int_eq(make_backing(backing), 0);
    int loop = loop_attach(backing, d.disk, sizeof(d.disk));

    ck_assert_int_ge(loop, 0);
    format();
    daemon_configure(&d, "", SECTIONS);
    daemon_start(&d);
    return loop;
}

START_TEST(test_used)
{
    struct daemon second;

    int loop = start_on_loop();
    spw_session *session = daemon_connect(&d);
    spw_space *space = daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);

    for (uint64_t i = 0; i < 100; i++)
        ck_assert_int_eq(block_put(space, i, BLOCK), 0);
    ck_assert_int_eq(spw_sync(space, NULL, 0, 30000), 0);
    ck_assert_int_eq(daemon_admin_number(session, "devices", "devices/0/block_device"), 1);
    daemon_init(&second);
    snprintf(second.disk, sizeof(second.disk), "%s", d.disk);
    second.disk_bytes = DISK_BYTES;
    daemon_configure(&second, "", SECTIONS);
    ck_assert_int_eq(daemon_start_refused(&second), 1);
    ck_assert_msg(strstr(daemon_log(&second), "in use") != NULL, "%s", daemon_log(&second));
    daemon_deinit(&second);

    spw_close(session);
    daemon_kill(&d);
    daemon_start(&d);
    session = daemon_connect(&d);
    space = daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);
    for (uint64_t i = 0; i < 100; i++)
        ck_assert_int_eq(block_get(space, i, BLOCK), 0);
    spw_close(session);
    daemon_deinit(&d);
    close(loop);
}
END_TEST

/* 96 MiB that lie on a file system of 24 MiB. */
START_TEST(test_backing_runs_out)
{
    daemon_init(&d);
    snprintf(mount_point, sizeof(mount_point), "%s/small", d.dir);
    ck_assert_int_eq(mkdir(mount_point, 0700), 0);
    ck_assert_int_eq(mount("tmpfs", mount_point, "tmpfs", 0, "size=24m"), 0);
    snprintf(backing, sizeof(backing), "%s/backing", mount_point);
    ck_assert_int_eq(make_backing(backing), 0);
    int loop = loop_attach(backing, d.disk, sizeof(d.disk));

    ck_assert_int_ge(loop, 0);
    ck_assert_int_eq(umount2(mount_point, MNT_DETACH), 0); /* it lives as long as the loop device */
    ck_assert_int_eq(rmdir(mount_point), 0);
    format();
    daemon_configure(&d, "", SECTIONS);
    daemon_start(&d);
    spw_session *session = daemon_connect(&d);
    spw_space *space = daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);
    spw_space *hot = daemon_space(session, "default", "cache", 0, SPW_CLASS_KV, SPW_CACHE);
    uint64_t n_synced = 0;
    int r = 0;

    for (uint64_t i = 0; i < 300 && r == 0; i++) {
        r = block_put(space, i, BLOCK);
        if (r == 0)
            r = spw_sync(space, NULL, 0, 30000);
        n_synced += r == 0;
    }
    ck_assert_int_eq(r, -EIO);
    ck_assert_uint_ge(n_synced, 20);
    for (uint64_t i = 0; i < n_synced; i++)
        ck_assert_int_eq(block_get(space, i, BLOCK), 0);
    for (uint64_t i = 1000; i < 1400; i++) {
        ck_assert_int_eq(block_put(hot, i, BLOCK), 0);
        ck_assert_int_eq(block_get(hot, i, BLOCK), 0);
    }
    ck_assert(daemon_lives(&d));
    spw_close(session);
    int status = daemon_stop(&d);

    ck_assert_msg(status == 0 || status == 1, "spillwayd ended with %d: %s", status, daemon_log(&d));
    daemon_start(&d); /* what was acknowledged is there */
    session = daemon_connect(&d);
    space = daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);
    for (uint64_t i = 0; i < n_synced; i++)
        ck_assert_int_eq(block_get(space, i, BLOCK), 0);
    spw_close(session);
    (void)daemon_stop(&d);
    daemon_deinit(&d);
    close(loop);
}
END_TEST

/* --- One that disappears --- */

#define N_COLD 40
#define LOAD_FIRST 10000
#define LOAD_BLOCKS 200 /* of each kind: with those of the other, more than memory holds */

/* A client that goes on whatever it is told. No assertions: they are not for threads. */
struct load {
    uint32_t stop, n_done, n_eio; /* atomic */
    int unexpected;               /* the first status that is no promise */
};

static void load_note(struct load *load, int status, int also)
{
    if (status == -EIO)
        store_relaxed(&load->n_eio, load->n_eio + 1);
    else if (status < 0 && status != also && load->unexpected == 0)
        load->unexpected = status;
    store_relaxed(&load->n_done, load->n_done + 1);
}

static void *load_main(void *arg)
{
    struct load *load = arg;
    spw_session *session = daemon_connect(&d);
    spw_space *hot = daemon_space(session, "default", "cache", 0, SPW_CLASS_KV, SPW_CACHE);
    spw_space *kept = daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);

    for (uint64_t i = 0; !load_relaxed(&load->stop); i++) {
        uint64_t number = LOAD_FIRST + i % LOAD_BLOCKS;

        load_note(load, block_put(hot, number, BLOCK), -EEXIST);
        load_note(load, block_get(hot, LOAD_FIRST + i * 7 % LOAD_BLOCKS, BLOCK), -ENOENT);
        if (i < LOAD_BLOCKS / 4) /* what cannot be written stays in memory: not all of it */
            load_note(load, block_put(kept, number, BLOCK), -EEXIST);
        load_note(load, spw_sync(kept, NULL, 0, 30000), 0);
    }
    spw_close(session);
    return NULL;
}

/* As of a drive that was pulled out, the kernel has no sector of it any more: it begins where its file ends. */
static void loop_disappears(int loop)
{
    struct loop_info64 info = {.lo_flags = LO_FLAGS_AUTOCLEAR, .lo_offset = DISK_BYTES};

    ck_assert_int_eq(ioctl(loop, LOOP_SET_STATUS64, &info), 0);
    ck_assert_int_eq(lseek(loop, 0, SEEK_END), 0);
}

static void load_goes_on(struct load *load, uint32_t n)
{
    for (uint32_t from = load_relaxed(&load->n_done); load_relaxed(&load->n_done) - from < n; sleep_ms(5))
        ck_assert(daemon_lives(&d)); /* the test's time is the limit */
}

static void put_cold(spw_space *space)
{
    for (uint64_t i = 0; i < N_COLD; i++)
        ck_assert_int_eq(block_put(space, i, BLOCK), 0);
    ck_assert_int_eq(spw_sync(space, NULL, 0, 30000), 0);
}

START_TEST(test_disappears)
{
    struct load load = {0};
    pthread_t thread;

    int loop = start_on_loop();
    spw_session *session = daemon_connect(&d);

    put_cold(daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE));
    spw_close(session);
    ck_assert_int_eq(daemon_stop(&d), 0);
    daemon_start(&d); /* they are on the device alone */
    session = daemon_connect(&d);
    spw_space *cold = daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);
    spw_space *hot = daemon_space(session, "default", "cache", 0, SPW_CLASS_KV, SPW_CACHE);

    ck_assert_int_eq(pthread_create(&thread, NULL, load_main, &load), 0);
    load_goes_on(&load, 100);
    ck_assert_uint_eq(load_relaxed(&load.n_eio), 0);
    loop_disappears(loop);
    load_goes_on(&load, 400);
    for (uint64_t i = 0; i < N_COLD; i++) { /* nobody has read them */
        int r = block_get(cold, i, BLOCK);

        ck_assert_msg(r == -EIO, "block %llu: %d: %s", (unsigned long long)i, r, daemon_log_end(&d));
    }
    ck_assert_int_eq(block_put(cold, N_COLD, BLOCK), 0);
    ck_assert_int_eq(spw_sync(cold, NULL, 0, 30000), -EIO);
    ck_assert_int_eq(block_get(cold, N_COLD, BLOCK), 0); /* memory keeps it */
    for (uint64_t i = 1000; i < 1400; i++) {             /* the other client's blocks may push it out at once */
        ck_assert_int_eq(block_put(hot, i, BLOCK), 0);
        int r = block_get(hot, i, BLOCK);

        ck_assert_msg(r == 0 || r == -ENOENT, "block %llu: %d", (unsigned long long)i, r);
    }
    store_relaxed(&load.stop, 1);
    pthread_join(thread, NULL);
    for (uint64_t i = 2000; i < 2400; i++) {
        ck_assert_int_eq(block_put(hot, i, BLOCK), 0);
        ck_assert_int_eq(block_get(hot, i, BLOCK), 0);
    }
    printf("beside it %u calls, %u of them EIO\n", load.n_done, load.n_eio);
    ck_assert_int_eq(load.unexpected, 0);
    ck_assert_uint_gt(load.n_eio, 0);
    ck_assert_int_eq(daemon_admin_number(session, "devices", "devices/0/partitions/0/checksum_errors"), 0);
    ck_assert_int_lt(daemon_admin_number(session, "devices", "devices/0/partitions/0/failed"), 0);
    spw_close(session);
    int status = daemon_stop(&d);

    ck_assert_msg(status == 0 || status == 1, "spillwayd ended with %d: %s", status, daemon_log(&d));
    daemon_deinit(&d);
    close(loop);
}
END_TEST

/* Why there can be no loop device here, or NULL. */
static const char *why_not(void)
{
    char file[] = "/var/tmp/spillway-test-XXXXXX", path[64];
    int fd, r;

    if (geteuid() != 0)
        return "only root can make loop devices";
    fd = mkstemp(file);
    r = fd < 0 ? -errno : make_backing(file);
    if (fd >= 0)
        close(fd);
    if (r == 0)
        r = loop_attach(file, path, sizeof(path));
    (void)unlink(file);
    if (r >= 0)
        close(r);
    return r < 0 ? strerror(-r) : NULL;
}

int main(void)
{
    Suite *suite = suite_create("block_device");
    TCase *tc = tcase_create("all");
    const char *why = why_not();

    if (why) {
        printf("SKIP: no loop device: %s\n", why);
        srunner_free(srunner_create(suite));
        return SKIPPED;
    }
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, test_used);
    tcase_add_test(tc, test_backing_runs_out);
    tcase_add_test(tc, test_disappears);
    suite_add_tcase(suite, tc);
    return suite_main(suite);
}
