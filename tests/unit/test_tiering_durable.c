/* SPDX-License-Identifier: Apache-2.0 */
/* Tiering on a device: spill and reload, SYNC, crashes, damage, full devices, the emptying of segments. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io/format.h"
#include "io/log.h"
#include "tests/unit/support/tiering_rig.h"
#include "tiering/core.h"

static struct rig rig;

static struct tiering_id key(enum rig_space space, uint32_t n)
{
    return rig_id(&rig, space, n);
}

static bool is_in_memory(const struct tiering_id *id)
{
    struct tiering_found found;

    ck_assert_int_eq(tiering_lookup(rig.t, id, &found), 0);
    return found.tier == TIERING_DRAM;
}

/* --- To the device and back ------------------------------------------------------------------------------------------------ */

START_TEST(what_does_not_fit_comes_back_from_the_device)
{
    rig_open(&rig, 4 * MIB, 64 * MIB);
    static const enum rig_space spaces[] = {RIG_CACHE, RIG_SCRATCH, RIG_DURABLE, RIG_SHARED};
    uint32_t n = 0;

    for (uint32_t i = 0; i < 120; i++) {
        struct tiering_id id = key(spaces[i % 4], i);

        ck_assert_int_eq(rig_put(&rig, &id, i % 3 ? 100000 : 5000, i + 1), 0);
    }
    for (uint32_t i = 0; i < 120; i++) {
        struct tiering_id id = key(spaces[i % 4], i);

        n += !is_in_memory(&id);
        ck_assert_int_eq(rig_get(&rig, &id, i + 1), 0);
    }
    ck_assert_uint_gt(n, 20);
    ck_assert_uint_gt(rig_pool_stat(&rig, 0).spills, 20);
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).drops, 0);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

START_TEST(a_prefetch_brings_it_back)
{
    rig_open(&rig, 4 * MIB, 64 * MIB);
    struct tiering_id id = key(RIG_CACHE, 1);
    struct tiering_grant g;
    struct rig_wait w;

    ck_assert_int_eq(rig_put(&rig, &id, 70000, 1), 0);
    rig_evict(&rig, &id);
    ck_assert(!is_in_memory(&id));
    ck_assert_int_eq(tiering_acquire(rig.t, &rig.s, &id, 0, 0, TIERING_NO_FETCH, NULL, &g), -EAGAIN);
    rig_wait_init(&w);
    ck_assert_int_eq(tiering_prefetch(rig.t, &id, &w.wait, &g), TIERING_WAIT);
    ck_assert_int_eq(rig_wait(&rig, &w), 0);
    ck_assert(is_in_memory(&id));
    ck_assert_int_eq(tiering_prefetch(rig.t, &id, &w.wait, &g), 0);
    /* Two who wait for the same load; one goes. */
    rig_evict(&rig, &id);
    struct rig_wait a, b;
    rig_wait_init(&a);
    rig_wait_init(&b);
    ck_assert_int_eq(tiering_acquire(rig.t, &rig.s, &id, 0, 0, 0, &a.wait, &g), TIERING_WAIT);
    ck_assert_int_eq(tiering_acquire(rig.t, &rig.other, &id, 0, 0, 0, &b.wait, &g), TIERING_WAIT);
    ck_assert(tiering_wait_cancel(rig.t, &a.wait));
    ck_assert_int_eq(rig_wait(&rig, &b), 0);
    ck_assert(b.wait.grant.fetched);
    ck_assert_uint_eq(b.wait.grant.tier, TIERING_NVME);
    ck_assert(rig_is(rig_memory(&rig, &b.wait.grant), 70000, 1));
    ck_assert_uint_eq(rig_pool_stat(&rig, 0).loads, 2);
    rig_close(&rig);
}
END_TEST

/* --- Restarts ---------------------------------------------------------------------------------------------------------------- */

START_TEST(a_clean_restart_finds_the_cache)
{
    rig_open(&rig, 4 * MIB, 64 * MIB);
    for (uint32_t i = 0; i < 20; i++) {
        struct tiering_id cache = key(RIG_CACHE, i), scratch = key(RIG_SCRATCH, i), durable = key(RIG_DURABLE, i);

        ck_assert_int_eq(rig_put(&rig, &cache, 70000, i + 1), 0);
        ck_assert_int_eq(rig_put(&rig, &scratch, 5000, i + 1), 0);
        ck_assert_int_eq(rig_put(&rig, &durable, 5000, i + 1), 0);
    }
    struct tiering_id gone = key(RIG_CACHE, 3), half = key(RIG_CACHE, 100), whole = key(RIG_CACHE, 101);
    struct tiering_grant g;
    ck_assert_int_eq(tiering_delete(rig.t, &gone), 0);
    half.n_parts = 2;
    ck_assert_int_eq(rig_put(&rig, &half, 5000, 1), 0);
    whole.n_parts = 2;
    ck_assert_int_eq(rig_put(&rig, &whole, 5000, 1), 0);
    whole.part = 1;
    ck_assert_int_eq(rig_put(&rig, &whole, 5000, 2), 0);
    ck_assert_int_eq(rig_reserve(&rig, &rig.other, &gone, 4096, 4096, &g), 0);
    rig_restart(&rig);
    for (uint32_t i = 0; i < 20; i++) {
        struct tiering_id cache = key(RIG_CACHE, i), scratch = key(RIG_SCRATCH, i), durable = key(RIG_DURABLE, i);

        ck_assert_int_eq(rig_get(&rig, &cache, i + 1), i == 3 ? -ENOENT : 0);
        ck_assert_int_eq(rig_get(&rig, &scratch, i + 1), -ENOENT);
        ck_assert_int_eq(rig_get(&rig, &durable, i + 1), 0);
    }
    half = key(RIG_CACHE, 100);
    half.n_parts = 2;
    ck_assert_int_eq(rig_get(&rig, &half, 1), -ENOENT);
    whole = key(RIG_CACHE, 101);
    whole.n_parts = 2;
    ck_assert_int_eq(rig_get(&rig, &whole, 1), 0);
    whole.part = 1;
    ck_assert_int_eq(rig_get(&rig, &whole, 2), 0);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* What a tensor was before its last write is no right answer, and after a death nobody can tell that it is that. */
START_TEST(a_cache_tensor_is_what_it_was_last_or_not_there)
{
    for (int end = 0; end < 3; end++) {
        rig_open(&rig, 4 * MIB, 24 * MIB);
        struct tiering_id id = key(RIG_CACHE, 99);

        ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &id, 50000), 0);
        ck_assert_int_eq(rig_write(&rig, &id, 1), 0);
        for (uint32_t i = 0; i < 40; i++) { /* it goes to the device, and the log says so */
            struct tiering_id other = key(RIG_CACHE, i);

            ck_assert_int_eq(rig_put(&rig, &other, 200000, i + 1), 0);
        }
        for (int i = 0; i < 50; i++)
            rig_turn(&rig, 16, 100000000);
        ck_assert_int_eq(rig_write(&rig, &id, 2), 0);
        ck_assert_int_eq(rig_get(&rig, &id, 2), 0);
        if (end == 0)
            rig_restart(&rig);
        else
            rig_crash(&rig, end == 1);
        id = key(RIG_CACHE, 99);
        ck_assert_int_eq(rig_get(&rig, &id, 2), end == 0 ? 0 : -ENOENT);
        rig_check(&rig);
        rig_restart(&rig);
        id = key(RIG_CACHE, 99);
        ck_assert_int_eq(rig_get(&rig, &id, 2), end == 0 ? 0 : -ENOENT);
        rig_close(&rig);
    }
}
END_TEST

