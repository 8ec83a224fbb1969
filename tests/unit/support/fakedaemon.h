/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A daemon for the client's tests: one thread in the test's own process that speaks the handshake and serves rings well
 * enough (NOP, LOOKUP, RESERVE, COMMIT, ABORT, ACQUIRE, RELEASE, TOUCH, PREFETCH, DELETE, SYNC, STAT, CANCEL, TENSOR),
 * with one pool, one engine, and one chunk that is never used twice. It misbehaves on demand.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define FAKE_PIECE_BYTES 65536
/* Requests whose first key has this group are kept until fake_let_go(), or a CANCEL. */
#define FAKE_GROUP_HOLD 77

enum fake_fault {
    FAKE_NONE,
    FAKE_WRONG_VERSION, /* the handshake is refused with -EPROTONOSUPPORT */
    FAKE_ODD_VERSION,   /* the handshake agrees on a version that we do not speak */
    FAKE_REFUSE_POOL,   /* with words */
    FAKE_SHORT_REPLY,   /* to RING_NEW */
    FAKE_SILENT,        /* to POOL_OPEN */
    FAKE_UNSEALED_RING,
    FAKE_BAD_GEOMETRY,   /* the CQ array ends past its memory */
    FAKE_NO_DESCRIPTORS, /* RING_NEW without them */
    FAKE_RINGS_FULL,     /* RING_NEW is -EMFILE with SPW_LIMIT_SESSION_RINGS and no text */
    FAKE_DIE_ON_REQUEST, /* when an SQE comes */
    FAKE_CQ_TAIL_FAR,    /* cq_tail jumps ahead by 2^31 */
    FAKE_CQ_TAIL_BACK,   /* cq_tail goes back by one */
    FAKE_CQE_UNKNOWN,    /* a completion of nothing */
    FAKE_RESULT_OUTSIDE, /* a result past the end of its chunk */
    FAKE_RESULT_LENGTH,  /* a result longer than asked for */
    FAKE_RESULT_CHUNK,   /* a chunk number that cannot exist */
    FAKE_NO_CHUNK,       /* CHUNK_GET is -ENFILE */
    FAKE_NO_SPACE,       /* every element is -ENOSPC with SPW_LIMIT_POOL_LEASES */
    FAKE_REQUEST_FAILS,  /* every SQE is -EAGAIN with SPW_LIMIT_REQUESTS */
};

struct fake;

/* Starts it on a socket of its own; never fails (it ends the test). */
struct fake *fake_start(void);
void fake_stop(struct fake *fake);
const char *fake_path(const struct fake *fake);
void fake_set_fault(struct fake *fake, enum fake_fault fault);
/* Closes everything, as a killed daemon would. */
void fake_die(struct fake *fake);
/* Completes what is held; the answers are there when it returns. */
void fake_let_go(struct fake *fake);
/* Waits until so many requests are held. */
void fake_wait_held(struct fake *fake, unsigned n);
/* The next chunk gets a new epoch under the same number, as if the old one had been dropped. */
void fake_renew_chunk(struct fake *fake);
/* Right before the nth list element from now on that names an object is served, another object of this size takes its
 * place, all of whose bytes are FAKE_REPLACED_BYTE. n = 0: never. */
#define FAKE_REPLACED_BYTE 0xee
void fake_replace(struct fake *fake, unsigned n, uint64_t size_bytes);

/* Counters. */
unsigned fake_leases(struct fake *fake); /* given and not given back */
unsigned fake_rings(struct fake *fake);  /* living */
unsigned fake_sqes(struct fake *fake);   /* seen */
unsigned fake_chunk_gets(struct fake *fake);
unsigned fake_sleeps(struct fake *fake); /* of the engine, with NEED_WAKEUP set */
unsigned fake_wakes(struct fake *fake);  /* of clients, by futex or doorbell */
