/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `spilltorture kill`: a daemon is started with a plan for its end, checked against the oracle, loaded by several
 * clients, and ended: at the n-th passing of a kill point (which may be one of its recovery, or come up while it is
 * checked), or from outside at any instant. Each death is a cycle, and the start after it the recovery that is checked.
 *
 * Now and then it is told to reload, with another budget of memory, or to stop in good order; then all that was
 * acknowledged must be there. After CYCLES_A_LIFE deaths a device begins anew, in another shape.
 *
 * The seed decides plans and loads, so a cycle is repeated as far as a real process can be.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "include/base/atomic.h"
#include "tests/torture/torture.h"

#define DISK_BYTES (256 * MIB)
#define CYCLES_A_LIFE 250
#define PROGRESS 50
#define CALLS_MAX 400 /* of all clients together */
#define LOAD_MS_MAX 1500
#define RECONFIGURE_PERCENT 15
#define STOP_PERCENT 20
#define ORPHAN_PERCENT 20

struct plan {
    struct t_point point; /* empty: from outside */
    uint64_t n_calls;     /* of clients, so that a slow machine does as much; then it is ended from outside */
    bool reload, stop;
    bool orphan; /* a client dies before */
};

static struct plan plan_make(const struct t_place *p, struct t_random *random, bool is_fresh)
{
    struct plan plan = {.n_calls = random_below(random, CALLS_MAX)};

    if (random_percent(random, 75))
        (void)points_choose(p, random, is_fresh, &plan.point);
    plan.reload = random_percent(random, RECONFIGURE_PERCENT) || plan.point.needs == POINT_NEEDS_RELOAD;
    plan.stop = random_percent(random, STOP_PERCENT) || plan.point.needs == POINT_NEEDS_STOP;
    plan.orphan = random_percent(random, ORPHAN_PERCENT) || plan.point.needs == POINT_NEEDS_ORPHAN;
    if (plan.point.is_rare && plan.point.needs != POINT_NEEDS_STOP)
        plan.n_calls += CALLS_MAX;
    return plan;
}

/* --- The load ---------------------------------------------------------------------------------------------------------- */

static uint64_t count_calls(const struct t_place *p)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < T_CLIENTS; i++)
        n += load_relaxed(&p->oracle->clients[i].n_ops);
    return n;
}

static uint64_t count_full(const struct t_place *p)
{
    uint64_t n = p->oracle->counts.full;

    for (uint32_t i = 0; i < T_CLIENTS; i++)
        n += p->oracle->clients[i].n_full;
    return n;
}

/* Until it has done what it should, or the daemon is gone, or it takes too long. */
static void load(struct t_place *p, const struct plan *plan, pid_t pids[T_CLIENTS], struct t_random *random)
{
    uint64_t first = count_calls(p), n, orphan_at = random_below(random, plan->n_calls + 1);
    int64_t end = now_ms() + LOAD_MS_MAX;
    bool reloaded = false, orphaned = false;
    int status = 0;

    while ((n = count_calls(p) - first) < plan->n_calls && now_ms() < end && place_daemon_lives(p, &status)) {
        if (plan->reload && !reloaded && n >= plan->n_calls / 3) {
            reloaded = true;
            place_configure(p, 60 + (uint32_t)random_below(random, 11)); /* never less: docs/reliability.md */
            (void)kill(p->daemon, SIGHUP);
        }
        if (plan->orphan && !orphaned && n >= orphan_at) {
            orphaned = true;
            client_kill(&pids[random_below(random, T_CLIENTS)]);
        }
        pause_ms(1);
    }
    if (!p->daemon && (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL))
        torture_fail("the daemon ended by itself: status %x, see %s", (unsigned)status, p->log);
}

/* --- A cycle ----------------------------------------------------------------------------------------------------------- */