/* A piece of it is torn, and in no log: it must not be taken for one that was never written. */
START_TEST(a_torn_piece_of_a_cache_tensor_does_not_become_zeros)
{
    struct tiering_grant writer, reader;

    rig_open(&rig, 8 * MIB, 24 * MIB);
    struct tiering_id first = key(RIG_CACHE, 99), second = first;

    second.piece = 1;
    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &first, 2 * RIG_PIECE), 0);
    ck_assert_int_eq(rig_write(&rig, &first, 1), 0);
    ck_assert_int_eq(rig_write(&rig, &second, 2), 0);
    ck_assert_int_eq(rig_acquire(&rig, &rig.other, &second, 0, &reader), 0);
    ck_assert_int_eq(rig_acquire(&rig, &rig.s, &second, TIERING_WRITE, &writer), 0);
    ck_assert_int_eq(rig_release(&rig, &rig.s, writer.lease, TIERING_DISCARD), 0);
    ck_assert_int_eq(rig_release(&rig, &rig.other, reader.lease, 0), 0);
    ck_assert_int_eq(rig_get(&rig, &second, 2), -EBADMSG);
    rig_restart(&rig);
    first = second = key(RIG_CACHE, 99);
    second.piece = 1;
    ck_assert_int_eq(rig_get(&rig, &second, 2), -ENOENT);
    ck_assert_int_eq(rig_get(&rig, &first, 1), -ENOENT);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

static void weigh(uint32_t first, uint32_t second)
{
    tiering_store_update(rig.t, 0, &(struct tiering_store_config){.weight = first});
    tiering_store_update(rig.t, 1, &(struct tiering_store_config){.weight = second});
}

static void write_all(void)
{
    while (!tiering_drain(rig.t))
        rig_turn(&rig, 4, 1000);
}

/* A space whose tensors had all been deleted has moved to another device. The first one's log still tells of them: a SYNC
 * that went there would leave what it is for to chance. */
START_TEST(a_space_that_moved_is_synced_where_it_is)
{
    rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 4 * MIB, .device_bytes = 32 * MIB}, 2);
    rig_start(&rig);
    uint8_t to = (uint8_t)_i, from = 1 - to;
    struct tiering_id id = key(RIG_DURABLE, 1), other = key(RIG_DURABLE, 2);

    weigh(from == 0 ? 1000 : 1, from == 1 ? 1000 : 1);
    rig.t->spaces[id.space].home = from;
    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &id, 8192), 0);
    ck_assert_int_eq(rig_write(&rig, &id, 1), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    rig_crash(&rig, true);
    id = key(RIG_DURABLE, 1);
    other = key(RIG_DURABLE, 2);
    rig.t->spaces[id.space].home = to;
    for (int n = 0; n < 2; n++) {
        struct tiering_id *each = n ? &other : &id;

        ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, each, 8192), 0);
        ck_assert_int_eq(rig_write(&rig, each, 2), 0);
    }
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    rig_crash(&rig, true);
    id = key(RIG_DURABLE, 1);
    other = key(RIG_DURABLE, 2);
    ck_assert_uint_eq(rig.t->spaces[id.space].home, to);
    ck_assert_int_eq(rig_get(&rig, &other, 2), 0);
    ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    rig_crash(&rig, false);
    id = key(RIG_DURABLE, 1);
    other = key(RIG_DURABLE, 2);
    ck_assert_int_eq(rig_get(&rig, &id, 2), -ENOENT);
    ck_assert_int_eq(rig_get(&rig, &other, 2), 0);
    rig_close(&rig);
}
END_TEST

/* A deletion that was left to a sweep of the log is not there yet when the key has another object already. */
START_TEST(another_object_of_the_same_key)
{
    rig_open(&rig, 4 * MIB, 64 * MIB);
    struct tiering_id id = key(RIG_DURABLE, 1), other = key(RIG_DURABLE, 2);
    struct store_entry entry;
    int status;

    ck_assert_int_eq(rig_put(&rig, &id, 100000, 1), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    object_to_entry(rig.t, object_find(rig.t, &id, &status), &entry);
    ck_assert_int_eq(rig_raw_put(&rig, &entry, 50000, 2), 0);
    ck_assert_int_eq(rig_put(&rig, &other, 8192, 3), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    rig_crash(&rig, _i);
    id = key(RIG_DURABLE, 1);
    other = key(RIG_DURABLE, 2);
    ck_assert_int_eq(rig_get(&rig, &id, 2), 0);
    ck_assert_int_eq(rig_get(&rig, &other, 3), 0);
    rig_check(&rig);
    ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    rig_crash(&rig, true);
    id = key(RIG_DURABLE, 1);
    ck_assert_int_eq(rig_get(&rig, &id, 2), -ENOENT);
    rig_close(&rig);
}
END_TEST

static struct tiering_id piece_of(const struct tiering_id *id, uint32_t piece)
{
    struct tiering_id of = *id;

    of.piece = piece;
    return of;
}

/* Two pieces. */
static void put_two(const struct tiering_id *id, uint32_t seed)
{
    for (uint32_t i = 0; i < 2; i++) {
        struct tiering_id piece = piece_of(id, i);
        struct tiering_grant grant;

        ck_assert_int_eq(rig_reserve(&rig, &rig.s, &piece, UINT64_C(2) * RIG_PIECE, RIG_PIECE, &grant), 0);
        rig_fill(rig_memory(&rig, &grant), RIG_PIECE, seed);
        ck_assert_int_eq(rig_commit(&rig, &rig.s, grant.lease), 0);
    }
}

/* `cache`, a piece on each device. One of them hears of the block's deletion in time, and of its new piece; a crash brings back
 * the other one's old piece. They are no block. */
START_TEST(no_block_is_made_of_two)
{
    rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 4 * MIB, .device_bytes = 32 * MIB}, 2);
    rig_start(&rig);
    struct tiering_id id = key(RIG_CACHE, 1), other = key(RIG_CACHE, 2), durable = key(RIG_DURABLE, 1);

    put_two(&id, 1);
    for (uint32_t i = 0; i < 2; i++) {
        struct tiering_id piece = piece_of(&id, i);

        weigh(i == 0 ? 1000 : 1, i == 1 ? 1000 : 1);
        rig_evict(&rig, &piece);
    }
    ck_assert_int_eq(rig_put(&rig, &other, 70000, 1), 0);
    rig_evict(&rig, &other);
    rig_restart(&rig);
    id = key(RIG_CACHE, 1);
    other = key(RIG_CACHE, 2);
    durable = key(RIG_DURABLE, 1);
    ck_assert_int_eq(tiering_delete(rig.t, &other), 0);
    rig_settle(&rig); /* that is written at once, and what follows when that is a second ago */
    ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
    put_two(&id, 2);
    weigh(1000, 1);
    struct tiering_id first = piece_of(&id, 0);

    rig_evict(&rig, &first);
    rig.t->spaces[durable.space].home = 0;
    ck_assert_int_eq(rig_put(&rig, &durable, 5000, 1), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0); /* its device's log has all that was put there */
    rig_crash(&rig, true);
    id = key(RIG_CACHE, 1);
    uint32_t n_of[2] = {0};

    for (uint32_t i = 0; i < 2; i++) {
        struct tiering_id piece = piece_of(&id, i);
        int as_new = rig_get(&rig, &piece, 2);

        ck_assert(as_new == 0 || as_new == -ENOENT || as_new == -EILSEQ);
        n_of[0] += as_new == -EILSEQ && rig_get(&rig, &piece, 1) == 0;
        n_of[1] += as_new == 0;
    }
    ck_assert_msg(n_of[0] == 0 || n_of[1] == 0, "%u old pieces beside %u new ones", n_of[0], n_of[1]);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* An old copy, whose deletion a crash lost, and a new one on another device: one of them is kept, and when that goes, the
 * other must not take its place. */
START_TEST(of_two_copies_on_two_devices_none_comes_back)
{
    enum { N = 20 };
    struct tiering_id id, durable;
    uint32_t n_new = 0;

    rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 4 * MIB, .device_bytes = 32 * MIB}, 2);
    rig_start(&rig);
    weigh(1, 1000);
    for (uint32_t i = 0; i <= N; i++) { /* the last one stays, and its segment with it */
        id = key(RIG_CACHE, i);
        ck_assert_int_eq(rig_put(&rig, &id, 70000, i + 1), 0);
    }
    rig_restart(&rig);
    weigh(1000, 1);
    for (uint32_t i = 0; i < N; i++) {
        id = key(RIG_CACHE, i);
        ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
        if (i == 0)
            rig_settle(&rig); /* the first entry is written at once; those that follow, when that is a second ago */
        ck_assert_int_eq(rig_put(&rig, &id, 70000, 100 + i), 0);
    }
    write_all();
    durable = key(RIG_DURABLE, 1);
    ck_assert_int_eq(rig_put(&rig, &durable, 5000, 1), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0); /* its device's log has all that was put there */
    rig_crash(&rig, false);
    for (uint32_t i = 0; i < N; i++) {
        id = key(RIG_CACHE, i);
        int r = rig_get(&rig, &id, 100 + i);

        n_new += r == 0;
        if (r != -ENOENT)
            ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
    }
    ck_assert_uint_gt(n_new, 0);
    rig_restart(&rig);
    for (uint32_t i = 0; i < N; i++) {
        id = key(RIG_CACHE, i);
        ck_assert_int_eq(rig_get(&rig, &id, i + 1), -ENOENT);
    }
    id = key(RIG_CACHE, N);
    ck_assert_int_eq(rig_get(&rig, &id, N + 1), 0);
    durable = key(RIG_DURABLE, 1);
    ck_assert_int_eq(rig_get(&rig, &durable, 1), 0);
    rig_close(&rig);
}
END_TEST

