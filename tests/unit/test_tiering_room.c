/* SPDX-License-Identifier: Apache-2.0 */
/* Room for a size when others have all the memory, and some of what they have must stay. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "tests/unit/support/tiering_rig.h"

#define LARGE_BYTES ((uint32_t)(200 * KIB))
#define SMALL_BYTES 4096
#define OTHER_BYTES ((uint32_t)(100 * KIB))
#define MS UINT64_C(1000000)

static struct rig rig;

static struct tiering_id key(enum rig_space space, uint32_t n)
{
    return rig_id(&rig, space, n);
}

/* A pool of 4 MiB, with so little of the device that durable blocks soon fill it. */
static void open_with_full_device(void)
{
    uint32_t n = 0;
    int r;

    rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 4 * MIB, .device_bytes = 64 * MIB}, 1);
    rig.pools[0].nvme_bytes = 4 * MIB;
    rig_start(&rig);
    for (uint32_t bytes = LARGE_BYTES; bytes; bytes = bytes == LARGE_BYTES ? SMALL_BYTES : 0) { /* to the last sector */
        do {
            struct tiering_id id = key(RIG_DURABLE, 1000 + n);

            r = rig_put(&rig, &id, bytes, 1000 + n);
            if (r == 0)
                r = rig_sync(&rig, RIG_DURABLE, &id, 1);
            if (r < 0)
                ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
            n++;
        } while (r == 0);
        ck_assert_int_eq(r, -ENOSPC);
        ck_assert_uint_gt(n, 4);
    }
}

/* --- What no device takes ------------------------------------------------------------------------------------------- */

