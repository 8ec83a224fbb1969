/* SPDX-License-Identifier: Apache-2.0 */
/* Each operation of tiering by itself, in memory: leases, limits, waits, parts, tensors, eviction. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/support/tiering_rig.h"

static struct rig rig;

static struct tiering_id key(enum rig_space space, uint32_t n)
{
    return rig_id(&rig, space, n);
}

/* --- Blocks ------------------------------------------------------------------------------------------------------------ */

START_TEST(a_block_from_reserve_to_delete)
{
    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id id = key(RIG_CACHE, 1);
    struct tiering_grant w, r;
    struct tiering_found found;

    ck_assert_int_eq(tiering_lookup(rig.t, &id, &found), -ENOENT);
    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &id, 5000, 5000, &w), 0);
    ck_assert_int_eq(tiering_lookup(rig.t, &id, &found), -EINPROGRESS);
    ck_assert_int_eq(rig_acquire(&rig, &rig.other, &id, 0, &r), -EINPROGRESS);
    ck_assert_int_eq(rig_reserve(&rig, &rig.other, &id, 5000, 5000, &r), -EINPROGRESS);
    ck_assert_int_eq(rig_commit(&rig, &rig.other, w.lease), -EBADF);
    rig_fill(rig_memory(&rig, &w), 5000, 3);
    ck_assert_int_eq(rig_commit(&rig, &rig.s, w.lease), 0);
    ck_assert_int_eq(rig_commit(&rig, &rig.s, w.lease), -EBADF);
    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &id, 5000, 5000, &r), -EEXIST);
    ck_assert_int_eq(tiering_lookup(rig.t, &id, &found), 0);
    ck_assert_uint_eq(found.size_bytes, 5000);
    ck_assert_uint_eq(found.tier, TIERING_DRAM);
    ck_assert_int_eq(rig_acquire(&rig, &rig.other, &id, 0, &r), 0);
    ck_assert_uint_eq(r.length_bytes, 5000);
    ck_assert(rig_is(rig_memory(&rig, &r), 5000, 3));
    ck_assert_int_eq(tiering_release(rig.t, &rig.s, r.lease, 0), -EBADF);
    ck_assert_int_eq(tiering_release(rig.t, &rig.other, r.lease, TIERING_DIRTY), -EROFS);
    ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
    ck_assert_int_eq(tiering_lookup(rig.t, &id, &found), -ENOENT);
    ck_assert(rig_is(rig_memory(&rig, &r), 5000, 3)); /* a lease outlives the deletion */
    rig_check(&rig);
    ck_assert_int_eq(tiering_release(rig.t, &rig.other, r.lease, 0), 0);
    ck_assert_int_eq(tiering_release(rig.t, &rig.other, r.lease, 0), -EBADF);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).dram_used, 0);
    rig_close(&rig);
}
END_TEST

START_TEST(an_abort_leaves_nothing)
{
    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id id = key(RIG_CACHE, 1);
    struct tiering_grant w;

    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &id, 5000, 5000, &w), 0);
    ck_assert_int_eq(tiering_abort(rig.t, &rig.other, w.lease), -EBADF);
    ck_assert_int_eq(tiering_abort(rig.t, &rig.s, w.lease), 0);
    ck_assert_int_eq(tiering_abort(rig.t, &rig.s, w.lease), -EBADF);
    ck_assert_int_eq(rig_put(&rig, &id, 5000, 1), 0);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).admitted, 0);
    rig_close(&rig);
}
END_TEST

START_TEST(what_is_not_a_piece_is_refused)
{
    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id id = key(RIG_CACHE, 1);
    struct tiering_grant g;

    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &id, 5000, 4096, &g), -EINVAL);
    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &id, 0, 0, &g), -EINVAL);
    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &id, 2 * RIG_PIECE, 2 * RIG_PIECE, &g), -EINVAL);
    ck_assert_uint_eq(g.limit, TIERING_LIMIT_OBJECT_BYTES);
    id.piece = 2;
    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &id, 2 * RIG_PIECE, RIG_PIECE, &g), -EINVAL);
    id.piece = 0;
    id.part = 1;
    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &id, 5000, 5000, &g), -EINVAL);
    id.part = 0;
    id.n_parts = 0;
    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &id, 5000, 5000, &g), -EINVAL);
    id.n_parts = 1;
    ck_assert_int_eq(rig_put(&rig, &id, 5000, 1), 0);
    ck_assert_int_eq(tiering_acquire(rig.t, &rig.s, &id, 0, 5001, 0, NULL, &g), -ERANGE);
    ck_assert_int_eq(tiering_acquire(rig.t, &rig.s, &id, 4999, 2, 0, NULL, &g), -ERANGE);
    ck_assert_int_eq(tiering_acquire(rig.t, &rig.s, &id, UINT32_MAX, 2, 0, NULL, &g), -ERANGE);
    ck_assert_int_eq(tiering_acquire(rig.t, &rig.s, &id, 5, 0, 0, NULL, &g), -ERANGE);
    ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, TIERING_WRITE, &g), -EROFS);
    rig_close(&rig);
}
END_TEST

