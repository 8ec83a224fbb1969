/* SPDX-License-Identifier: Apache-2.0 */
/* The operations against a real daemon, at the level of the wire: each once, with its results looked at. */
#include <check.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/system/support/rawclient.h"

#define SECTIONS                                                                                                       \
    "[tier.dram]\nsize = 128 MiB\n"                                                                                    \
    "[pool default]\nusers = root\n"

static struct raw_daemon d;
static struct raw_session s;

static void setup(void)
{
    raw_daemon_start(&d, "", SECTIONS);
    raw_session_full(&s, &d, "default", 1, 0);
}

static void teardown(void)
{
    raw_session_close(&s);
    raw_daemon_end(&d);
}

START_TEST(test_nop)
{
    struct spw_sqe sqe = raw_sqe(&s, SPW_OP_NOP, 0);

    sqe.items = sqe.results = 0;
    ck_assert_int_eq(raw_call(&s.ring, &sqe).status, 0);
}
END_TEST

START_TEST(test_put_get)
{
    ck_assert_int_eq(raw_get(&s, 1, 4096, 0), -ENOENT);
    ck_assert_int_eq(raw_put(&s, 1, 100000, 0x5a), 0);
    ck_assert_int_eq(raw_put(&s, 1, 100000, 0x5a), -EEXIST);
    ck_assert_int_eq(raw_get(&s, 1, 100000, 0x5a), 0);
}
END_TEST

START_TEST(test_lookup_prefix)
{
    struct spw_sqe sqe = raw_sqe(&s, SPW_OP_LOOKUP, 5);

    for (uint64_t i = 0; i < 5; i++) {
        raw_items(&s.ring)[i] = raw_item(100 + i, 0);
        if (i != 3)
            ck_assert_int_eq(raw_put(&s, 100 + i, 4096, (uint8_t)i), 0);
    }
    for (uint64_t i = 0; i < 5; i++)
        raw_items(&s.ring)[i] = raw_item(100 + i, 0);
    struct spw_cqe cqe = raw_call(&s.ring, &sqe);

    ck_assert_int_eq(cqe.status, 0);
    ck_assert_uint_eq(cqe.value, 3);
    for (int i = 0; i < 5; i++)
        ck_assert_int_eq(raw_results(&s.ring)[i].status, i == 3 ? -ENOENT : 0);
    ck_assert_uint_eq(raw_results(&s.ring)[0].length_bytes, 4096);
    ck_assert_uint_eq(raw_results(&s.ring)[0].tier, SPW_TIER_DRAM);
}
END_TEST

static int item_status(uint8_t opcode, uint64_t key, uint64_t arg0, uint64_t arg1)
{
    struct spw_sqe sqe = raw_sqe(&s, opcode, 1);

    sqe.arg[0] = arg0;
    sqe.arg[1] = arg1;
    raw_items(&s.ring)[0] = raw_item(key, 0);
    struct spw_cqe cqe = raw_call(&s.ring, &sqe);

    return cqe.status < 0 ? cqe.status : raw_results(&s.ring)[0].status;
}

START_TEST(test_steering)
{
    ck_assert_int_eq(raw_put(&s, 1, 4096, 1), 0);
    ck_assert_int_eq(item_status(SPW_OP_TOUCH, 1, 0, 0), 0);
    ck_assert_int_eq(item_status(SPW_OP_TOUCH, 2, 0, 0), -ENOENT);
    ck_assert_int_eq(item_status(SPW_OP_PREFETCH, 1, 100, 0), 0);
    ck_assert_int_eq(item_status(SPW_OP_ADVISE, 1, SPW_ADVICE_NOT_AGAIN, 0), 0);
    ck_assert_int_eq(item_status(SPW_OP_ADVISE, 1, 99, 0), -EINVAL);
    /* A cache object that will not be used again is gone. */
    (void)raw_put(&s, 1, 4096, 1);
    ck_assert_int_eq(item_status(SPW_OP_PIN, 1, 1000, 0), 0);
    ck_assert_int_eq(item_status(SPW_OP_PIN, 1, 0, 0), 0);
    ck_assert_int_eq(item_status(SPW_OP_DELETE, 1, 0, 0), 0);
    ck_assert_int_eq(item_status(SPW_OP_DELETE, 1, 0, 0), -ENOENT);
    ck_assert_int_eq(raw_get(&s, 1, 4096, 1), -ENOENT);
}
END_TEST

