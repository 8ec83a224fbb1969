/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log by itself: encoding, blocks around the ring's end, what recovery believes, sweeps that are cut off. Blocks
 * are written here with blocking calls, so every order of writing and losing can be made by hand.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io/checksum.h"
#include "io/log.h"
#include "io/segment.h"
#include "tests/unit/support/simdisk.h"

#define DEVICE_BYTES (16 * MIB)
#define LIVE_MAX 3000

static struct simdisk *disk;
static struct geometry g;
static struct format_partition header;
static struct log l;
static uint8_t *block;

/* What "lives": entries by generation, in a table that the sweep walks. */
static struct store_entry live[LIVE_MAX];
static uint32_t n_live;
/* What replay found: generations in order. */
static uint64_t *replayed;
static size_t n_replayed;

static bool next_entry(void *ctx, uint64_t *cursor, struct store_entry *ret_entry)
{
    (void)ctx;
    if (*cursor >= n_live)
        return false;
    *ret_entry = live[(*cursor)++];
    return true;
}

static bool next_space(void *ctx, uint64_t *cursor, struct store_space *ret_space)
{
    (void)ctx;
    (void)cursor;
    (void)ret_space;
    return false;
}

static const struct store_events events = {.next_entry = next_entry, .next_space = next_space};

static struct store_entry entry_of(uint64_t generation)
{
    struct store_entry e = {
        .id = {.space = 3, .group = (uint32_t)generation, .key_len = KEY_BYTES_MAX},
        .generation = generation,
        .sum = generation * 7,
        .object_bytes = 100,
        .size_bytes = 4096,
        .n_parts = 1,
    };

    memcpy(e.id.key, &generation, sizeof(generation));
    return e;
}

static int record(void *ctx, const struct log_record *rec)
{
    (void)ctx;
    if (rec->type == FORMAT_ENTRY_PUT)
        replayed[n_replayed++] = rec->put.entry.generation;
    return 0;
}

static int recover(void)
{
    const struct log_recovery recovery = {.record = record};

    log_deinit(&l);
    ck_assert_int_eq(log_init(&l, &g, 0, &events, NULL), 0);
    n_replayed = 0;
    int r = log_recover(&l, simdisk_backend(disk), 0, &g, &header, &recovery);
    header.epoch++;
    header.clean = 0;
    l.epoch = header.epoch;
    if (r == 0) {
        header.needed_lsn = l.head.lsn;
        l.flushed_lsn = l.head.lsn;
    }
    return r;
}

static void setup(void)
{
    const struct store_format format = {
        .device_bytes = DEVICE_BYTES, .segment_bytes = MIB, .partitions = 1, .uuid = {1, 2}};

    disk = simdisk_new(1);
    simdisk_device_add(disk, DEVICE_BYTES);
    ck_assert_int_eq(store_format_write(simdisk_backend(disk), 0, &format), 0);
    ck_assert_int_eq(geometry_of(&format, 0, &g), 0);
    ck_assert_int_eq(superblock_header_read(simdisk_backend(disk), 0, &g, 0, &header), 0);
    block = aligned_alloc(SECTOR_BYTES, FORMAT_BLOCK_BYTES_MAX);
    replayed = malloc(1000000 * sizeof(*replayed));
    n_live = 0;
    ck_assert_int_eq(recover(), 0);
    ck_assert_uint_eq(n_replayed, 0);
}

static void teardown(void)
{
    log_deinit(&l);
    free(block);
    free(replayed);
    simdisk_free(disk);
}

static void append(uint64_t generation, uint64_t txn)
{
    struct store_entry e = entry_of(generation);

    ck_assert(log_reserve(&l, log_put_bytes(e.id.key_len)));
    log_append_put(&l, &e, txn);
}

static void block_write(uint64_t lsn, uint32_t sectors)
{
    ck_assert_uint_le(log_place(&l, lsn) + sectors, g.log_sectors);
    ck_assert_int_eq(simdisk_backend(disk)->ops->blk_now(simdisk_backend(disk), IO_BLK_WRITE, 0,
                                                         g.log_off_bytes + log_place(&l, lsn) * SECTOR_BYTES, block,
                                                         (uint64_t)sectors * SECTOR_BYTES),
                     0);
}

