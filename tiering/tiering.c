/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One engine's tiering as a whole: making and freeing it, its stores, spaces and pools, and the tick that drives what
 * nobody waits for. Engine thread only; everything is allocated here, at start.
 */
#include "tiering/tiering.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/atomic.h"
#include "include/base/kill_point.h"
#include "io/checksum.h"
#include "tiering/core.h"

#define SLOW_TICK_NS UINT64_C(100000000)
#define DEFAULT_MAX_MOVES 4096
#define GHOSTS_PER_POLICY_MAX (UINT32_C(1) << 20)
#define CHAIN_GHOSTS_MAX (UINT32_C(1) << 24)

/* --- Making --------------------------------------------------------------------------------------------------------- */

/*
 * Ghosts: as many as there may be residents. A policy that says how few are enough remembers several times the residents,
 * and grows as those do; it is given what it takes for blocks of 64 KiB.
 */
static uint32_t tiering_ghosts(const struct tiering *t, const struct policy_ops *ops, uint64_t memory_bytes)
{
    uint64_t objects = MIN(memory_bytes / (4 * KIB), (uint64_t)t->config.max_objects) + 1, most = GHOSTS_PER_POLICY_MAX;

    if (ops->ghosts_min) {
        objects = MIN(memory_bytes / (16 * KIB), 4 * (uint64_t)t->config.max_objects);
        objects = MAX(objects, (uint64_t)ops->ghosts_min);
        most = CHAIN_GHOSTS_MAX;
    }
    if (t->config.ghosts_max)
        most = MIN(most, (uint64_t)t->config.ghosts_max);
    return (uint32_t)MIN(objects, most);
}

/* CXL memory takes what DRAM's policy let go, in that order: some policies have said all they can by then. */
static const struct policy_ops *tiering_policy_ops(const struct tiering *t, enum mem_tier tier, uint8_t class_id)
{
    const struct policy_ops *ops = t->config.classes[class_id].policy;

    return tier == MEM_CXL && ops->dram_only ? &policy_lru : ops;
}

static int tiering_policies_new(struct tiering *t, uint32_t pool, enum mem_tier tier)
{
    struct tpool *p = &t->pools[pool];
    uint64_t size_bytes = tier == MEM_CXL ? p->config.cxl_bytes : p->config.dram_bytes;

    for (uint8_t c = 0; c < TIERING_CLASSES; c++) {
        const struct policy_ops *ops = tiering_policy_ops(t, tier, c);
        struct policy_config config = {.nodes = record_nodes(&t->records),
                                       .n_nodes = t->config.max_objects,
                                       .capacity_sectors = size_bytes / SECTOR_BYTES,
                                       .max_ghosts = tiering_ghosts(t, ops, size_bytes),
                                       .find = chain_find,
                                       .owner = plan_owner,
                                       .ctx = &p->seats[c]};

        p->seats[c] = (struct policy_seat){.tiering = t, .pool = pool, .class_id = c};
        int r = ops->new (&config, tier == MEM_CXL ? &p->cxl_policies[c] : &p->policies[c]);

        if (r < 0)
            return r;
    }
    return 0;
}

static void tiering_policies_free(struct policy **policies)
{
    for (int c = 0; c < TIERING_CLASSES; c++) {
        if (policies[c])
            policies[c]->ops->free(policies[c]);
    }
}

static int tiering_pools_new(struct tiering *t)
{
    t->next_retry_ns = UINT64_MAX;
    t->pools = calloc(t->n_pools + 1, sizeof(*t->pools));
    if (!t->pools)
        return -ENOMEM;
    for (uint32_t i = 0; i <= t->n_pools; i++) {
        struct tpool *p = &t->pools[i];

        list_init(&p->room);
        list_init(&p->spills);
        list_init(&p->migrations);
        p->stuck_object[MEM_DRAM] = p->stuck_object[MEM_CXL] = RECORD_NONE;
        p->promote_bytes = PROMOTE_BYTES_MAX;
        if (i < t->n_pools)
            p->config = t->config.pools[i];
        else /* spaces of pools that are no longer configured: on devices only */
            p->config = (struct tiering_pool_config){.nvme_bytes = UINT64_MAX, .weight = 1};
        budget_set(&p->writes, p->config.write_budget_bytes, p->config.write_budget_ns, t->now_ns);
        if (arena_init(&p->arenas[MEM_DRAM]) < 0 || arena_init(&p->arenas[MEM_CXL]) < 0)
            return -ENOMEM;
        int r = tiering_policies_new(t, i, MEM_DRAM);
        if (r == 0 && t->n_nodes[MEM_CXL])
            r = tiering_policies_new(t, i, MEM_CXL);
        if (r < 0)
            return r;
    }
    return 0;
}

