/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests that name chains, all the way through tiering: one conversation goes on between many that are never continued,
 * and the memory holds less than what comes in between two of its turns.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "tests/unit/support/tiering_rig.h"
#include "tiering/core.h"

#define BLOCK ((uint32_t)(64 * KIB))
#define ROUNDS 60
#define OLD 20  /* blocks of the conversation */
#define ONCE 60 /* of another */
#define OTHERS 3

static struct rig rig;

static void name(const struct tiering_id *ids, uint32_t n)
{
    if (!tiering_chain_begin(rig.t, &rig.s, ids[0].space, POLICY_NAMED))
        return;
    for (uint32_t i = 0; i < n; i++)
        tiering_chain_add(rig.t, &ids[i], 1);
    tiering_chain_end(rig.t);
}

/* As an engine does it: what is there is used, what is not is stored. How many were there. */
static uint32_t ask(uint32_t first, uint32_t n)
{
    struct tiering_id ids[ONCE];
    uint32_t hits = 0;

    for (uint32_t i = 0; i < n; i++)
        ids[i] = rig_id(&rig, RIG_CACHE, first + i);
    name(ids, n);
    for (uint32_t i = 0; i < n; i++) {
        struct tiering_grant grant;
        int r = rig_acquire(&rig, &rig.s, &ids[i], 0, &grant);

        if (r == 0) {
            hits++;
            ck_assert_int_eq(tiering_release(rig.t, &rig.s, grant.lease, 0), 0);
            continue;
        }
        ck_assert_int_eq(r, -ENOENT);
        ck_assert_int_eq(rig_put(&rig, &ids[i], BLOCK, first + i), 0);
    }
    return hits;
}

static uint32_t hits_of_conversation(const struct policy_ops *policy)
{
    uint32_t hits = 0, next = 1000;

    rig_policy = policy;
    rig_open(&rig, 8 * MIB, 0);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint32_t n = ask(1, OLD);

        hits += round >= ROUNDS / 2 ? n : 0;
        for (uint32_t i = 0; i < OTHERS; i++, next += ONCE)
            (void)ask(next, ONCE);
    }
    rig_check(&rig);
    rig_close(&rig);
    return hits;
}

START_TEST(a_conversation_outlives_what_is_asked_once)
{
    ck_assert_uint_eq(hits_of_conversation(&policy_lru), 0);
    ck_assert_uint_ge(hits_of_conversation(&policy_chain_hazard), ROUNDS / 2 * OLD * 9 / 10);
}
END_TEST

/* Each is another block to the policy, also if the hash of the first was found ahead. */
START_TEST(pieces_have_names_of_their_own)
{
    rig_policy = &policy_chain_hazard;
    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id id = rig_id(&rig, RIG_CACHE, 1);

    tiering_warm_index(rig.t, &id);
    ck_assert(tiering_chain_begin(rig.t, &rig.s, id.space, POLICY_STORED));
    tiering_chain_add(rig.t, &id, 3);
    ck_assert_uint_eq(rig.t->chain.n, 3);
    for (uint32_t i = 0; i < 3; i++)
        ck_assert_uint_ne(rig.t->chain.refs[i].hash, rig.t->chain.refs[(i + 1) % 3].hash);
    tiering_chain_end(rig.t);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* Blocks of several pieces, deletions and a policy that wants no chains. */
START_TEST(what_is_named_need_not_be_there)
{
    rig_policy = &policy_chain_hazard;
    rig_open(&rig, 8 * MIB, 0);
    struct tiering_id ids[3] = {rig_id(&rig, RIG_CACHE, 1), rig_id(&rig, RIG_CACHE, 2), rig_id(&rig, RIG_CACHE, 1)};

    ck_assert_int_eq(rig_put(&rig, &ids[0], BLOCK, 1), 0);
    ck_assert(tiering_chain_begin(rig.t, &rig.s, ids[0].space, POLICY_STORED));
    for (uint32_t i = 0; i < ARRAY_LEN(ids); i++)
        tiering_chain_add(rig.t, &ids[i], 2); /* one of them twice, none of two pieces */
    tiering_chain_end(rig.t);
    rig_check(&rig);
    ck_assert_int_eq(tiering_delete(rig.t, &ids[0]), 0);
    ck_assert(tiering_chain_begin(rig.t, &rig.s, ids[0].space, POLICY_NAMED));
    tiering_chain_end(rig.t);
    name(ids, 3);
    rig_check(&rig);
    rig_close(&rig);

    rig_policy = &policy_adaptive;
    rig_open(&rig, 8 * MIB, 0);
    ck_assert(!tiering_chain_begin(rig.t, &rig.s, ids[0].space, POLICY_NAMED));
    rig_close(&rig);
}
END_TEST

/* How many of these are there, anywhere. */
static uint32_t found(uint32_t first, uint32_t n)
{
    uint32_t n_found = 0;

    for (uint32_t i = first; i < first + n; i++) {
        struct tiering_id id = rig_id(&rig, RIG_CACHE, i);
        struct tiering_found what;

        n_found += tiering_lookup(rig.t, &id, &what) == 0;
    }
    return n_found;
}

static void store_once(uint32_t *next, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        struct tiering_id id = rig_id(&rig, RIG_CACHE, (*next)++);

        ck_assert_int_eq(rig_put(&rig, &id, BLOCK, id.key[0]), 0);
    }
}

