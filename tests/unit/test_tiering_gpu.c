/* SPDX-License-Identifier: Apache-2.0 */
/* Leases whose bytes a GPU's copy engine reads or writes. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/support/tiering_rig.h"

#define LANE 1
#define SLOTS 2
#define SLOT_BYTES (2 * MIB)
#define SIZE RIG_PIECE

static struct rig rig;

struct dma {
    struct tiering_dma dma;
    int status; /* 1: not ended */
};

static void setup(void)
{
    rig_open(&rig, 16 * MIB, 64 * MIB);
    simdisk_lane_new(rig.disk, LANE, SLOTS, SLOT_BYTES);
}

static void teardown(void)
{
    rig_close(&rig);
}

static void done(struct tiering_dma *dma, int status)
{
    struct dma *d = container_of(dma, struct dma, dma);

    ck_assert_int_eq(d->status, 1);
    d->status = status;
}

static void begin(struct dma *d, uint8_t op, uint32_t pool, uint64_t seq)
{
    d->status = 1;
    d->dma.done = done;
    tiering_dma_begin(
        rig.t, &d->dma,
        &(struct tiering_dma_spec){.op = op, .lane = LANE, .pool = pool, .slot_bytes = SLOT_BYTES, .seq = seq});
}

static int add(struct dma *d, uint64_t lease)
{
    return tiering_dma_add(rig.t, &d->dma, &rig.s, lease);
}

static int wait_for(struct dma *d)
{
    for (int i = 0; d->status == 1 && i < 1000; i++)
        rig_turn(&rig, 1, 1000);
    return d->status;
}

/* One lease, one use. */
static int move(uint8_t op, uint32_t pool, uint64_t seq, uint64_t lease)
{
    struct dma d;

    begin(&d, op, pool, seq);
    int r = add(&d, lease);

    if (r < 0)
        return r;
    tiering_dma_run(rig.t, &d.dma);
    return wait_for(&d);
}

static uint64_t reserve(enum rig_space space, uint32_t key, uint32_t size)
{
    struct tiering_id id = rig_id(&rig, space, key);
    struct tiering_grant grant;

    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &id, size, size, &grant), 0);
    return grant.lease;
}

static uint64_t acquire(enum rig_space space, uint32_t key, unsigned flags)
{
    struct tiering_id id = rig_id(&rig, space, key);
    struct tiering_grant grant;

    ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, flags, &grant), 0);
    return grant.lease;
}

static uint8_t *slot(enum io_dma_op op, uint64_t seq)
{
    return simdisk_slot(rig.disk, LANE, op, seq);
}

static int get(enum rig_space space, uint32_t key, uint32_t seed)
{
    struct tiering_id id = rig_id(&rig, space, key);

    return rig_get(&rig, &id, seed);
}

/* --- There and back ---------------------------------------------------------------------------------------------- */

/* In a trusted pool, and in a shared one, where COMMIT copies. */
START_TEST(test_spill_and_fetch)
{
    enum rig_space space = _i ? RIG_SHARED : RIG_CACHE;
    uint32_t pool = _i ? 1 : 0;
    uint64_t leases[4];
    struct dma d;

    begin(&d, IO_DMA_SPILL, pool, 1);
    for (uint32_t i = 0; i < 4; i++) {
        leases[i] = reserve(space, i, 5000 + i); /* slots have no gaps, extents do */
        ck_assert_int_eq(add(&d, leases[i]), 0);
    }
    for (uint32_t i = 0, at = 0; i < 4; at += 5000 + i++)
        rig_fill(slot(IO_DMA_SPILL, 1) + at, 5000 + i, 100 + i);
    ck_assert_uint_eq(d.dma.io_.n_runs, 4);
    ck_assert_uint_eq(d.dma.bytes, 20006);
    tiering_dma_run(rig.t, &d.dma);
    ck_assert_int_eq(d.status, 1);
    ck_assert_int_eq(wait_for(&d), 0);
    for (uint32_t i = 0; i < 4; i++)
        ck_assert_int_eq(rig_commit(&rig, &rig.s, leases[i]), 0);
    for (uint32_t i = 0; i < 4; i++)
        ck_assert_int_eq(get(space, i, 100 + i), 0);

    begin(&d, IO_DMA_FETCH, pool, 1);
    for (uint32_t i = 0; i < 4; i++) { /* in any order */
        leases[i] = acquire(space, 3 - i, 0);
        ck_assert_int_eq(add(&d, leases[i]), 0);
    }
    tiering_dma_run(rig.t, &d.dma);
    ck_assert_int_eq(wait_for(&d), 0);
    for (uint32_t i = 0, at = 0; i < 4; at += 5003 - i++) {
        ck_assert(rig_is(slot(IO_DMA_FETCH, 1) + at, 5003 - i, 103 - i));
        ck_assert_int_eq(rig_release(&rig, &rig.s, leases[i], 0), 0);
    }
    ck_assert_uint_eq(rig_pool_stat(&rig, pool).gpu_spilled_bytes, 20006);
    ck_assert_uint_eq(rig_pool_stat(&rig, pool).gpu_fetched_bytes, 20006);
}
END_TEST

