/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Named points of the deciding code, for the simulator (tests/sim/): in its build the seed says at which of them
 * something rare happens, and it counts what happened. In every other build they are nothing.
 *
 *   if (queue_room(l) < bytes || sim_point("log: the queue is full"))   provoked: whatever the condition guards may be
 *                                                                       the case at any time, so it is, now and then
 *   sim_reached("log: a block begins the ring anew");                   not provoked, but seen
 *   sim_reached_rarely("publish: deleted meanwhile");                   the same, but less than 20 times in 1,000 seeds
 *
 * A name is written once. A search of 1,000 seeds that never comes by one of them fails and says which; for those that are
 * reached rarely it is one of 5,000.
 */
#pragma once

#ifdef SPILLWAY_SIM

#include <stdbool.h>
#include <stdint.h>

struct sim_point {
    const char *name;
    bool is_provoked;      /* else only seen */
    bool is_rare;          /* less than 20 times in 1,000 seeds */
    bool is_on;            /* in the run of this seed */
    uint64_t run;          /* that `is_on` is of */
    uint64_t asked, fired; /* in all runs */
};

bool sim_point_fires(struct sim_point *point);

/* The linker makes an array of the pointers in a section with such a name. */
#define SIM_POINT(name_, is_provoked_, is_rare_)                                                                       \
    ({                                                                                                                 \
        static struct sim_point point_ = {.name = (name_), .is_provoked = (is_provoked_), .is_rare = (is_rare_)};      \
        static struct sim_point *const listed_ __attribute__((section("sim_points"), used)) = &point_;                 \
        sim_point_fires(listed_);                                                                                      \
    })
#define sim_point(name) SIM_POINT(name, true, false)
#define sim_reached(name) ((void)SIM_POINT(name, false, false))
#define sim_reached_rarely(name) ((void)SIM_POINT(name, false, true))

#else

#define sim_point(name) false
#define sim_reached(name) ((void)0)
#define sim_reached_rarely(name) ((void)0)

#endif
