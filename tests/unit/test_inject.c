/* SPDX-License-Identifier: Apache-2.0 */
/* Faults that an administrator orders: which requests they hit, how often, what comes of it, and that nothing else changes. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io/inject.h"
#include "tests/unit/support/simdisk.h"

#define BYTES (64 * KIB)

struct request {
    struct io_blk blk;
    uint32_t n_done;
    int32_t result;
};

static struct simdisk *disk;
static struct inject *inject;
static uint32_t region;
static uint16_t dev, other_dev;

static void *address(void *ctx, struct io_buf buf, uint64_t len_bytes)
{
    (void)len_bytes;
    return simdisk_memory(ctx, buf.region) + buf.off;
}

static void setup(void)
{
    disk = simdisk_new(1);
    dev = (uint16_t)simdisk_device_add(disk, MIB);
    other_dev = (uint16_t)simdisk_device_add(disk, MIB);
    region = simdisk_region_add(disk, MIB);
    ck_assert_int_eq(inject_new(simdisk_backend(disk), address, disk, 1, &inject), 0);
}

static void teardown(void)
{
    (void)inject_free(inject);
    simdisk_free(disk);
}

static void on_done(struct io_blk *blk)
{
    struct request *r = container_of(blk, struct request, blk);

    r->n_done++;
    r->result = blk->result;
}

static void begin(struct request *r, enum io_blk_op op, uint16_t to_dev)
{
    *r = (struct request){.blk = {.op = (uint8_t)op,
                                  .dev = to_dev,
                                  .len_bytes = op == IO_BLK_FLUSH ? 0 : BYTES,
                                  .buf = {.region = region},
                                  .done = on_done}};
    inject_backend(inject)->ops->blk_submit(inject_backend(inject), &r->blk);
}

static int32_t run(enum io_blk_op op, uint16_t to_dev)
{
    struct request r;

    begin(&r, op, to_dev);
    ck_assert_uint_eq(r.n_done, 0); /* never from within submit */
    while (simdisk_step(disk))
        ;
    ck_assert_uint_eq(r.n_done, 1);
    ck_assert_ptr_eq(r.blk.done, on_done); /* it is its owner's as it was */
    return r.result;
}

static void order(enum inject_what what, uint64_t count, uint32_t millionths, uint64_t latency_ns)
{
    struct inject_rule rule = {
        .what = (uint8_t)what, .dev = dev, .count = count, .millionths = millionths, .latency_ns = latency_ns};

    ck_assert_int_eq(inject_add(inject, &rule), 0);
}

/* Of each kind: what it hits, and what it does not. */
START_TEST(test_kinds)
{
    static const bool hits[INJECT_WHATS][3] = {
        [INJECT_EIO] = {true, true, false}, [INJECT_FLUSH_FAIL] = {false, false, true}};

    for (enum inject_what what = 0; what < INJECT_WHATS; what++) {
        if (what == INJECT_LATENCY || what == INJECT_CORRUPT)
            continue;
        order(what, 0, INJECT_MILLION, 0);
        for (enum io_blk_op op = IO_BLK_READ; op <= IO_BLK_FLUSH; op++) {
            int32_t right = op == IO_BLK_FLUSH ? 0 : (int32_t)BYTES;

            ck_assert_int_eq(run(op, dev), hits[what][op] ? -EIO : right);
            ck_assert_int_eq(run(op, other_dev), right);
        }
        inject_clear(inject);
        ck_assert_int_eq(run(IO_BLK_READ, dev), (int32_t)BYTES);
        ck_assert_int_eq(run(IO_BLK_FLUSH, dev), 0);
    }
}
END_TEST

START_TEST(test_count)
{
    struct inject_rule rules[INJECT_RULES_MAX];

    order(INJECT_EIO, 3, INJECT_MILLION, 0);
    for (int i = 0; i < 3; i++) {
        ck_assert_uint_eq(inject_list(inject, rules), 1);
        ck_assert_uint_eq(rules[0].n_done, (uint64_t)i);
        ck_assert_uint_eq(rules[0].count, 3 - (uint64_t)i);
        ck_assert_int_eq(run(IO_BLK_WRITE, dev), -EIO);
    }
    ck_assert_uint_eq(inject_list(inject, rules), 0);
    ck_assert_int_eq(run(IO_BLK_WRITE, dev), (int32_t)BYTES);
}
END_TEST

