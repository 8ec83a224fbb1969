/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of spillway-gpu: what one helper process owns. One thread; everything here is its own.
 *
 *   control.c  messages of the daemon                chunk.c  chunks, and which windows of them the driver knows
 *   ring.c     commands in, completions out, sleep   map.c    mappings of what the daemon sends
 *   lane.c     uses in order; how a lane ends        driver.c every call to the driver
 *   issue.c    who is next at the copy engines       hbm.c    how much of the GPU is in use
 *   helper.c   the turn, and when to sleep
 *
 * The data path allocates nothing: tables come with START, RING, CHUNK and LANE. Functions return 0 or a negative errno; a
 * failure of the driver that is for good, and a daemon that breaks the protocol, go to helper_lose(), and the loop ends.
 */
#pragma once

#include <poll.h>

#include "include/base/base.h"
#include "include/base/limits.h"
#include "include/base/list.h"
#include "include/spillway/abi.h"
#include "io/cuda_driver.h"
#include "io/gpu_wire.h"

enum helper_direction { HELPER_SPILL, HELPER_FETCH, HELPER_DIRECTIONS };

/* --- Chunks (chunk.c) ---------------------------------------------------------------------------------------------- */

enum helper_window { HELPER_WINDOW_NEW, HELPER_WINDOW_REGISTERED, HELPER_WINDOW_FAILED };

struct helper_chunk {
    struct list todo; /* in helper.todo while next_window < n_windows */
    uint32_t region, epoch;
    uint64_t size_bytes;
    char *mem;
    uint32_t n_windows;
    uint32_t next_window; /* the first that the background has not come to */
    uint8_t windows[];    /* enum helper_window */
};

/* --- Lanes (lane.c) ------------------------------------------------------------------------------------------------ */

/* A run of a use; one command. */
struct helper_part {
    uint64_t offset_bytes; /* in the chunk */
    uint32_t region, epoch;
    uint64_t gpu_offset_bytes; /* in the slot, or in the allocation */
    uint32_t len_bytes;
};

struct helper_use {
    uint64_t seq;
    uint64_t cookie;
    uint64_t expires_ns;
    uint64_t bytes;
    uint32_t n_parts;
    int32_t status;
    bool is_cancel; /* no use, but has a completion, which comes after those of all uses before */
};

/*
 * One direction of a lane: the parts that are not issued yet, and the uses of which no completion is posted. Indices are
 * free-running, first_posted ... next_use:
 *
 *     n_posted ≤ n_done ≤ n_issued ≤ n_uses     posted | to be posted | at the copy engine | waits
 *
 * An empty queue begins at 0 again, so that little of its memory is ever touched.
 */
struct helper_queue {
    struct helper_part *parts;
    struct helper_use *uses;
    uint32_t part_head, part_tail;
    uint32_t n_posted, n_done, n_issued, n_uses;
    struct helper_use open; /* its LAST has not come yet */
    uint64_t next_seq;      /* of the use that is open, or the next one */
    uint32_t n_known;       /* parts of the first use that waits whose windows are registered */
    uint32_t part_bytes;    /* of the first part, that are issued already */
    uint64_t earliest_ns;   /* no use that waits expires before */
    uint64_t served_bytes;  /* what it has had, on the clock of its direction: see issue.c */
    struct list waiting;    /* in helper.copiers[].waiting while a use waits */
    struct helper_lane *lane;
};

/* GPU memory that can be passed on: staging, or an allocation. */
struct helper_memory {
    uint64_t handle, ptr;
    uint64_t size_bytes;
};

/*
 * live ──(a use fails, expires; CANCEL)──▶ ending: status is set; what is at the copy engine goes on, nothing else does
 * ending ──(nothing is at the copy engine)──▶ over: the fences say so, and what comes fails at once
 * lane_set_state() alone assigns it.
 */
enum helper_lane_state { HELPER_LANE_LIVE, HELPER_LANE_ENDING, HELPER_LANE_OVER };

struct helper_lane {
    struct list link;      /* in its bucket of the ring */
    struct list unsettled; /* in helper.unsettled: completions that found no room */
    struct helper_ring *ring;
    uint32_t number;
    uint32_t slots;
    uint64_t slot_bytes;
    uint64_t alloc_bytes;          /* that uses may name; 0: it has slots */
    struct spw_gpu_fences *fences; /* hostile: clients write here */
    uint64_t fences_ptr;           /* the same, as the driver writes there */
    struct helper_memory memory;
    enum helper_lane_state state;
    int status;         /* why it ends, a negative errno */
    uint32_t n_flights; /* uses at the copy engines, or being given to them */
    struct helper_queue queues[HELPER_DIRECTIONS];
};

/* --- Rings (ring.c) ------------------------------------------------------------------------------------------------ */

#define HELPER_LANE_BUCKETS 256

