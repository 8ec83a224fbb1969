/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of spillway/gpu.h. One file a row; each may call those below it.
 *
 *   gpu_range.c    the API: ranges of objects
 *   gpu_job.c      the API on jobs: start, wait, join, cancel; blocks
 *   gpu_alloc.c    the API on memory that the daemon hands out; how a direct lane moves
 *   gpu.c          attaching, and the thread that keeps jobs going
 *   gpu_use.c      what becomes of a job, one slot's worth at a time
 *   gpu_lanes.c    which lanes there are, and what becomes of them when the daemon is restarted
 *   gpu_element.c  what a job's elements are: blocks of a layout, or ranges
 *   gpu_layout.c   where pieces lie
 *   gpu_map.c      memory of the pools as the device sees it
 *   gpu_lane.c     a lane: staging memory, fences, streams, what it takes to launch a kernel
 *
 * gpu.lock guards all of it, and is held during calls of the driver, none of which waits for a stream. Whoever has the
 * lock may move everything on (client_gpu_pump): the thread, or a caller that waits.
 */
#pragma once

#include <sys/eventfd.h>

#include "client/gpu/kernels.h"
#include "client/lib/client.h"
#include "include/spillway/gpu.h"
#include "io/cuda_driver.h"

#define GPU_THREAD_BLOCKS 8
#define GPU_THREAD_BLOCKS_MAX 1024
#define GPU_POOL_SHARE 4 /* one lane leases at most such a part of a pool's memory: leases beyond 80 % are refused */
#define GPU_LEASES_MAX 16384 /* of one lane: a session may have 65536 */
#define GPU_GRACE_MS 300     /* after a deadline, until a daemon that says nothing is taken for stopped */
#define GPU_LEASED_AHEAD 2   /* uses that are leased or being leased, beside those in slots: so many times `slots` */
#define GPU_USES(slots) ((slots) * (GPU_LEASED_AHEAD + 2)) /* of one direction; each has a request under way at most */
#define GPU_LANE_PAUSE_NS 5000000 /* until a helper that is being started is asked for a lane again */
#define GPU_NAP_NS 50000          /* between two looks at what wakes nobody */
#define GPU_SPIN_NS 100000        /* a caller that waits looks so long before it naps */
#define GPU_FENCES_BYTES 4096
#define GPU_LANES_LEFT_MAX 64 /* with slots, of one attachment: one in use, the others over and not yet idle */
#define GPU_COUNTS_BYTES (sizeof(uint32_t) * GPU_DIRECTIONS * GPU_SLOTS_MAX) /* of one lane */
#define GPU_DIRECT_SLOTS 16                   /* uses of an allocation that are on their way, in each direction */
#define GPU_DIRECT_RUN_BYTES (256 * KIB)      /* of what lies together, on average: below that slots are faster */
#define GPU_PIECES_MAX 4096                   /* of one layout */
#define GPU_USE_RANGES_MAX KERNEL_PIECES_NEAR /* parts, and what lies between them, of one use */
#define GPU_USE_BYTES_MIN (4 * MIB)           /* of the first use of a job, and of its last ones */
#define GPU_PARTS_MAX (1 << 22)               /* of one job, some 500 MiB of lists */
#define GPU_RANGES_GAP_BYTES (32 * KIB)       /* that cross the link for nothing sooner than another copy is begun */

enum gpu_direction { GPU_SPILL, GPU_FETCH, GPU_DIRECTIONS };

/*
 *   LEASING ─ RESERVE, ACQUIRE answered ─▶ LEASED ─ a slot is free: kernel and copy are on their way ─▶ MOVING
 *   ─ copied, and the slot is free again ─▶ ENDING ─ COMMIT, ABORT, RELEASE answered ─▶ gone
 *   MOVING ─ copied, but elements without leases part it from more, on a direct lane ─▶ LEASED
 * use_set_state() is the one place that assigns it.
 */
enum gpu_use_state { GPU_USE_LEASING, GPU_USE_LEASED, GPU_USE_MOVING, GPU_USE_ENDING };

/* As many of a job's elements as one slot takes. */
struct gpu_use {
    struct list link; /* gpu_direction_state.uses */
    struct spw_gpu_job *job;
    enum gpu_use_state state;
    size_t first;
    uint32_t n, n_moved;               /* elements; of them, with leases */
    uint64_t bytes, moved_bytes;       /* of all elements; of those with leases */
    uint64_t leased_bytes;             /* as the pool counts them */
    uint64_t seq;                      /* MOVING: of its slot */
    uint32_t run, run_end;             /* of a direct lane: the elements that are copied at once */
    int error;                         /* why its elements failed, if they did */
    bool on_stream, source_free, told; /* the job knows */
    bool orphan;                       /* the job needs it no more, or ended without it */
    bool again;                        /* its lane was lost: on another one from the beginning */
    spw_job *call;                     /* on one of the lane's queues; NULL: none */
    struct spw_view views[];
};

