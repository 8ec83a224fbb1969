/* SPDX-License-Identifier: Apache-2.0 */
/* Devices that are not ours to open: each is refused at start, with the path, the reason, and what to do. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "tests/system/support/daemon.h"

#define SECTIONS "[tier.dram]\nsize = 64 MiB\n[pool default]\n"
#define SUPER_BYTES 4096
#define VERSION_AT 8
#define CHECKSUM_AT (SUPER_BYTES - 8)
#define DISK_BYTES (32 * DAEMON_MIB)

static struct daemon d;

static void setup(void)
{
    daemon_init(&d);
    daemon_format(&d, DISK_BYTES);
    daemon_configure(&d, "", SECTIONS);
}

static void teardown(void)
{
    daemon_deinit(&d);
}

static void refused_with(const char *words)
{
    int status = daemon_start_refused(&d);

    ck_assert_msg(status == 1, "status %d: %s", status, daemon_log(&d));
    ck_assert_msg(strstr(daemon_log(&d), d.disk) != NULL, "no path: %s", daemon_log(&d));
    ck_assert_msg(strstr(daemon_log(&d), words) != NULL, "no '%s': %s", words, daemon_log(&d));
}

static void serves(void)
{
    daemon_start(&d);
    spw_session *session = daemon_connect(&d);
    spw_space *space = daemon_space(session, "default", "x", 0, SPW_CLASS_KV, SPW_CACHE);

    ck_assert_int_eq(block_put(space, 1, 65536), 0);
    ck_assert_int_eq(block_get(space, 1, 65536), 0);
    spw_close(session);
}

/* The file gets these contents, and nothing else. */
static void replace(const char *text, uint64_t size_bytes)
{
    char *bytes = calloc(1, size_bytes);
    FILE *f = fopen(d.disk, "w");

    ck_assert_ptr_nonnull(f);
    for (uint64_t i = 0; text && i < size_bytes; i++)
        bytes[i] = text[i % strlen(text)];
    ck_assert_uint_eq(fwrite(bytes, 1, size_bytes, f), size_bytes);
    ck_assert_int_eq(fclose(f), 0);
    free(bytes);
}

/* Both copies of the superblock: first and last sector. */
static void patch_super(off_t at, unsigned char value, bool fix_checksum, bool both)
{
    const off_t places[] = {0, (off_t)DISK_BYTES - SUPER_BYTES};
    unsigned char super[SUPER_BYTES];
    int fd = open(d.disk, O_RDWR | O_CLOEXEC);

    ck_assert_int_ge(fd, 0);
    for (int i = 0; i < (both ? 2 : 1); i++) {
        ck_assert_int_eq(pread(fd, super, sizeof(super), places[i]), SUPER_BYTES);
        super[at] = value;
        if (fix_checksum) {
            uint64_t sum = XXH3_64bits_withSeed(super, CHECKSUM_AT, 0);

            memcpy(super + CHECKSUM_AT, &sum, sizeof(sum));
        }
        ck_assert_int_eq(pwrite(fd, super, sizeof(super), places[i]), SUPER_BYTES);
    }
    close(fd);
}

START_TEST(test_missing)
{
    ck_assert_int_eq(unlink(d.disk), 0);
    refused_with("spillctl device format");
}
END_TEST

START_TEST(test_zeros)
{
    replace(NULL, DISK_BYTES);
    refused_with("spillctl device format");
}
END_TEST

START_TEST(test_foreign)
{
    replace("somebody else's bytes\n", DISK_BYTES);
    refused_with("not formatted for Spillway");
}
END_TEST

START_TEST(test_tiny)
{
    replace("tiny", 100);
    refused_with("smaller than one sector");
}
END_TEST

START_TEST(test_other_version)
{
    patch_super(VERSION_AT, 9, true, true);
    refused_with("another version");
}
END_TEST

/* A version to come may keep its checksum elsewhere. */
START_TEST(test_other_version_other_checksum)
{
    patch_super(VERSION_AT, 9, false, true);
    refused_with("another version");
}
END_TEST

START_TEST(test_unknown_feature)
{
    patch_super(32 + 7, 0x40, true, true);
    refused_with("feature");
}
END_TEST

START_TEST(test_one_super_damaged)
{
    patch_super(100, 0xff, false, false);
    serves();
}
END_TEST

START_TEST(test_both_supers_damaged)
{
    patch_super(100, 0xff, false, true);
    refused_with("damaged");
}
END_TEST

START_TEST(test_truncated)
{
    ck_assert_int_eq(truncate(d.disk, 8 * DAEMON_MIB), 0);
    refused_with("smaller than when it was formatted");
}
END_TEST

/* The second one names the device; the first one does not notice. */
START_TEST(test_two_daemons)
{
    struct daemon second;

    serves();
    daemon_init(&second);
    snprintf(second.disk, sizeof(second.disk), "%s", d.disk);
    second.disk_bytes = DISK_BYTES;
    daemon_configure(&second, "", SECTIONS);
    ck_assert_int_eq(daemon_start_refused(&second), 1);
    ck_assert_msg(strstr(daemon_log(&second), d.disk) && strstr(daemon_log(&second), "in use by another daemon"), "%s",
                  daemon_log(&second));
    daemon_deinit(&second);

    spw_session *session = daemon_connect(&d);
    spw_space *space = daemon_space(session, "default", "x", 0, SPW_CLASS_KV, SPW_CACHE);

    ck_assert_int_eq(block_get(space, 1, 65536), 0);
    spw_close(session);
}
END_TEST

/* A formatted device in use is not formatted anew, not even with --force. */
START_TEST(test_format_in_use)
{
    const char *const args[] = {"device", "format", "--force", d.disk, NULL};
    char text[2048];

    serves();
    ck_assert_int_ne(daemon_run_program("spillctl", args, text, sizeof(text)), 0);
    ck_assert_msg(strstr(text, "in use") != NULL, "%s", text);
    ck_assert(daemon_lives(&d));
}
END_TEST

START_TEST(test_same_socket)
{
    struct daemon second;

    serves();
    daemon_init(&second);
    snprintf(second.socket, sizeof(second.socket), "%s", d.socket);
    daemon_configure(&second, "", SECTIONS);
    ck_assert_int_eq(daemon_start_refused(&second), 1);
    ck_assert_msg(strstr(daemon_log(&second), "another spillwayd answers there") != NULL, "%s", daemon_log(&second));
    ck_assert_int_eq(access(d.socket, F_OK), 0);
    daemon_deinit(&second);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("device_refused");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_missing);
    tcase_add_test(tc, test_zeros);
    tcase_add_test(tc, test_foreign);
    tcase_add_test(tc, test_tiny);
    tcase_add_test(tc, test_other_version);
    tcase_add_test(tc, test_other_version_other_checksum);
    tcase_add_test(tc, test_unknown_feature);
    tcase_add_test(tc, test_one_super_damaged);
    tcase_add_test(tc, test_both_supers_damaged);
    tcase_add_test(tc, test_truncated);
    tcase_add_test(tc, test_two_daemons);
    tcase_add_test(tc, test_format_in_use);
    tcase_add_test(tc, test_same_socket);
    suite_add_tcase(suite, tc);
    return suite_main(suite);
}
