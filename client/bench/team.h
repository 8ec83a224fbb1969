/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads that do the same on a part each, for ceilings: as many as asked for, awake as soon as the system wakes them.
 */
#pragma once

#include "include/base/base.h"

struct team;

/* With the calling thread. -EAGAIN, -ENOMEM. */
must_check int team_new(unsigned n_threads, struct team **ret_team);
void team_free(struct team *team);
/* Calls it on each thread with its number, and returns when all have. */
void team_run(struct team *team, void (*run)(void *arg, unsigned thread), void *arg);
