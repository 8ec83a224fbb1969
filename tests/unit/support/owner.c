/* SPDX-License-Identifier: Apache-2.0 */
/* See owner.h. Arrays and linear searches on purpose: an oracle should be too simple to be wrong. */
#include "tests/unit/support/owner.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SLOT_BYTES(o) round_up((o)->size_max_bytes, SECTOR_BYTES)
#define TURN_NS 300000

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t x = a * UINT64_C(0x9e3779b97f4a7c15) ^ (b + 1) * UINT64_C(0xbf58476d1ce4e5b9);

    x ^= x >> 29;
    x *= UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 32);
}

uint32_t owner_size(const struct owner *o, uint32_t id, uint64_t version)
{
    uint64_t x = mix(id, version);
    uint32_t max = o->size_max_bytes;

    /* Half are small, a quarter medium, the rest anything. */
    if (x % 4 < 2)
        max = MIN(max, (uint32_t)(12 * KIB));
    else if (x % 4 == 2)
        max = MIN(max, (uint32_t)(80 * KIB));
    return 1 + (uint32_t)(x / 4 % max);
}

uint8_t owner_durability(const struct owner *o, uint32_t id)
{
    return o->cache_only ? STORE_CACHE : (uint8_t)(id % 3);
}

static uint32_t owner_pool(const struct owner *o, uint32_t id)
{
    assert(o->n_pools > 0);
    return id / 3 % o->n_pools;
}

void owner_fill(uint8_t *out, uint32_t size_bytes, uint32_t id, uint64_t version)
{
    uint64_t x = mix(id, version);

    for (uint32_t i = 0; i < size_bytes; i += 8) {
        x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        memcpy(out + i, &x, MIN(8U, size_bytes - i));
    }
}

bool owner_bytes_same(const uint8_t *in, uint32_t size_bytes, uint32_t id, uint64_t version)
{
    uint64_t x = mix(id, version);

    for (uint32_t i = 0; i < size_bytes; i += 8) {
        x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        if (memcmp(in + i, &x, MIN(8U, size_bytes - i)) != 0)
            return false;
    }
    return true;
}

static struct store_id id_of(const struct owner *o, uint32_t id)
{
    struct store_id s = {.space = 7, .group = id % 5, .key_len = (uint8_t)o->key_len};

    memcpy(s.key, &id, sizeof(id));
    return s;
}

static uint32_t id_from(const struct store_id *s)
{
    uint32_t id;

    memcpy(&id, s->key, sizeof(id));
    return id;
}

void owner_history_add(struct owner_object *x, uint64_t version)
{
    if (x->n_history == OWNER_HISTORY_MAX)
        abort();
    x->history[x->n_history++] = (struct owner_state){.version = version};
}

/* --- Puts and drops --- */

struct owner_slot *owner_slot_take(struct owner *o)
{
    for (uint32_t i = 0; i < OWNER_SLOTS; i++)
        if (!o->slots[i].busy) {
            o->slots[i].busy = true;
            o->n_busy++;
            return &o->slots[i];
        }
    return NULL;
}

void owner_slot_give(struct owner_slot *slot)
{
    slot->busy = false;
    slot->owner->n_busy--;
}

/* A copy of what is no longer current is on its way: it must not reach the log. */
static void moves_cancel(struct owner *o, uint32_t id)
{
    for (uint32_t i = 0; i < OWNER_SLOTS; i++)
        if (o->slots[i].busy && o->slots[i].moves && o->slots[i].id == id)
            o->slots[i].put.cancel = 1;
}

/* The new version takes effect: the old one is dropped. */
static void object_set(struct owner *o, uint32_t id, uint64_t version, const struct store_entry *entry)
{
    struct owner_object *x = &o->objects[id];
    uint64_t old_version = x->version;
    struct store_entry old = x->entry;

    moves_cancel(o, id);
    x->entry = *entry;
    x->version = version;
    owner_history_add(x, version);
    if (old_version)
        store_drop(o->store, &old);
}

