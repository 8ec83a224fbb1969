/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sizes, durations, percentages and plain decimals as people write them: `64 KiB`, `1.5T`, `250ms`, `5 min`, `12.5 %`.
 *
 * One grammar for the config, spillctl and spillbench: digits, at most one point, optional blanks, a unit, nothing
 * else. Sizes are binary; `KB`, `MB` and `GB` are refused, because half of their readers take them for powers of ten.
 * A bare number is bytes for a size and an error for a duration. No floating point: 0.1 TiB is the same number of
 * bytes everywhere.
 *
 * All parsers return 0, -EINVAL (no number), -EDOM (a unit they do not know: units_tail() points at it) or -ERANGE.
 */
#pragma once

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "include/base/base.h"

#define UNITS_TEXT_BYTES 40     /* enough for every text that is printed here, with its NUL */
#define UNITS_FRACTION_DIGITS 9 /* more are refused, not rounded */

#define PERCENT_MILLI_WHOLE 100000 /* 100 % in thousandths of a percent */

struct unit {
    const char *name;
    uint64_t factor;
};

/* The first name of each factor is the one that is printed; from the largest to the smallest. */
static const struct unit units_size[] = {
    {"TiB", TIB}, {"T", TIB},   {"GiB", GIB}, {"G", GIB}, {"MiB", MIB},
    {"M", MIB},   {"KiB", KIB}, {"K", KIB},   {"B", 1},   {"", 1},
};

/* In nanoseconds. There is no `m`: it could be minutes or milliseconds. */
static const struct unit units_duration[] = {
    {"d", UINT64_C(86400000000000)},
    {"h", UINT64_C(3600000000000)},
    {"min", UINT64_C(60000000000)},
    {"s", UINT64_C(1000000000)},
    {"ms", UINT64_C(1000000)},
    {"us", UINT64_C(1000)},
    {"ns", 1},
};

/* What a rate may be told in: `50 MiB/s`, `4 TiB/day`. The first name of each is the one that is printed. */
static const struct unit units_rate[] = {
    {"day", UINT64_C(86400000000000)}, {"d", UINT64_C(86400000000000)}, {"h", UINT64_C(3600000000000)},
    {"min", UINT64_C(60000000000)},    {"s", UINT64_C(1000000000)},
};

static inline bool units_is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* What follows the number: the unit, or the end of the text. */
static inline const char *units_tail(const char *text)
{
    text += strspn(text, " \t");
    text += strspn(text, "0123456789.");
    return text + strspn(text, " \t");
}

/* The unit that a text ends in, without trailing blanks, compared without regard to case. */
static inline const struct unit *units_find(const char *tail, const struct unit *units, size_t n_units)
{
    size_t len = strlen(tail);

    while (len > 0 && (tail[len - 1] == ' ' || tail[len - 1] == '\t'))
        len--;
    for (size_t i = 0; i < n_units; i++)
        if (strlen(units[i].name) == len && strncasecmp(units[i].name, tail, len) == 0)
            return &units[i];
    return NULL;
}

/* number × factor, rounded down. The number ends where units_tail() says. */
static inline int units_scale(const char *text, uint64_t factor, uint64_t *ret)
{
    unsigned __int128 whole = 0, fraction = 0, divisor = 1;
    unsigned n_digits = 0, n_fraction = 0;

    text += strspn(text, " \t");
    for (; units_is_digit(*text); text++, n_digits++) {
        whole = whole * 10 + (unsigned)(*text - '0');
        if (whole > UINT64_MAX)
            return -ERANGE;
    }
    if (*text == '.') {
        for (text++; units_is_digit(*text); text++, n_fraction++) {
            if (n_fraction == UNITS_FRACTION_DIGITS)
                return -ERANGE;
            fraction = fraction * 10 + (unsigned)(*text - '0');
            divisor *= 10;
        }
        if (n_fraction == 0 || *text == '.')
            return -EINVAL;
    }
    if (n_digits == 0)
        return -EINVAL;
    whole = whole * factor + fraction * factor / divisor;
    if (whole > UINT64_MAX)
        return -ERANGE;
    *ret = (uint64_t)whole;
    return 0;
}

static inline int units_parse(const char *text, const struct unit *units, size_t n_units, uint64_t *ret)
{
    uint64_t value;
    int r = units_scale(text, 1, &value); /* "is there a number at all?" comes before "which unit?" */

    if (r < 0)
        return r;
    const struct unit *u = units_find(units_tail(text), units, n_units);
    return u ? units_scale(text, u->factor, ret) : -EDOM;
}

