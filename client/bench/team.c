/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One barrier where all meet before and after a run; between the two, `run` and `arg` are read by all and changed by nobody.
 * It is made for as many as could be started, who wait at a gate until it is.
 */
#include "client/bench/team.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

struct member {
    struct team *team;
    unsigned number;
    pthread_t thread;
};

struct team {
    pthread_barrier_t barrier;
    pthread_mutex_t gate; /* held until it is known how many there are */
    void (*run)(void *arg, unsigned thread);
    void *arg;
    unsigned n_started;
    struct member members[];
};

static void *member_main(void *arg)
{
    const struct member *me = arg;
    struct team *team = me->team;

    pthread_mutex_lock(&team->gate);
    pthread_mutex_unlock(&team->gate);
    for (;;) {
        pthread_barrier_wait(&team->barrier);
        if (!team->run)
            return NULL;
        team->run(team->arg, me->number);
        pthread_barrier_wait(&team->barrier);
    }
}

int team_new(unsigned n_threads, struct team **ret_team)
{
    struct team *team = calloc(1, sizeof(*team) + n_threads * sizeof(team->members[0]));
    int r = 0;

    if (!team)
        return -ENOMEM;
    pthread_mutex_init(&team->gate, NULL);
    pthread_mutex_lock(&team->gate);
    for (unsigned i = 1; r == 0 && i < n_threads; i++) {
        team->members[i] = (struct member){.team = team, .number = i};
        r = -pthread_create(&team->members[i].thread, NULL, member_main, &team->members[i]);
        team->n_started += r == 0;
    }
    pthread_barrier_init(&team->barrier, NULL, team->n_started + 1);
    pthread_mutex_unlock(&team->gate);
    if (r < 0)
        team_free(team);
    else
        *ret_team = team;
    return r;
}

void team_free(struct team *team)
{
    if (!team)
        return;
    team->run = NULL;
    pthread_barrier_wait(&team->barrier);
    for (unsigned i = 1; i <= team->n_started; i++)
        pthread_join(team->members[i].thread, NULL);
    pthread_barrier_destroy(&team->barrier);
    pthread_mutex_destroy(&team->gate);
    free(team);
}

void team_run(struct team *team, void (*run)(void *arg, unsigned thread), void *arg)
{
    team->run = run;
    team->arg = arg;
    pthread_barrier_wait(&team->barrier);
    run(arg, 0);
    pthread_barrier_wait(&team->barrier);
}
