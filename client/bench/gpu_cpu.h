/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What moving blocks costs in CPU time: of this process, of the daemon, of the GPU's helper, each sample by itself. One
 * thread.
 */
#pragma once

#include <sys/types.h>

#include "client/bench/figure.h"

struct gpu_cpu {
    pid_t daemon_pid, helper_pid;
    double client_ns, daemon_ns, helper_ns; /* at the sample's beginning */
    uint64_t start_ns;
    uint32_t n;
    double client_ms_a_gib[SAMPLES_MAX], daemon_cores[SAMPLES_MAX], helper_cores[SAMPLES_MAX];
};

/* No samples yet. */
void gpu_cpu_init(struct gpu_cpu *cpu, pid_t daemon_pid, pid_t helper_pid);
void gpu_cpu_begin(struct gpu_cpu *cpu);
/* Of a sample that moved so much. */
void gpu_cpu_end(struct gpu_cpu *cpu, uint64_t bytes);
/* Three figures, and what they are of. */
void gpu_cpu_say(struct gpu_cpu *cpu, const char *what, struct figures *figures);
