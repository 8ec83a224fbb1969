/* SPDX-License-Identifier: Apache-2.0 */
/* Running out of room and getting it back: segments, budgets, the log's ring, its live entries, its queue. */
#include "tests/unit/support/store_fixture.h"

/* --- Room --- */

START_TEST(reclaim_goes_round_and_round)
{
    struct store_stat st;
    uint64_t written = 0;

    start_open(20, 90);
    while (written < 20 * DEVICE_BYTES) {
        uint32_t id = (uint32_t)simdisk_below(disk, 90);
        put_wait(id);
        written += owner_size(o, id, o->objects[id].next_version);
        if (simdisk_below(disk, 20) == 0)
            owner_drop(o, (uint32_t)simdisk_below(disk, 90));
        if (simdisk_below(disk, 60) == 0)
            (void)owner_sync(o);
        for (uint32_t i = 0; i < 90; i++)
            if (o->objects[i].n_history > OWNER_HISTORY_MAX / 2)
                owner_wait_sync(o);
        owner_turn(o);
    }
    owner_settle(o);
    store_stat(o->store, &st);
    ck_assert_uint_gt(st.reclaimed_segments, 100);
    ck_assert_uint_le(store_pool_used_bytes(o->store, 0), o->budget_bytes);
    owner_check_all(o, false);
    ck_assert_uint_eq(o->n_wrong + o->n_lost + o->n_put_failed, 0);
    reopen();
    owner_check_all(o, false);
    ck_assert_uint_eq(o->n_wrong + o->n_lost, 0);
    end();
}
END_TEST

START_TEST(a_cache_pool_evicts_instead_of_refusing)
{
    start(21, DEVICE_BYTES, MIB, 400);
    o->cache_only = true;
    o->budget_bytes = 6 * MIB;
    ck_assert_int_eq(owner_open(o, &why), 0);
    for (uint32_t i = 0; i < 400; i++) {
        put_wait(i);
        owner_turn(o);
        ck_assert_uint_le(store_pool_used_bytes(o->store, 0), o->budget_bytes);
    }
    owner_settle(o);
    uint32_t there = 0, late = 0;
    for (uint32_t i = 0; i < 400; i++) {
        there += o->objects[i].version != 0;
        late += i >= 250 && o->objects[i].version != 0;
    }
    ck_assert_uint_gt(there, 20);
    ck_assert_uint_gt(late * 10, there * 9); /* the oldest went */
    owner_check_all(o, false);
    ck_assert_uint_eq(o->n_wrong + o->n_lost, 0);
    end();
}
END_TEST

/* What evacuation copies is paid for by the pool as well: so some of the budget is kept for it. */
static void overwrite(uint64_t seed, uint32_t n_ids, uint64_t budget_bytes, uint32_t segments_written)
{
    uint64_t written = 0;

    start(seed, DEVICE_BYTES, MIB, n_ids);
    o->budget_bytes = budget_bytes;
    ck_assert_int_eq(owner_open(o, &why), 0);
    while (written < segments_written * MIB) {
        uint32_t id = (uint32_t)simdisk_below(disk, n_ids);

        put_wait(id);
        written += owner_size(o, id, o->objects[id].next_version);
        if (o->objects[id].n_history > OWNER_HISTORY_MAX / 2)
            owner_wait_sync(o);
        for (uint32_t pool = 0; pool < o->n_pools; pool++)
            ck_assert_uint_le(store_pool_used_bytes(o->store, pool), o->budget_bytes);
    }
    owner_settle(o);
    owner_check_all(o, false);
    ck_assert_uint_eq(o->n_wrong + o->n_lost + o->n_put_failed, 0);
    end();
}

START_TEST(no_pool_passes_its_budget)
{
    for (uint64_t seed = 30; seed < 40; seed++)
        overwrite(seed, 60, (10 + seed % 3) * MIB + 300 * KIB, 300);
}
END_TEST

START_TEST(a_full_durable_pool_refuses)
{
    uint32_t n = 0;
    int r = 0;

    start(22, DEVICE_BYTES, MIB, 400);
    o->budget_bytes = 5 * MIB;
    o->size_max_bytes = 200000;
    ck_assert_int_eq(owner_open(o, &why), 0);
    for (uint32_t id = 2; id < 400; id += 3) {
        for (int turns = 0; (r = owner_put(o, id, false)) == -EAGAIN || r == -EBUSY; turns++) {
            ck_assert_int_lt(turns, 100000);
            owner_turn(o);
        }
        if (r < 0)
            break;
        n++;
    }
    ck_assert_int_eq(r, -ENOSPC);
    ck_assert_uint_gt(n, 20);
    owner_settle(o);
    for (uint32_t id = 2; id < 200; id += 3)
        owner_drop(o, id);
    put_wait(5);
    owner_settle(o);
    owner_check_all(o, false);
    ck_assert_uint_eq(o->n_wrong + o->n_lost, 0);
    end();
}
END_TEST

