/* SPDX-License-Identifier: Apache-2.0 */
/* adam_kernel.inc with AVX2's vectors; see CMakeLists.txt for how this file is compiled. */
#if defined(__AVX2__)

#include <immintrin.h>

#define WIDTH 8
#include "client/lib/adam_kernel.inc"

inlined floats vector_sqrt(floats of)
{
    return (floats)_mm256_sqrt_ps((__m256)of);
}

inlined doubles vector_doubles(const float *from)
{
    return (doubles)_mm256_cvtps_pd(_mm_loadu_ps(from));
}

inlined words vector_words(const uint16_t *from)
{
    return (words)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)from));
}

inlined void vector_shorts(uint16_t *to, words from)
{
    __m128i low = _mm256_castsi256_si128((__m256i)from), high = _mm256_extracti128_si256((__m256i)from, 1);

    _mm_storeu_si128((__m128i *)(void *)to, _mm_packus_epi32(low, high));
}

const struct adam_code client_adam_avx2 = {"avx2", block_step, block_sum};

#endif
