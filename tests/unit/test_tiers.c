/* SPDX-License-Identifier: Apache-2.0 */
/* Two kinds of memory: what moves between them and when, and what happens when a pool is to have less of one. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "tests/unit/support/tiering_rig.h"

#define PIECE RIG_PIECE
#define PIECES_A_MIB 4U

static struct rig rig;

static void put_all(enum rig_space space, uint32_t from, uint32_t to)
{
    for (uint32_t i = from; i < to; i++) {
        struct tiering_id id = rig_id(&rig, space, i);

        ck_assert_int_eq(rig_put(&rig, &id, PIECE, 100 + i), 0);
    }
}

/* Reads what is still there and checks it; returns how many. */
static uint32_t get_all(enum rig_space space, uint32_t from, uint32_t to)
{
    uint32_t n = 0;

    for (uint32_t i = from; i < to; i++) {
        struct tiering_id id = rig_id(&rig, space, i);
        int r = rig_get(&rig, &id, 100 + i);

        ck_assert_msg(r == 0 || r == -ENOENT, "piece %u: %d", i, r);
        n += r == 0;
    }
    return n;
}

static uint8_t tier_of(enum rig_space space, uint32_t key)
{
    struct tiering_id id = rig_id(&rig, space, key);
    struct tiering_found found;

    ck_assert_int_eq(tiering_lookup(rig.t, &id, &found), 0);
    return found.tier;
}

static void hit(enum rig_space space, uint32_t key, uint8_t tier)
{
    struct tiering_id id = rig_id(&rig, space, key);
    struct tiering_grant grant;

    ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, 0, &grant), 0);
    ck_assert_uint_eq(grant.tier, tier);
    ck_assert(rig_is(rig_memory(&rig, &grant), grant.length_bytes, 100 + key));
    ck_assert_int_eq(tiering_release(rig.t, &rig.s, grant.lease, 0), 0);
}

static uint64_t copied_bytes(uint64_t *ret_migrated)
{
    struct tiering_stat stat;

    tiering_stat(rig.t, &stat);
    *ret_migrated = stat.migrated_bytes;
    return stat.copied_bytes;
}

static void budget(uint64_t dram_mib, uint64_t cxl_mib)
{
    uint64_t bytes[TIERING_BUDGETS] = {dram_mib * MIB, cxl_mib * MIB, rig.device_bytes ? UINT64_MAX : 0};

    tiering_pool_budget(rig.t, 0, bytes);
}

/* --- Down and up ------------------------------------------------------------------------------------------------- */

/* What does not fit in DRAM is not lost, as long as CXL memory has room: the coldest go there, and are served there. */
START_TEST(demotes)
{
    uint64_t migrated;

    rig_open_memory(&rig, &(struct rig_memory){.dram_bytes = 4 * MIB, .cxl_bytes = 8 * MIB});
    put_all(RIG_CACHE, 0, 10 * PIECES_A_MIB);
    rig_settle(&rig);
    rig_check(&rig);
    struct tiering_pool_stat stat = rig_pool_stat(&rig, 0);
    ck_assert_uint_ge(stat.demotions, 6 * PIECES_A_MIB);
    ck_assert_uint_eq(stat.evictions + stat.drops, 0);
    ck_assert_uint_eq(copied_bytes(&migrated), 0);
    ck_assert_uint_eq(migrated, stat.demotions * PIECE);
    ck_assert_uint_eq(tier_of(RIG_CACHE, 0), TIERING_CXL);
    ck_assert_uint_eq(tier_of(RIG_CACHE, 10 * PIECES_A_MIB - 1), TIERING_DRAM);
    hit(RIG_CACHE, 0, TIERING_CXL);
    ck_assert_uint_eq(get_all(RIG_CACHE, 0, 10 * PIECES_A_MIB), 10 * PIECES_A_MIB);
    ck_assert_uint_ge(rig_pool_stat(&rig, 0).hits_cxl, 5 * PIECES_A_MIB);
    rig_close(&rig);
}
END_TEST

