/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/support/adam_rig.h"

#include <check.h>
#include <math.h>
#include <string.h>

static size_t dtype_bytes(uint32_t dtype)
{
    return dtype == SPW_DTYPE_F32 ? sizeof(float) : sizeof(uint16_t);
}

static void *array_new(size_t n, size_t element_bytes)
{
    void *array = malloc(n * element_bytes);

    ck_assert_ptr_nonnull(array);
    memset(array, 0xee, n * element_bytes);
    return array;
}

float adam_rig_random(unsigned *seed)
{
    float number = (float)(rand_r(seed) % 2000001 - 1000000) / 1000000;

    return ldexpf(number, -(rand_r(seed) % 12));
}

struct spw_adam_slice adam_rig_new(size_t n, uint32_t grad_dtype, uint32_t param_dtype, unsigned seed)
{
    void *grad = array_new(n, dtype_bytes(grad_dtype));
    struct spw_adam_slice tensor = {.n = n,
                                    .grad = grad,
                                    .master = array_new(n, sizeof(float)),
                                    .m = array_new(n, sizeof(float)),
                                    .v = array_new(n, sizeof(float)),
                                    .param = param_dtype ? array_new(n, dtype_bytes(param_dtype)) : NULL,
                                    .grad_dtype = grad_dtype,
                                    .param_dtype = param_dtype};

    for (size_t i = 0; i < n; i++) {
        float g = adam_rig_random(&seed);
        uint32_t bits;
        memcpy(&bits, &g, sizeof(bits));
        if (grad_dtype == SPW_DTYPE_F32)
            ((float *)grad)[i] = g;
        else
            ((uint16_t *)grad)[i] = (uint16_t)(bits >> 16);
        tensor.master[i] = adam_rig_random(&seed);
        tensor.m[i] = 0.1f * adam_rig_random(&seed);
        tensor.v[i] = 0.1f * fabsf(adam_rig_random(&seed));
    }
    return tensor;
}

void adam_rig_free(struct spw_adam_slice *tensor)
{
    free((void *)tensor->grad);
    free(tensor->master);
    free(tensor->m);
    free(tensor->v);
    free(tensor->param);
}

void adam_rig_assert_equal(const struct spw_adam_slice *a, const struct spw_adam_slice *b)
{
    ck_assert_uint_eq(a->n, b->n);
    ck_assert_int_eq(memcmp(a->master, b->master, a->n * sizeof(float)), 0);
    ck_assert_int_eq(memcmp(a->m, b->m, a->n * sizeof(float)), 0);
    ck_assert_int_eq(memcmp(a->v, b->v, a->n * sizeof(float)), 0);
    if (a->param)
        ck_assert_int_eq(memcmp(a->param, b->param, a->n * dtype_bytes(a->param_dtype)), 0);
}

bool adam_rig_stats_equal(const struct spw_grad_stat *a, const struct spw_grad_stat *b)
{
    return a->sum_squares == b->sum_squares && a->has_nonfinite == b->has_nonfinite && a->reserved == b->reserved;
}

struct spw_adam_slice adam_rig_part(const struct spw_adam_slice *tensor, size_t from, size_t n)
{
    struct spw_adam_slice part = *tensor;

    part.n = n;
    part.grad = (const char *)part.grad + from * dtype_bytes(part.grad_dtype);
    part.master += from;
    part.m += from;
    part.v += from;
    if (part.param)
        part.param = (char *)part.param + from * dtype_bytes(part.param_dtype);
    return part;
}

double adam_rig_grad(const struct spw_adam_slice *tensor, size_t i)
{
    uint32_t bits;
    float g;

    if (tensor->grad_dtype == SPW_DTYPE_F32)
        return (double)((const float *)tensor->grad)[i];
    bits = (uint32_t)((const uint16_t *)tensor->grad)[i] << 16;
    memcpy(&g, &bits, sizeof(g));
    return (double)g;
}
