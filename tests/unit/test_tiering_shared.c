/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors in shared pools: written in private copies, published by RELEASE, and stable for whoever reads. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/support/tiering_rig.h"

#define HALF (RIG_PIECE / 2)

static struct rig rig;
static struct tiering_id tensor;

static void open_tensor(enum rig_space space, uint64_t device_bytes, uint64_t size_bytes)
{
    rig_open(&rig, 8 * MIB, device_bytes);
    tensor = rig_id(&rig, space, 1);
    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &tensor, size_bytes), 0);
}

static int acquire(struct tiering_session *s, uint32_t off_bytes, uint32_t len_bytes, struct tiering_grant *ret_grant)
{
    struct rig_wait w;

    rig_wait_init(&w);
    int r = tiering_acquire(rig.t, s, &tensor, off_bytes, len_bytes, TIERING_WRITE, &w.wait, ret_grant);

    if (r != TIERING_WAIT)
        return r;
    r = rig_wait(&rig, &w);
    if (r == -ETIMEDOUT)
        ck_assert(tiering_wait_cancel(rig.t, &w.wait));
    *ret_grant = w.wait.grant;
    return r;
}

/* The bytes of a range that was written as a whole with this seed. */
static bool reads(uint32_t off_bytes, uint32_t len_bytes, uint32_t seed)
{
    struct tiering_grant g;
    struct rig_wait w;

    rig_wait_init(&w);
    int r = tiering_acquire(rig.t, &rig.other, &tensor, off_bytes, len_bytes, 0, &w.wait, &g);

    if (r == TIERING_WAIT) {
        r = rig_wait(&rig, &w);
        g = w.wait.grant;
    }
    ck_assert_int_eq(r, 0);
    bool same = rig_is(rig_memory(&rig, &g), len_bytes, seed);
    ck_assert_int_eq(tiering_release(rig.t, &rig.other, g.lease, 0), 0);
    return same;
}

static uint64_t used_bytes(void)
{
    rig_settle(&rig);
    rig_check(&rig);
    return rig_pool_stat(&rig, 1).dram_used;
}

START_TEST(others_see_what_was_released)
{
    open_tensor(RIG_SHARED, 0, RIG_PIECE);
    struct tiering_grant g;

    ck_assert_int_eq(acquire(&rig.s, 0, 0, &g), 0);
    ck_assert_uint_eq(rig.chunk_kind[g.region], IO_CHUNK_PRIVATE + 1);
    ck_assert_uint_eq(rig.chunk_session[g.region], 1);
    ck_assert(rig_is(rig_memory(&rig, &g), RIG_PIECE, 0));
    rig_fill(rig_memory(&rig, &g), RIG_PIECE, 1);
    ck_assert(reads(0, RIG_PIECE, 0));
    ck_assert_int_eq(tiering_release(rig.t, &rig.s, g.lease, TIERING_DIRTY), -EAGAIN); /* it takes a copy */
    ck_assert_int_eq(rig_release(&rig, &rig.s, g.lease, TIERING_DIRTY), 0);
    ck_assert_int_eq(rig_release(&rig, &rig.s, g.lease, TIERING_DIRTY), -EBADF);
    ck_assert(reads(0, RIG_PIECE, 1));
    ck_assert_uint_eq(used_bytes(), RIG_PIECE);
    ck_assert_uint_eq(rig_pool_stat(&rig, 1).admitted, 0);
    /* A writer sees what is there. */
    ck_assert_int_eq(acquire(&rig.other, 5000, 100, &g), 0);
    uint8_t want[RIG_PIECE];
    rig_fill(want, RIG_PIECE, 1);
    ck_assert_mem_eq(rig_memory(&rig, &g), want + 5000, 100);
    ck_assert_int_eq(tiering_release(rig.t, &rig.other, g.lease, 0), 0);
    rig_close(&rig);
}
END_TEST

