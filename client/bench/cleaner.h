/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ceiling of a full device: a greedy cleaner, simulated. Blocks of one size go into segments; a block that is written
 * again dies where it was; when segments run out, the one with the fewest live blocks is emptied by copying those. That
 * is the least copying that a log-structured store can do without knowing the future of its blocks.
 */
#pragma once

#include "include/base/base.h"

struct cleaner;

#define CLEANER_STREAMS 2 /* writers whose blocks do not share segments; copies have a segment of their own */

/* Blocks are numbered 0 to n_blocks - 1. -EINVAL if they leave no room to clean; -ENOMEM. */
must_check int cleaner_new(uint32_t n_segments, uint32_t blocks_a_segment, uint32_t n_blocks,
                           struct cleaner **ret_cleaner);
void cleaner_free(struct cleaner *cleaner);
void cleaner_write(struct cleaner *cleaner, uint32_t block, uint32_t stream);
/* Blocks that went to the device so far, copies included. */
uint64_t cleaner_written(const struct cleaner *cleaner);