/* To and from an allocation: the bytes lie where the client says. */
START_TEST(test_direct)
{
    enum { LEN = 5000, ALLOC = 1 * MIB };
    uint64_t leases[2];
    struct dma d;

    simdisk_lane_new(rig.disk, LANE, 1, ALLOC);
    for (uint32_t i = 0; i < 2; i++) {
        d.status = 1;
        d.dma.done = done;
        tiering_dma_begin(rig.t, &d.dma,
                          &(struct tiering_dma_spec){.op = i ? IO_DMA_FETCH : IO_DMA_SPILL,
                                                     .lane = LANE,
                                                     .slot_bytes = 2 * LEN,
                                                     .base_bytes = i ? 48 : ALLOC - 2 * LEN,
                                                     .seq = 1});
        ck_assert_uint_eq(d.dma.io_.base_bytes, i ? 48 : ALLOC - 2 * LEN);
        for (uint32_t k = 0; k < 2; k++) {
            leases[k] = i ? acquire(RIG_CACHE, k, 0) : reserve(RIG_CACHE, k, LEN);
            ck_assert_int_eq(add(&d, leases[k]), 0);
            if (!i)
                rig_fill(slot(IO_DMA_SPILL, 1) + ALLOC - (2 - k) * LEN, LEN, 100 + k);
        }
        tiering_dma_run(rig.t, &d.dma);
        ck_assert_int_eq(wait_for(&d), 0);
        for (uint32_t k = 0; k < 2; k++)
            ck_assert_int_eq(i ? rig_release(&rig, &rig.s, leases[k], 0) : rig_commit(&rig, &rig.s, leases[k]), 0);
    }
    for (uint32_t k = 0; k < 2; k++) {
        ck_assert_int_eq(get(RIG_CACHE, k, 100 + k), 0);
        ck_assert(rig_is(slot(IO_DMA_FETCH, 1) + 48 + k * LEN, LEN, 100 + k));
    }
}
END_TEST

/* Extents of whole sectors that lie side by side are one run; in another order they are not. */
START_TEST(test_neighbours)
{
    struct tiering_id id;
    struct tiering_grant grants[4];
    struct io_dma_run run;
    struct dma d;

    for (uint32_t i = 0; i < 4; i++) {
        id = rig_id(&rig, RIG_CACHE, i);
        ck_assert_int_eq(rig_reserve(&rig, &rig.s, &id, 8192, 8192, &grants[i]), 0);
        ck_assert_uint_eq(grants[i].offset_bytes, grants[0].offset_bytes + UINT64_C(8192) * i);
    }
    begin(&d, IO_DMA_SPILL, 0, 1);
    for (uint32_t i = 0; i < 4; i++)
        ck_assert_int_eq(add(&d, grants[i].lease), 0);
    ck_assert_uint_eq(d.dma.io_.n_runs, 1);
    for (int again = 0; again < 2; again++) {
        d.dma.io_.run_first(&d.dma.io_);
        d.dma.io_.run_next(&d.dma.io_, &run);
        ck_assert_uint_eq(run.region, grants[0].region);
        ck_assert_uint_eq(run.epoch, grants[0].epoch);
        ck_assert_uint_eq(run.off_bytes, grants[0].offset_bytes);
        ck_assert_uint_eq(run.len_bytes, 4 * 8192);
    }
    tiering_dma_abandon(rig.t, &d.dma);

    static const uint32_t order[] = {2, 3, 1, 0};
    static const uint32_t first[] = {2, 1, 0}, len[] = {2 * 8192, 8192, 8192};

    begin(&d, IO_DMA_SPILL, 0, 1);
    for (uint32_t i = 0; i < 4; i++)
        ck_assert_int_eq(add(&d, grants[order[i]].lease), 0);
    ck_assert_uint_eq(d.dma.io_.n_runs, 3);
    d.dma.io_.run_first(&d.dma.io_);
    for (uint32_t i = 0; i < 3; i++) {
        d.dma.io_.run_next(&d.dma.io_, &run);
        ck_assert_uint_eq(run.off_bytes, grants[first[i]].offset_bytes);
        ck_assert_uint_eq(run.len_bytes, len[i]);
    }
    tiering_dma_abandon(rig.t, &d.dma);
}
END_TEST

