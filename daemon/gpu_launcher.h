/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process that starts helpers for the daemon: forked off before there is anything else, it does that and nothing more.
 * So the daemon itself needs no call that starts a program, a helper is not bound by the daemon's filter of system calls,
 * and nothing of the daemon's memory is in the process that forks. Helpers are the daemon's children all the same.
 */
#pragma once

#include <sys/types.h>

#include "include/base/base.h"

struct gpu_launcher {
    int fd; /* -1: there is none */
    pid_t pid;
    uint64_t n_requests;
};

#define GPU_LAUNCHER_NONE ((struct gpu_launcher){.fd = -1})

#define GPU_LAUNCHER_ENV_BYTES 64

/* Before any thread, and before anything that a helper must not have: it keeps no descriptor but standard error. */
must_check int gpu_launcher_start(struct gpu_launcher *launcher);
/* Ends it; helpers live on. */
void gpu_launcher_end(struct gpu_launcher *launcher);
/*
 * A helper of that path, with a NAME=VALUE (or nothing) in its environment, whose socket that is; it stays the caller's.
 * -ENOENT and the like: it cannot be run. Control thread.
 */
must_check int gpu_launcher_spawn(struct gpu_launcher *launcher, const char *path, const char *environment,
                                  int socket_fd, pid_t *ret_pid);
