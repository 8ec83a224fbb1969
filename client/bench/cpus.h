/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which thread runs where, and what it took. A round trip is measured between two CPUs that stay the same for us and for
 * the ceiling.
 */
#pragma once

#include <sys/types.h>

#include "include/base/base.h"

/* Of this process's CPUs, as they were at the first call: the n-th, counted round and round. */
unsigned cpus_nth(unsigned n);
/* The calling thread on one CPU; and on all of them again. */
void cpus_pin(unsigned cpu);
void cpus_unpin(void);
/* The threads of a process whose names begin so. -ENOENT if there is none. */
must_check int cpus_pin_threads(pid_t pid, const char *name, unsigned cpu);
/* CPU time of all threads of a process (0: this one) in nanoseconds; NaN if it has gone. */
double cpus_used_ns(pid_t pid);
/* The same, without the threads whose names begin so. */
double cpus_used_but_ns(pid_t pid, const char *name);
