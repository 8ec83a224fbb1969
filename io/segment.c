/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segments: states, lists, budgets, and the choice of what to empty. Belongs to one store.
 *
 * Invariants: a segment is in exactly the list of its state, and in the bucket of its live sectors while SEALED; the
 * counts of its pool and of the table follow from the states. All of it changes in segment_set_state() and
 * segment_live_add/sub(), which take the segment out of its place, change it and put it back.
 *
 * Links are indices: 32 bytes a segment, 2 MiB for a terabyte. Victims come from buckets, not from a search: what is
 * nearly dead goes first, and among those that are alike the one that was sealed (or last changed) the longest ago.
 */
#include "io/segment.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/kill_point.h"
#include "include/base/point.h"

#define NONE STORE_SEGMENT_NONE
#define UNKNOWN (NONE - 1) /* to be looked for when it is wanted */
#define RESERVE_PERCENT 7
#define RESERVE_MIN 2

static_assert(sizeof(struct segment) == 32, "held for every segment of every device");

int segment_table_init(struct segment_table *t, const struct geometry *g, uint32_t n_pools)
{
    *t = (struct segment_table){
        .n = g->n_segments,
        .n_pools = n_pools,
        .segment_sectors = g->segment_sectors,
        .segment_bytes = g->segment_bytes,
        .slots = g->slots,
        .reserve = (uint32_t)MAX((uint64_t)g->n_segments * RESERVE_PERCENT / 100, (uint64_t)RESERVE_MIN),
    };
    t->segments = calloc(t->n, sizeof(*t->segments));
    t->pools = calloc(n_pools, sizeof(*t->pools));
    t->sums = calloc((size_t)t->n * t->slots, sizeof(*t->sums)); /* pages that are never touched cost nothing */
    if (!t->segments || !t->pools || !t->sums) {
        segment_table_deinit(t);
        return -ENOMEM;
    }
    for (int s = 0; s < SEGMENT_STATES; s++)
        t->list[s] = (struct segment_list){NONE, NONE};
    for (uint32_t p = 0; p < n_pools; p++)
        for (int d = 0; d < 2; d++)
            for (int b = 0; b < SEGMENT_BUCKETS; b++)
                t->pools[p].bucket[d][b] = (struct segment_list){NONE, NONE};
    for (uint32_t p = 0; p < n_pools; p++)
        t->pools[p].roomiest[0] = t->pools[p].roomiest[1] = NONE;
    t->count[SEGMENT_FREE] = t->n;
    for (uint32_t i = 0; i < t->n; i++) {
        t->segments[i].prev = i > 0 ? i - 1 : NONE;
        t->segments[i].next = i + 1 < t->n ? i + 1 : NONE;
    }
    t->list[SEGMENT_FREE] = (struct segment_list){0, t->n - 1};
    return 0;
}

void segment_table_deinit(struct segment_table *t)
{
    free(t->segments);
    free(t->pools);
    free(t->sums);
    t->segments = NULL;
    t->pools = NULL;
    t->sums = NULL;
}

/* --- Places --- */

static void list_push(struct segment_table *t, struct segment_list *l, uint32_t i)
{
    struct segment *s = &t->segments[i];

    s->prev = l->last;
    s->next = NONE;
    if (l->last != NONE)
        t->segments[l->last].next = i;
    else
        l->first = i;
    l->last = i;
}

static void list_remove(struct segment_table *t, struct segment_list *l, uint32_t i)
{
    struct segment *s = &t->segments[i];

    if (s->prev != NONE)
        t->segments[s->prev].next = s->next;
    else
        l->first = s->next;
    if (s->next != NONE)
        t->segments[s->next].prev = s->prev;
    else
        l->last = s->prev;
    s->prev = s->next = NONE;
}

/*
 * What copying the segment would free: only what has died in it. Sectors in which no piece was ever put do not count: as
 * many would stay empty in the segment that takes the copies, and then the copying would never end.
 */
static uint32_t dead_sectors(const struct segment *s)
{
    return (uint32_t)s->placed_sectors - s->live_sectors;
}

static uint8_t bucket_of(const struct segment_table *t, const struct segment *s)
{
    uint32_t of = s->durability == STORE_CACHE ? MAX(s->placed_sectors, (uint16_t)1) : t->segment_sectors;
    uint32_t kept = s->durability == STORE_CACHE ? s->live_sectors : t->segment_sectors - dead_sectors(s);

    return (uint8_t)(kept * (uint32_t)(SEGMENT_BUCKETS - 1) / of);
}

