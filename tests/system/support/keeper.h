/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A service manager (manager.h) with a thread that starts the daemon again whenever it ends. The daemon dies with the test.
 */
#pragma once

#include <pthread.h>

#include "tests/system/support/daemon.h"
#include "tests/system/support/manager.h"

struct keeper {
    struct daemon *daemon;
    pthread_t thread;
    int pipe[2]; /* closed: stop */

    pthread_mutex_t lock; /* guards the rest */
    bool restarts;        /* else it leaves the daemon dead */
    struct manager manager;
    unsigned n_starts;
    int last_status; /* of waitpid() */
};

/* Starts the daemon (daemon_configure() was called), and waits until it is ready. */
void keeper_start(struct keeper *k, struct daemon *d);
/* The same without the start: for who changes something of *k before keeper_go(). */
void keeper_init(struct keeper *k, struct daemon *d);
void keeper_go(struct keeper *k);
/* Stops both; returns the daemon's exit status. */
int keeper_stop(struct keeper *k);
/* Sends the signal, and waits until the next daemon is ready. */
void keeper_restart(struct keeper *k, int signal_number);
/* SIGKILL, and no next one before keeper_revive(). */
void keeper_kill(struct keeper *k);
void keeper_revive(struct keeper *k);
/* How many are ready so far: 1 after keeper_start(). */
unsigned keeper_count(struct keeper *k);
void keeper_wait_ready(struct keeper *k, unsigned count);
/* Is something kept under a name that begins so? How many. */
unsigned keeper_has(struct keeper *k, const char *prefix);
/* Something of the test's own, which the next daemon is passed, too. */
void keeper_give(struct keeper *k, const char *name, int fd);
