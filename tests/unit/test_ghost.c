/* SPDX-License-Identifier: Apache-2.0 */
/* The table of ghosts, against a plain array. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "include/base/limits.h"
#include "tiering/ghost.h"

START_TEST(forgets_the_oldest_first)
{
    struct ghost g;

    ck_assert_int_eq(ghost_init(&g, 3), 0);
    for (uint64_t h = 0; h < 5; h++)
        ghost_push(&g, 0, h, 10);
    ck_assert(ghost_check(&g));
    ck_assert_uint_eq(ghost_len(&g), 3);
    ck_assert_ptr_null(ghost_find(&g, 0));
    ck_assert_ptr_null(ghost_find(&g, 1));
    ck_assert_ptr_nonnull(ghost_find(&g, 2));

    ghost_push(&g, 0, 2, 20); /* the newest again */
    ck_assert_uint_eq(g.queues[0].sectors, 40);
    ck_assert(ghost_pop(&g, 0));
    ck_assert_ptr_null(ghost_find(&g, 3));
    ck_assert(!ghost_pop(&g, 1));
    ck_assert(!ghost_remove(&g, 77));
    ck_assert(ghost_remove(&g, 2));
    ck_assert_uint_eq(ghost_len(&g), 1);
    ck_assert(ghost_check(&g));
    ghost_deinit(&g);
}
END_TEST

START_TEST(makes_room_from_the_longer_queue)
{
    struct ghost g;

    ck_assert_int_eq(ghost_init(&g, 4), 0);
    ghost_push(&g, 0, 1, 1);
    for (uint64_t h = 2; h < 5; h++)
        ghost_push(&g, 1, h, 1);
    ghost_push(&g, 0, 5, 1);
    ck_assert_ptr_nonnull(ghost_find(&g, 1));
    ck_assert_ptr_null(ghost_find(&g, 2));
    ghost_push(&g, 0, 3, 1); /* from one queue to the other */
    ck_assert_uint_eq(g.queues[0].len, 3);
    ck_assert_uint_eq(g.queues[1].len, 1);
    ck_assert(ghost_check(&g));
    ghost_deinit(&g);
}
END_TEST

START_TEST(sizes_have_bounds)
{
    struct ghost g;

    ck_assert_int_eq(ghost_init(&g, GHOSTS_MAX + 1), -EINVAL);
    ck_assert_int_eq(ghost_init(&g, 0), 0);
    ghost_push(&g, 0, 1, 1);
    ck_assert_uint_eq(ghost_len(&g), 0);
    ck_assert(ghost_check(&g));
    ghost_deinit(&g);
    for (uint32_t n = 1; n < 40; n++) {
        ck_assert_int_eq(ghost_init(&g, n), 0);
        for (uint64_t h = 0; h < 100; h++)
            ghost_push(&g, h % 2, h << 40, 1);
        ck_assert_uint_eq(ghost_len(&g), n);
        ck_assert(ghost_check(&g));
        ghost_deinit(&g);
    }
}
END_TEST

/* Few hashes in a small table: long probes, and removals in the midst of them. */
START_TEST(agrees_with_an_array)
{
    struct ghost g;
    int queue_of[64];
    uint64_t x = 1;

    for (size_t i = 0; i < ARRAY_LEN(queue_of); i++)
        queue_of[i] = -1;
    ck_assert_int_eq(ghost_init(&g, ARRAY_LEN(queue_of)), 0);
    for (int step = 0; step < 100000; step++) {
        x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        uint64_t hash = (x >> 40) % ARRAY_LEN(queue_of);

        if (x >> 63) {
            ck_assert_int_eq(ghost_remove(&g, hash), queue_of[hash] >= 0);
            queue_of[hash] = -1;
        } else {
            queue_of[hash] = (int)(x >> 62) % GHOST_QUEUES;
            ghost_push(&g, (uint32_t)queue_of[hash], hash, 1);
        }
        for (uint64_t h = 0; h < ARRAY_LEN(queue_of); h++) {
            const struct ghost_entry *e = ghost_find(&g, h);

            ck_assert_int_eq(e ? e->queue : -1, queue_of[h]);
        }
        if (step % 100 == 0)
            ck_assert(ghost_check(&g));
    }
    ghost_deinit(&g);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("ghost");
    TCase *tc = tcase_create("ghost");

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, forgets_the_oldest_first);
    tcase_add_test(tc, makes_room_from_the_longer_queue);
    tcase_add_test(tc, sizes_have_bounds);
    tcase_add_test(tc, agrees_with_an_array);
    suite_add_tcase(s, tc);

    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
