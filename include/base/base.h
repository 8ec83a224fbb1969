/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The few words that every file uses: sizes, array length, container_of, min and max, and the attributes that make
 * the compiler check what we promise.
 */
#pragma once

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KIB (UINT64_C(1) << 10)
#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define TIB (UINT64_C(1) << 40)

/* The unit of extents in memory and of sectors on a device. Not the CPU's page size, though equal to it on x86-64. */
#define SECTOR_SHIFT 12
#define SECTOR_BYTES (UINT64_C(1) << SECTOR_SHIFT)

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#ifdef __CPPCHECK__ /* it gives up on a file with a statement expression in an initialiser */
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#else
#define MIN(a, b)                                                                                                      \
    ({                                                                                                                 \
        __auto_type min_a_ = (a);                                                                                      \
        __auto_type min_b_ = (b);                                                                                      \
        min_a_ < min_b_ ? min_a_ : min_b_;                                                                             \
    })
#define MAX(a, b)                                                                                                      \
    ({                                                                                                                 \
        __auto_type max_a_ = (a);                                                                                      \
        __auto_type max_b_ = (b);                                                                                      \
        max_a_ > max_b_ ? max_a_ : max_b_;                                                                             \
    })
#endif
#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* Sanitizers make calls and maps of their own, and look into the process. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define BASE_SANITIZED true
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define BASE_SANITIZED true
#endif
#endif
#ifndef BASE_SANITIZED
#define BASE_SANITIZED false
#endif

#define must_check __attribute__((warn_unused_result))
#define printf_like(fmt, first) __attribute__((format(printf, fmt, first)))

static inline bool is_pow2(uint64_t x)
{
    return x != 0 && (x & (x - 1)) == 0;
}

/* Rounds up to a multiple of a power of two. The caller has checked that x + to - 1 does not overflow. */
static inline uint64_t round_up(uint64_t x, uint64_t to)
{
    return (x + to - 1) & ~(to - 1);
}

static inline uint64_t div_round_up(uint64_t x, uint64_t by)
{
    return x / by + (x % by != 0);
}

static inline uint32_t sectors_of(uint64_t size_bytes)
{
    return (uint32_t)div_round_up(size_bytes, SECTOR_BYTES);
}
