/* SPDX-License-Identifier: Apache-2.0 */
/* The optimizer step: its arithmetic, that bits do not depend on how it is computed, and bad arguments. */
#include <check.h>
#include <errno.h>
#include <fenv.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "tests/unit/support/adam_rig.h"

static const size_t sizes[] = {1, 2, 15, 16, 17, 31, 511, 512, 513, 4095, 4096, 4097, 3 * 4096 + 1000};
static const uint32_t dtypes[] = {SPW_DTYPE_F32, SPW_DTYPE_BF16};

static uint32_t bits_of(float number)
{
    uint32_t bits;

    memcpy(&bits, &number, sizeof(bits));
    return bits;
}

static float float_of(uint32_t bits)
{
    float number;

    memcpy(&number, &bits, sizeof(number));
    return number;
}

/* --- The arithmetic --------------------------------------------------------------------------------------------------- */

struct reference {
    double p, m, v;
};

static void reference_step(struct reference *r, double grad, const struct spw_adam_options *o)
{
    bool is_l2 = o->flags & SPW_ADAM_L2;
    double g = grad * o->grad_scale + (is_l2 ? o->weight_decay * r->p : 0);
    double c1 = 1 - pow(o->beta1, (double)o->step), c2 = 1 - pow(o->beta2, (double)o->step);

    if (!is_l2)
        r->p *= (double)(float)(1 - o->lr * o->weight_decay); /* as torch has it, too */
    r->m = o->beta1 * r->m + (1 - o->beta1) * g;
    r->v = o->beta2 * r->v + (1 - o->beta2) * g * g;
    r->p -= o->lr / c1 * r->m / (sqrt(r->v) / sqrt(c2) + o->eps);
}

/* The gradient of a bowl, differently steep in each direction, with noise. */
static void gradient(const struct spw_adam_slice *t, unsigned *seed)
{
    for (size_t i = 0; i < t->n; i++)
        ((float *)t->grad)[i] = (t->master[i] - 0.5f) * (float)(1 + i % 7) + 0.1f * adam_rig_random(seed);
}

static void follow(struct spw_adam_options options, double tolerance)
{
    enum { N = 1000, STEPS = 200 };
    static struct reference reference[N];
    struct spw_adam_slice t = adam_rig_new(N, SPW_DTYPE_F32, 0, 7);
    unsigned seed = 3;

    memset(t.m, 0, N * sizeof(float));
    memset(t.v, 0, N * sizeof(float));
    for (size_t i = 0; i < N; i++)
        reference[i] = (struct reference){.p = (double)t.master[i]};
    for (options.step = 1; options.step <= STEPS; options.step++) {
        gradient(&t, &seed);
        for (size_t i = 0; i < N; i++)
            reference_step(&reference[i], adam_rig_grad(&t, i), &options);
        ck_assert_int_eq(spw_adam(NULL, &options, &t, 1, NULL), 0);
        double error = 0, norm = 0;
        for (size_t i = 0; i < N; i++) {
            error += pow((double)t.master[i] - reference[i].p, 2);
            norm += pow(reference[i].p, 2);
        }
        ck_assert_double_lt(sqrt(error / norm), tolerance);
    }
    adam_rig_free(&t);
}

START_TEST(test_follows_a_reference_in_double)
{
    struct spw_adam_options o = ADAM_RIG_OPTIONS;

    follow(o, 1e-6);
    o.weight_decay = 0.1;
    o.lr = 0.01;
    follow(o, 1e-6);
    o.flags = SPW_ADAM_L2;
    follow(o, 1e-6);
    o.grad_scale = 1.0 / 1024; /* parameters go through zero */
    follow(o, 2e-6);
    o = ADAM_RIG_OPTIONS;
    o.beta1 = 0;
    follow(o, 1e-6);
    o.beta2 = 0; /* steps of lr, all rounded the same way */
    follow(o, 5e-6);
}
END_TEST

/* A late step has no correction left to make, and costs no more to compute. */
START_TEST(test_late_steps)
{
    struct spw_adam_options o = ADAM_RIG_OPTIONS;
    struct spw_adam_slice a = adam_rig_new(100, SPW_DTYPE_F32, 0, 1), b = adam_rig_new(100, SPW_DTYPE_F32, 0, 1);

    o.step = 1000000;
    ck_assert_int_eq(spw_adam(NULL, &o, &a, 1, NULL), 0);
    o.step = UINT64_MAX;
    ck_assert_int_eq(spw_adam(NULL, &o, &b, 1, NULL), 0);
    adam_rig_assert_equal(&a, &b);
    adam_rig_free(&a);
    adam_rig_free(&b);
}
END_TEST

