/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A trace through an engine against a daemon, with a live line, and what it cost.
 */
#pragma once

#include "client/bench/engine.h"
#include "client/bench/figure.h"
#include "client/bench/process.h"

#define RUN_QUARTERS 4

struct run_options {
    const char *socket_path; /* NULL: as every client finds it */
    pid_t daemon_pid;        /* 0: as it tells */
    const char *pool;
    enum engine_mode mode;
    uint64_t seed, block_bytes;
    uint32_t list_max;  /* blocks of one call; 0: as many as go */
    double seconds_max; /* 0: the whole trace */
    bool quiet;
};

/* What the daemon says about itself; NaN where it does not. */
struct run_daemon {
    pid_t pid; /* 0: unknown */
    bool degraded;
    double payload_bytes, used_bytes; /* in DRAM: what was asked for, and what it takes */
    double nvme_written_bytes, nvme_bounced_bytes;
    double objects, objects_max;
    double record_bytes;             /* of one object */
    double index_bytes, ghost_bytes; /* of all, as allocated */
    double copied_bytes;             /* payload bytes copied by the daemon, other than into bounce segments */
};

struct run {
    const struct run_options *options;
    spw_session *session;
    struct spw_pool_info pool;
    struct engine engine;
    struct run_daemon before, after;
    double wall_s, client_cpu_s, daemon_cpu_s;
    struct process_usage quarters[RUN_QUARTERS]; /* the daemon at 25, 50, 75 and 100 % of the trace */
    uint64_t working_set_bytes;                  /* of what was replayed */
    bool stopped_early;
};

must_check int run_open(const struct run_options *options, uint32_t longest_chain, struct run *ret_run);
void run_close(struct run *run);
/* Replays. 0 even if bytes were wrong: see engine.stats. -EINTR: the user stopped it. */
must_check int run_trace(struct run *run, const struct trace *trace);
