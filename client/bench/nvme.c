/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Spilling to a device and fetching from it, beside fio on a device of the same kind: a file, a loop device (as root), and
 * two of either, striped. For each block size there is a daemon of its own whose memory holds a quarter of the blocks;
 * they are `scratch`, which is never dropped, as `cache` may be. Options choose rows; all of them together have a quarter
 * of an hour. One thread. nvme_contest.c tells how a row is measured.
 */
#include "client/bench/nvme.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "client/bench/bench.h"
#include "client/bench/ceiling_copy.h"
#include "client/bench/micro.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"
#include "include/base/units.h"

#define DATA_BYTES (1 * GIB) /* that can be fetched */
#define DATA_BYTES_QUICK (256 * MIB)
#define DRAM_SHARE 4
#define SAMPLE_SECONDS 0.5
#define SAMPLE_SECONDS_QUICK 0.2
#define CONTEST_SECONDS 3
#define CONTEST_SECONDS_QUICK 0.2
#define DEPTH_FILL 8
#define DEPTH_SMALL 32
#define SMALL_LIST 16

static const char doc[] = "Measures spilling and fetching beside fio, on files and loop devices.";

static const struct argp_option rows[] = {
    ROW_BLOCK,  ROW_DEPTH, ROW_ONLY("fetch, spill"), ROW_DEVICES, ROW_SECONDS, ROW_SEED, ROW_KEEP, ROW_QUIET, ROW_QUICK,
    ROW_OUTPUT, {0}};

static const struct nvme_setup setups[] = {
    {"file", "file", false, 1},
    {"loop", "loop", true, 1},
    {"two files", "files", false, 2},
    {"two loops", "loops", true, 2},
};
static const char *const setup_words[] = {"file", "loop", "files", "loops", NULL};
static const char *const way_words[] = {"fetch", "spill", NULL};
static const unsigned depths[] = {1, 8, 32};
static const uint64_t sizes[] = {64 * KIB, 256 * KIB, 2 * MIB};
#define SMALL_BYTES_MIN (4 * KIB) /* of many objects of different sizes, which are a row of their own */
#define SMALL_BYTES_MAX (32 * KIB)

/* Stores what will be fetched, and goes through it once: from then on each next one is on the device. */
static int fill(struct nvme *b)
{
    struct disk_load *l = &b->load;
    int r = disk_load_spill(l, b->data_bytes, 0);

    if (r < 0)
        return r;
    disk_load_stored(l, l->next);
    return disk_load_fetch(l, l->bytes, 0);
}

/* One of two or more, as the options and the kind of row allow. */
static bool depth_is_wanted(const struct nvme *b, unsigned depth)
{
    bool is_small = b->block_bytes_min < b->block_bytes;

    if (b->options->depth)
        return true; /* it is the only one */
    if (is_small || b->setup->n_devices > 1)
        return depth == DEPTH_SMALL;
    return !b->options->quick || depth == DEPTH_FILL;
}

static double speed_goal(const struct nvme *b, unsigned depth)
{
    if (depth == 1)
        return 0;
    return b->block_bytes_min < b->block_bytes ? 0.9 : 0.97;
}

/* Fetches, or after them spills, whose blocks go behind those of the fetches. */
static int measure_way(struct nvme *b, bool is_spill, struct figures *figures)
{
    const unsigned *all = b->options->depth ? &b->options->depth : depths;
    size_t n = b->options->depth ? 1 : ARRAY_LEN(depths);
    struct disk_load *l = &b->load;
    uint64_t next = l->n_stored;
    int r = 0;

    if (!options_choose(b->options->only, way_words[is_spill]))
        return 0;
    for (size_t i = 0; r == 0 && i < n; i++) {
        if (!depth_is_wanted(b, all[i]))
            continue;
        l->depth = all[i];
        if (is_spill)
            l->next = next;
        r = nvme_contest(b, is_spill, speed_goal(b, all[i]), figures);
        if (is_spill)
            next = l->next;
    }
    return r;
}

static int measure_ways(struct nvme *b, struct figures *figures)
{
    int r;

    b->load.depth = DEPTH_FILL;
    r = fill(b);
    uint64_t end = b->load.n_stored;
    if (r == 0)
        r = measure_way(b, false, figures);
    if (r == 0)
        r = disk_load_delete(&b->load, 0, end);
    return r < 0 ? r : measure_way(b, true, figures);
}

static int measure(struct micro *m)
{
    struct spw_space_options so = {.class_id = SPW_CLASS_KV, .durability = SPW_SCRATCH, .digest = "nvme"};
    cleanup_free struct hist *hist = calloc(1, sizeof(*hist));
    struct nvme *b = m->ctx;
    struct disk_load *l = &b->load;

    if (!hist)
        return -ENOMEM;
    *l = (struct disk_load){.seed = m->options->seed,
                            .block_bytes = b->block_bytes,
                            .block_bytes_min = b->block_bytes_min,
                            .list = b->block_bytes_min < b->block_bytes ? SMALL_LIST : 1,
                            .hist = hist};
    b->daemon_pid = m->daemon_pid;
    b->session = m->session;
    int r = spw_space_open(m->pool, &so, &l->space);
    if (r == 0)
        r = spw_queue_new(m->session, l->space, DISK_SLOTS, &l->queue);
    if (r < 0)
        return micro_say("space and queue", r);
    r = measure_ways(b, m->figures);
    spw_queue_free(l->queue);
    return r;
}

