/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ceiling of every eviction policy.
 */
#pragma once

#include "include/base/base.h"

/* The most hits that a cache for `capacity` blocks can have on these references, to blocks 0 to n_blocks - 1, if it knows
 * them all beforehand and need not let in what is not worth it. -ENOMEM. */
must_check int optimum_hits(const uint32_t *refs, uint64_t n_refs, uint32_t n_blocks, uint32_t capacity,
                            uint64_t *ret_hits);
