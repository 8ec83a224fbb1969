/* SPDX-License-Identifier: Apache-2.0 */
/* The request path and clients with manners: each operation, waiting, running out, taking turns. */
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/request_core.h"
#include "include/base/ring.h"
#include "tests/unit/request_rig.h"

static struct client b; /* somebody else */

/* --- Manners ----------------------------------------------------------------------------------------------------- */

START_TEST(test_nop)
{
    struct spw_sqe sqe = {.opcode = SPW_OP_NOP, .user_data = 99};

    ck_assert_int_eq(status_of(&a, &sqe), 0);
}
END_TEST

START_TEST(test_lookup_counts_prefix)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_LOOKUP, 5);

    put_items(&a, "hhmhh");
    struct spw_cqe cqe = call(&a, &sqe);

    ck_assert_int_eq(cqe.status, 0);
    ck_assert_uint_eq(cqe.value, 2);
    ck_assert_int_eq(a.results[2].status, -ENOENT);
    ck_assert_int_eq(a.results[4].status, 0);
    ck_assert_uint_eq(a.results[4].length_bytes, 4096);
}
END_TEST

/* A list that says CHAIN is named as a whole before it is served, once; others are not. */
START_TEST(test_chains_are_named)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_LOOKUP, 5);

    put_items(&a, "hhmhm");
    (void)call(&a, &sqe);
    ck_assert_uint_eq(stub.n_chains, 0);
    sqe.flags = SPW_SQE_CHAIN;
    (void)call(&a, &sqe);
    ck_assert_uint_eq(stub.n_chains, 1);
    ck_assert_int_eq(stub.chain_use, POLICY_NAMED);
    ck_assert_uint_eq(stub.n_chain, 5);
    ck_assert_mem_eq(stub.chain, "hhmhm", 5);

    sqe = sqe_of(&a, SPW_OP_ACQUIRE, 3);
    sqe.flags = SPW_SQE_CHAIN;
    put_items(&a, "hwh");
    struct spw_cqe cqe;
    submit(&a, &sqe);
    turns(3);
    stub_finish(0);
    turns(2);
    ck_assert(consume(&a, &cqe));
    ck_assert_uint_eq(stub.n_chains, 2);
    ck_assert_int_eq(stub.chain_use, POLICY_USED);

    /* More than are warmed at a time, in their order. */
    static const char many[] = "hmhhmmhhhmmmhhhhmhmhmhmhhhhmmmhhmmh";
    static_assert(sizeof(many) > 2 * LIST_WARM_ITEMS && sizeof(many) % LIST_WARM_ITEMS != 1, "and a rest");
    sqe = sqe_of(&a, SPW_OP_LOOKUP, sizeof(many) - 1);
    sqe.flags = SPW_SQE_CHAIN;
    put_items(&a, many);
    (void)call(&a, &sqe);
    ck_assert_uint_eq(stub.n_chains, 3);
    ck_assert_uint_eq(stub.n_chain, sizeof(many) - 1);
    ck_assert_mem_eq(stub.chain, many, sizeof(many) - 1);

    stub.chain_unwanted = true; /* this policy does not care */
    sqe = sqe_of(&a, SPW_OP_LOOKUP, 1);
    sqe.flags = SPW_SQE_CHAIN;
    (void)call(&a, &sqe);
    ck_assert_uint_eq(stub.n_chains, 3);
}
END_TEST

START_TEST(test_a_plan_in_lists)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_PLAN, 3);

    sqe.results = 0;
    sqe.arg[1] = 5;
    put_items(&a, "hmw"); /* whether they are there or not */
    struct spw_cqe cqe = call(&a, &sqe);

    ck_assert_int_eq(cqe.status, 0);
    ck_assert_uint_eq(cqe.value, 0);
    ck_assert_uint_eq(stub.n_plans, 0);
    sqe.n_items = 2;
    sqe.arg[0] = 3;
    put_items(&a, "eh");
    a.items[1].offset_bytes = 100; /* two pieces */
    a.items[1].length_bytes = 2 * PIECE_BYTES - 100;
    cqe = call(&a, &sqe);
    ck_assert_int_eq(cqe.status, 0);
    ck_assert_uint_eq(cqe.value, 6);
    ck_assert_uint_eq(stub.n_plans, 1);
    ck_assert_mem_eq(stub.plan, "hmwehh", 6);
    ck_assert_uint_eq(stub.last_piece, 1);
    sqe = (struct spw_sqe){.opcode = SPW_OP_PLAN, .space = a.space}; /* taken back */
    cqe = call(&a, &sqe);
    ck_assert_int_eq(cqe.status, 0);
    ck_assert_uint_eq(cqe.value, 0);
    ck_assert_uint_eq(stub.n_plans, 2);
    ck_assert_uint_eq(stub.n_plan, 0);
    ck_assert_uint_eq(stub.n_waits, 0);
}
END_TEST