static void moved(struct owner *o, struct owner_slot *slot, int status)
{
    struct owner_object *x = &o->objects[slot->id];

    x->is_moving = false;
    if (status < 0)
        return;
    if (x->version != slot->version)
        abort();
    struct store_entry old = x->entry;
    x->entry = slot->put.entry;
    store_drop(o->store, &old);
}

static void put_done(struct store_put *put, int status)
{
    struct owner_slot *slot = container_of(put, struct owner_slot, put);
    struct owner *o = slot->owner;
    struct owner_object *x = &o->objects[slot->id];

    o->last_put_status = status;
    owner_slot_give(slot);
    if (slot->moves) {
        moved(o, slot, status);
        return;
    }
    x->writing--;
    o->n_txn_writing -= slot->txn;
    o->n_put_failed += status < 0;
    if (status < 0) {
        return;
    }
    o->n_put++;
    if (slot->txn) {
        o->txn_puts[o->n_txn].id = slot->id;
        o->txn_puts[o->n_txn].version = slot->version;
        o->txn_puts[o->n_txn++].entry = put->entry;
        return;
    }
    object_set(o, slot->id, slot->version, &put->entry);
}

static int put_start(struct owner *o, uint32_t id, uint64_t version, bool moves, bool txn)
{
    struct owner_slot *slot = owner_slot_take(o);
    uint32_t size = owner_size(o, id, version);

    if (!slot)
        return -EBUSY;
    slot->id = id;
    slot->version = version;
    slot->moves = moves;
    slot->txn = txn;
    owner_fill(simdisk_memory(o->disk, o->region) + slot->buf.off, size, id, version);
    slot->put = (struct store_put){
        .id = id_of(o, id),
        .buf = slot->buf,
        .object_bytes = version,
        .size_bytes = size,
        .pool = owner_pool(o, id),
        .n_parts = 1,
        .durability = owner_durability(o, id),
        .evacuating = moves,
        .txn = txn ? o->txn : 0,
        .done = put_done,
    };
    int r = store_put(o->store, &slot->put);
    if (r < 0)
        owner_slot_give(slot);
    return r;
}

int owner_put(struct owner *o, uint32_t id, bool txn)
{
    struct owner_object *x = &o->objects[id];

    if (x->writing || x->in_txn || x->n_history + 4 > OWNER_HISTORY_MAX)
        return -EBUSY;
    int r = put_start(o, id, x->next_version + 1, false, txn);
    o->n_enospc += r == -ENOSPC;
    o->n_eagain += r == -EAGAIN;
    if (r < 0)
        return r;
    x->next_version++;
    x->writing++;
    x->in_txn = txn;
    o->n_txn_started += txn;
    o->n_txn_writing += txn;
    return 0;
}

void owner_drop(struct owner *o, uint32_t id)
{
    struct owner_object *x = &o->objects[id];

    if (!x->version || x->writing || x->in_txn || x->n_history + 4 > OWNER_HISTORY_MAX)
        return;
    moves_cancel(o, id);
    x->version = 0;
    owner_history_add(x, 0);
    store_drop(o->store, &x->entry);
}

bool owner_txn_begin(struct owner *o)
{
    if (!o->txn)
        o->txn = store_txn_begin(o->store);
    return o->txn != 0;
}

void owner_txn_commit(struct owner *o)
{
    if (!o->txn)
        return;
    store_txn_commit(o->store, o->txn);
    o->txn = 0;
    for (uint32_t i = 0; i < o->n_txn; i++) {
        o->objects[o->txn_puts[i].id].in_txn = false;
        object_set(o, o->txn_puts[i].id, o->txn_puts[i].version, &o->txn_puts[i].entry);
    }
    for (uint32_t i = 0; i < o->n_ids; i++)
        o->objects[i].in_txn = false; /* those whose put failed */
    o->n_txn = o->n_txn_started = 0;
}

