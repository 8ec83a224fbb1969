/* SPDX-License-Identifier: Apache-2.0 */
/* The store on a simulated disk: bytes in and out, damage to them, restarts, transactions, failures. Room is in
 * test_store_room.c, crashes at random places are in test_store_crash.c. */
#include "io/log.h"
#include "tests/unit/support/store_fixture.h"

/* --- Bytes --- */

START_TEST(every_size_comes_back)
{
    static const uint32_t sizes[] = {1,      100,     4095,    4096,    4097,        12345,  32767,  32768,
                                     40000,  65535,   65536,   65537,   100000,      131072, 131073, 200000,
                                     999999, 1048576, 1048577, 3000000, 8 * MIB - 1, 8 * MIB};
    struct io_buf buf;

    start(10, 400 * MIB, 16 * MIB, 4);
    o->size_max_bytes = 8 * MIB;
    ck_assert_int_eq(owner_open(o, &why), 0);
    buf = o->slots[0].buf;
    uint8_t *mem = simdisk_memory(disk, o->region) + buf.off;
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        struct owner_slot *slot = &o->slots[0];
        /* Through the owner's slot, but with a size of our own. */
        slot->put = (struct store_put){.id = {.space = 1, .key = {(uint8_t)i}, .key_len = 1},
                                       .buf = buf,
                                       .object_bytes = sizes[i],
                                       .size_bytes = sizes[i],
                                       .n_parts = 1,
                                       .durability = STORE_DURABLE};
        uint8_t *copy = malloc(sizes[i]);
        owner_fill(mem, sizes[i], 77, i);
        memcpy(copy, mem, sizes[i]);
        ck_assert_int_eq(owner_raw_put(o, slot), 0);
        for (uint32_t off = 0; off < sizes[i]; off += 3 * GRANULE_BYTES) {
            memset(mem, 0xee, round_up(sizes[i], SECTOR_BYTES));
            slot->get = (struct store_get){.entry = slot->put.entry,
                                           .off_bytes = off,
                                           .len_bytes = MIN(sizes[i] - off, (uint32_t)(2 * GRANULE_BYTES)),
                                           .buf = buf};
            ck_assert_int_eq(owner_raw_get(o, slot), 0);
            ck_assert_mem_eq(mem, copy + off, slot->get.len_bytes);
        }
        memset(mem, 0xee, round_up(sizes[i], SECTOR_BYTES));
        slot->get = (struct store_get){.entry = slot->put.entry, .len_bytes = sizes[i], .buf = buf};
        ck_assert_int_eq(owner_raw_get(o, slot), 0);
        ck_assert_mem_eq(mem, copy, sizes[i]);
        free(copy);
    }
    end();
}
END_TEST

START_TEST(small_pieces_share_one_write)
{
    struct store_stat st;

    start_open(11, 64);
    o->size_max_bytes = 4096;
    for (uint32_t i = 0; i < 12; i++)
        ck_assert_int_eq(owner_put(o, i * 3, false), 0);
    owner_settle(o);
    store_stat(o->store, &st);
    ck_assert_uint_eq(o->n_put, 12);
    ck_assert_uint_eq(st.written_bytes, 12 * SECTOR_BYTES);
    ck_assert_uint_eq(st.bounced_bytes, st.put_bytes);
    owner_check_all(o, false);
    ck_assert_uint_eq(o->n_wrong + o->n_lost, 0);
    end();
}
END_TEST

static uint32_t writes_pending(bool urgent)
{
    return simdisk_pending_blks(disk, IO_BLK_WRITE, urgent, io_lane_of(0));
}

static void ignore_put(struct store_put *put, int status)
{
    (void)put;
    ck_assert_int_eq(status, 0);
}

