/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AVX2 where the processor has it, which is wide enough to wait for memory alone. Prefetches as in client/lib/adam_kernel.inc:
 * without them one thread gets less from memory, and half where it reads a single array.
 */
#include "client/bench/ceiling_states.h"

#include <string.h>

#include "include/base/base.h"

#define LINE 16 /* floats of a cache line */
#define AHEAD_BYTES 1024
#define AHEAD_GRAD_BYTES 4096

#if defined(__x86_64__)

#include <immintrin.h>

#define avx2_inlined __attribute__((target("avx2"), always_inline)) static inline

avx2_inlined void ahead(const void *from, size_t size_bytes)
{
    __builtin_prefetch((const void *)((uintptr_t)from + size_bytes));
}

avx2_inlined void add_to(float *array, __m256 low, __m256 high)
{
    ahead(array, AHEAD_BYTES);
    _mm256_storeu_ps(array, _mm256_add_ps(_mm256_loadu_ps(array), low));
    _mm256_storeu_ps(array + 8, _mm256_add_ps(_mm256_loadu_ps(array + 8), high));
}

avx2_inlined __m256 widen(__m256i two, int half)
{
    __m128i some = half == 0 ? _mm256_castsi256_si128(two) : _mm256_extracti128_si256(two, 1);

    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(some), 16));
}

__attribute__((target("avx2"))) static void wide_avx2(const struct spw_adam_slice *slice, float nothing)
{
    const struct spw_adam_slice s = *slice;
    __m256 by = _mm256_set1_ps(nothing);

    for (size_t at = 0; at < s.n; at += LINE) {
        const float *grad = (const float *)s.grad + at;
        __m256 low = _mm256_mul_ps(_mm256_loadu_ps(grad), by), high = _mm256_mul_ps(_mm256_loadu_ps(grad + 8), by);
        ahead(grad, AHEAD_BYTES);
        add_to(s.master + at, low, high);
        add_to(s.m + at, low, high);
        add_to(s.v + at, low, high);
    }
}

__attribute__((target("avx2"))) static void narrow_avx2(const struct spw_adam_slice *slice, float nothing)
{
    const struct spw_adam_slice s = *slice;
    __m256 by = _mm256_set1_ps(nothing);

    for (size_t at = 0; at < s.n; at += LINE) {
        const void *grad = (const uint16_t *)s.grad + at;
        __m256i two = _mm256_loadu_si256(grad);
        __m256 low = _mm256_mul_ps(widen(two, 0), by), high = _mm256_mul_ps(widen(two, 1), by);
        ahead(grad, AHEAD_BYTES);
        add_to(s.master + at, low, high);
        add_to(s.m + at, low, high);
        add_to(s.v + at, low, high);
        _mm256_storeu_si256((__m256i *)(void *)((uint16_t *)s.param + at), two);
    }
}

__attribute__((target("avx2"))) static float grad_avx2(const struct spw_adam_slice *slice)
{
    __m256 a = _mm256_setzero_ps(), b = a;
    const float *grad = slice->grad;

    for (size_t at = 0; at < slice->n; at += LINE) {
        ahead(grad + at, AHEAD_GRAD_BYTES);
        a = _mm256_or_ps(a, _mm256_loadu_ps(grad + at));
        b = _mm256_or_ps(b, _mm256_loadu_ps(grad + at + 8));
    }
    return _mm256_cvtss_f32(_mm256_or_ps(a, b));
}

#endif

static void states_plain(const struct spw_adam_slice *s, float nothing)
{
    for (size_t i = 0; i < s->n; i++) {
        float some = nothing;
        if (s->grad_dtype == SPW_DTYPE_F32)
            some *= ((const float *)s->grad)[i];
        else
            some *= (float)((const uint16_t *)s->grad)[i];
        s->master[i] += some;
        s->m[i] += some;
        s->v[i] += some;
        if (s->param)
            ((uint16_t *)s->param)[i] = (uint16_t)i;
    }
}

static float grad_plain(const struct spw_adam_slice *s)
{
    uint64_t bits = 0, two;

    for (size_t i = 0; i + 2 <= s->n; i += 2) {
        memcpy(&two, (const float *)s->grad + i, sizeof(two));
        bits |= two;
    }
    return (float)bits;
}

void ceiling_states_run(const struct spw_adam_slice *slice, float nothing)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        if (slice->param)
            narrow_avx2(slice, nothing);
        else
            wide_avx2(slice, nothing);
        return;
    }
#endif
    states_plain(slice, nothing);
}

float ceiling_grad_run(const struct spw_adam_slice *slice)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        return grad_avx2(slice);
#endif
    return grad_plain(slice);
}