START_TEST(a_pool_full_of_leases_says_so)
{
    rig_open(&rig, 8 * MIB, 0);
    struct tiering_grant g;
    uint32_t n = 0;
    int r = 0;

    while (r == 0) {
        struct tiering_id id = key(RIG_CACHE, n);

        r = rig_reserve(&rig, n % 2 ? &rig.s : &rig.other, &id, RIG_PIECE, RIG_PIECE, &g);
        n += r == 0;
    }
    ck_assert_int_eq(r, -ENOSPC);
    ck_assert_uint_eq(g.limit, TIERING_LIMIT_POOL_LEASES);
    ck_assert_uint_eq(n, 8 * MIB * 80 / 100 / RIG_PIECE);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).admitted, (uint64_t)n * RIG_PIECE);
    rig_check(&rig);
    rig_close(&rig); /* ends the sessions, and looks that nothing stays leased */
}
END_TEST

START_TEST(a_session_has_so_many_leases)
{
    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id id = key(RIG_CACHE, 1);
    struct tiering_grant g;

    ck_assert_int_eq(rig_put(&rig, &id, 4096, 1), 0);
    for (uint32_t i = 0; i < 100; i++)
        ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, 0, &g), 0);
    ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, 0, &g), -ENOSPC);
    ck_assert_uint_eq(g.limit, TIERING_LIMIT_SESSION_LEASES);
    ck_assert_int_eq(rig_acquire(&rig, &rig.other, &id, 0, &g), 0);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).leased, 101 * 4096);
    rig_close(&rig);
}
END_TEST

/* --- Waits ----------------------------------------------------------------------------------------------------------------- */

START_TEST(a_cancelled_wait_leaves_nothing)
{
    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id id = key(RIG_SHARED, 1);
    struct tiering_grant g;
    struct rig_wait w;

    rig_wait_init(&w); /* a reservation waits for private memory */
    ck_assert_int_eq(tiering_reserve(rig.t, &rig.s, &id, 5000, 5000, &w.wait, &g), TIERING_WAIT);
    ck_assert(tiering_wait_cancel(rig.t, &w.wait));
    ck_assert(!tiering_wait_cancel(rig.t, &w.wait));
    rig_settle(&rig);
    ck_assert_int_eq(w.status, 1);
    ck_assert_uint_eq(rig_pool_stat(&rig, 1).admitted, 0);
    /* A commit that is being copied: nobody is told, and it goes on. */
    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &id, 5000, 5000, &g), 0);
    rig_fill(rig_memory(&rig, &g), 5000, 4);
    rig_wait_init(&w);
    ck_assert_int_eq(tiering_commit(rig.t, &rig.s, g.lease, &w.wait, &g), TIERING_WAIT);
    rig_turn(&rig, 0, 0);
    ck_assert_uint_eq(simdisk_pending(rig.disk), 1);
    ck_assert(tiering_wait_cancel(rig.t, &w.wait));
    rig_settle(&rig);
    ck_assert_int_eq(w.status, 1);
    ck_assert_int_eq(rig_get(&rig, &id, 4), 0);
    rig_close(&rig);
}
END_TEST

START_TEST(nothing_waits_without_a_wait)
{
    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id id = key(RIG_SHARED, 1);
    struct tiering_grant g;

    ck_assert_int_eq(tiering_reserve(rig.t, &rig.s, &id, 5000, 5000, NULL, &g), -EAGAIN);
    ck_assert_uint_eq(rig_pool_stat(&rig, 1).admitted, 0);
    ck_assert_uint_eq(rig_pool_stat(&rig, 1).objects, 0);
    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &id, 5000, 5000, &g), 0);
    ck_assert_int_eq(tiering_commit(rig.t, &rig.s, g.lease, NULL, &g), -EAGAIN);
    rig_close(&rig);
}
END_TEST

