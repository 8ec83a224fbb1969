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

/* Sleeper: S1 and S2. The caller then reads the tail with load_acquire (S3) and sleeps only if it has not moved. */
static inline void ring_sleep_prepare(uint32_t *flags, uint32_t bit)
{
    store_relaxed(flags, bit); /* S1 */
    fence_full();              /* S2, pairs with W2 */
}

static inline void ring_sleep_cancel(uint32_t *flags)
{
    store_relaxed(flags, 0);
}

/* Waker: W1 to W3. Returns the sleeper's flags: non-zero if it must be woken. */
static inline uint32_t ring_publish(uint32_t *tail, uint32_t value, const uint32_t *sleeper_flags)
{
    store_release(tail, value);         /* W1 */
    fence_full();                       /* W2, pairs with S2 */
    return load_relaxed(sleeper_flags); /* W3 */
}
