/* SPDX-License-Identifier: Apache-2.0 */
/* What callers say of the future: scores, "not again", uses that are left. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "tests/unit/support/tiering_rig.h"

static struct rig rig;

static struct tiering_id key(enum rig_space space, uint32_t n)
{
    return rig_id(&rig, space, n);
}

static uint8_t tier_of(const struct tiering_id *id)
{
    struct tiering_found found;

    return tiering_lookup(rig.t, id, &found) == 0 ? found.tier : TIERING_NONE;
}

static bool exists(const struct tiering_id *id)
{
    struct tiering_found found;

    return tiering_lookup(rig.t, id, &found) == 0;
}

static void advise(const struct tiering_id *id, enum tiering_advice advice, uint64_t value)
{
    ck_assert_int_eq(tiering_advise(rig.t, id, advice, value, rig.now_ns), 0);
}

static void put(uint32_t from, uint32_t to)
{
    for (uint32_t i = from; i < to; i++) {
        struct tiering_id id = key(RIG_CACHE, i);

        ck_assert_int_eq(rig_put(&rig, &id, RIG_PIECE, 1), 0);
    }
}

static uint32_t count_there(uint32_t from, uint32_t to)
{
    uint32_t n = 0;

    for (uint32_t i = from; i < to; i++) {
        struct tiering_id id = key(RIG_CACHE, i);

        n += exists(&id);
    }
    return n;
}

/* --- Score ------------------------------------------------------------------------------------------------------------- */

static const struct policy_ops *const policies[] = {&policy_lru, &policy_s3fifo, &policy_arc};

/* 32 blocks fill the memory, and there is no device: who must go is dropped. */
static void open_full(int policy)
{
    rig_policy = policies[policy];
    rig_open(&rig, 8 * MIB, 0);
    put(0, 32);
    ck_assert_uint_eq(count_there(0, 32), 32);
}

START_TEST(a_score_keeps_a_block_longer)
{
    open_full(_i);
    for (uint32_t i = 0; i < 8; i++) {
        struct tiering_id id = key(RIG_CACHE, i);

        advise(&id, TIERING_SCORE, 1000);
    }
    put(100, 130);
    ck_assert_uint_eq(count_there(0, 8), 8);
    ck_assert_uint_eq(count_there(8, 32), 0);
    /* But not for ever: a score is used up. */
    put(200, 600);
    ck_assert_uint_eq(count_there(0, 8), 0);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

START_TEST(the_larger_score_stays_longer)
{
    open_full(_i);
    uint32_t died[2] = {0};

    for (uint32_t i = 0; i < 8; i++) {
        struct tiering_id id = key(RIG_CACHE, i);

        advise(&id, TIERING_SCORE, i % 2 ? 32 : 1);
    }
    for (uint32_t n = 100; n < 600; n++) {
        put(n, n + 1);
        for (uint32_t i = 0; i < 8; i++) {
            struct tiering_id id = key(RIG_CACHE, i);

            if (!exists(&id))
                died[i % 2]++; /* earlier: more rounds dead */
        }
    }
    ck_assert_uint_gt(died[0], died[1]);
    rig_close(&rig);
}
END_TEST

START_TEST(a_score_can_be_taken_back)
{
    open_full(_i);
    for (uint32_t i = 0; i < 8; i++) {
        struct tiering_id id = key(RIG_CACHE, i);

        advise(&id, TIERING_SCORE, UINT64_MAX);
        advise(&id, TIERING_SCORE, 0);
    }
    put(100, 132);
    ck_assert_uint_eq(count_there(0, 8), 0);
    rig_close(&rig);
}
END_TEST

/* A hint is no lease: whoever scores everything gains nothing, and somebody always goes. */
START_TEST(all_scores_together_keep_nobody_out)
{
    open_full(_i);
    for (uint32_t round = 0; round < 20; round++) {
        for (uint32_t i = 0; i < 2000; i++) {
            struct tiering_id id = key(RIG_CACHE, i);

            if (exists(&id))
                advise(&id, TIERING_SCORE, UINT64_MAX);
        }
        put(100 + round * 10, 110 + round * 10);
    }
    ck_assert_uint_eq(count_there(0, 2000), 32);
    ck_assert_uint_eq(count_there(0, 32), 0);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* --- Not again --------------------------------------------------------------------------------------------------------- */

START_TEST(not_again_while_it_is_leased_or_dirty)
{
    rig_policy = policies[_i];
    rig_open(&rig, 8 * MIB, 64 * MIB);
    struct tiering_id id = key(RIG_CACHE, 1), tensor = key(RIG_DURABLE, 2);
    struct tiering_grant a, b;

    ck_assert_int_eq(rig_put(&rig, &id, 70000, 1), 0);
    advise(&id, TIERING_NOT_AGAIN, 0); /* dirty: it is written, and then goes by itself */
    ck_assert_uint_eq(tier_of(&id), TIERING_DRAM);
    rig_settle(&rig);
    ck_assert_uint_eq(tier_of(&id), TIERING_NVME);
    ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, 0, &a), 0);
    advise(&id, TIERING_NOT_AGAIN, 0);
    ck_assert_uint_eq(tier_of(&id), TIERING_DRAM);
    ck_assert_int_eq(tiering_release(rig.t, &rig.s, a.lease, 0), 0);
    ck_assert_uint_eq(tier_of(&id), TIERING_NVME);
    /* Whoever uses it again proves it wrong. */
    ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, 0, &a), 0);
    advise(&id, TIERING_NOT_AGAIN, 0);
    ck_assert_int_eq(rig_acquire(&rig, &rig.other, &id, 0, &b), 0);
    ck_assert_int_eq(tiering_release(rig.t, &rig.s, a.lease, 0), 0);
    ck_assert_int_eq(tiering_release(rig.t, &rig.other, b.lease, 0), 0);
    ck_assert_uint_eq(tier_of(&id), TIERING_DRAM);
    /* What only a SYNC may write goes after the SYNC. */
    ck_assert_int_eq(tiering_tensor(rig.t, &rig.s, &tensor, 70000), 0);
    ck_assert_int_eq(rig_write(&rig, &tensor, 3), 0);
    advise(&tensor, TIERING_NOT_AGAIN, 0);
    rig_settle(&rig);
    ck_assert_uint_eq(tier_of(&tensor), TIERING_DRAM);
    ck_assert_int_eq(rig_sync(&rig, RIG_DURABLE, NULL, 0), 0);
    ck_assert_uint_eq(tier_of(&tensor), TIERING_NVME);
    ck_assert_int_eq(rig_get(&rig, &tensor, 3), 0);
    rig_close(&rig);
}
END_TEST

