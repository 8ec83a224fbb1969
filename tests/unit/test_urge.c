/* SPDX-License-Identifier: Apache-2.0 */
/* Priority that is inherited: transfers that nobody waited for when they began, and somebody waits for now. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "tests/unit/support/tiering_rig.h"

#define LANE io_lane_of(0)

static struct rig rig;

static uint32_t urgent(enum io_blk_op op)
{
    return simdisk_pending_blks(rig.disk, op, true, LANE);
}

static uint32_t background(enum io_blk_op op)
{
    return simdisk_pending_blks(rig.disk, op, false, LANE);
}

/* Until this many device requests of the kind are pending; what else there is (hashes) ends on the way. */
static void step_until(enum io_blk_op op, uint32_t n)
{
    for (int i = 0; urgent(op) + background(op) < n; i++) {
        ck_assert_int_lt(i, 1000);
        ck_assert(simdisk_step(rig.disk));
    }
}

/* Memory full of dirty pieces of the space, which the tick then begins to write ahead of need. */
static uint32_t fill_and_clean(enum rig_space space)
{
    struct tiering_grant grant;
    uint32_t n = 0;

    for (;; n++) {
        struct tiering_id id = rig_id(&rig, space, n);

        ck_assert_uint_lt(n, 100);
        if (tiering_reserve(rig.t, &rig.s, &id, RIG_PIECE, RIG_PIECE, NULL, &grant) < 0)
            break;
        rig_fill(rig_memory(&rig, &grant), RIG_PIECE, n);
        ck_assert_int_eq(tiering_commit(rig.t, &rig.s, grant.lease, NULL, &grant), 0);
        if ((n + 1) * RIG_PIECE == rig.pools[0].dram_bytes) {
            n++;
            break;
        }
    }
    rig_turn(&rig, 0, 1000000);
    return n;
}

START_TEST(a_lease_hurries_the_prefetch_of_its_piece)
{
    static const uint32_t sizes[] = {RIG_PIECE, 40000}; /* of several granules, and of one */

    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        struct tiering_grant grant;
        struct rig_wait w;

        rig_open(&rig, 8 * MIB, 64 * MIB);
        struct tiering_id id = rig_id(&rig, RIG_CACHE, 1);
        ck_assert_int_eq(rig_put(&rig, &id, sizes[i], 5), 0);
        rig_restart(&rig);
        id = rig_id(&rig, RIG_CACHE, 1);
        ck_assert_int_eq(tiering_prefetch(rig.t, &id, NULL, &grant), 0);
        rig_turn(&rig, 0, 1000000);
        ck_assert_uint_eq(background(IO_BLK_READ), 1);
        ck_assert_uint_eq(urgent(IO_BLK_READ), 0);
        rig_wait_init(&w);
        ck_assert_int_eq(tiering_admit(rig.t, &rig.s, 0, sizes[i], &grant.limit), 0);
        ck_assert_int_eq(tiering_acquire(rig.t, &rig.s, &id, 0, 0, 0, &w.wait, &grant), TIERING_WAIT);
        ck_assert_uint_eq(background(IO_BLK_READ), 0);
        ck_assert_uint_eq(urgent(IO_BLK_READ), 1);
        ck_assert_int_eq(rig_wait(&rig, &w), 0);
        ck_assert(rig_is(rig_memory(&rig, &w.wait.grant), sizes[i], 5));
        ck_assert_int_eq(tiering_release(rig.t, &rig.s, w.wait.grant.lease, 0), 0);
        tiering_unadmit(rig.t, &rig.s, 0, sizes[i]);
        rig_close(&rig);
    }
}
END_TEST

START_TEST(who_wants_room_hurries_the_write_back)
{
    rig_open(&rig, 8 * MIB, 64 * MIB);
    uint32_t n = fill_and_clean(RIG_CACHE);
    struct tiering_id id = rig_id(&rig, RIG_CACHE, n);
    struct tiering_grant grant;
    struct rig_wait w;

    step_until(IO_BLK_WRITE, 3);
    ck_assert_uint_eq(urgent(IO_BLK_WRITE), 0);
    rig_wait_init(&w);
    ck_assert_int_eq(tiering_reserve(rig.t, &rig.s, &id, RIG_PIECE, RIG_PIECE, &w.wait, &grant), TIERING_WAIT);
    rig_turn(&rig, 0, 1000000);
    /* One piece is enough, so one is hurried: the oldest, whether it is being written or still hashed. */
    for (int i = 0; urgent(IO_BLK_WRITE) == 0; i++) {
        ck_assert_int_lt(i, 100);
        ck_assert_int_eq(w.status, 1);
        ck_assert(simdisk_step(rig.disk));
    }
    ck_assert_uint_eq(urgent(IO_BLK_WRITE), 1);
    ck_assert_uint_gt(background(IO_BLK_WRITE), 0);
    ck_assert_int_eq(rig_wait(&rig, &w), 0);
    ck_assert_int_eq(tiering_abort(rig.t, &rig.s, w.wait.grant.lease), 0);
    rig_close(&rig);
}
END_TEST

static void sync_done(struct tiering_sync *sync, int status)
{
    (void)sync;
    ck_assert_int_eq(status, 0);
}

static void sync_begin(struct tiering_sync *sync, const struct tiering_id *id)
{
    *sync = (struct tiering_sync){.done = sync_done};
    tiering_sync_begin(rig.t, sync, id->space);
    ck_assert_int_eq(tiering_sync_add(rig.t, sync, id), 0);
    tiering_sync_run(rig.t, sync);
}

START_TEST(a_sync_hurries_its_piece)
{
    struct tiering_sync sync;

    rig_open(&rig, 8 * MIB, 64 * MIB);
    struct tiering_id id = rig_id(&rig, RIG_DURABLE, fill_and_clean(RIG_DURABLE) - 1);
    step_until(IO_BLK_WRITE, 3);
    ck_assert_uint_eq(urgent(IO_BLK_WRITE), 0);
    sync_begin(&sync, &id);
    for (int i = 0; urgent(IO_BLK_WRITE) == 0; i++) {
        ck_assert_int_lt(i, 1000);
        ck_assert(simdisk_step(rig.disk));
    }
    ck_assert_uint_eq(urgent(IO_BLK_WRITE), 1);
    rig_settle(&rig);
    rig_close(&rig);
}
END_TEST

START_TEST(a_sync_hurries_what_was_put_before_it)
{
    struct tiering_sync sync;

    rig_open(&rig, 8 * MIB, 64 * MIB);
    struct tiering_id id = rig_id(&rig, RIG_DURABLE, 1000);
    ck_assert_int_eq(rig_put(&rig, &id, 5000, 1), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, &id, 1), 0);
    (void)fill_and_clean(RIG_DURABLE);
    step_until(IO_BLK_WRITE, 3);
    ck_assert_uint_eq(urgent(IO_BLK_WRITE), 0);
    sync_begin(&sync, &id); /* the log is in order: it cannot be durable before those are */
    ck_assert_uint_eq(background(IO_BLK_WRITE), 0);
    ck_assert_uint_ge(urgent(IO_BLK_WRITE), 3);
    rig_settle(&rig);
    rig_close(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("urge");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, a_lease_hurries_the_prefetch_of_its_piece);
    tcase_add_test(tc, who_wants_room_hurries_the_write_back);
    tcase_add_test(tc, a_sync_hurries_its_piece);
    tcase_add_test(tc, a_sync_hurries_what_was_put_before_it);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
