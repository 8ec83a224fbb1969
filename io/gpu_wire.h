/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What spillwayd and its helper processes (spillway-gpu, one a GPU) say to each other. Private: both come from one build,
 * and START refuses another version.
 *
 * A socket (SOCK_SEQPACKET, descriptor 3 of the helper), the daemon's control thread on the other end: one message a
 * packet, fixed size, descriptors along with it. The helper works through them in order; each but CHUNK, CHUNK_GONE and
 * RING is answered by one message of the same type and number. The helper ends when the socket does.
 *
 * The order: START first (it may be sent again if it failed). RING before CHUNK and LANE of that engine. LANE is answered
 * before the engine names the lane; a CHUNK may come after commands that name it, which wait for it. CHUNK_GONE of a region
 * comes before CHUNK of the same region with another epoch. What has no answer and cannot be done is answered by LOST.
 * When the socket ends, the helper ends what is under way and all its lanes (status EIO in their fences), frees everything,
 * and exits with 0; after LOST, or if a copy does not end within a second, with another status.
 *
 * Its environment is the daemon's. CUDA_VISIBLE_DEVICES it sets itself to what START names (io/gpu/visible.c), within what the
 * daemon's has: so the driver looks at that one device alone, whether it is a GPU or a MIG instance.
 *
 * A ring for each engine (struct gpu_ring), where the engine is the producer of commands and the consumer of completions.
 * Rules of include/base/ring.h: free-running indices, powers of two, each side believes the other's index only if it can
 * be. A sleeper sets its flag; who publishes rings the doorbell, a byte on a socket pair, if it finds the flag.
 *
 * Trust: the helper has fewer rights than the daemon, and maps memory that hostile clients write (fences). So the engine
 * checks what completions say; the helper believes commands, but never what a client wrote: a fence's client_seq says only
 * when to begin.
 */
#pragma once

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "include/base/base.h"

#define GPU_WIRE_VERSION 2
#define GPU_WIRE_FD 3
#define GPU_TEXT_BYTES 128

enum gpu_msg_type {
    GPU_MSG_START = 1,      /* uuid; answered when the context is there */
    GPU_MSG_RING = 2,       /* engine, entries; descriptors: ring memory, the helper's end of the doorbell */
    GPU_MSG_CHUNK = 3,      /* engine, region, epoch, bytes, page_bytes; descriptor: the chunk. Registered by and by */
    GPU_MSG_CHUNK_GONE = 4, /* engine, region, epoch: no command names it any more */
    GPU_MSG_LANE = 5, /* engine, lane, slots, slot_bytes, bytes: not 0: a direct lane, with an allocation of so many;
                              descriptor: fences. Answer: bytes; descriptor: its memory */
    GPU_MSG_LANE_GONE = 6, /* engine, lane: all its commands have completed */
    GPU_MSG_STAT = 7,      /* answer: struct gpu_stat */
    GPU_MSG_LOST = 8,      /* from the helper, unasked: the context is lost; it exits after this */
};

/* What one helper did so far. */
struct gpu_stat {
    uint64_t hbm_bytes, hbm_free_bytes; /* of the GPU */
    uint64_t context_bytes;             /* of it, this process's context; 0: not known */
    uint64_t staging_bytes;
    uint64_t chunk_bytes, registered_bytes; /* what it was told of; what the driver knows */
    uint64_t register_ns;                   /* spent on that */
    uint64_t spilled_bytes, fetched_bytes;
    uint64_t copies;            /* calls to the driver for them */
    uint64_t lanes, lanes_over; /* now; ever */
    uint64_t cpu_ns, sleeps;
    uint64_t windows_failed;  /* times that the driver refused to register one */
    uint64_t allocated_bytes; /* of direct lanes */
};
static_assert(sizeof(struct gpu_stat) == 128, "gpu_stat");

struct gpu_msg {
    uint32_t type;
    uint32_t version;
    uint32_t number;
    int32_t status; /* of an answer */
    uint32_t engine;
    uint32_t region, epoch;
    uint32_t lane;
    uint32_t slots;
    uint32_t entries; /* of commands, and of completions */
    uint32_t page_bytes;
    uint32_t spin_us; /* START: how long to poll before it sleeps */
    uint64_t bytes;
    uint64_t slot_bytes;
    uint8_t uuid[16];
    struct gpu_stat stat;
    char text[GPU_TEXT_BYTES]; /* of a failure, or the GPU's name; NUL-terminated */
};
static_assert(sizeof(struct gpu_msg) == 336, "gpu_msg");
static_assert(offsetof(struct gpu_msg, bytes) == 48, "gpu_msg.bytes");
static_assert(offsetof(struct gpu_msg, stat) == 80, "gpu_msg.stat");

