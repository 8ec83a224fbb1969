/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The thread that obtains memory for all engines of the process, and gives it back, so that none of them waits for pages
 * to be touched or freed. Nor for memory that another process is still giving back: this thread does, MEMORY_WAIT_MS at
 * most.
 */
#pragma once

#include "include/base/base.h"
#include "include/base/list.h"
#include "io/engine_queue.h"
#include "io/memory.h"

struct grower;

struct grower_job {
    struct list link;           /* the grower's */
    struct engine_msg msg;      /* posted to home when the job is done */
    struct engine_msg wait_msg; /* the same before it waits for memory; without run: nobody wants to know */
    struct engine_queue *home;
    struct memory_chunk_config config;
    bool is_discard; /* grower_discard()'s own: nobody hears of it */
    int result;
    struct memory_chunk *chunk; /* of whoever runs msg, if result is 0 */
};

must_check int grower_new(struct grower **ret_grower);
/* Cancels what is under way: those jobs come back with -ECANCELED. Takes NULL. */
void grower_free(struct grower *g);

/* Any thread. The grower calls config.progress itself; it must be thread-safe. */
void grower_submit(struct grower *g, struct grower_job *job);
/*
 * The chunk's pages go back to the machine, whoever maps them: before any memory is obtained that is asked for after
 * this. The caller's reference goes with them. Any thread.
 */
void grower_discard(struct grower *g, struct memory_chunk *chunk);
