/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Programs that run for us, and how they ended.
 */
#pragma once

#include <sys/types.h>

#include "include/base/base.h"

#define CHILD_STATUS_BYTES 64

/* Runs a program; fd is its standard output and error. -1: errors go where ours go, and its output nowhere, since ours
 * may be JSON. Returns its pid or a negative errno. */
must_check pid_t child_spawn(const char *const argv[], int fd);
/* True when it has ended; *ret_status as of waitpid(). */
bool child_ended(pid_t pid, int *ret_status);
/* A status in words: "ended with status 1". */
const char *child_status_print(int status, char ret_text[static CHILD_STATUS_BYTES]);