/* --- The same bits ---------------------------------------------------------------------------------------------------- */

static double code_step(const struct adam_code *code, const struct spw_adam_slice *block, bool is_l2)
{
    const struct adam_factors factors = {.grad_scale = 0.7f,
                                         .is_l2 = is_l2,
                                         .l2 = 0.01f,
                                         .keep = 0.999f,
                                         .beta1 = 0.9f,
                                         .rest1 = 0.1f,
                                         .beta2 = 0.999f,
                                         .rest2 = 0.001f,
                                         .rate = 1e-2f,
                                         .eps = 1e-8f};
    unsigned mode = client_train_mode_enter();
    double sum = code->step(&factors, block);
    ck_assert_double_eq(code->sum(block), sum);

    client_train_mode_leave(mode);
    return sum;
}

START_TEST(test_every_code_gives_the_same_bits)
{
    for (unsigned which = 0; which < ARRAY_LEN(sizes) * 12; which++) {
        size_t n = MIN(sizes[which / 12], (size_t)SPW_TRAIN_BLOCK);
        uint32_t grad = dtypes[which % 2], param = which / 2 % 3;
        bool is_l2 = which / 6 % 2;
        unsigned n_codes = 0;
        struct spw_adam_slice first = adam_rig_new(n, grad, param, which);
        double sum = code_step(client_adam_code(0), &first, is_l2);
        for (const struct adam_code *code; (code = client_adam_code(n_codes)); n_codes++) {
            struct spw_adam_slice other = adam_rig_new(n, grad, param, which);
            ck_assert_msg(code_step(code, &other, is_l2) == sum, "%s: %zu elements", code->name, n);
            adam_rig_assert_equal(&first, &other);
            adam_rig_free(&other);
        }
        ck_assert_uint_ge(n_codes, 1);
        adam_rig_free(&first);
    }
}
END_TEST

START_TEST(test_cuts_do_not_matter)
{
    enum { BLOCKS = 5, N = BLOCKS * SPW_TRAIN_BLOCK + 77 };
    struct spw_adam_options o = ADAM_RIG_OPTIONS;
    static const struct spw_adam_slice empty;
    struct spw_grad_stat whole_stat, cut_stat;

    o.grad_scale = 0.3;
    for (unsigned cuts = 0; cuts < 1u << BLOCKS; cuts += 5) {
        struct spw_adam_slice whole = adam_rig_new(N, SPW_DTYPE_BF16, SPW_DTYPE_BF16, 5), parts[2 * BLOCKS + 2];
        struct spw_adam_slice cut = adam_rig_new(N, SPW_DTYPE_BF16, SPW_DTYPE_BF16, 5);
        size_t n = 0, from = 0;
        for (size_t i = 1; i <= BLOCKS; i++) {
            if (!(cuts & 1u << (i - 1)))
                continue;
            parts[n++] = adam_rig_part(&cut, from, i * SPW_TRAIN_BLOCK - from);
            parts[n++] = empty;
            from = i * SPW_TRAIN_BLOCK;
        }
        parts[n++] = adam_rig_part(&cut, from, N - from);
        ck_assert_int_eq(spw_adam(NULL, &o, &whole, 1, &whole_stat), 0);
        ck_assert_int_eq(spw_adam(NULL, &o, parts, n, &cut_stat), 0);
        adam_rig_assert_equal(&whole, &cut);
        ck_assert(adam_rig_stats_equal(&whole_stat, &cut_stat));
        adam_rig_free(&whole);
        adam_rig_free(&cut);
    }
}
END_TEST

