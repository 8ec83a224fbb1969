/* SPDX-License-Identifier: Apache-2.0 */
/* A process that finds the memory of the one before it: records, chunks and leases, beside what the devices' logs say. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/support/tiering_rig.h"
#include "tiering/core.h"

#define DEVICE (64 * MIB)

static struct rig rig;

static struct tiering_id key(enum rig_space space, uint32_t n)
{
    return rig_id(&rig, space, n);
}

static uint8_t tier_of(const struct tiering_id *id)
{
    struct tiering_found found;
    int r = tiering_lookup(rig.t, id, &found);

    return r < 0 ? TIERING_NONE : found.tier;
}

static struct tiering_warm_counts counts(void)
{
    struct tiering_warm_counts c;
    const char *why;

    ck_assert_msg(tiering_is_warm(rig.t, &why), "%s", why ? why : "-");
    tiering_warm_counts(rig.t, &c);
    return c;
}

static void hot(void)
{
    rig_hot(&rig, true, true);
    ck_assert_uint_eq(counts().lost, 0);
    rig_check(&rig);
}

static struct tiering_id tensor(enum rig_space space, uint32_t n, uint64_t bytes)
{
    struct tiering_id id = key(space, n);

    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &id, bytes), 0);
    return id;
}

/* --- Objects --------------------------------------------------------------------------------------------------------- */

/* Whether a device has them or not, and whatever their durability. */
START_TEST(everything_committed_is_there)
{
    static const uint32_t sizes[] = {4096, 100000, 65536, 5000, RIG_PIECE, 196608, 1};

    rig_open(&rig, 8 * MIB, DEVICE);
    for (uint32_t i = 0; i < 200; i++) {
        struct tiering_id id = key((enum rig_space)(i % RIG_SPACES), i);

        ck_assert_int_eq(rig_put(&rig, &id, sizes[i % ARRAY_LEN(sizes)], i + 1), 0);
    }
    uint32_t on_device = 0;
    for (int round = 0; round < 2; round++) {
        hot();
        ck_assert_uint_eq(counts().objects, 200);
        for (uint32_t i = 0; i < 200; i++) {
            struct tiering_id id = key((enum rig_space)(i % RIG_SPACES), i);

            on_device += tier_of(&id) == TIERING_NVME;
            ck_assert_msg(rig_get(&rig, &id, i + 1) == 0, "object %u", i);
        }
    }
    ck_assert_uint_gt(on_device, 20);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

START_TEST(without_a_device)
{
    rig_open(&rig, 8 * MIB, 0);
    for (uint32_t i = 0; i < 30; i++) {
        struct tiering_id id = key(i % 2 ? RIG_SCRATCH : RIG_SHARED, i);

        ck_assert_int_eq(rig_put(&rig, &id, 70000, i + 1), 0);
    }
    hot();
    for (uint32_t i = 0; i < 30; i++) {
        struct tiering_id id = key(i % 2 ? RIG_SCRATCH : RIG_SHARED, i);

        ck_assert_int_eq(rig_get(&rig, &id, i + 1), 0);
    }
    rig_close(&rig);
}
END_TEST

/* Room is room again: as much can be put as before. */
START_TEST(maps_of_memory_are_made_again)
{
    rig_open(&rig, 4 * MIB, 0);
    uint64_t used = 0;
    for (uint32_t i = 0; i < 40; i++) {
        struct tiering_id id = key(RIG_CACHE, i);

        ck_assert_int_eq(rig_put(&rig, &id, 65536, i + 1), 0);
        if (i % 3 == 0)
            ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
    }
    used = rig_pool_stat(&rig, 0).dram_used;
    hot();
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).dram_used, used);
    for (uint32_t i = 100; i < 100 + (4 * MIB - used) / 65536; i++) {
        struct tiering_id id = key(RIG_SCRATCH, i);

        ck_assert_int_eq(rig_put(&rig, &id, 65536, i + 1), 0);
    }
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).drops, 0);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).dram_used, 4 * MIB);
    rig_close(&rig);
}
END_TEST

/* Some of its pieces had been deleted when the process died; or had become visible. */
START_TEST(objects_of_several_pieces_are_whole_or_gone)
{
    struct tiering_id id;

    rig_open(&rig, 8 * MIB, 0);
    id = tensor(RIG_SCRATCH, 1, 3 * RIG_PIECE);
    for (id.piece = 0; id.piece < 3; id.piece++)
        ck_assert_int_eq(rig_write(&rig, &id, 10 + id.piece), 0);
    struct tiering_id other = tensor(RIG_SCRATCH, 2, 2 * RIG_PIECE);
    id.piece = 1;
    uint32_t middle = record_find(&rig.t->records, &id, record_hash_id(&rig.t->records, &id));
    uint32_t half = record_find(&rig.t->records, &other, record_hash_id(&rig.t->records, &other));
    object_kill(rig.t, middle);
    object_set_flags(rig.t, half, RECORD_INCOMPLETE);
    hot();
    for (id.piece = 0; id.piece < 3; id.piece++)
        ck_assert_uint_eq(tier_of(&id), TIERING_NONE);
    struct tiering_found found;
    for (other.piece = 0; other.piece < 2; other.piece++)
        ck_assert_int_eq(tiering_lookup(rig.t, &other, &found), 0);
    rig_close(&rig);
}
END_TEST

