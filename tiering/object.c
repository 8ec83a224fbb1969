/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Births and deaths of pieces, where their bytes are, and the groups that make an object of several parts or pieces
 * visible as a whole. Engine thread only.
 *
 * Invariants
 * - A piece is in its class's policy of the tier where it is exactly while it is COMMITTED, HAS_MEM and not being loaded.
 * - The pool's counts (objects, resident, dirty) are changed by object_account() alone, before and after every change
 *   of a record's state or flags; and its place among what SYNCs look at by dirty_moved(), after it.
 * - A record is freed when it is DEAD and nothing pins it.
 */
#include <errno.h>
#include <string.h>

#include "include/base/kill_point.h"
#include "include/base/point.h"
#include "tiering/core.h"

#define DEADLINE_UNSET UINT64_MAX /* nobody has told us the time yet */

static void object_account(struct tiering *t, uint32_t object, int sign)
{
    if (t->recovering)
        return; /* spaces do not know their pools yet: object_account_new() follows */

    const struct record *r = record_at(&t->records, object);
    struct tiering_pool_stat *stat = &pool_of(t, r)->stat;
    uint64_t one = sign > 0 ? 1 : UINT64_MAX; /* modulo 2^64: adding it subtracts 1 */

    if (r->state == RECORD_RESERVED || r->state == RECORD_COMMITTED)
        stat->objects += one;
    if (r->flags & RECORD_HAS_MEM) {
        enum mem_tier tier = tier_of_mem(t, r);
        uint64_t waste = sectors_of(r->size_bytes) * (uint64_t)SECTOR_BYTES - r->size_bytes;

        stat->resident += one;
        stat->dram_round_waste += tier == MEM_DRAM ? one * waste : 0;
        stat->cxl_round_waste += tier == MEM_CXL ? one * waste : 0;
    }
    if (record_is_dirty(r))
        stat->dirty += one * r->size_bytes;
    if (record_waits_for_sync(t, r))
        pool_of(t, r)->unsynced_bytes += one * r->size_bytes;
}

void object_account_new(struct tiering *t, uint32_t object)
{
    if (record_at(&t->records, object)->state == RECORD_FREE)
        return;
    object_account(t, object, +1);
    dirty_moved(t, object, (struct dirty_place){0});
}

/* Edits between these two are accounted for. */
static struct record *object_edit(struct tiering *t, uint32_t object)
{
    object_account(t, object, -1);
    return record_begin(&t->records, object);
}

static void object_edited(struct tiering *t, uint32_t object)
{
    struct dirty_place before = dirty_place(t, object);

    record_end(&t->records);
    object_account(t, object, +1);
    dirty_moved(t, object, before);
}

uint32_t object_pieces(const struct tiering *t, uint64_t object_bytes)
{
    return object_bytes <= t->piece_bytes ? 1 : (uint32_t)div_round_up(object_bytes, t->piece_bytes);
}

void tiering_warm_index(const struct tiering *t, struct tiering_id *id)
{
    id->hash = 0;
    id->hash = record_hash_id(&t->records, id);
    record_warm_slot(&t->records, id->hash);
}

void tiering_warm_record(const struct tiering *t, const struct tiering_id *id)
{
    record_warm_found(&t->records, record_hash_id(&t->records, id));
}

void tiering_warm_neighbours(const struct tiering *t, const struct tiering_id *id)
{
    record_warm_neighbours(&t->records, record_hash_id(&t->records, id));
}

uint32_t object_find(const struct tiering *t, const struct tiering_id *id, int *ret_status)
{
    uint32_t object = record_find(&t->records, id, record_hash_id(&t->records, id));

    if (object == RECORD_NONE) {
        *ret_status = -ENOENT;
        return RECORD_NONE;
    }
    const struct record *r = record_at(&t->records, object);
    if (r->state != RECORD_COMMITTED || (r->flags & RECORD_INCOMPLETE)) {
        *ret_status = -EINPROGRESS;
        return RECORD_NONE;
    }
    return object;
}

