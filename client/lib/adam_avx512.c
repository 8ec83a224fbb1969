/* SPDX-License-Identifier: Apache-2.0 */
/* adam_kernel.inc with AVX-512's vectors; see CMakeLists.txt for how this file is compiled. */
#if defined(__AVX512F__)

#include <immintrin.h>

#define WIDTH 16
#include "client/lib/adam_kernel.inc"

inlined floats vector_sqrt(floats of)
{
    return (floats)_mm512_sqrt_ps((__m512)of);
}

inlined doubles vector_doubles(const float *from)
{
    return (doubles)_mm512_cvtps_pd(_mm256_loadu_ps(from));
}

inlined words vector_words(const uint16_t *from)
{
    return (words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)from));
}

inlined void vector_shorts(uint16_t *to, words from)
{
    _mm256_storeu_si256((__m256i *)(void *)to, _mm512_cvtepi32_epi16((__m512i)from));
}

const struct adam_code client_adam_avx512 = {"avx512", block_step, block_sum};

#endif