static int tiering_tables_new(struct tiering *t)
{
    t->spaces = calloc(SPACES_MAX, sizeof(*t->spaces));
    t->leases = t->truth.leases;
    t->moves = calloc(t->config.max_moves, sizeof(*t->moves));
    t->groups = calloc(GROUPS_MAX, sizeof(*t->groups));
    t->pins = calloc(TIMED_PINS_MAX, sizeof(*t->pins));
    t->extents = calloc(1, extent_table_bytes(t));
    t->uses = calloc(UINT64_C(2) * COUNTED_OBJECTS_MAX, sizeof(*t->uses));
    t->shadows = calloc(UINT64_C(2) * SHADOWS_MAX, sizeof(*t->shadows));
    t->sync_refs = calloc(SYNC_REFS_MAX, sizeof(*t->sync_refs));
    t->chain.refs = calloc(LIST_ITEMS_MAX, sizeof(*t->chain.refs));
    t->plan.hashes = calloc(PLAN_ACCESSES_MAX, sizeof(*t->plan.hashes));
    if (!t->chain.refs || !t->plan.hashes || !t->spaces || !t->moves || !t->groups || !t->pins || !t->extents ||
        !t->uses || !t->shadows || !t->sync_refs)
        return -ENOMEM;
    if (users_new(t) < 0)
        return -ENOMEM;
    t->lease_free = RECORD_NONE;
    for (uint32_t i = t->config.max_leases; i-- > 0 && !t->warm;) {
        t->leases[i] = (struct lease){.generation = 1, .next = t->lease_free};
        t->lease_free = i;
    }
    for (uint32_t i = 0; i < t->config.max_moves; i++)
        list_push_tail(&t->moves_free, &t->moves[i].link);
    for (uint32_t i = 0; i < SYNC_REFS_MAX; i++)
        list_push_tail(&t->sync_refs_free, &t->sync_refs[i].link);
    return 0;
}

/* Every kind of memory and the nodes that have it; an engine's own DRAM comes first. */
static void tiering_nodes(struct tiering *t)
{
    const struct tiering_config *c = &t->config;

    t->nodes[MEM_DRAM][t->n_nodes[MEM_DRAM]++] = c->node;
    for (uint32_t i = 0; i < c->n_dram_nodes && t->n_nodes[MEM_DRAM] < NODES_MAX; i++) {
        if (c->dram_nodes[i] != c->node)
            t->nodes[MEM_DRAM][t->n_nodes[MEM_DRAM]++] = c->dram_nodes[i];
    }
    for (uint32_t i = 0; i < MIN(c->n_cxl_nodes, (uint32_t)NODES_MAX); i++) {
        t->nodes[MEM_CXL][i] = c->cxl_nodes[i];
        t->cxl_weights[i] = c->cxl_weights ? MAX(c->cxl_weights[i], UINT64_C(1)) : 1;
    }
    t->n_nodes[MEM_CXL] = MIN(c->n_cxl_nodes, (uint32_t)NODES_MAX);
    t->config.dram_nodes = t->config.cxl_nodes = NULL;
    t->config.cxl_weights = NULL;
}

/* What was left contradicts itself: nothing of it is believed. */
static int tiering_new_cold(struct tiering *t, struct tiering **ret_tiering)
{
    struct tiering_config config = t->config;

    for (uint32_t i = 0; i < CHUNKS_MAX; i++) {
        if (t->chunk_of[i])
            chunk_give_back(t, t->chunk_of[i]);
    }
    tiering_free(t);
    memset(config.records, 0, tiering_records_bytes(config.max_objects, config.max_leases));
    config.survived = false;
    int r = tiering_new(&config, ret_tiering);
    if (r == 0)
        (*ret_tiering)->distrust = "it contradicts itself: records or leases are damaged";
    return r;
}

