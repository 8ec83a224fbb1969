/* SPDX-License-Identifier: Apache-2.0 */
/* GPU_SPILL and GPU_FETCH: lanes, sequences, and clients without manners. */
#include "tests/unit/request_rig.h"

#define LANE 40
#define GPU 2
#define SLOTS 2
#define ALLOC_BYTES (40 * GIB)

static struct spw_gpu_fences fences;

static void lane_add(struct client *c, uint32_t lane, struct spw_gpu_fences *at)
{
    struct lane_spec spec = {.lane = lane, .gpu = GPU, .pool = 0, .slots = SLOTS, .slot_bytes = 5000, .fences = at};

    ck_assert_int_eq(requests_lane_add(rq, &c->peer, &spec), 0);
}

static void gpu_setup(void)
{
    setup();
    memset(&fences, 0, sizeof(fences));
    lane_add(&a, LANE, &fences);
}

/* What is on its way ends, then the lane goes. */
static void gpu_teardown(void)
{
    if (!requests_lane_remove(rq, &a.peer, LANE, &fences)) {
        while (stub.n_dmas > 0)
            stub_dma_finish((enum io_dma_op)stub.dmas[0]->io_.op, -ECANCELED);
        turns(2);
        ck_assert_ptr_eq(lane_removed, &fences);
    }
    for (uint32_t i = 0; i < ARRAY_LEN(stub.in_dma); i++)
        ck_assert_ptr_null(stub.in_dma[i]);
    teardown();
}

static struct spw_sqe gpu_sqe(uint8_t op, uint64_t seq, uint32_t n)
{
    return (struct spw_sqe){.opcode = op, .user_data = 42, .n_items = n, .timeout_ms = 100, .arg = {LANE, seq}};
}

static void put_handles(struct client *c, uint64_t first, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        c->handles[i] = (struct spw_handle){.lease = first + i};
}

static void begin_use(uint8_t op, uint64_t seq, uint64_t first, uint32_t n)
{
    struct spw_sqe sqe = gpu_sqe(op, seq, n);
    struct spw_cqe cqe;

    put_handles(&a, first, n);
    sqe.user_data = seq * 2 + (op == SPW_OP_GPU_FETCH);
    submit(&a, &sqe);
    turns(3);
    ck_assert(!consume(&a, &cqe));
}

static struct spw_cqe end_use(enum io_dma_op op, int status)
{
    struct spw_cqe cqe;

    stub_dma_finish(op, status);
    turns(1);
    ck_assert(consume(&a, &cqe));
    return cqe;
}

static int refused(const struct spw_sqe *sqe)
{
    uint32_t before = stub.n_dmas;
    int status = status_of(&a, sqe);

    ck_assert_uint_eq(stub.n_dmas, before);
    return status;
}

START_TEST(test_use)
{
    begin_use(SPW_OP_GPU_SPILL, 1, 1, 10);
    ck_assert_uint_eq(stub.n_dmas, 1);
    ck_assert_uint_eq(stub.dmas[0]->io_.op, IO_DMA_SPILL);
    ck_assert_uint_eq(stub.dmas[0]->io_.lane, LANE);
    ck_assert_uint_eq(stub.dmas[0]->io_.gpu, GPU);
    ck_assert_uint_eq(stub.dmas[0]->io_.seq, 1);
    ck_assert_uint_eq(stub.dmas[0]->io_.expires_ns, now_ns + 100 * MS);
    ck_assert_uint_eq(stub.dmas[0]->n_leases, 10);
    begin_use(SPW_OP_GPU_FETCH, 1, 201, 2); /* its own sequence */
    ck_assert_uint_eq(stub.dmas[1]->io_.op, IO_DMA_FETCH);
    begin_use(SPW_OP_GPU_SPILL, 2, 31, 1);
    now_ns += 60000 * MS; /* no deadline but the helper's */
    turns(3);
    struct spw_cqe cqe;

    ck_assert(!consume(&a, &cqe));
    cqe = end_use(IO_DMA_FETCH, 0);
    ck_assert_int_eq(cqe.status, 0);
    ck_assert_uint_eq(cqe.user_data, 3);
    ck_assert_uint_eq(cqe.value, 200);
    cqe = end_use(IO_DMA_SPILL, 0);
    ck_assert_uint_eq(cqe.value, 1000);
    ck_assert_uint_eq(end_use(IO_DMA_SPILL, 0).user_data, 4);
    begin_use(SPW_OP_GPU_SPILL, 3, 1, 1);
    (void)end_use(IO_DMA_SPILL, 0);
}
END_TEST

