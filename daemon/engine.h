/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One engine: a thread with its own io_uring, tiering and request path. Engines share nothing; the control thread talks
 * to them by calls, messages that go there and come back. Nobody waits for an answer: at_control() is its arrival.
 */
#pragma once

#include <pthread.h>

#include "daemon/request.h"
#include "include/base/base.h"
#include "include/base/limits.h"
#include "io/device.h"
#include "io/engine_queue.h"
#include "io/inject.h"
#include "io/uring.h"
#include "tiering/tiering.h"

struct engine;
struct fdstore;

/* --- Calls: control → engine → control --------------------------------------------------------------------------- */

/* Member of what the call is about. From engine_call() to at_control() it belongs to the engine. */
struct call {
    struct engine_msg msg;
    struct engine *engine;
    bool deferred;                        /* at_engine() keeps it; engine_call_answer() sends it back later */
    void (*at_engine)(struct call *call); /* engine thread; set by the functions below */
    void (*at_control)(struct call *call);
    void *at_control_ctx; /* whoever gets the answer */
};

/* Control thread. */
void engine_call(struct engine *engine, struct call *call);
/* Engine thread: sends a deferred call back. */
void engine_call_answer(struct call *call);

/* A session's seat at one engine; allocated and freed by the control thread. */
struct engine_peer {
    struct peer peer;
    struct engine *engine;
    struct engine_msg broken_msg; /* to the control thread, once: end this session */
    const char *broken_why;
    void (*broken)(struct engine_peer *peer, const char *why); /* control thread */
    void *session;                                             /* the control thread's */
    bool leaves;                                               /* at its end its leases stay, for the next process */
    struct call end_call;
};

struct peer_add_call {
    struct call call;
    struct engine_peer *peer;
    uint64_t session, owner;
    uid_t uid;
    uint32_t max_leases;
    bool is_reattached; /* it may submit what it submitted to the last process */
};
void engine_peer_add(struct engine *engine, struct peer_add_call *call);
/* The same at once, before engine_run(): of a session that the last process left. */
void engine_peer_restore(struct engine *engine, struct peer_add_call *call);
/* Takes its rings away: nothing of them is answered any more. Uses the peer's own end_call; set its at_control first. */
void engine_peer_silence(struct engine_peer *peer);
/* The same; after that the rings' memory may go. */
void engine_peer_end(struct engine_peer *peer);

struct space_call {
    struct call call;
    struct engine_peer *peer;
    struct tiering_space_spec spec;
    uint32_t weight;
    int result;
    uint32_t handle;
    struct tiering_space_info info;
};
void engine_space_open(struct engine *engine, struct space_call *call);

struct ring_call {
    struct call call;
    struct engine_peer *peer;
    struct ring *ring;
    int result; /* -ENOSPC: ENGINE_RINGS_MAX */
};
void engine_ring_add(struct engine *engine, struct ring_call *call);
void engine_ring_remove(struct engine *engine, struct ring_call *call);

/* What these requests of the session were granted is taken back: it never heard of it. */
struct unanswered_call {
    struct call call;
    struct engine_peer *peer;
    uint64_t *requests; /* their user_data, ascending */
    uint32_t n;
};
void engine_unanswered(struct engine *engine, struct unanswered_call *call);

struct chunk_call {
    struct call call;
    uint32_t region, epoch;
    uint64_t session;
    int result; /* -ENOENT; -EACCES: private, and another session's */
    uint32_t pool;
    bool writable;
    struct memory_chunk *chunk; /* a reference, the caller's */
};
void engine_chunk_get(struct engine *engine, struct chunk_call *call);

/* A helper's ring (struct gpu_ring) and the engine's end of its doorbell; both are the caller's until the GPU was removed.
 * -EEXIST, -EINVAL, -ENOMEM. */
