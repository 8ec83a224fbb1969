/* SPDX-License-Identifier: Apache-2.0 */
/* See keeper.h. */
#include "tests/system/support/keeper.h"

#include <check.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define READY_MS 60000

/* --- The daemon ------------------------------------------------------------------------------------------------------ */

static void child_prepare(void *ctx)
{
    const struct keeper *k = ctx;

    manager_pass(&k->manager);
}

static void daemon_launch(struct keeper *k)
{
    k->daemon->in_child = child_prepare;
    k->daemon->in_child_ctx = k;
    daemon_spawn(k->daemon);
    k->n_starts++;
}

static void *keeper_main(void *arg)
{
    struct keeper *k = arg;
    bool stops = false;

    while (!stops) {
        struct pollfd pfds[] = {{.fd = k->manager.notify_fd, .events = POLLIN}, {.fd = k->pipe[0]}};
        int status;

        poll(pfds, 2, 2);
        stops = pfds[1].revents != 0;
        pid_t pid = k->daemon->pid; /* this thread alone changes it */
        bool died = pid > 0 && waitpid(pid, &status, WNOHANG) == pid;

        pthread_mutex_lock(&k->lock);
        manager_take(&k->manager);
        if (died) {
            k->daemon->pid = 0;
            k->last_status = status;
        }
        if (k->daemon->pid == 0 && k->restarts && !stops)
            daemon_launch(k);
        pthread_mutex_unlock(&k->lock);
    }
    if (k->daemon->pid != 0) {
        kill(k->daemon->pid, SIGTERM);
        waitpid(k->daemon->pid, &k->last_status, 0);
        k->daemon->pid = 0;
    }
    return NULL;
}

/* --- The test's side ------------------------------------------------------------------------------------------------- */

void keeper_init(struct keeper *k, struct daemon *d)
{
    char notify_path[MANAGER_PATH_BYTES];

    *k = (struct keeper){.daemon = d, .restarts = true};
    pthread_mutex_init(&k->lock, NULL);
    snprintf(notify_path, sizeof(notify_path), "%s/notify", d->dir);
    ck_assert_int_eq(manager_init(&k->manager, notify_path, d->socket), 0);
    ck_assert_int_eq(pipe2(k->pipe, O_CLOEXEC), 0);
}

void keeper_go(struct keeper *k)
{
    fflush(NULL);
    ck_assert_int_eq(pthread_create(&k->thread, NULL, keeper_main, k), 0);
    keeper_wait_ready(k, 1);
}

void keeper_start(struct keeper *k, struct daemon *d)
{
    keeper_init(k, d);
    keeper_go(k);
}

void keeper_kill(struct keeper *k)
{
    pthread_mutex_lock(&k->lock);
    k->restarts = false;
    if (k->daemon->pid != 0)
        kill(k->daemon->pid, SIGKILL);
    pthread_mutex_unlock(&k->lock);
    for (bool lives = true; lives; sleep_ms(1)) {
        pthread_mutex_lock(&k->lock);
        lives = k->daemon->pid != 0;
        pthread_mutex_unlock(&k->lock);
    }
}

void keeper_revive(struct keeper *k)
{
    pthread_mutex_lock(&k->lock);
    unsigned count = k->manager.n_ready + 1;

    k->restarts = true;
    pthread_mutex_unlock(&k->lock);
    keeper_wait_ready(k, count);
}

int keeper_stop(struct keeper *k)
{
    close(k->pipe[1]);
    pthread_join(k->thread, NULL);
    close(k->pipe[0]);
    manager_deinit(&k->manager);
    pthread_mutex_destroy(&k->lock);
    return WIFEXITED(k->last_status) ? WEXITSTATUS(k->last_status) : 128 + WTERMSIG(k->last_status);
}

unsigned keeper_count(struct keeper *k)
{
    pthread_mutex_lock(&k->lock);
    unsigned n = k->manager.n_ready;

    pthread_mutex_unlock(&k->lock);
    return n;
}

void keeper_wait_ready(struct keeper *k, unsigned count)
{
    for (int64_t end = clock_ms() + READY_MS; clock_ms() < end; sleep_ms(1))
        if (keeper_count(k) >= count)
            return;
    ck_abort_msg("spillwayd does not become ready: %s", daemon_log_end(k->daemon));
}

void keeper_restart(struct keeper *k, int signal_number)
{
    pthread_mutex_lock(&k->lock);
    unsigned count = k->manager.n_ready + 1;

    if (k->daemon->pid != 0)
        kill(k->daemon->pid, signal_number);
    pthread_mutex_unlock(&k->lock);
    keeper_wait_ready(k, count);
}

unsigned keeper_has(struct keeper *k, const char *prefix)
{
    unsigned n = 0;

    pthread_mutex_lock(&k->lock);
    for (unsigned i = 0; i < k->manager.n; i++)
        n += strncmp(k->manager.kept[i].name, prefix, strlen(prefix)) == 0;
    pthread_mutex_unlock(&k->lock);
    return n;
}

void keeper_give(struct keeper *k, const char *name, int fd)
{
    pthread_mutex_lock(&k->lock);
    manager_keep(&k->manager, name, fd);
    pthread_mutex_unlock(&k->lock);
}
