/* SPDX-License-Identifier: Apache-2.0 */
/* io/checksum.h: sums tell apart bytes, identities and places; pieces of a range give the same sums as the whole. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "io/checksum.h"

static uint8_t bytes[4 * GRANULE_BYTES];

static void fill(void)
{
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 31 + i / 977);
}

START_TEST(seed_depends_on_every_field)
{
    const struct checksum_identity base = {
        .space = 1, .generation = 2, .key = {3}, .group = 4, .piece = 5, .part = 6, .key_len = 7};
    struct checksum_identity v[7];

    for (int i = 0; i < 7; i++)
        v[i] = base;
    v[0].space++;
    v[1].generation++;
    v[2].key[31]++;
    v[3].group++;
    v[4].piece++;
    v[5].part++;
    v[6].key_len++;
    for (int i = 0; i < 7; i++) {
        ck_assert_uint_ne(checksum_seed(&v[i]), checksum_seed(&base));
        for (int j = 0; j < i; j++)
            ck_assert_uint_ne(checksum_seed(&v[i]), checksum_seed(&v[j]));
    }
}
END_TEST

START_TEST(granule_depends_on_seed_and_index)
{
    fill();
    uint64_t sum = checksum_granule(1, 0, bytes, 100);
    ck_assert_uint_eq(sum, checksum_granule(1, 0, bytes, 100));
    ck_assert_uint_ne(sum, checksum_granule(2, 0, bytes, 100));
    ck_assert_uint_ne(sum, checksum_granule(1, 1, bytes, 100));
    ck_assert_uint_ne(sum, checksum_granule(1, 0, bytes, 99));
    bytes[50] ^= 1;
    ck_assert_uint_ne(sum, checksum_granule(1, 0, bytes, 100));
}
END_TEST

START_TEST(parts_agree_with_the_whole)
{
    uint64_t whole[4], part[4] = {0};

    fill();
    checksum_granules(9, 0, bytes, sizeof(bytes) - 5, whole);
    checksum_granules(9, 0, bytes, GRANULE_BYTES, part);
    checksum_granules(9, 1, bytes + GRANULE_BYTES, 3 * GRANULE_BYTES - 5, part + 1);
    ck_assert_mem_eq(whole, part, sizeof(whole));
    ck_assert_uint_eq(whole[2], checksum_granule(9, 2, bytes + 2 * GRANULE_BYTES, GRANULE_BYTES));
    ck_assert_uint_eq(checksum_granule_count(sizeof(bytes) - 5), 4);
}
END_TEST

START_TEST(sum_of_sums)
{
    uint64_t sums[3] = {11, 22, 33}, swapped[3] = {22, 11, 33};

    ck_assert_uint_eq(checksum_of_sums(1, sums, 1), 11);
    ck_assert_uint_ne(checksum_of_sums(1, sums, 3), checksum_of_sums(1, swapped, 3));
    ck_assert_uint_ne(checksum_of_sums(1, sums, 3), checksum_of_sums(2, sums, 3));
    ck_assert_uint_ne(checksum_of_sums(1, sums, 3), checksum_of_sums(1, sums, 2));
}
END_TEST

/* What is on devices must never change its value: the algorithm is part of the format. */
START_TEST(values_are_fixed)
{
    const struct checksum_identity id = {.space = 1, .generation = 2, .key = "k", .key_len = 1};

    fill();
    ck_assert_uint_eq(checksum_bytes("spillway", 8, 0), UINT64_C(0x5c34f9025530f8f1));
    ck_assert_uint_eq(checksum_seed(&id), UINT64_C(0x11495b036ae888c6));
    ck_assert_uint_eq(checksum_granule(checksum_seed(&id), 3, bytes, 1000), UINT64_C(0x13e31c03ecd1bdde));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("checksum");
    TCase *tc = tcase_create("checksum");

    tcase_add_test(tc, seed_depends_on_every_field);
    tcase_add_test(tc, granule_depends_on_seed_and_index);
    tcase_add_test(tc, parts_agree_with_the_whole);
    tcase_add_test(tc, sum_of_sums);
    tcase_add_test(tc, values_are_fixed);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