START_TEST(what_must_stay_keeps_no_other_slab)
{
    open_with_full_device();
    struct tiering_id stays = key(RIG_DURABLE, 1), large = key(RIG_CACHE, 2);

    /* The durable blocks go, those of a hundred KiB come in their place; the one that no device takes lies in the first slab. */
    ck_assert_int_eq(rig_put(&rig, &stays, SMALL_BYTES, 1), 0);
    for (uint32_t i = 0; i < 100; i++) {
        struct tiering_id id = key(RIG_CACHE, 100 + i);

        ck_assert_int_eq(rig_put(&rig, &id, OTHER_BYTES, i + 1), 0);
    }
    ck_assert_int_eq(rig_put(&rig, &large, LARGE_BYTES, 2), 0);
    ck_assert_int_eq(rig_get(&rig, &stays, 1), 0);
    ck_assert_int_eq(rig_get(&rig, &large, 2), 0);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* A class that holds most gives first; but if all of it must stay, another one gives. */
START_TEST(what_must_stay_keeps_no_other_class)
{
    struct tiering_space_spec spec = {.durability = STORE_CACHE + 1, .digest = {77}, .class_id = 1};
    struct tiering_space_info other;
    uint32_t n_stay = 0;

    open_with_full_device();
    ck_assert_int_eq(tiering_space_open(rig.t, &spec, &other), 0);
    for (; n_stay < 100 && rig_pool_stat(&rig, 0).dirty < 5 * MIB / 2; n_stay++) {
        struct tiering_id id = key(RIG_DURABLE, n_stay);

        ck_assert_int_eq(rig_put(&rig, &id, SMALL_BYTES * 8, n_stay + 1), 0);
    }
    for (uint32_t i = 0; i < 200; i++) {
        struct tiering_id id = key(RIG_CACHE, i);

        id.space = other.index;
        ck_assert_int_eq(rig_put(&rig, &id, OTHER_BYTES, i + 1), 0);
    }
    for (uint32_t i = 0; i < n_stay; i++) {
        struct tiering_id id = key(RIG_DURABLE, i);

        ck_assert_int_eq(rig_get(&rig, &id, i + 1), 0);
    }
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* The one at the head has to wait, since all that has the memory must stay; who fits beside it need not. */
START_TEST(who_is_stuck_is_passed)
{
    struct tiering_grant grant;
    struct rig_wait w;
    uint32_t n = 0;

    open_with_full_device();
    while (rig_pool_stat(&rig, 0).dirty < 7 * MIB / 2) {
        struct tiering_id id = key(RIG_DURABLE, n++);

        ck_assert_int_eq(rig_put(&rig, &id, OTHER_BYTES, n), 0);
    }
    rig_wait_init(&w);
    struct tiering_id large = key(RIG_CACHE, 1), beside = key(RIG_CACHE, 2);
    ck_assert_int_eq(tiering_reserve(rig.t, &rig.s, &large, LARGE_BYTES, LARGE_BYTES, &w.wait, &grant), TIERING_WAIT);
    ck_assert_int_eq(rig_put(&rig, &beside, OTHER_BYTES, 2), 0);
    ck_assert_int_eq(rig_get(&rig, &beside, 2), 0);
    ck_assert_int_eq(w.status, 1);
    /* And it is served when it can be. */
    for (uint32_t i = 0; i < n; i++) {
        struct tiering_id id = key(RIG_DURABLE, i);

        ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
    }
    ck_assert_int_eq(rig_wait(&rig, &w), 0);
    ck_assert_int_eq(rig_commit(&rig, &rig.s, w.wait.grant.lease), 0);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

static int acquire_within(const struct tiering_id *id, struct rig_wait *w, uint64_t ns)
{
    struct tiering_grant grant;

    rig_wait_init(w);
    int r = tiering_acquire(rig.t, &rig.s, id, 0, 0, 0, &w->wait, &grant);
    ck_assert_int_eq(r, TIERING_WAIT);
    for (uint64_t end_ns = rig.now_ns + ns; rig.now_ns < end_ns && w->status == 1;)
        rig_turn(&rig, UINT32_MAX, 10 * MS);
    return w->status;
}

/* What a failed device was to take has all of the memory. Whoever needs room is told after a while, who comes next at once. */
START_TEST(a_failed_device_is_not_waited_for)
{
    struct rig_wait w;
    uint32_t n = 0;

    rig_open(&rig, 4 * MIB, 64 * MIB);
    struct tiering_id there = key(RIG_DURABLE, 5000);
    ck_assert_int_eq(rig_put(&rig, &there, LARGE_BYTES, 1), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    rig_evict(&rig, &there);
    tiering_device_distrust(rig.t, 0, -EIO);
    rig_settle(&rig);
    for (; rig_pool_stat(&rig, 0).dirty + LARGE_BYTES < 4 * MIB; n++) {
        struct tiering_id id = key(RIG_DURABLE, n);

        ck_assert_int_eq(rig_put(&rig, &id, OTHER_BYTES, n + 1), 0);
    }

    for (int i = 0; i < 2; i++) {
        int r = acquire_within(&there, &w, i == 0 ? 5000 * MS : 300 * MS);

        ck_assert_int_eq(r, -ENOSPC);
        ck_assert_uint_eq(w.wait.grant.limit, TIERING_LIMIT_DEVICE_FAILED);
    }
    /* What is given back, or deleted, is room all the same. */
    for (uint32_t i = 0; i < n; i++) {
        struct tiering_id id = key(RIG_DURABLE, i);

        ck_assert_int_eq(rig_get(&rig, &id, i + 1), 0);
        ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
    }
    ck_assert_int_eq(rig_get(&rig, &there, 1), 0);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* --- What is leased ------------------------------------------------------------------------------------------------- */

#define LEASED_MAX 64

struct leased {
    struct tiering_grant grants[LEASED_MAX];
    uint32_t seeds[LEASED_MAX], n;
};

typedef bool (*stays_fn)(uint64_t offset_bytes, uint32_t size_bytes);

/* A pool that is all slabs of one size, each with a leased piece or more; the rest is nobody's. */
static void open_with_leases(uint32_t size_bytes, stays_fn stays, struct leased *ret_leased)
{
    rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 32 * MIB}, 0);
    rig.config.piece_bytes = PIECE_BYTES_MAX;
    rig_start(&rig);
    ret_leased->n = 0;
    for (uint32_t seed = 1; seed <= 32 * MIB / size_bytes; seed++) {
        struct tiering_id id = key(RIG_CACHE, seed);
        struct tiering_grant grant;

        ck_assert_int_eq(rig_put(&rig, &id, size_bytes, seed), 0);
        ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, 0, &grant), 0);
        if (stays(grant.offset_bytes, size_bytes)) {
            ret_leased->seeds[ret_leased->n] = seed;
            ret_leased->grants[ret_leased->n++] = grant;
        } else {
            ck_assert_int_eq(rig_release(&rig, &rig.s, grant.lease, 0), 0);
        }
    }
}

/* The first slabs have one frame, the next more, the others four. */
static bool first_of_slab_stays(uint64_t offset_bytes, uint32_t size_bytes)
{
    return offset_bytes % (offset_bytes < 4 * MIB ? MIB : 4 * MIB) < size_bytes;
}

static void check_leases(const struct leased *leased, uint32_t size_bytes)
{
    ck_assert_uint_gt(leased->n, 8);
    for (uint32_t i = 0; i < leased->n; i++)
        ck_assert(rig_is(rig_memory(&rig, &leased->grants[i]), size_bytes, leased->seeds[i]));
}

/* Whoever waits for room of another size may be the one who has the leases. */
static void leases_keep_no_other_size(uint32_t size_bytes, stays_fn stays, uint32_t other_bytes)
{
    struct tiering_id other = key(RIG_CACHE, 1000);
    struct leased leased;

    open_with_leases(size_bytes, stays, &leased);
    ck_assert_int_eq(rig_put(&rig, &other, other_bytes, 1000), 0);
    check_leases(&leased, size_bytes);
    rig_hot(&rig, true, true); /* what is in use is put into slabs again */
    rig_check(&rig);
    check_leases(&leased, size_bytes);
    ck_assert_int_eq(rig_get(&rig, &other, 1000), 0);
    for (uint32_t i = 0; i < leased.n; i++)
        ck_assert_int_eq(rig_release(&rig, &rig.s, leased.grants[i].lease, 0), 0);
    rig_check(&rig);
    rig_close(&rig);
}

START_TEST(leases_keep_no_larger_size)
{
    leases_keep_no_other_size(MIB, first_of_slab_stays, 2 * MIB);
}
END_TEST

START_TEST(leases_keep_no_smaller_size)
{
    leases_keep_no_other_size(MIB, first_of_slab_stays, 64 * KIB);
}
END_TEST

/* Its extents lie across the ends of frames, so what is behind a cut begins within one. */
START_TEST(leases_of_an_odd_size_keep_no_other)
{
    leases_keep_no_other_size(300 * KIB, first_of_slab_stays, 2 * MIB);
}
END_TEST

/* Ten frames in a run may go, and five elsewhere. */
static bool most_stay(uint64_t offset_bytes, uint32_t size_bytes)
{
    uint64_t frame = offset_bytes / size_bytes;

    return (frame < 9 || frame > 18) && frame != 5 && frame != 21 && frame != 25 && frame != 29 && frame != 30;
}

/* All that may go has gone before it is much more than is needed. */
START_TEST(what_is_free_is_cut_out_as_well)
{
    leases_keep_no_other_size(MIB, most_stay, 8 * MIB);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tiering_room");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, what_must_stay_keeps_no_other_slab);
    tcase_add_test(tc, what_must_stay_keeps_no_other_class);
    tcase_add_test(tc, who_is_stuck_is_passed);
    tcase_add_test(tc, a_failed_device_is_not_waited_for);
    tcase_add_test(tc, leases_keep_no_larger_size);
    tcase_add_test(tc, leases_keep_no_smaller_size);
    tcase_add_test(tc, leases_of_an_odd_size_keep_no_other);
    tcase_add_test(tc, what_is_free_is_cut_out_as_well);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
