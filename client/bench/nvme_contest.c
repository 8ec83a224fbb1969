/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One row: samples of ours and of fio's in turns. Fetches are compared with fio's reads from our own device, where our
 * blocks lie: two files of one disk can differ by half in speed. Spills are compared with fio's writes to another one. A
 * spill's sample first fills the memory with what must go, and is over when the time is; what it stored is deleted before
 * the next. Its latency is from RESERVE to the answer of COMMIT, which waits for room and not for its own write: depth is
 * what waits, not what the device has. The CPU time of a GB is ours and the daemon's, less what XXH3 takes for its bytes, measured apart: fio checks
 * nothing. One thread.
 */
#include "client/bench/nvme.h"

#include <errno.h>
#include <stdio.h>

#include "client/bench/admin.h"
#include "client/bench/compare.h"
#include "client/bench/cpus.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"
#include "include/base/units.h"

#define TOTAL_SECONDS 900       /* a contest that has begun is finished */
#define GROUPED_BYTES (1 * MIB) /* what small objects are written in */
#define FETCHED_PERCENT 80

/* ── samples ────────────────────────────────────────────────────────────────────────────────────────────────────── */

enum { SPEED, P99, CPU, CPU_ALL, N_METRICS };

static void sample_make(const struct nvme *b, uint64_t bytes, double seconds, double cpu_ns,
                        double ret[static METRICS_MAX])
{
    double gb = (double)bytes * 1e-9;

    ret[SPEED] = gb / seconds;
    ret[P99] = (double)hist_quantile(b->load.hist, 990) / 1e3;
    ret[CPU_ALL] = cpu_ns / 1e6 / gb;
    ret[CPU] = ret[CPU_ALL] - b->xxh3_ms_a_gb;
}

static double cpu_now_ns(const struct nvme *b)
{
    return cpus_used_ns(0) + (b->daemon_pid ? cpus_used_ns(b->daemon_pid) : 0);
}

static int sample_fetch(void *ctx, double ret[static METRICS_MAX])
{
    struct nvme *b = ctx;
    double cpu_ns = cpu_now_ns(b);
    uint64_t start_ns = now_ns();

    int r = disk_load_fetch(&b->load, 0, b->sample_seconds);
    if (r < 0)
        return r;
    /* Only what came from the device counts; if much did not, the latencies mean nothing either. */
    sample_make(b, b->load.n_fetched, seconds_since(start_ns), cpu_now_ns(b) - cpu_ns, ret);
    if (b->load.n_fetched >= b->load.bytes / 100 * FETCHED_PERCENT)
        return 0;
    fprintf(stderr, "spillbench: only %llu of %llu bytes came from the device: nothing is measured\n",
            (unsigned long long)b->load.n_fetched, (unsigned long long)b->load.bytes);
    return -EIO;
}

static int written(const struct nvme *b, double *ret_bytes)
{
    cleanup_json struct json_object *reply = NULL;
    int r = admin_get(b->session, "iostat", &reply);

    if (r == 0)
        *ret_bytes = admin_number(reply, "engines.written_bytes");
    return r;
}

/* What was committed counts only as far as it was written. No more than the device has room for: a fast one is done
 * before the time is up. */
static int sample_spill(void *ctx, double ret[static METRICS_MAX])
{
    struct nvme *b = ctx;
    uint64_t first = b->load.next;
    double before = 0, after = 0;

    int r = disk_load_spill(&b->load, b->dram_bytes, 0);
    if (r == 0)
        r = written(b, &before);
    if (r < 0)
        return r;
    double cpu_ns = cpu_now_ns(b);
    uint64_t start_ns = now_ns();
    r = disk_load_spill(&b->load, b->data_bytes, b->sample_seconds);
    double seconds = seconds_since(start_ns);
    cpu_ns = cpu_now_ns(b) - cpu_ns;
    if (r == 0)
        r = written(b, &after);
    if (r < 0)
        return r;
    sample_make(b, MIN(b->load.bytes, (uint64_t)(after - before)), seconds, cpu_ns, ret);
    return disk_load_delete(&b->load, first, b->load.next);
}

static int sample_fio(void *ctx, double ret[static METRICS_MAX])
{
    const struct nvme *b = ctx;
    struct fio_result result;
    int r = fio_run(&b->fio, &result);

    if (r < 0)
        return r;
    ret[SPEED] = result.bytes_a_s * 1e-9;
    ret[P99] = result.p99_us;
    ret[CPU] = ret[CPU_ALL] = result.cpu_ms_a_gb;
    return 0;
}

/* ── contests ───────────────────────────────────────────────────────────────────────────────────────────────────── */

bool nvme_is_late(const struct nvme *b, const char *what)
{
    if (seconds_since(b->start_ns) < TOTAL_SECONDS)
        return false;
    fprintf(stderr, "SKIP: nvme: %s: the time is up\n", what);
    return true;
}

int nvme_contest(struct nvme *b, bool is_spill, double speed_goal, struct figures *figures)
{
    bool is_small = b->block_bytes_min < b->block_bytes;
    char size[UNITS_TEXT_BYTES], what[56];
    struct contest c = {
        .metrics = {[SPEED] = {"", "GB/s", speed_goal > 0 ? GOAL_AT_LEAST : GOAL_NONE, false, speed_goal},
                    [P99] = {"", "us", is_small ? GOAL_NONE : GOAL_AT_MOST, false, 1.2},
                    [CPU] = {"", "ms/GB", is_small ? GOAL_NONE : GOAL_AT_MOST, false, 1.2},
                    [CPU_ALL] = {"", "ms/GB", GOAL_NONE, false, 0}},
        .n_metrics = N_METRICS,
        .neighbour = "fio",
        .ours = is_spill ? sample_spill : sample_fetch,
        .theirs = sample_fio,
        .ctx = b,
        .seconds = b->options->seconds,
        .quiet = b->options->quiet,
    };
    static const char *const suffixes[N_METRICS] = {
        [SPEED] = "", [P99] = ", p99", [CPU] = ", CPU less XXH3", [CPU_ALL] = ", CPU"};

    snprintf(what, sizeof(what), "%s %s%s", is_spill ? "spill" : "fetch", is_small ? "4 to " : "",
             size_print(b->block_bytes, size));
    for (unsigned i = 0; i < N_METRICS; i++)
        snprintf(c.metrics[i].name, FIGURE_NAME_BYTES, "%s, %s, depth %u%s", what, b->setup->name, b->load.depth,
                 suffixes[i]);
    if (nvme_is_late(b, c.metrics[SPEED].name))
        return 0;
    /* What is read is read from the same place: one file may be twice as fast as another of the same disk. */
    for (uint32_t i = 0; i < b->setup->n_devices; i++)
        b->fio.files[i] = b->devices.paths[is_spill ? b->setup->n_devices + i : i];
    b->fio.is_write = is_spill;
    b->fio.is_random = !is_spill; /* we write segment after segment, and so does fio then */
    b->fio.depth = b->load.depth;
    b->fio.seconds = b->sample_seconds;
    b->fio.block_bytes = is_small && is_spill ? GROUPED_BYTES : b->block_bytes;
    return contest_run(&c, figures);
}