/* A session's end takes back what it had reserved, leased, and what was in flight for it. */
START_TEST(a_session_ends)
{
    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id id[4] = {key(RIG_SHARED, 1), key(RIG_SHARED, 2), key(RIG_SHARED, 3), key(RIG_CACHE, 4)};
    struct tiering_grant g[4];
    struct rig_wait w;

    ck_assert_int_eq(rig_put(&rig, &id[0], 5000, 1), 0);
    ck_assert_int_eq(rig_acquire(&rig, &rig.other, &id[0], 0, &g[0]), 0);
    ck_assert_int_eq(rig_reserve(&rig, &rig.other, &id[1], 5000, 5000, &g[1]), 0);
    ck_assert_int_eq(rig_reserve(&rig, &rig.other, &id[2], 5000, 5000, &g[2]), 0);
    ck_assert_int_eq(rig_reserve(&rig, &rig.other, &id[3], 5000, 5000, &g[3]), 0);
    uint32_t region = g[1].region;
    ck_assert_uint_eq(rig.chunk_kind[region], IO_CHUNK_PRIVATE + 1);
    ck_assert_uint_eq(rig.chunk_session[region], 2);
    rig_wait_init(&w);
    ck_assert_int_eq(tiering_commit(rig.t, &rig.other, g[2].lease, &w.wait, &g[2]), TIERING_WAIT);
    rig_turn(&rig, 0, 0);
    ck_assert(tiering_wait_cancel(rig.t, &w.wait));
    tiering_session_end(rig.t, &rig.other);
    rig_check(&rig);
    ck_assert_uint_eq(rig.chunk_kind[region], IO_CHUNK_PRIVATE + 1); /* the copy still reads from it */
    rig_settle(&rig);
    ck_assert_uint_eq(rig.chunk_kind[region], 0);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).admitted + rig_pool_stat(&rig, 1).admitted, 0);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).objects, 0);
    ck_assert_uint_eq(rig_pool_stat(&rig, 1).objects, 2); /* what was committed, and what was being committed */
    tiering_session_init(rig.t, &rig.other, 2, 2, 100);
    rig_close(&rig);
}
END_TEST

/* --- Shared pools ---------------------------------------------------------------------------------------------------------- */

START_TEST(a_commit_copies_to_shared_memory)
{
    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id id = key(RIG_SHARED, 1);
    struct tiering_grant w, r;

    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &id, 100000, 100000, &w), 0);
    ck_assert_uint_eq(rig.chunk_kind[w.region], IO_CHUNK_PRIVATE + 1);
    rig_fill(rig_memory(&rig, &w), 100000, 5);
    ck_assert_int_eq(rig_commit(&rig, &rig.s, w.lease), 0);
    rig_fill(rig_memory(&rig, &w), 100000, 6); /* too late */
    ck_assert_int_eq(rig_acquire(&rig, &rig.other, &id, 0, &r), 0);
    ck_assert_uint_eq(rig.chunk_kind[r.region], IO_CHUNK_SHARED + 1);
    ck_assert(rig_is(rig_memory(&rig, &r), 100000, 5));
    rig_close(&rig);
}
END_TEST

START_TEST(private_memory_is_bounded)
{
    rig_open(&rig, 16 * MIB, 0);
    struct tiering_grant g;
    struct rig_wait w;
    uint32_t n = 0;

    for (;; n++) {
        struct tiering_id id = key(RIG_SHARED, n);

        rig_wait_init(&w);
        int r = tiering_reserve(rig.t, &rig.s, &id, RIG_PIECE, RIG_PIECE, &w.wait, &g);
        for (int turn = 0; r == TIERING_WAIT && turn < 100; turn++)
            rig_turn(&rig, 8, 1000000);
        if (r == TIERING_WAIT && w.status == 1)
            break;
        ck_assert_int_le(r, TIERING_WAIT);
    }
    ck_assert_uint_eq(n, 2 * MIB / RIG_PIECE);
    ck_assert_uint_eq(w.wait.grant.limit, TIERING_LIMIT_SESSION_BYTES);
    struct tiering_id other = key(RIG_SHARED, 99);
    ck_assert_int_eq(rig_reserve(&rig, &rig.other, &other, RIG_PIECE, RIG_PIECE, &g), 0); /* it has its own */
    ck_assert(tiering_wait_cancel(rig.t, &w.wait));
    rig_close(&rig);
}
END_TEST

/* --- Parts and pieces ------------------------------------------------------------------------------------------------------- */

START_TEST(parts_become_visible_together)
{
    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id id = key(RIG_CACHE, 1), bad;
    struct tiering_grant g[3], other;
    struct tiering_found found;

    id.n_parts = 3;
    for (uint16_t part = 0; part < 3; part++) {
        id.part = part;
        ck_assert_int_eq(rig_reserve(&rig, part % 2 ? &rig.s : &rig.other, &id, 9000, 9000, &g[part]), 0);
    }
    bad = id;
    bad.n_parts = 4;
    bad.part = 3;
    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &bad, 9000, 9000, &other), -EINVAL);
    bad = id;
    bad.part = 0;
    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &bad, 8000, 8000, &other), -EINVAL);
    for (uint16_t part = 0; part < 3; part++) {
        ck_assert_int_eq(tiering_lookup(rig.t, &id, &found), -EINPROGRESS);
        rig_fill(rig_memory(&rig, &g[part]), 9000, 10U + part);
        ck_assert_int_eq(rig_commit(&rig, part % 2 ? &rig.s : &rig.other, g[part].lease), 0);
    }
    for (uint16_t part = 0; part < 3; part++) {
        id.part = part;
        ck_assert_int_eq(rig_get(&rig, &id, 10U + part), 0);
    }
    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &bad, 8000, 8000, &other), -EEXIST);
    bad = id;
    bad.n_parts = 4;
    bad.part = 3;
    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &bad, 9000, 9000, &other), -EINVAL);
    ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).objects, 0);
    rig_close(&rig);
}
END_TEST

