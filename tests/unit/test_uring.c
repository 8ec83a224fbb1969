/* SPDX-License-Identifier: Apache-2.0 */
/* The real backend against a real kernel and a real file, in every mode of the ring that the kernel has. */
#include "io/uring.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "include/base/cleanup.h"
#include "io/checksum.h"
#include "io/grower.h"
#include "io/workers.h"

#define DISK_BYTES (8 * MIB)
#define SECOND_NS UINT64_C(1000000000)

static char path[256];
static struct device disk;
static struct workers *workers;
static struct grower *grower;

static uint32_t n_polled, n_done, n_chunks;
static uint64_t last_token;
static uint32_t last_revents;

static void setup(void)
{
    const char *tmp = getenv("TMPDIR"), *why = NULL;
    struct workers_config config = {.threads = 2};

    snprintf(path, sizeof(path), "%s/spillway-uring-%d", tmp ? tmp : "/tmp", getpid());
    (void)unlink(path);
    ck_assert_int_eq(device_create(path, DISK_BYTES, &disk, &why), 0);
    ck_assert_int_eq(device_fill(disk.fd, DISK_BYTES, NULL, NULL), 0);
    ck_assert_int_eq(workers_new(&config, &workers), 0);
    ck_assert_int_eq(grower_new(&grower), 0);
    n_polled = n_done = n_chunks = 0;
    last_token = 0;
}

static void teardown(void)
{
    grower_free(grower);
    workers_free(workers);
    device_close(&disk);
    (void)unlink(path);
}

static void on_poll(void *ctx, uint64_t token, uint32_t revents)
{
    ck_assert_ptr_nonnull(ctx);
    n_polled++;
    last_token = token;
    last_revents = revents;
}

static void on_chunk(void *ctx, uint32_t region, const struct memory_chunk *chunk)
{
    ck_assert_ptr_nonnull(ctx);
    ck_assert_uint_lt(region, CHUNKS_MAX);
    ck_assert_uint_gt(chunk->size_bytes, 0);
    n_chunks++;
}

static struct uring *make_with(struct uring_config config)
{
    static int ctx;
    struct uring *u = NULL;
    const char *why = NULL;

    config.workers = workers;
    config.grower = grower;
    config.ctx = &ctx;
    config.on_poll = on_poll;
    config.on_chunk = on_chunk;
    config.chunk.node = MEMORY_NODE_ANY;
    int r = uring_new(&config, &u, &why);
    ck_assert_msg(r == 0, "uring_new: %s (%s)", strerror(-r), why);
    return u;
}

static struct uring *make(void)
{
    struct uring *u = make_with((struct uring_config){.entries = 64});

    ck_assert_int_eq(uring_start(u), 0);
    return u;
}

static void run_until(struct uring *u, const uint32_t *counter, uint32_t n)
{
    while (*counter < n)
        ck_assert_int_ge(uring_run(u, 10 * SECOND_NS), 0);
}

static void blk_done(struct io_blk *blk)
{
    (void)blk;
    n_done++;
}

static void work_done(struct io_work *work)
{
    (void)work;
    n_done++;
}

static void chunk_done(struct io_chunk *chunk)
{
    (void)chunk;
    n_done++;
}

static void submit(struct uring *u, struct io_blk *blk)
{
    blk->done = blk_done;
    uring_backend(u)->ops->blk_submit(uring_backend(u), blk);
}

static int32_t do_blk(struct uring *u, struct io_blk blk)
{
    uint32_t before = n_done;

    submit(u, &blk);
    ck_assert_uint_eq(n_done, before); /* never from within submit */
    run_until(u, &n_done, before + 1);
    return blk.result;
}

static struct uring_stat stat_of(const struct uring *u)
{
    struct uring_stat stat;

    uring_stat(u, &stat);
    ck_assert_uint_eq(stat.bogus, 0);
    return stat;
}

