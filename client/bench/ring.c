/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What it costs to ask the daemon for nothing: a NOP through a ring and back. Three daemons, one after the other: one that
 * polls, beside a raw ring between the same two CPUs; one that sleeps at once (spin_us = 0), beside the kernel's own ways
 * to wake a sleeper; and one with a thousand idle sessions, whose CPU time is read. One thread.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <sys/resource.h>
#include <time.h>

#include "client/bench/bench.h"
#include "client/bench/ceiling_ring.h"
#include "client/bench/compare.h"
#include "client/bench/cpus.h"
#include "client/bench/hist.h"
#include "client/bench/live.h"
#include "client/bench/micro.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define TRIPS 20000      /* of a sample, both sides spinning */
#define TRIPS_ASLEEP 300 /* both sides asleep */
#define TAIL_TRIPS 200000
#define IDLE_SESSIONS 1000
#define IDLE_SESSIONS_QUICK 50
#define IDLE_SETTLE_SECONDS 1.5 /* until the last ring is cold */
#define IDLE_GOAL_US 100        /* a second: 0.01 % of a core, which top shows as 0.0 */

static const char doc[] = "Measures round trips through a ring: both sides awake, both asleep, and a thousand idle.";

DEFINE_CLEANUP(struct ceiling_ring *, ceiling_ring_free)
DEFINE_CLEANUP(spw_session *, spw_close)

struct trips {
    spw_space *space;
    struct ceiling_ring *raw;
    enum ceiling_wake wake;
    uint32_t n;
};

/* ── samples ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static int sample_nops(void *ctx, double ret_ns[static METRICS_MAX])
{
    const struct trips *t = ctx;
    uint64_t start_ns = now_ns();

    for (uint32_t i = 0; i < t->n; i++) {
        int r = spw_nop(t->space);
        if (r < 0)
            return micro_say("nop", r);
    }
    ret_ns[0] = (double)(now_ns() - start_ns) / t->n;
    return 0;
}

static int sample_raw(void *ctx, double ret_ns[static METRICS_MAX])
{
    const struct trips *t = ctx;

    return ceiling_ring_trip_ns(t->raw, t->wake, t->n, &ret_ns[0]);
}

static int space_open(spw_pool *pool, spw_space **ret_space)
{
    struct spw_space_options so = {.item_bytes = 64 * KIB, .class_id = SPW_CLASS_KV, .digest = "ring"};
    int r = spw_space_open(pool, &so, ret_space);

    return r < 0 ? micro_say("space", r) : 0;
}

/* We on the first CPU; the engine, or the raw ring's other side, on the second. */
static void pin_both(const struct micro *m)
{
    cpus_pin(cpus_nth(0));
    if (m->daemon_pid != 0 && cpus_pin_threads(m->daemon_pid, "engine-", cpus_nth(1)) < 0)
        fprintf(stderr, "spillbench: the engine's thread was not found: it is not pinned\n");
}

/* ── both awake ─────────────────────────────────────────────────────────────────────────────────────────────────── */

static int tail(struct micro *m, spw_space *space)
{
    cleanup_free struct hist *hist = calloc(1, sizeof(*hist));

    if (!hist)
        return -ENOMEM;
    for (uint32_t i = 0; i < (m->options->quick ? TRIPS : TAIL_TRIPS); i++) {
        uint64_t start_ns = now_ns();
        int r = spw_nop(space);
        if (r < 0)
            return micro_say("nop", r);
        hist_add(hist, now_ns() - start_ns);
    }
    (void)figure_add(m->figures, "ns", (double)hist_quantile(hist, 500), "nop, p50, with the clock's cost");
    (void)figure_add(m->figures, "ns", (double)hist_quantile(hist, 990), "nop, p99, with the clock's cost");
    return 0;
}