/* The next block, written or lost. Its sectors, 0 if there is none. */
static uint32_t commit(bool written)
{
    uint64_t lsn;
    uint32_t sectors = log_compose(&l, block, &lsn);

    if (sectors > 0 && written)
        block_write(lsn, sectors);
    return sectors;
}

static void sweep_finish(void)
{
    header.sequence++;
    header.tail_lsn = l.sweep.start.lsn;
    header.tail_prev = l.sweep.start.prev;
    header.needed_lsn = l.head.lsn;
    l.flushed_lsn = l.head.lsn;
    log_sweep_finish(&l);
}

/* --- Entries --- */

START_TEST(entries_come_back)
{
    uint8_t out[FORMAT_ENTRY_BYTES_MAX + 8];
    struct log_record rec;
    uint32_t bytes = 0;

    setup();
    for (uint8_t key_len = 0; key_len <= KEY_BYTES_MAX; key_len++) {
        struct store_entry e = {.id = {.space = UINT64_MAX, .group = 5, .piece = 6, .part = 7, .key_len = key_len},
                                .generation = 8,
                                .sum = 9,
                                .object_bytes = 1ULL << 40,
                                .size_bytes = PIECE_BYTES_MAX / 8,
                                .n_parts = 11,
                                .class_id = 12,
                                .durability = 2,
                                .kind = 1,
                                .loc = {.segment = g.n_segments - 1, .sector = 0}};
        memset(e.id.key, 0xab, key_len);
        uint32_t n = log_encode_put(out, &e, 77);
        ck_assert_uint_eq(n, log_put_bytes(key_len));
        ck_assert_int_eq(log_decode(&l, out, n, &rec, &bytes), 0);
        ck_assert_uint_eq(bytes, n);
        ck_assert_uint_eq(rec.put.txn, 77);
        ck_assert_mem_eq(rec.put.entry.id.key, e.id.key, sizeof(e.id.key));
        ck_assert_uint_eq(rec.put.entry.id.key_len, e.id.key_len);
        ck_assert_uint_eq(rec.put.entry.id.space, e.id.space);
        ck_assert_uint_eq(rec.put.entry.sum, 9);
        ck_assert_uint_eq(rec.put.entry.object_bytes, 1ULL << 40);
        ck_assert_uint_eq(rec.put.entry.loc.segment, g.n_segments - 1);
        for (uint32_t cut = 0; cut < n; cut++)
            ck_assert_int_eq(log_decode(&l, out, cut, &rec, &bytes), -EUCLEAN);
        n = log_encode_delete(out, &e.id, 5);
        ck_assert_int_eq(log_decode(&l, out, n, &rec, &bytes), 0);
        ck_assert_mem_eq(&rec.delete.id, &e.id, sizeof(e.id));
        ck_assert_uint_eq(rec.delete.generation, 5);
    }
    teardown();
}
END_TEST

