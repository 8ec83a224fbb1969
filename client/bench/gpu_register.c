/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How fast a helper that has just been started makes the daemon's memory known to the driver, and that an engine that was
 * killed and started again costs nothing of it. The engine is a child that attaches, moves a few blocks and stays, so that
 * the daemon asks the helper for its numbers. For each sample the helper is killed: the next one registers everything anew.
 * This process never calls the driver, and asks for numbers from when the first engine is there. One thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "client/bench/admin.h"
#include "client/bench/gpu.h"
#include "client/bench/live.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define GOAL_GB_S 30 /* on hugepages */
#define SET_BYTES (8 * MIB)
#define FRESH_SECONDS 1.2 /* until the helper's numbers, once a second, are newer than now */
#define WAIT_SECONDS 120

struct engine {
    pid_t pid;
    int fd; /* where it says that it has moved its blocks */
};
#define ENGINE_NONE                                                                                                    \
    (struct engine)                                                                                                    \
    {                                                                                                                  \
        .fd = -1                                                                                                       \
    }

/* ── the engine ─────────────────────────────────────────────────────────────────────────────────────────────────── */

struct moves {
    struct gpu_bench *bench;
    int fd;
};

static int engine_measure(struct micro *m)
{
    const struct moves *moves = m->ctx;
    struct gpu_bench *b = moves->bench;
    int r;

    b->micro = m;
    b->set_bytes = MIN(b->set_bytes, SET_BYTES);
    b->pinned_bytes = MIN(b->pinned_bytes, SET_BYTES);
    r = gpu_driver_open(b, true);
    if (r == 0)
        r = gpu_set_open(
            b, &(struct gpu_shape){
                   .piece_bytes = MIB, .item_bytes = 2 * MIB, .class_id = SPW_CLASS_KV, .durability = SPW_CACHE});
    if (r == 0)
        r = gpu_set_check(b);
    if (r == 0 && write(moves->fd, "", 1) != 1)
        r = -errno;
    if (r < 0)
        return r;
    for (;;) /* until it is killed */
        pause();
}

static void engine_kill(struct engine *e)
{
    if (e->pid > 0) {
        kill(e->pid, SIGKILL);
        (void)waitpid(e->pid, NULL, 0);
    }
    if (e->fd >= 0)
        close(e->fd);
    *e = ENGINE_NONE;
}

/* Returns when its blocks have been moved. */
static int engine_start(struct gpu_bench *b, struct engine *ret_engine)
{
    const struct micro *m = b->micro;
    struct engine e = ENGINE_NONE;
    int fds[2];
    char byte;

    if (pipe2(fds, O_CLOEXEC) < 0)
        return -errno;
    e.fd = fds[0];
    e.pid = fork();
    if (e.pid == 0) {
        struct moves moves = {.bench = b, .fd = fds[1]};
        static struct figures none;

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(fds[0]);
        _exit(micro_session(m->options, m->socket_path, "bench", 0, engine_measure, &moves, &none) == 0 ? 0 : 1);
    }
    close(fds[1]);
    if (e.pid > 0 && read(e.fd, &byte, 1) == 1) {
        *ret_engine = e;
        return 0;
    }
    fprintf(stderr, "spillbench: an engine could not be started\n");
    engine_kill(&e);
    return -ECHILD;
}

/* ── the helper ─────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Waits until it, another one than before, has registered all. */
static int wait_registered(struct gpu_bench *b, pid_t before, struct gpu_numbers *ret_numbers)
{
    uint64_t start_ns = now_ns();

    for (;;) {
        struct gpu_numbers n;
        int r = gpu_numbers_get(b->micro->session, &n);

        if (r < 0)
            return r;
        if (n.windows_failed > 0) {
            fprintf(stderr, "spillbench: the driver refused to register memory\n");
            return -ENOMEM;
        }
        if (n.helper_pid > 0 && n.helper_pid != before && n.chunk_bytes > 0 && n.registered_bytes >= n.chunk_bytes) {
            *ret_numbers = n;
            return 0;
        }
        if (live_interrupted())
            return -EINTR;
        if (seconds_since(start_ns) > WAIT_SECONDS) {
            fprintf(stderr, "spillbench: %.0f of %.0f bytes were registered in %d s\n", n.registered_bytes,
                    n.chunk_bytes, WAIT_SECONDS);
            return -ETIMEDOUT;
        }
        nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    }
}