struct gpu_call {
    struct call call;
    uint32_t gpu; /* below GPUS_MAX */
    void *ring_mem;
    uint32_t entries; /* GPU_RING_ENTRIES */
    int doorbell_fd;
    int result;
};
void engine_gpu_add(struct engine *engine, struct gpu_call *call);
/* The helper's process has ended, and was waited for. What was in flight there ends with -EIO, its lanes are over, and their
 * fences say so before the answer; the lanes themselves are still to be removed. */
void engine_gpu_remove(struct engine *engine, struct gpu_call *call);

struct lane_call {
    struct call call;
    struct engine_peer *peer;
    uint32_t lane; /* no other lane of this engine has that number */
    uint32_t gpu, pool, slots;
    uint64_t slot_bytes, alloc_bytes; /* as of struct lane_spec */
    struct spw_gpu_fences *fences;    /* mapped until the lane was removed */
    int result;                       /* -ENODEV: no such GPU; -ENOSPC: SPW_LIMIT_GPU_LANES of one session; -EEXIST */
};
void engine_lane_add(struct engine *engine, struct lane_call *call);
/* Cancels; answered when no use of it is in flight. Before engine_peer_end() of its peer. */
void engine_lane_remove(struct engine *engine, struct lane_call *call);

struct owner_call {
    struct call call;
    uint64_t owner;
};
void engine_owner_end(struct engine *engine, struct owner_call *call);

/* What can change while an engine runs. */
struct engine_tuning {
    uint64_t spin_ns;
    uint32_t user_percent;
    uint32_t clean_percent;
    uint32_t class_weights[TIERING_CLASSES];
    uint32_t n_pools, n_stores;
    struct tiering_pool_config pools[POOLS_MAX];
    struct tiering_store_config stores[DEVICES_MAX];
};

struct tune_call {
    struct call call;
    struct engine_tuning tuning;
};
void engine_tune(struct engine *engine, struct tune_call *call);
/* The same at once: before engine_run(), or on the engine's thread. */
void engine_tune_now(struct engine *engine, const struct engine_tuning *tuning);

/* What the engine may have of each pool's budgets from now on, and what it has. */
struct budget_call {
    struct call call;
    uint32_t n_pools;
    uint64_t bytes[POOLS_MAX][TIERING_BUDGETS];
    struct tiering_pool_memory memory[POOLS_MAX]; /* the answer */
};
void engine_budget(struct engine *engine, struct budget_call *call);

/* Where a store of an engine lies. */
struct engine_store {
    uint32_t device; /* index in the config */
    uint16_t dev;    /* the engine's own number of it */
    uint16_t partition;
    char name[NAME_BYTES_MAX + 1]; /* of the device */
    uint64_t log_ns;               /* at start, to read its log */
};

/* The memory that an engine has on one node. */
struct engine_node {
    uint32_t node; /* MEMORY_NODE_ANY: wherever the kernel put it */
    bool is_cxl;
    uint64_t bytes, huge_bytes, locked_bytes; /* of bytes: in 2 MiB pages; sure not to be swapped */
    uint64_t n_sampled, n_on_node;            /* pages that were looked up when they had been taken; of these, there */
};

struct engine_report {
    struct call call;
    uint64_t have_bytes, want_bytes; /* memory at start */
    bool is_ready;
    uint64_t recovery_ns;
    uint64_t heartbeat;
    struct uring_caps caps;
    struct uring_stat uring;
    struct requests_stat requests;
    struct tiering_stat tiering;
    uint32_t n_pools, n_stores, n_nodes;
    struct engine_node nodes[NODES_MAX];
    uint64_t dirty_bytes, missing_bytes; /* of all pools */
    struct tiering_pool_stat pools[POOLS_MAX];
    struct uring_lane_stat io[POOLS_MAX];
    struct store_stat stores[DEVICES_MAX];
    struct tiering_writes writes[DEVICES_MAX];
    struct engine_store store_at[DEVICES_MAX];
    uint32_t n_peers, max_peers;
    struct peer_stat peers[]; /* max_peers */
};
void engine_report(struct engine *engine, struct engine_report *report);

