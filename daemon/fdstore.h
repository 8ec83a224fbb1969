/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Descriptors that outlive this process: those that the last one left, and those that the next one is to find. Made and
 * freed by the control thread; keep and forget are for any thread. A store that is NULL has nothing, and keeps nothing.
 */
#pragma once

#include "include/base/base.h"
#include "include/base/cleanup.h"

struct fdstore;

/* Takes what the service manager passed. -ENOMEM, or the errno of asking. */
must_check int fdstore_new(struct fdstore **ret_store);
/* Closes what nobody took. What is kept stays kept. Takes NULL. */
struct fdstore *fdstore_free(struct fdstore *store);

/* Does anything of it outlive this process? False: nobody keeps it, unless it is handed over. */
bool fdstore_is_kept(const struct fdstore *store);

/* The listening socket, the caller's from now on; -1: none came. -EINVAL: several did. */
int fdstore_take_socket(struct fdstore *store);
/* What the last process left under that name, the caller's from now on, and still kept; -1: nothing. */
int fdstore_take(struct fdstore *store, const char *name);
/* The names that begin so and were not taken, one after the other; *at is 0 at first. NULL: no more. Valid until it is forgotten. */
const char *fdstore_next(const struct fdstore *store, const char *prefix, uint32_t *at);
/* Closes and forgets all that was left and that nobody took. How many. */
uint32_t fdstore_close_rest(struct fdstore *store);

/* The caller's descriptor, which stays open until it is forgotten. 0; -ENOSPC: the store is full; else nobody keeps it: what
 * the manager said, which is no reason not to go on. */
must_check int fdstore_keep(struct fdstore *store, const char *name, int fd);
/* What the manager has under that name goes; harmless if there is nothing. */
void fdstore_forget(struct fdstore *store, const char *name);
void fdstore_forget_all(struct fdstore *store);
/* For so many more there is room. */
uint32_t fdstore_room(const struct fdstore *store);

/* What a process that takes over is to get: the at-th. False: no more. Nobody keeps or forgets meanwhile. */
bool fdstore_at(const struct fdstore *store, uint32_t at, const char **ret_name, int *ret_fd);
/* Takes the descriptor: it comes from the process whose place this one takes. -ENOSPC, -EINVAL: its name; then it is closed. */
must_check int fdstore_put_left(struct fdstore *store, const char *name, int fd);