/* No SYNC can make the deletion of cache durable, so time does. */
START_TEST(cache_that_was_deleted_a_while_ago_stays_away)
{
    struct tiering_id id;

    for (uint32_t seed = 0; seed < 20; seed++) {
        rig_open(&rig, 4 * MIB, 64 * MIB);
        for (uint32_t i = 0; i < 20; i++) {
            id = key(RIG_CACHE, i);
            ck_assert_int_eq(rig_put(&rig, &id, 70000, i + 1), 0);
        }
        rig_restart(&rig);
        for (uint32_t i = 0; i < 10 + seed % 10; i++) {
            id = key(RIG_CACHE, i);
            ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
            rig_turn(&rig, 4, 1000000 * seed);
        }
        for (uint32_t turn = 0; turn < 40; turn++)
            rig_turn(&rig, 4, 100000000);
        rig_crash(&rig, true);
        for (uint32_t i = 0; i < 20; i++) {
            id = key(RIG_CACHE, i);
            ck_assert_int_eq(rig_get(&rig, &id, i + 1), i < 10 + seed % 10 ? -ENOENT : 0);
        }
        rig_close(&rig);
    }
}
END_TEST

START_TEST(what_was_synced_survives_power_loss)
{
    rig_open(&rig, 4 * MIB, 64 * MIB);
    struct tiering_id ids[10], cache = key(RIG_CACHE, 1);

    for (uint32_t i = 0; i < 10; i++) {
        ids[i] = key(RIG_DURABLE, i);
        ck_assert_int_eq(rig_put(&rig, &ids[i], 70000, i + 1), 0);
    }
    ck_assert_int_eq(rig_sync(&rig, RIG_CACHE, NULL, 0), -EINVAL);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, &cache, 1), -ENOENT);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, ids, 10), 0);
    ck_assert_int_eq(tiering_delete(rig.t, &ids[9]), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    for (int crash = 0; crash < 3; crash++) {
        rig_crash(&rig, true);
        for (uint32_t i = 0; i < 10; i++) {
            ids[i] = key(RIG_DURABLE, i);
            ck_assert_int_eq(rig_get(&rig, &ids[i], i + 1), i == 9 ? -ENOENT : 0);
        }
    }
    rig_close(&rig);
}
END_TEST

/* The last but `n` of the log's blocks. */
static uint64_t block_from_end(uint32_t n)
{
    const uint8_t *device = simdisk_bytes(rig.disk, 0);
    uint64_t offs[1000] = {0};
    uint32_t found = 0;

    for (uint64_t off = 0; off < rig.device_bytes && found < ARRAY_LEN(offs); off += SECTOR_BYTES) {
        uint32_t magic;

        memcpy(&magic, device + off, sizeof(magic));
        if (magic == FORMAT_BLOCK_MAGIC)
            offs[found++] = off;
    }
    ck_assert_uint_gt(found, n);
    return offs[found - 1 - n];
}

/* That a log is refused is known when most of it was replayed: of that nothing may be used, nor written. */
START_TEST(a_refused_log_ends_the_start)
{
    struct tiering *t;
    const char *why;

    rig_open(&rig, 4 * MIB, 64 * MIB);
    for (uint32_t i = 0; i < 20; i++) {
        struct tiering_id id = key(RIG_DURABLE, i);

        ck_assert_int_eq(rig_put(&rig, &id, 5000, i + 1), 0);
        ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, &id, 1), 0);
    }
    uint64_t off = block_from_end(6);
    rig_hot_end(&rig);
    uint8_t *before = malloc(rig.device_bytes);
    simdisk_flip(rig.disk, 0, off + 100, 3);
    memcpy(before, simdisk_bytes(rig.disk, 0), rig.device_bytes);
    memset(rig.records, 0, tiering_records_bytes(rig.config.max_objects, rig.config.max_leases));
    rig.config.survived = false;
    ck_assert_int_eq(tiering_new(&rig.config, &t), 0);
    ck_assert_int_eq(tiering_store_add(t, 0, 0, rig.device_bytes, &why), -EUCLEAN);
    ck_assert_str_eq(why, "the log is damaged or cannot be read");
    ck_assert_uint_gt(t->records.n_used, 5);
    ck_assert_int_eq(tiering_store_add(t, 0, 0, rig.device_bytes, &why), -EUCLEAN);
    ck_assert_str_eq(why, "a device before it was refused");
    ck_assert_int_eq(tiering_start(t), -EUCLEAN);
    tiering_free(t);
    ck_assert_mem_eq(simdisk_bytes(rig.disk, 0), before, rig.device_bytes);
    free(before);
    simdisk_flip(rig.disk, 0, off + 100, 3);
    rig_start(&rig);
    for (uint32_t i = 0; i < 20; i++) {
        struct tiering_id id = key(RIG_DURABLE, i);

        ck_assert_int_eq(rig_get(&rig, &id, i + 1), 0);
    }
    rig_close(&rig);
}
END_TEST

