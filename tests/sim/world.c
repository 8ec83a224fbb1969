/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disk, the engine and the clock. A backend in front of the disk's cuts the power in the middle of a recovery.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/mix.h"
#include "tests/sim/sim.h"
#include "tests/unit/support/zeroed.h"
#include "tiering/core.h"

#define SEGMENT_BYTES MIB

/* --- Backend: the disk's, but for the power -------------------------------------------------------------------------- */

static struct io_backend *disk_of(struct io_backend *be)
{
    return simdisk_backend(container_of(be, struct sim, wire)->disk);
}

static void wire_blk_submit(struct io_backend *be, struct io_blk *blk)
{
    hot_point();
    disk_of(be)->ops->blk_submit(disk_of(be), blk);
}

static void wire_blk_urge(struct io_backend *be, struct io_blk *blk)
{
    disk_of(be)->ops->blk_urge(disk_of(be), blk);
}

static void wire_work_submit(struct io_backend *be, struct io_work *work)
{
    hot_point();
    disk_of(be)->ops->work_submit(disk_of(be), work);
}

static void wire_chunk_request(struct io_backend *be, struct io_chunk *chunk)
{
    disk_of(be)->ops->chunk_request(disk_of(be), chunk);
}

static void wire_records_touch(struct io_backend *be, void *mem, uint64_t size_bytes)
{
    disk_of(be)->ops->records_touch(disk_of(be), mem, size_bytes);
}

static uint64_t wire_chunk_survived(struct io_backend *be, uint32_t region)
{
    return disk_of(be)->ops->chunk_survived(disk_of(be), region);
}

static void wire_chunk_close(struct io_backend *be, uint32_t region)
{
    hot_point();
    disk_of(be)->ops->chunk_close(disk_of(be), region);
}

static void wire_dma_submit(struct io_backend *be, struct io_dma *dma)
{
    disk_of(be)->ops->dma_submit(disk_of(be), dma);
}

static int wire_bounce_alloc(struct io_backend *be, uint64_t size_bytes, struct io_buf *ret_buf, void **ret_mem)
{
    return disk_of(be)->ops->bounce_alloc(disk_of(be), size_bytes, ret_buf, ret_mem);
}

static int wire_blk_now(struct io_backend *be, enum io_blk_op op, uint32_t dev, uint64_t off_bytes, void *mem,
                        uint64_t len_bytes)
{
    struct sim *sim = container_of(be, struct sim, wire);

    hot_point();
    if (sim->cut_after == 0)
        return -EIO;
    if (sim->cut_after > 0)
        sim->cut_after--;
    return disk_of(be)->ops->blk_now(disk_of(be), op, dev, off_bytes, mem, len_bytes);
}

static const struct io_backend_ops wire_ops = {
    .blk_submit = wire_blk_submit,
    .blk_urge = wire_blk_urge,
    .work_submit = wire_work_submit,
    .chunk_request = wire_chunk_request,
    .chunk_survived = wire_chunk_survived,
    .records_touch = wire_records_touch,
    .chunk_close = wire_chunk_close,
    .dma_submit = wire_dma_submit,
    .bounce_alloc = wire_bounce_alloc,
    .blk_now = wire_blk_now,
};

/* --- What the engine says -------------------------------------------------------------------------------------------- */

static void on_chunk_new(void *ctx, uint32_t region, uint32_t epoch, uint32_t pool, enum io_chunk_kind kind,
                         uint64_t session)
{
    sim_event(ctx, region + ((uint64_t)kind << 32), epoch + session * 1000 + pool);
}

static void on_chunk_gone(void *ctx, uint32_t region, uint32_t epoch)
{
    sim_event(ctx, region, epoch);
}

static void on_notice(void *ctx, const char *text, uint32_t pool, int status)
{
    struct sim *sim = ctx;

    sim_log(sim, "notice: %s (pool %u, %s)", text, pool, strerror(-status));
    sim_event(sim, pool, (uint64_t)(int64_t)status);
    if (strstr(text, "device failed")) {
        sim->degraded = true;
        sim->counts->store_failures++;
    }
}

