/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Turns a run's counters into figures and into a table. Both say the same; the table leaves out what is unknown.
 */
#include "client/bench/report.h"

#include <math.h>

#include "include/base/units.h"

struct latency {
    const char *name;
    const struct hist *hist;
};

#define LATENCIES 6

static void latencies(const struct run *run, struct latency ret[static LATENCIES])
{
    const struct engine_stats *s = run->engine.stats;

    ret[0] = (struct latency){"lookup", &s->lookup};
    ret[1] = (struct latency){"acquire, hit in DRAM", &s->acquire_dram};
    ret[2] = (struct latency){"acquire, from disk", &s->acquire_nvme};
    ret[3] = (struct latency){"reserve", &s->reserve};
    ret[4] = (struct latency){"commit", &s->commit};
    ret[5] = (struct latency){"release", &s->release};
}

static double share(uint64_t part, uint64_t whole)
{
    return whole ? 100.0 * (double)part / (double)whole : 0;
}

static double moved_bytes(const struct run *run)
{
    return (double)(run->engine.stats->bytes_verified + run->engine.stats->bytes_committed);
}

static double per(double value, double by)
{
    return by > 0 ? value / by : NAN;
}

/* Of what the objects in memory need; NaN if the daemon does not tell. */
static double waste_percent(const struct run *run)
{
    return per(100 * (run->after.used_bytes - run->after.payload_bytes), run->after.payload_bytes);
}

static double written_per_committed(const struct run *run)
{
    return per(run->after.nvme_written_bytes - run->before.nvme_written_bytes,
               (double)run->engine.stats->bytes_committed);
}

static void figure_if_known(struct figures *f, const char *unit, double value, const char *name)
{
    if (!isnan(value))
        (void)figure_add(f, unit, value, "%s", name);
}

static void memory_figures(const struct run *run, struct figures *f)
{
    const struct run_daemon *d = &run->after;
    double waste = waste_percent(run);

    if (!isnan(waste)) {
        struct figure *w = figure_add(f, "%", waste, "memory waste");
        if (run->options->block_bytes % (64 * KIB) == 0)
            figure_goal(w, GOAL_AT_MOST, 1);
    }
    if (!isnan(d->record_bytes))
        figure_goal(figure_add(f, "B", d->record_bytes, "metadata an object"), GOAL_AT_MOST, 128);
    figure_if_known(f, "B", per(d->index_bytes, d->objects_max), "hash index an object that fits");
    figure_if_known(f, "MiB", d->index_bytes / (double)MIB, "hash index in all");
    figure_if_known(f, "MiB", d->ghost_bytes / (double)MIB, "policies' ghosts in all");
    if (!isnan(d->copied_bytes) && (run->pool.flags & SPW_POOL_TRUSTED))
        figure_goal(figure_add(f, "B", d->copied_bytes - run->before.copied_bytes, "payload copied but into segments"),
                    GOAL_AT_MOST, 0);
    figure_if_known(f, "B/B",
                    per(d->nvme_bounced_bytes - run->before.nvme_bounced_bytes,
                        d->nvme_written_bytes - run->before.nvme_written_bytes),
                    "copied into segments, of what was written");
    figure_if_known(f, "B/B", written_per_committed(run), "written to disk per byte committed");
    for (unsigned i = 0; i < RUN_QUARTERS; i++)
        if (run->quarters[i].rss_bytes)
            (void)figure_add(f, "MiB", (double)run->quarters[i].rss_bytes / (double)MIB, "daemon's memory at %u %%",
                             25 * (i + 1));
}

void report_figures(const struct run *run, struct figures *f)
{
    const struct engine_stats *s = run->engine.stats;
    struct latency l[LATENCIES];

    latencies(run, l);
    (void)figure_add(f, "", (double)s->requests, "requests");
    (void)figure_add(f, "", (double)s->blocks, "blocks");
    (void)figure_add(f, "%", share(s->hits_dram, s->blocks), "hits in DRAM");
    (void)figure_add(f, "%", share(s->hits_nvme, s->blocks), "hits on NVMe");
    (void)figure_add(f, "%", share(s->computed + s->not_stored, s->blocks), "computed");
    (void)figure_add(f, "%", share(s->not_stored, s->blocks), "not stored");
    (void)figure_add(f, "GB", (double)s->bytes_verified * 1e-9, "verified");
    figure_goal(figure_add(f, "", (double)s->wrong_blocks, "blocks with wrong bytes"), GOAL_AT_MOST, 0);
    figure_goal(figure_add(f, "", (double)s->errors, "blocks that failed"), GOAL_AT_MOST, 0);
    (void)figure_add(f, "GB/s", per(moved_bytes(run) * 1e-9, run->wall_s), "throughput");
    for (size_t i = 0; i < LATENCIES; i++) {
        if (l[i].hist->n == 0)
            continue;
        (void)figure_add(f, "us", (double)hist_quantile(l[i].hist, 500) * 1e-3, "%s, p50", l[i].name);
        (void)figure_add(f, "us", (double)hist_quantile(l[i].hist, 990) * 1e-3, "%s, p99", l[i].name);
        (void)figure_add(f, "us", (double)hist_quantile(l[i].hist, 999) * 1e-3, "%s, p99.9", l[i].name);
    }
    (void)figure_add(f, "s/GB", per(run->client_cpu_s, moved_bytes(run) * 1e-9), "CPU of the client");
    if (run->before.pid)
        (void)figure_add(f, "s/GB", per(run->daemon_cpu_s, moved_bytes(run) * 1e-9), "CPU of the daemon");
    memory_figures(run, f);
}

