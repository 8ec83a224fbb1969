/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device as a daemon leaves it that is killed: formatted, in use, and with a log of so many pieces, a sector each. What
 * they hold is not there: recovery does not look at it.
 */
#pragma once

#include "include/base/base.h"
#include "include/spillway/spillway.h"

struct recover_log {
    uint64_t n; /* pieces: their keys are payload_key(seed, 0) and so on */
    uint64_t seed;
    const char *pool;
    struct spw_space_options space; /* what a client opens them by; durable */
};

/* What a device needs so that so many entries are no more than a log may have, and of that the log itself. */
uint64_t recover_device_bytes(uint64_t n);
uint64_t recover_ring_bytes(uint64_t n);
/* Says what failed. ret_log_off_bytes: where the log begins. */
must_check int recover_log_write(const char *path, const struct recover_log *log, uint64_t *ret_log_off_bytes);
