/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pools' budgets while the daemon runs: who has how much of them, trades between engines, and what a reload changes.
 * Control thread.
 */
#pragma once

#include "tiering/tiering.h"

struct control;
struct budgets;

/* The engines run, and have what control_pool_config() gave them. -ENOMEM. */
must_check int budgets_start(struct control *control);
/* All engines have ended. Takes NULL; returns NULL. */
struct budgets *budgets_free(struct budgets *budgets);
/* The configuration has changed: the budgets are shared anew, as memory becomes free. */
void budgets_reload(struct control *control);
/* What an engine may have now. */
void budgets_granted(const struct control *control, uint32_t engine, uint32_t pool, uint64_t *ret_bytes);
