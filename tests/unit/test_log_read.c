/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log's blocks, wherever they lie in the windows that are read at once, with a backend that reads ahead and with one
 * that does not; and what recovery makes of errors ahead of it, and of blocks that it has to come back to.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io/log_read.h"
#include "tests/unit/support/simdisk.h"

#define DEVICE_BYTES (64 * MIB)
#define RING_BYTES (16 * MIB + 3 * FORMAT_PARTITION_ALIGN_BYTES)
#define WINDOW_BYTES_READ MIB
#define BLOCKS_MAX 5000
#define WITNESS_BYTES ((uint64_t)(LOG_BLOCKS_UNFLUSHED_MAX + 2) * FORMAT_BLOCK_BYTES_MAX)

/* Reads what was begun when it is waited for: until then the memory has anything. */
struct ahead {
    struct io_backend backend;
    uint32_t n_begun, n_waited, n_over;
    uint32_t n_bad;            /* of those that were begun: they reach beyond fails_from_bytes */
    uint64_t fails_from_bytes; /* on the device */
};

static struct simdisk *disk;
static struct geometry g;
static struct log l;
static struct format_partition header;
static struct log_mark mark; /* of the writer */
static uint8_t *block;
static uint64_t n_blocks; /* since setup(): a block has its number for a generation */
static uint64_t replayed[BLOCKS_MAX];
static size_t n_replayed;

static struct ahead *ahead_of(struct io_backend *be)
{
    return container_of(be, struct ahead, backend);
}

static int blk_now(struct io_backend *be, enum io_blk_op op, uint32_t dev, uint64_t off_bytes, void *mem,
                   uint64_t len_bytes)
{
    if (off_bytes + len_bytes > ahead_of(be)->fails_from_bytes)
        return -EIO;
    return simdisk_backend(disk)->ops->blk_now(simdisk_backend(disk), op, dev, off_bytes, mem, len_bytes);
}

static void ahead_begin(struct io_backend *be, struct io_ahead *job)
{
    struct ahead *a = ahead_of(be);

    ck_assert_uint_eq(job->op, IO_AHEAD_READ);
    a->n_begun++;
    a->n_bad += job->off_bytes + job->len_bytes > a->fails_from_bytes;
    memset(job->mem, 0xee, job->len_bytes);
}

static int ahead_wait(struct io_backend *be, struct io_ahead *job)
{
    ahead_of(be)->n_waited++;
    return blk_now(be, IO_BLK_READ, job->dev, job->off_bytes, job->mem, job->len_bytes);
}

static void ahead_over(struct io_backend *be)
{
    ck_assert_uint_eq(ahead_of(be)->n_begun, ahead_of(be)->n_waited);
    ahead_of(be)->n_over++;
}

static struct ahead backend_make(bool is_ahead)
{
    static const struct io_backend_ops plain = {.blk_now = blk_now};
    static const struct io_backend_ops with_ahead = {
        .blk_now = blk_now, .ahead_begin = ahead_begin, .ahead_wait = ahead_wait, .ahead_over = ahead_over};

    return (struct ahead){.backend = {.ops = is_ahead ? &with_ahead : &plain}, .fails_from_bytes = UINT64_MAX};
}

static void setup_with(uint64_t log_bytes)
{
    const struct store_format format = {
        .device_bytes = DEVICE_BYTES, .segment_bytes = MIB, .partitions = 1, .log_bytes = log_bytes, .uuid = {1, 2}};

    disk = simdisk_new(1);
    simdisk_device_add(disk, DEVICE_BYTES);
    ck_assert_int_eq(store_format_write(simdisk_backend(disk), 0, &format), 0);
    ck_assert_int_eq(geometry_of(&format, 0, &g), 0);
    ck_assert_int_eq(superblock_header_read(simdisk_backend(disk), 0, &g, 0, &header), 0);
    ck_assert_int_eq(log_init(&l, &g, 0, NULL, NULL), 0);
    block = aligned_alloc(SECTOR_BYTES, FORMAT_BLOCK_BYTES_MAX);
    n_blocks = 0;
}

static void teardown(void)
{
    log_deinit(&l);
    free(block);
    simdisk_free(disk);
}

static void begin_at(uint64_t lsn)
{
    mark = (struct log_mark){.lsn = lsn, .prev = 77};
    header.tail_lsn = header.needed_lsn = lsn;
    header.tail_prev = mark.prev;
    header.epoch = 1;
    header.clean = 0;
}