/* Faults of devices, as an administrator orders them. Only where the configuration allows it (engine_config.inject). */
enum inject_order { INJECT_LIST, INJECT_ADD, INJECT_CLEAR };
struct inject_call {
    struct call call;
    enum inject_order order;
    struct inject_rule rule; /* INJECT_ADD; where the engine has none of its device, nothing is added */
    int result;              /* -ENOSPC: INJECT_RULES_MAX */
    uint32_t n;              /* the rules afterwards */
    struct inject_rule rules[INJECT_RULES_MAX];
};
void engine_inject(struct engine *engine, struct inject_call *call);

/* A flush of the device failed at another engine. */
struct distrust_call {
    struct call call;
    uint32_t device; /* index in the config */
    int why;
};
void engine_device_distrust(struct engine *engine, struct distrust_call *call);

/* Ready, and alive: only the few numbers that cost nothing. */
struct ping_call {
    struct call call;
    uint64_t have_bytes, want_bytes, dirty_bytes, refused_bytes;
    bool is_ready;
    uint64_t
        gpus_bad; /* bit set: this GPU's helper broke the rules of its ring, or hangs: end it, and remove the GPU */
};
void engine_ping(struct engine *engine, struct ping_call *call);

struct stop_call {
    struct call call;
    int result;
    struct tiering_left left; /* engine_stop: what could not be written back */
};
/* Writes back what may be kept; answers when that is done. All peers are gone. */
void engine_drain(struct engine *engine, struct stop_call *call);
/* Closes the stores cleanly and ends the thread; answers before it ends. */
void engine_stop(struct engine *engine, struct stop_call *call);

/*
 * A chunk that GPUs' helpers may be told to read and write: it is there, or it is gone, and no command names it any more.
 * Engine → control, without being asked: in order for each region, each `is_new` followed by its end before the region's
 * next. A command may reach a helper before the note reaches the control thread.
 */
struct engine_chunk_note {
    struct engine_msg msg;
    struct engine *owner;
    uint32_t in_use; /* atomic */
    uint32_t engine, region, epoch, pool;
    bool is_new;
    uint8_t kind;               /* enum io_chunk_kind */
    struct memory_chunk *chunk; /* is_new: a reference, the callee's */
};

/* A flush of this engine's failed: engine → control, without being asked, once a device. */
struct engine_flush_note {
    struct engine_msg msg;
    struct engine *owner;
    uint32_t device; /* index in the config */
    int why;         /* 0: not sent */
};

/* --- The engine -------------------------------------------------------------------------------------------------- */

struct engine_chunk {
    uint64_t session; /* private: whose */
    uint32_t epoch, pool;
    uint8_t kind;
    bool is_live;
    bool said_poisoned;
    bool is_kept; /* for the next process, under the name of that epoch */
    uint32_t kept_epoch;
    /* What the control thread knows; the note is on its way while its in_use says so. */
    bool told_live, is_waiting;
    uint32_t told_epoch;
};

/* A line for the log, on its way to the control thread. */
struct engine_notice {
    struct engine_msg msg;
    struct engine *engine;
    uint32_t in_use; /* atomic */
    int level;
    bool is_limited; /* only so many a second */
    char text[440];
};
#define ENGINE_NOTICES 32

struct engine_config {
    uint32_t number;
    struct uring_config uring;     /* workers, grower, chunk; the rest is the engine's */
    struct tiering_config tiering; /* pools, classes, nodes, sizes; the rest is the engine's */
    uint64_t spin_ns;
    uint32_t user_percent;
    bool inject; /* faults may be ordered */
    uint32_t max_requests, max_waits;
    const struct pool_gpu_stat *gpus;
    struct fdstore *fdstore;
    struct engine_queue *control; /* mailbox of the control thread */
    /* Control thread; NULL: nobody wants to know. The note is the engine's again on return. */
    void (*chunk_note)(void *ctx, struct engine_chunk_note *note);
    void *chunk_note_ctx;
    /* Control thread: the device of that index in the config is not to be trusted by others either. */
    void (*flush_failed)(void *ctx, uint32_t engine, uint32_t device, int why);
    void *flush_failed_ctx;
};

