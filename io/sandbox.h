/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Filters for system calls: each thread, once it is set up, keeps those that its work needs (io/sandbox_calls.h) and gives
 * up the rest. So whoever takes such a thread over through the memory that clients write to gets no other program, no
 * network, no new code and no other process's memory by it.
 *
 * What io_uring does in a thread's name is not seen here: that is what the ring's own restrictions are for (io/uring.c).
 *
 * One for the process, as the kernel has it. sandbox_init() comes before any thread; until then sandbox_enter() does
 * nothing, so that programs that use a part of io/ need not know of it.
 */
#pragma once

#include "include/base/base.h"

enum sandbox_mode {
    SANDBOX_OFF,
    SANDBOX_LOG, /* a call that is not in the list is told of and made */
    SANDBOX_ON,  /* it is told of and fails with EPERM */
};

enum sandbox_thread {
    SANDBOX_CONTROL,
    SANDBOX_ENGINE,
    SANDBOX_WORKER,
    SANDBOX_GROWER, /* and the threads that it makes */
    SANDBOX_GPU,    /* all of spillway-gpu: a list of what it may not, as a driver's needs cannot be known */
    SANDBOX_THREADS,
};

/* Of each call of each kind of thread the first one only. Runs in a signal handler, in the midst of anything. */
typedef void (*sandbox_say)(const char *thread, const char *call, bool is_made);

/* -ENOSYS: not on this machine, kernel or processor; nothing is filtered then. No new privileges from here on. */
must_check int sandbox_init(enum sandbox_mode mode, sandbox_say say);
/* The calling thread's filter, and that of the threads that it makes. There is no way back. */
int sandbox_enter(enum sandbox_thread thread);

/* What the admin is told. */
struct sandbox_stat {
    enum sandbox_mode mode;
    uint32_t threads; /* that have entered */
    int error;        /* of the last one that could not, or 0 */
    uint64_t refused; /* calls that were not in a list; SANDBOX_LOG: and were made */
    const char *call; /* the latest of them, and who made it; or NULL */
    const char *where;
};
void sandbox_stat(struct sandbox_stat *ret_stat);
