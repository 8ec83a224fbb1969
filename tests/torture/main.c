/* SPDX-License-Identifier: Apache-2.0 */
/* spilltorture: arguments. $SPILLWAY_BIN is where the daemon is, one that was built with kill points. */
#include <argp.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/torture/torture.h"

static const struct argp_option option_table[] = {
    {"seed", 's', "N", 0, "Decides plans and loads; else the time does", 0},
    {"number", 'n', "N", 0,
     "kill: cycles, 50; from 10000 on a kill point that never fired fails it, unless points.c excuses it; power: cuts "
     "of a "
     "run, about 300; 0: all",
     0},
    {"runs", 'u', "N", 0, "power: runs, each of its own seed; 1", 0},
    {"dir", 'd', "FOLDER", 0, "Where everything lies; else a new one in /var/tmp", 0},
    {"resume", 'r', NULL, 0, "Go on with what is in the folder", 0},
    {"keep", 'k', NULL, 0, "Leave the folder", 0},
    {"hot", 'm', NULL, 0,
     "kill: a store like systemd's keeps the daemon's memory, and clients ride out its deaths: demand all that was "
     "acknowledged after each, and what SYNCs promised when the store is emptied, about every eighth time",
     0},
    {"list", 'l', NULL, 0, "List every kill point at the end, not only those that never fired", 0},
    {NULL, 0, NULL, 0, NULL, 0},
};

static const struct t_command commands[] = {
    {"kill", torture_kill, 50},
    {"power", torture_power, 300},
};

static error_t option_parse(int key, char *arg, struct argp_state *state)
{
    struct t_options *options = state->input;

    switch (key) {
    case 's':
        options->seed = strtoull(arg, NULL, 10);
        return 0;
    case 'n':
        options->n = strtoull(arg, NULL, 10);
        return 0;
    case 'u':
        options->runs = strtoull(arg, NULL, 10);
        return 0;
    case 'd':
        options->dir = arg;
        return 0;
    case 'r':
        options->resume = true;
        return 0;
    case 'k':
        options->keep = true;
        return 0;
    case 'm':
        options->hot = true;
        return 0;
    case 'l':
        options->list = true;
        return 0;
    case ARGP_KEY_ARG:
        for (size_t i = 0; i < ARRAY_LEN(commands); i++)
            if (state->arg_num == 0 && strcmp(arg, commands[i].name) == 0)
                options->command = &commands[i];
        if (!options->command || state->arg_num > 0)
            argp_error(state, "what is '%s'?", arg);
        return 0;
    case ARGP_KEY_NO_ARGS:
        argp_usage(state);
        return EINVAL;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {
    .options = option_table,
    .parser = option_parse,
    .args_doc = "kill|power",
    .doc = "Ends a spillwayd again and again, and checks what it finds again.",
};

int main(int argc, char **argv)
{
    struct t_options options = {.seed = (uint64_t)time(NULL), .n = UINT64_MAX, .runs = 1};

    if (argp_parse(&argp, argc, argv, 0, NULL, &options) != 0)
        return EXIT_FAILURE;
    if (options.n == UINT64_MAX)
        options.n = options.command->n;
    return options.command->run(&options);
}
