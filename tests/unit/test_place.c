/* SPDX-License-Identifier: Apache-2.0 */
/* Where new data goes, what it may cost, and memory that is taken when it is needed; on simulated devices and time. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "tests/unit/support/tiering_rig.h"

#define SECOND UINT64_C(1000000000)
#define STEP_NS (SECOND / 100)

static struct rig rig;

static uint64_t put_bytes(uint32_t store)
{
    struct store_stat stat;

    tiering_store_stat(rig.t, store, &stat);
    return stat.put_bytes;
}

static struct tiering_writes writes_of(uint32_t store)
{
    struct tiering_writes writes;

    tiering_store_writes(rig.t, store, &writes);
    return writes;
}

/* Puts pieces of the space, one every STEP_NS; what was there before goes, so devices never fill up. */
static void put_many(enum rig_space space, uint32_t n, uint32_t size_bytes)
{
    static uint32_t next;

    for (uint32_t i = 0; i < n; i++, next++) {
        struct tiering_id id = rig_id(&rig, space, next), old = rig_id(&rig, space, next - 128);

        (void)tiering_delete(rig.t, &old);
        ck_assert_int_eq(rig_put(&rig, &id, size_bytes, next), 0);
        rig_turn(&rig, 16, STEP_NS);
    }
}

static void expect_ratio(uint64_t a, uint64_t b, double ratio)
{
    double is = (double)a / (double)b;

    ck_assert_msg(is > ratio * 0.9 && is < ratio * 1.1, "%.3f, not %.3f", is, ratio);
}

/* --- Weights --- */

START_TEST(devices_share_new_data_by_weight)
{
    rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 8 * MIB, .device_bytes = 96 * MIB}, 3);
    rig.stores[0].weight = 300;
    rig.stores[1].weight = 100;
    rig.stores[2].weight = 200;
    rig_start(&rig);
    put_many(RIG_SCRATCH, 400, RIG_PIECE);
    put_many(RIG_SCRATCH, 400, 70000);
    expect_ratio(put_bytes(0), put_bytes(1), 3);
    expect_ratio(put_bytes(2), put_bytes(1), 2);

    /* As a reload does it. */
    uint64_t before[3] = {put_bytes(0), put_bytes(1), put_bytes(2)};
    for (uint32_t i = 0; i < 3; i++)
        tiering_store_update(rig.t, i, &(struct tiering_store_config){.weight = i == 0 ? 100 : 400});
    put_many(RIG_SCRATCH, 500, RIG_PIECE);
    expect_ratio(put_bytes(1) - before[1], put_bytes(0) - before[0], 4);
    expect_ratio(put_bytes(1) - before[1], put_bytes(2) - before[2], 1);
    rig_close(&rig);
}
END_TEST

START_TEST(a_failed_device_gets_nothing)
{
    rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 8 * MIB, .device_bytes = 96 * MIB}, 3);
    rig_start(&rig);
    put_many(RIG_SCRATCH, 100, RIG_PIECE);
    simdisk_fail_next(rig.disk, IO_BLK_FLUSH, -EIO);
    for (int turn = 0; !rig.failed; turn++) {
        ck_assert_int_lt(turn, 100);
        put_many(RIG_SCRATCH, 10, RIG_PIECE);
    }
    rig_settle(&rig); /* what was on its way to it */
    uint64_t before[3], grown = 0;
    uint32_t n_failed = 0;

    for (uint32_t i = 0; i < 3; i++)
        before[i] = put_bytes(i);
    put_many(RIG_SCRATCH, 200, RIG_PIECE);
    for (uint32_t i = 0; i < 3; i++) {
        struct store_stat stat;

        tiering_store_stat(rig.t, i, &stat);
        n_failed += stat.failed != 0;
        if (stat.failed)
            ck_assert_uint_eq(put_bytes(i), before[i]);
        else if (!grown)
            grown = put_bytes(i) - before[i];
        else
            expect_ratio(put_bytes(i) - before[i], grown, 1);
    }
    ck_assert_uint_eq(n_failed, 1);
    ck_assert_uint_gt(grown, 0);
    rig_close(&rig);
}
END_TEST

