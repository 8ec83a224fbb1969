/* SPDX-License-Identifier: Apache-2.0 */
/* The request path and clients without manners: indices, reserved bits, bounds, and memory that changes under it. */
#include <pthread.h>

#include "tests/unit/request_rig.h"

/* --- No manners -------------------------------------------------------------------------------------------------- */

START_TEST(test_tail_too_far)
{
    store_release(&a.shared->client.sq_tail, UINT32_C(1) << 31);
    turns(1);
    ck_assert_ptr_eq(broken_peer, &a.peer);
    turns(3);
    ck_assert_uint_eq(a.shared->daemon.sq_head, 0);
}
END_TEST

START_TEST(test_tail_one_too_far)
{
    store_release(&a.shared->client.sq_tail, ENTRIES + 1);
    turns(1);
    ck_assert_ptr_nonnull(broken_why);
}
END_TEST

START_TEST(test_cq_head_from_nowhere)
{
    struct spw_sqe nop = {.opcode = SPW_OP_NOP};

    for (int i = 0; i < ENTRIES; i++)
        submit(&a, &nop);
    turns(1);
    store_release(&a.shared->client.cq_head, ENTRIES + 1); /* past what was published */
    submit(&a, &nop);
    turns(2);
    ck_assert_ptr_nonnull(broken_why);
}
END_TEST

/* Each reserved bit of an SQE, one by one. */
START_TEST(test_sqe_reserved)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_LOOKUP, 1);

    put_items(&a, "h");
    switch (_i) {
    case 0:
        sqe.reserved0 = 1;
        break;
    case 1:
        sqe.reserved = 1;
        break;
    case 2:
        sqe.reserved = UINT64_C(1) << 63;
        break;
    case 3:
        sqe.flags = 0x20;
        break;
    case 4:
        sqe.opcode = SPW_OPS;
        break;
    case 5:
        sqe.opcode = 255;
        break;
    }
    submit(&a, &sqe);
    turns(2);
    ck_assert_ptr_eq(broken_peer, &a.peer);
    ck_assert_uint_eq(a.shared->daemon.cq_tail, 0);
}
END_TEST

/* An argument that an operation does not have fails that one. */
START_TEST(test_sqe_args)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_LOOKUP, 1);

    put_items(&a, "h");
    sqe.arg[_i] = UINT64_C(1) << 63;
    ck_assert_int_eq(status_of(&a, &sqe), -EINVAL);
    sqe.arg[_i] = 0;
    ck_assert_int_eq(status_of(&a, &sqe), 0);
}
END_TEST

START_TEST(test_item_reserved)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_LOOKUP, 2);

    put_items(&a, "hh");
    switch (_i) {
    case 0:
        a.items[1].flags = 1;
        break;
    case 1:
        a.items[1].reserved0 = 1;
        break;
    case 2:
        a.items[1].reserved1 = 1;
        break;
    case 3:
        sqe = sqe_of(&a, SPW_OP_RELEASE, 1);
        sqe.space = 0;
        a.handles[0] = (struct spw_handle){.lease = 1, .flags = 4};
        break;
    case 4:
        sqe = sqe_of(&a, SPW_OP_COMMIT, 1);
        sqe.space = 0;
        a.handles[0] = (struct spw_handle){.lease = 1, .flags = SPW_RELEASE_DIRTY};
        break;
    case 5:
        sqe = sqe_of(&a, SPW_OP_RELEASE, 1);
        sqe.space = 0;
        a.handles[0] = (struct spw_handle){.lease = 1, .reserved = 1};
        break;
    case 6:
        sqe.opcode = SPW_OP_ACQUIRE;
        sqe.flags = SPW_SQE_ALL;
        a.items[1].flags = 1;
        break;
    }
    submit(&a, &sqe);
    turns(2);
    ck_assert_ptr_eq(broken_peer, &a.peer);
}
END_TEST

