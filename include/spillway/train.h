/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libspillway: what a training job computes on its optimizer states, where they lie: leased memory, or the caller's own;
 * and copies, by the same threads.
 *
 *     spw_workers *cpus;  struct spw_grad_stat stat;
 *     spw_workers_new(0, &cpus);                             as many threads as the process has CPUs
 *     spw_grad_stat(cpus, slices, n, &stat);                 only who must decide before the step: overflow, clipping
 *     spw_adam(cpus, &options, slices, n, &stat);            one pass over memory
 *     spw_copy(cpus, copies, n);                             many ranges at once
 *
 * No session is needed, and none is used. Nothing is allocated but by spw_workers_new().
 *
 * The same numbers, bit for bit, come out whatever the number of threads, the processor's vector instructions, and the way
 * in which a tensor is cut into slices, if all cuts but the tensor's end are at multiples of SPW_TRAIN_BLOCK elements. (The
 * bits of a NaN are not promised, except that it is one; nor are bits the same on processors of another architecture.)
 * Numbers are rounded to the nearest, ties to even; those smaller than the smallest normal float (1.2e-38) count as zero,
 * where they are read and where they come out. The calling thread's own rounding mode is neither used nor changed.
 *
 * Threads, forks and errors: as in spillway.h.
 */
#pragma once

#include "spillway.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* Elements of which sums are made first, the sums then being added in order. */
#define SPW_TRAIN_BLOCK 4096

/* --- Threads ------------------------------------------------------------------------------------------------------ */

typedef struct spw_workers spw_workers;

/* Threads that work beside the caller: n_threads counts the caller, so that 1 is nobody; 0: one for each CPU that the
 * calling thread may run on. They inherit the caller's CPUs, sleep when there is nothing to do (after some 20 us of looking),
 * and have all signals blocked. One call at a time has them: a second one on the same object waits until the first returns.
 * After fork() the child's calls with it are -ECHILD, until it makes its own.
 *
 * Wherever a function takes workers, NULL is the calling thread alone. -EINVAL: more than 1024; -EAGAIN: the system has no
 * more threads for this user. */
int spw_workers_new(unsigned n_threads, spw_workers **ret_workers);
/* With the caller. */
unsigned spw_workers_count(const spw_workers *workers);
/* No call uses them any more. NULL is fine; so is a child of fork(). */
void spw_workers_free(spw_workers *workers);

/* --- Tensors ------------------------------------------------------------------------------------------------------ */

enum spw_dtype {
    SPW_DTYPE_F32 = 1,
    SPW_DTYPE_BF16 = 2, /* the upper half of a float */
};

/*
 * A tensor, or a part of one: n elements, one behind the other in each array. Arrays are aligned to their elements (4 or 2
 * bytes; -EINVAL else), better to 64 bytes. They stay the caller's. Nobody else writes them during a call, nor reads what it
 * writes. Arrays that overlap, in a slice or between two, have undefined contents afterwards, with one exception: param may
 * be master.
 */
struct spw_adam_slice {
    size_t n;                         /* 0: nothing is looked at, nor done */
    const void *grad;                 /* n of grad_dtype */
    float *master;                    /* n: the parameters, as they are kept */
    float *m, *v;                     /* n each: first and second moment; zeros before the first step */
    void *param;                      /* n of param_dtype: the parameters, as they are used; NULL: not wanted */
    uint32_t grad_dtype, param_dtype; /* enum spw_dtype; that of a NULL is not looked at */
};

/* Of the gradients as they lie in memory, not scaled, over all slices. */
struct spw_grad_stat {
    double sum_squares;     /* of finite gradients: the square of their 2-norm; infinity if there are others */
    uint32_t has_nonfinite; /* 1: a gradient is infinite, or not a number; else 0 */
    uint32_t reserved;      /* 0 */
};

/* Looks at gradients, and at nothing else of the slices: one pass that only reads. 0, -EINVAL, -ECHILD. */
int spw_grad_stat(spw_workers *workers, const struct spw_adam_slice *slices, size_t n_slices,
                  struct spw_grad_stat *ret_stat);

/* --- Adam --------------------------------------------------------------------------------------------------------- */

#define SPW_ADAM_L2 (1u << 0) /* weight decay is added to the gradient (Adam), not taken off the parameter (AdamW) */

struct spw_adam_options {
    double lr;           /* ≥ 0: step size */
    double beta1, beta2; /* in [0, 1) */
    double eps;          /* ≥ 0 */
    double weight_decay; /* ≥ 0 */
    double grad_scale; /* > 0: by which gradients are multiplied first: 1, or one over the loss's scale, clipping, … */
    uint64_t step;     /* of these parameters, the first being 1 */
    uint32_t flags;    /* SPW_ADAM_… */
    uint32_t reserved; /* 0 */
};

/*
 * A step of Adam with decoupled weight decay [Loshchilov & Hutter 2019, algorithm 2], or of Adam with L2 regularisation
 * [Kingma & Ba 2015], in float, each element by itself:
 *
 *     g = grad_scale · grad                         with SPW_ADAM_L2: + weight_decay · p
 *     p = (1 - lr · weight_decay) · p               without
 *     m = beta1 · m + (1 - beta1) · g
 *     v = beta2 · v + (1 - beta2) · g · g
 *     p = p - lr / c1 · m / (√v / √c2 + eps)        ci = 1 - betai^step, in double
 *
 * as torch.optim.AdamW (and Adam) have it, to a few roundings: √c2 is multiplied into lr / c1 and eps, as section 2 of
 * [Kingma & Ba 2015] says. p is kept in `master`, and written to `param` too, rounded to the nearest, ties to even, if that
 * is bf16 (a NaN stays one). 1 - lr · weight_decay is rounded to a float. In memory a step reads 16 bytes an element and writes 12, with gradients in fp32 and without
 * `param`.
 *
 * A gradient that is not finite is used like any other, and spoils what it touches: who may meet one asks spw_grad_stat()
 * first. ret_stat is what that would have said; NULL: not wanted.
 *
 * 0; -EINVAL: spw_error_text() says which argument, and nothing was written; -ECHILD.
 */
int spw_adam(spw_workers *workers, const struct spw_adam_options *options, const struct spw_adam_slice *slices,
             size_t n_slices, struct spw_grad_stat *ret_stat);

/* --- Copies ------------------------------------------------------------------------------------------------------- */

/* size_bytes from `from` to `to`, both the caller's, at any alignment. 0 bytes: nothing is looked at. */
struct spw_copy {
    void *to;
    const void *from;
    uint64_t size_bytes;
};

/*
 * Copies many ranges, as parameters to where a checkpoint is made. Ranges that are written overlap no other. 0; -EINVAL:
 * spw_error_text() says which, and nothing was written; -ECHILD.
 */
int spw_copy(spw_workers *workers, const struct spw_copy *copies, size_t n);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
