/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The real backend (io/backend.h) of one engine: its io_uring, its devices and regions, its mailbox, and its access to
 * the worker and grower threads.
 *
 * Threads: uring_new(), uring_device_add(), uring_region_add(), bounce_alloc and blk_now may be called by the thread
 * that sets the engine up; uring_start() makes the calling thread the engine, and from then on everything is that
 * thread's, except uring_queue(), whose functions say who may call them.
 */
#pragma once

#include "include/base/base.h"
#include "io/backend.h"
#include "io/device.h"
#include "io/engine_queue.h"
#include "io/memory.h"

struct grower;
struct uring;
struct workers;

#define URING_SLEEP_FOR_EVER UINT64_MAX
#define URING_POLL_ERROR 0x8 /* POLLERR, in revents: also if the descriptor could not be polled at all */

/* From the best to the worst; uring_new() takes the best that the kernel has. */
enum uring_mode {
    URING_MODE_DEFER, /* SINGLE_ISSUER|DEFER_TASKRUN|TASKRUN_FLAG: completions are run when the engine asks */
    URING_MODE_COOP,  /* COOP_TASKRUN|TASKRUN_FLAG */
    URING_MODE_PLAIN, /* interrupts the engine whenever something completes */
};

/* What the kernel gave us; the daemon tells the admin. */
struct uring_caps {
    enum uring_mode mode;
    bool restricted;         /* only the operations in use are allowed on the ring */
    bool ring_fd_registered; /* system calls skip the descriptor table */
    bool windows;            /* memory can be registered at all */
    bool degraded_memlock;   /* some region could not be registered: slower, and its pages can be swapped */
    uint64_t memlock_limit_bytes;
    const char *note; /* what is missing and which knob changes it; NULL if nothing is */
};

struct uring_config {
    uint32_t entries;                 /* 0: DEFAULT_URING_ENTRIES */
    uint32_t devices_max;             /* 0: DEVICES_MAX */
    uint32_t polls_max;               /* 0: DEFAULT_POLLS */
    uint32_t works_max;               /* 0: DEFAULT_WORKS */
    uint32_t chunks_max;              /* 0: CHUNKS_MAX */
    enum uring_mode mode;             /* do not try a better one */
    struct workers *workers;          /* shared by the engines; NULL: work_submit answers -ENOSYS */
    bool lone_worker;                 /* there is one an engine: waking it for a copy gains nothing */
    struct grower *grower;            /* shared by the engines; NULL: chunk_request answers -ENOSYS */
    struct memory_chunk_config chunk; /* for chunk_request: what io_chunk does not say */

    void *ctx;
    /* A descriptor armed by uring_poll_arm() is readable, or revents has POLLERR, POLLHUP or POLLNVAL. */
    void (*on_poll)(void *ctx, uint64_t token, uint32_t revents);
    /* May be NULL. Memory was obtained, before io_chunk's done(): the daemon logs chunk->report. */
    void (*on_chunk)(void *ctx, uint32_t region, const struct memory_chunk *chunk);
    /* May be NULL. So much is not there now, but may be soon: it is waited for, MEMORY_WAIT_MS at most. */
    void (*on_chunk_wait)(void *ctx, uint64_t size_bytes, uint32_t node);
};

struct uring_stat {
    uint64_t reads, writes, flushes; /* handed to the kernel */
    uint64_t reads_done, writes_done, flushes_done;
    uint64_t read_bytes, written_bytes;
    uint64_t shorts, errors;          /* transfers that moved less than asked for; that failed */
    uint64_t unregistered;            /* transfers outside registered memory */
    uint64_t batches, enters, sleeps; /* submits with something in them; system calls; of these, asleep */
    uint64_t works, messages, polls;
    uint64_t works_here; /* of the works, those that the engine did itself */
    uint64_t bogus;      /* completions for nobody: a bug, ours or the kernel's */
    uint32_t blks_in_flight, blks_queued, works_in_flight, works_queued, windows_used, regions;
};

