/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes a trace with the published shape of a chat service's traffic, from a seed. See generator.c for what that is.
 */
#pragma once

#include "client/bench/trace.h"

struct generator_options {
    uint64_t seed;
    uint64_t n_requests; /* 0: until n_distinct blocks */
    uint64_t n_distinct; /* used if n_requests is 0 */
};

/* -ENOMEM. Equal options give equal traces, on every machine. */
must_check int generator_run(const struct generator_options *options, struct trace *ret_trace);
