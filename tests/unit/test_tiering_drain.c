/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is written back before a stop: it ends, whatever the devices take, and what must stay stays.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "io/store_private.h"
#include "tests/unit/support/tiering_rig.h"
#include "tiering/core.h"

#define CACHE_BLOCKS 3000
#define DURABLE_BLOCKS 100

static struct rig rig;

static struct tiering_id key(enum rig_space space, uint32_t number)
{
    return rig_id(&rig, space, number);
}

static void fill_memory(void)
{
    for (uint32_t i = 0; i < CACHE_BLOCKS; i++) {
        struct tiering_id cache = key(RIG_CACHE, i), durable = key(RIG_DURABLE, i);

        ck_assert_int_eq(rig_put(&rig, &cache, 4096, i + 1), 0);
        if (i % (CACHE_BLOCKS / DURABLE_BLOCKS) == 0)
            ck_assert_int_eq(rig_put(&rig, &durable, 4096, i + 1), 0);
    }
}

static uint32_t count_found(enum rig_space space)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < CACHE_BLOCKS; i++) {
        struct tiering_id id = key(space, i);
        int r = rig_get(&rig, &id, i + 1);

        ck_assert(r == 0 || r == -ENOENT);
        n += r == 0;
    }
    return n;
}

/* Memory holds more than the device: what makes room for others is not written again. */
START_TEST(more_than_the_device_takes)
{
    rig_open(&rig, 24 * MIB, 12 * MIB);
    fill_memory();
    uint64_t spills = rig_pool_stat(&rig, 0).spills;
    ck_assert_uint_lt(spills, CACHE_BLOCKS / 2);

    for (uint32_t turn = 0; !tiering_drain(rig.t); turn++) {
        ck_assert_uint_lt(turn, 100000);
        rig_turn(&rig, 4, 100000);
    }
    ck_assert_uint_le(rig_pool_stat(&rig, 0).spills, CACHE_BLOCKS + DURABLE_BLOCKS);
    struct tiering_left left;

    tiering_drain_left(rig.t, &left);
    ck_assert_uint_eq(left.durable_pieces, 0);
    ck_assert_uint_gt(left.cache_pieces, 0);
    ck_assert_uint_ge(left.cache_bytes, left.cache_pieces);
    rig_restart(&rig);
    ck_assert_uint_eq(count_found(RIG_DURABLE), DURABLE_BLOCKS);
    uint32_t kept = count_found(RIG_CACHE);
    ck_assert_uint_gt(kept, CACHE_BLOCKS / 10);
    ck_assert_uint_le(kept, CACHE_BLOCKS - left.cache_pieces);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* A write that fails is tried again, if it is not `cache` that is lost with it. */
START_TEST(a_write_that_fails)
{
    rig_open(&rig, 24 * MIB, 64 * MIB);
    for (uint32_t i = 0; i < 10; i++) {
        struct tiering_id id = key(RIG_DURABLE, i);

        ck_assert_int_eq(rig_put(&rig, &id, 70000, i + 1), 0);
    }
    ck_assert(!tiering_drain(rig.t));
    simdisk_fail_next(rig.disk, IO_BLK_WRITE, -EIO);
    rig_restart(&rig);
    for (uint32_t i = 0; i < 10; i++) {
        struct tiering_id id = key(RIG_DURABLE, i);

        ck_assert_int_eq(rig_get(&rig, &id, i + 1), 0);
    }
    rig_close(&rig);
}
END_TEST

/* All of the device, with what tiering knows nothing of, and the reserve too. */
static void fill_device(struct store_entry like)
{
    like.id.key[0] = 0xff;
    for (like.id.key[1] = 1; rig_raw_put(&rig, &like, RIG_PIECE, 1) == 0; like.id.key[1]++)
        ck_assert_uint_lt(like.id.key[1], 200);
}

/* A piece that is to leave its segment and finds no room, ever: nothing that a stop waits for. */
START_TEST(a_piece_that_cannot_move)
{
    rig_open(&rig, 8 * MIB, 16 * MIB);
    struct tiering_id id = key(RIG_DURABLE, 1), cache = key(RIG_CACHE, 1);
    struct store_entry entry;
    int status;

    ck_assert_int_eq(rig_put(&rig, &id, RIG_PIECE, 1), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    rig_evict(&rig, &id);
    uint32_t object = object_find(rig.t, &id, &status);

    object_to_entry(rig.t, object, &entry);
    fill_device(entry);
    segment_set_state(&rig.t->stores[0].store->table, entry.loc.segment, SEGMENT_EVACUATING);
    ck_assert(relocate(rig.t, object, 0, &entry));
    ck_assert_int_eq(rig_put(&rig, &cache, 70000, 2), 0);
    for (uint32_t turn = 0; !tiering_drain(rig.t); turn++) {
        ck_assert_uint_lt(turn, 10000);
        rig_turn(&rig, 4, 1000000);
    }
    ck_assert_uint_eq(relocations_running(rig.t), 1);
    rig_crash(&rig, true);
    id = key(RIG_DURABLE, 1);
    ck_assert_int_eq(rig_get(&rig, &id, 1), 0);
    rig_close(&rig);
}
END_TEST

/* Room would come if pieces could be moved, but they cannot be read, however often. */
START_TEST(pieces_that_cannot_be_read)
{
    const uint32_t n = 90;

    rig_open(&rig, 8 * MIB, 16 * MIB);
    for (uint32_t i = 0; i < n; i++) {
        struct tiering_id id = key(RIG_DURABLE, i);

        ck_assert_int_eq(rig_put(&rig, &id, 100000, i + 1), 0);
    }
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    for (uint32_t i = 0; i < n; i++) {
        struct tiering_id id = key(RIG_DURABLE, i);

        rig_evict(&rig, &id);
        if (i % 3)
            ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
    }
    simdisk_faults(rig.disk)->read_error = 1000000;
    uint64_t evacuated = rig.t->stat.evacuated;
    for (uint32_t i = 0; i < 70; i++) {
        struct tiering_id id = key(RIG_CACHE, i);

        ck_assert_int_eq(rig_put(&rig, &id, 100000, i + 1), 0);
    }
    for (uint32_t turn = 0; !tiering_drain(rig.t); turn++) {
        ck_assert_uint_lt(turn, 20000);
        rig_turn(&rig, 4, 1000000);
    }
    ck_assert_uint_gt(rig.t->stat.evacuated, evacuated);
    simdisk_faults(rig.disk)->read_error = 0;
    rig_crash(&rig, true);
    for (uint32_t i = 0; i < n; i += 3) {
        struct tiering_id id = key(RIG_DURABLE, i);

        ck_assert_int_eq(rig_get(&rig, &id, i + 1), 0);
    }
    rig_close(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tiering_drain");
    TCase *tc = tcase_create("all");

    tcase_add_test(tc, more_than_the_device_takes);
    tcase_add_test(tc, a_write_that_fails);
    tcase_add_test(tc, a_piece_that_cannot_move);
    tcase_add_test(tc, pieces_that_cannot_be_read);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed ? 1 : 0;
}
