/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Touches a range of memory with several threads: zeroing pages in the kernel is what makes memory slow to get, and
 * one thread does a fraction of a node's bandwidth. The range is handed out in slices; the creating thread takes part
 * and alone reports progress. The first error, or a refusal by progress(), stops all at their next slice.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>

#include "include/base/atomic.h"
#include "io/memory_private.h"

struct populate {
    char *mem;
    uint64_t size_bytes;
    memory_touch_fn touch;
    uint64_t next_bytes; /* atomic: start of the next slice */
    uint64_t done_bytes; /* atomic */
    int error;           /* atomic: the first one, else 0 */
};

static void populate_stop(struct populate *p, int error)
{
    int none = 0;

    (void)__atomic_compare_exchange_n(&p->error, &none, error, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

/* Kernels before 5.14: a read and a write of one byte of each page, which leaves what is there. */
static void touch_by_hand(char *mem, uint64_t len_bytes)
{
    for (uint64_t off = 0; off < len_bytes; off += MEMORY_PAGE_BYTES)
        __atomic_fetch_or(&mem[off], 0, __ATOMIC_RELAXED);
}

static bool populate_slice(struct populate *p)
{
    uint64_t off = __atomic_fetch_add(&p->next_bytes, POPULATE_SLICE_BYTES, __ATOMIC_RELAXED);
    int r;

    if (off >= p->size_bytes || load_relaxed(&p->error) != 0)
        return false;
    uint64_t len_bytes = MIN(p->size_bytes - off, POPULATE_SLICE_BYTES);
    do
        r = p->touch(p->mem + off, len_bytes);
    while (r == -EINTR || r == -EAGAIN);
    if (r == -EOPNOTSUPP) {
        touch_by_hand(p->mem + off, len_bytes);
        r = 0;
    }
    if (r < 0) {
        populate_stop(p, r);
        return false;
    }
    __atomic_fetch_add(&p->done_bytes, len_bytes, __ATOMIC_RELAXED);
    return true;
}

static void *populate_thread(void *arg)
{
    while (populate_slice(arg))
        ;
    return NULL;
}

/* Threads of ours take no signals: those are for whoever waits for them. */
static uint32_t threads_start(struct populate *p, pthread_t *threads, uint32_t n)
{
    sigset_t all, old;
    uint32_t started = 0;

    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGSYS);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (started < n && pthread_create(&threads[started], NULL, populate_thread, p) == 0)
        started++;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return started;
}

int memory_populate(void *mem, uint64_t size_bytes, memory_touch_fn touch, uint32_t n_threads, memory_progress progress,
                    void *ctx)
{
    struct populate p = {.mem = mem, .size_bytes = size_bytes, .touch = touch};
    pthread_t threads[POPULATE_THREADS_MAX];
    uint64_t n = MIN(div_round_up(size_bytes, POPULATE_SLICE_BYTES), (uint64_t)n_threads);

    if (progress && !progress(ctx, 0, size_bytes))
        return -ECANCELED;
    uint32_t started = threads_start(&p, threads, n > 1 ? (uint32_t)MIN(n - 1, (uint64_t)POPULATE_THREADS_MAX) : 0);
    while (populate_slice(&p)) {
        if (progress && !progress(ctx, load_relaxed(&p.done_bytes), size_bytes))
            populate_stop(&p, -ECANCELED);
    }
    for (uint32_t i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    if (p.error == 0 && progress)
        (void)progress(ctx, size_bytes, size_bytes);
    return p.error;
}
