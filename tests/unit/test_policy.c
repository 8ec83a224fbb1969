/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Eviction policies: what each must do with sizes, pins and removals, what distinguishes them, and random sequences
 * checked after every step. Tests named each_… run once for each policy. Hits on traces are in test_policy_small.c and
 * test_policy_trace.c.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "include/base/limits.h"
#include "tiering/policy.h"

#define OBJECTS 512

static const struct policy_ops *const policies[] = {&policy_lru,          &policy_s3fifo,   &policy_arc,
                                                    &policy_chain_hazard, &policy_adaptive, &policy_plan};

/* A policy, and what its caller knows of the objects: an object's hash is its index + 1. */
struct world {
    const struct policy_ops *ops;
    struct policy *policy;
    struct policy_node nodes[OBJECTS];
    uint32_t sectors[OBJECTS]; /* 0: not resident */
    enum policy_pin pins[OBJECTS];
    uint32_t n_resident;
    uint64_t used;
    uint64_t n_asked; /* calls of world_pin() */
};

static struct world world;

static void world_open(const struct policy_ops *ops, uint64_t capacity_sectors, uint32_t max_ghosts)
{
    world = (struct world){.ops = ops};
    struct policy_config config = {
        .nodes = POLICY_NODES(world.nodes),
        .n_nodes = OBJECTS,
        .capacity_sectors = capacity_sectors,
        .max_ghosts = max_ghosts,
    };

    ck_assert_int_eq(ops->new (&config, &world.policy), 0);
}

static void world_close(void)
{
    world.ops->free(world.policy);
}

static enum policy_pin world_pin(void *ctx, uint32_t obj)
{
    struct world *w = ctx;

    ck_assert_uint_lt(obj, OBJECTS);
    ck_assert_uint_gt(w->sectors[obj], 0);
    w->n_asked++;
    return w->pins[obj];
}

static uint32_t victim(uint64_t incoming)
{
    return world.ops->victim(world.policy, incoming, world_pin, &world);
}

static uint32_t coldest(uint32_t *ret_objs, uint32_t n)
{
    return world.ops->coldest(world.policy, ret_objs, n, world_pin, &world);
}

static void insert(uint32_t obj, uint32_t sectors)
{
    world.ops->insert(world.policy, obj, obj + 1, sectors);
    world.sectors[obj] = sectors;
    world.n_resident++;
    world.used += sectors;
}

static void gone(uint32_t obj)
{
    static const struct policy_node zero;

    ck_assert_mem_eq(&world.nodes[obj], &zero, sizeof(zero));
    world.used -= world.sectors[obj];
    world.n_resident--;
    world.sectors[obj] = 0;
    world.pins[obj] = POLICY_FREE;
}

static void evict(uint32_t obj)
{
    world.ops->evict(world.policy, obj, obj + 1, world.sectors[obj]);
    gone(obj);
}

static void discard(uint32_t obj)
{
    world.ops->remove(world.policy, obj, world.sectors[obj]);
    gone(obj);
}

static void hit(uint32_t obj)
{
    world.ops->hit(world.policy, obj);
}

static void miss(uint32_t obj)
{
    world.ops->miss(world.policy, 0, obj + 1, 1);
}

/* A reference as the daemon makes it. */
static void refer(uint32_t obj, uint32_t sectors, uint64_t capacity)
{
    if (world.sectors[obj] > 0) {
        hit(obj);
        return;
    }
    miss(obj);
    while (world.used + sectors > capacity) {
        uint32_t v = victim(obj + 1);

        if (v == POLICY_NONE)
            return;
        evict(v);
    }
    insert(obj, sectors);
}

static void verify(uint32_t max_ghosts)
{
    struct policy_stat stat;

    ck_assert_int_eq(world.ops->check(world.policy), 0);
    world.ops->stat(world.policy, &stat);
    ck_assert_uint_eq(stat.resident, world.n_resident);
    ck_assert_uint_eq(stat.resident_sectors, world.used);
    ck_assert_uint_le(stat.ghosts, max_ghosts + 1);
    ck_assert_uint_gt(stat.ghost_bytes, 0);
}

