/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clients without manners at a lane: wrong fences, slots out of turn, lengths and leases that cannot be, lanes of others,
 * GPUs that are not there. After each another client spills and fetches the right bytes, and nothing is left: no lease, no
 * lane, no byte of the pool's budget. On the fake driver.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>

#include "tests/system/support/hostile.h"

/* The lane is over, and says so to whoever waits. */
static void lane_is_over(const struct hostile *h, int status)
{
    const struct spw_gpu_fence *both[] = {&h->fences->spill, &h->fences->fetch};

    for (size_t i = 0; i < ARRAY_LEN(both); i++) {
        ck_assert_uint_eq(load_acquire(&both[i]->daemon_seq), SPW_GPU_SEQ_OVER);
        ck_assert_uint_eq(load_relaxed(&both[i]->status), (uint64_t)-status);
    }
}

/* --- Fences ---------------------------------------------------------------------------------------------------------- */

/* What it says before it has said anything: too early is its own loss, and what says nothing of use is not yet. */
START_TEST(a_fence_that_lies)
{
    static const struct {
        uint64_t client_seq;
        int status;
    } lies[] = {
        {1, 0},         {UINT64_MAX, 0}, {SPW_GPU_SEQ_OVER, 0}, {SPW_GPU_SEQ_OVER + 1, 0}, {UINT64_C(1) << 63, 0},
        {0, -ETIMEDOUT}};
    struct hostile h;

    hostile_begin();
    hostile_session(&h, 2);
    for (size_t i = 0; i < ARRAY_LEN(lies); i++) {
        hostile_attach(&h);
        uint64_t lease = hostile_lease(&h, SPW_OP_RESERVE, 10 + i, 10000);

        store_release(&h.fences->spill.client_seq, lies[i].client_seq);
        struct spw_sqe sqe = hostile_use_sqe(&h, SPW_OP_GPU_SPILL, 1, &lease, 1,
                                             lies[i].status < 0 ? HOSTILE_SHORT_MS : HOSTILE_LONG_MS);
        ck_assert_int_eq(raw_call(&h.s.ring, &sqe).status, lies[i].status);
        if (lies[i].status < 0)
            lane_is_over(&h, lies[i].status);
        else
            ck_assert_uint_eq(load_acquire(&h.fences->spill.daemon_seq), 1);
        others_are_served();
        ck_assert_int_eq(hostile_lease_end(&h, SPW_OP_ABORT, lease), 0);
        ck_assert_int_eq(hostile_detach_try(&h, h.lane.lane), 0);
        hostile_lane_unmap(&h);
    }
    nothing_is_left();
    hostile_close(&h);
    hostile_finish();
}
END_TEST

START_TEST(a_fence_that_goes_back)
{
    struct hostile h;

    hostile_begin();
    hostile_open(&h, 2);
    uint64_t lease = hostile_lease(&h, SPW_OP_RESERVE, 10, 10000);
    store_release(&h.fences->spill.client_seq, UINT64_C(1));
    ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_SPILL, 1, &lease, 1), 0);
    store_release(&h.fences->spill.client_seq, UINT64_C(0));
    store_release(&h.fences->spill.daemon_seq, UINT64_C(77)); /* what the daemon says is not read back */
    hostile_use_begin(&h, SPW_OP_GPU_SPILL, 2, lease);
    store_release(&h.fences->spill.client_seq, UINT64_C(1)); /* still not 2 */
    struct spw_cqe cqe;
    ck_assert(!raw_wait(&h.s.ring, &cqe, 50));
    store_release(&h.fences->spill.client_seq, UINT64_C(2));
    ck_assert_int_eq(hostile_use_end(&h), 0);
    ck_assert_uint_eq(load_acquire(&h.fences->spill.daemon_seq), 2);
    hostile_close(&h);
    hostile_finish();
}
END_TEST

