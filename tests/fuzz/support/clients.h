/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The request path as hostile clients see it: an engine's requests on the world of world.h, and sessions that write what the
 * input says (sqe.h) into rings and scratch memory of theirs. Two are in the trusted pool, two in the shared one.
 *
 * What must hold whatever they write: nobody is granted bytes of a chunk that his session may not map; nothing is written
 * outside of a session's memory; and when the sessions have ended, everything is back.
 */
#pragma once

#include "tests/fuzz/support/world.h"

#define CLIENTS 4
#define CLIENT_RING_BYTES 4096
#define CLIENT_SCRATCH_BYTES 8192 /* SQE_SCRATCH_BYTES */

/* Client i's memory, which lives as long as the program: CLIENT_RING_BYTES, CLIENT_SCRATCH_BYTES. */
uint8_t *client_ring(uint32_t i);
uint8_t *client_scratch(uint32_t i);

/* Runs an input from the beginning of an engine to its end. */
void clients_run(struct fuzz *f);