START_TEST(unsynced_tensors_are_what_they_were)
{
    rig_open(&rig, 4 * MIB, 64 * MIB);
    struct tiering_id id = key(RIG_DURABLE, 1);

    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &id, 2 * RIG_PIECE), 0);
    ck_assert_int_eq(rig_write(&rig, &id, 1), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    ck_assert_int_eq(rig_write(&rig, &id, 2), 0);
    id.piece = 1;
    ck_assert_int_eq(rig_write(&rig, &id, 3), 0);
    /* Only a SYNC may write it: no pressure moves it. */
    for (uint32_t i = 0; i < 60; i++) {
        struct tiering_id other = key(RIG_CACHE, i);

        ck_assert_int_eq(rig_put(&rig, &other, 100000, 1), 0);
    }
    ck_assert(is_in_memory(&id));
    rig_crash(&rig, true);
    id = key(RIG_DURABLE, 1);
    ck_assert_int_eq(rig_get(&rig, &id, 1), 0);
    id.piece = 1;
    ck_assert_int_eq(rig_get(&rig, &id, 0), 0);
    rig_close(&rig);
}
END_TEST

static int sync_status;

static void sync_done(struct tiering_sync *sync, int status)
{
    (void)sync;
    sync_status = status;
}

static void sync_begin(struct tiering_sync *sync)
{
    *sync = (struct tiering_sync){.done = sync_done};
    sync_status = 1;
    tiering_sync_begin(rig.t, sync, rig.spaces[RIG_DURABLE].index);
    ck_assert_int_eq(tiering_sync_add_space(rig.t, sync), 0);
    tiering_sync_run(rig.t, sync);
}

/* A SYNC of several tensors, with the power lost after any number of steps: all old or all new; new once it is said. */
START_TEST(a_sync_is_all_or_nothing)
{
    uint32_t n_new = 0, n_old = 0;

    for (uint32_t steps = 0; steps < 90; steps++) {
        rig_open(&rig, 4 * MIB, 64 * MIB);
        struct tiering_sync sync;
        struct tiering_id ids[4];
        uint32_t news = 0;

        for (uint32_t i = 0; i < steps; i++)
            (void)simdisk_random(rig.disk); /* requests end in another order each time */
        for (uint32_t i = 0; i < 4; i++) {
            ids[i] = key(RIG_DURABLE, i);
            ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &ids[i], i % 2 ? 4096 : 100000), 0);
            ck_assert_int_eq(rig_write(&rig, &ids[i], 10 + i), 0);
        }
        ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
        for (uint32_t i = 0; i < 4; i++)
            ck_assert_int_eq(rig_write(&rig, &ids[i], 20 + i), 0);
        sync_begin(&sync);
        for (uint32_t i = 0; i < steps / 2; i++)
            rig_turn(&rig, 1, 1000000);
        bool acknowledged = sync_status == 0;
        rig_crash(&rig, true);
        for (uint32_t i = 0; i < 4; i++) {
            ids[i] = key(RIG_DURABLE, i);
            int r = rig_get(&rig, &ids[i], 20 + i);

            news += r == 0;
            if (r < 0)
                ck_assert_int_eq(rig_get(&rig, &ids[i], 10 + i), 0);
        }
        ck_assert_msg(news == 0 || news == 4, "%u of 4 tensors are new after %u turns", news, steps / 2);
        ck_assert(!acknowledged || news == 4);
        n_new += news == 4 && !acknowledged;
        n_old += news == 0;
        rig_close(&rig);
    }
    ck_assert_uint_gt(n_old, 10);
    ck_assert_uint_gt(n_new, 0);
}
END_TEST

/* The same for tensors that were never durable before, while a checkpoint writes down what is. */
START_TEST(a_sync_beside_a_checkpoint)
{
    uint32_t beside = 0;

    rig_open(&rig, 16 * MIB, 64 * MIB);
    for (uint32_t round = 0; round < 80; round++) {
        struct tiering_id ids[6], block = key(RIG_DURABLE, 5000);
        struct tiering_sync sync;
        struct store_stat before, after;
        uint32_t there = 0;

        /* A checkpoint begins when a quarter of the log is used, and this log has the least size: 1 MiB. */
        do {
            (void)tiering_delete(rig.t, &block);
            ck_assert_int_eq(rig_put(&rig, &block, 4096, 1), 0);
            ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
            tiering_store_stat(rig.t, 0, &before);
        } while (before.log_used_bytes < (62 - round % 4) * SECTOR_BYTES);
        for (uint32_t i = 0; i < 6; i++) {
            ids[i] = key(RIG_DURABLE, round * 6 + i);
            ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &ids[i], 4096 + i * 50000), 0);
            ck_assert_int_eq(rig_write(&rig, &ids[i], 10 + i), 0);
        }
        tiering_store_stat(rig.t, 0, &before);
        sync_begin(&sync);
        for (uint32_t i = 0; i < round % 20; i++)
            rig_turn(&rig, 1, UINT64_C(1100000000)); /* the log is written at each turn */
        tiering_store_stat(rig.t, 0, &after);
        beside += after.checkpoints > before.checkpoints;
        rig_crash(&rig, false);
        for (uint32_t i = 0; i < 6; i++) {
            ids[i] = key(RIG_DURABLE, round * 6 + i);
            there += rig_get(&rig, &ids[i], 10 + i) == 0;
        }
        ck_assert_msg(there == 0 || there == 6, "round %u: %u of 6 tensors are there", round, there);
        for (uint32_t i = 0; i < 6; i++)
            (void)tiering_delete(rig.t, &ids[i]);
    }
    ck_assert_uint_gt(beside, 0);
    rig_close(&rig);
}
END_TEST

/* While a SYNC runs: a writer comes, the tensor is deleted, a second SYNC wants the same pieces. */
START_TEST(a_sync_and_others)
{
    for (uint32_t turns = 0; turns < 30; turns++) {
        rig_open(&rig, 4 * MIB, 64 * MIB);
        struct tiering_id a = key(RIG_DURABLE, 1), b = key(RIG_DURABLE, 2);
        struct tiering_sync first;
        struct tiering_grant g;

        ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &a, 100000), 0);
        ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &b, 4096), 0);
        ck_assert_int_eq(rig_write(&rig, &a, 1), 0);
        ck_assert_int_eq(rig_write(&rig, &b, 1), 0);
        sync_begin(&first);
        for (uint32_t i = 0; i < turns; i++)
            rig_turn(&rig, 1, 100000);
        int r = rig_acquire(&rig, &rig.s, &a, TIERING_WRITE, &g);
        ck_assert_int_eq(r, 0);
        ck_assert(rig_is(rig_memory(&rig, &g), 100000, 1));
        rig_fill(rig_memory(&rig, &g), 100000, 2);
        ck_assert_int_eq(tiering_delete(rig.t, &b), 0);
        while (sync_status == 1)
            rig_turn(&rig, 1, 100000);
        ck_assert(sync_status == 0 || sync_status == -EBUSY);
        bool synced = sync_status == 0;
        ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), -EBUSY); /* the writer has not ended */
        ck_assert_int_eq(tiering_release(rig.t, &rig.s, g.lease, TIERING_DIRTY), 0);
        rig_check(&rig);
        if (turns % 2) {
            ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
            rig_crash(&rig, true);
            a = key(RIG_DURABLE, 1);
            b = key(RIG_DURABLE, 2);
            ck_assert_int_eq(rig_get(&rig, &a, 2), 0);
            ck_assert_int_eq(rig_get(&rig, &b, 1), -ENOENT);
        } else {
            rig_crash(&rig, true);
            a = key(RIG_DURABLE, 1);
            ck_assert_int_eq(rig_get(&rig, &a, 1), synced ? 0 : -ENOENT);
        }
        rig_close(&rig);
    }
}
END_TEST