/* --- Groups ------------------------------------------------------------------------------------------------------ */

static uint64_t group_hash(const struct tiering *t, const struct record *r)
{
    struct tiering_id id;

    record_to_id(r, &id);
    id.part = 0;
    id.piece = 0;
    return record_hash_id(&t->records, &id) | 1; /* never 0 */
}

static bool group_is_of(const struct group *g, const struct record *r)
{
    return g->space == r->space && g->group == r->group && g->key_len == r->key_len &&
           memcmp(g->key, r->key, sizeof(g->key)) == 0;
}

/* Linear probing; at most 3/4 full. */
static struct group *group_slot(struct tiering *t, const struct record *r, uint64_t hash)
{
    uint32_t at = (uint32_t)(hash % GROUPS_MAX);

    while (t->groups[at].hash && !(t->groups[at].hash == hash && group_is_of(&t->groups[at], r)))
        at = (at + 1) % GROUPS_MAX;
    return &t->groups[at];
}

static struct group *group_add(struct tiering *t, struct group *g, uint64_t hash, const struct record *r)
{
    *g = (struct group){.hash = hash,
                        .deadline_ns = t->now_ns + t->config.parts_deadline_ns,
                        .object_bytes = r->object_bytes,
                        .wanted = r->n_parts * object_pieces(t, r->object_bytes),
                        .space = r->space,
                        .group = r->group,
                        .n_parts = r->n_parts,
                        .key_len = r->key_len};
    memcpy(g->key, r->key, sizeof(g->key));
    t->groups_next_ns = MIN(t->groups_next_ns, g->deadline_ns);
    t->n_groups++;
    return g;
}

static void group_remove(struct tiering *t, struct group *g)
{
    uint32_t hole = (uint32_t)(g - t->groups);

    for (uint32_t at = (hole + 1) % GROUPS_MAX; t->groups[at].hash; at = (at + 1) % GROUPS_MAX) {
        uint32_t home = (uint32_t)(t->groups[at].hash % GROUPS_MAX);

        if ((at + GROUPS_MAX - home) % GROUPS_MAX >= (at + GROUPS_MAX - hole) % GROUPS_MAX) {
            t->groups[hole] = t->groups[at];
            hole = at;
        }
    }
    t->groups[hole] = (struct group){0};
    t->n_groups--;
}

/* Calls fn for every piece and part of the object that is in the index. */
static void id_siblings(struct tiering *t, struct tiering_id id, uint64_t object_bytes,
                        void (*fn)(struct tiering *t, uint32_t object))
{
    uint32_t n_pieces = object_pieces(t, object_bytes);

    t->walked += (uint64_t)n_pieces * id.n_parts - 1;
    for (uint32_t part = 0; part < id.n_parts; part++) {
        for (uint32_t piece = 0; piece < n_pieces; piece++) {
            id.part = (uint16_t)part;
            id.piece = piece;
            uint32_t sibling = record_find(&t->records, &id, record_hash_id(&t->records, &id));

            if (sibling != RECORD_NONE)
                fn(t, sibling);
        }
    }
}

static void object_siblings(struct tiering *t, uint32_t object, void (*fn)(struct tiering *t, uint32_t object))
{
    const struct record *r = record_at(&t->records, object);
    struct tiering_id id;

    record_to_id(r, &id);
    id_siblings(t, id, r->object_bytes, fn);
}

static void object_complete(struct tiering *t, uint32_t object)
{
    object_edit(t, object)->flags &= (uint8_t)~RECORD_INCOMPLETE;
    object_edited(t, object);
    kill_point("object.complete");
}

/* The first piece of an object of one piece, or of one that is complete: it is in no group. */
static bool group_is_not_wanted(const struct tiering *t, uint32_t object)
{
    struct tiering_id id;

    record_to_id(record_at(&t->records, object), &id);
    id.part = 0;
    id.piece = 0;
    uint32_t first = record_find(&t->records, &id, record_hash_id(&t->records, &id));
    return first != RECORD_NONE && first != object;
}

