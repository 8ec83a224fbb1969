/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The commands of spillbench. Each takes its own argv (argv[0] is "spillbench COMMAND") and returns the process's status:
 * 0: everything held; 1: wrong bytes, a goal that a run must meet, or a balance that is off; 2: it could not be run.
 */
#pragma once

#include "include/base/base.h"
#include "include/base/limits.h"

#define BENCH_OK 0
#define BENCH_WRONG 1
#define BENCH_BROKEN 2

#define BENCH_BLOCK_BYTES_MAX PIECE_BYTES_MAX /* one view a block */

int bench_demo(int argc, char **argv);
int bench_replay(int argc, char **argv);
int bench_mix(int argc, char **argv);
int bench_ring(int argc, char **argv);
int bench_hit(int argc, char **argv);
int bench_copy(int argc, char **argv);
int bench_nvme(int argc, char **argv);
int bench_scale(int argc, char **argv);
int bench_ready(int argc, char **argv);
int bench_recover(int argc, char **argv);
int bench_gpu(int argc, char **argv);
int bench_steady(int argc, char **argv);
int bench_policy(int argc, char **argv);
int bench_adam(int argc, char **argv);
int bench_optimizer(int argc, char **argv);
int bench_plan(int argc, char **argv);
int bench_footprint(int argc, char **argv);

int bench_all(int argc, char **argv);
