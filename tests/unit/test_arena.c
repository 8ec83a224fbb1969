/* SPDX-License-Identifier: Apache-2.0 */
/* Extents of memory: exact sizes, little waste, no extent across a window, and nothing lost between sizes. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/base.h"
#include "tiering/arena.h"

static struct arena arena;
static struct arena_chunk *chunk;

static void open_arena(uint64_t size_bytes)
{
    ck_assert_int_eq(arena_init(&arena), 0);
    ck_assert_int_eq(arena_chunk_add(&arena, 7, 1, size_bytes, &chunk), 0);
}

/* Fills the arena with one size; returns how many fitted. */
static uint32_t fill(uint32_t sectors)
{
    struct arena_chunk *c;
    uint32_t sector, n = 0;

    while (arena_alloc(&arena, sectors, n, &c, &sector) == 0) {
        ck_assert_ptr_eq(c, chunk);
        ck_assert_uint_eq(arena_owner(c, sector), n);
        ck_assert_uint_eq(sector / (WINDOW_BYTES / SECTOR_BYTES),
                          (sector + sectors - 1) / (WINDOW_BYTES / SECTOR_BYTES));
        n++;
    }
    return n;
}

/* Whoever asks for a multiple of 64 KiB gets at least 99 % of the memory. */
START_TEST(little_waste)
{
    for (uint64_t size = 64 * KIB; size <= PIECE_BYTES_MAX; size += 64 * KIB) {
        open_arena(4 * GIB);
        uint64_t used = fill((uint32_t)(size / SECTOR_BYTES)) * size;

        ck_assert_msg(used >= 4 * GIB / 100 * 99, "%lu KiB: only %lu MiB of 4096 can be used", size / KIB, used / MIB);
        ck_assert_uint_eq(arena.used_sectors * SECTOR_BYTES, used);
        arena_deinit(&arena);
    }
}
END_TEST

/* Where slabs are short none is as long as it may be for the sake of that: the largest pieces fill every arena but for what is
 * less than one of them. */
START_TEST(little_waste_in_a_small_arena)
{
    for (uint64_t size = 16 * MIB; size <= 160 * MIB; size += MIB) {
        for (uint64_t piece = 4 * MIB; piece <= PIECE_BYTES_MAX; piece *= 2) {
            open_arena(size);
            uint64_t n = fill((uint32_t)(piece / SECTOR_BYTES));

            ck_assert_msg(n == size / piece, "%lu of %lu MiB in %lu", n, piece / MIB, size / MIB);
            arena_deinit(&arena);
        }
    }
}
END_TEST

START_TEST(extents_do_not_overlap)
{
    static uint8_t taken[64 * MIB / SECTOR_BYTES];
    struct arena_chunk *c;
    uint32_t sector, n = 0, sizes[] = {1, 3, 16, 17, 255, 256, 257, 2048};

    memset(taken, 0, sizeof(taken));
    open_arena(64 * MIB);
    for (int misses = 0; misses < 8;) {
        uint32_t sectors = sizes[n % ARRAY_LEN(sizes)];

        if (arena_alloc(&arena, sectors, n++, &c, &sector) < 0) {
            misses++;
            continue;
        }
        misses = 0;
        for (uint32_t i = 0; i < sectors; i++)
            ck_assert_uint_eq(taken[sector + i]++, 0);
    }
    arena_deinit(&arena);
}
END_TEST

/* A size that came and went leaves its memory to the next. */
START_TEST(sizes_give_memory_back)
{
    struct arena_chunk *c;
    uint32_t *sectors = malloc(sizeof(*sectors) * 1024);

    open_arena(256 * MIB);
    for (uint32_t size = 256; size <= 2048; size *= 2) {
        uint32_t n = 0;

        while (arena_alloc(&arena, size, 0, &c, &sectors[n]) == 0)
            n++;
        ck_assert_uint_eq(n, 256 * MIB / SECTOR_BYTES / size);
        for (uint32_t i = 0; i < n; i++)
            arena_free(chunk, sectors[i]);
        ck_assert_uint_eq(arena.used_sectors, 0);
        ck_assert_uint_eq(arena.free_frames, arena.total_frames);
    }
    free(sectors);
    arena_deinit(&arena);
}
END_TEST

/* A rare size takes the frames of one extent, not a whole slab. */
START_TEST(rare_sizes_are_cheap)
{
    struct arena_chunk *c;
    uint32_t sector;

    open_arena(128 * MIB);
    for (uint32_t size = 1; size <= 100; size++)
        ck_assert_int_eq(arena_alloc(&arena, size, size, &c, &sector), 0);
    ck_assert_uint_ge(arena.free_frames, 28);
    arena_deinit(&arena);
}
END_TEST

static bool is_stuck(void *ctx, const struct arena_chunk *c, const struct arena_slab *s)
{
    (void)c;
    return s->first_frame == *(uint32_t *)ctx;
}

START_TEST(a_run_that_can_be_cleared)
{
    uint32_t stuck = 3, first;
    struct arena_chunk *c;

    open_arena(16 * MIB);
    (void)fill(256); /* every extent is a frame; slabs are 1, 1, 2, 4 and so on */
    ck_assert(arena_find_clearable(&arena, 2, is_stuck, &stuck, &c, &first));
    ck_assert_uint_eq(first, 0);
    stuck = 0;
    ck_assert(arena_find_clearable(&arena, 2, is_stuck, &stuck, &c, &first));
    ck_assert_uint_ge(first, 1);
    ck_assert(!arena_find_clearable(&arena, 16, is_stuck, &stuck, &c, &first));
    arena_deinit(&arena);
}
END_TEST

