/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ring arithmetic and the wake-up, shared by the client, the engine and (later) the GPU helper.
 *
 * A ring is an array of a power of two of entries, and two free-running 32-bit indices: head (the consumer's) and tail
 * (the producer's). Each side keeps its own index in private memory and only publishes it; it never reads it back. The
 * other side's index is believed only if 0 <= tail - head <= size (ring_peer_ok).
 *
 * The wake-up (W: waker, S: sleeper):
 *     S1 flag = 1      W1 publish tail
 *     S2 full fence    W2 full fence
 *     S3 read tail     W3 read flag
 * Whatever the interleaving, S3 sees the new tail or W3 sees the flag: nobody sleeps on work that is there, and nobody
 * is woken who does not sleep. tests/unit/test_ring_wakeup.c runs all interleavings.
 *
 * It takes a sleeper long to wake, and meanwhile its flag stays. So beside the flag stands a number, another one for each
 * sleep: a waker that has woken for this very one need not do it again. Number 0 is of a sleeper that does not count.
 * That holds only for wake-ups that last until the sleeper takes them, as a byte on a doorbell does: the first one may
 * come for a tail that the sleeper knows already, before it sleeps, and a futex then wakes nobody.
 */
#pragma once

#include "include/base/atomic.h"
#include "include/base/base.h"

/* Entries between head and tail; the indices are free-running. */
static inline uint32_t ring_count(uint32_t head, uint32_t tail)
{
    return tail - head;
}

/* May the peer's index be believed? `mine` is our private copy of our own index. For a consumer: (head, peer's tail);
 * for a producer: (peer's head, tail). */
static inline bool ring_peer_ok(uint32_t head, uint32_t tail, uint32_t size)
{
    return tail - head <= size;
}

#define RING_FLAG_BITS 4 /* below the number */

/* What a sleeper sets: its flags, and the next number. */
static inline uint32_t ring_sleep_word(uint32_t flags, uint32_t *n_sleeps)
{
    uint32_t number = ++*n_sleeps << RING_FLAG_BITS;

    if (number == 0) /* after so many sleeps */
        number = (*n_sleeps = 1) << RING_FLAG_BITS;
    return number | flags;
}

/* For what W3 read: the flags of a sleeper that is to be woken now; lasting: those whose wake-ups last. *rung is the
 * waker's, 0 at first. */
static inline uint32_t ring_must_wake(uint32_t word, uint32_t lasting, uint32_t *rung)
{
    uint32_t flags = word & ((1U << RING_FLAG_BITS) - 1);
    bool is_same = word == *rung && word >> RING_FLAG_BITS != 0;

    *rung = word;
    return is_same ? flags & ~lasting : flags;
}

/* Sleeper: S1 and S2. The caller then reads the tail with load_acquire (S3) and sleeps only if it has not moved. */
static inline void ring_sleep_prepare(uint32_t *flags, uint32_t word)
{
    store_relaxed(flags, word); /* S1 */
    fence_full();               /* S2, pairs with W2 */
}

static inline void ring_sleep_cancel(uint32_t *flags)
{
    store_relaxed(flags, 0);
}

/* Waker: W1 to W3. Returns the sleeper's word, for ring_must_wake(). */
static inline uint32_t ring_publish(uint32_t *tail, uint32_t value, const uint32_t *sleeper_flags)
{
    store_release(tail, value);         /* W1 */
    fence_full();                       /* W2, pairs with S2 */
    return load_relaxed(sleeper_flags); /* W3 */
}
