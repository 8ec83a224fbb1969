/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between gpu.c, which goes through the rows, and the files that measure one row each. A row has a daemon of its own and is
 * measured in a child, as a process that has called the CUDA driver cannot fork others that do.
 */
#pragma once

#include <sys/types.h>

#include "client/bench/compare.h"
#include "client/bench/gpu_cpu.h"
#include "client/bench/micro.h"
#include "include/spillway/gpu.h"
#include "io/cuda_driver.h"

#define GPU_LINK "large copies from and to pinned memory"
#define GPU_LINK_GOAL 0.98
#define GPU_BOTH_GOAL 0.95
#define GPU_TIMEOUT_MS 120000
#define GPU_PIECES_MAX 512

/* Blocks of one shape: a space, an attachment, lists of keys and ids, layouts. */
struct gpu_set {
    spw_space *space;
    spw_gpu *gpu;
    spw_gpu_layout *from, *to; /* the same, if there is only one memory */
    struct spw_key *keys;
    uint32_t *ids;
    int32_t *spill_statuses, *fetch_statuses; /* of all blocks, by their place in the list */
    uint32_t piece_bytes, item_bytes;
    uint32_t n; /* blocks */
};

/* A model's weights: tensors, each one range of memory. */
struct gpu_weights {
    spw_space *space;
    spw_gpu *gpu;
    spw_gpu_memory *memory; /* NULL: they lie in `cache` */
    uint64_t address;
    struct spw_gpu_range *ranges;
    int32_t *statuses;
    uint64_t tensor_bytes;
    uint32_t n;
};

struct gpu_bench {
    const struct options *options;
    const struct cuda_driver *cu;
    struct micro *micro; /* of this process */
    pid_t daemon_pid;
    uint64_t set_bytes, pinned_bytes;
    uint64_t disk_bytes;       /* of the raw device's file */
    const char *disk_paths[2]; /* the daemon's device, and the raw one */

    /* gpu_driver.c */
    struct CUstream_st *streams[2];
    struct CUevent_st *event;
    uint64_t cache, back; /* set_bytes of device memory: where blocks are, and where they are fetched to */
    uint64_t dma;         /* pinned_bytes of it, for large copies from and to `pinned` */
    char *pinned;

    struct gpu_set set;
    struct gpu_weights weights;
    struct gpu_cpu cpu;
    bool both; /* the ceiling's copies go both ways */
};

/* ── gpu_driver.c ───────────────────────────────────────────────────────────────────────────────────────────────── */

