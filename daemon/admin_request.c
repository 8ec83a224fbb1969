/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads the text of an ADMIN request from its first byte to its last, and copies what it says into the request: nothing is
 * allocated, so nothing fails for want of memory. json-c, which makes the answers, would do for requests too, but up to
 * 0.16 its parser ends the process where it finds no memory for a member's name.
 *
 * What it takes is JSON, and nothing that only looks like it. A function that takes something moves the reader behind it;
 * after a failure nobody reads on. Bytes above 127 go as they are, as in the answers.
 */
#include "daemon/admin_request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define UTF8_BYTES_MAX 4

struct reader {
    const char *at, *end;
};

static bool take(struct reader *reader, const char *word)
{
    size_t len = strlen(word);

    if ((size_t)(reader->end - reader->at) < len || memcmp(reader->at, word, len) != 0)
        return false;
    reader->at += len;
    return true;
}

/* -1: there is none. */
static int take_byte(struct reader *reader)
{
    return reader->at < reader->end ? (unsigned char)*reader->at++ : -1;
}

static void skip_blanks(struct reader *reader)
{
    while (take(reader, " ") || take(reader, "\t") || take(reader, "\n") || take(reader, "\r"))
        ;
}

/* --- Texts ------------------------------------------------------------------------------------------------------- */