static struct segment_list *place_of(struct segment_table *t, const struct segment *s)
{
    if (s->state == SEGMENT_SEALED)
        return &t->pools[s->pool].bucket[s->durability != STORE_CACHE][s->bucket];
    return &t->list[s->state];
}

static bool is_reclaiming(uint8_t state)
{
    return state == SEGMENT_EVACUATING || state == SEGMENT_EMPTY || state == SEGMENT_FREEING;
}

/* Adds `by` (1, or -1 as unsigned) to whatever counts a segment in this state. */
static void count_by(struct segment_table *t, const struct segment *s, uint32_t by)
{
    struct segment_pool *p = &t->pools[s->pool];

    t->count[s->state] += by;
    if (s->state == SEGMENT_FREE)
        return;
    p->n_segments += by;
    if (s->durability != STORE_CACHE)
        p->n_kept += by;
    if (is_reclaiming(s->state))
        p->n_reclaiming += by;
    if (s->state == SEGMENT_EVACUATING) {
        p->n_evacuating += by;
        p->n_copying += s->durability != STORE_CACHE ? by : 0;
    }
    if (s->state == SEGMENT_CLOSING)
        p->n_closing += by;
    if (s->state != SEGMENT_SEALED)
        return;
    if (s->durability == STORE_CACHE)
        p->n_sealed_cache += by;
    else
        p->dead_sectors += by == 1 ? dead_sectors(s) : -(uint64_t)dead_sectors(s);
}

/* --- Room behind the end --- */

static uint32_t room_behind(const struct segment_table *t, const struct segment *s)
{
    return t->segment_sectors - MIN(s->end_sector, t->segment_sectors);
}

/* Its sums must be in memory: others will be written beside them. */
static bool has_room_behind(const struct segment_table *t, const struct segment *s)
{
    return s->state == SEGMENT_SEALED && s->durability != STORE_CACHE && s->sums_loaded && room_behind(t, s) > 0;
}

static uint32_t *roomiest_of(struct segment_table *t, const struct segment *s)
{
    return &t->pools[s->pool].roomiest[s->durability - 1];
}

static void roomiest_comes(struct segment_table *t, uint32_t segment)
{
    const struct segment *s = &t->segments[segment];

    if (!has_room_behind(t, s))
        return;
    uint32_t *roomiest = roomiest_of(t, s);
    if (*roomiest == NONE || (*roomiest != UNKNOWN && room_behind(t, &t->segments[*roomiest]) < room_behind(t, s)))
        *roomiest = segment;
}

static void roomiest_goes(struct segment_table *t, uint32_t segment)
{
    const struct segment *s = &t->segments[segment];

    if (s->durability != STORE_CACHE && *roomiest_of(t, s) == segment)
        *roomiest_of(t, s) = UNKNOWN;
}

/* A walk over all segments, once for each that was filled or went. */
static void roomiest_find(struct segment_table *t, uint32_t pool, uint8_t durability)
{
    t->pools[pool].roomiest[durability - 1] = NONE;
    for (uint32_t i = 0; i < t->n; i++)
        if (t->segments[i].pool == pool && t->segments[i].durability == durability)
            roomiest_comes(t, i);
}

void segment_set_state(struct segment_table *t, uint32_t segment, enum segment_state state)
{
    struct segment *s = &t->segments[segment];

    roomiest_goes(t, segment);

    list_remove(t, place_of(t, s), segment);
    count_by(t, s, UINT32_MAX);
    s->state = (uint8_t)state;
    s->bucket = bucket_of(t, s);
    count_by(t, s, 1);
    list_push(t, place_of(t, s), segment);
    roomiest_comes(t, segment);
}

static void live_change(struct segment_table *t, uint32_t segment, uint32_t live_sectors)
{
    struct segment *s = &t->segments[segment];

    if (s->state != SEGMENT_SEALED) {
        s->live_sectors = (uint16_t)live_sectors;
        return;
    }
    struct segment_pool *p = &t->pools[s->pool];
    if (s->durability != STORE_CACHE)
        p->dead_sectors += (uint64_t)s->live_sectors - live_sectors;
    s->live_sectors = (uint16_t)live_sectors;
    uint8_t bucket = bucket_of(t, s);
    if (bucket == s->bucket)
        return;
    list_remove(t, place_of(t, s), segment);
    s->bucket = bucket;
    list_push(t, place_of(t, s), segment);
}

