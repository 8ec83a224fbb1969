/* SPDX-License-Identifier: Apache-2.0 */
/* Requests of spillctl: what is one, what is none, and that whatever passes for one is JSON that says the same. */
#include <check.h>
#include <errno.h>
#include <json-c/json.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/admin_request.h"
#include "include/base/mix.h"

#define ORDER                                                                                                          \
    "{\"inject\":\"add\",\"device\":\"disk\",\"what\":\"eio\",\"count\":3,\"probability\":0.5,\"latency_ms\":10}"

static struct admin_request request;

/* From memory that ends where the text does, so that a sanitizer sees who reads on. */
static int parse_bytes(const char *text, size_t size)
{
    char *exact = malloc(size + 1);

    ck_assert_ptr_nonnull(exact);
    memcpy(exact + 1, text, size);
    int r = admin_request_parse(exact + 1, size, &request);

    free(exact);
    return r;
}

static int parse(const char *text)
{
    return parse_bytes(text, strlen(text));
}

static double number_of(const char *name)
{
    const struct admin_member *member = admin_request_find(&request, name);

    ck_assert_ptr_nonnull(member);
    ck_assert_int_eq(member->kind, ADMIN_NUMBER);
    return member->number;
}

START_TEST(test_orders)
{
    ck_assert_int_eq(parse("{\"get\":\"status\"}"), 0);
    ck_assert_uint_eq(request.n, 1);
    ck_assert_str_eq(admin_request_text(&request, "get"), "status");
    ck_assert_int_eq(parse(" \t\r\n{ \"get\" : \"pools\" } \t\r\n"), 0);
    ck_assert_str_eq(admin_request_text(&request, "get"), "pools");
    ck_assert_int_eq(parse("{ }"), 0);
    ck_assert_uint_eq(request.n, 0);

    ck_assert_int_eq(parse(ORDER), 0);
    ck_assert_uint_eq(request.n, 6);
    ck_assert_str_eq(admin_request_text(&request, "inject"), "add");
    ck_assert_str_eq(admin_request_text(&request, "device"), "disk");
    ck_assert_str_eq(admin_request_text(&request, "what"), "eio");
    ck_assert(number_of("count") == 3 && number_of("probability") == 0.5 && number_of("latency_ms") == 10);
    ck_assert_ptr_null(admin_request_text(&request, "count"));
    ck_assert_ptr_null(admin_request_text(&request, "devic"));
    ck_assert_ptr_null(admin_request_find(&request, "get"));
}
END_TEST

START_TEST(test_values)
{
    static const struct {
        const char *text;
        double number;
    } numbers[] = {
        {"0", 0},         {"-0", 0},
        {"-12.5", -12.5}, {"1e15", 1e15},
        {"1E+2", 100},    {"1.0000e-06", 1e-6},
        {"0.1", 0.1},     {"1e999", INFINITY},
        {"0.0e-0", 0},    {"18446744073709551616", 0x1p64},
    };
    char text[64];

    for (size_t i = 0; i < ARRAY_LEN(numbers); i++) {
        snprintf(text, sizeof(text), "{\"a\":%s}", numbers[i].text);
        ck_assert_msg(parse(text) == 0, "%s", text);
        ck_assert_msg(number_of("a") == numbers[i].number, "%s", text);
    }
    ck_assert_int_eq(parse("{\"n\":null,\"t\":true,\"f\":false,\"\":\"\"}"), 0);
    ck_assert_int_eq(admin_request_find(&request, "n")->kind, ADMIN_NULL);
    ck_assert_int_eq(admin_request_find(&request, "t")->kind, ADMIN_TRUE);
    ck_assert_int_eq(admin_request_find(&request, "f")->kind, ADMIN_FALSE);
    ck_assert_str_eq(admin_request_text(&request, ""), "");
}
END_TEST

