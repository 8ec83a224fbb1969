/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One message with descriptors on a Unix socket. Descriptors stay the sender's.
 */
#pragma once

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "include/base/base.h"

#define SOCKET_FDS_MAX 3U /* that any of our messages brings */

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
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&header);

        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(cmsg), fds, n_fds * sizeof(int));
    }
    return sendmsg(socket_fd, &header, flags | MSG_NOSIGNAL) < 0 ? -errno : 0;
}
