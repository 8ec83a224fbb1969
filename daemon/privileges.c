/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stateless. Under the unit all of this is so already, and nothing is left to do; this is for who starts the daemon as root,
 * or by another service manager. Before threads: credentials are a thread's.
 */
#include "daemon/privileges.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <pwd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon/log.h"

#define PASSWD_BYTES 16384

/* libcap would be a library for one bit. */
static int capabilities_get(struct __user_cap_data_struct ret_data[static _LINUX_CAPABILITY_U32S_3])
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};

    return syscall(SYS_capget, &header, ret_data) < 0 ? -errno : 0;
}

/* What is run from here gets none. It takes a capability, so it comes before anything else; under the unit it fails, as there
 * is nothing left to take. */
static void bounds_drop(void)
{
    for (unsigned long cap = 0; prctl(PR_CAPBSET_READ, cap, 0UL, 0UL, 0UL) >= 0; cap++)
        (void)prctl(PR_CAPBSET_DROP, cap, 0UL, 0UL, 0UL);
}

static int capabilities_reduce(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct have[_LINUX_CAPABILITY_U32S_3] = {0}, keep[_LINUX_CAPABILITY_U32S_3] = {0};
    int r = capabilities_get(have);

    if (r < 0)
        return r;
    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0UL, 0UL, 0UL);
    keep[CAP_TO_INDEX(CAP_IPC_LOCK)].permitted = keep[CAP_TO_INDEX(CAP_IPC_LOCK)].effective =
        have[CAP_TO_INDEX(CAP_IPC_LOCK)].permitted & CAP_TO_MASK(CAP_IPC_LOCK);
    /* The unit forbids the call, and has left nothing to take away. */
    bool is_done = true;

    for (size_t i = 0; i < ARRAY_LEN(have); i++) {
        is_done &= have[i].permitted == keep[i].permitted && have[i].effective == keep[i].effective;
        keep[i].inheritable = 0;
    }
    if (is_done)
        return 0;
    return syscall(SYS_capset, &header, keep) < 0 ? -errno : 0;
}

static int user_become(const char *name)
{
    struct passwd entry, *user = NULL;
    char buffer[PASSWD_BYTES];
    int r = getpwnam_r(name, &entry, buffer, sizeof(buffer), &user);

    if (r != 0 || !user) {
        log_error("[daemon] user: there is no user '%s'", name);
        return r != 0 ? -r : -ENOENT;
    }
    if (geteuid() == user->pw_uid)
        return 0;
    if (geteuid() != 0) {
        log_error("[daemon] user: only root can become '%s'", name);
        return -EPERM;
    }
    if (prctl(PR_SET_KEEPCAPS, 1UL, 0UL, 0UL, 0UL) < 0 || initgroups(name, user->pw_gid) < 0 ||
        setresgid(user->pw_gid, user->pw_gid, user->pw_gid) < 0 ||
        setresuid(user->pw_uid, user->pw_uid, user->pw_uid) < 0) {
        r = -errno;
        log_error("[daemon] user: cannot become '%s': %s", name, log_errno(r));
        return r;
    }
    return 0;
}

int privileges_drop(const char *user, bool user_mode)
{
    static const struct rlimit no_core = {0, 0};
    int r = 0;

    bounds_drop();
    if (user[0])
        r = user_become(user);
    if (r < 0)
        return r;
    if (geteuid() == 0 && !user_mode)
        log_warning("it runs as root: name a user in [daemon], or start it by its unit");
    r = capabilities_reduce();
    if (r < 0)
        log_warning("capabilities stay as they are: %s", log_errno(r));
    (void)prctl(PR_SET_NO_NEW_PRIVS, 1UL, 0UL, 0UL, 0UL);
    /* A sanitizer's search for leaks looks into the process, too. */
    if (!BASE_SANITIZED && !user_mode)
        (void)prctl(PR_SET_DUMPABLE, 0UL, 0UL, 0UL, 0UL);
    if (!user_mode)
        (void)setrlimit(RLIMIT_CORE, &no_core);
    return 0;
}