/* Writes, flushes and reads back through the region; a second reader looks at the file itself. */
static void round_trip(struct uring *u, uint16_t dev, uint32_t region)
{
    char *mem = uring_address(u, (struct io_buf){.region = region}, 2 * MIB);
    char *seen = aligned_alloc(4096, MIB);

    ck_assert_ptr_nonnull(mem);
    for (uint32_t i = 0; i < MIB; i++)
        mem[i] = (char)(i * 7 + i / 4096);
    ck_assert_int_eq(
        do_blk(u,
               (struct io_blk){
                   .op = IO_BLK_WRITE, .dev = dev, .len_bytes = MIB, .off_bytes = 3 * MIB, .buf = {.region = region}}),
        MIB);
    ck_assert_int_eq(do_blk(u, (struct io_blk){.op = IO_BLK_FLUSH, .dev = dev}), 0);
    ck_assert_int_eq(uring_backend(u)->ops->blk_now(uring_backend(u), IO_BLK_READ, dev, 3 * MIB, seen, MIB), 0);
    ck_assert_mem_eq(seen, mem, MIB);
    ck_assert_int_eq(do_blk(u, (struct io_blk){.op = IO_BLK_READ,
                                               .dev = dev,
                                               .len_bytes = MIB,
                                               .off_bytes = 3 * MIB,
                                               .urgent = 1,
                                               .buf = {.region = region, .off = MIB}}),
                     MIB);
    ck_assert_mem_eq(mem + MIB, mem, MIB);
    free(seen);
}

START_TEST(test_reads_and_writes_in_every_mode)
{
    for (int mode = URING_MODE_DEFER; mode <= URING_MODE_PLAIN; mode++) {
        struct uring *u = make_with((struct uring_config){.mode = (enum uring_mode)mode});
        struct io_buf bounce;
        uint16_t dev;
        void *mem;

        ck_assert_int_eq(uring_device_add(u, &disk, 0, &dev), 0);
        ck_assert_int_eq(uring_backend(u)->ops->bounce_alloc(uring_backend(u), 2 * MIB, &bounce, &mem), 0);
        ck_assert_int_eq(uring_start(u), 0);
        ck_assert(uring_caps(u)->restricted);
        ck_assert_int_ge(uring_caps(u)->mode, mode);
        round_trip(u, dev, bounce.region);
        struct uring_stat stat = stat_of(u);
        ck_assert_uint_eq(stat.reads, 1);
        ck_assert_uint_eq(stat.writes_done, 1);
        ck_assert_uint_eq(stat.flushes_done, 1);
        ck_assert_uint_eq(stat.read_bytes, MIB);
        ck_assert_uint_eq(stat.written_bytes, MIB);
        ck_assert_uint_eq(stat.errors + stat.shorts, 0);
        if (!uring_caps(u)->degraded_memlock)
            ck_assert_uint_eq(stat.unregistered, 0);
        ck_assert(uring_is_idle(u));
        ck_assert_int_eq(uring_device_remove(u, dev), 0);
        ck_assert_int_eq(uring_device_remove(u, dev), -ENODEV);
        uring_free(u);
    }
}
END_TEST

/* Set up by one thread, run by another: SINGLE_ISSUER binds when the ring is enabled. */
static void *engine_main(void *arg)
{
    struct uring *u = arg;
    uint16_t dev;
    struct io_buf bounce;
    void *mem;

    ck_assert_int_eq(uring_start(u), 0);
    ck_assert_int_eq(uring_device_add(u, &disk, 0, &dev), 0);
    ck_assert_int_eq(uring_backend(u)->ops->bounce_alloc(uring_backend(u), 2 * MIB, &bounce, &mem), 0);
    round_trip(u, dev, bounce.region);
    return NULL;
}

START_TEST(test_another_thread_is_the_engine)
{
    struct uring *u = make_with((struct uring_config){0});
    pthread_t thread;

    ck_assert_int_eq(pthread_create(&thread, NULL, engine_main, u), 0);
    pthread_join(thread, NULL);
    uring_free(u);
}
END_TEST

