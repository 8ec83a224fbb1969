/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scattered blocks out, in, and both ways at once, shape by shape, beside the link. All blocks are resident in the daemon's
 * memory. Before each shape is measured, all of its bytes go out and back once, and are compared.
 */
#include <stdio.h>

#include "client/bench/gpu.h"

#define SMALL_GOAL 0.95 /* pieces of less than 16 KiB */

static int contest(struct gpu_bench *b, const char *name, double goal, sample_fn ours, sample_fn theirs)
{
    struct contest c = {.metrics = {{"", "GB/s", GOAL_AT_LEAST, false, goal}},
                        .n_metrics = 1,
                        .neighbour = GPU_LINK,
                        .ours = ours,
                        .theirs = theirs,
                        .ctx = b,
                        .seconds = b->options->seconds,
                        .quiet = b->options->quiet};

    snprintf(c.metrics[0].name, FIGURE_NAME_BYTES, "%s, pieces of %u KiB, objects of %u KiB", name,
             (unsigned)(b->set.piece_bytes / KIB), (unsigned)(b->set.item_bytes / KIB));
    return contest_run(&c, b->micro->figures);
}

static void say_cpu(struct gpu_bench *b, const char *way)
{
    char what[FIGURE_NAME_BYTES / 2];

    snprintf(what, sizeof(what), "%s, %u KiB in objects of %u KiB", way, (unsigned)(b->set.piece_bytes / KIB),
             (unsigned)(b->set.item_bytes / KIB));
    gpu_cpu_say(&b->cpu, what, b->micro->figures);
}

static int measure(struct gpu_bench *b)
{
    double goal = b->set.piece_bytes < 16 * KIB ? SMALL_GOAL : GPU_LINK_GOAL;
    int r = gpu_set_check(b);

    b->both = false;
    if (r == 0)
        r = contest(b, "spill", goal, gpu_set_sample_spill, gpu_dma_sample_out);
    if (r == 0) {
        say_cpu(b, "spill");
        r = contest(b, "fetch", goal, gpu_set_sample_fetch, gpu_dma_sample_in);
    }
    if (r == 0)
        say_cpu(b, "fetch");
    b->both = true;
    if (r == 0)
        r = contest(b, "both ways", GPU_BOTH_GOAL, gpu_set_sample_both, gpu_dma_sample_in);
    b->both = false;
    if (r == 0)
        say_cpu(b, "both ways");
    return r;
}

int gpu_blocks_measure(struct micro *m)
{
    static const struct {
        uint32_t piece_bytes, item_bytes;
    } all[] = {{2 * MIB, 2 * MIB},   {16 * KIB, 2 * MIB},  {4 * KIB, 2 * MIB}, {256 * KIB, 256 * KIB},
               {64 * KIB, 64 * KIB}, {16 * KIB, 16 * KIB}, {4 * KIB, 4 * KIB}};
    struct gpu_bench *b = m->ctx;
    int r = gpu_driver_open(b, false);

    b->micro = m;
    for (size_t i = 0; r == 0 && i < (b->options->quick ? 2 : ARRAY_LEN(all)); i++) {
        r = gpu_set_open(b, &(struct gpu_shape){.piece_bytes = all[i].piece_bytes,
                                                .item_bytes = all[i].item_bytes,
                                                .class_id = SPW_CLASS_KV,
                                                .durability = SPW_CACHE});
        if (r == 0)
            r = measure(b);
        if (r == 0)
            r = gpu_set_close(b);
    }
    return r;
}
