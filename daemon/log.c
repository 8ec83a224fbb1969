/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the process's voice. A line is built on the stack and leaves with one write(), so lines never mix. Characters
 * that a client chose (names) and that a terminal would obey are replaced.
 */
#include "daemon/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LOG_LIMIT_PER_SECOND 20

static enum log_level log_level = LOG_LEVEL_INFO;
static bool log_to_journal;

/* journald tells its services which stream is its own; a redirected stderr is another one. */
static bool is_journal(int fd)
{
    const char *stream = getenv("JOURNAL_STREAM");
    unsigned long long dev, ino;
    struct stat st;

    return stream && sscanf(stream, "%llu:%llu", &dev, &ino) == 2 && fstat(fd, &st) == 0 && st.st_dev == dev &&
           st.st_ino == ino;
}

void log_setup(void)
{
    log_to_journal = is_journal(STDERR_FILENO);
}

void log_set_level(enum log_level level)
{
    log_level = level;
}

bool log_is_on(enum log_level level)
{
    return level <= log_level;
}

static size_t log_prefix(enum log_level level, char *line, size_t size)
{
    static const char priority[] = {'3', '4', '5', '6', '7'};
    static const char *const words[] = {"error: ", "warning: ", "", "", "debug: "};

    return (size_t)(log_to_journal ? snprintf(line, size, "<%c>", priority[level])
                                   : snprintf(line, size, "spillwayd: %s", words[level]));
}

static void log_vprint(enum log_level level, const char *fmt, va_list args)
{
    char line[LOG_LINE_BYTES];
    size_t start = log_prefix(level, line, sizeof(line));

    vsnprintf(line + start, sizeof(line) - start - 1, fmt, args);

    size_t len = strlen(line);
    for (size_t i = start; i < len; i++)
        if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
            line[i] = '?';
    line[len++] = '\n';
    /* Nobody to tell if it fails. */
    if (write(STDERR_FILENO, line, len) < 0)
        return;
}

void log_print(enum log_level level, const char *fmt, ...)
{
    va_list args;

    if (!log_is_on(level))
        return;
    va_start(args, fmt);
    log_vprint(level, fmt, args);
    va_end(args);
}

void log_print_limited(enum log_level level, const char *fmt, ...)
{
    static time_t second;
    static unsigned n_said, n_lost;
    time_t now = time(NULL);
    va_list args;

    if (!log_is_on(level))
        return;
    if (now != second) {
        if (n_lost > 0)
            log_print(level, "%u more lines like the last ones", n_lost);
        second = now;
        n_said = n_lost = 0;
    }
    if (n_said == LOG_LIMIT_PER_SECOND) {
        n_lost++;
        return;
    }
    n_said++;
    va_start(args, fmt);
    log_vprint(level, fmt, args);
    va_end(args);
}

const char *log_errno(int negative_errno)
{
    static _Thread_local char text[64];

    /* The GNU version: may return a text of its own. */
    return strerror_r(-negative_errno, text, sizeof(text));
}
