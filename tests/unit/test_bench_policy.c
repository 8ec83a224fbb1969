/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulation of policies, on traces whose results are known: by hand, by trying everything, or from a cache that is
 * too simple to be wrong.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Programs are no libraries, so the files themselves are compiled in. NOLINTBEGIN(bugprone-suspicious-include) */
#include "client/bench/generator.c"
#include "client/bench/optimum.c"
#include "client/bench/payload.c"
#include "client/bench/policy_sim.c"
#include "client/bench/published.c"
#include "client/bench/trace.c"

/* NOLINTEND(bugprone-suspicious-include) */

#define STEP 1000003 /* between two ids: they are no small numbers in a trace */

/* Letters are blocks; a blank ends a request. */
static void trace_spell(const char *text, struct trace *t)
{
    uint64_t ids[64];
    uint32_t n = 0;

    *t = (struct trace){0};
    for (const char *c = text;; c++) {
        if (*c == ' ' || *c == '\0') {
            ck_assert_int_eq(trace_add(t, 0, ids, n), 0);
            n = 0;
        } else {
            ids[n++] = (uint64_t)(*c - 'a') * STEP;
        }
        if (*c == '\0')
            break;
    }
    ck_assert_int_eq(trace_count(t), 0);
}

static struct policy_sim_result run(const struct trace *t, const char *policy, uint32_t capacity)
{
    struct policy_sim_result result;
    struct policy_sim *s;

    ck_assert_int_eq(policy_sim_new(t, &s), 0);
    ck_assert_int_eq(policy_sim_run(s, policy, capacity, &result), 0);
    policy_sim_free(s);
    ck_assert_uint_eq(result.hits + result.misses, t->n_ids);
    ck_assert_uint_le(result.kept, result.misses);
    return result;
}

static uint64_t optimum(const struct trace *t, uint32_t capacity)
{
    struct policy_sim *s;
    uint64_t hits;

    ck_assert_int_eq(policy_sim_new(t, &s), 0);
    ck_assert_int_eq(policy_sim_optimum(s, capacity, &hits), 0);
    policy_sim_free(s);
    return hits;
}

START_TEST(test_by_hand)
{
    static const struct {
        const char *text;
        uint32_t capacity;
        uint64_t lru, optimum;
    } cases[] = {
        {"ab ac ab", 2, 2, 3}, /* c is not worth letting in */
        {"abc abc abc abc", 2, 0, 6}, {"abc abc abc abc", 3, 9, 9}, {"aaaa", 1, 3, 3},
        {"abcdef", 2, 0, 0},          {"abab cdcd abab", 2, 6, 6},  {"abab cdcd abab", 3, 6, 7},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        cleanup_(trace_deinit) struct trace t;

        trace_spell(cases[i].text, &t);
        ck_assert_uint_eq(run(&t, "lru", cases[i].capacity).hits, cases[i].lru);
        ck_assert_uint_eq(optimum(&t, cases[i].capacity), cases[i].optimum);
    }
}
END_TEST

/* Every set of blocks that could be there after so many references, and the most hits on the way to it. */
static uint64_t optimum_by_trying(const struct trace *t, uint32_t n_blocks, int capacity)
{
    int best[1 << 6], then[1 << 6], most = 0;
    uint32_t n_sets = 1U << n_blocks;

    for (uint32_t set = 0; set < n_sets; set++)
        best[set] = set ? -1 : 0;
    for (uint64_t i = 0; i < t->n_ids; i++) {
        uint32_t block = (uint32_t)(t->ids[i] / STEP);

        for (uint32_t set = 0; set < n_sets; set++)
            then[set] = -1;
        for (uint32_t set = 0; set < n_sets; set++) {
            uint32_t with = set | 1U << block;
            int hits = best[set] + (with == set);

            if (best[set] < 0)
                continue;
            for (uint32_t to = with;; to = (to - 1) & with) { /* any part of it can stay */
                if (__builtin_popcount(to) <= capacity)
                    then[to] = MAX(then[to], hits);
                if (to == 0)
                    break;
            }
        }
        memcpy(best, then, sizeof(best));
    }
    for (uint32_t set = 0; set < n_sets; set++)
        most = MAX(most, best[set]);
    return (uint64_t)most;
}

