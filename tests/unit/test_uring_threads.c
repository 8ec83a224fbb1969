/* SPDX-License-Identifier: Apache-2.0 */
/* The real backend and its threads: the engine's own, workers, grower, and whoever wakes it. Run under TSan as well. */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "io/checksum.h"
#include "io/uring.h"
#include "tests/unit/support/uring_rig.h"

/* Set up by one thread, run by another: SINGLE_ISSUER binds when the ring is enabled. */
static void *engine_main(void *arg)
{
    struct uring *u = arg;
    uint16_t dev;
    struct io_buf bounce;
    void *mem;

    ck_assert_int_eq(uring_start(u), 0);
    ck_assert_int_eq(uring_device_add(u, &rig_disk, 0, &dev), 0);
    ck_assert_int_eq(uring_backend(u)->ops->bounce_alloc(uring_backend(u), 2 * MIB, &bounce, &mem), 0);
    rig_round_trip(u, dev, bounce.region);
    return NULL;
}

START_TEST(test_another_thread_is_the_engine)
{
    struct uring *u = rig_make_with((struct uring_config){0});
    pthread_t thread;

    ck_assert_int_eq(pthread_create(&thread, NULL, engine_main, u), 0);
    pthread_join(thread, NULL);
    uring_free(u);
}
END_TEST
/* --- Sleeping and waking ----------------------------------------------------------------------------------------- */

START_TEST(test_no_system_call_when_there_is_nothing_to_do)
{
    struct uring *u = rig_make();

    uring_run(u, 0);
    uint64_t enters = rig_stat(u).enters;
    for (int i = 0; i < 1000; i++)
        ck_assert_int_eq(uring_run(u, 0), 0);
    ck_assert_uint_eq(rig_stat(u).enters, enters);
    ck_assert_int_eq(uring_run(u, 1000), 0); /* a timeout is no event */
    ck_assert_uint_eq(rig_stat(u).sleeps, 1);
    uring_free(u);
}
END_TEST

struct ping {
    struct engine_msg msg;
    struct uring *u;
};

static uint32_t n_pings;

static void run_ping(struct engine_msg *msg)
{
    (void)msg;
    store_release(&n_pings, n_pings + 1);
}

#define N_PINGS 2000

static void *pinger_main(void *arg)
{
    struct ping *pings = arg;

    for (uint32_t i = 0; i < N_PINGS; i++) {
        pings[i].msg.run = run_ping;
        engine_queue_post(uring_queue(pings[i].u), &pings[i].msg);
        if (i % 3 == 0)
            while (load_acquire(&n_pings) <= i) /* gives the engine time to fall asleep */
                sched_yield();
    }
    return NULL;
}

/* Sleeps for ever each time: one lost wake-up and the test hangs. */
START_TEST(test_messages_wake_the_engine)
{
    struct uring *u = rig_make();
    struct ping *pings = calloc(N_PINGS, sizeof(*pings));
    pthread_t thread;

    n_pings = 0;
    for (uint32_t i = 0; i < N_PINGS; i++)
        pings[i].u = u;
    ck_assert_int_eq(pthread_create(&thread, NULL, pinger_main, pings), 0);
    while (n_pings < N_PINGS)
        ck_assert_int_ge(uring_run(u, URING_SLEEP_FOR_EVER), 0);
    pthread_join(thread, NULL);
    ck_assert_uint_eq(rig_stat(u).messages, N_PINGS);
    uring_free(u);
    free(pings);
}
END_TEST
/* --- Workers and chunks ------------------------------------------------------------------------------------------ */