/* Puts it, of whatever is in the buffer, and waits for its end: not an object of the owner's. */
static int put_of_size(uint32_t n, uint32_t size_bytes, uint8_t durability)
{
    struct owner_slot *slot = &o->slots[0];

    slot->put = (struct store_put){.id = {.space = 1, .key = {(uint8_t)n, (uint8_t)(n >> 8)}, .key_len = 2},
                                   .buf = slot->buf,
                                   .object_bytes = size_bytes,
                                   .size_bytes = size_bytes,
                                   .n_parts = 1,
                                   .durability = durability};
    return owner_raw_put(o, slot);
}

/* The sizes in turn, until one finds no place: how much of the segments that puts may use is used then. */
static uint32_t percent_filled(const uint32_t *sizes, uint32_t n_sizes, uint8_t durability)
{
    struct store_stat st;
    uint32_t n = 0;
    int r;

    start(24, 2 * DEVICE_BYTES, MIB, 1);
    o->size_max_bytes = MIB;
    ck_assert_int_eq(owner_open(o, &why), 0);
    do {
        r = put_of_size(n, sizes[n % n_sizes], durability);
        n += r == 0;
    } while (r == 0);
    ck_assert_int_eq(r, -ENOSPC);
    store_stat(o->store, &st);
    uint64_t usable = (st.segments - st.segments_free) * st.segment_bytes;
    end();
    return (uint32_t)(st.live_bytes * 100 / usable);
}

/* A piece that does not fit in what is left of the open segment must not cost that: others do. When no segment is free any
 * more, all such ends together have no place for a piece that needs a whole one. */
START_TEST(pieces_of_several_sizes_fill_their_segments)
{
    static const uint32_t halves[] = {MIB, MIB / 2};
    static const uint32_t thirds[] = {340 * KIB, 684 * KIB, MIB};
    static const uint32_t with_small[] = {MIB, 5000, MIB, 20000};
    static const uint32_t mixed[] = {700 * KIB, 300 * KIB, 800 * KIB, 200 * KIB};

    for (uint8_t durability = STORE_SCRATCH; durability <= STORE_DURABLE; durability++) {
        ck_assert_uint_ge(percent_filled(halves, ARRAY_LEN(halves), durability), 97);
        ck_assert_uint_ge(percent_filled(thirds, ARRAY_LEN(thirds), durability), 97);
        ck_assert_uint_ge(percent_filled(with_small, ARRAY_LEN(with_small), durability), 90);
        ck_assert_uint_ge(percent_filled(mixed, ARRAY_LEN(mixed), durability), 97);
    }
}
END_TEST

START_TEST(the_log_goes_round_and_round)
{
    struct store_stat st;

    start_open(23, 600);
    o->size_max_bytes = 4096;
    store_stat(o->store, &st);
    for (uint32_t round = 0; round < 60000; round++) {
        uint32_t id = (uint32_t)simdisk_below(disk, 600);
        if (o->objects[id].n_history > OWNER_HISTORY_MAX / 2)
            owner_wait_sync(o);
        if (simdisk_below(disk, 3) == 0)
            owner_drop(o, id);
        else
            (void)owner_put(o, id, false);
        if (round % 8 == 0) {
            owner_turn(o);
            (void)owner_sync(o);
        }
    }
    owner_settle(o);
    store_stat(o->store, &st);
    ck_assert_uint_gt(st.checkpoints, 20);
    ck_assert_uint_gt(st.written_log_bytes, 6 * MIB);
    ck_assert_int_eq(st.failed, 0);
    reopen();
    owner_check_all(o, false);
    ck_assert_uint_eq(o->n_wrong + o->n_lost, 0);
    end();
}
END_TEST

START_TEST(a_log_full_of_live_entries_refuses)
{
    uint32_t n = 0;
    int r = 0;

    start_open(24, OWNER_IDS_MAX);
    o->size_max_bytes = 4096;
    for (uint32_t id = 0; id < OWNER_IDS_MAX; id++) {
        while ((r = owner_put(o, id, false)) == -EAGAIN || r == -EBUSY)
            owner_turn(o);
        if (r < 0)
            break;
        n++;
    }
    struct store_stat st;
    store_stat(o->store, &st);
    ck_assert_int_eq(r, -ENOSPC);
    ck_assert_uint_gt(n, 1900);
    ck_assert_uint_le(st.log_live_bytes, st.log_bytes);
    /* At the limit everything still works: overwriting, checkpoints, restarts. */
    owner_settle(o);
    for (uint32_t i = 0; i < 8000; i++) {
        uint32_t id = (uint32_t)simdisk_below(disk, n);
        if (o->objects[id].n_history > OWNER_HISTORY_MAX / 2)
            owner_wait_sync(o);
        owner_drop(o, id);
        (void)owner_put(o, id, false);
        if (i % 8 == 0)
            owner_turn(o);
    }
    owner_settle(o);
    store_stat(o->store, &st);
    ck_assert_uint_gt(st.checkpoints, 2);
    reopen();
    owner_check_all(o, false);
    ck_assert_uint_eq(o->n_wrong + o->n_lost, 0);
    end();
}
END_TEST