/* A small piece of its own, copied; then a tick at the same time: nothing has waited for long. */
static void put_and_tick(uint32_t i, bool urgent)
{
    struct owner_slot *slot = &o->slots[i];

    slot->put = (struct store_put){.id = {.space = 1, .key = {(uint8_t)i}, .key_len = 1},
                                   .buf = slot->buf,
                                   .object_bytes = 5000,
                                   .size_bytes = 5000,
                                   .n_parts = 1,
                                   .durability = STORE_SCRATCH,
                                   .urgent = urgent,
                                   .done = ignore_put};
    ck_assert_int_eq(store_put(o->store, &slot->put), 0);
    while (simdisk_pending(disk) > writes_pending(true) + writes_pending(false))
        ck_assert(simdisk_step(disk));
    (void)store_tick(o->store, o->now_ns);
}

START_TEST(a_batch_waits_unless_a_client_does)
{
    start_open(19, 8);
    (void)store_tick(o->store, o->now_ns);
    put_and_tick(0, false);
    ck_assert_uint_eq(writes_pending(false) + writes_pending(true), 0);
    put_and_tick(1, true); /* takes the first along */
    ck_assert_uint_eq(writes_pending(true), 1);
    owner_settle(o);
    end();
}
END_TEST

/* The rest of a small piece's last sector must not hold what another pool left in bounce memory. */
START_TEST(no_residue_behind_a_small_piece)
{
    start_open(12, 4);
    o->size_max_bytes = 30000;
    for (int i = 0; i < 40; i++) {
        put_wait(0);
        owner_settle(o);
        const struct store_entry *e = &o->objects[0].entry;
        if (e->size_bytes >= 32768)
            continue;
        const uint8_t *at = simdisk_bytes(disk, 0) + piece_off(0);
        for (uint32_t b = e->size_bytes; b < round_up(e->size_bytes, SECTOR_BYTES); b++)
            ck_assert_uint_eq(at[b], 0);
    }
    end();
}
END_TEST

START_TEST(flipped_bits_are_found)
{
    start_open(13, 30);
    for (uint32_t i = 0; i < 30; i++)
        put_wait(i);
    owner_settle(o);
    for (uint32_t i = 0; i < 30; i++) {
        uint64_t at = piece_off(i) + simdisk_below(disk, o->objects[i].entry.size_bytes);
        simdisk_flip(disk, 0, at, i % 8);
        ck_assert_int_eq(owner_check(o, i), -EBADMSG);
        simdisk_flip(disk, 0, at, i % 8);
        ck_assert_int_eq(owner_check(o, i), 0);
    }
    ck_assert_uint_eq(o->n_wrong, 0);
    struct store_stat st;
    store_stat(o->store, &st);
    ck_assert_uint_eq(st.checksum_errors, 30);
    end();
}
END_TEST

START_TEST(swapped_pieces_are_found)
{
    start_open(14, 30);
    for (uint32_t i = 0; i < 30; i++)
        put_wait(i);
    owner_settle(o);
    for (uint32_t i = 0; i + 1 < 30; i++) {
        struct store_loc a = o->objects[i].entry.loc;
        o->objects[i].entry.loc = o->objects[i + 1].entry.loc;
        uint32_t size = o->objects[i].entry.size_bytes;
        if (a.sector == o->objects[i].entry.loc.sector || o->objects[i].entry.loc.sector * SECTOR_BYTES + size > MIB)
            continue;
        ck_assert_int_eq(owner_check(o, i), -EBADMSG);
        o->objects[i].entry.loc = a;
    }
    /* The same bytes under another generation, or in another space, are not the same piece. */
    o->objects[3].entry.generation++;
    ck_assert_int_eq(owner_check(o, 3), -EBADMSG);
    o->objects[3].entry.generation--;
    o->objects[3].entry.id.space++;
    ck_assert_int_eq(owner_check(o, 3), -EBADMSG);
    o->objects[3].entry.id.space--;
    ck_assert_int_eq(owner_check(o, 3), 0);
    end();
}
END_TEST

