/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client under load, one thread for each way of using the library, while the daemon is restarted. Whatever the library
 * answers with an error, and whatever byte is not what was written, is noted with what was done. All that is stored fits
 * into the pool, so nothing may be missing.
 */
#pragma once

#include <pthread.h>

#include "tests/system/support/daemon.h"

enum hot_kind {
    HOT_COPY,   /* spw_put, spw_get, spw_delete */
    HOT_LEASE,  /* reserve, fill, commit; acquire, read, release */
    HOT_HOLD,   /* the same leases all the time */
    HOT_TENSOR, /* ranges; SYNC if there is a device */
    HOT_QUEUE,  /* jobs, poll() */
    HOT_LOOK,   /* lookup, touch, pin, stat */
    HOT_KINDS,
};

struct hot_worker {
    struct hotload *load;
    enum hot_kind kind;
    pthread_t thread;
    uint64_t seed;
    uint64_t n_done;   /* atomic */
    char error[512];   /* the first one; with n_errors */
    uint32_t n_errors; /* atomic */
};

struct hotload {
    spw_session *session;
    spw_space *blocks, *tensors;
    bool has_device;
    uint32_t stop; /* atomic */
    struct hot_worker workers[HOT_KINDS];
};

/* Connects, and starts all threads. */
void hotload_start(struct hotload *load, const struct daemon *d, uint64_t seed);
/* Every thread has done something since, or has failed. False: one has not, for 60 s. */
bool hotload_progress(struct hotload *load);
/* The first error of any thread, or NULL. */
const char *hotload_error(const struct hotload *load);
/* Stops, looks at all that was stored for the last time, and closes. Returns how many calls were made. */
uint64_t hotload_stop(struct hotload *load);
