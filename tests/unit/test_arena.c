/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Extents of memory: exact sizes, bounded waste, windows, slabs that change hands; and a model that knows which sectors
 * are in use.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tiering/arena.h"

#define WINDOW_SECTORS (WINDOW_BYTES / SECTOR_BYTES)

static uint64_t rng = 1;

static uint32_t below(uint32_t n)
{
    rng = rng * UINT64_C(6364136223846793005) + 1442695040888963407;
    return (uint32_t)((rng >> 33) % n);
}

static struct arena_chunk *add(struct arena *a, uint32_t region, uint64_t size_bytes)
{
    struct arena_chunk *chunk;

    ck_assert_int_eq(arena_chunk_add(a, region, region + 1, size_bytes, &chunk), 0);
    return chunk;
}

/* Filled with one size, an arena wastes at most 1 %: tails of slabs, and what is left when no slab fits any more. */
START_TEST(test_waste)
{
    const uint64_t total = 4 * GIB;

    for (uint64_t size = 64 * KIB; size <= 8 * MIB; size += 64 * KIB) {
        struct arena a;
        struct arena_chunk *chunk;
        uint32_t sector, sectors = (uint32_t)(size / SECTOR_BYTES);
        uint64_t n = 0;

        ck_assert_int_eq(arena_init(&a), 0);
        add(&a, 0, total);
        while (arena_alloc(&a, sectors, (uint32_t)n, &chunk, &sector) == 0) {
            n++;
            ck_assert_uint_eq(sector / WINDOW_SECTORS, (sector + sectors - 1) / WINDOW_SECTORS);
            ck_assert_uint_le(sector + sectors, total / SECTOR_BYTES);
        }
        ck_assert_uint_eq(a.used_sectors, n * sectors);
        ck_assert_msg(arena_tail_waste_bytes(&a) <= total / 100, "%lu KiB: tails waste %lu", size / KIB,
                      arena_tail_waste_bytes(&a));
        ck_assert_msg(total - n * size <= total / 100, "%lu KiB: %lu of %lu bytes are of no use", size / KIB,
                      total - n * size, total);
        arena_deinit(&a);
    }
}
END_TEST

/* A slab has as many sectors as asked for: nothing is rounded. */
START_TEST(test_exact)
{
    struct arena a;
    struct arena_chunk *chunk;
    uint32_t sector;

    ck_assert_int_eq(arena_init(&a), 0);
    add(&a, 7, 64 * MIB);
    for (uint32_t i = 0; i < 100; i++) {
        ck_assert_int_eq(arena_alloc(&a, 17, i, &chunk, &sector), 0);
        ck_assert_uint_eq(sector, i * 17);
        ck_assert_uint_eq(chunk->region, 7);
        ck_assert_uint_eq(chunk->epoch, 8);
        ck_assert_uint_eq(arena_owner(chunk, sector), i);
    }
    ck_assert_uint_eq(a.used_sectors, 1700);
    arena_deinit(&a);
}
END_TEST

/* The last extent of a slab gives it back, and another size can have it. */
START_TEST(test_slabs_given_back)
{
    struct arena a;
    struct arena_chunk *chunk[4096];
    uint32_t sector[4096], n = 0;

    ck_assert_int_eq(arena_init(&a), 0);
    add(&a, 0, 16 * MIB);
    while (arena_alloc(&a, 16, n, &chunk[n], &sector[n]) == 0)
        n++;
    ck_assert_uint_eq(n, 256);
    ck_assert_uint_eq(a.free_frames, 0);
    struct arena_chunk *other;
    uint32_t at;
    ck_assert_int_eq(arena_alloc(&a, 48, 1, &other, &at), -ENOSPC);
    ck_assert(arena_has_slab(chunk[0], sector[0]));
    for (uint32_t i = 0; i < n; i++)
        arena_free(chunk[i], sector[i]);
    ck_assert_uint_eq(a.used_sectors, 0);
    ck_assert_uint_eq(a.slab_sectors, 0);
    ck_assert_uint_eq(a.free_frames, 16);
    ck_assert(!arena_has_slab(chunk[0], sector[0]));
    ck_assert_int_eq(arena_alloc(&a, 48, 1, &other, &at), 0);
    arena_deinit(&a);
}
END_TEST

/* A slab of a size that is needed only here and there holds up no more than itself. */
START_TEST(test_owners)
{
    struct arena a;
    struct arena_chunk *chunk;
    uint32_t sector, owners[8], cursor = 0, n, seen = 0, first = 0;

    ck_assert_int_eq(arena_init(&a), 0);
    add(&a, 0, 16 * MIB);
    for (uint32_t i = 0; i < 20; i++) {
        ck_assert_int_eq(arena_alloc(&a, 5, 100 + i, &chunk, &sector), 0);
        if (i == 0)
            first = sector;
        if (i == 7)
            arena_free(chunk, sector);
    }
    while ((n = arena_slab_owners(chunk, first, &cursor, owners, 8)) > 0) {
        for (uint32_t i = 0; i < n; i++) {
            ck_assert_uint_ge(owners[i], 100);
            ck_assert_uint_lt(owners[i], 120);
            ck_assert_uint_ne(owners[i], 107);
            seen++;
        }
    }
    ck_assert_uint_eq(seen, 19);
    arena_deinit(&a);
}
END_TEST

