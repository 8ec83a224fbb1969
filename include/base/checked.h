/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arithmetic on numbers that somebody else chose. Everything is validated at full width before it is narrowed.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

static inline bool add_u64(uint64_t a, uint64_t b, uint64_t *ret)
{
    return !__builtin_add_overflow(a, b, ret);
}

static inline bool mul_u64(uint64_t a, uint64_t b, uint64_t *ret)
{
    return !__builtin_mul_overflow(a, b, ret);
}

/* True if [off, off + len) is a non-empty range that lies within [0, size). */
static inline bool range_ok(uint64_t off, uint64_t len, uint64_t size)
{
    return len != 0 && len <= size && off <= size - len;
}

/* The same of addresses: do len bytes at `at` lie within `size` bytes at `base`? */
static inline bool range_within(uint64_t at, uint64_t len, uint64_t base, uint64_t size)
{
    return at >= base && range_ok(at - base, len, size);
}
