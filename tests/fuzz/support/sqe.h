/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The language of SQEs: a few bytes of input say any operation in any form that abi.h gives it, with handles of the client's
 * own, and where the input asks for that with a wrong one.
 *
 *   operation   % SPW_OPS
 *   shape       2 bits which space, 2 user_data, 2 timeout, 1 results that do not fit, 1 CHAIN
 *   list        4 bits how many items, 4 flags; not of operations that have none
 *   arguments   a byte, of operations that have some; two of ADVISE
 *   items       two bytes each, handles one; the rest of a long list goes on from the last
 */
#pragma once

#include "daemon/request.h"
#include "include/spillway/abi.h"
#include "tests/fuzz/support/world.h"

#define SQE_SPACES 4
#define SQE_OBJECT_BYTES (2 * WORLD_PIECE_BYTES + 100) /* of one of them: its items are of three pieces */
#define SQE_LEASES 64
#define SQE_RESULTS 4096 /* in scratch, of most requests; items are at its beginning */
#define SQE_SCRATCH_BYTES 8192

/* What a client can name. */
struct sqe_names {
    uint32_t spaces[SQE_SPACES];
    uint32_t n_spaces;
    uint64_t leases[SQE_LEASES]; /* the newest last */
    uint32_t n_leases;
    uint64_t ended;      /* was a lease */
    uint64_t plan_items; /* that were sent of a plan */
    const struct peer *peer;
    uint8_t *scratch;
};

/* Writes the list into scratch, and the SQE that goes with it. */
void sqe_make(struct fuzz *f, struct sqe_names *names, struct spw_sqe *ret_sqe);