/* -EINVAL: the others of its object are in another number, or of another size. */
static int group_join(struct tiering *t, uint32_t object, bool grouped)
{
    const struct record *r = record_at(&t->records, object);
    uint64_t hash;
    struct group *g;

    if (!grouped && !t->n_groups)
        return 0;
    hash = group_hash(t, r);
    g = group_slot(t, r, hash);
    if (g->hash) {
        if (g->n_parts != r->n_parts || g->object_bytes != r->object_bytes)
            return -EINVAL;
        g->members++;
        return 0;
    }
    if (!grouped)
        return 0;
    if (group_is_not_wanted(t, object))
        return -EINVAL;
    if (t->n_groups >= GROUPS_MAX / 4 * 3 || sim_point("group: too many are incomplete"))
        return -ENOSPC;
    group_add(t, g, hash, r)->members = 1;
    return 0;
}

static void group_committed(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    struct group *g = group_slot(t, r, group_hash(t, r));

    if (g->hash && ++g->committed == g->wanted) {
        group_remove(t, g);
        kill_point("object.group_whole");
        object_siblings(t, object, object_complete);
    }
}

/* A piece of an incomplete object goes. */
static void group_broken(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    struct group *g = group_slot(t, r, group_hash(t, r));

    if (!g->hash)
        return;
    if (r->state == RECORD_COMMITTED && g->committed > 0)
        g->committed--;
    if (--g->members == 0)
        group_remove(t, g);
}

void object_complete_all(struct tiering *t, uint32_t object)
{
    object_siblings(t, object, object_complete);
}

void group_recovered(struct tiering *t, uint32_t object, uint32_t members, uint32_t committed)
{
    const struct record *r = record_at(&t->records, object);
    uint64_t hash = group_hash(t, r);
    struct group *g = group_slot(t, r, hash);

    if (t->n_groups >= GROUPS_MAX / 4 * 3)
        return; /* there were no more before */
    group_add(t, g, hash, r);
    g->members = members;
    g->committed = committed;
    g->deadline_ns = DEADLINE_UNSET;
    t->groups_next_ns = 0;
}

/* All of it goes, what is reserved, too: who commits that later is told. The group goes first: it need not count them. */
static void group_kill(struct tiering *t, struct group *g)
{
    struct tiering_id id = {.space = g->space, .group = g->group, .n_parts = g->n_parts, .key_len = g->key_len};
    uint64_t object_bytes = g->object_bytes;

    memcpy(id.key, g->key, sizeof(id.key));
    group_remove(t, g);
    id_siblings(t, id, object_bytes, object_kill);
}

void groups_expire(struct tiering *t)
{
    uint64_t next_ns = UINT64_MAX;

    if (t->now_ns < t->groups_next_ns)
        return;
    for (uint32_t i = 0; i < GROUPS_MAX && t->n_groups; i++) {
        struct group *g = &t->groups[i];

        if (!g->hash)
            continue;
        if (g->deadline_ns == DEADLINE_UNSET)
            g->deadline_ns = t->now_ns + t->config.parts_deadline_ns;
        if (g->deadline_ns <= t->now_ns) {
            sim_reached("group: its time is over");
            g->deadline_ns = t->now_ns + t->config.parts_deadline_ns;
            if (g->committed)
                group_kill(t, g);
            next_ns = 0; /* others may have moved to where we have been */
        } else {
            next_ns = MIN(next_ns, g->deadline_ns);
        }
    }
    t->groups_next_ns = next_ns;
}

/* --- Policy ------------------------------------------------------------------------------------------------------ */