static void write_block(uint32_t sectors, uint16_t flags)
{
    struct format_block *b = (struct format_block *)(void *)block;
    struct store_entry e = {.id = {.space = 3, .key_len = 8},
                            .generation = ++n_blocks,
                            .object_bytes = 100,
                            .size_bytes = 4096,
                            .n_parts = 1};
    uint64_t place = log_place(&l, mark.lsn);

    memset(block, (int)n_blocks, FORMAT_BLOCK_BYTES_MAX);
    if (place + sectors > l.ring_sectors)
        mark.lsn += l.ring_sectors - place;
    *b = (struct format_block){.magic = FORMAT_BLOCK_MAGIC,
                               .epoch = 1,
                               .lsn = mark.lsn,
                               .prev = mark.prev,
                               .sectors = sectors,
                               .entries = 1,
                               .flags = flags};
    b->entry_bytes = log_encode_put(block + sizeof(*b), &e, 0);
    b->checksum = log_block_checksum(&l, b);
    ck_assert_int_eq(simdisk_backend(disk)->ops->blk_now(simdisk_backend(disk), IO_BLK_WRITE, 0,
                                                         g.log_off_bytes + log_place(&l, mark.lsn) * SECTOR_BYTES,
                                                         block, (uint64_t)sectors * SECTOR_BYTES),
                     0);
    mark = (struct log_mark){.lsn = b->lsn + sectors, .prev = b->checksum};
}

static void write_bytes(uint64_t bytes, uint16_t flags)
{
    for (uint64_t end = mark.lsn + bytes / SECTOR_BYTES; mark.lsn < end;)
        write_block((uint32_t)MIN(1 + simdisk_below(disk, FORMAT_BLOCK_SECTORS_MAX), end - mark.lsn), flags);
}

/* All blocks from `first` on, and nothing behind them. */
static void read_all(struct ahead *a, uint32_t n_windows, uint64_t first)
{
    const struct log_mark tail = {.lsn = header.tail_lsn, .prev = header.tail_prev};
    struct log_mark at = tail;
    const struct format_block *b;
    struct log_reader r;

    ck_assert_int_eq(log_reader_init(&r, &l, &a->backend, 0, &g), 0);
    while (r.n_windows > n_windows) /* as if there had been no memory for more */
        free(r.windows[--r.n_windows].mem);
    for (uint64_t i = first; i <= n_blocks; i++) {
        struct log_record record;
        uint32_t bytes;

        ck_assert_int_eq(log_read_after(&r, at, &b), 0);
        ck_assert_ptr_nonnull(b);
        ck_assert_int_eq(log_decode(&l, (const uint8_t *)b + sizeof(*b), b->entry_bytes, &record, &bytes), 0);
        ck_assert_uint_eq(record.put.entry.generation, i);
        at = (struct log_mark){.lsn = b->lsn + b->sectors, .prev = b->checksum};
    }
    ck_assert_int_eq(log_read_after(&r, at, &b), 0);
    ck_assert_ptr_null(b);
    /* Back to the first one, and to the end. */
    ck_assert_int_eq(log_read_after(&r, tail, &b), 0);
    ck_assert_ptr_nonnull(b);
    ck_assert_int_eq(log_read_after(&r, at, &b), 0);
    ck_assert_ptr_null(b);
    log_reader_deinit(&r);
    ck_assert_uint_eq(a->n_begun, a->n_waited);
}

static void read_every_way(uint64_t first)
{
    for (int is_ahead = 0; is_ahead < 2; is_ahead++) {
        for (uint32_t n = 1; n <= LOG_WINDOWS; n++) {
            struct ahead a = backend_make(is_ahead);

            read_all(&a, n, first);
            ck_assert_uint_eq(a.n_over, is_ahead);
        }
    }
}

/* ── blocks ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

START_TEST(blocks_are_found_wherever_windows_end)
{
    setup_with(RING_BYTES);
    begin_at(l.ring_sectors - 300);
    for (int lap = 0; lap < 6; lap++) {
        uint64_t first = n_blocks + 1;

        write_bytes(simdisk_below(disk, 3 * MIB) / SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES, 0);
        write_bytes(3 * MIB, 0);
        read_every_way(first);
        begin_at(mark.lsn + simdisk_below(disk, 2000)); /* from another place in the windows */
    }
    teardown();
}
END_TEST

/* The last block ends where a window does, and one sector before and behind that. */
START_TEST(a_log_ends_at_a_window_s_end)
{
    setup_with(RING_BYTES);
    for (uint64_t i = 0; i < 3; i++) {
        uint64_t first = n_blocks + 1;

        begin_at((i + 1) * l.ring_sectors);
        write_bytes(2 * WINDOW_BYTES_READ - SECTOR_BYTES + i * SECTOR_BYTES, 0);
        read_every_way(first);
    }
    teardown();
}
END_TEST

START_TEST(the_smallest_ring_is_one_window)
{
    setup_with(FORMAT_LOG_BYTES_MIN);
    for (uint64_t lap = 0; lap < 20; lap++) {
        uint64_t first = n_blocks + 1;

        begin_at(mark.lsn + simdisk_below(disk, 100));
        write_bytes((1 + simdisk_below(disk, 200)) * SECTOR_BYTES, 0);
        read_every_way(first);
    }
    teardown();
}
END_TEST

