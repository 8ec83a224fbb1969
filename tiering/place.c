/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which device takes a piece, and what writing costs. Engine thread only.
 *
 * New data goes to the stores in proportion to their weights, by smooth weighted round robin over bytes: with each piece
 * every store that could take it earns its weight times the size, the richest takes it and pays for all. It depends on
 * nothing but the order of the pieces. Failed stores are passed over; so are those that have just said that they are
 * full, as long as there is another. A durable set must be atomic, which takes one log: a durable space has one store
 * as its home, chosen by weight once.
 *
 * Budgets of written bytes (of a device's wear, of a pool's use of it) hold for `cache` pieces, which may be dropped
 * instead. Everything else is written whatever it costs, counted as over the budget, and paid off by cache pieces later.
 */
#include "tiering/core.h"

static bool store_allows(struct tiering *t, struct tstore *ts, bool is_cache)
{
    return !ts->failed && (!is_cache || budget_allows(&ts->writes, t->now_ns));
}

/* The stores that may take it: a mask. */
static uint32_t place_candidates(struct tiering *t, bool is_cache)
{
    uint32_t all = 0, with_room = 0;

    static_assert(DEVICES_MAX <= 32, "a bit each");
    for (uint32_t i = 0; i < t->n_stores; i++) {
        struct tstore *ts = &t->stores[i];

        if (!store_allows(t, ts, is_cache))
            continue;
        all |= UINT32_C(1) << i;
        if (!ts->room_wanted)
            with_room |= UINT32_C(1) << i;
    }
    return with_room ? with_room : all;
}

static uint8_t place_by_turn(struct tiering *t, uint32_t candidates, int64_t sectors)
{
    uint8_t best = STORE_NONE;
    int64_t total = 0;

    for (uint32_t i = 0; i < t->n_stores; i++) {
        struct tstore *ts = &t->stores[i];

        if (!(candidates >> i & 1))
            continue;
        ts->turn += ts->weight * sectors;
        total += ts->weight;
        if (best == STORE_NONE || ts->turn > t->stores[best].turn)
            best = (uint8_t)i;
    }
    if (best != STORE_NONE)
        t->stores[best].turn -= total * sectors;
    return best;
}

/* By its name, so that spaces spread by weight without anybody counting them. */
static uint8_t place_home(struct tiering *t, uint64_t space_id)
{
    uint32_t candidates = place_candidates(t, false);
    uint64_t total = 0, at;

    for (uint32_t i = 0; i < t->n_stores; i++)
        total += candidates >> i & 1 ? t->stores[i].weight : 0;
    if (total == 0)
        return STORE_NONE;
    at = space_id % total;
    for (uint32_t i = 0; i < t->n_stores; i++) {
        uint64_t weight = candidates >> i & 1 ? t->stores[i].weight : 0;

        if (at < weight)
            return (uint8_t)i;
        at -= weight;
    }
    return STORE_NONE;
}

uint8_t store_pick(struct tiering *t, const struct record *r)
{
    struct space *space = space_of(t, r);
    bool is_cache = space->info.durability == STORE_CACHE;

    if (space->info.durability == STORE_DURABLE) {
        if (space->home == STORE_NONE)
            space->home = place_home(t, space->info.id);
        return space->home != STORE_NONE && t->stores[space->home].failed ? STORE_NONE : space->home;
    }
    if (is_cache && !budget_allows(&t->pools[space->info.pool].writes, t->now_ns))
        return STORE_NONE;
    return place_by_turn(t, place_candidates(t, is_cache), sectors_of(r->size_bytes));
}

void place_charge(struct tiering *t, uint32_t pool, uint8_t store, uint32_t size_bytes)
{
    uint64_t bytes = sectors_of(size_bytes) * (uint64_t)SECTOR_BYTES;

    budget_charge(&t->pools[pool].writes, bytes, t->now_ns);
    budget_charge(&t->stores[store].writes, bytes, t->now_ns);
}

void place_charge_logs(struct tiering *t)
{
    for (uint32_t i = 0; i < t->n_stores; i++) {
        struct tstore *ts = &t->stores[i];
        uint64_t written = store_written_log_bytes(ts->store);

        if (written == ts->log_charged_bytes)
            continue;
        budget_charge(&ts->writes, written - ts->log_charged_bytes, t->now_ns);
        ts->log_charged_bytes = written;
    }
}

uint32_t place_limit(const struct tiering *t, uint8_t store, uint32_t pool)
{
    if (store == STORE_NONE || t->stores[store].failed)
        return TIERING_LIMIT_DEVICE_FAILED;
    switch (store_lacks(t->stores[store].store, pool)) {
    case STORE_LACKS_BUDGET:
        return TIERING_LIMIT_POOL_NVME;
    case STORE_LACKS_SEGMENTS:
        return TIERING_LIMIT_DEVICE_BYTES;
    case STORE_LACKS_LOG:
        return TIERING_LIMIT_DEVICE_LOG;
    default:
        return TIERING_LIMIT_NONE;
    }
}

uint32_t tiering_room_limit(const struct tiering *t, uint32_t pool)
{
    uint32_t stuck = t->pools[pool].stuck;

    return stuck == TIERING_LIMIT_NONE ? TIERING_LIMIT_POOL_DRAM : stuck;
}

void place_dropped(struct tiering *t, const struct record *r)
{
    struct budget *why = &pool_of(t, r)->writes;

    if (budget_allows(why, t->now_ns)) {
        why = NULL;
        for (uint32_t i = 0; i < t->n_stores; i++) {
            struct tstore *ts = &t->stores[i];

            if (store_allows(t, ts, true))
                return; /* something else was in the way */
            if (!ts->failed && !why)
                why = &ts->writes;
        }
    }
    if (!why)
        return;
    why->dropped++;
    why->dropped_bytes += r->size_bytes;
}
