/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arithmetic of train.h, a block at a time, in vectors: included by one file for each set of instructions, which defines
 * WIDTH (floats of a vector) before it, and after it what is declared below: conversions and roots, for which compilers need
 * to be told the instruction.
 *
 * Why the bits are the same everywhere: what is done to an element are IEEE's operations (these files are compiled without
 * contraction to fused ones, see CMakeLists.txt) in one rounding mode; and sums go, whatever the width, to the same LANES
 * partial sums, which are added in the same order.
 *
 * All arrays are gone through side by side, LANES elements at a time, with prefetches: so that reads from memory are spread
 * evenly between divisions and square roots, which alone take two thirds of the time that memory does.
 */
#include <string.h>

#include "client/lib/train.h"

#define LANES 16
#define HALF (WIDTH / 2)     /* as many doubles have a float vector's size */
#define AHEAD_BYTES 1024     /* of each of four arrays */
#define AHEAD_SUM_BYTES 4096 /* of one alone */

typedef float floats __attribute__((vector_size(WIDTH * sizeof(float))));
typedef uint32_t words __attribute__((vector_size(WIDTH * sizeof(float))));
typedef double doubles __attribute__((vector_size(HALF * sizeof(double))));

#define inlined static inline __attribute__((always_inline))

inlined floats vector_sqrt(floats of);
inlined doubles vector_doubles(const float *from);
inlined words vector_words(const uint16_t *from);
/* All are below 65536. */
inlined void vector_shorts(uint16_t *to, words from);

struct lanes {
    doubles sums[LANES / HALF];
};

/* --- bf16 ------------------------------------------------------------------------------------------------------------- */

inlined void lanes_widen(float *to, const uint16_t *from)
{
    for (size_t i = 0; i < LANES; i += WIDTH) {
        words bits = vector_words(from + i) << 16;
        memcpy(to + i, &bits, sizeof(bits));
    }
}

/* To the nearest, ties to even. A NaN is a quiet one here, since something was computed with it: its upper half is one too. */
inlined words narrow(floats from)
{
    words bits = (words)from, half = bits >> 16, is_nan = (words)((bits & 0x7fffffff) > 0x7f800000);

    return (is_nan & half) | (~is_nan & ((bits + 0x7fff + (half & 1)) >> 16));
}

/* --- LANES elements --------------------------------------------------------------------------------------------------- */

/* A square of a float is exact in double, and no sum of them overflows. */
inlined void lanes_sum(struct lanes *lanes, const float *from)
{
    for (size_t i = 0; i < LANES / HALF; i++) {
        doubles wide = vector_doubles(from + i * HALF);
        lanes->sums[i] += wide * wide;
    }
}

inlined double lanes_total(const struct lanes *lanes)
{
    double sums[LANES];

    static_assert(sizeof(sums) == sizeof(*lanes), "a sum a lane");
    memcpy(sums, lanes, sizeof(sums));
    for (size_t n = LANES / 2; n > 0; n /= 2)
        for (size_t i = 0; i < n; i++)
            sums[i] += sums[i + n];
    return sums[0];
}

inlined void lanes_step(const struct adam_factors *by, const float *grad, float *master, float *m, float *v,
                        uint16_t *narrowed)
{
    for (size_t i = 0; i < LANES; i += WIDTH) {
        floats g, p, mean, square;
        memcpy(&g, grad + i, sizeof(g));
        memcpy(&p, master + i, sizeof(p));
        memcpy(&mean, m + i, sizeof(mean));
        memcpy(&square, v + i, sizeof(square));
        g *= by->grad_scale;
        if (by->is_l2)
            g += by->l2 * p;
        else
            p *= by->keep;
        mean = by->beta1 * mean + by->rest1 * g;
        square = by->beta2 * square + by->rest2 * g * g;
        memcpy(m + i, &mean, sizeof(mean));
        memcpy(v + i, &square, sizeof(square));
        p -= by->rate * mean / (vector_sqrt(square) + by->eps);
        memcpy(master + i, &p, sizeof(p));
        if (narrowed)
            vector_shorts(narrowed + i, narrow(p));
    }
}

/* --- Blocks ----------------------------------------------------------------------------------------------------------- */

/* Of a slice, what is known when the loop over it is compiled. */
struct shape {
    bool narrow_grad, narrow_param;
};

/* No address is wrong. */
inlined void ahead(const void *from)
{
    __builtin_prefetch((const void *)((uintptr_t)from + AHEAD_BYTES));
}

inlined void group_step(struct shape shape, const struct adam_factors *by, struct lanes *lanes,
                        const struct spw_adam_slice *b, size_t at)
{
    const float *grad = (const float *)b->grad + at;
    float *master = b->master + at;
    float room[LANES];

    ahead(master);
    ahead(b->m + at);
    ahead(b->v + at);
    if (shape.narrow_grad) {
        ahead((const uint16_t *)b->grad + at);
        lanes_widen(room, (const uint16_t *)b->grad + at);
        grad = room;
    } else {
        ahead(grad);
    }
    lanes_sum(lanes, grad);
    lanes_step(by, grad, master, b->m + at, b->v + at, shape.narrow_param ? (uint16_t *)b->param + at : NULL);
    if (!shape.narrow_param && b->param && b->param != b->master)
        memcpy((float *)b->param + at, master, LANES * sizeof(float));
}

