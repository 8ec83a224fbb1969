/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client that changes its SQEs and items after it has submitted them, against a real daemon: a second thread rewrites
 * every slot all the time, with values that are right and values that reach outside. Whatever the daemon copied is what
 * it must have checked and used: each request is answered once, with what one of the values allows; what is granted is
 * the object's own range; nobody else notices. 10^8 requests with SPILLWAY_LONG=1 (`./dev torture`), 10^6 without.
 *
 * Values that break the protocol are not among them, since they would end the session (test_daemon_hostile.c).
 */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "include/base/atomic.h"
#include "include/base/base.h"
#include "tests/system/support/rawclient.h"

#define SLOTS 1024 /* entries of the racing ring: a request's slot is its number */
#define OBJECT_BYTES 4096
#define RESULT_STRIDE 128 /* room for three: a range may cross the border of a piece */
#define PROGRESS UINT64_C(10000000)

static struct raw_daemon d;
static struct raw_session good, bad;
/* Of the bad one. The racer knows the first; leases go back through the other. */
static struct raw_ring racing, quiet;

static uint32_t race_stop;
static uint64_t n_mutations; /* of a slot; the racer's */

/* --- The racer --------------------------------------------------------------------------------------------------- */

/* Either what belongs there, or what must be refused. Never what another slot uses: the answers are checked. */
static void mutate(uint32_t i, uint32_t x)
{
    volatile struct spw_sqe *sqe = &racing.sqes[i];
    volatile struct spw_item *item = &raw_items(&racing)[i];
    static const uint32_t n_items[] = {1, 0, 0x7fffffff, SPW_LIST_MAX + 1};
    const uint32_t items[] = {i * (uint32_t)sizeof(*item), 1, UINT32_MAX & ~63U, (uint32_t)racing.scratch_bytes};
    const uint32_t results[] = {RAW_RESULTS + i * RESULT_STRIDE, 8, UINT32_MAX & ~63U,
                                (uint32_t)racing.scratch_bytes & ~63U};

    /* Of several pieces: far more than have room, never a few, whose results would lie on the next slot's. */
    const uint64_t lengths[] = {OBJECT_BYTES, OBJECT_BYTES + 1, 0, UINT64_C(1) << 62 | x};

    sqe->n_items = n_items[x & 1 ? 0 : x >> 1 & 3];
    sqe->items = items[x >> 3 & 1 ? 0 : x >> 4 & 3];
    sqe->results = results[x >> 6 & 1 ? 0 : x >> 7 & 3];
    item->length_bytes = lengths[x >> 9 & 1 ? 0 : x >> 10 & 3];
    item->offset_bytes = x >> 12 & 1 ? 0 : UINT64_MAX - x;
    item->key_len = (uint8_t)(x >> 13 & 1 ? 8 : x >> 14);
}

static void *race_main(void *arg)
{
    uint32_t x = 12345;

    (void)arg;
    while (!load_relaxed(&race_stop)) {
        for (uint32_t i = 0; i < SLOTS; i++) {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            mutate(i, x);
        }
        n_mutations += SLOTS;
    }
    return NULL;
}

/* --- The requests ------------------------------------------------------------------------------------------------ */

static struct spw_result *result_of(uint32_t i)
{
    return (void *)(racing.scratch + RAW_RESULTS + i * RESULT_STRIDE);
}

/* All with one store of the tail, and one doorbell at most. */
static void submit_all(uint8_t opcode, uint64_t round)
{
    const struct spw_item item = raw_item(7, OBJECT_BYTES);

    for (uint32_t i = 0; i < SLOTS; i++) {
        struct spw_sqe sqe = raw_sqe(&bad, opcode, 1);

        sqe.user_data = round * SLOTS + i;
        sqe.items = i * (uint32_t)sizeof(struct spw_item);
        sqe.results = RAW_RESULTS + i * RESULT_STRIDE;
        raw_items(&racing)[i] = item;
        *result_of(i) = (struct spw_result){.status = 1};
        if (i == SLOTS - 1)
            raw_submit(&racing, &sqe);
        else
            racing.sqes[racing.sq_tail++ & (SLOTS - 1)] = sqe;
    }
}

/* A ck_assert() that holds costs a system call, and here are several for each request. */
#define REQUIRE(cond, ...)                                                                                             \
    do {                                                                                                               \
        if (!(cond))                                                                                                   \
            ck_abort_msg(__VA_ARGS__);                                                                                 \
    } while (0)

/* What one answer may be. Returns the lease that came with it, 0 for none. */
static uint64_t check_answer(uint8_t opcode, uint32_t i, const struct spw_cqe *cqe)
{
    const struct spw_result *result = result_of(i);

    if (cqe->status < 0) { /* refused as a whole: nothing was written */
        REQUIRE(cqe->status == -EINVAL || cqe->status == -ERANGE || cqe->status == -E2BIG || cqe->status == -EOVERFLOW,
                "status %d", cqe->status); /* E2BIG, EOVERFLOW: the results of such a range have no place */
        REQUIRE(result->status == 1, "slot %u was refused with %d, and has a result: status %d, %llu bytes", i,
                cqe->status, result->status, (unsigned long long)result->length_bytes);
        return 0;
    }
    REQUIRE(cqe->status == 0 && cqe->value == (result->status == 0), "status %d, %llu granted, the item has %d",
            cqe->status, (unsigned long long)cqe->value, result->status);
    if (result->status < 0) {
        REQUIRE(result->status == -EINVAL || result->status == -ERANGE || result->status == -ENOENT,
                "status %d of an item", result->status);
        return 0;
    }
    REQUIRE(result->length_bytes == OBJECT_BYTES && (result->lease != 0) == (opcode == SPW_OP_ACQUIRE),
            "%llu bytes, lease %llu", (unsigned long long)result->length_bytes, (unsigned long long)result->lease);
    return result->lease;
}