/* A use of a direct lane lies anywhere in its allocation, and nowhere else. */
START_TEST(test_direct)
{
    static const uint64_t bad[] = {ALLOC_BYTES - 299, ALLOC_BYTES - 1,  ALLOC_BYTES, ALLOC_BYTES + 1,
                                   UINT64_C(1) << 63, UINT64_MAX - 299, UINT64_MAX};
    struct spw_gpu_fences others = {0};
    struct lane_spec spec = {.lane = LANE + 1,
                             .gpu = GPU,
                             .slots = SLOTS,
                             .slot_bytes = 5000,
                             .alloc_bytes = ALLOC_BYTES,
                             .fences = &others};
    struct spw_sqe sqe = gpu_sqe(SPW_OP_GPU_FETCH, 1, 3);
    struct spw_cqe cqe;

    ck_assert_int_eq(requests_lane_add(rq, &a.peer, &spec), 0);
    put_handles(&a, 1, 3);
    sqe.arg[2] = 16; /* of a lane with slots */
    ck_assert_int_eq(refused(&sqe), -EINVAL);
    sqe.arg[0] = LANE + 1;
    for (uint32_t i = 0; i < ARRAY_LEN(bad); i++) {
        sqe.arg[2] = bad[i];
        ck_assert_int_eq(refused(&sqe), -EINVAL);
    }
    put_handles(&a, 1, 51); /* more than a use may have */
    sqe.n_items = 51;
    sqe.arg[2] = 0;
    ck_assert_int_eq(refused(&sqe), -EINVAL);
    for (uint32_t i = 0; i < ARRAY_LEN(stub.in_dma); i++)
        ck_assert_ptr_null(stub.in_dma[i]);
    put_handles(&a, 1, 3);
    sqe.n_items = 3;
    sqe.arg[2] = ALLOC_BYTES - 300;
    submit(&a, &sqe);
    turns(3);
    ck_assert(!consume(&a, &cqe));
    ck_assert_uint_eq(stub.n_dmas, 1);
    ck_assert_uint_eq(stub.dmas[0]->io_.lane, LANE + 1);
    ck_assert_uint_eq(stub.dmas[0]->io_.base_bytes, ALLOC_BYTES - 300);
    ck_assert_uint_eq(end_use(IO_DMA_FETCH, 0).value, 300);
    begin_use(SPW_OP_GPU_FETCH, 1, 1, 3); /* the other lane's */
    ck_assert_uint_eq(stub.dmas[0]->io_.base_bytes, 0);
    (void)end_use(IO_DMA_FETCH, 0);
    ck_assert(requests_lane_remove(rq, &a.peer, LANE + 1, &others));
}
END_TEST

/* Each is refused, and the sequence stays. */
START_TEST(test_mistakes)
{
    struct spw_sqe sqe = gpu_sqe(SPW_OP_GPU_SPILL, 1, 3);

    put_handles(&a, 1, 3);
    sqe.arg[0] = LANE + 1;
    ck_assert_int_eq(refused(&sqe), -EBADF);
    sqe.arg[0] = LANE + (UINT64_C(1) << 32); /* at full width */
    ck_assert_int_eq(refused(&sqe), -EBADF);
    sqe = gpu_sqe(SPW_OP_GPU_SPILL, 0, 3);
    ck_assert_int_eq(refused(&sqe), -EINVAL);
    sqe.arg[1] = 2;
    ck_assert_int_eq(refused(&sqe), -EINVAL);
    sqe.arg[1] = UINT64_MAX;
    ck_assert_int_eq(refused(&sqe), -EINVAL);
    sqe = gpu_sqe(SPW_OP_GPU_SPILL, 1, 0);
    ck_assert_int_eq(refused(&sqe), -EINVAL);
    sqe = gpu_sqe(SPW_OP_GPU_SPILL, 1, SPW_LIST_MAX + 1);
    ck_assert_int_eq(refused(&sqe), -EINVAL);
    sqe = gpu_sqe(SPW_OP_GPU_SPILL, 1, 3);
    sqe.items = SCRATCH_BYTES;
    ck_assert_int_eq(refused(&sqe), -ERANGE);
    sqe.items = SCRATCH_BYTES - 64;
    sqe.n_items = 5;
    ck_assert_int_eq(refused(&sqe), -ERANGE);
    sqe = gpu_sqe(SPW_OP_GPU_SPILL, 1, 3);
    sqe.items = 32;
    ck_assert_int_eq(refused(&sqe), -EINVAL);
    sqe = gpu_sqe(SPW_OP_GPU_SPILL, 1, 3);
    sqe.results = RESULTS;
    ck_assert_int_eq(refused(&sqe), -EINVAL);
    sqe = gpu_sqe(SPW_OP_GPU_SPILL, 1, 3);
    sqe.flags = SPW_SQE_CHAIN;
    ck_assert_int_eq(refused(&sqe), -EINVAL);
    sqe = gpu_sqe(SPW_OP_GPU_SPILL, 1, 3);
    sqe.arg[2] = UINT64_MAX; /* the lane has slots */
    ck_assert_int_eq(refused(&sqe), -EINVAL);
    sqe = gpu_sqe(SPW_OP_GPU_SPILL, 1, 3);
    sqe.space = a.space;
    ck_assert_int_eq(refused(&sqe), -EINVAL);
    begin_use(SPW_OP_GPU_SPILL, 1, 1, 3);
    (void)end_use(IO_DMA_SPILL, 0);
}
END_TEST

