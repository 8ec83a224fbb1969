/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to GPUs: gpus.c owns the table of them, gpu_place.c who has a place there, gpu.c helpers' lives, gpu_talk.c what is said to them and what they say,
 * gpu_chunk.c which chunks they know. Control thread.
 */
#pragma once

#include <limits.h>

#include "daemon/gpu.h"
#include "daemon/gpu_launcher.h"

#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_S UINT64_C(1000000000)
#define GPU_ANSWER_NS (5 * NS_PER_S) /* to anything but START */

#define GPU_OUT_MAX (ENGINES_MAX * (GPU_LANES_MAX + 1)) /* a question of each lane, a ring of each engine */
#define GPU_CHUNK_WORDS (CHUNKS_MAX / 64)

/* A message that did not fit the socket yet. */
struct gpu_out {
    struct list link;
    struct gpu_msg msg;
    int fds[2];
    uint32_t n_fds;
};

/* What a helper knows of an engine's region, and, one bit a region, where that may not be what it should know. */
struct gpu_chunks {
    uint64_t due[GPU_CHUNK_WORDS];
    struct {
        uint32_t epoch;
        bool is_told;
    } at[CHUNKS_MAX];
};

struct gpu {
    struct gpus *gpus;
    uint32_t index;
    struct cuda_uuid uuid;
    char name[GPU_TEXT_BYTES], error[GPU_TEXT_BYTES];
    enum gpu_state state;
    uint32_t incarnation, restarts, pause_ms, next_number;
    bool has_served;
    uid_t uid;      /* who named it, while it has not served */
    bool has_ended; /* its process: it is waited for once engines have heard of it */
    pid_t pid;
    struct loop_source pidfd, socket;
    struct loop_timer timer; /* STARTING, SERVING: the answer that is awaited, or the next question; PAUSED */
    uint64_t since_ns;       /* of the state */
    uint64_t served_ns;      /* when it began to serve last */
    uint64_t answer_by_ns;   /* 0: nothing is awaited */
    struct list awaited;     /* questions, in the order in which they are answered */
    struct gpu_question start_question, stat_question;
    struct list out;
    uint32_t n_out;
    struct list lanes;
    uint32_t n_pool_lanes[POOLS_MAX];
    struct gpu_chunks *chunks[ENGINES_MAX];
    uint32_t n_due; /* bits of chunks[…]->due */
    struct memory_shared rings[ENGINES_MAX];
    int doorbells[ENGINES_MAX];
    struct gpu_call calls[ENGINES_MAX];
    uint32_t n_calls; /* that engines work on */
    struct gpu_stat stat;
};

struct known_chunk {
    struct memory_chunk *chunk; /* a reference; NULL: none */
    uint32_t epoch, pool;
};

/* A user that named GPUs of which none could be started. */
struct gpu_blame {
    uid_t uid;
    uint32_t n_failed;
    uint64_t until_ns; /* nothing is tried for it before */
};

struct gpu_ping {
    struct ping_call ping;
    struct gpus *gpus;
    bool is_on_way;
};

struct gpus {
    struct control *control;
    char helper_path[PATH_MAX];
    char helper_environment[GPU_LAUNCHER_ENV_BYTES];
    uint32_t n;
    struct gpu *gpu[GPUS_MAX];
    struct known_chunk *chunks[ENGINES_MAX]; /* CHUNKS_MAX */
    uint64_t used_bytes[POOLS_MAX];
    struct gpu_ping pings[ENGINES_MAX];
    struct gpu_blame blames[GPU_BLAMES_MAX];
    char why[256]; /* what a client is told next */
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
/* fds stay the caller's. What is not answered is not to be said without bound: gpu_chunk.c knows how. */
void gpu_send(struct gpu *gpu, struct gpu_msg *msg, const int *fds, uint32_t n_fds);
/* It is to answer by then. */
void gpu_ask(struct gpu *gpu, struct gpu_question *question, struct gpu_msg *msg, int fd, uint64_t ns);
/* Unless it is being asked. */
void gpu_ask_stat(struct gpu *gpu);
/* 0; -EAGAIN: its socket is full, and the message is not kept. */
int gpu_send_now(struct gpu *gpu, struct gpu_msg *msg, int fd);
void gpu_socket_ready(struct loop_source *source, uint32_t events);
/* Takes all that it has said. Negative: its socket has ended. */
int gpu_listen(struct gpu *gpu);
/* It is gone: what it was never sent, and what it will not answer. */
void gpu_talk_end(struct gpu *gpu);

/* gpu_chunk.c */
must_check int gpu_chunks_new(struct gpu *gpu);
void gpu_chunks_free(struct gpu *gpu);
/* A new helper, that knows nothing. */
void gpu_chunks_begin(struct gpu *gpu);
/* That it may know something that it should not, or the other way round: all of it, or of that pool. */
void gpu_chunks_look(struct gpu *gpu, uint32_t pool);
void gpu_chunks_look_all(struct gpu *gpu);
/* Tells it what is due, as far as it listens; is called again when it has. */
void gpu_chunks_tell(struct gpu *gpu);

/* gpu_place.c */
/* The config names it. */
bool gpu_is_listed(const struct gpu *gpu);
/* It is started again whenever it ends, and has its place for good. */
bool gpu_is_kept(const struct gpu *gpu);
/* Starts what may not be there: -EAGAIN, and words, if it does, or will; -ENODEV: that user is to wait. */
int gpu_try(struct gpu *gpu, uid_t uid, const char **ret_why);
/* It could not be started, and is not kept: whoever named it waits before the next one. */
void gpu_blame(struct gpu *gpu);
struct gpu *gpu_find(const struct gpus *gpus, const uint8_t uuid[static SPW_UUID_BYTES]);
/* Its place, or one for it. NULL: there is none. */
struct gpu *gpu_place(struct gpus *gpus, const uint8_t uuid[static SPW_UUID_BYTES]);
/* The same for what a user names, who may have few. -EAGAIN: all of them are busy; -ENODEV: there is none. */
int gpu_place_for(struct gpus *gpus, const uint8_t uuid[static SPW_UUID_BYTES], uid_t uid, struct gpu **ret_gpu);

/* gpus.c */
/* With the next place of the table, of which there must be one. NULL: no memory. */
struct gpu *gpu_new(struct gpus *gpus, const uint8_t uuid[static SPW_UUID_BYTES]);
/* Whether sessions may attach to it with that pool. */
bool gpu_pool_may(const struct gpu *gpu, uint32_t pool);
/* Asks engines whether helpers keep to the rules of their rings; the answers may end some. */
void gpus_ping(struct gpus *gpus);
