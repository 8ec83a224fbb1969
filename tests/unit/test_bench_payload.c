/* SPDX-License-Identifier: Apache-2.0 */
/* What the verification of every benchmark stands on: that it sees each single wrong bit, wherever it is. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

/* Programs are no libraries, so the files themselves are compiled in. NOLINTBEGIN(bugprone-suspicious-include) */
#include "client/bench/payload.c"

/* NOLINTEND(bugprone-suspicious-include) */

#define ROOM 20000

static uint8_t *bytes;
static struct spw_key key;
static uint64_t stream;

static void setup(void)
{
    bytes = malloc(ROOM);
    payload_key(7, 42, &key);
    stream = payload_stream(&key);
}

static void teardown(void)
{
    free(bytes);
}

START_TEST(test_what_was_filled_is_right)
{
    static const uint64_t sizes[] = {1, 7, 8, 15, 16, 17, 4095, 4096, 4097, 8192, 19999};

    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        memset(bytes, 0xa5, ROOM);
        payload_fill(bytes, sizes[i], stream, 0);
        ck_assert_uint_eq(bytes[sizes[i]], 0xa5);
        ck_assert_uint_eq(payload_check(bytes, sizes[i], stream, 0), PAYLOAD_OK);
    }
}
END_TEST

START_TEST(test_every_flipped_bit_is_found)
{
    const uint64_t size = 4096 + 37;

    payload_fill(bytes, size, stream, 0);
    for (uint64_t i = 0; i < size; i++) {
        bytes[i] ^= (uint8_t)(1 << (i % 8));
        ck_assert_uint_eq(payload_check(bytes, size, stream, 0), i);
        bytes[i] ^= (uint8_t)(1 << (i % 8));
    }
}
END_TEST

START_TEST(test_part_is_the_same_as_in_the_whole)
{
    payload_fill(bytes, 12288, stream, 0);
    ck_assert_uint_eq(payload_check(bytes + 4096, 8192, stream, 4096), PAYLOAD_OK);
    ck_assert_uint_eq(payload_check(bytes + 4096, 8192, stream, 0), 0);
}
END_TEST

START_TEST(test_pages_and_keys_differ)
{
    struct spw_key other;

    payload_fill(bytes, 8192, stream, 0);
    ck_assert_int_ne(memcmp(bytes, bytes + 4096, 4096), 0);
    payload_key(7, 43, &other);
    ck_assert_uint_ne(payload_check(bytes, 4096, payload_stream(&other), 0), PAYLOAD_OK);
    other = key;
    other.group = 1;
    ck_assert_uint_ne(payload_stream(&other), stream);
    other = key;
    other.part = 1;
    ck_assert_uint_ne(payload_stream(&other), stream);
}
END_TEST

START_TEST(test_zeros_are_wrong)
{
    memset(bytes, 0, ROOM);
    ck_assert_uint_ne(payload_check(bytes, 4096, stream, 0), PAYLOAD_OK);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("payload");
    TCase *tc = tcase_create("payload");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_what_was_filled_is_right);
    tcase_add_test(tc, test_every_flipped_bit_is_found);
    tcase_add_test(tc, test_part_is_the_same_as_in_the_whole);
    tcase_add_test(tc, test_pages_and_keys_differ);
    tcase_add_test(tc, test_zeros_are_wrong);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