/* A part is committed, and the other one still to come: it can come after the restart. */
START_TEST(parts_can_be_completed)
{
    struct tiering_id id;
    struct tiering_grant grant;
    struct tiering_found found;

    rig_open(&rig, 8 * MIB, 0);
    id = key(RIG_CACHE, 1);
    id.n_parts = 2;
    ck_assert_int_eq(rig_put(&rig, &id, 5000, 1), 0);
    hot();
    ck_assert_int_eq(tiering_lookup(rig.t, &id, &found), -EINPROGRESS);
    rig_turn(&rig, 1, 1000000000);
    id.part = 1;
    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &id, 5000, 5000, &grant), 0);
    rig_fill(rig_memory(&rig, &grant), 5000, 2);
    ck_assert_int_eq(rig_commit(&rig, &rig.s, grant.lease), 0);
    ck_assert_int_eq(rig_get(&rig, &id, 2), 0);
    id.part = 0;
    ck_assert_int_eq(rig_get(&rig, &id, 1), 0);
    rig_close(&rig);
}
END_TEST

/* --- Leases ---------------------------------------------------------------------------------------------------------- */

START_TEST(leases_hold)
{
    static const enum rig_space spaces[] = {RIG_CACHE, RIG_SHARED};

    for (uint32_t i = 0; i < 2; i++) {
        struct tiering_grant read, made, again;
        uint32_t pool;

        rig_open(&rig, 8 * MIB, DEVICE);
        struct tiering_id id = key(spaces[i], 1), fresh = key(spaces[i], 2);
        ck_assert_int_eq(rig_put(&rig, &id, 90000, 1), 0);
        ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, 0, &read), 0);
        ck_assert_int_eq(rig_reserve(&rig, &rig.s, &fresh, 40000, 40000, &made), 0);
        rig_fill(rig_memory(&rig, &made), 40000, 2);
        hot();
        ck_assert_uint_eq(counts().leases, 2);
        ck_assert_int_eq(tiering_lease_info(rig.t, &rig.s, read.lease, &again, &pool), 0);
        ck_assert_uint_eq(again.region, read.region);
        ck_assert_uint_eq(again.epoch, read.epoch);
        ck_assert_uint_eq(again.offset_bytes, read.offset_bytes);
        ck_assert(rig_is(rig_memory(&rig, &read), 90000, 1));
        ck_assert_uint_eq(rig_pool_stat(&rig, pool).leased, 130000);
        ck_assert_int_eq(tiering_lease_info(rig.t, &rig.other, read.lease, &again, &pool), -EBADF);
        ck_assert_int_eq(rig_commit(&rig, &rig.s, made.lease), 0);
        ck_assert_int_eq(tiering_release(rig.t, &rig.s, read.lease, 0), 0);
        ck_assert_int_eq(tiering_release(rig.t, &rig.s, read.lease, 0), -EBADF);
        ck_assert_int_eq(rig_get(&rig, &fresh, 2), 0);
        ck_assert_uint_eq(rig_pool_stat(&rig, pool).admitted, 0);
        rig_close(&rig);
    }
}
END_TEST

START_TEST(sessions_that_do_not_return_end)
{
    struct tiering_grant read, write, made;

    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id block = key(RIG_SCRATCH, 1), fresh = key(RIG_SCRATCH, 2), id = tensor(RIG_SCRATCH, 3, RIG_PIECE);
    ck_assert_int_eq(rig_put(&rig, &block, 5000, 1), 0);
    ck_assert_int_eq(rig_write(&rig, &id, 5), 0);
    ck_assert_int_eq(rig_acquire(&rig, &rig.other, &block, 0, &read), 0);
    ck_assert_int_eq(rig_acquire(&rig, &rig.other, &id, TIERING_WRITE, &write), 0);
    ck_assert_int_eq(rig_reserve(&rig, &rig.other, &fresh, 5000, 5000, &made), 0);
    rig_hot(&rig, true, false);
    ck_assert_uint_eq(counts().leases_ended, 3);
    rig_check(&rig);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).leased, 0);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).admitted, 0);
    ck_assert_uint_eq(tier_of(&fresh), TIERING_NONE);
    ck_assert_int_eq(rig_get(&rig, &block, 1), 0);
    ck_assert_int_eq(rig_get(&rig, &id, 5), -EBADMSG); /* how far it had been written nobody knows */
    rig_close(&rig);
}
END_TEST

