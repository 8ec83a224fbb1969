/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arithmetic of train.h, a block at a time. Loops that the compiler makes vectors of, inlined into a function for each
 * set of instructions; which one runs is decided as the program does, by hand, since sanitizers and static programs do
 * not go well with the loader's way (ifunc).
 *
 * Why the bits are the same everywhere: an element's own operations are IEEE's (this file is compiled without contraction
 * to fused ones, see CMakeLists.txt), in one rounding mode; and the sums go, in every version, to the same LANES partial
 * sums, which are added in the same order.
 *
 * A block is worked on in tiles that stay in the first-level cache with all that is made of them, so that each array is read
 * from memory once, whatever the number of loops.
 *
 * No state. Any thread.
 */
#include <math.h>
#include <string.h>

#include "client/lib/train.h"

#define TILE 512 /* elements: 2 KiB of each of the five arrays */
#define LANES 16
#define HALF_LANES 8

typedef float float_lanes __attribute__((vector_size(HALF_LANES * sizeof(float)), aligned(4)));
typedef double double_lanes __attribute__((vector_size(HALF_LANES * sizeof(double))));

#define inlined static inline __attribute__((always_inline))

/* --- Rounding --------------------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)

#define MXCSR_MODE 0x9fc0u /* all exceptions masked, to nearest, flush to zero, denormals are zeros */

unsigned client_train_mode_enter(void)
{
    unsigned before = __builtin_ia32_stmxcsr();

    __builtin_ia32_ldmxcsr(MXCSR_MODE);
    return before;
}

void client_train_mode_leave(unsigned before)
{
    __builtin_ia32_ldmxcsr(before);
}

#elif defined(__aarch64__)

#define FPCR_MODE (UINT64_C(1) << 24) /* to nearest, flush to zero */

unsigned client_train_mode_enter(void)
{
    uint64_t before;

    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" ::"r"(FPCR_MODE));
    return (unsigned)before;
}

void client_train_mode_leave(unsigned before)
{
    __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)before));
}

#else
#error "how is this processor told to flush denormal numbers to zero?"
#endif

/* --- Tiles ------------------------------------------------------------------------------------------------------------ */

inlined void tile_widen(float *restrict to, const uint16_t *restrict from, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(&to[i], &bits, sizeof(bits));
    }
}

/* To the nearest, ties to even. A NaN is made a quiet one: its last bits set may be among those that go. */
inlined void tile_narrow(uint16_t *restrict to, const float *restrict from, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &from[i], sizeof(bits));
        uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        uint32_t quiet = bits >> 16 | 0x40;
        to[i] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
    }
}

inlined void lanes_add(double_lanes sums[2], const float *from)
{
    float_lanes low, high;

    memcpy(&low, from, sizeof(low));
    memcpy(&high, from + HALF_LANES, sizeof(high));
    double_lanes a = __builtin_convertvector(low, double_lanes), b = __builtin_convertvector(high, double_lanes);
    sums[0] += a * a;
    sums[1] += b * b;
}

/* Element i goes to lane i % LANES. A square of a float is exact in double, and no sum of them overflows. */
inlined void tile_sum(double_lanes sums[2], const float *from, size_t n)
{
    float rest[LANES] = {0};
    size_t whole = n - n % LANES;

    for (size_t i = 0; i < whole; i += LANES)
        lanes_add(sums, from + i);
    if (whole == n)
        return;
    memcpy(rest, from + whole, (n - whole) * sizeof(*rest));
    lanes_add(sums, rest);
}

inlined double lanes_total(const double_lanes sums[2])
{
    double_lanes sum = sums[0] + sums[1];

    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

inlined void tile_step(const struct adam_factors *f, const float *restrict grad, float *restrict master,
                       float *restrict m, float *restrict v, size_t n, bool is_l2)
{
    const struct adam_factors by = *f;

    for (size_t i = 0; i < n; i++) {
        float p = master[i];
        float g = grad[i] * by.grad_scale;
        if (is_l2)
            g += by.l2 * p;
        float mean = by.beta1 * m[i] + by.rest1 * g;
        float square = by.beta2 * v[i] + by.rest2 * g * g;
        m[i] = mean;
        v[i] = square;
        master[i] = (is_l2 ? p : by.keep * p) - by.rate * mean / (__builtin_sqrtf(square) + by.eps);
    }
}

/* --- Blocks ----------------------------------------------------------------------------------------------------------- */

/* The gradients of a tile as floats: where they are, or in `room`. */
inlined const float *tile_grad(const struct spw_adam_slice *block, size_t at, size_t n, float *room)
{
    if (block->grad_dtype == SPW_DTYPE_F32)
        return (const float *)block->grad + at;
    tile_widen(room, (const uint16_t *)block->grad + at, n);
    return room;
}

inlined void tile_publish(const struct spw_adam_slice *block, size_t at, size_t n)
{
    if (!block->param || block->param == block->master)
        return;
    if (block->param_dtype == SPW_DTYPE_F32)
        memcpy((float *)block->param + at, block->master + at, n * sizeof(float));
    else
        tile_narrow((uint16_t *)block->param + at, block->master + at, n);
}

inlined double block_step(const struct adam_factors *factors, const struct spw_adam_slice *block)
{
    double_lanes sums[2] = {{0}, {0}};
    float room[TILE];

    for (size_t at = 0; at < block->n; at += TILE) {
        size_t n = MIN(block->n - at, (size_t)TILE);
        const float *grad = tile_grad(block, at, n, room);
        tile_sum(sums, grad, n);
        if (factors->is_l2)
            tile_step(factors, grad, block->master + at, block->m + at, block->v + at, n, true);
        else
            tile_step(factors, grad, block->master + at, block->m + at, block->v + at, n, false);
        tile_publish(block, at, n);
    }
    return lanes_total(sums);
}

inlined double block_sum(const struct spw_adam_slice *block)
{
    double_lanes sums[2] = {{0}, {0}};
    float room[TILE];

    for (size_t at = 0; at < block->n; at += TILE) {
        size_t n = MIN(block->n - at, (size_t)TILE);
        tile_sum(sums, tile_grad(block, at, n, room), n);
    }
    return lanes_total(sums);
}

/* --- Versions --------------------------------------------------------------------------------------------------------- */

#define DEFINE_CODE(suffix, attributes)                                                                                \
    attributes static double step_##suffix(const struct adam_factors *factors, const struct spw_adam_slice *block)     \
    {                                                                                                                  \
        return block_step(factors, block);                                                                             \
    }                                                                                                                  \
    attributes static double sum_##suffix(const struct spw_adam_slice *block)                                          \
    {                                                                                                                  \
        return block_sum(block);                                                                                       \
    }                                                                                                                  \
    static const struct adam_code code_##suffix = {#suffix, step_##suffix, sum_##suffix}

DEFINE_CODE(baseline, );

#if defined(__x86_64__)

DEFINE_CODE(avx2, __attribute__((target("avx2"))));
DEFINE_CODE(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))));

const struct adam_code *client_adam_code(unsigned nth)
{
    const struct adam_code *all[4];
    unsigned count = 0;

    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        all[count++] = &code_avx512;
    if (__builtin_cpu_supports("avx2"))
        all[count++] = &code_avx2;
    all[count++] = &code_baseline;
    return nth < count ? all[nth] : NULL;
}

#else

const struct adam_code *client_adam_code(unsigned nth)
{
    return nth == 0 ? &code_baseline : NULL;
}

#endif