START_TEST(test_sqe_mistakes)
{
    static const struct {
        uint32_t items, n_items, results;
        int expected;
    } cases[] = {
        {32, 1, RESULTS, -EINVAL},
        {0, 1, RESULTS + 8, -EINVAL},
        {0, 0, RESULTS, -EINVAL},
        {0, SPW_LIST_MAX + 1, RESULTS, -EINVAL},
        {0, UINT32_MAX, RESULTS, -EINVAL},
        {SCRATCH_BYTES, 1, RESULTS, -ERANGE},
        {UINT32_MAX - 63, 1, RESULTS, -ERANGE},
        {0, 1, SCRATCH_BYTES, -ERANGE},
        {0, 1, UINT32_MAX - 63, -ERANGE},
        {0, SPW_LIST_MAX, RESULTS, -ERANGE},
        {SCRATCH_BYTES - 64, 2, RESULTS, -ERANGE},
        {0, 2, SCRATCH_BYTES - 64, -ERANGE},
    };

    put_items(&a, "hh");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct spw_sqe sqe = sqe_of(&a, SPW_OP_LOOKUP, cases[i].n_items);

        sqe.items = cases[i].items;
        sqe.results = cases[i].results;
        ck_assert_msg(status_of(&a, &sqe) == cases[i].expected, "case %zu", i);
    }
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_LOOKUP, 1);

    sqe.flags = SPW_SQE_WRITE; /* known, but not here */
    ck_assert_int_eq(status_of(&a, &sqe), -EINVAL);
    sqe = sqe_of(&a, SPW_OP_LOOKUP, 1);
    sqe.arg[0] = 1;
    ck_assert_int_eq(status_of(&a, &sqe), -EINVAL);
    sqe = sqe_of(&a, SPW_OP_STAT, 0);
    sqe.results = SCRATCH_BYTES - 64;
    ck_assert_int_eq(status_of(&a, &sqe), -ERANGE);
    sqe = sqe_of(&a, SPW_OP_PIN, 1);
    sqe.arg[0] = UINT64_MAX;
    ck_assert_int_eq(status_of(&a, &sqe), -ERANGE);
    ck_assert_ptr_null(broken_why);
}
END_TEST

static struct spw_cqe plan(uint32_t n_items, uint64_t before, uint64_t all)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_PLAN, n_items);

    sqe.results = 0;
    sqe.arg[0] = before;
    sqe.arg[1] = all;
    return call(&a, &sqe);
}

/* A plan is the whole of it or none. */
START_TEST(test_plan_mistakes)
{
    static const struct {
        uint32_t n_items;
        uint64_t before, all;
        int status;
    } cases[] = {{2, 0, 1, -EINVAL},
                 {2, 1, 2, -EINVAL},
                 {2, UINT64_MAX, 1, -EINVAL},
                 {2, UINT64_MAX, UINT64_MAX, -EINVAL},
                 {2, UINT64_MAX - 2, UINT64_MAX, -ESTALE},
                 {2, 1, UINT64_MAX, -ESTALE},
                 {0, 0, 1, -EINVAL},
                 {0, 1, 1, -EINVAL},
                 {SPW_LIST_MAX + 1, 0, SPW_LIST_MAX + 1, -EINVAL}};
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_PLAN, 2);

    put_items(&a, "hh");
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        ck_assert_int_eq(plan(cases[i].n_items, cases[i].before, cases[i].all).status, cases[i].status);
    sqe.arg[1] = 2;
    ck_assert_int_eq(status_of(&a, &sqe), -EINVAL); /* it has no results */
    sqe.n_items = 0;
    sqe.arg[1] = 0;
    ck_assert_int_eq(status_of(&a, &sqe), -EINVAL);
    sqe.results = 0;
    sqe.arg[2] = 1;
    ck_assert_int_eq(status_of(&a, &sqe), -EINVAL);
    sqe.arg[2] = 0;
    sqe.flags = SPW_SQE_CHAIN;
    ck_assert_int_eq(status_of(&a, &sqe), -EINVAL);

    ck_assert_int_eq(plan(2, 0, 4).status, 0);
    a.items[1].key_len = 0;
    ck_assert_int_eq(plan(2, 2, 4).status, -EINVAL);
    put_items(&a, "hh");
    ck_assert_int_eq(plan(2, 2, 4).status, -ESTALE); /* the first half is forgotten */
    a.items[1].length_bytes = UINT64_MAX;
    ck_assert_int_eq(plan(2, 0, 2).status, -ERANGE);
    a.items[1].length_bytes = 100 * (uint64_t)PIECE_BYTES;
    struct spw_cqe cqe = plan(2, 0, 2);

    ck_assert_int_eq(cqe.status, -E2BIG);
    ck_assert_uint_eq(cqe.detail, SPW_LIMIT_PLAN);
    put_items(&a, "hh");
    stub.plan_status = -ENOSPC;
    cqe = plan(2, 0, 2);
    ck_assert_int_eq(cqe.status, -ENOSPC);
    ck_assert_uint_eq(cqe.detail, SPW_LIMIT_PLANS);
    stub.plan_status = 0;
    ck_assert_uint_eq(stub.n_plans, 0);
    put_items(&a, "hh");
    a.items[1].reserved1 = 1;
    sqe = sqe_of(&a, SPW_OP_PLAN, 2);
    sqe.results = 0;
    sqe.arg[1] = 2;
    submit(&a, &sqe);
    turns(2);
    ck_assert_ptr_eq(broken_peer, &a.peer);
    ck_assert_uint_eq(stub.n_plans, 0);
}
END_TEST