START_TEST(a_reader_keeps_what_it_sees)
{
    open_tensor(RIG_SHARED, 64 * MIB, RIG_PIECE);
    struct tiering_grant reader[3];

    for (uint32_t i = 0; i < 3; i++) {
        ck_assert_int_eq(rig_write(&rig, &tensor, i + 1), 0);
        ck_assert_int_eq(rig_acquire(&rig, &rig.other, &tensor, 0, &reader[i]), 0);
    }
    ck_assert_int_eq(rig_write(&rig, &tensor, 9), 0);
    for (uint32_t i = 0; i < 3; i++)
        ck_assert(rig_is(rig_memory(&rig, &reader[i]), RIG_PIECE, i + 1));
    ck_assert(reads(0, RIG_PIECE, 9));
    /* What they hold is admitted: their leases, and for each extent that they keep alive the piece once more. */
    ck_assert_uint_eq(used_bytes(), 4 * RIG_PIECE);
    ck_assert_uint_eq(rig_pool_stat(&rig, 1).admitted, 6 * RIG_PIECE);
    for (uint32_t i = 0; i < 3; i++) {
        ck_assert_int_eq(tiering_release(rig.t, &rig.other, reader[i].lease, 0), 0);
        ck_assert_uint_eq(used_bytes(), (3 - i) * RIG_PIECE);
        ck_assert_uint_eq(rig_pool_stat(&rig, 1).admitted, (uint64_t)(2 - i) * 2 * RIG_PIECE);
    }
    rig_close(&rig);
}
END_TEST

/* Writers of different ranges at once: each release adds its own, whichever comes first. */
START_TEST(two_writers_of_one_piece)
{
    for (uint32_t first = 0; first < 2; first++) {
        open_tensor(RIG_SHARED, 0, RIG_PIECE);
        struct tiering_session *s[2] = {&rig.s, &rig.other};
        struct tiering_grant g[2], unused;
        struct rig_wait w[2];

        ck_assert_int_eq(acquire(s[0], 0, HALF, &g[0]), 0);
        ck_assert_int_eq(acquire(s[1], HALF, HALF, &g[1]), 0);
        for (uint32_t i = 0; i < 2; i++) {
            uint32_t n = i ^ first;

            rig_fill(rig_memory(&rig, &g[n]), HALF, n + 1);
            rig_wait_init(&w[n]);
            ck_assert_int_eq(tiering_release_wait(rig.t, s[n], g[n].lease, TIERING_DIRTY, &w[n].wait, &unused),
                             TIERING_WAIT);
        }
        for (uint32_t i = 0; i < 2; i++)
            ck_assert_int_eq(rig_wait(&rig, &w[i]), 0);
        ck_assert(reads(0, HALF, 1));
        ck_assert(reads(HALF, HALF, 2));
        ck_assert_uint_eq(used_bytes(), RIG_PIECE);
        /* The same range: the last release wins, as a whole. */
        for (uint32_t n = 0; n < 2; n++) {
            ck_assert_int_eq(acquire(s[n], 1000, 50000, &g[n]), 0);
            rig_fill(rig_memory(&rig, &g[n]), 50000, n + 3);
        }
        ck_assert_int_eq(rig_release(&rig, s[first], g[first].lease, TIERING_DIRTY), 0);
        ck_assert_int_eq(rig_release(&rig, s[!first], g[!first].lease, TIERING_DIRTY), 0);
        ck_assert(reads(1000, 50000, !first + 3U));
        ck_assert(reads(HALF, HALF, 2));
        rig_close(&rig);
    }
}
END_TEST

START_TEST(what_is_not_released_dirty_never_was)
{
    open_tensor(RIG_SHARED, 0, RIG_PIECE);
    struct tiering_grant g;

    ck_assert_int_eq(rig_write(&rig, &tensor, 1), 0);
    for (uint32_t how = 0; how < 3; how++) {
        ck_assert_int_eq(acquire(&rig.other, 0, 0, &g), 0);
        rig_fill(rig_memory(&rig, &g), RIG_PIECE, 7);
        if (how < 2) {
            ck_assert_int_eq(tiering_release(rig.t, &rig.other, g.lease, how ? TIERING_DISCARD : 0), 0);
        } else { /* it dies */
            tiering_session_end(rig.t, &rig.other);
            tiering_session_init(rig.t, &rig.other, 2, 2, 100);
        }
        rig_settle(&rig);
        ck_assert(reads(0, RIG_PIECE, 1)); /* not torn, although nobody has a copy on a device */
        ck_assert_uint_eq(rig_pool_stat(&rig, 1).admitted, 0);
    }
    ck_assert_uint_eq(rig.chunk_kind[g.region], 0); /* the memory went with its session */
    rig_close(&rig);
}
END_TEST

