/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A daemon of our own: a temporary directory with a config, a device file and a log; spillwayd --user in it; and all of
 * it gone afterwards, unless something failed: then the log stays.
 */
#pragma once

#include <limits.h>
#include <sys/types.h>

#include "include/base/base.h"
#include "include/spillway/spillway.h"

#define HARNESS_DEVICES_MAX 2

struct harness_options {
    const char *pools;        /* lines for the config; NULL: one pool, `bench` */
    const char *policy;       /* of class kv; NULL: the daemon's default */
    const char *daemon_lines; /* more of section [daemon]; may be NULL */
    uint64_t dram_bytes;
    uint64_t device_bytes;                         /* of each; 0: no device */
    uint64_t object_bytes;                         /* mean size, for the log; 0: spillctl's default */
    uint32_t n_devices;                            /* 0: one, if device_bytes says so */
    const char *device_paths[HARNESS_DEVICES_MAX]; /* block devices to be formatted; NULL: a file */
    bool is_formatted;                             /* devices: leave what is on them */
    bool keep;                                     /* leave everything where it is */
    bool any_user; /* let other users reach the socket: what they may is for the pools to say */
    bool quiet;
};

struct harness {
    char folder[64];
    char socket_path[96];
    pid_t pid; /* 0: not running */
    uint64_t dram_bytes, device_bytes;
    uint32_t n_devices;
    bool keep, keep_log, quiet;
};
#define HARNESS_NONE                                                                                                   \
    (struct harness)                                                                                                   \
    {                                                                                                                  \
        .pid = 0                                                                                                       \
    }

/* Where temporary files go, on a disk if there is one. */
const char *harness_temporary(void);
/* Bytes that a device file may take where harness_start() would put it. */
must_check int harness_room(uint64_t *ret_bytes);
/* What blocks need on a device: themselves, the reserve for reclaim, logs, and segments that are being filled. */
uint64_t harness_device_bytes(uint64_t blocks_bytes);
/* On failure everything has been said on standard error, and nothing is left but perhaps the log. */
must_check int harness_start(const struct harness_options *options, struct harness *ret_harness);
/* For cleanup_(): NULL is fine. */
static inline void spw_close_p(spw_session **session)
{
    spw_close(*session);
}
/* Connects, with our name for `spillctl sessions`. */
must_check int harness_connect(const struct harness *harness, const char *name, spw_session **ret_session);
/* SIGKILL, and waits until it is gone. */
void harness_kill(struct harness *harness);
/* Starts it anew after that, and waits until it serves. On failure everything has been said. */
must_check int harness_again(struct harness *harness);
/* SIGTERM, and waits. 0 if it ended as it should; else says how it did, with the end of its log. */
int harness_stop(struct harness *harness);
/* Stops it; returns the status to end with: `status`, or BENCH_WRONG if all was well but for the daemon's own end. If
 * anything was wrong, the log is shown and stays. */
int harness_finish(struct harness *harness, int status);
/* Ends the daemon if it runs, and removes the folder. */
void harness_deinit(struct harness *harness);

/* The path of one of our programs: beside this one, else as PATH finds it. */
const char *harness_program(const char *name, char ret_path[static PATH_MAX]);