START_TEST(parts_that_do_not_come_in_time)
{
    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id id = key(RIG_SCRATCH, 1);
    struct tiering_grant g;
    struct tiering_found found;

    id.n_parts = 2;
    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &id, 9000, 9000, &g), 0);
    ck_assert_int_eq(rig_commit(&rig, &rig.s, g.lease), 0);
    rig_turn(&rig, 0, UINT64_C(5000000000));
    ck_assert_int_eq(tiering_lookup(rig.t, &id, &found), -EINPROGRESS);
    rig_turn(&rig, 0, UINT64_C(6000000000));
    ck_assert_int_eq(tiering_lookup(rig.t, &id, &found), -ENOENT);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).objects, 0);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* Who has reserved one of them in time, and commits it when the others are gone, is told. */
START_TEST(a_part_that_comes_too_late)
{
    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id first = key(RIG_SCRATCH, 1), second;
    struct tiering_grant g[2];
    struct tiering_found found;

    first.n_parts = 2;
    second = first;
    second.part = 1;
    for (int again = 0; again < 2; again++) {
        ck_assert_int_eq(rig_reserve(&rig, &rig.s, &first, 9000, 9000, &g[0]), 0);
        ck_assert_int_eq(rig_reserve(&rig, &rig.s, &second, 9000, 9000, &g[1]), 0);
        if (again)
            break;
        /* As long as none is there, none is lost. */
        rig_turn(&rig, 0, UINT64_C(11000000000));
        ck_assert_int_eq(rig_commit(&rig, &rig.s, g[0].lease), 0);
        rig_turn(&rig, 0, UINT64_C(11000000000));
        ck_assert_int_eq(rig_commit(&rig, &rig.s, g[1].lease), -ESTALE);
        ck_assert_int_eq(tiering_lookup(rig.t, &first, &found), -ENOENT);
        ck_assert_int_eq(tiering_lookup(rig.t, &second, &found), -ENOENT);
    }
    ck_assert_int_eq(rig_commit(&rig, &rig.s, g[0].lease), 0);
    ck_assert_int_eq(rig_commit(&rig, &rig.s, g[1].lease), 0);
    ck_assert_int_eq(tiering_lookup(rig.t, &first, &found), 0);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

START_TEST(a_block_of_pieces)
{
    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id id = key(RIG_CACHE, 1);
    struct tiering_grant g[3];
    struct tiering_found found;
    uint64_t bytes = 2 * RIG_PIECE + 777;

    for (uint32_t piece = 0; piece < 3; piece++) {
        id.piece = piece;
        uint32_t size = piece < 2 ? RIG_PIECE : 777;
        ck_assert_int_eq(rig_reserve(&rig, &rig.s, &id, bytes, size, &g[piece]), 0);
        rig_fill(rig_memory(&rig, &g[piece]), size, piece + 1);
    }
    for (uint32_t piece = 0; piece < 3; piece++) {
        ck_assert_int_eq(tiering_lookup(rig.t, &id, &found), -EINPROGRESS);
        ck_assert_int_eq(rig_commit(&rig, &rig.s, g[piece].lease), 0);
    }
    for (uint32_t piece = 0; piece < 3; piece++) {
        id.piece = piece;
        ck_assert_int_eq(rig_get(&rig, &id, piece + 1), 0);
    }
    rig_close(&rig);
}
END_TEST

/* --- Tensors ---------------------------------------------------------------------------------------------------------------- */

/* One that has its key cannot be made: not beside any of its pieces. */
START_TEST(a_block_that_is_built_is_no_tensor)
{
    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id id = key(RIG_CACHE, 1), piece = id;
    struct tiering_grant g;
    uint64_t bytes = RIG_PIECE + 777;

    piece.piece = 1;
    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &piece, bytes, 777, &g), 0);
    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &id, bytes), -EINPROGRESS);
    rig_check(&rig);
    ck_assert_int_eq(rig_commit(&rig, &rig.s, g.lease), 0);
    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &id, bytes), -EINPROGRESS);
    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &id, bytes, RIG_PIECE, &g), 0);
    ck_assert_int_eq(rig_commit(&rig, &rig.s, g.lease), 0);
    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &id, bytes), -EINVAL);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