/* Behind CXL memory comes the device, or the end. */
START_TEST(evicts_from_cxl)
{
    uint64_t device_bytes = _i ? 64 * MIB : 0;

    rig_open_memory(&rig,
                    &(struct rig_memory){.dram_bytes = 4 * MIB, .cxl_bytes = 4 * MIB, .device_bytes = device_bytes});
    put_all(RIG_CACHE, 0, 16 * PIECES_A_MIB);
    rig_settle(&rig);
    rig_check(&rig);
    struct tiering_pool_stat stat = rig_pool_stat(&rig, 0);
    ck_assert_uint_ge(device_bytes ? stat.evictions : stat.drops, 8 * PIECES_A_MIB);
    ck_assert_uint_ge(stat.demotions, 12 * PIECES_A_MIB);
    ck_assert_uint_eq(tier_of(RIG_CACHE, 16 * PIECES_A_MIB - 1), TIERING_DRAM);
    uint32_t n = get_all(RIG_CACHE, 0, 16 * PIECES_A_MIB);
    ck_assert_uint_ge(n, device_bytes ? 16 * PIECES_A_MIB : 6 * PIECES_A_MIB);
    rig_close(&rig);
}
END_TEST

/* One hit in CXL memory is served there, and that is all; the second brings the piece back to DRAM. */
START_TEST(promotes)
{
    rig_open_memory(&rig, &(struct rig_memory){.dram_bytes = 4 * MIB, .cxl_bytes = 8 * MIB});
    put_all(RIG_CACHE, 0, 8 * PIECES_A_MIB);
    rig_settle(&rig);
    hit(RIG_CACHE, 3, TIERING_CXL);
    rig_settle(&rig);
    ck_assert_uint_eq(tier_of(RIG_CACHE, 3), TIERING_CXL);
    hit(RIG_CACHE, 3, TIERING_CXL);
    rig_settle(&rig);
    ck_assert_uint_eq(tier_of(RIG_CACHE, 3), TIERING_DRAM);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).promotions, 1);
    rig_check(&rig);
    hit(RIG_CACHE, 3, TIERING_DRAM);
    rig_close(&rig);
}
END_TEST

/* Nothing is gained by exchanging what is used for what is used: DRAM's pieces were asked for, too. */
START_TEST(does_not_play_ping_pong)
{
    uint32_t in_dram[4 * PIECES_A_MIB], n = 0;

    rig_open_memory(&rig, &(struct rig_memory){.dram_bytes = 4 * MIB, .cxl_bytes = 8 * MIB});
    put_all(RIG_CACHE, 0, 8 * PIECES_A_MIB);
    rig_settle(&rig);
    for (uint32_t i = 0; i < 8 * PIECES_A_MIB; i++) {
        if (tier_of(RIG_CACHE, i) == TIERING_DRAM)
            in_dram[n++] = i;
    }
    for (uint32_t i = 0; i < n; i++)
        hit(RIG_CACHE, in_dram[i], TIERING_DRAM);
    hit(RIG_CACHE, 2, TIERING_CXL);
    hit(RIG_CACHE, 2, TIERING_CXL);
    rig_settle(&rig);
    ck_assert_uint_eq(tier_of(RIG_CACHE, 2), TIERING_CXL);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).promotions, 0);
    /* It is asked for again, and what would have to go is not. */
    hit(RIG_CACHE, 2, TIERING_CXL);
    rig_settle(&rig);
    ck_assert_uint_eq(tier_of(RIG_CACHE, 2), TIERING_DRAM);
    rig_close(&rig);
}
END_TEST

/* --- Placement --------------------------------------------------------------------------------------------------- */

/* What only DMA touches goes to CXL memory at once when DRAM is full; nothing has to be copied for it. */
START_TEST(dma_goes_to_cxl)
{
    uint64_t migrated;

    rig_open_memory(&rig,
                    &(struct rig_memory){.dram_bytes = 4 * MIB, .cxl_bytes = 8 * MIB, .placement = TIERING_PLACE_DMA});
    put_all(RIG_CACHE, 0, 8 * PIECES_A_MIB);
    ck_assert_uint_eq(tier_of(RIG_CACHE, 0), TIERING_DRAM);
    ck_assert_uint_eq(tier_of(RIG_CACHE, 8 * PIECES_A_MIB - 1), TIERING_CXL);
    (void)copied_bytes(&migrated);
    ck_assert_uint_lt(migrated, 2 * MIB); /* but for what keeps a little of DRAM free */
    rig_close(&rig);
}
END_TEST

