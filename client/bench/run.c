/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the session, the engine and the clock of one replay. One thread. The daemon's own figures are taken before and
 * after, so a daemon that has served others is measured by the difference.
 */
#include "client/bench/run.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "client/bench/admin.h"
#include "client/bench/live.h"
#include "include/base/cleanup.h"
#include "include/base/units.h"

/* The names are those of docs/admin-json.md. */
static void figures_pick(const struct run *run, struct json_object *status, struct json_object *pools,
                         struct json_object *tiers, struct json_object *devices, struct run_daemon *ret)
{
    struct json_object *pool = admin_named(pools, "pools", run->options->pool);
    double pid = admin_number(status, "pid");

    *ret = (struct run_daemon){
        .pid = run->options->daemon_pid ? run->options->daemon_pid
               : isnan(pid)             ? 0
                                        : (pid_t)pid,
        .degraded = admin_number(status, "engines.degraded_memlock") > 0 ||
                    admin_number(status, "engines.memory_missing_bytes") > 0,
        .payload_bytes = admin_number(pool, "dram.payload_bytes"),
        .used_bytes = admin_number(pool, "dram.used_bytes"),
        .nvme_written_bytes = admin_number(devices, "devices.partitions.written_bytes"),
        .nvme_bounced_bytes = admin_number(devices, "devices.partitions.bounced_bytes"),
        .objects = admin_number(tiers, "metadata.objects"),
        .objects_max = admin_number(tiers, "metadata.objects_max"),
        .record_bytes = admin_number(tiers, "metadata.object_record_bytes"),
        .index_bytes = admin_number(tiers, "metadata.index_bytes"),
        .ghost_bytes = admin_number(tiers, "metadata.ghost_bytes"),
        .copied_bytes = admin_number(tiers, "metadata.copied_bytes"),
    };
}

/* A user who may not ask the daemon can still replay against it: those figures are unknown then. */
static void daemon_figures(const struct run *run, struct run_daemon *ret)
{
    cleanup_json struct json_object *status = NULL, *pools = NULL, *tiers = NULL, *devices = NULL;

    if (admin_get(run->session, "status", &status) == 0 && admin_get(run->session, "pools", &pools) == 0 &&
        admin_get(run->session, "tiers", &tiers) == 0)
        (void)!admin_get(run->session, "devices", &devices);
    figures_pick(run, status, pools, tiers, devices, ret);
}

int run_open(const struct run_options *options, uint32_t longest_chain, struct run *ret_run)
{
    cleanup_(run_close) struct run run = {.options = options};
    struct spw_connect_options connect = {.socket_path = options->socket_path, .name = "spillbench"};
    spw_pool *pool = NULL;

    int r = spw_connect(&connect, &run.session);
    if (r == 0)
        r = spw_pool_open(run.session, options->pool, &pool);
    if (r < 0) {
        fprintf(stderr, "spillbench: %s\n", spw_error_text());
        return r;
    }
    spw_pool_info(pool, &run.pool);
    r = engine_init(&run.engine, pool, options->mode, options->seed, options->block_bytes, run.pool.dram_bytes,
                    longest_chain);
    if (r < 0)
        return r;
    if (options->list_max)
        run.engine.list_max = MIN(run.engine.list_max, options->list_max);
    daemon_figures(&run, &run.before);
    *ret_run = run;
    run = (struct run){0};
    return 0;
}

void run_close(struct run *run)
{
    engine_deinit(&run->engine);
    spw_close(run->session);
    run->session = NULL;
}

static void progress(struct live *live, const struct run *run, const struct trace *t, uint64_t i, double seconds,
                     uint64_t *last_bytes, double *last_s)
{
    const struct engine_stats *s = run->engine.stats;
    uint64_t bytes = s->bytes_verified + s->bytes_committed;
    double blocks = s->blocks ? (double)s->blocks : 1;

    live_print(
        live,
        "%3.0f %%  %llu requests  %llu blocks  DRAM %.1f %%  NVMe %.1f %%  computed %.1f %%  %.2f GB/s  %s %.0f s",
        100.0 * (double)i / (double)t->n_requests, (unsigned long long)s->requests, (unsigned long long)s->blocks,
        100 * (double)s->hits_dram / blocks, 100 * (double)s->hits_nvme / blocks,
        100 * (double)(s->computed + s->not_stored) / blocks,
        (double)(bytes - *last_bytes) / (seconds - *last_s) * 1e-9, s->wrong_blocks ? "WRONG BYTES" : "0 wrong,",
        seconds);
    *last_bytes = bytes;
    *last_s = seconds;
}

/* Distinct blocks of the requests that were replayed. */
static int working_set(struct run *run, const struct trace *t, uint64_t n_requests)
{
    struct trace part = *t;

    part.n_requests = n_requests;
    part.n_ids = n_requests ? t->requests[n_requests - 1].first + t->requests[n_requests - 1].n : 0;
    int r = trace_count(&part);
    if (r == 0)
        run->working_set_bytes = part.n_distinct * run->options->block_bytes;
    return r;
}

/* Zeros where it cannot be told: a daemon that has gone is noticed by the next call. */
static void usage_of_daemon(const struct run *run, struct process_usage *ret_usage)
{
    if (run->before.pid == 0 || process_usage(run->before.pid, ret_usage) < 0)
        *ret_usage = (struct process_usage){0};
}

static int replay(struct run *run, const struct trace *t, uint64_t *ret_n)
{
    uint64_t start_ns = now_ns(), last_bytes = 0, i;
    unsigned quarter = 0;
    double last_s = 0;
    struct live live;
    int r = 0;

    live_init(&live, run->options->quiet);
    for (i = 0; r == 0 && i < t->n_requests; i++) {
        const struct trace_request *q = &t->requests[i];
        double seconds = seconds_since(start_ns);

        if (run->options->seconds_max > 0 && seconds > run->options->seconds_max) {
            run->stopped_early = true;
            break;
        }
        if (live_interrupted()) {
            live_end(&live);
            return -EINTR;
        }
        r = engine_request(&run->engine, t->ids + q->first, q->n);
        if (live_due(&live))
            progress(&live, run, t, i + 1, seconds, &last_bytes, &last_s);
        while (quarter < RUN_QUARTERS && (i + 1) * RUN_QUARTERS >= t->n_requests * (quarter + 1)) {
            usage_of_daemon(run, &run->quarters[quarter]);
            quarter++;
        }
    }
    live_end(&live);
    run->wall_s = seconds_since(start_ns);
    *ret_n = i;
    return r;
}

int run_trace(struct run *run, const struct trace *trace)
{
    struct process_usage client[2] = {0}, daemon[2] = {0};
    uint64_t n_replayed = 0;
    int r = process_usage(0, &client[0]);

    usage_of_daemon(run, &daemon[0]);
    if (r == 0)
        r = replay(run, trace, &n_replayed);
    if (r < 0)
        return r;
    usage_of_daemon(run, &daemon[1]);
    r = process_usage(0, &client[1]);
    run->client_cpu_s = client[1].cpu_s - client[0].cpu_s;
    run->daemon_cpu_s = daemon[1].cpu_s - daemon[0].cpu_s;
    daemon_figures(run, &run->after);
    if (r == 0)
        r = working_set(run, trace, n_replayed);
    return r;
}
