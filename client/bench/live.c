/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns standard error's progress line and the flag of the signal handler. One thread; the handler sets a flag and
 * nothing else, so whoever loops asks for it. A second signal ends the process at once.
 */
#include "client/bench/live.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "client/bench/process.h"

#define TERMINAL_NS UINT64_C(1000000000)
#define PLAIN_NS UINT64_C(5000000000)

static volatile sig_atomic_t caught;

void live_init(struct live *live, bool quiet)
{
    *live = (struct live){.last_ns = now_ns(), .is_terminal = isatty(STDERR_FILENO) == 1, .is_quiet = quiet};
}

bool live_due(struct live *live)
{
    return !live->is_quiet && now_ns() - live->last_ns >= (live->is_terminal ? TERMINAL_NS : PLAIN_NS);
}

void live_print(struct live *live, const char *fmt, ...)
{
    char line[256];
    va_list args;

    if (live->is_quiet)
        return;
    va_start(args, fmt);
    vsnprintf(line, sizeof(line), fmt, args);
    va_end(args);
    fprintf(stderr, live->is_terminal ? "\r\033[K%s" : "%s\n", line);
    fflush(stderr);
    live->line_open = live->is_terminal;
    live->last_ns = now_ns();
}

void live_end(struct live *live)
{
    if (live->line_open)
        fputc('\n', stderr);
    live->line_open = false;
}

static void on_signal(int signal)
{
    (void)signal;
    caught = 1;
}

void live_catch_signals(void)
{
    struct sigaction sa = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};

    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
}

bool live_interrupted(void)
{
    return caught != 0;
}
