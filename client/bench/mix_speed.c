/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What load does to others. First, fetches of one pool while another pool is written as fast as the device takes it and
 * every piece of its memory is dirty, beside the same fetches alone. Then two pools whose weights are 3:1, both written
 * as fast as it goes: each gets its share.
 *
 * The writers are processes, forked before this one has a session. Each spills for as long as its switch is on, and keeps
 * its state in shared memory, where the count of its bytes is read. One thread each.
 */
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include "client/bench/admin.h"
#include "client/bench/bench.h"
#include "client/bench/compare.h"
#include "client/bench/disk_load.h"
#include "client/bench/live.h"
#include "client/bench/memory.h"
#include "client/bench/micro.h"
#include "client/bench/mix.h"
#include "client/bench/process.h"
#include "include/base/atomic.h"
#include "include/base/cleanup.h"

#define BLOCK_BYTES (64 * KIB)
#define DATA_BYTES (512 * MIB)
#define DATA_BYTES_QUICK (128 * MIB)
#define DRAM_BYTES (256 * MIB)
#define DRAM_BYTES_QUICK (128 * MIB)
#define FETCH_DEPTH 4
#define SLICE_SECONDS 0.25 /* of a writer, between two looks at its switch */
#define POLL_NS 2000000L
#define SETTLE_NS 100000000L
#define SETTLE_SECONDS 30
#define WRITERS 2
#define WEIGHT_LEFT 300
#define WEIGHT_RIGHT 100

/* A writer and its parent; in shared memory. */
struct writer {
    uint32_t is_on, is_ready; /* set by the parent; by the writer: negative errno or 1 */
    struct disk_load load;
    struct hist hist;
};

struct speed {
    const struct options *options;
    struct writer *writers[WRITERS];
    pid_t pids[WRITERS];
    double sample_seconds;
    uint64_t data_bytes;
    struct disk_load load; /* the fetches */
    spw_session *session;
};

static void sleep_ns(long ns)
{
    nanosleep(&(struct timespec){ns / 1000000000, ns % 1000000000}, NULL);
}

/* ── writers ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static int load_open(spw_session *session, const char *pool_name, struct disk_load *l)
{
    struct spw_space_options so = {.class_id = SPW_CLASS_KV, .durability = SPW_CACHE, .digest = "speed"};
    spw_pool *pool;

    int r = spw_pool_open(session, pool_name, &pool);
    if (r == 0)
        r = spw_space_open(pool, &so, &l->space);
    if (r == 0)
        r = spw_queue_new(session, l->space, DISK_SLOTS, &l->queue);
    return r < 0 ? micro_say("space and queue", r) : 0;
}

static int writer_run(struct writer *w, const char *socket_path, const char *pool)
{
    struct spw_connect_options co = {.socket_path = socket_path, .name = "spillbench writer"};
    spw_session *session;

    int r = spw_connect(&co, &session);
    if (r < 0)
        return micro_say("session", r);
    r = load_open(session, pool, &w->load);
    store_release(&w->is_ready, r < 0 ? (uint32_t)r : 1);
    while (r == 0) { /* the parent ends it */
        if (load_acquire(&w->is_on))
            r = disk_load_spill(&w->load, 0, SLICE_SECONDS);
        else
            sleep_ns(POLL_NS);
    }
    return r;
}

static int writer_start(struct speed *s, unsigned i, const char *socket_path, const char *pool)
{
    struct writer *w = memory_map(sizeof(*w), MEMORY_SHARED);
    pid_t parent = getpid();

    if (!w)
        return -ENOMEM;
    s->writers[i] = w;
    w->load = (struct disk_load){.seed = s->options->seed + 1 + i,
                                 .block_bytes = BLOCK_BYTES,
                                 .block_bytes_min = BLOCK_BYTES,
                                 .depth = DISK_DEPTH_MAX,
                                 .list = 1,
                                 .hist = &w->hist};
    s->pids[i] = fork();
    if (s->pids[i] < 0)
        return -errno;
    if (s->pids[i] == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        _exit(getppid() == parent && writer_run(w, socket_path, pool) == 0 ? 0 : 1);
    }
    while (load_acquire(&w->is_ready) == 0 && waitpid(s->pids[i], NULL, WNOHANG) == 0)
        sleep_ns(POLL_NS);
    return load_acquire(&w->is_ready) == 1 ? 0 : -ECHILD;
}