struct helper_ring {
    uint32_t engine;
    uint32_t entries;
    struct gpu_ring *shared;
    const struct gpu_cmd *cmds;
    struct gpu_completion *completions;
    int doorbell_fd; /* -1: the engine has closed it */
    uint32_t cmd_head;
    uint32_t done_tail, done_head; /* the latter as we saw it last */
    uint32_t done_published;
    uint32_t n_sleeps, rung; /* see include/base/ring.h */
    struct list lanes[HELPER_LANE_BUCKETS];
    struct helper_chunk *chunks[CHUNKS_MAX]; /* by region */
};

/* --- The copy engines (issue.c) ------------------------------------------------------------------------------------ */

/* A use at the copy engine, whose end an event tells. */
struct helper_flight {
    struct helper_lane *lane;
    uint64_t since_ns;
    int status; /* a copy of it could not be issued */
};

struct helper_copier {
    struct CUstream_st *stream;
    struct CUevent_st *events[GPU_AHEAD_SLOTS];
    struct helper_flight flights[GPU_AHEAD_SLOTS];
    uint64_t head, tail;         /* of flights; free-running */
    struct helper_lane *issuing; /* whose use is not wholly at the copy engine yet: it is flights[tail] */
    uint32_t n_left;             /* parts of it */
    uint64_t clock_bytes;
    struct list waiting; /* queues with a use that waits */
};

/* --- The helper ---------------------------------------------------------------------------------------------------- */

struct helper {
    int socket_fd;
    /* The driver; cu is NULL until START. */
    const struct cuda_driver *cu;
    int device;
    struct CUctx_st *ctx;
    char text[GPU_TEXT_BYTES]; /* why the driver's last call failed; the GPU's name */
    /* The context is lost, or the daemon makes no sense: we end. */
    bool is_lost;
    char lost_text[GPU_TEXT_BYTES];

    struct helper_copier copiers[HELPER_DIRECTIONS];
    struct list todo;      /* chunks with windows that nobody registered yet */
    struct list unsettled; /* lanes */
    /* What a use that is otherwise ready waits for; chunk is NULL if there is none. */
    struct {
        struct helper_chunk *chunk;
        uint32_t window;
        struct helper_queue *queue;
    } urgent;

    struct helper_ring *rings[ENGINES_MAX]; /* by engine */
    uint32_t engines[ENGINES_MAX];          /* those that have one */
    struct pollfd polls[1 + ENGINES_MAX];   /* the socket, then the doorbells in the order of engines[] */
    uint32_t n_rings;
    uint64_t spin_ns, nap_ns;
    uint64_t progress_ns; /* when it was made last */
    uint64_t n_turns;
    bool must_listen; /* before the next turn: so much time has passed */
    struct gpu_stat stat;
    uint64_t hbm_seen_ns; /* when its free memory was asked for; 0: something has changed */
};

static inline struct spw_gpu_fence *helper_fence(const struct helper_lane *lane, enum helper_direction d)
{
    return d == HELPER_SPILL ? &lane->fences->spill : &lane->fences->fetch;
}

/* Is somebody's stream waiting for the ends of copies? Those the copy engine tells itself. */
static inline bool helper_lane_is_awaited(const struct helper_lane *lane, enum helper_direction d)
{
    return d == HELPER_FETCH || lane->alloc_bytes > 0;
}

static inline struct helper_use *helper_use_at(const struct helper_queue *queue, uint32_t index)
{
    return &queue->uses[index & (queue->lane->ring->entries - 1)];
}

static inline struct helper_part *helper_part_at(const struct helper_queue *queue, uint32_t index)
{
    return &queue->parts[index & (queue->lane->ring->entries - 1)];
}

/* helper.c */

/* Serves until the socket ends, or all is lost. 0; -EIO: lost, and said so. Once in a process. */
int helper_run(int socket_fd);
/* Nothing that we could do helps any more; the first reason stays. */
void helper_lose(struct helper *h, const char *what, const char *why);
uint64_t helper_now_ns(void);

/* control.c */

/* Works through the messages that are there. False: the socket has ended. */
bool helper_control_serve(struct helper *h);
void helper_control_tell_lost(const struct helper *h);

/* ring.c */

must_check int helper_ring_new(struct helper *h, const struct gpu_msg *msg, int memory_fd, int doorbell_fd);
void helper_ring_free(struct helper *h, struct helper_ring *ring);
/* Ends all of its lanes. */
void helper_ring_fail(struct helper *h, struct helper_ring *ring);
/* Takes commands to their lanes. Whether there were any. */
bool helper_ring_take(struct helper *h, struct helper_ring *ring);
/* False: no room. */
bool helper_ring_post(struct helper *h, struct helper_ring *ring, const struct gpu_completion *completion);
/* Tells the engine of what was posted. */
void helper_ring_flush(struct helper_ring *ring);
/* Ready to sleep: false if commands have come. Then, and after the sleep, helper_ring_wake(). */
bool helper_ring_sleep(struct helper_ring *ring);
void helper_ring_wake(struct helper_ring *ring);
void helper_ring_drain_doorbell(struct helper_ring *ring);
struct helper_lane *helper_ring_lane(struct helper_ring *ring, uint32_t number);

