/* SPDX-License-Identifier: Apache-2.0 */
/* What the daemon says that leases take is what they take: the most that fits is granted, and one more is not. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/system/support/daemon.h"

#define MEMORY (128 * DAEMON_MIB)
#define PIECE (8 * DAEMON_MIB)
#define SLOTS_MAX 64

static struct daemon d;
static spw_session *session;
static spw_pool *pool;

static void start(const char *daemon_keys, const char *sections)
{
    daemon_init(&d);
    daemon_configure(&d, daemon_keys, sections);
    daemon_start(&d);
    session = daemon_connect(&d);
    ck_assert_int_eq(spw_pool_open(session, "default", &pool), 0);
}

static void stop(void)
{
    spw_close(session);
    daemon_deinit(&d);
}

static struct spw_sizing sizing_of(uint64_t size_bytes, uint32_t slots)
{
    struct spw_manifest_entry entry = {.size_bytes = size_bytes, .slots = slots, .flags = SPW_MANIFEST_WRITE};
    struct spw_sizing sizing;

    ck_assert_int_eq(spw_manifest(pool, &entry, 1, &sizing), 0);
    return sizing;
}

static int lease(spw_space *space, uint32_t n, uint64_t size_bytes, struct spw_view *ret_view)
{
    struct spw_key key;

    ck_assert_int_eq(spw_key_init(&key, &n, sizeof(n), 0), 0);
    ck_assert_int_eq(spw_tensor_open(space, &key, size_bytes), 0);
    ck_assert_int_eq(spw_acquire(space, &key, 1, SPW_WRITE, 10000, ret_view), 0);
    return ret_view->status;
}

START_TEST(test_as_many_as_it_says)
{
    static const uint64_t sizes[] = {PIECE, 3 * DAEMON_MIB + 5000, PIECE - 4096};
    static struct spw_view views[SLOTS_MAX];
    uint64_t size = sizes[_i];
    uint32_t slots = 1;

    start("", "[tier.dram]\nsize = 128 MiB\n[pool default]\n");
    while (sizing_of(size, slots + 1).limit == SPW_LIMIT_NONE)
        slots++;
    ck_assert_uint_lt(slots, SLOTS_MAX);
    struct spw_sizing most = sizing_of(size, slots), more = sizing_of(size, slots + 1);

    ck_assert_uint_eq(more.limit, SPW_LIMIT_POOL_LEASES);
    ck_assert_uint_eq(most.memory_max_bytes, MEMORY);
    ck_assert_uint_le(most.memory_bytes, MEMORY);
    ck_assert_uint_gt(more.memory_bytes, MEMORY);
    ck_assert_uint_le(most.leased_bytes, slots * (size + 4096));
    spw_space *space = daemon_space(session, "default", "states", 0, SPW_CLASS_OPTIMIZER, SPW_SCRATCH);

    for (uint32_t i = 0; i < slots; i++)
        ck_assert_msg(lease(space, i, size, &views[i]) == 0, "lease %u of %u: %d", i, slots, views[i].status);
    ck_assert_int_eq(lease(space, slots, size, &views[slots]), -ENOSPC);
    ck_assert_uint_eq(views[slots].detail, SPW_LIMIT_POOL_LEASES);
    ck_assert_int_eq(spw_release(space, views, slots, 0), 0);
    stop();
}
END_TEST

/* Of several engines one has what the others need not have. */
START_TEST(test_engines_share)
{
    start("engines = 2", "[tier.dram]\nsize = 512 MiB\n[pool default]\n");
    ck_assert_uint_eq(sizing_of(PIECE, 1).memory_max_bytes, 448 * DAEMON_MIB);
    stop();
}
END_TEST

START_TEST(test_mistakes)
{
    static const struct spw_manifest_entry bad[] = {{.size_bytes = 0, .slots = 1},
                                                    {.size_bytes = (UINT64_C(1) << 40) + 1, .slots = 1},
                                                    {.size_bytes = 1, .flags = 2}};
    struct spw_manifest_entry huge = {.size_bytes = UINT64_C(1) << 40, .slots = UINT32_MAX};
    struct spw_sizing sizing;

    start("", "[tier.dram]\nsize = 64 MiB\n[pool default]\n");
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        ck_assert_int_eq(spw_manifest(pool, &bad[i], 1, &sizing), -EINVAL);
    ck_assert_int_eq(spw_manifest(pool, &huge, 1, &sizing), -E2BIG);
    ck_assert_int_eq(spw_manifest(pool, NULL, 0, &sizing), 0);
    ck_assert_uint_eq(sizing.limit, SPW_LIMIT_NONE);
    stop();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("manifest");
    TCase *tc = tcase_create("manifest");
    SRunner *runner = srunner_create(suite);

    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, test_as_many_as_it_says, 0, 3);
    tcase_add_test(tc, test_engines_share);
    tcase_add_test(tc, test_mistakes);
    suite_add_tcase(suite, tc);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
