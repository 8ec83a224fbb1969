/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes that say to which key and version they belong: every word is a hash of identity, version and place, and the
 * first one carries the version, so that a reader who finds something can tell what it is.
 */
#include <string.h>

#include "tests/torture/torture.h"

struct t_random random_for(uint64_t seed, uint64_t a, uint64_t b)
{
    return (struct t_random){.state = splitmix64(seed ^ splitmix64(a ^ splitmix64(b)))};
}

uint64_t random_below(struct t_random *r, uint64_t n)
{
    r->state += UINT64_C(0x9e3779b97f4a7c15);
    return splitmix64(r->state) % n;
}

uint32_t payload_bytes(uint32_t client, enum t_kind kind, uint32_t key, uint32_t version)
{
    /* In small batches, alone, with granules' sums in a sector of their own, and in several pieces. */
    static const uint32_t sizes[] = {64,    4096,   5000,   12288,  40960,  65536,
                                     65544, 131072, 200000, 262144, 600000, 1048576};
    uint64_t x = splitmix64(payload_of_key(client, kind, key) + version);

    return x % 61 == 0 ? T_PAYLOAD_MAX : sizes[x / 61 % ARRAY_LEN(sizes)];
}

uint64_t payload_of_key(uint32_t client, enum t_kind kind, uint32_t key)
{
    return (uint64_t)kind << 40 | (uint64_t)client << 32 | key;
}

uint64_t payload_of_scratch(uint32_t client, uint32_t key)
{
    return (uint64_t)(T_KINDS + T_GROUPS) << 40 | (uint64_t)client << 32 | key;
}

uint64_t payload_of_stripe(uint32_t client, enum t_group group, uint32_t stripe)
{
    return (uint64_t)(T_KINDS + (int)group) << 40 | (uint64_t)client << 32 | stripe;
}

static uint64_t first_word(uint64_t identity, uint32_t version)
{
    return (splitmix64(identity) & ~(uint64_t)UINT32_MAX) | version;
}

static uint64_t word_at(uint64_t stream, uint32_t off)
{
    return (stream + off) * UINT64_C(0x9e3779b97f4a7c15) ^ stream >> 7;
}

void payload_fill(void *to, uint32_t size_bytes, uint64_t identity, uint32_t version)
{
    uint64_t stream = splitmix64(identity ^ splitmix64(version)), word = first_word(identity, version);

    if (version == 0) {
        memset(to, 0, size_bytes);
        return;
    }
    memcpy(to, &word, sizeof(word));
    for (uint32_t off = 8; off + 8 <= size_bytes; off += 8) {
        word = word_at(stream, off);
        memcpy((char *)to + off, &word, sizeof(word));
    }
}

uint32_t payload_version(const void *from, uint32_t size_bytes, uint64_t identity)
{
    uint64_t word, stream;
    uint32_t version;

    memcpy(&word, from, sizeof(word));
    version = (uint32_t)word;
    if (word != 0 && (version == 0 || word != first_word(identity, version)))
        return UINT32_MAX;
    stream = splitmix64(identity ^ splitmix64(version));
    for (uint32_t off = 8; off + 8 <= size_bytes; off += 8) {
        memcpy(&word, (const char *)from + off, sizeof(word));
        if (word != (version ? word_at(stream, off) : 0))
            return UINT32_MAX;
    }
    return version;
}

static struct spw_key key_number(uint64_t number)
{
    struct spw_key key = {.len = sizeof(number)};

    memcpy(key.bytes, &number, sizeof(number));
    return key;
}

struct spw_key key_of(uint32_t client, uint32_t key)
{
    return key_number((uint64_t)client << 32 | key);
}

struct spw_key tensor_of(uint32_t tensor)
{
    return key_number(tensor);
}

/* The last one has more than one piece. */
static const uint32_t stripes_of[T_TENSORS] = {4, 12, 96};

uint32_t tensor_stripes(uint32_t tensor)
{
    return stripes_of[tensor];
}

uint32_t tensor_first_stripe(uint32_t tensor)
{
    uint32_t first = 0;

    static_assert(T_STRIPES == 4 + 12 + 96, "all stripes of a set");
    assert(tensor < T_TENSORS);
    for (uint32_t i = 0; i < tensor; i++)
        first += stripes_of[i];
    return first;
}
