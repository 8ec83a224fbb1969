/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The line that tells a person what is going on, on standard error: rewritten every second on a terminal, a new line
 * every five seconds elsewhere. And whether the person has had enough (SIGINT, SIGTERM).
 */
#pragma once

#include "include/base/base.h"

struct live {
    uint64_t last_ns;
    bool is_terminal;
    bool is_quiet;
    bool line_open;
};

void live_init(struct live *live, bool quiet);
/* Whether it is time for another line; cheap. */
bool live_due(struct live *live);
void live_print(struct live *live, const char *fmt, ...) printf_like(2, 3);
/* Ends the rewritten line, so that what is printed next stands on its own. */
void live_end(struct live *live);

void live_catch_signals(void);
bool live_interrupted(void);
