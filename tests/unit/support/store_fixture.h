/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of the store begin and end with: one simulated disk, one owner. Included by test files only. */
#pragma once

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io/checksum.h"
#include "io/format.h"
#include "io/superblock.h"
#include "tests/unit/support/owner.h"

#define DEVICE_BYTES (24 * MIB)
#define UNUSED_OK __attribute__((unused))

static struct simdisk *disk;
static struct owner *o;
static const char *why;

UNUSED_OK static void start(uint64_t seed, uint64_t device_bytes, uint32_t segment_bytes, uint32_t n_ids)
{
    disk = simdisk_new(seed);
    uint32_t dev = simdisk_device_add(disk, device_bytes);
    o = owner_new(disk, dev, device_bytes, n_ids);
    ck_assert_int_eq(owner_format(o, segment_bytes, seed), 0);
}

UNUSED_OK static void start_open(uint64_t seed, uint32_t n_ids)
{
    start(seed, DEVICE_BYTES, MIB, n_ids);
    ck_assert_int_eq(owner_open(o, &why), 0);
}

UNUSED_OK static void end(void)
{
    owner_free(o);
    simdisk_free(disk);
    o = NULL;
    disk = NULL;
}

UNUSED_OK static void put_wait(uint32_t id)
{
    int r;

    while ((r = owner_put(o, id, false)) == -EAGAIN || r == -EBUSY)
        owner_turn(o);
    ck_assert_int_eq(r, 0);
}

/* A put that may be refused; histories are kept short by syncs. */
UNUSED_OK static void put_try(uint32_t id)
{
    if (o->objects[id].n_history > OWNER_HISTORY_MAX / 2)
        owner_wait_sync(o);
    (void)owner_put(o, id, false);
}

UNUSED_OK static void reopen(void)
{
    ck_assert_int_eq(owner_close(o), 0);
    ck_assert_int_eq(owner_open(o, &why), 0);
}

UNUSED_OK static void geometry_get(struct geometry *ret_geometry)
{
    const struct store_format f = {
        .device_bytes = o->device_bytes, .segment_bytes = MIB, .partitions = 1, .uuid = {o->uuid, ~o->uuid}};

    ck_assert_int_eq(geometry_of(&f, 0, ret_geometry), 0);
}

/* Where an object's bytes lie on the device. */
UNUSED_OK static uint64_t piece_off(uint32_t id)
{
    const struct store_loc loc = o->objects[id].entry.loc;
    struct geometry g;

    geometry_get(&g);
    return g.segments_off_bytes + (uint64_t)loc.segment * MIB + (uint64_t)loc.sector * SECTOR_BYTES;
}

struct test_case {
    const char *name;
    const TTest *test;
};

UNUSED_OK static int run_suite(const char *name, const struct test_case *tests, size_t n)
{
    Suite *suite = suite_create(name);

    for (size_t i = 0; i < n; i++) {
        TCase *tc = tcase_create(tests[i].name);
        tcase_set_timeout(tc, 300);
        tcase_add_test(tc, tests[i].test);
        suite_add_tcase(suite, tc);
    }
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
