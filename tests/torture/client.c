/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client's process: one session, one thread, and its journal in the oracle's file. It ends by SIGKILL, or by itself
 * when the daemon is gone.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "include/base/atomic.h"
#include "tests/torture/torture.h"

#define REST_MS 120000

bool is_gone(int status)
{
    return status == -ENOTCONN || status == -ECONNREFUSED || status == -ECONNRESET || status == -ENOENT ||
           status == -EPIPE;
}

static int space_open(spw_pool *pool, const char *digest, unsigned class_id, unsigned durability, spw_space **ret_space)
{
    struct spw_space_options options = {.class_id = (uint8_t)class_id, .durability = (uint8_t)durability};

    memcpy(options.digest, digest, strlen(digest));
    return spw_space_open(pool, &options, ret_space);
}

static int spaces_try(const struct t_place *p, const char *name, struct t_spaces *ret_spaces)
{
    struct spw_connect_options options = {.socket_path = p->socket, .name = name, .timeout_ms = 60000};
    struct t_spaces s = {0};
    spw_pool *pools[T_GROUPS];
    char digest[32];
    int r = spw_connect(&options, &s.session);

    if (r < 0)
        return r;
    r = spw_pool_open(s.session, "default", &pools[T_GROUP_DEFAULT]);
    if (r == 0)
        r = spw_pool_open(s.session, "shared", &pools[T_GROUP_SHARED]);
    if (r == 0)
        r = space_open(pools[0], "durable", SPW_CLASS_GENERIC, SPW_DURABLE, &s.blocks[T_DURABLE]);
    if (r == 0)
        r = space_open(pools[0], "cache", SPW_CLASS_KV, SPW_CACHE, &s.blocks[T_CACHE]);
    if (r == 0)
        r = space_open(pools[1], "shared", SPW_CLASS_WEIGHTS, SPW_DURABLE, &s.blocks[T_SHARED]);
    if (r == 0 && p->hot)
        r = space_open(pools[0], "scratch", SPW_CLASS_GENERIC, SPW_SCRATCH, &s.scratch);
    for (uint32_t i = 0; i < T_CLIENTS * T_GROUPS && r == 0; i++) {
        snprintf(digest, sizeof(digest), "tensors of %u", i / T_GROUPS);
        r = space_open(pools[i % T_GROUPS], digest, SPW_CLASS_OPTIMIZER, SPW_DURABLE,
                       &s.tensors[i / T_GROUPS][i % T_GROUPS]);
    }
    if (r < 0) {
        spaces_close(&s);
        return r;
    }
    *ret_spaces = s;
    return 0;
}

/* A session outlives a daemon from its first pool on. */
int spaces_open(const struct t_place *p, const char *name, struct t_spaces *ret_spaces)
{
    int64_t end = now_ms() + REST_MS;
    int r = spaces_try(p, name, ret_spaces);

    for (; is_gone(r) && p->hot && now_ms() < end; r = spaces_try(p, name, ret_spaces))
        pause_ms(1);
    return r;
}

void spaces_close(struct t_spaces *spaces)
{
    spw_close(spaces->session);
    *spaces = (struct t_spaces){0};
}

void client_gone(struct t_worker *w, int status)
{
    if (w->place->hot)
        torture_fail("client %u does not outlive the daemon: %s (%s)", w->number, strerror(-status), spw_error_text());
    _exit(CLIENT_GONE);
}

void client_must(struct t_worker *w, int status, const char *what)
{
    if (is_gone(status) && status != -ENOENT)
        client_gone(w, status);
    if (status < 0)
        torture_fail("client %u: %s: %s (%s)", w->number, what, strerror(-status), spw_error_text());
}

/* Has it had to? */
static bool client_rests(struct t_worker *w)
{
    uint32_t pause = load_acquire(&w->oracle->pause);
    uint64_t ops_max = load_relaxed(&w->me->ops_max);

    if (pause % 2 == 1)
        store_release(&w->me->at_rest, pause); /* pairs with clients_pause(): what was done before is in the journal */
    else if (ops_max == 0 || w->me->n_ops < ops_max)
        return false;
    pause_ms(1);
    return true;
}