/* The last of the list cannot be had: none is taken. */
START_TEST(test_bad_handles)
{
    struct spw_sqe sqe = gpu_sqe(SPW_OP_GPU_SPILL, 1, 4);

    put_handles(&a, 1, 4);
    a.handles[3].lease = 5000; /* stale, or another session's */
    ck_assert_int_eq(refused(&sqe), -EBADF);
    a.handles[3].lease = 100;
    ck_assert_int_eq(refused(&sqe), -EXDEV);
    a.handles[3].lease = 200;
    ck_assert_int_eq(refused(&sqe), -EROFS);
    a.handles[3].lease = 1; /* twice */
    ck_assert_int_eq(refused(&sqe), -EBUSY);
    put_handles(&a, 1, 51); /* more than a slot has */
    sqe.n_items = 51;
    ck_assert_int_eq(refused(&sqe), -EINVAL);
    for (uint32_t i = 0; i < ARRAY_LEN(stub.in_dma); i++)
        ck_assert_ptr_null(stub.in_dma[i]);
    begin_use(SPW_OP_GPU_SPILL, 1, 1, 4);
    sqe = gpu_sqe(SPW_OP_GPU_FETCH, 1, 1);
    put_handles(&a, 4, 1); /* in the other one */
    ck_assert_int_eq(refused(&sqe), -EBUSY);
    (void)end_use(IO_DMA_SPILL, 0);
    begin_use(SPW_OP_GPU_FETCH, 1, 4, 1);
    (void)end_use(IO_DMA_FETCH, 0);
}
END_TEST

/* A reserved field far behind: the session ends, and no lease is left marked. */
START_TEST(test_reserved)
{
    struct spw_sqe sqe = gpu_sqe(SPW_OP_GPU_FETCH, 1, 40);

    lane_add(&a, LANE + 1, &fences);
    put_handles(&a, 1, 40);
    if (_i == 2)
        sqe.reserved = 1;
    else if (_i)
        a.handles[39].flags = SPW_RELEASE_DIRTY;
    else
        a.handles[39].reserved = 1;
    submit(&a, &sqe);
    turns(3);
    ck_assert_ptr_eq(broken_peer, &a.peer);
    ck_assert_uint_eq(stub.n_dmas, 0);
    for (uint32_t i = 0; i < ARRAY_LEN(stub.in_dma); i++)
        ck_assert_ptr_null(stub.in_dma[i]);
    ck_assert(requests_lane_remove(rq, &a.peer, LANE + 1, &fences));
}
END_TEST

START_TEST(test_other_sessions_lane)
{
    struct spw_gpu_fences others = {0};
    struct spw_sqe sqe = gpu_sqe(SPW_OP_GPU_SPILL, 1, 1);
    static struct client b;

    client_new(&b, 8, 100);
    lane_add(&b, LANE + 7, &others);
    put_handles(&a, 1, 1);
    sqe.arg[0] = LANE + 7;
    ck_assert_int_eq(refused(&sqe), -EBADF);
    ck_assert(requests_lane_remove(rq, &b.peer, LANE + 7, &others));
    client_free(&b);
}
END_TEST