START_TEST(test_space_handles)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_LOOKUP, 1);

    put_items(&a, "h");
    sqe.space = a.space + 1; /* another generation: another session's */
    ck_assert_int_eq(status_of(&a, &sqe), -EBADF);
    sqe.space = a.space ^ (1U << 26); /* another engine's */
    ck_assert_int_eq(status_of(&a, &sqe), -EXDEV);
    sqe.space = a.space + (1U << 16); /* not opened */
    ck_assert_int_eq(status_of(&a, &sqe), -EBADF);
    sqe.space = 0;
    ck_assert_int_eq(status_of(&a, &sqe), -EBADF);
    sqe.space = UINT32_MAX;
    ck_assert_int_eq(status_of(&a, &sqe), -EBADF);
    sqe = (struct spw_sqe){.opcode = SPW_OP_NOP, .space = a.space};
    ck_assert_int_eq(status_of(&a, &sqe), -EINVAL);
}
END_TEST

START_TEST(test_item_mistakes)
{
    struct spw_item item = item_of('h', 0);

    ck_assert_int_eq(acquire_item(&item), 0);
    item.key_len = 0;
    ck_assert_int_eq(acquire_item(&item), -EINVAL);
    item.key_len = 33;
    ck_assert_int_eq(acquire_item(&item), -EINVAL);
    item.key_len = 255;
    ck_assert_int_eq(acquire_item(&item), -EINVAL);
    item.key_len = 2; /* the third byte is not zero */
    ck_assert_int_eq(acquire_item(&item), -EINVAL);
    item = item_of('h', 0);
    item.key[31] = 1;
    ck_assert_int_eq(acquire_item(&item), -EINVAL);
    item.key_len = 32;
    ck_assert_int_eq(acquire_item(&item), 0);
    item.part = 1;
    ck_assert_int_eq(acquire_item(&item), -EINVAL);
    item.n_parts = 2;
    ck_assert_int_eq(acquire_item(&item), 0);
    item.n_parts = PARTS_MAX + 1;
    ck_assert_int_eq(acquire_item(&item), -EINVAL);
    item = item_of('h', 0);
    item.offset_bytes = 1; /* without a length */
    ck_assert_int_eq(acquire_item(&item), -EINVAL);
    item.offset_bytes = UINT64_MAX - 4095;
    item.length_bytes = 8192;
    ck_assert_int_eq(acquire_item(&item), -ERANGE);
    item.offset_bytes = 0;
    item.length_bytes = UINT64_MAX;
    ck_assert_int_eq(acquire_item(&item), -ERANGE);
    ck_assert_ptr_null(broken_why);
}
END_TEST

/* 2^32 + 4096 is not 4096: it takes that many pieces, or is refused as a whole. */
START_TEST(test_length_is_not_narrowed)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 2);

    put_items(&a, "hh");
    a.items[0].length_bytes = UINT64_C(0x100001000); /* 65537 pieces */
    struct spw_cqe cqe = call(&a, &sqe);

    ck_assert_int_eq(cqe.status, -E2BIG);
    ck_assert_uint_eq(cqe.detail, SPW_LIMIT_PIECES);
    ck_assert_int_eq(stub.leases, 0);
}
END_TEST

