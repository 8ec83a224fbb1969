/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the benchmarks share: a daemon to talk to, theirs or the given one, and how they print.
 */
#pragma once

#include "client/bench/figure.h"
#include "client/bench/harness.h"
#include "client/bench/options.h"
#include "include/spillway/spillway.h"

/* An open pool, and whom it belongs to. */
struct micro {
    const struct options *options;
    pid_t daemon_pid; /* 0: somebody else's daemon, which is not to be pinned */
    const char *socket_path;
    spw_session *session;
    spw_pool *pool;
    struct figures *figures;
    void *ctx; /* the benchmark's own */
};

/* 0 or a negative errno (which it has explained); -EBADMSG: wrong bytes. */
typedef int (*micro_fn)(struct micro *micro);

/*
 * Connects, measures. Errors as of micro_fn. daemon_pid: 0 if it is not ours. pool_name: NULL for who starts clients by
 * fork(): it gets no session, as that has a thread, whose locks a child would inherit as they are.
 */
must_check int micro_session(const struct options *options, const char *socket_path, const char *pool_name,
                             pid_t daemon_pid, micro_fn measure, void *ctx, struct figures *figures);
/* The same with a daemon that lives as long; pool "bench", or the first of harness->pools if that names one so. */
must_check int micro_daemon(const struct options *options, const struct harness_options *harness, micro_fn measure,
                            void *ctx, struct figures *figures);
/* The same in a child that becomes another user, for pools that root may not enter. */
must_check int micro_child(const struct options *options, const char *socket_path, const char *pool_name, uid_t uid,
                           micro_fn measure, void *ctx, struct figures *figures);

#define MICRO_SOMEBODY 64123 /* a user that owns nothing */
/* For good: groups first, while it may. Says what failed. */
must_check int micro_become(uid_t uid);

/* Says why a call into libspillway failed; returns r, or -EBADMSG for r == 0 (wrong bytes, or none). */
int micro_say(const char *what, int r);

/* Prints the figures as the options say; returns the process's status for r and for what holds. */
int micro_end(const struct options *options, const struct figures *figures, int r);

/* Parses the options, finds or starts a daemon with memory and no device, measures, prints. */
int micro_run(int argc, char **argv, const char *doc, micro_fn measure);
/* Only parses, into `options` with the defaults of all small benchmarks. */
void micro_options(int argc, char **argv, const char *doc, struct options *options);
