/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The price of a hit: acquire and release of blocks that are in memory, alone and in lists, beside a raw ring, beside
 * redis, and beside copying the same bytes, which is what a cache without leases would have to do. Bytes are checked
 * before and after, and the daemon must not have copied any. One thread.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "client/bench/admin.h"
#include "client/bench/bench.h"
#include "client/bench/ceiling_ring.h"
#include "client/bench/compare.h"
#include "client/bench/cpus.h"
#include "client/bench/micro.h"
#include "client/bench/payload.h"
#include "client/bench/process.h"
#include "client/bench/redis.h"
#include "include/base/cleanup.h"

#define LIST 64
#define KEYS 256
#define COPIES 512      /* blocks that are copied between: more than the caches hold */
#define ROUNDS 16384    /* of a sample */
#define ROUNDS_FEW 1024 /* of a sample that is slow */

DEFINE_CLEANUP(struct ceiling_ring *, ceiling_ring_free)

static const char doc[] = "Measures acquire and release of blocks in memory, one at a time and in lists of 64.";

struct hits {
    spw_space *space;
    const struct options *options;
    struct spw_key keys[KEYS];
    struct spw_view views[LIST];
    struct ceiling_ring *raw;
    struct redis *redis;
    char *buffer; /* COPIES blocks */
};

static int store(struct hits *h)
{
    for (unsigned i = 0; i < KEYS; i += LIST) {
        int r = spw_reserve(h->space, h->keys + i, NULL, LIST, 0, 10000, h->views);
        if (r < 0)
            return micro_say("reserve", r);
        for (unsigned k = 0; k < LIST; k++) {
            if (h->views[k].status != 0 && h->views[k].status != -EEXIST)
                return micro_say(strerrordesc_np(-h->views[k].status), 0);
            if (h->views[k].status == 0)
                payload_fill(h->views[k].data, h->views[k].size_bytes, payload_stream(&h->keys[i + k]), 0);
        }
        r = spw_commit(h->space, h->views, LIST, 0);
        if (r < 0)
            return micro_say("commit", r);
    }
    return 0;
}

static int check_all(struct hits *h)
{
    for (unsigned i = 0; i < KEYS; i += LIST) {
        int r = spw_acquire(h->space, h->keys + i, LIST, 0, 10000, h->views);
        if (r < 0)
            return micro_say("acquire", r);
        for (unsigned k = 0; k < LIST; k++)
            if (h->views[k].status != 0 || payload_check(h->views[k].data, h->views[k].size_bytes,
                                                         payload_stream(&h->keys[i + k]), 0) != PAYLOAD_OK)
                return micro_say("check", 0);
        r = spw_release(h->space, h->views, LIST, 0);
        if (r < 0)
            return micro_say("release", r);
    }
    return 0;
}

/* ── samples ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Nanoseconds of one acquire and release of a list of n keys. */
static int rounds(struct hits *h, unsigned n, unsigned n_rounds, double *ret_ns)
{
    uint64_t start_ns = now_ns();

    for (unsigned i = 0; i < n_rounds; i++) {
        int r = spw_acquire(h->space, h->keys + i * n % KEYS, n, n > 1 ? SPW_CHAIN : 0, 10000, h->views);
        if (r == 0 && h->views[0].status == 0)
            r = spw_release(h->space, h->views, n, 0);
        if (r < 0 || h->views[0].status != 0)
            return micro_say("acquire and release", r);
    }
    *ret_ns = (double)(now_ns() - start_ns) / n_rounds;
    return 0;
}

static int sample_single(void *ctx, double ret_ns[static METRICS_MAX])
{
    return rounds(ctx, 1, ROUNDS, &ret_ns[0]);
}

static int sample_few(void *ctx, double ret_ns[static METRICS_MAX])
{
    return rounds(ctx, 1, ROUNDS_FEW, &ret_ns[0]);
}

static int sample_lists(void *ctx, double ret_keys[static METRICS_MAX])
{
    double ns = 1;
    int r = rounds(ctx, LIST, ROUNDS / LIST, &ns);

    if (r == 0)
        ret_keys[0] = 1e9 / ns * LIST;
    return r;
}

/* What two round trips cost at least: one for the acquire, one for the release. */
static int sample_raw(void *ctx, double ret_ns[static METRICS_MAX])
{
    const struct hits *h = ctx;
    int r = ceiling_ring_trip_ns(h->raw, CEILING_SPIN, ROUNDS, &ret_ns[0]);

    ret_ns[0] *= 2;
    return r;
}

static int sample_redis(void *ctx, double ret_ns[static METRICS_MAX])
{
    const struct hits *h = ctx;
    uint64_t start_ns = now_ns();

    for (unsigned i = 0; i < ROUNDS_FEW; i++) {
        int r = redis_get(h->redis, "block", h->buffer, h->options->block_bytes);
        if (r < 0) {
            fprintf(stderr, "spillbench: redis: %s\n", strerrordesc_np(-r));
            return r;
        }
    }
    ret_ns[0] = (double)(now_ns() - start_ns) / ROUNDS_FEW;
    return 0;
}