static const struct tiering_events events = {
    .chunk_new = on_chunk_new, .chunk_gone = on_chunk_gone, .notice = on_notice};

/* --- Making ---------------------------------------------------------------------------------------------------------- */

static void world_format(struct sim *sim, uint32_t dev)
{
    struct store_format format = {.device_bytes = sim->device_bytes[dev],
                                  .segment_bytes = SEGMENT_BYTES,
                                  .partitions = sim->partitions[dev],
                                  .uuid = {sim->seed, dev},
                                  .label = "sim"};

    if (store_format_write(&sim->wire, (uint16_t)dev, &format) < 0)
        sim_fail(sim, "a fresh device cannot be formatted");
}

static void world_pools(struct sim *sim)
{
    uint64_t total = 0;

    for (uint32_t i = 0; i < sim->n_devs; i++)
        total += sim->device_bytes[i];
    for (uint32_t i = 0; i < 2; i++) {
        sim->pools[i] =
            (struct tiering_pool_config){.name = {'a', (char)('0' + i)},
                                         .trusted = i == 0,
                                         .dram_bytes = (i ? 3 : 4 + sim_below(sim, 4)) * MIB,
                                         .cxl_bytes = sim_percent(sim, 40) ? (1 + sim_below(sim, 4)) * MIB : 0,
                                         .nvme_bytes = total / 100 * (i ? 50 : 80),
                                         .session_bytes = MIB,
                                         .weight = 100,
                                         .max_leases_percent = 60,
                                         .prefetch_bytes = MIB};
    }
}

void world_make(struct sim *sim)
{
    static const struct policy_ops *const policies[] = {&policy_lru, &policy_s3fifo, &policy_arc, &policy_chain_hazard,
                                                        &policy_adaptive};
    static const uint32_t cxl_nodes[] = {1, 2};
    static const uint64_t cxl_weights[] = {MIB, 2 * MIB};

    sim->wire.ops = &wire_ops;
    sim->cut_after = -1;
    sim->disk = simdisk_new(sim->seed);
    sim->n_devs = 1 + (uint32_t)sim_below(sim, 2);
    for (uint32_t i = 0; i < sim->n_devs; i++) {
        sim->device_bytes[i] = (16 + sim_below(sim, 16)) * MIB;
        sim->partitions[i] = 1;
        if (sim_percent(sim, 15) && i == 0) {
            sim->partitions[i] = 2;
            sim->device_bytes[i] = 32 * MIB;
        }
        (void)simdisk_device_add(sim->disk, sim->device_bytes[i]);
        world_format(sim, i);
    }
    faults_make(sim);
    sim->budgets_on = sim_percent(sim, 50);
    world_pools(sim);
    sim->max_objects = 4096;
    sim->records = zeroed_alloc(tiering_records_bytes(sim->max_objects, SIM_MAX_LEASES));
    sim->config = (struct tiering_config){.backend = &sim->wire,
                                          .pools = sim->pools,
                                          .n_pools = 2,
                                          .node = 0,
                                          .cxl_nodes = cxl_nodes,
                                          .cxl_weights = cxl_weights,
                                          .n_cxl_nodes = 1 + (uint32_t)sim_below(sim, 2),
                                          .records = sim->records,
                                          .max_objects = sim->max_objects,
                                          .max_leases = SIM_MAX_LEASES,
                                          .max_moves = 64 + (uint32_t)sim_below(sim, 128),
                                          .clean_percent = 2 + (uint32_t)sim_below(sim, 20),
                                          .chunk_bytes_max = (1 + sim_below(sim, 2)) * MIB,
                                          .ghosts_max = SIM_GHOSTS_MAX,
                                          .piece_bytes = SIM_PIECE_BYTES,
                                          .parts_deadline_ns = UINT64_C(2000000000),
                                          .hash_seed = sim->seed,
                                          .events = &events,
                                          .ctx = sim};
    bool plans = mix64(sim->seed) % 8 == 0; /* not drawn: other seeds are the runs that they were before it came */

    for (int c = 0; c < TIERING_CLASSES; c++)
        sim->config.classes[c] = (struct tiering_class_config){.policy = policies[sim_below(sim, ARRAY_LEN(policies))],
                                                               .durability = STORE_CACHE,
                                                               .placement = (uint8_t)sim_below(sim, 3),
                                                               .weight = 1 + (uint32_t)sim_below(sim, 4)};
    for (int c = 0; c < TIERING_CLASSES && plans; c++)
        sim->config.classes[c].policy = &policy_plan;
    sim->lap.may_begin = plans && mix64(sim->seed ^ 1) % 2 == 0;
}

