/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spillctl: looks at a running spillwayd, and prepares and checks devices for one. Global options come before the
 * command, whose own words follow it.
 */
#include <argp.h>
#include <stdio.h>
#include <string.h>

#include "client/ctl/ctl.h"

#ifndef SPILLWAY_VERSION
#define SPILLWAY_VERSION "unknown"
#endif

const char *argp_program_version = "spillctl " SPILLWAY_VERSION;

static const struct {
    const char *name, *arguments, *help;
    int (*run)(const struct ctl *ctl, int argc, char **argv);
} commands[] = {
    {"status", "", "the daemon at a glance", ctl_show},
    {"pools", "", "shares, and how much of them is used", ctl_show},
    {"tiers", "", "memory and devices", ctl_show},
    {"sessions", "", "who is connected, and what they hold", ctl_show},
    {"device", "[list]", "the daemon's devices", ctl_device},
    {"device", "format PATH …", "make a file or block device ready (--help tells its options)", ctl_device},
    {"fsck", "[--data] PATH", "what is wrong with a device (--help tells its options)", ctl_fsck},
    {"gpus", "", "the GPUs that clients have named, and their helpers", ctl_show},
    {"iostat", "[INTERVAL [COUNT]]", "what moves, each INTERVAL seconds", ctl_iostat},
    {"config", "show", "the configuration in force", ctl_show},
    {"inject", "list | clear", "faults of devices that were ordered, for drills", ctl_inject},
    {"inject", "device NAME WHAT …", "order one: eio, latency, corrupt, flush-fail (--help: spillctl(1))", ctl_inject},
    {"doctor", "", "what is wrong here, and how to cure it; also without a daemon", ctl_doctor},
};

struct arguments {
    struct ctl ctl;
    int argc; /* of the command */
    char **argv;
};

enum { OPT_SOCKET = 256 };

static const struct argp_option rows[] = {
    {"output", 'o', "json", 0, "print the daemon's JSON as it is", 0},
    {"socket", OPT_SOCKET, "PATH", 0, "of the daemon ($SPILLWAY_SOCKET, else yours, else the system's)", 0},
    {0}};

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct arguments *a = state->input;

    switch (key) {
    case 'o':
        if (strcmp(arg, "json") != 0)
            argp_error(state, "-o takes 'json'");
        a->ctl.json = true;
        return 0;
    case OPT_SOCKET:
        a->ctl.socket_path = arg;
        return 0;
    case ARGP_KEY_ARG:
        a->argv = &state->argv[state->next - 1];
        a->argc = state->argc - state->next + 1;
        state->next = state->argc;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static void help(FILE *out)
{
    fprintf(out, "usage: spillctl [-o json] [--socket PATH] COMMAND\n\n");
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        fprintf(out, "  %-8s %-19s %s\n", commands[i].name, commands[i].arguments, commands[i].help);
    fprintf(out,
            "\nStatus: 0 done; 1 failed, or doctor found a FAIL; 64 usage; 69 no daemon; 77 not allowed. fsck has\n"
            "its own: 0 nothing is wrong; 1 repaired; 4 errors are left; 8 it could not look.\n");
}

/* `-o json` may also stand at the end, where most people write it. */
static void take_trailing_options(struct arguments *a)
{
    for (int i = 1; i < a->argc; i++) {
        if (strcmp(a->argv[i], "-o") == 0 && i + 1 < a->argc && strcmp(a->argv[i + 1], "json") == 0) {
            a->ctl.json = true;
            memmove(&a->argv[i], &a->argv[i + 2], (size_t)(a->argc - i - 1) * sizeof(char *));
            a->argc -= 2;
            i--;
        }
    }
}

int main(int argc, char **argv)
{
    const struct argp argp = {.options = rows,
                              .parser = parse_option,
                              .args_doc = "COMMAND",
                              .doc = "Looks at a running spillwayd, and prepares and checks devices for one. "
                                     "`spillctl help` lists the commands."};
    struct arguments a = {0};

    argp_err_exit_status = EX_USAGE;
    (void)argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, &a);
    if (a.argc == 0 || strcmp(a.argv[0], "help") == 0) {
        help(stdout);
        return CTL_OK;
    }
    take_trailing_options(&a);
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        if (strcmp(a.argv[0], commands[i].name) == 0)
            return commands[i].run(&a.ctl, a.argc, a.argv);
    fprintf(stderr, "spillctl: there is no command '%s'; `spillctl help` lists them\n", a.argv[0]);
    return EX_USAGE;
}
