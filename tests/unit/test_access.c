/* SPDX-License-Identifier: Apache-2.0 */
/* Who may open which pool, and who may administrate. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/access.h"

static gid_t groups[] = {500, 600};

static struct access peer(uid_t uid, gid_t gid)
{
    return (struct access){.uid = uid, .gid = gid, .groups = groups, .n_groups = 2};
}

static int may(const struct access *who, const struct config_pool *pool)
{
    const char *why = NULL;
    int r = access_pool(who, pool, &why);

    ck_assert(r == 0 || why);
    return r;
}

START_TEST(test_users_and_groups)
{
    struct config_pool pool = {.users = {.n = 2, .ids = {1000, 1001}}, .groups = {.n = 1, .ids = {600}}};
    struct access who = peer(1001, 1001);

    ck_assert_int_eq(may(&who, &pool), 0);
    who = peer(7, 7); /* by a supplementary group */
    ck_assert_int_eq(may(&who, &pool), 0);
    who.n_groups = 1;
    ck_assert_int_eq(may(&who, &pool), -EACCES);
    who.gid = 600;
    ck_assert_int_eq(may(&who, &pool), 0);
    who = peer(600, 7); /* a uid is no gid */
    who.n_groups = 0;
    ck_assert_int_eq(may(&who, &pool), -EACCES);
}
END_TEST

START_TEST(test_overflow_ids_match_nothing)
{
    struct config_pool pool = {.users = {.any = true}, .groups = {.any = true}};
    struct access who = peer(ACCESS_OVERFLOW_ID, 7);

    ck_assert_int_eq(may(&who, &pool), -EACCES);
    who = peer(8, 8);
    ck_assert_int_eq(may(&who, &pool), 0);
    struct config_pool by_group = {.groups = {.n = 1, .ids = {ACCESS_OVERFLOW_ID}}};

    who = peer(8, ACCESS_OVERFLOW_ID);
    ck_assert_int_eq(may(&who, &by_group), -EACCES);
    who = peer(ACCESS_OVERFLOW_ID, 0);
    ck_assert(!access_admin(&who, ACCESS_OVERFLOW_ID, 0, true));
}
END_TEST

/* Root can write into what it may read. */
START_TEST(test_root_and_shared_pools)
{
    struct config_pool pool = {.users = {.any = true}};
    struct access who = peer(0, 0);

    ck_assert_int_eq(may(&who, &pool), -EACCES);
    pool.is_trusted = true;
    pool.users = (struct config_ids){.n = 1, .ids = {0}};
    ck_assert_int_eq(may(&who, &pool), 0);
    pool.users.ids[0] = 1000; /* another's */
    ck_assert_int_eq(may(&who, &pool), -EACCES);
}
END_TEST

START_TEST(test_admin)
{
    struct access who = peer(1000, 1000);

    ck_assert(!access_admin(&who, 77, 0, false));
    ck_assert(access_admin(&who, 1000, 0, false));
    ck_assert(access_admin(&who, 77, 600, true));
    ck_assert(!access_admin(&who, 77, 700, true));
    who.uid = 0;
    ck_assert(access_admin(&who, 77, 0, false));
}
END_TEST

START_TEST(test_read_from_a_socket)
{
    struct access who;
    int pair[2], pidfd = -1;

    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
    ck_assert_int_eq(access_read(pair[0], &who), 0);
    ck_assert_uint_eq(who.uid, getuid());
    ck_assert_int_eq(who.pid, getpid());
    ck_assert_int_eq(access_pidfd(pair[0], &who, &pidfd), 0);
    ck_assert_int_ge(pidfd, 0);
    close(pidfd);
    close(pair[0]);
    close(pair[1]);
    access_deinit(&who);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("access");
    TCase *tc = tcase_create("all");

    tcase_add_test(tc, test_users_and_groups);
    tcase_add_test(tc, test_overflow_ids_match_nothing);
    tcase_add_test(tc, test_root_and_shared_pools);
    tcase_add_test(tc, test_admin);
    tcase_add_test(tc, test_read_from_a_socket);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
