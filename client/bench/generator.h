/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes a trace from a seed: with the published shape of a chat service's traffic, or another. See generator.c.
 */
#pragma once

#include "client/bench/trace.h"

enum generator_shape { GENERATOR_CHATS, GENERATOR_AGENTS, GENERATOR_DOCUMENTS, GENERATOR_SHAPES };

struct generator_options {
    uint64_t seed;
    enum generator_shape shape;
    uint64_t n_requests; /* 0: until n_distinct blocks */
    uint64_t n_distinct; /* used if n_requests is 0 */
};

/* generator_run(): -ENOMEM. Equal options give equal traces, on every machine. */
const char *generator_shape_name(enum generator_shape shape);
must_check int generator_run(const struct generator_options *options, struct trace *ret_trace);