/* True if it ended in good order: then nothing may be missing. */
static bool end_daemon(struct t_place *p, const struct plan *plan, pid_t pids[T_CLIENTS])
{
    struct t_counts *counts = &p->oracle->counts;
    bool gently = plan->stop && p->daemon;
    int status;

    if (gently)
        clients_end(p, pids, true);
    if (!p->daemon || !place_daemon_lives(p, &status)) {
        counts->deaths_at_points++;
    } else if (gently) {
        status = place_stop_daemon(p);
        if (status == 0) {
            counts->clean_stops++;
            return true;
        }
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
            torture_fail("the daemon stops with status %x: see %s", (unsigned)status, p->log);
        counts->deaths_at_points++;
    } else {
        place_kill_daemon(p);
        counts->deaths_from_outside++;
    }
    if (!gently)
        clients_end(p, pids, false);
    return false;
}

/* Returns whether the daemon ended in good order. */
static bool cycle(struct t_place *p, bool was_clean, bool hot)
{
    struct t_random random = random_for(p->oracle->seed, p->oracle->life, p->oracle->cycle);
    struct plan plan = plan_make(p, &random, p->is_fresh);
    pid_t pids[T_CLIENTS];

    place_start_daemon(p, plan.point.at[0] ? plan.point.at : NULL);
    if (!place_wait_ready(p) || !check_all(p, !was_clean, hot)) {
        int status;

        if (p->daemon &&
            (waitpid(p->daemon, &status, 0) != p->daemon || !WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL))
            torture_fail("the daemon ended by itself while it was checked: see %s", p->log);
        p->daemon = 0;
        p->oracle->counts.deaths_in_recovery++;
        return false;
    }
    p->is_fresh = false;
    clients_start(p, pids, splitmix64(random.state));
    load(p, &plan, pids, &random);
    return end_daemon(p, &plan, pids);
}

static void say(const struct t_place *p, uint64_t n, int64_t start_ms)
{
    const struct t_counts *c = &p->oracle->counts;
    uint32_t n_points, fired = points_fired(p, &n_points);

    printf("%u of %llu cycles in %lld s: %llu deaths at points, %llu from outside, %llu in recovery, %llu clean stops; "
           "%u of %u points fired; %llu calls (%llu found no room), %llu objects and %llu sets checked; cache served "
           "after a death: %llu of "
           "%llu\n",
           p->oracle->cycle, (unsigned long long)n, (long long)(now_ms() - start_ms) / 1000,
           (unsigned long long)c->deaths_at_points, (unsigned long long)c->deaths_from_outside,
           (unsigned long long)c->deaths_in_recovery, (unsigned long long)c->clean_stops, fired, n_points,
           (unsigned long long)(c->calls + count_calls(p)), (unsigned long long)count_full(p),
           (unsigned long long)c->objects_checked, (unsigned long long)c->sets_checked,
           (unsigned long long)c->cache_served, (unsigned long long)c->cache_known);
    fflush(stdout);
}

int torture_kill(const struct t_options *options)
{
    int64_t start = now_ms();
    bool was_clean = true;
    struct t_place p = {.disk_bytes = DISK_BYTES};

    place_drop_root();
    place_open(&p, options->dir, options->seed, options->resume);
    printf("seed %llu, in %s\n", (unsigned long long)p.oracle->seed, p.dir);
    if (options->resume)
        was_clean = false;
    while (p.oracle->cycle < options->n) {
        if (p.oracle->cycle > 0 && p.oracle->cycle % CYCLES_A_LIFE == 0 &&
            p.oracle->life < p.oracle->cycle / CYCLES_A_LIFE) {
            p.oracle->life++;
            place_begin_life(&p);
            was_clean = true;
        }
        was_clean = cycle(&p, was_clean, options->hot);
        p.oracle->cycle++;
        if (p.oracle->cycle % PROGRESS == 0)
            say(&p, options->n, start);
    }
    place_start_daemon(&p, NULL);
    if (!place_wait_ready(&p) || !check_all(&p, !was_clean, options->hot) || place_stop_daemon(&p) != 0)
        torture_fail("the last daemon does not serve, or does not stop");
    say(&p, options->n, start);
    points_print(&p, stdout, options->list);
    if (!options->keep)
        place_remove(&p);
    return EXIT_SUCCESS;
}
