/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device that lies, shrinks or refuses, under a daemon that serves: whoever asked for what is damaged gets EIO or
 * EBADMSG, never wrong bytes; everything else goes on; and `spillctl device` and the log tell.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/system/support/daemon.h"

#define BLOCK (256 * 1024)
#define SECTOR 4096
#define N_COLD 40
#define HOT 1000
#define SECTIONS "[tier.dram]\nsize = 64 MiB\n[pool default]\n"

static struct daemon d;
static spw_session *session;

static void setup(void)
{
    daemon_init(&d);
    daemon_format(&d, 128 * DAEMON_MIB);
    daemon_configure(&d, "", SECTIONS);
    daemon_start(&d);
    session = daemon_connect(&d);
}

static void reconnect(void)
{
    spw_close(session);
    ck_assert_int_eq(daemon_stop(&d), 0);
    daemon_start(&d);
    session = daemon_connect(&d);
}

/* The device may be beyond a clean end; a crash is never right. */
static void teardown_after_failure(void)
{
    spw_close(session);
    int status = daemon_stop(&d);

    ck_assert_msg(status == 0 || status == 1, "spillwayd ended with %d: %s", status, daemon_log(&d));
    daemon_deinit(&d);
}

static void teardown(void)
{
    spw_close(session);
    daemon_deinit(&d);
}

static spw_space *durable(void)
{
    return daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);
}

static spw_space *cache(void)
{
    return daemon_space(session, "default", "cache", 0, SPW_CLASS_KV, SPW_CACHE);
}

/* Blocks that lie on the device alone. */
static void put_cold(uint64_t n)
{
    spw_space *space = durable();

    for (uint64_t i = 0; i < n; i++)
        ck_assert_int_eq(block_put(space, i, BLOCK), 0);
    ck_assert_int_eq(spw_sync(space, NULL, 0, 20000), 0);
}

/* Where a block's bytes lie in the device file. */
static off_t place_of(uint64_t number)
{
    unsigned char wanted[64], sector[SECTOR];
    int fd = open(d.disk, O_RDONLY | O_CLOEXEC);
    off_t found = -1;

    ck_assert_int_ge(fd, 0);
    pattern_fill(wanted, sizeof(wanted), number, 0);
    for (off_t at = 0; found < 0 && pread(fd, sector, sizeof(sector), at) == SECTOR; at += SECTOR)
        if (memcmp(sector, wanted, sizeof(wanted)) == 0)
            found = at;
    close(fd);
    ck_assert_msg(found >= 0, "block %llu is not in the device file", (unsigned long long)number);
    return found;
}

