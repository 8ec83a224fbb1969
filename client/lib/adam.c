/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The optimizer step: checks, and how slices are divided among threads. The blocks of all slices are one sequence; a thread
 * takes a few that follow each other, wherever they lie, under a lock that is held a thousandth of the time that they
 * take. Each block's sum has a place of its own, and the caller adds them in order: so the result does not depend on who
 * did what. There are CLIENT_TRAIN_ROUND_BLOCKS such places: longer sequences go in rounds.
 *
 * The calling thread's, and during a round that of the workers; they meet at cursor.lock and in workers.c.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "client/lib/train.h"

#define in_mode __attribute__((noinline)) /* see client_train_mode_enter() */

/* Where the sequence of blocks goes on. */
struct cursor {
    const struct spw_adam_slice *slices;
    size_t n_slices, slice, at; /* at: element of the slice */
};

struct train {
    const struct adam_code *code;
    const struct adam_factors *factors; /* NULL: only sums */
    pthread_mutex_t lock;               /* guards the cursor and n_taken */
    struct cursor cursor;
    uint32_t n_taken; /* blocks of this round */
    double *sums;
};

struct task {
    struct cursor from;
    uint32_t first, n; /* blocks of the round */
};

/* --- Blocks ----------------------------------------------------------------------------------------------------------- */

static size_t dtype_bytes(uint32_t dtype)
{
    return dtype == SPW_DTYPE_F32 ? sizeof(float) : sizeof(uint16_t);
}

/* Steps over one block. Returns false at the end. */
static bool cursor_next(struct cursor *cursor)
{
    while (cursor->slice < cursor->n_slices && cursor->at >= cursor->slices[cursor->slice].n) {
        cursor->slice++;
        cursor->at = 0;
    }
    if (cursor->slice == cursor->n_slices)
        return false;
    cursor->at += MIN((size_t)SPW_TRAIN_BLOCK, cursor->slices[cursor->slice].n - cursor->at);
    return true;
}

/* The block that was stepped over last. */
static struct spw_adam_slice cursor_block(const struct cursor *cursor)
{
    struct spw_adam_slice block = cursor->slices[cursor->slice];
    size_t from = (cursor->at - 1) / SPW_TRAIN_BLOCK * SPW_TRAIN_BLOCK;

    block.n = cursor->at - from;
    block.grad = (const char *)block.grad + from * dtype_bytes(block.grad_dtype);
    block.master += from;
    block.m += from;
    block.v += from;
    if (block.param)
        block.param = (char *)block.param + from * dtype_bytes(block.param_dtype);
    return block;
}

/* Returns false if nothing is left of this round. */
static bool task_take(struct train *train, struct task *ret_task)
{
    pthread_mutex_lock(&train->lock);
    struct task task = {.from = train->cursor, .first = train->n_taken};
    uint32_t n_max = MIN(CLIENT_TRAIN_ROUND_BLOCKS - task.first, (uint32_t)CLIENT_TRAIN_TASK_BLOCKS);
    while (task.n < n_max && cursor_next(&train->cursor))
        task.n++;
    train->n_taken += task.n;
    pthread_mutex_unlock(&train->lock);
    *ret_task = task;
    return task.n > 0;
}

static double block_run(const struct train *train, const struct spw_adam_slice *block)
{
    return train->factors ? train->code->step(train->factors, block) : train->code->sum(block);
}

/* What each thread does in a round. */
static void round_work(void *arg)
{
    struct train *train = arg;
    unsigned mode = client_train_mode_enter();
    struct task task;

    while (task_take(train, &task)) {
        for (uint32_t i = 0; i < task.n; i++) {
            (void)cursor_next(&task.from);
            struct spw_adam_slice block = cursor_block(&task.from);
            train->sums[task.first + i] = block_run(train, &block);
        }
    }
    client_train_mode_leave(mode);
}

/* --- Runs ------------------------------------------------------------------------------------------------------------- */

