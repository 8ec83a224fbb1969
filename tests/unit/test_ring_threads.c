/* SPDX-License-Identifier: Apache-2.0 */
/*
 * include/base/ring.h between two real threads, for the eyes of TSan and of the hardware: entries are passed through a
 * small ring, each side sleeps whenever it has nothing to do, on a futex as the client does. If a wake-up were lost, the
 * test would hang and time out. The model check of all interleavings is test_ring_wakeup.c.
 */
#include <check.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "include/base/ring.h"

#define SIZE 8
#define ENTRIES_N 200000

struct shared {
    uint32_t head, head_flags;               /* the producer sleeps on head when the ring is full */
    _Alignas(128) uint32_t tail, tail_flags; /* the consumer sleeps on tail */
    _Alignas(128) uint64_t entries[SIZE];
};

static struct shared shared;
static unsigned sleeps[2], wakes[2];

static void futex_wait(uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT, value, NULL, NULL, 0);
}

static void futex_wake(uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* Until the peer's index is not `seen` any more. Sleeps at once: spinning would hide mistakes. */
static uint32_t wait_for(uint32_t *index, uint32_t seen, uint32_t *flags, unsigned *sleeps_n)
{
    uint32_t now = load_acquire(index); /* pairs with store_release in ring_publish() */

    while (now == seen) {
        ring_sleep_prepare(flags, 1);
        now = load_acquire(index); /* S3 */
        if (now == seen) {
            ++*sleeps_n;
            futex_wait(index, seen);
            now = load_acquire(index);
        }
        ring_sleep_cancel(flags);
    }
    return now;
}

static void *producer(void *arg)
{
    uint32_t tail = 0, head = 0;

    (void)arg;
    for (uint64_t i = 0; i < ENTRIES_N; i++) {
        if (ring_count(head, tail) == SIZE)
            head = wait_for(&shared.head, head, &shared.head_flags, &sleeps[0]);
        ck_assert(ring_peer_ok(head, tail, SIZE));
        shared.entries[tail & (SIZE - 1)] = i * 3;
        tail++;
        if (ring_publish(&shared.tail, tail, &shared.tail_flags)) {
            wakes[0]++;
            futex_wake(&shared.tail);
        }
    }
    return NULL;
}

START_TEST(test_two_threads)
{
    pthread_t thread;
    uint32_t head = 0, tail = 0;

    ck_assert_int_eq(pthread_create(&thread, NULL, producer, NULL), 0);
    for (uint64_t i = 0; i < ENTRIES_N; i++) {
        if (head == tail)
            tail = wait_for(&shared.tail, tail, &shared.tail_flags, &sleeps[1]);
        ck_assert(ring_peer_ok(head, tail, SIZE));
        ck_assert_uint_eq(shared.entries[head & (SIZE - 1)], i * 3);
        head++;
        if (ring_publish(&shared.head, head, &shared.head_flags)) {
            wakes[1]++;
            futex_wake(&shared.head);
        }
    }
    pthread_join(thread, NULL);
    ck_assert_uint_gt(sleeps[0] + sleeps[1], 0);
    ck_assert_uint_gt(wakes[0] + wakes[1], 0);
}
END_TEST

START_TEST(test_indices_wrap)
{
    ck_assert_uint_eq(ring_count(UINT32_MAX - 1, 2), 4);
    ck_assert(ring_peer_ok(UINT32_MAX - 1, 2, 4));
    ck_assert(!ring_peer_ok(UINT32_MAX - 1, 3, 4));
    ck_assert(!ring_peer_ok(5, 4, 4));
    ck_assert(!ring_peer_ok(0, UINT32_C(1) << 31, 4096));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("ring_threads");
    TCase *tc = tcase_create("threads");

    tcase_set_timeout(tc, 100);
    tcase_add_test(tc, test_two_threads);
    tcase_add_test(tc, test_indices_wrap);
    suite_add_tcase(s, tc);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
