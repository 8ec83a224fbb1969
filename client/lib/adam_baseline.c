/* SPDX-License-Identifier: Apache-2.0 */
/* adam_kernel.inc with the vectors that every processor of the architecture has. */
#define WIDTH 4
#include "client/lib/adam_kernel.inc"

inlined floats vector_sqrt(floats of)
{
    for (size_t i = 0; i < WIDTH; i++)
        of[i] = __builtin_sqrtf(of[i]);
    return of;
}

inlined doubles vector_doubles(const float *from)
{
    return (doubles){(double)from[0], (double)from[1]};
}

inlined words vector_words(const uint16_t *from)
{
    return (words){from[0], from[1], from[2], from[3]};
}

inlined void vector_shorts(uint16_t *to, words from)
{
    for (size_t i = 0; i < WIDTH; i++)
        to[i] = (uint16_t)from[i];
}

const struct adam_code client_adam_baseline = {"baseline", block_step, block_sum};