/* The sums of granules are for reads of a part: the whole piece is checked by its entry. */
START_TEST(damaged_sums_are_found)
{
    struct geometry g;
    uint32_t n = 0;

    start_open(15, 60);
    for (uint32_t i = 0; i < 60; i++)
        put_wait(i);
    reopen();
    geometry_get(&g);
    memset(simdisk_bytes(disk, 0) + g.sums_off_bytes, 0x11, (size_t)g.n_segments * SECTOR_BYTES);
    for (uint32_t i = 0; i < 60; i++) {
        const struct store_entry *entry = &o->objects[i].entry;
        struct owner_slot *slot = &o->slots[0];

        ck_assert_int_eq(owner_check(o, i), 0);
        if (entry->size_bytes <= GRANULE_BYTES)
            continue;
        n++;
        slot->get = (struct store_get){.entry = *entry, .len_bytes = GRANULE_BYTES, .buf = slot->buf};
        ck_assert_int_eq(owner_raw_get(o, slot), -EBADMSG);
    }
    ck_assert_uint_gt(n, 3);
    ck_assert_uint_eq(o->n_wrong, 0);
    end();
}
END_TEST

/* --- Restarts --- */

START_TEST(all_is_there_after_a_clean_stop)
{
    start_open(30, 120);
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 40; i++) {
            uint32_t id = (uint32_t)simdisk_below(disk, 120);
            if (simdisk_below(disk, 4) == 0)
                owner_drop(o, id);
            else
                (void)owner_put(o, id, false);
            owner_turn(o);
        }
        reopen();
        ck_assert_uint_eq(o->n_lost, 0);
        owner_check_all(o, false);
        ck_assert_uint_eq(o->n_wrong + o->n_lost + o->n_badmsg, 0);
    }
    ck_assert_uint_gt(o->n_put, 400);
    end();
}
END_TEST

/* What the owner did not keep must not come back once its segment was used for something else. */
START_TEST(what_was_not_adopted_stays_away)
{
    start_open(34, 60);
    for (uint32_t i = 0; i < 20; i++)
        put_wait(i);
    owner_settle(o);
    owner_wait_sync(o);
    o->refuse_below = 20;
    reopen();
    for (uint32_t round = 0; round < 2; round++) /* their segments are used again, once */
        for (uint32_t i = 20; i < 60; i++) {
            put_wait(i);
            owner_turn(o);
        }
    owner_settle(o);
    owner_wait_sync(o);
    o->refuse_below = 0;
    owner_crash(o, true);
    ck_assert_int_eq(owner_open(o, &why), 0);
    for (uint32_t i = 0; i < 20; i++)
        ck_assert_uint_eq(o->objects[i].version, 0);
    owner_check_all(o, true);
    ck_assert_uint_eq(o->n_wrong + o->n_lost, 0);
    end();
}
END_TEST

/* A put in flight whose object is gone: it must leave no trace, however the crash falls. */
/* More than the log's queue holds, and power is cut at each step of what follows. */
START_TEST(what_is_logged_again_comes_before_what_it_replaced)
{
    for (uint32_t steps = 0; steps < 60; steps++) {
        start_open(36, 2400);
        o->size_max_bytes = 512;
        o->key_len = 8; /* so that a deletion has room where a put has none */
        for (uint32_t i = STORE_DURABLE; i < o->n_ids; i += 3) {
            put_wait(i);
            owner_turn(o);
        }
        owner_settle(o);
        owner_wait_sync(o);
        owner_crash(o, false);
        o->were_moved = true;
        ck_assert_int_eq(owner_open(o, &why), 0);
        o->were_moved = false;
        for (uint32_t i = 0; i < steps; i++) {
            o->now_ns += 100000000;
            (void)store_tick(o->store, o->now_ns);
            (void)simdisk_step(disk);
        }
        owner_crash(o, true);
        ck_assert_int_eq(owner_open(o, &why), 0);
        ck_assert_msg(o->n_lost == 0, "%llu are lost after %u steps", (unsigned long long)o->n_lost, steps);
        end();
    }
}
END_TEST

