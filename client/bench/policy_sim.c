/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns what a replay needs beside the trace: dense numbers for its blocks, which are the objects, and who is resident. All
 * memory is there before the clock starts. Residency is kept as the daemon keeps it, so the policy decides about order
 * alone; a block that it bypasses takes a place until the next one comes, here as there. The one file of spillbench that
 * sees the daemon's side, and of that the policies' interface alone: what is simulated must be what is shipped. One thread.
 */
#include "client/bench/policy_sim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/bench/optimum.h"
#include "client/bench/payload.h"
#include "include/base/cleanup.h"
#include "tiering/policy.h"

#define SECTORS 16 /* of a block: 64 KiB */
#define BLOCKS_MAX (UINT32_C(1) << 30)
#define SEED 0x901c
#define GHOSTS_PER_RESIDENT 4 /* of policies that say how few are enough; as the daemon gives them for 64 KiB */

struct policy_sim {
    const struct trace *trace; /* borrowed */
    uint32_t n;                /* blocks */
    uint32_t *refs;            /* blocks, in the order of trace->ids */
    uint64_t *hashes;          /* of each block */
    uint32_t *by_hash;         /* block + 1, by the lower half of its hash; 0: none */
    uint32_t by_hash_mask;
    bool *resident; /* of each block */
    struct policy_node *nodes;
    struct policy_ref *request; /* room for the longest */
};

/* ── blocks ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

static int by_id(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

/* Numbers the blocks in the order of their ids. */
static int blocks_number(struct policy_sim *s)
{
    const struct trace *t = s->trace;
    cleanup_free uint64_t *ids = malloc((t->n_ids + 1) * sizeof(*ids));

    if (!ids)
        return -ENOMEM;
    if (t->n_ids > 0)
        memcpy(ids, t->ids, t->n_ids * sizeof(*ids));
    qsort(ids, t->n_ids, sizeof(*ids), by_id);
    for (uint64_t i = 0; i < t->n_ids; i++)
        if (i == 0 || ids[i] != ids[s->n - 1])
            ids[s->n++] = ids[i];
    for (uint64_t i = 0; i < t->n_ids; i++) {
        const uint64_t *at = bsearch(&t->ids[i], ids, s->n, sizeof(*ids), by_id);

        s->refs[i] = (uint32_t)(at - ids);
    }
    for (uint32_t block = 0; block < s->n; block++)
        s->hashes[block] = payload_mix(ids[block], SEED);
    return 0;
}

static void blocks_index(struct policy_sim *s)
{
    for (uint32_t block = 0; block < s->n; block++) {
        uint32_t i = (uint32_t)s->hashes[block] & s->by_hash_mask;

        while (s->by_hash[i] != 0)
            i = (i + 1) & s->by_hash_mask;
        s->by_hash[i] = block + 1;
    }
}

int policy_sim_new(const struct trace *trace, struct policy_sim **ret_sim)
{
    struct policy_sim *s;
    uint64_t slots = 2;

    if (trace->n_ids > BLOCKS_MAX)
        return -E2BIG;
    while (slots < 2 * trace->n_distinct)
        slots *= 2;
    s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->trace = trace;
    s->by_hash_mask = (uint32_t)(slots - 1);
    s->refs = calloc(trace->n_ids + 1, sizeof(*s->refs));
    s->hashes = calloc(trace->n_distinct + 1, sizeof(*s->hashes));
    s->by_hash = calloc(slots, sizeof(*s->by_hash));
    s->resident = calloc(trace->n_distinct + 1, sizeof(*s->resident));
    s->nodes = calloc(trace->n_distinct + 1, sizeof(*s->nodes));
    s->request = calloc((size_t)trace->longest + 1, sizeof(*s->request));
    int r = s->refs && s->hashes && s->by_hash && s->resident && s->nodes && s->request ? 0 : -ENOMEM;
    if (r == 0)
        r = blocks_number(s);
    if (r < 0) {
        policy_sim_free(s);
        return r;
    }
    assert(s->n == trace->n_distinct);
    blocks_index(s);
    *ret_sim = s;
    return 0;
}

void policy_sim_free(struct policy_sim *s)
{
    if (!s)
        return;
    free(s->refs);
    free(s->hashes);
    free(s->by_hash);
    free(s->resident);
    free(s->nodes);
    free(s->request);
    free(s);
}

/* ── replay ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

struct replay {
    struct policy_sim *sim;
    const struct policy_ops *ops;
    struct policy *policy;
    struct policy_chain open;
    uint32_t capacity, n_resident;
    uint32_t newest; /* came in last, and has had no hit since; POLICY_NONE: none */
    struct policy_sim_result result;
};

