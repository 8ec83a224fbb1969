/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a full device costs. Twenty-four times what it holds is written through a pool that has 90 % of it: once as cache
 * only, whose oldest may be dropped; once with half of the pool durable and overwritten at random, the other half cache.
 * Beside it a greedy cleaner is simulated on the same stream of writes, where as much cache stays alive as fits. Bytes
 * written for a byte committed, and speed, are taken window by window once the device is full; the speed is set beside the
 * first windows, when it was empty, and so is all that the device read and wrote: whether that or the program is the limit.
 * At the end is counted how much of the cache that fits is still there: what is not copied was dropped. The daemon's
 * account of its space is checked after each window. One thread.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "client/bench/admin.h"
#include "client/bench/bench.h"
#include "client/bench/cleaner.h"
#include "client/bench/live.h"
#include "client/bench/micro.h"
#include "client/bench/payload.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define BLOCK_BYTES (64 * KIB)
#define DEVICE_BYTES (1 * GIB)
#define DEVICE_BYTES_QUICK (256 * MIB)
#define DRAM_BYTES (64 * MIB)
#define FULL_PERCENT 90
#define TIMES 24
#define TIMES_QUICK 3
#define SECONDS_MOST 300 /* of each stream; how far it came is a figure */
#define SECONDS_MOST_QUICK 20
#define FULL_WINDOWS (2 * WINDOWS_A_FILL) /* from then on the device is full, and was cleaned once */
#define WINDOWS_A_FILL 8
#define EMPTY_WINDOWS 5 /* of eight: it is not full yet */
#define ALL_WINDOWS (TIMES * WINDOWS_A_FILL)
#define LIST 16
#define LISTS_A_SYNC 8
#define TIMEOUT_MS 60000

static const char doc[] = "Measures what a full device costs: cache only, and half of it durable.";

struct window {
    double seconds, device_bytes, read_bytes, committed_bytes, cleaner_bytes;
};

struct steady {
    const struct micro *micro;
    spw_space *cache, *durable;
    struct cleaner *cleaner;
    uint64_t device_bytes, segment_bytes, n_segments, next_cache, random, n_violations;
    uint32_t n_durable, n_cache; /* blocks that are alive at a time */
    unsigned n_windows;
    struct window windows[ALL_WINDOWS];
    struct spw_key keys[LIST];
    struct spw_view views[LIST];
    uint32_t drawn[LIST];
};

/* ── what the daemon says ───────────────────────────────────────────────────────────────────────────────────────── */

/* Space that adds up to more than there is, or use above the budget by a whole segment, is a lie. */
static int account_check(struct steady *s, double *ret_written, double *ret_read)
{
    cleanup_json struct json_object *devices = NULL, *pools = NULL;

    int r = admin_get(s->micro->session, "devices", &devices);
    if (r == 0)
        r = admin_get(s->micro->session, "pools", &pools);
    if (r < 0)
        return r;
    double n = admin_number(devices, "devices.partitions.segments"),
           n_free = admin_number(devices, "devices.partitions.segments_free"),
           n_open = admin_number(devices, "devices.partitions.segments_open"),
           n_pending = admin_number(devices, "devices.partitions.segments_pending_free");
    double segment_bytes = admin_number(devices, "devices.partitions.segment_bytes"),
           live_bytes = admin_number(devices, "devices.partitions.live_bytes"),
           used_bytes = admin_number(pools, "pools.nvme.used_bytes"),
           budget_bytes = admin_number(pools, "pools.nvme.budget_bytes");
    bool is_right = n_free + n_open + n_pending <= n && live_bytes <= (n - n_free) * segment_bytes &&
                    used_bytes < budget_bytes + segment_bytes && used_bytes <= n * segment_bytes;

    s->n_segments = (uint64_t)n;
    s->segment_bytes = (uint64_t)segment_bytes;
    s->n_violations += !is_right;
    if (!is_right)
        fprintf(
            stderr,
            "spillbench: of %.0f segments %.0f are free, %.0f open, %.0f pending; live %.0f B, used %.0f of %.0f B\n",
            n, n_free, n_open, n_pending, live_bytes, used_bytes, budget_bytes);
    *ret_written = admin_number(devices, "devices.partitions.written_bytes"); /* the log is part of it */
    *ret_read = admin_number(devices, "devices.partitions.got_bytes");
    return 0;
}

