/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the rules of rights. Everything is read from the socket when the connection is made, never from what the peer
 * says. No state.
 */
#include "daemon/access.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

#define GROUPS_FIRST 32
#define GROUPS_MAX 65536 /* the kernel's NGROUPS_MAX */

static int read_groups(int fd, struct access *access)
{
    socklen_t size = GROUPS_FIRST * sizeof(gid_t);

    for (;;) {
        gid_t *groups = malloc(size);

        if (!groups)
            return -ENOMEM;
        if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &size) == 0) {
            access->groups = groups;
            access->n_groups = (uint32_t)(size / sizeof(gid_t));
            return 0;
        }
        int r = -errno;

        free(groups);
        /* The kernel says how much it needs. */
        if (r != -ERANGE || size > GROUPS_MAX * sizeof(gid_t))
            return r;
    }
}

int access_read(int fd, struct access *ret_access)
{
    struct ucred cred;
    socklen_t size = sizeof(cred);
    struct access access = {0};

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &size) < 0)
        return -errno;
    access.uid = cred.uid;
    access.gid = cred.gid;
    access.pid = cred.pid;
    int r = read_groups(fd, &access);

    if (r < 0)
        return r;
    *ret_access = access;
    return 0;
}

void access_deinit(struct access *access)
{
    free(access->groups);
    *access = (struct access){0};
}

int access_pidfd(int fd, const struct access *access, int *ret_pidfd)
{
    int pidfd = -1;
    socklen_t size = sizeof(pidfd);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) == 0) {
        *ret_pidfd = pidfd;
        return 0;
    }
    if (errno == EMFILE || errno == ENFILE)
        return -errno;
    /* Before Linux 6.5. The process lives, since it has just connected; if it is gone already its number may be
     * another's by now, and then the socket has hung up too. */
    if (access->pid <= 0)
        return -ENOTSUP;
    pidfd = (int)syscall(SYS_pidfd_open, access->pid, 0);
    if (pidfd < 0)
        return errno == ESRCH || errno == EMFILE || errno == ENFILE ? -errno : -ENOTSUP;
    *ret_pidfd = pidfd;
    return 0;
}

static bool ids_have(const struct config_ids *ids, uint32_t id)
{
    if (id == ACCESS_OVERFLOW_ID)
        return false;
    if (ids->any)
        return true;
    for (uint32_t i = 0; i < ids->n; i++)
        if (ids->ids[i] == id)
            return true;
    return false;
}

int access_pool(const struct access *access, const struct config_pool *pool, const char **ret_why)
{
    bool may = ids_have(&pool->users, access->uid) || ids_have(&pool->groups, access->gid);

    for (uint32_t i = 0; i < access->n_groups && !may; i++)
        may = ids_have(&pool->groups, access->groups[i]);
    if (access->uid == ACCESS_OVERFLOW_ID)
        may = false;
    if (!may) {
        *ret_why = "this user and these groups are not in its users and groups";
        return -EACCES;
    }
    /* Root can write what it was given to read, whatever the descriptor says: it would write into others' bytes. */
    if (access->uid == 0 && !pool->is_trusted) {
        *ret_why = "root may use pools of one user only: in a shared pool it could overwrite the others' bytes";
        return -EACCES;
    }
    return 0;
}

bool access_admin(const struct access *access, uid_t daemon_uid, gid_t admin_gid, bool has_admin_gid)
{
    if (access->uid == ACCESS_OVERFLOW_ID)
        return false;
    if (access->uid == 0 || access->uid == daemon_uid)
        return true;
    if (!has_admin_gid || admin_gid == ACCESS_OVERFLOW_ID)
        return false;
    if (access->gid == admin_gid)
        return true;
    for (uint32_t i = 0; i < access->n_groups; i++)
        if (access->groups[i] == admin_gid)
            return true;
    return false;
}
