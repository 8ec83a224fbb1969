/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PUT and GET between the caller's memory and the store, beside copying the same bytes with nothing in between: the
 * fastest of memcpy and non-temporal stores, with one and with two threads (a call with a single small object cannot use
 * two). In a trusted pool there is one copy; in a shared one a PUT makes two, since what a stranger could still change is
 * never published. Working sets are larger than the caches; what comes back is compared. One thread, and the session's.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "client/bench/bench.h"
#include "client/bench/ceiling_copy.h"
#include "client/bench/compare.h"
#include "client/bench/memory.h"
#include "client/bench/micro.h"
#include "client/bench/payload.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define SAMPLE_BYTES (64 * MIB) /* twice a large third-level cache, and of both sides */
#define KEYS_MAX (SAMPLE_BYTES / (64 * KIB))
#define TRIES 3 /* of each way to copy, to choose the fastest */
#define TIMEOUT_MS 10000

static const char doc[] = "Measures PUT and GET beside memcpy and non-temporal copies.";

/* Sizes and how many a call. One of many: the round trip shows; lists: it must not. */
static const struct row {
    uint64_t block_bytes;
    unsigned list;
    const char *text;
} rows[] = {{64 * KIB, 64, "64 KiB, lists of 64"},
            {1 * MIB, 4, "1 MiB, lists of 4"},
            {16 * MIB, 1, "16 MiB"},
            {64 * KIB, 1, "64 KiB, one a call"},
            {1 * MIB, 1, "1 MiB, one a call"}};

struct copies {
    const struct options *options;
    const struct row *row;
    spw_space *space;
    char *from, *to;
    enum ceiling_copy best;
    uint64_t next_id;
    unsigned n;
    struct spw_key keys[KEYS_MAX];
    struct spw_iovec vecs[KEYS_MAX];
    int32_t status[KEYS_MAX];
};

/* ── the store's side ───────────────────────────────────────────────────────────────────────────────────────────── */

static void keys_new(struct copies *c)
{
    c->n = (unsigned)(SAMPLE_BYTES / c->row->block_bytes);
    for (unsigned i = 0; i < c->n; i++)
        payload_key(c->options->seed, c->next_id++, &c->keys[i]);
}

static void vecs_point(struct copies *c, char *mem)
{
    for (unsigned i = 0; i < c->n; i++)
        c->vecs[i] = (struct spw_iovec){mem + i * c->row->block_bytes, c->row->block_bytes};
}

static int all_stored(const struct copies *c, const char *what)
{
    for (unsigned i = 0; i < c->n; i++) {
        if (c->status[i] == 0)
            continue;
        fprintf(stderr, "spillbench: %s: %s\n", what, strerrordesc_np(-c->status[i]));
        return -EIO;
    }
    return 0;
}

/* Bytes a nanosecond. */
static int put_all(struct copies *c, double *ret_speed)
{
    vecs_point(c, c->from);
    uint64_t start_ns = now_ns();
    for (unsigned i = 0; i < c->n; i += c->row->list) {
        int r = spw_put(c->space, c->keys + i, c->vecs + i, c->row->list, 0, TIMEOUT_MS, c->status + i);
        if (r < 0)
            return micro_say("put", r);
    }
    *ret_speed = (double)SAMPLE_BYTES / (double)(now_ns() - start_ns);
    return all_stored(c, "put");
}

static int delete_all(struct copies *c)
{
    int r = spw_delete(c->space, c->keys, c->n, c->status);

    return r < 0 ? micro_say("delete", r) : all_stored(c, "delete");
}

static int sample_put(void *ctx, double ret_speed[static METRICS_MAX])
{
    struct copies *c = ctx;

    keys_new(c);
    int r = put_all(c, &ret_speed[0]);
    return r < 0 ? r : delete_all(c);
}

static int sample_get(void *ctx, double ret_speed[static METRICS_MAX])
{
    struct copies *c = ctx;

    vecs_point(c, c->to);
    memset(c->to, 0, SECTOR_BYTES);
    uint64_t start_ns = now_ns();
    for (unsigned i = 0; i < c->n; i += c->row->list) {
        int r = spw_get(c->space, c->keys + i, c->vecs + i, c->row->list, 0, TIMEOUT_MS, c->status + i);
        if (r < 0)
            return micro_say("get", r);
    }
    ret_speed[0] = (double)SAMPLE_BYTES / (double)(now_ns() - start_ns);
    int r = all_stored(c, "get");
    if (r == 0 && memcmp(c->from, c->to, SAMPLE_BYTES) != 0)
        r = micro_say("get", 0);
    return r;
}

/* ── the ceiling's side ─────────────────────────────────────────────────────────────────────────────────────────── */

static int sample_copy(void *ctx, double ret_speed[static METRICS_MAX])
{
    const struct copies *c = ctx;

    ret_speed[0] = ceiling_copy_run(c->best, c->to, c->from, SAMPLE_BYTES, c->row->block_bytes);
    return 0;
}