/* The queue has room for the last piece's entry, but for none of its space, which is longer. */
START_TEST(what_is_logged_again_comes_behind_its_space)
{
    const uint32_t last = STORE_DURABLE + 792 * 3;
    struct store_stat opened;
    uint64_t n_sweeps = 0;

    for (uint32_t steps = 0; steps < 60; steps++) {
        start_open(37, last + 1);
        o->size_max_bytes = 512;
        for (uint32_t i = STORE_DURABLE; i <= last; i += 3) {
            o->key_len = i == STORE_DURABLE ? KEY_BYTES_MAX : 8;
            put_wait(i);
            owner_turn(o);
        }
        owner_settle(o);
        owner_wait_sync(o);
        owner_crash(o, false);
        o->space = (struct store_space){.id = 7, .pool = "team-a", .durability = STORE_DURABLE};
        o->were_moved = true;
        o->space_again_at = last;
        ck_assert_int_eq(owner_open(o, &why), 0);
        o->were_moved = false;
        store_stat(o->store, &opened);
        n_sweeps += opened.checkpoints;
        const uint64_t generation = o->objects[last].entry.generation;
        for (uint32_t i = 0; i < steps; i++) {
            o->now_ns += 100000000;
            (void)store_tick(o->store, o->now_ns);
            (void)simdisk_step(disk);
        }
        owner_crash(o, true);
        ck_assert_int_eq(owner_open(o, &why), 0);
        ck_assert_uint_eq(o->n_lost, 0);
        if (o->objects[last].entry.generation == generation)
            ck_assert_msg(o->has_space, "a piece, and nothing of its space, after %u steps", steps);
        end();
    }
    ck_assert_uint_eq(n_sweeps, 60); /* else the space had room */
}
END_TEST

START_TEST(a_cancelled_put_leaves_no_trace)
{
    start_open(35, 10);
    ck_assert_int_eq(owner_put(o, 1, false), 0);
    ck_assert_int_eq(owner_put(o, 2, false), 0);
    for (uint32_t i = 0; i < OWNER_SLOTS; i++)
        if (o->slots[i].busy && o->slots[i].id == 1)
            o->slots[i].put.cancel = 1;
    owner_settle(o);
    ck_assert_uint_eq(o->n_put_failed, 1);
    ck_assert_uint_eq(o->objects[1].version, 0);
    owner_wait_sync(o);
    owner_crash(o, false);
    ck_assert_int_eq(owner_open(o, &why), 0);
    ck_assert_uint_eq(o->objects[1].version, 0);
    ck_assert_uint_eq(o->objects[2].version, 1);
    end();
}
END_TEST

START_TEST(spaces_are_remembered)
{
    struct store_space space = {.id = 99,
                                .item_bytes = 65536,
                                .digest = {1, 2, 3},
                                .pool = "team-a",
                                .class_id = 2,
                                .durability = STORE_DURABLE};

    start_open(31, 40);
    ck_assert_int_eq(store_space_put(o->store, &space), 0);
    o->space = space;
    o->has_space = true;
    reopen();
    ck_assert(o->has_space);
    ck_assert_mem_eq(&o->space, &space, sizeof(space));
    /* And through checkpoints. */
    o->size_max_bytes = 4096;
    for (int i = 0; i < 20000; i++) {
        uint32_t id = (uint32_t)simdisk_below(disk, 40);
        put_try(id);
        if (i % 4 == 0)
            owner_turn(o);
    }
    struct store_stat st;
    store_stat(o->store, &st);
    ck_assert_uint_gt(st.checkpoints, 2);
    owner_settle(o);
    owner_crash(o, true);
    ck_assert_int_eq(owner_open(o, &why), 0);
    ck_assert(o->has_space);
    ck_assert_mem_eq(&o->space, &space, sizeof(space));
    space.deleted = 1;
    ck_assert_int_eq(store_space_put(o->store, &space), 0);
    reopen();
    ck_assert(!o->has_space);
    end();
}
END_TEST

