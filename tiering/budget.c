/* SPDX-License-Identifier: Apache-2.0 */
/* The arithmetic of write budgets. Only whole bytes are earned, and time only for them: nothing is lost to rounding. */
#include "tiering/budget.h"

#include "include/base/limits.h"

#define DAY_NS UINT64_C(86400000000000)

static int64_t burst_bytes(const struct budget *b)
{
    return (int64_t)MAX(b->bytes / BUDGET_BURST_PARTS, (uint64_t)PIECE_BYTES_MAX);
}

static int64_t debt_bytes(const struct budget *b)
{
    return MAX((int64_t)b->bytes, burst_bytes(b));
}

static void budget_earn(struct budget *b, uint64_t now_ns)
{
    if (!b->earned_ns || now_ns <= b->earned_ns) {
        b->earned_ns = MAX(b->earned_ns, now_ns);
        return;
    }
    unsigned __int128 earned = (unsigned __int128)b->bytes * (now_ns - b->earned_ns) / b->period_ns;
    int64_t room = burst_bytes(b) - b->left;

    if (earned >= (unsigned __int128)room) {
        b->left += room;
        b->earned_ns = now_ns;
    } else {
        b->left += (int64_t)earned;
        b->earned_ns += (uint64_t)((earned * b->period_ns + b->bytes - 1) / b->bytes);
    }
}

void budget_set(struct budget *b, uint64_t bytes, uint64_t period_ns, uint64_t now_ns)
{
    bytes = MIN(bytes, WRITE_BUDGET_BYTES_MAX);
    if (b->bytes == bytes && b->period_ns == period_ns)
        return;
    if (b->bytes)
        budget_earn(b, now_ns);
    else
        b->left = 0;
    b->bytes = bytes;
    b->period_ns = period_ns;
    b->earned_ns = now_ns;
    b->left = bytes ? MAX(MIN(b->left, burst_bytes(b)), -debt_bytes(b)) : 0;
}

bool budget_allows(struct budget *b, uint64_t now_ns)
{
    if (!b->bytes)
        return true;
    budget_earn(b, now_ns);
    return b->left > 0;
}

void budget_charge(struct budget *b, uint64_t bytes, uint64_t now_ns)
{
    b->used_bytes += bytes;
    if (budget_allows(b, now_ns)) {
        if (b->bytes)
            b->left -= (int64_t)bytes;
        return;
    }
    b->over_bytes += bytes;
    b->left = MAX(b->left - (int64_t)bytes, -debt_bytes(b));
}

uint64_t budget_day_bytes(const struct budget *b)
{
    unsigned __int128 day = b->bytes ? (unsigned __int128)b->bytes * DAY_NS / b->period_ns : 0;

    return day > UINT64_MAX ? UINT64_MAX : (uint64_t)day;
}
