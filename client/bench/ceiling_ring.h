/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ceiling of a round trip: a ring of 64-byte entries to another process and one back, with nothing behind it, and the
 * ways that a sleeper can be woken.
 */
#pragma once

#include "include/base/base.h"

enum ceiling_wake {
    CEILING_SPIN,    /* both sides look all the time */
    CEILING_FUTEX,   /* both sleep at once, on the ring's tail */
    CEILING_EVENTFD, /* both sleep at once, in read() */
};

struct ceiling_ring;

/* The other side is a child, on that CPU; it sleeps between measurements. */
must_check int ceiling_ring_new(unsigned cpu, struct ceiling_ring **ret_ring);
void ceiling_ring_free(struct ceiling_ring *ring);
/* The mean of n round trips from the calling thread. -ECHILD: the other side has gone. */
must_check int ceiling_ring_trip_ns(struct ceiling_ring *ring, enum ceiling_wake wake, uint32_t n, double *ret_ns);