START_TEST(test_too_many)
{
    struct spw_sqe sqe = gpu_sqe(SPW_OP_GPU_SPILL, GPU_LANE_AHEAD * SLOTS + 1, 1);
    struct spw_cqe cqe;

    for (uint32_t i = 1; i <= GPU_LANE_AHEAD * SLOTS; i++)
        begin_use(SPW_OP_GPU_SPILL, i, i, 1);
    put_handles(&a, 50, 1);
    cqe = call(&a, &sqe);
    ck_assert_int_eq(cqe.status, -EBUSY);
    ck_assert_uint_eq(cqe.detail, SPW_LIMIT_REQUESTS);
    begin_use(SPW_OP_GPU_FETCH, 1, 60, 1); /* the other direction */
    (void)end_use(IO_DMA_SPILL, 0);
    begin_use(SPW_OP_GPU_SPILL, GPU_LANE_AHEAD * SLOTS + 1, 50, 1);

    struct lane_spec spec = {.gpu = GPU, .slots = 1, .slot_bytes = 1, .fences = &fences};

    for (spec.lane = 100; spec.lane < 100 + SESSION_GPU_LANES_MAX - 1; spec.lane++)
        ck_assert_int_eq(requests_lane_add(rq, &a.peer, &spec), 0);
    ck_assert_int_eq(requests_lane_add(rq, &a.peer, &spec), -ENOSPC);
    spec.lane = LANE;
    ck_assert_int_eq(requests_lane_add(rq, &a.peer, &spec), -EEXIST);
    while (spec.lane++ < 100 + SESSION_GPU_LANES_MAX)
        if (spec.lane >= 100)
            ck_assert(requests_lane_remove(rq, &a.peer, spec.lane, &spec));
}
END_TEST

START_TEST(test_failure_ends_the_lane)
{
    struct spw_sqe sqe = gpu_sqe(SPW_OP_GPU_FETCH, 1, 1);
    struct spw_cqe cqe;

    begin_use(SPW_OP_GPU_SPILL, 1, 1, 1);
    begin_use(SPW_OP_GPU_SPILL, 2, 2, 1);
    cqe = end_use(IO_DMA_SPILL, -EIO);
    ck_assert_int_eq(cqe.status, -EIO);
    ck_assert_uint_eq(cqe.detail, SPW_LIMIT_GPU_FAILED);
    ck_assert_uint_eq(cqe.value, 0);
    put_handles(&a, 9, 1);
    ck_assert_int_eq(refused(&sqe), -EPIPE); /* both directions */
    sqe = gpu_sqe(SPW_OP_GPU_SPILL, 3, 1);
    ck_assert_int_eq(refused(&sqe), -EPIPE);
    ck_assert_int_eq(end_use(IO_DMA_SPILL, -EPIPE).status, -EPIPE);
    ck_assert_uint_eq(fences.spill.daemon_seq, 0); /* the helper's to write */
}
END_TEST

START_TEST(test_cancel)
{
    struct spw_sqe sqe = {.opcode = SPW_OP_CANCEL, .user_data = 77, .arg = {2}},
                   spill = gpu_sqe(SPW_OP_GPU_SPILL, 2, 1);

    begin_use(SPW_OP_GPU_SPILL, 1, 1, 1);
    begin_use(SPW_OP_GPU_FETCH, 1, 2, 1);
    ck_assert_int_eq(status_of(&a, &sqe), 0);
    ck_assert_uint_eq(stub.n_dmas, 3);
    ck_assert_uint_eq(stub.dmas[2]->io_.op, IO_DMA_CANCEL);
    ck_assert_uint_eq(stub.dmas[2]->io_.lane, LANE);
    ck_assert_int_eq(status_of(&a, &sqe), 0); /* once is enough */
    ck_assert_uint_eq(stub.n_dmas, 3);
    put_handles(&a, 9, 1);
    ck_assert_int_eq(refused(&spill), -EPIPE);
    ck_assert_int_eq(end_use(IO_DMA_SPILL, -ECANCELED).status, -ECANCELED);
    ck_assert_int_eq(end_use(IO_DMA_FETCH, -ECANCELED).status, -ECANCELED);
    stub_dma_finish(IO_DMA_CANCEL, 0);
    ck_assert_int_eq(status_of(&a, &sqe), -ENOENT);
}
END_TEST

/* In the moment between its end and its CQE. */
START_TEST(test_cancel_too_late)
{
    struct spw_sqe sqe = {.opcode = SPW_OP_CANCEL, .user_data = 77, .arg = {2}};
    struct spw_cqe cqe;

    begin_use(SPW_OP_GPU_SPILL, 1, 1, 1);
    submit(&a, &sqe);
    stub_dma_finish(IO_DMA_SPILL, 0);
    turns(2);
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, 0);
    ck_assert_uint_eq(cqe.value, 100);
    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, -ENOENT);
    ck_assert_uint_eq(stub.n_dmas, 0);
}
END_TEST

