/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spillwayd: options, configuration, and the order in which the parts come to life and go.
 *
 * Exit status: 0 after a clean stop or a good --check, 78 (EX_CONFIG) for a configuration that was refused, 1 else.
 */
#include <argp.h>
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "daemon/config.h"
#include "daemon/control.h"
#include "daemon/fdstore.h"
#include "daemon/handover.h"
#include "daemon/log.h"
#include "daemon/privileges.h"
#include "daemon/startup.h"
#include "include/base/cleanup.h"
#include "io/memory.h"
#include "io/sandbox.h"
#include "tiering/policy.h"

#define SYSTEM_CONFIG "/etc/spillway/spillwayd.conf"

#ifndef SPILLWAY_VERSION
#define SPILLWAY_VERSION "0"
#endif

const char *argp_program_version = "spillwayd " SPILLWAY_VERSION;

struct options {
    bool user_mode, upgrades;
    const char *config_path, *check_path, *socket_path;
};

enum { OPTION_USER = 256, OPTION_CHECK, OPTION_SOCKET, OPTION_FOREGROUND, OPTION_UPGRADE };

static const struct argp_option option_table[] = {
    {"user", OPTION_USER, NULL, 0, "Serve this user alone, without root", 0},
    {"config", 'c', "FILE", 0, "Configuration (" SYSTEM_CONFIG "; with --user none)", 0},
    {"check", OPTION_CHECK, "FILE", 0, "Check a configuration and exit: 0 if it is fine, 78 if not", 0},
    {"socket", OPTION_SOCKET, "PATH", 0, "Listen there, whatever the configuration says", 0},
    {"upgrade", OPTION_UPGRADE, NULL, 0, "Take the place, the memory and the clients of the spillwayd that runs there",
     0},
    {"foreground", OPTION_FOREGROUND, NULL, 0, "Does nothing: spillwayd never leaves the foreground", 0},
    {NULL, 0, NULL, 0, NULL, 0},
};

static error_t option_parse(int key, char *arg, struct argp_state *state)
{
    struct options *options = state->input;

    switch (key) {
    case OPTION_USER:
        options->user_mode = true;
        return 0;
    case 'c':
        options->config_path = arg;
        return 0;
    case OPTION_CHECK:
        options->check_path = arg;
        return 0;
    case OPTION_SOCKET:
        options->socket_path = arg;
        return 0;
    case OPTION_FOREGROUND:
        return 0;
    case OPTION_UPGRADE:
        options->upgrades = true;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "what is '%s'?", arg);
        return EINVAL;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {
    .options = option_table,
    .parser = option_parse,
    .doc = "The daemon that owns the slow memory of a machine with accelerators.",
};

static void print_errors(const struct config_errors *errors)
{
    for (uint32_t i = 0; i < errors->n; i++)
        fprintf(stderr, "%s\n", errors->at[i].text);
    if (errors->n_left_out > 0)
        fprintf(stderr, "and %u mistakes more\n", errors->n_left_out);
}

/* Before there is a log: what cannot even be begun. */
static int no_memory(void)
{
    fputs("spillwayd: out of memory\n", stderr);
    return EXIT_FAILURE;
}

static int check_config(const struct config_env *env, const char *path)
{
    cleanup_free struct config_errors *errors = calloc(1, sizeof(*errors));
    cleanup_config struct spillway_config *config = NULL;

    if (!errors)
        return no_memory();
    if (config_load(path, env, &config, errors) < 0) {
        print_errors(errors);
        return EX_CONFIG;
    }
    printf("%s: fine\n", path);
    return EXIT_SUCCESS;
}

static const char *config_path_of(const struct options *options)
{
    if (options->config_path)
        return options->config_path;
    return !options->user_mode && access(SYSTEM_CONFIG, F_OK) == 0 ? SYSTEM_CONFIG : NULL;
}

static int load_config(struct control *control, const struct options *options)
{
    cleanup_free struct config_errors *errors = calloc(1, sizeof(*errors));

    if (!errors)
        return no_memory();
    control->config_path = config_path_of(options);
    if (config_load(control->config_path, &control->env, &control->config, errors) < 0) {
        print_errors(errors);
        return EX_CONFIG;
    }
    struct config_daemon *d = &control->config->daemon;

    if (options->socket_path)
        snprintf(d->socket, sizeof(d->socket), "%s", options->socket_path);
    if (d->admin_group[0] && control_find_admin_group(control) < 0) {
        fprintf(stderr, "[daemon] admin_group: there is no group '%s'\n", d->admin_group);
        return EX_CONFIG;
    }
    log_set_level((enum log_level)d->log_level);
    return EXIT_SUCCESS;
}

static int open_listener(struct control *control, bool upgrades)
{
    const char *path = control->config->daemon.socket;
    const char *why = "its folder cannot be made, or is not this user's alone";
    int fd = fdstore_take_socket(control->fdstore);
    int r = fd == -EINVAL ? -EINVAL : 0;

    if (r == 0 && upgrades) {
        r = handover_take(path, control->fdstore, &fd, &why);
        if (r == 0)
            r = listener_open(control, fd, path, control->user_mode, &control->listener, &why);
        if (r == 0)
            listener_own(&control->listener, path);
        if (r < 0)
            log_error("socket %s: %s (%s)", path, why, log_errno(r));
        return r;
    }

    if (r < 0)
        why = "the service manager passed several sockets";
    else if (fd < 0 && control->user_mode)
        r = startup_runtime_dir(path);
    if (r == 0)
        r = listener_open(control, fd, path, control->user_mode, &control->listener, &why);
    if (r < 0)
        log_error("socket %s: %s", path, why);
    return r;
}

static int serve(struct control *control, bool upgrades)
{
    int status = EXIT_FAILURE;
    int r = control_init(control);

    if (r == 0)
        r = fdstore_new(&control->fdstore);
    if (r < 0)
        log_error("cannot start: %s", log_errno(r));
    if (r == 0)
        r = open_listener(control, upgrades);
    if (r == 0) {
        startup_limits(control);
        r = startup_engines(control);
        if (r == 0)
            status = control_run(control);
        else
            status = EXIT_FAILURE;
        startup_undo(control);
    }
    control_deinit(control);
    control->fdstore = fdstore_free(control->fdstore);
    return status;
}

/* Before any thread is made: the control thread alone gets them, through its signalfd. */
static void block_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a device beyond RLIMIT_FSIZE: EFBIG says so */
}