START_TEST(test_acquire_partial)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 6);
    struct spw_cqe cqe;

    put_items(&a, "hmwewh");
    submit(&a, &sqe);
    turns(2);
    ck_assert(!consume(&a, &cqe));
    ck_assert_uint_eq(stub.n_waits, 2);
    stub_finish(0);
    turns(1);
    ck_assert(!consume(&a, &cqe));
    stub_finish(-EBADMSG);
    turns(1);
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, 0);
    ck_assert_uint_eq(cqe.value, 3);
    const int expected[] = {0, -ENOENT, 0, -EIO, -EBADMSG, 0};

    for (int i = 0; i < 6; i++) {
        ck_assert_int_eq(a.results[i].status, expected[i]);
        ck_assert_int_eq(a.results[i].lease != 0, expected[i] == 0);
    }
    ck_assert_int_eq(stub.leases, 3);
}
END_TEST

START_TEST(test_handles)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_RELEASE, 3);

    put_items(&a, "hh");
    struct spw_sqe acquire = sqe_of(&a, SPW_OP_ACQUIRE, 2);

    ck_assert_int_eq(status_of(&a, &acquire), 0);
    sqe.space = 0;
    a.handles[0] = (struct spw_handle){.lease = 1};
    a.handles[1] = (struct spw_handle){.lease = 999};
    a.handles[2] = (struct spw_handle){.lease = 2, .flags = SPW_RELEASE_DIRTY | SPW_RELEASE_DISCARD};
    struct spw_cqe cqe = call(&a, &sqe);

    ck_assert_uint_eq(cqe.value, 1);
    ck_assert_int_eq(a.results[1].status, -EBADF);
    ck_assert_int_eq(a.results[2].status, -EINVAL);
    ck_assert_int_eq(stub.leases, 1);
}
END_TEST

/* What a session that goes on after a restart submits again was perhaps done: then that is no error. */
START_TEST(test_retries)
{
    static const uint8_t ops[] = {SPW_OP_COMMIT, SPW_OP_ABORT, SPW_OP_RELEASE};
    struct spw_sqe sqe;

    for (unsigned i = 0; i < ARRAY_LEN(ops); i++) {
        sqe = sqe_of(&a, ops[i], 1);
        sqe.space = 0;
        a.handles[0] = (struct spw_handle){.lease = 4711};
        ck_assert_int_eq(call(&a, &sqe).status, 0);
        ck_assert_int_eq(a.results[0].status, -EBADF);
        sqe.flags = SPW_SQE_RETRY;
        ck_assert_int_eq(call(&a, &sqe).status, -EINVAL); /* a session that was never elsewhere */
        a.peer.may_retry = true;
        ck_assert_int_eq(call(&a, &sqe).status, 0);
        ck_assert_int_eq(a.results[0].status, 0);
        a.peer.may_retry = false;
    }
    a.peer.may_retry = true;
    sqe = sqe_of(&a, SPW_OP_DELETE, 2);
    sqe.flags = SPW_SQE_RETRY;
    put_items(&a, "mh");
    ck_assert_int_eq(call(&a, &sqe).status, 0);
    ck_assert_int_eq(a.results[0].status, 0);
    sqe = sqe_of(&a, SPW_OP_ACQUIRE, 2);
    sqe.flags = SPW_SQE_RETRY;
    put_items(&a, "mh");
    ck_assert_int_eq(call(&a, &sqe).status, 0);
    ck_assert_int_eq(a.results[0].status, -ENOENT); /* that one is as before */
    ck_assert_int_eq(a.results[1].status, 0);
}
END_TEST

/* Whose answer a lease is, at once, after a wait, and of a list that is all or nothing. */
START_TEST(test_leases_are_named)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 2);
    struct spw_cqe cqe;

    sqe.user_data = 77;
    put_items(&a, "hw");
    submit(&a, &sqe);
    turns(2);
    stub_finish(0);
    turns(1);
    ck_assert(consume(&a, &cqe));
    ck_assert_uint_eq(stub.lease_requests[a.results[0].lease], 77);
    ck_assert_uint_eq(stub.lease_requests[a.results[1].lease], 77);
    sqe.user_data = 78;
    sqe.flags = SPW_SQE_ALL;
    put_items(&a, "hh");
    ck_assert_int_eq(call(&a, &sqe).status, 0);
    ck_assert_uint_eq(stub.lease_requests[a.results[1].lease], 78);

    static const uint64_t lost[] = {5, 78};
    requests_unanswered(rq, &a.peer, lost, 2);
    ck_assert_uint_eq(stub.n_lost, 2);
    ck_assert_uint_eq(stub.lost[1], 78);
}
END_TEST

START_TEST(test_pieces)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 2);
    struct spw_cqe cqe;

    /* From the last byte of piece 0 to the first of piece 2; and one that waits, whose second piece fails. */
    put_items(&a, "hw");
    a.items[0].offset_bytes = PIECE_BYTES - 1;
    a.items[0].length_bytes = PIECE_BYTES + 2;
    a.items[1].length_bytes = PIECE_BYTES + 1;
    submit(&a, &sqe);
    turns(2);
    ck_assert_uint_eq(stub.n_waits, 2);
    ck_assert_uint_eq(stub.last_piece, 1);
    ck_assert_uint_eq(stub.last_len, 1);
    stub_finish(0);
    stub_finish(-EIO);
    turns(1);
    ck_assert(consume(&a, &cqe));
    ck_assert_uint_eq(cqe.value, 1); /* items, not pieces */
    ck_assert_uint_eq(a.results[0].length_bytes, 1);
    ck_assert_uint_eq(a.results[1].length_bytes, PIECE_BYTES);
    ck_assert_uint_eq(a.results[2].length_bytes, 1);
    ck_assert_uint_eq(a.results[2].offset_bytes, 2 * PIECE_BYTES);
    ck_assert_int_eq(a.results[3].status, 0);
    ck_assert_int_eq(a.results[4].status, -EIO);
}
END_TEST

