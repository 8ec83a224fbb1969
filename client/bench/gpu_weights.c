/* SPDX-License-Identifier: Apache-2.0 */
/* A model's weights, resident in the daemon's memory, into a GPU, beside the link. One thread. */
#include <stdio.h>

#include "client/bench/gpu.h"

#define GOAL 0.97

static int contest(struct gpu_bench *b)
{
    struct contest c = {.metrics = {{"", "GB/s", GOAL_AT_LEAST, false, GOAL}},
                        .n_metrics = 1,
                        .neighbour = GPU_LINK,
                        .ours = gpu_set_sample_fetch,
                        .theirs = gpu_dma_sample_in,
                        .ctx = b,
                        .seconds = b->options->seconds,
                        .quiet = b->options->quiet};

    snprintf(c.metrics[0].name, FIGURE_NAME_BYTES, "weights, memory to GPU, %llu MiB in objects of %u MiB",
             (unsigned long long)(b->set_bytes / MIB), (unsigned)(b->set.item_bytes / MIB));
    return contest_run(&c, b->micro->figures);
}

int gpu_weights_measure(struct micro *m)
{
    static const uint32_t sizes[] = {8 * MIB, 2 * MIB};
    struct gpu_bench *b = m->ctx;
    int r = gpu_driver_open(b, true);

    for (size_t i = 0; r == 0 && i < ARRAY_LEN(sizes); i++) {
        r = gpu_set_open(b, &(struct gpu_shape){.piece_bytes = sizes[i],
                                                .item_bytes = sizes[i],
                                                .class_id = SPW_CLASS_WEIGHTS,
                                                .durability = SPW_CACHE});
        if (r == 0)
            r = gpu_set_check(b);
        if (r == 0)
            r = contest(b);
        if (r == 0)
            r = gpu_set_close(b);
    }
    return r;
}