static void say_call(const char *thread, const char *call, bool is_made)
{
    if (is_made)
        log_warning("%s made the system call %s, which is not in its list: [daemon] seccomp = on refuses it", thread,
                    call);
    else
        log_error("%s was refused the system call %s: it has no use for it, so this is an attack or a bug of ours "
                  "([daemon] seccomp = log lets such calls through)",
                  thread, call);
}

/* While there is one thread, no device and no client. What is found out about users and groups later must not need a part
 * of the C library that is not loaded yet: no thread may load code then. */
static int confine(struct control *control)
{
    const struct config_daemon *d = &control->config->daemon;
    struct passwd user, *found_user;
    struct group group, *found_group;
    char buffer[1024];
    int r = privileges_drop(d->user, control->user_mode);

    if (r < 0)
        return r;
    r = gpu_launcher_start(&control->launcher);
    if (r < 0) {
        log_error("the process that starts GPUs' helpers cannot be made: %s", log_errno(r));
        return r;
    }
    (void)getpwnam_r("?", &user, buffer, sizeof(buffer), &found_user);
    (void)getgrnam_r("?", &group, buffer, sizeof(buffer), &found_group);
    static_assert((int)CONFIG_SECCOMP_LOG == (int)SANDBOX_LOG && (int)CONFIG_SECCOMP_ON == (int)SANDBOX_ON,
                  "the same numbers");
    if (sandbox_init((enum sandbox_mode)d->seccomp, say_call) < 0)
        log_warning("there is no filter of system calls on this machine: [daemon] seccomp is of no effect");
    return 0;
}

int main(int argc, char **argv)
{
    struct options options = {0};
    struct control *control = calloc(1, sizeof(*control));

    log_setup();
    if (argp_parse(&argp, argc, argv, 0, NULL, &options) != 0)
        return EX_USAGE;
    if (!control)
        return no_memory();
    control->launcher = GPU_LAUNCHER_NONE;
    config_env_init(&control->env, options.user_mode);
    control->env.policy_names = policy_names();
    control->user_mode = options.user_mode;
    int status = options.check_path ? check_config(&control->env, options.check_path) : load_config(control, &options);

    if (status == EXIT_SUCCESS && !options.check_path) {
        block_signals();
        if (memory_guard_install() < 0)
            log_warning("the SIGBUS guard cannot be installed: a client that punches holes can end the daemon");
        status = confine(control) < 0 ? EXIT_FAILURE : serve(control, options.upgrades);
        gpu_launcher_end(&control->launcher);
    }
    config_free(control->config);
    free(control);
    return status;
}