static void flip(off_t at)
{
    int fd = open(d.disk, O_RDWR | O_CLOEXEC);
    unsigned char byte;

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(pread(fd, &byte, 1, at), 1);
    byte ^= 0x10;
    ck_assert_int_eq(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

static void swap(off_t a, off_t b)
{
    static unsigned char bytes[2][BLOCK];
    int fd = open(d.disk, O_RDWR | O_CLOEXEC);

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(pread(fd, bytes[0], BLOCK, a), BLOCK);
    ck_assert_int_eq(pread(fd, bytes[1], BLOCK, b), BLOCK);
    ck_assert_int_eq(pwrite(fd, bytes[0], BLOCK, b), BLOCK);
    ck_assert_int_eq(pwrite(fd, bytes[1], BLOCK, a), BLOCK);
    close(fd);
}

static void put_hex(const struct spw_key *key, char *ret_hex)
{
    for (uint32_t i = 0; i < key->len; i++)
        snprintf(ret_hex + (size_t)2 * i, 3, "%02x", key->bytes[i]);
}

/* With the device's name, and space, key and place as `spillctl fsck --data` has them. The daemon is started anew. */
static void named_as_damaged(uint64_t number)
{
    const char *const args[] = {"fsck", "--data", d.disk, NULL};
    static const char device[] = "warning: engine 0: pool default: a checksum does not match on [device disk]: ";
    char text[8192], key[2 * SPW_KEY_BYTES + 1] = "", wanted[512];
    struct spw_key of = block_key(number);

    put_hex(&of, key);
    spw_close(session);
    ck_assert_int_eq(daemon_stop(&d), 0);
    (void)daemon_run_program("spillctl", args, text, sizeof(text));
    const char *found = strstr(text, key);

    ck_assert_msg(found != NULL, "fsck finds nothing wrong with block %llu: %s", (unsigned long long)number, text);
    while (found > text && found[-1] != '\n')
        found--;
    ck_assert_msg(strncmp(found, "damaged: durable", 16) == 0, "%s", text);
    snprintf(wanted, sizeof(wanted), "%s%.*s", device, (int)strcspn(found + 9, "\n"), found + 9);
    ck_assert_msg(strstr(daemon_log(&d), wanted) != NULL, "the log has no '%s': %s", wanted, daemon_log_end(&d));
    daemon_start(&d);
    session = daemon_connect(&d);
}

static void device_shows(const char *state)
{
    const char *const args[] = {"--socket", d.socket, "device", NULL};
    char text[4096];

    ck_assert_int_eq(daemon_run_program("spillctl", args, text, sizeof(text)), 0);
    ck_assert_msg(strstr(text, state) != NULL, "spillctl device says no %s: %s", state, text);
}

/* Blocks in memory come and go as if nothing had happened. */
static void memory_works(spw_space *space, uint64_t first)
{
    for (uint64_t i = first; i < first + 16; i++) {
        ck_assert_int_eq(block_put(space, i, BLOCK), 0);
        ck_assert_int_eq(block_get(space, i, BLOCK), 0);
    }
}

/* --- Damage ------------------------------------------------------------------------------------------------------ */

START_TEST(test_bit_flip_durable)
{
    put_cold(4);
    spw_close(session);
    ck_assert_int_eq(daemon_stop(&d), 0);
    flip(place_of(1) + BLOCK - 1);
    daemon_start(&d);
    session = daemon_connect(&d);
    spw_space *space = durable();

    ck_assert_int_eq(block_get(space, 1, BLOCK), -EBADMSG);
    ck_assert_int_eq(block_get(space, 0, BLOCK), 0);
    ck_assert_int_eq(block_get(space, 2, BLOCK), 0);
    ck_assert_int_eq(block_get(space, 3, BLOCK), 0);
    int again = block_get(space, 1, BLOCK);

    ck_assert_msg(again == -EBADMSG || again == -ENOENT, "%d", again);
    ck_assert_int_ge(daemon_admin_number(session, "devices", "devices/0/partitions/0/checksum_errors"), 1);
    ck_assert(daemon_lives(&d));
    named_as_damaged(1);
}
END_TEST

/* Who reads it again and again fills no disk with that. */
START_TEST(test_damage_is_not_said_for_ever)
{
    uint32_t n_lines = 0;

    put_cold(1);
    spw_close(session);
    ck_assert_int_eq(daemon_stop(&d), 0);
    flip(place_of(0));
    daemon_start(&d);
    session = daemon_connect(&d);
    spw_space *space = durable();
    int64_t start = clock_ms();

    for (int i = 0; i < 500; i++)
        ck_assert_int_eq(block_get(space, 0, BLOCK), -EBADMSG);
    int64_t seconds = (clock_ms() - start) / 1000 + 2; /* that were begun */

    for (const char *at = daemon_log(&d); (at = strstr(at, "a checksum does not match")) != NULL; at++)
        n_lines++;
    printf("500 reads of what is damaged in %lld ms: %u lines\n", (long long)(clock_ms() - start), n_lines);
    ck_assert_uint_ge(n_lines, 1);
    ck_assert_uint_le(n_lines, 20 * seconds);
}
END_TEST

START_TEST(test_bit_flip_cache)
{
    spw_space *space = cache();

    for (uint64_t i = 0; i < 4; i++)
        ck_assert_int_eq(block_put(space, i, BLOCK), 0);
    spw_close(session);
    ck_assert_int_eq(daemon_stop(&d), 0);
    flip(place_of(2));
    daemon_start(&d);
    session = daemon_connect(&d);
    space = cache();
    ck_assert_int_eq(block_get(space, 0, BLOCK), 0);
    int r = block_get(space, 2, BLOCK);

    ck_assert_msg(r == -EBADMSG || r == -ENOENT, "%d", r);
    ck_assert_int_eq(block_get(space, 2, BLOCK), -ENOENT); /* a miss from now on, */
    ck_assert_int_eq(block_put(space, 2, BLOCK), 0);       /* and it can be put again */
    ck_assert_int_eq(block_get(space, 2, BLOCK), 0);
}
END_TEST

START_TEST(test_extents_swapped)
{
    put_cold(4);
    spw_close(session);
    ck_assert_int_eq(daemon_stop(&d), 0);
    swap(place_of(0), place_of(3));
    daemon_start(&d);
    session = daemon_connect(&d);
    spw_space *space = durable();

    ck_assert_int_eq(block_get(space, 0, BLOCK), -EBADMSG);
    ck_assert_int_eq(block_get(space, 3, BLOCK), -EBADMSG);
    ck_assert_int_eq(block_get(space, 1, BLOCK), 0);
    ck_assert_int_eq(block_get(space, 2, BLOCK), 0);
    named_as_damaged(0);
    named_as_damaged(3);
}
END_TEST

/* --- Truncation -------------------------------------------------------------------------------------------------- */

START_TEST(test_truncated)
{
    put_cold(N_COLD);
    reconnect();
    spw_space *cold = durable(), *hot = cache();

    ck_assert_int_eq(block_put(hot, HOT, BLOCK), 0);
    ck_assert_int_eq(block_get(cold, 0, BLOCK), 0); /* is in memory now */
    device_shows("works");
    ck_assert_int_eq(truncate(d.disk, 2 * DAEMON_MIB), 0);

    for (uint64_t i = 1; i < N_COLD; i++) {
        int r = block_get(cold, i, BLOCK);

        ck_assert_msg(r == -EIO || r == -EBADMSG, "block %llu: %d", (unsigned long long)i, r);
    }
    ck_assert_int_eq(block_get(cold, 0, BLOCK), 0);
    ck_assert_int_eq(block_get(hot, HOT, BLOCK), 0);
    memory_works(hot, HOT + 1);
    device_shows("TRUNCATED");
    ck_assert(daemon_lives(&d));
}
END_TEST

/* --- Writes that fail -------------------------------------------------------------------------------------------- */

/* From now on every write beyond that place fails with EFBIG. */
static void limit_writes(uint64_t bytes)
{
    struct rlimit limit = {bytes, RLIM_INFINITY};

    ck_assert_int_eq(prlimit(d.pid, RLIMIT_FSIZE, &limit, NULL), 0);
}

static int put_and_sync(spw_space *space, uint64_t number)
{
    unsigned limit;
    int r = block_put_within(space, number, BLOCK, 10000, &limit);

    if (r < 0)
        fprintf(stderr, "put %llu: %s\n", (unsigned long long)number, spw_limit_text(limit));

    return r == 0 ? spw_sync(space, NULL, 0, 20000) : r;
}

/* Segments cannot be written for a while: each SYNC says so until they can, and what is in memory is not lost. */
START_TEST(test_data_writes_fail)
{
    put_cold(8);
    reconnect();
    spw_space *space = durable();

    ck_assert_int_eq(spw_nop(space), 0); /* the ring's memory is made now */
    limit_writes(2 * DAEMON_MIB);
    ck_assert_int_eq(put_and_sync(space, 100), -EIO);
    ck_assert_ptr_nonnull(strstr(spw_error_text(), "spillctl device"));
    ck_assert_int_ge(daemon_admin_number(session, "devices", "devices/0/partitions/0/write_errors"), 1);
    for (uint64_t i = 0; i < 8; i++)
        ck_assert_int_eq(block_get(space, i, BLOCK), 0);
    ck_assert_int_eq(block_get(space, 100, BLOCK), 0);
    ck_assert_int_eq(put_and_sync(space, 101), -EIO);

    limit_writes(RLIM_INFINITY);
    ck_assert_int_eq(put_and_sync(space, 102), 0);
    spw_close(session);
    daemon_kill(&d);
    daemon_start(&d);
    session = daemon_connect(&d);
    space = durable();
    for (uint64_t i = 100; i < 103; i++)
        ck_assert_int_eq(block_get(space, i, BLOCK), 0);
}
END_TEST

/* No write succeeds any more: the device is given up, and the cache in memory goes on without it. */
START_TEST(test_all_writes_fail)
{
    put_cold(8);
    reconnect();
    spw_space *space = durable(), *hot = cache();

    ck_assert_int_eq(spw_nop(space), 0);
    limit_writes(2 * DAEMON_MIB);
    ck_assert_int_eq(put_and_sync(space, 100), -EIO);
    for (uint64_t i = 0; i < 400; i++) /* more than memory holds: the old ones are dropped */
        ck_assert_int_eq(block_put(hot, HOT + i, BLOCK), 0);
    device_shows("FAILED");
    ck_assert(daemon_logged(&d, "reads only"));
    ck_assert_int_le(daemon_admin_number(session, "devices", "devices/0/partitions/0/write_errors"), 1000);
    ck_assert_int_eq(put_and_sync(space, 101), -EIO);
    for (uint64_t i = 0; i < 8; i++)
        ck_assert_int_eq(block_get(space, i, BLOCK), 0);
    ck_assert_int_eq(block_get(space, 100, BLOCK), 0);
    memory_works(hot, 2 * HOT);
    ck_assert(daemon_lives(&d));
}
END_TEST

/* The log cannot be written: the device takes nothing more, whatever it says later. */
START_TEST(test_log_writes_fail)
{
    put_cold(8);
    reconnect();
    spw_space *space = durable(), *hot = cache();

    ck_assert_int_eq(spw_nop(space), 0); /* the ring's memory is made now */
    limit_writes(DAEMON_MIB);
    ck_assert_int_eq(put_and_sync(space, 100), -EIO);
    limit_writes(2 * DAEMON_MIB);
    ck_assert_int_eq(block_put(hot, HOT, BLOCK), 0);
    limit_writes(RLIM_INFINITY);
    int r = put_and_sync(space, 101);

    if (r == 0) { /* its data could not be written, so the log was never tried; now it is */
        limit_writes(4096);
        ck_assert_int_eq(spw_delete(space, (struct spw_key[]){block_key(101)}, 1, NULL), 0);
        ck_assert_int_eq(spw_sync(space, NULL, 0, 20000), -EIO);
        limit_writes(RLIM_INFINITY);
        ck_assert_int_eq(put_and_sync(space, 102), -EIO);
    }
    device_shows("FAILED");
    ck_assert(daemon_logged(&d, "reads only"));
    for (uint64_t i = 0; i < 8; i++)
        ck_assert_int_eq(block_get(space, i, BLOCK), 0);
    memory_works(hot, HOT + 1);
    ck_assert(daemon_lives(&d));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("device_faults");
    TCase *damage = tcase_create("damage"), *failure = tcase_create("failure");

    tcase_set_timeout(damage, 120);
    tcase_add_checked_fixture(damage, setup, teardown);
    tcase_add_test(damage, test_bit_flip_durable);
    tcase_add_test(damage, test_damage_is_not_said_for_ever);
    tcase_add_test(damage, test_bit_flip_cache);
    tcase_add_test(damage, test_extents_swapped);
    suite_add_tcase(suite, damage);
    tcase_set_timeout(failure, 120);
    tcase_add_checked_fixture(failure, setup, teardown_after_failure);
    tcase_add_test(failure, test_truncated);
    tcase_add_test(failure, test_data_writes_fail);
    tcase_add_test(failure, test_all_writes_fail);
    tcase_add_test(failure, test_log_writes_fail);
    suite_add_tcase(suite, failure);
    return suite_main(suite);
}
