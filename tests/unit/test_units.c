/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes, durations, percentages and decimals as text (include/base/units.h), and name suggestions (daemon/suggest.c). */
#include <check.h>
#include <stdlib.h>

#include "daemon/suggest.h"
#include "include/base/units.h"

struct good {
    const char *text;
    uint64_t value;
};

struct bad {
    const char *text;
    int error;
};

START_TEST(sizes)
{
    static const struct good good[] = {
        {"0", 0},
        {"4096", 4096},
        {"4096B", 4096},
        {"64K", 64 * KIB},
        {"64 KiB", 64 * KIB},
        {"64kib", 64 * KIB},
        {"12 GiB", 12 * GIB},
        {"12g ", 12 * GIB},
        {" 7 MiB", 7 * MIB},
        {"1.5 TiB", 1536 * GIB},
        {"0.5K", 512},
        {"0.1 KiB", 102},
        {"16777215 TiB", 16777215 * TIB},
        {"18446744073709551615", UINT64_MAX},
        {"0.000000001 T", 1099},
    };
    static const struct bad bad[] = {
        {"", -EINVAL},
        {"GiB", -EINVAL},
        {".5 GiB", -EINVAL},
        {"5. GiB", -EINVAL},
        {"1.2.3 GiB", -EINVAL},
        {"-1 GiB", -EINVAL},
        {"+1", -EINVAL},
        {"12 GiBB", -EDOM},
        {"12 GB", -EDOM},
        {"12 Gi", -EDOM},
        {"12 GiB x", -EDOM},
        {"12 %", -EDOM},
        {"0x10", -EDOM},
        {"1e9", -EDOM},
        {"1,5 GiB", -EDOM},
        {"18446744073709551616", -ERANGE},
        {"16777216 TiB", -ERANGE},
        {"0.0000000001 T", -ERANGE},
        {"99999999999999999999999999999999999999999999999 B", -ERANGE},
    };

    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        uint64_t bytes = 1;
        ck_assert_msg(size_parse(good[i].text, &bytes) == 0, "%s", good[i].text);
        ck_assert_msg(bytes == good[i].value, "%s: %llu", good[i].text, (unsigned long long)bytes);
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        uint64_t bytes = 42;
        int r = size_parse(bad[i].text, &bytes);
        ck_assert_msg(r == bad[i].error, "%s: %d", bad[i].text, r);
        ck_assert_uint_eq(bytes, 42);
    }
}
END_TEST

START_TEST(durations)
{
    static const struct good good[] = {
        {"30s", 30000000000},     {"5 min", 300000000000}, {"250ms", 250000000}, {"20us", 20000},
        {"1.5 h", 5400000000000}, {"1 d", 86400000000000}, {"7ns", 7},           {"0s", 0},
    };
    static const struct bad bad[] = {
        {"30", -EDOM}, {"5m", -EDOM}, {"5 minutes", -EDOM}, {"s", -EINVAL}, {"-1s", -EINVAL}, {"1000000 d", -ERANGE},
    };

    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        uint64_t ns = 1;
        ck_assert_msg(duration_parse(good[i].text, &ns) == 0, "%s", good[i].text);
        ck_assert_msg(ns == good[i].value, "%s", good[i].text);
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        uint64_t ns = 42;
        ck_assert_msg(duration_parse(bad[i].text, &ns) == bad[i].error, "%s", bad[i].text);
        ck_assert_uint_eq(ns, 42);
    }
}
END_TEST

START_TEST(percentages_and_decimals)
{
    uint32_t milli = 0;
    uint64_t decimal = 0;

    ck_assert_int_eq(percent_parse("12.5 %", &milli), 0);
    ck_assert_uint_eq(milli, 12500);
    ck_assert_int_eq(percent_parse("100%", &milli), 0);
    ck_assert_uint_eq(percent_of(milli, UINT64_MAX), UINT64_MAX);
    ck_assert_int_eq(percent_parse("100.001 %", &milli), -ERANGE);
    ck_assert_int_eq(percent_parse("12", &milli), -EDOM);
    ck_assert_int_eq(percent_parse("%", &milli), -EINVAL);
    ck_assert_int_eq(percent_parse("5 %%", &milli), -EDOM);
    ck_assert_uint_eq(milli, 100000);
    ck_assert_uint_eq(percent_of(33333, 3 * GIB), 3 * GIB * 33333 / 100000);
    ck_assert_int_eq(decimal_parse("0.8", &decimal), 0);
    ck_assert_uint_eq(decimal, 800);
    ck_assert_int_eq(decimal_parse("0.8x", &decimal), -EDOM);
}
END_TEST