/* Nobody was told of them: they end as if they had never been. */
START_TEST(grants_that_nobody_heard_of_end)
{
    struct tiering_grant grant;
    uint32_t pool;

    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id id = tensor(RIG_SCRATCH, 1, RIG_PIECE), fresh = key(RIG_SCRATCH, 2), told = key(RIG_SCRATCH, 3);
    ck_assert_int_eq(rig_write(&rig, &id, 5), 0);
    ck_assert_int_eq(tiering_acquire(rig.t, &rig.s, &id, 0, 0, TIERING_WRITE, NULL, &grant), 0);
    ck_assert_int_eq(tiering_reserve(rig.t, &rig.s, &fresh, 5000, 5000, NULL, &grant), 0);
    ck_assert_int_eq(rig_reserve(&rig, &rig.s, &told, 5000, 5000, &grant), 0);
    uint64_t requests[] = {rig.request - 2, rig.request - 1};
    hot();
    ck_assert_int_eq(rig_get(&rig, &id, 5), 0); /* not torn */
    ck_assert_uint_eq(tier_of(&fresh), TIERING_NONE);
    ck_assert_int_eq(tiering_lease_info(rig.t, &rig.s, grant.lease, &grant, &pool), 0);
    /* And its client says that it has had no answer to these. */
    tiering_session_lost(rig.t, &rig.s, requests, 2);
    ck_assert_int_eq(tiering_lease_info(rig.t, &rig.s, grant.lease, &grant, &pool), 0);
    requests[1]++;
    tiering_session_lost(rig.t, &rig.s, requests, 2);
    ck_assert_int_eq(tiering_lease_info(rig.t, &rig.s, grant.lease, &grant, &pool), -EBADF);
    ck_assert_uint_eq(tier_of(&told), TIERING_NONE);
    rig_close(&rig);
}
END_TEST

/* A tensor that is written to, and a block that is reserved, in a shared pool: both leases are about to end. */
static void both_filled(const struct tiering_id *id, const struct tiering_id *block, struct tiering_grant *write,
                        struct tiering_grant *made)
{
    ck_assert_int_eq(rig_write(&rig, id, 1), 0);
    ck_assert_int_eq(rig_acquire(&rig, &rig.s, id, TIERING_WRITE, write), 0);
    rig_fill(rig_memory(&rig, write), RIG_PIECE, 2);
    ck_assert_int_eq(rig_reserve(&rig, &rig.s, block, 9000, 9000, made), 0);
    rig_fill(rig_memory(&rig, made), 9000, 3);
}

