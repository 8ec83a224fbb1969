/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What it costs to ask the daemon for nothing: a NOP through a ring and back, beside one byte through a socket pair to
 * another process and back. One thread.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "client/bench/bench.h"
#include "client/bench/hist.h"
#include "client/bench/live.h"
#include "client/bench/micro.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define WARM_UP 1000
#define SOCKET_ROUNDS 20000

static const char doc[] = "Measures a round trip through a ring.";

static void echo(int fd)
{
    char byte;

    while (recv(fd, &byte, 1, 0) == 1 && send(fd, &byte, 1, MSG_NOSIGNAL) == 1)
        ;
    _exit(0);
}

static int socket_round_trip(struct hist *hist)
{
    int fds[2];
    char byte = 0;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
        return -errno;
    cleanup_close int ours = fds[0];
    cleanup_close int theirs = fds[1];
    pid_t pid = fork();
    if (pid < 0)
        return -errno;
    if (pid == 0) {
        close(ours);
        echo(theirs);
    }
    close(steal_fd(&theirs));
    int r = 0;
    for (int i = 0; r == 0 && i < SOCKET_ROUNDS; i++) {
        uint64_t start_ns = now_ns();
        if (send(ours, &byte, 1, MSG_NOSIGNAL) != 1 || recv(ours, &byte, 1, 0) != 1)
            r = -EPIPE;
        else
            hist_add(hist, now_ns() - start_ns);
    }
    close(steal_fd(&ours));
    (void)waitpid(pid, NULL, 0);
    return r;
}

static int nop_round_trip(const struct options *o, spw_pool *pool, struct hist *hist)
{
    struct spw_space_options so = {.item_bytes = 64 * KIB, .class_id = SPW_CLASS_KV, .digest = "ring"};
    spw_space *space;
    uint64_t start_ns = now_ns();

    int r = spw_space_open(pool, &so, &space);
    for (uint64_t i = 0; r == 0 && seconds_since(start_ns) < o->seconds && !live_interrupted(); i++) {
        uint64_t t = now_ns();
        r = spw_nop(space);
        if (i >= WARM_UP)
            hist_add(hist, now_ns() - t);
    }
    if (r < 0)
        fprintf(stderr, "spillbench: nop: %s\n", spw_error_text());
    return r;
}

static int measure(const struct options *o, spw_session *session, spw_pool *pool, struct figures *figures)
{
    static const unsigned per_mille[] = {500, 990, 999};
    cleanup_free struct hist *ring = calloc(1, sizeof(*ring));
    cleanup_free struct hist *socket = calloc(1, sizeof(*socket));

    (void)session;
    if (!ring || !socket)
        return -ENOMEM;
    int r = nop_round_trip(o, pool, ring);
    if (r == 0)
        r = socket_round_trip(socket);
    for (size_t i = 0; r == 0 && i < ARRAY_LEN(per_mille); i++) {
        struct figure *f = figure_add(figures, "ns", (double)hist_quantile(ring, per_mille[i]), "nop, round trip, p%g",
                                      per_mille[i] / 10.0);
        figure_beside(f, "a byte through a socket pair", (double)hist_quantile(socket, per_mille[i]));
    }
    if (r == 0)
        (void)figure_add(figures, "1/s", 1e9 / (double)(hist_mean(ring) + 1), "nops a second, one after the other");
    return r;
}

int bench_ring(int argc, char **argv)
{
    return micro_run(argc, argv, doc, measure);
}