START_TEST(test_escapes)
{
    static const struct {
        const char *json, *text;
    } good[] = {
        {"\\\"\\\\\\/\\b\\f\\n\\r\\t", "\"\\/\b\f\n\r\t"},
        {"\\u0041\\u007f", "A\x7f"},
        {"\\u0080\\u00e9\\u07FF", "\xc2\x80\xc3\xa9\xdf\xbf"},
        {"\\u0800\\ud7ff\\uE000\\uffff", "\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xef\xbf\xbf"},
        {"\\ud800\\udc00\\uD83D\\uDE00\\udbff\\udfff", "\xf0\x90\x80\x80\xf0\x9f\x98\x80\xf4\x8f\xbf\xbf"},
        {"\xc3\xa9\xff", "\xc3\xa9\xff"},
    };
    char text[128];

    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        snprintf(text, sizeof(text), "{\"a\":\"%s\"}", good[i].json);
        ck_assert_msg(parse(text) == 0, "%s", text);
        ck_assert_str_eq(admin_request_text(&request, "a"), good[i].text);
    }
    ck_assert_int_eq(parse("{\"g\\u0065t\":\"tiers\"}"), 0);
    ck_assert_str_eq(admin_request_text(&request, "get"), "tiers");
}
END_TEST

START_TEST(test_bad)
{
    static const char *const bad[] = {
        "",
        " ",
        "null",
        "1",
        "\"get\"",
        "[]",
        "[{}]",
        "get",
        "{",
        "}",
        "{}}",
        "{}{}",
        "{} x",
        "{},",
        "// c\n{}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\" 1}",
        "{a:1}",
        "{'a':1}",
        "{1:1}",
        "{null:1}",
        "{,}",
        "{\"a\":1,}",
        "{,\"a\":1}",
        "{\"a\":1 \"b\":2}",
        "{\"a\":1;\"b\":2}",
        "{\"a\":'x'}",
        "{\"a\":1/**/}",
        /* values */
        "{\"a\":{}}",
        "{\"a\":[]}",
        "{\"a\":[1]}",
        "{\"a\":{\"b\":1}}",
        "{\"a\":nul}",
        "{\"a\":nulll}",
        "{\"a\":True}",
        "{\"a\":falsey}",
        "{\"a\":NaN}",
        "{\"a\":Infinity}",
        "{\"a\":-Infinity}",
        "{\"a\":inf}",
        /* numbers */
        "{\"a\":01}",
        "{\"a\":+1}",
        "{\"a\":.5}",
        "{\"a\":5.}",
        "{\"a\":-}",
        "{\"a\":--1}",
        "{\"a\":0x10}",
        "{\"a\":1e}",
        "{\"a\":1e+}",
        "{\"a\":1e+-1}",
        "{\"a\":1.e1}",
        "{\"a\":1,5}",
        "{\"a\":1 2}",
        "{\"a\":1.2.3}",
        "{\"a\": - 1}",
        /* texts */
        "{\"a\":\"b}",
        "{\"a:1}",
        "{\"a\":\"\n\"}",
        "{\"a\":\"\x01\"}",
        "{\"a\":\"\x1f\"}",
        "{\"\t\":1}",
        "{\"a\":\"\\x\"}",
        "{\"a\":\"\\'\"}",
        "{\"a\":\"\\\"}",
        "{\"a\":\"\\u\"}",
        "{\"a\":\"\\u12\"}",
        "{\"a\":\"\\u12g4\"}",
        "{\"a\":\"\\u+123\"}",
        "{\"a\":\"\\U0041\"}",
        "{\"a\":\"\\u0000\"}",
        "{\"a\\u0000\":1}",
        "{\"a\":\"\\udc00\"}",
        "{\"a\":\"\\ud800\"}",
        "{\"a\":\"\\ud800x\"}",
        "{\"a\":\"\\ud800\\n\"}",
        "{\"a\":\"\\ud800\\u0041\"}",
        "{\"a\":\"\\ud800\\ud800\"}",
        "{\"a\":\"\\ud800\\ue000\"}",
        /* twice, however it is written and whatever its value */
        "{\"a\":1,\"a\":1}",
        "{\"a\":1,\"b\":2,\"\\u0061\":\"x\"}",
        "{\"get\":\"status\",\"get\":null}",
    };

    memset(&request, 0x55, sizeof(request));
    struct admin_request before = request;

    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        ck_assert_msg(parse(bad[i]) == -EINVAL, "%s", bad[i]);
    ck_assert_int_eq(parse_bytes("{\"a\":1}\0", 8), -EINVAL);
    ck_assert_int_eq(parse_bytes("{\"a\":\"b\0\"}", 10), -EINVAL);
    ck_assert_int_eq(parse_bytes("\0{}", 3), -EINVAL);
    ck_assert_int_eq(parse_bytes("{\"a\":\"\\\0\"}", 10), -EINVAL);
    ck_assert_mem_eq(&request, &before, sizeof(request));
}
END_TEST