int tiering_new(const struct tiering_config *config, struct tiering **ret_tiering)
{
    struct tiering *t = calloc(1, sizeof(*t));
    void *mem;

    if (!t)
        return -ENOMEM;
    t->config = *config;
    t->n_pools = config->n_pools;
    tiering_nodes(t);
    t->recovering = true;
    t->was_clean = true;
    t->forgets = RECORD_NONE;
    t->piece_bytes = config->piece_bytes ? config->piece_bytes : PIECE_BYTES_MAX;
    if (!t->config.max_moves)
        t->config.max_moves = DEFAULT_MAX_MOVES;
    t->relocations.n_sectors = RELOCATION_BYTES / SECTOR_BYTES;
    list_init(&t->moves_free);
    list_init(&t->orphans);
    list_init(&t->chunk_requests);
    list_init(&t->publishing);
    list_init(&t->publish_waiting);
    list_init(&t->syncs);
    list_init(&t->sync_waiting);
    list_init(&t->sync_refs_free);
    int r = warm_new(t);
    record_table_init(&t->records, t->truth.records, config->max_objects, t->config.hash_seed);
    t->records.touch = truth_touch;
    t->records.touch_ctx = t;
    truth_touch_all(t);
    if (r == 0)
        r = tiering_tables_new(t);
    if (r == 0)
        r = tiering_pools_new(t);
    if (r == 0)
        r = config->backend->ops->bounce_alloc(config->backend, t->piece_bytes, &t->zeros, &mem);
    if (r == 0)
        r = config->backend->ops->bounce_alloc(config->backend, RELOCATION_BYTES, &t->relocations.buf, &mem);
    if (r == 0 && t->warm)
        r = warm_open(t);
    if (r == -EUCLEAN && t->warm)
        return tiering_new_cold(t, ret_tiering);
    if (r < 0) {
        tiering_free(t);
        return r;
    }
    *ret_tiering = t;
    return 0;
}

void tiering_free(struct tiering *t)
{
    if (!t)
        return;
    for (uint32_t i = 0; i < t->n_stores; i++) {
        store_free(t->stores[i].store);
        free(t->stores[i].segments);
    }
    for (uint32_t i = 0; t->pools && i <= t->n_pools; i++) {
        tiering_policies_free(t->pools[i].policies);
        tiering_policies_free(t->pools[i].cxl_policies);
        arena_deinit(&t->pools[i].arenas[MEM_DRAM]);
        arena_deinit(&t->pools[i].arenas[MEM_CXL]);
    }
    list_for_each_safe (l, &t->orphans) {
        struct session_arena *sa = list_entry(l, struct session_arena, link);

        arena_deinit(&sa->arena);
        free(sa);
    }
    list_for_each_safe (l, &t->chunk_requests)
        free(list_entry(l, struct chunk_request, link));
    free(t->pools);
    free(t->spaces);
    free(t->moves);
    free(t->groups);
    free(t->pins);
    free(t->extents);
    free(t->uses);
    free(t->shadows);
    free(t->sync_refs);
    free(t->chain.refs);
    free(t->plan.hashes);
    users_free(t);
    warm_free(t);
    free(t);
}

/* --- Stores --------------------------------------------------------------------------------------------------------- */

/* Records name stores by their number: it must be the same one as before. */
static bool tiering_store_is_another(struct tiering *t, uint8_t number, uint16_t partition,
                                     const struct store_identity *identity)
{
    struct truth_store store = {.uuid = {identity->format.uuid[0], identity->format.uuid[1]}, .partition = partition};
    const struct truth_header *h = t->truth.header;

    if (t->warm && number < h->n_stores)
        return memcmp(&h->stores[number], &store, sizeof(store)) != 0;
    t->truth.header->stores[number] = store;
    return false;
}