START_TEST(test_bad_requests_fail_later_and_alone)
{
    struct uring *u = make();
    struct io_buf b;
    uint16_t dev;
    void *mem;

    ck_assert_int_eq(uring_device_add(u, &disk, 4, &dev), 0);
    ck_assert_int_eq(uring_backend(u)->ops->bounce_alloc(uring_backend(u), MIB, &b, &mem), 0);
    struct io_blk good = {.op = IO_BLK_READ, .dev = dev, .len_bytes = 4096, .buf = b};
    struct io_blk bad = good;
    bad.dev = 31;
    ck_assert_int_eq(do_blk(u, bad), -ENODEV);
    bad = good, bad.len_bytes = 0;
    ck_assert_int_eq(do_blk(u, bad), -EINVAL);
    bad = good, bad.len_bytes = 100;
    ck_assert_int_eq(do_blk(u, bad), -EINVAL);
    bad = good, bad.buf.off = MIB;
    ck_assert_int_eq(do_blk(u, bad), -EINVAL);
    bad = good, bad.buf.off = UINT64_MAX - 4095;
    ck_assert_int_eq(do_blk(u, bad), -EINVAL);
    bad = good, bad.buf.region = IO_REGION_NONE;
    ck_assert_int_eq(do_blk(u, bad), -EINVAL);
    bad = good, bad.op = 77;
    ck_assert_int_eq(do_blk(u, bad), -EINVAL);
    ck_assert_int_eq(do_blk(u, good), 4096);
    /* At the end of the file a read is short, and after it empty. */
    bad = good, bad.off_bytes = DISK_BYTES - 4096, bad.len_bytes = 8192;
    ck_assert_int_eq(do_blk(u, bad), 4096);
    bad.off_bytes = DISK_BYTES;
    ck_assert_int_eq(do_blk(u, bad), 0);
    ck_assert_uint_eq(stat_of(u).shorts, 2);
    ck_assert_uint_eq(stat_of(u).errors, 7);
    /* Somebody truncates the file: what is gone reads as nothing, not as zeros. */
    ck_assert_int_eq(truncate(path, MIB), 0);
    bad = good, bad.off_bytes = 2 * MIB;
    ck_assert_int_eq(do_blk(u, bad), 0);
    ck_assert_int_eq(uring_backend(u)->ops->blk_now(uring_backend(u), IO_BLK_READ, dev, 2 * MIB, mem, 4096), -EIO);
    uring_free(u);
}
END_TEST

static uint32_t order[64], n_order;

static void blk_done_in_order(struct io_blk *blk)
{
    order[n_order++] = (uint32_t)(blk->off_bytes / 4096);
}

START_TEST(test_depth_and_urgency)
{
    struct uring *u = make();
    struct io_blk blks[40];
    struct io_buf b;
    uint16_t dev;
    void *mem;
    bool is_first = true;

    n_order = 0;
    ck_assert_int_eq(uring_device_add(u, &disk, 1, &dev), 0); /* one at a time: the order is ours */
    ck_assert_int_eq(uring_backend(u)->ops->bounce_alloc(uring_backend(u), MIB, &b, &mem), 0);
    for (uint32_t i = 0; i < ARRAY_LEN(blks); i++) {
        blks[i] = (struct io_blk){.op = IO_BLK_READ,
                                  .urgent = i >= 10,
                                  .dev = dev,
                                  .off_bytes = i * 4096,
                                  .buf = b,
                                  .len_bytes = 4096,
                                  .done = blk_done_in_order};
        uring_backend(u)->ops->blk_submit(uring_backend(u), &blks[i]);
    }
    ck_assert_int_eq(uring_device_remove(u, dev), -EBUSY);
    ck_assert(!uring_is_idle(u));
    while (n_order < ARRAY_LEN(blks)) {
        ck_assert_int_ge(uring_run(u, 10 * SECOND_NS), 0);
        ck_assert_uint_le(stat_of(u).blks_in_flight, 1);
    }
    for (uint32_t i = 0; i < n_order; i++) {
        if (order[i] < 10 && is_first) { /* the background is not starved, but comes late */
            ck_assert_uint_eq(i, URGENT_RUN_MAX);
            is_first = false;
        }
    }
    ck_assert(!is_first);
    ck_assert(uring_is_idle(u));
    uring_free(u);
}
END_TEST

