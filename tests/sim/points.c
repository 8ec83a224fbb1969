/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The named points of the code under test (include/base/point.h): which of them are on in a run, when they fire, and
 * which never did. Each run has about a third of them on, so that one rare thing is seen without the others as well as
 * with them. They have a stream of random numbers of their own.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "include/base/mix.h"
#include "include/base/point.h"
#include "io/checksum.h"
#include "tests/sim/sim.h"

#define ON_PERCENT 33
#define FIRES_ONE_IN 24
/* After so many operations each must have been seen: 1,000 seeds of `./dev test`, and 5,000 of a long search. */
#define SEEN_OPS UINT64_C(10000000)
#define SEEN_RARELY_OPS UINT64_C(50000000)

extern struct sim_point *const __start_sim_points[];
extern struct sim_point *const __stop_sim_points[];

static uint64_t runs, rng;

void points_begin(uint64_t seed)
{
    runs++;
    rng = seed ^ UINT64_C(0x706f696e7473);
}

bool sim_point_fires(struct sim_point *point)
{
    if (!sim_running)
        return false;
    if (point->run != runs) {
        point->run = runs;
        point->is_on = checksum_bytes(point->name, strlen(point->name), sim_running->seed) % 100 < ON_PERCENT;
    }
    point->asked++;
    if (!point->is_provoked) {
        point->fired++;
        return true;
    }
    /* What ends an engine must come to its end. */
    if (!point->is_on || sim_running->calm || splitmix64_next(&rng) % FIRES_ONE_IN != 0)
        return false;
    point->fired++;
    return true;
}

uint32_t points_count(void)
{
    // cppcheck-suppress comparePointers; the ends of one section
    return (uint32_t)(__stop_sim_points - __start_sim_points);
}

void points_add_to(struct sim_point_count *counts)
{
    for (uint32_t i = 0; i < points_count(); i++) {
        counts[i].asked += __start_sim_points[i]->asked;
        counts[i].fired += __start_sim_points[i]->fired;
    }
}

int points_report(const struct sim_point_count *counts, uint64_t n_ops)
{
    int status = 0;

    for (uint32_t i = 0; i < points_count(); i++) {
        const struct sim_point *p = __start_sim_points[i];

        printf("%-52s %12" PRIu64 " of %" PRIu64 "\n", p->name, counts[i].fired, counts[i].asked);
        if (counts[i].fired == 0 && n_ops >= (p->is_rare ? SEEN_RARELY_OPS : SEEN_OPS)) {
            fprintf(stderr, "never came by: %s\n", p->name);
            status = 1;
        }
    }
    return status;
}