int tiering_store_add(struct tiering *t, uint16_t dev, uint16_t partition, uint64_t device_bytes, const char **ret_why)
{
    uint8_t number = (uint8_t)t->n_stores;
    struct tstore *ts = &t->stores[number];
    struct store_config config = {.backend = t->config.backend,
                                  .dev = dev,
                                  .partition = partition,
                                  .device_bytes = device_bytes,
                                  .events = &recover_events,
                                  .ctx = ts,
                                  .n_pools = t->n_pools + 1};

    if (t->refused < 0) {
        *ret_why = "a device before it was refused";
        return t->refused;
    }
    if (t->n_stores == DEVICES_MAX) {
        *ret_why = "more devices than DEVICES_MAX";
        return -ENOSPC;
    }
    struct store_identity identity;
    int r = store_identify(t->config.backend, dev, device_bytes, &identity, ret_why);
    if (r < 0)
        return r;
    if (tiering_store_is_another(t, number, partition, &identity)) {
        *ret_why = "it is not the device that was there before";
        return -ESTALE;
    }
    /* No partition has more segments than fit on the device. */
    *ts = (struct tstore){.tiering = t,
                          .dev = dev,
                          .number = number,
                          .weight = DEFAULT_WEIGHT,
                          .n_segments = (uint32_t)(device_bytes / identity.format.segment_bytes)};
    t->was_clean = t->was_clean && identity.clean == identity.format.partitions;
    if (identity.format.segment_bytes < t->piece_bytes) {
        if (t->n_spaces) {
            *ret_why = "its segments are smaller than a piece on the devices before it";
            return -EINVAL;
        }
        t->piece_bytes = identity.format.segment_bytes;
    }
    ts->segments = malloc(ts->n_segments * sizeof(*ts->segments));
    if (!ts->segments) {
        *ret_why = "out of memory";
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < ts->n_segments; i++)
        ts->segments[i] = (struct tsegment){RECORD_NONE, RECORD_NONE, SHADOW_NONE};
    t->n_stores++;
    kill_point("start.store");
    truth_touch_ahead(t);
    r = store_open(&config, &ts->store, ret_why);
    truth_touch_ahead_end(t);
    if (r < 0) {
        t->refused = r;
        t->n_stores--;
        free(ts->segments);
        ts->segments = NULL;
    }
    return r;
}

/* Each pool's budget on devices is spread over the stores by their size. */
static void tiering_store_budgets(struct tiering *t, uint32_t pool)
{
    uint64_t total = 0;
    struct store_stat stat;

    for (uint32_t i = 0; i < t->n_stores; i++) {
        store_stat(t->stores[i].store, &stat);
        total += stat.segments;
    }
    for (uint32_t i = 0; i < t->n_stores; i++) {
        store_stat(t->stores[i].store, &stat);
        double share = (double)stat.segments / (double)total;
        uint64_t budget = t->pools[pool].config.nvme_bytes;

        if (budget != UINT64_MAX)
            budget = (uint64_t)((double)budget * share);
        store_pool_budget(t->stores[i].store, pool, budget);
    }
}

static int tiering_start_cold(struct tiering *t)
{
    int r = recover_finish(t);

    if (r == 0)
        r = recover_adopt(t);
    if (r < 0)
        return r;
    kill_point("start.adopted");
    recover_prune(t);
    return 0;
}

/* From here on whoever comes after us can go on with what is there. */
static void truth_is_whole(struct tiering *t)
{
    struct truth_header *h = t->truth.header;

    h->layout = TRUTH_LAYOUT;
    h->max_objects = t->config.max_objects;
    h->max_leases = t->config.max_leases;
    h->piece_bytes = t->piece_bytes;
    h->hash_seed = t->config.hash_seed;
    h->n_stores = t->n_stores;
    fence_compiler();
    h->magic = TRUTH_MAGIC;
}

int tiering_start(struct tiering *t)
{
    int r = t->refused;

    if (r == 0)
        r = t->warm ? reconcile(t) : tiering_start_cold(t);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i <= t->n_pools; i++)
        tiering_store_budgets(t, i);
    kill_point("start.chunks");
    r = chunk_start(t);
    if (r < 0)
        return r;
    if (t->warm)
        warm_end(t);
    truth_is_whole(t);
    return 0;
}

bool tiering_ready(const struct tiering *t, uint64_t *ret_have_bytes, uint64_t *ret_want_bytes)
{
    bool is_there = true; /* as much as could be had */

    *ret_have_bytes = *ret_want_bytes = 0;
    for (uint32_t i = 0; i < t->n_pools; i++) {
        for (int a = 0; a < 2; a++) {
            const struct arena *arena = &t->pools[i].arenas[a];
            uint64_t have = arena->total_sectors * SECTOR_BYTES;

            *ret_have_bytes += have;
            *ret_want_bytes += t->pools[i].want_chunks[a];
            /* What is being given back comes first, and may have to wait for leases that came back. */
            is_there &=
                t->pools[i].shortage[a].is_on || arena->closing_sectors > 0 || have >= t->pools[i].want_chunks[a];
        }
    }
    return t->config.memory_on_demand || is_there;
}

/* --- Spaces --------------------------------------------------------------------------------------------------------- */