/* The threads that have something to do in the next round. */
static unsigned round_threads(const struct train *train)
{
    struct cursor cursor = train->cursor;
    unsigned n_blocks = 0, n_max = CLIENT_WORKERS_MAX * CLIENT_TRAIN_TASK_BLOCKS;

    for (; n_blocks < n_max && cursor.slice < cursor.n_slices; cursor.slice++, cursor.at = 0) {
        size_t n = div_round_up(cursor.slices[cursor.slice].n - cursor.at, SPW_TRAIN_BLOCK);
        n_blocks += (unsigned)MIN(n, (size_t)n_max);
    }
    return (unsigned)div_round_up(n_blocks, CLIENT_TRAIN_TASK_BLOCKS);
}

in_mode static double run_shared(struct train *train, spw_workers *workers)
{
    double sum = 0;

    train->sums = client_workers_hold(workers);
    pthread_mutex_init(&train->lock, NULL);
    do {
        train->n_taken = 0;
        client_workers_run(workers, round_threads(train), round_work, train);
        for (uint32_t i = 0; i < train->n_taken; i++)
            sum += train->sums[i];
    } while (train->n_taken == CLIENT_TRAIN_ROUND_BLOCKS);
    pthread_mutex_destroy(&train->lock);
    client_workers_release(workers);
    return sum;
}

in_mode static double run_alone(struct train *train)
{
    double sum = 0;

    while (cursor_next(&train->cursor)) {
        struct spw_adam_slice block = cursor_block(&train->cursor);
        sum += block_run(train, &block);
    }
    return sum;
}

static void run(spw_workers *workers, const struct adam_factors *factors, const struct spw_adam_slice *slices,
                size_t n_slices, struct spw_grad_stat *ret_stat)
{
    struct train train = {
        .code = client_adam_code(0), .factors = factors, .cursor = {.slices = slices, .n_slices = n_slices}};
    unsigned mode = client_train_mode_enter();
    double sum = workers ? run_shared(&train, workers) : run_alone(&train);

    client_train_mode_leave(mode);
    if (ret_stat) /* squares of floats do not overflow in double */
        *ret_stat =
            (struct spw_grad_stat){.sum_squares = isfinite(sum) ? sum : INFINITY, .has_nonfinite = !isfinite(sum)};
}

/* --- Arguments -------------------------------------------------------------------------------------------------------- */

static bool is_aligned(const void *array, size_t element_bytes)
{
    return (uintptr_t)array % element_bytes == 0;
}

static int check_array(const char *name, size_t slice, const char *array_name, const void *array, size_t element_bytes)
{
    if (!array)
        return client_error(-EINVAL, 0, "%s: slice %zu: %s is NULL", name, slice, array_name);
    if (!is_aligned(array, element_bytes))
        return client_error(-EINVAL, 0, "%s: slice %zu: %s is not aligned to its elements of %zu bytes", name, slice,
                            array_name, element_bytes);
    return 0;
}

static int check_dtype(const char *name, size_t slice, const char *array_name, uint32_t dtype)
{
    if (dtype == SPW_DTYPE_F32 || dtype == SPW_DTYPE_BF16)
        return 0;
    return client_error(-EINVAL, 0, "%s: slice %zu: %s has an unknown type (%u)", name, slice, array_name, dtype);
}

static int check_grad(const char *name, const struct spw_adam_slice *s, size_t slice)
{
    int r = check_dtype(name, slice, "grad", s->grad_dtype);

    return r < 0 ? r : check_array(name, slice, "grad", s->grad, dtype_bytes(s->grad_dtype));
}

static int check_states(const char *name, const struct spw_adam_slice *s, size_t slice)
{
    int r = check_array(name, slice, "master", s->master, sizeof(float));

    if (r == 0)
        r = check_array(name, slice, "m", s->m, sizeof(float));
    if (r == 0)
        r = check_array(name, slice, "v", s->v, sizeof(float));
    if (r < 0 || !s->param)
        return r;
    r = check_dtype(name, slice, "param", s->param_dtype);
    if (r == 0 && s->param == s->master && s->param_dtype != SPW_DTYPE_F32)
        r = client_error(-EINVAL, 0, "%s: slice %zu: param is master, but not fp32", name, slice);
    return r < 0 ? r : check_array(name, slice, "param", s->param, dtype_bytes(s->param_dtype));
}