static uint64_t ghosts(void)
{
    struct policy_stat stat;

    world.ops->stat(world.policy, &stat);
    return stat.ghosts;
}

/* ── names ───────────────────────────────────────────────────────────────────────────────────────────────── */

START_TEST(names_find_their_policies)
{
    const char *const *names = policy_names();
    size_t n = 0;

    for (; names[n]; n++) {
        const struct policy_ops *ops = policy_by_name(names[n]);

        ck_assert_ptr_nonnull(ops);
        ck_assert_str_eq(ops->name, names[n]);
    }
    ck_assert_uint_eq(n, ARRAY_LEN(policies));
    ck_assert_ptr_null(policy_by_name("LRU"));
    ck_assert_ptr_null(policy_by_name(""));
}
END_TEST

/* ── what each promises ──────────────────────────────────────────────────────────────────────────────────────────── */

START_TEST(each_starts_empty)
{
    uint32_t obj;

    world_open(policies[_i], 100, 100);
    ck_assert_uint_eq(victim(0), POLICY_NONE);
    ck_assert_uint_eq(coldest(&obj, 1), 0);
    miss(1);
    verify(100);
    world_close();
    policies[_i]->free(NULL);
}
END_TEST

START_TEST(each_gives_up_everything)
{
    world_open(policies[_i], 100, 100);
    for (uint32_t i = 0; i < 10; i++)
        insert(i, 1 + i);
    for (uint32_t i = 0; i < 10; i += 2)
        hit(i), hit(i), hit(i);
    for (uint32_t i = 0; i < 10; i++) {
        uint32_t v = victim(0);

        ck_assert_uint_ne(v, POLICY_NONE);
        evict(v);
        verify(100);
    }
    ck_assert_uint_eq(victim(0), POLICY_NONE);
    world_close();
}
END_TEST

/* Small and large objects take each other's place, and the sums stay right; one is as large as all the capacity. */
START_TEST(each_counts_sectors)
{
    const uint64_t capacity = 64;

    world_open(policies[_i], capacity, 100);
    for (uint32_t i = 0; i < 64; i++)
        refer(i, 1, capacity);
    ck_assert_uint_eq(world.used, 64);
    refer(100, 64, capacity);
    ck_assert_uint_eq(world.n_resident, 1);
    verify(100);
    refer(101, 63, capacity);
    refer(102, 1, capacity);
    ck_assert_uint_eq(world.n_resident, 2);
    refer(100, 64, capacity); /* comes back as a ghost, perhaps */
    refer(3, 1, capacity);
    ck_assert_uint_eq(world.n_resident, 1);
    verify(100);
    world_close();
}
END_TEST

/* Objects in every queue: new, asked for often, promoted, back from being a ghost. */
static void fill_all_queues(uint64_t capacity)
{
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < 40; i++) {
            refer(i, 1 + i % 3, capacity);
            for (uint32_t j = 0; j < i % 4; j++)
                refer(i, 1 + i % 3, capacity);
        }
    }
    for (uint32_t i = 100; i < 104; i++)
        refer(i, 1, capacity);
}

START_TEST(each_lets_any_object_be_removed)
{
    const uint64_t capacity = 60;
    uint64_t ghosts_before;

    /* Each object alone out of the full queues, then all of them from either end. */
    for (uint32_t obj = 0; obj < 104; obj++) {
        world_open(policies[_i], capacity, 100);
        fill_all_queues(capacity);
        if (world.sectors[obj] > 0) {
            ghosts_before = ghosts();
            discard(obj);
            ck_assert_uint_eq(ghosts(), ghosts_before);
            verify(100);
            insert(obj, 5); /* as if it had never been there */
            verify(100);
        }
        world_close();
    }
    for (int down = 0; down < 2; down++) {
        world_open(policies[_i], capacity, 100);
        fill_all_queues(capacity);
        for (uint32_t i = 0; i < OBJECTS; i++) {
            uint32_t obj = down ? OBJECTS - 1 - i : i;

            if (world.sectors[obj] > 0)
                discard(obj);
            verify(100);
        }
        ck_assert_uint_eq(world.n_resident, 0);
        ck_assert_uint_eq(victim(0), POLICY_NONE);
        world_close();
    }
}
END_TEST