START_TEST(test_work)
{
    struct uring *u = rig_make_with((struct uring_config){.works_max = 4});
    static struct io_work works[50];
    static uint64_t sums[50][16];
    uint64_t expected[16];
    struct io_buf b;
    char *mem;

    ck_assert_int_eq(uring_start(u), 0);
    ck_assert_int_eq(uring_backend(u)->ops->bounce_alloc(uring_backend(u), 64 * MIB, &b, (void **)&mem), 0);
    for (uint32_t i = 0; i < MIB; i++)
        mem[i] = (char)(i * 13 + (i >> 8));
    for (uint32_t i = 0; i < ARRAY_LEN(works); i++) {
        works[i] = (struct io_work){.op = (uint8_t)(i % 3),
                                    .len_bytes = 1000 + i * 20000,
                                    .seed = i,
                                    .sums = sums[i],
                                    .src = b,
                                    .dst = {.region = b.region, .off = (1 + i) * MIB}};
        rig_submit_work(u, &works[i]);
    }
    works[7].src.off = 0;
    struct io_work bad = works[0];
    bad.src.off = 64 * MIB - 10;
    rig_submit_work(u, &bad);
    struct io_work none = works[0];
    none.op = IO_WORK_HASH, none.sums = NULL;
    rig_submit_work(u, &none);
    ck_assert_uint_eq(rig_done, 0);
    rig_run_until(u, &rig_done, ARRAY_LEN(works) + 2);
    ck_assert_int_eq(bad.result, -EINVAL);
    ck_assert_int_eq(none.result, -EINVAL);
    for (uint32_t i = 0; i < ARRAY_LEN(works); i++) {
        ck_assert_int_eq(works[i].result, 0);
        checksum_granules(i, 0, mem, works[i].len_bytes, expected);
        if (works[i].op != IO_WORK_COPY)
            ck_assert_mem_eq(sums[i], expected, checksum_granule_count(works[i].len_bytes) * sizeof(uint64_t));
        if (works[i].op != IO_WORK_HASH)
            ck_assert_mem_eq(mem + (1 + i) * MIB, mem, works[i].len_bytes);
    }
    ck_assert(uring_is_idle(u));
    uring_free(u);
}
END_TEST

/* The engine does small ones itself, some in a turn; when more come than it may have, workers get the rest. */
START_TEST(test_small_works_are_done_here)
{
    enum { N_HERE = WORK_HERE_QUEUE_BYTES / GRANULE_BYTES, N = N_HERE + 5 };
    struct uring *u = rig_make();
    static struct io_work works[N];
    static uint64_t sums[N][16];
    struct io_buf b;
    char *mem;

    ck_assert_int_eq(uring_backend(u)->ops->bounce_alloc(uring_backend(u), 4 * MIB, &b, (void **)&mem), 0);
    memset(mem, 7, MIB);
    for (uint32_t i = 0; i < N; i++) {
        works[i] =
            (struct io_work){.op = IO_WORK_HASH, .len_bytes = GRANULE_BYTES, .seed = i, .src = b, .sums = sums[i]};
        if (i == 0) /* a very large copy is never for the engine */
            works[i] = (struct io_work){.op = IO_WORK_COPY,
                                        .len_bytes = WORK_HERE_COPY_BYTES_MAX + SECTOR_BYTES,
                                        .src = b,
                                        .dst = {.region = b.region, .off = b.off + 2 * MIB}};
        rig_submit_work(u, &works[i]);
    }
    ck_assert_uint_eq(rig_done, 0);
    ck_assert_int_ge(uring_run(u, 0), 1);
    ck_assert_uint_eq(rig_stat(u).works_here, WORK_HERE_TURN_BYTES / GRANULE_BYTES);
    rig_run_until(u, &rig_done, N);
    ck_assert_uint_eq(rig_stat(u).works_here, N_HERE);
    ck_assert_uint_eq(rig_stat(u).works, N);
    for (uint32_t i = 1; i < N; i++)
        ck_assert_uint_eq(sums[i][0], checksum_granule(i, 0, mem, GRANULE_BYTES));
    ck_assert(uring_is_idle(u));
    uring_free(u);
}
END_TEST

