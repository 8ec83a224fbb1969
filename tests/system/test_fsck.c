/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spillctl fsck: it finds what was done to a device, writes nothing unless it is told to, and what it has repaired a
 * daemon serves. Places on the device are found by their bytes, not through the code under test.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "io/format.h"
#include "tests/system/support/daemon.h"

#define BLOCK (256 * 1024)
#define N_CACHE 60
#define N_DURABLE 20
#define DISK_BYTES (64 * DAEMON_MIB)
#define SECTOR 4096
#define SECTIONS "[tier.dram]\nsize = 64 MiB\n[pool default]\n"

#define GOOD 0
#define REPAIRED 1
#define LEFT 4
#define CANNOT 8

static struct daemon d;
static spw_session *session;
static char text[1 << 16];

static spw_space *cache(void)
{
    return daemon_space(session, "default", "cache", 0, SPW_CLASS_KV, SPW_CACHE);
}

static spw_space *durable(void)
{
    return daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);
}

static void begin(void)
{
    daemon_start(&d);
    session = daemon_connect(&d);
}

static void end(bool cleanly)
{
    spw_close(session);
    if (cleanly)
        ck_assert_int_eq(daemon_stop(&d), 0);
    else
        daemon_kill(&d);
}

static void fill(void)
{
    spw_space *kept = durable(), *hot = cache();

    for (uint64_t i = 0; i < N_DURABLE; i++)
        ck_assert_int_eq(block_put(kept, i, BLOCK), 0);
    ck_assert_int_eq(spw_sync(kept, NULL, 0, 20000), 0);
    for (uint64_t i = 1000; i < 1000 + N_CACHE; i++)
        ck_assert_int_eq(block_put(hot, i, BLOCK), 0);
}

/* A device that two kinds of blocks were put on; closed in order or not. */
static void used_device(bool cleanly, unsigned n_partitions)
{
    daemon_init(&d);
    daemon_format_partitions(&d, DISK_BYTES, n_partitions);
    daemon_configure(&d, n_partitions > 1 ? "engines = 2\n" : "", SECTIONS);
    begin();
    fill();
    end(cleanly);
}

static void teardown(void)
{
    daemon_deinit(&d);
}

static int fsck(const char *option_1, const char *option_2)
{
    const char *args[] = {"fsck", d.disk, option_1, option_2, NULL};

    return daemon_run_program("spillctl", args, text, sizeof(text));
}

static void fsck_is(int status, const char *option_1, const char *option_2)
{
    int found = fsck(option_1, option_2);

    ck_assert_msg(found == status, "status %d instead of %d:\n%s", found, status, text);
}

static void says(const char *words)
{
    ck_assert_msg(strstr(text, words) != NULL, "no '%s' in:\n%s", words, text);
}

/* ── the device, byte by byte ───────────────────────────────────────────────────────────────────────────────────── */

static char *device_read(void)
{
    char *bytes = malloc(DISK_BYTES);
    int fd = open(d.disk, O_RDONLY | O_CLOEXEC);

    ck_assert_int_ge(fd, 0);
    for (size_t at = 0; at < DISK_BYTES;) {
        ssize_t n = pread(fd, bytes + at, DISK_BYTES - at, (off_t)at);

        ck_assert_int_gt(n, 0);
        at += (size_t)n;
    }
    close(fd);
    return bytes;
}

static void device_flip(off_t at)
{
    unsigned char byte;
    int fd = open(d.disk, O_RDWR | O_CLOEXEC);

    ck_assert_int_eq(pread(fd, &byte, 1, at), 1);
    byte ^= 1;
    ck_assert_int_eq(pwrite(fd, &byte, 1, at), 1);
    ck_assert_int_eq(fsync(fd), 0);
    close(fd);
}

static void device_zero(off_t at)
{
    static const char zeros[SECTOR];
    int fd = open(d.disk, O_RDWR | O_CLOEXEC);

    ck_assert_int_eq(pwrite(fd, zeros, sizeof(zeros), at), SECTOR);
    ck_assert_int_eq(fsync(fd), 0);
    close(fd);
}

/* Where block `number` lies. */
static off_t place_of(uint64_t number)
{
    char *bytes = device_read(), *block = malloc(BLOCK);
    off_t found = -1;

    pattern_fill(block, BLOCK, number, 0);
    for (size_t at = 0; at + BLOCK <= DISK_BYTES && found < 0; at += SECTOR)
        if (memcmp(bytes + at, block, BLOCK) == 0)
            found = (off_t)at;
    free(block);
    free(bytes);
    ck_assert_msg(found >= 0, "block %llu is not on the device", (unsigned long long)number);
    return found;
}

