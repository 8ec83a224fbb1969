/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The price of a hit: acquire and release of blocks that are in memory, alone and in lists, beside copying the same
 * bytes, which is what a cache without leases would have to do. Bytes are checked before and after. One thread.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "client/bench/bench.h"
#include "client/bench/hist.h"
#include "client/bench/live.h"
#include "client/bench/micro.h"
#include "client/bench/payload.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define LIST 64
#define KEYS 256
#define COPIES 2000

static const char doc[] = "Measures acquire and release of blocks in memory, one at a time and in lists of 64.";

struct hits {
    spw_space *space;
    const struct options *options;
    struct spw_key keys[KEYS];
    struct spw_view views[LIST];
    struct hist hist;
};

static int say(const char *what, int r)
{
    fprintf(stderr, "spillbench: %s: %s\n", what, r < 0 ? spw_error_text() : "wrong bytes, or none");
    return r < 0 ? r : -EBADMSG;
}

static int store(struct hits *h)
{
    for (unsigned i = 0; i < KEYS; i += LIST) {
        int r = spw_reserve(h->space, h->keys + i, NULL, LIST, 0, 10000, h->views);
        if (r < 0)
            return say("reserve", r);
        for (unsigned k = 0; k < LIST; k++) {
            if (h->views[k].status != 0 && h->views[k].status != -EEXIST)
                return say(strerrordesc_np(-h->views[k].status), 0);
            if (h->views[k].status == 0)
                payload_fill(h->views[k].data, h->views[k].size_bytes, payload_stream(&h->keys[i + k]), 0);
        }
        r = spw_commit(h->space, h->views, LIST, 0);
        if (r < 0)
            return say("commit", r);
    }
    return 0;
}

static int check_all(struct hits *h)
{
    for (unsigned i = 0; i < KEYS; i += LIST) {
        int r = spw_acquire(h->space, h->keys + i, LIST, 0, 10000, h->views);
        if (r < 0)
            return say("acquire", r);
        for (unsigned k = 0; k < LIST; k++)
            if (h->views[k].status != 0 || payload_check(h->views[k].data, h->views[k].size_bytes,
                                                         payload_stream(&h->keys[i + k]), 0) != PAYLOAD_OK)
                return say("check", 0);
        r = spw_release(h->space, h->views, LIST, 0);
        if (r < 0)
            return say("release", r);
    }
    return 0;
}

/* One round is acquire and release of n keys. */
static int rounds(struct hits *h, unsigned n)
{
    uint64_t start_ns = now_ns();

    memset(&h->hist, 0, sizeof(h->hist));
    for (unsigned i = 0; seconds_since(start_ns) < h->options->seconds && !live_interrupted(); i = (i + n) % KEYS) {
        uint64_t t = now_ns();
        int r = spw_acquire(h->space, h->keys + i, n, n > 1 ? SPW_CHAIN : 0, 10000, h->views);
        if (r == 0 && h->views[0].status == 0)
            r = spw_release(h->space, h->views, n, 0);
        if (r < 0 || h->views[0].status != 0)
            return say("acquire and release", r);
        hist_add(&h->hist, now_ns() - t);
    }
    return 0;
}

/* Nanoseconds to copy one block, from memory that is not in the caches. */
static double copy_ns(uint64_t block_bytes)
{
    size_t room = (size_t)block_bytes * KEYS;
    cleanup_free char *from = malloc(room), *to = malloc(room);

    if (!from || !to)
        return 0;
    memset(from, 1, room);
    memset(to, 2, room);
    uint64_t start_ns = now_ns();
    for (unsigned i = 0; i < COPIES; i++) {
        memcpy(to + i % KEYS * block_bytes, from + i % KEYS * block_bytes, block_bytes);
        __asm__ volatile("" ::"r"(to) : "memory");
    }
    return (double)(now_ns() - start_ns) / COPIES;
}

static int measure_lists(struct hits *h, unsigned n, struct figures *figures)
{
    int r = rounds(h, n);

    if (r < 0)
        return r;
    struct figure *f = figure_add(figures, "ns", (double)hist_quantile(&h->hist, 500) / n,
                                  "acquire and release, lists of %u, p50 a key", n);
    figure_beside(f, "copying it", copy_ns(h->options->block_bytes));
    (void)figure_add(figures, "ns", (double)hist_quantile(&h->hist, 990) / n, "the same, p99 a key");
    (void)figure_add(figures, "1/s", 1e9 * n / (double)(hist_mean(&h->hist) + 1), "keys a second, lists of %u", n);
    return 0;
}

static int measure(const struct options *o, spw_session *session, spw_pool *pool, struct figures *figures)
{
    cleanup_free struct hits *h = calloc(1, sizeof(*h));
    struct spw_space_options so = {.item_bytes = o->block_bytes, .class_id = SPW_CLASS_KV, .digest = "hit"};

    (void)session;
    if (!h)
        return -ENOMEM;
    h->options = o;
    for (unsigned i = 0; i < KEYS; i++)
        payload_key(payload_mix(o->seed, o->block_bytes), i, &h->keys[i]);
    int r = spw_space_open(pool, &so, &h->space);
    if (r < 0)
        return say("space", r);
    r = store(h);
    if (r == 0)
        r = check_all(h);
    if (r == 0)
        r = measure_lists(h, 1, figures);
    if (r == 0)
        r = measure_lists(h, LIST, figures);
    return r < 0 ? r : check_all(h);
}

int bench_hit(int argc, char **argv)
{
    return micro_run(argc, argv, doc, measure);
}