START_TEST(test_optimum_is_the_best_of_all)
{
    srand48(5);
    for (uint32_t i = 0; i < 300; i++) {
        cleanup_(trace_deinit) struct trace t;
        char text[41] = "";

        for (size_t k = 0; k < sizeof(text) - 1; k++)
            text[k] = (char)('a' + (int)(drand48() * 6));
        trace_spell(text, &t);
        for (uint32_t capacity = 1; capacity <= 5; capacity++)
            ck_assert_uint_eq(optimum(&t, capacity), optimum_by_trying(&t, 6, (int)capacity));
    }
}
END_TEST

/* Newest last. */
static uint64_t lru_hits(const struct trace *t, uint32_t capacity)
{
    cleanup_free uint64_t *ids = calloc(capacity, sizeof(*ids));
    uint64_t hits = 0;
    uint32_t n = 0;

    ck_assert_ptr_nonnull(ids);
    for (uint64_t i = 0; i < t->n_ids; i++) {
        uint32_t at = 0;

        while (at < n && ids[at] != t->ids[i])
            at++;
        hits += at < n;
        if (at == n && n < capacity) {
            n++;
        } else {
            at = at < n ? at : 0;
            memmove(ids + at, ids + at + 1, (n - 1 - at) * sizeof(*ids));
        }
        ids[n - 1] = t->ids[i];
    }
    return hits;
}

START_TEST(test_generated_chats)
{
    struct generator_options o = {.seed = 7, .n_distinct = 20000};
    cleanup_(trace_deinit) struct trace t = {0};
    const uint32_t capacity = 400;

    ck_assert_int_eq(generator_run(&o, &t), 0);
    uint64_t most = optimum(&t, capacity);
    struct policy_sim_result lru = run(&t, "lru", capacity), chain = run(&t, "chain", capacity);

    ck_assert_uint_eq(lru.hits, lru_hits(&t, capacity));
    ck_assert_uint_eq(lru.kept, lru.misses);
    for (const char *const *name = policy_sim_names(); *name; name++) {
        struct policy_sim_result once = run(&t, *name, capacity), again = run(&t, *name, capacity);

        ck_assert_uint_gt(once.hits, 0);
        ck_assert_uint_lt(once.hits, most);
        ck_assert_uint_eq(once.hits, again.hits);
    }
    ck_assert_uint_gt(chain.hits, lru.hits);
    ck_assert_uint_lt(chain.kept, chain.misses); /* it does not let everything in */
    /* Nothing is left of one replay in the next. */
    struct policy_sim *s;
    struct policy_sim_result result;

    ck_assert_int_eq(policy_sim_new(&t, &s), 0);
    ck_assert_int_eq(policy_sim_run(s, "arc", capacity, &result), 0);
    ck_assert_int_eq(policy_sim_run(s, "lru", capacity, &result), 0);
    ck_assert_uint_eq(result.hits, lru.hits);
    policy_sim_free(s);
}
END_TEST

/* Old blocks of a conversation that has ended are worth nothing, however often it used them. */
START_TEST(test_long_conversations_end)
{
    int64_t gain = 0, n = 0;

    for (uint64_t seed = 1; seed <= 2; seed++) {
        struct generator_options o = {.seed = seed, .shape = GENERATOR_AGENTS, .n_distinct = 100000};
        cleanup_(trace_deinit) struct trace t = {0};

        ck_assert_int_eq(generator_run(&o, &t), 0);
        gain += (int64_t)run(&t, "chain", 30000).hits - (int64_t)run(&t, "lru", 30000).hits;
        n += (int64_t)t.n_ids;
    }
    printf("chain less lru: %.3f points\n", 100.0 * (double)gain / (double)n);
    ck_assert_int_ge(gain * 2000, -n); /* a tie: less than 0.05 points */
}
END_TEST