START_TEST(test_reserve_sizes)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_RESERVE, 1);

    a.items[0] = item_of('h', 0);
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    ck_assert_int_eq(a.results[0].status, -EINVAL); /* no size, and the space has none */
    a.items[0].length_bytes = PIECE_BYTES + 100;
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    ck_assert_uint_eq(stub.last_object_bytes, PIECE_BYTES + 100);
    ck_assert_uint_eq(stub.last_piece, 1);
    ck_assert_uint_eq(stub.last_len, 100);
    a.items[0].length_bytes = OBJECT_BYTES_MAX + 1;
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    ck_assert_int_eq(a.results[0].status, -EFBIG);
    ck_assert_uint_eq(a.results[0].detail, SPW_LIMIT_OBJECT_BYTES);
    a.items[0].length_bytes = 10;
    a.items[0].offset_bytes = 1;
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    ck_assert_int_eq(a.results[0].status, -EINVAL);
}
END_TEST

START_TEST(test_reserve_without_waiting)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_RESERVE, 1);

    a.items[0] = item_of('w', 0);
    a.items[0].length_bytes = 10;
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    ck_assert_int_eq(a.results[0].status, -ENOSPC);
    ck_assert_uint_eq(a.results[0].detail, SPW_LIMIT_POOL_DRAM);

    /* Memory is full because the device is. */
    stub.room_limit = SPW_LIMIT_DEVICE_LOG;
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    ck_assert_int_eq(a.results[0].status, -ENOSPC);
    ck_assert_uint_eq(a.results[0].detail, SPW_LIMIT_DEVICE_LOG);
}
END_TEST

START_TEST(test_room_limit_after_a_timeout)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_RESERVE, 1);
    struct spw_cqe cqe;

    a.items[0] = item_of('w', 0);
    a.items[0].length_bytes = 10;
    sqe.timeout_ms = 100;
    stub.room_limit = SPW_LIMIT_DEVICE_BYTES;
    submit(&a, &sqe);
    turns(2);
    now_ns += 100 * MS;
    turns(2);
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, -ENOSPC);
    ck_assert_uint_eq(a.results[0].detail, SPW_LIMIT_DEVICE_BYTES);
}
END_TEST

START_TEST(test_arena_offsets)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_GET_RANGE, 4);

    put_items(&a, "hmhh");
    for (int i = 0; i < 4; i++)
        a.items[i].length_bytes = 3000;
    a.items[1].key_len = 40; /* refused, and takes its place all the same */
    sqe.arg[0] = 1;
    sqe.arg[1] = 500;
    struct spw_cqe cqe = call(&a, &sqe);

    ck_assert_uint_eq(cqe.value, 2);
    ck_assert_uint_eq(stub.n_arena, 2);
    ck_assert_uint_eq(stub.arena[0], 500);
    ck_assert_uint_eq(stub.arena[1], 6500);
    ck_assert_int_eq(a.results[1].status, -EINVAL);
    ck_assert_int_eq(a.results[3].status, -ERANGE); /* the lease has 10000 bytes */
    sqe.arg[1] = UINT64_MAX;
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    ck_assert_int_eq(a.results[0].status, -ERANGE);
    sqe.arg[0] = 77;
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    ck_assert_int_eq(a.results[0].status, -EBADF);
}
END_TEST

START_TEST(test_each_operation_once)
{
    static const uint8_t ops[] = {SPW_OP_TOUCH, SPW_OP_PREFETCH, SPW_OP_ADVISE, SPW_OP_PIN, SPW_OP_DELETE};

    for (size_t i = 0; i < sizeof(ops); i++) {
        struct spw_sqe sqe = sqe_of(&a, ops[i], 2);

        put_items(&a, "hm");
        sqe.arg[0] = ops[i] == SPW_OP_ADVISE ? SPW_ADVICE_NOT_AGAIN : 0;
        struct spw_cqe cqe = call(&a, &sqe);

        ck_assert_int_eq(cqe.status, 0);
        ck_assert_uint_eq(cqe.value, 1);
        ck_assert_int_eq(a.results[0].status, 0);
        ck_assert_int_eq(a.results[1].status, -ENOENT);
    }
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_TENSOR, 1);

    put_items(&a, "h");
    a.items[0].length_bytes = 100 * MIB;
    ck_assert_uint_eq(call(&a, &sqe).value, 1);
    ck_assert_uint_eq(stub.last_object_bytes, 100 * MIB);
    sqe = sqe_of(&a, SPW_OP_STAT, 0);
    pool_gpus[0] = (struct pool_gpu_stat){.budget_bytes = 777, .used_bytes = 55};
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    const struct spw_stat *stat = (const void *)a.results;
    ck_assert_uint_eq(stat->dram_budget, 12345);
    ck_assert_uint_eq(stat->gpu_budget, 777);
    ck_assert_uint_eq(stat->gpu_used, 55);
}
END_TEST

