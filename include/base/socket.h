/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages with descriptors on a Unix socket. Descriptors that are sent stay the sender's.
 */
#pragma once

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "include/base/base.h"

#define SOCKET_FDS_MAX 3U /* that any of our messages brings */

/*
 * The descriptors that came with a received message: the first `max` go to ret_fds, for the caller to close, and all others
 * are closed. Ancillary data comes in words, so there may be room for one more than was asked for. Returns how many are there.
 */
static inline uint32_t socket_take_fds(struct msghdr *header, int *ret_fds, uint32_t max)
{
    uint32_t n = 0;

    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(header); cmsg; cmsg = CMSG_NXTHDR(header, cmsg)) {
        if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t i = 0; i < (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(fd), sizeof(fd));
            if (n < max)
                ret_fds[n++] = fd;
            else
                close(fd);
        }
    }
    return n;
}

/* Descriptors to go with a message, whose control buffer is zeroed and has room for CMSG_SPACE() of exactly that many. */
static inline void socket_add_fds(struct msghdr *header, const int *fds, uint32_t n_fds)
{
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(header);

    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
    memcpy(CMSG_DATA(cmsg), fds, n_fds * sizeof(int));
}

/* 0 or a negative errno. Never raises SIGPIPE; flags: MSG_DONTWAIT, or 0. */
static inline int socket_send(int socket_fd, const void *message, size_t size_bytes, const int *fds, uint32_t n_fds,
                              int flags)
{
    struct iovec iov = {.iov_base = (void *)(uintptr_t)message, .iov_len = size_bytes};
    union {
        char bytes[CMSG_SPACE(SOCKET_FDS_MAX * sizeof(int))];
        struct cmsghdr align;
    } control = {.bytes = {0}};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};

    assert(n_fds <= SOCKET_FDS_MAX);
    if (n_fds > 0) {
        header.msg_control = control.bytes;
        header.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        socket_add_fds(&header, fds, n_fds);
    }
    return sendmsg(socket_fd, &header, flags | MSG_NOSIGNAL) < 0 ? -errno : 0;
}
