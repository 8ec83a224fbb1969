/* SPDX-License-Identifier: Apache-2.0 */
/* The heap of deadlines against a walk over all of them. */
#include <check.h>
#include <stdlib.h>

#include "daemon/deadline.h"

#define ENTRIES 200

static struct deadlines d;
static struct deadline entries[ENTRIES];
static bool is_set[ENTRIES];

static uint64_t earliest(void)
{
    uint64_t first = DEADLINE_NEVER;

    for (int i = 0; i < ENTRIES; i++)
        if (is_set[i] && entries[i].at_ns < first)
            first = entries[i].at_ns;
    return first;
}

START_TEST(test_random_use)
{
    unsigned seed = 7;

    ck_assert_int_eq(deadlines_init(&d, ENTRIES), 0);
    for (int i = 0; i < ENTRIES; i++)
        entries[i].place = DEADLINE_UNSET;
    for (int step = 0; step < 20000; step++) {
        int i = rand_r(&seed) % ENTRIES;

        switch (rand_r(&seed) % 3) {
        case 0:
            deadline_set(&d, &entries[i], (uint64_t)(rand_r(&seed) % 1000));
            is_set[i] = true;
            break;
        case 1:
            deadline_clear(&d, &entries[i]);
            is_set[i] = false;
            break;
        case 2: {
            uint64_t now_ns = (uint64_t)(rand_r(&seed) % 200), first = earliest();
            struct deadline *popped = deadlines_pop(&d, now_ns);

            ck_assert_int_eq(popped != NULL, first <= now_ns);
            if (popped) {
                ck_assert_uint_eq(popped->at_ns, first);
                ck_assert_uint_eq(popped->place, DEADLINE_UNSET);
                is_set[popped - entries] = false;
            }
            break;
        }
        }
        ck_assert_uint_eq(deadlines_next_ns(&d), earliest());
    }
    deadlines_deinit(&d);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("deadline");
    TCase *tc = tcase_create("all");

    tcase_add_test(tc, test_random_use);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
