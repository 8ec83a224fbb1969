/* SPDX-License-Identifier: Apache-2.0 */
/* adam_kernel.h with AVX-512's vectors; see CMakeLists.txt for how this file is compiled. */
#if defined(__AVX512F__)

#include <immintrin.h>

#define WIDTH 16
#include "client/lib/adam_kernel.h"

inlined void vector_sqrt(floats *x)
{
    *x = (floats)_mm512_sqrt_ps((__m512)*x);
}

const struct adam_code client_adam_avx512 = {"avx512", block_step, block_sum};

#endif
