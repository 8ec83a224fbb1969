/* SPDX-License-Identifier: Apache-2.0 */
/* Which segment is emptied next, and when: the table alone. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "io/segment.h"

#define N_SEGMENTS 96
#define SECTORS 256

static struct segment_table table;

static void setup(void)
{
    const struct geometry g = {.n_segments = N_SEGMENTS,
                               .segment_sectors = SECTORS,
                               .segment_bytes = SECTORS * SECTOR_BYTES,
                               .slots = SECTORS / FORMAT_SLOT_SECTORS};

    ck_assert_int_eq(segment_table_init(&table, &g, 1), 0);
    table.pools[0].budget_bytes = (uint64_t)N_SEGMENTS * g.segment_bytes;
}

static void teardown(void)
{
    segment_table_deinit(&table);
}

/* A full segment, of which so many sixteenths live. */
static uint32_t fill(enum store_durability durability, uint32_t live)
{
    uint32_t segment;

    ck_assert_int_eq(segment_take(&table, 0, (uint8_t)durability, true, &segment), 0);
    segment_live_add(&table, segment, SECTORS);
    table.segments[segment].end_sector = SECTORS;
    segment_set_state(&table, segment, SEGMENT_CLOSING);
    segment_set_state(&table, segment, SEGMENT_SEALED);
    segment_live_sub(&table, segment, SECTORS - SECTORS * live / 16);
    return segment;
}

/* _i sixteenths of each durable segment live. Beside cache that is whole, a copy must free more than it costs. */
START_TEST(copies_cost_less_than_whole_cache)
{
    uint32_t cache = fill(STORE_CACHE, 16), durable = fill(STORE_DURABLE, (uint32_t)_i);

    for (int i = 0; i < 8; i++) /* else there is not a segment's worth of dead */
        (void)fill(STORE_DURABLE, 14);
    ck_assert_uint_eq(segment_victim(&table, 0), _i <= 6 ? durable : cache);
}
END_TEST

START_TEST(half_dead_cache_costs_half)
{
    uint32_t cache = fill(STORE_CACHE, 8), durable = fill(STORE_DURABLE, (uint32_t)_i);

    for (int i = 0; i < 8; i++)
        (void)fill(STORE_DURABLE, 14);
    ck_assert_uint_eq(segment_victim(&table, 0), _i <= 3 ? durable : cache);
}
END_TEST

START_TEST(without_cache_the_emptiest_is_copied)
{
    uint32_t a = fill(STORE_DURABLE, 13), b;

    ck_assert_uint_eq(segment_victim(&table, 0), STORE_SEGMENT_NONE); /* all copied together would free nothing */
    for (int i = 0; i < 6; i++)
        (void)fill(STORE_DURABLE, 14);
    b = fill(STORE_DURABLE, 15);
    ck_assert_uint_eq(segment_victim(&table, 0), a);
    segment_live_sub(&table, b, SECTORS / 4);
    ck_assert_uint_eq(segment_victim(&table, 0), b);
}
END_TEST

/* A 32nd of the budget and two more. */
START_TEST(segments_are_emptied_ahead_of_need)
{
    uint32_t ahead = N_SEGMENTS / 32 + 2;

    for (uint32_t i = 0; i < N_SEGMENTS - ahead; i++)
        (void)fill(STORE_CACHE, 16);
    ck_assert(!segment_pool_wants_reclaim(&table, 0));
    (void)fill(STORE_CACHE, 16);
    ck_assert(segment_pool_wants_reclaim(&table, 0));
    segment_set_state(&table, segment_victim(&table, 0), SEGMENT_EVACUATING);
    ck_assert(!segment_pool_wants_reclaim(&table, 0)); /* one is on its way */
}
END_TEST

