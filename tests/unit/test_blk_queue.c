/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who is next at a device, on a device that is nothing but a count of requests in flight: it ends the oldest, and
 * whoever it served asks for the same again, so that everybody always has something waiting.
 */
#include "io/blk_queue.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#define REQUESTS 64
#define DEPTH 16

struct load {
    uint16_t lane;
    uint8_t urgent;
    uint32_t len_bytes;
    bool reads;
};

static struct blk_queue q;
static uint32_t weights[IO_LANES];
static struct io_blk blks[REQUESTS * 4];
static uint32_t parts[ARRAY_LEN(blks)]; /* bytes of each that the device has */
static uint64_t served[IO_LANES];

static void setup(void)
{
    blk_queue_init(&q);
    memset(served, 0, sizeof(served));
    memset(blks, 0, sizeof(blks));
    for (uint32_t i = 0; i < IO_LANES; i++)
        weights[i] = DEFAULT_WEIGHT;
}

static void submit(struct io_blk *blk, uint16_t lane, uint8_t urgent, uint32_t len_bytes)
{
    *blk = (struct io_blk){.op = IO_BLK_WRITE, .lane = lane, .urgent = urgent, .len_bytes = len_bytes};
    list_init(&blk->link);
    blk_queue_push(&q, blk);
}

static void submit_read_of(struct io_blk *blk, uint16_t lane, uint8_t user, uint32_t len_bytes)
{
    *blk = (struct io_blk){.op = IO_BLK_READ, .lane = lane, .urgent = 1, .user = user, .len_bytes = len_bytes};
    list_init(&blk->link);
    blk_queue_push(&q, blk);
}

static void submit_read(struct io_blk *blk, uint16_t lane, uint32_t len_bytes)
{
    submit_read_of(blk, lane, 0, len_bytes);
}

/* Nobody waits for it. */
static void submit_read_ahead(struct io_blk *blk, uint16_t lane, uint32_t len_bytes)
{
    *blk = (struct io_blk){.op = IO_BLK_READ, .lane = lane, .len_bytes = len_bytes};
    list_init(&blk->link);
    blk_queue_push(&q, blk);
}

static void take(struct io_blk *blk)
{
    parts[blk - blks] = blk_queue_part(&q, blk);
    blk_queue_take(&q, blk, parts[blk - blks], weights);
}

static void done(struct io_blk *blk)
{
    blk_queue_done(&q, blk, parts[blk - blks]);
}

/* Serves n requests at once or one after the other; each load has REQUESTS outstanding. */
static void saturate(const struct load *loads, uint32_t n_loads, uint32_t n)
{
    struct io_blk *in_flight[DEPTH];
    uint32_t n_in_flight = 0, first = 0;

    for (uint32_t i = 0; i < n_loads * REQUESTS; i++) {
        const struct load *l = &loads[i / REQUESTS];

        if (l->reads)
            submit_read(&blks[i], l->lane, l->len_bytes);
        else
            submit(&blks[i], l->lane, l->urgent, l->len_bytes);
    }
    for (uint32_t i = 0; i < n; i++) {
        struct io_blk *blk;

        while (n_in_flight < DEPTH && (blk = blk_queue_next(&q)) != NULL) {
            take(blk);
            in_flight[(first + n_in_flight++) % DEPTH] = blk;
        }
        if (n_in_flight == 0)
            ck_abort_msg("the queue gives nothing, and nothing is in flight");
        blk = in_flight[first++ % DEPTH];
        n_in_flight--;
        done(blk);
        served[blk->lane] += parts[blk - blks];
        blk_queue_push(&q, blk);
    }
}

static void expect_ratio(uint16_t a, uint16_t b, double ratio)
{
    double is = (double)served[a] / (double)served[b];

    ck_assert_msg(is > ratio * 0.9 && is < ratio * 1.1, "%.3f, not %.3f", is, ratio);
}

