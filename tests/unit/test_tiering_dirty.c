/* SPDX-License-Identifier: Apache-2.0 */
/* What a SYNC of a whole space looks at: the pieces that no device has, whatever comes and goes while it does. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "tests/unit/support/tiering_rig.h"

#define BLOCK_BYTES 4096

struct running_sync {
    struct tiering_sync sync;
    int status; /* 1: it runs */
};

static struct rig rig;

static void sync_done(struct tiering_sync *sync, int status)
{
    container_of(sync, struct running_sync, sync)->status = status;
}

/* Of these, or with n = 0 of the whole space. */
static void sync_prepare(struct running_sync *y, const struct tiering_id *ids, uint32_t n)
{
    *y = (struct running_sync){.sync = {.done = sync_done}, .status = 1};
    tiering_sync_begin(rig.t, &y->sync, rig.spaces[RIG_DURABLE].index);
    for (uint32_t i = 0; i < n; i++)
        ck_assert_int_eq(tiering_sync_add(rig.t, &y->sync, &ids[i]), 0);
    if (n == 0)
        ck_assert_int_eq(tiering_sync_add_space(rig.t, &y->sync), 0);
}

static void sync_begin(struct running_sync *y, const struct tiering_id *ids, uint32_t n)
{
    sync_prepare(y, ids, n);
    tiering_sync_run(rig.t, &y->sync);
}

static int sync_wait(const struct running_sync *y)
{
    for (int turn = 0; y->status == 1; turn++) {
        ck_assert_int_lt(turn, 100000);
        rig_turn(&rig, 1, 100000);
        rig_check(&rig);
    }
    return y->status;
}

static struct tiering_id key(uint32_t n)
{
    return rig_id(&rig, RIG_DURABLE, n);
}

static void put(uint32_t first, uint32_t n)
{
    for (uint32_t i = first; i < first + n; i++) {
        struct tiering_id id = key(i);

        ck_assert_int_eq(rig_put(&rig, &id, BLOCK_BYTES, i + 1), 0);
    }
}

static void delete (uint32_t n)
{
    struct tiering_id id = key(n);

    ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
}

static int get(uint32_t n)
{
    struct tiering_id id = key(n);

    return rig_get(&rig, &id, n + 1);
}

static uint64_t looks(void)
{
    struct tiering_stat stat;

    tiering_stat(rig.t, &stat);
    return stat.sync_looks;
}

/* --- What is looked at ------------------------------------------------------------------------------------------------------- */

START_TEST(a_sync_costs_what_is_dirty)
{
    rig_open(&rig, 16 * MIB, 64 * MIB);
    put(0, 300);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    ck_assert_uint_eq(looks(), 300);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    ck_assert_uint_eq(looks(), 300);
    put(300, 3);
    delete (301);
    delete (7);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    ck_assert_uint_eq(looks(), 302);
    rig_crash(&rig, true);
    for (uint32_t i = 0; i < 303; i++)
        ck_assert_int_eq(get(i), i == 7 || i == 301 ? -ENOENT : 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    ck_assert_uint_eq(looks(), 0); /* what the log brought back is on the device */
    rig_close(&rig);
}
END_TEST

/* rig_check() compares the ring with the records. */
START_TEST(a_tensor_is_dirty_from_its_writer_to_its_sync)
{
    rig_open(&rig, 4 * MIB, 64 * MIB);
    struct tiering_id id = key(1);
    struct tiering_grant g, reader;

    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &id, 8192), 0);
    rig_check(&rig);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    ck_assert_uint_eq(looks(), 0); /* nobody has written it */
    ck_assert_int_eq(rig_write(&rig, &id, 1), 0);
    rig_check(&rig);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    ck_assert_uint_eq(looks(), 1);
    rig_check(&rig);
    ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, TIERING_WRITE, &g), 0);
    rig_check(&rig);
    ck_assert_int_eq(tiering_release(rig.t, &rig.s, g.lease, 0), 0); /* as it was: the device has it */
    rig_check(&rig);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    ck_assert_uint_eq(looks(), 1);
    /* A writer dies beside a reader: torn, whichever SYNC asks. Then all of it is written. */
    ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, 0, &reader), 0);
    ck_assert_int_eq(rig_acquire(&rig, &rig.other, &id, TIERING_WRITE, &g), 0);
    ck_assert_int_eq(tiering_release(rig.t, &rig.other, g.lease, TIERING_DISCARD), 0);
    rig_check(&rig);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), -EBADMSG);
    ck_assert_int_eq(tiering_release(rig.t, &rig.s, reader.lease, 0), 0);
    ck_assert_int_eq(rig_write(&rig, &id, 2), 0);
    rig_check(&rig);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    rig_crash(&rig, true);
    id = key(1);
    ck_assert_int_eq(rig_get(&rig, &id, 2), 0);
    ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* --- A walk of many turns: there are fewer moves than dirty pieces ------------------------------------------------------- */