START_TEST(a_damaged_log_is_refused)
{
    struct geometry g;

    start_open(32, 40);
    for (uint32_t i = 0; i < 40; i++) {
        put_wait(i);
        owner_wait_sync(o);
    }
    geometry_get(&g);
    owner_settle(o);
    owner_crash(o, true);
    simdisk_flip(disk, 0, g.log_off_bytes + 5 * SECTOR_BYTES + 80, 3);
    ck_assert_int_eq(owner_open(o, &why), -EUCLEAN);
    simdisk_restart(disk);
    simdisk_flip(disk, 0, g.log_off_bytes + 5 * SECTOR_BYTES + 80, 3);
    ck_assert_int_eq(owner_open(o, &why), 0);
    ck_assert_int_eq(owner_close(o), 0);
    simdisk_flip(disk, 0, g.log_off_bytes + 7 * SECTOR_BYTES + 80, 3);
    ck_assert_int_eq(owner_open(o, &why), -EUCLEAN);
    end();
}
END_TEST

START_TEST(one_damaged_header_is_survived_two_are_not)
{
    struct geometry g;

    start_open(33, 10);
    ck_assert_int_eq(owner_close(o), 0);
    geometry_get(&g);
    simdisk_flip(disk, 0, g.header_off_bytes[0] + 9, 0);
    ck_assert_int_eq(owner_open(o, &why), 0);
    ck_assert_int_eq(owner_close(o), 0);
    simdisk_flip(disk, 0, g.header_off_bytes[0] + 20, 0);
    simdisk_flip(disk, 0, g.header_off_bytes[1] + 20, 0);
    ck_assert_int_eq(owner_open(o, &why), -EUCLEAN);
    end();
}
END_TEST

/* --- Transactions --- */

START_TEST(a_transaction_is_all_or_nothing)
{
    for (uint64_t seed = 0; seed < 60; seed++) {
        uint64_t before[6];
        bool committed = false;

        start_open(100 + seed, 12);
        for (uint32_t i = 0; i < 12; i++)
            put_wait(i);
        owner_settle(o);
        owner_wait_sync(o);
        for (uint32_t i = 0; i < 6; i++)
            before[i] = o->objects[i * 2].version;
        ck_assert(owner_txn_begin(o));
        for (uint32_t i = 0; i < 6; i++) {
            while (owner_put(o, i * 2, true) != 0)
                owner_turn(o);
            if (simdisk_below(disk, 3) == 0) /* so that the entries land in several blocks */
                (void)owner_sync(o);
            owner_turn(o);
        }
        owner_settle(o);
        if (seed % 3 != 0) {
            owner_txn_commit(o);
            committed = true;
        }
        if (seed % 3 == 1)
            owner_wait_sync(o);
        for (uint64_t i = simdisk_below(disk, 40); i > 0; i--)
            owner_turn(o);
        owner_crash(o, true);
        ck_assert_int_eq(owner_open(o, &why), 0);
        uint32_t n_new = 0;
        for (uint32_t i = 0; i < 6; i++)
            n_new += o->objects[i * 2].version == before[i] + 1;
        ck_assert(n_new == 0 || n_new == 6);
        if (!committed)
            ck_assert_uint_eq(n_new, 0);
        if (seed % 3 == 1)
            ck_assert_uint_eq(n_new, 6);
        owner_check_all(o, true);
        ck_assert_uint_eq(o->n_wrong + o->n_lost, 0);
        end();
    }
}
END_TEST