void client_run(struct t_place *p, uint32_t number, uint64_t seed)
{
    struct t_worker w = {
        .place = p,
        .oracle = p->oracle,
        .me = &p->oracle->clients[number],
        .number = number,
        .random = {.state = seed},
        .bytes = malloc(T_PAYLOAD_MAX),
    };

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    place_leave(p);
    int r = spaces_open(p, "load", &w.spaces);

    if (is_gone(r) || !w.bytes)
        client_gone(&w, r);
    client_must(&w, r, "connect");
    for (uint32_t g = 0; g < T_GROUPS; g++)
        memcpy(w.set_version[g], w.me->sets[g].now, sizeof(w.set_version[g]));
    while (!load_acquire(&p->oracle->stop)) {
        if (client_rests(&w))
            continue;
        if (oracle_is_full(w.me)) {
            pause_ms(10);
            continue;
        }
        client_do(&w);
        store_relaxed(&w.me->n_ops, w.me->n_ops + 1);
    }
    _exit(0);
}

/* --- All of them --------------------------------------------------------------------------------------------------------- */

static void client_start(struct t_place *p, pid_t *pid, uint32_t number, uint64_t seed)
{
    *pid = fork();
    if (*pid < 0)
        torture_fail("fork: %s", strerror(errno));
    if (*pid == 0)
        client_run(p, number, splitmix64(seed + number));
}

void clients_start(struct t_place *p, pid_t pids[T_CLIENTS], uint64_t seed)
{
    store_release(&p->oracle->stop, 0);
    fflush(NULL);
    for (uint32_t i = 0; i < T_CLIENTS; i++)
        client_start(p, &pids[i], i, seed);
}

/* What it ended with may be a finding; SIGKILL is ours. */
static void client_reap(pid_t *pid, int flags)
{
    int status;
    pid_t found = *pid == 0 ? 0 : waitpid(*pid, &status, flags);

    if (found < 0)
        torture_fail("wait: %s", strerror(errno));
    if (found == 0)
        return;
    *pid = 0;
    bool ours = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;

    if (!ours && status != 0 && !(WIFEXITED(status) && WEXITSTATUS(status) == CLIENT_GONE))
        torture_fail("a client ended with status %x", (unsigned)status);
}

void client_kill(struct t_place *p, pid_t pids[T_CLIENTS], uint32_t number)
{
    p->oracle->clients[number].was_killed |= pids[number] > 0;
    if (pids[number] > 0)
        (void)kill(pids[number], SIGKILL);
    client_reap(&pids[number], 0);
}

void clients_end(struct t_place *p, pid_t pids[T_CLIENTS], bool gently)
{
    store_release(&p->oracle->stop, 1);
    for (uint32_t i = 0; i < T_CLIENTS && !gently; i++)
        if (pids[i] > 0)
            (void)kill(pids[i], SIGKILL);
    for (uint32_t i = 0; i < T_CLIENTS; i++) {
        p->oracle->clients[i].was_killed |= !gently && pids[i] > 0;
        client_reap(&pids[i], 0);
    }
}

bool clients_pause(struct t_place *p, pid_t pids[T_CLIENTS])
{
    uint32_t pause = load_relaxed(&p->oracle->pause) | 1, n_busy = 1;
    int64_t end = now_ms() + REST_MS;
    int status;

    store_release(&p->oracle->pause, pause);
    while (n_busy > 0) {
        if (!place_daemon_lives(p, &status)) {
            place_was_killed(p, status);
            return false;
        }
        n_busy = 0;
        for (uint32_t i = 0; i < T_CLIENTS; i++) {
            client_reap(&pids[i], WNOHANG);
            n_busy += pids[i] != 0 && load_acquire(&p->oracle->clients[i].at_rest) != pause;
        }
        if (n_busy > 0 && now_ms() > end)
            torture_fail("%u clients stand still: see %s", n_busy, p->log);
        pause_ms(n_busy > 0);
    }
    return true;
}

void clients_limit(struct t_place *p, uint64_t n_calls)
{
    for (uint32_t i = 0; i < T_CLIENTS; i++)
        store_relaxed(&p->oracle->clients[i].ops_max, load_relaxed(&p->oracle->clients[i].n_ops) + n_calls + 1);
}

void clients_resume(struct t_place *p, pid_t pids[T_CLIENTS], uint64_t seed)
{
    store_release(&p->oracle->stop, 0);
    store_release(&p->oracle->pause, (load_relaxed(&p->oracle->pause) | 1) + 1);
    fflush(NULL);
    for (uint32_t i = 0; i < T_CLIENTS; i++) {
        store_relaxed(&p->oracle->clients[i].ops_max, 0);
        if (pids[i] == 0)
            client_start(p, &pids[i], i, seed);
    }
}