/* More than the ring, the slots and the depth can hold at once. */
START_TEST(test_more_than_fits)
{
    struct uring *u = make_with((struct uring_config){.entries = 8, .polls_max = 4});
    static struct io_blk blks[1000];
    struct io_buf b;
    uint16_t dev;
    void *mem;

    ck_assert_int_eq(uring_start(u), 0);
    ck_assert_int_eq(uring_device_add(u, &disk, 500, &dev), 0);
    ck_assert_int_eq(uring_backend(u)->ops->bounce_alloc(uring_backend(u), MIB, &b, &mem), 0);
    for (uint32_t i = 0; i < ARRAY_LEN(blks); i++) {
        blks[i] = (struct io_blk){.op = i % 10 == 0 ? IO_BLK_FLUSH : IO_BLK_READ,
                                  .dev = dev,
                                  .buf = b,
                                  .len_bytes = 4096,
                                  .off_bytes = i * 4096};
        submit(u, &blks[i]);
    }
    run_until(u, &n_done, ARRAY_LEN(blks));
    for (uint32_t i = 0; i < ARRAY_LEN(blks); i++)
        ck_assert_int_eq(blks[i].result, i % 10 == 0 ? 0 : 4096);
    struct uring_stat stat = stat_of(u);
    ck_assert_uint_eq(stat.reads_done + stat.flushes_done, ARRAY_LEN(blks));
    ck_assert_uint_lt(stat.batches, ARRAY_LEN(blks)); /* batched */
    ck_assert(uring_is_idle(u));
    uring_free(u);
}
END_TEST

START_TEST(test_polls)
{
    struct uring *u = make();
    int pair[2];
    uint64_t poll = 0, other = 0;
    char byte;

    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    ck_assert_int_eq(uring_poll_arm(u, pair[0], 0x1234, &poll), 0);
    ck_assert_uint_ne(poll, 0);
    ck_assert_int_eq(uring_run(u, 0), 0);
    ck_assert_uint_eq(n_polled, 0);
    ck_assert_int_eq(send(pair[1], "x", 1, 0), 1);
    run_until(u, &n_polled, 1);
    ck_assert_uint_eq(last_token, 0x1234);
    ck_assert_uint_eq(last_revents & POLLIN, POLLIN);
    uring_poll_cancel(u, poll); /* used up: nothing happens */
    ck_assert_int_eq(uring_run(u, 0), 0);
    ck_assert_uint_eq(n_polled, 1); /* one shot, though the byte is still there */
    ck_assert_int_eq(recv(pair[0], &byte, 1, 0), 1);

    ck_assert_int_eq(uring_poll_arm(u, pair[0], 1, &poll), 0); /* cancelled before it was submitted */
    uring_poll_cancel(u, poll);
    ck_assert_int_eq(uring_poll_arm(u, pair[0], 2, &other), 0); /* cancelled after it was */
    ck_assert_uint_ne(poll, other);
    ck_assert_int_eq(uring_run(u, 0), 0);
    ck_assert_int_eq(send(pair[1], "y", 1, 0), 1);
    uring_poll_cancel(u, other);
    uring_poll_cancel(u, other);
    for (int i = 0; i < 5; i++)
        ck_assert_int_ge(uring_run(u, 1000000), 0);
    ck_assert_uint_eq(n_polled, 1);
    ck_assert_int_eq(recv(pair[0], &byte, 1, 0), 1);

    ck_assert_int_eq(uring_poll_arm(u, pair[0], 3, &poll), 0); /* the peer goes */
    close(pair[1]);
    run_until(u, &n_polled, 2);
    ck_assert_uint_eq(last_token, 3);
    ck_assert_uint_ne(last_revents & (POLLHUP | POLLIN), 0);
    close(pair[0]);
    ck_assert_int_eq(uring_poll_arm(u, pair[0], 4, &poll), 0); /* no descriptor at all */
    run_until(u, &n_polled, 3);
    ck_assert_uint_eq(last_revents, POLLERR);
    stat_of(u);
    uring_free(u);
}
END_TEST

