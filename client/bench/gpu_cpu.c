/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See gpu_cpu.h. Looking at other processes takes milliseconds of our own, which are not the library's: our clock is read
 * last before a sample, and first after it. Samples beyond SAMPLES_MAX are not kept.
 */
#include "client/bench/gpu_cpu.h"

#include <time.h>

#include "client/bench/cpus.h"
#include "client/bench/process.h"

#define CLIENT_GOAL_MS 1
#define CORES_GOAL 0.5

void gpu_cpu_init(struct gpu_cpu *cpu, pid_t daemon_pid, pid_t helper_pid)
{
    cpu->daemon_pid = daemon_pid;
    cpu->helper_pid = helper_pid;
    cpu->n = 0;
}

/* Of this process, to the nanosecond. */
static double ours_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

void gpu_cpu_begin(struct gpu_cpu *cpu)
{
    cpu->daemon_ns = cpus_used_ns(cpu->daemon_pid);
    cpu->helper_ns = cpus_used_ns(cpu->helper_pid);
    cpu->start_ns = now_ns();
    cpu->client_ns = ours_ns();
}

void gpu_cpu_end(struct gpu_cpu *cpu, uint64_t bytes)
{
    double client_ns = ours_ns() - cpu->client_ns, took_ns = (double)(now_ns() - cpu->start_ns);

    if (cpu->n == SAMPLES_MAX)
        return;
    cpu->client_ms_a_gib[cpu->n] = client_ns / 1e6 / ((double)bytes / (double)GIB);
    cpu->daemon_cores[cpu->n] = (cpus_used_ns(cpu->daemon_pid) - cpu->daemon_ns) / took_ns;
    cpu->helper_cores[cpu->n] = (cpus_used_ns(cpu->helper_pid) - cpu->helper_ns) / took_ns;
    cpu->n++;
}

static void say(struct figures *figures, const char *whose, const char *what, const char *unit, double *samples,
                uint32_t n, double goal)
{
    struct estimate e = pairs_estimate(samples, n);
    struct figure *f = figure_add(figures, unit, e.median, "%s CPU, %s", whose, what);

    figure_goal(f, GOAL_AT_MOST, goal);
    figure_measured(f, &e);
}

void gpu_cpu_say(struct gpu_cpu *cpu, const char *what, struct figures *figures)
{
    if (cpu->n == 0)
        return;
    say(figures, "client's", what, "ms/GiB", cpu->client_ms_a_gib, cpu->n, CLIENT_GOAL_MS);
    say(figures, "helper's", what, "cores", cpu->helper_cores, cpu->n, CORES_GOAL);
    say(figures, "daemon's", what, "cores", cpu->daemon_cores, cpu->n, CORES_GOAL);
    cpu->n = 0;
}