/* In shared pools both take a copy, and the lease is there until it is made. */
START_TEST(commit_and_release_that_were_cut_off_are_done_again)
{
    struct tiering_grant made, write;
    struct rig_wait w;

    rig_open(&rig, 8 * MIB, DEVICE);
    struct tiering_id id = tensor(RIG_SHARED, 1, RIG_PIECE), block = key(RIG_SHARED, 2);
    both_filled(&id, &block, &write, &made);
    rig_wait_init(&w);
    ck_assert_int_eq(tiering_release_wait(rig.t, &rig.s, write.lease, TIERING_DIRTY, &w.wait, &write), TIERING_WAIT);
    rig_wait_init(&w);
    uint64_t lease = made.lease;
    ck_assert_int_eq(tiering_commit(rig.t, &rig.s, lease, &w.wait, &made), TIERING_WAIT);
    ck_assert_int_eq(tiering_commit(rig.t, &rig.s, lease, &w.wait, &made), -EBADF);
    rig_turn(&rig, 0, 1000);
    hot();
    ck_assert_uint_eq(counts().leases, 2);
    ck_assert_int_eq(rig_get(&rig, &id, 1), 0);
    ck_assert_int_eq(rig_commit(&rig, &rig.s, lease), 0);
    ck_assert_int_eq(rig_get(&rig, &block, 3), 0);
    for (uint32_t l = rig.s.first_lease, next; l != RECORD_NONE; l = next) {
        next = rig.t->leases[l].next;
        ck_assert_int_eq(rig_release(&rig, &rig.s, (uint64_t)rig.t->leases[l].generation << 32 | l, TIERING_DIRTY), 0);
    }
    ck_assert_int_eq(rig_get(&rig, &id, 2), 0);
    ck_assert_uint_eq(rig_pool_stat(&rig, 1).admitted, 0);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* A reader keeps what it reads, though the piece has another extent by now. */
START_TEST(readers_of_old_bytes_keep_them)
{
    struct tiering_grant read;

    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id id = tensor(RIG_SHARED, 1, RIG_PIECE);
    ck_assert_int_eq(rig_write(&rig, &id, 1), 0);
    ck_assert_int_eq(rig_acquire(&rig, &rig.other, &id, 0, &read), 0);
    ck_assert_int_eq(rig_write(&rig, &id, 2), 0);
    for (int round = 0; round < 2; round++) {
        hot();
        ck_assert(rig_is(rig_memory(&rig, &read), RIG_PIECE, 1));
        ck_assert_int_eq(rig_get(&rig, &id, 2), 0);
        ck_assert_uint_eq(rig_pool_stat(&rig, 1).admitted, 2 * RIG_PIECE);
    }
    uint64_t used = rig_pool_stat(&rig, 1).dram_used;
    ck_assert_int_eq(tiering_release(rig.t, &rig.other, read.lease, 0), 0);
    ck_assert_uint_eq(rig_pool_stat(&rig, 1).dram_used, used - RIG_PIECE);
    ck_assert_uint_eq(rig_pool_stat(&rig, 1).admitted, 0);
    rig_close(&rig);
}
END_TEST

/* A stop in order, for whoever comes next: sessions leave what they have. */
START_TEST(sessions_leave_their_leases)
{
    struct tiering_grant read;

    rig_open(&rig, 8 * MIB, DEVICE);
    struct tiering_id id = key(RIG_DURABLE, 1);
    ck_assert_int_eq(rig_put(&rig, &id, 90000, 1), 0);
    ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, 0, &read), 0);
    for (int turn = 0; !tiering_drain(rig.t); turn++)
        rig_turn(&rig, 4, 1000000);
    tiering_session_leave(rig.t, &rig.s);
    tiering_session_leave(rig.t, &rig.other);
    tiering_stop(rig.t);
    for (int turn = 0; !tiering_idle(rig.t); turn++)
        rig_turn(&rig, 4, 1000000);
    rig_check(&rig);
    ck_assert_int_eq(tiering_close_clean(rig.t), 0);
    hot();
    ck_assert(rig_is(rig_memory(&rig, &read), 90000, 1));
    ck_assert_int_eq(tiering_release(rig.t, &rig.s, read.lease, 0), 0);
    ck_assert_int_eq(rig_get(&rig, &id, 1), 0);
    rig_close(&rig);
}
END_TEST