START_TEST(a_second_sync_waits_for_the_first)
{
    rig_open(&rig, 4 * MIB, 64 * MIB);
    struct tiering_id a = key(RIG_DURABLE, 1);
    struct tiering_sync first;

    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &a, 100000), 0);
    ck_assert_int_eq(rig_write(&rig, &a, 1), 0);
    sync_begin(&first);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, &a, 1), 0);
    rig_crash(&rig, true);
    a = key(RIG_DURABLE, 1);
    ck_assert_int_eq(rig_get(&rig, &a, 1), 0);
    rig_close(&rig);
}
END_TEST

/* Its list has a piece twice, and the piece is written between the two: the SYNC has it as it was the first time. */
START_TEST(a_sync_that_names_a_piece_twice)
{
    rig_open(&rig, 4 * MIB, 64 * MIB);
    struct tiering_id a = key(RIG_DURABLE, 1);
    struct tiering_sync sync = {.done = sync_done};

    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &a, 100000), 0);
    ck_assert_int_eq(rig_write(&rig, &a, 1), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, &a, 1), 0);
    ck_assert_int_eq(rig_write(&rig, &a, 2), 0);
    sync_status = 1;
    tiering_sync_begin(rig.t, &sync, rig.spaces[RIG_DURABLE].index);
    ck_assert_int_eq(tiering_sync_add(rig.t, &sync, &a), 0);
    rig_settle(&rig);
    ck_assert_int_eq(rig_write(&rig, &a, 3), 0);
    ck_assert_int_eq(tiering_sync_add(rig.t, &sync, &a), 0);
    rig_settle(&rig);
    tiering_sync_run(rig.t, &sync);
    while (sync_status == 1)
        rig_turn(&rig, 1, 100000);
    ck_assert_int_eq(sync_status, 0);
    ck_assert_int_eq(rig_write(&rig, &a, 4), 0);
    rig_check(&rig);
    rig_crash(&rig, true);
    a = key(RIG_DURABLE, 1);
    ck_assert_int_eq(rig_get(&rig, &a, 2), 0);
    rig_close(&rig);
}
END_TEST

START_TEST(a_torn_tensor_is_not_synced)
{
    rig_open(&rig, 4 * MIB, 64 * MIB);
    struct tiering_id a = key(RIG_DURABLE, 1);
    struct tiering_grant g, reader;

    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &a, 8192), 0);
    ck_assert_int_eq(rig_write(&rig, &a, 1), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    ck_assert_int_eq(rig_acquire(&rig, &rig.s, &a, 0, &reader), 0);
    ck_assert_int_eq(rig_acquire(&rig, &rig.other, &a, TIERING_WRITE, &g), 0);
    ck_assert_int_eq(tiering_release(rig.t, &rig.other, g.lease, TIERING_DISCARD), 0);
    ck_assert_int_eq(rig_get(&rig, &a, 1), -EBADMSG);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, &a, 1), -EBADMSG);
    rig_crash(&rig, true);
    a = key(RIG_DURABLE, 1);
    ck_assert_int_eq(rig_get(&rig, &a, 1), 0);
    rig_close(&rig);
}
END_TEST

/* --- Deleted while it is being written --------------------------------------------------------------------------------------- */

/* How many deletions fill the log's first block so that one put still fits behind them, and no deletion behind that. */
static uint32_t deletions_before_a_put(void)
{
    const uint32_t log_block_bytes = 4 * SECTOR_BYTES; /* of the least log: a 64th of 1 MiB */
    uint8_t entry[FORMAT_ENTRY_BYTES_MAX];
    struct store_id id = {.key_len = sizeof(uint32_t)};
    uint32_t delete_bytes = log_encode_delete(entry, &id, 1), put_bytes = log_put_bytes(id.key_len);

    return (log_block_bytes - (uint32_t)sizeof(struct format_block) - put_bytes) / delete_bytes;
}

/* The block is deleted while its write is in flight, and its put would be at the end of one block of the log, or at the
 * beginning of the next. Then the daemon is killed. */
static void kill_between_put_and_deletion(const struct tiering_id *victim, uint32_t n_deletions, uint32_t turns)
{
    for (uint32_t i = 0; i < n_deletions; i++) {
        struct tiering_id id = key(RIG_CACHE, i);

        ck_assert_int_eq(rig_put(&rig, &id, 512, 1), 0);
        ck_assert_int_eq(tiering_advise(rig.t, &id, TIERING_NOT_AGAIN, 0, rig.now_ns), 0);
        if (i % 32 == 0)
            rig_settle(&rig);
    }
    rig_settle(&rig);
    for (uint32_t i = 0; i < 10; i++)
        rig_turn(&rig, 8, UINT64_C(1100000000)); /* all that is in the log's queue is written */
    ck_assert_int_eq(rig_put(&rig, victim, GRANULE_BYTES, 7), 0);
    ck_assert_int_eq(tiering_advise(rig.t, victim, TIERING_NOT_AGAIN, 0, rig.now_ns), 0);
    for (uint32_t i = 0; i < n_deletions; i++) {
        struct tiering_id id = key(RIG_CACHE, i);

        ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
    }
    ck_assert_int_eq(tiering_delete(rig.t, victim), 0);
    while (simdisk_step(rig.disk)) /* the write ends, before the log is looked at */
        ;
    for (uint32_t i = 0; i < turns; i++)
        rig_turn(&rig, 1, 1000);
    rig_crash(&rig, false);
}

START_TEST(a_block_that_is_deleted_during_its_write)
{
    for (uint32_t i = 0; i < 16; i++) {
        rig_open(&rig, 4 * MIB, 64 * MIB);
        struct tiering_id victim = key(RIG_CACHE, 9999);

        kill_between_put_and_deletion(&victim, deletions_before_a_put() - i % 4, i / 4);
        victim = key(RIG_CACHE, 9999);
        ck_assert_int_eq(rig_get(&rig, &victim, 7), -ENOENT);
        rig_close(&rig);
    }
}
END_TEST

/* --- Damage ------------------------------------------------------------------------------------------------------------------ */

/* Where these bytes lie on the device. */
static uint64_t find(uint32_t seed)
{
    const uint8_t *device = simdisk_bytes(rig.disk, 0);
    uint8_t want[SECTOR_BYTES];

    rig_fill(want, sizeof(want), seed);
    for (uint64_t at = 0; at < rig.device_bytes; at += SECTOR_BYTES) {
        if (memcmp(device + at, want, sizeof(want)) == 0)
            return at;
    }
    ck_abort_msg("it is not on the device");
}

