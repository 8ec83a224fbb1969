/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GPUs as the control thread sees them: one helper process each (spillway-gpu), and the lanes that sessions have there. The
 * daemon itself never calls the driver: which GPUs there are is found out by starting a helper for one that somebody names.
 *
 *     OFF ─▶ STARTING ─▶ SERVING ─▶ ENDING ─▶ REMOVING ─▶ PAUSED ─▶ STARTING
 *               └────────────────────▶┘           └─▶ OFF ◀─┘
 * OFF: no process. STARTING: until START is answered. ENDING: it was killed, or its socket ended, and is not reaped yet: only
 * then its copies have ended for sure. REMOVING: engines let go of it. PAUSED: it is started again by and by if the config
 * lists it or it served before; else the next who asks for it starts it. gpu_set_state() is the one place that assigns it.
 */
#pragma once

#include "daemon/control.h"
#include "daemon/engine.h"
#include "io/cuda_driver.h"
#include "io/gpu_wire.h"
#include "io/memory.h"

struct gpus;
struct session;

enum gpu_state { GPU_OFF, GPU_STARTING, GPU_SERVING, GPU_ENDING, GPU_REMOVING, GPU_PAUSED };

/*
 *     ASKED ─ the helper has made its memory ─▶ ADDING ─ the engine knows it ─▶ ATTACHED
 *     ─▶ REMOVING: no use of it is in flight ─▶ LEAVING: the helper has let go ─▶ freed
 */
enum lane_state { LANE_ASKED, LANE_ADDING, LANE_ATTACHED, LANE_REMOVING, LANE_LEAVING };

/* What a helper was asked and has not answered. It answers in order. */
struct gpu_question {
    struct list link; /* gpu.awaited */
    uint32_t type, number;
};

struct gpu_lane {
    struct list link;     /* session's */
    struct list gpu_link; /* gpu.lanes */
    struct session *session;
    struct gpu *gpu;
    uint32_t incarnation; /* of the helper that has it */
    uint32_t number, engine, pool, slots;
    uint64_t slot_bytes;
    uint64_t alloc_bytes;   /* of a direct lane, else 0 */
    uint64_t staging_bytes; /* of its memory, as the helper made it */
    uint64_t charged_bytes; /* to the pool */
    enum lane_state state;
    struct memory_shared fences;
    int staging_fd;   /* of its memory, until it is sent */
    bool is_detached; /* the client waits for its end */
    struct lane_call call;
    struct gpu_question question; /* ASKED, LEAVING */
};

/* What its helper is asked for. */
static inline uint64_t gpu_lane_bytes(uint32_t slots, uint64_t slot_bytes, uint64_t alloc_bytes)
{
    return alloc_bytes ? alloc_bytes : UINT64_C(2) * slots * slot_bytes;
}

struct gpu_info {
    char uuid[CUDA_UUID_TEXT_BYTES]; /* as nvidia-smi prints it */
    char name[GPU_TEXT_BYTES];       /* once a helper has told it */
    char error[GPU_TEXT_BYTES];      /* what ended its helper last, or keeps one from starting */
    const char *state;
    int pid;
    uint32_t restarts, lanes; /* of the process that is there now */
    bool is_listed;           /* by UUID, in the config */
    struct gpu_stat stat;     /* at most a second old while there are lanes; a new process begins anew */
};

must_check int gpus_new(struct control *control, struct gpus **ret_gpus);
/* All sessions are gone, and all engines: ends the helpers. Takes NULL. */
void gpus_free(struct gpus *gpus);
/* The config is there, or another one; engines run. Starts what it lists, and ends what it does not have any more. */
void gpus_configured(struct gpus *gpus);
/* A chunk is there, or gone; the engine's callback. */
void gpus_chunk_note(void *ctx, struct engine_chunk_note *note);
bool gpus_are_served(const struct gpus *gpus);
uint64_t gpus_pool_used(const struct gpus *gpus, uint32_t pool);
/* What lanes of a pool may have. */
uint64_t gpus_pool_budget(const struct spillway_config *config, uint32_t pool);
/* The index-th; false at the end. */
bool gpus_at(const struct gpus *gpus, uint32_t index, struct gpu_info *ret_info);

/* --- Between gpus.c and session_gpu.c ----------------------------------------------------------------------------- */

struct gpu_wanted {
    const uint8_t *uuid; /* SPW_UUID_BYTES */
    uint32_t pool;
    uid_t uid; /* who wants it */
};
#define GPUS_FORBIDDEN 1 /* the config does not let that pool use it */
/* 0: it serves; GPUS_FORBIDDEN; -EAGAIN: it is being started, or will be; -ENODEV. *ret_why: words, valid until the next
 * turn. */
int gpus_find(struct gpus *gpus, const struct gpu_wanted *wanted, struct gpu **ret_gpu, const char **ret_why);
/* Asks the helper for the lane's memory; the answer comes to session_gpu_lane_made(). */
int gpu_lane_ask(struct gpu *gpu, struct gpu_lane *lane);
/* Tells it that the lane is over; the answer comes to session_gpu_lane_left(), perhaps at once. */
void gpu_lane_leave(struct gpu_lane *lane);
uint32_t gpu_number(const struct gpu *gpu);
void gpu_charge(struct gpu_lane *lane, uint64_t bytes);
/* It is freed next: nothing of it is with the helper any more, or it never was. */
void gpu_lane_forget(struct gpu_lane *lane);

/* session_gpu.c: status 0 with a descriptor that is the callee's, or a negative errno and words. */
void session_gpu_lane_made(struct gpu_lane *lane, int status, uint64_t staging_bytes, int fd, const char *text);
void session_gpu_lane_left(struct gpu_lane *lane);
/* GPU_ATTACH, GPU_DETACH. */
void session_gpu_attach(struct session *session, const void *message);
void session_gpu_detach(struct session *session, const void *message);
/* The session ends: takes its lanes away. True: there are some; `done` is called when the last is gone. */
bool session_gpu_end(struct session *session, void (*done)(struct session *session));
