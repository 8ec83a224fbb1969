/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much may be written: so many bytes in so much time, as a token bucket. Pure; time is an argument.
 *
 * At most 1/BUDGET_BURST_PARTS of the budget is saved up (but a piece always): in any stretch of the budget's own time no
 * more than 1 + 1/BUDGET_BURST_PARTS of it is written, unless by what must be written whatever it costs. A fresh budget
 * has nothing saved: who restarts the daemon gains nothing. What was written ahead is paid off before anything more is
 * allowed, at most one whole budget of it.
 */
#pragma once

#include "include/base/base.h"

#define BUDGET_BURST_PARTS 24 /* an hour of a day */

struct budget {
    uint64_t bytes, period_ns; /* bytes in each period_ns; bytes 0: no limit */
    int64_t left;              /* bytes; not positive: nothing more is allowed now */
    uint64_t earned_ns;        /* up to then; 0: it has not begun */
    uint64_t used_bytes, over_bytes;
    uint64_t dropped, dropped_bytes; /* pieces that it kept from being written */
};

/* What was counted, and what is saved up or owed, stays. */
void budget_set(struct budget *b, uint64_t bytes, uint64_t period_ns, uint64_t now_ns);
bool budget_allows(struct budget *b, uint64_t now_ns);
/* Written, whether it was allowed or not. */
void budget_charge(struct budget *b, uint64_t bytes, uint64_t now_ns);
/* A whole day's; 0: no limit. */
uint64_t budget_day_bytes(const struct budget *b);
