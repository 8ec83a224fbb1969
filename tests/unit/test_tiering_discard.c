/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A write that its client takes back: the piece is what it was, whatever becomes of its copy on the device meanwhile.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "tests/unit/support/tiering_rig.h"
#include "tiering/core.h"

#define TENSOR_BYTES 200000
#define STEPS 12 /* requests that have ended before the write is taken back: more than a relocation takes */

static struct rig rig;

static uint32_t object_of(const struct tiering_id *id)
{
    int status = 0;
    uint32_t object = object_find(rig.t, id, &status);

    ck_assert_int_eq(status, 0);
    return object;
}

/* A tensor in memory and on the device, alike, and others in its segment. */
static struct tiering_id tensor_on_device(enum rig_space space)
{
    struct tiering_id id = rig_id(&rig, space, 1);
    struct tiering_grant grant;

    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &id, TENSOR_BYTES), 0);
    ck_assert_int_eq(rig_write(&rig, &id, 5), 0);
    for (uint32_t i = 2; i < 40; i++) { /* of which not all can stay in memory */
        struct tiering_id other = rig_id(&rig, space, i);

        ck_assert_int_eq(rig_put(&rig, &other, 200000, i), 0);
        if (space == RIG_DURABLE)
            ck_assert_int_eq(rig_sync(&rig, space, NULL, 0), 0);
    }
    rig_settle(&rig);
    ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, 0, &grant), 0);
    ck_assert(grant.fetched);
    ck_assert_int_eq(rig_release(&rig, &rig.s, grant.lease, 0), 0);
    return id;
}

/* Its copy on the device, that the writer has or has not set aside, leaves for another segment. */
static void copy_leaves(uint32_t object)
{
    const struct shadow *shadow = hot_at(rig.t, object)->flags & HOT_SHADOWED ? shadow_of(rig.t, object) : NULL;
    struct store_entry entry;
    uint8_t store = record_at(&rig.t->records, object)->dev_store;

    object_to_entry(rig.t, object, &entry);
    if (shadow) {
        store = shadow->store;
        entry = shadow->entry;
    }
    ck_assert(relocate(rig.t, object, store, &entry));
    ck_assert(hot_at(rig.t, object)->flags & HOT_RELOCATING);
}

static void discard(enum rig_space space, uint32_t steps, bool leaves_first)
{
    struct tiering_grant grant;

    rig_open(&rig, 4 * MIB, 64 * MIB);
    struct tiering_id id = tensor_on_device(space);
    uint32_t object = object_of(&id);

    if (leaves_first)
        copy_leaves(object);
    ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, TIERING_WRITE, &grant), 0);
    rig_fill(rig_memory(&rig, &grant), 10000, 6);
    if (!leaves_first)
        copy_leaves(object);
    rig_turn(&rig, steps, 1000);
    ck_assert_int_eq(rig_release(&rig, &rig.s, grant.lease, TIERING_DISCARD), 0);
    rig_check(&rig);
    ck_assert_int_eq(rig_get(&rig, &id, 5), 0);
    rig_settle(&rig);
    ck_assert(!(hot_at(rig.t, object)->flags & HOT_RELOCATING));
    ck_assert_int_eq(rig_get(&rig, &id, 5), 0);
    rig_check(&rig);
    if (space == RIG_DURABLE) {
        ck_assert_int_eq(rig_sync(&rig, space, NULL, 0), 0);
        rig_crash(&rig, true);
        id = rig_id(&rig, space, 1);
        ck_assert_int_eq(rig_get(&rig, &id, 5), 0);
    }
    rig_close(&rig);
}

START_TEST(while_its_copy_is_moved)
{
    for (uint32_t steps = 0; steps < STEPS; steps++) {
        discard(RIG_DURABLE, steps, false);
        discard(RIG_DURABLE, steps, true);
        discard(RIG_SCRATCH, steps, false);
        discard(RIG_SCRATCH, steps, true);
    }
}
END_TEST

/* Somebody else reads the same memory: what the writer left there is all there is. */
START_TEST(beside_a_reader)
{
    struct tiering_grant grant, reader;

    rig_open(&rig, 4 * MIB, 64 * MIB);
    struct tiering_id id = tensor_on_device(RIG_DURABLE);

    ck_assert_int_eq(rig_acquire(&rig, &rig.other, &id, 0, &reader), 0);
    ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, TIERING_WRITE, &grant), 0);
    copy_leaves(object_of(&id));
    ck_assert_int_eq(rig_release(&rig, &rig.s, grant.lease, TIERING_DISCARD), 0);
    ck_assert_int_eq(rig_get(&rig, &id, 5), -EBADMSG);
    ck_assert_int_eq(rig_release(&rig, &rig.other, reader.lease, 0), 0);
    rig_settle(&rig);
    rig_check(&rig);
    rig_crash(&rig, true);
    id = rig_id(&rig, RIG_DURABLE, 1);
    ck_assert_int_eq(rig_get(&rig, &id, 5), 0);
    rig_close(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tiering_discard");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 100);
    tcase_add_test(tc, while_its_copy_is_moved);
    tcase_add_test(tc, beside_a_reader);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed ? 1 : 0;
}
