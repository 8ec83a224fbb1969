/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Aligned tables out of JSON: a column is a heading, a path, and how to print what stands there.
 */
#pragma once

#include <json-c/json.h>
#include <stdio.h>

#include "include/base/base.h"

enum column_kind {
    COLUMN_TEXT,
    COLUMN_COUNT,
    COLUMN_SIZE,    /* bytes */
    COLUMN_TIME,    /* nanoseconds */
    COLUMN_SECONDS, /* seconds */
    COLUMN_PERCENT, /* 0 to 100 */
    COLUMN_YES,     /* a truth */
    COLUMN_LIST,    /* texts, separated by commas */
};

struct column {
    const char *heading, *path;
    enum column_kind kind;
};

/* One value as text; "-" if it is not there. */
const char *column_print(struct json_object *row, const struct column *column, char *ret_text, size_t text_bytes);
/* A table of an array's elements. */
void table_print(struct json_object *array, const struct column *columns, size_t n_columns, FILE *out);
/* One object, a line a value: headings on the left. Values that are not there are left out. */
void table_print_one(struct json_object *object, const struct column *columns, size_t n_columns, FILE *out);