START_TEST(homes_of_durable_spaces_follow_the_weights)
{
    uint32_t n[2] = {0};

    rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 64 * MIB, .device_bytes = 96 * MIB}, 2);
    rig.stores[0].weight = 900;
    rig.stores[1].weight = 100;
    rig_start(&rig);
    for (uint32_t i = 0; i < 200; i++) {
        struct tiering_space_spec spec = {.durability = STORE_DURABLE + 1, .digest = {9, (uint8_t)i, 1}};
        struct tiering_id id = rig_id(&rig, RIG_DURABLE, i);
        struct tiering_space_info info;
        uint64_t before = put_bytes(0);

        ck_assert_int_eq(tiering_space_open(rig.t, &spec, &info), 0);
        rig.spaces[RIG_DURABLE] = info;
        id.space = info.index;
        ck_assert_int_eq(rig_put(&rig, &id, 5000, i), 0);
        ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, &id, 1), 0);
        n[put_bytes(0) == before]++;
    }
    ck_assert_uint_gt(n[0], 160);
    ck_assert_uint_lt(n[0], 198);
    rig_close(&rig);
}
END_TEST

/* --- Write budgets --- */

START_TEST(a_pools_write_budget_holds)
{
    rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 8 * MIB, .device_bytes = 96 * MIB}, 1);
    rig.pools[0].write_budget_bytes = 10 * MIB;
    rig.pools[0].write_budget_ns = SECOND;
    rig_start(&rig);
    uint64_t start_ns = rig.now_ns;

    put_many(RIG_CACHE, 2400, RIG_PIECE); /* 25 MiB a second */
    struct tiering_pool_stat stat = rig_pool_stat(&rig, 0);
    double allowed = 10.0 * MIB * (double)(rig.now_ns - start_ns) / (double)SECOND;

    ck_assert_msg((double)put_bytes(0) > allowed * 0.95 && (double)put_bytes(0) < allowed * 1.05, "%.1f, not %.1f",
                  (double)put_bytes(0), allowed);
    ck_assert_uint_eq(stat.writes.day_bytes, 864000 * MIB);
    ck_assert_uint_eq(stat.writes.over_bytes, 0);
    ck_assert_uint_gt(stat.writes.dropped, 0);
    ck_assert_uint_eq(stat.writes.dropped_bytes, stat.writes.dropped * RIG_PIECE);
    ck_assert_uint_eq(stat.writes.dropped, stat.drops);
    rig_close(&rig);
}
END_TEST

START_TEST(scratch_is_written_whatever_it_costs)
{
    rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 8 * MIB, .device_bytes = 96 * MIB}, 1);
    rig.pools[0].write_budget_bytes = MIB;
    rig.pools[0].write_budget_ns = SECOND;
    rig_start(&rig);
    put_many(RIG_SCRATCH, 300, RIG_PIECE);
    struct tiering_pool_stat stat = rig_pool_stat(&rig, 0);

    ck_assert_uint_gt(put_bytes(0), 40 * MIB);
    ck_assert_uint_gt(stat.writes.over_bytes, 30 * MIB);
    ck_assert_uint_eq(stat.writes.dropped + stat.drops, 0);
    /* And now nothing is left for the cache, until it is paid off. */
    uint64_t before = put_bytes(0);
    put_many(RIG_CACHE, 100, RIG_PIECE);
    ck_assert_uint_gt(rig_pool_stat(&rig, 0).writes.dropped, 0);
    ck_assert_uint_le(put_bytes(0) - before, 8 * MIB); /* the last of scratch */
    rig_turn(&rig, 0, 100 * SECOND);
    before = put_bytes(0);
    put_many(RIG_CACHE, 100, RIG_PIECE);
    ck_assert_uint_gt(put_bytes(0), before);
    rig_close(&rig);
}
END_TEST

START_TEST(a_devices_write_budget_counts_its_log)
{
    struct store_stat stat;

    rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 8 * MIB, .device_bytes = 96 * MIB}, 2);
    for (uint32_t i = 0; i < 2; i++)
        rig.stores[i] = (struct tiering_store_config){
            .weight = 100, .write_budget_bytes = i ? 0 : 2 * MIB, .write_budget_ns = SECOND};
    rig_start(&rig);
    uint64_t start_ns = rig.now_ns;

    put_many(RIG_CACHE, 1600, RIG_PIECE);
    double seconds = (double)(rig.now_ns - start_ns) / (double)SECOND, allowed = 2.0 * MIB * seconds;
    tiering_store_stat(rig.t, 0, &stat);
    ck_assert_msg((double)stat.written_bytes > allowed * 0.95 && (double)stat.written_bytes < allowed * 1.05,
                  "%.1f, not %.1f", (double)stat.written_bytes, allowed);
    ck_assert_uint_gt(stat.written_log_bytes, 0);
    /* The other one takes what this one may not: nothing is dropped. */
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).drops, 0);
    ck_assert_uint_gt(put_bytes(1), 10 * put_bytes(0) / 2);

    /* Neither has any left: then cache is dropped. */
    tiering_store_update(
        rig.t, 1,
        &(struct tiering_store_config){.weight = 100, .write_budget_bytes = 2 * MIB, .write_budget_ns = SECOND});
    put_many(RIG_CACHE, 400, RIG_PIECE);
    ck_assert_uint_gt(rig_pool_stat(&rig, 0).drops, 0);
    ck_assert_uint_eq(writes_of(0).dropped + writes_of(1).dropped, rig_pool_stat(&rig, 0).drops);
    rig_close(&rig);
}
END_TEST