START_TEST(a_flipped_bit)
{
    rig_open(&rig, 4 * MIB, 64 * MIB);
    struct tiering_id cache = key(RIG_CACHE, 1), durable = key(RIG_DURABLE, 2), tensor = key(RIG_DURABLE, 3);
    struct tiering_found found;

    ck_assert_int_eq(rig_put(&rig, &cache, 100000, 1), 0);
    ck_assert_int_eq(rig_put(&rig, &durable, 8192, 2), 0);
    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &tensor, 100000), 0);
    ck_assert_int_eq(rig_write(&rig, &tensor, 3), 0);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    rig_evict(&rig, &cache);
    rig_evict(&rig, &durable);
    rig_evict(&rig, &tensor);
    for (uint32_t seed = 1; seed <= 3; seed++)
        simdisk_flip(rig.disk, 0, find(seed) + 4000, 3);
    ck_assert_int_eq(rig_get(&rig, &cache, 1), -EBADMSG);
    ck_assert_int_eq(tiering_lookup(rig.t, &cache, &found), -ENOENT);
    for (int again = 0; again < 2; again++) {
        ck_assert_int_eq(rig_get(&rig, &durable, 2), -EBADMSG);
        ck_assert_int_eq(rig_get(&rig, &tensor, 3), -EBADMSG);
    }
    rig_restart(&rig);
    durable = key(RIG_DURABLE, 2);
    ck_assert_int_eq(rig_get(&rig, &durable, 2), -EBADMSG);
    ck_assert_int_eq(tiering_delete(rig.t, &durable), 0);
    ck_assert_int_eq(rig_put(&rig, &durable, 8192, 4), 0);
    ck_assert_int_eq(rig_get(&rig, &durable, 4), 0);
    rig_close(&rig);
}
END_TEST

START_TEST(a_read_that_fails)
{
    rig_open(&rig, 4 * MIB, 64 * MIB);
    struct tiering_id id = key(RIG_CACHE, 1);

    ck_assert_int_eq(rig_put(&rig, &id, 100000, 1), 0);
    rig_evict(&rig, &id);
    simdisk_fail_next(rig.disk, IO_BLK_READ, -EIO);
    ck_assert_int_eq(rig_get(&rig, &id, 1), -EIO);
    simdisk_short_next(rig.disk, IO_BLK_READ);
    ck_assert_int_eq(rig_get(&rig, &id, 1), 0);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

START_TEST(a_flush_that_fails)
{
    rig_open(&rig, 4 * MIB, 64 * MIB);
    struct tiering_id id = key(RIG_DURABLE, 1), cache = key(RIG_CACHE, 2);

    ck_assert_int_eq(rig_put(&rig, &id, 8192, 1), 0);
    simdisk_fail_next(rig.disk, IO_BLK_FLUSH, -EIO);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), -EIO);
    ck_assert(rig.failed);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), -EIO); /* never trusted again */
    ck_assert_int_eq(rig_get(&rig, &id, 1), 0);
    ck_assert_int_eq(rig_put(&rig, &cache, 8192, 2), 0);
    ck_assert_int_eq(rig_get(&rig, &cache, 2), 0);
    rig_close(&rig);
}
END_TEST

/* What one partition wrote before may have been lost by the failure that only the other one heard of. Here they are of one
 * engine (_i = 0), or another engine told this one. */
START_TEST(a_flush_that_fails_for_another_partition)
{
    rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 4 * MIB, .device_bytes = 32 * MIB, .partitions = 2}, 1);
    rig_start(&rig);
    struct tiering_id here = key(RIG_DURABLE, 1), there = key(RIG_SHARED_DURABLE, 1);

    rig.t->spaces[here.space].home = 0;
    rig.t->spaces[there.space].home = 1;
    ck_assert_int_eq(rig_put(&rig, &here, 8192, 1), 0);
    ck_assert_int_eq(rig_put(&rig, &there, 8192, 2), 0);
    if (_i == 0) {
        simdisk_fail_next(rig.disk, IO_BLK_FLUSH, -EIO);
        ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), -EIO);
    } else {
        tiering_device_distrust(rig.t, 0, -EIO);
    }
    ck_assert_int_eq(rig_sync(&rig, RIG_SHARED_DURABLE, NULL, 0), -EIO);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), -EIO);
    ck_assert_int_eq(rig_get(&rig, &there, 2), 0);
    rig_close(&rig);
}
END_TEST

/* Nor is it trusted if the store that heard of it had failed already, for another reason. */
START_TEST(a_flush_that_fails_after_its_store)
{
    rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 4 * MIB, .device_bytes = 32 * MIB, .partitions = 2}, 1);
    rig_start(&rig);
    struct tiering_id here = key(RIG_DURABLE, 1), there = key(RIG_SHARED_DURABLE, 1);
    struct tiering_sync sync;

    rig.t->spaces[here.space].home = 0;
    rig.t->spaces[there.space].home = 1;
    ck_assert_int_eq(rig_put(&rig, &here, 8192, 1), 0);
    ck_assert_int_eq(rig_put(&rig, &there, 8192, 2), 0);
    sync_begin(&sync);
    for (int turn = 0; simdisk_pending_blks(rig.disk, IO_BLK_FLUSH, true, IO_LANE_OWN) == 0; turn++) {
        ck_assert_int_lt(turn, 1000);
        rig_turn(&rig, 1, 1000);
    }
    store_fail(rig.t->stores[0].store, -EIO);
    simdisk_fail_next(rig.disk, IO_BLK_FLUSH, -EIO);
    rig_settle(&rig);
    ck_assert_int_eq(rig_sync(&rig, RIG_SHARED_DURABLE, NULL, 0), -EIO);
    rig_close(&rig);
}
END_TEST

/* It was on its way already when the SYNC began: that is not over well before it is there. Small ones are written together. */
START_TEST(a_sync_beside_a_write_that_fails)
{
    rig_open(&rig, 4 * MIB, 64 * MIB);
    struct tiering_id id = key(RIG_DURABLE, 1);
    int status;

    ck_assert_int_eq(rig_put(&rig, &id, _i ? 100000 : 3000, 1), 0);
    uint32_t object = object_find(rig.t, &id, &status);

    ck_assert_int_eq(move_spill(rig.t, object, false, 0, 0, false, NULL), 0);
    simdisk_fail_next(rig.disk, IO_BLK_WRITE, -EIO);
    int r = rig_sync(&rig, RIG_DURABLE, NULL, 0);

    rig_crash(&rig, true);
    id = key(RIG_DURABLE, 1);
    int found = rig_get(&rig, &id, 1);

    ck_assert_msg(r < 0 || found == 0, "the SYNC ended with %d, and after a crash there is %d", r, found);
    rig_close(&rig);
}
END_TEST

/* Synced once and written anew; the next flush will fail. */
static void two_tensors_and_no_flush(struct tiering_id *ret_ids)
{
    for (uint32_t i = 0; i < 2; i++) {
        ret_ids[i] = key(RIG_DURABLE, i);
        ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &ret_ids[i], 100000), 0);
        ck_assert_int_eq(rig_write(&rig, &ret_ids[i], 10 + i), 0);
    }
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    for (uint32_t i = 0; i < 2; i++)
        ck_assert_int_eq(rig_write(&rig, &ret_ids[i], 20 + i), 0);
    simdisk_fail_next(rig.disk, IO_BLK_FLUSH, -EIO);
}

