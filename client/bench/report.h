/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A replay's results: as figures with goals, and as the table at the end.
 */
#pragma once

#include "client/bench/run.h"

/* 0 wrong bytes is a goal of every replay. */
void report_figures(const struct run *run, struct figures *figures);
void report_table(const struct run *run, FILE *out);
/* Whether no byte was wrong and no block failed. */
bool report_is_right(const struct run *run);
