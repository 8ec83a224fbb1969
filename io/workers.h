/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads that copy and checksum for all engines of the process. An engine submits jobs in batches (one lock, one
 * wake); each comes back as a message in the mailbox of the engine that sent it.
 */
#pragma once

#include "include/base/base.h"
#include "include/base/list.h"
#include "io/backend.h"
#include "io/engine_queue.h"

struct workers;

struct workers_config {
    uint32_t threads; /* 1 to WORKERS_MAX */
    uint32_t spin_us; /* how long an idle worker looks for more before it sleeps; 0: not at all */
};

/*
 * Addresses were resolved by the engine. src_poisoned and dst_poisoned (may be NULL) are looked at after the bytes
 * were: if one is set, the result is -EFAULT.
 */
struct workers_job {
    struct list link;      /* the pool's */
    struct engine_msg msg; /* posted to home when the job is done */
    struct engine_queue *home;
    const void *src;
    void *dst;
    uint64_t *sums;
    const uint32_t *src_poisoned, *dst_poisoned;
    uint64_t seed;
    uint32_t len_bytes;
    uint32_t first_granule;
    enum io_work_op op;
    bool dst_is_ours; /* no client reaches it */
    int32_t result;   /* valid when msg is run */

    /* The pool's own. */
    uint32_t n_parts_, next_part_, parts_left_;
};

must_check int workers_new(const struct workers_config *config, struct workers **ret_workers);
/* Does what was submitted, then ends the threads. Takes NULL. */
void workers_free(struct workers *w);
/* Any thread. */
void workers_set_spin(struct workers *w, uint32_t spin_us);

/*
 * The calling thread does a job of at most WORK_PART_BYTES itself, and nothing is posted; `granule` is its buffer of
 * GRANULE_BYTES. Returns the result.
 */
int32_t workers_do_here(struct workers_job *job, char *granule);

/* Any thread. Takes all jobs of the list, in order. */
void workers_submit(struct workers *w, struct list *jobs);