START_TEST(each_passes_over_the_pinned)
{
    uint32_t objs[40];

    world_open(policies[_i], 40, 40);
    for (uint32_t i = 0; i < 40; i++)
        insert(i, 1);
    for (uint32_t i = 0; i < 40; i++)
        world.pins[i] = i % 2 ? POLICY_HELD : POLICY_BUSY;
    ck_assert_uint_eq(victim(0), POLICY_NONE);
    ck_assert_uint_eq(coldest(objs, 40), 0);
    verify(40);

    world.pins[31] = POLICY_FREE;
    ck_assert_uint_eq(coldest(objs, 40), 1);
    ck_assert_uint_eq(objs[0], 31);
    ck_assert_uint_eq(victim(0), 31);
    ck_assert_uint_eq(victim(0), 31); /* naming is not evicting */
    evict(31);
    ck_assert_uint_eq(victim(0), POLICY_NONE);
    verify(40);
    world_close();
}
END_TEST

/* A busy object keeps its place, a held one loses its turn. */
START_TEST(each_moves_the_held_alone)
{
    world_open(policies[_i], 4, 4);
    for (uint32_t i = 0; i < 4; i++)
        insert(i, 1);
    world.pins[0] = POLICY_BUSY;
    world.pins[1] = POLICY_HELD;
    ck_assert_uint_eq(victim(0), 2);
    world.pins[0] = world.pins[1] = POLICY_FREE;
    ck_assert_uint_eq(victim(0), 0);
    evict(0);
    ck_assert_uint_eq(victim(0), 2);
    evict(2);
    ck_assert_uint_eq(victim(0), 3);
    evict(3);
    ck_assert_uint_eq(victim(0), 1);
    world_close();
}
END_TEST

/* One call looks at a bounded number of pinned objects; calling again gets past the held ones. */
START_TEST(each_bounds_a_search)
{
    uint32_t calls = 0, v;

    world_open(policies[_i], OBJECTS, OBJECTS);
    for (uint32_t i = 0; i < OBJECTS; i++)
        insert(i, 1);
    for (uint32_t i = 0; i < OBJECTS - 1; i++)
        world.pins[i] = POLICY_HELD;
    do {
        world.n_asked = 0;
        v = victim(0);
        ck_assert_uint_le(world.n_asked, 3 * (POLICY_SCAN_MAX + 1));
        calls++;
    } while (v == POLICY_NONE && calls <= OBJECTS / POLICY_SCAN_MAX);
    ck_assert_uint_eq(v, OBJECTS - 1);
    ck_assert_uint_gt(calls, 1);
    verify(OBJECTS);
    world_close();
}
END_TEST

START_TEST(each_bounds_its_ghosts)
{
    struct policy_stat before, after;

    world_open(policies[_i], 200, 16);
    world.ops->stat(world.policy, &before);
    for (uint32_t i = 0; i < 10 * OBJECTS; i++) {
        refer(i * 7 % OBJECTS, 1 + i % 2, 200);
        verify(16);
    }
    world.ops->stat(world.policy, &after);
    ck_assert_uint_eq(before.ghost_bytes, after.ghost_bytes);
    world_close();

    world_open(policies[_i], 50, 0);
    for (uint32_t i = 0; i < 2 * OBJECTS; i++)
        refer(i * 7 % OBJECTS, 1, 50);
    ck_assert_uint_eq(ghosts(), 0);
    world_close();

    struct policy_config config = {.nodes = POLICY_NODES(world.nodes), .n_nodes = OBJECTS, .max_ghosts = UINT32_MAX};
    struct policy *policy = NULL;
    int r = policies[_i]->new (&config, &policy);

    ck_assert(policies[_i] == &policy_lru ? r == 0 : r == -EINVAL);
    policies[_i]->free(policy);
}
END_TEST

