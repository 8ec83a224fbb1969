/* SPDX-License-Identifier: Apache-2.0 */
/* `spillwayd --upgrade`: one process takes the place of another. Control thread. */
#pragma once

#include "include/base/base.h"

struct control;
struct fdstore;
struct session;

/* HANDOVER: this process is to end, and to give all that it has to whoever asked. */
void handover_asked(struct session *session);
/* The engines have stopped: gives it. */
void handover_give(struct control *control);

/* The new process: asks the one that answers there, and waits until it has given everything to the store. *ret_socket: the
 * listening one. A negative errno, and *ret_why in words (static). */
must_check int handover_take(const char *path, struct fdstore *store, int *ret_socket, const char **ret_why);