/* --- Budgets ---------------------------------------------------------------------------------------------------------- */

static void world_forget_budgets(struct sim *sim)
{
    if (sim->is_hot)
        return; /* whoever starts the engine again gives it what it had */
    memset(sim->held, 0, sizeof(sim->held));
    for (uint32_t i = 0; i < 2; i++) {
        sim->budget[i][TIERING_BUDGET_DRAM] = sim->pools[i].dram_bytes;
        sim->budget[i][TIERING_BUDGET_CXL] = sim->pools[i].cxl_bytes;
        sim->budget[i][TIERING_BUDGET_NVME] = sim->pools[i].nvme_bytes;
    }
}

/* Memory within the budget stays within it, and what is above it never grows: somebody else may have the rest. */
static void world_check_budgets(struct sim *sim)
{
    for (uint32_t i = 0; i < 2; i++) {
        struct tiering_pool_memory memory;

        tiering_pool_memory(sim->tiering, i, &memory);
        for (int b = TIERING_BUDGET_DRAM; b <= TIERING_BUDGET_CXL; b++) {
            if (memory.held[b] > MAX(sim->budget[i][b], sim->held[i][b]))
                sim_fail(sim, "pool %u holds %lu bytes, had %lu and may have %lu", i, memory.held[b], sim->held[i][b],
                         sim->budget[i][b]);
            sim->counts->given_back += memory.held[b] < sim->held[i][b];
            sim->held[i][b] = memory.held[b];
        }
    }
}

void world_change_budget(struct sim *sim)
{
    uint32_t i = (uint32_t)sim_below(sim, 2);
    uint64_t dram_bytes = (2 + sim_below(sim, 7)) * MIB;

    world_set_budget(sim, i, dram_bytes, sim->pools[i].cxl_bytes ? sim_below(sim, 5) * MIB : 0);
}

void world_set_budget(struct sim *sim, uint32_t pool, uint64_t dram_bytes, uint64_t cxl_bytes)
{
    world_check_budgets(sim); /* it may have taken what it had until now */
    sim->budget[pool][TIERING_BUDGET_DRAM] = dram_bytes;
    sim->budget[pool][TIERING_BUDGET_CXL] = cxl_bytes;
    sim_log(sim, "pool %u: %lu MiB of DRAM, %lu of CXL", pool, sim->budget[pool][TIERING_BUDGET_DRAM] / MIB,
            sim->budget[pool][TIERING_BUDGET_CXL] / MIB);
    tiering_pool_budget(sim->tiering, pool, sim->budget[pool]);
    sim->counts->budgets++;
}

/* --- Opening --------------------------------------------------------------------------------------------------------- */