/* After a hot restart, and a power loss. */
static void both_are_new_or_none(void)
{
    uint32_t news = 0;

    rig_hot(&rig, false, false);
    rig_settle(&rig);
    rig_crash(&rig, true);
    for (uint32_t i = 0; i < 2; i++) {
        struct tiering_id id = key(RIG_DURABLE, i);
        int r = rig_get(&rig, &id, 20 + i);

        news += r == 0;
        if (r < 0)
            ck_assert_int_eq(rig_get(&rig, &id, 10 + i), 0);
    }
    ck_assert_msg(news == 0 || news == 2, "%u of 2 tensors are new", news);
    rig_close(&rig);
}

/* What it wrote may count or not, but all of it: so none of it leaves memory, to be taken for a copy of its own later. */
START_TEST(a_flush_that_fails_and_a_restart_with_memory)
{
    rig_open(&rig, 4 * MIB, 64 * MIB);
    struct tiering_id ids[2];

    two_tensors_and_no_flush(ids);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), -EIO);
    ck_assert(rig.failed);
    rig_evict(&rig, &ids[0]);
    both_are_new_or_none();
}
END_TEST

/* One that was on its way is not over well either. */
START_TEST(a_sync_while_a_flush_fails_elsewhere)
{
    rig_open(&rig, 4 * MIB, 64 * MIB);
    struct tiering_id id = key(RIG_DURABLE, 1);
    struct tiering_sync sync;

    ck_assert_int_eq(rig_put(&rig, &id, 8192, 1), 0);
    sync_begin(&sync);
    for (int turn = 0; turn < _i; turn++)
        rig_turn(&rig, 1, 1000);
    int before = sync_status;

    tiering_device_distrust(rig.t, 0, -EIO);
    rig_settle(&rig);
    ck_assert_int_eq(sync_status, before == 1 ? -EIO : before);
    rig_close(&rig);
}
END_TEST

/* A writer came when its piece had been written for the SYNC, and gives up when that has failed: the piece must not be what
 * only the device has of it, which a hot restart would log without the other. */
START_TEST(a_flush_that_fails_beside_a_writer)
{
    rig_open(&rig, 4 * MIB, 64 * MIB);
    struct tiering_id ids[2];
    struct tiering_sync sync;
    struct tiering_grant g = {0};

    two_tensors_and_no_flush(ids);
    sync_begin(&sync);
    for (int turn = 0; turn < 1000 && sync_status == 1; turn++) {
        int status;

        if (!g.lease && rig.t->records.objects[object_find(rig.t, &ids[0], &status)].record.flags & RECORD_HAS_DEV)
            (void)tiering_acquire(rig.t, &rig.s, &ids[0], 0, 0, TIERING_WRITE, NULL, &g);
        rig_turn(&rig, 1, 1000000);
    }
    ck_assert_int_eq(sync_status, -EIO);
    ck_assert_uint_ne(g.lease, 0);
    ck_assert_int_eq(tiering_release(rig.t, &rig.s, g.lease, TIERING_DISCARD), 0);
    both_are_new_or_none();
}
END_TEST

/* --- Full ---------------------------------------------------------------------------------------------------------------------- */

START_TEST(a_full_device)
{
    rig_open(&rig, 4 * MIB, 16 * MIB);
    uint32_t n = 0, kept = 0;
    int r = 0;

    /* What may not be dropped fills memory and device; then there is an end of it. */
    for (; n < 200 && r == 0; n++) {
        struct tiering_id id = key(RIG_SCRATCH, n);
        struct tiering_grant g;

        r = rig_reserve(&rig, &rig.s, &id, 200000, 200000, &g);
        if (r < 0)
            break;
        rig_fill(rig_memory(&rig, &g), 200000, n + 1);
        ck_assert_int_eq(rig_commit(&rig, &rig.s, g.lease), 0);
    }
    ck_assert_int_eq(r, -ETIMEDOUT); /* it waits: the caller's deadline says for how long */
    ck_assert_uint_gt(n, 40);
    ck_assert_uint_eq(tiering_room_limit(rig.t, 0), TIERING_LIMIT_DEVICE_BYTES);
    ck_assert_uint_eq(tiering_room_limit(rig.t, 1), TIERING_LIMIT_POOL_DRAM);
    for (uint32_t i = 0; i < n; i++) {
        struct tiering_id id = key(RIG_SCRATCH, i);

        kept += rig_get(&rig, &id, i + 1) != -EILSEQ;
    }
    ck_assert_uint_eq(kept, n);
    rig_check(&rig);
    tiering_owner_end(rig.t, 1);
    struct tiering_id id = key(RIG_SCRATCH, 1000);
    ck_assert_int_eq(rig_put(&rig, &id, 200000, 7), 0);
    rig_close(&rig);
}
END_TEST

/* Small ones fill the log first, and the pool's budget what is larger. The name of the limit is the right one. */
START_TEST(a_full_log_and_a_full_budget)
{
    static const struct {
        uint64_t nvme_bytes;
        uint32_t size_bytes, limit;
    } cases[] = {{UINT64_MAX, 512, TIERING_LIMIT_DEVICE_LOG}, {8 * MIB, 200000, TIERING_LIMIT_POOL_NVME}};

    for (uint32_t c = 0; c < ARRAY_LEN(cases); c++) {
        uint32_t n = 0;
        int r = 0;

        rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 2 * MIB, .device_bytes = 64 * MIB}, 1);
        rig.pools[0].nvme_bytes = cases[c].nvme_bytes;
        rig_start(&rig);
        for (; n < 4000 && r == 0; n++) {
            struct tiering_id id = key(RIG_SCRATCH, n);

            r = rig_put(&rig, &id, cases[c].size_bytes, n + 1);
        }
        ck_assert_int_eq(r, -ETIMEDOUT);
        ck_assert_uint_eq(tiering_room_limit(rig.t, 0), cases[c].limit);
        tiering_owner_end(rig.t, 1);
        struct tiering_id id = key(RIG_SCRATCH, 5000);
        ck_assert_int_eq(rig_put(&rig, &id, cases[c].size_bytes, 7), 0);
        ck_assert_uint_eq(tiering_room_limit(rig.t, 0), TIERING_LIMIT_POOL_DRAM);
        rig_close(&rig);
    }
}
END_TEST

/* Of two sizes in turn, as parameters beside states twice as large: a SYNC is not refused while segments' ends have room. */
START_TEST(a_sync_of_what_fits)
{
    const uint32_t n = 68; /* 51 MiB; if each had a segment of its own, it would be 68 */

    rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 16 * MIB, .device_bytes = 64 * MIB}, 1);
    rig.config.piece_bytes = MIB;
    rig_start(&rig);
    for (uint32_t i = 0; i < n; i++) {
        struct tiering_id id = key(RIG_DURABLE, i);

        ck_assert_int_eq(rig_put(&rig, &id, i % 2 ? MIB / 2 : MIB, i + 1), 0);
    }
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    rig_crash(&rig, true);
    for (uint32_t i = 0; i < n; i++) {
        struct tiering_id id = key(RIG_DURABLE, i);

        ck_assert_int_eq(rig_get(&rig, &id, i + 1), 0);
    }
    rig_close(&rig);
}
END_TEST