START_TEST(test_abort)
{
    struct spw_sqe sqe = raw_sqe(&s, SPW_OP_RESERVE, 1);

    raw_items(&s.ring)[0] = raw_item(5, 4096);
    ck_assert_uint_eq(raw_call(&s.ring, &sqe).value, 1);
    uint64_t lease = raw_results(&s.ring)[0].lease;

    ck_assert_int_eq(item_status(SPW_OP_TOUCH, 5, 0, 0), -EINPROGRESS);
    sqe = raw_sqe(&s, SPW_OP_ABORT, 1);
    raw_handles(&s.ring)[0] = (struct spw_handle){.lease = lease};
    ck_assert_uint_eq(raw_call(&s.ring, &sqe).value, 1);
    ck_assert_int_eq(item_status(SPW_OP_TOUCH, 5, 0, 0), -ENOENT);
    sqe = raw_sqe(&s, SPW_OP_COMMIT, 1);
    raw_handles(&s.ring)[0] = (struct spw_handle){.lease = lease};
    ck_assert_uint_eq(raw_call(&s.ring, &sqe).value, 0);
    ck_assert_int_eq(raw_results(&s.ring)[0].status, -EBADF);
}
END_TEST

/* All or nothing with something that is not there: nothing is held. */
START_TEST(test_all)
{
    struct spw_sqe sqe = raw_sqe(&s, SPW_OP_ACQUIRE, 3);

    for (uint64_t i = 0; i < 3; i++)
        ck_assert_int_eq(raw_put(&s, i, 8192, (uint8_t)i), 0);
    sqe.flags = SPW_SQE_ALL;
    for (uint64_t i = 0; i < 3; i++)
        raw_items(&s.ring)[i] = raw_item(i, 0);
    struct spw_cqe cqe = raw_call(&s.ring, &sqe);

    ck_assert_int_eq(cqe.status, 0);
    ck_assert_uint_eq(cqe.value, 3);
    ck_assert_uint_eq(raw_admin_number(&d, "pools", "leased_bytes"), 3 * 8192);
    struct spw_sqe release = raw_sqe(&s, SPW_OP_RELEASE, 3);
    uint64_t leases[3];

    for (int i = 0; i < 3; i++)
        leases[i] = raw_results(&s.ring)[i].lease;
    for (int i = 0; i < 3; i++)
        raw_handles(&s.ring)[i] = (struct spw_handle){.lease = leases[i]};
    ck_assert_uint_eq(raw_call(&s.ring, &release).value, 3);
    for (uint64_t i = 0; i < 3; i++)
        raw_items(&s.ring)[i] = raw_item(i + 1, 0); /* the last is not there */
    cqe = raw_call(&s.ring, &sqe);
    ck_assert_int_eq(cqe.status, -ENOENT);
    ck_assert_int_eq(raw_results(&s.ring)[2].status, -ENOENT);
    ck_assert_int_eq(raw_results(&s.ring)[0].status, -ECANCELED);
    ck_assert_uint_eq(raw_admin_number(&d, "pools", "leased_bytes"), 0);
}
END_TEST

/* A tensor: opened, written in place, read in place, used as an arena. */
START_TEST(test_tensor)
{
    struct spw_sqe sqe = raw_sqe(&s, SPW_OP_TENSOR, 1);
    uint64_t chunk_bytes;

    ck_assert_int_eq(raw_put(&s, 50, 4096, 0x50), 0);
    raw_items(&s.ring)[0] = raw_item(9, 20 << 20);
    struct spw_cqe cqe = raw_call(&s.ring, &sqe);

    ck_assert_int_eq(cqe.status, 0);
    ck_assert_int_eq(raw_results(&s.ring)[0].status, 0);
    sqe = raw_sqe(&s, SPW_OP_ACQUIRE, 1);
    sqe.flags = SPW_SQE_WRITE;
    raw_items(&s.ring)[0] = raw_item(9, 65536);
    raw_items(&s.ring)[0].offset_bytes = s.space.piece_bytes - 4096; /* two pieces */
    cqe = raw_call(&s.ring, &sqe);
    ck_assert_uint_eq(cqe.value, 1);
    struct spw_result parts[2] = {raw_results(&s.ring)[0], raw_results(&s.ring)[1]};

    ck_assert_uint_eq(parts[0].length_bytes, 4096);
    ck_assert_uint_eq(parts[1].length_bytes, 61440);
    unsigned char *mem = raw_chunk_map(&s, &parts[1], PROT_READ | PROT_WRITE, &chunk_bytes);

    ck_assert_ptr_nonnull(mem);
    ck_assert_uint_eq(mem[parts[1].offset_bytes + 100], 0); /* never written: zeros */

    sqe = raw_sqe(&s, SPW_OP_GET_RANGE, 1);
    sqe.arg[0] = parts[1].lease;
    sqe.arg[1] = 8192;
    raw_items(&s.ring)[0] = raw_item(50, 4096);
    cqe = raw_call(&s.ring, &sqe);
    ck_assert_int_eq(cqe.status, 0);
    ck_assert_int_eq(raw_results(&s.ring)[0].status, 0);
    ck_assert_uint_eq(mem[parts[1].offset_bytes + 8191], 0);
    ck_assert_uint_eq(mem[parts[1].offset_bytes + 8192], 0x50);
    ck_assert_uint_eq(mem[parts[1].offset_bytes + 8192 + 4095], 0x50);

    memset(mem + parts[1].offset_bytes, 0x77, 12288);
    sqe = raw_sqe(&s, SPW_OP_PUT_RANGE, 2);
    sqe.arg[0] = parts[1].lease;
    raw_items(&s.ring)[0] = raw_item(51, 8192);
    raw_items(&s.ring)[1] = raw_item(52, 4096);
    cqe = raw_call(&s.ring, &sqe);
    ck_assert_uint_eq(cqe.value, 2);
    sqe.arg[1] = 61440 - 4096;
    ck_assert_int_eq(raw_call(&s.ring, &sqe).status, 0);
    ck_assert_int_eq(raw_results(&s.ring)[0].status, -ERANGE);

    sqe = raw_sqe(&s, SPW_OP_RELEASE, 2);
    raw_handles(&s.ring)[0] = (struct spw_handle){.lease = parts[0].lease, .flags = SPW_RELEASE_DIRTY};
    raw_handles(&s.ring)[1] = (struct spw_handle){.lease = parts[1].lease, .flags = SPW_RELEASE_DIRTY};
    ck_assert_uint_eq(raw_call(&s.ring, &sqe).value, 2);
    raw_chunk_unmap(mem, chunk_bytes);
    ck_assert_int_eq(raw_get(&s, 51, 8192, 0x77), 0);
    ck_assert_int_eq(raw_get(&s, 52, 4096, 0x77), 0);
}
END_TEST