/* All nodes of CXL memory are used, each as much as it has. */
START_TEST(all_nodes_are_used)
{
    rig_open_memory(&rig, &(struct rig_memory){.dram_bytes = 4 * MIB, .cxl_bytes = 16 * MIB, .chunk_bytes = 2 * MIB});
    ck_assert_uint_eq(rig_node_bytes(&rig, 0), 2 * 4 * MIB);
    ck_assert_uint_eq(rig_node_bytes(&rig, RIG_CXL_NODE), 2 * 4 * MIB);
    ck_assert_uint_eq(rig_node_bytes(&rig, RIG_CXL_NODE + 1), 2 * 12 * MIB);
    rig_close(&rig);
}
END_TEST

/* --- What may move ------------------------------------------------------------------------------------------------ */

/* A lease means: at this place. */
START_TEST(leased_stays)
{
    struct tiering_grant grant;

    rig_open_memory(&rig, &(struct rig_memory){.dram_bytes = 4 * MIB, .cxl_bytes = 8 * MIB});
    put_all(RIG_CACHE, 0, 1);
    struct tiering_id id = rig_id(&rig, RIG_CACHE, 0);
    ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, 0, &grant), 0);
    put_all(RIG_CACHE, 1, 10 * PIECES_A_MIB);
    rig_settle(&rig);
    ck_assert_uint_eq(tier_of(RIG_CACHE, 0), TIERING_DRAM);
    ck_assert(rig_is(rig_memory(&rig, &grant), PIECE, 100));
    ck_assert_int_eq(tiering_release(rig.t, &rig.s, grant.lease, 0), 0);
    rig_close(&rig);
}
END_TEST

/* Fills DRAM until pieces are on their way to CXL memory, and stops the world there. */
static void begin_migrations(enum rig_space space, uint32_t first)
{
    struct tiering_stat stat = {0};
    struct tiering_grant grant;

    for (uint32_t i = 0; i < 64 && stat.moves == 0; i++) {
        struct tiering_id id = rig_id(&rig, space, first + i);
        int r = tiering_reserve(rig.t, &rig.s, &id, PIECE, PIECE, NULL, &grant);

        if (r == 0)
            ck_assert_int_eq(tiering_commit(rig.t, &rig.s, grant.lease, NULL, &grant), 0);
        tiering_stat(rig.t, &stat);
    }
    ck_assert_uint_gt(stat.moves, 0);
}

static struct tiering_id tensor_piece(uint32_t piece)
{
    struct tiering_id id = rig_id(&rig, RIG_SCRATCH, 7);

    id.piece = piece;
    return id;
}

/* Whoever wants to write a piece that moves waits until it has; what is written is what is read then. */
START_TEST(writer_waits)
{
    struct rig_wait w;
    struct tiering_grant grant;
    struct tiering_id id = {0};
    int r = 0;

    rig_open_memory(&rig, &(struct rig_memory){.dram_bytes = 4 * MIB, .cxl_bytes = 8 * MIB});
    id = tensor_piece(0);
    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &id, 4 * (uint64_t)PIECE), 0);
    for (uint32_t i = 0; i < 4; i++) {
        id = tensor_piece(i);
        ck_assert_int_eq(rig_write(&rig, &id, 50 + i), 0);
    }
    begin_migrations(RIG_CACHE, 0);
    rig_wait_init(&w);
    id = tensor_piece(0); /* the coldest */
    r = tiering_acquire(rig.t, &rig.s, &id, 0, 0, TIERING_WRITE, &w.wait, &grant);
    ck_assert_int_eq(r, TIERING_WAIT);
    /* A reader need not wait, and is none the worse for it. */
    struct tiering_grant read;
    ck_assert_int_eq(tiering_acquire(rig.t, &rig.other, &id, 0, 0, 0, NULL, &read), 0);
    ck_assert(rig_is(rig_memory(&rig, &read), PIECE, 50));
    ck_assert_int_eq(tiering_release(rig.t, &rig.other, read.lease, 0), 0);
    ck_assert_int_eq(rig_wait(&rig, &w), 0);
    ck_assert_uint_eq(w.wait.grant.tier, TIERING_CXL);
    ck_assert(rig_is(rig_memory(&rig, &w.wait.grant), PIECE, 50));
    rig_fill(rig_memory(&rig, &w.wait.grant), PIECE, 60);
    ck_assert_int_eq(tiering_release(rig.t, &rig.s, w.wait.grant.lease, TIERING_DIRTY), 0);
    rig_settle(&rig);
    ck_assert_int_eq(rig_get(&rig, &id, 60), 0);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* A reader that still reads when the copy is there keeps the piece where it is. */
