/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the uring module share.
 *
 *   uring.c          the kernel's ring: the only file that knows liburing. Stateless above struct uring_kernel
 *   uring_engine.c   struct uring: set-up, the turn (uring_run), polls, dispatch by user_data
 *   uring_block.c    device requests: depth, slots; blk_queue.c says who is next
 *   uring_region.c   regions, windows, chunk requests
 *   uring_work.c     jobs for the workers
 *   uring_gpu.c      the rings to GPUs' helpers
 *   uring_ahead.c    what is done beside the thread that opens
 */
#pragma once

#include <pthread.h>

#include "include/base/base.h"
#include "include/base/limits.h"
#include "include/base/list.h"
#include "io/blk_queue.h"
#include "io/gpu_port.h"
#include "io/grower.h"
#include "io/uring.h"
#include "io/workers.h"

#define URING_WINDOW_NONE UINT32_MAX

/* --- The kernel's ring (uring.c) --------------------------------------------------------------------------------- */

struct uring_kernel;

struct uring_event {
    uint64_t user_data;
    int32_t result;
};

int uring_kernel_new(uint32_t entries, uint32_t completions, uint32_t files, uint32_t windows, struct uring_caps *caps,
                     struct uring_kernel **ret_kernel, const char **ret_why);
void uring_kernel_free(struct uring_kernel *k);
/* On the engine's thread: from here on the restrictions hold. */
int uring_kernel_start(struct uring_kernel *k, struct uring_caps *caps);

/* False: the submission queue is full, submit first. part_bytes: the first so many of its bytes. */
bool uring_kernel_prep_blk(struct uring_kernel *k, const struct io_blk *blk, void *mem, uint32_t part_bytes,
                           uint32_t window, uint64_t user_data);
bool uring_kernel_prep_read(struct uring_kernel *k, int fd, void *mem, uint32_t len_bytes, uint64_t user_data);
bool uring_kernel_prep_poll(struct uring_kernel *k, int fd, uint64_t user_data);
bool uring_kernel_prep_poll_remove(struct uring_kernel *k, uint64_t target, uint64_t user_data);

uint32_t uring_kernel_unsubmitted(const struct uring_kernel *k);
/* One system call: submits, and lets completions that are due happen. */
int uring_kernel_submit(struct uring_kernel *k);
/* The same, and sleeps until a completion or the timeout. 0 in either case. */
int uring_kernel_sleep(struct uring_kernel *k, uint64_t timeout_ns);
/* A completion is there, or is to be had by entering the kernel: what uring_kernel_reap() would look for. */
bool uring_kernel_is_due(const struct uring_kernel *k);
/* Enters the kernel only if it has asked for it. */
uint32_t uring_kernel_reap(struct uring_kernel *k, struct uring_event *events, uint32_t n_max, bool *ret_entered);

int uring_kernel_set_file(struct uring_kernel *k, uint32_t index, int fd); /* fd -1: none */
/* mem NULL: none. -ENOMEM: above the limit on locked memory. */
int uring_kernel_set_window(struct uring_kernel *k, uint32_t index, void *mem, uint64_t len_bytes);

/* --- struct uring ------------------------------------------------------------------------------------------------ */

/* What a completion is about: the top byte of user_data. Then 24 bits of the slot's generation and 32 of its index. */
enum uring_kind { URING_KIND_BLK = 1, URING_KIND_POLL, URING_KIND_POLL_REMOVE, URING_KIND_WAKE };

/* A device request in the kernel. */
struct uring_slot {
    struct io_blk *blk; /* NULL: free */
    uint32_t generation;
    uint32_t next_free;
    uint32_t part_bytes; /* of the request, that this slot's are */
};

/*
 *   FREE ─arm─▶ WANTED ─submit─▶ ARMED ─completion─▶ FREE
 *   WANTED ─cancel─▶ FREE;  ARMED ─cancel─▶ CANCELLING ─completion of the poll─▶ FREE
 */
enum uring_poll_state { URING_POLL_FREE, URING_POLL_WANTED, URING_POLL_ARMED, URING_POLL_CANCELLING };
struct uring_poll {
    struct list link; /* on polls_free, polls_wanted or polls_cancelled; in the last only until POLL_REMOVE is queued */
    uint64_t token;
    struct uring_gpu *gpu; /* whose doorbell it is; NULL: the owner's */
    uint32_t generation;
    int fd;
    enum uring_poll_state state;
};

/* The ring to one GPU's helper. */
struct uring_gpu {
    struct gpu_port *port; /* NULL: none */
    uint64_t poll;         /* of its doorbell; 0: not armed */
    bool is_deaf;          /* the doorbell's other end is closed */
};

struct uring_device {
    int fd; /* -1: free */
    uint32_t depth;
    uint32_t in_flight;
    struct blk_queue queue;
};

struct uring_region {
    void *mem; /* NULL: free */
    uint64_t size_bytes;
    struct memory_chunk *chunk; /* NULL: bounce memory */
    uint32_t first_window;      /* URING_WINDOW_NONE: not registered */
};

struct uring_job {
    struct list link; /* on jobs_free */
    struct workers_job job;
    struct uring *uring;
    struct io_work *work;
};

struct uring_grow {
    struct list link; /* on grows_free */
    struct grower_job job;
    struct uring *uring;
    struct io_chunk *chunk;
};

#define AHEAD_THREADS 3 /* two reads keep a device busy */

