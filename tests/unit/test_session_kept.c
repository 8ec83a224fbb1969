/* SPDX-License-Identifier: Apache-2.0 */
/* The table of sessions that outlives the daemon: what it is called, and what it answers where there are no random numbers. */
#include "daemon/session_kept.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

static bool fails;

/* The C library's, which this program stands before. */
ssize_t getrandom(void *buffer, size_t length, unsigned flags)
{
    if (fails) {
        errno = ENOSYS;
        return -1;
    }
    return syscall(SYS_getrandom, buffer, length, flags);
}

START_TEST(without_random_numbers_there_is_no_table)
{
    struct kept *kept = NULL;
    const char *why;

    fails = true;
    ck_assert_int_eq(kept_new(NULL, 2, &kept, &why), -EIO);
    ck_assert_ptr_null(kept);
    fails = false;
    ck_assert_int_eq(kept_new(NULL, 2, &kept, &why), 0);
    kept_free(kept);
}
END_TEST

START_TEST(what_is_cold_has_another_id_and_needs_no_random_number)
{
    struct kept *kept = NULL;
    const char *why;

    ck_assert_int_eq(kept_new(NULL, 2, &kept, &why), 0);
    uint64_t before = kept_memory_id(kept);

    ck_assert_uint_ne(before, 0);
    fails = true;
    kept_set_cold(kept);
    ck_assert_uint_ne(kept_memory_id(kept), before);
    ck_assert_uint_ne(kept_memory_id(kept), 0);
    kept_free(kept);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("session_kept");
    TCase *tc = tcase_create("all");

    tcase_add_test(tc, without_random_numbers_there_is_no_table);
    tcase_add_test(tc, what_is_cold_has_another_id_and_needs_no_random_number);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);

    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