START_TEST(reader_keeps_it)
{
    struct tiering_grant grant;

    rig_open_memory(&rig, &(struct rig_memory){.dram_bytes = 4 * MIB, .cxl_bytes = 8 * MIB});
    put_all(RIG_CACHE, 0, 1);
    begin_migrations(RIG_CACHE, 1);
    struct tiering_id id = rig_id(&rig, RIG_CACHE, 0);
    ck_assert_int_eq(tiering_acquire(rig.t, &rig.s, &id, 0, 0, 0, NULL, &grant), 0);
    rig_settle(&rig);
    ck_assert_uint_eq(tier_of(RIG_CACHE, 0), TIERING_DRAM);
    ck_assert(rig_is(rig_memory(&rig, &grant), PIECE, 100));
    ck_assert_int_eq(tiering_release(rig.t, &rig.s, grant.lease, 0), 0);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* It is deleted, or its session ends, while it is copied. */
START_TEST(deleted_on_the_way)
{
    rig_open_memory(&rig, &(struct rig_memory){.dram_bytes = 4 * MIB, .cxl_bytes = 8 * MIB});
    put_all(RIG_CACHE, 0, 1);
    begin_migrations(RIG_CACHE, 1);
    struct tiering_id id = rig_id(&rig, RIG_CACHE, 0);
    ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
    rig_check(&rig);
    rig_settle(&rig);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* The pages went away under the worker: the piece stays, and nobody tries for ever. */
START_TEST(copy_fails)
{
    rig_open_memory(&rig, &(struct rig_memory){.dram_bytes = 4 * MIB, .cxl_bytes = 8 * MIB});
    simdisk_faults(rig.disk)->work_fault = 1000000;
    put_all(RIG_CACHE, 0, 1);
    begin_migrations(RIG_CACHE, 1);
    for (int turn = 0; turn < 100; turn++)
        rig_turn(&rig, 4, 1000000);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).demotions, 0);
    uint64_t migrated;
    (void)copied_bytes(&migrated);
    ck_assert_uint_le(migrated, 64 * (uint64_t)PIECE);
    simdisk_faults(rig.disk)->work_fault = 0;
    put_all(RIG_CACHE, 100, 110);
    rig_settle(&rig);
    ck_assert_uint_gt(rig_pool_stat(&rig, 0).demotions, 0);
    hit(RIG_CACHE, 109, TIERING_DRAM);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* Leases stop at 80 % of each tier. */
START_TEST(lease_limit_of_a_tier)
{
    struct tiering_grant grants[64];
    uint32_t n[2] = {0};

    rig_open_memory(&rig, &(struct rig_memory){.dram_bytes = 4 * MIB, .cxl_bytes = 4 * MIB});
    put_all(RIG_CACHE, 0, 7 * PIECES_A_MIB);
    rig_settle(&rig);
    for (uint32_t i = 0; i < 7 * PIECES_A_MIB; i++) {
        struct tiering_id id = rig_id(&rig, RIG_CACHE, i);
        bool is_cxl = tier_of(RIG_CACHE, i) == TIERING_CXL;
        int r = rig_acquire(&rig, &rig.s, &id, 0, &grants[n[0] + n[1]]);

        if (r == 0) {
            n[is_cxl]++;
            continue;
        }
        ck_assert_int_eq(r, -ENOSPC);
        ck_assert_uint_eq(grants[n[0] + n[1]].limit, TIERING_LIMIT_POOL_LEASES);
        ck_assert_uint_eq(n[is_cxl], 4 * PIECES_A_MIB * 80 / 100);
    }
    ck_assert_uint_eq(n[0], 4 * PIECES_A_MIB * 80 / 100);
    ck_assert_uint_eq(n[1], 4 * PIECES_A_MIB * 80 / 100);
    for (uint32_t i = 0; i < n[0] + n[1]; i++)
        ck_assert_int_eq(tiering_release(rig.t, &rig.s, grants[i].lease, 0), 0);
    rig_close(&rig);
}
END_TEST

/* The room for a part was that of another part of the same object: then the whole of it is gone, and the answer says so. */
START_TEST(own_part_is_evicted)
{
    struct tiering_grant grant;

    rig_open_memory(&rig, &(struct rig_memory){.dram_bytes = 4 * MIB});
    struct tiering_id id = rig_id(&rig, RIG_CACHE, 1000);
    id.n_parts = 2;
    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &id, PIECE, PIECE, &grant), 0);
    ck_assert_int_eq(rig_commit(&rig, &rig.s, grant.lease), 0);
    put_all(RIG_CACHE, 0, 4 * PIECES_A_MIB - 1);
    id.part = 1;
    ck_assert_int_eq(tiering_reserve(rig.t, &rig.s, &id, PIECE, PIECE, NULL, &grant), -ENOSPC);
    ck_assert_uint_eq(grant.limit, TIERING_LIMIT_POOL_DRAM);
    rig_check(&rig);
    put_all(RIG_CACHE, 100, 110);
    rig_check(&rig);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).admitted, 0);
    rig_close(&rig);
}
END_TEST

