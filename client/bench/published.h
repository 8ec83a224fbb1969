/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hit rates that are known of a trace.
 */
#pragma once

#include "client/bench/trace.h"

/* Hits of a single-tier cache, in percent of the references, with room for so much of the distinct blocks. `policy` as in
 * the config, or "optimum"; may be NULL. NaN: unknown. */
double published_percent(const struct trace *trace, double capacity_percent, const char *policy);
