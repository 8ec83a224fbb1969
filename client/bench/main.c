/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spillbench: measures, and checks while it measures. Finds the command and hands over.
 */
#include <stdio.h>
#include <string.h>
#include <sysexits.h>

#include "client/bench/bench.h"
#include "client/bench/live.h"

#ifndef SPILLWAY_VERSION
#define SPILLWAY_VERSION "unknown"
#endif

static const struct {
    const char *name, *help;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"demo", "a chat service's traffic through a daemon of its own, ten times its memory; two minutes at most",
     bench_demo},
    {"replay", "a trace, with hit rates counted per reference", bench_replay},
    {"mix", "six clients, two pools, all operations at once; then the books must balance", bench_mix},
    {"ring", "round trips through a ring, awake and asleep, beside a raw ring and the kernel's wake-ups", bench_ring},
    {"hit", "acquire and release of what is in memory, beside a raw ring and redis", bench_hit},
    {"copy", "PUT and GET beside memcpy and non-temporal copies", bench_copy},
    {"nvme", "spill and fetch beside fio", bench_nvme},
    {"scale", "lookup, acquire and commit with ten thousand objects, and with millions", bench_scale},
    {"steady", "what a full device costs, beside a simulated greedy cleaner", bench_steady},
    {"ready", "how soon memory is ready, beside touching it", bench_ready},
    {"recover", "how soon a daemon that was killed has its pieces again, beside reading its log", bench_recover},
    {"policy", "hit rates and cost of the eviction policies, simulated, beside the optimum", bench_policy},
    {"adam", "the optimizer step of training, beside reading and writing the same memory", bench_adam},
    {"optimizer", "the optimizer step on states in the store, beside the device and the step in memory",
     bench_optimizer},
    {"plan", "how often what training asks for is in memory already, beside LRU and the optimum", bench_plan},
    {"footprint", "host memory for streaming the parameters of three models, beside ZeRO-Infinity's", bench_footprint},
    {"gpu", "blocks between a GPU's memory and the store, beside the link", bench_gpu},
    {"all", "ring, hit, copy, nvme, scale, ready and steady", bench_all},
};

static void help(FILE *out)
{
    fprintf(out, "usage: spillbench COMMAND [OPTION...]      spillbench COMMAND --help tells its options\n\n");
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        fprintf(out, "  %-9s %s\n", commands[i].name, commands[i].help);
    fprintf(out, "\nStatus: 0 all is well; 1 wrong bytes, or something that must hold does not; 2 it could not be run; "
                 "64 usage.\n");
}

int main(int argc, char **argv)
{
    char name[64];

    if (argc < 2 || strcmp(argv[1], "help") == 0 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        help(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("spillbench %s\n", SPILLWAY_VERSION);
        return 0;
    }
    live_catch_signals();
    for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
        if (strcmp(argv[1], commands[i].name) != 0)
            continue;
        snprintf(name, sizeof(name), "spillbench %s", commands[i].name);
        argv[1] = name;
        return commands[i].run(argc - 1, argv + 1);
    }
    fprintf(stderr, "spillbench: there is no command '%s'; `spillbench help` lists them\n", argv[1]);
    return EX_USAGE;
}