START_TEST(test_polls_are_bounded)
{
    struct uring *u = make_with((struct uring_config){.entries = 8, .polls_max = 100});
    int pair[2];
    uint64_t polls[101];

    ck_assert_int_eq(uring_start(u), 0);
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < 100; i++)
            ck_assert_int_eq(uring_poll_arm(u, pair[0], i, &polls[i]), 0);
        ck_assert_int_eq(uring_poll_arm(u, pair[0], 100, &polls[100]), -ENOSPC);
        ck_assert_int_eq(uring_run(u, 0), 0);
        for (uint32_t i = 0; i < 100; i++)
            uring_poll_cancel(u, polls[i]);
        /* Each cancel gives two completions: its own, and the poll's. */
        for (int n = 0; n < 200;) {
            int r = uring_run(u, 10 * SECOND_NS);

            ck_assert_int_ge(r, 0);
            n += r;
        }
    }
    ck_assert_uint_eq(n_polled, 0);
    stat_of(u);
    close(pair[0]);
    close(pair[1]);
    uring_free(u);
}
END_TEST

/* --- Sleeping and waking ----------------------------------------------------------------------------------------- */

START_TEST(test_no_system_call_when_there_is_nothing_to_do)
{
    struct uring *u = make();

    uring_run(u, 0);
    uint64_t enters = stat_of(u).enters;
    for (int i = 0; i < 1000; i++)
        ck_assert_int_eq(uring_run(u, 0), 0);
    ck_assert_uint_eq(stat_of(u).enters, enters);
    ck_assert_int_eq(uring_run(u, 1000), 0); /* a timeout is no event */
    ck_assert_uint_eq(stat_of(u).sleeps, 1);
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
    struct uring *u = make();
    struct ping *pings = calloc(N_PINGS, sizeof(*pings));
    pthread_t thread;

    n_pings = 0;
    for (uint32_t i = 0; i < N_PINGS; i++)
        pings[i].u = u;
    ck_assert_int_eq(pthread_create(&thread, NULL, pinger_main, pings), 0);
    while (n_pings < N_PINGS)
        ck_assert_int_ge(uring_run(u, URING_SLEEP_FOR_EVER), 0);
    pthread_join(thread, NULL);
    ck_assert_uint_eq(stat_of(u).messages, N_PINGS);
    uring_free(u);
    free(pings);
}
END_TEST

/* --- Workers and chunks ------------------------------------------------------------------------------------------ */

static void submit_work(struct uring *u, struct io_work *work)
{
    work->done = work_done;
    uring_backend(u)->ops->work_submit(uring_backend(u), work);
}

START_TEST(test_work)
{
    struct uring *u = make_with((struct uring_config){.works_max = 4});
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
        submit_work(u, &works[i]);
    }
    works[7].src.off = 0;
    struct io_work bad = works[0];
    bad.src.off = 64 * MIB - 10;
    submit_work(u, &bad);
    struct io_work none = works[0];
    none.op = IO_WORK_HASH, none.sums = NULL;
    submit_work(u, &none);
    ck_assert_uint_eq(n_done, 0);
    run_until(u, &n_done, ARRAY_LEN(works) + 2);
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

static struct io_chunk request_chunk(struct uring *u, uint64_t size_bytes, enum io_chunk_kind kind)
{
    struct io_chunk chunk = {
        .kind = kind, .node = UINT32_MAX, .size_bytes = size_bytes, .done = chunk_done, .region = IO_REGION_NONE};
    uint32_t before = n_done;

    uring_backend(u)->ops->chunk_request(uring_backend(u), &chunk);
    ck_assert_uint_eq(n_done, before);
    run_until(u, &n_done, before + 1);
    return chunk;
}