START_TEST(each_resizes)
{
    static const uint64_t capacities[] = {60, 30, 9, 1, 0, 5, 200};

    world_open(policies[_i], 60, 100);
    for (size_t i = 0; i < ARRAY_LEN(capacities); i++) {
        world.ops->resize(world.policy, capacities[i]);
        verify(100);
        while (world.used > capacities[i])
            evict(victim(0));
        verify(100);
        for (uint32_t obj = 0; obj < 300; obj++)
            refer(obj % 90, 1 + obj % 3, MAX(capacities[i], UINT64_C(3)));
        verify(100);
    }
    world_close();
}
END_TEST

/* ── what distinguishes them ─────────────────────────────────────────────────────────────────────────────────────── */

START_TEST(lru_keeps_the_recent)
{
    uint32_t objs[3];

    world_open(&policy_lru, 3, 0);
    for (uint32_t i = 0; i < 3; i++)
        insert(i, 1);
    hit(0);
    ck_assert_uint_eq(coldest(objs, 3), 3);
    ck_assert_uint_eq(objs[0], 1);
    ck_assert_uint_eq(objs[1], 2);
    ck_assert_uint_eq(objs[2], 0);
    world_close();
}
END_TEST

/* Two hits save an object in the small queue, one does not; a ghost that comes back stays. */
START_TEST(s3fifo_promotes_what_was_asked_for_twice)
{
    world_open(&policy_s3fifo, 10, 10);
    for (uint32_t i = 0; i < 10; i++)
        insert(i, 1);
    hit(0), hit(0), hit(1);
    ck_assert_uint_eq(victim(0), 1);
    evict(1);
    ck_assert_uint_eq(ghosts(), 1);
    insert(1, 1);
    ck_assert_uint_eq(ghosts(), 0);
    for (uint32_t i = 2; i < 10; i++) {
        ck_assert_uint_eq(victim(0), i);
        evict(i);
    }
    ck_assert_uint_eq(victim(0), 0); /* the main queue: in order of arrival, and without ghosts */
    evict(0);
    ck_assert_uint_eq(ghosts(), 8);
    ck_assert_uint_eq(victim(0), 1);
    world_close();
}
END_TEST

/* A scan passes through T1 and leaves T2 alone. */
START_TEST(arc_resists_a_scan)
{
    world_open(&policy_arc, 10, 10);
    for (uint32_t i = 0; i < 5; i++)
        refer(i, 1, 10), refer(i, 1, 10);
    for (uint32_t i = 100; i < 200; i++)
        refer(i, 1, 10);
    for (uint32_t i = 0; i < 5; i++)
        ck_assert_uint_gt(world.sectors[i], 0);
    verify(10);
    world_close();
}
END_TEST

/* A ghost of B1 that is asked for makes T1 larger, once; its return is a second use. */
START_TEST(arc_adapts_once_a_ghost)
{
    world_open(&policy_arc, 4, 4);
    for (uint32_t i = 0; i < 2; i++)
        refer(i, 1, 4), refer(i, 1, 4); /* T2: 0 1 */
    for (uint32_t i = 2; i < 5; i++)
        refer(i, 1, 4); /* T1: 3 4, B1: 2 */
    ck_assert_uint_eq(ghosts(), 1);
    ck_assert_uint_eq(victim(0), 3);
    miss(2); /* target 1: T1 is still the longer */
    ck_assert_uint_eq(victim(0), 3);
    for (int i = 0; i < 10; i++)
        miss(2); /* not 2, or T2 would be due */
    ck_assert_uint_eq(victim(0), 3);
    evict(3);
    ck_assert_uint_eq(victim(0), 0); /* T1 is as long as its target */
    insert(2, 1);                    /* T2: 0 1 2 */
    ck_assert_uint_eq(ghosts(), 1);
    discard(4);
    ck_assert_uint_eq(victim(0), 0);
    evict(0);
    ck_assert_uint_eq(victim(0), 1);
    world_close();
}
END_TEST

