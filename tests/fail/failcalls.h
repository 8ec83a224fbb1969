/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the interposed library (interpose.c, trap.c, completion.c) and the driver (failcalls.py, which reads and writes the same
 * bytes) share: a file for each program, $FAILCALLS_DIR/PROGRAM.state, mapped by both. A program without such a file is left
 * alone.
 *
 * A site is a place in our code, and the call that it makes: its own, or, where another library makes the call, the call into
 * that library. A point is the nth call of a site since the point was armed: it fails once, or from then on all calls of that
 * kind fail. Counting for each site, rather than over all of them, is what makes a point the same in the next run, although
 * threads interleave otherwise.
 */
#pragma once

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FAIL_MAGIC UINT64_C(0x736c6c6163666c61)
#define FAIL_CALLS_MAX 160
#define FAIL_NAME_BYTES 40
#define FAIL_SITES_MAX 4096

enum fail_mode { FAIL_OFF, FAIL_ONCE, FAIL_FOR_GOOD };

/* A completion that is cut short, in the place of an errno. */
#define FAIL_SHORT (-1)

/* The files' modules: what a site's address is relative to. */
enum fail_module { FAIL_PROGRAM, FAIL_LIBRARY, FAIL_RING };

struct fail_site {
    _Atomic uint64_t key; /* call << 48 | module << 40 | address; 0: free */
    _Atomic uint64_t n_calls;
};

struct fail_state {
    _Atomic uint64_t magic; /* the library has come to life */
    /* The driver's. */
    _Atomic uint64_t target; /* a site's key */
    _Atomic uint64_t nth;    /* from 1 */
    _Atomic uint32_t mode;
    _Atomic int32_t error; /* errno, or FAIL_SHORT */
    /* The library's. */
    _Atomic uint64_t n_seen;  /* calls of the target since it was armed */
    _Atomic uint64_t n_fired; /* calls that failed */
    _Atomic int64_t live_bytes;
    _Atomic int64_t live_blocks;
    _Atomic uint64_t n_left_out; /* sites that found no room here */
    _Atomic uint32_t is_whole;   /* the driver's: for good means all calls of that kind, not only those of this site */
    uint8_t reserved[4096 - 76];
    char names[FAIL_CALLS_MAX][FAIL_NAME_BYTES];
    struct fail_site sites[FAIL_SITES_MAX];
};

static_assert(offsetof(struct fail_state, names) == 4096, "failcalls.py knows it");
static_assert(offsetof(struct fail_state, sites) == 4096 + FAIL_CALLS_MAX * FAIL_NAME_BYTES, "failcalls.py knows it");

/* --- Within the library ------------------------------------------------------------------------------------------ */

/* The calls; interpose.c has the table of them. Raw ones and completions have no function to stand before. */
enum fail_raw {
    FAIL_RAW_SETUP = FAIL_CALLS_MAX - 16,
    FAIL_RAW_ENTER,
    FAIL_RAW_REGISTER,
    FAIL_RAW_MMAP,
    FAIL_RAW_MUNMAP,
    FAIL_COMPLETION,
};

/* True: this call, from that return address, is to fail with *ret_error. */
bool fail_now(unsigned call, void *return_address, int *ret_error);
/* The same of a completion, whose site is `address`. */
bool fail_completion_now(unsigned address, int *ret_error);

/* trap.c: what liburing asks of the kernel itself. */
void trap_install(uintptr_t text_low, uintptr_t text_high);

/* completion.c: rings, and what comes out of them. In the thread that enters. */
struct io_uring_params;
void completion_ring_made(int fd, const struct io_uring_params *params);
void completion_ring_mapped(int fd, uint64_t offset, void *mem);
void completion_ring_registered(int fd, unsigned index);
/* Before and after io_uring_enter(). */
void completion_entering(int fd, bool is_registered);
void completion_entered(int fd, bool is_registered);
