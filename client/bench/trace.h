/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A trace: requests in order, each a chain of blocks named by numbers. Read from a file in Mooncake's format, or made by
 * the generator.
 */
#pragma once

#include "include/base/base.h"

struct trace_request {
    uint64_t first; /* of its ids, in trace.ids */
    uint32_t n;
    uint32_t time_ms; /* since the trace's start */
};

struct trace {
    uint64_t *ids; /* of all requests, one after the other */
    struct trace_request *requests;
    uint64_t n_ids, n_requests; /* references, requests */
    uint64_t n_distinct;
    uint64_t ids_room, requests_room;
    uint32_t longest; /* blocks of one request */
};

void trace_deinit(struct trace *t);
/* Copies the chain. -ENOMEM, -E2BIG beyond the bounds of a trace. */
must_check int trace_add(struct trace *t, uint32_t time_ms, const uint64_t *ids, uint32_t n);
/* Counts distinct blocks. -ENOMEM. */
must_check int trace_count(struct trace *t);
/* JSON objects, one a line, with an array hash_ids; timestamp in ms. -EBADMSG: *ret_bad_line is no such line. */
must_check int trace_load(const char *path, struct trace *ret_trace, uint64_t *ret_bad_line);