void policy_enter(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    struct space *space = space_of(t, r);
    struct tpool *pool = &t->pools[space->info.pool];
    enum mem_tier tier = tier_of_mem(t, r);
    struct policy *p = policy_in(pool, tier, space->info.class_id);
    uint32_t sectors = sectors_of(r->size_bytes);

    assert(!(hot_at(t, object)->flags & HOT_IN_POLICY));
    t->records.objects[object].node = (struct policy_node){0};
    p->ops->insert(p, object, record_hash(&t->records, r), sectors);
    pool->class_sectors[tier][space->info.class_id] += sectors;
    hot_at(t, object)->flags |= HOT_IN_POLICY;
}

void policy_leave(struct tiering *t, uint32_t object, bool evicted)
{
    const struct record *r = record_at(&t->records, object);
    struct space *space = space_of(t, r);
    struct tpool *pool = &t->pools[space->info.pool];
    uint32_t sectors = sectors_of(r->size_bytes);

    if (!(hot_at(t, object)->flags & HOT_IN_POLICY))
        return;
    enum mem_tier tier = tier_of_mem(t, r);
    struct policy *p = policy_in(pool, tier, space->info.class_id);
    if (evicted)
        p->ops->evict(p, object, record_hash(&t->records, r), sectors);
    else
        p->ops->remove(p, object, sectors);
    pool->class_sectors[tier][space->info.class_id] -= sectors;
    hot_at(t, object)->flags &= (uint16_t)~HOT_IN_POLICY;
}

/* --- Births ------------------------------------------------------------------------------------------------------ */

int object_new(struct tiering *t, const struct tiering_id *id, uint64_t hash, uint64_t object_bytes,
               uint32_t size_bytes, uint64_t owner, uint32_t *ret_object, uint32_t *ret_limit)
{
    uint32_t object;
    bool grouped = id->n_parts > 1 || object_pieces(t, object_bytes) > 1;
    int r = record_new(&t->records, id, hash, &object);

    if (r < 0) {
        *ret_limit = TIERING_LIMIT_OBJECTS;
        return r;
    }
    struct record *rec = record_begin(&t->records, object);
    rec->object_bytes = object_bytes;
    rec->size_bytes = size_bytes;
    rec->owner = t->spaces[id->space].info.durability == STORE_SCRATCH ? (uint32_t)owner : 0;
    rec->flags = grouped ? RECORD_INCOMPLETE : 0;
    record_end(&t->records);
    r = t->recovering ? 0 : group_join(t, object, grouped);
    if (r < 0) {
        *ret_limit = r == -ENOSPC ? TIERING_LIMIT_REQUESTS : TIERING_LIMIT_NONE;
        record_unindex(&t->records, object);
        record_free(&t->records, object);
        return r;
    }
    kill_point("object.new");
    object_account(t, object, +1);
    t->spaces[id->space].n_objects++;
    *ret_object = object;
    return 0;
}

static void object_committed(struct tiering *t, uint32_t object)
{
    kill_point("object.commit");
    policy_enter(t, object);
    struct tpool *pool = pool_of(t, record_at(&t->records, object));
    pool->stat.commits++;
    pool->stat.commit_bytes += record_at(&t->records, object)->size_bytes;
    kill_point("object.committed");
    pool->look_ahead = true;
    if (record_at(&t->records, object)->flags & RECORD_INCOMPLETE)
        group_committed(t, object);
}

void object_commit_at(struct tiering *t, uint32_t object, uint32_t region, uint32_t sector)
{
    struct record *r = object_edit(t, object);
    uint32_t old_region = r->mem_region, old_sector = r->mem_sector;

    assert(r->flags & RECORD_HAS_MEM);
    r->state = RECORD_COMMITTED; /* in one change: whoever comes after us finds it here or there */
    r->mem_region = (uint16_t)region;
    r->mem_sector = sector;
    object_edited(t, object);
    room_give(t, old_region, old_sector);
    object_committed(t, object);
}

void object_commit(struct tiering *t, uint32_t object)
{
    struct record *r = object_edit(t, object);

    r->state = RECORD_COMMITTED;
    object_edited(t, object);
    object_committed(t, object);
}

