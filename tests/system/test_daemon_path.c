/* SPDX-License-Identifier: Apache-2.0 */
/* The operations against a real daemon, at the level of the wire: each once, with its results looked at. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/system/support/rawclient.h"

#define SECTIONS                                                                                                       \
    "[tier.dram]\nsize = 128 MiB\n"                                                                                    \
    "[pool default]\nusers = root\n"

static struct raw_daemon d;
static struct raw_session s;

static void setup(void)
{
    raw_daemon_start(&d, "", SECTIONS);
    raw_session_full(&s, &d, "default", 1, 0);
}

static void teardown(void)
{
    raw_session_close(&s);
    raw_daemon_end(&d);
}

START_TEST(test_nop)
{
    struct spw_sqe sqe = raw_sqe(&s, SPW_OP_NOP, 0);

    sqe.items = sqe.results = 0;
    ck_assert_int_eq(raw_call(&s.ring, &sqe).status, 0);
}
END_TEST

START_TEST(test_put_get)
{
    ck_assert_int_eq(raw_get(&s, 1, 4096, 0), -ENOENT);
    ck_assert_int_eq(raw_put(&s, 1, 100000, 0x5a), 0);
    ck_assert_int_eq(raw_put(&s, 1, 100000, 0x5a), -EEXIST);
    ck_assert_int_eq(raw_get(&s, 1, 100000, 0x5a), 0);
}
END_TEST

START_TEST(test_lookup_prefix)
{
    struct spw_sqe sqe = raw_sqe(&s, SPW_OP_LOOKUP, 5);

    for (uint64_t i = 0; i < 5; i++) {
        raw_items(&s.ring)[i] = raw_item(100 + i, 0);
        if (i != 3)
            ck_assert_int_eq(raw_put(&s, 100 + i, 4096, (uint8_t)i), 0);
    }
    for (uint64_t i = 0; i < 5; i++)
        raw_items(&s.ring)[i] = raw_item(100 + i, 0);
    struct spw_cqe cqe = raw_call(&s.ring, &sqe);

    ck_assert_int_eq(cqe.status, 0);
    ck_assert_uint_eq(cqe.value, 3);
    for (int i = 0; i < 5; i++)
        ck_assert_int_eq(raw_results(&s.ring)[i].status, i == 3 ? -ENOENT : 0);
    ck_assert_uint_eq(raw_results(&s.ring)[0].length_bytes, 4096);
    ck_assert_uint_eq(raw_results(&s.ring)[0].tier, SPW_TIER_DRAM);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("daemon_path");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_nop);
    tcase_add_test(tc, test_put_get);
    tcase_add_test(tc, test_lookup_prefix);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