START_TEST(test_shapes_are_different)
{
    double last = 0;

    for (enum generator_shape shape = 0; shape < GENERATOR_SHAPES; shape++) {
        struct generator_options o = {.seed = 1, .shape = shape, .n_distinct = 5000};
        cleanup_(trace_deinit) struct trace t = {0};

        ck_assert_int_eq(generator_run(&o, &t), 0);
        double uses = (double)t.n_ids / (double)t.n_distinct;
        ck_assert_double_gt(fabs(uses - last), 0.2);
        ck_assert_str_ne(generator_shape_name(shape), "");
        last = uses;
    }
}
END_TEST

/* Short requests come twice, 21 requests apart; long ones, of which there are more, never again. */
static void make_short_and_long(bool torn, struct trace *t)
{
    uint64_t ids[40], next = 0, first[2000] = {0};

    *t = (struct trace){0};
    for (uint32_t i = 0; i < ARRAY_LEN(first); i++) {
        bool again = i % 5 == 1 && i > 20;
        uint32_t n = i % 5 < 2 ? 3 : ARRAY_LEN(ids);

        first[i] = again ? first[i - 21] : next;
        next += again ? 0 : n;
        for (uint32_t k = 0; k < n; k++)
            ids[k] = first[i] + k;
        for (uint32_t k = 0; k < n; k += torn ? 1 : n)
            ck_assert_int_eq(trace_add(t, 0, ids + k, torn ? 1 : n), 0);
    }
    ck_assert_int_eq(trace_count(t), 0);
}

/* A policy that lives on requests is told of them; to the others they mean nothing. */
START_TEST(test_requests_are_named)
{
    cleanup_(trace_deinit) struct trace whole, torn;

    make_short_and_long(false, &whole);
    make_short_and_long(true, &torn);
    ck_assert_uint_eq(whole.n_ids, torn.n_ids);
    for (const char *const *name = policy_sim_names(); *name; name++) {
        uint64_t hits = run(&whole, *name, 100).hits, hits_torn = run(&torn, *name, 100).hits;

        if (strcmp(*name, "chain") == 0)
            ck_assert_uint_gt(hits, 2 * hits_torn);
        else
            ck_assert_uint_eq(hits, hits_torn);
    }
}
END_TEST

START_TEST(test_what_cannot_be)
{
    cleanup_(trace_deinit) struct trace t;
    struct policy_sim_result result = {.hits = 77};
    struct policy_sim *s;

    trace_spell("ab ab", &t);
    ck_assert_int_eq(policy_sim_new(&t, &s), 0);
    ck_assert_int_eq(policy_sim_run(s, "none", 1, &result), -EINVAL);
    ck_assert_int_eq(policy_sim_run(s, "lru", 0, &result), -EINVAL);
    ck_assert_uint_eq(result.hits, 77);
    policy_sim_free(s);
}
END_TEST

START_TEST(test_published_is_known_again)
{
    struct trace t = {.n_ids = 288500, .n_distinct = 182790}, other = {.n_ids = 288500, .n_distinct = 182791};

    ck_assert_double_eq(published_percent(&t, 0.5, "chain"), 8.0);
    ck_assert_double_eq(published_percent(&t, 30, "lru"), 35.8);
    ck_assert(isnan(published_percent(&t, 1, "chain")));
    ck_assert(isnan(published_percent(&t, 0.5, "adaptive")));
    ck_assert(isnan(published_percent(&t, 0.5, NULL)));
    ck_assert(isnan(published_percent(&other, 0.5, "chain")));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("bench_policy");
    TCase *tc = tcase_create("policy");

    tcase_add_test(tc, test_by_hand);
    tcase_add_test(tc, test_optimum_is_the_best_of_all);
    tcase_add_test(tc, test_generated_chats);
    tcase_add_test(tc, test_long_conversations_end);
    tcase_add_test(tc, test_shapes_are_different);
    tcase_add_test(tc, test_requests_are_named);
    tcase_add_test(tc, test_what_cannot_be);
    tcase_add_test(tc, test_published_is_known_again);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