/* A large one it hashes in steps, if it has nothing else; a second one is the workers'. */
START_TEST(test_a_large_hash_is_done_here_in_steps)
{
    enum { LEN = 2 * MIB + 5000, STEPS = (LEN + WORK_HERE_TURN_BYTES - 1) / WORK_HERE_TURN_BYTES };
    struct uring *u = rig_make();
    uint64_t sums[3][4 * MIB / GRANULE_BYTES], expected[STEPS];
    struct io_work works[3];
    uint32_t n_turns = 0;
    struct io_buf b;
    char *mem;

    ck_assert_int_eq(uring_backend(u)->ops->bounce_alloc(uring_backend(u), 4 * MIB, &b, (void **)&mem), 0);
    for (uint32_t i = 0; i < 4 * MIB; i++)
        mem[i] = (char)(i * 7 + i / 4096);
    b.off += 4096;
    for (uint32_t i = 0; i < 3; i++) {
        works[i] = (struct io_work){
            .op = IO_WORK_HASH, .len_bytes = LEN, .seed = i, .first_granule = i, .src = b, .sums = sums[i]};
        if (i == 2)
            works[i].len_bytes = GRANULE_BYTES;
        rig_submit_work(u, &works[i]);
    }
    for (; rig_stat(u).works_here == 0; n_turns++)
        ck_assert_int_ge(uring_run(u, 0), 0);
    ck_assert_uint_eq(n_turns, STEPS);
    rig_run_until(u, &rig_done, 3);
    ck_assert_uint_eq(rig_stat(u).works_here, 1);
    for (uint32_t i = 0; i < 3; i++) {
        ck_assert_int_eq(works[i].result, 0);
        checksum_granules(i, i, mem + 4096, works[i].len_bytes, expected);
        ck_assert_mem_eq(sums[i], expected, checksum_granule_count(works[i].len_bytes) * sizeof(uint64_t));
    }
    ck_assert(uring_is_idle(u));
    works[2].len_bytes = 64 * MIB; /* more than there is: it fails at its last step, and the next one is served */
    rig_submit_work(u, &works[2]);
    rig_run_until(u, &rig_done, 4);
    ck_assert_int_eq(works[2].result, -EINVAL);
    works[1].len_bytes = GRANULE_BYTES;
    rig_submit_work(u, &works[1]);
    rig_run_until(u, &rig_done, 5);
    ck_assert_int_eq(works[1].result, 0);
    ck_assert_uint_eq(rig_stat(u).works_here, 3);
    uring_free(u);
}
END_TEST

/* A copy that is not small, too, where there is one worker. */
START_TEST(test_a_copy_is_done_here_in_steps)
{
    enum { LEN = 700000, STEPS = (LEN + WORK_HERE_TURN_BYTES - 1) / WORK_HERE_TURN_BYTES };
    struct uring *u = rig_make_with((struct uring_config){.entries = 64, .lone_worker = true});
    struct io_work works[2];
    uint32_t n_turns = 0;
    struct io_buf b;
    char *mem;

    ck_assert_int_eq(uring_start(u), 0);
    ck_assert_int_eq(uring_backend(u)->ops->bounce_alloc(uring_backend(u), 3 * MIB, &b, (void **)&mem), 0);
    for (uint32_t i = 0; i < MIB; i++)
        mem[i] = (char)(i * 7 + i / 4096);
    for (uint32_t i = 0; i < 2; i++) { /* the second one is the workers': something waits already */
        works[i] = (struct io_work){
            .op = IO_WORK_COPY, .len_bytes = LEN, .src = b, .dst = {.region = b.region, .off = b.off + (1 + i) * MIB}};
        rig_submit_work(u, &works[i]);
    }
    for (; rig_stat(u).works_here == 0; n_turns++)
        ck_assert_int_ge(uring_run(u, 0), 0);
    ck_assert_uint_eq(n_turns, STEPS);
    rig_run_until(u, &rig_done, 2);
    ck_assert_uint_eq(rig_stat(u).works_here, 1);
    for (uint32_t i = 0; i < 2; i++) {
        ck_assert_int_eq(works[i].result, 0);
        ck_assert_mem_eq(mem + (1 + i) * MIB, mem, LEN);
        ck_assert_int_eq(mem[(1 + i) * MIB + LEN], 0);
    }
    ck_assert(uring_is_idle(u));
    uring_free(u);
}
END_TEST

