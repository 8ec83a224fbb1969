/* SPDX-License-Identifier: Apache-2.0 */
/* A tensor's training states, made from a seed, each array with an allocation of its own, so that ASan sees its end. */
#pragma once

#include "client/lib/train.h"

#define ADAM_RIG_OPTIONS                                                                                               \
    (struct spw_adam_options)                                                                                          \
    {                                                                                                                  \
        .lr = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01, .grad_scale = 1, .step = 1        \
    }

/* Gradients of either type, parameters of either, or no param (0). States as after some steps. */
struct spw_adam_slice adam_rig_new(size_t n, uint32_t grad_dtype, uint32_t param_dtype, unsigned seed);
void adam_rig_free(struct spw_adam_slice *tensor);
/* Bit by bit: all that a step writes. */
void adam_rig_assert_equal(const struct spw_adam_slice *a, const struct spw_adam_slice *b);
bool adam_rig_stats_equal(const struct spw_grad_stat *a, const struct spw_grad_stat *b);
/* A part of it. */
struct spw_adam_slice adam_rig_part(const struct spw_adam_slice *tensor, size_t from, size_t n);
double adam_rig_grad(const struct spw_adam_slice *tensor, size_t i);
/* Between -1 and 1, of many sizes. */
float adam_rig_random(unsigned *seed);