START_TEST(a_session_has_so_many_private_bytes)
{
    open_tensor(RIG_SHARED, 0, 16 * RIG_PIECE);
    struct tiering_grant g[9];
    uint32_t n = 0;

    for (; n < 8; n++, tensor.piece++)
        ck_assert_int_eq(acquire(&rig.s, 0, 0, &g[n]), 0);
    ck_assert_int_eq(acquire(&rig.s, 0, 0, &g[8]), -ETIMEDOUT); /* 2 MiB; it waits, as a RESERVE does */
    ck_assert_int_eq(acquire(&rig.other, 0, 0, &g[8]), 0);      /* another has its own */
    ck_assert_int_eq(tiering_release(rig.t, &rig.other, g[8].lease, 0), 0);
    ck_assert_int_eq(tiering_release(rig.t, &rig.s, g[0].lease, 0), 0);
    ck_assert_int_eq(acquire(&rig.s, 0, 0, &g[0]), 0);
    rig_close(&rig);
    /* None at all. */
    rig_open(&rig, 8 * MIB, 0);
    rig.pools[1].session_bytes = 0;
    tiering_pool_update(rig.t, 1, &rig.pools[1]);
    tensor = rig_id(&rig, RIG_SHARED, 1);
    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &tensor, RIG_PIECE), 0);
    ck_assert_int_eq(acquire(&rig.s, 0, 0, &g[0]), -ENOSPC);
    ck_assert_uint_eq(g[0].limit, TIERING_LIMIT_SESSION_BYTES);
    rig_settle(&rig);
    ck_assert_uint_eq(rig_pool_stat(&rig, 1).admitted, 0);
    rig_close(&rig);
}
END_TEST

/* Waits for a fill, and for a publication, that are cancelled at any step; and the piece that is deleted under them. */
START_TEST(cancelled_or_deleted_at_any_step)
{
    for (uint32_t i = 0; i < 32; i++) {
        open_tensor(RIG_SHARED, 0, RIG_PIECE);
        struct tiering_grant g;
        struct rig_wait w;
        uint32_t turns = i / 4;
        bool cancel = i % 2, filling = i % 4 < 2;

        ck_assert_int_eq(rig_write(&rig, &tensor, 1), 0);
        rig_wait_init(&w);
        if (filling) {
            ck_assert_int_eq(tiering_acquire(rig.t, &rig.s, &tensor, 5000, 10000, TIERING_WRITE, &w.wait, &g),
                             TIERING_WAIT);
        } else {
            ck_assert_int_eq(acquire(&rig.s, 5000, 10000, &g), 0);
            rig_fill(rig_memory(&rig, &g), 10000, 2);
            ck_assert_int_eq(tiering_release_wait(rig.t, &rig.s, g.lease, TIERING_DIRTY, &w.wait, &g), TIERING_WAIT);
        }
        for (uint32_t n = 0; n < turns; n++)
            rig_turn(&rig, 1, 1000);
        if (cancel) {
            bool over = w.status != 1;

            ck_assert(tiering_wait_cancel(rig.t, &w.wait) == !over);
            rig_settle(&rig);
            ck_assert(filling || reads(5000, 10000, 2) || (!over && !reads(5000, 10000, 2)));
        } else {
            ck_assert_int_eq(tiering_delete(rig.t, &tensor), 0);
            int r = rig_wait(&rig, &w);
            ck_assert(r == 0 || (filling && r == -ENOENT));
            struct tiering_found found;
            ck_assert_int_eq(tiering_lookup(rig.t, &tensor, &found), -ENOENT);
        }
        tiering_session_end(rig.t, &rig.s);
        tiering_session_init(rig.t, &rig.s, 1, 1, 100);
        ck_assert_uint_eq(used_bytes(), cancel ? RIG_PIECE : 0);
        ck_assert_uint_eq(rig_pool_stat(&rig, 1).admitted, 0);
        rig_close(&rig);
    }
}
END_TEST

