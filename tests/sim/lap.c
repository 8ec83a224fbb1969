/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Laps, in half of the runs with the plan policy: for a while one session reads the same blocks in the same order, again and
 * again; all others end before, and hardly do anything. So the policy has an order to learn, or is told it, and tiering
 * something to load ahead of use. Crashes and faults come as ever. Where it is told, two spaces that have a class in common are
 * told an order, too, which nobody keeps to.
 */
#include "tests/sim/sim.h"

#define LAP_MIN 24 /* blocks */
#define LAPS_MIN 6 /* two to learn the order from, and some to follow it */
#define LAP_DRAM_BYTES (2 * MIB)
#define BEGINS_ONE_IN 1000  /* steps */
#define DISTURBED_PERCENT 1 /* of the steps something else is done instead */
#define ACCESSES_MAX 3      /* of a step */
#define WAITS_MAX 2         /* accesses that are waited for, before there is another one */

/* One that is alive. */
static uint32_t lap_session(const struct sim *sim)
{
    uint32_t i = 0;

    while (i < SIM_SESSIONS - 1 && !sim->sessions[i].alive)
        i++;
    return i;
}

/* The memory is for who runs, and there is not enough of it. */
static void others_end(struct sim *sim)
{
    rings_end_clients(sim, false);
    for (uint32_t i = 0; i < SIM_SESSIONS; i++)
        session_end(sim, i);
    session_begin(sim, 0);
    world_set_budget(sim, 0, LAP_DRAM_BYTES, 0);
}

/* The order in which lap_access() goes. */
static void lap_declare(struct sim *sim)
{
    const struct sim_lap *lap = &sim->lap;
    struct tiering_id id = object_piece_id(sim, &sim->objects[lap->objects[0]], 0, 0);
    int r = tiering_plan_begin(sim->tiering, &sim->sessions[0].s, id.space, 0);

    for (uint32_t i = lap->n; i-- > 0 && r == 0;) {
        id = object_piece_id(sim, &sim->objects[lap->objects[i]], 0, 0);
        r = tiering_plan_add(sim->tiering, &id);
    }
    if (r == 0)
        r = tiering_plan_end(sim->tiering);
    if (r != (int)lap->n)
        sim_fail(sim, "a plan of %u blocks was declared: %d", lap->n, r);
    sim->counts->declared++;
}

/* It is given up when it was not kept to for long enough, or goes with the last of its objects; or is told anew. */
static void lap_declare_idly(struct sim *sim, enum sim_space space)
{
    uint32_t end = sim->first[space + 1];
    int n = (int)(end - sim->first[space]),
        r = tiering_plan_begin(sim->tiering, &sim->sessions[0].s, sim->spaces[space].index, 0);

    for (uint32_t i = sim->first[space]; i < end && r == 0; i++) {
        struct tiering_id id = object_piece_id(sim, &sim->objects[i], 0, 0);

        r = tiering_plan_add(sim->tiering, &id);
    }
    if (r == 0)
        r = tiering_plan_end(sim->tiering);
    if (r != n && r != 0)
        sim_fail(sim, "a plan of all %d objects of space %d was declared: %d", n, space, r);
}

static void lap_begin(struct sim *sim)
{
    struct sim_lap *lap = &sim->lap;

    lap->n = 0;
    for (uint32_t i = sim->first[SPACE_CACHE]; i < sim->first[SPACE_CACHE + 1] && lap->n < SIM_LAP_MAX; i++)
        if (sim->objects[i].state == BLOCK_PRESENT)
            lap->objects[lap->n++] = (uint16_t)i;
    if (lap->n < LAP_MIN)
        return;
    others_end(sim);
    lap->left = lap->n * (LAPS_MIN + (uint32_t)sim_below(sim, LAPS_MIN));
    sim->counts->laps++;
    if (lap->left / lap->n % 2) { /* else it is learned */
        lap_declare(sim);
        lap_declare_idly(sim, SPACE_TENSOR_CACHE);
        lap_declare_idly(sim, SPACE_SCRATCH);
    }
    sim_log(sim, "laps of %u blocks begin: %u accesses", lap->n, lap->left);
}

static uint32_t waits_of(const struct sim *sim, uint32_t session)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < SIM_WAITS; i++)
        n += sim->waits[i].used && sim->waits[i].session == session;
    return n;
}

/* Blocks that are gone have no place in the order any more. */
static void lap_access(struct sim *sim, uint32_t session)
{
    struct sim_lap *lap = &sim->lap;
    struct object *o = &sim->objects[lap->objects[--lap->left % lap->n]];
    struct sim_lease *l = lease_any(sim, session);

    if (l)
        lease_finish(sim, l);
    if (o->state == BLOCK_PRESENT || o->state == BLOCK_UNKNOWN)
        ops_acquire(sim, session, o, 0, 0, true);
    if (lap->left == 0)
        world_set_budget(sim, 0, sim->pools[0].dram_bytes, sim->pools[0].cxl_bytes);
}

bool lap_step(struct sim *sim)
{
    if (!sim->lap.may_begin)
        return false;
    if (sim->lap.left == 0 && sim_below(sim, BEGINS_ONE_IN) == 0)
        lap_begin(sim);
    uint32_t session = lap_session(sim);

    if (sim->lap.left == 0 || !sim->sessions[session].alive || sim_percent(sim, DISTURBED_PERCENT))
        return false;
    for (uint64_t n = 1 + sim_below(sim, ACCESSES_MAX);
         n > 0 && sim->lap.left > 0 && waits_of(sim, session) < WAITS_MAX; n--)
        lap_access(sim, session);
    return true;
}
