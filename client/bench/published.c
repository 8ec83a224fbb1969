/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Found by independent simulators, with one block asked for at a time. A trace is known again by how many references it
 * has, and how many distinct blocks. Constants.
 */
#include "client/bench/published.h"

#include <math.h>
#include <string.h>

/* Mooncake's conversation trace (FAST'25): one hour of a chat service. */
#define CONVERSATION_IDS 288500
#define CONVERSATION_DISTINCT 182790

static const struct {
    double capacity_percent;
    const char *policy;
    double hit_percent;
} conversation[] = {
    {0.5, "lru", 4.4}, {0.5, "s3-fifo", 5.5}, {0.5, "arc", 4.9}, {0.5, "chain", 8.0}, {0.5, "optimum", 18.3},
    {2, "lru", 7.9},   {2, "s3-fifo", 10.7},  {2, "arc", 9.3},   {2, "chain", 15.1},  {2, "optimum", 31.4},
    {5, "lru", 19.5},  {5, "s3-fifo", 18.8},  {5, "arc", 21.2},  {5, "chain", 23.4},  {5, "optimum", 36.6},
    {10, "lru", 27.8}, {10, "s3-fifo", 24.6}, {10, "arc", 28.4}, {10, "chain", 30.0}, {10, "optimum", 36.6},
    {30, "lru", 35.8}, {30, "s3-fifo", 35.4}, {30, "arc", 34.9}, {30, "chain", 35.9}, {30, "optimum", 36.6},
};

double published_percent(const struct trace *t, double capacity_percent, const char *policy)
{
    if (!policy || t->n_ids != CONVERSATION_IDS || t->n_distinct != CONVERSATION_DISTINCT)
        return NAN;
    for (size_t i = 0; i < ARRAY_LEN(conversation); i++)
        if (conversation[i].capacity_percent == capacity_percent && strcmp(conversation[i].policy, policy) == 0)
            return conversation[i].hit_percent;
    return NAN;
}