void segment_live_add(struct segment_table *t, uint32_t segment, uint32_t sectors)
{
    struct segment *s = &t->segments[segment];

    s->placed_sectors = (uint16_t)(s->placed_sectors + sectors);
    live_change(t, segment, s->live_sectors + sectors);
}

void segment_live_sub(struct segment_table *t, uint32_t segment, uint32_t sectors)
{
    assert(t->segments[segment].live_sectors >= sectors);
    live_change(t, segment, t->segments[segment].live_sectors - sectors);
}

/* --- Choosing --- */

static uint32_t budget_segments(const struct segment_table *t, const struct segment_pool *p)
{
    return (uint32_t)MIN(p->budget_bytes / t->segment_bytes, (uint64_t)UINT32_MAX);
}

/*
 * Segments ahead of need. They become free together, with one flush of the log: with too few, every write would wait for
 * a flush of its own. With too many, a small device has less to keep things in.
 */
static uint32_t ahead_of(uint32_t n)
{
    return MIN(n / 32 + 2, (uint32_t)STORE_AHEAD_MAX);
}

/* Of the pool's budget, what only copies may take: one for each segment that is being copied. */
static uint32_t kept_for_copies(const struct segment_table *t, const struct segment_pool *p)
{
    uint32_t budget = budget_segments(t, p);

    return p->n_kept > 0 && budget > 1 ? MIN(budget / 50 + 1, (uint32_t)STORE_EVACUATIONS_MAX) : 0;
}

/*
 * Copying live pieces together frees something only if a whole segment's worth of them is dead. Each segment that is
 * copied fills at most one other before it is free, so with that its pool must stay in its budget. Only where nothing
 * is coming may that be exceeded: after a crash in the middle of copying, or under a budget that was lowered.
 */
static bool may_copy(const struct segment_table *t, const struct segment_pool *p)
{
    return p->dead_sectors >= t->segment_sectors &&
           (p->n_reclaiming == 0 || p->n_segments + p->n_copying < budget_segments(t, p));
}

static uint32_t bucket_victim(const struct segment_pool *p, int kind, uint32_t *ret_bucket)
{
    /* Copying a segment of which 15/16 live frees almost nothing; dropping a cache's always frees all. */
    uint32_t end = kind == 0 ? SEGMENT_BUCKETS : SEGMENT_BUCKETS - 2;

    for (uint32_t b = 0; b < end; b++)
        if (p->bucket[kind][b].first != NONE) {
            *ret_bucket = b;
            return p->bucket[kind][b].first;
        }
    return NONE;
}

/*
 * What a free segment costs, in 256ths of a segment's bytes. Dropping: the cache that is lost; if it were wanted, it
 * would be written again. Copying: what lives is read and written for what is dead, and a read keeps a device busy for
 * about half as long as a write. So segments of which 3/5 are dead are copied before cache goes that is whole; with less
 * to gain, copying would soon cost many times what it keeps.
 */
static uint32_t drop_cost(uint32_t bucket)
{
    return 256 * bucket / (SEGMENT_BUCKETS - 1);
}

static uint32_t copy_cost(uint32_t bucket)
{
    return (256 + 256 / 2) * bucket / (SEGMENT_BUCKETS - 1 - bucket);
}

static uint32_t pool_victim(const struct segment_table *t, const struct segment_pool *p, uint32_t *ret_cost)
{
    uint32_t bucket = 0, cost = UINT32_MAX;
    uint32_t victim = bucket_victim(p, 0, &bucket);

    if (victim != NONE)
        cost = drop_cost(bucket);
    uint32_t copy = may_copy(t, p) ? bucket_victim(p, 1, &bucket) : NONE;
    if (copy != NONE && copy_cost(bucket) < cost) {
        victim = copy;
        cost = copy_cost(bucket);
    }
    *ret_cost = cost;
    return victim;
}

uint32_t segment_victim(const struct segment_table *t, uint32_t pool)
{
    uint32_t best = NONE, best_cost = UINT32_MAX, cost = 0;

    if (pool != SEGMENT_POOL_ANY)
        return pool_victim(t, &t->pools[pool], &cost);
    for (uint32_t p = 0; p < t->n_pools; p++) {
        uint32_t victim = pool_victim(t, &t->pools[p], &cost);
        if (victim != NONE && cost < best_cost) {
            best = victim;
            best_cost = cost;
        }
    }
    return best;
}

static bool is_copied_like(const struct segment *a, const struct segment *b)
{
    return a->pool == b->pool && a->durability == b->durability;
}

