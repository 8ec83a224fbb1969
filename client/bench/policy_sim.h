/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Eviction policies, simulated: a trace through the daemon's own code for them, with memory for so many blocks and nothing
 * else: no bytes, no daemon, no device. Blocks of one size, one at a time, each reference a hit or a miss.
 */
#pragma once

#include "client/bench/trace.h"

struct policy_sim;

struct policy_sim_result {
    uint64_t hits, misses;
    uint64_t kept; /* misses whose block outlasts the next one: not bypassed */
    uint64_t cpu_ns;
};

/* Borrows the trace. -ENOMEM, -E2BIG. */
must_check int policy_sim_new(const struct trace *trace, struct policy_sim **ret_sim);
void policy_sim_free(struct policy_sim *sim);

/* From empty memory for `capacity` blocks. -EINVAL: no such policy, or no capacity; -ENOMEM; -EUCLEAN: the policy's own
 * check fails afterwards. */
must_check int policy_sim_run(struct policy_sim *sim, const char *policy, uint32_t capacity,
                              struct policy_sim_result *ret_result);
/* The most hits that are possible: see optimum.h. */
must_check int policy_sim_optimum(const struct policy_sim *sim, uint32_t capacity, uint64_t *ret_hits);
/* As written in the config, ended by NULL. */
const char *const *policy_sim_names(void);