/* --- What is refused --------------------------------------------------------------------------------------------- */

START_TEST(test_refused)
{
    struct tiering_id id = rig_id(&rig, RIG_CACHE, 1);
    uint64_t lease, shared, big[8], stale;
    struct dma d, second;

    ck_assert_int_eq(rig_put(&rig, &id, SIZE, 1), 0);
    lease = acquire(RIG_CACHE, 1, 0);
    shared = reserve(RIG_SHARED, 1, 4096);
    stale = acquire(RIG_CACHE, 1, 0);
    ck_assert_int_eq(rig_release(&rig, &rig.s, stale, 0), 0);
    begin(&d, IO_DMA_SPILL, 0, 1);
    ck_assert_int_eq(add(&d, lease), -EROFS);
    ck_assert_int_eq(add(&d, shared), -EXDEV);
    ck_assert_int_eq(add(&d, stale), -EBADF);
    ck_assert_int_eq(add(&d, 0), -EBADF);
    ck_assert_int_eq(tiering_dma_add(rig.t, &d.dma, &rig.other, lease), -EBADF);
    for (uint32_t i = 0; i < 8; i++) {
        big[i] = reserve(RIG_CACHE, 10 + i, SIZE);
        ck_assert_int_eq(add(&d, big[i]), 0); /* a slot of 8 pieces */
    }
    uint64_t more = reserve(RIG_CACHE, 20, 1);

    ck_assert_int_eq(add(&d, more), -EINVAL);
    ck_assert_int_eq(add(&d, big[3]), -EBUSY);
    begin(&second, IO_DMA_FETCH, 0, 1);
    ck_assert_int_eq(add(&second, big[3]), -EBUSY);
    ck_assert_int_eq(rig_commit(&rig, &rig.s, big[3]), -EBUSY);
    ck_assert_int_eq(tiering_abort(rig.t, &rig.s, big[3]), -EBUSY);
    ck_assert_uint_eq(d.dma.n_leases, 8);
    tiering_dma_abandon(rig.t, &d.dma); /* as if nothing had been */
    ck_assert_int_eq(add(&second, big[3]), 0);
    ck_assert_int_eq(add(&second, lease), 0);
    tiering_dma_run(rig.t, &second.dma);
    ck_assert_int_eq(rig_release(&rig, &rig.s, lease, 0), -EBUSY);
    ck_assert_int_eq(wait_for(&second), 0);
    ck_assert_int_eq(rig_release(&rig, &rig.s, lease, 0), 0);
    ck_assert_int_eq(rig_commit(&rig, &rig.s, big[3]), 0);
}
END_TEST

/* --- Tensors ----------------------------------------------------------------------------------------------------- */

static struct tiering_id tensor(enum rig_space space, uint32_t seed)
{
    struct tiering_id id = rig_id(&rig, space, 50);

    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &id, SIZE), 0);
    ck_assert_int_eq(rig_write(&rig, &id, seed), 0);
    return id;
}