/* --- Less memory -------------------------------------------------------------------------------------------------- */

/* What fits in the rest moves there; the machine gets its memory back. */
START_TEST(shrinks_without_loss)
{
    rig_open_memory(&rig, &(struct rig_memory){.dram_bytes = 8 * MIB, .chunk_bytes = 2 * MIB});
    put_all(RIG_CACHE, 0, 8 * PIECES_A_MIB);
    /* Holes in all chunks. */
    for (uint32_t i = 0; i < 8 * PIECES_A_MIB; i += 2) {
        struct tiering_id id = rig_id(&rig, RIG_CACHE, i);

        ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
    }
    budget(4, 0);
    rig_settle(&rig);
    struct tiering_pool_stat stat = rig_pool_stat(&rig, 0);
    ck_assert_uint_eq(stat.dram_chunks, 4 * MIB);
    ck_assert_uint_eq(stat.dram_closing, 0);
    ck_assert_uint_eq(rig.n_gone, 2);
    ck_assert_uint_eq(stat.drops + stat.evictions, 0);
    ck_assert_uint_eq(get_all(RIG_CACHE, 0, 8 * PIECES_A_MIB), 4 * PIECES_A_MIB);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* The coldest have to go: written to the device, or dropped. */
START_TEST(shrinks_full)
{
    rig_open_memory(
        &rig, &(struct rig_memory){.dram_bytes = 8 * MIB, .chunk_bytes = 2 * MIB, .device_bytes = _i ? 64 * MIB : 0});
    put_all(RIG_CACHE, 0, 8 * PIECES_A_MIB);
    budget(4, 0);
    rig_settle(&rig);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).dram_chunks, 4 * MIB);
    ck_assert_uint_eq(tier_of(RIG_CACHE, 8 * PIECES_A_MIB - 1), TIERING_DRAM);
    uint32_t n = get_all(RIG_CACHE, 0, 8 * PIECES_A_MIB);
    ck_assert_uint_ge(n, _i ? 8 * PIECES_A_MIB : 3 * PIECES_A_MIB);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* A lease keeps a chunk; nothing new comes to it, and the release lets it go. */