START_TEST(test_stat)
{
    struct spw_sqe sqe = raw_sqe(&s, SPW_OP_STAT, 0);
    struct spw_stat *stat = (void *)raw_results(&s.ring);

    ck_assert_int_eq(raw_put(&s, 1, 1 << 20, 1), 0);
    ck_assert_int_eq(raw_call(&s.ring, &sqe).status, 0);
    ck_assert_uint_eq(stat->objects, 1);
    ck_assert_uint_eq(stat->dram_budget, 128 << 20);
    ck_assert_uint_ge(stat->dram_used, 1 << 20);
    ck_assert_uint_eq(stat->leased, 0);
}
END_TEST

/* Waits for room, and is called back. */
START_TEST(test_cancel)
{
    struct spw_sqe cancel = raw_sqe(&s, SPW_OP_CANCEL, 0), sqe;
    struct spw_cqe cqe;

    for (uint64_t i = 0;; i++) { /* until the pool's share for leases is used up */
        sqe = raw_sqe(&s, SPW_OP_RESERVE, 1);
        raw_items(&s.ring)[0] = raw_item(i, 8 << 20);
        sqe.timeout_ms = 0;
        cqe = raw_call(&s.ring, &sqe);
        if (cqe.status < 0 || raw_results(&s.ring)[0].status < 0)
            break;
    }
    sqe = raw_sqe(&s, SPW_OP_RESERVE, 1);
    sqe.flags = SPW_SQE_ALL;
    sqe.timeout_ms = 60000;
    raw_items(&s.ring)[0] = raw_item(1000, 8 << 20);
    raw_submit(&s.ring, &sqe);
    ck_assert(!raw_wait(&s.ring, &cqe, 100));
    cancel.items = cancel.results = 0;
    cancel.timeout_ms = 0;
    cancel.arg[0] = sqe.user_data;
    raw_submit(&s.ring, &cancel);
    for (int i = 0; i < 2; i++) {
        ck_assert(raw_wait(&s.ring, &cqe, 5000));
        ck_assert_int_eq(cqe.status, cqe.user_data == sqe.user_data ? -ECANCELED : 0);
    }
}
END_TEST

START_TEST(test_reload)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/conf", d.dir);
    FILE *f = fopen(path, "a");

    fprintf(f, "linger = 7 min\nfrobnicate = 1\n");
    fclose(f);
    kill(d.pid, SIGHUP);
    ck_assert(raw_daemon_logged(&d, "the old configuration stays in force"));
    ck_assert(raw_daemon_logged(&d, "frobnicate"));
    f = fopen(path, "w");
    fprintf(f,
            "[daemon]\nsocket = %s\nengines = 1\nlog_level = debug\nspin_us = 50\nmax_objects = 70000\n%s"
            "linger = 7 min\n",
            d.socket, SECTIONS);
    fclose(f);
    kill(d.pid, SIGHUP);
    ck_assert(raw_daemon_logged(&d, "[pool default] linger: 7 min, was 30 s"));
    ck_assert(raw_daemon_logged(&d, "max_objects: auto stays until a restart"));
    ck_assert(raw_daemon_logged(&d, "reloaded"));
    ck_assert_int_eq(raw_put(&s, 1, 4096, 1), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("daemon_path");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_nop);
    tcase_add_test(tc, test_put_get);
    tcase_add_test(tc, test_lookup_prefix);
    tcase_add_test(tc, test_steering);
    tcase_add_test(tc, test_abort);
    tcase_add_test(tc, test_all);
    tcase_add_test(tc, test_tensor);
    tcase_add_test(tc, test_stat);
    tcase_add_test(tc, test_cancel);
    tcase_add_test(tc, test_reload);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
