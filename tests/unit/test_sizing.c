/* SPDX-License-Identifier: Apache-2.0 */
/* What leases take, told beforehand: bounds that are met exactly, and that an arena keeps. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/limits.h"
#include "include/base/mix.h"
#include "tiering/arena.h"
#include "tiering/tiering.h"

#define ROUNDS 500 /* one of them needs what lies between slabs */

static const struct tiering_sizing_limits roomy = {.trusted = true,
                                                   .memory_bytes = 4 * GIB,
                                                   .session_bytes = UINT64_MAX,
                                                   .max_leases_percent = 80,
                                                   .session_leases = 65536,
                                                   .piece_bytes = PIECE_BYTES_MAX};

static struct tiering_sizing sizing_of(const struct tiering_sizing_limits *limits,
                                       const struct tiering_manifest_entry *entries, uint32_t n)
{
    struct tiering_sizing sizing = {.limit = 99};

    ck_assert_int_eq(tiering_sizing(limits, entries, n, &sizing), 0);
    return sizing;
}

/* At most 4 KiB above each size. */
START_TEST(test_exact_sizes)
{
    static const struct tiering_manifest_entry entries[] = {{.size_bytes = 1, .slots = 3},
                                                            {.size_bytes = 64 * KIB, .slots = 2, .count = 10},
                                                            {.size_bytes = 20 * MIB + 1, .slots = 1, .count = 4}};
    struct tiering_sizing s = sizing_of(&roomy, entries, 3);

    ck_assert_uint_eq(s.leased_bytes, 3 * SECTOR_BYTES + 2 * 64 * KIB + 20 * MIB + SECTOR_BYTES);
    ck_assert_uint_eq(s.leases, 3 + 2 + 3);
    ck_assert_uint_eq(s.stored_bytes, 3 * SECTOR_BYTES + 10 * 64 * KIB + 4 * (20 * MIB + SECTOR_BYTES));
    ck_assert_uint_eq(s.leasable_bytes, 4 * GIB / 100 * 80);
    ck_assert_uint_eq(s.private_bytes, 0);
    ck_assert_uint_eq(s.limit, TIERING_LIMIT_NONE);
    s = sizing_of(&roomy, entries, 0);
    ck_assert_uint_eq(s.leased_bytes + s.memory_bytes + s.leases + s.limit, 0);
}
END_TEST

/* With what it says is needed it fits, and with a frame less it does not. */
START_TEST(test_the_least_that_fits)
{
    static const struct tiering_manifest_entry group = {.size_bytes = 8 * MIB, .slots = 16};
    static const struct tiering_manifest_entry few[] = {
        {.size_bytes = 4096, .slots = 1}, {.size_bytes = 8192, .slots = 1}, {.size_bytes = 12288, .slots = 1}};
    struct tiering_sizing_limits l = roomy;

    for (uint32_t user_percent = 0; user_percent <= 50; user_percent += 50) {
        l.user_leases_percent = user_percent;
        l.memory_bytes = 64 * MIB;
        struct tiering_sizing s = sizing_of(&l, &group, 1);

        ck_assert_uint_eq(s.limit, TIERING_LIMIT_POOL_LEASES);
        l.memory_bytes = s.memory_bytes;
        ck_assert_uint_eq(sizing_of(&l, &group, 1).limit, TIERING_LIMIT_NONE);
        ck_assert_uint_ge(sizing_of(&l, &group, 1).leasable_bytes, 128 * MIB);
        l.memory_bytes -= FRAME_BYTES;
        ck_assert_uint_eq(sizing_of(&l, &group, 1).limit,
                          user_percent ? TIERING_LIMIT_UID_LEASES : TIERING_LIMIT_POOL_LEASES);
    }
    l = roomy;
    l.max_leases_percent = 100; /* and still not the last bytes: admission divides first */
    l.memory_bytes = 128 * MIB;
    ck_assert_uint_eq(sizing_of(&l, &group, 1).limit, TIERING_LIMIT_POOL_LEASES);
    l.memory_bytes = sizing_of(&l, &group, 1).memory_bytes;
    ck_assert_uint_eq(sizing_of(&l, &group, 1).limit, TIERING_LIMIT_NONE);
    l = roomy;
    ck_assert_uint_eq(sizing_of(&l, few, 3).memory_bytes, (3 + 2) * FRAME_BYTES); /* a slab each, and between them */
    l.memory_bytes = 4 * FRAME_BYTES;
    ck_assert_uint_eq(sizing_of(&l, few, 3).limit, TIERING_LIMIT_POOL_DRAM);
}
END_TEST

START_TEST(test_each_limit)
{
    static const struct tiering_manifest_entry writes = {.size_bytes = 8 * MIB, .slots = 4, .writes = true},
                                               reads = {.size_bytes = 8 * MIB, .slots = 4},
                                               many = {.size_bytes = 4096, .slots = 100},
                                               stored = {.size_bytes = GIB, .count = 8};
    struct tiering_sizing_limits l = roomy;

    l.trusted = false;
    l.session_bytes = 32 * MIB;
    ck_assert_uint_eq(sizing_of(&l, &writes, 1).limit, TIERING_LIMIT_NONE);
    ck_assert_uint_eq(sizing_of(&l, &writes, 1).private_bytes, 32 * MIB);
    l.session_bytes -= FRAME_BYTES;
    ck_assert_uint_eq(sizing_of(&l, &writes, 1).limit, TIERING_LIMIT_SESSION_BYTES);
    ck_assert_uint_eq(sizing_of(&l, &reads, 1).limit, TIERING_LIMIT_NONE);
    l.trusted = true;
    ck_assert_uint_eq(sizing_of(&l, &writes, 1).limit, TIERING_LIMIT_NONE);
    l.session_leases = 99;
    ck_assert_uint_eq(sizing_of(&l, &many, 1).limit, TIERING_LIMIT_SESSION_LEASES);
    ck_assert_uint_eq(sizing_of(&l, &stored, 1).limit, TIERING_LIMIT_POOL_DRAM);
    l.device_bytes = 4 * GIB - 1;
    ck_assert_uint_eq(sizing_of(&l, &stored, 1).limit, TIERING_LIMIT_POOL_NVME);
    l.device_bytes++;
    ck_assert_uint_eq(sizing_of(&l, &stored, 1).limit, TIERING_LIMIT_NONE);
}
END_TEST