/* --- Memory on demand --- */

START_TEST(memory_comes_when_it_is_needed)
{
    uint64_t have, want;

    rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 200 * MIB, .device_bytes = 0}, 0);
    rig.config.memory_on_demand = true;
    rig_start(&rig);
    ck_assert(tiering_ready(rig.t, &have, &want));
    ck_assert_uint_eq(have, 0);
    ck_assert_uint_eq(want, 400 * MIB);
    ck_assert_uint_eq(simdisk_pending(rig.disk), 0);
    for (uint32_t i = 0; i < 800; i++) {
        struct tiering_id id = rig_id(&rig, RIG_SCRATCH, i);

        ck_assert_int_eq(rig_put(&rig, &id, RIG_PIECE, i + 1), 0);
        uint64_t chunks = rig_pool_stat(&rig, 0).dram_chunks;
        ck_assert_uint_eq(chunks, i < 256 ? 64 * MIB : i < 512 ? 128 * MIB : 200 * MIB);
    }
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).dram_used, 200 * MIB);
    ck_assert_uint_eq(rig_pool_stat(&rig, 1).dram_chunks, 0); /* nobody used that pool */
    for (uint32_t i = 0; i < 800; i += 100) {
        struct tiering_id id = rig_id(&rig, RIG_SCRATCH, i);

        ck_assert_int_eq(rig_get(&rig, &id, i + 1), 0); /* nothing had to go for it */
    }
    rig_close(&rig);
}
END_TEST

static void put_new(uint32_t first, uint32_t n)
{
    for (uint32_t i = first; i < first + n; i++) {
        struct tiering_id id = rig_id(&rig, RIG_CACHE, i);

        ck_assert_int_eq(rig_put(&rig, &id, RIG_PIECE, i + 1), 0);
    }
}

START_TEST(memory_that_is_refused_is_asked_for_again_by_a_reload)
{
    struct tiering_stat stat;

    rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 200 * MIB, .device_bytes = 0}, 0);
    rig.config.memory_on_demand = true;
    rig_start(&rig);
    put_new(0, 10);
    simdisk_faults(rig.disk)->no_chunk = 1000000;
    put_new(10, 300); /* goes on with what there is */
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).dram_chunks, 64 * MIB);
    tiering_stat(rig.t, &stat);
    ck_assert_uint_eq(stat.refused_bytes, 136 * MIB); /* all that is missing */
    simdisk_faults(rig.disk)->no_chunk = 0;
    put_new(310, 300);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).dram_chunks, 64 * MIB);
    ck_assert_uint_gt(rig_pool_stat(&rig, 0).drops, 300);
    tiering_pool_update(rig.t, 0, &rig.pools[0]);
    put_new(610, 200);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).dram_chunks, 128 * MIB);
    rig_close(&rig);
}
END_TEST

/* On demand nobody takes it before somebody needs it, but then nothing is in the way. */
START_TEST(memory_that_is_refused_on_demand_may_come_later)
{
    rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 200 * MIB, .device_bytes = 0}, 0);
    rig.config.memory_on_demand = true;
    rig_start(&rig);
    put_new(0, 10);
    simdisk_faults(rig.disk)->no_chunk = 1000000;
    put_new(10, 300);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).dram_missing, 136 * MIB);
    simdisk_faults(rig.disk)->no_chunk = 0;
    rig_turn(&rig, 0, MEMORY_RETRY_MS_MAX * UINT64_C(1000000));
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).dram_chunks, 64 * MIB);
    put_new(310, 200);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).dram_chunks, 128 * MIB);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).dram_missing, 0);
    rig_close(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("place");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 200);
    tcase_add_test(tc, devices_share_new_data_by_weight);
    tcase_add_test(tc, a_failed_device_gets_nothing);
    tcase_add_test(tc, homes_of_durable_spaces_follow_the_weights);
    tcase_add_test(tc, a_pools_write_budget_holds);
    tcase_add_test(tc, scratch_is_written_whatever_it_costs);
    tcase_add_test(tc, a_devices_write_budget_counts_its_log);
    tcase_add_test(tc, memory_comes_when_it_is_needed);
    tcase_add_test(tc, memory_that_is_refused_is_asked_for_again_by_a_reload);
    tcase_add_test(tc, memory_that_is_refused_on_demand_may_come_later);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