#define CU(b, call)                                                                                                    \
    ({                                                                                                                 \
        int cu_ = (b)->cu->call;                                                                                       \
        cu_ == NV_SUCCESS ? 0 : gpu_driver_say(#call, cu_);                                                            \
    })

/* Says what failed; -EIO. */
int gpu_driver_say(const char *what, int result);
/* Whether there is a GPU, asked in a child: 0, or a negative errno after it has said what is missing. */
must_check int gpu_driver_probe(struct gpu_bench *b);
/* Context, streams, pinned memory; `cache`, and `back` (one memory: the same). It all goes with the process. */
must_check int gpu_driver_open(struct gpu_bench *b, bool one_memory);
/* Device memory gets bytes that follow from their place and the seed; -EBADMSG: it does not hold these. */
must_check int gpu_driver_fill(struct gpu_bench *b, uint64_t memory, uint64_t size_bytes, uint64_t seed);
must_check int gpu_driver_check(struct gpu_bench *b, uint64_t memory, uint64_t size_bytes, uint64_t seed);

/* ── gpu_dma.c: the ceiling, and what one does without us ───────────────────────────────────────────────────────── */

/* Samples: GB/s of large copies, one way, or both ways with b->both. */
int gpu_dma_sample_out(void *ctx, double ret_values[static METRICS_MAX]);
int gpu_dma_sample_in(void *ctx, double ret_values[static METRICS_MAX]);
/* A row: the same scattered pieces by a loop of copies, and by one call for many. */
int gpu_calls_measure(struct micro *m);

/* ── gpu_set.c ──────────────────────────────────────────────────────────────────────────────────────────────────── */

struct gpu_shape {
    uint32_t piece_bytes, item_bytes;
    uint32_t class_id, durability; /* of enum spw_class, enum spw_durability */
    uint32_t number;               /* of the client: each has a space of its own */
};

/* For set_bytes of blocks in `cache`, fetched to `back`. */
must_check int gpu_set_open(struct gpu_bench *b, const struct gpu_shape *shape);
/* Deletes the blocks, detaches. */
must_check int gpu_set_close(struct gpu_bench *b);
must_check int gpu_set_forget(struct gpu_bench *b, uint32_t from, uint32_t n);
must_check int gpu_set_spill(struct gpu_bench *b, uint32_t from, uint32_t n, spw_gpu_job **ret_job);
must_check int gpu_set_fetch(struct gpu_bench *b, uint32_t from, uint32_t n, spw_gpu_job **ret_job);
/* Waits for the end of a job of these blocks, and frees it. -EIO if one of them was not moved. */
must_check int gpu_set_end(struct gpu_bench *b, bool is_fetch, uint32_t from, uint32_t n, spw_gpu_job *job);
/* All of it goes out and comes back, and its bytes are compared; it is stored afterwards. */
must_check int gpu_set_check(struct gpu_bench *b);

/* Moves of all blocks, or of half of them each way. Samples: GB/s; CPU time goes to b->cpu. */
int gpu_set_sample_spill(void *ctx, double ret_values[static METRICS_MAX]);
int gpu_set_sample_fetch(void *ctx, double ret_values[static METRICS_MAX]);
int gpu_set_sample_both(void *ctx, double ret_values[static METRICS_MAX]);

/*
 * Moves halves of the set in turns, two jobs under way, until that time (0: none) or until *stop. What it moved, and when it
 * began and ended, is there then.
 */
struct gpu_pumped {
    uint64_t bytes, start_ns, end_ns;
};
must_check int gpu_set_pump(struct gpu_bench *b, bool fetches, uint64_t until_ns, const bool *stop,
                            struct gpu_pumped *ret_pumped);

/* ── gpu_stat.c ─────────────────────────────────────────────────────────────────────────────────────────────────── */

/* What the daemon knows of its helper; a second old at most. */
struct gpu_numbers {
    pid_t helper_pid; /* 0: none */
    double lanes, staging_bytes, chunk_bytes, registered_bytes, register_ns, windows_failed;
};
must_check int gpu_numbers_get(spw_session *session, struct gpu_numbers *ret_numbers);
/* An average of sessions of `set`: attaches, as soon as there is a helper. */
must_check int gpu_attach(spw_space *space, spw_gpu **ret_gpu);

/* ── gpu_disk.c ─────────────────────────────────────────────────────────────────────────────────────────────────── */

#define GPU_RAW_READS "raw reads of the same file, 2 MiB, depth 32"
#define GPU_DISK_GOAL 0.95

/* Bytes that the daemon has read from, or written to, its device. */
must_check int gpu_disk_counted(struct gpu_bench *b, bool is_in, double *ret_bytes);
/* A sample: GB/s of raw reads of the daemon's file. */
int gpu_disk_sample_raw_in(void *ctx, double ret_values[static METRICS_MAX]);

/* ── rows ───────────────────────────────────────────────────────────────────────────────────────────────────────── */

int gpu_blocks_measure(struct micro *m);
int gpu_latency_measure(struct micro *m);
int gpu_idle_measure(struct micro *m);
int gpu_clients_measure(struct micro *m);
int gpu_neighbours_measure(struct micro *m);
int gpu_disk_measure(struct micro *m);
int gpu_weights_measure(struct micro *m);
int gpu_stored_weights_measure(struct micro *m);
int gpu_register_measure(struct micro *m);