/* One direction of a lane. */
struct gpu_direction_state {
    struct list uses;
    uint64_t seq;     /* the last that was used */
    uint32_t n_ahead; /* LEASING and LEASED */
    uint32_t n_uses;
    struct CUstream_st *stream;
    struct CUstream_st *ends; /* of a direct lane: waits for copies, which `stream` lets begin */
    struct spw_gpu_fence *fence;
    uint64_t fence_address;      /* on the device */
    struct gpu_use **slots;      /* whose they are; NULL: free */
    struct CUevent_st **emptied; /* of each slot: after its kernel, or copy */
};

struct gpu_lane {
    struct list link; /* spw_gpu.lanes: the first with slots is in use, the others are over and not yet idle */
    struct spw_gpu *gpu;
    struct spw_gpu_memory *memory; /* of a direct lane; NULL: it has slots */
    uint32_t number, slots;
    uint64_t slot_bytes, staging_bytes;
    uint64_t use_bytes;                      /* of one use at most: a slot's, or less in a small pool */
    uint64_t leased_bytes, leased_bytes_max; /* of all uses */
    uint32_t n_leased;                       /* elements of all uses */
    int over;                                /* 0, or the negative errno that ended it */
    uint32_t era;                            /* the connection that it was made on */
    bool lost;                               /* it is over because the daemon was restarted */
    spw_queue *leases,
        *moves; /* requests for leases, and for copies: so that one can be slept for without the other; of a
                                  direct lane, the same */
    struct client_map fences_map;
    bool fences_registered, mapped;
    uint64_t staging_handle, staging; /* device address: of slots, or of the allocation */
    /* For each slot, spills' first; host memory that kernels read, or write. */
    uint32_t *ids;               /* SPW_LIST_MAX: of blocks */
    struct kernel_piece *ranges; /* GPU_USE_RANGES_MAX: where ranges lie */
    uint64_t *errors;            /* one: what a kernel found in `status` */
    uint64_t ids_address, ranges_address, errors_address;
    uint64_t counts; /* on the device, likewise: thread blocks of a kernel that have ended, 0 between kernels */
    struct gpu_direction_state directions[GPU_DIRECTIONS];
};

/* What spw_gpu_alloc() gave: it is its lane's, and goes with it. */
struct spw_gpu_memory {
    struct gpu_lane *lane;
    uint64_t bytes;
    uint32_t n_jobs;
};

struct spw_gpu_layout {
    struct list link; /* spw_gpu.layouts */
    struct spw_gpu *gpu;
    spw_space *space;
    uint64_t pieces; /* device memory */
    uint32_t n_pieces, n_blocks, item_bytes;
    uint32_t n_jobs;
};

/* Of an element: where bytes of it are, or are to be. What lies between the parts of an element is nobody's. */
struct gpu_part {
    uint64_t address;
    uint32_t offset_bytes, bytes;
    uint32_t caller; /* whose it is: the caller's elements in their order, which may be cut into several parts */
};

