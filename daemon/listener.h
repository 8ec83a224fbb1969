/* SPDX-License-Identifier: Apache-2.0 */
/* The socket where clients connect. Control thread. */
#pragma once

#include "daemon/loop.h"
#include "include/base/base.h"

struct control;

struct listener {
    struct control *control;
    struct loop_source source;
    struct loop_timer retry; /* after the process ran out of descriptors altogether */
    int spare_fd;            /* given up for the moment in which a connection is refused for want of descriptors */
    char path[108];          /* to be removed at the end; empty: systemd's */
};
#define LISTENER_NONE                                                                                                  \
    (struct listener)                                                                                                  \
    {                                                                                                                  \
        .source.fd = -1, .spare_fd = -1                                                                                \
    }

/* fd >= 0: a socket that systemd made; else one is made at `path`, mode 0660 (0600 in user mode). ret_why: in words. */
must_check int listener_open(struct control *control, int fd, const char *path, bool user_mode,
                             struct listener *listener, const char **ret_why);
/* What was taken over lies at that path, and is ours to remove. */
void listener_own(struct listener *listener, const char *path);
must_check int listener_start(struct listener *listener);
/* Connections wait until another process takes them. */
void listener_pause(struct listener *listener);
void listener_close(struct listener *listener);
