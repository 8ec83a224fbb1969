/* SPDX-License-Identifier: Apache-2.0 */
/* The chain policy's ghosts, against plain lists. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "include/base/limits.h"
#include "tiering/chain_ghost.h"

static uint64_t hash_of(uint64_t i)
{
    uint64_t x = (i + 1) * UINT64_C(0x9e3779b97f4a7c15);

    return (x ^ x >> 32) * UINT64_C(0xbf58476d1ce4e5b9);
}

static void push(struct chain_ghosts *g, uint64_t i)
{
    uint32_t *s = chain_ghosts_push(g, hash_of(i));

    ck_assert_ptr_nonnull(s);
    s[0] = (uint32_t)i;
    s[1] = 1;
}

START_TEST(one_bucket_forgets_in_order)
{
    struct chain_ghosts g;

    ck_assert_int_eq(chain_ghosts_init(&g, CHAIN_GHOST_WAYS, CHAIN_GHOST_WAYS), 0);
    for (uint64_t i = 0; i < CHAIN_GHOST_WAYS; i++)
        push(&g, i);
    chain_ghosts_renew(&g, hash_of(0), chain_ghosts_find(&g, hash_of(0)));
    push(&g, 100);
    ck_assert_ptr_null(chain_ghosts_find(&g, hash_of(1)));
    ck_assert_uint_eq(chain_ghosts_find(&g, hash_of(0))[0], 0);
    chain_ghosts_drop(&g, hash_of(2), chain_ghosts_find(&g, hash_of(2)));
    push(&g, 101);
    ck_assert_ptr_nonnull(chain_ghosts_find(&g, hash_of(3)));
    push(&g, 102);
    ck_assert_ptr_null(chain_ghosts_find(&g, hash_of(3)));
    ck_assert_uint_eq(g.n, CHAIN_GHOST_WAYS);
    ck_assert(chain_ghosts_check(&g));
    chain_ghosts_deinit(&g);
}
END_TEST

START_TEST(it_grows_and_shrinks_without_losing_what_fits)
{
    struct chain_ghosts g;
    uint32_t n = 300;

    ck_assert_int_eq(chain_ghosts_init(&g, 200 * CHAIN_GHOST_WAYS, 16 * CHAIN_GHOST_WAYS), 0);
    for (uint64_t i = 0; i < n; i++)
        push(&g, i);
    for (uint32_t limit = 17; limit < 250; limit += 3) {
        chain_ghosts_limit(&g, limit * CHAIN_GHOST_WAYS);
        ck_assert_uint_eq(g.n_buckets, MIN(limit, 200U));
        ck_assert(chain_ghosts_check(&g));
    }
    ck_assert_uint_eq(g.n, n);
    for (uint64_t i = 0; i < n; i++)
        ck_assert_uint_eq(chain_ghosts_find(&g, hash_of(i))[0], i);
    for (uint32_t limit = 200; limit > 0; limit--) {
        chain_ghosts_limit(&g, limit * CHAIN_GHOST_WAYS);
        ck_assert(chain_ghosts_check(&g));
    }
    ck_assert_uint_eq(g.n_buckets, 1);
    ck_assert_uint_eq(g.n, CHAIN_GHOST_WAYS);
    chain_ghosts_deinit(&g);
}
END_TEST

START_TEST(without_room_nothing_is_remembered)
{
    struct chain_ghosts g;

    ck_assert_int_eq(chain_ghosts_init(&g, CHAIN_GHOST_WAYS - 1, 1), 0);
    ck_assert_ptr_null(chain_ghosts_push(&g, 1));
    ck_assert_ptr_null(chain_ghosts_find(&g, 1));
    chain_ghosts_limit(&g, 1000);
    ck_assert_ptr_null(chain_ghosts_push(&g, 1));
    chain_ghosts_deinit(&g);
    ck_assert_int_eq(chain_ghosts_init(&g, GHOSTS_MAX + 1, 1), -EINVAL);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("chain_ghost");
    TCase *tc = tcase_create("ghosts");

    tcase_add_test(tc, one_bucket_forgets_in_order);
    tcase_add_test(tc, it_grows_and_shrinks_without_losing_what_fits);
    tcase_add_test(tc, without_room_nothing_is_remembered);
    suite_add_tcase(s, tc);

    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