START_TEST(impossible_entries_are_refused)
{
    uint8_t out[FORMAT_ENTRY_BYTES_MAX];
    struct log_record rec;
    struct format_put *f = (struct format_put *)(void *)out;
    const struct store_entry e = entry_of(9);
    uint32_t bytes;

    setup();
    uint32_t n = log_encode_put(out, &e, 0);
#define REFUSED(field, value)                                                                                          \
    do {                                                                                                               \
        (void)log_encode_put(out, &e, 0);                                                                              \
        f->field = (value);                                                                                            \
        ck_assert_int_eq(log_decode(&l, out, n, &rec, &bytes), -EUCLEAN);                                              \
    } while (0)
    REFUSED(head.type, 99);
    REFUSED(head.key_len, KEY_BYTES_MAX + 1);
    REFUSED(head.key_len, 1);
    REFUSED(head.entry_bytes, 0);
    REFUSED(head.entry_bytes, 4096);
    REFUSED(size_bytes, 0);
    REFUSED(size_bytes, PIECE_BYTES_MAX + 1);
    REFUSED(size_bytes, MIB + 1);
    REFUSED(segment, g.n_segments);
    REFUSED(sector, MIB / SECTOR_BYTES);
    REFUSED(durability, 3);
    REFUSED(generation, 0);
    REFUSED(generation, FORMAT_COUNT_MAX + 1);
#undef REFUSED
    ck_assert_int_eq(log_decode(&l, out, log_encode_delete(out, &e.id, FORMAT_COUNT_MAX), &rec, &bytes), 0);
    ck_assert_int_eq(log_decode(&l, out, log_encode_delete(out, &e.id, UINT64_MAX), &rec, &bytes), -EUCLEAN);
    struct format_segment_freed freed = {.head = {.type = FORMAT_ENTRY_SEGMENT_FREED, .entry_bytes = sizeof(freed)},
                                         .generation = FORMAT_COUNT_MAX + 1};
    ck_assert_int_eq(log_decode(&l, (const uint8_t *)&freed, sizeof(freed), &rec, &bytes), -EUCLEAN);
    for (uint32_t i = 0; i < 50000; i++) { /* whatever it says, it must not read outside */
        (void)log_encode_put(out, &e, 0);
        for (uint64_t k = 1 + simdisk_below(disk, 4); k > 0; k--)
            out[simdisk_below(disk, 8)] = (uint8_t)simdisk_random(disk);
        uint8_t *tight = malloc(n);
        memcpy(tight, out, n);
        int r = log_decode(&l, tight, n, &rec, &bytes);
        ck_assert(r == 0 || r == -EUCLEAN);
        free(tight);
    }
    teardown();
}
END_TEST

/* A header whose counts could wrap, though its checksum is right: then the other one counts. */
START_TEST(impossible_headers_are_not_believed)
{
    setup();
    for (int field = 0; field < 4; field++) {
        struct format_partition bad = header, found;

        bad.sequence = field == 0 ? UINT64_MAX - (header.sequence & 1) : header.sequence + 1;
        *(field == 1   ? &bad.tail_lsn
          : field == 2 ? &bad.needed_lsn
                       : &bad.next_generation) = field == 0 ? 1 : FORMAT_COUNT_MAX + 1;
        struct io_backend *be = simdisk_backend(disk);
        uint64_t off = superblock_header_fill(&g, 0, &bad);

        memcpy(block, &bad, sizeof(bad));
        ck_assert_int_eq(be->ops->blk_now(be, IO_BLK_WRITE, 0, off, block, sizeof(bad)), 0);
        ck_assert_int_eq(superblock_header_read(be, 0, &g, 0, &found), 0);
        ck_assert_uint_eq(found.sequence, header.sequence);
    }
    teardown();
}
END_TEST

/* --- The ring --- */

START_TEST(many_laps_replay_in_order)
{
    uint64_t generation = 0, kept_from = 0;

    setup();
    for (uint32_t i = 0; i < 30000; i++) {
        for (uint64_t n = simdisk_below(disk, 40); n > 0 && log_reserve(&l, 0); n--) {
            append(++generation, 0);
        }
        struct log_mark oldest = l.head;
        if (log_sweep_due(&l, oldest)) {
            log_sweep_begin(&l, oldest, false);
            kept_from = generation - (l.queue_in - l.queue_out) / log_put_bytes(KEY_BYTES_MAX) + 1;
        }
        (void)commit(true);
        ck_assert_uint_le(log_used_sectors(&l), g.log_sectors);
        if (l.sweep.ended)
            sweep_finish();
        if (i % 3000 == 2999) {
            while (l.queue_in > l.queue_out || l.sweep.active) {
                (void)commit(true);
                if (l.sweep.ended)
                    sweep_finish();
            }
            ck_assert_int_eq(recover(), 0);
            ck_assert_uint_ge(n_replayed, generation - kept_from + 1);
            for (size_t k = 0; k < n_replayed; k++)
                ck_assert_uint_eq(replayed[k], generation - n_replayed + 1 + k);
        }
    }
    ck_assert_uint_gt(l.head.lsn, 20 * g.log_sectors);
    teardown();
}
END_TEST

