/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checksums of stored bytes: XXH3-64 of each granule of 64 KiB (the last may be shorter), seeded with the identity of
 * the piece and the granule's index, never with a device address. So a granule that is read back from the wrong place,
 * from an older generation or from another tenant's object fails its check although its bytes are whole.
 *
 * A piece of one granule keeps that checksum in its record. A piece of more keeps the checksum of the array of its
 * granules' checksums (checksum_of_sums), and the array itself lies in the sums sector of its segment.
 */
#pragma once

#include "include/base/base.h"
#include "include/base/limits.h"

/* What the bytes are: equal identities, and only they, give equal seeds (up to a 64-bit hash). */
struct checksum_identity {
    uint64_t space;
    uint64_t generation;
    uint8_t key[KEY_BYTES_MAX];
    uint32_t group;
    uint32_t piece;
    uint16_t part;
    uint8_t key_len;
    uint8_t zero[5];
};
static_assert(sizeof(struct checksum_identity) == 64, "hashed as bytes: no implicit padding");

uint64_t checksum_seed(const struct checksum_identity *id);

/* The checksum of granule number `index` of a piece with this seed. len_bytes <= GRANULE_BYTES. */
uint64_t checksum_granule(uint64_t seed, uint64_t index, const void *bytes, size_t len_bytes);

/* Granules from first_granule on; sums has one entry for each started GRANULE_BYTES of len_bytes. */
void checksum_granules(uint64_t seed, uint64_t first_granule, const void *bytes, size_t len_bytes, uint64_t *sums);

/* The value in the record: sums[0] itself if n is 1. */
uint64_t checksum_of_sums(uint64_t seed, const uint64_t *sums, uint32_t n);

/* Any other bytes (log blocks, superblocks). */
uint64_t checksum_bytes(const void *bytes, size_t len_bytes, uint64_t seed);

static inline uint32_t checksum_granule_count(uint64_t size_bytes)
{
    return (uint32_t)div_round_up(size_bytes, GRANULE_BYTES);
}