/* Elements are blocks, of one size, or ranges, each within one of its object's pieces: as much as one lease is on. */
struct spw_gpu_job {
    struct list link; /* spw_gpu.jobs, until it is done */
    struct list all;  /* spw_gpu.all_jobs, until it is freed */
    struct spw_gpu *gpu;
    struct spw_gpu_layout *layout; /* of blocks; may be freed once the job is done: orphans need it no more */
    struct spw_gpu_memory *memory; /* whose direct lane it takes, as its parts lie there; NULL: slots */
    spw_space *space;
    uint32_t item_bytes; /* of a block; 0: ranges */
    enum gpu_direction direction;
    unsigned flags;
    bool all_or_none; /* the first error is the job's */
    size_t n, next;   /* elements; the first that is of no use yet */
    struct spw_key *keys;
    uint32_t *ids;             /* of blocks */
    uint64_t *offsets, *sizes; /* of ranges */
    uint32_t *parts_end;       /* of ranges: the number of the first part that is not of it, nor of one before it */
    struct gpu_part *parts;
    int32_t *statuses;   /* ours: the caller may have none */
    int32_t *ret_status; /* one for each of the caller's elements, or NULL */
    size_t n_callers;
    uint64_t total_bytes, done_bytes; /* of the caller's; of them, of what went well so far */
    uint64_t left_bytes;              /* of elements that are of no use yet */
    uint32_t n_begun;                 /* uses so far */
    uint64_t deadline_ns;
    struct CUevent_st *begin; /* what the caller's stream had at the call */
    bool begun;               /* the lane's stream waits for it */
    uint32_t n_uses;          /* that are not gone */
    struct list again;        /* of them, those that are to begin once more, on no lane now */
    bool relaid;              /* some of it was on a lane that was lost: `last` does not tell */
    bool observed;            /* the caller was told that it is on its stream, or that its source is free */
    uint32_t n_waiting;       /* of them, not yet on their stream */
    uint32_t n_sources;       /* of them, still read from */
    uint32_t n_orphans;       /* that are not gone, though it has ended */
    struct CUevent_st *last;  /* after the kernel that was launched last; NULL: none */
    bool cancel, done, freed;
    int error;
    uint64_t value;
};

struct spw_gpu {
    struct list link;   /* session.gpus_left: detached, but a silent daemon may answer yet */
    struct list mapper; /* session.gpu_mappers, under its lock; alone: it has mapped nothing */
    const struct cuda_driver *cuda;
    spw_session *session;
    spw_space *space; /* it was attached with */
    struct spw_gpu_options options;
    uint8_t uuid[SPW_UUID_BYTES];
    struct CUctx_st *context;
    int device;
    struct CUmod_st *module;
    struct CUfunc_st *kernels[GPU_DIRECTIONS];
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    struct list lanes, layouts, jobs, all_jobs;
    uint64_t counts; /* device memory of its lanes, made with the first of them */
    pthread_t thread;
    bool has_thread, stop;
    bool leaves;         /* somebody waits for the last use */
    bool awaits_lane;    /* the one with slots was lost: jobs wait for the next one */
    uint64_t lane_at_ns; /* when to ask for it */
    uint32_t n_spinning; /* callers that move everything on themselves for a moment; also read without the lock */
    int wake_fd;         /* the thread sleeps on this and on queues */
};

static inline bool client_gpu_job_has_more(const struct spw_gpu_job *job)
{
    return job->next < job->n || !list_is_empty(&job->again);
}

/* The thread looks again. */
static inline void client_gpu_wake(const struct spw_gpu *gpu)
{
    (void)!eventfd_write(gpu->wake_fd, 1);
}

/* Its daemon has gone, or is gone at this moment. */
static inline bool client_gpu_lane_is_lost(const struct gpu_lane *lane)
{
    return lane->lost || !client_link_is_of(lane->gpu->session, lane->era);
}

/* gpu_lane.c. With the context current. */
/* memory: its direct lane; NULL: one with slots. */
int client_gpu_lane_new(struct spw_gpu *gpu, struct spw_gpu_memory *memory, struct gpu_lane **ret_lane) must_check;
/* Gives back what it has of the driver: no kernel of it runs. */
void client_gpu_lane_release(struct gpu_lane *lane);
/* The same, and the rest: nothing of it is on its way. Takes NULL. */
void client_gpu_lane_free(struct gpu_lane *lane);
/* Every wait for it goes on, and kernels touch no slot any more. The first error stays. */
void client_gpu_lane_over(struct gpu_lane *lane, int error);
/* Launches the kernel of a use that has its slot, and what tells the daemon so; of a direct lane, that alone. */
int client_gpu_lane_launch(struct gpu_lane *lane, struct gpu_use *use) must_check;
/* Has the slot's kernel ended, or the copy? 0: not yet; 1; or an errno: nothing runs any more, and it may not have run. */
int client_gpu_lane_emptied(const struct gpu_lane *lane, const struct gpu_use *use) must_check;
int client_gpu_error(int result, const char *what) must_check;

/* gpu_alloc.c. With the lock and the context. */
int client_gpu_direct_launch(struct gpu_lane *lane, const struct gpu_use *use) must_check;
/* The memory that has all of these bytes, or NULL. */
struct spw_gpu_memory *client_gpu_memory_find(const struct spw_gpu *gpu, uint64_t address, uint64_t bytes);

/* gpu_map.c. It maps nothing any more. */
void client_gpu_map_end(struct spw_gpu *gpu);