START_TEST(test_gpu_gone)
{
    struct spw_gpu_fences other = {0};
    struct spw_sqe sqe = gpu_sqe(SPW_OP_GPU_SPILL, 2, 1);
    struct lane_spec spec = {.lane = 41, .gpu = GPU + 1, .slots = 1, .slot_bytes = 1, .fences = &other};

    ck_assert_int_eq(requests_lane_add(rq, &a.peer, &spec), 0);
    begin_use(SPW_OP_GPU_SPILL, 1, 1, 1);
    fences.fetch.status = ETIMEDOUT; /* so far had the helper come */
    stub_dma_finish(IO_DMA_SPILL, -EIO);
    requests_gpu_gone(rq, GPU);
    ck_assert_uint_eq(fences.spill.status, EIO);
    ck_assert_uint_eq(fences.fetch.status, ETIMEDOUT);
    ck_assert_uint_eq(fences.spill.daemon_seq, SPW_GPU_SEQ_OVER);
    ck_assert_uint_eq(fences.fetch.daemon_seq, SPW_GPU_SEQ_OVER);
    ck_assert_uint_eq(other.spill.daemon_seq, 0);
    turns(1);
    struct spw_cqe cqe;

    ck_assert(consume(&a, &cqe));
    ck_assert_int_eq(cqe.status, -EIO);
    put_handles(&a, 1, 1);
    ck_assert_int_eq(refused(&sqe), -EPIPE);
    ck_assert(requests_lane_remove(rq, &a.peer, 41, &other));
}
END_TEST

START_TEST(test_lane_goes_when_nothing_is_on_its_way)
{
    struct spw_sqe sqe = gpu_sqe(SPW_OP_GPU_SPILL, 2, 1);
    int removal;

    ck_assert(requests_lane_remove(rq, &a.peer, LANE + 1, &removal)); /* there is none */
    begin_use(SPW_OP_GPU_SPILL, 1, 1, 1);
    ck_assert(!requests_lane_remove(rq, &a.peer, LANE, &removal));
    put_handles(&a, 2, 1);
    ck_assert_int_eq(refused(&sqe), -EBADF);
    stub_dma_finish(IO_DMA_CANCEL, 0);
    turns(1);
    ck_assert_ptr_null(lane_removed);
    ck_assert_int_eq(end_use(IO_DMA_SPILL, -ECANCELED).status, -ECANCELED);
    ck_assert_ptr_eq(lane_removed, &removal);
    memset(&fences, 0, sizeof(fences));
    lane_add(&a, LANE, &fences); /* a new one, from the beginning */
    begin_use(SPW_OP_GPU_SPILL, 1, 1, 1);
    (void)end_use(IO_DMA_SPILL, 0);
}
END_TEST

/* The ring goes first: the use is cancelled, and its end still counts. */
START_TEST(test_ring_goes)
{
    begin_use(SPW_OP_GPU_SPILL, 1, 1, 1);
    requests_ring_remove(rq, &a.ring);
    ck_assert_uint_eq(stub.n_dmas, 2);
    ck_assert_uint_eq(stub.dmas[1]->io_.op, IO_DMA_CANCEL);
    ck_assert(!requests_is_idle(rq));
    stub_dma_finish(IO_DMA_CANCEL, 0);
    stub_dma_finish(IO_DMA_SPILL, -ECANCELED);
    turns(1);
    ck_assert(requests_is_idle(rq));
    ck_assert(requests_lane_remove(rq, &a.peer, LANE, &fences));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("request_gpu");
    TCase *tc = tcase_create("gpu");

    tcase_add_checked_fixture(tc, gpu_setup, gpu_teardown);
    tcase_add_test(tc, test_use);
    tcase_add_test(tc, test_direct);
    tcase_add_test(tc, test_mistakes);
    tcase_add_test(tc, test_bad_handles);
    tcase_add_loop_test(tc, test_reserved, 0, 3);
    tcase_add_test(tc, test_other_sessions_lane);
    tcase_add_test(tc, test_too_many);
    tcase_add_test(tc, test_failure_ends_the_lane);
    tcase_add_test(tc, test_cancel);
    tcase_add_test(tc, test_cancel_too_late);
    tcase_add_test(tc, test_gpu_gone);
    tcase_add_test(tc, test_lane_goes_when_nothing_is_on_its_way);
    tcase_add_test(tc, test_ring_goes);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