START_TEST(lease_holds_memory)
{
    struct tiering_grant grants[8];
    struct tiering_id id;

    rig_open_memory(&rig, &(struct rig_memory){.dram_bytes = 8 * MIB, .chunk_bytes = MIB});
    put_all(RIG_CACHE, 0, 8 * PIECES_A_MIB);
    for (uint32_t i = 0; i < 8; i++) { /* one in each chunk */
        id = rig_id(&rig, RIG_CACHE, i * PIECES_A_MIB);
        ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, 0, &grants[i]), 0);
    }
    budget(2, 0);
    rig_settle(&rig);
    struct tiering_pool_stat stat = rig_pool_stat(&rig, 0);
    ck_assert_uint_eq(stat.dram_chunks, 8 * MIB);
    ck_assert_uint_eq(stat.dram_closing, 6 * MIB);
    /* No new leases on what is more than is left. */
    id = rig_id(&rig, RIG_CACHE, 1);
    struct tiering_grant grant;
    ck_assert_int_ne(rig_acquire(&rig, &rig.s, &id, 0, &grant), 0);
    for (uint32_t i = 0; i < 8; i++) {
        ck_assert(rig_is(rig_memory(&rig, &grants[i]), PIECE, 100 + i * PIECES_A_MIB));
        ck_assert_int_eq(tiering_release(rig.t, &rig.s, grants[i].lease, 0), 0);
    }
    rig_settle(&rig);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).dram_chunks, 2 * MIB);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* What can neither be written nor dropped keeps its memory; when the budget is back, so is the chunk. */
START_TEST(grows_back)
{
    rig_open_memory(&rig, &(struct rig_memory){.dram_bytes = 8 * MIB, .chunk_bytes = 2 * MIB});
    put_all(RIG_SCRATCH, 0, 7 * PIECES_A_MIB);
    budget(4, 0);
    rig_settle(&rig);
    struct tiering_pool_stat stat = rig_pool_stat(&rig, 0);
    ck_assert_uint_gt(stat.dram_closing, 0);
    ck_assert_uint_eq(get_all(RIG_SCRATCH, 0, 7 * PIECES_A_MIB), 7 * PIECES_A_MIB);
    budget(8, 0);
    rig_settle(&rig);
    stat = rig_pool_stat(&rig, 0);
    ck_assert_uint_eq(stat.dram_closing, 0);
    ck_assert_uint_eq(stat.dram_chunks, 8 * MIB);
    put_all(RIG_SCRATCH, 7 * PIECES_A_MIB, 8 * PIECES_A_MIB);
    ck_assert_uint_eq(get_all(RIG_SCRATCH, 0, 8 * PIECES_A_MIB), 8 * PIECES_A_MIB);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* Less DRAM: what must stay in memory moves to CXL memory. */
START_TEST(shrinks_into_cxl)
{
    rig_open_memory(&rig, &(struct rig_memory){.dram_bytes = 8 * MIB, .cxl_bytes = 8 * MIB, .chunk_bytes = 2 * MIB});
    put_all(RIG_SCRATCH, 0, 7 * PIECES_A_MIB);
    budget(2, 8);
    rig_settle(&rig);
    struct tiering_pool_stat stat = rig_pool_stat(&rig, 0);
    ck_assert_uint_eq(stat.dram_chunks, 2 * MIB);
    ck_assert_uint_eq(get_all(RIG_SCRATCH, 0, 7 * PIECES_A_MIB), 7 * PIECES_A_MIB);
    /* And the other way round. */
    budget(8, 0);
    rig_settle(&rig);
    stat = rig_pool_stat(&rig, 0);
    ck_assert_uint_eq(stat.cxl_chunks, 0);
    ck_assert_uint_eq(stat.dram_chunks, 8 * MIB);
    ck_assert_uint_eq(get_all(RIG_SCRATCH, 0, 7 * PIECES_A_MIB), 7 * PIECES_A_MIB);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* A node that has no memory is passed over. */
START_TEST(a_node_refuses)
{
    rig_open_memory(&rig, &(struct rig_memory){.dram_bytes = 4 * MIB, .cxl_bytes = 0, .chunk_bytes = 2 * MIB});
    simdisk_refuse_chunks(rig.disk, 1);
    budget(8, 0);
    rig_settle(&rig);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).dram_chunks, 4 * MIB);
    budget(10, 0); /* asked again */
    rig_settle(&rig);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).dram_chunks, 10 * MIB);
    rig_close(&rig);
    rig_open_memory(&rig, &(struct rig_memory){.dram_bytes = 4 * MIB, .cxl_bytes = 4 * MIB, .chunk_bytes = 2 * MIB});
    simdisk_refuse_chunks(rig.disk, 1);
    budget(4, 8);
    rig_settle(&rig);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).cxl_chunks, 8 * MIB);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

