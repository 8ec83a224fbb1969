/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What must add up after every step: who has how many leases, and that nothing is leased, admitted or pinned for nobody.
 * Budgets are looked at after every turn of the engine (world.c), and all of tiering's own counts by a recount, at every
 * step of some runs and now and then in the others: it looks at every record.
 */
#include "tests/sim/sim.h"

#define RECOUNT_SEEDS 200 /* one in so many is recounted at every step */
#define RECOUNT_STEPS 256

/* It has got a lease that nobody has looked at yet, or keeps one until the piece has its bytes elsewhere. */
static bool wait_has_lease(const struct sim_wait *w)
{
    if (w->kind == WAIT_COMMIT || w->kind == WAIT_RELEASE)
        return w->used && !w->done;
    return w->used && w->done && w->status == 0 &&
           (w->kind == WAIT_RESERVE || w->kind == WAIT_ACQUIRE || w->kind == WAIT_WRITE);
}

static void sessions_balance(struct sim *sim)
{
    uint32_t n[SIM_SESSIONS] = {0};

    for (uint32_t i = 0; i < SIM_LEASES; i++)
        n[sim->leases[i].session] += sim->leases[i].used;
    for (uint32_t i = 0; i < SIM_WAITS; i++)
        n[sim->waits[i].session] += wait_has_lease(&sim->waits[i]);
    for (uint32_t i = 0; i < SIM_SESSIONS; i++) {
        if (sim->sessions[i].alive && sim->sessions[i].s.n_leases != n[i])
            sim_fail(sim, "session %u has %u leases, and is said to have %u", i, n[i], sim->sessions[i].s.n_leases);
    }
}

static void pools_balance(struct sim *sim)
{
    bool wanted[2] = {false, false};

    for (uint32_t i = 0; i < SIM_LEASES; i++)
        if (sim->leases[i].used)
            wanted[sim->spaces[sim->objects[sim->leases[i].object].space].pool] = true;
    for (uint32_t i = 0; i < SIM_WAITS; i++)
        if (sim->waits[i].used)
            wanted[sim->spaces[sim->objects[sim->waits[i].object].space].pool] = true;
    for (uint32_t i = 0; i < SIM_DMAS; i++)
        if (sim->dmas[i].used)
            wanted[sim->dmas[i].lane] = true;
    for (uint32_t i = 0; i < 2; i++) {
        struct tiering_pool_stat stat;

        if (wanted[i] || rings_want(sim))
            continue;
        tiering_pool_stat(sim->tiering, i, &stat);
        if (stat.leased || stat.admitted)
            sim_fail(sim, "pool %u: %lu bytes are leased and %lu admitted for nobody", i, stat.leased, stat.admitted);
    }
}

void balance_check(struct sim *sim)
{
    sessions_balance(sim);
    pools_balance(sim);
    rings_balance(sim);
    if (sim->step % (sim->seed % RECOUNT_SEEDS == 0 ? 1 : RECOUNT_STEPS) == 0)
        world_check(sim);
}
