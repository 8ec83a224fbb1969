/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether an operation costs more when there are more objects: a daemon with ten thousand of them beside one with a
 * million, and one with ten million, in the same minute. Objects are as small as they can be, 4 KiB; what does not fit
 * into memory is on a device. Keys are drawn at random from the youngest of those in memory. A commit is timed with its
 * reserve, after as many others were deleted: the number of objects stays, and nothing need be evicted. One thread.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/bench/admin.h"
#include "client/bench/bench.h"
#include "client/bench/compare.h"
#include "client/bench/cpus.h"
#include "client/bench/live.h"
#include "client/bench/micro.h"
#include "client/bench/payload.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define OBJECT_BYTES (4 * KIB)
#define FEW UINT64_C(10000)
#define LIST 64
#define FILL_LIST 1024
#define LISTS 64               /* of a sample */
#define DRAM_BYTES (5 * GIB)   /* of the larger daemon, or half of what is free: a million fit, ten take 46 GiB */
#define YOUNGEST 500000        /* fit into it with room to spare */
#define ROOM_BYTES (256 * MIB) /* of a daemon above its objects */
#define TIMEOUT_MS 60000
#define GOAL 1.3

#define SECONDS_DEFAULT 3
#define SECONDS_QUICK 0.2

static const struct argp_option rows[] = {ROW_OBJECTS, ROW_SECONDS, ROW_SEED,   ROW_KEEP,
                                          ROW_QUIET,   ROW_QUICK,   ROW_OUTPUT, {0}};
static const char doc[] = "Measures lookup, acquire and commit with few objects and with millions.";

enum op { OP_LOOKUP, OP_ACQUIRE, OP_COMMIT, OPS };

struct side {
    struct harness harness;
    spw_session *session;
    spw_space *space;
    uint64_t n, next; /* objects next - n to next - 1 are there */
};

struct scale {
    const struct options *options;
    struct side few, many;
    enum op op;
    uint64_t random;
    struct spw_key keys[FILL_LIST];
    struct spw_view views[FILL_LIST];
    struct spw_hit hits[FILL_LIST];
};

/* ── one daemon ─────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Reserves and commits the next n, a list at most; the bytes stay as they are. */
static int store(struct scale *s, struct side *side, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        payload_key(s->options->seed, side->next + i, &s->keys[i]);
    int r = spw_reserve(side->space, s->keys, NULL, n, 0, TIMEOUT_MS, s->views);
    for (unsigned i = 0; r == 0 && i < n; i++)
        r = s->views[i].status;
    if (r == 0)
        r = spw_commit(side->space, s->views, n, 0);
    side->next += n;
    return r < 0 ? micro_say("reserve and commit", r) : 0;
}

static int fill(struct scale *s, struct side *side)
{
    struct live live;
    int r = 0;

    live_init(&live, s->options->quiet);
    while (r == 0 && side->next < side->n && !live_interrupted()) {
        r = store(s, side, (unsigned)MIN((uint64_t)FILL_LIST, side->n - side->next));
        if (live_due(&live))
            live_print(&live, "  %llu of %llu objects", (unsigned long long)side->next, (unsigned long long)side->n);
    }
    live_end(&live);
    return r < 0 ? r : live_interrupted() ? -EINTR : 0;
}

static void side_close(struct side *side)
{
    spw_close(side->session);
    harness_deinit(&side->harness);
    *side = (struct side){.harness = HARNESS_NONE};
}

/* n objects; 0 bytes of device: all are in memory. */
static int side_open(struct scale *s, struct side *side, uint64_t n, uint64_t dram_bytes, uint64_t device_bytes)
{
    struct spw_space_options so = {.item_bytes = OBJECT_BYTES, .class_id = SPW_CLASS_KV, .digest = "scale"};
    char lines[64];
    spw_pool *pool;

    snprintf(lines, sizeof(lines), "max_objects = %llu\n", (unsigned long long)(n + n / 8 + YOUNGEST));
    struct harness_options ho = {.dram_bytes = dram_bytes,
                                 .device_bytes = device_bytes,
                                 .object_bytes = OBJECT_BYTES,
                                 .daemon_lines = lines,
                                 .policy = "lru",
                                 .keep = s->options->keep,
                                 .quiet = s->options->quiet};
    int r = harness_start(&ho, &side->harness);
    if (r < 0)
        return r;
    r = harness_connect(&side->harness, "spillbench", &side->session);
    if (r == 0)
        r = spw_pool_open(side->session, "bench", &pool);
    if (r == 0)
        r = spw_space_open(pool, &so, &side->space);
    if (r < 0)
        return micro_say("space", r);
    (void)!cpus_pin_threads(side->harness.pid, "engine-", cpus_nth(1));
    side->n = n;
    return fill(s, side);
}

/* ── samples ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static uint64_t random_youngest(struct scale *s, const struct side *side)
{
    s->random = payload_mix(s->random, 1);
    return side->next - 1 - s->random % MIN(side->n, (uint64_t)YOUNGEST);
}

static void keys_draw(struct scale *s, const struct side *side)
{
    for (unsigned i = 0; i < LIST; i++)
        payload_key(s->options->seed, random_youngest(s, side), &s->keys[i]);
}

static int op_lookup(struct scale *s, const struct side *side, uint64_t *ret_ns)
{
    keys_draw(s, side);
    uint64_t start_ns = now_ns();
    long found = spw_lookup(side->space, s->keys, LIST, 0, s->hits);

    *ret_ns = now_ns() - start_ns;
    return found < 0 ? micro_say("lookup", (int)found) : 0;
}

static int op_acquire(struct scale *s, const struct side *side, uint64_t *ret_ns)
{
    keys_draw(s, side);
    uint64_t start_ns = now_ns();
    int r = spw_acquire(side->space, s->keys, LIST, 0, TIMEOUT_MS, s->views);

    if (r == 0)
        r = spw_release(side->space, s->views, LIST, 0);
    *ret_ns = now_ns() - start_ns;
    return r < 0 ? micro_say("acquire and release", r) : 0;
}

static int op_commit(struct scale *s, struct side *side, uint64_t *ret_ns)
{
    /* The oldest: their keys will not be drawn. */
    for (unsigned i = 0; i < LIST; i++)
        payload_key(s->options->seed, side->next - side->n + i, &s->keys[i]);
    int r = spw_delete(side->space, s->keys, LIST, NULL);
    if (r < 0)
        return micro_say("delete", r);
    uint64_t start_ns = now_ns();
    r = store(s, side, LIST);
    *ret_ns = now_ns() - start_ns;
    return r;
}

