/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Crashes at random places, from seeds: random puts, drops, syncs and transactions on a simulated disk, power cut (or
 * only the process killed), opened again, everything compared with the owner's histories, on and on. After each seed:
 * what was synced is there with its bytes, nothing has wrong bytes, nothing that was dropped and synced is back.
 *
 * STORE_SEEDS=n runs n seeds of each kind, STORE_SEED=x one seed.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/unit/support/owner.h"

#define DEVICE_BYTES (20 * MIB)
#define DEFAULT_SEEDS 150

struct shape {
    const char *name;
    uint32_t n_ids, size_max_bytes, ops, crashes;
    uint32_t sync_every, key_len;
    struct simdisk_faults faults;
};

static const struct shape shapes[] = {
    {.name = "mixed",
     .n_ids = 60,
     .size_max_bytes = 160 * 1024,
     .ops = 150,
     .crashes = 4,
     .sync_every = 20,
     .key_len = 16},
    {.name = "small, the log's ring turns",
     .n_ids = 300,
     .size_max_bytes = 4096,
     .ops = 1500,
     .crashes = 3,
     .sync_every = 6,
     .key_len = 32},
    {.name = "short counts",
     .n_ids = 60,
     .size_max_bytes = 160 * 1024,
     .ops = 120,
     .crashes = 3,
     .sync_every = 20,
     .key_len = 4,
     .faults = {.short_count = 300000}},
    {.name = "reads and writes fail",
     .n_ids = 60,
     .size_max_bytes = 160 * 1024,
     .ops = 120,
     .crashes = 3,
     .sync_every = 20,
     .key_len = 4,
     .faults = {.write_error = 10000, .read_error = 20000, .work_fault = 10000, .flush_error = 10000}},
};

static void random_op(struct simdisk *disk, struct owner *o, const struct shape *shape)
{
    uint32_t id = (uint32_t)simdisk_below(disk, o->n_ids);

    if (o->objects[id].n_history > OWNER_HISTORY_MAX / 2)
        (void)owner_sync(o);
    switch (simdisk_below(disk, 12)) {
    case 0:
    case 1:
        owner_drop(o, id);
        break;
    case 2:
        if (o->objects[id].version && !o->failed)
            (void)owner_check(o, id);
        break;
    case 3:
        if (owner_txn_begin(o) && o->n_txn_started < OWNER_TXN_PUTS_MAX)
            (void)owner_put(o, id, true);
        break;
    case 4:
        if (o->txn && o->n_txn_writing == 0)
            owner_txn_commit(o);
        break;
    default:
        (void)owner_put(o, id, false);
    }
    if (simdisk_below(disk, shape->sync_every) == 0)
        (void)owner_sync(o);
    if (simdisk_below(disk, 3) == 0)
        owner_turn(o);
}

static void run_seed(uint64_t seed, const struct shape *shape)
{
    const char *why = "";
    struct simdisk *disk = simdisk_new(seed * 16 + (uint64_t)(shape - shapes));
    uint32_t dev = simdisk_device_add(disk, DEVICE_BYTES);
    struct owner *o = owner_new(disk, dev, DEVICE_BYTES, shape->n_ids);

    o->size_max_bytes = shape->size_max_bytes;
    o->key_len = shape->key_len;
    o->n_pools = 1 + (uint32_t)(seed % 3);
    o->budget_bytes = DEVICE_BYTES / o->n_pools;
    ck_assert_int_eq(owner_format(o, MIB, seed), 0);
    for (uint32_t crash = 0; crash < shape->crashes; crash++) {
        *simdisk_faults(disk) = (struct simdisk_faults){0};
        int r = owner_open(o, &why);
        ck_assert_msg(r == 0, "seed %llu, %s: open gave %d: %s", (unsigned long long)seed, shape->name, r, why);
        owner_check_all(o, crash > 0);
        ck_assert_msg(o->n_wrong == 0 && o->n_lost == 0, "seed %llu, %s, crash %u: %llu wrong, %llu lost",
                      (unsigned long long)seed, shape->name, crash, (unsigned long long)o->n_wrong,
                      (unsigned long long)o->n_lost);
        *simdisk_faults(disk) = shape->faults;
        for (uint64_t n = 1 + simdisk_below(disk, shape->ops * 2); n > 0; n--)
            random_op(disk, o, shape);
        uint64_t kind = simdisk_below(disk, 8);
        if (kind == 0 && shape->faults.write_error == 0)
            ck_assert_int_eq(owner_close(o), 0);
        else
            owner_crash(o, kind > 1);
    }
    owner_free(o);
    simdisk_free(disk);
}

START_TEST(seeds)
{
    const char *n = getenv("STORE_SEEDS"), *one = getenv("STORE_SEED");
    uint64_t n_seeds = n ? strtoull(n, NULL, 0) : DEFAULT_SEEDS;

    if (one) {
        run_seed(strtoull(one, NULL, 0), &shapes[_i]);
        return;
    }
    for (uint64_t seed = 1; seed <= n_seeds; seed++)
        run_seed(seed, &shapes[_i]);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("store_crash");
    TCase *tc = tcase_create("seeds");

    tcase_set_timeout(tc, 0);
    tcase_add_loop_test(tc, seeds, 0, ARRAY_LEN(shapes));
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
