/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clients without manners at memory that the daemon hands out: places outside of it, sizes that cannot be, fences that lie.
 * Beside them somebody who has manners, and must not notice. On the fake driver.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "include/base/limits.h"
#include "tests/system/support/hostile.h"

#define ALLOC_BYTES (8 * MIB)
#define BYTES (64 * KIB)

static struct hostile h;

/* A session with a direct lane. */
static void direct_open(uint8_t digest)
{
    struct spw_msg_gpu_attach ask;

    hostile_session(&h, digest);
    ask = hostile_attach_message(&h);
    ask.alloc_bytes = ALLOC_BYTES - 1; /* rounded up */
    ck_assert_int_eq(hostile_attach_try(&h, ask, NULL), 0);
    ck_assert_uint_eq(h.lane.alloc_bytes, ALLOC_BYTES);
    ck_assert_uint_ge(h.lane.staging_bytes, ALLOC_BYTES);
    h.fences = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, h.fences_fd, 0);
    ck_assert_ptr_ne(h.fences, MAP_FAILED);
}

static int use_at(uint8_t opcode, uint64_t seq, uint64_t lease, uint64_t offset_bytes)
{
    struct spw_sqe sqe = hostile_use_sqe(&h, opcode, seq, &lease, 1, HOSTILE_LONG_MS);

    sqe.arg[2] = offset_bytes;
    return raw_call(&h.s.ring, &sqe).status;
}

/* Refused, the sequence stays, and the lane goes on. */
START_TEST(places_outside_of_it)
{
    static const uint64_t places[] = {ALLOC_BYTES - BYTES + 1, ALLOC_BYTES,       ALLOC_BYTES + 1,
                                      UINT64_C(1) << 32,       UINT64_C(1) << 63, UINT64_MAX - BYTES + 1,
                                      UINT64_MAX - BYTES,      UINT64_MAX};

    hostile_begin();
    direct_open(1);
    uint64_t lease = hostile_lease(&h, SPW_OP_RESERVE, 1, BYTES);
    for (size_t i = 0; i < ARRAY_LEN(places); i++) {
        ck_assert_int_eq(use_at(SPW_OP_GPU_SPILL, 1, lease, places[i]), -EINVAL);
        ck_assert_int_eq(use_at(SPW_OP_GPU_FETCH, 1, lease, places[i]), -EINVAL);
    }
    store_release(&h.fences->spill.client_seq, 1);
    store_release(&h.fences->fetch.client_seq, 1);
    ck_assert_int_eq(use_at(SPW_OP_GPU_SPILL, 1, lease, ALLOC_BYTES - BYTES), 0);
    ck_assert_int_eq(use_at(SPW_OP_GPU_FETCH, 1, lease, 1), 0);
    ck_assert_uint_eq(load_acquire(&h.fences->fetch.daemon_seq), 1);
    ck_assert_int_eq(hostile_lease_end(&h, SPW_OP_COMMIT, lease), 0);
    hostile_close(&h);
    hostile_finish();
}
END_TEST

/* Of a lane with slots there are no places. */
START_TEST(places_in_slots)
{
    hostile_begin();
    hostile_open(&h, 1);
    ck_assert_uint_eq(h.lane.alloc_bytes, 0);
    uint64_t lease = hostile_lease(&h, SPW_OP_RESERVE, 1, BYTES);
    ck_assert_int_eq(use_at(SPW_OP_GPU_SPILL, 1, lease, 1), -EINVAL);
    ck_assert_int_eq(use_at(SPW_OP_GPU_SPILL, 1, lease, UINT64_MAX), -EINVAL);
    store_release(&h.fences->spill.client_seq, 1);
    ck_assert_int_eq(use_at(SPW_OP_GPU_SPILL, 1, lease, 0), 0);
    hostile_close(&h);
    hostile_finish();
}
END_TEST