START_TEST(a_copy_that_fails)
{
    open_tensor(RIG_SHARED, 0, RIG_PIECE);
    struct tiering_grant g;

    ck_assert_int_eq(rig_write(&rig, &tensor, 1), 0);
    ck_assert_int_eq(acquire(&rig.s, 4096, 8192, &g), 0);
    rig_fill(rig_memory(&rig, &g), 8192, 2);
    simdisk_faults(rig.disk)->work_fault = 1000000; /* the writer punched a hole in its memory */
    ck_assert_int_eq(rig_release(&rig, &rig.s, g.lease, TIERING_DIRTY), -EFAULT);
    ck_assert_int_eq(acquire(&rig.s, 0, 0, &g), -EFAULT);
    simdisk_faults(rig.disk)->work_fault = 0;
    ck_assert(reads(0, RIG_PIECE, 1));
    ck_assert_uint_eq(used_bytes(), RIG_PIECE);
    ck_assert_uint_eq(rig_pool_stat(&rig, 1).admitted, 0);
    rig_close(&rig);
}
END_TEST

/* Everything that may be leased is leased for writing, and all is released at once: there is room for one after another. */
START_TEST(a_full_pool_publishes_one_after_the_other)
{
    rig_open(&rig, 8 * MIB, 64 * MIB);
    rig.pools[1].session_bytes = 16 * MIB;
    tiering_pool_update(rig.t, 1, &rig.pools[1]);
    tensor = rig_id(&rig, RIG_SHARED, 1);
    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &tensor, 64 * RIG_PIECE), 0);
    struct tiering_grant g[64], unused;
    struct rig_wait w[64];
    uint32_t n = 0;

    while (n < 64 && acquire(&rig.s, 0, 0, &g[n]) == 0) {
        rig_fill(rig_memory(&rig, &g[n]), RIG_PIECE, n + 1);
        tensor.piece = ++n;
    }
    ck_assert_uint_eq(n, 8 * MIB / RIG_PIECE * 80 / 100);
    for (uint32_t i = 0; i < n; i++) {
        rig_wait_init(&w[i]);
        ck_assert_int_eq(tiering_release_wait(rig.t, &rig.s, g[i].lease, TIERING_DIRTY, &w[i].wait, &unused),
                         TIERING_WAIT);
    }
    for (uint32_t i = 0; i < n; i++)
        ck_assert_int_eq(rig_wait(&rig, &w[i]), 0);
    for (uint32_t i = 0; i < n; i++) {
        tensor.piece = i;
        ck_assert(reads(0, RIG_PIECE, i + 1));
    }
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

START_TEST(durable_in_a_shared_pool)
{
    open_tensor(RIG_SHARED_DURABLE, 64 * MIB, RIG_PIECE);
    struct tiering_grant g;

    ck_assert_int_eq(rig_write(&rig, &tensor, 1), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_SHARED_DURABLE, NULL, 0), 0);
    /* A writer that changes nothing leaves the durable copy. */
    ck_assert_int_eq(acquire(&rig.s, 0, 100, &g), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_SHARED_DURABLE, NULL, 0), -EBUSY);
    ck_assert_int_eq(tiering_release(rig.t, &rig.s, g.lease, TIERING_DISCARD), 0);
    ck_assert_uint_eq(rig_pool_stat(&rig, 1).dirty, 0);
    ck_assert_int_eq(rig_write(&rig, &tensor, 2), 0);
    ck_assert_uint_eq(rig_pool_stat(&rig, 1).dirty, RIG_PIECE);
    rig_crash(&rig, true);
    tensor = rig_id(&rig, RIG_SHARED_DURABLE, 1);
    ck_assert(reads(0, RIG_PIECE, 1));
    ck_assert_int_eq(rig_write(&rig, &tensor, 3), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_SHARED_DURABLE, NULL, 0), 0);
    rig_crash(&rig, true);
    tensor = rig_id(&rig, RIG_SHARED_DURABLE, 1);
    ck_assert(reads(0, RIG_PIECE, 3));
    rig_close(&rig);
}
END_TEST