static void world_spaces(struct sim *sim)
{
    static const uint8_t class_of[SIM_SPACES] = {3, 2, 4, 4, 2, 0, 1, 4, 0, 1};

    for (uint32_t i = 0; i < SIM_SPACES; i++) {
        struct object o = {.space = (uint8_t)i};
        struct tiering_space_spec spec = {.pool = i >= SPACE_SHARED_CACHE || i == SPACE_TENSOR_SHARED,
                                          .class_id = class_of[i],
                                          .durability = (uint8_t)(object_durability(&o) + 1)};

        spec.digest[0] = (uint8_t)i;
        uint32_t index = sim->spaces[i].index;
        if (tiering_space_open(sim->tiering, &spec, &sim->spaces[i]) < 0)
            sim_fail(sim, "space %u cannot be opened", i);
        if (sim->is_hot && sim->spaces[i].index != index)
            sim_fail(sim, "space %u has another number", i);
    }
}

static void world_forget(struct sim *sim)
{
    rings_close(sim);
    for (uint32_t i = 0; i < SIM_SESSIONS && sim->tiering; i++) {
        if (sim->sessions[i].alive)
            room_session_end(sim->tiering, &sim->sessions[i].s); /* its memory is freed with the rest */
    }
    if (sim->tiering) {
        tiering_free(sim->tiering);
        sim->tiering = NULL;
    }
}

static int world_try_open(struct sim *sim)
{
    const char *why = "";

    sim->config.survived = sim->is_hot;
    if (!sim->is_hot)
        zeroed_again(sim->records, tiering_records_bytes(sim->max_objects, SIM_MAX_LEASES));
    sim->n_stores = 0;
    world_forget_budgets(sim);
    int r = tiering_new(&sim->config, &sim->tiering);
    for (uint32_t dev = 0; r == 0 && dev < sim->n_devs; dev++) {
        for (uint16_t part = 0; r == 0 && part < sim->partitions[dev]; part++) {
            r = tiering_store_add(sim->tiering, (uint16_t)dev, part, sim->device_bytes[dev], &why);
            sim->n_stores += r == 0;
        }
    }
    for (uint32_t i = 0; r == 0 && i < 2; i++)
        tiering_pool_budget(sim->tiering, i, sim->budget[i]);
    if (r == 0 && sim->is_hot) {
        if (!tiering_is_warm(sim->tiering, &why))
            sim_fail(sim, "what its process left is not believed: %s", why);
        hot_sessions_return(sim);
    }
    if (r == 0)
        r = tiering_start(sim->tiering);
    if (r < 0 && sim->cut_after != 0)
        sim_fail(sim, "cannot be opened: %s (%s)", strerror(-r), why);
    return r;
}

void world_open(struct sim *sim)
{
    sim->degraded = false;
    faults_end(sim);
    for (uint32_t dev = 0; dev < sim->n_devs; dev++)
        simdisk_die(sim->disk, dev, false);
    while (sim_percent(sim, 30)) {
        /* The power goes in the middle of it. */
        sim->cut_after = (int64_t)sim_below(sim, 60);
        int r = world_try_open(sim);
        if (r == 0)
            sim->cut_after = 0;
        sim_event(sim, 77, (uint64_t)(int64_t)r);
        sim->counts->failed_recoveries++;
        if (sim_percent(sim, 50))
            simdisk_crash(sim->disk);
        else
            simdisk_kill(sim->disk);
        world_forget(sim);
        sim->cut_after = -1;
    }
    (void)world_try_open(sim);
    world_spaces(sim);
    for (uint64_t have = 0, want = 1; have < want;) {
        world_run(sim, 4, 1000);
        if (tiering_ready(sim->tiering, &have, &want))
            break;
    }
    gpu_restarted(sim);
    rings_open(sim);
    faults_begin(sim);
    world_check(sim);
}

static void try_open(struct sim *sim)
{
    (void)world_try_open(sim);
}