/* What a spill wrote is dirty, whatever RELEASE says; _i: how it says it. */
START_TEST(test_tensor_is_dirty)
{
    (void)tensor(RIG_DURABLE, 1);
    struct tiering_id id = rig_id(&rig, RIG_DURABLE, 50);

    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, &id, 1), 0);
    uint64_t lease = acquire(RIG_DURABLE, 50, TIERING_WRITE);

    rig_fill(slot(IO_DMA_SPILL, 1), SIZE, 2);
    ck_assert_int_eq(move(IO_DMA_SPILL, 0, 1, lease), 0);
    ck_assert_int_eq(rig_release(&rig, &rig.s, lease, _i ? TIERING_DIRTY : 0), 0);
    ck_assert_int_eq(get(RIG_DURABLE, 50, 2), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, &id, 1), 0);
    rig_crash(&rig, true);
    simdisk_lane_new(rig.disk, LANE, SLOTS, SLOT_BYTES);
    ck_assert_int_eq(get(RIG_DURABLE, 50, 2), 0); /* the SYNC has seen it */
}
END_TEST

START_TEST(test_tensor_is_discarded)
{
    struct tiering_id id = tensor(RIG_DURABLE, 1);

    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, &id, 1), 0);
    uint64_t lease = acquire(RIG_DURABLE, 50, TIERING_WRITE);

    rig_fill(slot(IO_DMA_SPILL, 1), SIZE, 2);
    simdisk_fail_next_dma(rig.disk, _i ? -EIO : 0);
    ck_assert_int_eq(move(IO_DMA_SPILL, 0, 1, lease), _i ? -EIO : 0);
    ck_assert_int_eq(rig_release(&rig, &rig.s, lease, TIERING_DISCARD), 0);
    ck_assert_int_eq(get(RIG_DURABLE, 50, 1), 0);
}
END_TEST

START_TEST(test_tensor_is_torn)
{
    struct tiering_id id = tensor(RIG_SCRATCH, 1);
    uint64_t lease = acquire(RIG_SCRATCH, 50, TIERING_WRITE);

    simdisk_fail_next_dma(rig.disk, -EIO);
    ck_assert_int_eq(move(IO_DMA_SPILL, 0, 1, lease), -EIO);
    ck_assert_int_eq(move(IO_DMA_SPILL, 0, 2, lease), -EPIPE); /* the lane is over */
    ck_assert_int_eq(rig_release(&rig, &rig.s, lease, _i ? TIERING_DIRTY : 0), 0);
    ck_assert_int_eq(get(RIG_SCRATCH, 50, 1), -EBADMSG);
    ck_assert_int_eq(rig_write(&rig, &id, 3), 0); /* all of it */
    ck_assert_int_eq(get(RIG_SCRATCH, 50, 3), 0);

    /* Another spill mends it. */
    lease = acquire(RIG_SCRATCH, 50, TIERING_WRITE);
    simdisk_lane_new(rig.disk, LANE, SLOTS, SLOT_BYTES);
    simdisk_fail_next_dma(rig.disk, -ETIMEDOUT);
    ck_assert_int_eq(move(IO_DMA_SPILL, 0, 1, lease), -ETIMEDOUT);
    simdisk_lane_new(rig.disk, LANE, SLOTS, SLOT_BYTES);
    rig_fill(slot(IO_DMA_SPILL, 1), SIZE, 4);
    ck_assert_int_eq(move(IO_DMA_SPILL, 0, 1, lease), 0);
    ck_assert_int_eq(rig_release(&rig, &rig.s, lease, 0), 0);
    ck_assert_int_eq(get(RIG_SCRATCH, 50, 4), 0);

    /* A fetch that fails tears nothing. */
    lease = acquire(RIG_SCRATCH, 50, TIERING_WRITE);
    simdisk_fail_next_dma(rig.disk, -EIO);
    ck_assert_int_eq(move(IO_DMA_FETCH, 0, 1, lease), -EIO);
    ck_assert_int_eq(rig_release(&rig, &rig.s, lease, 0), 0);
    ck_assert_int_eq(get(RIG_SCRATCH, 50, 4), 0);
}
END_TEST