START_TEST(test_chunks_come_and_go)
{
    struct uring *u = rig_make();
    uint16_t dev;

    ck_assert_int_eq(uring_device_add(u, &rig_disk, 0, &dev), 0);
    for (int round = 0; round < 3; round++) {
        struct io_chunk a = rig_request_chunk(u, 4 * MIB, IO_CHUNK_PRIVATE);
        struct io_chunk b = rig_request_chunk(u, 6 * MIB, IO_CHUNK_SHARED);

        ck_assert_int_eq(a.result, 0);
        ck_assert_int_eq(b.result, 0);
        ck_assert_uint_ne(a.region, b.region);
        ck_assert_uint_ge(b.size_bytes, 6 * MIB);
        ck_assert_int_eq(uring_region_chunk(u, a.region)->read_only_fd, -1);
        ck_assert_int_ge(uring_region_chunk(u, b.region)->read_only_fd, 0);
        rig_round_trip(u, dev, a.region);
        rig_round_trip(u, dev, b.region);

        /* The control thread may hold it longer than the engine does. */
        struct memory_chunk *held = memory_chunk_ref(uring_region_chunk(u, b.region));
        uring_backend(u)->ops->chunk_close(uring_backend(u), a.region);
        uring_backend(u)->ops->chunk_close(uring_backend(u), b.region);
        ck_assert_ptr_null(uring_region_chunk(u, b.region));
        ck_assert_ptr_null(uring_address(u, (struct io_buf){.region = b.region}, 1));
        /* Its pages are back before anybody gets others. */
        struct io_chunk after = rig_request_chunk(u, MIB, IO_CHUNK_PRIVATE);
        struct stat st;
        ck_assert_int_eq(after.result, 0);
        ck_assert_int_eq(fstat(held->fd, &st), 0);
        ck_assert_int_eq(st.st_blocks, 0);
        uring_backend(u)->ops->chunk_close(uring_backend(u), after.region);
        memory_chunk_unref(held);
        ck_assert_uint_eq(rig_stat(u).regions, 0);
        ck_assert_uint_eq(rig_stat(u).windows_used, 0);
    }
    ck_assert_uint_eq(rig_chunks, 9);
    struct io_chunk none = rig_request_chunk(u, 512 * TIB, IO_CHUNK_PRIVATE);
    ck_assert_int_eq(none.result, -ENOMEM);
    ck_assert_uint_eq(none.region, IO_REGION_NONE);
    ck_assert(uring_is_idle(u));
    uring_free(u);
}
END_TEST

START_TEST(test_poisoned_chunk_is_efault)
{
    struct uring *u = rig_make();
    struct io_chunk chunk = rig_request_chunk(u, MIB, IO_CHUNK_PRIVATE);
    uint64_t sums[16];
    struct io_work work = {.op = IO_WORK_HASH, .len_bytes = MIB, .src.region = chunk.region, .sums = sums};

    uring_region_chunk(u, chunk.region)->poisoned = 1;
    uint32_t before = rig_done;
    rig_submit_work(u, &work);
    rig_run_until(u, &rig_done, before + 1);
    ck_assert_int_eq(work.result, -EFAULT);
    uring_free(u);
}
END_TEST

/* --- Beside the thread that opens -------------------------------------------------------------------------------- */

#define N_AHEAD 12

static void ahead_fill(struct uring *u, uint16_t dev, char *mem)
{
    for (uint32_t i = 0; i < RIG_DISK_BYTES; i++)
        mem[i] = (char)(i * 7 + i / 4096);
    ck_assert_int_eq(uring_backend(u)->ops->blk_now(uring_backend(u), IO_BLK_WRITE, dev, 0, mem, RIG_DISK_BYTES), 0);
}

/* Waited for from the last to the first, or while most of them have not begun: it makes no difference. */
START_TEST(test_reads_ahead)
{
    struct uring *u = rig_make_with((struct uring_config){0});
    const struct io_backend_ops *ops = uring_backend(u)->ops;
    char *expected = aligned_alloc(4096, RIG_DISK_BYTES), *mem = aligned_alloc(4096, N_AHEAD * 512 * KIB);
    static struct io_ahead jobs[N_AHEAD];
    uint16_t dev;

    ck_assert_int_eq(uring_device_add(u, &rig_disk, 0, &dev), 0);
    ahead_fill(u, dev, expected);
    for (int round = 0; round < 4; round++) {
        memset(mem, 0, N_AHEAD * 512 * KIB);
        for (uint32_t i = 0; i < N_AHEAD; i++) {
            jobs[i] = (struct io_ahead){.op = IO_AHEAD_READ,
                                        .dev = dev,
                                        .off_bytes = i * 600 * KIB,
                                        .mem = mem + i * 512 * KIB,
                                        .len_bytes = 512 * KIB};
            ops->ahead_begin(uring_backend(u), &jobs[i]);
        }
        if (round == 2)
            ops->ahead_over(uring_backend(u)); /* all of them have ended then */
        for (uint32_t i = 0; i < N_AHEAD; i++) {
            uint32_t at = round % 2 == 0 ? i : N_AHEAD - 1 - i;

            ck_assert_int_eq(ops->ahead_wait(uring_backend(u), &jobs[at]), 0);
            ck_assert_mem_eq(jobs[at].mem, expected + at * 600 * KIB, 512 * KIB);
        }
    }
    uring_free(u);
    free(mem);
    free(expected);
}
END_TEST