START_TEST(pieces_come_and_go_while_a_sync_walks)
{
    rig_open(&rig, 16 * MIB, 64 * MIB);
    struct running_sync y;

    put(0, 200);
    sync_begin(&y, NULL, 0);
    rig_turn(&rig, 0, 1000);
    uint64_t seen = looks();
    ck_assert_uint_gt(seen, 10);
    ck_assert_uint_lt(seen, 190);
    /* What it was to look at next, and its neighbours, what it has seen, and the last. */
    for (uint32_t i = 0; i < 3; i++)
        delete ((uint32_t)seen + i);
    delete (2);
    delete (199);
    rig_check(&rig);
    for (uint32_t more = 200; y.status == 1; more++) {
        ck_assert_uint_lt(more, 1000);
        put(more, 1);
        rig_turn(&rig, 1, 100000);
        rig_check(&rig);
    }
    ck_assert_int_eq(y.status, 0);
    ck_assert_uint_le(looks(), 200); /* new ones do not keep it from ending */
    rig_crash(&rig, true);
    for (uint32_t i = 0; i < 200; i++)
        ck_assert_int_eq(get(i), i == 2 || i == 199 || (i >= seen && i < seen + 3) ? -ENOENT : 0);
    rig_close(&rig);
}
END_TEST

START_TEST(two_syncs_walk_one_after_the_other)
{
    rig_open(&rig, 16 * MIB, 64 * MIB);
    struct running_sync first, second;

    sync_prepare(&second, NULL, 0);
    put(0, 150);
    sync_begin(&first, NULL, 0);
    rig_turn(&rig, 0, 1000);
    ck_assert_uint_lt(looks(), 140);
    put(150, 100);
    tiering_sync_run(rig.t, &second.sync); /* at each turn it is asked before the first */
    ck_assert_int_eq(sync_wait(&second), 0);
    ck_assert_int_eq(first.status, 0);
    rig_crash(&rig, true);
    for (uint32_t i = 0; i < 250; i++)
        ck_assert_int_eq(get(i), 0);
    rig_close(&rig);
}
END_TEST

/*
 * A SYNC has seen a part of its space when another one writes a tensor that comes later, under its transaction, which then
 * fails: the tensor is dirty again, and the first SYNC must still write it. By then it is behind pieces that came after
 * that SYNC began (_i is 0), or nothing else is left that it has not seen (1).
 */
START_TEST(what_another_sync_wrote_in_vain_is_not_forgotten)
{
    rig_open(&rig, 16 * MIB, 64 * MIB);
    struct tiering_id tensors[] = {key(1000), key(1001)};
    struct running_sync whole, other;
    struct tiering_grant g;

    for (uint32_t i = 0; i < 2; i++)
        ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &tensors[i], 8192), 0);
    put(0, 150);
    for (uint32_t i = 0; i < 2; i++)
        ck_assert_int_eq(rig_write(&rig, &tensors[i], i + 1), 0);
    sync_begin(&whole, NULL, 0);
    rig_turn(&rig, 0, 1000);
    uint32_t n_seen = (uint32_t)looks();
    ck_assert_uint_lt(n_seen, 140);
    ck_assert_int_eq(rig_acquire(&rig, &rig.s, &tensors[1], TIERING_WRITE, &g), 0);
    sync_begin(&other, tensors, 2); /* writes the first, and fails for the second, which is being changed */
    ck_assert_int_eq(tiering_release(rig.t, &rig.s, g.lease, TIERING_DIRTY), 0);
    for (uint32_t i = n_seen; _i == 1 && i < 150; i++)
        delete (i);
    if (_i == 1)
        delete (1001);
    for (uint32_t i = 0; other.status == 1; i++) {
        ck_assert_uint_lt(i, 200);
        if (_i == 0)
            put(200 + i, 1);
        rig_turn(&rig, 1, 100000);
        rig_check(&rig);
    }
    ck_assert_int_eq(other.status, -EBUSY);
    ck_assert_int_eq(whole.status, 1);
    ck_assert_int_eq(sync_wait(&whole), 0);
    rig_crash(&rig, true);
    for (uint32_t i = 0; i < 2; i++) {
        struct tiering_id id = key(1000 + i);

        ck_assert_int_eq(rig_get(&rig, &id, i + 1), _i == 1 && i == 1 ? -ENOENT : 0);
    }
    for (uint32_t i = 0; i < 150; i++)
        ck_assert_int_eq(get(i), _i == 1 && i >= n_seen ? -ENOENT : 0);
    rig_close(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("dirty");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, a_sync_costs_what_is_dirty);
    tcase_add_test(tc, a_tensor_is_dirty_from_its_writer_to_its_sync);
    tcase_add_test(tc, pieces_come_and_go_while_a_sync_walks);
    tcase_add_test(tc, two_syncs_walk_one_after_the_other);
    tcase_add_loop_test(tc, what_another_sync_wrote_in_vain_is_not_forgotten, 0, 2);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
