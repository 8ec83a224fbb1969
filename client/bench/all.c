/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every benchmark that needs nothing but this machine, one after the other, each with a daemon of its own.
 */
#include <stdio.h>

#include "client/bench/bench.h"
#include "client/bench/live.h"

int bench_all(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } parts[] = {{"ring", bench_ring},   {"hit", bench_hit},     {"copy", bench_copy},    {"nvme", bench_nvme},
                 {"scale", bench_scale}, {"ready", bench_ready}, {"steady", bench_steady}};
    int worst = BENCH_OK;

    for (size_t i = 0; i < ARRAY_LEN(parts) && !live_interrupted(); i++) {
        fprintf(stderr, "── %s\n", parts[i].name);
        int status = parts[i].run(argc, argv);
        worst = MAX(worst, status);
    }
    return worst;
}
