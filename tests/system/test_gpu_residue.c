/* SPDX-License-Identifier: Apache-2.0 */
/*
 * No residue on GPUs: whatever a GPU's memory held before, staging slots and what is handed out (a direct lane) are zero when a
 * client gets them, and a fetch brings nothing with it but the bytes of its leases. On the fake driver, where new memory of the
 * helper is full of somebody else's bytes; its memory is a file that the client can look into.
 */
#include <check.h>
#include <stdlib.h>

#include "tests/system/support/hostile.h"

#define RESIDUE 0xa5

static uint8_t *map_staging(const struct hostile *h)
{
    void *mem = mmap(NULL, h->lane.staging_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, h->staging_fd, 0);

    ck_assert_ptr_ne(mem, MAP_FAILED);
    return mem;
}

static bool is_zero(const uint8_t *mem, uint64_t bytes)
{
    return bytes == 0 || (mem[0] == 0 && memcmp(mem, mem + 1, bytes - 1) == 0);
}

/* One lane after the other: each leaves its own bytes, and none finds any. */
static void lanes(struct hostile *h, uint64_t alloc_bytes)
{
    for (int i = 0; i < 4; i++) {
        struct spw_msg_gpu_attach ask = hostile_attach_message(h);

        if (alloc_bytes > 0) {
            ask.alloc_bytes = alloc_bytes;
            ask.slots = 0;
            ask.slot_bytes = 0;
        }
        ck_assert_int_eq(hostile_attach_try(h, ask, NULL), 0);
        uint8_t *mem = map_staging(h);

        ck_assert_msg(is_zero(mem, h->lane.staging_bytes), "lane %d finds what somebody left", i);
        memset(mem, RESIDUE, h->lane.staging_bytes);
        munmap(mem, h->lane.staging_bytes);
        ck_assert_int_eq(hostile_detach_try(h, h->lane.lane), 0);
        hostile_lane_unmap(h);
    }
}

START_TEST(lanes_are_zero)
{
    struct hostile h;

    hostile_begin();
    store_relaxed(&hostile_role()->residue, RESIDUE);
    hostile_session(&h, 2);
    lanes(&h, 0);
    lanes(&h, 4 * MIB);
    hostile_close(&h);
    hostile_finish();
}
END_TEST

/* A short object, in an extent that was a longer one's: its tail stays where it is. */
START_TEST(a_fetch_brings_its_own_bytes)
{
    struct hostile h;

    hostile_begin();
    hostile_session(&h, 2);
    for (uint64_t i = 0; i < 64; i++)
        ck_assert_int_eq(raw_put(&h.s, 100 + i, 12288, RESIDUE), 0);
    for (uint64_t i = 0; i < 64; i++) {
        struct spw_sqe sqe = raw_sqe(&h.s, SPW_OP_DELETE, 1);

        raw_items(&h.s.ring)[0] = raw_item(100 + i, 0);
        ck_assert_int_eq(raw_call(&h.s.ring, &sqe).status, 0);
        ck_assert_int_eq(raw_results(&h.s.ring)[0].status, 0);
    }
    for (uint64_t i = 0; i < 64; i++)
        ck_assert_int_eq(raw_put(&h.s, 200 + i, 10001, 0x11), 0);
    hostile_attach(&h);
    uint64_t lease = hostile_lease(&h, SPW_OP_ACQUIRE, 230, 0);

    store_release(&h.fences->fetch.client_seq, UINT64_C(1)); /* the slot is free */
    ck_assert_int_eq(hostile_use(&h, SPW_OP_GPU_FETCH, 1, &lease, 1), 0);
    uint8_t *mem = map_staging(&h), *slot = mem + h.lane.slots * h.lane.slot_bytes;
    uint64_t n = 0;

    for (uint64_t i = 0; i < h.lane.staging_bytes; i++)
        n += mem[i] != 0;
    ck_assert_uint_eq(n, 10001);
    ck_assert(is_zero(mem, (uint64_t)(slot - mem)));
    ck_assert_uint_eq(slot[0], 0x11);
    ck_assert_uint_eq(slot[10000], 0x11);
    munmap(mem, h.lane.staging_bytes);
    ck_assert_int_eq(hostile_lease_end(&h, SPW_OP_RELEASE, lease), 0);
    hostile_close(&h);
    hostile_finish();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gpu_residue");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, lanes_are_zero);
    tcase_add_test(tc, a_fetch_brings_its_own_bytes);
    suite_add_tcase(suite, tc);
    return suite_main(suite);
}