/* In a shared pool a writer has a copy. */
START_TEST(test_shared_tensor)
{
    struct tiering_id id = tensor(RIG_SHARED, 1);
    uint64_t lease = acquire(RIG_SHARED, 50, TIERING_WRITE);

    (void)id;
    rig_fill(slot(IO_DMA_SPILL, 1), SIZE, 2);
    ck_assert_int_eq(move(IO_DMA_SPILL, 1, 1, lease), 0);
    ck_assert_int_eq(get(RIG_SHARED, 50, 1), 0);
    ck_assert_int_eq(rig_release(&rig, &rig.s, lease, TIERING_DIRTY), 0);
    ck_assert_int_eq(get(RIG_SHARED, 50, 2), 0);

    lease = acquire(RIG_SHARED, 50, TIERING_WRITE);
    rig_fill(slot(IO_DMA_SPILL, 2), SIZE, 3);
    ck_assert_int_eq(move(IO_DMA_SPILL, 1, 2, lease), 0);
    ck_assert_int_eq(rig_release(&rig, &rig.s, lease, 0), 0);
    ck_assert_int_eq(get(RIG_SHARED, 50, 2), 0);

    lease = acquire(RIG_SHARED, 50, TIERING_WRITE);
    simdisk_fail_next_dma(rig.disk, -EIO);
    ck_assert_int_eq(move(IO_DMA_SPILL, 1, 3, lease), -EIO);
    ck_assert_int_eq(rig_release(&rig, &rig.s, lease, TIERING_DIRTY), -EIO);
    ck_assert_int_eq(rig_release(&rig, &rig.s, lease, 0), -EBADF); /* it has ended */
    ck_assert_int_eq(get(RIG_SHARED, 50, 2), 0);
}
END_TEST

/* --- Ends meanwhile ---------------------------------------------------------------------------------------------- */

/* The session ends while a transfer has its leases: nothing of theirs is used again before the transfer has ended. */
START_TEST(test_session_ends)
{
    bool fails = _i & 1, shared = _i & 2;
    enum rig_space space = shared ? RIG_SHARED : RIG_CACHE, tensors = shared ? RIG_SHARED_DURABLE : RIG_DURABLE;
    uint32_t pool = shared ? 1 : 0;
    struct tiering_id block = rig_id(&rig, space, 1), ten = tensor(tensors, 1), fresh = rig_id(&rig, space, 2);
    struct tiering_stat stat;
    struct dma spill, fetch;

    ck_assert_int_eq(rig_sync(&rig, tensors, &ten, 1), 0);
    ck_assert_int_eq(rig_put(&rig, &block, SIZE, 7), 0);
    begin(&spill, IO_DMA_SPILL, pool, 1);
    ck_assert_int_eq(add(&spill, acquire(tensors, 50, TIERING_WRITE)), 0);
    ck_assert_int_eq(add(&spill, reserve(space, 2, SIZE)), 0);
    begin(&fetch, IO_DMA_FETCH, pool, 1);
    ck_assert_int_eq(add(&fetch, acquire(space, 1, 0)), 0);
    tiering_dma_run(rig.t, &spill.dma);
    tiering_dma_run(rig.t, &fetch.dma);
    rig_fill(slot(IO_DMA_SPILL, 1), 2 * SIZE, 9);
    tiering_session_end(rig.t, &rig.s);
    tiering_session_init(rig.t, &rig.s, 3, 3, 100);
    rig_check(&rig);
    ck_assert(!tiering_idle(rig.t));
    tiering_stat(rig.t, &stat);
    ck_assert_uint_eq(stat.leases, 3);
    ck_assert_uint_eq(rig_pool_stat(&rig, pool).leased, 3 * SIZE);
    ck_assert_uint_eq(rig_pool_stat(&rig, pool).admitted, 3 * SIZE);

    /* The reservation was never seen; its key is free, its bytes are not. */
    struct tiering_grant grant;

    ck_assert_int_eq(tiering_reserve(rig.t, &rig.s, &fresh, SIZE, SIZE, NULL, &grant), shared ? -EAGAIN : 0);
    if (!shared) {
        rig_fill(rig_memory(&rig, &grant), SIZE, 11);
        ck_assert_int_eq(tiering_commit(rig.t, &rig.s, grant.lease, NULL, &grant), 0);
    }
    ck_assert_int_eq(tiering_delete(rig.t, &block), 0); /* what is fetched may go, too */
    simdisk_fail_next_dma(rig.disk, fails ? -EIO : 0);
    (void)wait_for(&spill);
    (void)wait_for(&fetch);
    ck_assert_int_eq(spill.status < 0 || fetch.status < 0, fails);
    if (fetch.status == 0)
        ck_assert(rig_is(slot(IO_DMA_FETCH, 1), SIZE, 7));
    rig_settle(&rig);
    rig_check(&rig);
    tiering_stat(rig.t, &stat);
    ck_assert_uint_eq(stat.leases, 0);
    ck_assert_uint_eq(rig_pool_stat(&rig, pool).admitted, 0);
    ck_assert_int_eq(get(tensors, 50, 1), 0); /* back to what a SYNC wrote */
    if (!shared)
        ck_assert_int_eq(get(space, 2, 11), 0);
}
END_TEST

