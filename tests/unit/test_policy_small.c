/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Eviction policies on a small trace that is part of the repository: exact hits against independent models, and use that
 * is less tidy than theirs. Also the reader of traces: it must refuse what is not one.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "include/base/cleanup.h"
#include "tests/unit/support/trace.h"

static const struct policy_ops *const policies[] = {&policy_lru, &policy_s3fifo, &policy_arc};

/* Written by tests/data/chat_small.py: share in permille, objects that fit, and each policy's hits. */
static const struct {
    uint32_t permille, capacity;
    int64_t hits[3]; /* as in policies[] */
} small_table[] = {
    {5, 20, {2192, 3302, 3217}},    {20, 81, {4267, 4047, 4271}},    {50, 204, {5649, 4969, 5603}},
    {100, 408, {6652, 5867, 6522}}, {300, 1224, {7838, 7388, 7663}},
};

START_TEST(each_hits_as_its_model_does)
{
    char path[PATH_MAX];
    cleanup_(trace_deinit) struct trace trace = {0};
    uint32_t bad_line = 0;

    trace_source_path("tests/data/chat_small.jsonl", path);
    ck_assert_msg(trace_load(path, &trace, &bad_line) == 0, "%s, line %u", path, bad_line);
    ck_assert_uint_eq(trace.n_refs, 12222);
    ck_assert_uint_eq(trace.n_distinct, 4081);
    for (size_t i = 0; i < ARRAY_LEN(small_table); i++) {
        struct replay how = {.capacity = small_table[i].capacity, .sectors = 1, .check_every = 500};

        ck_assert_uint_eq((uint64_t)trace.n_distinct * small_table[i].permille / 1000, small_table[i].capacity);
        ck_assert_int_eq(trace_replay(&trace, policies[_i], &how), small_table[i].hits[_i]);
    }
}
END_TEST

/* Sizes that differ, insertions on their way, a watermark: no figure is right, but none may be absurd. */
START_TEST(each_stands_untidy_use)
{
    char path[PATH_MAX];
    cleanup_(trace_deinit) struct trace trace = {0};
    uint32_t bad_line = 0;

    trace_source_path("tests/data/chat_small.jsonl", path);
    ck_assert_int_eq(trace_load(path, &trace, &bad_line), 0);
    for (size_t i = 1; i < ARRAY_LEN(small_table); i++) {
        struct replay how = {
            .capacity = small_table[i].capacity, .low_percent = 95, .n_in_flight = 9, .check_every = 100};
        int64_t hits = trace_replay(&trace, policies[_i], &how), wanted = small_table[i].hits[_i];

        ck_assert_int_gt(hits, wanted * 85 / 100);
        ck_assert_int_lt(hits, wanted * 115 / 100);
    }
}
END_TEST

START_TEST(a_bad_trace_is_refused)
{
    static const char *const bad[] = {
        "{\"hash_ids\":[1,2]}\n{\"hash_ids\":[1,-2]}\n",
        "{\"hash_ids\":[1]}\n\n",
        "{\"hash_ids\":[1]}\n{\"hash_ids\":[16777216]}\n",
        "{\"hash_ids\":[1]}\n{\"hash_ids\":\"1\"}\n",
        "{\"hash_ids\":[1]}\n{\"hash_ids\":[1.5]}\n",
        "{\"hash_ids\":[1]}\n{\"hash\":[1]}\n",
        "{\"hash_ids\":[1]}\n[1]\n",
        "{\"hash_ids\":[1]}\n{\"hash_ids\":[1",
    };
    struct trace trace;
    uint32_t bad_line;

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        char path[] = "/tmp/test_policy.XXXXXX";
        cleanup_close int fd = mkstemp(path);

        ck_assert_int_ge(fd, 0);
        ck_assert_int_eq(write(fd, bad[i], strlen(bad[i])), (ssize_t)strlen(bad[i]));
        bad_line = 0;
        ck_assert_int_eq(trace_load(path, &trace, &bad_line), -EBADMSG);
        ck_assert_uint_eq(bad_line, 2);
        unlink(path);
    }
    ck_assert_int_eq(trace_load("/nonexistent/trace", &trace, &bad_line), -ENOENT);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("policy_small");
    TCase *tc = tcase_create("trace");

    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, each_hits_as_its_model_does, 0, ARRAY_LEN(policies));
    tcase_add_loop_test(tc, each_stands_untidy_use, 0, ARRAY_LEN(policies));
    tcase_add_test(tc, a_bad_trace_is_refused);
    suite_add_tcase(s, tc);

    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