/*
 * Each pool's copies of one durability go to segments of their own, and lose room at these segments' ends. Copies that were
 * begun and find no room give none back: so not all of the free segments' sectors are counted on, and their open ones not at all.
 */
bool segment_copy_fits(const struct segment_table *t, uint32_t segment)
{
    const struct segment *s = &t->segments[segment];
    uint32_t sectors = t->segment_sectors * 7 / 8, live = s->live_sectors, wanted = 0;
    bool is_first = true;

    if (s->durability == STORE_CACHE)
        return true;
    for (uint32_t i = t->list[SEGMENT_EVACUATING].first; i != NONE; i = t->segments[i].next) {
        const struct segment *other = &t->segments[i];
        if (other->durability == STORE_CACHE)
            continue;
        is_first = false;
        if (is_copied_like(s, other))
            live += other->live_sectors;
        else
            wanted += (uint32_t)div_round_up(other->live_sectors, sectors);
    }
    return is_first || wanted + div_round_up(live, sectors) <= t->count[SEGMENT_FREE];
}

uint32_t segment_cache_victim(const struct segment_table *t)
{
    uint32_t most = 0, bucket = 0;

    for (uint32_t p = 1; p < t->n_pools; p++)
        if (t->pools[p].n_sealed_cache > t->pools[most].n_sealed_cache)
            most = p;
    return bucket_victim(&t->pools[most], 0, &bucket);
}

bool segment_pool_wants_reclaim(const struct segment_table *t, uint32_t pool)
{
    const struct segment_pool *p = &t->pools[pool];
    uint32_t budget = budget_segments(t, p);

    return p->n_evacuating < STORE_EVACUATIONS_MAX &&
           p->n_segments - p->n_reclaiming + ahead_of(budget) + kept_for_copies(t, p) > budget;
}

bool segment_pool_is_full(const struct segment_table *t, uint32_t pool)
{
    const struct segment_pool *p = &t->pools[pool];
    uint32_t budget = budget_segments(t, p);

    return p->n_reclaiming > 0 || p->n_segments + ahead_of(budget) + kept_for_copies(t, p) >= budget ||
           t->count[SEGMENT_FREE] <= t->reserve + ahead_of(t->n);
}

enum segment_lack segment_lack(const struct segment_table *t, uint32_t pool)
{
    const struct segment_pool *p = &t->pools[pool];
    uint32_t budget = budget_segments(t, p);

    if (p->n_segments + kept_for_copies(t, p) >= budget)
        return budget + t->reserve < t->n ? SEGMENT_LACKS_BUDGET : SEGMENT_LACKS_FREE;
    return t->count[SEGMENT_FREE] <= t->reserve ? SEGMENT_LACKS_FREE : SEGMENT_LACKS_NOTHING;
}

bool segment_table_wants_reclaim(const struct segment_table *t)
{
    uint32_t coming = t->count[SEGMENT_EVACUATING] + t->count[SEGMENT_EMPTY] + t->count[SEGMENT_FREEING];

    return t->count[SEGMENT_EVACUATING] < STORE_EVACUATIONS_MAX &&
           t->count[SEGMENT_FREE] + coming < t->reserve + ahead_of(t->n);
}

int segment_take(struct segment_table *t, uint32_t pool, uint8_t durability, bool evacuating, uint32_t *ret_segment)
{
    struct segment_pool *p = &t->pools[pool];
    uint32_t segment = t->list[SEGMENT_FREE].first;

    if (!evacuating && p->n_segments + kept_for_copies(t, p) >= budget_segments(t, p)) {
        sim_reached("segment: the pool's budget is used up");
        return p->n_reclaiming + p->n_closing > 0 || segment_victim(t, pool) != NONE ? -EAGAIN : -ENOSPC;
    }
    if (t->count[SEGMENT_FREE] <= (evacuating ? 0 : t->reserve)) {
        uint32_t coming = t->count[SEGMENT_CLOSING] + t->count[SEGMENT_EVACUATING] + t->count[SEGMENT_EMPTY] +
                          t->count[SEGMENT_FREEING];
        sim_reached("segment: the device is full");
        return coming > 0 || segment_victim(t, SEGMENT_POOL_ANY) != NONE ? -EAGAIN : -ENOSPC;
    }
    struct segment *s = &t->segments[segment];
    assert(s->live_sectors == 0 && s->readers == 0);
    list_remove(t, &t->list[SEGMENT_FREE], segment);
    count_by(t, s, UINT32_MAX);
    *s = (struct segment){.prev = NONE,
                          .next = NONE,
                          .pool = (uint16_t)pool,
                          .durability = durability,
                          .state = SEGMENT_OPEN,
                          .sums_loaded = 1,
                          .sums_dirty = s->sums_dirty};
    count_by(t, s, 1);
    list_push(t, &t->list[SEGMENT_OPEN], segment);
    kill_point("segment.taken");
    *ret_segment = segment;
    return 0;
}

