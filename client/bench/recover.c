/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How soon a daemon that was killed has its pieces again: SIGKILL, a new process, and the time until it has answered a
 * lookup; and what of that was its recovery, as it says itself. On a machine that others use as well, CPU time says more.
 * Beside it what cannot be avoided: reading as many bytes of log from the same device, in its pages' order and past every
 * cache, and putting as many records into a table of new memory, with an index at random. One thread; recovery has others
 * beside it, which read ahead and touch memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "client/bench/admin.h"
#include "client/bench/bench.h"
#include "client/bench/compare.h"
#include "client/bench/devices.h"
#include "client/bench/memory.h"
#include "client/bench/micro.h"
#include "client/bench/payload.h"
#include "client/bench/process.h"
#include "client/bench/recover_log.h"
#include "include/base/cleanup.h"

#define COUNT_QUICK UINT64_C(20000)
#define DRAM_BYTES (256 * MIB)
#define LIST 64
#define READ_BYTES MIB
#define RECORD_BYTES 128 /* of the daemon's */
#define GOAL_S 2.0       /* up to ten million */
#define GOAL_COUNT_MAX UINT64_C(10000000)

#define SECONDS_DEFAULT 3
#define SECONDS_QUICK 0.2

static const struct argp_option rows[] = {
    {"objects", OPTION_OBJECTS, "N", 0, "so many pieces (100,000, then 1,000,000)", 0},
    {"devices", OPTION_DEVICES, "WORD", 0, "only on this: file, loop (a sparse file below; where files have no room)",
     0},
    ROW_SECONDS,
    ROW_SEED,
    ROW_KEEP,
    ROW_QUIET,
    ROW_QUICK,
    ROW_OUTPUT,
    {0}};
static const char doc[] = "Measures how soon a daemon that was killed has its pieces again.";
static const char *const words[] = {"file", "loop", NULL};

struct recover {
    const struct options *options;
    struct recover_log log;
    struct devices devices;
    struct harness harness;
    uint64_t log_off_bytes, log_bytes; /* on the device, and of that what was read */
    uint64_t random;
    double pieces; /* that the daemon has found, in its last life */
};

/* ── the daemon ─────────────────────────────────────────────────────────────────────────────────────────────────── */

/* All of these must be there, on the device. */
static int look_up(struct recover *v, spw_session *session)
{
    struct spw_key keys[LIST];
    struct spw_hit hits[LIST];
    spw_space *space;
    spw_pool *pool;
    int r = spw_pool_open(session, v->log.pool, &pool);

    if (r == 0)
        r = spw_space_open(pool, &v->log.space, &space);
    if (r < 0)
        return micro_say("space", r);
    for (unsigned i = 0; i < LIST; i++) {
        v->random = payload_mix(v->random, 1);
        payload_key(v->log.seed, v->random % v->log.n, &keys[i]);
    }
    long found = spw_lookup(space, keys, LIST, 0, hits);
    if (found == LIST)
        return 0;
    return micro_say("lookup of what was there", found < 0 ? (int)found : 0);
}

static int ask(struct recover *v, spw_session *session, double *ret_recovery_s)
{
    cleanup_json struct json_object *status = NULL;
    cleanup_json struct json_object *devices = NULL;
    int r = admin_get(session, "status", &status);

    if (r == 0)
        r = admin_get(session, "devices", &devices);
    if (r < 0)
        return r;
    v->pieces = admin_number(devices, "devices.partitions.recovered_pieces");
    v->log_bytes = (uint64_t)admin_number(devices, "devices.partitions.recovered_log_bytes");
    *ret_recovery_s = admin_number(status, "engines.recovery_ns") * 1e-9;
    return 0;
}