START_TEST(test_probability)
{
    uint32_t n = 0;

    order(INJECT_EIO, 0, INJECT_MILLION / 4, 0);
    for (int i = 0; i < 4000; i++)
        n += run(IO_BLK_READ, dev) == -EIO;
    ck_assert_uint_gt(n, 800);
    ck_assert_uint_lt(n, 1200);
}
END_TEST

/* One bit of what a read brings, not of what is on the device. */
START_TEST(test_corrupt)
{
    uint8_t *mem = simdisk_memory(disk, region);
    uint32_t bits = 0;

    memset(mem, 0x3c, BYTES);
    ck_assert_int_eq(run(IO_BLK_WRITE, dev), (int32_t)BYTES);
    order(INJECT_CORRUPT, 1, INJECT_MILLION, 0);
    ck_assert_int_eq(run(IO_BLK_WRITE, dev), (int32_t)BYTES); /* not of a write */
    ck_assert_int_eq(run(IO_BLK_READ, dev), (int32_t)BYTES);
    for (uint32_t i = 0; i < BYTES; i++)
        bits += (uint32_t)__builtin_popcount(mem[i] ^ 0x3c);
    ck_assert_uint_eq(bits, 1);
    ck_assert_int_eq(run(IO_BLK_READ, dev), (int32_t)BYTES);
    for (uint32_t i = 0; i < BYTES; i++)
        ck_assert_uint_eq(mem[i], 0x3c);
}
END_TEST

START_TEST(test_latency)
{
    struct request r[2];

    ck_assert_uint_eq(inject_tick(inject, 1000), UINT64_MAX);
    order(INJECT_LATENCY, 2, INJECT_MILLION, 5000);
    begin(&r[0], IO_BLK_READ, dev);
    begin(&r[1], IO_BLK_FLUSH, dev);
    while (simdisk_step(disk))
        ;
    ck_assert_uint_eq(r[0].n_done + r[1].n_done, 0);
    ck_assert_uint_eq(inject_tick(inject, 5999), 6000);
    ck_assert_uint_eq(r[0].n_done + r[1].n_done, 0);
    ck_assert_uint_eq(inject_tick(inject, 6000), UINT64_MAX);
    ck_assert_uint_eq(r[0].n_done, 1);
    ck_assert_uint_eq(r[1].n_done, 1);
    ck_assert_int_eq(r[0].result, (int32_t)BYTES);

    order(INJECT_LATENCY, 0, INJECT_MILLION, UINT64_C(1) << 40); /* cleared: it ends at once */
    begin(&r[0], IO_BLK_READ, dev);
    while (simdisk_step(disk))
        ;
    begin(&r[1], IO_BLK_READ, dev);
    inject_clear(inject);
    while (simdisk_step(disk))
        ;
    ck_assert_uint_eq(r[0].n_done + r[1].n_done, 0);
    (void)inject_tick(inject, 7000);
    ck_assert_uint_eq(r[0].n_done + r[1].n_done, 2);
}
END_TEST

/* More than there are rows for go through unharmed; and there is a limit on rules. */
START_TEST(test_bounds)
{
    static struct request r[INJECT_VICTIMS_MAX + 8];
    struct inject_rule rule = {.what = INJECT_EIO, .dev = dev, .millionths = INJECT_MILLION};
    uint32_t failed = 0;

    for (uint32_t i = 0; i < INJECT_RULES_MAX; i++)
        ck_assert_int_eq(inject_add(inject, &rule), 0);
    ck_assert_int_eq(inject_add(inject, &rule), -ENOSPC);
    for (uint32_t i = 0; i < ARRAY_LEN(r); i++)
        begin(&r[i], IO_BLK_READ, dev);
    while (simdisk_step(disk))
        ;
    for (uint32_t i = 0; i < ARRAY_LEN(r); i++) {
        ck_assert_uint_eq(r[i].n_done, 1);
        failed += r[i].result == -EIO;
    }
    ck_assert_uint_eq(failed, INJECT_VICTIMS_MAX);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("inject");
    TCase *tc = tcase_create("all");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_kinds);
    tcase_add_test(tc, test_count);
    tcase_add_test(tc, test_probability);
    tcase_add_test(tc, test_corrupt);
    tcase_add_test(tc, test_latency);
    tcase_add_test(tc, test_bounds);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
