/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each writer looks at its switch between two slices of its load, so it is off a slice after it was told to. One thread
 * each.
 */
#include "client/bench/mix_writers.h"

#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include "client/bench/memory.h"
#include "client/bench/micro.h"
#include "client/bench/process.h"
#include "include/base/atomic.h"

#define SLICE_SECONDS 0.25
#define POLL_NS 2000000L
#define WAIT_SECONDS 30

/* A writer and its parent; in shared memory. */
struct mix_writer {
    uint32_t is_on, is_ready; /* set by the parent; by the writer: negative errno or 1 */
    struct disk_load load;
    struct hist hist;
};

static void sleep_a_while(void)
{
    nanosleep(&(struct timespec){.tv_nsec = POLL_NS}, NULL);
}

int mix_load_open(spw_session *session, const char *pool_name, struct disk_load *l)
{
    struct spw_space_options so = {.class_id = SPW_CLASS_KV, .durability = SPW_CACHE, .digest = "speed"};
    spw_pool *pool;

    int r = spw_pool_open(session, pool_name, &pool);
    if (r == 0)
        r = spw_space_open(pool, &so, &l->space);
    if (r == 0)
        r = spw_queue_new(session, l->space, DISK_SLOTS, &l->queue);
    return r < 0 ? micro_say("space and queue", r) : 0;
}

static int writer_run(struct mix_writer *w, const char *socket_path, const char *pool)
{
    struct spw_connect_options co = {.socket_path = socket_path, .name = "spillbench writer"};
    spw_session *session;

    int r = spw_connect(&co, &session);
    if (r < 0)
        return micro_say("session", r);
    r = mix_load_open(session, pool, &w->load);
    store_release(&w->is_ready, r < 0 ? (uint32_t)r : 1);
    while (r == 0) { /* the parent ends it */
        if (load_acquire(&w->is_on))
            r = disk_load_spill(&w->load, 0, SLICE_SECONDS);
        else
            sleep_a_while();
    }
    return r;
}

int mix_writer_start(struct mix_writers *writers, unsigned i, const char *socket_path, const char *pool, uint64_t seed)
{
    struct mix_writer *w = memory_map(sizeof(*w), MEMORY_SHARED);
    pid_t parent = getpid();

    if (!w)
        return -ENOMEM;
    writers->at[i] = w;
    w->load = (struct disk_load){.seed = seed,
                                 .block_bytes = MIX_BLOCK_BYTES,
                                 .block_bytes_min = MIX_BLOCK_BYTES,
                                 .depth = DISK_DEPTH_MAX,
                                 .list = 1,
                                 .hist = &w->hist};
    writers->pids[i] = fork();
    if (writers->pids[i] < 0)
        return -errno;
    if (writers->pids[i] == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        _exit(getppid() == parent && writer_run(w, socket_path, pool) == 0 ? 0 : 1);
    }
    while (load_acquire(&w->is_ready) == 0 && waitpid(writers->pids[i], NULL, WNOHANG) == 0)
        sleep_a_while();
    return load_acquire(&w->is_ready) == 1 ? 0 : -ECHILD;
}

void mix_writers_end(struct mix_writers *w)
{
    for (unsigned i = 0; i < MIX_WRITERS_MAX; i++) {
        if (w->pids[i] > 0) {
            kill(w->pids[i], SIGKILL);
            (void)waitpid(w->pids[i], NULL, 0);
        }
        memory_unmap(w->at[i], sizeof(*w->at[i]));
        w->at[i] = NULL;
        w->pids[i] = 0;
    }
}

void mix_writers_switch(struct mix_writers *w, bool on)
{
    for (unsigned i = 0; i < MIX_WRITERS_MAX && w->at[i]; i++)
        store_release(&w->at[i]->is_on, on);
}

uint64_t mix_written(const struct mix_writers *w, unsigned i)
{
    return w->at[i] ? load_relaxed(&w->at[i]->load.total) : 0;
}

bool mix_writers_live(const struct mix_writers *w)
{
    for (unsigned i = 0; i < MIX_WRITERS_MAX && w->at[i]; i++)
        if (waitpid(w->pids[i], NULL, WNOHANG) != 0)
            return false;
    return true;
}

void mix_writers_wait(const struct mix_writers *w, uint64_t since, uint64_t bytes)
{
    uint64_t start_ns = now_ns();

    while (mix_written(w, 0) + mix_written(w, 1) - since < bytes && seconds_since(start_ns) < WAIT_SECONDS &&
           mix_writers_live(w))
        sleep_a_while();
}
