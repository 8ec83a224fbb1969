/* SPDX-License-Identifier: Apache-2.0 */
/* See tiering_rig.h. One thread, one rig at a time. */
#include "tests/unit/support/tiering_rig.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tiering/core.h"

#define MAX_OBJECTS 4096
#define MAX_LEASES 1000
#define TURNS_MAX 3000

const struct policy_ops *rig_policy = &policy_lru;

static void chunk_new(void *ctx, uint32_t region, uint32_t epoch, uint32_t pool, enum io_chunk_kind kind,
                      uint64_t session)
{
    struct rig *rig = ctx;

    (void)epoch;
    (void)pool;
    rig->chunk_kind[region] = (uint32_t)kind + 1;
    rig->chunk_session[region] = session;
}

static void chunk_gone(void *ctx, uint32_t region, uint32_t epoch)
{
    struct rig *rig = ctx;

    (void)epoch;
    rig->chunk_kind[region] = 0;
    rig->n_gone++;
}

static void notice(void *ctx, const char *text, uint32_t pool, int status)
{
    struct rig *rig = ctx;

    (void)pool;
    (void)status;
    if (strstr(text, "device failed"))
        rig->failed = true;
}

static const struct tiering_events events = {.chunk_new = chunk_new, .chunk_gone = chunk_gone, .notice = notice};

static void rig_start_over(struct rig *rig, bool survived, bool s_returns, bool other_returns)
{
    static const uint8_t durability[RIG_SPACES] = {STORE_CACHE, STORE_SCRATCH, STORE_DURABLE, STORE_CACHE,
                                                   STORE_DURABLE};
    const char *why = "";

    if (!survived)
        memset(rig->records, 0, tiering_records_bytes(MAX_OBJECTS, MAX_LEASES));
    rig->config.survived = survived;
    memset(rig->chunk_kind, 0, sizeof(rig->chunk_kind));
    rig->failed = false;
    ck_assert_int_eq(tiering_new(&rig->config, &rig->t), 0);
    for (uint16_t i = 0; i < rig->n_devices * rig->partitions; i++) {
        ck_assert_msg(tiering_store_add(rig->t, i / rig->partitions, i % rig->partitions, rig->device_bytes, &why) == 0,
                      "%s", why);
        if (rig->stores[i].weight)
            tiering_store_update(rig->t, i, &rig->stores[i]);
    }
    if (s_returns)
        tiering_session_init(rig->t, &rig->s, rig->s.number, 1, 100);
    if (other_returns)
        tiering_session_init(rig->t, &rig->other, rig->other.number, 2, 100);
    ck_assert_int_eq(tiering_start(rig->t), 0);
    for (uint32_t i = 0; i < RIG_SPACES; i++) {
        struct tiering_space_spec spec = {.pool = i >= RIG_SHARED, .durability = (uint8_t)(durability[i] + 1)};

        spec.digest[0] = (uint8_t)(i + 1);
        ck_assert_int_eq(tiering_space_open(rig->t, &spec, &rig->spaces[i]), 0);
    }
    if (!s_returns)
        tiering_session_init(rig->t, &rig->s, ++rig->n_sessions, 1, 100);
    if (!other_returns)
        tiering_session_init(rig->t, &rig->other, ++rig->n_sessions, 2, 100);
    for (uint64_t have = 0, want = 1; !tiering_ready(rig->t, &have, &want);)
        rig_turn(rig, 1, 1000);
}

void rig_start(struct rig *rig)
{
    rig->n_sessions = 0;
    rig_start_over(rig, false, false, false);
}

void rig_hot_end(struct rig *rig)
{
    simdisk_hot_restart(rig->disk);
    room_session_end(rig->t, &rig->s); /* so that it is freed; what is in the memory that survives is left alone */
    room_session_end(rig->t, &rig->other);
    tiering_free(rig->t);
}

void rig_hot_start(struct rig *rig, bool s_returns, bool other_returns)
{
    rig_start_over(rig, true, s_returns, other_returns);
}

void rig_hot(struct rig *rig, bool s_returns, bool other_returns)
{
    rig_hot_end(rig);
    rig_hot_start(rig, s_returns, other_returns);
}

void rig_open(struct rig *rig, uint64_t dram_bytes, uint64_t device_bytes)
{
    rig_open_memory(rig, &(struct rig_memory){.dram_bytes = dram_bytes, .device_bytes = device_bytes});
}

void rig_open_memory(struct rig *rig, const struct rig_memory *memory)
{
    rig_prepare(rig, memory, memory->device_bytes ? 1 : 0);
    rig_start(rig);
}