/* --- The ring ------------------------------------------------------------------------------------------------------ */

enum gpu_cmd_op {
    GPU_CMD_SPILL = 1,  /* slot, or allocation → chunk */
    GPU_CMD_FETCH = 2,  /* the other way */
    GPU_CMD_CANCEL = 3, /* the lane is over: its commands complete with -ECANCELED, what is under way first */
};

enum {
    GPU_CMD_LAST =
        1 << 0, /* of the use `seq`: the fence is published, and a completion comes, when all its parts are there */
};

/*
 * A run of bytes that are contiguous in the GPU's memory and in the chunk, and cross no multiple of GPU_WINDOW_BYTES in the
 * chunk. A use is one or more of these, with the same seq, in a row: the engine publishes them all at once. Commands are
 * taken from the ring at once, and wait with their lane: an engine may have up to `entries` of them for each lane and
 * direction at the helper, so that a client who never fills his slots holds up nobody else. A command may come before the
 * CHUNK message of its chunk: it waits.
 */
struct gpu_cmd {
    uint8_t op;
    uint8_t flags;
    uint16_t reserved0;
    uint32_t lane;
    uint32_t region, epoch;
    uint64_t offset_bytes; /* in the chunk */
    uint64_t seq;
    uint64_t gpu_offset_bytes; /* in the slot that the seq says; of a direct lane: in its allocation */
    uint64_t cookie;           /* returned in the completion */
    uint64_t expires_ns;       /* CLOCK_MONOTONIC; the use that is not over by then ends the lane with -ETIMEDOUT */
    uint32_t len_bytes;
    uint32_t reserved1;
};
static_assert(sizeof(struct gpu_cmd) == 64, "gpu_cmd");
static_assert(offsetof(struct gpu_cmd, gpu_offset_bytes) == 32, "gpu_cmd.gpu_offset_bytes");
static_assert(offsetof(struct gpu_cmd, len_bytes) == 56, "gpu_cmd.len_bytes");

/*
 * One for each LAST and CANCEL, in order for each lane and direction. status: 0, or a negative errno: the lane is over, its
 * fences say so already, and no copy of it is under way any more.
 *   -EIO, -ETIMEDOUT, -EINVAL   of the use that ended the lane: its copy; its time, before it got to the copy engine; the
 *                               command itself (not the next seq, outside the slot, the allocation or the chunk; more bytes
 *                               than a use may have)
 *   -EPIPE                      another use did, in either direction; also of commands that come later
 *   -ECANCELED                  likewise, if CANCEL did. CANCEL's own is the last, and 0
 *   -EBADF                      there is no such lane
 * bytes: of the use, if status is 0.
 */
struct gpu_completion {
    uint64_t cookie;
    int32_t status;
    uint32_t lane;
    uint64_t bytes;
    uint64_t reserved;
};
static_assert(sizeof(struct gpu_completion) == 32, "gpu_completion");

struct gpu_ring {
    struct {
        uint32_t cmd_tail;
        uint32_t done_head;
        uint32_t flags; /* ring_sleep_word(): it sleeps, wake it for completions */
        uint32_t reserved[29];
    } engine;
    struct {
        uint32_t cmd_head;
        uint32_t done_tail;
        uint32_t flags; /* it sleeps, wake it for commands */
        uint32_t reserved[29];
    } helper;
    /* struct gpu_cmd[entries], then struct gpu_completion[entries] */
};
static_assert(sizeof(struct gpu_ring) == 256, "gpu_ring");
static_assert(offsetof(struct gpu_ring, helper) == 128, "gpu_ring.helper");

#define GPU_RING_SLEEPS 1U

static inline uint64_t gpu_ring_bytes(uint32_t entries)
{
    return sizeof(struct gpu_ring) + entries * (sizeof(struct gpu_cmd) + sizeof(struct gpu_completion));
}

static inline struct gpu_cmd *gpu_ring_cmds(struct gpu_ring *ring)
{
    return (struct gpu_cmd *)(ring + 1);
}

static inline struct gpu_completion *gpu_ring_completions(struct gpu_ring *ring, uint32_t entries)
{
    return (struct gpu_completion *)(gpu_ring_cmds(ring) + entries);
}
