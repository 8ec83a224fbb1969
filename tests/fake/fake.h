/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of the fake CUDA driver. One lock guards everything but the bytes of memory, the shared control file (atomics)
 * and what a thread has for itself; work in streams runs without it. One condition is signalled at every progress: whoever
 * waits looks again. Waits have a time limit only to notice what a test changed in the control file.
 */
#pragma once

#include <pthread.h>

#include "include/base/list.h"
#include "io/cuda_driver.h"
#include "tests/fake/fake_cuda.h"

/* Every function of the table, so that the compiler compares what we define with what is called. */
#define FAKE_DECLARE(member, symbol, version, parameters) __attribute__((visibility("default"))) int symbol parameters;
CUDA_FUNCTIONS(FAKE_DECLARE)
CUDA_FUNCTIONS_OPTIONAL(FAKE_DECLARE)
#undef FAKE_DECLARE

struct fake {
    pthread_mutex_t lock;
    pthread_cond_t progress;
    bool inited;
    int n_devices, n_visible; /* a device's handle is its number among all, whatever is visible */
    int visible[FAKE_CUDA_DEVICES_MAX];
    size_t hbm_bytes;
    int version;
    uint32_t lost; /* sticky, atomic */
    struct list regions, streams, events, modules, handles;
    struct fake_cuda_control *control;
    struct fake_cuda_role *role;
    struct fake_cuda_process *process;
};

extern struct fake fake;

#define COUNT(counter, n) ((void)__atomic_fetch_add(&fake.role->counter, (uint64_t)(n), __ATOMIC_RELAXED))
#define GAUGE(gauge, n) ((void)__atomic_fetch_add(&fake.process->gauge, (int64_t)(n), __ATOMIC_RELAXED))

/* ── control.c ── */

enum fake_needs { FAKE_NOTHING, FAKE_INIT, FAKE_CONTEXT };

/* What every function does first: what a test ordered, what was lost, what is missing. */
int fake_enter(const char *function, enum fake_needs needs);
#define ENTER(function, needs)                                                                                         \
    do {                                                                                                               \
        int entered_ = fake_enter(function, needs);                                                                    \
        if (entered_ != NV_SUCCESS)                                                                                    \
            return entered_;                                                                                           \
    } while (0)
/* The sticky error, or NV_SUCCESS. Looks into the control file. */
int fake_lost(void);
void fake_lose(int result);
/* Waits for progress, or a moment; with the lock, that is free meanwhile. */
void fake_wait(void);
/* Charges HBM of a device; false if there is not enough. Negative bytes give back. */
bool fake_charge(int device, int64_t bytes);
size_t fake_hbm_free(int device);

/* ── device.c ── */

struct CUctx_st {
    int device;
    unsigned n_refs;
    struct CUstream_st *null_stream;
};

struct CUctx_st *fake_context(void); /* the thread's current one */
/* In a host function, which may not call us. */
extern _Thread_local bool fake_in_host_fn;
/* What CUDA_VISIBLE_DEVICES lets this process see. */
void fake_devices_show(void);

/* ── region.c ── */

enum fake_kind { FAKE_DEVICE, FAKE_RESERVED, FAKE_HOST, FAKE_REGISTERED };

/* A range of addresses that the device knows. */
struct fake_region {
    struct list link;
    enum fake_kind kind;
    struct CUctx_st *ctx; /* NULL: of none */
    int device;
    uint64_t base;
    size_t size_bytes;
    char *memory; /* where the bytes are for us: elsewhere, if it is device memory */
    bool read_only;
    unsigned n_users;  /* work that is at it now: it is not unmapped under its hands */
    uint8_t *granules; /* of a reservation: GRANULE_ of each 2 MiB */
};

enum { GRANULE_MAPPED = 1, GRANULE_READABLE = 2, GRANULE_WRITABLE = 4 };

/* With the lock. NULL if no region holds all of it, mapped and with that access. */
struct fake_region *fake_region_find(uint64_t address, size_t size_bytes, bool for_write);
bool fake_region_overlaps(uint64_t address, size_t size_bytes);
struct fake_region *fake_region_at(uint64_t base, enum fake_kind kind);
void fake_region_add(struct fake_region *region);
/* Waits until nobody uses it, and takes it out. Its owner frees it. */
void fake_region_remove(struct fake_region *region);
/* Without the lock. Finds, and keeps it from going; NULL. fake_region_put(NULL) is harmless. */
struct fake_region *fake_region_get(uint64_t address, size_t size_bytes, bool for_write);
void fake_region_put(struct fake_region *region);
static inline char *fake_region_memory(const struct fake_region *region, uint64_t address)
{
    return region->memory + (address - region->base);
}
static inline bool fake_region_is_device(const struct fake_region *region)
{
    return region->kind == FAKE_DEVICE || region->kind == FAKE_RESERVED;
}
/* Address space alone, aligned; nobody can use it. NULL. */
char *fake_space(size_t size_bytes, size_t alignment);

/* ── memory.c ── */

void fake_memory_reclaim(struct CUctx_st *ctx); /* with the lock: the context ends */

/* ── stream.c ── */

struct fake_op;
/* Does the work, without the lock, on the thread of a hardware queue. */
typedef void fake_run(struct fake_op *op);

struct fake_op {
    struct list link;
    struct CUstream_st *stream;
    fake_run *run;
    uint64_t dst, src;
    size_t len_bytes;
    uint64_t value;
    unsigned flags;
    struct CUstream_st *other; /* waits until it has completed so many: value */
    struct CUevent_st *event;  /* a reference */
    cuda_host_fn *fn;
    void *arg;
    bool is_dma;
    bool to_host, from_host; /* that side is an address of the CPU, registered or not */
    unsigned grid, block;
    uint8_t params[160];
};

struct fake_channel;

struct CUstream_st {
    struct list link;
    struct CUctx_st *ctx;
    bool blocking, destroyed;
    unsigned n_refs;
    struct fake_channel *channel;
    uint64_t n_submitted, n_completed;
};

/* With the lock. The stream behind a handle, NULL and CU_STREAM_LEGACY too; NULL if there is no such stream. */
struct CUstream_st *fake_stream_find(struct CUstream_st *handle);
void fake_stream_ref(struct CUstream_st *stream);
void fake_stream_unref(struct CUstream_st *stream);
/* Copies the op and queues it. With the lock: the stream has done it when it has completed as many as is returned. */
uint64_t fake_submit_locked(struct CUstream_st *stream, const struct fake_op *op);
int fake_submit(struct CUstream_st *handle, const struct fake_op *op);
/* Submits, and waits until it is done. */
int fake_submit_and_wait(struct CUstream_st *handle, const struct fake_op *op);
/* With the lock: until the stream has completed so many, or all is lost. */
int fake_stream_wait_for(struct CUstream_st *stream, uint64_t at);
fake_run fake_run_wait_stream;        /* waits for op->other as well, in a stream */
int fake_drain(struct CUctx_st *ctx); /* with the lock: all streams of the context */
void fake_streams_reclaim(struct CUctx_st *ctx);

/* ── event.c, kernel.c ── */

void fake_event_unref(struct CUevent_st *event);
void fake_events_reclaim(struct CUctx_st *ctx);
void fake_modules_reclaim(struct CUctx_st *ctx);