/* Block 3 was lost, 4 was kept; the log went on with another block 3. Block 4 is no sequel to that. */
START_TEST(what_a_crash_left_behind_is_not_replayed)
{
    setup();
    append(1, 0);
    ck_assert_uint_eq(commit(true), 1);
    append(2, 0);
    ck_assert_uint_eq(commit(true), 1);
    append(3, 0);
    ck_assert_uint_eq(commit(false), 1);
    append(4, 0);
    ck_assert_uint_eq(commit(true), 1);
    ck_assert_int_eq(recover(), 0);
    ck_assert_uint_eq(n_replayed, 2);
    append(3, 0); /* even if it says the very same */
    ck_assert_uint_eq(commit(true), 1);
    ck_assert_int_eq(recover(), 0);
    ck_assert_uint_eq(n_replayed, 3);
    teardown();
}
END_TEST

START_TEST(damage_in_the_middle_is_told_from_the_end)
{
    setup();
    for (uint64_t i = 1; i <= 10; i++) {
        append(i, 0);
        ck_assert_uint_eq(commit(true), 1);
        if (i == 7)
            l.flushed_lsn = l.head.lsn; /* known to the blocks from 8 on */
    }
    simdisk_flip(disk, 0, g.log_off_bytes + 8 * SECTOR_BYTES + 70, 2); /* block 9 was never known to be flushed */
    ck_assert_int_eq(recover(), 0);
    ck_assert_uint_eq(n_replayed, 8);
    header.needed_lsn = 0;
    header.epoch = 1;
    simdisk_flip(disk, 0, g.log_off_bytes + 6 * SECTOR_BYTES + 70, 2); /* block 7 was */
    ck_assert_int_eq(recover(), -EUCLEAN);
    simdisk_flip(disk, 0, g.log_off_bytes + 6 * SECTOR_BYTES + 70, 2);
    header.epoch = 1;
    header.needed_lsn = 9;
    ck_assert_int_eq(recover(), -EUCLEAN); /* the header says that block 9 was */
    teardown();
}
END_TEST

/* A block whose checksum is right, with an entry that nobody would write. Those of a sweep at the end are not replayed. */
static int recover_nonsense(uint16_t flags)
{
    struct format_put put;
    uint64_t lsn;

    setup();
    append(1, 0);
    ck_assert_uint_eq(commit(true), 1);
    append(2, 0);
    append(3, 0);
    ck_assert_uint_eq(log_compose(&l, block, &lsn), 1);
    struct format_block *b = (struct format_block *)(void *)block;
    memcpy(&put, b + 1, sizeof(put));
    put.size_bytes = 0;
    memcpy(b + 1, &put, sizeof(put));
    b->flags |= flags;
    b->checksum = log_block_checksum(&l, b);
    block_write(lsn, 1);
    int r = recover();
    teardown();
    return r;
}

START_TEST(nonsense_is_refused_though_its_block_is_whole)
{
    ck_assert_int_eq(recover_nonsense(0), -EUCLEAN);
    ck_assert_int_eq(recover_nonsense(FORMAT_BLOCK_SWEEP_ONLY), -EUCLEAN);
}
END_TEST

static void warm_with_hint(void *ctx, struct log_record *rec)
{
    ++*(uint64_t *)ctx;
    if (rec->type == FORMAT_ENTRY_PUT)
        rec->put.entry.hint = rec->put.entry.generation * 3;
}

static int record_with_hint(void *ctx, const struct log_record *rec)
{
    ck_assert(rec->type != FORMAT_ENTRY_PUT || rec->put.entry.hint == rec->put.entry.generation * 3);
    return record(ctx, rec);
}

