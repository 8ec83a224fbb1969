/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Generates and compares payload. A word of a page is a function of the page's seed and its index alone: no chain of
 * dependent steps, and only additions, shifts and exclusive ors, which every vector unit has for 64-bit lanes. So both
 * directions run near the speed of memory on one core, and the comparison of every byte does not hide what is measured.
 * No state; any thread.
 */
#include "client/bench/payload.h"

#include <stdio.h>
#include <string.h>

#include "include/base/mix.h"

#define LANES 2 /* 16 bytes: what every x86-64 and arm64 has */
#define STEP_BYTES (UINT64_C(8) * LANES)

typedef uint64_t lanes __attribute__((vector_size(STEP_BYTES)));

uint64_t payload_mix(uint64_t a, uint64_t b)
{
    return splitmix64(a ^ (b * MIX64_GOLDEN));
}

void payload_key(uint64_t seed, uint64_t id, struct spw_key *ret_key)
{
    *ret_key = (struct spw_key){.len = SPW_KEY_BYTES};
    for (uint64_t i = 0; i < SPW_KEY_BYTES / 8; i++) {
        uint64_t word = payload_mix(payload_mix(seed, id), i);

        memcpy(ret_key->bytes + i * 8, &word, 8);
    }
}

uint64_t payload_stream(const struct spw_key *key)
{
    uint64_t words[SPW_KEY_BYTES / 8], x = key->len | (uint64_t)key->group << 32;

    memcpy(words, key->bytes, sizeof(words));
    for (size_t i = 0; i < ARRAY_LEN(words); i++)
        x = payload_mix(x, words[i]);
    return payload_mix(x, key->part);
}

static uint64_t page_seed(uint64_t stream, uint64_t offset_bytes)
{
    return payload_mix(stream, offset_bytes / SECTOR_BYTES);
}

static inline lanes words_begin(uint64_t first)
{
    return (lanes){first, first + MIX64_GOLDEN};
}

static inline lanes scramble(lanes x)
{
    x ^= x >> 29;
    return x ^ (x << 23);
}

/* The last step of a page, when size_bytes ends within it. */
static void page_words(uint64_t seed, uint64_t at, uint8_t ret_bytes[static STEP_BYTES])
{
    const lanes x = scramble(words_begin(seed + at / 8 * MIX64_GOLDEN));

    memcpy(ret_bytes, &x, STEP_BYTES);
}

static void page_fill(uint8_t *to, uint64_t size_bytes, uint64_t seed)
{
    lanes x = words_begin(seed);
    uint64_t at = 0;

    for (; at + STEP_BYTES <= size_bytes; at += STEP_BYTES, x += LANES * MIX64_GOLDEN) {
        const lanes y = scramble(x);
        memcpy(to + at, &y, STEP_BYTES);
    }
    if (at < size_bytes) {
        uint8_t last[STEP_BYTES];
        page_words(seed, at, last);
        memcpy(to + at, last, size_bytes - at);
    }
}

static bool page_is(const uint8_t *from, uint64_t size_bytes, uint64_t seed)
{
    lanes x = words_begin(seed), differs = {0};
    uint64_t at = 0;

    for (; at + STEP_BYTES <= size_bytes; at += STEP_BYTES, x += LANES * MIX64_GOLDEN) {
        lanes y;
        memcpy(&y, from + at, STEP_BYTES);
        differs |= y ^ scramble(x);
    }
    if ((differs[0] | differs[1]) != 0)
        return false;
    if (at < size_bytes) {
        uint8_t last[STEP_BYTES];
        page_words(seed, at, last);
        return memcmp(from + at, last, size_bytes - at) == 0;
    }
    return true;
}

void payload_fill(void *to, uint64_t size_bytes, uint64_t stream, uint64_t offset_bytes)
{
    uint8_t *bytes = to;

    assert(offset_bytes % SECTOR_BYTES == 0);
    for (uint64_t at = 0; at < size_bytes; at += SECTOR_BYTES)
        page_fill(bytes + at, MIN(size_bytes - at, SECTOR_BYTES), page_seed(stream, offset_bytes + at));
}

static uint64_t first_wrong(const uint8_t *from, uint64_t size_bytes, uint64_t seed)
{
    uint8_t want[SECTOR_BYTES];

    page_fill(want, size_bytes, seed);
    for (uint64_t i = 0; i < size_bytes; i++)
        if (from[i] != want[i])
            return i;
    return 0; /* it changed while we looked: wrong all the same */
}

uint64_t payload_check(const void *from, uint64_t size_bytes, uint64_t stream, uint64_t offset_bytes)
{
    const uint8_t *bytes = from;

    assert(offset_bytes % SECTOR_BYTES == 0);
    for (uint64_t at = 0; at < size_bytes; at += SECTOR_BYTES) {
        uint64_t len = MIN(size_bytes - at, SECTOR_BYTES), seed = page_seed(stream, offset_bytes + at);

        if (unlikely(!page_is(bytes + at, len, seed)))
            return offset_bytes + at + first_wrong(bytes + at, len, seed);
    }
    return PAYLOAD_OK;
}

void payload_report(const struct spw_key *key, const void *from, uint64_t size_bytes, uint64_t stream,
                    uint64_t offset_bytes, uint64_t wrong_at)
{
    const uint8_t *page = (const uint8_t *)from + (wrong_at - offset_bytes) / SECTOR_BYTES * SECTOR_BYTES;
    uint64_t page_at = wrong_at / SECTOR_BYTES * SECTOR_BYTES, n_wrong = 0, n_zero = 0;
    uint64_t len = MIN(size_bytes - (page_at - offset_bytes), SECTOR_BYTES);
    uint8_t want[SECTOR_BYTES];
    char name[2 * SPW_KEY_BYTES + 1] = "";

    for (unsigned i = 0; i < key->len && i < SPW_KEY_BYTES; i++)
        snprintf(name + (size_t)2 * i, 3, "%02x", key->bytes[i]);
    page_fill(want, len, page_seed(stream, page_at));
    for (uint64_t i = 0; i < len; i++) {
        n_wrong += page[i] != want[i];
        n_zero += page[i] == 0;
    }
    fprintf(stderr,
            "WRONG BYTES: key %s group %u, byte %llu of %llu: 0x%02x instead of 0x%02x; %llu of that page's %llu bytes "
            "are wrong, %llu are zero\n",
            name, key->group, (unsigned long long)wrong_at, (unsigned long long)size_bytes, page[wrong_at - page_at],
            want[wrong_at - page_at], (unsigned long long)n_wrong, (unsigned long long)len, (unsigned long long)n_zero);
}