START_TEST(test_advice)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ADVISE, 1);

    put_items(&a, "h");
    sqe.arg[0] = SPW_ADVICE_SCORE;
    sqe.arg[1] = 77;
    ck_assert_uint_eq(call(&a, &sqe).value, 1);
    ck_assert_uint_eq(stub.advised, 77);
    sqe.arg[0] = SPW_ADVICE_KEEP_UNTIL; /* milliseconds on the wire */
    ck_assert_uint_eq(call(&a, &sqe).value, 1);
    ck_assert_uint_eq(stub.advised, 77 * MS);
    sqe.arg[1] = PIN_MS_MAX + 1;
    ck_assert_int_eq(status_of(&a, &sqe), -ERANGE);
    sqe.arg[0] = SPW_ADVICE_SCORE + 1;
    ck_assert_int_eq(status_of(&a, &sqe), -EINVAL);
    sqe.arg[0] = SPW_ADVICE_USES_LEFT;
    put_items(&a, "f"); /* no more hints are taken: the limit has a name */
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    ck_assert_int_eq(a.results[0].status, -ENOSPC);
    ck_assert_uint_eq(a.results[0].detail, SPW_LIMIT_HINTS);
}
END_TEST

/* --- Waiting ----------------------------------------------------------------------------------------------------- */

/* A dirty release in a shared pool waits for its copy; what needs none is not held up, even without a wait to be had. */
START_TEST(test_release_that_waits)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 3);
    struct spw_cqe cqe;
    uint64_t lease[3];

    put_items(&a, "hhh");
    ck_assert_uint_eq(call(&a, &sqe).value, 3);
    for (int i = 0; i < 3; i++)
        lease[i] = a.results[i].lease;
    stub.shared = true;
    sqe = sqe_of(&a, SPW_OP_RELEASE, 3);
    sqe.space = 0;
    for (int i = 0; i < 3; i++)
        a.handles[i] = (struct spw_handle){.lease = lease[i], .flags = i == 1 ? SPW_RELEASE_DIRTY : 0};
    submit(&a, &sqe);
    turns(2);
    ck_assert(!consume(&a, &cqe));
    ck_assert_int_eq(stub.leases, 1); /* the others have ended */
    ck_assert_uint_eq(stub.n_waits, 1);
    stub_finish(-EFAULT); /* its own memory was punched */
    turns(2);
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, 0);
    ck_assert_uint_eq(cqe.value, 2);
    ck_assert_int_eq(a.results[0].status, 0);
    ck_assert_int_eq(a.results[1].status, -EFAULT);
    ck_assert_int_eq(a.results[2].status, 0);
}
END_TEST

START_TEST(test_timeout)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 2);
    struct spw_cqe cqe;

    put_items(&a, "hw");
    sqe.timeout_ms = 100;
    submit(&a, &sqe);
    turns(2);
    ck_assert_uint_eq(requests_next_ns(rq, now_ns), now_ns + 100 * MS);
    now_ns += 100 * MS - 1;
    turns(2);
    ck_assert(!consume(&a, &cqe));
    now_ns += 1;
    turns(2);
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, 0); /* one was granted: look at the results */
    ck_assert_int_eq(a.results[0].status, 0);
    ck_assert_int_eq(a.results[1].status, -ETIMEDOUT);
    ck_assert_uint_eq(stub.cancelled, 1);
    ck_assert_uint_eq(requests_next_ns(rq, now_ns), UINT64_MAX);

    a.items[0] = item_of('w', 0);
    a.items[0].length_bytes = 10;
    sqe = sqe_of(&a, SPW_OP_RESERVE, 1);
    sqe.timeout_ms = UINT32_MAX; /* the daemon's own bound */
    submit(&a, &sqe);
    turns(2);
    now_ns += REQUEST_TIMEOUT_MS_MAX * MS;
    turns(2);
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, -ENOSPC);
    ck_assert_int_eq(a.results[0].status, -ENOSPC);
}
END_TEST

START_TEST(test_cancel)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 2);
    struct spw_sqe cancel = {.opcode = SPW_OP_CANCEL, .user_data = 43, .arg = {42}};
    struct spw_cqe cqe;

    ck_assert_int_eq(status_of(&a, &cancel), -ENOENT);
    put_items(&a, "ww");
    submit(&a, &sqe);
    turns(2);
    submit(&a, &cancel);
    turns(2);
    ck_assert(consume(&a, &cqe));
    ck_assert_uint_eq(cqe.user_data, 43);
    ck_assert_int_eq(cqe.status, 0);
    ck_assert(consume(&a, &cqe));
    ck_assert_uint_eq(cqe.user_data, 42);
    ck_assert_int_eq(cqe.status, -ECANCELED);
    ck_assert_uint_eq(stub.n_waits, 0);
}
END_TEST

