/* SPDX-License-Identifier: Apache-2.0 */
/* splitmix64 (Steele, Lea, Flood 2014): for what tests and benchmarks make up, so that it can be made again, and for numbers of
 * our own. Not for keys, which others choose. */
#pragma once

#include "include/base/base.h"

#define MIX64_GOLDEN UINT64_C(0x9e3779b97f4a7c15)

/* Its last step: every bit of x changes half of the result's. 0 stays 0. */
static inline uint64_t mix64(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* The first of the stream that begins with x. */
static inline uint64_t splitmix64(uint64_t x)
{
    return mix64(x + MIX64_GOLDEN);
}

/* The next of a stream. */
static inline uint64_t splitmix64_next(uint64_t *state)
{
    return mix64(*state += MIX64_GOLDEN);
}