/* gpu_layout.c. With the lock and the context. */
void client_gpu_layout_destroy(struct spw_gpu_layout *layout);
/* Memory of the GPU that one allocation, or several one behind the other, have; none at first. */
struct gpu_memory {
    uint64_t from, end;
};
/* -EINVAL, in the words of "`what` i", unless those bytes are memory of this GPU. Asks the driver if they are not in `known`,
 * which is then what was found. */
int client_gpu_memory_check(const struct spw_gpu *gpu, const char *what, size_t i, uint64_t from, uint64_t end,
                            struct gpu_memory *known) must_check;

/* gpu_element.c. With the lock. */
/* How many elements from `next` on a use takes; their bytes, and as how many the pool counts them while they are leased. */
uint32_t client_gpu_elements_fit(const struct gpu_lane *lane, const struct spw_gpu_job *job, uint64_t *ret_bytes,
                                 uint64_t *ret_leased_bytes);
/* Of a use at most. */
uint64_t client_gpu_elements_leased_max(const struct gpu_lane *lane, const struct spw_gpu_job *job);
/* Asks for leases on a use's elements; and gives them back, publishing what was spilled if all went well. */
int client_gpu_elements_lease(struct gpu_lane *lane, struct gpu_use *use, uint32_t timeout_ms) must_check;
int client_gpu_elements_give(struct gpu_lane *lane, struct gpu_use *use) must_check;
/* The next elements that have leases and lie together in an allocation: one copy. False: there are no more. */
bool client_gpu_elements_next_run(struct gpu_use *use);
bool client_gpu_elements_run_is_last(const struct gpu_use *use);
/* Of the run, in the allocation. */
uint64_t client_gpu_elements_run_offset(const struct gpu_lane *lane, const struct gpu_use *use);
/* Where the elements with leases lie: written to the slot's tables, and what a kernel is told of them. */
void client_gpu_elements_place(struct gpu_lane *lane, const struct gpu_use *use, uint32_t place,
                               struct kernel_args *args);
/* Its elements with leases, and their bytes. */
void client_gpu_elements_count(struct gpu_use *use);
/* What became of them, for the job. */
void client_gpu_elements_tell(const struct gpu_use *use);
/* What became of the caller's elements, when all is known. */
void client_gpu_elements_result(struct spw_gpu_job *job);

/* What a thread has to be told, or must see, so that things go on. */
struct gpu_awaited {
    bool look;   /* something is on its way that wakes nobody */
    bool leases; /* the next answer about leases; else those come along when a copy has ended, which always wakes */
};

/* gpu_lanes.c. With the lock and the context. */
/* Does anything run in its streams? And if not: is nothing of it with the daemon either? */
bool client_gpu_lane_runs(const struct gpu_lane *lane);
bool client_gpu_lane_is_idle(const struct gpu_lane *lane);
/* The lane to use, a new one if the last is over. */
int client_gpu_lane(struct spw_gpu *gpu, struct gpu_lane **ret_lane) must_check;
/* Lanes whose daemon was restarted are over; if a job has more to do, asks for the next one. */
void client_gpu_lanes_look(struct spw_gpu *gpu, uint64_t now_ns);

/* gpu_use.c. With the lock and the context. Moves everything on as far as it goes. */
struct gpu_awaited client_gpu_pump(struct spw_gpu *gpu);
/* Frees a lane, and its uses, whose answers cannot come any more. */
void client_gpu_lane_forget(struct gpu_lane *lane);

/* gpu_job.c */
/* A job of n elements for n_callers of the caller's: blocks (no parts), or ranges of so many parts. NULL: no memory. Until it
 * is started, free() does. */
struct spw_gpu_job *client_gpu_job_new(struct spw_gpu *gpu, enum gpu_direction direction, spw_space *space, size_t n,
                                       size_t n_parts, size_t n_callers);
/* Its elements and fields are there. Frees it if it fails. */
int client_gpu_job_start(const char *name, struct spw_gpu_job *job, struct CUstream_st *stream, uint32_t timeout_ms,
                         spw_gpu_job **ret_job) must_check;
void client_gpu_job_destroy(struct spw_gpu_job *job);
void client_gpu_job_free_locked(struct spw_gpu_job *job);

/* gpu.c */
/* Takes the lock and makes the context current; 0, or why not. */
int client_gpu_enter(const char *name, struct spw_gpu *gpu) must_check;
/* -EXDEV unless its lanes are for that space. */
int client_gpu_space_check(const char *name, const struct spw_gpu *gpu, const spw_space *space) must_check;
void client_gpu_leave(struct spw_gpu *gpu);