/* ── the stream ─────────────────────────────────────────────────────────────────────────────────────────────────── */

static int store(struct steady *s, spw_space *space)
{
    int r = spw_reserve(space, s->keys, NULL, LIST, 0, TIMEOUT_MS, s->views);

    for (unsigned i = 0; r == 0 && i < LIST; i++) {
        if (s->views[i].status == 0)
            memcpy(s->views[i].data, &s->keys[i], sizeof(s->keys[i]));
        if (s->views[i].status < 0) {
            fprintf(stderr, "spillbench: reserve: %s, %s\n", strerrordesc_np(-s->views[i].status),
                    spw_limit_text(s->views[i].detail));
            return s->views[i].status;
        }
    }
    if (r == 0)
        r = spw_commit(space, s->views, LIST, 0);
    return r < 0 ? micro_say("reserve and commit", r) : 0;
}

/* The oldest of the cache die as new ones come: that is what the cleaner is told. */
static int cache_write(struct steady *s)
{
    for (unsigned i = 0; i < LIST; i++) {
        payload_key(s->micro->options->seed, s->next_cache, &s->keys[i]);
        if (s->cleaner)
            cleaner_write(s->cleaner, s->n_durable + (uint32_t)(s->next_cache % s->n_cache), 0);
        s->next_cache++;
    }
    return store(s, s->cache);
}

static bool is_drawn(const struct steady *s, unsigned n, uint32_t block)
{
    for (unsigned i = 0; i < n; i++)
        if (s->drawn[i] == block)
            return true;
    return false;
}

/* Blocks first to first + LIST - 1, or any if first is UINT32_MAX. */
static int durable_write(struct steady *s, uint32_t first)
{
    for (unsigned i = 0; i < LIST; i++) {
        do {
            s->random = payload_mix(s->random, 1);
            s->drawn[i] = first == UINT32_MAX ? (uint32_t)(s->random % s->n_durable) : first + i;
        } while (is_drawn(s, i, s->drawn[i]));
        payload_key(s->micro->options->seed + 1, s->drawn[i], &s->keys[i]);
        if (s->cleaner)
            cleaner_write(s->cleaner, s->drawn[i], 1);
    }
    int r = first == UINT32_MAX ? spw_delete(s->durable, s->keys, LIST, NULL) : 0;
    return r < 0 ? micro_say("delete", r) : store(s, s->durable);
}

static int sync_durable(struct steady *s)
{
    int r = spw_sync(s->durable, NULL, 0, TIMEOUT_MS);

    return r < 0 ? micro_say("sync", r) : 0;
}

/* Half of what is written is durable, if anything is. */
static int window_run(struct steady *s, uint64_t bytes, struct window *w)
{
    uint64_t done = 0, start_ns = now_ns();
    double before = 0, after = 0, read_before = 0, read_after = 0;
    double cleaner_before = s->cleaner ? (double)cleaner_written(s->cleaner) : 0;

    int r = account_check(s, &before, &read_before);
    for (unsigned i = 1; r == 0 && done < bytes; i++, done += LIST * BLOCK_BYTES) {
        bool is_durable = s->n_durable > 0 && i % 2 == 0;
        r = is_durable ? durable_write(s, UINT32_MAX) : cache_write(s);
        if (r == 0 && is_durable && i % (2 * LISTS_A_SYNC) == 0)
            r = sync_durable(s);
        if (live_interrupted())
            return -EINTR;
    }
    double seconds = seconds_since(start_ns);
    if (r == 0)
        r = account_check(s, &after, &read_after);
    *w = (struct window){.seconds = seconds,
                         .device_bytes = after - before,
                         .read_bytes = read_after - read_before,
                         .committed_bytes = (double)done,
                         .cleaner_bytes =
                             s->cleaner ? ((double)cleaner_written(s->cleaner) - cleaner_before) * BLOCK_BYTES : 0};
    return r;
}

