/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plays the daemon for spillway-gpu: its control thread, engines, and clients that fill and empty slots. The helper is a
 * process of its own on the fake driver; the test's process is the client of the same (fake) GPU. Whatever fails in here
 * fails the test.
 */
#pragma once

#include "io/gpu_wire.h"
#include "tests/unit/support/cuda_rig.h"

#define GPU_RIG_ENGINES 2
#define GPU_RIG_ENTRIES 256
#define GPU_RIG_SLOT_BYTES (256 * KIB)

struct gpu_rig_engine {
    uint32_t number;
    struct gpu_ring *ring;
    uint32_t cmd_tail, done_head;
    uint32_t n_sleeps, rung;
    int doorbell_fd;
};

struct gpu_rig {
    struct cuda_rig client;
    struct fake_cuda_role *role; /* the helper's */
    int socket_fd;
    pid_t pid;
    uint32_t number;
    struct gpu_rig_engine engines[GPU_RIG_ENGINES];
};

struct gpu_rig_lane {
    struct gpu_rig *rig;
    struct gpu_rig_engine *engine;
    uint32_t number, slots;
    uint64_t slot_bytes, staging_bytes;
    struct spw_gpu_fences *fences;
    uint64_t handle, ptr;
};

/* A helper that nobody has spoken to; library: the driver's. */
void gpu_rig_fork(struct gpu_rig *rig, const char *library);
/* The same as a program. */
void gpu_rig_exec(struct gpu_rig *rig, const char *program);
struct gpu_msg gpu_rig_start_msg(void);
/* A helper that has started, with rings of all engines; and the client's context. */
void gpu_rig_init(struct gpu_rig *rig);
void gpu_rig_begin(struct gpu_rig *rig);
/* Closes the socket. The helper must end well, and leave nothing of the driver's. */
void gpu_rig_deinit(struct gpu_rig *rig);
/* Waits for its end, which the test has caused; the exit status. */
int gpu_rig_reap(struct gpu_rig *rig);

void gpu_rig_send(struct gpu_rig *rig, struct gpu_msg *msg, const int *fds, size_t n_fds);
/* The next message of the helper, and its descriptor or -1. */
struct gpu_msg gpu_rig_receive(const struct gpu_rig *rig, int *ret_fd);
struct gpu_msg gpu_rig_call(struct gpu_rig *rig, struct gpu_msg msg, int fd, int *ret_fd);
/* It has looked at every ring since this was called. */
struct gpu_stat gpu_rig_stat(struct gpu_rig *rig);

/* Memory for a chunk, of that engine if it is to be told now. */
uint8_t *gpu_rig_chunk_new(uint64_t size_bytes, int *ret_fd);
void gpu_rig_chunk_tell(struct gpu_rig *rig, uint32_t engine, uint32_t region, uint64_t size_bytes, int fd);
uint8_t *gpu_rig_chunk(struct gpu_rig *rig, uint32_t engine, uint32_t region, uint64_t size_bytes);

int gpu_rig_memfd(uint64_t size_bytes, int seals);
/* Of engine `engine`; imported into the client. */
void gpu_rig_lane(struct gpu_rig *rig, uint32_t engine, uint32_t number, uint32_t slots, struct gpu_rig_lane *ret_lane);
/* A direct one. */
void gpu_rig_direct_lane(struct gpu_rig *rig, uint32_t engine, uint32_t number, uint32_t slots, uint64_t alloc_bytes,
                         struct gpu_rig_lane *ret_lane);
void gpu_rig_lane_gone(struct gpu_rig_lane *lane);

/* What the client's kernels do: in direction GPU_CMD_SPILL or GPU_CMD_FETCH, the slot of that use. */
void gpu_rig_slot_write(struct gpu_rig_lane *lane, int op, uint64_t seq, const void *bytes, size_t n);
void gpu_rig_slot_read(struct gpu_rig_lane *lane, int op, uint64_t seq, void *ret_bytes, size_t n);

void gpu_rig_memory_write(struct gpu_rig_lane *lane, uint64_t offset_bytes, const void *bytes, size_t n);
void gpu_rig_memory_read(struct gpu_rig_lane *lane, uint64_t offset_bytes, void *ret_bytes, size_t n);

/* Publishes a command. */
void gpu_rig_push(struct gpu_rig_engine *engine, const struct gpu_cmd *cmd);
/* A use of one run: from the start of the slot, to or from that offset of region 0. The cookie is seq and op. */
void gpu_rig_use(struct gpu_rig_lane *lane, int op, uint64_t seq, uint64_t offset_bytes, uint32_t len_bytes);
/* The same, at that offset of the slot or the allocation. */
void gpu_rig_use_at(struct gpu_rig_lane *lane, int op, uint64_t seq, uint64_t gpu_offset_bytes, uint64_t offset_bytes,
                    uint32_t len_bytes);
uint64_t gpu_rig_cookie(const struct gpu_rig_lane *lane, int op, uint64_t seq);
void gpu_rig_cancel(struct gpu_rig_lane *lane);
/* The next completion, asleep until it comes. */
struct gpu_completion gpu_rig_wait(struct gpu_rig_engine *engine);
bool gpu_rig_is_quiet(const struct gpu_rig_engine *engine);
/* The next completion must be this one. */
void gpu_rig_expect(struct gpu_rig_lane *lane, int op, uint64_t seq, int status, uint64_t bytes);
/* Both directions are over, with that status. */
void gpu_rig_expect_over(const struct gpu_rig_lane *lane, int status);
uint64_t gpu_rig_now_ns(void);
