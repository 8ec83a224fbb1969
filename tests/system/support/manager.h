/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a service manager has of spillwayd: the listening socket, the descriptors that were given to it by sd_notify, and how
 * both are passed on (LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID). It has no thread and no lock, and starts nothing: whoever
 * owns it takes messages often enough, because a daemon waits for room in the socket; and once more after a daemon's death,
 * before the next one is started, as systemd does.
 */
#pragma once

#include <stdbool.h>

#define MANAGER_DESCRIPTORS_MAX 512
#define MANAGER_PATH_BYTES 96

struct manager {
    int notify_fd, listen_fd;
    char notify_path[MANAGER_PATH_BYTES];
    bool forgets; /* what is given is dropped, as where FileDescriptorStoreMax=0 */
    unsigned max; /* that it says it keeps; 0: it does not say */
    unsigned n_ready, n_alive;
    unsigned n;
    struct {
        char name[64];
        int fd;
    } kept[MANAGER_DESCRIPTORS_MAX];
};

/* Both sockets, at those paths. 0, or a negative errno. */
int manager_init(struct manager *m, const char *notify_path, const char *listen_path);
void manager_deinit(struct manager *m);
/* All messages that there are; never waits. */
void manager_take(struct manager *m);
/* The manager's now, under that name. */
void manager_keep(struct manager *m, const char *name, int fd);
/* Nothing is kept any more. */
void manager_forget_all(struct manager *m);
/* In the child that becomes the daemon: puts all where the protocol wants it, and says so. */
void manager_pass(const struct manager *m);
