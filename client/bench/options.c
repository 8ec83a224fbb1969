/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One parser for all commands. Sizes and numbers are taken strictly: what cannot be is refused with the reason.
 */
#include "client/bench/options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "client/bench/bench.h"
#include "client/bench/disk_load.h"
#include "include/base/units.h"
#include "include/spillway/abi.h"

static uint64_t size_of(const char *text, const struct argp_state *state)
{
    uint64_t bytes = 0;
    int r = size_parse(text, &bytes);

    if (r == -EDOM)
        argp_error(state, "'%s': sizes end in B, KiB, MiB, GiB or TiB", text);
    else if (r < 0)
        argp_error(state, "'%s' is no size", text);
    return bytes;
}

static double number_of(const char *text, double least, double most, const struct argp_state *state)
{
    char *end;
    double x = strtod(text, &end);

    if (*text == '\0' || *end != '\0' || !(x >= least && x <= most))
        argp_error(state, "'%s' is not a number from %g to %g", text, least, most);
    return x;
}

static error_t parse_block(struct options *o, const char *arg, const struct argp_state *state)
{
    o->block_bytes = size_of(arg, state);
    if (o->block_bytes < 1 || o->block_bytes > BENCH_BLOCK_BYTES_MAX)
        argp_error(state, "a block has from 1 B to 8 MiB");
    return 0;
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct options *o = state->input;

    switch (key) {
    case OPTION_TRACE:
        o->trace_path = arg;
        return 0;
    case OPTION_REQUESTS:
        o->n_requests = (uint64_t)number_of(arg, 1, 1e7, state);
        return 0;
    case OPTION_BLOCK:
        return parse_block(o, arg, state);
    case OPTION_DRAM:
        o->dram_bytes = size_of(arg, state);
        return 0;
    case OPTION_DRAM_PERCENT:
        o->dram_percent = number_of(arg, 0.01, 1000, state);
        return 0;
    case OPTION_DEVICE:
        o->device_bytes = size_of(arg, state);
        return 0;
    case OPTION_POLICY:
        o->policy = arg;
        return 0;
    case OPTION_KEEP:
        o->keep = true;
        return 0;
    case OPTION_SECONDS:
        o->seconds = number_of(arg, 0.1, 1e6, state);
        return 0;
    case OPTION_SEED:
        o->seed = (uint64_t)number_of(arg, 0, 9e15, state);
        return 0;
    case OPTION_PRIVATE:
        o->private_daemon = true;
        return 0;
    case OPTION_SOCKET:
        o->socket_path = arg;
        return 0;
    case OPTION_POOL:
        o->pool = arg;
        return 0;
    case OPTION_NO_LOOKUP:
        o->no_lookup = true;
        return 0;
    case OPTION_LIST:
        o->list_max = (uint32_t)number_of(arg, 1, SPW_LIST_MAX, state);
        return 0;
    case OPTION_OBJECTS:
        o->n_objects = (uint64_t)number_of(arg, 1e5, 1e8, state);
        return 0;
    case OPTION_PARAMETERS:
        o->n_parameters = (uint64_t)number_of(arg, 1e6, 1e12, state);
        return 0;
    case OPTION_SIZES:
        o->n_sizes = (uint32_t)number_of(arg, 1, 1e6, state);
        return 0;
    case OPTION_QUIET:
        o->quiet = true;
        return 0;
    case OPTION_FIGURES:
        o->figures = true;
        return 0;
    case OPTION_QUICK:
        o->quick = true;
        return 0;
    case OPTION_ONLY:
        o->only = arg;
        return 0;
    case OPTION_DEVICES:
        o->devices = arg;
        return 0;
    case OPTION_DEPTH:
        o->depth = (uint32_t)number_of(arg, 1, DISK_DEPTH_MAX, state);
        return 0;
    case OPTION_OUTPUT:
        if (strcmp(arg, "json") != 0)
            argp_error(state, "-o takes 'json'");
        o->json = true;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "'%s' is one argument too many", arg);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

void options_parse(int argc, char **argv, const struct argp_option *rows, const char *doc, struct options *options)
{
    const struct argp argp = {.options = rows, .parser = parse_option, .doc = doc};

    argp_err_exit_status = EX_USAGE;
    (void)argp_parse(&argp, argc, argv, 0, NULL, options);
}

bool options_choose(const char *chosen, const char *word)
{
    return !chosen || strcmp(chosen, word) == 0;
}

void options_check_choice(const char *option, const char *chosen, const char *const *words)
{
    for (size_t i = 0; words[i]; i++)
        if (options_choose(chosen, words[i]))
            return;
    fprintf(stderr, "spillbench: --%s takes", option);
    for (size_t i = 0; words[i]; i++)
        fprintf(stderr, "%s '%s'", i == 0 ? "" : words[i + 1] ? "," : " or", words[i]);
    fprintf(stderr, ", not '%s'\n", chosen);
    exit(EX_USAGE);
}