static void pass_ms(uint64_t ms)
{
    rig_turn(&rig, 0, ms * 1000000);
    rig_settle(&rig);
}

/* What was refused is asked for again, less and less often, and counted on only when it is there. */
START_TEST(refused_memory_is_asked_for_again)
{
    rig_open_memory(&rig, &(struct rig_memory){.dram_bytes = 4 * MIB, .chunk_bytes = 2 * MIB});
    simdisk_refuse_chunks(rig.disk, 3);
    budget(8, 0);
    rig_settle(&rig);
    struct tiering_pool_stat stat = rig_pool_stat(&rig, 0);
    ck_assert_uint_eq(stat.dram_chunks, 4 * MIB);
    ck_assert_uint_eq(stat.dram_missing, 4 * MIB);
    uint64_t have, want;
    ck_assert(tiering_ready(rig.t, &have, &want));
    /* An engine that has nothing to do wakes for it. */
    ck_assert_uint_le(tiering_tick(rig.t, rig.now_ns), MEMORY_RETRY_MS_MIN * UINT64_C(1000000));
    pass_ms(MEMORY_RETRY_MS_MIN + 1); /* refused for the second time */
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).dram_chunks, 4 * MIB);
    pass_ms(2 * MEMORY_RETRY_MS_MIN + 1); /* the third */
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).dram_missing, 4 * MIB);
    pass_ms(3 * MEMORY_RETRY_MS_MIN); /* four times as long now */
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).dram_chunks, 4 * MIB);
    pass_ms(MEMORY_RETRY_MS_MIN + 1);
    stat = rig_pool_stat(&rig, 0);
    ck_assert_uint_eq(stat.dram_chunks, 8 * MIB);
    ck_assert_uint_eq(stat.dram_missing, 0);
    put_all(RIG_SCRATCH, 0, 7 * PIECES_A_MIB);
    ck_assert_uint_eq(get_all(RIG_SCRATCH, 0, 7 * PIECES_A_MIB), 7 * PIECES_A_MIB);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* A smaller budget ends the shortage; nothing is asked for. */
START_TEST(less_is_wanted_than_was_refused)
{
    rig_open_memory(&rig, &(struct rig_memory){.dram_bytes = 4 * MIB, .cxl_bytes = 4 * MIB, .chunk_bytes = 2 * MIB});
    simdisk_refuse_chunks(rig.disk, 2); /* both nodes */
    budget(4, 8);
    rig_settle(&rig);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).cxl_missing, 4 * MIB);
    budget(4, 4);
    rig_settle(&rig);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).cxl_missing, 0);
    pass_ms(MEMORY_RETRY_MS_MAX);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).cxl_chunks, 4 * MIB);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("tiers");
    TCase *t = tcase_create("all");

    tcase_set_timeout(t, 120);
    tcase_add_test(t, demotes);
    tcase_add_loop_test(t, evicts_from_cxl, 0, 2);
    tcase_add_test(t, promotes);
    tcase_add_test(t, does_not_play_ping_pong);
    tcase_add_test(t, dma_goes_to_cxl);
    tcase_add_test(t, all_nodes_are_used);
    tcase_add_test(t, leased_stays);
    tcase_add_test(t, writer_waits);
    tcase_add_test(t, reader_keeps_it);
    tcase_add_test(t, deleted_on_the_way);
    tcase_add_test(t, copy_fails);
    tcase_add_test(t, lease_limit_of_a_tier);
    tcase_add_test(t, own_part_is_evicted);
    tcase_add_test(t, shrinks_without_loss);
    tcase_add_loop_test(t, shrinks_full, 0, 2);
    tcase_add_test(t, lease_holds_memory);
    tcase_add_test(t, grows_back);
    tcase_add_test(t, shrinks_into_cxl);
    tcase_add_test(t, a_node_refuses);
    tcase_add_test(t, refused_memory_is_asked_for_again);
    tcase_add_test(t, less_is_wanted_than_was_refused);
    suite_add_tcase(s, t);
    SRunner *runner = srunner_create(s);

    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);

    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
