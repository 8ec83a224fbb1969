/* SPDX-License-Identifier: Apache-2.0 */
/* Who is at the other end of a socket, and what the config lets them do. Control thread. */
#pragma once

#include <sys/types.h>

#include "daemon/config.h"
#include "include/base/base.h"

/* The kernel's stand-in for ids that this user namespace does not know: they match no rule. */
#define ACCESS_OVERFLOW_ID 65534

struct access {
    uid_t uid;
    gid_t gid;
    pid_t pid; /* 0: in a pid namespace that we do not see */
    gid_t *groups;
    uint32_t n_groups;
};

/* From the socket itself (SO_PEERCRED, SO_PEERGROUPS). */
must_check int access_read(int fd, struct access *ret_access);
void access_deinit(struct access *access);
/* The peer's pidfd: it becomes readable when the process ends. -ESRCH, or -ENOTSUP if it cannot be had. */
must_check int access_pidfd(int fd, const struct access *access, int *ret_pidfd);

/* 0, or -EACCES and why in words. */
int access_pool(const struct access *access, const struct config_pool *pool, const char **ret_why);
bool access_admin(const struct access *access, uid_t daemon_uid, gid_t admin_gid, bool has_admin_gid);