/* Locals that nobody else has the address of stay in registers. */
inlined void groups_step(struct shape shape, const struct adam_factors *factors, struct lanes *ret_lanes,
                         const struct spw_adam_slice *block)
{
    const struct adam_factors by = *factors;
    const struct spw_adam_slice b = *block;
    struct lanes lanes = *ret_lanes;

    for (size_t at = 0; at + LANES <= b.n; at += LANES)
        group_step(shape, &by, &lanes, &b, at);
    *ret_lanes = lanes;
}

static void whole_step(const struct adam_factors *factors, struct lanes *lanes, const struct spw_adam_slice *block)
{
    bool narrow_param = block->param && block->param_dtype == SPW_DTYPE_BF16;

    if (block->grad_dtype == SPW_DTYPE_F32 && narrow_param)
        groups_step((struct shape){false, true}, factors, lanes, block);
    else if (block->grad_dtype == SPW_DTYPE_F32)
        groups_step((struct shape){false, false}, factors, lanes, block);
    else if (narrow_param)
        groups_step((struct shape){true, true}, factors, lanes, block);
    else
        groups_step((struct shape){true, false}, factors, lanes, block);
}

inlined size_t dtype_bytes(uint32_t dtype)
{
    return dtype == SPW_DTYPE_F32 ? sizeof(float) : sizeof(uint16_t);
}

/* The last elements of a block, fewer than LANES: in a group of their own, with zeros behind them. */
static void rest_step(const struct adam_factors *factors, struct lanes *lanes, const struct spw_adam_slice *block,
                      size_t at)
{
    size_t n = block->n - at, grad_bytes = dtype_bytes(block->grad_dtype),
           param_bytes = dtype_bytes(block->param_dtype);
    float grad[LANES] = {0}, master[LANES] = {0}, m[LANES] = {0}, v[LANES] = {0}, param[LANES] = {0};
    struct spw_adam_slice group = {.n = LANES,
                                   .grad = grad,
                                   .master = master,
                                   .m = m,
                                   .v = v,
                                   .param = block->param ? param : NULL,
                                   .grad_dtype = block->grad_dtype,
                                   .param_dtype = block->param_dtype};

    memcpy(grad, (const char *)block->grad + at * grad_bytes, n * grad_bytes);
    memcpy(master, block->master + at, n * sizeof(float));
    memcpy(m, block->m + at, n * sizeof(float));
    memcpy(v, block->v + at, n * sizeof(float));
    whole_step(factors, lanes, &group);
    memcpy(block->master + at, master, n * sizeof(float));
    memcpy(block->m + at, m, n * sizeof(float));
    memcpy(block->v + at, v, n * sizeof(float));
    if (block->param)
        memcpy((char *)block->param + at * param_bytes, param, n * param_bytes);
}

static double block_step(const struct adam_factors *factors, const struct spw_adam_slice *block)
{
    struct lanes lanes = {{{0}}};

    whole_step(factors, &lanes, block);
    if (block->n % LANES > 0)
        rest_step(factors, &lanes, block, block->n - block->n % LANES);
    return lanes_total(&lanes);
}

inlined void groups_sum(bool narrow, struct lanes *ret_lanes, const void *grad, size_t n)
{
    struct lanes lanes = *ret_lanes;
    float room[LANES];

    for (size_t at = 0; at + LANES <= n; at += LANES) {
        const float *wide = (const float *)grad + at;
        if (narrow) {
            lanes_widen(room, (const uint16_t *)grad + at);
            wide = room;
        }
        __builtin_prefetch((const void *)((uintptr_t)grad + at * (narrow ? 2 : 4) + AHEAD_SUM_BYTES));
        lanes_sum(&lanes, wide);
    }
    *ret_lanes = lanes;
}

static void whole_sum(struct lanes *lanes, const void *grad, uint32_t dtype, size_t n)
{
    if (dtype == SPW_DTYPE_F32)
        groups_sum(false, lanes, grad, n);
    else
        groups_sum(true, lanes, grad, n);
}

static double block_sum(const struct spw_adam_slice *block)
{
    size_t n_rest = block->n % LANES, bytes = dtype_bytes(block->grad_dtype);
    struct lanes lanes = {{{0}}};
    float rest[LANES] = {0};

    whole_sum(&lanes, block->grad, block->grad_dtype, block->n);
    memcpy(rest, (const char *)block->grad + (block->n - n_rest) * bytes, n_rest * bytes);
    whole_sum(&lanes, rest, block->grad_dtype, LANES);
    return lanes_total(&lanes);
}