/* The same where a COMMIT and a dirty RELEASE of theirs have not found room yet: they are asked for again. */
START_TEST(sessions_leave_what_waits_for_room)
{
    struct tiering_grant made, write, unused;
    struct rig_wait commit, release;

    rig_open(&rig, 8 * MIB, DEVICE);
    struct tiering_id id = tensor(RIG_SHARED, 1, RIG_PIECE), block = key(RIG_SHARED, 2);
    both_filled(&id, &block, &write, &made);
    rig_wait_init(&release);
    ck_assert_int_eq(tiering_release_wait(rig.t, &rig.s, write.lease, TIERING_DIRTY, &release.wait, &unused),
                     TIERING_WAIT);
    rig_wait_init(&commit);
    ck_assert_int_eq(tiering_commit(rig.t, &rig.s, made.lease, &commit.wait, &unused), TIERING_WAIT);
    tiering_leave(rig.t);
    ck_assert(tiering_wait_cancel(rig.t, &release.wait));
    ck_assert(tiering_wait_cancel(rig.t, &commit.wait));
    rig_check(&rig);
    tiering_session_leave(rig.t, &rig.s);
    tiering_session_leave(rig.t, &rig.other);
    tiering_stop(rig.t);
    for (int turn = 0; !tiering_idle(rig.t); turn++)
        rig_turn(&rig, 4, 1000000);
    ck_assert_int_eq(tiering_close_clean(rig.t), 0);
    hot();
    ck_assert_uint_eq(counts().leases, 2);
    ck_assert_int_eq(rig_commit(&rig, &rig.s, made.lease), 0);
    ck_assert_int_eq(rig_get(&rig, &block, 3), 0);
    ck_assert_int_eq(rig_release(&rig, &rig.s, write.lease, TIERING_DIRTY), 0);
    ck_assert_int_eq(rig_get(&rig, &id, 2), 0);
    ck_assert_uint_eq(rig_pool_stat(&rig, 1).admitted, 0);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* --- Beside the logs ------------------------------------------------------------------------------------------------- */

/* It left memory, and the log has not heard of its place on the device. */
START_TEST(what_the_log_lacks_is_logged_again)
{
    static const enum rig_space spaces[] = {RIG_CACHE, RIG_SCRATCH, RIG_DURABLE};

    rig_open(&rig, 8 * MIB, DEVICE);
    for (uint32_t i = 0; i < 12; i++) {
        struct tiering_id id = key(spaces[i % 3], i);

        ck_assert_int_eq(rig_put(&rig, &id, i % 2 ? 200000 : 8000, i + 1), 0);
        for (int turn = 0; tier_of(&id) != TIERING_NVME; turn++) {
            ck_assert_int_eq(tiering_advise(rig.t, &id, TIERING_NOT_AGAIN, 0, rig.now_ns), 0);
            rig_turn(&rig, 4, 3000000); /* not long enough for the log */
        }
    }
    hot();
    ck_assert_uint_gt(counts().redone, 0);
    for (uint32_t i = 0; i < 12; i++) {
        struct tiering_id id = key(spaces[i % 3], i);

        ck_assert_uint_eq(tier_of(&id), TIERING_NVME);
    }
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    rig_crash(&rig, true); /* and a power loss finds what a SYNC has promised */
    for (uint32_t i = 0; i < 12; i++) {
        struct tiering_id id = key(spaces[i % 3], i);

        if (spaces[i % 3] == RIG_DURABLE)
            ck_assert_int_eq(rig_get(&rig, &id, i + 1), 0);
    }
    rig_close(&rig);
}
END_TEST

/* The log has it, and was not told of its end. */
START_TEST(what_was_deleted_does_not_come_back)
{
    rig_open(&rig, 8 * MIB, DEVICE);
    struct tiering_id gone = key(RIG_DURABLE, 1), kept = key(RIG_DURABLE, 2);
    ck_assert_int_eq(rig_put(&rig, &gone, 8000, 1), 0);
    ck_assert_int_eq(rig_put(&rig, &kept, 8000, 2), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    ck_assert_int_eq(tiering_delete(rig.t, &gone), 0);
    hot();
    ck_assert_uint_eq(counts().forgotten, 1);
    ck_assert_uint_eq(tier_of(&gone), TIERING_NONE);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    rig_crash(&rig, true);
    gone = key(RIG_DURABLE, 1);
    kept = key(RIG_DURABLE, 2);
    ck_assert_uint_eq(tier_of(&gone), TIERING_NONE);
    ck_assert_int_eq(rig_get(&rig, &kept, 2), 0);
    rig_close(&rig);
}
END_TEST

/* Changed since its last SYNC: a power loss finds that one, before the next SYNC and not after it. */
START_TEST(a_tensor_keeps_its_shadow)
{
    for (int synced = 0; synced < 2; synced++) {
        rig_open(&rig, 8 * MIB, DEVICE);
        struct tiering_id a = tensor(RIG_DURABLE, 1, RIG_PIECE), b = tensor(RIG_DURABLE, 2, RIG_PIECE);
        ck_assert_int_eq(rig_write(&rig, &a, 1), 0);
        ck_assert_int_eq(rig_write(&rig, &b, 2), 0);
        ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
        ck_assert_int_eq(rig_write(&rig, &a, 11), 0);
        hot();
        ck_assert_int_eq(rig_get(&rig, &a, 11), 0);
        ck_assert_int_eq(rig_get(&rig, &b, 2), 0);
        ck_assert_uint_eq(rig.t->n_shadows, 1);
        if (synced)
            ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
        rig_crash(&rig, true);
        a = key(RIG_DURABLE, 1);
        b = key(RIG_DURABLE, 2);
        ck_assert_int_eq(rig_get(&rig, &a, synced ? 11 : 1), 0);
        ck_assert_int_eq(rig_get(&rig, &b, 2), 0);
        rig_close(&rig);
    }
}
END_TEST

/* The process ended between giving a writer's piece its old copy back and ending the lease; the writer is still there. */
START_TEST(a_writer_that_was_about_to_end_keeps_the_shadow)
{
    struct tiering_grant write;

    rig_open(&rig, 8 * MIB, DEVICE);
    struct tiering_id a = tensor(RIG_DURABLE, 1, RIG_PIECE);
    ck_assert_int_eq(rig_write(&rig, &a, 1), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    ck_assert_int_eq(rig_acquire(&rig, &rig.s, &a, TIERING_WRITE, &write), 0);
    ck_assert_uint_eq(rig.t->n_shadows, 1);
    ck_assert(shadow_restore(rig.t, record_find(&rig.t->records, &a, record_hash_id(&rig.t->records, &a))));
    hot();
    ck_assert_uint_eq(rig.t->n_shadows, 1);
    rig_fill(rig_memory(&rig, &write), RIG_PIECE, 2);
    ck_assert_int_eq(tiering_release(rig.t, &rig.s, write.lease, TIERING_DIRTY), 0);
    ck_assert_int_eq(rig_get(&rig, &a, 2), 0);
    for (int turn = 0; turn < 200; turn++) /* the log hears of all that there is to hear of */
        rig_turn(&rig, 4, 30000000);
    rig_crash(&rig, true);
    a = key(RIG_DURABLE, 1);
    ck_assert_int_eq(rig_get(&rig, &a, 1), 0);
    rig_close(&rig);
}
END_TEST

/* Whose pieces have all changed since their last SYNC: the next one must not go to another store, beside the old copies. */
START_TEST(a_space_keeps_its_home)
{
    rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 8 * MIB, .device_bytes = DEVICE}, 2);
    rig_start(&rig);
    struct tiering_id a = tensor(RIG_DURABLE, 1, RIG_PIECE);
    ck_assert_int_eq(rig_write(&rig, &a, 1), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    ck_assert_int_eq(rig_write(&rig, &a, 11), 0);
    uint8_t home = rig.t->spaces[rig.spaces[RIG_DURABLE].index].home;
    ck_assert_uint_lt(home, 2);
    hot();
    ck_assert_uint_eq(rig.t->n_shadows, 1);
    ck_assert_uint_eq(rig.t->spaces[rig.spaces[RIG_DURABLE].index].home, home);
    rig_close(&rig);
}
END_TEST

static int sync_status;

static void sync_ended(struct tiering_sync *sync, int status)
{
    (void)sync;
    sync_status = status;
}

/* What the log has is of one that was deleted, and whose deletion it has not heard of. */
START_TEST(a_tensor_made_anew_has_no_shadow)
{
    rig_open(&rig, 8 * MIB, DEVICE);
    struct tiering_id a = tensor(RIG_DURABLE, 1, RIG_PIECE);
    struct tiering_found found;

    ck_assert_int_eq(rig_write(&rig, &a, 1), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    ck_assert_int_eq(tiering_delete(rig.t, &a), 0);
    a = tensor(RIG_DURABLE, 1, RIG_PIECE);
    ck_assert_int_eq(rig_write(&rig, &a, 11), 0);
    hot();
    ck_assert_int_eq(rig_get(&rig, &a, 11), 0);
    ck_assert_uint_eq(rig.t->n_shadows, 0);
    ck_assert_int_eq(tiering_delete(rig.t, &a), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    rig_crash(&rig, true);
    a = key(RIG_DURABLE, 1);
    ck_assert_int_eq(tiering_lookup(rig.t, &a, &found), -ENOENT);
    rig_close(&rig);
}
END_TEST

/* The same where a SYNC of the one that was made anew was cut off: that it has been put says nothing of what was there before. */
START_TEST(a_tensor_made_anew_has_no_shadow_before_its_first_sync)
{
    uint32_t n_new = 0;

    for (uint32_t turns = 0; turns < 40; turns++) {
        struct tiering_sync sync = {.done = sync_ended};

        sync_status = 1;
        rig_open(&rig, 8 * MIB, DEVICE);
        struct tiering_id a = tensor(RIG_DURABLE, 1, RIG_PIECE), b = tensor(RIG_DURABLE, 2, RIG_PIECE);
        ck_assert_int_eq(rig_write(&rig, &a, 1), 0);
        ck_assert_int_eq(rig_write(&rig, &b, 2), 0);
        ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
        ck_assert_int_eq(tiering_delete(rig.t, &a), 0);
        a = tensor(RIG_DURABLE, 1, RIG_PIECE);
        ck_assert_int_eq(rig_write(&rig, &a, 11), 0);
        tiering_sync_begin(rig.t, &sync, rig.spaces[RIG_DURABLE].index);
        ck_assert_int_eq(tiering_sync_add_space(rig.t, &sync), 0);
        tiering_sync_run(rig.t, &sync);
        for (uint32_t turn = 0; turn < turns && sync_status == 1; turn++)
            rig_turn(&rig, 1, 1000);
        hot();
        ck_assert_int_eq(rig_get(&rig, &a, 11), 0);
        ck_assert_uint_eq(rig.t->n_shadows, 0);
        ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, &b, 1), 0); /* and with it the deletion, which was before */
        rig_crash(&rig, true);
        a = key(RIG_DURABLE, 1);
        b = key(RIG_DURABLE, 2);
        int status = rig_get(&rig, &a, 11);
        ck_assert(status == 0 || (status == -ENOENT && sync_status == 1));
        n_new += status == 0;
        ck_assert_int_eq(rig_get(&rig, &b, 2), 0);
        rig_close(&rig);
    }
    ck_assert_uint_gt(n_new, 0);
    ck_assert_uint_lt(n_new, 40);
}
END_TEST

/* Written by a SYNC that nobody was told of: it takes effect as a whole, by the next one, or not at all. */
START_TEST(a_sync_that_was_cut_off)
{
    uint32_t n_old = 0;

    for (uint32_t turns = 0; turns < 40; turns++) {
        struct tiering_sync sync = {.done = sync_ended};
        uint32_t found = 0;

        sync_status = 1;
        rig_open(&rig, 8 * MIB, DEVICE);
        struct tiering_id ids[3];
        for (uint32_t i = 0; i < 3; i++) {
            ids[i] = tensor(RIG_DURABLE, i, RIG_PIECE);
            ck_assert_int_eq(rig_write(&rig, &ids[i], i + 1), 0);
        }
        ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
        for (uint32_t i = 0; i < 3; i++)
            ck_assert_int_eq(rig_write(&rig, &ids[i], i + 11), 0);
        tiering_sync_begin(rig.t, &sync, rig.spaces[RIG_DURABLE].index);
        ck_assert_int_eq(tiering_sync_add_space(rig.t, &sync), 0);
        tiering_sync_run(rig.t, &sync);
        for (uint32_t turn = 0; turn < turns && sync_status == 1; turn++)
            rig_turn(&rig, 1, 1000);
        hot();
        for (uint32_t i = 0; i < 3; i++)
            ck_assert_int_eq(rig_get(&rig, &ids[i], i + 11), 0);
        rig_crash(&rig, true);
        for (uint32_t i = 0; i < 3; i++) {
            ids[i] = key(RIG_DURABLE, i);
            found += rig_get(&rig, &ids[i], i + 11) == 0;
        }
        ck_assert(found == 3 || (found == 0 && sync_status == 1));
        n_old += found == 0;
        rig_close(&rig);
    }
    ck_assert_uint_gt(n_old, 3);
    ck_assert_uint_lt(n_old, 40);
}
END_TEST

/* --- What does not come back ----------------------------------------------------------------------------------------- */

/* Somebody kept one chunk less. */
START_TEST(memory_that_is_missing)
{
    rig_open(&rig, 8 * MIB, DEVICE);
    struct tiering_id id = key(RIG_SCRATCH, 1), clean = key(RIG_CACHE, 2), shared = key(RIG_SHARED, 3);
    struct tiering_grant grant;
    uint32_t pool;
    ck_assert_int_eq(rig_put(&rig, &id, 8000, 1), 0);
    ck_assert_int_eq(rig_put(&rig, &clean, 8000, 2), 0);
    ck_assert_int_eq(rig_put(&rig, &shared, 8000, 3), 0);
    rig_evict(&rig, &clean);
    ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, 0, &grant), 0);
    rig_hot_end(&rig);
    simdisk_backend(rig.disk)->ops->chunk_close(simdisk_backend(rig.disk), grant.region);
    rig.n_gone = 0;
    rig_hot_start(&rig, true, true);
    ck_assert_uint_eq(rig.n_gone, 1);
    ck_assert_uint_eq(counts().lost, 1);
    rig_check(&rig);
    ck_assert_uint_eq(tier_of(&id), TIERING_NONE);
    ck_assert_int_eq(rig_get(&rig, &clean, 2), 0);
    ck_assert_int_eq(rig_get(&rig, &shared, 3), 0);
    ck_assert_int_eq(tiering_lease_info(rig.t, &rig.s, grant.lease, &grant, &pool), -EBADF);
    rig_close(&rig);
}
END_TEST

