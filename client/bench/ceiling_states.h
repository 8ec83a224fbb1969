/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How fast the arrays of an optimizer step go through a processor that computes next to nothing on them: the same reads and
 * the same writes, side by side.
 */
#pragma once

#include "include/spillway/train.h"

/* n is a multiple of 16. All in fp32 and without param, or gradients and param in bf16. States do not change: they get
 * `nothing`, which is 0, times the gradient added. param is spoiled. */
void ceiling_states_run(const struct spw_adam_slice *slice, float nothing);
/* Reads gradients in fp32. What it returns is of no use. */
float ceiling_grad_run(const struct spw_adam_slice *slice);
