/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The frame around a benchmark: daemon, session, printing. Without --socket it starts a daemon of its own. A child reports
 * its figures through a pipe: their static texts lie at the same addresses on both sides of a fork. One thread.
 */
#include "client/bench/micro.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "client/bench/bench.h"
#include "include/base/cleanup.h"

#define DRAM_DEFAULT (512 * MIB)
#define SECONDS_DEFAULT 3
#define SECONDS_QUICK 0.2

static const struct argp_option rows[] = {ROW_BLOCK, ROW_DRAM,  ROW_SOCKET, ROW_POOL,   ROW_SECONDS, ROW_KEEP,
                                          ROW_SEED,  ROW_QUIET, ROW_QUICK,  ROW_OUTPUT, {0}};

int micro_say(const char *what, int r)
{
    fprintf(stderr, "spillbench: %s: %s\n", what, r < 0 ? spw_error_text() : "wrong bytes, or none");
    return r < 0 ? r : -EBADMSG;
}

int micro_session(const struct options *o, const char *socket_path, const char *pool_name, pid_t daemon_pid,
                  micro_fn measure, void *ctx, struct figures *figures)
{
    cleanup_(spw_close_p) spw_session *session = NULL;
    spw_pool *pool = NULL;
    int r = 0;

    if (pool_name)
        r = spw_connect(&(struct spw_connect_options){.socket_path = socket_path, .name = "spillbench"}, &session);
    if (r == 0 && pool_name)
        r = spw_pool_open(session, pool_name, &pool);
    if (r < 0)
        return micro_say("session", r);
    return measure(&(struct micro){.options = o,
                                   .daemon_pid = daemon_pid,
                                   .socket_path = socket_path,
                                   .session = session,
                                   .pool = pool,
                                   .figures = figures,
                                   .ctx = ctx});
}

int micro_daemon(const struct options *o, const struct harness_options *ho, micro_fn measure, void *ctx,
                 struct figures *figures)
{
    cleanup_(harness_deinit) struct harness h = HARNESS_NONE;
    int r = harness_start(ho, &h);

    if (r < 0)
        return r;
    r = micro_session(o, h.socket_path, "bench", h.pid, measure, ctx, figures);
    int status = harness_finish(&h, r < 0 ? BENCH_BROKEN : BENCH_OK);
    return r < 0 || status == BENCH_OK ? r : -ECHILD;
}

/* ── another user ───────────────────────────────────────────────────────────────────────────────────────────────── */

int micro_become(uid_t uid)
{
    if (uid == 0 || (setgroups(0, NULL) == 0 && setresgid(uid, uid, uid) == 0 && setresuid(uid, uid, uid) == 0))
        return 0;
    int r = -errno;
    fprintf(stderr, "spillbench: cannot become user %u: %s\n", uid, strerrordesc_np(-r));
    return r;
}

static bool write_all(int fd, const void *from, size_t size_bytes)
{
    for (const char *at = from; size_bytes > 0;) {
        ssize_t n = write(fd, at, size_bytes);
        if (n <= 0)
            return false;
        at += n, size_bytes -= (size_t)n;
    }
    return true;
}

static bool read_all(int fd, void *to, size_t size_bytes)
{
    for (char *at = to; size_bytes > 0;) {
        ssize_t n = read(fd, at, size_bytes);
        if (n < 0 && errno == EINTR) /* the child is told as well, and reports */
            continue;
        if (n <= 0)
            return false;
        at += n, size_bytes -= (size_t)n;
    }
    return true;
}

/* What a child says: how it went, and its figures. */
struct report {
    int result;
    struct figures figures;
};

int micro_child(const struct options *o, const char *socket_path, const char *pool_name, uid_t uid, micro_fn measure,
                void *ctx, struct figures *figures)
{
    cleanup_free struct report *report = calloc(1, sizeof(*report));
    int fds[2];

    if (!report)
        return -ENOMEM;
    if (pipe2(fds, O_CLOEXEC) < 0)
        return -errno;
    cleanup_close int ours = fds[0];
    cleanup_close int theirs = fds[1];
    pid_t pid = fork();
    if (pid < 0)
        return -errno;
    if (pid == 0) {
        report->result = micro_become(uid);
        if (report->result == 0)
            report->result = micro_session(o, socket_path, pool_name, 0, measure, ctx, &report->figures);
        _exit(write_all(theirs, report, sizeof(*report)) ? 0 : 1);
    }
    close(steal_fd(&theirs));
    bool said = read_all(ours, report, sizeof(*report));
    (void)waitpid(pid, NULL, 0);
    if (!said) {
        fprintf(stderr, "spillbench: a client ended without a word\n");
        return -ECHILD;
    }
    figures_take(figures, &report->figures);
    return report->result;
}

/* ── beginning and end ──────────────────────────────────────────────────────────────────────────────────────────── */

int micro_end(const struct options *o, const struct figures *figures, int r)
{
    if (r < 0)
        return r == -EBADMSG ? BENCH_WRONG : BENCH_BROKEN;
    if (o->json && figures_print_json(figures, stdout) < 0)
        return BENCH_BROKEN;
    if (!o->json)
        figures_print_table(figures, false, stdout);
    return figures_hold(figures) ? BENCH_OK : BENCH_WRONG;
}

void micro_options(int argc, char **argv, const char *doc, struct options *options)
{
    struct options *o = options;

    *o = (struct options){.block_bytes = 64 * KIB, .dram_bytes = DRAM_DEFAULT, .seed = 1, .pool = "default"};
    options_parse(argc, argv, rows, doc, o);
    if (o->seconds == 0)
        o->seconds = o->quick ? SECONDS_QUICK : SECONDS_DEFAULT;
}

int micro_run(int argc, char **argv, const char *doc, micro_fn measure)
{
    static struct figures figures;
    struct options o;

    micro_options(argc, argv, doc, &o);
    struct harness_options ho = {.dram_bytes = o.dram_bytes, .keep = o.keep, .quiet = o.quiet};
    int r = o.socket_path ? micro_session(&o, o.socket_path, o.pool, 0, measure, NULL, &figures)
                          : micro_daemon(&o, &ho, measure, NULL, &figures);
    return micro_end(&o, &figures, r);
}