/* --- Syncs --- */

static void sync_done(struct store_sync *sync, int status)
{
    struct owner *o = container_of(sync, struct owner, sync);

    o->syncing = false;
    o->sync_status = status;
    for (uint32_t i = 0; status == 0 && i < o->n_ids; i++) {
        struct owner_object *x = &o->objects[i];
        uint32_t from = o->sync_mark[i];
        x->n_history -= from;
        memmove(x->history, x->history + from, x->n_history * sizeof(x->history[0]));
    }
}

bool owner_sync(struct owner *o)
{
    if (o->syncing)
        return false;
    o->syncing = true;
    for (uint32_t i = 0; i < o->n_ids; i++)
        o->sync_mark[i] = o->objects[i].n_history - 1;
    o->sync.done = sync_done;
    store_sync(o->store, &o->sync);
    return true;
}

/* --- Events --- */

static int ev_replay_space(void *ctx, const struct store_space *space)
{
    struct owner *o = ctx;

    o->space = *space;
    o->has_space = !space->deleted;
    return 0;
}

static int ev_replay_put(void *ctx, const struct store_entry *entry)
{
    struct owner *o = ctx;
    uint32_t id = id_from(&entry->id);

    if (id >= o->n_ids)
        return -EINVAL;
    o->objects[id].entry = *entry;
    o->objects[id].version = entry->object_bytes;
    return 0;
}

static int ev_replay_delete(void *ctx, const struct store_id *sid, uint64_t generation)
{
    struct owner *o = ctx;
    struct owner_object *x = &o->objects[id_from(sid)];

    if (x->version && x->entry.generation == generation)
        x->version = 0;
    return 0;
}

static int ev_replay_freed(void *ctx, uint32_t segment, uint64_t generation)
{
    struct owner *o = ctx;

    for (uint32_t i = 0; i < o->n_ids; i++) {
        struct owner_object *x = &o->objects[i];
        if (x->version && x->entry.loc.segment == segment && x->entry.generation < generation)
            x->version = 0;
    }
    return 0;
}

static bool ev_next_entry(void *ctx, uint64_t *cursor, struct store_entry *ret_entry)
{
    struct owner *o = ctx;

    for (; *cursor < o->n_ids; ++*cursor)
        if (o->objects[*cursor].version) {
            *ret_entry = o->objects[(*cursor)++].entry;
            return true;
        }
    return false;
}

static bool ev_next_space(void *ctx, uint64_t *cursor, struct store_space *ret_space)
{
    struct owner *o = ctx;

    if (*cursor > 0 || !o->has_space)
        return false;
    *cursor = 1;
    *ret_space = o->space;
    return true;
}

static void evacuate_one(struct owner *o, uint32_t id)
{
    struct owner_object *x = &o->objects[id];

    if (owner_durability(o, id) == STORE_CACHE) {
        x->version = 0;
        x->history[x->n_history - 1].forgotten = true;
        store_forget(o->store, &x->entry);
        return;
    }
    if (x->is_moving)
        return;
    x->is_moving = true;
    if (put_start(o, id, x->version, true, false) < 0) {
        x->is_moving = false;
        o->evacuate[o->n_evacuations++] = x->entry.loc.segment;
    }
}

static void ev_evacuate(void *ctx, uint32_t segment)
{
    struct owner *o = ctx;

    for (uint32_t i = 0; i < o->n_ids; i++)
        if (o->objects[i].version && o->objects[i].entry.loc.segment == segment)
            evacuate_one(o, i);
}

static void evacuate_again(struct owner *o)
{
    uint32_t n = o->n_evacuations;
    uint32_t segments[OWNER_IDS_MAX];

    if (n == 0)
        return;
    memcpy(segments, o->evacuate, n * sizeof(segments[0]));
    o->n_evacuations = 0;
    for (uint32_t i = 0; i < n; i++)
        if (i == 0 || segments[i] != segments[i - 1])
            ev_evacuate(o, segments[i]);
}