/* Also those that wait for their transaction. */
START_TEST(what_will_be_replayed_is_told_before)
{
    uint64_t n_warm = 0;
    const struct log_recovery recovery = {.record = record_with_hint, .warm = warm_with_hint, .ctx = &n_warm};

    setup();
    for (uint64_t i = 1; i <= 200; i++)
        append(i, i % 3 == 0 ? 500 : 0);
    log_append_txn_commit(&l, 500);
    while (commit(true) > 0)
        ;
    log_deinit(&l);
    ck_assert_int_eq(log_init(&l, &g, 0, &events, NULL), 0);
    ck_assert_int_eq(log_recover(&l, simdisk_backend(disk), 0, &g, &header, &recovery), 0);
    ck_assert_uint_eq(n_replayed, 200);
    ck_assert_uint_eq(n_warm, 201);
    teardown();
}
END_TEST

START_TEST(uncommitted_puts_are_left_out)
{
    setup();
    append(1, 500);
    append(2, 600);
    append(3, 0);
    ck_assert_uint_eq(commit(true), 1);
    append(4, 500);
    ck_assert_uint_eq(commit(true), 1);
    log_append_txn_commit(&l, 500);
    append(5, 0);
    ck_assert_uint_eq(commit(true), 1);
    ck_assert_int_eq(recover(), 0);
    ck_assert_uint_eq(n_replayed, 4);
    const uint64_t order[] = {3, 1, 4, 5}; /* where the commit was */
    ck_assert_mem_eq(replayed, order, sizeof(order));
    teardown();
}
END_TEST

/* The worst that may be alive, and the power fails in the middle of every sweep, for ever. */
START_TEST(sweeps_cut_off_again_and_again)
{
    uint32_t begun = 0;

    setup();
    while (log_live_room(&l, log_put_bytes(KEY_BYTES_MAX), true) && n_live < LIVE_MAX) {
        live[n_live] = entry_of(n_live + 1);
        n_live++;
        l.live_bytes += log_put_bytes(KEY_BYTES_MAX);
    }
    for (uint32_t i = 0; i < n_live;) { /* whole blocks: else they would take more room than is let in */
        while (i < n_live && l.queue_in - l.queue_out < 2 * l.block_sectors_max * SECTOR_BYTES)
            append(live[i++].generation, 0);
        ck_assert_uint_gt(commit(true), 0);
    }
    while (l.queue_in > l.queue_out)
        ck_assert_uint_gt(commit(true), 0);
    const uint64_t live_bytes = l.live_bytes;
    for (uint32_t crash = 0; crash < 200; crash++) {
        ck_assert_int_eq(recover(), 0);
        l.live_bytes = live_bytes;
        /* Normal work until no more is let in. */
        while (log_has_room(&l) && crash % 2 == 0) {
            append(live[0].generation, 0);
            ck_assert_uint_gt(commit(true), 0);
        }
        /* Then there is room for a sweep, however the last one ended. */
        if (log_sweep_due(&l, l.head)) {
            log_sweep_begin(&l, l.head, true);
            begun++;
        }
        for (uint64_t n = simdisk_below(disk, 40); n > 0 && l.sweep.active && !l.sweep.ended; n--)
            ck_assert(commit(true) > 0 || l.sweep.ended);
        ck_assert_uint_le(log_used_sectors(&l), g.log_sectors);
        if (crash % 10 == 9) { /* now and then one is let through */
            while (!l.sweep.ended)
                ck_assert(commit(true) > 0 || l.sweep.ended);
            sweep_finish();
        }
    }
    ck_assert_uint_gt(begun, 100);
    ck_assert_int_eq(recover(), 0);
    static bool seen[LIVE_MAX + 1];
    for (size_t i = 0; i < n_replayed; i++)
        seen[replayed[i]] = true;
    for (uint32_t i = 0; i < n_live; i++)
        ck_assert(seen[live[i].generation]);
    teardown();
}
END_TEST

/* The process died in a sweep; the next one gave its blocks back, wrote nothing, and was stopped in order: they are still there. */
START_TEST(what_was_given_back_lies_behind_a_clean_end)
{
    setup();
    live[n_live++] = entry_of(1);
    append(1, 0);
    ck_assert_uint_eq(commit(true), 1);
    log_sweep_begin(&l, l.head, true);
    ck_assert_uint_eq(commit(true), 1);
    ck_assert_int_eq(recover(), 0);
    ck_assert_uint_eq(l.head.lsn, 1);
    for (int starts = 0; starts < 2; starts++) {
        header.clean = 1;
        ck_assert_int_eq(recover(), 0);
        ck_assert_uint_eq(n_replayed, 1);
        ck_assert_uint_eq(l.head.lsn, 1);
    }
    /* What began after that end is no leftover: then the header is not the last one that was written. */
    log_sweep_begin(&l, l.head, true);
    ck_assert_uint_eq(commit(true), 1);
    header.clean = 1;
    header.epoch--;
    ck_assert_int_eq(recover(), -EUCLEAN);
    teardown();
}
END_TEST

