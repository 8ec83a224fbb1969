/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a service manager does for spillwayd: it makes the listening socket, keeps the descriptors that are given to it by
 * sd_notify, starts the daemon again whenever it ends, and passes all of that on (LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID).
 * A thread of the test; the daemon dies with it.
 */
#pragma once

#include <pthread.h>

#include "tests/system/support/daemon.h"

#define KEEPER_DESCRIPTORS_MAX 512

struct keeper {
    struct daemon *daemon;
    pthread_t thread;
    int notify_fd, listen_fd;
    char notify_path[96];
    int pipe[2]; /* closed: stop */

    pthread_mutex_t lock; /* guards the rest */
    bool restarts;        /* else it leaves the daemon dead */
    bool forgets;         /* what is given is dropped, as where FileDescriptorStoreMax=0 */
    unsigned max;         /* that it says it keeps; 0: it does not say */
    unsigned n_starts, n_ready, n_alive;
    int last_status; /* of waitpid() */
    unsigned n;
    struct {
        char name[64];
        int fd;
    } kept[KEEPER_DESCRIPTORS_MAX];
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