START_TEST(printing)
{
    char t[UNITS_TEXT_BYTES];

    ck_assert_str_eq(size_print(0, t), "0 B");
    ck_assert_str_eq(size_print(1023, t), "1023 B");
    ck_assert_str_eq(size_print(1536 * MIB, t), "1.50 GiB");
    ck_assert_str_eq(size_print(64 * KIB, t), "64 KiB");
    ck_assert_str_eq(size_print(UINT64_MAX, t), "16777215.99 TiB");
    ck_assert_str_eq(size_print_exact(1536 * MIB, t), "1536 MiB");
    ck_assert_str_eq(size_print_exact(0, t), "0 B");
    ck_assert_str_eq(size_print_exact(GIB + 1, t), "1073741825 B");
    ck_assert_str_eq(duration_print(1500000, t), "1.50 ms");
    ck_assert_str_eq(duration_print_exact(90000000000, t), "90 s");
    ck_assert_str_eq(duration_print_exact(0, t), "0 s");
    ck_assert_str_eq(milli_print(12500, t), "12.5");
    ck_assert_str_eq(milli_print(100000, t), "100");
    ck_assert_str_eq(milli_print(0, t), "0");
    ck_assert_str_eq(milli_print(7, t), "0.007");
}
END_TEST

/* What is printed exactly parses to the same value, for values of every magnitude. */
START_TEST(round_trip)
{
    char t[UNITS_TEXT_BYTES];
    uint64_t x = 88172645463325252;

    for (int i = 0; i < 20000; i++) {
        uint64_t value, back;

        x ^= x << 13, x ^= x >> 7, x ^= x << 17; /* xorshift64 */
        value = (x >> (x & 63)) << (x >> 8 & 31);
        ck_assert_int_eq(size_parse(size_print_exact(value, t), &back), 0);
        ck_assert_uint_eq(back, value);
        ck_assert_int_eq(duration_parse(duration_print_exact(value, t), &back), 0);
        ck_assert_uint_eq(back, value);
    }
}
END_TEST

START_TEST(suggestions)
{
    static const char *const names[] = {"size", "nodes", "hugepages", "pretouch", "max_sessions", "uid_sessions"};
    char longest[200];

    ck_assert_str_eq(suggest_nearest("sise", names, ARRAY_LEN(names)), "size");
    ck_assert_str_eq(suggest_nearest("hugepage", names, ARRAY_LEN(names)), "hugepages");
    ck_assert_str_eq(suggest_nearest("HugePages", names, ARRAY_LEN(names)), "hugepages");
    ck_assert_str_eq(suggest_nearest("max_session", names, ARRAY_LEN(names)), "max_sessions");
    ck_assert_str_eq(suggest_nearest("ndoes", names, ARRAY_LEN(names)), "nodes"); /* a swap is one edit */
    ck_assert_ptr_null(suggest_nearest("colour", names, ARRAY_LEN(names)));
    ck_assert_ptr_null(suggest_nearest("xy", names, ARRAY_LEN(names)));
    ck_assert_ptr_null(suggest_nearest("", names, ARRAY_LEN(names)));
    ck_assert_ptr_null(suggest_nearest("size", names, 0));
    memset(longest, 'a', sizeof(longest) - 1);
    longest[sizeof(longest) - 1] = '\0';
    ck_assert_ptr_null(suggest_nearest(longest, names, ARRAY_LEN(names)));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("units");
    TCase *tc = tcase_create("units");

    tcase_add_test(tc, sizes);
    tcase_add_test(tc, durations);
    tcase_add_test(tc, percentages_and_decimals);
    tcase_add_test(tc, printing);
    tcase_add_test(tc, round_trip);
    tcase_add_test(tc, suggestions);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int n_failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return n_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