static int measure_size(struct nvme *b, uint64_t block_bytes_min, uint64_t block_bytes, struct figures *figures)
{
    char size[UNITS_TEXT_BYTES];
    const struct options *o = b->options;
    struct harness_options ho = {.dram_bytes = b->dram_bytes,
                                 .device_bytes = harness_device_bytes(2 * b->data_bytes) / b->setup->n_devices,
                                 .object_bytes = block_bytes_min / 2 + block_bytes / 2,
                                 .n_devices = b->setup->n_devices,
                                 .policy = "lru",
                                 .keep = o->keep,
                                 .quiet = o->quiet};

    if (nvme_is_late(b, size_print(block_bytes, size)))
        return 0;
    b->block_bytes_min = block_bytes_min;
    b->block_bytes = block_bytes;
    b->xxh3_ms_a_gb = ceiling_hash_ms_a_gb(ho.object_bytes / SMALL_BYTES_MIN * SMALL_BYTES_MIN);
    (void)figure_add(figures, "ms/GB", b->xxh3_ms_a_gb, "XXH3, %s%s, %s", block_bytes_min < block_bytes ? "4 to " : "",
                     size_print(block_bytes, size), b->setup->name);
    for (uint32_t i = 0; i < b->setup->n_devices; i++) {
        ho.device_paths[i] = b->devices.paths[i];
        /* A new file each time: the kernel may not be through with what the last daemon had in flight on the old one. */
        if (!b->setup->is_loop)
            (void)unlink(b->devices.paths[i]);
    }
    return micro_daemon(o, &ho, measure, b, figures);
}

static int measure_sizes(struct nvme *b, struct figures *figures)
{
    uint64_t only = b->options->block_bytes;
    int r = 0;

    if (only)
        return measure_size(b, only < sizes[0] ? SMALL_BYTES_MIN : only, only, figures);
    for (size_t i = 0; r == 0 && i < ARRAY_LEN(sizes); i++)
        if (!b->options->quick || i == 0)
            r = measure_size(b, sizes[i], sizes[i], figures);
    return r == 0 && b->setup == &setups[0] ? measure_size(b, SMALL_BYTES_MIN, SMALL_BYTES_MAX, figures) : r;
}

/* With the devices made. */
static int measure_devices(struct nvme *b, struct figures *figures)
{
    b->fio = (struct fio_job){.file_bytes = b->data_bytes / b->setup->n_devices};
    for (uint32_t i = 0; i < b->setup->n_devices; i++)
        b->fio.files[i] = b->devices.paths[b->setup->n_devices + i];
    int r = fio_fill(&b->fio);
    if (r == -ENOENT) {
        fprintf(stderr, "SKIP: nvme: fio is not installed\n");
        return 0;
    }
    return r < 0 ? r : measure_sizes(b, figures);
}

static int measure_setup(struct nvme *b, const struct nvme_setup *setup, struct figures *figures)
{
    uint64_t size_bytes = harness_device_bytes(2 * b->data_bytes) / setup->n_devices;
    int r = devices_init(&b->devices, setup->is_loop ? DEVICES_LOOPS : DEVICES_FILES, 2 * setup->n_devices, size_bytes);

    b->setup = setup;
    if (r == 0) {
        r = measure_devices(b, figures);
    } else if (r == -ENOTSUP) {
        fprintf(stderr, "SKIP: %s: loop devices need root and a kernel that has them\n", setup->name);
        r = 0;
    } else {
        fprintf(stderr, "spillbench: %s: %s\n", b->devices.folder, strerrordesc_np(-r));
    }
    devices_deinit(&b->devices);
    return r;
}

static int measure_setups(struct nvme *b, struct figures *figures)
{
    const struct options *o = b->options;
    size_t n = o->quick && !o->devices ? 2 : ARRAY_LEN(setups);
    int r = 0;

    for (size_t i = 0; r == 0 && i < n; i++)
        if (options_choose(o->devices, setups[i].word) && !nvme_is_late(b, setups[i].name))
            r = measure_setup(b, &setups[i], figures);
    return r;
}

int bench_nvme(int argc, char **argv)
{
    static struct figures figures;
    cleanup_free struct nvme *b = calloc(1, sizeof(*b));
    struct options o = {.seed = 1};

    options_parse(argc, argv, rows, doc, &o);
    options_check_choice("only", o.only, way_words);
    options_check_choice("devices", o.devices, setup_words);
    if (o.block_bytes % SMALL_BYTES_MIN != 0) {
        fprintf(stderr, "spillbench: --block: a multiple of 4 KiB; below 64 KiB: of 4 KiB to that\n");
        return EX_USAGE;
    }
    if (!b)
        return BENCH_BROKEN;
    o.seconds = o.seconds > 0 ? o.seconds : o.quick ? CONTEST_SECONDS_QUICK : CONTEST_SECONDS;
    b->options = &o;
    b->start_ns = now_ns();
    b->data_bytes = o.quick ? DATA_BYTES_QUICK : DATA_BYTES;
    b->dram_bytes = b->data_bytes / DRAM_SHARE;
    b->sample_seconds = o.quick ? SAMPLE_SECONDS_QUICK : SAMPLE_SECONDS;
    return micro_end(&o, &figures, measure_setups(b, &figures));
}
