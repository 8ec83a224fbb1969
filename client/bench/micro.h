/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the small benchmarks share: a daemon to talk to, theirs or the given one, and how they print.
 */
#pragma once

#include "client/bench/figure.h"
#include "client/bench/options.h"
#include "include/spillway/spillway.h"

/* Measures in an open pool; 0 or a negative errno (which it has explained). */
typedef int (*micro_fn)(const struct options *options, spw_session *session, spw_pool *pool, struct figures *figures);

/* Parses the options, finds or starts a daemon, measures, prints. Returns the process's status. */
int micro_run(int argc, char **argv, const char *doc, micro_fn measure);