START_TEST(a_tensor_reads_as_zeros)
{
    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id id = key(RIG_SCRATCH, 1);

    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &id, 2 * RIG_PIECE + 100), 0);
    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &id, 2 * RIG_PIECE + 100), 0);
    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &id, 2 * RIG_PIECE), -EINVAL);
    uint64_t walked = tiering_walked(rig.t);
    ck_assert_uint_ge(walked, 2);
    id = key(RIG_SCRATCH, 2);
    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &id, OBJECT_BYTES_MAX), -ENOSPC);
    ck_assert_uint_eq(tiering_walked(rig.t), walked); /* at once */
    id = key(RIG_SCRATCH, 1);
    for (id.piece = 0; id.piece < 3; id.piece++)
        ck_assert_int_eq(rig_get(&rig, &id, 0), 0);
    id.piece = 1;
    ck_assert_int_eq(rig_write(&rig, &id, 9), 0);
    ck_assert_int_eq(rig_get(&rig, &id, 9), 0);
    id.piece = 2;
    ck_assert_int_eq(rig_get(&rig, &id, 0), 0);
    rig_close(&rig);
}
END_TEST

START_TEST(a_discarded_write_reverts_or_is_torn)
{
    rig_open(&rig, 8 * MIB, 32 * MIB);
    struct tiering_id id = key(RIG_SCRATCH, 1);
    struct tiering_grant w, r;

    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &id, 8192), 0);
    /* Never written: zeros again. */
    ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, TIERING_WRITE, &w), 0);
    rig_fill(rig_memory(&rig, &w), 8192, 1);
    ck_assert_int_eq(tiering_release(rig.t, &rig.s, w.lease, TIERING_DISCARD), 0);
    ck_assert_int_eq(rig_get(&rig, &id, 0), 0);
    /* On a device: read from there. */
    ck_assert_int_eq(rig_write(&rig, &id, 2), 0);
    ck_assert_int_eq(tiering_advise(rig.t, &id, TIERING_NOT_AGAIN, 0, rig.now_ns), 0);
    rig_settle(&rig);
    ck_assert_int_eq(rig_acquire(&rig, &rig.other, &id, TIERING_WRITE, &w), 0);
    rig_fill(rig_memory(&rig, &w), 8192, 3);
    tiering_session_end(rig.t, &rig.other);
    tiering_session_init(rig.t, &rig.other, 2, 2, 100);
    ck_assert_int_eq(rig_get(&rig, &id, 2), 0);
    /* In memory only: torn, until it is written as a whole. */
    ck_assert_int_eq(rig_write(&rig, &id, 4), 0);
    ck_assert_int_eq(rig_acquire(&rig, &rig.other, &id, TIERING_WRITE, &w), 0);
    tiering_session_end(rig.t, &rig.other);
    tiering_session_init(rig.t, &rig.other, 2, 2, 100);
    ck_assert_int_eq(rig_get(&rig, &id, 4), -EBADMSG);
    ck_assert_int_eq(tiering_acquire(rig.t, &rig.s, &id, 0, 4096, TIERING_WRITE, NULL, &r), -EBADMSG);
    ck_assert_int_eq(rig_write(&rig, &id, 5), 0);
    ck_assert_int_eq(rig_get(&rig, &id, 5), 0);
    rig_close(&rig);
}
END_TEST

/* What is being written to a device does not change under the write. */
START_TEST(a_writer_waits_for_a_spill)
{
    rig_open(&rig, 8 * MIB, 32 * MIB);
    struct tiering_id id = key(RIG_SCRATCH, 1);
    struct tiering_grant g;
    struct rig_wait w;

    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &id, RIG_PIECE), 0);
    ck_assert_int_eq(rig_write(&rig, &id, 1), 0);
    ck_assert_int_eq(tiering_advise(rig.t, &id, TIERING_NOT_AGAIN, 0, rig.now_ns), 0);
    ck_assert_uint_gt(simdisk_pending(rig.disk), 0);
    rig_wait_init(&w);
    ck_assert_int_eq(tiering_acquire(rig.t, &rig.s, &id, 0, 0, TIERING_WRITE, NULL, &g), -EAGAIN);
    ck_assert_int_eq(tiering_acquire(rig.t, &rig.s, &id, 0, 0, TIERING_WRITE, &w.wait, &g), TIERING_WAIT);
    ck_assert_int_eq(rig_get(&rig, &id, 1), 0); /* readers do not wait */
    ck_assert_int_eq(rig_wait(&rig, &w), 0);
    rig_fill(rig_memory(&rig, &w.wait.grant), RIG_PIECE, 2);
    ck_assert_int_eq(tiering_release(rig.t, &rig.s, w.wait.grant.lease, TIERING_DIRTY), 0);
    ck_assert_int_eq(tiering_advise(rig.t, &id, TIERING_NOT_AGAIN, 0, rig.now_ns), 0);
    rig_settle(&rig);
    ck_assert_int_eq(tiering_advise(rig.t, &id, TIERING_NOT_AGAIN, 0, rig.now_ns), 0);
    ck_assert_int_eq(rig_get(&rig, &id, 2), 0);
    rig_close(&rig);
}
END_TEST