static void sleep_fresh(void)
{
    nanosleep(&(struct timespec){.tv_sec = (time_t)FRESH_SECONDS,
                                 .tv_nsec = (long)((FRESH_SECONDS - (time_t)FRESH_SECONDS) * 1e9)},
              NULL);
}

/* A new helper, and how fast it was. */
static int sample_register(struct gpu_bench *b, struct engine *engine, struct gpu_numbers *numbers)
{
    pid_t before = numbers->helper_pid;

    if (kill(before, SIGKILL) < 0) {
        fprintf(stderr, "spillbench: the helper (pid %d) cannot be killed\n", (int)before);
        return -EPERM;
    }
    engine_kill(engine); /* its lane is over, and only a new one has the daemon ask for numbers */
    int r = engine_start(b, engine);

    return r < 0 ? r : wait_registered(b, before, numbers);
}

/* ── figures ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Whether nearly all of the memory is in hugepages. */
static int are_hugepages(struct gpu_bench *b, bool *ret_are)
{
    cleanup_json struct json_object *reply = NULL;
    int r = admin_get(b->micro->session, "tiers", &reply);

    if (r == 0)
        *ret_are = admin_number(reply, "tiers.nodes.hugepage_bytes") >=
                   0.9 * admin_number(reply, "tiers.nodes.allocated_bytes");
    return r;
}

static int say_speed(struct gpu_bench *b, const struct gpu_numbers *last, double *gb_s, uint32_t n)
{
    struct estimate e = pairs_estimate(gb_s, n);
    double mib = last->registered_bytes / (double)MIB;
    bool are_huge = false;
    int r = are_hugepages(b, &are_huge);

    if (r < 0)
        return r;
    const char *pages = are_huge ? "hugepages" : "small pages";
    struct figure *f = figure_add(b->micro->figures, "GB/s", e.median, "registering %.0f MiB of %s", mib, pages);
    figure_goal(f, are_huge ? GOAL_AT_LEAST : GOAL_NONE, GOAL_GB_S);
    figure_measured(f, &e);
    (void)figure_add(b->micro->figures, "s", last->registered_bytes / e.median / 1e9,
                     "registering %.0f MiB of %s, time", mib, pages);
    return 0;
}

/* The time that was spent tells more than what is registered now: that could be what was, given up and taken again. */
static int again(struct gpu_bench *b, struct engine *engine, const struct gpu_numbers *numbers)
{
    struct gpu_numbers before = *numbers, after = *numbers;

    sleep_fresh();
    int r = gpu_numbers_get(b->micro->session, &before);
    engine_kill(engine);
    if (r == 0)
        r = engine_start(b, engine);
    sleep_fresh();
    if (r == 0)
        r = gpu_numbers_get(b->micro->session, &after);
    if (r < 0)
        return r;
    if (after.helper_pid != before.helper_pid) {
        fprintf(stderr, "spillbench: the helper ended with its client\n");
        return -EIO;
    }
    double again_bytes = (after.register_ns - before.register_ns) * before.registered_bytes / before.register_ns;
    figure_goal(figure_add(b->micro->figures, "B", again_bytes, "pinned again, an engine killed and started again"),
                GOAL_AT_MOST, 0);
    return 0;
}

struct watched {
    struct gpu_bench *bench;
    struct engine *engine;
};

static int engine_watch(struct micro *m)
{
    const struct watched *w = m->ctx;
    struct gpu_bench *b = w->bench;
    struct gpu_numbers numbers;
    double gb_s[SAMPLES_MIN];
    int r;

    b->micro = m;
    r = wait_registered(b, 0, &numbers);
    if (r == 0)
        r = again(b, w->engine, &numbers);
    for (uint32_t i = 0; r == 0 && i < SAMPLES_MIN; i++) {
        r = sample_register(b, w->engine, &numbers);
        if (r == 0)
            gb_s[i] = numbers.registered_bytes / numbers.register_ns;
    }
    if (r == 0)
        r = say_speed(b, &numbers, gb_s, SAMPLES_MIN);
    return r;
}

/* The session comes after the first engine was started: its thread is at rest when the next ones are. */
int gpu_register_measure(struct micro *m)
{
    struct gpu_bench *b = m->ctx;
    struct engine engine = ENGINE_NONE;
    struct watched watched = {.bench = b, .engine = &engine};
    int r = engine_start(b, &engine);

    if (r == 0)
        r = micro_session(m->options, m->socket_path, "bench", m->daemon_pid, engine_watch, &watched, m->figures);
    engine_kill(&engine);
    return r;
}