/* Every word of the page, those that are the daemon's too, again and again while uses are on their way. */
START_TEST(a_page_of_garbage)
{
    struct hostile h;

    hostile_begin();
    hostile_session(&h, 2);
    for (unsigned i = 0; i < 8; i++) {
        static const uint8_t fills[] = {0xff, 0xa5, 0x00, 0x40};
        bool is_fetch = i & 1;

        hostile_attach(&h);
        ck_assert_int_eq(raw_put(&h.s, 100 + i, 10000, 0x11), 0);
        uint64_t lease = hostile_lease(&h, is_fetch ? SPW_OP_ACQUIRE : SPW_OP_RESERVE, is_fetch ? 100 + i : 200 + i,
                                       is_fetch ? 0 : 10000);
        struct spw_sqe sqe =
            hostile_use_sqe(&h, is_fetch ? SPW_OP_GPU_FETCH : SPW_OP_GPU_SPILL, 1, &lease, 1, HOSTILE_SHORT_MS);
        struct spw_cqe cqe = {0};
        bool ended = false;

        store_relaxed(&hostile_role()->dma_delay_us, 2000);
        memset(h.fences, fills[i % 4], 4096);
        raw_submit(&h.s.ring, &sqe);
        for (int64_t end = clock_ms() + HOSTILE_LONG_MS; !ended && clock_ms() < end;) {
            memset(h.fences, fills[(i + 1) % 4], 4096);
            memset(h.fences, fills[i % 4], 4096);
            ended = raw_wait(&h.s.ring, &cqe, 1);
        }
        store_relaxed(&hostile_role()->dma_delay_us, 0);
        ck_assert_msg(ended, "a use never ends");
        ck_assert_msg(cqe.status == 0 || cqe.status == -ETIMEDOUT, "%d", cqe.status);
        ck_assert_int_eq(hostile_lease_end(&h, is_fetch ? SPW_OP_RELEASE : SPW_OP_ABORT, lease), 0);
        ck_assert_int_eq(raw_get(&h.s, 100 + i, 10000, 0x11), 0);
        ck_assert_int_eq(hostile_detach_try(&h, h.lane.lane), 0);
        hostile_lane_unmap(&h);
    }
    hostile_close(&h);
    hostile_finish();
}
END_TEST

/* Who may write a memfd can take its pages away, but never make it smaller. */
START_TEST(a_page_that_goes)
{
    struct hostile h;

    hostile_begin();
    hostile_open(&h, 2);
    uint64_t lease = hostile_lease(&h, SPW_OP_RESERVE, 10, 10000);
    ck_assert_int_lt(ftruncate(h.fences_fd, 0), 0);
    hostile_use_begin(&h, SPW_OP_GPU_SPILL, 1, lease);
    ck_assert_int_eq(fallocate(h.fences_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
    struct spw_cqe cqe;
    ck_assert(!raw_wait(&h.s.ring, &cqe, 20));
    store_release(&h.fences->spill.client_seq, UINT64_C(1));
    ck_assert_int_eq(hostile_use_end(&h), 0);
    ck_assert_int_eq(fallocate(h.fences_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
    hostile_close(&h);
    hostile_finish();
}
END_TEST

/* --- Uses that cannot be --------------------------------------------------------------------------------------------- */

START_TEST(slots_out_of_turn)
{
    static const uint64_t wrong[] = {0, 2, 3, UINT32_MAX, UINT64_C(1) << 32 | 1, SPW_GPU_SEQ_OVER, UINT64_MAX};
    struct hostile h;

    hostile_begin();
    hostile_open(&h, 2);
    ck_assert_int_eq(raw_put(&h.s, 5, 10000, 0x22), 0);
    uint64_t reserved = hostile_lease(&h, SPW_OP_RESERVE, 10, 10000), held = hostile_lease(&h, SPW_OP_ACQUIRE, 5, 0);
    memset(h.fences, 0xff, 64); /* would let anything go */
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_SPILL, wrong[i], &reserved, 1), -EINVAL);
        ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_FETCH, wrong[i], &held, 1), -EINVAL);
    }
    ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_SPILL, 1, &reserved, 1), 0); /* nothing had happened */
    ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_SPILL, 1, &reserved, 1), -EINVAL);
    ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_FETCH, 2, &held, 1), -EINVAL); /* each direction has its own */
    ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_FETCH, 1, &held, 1), 0);
    hostile_close(&h);
    hostile_finish();
}
END_TEST

