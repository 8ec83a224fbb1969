/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pools' budgets while the daemon runs: who has how much of them, trades between engines, and what a reload changes.
 * Control thread.
 */
#pragma once

#include "tiering/tiering.h"

struct control;
struct budgets;

/* Before the engines run: what each is granted to begin with; more than its share if it holds that already. -ENOMEM. */
must_check int budgets_new(struct control *control);
/* The engines run, and have what they were granted: trade begins. */
void budgets_start(struct control *control);
/* All engines have ended. Takes NULL; returns NULL. */
struct budgets *budgets_free(struct budgets *budgets);
/* The configuration has changed: the budgets are shared anew, as memory becomes free. */
void budgets_reload(struct control *control);
/* What an engine may have now, in place of what the configuration gives it. */
void budgets_apply(const struct control *control, uint32_t engine, uint32_t pool,
                   struct tiering_pool_config *pool_config);
