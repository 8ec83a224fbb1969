/* SPDX-License-Identifier: Apache-2.0 */
/*
 * XXH3-64 under one roof. Pure functions, any thread.
 *
 * Workers write a granule's sum with a relaxed store: the sums of neighbouring pieces share a table that the engine may
 * be copying to the device meanwhile. It takes the value up again only after the worker's completion, so a torn or
 * early look at it is never used; the atomic only says so to the compiler.
 */
#include "io/checksum.h"

#include <xxhash.h>
#if defined(__x86_64__)
/* Renames XXH3_ calls to those that pick AVX2 or AVX-512 as they start. */
#include <xxh_x86dispatch.h>
#endif

#include "include/base/atomic.h"

uint64_t checksum_seed(const struct checksum_identity *id)
{
    return XXH3_64bits(id, sizeof(*id));
}

/* Spreads the index over all bits: XXH3 takes seeds that differ little, but identities must not meet by addition. */
static uint64_t granule_seed(uint64_t seed, uint64_t index)
{
    return seed ^ (index * UINT64_C(0x9e3779b97f4a7c15));
}

uint64_t checksum_granule(uint64_t seed, uint64_t index, const void *bytes, size_t len_bytes)
{
    assert(len_bytes <= GRANULE_BYTES);
    return XXH3_64bits_withSeed(bytes, len_bytes, granule_seed(seed, index));
}

void checksum_granules(uint64_t seed, uint64_t first_granule, const void *bytes, size_t len_bytes, uint64_t *sums)
{
    const uint8_t *p = bytes;

    for (uint64_t i = 0; len_bytes > 0; i++) {
        size_t n = MIN(len_bytes, (size_t)GRANULE_BYTES);
        store_relaxed(&sums[i], checksum_granule(seed, first_granule + i, p, n));
        p += n;
        len_bytes -= n;
    }
}

uint64_t checksum_of_sums(uint64_t seed, const uint64_t *sums, uint32_t n)
{
    return n == 1 ? sums[0] : XXH3_64bits_withSeed(sums, n * sizeof(*sums), seed);
}

uint64_t checksum_bytes(const void *bytes, size_t len_bytes, uint64_t seed)
{
    return XXH3_64bits_withSeed(bytes, len_bytes, seed);
}