START_TEST(more_uses_than_slots)
{
    struct hostile h;
    uint64_t leases[2 * HOSTILE_SLOTS + 1];
    struct spw_cqe cqe;

    hostile_begin();
    hostile_open(&h, 2);
    for (uint32_t i = 0; i < ARRAY_LEN(leases); i++)
        leases[i] = hostile_lease(&h, SPW_OP_RESERVE, 10 + i, 10000);
    for (uint32_t i = 0; i < 2 * HOSTILE_SLOTS; i++)
        hostile_use_begin(&h, SPW_OP_GPU_SPILL, i + 1, leases[i]);
    struct spw_sqe sqe =
        hostile_use_sqe(&h, SPW_OP_GPU_SPILL, 2 * HOSTILE_SLOTS + 1, &leases[2 * HOSTILE_SLOTS], 1, HOSTILE_LONG_MS);
    cqe = raw_call(&h.s.ring, &sqe);
    ck_assert_int_eq(cqe.status, -EBUSY);
    ck_assert_uint_eq(cqe.detail, SPW_LIMIT_REQUESTS);
    others_are_served(); /* though none of them is ever filled */
    hostile_close(&h);
    hostile_finish();
}
END_TEST

START_TEST(leases_that_are_not_his)
{
    struct hostile h, other;
    uint64_t two[2];

    hostile_begin();
    hostile_open(&h, 2);
    hostile_open(&other, 3);
    store_release(&h.fences->spill.client_seq, UINT64_MAX);
    ck_assert_int_eq(raw_put(&h.s, 5, 10000, 0x22), 0);
    uint64_t lease = hostile_lease(&h, SPW_OP_RESERVE, 10, 10000),
             foreign = hostile_lease(&other, SPW_OP_RESERVE, 10, 10000);
    uint64_t held = hostile_lease(&h, SPW_OP_ACQUIRE, 5, 0);
    static const uint64_t nonsense[] = {0, 1, UINT64_MAX, UINT64_C(1) << 32, UINT32_MAX};

    for (size_t i = 0; i < ARRAY_LEN(nonsense); i++) {
        two[0] = lease;
        two[1] = nonsense[i];
        ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_SPILL, 1, &nonsense[i], 1), -EBADF);
        ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_SPILL, 1, two, 2), -EBADF);
    }
    ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_SPILL, 1, &foreign, 1), -EBADF);
    ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_SPILL, 1, &held, 1), -EROFS);
    two[0] = two[1] = lease;
    ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_SPILL, 1, two, 2), -EBUSY);
    ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_SPILL, 1, &lease, 0), -EINVAL);
    ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_SPILL, 1, &lease, 1), 0); /* nothing of that has hurt it */
    ck_assert_int_eq(hostile_lease_end(&h, SPW_OP_COMMIT, lease), 0);
    ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_SPILL, 2, &lease, 1), -EBADF);
    ck_assert_int_eq(hostile_lease_end(&h, SPW_OP_RELEASE, held), 0);
    ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_FETCH, 1, &held, 1), -EBADF);
    hostile_close(&h);
    hostile_close(&other);
    hostile_finish();
}
END_TEST

/* What a copy engine reads or writes cannot be given back, nor to a second one, until it has ended. */
START_TEST(leases_that_are_under_way)
{
    struct hostile h;

    hostile_begin();
    hostile_open(&h, 2);
    ck_assert_int_eq(raw_put(&h.s, 5, 10000, 0x22), 0);
    uint64_t lease = hostile_lease(&h, SPW_OP_RESERVE, 10, 10000), held = hostile_lease(&h, SPW_OP_ACQUIRE, 5, 0);
    hostile_use_begin(&h, SPW_OP_GPU_SPILL, 1, lease);
    ck_assert_int_eq(hostile_lease_end(&h, SPW_OP_COMMIT, lease), -EBUSY);
    ck_assert_int_eq(hostile_lease_end(&h, SPW_OP_ABORT, lease), -EBUSY);
    ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_SPILL, 2, &lease, 1), -EBUSY);
    ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_FETCH, 1, &lease, 1), -EBUSY);
    for (uint64_t seq = 1; seq <= HOSTILE_SLOTS; seq++) { /* these slots are empty, */
        ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_FETCH, seq, &held, 1), 0);
        ck_assert_uint_eq(load_acquire(&h.fences->fetch.daemon_seq), seq);
    }
    hostile_use_begin(&h, SPW_OP_GPU_FETCH, HOSTILE_SLOTS + 1, held); /* and this one he never empties */
    ck_assert_int_eq(hostile_lease_end(&h, SPW_OP_RELEASE, held), -EBUSY);
    others_are_served();
    hostile_close(&h); /* both leases go with it */
    hostile_finish();
}
END_TEST

