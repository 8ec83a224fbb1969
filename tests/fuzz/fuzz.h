/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every fuzzer has: its entry points, an input that is read from front to back, and a check that fails loudly.
 *
 * An input is a program in a small language of the target's own, not the bytes that the code under test reads: the target
 * makes those, with the checksums, lengths and handles that they need, and with the mistakes that the input asks for. So
 * whatever the mutator does is a new case for the deep code, not one more way to fail the first check. Past its end an input
 * reads as zeros.
 */
#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/base.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv); /* a target may have it */

#define FUZZ_UNUSED __attribute__((unused))

#define fuzz_check(condition, ...)                                                                                     \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not so: %s;", __FILE__, __LINE__, #condition);                                     \
            fprintf(stderr, " " __VA_ARGS__);                                                                          \
            fprintf(stderr, "\n");                                                                                     \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

struct fuzz {
    const uint8_t *at;
    size_t left;
};

static inline struct fuzz fuzz_of(const uint8_t *data, size_t size)
{
    return (struct fuzz){data, size};
}

static inline bool fuzz_more(const struct fuzz *f)
{
    return f->left > 0;
}

static inline void fuzz_bytes(struct fuzz *f, void *ret, size_t n)
{
    size_t have = MIN(n, f->left);

    memset(ret, 0, n);
    if (have > 0)
        memcpy(ret, f->at, have);
    f->at += have;
    f->left -= have;
}

static inline uint8_t fuzz_u8(struct fuzz *f)
{
    uint8_t v;

    fuzz_bytes(f, &v, sizeof(v));
    return v;
}

static inline uint16_t fuzz_u16(struct fuzz *f)
{
    uint16_t v;

    fuzz_bytes(f, &v, sizeof(v));
    return v;
}

static inline uint32_t fuzz_u32(struct fuzz *f)
{
    uint32_t v;

    fuzz_bytes(f, &v, sizeof(v));
    return v;
}

static inline uint64_t fuzz_u64(struct fuzz *f)
{
    uint64_t v;

    fuzz_bytes(f, &v, sizeof(v));
    return v;
}

/* 0 to n - 1. */
static inline uint32_t fuzz_below(struct fuzz *f, uint32_t n)
{
    return fuzz_u8(f) % n;
}

/* Bits of what is to be wrong; most of the time nothing is. */
static inline uint8_t fuzz_wrong(struct fuzz *f)
{
    return fuzz_u8(f) < 208 ? 0 : fuzz_u8(f);
}

/* Mostly small, at times at an edge: what lengths, offsets and numbers go wrong with. */
static inline uint64_t fuzz_number(struct fuzz *f)
{
    static const uint64_t edges[] = {0,
                                     1,
                                     63,
                                     64,
                                     4095,
                                     4096,
                                     65535,
                                     65536,
                                     INT32_MAX,
                                     UINT32_MAX,
                                     UINT32_MAX + 1,
                                     INT64_MAX,
                                     UINT64_MAX,
                                     UINT64_MAX - 63,
                                     UINT64_MAX - 4095,
                                     UINT64_C(1) << 63};
    uint8_t how = fuzz_u8(f);

    if (how < 128)
        return how;
    if (how < 192)
        return edges[how % ARRAY_LEN(edges)];
    return how < 224 ? fuzz_u16(f) : how < 240 ? fuzz_u32(f) : fuzz_u64(f);
}

/* Overwrites some of it: a place, one to eight bytes. */
static inline void fuzz_patch(struct fuzz *f, void *bytes, size_t size)
{
    size_t at = fuzz_u16(f) % size, n = MIN((size_t)1 + fuzz_u8(f) % 8, size - at);

    fuzz_bytes(f, (char *)bytes + at, n);
}