void rig_prepare(struct rig *rig, const struct rig_memory *memory, uint32_t n_devices)
{
    static const uint32_t cxl_nodes[] = {RIG_CXL_NODE, RIG_CXL_NODE + 1};
    static const uint64_t cxl_weights[] = {1, 3};
    uint64_t device_bytes = memory->device_bytes;

    *rig = (struct rig){.now_ns = 1000000000,
                        .device_bytes = device_bytes,
                        .n_devices = n_devices,
                        .partitions = MAX(memory->partitions, (uint16_t)1)};
    rig->disk = simdisk_new(1);
    rig->records = aligned_alloc(64, round_up(tiering_records_bytes(MAX_OBJECTS, MAX_LEASES), 64));
    ck_assert_ptr_nonnull(rig->records);
    for (uint16_t i = 0; i < n_devices; i++) {
        struct store_format format = {
            .device_bytes = device_bytes, .segment_bytes = MIB, .partitions = rig->partitions, .uuid = {1, i + 2}};

        (void)simdisk_device_add(rig->disk, device_bytes);
        ck_assert_int_eq(store_format_write(simdisk_backend(rig->disk), i, &format), 0);
    }
    for (uint32_t i = 0; i < 2; i++)
        rig->pools[i] = (struct tiering_pool_config){.name = {(char)('a' + i)},
                                                     .trusted = i == 0,
                                                     .dram_bytes = memory->dram_bytes,
                                                     .cxl_bytes = memory->cxl_bytes,
                                                     .nvme_bytes = device_bytes ? UINT64_MAX : 0,
                                                     .session_bytes = 2 * MIB,
                                                     .weight = 100,
                                                     .max_leases_percent = 80};
    rig->config = (struct tiering_config){.backend = simdisk_backend(rig->disk),
                                          .pools = rig->pools,
                                          .n_pools = 2,
                                          .cxl_nodes = cxl_nodes,
                                          .cxl_weights = cxl_weights,
                                          .n_cxl_nodes = memory->cxl_bytes ? 2 : 0,
                                          .chunk_bytes_max = memory->chunk_bytes,
                                          .records = rig->records,
                                          .max_objects = MAX_OBJECTS,
                                          .max_leases = MAX_LEASES,
                                          .max_moves = 128,
                                          .clean_percent = 2,
                                          .piece_bytes = RIG_PIECE,
                                          .parts_deadline_ns = UINT64_C(10000000000),
                                          .hash_seed = 7,
                                          .events = &events,
                                          .ctx = rig};
    for (int c = 0; c < TIERING_CLASSES; c++)
        rig->config.classes[c] =
            (struct tiering_class_config){.policy = rig_policy, .placement = memory->placement, .weight = 1};
}

static void rig_stop(struct rig *rig)
{
    tiering_session_end(rig->t, &rig->s);
    tiering_session_end(rig->t, &rig->other);
}

void rig_crash(struct rig *rig, bool power)
{
    if (power)
        simdisk_crash(rig->disk);
    else
        simdisk_restart(rig->disk);
    rig_stop(rig); /* so that no memory is lost; the disk never hears of it */
    tiering_free(rig->t);
    simdisk_restart(rig->disk);
    rig_start(rig);
}

static void rig_end(struct rig *rig)
{
    rig_stop(rig);
    rig_settle(rig);
    rig_check(rig);
    ck_assert_uint_eq(rig_pool_stat(rig, 0).leased + rig_pool_stat(rig, 1).leased, 0);
    ck_assert_uint_eq(rig_pool_stat(rig, 0).admitted + rig_pool_stat(rig, 1).admitted, 0);
    for (int turn = 0; !tiering_drain(rig->t); turn++) {
        ck_assert_int_lt(turn, TURNS_MAX);
        rig_turn(rig, 4, 1000000);
    }
    tiering_stop(rig->t);
    for (int turn = 0; !tiering_idle(rig->t); turn++) {
        ck_assert_int_lt(turn, TURNS_MAX);
        rig_turn(rig, 4, 1000000);
    }
    ck_assert_int_eq(tiering_close_clean(rig->t), rig->failed ? -EIO : 0);
    simdisk_restart(rig->disk);
    tiering_free(rig->t);
}

void rig_restart(struct rig *rig)
{
    rig_end(rig);
    rig_start(rig);
}

void rig_close(struct rig *rig)
{
    rig_end(rig);
    simdisk_free(rig->disk);
    free(rig->records);
}