/* Windows of 1 GiB are never crossed, also by extents as large as a piece may be. */
START_TEST(test_windows)
{
    struct arena a;
    struct arena_chunk *chunk;
    uint32_t sector, n = 0;

    ck_assert_int_eq(arena_init(&a), 0);
    add(&a, 0, 2 * GIB + 5 * MIB);
    while (arena_alloc(&a, EXTENT_SECTORS_MAX - 1, n, &chunk, &sector) == 0) {
        n++;
        ck_assert_uint_eq(sector / WINDOW_SECTORS, (sector + EXTENT_SECTORS_MAX - 2) / WINDOW_SECTORS);
    }
    ck_assert_uint_gt(n, 250);
    arena_deinit(&a);
}
END_TEST

/* --- Random use against a model ---------------------------------------------------------------------------------------- */

#define CHUNKS 3
#define MODEL_SECTORS (24 * FRAME_SECTORS)
#define EXTENTS 4000

struct extent {
    struct arena_chunk *chunk;
    uint32_t sector, sectors;
};

static bool used[CHUNKS][MODEL_SECTORS];
static struct extent extents[EXTENTS];

static void model_take(const struct extent *e, bool taken)
{
    ck_assert_uint_le(e->sector + e->sectors, MODEL_SECTORS);
    for (uint32_t i = 0; i < e->sectors; i++) {
        ck_assert(used[e->chunk->region][e->sector + i] != taken);
        used[e->chunk->region][e->sector + i] = taken;
    }
}

START_TEST(test_random)
{
    static const uint32_t sizes[] = {1, 1, 2, 3, 16, 16, 16, 17, 64, 255, 256, 257, 600, 1024, 2048};
    struct arena a;
    uint32_t n = 0;
    uint64_t total = 0, refused = 0;

    ck_assert_int_eq(arena_init(&a), 0);
    for (uint32_t i = 0; i < CHUNKS; i++)
        add(&a, i, (uint64_t)MODEL_SECTORS * SECTOR_BYTES);
    memset(used, 0, sizeof(used));
    for (uint32_t round = 0; round < 200000; round++) {
        bool grow = round / 20000 % 2 == 0; /* fill, empty, fill again */

        if (n < EXTENTS && below(100) < (grow ? 60U : 35U)) {
            struct extent *e = &extents[n];

            e->sectors = sizes[below(ARRAY_LEN(sizes))];
            if (arena_alloc(&a, e->sectors, n, &e->chunk, &e->sector) < 0) {
                refused++;
                continue;
            }
            model_take(e, true);
            total += e->sectors;
            n++;
        } else if (n > 0) {
            uint32_t i = below(n);

            model_take(&extents[i], false);
            arena_free(extents[i].chunk, extents[i].sector);
            total -= extents[i].sectors;
            extents[i] = extents[--n];
        }
        ck_assert_uint_eq(a.used_sectors, total);
        ck_assert_uint_ge(a.slab_sectors, total);
    }
    ck_assert_uint_gt(refused, 0);
    while (n > 0) {
        n--;
        arena_free(extents[n].chunk, extents[n].sector);
    }
    ck_assert_uint_eq(a.free_frames, a.total_frames);
    ck_assert_uint_eq(arena_tail_waste_bytes(&a), 0);
    arena_deinit(&a);
}
END_TEST

/* In an arena as small as a test's, or a careless config's, no size may be shut out by the length of its slab. */
START_TEST(test_small)
{
    for (uint32_t sectors = 1; sectors <= EXTENT_SECTORS_MAX; sectors += 37) {
        struct arena a;
        struct arena_chunk *chunk;
        uint32_t sector;
        uint64_t frames = div_round_up(sectors, FRAME_SECTORS);

        ck_assert_int_eq(arena_init(&a), 0);
        add(&a, 0, frames * FRAME_BYTES + 1000);
        ck_assert_uint_eq(a.total_frames, frames);
        ck_assert_int_eq(arena_alloc(&a, sectors, 1, &chunk, &sector), 0);
        arena_free(chunk, sector);
        ck_assert_uint_eq(a.free_frames, frames);
        arena_deinit(&a);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("arena");
    TCase *t = tcase_create("arena");

    tcase_set_timeout(t, 60);
    tcase_add_test(t, test_waste);
    tcase_add_test(t, test_exact);
    tcase_add_test(t, test_slabs_given_back);
    tcase_add_test(t, test_owners);
    tcase_add_test(t, test_windows);
    tcase_add_test(t, test_random);
    tcase_add_test(t, test_small);
    suite_add_tcase(s, t);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