START_TEST(test_chunks_come_and_go)
{
    struct uring *u = make();
    uint16_t dev;

    ck_assert_int_eq(uring_device_add(u, &disk, 0, &dev), 0);
    for (int round = 0; round < 3; round++) {
        struct io_chunk a = request_chunk(u, 4 * MIB, IO_CHUNK_PRIVATE);
        struct io_chunk b = request_chunk(u, 6 * MIB, IO_CHUNK_SHARED);

        ck_assert_int_eq(a.result, 0);
        ck_assert_int_eq(b.result, 0);
        ck_assert_uint_ne(a.region, b.region);
        ck_assert_uint_ge(b.size_bytes, 6 * MIB);
        ck_assert_int_eq(uring_region_chunk(u, a.region)->read_only_fd, -1);
        ck_assert_int_ge(uring_region_chunk(u, b.region)->read_only_fd, 0);
        round_trip(u, dev, a.region);
        round_trip(u, dev, b.region);

        /* The control thread may hold it longer than the engine does. */
        struct memory_chunk *held = memory_chunk_ref(uring_region_chunk(u, b.region));
        uring_backend(u)->ops->chunk_close(uring_backend(u), a.region);
        uring_backend(u)->ops->chunk_close(uring_backend(u), b.region);
        ck_assert_ptr_null(uring_region_chunk(u, b.region));
        ck_assert_ptr_null(uring_address(u, (struct io_buf){.region = b.region}, 1));
        ((char *)held->mem)[0] = 1;
        memory_chunk_unref(held);
        ck_assert_uint_eq(stat_of(u).regions, 0);
        ck_assert_uint_eq(stat_of(u).windows_used, 0);
    }
    ck_assert_uint_eq(n_chunks, 6);
    struct io_chunk none = request_chunk(u, 512 * TIB, IO_CHUNK_PRIVATE);
    ck_assert_int_eq(none.result, -ENOMEM);
    ck_assert_uint_eq(none.region, IO_REGION_NONE);
    ck_assert(uring_is_idle(u));
    uring_free(u);
}
END_TEST

START_TEST(test_poisoned_chunk_is_efault)
{
    struct uring *u = make();
    struct io_chunk chunk = request_chunk(u, MIB, IO_CHUNK_PRIVATE);
    uint64_t sums[16];
    struct io_work work = {.op = IO_WORK_HASH, .len_bytes = MIB, .src.region = chunk.region, .sums = sums};

    uring_region_chunk(u, chunk.region)->poisoned = 1;
    uint32_t before = n_done;
    submit_work(u, &work);
    run_until(u, &n_done, before + 1);
    ck_assert_int_eq(work.result, -EFAULT);
    uring_free(u);
}
END_TEST

/* An extent never crosses a window, but if one did, the transfer would still be right. */
START_TEST(test_windows)
{
    struct memory_limits limits;
    struct uring *u = make();
    uint16_t dev;

    memory_limits_read(&limits);
    if (limits.available_bytes < 3 * GIB) {
        printf("SKIP: two windows (less than 3 GiB of memory)\n");
        uring_free(u);
        return;
    }
    ck_assert_int_eq(uring_device_add(u, &disk, 0, &dev), 0);
    struct io_chunk chunk = request_chunk(u, WINDOW_BYTES + 2 * MIB, IO_CHUNK_PRIVATE);
    ck_assert_int_eq(chunk.result, 0);
    char *mem = uring_address(u, (struct io_buf){.region = chunk.region}, chunk.size_bytes);
    if (!uring_caps(u)->degraded_memlock)
        ck_assert_uint_eq(stat_of(u).windows_used, 2);
    for (uint64_t off = WINDOW_BYTES - MIB; off <= WINDOW_BYTES + MIB; off += MIB / 2) {
        memset(mem + off, (int)(off >> 19 & 0xff), MIB);
        ck_assert_int_eq(do_blk(u, (struct io_blk){.op = IO_BLK_WRITE,
                                                   .dev = dev,
                                                   .len_bytes = MIB,
                                                   .buf = {.region = chunk.region, .off = off}}),
                         MIB);
        memset(mem + off, 0xee, MIB);
        ck_assert_int_eq(do_blk(u, (struct io_blk){.op = IO_BLK_READ,
                                                   .dev = dev,
                                                   .len_bytes = MIB,
                                                   .buf = {.region = chunk.region, .off = off}}),
                         MIB);
        ck_assert_int_eq(mem[off], (char)(off >> 19 & 0xff));
        ck_assert_int_eq(mem[off + MIB - 1], (char)(off >> 19 & 0xff));
    }
    if (!uring_caps(u)->degraded_memlock)
        ck_assert_uint_eq(stat_of(u).unregistered, 2); /* the one place that crosses, there and back */
    uring_free(u);
}
END_TEST

