/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes that spill as fast as they can for as long as their switch is on. They are forked before the parent has a
 * session, keep their state in shared memory, where the count of their bytes is read, and die with the parent.
 */
#pragma once

#include <sys/types.h>

#include "client/bench/disk_load.h"

#define MIX_WRITERS_MAX 2
#define MIX_BLOCK_BYTES (64 * KIB)

struct mix_writer;
struct mix_writers {
    struct mix_writer *at[MIX_WRITERS_MAX]; /* NULL: not started */
    pid_t pids[MIX_WRITERS_MAX];
};

/* A space of `cache` blocks and a queue for it. Errors are said. */
must_check int mix_load_open(spw_session *session, const char *pool, struct disk_load *load);

/* Starts one that writes into this pool, switched off. */
must_check int mix_writer_start(struct mix_writers *w, unsigned i, const char *socket_path, const char *pool,
                                uint64_t seed);
void mix_writers_switch(struct mix_writers *w, bool on);
/* Bytes that one has stored so far. */
uint64_t mix_written(const struct mix_writers *w, unsigned i);
bool mix_writers_live(const struct mix_writers *w);
/* Waits until all together have stored so many bytes since then, half a minute at most. */
void mix_writers_wait(const struct mix_writers *w, uint64_t since, uint64_t bytes);
void mix_writers_end(struct mix_writers *w);