/* It may die again, while it opens: by a request that fails, or anywhere. */
static void world_open_hot(struct sim *sim)
{
    struct tiering_warm_counts counts;

    sim->is_hot = true;
    sim->degraded = false;
    faults_end(sim);
    for (uint32_t dev = 0; dev < sim->n_devs; dev++)
        simdisk_die(sim->disk, dev, false);
    while (sim_percent(sim, 30)) {
        bool by_request = sim_percent(sim, 50);

        sim->cut_after = by_request ? (int64_t)sim_below(sim, 60) : -1;
        bool died = hot_dies_in(sim, by_request ? UINT64_MAX : 1 + sim_below(sim, 400), try_open);
        sim_event(sim, 78, died);
        sim->counts->hot_in_recovery += died || sim->cut_after == 0;
        sim->cut_after = -1;
        simdisk_hot_restart(sim->disk);
        world_forget(sim);
    }
    (void)world_try_open(sim);
    world_spaces(sim);
    hot_look_again(sim);
    uint64_t have = 0, want = 0;
    do
        world_run(sim, 4, 1000);
    while (!tiering_ready(sim->tiering, &have, &want));
    sim->is_hot = false;
    gpu_restarted(sim);
    tiering_warm_counts(sim->tiering, &counts);
    sim->counts->hot_ended += counts.leases_ended;
    sim->counts->hot_redone += counts.redone;
    sim->counts->hot_forgotten += counts.forgotten;
    if (counts.lost)
        sim_fail(sim, "%lu pieces have lost their bytes in a hot restart", counts.lost);
    hot_resolve(sim);
    rings_open(sim);
    faults_begin(sim);
}

/* --- Running --------------------------------------------------------------------------------------------------------- */

void world_run(struct sim *sim, uint32_t io, uint64_t ns)
{
    sim->now_ns += ns;
    uint32_t n = 0;

    for (; n < io && simdisk_step(sim->disk); n++)
        sim_event(sim, 1, simdisk_pending(sim->disk));
    uint64_t tick_ns = tiering_tick(sim->tiering, sim->now_ns);
    rings_run(sim, n > 0, tick_ns);
    world_check_budgets(sim);
}

void world_check(struct sim *sim)
{
    const char *what = "";

    if (tiering_check(sim->tiering, &what) < 0)
        sim_fail(sim, "tiering_check: %s", what);
}

bool world_is_quiet(const struct sim *sim)
{
    struct tiering_stat stat;

    tiering_stat(sim->tiering, &stat);
    return simdisk_pending(sim->disk) == 0 && stat.moves == 0;
}

static void world_log_stores(struct sim *sim)
{
    struct store_stat s;

    for (uint32_t i = 0; i < sim->n_stores; i++) {
        tiering_store_stat(sim->tiering, i, &s);
        sim_log(sim,
                "store %u: %lu segments, %lu free, %lu open, %lu pending free; %lu bytes live; %lu put, %lu got, %lu "
                "reclaimed, %lu checksum errors, failed %d",
                i, s.segments, s.segments_free, s.segments_open, s.segments_pending_free, s.live_bytes, s.put_bytes,
                s.got_bytes, s.reclaimed_segments, s.checksum_errors, s.failed);
    }
}

void world_settle(struct sim *sim)
{
    struct tiering_stat stat;

    for (int turn = 0; turn < 500; turn++) {
        world_run(sim, 16, 10000000);
        waits_ended(sim);
        if (world_is_quiet(sim))
            return;
    }
    tiering_stat(sim->tiering, &stat);
    world_log_stores(sim);
    if (stat.moves > 8)
        sim_fail(sim, "it never gets quiet: %lu moves, %u requests", stat.moves, simdisk_pending(sim->disk));
    sim->counts->restless++;
}

uint8_t *world_memory(struct sim *sim, const struct tiering_grant *grant)
{
    return simdisk_memory(sim->disk, grant->region) + grant->offset_bytes;
}

uint64_t world_only_copy(const struct sim *sim, const struct object *o, uint32_t part, uint32_t piece)
{
    const struct record_table *records = &sim->tiering->records;
    struct tiering_id id = object_piece_id(sim, o, part, piece);
    uint32_t object = record_find(records, &id, record_hash_id(records, &id));

    if (object == RECORD_NONE)
        return 0;
    const struct record *r = record_at(records, object);
    bool another =
        (r->flags & RECORD_HAS_MEM) || (hot_at(sim->tiering, object)->flags & (HOT_LOADING | HOT_RELOCATING));
    return (r->flags & RECORD_HAS_DEV) && !another ? r->generation : 0;
}