/* --- Restrictions and limits ------------------------------------------------------------------------------------- */

START_TEST(test_bad_configs)
{
    struct uring_config config = {.entries = URING_ENTRIES_MAX + 1};
    struct uring *u = NULL;
    const char *why = NULL;

    ck_assert_int_eq(uring_new(&config, &u, &why), -EINVAL);
    ck_assert_ptr_nonnull(why);
    ck_assert_ptr_null(u);
    uring_free(NULL);
}
END_TEST

/* In a child that is nobody, with 64 KiB of lockable memory. Its exit status is the line that failed. */
#define CHILD_ASSERT(x)                                                                                                \
    do {                                                                                                               \
        if (!(x))                                                                                                      \
            _exit(__LINE__ % 200 + 1);                                                                                 \
    } while (0)

static void degraded_child(void)
{
    struct rlimit limit = {.rlim_cur = 65536, .rlim_max = 65536};
    struct uring_config config = {.entries = 64};
    struct memory_chunk_config chunk_config = {.size_bytes = 16 * MIB, .node = MEMORY_NODE_ANY, .lock = true};
    struct memory_chunk *chunk = NULL;
    struct uring *u = NULL;
    const char *why;
    uint32_t region;
    uint16_t dev;

    CHILD_ASSERT(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
    CHILD_ASSERT(setgroups(0, NULL) == 0 && setgid(65534) == 0 && setuid(65534) == 0);
    CHILD_ASSERT(uring_new(&config, &u, &why) == 0);
    CHILD_ASSERT(uring_start(u) == 0);
    CHILD_ASSERT(memory_chunk_create(&chunk_config, &chunk) == 0);
    CHILD_ASSERT(chunk->report.is_locked == (chunk->report.pages == MEMORY_PAGES_HUGE));
    CHILD_ASSERT(chunk->report.pages == MEMORY_PAGES_HUGE || chunk->report.lock_error == -ENOMEM);
    CHILD_ASSERT(uring_region_add(u, chunk, &region) == 0);
    CHILD_ASSERT(uring_caps(u)->degraded_memlock && uring_caps(u)->note);
    CHILD_ASSERT(uring_caps(u)->memlock_limit_bytes == 65536);
    CHILD_ASSERT(stat_of(u).windows_used == 0);
    CHILD_ASSERT(uring_device_add(u, &disk, 0, &dev) == 0);
    round_trip(u, dev, region);
    CHILD_ASSERT(stat_of(u).unregistered == 2);
    memory_chunk_unref(chunk);
    uring_free(u);
    _exit(0);
}

START_TEST(test_without_lockable_memory_it_works_degraded)
{
    int status = 0;

    if (geteuid() != 0) {
        printf("SKIP: degraded mode (needs root to become nobody)\n");
        return;
    }
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0)
        degraded_child();
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_msg(status == 0, "child: status %x", (unsigned)status);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("uring");
    TCase *t = tcase_create("uring");
    SRunner *sr = srunner_create(s);

    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, test_reads_and_writes_in_every_mode);
    tcase_add_test(t, test_another_thread_is_the_engine);
    tcase_add_test(t, test_bad_requests_fail_later_and_alone);
    tcase_add_test(t, test_depth_and_urgency);
    tcase_add_test(t, test_more_than_fits);
    tcase_add_test(t, test_polls);
    tcase_add_test(t, test_polls_are_bounded);
    tcase_add_test(t, test_no_system_call_when_there_is_nothing_to_do);
    tcase_add_test(t, test_messages_wake_the_engine);
    tcase_add_test(t, test_work);
    tcase_add_test(t, test_chunks_come_and_go);
    tcase_add_test(t, test_poisoned_chunk_is_efault);
    tcase_add_test(t, test_windows);
    tcase_add_test(t, test_bad_configs);
    tcase_add_test(t, test_without_lockable_memory_it_works_degraded);
    suite_add_tcase(s, t);
    srunner_run_all(sr, CK_NORMAL);
    int n_failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return n_failed == 0 ? 0 : 1;
}
