/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memcpy that goes past the caches. What is copied into or out of the store is larger than the caches and is next read
 * by someone else, often a device: ordinary stores would read each line before they write it, and throw out what the
 * caller was working on. Below CLIENT_STREAM_BYTES memcpy is better.
 *
 * The processor is asked once. Other architectures use memcpy, whose large copies stream by themselves.
 */
#include <string.h>

#include "client/lib/client.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define STRIDE_BYTES 128
/* Ahead of the loads, into the second level. That gains 5 % or more wherever it was tried; what is meant for non-temporal
 * loads, 2 KiB ahead, gains 7 % on one processor (Zen 4) and loses 60 % on another (Sapphire Rapids). */
#define PREFETCH_BYTES 1024

/* `to` is 32-byte aligned, n is a multiple of STRIDE_BYTES. */
__attribute__((target("avx2"))) static void stream_avx2(uint8_t *to, const uint8_t *from, size_t n)
{
    for (size_t i = 0; i < n; i += STRIDE_BYTES) {
        __builtin_prefetch(from + i + PREFETCH_BYTES, 0, 1);
        __builtin_prefetch(from + i + PREFETCH_BYTES + 64, 0, 1);
        __m256i a = _mm256_loadu_si256((const __m256i *)(const void *)(from + i));
        __m256i b = _mm256_loadu_si256((const __m256i *)(const void *)(from + i + 32));
        __m256i c = _mm256_loadu_si256((const __m256i *)(const void *)(from + i + 64));
        __m256i d = _mm256_loadu_si256((const __m256i *)(const void *)(from + i + 96));
        _mm256_stream_si256((__m256i *)(void *)(to + i), a);
        _mm256_stream_si256((__m256i *)(void *)(to + i + 32), b);
        _mm256_stream_si256((__m256i *)(void *)(to + i + 64), c);
        _mm256_stream_si256((__m256i *)(void *)(to + i + 96), d);
    }
}

static void stream_sse2(uint8_t *to, const uint8_t *from, size_t n)
{
    for (size_t i = 0; i < n; i += 64) {
        __builtin_prefetch(from + i + PREFETCH_BYTES, 0, 1);
        __m128i a = _mm_loadu_si128((const __m128i *)(const void *)(from + i));
        __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(from + i + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(const void *)(from + i + 32));
        __m128i d = _mm_loadu_si128((const __m128i *)(const void *)(from + i + 48));
        _mm_stream_si128((__m128i *)(void *)(to + i), a);
        _mm_stream_si128((__m128i *)(void *)(to + i + 16), b);
        _mm_stream_si128((__m128i *)(void *)(to + i + 32), c);
        _mm_stream_si128((__m128i *)(void *)(to + i + 48), d);
    }
}

static void stream_copy(uint8_t *to, const uint8_t *from, size_t size_bytes)
{
    size_t head = -(uintptr_t)to & 31;
    size_t body = (size_bytes - head) & ~(size_t)(STRIDE_BYTES - 1);

    memcpy(to, from, head);
    if (__builtin_cpu_supports("avx2"))
        stream_avx2(to + head, from + head, body);
    else
        stream_sse2(to + head, from + head, body);
    memcpy(to + head + body, from + head + body, size_bytes - head - body);
}

void client_stream_fence(void)
{
    _mm_sfence();
}
#else
static void stream_copy(uint8_t *to, const uint8_t *from, size_t size_bytes)
{
    memcpy(to, from, size_bytes);
}

void client_stream_fence(void)
{
}
#endif

void client_stream_copy(void *to, const void *from, size_t size_bytes)
{
    if (size_bytes < CLIENT_STREAM_BYTES)
        memcpy(to, from, size_bytes);
    else
        stream_copy(to, from, size_bytes);
}