/* Whatever a client says, sums are right, or it is told that no machine has so much. */
START_TEST(test_sums_have_a_bound)
{
    static struct tiering_manifest_entry entries[SIZING_ENTRIES_MAX];
    struct tiering_sizing s;

    for (uint32_t i = 0; i < SIZING_ENTRIES_MAX; i++)
        entries[i] = (struct tiering_manifest_entry){.size_bytes = OBJECT_BYTES_MAX - i, .slots = UINT32_MAX};
    ck_assert_int_eq(tiering_sizing(&roomy, entries, SIZING_ENTRIES_MAX, &s), -E2BIG);
    ck_assert_int_eq(tiering_sizing(&roomy, entries, 1, &s), -E2BIG);
    entries[0] = (struct tiering_manifest_entry){.size_bytes = 1, .count = UINT64_MAX};
    ck_assert_int_eq(tiering_sizing(&roomy, entries, 1, &s), -E2BIG);
    entries[0] = (struct tiering_manifest_entry){.size_bytes = OBJECT_BYTES_MAX, .count = 1 << 20};
    ck_assert_uint_eq(sizing_of(&roomy, entries, 1).stored_bytes, UINT64_C(1) << 60);
    entries[1] = (struct tiering_manifest_entry){.size_bytes = 1, .count = 1};
    ck_assert_int_eq(tiering_sizing(&roomy, entries, 2, &s), -E2BIG);
    for (uint32_t i = 0; i < SIZING_ENTRIES_MAX; i++) /* two sizes of pieces each */
        entries[i] = (struct tiering_manifest_entry){.size_bytes = 8 * MIB + 4096 * (i + 1), .slots = 1};
    ck_assert_uint_eq(sizing_of(&roomy, entries, SIZING_ENTRIES_MAX).leases, 2 * SIZING_ENTRIES_MAX);
}
END_TEST

/* ── an arena of that size ───────────────────────────────────────────────────────────────────────────────────── */

static bool is_leased(void *ctx, uint32_t owner)
{
    (void)ctx;
    return owner != ARENA_OWNER_NONE;
}

/* As room is taken: cut out of slabs, where there are no frames left. */
static bool lease(struct arena *a, uint32_t sectors, uint32_t owner)
{
    struct arena_chunk *c;
    uint32_t sector, first, n = (uint32_t)div_round_up(sectors, FRAME_SECTORS);

    if (arena_alloc(a, sectors, owner, &c, &sector) == 0)
        return true;
    return arena_find_cuttable(a, n, is_leased, NULL, &c, &first) && arena_cut(c, first, n) &&
           arena_alloc(a, sectors, owner, &c, &sector) == 0;
}

/* A model's tensors of some sizes, one of each in turn, as long as there are slots: all can be leased in memory of that size. */
START_TEST(test_an_arena_has_room)
{
    uint64_t seed = (uint64_t)_i + 1;
    struct tiering_manifest_entry entries[8];
    uint32_t n = 1 + (uint32_t)(splitmix64_next(&seed) % ARRAY_LEN(entries)), left[ARRAY_LEN(entries)], n_leased = 0;
    struct arena arena;
    struct arena_chunk *chunk;

    for (uint32_t i = 0; i < n; i++) {
        uint64_t size = 1 + splitmix64_next(&seed) % (splitmix64_next(&seed) % 2 ? 8 * MIB : 256 * KIB);

        left[i] = 1 + (uint32_t)(splitmix64_next(&seed) % (8 * MIB / (size + 64 * KIB) + 8));
        entries[i] = (struct tiering_manifest_entry){.size_bytes = size, .slots = left[i]};
    }
    struct tiering_sizing s = sizing_of(&roomy, entries, n);

    ck_assert_int_eq(arena_init(&arena), 0);
    ck_assert_int_eq(arena_chunk_add(&arena, 1, 1, s.memory_bytes, &chunk), 0);
    for (bool more = true; more;) {
        more = false;
        for (uint32_t i = 0; i < n; i++) {
            if (left[i] == 0)
                continue;
            left[i]--;
            more = true;
            ck_assert_msg(lease(&arena, sectors_of(entries[i].size_bytes), n_leased++),
                          "lease %u of entry %u in %lu MiB", n_leased, i, s.memory_bytes / MIB);
        }
    }
    ck_assert_uint_eq(arena.used_sectors * SECTOR_BYTES, s.leased_bytes);
    arena_deinit(&arena);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sizing");
    TCase *tc = tcase_create("sizing");
    SRunner *runner = srunner_create(suite);

    tcase_add_test(tc, test_exact_sizes);
    tcase_add_test(tc, test_the_least_that_fits);
    tcase_add_test(tc, test_each_limit);
    tcase_add_test(tc, test_sums_have_a_bound);
    tcase_add_loop_test(tc, test_an_arena_has_room, 0, ROUNDS);
    suite_add_tcase(suite, tc);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
