/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A paged cache in a GPU's memory, beside a real spillwayd and its helper: on the fake driver, or, with SPILLWAY_TEST_GPU=1,
 * on the machine's. One thread. What goes wrong in here fails the test.
 */
#pragma once

#include "include/spillway/gpu.h"
#include "io/cuda_driver.h"
#include "tests/fake/fake_cuda.h"
#include "tests/system/support/daemon.h"

struct gpu_rig {
    struct daemon daemon;
    const struct cuda_driver *cu;
    struct fake_cuda_control *control; /* NULL: a real GPU */
    struct CUctx_st *ctx;
    spw_session *session;
    spw_space *space;
    spw_gpu *gpu;
    uint8_t uuid[SPW_UUID_BYTES];
};

/* A cache of n_blocks, its pieces spread over as many tensors. */
struct gpu_cache {
    struct spw_gpu_piece pieces[64];
    size_t n_pieces;
    uint32_t n_blocks, item_bytes;
    uint64_t memory; /* one allocation, with gaps that must not change */
    size_t memory_bytes;
    spw_gpu_layout *layout;
};

#define CU(call)                                                                                                       \
    do {                                                                                                               \
        int cu_ = (call);                                                                                              \
        ck_assert_msg(cu_ == NV_SUCCESS, "%s: %s", #call, cuda_error_name(cu_));                                       \
    } while (0)
#define SPW(call)                                                                                                      \
    do {                                                                                                               \
        int spw_ = (call);                                                                                             \
        ck_assert_msg(spw_ == 0, "%s: %d: %s", #call, spw_, spw_error_text());                                         \
    } while (0)

/* Before anything else of the test: the driver, and what the daemon will find. */
void gpu_rig_driver(struct gpu_rig *rig);
/* For who starts the daemon otherwise. SPILLWAY_TEST_GPU_SECCOMP: with a filter of the helper's system calls. */
void gpu_rig_configure(struct gpu_rig *rig, uint64_t dram_bytes, uint64_t disk_bytes);
/* The daemon alone (disk_bytes 0: no device): a child that was forked after this may call the driver, as we have not. */
void gpu_rig_daemon(struct gpu_rig *rig, uint64_t dram_bytes, uint64_t disk_bytes);
/* The daemon, a session, a space of blocks of item_bytes, and an attachment. */
void gpu_rig_open(struct gpu_rig *rig, uint64_t dram_bytes, uint64_t disk_bytes, uint64_t item_bytes);
/* This thread's context, if it has none yet: the first call of the driver. */
void gpu_rig_context(struct gpu_rig *rig);
/* Session and attachment anew, of a daemon that was started again. */
void gpu_rig_connect(struct gpu_rig *rig, uint64_t item_bytes);
/* Waits while the helper is being started; what spw_gpu_attach() says then. */
int gpu_rig_attach(struct gpu_rig *rig, const struct spw_gpu_options *options, spw_gpu **ret_gpu);
void gpu_rig_disconnect(struct gpu_rig *rig);
/* On the fake driver: this process has nothing there but its context. */
void gpu_rig_nothing_is_left(const struct gpu_rig *rig);
/* Closes it all; on the fake driver, nothing of ours may be left in it. */
void gpu_rig_close(struct gpu_rig *rig);
/* The helper's process; waits for one other than `other`. */
pid_t gpu_rig_helper(const struct gpu_rig *rig, pid_t other);

/* Pieces of these sizes; their sum is the space's item_bytes. gap_bytes lie between a tensor's blocks. */
void gpu_cache_new(struct gpu_rig *rig, struct gpu_cache *cache, const uint32_t *piece_bytes, size_t n_pieces,
                   uint32_t gap_bytes, uint32_t n_blocks);
void gpu_cache_free(struct gpu_rig *rig, struct gpu_cache *cache);
/* All of the memory, gaps too, from seed; seed 0: zeros. */
void gpu_cache_fill(struct gpu_rig *rig, struct gpu_cache *cache, uint32_t seed);
/* Block by block: is block `at` what block `of` was after gpu_cache_fill(seed)? Reads all of the memory once. */
void gpu_cache_check(struct gpu_rig *rig, const struct gpu_cache *cache, uint32_t seed, const uint32_t *at,
                     const uint32_t *of, size_t n);

struct spw_key gpu_key(uint64_t number);