/* Each beginning of a good request is none, and whatever follows one makes it none. */
START_TEST(test_truncated)
{
    static const char *const good[] = {
        ORDER, "{\"a\":\"\\ud83d\\ude00\\n\",\"b\":-1.5e-7,\"c\":null , \"d\" : true,\"e\":false}"};
    char longer[256];

    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        size_t size = strlen(good[i]);

        for (size_t n = 0; n < size; n++)
            ck_assert_msg(parse_bytes(good[i], n) == -EINVAL, "%.*s", (int)n, good[i]);
        memcpy(longer, good[i], size);
        for (int c = 0; c < 256; c++) {
            longer[size] = (char)c;
            ck_assert_int_eq(parse_bytes(longer, size + 1), c && strchr(" \t\r\n", c) ? 0 : -EINVAL);
        }
    }
}
END_TEST

static int parse_sized(size_t name_bytes, size_t text_bytes, size_t number_bytes)
{
    char name[ADMIN_NAME_BYTES_MAX + 2] = "", text[ADMIN_TEXT_BYTES_MAX + 2] = "",
                                     number[ADMIN_NUMBER_BYTES_MAX + 2] = "";
    char json[512];

    memset(name, 'n', name_bytes);
    memset(text, 't', text_bytes);
    memset(number, '7', number_bytes);
    snprintf(json, sizeof(json), "{\"%s\":\"%s\",\"a\":%s}", name, text, number);
    return parse(json);
}

static int parse_members(uint32_t n)
{
    char json[512] = "{";
    size_t size = 1;

    for (uint32_t i = 0; i < n; i++)
        size += (size_t)snprintf(json + size, sizeof(json) - size, "%s\"%u\":%u", i > 0 ? "," : "", i, i);
    snprintf(json + size, sizeof(json) - size, "}");
    return parse(json);
}

START_TEST(test_limits)
{
    ck_assert_int_eq(parse_sized(ADMIN_NAME_BYTES_MAX, ADMIN_TEXT_BYTES_MAX, ADMIN_NUMBER_BYTES_MAX), 0);
    ck_assert_uint_eq(strlen(request.members[0].name), ADMIN_NAME_BYTES_MAX);
    ck_assert_uint_eq(strlen(request.members[0].text), ADMIN_TEXT_BYTES_MAX);
    ck_assert_int_eq(parse_sized(ADMIN_NAME_BYTES_MAX + 1, 1, 1), -E2BIG);
    ck_assert_int_eq(parse_sized(1, ADMIN_TEXT_BYTES_MAX + 1, 1), -E2BIG);
    ck_assert_int_eq(parse_sized(1, 1, ADMIN_NUMBER_BYTES_MAX + 1), -E2BIG);
    ck_assert_int_eq(parse_members(ADMIN_MEMBERS_MAX), 0);
    ck_assert_uint_eq(request.n, ADMIN_MEMBERS_MAX);
    ck_assert(number_of("0") == 0 && number_of("7") == 7);
    ck_assert_int_eq(parse_members(ADMIN_MEMBERS_MAX + 1), -E2BIG);
    /* A character that would end behind the bound. */
    ck_assert_int_eq(parse("{\"1234567890123456789012345678\\u20ac\":1}"), 0);
    ck_assert_int_eq(parse("{\"12345678901234567890123456789\\u20ac\":1}"), -E2BIG);
}
END_TEST