static void ev_room(void *ctx)
{
    (void)ctx;
}

static void ev_failed(void *ctx, int why)
{
    struct owner *o = ctx;

    o->failed = why;
}

static void ev_flush_failed(void *ctx, int why)
{
    (void)ctx;
    (void)why;
}

static const struct store_events owner_events = {
    .replay_space = ev_replay_space,
    .replay_put = ev_replay_put,
    .replay_delete = ev_replay_delete,
    .replay_segment_freed = ev_replay_freed,
    .next_entry = ev_next_entry,
    .next_space = ev_next_space,
    .evacuate = ev_evacuate,
    .room = ev_room,
    .failed = ev_failed,
    .flush_failed = ev_flush_failed,
};

/* --- Life --- */

struct owner *owner_new(struct simdisk *disk, uint32_t dev, uint64_t device_bytes, uint32_t n_ids)
{
    struct owner *o = calloc(1, sizeof(*o));

    if (!o || n_ids > OWNER_IDS_MAX)
        abort();
    o->disk = disk;
    o->dev = dev;
    o->device_bytes = device_bytes;
    o->n_ids = n_ids;
    o->n_pools = 1;
    o->size_max_bytes = 256 * KIB;
    o->key_len = KEY_BYTES_MAX;
    o->budget_bytes = device_bytes;
    o->objects = calloc(n_ids, sizeof(*o->objects));
    o->sync_mark = calloc(n_ids, sizeof(*o->sync_mark));
    if (!o->objects || !o->sync_mark)
        abort();
    for (uint32_t i = 0; i < n_ids; i++)
        owner_history_add(&o->objects[i], 0);
    return o;
}

void owner_free(struct owner *o)
{
    if (!o)
        return;
    store_free(o->store);
    free(o->objects);
    free(o->sync_mark);
    free(o);
}

int owner_format(struct owner *o, uint32_t segment_bytes, uint64_t uuid)
{
    o->uuid = uuid;
    const struct store_format format = {
        .device_bytes = o->device_bytes,
        .segment_bytes = segment_bytes,
        .partitions = 1,
        .uuid = {uuid, ~uuid},
        .created_s = 1700000000,
        .label = "test",
    };

    return store_format_write(simdisk_backend(o->disk), (uint16_t)o->dev, &format);
}

/* The state that was found must be in the history; then the history begins anew with it. */
static void found(struct owner *o, struct owner_object *x)
{
    bool ok = false;

    for (uint32_t i = 0; i < x->n_history; i++)
        ok |= x->history[i].version == x->version || (x->history[i].forgotten && x->version == 0);
    o->n_lost += !ok;
    /* Later: an unsynced state of a class that promises nothing may be unreadable. */
    bool synced = x->history[0].version == x->version && !x->history[0].unpromised;
    bool promised = synced || x->entry.durability != STORE_CACHE;
    x->n_history = 0;
    owner_history_add(x, x->version);
    x->history[0].unpromised = !promised;
}

static void owner_reset(struct owner *o)
{
    o->region = simdisk_region_add(o->disk, OWNER_SLOTS * SLOT_BYTES(o));
    for (uint32_t i = 0; i < OWNER_SLOTS; i++)
        o->slots[i] = (struct owner_slot){.owner = o, .buf = {.region = o->region, .off = i * SLOT_BYTES(o)}};
    o->n_busy = o->n_evacuations = o->n_txn = o->n_txn_started = o->n_txn_writing = 0;
    o->txn = 0;
    o->syncing = false;
    o->failed = 0;
    o->has_space = false;
    for (uint32_t i = 0; i < o->n_ids; i++) {
        o->objects[i].version = 0;
        o->objects[i].writing = 0;
        o->objects[i].is_moving = o->objects[i].in_txn = false;
    }
}