START_TEST(an_open_transaction_survives_checkpoints)
{
    struct store_stat st;

    start_open(40, 60);
    o->size_max_bytes = 4096;
    ck_assert(owner_txn_begin(o));
    ck_assert_int_eq(owner_put(o, 5, true), 0);
    owner_settle(o);
    int r = 0;
    for (uint32_t i = 0; i < 30000 && r != -ENOSPC; i++) { /* until its place is a quarter of the ring ago */
        uint32_t id = 6 + (uint32_t)simdisk_below(disk, 50);
        put_try(id);
        if (i % 4 == 0)
            owner_turn(o);
        if (i % 100 == 0 && !o->objects[58].writing && !o->objects[58].in_txn) {
            r = owner_put(o, 58, true);
            if (r == 0)
                owner_settle(o);
            o->objects[58].in_txn = false;
            if (r == 0)
                o->n_txn--;
        }
    }
    ck_assert_int_eq(r, -ENOSPC);
    owner_settle(o);
    owner_txn_commit(o);
    owner_wait_sync(o);
    for (uint32_t i = 0; i < 20000; i++) {
        uint32_t id = 6 + (uint32_t)simdisk_below(disk, 50);
        put_try(id);
        if (i % 4 == 0)
            owner_turn(o);
    }
    owner_settle(o);
    owner_wait_sync(o);
    store_stat(o->store, &st);
    ck_assert_uint_gt(st.checkpoints, 1);
    owner_crash(o, true);
    ck_assert_int_eq(owner_open(o, &why), 0);
    ck_assert_uint_eq(o->objects[5].version, 1);
    end();
}
END_TEST

/* --- Failures --- */

/* Blocks that say the same again and again, from the header's tail on, but for one sector of the ring. */
static void log_fill(void)
{
    static _Alignas(8) uint8_t sector[SECTOR_BYTES];
    struct format_block *b = (void *)sector;
    struct format_partition h;
    struct geometry g;

    geometry_get(&g);
    ck_assert_int_eq(superblock_header_read(simdisk_backend(disk), 0, &g, 0, &h), 0);
    struct log l = {.seed = g.seed};
    uint64_t prev = h.tail_prev, end = h.tail_lsn + g.log_sectors - 1;

    for (uint64_t lsn = h.tail_lsn; lsn < end; lsn++) {
        memset(sector, 0, sizeof(sector));
        uint32_t bytes = log_encode_space(sector + sizeof(*b), &o->space);

        *b = (struct format_block){.magic = FORMAT_BLOCK_MAGIC,
                                   .epoch = h.epoch,
                                   .lsn = lsn,
                                   .prev = prev,
                                   .flushed_lsn = lsn,
                                   .sectors = 1,
                                   .entries = 1,
                                   .entry_bytes = bytes};
        prev = b->checksum = log_block_checksum(&l, b);
        memcpy(simdisk_bytes(disk, 0) + g.log_off_bytes + lsn % g.log_sectors * SECTOR_BYTES, sector, sizeof(sector));
    }
    h.sequence++;
    h.clean = 0;
    h.needed_lsn = end;
    uint64_t off = superblock_header_fill(&g, 0, &h);
    memcpy(simdisk_bytes(disk, 0) + off, &h, sizeof(h));
}

/* No process of ours leaves a log that can never be swept. Who waits for such a device hears that it does not write. */
START_TEST(a_log_without_room_for_a_sweep)
{
    start(31, DEVICE_BYTES, MIB, 4);
    log_fill();
    ck_assert_int_eq(owner_open(o, &why), -ENOSPC);
    ck_assert(owner_sync(o));
    for (int i = 0; o->syncing && i < 1000; i++)
        owner_turn(o);
    ck_assert(!o->syncing);
    ck_assert_int_eq(o->sync_status, -EIO);
    end();
}
END_TEST

START_TEST(a_failed_flush_ends_writing)
{
    start_open(50, 30);
    for (uint32_t i = 0; i < 20; i++)
        put_wait(i);
    owner_settle(o);
    simdisk_fail_next(disk, IO_BLK_FLUSH, -EIO);
    owner_wait_sync(o);
    ck_assert_int_eq(o->sync_status, -EIO);
    ck_assert_int_eq(o->failed, -EIO);
    ck_assert_int_eq(owner_put(o, 21, false), -EIO);
    owner_wait_sync(o); /* the device is well again, but nobody believes it */
    ck_assert_int_eq(o->sync_status, -EIO);
    owner_check_all(o, false);
    ck_assert_uint_eq(o->n_wrong + o->n_lost, 0);
    ck_assert_int_eq(store_close_clean(o->store), -EIO);
    end();
}
END_TEST