void object_commit_unwritten(struct tiering *t, uint32_t object)
{
    struct record *r = object_edit(t, object);

    r->state = RECORD_COMMITTED;
    r->flags |= RECORD_TENSOR | RECORD_ZERO;
    object_edited(t, object);
    kill_point("object.unwritten");
    if ((record_at(&t->records, object)->flags & RECORD_INCOMPLETE) && !t->recovering)
        group_committed(t, object);
}

int object_recovered(struct tiering *t, const struct tiering_id *id, uint64_t hash, uint8_t store,
                     const struct store_entry *entry)
{
    bool is_grouped = id->n_parts > 1 || object_pieces(t, entry->object_bytes) > 1;
    bool is_tensor = entry->kind & TIERING_TENSOR, is_torn = entry->kind & STORE_KIND_DAMAGED;
    struct record *r;
    uint32_t object;
    int status = record_new_in_place(&t->records, hash, &r, &object);

    if (status < 0)
        return status;
    assert(t->recovering && !t->warm && entry->loc.segment < t->stores[store].n_segments);
    *r = (struct record){
        .group = id->group,
        .piece = id->piece,
        .generation = entry->generation,
        .sum = entry->sum,
        .object_bytes = entry->object_bytes,
        .size_bytes = entry->size_bytes,
        .space = id->space,
        .dev_segment = entry->loc.segment,
        .mem_region = RECORD_REGION_NONE,
        .dev_sector = entry->loc.sector,
        .part = id->part,
        .n_parts = id->n_parts,
        .dev_store = store,
        .key_len = id->key_len,
        .state = RECORD_COMMITTED,
        .flags = (uint8_t)(RECORD_HAS_DEV | (is_grouped ? RECORD_INCOMPLETE : 0) | (is_tensor ? RECORD_TENSOR : 0) |
                           (is_torn ? RECORD_TORN : 0)),
    };
    memcpy(r->key, id->key, sizeof(r->key));
    kill_point("object.recovered");
    t->may_prune |= is_grouped || is_tensor;
    t->spaces[id->space].n_objects++;
    segment_link(t, object);
    return 0;
}

void object_set_flags(struct tiering *t, uint32_t object, uint8_t flags)
{
    object_edit(t, object)->flags |= flags;
    object_edited(t, object);
}

void object_clear_flags(struct tiering *t, uint32_t object, uint8_t flags)
{
    object_edit(t, object)->flags &= (uint8_t)~flags;
    object_edited(t, object);
}

/* --- Where its bytes are ------------------------------------------------------------------------------------------ */

void object_set_mem(struct tiering *t, uint32_t object, uint32_t region, uint32_t sector)
{
    struct record *r = object_edit(t, object);

    assert(!(r->flags & RECORD_HAS_MEM));
    r->mem_region = (uint16_t)region;
    r->mem_sector = sector;
    r->flags |= RECORD_HAS_MEM;
    object_edited(t, object);
    kill_point("object.mem_set");
}

void object_swap_mem(struct tiering *t, uint32_t object, uint32_t region, uint32_t sector)
{
    struct record *r = object_edit(t, object);

    assert(r->flags & RECORD_HAS_MEM);
    r->mem_region = (uint16_t)region;
    r->mem_sector = sector;
    object_edited(t, object);
}

void object_drop_mem(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    uint32_t region = r->mem_region, sector = r->mem_sector;

    if (!(r->flags & RECORD_HAS_MEM))
        return;
    struct record *edit = object_edit(t, object);
    edit->flags &= (uint8_t)~RECORD_HAS_MEM;
    edit->mem_region = RECORD_REGION_NONE;
    object_edited(t, object);
    kill_point("object.mem_dropped");
    room_give(t, region, sector);
}

void object_move_mem(struct tiering *t, uint32_t object, uint32_t region, uint32_t sector)
{
    const struct record *r = record_at(&t->records, object);
    uint32_t old_region = r->mem_region, old_sector = r->mem_sector;

    object_swap_mem(t, object, region, sector);
    room_give(t, old_region, old_sector);
}