/* Each PUT in the log of partition 0 is changed, and whatever depends on it: blocks are a chain. The log is short. */
static void log_rewrite(void (*change)(struct format_put *put, unsigned n))
{
    char *bytes = device_read();
    const struct format_super *super = (const void *)bytes;
    uint64_t identity[3] = {super->uuid[0], super->uuid[1], 0}, prev = 0;
    uint64_t seed = XXH3_64bits_withSeed(identity, sizeof(identity), FORMAT_PARTITION_MAGIC);
    char *log = bytes + DAEMON_MIB + FORMAT_HEADER_SECTORS * SECTOR;
    unsigned n = 0;

    for (uint64_t lsn = 0;;) {
        struct format_block *b = (void *)(log + lsn * SECTOR);
        if (b->magic != FORMAT_BLOCK_MAGIC || b->lsn != lsn)
            break;
        char *entries = (char *)(b + 1);
        for (uint32_t at = 0; at < b->entry_bytes;) {
            struct format_put *put = (void *)(entries + at);

            if (put->head.type == FORMAT_ENTRY_PUT)
                change(put, n++);
            at += put->head.entry_bytes;
        }
        b->prev = lsn == 0 ? b->prev : prev;
        uint64_t sum = XXH3_64bits_withSeed(entries, b->entry_bytes, seed);
        prev = b->checksum = XXH3_64bits_withSeed(b, offsetof(struct format_block, checksum), sum);
        lsn += b->sectors;
    }
    ck_assert_uint_ge(n, N_DURABLE);
    int fd = open(d.disk, O_WRONLY | O_CLOEXEC);
    ck_assert_int_eq(pwrite(fd, log, super->log_bytes, log - bytes), (ssize_t)super->log_bytes);
    close(fd);
    free(bytes);
}

/* Without --repair nothing is ever written. */
static void untouched(int status, const char *option_1, const char *option_2)
{
    char *before = device_read();

    fsck_is(status, option_1, option_2);
    char *after = device_read();
    ck_assert_int_eq(memcmp(before, after, DISK_BYTES), 0);
    free(after);
    free(before);
}

static void all_is_there(void)
{
    begin();
    for (uint64_t i = 0; i < N_DURABLE; i++)
        ck_assert_int_eq(block_get(durable(), i, BLOCK), 0);
    for (uint64_t i = 1000; i < 1000 + N_CACHE; i++)
        ck_assert_int_eq(block_get(cache(), i, BLOCK), 0);
    end(true);
}

/* ── tests ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

START_TEST(test_clean)
{
    used_device(true, 1);
    untouched(GOOD, NULL, NULL);
    says("closed cleanly");
    says("20 durable (5 MiB)");
    says("60 cache (15 MiB)");
    says("nothing is wrong");
    untouched(GOOD, "--data", NULL);
    says("damaged pieces: 0");
    untouched(GOOD, "--repair", "--data");
    untouched(GOOD, "-o", "json");
    says("\"clean\":true");
    all_is_there();
}
END_TEST

START_TEST(test_killed)
{
    used_device(false, 1);
    untouched(GOOD, "--data", NULL);
    says("not closed cleanly: the next start reads");
    says("20 durable (5 MiB)");
    untouched(GOOD, "--repair", NULL);
    begin();
    for (uint64_t i = 0; i < N_DURABLE; i++)
        ck_assert_int_eq(block_get(durable(), i, BLOCK), 0);
    end(true);
}
END_TEST

START_TEST(test_in_use)
{
    char pid[32];

    used_device(true, 1);
    begin();
    snprintf(pid, sizeof(pid), "stop process %d first", (int)d.pid);
    fsck_is(CANNOT, NULL, NULL);
    says("in use");
    says(pid);
    fsck_is(CANNOT, "--repair", NULL);
    end(true);
}
END_TEST

START_TEST(test_superblock)
{
    const off_t places[] = {0, (off_t)DISK_BYTES - SECTOR};
    const char *const words[] = {"first superblock is damaged", "copy of the superblock is damaged"};

    used_device(true, 1);
    for (int i = 0; i < 2; i++) {
        char *before = device_read();

        device_zero(places[i]);
        untouched(LEFT, NULL, NULL);
        says(words[i]);
        says("--repair");
        fsck_is(REPAIRED, "--repair", NULL);
        says(words[i]);
        char *after = device_read();
        ck_assert_int_eq(memcmp(before, after, DISK_BYTES), 0);
        free(after);
        free(before);
        fsck_is(GOOD, NULL, NULL);
    }
    all_is_there();
}
END_TEST

START_TEST(test_both_superblocks)
{
    used_device(true, 1);
    device_flip(100);
    device_flip((off_t)DISK_BYTES - SECTOR + 100);
    untouched(LEFT, "--repair", NULL);
    says("both superblocks are damaged");
    says("spillctl device format");
}
END_TEST

/* The one that does not count, and then, if it can be opened by the other one, the one that does. */
START_TEST(test_header)
{
    static const off_t places[] = {DAEMON_MIB, DAEMON_MIB + 8 * SECTOR};

    used_device(true, 1);
    for (int i = 0; i < 2; i++) {
        uint64_t sequences[2];
        int fd = open(d.disk, O_RDONLY | O_CLOEXEC);

        for (int k = 0; k < 2; k++)
            ck_assert_int_eq(pread(fd, &sequences[k], 8, places[k] + 8), 8);
        close(fd);
        device_flip(places[sequences[0] > sequences[1]] + 200);
        untouched(LEFT, NULL, NULL);
        says("header is damaged");
        fsck_is(REPAIRED, "--repair", NULL);
        fsck_is(GOOD, NULL, NULL);
    }
    all_is_there();
}
END_TEST