/* From a device: it is loaded, then copied; a writer that comes during a spill waits for its end. */
START_TEST(a_writer_of_what_is_on_a_device)
{
    for (uint32_t turns = 0; turns < 8; turns++) {
        open_tensor(RIG_SHARED, 64 * MIB, RIG_PIECE);
        struct tiering_grant g;

        ck_assert_int_eq(rig_write(&rig, &tensor, 1), 0);
        ck_assert_int_eq(tiering_advise(rig.t, &tensor, TIERING_NOT_AGAIN, 0, rig.now_ns), 0);
        for (uint32_t i = 0; i < turns; i++)
            rig_turn(&rig, 1, 10000000);
        ck_assert_int_eq(acquire(&rig.s, HALF, HALF, &g), 0);
        rig_fill(rig_memory(&rig, &g), HALF, 2);
        ck_assert_int_eq(rig_release(&rig, &rig.s, g.lease, TIERING_DIRTY), 0);
        ck_assert_int_eq(tiering_advise(rig.t, &tensor, TIERING_NOT_AGAIN, 0, rig.now_ns), 0);
        rig_settle(&rig);
        ck_assert(reads(0, HALF, 1));
        ck_assert(reads(HALF, HALF, 2));
        rig_close(&rig);
    }
}
END_TEST

/* GET_RANGE and PUT_RANGE work on the copy, and outlive the lease. */
START_TEST(blocks_to_and_from_the_copy)
{
    for (uint32_t early = 0; early < 2; early++) {
        open_tensor(RIG_SHARED, 64 * MIB, RIG_PIECE);
        struct tiering_id a = rig_id(&rig, RIG_SHARED, 10), b = rig_id(&rig, RIG_SHARED, 11);
        struct tiering_grant g, unused;
        struct rig_wait get, put;

        ck_assert_int_eq(rig_put(&rig, &a, 8192, 5), 0);
        ck_assert_int_eq(acquire(&rig.s, 4096, 32768, &g), 0);
        rig_fill(rig_memory(&rig, &g), 32768, 6);
        rig_wait_init(&get);
        rig_wait_init(&put);
        ck_assert_int_eq(tiering_get_to(rig.t, &rig.s, &a, g.lease, 8192, 8192, &get.wait, &unused), TIERING_WAIT);
        ck_assert_int_eq(tiering_put_from(rig.t, &rig.s, &b, g.lease, 0, 4096, &put.wait, &unused), TIERING_WAIT);
        if (early)
            ck_assert_int_eq(tiering_release(rig.t, &rig.s, g.lease, TIERING_DISCARD), 0);
        ck_assert_int_eq(rig_wait(&rig, &get), 0);
        ck_assert_int_eq(rig_wait(&rig, &put), 0);
        ck_assert_int_eq(rig_get(&rig, &b, 6), 0);
        if (early) {
            ck_assert(reads(0, RIG_PIECE, 0));
        } else {
            ck_assert(rig_is(rig_memory(&rig, &g) + 8192, 8192, 5));
            ck_assert(reads(4096, 32768, 0)); /* nobody sees it yet */
            ck_assert_int_eq(rig_release(&rig, &rig.s, g.lease, TIERING_DIRTY), 0);
            ck_assert(reads(4096 + 8192, 8192, 5));
            ck_assert(reads(4096, 4096, 6));
        }
        rig_check(&rig);
        rig_close(&rig);
    }
}
END_TEST

/* A block that is put from a reader's lease: the reader goes, the tensor changes, and the old bytes are what is put. */
START_TEST(a_put_from_what_was_replaced)
{
    open_tensor(RIG_SHARED, 0, RIG_PIECE);
    struct tiering_id b = rig_id(&rig, RIG_SHARED, 11);
    struct tiering_grant reader, writer, unused;
    struct rig_wait put;

    ck_assert_int_eq(rig_write(&rig, &tensor, 1), 0);
    ck_assert_int_eq(rig_acquire(&rig, &rig.other, &tensor, 0, &reader), 0);
    ck_assert_int_eq(acquire(&rig.s, 0, 0, &writer), 0);
    rig_fill(rig_memory(&rig, &writer), RIG_PIECE, 2);
    rig_wait_init(&put);
    ck_assert_int_eq(tiering_put_from(rig.t, &rig.other, &b, reader.lease, 0, RIG_PIECE, &put.wait, &unused),
                     TIERING_WAIT);
    ck_assert_int_eq(tiering_release(rig.t, &rig.other, reader.lease, 0), 0);
    ck_assert_int_eq(rig_release(&rig, &rig.s, writer.lease, TIERING_DIRTY), 0);
    ck_assert_int_eq(rig_wait(&rig, &put), 0);
    ck_assert_int_eq(rig_get(&rig, &b, 1), 0);
    ck_assert(reads(0, RIG_PIECE, 2));
    ck_assert_uint_eq(used_bytes(), 2 * RIG_PIECE);
    rig_close(&rig);
}
END_TEST