static bool is_multiple(void *ctx, uint32_t owner)
{
    return owner % *(uint32_t *)ctx == 0;
}

/* What is not stuck goes from one run, the run becomes frames, and what is on either side is where it was. */
static void cut_one(uint32_t sectors)
{
    uint32_t n_frames = MIN(1 + sectors / FRAME_SECTORS, EXTENT_SECTORS_MAX / FRAME_SECTORS);
    uint32_t apart = 2 + (n_frames + 1) * FRAME_SECTORS / sectors; /* what must stay */
    static uint32_t at[64 * FRAME_SECTORS];
    uint32_t first, cursor = 0, owner, sector, n;
    struct arena_cursor walk = {0};
    struct arena_chunk *c;

    open_arena(64 * MIB);
    n = fill(sectors);
    memset(at, 0, sizeof(at));
    while (arena_chunk_next(chunk, &walk, &owner, &sector))
        at[owner] = sector;
    ck_assert(arena_find_cuttable(&arena, n_frames, is_multiple, &apart, &c, &first));
    ck_assert(!arena_cut(c, first, n_frames));
    while (arena_run_owners(c, first, n_frames, &cursor, &owner, 1)) {
        ck_assert_uint_ne(owner % apart, 0);
        arena_free(c, at[owner]);
        at[owner] = UINT32_MAX;
    }
    uint32_t free_frames = arena.free_frames;
    (void)arena_cut(c, first, n_frames);
    ck_assert_uint_ge(arena.free_frames, MAX(free_frames, n_frames));
    for (uint32_t i = 0; i < n; i++)
        if (at[i] != UINT32_MAX)
            ck_assert_uint_eq(arena_owner(c, at[i]), i);
    ck_assert_int_eq(arena_alloc(&arena, n_frames * FRAME_SECTORS, n, &c, &sector), 0);
    ck_assert_uint_eq(sector, first * FRAME_SECTORS);
    arena_free(c, sector);
    for (uint32_t i = 0; i < n; i++)
        if (at[i] != UINT32_MAX)
            arena_free(c, at[i]);
    ck_assert_uint_eq(arena.free_frames, arena.total_frames);
    ck_assert_uint_eq(arena.used_sectors, 0);
    arena_deinit(&arena);
}

START_TEST(frames_are_cut_out_of_slabs)
{
    for (uint32_t sectors = 1; sectors <= EXTENT_SECTORS_MAX; sectors += 1 + sectors / 64)
        cut_one(sectors);
}
END_TEST

struct held {
    struct arena_chunk *chunk;
    uint32_t sector, sectors;
};

START_TEST(random_against_a_model)
{
    enum { HELD_MAX = 4096 };
    struct held *held = calloc(HELD_MAX, sizeof(*held));
    uint32_t n = 0;
    uint64_t used = 0;

    srand(1);
    open_arena(512 * MIB);
    for (int step = 0; step < 200000; step++) {
        uint32_t i = (uint32_t)rand() % HELD_MAX, sectors = 1 + (uint32_t)rand() % (step % 3 ? 64 : 2048);

        if (held[i].chunk) {
            ck_assert_uint_eq(arena_owner(held[i].chunk, held[i].sector), i);
            arena_free(held[i].chunk, held[i].sector);
            used -= held[i].sectors;
            held[i].chunk = NULL;
            n--;
        } else if (arena_alloc(&arena, sectors, i, &held[i].chunk, &held[i].sector) == 0) {
            held[i].sectors = sectors;
            used += sectors;
            n++;
        } else {
            held[i].chunk = NULL;
        }
        ck_assert_uint_eq(arena.used_sectors, used);
    }
    ck_assert_uint_gt(n, 0);
    free(held);
    arena_deinit(&arena);
}
END_TEST

/* In an arena that holds just one extent, no size is shut out by the length of its slab. */
START_TEST(one_extent_fits)
{
    struct arena_chunk *c;
    uint32_t sector;

    for (uint32_t sectors = 1; sectors <= EXTENT_SECTORS_MAX; sectors += 37) {
        open_arena(div_round_up(sectors, FRAME_SECTORS) * FRAME_BYTES + 1000);
        ck_assert_int_eq(arena_alloc(&arena, sectors, 1, &c, &sector), 0);
        arena_free(c, sector);
        ck_assert_uint_eq(arena.free_frames, arena.total_frames);
        arena_deinit(&arena);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("arena");
    TCase *tc = tcase_create("all");
    SRunner *runner = srunner_create(suite);

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, little_waste);
    tcase_add_test(tc, little_waste_in_a_small_arena);
    tcase_add_test(tc, extents_do_not_overlap);
    tcase_add_test(tc, sizes_give_memory_back);
    tcase_add_test(tc, rare_sizes_are_cheap);
    tcase_add_test(tc, a_run_that_can_be_cleared);
    tcase_add_test(tc, frames_are_cut_out_of_slabs);
    tcase_add_test(tc, random_against_a_model);
    tcase_add_test(tc, one_extent_fits);
    suite_add_tcase(suite, tc);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