/* ── recovery ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static int record(void *ctx, const struct log_record *rec)
{
    (void)ctx;
    ck_assert_uint_lt(n_replayed, BLOCKS_MAX);
    replayed[n_replayed++] = rec->put.entry.generation;
    return 0;
}

static int recover(struct ahead *a)
{
    const struct log_recovery recovery = {.record = record};

    n_replayed = 0;
    int r = log_recover(&l, &a->backend, 0, &g, &header, &recovery);
    ck_assert_uint_eq(a->n_begun, a->n_waited);
    for (size_t i = 0; i < n_replayed; i++)
        ck_assert_uint_eq(replayed[i], i + 1);
    return r;
}

/* What is read ahead of the end, and of what may bear witness against it, need not be readable. */
START_TEST(an_error_ahead_of_the_end_does_not_matter)
{
    struct ahead a = backend_make(true);

    setup_with(RING_BYTES);
    begin_at(0);
    write_bytes(5 * MIB + 300 * KIB, 0);
    a.fails_from_bytes = g.log_off_bytes + round_up(5 * MIB + 300 * KIB + WITNESS_BYTES, WINDOW_BYTES_READ);
    ck_assert_int_eq(recover(&a), 0);
    ck_assert_uint_eq(n_replayed, n_blocks);
    ck_assert_uint_eq(l.head.lsn, mark.lsn);
    ck_assert_uint_gt(a.n_bad, 0); /* there was one */
    ck_assert_uint_eq(a.n_over, 1);
    teardown();
}
END_TEST

START_TEST(an_error_before_the_end_matters)
{
    setup_with(RING_BYTES);
    begin_at(0);
    write_bytes(5 * MIB, 0);
    for (uint64_t at = 0; at < 5 * MIB + WITNESS_BYTES; at += 300 * KIB) {
        for (int is_ahead = 0; is_ahead < 2; is_ahead++) {
            struct ahead a = backend_make(is_ahead);

            a.fails_from_bytes = g.log_off_bytes + at;
            ck_assert_int_eq(recover(&a), -EIO);
            ck_assert_uint_eq(a.n_over, is_ahead);
        }
    }
    teardown();
}
END_TEST

/* Read ahead or not, so many blocks are replayed, and the log goes on at this place. */
static void expect_recovered(uint64_t n, uint64_t end_lsn)
{
    for (int is_ahead = 0; is_ahead < 2; is_ahead++) {
        struct ahead a = backend_make(is_ahead);

        ck_assert_int_eq(recover(&a), 0);
        ck_assert_uint_eq(n_replayed, n);
        ck_assert_uint_eq(l.head.lsn, end_lsn);
    }
}

/* Blocks of a sweep, more than there is memory for, and then one that is none: they are replayed, in their order. */
START_TEST(a_sweep_that_something_follows_is_replayed)
{
    setup_with(RING_BYTES);
    begin_at(100);
    write_bytes(2 * MIB, 0);
    write_bytes(6 * MIB, FORMAT_BLOCK_SWEEP_ONLY);
    write_block(3, 0);
    expect_recovered(n_blocks, mark.lsn);
    teardown();
}
END_TEST

START_TEST(a_sweep_at_the_end_is_given_back)
{
    setup_with(RING_BYTES);
    begin_at(100);
    write_bytes(2 * MIB, 0);
    write_bytes(6 * MIB, FORMAT_BLOCK_SWEEP_ONLY);
    write_bytes(MIB, 0);
    uint64_t n = n_blocks, end = mark.lsn;
    write_bytes(3 * MIB, FORMAT_BLOCK_SWEEP_ONLY);
    expect_recovered(n, end);
    header.needed_lsn = mark.lsn; /* it had ended */
    struct ahead a = backend_make(true);
    ck_assert_int_eq(recover(&a), 0);
    ck_assert_uint_eq(n_replayed, n_blocks);
    ck_assert_uint_eq(l.head.lsn, mark.lsn);
    teardown();
}
END_TEST

/* A log that ends too early is refused, though all that it has was replayed by then. */
START_TEST(an_end_before_what_was_needed_is_refused)
{
    struct ahead a = backend_make(true);

    setup_with(RING_BYTES);
    begin_at(0);
    write_bytes(3 * MIB, 0);
    header.needed_lsn = mark.lsn;
    ck_assert_int_eq(recover(&a), 0);
    l.head = l.tail = (struct log_mark){0};
    header.needed_lsn = mark.lsn + 1;
    ck_assert_int_eq(recover(&a), -EUCLEAN);
    ck_assert_uint_eq(l.head.lsn, 0);
    teardown();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("log_read");
    TCase *tc = tcase_create("log_read");

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, blocks_are_found_wherever_windows_end);
    tcase_add_test(tc, a_log_ends_at_a_window_s_end);
    tcase_add_test(tc, the_smallest_ring_is_one_window);
    tcase_add_test(tc, an_error_ahead_of_the_end_does_not_matter);
    tcase_add_test(tc, an_error_before_the_end_matters);
    tcase_add_test(tc, a_sweep_that_something_follows_is_replayed);
    tcase_add_test(tc, a_sweep_at_the_end_is_given_back);
    tcase_add_test(tc, an_end_before_what_was_needed_is_refused);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