static void writers_end(struct speed *s)
{
    for (unsigned i = 0; i < WRITERS; i++) {
        if (s->pids[i] > 0) {
            kill(s->pids[i], SIGKILL);
            (void)waitpid(s->pids[i], NULL, 0);
        }
        memory_unmap(s->writers[i], sizeof(*s->writers[i]));
        s->writers[i] = NULL;
        s->pids[i] = 0;
    }
}

static void writers_switch(struct speed *s, bool on)
{
    for (unsigned i = 0; i < WRITERS && s->writers[i]; i++)
        store_release(&s->writers[i]->is_on, on);
}

static uint64_t written(const struct writer *w)
{
    return load_relaxed(&w->load.total);
}

static bool writers_live(const struct speed *s)
{
    for (unsigned i = 0; i < WRITERS && s->writers[i]; i++)
        if (waitpid(s->pids[i], NULL, WNOHANG) != 0)
            return false;
    return true;
}

/* ── fetches beside a writer ────────────────────────────────────────────────────────────────────────────────────── */

/* Until the daemon writes no more. */
static int settle(const struct speed *s)
{
    uint64_t start_ns = now_ns();
    double last = -1;

    while (seconds_since(start_ns) < SETTLE_SECONDS) {
        cleanup_json struct json_object *reply = NULL;
        int r = admin_get(s->session, "iostat", &reply);
        if (r < 0)
            return r;
        double bytes = admin_number(reply, "engines.written_bytes");
        if (bytes == last)
            return 0;
        last = bytes;
        sleep_ns(SETTLE_NS);
    }
    return 0; /* it writes all the time, for nobody: that is then part of what is measured */
}

enum { P99, SPEED_GB };

static int fetch(struct speed *s, double ret[static METRICS_MAX])
{
    uint64_t start_ns = now_ns();
    int r = disk_load_fetch(&s->load, 0, s->sample_seconds);

    ret[P99] = (double)hist_quantile(s->load.hist, 990) / 1e3;
    ret[SPEED_GB] = (double)s->load.bytes * 1e-9 / seconds_since(start_ns);
    return r;
}

static int sample_beside(void *ctx, double ret[static METRICS_MAX])
{
    struct speed *s = ctx;

    writers_switch(s, true);
    uint64_t start_ns = now_ns(), first = written(s->writers[0]);
    /* Until its memory is full of what must go first. */
    while (written(s->writers[0]) - first < DRAM_BYTES && seconds_since(start_ns) < SETTLE_SECONDS && writers_live(s))
        sleep_ns(POLL_NS);
    int r = fetch(s, ret);
    writers_switch(s, false);
    return r < 0 ? r : writers_live(s) ? 0 : -ECHILD;
}

static int sample_alone(void *ctx, double ret[static METRICS_MAX])
{
    struct speed *s = ctx;
    int r = settle(s);

    return r < 0 ? r : fetch(s, ret);
}

static int contest_fetch(struct speed *s, struct figures *figures)
{
    const struct contest c = {
        .metrics = {[P99] = {"fetch of 64 KiB under full demotion, p99", "us", GOAL_AT_MOST, false, 2},
                    [SPEED_GB] = {"fetch of 64 KiB under full demotion", "GB/s", GOAL_NONE, false, 0}},
        .n_metrics = 2,
        .neighbour = "fetches alone",
        .ours = sample_beside,
        .theirs = sample_alone,
        .ctx = s,
        .seconds = s->options->seconds,
        .quiet = s->options->quiet,
    };
    uint64_t start_ns = now_ns(), first = written(s->writers[0]);

    int r = contest_run(&c, figures);
    double speed = (double)(written(s->writers[0]) - first) * 1e-9 / seconds_since(start_ns);
    (void)figure_add(figures, "GB/s", speed, "written meanwhile, pauses included");
    return r;
}

