/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A GPU's memory and the store: rows, each with a daemon of its own and measured in a child of its own, beside what the link
 * or the device can do in the same run. Rows may be chosen, so that a run is resumed where it was cut off. One thread.
 */
#include <stdio.h>
#include <string.h>

#include "client/bench/bench.h"
#include "client/bench/devices.h"
#include "client/bench/gpu.h"
#include "client/bench/live.h"
#include "include/base/cleanup.h"

#define PINNED_BYTES (256 * MIB)
#define PINNED_BYTES_QUICK (32 * MIB)
#define DRAM_BYTES_MIN (64 * MIB)
#define RAW_FILE_BYTES (4 * GIB)
#define SECONDS_DEFAULT 3
#define SECONDS_QUICK 0.05

static const char doc[] = "Measures blocks between a GPU's memory and the store, beside the link and the device.";

#define WORDS "blocks, calls, clients, latency, idle, neighbours, disk, weights, stored-weights, register"

static const struct argp_option options[] = {ROW_ONLY(WORDS), ROW_SECONDS, ROW_KEEP, ROW_QUIET,
                                             ROW_QUICK,       ROW_OUTPUT,  {0}};

/* Memory is a share of the set, or so many bytes, if the rest is to be on a device. */
struct row {
    const char *word;
    micro_fn measure;
    uint64_t set_bytes, quick_bytes;
    unsigned dram_percent;
    uint64_t dram_bytes;
    unsigned disk_percent; /* 0: no device; more than 100: it is written again and again */
    bool starts_clients;   /* by fork(): it has no session of its own */
};

static const struct row rows[] = {
    {"blocks", gpu_blocks_measure, 2 * GIB, 16 * MIB, 200, 0, 0, false},
    {"calls", gpu_calls_measure, 2 * GIB, 16 * MIB, 0, 0, 0, false},
    {"clients", gpu_clients_measure, 512 * MIB, 16 * MIB, 800, 0, 0, true}, /* of each of four */
    {"latency", gpu_latency_measure, 256 * MIB, 16 * MIB, 200, 0, 0, false},
    {"idle", gpu_idle_measure, 1 * GIB, 16 * MIB, 200, 0, 0, false},
    {"neighbours", gpu_neighbours_measure, 1 * GIB, 32 * MIB, 200, 0, 0, false},
    {"disk", gpu_disk_measure, 8 * GIB, 96 * MIB, 0, 1 * GIB, 200, false},
    {"weights", gpu_weights_measure, 16 * GIB, 16 * MIB, 125, 0, 0, false},
    {"stored-weights", gpu_stored_weights_measure, 16 * GIB, 96 * MIB, 0, 1 * GIB, 100, false},
    {"register", gpu_register_measure, 64 * GIB, 256 * MIB, 100, 0, 0, true},
};
static const char *const words[] = {"blocks", "calls",   "clients",        "latency",  "idle", "neighbours",
                                    "disk",   "weights", "stored-weights", "register", NULL};
static_assert(ARRAY_LEN(words) == ARRAY_LEN(rows) + 1, "a word for each row");

/* ── what there is room for ─────────────────────────────────────────────────────────────────────────────────────── */

/* What is free, and hugepages that were set aside, of which an eighth is left alone. */
static uint64_t memory_free_bytes(void)
{
    cleanup_fclose FILE *f = fopen("/proc/meminfo", "re");
    unsigned long long kib = 0, huge = 0, huge_kib = 0;
    char line[128];

    while (f && fgets(line, sizeof(line), f)) {
        (void)sscanf(line, "MemAvailable: %llu kB", &kib);
        (void)sscanf(line, "HugePages_Free: %llu", &huge);
        (void)sscanf(line, "Hugepagesize: %llu kB", &huge_kib);
    }
    return (kib + huge * huge_kib) * KIB / 8 * 7;
}

static uint64_t dram_bytes(const struct row *row, uint64_t set_bytes, bool quick)
{
    uint64_t bytes = row->disk_percent > 0 && !quick ? row->dram_bytes : set_bytes * row->dram_percent / 100;

    return MAX(bytes, DRAM_BYTES_MIN);
}

static uint64_t disk_bytes(const struct row *row, uint64_t set_bytes)
{
    return row->disk_percent > 0 ? harness_device_bytes(set_bytes * row->disk_percent / 100) : 0;
}