static int hex_digit(int c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* A unit of UTF-16; -1: there are no four digits. */
static int32_t take_unit(struct reader *reader)
{
    int32_t unit = 0;

    for (int i = 0; i < 4; i++) {
        int digit = hex_digit(take_byte(reader));

        if (digit < 0)
            return -1;
        unit = unit * 16 + digit;
    }
    return unit;
}

/* What stands behind \u; -1: nothing that a text can have. */
static int32_t take_code_point(struct reader *reader)
{
    int32_t unit = take_unit(reader), low;

    if (unit <= 0 || (unit >= 0xdc00 && unit <= 0xdfff))
        return -1;
    if (unit < 0xd800 || unit > 0xdbff)
        return unit;
    low = take(reader, "\\u") ? take_unit(reader) : -1;
    return low >= 0xdc00 && low <= 0xdfff ? 0x10000 + (unit - 0xd800) * 0x400 + (low - 0xdc00) : -1;
}

static size_t utf8_write(int32_t point, char *ret_bytes)
{
    static const unsigned char firsts[UTF8_BYTES_MAX + 1] = {[1] = 0, [2] = 0xc0, [3] = 0xe0, [4] = 0xf0};
    size_t n = point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;

    for (size_t i = n - 1; i > 0; i--, point >>= 6)
        ret_bytes[i] = (char)(0x80 | (point & 0x3f));
    ret_bytes[0] = (char)(firsts[n] | point);
    return n;
}

/* What stands behind a backslash, as so many bytes; 0: nothing that may. */
static size_t take_escaped(struct reader *reader, char *ret_bytes)
{
    static const char names[] = "\"\\/bfnrt", bytes[] = "\"\\/\b\f\n\r\t";
    int c = take_byte(reader);
    const char *name = c > 0 ? strchr(names, c) : NULL;

    if (name) {
        ret_bytes[0] = bytes[name - names];
        return 1;
    }
    int32_t point = c == 'u' ? take_code_point(reader) : -1;

    return point > 0 ? utf8_write(point, ret_bytes) : 0;
}

/* Up to the quotation mark that ends it. */
static int take_text(struct reader *reader, char *text, size_t bytes_max)
{
    size_t n = 0;
    int c;

    while ((c = take_byte(reader)) != '"') {
        char bytes[UTF8_BYTES_MAX] = {(char)c};
        size_t n_bytes = c == '\\' ? take_escaped(reader, bytes) : 1;

        if (c < ' ' || n_bytes == 0)
            return -EINVAL;
        if (n_bytes > bytes_max - n)
            return -E2BIG;
        memcpy(text + n, bytes, n_bytes);
        n += n_bytes;
    }
    text[n] = '\0';
    return 0;
}

/* --- Other values ------------------------------------------------------------------------------------------------ */

static bool take_digits(struct reader *reader)
{
    const char *first = reader->at;

    while (reader->at < reader->end && *reader->at >= '0' && *reader->at <= '9')
        reader->at++;
    return reader->at > first;
}

static bool take_number_text(struct reader *reader)
{
    (void)take(reader, "-");
    if (!take(reader, "0") && !take_digits(reader))
        return false;
    if (take(reader, ".") && !take_digits(reader))
        return false;
    if (!take(reader, "e") && !take(reader, "E"))
        return true;
    if (!take(reader, "-"))
        (void)take(reader, "+");
    return take_digits(reader);
}

/* The daemon never sets a locale, so strtod() knows no other decimal point than JSON. */
static int take_number(struct reader *reader, double *ret_number)
{
    char text[ADMIN_NUMBER_BYTES_MAX + 1];
    const char *first = reader->at;

    if (!take_number_text(reader))
        return -EINVAL;
    size_t len = (size_t)(reader->at - first);

    if (len > ADMIN_NUMBER_BYTES_MAX)
        return -E2BIG;
    memcpy(text, first, len);
    text[len] = '\0';
    *ret_number = strtod(text, NULL);
    return 0;
}

static int take_value(struct reader *reader, struct admin_member *member)
{
    static const char *const words[] = {[ADMIN_NULL] = "null", [ADMIN_FALSE] = "false", [ADMIN_TRUE] = "true"};

    for (size_t i = 0; i < ARRAY_LEN(words); i++)
        if (take(reader, words[i])) {
            member->kind = (enum admin_value)i;
            return 0;
        }
    member->kind = take(reader, "\"") ? ADMIN_TEXT : ADMIN_NUMBER;
    return member->kind == ADMIN_TEXT ? take_text(reader, member->text, ADMIN_TEXT_BYTES_MAX)
                                      : take_number(reader, &member->number);
}

/* --- The object -------------------------------------------------------------------------------------------------- */

static int take_member(struct reader *reader, struct admin_request *request)
{
    struct admin_member *member = &request->members[request->n];

    if (request->n == ADMIN_MEMBERS_MAX)
        return -E2BIG;
    skip_blanks(reader);
    int r = take(reader, "\"") ? take_text(reader, member->name, ADMIN_NAME_BYTES_MAX) : -EINVAL;

    if (r < 0)
        return r;
    skip_blanks(reader);
    if (admin_request_find(request, member->name) || !take(reader, ":"))
        return -EINVAL;
    skip_blanks(reader);
    r = take_value(reader, member);
    skip_blanks(reader);
    request->n += r == 0;
    return r;
}

static int take_members(struct reader *reader, struct admin_request *request)
{
    int r;

    skip_blanks(reader);
    if (take(reader, "}"))
        return 0;
    do
        r = take_member(reader, request);
    while (r == 0 && take(reader, ","));
    return r < 0 ? r : take(reader, "}") ? 0 : -EINVAL;
}

int admin_request_parse(const char *text, size_t size_bytes, struct admin_request *ret_request)
{
    struct reader reader = {text, text + size_bytes};
    struct admin_request request = {0};

    skip_blanks(&reader);
    int r = take(&reader, "{") ? take_members(&reader, &request) : -EINVAL;

    if (r < 0)
        return r;
    skip_blanks(&reader);
    if (reader.at < reader.end)
        return -EINVAL;
    *ret_request = request;
    return 0;
}

const struct admin_member *admin_request_find(const struct admin_request *request, const char *name)
{
    for (uint32_t i = 0; i < request->n; i++)
        if (strcmp(request->members[i].name, name) == 0)
            return &request->members[i];
    return NULL;
}

const char *admin_request_text(const struct admin_request *request, const char *name)
{
    const struct admin_member *member = admin_request_find(request, name);

    return member && member->kind == ADMIN_TEXT ? member->text : NULL;
}