/* No segment is free, and all that have room are on their way out: what leaves them goes into the fullest. */
START_TEST(what_is_emptied_can_be_filled)
{
    uint32_t a = fill(STORE_DURABLE, 2), b = fill(STORE_DURABLE, 4), got = STORE_SEGMENT_NONE;

    while (table.count[SEGMENT_FREE])
        (void)fill(STORE_SCRATCH, 16);
    table.segments[a].end_sector = SECTORS / 2;
    table.segments[b].end_sector = SECTORS / 2;
    segment_set_state(&table, a, SEGMENT_EVACUATING);
    segment_set_state(&table, b, SEGMENT_EVACUATING);
    ck_assert_int_eq(segment_reopen(&table, 0, STORE_DURABLE, false, 1, &got), -ENOSPC);
    ck_assert_int_eq(segment_reopen(&table, 0, STORE_DURABLE, true, SECTORS / 2 + 1, &got), -ENOSPC);
    ck_assert_int_eq(segment_reopen(&table, 0, STORE_SCRATCH, true, 1, &got), -ENOSPC); /* these are full */
    ck_assert_int_eq(segment_reopen(&table, 0, STORE_DURABLE, true, SECTORS / 2, &got), 0);
    ck_assert_uint_eq(got, b);
    ck_assert_uint_eq(table.segments[b].state, SEGMENT_OPEN);
    ck_assert_uint_eq(table.segments[a].state, SEGMENT_EVACUATING);
    ck_assert_uint_eq(table.pools[0].n_evacuating, 1);
}
END_TEST

/* No other of its durability has room: what is copied goes beside what is of another, never what is new. */
START_TEST(scratch_makes_room_for_durable)
{
    uint32_t scratch = fill(STORE_SCRATCH, 4), got = STORE_SEGMENT_NONE;

    while (table.count[SEGMENT_FREE])
        (void)fill(STORE_DURABLE, 16);
    segment_set_state(&table, scratch, SEGMENT_OPEN);
    table.segments[scratch].end_sector = SECTORS / 2;
    segment_set_state(&table, scratch, SEGMENT_CLOSING);
    segment_set_state(&table, scratch, SEGMENT_SEALED);
    ck_assert_int_eq(segment_reopen(&table, 0, STORE_DURABLE, false, 1, &got), -ENOSPC);
    ck_assert_int_eq(segment_reopen(&table, 0, STORE_DURABLE, true, SECTORS / 2 + 1, &got), -ENOSPC);
    ck_assert_int_eq(segment_reopen(&table, 0, STORE_DURABLE, true, SECTORS / 2, &got), 0);
    ck_assert_uint_eq(got, scratch);
    ck_assert_uint_eq(table.segments[scratch].durability, STORE_DURABLE);
}
END_TEST

/* Copies that are begun and find no room give none back: so no more are begun than there is room for, but the first. */
START_TEST(no_more_is_copied_than_fits)
{
    uint32_t a = fill(STORE_DURABLE, 7), b = fill(STORE_DURABLE, 7), c = fill(STORE_DURABLE, 7),
             scratch = fill(STORE_SCRATCH, 2), cache = fill(STORE_CACHE, 16);

    while (table.count[SEGMENT_FREE])
        (void)fill(STORE_SCRATCH, 16);
    ck_assert(segment_copy_fits(&table, a));
    segment_set_state(&table, a, SEGMENT_EVACUATING);
    ck_assert(!segment_copy_fits(&table, b));
    ck_assert(segment_copy_fits(&table, cache));
    segment_set_state(&table, cache, SEGMENT_EVACUATING);
    segment_live_sub(&table, cache, SECTORS);
    segment_set_state(&table, cache, SEGMENT_EMPTY);
    segment_set_state(&table, cache, SEGMENT_FREEING);
    segment_set_state(&table, cache, SEGMENT_FREE);
    ck_assert(segment_copy_fits(&table, b)); /* both fit in that one */
    segment_set_state(&table, b, SEGMENT_EVACUATING);
    ck_assert(!segment_copy_fits(&table, c));
    ck_assert(!segment_copy_fits(&table, scratch)); /* not beside what is durable */
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("segment");
    TCase *tc = tcase_create("all");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, copies_cost_less_than_whole_cache, 1, 13);
    tcase_add_loop_test(tc, half_dead_cache_costs_half, 1, 13);
    tcase_add_test(tc, without_cache_the_emptiest_is_copied);
    tcase_add_test(tc, segments_are_emptied_ahead_of_need);
    tcase_add_test(tc, what_is_emptied_can_be_filled);
    tcase_add_test(tc, scratch_makes_room_for_durable);
    tcase_add_test(tc, no_more_is_copied_than_fits);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