START_TEST(test_pools_share_by_weight)
{
    /* The sizes are against the weights: what counts is bytes. */
    for (uint8_t urgent = 0; urgent < 2; urgent++) {
        const struct load loads[] = {{io_lane_of(0), urgent, 256 * KIB, false},
                                     {io_lane_of(1), urgent, 2 * MIB, false}};

        setup();
        weights[io_lane_of(0)] = 300;
        saturate(loads, ARRAY_LEN(loads), 20000);
        expect_ratio(io_lane_of(0), io_lane_of(1), 3);
    }
}
END_TEST

START_TEST(test_extreme_weights)
{
    const struct load loads[] = {{io_lane_of(3), 0, 1 * MIB, false}, {io_lane_of(9), 0, 1 * MIB, false}};

    weights[io_lane_of(3)] = WEIGHT_MAX;
    weights[io_lane_of(9)] = 1;
    saturate(loads, ARRAY_LEN(loads), 200000);
    expect_ratio(io_lane_of(3), io_lane_of(9), WEIGHT_MAX);
}
END_TEST

START_TEST(test_weights_change_while_running)
{
    const struct load loads[] = {{io_lane_of(0), 1, 64 * KIB, false}, {io_lane_of(1), 1, 64 * KIB, false}};

    saturate(loads, ARRAY_LEN(loads), 4000);
    expect_ratio(io_lane_of(0), io_lane_of(1), 1);
    setup();
    weights[io_lane_of(0)] = 500;
    saturate(loads, ARRAY_LEN(loads), 4000);
    expect_ratio(io_lane_of(0), io_lane_of(1), 5);
}
END_TEST

START_TEST(test_a_pool_that_was_idle_neither_saves_nor_loses)
{
    const uint16_t busy = io_lane_of(0), idle = io_lane_of(1);
    struct io_blk *blk;
    uint32_t n_idle = 0;

    for (uint32_t i = 0; i < 100; i++) {
        submit(&blks[0], busy, 0, MIB);
        blk = blk_queue_next(&q);
        ck_assert_ptr_eq(blk, &blks[0]);
        take(blk);
        done(blk);
    }
    for (uint32_t i = 0; i < 32; i++)
        submit(&blks[i], i % 2 ? busy : idle, 0, MIB);
    for (uint32_t i = 0; i < 16; i++) {
        blk = blk_queue_next(&q);
        take(blk);
        done(blk);
        n_idle += blk->lane == idle;
    }
    ck_assert_uint_ge(n_idle, 7);
    ck_assert_uint_le(n_idle, 9);
}
END_TEST

START_TEST(test_within_a_lane_first_come_first_served)
{
    for (uint32_t i = 0; i < 8; i++)
        submit(&blks[i], io_lane_of(5), 0, (i + 1) * SECTOR_BYTES);
    for (uint32_t i = 0; i < 8; i++) {
        ck_assert_ptr_eq(blk_queue_next(&q), &blks[i]);
        take(&blks[i]);
    }
    ck_assert_ptr_null(blk_queue_next(&q));
    ck_assert_uint_eq(q.n, 0);
}
END_TEST

START_TEST(test_urgent_first_but_background_is_never_starved)
{
    /* Whatever the sizes: the rest gets a sixteenth of what urgent requests take, and not much more. */
    const struct load mixes[][2] = {
        {{io_lane_of(0), 1, 64 * KIB, false}, {io_lane_of(1), 0, 64 * KIB, false}},
        {{io_lane_of(0), 1, 64 * KIB, false}, {io_lane_of(1), 0, 8 * MIB, false}},
        {{io_lane_of(0), 1, 8 * MIB, false}, {io_lane_of(1), 0, 8 * MIB, false}},
    };

    for (size_t i = 0; i < ARRAY_LEN(mixes); i++) {
        setup();
        weights[io_lane_of(1)] = WEIGHT_MAX; /* weights do not cross the classes */
        saturate(mixes[i], 2, 100000);
        expect_ratio(io_lane_of(0), io_lane_of(1), URGENT_RUN_MAX);
    }
}
END_TEST