/* Halves the set until it fits. */
static uint64_t set_bytes(const struct row *row, bool quick)
{
    uint64_t bytes = quick ? row->quick_bytes : row->set_bytes, room = 0;

    while (bytes > row->quick_bytes && dram_bytes(row, bytes, quick) + PINNED_BYTES > memory_free_bytes())
        bytes /= 2;
    if (row->disk_percent > 0 && harness_room(&room) < 0)
        return 0;
    while (row->disk_percent > 0 && bytes > row->quick_bytes &&
           disk_bytes(row, bytes) + MIN(bytes, RAW_FILE_BYTES) > room / 8 * 7)
        bytes /= 2;
    return bytes;
}

/* ── one row ────────────────────────────────────────────────────────────────────────────────────────────────────── */

struct run {
    struct gpu_bench bench;
    const struct row *row;
};

static int row_measure(struct micro *m)
{
    struct run *run = m->ctx;
    struct micro micro = *m;

    micro.ctx = &run->bench;
    run->bench.micro = &micro;
    return run->row->measure(&micro);
}

static int row_run(struct run *run, struct figures *figures)
{
    struct gpu_bench *b = &run->bench;
    cleanup_(harness_deinit) struct harness h = HARNESS_NONE;
    const struct harness_options ho = {.pools = "[pool bench]\ngpu = 64 GiB\n", /* whatever the rows ask for */
                                       .dram_bytes = dram_bytes(run->row, b->set_bytes, b->options->quick),
                                       .device_bytes = disk_bytes(run->row, b->set_bytes),
                                       .object_bytes = MIB,
                                       .policy = run->row->disk_percent > 0 ? "lru" : NULL,
                                       .keep = b->options->keep,
                                       .quiet = b->options->quiet};
    char path[PATH_MAX];
    int r = harness_start(&ho, &h);

    if (r < 0)
        return r;
    snprintf(path, sizeof(path), "%s/disk0.spill", h.folder);
    b->disk_paths[0] = path;
    b->daemon_pid = h.pid;
    r = micro_child(b->options, h.socket_path, run->row->starts_clients ? NULL : "bench", 0, row_measure, run, figures);
    int status = harness_finish(&h, r < 0 ? BENCH_BROKEN : BENCH_OK);
    return r < 0 || status == BENCH_OK ? r : -ECHILD;
}

/* With a file for raw writes, if it is about a device. */
static int row_measure_all(struct run *run, struct figures *figures)
{
    struct gpu_bench *b = &run->bench;
    struct devices devices = {.n = 0};
    int r = 0;

    b->set_bytes = set_bytes(run->row, b->options->quick);
    b->pinned_bytes = b->options->quick ? PINNED_BYTES_QUICK : PINNED_BYTES;
    b->disk_bytes = MIN(b->set_bytes, RAW_FILE_BYTES);
    if (b->set_bytes == 0)
        return -ENOSPC;
    if (run->row->disk_percent > 0)
        r = devices_init(&devices, DEVICES_FILES, 1, b->disk_bytes);
    if (r < 0)
        fprintf(stderr, "spillbench: %s: %s\n", devices.folder, strerrordesc_np(-r));
    b->disk_paths[1] = devices.paths[0];
    if (r == 0)
        r = row_run(run, figures);
    b->disk_paths[0] = b->disk_paths[1] = NULL;
    devices_deinit(&devices);
    return r;
}

int bench_gpu(int argc, char **argv)
{
    static struct figures figures;
    static struct run run;
    struct options o = {.seed = 1};
    int r;

    options_parse(argc, argv, options, doc, &o);
    options_check_choice("only", o.only, words);
    if (o.seconds == 0)
        o.seconds = o.quick ? SECONDS_QUICK : SECONDS_DEFAULT;
    run.bench.options = &o;
    r = gpu_driver_probe(&run.bench);
    for (size_t i = 0; r == 0 && i < ARRAY_LEN(rows); i++) {
        if (!options_choose(o.only, rows[i].word))
            continue;
        run.row = &rows[i];
        r = live_interrupted() ? -EINTR : row_measure_all(&run, &figures);
    }
    return micro_end(&o, &figures, r);
}
