/* SPDX-License-Identifier: Apache-2.0 */
/* Lists that are served as a whole: all or nothing, and SYNC. */
#include "tests/unit/request_rig.h"

/* --- All or nothing, and SYNC ------------------------------------------------------------------------------------ */

START_TEST(test_all_succeeds)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 3);
    struct spw_cqe cqe;

    put_items(&a, "hwh");
    sqe.flags = SPW_SQE_ALL;
    a.results[0].status = 1;
    submit(&a, &sqe);
    turns(2);
    ck_assert_int_eq(a.results[0].status, 1); /* nothing is told before the end */
    stub_finish(0);
    turns(1);
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, 0);
    ck_assert_uint_eq(cqe.value, 3);
    for (int i = 0; i < 3; i++)
        ck_assert_uint_ne(a.results[i].lease, 0);
}
END_TEST

START_TEST(test_all_fails_at_once)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 4);

    put_items(&a, "hweh"); /* fails in tiering, after two were taken */
    sqe.flags = SPW_SQE_ALL;
    ck_assert_int_eq(status_of(&a, &sqe), -EIO);
    ck_assert_int_eq(stub.leases, 0);
    ck_assert_uint_eq(stub.n_waits, 0);
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(a.results[i].status, i == 2 ? -EIO : -ECANCELED);
        ck_assert_uint_eq(a.results[i].lease, 0);
    }
    put_items(&a, "hhm"); /* fails before anything is taken */
    sqe.n_items = 3;
    ck_assert_int_eq(status_of(&a, &sqe), -ENOENT);
    ck_assert_int_eq(a.results[2].status, -ENOENT);
    ck_assert_int_eq(a.results[0].status, -ECANCELED);
}
END_TEST

START_TEST(test_all_fails_late)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 4);
    struct spw_cqe cqe;

    put_items(&a, "hwww");
    sqe.flags = SPW_SQE_ALL;
    submit(&a, &sqe);
    turns(2);
    stub_finish(0);
    stub_finish(-EBADMSG);
    turns(2);
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, -EBADMSG);
    ck_assert_int_eq(a.results[2].status, -EBADMSG);
    ck_assert_int_eq(a.results[1].status, -ECANCELED);
    ck_assert_int_eq(stub.leases, 0);
    ck_assert_uint_eq(stub.n_waits, 0);
}
END_TEST

START_TEST(test_all_waits_for_lease_bytes)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 2);
    struct spw_cqe cqe;

    put_items(&a, "hh");
    sqe.flags = SPW_SQE_ALL;
    stub.full = true;
    ck_assert_int_eq(status_of(&a, &sqe), -ENOSPC); /* timeout 0 */
    sqe.timeout_ms = 50;
    submit(&a, &sqe);
    turns(3);
    ck_assert(!consume(&a, &cqe));
    ck_assert_int_eq(stub.leases, 0);
    stub.full = false;
    turns(1);
    ck_assert(!consume(&a, &cqe)); /* nothing tells it yet, */
    now_ns += 10 * MS;
    turns(1); /* so it looks again by itself */
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, 0);
    stub.full = true;
    submit(&a, &sqe);
    turns(2);
    now_ns += 50 * MS;
    turns(2);
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, -ETIMEDOUT);
    ck_assert_int_eq(a.results[1].status, -ECANCELED);
    stub.small = true; /* it would wait in vain */
    ck_assert_int_eq(status_of(&a, &sqe), -ENOSPC);
}
END_TEST

START_TEST(test_all_too_many)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 33);

    for (uint8_t i = 0; i < 33; i++)
        a.items[i] = item_of('h', i);
    sqe.flags = SPW_SQE_ALL;
    struct spw_cqe cqe = call(&a, &sqe);

    ck_assert_int_eq(cqe.status, -E2BIG);
    ck_assert_uint_eq(cqe.detail, SPW_LIMIT_PIECES);
    ck_assert_int_eq(stub.leases, 0);
}
END_TEST

/* Each wait that a session takes leaves one less to take and one more that it has: for a whole list all of them count. */
START_TEST(test_all_beside_others_that_wait)
{
    struct client b;
    struct spw_cqe cqe;

    client_free(&a);
    requests_free(rq);
    engine_new(64, 16);
    client_new(&a, 7, 100);
    client_new(&b, 8, 100);
    struct spw_sqe waits = sqe_of(&b, SPW_OP_ACQUIRE, 6), all = sqe_of(&a, SPW_OP_ACQUIRE, 8);

    put_items(&b, "wwwwww");
    submit(&b, &waits);
    turns(2);
    ck_assert_uint_eq(stub.n_waits, 6);
    put_items(&a, "hwhwhwhw");
    all.flags = SPW_SQE_ALL;
    submit(&a, &all);
    turns(2);
    ck_assert_uint_eq(stub.n_waits, 6); /* parked */
    for (int i = 0; i < 6; i++)
        stub_finish(0);
    turns(2);
    now_ns += 20000000;
    turns(2);
    ck_assert(consume(&b, &cqe));
    ck_assert_uint_eq(stub.n_waits, 4);
    for (int i = 0; i < 4; i++)
        stub_finish(0);
    turns(2);
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, 0);
    client_free(&b);
}
END_TEST

START_TEST(test_sync)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_SYNC, 2);
    struct spw_cqe cqe;

    put_items(&a, "hm");
    ck_assert_int_eq(status_of(&a, &sqe), -ENOENT);
    ck_assert_uint_eq(stub.syncs, 0);
    put_items(&a, "hh");
    submit(&a, &sqe);
    turns(2);
    ck_assert_uint_eq(stub.sync_adds, 2);
    ck_assert(!consume(&a, &cqe));
    stub.sync->done(stub.sync, 0);
    turns(1);
    ck_assert(consume(&a, &cqe));
    ck_assert_uint_eq(cqe.value, 2);
    ck_assert_int_eq(a.results[1].status, 0);

    /* More pieces than the engine's SYNCs may name: the limit has a name. */
    put_items(&a, "hf");
    submit(&a, &sqe);
    turns(2);
    stub.sync->done(stub.sync, 0);
    turns(1);
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, -EAGAIN);
    ck_assert_uint_eq(cqe.detail, SPW_LIMIT_PIECES);
    ck_assert_int_eq(a.results[0].status, -EAGAIN);
    stub.sync_adds = 2;

    /* The whole space; the client's patience ends first, then its session, then the sync. */
    sqe.n_items = 0;
    sqe.timeout_ms = 10;
    submit(&a, &sqe);
    turns(2);
    ck_assert_uint_eq(stub.sync_adds, 1000);
    now_ns += 10 * MS;
    turns(1);
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, -ETIMEDOUT);
    struct tiering_sync *first = stub.sync;

    submit(&a, &sqe);
    turns(2);
    client_free(&a);
    ck_assert(!requests_is_idle(rq));
    first->done(first, 0);
    stub.sync->done(stub.sync, -EIO);
    turns(1);
    ck_assert(requests_is_idle(rq));
    client_new(&a, 9, 100);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("request_all");
    TCase *tc = tcase_create("all");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_all_succeeds);
    tcase_add_test(tc, test_all_fails_at_once);
    tcase_add_test(tc, test_all_fails_late);
    tcase_add_test(tc, test_all_waits_for_lease_bytes);
    tcase_add_test(tc, test_all_too_many);
    tcase_add_test(tc, test_all_beside_others_that_wait);
    tcase_add_test(tc, test_sync);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