START_TEST(test_an_error_ahead_is_told_to_who_waits)
{
    struct uring *u = rig_make_with((struct uring_config){0});
    const struct io_backend_ops *ops = uring_backend(u)->ops;
    char *mem = aligned_alloc(4096, 2 * MIB);
    struct io_ahead jobs[2];
    uint16_t dev;

    ck_assert_int_eq(uring_device_add(u, &rig_disk, 0, &dev), 0);
    for (uint32_t i = 0; i < 2; i++) {
        jobs[i] = (struct io_ahead){.op = IO_AHEAD_READ,
                                    .dev = dev,
                                    .off_bytes = RIG_DISK_BYTES - MIB + i * 4096,
                                    .mem = mem + i * MIB,
                                    .len_bytes = MIB};
        ops->ahead_begin(uring_backend(u), &jobs[i]);
    }
    ck_assert_int_eq(ops->ahead_wait(uring_backend(u), &jobs[1]), -EIO); /* it reaches beyond the end */
    ck_assert_int_eq(ops->ahead_wait(uring_backend(u), &jobs[0]), 0);
    uring_free(u);
    free(mem);
}
END_TEST

/* What the owner has begun to use meanwhile keeps what it has written. */
START_TEST(test_records_are_touched_ahead)
{
    struct uring *u = rig_make_with((struct uring_config){0});
    const struct io_backend_ops *ops = uring_backend(u)->ops;
    struct memory_shared records;
    struct io_ahead jobs[8];

    ck_assert_int_eq(memory_records_create("spillway-test", 16 * MIB, &records), 0);
    char *mem = records.mem;
    for (uint32_t i = 0; i < ARRAY_LEN(jobs); i++) {
        jobs[i] = (struct io_ahead){.op = IO_AHEAD_TOUCH, .mem = mem + i * 2 * MIB, .len_bytes = 2 * MIB};
        ops->ahead_begin(uring_backend(u), &jobs[i]);
    }
    for (uint32_t i = 0; i < ARRAY_LEN(jobs); i++) {
        mem[i * 2 * MIB + 5000] = (char)(1 + i);
        ck_assert_int_eq(ops->ahead_wait(uring_backend(u), &jobs[i]), 0);
        mem[i * 2 * MIB + MIB] = (char)(2 + i);
    }
    ops->ahead_over(uring_backend(u));
    for (uint32_t i = 0; i < ARRAY_LEN(jobs); i++) {
        ck_assert_int_eq(mem[i * 2 * MIB + 5000], 1 + i);
        ck_assert_int_eq(mem[i * 2 * MIB + MIB], 2 + i);
        ck_assert_int_eq(mem[i * 2 * MIB], 0);
    }
    memory_shared_destroy(&records);
    uring_free(u);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("uring_threads");
    TCase *t = tcase_create("uring_threads");
    SRunner *sr = srunner_create(s);

    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, rig_setup, rig_teardown);
    tcase_add_test(t, test_another_thread_is_the_engine);
    tcase_add_test(t, test_no_system_call_when_there_is_nothing_to_do);
    tcase_add_test(t, test_messages_wake_the_engine);
    tcase_add_test(t, test_work);
    tcase_add_test(t, test_small_works_are_done_here);
    tcase_add_test(t, test_a_large_hash_is_done_here_in_steps);
    tcase_add_test(t, test_a_copy_is_done_here_in_steps);
    tcase_add_test(t, test_chunks_come_and_go);
    tcase_add_test(t, test_poisoned_chunk_is_efault);
    tcase_add_test(t, test_reads_ahead);
    tcase_add_test(t, test_an_error_ahead_is_told_to_who_waits);
    tcase_add_test(t, test_records_are_touched_ahead);
    suite_add_tcase(s, t);
    srunner_run_all(sr, CK_NORMAL);
    int n_failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return n_failed == 0 ? 0 : 1;
}
