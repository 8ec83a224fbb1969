/* SPDX-License-Identifier: Apache-2.0 */
/* adam_kernel.h with the vectors that every processor of the architecture has. */
#define WIDTH 4
#include "client/lib/adam_kernel.h"

inlined void vector_sqrt(floats *x)
{
    for (size_t i = 0; i < WIDTH; i++)
        (*x)[i] = __builtin_sqrtf((*x)[i]);
}

const struct adam_code client_adam_baseline = {"baseline", block_step, block_sum};