static inline int size_parse(const char *text, uint64_t *ret_bytes)
{
    return units_parse(text, units_size, ARRAY_LEN(units_size), ret_bytes);
}

static inline int duration_parse(const char *text, uint64_t *ret_ns)
{
    return units_parse(text, units_duration, ARRAY_LEN(units_duration), ret_ns);
}

/* A plain number with up to three decimals, in thousandths: `1.5` gives 1500. */
static inline int decimal_parse(const char *text, uint64_t *ret_milli)
{
    static const struct unit none[] = {{"", 1000}};

    return units_parse(text, none, ARRAY_LEN(none), ret_milli);
}

/* `12.5 %` gives 12500. Above 100 % is -ERANGE. -EDOM also says "no percent sign", so a caller can try a size next. */
static inline int percent_parse(const char *text, uint32_t *ret_milli)
{
    static const struct unit percent[] = {{"%", 1000}};
    uint64_t milli;
    int r = units_parse(text, percent, ARRAY_LEN(percent), &milli);

    if (r < 0)
        return r;
    if (milli > PERCENT_MILLI_WHOLE)
        return -ERANGE;
    *ret_milli = (uint32_t)milli;
    return 0;
}

static inline uint64_t percent_of(uint32_t percent_milli, uint64_t total)
{
    return (uint64_t)((unsigned __int128)total * percent_milli / PERCENT_MILLI_WHOLE);
}

/* Exact: parses back to the same value. The largest unit that gives a whole number. */
static inline const char *units_print_exact(uint64_t value, const struct unit *units, size_t n_units,
                                            char ret_text[static UNITS_TEXT_BYTES])
{
    size_t i = 0;

    while (i + 1 < n_units && (units[i].name[0] == '\0' || value == 0 || value % units[i].factor != 0))
        i++;
    while (i > 0 && units[i - 1].factor == units[i].factor) /* the name to print, not an alias */
        i--;
    snprintf(ret_text, UNITS_TEXT_BYTES, "%llu %s", (unsigned long long)(value / units[i].factor), units[i].name);
    return ret_text;
}

/* For people: at most two decimals, cut off, in the largest unit that leaves something before the point. */
static inline const char *units_print(uint64_t value, const struct unit *units, size_t n_units,
                                      char ret_text[static UNITS_TEXT_BYTES])
{
    size_t i = 0;

    while (i + 1 < n_units && units[i].factor > value)
        i++;
    while (i > 0 && units[i - 1].factor == units[i].factor)
        i--;
    assert(units[i].factor > 0);
    uint64_t whole = value / units[i].factor;
    unsigned cents = (unsigned)((unsigned __int128)(value % units[i].factor) * 100 / units[i].factor);
    if (cents == 0)
        snprintf(ret_text, UNITS_TEXT_BYTES, "%llu %s", (unsigned long long)whole, units[i].name);
    else
        snprintf(ret_text, UNITS_TEXT_BYTES, "%llu.%02u %s", (unsigned long long)whole, cents, units[i].name);
    return ret_text;
}

static inline const char *size_print(uint64_t bytes, char ret_text[static UNITS_TEXT_BYTES])
{
    return units_print(bytes, units_size, ARRAY_LEN(units_size), ret_text);
}

static inline const char *size_print_exact(uint64_t bytes, char ret_text[static UNITS_TEXT_BYTES])
{
    return units_print_exact(bytes, units_size, ARRAY_LEN(units_size), ret_text);
}

static inline const char *duration_print(uint64_t ns, char ret_text[static UNITS_TEXT_BYTES])
{
    return units_print(ns, units_duration, ARRAY_LEN(units_duration), ret_text);
}

static inline const char *duration_print_exact(uint64_t ns, char ret_text[static UNITS_TEXT_BYTES])
{
    return ns == 0 ? memcpy(ret_text, "0 s", sizeof("0 s"))
                   : units_print_exact(ns, units_duration, ARRAY_LEN(units_duration), ret_text);
}

/* 12500 gives `12.5`: what percent_parse() and decimal_parse() take, less the sign. */
static inline const char *milli_print(uint64_t milli, char ret_text[static UNITS_TEXT_BYTES])
{
    int len =
        snprintf(ret_text, UNITS_TEXT_BYTES, "%llu.%03u", (unsigned long long)(milli / 1000), (unsigned)(milli % 1000));

    while (ret_text[len - 1] == '0')
        ret_text[--len] = '\0';
    if (ret_text[len - 1] == '.')
        ret_text[len - 1] = '\0';
    return ret_text;
}