/* What a SYNC lacked is what it names, whatever was deleted since. */
START_TEST(a_refused_sync_names_the_limit)
{
    static const struct {
        uint64_t nvme_bytes;
        uint32_t limit;
    } cases[] = {{UINT64_MAX, TIERING_LIMIT_DEVICE_BYTES}, {8 * MIB, TIERING_LIMIT_POOL_NVME}};

    for (uint32_t c = 0; c < ARRAY_LEN(cases); c++) {
        struct tiering_sync sync;

        rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 32 * MIB, .device_bytes = 24 * MIB}, 1);
        rig.pools[0].nvme_bytes = cases[c].nvme_bytes;
        rig_start(&rig);
        for (uint32_t i = 0; i < 110; i++) {
            struct tiering_id id = key(RIG_DURABLE, i);

            ck_assert_int_eq(rig_put(&rig, &id, 200000, i + 1), 0);
        }
        sync_begin(&sync);
        while (sync_status == 1)
            rig_turn(&rig, 16, 100000);
        ck_assert_int_eq(sync_status, -ENOSPC);
        for (uint32_t i = 0; i < 110; i++) {
            struct tiering_id id = key(RIG_DURABLE, i);

            ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
        }
        for (uint32_t i = 0; i < 100; i++)
            rig_turn(&rig, 16, 100000000);
        ck_assert_uint_eq(tiering_sync_limit(&sync), cases[c].limit);
        rig_close(&rig);
    }
}
END_TEST

/* A transaction keeps the log from forgetting: one that is open while a quarter of it is written lacks the log, not segments. */
START_TEST(a_sync_that_is_too_slow_for_the_log)
{
    struct tiering_sync sync;

    rig_prepare(&rig, &(struct rig_memory){.dram_bytes = 32 * MIB, .device_bytes = 64 * MIB}, 1);
    rig.config.max_moves = 68; /* a few pieces at a time */
    rig_start(&rig);
    for (uint32_t i = 0; i < 400; i++) {
        struct tiering_id id = key(RIG_DURABLE, i);

        ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &id, 60000), 0);
        ck_assert_int_eq(rig_write(&rig, &id, i + 1), 0);
    }
    sync_begin(&sync);
    while (sync_status == 1)
        rig_turn(&rig, 1, UINT64_C(1100000000)); /* the log is written at each turn */
    ck_assert_int_eq(sync_status, -ENOSPC);
    ck_assert_uint_eq(tiering_sync_limit(&sync), TIERING_LIMIT_DEVICE_LOG);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    rig_close(&rig);
}
END_TEST

/* Cache comes and goes around what is durable; segments are emptied, and what is durable moves. */
START_TEST(durable_pieces_move)
{
    rig_open(&rig, 4 * MIB, 24 * MIB);
    struct store_stat before, after;
    struct tiering_id tensor = key(RIG_DURABLE, 99);

    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &tensor, 50000), 0);
    ck_assert_int_eq(rig_write(&rig, &tensor, 1), 0);
    for (uint32_t i = 0; i < 30; i++) {
        struct tiering_id id = key(RIG_DURABLE, i);

        ck_assert_int_eq(rig_put(&rig, &id, 200000, i + 1), 0);
    }
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    ck_assert_int_eq(rig_write(&rig, &tensor, 2), 0); /* its old copy must move too */
    tiering_store_stat(rig.t, 0, &before);
    for (uint32_t i = 0; i < 30; i++) {
        struct tiering_id id = key(RIG_DURABLE, i);

        if (i % 3)
            ck_assert_int_eq(tiering_delete(rig.t, &id), 0);
    }
    for (uint32_t i = 0; i < 300; i++) {
        struct tiering_id id = key(RIG_CACHE, i);

        ck_assert_int_eq(rig_put(&rig, &id, 150000, i + 1), 0);
    }
    rig_settle(&rig);
    tiering_store_stat(rig.t, 0, &after);
    ck_assert_uint_gt(after.reclaimed_segments, before.reclaimed_segments + 10);
    struct tiering_stat stat;
    tiering_stat(rig.t, &stat);
    ck_assert_uint_gt(stat.evacuated, 100);
    ck_assert_uint_le(stat.evacuated_looks, 2 * stat.evacuated); /* each once, not at every turn */
    rig_check(&rig);
    rig_crash(&rig, true);
    for (uint32_t i = 0; i < 30; i += 3) {
        struct tiering_id id = key(RIG_DURABLE, i);

        ck_assert_int_eq(rig_get(&rig, &id, i + 1), 0);
    }
    tensor = key(RIG_DURABLE, 99);
    ck_assert_int_eq(rig_get(&rig, &tensor, 1), 0);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tiering_durable");
    TCase *tc = tcase_create("all");
    SRunner *runner = srunner_create(suite);

    tcase_set_timeout(tc, 100);
    tcase_add_test(tc, what_does_not_fit_comes_back_from_the_device);
    tcase_add_test(tc, a_prefetch_brings_it_back);
    tcase_add_test(tc, a_clean_restart_finds_the_cache);
    tcase_add_test(tc, a_cache_tensor_is_what_it_was_last_or_not_there);
    tcase_add_test(tc, a_torn_piece_of_a_cache_tensor_does_not_become_zeros);
    tcase_add_test(tc, of_two_copies_on_two_devices_none_comes_back);
    tcase_add_loop_test(tc, a_space_that_moved_is_synced_where_it_is, 0, 2);
    tcase_add_test(tc, cache_that_was_deleted_a_while_ago_stays_away);
    tcase_add_test(tc, what_was_synced_survives_power_loss);
    tcase_add_test(tc, a_refused_log_ends_the_start);
    tcase_add_test(tc, unsynced_tensors_are_what_they_were);
    tcase_add_test(tc, a_sync_is_all_or_nothing);
    tcase_add_test(tc, a_sync_beside_a_checkpoint);
    tcase_add_test(tc, a_sync_and_others);
    tcase_add_test(tc, a_second_sync_waits_for_the_first);
    tcase_add_test(tc, a_sync_that_names_a_piece_twice);
    tcase_add_test(tc, a_torn_tensor_is_not_synced);
    tcase_add_test(tc, a_block_that_is_deleted_during_its_write);
    tcase_add_test(tc, a_flipped_bit);
    tcase_add_test(tc, a_read_that_fails);
    tcase_add_test(tc, a_flush_that_fails);
    tcase_add_test(tc, a_flush_that_fails_and_a_restart_with_memory);
    tcase_add_test(tc, a_flush_that_fails_beside_a_writer);
    tcase_add_loop_test(tc, a_sync_beside_a_write_that_fails, 0, 2);
    tcase_add_loop_test(tc, another_object_of_the_same_key, 0, 2);
    tcase_add_test(tc, no_block_is_made_of_two);
    tcase_add_loop_test(tc, a_flush_that_fails_for_another_partition, 0, 2);
    tcase_add_test(tc, a_flush_that_fails_after_its_store);
    tcase_add_loop_test(tc, a_sync_while_a_flush_fails_elsewhere, 0, 12);
    tcase_add_test(tc, a_full_device);
    tcase_add_test(tc, a_full_log_and_a_full_budget);
    tcase_add_test(tc, a_sync_of_what_fits);
    tcase_add_test(tc, a_refused_sync_names_the_limit);
    tcase_add_test(tc, a_sync_that_is_too_slow_for_the_log);
    tcase_add_test(tc, durable_pieces_move);
    suite_add_tcase(suite, tc);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