static void sync_done(struct tiering_sync *sync, int status)
{
    (void)sync;
    ck_assert_int_eq(status, 0);
}

/* At once, from the memory that is being written, which stays while it is read: nothing is read from the device. _i: a
 * SYNC writes it, or an eviction does. */
START_TEST(a_reader_has_what_is_being_written)
{
    rig_open(&rig, 8 * MIB, 32 * MIB);
    struct tiering_id id = key(_i ? RIG_SCRATCH : RIG_DURABLE, 1);
    struct tiering_sync sync = {.done = sync_done};
    struct tiering_grant g;

    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &id, RIG_PIECE), 0);
    ck_assert_int_eq(rig_write(&rig, &id, 1), 0);
    rig_settle(&rig);
    uint64_t loads = rig_pool_stat(&rig, 0).loads;
    if (_i) {
        ck_assert_int_eq(tiering_advise(rig.t, &id, TIERING_NOT_AGAIN, 0, rig.now_ns), 0);
    } else {
        tiering_sync_begin(rig.t, &sync, id.space);
        ck_assert_int_eq(tiering_sync_add(rig.t, &sync, &id), 0);
        tiering_sync_run(rig.t, &sync);
    }
    ck_assert_uint_gt(simdisk_pending(rig.disk), 0);
    ck_assert_int_eq(tiering_acquire(rig.t, &rig.s, &id, 0, 0, 0, NULL, &g), 0);
    ck_assert(!g.fetched);
    ck_assert(rig_is(rig_memory(&rig, &g), RIG_PIECE, 1));
    rig_settle(&rig);
    ck_assert(rig_is(rig_memory(&rig, &g), RIG_PIECE, 1));
    ck_assert_int_eq(tiering_release(rig.t, &rig.s, g.lease, 0), 0);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).loads, loads);
    rig_evict(&rig, &id); /* and the write is good: what was read meanwhile comes back from the device */
    ck_assert_int_eq(rig_get(&rig, &id, 1), 0);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).loads, loads + 1);
    rig_close(&rig);
}
END_TEST

START_TEST(blocks_to_and_from_a_tensor)
{
    rig_open(&rig, 8 * MIB, 32 * MIB);
    struct tiering_id arena = key(RIG_SCRATCH, 1), a = key(RIG_CACHE, 2), b = key(RIG_CACHE, 3);
    struct tiering_grant lease, g;
    struct rig_wait w;

    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &arena, RIG_PIECE), 0);
    ck_assert_int_eq(rig_put(&rig, &a, 8192, 7), 0);
    ck_assert_int_eq(rig_acquire(&rig, &rig.s, &arena, TIERING_WRITE, &lease), 0);
    for (int from_device = 0; from_device < 2; from_device++) {
        rig_wait_init(&w);
        ck_assert_int_eq(tiering_get_to(rig.t, &rig.s, &a, lease.lease, 4096, 8192, &w.wait, &g), TIERING_WAIT);
        ck_assert_int_eq(rig_wait(&rig, &w), 0);
        ck_assert(rig_is(rig_memory(&rig, &lease) + 4096, 8192, 7));
        memset(rig_memory(&rig, &lease), 0, RIG_PIECE);
        (void)tiering_advise(rig.t, &a, TIERING_NOT_AGAIN, 0, rig.now_ns);
        rig_settle(&rig);
        (void)tiering_advise(rig.t, &a, TIERING_NOT_AGAIN, 0, rig.now_ns);
    }
    rig_wait_init(&w);
    ck_assert_int_eq(tiering_get_to(rig.t, &rig.s, &a, lease.lease, 0, 4096, &w.wait, &g), -EMSGSIZE);
    ck_assert_int_eq(tiering_get_to(rig.t, &rig.s, &a, lease.lease, RIG_PIECE, 8192, &w.wait, &g), -ERANGE);
    ck_assert_int_eq(tiering_get_to(rig.t, &rig.other, &a, lease.lease, 0, 8192, &w.wait, &g), -EBADF);
    rig_fill(rig_memory(&rig, &lease), 12288, 8);
    ck_assert_int_eq(tiering_put_from(rig.t, &rig.s, &a, lease.lease, 0, 12288, &w.wait, &g), -EEXIST);
    ck_assert_int_eq(tiering_put_from(rig.t, &rig.s, &b, lease.lease, 0, 12288, &w.wait, &g), TIERING_WAIT);
    ck_assert_int_eq(rig_wait(&rig, &w), 0);
    ck_assert_int_eq(rig_get(&rig, &b, 8), 0);
    rig_close(&rig);
}
END_TEST

