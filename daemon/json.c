/* SPDX-License-Identifier: Apache-2.0 */
/*
 * json-c around its edges: it ends the process when a member is put into an object that could not be made, takes a value that
 * could not be made for null, and prints past a buffer that did not grow. So nothing is put where nothing is, what is missing
 * is remembered, and the text is written here.
 */
#include "daemon/json.h"

#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_BYTES_MIN 4096

static bool is_short; /* of the answer that is being made */

/* --- Making ------------------------------------------------------------------------------------------------------ */

static struct json_object *made(struct json_object *o)
{
    is_short |= !o;
    return o;
}

static void put(struct json_object *o, const char *name, struct json_object *value, bool is_null)
{
    if (!is_null && !made(value))
        return;
    if (!o || json_object_object_add(o, name, value) < 0) {
        is_short = true;
        json_object_put(value);
    }
}

static struct json_object *add(struct json_object *array, struct json_object *value)
{
    if (made(value) && (!array || json_object_array_add(array, value) < 0)) {
        is_short = true;
        json_object_put(value);
        return NULL;
    }
    return value;
}

/* A child that its parent could not take is gone. */
static struct json_object *put_child(struct json_object *o, const char *name, struct json_object *child)
{
    struct json_object *there = NULL;

    put(o, name, child, false);
    return child && o && json_object_object_get_ex(o, name, &there) ? there : NULL;
}

struct json_object *json_begin(void)
{
    is_short = false;
    return made(json_object_new_object());
}

void json_put_u64(struct json_object *o, const char *name, uint64_t value)
{
    put(o, name, json_object_new_uint64(value), false);
}

void json_put_int(struct json_object *o, const char *name, int value)
{
    put(o, name, json_object_new_int(value), false);
}

void json_put_bool(struct json_object *o, const char *name, bool value)
{
    put(o, name, json_object_new_boolean(value), false);
}

void json_put_text(struct json_object *o, const char *name, const char *value)
{
    put(o, name, value ? json_object_new_string(value) : NULL, !value);
}

struct json_object *json_put_object(struct json_object *o, const char *name)
{
    return put_child(o, name, json_object_new_object());
}

struct json_object *json_put_array(struct json_object *o, const char *name)
{
    return put_child(o, name, json_object_new_array());
}

void json_add_text(struct json_object *array, const char *value)
{
    (void)add(array, json_object_new_string(value));
}

struct json_object *json_add_object(struct json_object *array)
{
    return add(array, json_object_new_object());
}

/* --- Writing ----------------------------------------------------------------------------------------------------- */

struct text {
    char *at;
    size_t size, room;
    bool failed;
};

static void write_bytes(struct text *t, const char *bytes, size_t n)
{
    if (!t->failed && t->size + n + 1 > t->room) {
        size_t room = MAX(t->room * 2, t->size + n + TEXT_BYTES_MIN);
        char *more = realloc(t->at, room);

        t->failed = !more;
        t->at = more ? more : t->at;
        t->room = more ? room : t->room;
    }
    if (t->failed)
        return;
    memcpy(t->at + t->size, bytes, n);
    t->size += n;
    t->at[t->size] = '\0';
}

static void write_text(struct text *t, const char *text)
{
    write_bytes(t, text, strlen(text));
}

/* Bytes above 127 go as they are: the text is UTF-8, or what somebody named a file. */
static void write_string(struct text *t, const char *string)
{
    write_text(t, "\"");
    for (const char *c = string; *c; c++) {
        char escaped[8];

        if (*c == '"' || *c == '\\')
            snprintf(escaped, sizeof(escaped), "\\%c", *c);
        else if ((unsigned char)*c < ' ')
            snprintf(escaped, sizeof(escaped), "\\u%04x", (unsigned char)*c);
        else
            snprintf(escaped, sizeof(escaped), "%c", *c);
        write_text(t, escaped);
    }
    write_text(t, "\"");
}

static void write_value(struct text *t, struct json_object *value);

static void write_object(struct text *t, struct json_object *object)
{
    const char *before = "{";

    json_object_object_foreach(object, name, value)
    {
        write_text(t, before);
        write_string(t, name);
        write_text(t, ":");
        write_value(t, value);
        before = ",";
    }
    write_text(t, *before == '{' ? "{}" : "}");
}

static void write_array(struct text *t, struct json_object *array)
{
    size_t n = json_object_array_length(array);

    write_text(t, "[");
    for (size_t i = 0; i < n; i++) {
        write_text(t, i > 0 ? "," : "");
        write_value(t, json_object_array_get_idx(array, i));
    }
    write_text(t, "]");
}

/* The depth is that of our own answers. */
static void write_value(struct text *t, struct json_object *value) // NOLINT(misc-no-recursion)
{
    char number[32];

    switch (json_object_get_type(value)) {
    case json_type_object:
        write_object(t, value);
        return;
    case json_type_array:
        write_array(t, value);
        return;
    case json_type_string:
        write_string(t, json_object_get_string(value));
        return;
    case json_type_boolean:
        write_text(t, json_object_get_boolean(value) ? "true" : "false");
        return;
    case json_type_int:
        if (json_object_get_int64(value) < 0)
            snprintf(number, sizeof(number), "%lld", (long long)json_object_get_int64(value));
        else
            snprintf(number, sizeof(number), "%llu", (unsigned long long)json_object_get_uint64(value));
        write_text(t, number);
        return;
    case json_type_null:
    case json_type_double: /* nothing here makes one */
        break;
    }
    write_text(t, "null");
}

char *json_end(struct json_object *root, size_t *ret_size)
{
    struct text t = {0};

    if (!is_short && root)
        write_object(&t, root);
    json_object_put(root);
    if (is_short || t.failed || !t.at) {
        free(t.at);
        return NULL;
    }
    *ret_size = t.size;
    return t.at;
}
