/* SPDX-License-Identifier: Apache-2.0 */
/* The chain policy's tables of hazards: what they learn, and that the index is what its definition says. */
#include <check.h>
#include <math.h>
#include <stdlib.h>

/* For the chances that the index is made of. NOLINTNEXTLINE(bugprone-suspicious-include) */
#include "tiering/hazard.c"

START_TEST(bins_are_two_an_octave)
{
    static const uint32_t starts[] = {1, 2, 3, 4, 6, 8, 12, 16};

    ck_assert_uint_eq(hazard_bin(0), 0);
    ck_assert_uint_eq(hazard_bin(1), 0);
    for (uint32_t i = 1; i < ARRAY_LEN(starts); i++) {
        ck_assert_uint_eq(hazard_bin(starts[i]), i + 1);
        ck_assert_uint_eq(hazard_bin(starts[i] - 1), i == 1 ? 0 : i);
    }
    ck_assert_uint_eq(hazard_bin(UINT32_MAX), HAZARD_BINS - 1);
}
END_TEST

/* One class comes back after ten requests, another never: the first is worth more, until it is too late for it. */
START_TEST(it_learns_what_comes_back)
{
    static struct hazard h;

    hazard_init(&h);
    for (uint32_t clock = 1; clock <= 4000; clock++) {
        hazard_tick(&h, clock);
        hazard_enter(&h, 0, 1);
        hazard_enter(&h, 1, 1);
        if (clock > 10)
            hazard_use(&h, 0, 10, 1);
    }
    ck_assert_float_gt(hazard_index(&h, 0, 1), 5 * hazard_index(&h, 1, 1));
    ck_assert_float_gt(hazard_index(&h, 0, 8), hazard_index(&h, 0, 1));
    ck_assert_float_lt(hazard_index(&h, 0, 200), hazard_index(&h, 0, 1));
    ck_assert_float_gt(hazard_ever(&h, 0), 0.7F);
    ck_assert_float_lt(hazard_ever(&h, 1), 0.2F);
}
END_TEST

/* The definition: every time to stop is tried. */
static double index_by_trying(const float q[HAZARD_BINS], uint32_t from)
{
    double left = 1, uses = 0, time = 0, best = 0;

    for (uint32_t b = from; b < HAZARD_BINS; b++) {
        uses += left * q[b];
        time += left * (1 - q[b] / 2.0) * bin_width(b);
        left *= 1.0 - q[b];
        best = fmax(best, uses / time);
    }
    return best;
}

static void check_indices(const struct hazard *h)
{
    for (uint32_t class = 0; class < HAZARD_CLASSES; class ++) {
        float q[HAZARD_BINS];

        class_chances(h, class, q);
        for (uint32_t b = 0; b < HAZARD_BINS; b++) {
            double known = index_by_trying(q, b);

            ck_assert_double_eq_tol(h->classes[class].index[b], known, 1e-4 * known);
        }
    }
}

/* Chances of 0 and 1, and any between, in every order: rising, falling, with gaps. */
START_TEST(index_is_the_best_time_to_stop)
{
    static struct hazard h;

    srand48(3);
    hazard_init(&h);
    check_indices(&h);
    for (uint32_t i = 0; i < 200; i++) {
        double often = drand48();

        for (uint32_t class = 0; class < HAZARD_CLASSES; class ++) {
            for (uint32_t b = 0; b < HAZARD_BINS; b++) {
                h.classes[class].reached[b] = (float)(exp(20 * drand48() - 5));
                h.classes[class].used[b] = drand48() < often ? h.classes[class].reached[b] * (float)drand48() : 0;
                if (drand48() < 0.05)
                    h.classes[class].used[b] = h.classes[class].reached[b] = 1e9F;
            }
        }
        mean_update(&h);
        for (uint32_t class = 0; class < HAZARD_CLASSES; class ++)
            class_index(&h, class);
        check_indices(&h);
    }
}
END_TEST

/* A long conversation may end, what many use does not: nothing was seen of either, and the gap is the same. */
START_TEST(only_the_popular_last_for_ever)
{
    static struct hazard h;

    hazard_init(&h);
    for (uint32_t c = HAZARD_LONG; c < HAZARD_HOT; c++)
        ck_assert_float_lt(hazard_ever(&h, c), 0.5F);
    for (uint32_t c = HAZARD_HOT; c < HAZARD_HOT + 8; c++)
        ck_assert_float_gt(hazard_ever(&h, c), 0.99F);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("hazard");
    TCase *tc = tcase_create("tables");

    tcase_add_test(tc, bins_are_two_an_octave);
    tcase_add_test(tc, it_learns_what_comes_back);
    tcase_add_test(tc, index_is_the_best_time_to_stop);
    tcase_add_test(tc, only_the_popular_last_for_ever);
    suite_add_tcase(s, tc);

    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
