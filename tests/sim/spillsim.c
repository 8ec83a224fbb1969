/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One seed is one run: devices, pools, policies and faults are chosen by it. At the end the counts of what happened are
 * printed; what should happen at times and never did is a failure of the simulator.
 */
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "include/base/mix.h"
#include "tests/sim/sim.h"

#define CRASHES_MIN 3
#define ENDS_MAX 24
#define HARSH_FROM UINT64_C(1000000000) /* seeds */
#define CROWDED_FROM UINT64_C(2000000000)
#define ORDERLY_FROM UINT64_C(3000000000)
#define HOT_CRASHES 8
#define HOT_CRASHES_CROWDED 40
#define CROWD 3         /* objects in which most operations meet */
#define CROWD_STEPS 256 /* and so long */
#define HOT_STEPS 40

struct sim *sim_running;
static struct sim_progress alone;
struct sim_progress *sim_progress = &alone;

/* --- What the others use ------------------------------------------------------------------------------------------------ */

uint64_t sim_random(struct sim *sim)
{
    return splitmix64_next(&sim->rng);
}

uint64_t sim_below(struct sim *sim, uint64_t n)
{
    return (uint64_t)(((unsigned __int128)sim_random(sim) * n) >> 64);
}

void sim_event(struct sim *sim, uint64_t a, uint64_t b)
{
    sim->hash = (sim->hash ^ a) * UINT64_C(0x9fb21c651e98df25);
    sim->hash = ((sim->hash << 23 | sim->hash >> 41) ^ b) * UINT64_C(0x9e3779b97f4a7c15);
}

static void print_where(const struct sim *sim)
{
    fprintf(stderr, "seed %" PRIu64 " step %" PRIu64 " of %" PRIu64 " hash %016" PRIx64 "\n", sim->seed, sim->step,
            sim->n_ops, sim->hash);
}