/* Finds the fastest way to copy blocks of this size; says how fast each is where figures are given. */
static enum ceiling_copy ceiling_best(const struct copies *c, struct figures *figures)
{
    enum ceiling_copy best = CEILING_MEMCPY;
    double best_speed = 0;

    for (enum ceiling_copy how = 0; how < CEILING_COPIES; how++) {
        bool two = how == CEILING_MEMCPY_2 || how == CEILING_STREAM_2;
        double speed[TRIES];
        for (unsigned i = 0; i < TRIES; i++)
            speed[i] = ceiling_copy_run(how, c->to, c->from, SAMPLE_BYTES, c->row->block_bytes);
        double middle = pairs_estimate(speed, TRIES).median;
        if (figures)
            (void)figure_add(figures, "GB/s", middle, "%s, blocks of %llu KiB", ceiling_copy_name(how),
                             (unsigned long long)(c->row->block_bytes / KIB));
        if (two && c->row->list == 1 && c->row->block_bytes < 2 * MIB)
            continue;
        if (middle > best_speed) {
            best_speed = middle;
            best = how;
        }
    }
    return best;
}

/* ── contests ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static int contest(struct copies *c, const char *what, const char *pool, double goal, sample_fn ours,
                   struct figures *figures)
{
    struct contest contest = {.metrics = {{"", "GB/s", GOAL_AT_LEAST, false, goal}},
                              .n_metrics = 1,
                              .neighbour = ceiling_copy_name(c->best),
                              .ours = ours,
                              .theirs = sample_copy,
                              .ctx = c,
                              .seconds = c->options->seconds,
                              .quiet = c->options->quiet};

    snprintf(contest.metrics[0].name, FIGURE_NAME_BYTES, "%s, %s pool, %s", what, pool, c->row->text);
    return contest_run(&contest, figures);
}

static int measure_row(struct copies *c, bool trusted, struct figures *figures)
{
    const char *pool = trusted ? "trusted" : "shared";
    double speed;

    c->best = ceiling_best(c, trusted && (c->row->list > 1 || c->row->block_bytes > MIB) ? figures : NULL);
    int r = contest(c, "put", pool, trusted ? 0.95 : 0.47, sample_put, figures);
    if (r < 0)
        return r;
    keys_new(c);
    r = put_all(c, &speed);
    if (r == 0)
        r = contest(c, "get", pool, trusted ? 0.95 : 0.47, sample_get, figures);
    return r < 0 ? r : delete_all(c);
}

static int measure(struct micro *m)
{
    struct spw_space_options so = {.class_id = SPW_CLASS_KV, .digest = "copy"};
    cleanup_free struct copies *c = calloc(1, sizeof(*c));
    struct spw_pool_info info;
    int r = -ENOMEM;

    if (!c)
        return r;
    c->options = m->options;
    c->from = memory_map(SAMPLE_BYTES, MEMORY_HUGE);
    c->to = memory_map(SAMPLE_BYTES, MEMORY_HUGE);
    if (c->from && c->to) {
        payload_fill(c->from, SAMPLE_BYTES, m->options->seed, 0);
        memset(c->to, 0, SAMPLE_BYTES);
        spw_pool_info(m->pool, &info);
        r = spw_space_open(m->pool, &so, &c->space);
        if (r < 0)
            micro_say("space", r);
    }
    for (size_t i = 0; r == 0 && i < (m->options->quick ? 2 : ARRAY_LEN(rows)); i++) {
        c->row = &rows[i];
        r = measure_row(c, info.flags & SPW_POOL_TRUSTED, m->figures);
    }
    memory_unmap(c->from, SAMPLE_BYTES);
    memory_unmap(c->to, SAMPLE_BYTES);
    return r;
}

static int measure_both(struct micro *m)
{
    int r = measure(m);

    if (r < 0 || m->daemon_pid == 0)
        return r;
    return micro_child(m->options, m->socket_path, "shared", geteuid() == 0 ? MICRO_SOMEBODY : 0, measure, NULL,
                       m->figures);
}

int bench_copy(int argc, char **argv)
{
    static const char of_user[] = "[pool bench]\ndram = 50 %\n\n[pool shared]\ntrusted = no\n";
    static const char of_root[] = "[pool bench]\ndram = 50 %\n\n[pool shared]\ntrusted = no\nusers = 64123\n";
    static struct figures figures;
    struct options o;

    micro_options(argc, argv, doc, &o);
    struct harness_options ho = {.dram_bytes = MAX(o.dram_bytes, GIB),
                                 .pools = geteuid() == 0 ? of_root : of_user,
                                 .any_user = true,
                                 .keep = o.keep,
                                 .quiet = o.quiet};
    int r = o.socket_path ? micro_session(&o, o.socket_path, o.pool, 0, measure, NULL, &figures)
                          : micro_daemon(&o, &ho, measure_both, NULL, &figures);
    return micro_end(&o, &figures, r);
}
