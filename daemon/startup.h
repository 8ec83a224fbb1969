/* SPDX-License-Identifier: Apache-2.0 */
/* Devices, workers and engines, from the configuration. Before control_run(), on the same thread. */
#pragma once

#include "daemon/control.h"

/* Logs what is wrong, in words; a negative errno. What was made is undone by startup_undo(). */
must_check int startup_engines(struct control *control);
/* Engines have been stopped, or never ran. */
void startup_undo(struct control *control);
/* The limits of this process, raised as far as they go; says what is missing. */
void startup_limits(const struct control *control);
/* The folder of the socket, in user mode: ours alone. */
must_check int startup_runtime_dir(const char *socket_path);