uint64_t tiering_space_id(const char *pool, const uint8_t *digest)
{
    uint8_t bytes[NAME_BYTES_MAX + 1 + 32] = {0};

    /* NOLINTNEXTLINE(bugprone-not-null-terminated-result): the bytes are zeroed, and hashed as bytes */
    memcpy(bytes, pool, strnlen(pool, NAME_BYTES_MAX));
    memcpy(bytes + NAME_BYTES_MAX + 1, digest, 32);
    return checksum_bytes(bytes, sizeof(bytes), 0);
}

int tiering_space_open(struct tiering *t, const struct tiering_space_spec *spec, struct tiering_space_info *ret_info)
{
    const char *pool = t->pools[spec->pool].config.name;
    uint64_t id = tiering_space_id(pool, spec->digest);
    uint8_t durability =
        spec->durability ? (uint8_t)(spec->durability - 1) : t->config.classes[spec->class_id].durability;

    for (uint32_t i = 0; i < t->n_spaces; i++) {
        const struct tiering_space_info *info = &t->spaces[i].info;

        if (info->id != id)
            continue;
        /* Another digest with the same id would be a hash collision: refused like any other difference. */
        if (info->pool != spec->pool || memcmp(info->digest, spec->digest, sizeof(info->digest)) != 0 ||
            info->item_bytes != spec->item_bytes || info->class_id != spec->class_id || info->durability != durability)
            return -EINVAL;
        *ret_info = *info;
        return 0;
    }
    if (spec->must_exist)
        return -ENOENT;
    if (t->n_spaces == SPACES_MAX)
        return -ENOSPC;
    struct space *space = &t->spaces[t->n_spaces];
    *space = (struct space){.info = {.id = id,
                                     .item_bytes = spec->item_bytes,
                                     .index = t->n_spaces,
                                     .pool = spec->pool,
                                     .piece_bytes = t->piece_bytes,
                                     .class_id = spec->class_id,
                                     .durability = durability},
                            .dirty = DIRTY_INIT,
                            .home = STORE_NONE};
    memcpy(space->info.digest, spec->digest, sizeof(space->info.digest));
    memcpy(space->pool_name, pool, strlen(pool) + 1);
    kill_point("space.new");
    truth_space_set(t, t->n_spaces);
    t->n_spaces++;
    *ret_info = space->info;
    return 0;
}

bool tiering_space_at(const struct tiering *t, uint32_t index, struct tiering_space_info *ret_info)
{
    if (index >= t->n_spaces)
        return false;
    *ret_info = t->spaces[index].info;
    return true;
}

/* True if the budgets of memory have changed. */
static bool pool_set_budgets(struct tiering *t, uint32_t pool, const uint64_t bytes[TIERING_BUDGETS])
{
    struct tiering_pool_config *config = &t->pools[pool].config;

    if (config->nvme_bytes != bytes[TIERING_BUDGET_NVME]) {
        config->nvme_bytes = bytes[TIERING_BUDGET_NVME];
        if (t->n_stores)
            tiering_store_budgets(t, pool);
    }
    if (config->dram_bytes == bytes[TIERING_BUDGET_DRAM] && config->cxl_bytes == bytes[TIERING_BUDGET_CXL])
        return false;
    config->dram_bytes = bytes[TIERING_BUDGET_DRAM];
    config->cxl_bytes = bytes[TIERING_BUDGET_CXL];
    return true;
}

void tiering_pool_update(struct tiering *t, uint32_t pool, const struct tiering_pool_config *config)
{
    struct tpool *p = &t->pools[pool];

    p->config.weight = config->weight;
    p->config.max_leases_percent = config->max_leases_percent;
    p->config.user_leases_percent = config->user_leases_percent;
    p->config.session_bytes = config->session_bytes;
    p->config.write_budget_bytes = config->write_budget_bytes;
    p->config.write_budget_ns = config->write_budget_ns;
    p->config.prefetch_bytes = config->prefetch_bytes;
    budget_set(&p->writes, config->write_budget_bytes, config->write_budget_ns, t->now_ns);
    (void)pool_set_budgets(t, pool,
                           (uint64_t[TIERING_BUDGETS]){[TIERING_BUDGET_DRAM] = config->dram_bytes,
                                                       [TIERING_BUDGET_CXL] = config->cxl_bytes,
                                                       [TIERING_BUDGET_NVME] = config->nvme_bytes});
    memset(p->shortage, 0, sizeof(p->shortage));
    chunk_budget(t, pool); /* whether it has changed or not: what was refused is asked for again */
}