START_TEST(a_failed_write_fails_its_put_only)
{
    start_open(51, 30);
    put_wait(1);
    owner_settle(o);
    for (uint32_t i = 2; i < 12; i++) {
        put_wait(i);
        simdisk_fail_next(disk, IO_BLK_WRITE, i % 2 ? -EIO : 0);
        owner_settle(o);
        ck_assert_int_eq(o->last_put_status, -EIO);
        ck_assert_uint_eq(o->objects[i].version, 0);
    }
    ck_assert_int_eq(o->failed, 0);
    put_wait(20);
    owner_settle(o);
    owner_wait_sync(o);
    ck_assert_int_eq(o->sync_status, 0);
    owner_check_all(o, false);
    ck_assert_uint_eq(o->n_wrong + o->n_lost, 0);
    end();
}
END_TEST

START_TEST(short_counts_are_continued)
{
    start_open(52, 60);
    simdisk_faults(disk)->short_count = 600000;
    for (uint32_t i = 0; i < 60; i++)
        put_wait(i);
    owner_settle(o);
    owner_wait_sync(o);
    ck_assert_int_eq(o->sync_status, 0);
    owner_check_all(o, false);
    owner_crash(o, true);
    ck_assert_int_eq(owner_open(o, &why), 0);
    owner_check_all(o, true);
    ck_assert_uint_eq(o->n_wrong + o->n_lost + o->n_put_failed, 0);
    end();
}
END_TEST

START_TEST(vanished_memory_fails_its_put_only)
{
    start_open(53, 60);
    simdisk_faults(disk)->work_fault = 300000;
    for (uint32_t i = 0; i < 60; i++)
        put_wait(i);
    owner_settle(o);
    ck_assert_uint_gt(o->n_put_failed, 5);
    ck_assert_uint_gt(o->n_put, 20);
    simdisk_faults(disk)->work_fault = 0;
    owner_check_all(o, false);
    ck_assert_uint_eq(o->n_wrong + o->n_lost, 0);
    reopen();
    owner_check_all(o, false);
    ck_assert_uint_eq(o->n_wrong + o->n_lost, 0);
    end();
}
END_TEST

int main(void)
{
    const struct test_case tests[] = {
        {"bytes", every_size_comes_back},
        {"bytes", small_pieces_share_one_write},
        {"bytes", a_batch_waits_unless_a_client_does},
        {"bytes", no_residue_behind_a_small_piece},
        {"bytes", flipped_bits_are_found},
        {"bytes", swapped_pieces_are_found},
        {"bytes", damaged_sums_are_found},
        {"restart", all_is_there_after_a_clean_stop},
        {"restart", what_was_not_adopted_stays_away},
        {"restart", what_is_logged_again_comes_before_what_it_replaced},
        {"restart", what_is_logged_again_comes_behind_its_space},
        {"restart", a_cancelled_put_leaves_no_trace},
        {"restart", spaces_are_remembered},
        {"restart", a_damaged_log_is_refused},
        {"restart", one_damaged_header_is_survived_two_are_not},
        {"txn", a_transaction_is_all_or_nothing},
        {"txn", an_open_transaction_survives_checkpoints},
        {"failures", a_log_without_room_for_a_sweep},
        {"failures", a_failed_flush_ends_writing},
        {"failures", a_failed_write_fails_its_put_only},
        {"failures", short_counts_are_continued},
        {"failures", vanished_memory_fails_its_put_only},
    };

    return run_suite("store", tests, ARRAY_LEN(tests));
}