/* ── figures ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static double speed(const struct window *w)
{
    return w->committed_bytes / w->seconds * 1e-9;
}

static double device_speed(const struct window *w)
{
    return (w->device_bytes + w->read_bytes) / w->seconds * 1e-9;
}

/* No goal: it says what limits the speed that has one. */
static void figure_device(const struct steady *s, const char *name, unsigned first, struct figures *figures)
{
    double empty[EMPTY_WINDOWS], full[ALL_WINDOWS];
    unsigned n = s->n_windows - first;

    for (unsigned i = 0; i < EMPTY_WINDOWS; i++)
        empty[i] = device_speed(&s->windows[i]);
    for (unsigned i = 0; i < n; i++)
        full[i] = device_speed(&s->windows[first + i]);
    double reference = pairs_estimate(empty, EMPTY_WINDOWS).median;
    struct estimate e = pairs_estimate(full, n);
    struct figure *f = figure_add(figures, "GB/s", e.median, "%s, read and written by the full device", name);
    figure_beside(f, "the empty device", reference);
    figure_measured(f, &(struct estimate){e.median / reference, e.low / reference, e.high / reference, e.n});
}

static void figure_speed(const struct steady *s, const char *name, unsigned first, struct figures *figures)
{
    double empty[EMPTY_WINDOWS], full[ALL_WINDOWS];
    unsigned n = s->n_windows - first;

    for (unsigned i = 0; i < EMPTY_WINDOWS; i++)
        empty[i] = speed(&s->windows[i]);
    double reference = pairs_estimate(empty, EMPTY_WINDOWS).median;
    for (unsigned i = 0; i < n; i++)
        full[i] = speed(&s->windows[first + i]);
    struct estimate e = pairs_estimate(full, n);
    struct figure *f = figure_add(figures, "GB/s", e.median, "%s, committed on a full device", name);
    figure_beside(f, "the empty device", reference);
    figure_goal_ratio(f, GOAL_AT_LEAST, 0.85);
    figure_measured(f, &(struct estimate){e.median / reference, e.low / reference, e.high / reference, e.n});
}

static void figure_written(const struct steady *s, const char *name, unsigned first, struct figures *figures)
{
    double ours[ALL_WINDOWS], theirs[ALL_WINDOWS], ratios[ALL_WINDOWS];
    unsigned n = s->n_windows - first;

    for (unsigned i = 0; i < n; i++) {
        const struct window *w = &s->windows[first + i];
        ours[i] = w->device_bytes / w->committed_bytes;
        theirs[i] = w->cleaner_bytes / w->committed_bytes;
        ratios[i] = ours[i] / theirs[i];
    }
    struct estimate value = pairs_estimate(ours, n), ratio = pairs_estimate(ratios, n);
    struct figure *f = figure_add(figures, "", value.median, "%s, written for a byte committed", name);
    figure_beside(f, "a greedy cleaner, simulated", pairs_estimate(theirs, n).median);
    if (s->n_durable > 0)
        figure_goal_ratio(f, GOAL_AT_MOST, 1.1);
    else
        figure_goal(f, GOAL_AT_MOST, 1.1);
    figure_measured(f, s->n_durable > 0 ? &ratio : &value);
    f->ratio = ratio.median;
}

/* ── the two streams ────────────────────────────────────────────────────────────────────────────────────────────── */

static int spaces_open(struct steady *s)
{
    struct spw_space_options so = {
        .item_bytes = BLOCK_BYTES, .class_id = SPW_CLASS_GENERIC, .durability = SPW_CACHE, .digest = "steady cache"};

    int r = spw_space_open(s->micro->pool, &so, &s->cache);
    so = (struct spw_space_options){.item_bytes = BLOCK_BYTES,
                                    .class_id = SPW_CLASS_WEIGHTS,
                                    .durability = SPW_DURABLE,
                                    .digest = "steady durable"};
    if (r == 0)
        r = spw_space_open(s->micro->pool, &so, &s->durable);
    return r < 0 ? micro_say("space", r) : 0;
}

static int cleaner_make(struct steady *s, bool with_durable)
{
    double written, read;
    int r = account_check(s, &written, &read);

    if (r < 0)
        return r;
    uint32_t per_segment = (uint32_t)(s->segment_bytes / BLOCK_BYTES);
    uint32_t n = (uint32_t)(s->n_segments * per_segment * FULL_PERCENT / 100);
    s->n_durable = with_durable ? n / 2 / LIST * LIST : 0;
    s->n_cache = n - s->n_durable;
    return cleaner_new((uint32_t)s->n_segments, per_segment, n, &s->cleaner);
}