START_TEST(test_places_do_not_matter)
{
    enum { N = 2000 };
    struct spw_adam_options o = ADAM_RIG_OPTIONS;

    for (size_t shift = 1; shift < 16; shift++) {
        struct spw_adam_slice tensor = adam_rig_new(N, SPW_DTYPE_BF16, SPW_DTYPE_BF16, 9);
        struct spw_adam_slice odd = adam_rig_new(N + shift, SPW_DTYPE_BF16, SPW_DTYPE_BF16, 1);
        struct spw_adam_slice shifted = adam_rig_part(&odd, shift, N);
        memcpy((void *)shifted.grad, tensor.grad, N * sizeof(uint16_t));
        memcpy(shifted.master, tensor.master, N * sizeof(float));
        memcpy(shifted.m, tensor.m, N * sizeof(float));
        memcpy(shifted.v, tensor.v, N * sizeof(float));
        ck_assert_int_eq(spw_adam(NULL, &o, &tensor, 1, NULL), 0);
        ck_assert_int_eq(spw_adam(NULL, &o, &shifted, 1, NULL), 0);
        adam_rig_assert_equal(&tensor, &shifted);
        adam_rig_free(&tensor);
        adam_rig_free(&odd);
    }
}
END_TEST

START_TEST(test_the_callers_rounding_does_not_matter)
{
    struct spw_adam_options o = ADAM_RIG_OPTIONS;
    struct spw_adam_slice a = adam_rig_new(5000, SPW_DTYPE_F32, SPW_DTYPE_BF16, 4);
    struct spw_adam_slice b = adam_rig_new(5000, SPW_DTYPE_F32, SPW_DTYPE_BF16, 4);
    struct spw_grad_stat a_stat, b_stat;

    ck_assert_int_eq(spw_adam(NULL, &o, &a, 1, &a_stat), 0);
    ck_assert_int_eq(fesetround(FE_UPWARD), 0);
    int r = spw_adam(NULL, &o, &b, 1, &b_stat);
    int rounding = fegetround();
    fesetround(FE_TONEAREST);
    ck_assert_int_eq(r, 0);
    ck_assert_int_eq(rounding, FE_UPWARD);
    adam_rig_assert_equal(&a, &b);
    ck_assert_double_eq(a_stat.sum_squares, b_stat.sum_squares);
    adam_rig_free(&a);
    adam_rig_free(&b);
}
END_TEST

/* --- Types ------------------------------------------------------------------------------------------------------------ */

/* The nearest bf16 by comparing distances, not by adding to bits. */
static uint16_t nearest_bf16(float number)
{
    uint32_t bits = bits_of(number);
    uint16_t down = (uint16_t)(bits >> 16), up = (uint16_t)(down + 1); /* towards zero, and away from it */

    if ((bits & 0xffff) == 0 || isinf(number))
        return down;
    double here = fabs((double)number), low = fabs((double)float_of((uint32_t)down << 16));
    double high = (up & 0x7fff) == 0x7f80 ? 0x1p128 : fabs((double)float_of((uint32_t)up << 16));
    if (here - low != high - here)
        return here - low < high - here ? down : up;
    return down % 2 == 0 ? down : up;
}