START_TEST(test_results_do_not_fit)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 2);

    put_items(&a, "hh");
    a.items[1].length_bytes = 60 * PIECE_BYTES;
    sqe.results = SCRATCH_BYTES - 40 * 64; /* 64 results: 1 and 60 fit */
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    a.items[1].length_bytes = 64 * PIECE_BYTES;
    ck_assert_int_eq(status_of(&a, &sqe), -EOVERFLOW);
    sqe.flags = SPW_SQE_ALL;
    ck_assert_int_eq(status_of(&a, &sqe), -EOVERFLOW);
}
END_TEST

/* A refused item takes the results that were promised for it, so those behind it lie where the client looks. */
START_TEST(test_refused_item_keeps_its_results)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 2);

    put_items(&a, "hh");
    a.items[0].length_bytes = 3 * PIECE_BYTES;
    a.items[0].key_len = 0;
    struct spw_cqe cqe = call(&a, &sqe);

    ck_assert_uint_eq(cqe.value, 1);
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(a.results[i].status, -EINVAL);
    ck_assert_int_eq(a.results[3].status, 0);
}
END_TEST

/* --- Racing ------------------------------------------------------------------------------------------------------ */

static uint32_t race_stop;

static void *race_main(void *arg)
{
    struct client *c = arg;
    volatile struct spw_sqe *sqes = (void *)(c->mem + c->geometry.sq_offset);
    volatile struct spw_item *item = (void *)c->scratch;

    for (uint32_t x = 12345; !load_relaxed(&race_stop); x = x * 1664525 + 1013904223) {
        for (int i = 0; i < ENTRIES; i++) {
            sqes[i].n_items = x & 1 ? 1 : x;
            sqes[i].items = x & 2 ? 0 : x & ~63U;
            sqes[i].results = x & 4 ? RESULTS : x & ~63U;
        }
        item->length_bytes = x & 8 ? 4096 : (uint64_t)x << 20;
        item->offset_bytes = x & 16 ? 0 : (uint64_t)x << 33;
        item->key_len = (uint8_t)(x & 32 ? 3 : x >> 8);
    }
    return NULL;
}

/* TSan would be right to complain: races are what this is about. What must hold is that nothing outside is touched. */
START_TEST(test_racing_client)
{
    pthread_t thread;
    struct spw_cqe cqe;
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 1);

    put_items(&a, "hw");
    race_stop = 0;
    ck_assert_int_eq(pthread_create(&thread, NULL, race_main, &a), 0);
    for (uint32_t i = 0; i < 100000; i++) {
        sqe.flags = i & 1 ? SPW_SQE_ALL : 0;
        submit(&a, &sqe);
        turns(2);
        while (stub.n_waits > 0)
            stub_finish(0);
        turns(1);
        while (consume(&a, &cqe))
            ;
    }
    store_relaxed(&race_stop, 1);
    pthread_join(thread, NULL);
    while (stub.n_waits > 0) {
        stub_finish(0);
        turns(2);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("request_hostile");
    TCase *tc = tcase_create("all");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, test_tail_too_far);
    tcase_add_test(tc, test_tail_one_too_far);
    tcase_add_test(tc, test_cq_head_from_nowhere);
    tcase_add_loop_test(tc, test_sqe_reserved, 0, 6);
    tcase_add_loop_test(tc, test_sqe_args, 0, 3);
    tcase_add_loop_test(tc, test_item_reserved, 0, 7);
    tcase_add_test(tc, test_sqe_mistakes);
    tcase_add_test(tc, test_plan_mistakes);
    tcase_add_test(tc, test_space_handles);
    tcase_add_test(tc, test_item_mistakes);
    tcase_add_test(tc, test_length_is_not_narrowed);
    tcase_add_test(tc, test_results_do_not_fit);
    tcase_add_test(tc, test_refused_item_keeps_its_results);
    tcase_add_test(tc, test_racing_client);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