static int sample_daemon(void *ctx, double ret_values[static METRICS_MAX])
{
    struct recover *v = ctx;
    cleanup_(spw_close_p) spw_session *session = NULL;
    struct process_usage usage = {0};

    harness_kill(&v->harness);
    uint64_t start_ns = now_ns();
    int r = harness_again(&v->harness);
    if (r == 0)
        r = harness_connect(&v->harness, "spillbench", &session);
    if (r == 0)
        r = look_up(v, session);
    double answer_s = seconds_since(start_ns), recovery_s = 0;
    if (r == 0)
        r = process_usage(v->harness.pid, &usage);
    if (r == 0)
        r = ask(v, session, &recovery_s);
    ret_values[0] = recovery_s;
    ret_values[1] = (double)v->log.n / recovery_s * 1e-6;
    ret_values[2] = answer_s;
    ret_values[3] = usage.cpu_s;
    return r;
}

/* ── the ceiling ────────────────────────────────────────────────────────────────────────────────────────────────── */

static int read_log(const struct recover *v)
{
    cleanup_close int fd = open(v->devices.paths[0], O_RDONLY | O_DIRECT | O_CLOEXEC);
    cleanup_free char *mem = aligned_alloc(SECTOR_BYTES, READ_BYTES);

    if (fd < 0 || !mem)
        return fd < 0 ? -errno : -ENOMEM;
    for (uint64_t at = 0; at < v->log_bytes; at += READ_BYTES) {
        uint64_t size_bytes = MIN(READ_BYTES, v->log_bytes - at);
        ssize_t n = pread(fd, mem, size_bytes, (off_t)(v->log_off_bytes + at));

        if (n < 0 || (uint64_t)n < size_bytes)
            return n < 0 ? -errno : -EIO;
    }
    return 0;
}

/* The records one after the other; each has its number where its key's hash says, or in the next place that is free. */
static void records_insert(uint64_t n, uint64_t n_slots, char *records, uint32_t *slots)
{
    for (uint64_t i = 0; i < n; i++) {
        uint64_t at = payload_mix(i, 1) & (n_slots - 1);

        memset(records + i * RECORD_BYTES, (int)i, RECORD_BYTES);
        while (slots[at])
            at = (at + 1) & (n_slots - 1);
        slots[at] = (uint32_t)i + 1;
    }
}

static int table_fill(uint64_t n)
{
    uint64_t n_slots = 64;

    while (n_slots * 2 < n * 3)
        n_slots *= 2;
    uint64_t records_bytes = n * RECORD_BYTES, slots_bytes = n_slots * sizeof(uint32_t);
    char *records = memory_map(records_bytes, MEMORY_SHARED_HUGE);
    uint32_t *slots = memory_map(slots_bytes, MEMORY_SHARED_HUGE);

    if (records && slots)
        records_insert(n, n_slots, records, slots);
    if (records)
        memory_unmap(records, records_bytes);
    if (slots)
        memory_unmap(slots, slots_bytes);
    return records && slots ? 0 : -ENOMEM;
}

static int sample_ceiling(void *ctx, double ret_values[static METRICS_MAX])
{
    struct recover *v = ctx;
    clock_t before = clock();
    uint64_t start_ns = now_ns();
    int r = read_log(v);

    if (r == 0)
        r = table_fill(v->log.n);
    double s = seconds_since(start_ns);
    if (r < 0)
        fprintf(stderr, "spillbench: the log's bytes and a table of %llu: %s\n", (unsigned long long)v->log.n,
                strerror(-r));
    ret_values[0] = ret_values[2] = s;
    ret_values[3] = (double)(clock() - before) / CLOCKS_PER_SEC;
    ret_values[1] = (double)v->log.n / s * 1e-6;
    return r;
}