/* Many at once, in an order that the disk's seed chooses: the piece is always what one of the releases made of it. */
START_TEST(many_writers_and_readers)
{
    for (uint32_t round = 0; round < 20; round++) {
        open_tensor(RIG_SHARED, 0, RIG_PIECE);
        struct tiering_grant w[6], r[6], unused;
        struct rig_wait released[6];
        const uint32_t cell = RIG_PIECE / 8;
        uint32_t seen = 0;

        for (uint32_t i = 0; i < round; i++)
            (void)simdisk_random(rig.disk);
        for (uint32_t i = 0; i < 6; i++) {
            ck_assert_int_eq(acquire(i % 2 ? &rig.s : &rig.other, i * cell, cell, &w[i]), 0);
            rig_fill(rig_memory(&rig, &w[i]), cell, i + 1);
        }
        for (uint32_t i = 0; i < 6; i++) {
            rig_wait_init(&released[i]);
            ck_assert_int_eq(tiering_release_wait(rig.t, i % 2 ? &rig.s : &rig.other, w[i].lease, TIERING_DIRTY,
                                                  &released[i].wait, &unused),
                             TIERING_WAIT);
            rig_turn(&rig, (uint32_t)simdisk_below(rig.disk, 4), 1000);
            ck_assert_int_eq(rig_acquire(&rig, &rig.s, &tensor, 0, &r[i]), 0);
        }
        for (uint32_t i = 0; i < 6; i++)
            ck_assert_int_eq(rig_wait(&rig, &released[i]), 0);
        for (uint32_t i = 0; i < 6; i++) { /* each cell is old or new, and whole; later readers see no less */
            uint32_t now = 0;

            for (uint32_t c = 0; c < 6; c++) {
                const uint8_t *bytes = rig_memory(&rig, &r[i]) + c * cell;

                now += rig_is(bytes, cell, c + 1);
                ck_assert(rig_is(bytes, cell, c + 1) || rig_is(bytes, cell, 0));
            }
            ck_assert_uint_ge(now, seen);
            seen = now;
            ck_assert_int_eq(tiering_release(rig.t, &rig.s, r[i].lease, 0), 0);
        }
        for (uint32_t c = 0; c < 6; c++)
            ck_assert(reads(c * cell, cell, c + 1));
        ck_assert_uint_eq(used_bytes(), RIG_PIECE);
        rig_close(&rig);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tiering_shared");
    TCase *tc = tcase_create("all");
    SRunner *runner = srunner_create(suite);

    tcase_set_timeout(tc, 100);
    tcase_add_test(tc, others_see_what_was_released);
    tcase_add_test(tc, a_reader_keeps_what_it_sees);
    tcase_add_test(tc, two_writers_of_one_piece);
    tcase_add_test(tc, what_is_not_released_dirty_never_was);
    tcase_add_test(tc, a_session_has_so_many_private_bytes);
    tcase_add_test(tc, cancelled_or_deleted_at_any_step);
    tcase_add_test(tc, a_copy_that_fails);
    tcase_add_test(tc, a_full_pool_publishes_one_after_the_other);
    tcase_add_test(tc, durable_in_a_shared_pool);
    tcase_add_test(tc, a_writer_of_what_is_on_a_device);
    tcase_add_test(tc, blocks_to_and_from_the_copy);
    tcase_add_test(tc, a_put_from_what_was_replaced);
    tcase_add_test(tc, many_writers_and_readers);
    suite_add_tcase(suite, tc);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