START_TEST(test_a_device_has_few_background_bytes)
{
    for (uint32_t i = 0; i < 4; i++)
        submit_read_ahead(&blks[i], io_lane_of(0), 8 * MIB);
    for (uint32_t i = 0; i < 2; i++)
        take(blk_queue_next(&q));
    ck_assert_ptr_null(blk_queue_next(&q)); /* 16 MiB are there */
    submit(&blks[4], io_lane_of(1), 1, 8 * MIB);
    ck_assert_ptr_eq(blk_queue_next(&q), &blks[4]);
    take(&blks[4]);
    done(&blks[4]); /* an urgent one makes no room for them */
    ck_assert_ptr_null(blk_queue_next(&q));
    done(&blks[0]);
    ck_assert_ptr_eq(blk_queue_next(&q), &blks[2]);
    /* One may go however large it is. */
    setup();
    submit_read_ahead(&blks[0], io_lane_of(0), 64 * MIB);
    ck_assert_ptr_eq(blk_queue_next(&q), &blks[0]);
}
END_TEST

/* Takes all that the device gets; how many. */
static uint32_t take_all(struct list *in_flight)
{
    struct io_blk *blk;
    uint32_t n = 0;

    for (; (blk = blk_queue_next(&q)) != NULL; n++) {
        take(blk);
        list_push_tail(in_flight, &blk->link);
    }
    return n;
}

/* The oldest ends; it is asked for again, unless it is `but`. The device takes what it then gets. */
static struct io_blk *oldest_ends(struct list *in_flight, const struct io_blk *but)
{
    struct io_blk *blk = list_entry(list_pop(in_flight), struct io_blk, link);

    done(blk);
    if (blk != but)
        blk_queue_push(&q, blk);
    (void)take_all(in_flight);
    return blk;
}

/* Users of one pool get as many bytes each, however many requests they have, and of whatever size. */
START_TEST(test_users_of_a_pool_share_its_reads)
{
    const uint8_t users[] = {io_user_of(1), io_user_of(2), 0};
    const uint32_t lens[] = {64 * KIB, 256 * KIB, 128 * KIB};
    uint64_t bytes[IO_USERS] = {0};
    struct list in_flight;

    list_init(&in_flight);
    for (uint32_t i = 0; i < 3 * REQUESTS; i++)
        submit_read_of(&blks[i], io_lane_of(0), users[i % 3], lens[i % 3]);
    (void)take_all(&in_flight);
    for (uint32_t i = 0; i < 30000; i++) {
        const struct io_blk *blk = oldest_ends(&in_flight, NULL);

        bytes[blk->user] += blk->len_bytes;
    }
    for (uint32_t i = 1; i < 3; i++) {
        double ratio = (double)bytes[users[i]] / (double)bytes[users[0]];

        ck_assert_msg(ratio > 0.95 && ratio < 1.05, "user %u: %.3f", users[i], ratio);
    }
}
END_TEST

/* One of two users, or pools, asks for one thing after the other: it stands behind few bytes each time, also if it was not
 * there when they went. When it has been away for long the other has the device for itself. */
START_TEST(test_one_that_comes_back_stands_behind_little)
{
    const uint8_t others_lane = _i ? io_lane_of(1) : io_lane_of(0);
    struct list in_flight;
    uint64_t moved_bytes = 0;

    list_init(&in_flight);
    for (uint32_t i = 1; i <= 2 * REQUESTS; i++)
        submit_read_of(&blks[i], io_lane_of(0), io_user_of(1), 256 * KIB);
    ck_assert_uint_eq(take_all(&in_flight), 2 * REQUESTS); /* nobody else is about */
    for (int n = 0; n < 20; n++) {
        submit_read_of(&blks[0], others_lane, io_user_of(2), 256 * KIB);
        (void)take_all(&in_flight);
        if (n > 0)
            ck_assert_uint_le(q.urgent.in_flight_bytes, SHARED_BYTES);
        while (oldest_ends(&in_flight, &blks[0]) != &blks[0])
            ;
    }
    while (q.urgent.in_flight_bytes <= SHARED_BYTES) {
        moved_bytes += oldest_ends(&in_flight, NULL)->len_bytes;
        ck_assert_uint_le(moved_bytes, 2 * SHARED_LASTS_BYTES);
    }
    ck_assert_uint_ge(moved_bytes, SHARED_LASTS_BYTES / 2);
    ck_assert_uint_eq(q.n, 0);
}
END_TEST

