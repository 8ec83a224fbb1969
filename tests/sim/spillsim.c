/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spillsim --seed N | --seeds N [--first N] [--ops N] [--minutes M] [--verbose]
 *
 * Each seed is a run of its own: devices, pools, policies and faults are chosen by it. At the end the counts of what
 * happened are printed; what should happen at times and never did is a failure of the simulator.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/sim/sim.h"

#define CRASHES_MIN 3

static struct sim *running;

/* --- What the others use ------------------------------------------------------------------------------------------------ */

uint64_t sim_random(struct sim *sim)
{
    uint64_t z = (sim->rng += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
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

/* An assertion, or a sanitizer's report: say which seed it was. */
static void on_abort(int signal_number)
{
    (void)signal_number;
    if (running)
        print_where(running);
    _exit(1);
}

void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static void on_death(void)
{
    if (running)
        print_where(running);
}

/* --- One seed ------------------------------------------------------------------------------------------------------------ */

static void step(struct sim *sim)
{
    uint64_t ns = sim_below(sim, 1000000);

    waits_ended(sim);
    ops_client(sim);
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
    if (sim->step % 512 == 0)
        world_check(sim);
    if (sim->errors_on && sim_below(sim, 6000) == 0)
        simdisk_fail_next(sim->disk, (enum io_blk_op)sim_below(sim, 3), -EIO);
}

static void run_a_little(struct sim *sim)
{
    for (uint64_t n = sim_below(sim, 40); n > 0; n--)
        world_run(sim, 1, 1000);
    waits_ended(sim);
}

static uint64_t run_seed(uint64_t seed, uint64_t n_ops, bool verbose, struct sim_counts *counts)
{
    struct sim *sim = calloc(1, sizeof(*sim));
    uint64_t ends[8], n_ends = CRASHES_MIN + 3;

    if (!sim)
        abort();
    running = sim;
    sim->seed = sim->rng = seed;
    sim->n_ops = n_ops;
    sim->verbose = verbose;
    sim->counts = counts;
    sim->now_ns = 1000000000;
    world_make(sim);
    model_make(sim);
    world_open(sim);
    sessions_begin(sim);
    for (uint64_t i = 0; i < n_ends; i++)
        ends[i] = n_ops * i / n_ends + sim_below(sim, n_ops / n_ends) + 1;
    for (sim->step = 1; sim->step <= n_ops; sim->step++) {
        step(sim);
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
        }
    }
    world_stop_clean(sim);
    world_free(sim);
    uint64_t hash = sim->hash;
    running = NULL;
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
    COUNT(gpu_spills, MANY),
    COUNT(gpu_fetches, MANY),
    COUNT(gpu_failures, MANY),
    COUNT(vanished, MANY),
    COUNT(lost_sectors, MANY),
    COUNT(torn_sectors, MANY),
    COUNT(short_counts, MANY),
    COUNT(io_failures, MANY),
    COUNT(restless, 0),
};

static int report(const struct sim_counts *counts, uint64_t n_ops)
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

static int usage(void)
{
    fprintf(stderr, "usage: spillsim --seed N | --seeds N [--first N] [--ops N] [--minutes M] [--verbose]\n");
    return 2;
}

static uint64_t seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"seed", required_argument, NULL, 's'},
                                            {"seeds", required_argument, NULL, 'n'},
                                            {"first", required_argument, NULL, 'f'},
                                            {"ops", required_argument, NULL, 'o'},
                                            {"minutes", required_argument, NULL, 'm'},
                                            {"verbose", no_argument, NULL, 'v'},
                                            {NULL, 0, NULL, 0}};
    uint64_t first = 1, n = 0, ops = 10000, minutes = 0, done = 0;
    bool verbose = false, one = false;
    struct sim_counts counts = {0}, again = {0};
    int c;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 's':
            one = true;
            first = strtoull(optarg, NULL, 0);
            n = 1;
            break;
        case 'n':
            n = strtoull(optarg, NULL, 0);
            break;
        case 'f':
            first = strtoull(optarg, NULL, 0);
            break;
        case 'o':
            ops = strtoull(optarg, NULL, 0);
            break;
        case 'm':
            minutes = strtoull(optarg, NULL, 0);
            break;
        case 'v':
            verbose = true;
            break;
        default:
            return usage();
        }
    }
    if ((n == 0 && minutes == 0) || ops < 100)
        return usage();
    signal(SIGABRT, on_abort);
    signal(SIGSEGV, on_abort);
    if (__sanitizer_set_death_callback)
        __sanitizer_set_death_callback(on_death);
    uint64_t until = seconds() + minutes * 60;
    for (uint64_t seed = first; minutes ? seconds() < until : seed < first + n; seed++, done++) {
        uint64_t hash = run_seed(seed, ops, verbose, &counts);

        if (one || done % 50 == 0) {
            printf("seed %" PRIu64 ": %016" PRIx64 "\n", seed, hash);
            fflush(stdout);
        }
        /* The same seed is the same run: tried with the first one. */
        if (done == 0 && run_seed(seed, ops, false, &again) != hash) {
            fprintf(stderr, "seed %" PRIu64 " gave two different runs\n", seed);
            return 1;
        }
    }
    printf("%" PRIu64 " seeds of %" PRIu64 " operations\n", done, ops);
    return report(&counts, done * ops);
}