struct engine {
    struct engine_config config;
    pthread_t thread;
    bool has_thread;
    struct uring *uring;
    struct inject *inject; /* between the two; NULL: none */
    uint64_t inject_next_ns;
    struct tiering *tiering;
    struct requests *requests;
    struct tiering_pool_config *pools; /* ours: config.tiering.pools points here */
    struct memory_shared records;
    uint32_t n_stores;
    struct engine_store store_at[DEVICES_MAX];
    uint64_t recovery_ns; /* at start, until all that logs and memory tell of was in place */
    struct engine_flush_note flush_notes[DEVICES_MAX]; /* by store */
    struct engine_chunk chunks[CHUNKS_MAX];
    struct engine_chunk_note *chunk_notes; /* CHUNKS_MAX, or NULL */
    uint32_t n_chunks_waiting;             /* whose notes are still on their way with something older */

    uint64_t now_ns;
    uint64_t heartbeat;
    uint64_t chunks_seen_ns; /* the last look for poisoned ones */
    bool chunks_due;         /* something was done since then: only what we do can find a hole */
    uint32_t n_chunks;       /* the largest region ever + 1 */
    struct stop_call *draining, *stopping;
    bool stopped;
    struct engine_msg end_msg;
    struct engine_msg broken_msg; /* uring_run() failed for good */
    int broken;
    bool said_memory, said_wait;
    uint32_t is_degraded; /* atomic: memory is not locked; the control thread tells clients */
    uint64_t notices_lost;
    struct engine_notice notices[ENGINE_NOTICES];
};

/* Sets everything up on the calling thread; the config and what it points to are copied. engine_run() starts the thread. ret_why: static, in words. */
must_check int engine_new(const struct engine_config *config, struct engine **ret_engine, const char **ret_why);
/* Before engine_run(). Opens one partition of a device and brings back what it holds. */
must_check int engine_store_add(struct engine *engine, uint16_t dev, uint32_t device, const char *name,
                                uint16_t partition, uint64_t device_bytes, const char **ret_why);
/* Then, for all of them, before any runs: what is there is known. -ESTALE: the devices are not those of the last process, whose
 * memory it has. */
must_check int engine_begin(struct engine *engine);
must_check int engine_run(struct engine *engine);
/* Ends the thread, and waits for it. One that engine_stop() has not ended leaves things as they are: for a start that cannot
 * go on. Takes NULL. */
void engine_end(struct engine *engine);
/* engine_end(); frees everything. Takes NULL. */
struct engine *engine_free(struct engine *engine);

/* engine_keep.c */
/* Its records: those of the last process, which then decide the sizes in the config, or new ones. */
must_check int engine_records_take(struct engine *engine);
/* Before tiering is made: chunks of the last process; and after: those that it did not want are forgotten. */
void engine_chunks_adopt(struct engine *engine);
void engine_chunks_adopted(struct engine *engine);
/* Engine thread: a chunk came, or went. */
void engine_chunk_keep(struct engine *engine, uint32_t region);
void engine_chunk_forget(struct engine *engine, uint32_t region);

/* engine_gpu.c. Engine thread: the chunk's state has changed; sends what could not be sent before. */
void engine_chunk_changed(struct engine *engine, uint32_t region);
void engine_chunks_tell(struct engine *engine);
void engine_lane_gone(void *ctx, void *removal);

/* Engine thread. Never blocks; when the control thread does not keep up, lines are lost, and counted. */
void engine_notice(struct engine *engine, int level, const char *fmt, ...) printf_like(3, 4);
