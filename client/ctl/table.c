/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Widths are found in a first pass, lines are printed in a second. Names may hold UTF-8, so width is counted in
 * characters. Text that a client chose (names of programs) is stripped of what a terminal would obey.
 */
#include "client/ctl/table.h"

#include <math.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "include/base/units.h"

#define CELL_BYTES 128
#define COLUMNS_MAX 24

static bool is_number(struct json_object *o)
{
    return json_object_is_type(o, json_type_int) || json_object_is_type(o, json_type_double);
}

static void print_list(struct json_object *list, char *ret_text, size_t text_bytes)
{
    size_t len = 0;

    snprintf(ret_text, text_bytes, "%s", json_object_array_length(list) == 0 ? "-" : "");
    for (size_t i = 0; i < json_object_array_length(list) && len < text_bytes; i++)
        len += (size_t)snprintf(ret_text + len, text_bytes - len, "%s%s", i ? ", " : "",
                                json_object_get_string(json_object_array_get_idx(list, i)));
}

static void print_number(double value, enum column_kind kind, char *ret_text, size_t text_bytes)
{
    char text[UNITS_TEXT_BYTES];
    uint64_t whole = value > 0 ? (uint64_t)value : 0;

    if (kind == COLUMN_SIZE)
        snprintf(ret_text, text_bytes, "%s", size_print(whole, text));
    else if (kind == COLUMN_TIME)
        snprintf(ret_text, text_bytes, "%s", duration_print(whole, text));
    else if (kind == COLUMN_SECONDS)
        snprintf(ret_text, text_bytes, "%s", whole ? duration_print(whole * 1000000000, text) : "0 s");
    else if (kind == COLUMN_PERCENT)
        snprintf(ret_text, text_bytes, "%.1f %%", value);
    else
        snprintf(ret_text, text_bytes, value == rint(value) ? "%.0f" : "%.2f", value);
}

const char *column_print(struct json_object *row, const struct column *column, char *ret_text, size_t text_bytes)
{
    struct json_object *o = ctl_find(row, column->path);

    if (!o)
        snprintf(ret_text, text_bytes, "-");
    else if (json_object_is_type(o, json_type_array))
        print_list(o, ret_text, text_bytes);
    else if (json_object_is_type(o, json_type_boolean) || column->kind == COLUMN_YES)
        snprintf(ret_text, text_bytes, "%s", json_object_get_boolean(o) ? "yes" : "no");
    else if (is_number(o) && column->kind != COLUMN_TEXT)
        print_number(json_object_get_double(o), column->kind, ret_text, text_bytes);
    else
        snprintf(ret_text, text_bytes, "%s", json_object_get_string(o));
    for (char *c = ret_text; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = '?';
    return ret_text;
}

static int characters(const char *text)
{
    int n = 0;

    for (; *text; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

static void print_cell(const char *text, int width, bool to_the_left, bool last, FILE *out)
{
    int fill = width - characters(text);

    fprintf(out, "%*s%s", to_the_left ? 0 : MAX(fill, 0), "", text);
    if (!last)
        fprintf(out, "%*s", (to_the_left ? MAX(fill, 0) : 0) + 2, "");
}

static bool is_left(const struct column *column)
{
    return column->kind == COLUMN_TEXT || column->kind == COLUMN_LIST;
}

void table_print(struct json_object *array, const struct column *columns, size_t n_columns, FILE *out)
{
    char cell[CELL_BYTES];
    int widths[COLUMNS_MAX];
    size_t n_rows = json_object_is_type(array, json_type_array) ? json_object_array_length(array) : 0;

    assert(n_columns <= COLUMNS_MAX);
    for (size_t c = 0; c < n_columns; c++) {
        widths[c] = characters(columns[c].heading);
        for (size_t i = 0; i < n_rows; i++) {
            int width = characters(column_print(json_object_array_get_idx(array, i), &columns[c], cell, sizeof(cell)));
            widths[c] = MAX(widths[c], width);
        }
        print_cell(columns[c].heading, widths[c], is_left(&columns[c]), c + 1 == n_columns, out);
    }
    fputc('\n', out);
    for (size_t i = 0; i < n_rows; i++) {
        struct json_object *row = json_object_array_get_idx(array, i);

        for (size_t c = 0; c < n_columns; c++)
            print_cell(column_print(row, &columns[c], cell, sizeof(cell)), widths[c], is_left(&columns[c]),
                       c + 1 == n_columns, out);
        fputc('\n', out);
    }
}

void table_print_one(struct json_object *object, const struct column *columns, size_t n_columns, FILE *out)
{
    char cell[CELL_BYTES];
    int width = 0;

    for (size_t c = 0; c < n_columns; c++)
        width = MAX(width, characters(columns[c].heading));
    for (size_t c = 0; c < n_columns; c++) {
        if (!ctl_find(object, columns[c].path))
            continue;
        print_cell(columns[c].heading, width, true, false, out);
        fprintf(out, "%s\n", column_print(object, &columns[c], cell, sizeof(cell)));
    }
}