static int sample(struct scale *s, struct side *side, double *ret_ns)
{
    uint64_t ns = 0, sum_ns = 0;
    int r = 0;

    for (unsigned i = 0; r == 0 && i < LISTS; i++) {
        r = s->op == OP_LOOKUP    ? op_lookup(s, side, &ns)
            : s->op == OP_ACQUIRE ? op_acquire(s, side, &ns)
                                  : op_commit(s, side, &ns);
        sum_ns += ns;
    }
    *ret_ns = (double)sum_ns / LISTS / LIST;
    return r;
}

static int sample_many(void *ctx, double ret_ns[static METRICS_MAX])
{
    struct scale *s = ctx;

    return sample(s, &s->many, &ret_ns[0]);
}

static int sample_few(void *ctx, double ret_ns[static METRICS_MAX])
{
    struct scale *s = ctx;

    return sample(s, &s->few, &ret_ns[0]);
}

/* ── contests ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static int metadata(struct scale *s, struct figures *figures)
{
    cleanup_json struct json_object *tiers = NULL;
    struct process_usage usage;

    int r = admin_get(s->many.session, "tiers", &tiers);
    if (r == 0)
        r = process_usage(s->many.harness.pid, &usage);
    if (r < 0)
        return r;
    double n = admin_number(tiers, "metadata.objects"), n_max = admin_number(tiers, "metadata.objects_max");
    (void)figure_add(figures, "B", admin_number(tiers, "metadata.object_record_bytes"), "record, an object of %.0f", n);
    (void)figure_add(figures, "B", admin_number(tiers, "metadata.index_bytes") / n_max,
                     "index, a possible object of %.0f", n_max);
    (void)figure_add(figures, "B", admin_number(tiers, "metadata.ghost_bytes") / n_max,
                     "ghosts, a possible object of %.0f", n_max);
    return 0;
}

static int contests(struct scale *s, struct figures *figures)
{
    static const char *const names[OPS] = {"lookup", "acquire and release", "reserve and commit"};
    int r = 0;

    for (enum op op = 0; r == 0 && op < OPS; op++) {
        struct contest c = {.metrics = {{"", "ns/key", GOAL_AT_MOST, false, GOAL}},
                            .n_metrics = 1,
                            .neighbour = s->options->quick ? "a thousand objects" : "ten thousand objects",
                            .ours = sample_many,
                            .theirs = sample_few,
                            .ctx = s,
                            .seconds = s->options->seconds,
                            .quiet = s->options->quiet};

        s->op = op;
        snprintf(c.metrics[0].name, FIGURE_NAME_BYTES, "%s, lists of %d, %llu objects", names[op], LIST,
                 (unsigned long long)s->many.n);
        r = contest_run(&c, figures);
    }
    return r < 0 ? r : metadata(s, figures);
}

/* With n objects on the other side; what does not fit into memory is on a device. */
static int measure(struct scale *s, uint64_t n, struct figures *figures)
{
    uint64_t free_bytes = (uint64_t)sysconf(_SC_AVPHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t bytes = n * OBJECT_BYTES, room, device_bytes = 0;
    uint64_t dram_bytes = MIN(bytes + bytes / 8 + ROOM_BYTES, MAX(DRAM_BYTES, free_bytes / 2));

    if (bytes + ROOM_BYTES > dram_bytes) {
        int r = harness_room(&room);
        if (r < 0)
            return r;
        device_bytes = harness_device_bytes(bytes);
        if (device_bytes > room) {
            fprintf(stderr, "SKIP: %llu objects: a device file of %llu GiB does not fit\n", (unsigned long long)n,
                    (unsigned long long)(device_bytes / GIB));
            return 0;
        }
    }
    int r = side_open(s, &s->many, n, dram_bytes, device_bytes);
    if (r == 0)
        r = contests(s, figures);
    side_close(&s->many);
    return r;
}

int bench_scale(int argc, char **argv)
{
    static const uint64_t counts[] = {1000000, 10000000};
    static struct figures figures;
    cleanup_free struct scale *s = calloc(1, sizeof(*s));
    struct options o = {.seed = 1};
    int r = s ? 0 : -ENOMEM;

    options_parse(argc, argv, rows, doc, &o);
    if (o.seconds == 0)
        o.seconds = o.quick ? SECONDS_QUICK : SECONDS_DEFAULT;
    if (r == 0) {
        s->options = &o;
        s->few.harness = s->many.harness = HARNESS_NONE;
        cpus_pin(cpus_nth(0));
        r = side_open(s, &s->few, o.quick ? FEW / 10 : FEW, ROOM_BYTES, 0);
    }
    for (size_t i = 0; r == 0 && i < (o.quick || o.n_objects ? 1 : ARRAY_LEN(counts)); i++)
        r = measure(s, o.n_objects ? o.n_objects : o.quick ? FEW * 10 : counts[i], &figures);
    if (s)
        side_close(&s->few);
    return micro_end(&o, &figures, r);
}