/* --- Deletions without an entry --- */

static void delete_without_room(uint64_t generation)
{
    const struct store_entry e = entry_of(generation);
    uint64_t other = 1000000;

    while (log_reserve(&l, log_put_bytes(KEY_BYTES_MAX))) {
        log_unreserve(&l, log_put_bytes(KEY_BYTES_MAX));
        append(other++, 0);
    }
    log_append_delete(&l, &e.id, generation);
    ck_assert(log_has_unlogged(&l));
}

static void sweep_from(struct log_mark oldest)
{
    log_sweep_begin(&l, oldest, true);
    while (!l.sweep.ended)
        ck_assert(commit(true) > 0 || l.sweep.ended);
    sweep_finish();
}

static bool comes_back(uint64_t generation)
{
    bool found = false;

    ck_assert_int_eq(recover(), 0);
    for (size_t i = 0; i < n_replayed; i++)
        found |= replayed[i] == generation;
    return found;
}

/* What is deleted waits in the queue itself: a sweep that begins now comes before it. */
START_TEST(a_sweep_is_no_record_of_what_is_queued_behind_it)
{
    uint64_t generation = 0;

    setup();
    while (log_used_sectors(&l) < l.ring_sectors / 3) {
        append(++generation, 0);
        ck_assert_uint_gt(commit(true), 0);
    }
    append(++generation, 0);
    delete_without_room(generation);
    ck_assert(log_sweep_due(&l, l.head)); /* the ring is full enough */
    sweep_from(l.head);
    while (l.queue_in > l.queue_out)
        ck_assert_uint_gt(commit(true), 0);
    for (int sweeps = 0; log_has_unlogged(&l); sweeps++) {
        ck_assert_int_lt(sweeps, 2);
        ck_assert(log_sweep_due(&l, l.head));
        sweep_from(l.head);
    }
    ck_assert(!comes_back(generation));
    teardown();
}
END_TEST

/* The sweep is over, but an open transaction keeps what was deleted in the log. */
START_TEST(a_sweep_is_no_record_while_a_transaction_keeps_the_log)
{
    setup();
    const struct log_mark oldest = l.head;
    append(1, 500);
    append(2, 0);
    ck_assert_uint_gt(commit(true), 0);
    delete_without_room(2);
    while (l.queue_in > l.queue_out)
        ck_assert_uint_gt(commit(true), 0);
    if (log_sweep_due(&l, oldest))
        sweep_from(oldest);
    ck_assert(log_has_unlogged(&l) || !comes_back(2)); /* no SYNC may be answered yet */
    sweep_from(oldest);                                /* one for want of room */
    ck_assert(log_has_unlogged(&l) || !comes_back(2));
    ck_assert(log_sweep_due(&l, l.head)); /* the transaction is over */
    sweep_from(l.head);
    ck_assert(!log_has_unlogged(&l));
    ck_assert(!comes_back(2));
    teardown();
}
END_TEST

/* Another transaction follows before the first is over, and so on: some sweep is a record all the same. */
START_TEST(a_sweep_is_a_record_though_transactions_never_end)
{
    uint64_t txn = 500;

    setup();
    append(1, 0);
    ck_assert_uint_gt(commit(true), 0);
    delete_without_room(1);
    for (int sweeps = 0; log_has_unlogged(&l); sweeps++) {
        ck_assert_int_lt(sweeps, 4);
        const struct log_mark oldest = l.head;
        for (int i = 0; i < 3 || l.queue_in > l.queue_out; i++, txn++) {
            if (log_reserve(&l, log_put_bytes(KEY_BYTES_MAX))) {
                log_unreserve(&l, log_put_bytes(KEY_BYTES_MAX));
                append(txn, txn);
            }
            ck_assert_uint_gt(commit(true), 0);
        }
        sweep_from(oldest);
    }
    ck_assert(!comes_back(1));
    teardown();
}
END_TEST

