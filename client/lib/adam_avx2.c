/* SPDX-License-Identifier: Apache-2.0 */
/* adam_kernel.h with AVX2's vectors; see CMakeLists.txt for how this file is compiled. */
#if defined(__AVX2__)

#include <immintrin.h>

#define WIDTH 8
#include "client/lib/adam_kernel.h"

inlined void vector_sqrt(floats *x)
{
    *x = (floats)_mm256_sqrt_ps((__m256)*x);
}

const struct adam_code client_adam_avx2 = {"avx2", block_step, block_sum};

#endif