/* Where they are, but with new generations. */
static int adopt_moved(struct owner *o)
{
    uint64_t generation = 0;
    struct store_entry *old = calloc(o->n_ids, sizeof(*old));
    int r = old ? 0 : -ENOMEM;

    for (uint32_t i = 0; i < o->n_ids; i++)
        generation = o->objects[i].version ? MAX(generation, o->objects[i].entry.generation) : generation;
    for (uint32_t i = 0; r == 0 && i < o->n_ids; i++) {
        struct owner_object *x = &o->objects[i];

        if (!x->version)
            continue;
        old[i] = x->entry;
        x->entry.generation = ++generation;
        if (i == o->space_again_at) {
            store_space_again(o->store, &o->space);
            o->has_space = true;
        }
        r = store_adopt_again(o->store, owner_pool(o, i), &x->entry);
        found(o, x);
    }
    if (r == 0)
        store_adopt_done(o->store);
    for (uint32_t i = o->n_ids; r == 0 && i-- > 0;)
        if (o->objects[i].version)
            store_delete_logged(o->store, &old[i]);
    free(old);
    return r < 0 ? r : o->failed;
}

int owner_open(struct owner *o, const char **ret_why)
{
    const struct store_config config = {
        .backend = simdisk_backend(o->disk),
        .dev = (uint16_t)o->dev,
        .device_bytes = o->device_bytes,
        .events = &owner_events,
        .ctx = o,
        .n_pools = o->n_pools,
    };

    owner_reset(o);
    int r = store_open(&config, &o->store, ret_why);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < o->n_pools; i++)
        store_pool_budget(o->store, i, o->budget_bytes);
    if (o->were_moved)
        return adopt_moved(o);
    for (uint32_t i = 0; i < o->n_ids; i++) {
        struct owner_object *x = &o->objects[i];
        if (i < o->refuse_below) {
            x->version = 0;
            x->history[x->n_history - 1] = (struct owner_state){0};
        }
        r = x->version ? store_adopt(o->store, owner_pool(o, i), &x->entry) : 0;
        if (r < 0)
            return r;
        found(o, x);
    }
    store_adopt_done(o->store);
    return o->failed;
}

void owner_turn(struct owner *o)
{
    o->now_ns += TURN_NS;
    (void)store_tick(o->store, o->now_ns);
    evacuate_again(o);
    for (uint64_t n = simdisk_below(o->disk, 12); n > 0; n--)
        (void)simdisk_step(o->disk);
}

void owner_settle(struct owner *o)
{
    for (uint32_t i = 0; (o->n_busy > 0 || o->syncing || o->n_evacuations > 0) && i < 1000000; i++)
        owner_turn(o);
    if (o->n_busy > 0 || o->syncing)
        abort(); /* stuck */
}

void owner_wait_sync(struct owner *o)
{
    while (o->syncing)
        owner_turn(o);
    (void)owner_sync(o);
    for (uint32_t i = 0; o->syncing; i++) {
        owner_turn(o);
        if (i == 1000000)
            abort(); /* stuck */
    }
}

int owner_close(struct owner *o)
{
    owner_settle(o);
    store_stop(o->store);
    for (uint32_t i = 0; !store_is_idle(o->store); i++) {
        owner_turn(o);
        if (i == 1000000)
            abort();
    }
    int r = store_close_clean(o->store);
    store_free(o->store);
    o->store = NULL;
    for (uint32_t i = 0; r == 0 && i < o->n_ids; i++) { /* the last state is the only one */
        struct owner_object *x = &o->objects[i];
        x->history[0] = x->history[x->n_history - 1];
        x->n_history = 1;
    }
    simdisk_restart(o->disk);
    return r;
}

void owner_crash(struct owner *o, bool power_loss)
{
    /* A put that did not complete is not in the log, so nothing of it may come back: the histories are complete. */
    if (power_loss)
        simdisk_crash(o->disk);
    else
        simdisk_restart(o->disk);
    store_free(o->store);
    o->store = NULL;
}