/* Any bit of the ring may flip: recovery says something sensible and stays within its memory. */
START_TEST(noise_is_survived)
{
    setup();
    for (uint64_t i = 1; i <= 400; i++) {
        append(i, i % 3 ? 0 : 5);
        if (i % 10 == 0)
            ck_assert_uint_gt(commit(true), 0);
    }
    const struct format_partition before = header;
    for (uint32_t i = 0; i < 600; i++) {
        uint64_t at = g.log_off_bytes + simdisk_below(disk, l.head.lsn ? 60 * SECTOR_BYTES : 1);
        unsigned bit = (unsigned)simdisk_below(disk, 8);
        header = before;
        simdisk_flip(disk, 0, at, bit);
        int r = recover();
        ck_assert(r == 0 || r == -EUCLEAN);
        for (size_t k = 0; k < n_replayed; k++)
            ck_assert_uint_le(replayed[k], 400);
        simdisk_flip(disk, 0, at, bit);
    }
    teardown();
}
END_TEST

/* --- Slots of granule sums --- */

START_TEST(slots_never_overlap)
{
    static uint32_t owner_of[SEGMENT_BYTES_MAX / SECTOR_BYTES];
    const uint32_t sectors_all[] = {256, 512, 2048, 4096};

    disk = simdisk_new(9);
    for (uint32_t round = 0; round < 2000; round++) {
        struct segment_table t = {.segment_sectors = sectors_all[round % 4]};
        uint64_t base = 0;
        t.slots = t.segment_sectors / FORMAT_SLOT_SECTORS;
        t.sums = &base;
        memset(owner_of, 0, sizeof(owner_of));
        uint32_t sector = 0, n = 0;
        for (;;) {
            uint32_t size = 1 + (uint32_t)simdisk_below(disk, round % 5 ? 40 : 500);
            if (sector + size > t.segment_sectors)
                break;
            uint32_t granules = (uint32_t)div_round_up(size, GRANULE_BYTES / SECTOR_BYTES);
            uint64_t first = (uint64_t)(segment_sums(&t, (struct store_loc){.sector = (uint16_t)sector}) - t.sums);
            n++;
            for (uint32_t i = 0; granules > 1 && i < granules; i++) {
                ck_assert_uint_lt(first + i, t.slots);
                ck_assert_uint_eq(owner_of[first + i], 0);
                owner_of[first + i] = n;
            }
            sector += size;
        }
    }
    simdisk_free(disk);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("log");
    TCase *tc = tcase_create("log");

    tcase_set_timeout(tc, 300);
    tcase_add_test(tc, entries_come_back);
    tcase_add_test(tc, impossible_entries_are_refused);
    tcase_add_test(tc, impossible_headers_are_not_believed);
    tcase_add_test(tc, many_laps_replay_in_order);
    tcase_add_test(tc, what_a_crash_left_behind_is_not_replayed);
    tcase_add_test(tc, damage_in_the_middle_is_told_from_the_end);
    tcase_add_test(tc, nonsense_is_refused_though_its_block_is_whole);
    tcase_add_test(tc, what_will_be_replayed_is_told_before);
    tcase_add_test(tc, uncommitted_puts_are_left_out);
    tcase_add_test(tc, sweeps_cut_off_again_and_again);
    tcase_add_test(tc, what_was_given_back_lies_behind_a_clean_end);
    tcase_add_test(tc, a_sweep_is_no_record_of_what_is_queued_behind_it);
    tcase_add_test(tc, a_sweep_is_no_record_while_a_transaction_keeps_the_log);
    tcase_add_test(tc, a_sweep_is_a_record_though_transactions_never_end);
    tcase_add_test(tc, noise_is_survived);
    tcase_add_test(tc, slots_never_overlap);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
