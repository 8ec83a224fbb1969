/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The folder in which a user's own daemon has its socket, where $XDG_RUNTIME_DIR names none (containers, cron, ssh):
 * /run/user/UID/spillway, else /tmp/spillway-UID. In /tmp anybody may have been first: there it counts only if it is this
 * user's alone. client/python/spillway/daemon.py says the same.
 */
#pragma once

#include <stdbool.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define USER_DIR_BYTES 48

/* Is it a folder of this user's that nobody else may look into? */
static inline bool user_dir_is_private(const char *path, uid_t uid)
{
    struct stat st;

    return lstat(path, &st) == 0 && S_ISDIR(st.st_mode) && st.st_uid == uid && (st.st_mode & 077) == 0;
}

/* Its path; it may not be there. */
static inline void user_dir_fallback(uid_t uid, char ret_path[static USER_DIR_BYTES])
{
    snprintf(ret_path, USER_DIR_BYTES, "/run/user/%u", uid);
    if (user_dir_is_private(ret_path, uid))
        snprintf(ret_path, USER_DIR_BYTES, "/run/user/%u/spillway", uid);
    else
        snprintf(ret_path, USER_DIR_BYTES, "/tmp/spillway-%u", uid);
}