/* --- Ends ------------------------------------------------------------------------------------------------------------ */

static void world_count(struct sim *sim)
{
    struct sim_counts *c = sim->counts;
    struct tiering_pool_stat pool;
    struct store_stat store;
    struct tiering_stat stat;

    for (uint32_t i = 0; i < 2; i++) {
        tiering_pool_stat(sim->tiering, i, &pool);
        c->evictions += pool.evictions;
        c->drops += pool.drops;
        c->spills += pool.spills;
        c->loads += pool.loads;
        c->commits += pool.commits;
        c->demotions += pool.demotions;
        c->promotions += pool.promotions;
        c->evacuations += pool.evacuations;
        c->prefetched += pool.prefetched;
        c->prefetched_used += pool.prefetched_used;
        c->prefetched_wasted += pool.prefetched_wasted;
    }
    for (uint32_t i = 0; i < sim->n_stores; i++) {
        tiering_store_stat(sim->tiering, i, &store);
        c->reclaims += store.reclaimed_segments;
        c->checkpoints += store.checkpoints;
        c->flips_detected += store.checksum_errors;
    }
    tiering_stat(sim->tiering, &stat);
    c->copied += stat.copied_bytes;
    c->migrated += stat.migrated_bytes;
    c->bounced += stat.bounced_bytes;
}

static void world_sessions_die(struct sim *sim)
{
    rings_end_clients(sim, false);
    for (uint32_t i = 0; i < SIM_SESSIONS; i++)
        session_end(sim, i);
}

static void world_restarted(struct sim *sim, bool clean)
{
    model_restarted(sim, clean);
    ring_objects_restarted(sim, clean);
    world_open(sim);
    struct simdisk_faults faults = *simdisk_faults(sim->disk);
    simdisk_faults(sim->disk)->read_error = 0;
    model_look_all(sim);
    tensors_check_restart(sim);
    *simdisk_faults(sim->disk) = faults;
    sessions_begin(sim);
}

void world_crash(struct sim *sim, bool power)
{
    sim_log(sim, "%s", power ? "CRASH" : "KILL");
    world_count(sim);
    /* Sessions first, so that no memory is lost; what they do to the log in memory never reaches the device. */
    for (uint32_t n = 0; n < SIM_SYNCS; n++) {
        if (sim->syncs[n].running)
            sim->counts->sync_lost++;
    }
    if (power)
        simdisk_crash(sim->disk);
    else
        simdisk_kill(sim->disk);
    sim->dead = true;
    world_sessions_die(sim);
    world_forget(sim);
    simdisk_restart(sim->disk);
    sim->dead = false;
    sim->unclean = true;
    sim->counts->crashes += power;
    sim->counts->kills += !power;
    world_restarted(sim, false);
}

void world_hot_crash(struct sim *sim, bool inside)
{
    sim_log(sim, "HOT CRASH%s", inside ? " inside a step" : "");
    if (!inside) /* else its lists may end on a stack that is gone */
        world_count(sim);
    hot_look(sim, inside);
    rings_die(sim);
    simdisk_hot_restart(sim->disk);
    world_forget(sim);
    sim->counts->hot_crashes++;
    sim->counts->hot_inside += inside;
    world_open_hot(sim);
}

/* Does every device say that its stores were closed? It may, though the last flush of a stop failed. */
static bool all_say_closed(struct sim *sim)
{
    for (uint32_t dev = 0; dev < sim->n_devs; dev++) {
        struct store_identity identity;
        const char *why;

        if (store_identify(simdisk_backend(sim->disk), dev, sim->device_bytes[dev], &identity, &why) < 0 ||
            identity.clean != identity.format.partitions)
            return false;
    }
    return true;
}