/* Small pieces fill the log before the segments: even then it is the oldest cache that goes, not the newest. */
START_TEST(a_log_full_of_cache_evicts)
{
    struct store_stat st;

    start(26, DEVICE_BYTES, MIB, OWNER_IDS_MAX);
    o->cache_only = true;
    o->size_max_bytes = 4096;
    ck_assert_int_eq(owner_open(o, &why), 0);
    for (uint32_t id = 0; id < OWNER_IDS_MAX; id++)
        put_wait(id);
    owner_settle(o);
    store_stat(o->store, &st);
    ck_assert_uint_gt(st.segments_free, 5); /* it was not the segments */
    ck_assert_uint_le(st.log_live_bytes, st.log_bytes);
    for (uint32_t id = OWNER_IDS_MAX - 1000; id < OWNER_IDS_MAX; id++)
        ck_assert_uint_ne(o->objects[id].version, 0);
    owner_check_all(o, false);
    ck_assert_uint_eq(o->n_wrong + o->n_lost + o->n_enospc, 0);
    end();
}
END_TEST

/* More deletions at once than the log's queue holds: they take effect, and the sync means it. */
/* So few that no checkpoint is due by itself. */
static void flood(uint64_t seed)
{
    start_open(seed, 1300);
    o->size_max_bytes = 4096;
    for (uint32_t id = 0; id < 1300; id++)
        put_wait(id);
    owner_settle(o);
    owner_wait_sync(o);
    for (uint32_t id = 0; id < 1300; id++)
        if (id % 100 != 0)
            owner_drop(o, id);
    owner_wait_sync(o);
    ck_assert_int_eq(o->sync_status, 0);
    owner_crash(o, true);
    ck_assert_int_eq(owner_open(o, &why), 0);
    ck_assert_uint_eq(o->n_lost, 0);
    for (uint32_t id = 0; id < 1300; id++)
        ck_assert_int_eq(o->objects[id].version != 0, id % 100 == 0);
    owner_check_all(o, true);
    ck_assert_uint_eq(o->n_wrong + o->n_lost, 0);
    end();
}

START_TEST(a_flood_of_deletions_is_durable_after_sync)
{
    for (uint64_t seed = 200; seed < 212; seed++)
        flood(seed);
}
END_TEST

/* The sweep that must tell of the deletions waits for the transaction to end: that must be able to. */
START_TEST(a_flood_of_deletions_in_an_open_transaction)
{
    for (uint64_t seed = 220; seed < 228; seed++) {
        start_open(seed, 1300);
        o->size_max_bytes = 4096;
        for (uint32_t id = 0; id < 1290; id++)
            put_wait(id);
        owner_settle(o);
        owner_wait_sync(o);
        ck_assert(owner_txn_begin(o));
        ck_assert_int_eq(owner_put(o, 1290, true), 0);
        owner_settle(o);
        for (uint32_t id = 0; id < 1290; id++)
            if (id % 100 != 0)
                owner_drop(o, id);
        for (uint32_t id = 1291; id < 1298; id++) {
            int r = owner_put(o, id, true);
            for (int turn = 0; r == -EAGAIN && turn < 1000; turn++) {
                owner_turn(o);
                r = owner_put(o, id, true);
            }
            ck_assert_int_eq(r, 0);
        }
        owner_settle(o);
        owner_txn_commit(o);
        owner_wait_sync(o);
        ck_assert_int_eq(o->sync_status, 0);
        owner_crash(o, true);
        ck_assert_int_eq(owner_open(o, &why), 0);
        for (uint32_t id = 0; id < 1300; id++)
            ck_assert(id % 100 == 0 || (o->objects[id].version != 0) == (id >= 1290 && id < 1298));
        owner_check_all(o, true);
        ck_assert_uint_eq(o->n_wrong + o->n_lost, 0);
        end();
    }
}
END_TEST

int main(void)
{
    const struct test_case tests[] = {
        {"room", reclaim_goes_round_and_round},
        {"room", a_cache_pool_evicts_instead_of_refusing},
        {"room", no_pool_passes_its_budget},
        {"room", a_full_durable_pool_refuses},
        {"room", pieces_of_several_sizes_fill_their_segments},
        {"room", the_log_goes_round_and_round},
        {"room", a_log_full_of_live_entries_refuses},
        {"room", a_log_full_of_cache_evicts},
        {"room", a_flood_of_deletions_is_durable_after_sync},
        {"room", a_flood_of_deletions_in_an_open_transaction},
    };

    return run_suite("store_room", tests, ARRAY_LEN(tests));
}
