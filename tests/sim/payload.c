/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes as a function of what they belong to: each sector begins with a stamp, and goes on with noise that the stamp
 * chooses. So a wrong byte is seen, and a wrong sector says where it came from.
 */
#include <string.h>

#include "io/checksum.h"
#include "tests/sim/sim.h"

#define NOISE_BYTES 65536

static uint8_t noise[NOISE_BYTES + SECTOR_BYTES];

static const uint8_t *noise_of(const struct stamp *stamp)
{
    if (!noise[0]) {
        uint64_t x = 88172645463325252ULL;

        for (size_t i = 0; i < sizeof(noise); i++) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            noise[i] = (uint8_t)(x >> 24) | 1; /* never 0: noise is not an unwritten sector */
        }
    }
    return noise + checksum_bytes(stamp, sizeof(*stamp), 7) % NOISE_BYTES;
}

void payload_fill(void *to, const struct stamp *stamp, uint32_t size_bytes)
{
    struct stamp s = *stamp;
    uint8_t *at = to;

    for (; size_bytes > 0; s.sector++) {
        uint32_t n = MIN(size_bytes, SECTOR_BYTES), head = MIN(n, (uint32_t)sizeof(s));

        memcpy(at, &s, head);
        memcpy(at + head, noise_of(&s), n - head);
        at += n;
        size_bytes -= n;
    }
}

uint32_t payload_check(const void *bytes, const struct stamp *stamp, uint32_t size_bytes)
{
    struct stamp s = *stamp;
    const uint8_t *at = bytes;

    for (; size_bytes > 0; s.sector++) {
        uint32_t n = MIN(size_bytes, SECTOR_BYTES), head = MIN(n, (uint32_t)sizeof(s));

        if (memcmp(at, &s, head) != 0 || memcmp(at + head, noise_of(&s), n - head) != 0)
            return s.sector - stamp->sector;
        at += n;
        size_bytes -= n;
    }
    return PAYLOAD_GOOD;
}

bool payload_is_zero(const void *bytes, uint32_t size_bytes)
{
    const uint8_t *at = bytes;

    return size_bytes == 0 || (at[0] == 0 && memcmp(at, at + 1, size_bytes - 1) == 0);
}