/* A piece that was granted is a lease, though its item is not there as a whole: the client must look. */
START_TEST(test_cancel_in_the_middle_of_an_item)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 1);
    struct spw_sqe cancel = {.opcode = SPW_OP_CANCEL, .user_data = 43, .arg = {42}};
    struct spw_cqe cqe;

    put_items(&a, "w");
    a.items[0].length_bytes = PIECE_BYTES + 1;
    submit(&a, &sqe);
    turns(2);
    stub_finish(0);
    turns(1);
    ck_assert(!consume(&a, &cqe));
    submit(&a, &cancel);
    turns(2);
    ck_assert(consume(&a, &cqe));
    ck_assert_uint_eq(cqe.user_data, 43);
    ck_assert(consume(&a, &cqe));
    ck_assert_uint_eq(cqe.user_data, 42);
    ck_assert_int_eq(cqe.status, 0);
    ck_assert_uint_eq(cqe.value, 0); /* items */
    ck_assert_int_eq(a.results[0].status, 0);
    ck_assert_uint_ne(a.results[0].lease, 0);
    ck_assert_int_eq(a.results[1].status, -ECANCELED);
}
END_TEST

START_TEST(test_waits_run_out)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 100);
    struct spw_cqe cqe;

    for (uint8_t i = 0; i < 100; i++)
        a.items[i] = item_of('w', i);
    submit(&a, &sqe);
    turns(10);
    /* Alone, a session gets half: a wait only while it holds fewer than are free. */
    ck_assert_uint_eq(stub.n_waits, 32);
    ck_assert_uint_eq(turns(3), 0); /* it does not spin, */
    ck_assert(!requests_wants_spin(rq));
    ck_assert_uint_le(requests_next_ns(rq, now_ns), now_ns + 10 * MS); /* but comes back */
    for (int i = 0; i < 100; i++) {
        ck_assert(!consume(&a, &cqe));
        stub_finish(0);
        turns(2);
    }
    ck_assert(consume(&a, &cqe));
    ck_assert_uint_eq(cqe.value, 100);
}
END_TEST

START_TEST(test_tiering_runs_out)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 3);
    struct spw_cqe cqe;

    put_items(&a, "hqh");
    stub.q_left = 4; /* two tries in the turn that gets there, one in each that follows */
    submit(&a, &sqe);
    turns(2);
    ck_assert(!consume(&a, &cqe));
    turns(2);
    ck_assert(consume(&a, &cqe));
    ck_assert_uint_eq(cqe.value, 3);
}
END_TEST

START_TEST(test_requests_run_out)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 1);
    struct spw_cqe cqe;

    client_free(&a);
    requests_free(rq);
    engine_new(8, 64);
    client_new(&a, 7, 100);
    client_new(&b, 8, 100);
    put_items(&a, "w");
    for (int i = 0; i < 10; i++)
        submit(&a, &sqe);
    turns(5);
    ck_assert_uint_eq(stub.n_waits, 4); /* the other half is for others */
    struct spw_sqe nop = {.opcode = SPW_OP_NOP, .user_data = 1};

    ck_assert_int_eq(status_of(&b, &nop), 0);
    for (int i = 0; i < 10; i++) {
        stub_finish(0);
        turns(2);
        ck_assert(consume(&a, &cqe));
    }
    client_free(&b);
}
END_TEST

/* Sessions of one user have 3/4 together, however many they are; another user's finds some. And all is given back. */
START_TEST(test_users_requests_run_out)
{
    static struct client many[12];
    struct spw_sqe sqe, nop = {.opcode = SPW_OP_NOP};
    struct spw_cqe cqe;
    uint32_t waits;

    client_free(&a);
    requests_free(rq);
    engine_new(16, 64);
    requests_set_user_percent(rq, 75);
    client_new(&a, 7, 100);
    requests_peer_user(rq, &a.peer, 1);
    for (uint32_t i = 0; i < ARRAY_LEN(many); i++) {
        client_new(&many[i], 20 + i, 100);
        requests_peer_user(rq, &many[i].peer, 2);
        put_items(&many[i], "wwww");
        sqe = sqe_of(&many[i], SPW_OP_ACQUIRE, 4);
        for (int k = 0; k < 4; k++)
            submit(&many[i], &sqe);
    }
    turns(20);
    ck_assert_uint_ge(a.peer.user[1].n_requests, 11); /* some of 12; the last is for a session that has none */
    ck_assert_uint_le(a.peer.user[1].n_requests, 12);
    waits = stub.n_waits;
    ck_assert_uint_gt(waits, 24);
    ck_assert_uint_le(waits, 48);
    put_items(&a, "ww");
    sqe = sqe_of(&a, SPW_OP_ACQUIRE, 2);
    submit(&a, &sqe);
    ck_assert_int_eq((turns(3), stub.n_waits), (int)waits + 2);
    for (int i = 0; i < 2000 && (stub.n_waits > 0 || i < 10); i++) {
        if (stub.n_waits > 0)
            stub_finish(0);
        turns(2);
        for (uint32_t k = 0; k < ARRAY_LEN(many); k++)
            while (consume(&many[k], &cqe))
                ck_assert_int_eq(cqe.status, 0);
        while (consume(&a, &cqe))
            ck_assert_int_eq(cqe.status, 0);
    }
    ck_assert_uint_eq(a.peer.user[0].n_requests | a.peer.user[1].n_requests, 0);
    ck_assert_uint_eq(a.peer.user[0].n_waits | a.peer.user[1].n_waits, 0);
    ck_assert_int_eq(status_of(&a, &nop), 0);
    for (uint32_t i = 0; i < ARRAY_LEN(many); i++)
        client_free(&many[i]);
}
END_TEST