START_TEST(test_both_headers)
{
    used_device(true, 1);
    device_flip((off_t)DAEMON_MIB + 200);
    device_flip((off_t)DAEMON_MIB + 8 * SECTOR + 200);
    device_zero(0);
    untouched(LEFT, "--repair", NULL);
    says("both headers of the partition are damaged");
    says("spillctl device format");
}
END_TEST

START_TEST(test_log)
{
    used_device(true, 1);
    device_flip((off_t)DAEMON_MIB + 16 * SECTOR + 70);
    untouched(LEFT, "--repair", NULL);
    says("the log is damaged");
    ck_assert_int_eq(daemon_start_refused(&d), 1);
}
END_TEST

START_TEST(test_durable_bytes)
{
    used_device(true, 1);
    device_flip(place_of(7) + 100000);
    untouched(GOOD, NULL, NULL);
    untouched(LEFT, "--data", NULL);
    says("damaged: durable");
    says("damaged durable pieces, of which reads fail with EBADMSG: 1");
    untouched(LEFT, "--data", "--repair");
    begin();
    for (uint64_t i = 0; i < N_DURABLE; i++)
        ck_assert_int_eq(block_get(durable(), i, BLOCK), i == 7 ? -EBADMSG : 0);
    end(true);
}
END_TEST

/* The sums that stand beside the segments: reading all of a block does not need them, reading a part of it does. */
START_TEST(test_sums)
{
    uint64_t log_bytes;

    used_device(true, 1);
    int fd = open(d.disk, O_RDONLY | O_CLOEXEC);
    ck_assert_int_eq(pread(fd, &log_bytes, sizeof(log_bytes), 144), 8);
    close(fd);
    for (int segment = 0; segment < 12; segment++)
        device_zero((off_t)(DAEMON_MIB + 16 * SECTOR + log_bytes) + (off_t)segment * SECTOR);
    untouched(LEFT, "--data", NULL);
    says("damaged durable pieces, of which reads fail with EBADMSG: 20");
}
END_TEST

START_TEST(test_cache_bytes)
{
    used_device(true, 1);
    device_flip(place_of(1003) + 1);
    untouched(LEFT, "--data", NULL);
    says("damaged: cache");
    fsck_is(REPAIRED, "--data", "--repair");
    fsck_is(GOOD, "--data", NULL);
    says("closed cleanly");
    says("59 cache");
    begin();
    for (uint64_t i = 1000; i < 1000 + N_CACHE; i++)
        ck_assert_int_eq(block_get(cache(), i, BLOCK), i == 1003 ? -ENOENT : 0);
    end(true);
}
END_TEST

static void device_write(const char *bytes)
{
    int fd = open(d.disk, O_WRONLY | O_CLOEXEC);

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(pwrite(fd, bytes, DISK_BYTES, 0), (ssize_t)DISK_BYTES);
    ck_assert_int_eq(fsync(fd), 0);
    close(fd);
}