static int measure_awake(struct micro *m)
{
    struct trips t = {.raw = m->ctx, .wake = CEILING_SPIN, .n = TRIPS};
    const struct contest c = {
        .metrics = {{"nop, both sides spinning", "ns", GOAL_AT_MOST, false, 1.5}},
        .n_metrics = 1,
        .neighbour = "raw ring",
        .ours = sample_nops,
        .theirs = sample_raw,
        .ctx = &t,
        .seconds = m->options->seconds,
        .quiet = m->options->quiet,
    };

    int r = space_open(m->pool, &t.space);
    if (r < 0)
        return r;
    pin_both(m);
    r = contest_run(&c, m->figures);
    return r < 0 ? r : tail(m, t.space);
}

/* ── both asleep ────────────────────────────────────────────────────────────────────────────────────────────────── */

/* A client that polls a little would have most answers before it sleeps, and nothing to compare with. */
static int session_sleepy(struct micro *m, spw_session **ret_session, spw_space **ret_space)
{
    const struct spw_connect_options options = {
        .socket_path = m->socket_path, .name = "spillbench", .spin_us = SPW_SPIN_NEVER};
    spw_pool *pool = NULL;

    int r = spw_connect(&options, ret_session);
    if (r == 0)
        r = spw_pool_open(*ret_session, "bench", &pool);
    return r < 0 ? micro_say("session", r) : space_open(pool, ret_space);
}

/* That the client did sleep: its voluntary switches. */
static int switches_of_nops(struct trips *t, struct figures *figures)
{
    struct rusage before, after;
    double ns[METRICS_MAX];

    (void)getrusage(RUSAGE_THREAD, &before);
    int r = sample_nops(t, ns);
    (void)getrusage(RUSAGE_THREAD, &after);
    if (r == 0)
        (void)figure_add(figures, "", (double)(after.ru_nvcsw - before.ru_nvcsw) / t->n, "the client's sleeps a nop");
    return r;
}

static int measure_asleep(struct micro *m)
{
    static const struct {
        enum ceiling_wake wake;
        const char *name, *beside;
    } ways[] = {{CEILING_FUTEX, "nop, both sides asleep, beside futex", "futex there and back"},
                {CEILING_EVENTFD, "nop, both sides asleep, beside eventfd", "eventfd there and back"}};
    cleanup_(spw_closep) spw_session *session = NULL;
    struct trips t = {.raw = m->ctx, .n = TRIPS_ASLEEP};
    int r = session_sleepy(m, &session, &t.space);

    if (r < 0)
        return r;
    pin_both(m);
    for (size_t i = 0; r == 0 && i < ARRAY_LEN(ways); i++) {
        struct contest c = {
            .metrics = {{"", "ns", GOAL_AT_MOST, false, 1.15}},
            .n_metrics = 1,
            .neighbour = ways[i].beside,
            .ours = sample_nops,
            .theirs = sample_raw,
            .ctx = &t,
            .seconds = m->options->seconds,
            .quiet = m->options->quiet,
        };
        snprintf(c.metrics[0].name, sizeof(c.metrics[0].name), "%s", ways[i].name);
        t.wake = ways[i].wake;
        r = contest_run(&c, m->figures);
    }
    return r < 0 ? r : switches_of_nops(&t, m->figures);
}

/* ── all idle ───────────────────────────────────────────────────────────────────────────────────────────────────── */

struct idle {
    uint32_t n;
    spw_session *sessions[IDLE_SESSIONS];
};

/* A session with a ring that was used: the ring of a queue, because a thread has no room for so many of its own. */
static int idle_open(struct idle *idle, const char *socket_path)
{
    struct spw_space_options so = {.item_bytes = 64 * KIB, .class_id = SPW_CLASS_KV, .digest = "ring"};
    struct spw_key key;
    struct spw_hit hit;
    spw_queue *queue;
    spw_space *space;
    spw_pool *pool;
    spw_job *job;

    int r = spw_connect(&(struct spw_connect_options){.socket_path = socket_path, .name = "idle"},
                        &idle->sessions[idle->n]);
    if (r < 0)
        return micro_say("session", r);
    spw_session *s = idle->sessions[idle->n++];
    (void)spw_key_init(&key, "idle", 4, 0);
    r = spw_pool_open(s, "bench", &pool);
    if (r == 0)
        r = spw_space_open(pool, &so, &space);
    if (r == 0)
        r = spw_queue_new(s, space, 8, &queue);
    if (r == 0)
        r = spw_submit_lookup(queue, space, &key, 1, 0, &hit, NULL, &job);
    if (r == 0)
        r = spw_job_wait(job, SPW_FOREVER);
    return r < 0 ? micro_say("idle session", r) : 0;
}