struct uring_ahead {
    pthread_mutex_t lock;
    pthread_cond_t more, done;
    struct list jobs; /* io_ahead: no thread has taken it */
    bool is_stopping;
    uint32_t n_threads;
    pthread_t threads[AHEAD_THREADS];
};

struct uring {
    struct io_backend backend;
    struct engine_queue queue;
    struct uring_kernel *kernel;
    struct uring_config config;
    struct uring_caps caps;
    bool records_by_collapse;
    struct uring_stat stat;
    bool is_started;
    uint64_t wake_value; /* where the kernel reads wake_fd to */
    bool is_wake_armed;

    struct uring_slot *slots;
    uint32_t first_free_slot;
    struct uring_device *devices;
    uint32_t next_device; /* round robin */
    uint32_t weights[IO_LANES];
    struct uring_lane_stat lanes[IO_LANES];
    struct list failed_blks; /* refused at submit; done() comes from the turn */

    struct uring_poll *polls;
    struct list polls_free, polls_wanted, polls_cancelled;

    struct uring_region *regions;
    uint32_t n_regions_max;
    uint8_t *windows; /* 1: in use */
    uint32_t n_windows;

    struct uring_job *jobs;
    struct list jobs_free;
    struct list jobs_ready;   /* workers_job: resolved, handed to the pool once a turn */
    struct list works_queued; /* io_work: no job was free */
    struct list failed_works;
    struct list works_here;    /* io_work: the engine does them, some in each turn */
    uint64_t works_here_bytes; /* that are left of them */
    uint32_t work_here_at;     /* of the first: what is done */
    char *granule;

    struct uring_gpu gpus[GPUS_MAX];
    uint64_t gpu_mask;       /* those that are there */
    struct list failed_dmas; /* for a GPU that is not there */

    struct uring_grow grows[GROW_REQUESTS_MAX];
    struct list grows_free;
    struct list chunks_queued; /* io_chunk: no grow was free */
    struct list failed_chunks;
    uint32_t n_growing;

    struct uring_ahead ahead;
};

static inline struct uring *uring_of(struct io_backend *be)
{
    return container_of(be, struct uring, backend);
}

static inline uint64_t uring_user_data(enum uring_kind kind, uint32_t generation, uint32_t index)
{
    return (uint64_t)kind << 56 | (uint64_t)(generation & 0xffffff) << 32 | index;
}

/* uring_engine.c */
int uring_poll_arm_gpu(struct uring *u, int fd, struct uring_gpu *gpu, uint64_t *ret_poll);

/* uring_gpu.c */
void uring_gpu_init(struct uring *u);
void uring_gpu_deinit(struct uring *u);
void uring_dma_submit(struct io_backend *be, struct io_dma *dma);
void uring_gpu_fill(struct uring *u);
uint32_t uring_gpu_take(struct uring *u); /* what has ended, or failed at once: how many */
bool uring_gpu_peek(const struct uring *u);
bool uring_gpu_is_idle(const struct uring *u);
/* Arms the doorbells of those with something in flight; then false, if a completion is there: do not sleep. */
void uring_gpu_arm(struct uring *u);
bool uring_gpu_sleep(struct uring *u);
void uring_gpu_wake(struct uring *u);
void uring_gpu_polled(struct uring *u, struct uring_gpu *gpu);

/* uring_block.c */
int uring_block_init(struct uring *u);
void uring_block_submit(struct io_backend *be, struct io_blk *blk);
void uring_block_urge(struct io_backend *be, struct io_blk *blk);
int uring_block_now(struct io_backend *be, enum io_blk_op op, uint32_t dev, uint64_t off_bytes, void *mem,
                    uint64_t len_bytes);
/* Moves what the depths allow into the submission queue. False: that is full, and there is more. */
bool uring_block_fill(struct uring *u);
bool uring_block_complete(struct uring *u, uint32_t generation, uint32_t index, int32_t result);
uint32_t uring_block_fail(struct uring *u);

/* uring_region.c */
int uring_region_init(struct uring *u);
void uring_region_deinit(struct uring *u);
int uring_bounce_alloc(struct io_backend *be, uint64_t size_bytes, struct io_buf *ret_buf, void **ret_mem);
void uring_chunk_request(struct io_backend *be, struct io_chunk *chunk);
void uring_records_touch(struct io_backend *be, void *mem, uint64_t size_bytes);
uint64_t uring_chunk_survived(struct io_backend *be, uint32_t region);
void uring_chunk_close(struct io_backend *be, uint32_t region);
uint32_t uring_chunk_fail(struct uring *u);
/* The address, and the window if the range lies in one that is registered. NULL: no such range. */
void *uring_region_resolve(const struct uring *u, struct io_buf buf, uint64_t len_bytes, uint32_t *ret_window);

/* uring_ahead.c. Not after uring_start(). */
void uring_ahead_init(struct uring *u);
void uring_ahead_deinit(struct uring *u);
void uring_ahead_begin(struct io_backend *be, struct io_ahead *job);
int uring_ahead_wait(struct io_backend *be, struct io_ahead *job);
void uring_ahead_over(struct io_backend *be);

/* uring_work.c */
int uring_work_init(struct uring *u);
void uring_work_submit(struct io_backend *be, struct io_work *work);
void uring_work_flush(struct uring *u);    /* hands the batch of this turn to the pool */
uint32_t uring_work_here(struct uring *u); /* does this turn's share; how many */
uint32_t uring_work_fail(struct uring *u);