/* It cannot be taken back: nothing is on a device. */
START_TEST(test_session_ends_and_tears)
{
    struct tiering_id id = tensor(RIG_SCRATCH, 1);
    struct tiering_grant grant;
    struct dma d;

    begin(&d, IO_DMA_SPILL, 0, 1);
    ck_assert_int_eq(add(&d, acquire(RIG_SCRATCH, 50, TIERING_WRITE)), 0);
    tiering_dma_run(rig.t, &d.dma);
    tiering_session_end(rig.t, &rig.s);
    tiering_session_init(rig.t, &rig.s, 3, 1, 100);
    ck_assert_int_eq(tiering_acquire(rig.t, &rig.s, &id, 0, 0, 0, NULL, &grant), 0); /* as beside any writer */
    ck_assert_int_eq(rig_release(&rig, &rig.s, grant.lease, 0), 0);
    ck_assert_int_eq(wait_for(&d), 0);
    ck_assert_int_eq(get(RIG_SCRATCH, 50, 1), -EBADMSG);
}
END_TEST

/* Memory is short: what a transfer has is not evicted, moved or written to. */
START_TEST(test_stays_under_pressure)
{
    struct tiering_id id = rig_id(&rig, RIG_CACHE, 0);
    struct dma d;

    ck_assert_int_eq(rig_put(&rig, &id, SIZE, 1000), 0);
    begin(&d, IO_DMA_FETCH, 0, 1);
    ck_assert_int_eq(add(&d, acquire(RIG_CACHE, 0, 0)), 0);
    tiering_session_end(rig.t, &rig.s); /* not even without a session */
    tiering_session_init(rig.t, &rig.s, 3, 1, 100);
    for (uint32_t i = 1; i < 200; i++) {
        id = rig_id(&rig, RIG_CACHE, i);
        ck_assert_int_eq(rig_put(&rig, &id, SIZE, 1000 + i), 0);
    }
    ck_assert_uint_gt(rig_pool_stat(&rig, 0).evictions, 100);
    tiering_dma_run(rig.t, &d.dma);
    ck_assert_int_eq(wait_for(&d), 0);
    ck_assert(rig_is(slot(IO_DMA_FETCH, 1), SIZE, 1000));
}
END_TEST

START_TEST(test_cancel)
{
    uint64_t lease = reserve(RIG_CACHE, 1, SIZE);
    struct dma d, cancel;

    begin(&d, IO_DMA_SPILL, 0, 1);
    ck_assert_int_eq(add(&d, lease), 0);
    begin(&cancel, IO_DMA_CANCEL, 0, 0);
    tiering_dma_run(rig.t, &cancel.dma);
    ck_assert_int_eq(wait_for(&cancel), 0);
    tiering_dma_run(rig.t, &d.dma);
    ck_assert_int_eq(wait_for(&d), -ECANCELED);
    ck_assert_int_eq(tiering_abort(rig.t, &rig.s, lease), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tiering_gpu");
    TCase *tc = tcase_create("gpu");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, test_spill_and_fetch, 0, 2);
    tcase_add_test(tc, test_direct);
    tcase_add_test(tc, test_neighbours);
    tcase_add_test(tc, test_refused);
    tcase_add_loop_test(tc, test_tensor_is_dirty, 0, 2);
    tcase_add_loop_test(tc, test_tensor_is_discarded, 0, 2);
    tcase_add_loop_test(tc, test_tensor_is_torn, 0, 2);
    tcase_add_test(tc, test_shared_tensor);
    tcase_add_loop_test(tc, test_session_ends, 0, 4);
    tcase_add_test(tc, test_session_ends_and_tears);
    tcase_add_test(tc, test_stays_under_pressure);
    tcase_add_test(tc, test_cancel);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