/* Writing it fails: it stays, and is not tried for ever. */
START_TEST(not_again_that_cannot_be_written)
{
    rig_policy = policies[_i];
    rig_open(&rig, 8 * MIB, 64 * MIB);
    struct tiering_id id = key(RIG_SCRATCH, 1);

    ck_assert_int_eq(rig_put(&rig, &id, 70000, 1), 0);
    simdisk_faults(rig.disk)->work_fault = 1000000;
    advise(&id, TIERING_NOT_AGAIN, 0);
    rig_settle(&rig);
    ck_assert_uint_eq(tier_of(&id), TIERING_DRAM);
    simdisk_faults(rig.disk)->work_fault = 0;
    ck_assert_int_eq(rig_get(&rig, &id, 1), 0);
    rig_close(&rig);
}
END_TEST

/* --- Uses that are left ------------------------------------------------------------------------------------------------ */

START_TEST(the_last_use_frees_it)
{
    rig_policy = policies[_i];
    rig_open(&rig, 8 * MIB, 64 * MIB);
    static const enum rig_space spaces[] = {RIG_CACHE, RIG_SCRATCH, RIG_SHARED};

    for (uint32_t i = 0; i < ARRAY_LEN(spaces); i++) {
        struct tiering_id id = key(spaces[i], 1);
        struct tiering_grant a, b;

        ck_assert_int_eq(rig_put(&rig, &id, 70000, 1), 0);
        uint64_t used = rig_pool_stat(&rig, 0).dram_used;
        advise(&id, TIERING_USES_LEFT, 3);
        ck_assert_int_eq(rig_get(&rig, &id, 1), 0);
        ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, 0, &a), 0);
        ck_assert_int_eq(tiering_release(rig.t, &rig.s, a.lease, TIERING_UNUSED), 0); /* came to nothing */
        ck_assert_int_eq(rig_acquire(&rig, &rig.s, &id, 0, &a), 0);
        ck_assert_int_eq(rig_acquire(&rig, &rig.other, &id, 0, &b), 0);
        ck_assert_int_eq(tiering_release(rig.t, &rig.s, a.lease, 0), 0);
        ck_assert(exists(&id)); /* somebody still reads */
        ck_assert(rig_is(rig_memory(&rig, &b), 70000, 1));
        ck_assert_int_eq(tiering_release(rig.t, &rig.other, b.lease, 0), 0);
        ck_assert(!exists(&id));
        ck_assert(spaces[i] == RIG_SHARED || rig_pool_stat(&rig, 0).dram_used < used);
        /* The next object of that name is not counted. */
        ck_assert_int_eq(rig_put(&rig, &id, 70000, 2), 0);
        for (int n = 0; n < 5; n++)
            ck_assert_int_eq(rig_get(&rig, &id, 2), 0);
    }
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