START_TEST(sizes_that_cannot_be)
{
    struct spw_msg_gpu_attach ask;
    uint16_t detail;

    hostile_begin();
    hostile_session(&h, 1);
    ask = hostile_attach_message(&h);
    ask.alloc_bytes = UINT64_MAX;
    ck_assert_int_eq(hostile_attach_try(&h, ask, NULL), -EINVAL);
    ask.alloc_bytes = UINT64_MAX - 2 * MIB + 2; /* 0 if it were rounded up */
    ck_assert_int_eq(hostile_attach_try(&h, ask, NULL), -EINVAL);
    ask.alloc_bytes = GPU_ALLOC_BYTES_MAX + 1;
    ck_assert_int_eq(hostile_attach_try(&h, ask, NULL), -EINVAL);
    ask.alloc_bytes = GPU_ALLOC_BYTES_MAX;
    ck_assert_int_eq(hostile_attach_try(&h, ask, &detail), -ENOSPC);
    ck_assert_uint_eq(detail, SPW_LIMIT_POOL_GPU);
    ask.alloc_bytes = ALLOC_BYTES;
    ask.slot_bytes = GPU_SLOT_BYTES_MAX + 1;
    ck_assert_int_eq(hostile_attach_try(&h, ask, NULL), -EINVAL);
    ask.slot_bytes = 0;
    ask.reserved[_i] = 1;
    ck_assert_int_eq(hostile_attach_try(&h, ask, NULL), -ENOTCONN);
    hostile_close(&h);
    hostile_finish();
}
END_TEST

/* Whatever they say, it is about when; and a use whose source never comes ends with its time, and the lane with it. */
START_TEST(fences_that_lie)
{
    static const uint64_t words[] = {UINT64_MAX, 0, SPW_GPU_SEQ_OVER, UINT64_C(1) << 63, 7};
    struct spw_cqe cqe;

    hostile_begin();
    direct_open(1);
    uint64_t lease = hostile_lease(&h, SPW_OP_RESERVE, 1, BYTES);
    for (uint64_t seq = 1; seq <= 50; seq++) {
        struct spw_sqe sqe = hostile_use_sqe(&h, seq % 2 ? SPW_OP_GPU_SPILL : SPW_OP_GPU_FETCH, (seq + 1) / 2, &lease,
                                             1, HOSTILE_LONG_MS);
        uint64_t word = words[seq % ARRAY_LEN(words)];

        sqe.arg[2] = seq * BYTES;
        store_release(&h.fences->spill.client_seq, word);
        store_release(&h.fences->fetch.client_seq, word);
        store_release(&h.fences->spill.daemon_seq, word);
        store_release(&h.fences->fetch.status, word);
        raw_submit(&h.s.ring, &sqe);
        store_release(&h.fences->spill.client_seq, UINT64_MAX);
        store_release(&h.fences->fetch.client_seq, UINT64_MAX);
        ck_assert(raw_wait(&h.s.ring, &cqe, HOSTILE_LONG_MS));
        ck_assert_int_eq(cqe.status, 0);
    }
    store_release(&h.fences->fetch.client_seq, 25);
    struct spw_sqe sqe = hostile_use_sqe(&h, SPW_OP_GPU_FETCH, 26, &lease, 1, HOSTILE_SHORT_MS);
    ck_assert_int_eq(raw_call(&h.s.ring, &sqe).status, -ETIMEDOUT);
    ck_assert_uint_eq(load_acquire(&h.fences->fetch.daemon_seq), SPW_GPU_SEQ_OVER);
    ck_assert_int_eq(use_at(SPW_OP_GPU_SPILL, 26, lease, 0), -EPIPE);
    hostile_close(&h);
    hostile_finish();
}
END_TEST

/* In the middle of both ways; its budget and its leases come back. */
START_TEST(he_hangs_up)
{
    hostile_begin();
    direct_open(1);
    uint64_t lease = hostile_lease(&h, SPW_OP_RESERVE, 1, BYTES), other = hostile_lease(&h, SPW_OP_RESERVE, 2, BYTES);
    if (_i)
        store_relaxed(&hostile_role()->dma_delay_us, 100000); /* on its way */
    store_release(&h.fences->spill.client_seq, _i ? 1 : 0);   /* or it waits for him */
    hostile_use_begin(&h, SPW_OP_GPU_SPILL, 1, lease);
    hostile_use_begin(&h, SPW_OP_GPU_FETCH, 1, other);
    hostile_becomes("pools", "pools/0/gpu/used_bytes", HOSTILE_GOOD_BYTES + (int64_t)ALLOC_BYTES);
    hostile_close(&h);
    nothing_is_left();
    store_relaxed(&hostile_role()->dma_delay_us, 0);
    hostile_finish();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gpu_direct");
    TCase *tc = tcase_create("direct");

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, places_outside_of_it);
    tcase_add_test(tc, places_in_slots);
    tcase_add_loop_test(tc, sizes_that_cannot_be, 0, 3);
    tcase_add_test(tc, fences_that_lie);
    tcase_add_loop_test(tc, he_hangs_up, 0, 2);
    suite_add_tcase(s, tc);
    return suite_main(s);
}
