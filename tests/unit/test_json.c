/* SPDX-License-Identifier: Apache-2.0 */
/* Answers in JSON: whole or not at all, and what any parser makes of them. */
#include <check.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/json.h"

static char *whole(struct json_object *root)
{
    size_t size = 0;
    char *text = json_end(root, &size);

    ck_assert_ptr_nonnull(text);
    ck_assert_uint_eq(strlen(text), size);
    return text;
}

START_TEST(all_kinds)
{
    struct json_object *o = json_begin(), *child = json_put_object(o, "child"), *array = json_put_array(o, "array");

    json_put_u64(child, "large", UINT64_MAX);
    json_put_int(child, "negative", -5);
    json_put_bool(child, "yes", true);
    json_put_text(child, "null", NULL);
    json_put_bool(json_add_object(array), "no", false);
    json_add_text(array, "text");
    (void)json_put_object(o, "empty");
    (void)json_put_array(o, "none");
    char *text = whole(o);

    ck_assert_str_eq(text, "{\"child\":{\"large\":18446744073709551615,\"negative\":-5,\"yes\":true,\"null\":null},"
                           "\"array\":[{\"no\":false},\"text\"],\"empty\":{},\"none\":[]}");
    free(text);
}
END_TEST

/* A client's name, a file's: whatever bytes they have. */
START_TEST(any_text)
{
    static const char odd[] = "a\"b\\c\nd\x01/\xc3\xa9";
    struct json_object *o = json_begin();

    json_put_text(o, odd, odd);
    char *text = whole(o);
    struct json_object *parsed = json_tokener_parse(text), *value = NULL;

    ck_assert_ptr_nonnull(parsed);
    ck_assert(json_object_object_get_ex(parsed, odd, &value));
    ck_assert_str_eq(json_object_get_string(value), odd);
    json_object_put(parsed);
    free(text);
}
END_TEST

/* Longer than any first buffer. */
START_TEST(long_text)
{
    struct json_object *o = json_begin(), *array = json_put_array(o, "array");

    for (uint32_t i = 0; i < 10000; i++)
        json_put_u64(json_add_object(array), "number", i);
    char *text = whole(o);
    struct json_object *parsed = json_tokener_parse(text), *numbers = NULL;

    ck_assert_ptr_nonnull(parsed);
    ck_assert(json_object_object_get_ex(parsed, "array", &numbers));
    ck_assert_uint_eq(json_object_array_length(numbers), 10000);
    json_object_put(parsed);
    free(text);
}
END_TEST

/* What could not be made takes what was to be put into it, and there is no answer; the next one is not concerned. */
START_TEST(no_memory)
{
    struct json_object *o = json_begin();
    size_t size = 77;

    json_put_u64(NULL, "number", 1);
    ck_assert_ptr_null(json_put_object(NULL, "object"));
    ck_assert_ptr_null(json_put_array(NULL, "array"));
    ck_assert_ptr_null(json_add_object(NULL));
    json_add_text(NULL, "text");
    json_put_text(NULL, "null", NULL);
    json_put_bool(o, "whole", false);
    ck_assert_ptr_null(json_end(o, &size));
    ck_assert_uint_eq(size, 77);
    ck_assert_ptr_null(json_end(NULL, &size));
    o = json_begin();
    json_put_bool(o, "whole", true);
    char *text = whole(o);

    ck_assert_str_eq(text, "{\"whole\":true}");
    free(text);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("json");
    TCase *tc = tcase_create("all");

    tcase_add_test(tc, all_kinds);
    tcase_add_test(tc, any_text);
    tcase_add_test(tc, long_text);
    tcase_add_test(tc, no_memory);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed ? 1 : 0;
}