void object_to_entry(const struct tiering *t, uint32_t object, struct store_entry *ret_entry)
{
    const struct record *r = record_at(&t->records, object);
    const struct space *space = &t->spaces[r->space];

    *ret_entry = (struct store_entry){
        .id = {.space = space->info.id, .group = r->group, .piece = r->piece, .part = r->part, .key_len = r->key_len},
        .generation = r->generation,
        .sum = r->sum,
        .object_bytes = r->object_bytes,
        .size_bytes = r->size_bytes,
        .n_parts = r->n_parts,
        .class_id = space->info.class_id,
        .durability = space->info.durability,
        .kind = (uint8_t)((r->flags & RECORD_TENSOR ? TIERING_TENSOR : TIERING_BLOCK) |
                          (r->flags & RECORD_TORN ? STORE_KIND_DAMAGED : 0)),
        .loc = {.segment = r->dev_segment, .sector = r->dev_sector}};
    memcpy(ret_entry->id.key, r->key, sizeof(r->key));
}

/* Of a record that is to have this entry. Generations of different stores cannot be compared. */
static uint32_t first_back(const struct record *r, uint8_t store, uint64_t generation)
{
    if (r->generation == 0)
        return 0;
    if (store != r->dev_store || r->first_back == UINT32_MAX)
        return UINT32_MAX;
    return (uint32_t)MIN(generation - (r->generation - r->first_back), (uint64_t)UINT32_MAX);
}

void object_set_dev(struct tiering *t, uint32_t object, uint8_t store, const struct store_entry *entry)
{
    bool moves = record_at(&t->records, object)->flags & RECORD_HAS_DEV;
    struct store_entry old;
    uint8_t old_store = record_at(&t->records, object)->dev_store;

    assert(entry->loc.segment < t->stores[store].n_segments);
    if (moves) {
        object_to_entry(t, object, &old);
        segment_unlink(t, object);
    }
    struct record *r = object_edit(t, object);
    if (durability_of(t, r) == STORE_DURABLE)
        r->first_back = first_back(r, store, entry->generation);
    r->generation = entry->generation;
    r->sum = entry->sum;
    r->dev_segment = entry->loc.segment;
    r->dev_sector = entry->loc.sector;
    r->dev_store = store;
    r->flags |= RECORD_HAS_DEV;
    r->flags &= (uint8_t)~RECORD_ZERO;
    if (entry->kind & STORE_KIND_DAMAGED)
        r->flags |= RECORD_TORN;
    object_edited(t, object);

    kill_point("object.dev_set");
    assert(entry->loc.segment < t->stores[store].n_segments);
    segment_link(t, object);
    if (moves) /* after the change, so that at no time there is none */
        store_drop(t->stores[old_store].store, &old);
}

void object_detach_dev(struct tiering *t, uint32_t object)
{
    segment_unlink(t, object);
    kill_point("object.dev_unlinked");
    object_edit(t, object)->flags &= (uint8_t)~RECORD_HAS_DEV;
    object_edited(t, object);
}

void object_forget_dev(struct tiering *t, uint32_t object)
{
    object_edit(t, object)->flags &= (uint8_t)~RECORD_HAS_DEV;
    object_edited(t, object);
}

void object_drop_dev(struct tiering *t, uint32_t object, bool log)
{
    const struct record *r = record_at(&t->records, object);
    struct store_entry entry;

    if (!(r->flags & RECORD_HAS_DEV))
        return;
    object_to_entry(t, object, &entry);
    struct store *store = t->stores[r->dev_store].store;
    object_detach_dev(t, object);
    kill_point("object.dev_detached");
    if (log)
        store_drop(store, &entry);
    else
        store_forget(store, &entry);
}

/* --- Deaths ------------------------------------------------------------------------------------------------------ */

