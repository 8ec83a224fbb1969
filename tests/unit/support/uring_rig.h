/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of the real backend share: a file to work on, threads, and calls that wait. One test at a time. */
#pragma once

#include "io/grower.h"
#include "io/uring.h"
#include "io/workers.h"

#define RIG_DISK_BYTES (8 * MIB)
#define SECOND_NS UINT64_C(1000000000)

extern char rig_path[256];
extern struct device rig_disk;
extern uint32_t rig_done, rig_polled, rig_chunks; /* callbacks since rig_setup() */
extern uint64_t rig_token;                        /* of the last poll */
extern uint32_t rig_revents;

/* A fixture: a filled file of RIG_DISK_BYTES, two workers, a grower. */
void rig_setup(void);
void rig_teardown(void);
/* Not started. */
struct uring *rig_make_with(struct uring_config config);
/* Made and started by this thread. */
struct uring *rig_make(void);
void rig_run_until(struct uring *u, const uint32_t *counter, uint32_t n);
void rig_submit(struct uring *u, struct io_blk *blk);
/* Submits and waits; also checks that done() does not come from within the submit. */
int32_t rig_do_blk(struct uring *u, struct io_blk blk);
/* Fails on any bogus completion. */
struct uring_stat rig_stat(const struct uring *u);
/* Writes, flushes and reads back 1 MiB of the region; looks at the file itself in between. */
void rig_round_trip(struct uring *u, uint16_t dev, uint32_t region);
void rig_submit_work(struct uring *u, struct io_work *work);
/* Submits and waits. */
struct io_chunk rig_request_chunk(struct uring *u, uint64_t size_bytes, enum io_chunk_kind kind);
