/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What /proc tells about a process: memory, descriptors, CPU time. And the time of day for measurements.
 */
#pragma once

#include <sys/types.h>

#include "include/base/base.h"

struct process_usage {
    double cpu_s; /* user and system, all threads */
    uint64_t rss_bytes;
    uint64_t rss_peak_bytes;  /* since it began */
    uint64_t anonymous_bytes; /* of these: not the pools' memory, which has budgets, and comes and goes */
    uint64_t locked_bytes;    /* mlock */
    uint64_t pinned_bytes;    /* by I/O: io_uring's registered buffers */
    uint32_t n_fds;
    uint32_t n_threads;
};

/* pid 0: this process. -ESRCH: it has gone. */
must_check int process_usage(pid_t pid, struct process_usage *ret_usage);

uint64_t now_ns(void);
double seconds_since(uint64_t start_ns);
