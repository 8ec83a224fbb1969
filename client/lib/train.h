/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of spillway/train.h. One file a row; each may call those below it.
 *
 *   adam.c          the API: arguments → blocks, which threads take; sums in order
 *   train_copy.c    copies by workers
 *   workers.c       threads that wait for work
 *   adam_block.c    which code does the arithmetic, and how numbers are rounded
 *   adam_kernel.inc the arithmetic; adam_baseline.c, adam_avx2.c, adam_avx512.c: with these vectors
 */
#pragma once

#include "client/lib/client.h"
#include "include/spillway/train.h"

/* --- workers.c ---------------------------------------------------------------------------------------------------- */

/* Takes the workers for the calling thread, until they are released: others wait. Returns room for a round's sums. */
double *client_workers_hold(spw_workers *workers);
void client_workers_release(spw_workers *workers);
/* Held: runs it on the calling thread and up to n_threads - 1 others, each once, and waits for all of them. */
void client_workers_run(spw_workers *workers, unsigned n_threads, void (*run)(void *arg), void *arg);
/* 0; -ECHILD after a fork, with words. NULL is fine. */
int client_workers_check(const char *name, const spw_workers *workers);

/* --- adam_block.c ------------------------------------------------------------------------------------------------- */

/* What a step's options come to. */
struct adam_factors {
    float grad_scale;
    bool is_l2;
    float l2;           /* is_l2: of the parameter, that is added to its gradient */
    float keep;         /* otherwise: of the parameter */
    float beta1, rest1; /* rest: 1 - beta */
    float beta2, rest2;
    float rate, eps; /* with the bias corrections in them */
};

/* To be called in the mode that client_train_mode_enter() sets. Both return the sum of the squares of the gradients of at most
 * SPW_TRAIN_BLOCK elements. */
struct adam_code {
    const char *name;
    double (*step)(const struct adam_factors *factors, const struct spw_adam_slice *block);
    double (*sum)(const struct spw_adam_slice *block);
};

extern const struct adam_code client_adam_baseline, client_adam_avx2, client_adam_avx512; /* the latter two: x86-64 */
/* What this processor can run, the best first; NULL: no more. */
const struct adam_code *client_adam_code(unsigned nth);

/* How the calling thread rounds: as spillway/train.h promises, until the mode that it had is set again. The compiler knows
 * nothing of modes: what is to be computed in one stands in a function that is not inlined. */
unsigned client_train_mode_enter(void);
void client_train_mode_leave(unsigned before);