/* Fewer requests outstanding than a device takes at once: weights must count all the same. */
START_TEST(test_closed_loops_share_by_weight)
{
    enum { N = 32 };
    struct list in_flight;

    for (uint8_t urgent = 0; urgent < 2; urgent++) {
        setup();
        list_init(&in_flight);
        weights[io_lane_of(0)] = 300;
        for (uint32_t i = 0; i < 2 * N; i++)
            submit(&blks[i], io_lane_of(i / N), urgent, 64 * KIB);
        ck_assert_uint_eq(take_all(&in_flight), SHARED_BYTES / (64 * KIB));
        for (uint32_t i = 0; i < 10000; i++) {
            const struct io_blk *blk = oldest_ends(&in_flight, NULL);

            served[blk->lane] += blk->len_bytes;
        }
        expect_ratio(io_lane_of(0), io_lane_of(1), 3);
    }
}
END_TEST

START_TEST(test_one_pool_alone_is_not_held_up)
{
    struct list in_flight;

    list_init(&in_flight);
    for (uint32_t i = 0; i < REQUESTS; i++)
        submit_read(&blks[i], io_lane_of(0), MIB);
    submit(&blks[REQUESTS], IO_LANE_OWN, 1, 64 * KIB); /* the log is nobody's rival */
    ck_assert_uint_eq(take_all(&in_flight), REQUESTS + 1);
    /* Large ones of two: a few at once. */
    setup();
    list_init(&in_flight);
    for (uint32_t i = 0; i < 8; i++)
        submit_read(&blks[i], io_lane_of(i % 2), 8 * MIB);
    ck_assert_uint_eq(take_all(&in_flight), SHARED_REQUESTS);
}
END_TEST

START_TEST(test_background_keeps_small_beside_urgent)
{
    struct list in_flight;

    list_init(&in_flight);
    submit(&blks[0], io_lane_of(1), 1, 64 * KIB);
    for (uint32_t i = 1; i <= 32; i++)
        submit_read_ahead(&blks[i], io_lane_of(0), MIB);
    ck_assert_uint_eq(take_all(&in_flight), 1 + BACKGROUND_BESIDE_BYTES / MIB);
    done(&blks[0]);
    ck_assert_uint_eq(take_all(&in_flight), (BACKGROUND_BYTES_MAX - BACKGROUND_BESIDE_BYTES) / MIB);
}
END_TEST

/* Until so many bytes have ended, no more go: then several at once. */
START_TEST(test_a_device_has_as_many_writes_as_keep_it_busy)
{
    const uint32_t len = 64 * KIB, n_max = WRITE_BYTES_MAX / len, n_refill = WRITE_REFILL_BYTES / len;
    struct list in_flight;

    for (uint8_t urgent = 0; urgent < 2; urgent++) {
        setup();
        list_init(&in_flight);
        for (uint32_t i = 0; i < 2 * n_max; i++)
            submit(&blks[i], io_lane_of(0), urgent, len);
        ck_assert_uint_eq(take_all(&in_flight), n_max);
        for (uint32_t i = 0; i < 2 * n_refill; i++) {
            done(list_entry(list_pop(&in_flight), struct io_blk, link));
            ck_assert_uint_eq(take_all(&in_flight), i % n_refill == n_refill - 1 ? n_refill : 0);
        }
    }
    /* The log's next step does not wait for that, and a read neither. */
    submit(&blks[ARRAY_LEN(blks) - 1], IO_LANE_OWN, 1, 0);
    ck_assert_uint_eq(take_all(&in_flight), 1);
    submit_read(&blks[ARRAY_LEN(blks) - 2], io_lane_of(0), len);
    ck_assert_uint_eq(take_all(&in_flight), 1);
}
END_TEST

