/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How soon a daemon is ready: from its start until a client is served, with memory that is touched first. Beside that, the
 * same memory touched by one thread, and by one a CPU: the kind of pages that the daemon gets. As much memory as is free,
 * 16 GiB at most; ours and the ceiling's never exist at the same time. One thread.
 */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "client/bench/bench.h"
#include "client/bench/ceiling_copy.h"
#include "client/bench/compare.h"
#include "client/bench/memory.h"
#include "client/bench/micro.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define BYTES_MOST (16 * GIB)
#define BYTES_QUICK (256 * MIB)
#define GOAL 0.9

static const char doc[] = "Measures how soon memory is ready.";

struct ready {
    const struct options *options;
    uint64_t size_bytes;
    unsigned n_threads; /* of the ceiling */
};

static int sample_daemon(void *ctx, double ret_speed[static METRICS_MAX])
{
    const struct ready *y = ctx;
    cleanup_(harness_deinit) struct harness h = HARNESS_NONE;
    struct harness_options ho = {.dram_bytes = y->size_bytes, .quiet = true};
    uint64_t start_ns = now_ns();
    int r = harness_start(&ho, &h);

    ret_speed[0] = (double)y->size_bytes / (double)(now_ns() - start_ns);
    return r < 0 ? r : harness_stop(&h);
}

static int sample_touch(void *ctx, double ret_speed[static METRICS_MAX])
{
    const struct ready *y = ctx;
    char *mem = memory_map(y->size_bytes, MEMORY_SHARED_HUGE);

    if (!mem) {
        fprintf(stderr, "spillbench: no memory to touch\n");
        return -ENOMEM;
    }
    ret_speed[0] = (double)y->size_bytes / (ceiling_touch_s(mem, y->size_bytes, y->n_threads) * 1e9);
    memory_unmap(mem, y->size_bytes);
    return 0;
}

/* What MemAvailable says, with a quarter left alone. */
static uint64_t bytes_free(void)
{
    cleanup_fclose FILE *f = fopen("/proc/meminfo", "re");
    unsigned long long kib = 0;
    char line[128];

    while (f && fgets(line, sizeof(line), f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            break;
    return kib * KIB / 4 * 3 / GIB * GIB;
}

static int contest(struct ready *y, unsigned n_threads, struct figures *figures)
{
    struct contest c = {.metrics = {{"", "GB/s", n_threads > 1 ? GOAL_AT_LEAST : GOAL_NONE, false, GOAL}},
                        .n_metrics = 1,
                        .neighbour = n_threads > 1 ? "touched by a thread a CPU" : "touched by one thread",
                        .ours = sample_daemon,
                        .theirs = sample_touch,
                        .ctx = y,
                        .seconds = y->options->seconds,
                        .quiet = y->options->quiet};

    y->n_threads = n_threads;
    snprintf(c.metrics[0].name, FIGURE_NAME_BYTES, "ready with %llu MiB, beside %s",
             (unsigned long long)(y->size_bytes / MIB), n_threads > 1 ? "all CPUs" : "one");
    return contest_run(&c, figures);
}

int bench_ready(int argc, char **argv)
{
    static struct figures figures;
    struct options o;

    micro_options(argc, argv, doc, &o);
    struct ready y = {.options = &o, .size_bytes = o.quick ? BYTES_QUICK : MIN(BYTES_MOST, bytes_free())};
    if (y.size_bytes < BYTES_QUICK) {
        fprintf(stderr, "spillbench: less than 2 GiB of memory is free\n");
        return BENCH_BROKEN;
    }
    long n_cpus = MIN(sysconf(_SC_NPROCESSORS_ONLN), (long)CEILING_THREADS_MAX);
    int r = contest(&y, 1, &figures);
    if (r == 0 && n_cpus > 1)
        r = contest(&y, (unsigned)n_cpus, &figures);
    return micro_end(&o, &figures, r);
}