/* lane.c */

/* The descriptor is of the lane's memory, the caller's. */
must_check int helper_lane_new(struct helper *h, struct helper_ring *ring, const struct gpu_msg *msg, int fences_fd,
                               struct helper_lane **ret_lane, int *ret_memory_fd);
void helper_lane_free(struct helper *h, struct helper_lane *lane);
bool helper_lane_is_idle(const struct helper_lane *lane);
void helper_lane_command(struct helper *h, struct helper_lane *lane, const struct gpu_cmd *cmd);
/* Ends the lane. */
void helper_lane_fail(struct helper *h, struct helper_lane *lane, int status);
/* The same because of the first use that waits, which has the status for its own. */
void helper_lane_fail_first(struct helper *h, struct helper_queue *queue, int status);
/* Uses that waited too long. Whether there was one. */
bool helper_lane_expire(struct helper *h, struct helper_queue *queue, uint64_t now_ns);
/* A use has left the copy engine, or nothing of the lane is there any more: posts what can be posted. */
void helper_lane_settle(struct helper *h, struct helper_lane *lane);

/* chunk.c */

must_check int helper_chunk_new(struct helper *h, struct helper_ring *ring, const struct gpu_msg *msg, int fd);
must_check int helper_chunk_gone(struct helper *h, struct helper_ring *ring, uint32_t region, uint32_t epoch);
void helper_chunk_free(struct helper *h, struct helper_chunk *chunk);
/* 1: registered. 0: not yet; the chunk, if it has come at all, and the window that is missing. -ERANGE: no such bytes. */
int helper_chunk_look(const struct helper_ring *ring, const struct helper_part *part, struct helper_chunk **ret_chunk,
                      uint32_t *ret_window);
/* Registers one window: the urgent one, or if no copy is under way one of the background. Whether it did anything. */
bool helper_chunk_register(struct helper *h);

/* issue.c */

/* Uses that have left the copy engines. Whether there were any. */
bool helper_issue_finish(struct helper *h, uint64_t now_ns);
/* Uses that may go there. */
bool helper_issue_start(struct helper *h, uint64_t now_ns);
bool helper_issue_is_busy(const struct helper *h);
/* Every copy engine that has something to do has more of it when its present copy ends. */
bool helper_issue_is_ahead(const struct helper *h);

/* driver.c */

/* The device by its UUID. Words for whatever goes wrong, or the GPU's name, are in h->text. */
must_check int helper_driver_start(struct helper *h, const uint8_t uuid[static 16]);
/* Everything else of the driver's is freed. */
void helper_driver_stop(struct helper *h);
must_check int helper_driver_register(struct helper *h, void *mem, uint64_t size_bytes);
/* A page of words that the copy engines write to. */
must_check int helper_driver_register_page(struct helper *h, void *mem, uint64_t *ret_ptr);
void helper_driver_unregister(struct helper *h, void *mem);
must_check int helper_driver_memory_new(struct helper *h, uint64_t size_bytes, struct helper_memory *ret_memory,
                                        int *ret_fd);
void helper_driver_memory_free(struct helper *h, struct helper_memory *memory);
uint64_t helper_driver_free_bytes(struct helper *h);

#define HELPER_COPIES_MAX 64 /* of one turn of a direction */
struct helper_copies {
    size_t n;
    uint64_t to[HELPER_COPIES_MAX], from[HELPER_COPIES_MAX];
    size_t len_bytes[HELPER_COPIES_MAX];
};
must_check int helper_driver_copy(struct helper *h, enum helper_direction d, struct helper_copies *copies);
/* Behind what was given to the copier. */
must_check int helper_driver_write(struct helper *h, struct helper_copier *copier, uint64_t ptr, uint64_t value);
/* Marks the end of what was given to the copier, with its event of that number. */
void helper_driver_mark(struct helper *h, struct helper_copier *copier, uint64_t number);
/* Whether the copier has come to that end. */
bool helper_driver_has_come_to(struct helper *h, struct helper_copier *copier, uint64_t number);

/* hbm.c */

/* Of the whole GPU, by everybody; needs no context. False: not known. */
bool helper_hbm_used(const struct cuda_uuid *uuid, uint64_t *ret_bytes);

/* visible.c */

/* Of the program alone, before helper_run(): what START asks for is what the driver will look at. It may start anew. */
void helper_show_device(int socket_fd);

/* map.c */

/* All of it, shared, aligned to its pages. sealed: -EPERM if somebody could make it smaller under us. -EINVAL: too small. */
must_check int helper_map(int fd, uint64_t size_bytes, uint64_t page_bytes, bool sealed, void **ret_mem);
void helper_unmap(void *mem, uint64_t size_bytes);