/* In one change: at no time is it COMMITTED, and nowhere. */
static void object_die(struct tiering *t, uint32_t object)
{
    bool has_dev = record_at(&t->records, object)->flags & RECORD_HAS_DEV;
    uint8_t store = record_at(&t->records, object)->dev_store;
    struct store_entry entry;

    if (has_dev) {
        object_to_entry(t, object, &entry);
        segment_unlink(t, object);
    }
    struct record *r = object_edit(t, object);
    r->state = RECORD_DEAD;
    r->flags &= (uint8_t)~RECORD_HAS_DEV;
    object_edited(t, object);
    if (has_dev && object == t->forgets)
        store_forget(t->stores[store].store, &entry);
    else if (has_dev)
        store_drop(t->stores[store].store, &entry);
}

void object_kill(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);

    if (r->state == RECORD_DEAD || r->state == RECORD_FREE)
        return;
    if (r->flags & RECORD_INCOMPLETE)
        group_broken(t, object);
    policy_leave(t, object, false);
    record_unindex(&t->records, object);
    kill_point("object.kill");
    if (hot_at(t, object)->flags & HOT_UNCOMMITTED)
        hot_at(t, object)->flags &= (uint16_t)~HOT_UNCOMMITTED; /* its SYNC will find it deleted */
    uses_forget(t, object);
    move_put_cancel(t, object);
    shadow_drop(t, object);
    kill_point("object.kill_shadow");
    if (--t->spaces[r->space].n_objects == 0)
        plan_space_empty(t, r->space);
    object_die(t, object);
    kill_point("object.killed");
    if (hot_at(t, object)->flags & HOT_TIMED_PIN)
        timed_pin_drop(t, object); /* it must not hold memory that nobody can reach */
    else
        object_settle(t, object);
}

void object_kill_all(struct tiering *t, uint32_t object)
{
    const struct record *r = record_at(&t->records, object);
    struct group *g = r->flags & RECORD_INCOMPLETE ? group_slot(t, r, group_hash(t, r)) : NULL;

    if (g && g->hash)
        group_kill(t, g);
    else if (r->n_parts == 1 && object_pieces(t, r->object_bytes) == 1)
        object_kill(t, object);
    else
        object_siblings(t, object, object_kill);
}

void object_settle(struct tiering *t, uint32_t object)
{
    if (record_at(&t->records, object)->state != RECORD_DEAD || hot_at(t, object)->pins)
        return;
    object_drop_mem(t, object);
    kill_point("object.settled");
    record_free(&t->records, object);
}

void object_pin(struct tiering *t, uint32_t object)
{
    assert(hot_at(t, object)->pins < UINT16_MAX);
    hot_at(t, object)->pins++;
}

void object_unpin(struct tiering *t, uint32_t object)
{
    struct record_hot *hot = hot_at(t, object);
    const struct record *r = record_at(&t->records, object);

    assert(hot->pins > 0);
    if (--hot->pins)
        return;
    room_kick(t, t->spaces[r->space].info.pool);
    object_settle(t, object);
    if (r->state == RECORD_COMMITTED && (hot->flags & (HOT_COUNTED | HOT_RANK_MASK)))
        advice_unpinned(t, object);
}

bool object_is_pinned(const struct tiering *t, uint32_t object)
{
    const struct record_hot *hot = &t->records.objects[object].hot;

    return hot->pins > 0 || (hot->flags & HOT_TIMED_PIN);
}

enum policy_pin object_pin_state(void *ctx, uint32_t object)
{
    const struct tiering *t = ctx;
    const struct record_hot *hot = &t->records.objects[object].hot;

    if (record_waits_for_sync(t, record_at(&t->records, object)))
        return POLICY_HELD;
    if (!object_is_pinned(t, object))
        return POLICY_FREE;
    /* A spill or a migration alone must not make a cold piece look warm. */
    return hot->pins == 1 && (hot->flags & (HOT_SPILLING | HOT_MIGRATING)) ? POLICY_BUSY : POLICY_HELD;
}