START_TEST(test_cq_is_never_overrun)
{
    struct spw_sqe nop = {.opcode = SPW_OP_NOP};
    struct spw_cqe cqe;
    uint64_t expected = 0, sent = 0;

    for (; sent < ENTRIES; sent++) {
        nop.user_data = sent;
        submit(&a, &nop);
    }
    turns(2);
    for (; sent < 2 * ENTRIES; sent++) {
        nop.user_data = sent;
        submit(&a, &nop);
    }
    turns(4);
    ck_assert_uint_eq(a.shared->daemon.cq_tail, ENTRIES);
    ck_assert_uint_eq(a.shared->daemon.sq_head, ENTRIES);
    ck_assert(!requests_wants_spin(rq));
    for (; consume(&a, &cqe); expected++) {
        ck_assert_uint_eq(cqe.user_data, expected);
        turns(1);
    }
    ck_assert_uint_eq(expected, 2 * ENTRIES);
    ck_assert_ptr_null(broken_why);
}
END_TEST

/* What was taken is published although none of it is over. */
START_TEST(test_entries_of_waiting_requests_are_free)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 1);

    put_items(&a, "w");
    submit(&a, &sqe);
    turns(1);
    ck_assert_uint_eq(a.shared->daemon.sq_head, 1);
    ck_assert_uint_eq(a.shared->daemon.cq_tail, 0);
}
END_TEST

START_TEST(test_peek)
{
    struct spw_sqe nop = {.opcode = SPW_OP_NOP};

    ck_assert_uint_eq(requests_hot_rings(rq), 1);
    ck_assert(!requests_peek(rq));
    submit(&a, &nop);
    ck_assert(requests_peek(rq));
    turns(2);
    ck_assert(!requests_peek(rq));

    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 1);

    put_items(&a, "w");
    submit(&a, &sqe);
    turns(1);
    ck_assert(!requests_peek(rq));
    stub_finish(0);
    ck_assert(requests_peek(rq)); /* no ring has anything, but a wait has ended */
    turns(1);
    ck_assert(!requests_peek(rq));
    now_ns += 1001;
    turns(1);
    ck_assert_uint_eq(requests_hot_rings(rq), 0);
    nop.user_data = 1;
    store_release(&a.shared->client.sq_tail, a.sq_tail + 1); /* without its doorbell: a cold ring is not looked at */
    ck_assert(!requests_peek(rq));
}
END_TEST

static bool doorbell_rings(int fd)
{
    return poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 0) > 0;
}

static void ring_goes_cold(void)
{
    now_ns += 1001;
    turns(1);
    ck_assert_uint_eq(a.shared->daemon.sq_flags & 15, SPW_RING_NEED_WAKEUP);
}

static bool is_cold_after(uint64_t ns)
{
    now_ns += ns;
    turns(1);
    return requests_hot_rings(rq) == 0;
}

/* It stays hot for twice the last gap between two requests, but not for a client that would be too late anyway. */
START_TEST(test_a_ring_learns_how_long_to_spin)
{
    struct spw_sqe nop = {.opcode = SPW_OP_NOP};

    requests_set_spin(rq, 100000);
    ck_assert_int_eq(status_of(&a, &nop), 0);
    now_ns += 30000;
    ck_assert_int_eq(status_of(&a, &nop), 0);
    ck_assert(!is_cold_after(59000));
    ck_assert(is_cold_after(2000));

    now_ns += 1000000; /* too long to wait for: half as long the next time */
    ck_assert_int_eq(status_of(&a, &nop), 0);
    ck_assert(!is_cold_after(29000));
    ck_assert(is_cold_after(2000));
    now_ns += 10000; /* since it went cold: 41000 since the last request */
    ck_assert_int_eq(status_of(&a, &nop), 0);
    ck_assert(!is_cold_after(81000));
    ck_assert(is_cold_after(2000));

    ck_assert_int_eq(status_of(&a, &nop), 0);
    store_relaxed(&a.shared->client.cq_flags, SPW_RING_WAKE_FUTEX);
    turns(1);
    now_ns += 9000;
    ck_assert_int_eq(status_of(&a, &nop), 0);
    for (uint64_t hot_ns = 18000; hot_ns > 4000; hot_ns /= 2) { /* each time the request comes too late */
        ck_assert(!is_cold_after(hot_ns - 1000));
        ck_assert(is_cold_after(2000));
        now_ns += 30000;
        ck_assert_int_eq(status_of(&a, &nop), 0);
    }
    store_relaxed(&a.shared->client.cq_flags, 0);
    ck_assert(!is_cold_after(81000)); /* but what was learned of the client awake holds */
    store_relaxed(&a.shared->client.cq_flags, 0);
    requests_set_spin(rq, 0);
    ck_assert_int_eq(status_of(&a, &nop), 0);
    ck_assert(is_cold_after(0));
}
END_TEST