START_TEST(an_owner_ends)
{
    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id mine = key(RIG_SCRATCH, 1), theirs = key(RIG_SCRATCH, 2), cache = key(RIG_CACHE, 3);
    struct tiering_grant g;

    ck_assert_int_eq(rig_put(&rig, &mine, 5000, 1), 0);
    ck_assert_int_eq(rig_put(&rig, &cache, 5000, 3), 0);
    ck_assert_int_eq(rig_reserve(&rig, &rig.other, &theirs, 5000, 5000, &g), 0);
    rig_fill(rig_memory(&rig, &g), 5000, 2);
    ck_assert_int_eq(rig_commit(&rig, &rig.other, g.lease), 0);
    tiering_owner_end(rig.t, 1);
    ck_assert_int_eq(rig_get(&rig, &mine, 1), -ENOENT);
    ck_assert_int_eq(rig_get(&rig, &theirs, 2), 0);
    ck_assert_int_eq(rig_get(&rig, &cache, 3), 0);
    rig_close(&rig);
}
END_TEST

/* --- Eviction ---------------------------------------------------------------------------------------------------------------- */

START_TEST(the_least_recently_used_goes)
{
    rig_open(&rig, 4 * MIB, 0); /* no device: what goes is dropped */
    struct tiering_id id;
    uint32_t fit = 4 * MIB / (64 * KIB);

    for (uint32_t i = 0; i < fit; i++) {
        id = key(RIG_CACHE, i);
        ck_assert_int_eq(rig_put(&rig, &id, 64 * KIB, i + 1), 0);
    }
    id = key(RIG_CACHE, 0);
    ck_assert_int_eq(tiering_touch(rig.t, &id), 0);
    for (uint32_t i = 0; i < 3; i++) {
        id = key(RIG_CACHE, 1000 + i);
        ck_assert_int_eq(rig_put(&rig, &id, 64 * KIB, 1), 0);
    }
    for (uint32_t i = 0; i < fit; i++) {
        id = key(RIG_CACHE, i);
        ck_assert_int_eq(rig_get(&rig, &id, i + 1), i >= 1 && i <= 3 ? -ENOENT : 0);
    }
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).drops, 3);
    rig_close(&rig);
}
END_TEST

START_TEST(a_pin_ends)
{
    rig_open(&rig, 4 * MIB, 0);
    struct tiering_id pinned = key(RIG_CACHE, 7), id;
    uint64_t until = 0;

    ck_assert_int_eq(rig_put(&rig, &pinned, 64 * KIB, 7), 0);
    until = rig.now_ns + UINT64_C(5000000000);
    ck_assert_int_eq(tiering_pin(rig.t, &pinned, until), 0);
    for (uint32_t i = 0; i < 200; i++) {
        id = key(RIG_CACHE, 1000 + i);
        ck_assert_int_eq(rig_put(&rig, &id, 64 * KIB, 1), 0);
    }
    ck_assert_int_eq(rig_get(&rig, &pinned, 7), 0);
    rig_turn(&rig, 0, UINT64_C(6000000000));
    for (uint32_t i = 0; i < 200; i++) {
        id = key(RIG_CACHE, 2000 + i);
        ck_assert_int_eq(rig_put(&rig, &id, 64 * KIB, 1), 0);
    }
    ck_assert_int_eq(rig_get(&rig, &pinned, 7), -ENOENT);
    /* A deleted object's pin holds nothing. */
    ck_assert_int_eq(rig_put(&rig, &pinned, 64 * KIB, 8), 0);
    ck_assert_int_eq(tiering_pin(rig.t, &pinned, TIERING_FOREVER), 0);
    uint64_t used = rig_pool_stat(&rig, 0).dram_used;
    ck_assert_int_eq(tiering_delete(rig.t, &pinned), 0);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).dram_used, used - 64 * KIB);
    rig_close(&rig);
}
END_TEST

/* One size fills the memory, then another wants it. */
START_TEST(sizes_take_turns)
{
    rig_open(&rig, 6 * MIB, 0);
    static const uint32_t sizes[] = {64 * KIB, 5000, 200 * KIB, 4096, 100 * KIB, 256 * KIB};
    uint32_t n = 0;

    for (uint32_t round = 0; round < ARRAY_LEN(sizes); round++) {
        for (uint32_t i = 0; i < 9 * MIB / sizes[round]; i++) {
            struct tiering_id id = key(RIG_CACHE, n++);

            ck_assert_int_eq(rig_put(&rig, &id, sizes[round], n), 0);
            ck_assert_int_eq(rig_get(&rig, &id, n), 0);
        }
        rig_check(&rig);
    }
    rig_close(&rig);
}
END_TEST

