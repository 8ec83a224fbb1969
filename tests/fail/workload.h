/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is done while calls fail: a short life of a client, of every kind of call. Whatever a call answers is noted; what it
 * must never be is a wrong byte, or silence. workload.c: options and the oracle; work_blocks.c, work_tensors.c, work_queue.c,
 * work_gpu.c: the steps. One thread, but for one that is made to have a ring of its own.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "include/spillway/spillway.h"

#define WORK_SHORT_MS 1500 /* where calls may fail: an answer that was lost is not waited for long */
#define WORK_LONG_MS 60000 /* where they may not: however busy the machine is */
#define WORK_BLOCK_BYTES 65536
#define WORK_BLOCKS 6
#define WORK_TENSOR_BYTES ((uint64_t)1 << 20)

struct work {
    const char *socket;
    const char *ledger; /* what was acknowledged as durable; NULL: not kept */
    uint64_t number;    /* of this run: its keys are its own */
    bool is_strict;     /* nothing may fail */
    bool is_degraded;   /* but what a device that is not trusted any more refuses: -EIO, -EBADMSG */
    bool has_gpu;
    bool keeps;        /* what is durable stays there */
    bool holds;        /* leases, until the driver says so; and nothing else */
    unsigned n_failed; /* calls that answered with an error */
    int first_error;
    char first_step[64];
};

static inline uint32_t work_timeout_ms(const struct work *w)
{
    return w->is_strict ? WORK_LONG_MS : WORK_SHORT_MS;
}

/* Notes the answer, and passes it on. Where nothing may fail and this did, the program ends. */
int work_answer(struct work *w, const char *step, int r);
/* Something that must never be: the program ends with EXIT_BROKEN. */
void work_broken(const struct work *w, const char *what, uint64_t key) __attribute__((noreturn));

struct spw_key work_key(const struct work *w, uint32_t number);
void work_fill(void *to, size_t size_bytes, uint64_t seed);
bool work_is(const void *from, size_t size_bytes, uint64_t seed);
uint64_t work_seed(const struct work *w, uint32_t number);

void work_admin(struct work *w, spw_session *session);
void work_blocks(struct work *w, spw_space *space);
void work_lists(struct work *w, spw_space *space);
void work_thread(struct work *w, spw_space *space);
void work_durable(struct work *w, spw_space *space);
void work_tensor(struct work *w, spw_space *space);
void work_tidy(struct work *w, spw_space *space);
void work_queue(struct work *w, spw_session *session, spw_space *space);
void work_gpu(struct work *w, spw_pool *pool);
void work_hold(struct work *w, spw_space *space);

/* The oracle of restarts: everything in the ledger is there, whole. */
void work_verify(struct work *w, spw_space *space);