/* ── random sequences ────────────────────────────────────────────────────────────────────────────────────────────── */

static uint64_t rnd_state;

static uint32_t rnd(uint32_t n)
{
    rnd_state = rnd_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)((rnd_state >> 33) % n);
}

/* An object that is often one of a few. */
static uint32_t rnd_obj(void)
{
    return rnd(3) > 0 ? rnd(30) : rnd(OBJECTS);
}

static void check_first_coldest(void)
{
    uint32_t first;
    uint32_t n = coldest(&first, 1);
    uint32_t v = victim(0);

    ck_assert_uint_eq(n, world.n_resident > 0);
    ck_assert_uint_eq(v, n > 0 ? first : POLICY_NONE);
}

static void random_step(uint64_t *capacity, bool pins)
{
    uint32_t obj = rnd_obj(), dice = rnd(100), v;

    if (dice < 70) {
        refer(obj, 4 + obj % 13, *capacity);
    } else if (dice < 80) {
        if (world.sectors[obj] > 0)
            discard(obj);
    } else if (dice < 84) {
        v = victim(0);
        if (v != POLICY_NONE)
            evict(v);
    } else if (dice < 88) {
        miss(obj);
    } else if (dice < 92 && world.sectors[obj] == 0 && world.used < *capacity) {
        insert(obj, 4 + rnd(13)); /* over the capacity now, and of another size than before */
    } else if (dice < 94) {
        *capacity = 100 + rnd(150);
        world.ops->resize(world.policy, *capacity);
    } else if (pins && world.sectors[obj] > 0) {
        world.pins[obj] = (enum policy_pin)rnd(3);
    }
}

START_TEST(each_stands_random_use)
{
    for (uint64_t seed = 1; seed <= 40; seed++) {
        bool pins = seed % 2 == 0;
        uint64_t capacity = 250;

        rnd_state = seed * 7919;
        world_open(policies[_i], capacity, 24);
        for (uint32_t step = 0; step < 1500; step++) {
            random_step(&capacity, pins);
            verify(24);
            if (!pins && step % 3 == 0)
                check_first_coldest();
        }
        world_close();
    }
}
END_TEST

/* coldest() gives every free object once, whatever the order. */
START_TEST(each_lists_all_that_is_cold)
{
    uint32_t objs[OBJECTS];
    bool seen[OBJECTS] = {0};
    uint32_t n;

    world_open(policies[_i], 60, 100);
    fill_all_queues(60);
    n = coldest(objs, OBJECTS);
    ck_assert_uint_eq(n, world.n_resident);
    for (uint32_t i = 0; i < n; i++) {
        ck_assert(!seen[objs[i]] && world.sectors[objs[i]] > 0);
        seen[objs[i]] = true;
    }
    ck_assert_uint_eq(coldest(objs, 3), 3);
    world_close();
}
END_TEST

int main(void)
{
    const TTest *const each[] = {
        each_starts_empty,
        each_gives_up_everything,
        each_counts_sectors,
        each_lets_any_object_be_removed,
        each_passes_over_the_pinned,
        each_moves_the_held_alone,
        each_bounds_a_search,
        each_bounds_its_ghosts,
        each_resizes,
        each_stands_random_use,
        each_lists_all_that_is_cold,
    };
    Suite *s = suite_create("policy");
    TCase *tc = tcase_create("policies");

    tcase_set_timeout(tc, 60);
    for (size_t i = 0; i < ARRAY_LEN(each); i++)
        tcase_add_loop_test(tc, each[i], 0, ARRAY_LEN(policies));
    tcase_add_test(tc, names_find_their_policies);
    tcase_add_test(tc, lru_keeps_the_recent);
    tcase_add_test(tc, s3fifo_promotes_what_was_asked_for_twice);
    tcase_add_test(tc, arc_resists_a_scan);
    tcase_add_test(tc, arc_adapts_once_a_ghost);
    suite_add_tcase(s, tc);

    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