static int run_windows(struct steady *s, const char *name)
{
    const struct options *o = s->micro->options;
    unsigned n = (o->quick ? TIMES_QUICK : TIMES) * WINDOWS_A_FILL;
    double seconds_most = o->quick ? SECONDS_MOST_QUICK : SECONDS_MOST;
    uint64_t start_ns = now_ns();
    struct live live;
    int r = 0;

    live_init(&live, o->quiet);
    for (uint32_t i = 0; r == 0 && i < s->n_durable; i += LIST) {
        r = durable_write(s, i);
        if (r == 0 && i / LIST % LISTS_A_SYNC == 0)
            r = sync_durable(s);
    }
    for (s->n_windows = 0; r == 0 && s->n_windows < n; s->n_windows++) {
        if (s->n_windows >= FULL_WINDOWS + SAMPLES_MIN && seconds_since(start_ns) > seconds_most)
            break;
        struct window *w = &s->windows[s->n_windows];
        r = window_run(s, s->device_bytes / WINDOWS_A_FILL, w);
        if (live_due(&live))
            live_print(&live, "  %s: %u of %u windows, %.2f GB/s, %.2f written for a byte", name, s->n_windows, n,
                       speed(w), w->device_bytes / w->committed_bytes);
    }
    live_end(&live);
    return r;
}

/* Of as many of the newest blocks as the cleaner keeps. */
static int cache_count(struct steady *s, double *ret_share)
{
    uint64_t n = MIN(s->next_cache, (uint64_t)s->n_cache) / LIST * LIST, first = s->next_cache - n, n_there = 0;
    struct spw_hit hits[LIST];

    for (uint64_t at = first; at < s->next_cache; at += LIST) {
        for (unsigned i = 0; i < LIST; i++)
            payload_key(s->micro->options->seed, at + i, &s->keys[i]);
        long r = spw_lookup(s->cache, s->keys, LIST, 0, hits);
        if (r < 0)
            return micro_say("lookup", (int)r);
        for (unsigned i = 0; i < LIST; i++)
            n_there += hits[i].status == 0;
    }
    *ret_share = (double)n_there / (double)n;
    return 0;
}

static int measure(struct micro *m)
{
    bool with_durable = m->ctx != NULL;
    const char *name = with_durable ? "half durable" : "cache only";
    cleanup_free struct steady *s = calloc(1, sizeof(*s));

    if (!s)
        return -ENOMEM;
    s->micro = m;
    s->random = m->options->seed;
    s->device_bytes = m->options->quick ? DEVICE_BYTES_QUICK : DEVICE_BYTES;
    int r = spaces_open(s);
    if (r == 0)
        r = cleaner_make(s, with_durable);
    double cache_share = 0;
    if (r == 0)
        r = run_windows(s, name);
    if (r == 0)
        r = cache_count(s, &cache_share);
    if (r == 0) {
        unsigned first = MAX(s->n_windows / 2, (unsigned)FULL_WINDOWS);
        figure_written(s, name, first, m->figures);
        figure_speed(s, name, first, m->figures);
        figure_device(s, name, first, m->figures);
        figure_beside(figure_add(m->figures, "%", 100 * cache_share, "%s, of the cache that fits, still there", name),
                      "a greedy cleaner", 100);
        (void)figure_add(m->figures, "", (double)s->n_windows / WINDOWS_A_FILL, "%s, times the device was written",
                         name);
        figure_goal(
            figure_add(m->figures, "", (double)s->n_violations, "%s, accounts of space that do not add up", name),
            GOAL_AT_MOST, 0);
    }
    cleaner_free(s->cleaner);
    return r;
}

int bench_steady(int argc, char **argv)
{
    static struct figures figures;
    struct options o;
    int r = 0;

    micro_options(argc, argv, doc, &o);
    for (unsigned with_durable = 0; r == 0 && with_durable < 2; with_durable++) {
        struct harness_options ho = {.dram_bytes = DRAM_BYTES,
                                     .device_bytes = o.quick ? DEVICE_BYTES_QUICK : DEVICE_BYTES,
                                     .pools = "[pool bench]\nnvme = 90 %\n",
                                     .keep = o.keep,
                                     .quiet = o.quiet};
        r = micro_daemon(&o, &ho, measure, with_durable ? &o : NULL, &figures);
    }
    return micro_end(&o, &figures, r);
}