/* Who has an object of many pieces made waits, until others have had as many turns as that took. */
START_TEST(test_objects_of_many_pieces_are_paid_for)
{
    struct spw_sqe nop = {.opcode = SPW_OP_NOP}, tensor = sqe_of(&a, SPW_OP_TENSOR, 1);
    struct spw_cqe cqe;
    int n_calls = 0;

    client_new(&b, 8, 100);
    requests_set_spin(rq, 0);
    turns(2);
    ck_assert_uint_eq(requests_hot_rings(rq), 0); /* whose a session is, is said before it does anything */
    requests_peer_user(rq, &a.peer, 1);
    requests_peer_user(rq, &b.peer, 2);
    put_items(&a, "h");
    a.items[0].length_bytes = MIB;
    stub.tensor_pieces = UINT64_C(40) * QUANTUM_ITEMS * WALKED_PER_ITEM;
    submit(&a, &tensor);
    submit(&a, &tensor);
    turns(1);
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, 0);
    ck_assert(!consume(&a, &cqe)); /* that is for later */
    for (; !consume(&a, &cqe); n_calls++) {
        ck_assert_int_lt(n_calls, 20);
        ck_assert_int_eq(status_of(&b, &nop), 0);
    }
    ck_assert_int_eq(cqe.status, 0);
    ck_assert_int_ge(n_calls, 40 / 4);
    ck_assert_uint_eq(stub.walked, 2 * stub.tensor_pieces);
    client_free(&b);
}
END_TEST

/* Nothing can hear their doorbells: they are polled on, once in a turn, and the engine does not sleep. */
START_TEST(test_rings_that_cannot_go_cold)
{
    struct spw_sqe nop = {.opcode = SPW_OP_NOP};

    client_new(&b, 8, 100);
    requests_set_spin(rq, 0);
    n_cold_refused = 10;
    turns(1);
    ck_assert_uint_eq(n_cold, 2);
    ck_assert_uint_eq(requests_hot_rings(rq), 2);
    ck_assert(requests_wants_spin(rq));
    ck_assert_uint_eq(a.shared->daemon.sq_flags & SPW_RING_NEED_WAKEUP, 0);
    ck_assert_int_eq(status_of(&b, &nop), 0);
    n_cold_refused = 0;
    turns(1);
    ck_assert_uint_eq(requests_hot_rings(rq), 0);
    ck_assert(!requests_wants_spin(rq));
    client_free(&b);
}
END_TEST

/* The poll of a ring that goes cold must not find what rang before. */
START_TEST(test_doorbell_is_emptied_before_the_ring_sleeps)
{
    int fds[2];

    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds), 0);
    a.ring.doorbell_fd = fds[0];
    ring_goes_cold();
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(send(fds[1], "", 1, 0), 1);
    requests_ring_hot(rq, &a.ring, now_ns);
    turns(1);
    ck_assert(doorbell_rings(fds[0])); /* nobody waits for this */
    ring_goes_cold();
    ck_assert(!doorbell_rings(fds[0]));
    ck_assert(!a.ring.doorbell_gone);
    close(fds[1]);
    requests_ring_hot(rq, &a.ring, now_ns);
    ring_goes_cold();
    ck_assert(a.ring.doorbell_gone);
    a.ring.doorbell_fd = -1;
    close(fds[0]);
}
END_TEST

static uint32_t bytes_on(int fd)
{
    uint32_t n = 0;
    char byte;

    while (recv(fd, &byte, 1, MSG_DONTWAIT) == 1)
        n++;
    return n;
}

/* It takes a client long to wake, and many answers may come meanwhile. */
START_TEST(test_a_sleeping_client_is_rung_for_once)
{
    uint32_t *flags = &a.shared->client.cq_flags, n_sleeps = 0;
    struct spw_sqe nop = {.opcode = SPW_OP_NOP};
    int fds[2];

    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds), 0);
    a.ring.doorbell_fd = fds[0];
    for (int i = 0; i < 2; i++) {
        *flags = ring_sleep_word(SPW_RING_WAKE_DOORBELL, &n_sleeps);
        for (int k = 0; k < 3; k++)
            ck_assert_int_eq(status_of(&a, &nop), 0);
        ck_assert_uint_eq(bytes_on(fds[1]), 1);
    }
    *flags = SPW_RING_WAKE_DOORBELL; /* a client that does not count its sleeps */
    for (int k = 0; k < 3; k++)
        ck_assert_int_eq(status_of(&a, &nop), 0);
    ck_assert_uint_eq(bytes_on(fds[1]), 3);
    *flags = 0;
    ck_assert_int_eq(status_of(&a, &nop), 0);
    ck_assert_uint_eq(bytes_on(fds[1]), 0);
    a.ring.doorbell_fd = -1;
    close(fds[0]);
    close(fds[1]);
}
END_TEST

