/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns nothing; any thread. Optimal string alignment distance over three rolling rows on the stack. Words longer than
 * NAME_BYTES_MAX get no suggestion, which bounds both the rows and the time.
 */
#include "daemon/suggest.h"

#include <ctype.h>
#include <string.h>

#include "include/base/limits.h"

static unsigned min3(unsigned a, unsigned b, unsigned c)
{
    unsigned least = MIN(a, b);

    return MIN(least, c);
}

static bool same_letter(char a, char b)
{
    return tolower((unsigned char)a) == tolower((unsigned char)b);
}

static unsigned edit_distance(const char *a, size_t a_len, const char *b, size_t b_len)
{
    unsigned rows[3][NAME_BYTES_MAX + 1];
    unsigned *before = rows[0], *above = rows[1], *row = rows[2];

    for (size_t j = 0; j <= b_len; j++)
        before[j] = above[j] = (unsigned)j;
    for (size_t i = 1; i <= a_len; i++) {
        row[0] = (unsigned)i;
        for (size_t j = 1; j <= b_len; j++) {
            unsigned replace = above[j - 1] + !same_letter(a[i - 1], b[j - 1]);

            row[j] = min3(above[j] + 1, row[j - 1] + 1, replace);
            if (i > 1 && j > 1 && same_letter(a[i - 1], b[j - 2]) && same_letter(a[i - 2], b[j - 1]))
                row[j] = MIN(row[j], before[j - 2] + 1);
        }
        unsigned *free_row = before;
        before = above;
        above = row;
        row = free_row;
    }
    return above[b_len];
}

const char *suggest_nearest(const char *word, const char *const *names, size_t n_names)
{
    size_t len = strlen(word);
    unsigned limit = (unsigned)MAX(len / 3, (size_t)1), best = limit + 1;
    const char *nearest = NULL;

    if (len == 0 || len > NAME_BYTES_MAX)
        return NULL;
    for (size_t i = 0; i < n_names; i++) {
        size_t name_len = strlen(names[i]);

        if (name_len > NAME_BYTES_MAX || name_len > len + limit || len > name_len + limit)
            continue;
        unsigned distance = edit_distance(word, len, names[i], name_len);
        if (distance < best) {
            best = distance;
            nearest = names[i];
        }
    }
    return nearest;
}