/* What a cache without leases would have to do. */
static int sample_copy(void *ctx, double ret_ns[static METRICS_MAX])
{
    const struct hits *h = ctx;
    uint64_t size_bytes = h->options->block_bytes, start_ns = now_ns();

    for (unsigned i = 0; i < ROUNDS_FEW; i++) {
        memcpy(h->buffer + i % COPIES * size_bytes, h->buffer + (i + 1) % COPIES * size_bytes, size_bytes);
        __asm__ volatile("" ::"r"(h->buffer) : "memory");
    }
    ret_ns[0] = (double)(now_ns() - start_ns) / ROUNDS_FEW;
    return 0;
}

/* ── contests ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static int contest(struct hits *h, struct metric metric, const char *neighbour, sample_fn ours, sample_fn theirs,
                   struct figures *figures)
{
    const struct contest c = {.metrics = {metric},
                              .n_metrics = 1,
                              .neighbour = neighbour,
                              .ours = ours,
                              .theirs = theirs,
                              .ctx = h,
                              .seconds = h->options->seconds,
                              .quiet = h->options->quiet};

    return contest_run(&c, figures);
}

static int beside_redis(struct hits *h, struct figures *figures)
{
    int r = redis_new(&h->redis);

    if (r < 0) {
        fprintf(stderr, "SKIP: redis beside us: %s\n", r == -ENOENT ? "not installed" : strerrordesc_np(-r));
        return 0;
    }
    r = redis_set(h->redis, "block", h->buffer, h->options->block_bytes);
    if (r == 0)
        r = contest(h, (struct metric){"acquire and release, beside redis", "ns", GOAL_NONE, false, 0},
                    "redis GET over a Unix socket", sample_few, sample_redis, figures);
    redis_free(h->redis);
    return r;
}

/* The daemon's count of bytes that it copied, to wherever. */
static int copied(spw_session *session, double *ret_bytes)
{
    cleanup_json struct json_object *tiers = NULL;
    int r = admin_get(session, "tiers", &tiers);

    if (r == 0)
        *ret_bytes = admin_number(tiers, "metadata.copied_bytes") + admin_number(tiers, "metadata.bounced_bytes");
    return r;
}

static int contests(struct hits *h, struct figures *figures)
{
    int r = contest(h, (struct metric){"acquire and release of a block", "ns", GOAL_AT_MOST, true, 1000},
                    "raw ring, two round trips", sample_single, sample_raw, figures);
    if (r == 0)
        r = contest(h, (struct metric){"keys a second, lists of 64", "1/s", GOAL_AT_LEAST, true, 3e6}, NULL,
                    sample_lists, NULL, figures);
    if (r == 0)
        r = contest(h, (struct metric){"acquire and release, beside copying it", "ns", GOAL_NONE, false, 0},
                    "memcpy of the block", sample_few, sample_copy, figures);
    return r < 0 ? r : beside_redis(h, figures);
}

static int measure_copied(struct hits *h, struct micro *m)
{
    double before, after;
    int r = copied(m->session, &before);

    if (r == 0)
        r = contests(h, m->figures);
    if (r == 0)
        r = copied(m->session, &after);
    if (r == 0)
        figure_goal(figure_add(m->figures, "B", after - before, "bytes that the daemon copied meanwhile"), GOAL_AT_MOST,
                    0);
    return r;
}

static int measure(struct micro *m)
{
    const struct options *o = m->options;
    cleanup_free struct hits *h = calloc(1, sizeof(*h));
    struct spw_space_options so = {.item_bytes = o->block_bytes, .class_id = SPW_CLASS_KV, .digest = "hit"};

    if (!h)
        return -ENOMEM;
    h->options = o;
    h->raw = m->ctx;
    cleanup_free char *buffer = calloc(COPIES, o->block_bytes);
    h->buffer = buffer;
    if (!h->buffer)
        return -ENOMEM;
    for (unsigned i = 0; i < KEYS; i++)
        payload_key(payload_mix(o->seed, o->block_bytes), i, &h->keys[i]);
    int r = spw_space_open(m->pool, &so, &h->space);
    if (r < 0)
        return micro_say("space", r);
    cpus_pin(cpus_nth(0));
    if (m->daemon_pid != 0)
        (void)!cpus_pin_threads(m->daemon_pid, "engine-", cpus_nth(1));
    r = store(h);
    if (r == 0)
        r = check_all(h);
    if (r == 0)
        r = measure_copied(h, m);
    return r < 0 ? r : check_all(h);
}

int bench_hit(int argc, char **argv)
{
    cleanup_(ceiling_ring_freep) struct ceiling_ring *raw = NULL;
    static struct figures figures;
    struct options o;

    micro_options(argc, argv, doc, &o);
    struct harness_options ho = {.dram_bytes = o.dram_bytes, .keep = o.keep, .quiet = o.quiet};
    int r = ceiling_ring_new(cpus_nth(1), &raw);
    if (r == 0)
        r = o.socket_path ? micro_session(&o, o.socket_path, o.pool, 0, measure, raw, &figures)
                          : micro_daemon(&o, &ho, measure, raw, &figures);
    return micro_end(&o, &figures, r);
}
