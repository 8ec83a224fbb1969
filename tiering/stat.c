/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers for the admin, and the self-check that recounts from the records what is otherwise only kept in step.
 */
#include <errno.h>
#include <stdlib.h>

#include "tiering/core.h"

static struct tiering_writes writes_of(const struct budget *b)
{
    return (struct tiering_writes){
        .day_bytes = budget_day_bytes(b),
        .used_bytes = b->used_bytes,
        .over_bytes = b->over_bytes,
        .dropped = b->dropped,
        .dropped_bytes = b->dropped_bytes,
    };
}

void tiering_pool_stat(const struct tiering *t, uint32_t pool, struct tiering_pool_stat *ret_stat)
{
    const struct tpool *p = &t->pools[pool];
    struct tiering_pool_stat stat = p->stat;

    stat.dram_budget = p->config.dram_bytes;
    stat.dram_chunks = p->arenas[0].total_sectors * SECTOR_BYTES;
    stat.dram_used = p->arenas[0].used_sectors * SECTOR_BYTES;
    stat.dram_slabs = p->arenas[0].slab_sectors * SECTOR_BYTES;
    stat.dram_tail_waste = arena_tail_waste_bytes(&p->arenas[0]);
    stat.cxl_budget = p->config.cxl_bytes;
    stat.cxl_used = p->arenas[1].used_sectors * SECTOR_BYTES;
    stat.nvme_budget = p->config.nvme_bytes;
    stat.nvme_used = 0;
    for (uint32_t i = 0; i < t->n_stores; i++)
        stat.nvme_used += store_pool_used_bytes(t->stores[i].store, pool);
    stat.admitted = p->admitted_bytes;
    stat.writes = writes_of(&p->writes);
    stat.waiting = 0;
    list_for_each (l, &p->room)
        stat.waiting++;
    *ret_stat = stat;
}

void tiering_stat(const struct tiering *t, struct tiering_stat *ret_stat)
{
    struct tiering_stat stat = t->stat;
    struct policy_stat policy;
    struct store_stat store;

    stat.objects = t->records.n_used;
    stat.objects_max = t->records.max;
    stat.leases = t->n_leases;
    stat.leases_max = t->config.max_leases;
    stat.moves = t->n_moves;
    stat.moves_max = t->config.max_moves;
    stat.record_bytes = sizeof(struct record) + sizeof(struct record_hot) + sizeof(struct policy_node);
    stat.index_bytes = record_index_bytes(&t->records);
    stat.lease_bytes = (uint64_t)t->config.max_leases * sizeof(struct lease);
    stat.ghost_bytes = 0;
    for (uint32_t i = 0; i < t->n_pools; i++) {
        for (int c = 0; c < TIERING_CLASSES; c++) {
            t->pools[i].policies[c]->ops->stat(t->pools[i].policies[c], &policy);
            stat.ghost_bytes += policy.ghost_bytes;
        }
    }
    stat.stores = t->n_stores;
    stat.bounced_bytes = 0;
    for (uint32_t i = 0; i < t->n_stores; i++) {
        store_stat(t->stores[i].store, &store);
        stat.bounced_bytes += store.bounced_bytes;
    }
    *ret_stat = stat;
}

void tiering_store_stat(const struct tiering *t, uint32_t store, struct store_stat *ret_stat)
{
    store_stat(t->stores[store].store, ret_stat);
}

void tiering_store_writes(const struct tiering *t, uint32_t store, struct tiering_writes *ret_writes)
{
    *ret_writes = writes_of(&t->stores[store].writes);
}

/* --- Self-check ------------------------------------------------------------------------------------------------------- */

struct recount {
    uint64_t objects, resident, dirty, payload_sectors;
    uint32_t used;
};

static const char *check_record(const struct tiering *t, uint32_t i, struct recount *by_pool)
{
    const struct record *r = record_at(&t->records, i);
    const struct record_hot *hot = &t->records.hot[i];
    struct recount *count = &by_pool[t->spaces[r->space].info.pool];

    if (r->state == RECORD_RESERVED || r->state == RECORD_COMMITTED)
        count->objects++;
    if (r->flags & RECORD_HAS_MEM) {
        const struct arena_chunk *chunk = t->chunk_of[r->mem_region];

        if (!chunk || arena_owner(chunk, r->mem_sector) != i)
            return "a record's memory belongs to another record";
        count->resident++;
        count->payload_sectors += sectors_of(r->size_bytes);
    }
    if (record_is_dirty(r))
        count->dirty += r->size_bytes;
    bool listed = r->state == RECORD_COMMITTED && (r->flags & RECORD_HAS_MEM);
    if (listed != !!(hot->flags & HOT_IN_POLICY))
        return "a record is in its policy exactly when it is committed and in memory";
    if (r->state != RECORD_DEAD) {
        struct tiering_id id;

        record_to_id(r, &id);
        if (record_find(&t->records, &id, record_hash_id(&t->records, &id)) != i)
            return "a record is not in the index";
    } else if (!hot->pins) {
        return "a dead record that nothing pins was not freed";
    }
    return NULL;
}

static const char *check_pool(const struct tiering *t, uint32_t pool, const struct recount *count)
{
    const struct tpool *p = &t->pools[pool];

    if (count->objects != p->stat.objects)
        return "a pool's objects";
    if (count->resident != p->stat.resident)
        return "a pool's resident objects";
    if (count->dirty != p->stat.dirty)
        return "a pool's dirty bytes";
    if (p->stat.leased > p->admitted_bytes)
        return "a pool's leases were not all admitted";
    for (int c = 0; c < TIERING_CLASSES; c++) {
        if (p->policies[c]->ops->check(p->policies[c]) < 0)
            return "a policy's own check";
    }
    return NULL;
}

int tiering_check(const struct tiering *t, const char **ret_what)
{
    struct recount *by_pool = calloc(t->n_pools + 1, sizeof(*by_pool));
    const char *what = NULL;
    uint32_t used = 0;

    if (!by_pool)
        return -ENOMEM;
    for (uint32_t i = 0; i < t->records.high && !what; i++) {
        if (record_at(&t->records, i)->state == RECORD_FREE)
            continue;
        used++;
        what = check_record(t, i, by_pool);
    }
    if (!what && used != t->records.n_used)
        what = "the number of records in use";
    for (uint32_t i = 0; i <= t->n_pools && !what; i++)
        what = check_pool(t, i, &by_pool[i]);
    if (!what)
        what = extent_check(t);
    free(by_pool);
    if (!what)
        return 0;
    *ret_what = what;
    return -EUCLEAN;
}