static uint32_t resident_find(void *ctx, uint32_t hash_low)
{
    const struct policy_sim *s = ctx;

    for (uint32_t i = hash_low & s->by_hash_mask; s->by_hash[i] != 0; i = (i + 1) & s->by_hash_mask) {
        uint32_t block = s->by_hash[i] - 1;

        if ((uint32_t)s->hashes[block] == hash_low && s->resident[block])
            return block;
    }
    return POLICY_NONE;
}

static enum policy_pin never_pinned(void *ctx, uint32_t obj)
{
    (void)ctx;
    (void)obj;
    return POLICY_FREE;
}

static void request_name(struct replay *rp, const uint32_t *blocks, uint32_t n)
{
    struct policy_sim *s = rp->sim;

    for (uint32_t i = 0; i < n; i++)
        s->request[i] =
            (struct policy_ref){.hash = s->hashes[blocks[i]], .obj = s->resident[blocks[i]] ? blocks[i] : POLICY_NONE};
    rp->ops->chain(rp->policy, &rp->open, s->request, n, POLICY_NAMED);
}

static void evict_one(struct replay *rp, uint64_t incoming)
{
    uint32_t victim = rp->ops->victim(rp->policy, incoming, never_pinned, NULL);

    assert(victim != POLICY_NONE); /* something is resident, and nothing is pinned */
    rp->ops->evict(rp->policy, victim, rp->sim->hashes[victim], SECTORS);
    rp->sim->resident[victim] = false;
    rp->n_resident--;
    rp->result.kept -= victim == rp->newest;
}

static void refer(struct replay *rp, uint32_t block)
{
    struct policy_sim *s = rp->sim;
    uint64_t hash = s->hashes[block];

    if (s->resident[block]) {
        rp->ops->hit(rp->policy, block);
        rp->result.hits++;
        if (block == rp->newest)
            rp->newest = POLICY_NONE;
        return;
    }
    rp->ops->miss(rp->policy, 0, hash, SECTORS);
    while (rp->n_resident >= rp->capacity)
        evict_one(rp, hash);
    rp->ops->insert(rp->policy, block, hash, SECTORS);
    s->resident[block] = true;
    rp->n_resident++;
    rp->newest = block;
    rp->result.misses++;
    rp->result.kept++;
}

static uint64_t cpu_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void replay_all(struct replay *rp)
{
    const struct trace *t = rp->sim->trace;
    uint64_t start_ns = cpu_ns();

    for (uint64_t i = 0; i < t->n_requests; i++) {
        const uint32_t *blocks = rp->sim->refs + t->requests[i].first;
        uint32_t n = t->requests[i].n;

        if (rp->ops->chain)
            request_name(rp, blocks, n);
        for (uint32_t k = 0; k < n; k++)
            refer(rp, blocks[k]);
    }
    rp->result.cpu_ns = cpu_ns() - start_ns;
}

int policy_sim_run(struct policy_sim *s, const char *policy, uint32_t capacity, struct policy_sim_result *ret_result)
{
    struct replay rp = {.sim = s, .ops = policy_by_name(policy), .capacity = capacity, .newest = POLICY_NONE};

    if (!rp.ops || capacity == 0 || capacity > BLOCKS_MAX / GHOSTS_PER_RESIDENT)
        return -EINVAL;
    memset(s->nodes, 0, ((size_t)s->n + 1) * sizeof(*s->nodes));
    memset(s->resident, 0, ((size_t)s->n + 1) * sizeof(*s->resident));
    struct policy_config config = {
        .nodes = POLICY_NODES(s->nodes),
        .n_nodes = s->n,
        .capacity_sectors = (uint64_t)capacity * SECTORS,
        .max_ghosts = rp.ops->ghosts_min ? MAX(capacity * GHOSTS_PER_RESIDENT, rp.ops->ghosts_min) : capacity,
        .find = resident_find,
        .ctx = s,
    };
    int r = rp.ops->new (&config, &rp.policy);
    if (r < 0)
        return r;
    replay_all(&rp);
    r = rp.ops->check(rp.policy);
    rp.ops->free(rp.policy);
    if (r == 0)
        *ret_result = rp.result;
    return r;
}

const char *const *policy_sim_names(void)
{
    return policy_names();
}

int policy_sim_optimum(const struct policy_sim *s, uint32_t capacity, uint64_t *ret_hits)
{
    return optimum_hits(s->refs, s->trace->n_ids, s->n, capacity, ret_hits);
}
