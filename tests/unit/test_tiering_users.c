/* SPDX-License-Identifier: Apache-2.0 */
/* What the sessions of one user have together: bounded, given back, nobody else's, and known again after a restart. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "tests/unit/support/tiering_rig.h"

#define ALICE 1000
#define BOB 1001
#define OBJECTS 12 /* that fit into a user's half of 80 % of 8 MiB */

static struct rig rig;
static struct tiering_session third;
static uint64_t leases[2 * OBJECTS];

static void begin(void)
{
    rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 8 * MIB}, 0);
    rig.pools[0].user_leases_percent = rig.pools[1].user_leases_percent = 50;
    rig_start(&rig);
    tiering_session_user(rig.t, &rig.s, ALICE);
    tiering_session_user(rig.t, &rig.other, ALICE);
    tiering_session_init(rig.t, &third, 77, 3, 100);
    tiering_session_user(rig.t, &third, BOB);
}

static int reserve(enum rig_space space, struct tiering_session *s, uint32_t key, uint32_t *ret_limit)
{
    struct tiering_id id = rig_id(&rig, space, key);
    struct tiering_grant g = {0};
    int r = rig_reserve(&rig, s, &id, RIG_PIECE, RIG_PIECE, &g);

    leases[key] = g.lease;
    *ret_limit = g.limit;
    return r;
}

static void end_third(void)
{
    tiering_session_end(rig.t, &third);
    rig_settle(&rig);
    rig_check(&rig);
}

static uint64_t leased(const struct tiering_session *s)
{
    struct tiering_user_stat stat;

    tiering_user_stat(rig.t, s, &stat);
    return stat.leased;
}

/* Two of one user reach the limit together, in a pool of each kind; it is named. Another user has as much again. */
START_TEST(test_two_sessions_share)
{
    enum rig_space space = _i == 0 ? RIG_CACHE : RIG_SHARED;
    uint32_t limit;

    begin();
    for (uint32_t i = 0; i < OBJECTS; i++)
        ck_assert_int_eq(reserve(space, i % 2 ? &rig.s : &rig.other, i, &limit), 0);
    ck_assert_int_eq(reserve(space, &rig.s, OBJECTS, &limit), -ENOSPC);
    ck_assert_uint_eq(limit, TIERING_LIMIT_UID_LEASES);
    ck_assert_int_eq(reserve(space, &rig.other, OBJECTS, &limit), -ENOSPC);
    ck_assert_uint_eq(limit, TIERING_LIMIT_UID_LEASES);
    ck_assert_uint_eq(leased(&rig.s), (uint64_t)OBJECTS * RIG_PIECE);
    for (uint32_t i = OBJECTS; i < OBJECTS + 8; i++)
        ck_assert_int_eq(reserve(space, &third, i, &limit), 0);
    ck_assert_uint_eq(leased(&third), UINT64_C(8) * RIG_PIECE);
    rig_check(&rig);

    /* It would be so much with nothing leased, too, or not: for a user, and for the pool. */
    ck_assert(tiering_may_admit(rig.t, &rig.s, 0, (uint64_t)OBJECTS * RIG_PIECE));
    ck_assert(!tiering_may_admit(rig.t, &rig.s, 0, (uint64_t)(OBJECTS + 1) * RIG_PIECE));

    /* One given back is one to be had, by either. */
    ck_assert_int_eq(tiering_abort(rig.t, &rig.other, leases[0]), 0);
    ck_assert_int_eq(reserve(space, &rig.s, 0, &limit), 0);
    end_third();
    rig_close(&rig);
}
END_TEST

/* A session that ends gives back what it had, waits that were not granted included. */
START_TEST(test_end_gives_back)
{
    uint32_t limit;
    struct tiering_user_stat stat;

    begin();
    for (uint32_t i = 0; i < OBJECTS; i++)
        ck_assert_int_eq(reserve(RIG_SHARED, i < 5 ? &rig.s : i < 10 ? &rig.other : &third, i, &limit), 0);
    tiering_session_end(rig.t, &rig.other);
    rig_settle(&rig);
    ck_assert_uint_eq(leased(&rig.s), UINT64_C(5) * RIG_PIECE);
    tiering_user_stat(rig.t, &rig.s, &stat);
    ck_assert_uint_eq(stat.private, 2 * MIB);
    ck_assert_uint_gt(stat.percent, 0);
    tiering_session_init(rig.t, &rig.other, 78, 2, 100);
    tiering_session_user(rig.t, &rig.other, ALICE);
    ck_assert_uint_eq(leased(&rig.other), UINT64_C(5) * RIG_PIECE);
    rig_check(&rig);
    end_third();
    ck_assert_uint_eq(leased(&rig.s), UINT64_C(5) * RIG_PIECE);
    rig_close(&rig);
}
END_TEST

