/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to GPUs: gpus.c owns the table of them, gpu.c helpers' lives, gpu_talk.c what is said to them and what they say.
 * Control thread.
 */
#pragma once

#include <limits.h>

#include "daemon/gpu.h"

#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_S UINT64_C(1000000000)
#define GPU_ANSWER_NS (5 * NS_PER_S) /* to anything but START */

/* A message that did not fit the socket yet. */
struct gpu_out {
    struct list link;
    struct gpu_msg msg;
    int fds[2];
    uint32_t n_fds;
};

struct gpu {
    struct gpus *gpus;
    uint32_t index;
    struct cuda_uuid uuid;
    char name[GPU_TEXT_BYTES], error[GPU_TEXT_BYTES];
    enum gpu_state state;
    uint32_t incarnation, restarts, pause_ms, next_number;
    bool has_served;
    pid_t pid;
    struct loop_source pidfd, socket;
    struct loop_timer timer; /* STARTING, SERVING: the answer that is awaited, or the next question; PAUSED */
    uint64_t since_ns;       /* of the state */
    uint64_t served_ns;      /* when it began to serve last */
    uint64_t answer_by_ns;   /* 0: nothing is awaited */
    uint32_t n_awaited;
    struct list out;
    struct list lanes;
    struct memory_shared rings[ENGINES_MAX];
    int doorbells[ENGINES_MAX];
    struct gpu_call calls[ENGINES_MAX];
    uint32_t n_calls; /* that engines work on */
    struct gpu_stat stat;
};

struct known_chunk {
    struct memory_chunk *chunk; /* a reference; NULL: none */
    uint32_t epoch;
};

struct gpus {
    struct control *control;
    char helper_path[PATH_MAX];
    uint32_t n;
    struct gpu *gpu[GPUS_MAX];
    struct known_chunk *chunks[ENGINES_MAX]; /* CHUNKS_MAX */
    uint64_t used_bytes[POOLS_MAX];
    bool ending;
};

static inline struct loop *gpu_loop(const struct gpu *gpu)
{
    return &gpu->gpus->control->loop;
}

/* gpu.c */
/* The one place that assigns it. */
void gpu_set_state(struct gpu *gpu, enum gpu_state state);
/* OFF, PAUSED: a new process. If there can be none it is PAUSED, and gpu.error says why. */
void gpu_start(struct gpu *gpu);
/* gpu.timer's callback. */
void gpu_timer(struct loop_timer *timer);
/* Socket, rings and doorbells: the process is gone. */
void gpu_close(struct gpu *gpu);
/* It is not trusted any more: nothing it says counts, and its end is awaited. */
void gpu_kill(struct gpu *gpu, const char *why);
/* START was answered. */
void gpu_started(struct gpu *gpu, const struct gpu_msg *msg);

/* gpu_talk.c */
/* fds stay the caller's. */
void gpu_send(struct gpu *gpu, struct gpu_msg *msg, const int *fds, uint32_t n_fds);
/* It is to answer by then. */
void gpu_await(struct gpu *gpu, uint64_t ns);
void gpu_ask_stat(struct gpu *gpu);
void gpu_tell_chunk(struct gpu *gpu, uint32_t engine, uint32_t region);
void gpu_socket_ready(struct loop_source *source, uint32_t events);
/* What it was never sent. */
void gpu_out_clear(struct gpu *gpu);