/* Returns how many were granted. */
static uint32_t collect_all(uint8_t opcode, uint64_t round)
{
    bool seen[SLOTS] = {0};
    uint32_t n = 0;

    for (uint32_t k = 0; k < SLOTS; k++) {
        struct spw_cqe cqe;

        REQUIRE(raw_wait(&racing, &cqe, 60000), "a request was not answered");
        uint32_t i = (uint32_t)(cqe.user_data % SLOTS);
        REQUIRE(cqe.user_data / SLOTS == round && !seen[i], "request %llu was answered in round %llu",
                (unsigned long long)cqe.user_data, (unsigned long long)round);
        seen[i] = true;
        uint64_t lease = check_answer(opcode, i, &cqe);
        if (lease)
            raw_handles(&quiet)[n] = (struct spw_handle){.lease = lease};
        n += lease != 0 || (opcode == SPW_OP_LOOKUP && cqe.status == 0 && cqe.value == 1);
    }
    return n;
}

static void release_all(uint32_t n)
{
    struct spw_sqe sqe = raw_sqe(&bad, SPW_OP_RELEASE, n);

    struct spw_cqe cqe = raw_call(&quiet, &sqe);
    ck_assert_int_eq(cqe.status, 0);
    ck_assert_uint_eq(cqe.value, n);
}

/* --- The test ---------------------------------------------------------------------------------------------------- */

START_TEST(test_race)
{
    const char *is_long = getenv("SPILLWAY_LONG");
    uint64_t n_rounds = (is_long && *is_long ? UINT64_C(100000000) : UINT64_C(1000000)) / SLOTS + 1;
    uint64_t n_granted = 0, next_line = PROGRESS;
    time_t start = time(NULL);
    pthread_t thread;

    ck_assert_int_eq(pthread_create(&thread, NULL, race_main, NULL), 0);
    for (uint64_t round = 0; round < n_rounds; round++) {
        uint8_t opcode = round & 1 ? SPW_OP_ACQUIRE : SPW_OP_LOOKUP;

        submit_all(opcode, round);
        uint32_t n = collect_all(opcode, round);
        n_granted += n;
        if (n > 0 && opcode == SPW_OP_ACQUIRE)
            release_all(n);
        if (round % 1024 == 0)
            ck_assert_int_eq(raw_get(&good, 1, 10000, 0x11), 0);
        if ((round + 1) * SLOTS >= next_line) {
            printf("%llu requests raced, %llu of them granted, after %lld s\n",
                   (unsigned long long)((round + 1) * SLOTS), (unsigned long long)n_granted,
                   (long long)(time(NULL) - start));
            fflush(stdout);
            next_line += PROGRESS;
        }
    }
    store_relaxed(&race_stop, 1);
    pthread_join(thread, NULL);
    printf("%llu requests, %llu granted; their slots were rewritten %llu times\n",
           (unsigned long long)(n_rounds * SLOTS), (unsigned long long)n_granted, (unsigned long long)n_mutations);
    /* It was a race: some were as they should be, most were not. */
    ck_assert_uint_gt(n_granted, 0);
    ck_assert_uint_lt(n_granted, n_rounds * SLOTS);
    ck_assert_uint_eq(raw_admin_number(&d, "status", "violations"), 0);
}
END_TEST

static void setup(void)
{
    char sections[160];

    snprintf(sections, sizeof(sections), "[tier.dram]\nsize = 128 MiB\n[pool default]\nusers = %u\n", getuid());
    raw_daemon_start(&d, "engines = 1", sections);
    raw_session_full(&good, &d, "default", 1, 0);
    ck_assert_int_eq(raw_put(&good, 1, 10000, 0x11), 0);
    raw_session_full(&bad, &d, "default", 2, 0);
    ck_assert_int_eq(raw_put(&bad, 7, OBJECT_BYTES, 0x22), 0);
    ck_assert_int_eq(raw_ring_new(&bad, &quiet, SLOTS, RAW_SCRATCH_BYTES), 0);
    ck_assert_int_eq(raw_ring_new(&bad, &racing, SLOTS, RAW_SCRATCH_BYTES), 0);
    ck_assert_uint_eq(racing.sq_entries, SLOTS);
}

static void teardown(void)
{
    ck_assert_int_eq(raw_get(&bad, 7, OBJECT_BYTES, 0x22), 0);
    ck_assert_int_eq(raw_get(&good, 1, 10000, 0x11), 0);
    raw_ring_unmap(&quiet);
    raw_ring_unmap(&racing);
    raw_session_close(&bad);
    raw_session_close(&good);
    ck_assert(raw_admin_becomes(&d, "status", "peers", 0));
    ck_assert_uint_eq(raw_admin_number(&d, "pools", "leased_bytes"), 0);
    raw_daemon_end(&d);
}

int main(void)
{
    Suite *suite = suite_create("race_torture");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 0);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_race);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
