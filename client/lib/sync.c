/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads of the library's own, and waits that the wall clock does not touch. No state; any thread.
 */
#include <signal.h>

#include "client/lib/client.h"

/* With all signals blocked: the program's handlers are not for it. */
int client_thread_start(void *(*run)(void *arg), void *arg, pthread_t *ret_thread)
{
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int r = -pthread_create(ret_thread, NULL, run, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return r;
}

void client_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

void client_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t left_ns)
{
    uint64_t until_ns = client_now_ns() + MIN(left_ns, UINT64_C(1000000000));
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000), .tv_nsec = (long)(until_ns % 1000000000)};

    pthread_cond_timedwait(cond, lock, &until);
}