/* Of those that are being emptied the one that would gain least by it. */
static uint32_t emptying_with_room(const struct segment_table *t, uint32_t pool, uint8_t durability, uint32_t sectors)
{
    uint32_t best = NONE;

    for (uint32_t i = t->list[SEGMENT_EVACUATING].first; i != NONE; i = t->segments[i].next) {
        const struct segment *s = &t->segments[i];

        if (s->pool == pool && s->durability == durability && s->sums_loaded && room_behind(t, s) >= sectors &&
            (best == NONE || t->segments[best].live_sectors < s->live_sectors))
            best = i;
    }
    return best;
}

/* SEALED, of a durability, with the most room behind its end; NONE if that is less. */
static uint32_t sealed_with_room(struct segment_table *t, uint32_t pool, uint8_t durability, uint32_t sectors)
{
    uint32_t *roomiest = &t->pools[pool].roomiest[durability - 1];

    if (*roomiest == UNKNOWN)
        roomiest_find(t, pool, durability);
    return *roomiest != NONE && room_behind(t, &t->segments[*roomiest]) >= sectors ? *roomiest : NONE;
}

int segment_reopen(struct segment_table *t, uint32_t pool, uint8_t durability, bool evacuating, uint32_t sectors,
                   uint32_t *ret_segment)
{
    if (durability == STORE_CACHE || (!evacuating && t->count[SEGMENT_FREE] < t->reserve))
        return -ENOSPC; /* as long as what is copied lacks room, that is its */
    uint32_t segment = sealed_with_room(t, pool, durability, sectors);
    if (segment != NONE) {
        sim_reached("segment: one is filled up");
    } else if (evacuating) {
        segment = emptying_with_room(t, pool, durability, sectors);
        if (segment != NONE)
            sim_reached("segment: one that was being emptied is filled up");
        else if (t->count[SEGMENT_CLOSING] + t->count[SEGMENT_EMPTY] + t->count[SEGMENT_FREEING] == 0)
            segment = sealed_with_room(t, pool, durability == STORE_SCRATCH ? STORE_DURABLE : STORE_SCRATCH, sectors);
    }
    if (segment == NONE)
        return -ENOSPC;
    segment_set_state(t, segment, SEGMENT_OPEN);
    t->segments[segment].durability = MAX(t->segments[segment].durability, durability);
    t->segments[segment].placed_sectors = (uint16_t)t->segments[segment].end_sector;
    kill_point("segment.reopened");
    *ret_segment = segment;
    return 0;
}

bool segment_could_be_filled(const struct segment_table *t, uint32_t segment)
{
    const struct segment *s = &t->segments[segment];

    return s->state == SEGMENT_SEALED && s->durability != STORE_CACHE &&
           room_behind(t, s) >= t->segment_sectors / (SEGMENT_BUCKETS - 1);
}

void segment_sums_there(struct segment_table *t, uint32_t segment)
{
    t->segments[segment].sums_loaded = 1;
    roomiest_comes(t, segment);
}

int segment_adopt(struct segment_table *t, uint32_t segment, uint32_t pool, uint8_t durability, uint32_t sectors)
{
    struct segment *s = &t->segments[segment];

    if (s->state != SEGMENT_FREE && s->pool != pool)
        return -EINVAL;
    if (s->live_sectors + sectors > t->segment_sectors)
        return -EINVAL;
    if (s->state != SEGMENT_FREE)
        durability = MAX(durability, s->durability);
    list_remove(t, place_of(t, s), segment);
    count_by(t, s, UINT32_MAX);
    kill_point("segment.adopt");
    s->state = SEGMENT_SEALED;
    s->pool = (uint16_t)pool;
    s->durability = durability;
    s->live_sectors = (uint16_t)(s->live_sectors + sectors);
    /* Nobody knows what else was put there: what is not live may have died. */
    s->placed_sectors = durability == STORE_CACHE ? s->live_sectors : (uint16_t)t->segment_sectors;
    s->bucket = bucket_of(t, s);
    s->sums_loaded = 0;
    count_by(t, s, 1);
    list_push(t, place_of(t, s), segment);
    return 0;
}