START_TEST(more_than_a_slot)
{
    struct hostile h;
    uint64_t leases[HOSTILE_SLOT_BYTES / MIB + 1];
    uint32_t n = ARRAY_LEN(leases);

    hostile_begin();
    hostile_open(&h, 2);
    store_release(&h.fences->spill.client_seq, UINT64_MAX);
    for (uint32_t i = 0; i < n; i++)
        leases[i] = hostile_lease(&h, SPW_OP_RESERVE, 10 + i, i + 1 < n ? MIB : 1);
    ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_SPILL, 1, leases, n), -EINVAL);
    ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_SPILL, 1, leases, n - 1), 0); /* exactly a slot's */
    hostile_close(&h);
    hostile_finish();
}
END_TEST

START_TEST(a_request_that_makes_no_sense)
{
    struct hostile h;

    hostile_begin();
    hostile_open(&h, 2);
    store_release(&h.fences->spill.client_seq, UINT64_MAX);
    uint64_t lease = hostile_lease(&h, SPW_OP_RESERVE, 10, 10000);
    struct spw_sqe sqe = hostile_use_sqe(&h, SPW_OP_GPU_SPILL, 1, &lease, 1, HOSTILE_LONG_MS);
    sqe.results = RAW_RESULTS;
    ck_assert_int_eq(raw_call(&h.s.ring, &sqe).status, -EINVAL);
    sqe = hostile_use_sqe(&h, SPW_OP_GPU_SPILL, 1, &lease, 1, HOSTILE_LONG_MS);
    sqe.flags = SPW_SQE_CHAIN;
    ck_assert_int_eq(raw_call(&h.s.ring, &sqe).status, -EINVAL);
    sqe = hostile_use_sqe(&h, SPW_OP_GPU_SPILL, 1, &lease, 1, HOSTILE_LONG_MS);
    sqe.items = UINT32_MAX - 15;
    ck_assert_int_lt(raw_call(&h.s.ring, &sqe).status, 0);
    sqe = hostile_use_sqe(&h, SPW_OP_GPU_SPILL, 1, &lease, 1, HOSTILE_LONG_MS);
    sqe.n_items = UINT32_MAX;
    ck_assert_int_lt(raw_call(&h.s.ring, &sqe).status, 0);
    ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_SPILL, 1, &lease, 1), 0);
    hostile_close(&h);
    hostile_finish();
}
END_TEST

/* Of a direct lane: past the end of its allocation, or round to its beginning; and any place in one that is not. */
START_TEST(places_that_are_not_his)
{
    struct hostile h;
    uint64_t alloc_bytes = 4 * MIB, bytes = 10000;
    const uint64_t wrong[] = {alloc_bytes - bytes + 1, alloc_bytes,       UINT64_MAX,
                              UINT64_MAX - bytes + 1,  UINT64_C(1) << 32, UINT64_C(1) << 63};

    hostile_begin();
    hostile_session(&h, 2);
    struct spw_msg_gpu_attach ask = hostile_attach_message(&h);
    for (int is_direct = 0; is_direct < 2; is_direct++) {
        ask.alloc_bytes = is_direct ? alloc_bytes : 0;
        ck_assert_int_eq(hostile_attach_try(&h, ask, NULL), 0);
        hostile_lane_map(&h);
        uint64_t lease = hostile_lease(&h, SPW_OP_RESERVE, 10, bytes);
        memset(h.fences, 0xff, 4096); /* would let anything go */
        for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
            struct spw_sqe sqe = hostile_use_sqe(&h, SPW_OP_GPU_SPILL, 1, &lease, 1, HOSTILE_LONG_MS);

            sqe.arg[2] = wrong[i];
            ck_assert_int_eq(raw_call(&h.s.ring, &sqe).status, -EINVAL);
            sqe = hostile_use_sqe(&h, SPW_OP_GPU_FETCH, 1, &lease, 1, HOSTILE_LONG_MS);
            sqe.arg[2] = wrong[i];
            ck_assert_int_eq(raw_call(&h.s.ring, &sqe).status, -EINVAL);
        }
        struct spw_sqe sqe = hostile_use_sqe(&h, SPW_OP_GPU_SPILL, 1, &lease, 1, HOSTILE_LONG_MS);
        sqe.arg[2] = is_direct ? alloc_bytes - bytes : 0;
        ck_assert_int_eq(raw_call(&h.s.ring, &sqe).status, 0);
        ck_assert_int_eq(hostile_lease_end(&h, SPW_OP_ABORT, lease), 0);
        others_are_served();
        ck_assert_int_eq(hostile_detach_try(&h, h.lane.lane), 0);
        hostile_lane_unmap(&h);
    }
    hostile_close(&h);
    hostile_finish();
}
END_TEST

