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

int spaces_open(const struct t_place *p, const char *name, struct t_spaces *ret_spaces)
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

void spaces_close(struct t_spaces *spaces)
{
    spw_close(spaces->session);
    *spaces = (struct t_spaces){0};
}

void client_must(struct t_worker *w, int status, const char *what)
{
    if (is_gone(status) && status != -ENOENT)
        _exit(CLIENT_GONE);
    if (status < 0)
        torture_fail("client %u: %s: %s (%s)", w->number, what, strerror(-status), spw_error_text());
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
    int r = spaces_open(p, "load", &w.spaces);

    if (is_gone(r) || !w.bytes)
        _exit(CLIENT_GONE);
    client_must(&w, r, "connect");
    for (uint32_t g = 0; g < T_GROUPS; g++)
        memcpy(w.set_version[g], w.me->sets[g].seen, sizeof(w.set_version[g]));
    while (!load_acquire(&p->oracle->stop)) {
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

void clients_start(struct t_place *p, pid_t pids[T_CLIENTS], uint64_t seed)
{
    store_release(&p->oracle->stop, 0);
    fflush(NULL);
    for (uint32_t i = 0; i < T_CLIENTS; i++) {
        pids[i] = fork();
        if (pids[i] < 0)
            torture_fail("fork: %s", strerror(errno));
        if (pids[i] == 0)
            client_run(p, i, splitmix64(seed + i));
    }
}

/* What it ended with may be a finding; SIGKILL is ours. */
static void client_reap(pid_t *pid)
{
    int status;

    if (*pid == 0)
        return;
    if (waitpid(*pid, &status, 0) != *pid)
        torture_fail("wait: %s", strerror(errno));
    *pid = 0;
    bool ours = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;

    if (!ours && status != 0 && !(WIFEXITED(status) && WEXITSTATUS(status) == CLIENT_GONE))
        torture_fail("a client ended with status %x", (unsigned)status);
}

void client_kill(pid_t *pid)
{
    if (*pid > 0)
        (void)kill(*pid, SIGKILL);
    client_reap(pid);
}

void clients_end(struct t_place *p, pid_t pids[T_CLIENTS], bool gently)
{
    store_release(&p->oracle->stop, 1);
    for (uint32_t i = 0; i < T_CLIENTS && !gently; i++)
        if (pids[i] > 0)
            (void)kill(pids[i], SIGKILL);
    for (uint32_t i = 0; i < T_CLIENTS; i++)
        client_reap(&pids[i]);
}