static int check_slices(const char *name, const spw_workers *workers, const struct spw_adam_slice *slices,
                        size_t n_slices, bool with_states)
{
    int r = client_workers_check(name, workers);

    if (r == 0 && !slices && n_slices > 0)
        r = client_error(-EINVAL, 0, "%s: the list is NULL", name);
    for (size_t i = 0; r == 0 && i < n_slices; i++) {
        const struct spw_adam_slice *s = &slices[i];
        if (s->n == 0)
            continue;
        r = s->n > SIZE_MAX / sizeof(float) ? client_error(-EINVAL, 0, "%s: slice %zu: n is too large", name, i)
                                            : check_grad(name, s, i);
        if (r == 0 && with_states)
            r = check_states(name, s, i);
    }
    return r;
}

/* A NaN is in no interval. */
static int check_number(const char *number_name, double number, bool is_right)
{
    return is_right ? 0 : client_error(-EINVAL, 0, "spw_adam: %s is %g", number_name, number);
}

static int check_options(const struct spw_adam_options *o)
{
    if (!o)
        return client_error(-EINVAL, 0, "spw_adam: there are no options");
    int r = check_number("lr", o->lr, o->lr >= 0 && o->lr <= (double)FLT_MAX);
    if (r == 0)
        r = check_number("beta1", o->beta1, o->beta1 >= 0 && o->beta1 < 1);
    if (r == 0)
        r = check_number("beta2", o->beta2, o->beta2 >= 0 && o->beta2 < 1);
    if (r == 0)
        r = check_number("eps", o->eps, o->eps >= 0 && o->eps <= (double)FLT_MAX);
    if (r == 0)
        r = check_number("weight_decay", o->weight_decay, o->weight_decay >= 0 && o->weight_decay <= (double)FLT_MAX);
    if (r == 0)
        r = check_number("grad_scale", o->grad_scale, o->grad_scale > 0 && o->grad_scale <= (double)FLT_MAX);
    if (r == 0 && o->step == 0)
        r = client_error(-EINVAL, 0, "spw_adam: the first step is 1, not 0");
    if (r == 0 && (o->flags & ~SPW_ADAM_L2 || o->reserved))
        r = client_error(-EINVAL, 0, "spw_adam: flags 0x%x or a reserved field are not for this call", o->flags);
    return r;
}

/* --- The API ---------------------------------------------------------------------------------------------------------- */

/* 1 - beta^step. Not pow(), whose last bit is the C library's to choose. */
static double bias_correction(double beta, uint64_t step)
{
    double power = 1;

    for (; step > 0; step >>= 1, beta *= beta)
        if (step & 1)
            power *= beta;
    return 1 - power;
}

in_mode static void factors_init(struct adam_factors *ret_factors, const struct spw_adam_options *o)
{
    double c1 = bias_correction(o->beta1, o->step), root_c2 = __builtin_sqrt(bias_correction(o->beta2, o->step));

    *ret_factors = (struct adam_factors){
        .grad_scale = (float)o->grad_scale,
        .is_l2 = o->flags & SPW_ADAM_L2,
        .l2 = (float)o->weight_decay,
        .keep = (float)(1 - o->lr * o->weight_decay),
        .beta1 = (float)o->beta1,
        .rest1 = (float)(1 - o->beta1),
        .beta2 = (float)o->beta2,
        .rest2 = (float)(1 - o->beta2),
        .rate = (float)(o->lr * root_c2 / c1),
        .eps = (float)(o->eps * root_c2),
    };
}

int spw_adam(spw_workers *workers, const struct spw_adam_options *options, const struct spw_adam_slice *slices,
             size_t n_slices, struct spw_grad_stat *ret_stat)
{
    int r = check_options(options);

    if (r == 0)
        r = check_slices("spw_adam", workers, slices, n_slices, true);
    if (r < 0)
        return r;
    struct adam_factors factors;
    unsigned mode = client_train_mode_enter();
    factors_init(&factors, options);
    client_train_mode_leave(mode);
    run(workers, &factors, slices, n_slices, ret_stat);
    return 0;
}

int spw_grad_stat(spw_workers *workers, const struct spw_adam_slice *slices, size_t n_slices,
                  struct spw_grad_stat *ret_stat)
{
    int r = check_slices("spw_grad_stat", workers, slices, n_slices, false);

    if (r == 0 && !ret_stat)
        r = client_error(-EINVAL, 0, "spw_grad_stat: there is nowhere to put the result");
    if (r < 0)
        return r;
    run(workers, NULL, slices, n_slices, ret_stat);
    return 0;
}
