/* SPDX-License-Identifier: Apache-2.0 */
/* Copies by workers: every byte, and no other, whatever the sizes, the alignment and the threads. Run under TSan as well. */
#include <check.h>
#include <errno.h>
#include <string.h>

#include "client/lib/train.h"

#define BYTES ((size_t)(3 * MIB))

static uint8_t *from, *to;

static void setup(void)
{
    from = malloc(BYTES);
    to = malloc(BYTES);
    ck_assert(from && to);
    for (size_t i = 0; i < BYTES; i++)
        from[i] = (uint8_t)(i * 7919 >> 8);
}

static void teardown(void)
{
    free(from);
    free(to);
}

/* Ranges of these sizes with a gap of `gap` bytes behind each, alone or by n_threads. */
static void copy_and_look(const size_t *sizes, size_t n, size_t gap, unsigned n_threads)
{
    struct spw_copy *copies = calloc(n, sizeof(*copies));
    spw_workers *workers = NULL;
    size_t at = 1;

    ck_assert_ptr_nonnull(copies);
    memset(to, 0xee, BYTES);
    for (size_t i = 0; i < n; i++) {
        copies[n - 1 - i] = (struct spw_copy){.to = to + at, .from = from + at, .size_bytes = sizes[i]};
        at += sizes[i] + gap;
        ck_assert_uint_le(at, BYTES);
    }
    if (n_threads > 0)
        ck_assert_int_eq(spw_workers_new(n_threads, &workers), 0);
    ck_assert_int_eq(spw_copy(workers, copies, n), 0);
    spw_workers_free(workers);
    at = 1;
    for (size_t i = 0; i < n; i++) {
        ck_assert_mem_eq(to + at, from + at, sizes[i]);
        at += sizes[i];
        for (size_t g = 0; g < gap; g++)
            ck_assert_uint_eq(to[at++], 0xee);
    }
    free(copies);
}

START_TEST(test_every_byte_and_no_other)
{
    static const size_t sizes[] = {1,        CLIENT_COPY_SLICE_BYTES,     0,   CLIENT_COPY_SLICE_BYTES + 1, 77, 0,
                                   MIB + 13, 2 * CLIENT_COPY_SLICE_BYTES, 4096};
    static const unsigned threads[] = {0, 1, 2, 5, 16};

    copy_and_look(sizes, ARRAY_LEN(sizes), 3, threads[_i]);
}
END_TEST

START_TEST(test_many_small_ones)
{
    size_t sizes[3000];

    for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
        sizes[i] = i % 900;
    copy_and_look(sizes, ARRAY_LEN(sizes), 1, 4);
}
END_TEST

START_TEST(test_bad_arguments)
{
    struct spw_copy copies[] = {{to, from, 5}, {NULL, NULL, 0}, {to, NULL, 1}};

    memset(to, 0xee, 5);
    ck_assert_int_eq(spw_copy(NULL, NULL, 1), -EINVAL);
    ck_assert_ptr_nonnull(strstr(spw_error_text(), "the list is NULL"));
    ck_assert_int_eq(spw_copy(NULL, copies, 3), -EINVAL);
    ck_assert_ptr_nonnull(strstr(spw_error_text(), "copy 2"));
    ck_assert_uint_eq(to[0], 0xee);
    ck_assert_int_eq(spw_copy(NULL, NULL, 0), 0);
    ck_assert_int_eq(spw_copy(NULL, copies, 2), 0);
    ck_assert_mem_eq(to, from, 5);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("train_copy_threads");
    TCase *t = tcase_create("copies");

    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_loop_test(t, test_every_byte_and_no_other, 0, 5);
    tcase_add_test(t, test_many_small_ones);
    tcase_add_test(t, test_bad_arguments);
    suite_add_tcase(s, t);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