/* ── the table ──────────────────────────────────────────────────────────────────────────────────────────────────── */

static void table_counts(const struct run *run, FILE *out)
{
    const struct engine_stats *s = run->engine.stats;
    char a[UNITS_TEXT_BYTES], b[UNITS_TEXT_BYTES], c[UNITS_TEXT_BYTES];

    fprintf(out, "\n  requests             %10llu\n", (unsigned long long)s->requests);
    fprintf(out, "  blocks               %10llu   of %s; working set %s, DRAM %s (1 : %.1f)\n",
            (unsigned long long)s->blocks, size_print(run->options->block_bytes, a),
            size_print(run->working_set_bytes, b), size_print(run->pool.dram_bytes, c),
            per((double)run->working_set_bytes, (double)run->pool.dram_bytes));
    fprintf(out, "    hits in DRAM       %10llu   %5.1f %%\n", (unsigned long long)s->hits_dram,
            share(s->hits_dram, s->blocks));
    fprintf(out, "    hits on NVMe       %10llu   %5.1f %%\n", (unsigned long long)s->hits_nvme,
            share(s->hits_nvme, s->blocks));
    fprintf(out, "    computed           %10llu   %5.1f %%", (unsigned long long)(s->computed + s->not_stored),
            share(s->computed + s->not_stored, s->blocks));
    if (s->not_stored)
        fprintf(out, "   (%llu of them found no room)", (unsigned long long)s->not_stored);
    if (s->behind_gap)
        fprintf(out, "   (%llu of them were there, behind a gap)", (unsigned long long)s->behind_gap);
    fprintf(out, "\n  verified             %10s   every byte compared: %llu wrong block%s",
            size_print(s->bytes_verified, a), (unsigned long long)s->wrong_blocks, s->wrong_blocks == 1 ? "" : "s");
    if (s->errors)
        fprintf(out, ", %llu FAILED", (unsigned long long)s->errors);
    fprintf(out, "\n  throughput           %10.2f   GB/s, in %.1f s\n", per(moved_bytes(run) * 1e-9, run->wall_s),
            run->wall_s);
}

static const char *us(const struct hist *h, unsigned per_mille, char ret_text[static UNITS_TEXT_BYTES])
{
    double value = (double)hist_quantile(h, per_mille) * 1e-3;

    snprintf(ret_text, UNITS_TEXT_BYTES, value < 100 ? "%.1f" : "%.0f", value);
    return ret_text;
}

static void table_latencies(const struct run *run, FILE *out)
{
    char p50[UNITS_TEXT_BYTES], p99[UNITS_TEXT_BYTES], p999[UNITS_TEXT_BYTES];
    struct latency l[LATENCIES];

    latencies(run, l);
    fprintf(out, "\n  microseconds a list        p50        p99      p99.9   blocks a list are up to %u\n",
            run->engine.list_max);
    for (size_t i = 0; i < LATENCIES; i++)
        if (l[i].hist->n > 0)
            fprintf(out, "  %-20s %9s  %9s  %9s   %llu lists\n", l[i].name, us(l[i].hist, 500, p50),
                    us(l[i].hist, 990, p99), us(l[i].hist, 999, p999), (unsigned long long)l[i].hist->n);
}

static void table_costs(const struct run *run, FILE *out)
{
    const struct run_daemon *d = &run->after;

    fprintf(out, "\n  CPU                  %10.3f   s/GB in the client (it fills and compares every byte)\n",
            per(run->client_cpu_s, moved_bytes(run) * 1e-9));
    if (run->before.pid)
        fprintf(out, "                       %10.3f   s/GB in the daemon\n",
                per(run->daemon_cpu_s, moved_bytes(run) * 1e-9));
    if (!isnan(waste_percent(run)))
        fprintf(out, "  memory waste         %10.2f   %%\n", waste_percent(run));
    if (!isnan(d->record_bytes))
        fprintf(out,
                "  metadata an object   %10.0f   bytes; and for each that fits %.1f of hash index; ghosts: %.1f MiB\n",
                d->record_bytes, per(d->index_bytes, d->objects_max), d->ghost_bytes / (double)MIB);
    if (!isnan(written_per_committed(run)))
        fprintf(out, "  written to disk      %10.2f   bytes per byte committed\n", written_per_committed(run));
    fputc('\n', out);
}

void report_table(const struct run *run, FILE *out)
{
    table_counts(run, out);
    table_latencies(run, out);
    table_costs(run, out);
}

bool report_is_right(const struct run *run)
{
    return run->engine.stats->wrong_blocks == 0 && run->engine.stats->errors == 0;
}