/* What one pool has had of all devices, and what of it waits. */
struct uring_lane_stat {
    uint64_t reads, writes; /* completed */
    uint64_t read_bytes, written_bytes;
    uint64_t queued, queued_bytes;
};

/* -EPERM or -ENOSYS if io_uring is not to be had; ret_why (static, never NULL on failure) says what to do about it. */
must_check int uring_new(const struct uring_config *config, struct uring **ret_uring, const char **ret_why);
/* The caller has waited for all requests (uring_is_idle). Takes NULL. */
void uring_free(struct uring *u);
/* Makes the calling thread the engine. */
must_check int uring_start(struct uring *u);

struct io_backend *uring_backend(struct uring *u);
struct engine_queue *uring_queue(struct uring *u);
const struct uring_caps *uring_caps(const struct uring *u);
void uring_stat(const struct uring *u, struct uring_stat *ret_stat);
void uring_pool_stat(const struct uring *u, uint32_t pool, struct uring_lane_stat *ret_stat);
/* A pool's share of every device against the others, 1 to WEIGHT_MAX; from its next request on. */
void uring_pool_weight(struct uring *u, uint32_t pool, uint32_t weight);
/* No device request, work or chunk request is queued or in flight. Polls do not count. */
bool uring_is_idle(const struct uring *u);

/* The caller keeps the device open until uring_device_remove(). depth 0: DEFAULT_DEVICE_DEPTH. -ENOSPC: too many. */
must_check int uring_device_add(struct uring *u, const struct device *device, uint32_t depth, uint16_t *ret_dev);
/* -EBUSY while requests are queued or in flight. */
must_check int uring_device_remove(struct uring *u, uint16_t dev);

/* Takes a reference to the chunk. Registers its windows; where the limit on locked memory forbids it, the region works
 * unregistered and caps say so. -ENOSPC: too many regions. chunk_close removes it. */
must_check int uring_region_add(struct uring *u, struct memory_chunk *chunk, uint32_t *ret_region);
/* NULL for bounce memory and for what is no region. */
/* Before uring_start(), and before any region is added: a chunk of a process before this one, as the region that it was. Takes the
 * descriptor, on failure too. -EINVAL: no such region. */
must_check int uring_chunk_adopt(struct uring *u, uint32_t region, int fd, uint32_t node, enum io_chunk_kind kind);
struct memory_chunk *uring_region_chunk(const struct uring *u, uint32_t region);
/* NULL unless [off, off + len_bytes) lies in the region. */
void *uring_address(const struct uring *u, struct io_buf buf, uint64_t len_bytes);

/*
 * The ring to the helper of one GPU, which dma_submit() uses; memory and descriptor are borrowed until uring_gpu_remove().
 * -EINVAL; -EEXIST; -ENOMEM. Removing it says that the helper's process has ended: whatever it was given ends with -EIO,
 * before this returns.
 */
must_check int uring_gpu_add(struct uring *u, uint32_t gpu, void *ring_mem, uint32_t entries, int doorbell_fd);
void uring_gpu_remove(struct uring *u, uint32_t gpu);
bool uring_gpu_is_there(const struct uring *u, uint32_t gpu);
/* Bit set: that helper breaks the rules, or hangs. Its process should be ended. */
uint64_t uring_gpus_bad(const struct uring *u, uint64_t now_ns);

/*
 * One turn: submits what is queued, handles what has completed, and if that was nothing, sleeps for at most timeout_ns
 * (0: not at all). Returns the number of events handled, or a negative errno if the ring is broken for good.
 */
int uring_run(struct uring *u, uint64_t timeout_ns);
/* Looks whether uring_run() would find a completion or a message: three loads. A hint, for an engine that spins. */
bool uring_peek(const struct uring *u);

/*
 * One on_poll() when fd becomes readable. The handle is never 0 and is used up by on_poll() or uring_poll_cancel();
 * after either, cancelling it again does nothing. After a cancel the descriptor may be closed at once. -ENOSPC.
 */
must_check int uring_poll_arm(struct uring *u, int fd, uint64_t token, uint64_t *ret_poll);
void uring_poll_cancel(struct uring *u, uint64_t poll);