/* Nothing of a user without sessions stays: the same row serves the next one. */
START_TEST(test_rows_are_used_again)
{
    uint32_t limit;

    begin();
    for (uint32_t i = 0; i < 3 * USERS_MAX; i++) {
        tiering_session_end(rig.t, &third);
        tiering_session_init(rig.t, &third, 100 + i, 3, 100);
        tiering_session_user(rig.t, &third, 5000 + i);
        ck_assert_uint_eq(third.user, 2);
    }
    ck_assert_int_eq(reserve(RIG_CACHE, &third, 1, &limit), 0);
    end_third();
    rig_close(&rig);
}
END_TEST

/* What the sessions of the last process had counts again when they are back, and only then. */
START_TEST(test_restart)
{
    uint32_t limit;
    struct tiering_user_stat stat;

    begin();
    for (uint32_t i = 0; i < 6; i++)
        ck_assert_int_eq(reserve(RIG_SHARED, i < 4 ? &rig.s : &rig.other, i, &limit), 0);
    end_third();
    rig_hot_end(&rig);
    rig_hot_start(&rig, true, true);
    tiering_session_user(rig.t, &rig.s, ALICE);
    ck_assert_uint_eq(leased(&rig.s), UINT64_C(4) * RIG_PIECE);
    tiering_session_user(rig.t, &rig.other, ALICE);
    tiering_user_stat(rig.t, &rig.other, &stat);
    ck_assert_uint_eq(stat.leased, UINT64_C(6) * RIG_PIECE);
    ck_assert_uint_eq(stat.private, 4 * MIB);
    for (uint32_t i = 6; i < OBJECTS; i++)
        ck_assert_int_eq(reserve(RIG_SHARED, i < 8 ? &rig.s : &rig.other, i, &limit), 0);
    ck_assert_int_eq(reserve(RIG_SHARED, &rig.other, OBJECTS, &limit), -ENOSPC);
    ck_assert_uint_eq(limit, TIERING_LIMIT_UID_LEASES);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* Many sessions that each had much of private memory at one time do not keep it all. */
START_TEST(test_private_memory)
{
    static struct tiering_session many[8];
    struct tiering_user_stat stat;
    uint32_t limit;

    rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 256 * MIB}, 0);
    rig.pools[1].user_leases_percent = 50; /* 102 MiB */
    rig.pools[1].session_bytes = UINT64_MAX;
    rig_start(&rig);
    for (uint32_t i = 0; i < ARRAY_LEN(many); i++) {
        tiering_session_init(rig.t, &many[i], 100 + i, 3, 1000);
        tiering_session_user(rig.t, &many[i], ALICE);
        ck_assert_int_eq(reserve(RIG_SHARED, &many[i], 0, &limit), 0);
        ck_assert_int_eq(tiering_abort(rig.t, &many[i], leases[0]), 0);
    }
    tiering_user_stat(rig.t, &many[0], &stat);
    ck_assert_uint_eq(stat.private, ARRAY_LEN(many) * 64 * MIB); /* the first chunk of each */
    struct tiering_id id;
    struct tiering_grant g;
    uint32_t n = 0;
    int r = 0;

    for (; r == 0 && n < 400; n++) {
        id = rig_id(&rig, RIG_SHARED, 1000 + n);
        r = tiering_reserve(rig.t, &many[0], &id, RIG_PIECE, RIG_PIECE, NULL, &g);
    }
    ck_assert_uint_eq(n, 64 * 4 + 1);
    ck_assert_uint_eq(g.limit, TIERING_LIMIT_UID_LEASES);
    for (uint32_t i = 0; i < ARRAY_LEN(many); i++)
        tiering_session_end(rig.t, &many[i]);
    rig_settle(&rig);
    tiering_session_user(rig.t, &rig.s, ALICE);
    tiering_user_stat(rig.t, &rig.s, &stat);
    ck_assert_uint_eq(stat.private, 0);
    rig_close(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tiering_users");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, test_two_sessions_share, 0, 2);
    tcase_add_test(tc, test_end_gives_back);
    tcase_add_test(tc, test_rows_are_used_again);
    tcase_add_test(tc, test_restart);
    tcase_add_test(tc, test_private_memory);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
