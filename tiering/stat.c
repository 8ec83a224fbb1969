/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers for the admin, and the self-check that recounts from the records what is otherwise only kept in step.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tiering/core.h"

static uint64_t tier_used_bytes(const struct tpool *p, enum mem_tier tier)
{
    return (p->arenas[tier].used_sectors + p->arenas[tier].closing_used_sectors) * SECTOR_BYTES;
}

static uint64_t pool_nvme_bytes(const struct tiering *t, uint32_t pool)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < t->n_stores; i++)
        bytes += store_pool_used_bytes(t->stores[i].store, pool);
    return bytes;
}

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
    stat.dram_closing = p->arenas[MEM_DRAM].closing_sectors * SECTOR_BYTES;
    stat.dram_chunks = p->arenas[MEM_DRAM].total_sectors * SECTOR_BYTES + stat.dram_closing;
    stat.dram_used = tier_used_bytes(p, MEM_DRAM);
    stat.dram_slabs = p->arenas[MEM_DRAM].slab_sectors * SECTOR_BYTES;
    stat.dram_tail_waste = arena_tail_waste_bytes(&p->arenas[MEM_DRAM]);
    stat.cxl_budget = p->config.cxl_bytes;
    stat.cxl_closing = p->arenas[MEM_CXL].closing_sectors * SECTOR_BYTES;
    stat.cxl_chunks = p->arenas[MEM_CXL].total_sectors * SECTOR_BYTES + stat.cxl_closing;
    stat.cxl_used = tier_used_bytes(p, MEM_CXL);
    stat.dram_missing = shortage_missing_bytes(t, p, MEM_DRAM);
    stat.cxl_missing = shortage_missing_bytes(t, p, MEM_CXL);
    stat.nvme_budget = p->config.nvme_bytes;
    stat.nvme_used = pool_nvme_bytes(t, pool);
    stat.admitted = p->admitted_bytes;
    stat.writes = writes_of(&p->writes);
    stat.waiting = 0;
    list_for_each (l, &p->room)
        stat.waiting++;
    for (int c = 0; c < TIERING_CLASSES; c++) {
        struct policy_stat policy;

        if (p->policies[c]->ops != &policy_plan)
            continue;
        p->policies[c]->ops->stat(p->policies[c], &policy);
        stat.plan_accesses += policy.plan_accesses;
        stat.plans += policy.plans;
        stat.deviations += policy.deviations;
        stat.prefetched_used += policy.prefetched_used;
        stat.prefetched_wasted += policy.prefetched_wasted;
    }
    *ret_stat = stat;
}

void tiering_pool_memory(const struct tiering *t, uint32_t pool, struct tiering_pool_memory *ret_memory)
{
    const struct tpool *p = &t->pools[pool];
    const struct tiering_pool_stat *s = &p->stat;

    *ret_memory = (struct tiering_pool_memory){
        .leased = s->leased,
        .uses = s->hits_dram + s->hits_cxl + s->hits_nvme + s->misses + s->commits,
    };
    for (enum mem_tier tier = MEM_DRAM; tier < MEM_TIERS; tier++) {
        ret_memory->held[tier] = chunk_held_bytes(p, tier);
        ret_memory->used[tier] = tier_used_bytes(p, tier);
        ret_memory->pressure[tier] = p->pressure[tier];
    }
    static_assert((int)TIERING_BUDGET_DRAM == (int)MEM_DRAM && (int)TIERING_BUDGET_CXL == (int)MEM_CXL, "the same");
    ret_memory->held[TIERING_BUDGET_NVME] = ret_memory->used[TIERING_BUDGET_NVME] = pool_nvme_bytes(t, pool);
    list_for_each (l, &p->room)
        ret_memory->waiting++;
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
    stat.record_bytes = sizeof(struct record_object);
    stat.index_bytes = record_index_bytes(&t->records);
    stat.lease_bytes = (uint64_t)t->config.max_leases * sizeof(struct lease);
    stat.ghost_bytes = 0;
    for (uint32_t i = 0; i < t->n_pools; i++) {
        for (int c = 0; c < TIERING_CLASSES; c++) {
            t->pools[i].policies[c]->ops->stat(t->pools[i].policies[c], &policy);
            stat.ghost_bytes += policy.ghost_bytes;
            if (!t->pools[i].cxl_policies[c])
                continue;
            t->pools[i].cxl_policies[c]->ops->stat(t->pools[i].cxl_policies[c], &policy);
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
    uint64_t objects, resident, dirty;
    uint64_t class_sectors[MEM_TIERS][TIERING_CLASSES]; /* in policies */
    uint32_t migrating;
};

static const char *check_record(const struct tiering *t, uint32_t i, struct recount *by_pool)
{
    const struct record *r = record_at(&t->records, i);
    const struct record_hot *hot = &t->records.objects[i].hot;
    struct recount *count = &by_pool[t->spaces[r->space].info.pool];

    if (r->state == RECORD_RESERVED || r->state == RECORD_COMMITTED)
        count->objects++;
    if (r->flags & RECORD_HAS_MEM) {
        const struct arena_chunk *chunk = t->chunk_of[r->mem_region];

        if (!chunk || arena_owner(chunk, r->mem_sector) != i)
            return "a record's memory belongs to another record";
        count->resident++;
        if (hot->flags & HOT_IN_POLICY)
            count->class_sectors[tier_of_mem(t, r)][t->spaces[r->space].info.class_id] += sectors_of(r->size_bytes);
    }
    if (hot->flags & HOT_MIGRATING) {
        count->migrating++;
        if (!hot->pins || hot_writers(hot) || (hot->flags & HOT_SPILLING))
            return "a piece that moves in memory is pinned, not written and not put";
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

/* Sums of the tier are those of its chunks, and serve within the budget. */
static const char *check_memory(const struct tpool *p, enum mem_tier tier)
{
    const struct arena *a = &p->arenas[tier];
    uint64_t open = 0, closing = 0;

    list_for_each (l, &a->chunks) {
        const struct arena_chunk *c = list_entry(l, struct arena_chunk, link);

        *(c->closing ? &closing : &open) += (uint64_t)c->n_frames * FRAME_SECTORS;
    }
    if (open != a->total_sectors || closing != a->closing_sectors)
        return "a tier's sectors";
    if (a->used_sectors > a->total_sectors || a->closing_used_sectors > a->closing_sectors)
        return "a tier's sectors in use";
    if (open * SECTOR_BYTES > p->want_chunks[tier])
        return "more memory serves than the budget has";
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
    if (p->leased_bytes[MEM_DRAM] + p->leased_bytes[MEM_CXL] > p->stat.leased)
        return "a pool's leases in its tiers";
    if (count->migrating != p->migrating)
        return "a pool's migrations";
    for (int c = 0; c < TIERING_CLASSES; c++) {
        if (p->policies[c]->ops->check(p->policies[c]) < 0 ||
            (p->cxl_policies[c] && p->cxl_policies[c]->ops->check(p->cxl_policies[c]) < 0))
            return "a policy's own check";
    }
    if (memcmp(count->class_sectors, p->class_sectors, sizeof(count->class_sectors)) != 0)
        return "what a pool's classes hold in its tiers";
    const char *what = check_memory(p, MEM_DRAM);
    return what ? what : check_memory(p, MEM_CXL);
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
    if (!what)
        what = dma_check(t);
    if (!what)
        what = evacuate_check(t);
    if (!what)
        what = dirty_check(t);
    if (!what)
        what = users_check(t);
    free(by_pool);
    if (!what)
        return 0;
    *ret_what = what;
    return -EUCLEAN;
}