static void expect_cold(const char *word)
{
    const char *why = NULL;
    struct tiering_id id = key(RIG_SCRATCH, 1);

    rig_hot_start(&rig, true, true);
    ck_assert(!tiering_is_warm(rig.t, &why));
    ck_assert_ptr_nonnull(why);
    ck_assert_msg(strstr(why, word) != NULL, "%s", why);
    rig_check(&rig);
    ck_assert_uint_eq(tier_of(&id), TIERING_NONE);
    ck_assert_int_eq(rig_put(&rig, &id, 8000, 1), 0);
    ck_assert_int_eq(rig_get(&rig, &id, 1), 0);
    rig_close(&rig);
}

START_TEST(another_layout_starts_cold)
{
    struct tiering_survivor survivor;
    const char *why;
    uint64_t bytes = tiering_records_bytes(4096, 1000);

    rig_open(&rig, 8 * MIB, DEVICE);
    struct tiering_id id = key(RIG_SCRATCH, 1);
    ck_assert_int_eq(rig_put(&rig, &id, 8000, 1), 0);
    ck_assert_int_eq(tiering_survivor_look(rig.records, bytes, &survivor, &why), 0);
    ck_assert_uint_eq(survivor.max_objects, 4096);
    ck_assert_uint_eq(survivor.max_leases, 1000);
    ck_assert_int_eq(tiering_survivor_look(rig.records, bytes - 1, &survivor, &why), -EPROTONOSUPPORT);
    ck_assert_int_eq(tiering_survivor_look(rig.records, 100, &survivor, &why), -EPROTONOSUPPORT);
    rig_hot_end(&rig);
    rig.t = NULL;
    ((struct truth_header *)rig.records)->layout++;
    ck_assert_int_eq(tiering_survivor_look(rig.records, bytes, &survivor, &why), -EPROTONOSUPPORT);
    ck_assert_ptr_nonnull(strstr(why, "another version"));
    expect_cold("another version");
}
END_TEST