/* Fills the memory with what only a device can take; pieces of one size. */
static void fill_with_scratch(uint32_t size_bytes)
{
    struct tiering_grant g;

    for (uint32_t i = 0; i < rig.pools[0].dram_bytes / size_bytes; i++) {
        struct tiering_id id = key(RIG_SCRATCH, i);

        ck_assert_int_eq(tiering_reserve(rig.t, &rig.s, &id, size_bytes, size_bytes, NULL, &g), 0);
        ck_assert_int_eq(tiering_commit(rig.t, &rig.s, g.lease, NULL, &g), 0);
    }
}

/* Of large pieces a few are enough to keep a device busy, of small ones it takes many. */
START_TEST(small_spills_are_many_at_once)
{
    static const uint32_t sizes[] = {RIG_PIECE, 4096}, dram_mib[] = {32, 8};
    uint32_t n[ARRAY_LEN(sizes)];

    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        rig_prepare(&rig, &(struct rig_memory){.dram_bytes = dram_mib[i] * MIB, .device_bytes = 128 * MIB}, 1);
        rig.config.max_moves = 2048;
        rig_start(&rig);
        fill_with_scratch(sizes[i]);
        rig_turn(&rig, 0, 1000000);
        n[i] = simdisk_pending(rig.disk);
        rig_close(&rig);
    }
    ck_assert_uint_le(n[0], 64 + 2); /* and the log */
    ck_assert_uint_gt(n[1], 200);
}
END_TEST

/* When the device takes no more, whoever waits for room is looked at now and then, not in every turn: here its log is
 * full, which is made for larger pieces. */
START_TEST(a_full_device_is_not_asked_in_a_loop)
{
    struct tiering_grant g;
    struct rig_wait w;
    uint32_t n_busy = 0;
    int r = 0;

    rig_open(&rig, 4 * MIB, 16 * MIB);
    for (uint32_t i = 0; r == 0; i++) {
        struct tiering_id id = key(RIG_SCRATCH, i);

        ck_assert_uint_lt(i, 20000);
        rig_wait_init(&w);
        r = tiering_reserve(rig.t, &rig.s, &id, 4096, 4096, &w.wait, &g);
        for (uint32_t k = 0; r == TIERING_WAIT && w.status == 1 && k < 200; k++)
            rig_turn(&rig, 100, 1000000);
        if (r == TIERING_WAIT && w.status == 0) {
            g = w.wait.grant;
            r = 0;
        }
        if (r == 0)
            ck_assert_int_eq(tiering_commit(rig.t, &rig.s, g.lease, NULL, &g), 0);
    }
    ck_assert_int_eq(r, TIERING_WAIT);
    for (uint32_t k = 0; k < 200; k++) {
        rig.now_ns += 1000;
        n_busy += tiering_tick(rig.t, rig.now_ns) == 0;
    }
    ck_assert_uint_lt(n_busy, 10);
    tiering_wait_cancel(rig.t, &w.wait);
    rig_close(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tiering");
    TCase *tc = tcase_create("all");
    SRunner *runner = srunner_create(suite);

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, a_block_from_reserve_to_delete);
    tcase_add_test(tc, an_abort_leaves_nothing);
    tcase_add_test(tc, what_is_not_a_piece_is_refused);
    tcase_add_test(tc, a_pool_full_of_leases_says_so);
    tcase_add_test(tc, a_session_has_so_many_leases);
    tcase_add_test(tc, a_cancelled_wait_leaves_nothing);
    tcase_add_test(tc, nothing_waits_without_a_wait);
    tcase_add_test(tc, a_session_ends);
    tcase_add_test(tc, a_commit_copies_to_shared_memory);
    tcase_add_test(tc, private_memory_is_bounded);
    tcase_add_test(tc, parts_become_visible_together);
    tcase_add_test(tc, parts_that_do_not_come_in_time);
    tcase_add_test(tc, a_part_that_comes_too_late);
    tcase_add_test(tc, a_block_of_pieces);
    tcase_add_test(tc, a_block_that_is_built_is_no_tensor);
    tcase_add_test(tc, a_tensor_reads_as_zeros);
    tcase_add_test(tc, a_discarded_write_reverts_or_is_torn);
    tcase_add_test(tc, a_writer_waits_for_a_spill);
    tcase_add_loop_test(tc, a_reader_has_what_is_being_written, 0, 2);
    tcase_add_test(tc, blocks_to_and_from_a_tensor);
    tcase_add_test(tc, an_owner_ends);
    tcase_add_test(tc, the_least_recently_used_goes);
    tcase_add_test(tc, a_pin_ends);
    tcase_add_test(tc, sizes_take_turns);
    tcase_add_test(tc, small_spills_are_many_at_once);
    tcase_add_test(tc, a_full_device_is_not_asked_in_a_loop);
    suite_add_tcase(suite, tc);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