/* With no step to make, param is master rounded. */
START_TEST(test_bf16_rounding)
{
    static const uint16_t lows[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    enum { N = 65536 * ARRAY_LEN(lows) };
    struct spw_adam_slice t = adam_rig_new(N, SPW_DTYPE_F32, SPW_DTYPE_BF16, 1);
    struct spw_adam_options o = ADAM_RIG_OPTIONS;

    o.lr = 0;
    memset((void *)t.grad, 0, N * sizeof(float));
    memset(t.m, 0, N * sizeof(float));
    for (size_t i = 0; i < N; i++)
        t.master[i] = float_of((uint32_t)(i / ARRAY_LEN(lows)) << 16 | lows[i % ARRAY_LEN(lows)]);
    ck_assert_int_eq(spw_adam(NULL, &o, &t, 1, NULL), 0);
    for (size_t i = 0; i < N; i++) {
        uint32_t was = (uint32_t)(i / ARRAY_LEN(lows)) << 16 | lows[i % ARRAY_LEN(lows)];
        uint16_t is = ((uint16_t *)t.param)[i];
        if (isnan(float_of(was)))
            ck_assert_msg(isnan(float_of((uint32_t)is << 16)), "NaN %x became %x", was, is);
        else if (fpclassify(float_of(was)) == FP_SUBNORMAL)
            ck_assert_msg((is & 0x7fff) == 0, "%x became %x", was, is);
        else
            ck_assert_msg(is == nearest_bf16(float_of(was)), "%x became %x", was, is);
    }
    adam_rig_free(&t);
}
END_TEST

/* Gradients in bf16 are those in fp32 that have the same values; param in fp32 is master. */
START_TEST(test_types_agree)
{
    enum { N = 5000 };
    struct spw_adam_slice a = adam_rig_new(N, SPW_DTYPE_BF16, SPW_DTYPE_F32, 2);
    struct spw_adam_slice b = adam_rig_new(N, SPW_DTYPE_F32, SPW_DTYPE_F32, 2);
    struct spw_adam_options o = ADAM_RIG_OPTIONS;
    struct spw_grad_stat a_stat, b_stat;

    for (size_t i = 0; i < N; i++)
        ((float *)b.grad)[i] = (float)adam_rig_grad(&a, i);
    free(b.param);
    b.param = b.master;
    ck_assert_int_eq(spw_adam(NULL, &o, &a, 1, &a_stat), 0);
    ck_assert_int_eq(spw_adam(NULL, &o, &b, 1, &b_stat), 0);
    ck_assert_double_eq(a_stat.sum_squares, b_stat.sum_squares);
    adam_rig_assert_equal(&a, &b);
    b.param = NULL;
    adam_rig_free(&a);
    adam_rig_free(&b);
}
END_TEST

/* Numbers that would be denormal are zero: they would be slow, and stay for ever in moments that decay. */
START_TEST(test_denormals_are_zero)
{
    struct spw_adam_slice t = adam_rig_new(64, SPW_DTYPE_F32, 0, 1);
    struct spw_adam_options o = ADAM_RIG_OPTIONS;
    struct spw_grad_stat stat;

    for (size_t i = 0; i < t.n; i++) {
        ((float *)t.grad)[i] = FLT_MIN / 2;
        t.m[i] = FLT_MIN;
        t.v[i] = FLT_MIN / 2;
    }
    ck_assert_int_eq(spw_adam(NULL, &o, &t, 1, &stat), 0);
    ck_assert_double_eq(stat.sum_squares, 0);
    for (size_t i = 0; i < t.n; i++) {
        ck_assert_uint_eq(bits_of(t.m[i]), 0);
        ck_assert_uint_eq(bits_of(t.v[i]), 0);
    }
    adam_rig_free(&t);
}
END_TEST

/* --- What is told of gradients ---------------------------------------------------------------------------------------- */

START_TEST(test_sum_of_squares)
{
    struct spw_adam_options o = ADAM_RIG_OPTIONS;

    o.grad_scale = 0.125; /* not what the sum is of */
    for (size_t i = 0; i < 2 * ARRAY_LEN(sizes); i++) {
        struct spw_adam_slice t = adam_rig_new(sizes[i / 2], dtypes[i % 2], 0, (unsigned)i);
        struct spw_grad_stat before, stat;
        long double sum = 0;
        for (size_t k = 0; k < t.n; k++)
            sum += (long double)adam_rig_grad(&t, k) * (long double)adam_rig_grad(&t, k);
        ck_assert_int_eq(spw_grad_stat(NULL, &t, 1, &before), 0);
        ck_assert_int_eq(spw_adam(NULL, &o, &t, 1, &stat), 0);
        ck_assert(adam_rig_stats_equal(&before, &stat));
        ck_assert_double_le(fabs(stat.sum_squares - (double)sum), 1e-14 * (double)sum);
        ck_assert_uint_eq(stat.has_nonfinite, 0);
        adam_rig_free(&t);
    }
}
END_TEST

static void check_nonfinite(struct spw_adam_slice *t, size_t at, uint32_t bits, bool expected)
{
    struct spw_adam_options o = ADAM_RIG_OPTIONS;
    struct spw_grad_stat before, stat;

    if (t->grad_dtype == SPW_DTYPE_F32)
        ((uint32_t *)t->grad)[at] = bits;
    else
        ((uint16_t *)t->grad)[at] = (uint16_t)(bits >> 16);
    ck_assert_int_eq(spw_grad_stat(NULL, t, 1, &before), 0);
    ck_assert_int_eq(spw_adam(NULL, &o, t, 1, &stat), 0);
    ck_assert(adam_rig_stats_equal(&before, &stat));
    ck_assert_uint_eq(stat.has_nonfinite, expected);
    ck_assert(isinf(stat.sum_squares) ? expected : !expected);
}

START_TEST(test_one_number_that_is_not_finite)
{
    static const uint32_t wrong[] = {0x7f800000, 0xff800000, 0x7fc00000, 0xffc12345, 0x7f810000};

    for (size_t i = 0; i < 2 * ARRAY_LEN(sizes); i++)
        for (size_t k = 0; k < ARRAY_LEN(wrong); k++) {
            struct spw_adam_slice t = adam_rig_new(sizes[i / 2], dtypes[i % 2], SPW_DTYPE_BF16, 1);
            size_t at = (i * 7919 + k * 104729) % t.n;
            check_nonfinite(&t, at, wrong[k], true);
            /* A NaN is found in all that it touched, and nowhere else. */
            ck_assert(!isfinite(t.m[at]));
            for (size_t other = 0; other < t.n; other++)
                ck_assert(other == at || (isfinite(t.m[other]) && isfinite(t.v[other]) && isfinite(t.master[other])));
            check_nonfinite(&t, at, 0, false);
            adam_rig_free(&t);
        }
}
END_TEST

START_TEST(test_largest_gradients_are_finite)
{
    struct spw_adam_slice t = adam_rig_new(10000, SPW_DTYPE_F32, 0, 1);
    struct spw_grad_stat stat;

    for (size_t i = 0; i < t.n; i++)
        ((float *)t.grad)[i] = FLT_MAX;
    ck_assert_int_eq(spw_grad_stat(NULL, &t, 1, &stat), 0);
    ck_assert_uint_eq(stat.has_nonfinite, 0);
    ck_assert_double_le(fabs(stat.sum_squares / (10000 * (double)FLT_MAX * (double)FLT_MAX) - 1), 1e-14);
    adam_rig_free(&t);
}
END_TEST

START_TEST(test_nothing_to_do)
{
    struct spw_adam_options o = ADAM_RIG_OPTIONS;
    struct spw_adam_slice empty[3] = {{.n = 0}};
    struct spw_grad_stat stat = {.sum_squares = 1, .has_nonfinite = 1, .reserved = 1};
    static const struct spw_grad_stat none;

    ck_assert_int_eq(spw_adam(NULL, &o, NULL, 0, &stat), 0);
    ck_assert(adam_rig_stats_equal(&stat, &none));
    stat.sum_squares = 1;
    ck_assert_int_eq(spw_adam(NULL, &o, empty, 3, NULL), 0);
    ck_assert_int_eq(spw_grad_stat(NULL, empty, 3, &stat), 0);
    ck_assert(adam_rig_stats_equal(&stat, &none));
}
END_TEST

/* --- Bad arguments ---------------------------------------------------------------------------------------------------- */

static struct spw_adam_slice bad_tensor;

static void refused(const struct spw_adam_options *o, const struct spw_adam_slice *slices, size_t n, const char *word)
{
    struct spw_grad_stat stat = {.sum_squares = 5};
    struct spw_adam_slice before = adam_rig_new(bad_tensor.n, SPW_DTYPE_F32, SPW_DTYPE_BF16, 1);

    ck_assert_int_eq(spw_adam(NULL, o, slices, n, &stat), -EINVAL);
    ck_assert_msg(strstr(spw_error_text(), word) != NULL, "'%s' does not name %s", spw_error_text(), word);
    ck_assert_double_eq(stat.sum_squares, 5);
    adam_rig_assert_equal(&before, &bad_tensor);
    adam_rig_free(&before);
}

#define REFUSED_OPTION(field, number)                                                                                  \
    do {                                                                                                               \
        struct spw_adam_options o_ = ADAM_RIG_OPTIONS;                                                                 \
        o_.field = (number);                                                                                           \
        refused(&o_, &bad_tensor, 1, #field);                                                                          \
    } while (0)

START_TEST(test_bad_options)
{
    bad_tensor = adam_rig_new(100, SPW_DTYPE_F32, SPW_DTYPE_BF16, 1);
    refused(NULL, &bad_tensor, 1, "options");
    REFUSED_OPTION(lr, -1e-9);
    REFUSED_OPTION(lr, (double)NAN);
    REFUSED_OPTION(lr, (double)INFINITY);
    REFUSED_OPTION(beta1, 1);
    REFUSED_OPTION(beta1, -0.1);
    REFUSED_OPTION(beta1, (double)NAN);
    REFUSED_OPTION(beta2, 1);
    REFUSED_OPTION(beta2, 2);
    REFUSED_OPTION(beta2, (double)NAN);
    REFUSED_OPTION(eps, -1e-8);
    REFUSED_OPTION(eps, (double)NAN);
    REFUSED_OPTION(weight_decay, -1);
    REFUSED_OPTION(weight_decay, (double)INFINITY);
    REFUSED_OPTION(grad_scale, 0);
    REFUSED_OPTION(grad_scale, -1);
    REFUSED_OPTION(grad_scale, 1e39);
    REFUSED_OPTION(grad_scale, (double)NAN);
    REFUSED_OPTION(step, 0);
    REFUSED_OPTION(flags, 2);
    REFUSED_OPTION(reserved, 1);
    adam_rig_free(&bad_tensor);
}
END_TEST

/* The second of two slices is the bad one; the first must not have been touched. */
#define REFUSED_SLICE(field, wrong, word)                                                                              \
    do {                                                                                                               \
        struct spw_adam_slice slices_[2] = {adam_rig_part(&bad_tensor, 0, 50), adam_rig_part(&bad_tensor, 50, 50)};    \
        slices_[1].field = (wrong);                                                                                    \
        refused(&options, slices_, 2, "slice 1: " word);                                                               \
    } while (0)

START_TEST(test_bad_slices)
{
    struct spw_adam_options options = ADAM_RIG_OPTIONS;
    struct spw_grad_stat stat;

    bad_tensor = adam_rig_new(100, SPW_DTYPE_F32, SPW_DTYPE_BF16, 1);
    refused(&options, NULL, 1, "list");
    REFUSED_SLICE(grad, NULL, "grad");
    REFUSED_SLICE(master, NULL, "master");
    REFUSED_SLICE(m, NULL, "m ");
    REFUSED_SLICE(v, NULL, "v ");
    REFUSED_SLICE(grad, (char *)bad_tensor.grad + 2, "grad");
    REFUSED_SLICE(master, (void *)((char *)bad_tensor.master + 1), "master");
    REFUSED_SLICE(m, (void *)((char *)bad_tensor.m + 2), "m ");
    REFUSED_SLICE(v, (void *)((char *)bad_tensor.v + 3), "v ");
    REFUSED_SLICE(param, (char *)bad_tensor.param + 1, "param");
    REFUSED_SLICE(param, slices_[1].master, "param");
    REFUSED_SLICE(grad_dtype, 0, "grad");
    REFUSED_SLICE(param_dtype, 3, "param");
    REFUSED_SLICE(n, SIZE_MAX / 2, "");
    ck_assert_int_eq(spw_grad_stat(NULL, &bad_tensor, 1, NULL), -EINVAL);
    ck_assert_int_eq(spw_grad_stat(NULL, NULL, 1, &stat), -EINVAL);
    adam_rig_free(&bad_tensor);
}
END_TEST

/* Of the slices, grad_stat looks at gradients only. */
START_TEST(test_grad_stat_needs_gradients_alone)
{
    static const float grad[3] = {1, 2, 3};
    struct spw_adam_slice slice = {.n = 3, .grad = grad, .grad_dtype = SPW_DTYPE_F32};
    struct spw_grad_stat stat;

    ck_assert_int_eq(spw_grad_stat(NULL, &slice, 1, &stat), 0);
    ck_assert_double_eq(stat.sum_squares, 14);
    slice.grad_dtype = 0;
    ck_assert_int_eq(spw_grad_stat(NULL, &slice, 1, &stat), -EINVAL);
}
END_TEST

int main(void)
{
    const struct {
        const char *name;
        const TTest *tests[6];
    } cases[] = {
        {"arithmetic", {test_follows_a_reference_in_double, test_late_steps}},
        {"the same bits",
         {test_every_code_gives_the_same_bits, test_cuts_do_not_matter, test_places_do_not_matter,
          test_the_callers_rounding_does_not_matter}},
        {"types", {test_bf16_rounding, test_types_agree, test_denormals_are_zero}},
        {"gradients",
         {test_sum_of_squares, test_one_number_that_is_not_finite, test_largest_gradients_are_finite,
          test_nothing_to_do}},
        {"bad arguments", {test_bad_options, test_bad_slices, test_grad_stat_needs_gradients_alone}},
    };
    Suite *s = suite_create("adam");

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        TCase *t = tcase_create(cases[i].name);
        for (size_t k = 0; k < ARRAY_LEN(cases[i].tests) && cases[i].tests[k]; k++)
            tcase_add_test(t, cases[i].tests[k]);
        suite_add_tcase(s, t);
    }
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