/* --- Lanes and GPUs -------------------------------------------------------------------------------------------------- */

START_TEST(lanes_that_are_not_his)
{
    struct hostile h, other;

    hostile_begin();
    hostile_open(&h, 2);
    hostile_open(&other, 3);
    ck_assert_uint_ne(h.lane.lane, other.lane.lane);
    store_release(&other.fences->spill.client_seq, UINT64_MAX);
    store_release(&h.fences->spill.client_seq, UINT64_MAX);
    ck_assert_int_eq(raw_put(&h.s, 5, 10000, 0x22), 0);
    uint64_t lease = hostile_lease(&h, SPW_OP_RESERVE, 10, 10000), held = hostile_lease(&h, SPW_OP_ACQUIRE, 5, 0);
    uint32_t own = h.lane.lane;
    const uint32_t wrong[] = {other.lane.lane, 0, 1023, 1024, UINT32_MAX};

    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        if (wrong[i] == own)
            continue;
        h.lane.lane = wrong[i];
        ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_SPILL, 1, &lease, 1), -EBADF);
        ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_FETCH, 1, &held, 1), -EBADF);
        ck_assert_int_eq(hostile_detach_try(&h, wrong[i]), -EBADF);
    }
    struct spw_sqe sqe = hostile_use_sqe(&h, SPW_OP_GPU_SPILL, 1, &lease, 1, HOSTILE_LONG_MS);
    sqe.arg[0] = UINT64_C(1) << 32 | own;
    ck_assert_int_eq(raw_call(&h.s.ring, &sqe).status, -EBADF);
    h.lane.lane = own;
    ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_SPILL, 1, &lease, 1), 0);
    ck_assert_int_eq(hostile_detach_try(&h, own), 0);
    ck_assert_int_eq(hostile_detach_try(&h, own), -EBADF);
    ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_SPILL, 2, &lease, 1), -EBADF);
    uint64_t theirs = hostile_lease(&other, SPW_OP_RESERVE, 10, 10000);
    ck_assert_int_eq(hostile_use(&other, SPW_OP_GPU_SPILL, 1, &theirs, 1), 0);
    hostile_close(&h);
    hostile_close(&other);
    hostile_finish();
}
END_TEST

