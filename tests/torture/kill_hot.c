/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `spilltorture kill --hot`: what is memory outlives the daemon, and so do clients. A start is
 *
 *   hot     over all that was left. Clients that were in a call when the daemon died hear of no error; they rest after it,
 *           and everything that was acknowledged must be there. A daemon that dies while that is checked is followed by
 *           the next, hot again.
 *   cold    nothing is left: clients are killed and the store is emptied before it. What hot starts have made of the device
 *           is checked by the rules of a crash, from the journal since the last cold start. One in eight, after a stop in
 *           good order always, and after HOT_STARTS_MAX at the latest.
 *
 * A death takes clients with it now and then, at the same instant: their sessions' memory is left, and nobody comes back.
 */
#include "tests/torture/torture.h"

#define COLD_PERCENT 6
#define SYNC_PERCENT 25      /* of checks: what hot starts have made of the device is then all that was acknowledged */
#define SYNC_COLD_PERCENT 35 /* right after that */
#define HOT_STARTS_MAX 32
#define TOGETHER_PERCENT 25
#define RESTART_PERCENT 50 /* of stops: clients are in the middle of it, and memory is kept */
#define STOP_CALLS_MAX 100 /* of each of them */

static uint32_t count_living(const pid_t pids[T_CLIENTS])
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < T_CLIENTS; i++)
        n += pids[i] != 0;
    return n;
}

void hot_end(struct t_place *p, struct t_hot *hot)
{
    clients_end(p, hot->pids, false);
    place_forget(p);
    hot->n_starts = 0;
}

/* --- The start ----------------------------------------------------------------------------------------------------------- */

/* What the check demands is up to the last check that got to its end: only since then is memory what it found. */
static bool start(struct t_place *p, struct t_hot *hot, const struct t_plan *plan, bool cold, bool syncs)
{
    if (cold || hot->n_starts == 0) {
        hot_end(p, hot);
        hot->is_checked = false;
        place_configure(p, DRAM_PERCENT);
    } else {
        p->oracle->counts.hot_starts++;
    }
    hot->n_starts++;
    p->check_syncs = syncs;
    place_start_daemon(p, plan->point.at[0] ? plan->point.at : NULL);
    if (!place_wait_ready(p) || !clients_pause(p, hot->pids) || !check_all(p, hot->after_death, hot->is_checked))
        return false;
    hot->is_checked = true;
    p->is_fresh = false;
    return true;
}

/* --- The end ------------------------------------------------------------------------------------------------------------- */

/* SIGTERM. With clients that are in the middle of it memory goes on; else it ends, and the next start is cold. */
static void stop(struct t_place *p, struct t_hot *hot, bool restarts, uint64_t n_calls)
{
    if (restarts)
        clients_limit(p, n_calls);
    else
        clients_end(p, hot->pids, false);
    int status = place_stop_daemon(p);

    if (status != 0) {
        place_was_killed(p, status);
        p->oracle->counts.deaths_at_points++;
        return;
    }
    p->oracle->counts.clean_stops++;
    if (restarts)
        return;
    hot->after_death = false;
    hot->n_starts = 0;
}

static void end(struct t_place *p, struct t_hot *hot, const struct t_plan *plan, struct t_random *random)
{
    bool restarts = random_percent(random, RESTART_PERCENT), together = random_percent(random, TOGETHER_PERCENT);
    int status;

    if (plan->stop && p->daemon && (restarts || clients_pause(p, hot->pids))) {
        stop(p, hot, restarts, random_below(random, STOP_CALLS_MAX));
    } else if (!p->daemon || !place_daemon_lives(p, &status)) {
        p->oracle->counts.deaths_at_points++;
    } else {
        place_kill_daemon(p);
        p->oracle->counts.deaths_from_outside++;
    }
    if (together)
        clients_end(p, hot->pids, false);
    p->oracle->counts.ridden_out += count_living(hot->pids);
}

void hot_cycle(struct t_place *p, struct t_hot *hot)
{
    struct t_random random = random_for(p->oracle->seed, p->oracle->life, p->oracle->cycle);
    struct t_plan plan = plan_make(p, &random);
    bool cold = random_percent(&random, p->check_syncs ? SYNC_COLD_PERCENT : COLD_PERCENT);
    bool starts = start(p, hot, &plan, cold || hot->n_starts >= HOT_STARTS_MAX, random_percent(&random, SYNC_PERCENT));

    hot->after_death = true;
    if (!starts) {
        p->oracle->counts.deaths_in_recovery++;
        return;
    }
    clients_resume(p, hot->pids, splitmix64(random.state));
    plan_load(p, &plan, hot->pids, &random);
    end(p, hot, &plan, &random);
}
