/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Traces in Mooncake's format (a JSON object a line; `hash_ids` is the chain of a request's blocks), and a replay of one
 * through an eviction policy as the daemon drives it.
 */
#pragma once

#include <limits.h>

#include "include/base/base.h"
#include "tiering/policy.h"

struct trace {
    uint32_t *refs; /* block ids, request after request */
    size_t n_refs;
    size_t *ends; /* of each request: where in refs the next one begins */
    uint32_t n_requests;
    uint32_t n_ids; /* all ids are below */
    uint32_t n_distinct;
};

/* 0, -errno of the file, or -EBADMSG with the number of the first line that is not in the format. */
int trace_load(const char *path, struct trace *ret_trace, uint32_t *ret_bad_line);
void trace_deinit(struct trace *t);

/*
 * Finds a large trace that is not part of the repository: $SPILLWAY_TRACE, or traces/NAME under one of the folders in
 * $SPILLWAY_DATA (separated by colons). False if there is none.
 */
bool trace_find(const char *name, char ret_path[PATH_MAX]);

/* The path of a file of the repository: under $SPILLWAY_SOURCE, else where the build found it, else the working folder. */
void trace_source_path(const char *name, char ret_path[PATH_MAX]);

struct replay {
    uint64_t capacity;    /* objects */
    uint32_t sectors;     /* of each object; 0: sizes of 1 to 16 sectors, the capacity being 8 a piece */
    uint32_t n_in_flight; /* insertions that follow this many misses later, as if bytes were on their way */
    uint32_t low_percent; /* evict ahead of need down to this occupancy; 0: only when an insertion needs the room */
    uint32_t check_every; /* references between two calls of check(); 0: at the end alone */
    /*
     * Requests come as lists, as an engine sends them: what is there of at most list_max blocks is used; then those of the
     * rest get room, store_max at a time, are written, and inserted. 0: one block at a time.
     */
    uint32_t list_max, store_max;
    size_t count_from; /* hits of references before this one do not count: what had to be learned is known */
    bool unnamed;      /* no LOOKUP: each list speaks for itself */
    bool prefix_only;  /* nor that: of each request the resident prefix is used, then the rest is stored */
};

/* Hits, a reference to an insertion in flight being one. -errno of the policy's new() or check(). */
int64_t trace_replay(const struct trace *t, const struct policy_ops *ops, const struct replay *how);
