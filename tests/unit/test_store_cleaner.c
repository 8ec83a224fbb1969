/* SPDX-License-Identifier: Apache-2.0 */
/* Emptying segments goes on whatever comes between: deaths in its middle leave it as much room as it had. */
#include "tests/unit/support/store_fixture.h"

#define IDS 340 /* of which two thirds must be copied */
#define TURNS_MAX 3000

static uint32_t any_kept(void)
{
    uint32_t id = (uint32_t)simdisk_below(disk, IDS);

    return owner_durability(o, id) == STORE_CACHE ? id + 1 : id;
}

/* There is much that is dead: a put finds room, sooner or later. */
static bool put_finds_room(void)
{
    for (int turn = 0; turn < TURNS_MAX; turn++) {
        if (owner_put(o, any_kept(), false) == 0)
            return true;
        owner_turn(o);
    }
    return false;
}

struct deaths {
    uint32_t n;
    uint32_t look_every;
    uint64_t turns; /* at most, between two */
};

static void die_again_and_again(uint64_t seed, uint32_t pools, struct deaths deaths)
{
    struct store_stat st;
    uint64_t reclaimed = 0;

    start(seed, 16 * MIB, MIB, IDS + 1);
    o->n_pools = pools;
    o->size_max_bytes = 128 * KIB;
    for (uint32_t death = 0; death < deaths.n; death++) {
        ck_assert_int_eq(owner_open(o, &why), 0);
        bool found = death % deaths.look_every || put_finds_room();
        store_stat(o->store, &st);
        ck_assert_msg(found, "seed %llu, death %u: %llu of %llu segments are free, %llu bytes live",
                      (unsigned long long)seed, death, (unsigned long long)st.segments_free,
                      (unsigned long long)st.segments, (unsigned long long)st.live_bytes);
        for (uint64_t n = simdisk_below(disk, deaths.turns); n > 0; n--) {
            put_try(any_kept());
            owner_turn(o);
        }
        store_stat(o->store, &st);
        reclaimed += st.reclaimed_segments;
        owner_crash(o, death % 2);
    }
    ck_assert_uint_gt(reclaimed, 50); /* it was at work */
    ck_assert_int_eq(owner_open(o, &why), 0);
    owner_check_all(o, true);
    ck_assert_uint_eq(o->n_wrong + o->n_lost, 0);
    end();
}

START_TEST(deaths_in_the_middle_of_it)
{
    for (uint64_t seed = 1; seed <= 12; seed++)
        die_again_and_again(seed, 1 + (uint32_t)(seed % 3), (struct deaths){.n = 80, .look_every = 1, .turns = 400});
}
END_TEST

/* It never comes to the end of a segment. */
START_TEST(deaths_soon_after_each_other)
{
    for (uint64_t seed = 1; seed <= 8; seed++)
        die_again_and_again(seed, 1 + (uint32_t)(seed % 3), (struct deaths){.n = 400, .look_every = 50, .turns = 30});
}
END_TEST

int main(void)
{
    const struct test_case tests[] = {{"cleaner", deaths_in_the_middle_of_it},
                                      {"cleaner", deaths_soon_after_each_other}};

    return run_suite("store_cleaner", tests, ARRAY_LEN(tests));
}
