/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pool that was refused memory by every node of a tier. Engine thread only.
 *
 * What was refused is not counted on any more: whatever is admitted must be served from what there is. It is asked for
 * again, less and less often, since others give memory back, and some machines get more as they use it; it is counted
 * on from when the first of it has come.
 *
 *   off ─refused─▶ waiting ─time─▶ asking ─a chunk─▶ growing ─all is there─▶ off
 *                     ▲              │ refused          │ refused
 *                     └──────────────┴──────────────────┘
 *
 * On demand nobody is asked until somebody needs room, and the first chunk ends it.
 */
#include <errno.h>

#include "tiering/core.h"

#define NS_PER_MS UINT64_C(1000000)

uint64_t shortage_budget_bytes(const struct tiering *t, const struct tpool *p, enum mem_tier tier)
{
    uint64_t bytes = tier == MEM_DRAM ? p->config.dram_bytes : t->n_nodes[MEM_CXL] ? p->config.cxl_bytes : 0;

    return bytes / FRAME_BYTES * FRAME_BYTES;
}

/* What is asked for; p->want_chunks is what is counted on. */
uint64_t shortage_goal_bytes(const struct tiering *t, const struct tpool *p, enum mem_tier tier)
{
    return p->shortage[tier].asks ? shortage_budget_bytes(t, p, tier) : p->want_chunks[tier];
}

uint64_t shortage_missing_bytes(const struct tiering *t, const struct tpool *p, enum mem_tier tier)
{
    uint64_t want = shortage_budget_bytes(t, p, tier), have = p->arenas[tier].total_sectors * SECTOR_BYTES;

    return p->shortage[tier].is_on && want > have ? want - have : 0;
}

/* --- It begins, eases, and ends ----------------------------------------------------------------------------- */

static const char *const short_texts[MEM_TIERS] = {
    [MEM_DRAM] = "memory was refused: the pool goes on with less, and asks again; free memory on the node, or lower "
                 "`size` of [tier.dram]",
    [MEM_CXL] =
        "CXL memory was refused: the pool goes on with less, and asks again; free memory on its nodes, or lower "
        "`size` of [tier.cxl]",
};

/* Every node has refused. The first time is worth a line; what comes of the next ones shows in missing_bytes. */
void shortage_begin(struct tiering *t, uint32_t pool, enum mem_tier tier, int status)
{
    struct tpool *p = &t->pools[pool];
    struct shortage *s = &p->shortage[tier];
    uint64_t have = p->arenas[tier].total_sectors * SECTOR_BYTES;

    if (!s->is_on) {
        t->stat.refused_bytes += p->want_chunks[tier] - MIN(have, p->want_chunks[tier]);
        t->config.events->notice(t->config.ctx, short_texts[tier], pool, status);
        s->backoff_ns = MEMORY_RETRY_MS_MIN * NS_PER_MS;
    }
    p->want_chunks[tier] = MIN(have, p->want_chunks[tier]);
    s->is_on = true;
    s->asks = false;
    s->retry_ns = t->now_ns + s->backoff_ns;
    s->backoff_ns = MIN(2 * s->backoff_ns, MEMORY_RETRY_MS_MAX * NS_PER_MS);
    t->next_retry_ns = MIN(t->next_retry_ns, s->retry_ns);
}

/* Some memory came, of a tier that was short of it: the rest of the budget is counted on as at the start. */
void shortage_ease(struct tiering *t, struct tpool *p, enum mem_tier tier)
{
    struct shortage *s = &p->shortage[tier];

    if (!s->is_on)
        return;
    s->asks = false;
    s->retry_ns = UINT64_MAX;
    s->backoff_ns = MEMORY_RETRY_MS_MIN * NS_PER_MS;
    p->want_chunks[tier] = shortage_budget_bytes(t, p, tier);
}

/* The whole budget is there (or what somebody has asked for), or it has become smaller. */
void shortage_end(struct tiering *t, uint32_t pool)
{
    struct tpool *p = &t->pools[pool];

    for (enum mem_tier tier = MEM_DRAM; tier < MEM_TIERS; tier++) {
        struct shortage *s = &p->shortage[tier];
        bool came = t->config.memory_on_demand && s->retry_ns == UINT64_MAX && !s->asks;

        if (!s->is_on || (shortage_missing_bytes(t, p, tier) > 0 && !came))
            continue;
        *s = (struct shortage){.is_on = false};
        t->config.events->notice(t->config.ctx, "no memory is missing any more", pool, 0);
    }
}

/* --- Asking again --------------------------------------------------------------------------------------------------- */

static void shortage_ask(struct tiering *t, uint32_t pool, enum mem_tier tier)
{
    struct tpool *p = &t->pools[pool];
    struct shortage *s = &p->shortage[tier];

    s->asks = true;
    s->retry_ns = UINT64_MAX;
    p->refused_nodes[tier] = 0;
    if (t->config.memory_on_demand) /* by whoever needs it next */
        p->want_chunks[tier] = shortage_budget_bytes(t, p, tier);
    else if (chunk_grow(t, pool, tier) < 0 || !p->asked_chunks[tier])
        shortage_begin(t, pool, tier, -ENOMEM);
}

void shortage_retry(struct tiering *t)
{
    if (t->now_ns < t->next_retry_ns)
        return;
    t->next_retry_ns = UINT64_MAX;
    for (uint32_t i = 0; i < t->n_pools && !t->stopping; i++) {
        for (enum mem_tier tier = MEM_DRAM; tier < MEM_TIERS; tier++) {
            const struct shortage *s = &t->pools[i].shortage[tier];

            if (!s->is_on || s->retry_ns == UINT64_MAX)
                continue;
            if (s->retry_ns <= t->now_ns)
                shortage_ask(t, i, tier);
            else
                t->next_retry_ns = MIN(t->next_retry_ns, s->retry_ns);
        }
    }
}