static void repair_and_die(useconds_t after_us)
{
    char program[256];
    pid_t pid = fork();

    snprintf(program, sizeof(program), "%s/spillctl", getenv("SPILLWAY_BIN"));
    if (pid == 0) {
        execl(program, program, "fsck", "--repair", "--data", d.disk, NULL);
        _exit(127);
    }
    ck_assert_int_gt(pid, 0);
    usleep(after_us);
    ck_assert_int_eq(kill(pid, SIGKILL), 0);
    ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
}

/* Killed anywhere, it leaves what a second one can end. */
START_TEST(test_killed_repair)
{
    used_device(true, 1);
    device_flip(place_of(1003) + 1);
    device_zero(0);
    device_flip((off_t)DAEMON_MIB + 200);
    char *before = device_read();

    for (useconds_t i = 0; i < 30; i++) {
        device_write(before);
        repair_and_die(i * 2000);
        int status = fsck("--repair", "--data");
        ck_assert_msg(status == GOOD || status == REPAIRED, "killed after %u ms: %d: %s", i * 2, status, text);
        says("20 durable (5 MiB)");
        fsck_is(GOOD, "--data", NULL);
    }
    free(before);
    begin();
    for (uint64_t i = 0; i < N_DURABLE; i++)
        ck_assert_int_eq(block_get(durable(), i, BLOCK), 0);
    ck_assert_int_eq(block_get(cache(), 1003, BLOCK), -ENOENT);
    end(true);
}
END_TEST

static void unchanged(struct format_put *put, unsigned n)
{
    (void)put, (void)n;
}

static void over_another(struct format_put *put, unsigned n)
{
    static struct format_put first;

    if (n == 0)
        first = *put;
    if (n == 1) {
        put->segment = first.segment;
        put->sector = first.sector;
    }
}

static void of_no_space(struct format_put *put, unsigned n)
{
    if (n == 0)
        put->space ^= 1;
}

static void of_no_parts(struct format_put *put, unsigned n)
{
    if (n == 0)
        put->n_parts = 0;
}

START_TEST(test_contradictions)
{
    used_device(true, 1);
    log_rewrite(unchanged);
    untouched(GOOD, NULL, NULL);
    log_rewrite(over_another);
    untouched(LEFT, "--repair", NULL);
    says("pieces that lie over others: 1");
    teardown();
    used_device(true, 1);
    log_rewrite(of_no_space);
    untouched(LEFT, "--repair", NULL);
    says("pieces of spaces that the log does not tell of: 1");
    teardown();
    used_device(true, 1);
    log_rewrite(of_no_parts);
    untouched(LEFT, "--repair", NULL);
    says("impossible");
}
END_TEST

START_TEST(test_entries)
{
    used_device(true, 1);
    untouched(GOOD, "--entries", NULL);
    says("SPACE ");
    says("PUT ");
    says("durable kind 0");
}
END_TEST

START_TEST(test_two_partitions)
{
    used_device(true, 2);
    device_zero(0);
    untouched(LEFT, "--data", NULL);
    says("partition 1: closed cleanly");
    fsck_is(REPAIRED, "--repair", NULL);
    all_is_there();
}
END_TEST

START_TEST(test_refused)
{
    const char *const two[] = {"fsck", "one", "two", NULL}, *const none[] = {"fsck", "/nowhere", NULL};

    daemon_init(&d);
    ck_assert_int_eq(daemon_run_program("spillctl", two, NULL, 0), 64);
    ck_assert_int_eq(daemon_run_program("spillctl", none, NULL, 0), CANNOT);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("fsck");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, NULL, teardown);
    tcase_add_test(tc, test_clean);
    tcase_add_test(tc, test_killed);
    tcase_add_test(tc, test_in_use);
    tcase_add_test(tc, test_superblock);
    tcase_add_test(tc, test_both_superblocks);
    tcase_add_test(tc, test_header);
    tcase_add_test(tc, test_both_headers);
    tcase_add_test(tc, test_log);
    tcase_add_test(tc, test_durable_bytes);
    tcase_add_test(tc, test_sums);
    tcase_add_test(tc, test_cache_bytes);
    tcase_add_test(tc, test_killed_repair);
    tcase_add_test(tc, test_contradictions);
    tcase_add_test(tc, test_entries);
    tcase_add_test(tc, test_two_partitions);
    tcase_add_test(tc, test_refused);
    suite_add_tcase(suite, tc);
    return suite_main(suite);
}