/* One is written, the next one is there. */
START_TEST(test_a_device_has_two_large_writes)
{
    struct list in_flight;

    list_init(&in_flight);
    for (uint32_t i = 0; i < 8; i++)
        submit(&blks[i], io_lane_of(0), 1, PIECE_BYTES_MAX);
    ck_assert_uint_eq(take_all(&in_flight), 2);
    for (uint32_t i = 0; i < 6; i++) {
        done(list_entry(list_pop(&in_flight), struct io_blk, link));
        ck_assert_uint_eq(take_all(&in_flight), 1);
    }
}
END_TEST

START_TEST(test_few_writes_beside_an_awaited_read)
{
    struct list in_flight;

    list_init(&in_flight);
    for (uint32_t i = 0; i < REQUESTS; i++)
        submit(&blks[i], io_lane_of(1), i % 2 == 0, 64 * KIB);
    submit_read(&blks[REQUESTS], io_lane_of(0), 64 * KIB);
    ck_assert_uint_eq(take_all(&in_flight), 1 + WRITE_BESIDE_BYTES / (64 * KIB));
    ck_assert_uint_eq(parts[REQUESTS], 64 * KIB); /* it was not held up */
    /* In front of what waits in the very same lane, too. */
    submit_read(&blks[REQUESTS + 1], io_lane_of(1), 64 * KIB);
    ck_assert_ptr_eq(blk_queue_next(&q), &blks[REQUESTS + 1]);
}
END_TEST

/* Who streams large pieces through a small memory waits for its own writes. */
START_TEST(test_a_long_read_holds_up_no_writes)
{
    struct list in_flight;

    list_init(&in_flight);
    submit_read(&blks[0], io_lane_of(0), READ_SHORT_BYTES_MAX + (uint32_t)SECTOR_BYTES);
    submit(&blks[1], io_lane_of(0), 0, 3 * MIB); /* ahead of need */
    submit(&blks[2], io_lane_of(0), 0, 3 * MIB);
    ck_assert_uint_eq(take_all(&in_flight), 3);
    ck_assert_uint_eq(parts[1] + parts[2], 6 * MIB); /* as wholes */
    submit_read(&blks[3], io_lane_of(0), READ_SHORT_BYTES_MAX);
    for (uint32_t i = 0; i < 3; i++)
        done(&blks[i]);
    submit(&blks[1], io_lane_of(0), 0, 3 * MIB);
    ck_assert_uint_eq(blk_queue_part(&q, &blks[1]), DEVICE_PART_BYTES);
    take(&blks[3]);
    done(&blks[3]);
    ck_assert_uint_eq(q.n_awaited + q.n_pressed, 0);
}
END_TEST

START_TEST(test_a_read_in_the_background_is_none_to_wait_for)
{
    struct list in_flight;

    list_init(&in_flight);
    for (uint32_t i = 0; i < REQUESTS; i++)
        submit(&blks[i], io_lane_of(1), 1, 64 * KIB);
    submit_read_ahead(&blks[REQUESTS], io_lane_of(0), 8 * MIB);
    ck_assert_uint_eq(blk_queue_part(&q, &blks[REQUESTS]), 8 * MIB);
    ck_assert_uint_eq(take_all(&in_flight), REQUESTS + 1);
    setup();
    submit_read_ahead(&blks[REQUESTS], io_lane_of(0), 64 * KIB);
    for (uint32_t i = 0; i < REQUESTS; i++)
        submit(&blks[i], io_lane_of(1), 1, 64 * KIB);
    blk_queue_urge(&q, &blks[REQUESTS]); /* now it is */
    list_init(&in_flight);
    ck_assert_uint_eq(take_all(&in_flight), 1 + WRITE_BESIDE_BYTES / (64 * KIB));
}
END_TEST

