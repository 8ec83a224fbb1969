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
#define POINTS_ALL_CYCLES 10000 /* by then each point has fired, but for those that points.c excuses */
#define CALLS_MAX 400           /* of all clients together */
#define LOAD_MS_MAX 1500
#define RECONFIGURE_PERCENT 15
#define STOP_PERCENT 20
#define ORPHAN_PERCENT 20

struct t_plan plan_make(const struct t_place *p, struct t_random *random)
{
    struct t_plan plan = {.n_calls = random_below(random, CALLS_MAX)};

    if (random_percent(random, 75))
        (void)points_choose(p, random, p->is_fresh, &plan.point);
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

void plan_load(struct t_place *p, const struct t_plan *plan, pid_t pids[T_CLIENTS], struct t_random *random)
{
    uint64_t first = count_calls(p), n, orphan_at = random_below(random, plan->n_calls + 1);
    int64_t end = now_ms() + LOAD_MS_MAX;
    bool reloaded = false, orphaned = false;
    int status = 0;

    while ((n = count_calls(p) - first) < plan->n_calls && now_ms() < end && place_daemon_lives(p, &status)) {
        if (plan->reload && !reloaded && n >= plan->n_calls / 3) {
            reloaded = true;
            uint32_t percent = DRAM_PERCENT + (uint32_t)random_below(random, 11);

            /* Less than is in use would be another story: docs/reliability.md, "Not covered". */
            place_configure(p, p->hot ? MAX(percent, p->dram_percent) : percent);
            (void)kill(p->daemon, SIGHUP);
        }
        if (plan->orphan && !orphaned && n >= orphan_at) {
            orphaned = true;
            client_kill(p, pids, (uint32_t)random_below(random, T_CLIENTS));
        }
        pause_ms(1);
    }
    if (!p->daemon)
        place_was_killed(p, status);
}

/* --- A cycle ----------------------------------------------------------------------------------------------------------- */

/* True if it ended in good order: then nothing may be missing. */
static bool end_daemon(struct t_place *p, const struct t_plan *plan, pid_t pids[T_CLIENTS])
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
        place_was_killed(p, status);
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
static bool cycle(struct t_place *p, bool was_clean)
{
    struct t_random random = random_for(p->oracle->seed, p->oracle->life, p->oracle->cycle);
    struct t_plan plan = plan_make(p, &random);
    pid_t pids[T_CLIENTS];

    place_start_daemon(p, plan.point.at[0] ? plan.point.at : NULL);
    if (!place_wait_ready(p) || !check_all(p, !was_clean, false)) {
        int status;

        if (p->daemon && waitpid(p->daemon, &status, 0) == p->daemon)
            place_was_killed(p, status);
        p->daemon = 0;
        p->oracle->counts.deaths_in_recovery++;
        return false;
    }
    p->is_fresh = false;
    clients_start(p, pids, splitmix64(random.state));
    plan_load(p, &plan, pids, &random);
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
    if (p->hot)
        printf("  %llu starts over memory that was left: %llu clients outlived the death, %llu of %llu of cache were "
               "served, "
               "%llu pieces were torn\n",
               (unsigned long long)c->hot_starts, (unsigned long long)c->ridden_out, (unsigned long long)c->hot_served,
               (unsigned long long)c->hot_known, (unsigned long long)c->torn);
    fflush(stdout);
}

static void begin_life(struct t_place *p)
{
    p->oracle->life++;
    place_begin_life(p);
}

static bool life_is_over(const struct t_place *p)
{
    uint32_t cycle = p->oracle->cycle;

    return cycle > 0 && cycle % CYCLES_A_LIFE == 0 && p->oracle->life < cycle / CYCLES_A_LIFE;
}

/* Both return whether the last daemon ended in good order. */
static bool run(struct t_place *p, bool was_clean, uint64_t n, int64_t start)
{
    while (p->oracle->cycle < n) {
        if (life_is_over(p)) {
            begin_life(p);
            was_clean = true;
        }
        was_clean = cycle(p, was_clean);
        if (++p->oracle->cycle % PROGRESS == 0)
            say(p, n, start);
    }
    return was_clean;
}

static bool run_hot(struct t_place *p, bool was_clean, uint64_t n, int64_t start)
{
    struct t_hot hot = {.after_death = !was_clean};

    while (p->oracle->cycle < n) {
        if (life_is_over(p)) {
            hot_end(p, &hot);
            begin_life(p);
            hot.after_death = false;
        }
        hot_cycle(p, &hot);
        if (++p->oracle->cycle % PROGRESS == 0)
            say(p, n, start);
    }
    hot_end(p, &hot);
    return !hot.after_death;
}

int torture_kill(const struct t_options *options)
{
    int64_t start = now_ms();
    struct t_place p = {.disk_bytes = DISK_BYTES, .hot = options->hot};

    place_drop_root();
    place_open(&p, options->dir, options->seed, options->resume);
    printf("seed %llu, in %s\n", (unsigned long long)p.oracle->seed, p.dir);
    bool was_clean = (p.hot ? run_hot : run)(&p, !options->resume, options->n, start);

    place_start_daemon(&p, NULL);
    if (!place_wait_ready(&p) || !check_all(&p, !was_clean, false) || place_stop_daemon(&p) != 0)
        torture_fail("the last daemon does not serve, or does not stop");
    say(&p, options->n, start);
    points_print(&p, stdout, options->list);
    uint32_t n_missed = options->n < POINTS_ALL_CYCLES ? 0 : points_missed(&p, stderr);

    if (!options->keep && n_missed == 0)
        place_remove(&p);
    return n_missed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