/* What the engine does when nobody is served any more. */
static int world_close(struct sim *sim, bool drains)
{
    for (int turn = 0; drains && !tiering_drain(sim->tiering); turn++) {
        world_run(sim, 8, 1000000);
        if (turn == 20000)
            sim_fail(sim, "it never ends to write back before a stop");
    }
    tiering_stop(sim->tiering);
    for (int turn = 0; !tiering_idle(sim->tiering) || !rings_are_idle(sim); turn++) {
        world_run(sim, 8, 1000000);
        if (turn == 20000)
            sim_fail(sim, "it never gets idle after a stop");
    }
    world_count(sim);
    return tiering_close_clean(sim->tiering);
}

void world_stop_clean(struct sim *sim)
{
    struct tiering_pool_stat pool;

    sim_log(sim, "STOP");
    simdisk_faults(sim->disk)->read_error = 0;
    sim->calm = true;
    world_sessions_die(sim);
    world_settle(sim);
    world_check(sim);
    for (uint32_t i = 0; i < 2; i++) {
        tiering_pool_stat(sim->tiering, i, &pool);
        if (pool.leased || pool.admitted)
            sim_fail(sim, "pool %u: %lu bytes leased, %lu admitted, though no session is left", i, pool.leased,
                     pool.admitted);
    }
    int r = world_close(sim, true);
    if (r < 0 && !sim->degraded)
        sim_fail(sim, "cannot be closed: %s", strerror(-r));
    simdisk_restart(sim->disk);
    world_forget(sim);
    sim->counts->clean_stops++;
    sim->calm = false;
    world_restarted(sim, r == 0 || all_say_closed(sim));
}

/* GPUs' lanes end first, and with them what is in flight. */
static void transfers_end(struct sim *sim)
{
    for (uint32_t i = 0, turn = 0; i < SIM_DMAS; turn++) {
        if (!sim->dmas[i].used) {
            i++;
            continue;
        }
        world_run(sim, 8, 1000000);
        waits_ended(sim);
        if (turn == 20000)
            sim_fail(sim, "a transfer never ends");
    }
}

void world_stop_hot(struct sim *sim, bool drains)
{
    sim_log(sim, "STOP, and its memory stays");
    simdisk_faults(sim->disk)->read_error = 0;
    sim->calm = true;
    transfers_end(sim);
    rings_end_clients(sim, true);
    for (uint32_t i = 0; i < SIM_SESSIONS; i++) {
        if (sim->sessions[i].alive)
            session_leave(sim, i);
    }
    int r = world_close(sim, drains);
    if (r < 0 && !sim->degraded)
        sim_fail(sim, "cannot be closed: %s", strerror(-r));
    hot_look(sim, false);
    simdisk_hot_restart(sim->disk);
    world_forget(sim);
    sim->counts->hot_stops++;
    sim->calm = false;
    world_open_hot(sim);
}

void world_free(struct sim *sim)
{
    const struct simdisk_stat *disk = simdisk_stat(sim->disk);

    world_count(sim);
    sim->counts->lost_sectors += disk->lost_sectors;
    sim->counts->torn_sectors += disk->torn_sectors;
    sim->counts->short_counts += disk->short_counts;
    sim->counts->io_failures += disk->errors;
    sim->counts->flipped_writes += disk->flipped_writes;
    sim->counts->misdirected_writes += disk->misdirected_writes;
    sim->counts->lost_writes += disk->lost_writes;
    sim->counts->late_writes += disk->late_writes;
    sim->counts->refused_chunks += disk->refused_chunks;
    sim->dead = true;
    world_sessions_die(sim);
    simdisk_restart(sim->disk);
    world_forget(sim);
    simdisk_free(sim->disk);
    rings_free(sim);
    zeroed_free(sim->records, tiering_records_bytes(sim->max_objects, SIM_MAX_LEASES));
}