START_TEST(a_count_of_zero_or_none)
{
    rig_policy = policies[_i];
    rig_open(&rig, 8 * MIB, 64 * MIB);
    struct tiering_id id = key(RIG_SCRATCH, 1), durable = key(RIG_DURABLE, 2);

    ck_assert_int_eq(rig_put(&rig, &id, 70000, 1), 0);
    advise(&id, TIERING_USES_LEFT, 1);
    advise(&id, TIERING_USES_LEFT, UINT64_MAX); /* no longer counted */
    ck_assert_int_eq(rig_get(&rig, &id, 1), 0);
    ck_assert_int_eq(rig_get(&rig, &id, 1), 0);
    advise(&id, TIERING_USES_LEFT, 0);
    ck_assert(!exists(&id));
    /* What is durable ends with its deletion, and no sooner. */
    ck_assert_int_eq(rig_put(&rig, &durable, 70000, 1), 0);
    advise(&durable, TIERING_USES_LEFT, 1);
    ck_assert_int_eq(rig_get(&rig, &durable, 1), 0);
    rig_settle(&rig);
    ck_assert_uint_eq(tier_of(&durable), TIERING_NVME);
    ck_assert_int_eq(rig_get(&rig, &durable, 1), 0);
    ck_assert_int_eq(rig_get(&rig, &durable, 1), 0);
    rig_close(&rig);
}
END_TEST

START_TEST(parts_are_spent_together)
{
    rig_policy = policies[_i];
    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id part[3];

    for (uint16_t i = 0; i < 3; i++) {
        part[i] = key(RIG_SCRATCH, 1);
        part[i].n_parts = 3;
        part[i].part = i;
        ck_assert_int_eq(rig_put(&rig, &part[i], 5000, i + 1U), 0);
    }
    for (uint32_t i = 0; i < 3; i++)
        advise(&part[i], TIERING_USES_LEFT, 2);
    for (uint32_t use = 0; use < 2; use++) {
        for (uint32_t i = 0; i < 3; i++) {
            ck_assert(exists(&part[0]));
            ck_assert_int_eq(rig_get(&rig, &part[(i + 1) % 3], (i + 1) % 3 + 1), 0);
        }
    }
    for (uint32_t i = 0; i < 3; i++)
        ck_assert(!exists(&part[i]));
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* Many counted objects come and go: the table of counts is probed, and holes are closed. */
START_TEST(counts_come_and_go)
{
    rig_policy = policies[_i];
    rig_open(&rig, 16 * MIB, 0);
    for (uint32_t round = 0; round < 4; round++) {
        for (uint32_t i = 0; i < 1500; i++) {
            struct tiering_id id = key(RIG_SCRATCH, i);

            ck_assert_int_eq(rig_put(&rig, &id, 4096, i + 1), 0);
            advise(&id, TIERING_USES_LEFT, 1 + i % 3);
        }
        for (uint32_t use = 0; use < 3; use++) {
            for (uint32_t i = 0; i < 1500; i++) {
                struct tiering_id id = key(RIG_SCRATCH, (i * 7) % 1500);

                ck_assert_int_eq(rig_get(&rig, &id, (i * 7) % 1500 + 1), use <= (i * 7) % 1500 % 3 ? 0 : -ENOENT);
            }
        }
        ck_assert_uint_eq(rig_pool_stat(&rig, 0).objects, 0);
    }
    rig_close(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tiering_advice");
    TCase *tc = tcase_create("all");
    SRunner *runner = srunner_create(suite);
    const int n = ARRAY_LEN(policies);

    tcase_set_timeout(tc, 100);
    tcase_add_loop_test(tc, a_score_keeps_a_block_longer, 0, n);
    tcase_add_loop_test(tc, the_larger_score_stays_longer, 0, n);
    tcase_add_loop_test(tc, a_score_can_be_taken_back, 0, n);
    tcase_add_loop_test(tc, all_scores_together_keep_nobody_out, 0, n);
    tcase_add_loop_test(tc, not_again_while_it_is_leased_or_dirty, 0, n);
    tcase_add_loop_test(tc, not_again_that_cannot_be_written, 0, n);
    tcase_add_loop_test(tc, the_last_use_frees_it, 0, n);
    tcase_add_loop_test(tc, a_count_of_zero_or_none, 0, n);
    tcase_add_loop_test(tc, parts_are_spent_together, 0, n);
    tcase_add_loop_test(tc, counts_come_and_go, 0, 1);
    suite_add_tcase(suite, tc);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