START_TEST(test_peer_removed_while_waiting)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_ACQUIRE, 4);

    put_items(&a, "hwww");
    submit(&a, &sqe);
    turns(2);
    stub_finish(0); /* ended, not yet collected */
    client_free(&a);
    ck_assert_uint_eq(stub.n_waits, 0);
    ck_assert_uint_eq(stub.cancelled, 2);
    turns(2);
    ck_assert(requests_is_idle(rq));
    client_new(&a, 9, 100);
}
END_TEST

START_TEST(test_weights)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_TOUCH, 500);

    client_new(&b, 8, 300);
    for (int i = 0; i < 500; i++)
        a.items[i] = b.items[i] = item_of('h', (uint8_t)i);
    submit(&a, &sqe);
    sqe.space = b.space;
    submit(&b, &sqe);
    a.results[63].status = b.results[63].status = 1;
    for (int i = 0; i < 500; i++)
        a.results[i].status = b.results[i].status = 1;
    turns(2);
    int served[2] = {0, 0};

    for (int i = 0; i < 500; i++) {
        served[0] += a.results[i].status == 0;
        served[1] += b.results[i].status == 0;
    }
    ck_assert_int_ge(served[0], 2 * QUANTUM_ITEMS - 2);
    ck_assert_int_le(served[0], 2 * QUANTUM_ITEMS);
    ck_assert_int_ge(served[1], 6 * QUANTUM_ITEMS - 2);
    ck_assert_int_le(served[1], 6 * QUANTUM_ITEMS);
    client_free(&b);
}
END_TEST

/* A reload: sessions that are there get it too. */
START_TEST(test_weights_change)
{
    struct spw_sqe sqe = sqe_of(&a, SPW_OP_TOUCH, 500);
    uint32_t weights[POOLS_MAX] = {250};
    int served = 0;

    for (int i = 0; i < 500; i++)
        a.items[i] = item_of('h', (uint8_t)i);
    requests_set_weights(rq, weights);
    for (int i = 0; i < 500; i++)
        a.results[i].status = 1;
    submit(&a, &sqe);
    turns(2);
    for (int i = 0; i < 500; i++)
        served += a.results[i].status == 0;
    ck_assert_int_ge(served, 5 * QUANTUM_ITEMS - 2);
    ck_assert_int_le(served, 5 * QUANTUM_ITEMS);
}
END_TEST

START_TEST(test_sleep)
{
    struct spw_sqe nop = {.opcode = SPW_OP_NOP};

    ck_assert_int_eq(status_of(&a, &nop), 0);
    n_cold = 0;
    turns(1);
    ck_assert(requests_wants_spin(rq));
    now_ns += 1001;
    turns(1);
    ck_assert_uint_eq(n_cold, 1);
    ck_assert(!requests_wants_spin(rq));
    ck_assert_uint_eq(a.shared->daemon.sq_flags & 15, SPW_RING_NEED_WAKEUP);
    ck_assert_int_eq(status_of(&a, &nop), 0);
    ck_assert_uint_eq(a.shared->daemon.sq_flags, 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("request");
    TCase *tc = tcase_create("all");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_nop);
    tcase_add_test(tc, test_lookup_counts_prefix);
    tcase_add_test(tc, test_chains_are_named);
    tcase_add_test(tc, test_a_plan_in_lists);
    tcase_add_test(tc, test_acquire_partial);
    tcase_add_test(tc, test_handles);
    tcase_add_test(tc, test_retries);
    tcase_add_test(tc, test_leases_are_named);
    tcase_add_test(tc, test_pieces);
    tcase_add_test(tc, test_reserve_sizes);
    tcase_add_test(tc, test_reserve_without_waiting);
    tcase_add_test(tc, test_room_limit_after_a_timeout);
    tcase_add_test(tc, test_arena_offsets);
    tcase_add_test(tc, test_each_operation_once);
    tcase_add_test(tc, test_advice);
    tcase_add_test(tc, test_release_that_waits);
    tcase_add_test(tc, test_timeout);
    tcase_add_test(tc, test_cancel);
    tcase_add_test(tc, test_cancel_in_the_middle_of_an_item);
    tcase_add_test(tc, test_waits_run_out);
    tcase_add_test(tc, test_tiering_runs_out);
    tcase_add_test(tc, test_requests_run_out);
    tcase_add_test(tc, test_users_requests_run_out);
    tcase_add_test(tc, test_cq_is_never_overrun);
    tcase_add_test(tc, test_peer_removed_while_waiting);
    tcase_add_test(tc, test_weights);
    tcase_add_test(tc, test_weights_change);
    tcase_add_test(tc, test_sleep);
    tcase_add_test(tc, test_entries_of_waiting_requests_are_free);
    tcase_add_test(tc, test_peek);
    tcase_add_test(tc, test_doorbell_is_emptied_before_the_ring_sleeps);
    tcase_add_test(tc, test_a_ring_learns_how_long_to_spin);
    tcase_add_test(tc, test_rings_that_cannot_go_cold);
    tcase_add_test(tc, test_objects_of_many_pieces_are_paid_for);
    tcase_add_test(tc, test_a_sleeping_client_is_rung_for_once);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
