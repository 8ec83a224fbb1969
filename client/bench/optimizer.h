/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between optimizer.c, which goes through sizes of memory and measures, and optimizer_stream.c, which makes a step on states
 * that are in a store.
 */
#pragma once

#include "include/base/base.h"
#include "include/spillway/spillway.h"
#include "include/spillway/train.h"

#define STATE_ARRAYS 3 /* master, m, v */
#define STATE_BYTES (STATE_ARRAYS * sizeof(float))

/* The parameters, and what their states are stepped with; states and parameters begin the same on both sides. */
struct optimizer_model {
    size_t n;
    uint64_t seed;
    uint16_t *grad;       /* bf16, the same in each step */
    uint16_t *param;      /* bf16, as a step leaves it */
    spw_workers *workers; /* of the process, one step at a time */
};

/* The first master of an element; moments are 0. */
float optimizer_first(const struct optimizer_model *model, size_t i);
/* The numbers of a step, the first being 1. */
struct spw_adam_options optimizer_numbers(uint64_t step);

/*
 * States in a store: chunks of one piece each, with the three arrays of so many elements one behind the other. They are
 * used in order, and up to `window` of them are leased, or are on their way, at a time.
 */
struct optimizer_stream;

/* Elements of a chunk in pieces of so many bytes; of whole blocks of the sums. */
size_t optimizer_chunk_elements(uint64_t piece_bytes);
/* Creates the states in the pool, as they are before the first step. The model stays the caller's. */
must_check int optimizer_stream_new(spw_session *session, spw_pool *pool, const struct optimizer_model *model,
                                    unsigned window, struct optimizer_stream **ret_stream);
void optimizer_stream_free(struct optimizer_stream *stream);
/* One step, until the last lease was given back: 0 or a negative errno (said). ret_waited_ns: how much of it was waiting for
 * states. */
must_check int optimizer_stream_step(struct optimizer_stream *stream, uint64_t *ret_waited_ns);
