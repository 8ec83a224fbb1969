/* SPDX-License-Identifier: Apache-2.0 */
/* See world.h. */
#include "tests/fuzz/support/world.h"

#include <errno.h>
#include <sys/mman.h>

#include "tests/fuzz/support/snapshot.h"

struct world world;

static void *records; /* of the snapshot, or not */

static void on_chunk_new(void *ctx, uint32_t region, uint32_t epoch, uint32_t pool, enum io_chunk_kind kind,
                         uint64_t session)
{
    (void)ctx;
    fuzz_check(region < WORLD_REGIONS && !world.chunks[region].is_there);
    world.chunks[region] = (struct world_chunk){true, epoch, pool, kind, session};
}

static void on_chunk_gone(void *ctx, uint32_t region, uint32_t epoch)
{
    (void)ctx;
    fuzz_check(region < WORLD_REGIONS && world.chunks[region].is_there && world.chunks[region].epoch == epoch);
    world.chunks[region].is_there = false;
}

static void on_notice(void *ctx, const char *text, uint32_t pool, int status)
{
    (void)ctx;
    (void)pool;
    (void)status;
    world.failed |= strstr(text, "device failed") != NULL;
}

static const struct tiering_events events = {
    .chunk_new = on_chunk_new, .chunk_gone = on_chunk_gone, .notice = on_notice};

void world_format(void)
{
    const struct store_format format = {
        .device_bytes = DISK_BYTES, .segment_bytes = MIB, .partitions = 1, .uuid = {1, 2}, .label = "fuzz"};

    fuzz_check(store_format_write(disk_backend(), 0, &format) == 0);
}

void world_turn(uint32_t io, uint64_t ns)
{
    world.now_ns += ns;
    while (io-- > 0 && disk_step())
        ;
    (void)tiering_tick(world.t, world.now_ns);
}

static const struct policy_ops *policy_of(unsigned how, int class_id)
{
    if (how & WORLD_PLAN)
        return &policy_plan;
    return class_id == 0 && (how & WORLD_CHAIN) ? &policy_chain_hazard : &policy_lru;
}

static struct tiering_config config_of(unsigned how)
{
    static struct tiering_pool_config pools[2];
    struct tiering_config config = {.backend = disk_backend(),
                                    .pools = pools,
                                    .n_pools = 2,
                                    .max_objects = WORLD_OBJECTS,
                                    .max_leases = 64,
                                    .max_moves = WORLD_MOVES,
                                    .clean_percent = 2,
                                    .piece_bytes = WORLD_PIECE_BYTES,
                                    .parts_deadline_ns = UINT64_C(10000000000),
                                    .hash_seed = 7,
                                    .survived = how & WORLD_HOT,
                                    .ghosts_max = WORLD_GHOSTS,
                                    .events = &events};

    for (uint32_t i = 0; i < 2; i++)
        pools[i] = (struct tiering_pool_config){.name = {(char)('a' + i)},
                                                .trusted = i == 0,
                                                .dram_bytes = MIB,
                                                .nvme_bytes = UINT64_MAX,
                                                .session_bytes = MIB / 2,
                                                .weight = 100,
                                                .max_leases_percent = 80,
                                                .user_leases_percent = 60};
    for (int c = 0; c < TIERING_CLASSES; c++)
        config.classes[c] = (struct tiering_class_config){.policy = policy_of(how, c), .weight = 1};
    return config;
}

static void *records_new(uint64_t size_bytes)
{
    static void *mem; /* megabytes, of which little is touched */

    if (snapshot_begun())
        return snapshot_pages(size_bytes);
    if (!mem)
        mem = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fuzz_check(mem != MAP_FAILED && madvise(mem, size_bytes, MADV_DONTNEED) == 0);
    return mem;
}

void world_new(unsigned how)
{
    struct tiering_config config = config_of(how);
    uint64_t records_bytes = tiering_records_bytes(config.max_objects, config.max_leases), now_ns = world.now_ns;

    if (!config.survived)
        records = records_new(records_bytes);
    config.records = records;
    world = (struct world){.now_ns = config.survived ? now_ns : 1000000000};
    int r = tiering_new(&config, &world.t);

    fuzz_check(r == 0, "%d", r);
}

int world_add(void)
{
    const char *why = NULL;
    int r = tiering_store_add(world.t, 0, 0, DISK_BYTES, &why);

    fuzz_check(r == 0 || why);
    return r;
}

int world_make(unsigned how)
{
    world_new(how);
    return how & WORLD_DEVICE ? world_add() : 0;
}

int world_start(void)
{
    int r = tiering_start(world.t);

    for (uint64_t i = 0, have, want; r == 0 && !tiering_ready(world.t, &have, &want); i++) {
        fuzz_check(i < WORLD_TURNS_MAX);
        world_turn(4, 1000);
    }
    return r;
}

int world_open(unsigned how)
{
    int r = world_make(how);

    return r < 0 ? r : world_start();
}

struct snapshot *world_snapshot(void)
{
    fuzz_check(disk_pending() == 0);
    snapshot_also(&world, sizeof(world));
    snapshot_also(&records, sizeof(records));
    return snapshot_keep();
}

void world_forget(void)
{
    tiering_free(world.t);
    world.t = NULL;
    disk_restart();
}

void world_settle(void)
{
    struct tiering_stat stat;
    const char *what = "";

    for (int i = 0; i < WORLD_TURNS_MAX / 10; i++) { /* moves of what cannot be written anywhere wait for ever */
        world_turn(16, 20000000);
        tiering_stat(world.t, &stat);
        if (stat.moves == 0 && disk_pending() == 0)
            break;
    }
    fuzz_check(tiering_check(world.t, &what) == 0, "%s", what);
}

/* What tiering_close_clean() said. */
static int world_stop(void)
{
    tiering_stop(world.t);
    for (int i = 0; !tiering_idle(world.t); i++) {
        fuzz_check(i < WORLD_TURNS_MAX, "it never gets idle");
        world_turn(8, 20000000);
    }
    return tiering_close_clean(world.t);
}

int world_close(void)
{
    world_settle();
    for (uint32_t i = 0; i < 2; i++) {
        struct tiering_pool_stat stat;

        tiering_pool_stat(world.t, i, &stat);
        fuzz_check(stat.leased == 0 && stat.admitted == 0, "leased %lu, admitted %lu", stat.leased, stat.admitted);
    }
    for (uint32_t i = 0; i < WORLD_REGIONS; i++)
        fuzz_check(!world.chunks[i].is_there || world.chunks[i].kind != IO_CHUNK_PRIVATE,
                   "a chunk of session %lu is left", world.chunks[i].session);
    for (int i = 0; i < WORLD_TURNS_MAX && !tiering_drain(world.t); i++)
        world_turn(8, 20000000);
    int r = world_stop();

    fuzz_check(r == 0 || world.failed, "%d", r);
    return r;
}

void world_leave(void)
{
    int r = world_stop();

    fuzz_check(r == 0 || world.failed, "%d", r);
    tiering_free(world.t);
    world.t = NULL;
    disk_restart_hot();
}

void world_wait_done(struct tiering_wait *wait, int status)
{
    container_of(wait, struct world_wait, wait)->status = status;
}

int world_wait(struct world_wait *wait, int r, struct tiering_grant *ret_grant)
{
    if (r != TIERING_WAIT)
        return r;
    for (int i = 0; wait->status == 1; i++) {
        if (i == WORLD_TURNS_MAX && tiering_wait_cancel(world.t, &wait->wait))
            return -ETIMEDOUT;
        world_turn(2, 20000000);
    }
    *ret_grant = wait->wait.grant;
    return wait->status;
}