START_TEST(test_large_ones_go_in_parts_beside_an_awaited_read)
{
    submit(&blks[0], io_lane_of(1), 1, 8 * MIB);
    ck_assert_uint_eq(blk_queue_part(&q, &blks[0]), 8 * MIB);
    submit_read(&blks[1], io_lane_of(0), 2 * MIB);
    ck_assert_uint_eq(blk_queue_part(&q, &blks[1]), 2 * MIB);
    ck_assert_uint_eq(blk_queue_part(&q, &blks[0]), DEVICE_PART_BYTES);
    take(&blks[0]);
    take(&blks[1]);
    done(&blks[1]);
    done(&blks[0]);
    blks[0].len_bytes -= DEVICE_PART_BYTES;
    blk_queue_push(&q, &blks[0]);
    ck_assert_uint_eq(blk_queue_part(&q, &blks[0]), DEVICE_PART_BYTES); /* the next read is not far */
    ck_assert_uint_eq(q.urgent.in_flight_bytes + q.write_bytes + q.n_writes + q.n_awaited, 0);
}
END_TEST

/* The limit goes away by and by when no more reads come, and is back with the first. */
START_TEST(test_after_the_last_read_writes_get_the_device_back)
{
    struct list in_flight;
    uint64_t bytes = 0;

    list_init(&in_flight);
    submit_read(&blks[REQUESTS], io_lane_of(0), 64 * KIB);
    take(&blks[REQUESTS]);
    done(&blks[REQUESTS]);
    for (uint32_t i = 0; i < REQUESTS; i++)
        submit(&blks[i], io_lane_of(1), 1, MIB);
    ck_assert_uint_eq(take_all(&in_flight), WRITE_BESIDE_BYTES / DEVICE_PART_BYTES);
    while (blk_queue_part(&q, &blks[0]) < MIB && bytes < 1 * GIB) {
        struct io_blk *blk = list_entry(list_pop(&in_flight), struct io_blk, link);

        done(blk);
        bytes += parts[blk - blks];
        blk_queue_push(&q, blk);
        (void)take_all(&in_flight);
        ck_assert_uint_gt(q.n_writes, 0);
    }
    ck_assert_uint_ge(bytes, (WRITE_BYTES_MAX - WRITE_BESIDE_BYTES) * WRITE_GROWTH);
    ck_assert_uint_le(bytes, WRITE_BYTES_MAX * WRITE_GROWTH);
    ck_assert_ptr_null(blk_queue_next(&q)); /* all that there is is at the device */
    submit_read(&blks[REQUESTS], io_lane_of(0), 64 * KIB);
    ck_assert_uint_eq(q.write_bytes_max, WRITE_BESIDE_BYTES);
}
END_TEST

/* Reads count as a part of their bytes; then weights hold between who reads and who writes, limit or not. */
START_TEST(test_writes_get_what_weights_say_beside_reads)
{
    const struct load loads[] = {{io_lane_of(0), 1, 64 * KIB, true}, {io_lane_of(1), 1, 64 * KIB, false}};

    saturate(loads, ARRAY_LEN(loads), 200000);
    expect_ratio(io_lane_of(0), io_lane_of(1), READ_FAVOUR);
    setup();
    weights[io_lane_of(1)] = 10 * DEFAULT_WEIGHT;
    saturate(loads, ARRAY_LEN(loads), 200000);
    expect_ratio(io_lane_of(1), io_lane_of(0), 10.0 / READ_FAVOUR);
}
END_TEST

START_TEST(test_what_is_waited_for_overtakes)
{
    for (uint32_t i = 0; i < 10; i++)
        submit(&blks[i], io_lane_of(i % 3), 0, MIB);
    take(&blks[0]);
    blk_queue_urge(&q, &blks[0]); /* the device has it: nothing to do, and its bytes are still counted as background */
    ck_assert_uint_eq(blks[0].urgent, 0);
    blk_queue_urge(&q, &blks[7]);
    blk_queue_urge(&q, &blks[7]);
    ck_assert_uint_eq(blks[7].urgent, 1);
    ck_assert_uint_eq(q.n, 9);
    ck_assert_ptr_eq(blk_queue_next(&q), &blks[7]);
    take(&blks[7]);
    done(&blks[7]);
    done(&blks[0]);
    ck_assert_uint_eq(q.background.in_flight_bytes, 0);
    for (uint32_t i = 0; i < 8; i++) {
        struct io_blk *blk = blk_queue_next(&q);

        ck_assert_ptr_nonnull(blk);
        ck_assert_ptr_ne(blk, &blks[7]);
        take(blk);
        done(blk);
    }
    ck_assert_ptr_null(blk_queue_next(&q));
}
END_TEST