void tiering_pool_budget(struct tiering *t, uint32_t pool, const uint64_t bytes[TIERING_BUDGETS])
{
    if (pool_set_budgets(t, pool, bytes))
        chunk_budget(t, pool);
}

void tiering_store_update(struct tiering *t, uint32_t store, const struct tiering_store_config *config)
{
    struct tstore *ts = &t->stores[store];

    assert(store < t->n_stores && config->weight > 0);
    ts->weight = config->weight;
    budget_set(&ts->writes, config->write_budget_bytes, config->write_budget_ns, t->now_ns);
}

void tiering_update(struct tiering *t, uint32_t clean_percent, const uint32_t class_weights[static TIERING_CLASSES])
{
    t->config.clean_percent = clean_percent;
    for (uint32_t i = 0; i < TIERING_CLASSES; i++)
        t->config.classes[i].weight = class_weights[i];
}

void tiering_owner_end(struct tiering *t, uint64_t owner)
{
    for (uint32_t i = 0; i < t->records.high; i++) {
        const struct record *r = record_at(&t->records, i);

        if (r->state == RECORD_COMMITTED && r->owner == (uint32_t)owner && durability_of(t, r) == STORE_SCRATCH)
            object_kill_all(t, i);
    }
}

/* --- Time ----------------------------------------------------------------------------------------------------------- */

uint64_t tiering_tick(struct tiering *t, uint64_t now_ns)
{
    uint64_t next = UINT64_MAX;

    t->now_ns = now_ns;
    shortage_retry(t);
    if (t->kicked || now_ns >= t->next_slow_ns) {
        t->kicked = false;
        t->closing = false;
        for (uint32_t i = 0; i <= t->n_pools; i++) {
            if (!list_is_empty(&t->pools[i].room))
                room_serve(t, i);
            t->closing |= chunk_step(t, i);
            migrate_promote(t, i);
        }
        sync_step(t);
        relocate_step(t);
        for (uint32_t i = 0; i < t->n_stores; i++)
            evacuate_step(t, &t->stores[i]);
        room_orphans(t);
    }
    for (uint32_t i = 0; i < t->n_pools && !t->drain.active; i++)
        room_clean_ahead(t, i);
    for (uint32_t i = 0; i < t->n_pools && !t->drain.active; i++)
        prefetch_go_on(t, i);
    if (now_ns >= t->next_slow_ns) {
        timed_pins_expire(t);
        groups_expire(t);
        for (uint32_t i = 0; i < t->n_pools; i++)
            t->pools[i].promote_bytes = PROMOTE_BYTES_MAX;
        t->next_slow_ns = now_ns + SLOW_TICK_NS;
    }
    for (uint32_t i = 0; i < t->n_stores; i++)
        next = MIN(next, store_tick(t->stores[i].store, now_ns));
    place_charge_logs(t);
    if (t->kicked)
        return 0;
    if (t->next_retry_ns != UINT64_MAX) /* shortage_retry() has left only what is to come */
        next = MIN(next, t->next_retry_ns - now_ns);
    return t->n_pins || t->n_groups || t->n_moves || t->closing ? MIN(next, SLOW_TICK_NS) : next;
}

void tiering_stop(struct tiering *t)
{
    t->stopping = true;
    kill_point("stop.begin");
    for (uint32_t i = 0; i <= t->n_pools; i++) {
        while (!list_is_empty(&t->pools[i].room)) /* prefetches: whoever else waited has been cancelled */
            move_fail(list_first_entry(&t->pools[i].room, struct move, link), -ECANCELED);
    }
    sync_stop(t);
    for (uint32_t i = 0; i < t->n_stores; i++)
        store_stop(t->stores[i].store);
}

bool tiering_idle(const struct tiering *t)
{
    for (uint32_t i = 0; i < t->n_stores; i++) {
        if (!store_is_idle(t->stores[i].store))
            return false;
    }
    return t->n_moves == 0 && t->n_dmas == 0 && list_is_empty(&t->chunk_requests) && list_is_empty(&t->syncs);
}

int tiering_close_clean(struct tiering *t)
{
    int first = 0;

    evacuate_finish(t);
    for (uint32_t i = 0; i < t->n_stores; i++) {
        int r = store_close_clean(t->stores[i].store);

        if (r < 0 && first == 0)
            first = r;
    }
    kill_point("stop.closed");
    return first;
}