/* ── contests ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static int contest(struct recover *v, struct figures *figures)
{
    static const char *const names[] = {"recovery", "pieces recovered a second", "first answer after SIGKILL",
                                        "CPU time until then"};
    struct contest c = {.metrics = {{"", "s", v->log.n <= GOAL_COUNT_MAX ? GOAL_AT_MOST : GOAL_NONE, true, GOAL_S},
                                    {"", "M/s", GOAL_NONE, false, 0},
                                    {"", "s", GOAL_NONE, false, 0},
                                    {"", "s", GOAL_NONE, false, 0}},
                        .n_metrics = ARRAY_LEN(names),
                        .neighbour = "its log read, and a table filled",
                        .ours = sample_daemon,
                        .theirs = sample_ceiling,
                        .ctx = v,
                        .seconds = v->options->seconds,
                        .quiet = v->options->quiet};

    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        snprintf(c.metrics[i].name, FIGURE_NAME_BYTES, "%s, %llu pieces", names[i], (unsigned long long)v->log.n);
    int r = contest_run(&c, figures);
    if (r < 0)
        return r;
    (void)figure_add(figures, "MiB", (double)v->log_bytes / (double)MIB, "log of %llu pieces",
                     (unsigned long long)v->log.n);
    figure_goal(figure_add(figures, "pieces", (double)v->log.n - v->pieces, "not found again, of %llu pieces",
                           (unsigned long long)v->log.n),
                GOAL_AT_MOST, 0);
    return 0;
}

static int device_make(struct recover *v)
{
    uint64_t size_bytes = recover_device_bytes(v->log.n), room;
    int r = harness_room(&room);

    if (r < 0)
        return r;
    bool is_loop = !options_choose(v->options->devices, "file") || (!v->options->devices && size_bytes > room / 4 * 3);
    r = devices_init(&v->devices, is_loop ? DEVICES_LOOPS_SPARSE : DEVICES_FILES, 1, size_bytes);
    if (r < 0)
        fprintf(stderr, "spillbench: a device of %llu MiB in %s: %s\n", (unsigned long long)(size_bytes / MIB),
                v->devices.folder, r == -ENOTSUP ? "loop devices need root and a kernel that has them" : strerror(-r));
    return r;
}

static int daemon_make(struct recover *v)
{
    char lines[64];

    snprintf(lines, sizeof(lines), "max_objects = %llu\n", (unsigned long long)(v->log.n + v->log.n / 8));
    struct harness_options ho = {.dram_bytes = DRAM_BYTES,
                                 .n_devices = 1,
                                 .device_paths = {v->devices.paths[0]},
                                 .is_formatted = true,
                                 .daemon_lines = lines,
                                 .keep = v->options->keep,
                                 .quiet = v->options->quiet};

    return harness_start(&ho, &v->harness);
}

static int measure(const struct options *o, uint64_t n, struct figures *figures)
{
    struct recover v = {
        .options = o,
        .log = {.n = n,
                .seed = o->seed,
                .pool = "bench",
                .space = {.item_bytes = SECTOR_BYTES,
                          .class_id = SPW_CLASS_KV,
                          .durability = SPW_DURABLE,
                          .digest = "recover"}},
        .harness = HARNESS_NONE,
        .random = o->seed,
    };
    int r = device_make(&v);

    if (r == 0)
        r = recover_log_write(v.devices.paths[0], &v.log, &v.log_off_bytes);
    if (r == 0)
        r = daemon_make(&v);
    if (r == 0)
        r = contest(&v, figures);
    harness_deinit(&v.harness);
    if (!o->keep) /* the config that stays names it */
        devices_deinit(&v.devices);
    return r;
}

int bench_recover(int argc, char **argv)
{
    static const uint64_t counts[] = {100000, 1000000};
    static struct figures figures;
    struct options o = {.seed = 1};
    int r = 0;

    options_parse(argc, argv, rows, doc, &o);
    options_check_choice("devices", o.devices, words);
    if (o.seconds == 0)
        o.seconds = o.quick ? SECONDS_QUICK : SECONDS_DEFAULT;
    for (size_t i = 0; r == 0 && i < (o.quick || o.n_objects ? 1 : ARRAY_LEN(counts)); i++)
        r = measure(&o, o.n_objects ? o.n_objects : o.quick ? COUNT_QUICK : counts[i], &figures);
    return micro_end(&o, &figures, r);
}