/* Requests of every lane come, are urged and go at random: nothing is lost, and the heap's order holds. */
START_TEST(test_at_random)
{
    uint64_t state = 88172645463325252ULL;
    uint32_t n_out = 0, n_in = 0, n_wrong = 0; /* an assertion of libcheck is dear */

    for (uint32_t step = 0; step < 200000; step++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        struct io_blk *blk = &blks[state / 7 % ARRAY_LEN(blks)];
        uint32_t what = (uint32_t)(state % 7);

        if (what < 3 && !blk->queued) {
            submit(blk, (uint16_t)(state / 1000 % IO_LANES), state / 3 % 5 == 0,
                   (uint32_t)(state / 11 % 256 * SECTOR_BYTES));
            n_in++;
        } else if (what == 3) {
            blk_queue_urge(&q, blk);
        } else if ((blk = blk_queue_next(&q)) != NULL) {
            const struct blk_class *c = blk->urgent ? &q.urgent : &q.background;

            const struct blk_heap *h = &c->heaps[BLK_WRITES];

            for (uint32_t i = 0; i < h->n; i++) {
                const struct blk_lane *lane = &c->lanes[h->lanes[i]];

                n_wrong += lane->tag < c->lanes[blk->lane].tag || lane->places[BLK_WRITES] != i ||
                           list_is_empty(&lane->blks[BLK_WRITES]);
            }
            take(blk);
            done(blk);
            n_out++;
        }
        n_wrong += q.n != n_in - n_out;
    }
    ck_assert_uint_eq(n_wrong, 0);
    ck_assert_uint_gt(n_out, 50000);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("blk_queue");
    TCase *tc = tcase_create("all");

    tcase_add_checked_fixture(tc, setup, NULL);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, test_pools_share_by_weight);
    tcase_add_test(tc, test_extreme_weights);
    tcase_add_test(tc, test_weights_change_while_running);
    tcase_add_test(tc, test_a_pool_that_was_idle_neither_saves_nor_loses);
    tcase_add_test(tc, test_within_a_lane_first_come_first_served);
    tcase_add_test(tc, test_urgent_first_but_background_is_never_starved);
    tcase_add_test(tc, test_a_device_has_few_background_bytes);
    tcase_add_test(tc, test_users_of_a_pool_share_its_reads);
    tcase_add_loop_test(tc, test_one_that_comes_back_stands_behind_little, 0, 2);
    tcase_add_test(tc, test_closed_loops_share_by_weight);
    tcase_add_test(tc, test_one_pool_alone_is_not_held_up);
    tcase_add_test(tc, test_background_keeps_small_beside_urgent);
    tcase_add_test(tc, test_a_device_has_as_many_writes_as_keep_it_busy);
    tcase_add_test(tc, test_a_device_has_two_large_writes);
    tcase_add_test(tc, test_few_writes_beside_an_awaited_read);
    tcase_add_test(tc, test_a_long_read_holds_up_no_writes);
    tcase_add_test(tc, test_a_read_in_the_background_is_none_to_wait_for);
    tcase_add_test(tc, test_large_ones_go_in_parts_beside_an_awaited_read);
    tcase_add_test(tc, test_after_the_last_read_writes_get_the_device_back);
    tcase_add_test(tc, test_writes_get_what_weights_say_beside_reads);
    tcase_add_test(tc, test_what_is_waited_for_overtakes);
    tcase_add_test(tc, test_at_random);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