/* --- Against another parser -------------------------------------------------------------------------------------- */

/* json-c 0.16 makes U+FFFD of U+1DE00, and of all others whose lower 16 bits look like half of a pair. */
static void expect_same_text(const char *theirs, const char *ours)
{
    if (!strstr(theirs, "\xef\xbf\xbd"))
        ck_assert_str_eq(theirs, ours);
}

static void expect_same(struct json_object *object)
{
    ck_assert_int_eq(json_object_object_length(object), (int)request.n);
    json_object_object_foreach(object, name, value)
    {
        static const enum json_type types[] = {[ADMIN_NULL] = json_type_null,
                                               [ADMIN_FALSE] = json_type_boolean,
                                               [ADMIN_TRUE] = json_type_boolean,
                                               [ADMIN_TEXT] = json_type_string};
        const struct admin_member *member = admin_request_find(&request, name);

        ck_assert_ptr_nonnull(member);
        if (member->kind == ADMIN_NUMBER) {
            ck_assert(json_object_is_type(value, json_type_int) || json_object_is_type(value, json_type_double));
            ck_assert(fabs(member->number) > 1e18 || json_object_get_double(value) == member->number);
            continue;
        }
        ck_assert_int_eq(json_object_get_type(value), types[member->kind]);
        if (member->kind == ADMIN_TEXT)
            expect_same_text(json_object_get_string(value), member->text);
        else if (member->kind != ADMIN_NULL)
            ck_assert_int_eq(json_object_get_boolean(value), member->kind == ADMIN_TRUE);
    }
}

static bool is_request(const char *text, size_t size)
{
    if (parse_bytes(text, size) < 0)
        return false;
    struct json_tokener *tokener = json_tokener_new();

    json_tokener_set_flags(tokener, JSON_TOKENER_STRICT);
    struct json_object *object = json_tokener_parse_ex(tokener, text, (int)size);

    ck_assert_msg(object && json_object_is_type(object, json_type_object), "%.*s: %s", (int)size, text,
                  json_tokener_error_desc(json_tokener_get_error(tokener)));
    expect_same(object);
    json_object_put(object);
    json_tokener_free(tokener);
    return true;
}

/* Good requests with a few bytes that are others, or missing, or there once more. */
START_TEST(test_mutated)
{
    static const char *const good[] = {
        ORDER, "{\"get\":\"status\"}",
        "{ \"a\":\"\\ud83d\\ude00\\n\\\\\",\"b\":-1.5e-7,\"c\":null , \"d\" : true,\"e\":false} "};
    static const char bytes[] = "\"\\/{}[]:, \t\n.-+eE0123459uUdDbaftrunls\x01\x80";
    uint64_t random = 1;
    uint32_t n_accepted = 0;

    for (uint32_t round = 0; round < 50000; round++) {
        char text[160];
        const char *from = good[splitmix64_next(&random) % ARRAY_LEN(good)];
        size_t size = strlen(from);

        memcpy(text, from, size + 1);
        for (uint64_t n = 1 + splitmix64_next(&random) % 3; n > 0; n--) {
            size_t at = splitmix64_next(&random) % size, to = splitmix64_next(&random) % size;
            uint64_t what = splitmix64_next(&random) % 4;

            if (what == 0)
                memmove(text + at, text + at + 1, --size - at);
            else if (what == 1 && size < sizeof(text) - 1)
                memmove(text + at + 1, text + at, size++ - at);
            else
                text[at] = what == 2 ? bytes[splitmix64_next(&random) % sizeof(bytes)] : text[to];
        }
        n_accepted += is_request(text, size);
    }
    ck_assert_uint_gt(n_accepted, 1000);
    ck_assert_uint_lt(n_accepted, 49000);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("admin_request");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, test_orders);
    tcase_add_test(tc, test_values);
    tcase_add_test(tc, test_escapes);
    tcase_add_test(tc, test_bad);
    tcase_add_test(tc, test_truncated);
    tcase_add_test(tc, test_limits);
    tcase_add_test(tc, test_mutated);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed ? 1 : 0;
}
