/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client without manners at a lane: it speaks the protocol itself, to a real spillwayd and its helper on the fake driver,
 * beside another client (libspillway's) that has manners, and must not notice. One thread. What goes wrong in here fails the
 * test.
 */
#pragma once

#include "include/base/limits.h"
#include "tests/system/support/gpu.h"
#include "tests/system/support/rawclient.h"

#define HOSTILE_BLOCK_BYTES (16 * KIB)
#define HOSTILE_BLOCKS 64
#define HOSTILE_SLOT_BYTES (8 * MIB)
#define HOSTILE_SLOTS 2
#define HOSTILE_LANE_BYTES ((int64_t)(2 * HOSTILE_SLOTS * HOSTILE_SLOT_BYTES))
#define HOSTILE_GOOD_BYTES                                                                                             \
    ((int64_t)(2 * DEFAULT_GPU_SLOTS * DEFAULT_GPU_SLOT_BYTES)) /* of the lane of who has manners */
#define HOSTILE_SHORT_MS 300
#define HOSTILE_LONG_MS 20000

struct hostile {
    struct raw_session s;
    struct spw_msg_gpu lane;
    int staging_fd, fences_fd; /* -1: none */
    struct spw_gpu_fences *fences;
};

/* --- The other one --- */

extern struct gpu_rig hostile_rig;
extern struct gpu_cache hostile_cache;

/* All of it, for one test. The helper's switches: hostile_role(). */
void hostile_begin(void);
struct fake_cuda_role *hostile_role(void);
/* The other one spills and fetches as if nothing had happened, and gets the same bytes. */
void others_are_served(void);
/* Waits for a number in what the daemon says about itself. */
void hostile_becomes(const char *what, const char *path, int64_t wanted);
/* Of the hostile there is no lease, no lane, no byte of the budget; and no helper was lost. */
void nothing_is_left(void);
/* Both of these, then everything goes, and nothing may be left of the other one either. */
void hostile_finish(void);

/* --- The hostile one --- */

void hostile_session(struct hostile *h, uint8_t digest);
struct spw_msg_gpu_attach hostile_attach_message(const struct hostile *h);
/* The status, or -ENOTCONN: the session was ended. ret_detail may be NULL. */
int hostile_attach_try(struct hostile *h, struct spw_msg_gpu_attach ask, uint16_t *ret_detail);
void hostile_attach(struct hostile *h);
/* A session with a lane. */
void hostile_open(struct hostile *h, uint8_t digest);
/* Its fences; hostile_attach() has done so. */
void hostile_lane_map(struct hostile *h);
void hostile_lane_unmap(struct hostile *h);
void hostile_close(struct hostile *h);
int hostile_detach_try(struct hostile *h, uint32_t lane);

/* RESERVE or ACQUIRE of one object. */
uint64_t hostile_lease(struct hostile *h, uint8_t opcode, uint64_t key, uint64_t size_bytes);
/* COMMIT, ABORT or RELEASE of it; its status. */
int hostile_lease_end(struct hostile *h, uint8_t opcode, uint64_t lease);
struct spw_sqe hostile_use_sqe(struct hostile *h, uint8_t opcode, uint64_t seq, const uint64_t *leases, uint32_t n,
                               uint32_t timeout_ms);
int hostile_use(struct hostile *h, uint8_t opcode, uint64_t seq, const uint64_t *leases, uint32_t n);
/* One that is still on its way after a moment; and its end. */
void hostile_use_begin(struct hostile *h, uint8_t opcode, uint64_t seq, uint64_t lease);
int hostile_use_end(struct hostile *h);