/* Blocks that nobody asks for: a full device that is as little asked for takes the younger ones. And when they are asked
 * for after all, those that are still in memory are as good as those on the device. */
START_TEST(a_full_device_does_not_keep_what_nobody_wants)
{
    uint32_t next = 1, n_device = 128 * MIB / BLOCK, n = n_device * 3 / 4, hits = 0;

    rig_policy = &policy_chain_hazard;
    rig_open(&rig, 32 * MIB, 128 * MIB);
    store_once(&next, 4 * n_device);
    rig_settle(&rig);
    ck_assert_uint_ge(found(next - n, n), n * 98 / 100);
    for (uint32_t i = next - n; i < next; i++) {
        struct tiering_id id = rig_id(&rig, RIG_CACHE, i);
        struct tiering_grant grant;

        if (rig_acquire(&rig, &rig.s, &id, 0, &grant) != 0)
            continue;
        hits++;
        ck_assert_int_eq(tiering_release(rig.t, &rig.s, grant.lease, 0), 0);
    }
    ck_assert_uint_ge(hits, n * 98 / 100);
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

/* Of two conversations that do not fit memory together one goes on, between many that are asked once: what it has on the
 * full device is used, and the others' blocks need not be written there. */
START_TEST(a_full_device_keeps_what_is_wanted)
{
    uint32_t next = 100000, hits = 0;
    struct tiering_pool_stat before = {0}, after;

    rig_policy = &policy_chain_hazard;
    rig_open(&rig, 4 * MIB, 24 * MIB);
    for (uint32_t round = 0; round < 200; round++) {
        uint32_t n = 0;

        if (round == 100)
            before = rig_pool_stat(&rig, 0);
        for (uint32_t i = 0; i < 2; i++)
            n += ask(1 + i * ONCE, ONCE);
        hits += round >= 100 ? n : 0;
        for (uint32_t i = 0; i < OTHERS; i++, next += ONCE)
            (void)ask(next, ONCE);
    }
    after = rig_pool_stat(&rig, 0);
    ck_assert_uint_ge(hits, 100 * 2 * ONCE * 9 / 10);
    ck_assert_uint_gt(after.drops - before.drops, 9 * (after.spills - before.spills));
    rig_check(&rig);
    rig_close(&rig);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("tiering_chain");
    TCase *tc = tcase_create("chains");

    tcase_set_timeout(tc, 100);
    tcase_add_test(tc, a_conversation_outlives_what_is_asked_once);
    tcase_add_test(tc, pieces_have_names_of_their_own);
    tcase_add_test(tc, what_is_named_need_not_be_there);
    tcase_add_test(tc, a_full_device_does_not_keep_what_nobody_wants);
    tcase_add_test(tc, a_full_device_keeps_what_is_wanted);
    suite_add_tcase(s, tc);

    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