START_TEST(attachments_that_cannot_be)
{
    struct hostile h;
    struct spw_msg_gpu_attach ask;
    uint16_t detail = 0;

    hostile_begin();
    hostile_session(&h, 2);
    const struct spw_msg_gpu_attach good = hostile_attach_message(&h);
    ask = good;
    ask.pool += 7;
    ck_assert_int_eq(hostile_attach_try(&h, ask, NULL), -EBADF);
    ask = good;
    ask.engine = 1;
    ck_assert_int_eq(hostile_attach_try(&h, ask, NULL), -EINVAL);
    ask.engine = UINT32_MAX;
    ck_assert_int_eq(hostile_attach_try(&h, ask, NULL), -EINVAL);
    ask = good;
    ask.slots = 65;
    ck_assert_int_eq(hostile_attach_try(&h, ask, NULL), -EINVAL);
    ask.slots = UINT32_MAX;
    ck_assert_int_eq(hostile_attach_try(&h, ask, NULL), -EINVAL);
    ask = good;
    ask.slot_bytes = 4096;
    ck_assert_int_eq(hostile_attach_try(&h, ask, NULL), -EINVAL);
    ask.slot_bytes = UINT64_MAX;
    ck_assert_int_eq(hostile_attach_try(&h, ask, NULL), -EINVAL);
    ask = good;
    ask.alloc_bytes = UINT64_MAX;
    ck_assert_int_lt(hostile_attach_try(&h, ask, NULL), 0);
    ask.alloc_bytes = UINT64_MAX - 4 * MIB;
    ck_assert_int_lt(hostile_attach_try(&h, ask, NULL), 0);
    ask.alloc_bytes = GIB;
    ck_assert_int_eq(hostile_attach_try(&h, ask, &detail), -ENOSPC);
    ck_assert_uint_eq(detail, SPW_LIMIT_POOL_GPU);
    ask = good;
    ask.slots = 64;
    ask.slot_bytes = 64 * MIB;
    ck_assert_int_eq(hostile_attach_try(&h, ask, &detail), -ENOSPC);
    ck_assert_uint_eq(detail, SPW_LIMIT_POOL_GPU);
    ask = good;
    ask.slots = 1;
    uint32_t n = 0;
    int r = 0;
    for (; n < 64 && (r = hostile_attach_try(&h, ask, &detail)) == 0; n++)
        hostile_lane_unmap(&h);
    ck_assert_int_eq(r, -ENOSPC);
    ck_assert_uint_eq(detail, SPW_LIMIT_GPU_LANES);
    ck_assert_uint_eq(n, SESSION_GPU_LANES_MAX);
    others_are_served();
    ask.reserved[ARRAY_LEN(ask.reserved) - 1] = 1;
    ck_assert_int_eq(hostile_attach_try(&h, ask, NULL), -ENOTCONN);
    hostile_close(&h);
    nothing_is_left();
    hostile_session(&h, 2);
    ask = good;
    ask.reserved0 = 1;
    ck_assert_int_eq(hostile_attach_try(&h, ask, NULL), -ENOTCONN);
    hostile_close(&h);
    hostile_finish();
}
END_TEST

/* A helper is started for it, finds nothing, and says so; GPUs that are there are not forgotten for it. */
START_TEST(gpus_that_are_not_there)
{
    struct hostile h;

    hostile_begin();
    hostile_session(&h, 2);
    for (uint32_t i = 0; i < 3; i++) {
        struct spw_msg_gpu_attach ask = hostile_attach_message(&h);
        int r = -EAGAIN;

        memset(ask.uuid, (int)(0xc0 + i), sizeof(ask.uuid));
        for (int64_t end = clock_ms() + HOSTILE_LONG_MS; r == -EAGAIN && clock_ms() < end; sleep_ms(5))
            r = hostile_attach_try(&h, ask, NULL);
        ck_assert_int_eq(r, -ENODEV);
    }
    hostile_close(&h);
    hostile_finish();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gpu_hostile");
    TCase *tc = tcase_create("hostile");

    if (getenv("SPILLWAY_TEST_GPU")) {
        fprintf(stderr, "SKIP: not for a real GPU\n");
        return 77;
    }
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, a_fence_that_lies);
    tcase_add_test(tc, a_fence_that_goes_back);
    tcase_add_test(tc, a_page_of_garbage);
    tcase_add_test(tc, a_page_that_goes);
    tcase_add_test(tc, slots_out_of_turn);
    tcase_add_test(tc, more_uses_than_slots);
    tcase_add_test(tc, leases_that_are_not_his);
    tcase_add_test(tc, leases_that_are_under_way);
    tcase_add_test(tc, more_than_a_slot);
    tcase_add_test(tc, a_request_that_makes_no_sense);
    tcase_add_test(tc, places_that_are_not_his);
    tcase_add_test(tc, lanes_that_are_not_his);
    tcase_add_test(tc, attachments_that_cannot_be);
    tcase_add_test(tc, gpus_that_are_not_there);
    suite_add_tcase(s, tc);
    return suite_main(s);
}