static int measure_fetch(struct micro *m)
{
    struct speed *s = m->ctx;
    cleanup_free struct hist *hist = calloc(1, sizeof(*hist));

    if (!hist)
        return -ENOMEM;
    s->session = m->session;
    s->load = (struct disk_load){.seed = s->options->seed,
                                 .block_bytes = BLOCK_BYTES,
                                 .block_bytes_min = BLOCK_BYTES,
                                 .depth = FETCH_DEPTH,
                                 .list = 1,
                                 .hist = hist};
    int r = writer_start(s, 0, m->socket_path, "back");
    if (r == 0)
        r = load_open(m->session, "bench", &s->load);
    if (r == 0)
        r = disk_load_spill(&s->load, s->data_bytes, 0);
    if (r == 0) {
        disk_load_stored(&s->load, s->load.next);
        r = disk_load_fetch(&s->load, s->load.bytes, 0);
    }
    if (r == 0)
        r = contest_fetch(s, m->figures);
    writers_end(s);
    spw_queue_free(s->load.queue);
    return r;
}

/* ── shares ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* How far the writers are from their weights, as a part; and what the left one gets for each byte of the right one. */
static int sample_shares(void *ctx, double ret[static METRICS_MAX])
{
    struct speed *s = ctx;
    uint64_t left = written(s->writers[0]), right = written(s->writers[1]);

    sleep_ns((long)(s->sample_seconds * 1e9));
    left = written(s->writers[0]) - left;
    right = written(s->writers[1]) - right;
    double ratio = right ? (double)left / (double)right : INFINITY;
    ret[0] = fabs(ratio / ((double)WEIGHT_LEFT / WEIGHT_RIGHT) - 1);
    ret[1] = ratio;
    ret[2] = (double)(left + right) * 1e-9 / s->sample_seconds;
    return writers_live(s) ? 0 : -ECHILD;
}

static int measure_shares(struct micro *m)
{
    struct speed *s = m->ctx;
    const struct contest c = {
        .metrics = {{"two saturating pools, 3:1, off by", "", GOAL_AT_MOST, true, 0.1},
                    {"two saturating pools, 3:1, bytes left for one right", "", GOAL_NONE, false, 0},
                    {"two saturating pools, together", "GB/s", GOAL_NONE, false, 0}},
        .n_metrics = 3,
        .ours = sample_shares,
        .ctx = s,
        .seconds = s->options->seconds,
        .quiet = s->options->quiet,
    };

    int r = writer_start(s, 0, m->socket_path, "bench");
    if (r == 0)
        r = writer_start(s, 1, m->socket_path, "right");
    if (r == 0) {
        writers_switch(s, true);
        uint64_t start_ns = now_ns();
        while (written(s->writers[0]) + written(s->writers[1]) < 2 * DRAM_BYTES && writers_live(s) &&
               seconds_since(start_ns) < SETTLE_SECONDS)
            sleep_ns(POLL_NS);
        r = contest_run(&c, m->figures);
    }
    writers_end(s);
    return r;
}

/* ── both ───────────────────────────────────────────────────────────────────────────────────────────────────────── */

int mix_speed(const struct options *o)
{
    static struct figures figures;
    static struct speed s; /* too large for the stack */
    struct harness_options ho = {
        .dram_bytes = o->quick ? DRAM_BYTES_QUICK : DRAM_BYTES, .policy = "lru", .keep = o->keep, .quiet = o->quiet};

    s.options = o;
    s.sample_seconds = o->quick ? 0.3 : 2;
    s.data_bytes = o->quick ? DATA_BYTES_QUICK : DATA_BYTES;
    ho.device_bytes = harness_device_bytes(4 * s.data_bytes);
    ho.pools = "[pool bench]\ndram = 50 %\nnvme = 50 %\n\n[pool back]\ndram = 50 %\nnvme = 50 %\n";
    int r = micro_daemon(o, &ho, measure_fetch, &s, &figures);
    ho.pools = "[pool bench]\ndram = 50 %\nnvme = 50 %\nweight = 300\n\n[pool right]\ndram = 50 %\nnvme = 50 %\n"
               "weight = 100\n";
    if (r == 0)
        r = micro_daemon(o, &ho, measure_shares, &s, &figures);
    return micro_end(o, &figures, r);
}