static void sleep_for(double seconds)
{
    nanosleep(&(struct timespec){(time_t)seconds, (long)(fmod(seconds, 1) * 1e9)}, NULL);
}

static int sample_idle(void *ctx, double ret_us[static METRICS_MAX])
{
    const struct micro *m = ctx;
    uint64_t start_ns = now_ns();
    double before_ns = cpus_used_ns(m->daemon_pid);

    sleep_for(m->options->quick ? 0.1 : 1);
    ret_us[0] = (cpus_used_ns(m->daemon_pid) - before_ns) / 1e3 / seconds_since(start_ns);
    return 0;
}

static int measure_idle(struct micro *m)
{
    cleanup_free struct idle *idle = calloc(1, sizeof(*idle));
    const uint32_t n = m->options->quick ? IDLE_SESSIONS_QUICK : IDLE_SESSIONS;
    struct contest c = {
        .metrics = {{"", "us/s", GOAL_AT_MOST, true, IDLE_GOAL_US}},
        .n_metrics = 1,
        .ours = sample_idle,
        .ctx = m,
        .seconds = m->options->seconds,
        .quiet = m->options->quiet,
    };
    int r = idle ? 0 : -ENOMEM;

    snprintf(c.metrics[0].name, sizeof(c.metrics[0].name), "the daemon's CPU, %u idle sessions", n);
    for (uint32_t i = 0; r == 0 && i < n; i++)
        r = live_interrupted() ? -EINTR : idle_open(idle, m->socket_path);
    if (r == 0) {
        sleep_for(IDLE_SETTLE_SECONDS);
        r = contest_run(&c, m->figures);
    }
    for (uint32_t i = 0; idle && i < idle->n; i++)
        spw_close(idle->sessions[i]);
    return r;
}

/* ── the three daemons ──────────────────────────────────────────────────────────────────────────────────────────── */

static int more_descriptors(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return -errno;
    limit.rlim_cur = limit.rlim_max;
    return setrlimit(RLIMIT_NOFILE, &limit) < 0 ? -errno : 0;
}

static int with_daemons(const struct options *o, struct ceiling_ring *raw, struct figures *figures)
{
    struct harness_options ho = {.dram_bytes = o->dram_bytes, .keep = o->keep, .quiet = o->quiet};

    int r = micro_daemon(o, &ho, measure_awake, raw, figures);
    ho.daemon_lines = "spin_us = 0\n";
    if (r == 0)
        r = micro_daemon(o, &ho, measure_asleep, raw, figures);
    ho.daemon_lines = "uid_sessions = 2000\nmax_sessions = 2000\n";
    cpus_unpin();
    if (r == 0)
        r = more_descriptors();
    return r < 0 ? r : micro_daemon(o, &ho, measure_idle, NULL, figures);
}

int bench_ring(int argc, char **argv)
{
    cleanup_(ceiling_ring_freep) struct ceiling_ring *raw = NULL;
    static struct figures figures;
    struct options o;

    micro_options(argc, argv, doc, &o);
    int r = ceiling_ring_new(cpus_nth(1), &raw);
    if (r == 0)
        r = o.socket_path ? micro_session(&o, o.socket_path, o.pool, 0, measure_awake, raw, &figures)
                          : with_daemons(&o, raw, &figures);
    return micro_end(&o, &figures, r);
}