void sim_fail(struct sim *sim, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fflush(stdout);
    fprintf(stderr, "FAILED: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    print_where(sim);
    _exit(1);
}

void sim_log(struct sim *sim, const char *format, ...)
{
    va_list args;

    if (!sim->verbose)
        return;
    printf("%6" PRIu64 " ", sim->step);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
}

uint32_t sim_pick(struct sim *sim, uint32_t n)
{
    if (!sim->crowded || sim_percent(sim, 10))
        return (uint32_t)sim_below(sim, n);
    return (uint32_t)((sim->step / CROWD_STEPS * CROWD + sim_below(sim, CROWD)) % n);
}

/* An assertion, or a sanitizer's report: say which seed it was. */
static void on_abort(int signal_number)
{
    (void)signal_number;
    if (sim_running)
        print_where(sim_running);
    _exit(1);
}

static void on_too_long(int signal_number)
{
    (void)signal_number;
    fprintf(stderr, "FAILED: it does not come to an end\n");
    if (sim_running)
        print_where(sim_running);
    _exit(1);
}

void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static void on_death(void)
{
    if (sim_running)
        print_where(sim_running);
}

void sim_catch_signals(void)
{
    signal(SIGABRT, on_abort);
    signal(SIGSEGV, on_abort);
    signal(SIGVTALRM, on_too_long);
    if (__sanitizer_set_death_callback)
        __sanitizer_set_death_callback(on_death);
}

/* --- One seed ------------------------------------------------------------------------------------------------------------ */

static void step(struct sim *sim)
{
    uint64_t ns = sim_below(sim, 1000000);

    waits_ended(sim);
    if (!lap_step(sim)) {
        ops_client(sim);
        rings_step(sim);
    }
    sim->counts->ops++;
    if (sim_below(sim, sim->slow ? 100 : 400) == 0)
        sim->slow = !sim->slow;
    if (sim_below(sim, 200) == 0)
        ns = sim_below(sim, 300000000);
    if (sim_below(sim, 2000) == 0)
        ns = UINT64_C(2500000000);
    world_run(sim, (uint32_t)sim_below(sim, sim->slow ? 3 : 20), ns);
    if (sim->budgets_on && sim_below(sim, 300) == 0)
        world_change_budget(sim);
    waits_ended(sim);
    if (sim->step % 16 == 0)
        waits_expire(sim);
    balance_check(sim);
    faults_step(sim);
}

static void run_a_little(struct sim *sim)
{
    for (uint64_t n = sim_below(sim, 40); n > 0; n--)
        world_run(sim, 1, 1000);
    waits_ended(sim);
}

/* Most points lie in a few of them. */
static void some_steps(struct sim *sim)
{
    for (int i = 0; i < HOT_STEPS; i++)
        step(sim);
}

/* What was left is all that the next process has, and all that it leaves. */
static void end_again(struct sim *sim)
{
    if (sim_percent(sim, 70))
        world_stop_clean(sim);
    else
        world_crash(sim, sim_percent(sim, 50));
}

/* Clients are served while bytes are written back; then what is left is written, unless memory goes over at once. */
static void stop_hot(struct sim *sim)
{
    bool drains = sim_percent(sim, 70);

    for (uint64_t n = drains ? sim_below(sim, 40) : 0; n > 0 && !tiering_drain(sim->tiering); n--)
        step(sim);
    world_stop_hot(sim, drains);
}

/* At its end, or somewhere inside. */
static void hot_step(struct sim *sim)
{
    if (sim->orderly && sim_percent(sim, 50)) {
        stop_hot(sim);
        return;
    }
    bool inside = sim_percent(sim, 60) && hot_dies_in(sim, 1 + sim_below(sim, 200), some_steps);

    world_hot_crash(sim, inside);
}

uint64_t sim_run_seed(const struct sim_run *run, struct sim_counts *counts)
{
    struct sim *sim = calloc(1, sizeof(*sim));
    uint64_t ends[ENDS_MAX], n_ends, n_ops = run->n_ops, hot[HOT_CRASHES_CROWDED], n_hot;

    if (!sim)
        abort();
    sim_running = sim;
    *sim_progress = (struct sim_progress){.seed = run->seed};
    sim->seed = sim->rng = run->seed;
    sim->orderly = run->seed >= ORDERLY_FROM; /* of which a third are harsh, too, and a third crowded */
    sim->harsh = sim->orderly ? run->seed % 3 == 1 : run->seed >= HARSH_FROM && run->seed < CROWDED_FROM;
    sim->crowded = sim->orderly ? run->seed % 3 == 2 : run->seed >= CROWDED_FROM;
    n_ends = sim->harsh || sim->crowded ? ENDS_MAX : CRASHES_MIN + 3;
    n_hot = sim->crowded ? HOT_CRASHES_CROWDED : HOT_CRASHES;
    sim->n_ops = n_ops;
    sim->verbose = run->verbose;
    sim->counts = counts;
    sim->now_ns = 1000000000;
    points_begin(run->seed);
    world_make(sim);
    model_make(sim);
    rings_make(sim);
    world_open(sim);
    sessions_begin(sim);
    for (uint64_t i = 0; i < n_ends; i++)
        ends[i] = n_ops * i / n_ends + sim_below(sim, n_ops / n_ends) + 1;
    for (uint64_t i = 0; i < n_hot; i++)
        hot[i] = 1 + sim_below(sim, n_ops);
    for (sim->step = 1; sim->step <= MIN(n_ops, run->until); sim->step++) {
        sim_progress->step = sim->step;
        step(sim);
        for (uint64_t i = 0; i < n_hot; i++) {
            if (hot[i] != sim->step)
                continue;
            hot_step(sim);
            if (sim->orderly && sim_percent(sim, 15))
                end_again(sim);
        }
        for (uint64_t i = 0; i < n_ends; i++) {
            if (ends[i] != sim->step)
                continue;
            if (sim_percent(sim, 60)) {
                /* In the middle of a SYNC, and at times just before its end. */
                ops_sync_tensors(sim);
                run_a_little(sim);
                if (sim_percent(sim, 30))
                    ops_delete_tensor(sim);
                run_a_little(sim);
            }
            if (i % 3 == 2)
                world_stop_clean(sim);
            else
                world_crash(sim, i < 4 || sim_percent(sim, 50));
            if (sim->orderly && sim_percent(sim, 50))
                end_again(sim);
        }
    }
    world_stop_clean(sim);
    world_free(sim);
    uint64_t hash = sim->hash;
    sim_running = NULL;
    free(sim);
    return hash;
}

/* --- All of them ----------------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    size_t offset;
    uint64_t must; /* operations after which it must have happened; 0: it need not */
} counted[] = {
#define MANY 500000
#define VERY_MANY 20000000 /* a SYNC that a crash found done and nobody had heard of: one in some hundred seeds */
#define COUNT(field, must)                                                                                             \
    {                                                                                                                  \
#field, offsetof(struct sim_counts, field), must                                                               \
    }
    COUNT(ops, MANY),
    COUNT(crashes, MANY),
    COUNT(kills, MANY),
    COUNT(clean_stops, MANY),
    COUNT(failed_recoveries, MANY),
    COUNT(flips, MANY),
    COUNT(flips_detected, MANY),
    COUNT(evictions, MANY),
    COUNT(drops, MANY),
    COUNT(spills, MANY),
    COUNT(loads, MANY),
    COUNT(commits, MANY),
    COUNT(reclaims, MANY),
    COUNT(checkpoints, MANY),
    COUNT(cancels, MANY),
    COUNT(timeouts, MANY),
    COUNT(session_deaths, MANY),
    COUNT(hits, MANY),
    COUNT(bytes_verified, MANY),
    COUNT(syncs, MANY),
    COUNT(syncs_failed, MANY),
    COUNT(sync_lost, MANY),
    COUNT(parts_completed, MANY),
    COUNT(parts_expired, MANY),
    COUNT(limits, MANY),
    COUNT(reverts, MANY),
    COUNT(torn, MANY),
    COUNT(cache_found, MANY),
    COUNT(durable_found, MANY),
    COUNT(tensors_checked, MANY),
    COUNT(half_syncs_new, VERY_MANY),
    COUNT(half_syncs_old, MANY),
    COUNT(store_failures, MANY),
    COUNT(io_errors, MANY),
    COUNT(arena_gets, MANY),
    COUNT(arena_puts, MANY),
    COUNT(pins, MANY),
    COUNT(counted, MANY),
    COUNT(published, MANY),
    COUNT(copied, MANY),
    COUNT(bounced, MANY),
    COUNT(demotions, MANY),
    COUNT(promotions, MANY),
    COUNT(evacuations, MANY),
    COUNT(migrated, MANY),
    COUNT(budgets, MANY),
    COUNT(given_back, MANY),
    COUNT(laps, VERY_MANY),
    COUNT(declared, VERY_MANY),
    COUNT(prefetched, VERY_MANY),
    COUNT(prefetched_used, VERY_MANY),
    COUNT(prefetched_wasted, 0),
    COUNT(gpu_spills, MANY),
    COUNT(gpu_fetches, MANY),
    COUNT(gpu_failures, MANY),
    COUNT(hot_crashes, MANY),
    COUNT(hot_inside, MANY),
    COUNT(hot_in_recovery, MANY),
    COUNT(hot_found, MANY),
    COUNT(hot_leases, MANY),
    COUNT(hot_ended, MANY),
    COUNT(hot_retries, MANY),
    COUNT(hot_redone, MANY),
    COUNT(hot_forgotten, MANY),
    COUNT(hot_stops, 0),
    COUNT(hot_left, 0),
    COUNT(vanished, MANY),
    COUNT(lost_sectors, MANY),
    COUNT(torn_sectors, MANY),
    COUNT(short_counts, MANY),
    COUNT(io_failures, MANY),
    COUNT(restless, 0),
    COUNT(dead_devices, MANY),
    COUNT(flipped_writes, VERY_MANY),
    COUNT(misdirected_writes, VERY_MANY),
    COUNT(lost_writes, VERY_MANY),
    COUNT(late_writes, MANY),
    COUNT(refused_chunks, MANY),
    COUNT(ring_calls, MANY),
    COUNT(ring_hits, MANY),
    COUNT(ring_commits, MANY),
    COUNT(ring_deletes, MANY),
    COUNT(ring_syncs, MANY),
    COUNT(ring_plans, VERY_MANY),
    COUNT(client_deaths, MANY),
    COUNT(broken, MANY),
    COUNT(cold, MANY),
};

void sim_counts_add(struct sim_counts *to, const struct sim_counts *counts)
{
    for (size_t i = 0; i < ARRAY_LEN(counted); i++) {
        uint64_t a, b;

        memcpy(&a, (const char *)to + counted[i].offset, sizeof(a));
        memcpy(&b, (const char *)counts + counted[i].offset, sizeof(b));
        a += b;
        memcpy((char *)to + counted[i].offset, &a, sizeof(a));
    }
}

int sim_report(const struct sim_counts *counts, uint64_t n_ops)
{
    int status = 0;

    for (size_t i = 0; i < ARRAY_LEN(counted); i++) {
        uint64_t n;

        memcpy(&n, (const char *)counts + counted[i].offset, sizeof(n));
        printf("%-18s %12" PRIu64 "%s", counted[i].name, n, i % 3 == 2 ? "\n" : "   ");
        if (counted[i].must && n_ops >= counted[i].must && n == 0) {
            printf("\nnever happened: %s\n", counted[i].name);
            status = 1;
        }
    }
    printf("\n");
    return status;
}