START_TEST(records_that_contradict_each_other_start_cold)
{
    rig_open(&rig, 8 * MIB, DEVICE);
    struct tiering_id id = key(RIG_SCRATCH, 1), other = key(RIG_SCRATCH, 2);
    ck_assert_int_eq(rig_put(&rig, &id, 8000, 1), 0);
    ck_assert_int_eq(rig_put(&rig, &other, 8000, 2), 0);
    uint32_t a = record_find(&rig.t->records, &id, record_hash_id(&rig.t->records, &id));
    uint32_t b = record_find(&rig.t->records, &other, record_hash_id(&rig.t->records, &other));
    struct record *r = record_begin(&rig.t->records, b);
    r->mem_sector = record_at(&rig.t->records, a)->mem_sector;
    record_end(&rig.t->records);
    rig_hot_end(&rig);
    expect_cold("contradicts");
}
END_TEST

/* Killed before it had started for the first time. */
START_TEST(what_was_never_whole_starts_cold)
{
    rig_open(&rig, 8 * MIB, DEVICE);
    rig_hot_end(&rig);
    ((struct truth_header *)rig.records)->magic = 0;
    expect_cold("not complete");
}
END_TEST

/* The pool is not configured any more, or its sessions may do something else: what it had in memory goes. */
START_TEST(a_pool_that_is_gone)
{
    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id id = key(RIG_SCRATCH, 1), shared = key(RIG_SHARED, 2);
    struct tiering_found found;
    ck_assert_int_eq(rig_put(&rig, &id, 8000, 1), 0);
    ck_assert_int_eq(rig_put(&rig, &shared, 8000, 2), 0);
    rig_hot_end(&rig);
    rig.pools[1].trusted = true;
    rig_hot_start(&rig, true, true);
    rig_check(&rig);
    ck_assert_int_eq(rig_get(&rig, &id, 1), 0);
    ck_assert_int_eq(tiering_lookup(rig.t, &shared, &found), -ENOENT);
    ck_assert_uint_eq(counts().lost, 1);
    rig_close(&rig);
}
END_TEST