struct tiering_id rig_id(const struct rig *rig, enum rig_space space, uint32_t key)
{
    struct tiering_id id = {.space = rig->spaces[space].index, .n_parts = 1, .key_len = sizeof(key)};

    memcpy(id.key, &key, sizeof(key));
    return id;
}

void rig_turn(struct rig *rig, uint32_t io, uint64_t ns)
{
    rig->now_ns += ns;
    while (io-- > 0 && simdisk_step(rig->disk))
        ;
    (void)tiering_tick(rig->t, rig->now_ns);
}

void rig_settle(struct rig *rig)
{
    struct tiering_stat stat;

    for (int turn = 0; turn < TURNS_MAX; turn++) {
        rig_turn(rig, 8, 10000000);
        tiering_stat(rig->t, &stat);
        if (stat.moves == 0 && simdisk_pending(rig->disk) == 0)
            return;
    }
    ck_abort_msg("it never gets quiet");
}

void rig_evict(struct rig *rig, const struct tiering_id *id)
{
    for (int twice = 0; twice < 2; twice++) { /* written first, then dropped from memory */
        ck_assert_int_eq(tiering_advise(rig->t, id, TIERING_NOT_AGAIN, 0, rig->now_ns), 0);
        rig_settle(rig);
    }
}

static void wait_done(struct tiering_wait *wait, int status)
{
    container_of(wait, struct rig_wait, wait)->status = status;
}

void rig_wait_init(struct rig_wait *w)
{
    *w = (struct rig_wait){.wait = {.done = wait_done}, .status = 1};
}

int rig_wait(struct rig *rig, struct rig_wait *w)
{
    for (int turn = 0; w->status == 1; turn++) {
        if (turn == TURNS_MAX)
            return -ETIMEDOUT;
        rig_turn(rig, 1, 100000);
    }
    return w->status;
}

uint8_t *rig_memory(struct rig *rig, const struct tiering_grant *grant)
{
    return simdisk_memory(rig->disk, grant->region) + grant->offset_bytes;
}

void rig_check(struct rig *rig)
{
    const char *what = "";

    ck_assert_msg(tiering_check(rig->t, &what) == 0, "%s", what);
}

uint64_t rig_node_bytes(const struct rig *rig, uint32_t node)
{
    uint64_t bytes = 0;

    for (uint32_t region = 0; region < ARRAY_LEN(rig->chunk_kind); region++) {
        if (rig->chunk_kind[region])
            bytes += simdisk_region_bytes(rig->disk, region, node);
    }
    return bytes;
}

struct tiering_pool_stat rig_pool_stat(const struct rig *rig, uint32_t pool)
{
    struct tiering_pool_stat stat;

    tiering_pool_stat(rig->t, pool, &stat);
    return stat;
}

/* --- Operations ---------------------------------------------------------------------------------------------------------- */

static int ended(struct rig *rig, struct rig_wait *w, int r, struct tiering_grant *ret_grant)
{
    if (r != TIERING_WAIT)
        return r;
    r = rig_wait(rig, w);
    if (r == -ETIMEDOUT)
        ck_assert(tiering_wait_cancel(rig->t, &w->wait));
    *ret_grant = w->wait.grant;
    return r;
}

static int answered(struct rig *rig, struct tiering_session *s, int r, const struct tiering_grant *grant)
{
    if (r == 0)
        tiering_lease_request(rig->t, s, grant->lease, ++rig->request);
    return r;
}

int rig_reserve(struct rig *rig, struct tiering_session *s, const struct tiering_id *id, uint64_t object_bytes,
                uint32_t size_bytes, struct tiering_grant *ret_grant)
{
    struct rig_wait w;

    rig_wait_init(&w);
    return answered(
        rig, s, ended(rig, &w, tiering_reserve(rig->t, s, id, object_bytes, size_bytes, &w.wait, ret_grant), ret_grant),
        ret_grant);
}

int rig_commit(struct rig *rig, struct tiering_session *s, uint64_t lease)
{
    struct tiering_grant grant;
    struct rig_wait w;

    rig_wait_init(&w);
    return ended(rig, &w, tiering_commit(rig->t, s, lease, &w.wait, &grant), &grant);
}

int rig_acquire(struct rig *rig, struct tiering_session *s, const struct tiering_id *id, unsigned flags,
                struct tiering_grant *ret_grant)
{
    struct rig_wait w;

    rig_wait_init(&w);
    return answered(rig, s, ended(rig, &w, tiering_acquire(rig->t, s, id, 0, 0, flags, &w.wait, ret_grant), ret_grant),
                    ret_grant);
}