START_TEST(another_device_is_refused)
{
    const char *why;
    struct tiering *t;

    rig_open(&rig, 8 * MIB, DEVICE);
    rig_hot_end(&rig);
    struct truth_header *h = rig.records;
    h->stores[0].uuid[0]++;
    rig.config.survived = true;
    ck_assert_int_eq(tiering_new(&rig.config, &t), 0);
    ck_assert_int_eq(tiering_store_add(t, 0, 0, DEVICE, &why), -ESTALE);
    tiering_free(t);
    rig_start(&rig); /* cold */
    rig_close(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("warm");
    TCase *tc = tcase_create("all");
    SRunner *runner = srunner_create(suite);

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, everything_committed_is_there);
    tcase_add_test(tc, without_a_device);
    tcase_add_test(tc, maps_of_memory_are_made_again);
    tcase_add_test(tc, objects_of_several_pieces_are_whole_or_gone);
    tcase_add_test(tc, parts_can_be_completed);
    tcase_add_test(tc, leases_hold);
    tcase_add_test(tc, sessions_that_do_not_return_end);
    tcase_add_test(tc, grants_that_nobody_heard_of_end);
    tcase_add_test(tc, commit_and_release_that_were_cut_off_are_done_again);
    tcase_add_test(tc, readers_of_old_bytes_keep_them);
    tcase_add_test(tc, sessions_leave_their_leases);
    tcase_add_test(tc, sessions_leave_what_waits_for_room);
    tcase_add_test(tc, what_the_log_lacks_is_logged_again);
    tcase_add_test(tc, what_was_deleted_does_not_come_back);
    tcase_add_test(tc, a_tensor_keeps_its_shadow);
    tcase_add_test(tc, a_writer_that_was_about_to_end_keeps_the_shadow);
    tcase_add_test(tc, a_space_keeps_its_home);
    tcase_add_test(tc, a_tensor_made_anew_has_no_shadow);
    tcase_add_test(tc, a_tensor_made_anew_has_no_shadow_before_its_first_sync);
    tcase_add_test(tc, a_sync_that_was_cut_off);
    tcase_add_test(tc, memory_that_is_missing);
    tcase_add_test(tc, another_layout_starts_cold);
    tcase_add_test(tc, records_that_contradict_each_other_start_cold);
    tcase_add_test(tc, what_was_never_whole_starts_cold);
    tcase_add_test(tc, a_pool_that_is_gone);
    tcase_add_test(tc, another_device_is_refused);
    suite_add_tcase(suite, tc);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