int rig_release(struct rig *rig, struct tiering_session *s, uint64_t lease, unsigned flags)
{
    struct tiering_grant grant;
    struct rig_wait w;

    rig_wait_init(&w);
    return ended(rig, &w, tiering_release_wait(rig->t, s, lease, flags, &w.wait, &grant), &grant);
}

int rig_put(struct rig *rig, const struct tiering_id *id, uint32_t size_bytes, uint32_t seed)
{
    struct tiering_grant grant;
    int r = rig_reserve(rig, &rig->s, id, size_bytes, size_bytes, &grant);

    if (r < 0)
        return r;
    rig_fill(rig_memory(rig, &grant), size_bytes, seed);
    return rig_commit(rig, &rig->s, grant.lease);
}

static void raw_put_done(struct store_put *put, int status)
{
    (void)put;
    ck_assert_int_eq(status, 0);
}

int rig_raw_put(struct rig *rig, const struct store_entry *like, uint32_t size_bytes, uint32_t seed)
{
    struct io_backend *be = simdisk_backend(rig->disk);
    uint32_t region = simdisk_region_add(rig->disk, RIG_PIECE);
    struct store_put put = {.id = like->id,
                            .buf.region = region,
                            .object_bytes = size_bytes,
                            .size_bytes = size_bytes,
                            .n_parts = like->n_parts,
                            .class_id = like->class_id,
                            .durability = like->durability,
                            .kind = like->kind,
                            .evacuating = 1,
                            .done = raw_put_done};

    rig_fill(simdisk_memory(rig->disk, region), size_bytes, seed);
    int r = store_put(rig->t->stores[0].store, &put);

    rig_settle(rig);
    be->ops->chunk_close(be, region);
    return r;
}

int rig_get(struct rig *rig, const struct tiering_id *id, uint32_t seed)
{
    struct tiering_grant grant;
    int r = rig_acquire(rig, &rig->s, id, 0, &grant);

    if (r < 0)
        return r;
    bool same = rig_is(rig_memory(rig, &grant), grant.length_bytes, seed);
    ck_assert_int_eq(tiering_release(rig->t, &rig->s, grant.lease, 0), 0);
    return same ? 0 : -EILSEQ;
}

int rig_write(struct rig *rig, const struct tiering_id *id, uint32_t seed)
{
    struct tiering_grant grant;
    int r = rig_acquire(rig, &rig->s, id, TIERING_WRITE, &grant);

    if (r < 0)
        return r;
    rig_fill(rig_memory(rig, &grant), grant.length_bytes, seed);
    return rig_release(rig, &rig->s, grant.lease, TIERING_DIRTY);
}

struct rig_sync {
    struct tiering_sync sync;
    int status;
};

static void sync_done(struct tiering_sync *sync, int status)
{
    container_of(sync, struct rig_sync, sync)->status = status;
}

int rig_sync(struct rig *rig, enum rig_space space, const struct tiering_id *ids, uint32_t n)
{
    struct rig_sync y = {.sync = {.done = sync_done}, .status = 1};
    int r = 0;

    tiering_sync_begin(rig->t, &y.sync, rig->spaces[space].index);
    for (uint32_t i = 0; i < n && r == 0; i++)
        r = tiering_sync_add(rig->t, &y.sync, &ids[i]);
    if (n == 0)
        r = tiering_sync_add_space(rig->t, &y.sync);
    tiering_sync_run(rig->t, &y.sync);
    for (int turn = 0; y.status == 1; turn++) {
        ck_assert_int_lt(turn, TURNS_MAX);
        rig_turn(rig, 1, 100000);
    }
    return r < 0 ? r : y.status;
}

/* Eight bytes at a time: sanitizers make bytes dear. */
static uint64_t word(uint32_t seed, uint32_t i)
{
    return (seed * UINT64_C(0x9e3779b97f4a7c15) + i) * UINT64_C(0xbf58476d1ce4e5b9);
}

void rig_fill(uint8_t *bytes, uint32_t size_bytes, uint32_t seed)
{
    for (uint32_t i = 0; i < size_bytes; i += 8) {
        uint64_t w = word(seed, i);

        memcpy(bytes + i, &w, MIN(size_bytes - i, 8U));
    }
}

bool rig_is(const uint8_t *bytes, uint32_t size_bytes, uint32_t seed)
{
    for (uint32_t i = 0; i < size_bytes; i += 8) {
        uint64_t w = seed ? word(seed, i) : 0;

        if (memcmp(bytes + i, &w, MIN(size_bytes - i, 8U)) != 0)
            return false;
    }
    return true;
}
