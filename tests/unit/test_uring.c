/* SPDX-License-Identifier: Apache-2.0 */
/* The real backend against a real kernel and a real file, in every mode of the ring that the kernel has. */
#include "io/uring.h"

#include <check.h>
#include <errno.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/support/uring_rig.h"

START_TEST(test_reads_and_writes_in_every_mode)
{
    for (int mode = URING_MODE_DEFER; mode <= URING_MODE_PLAIN; mode++) {
        struct uring *u = rig_make_with((struct uring_config){.mode = (enum uring_mode)mode});
        struct io_buf bounce;
        uint16_t dev;
        void *mem;

        ck_assert_int_eq(uring_device_add(u, &rig_disk, 0, &dev), 0);
        ck_assert_int_eq(uring_backend(u)->ops->bounce_alloc(uring_backend(u), 2 * MIB, &bounce, &mem), 0);
        ck_assert_int_eq(uring_start(u), 0);
        ck_assert(uring_caps(u)->restricted);
        ck_assert_int_ge(uring_caps(u)->mode, mode);
        rig_round_trip(u, dev, bounce.region);
        struct uring_stat stat = rig_stat(u);
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
START_TEST(test_bad_requests_fail_later_and_alone)
{
    struct uring *u = rig_make();
    struct io_buf b;
    uint16_t dev;
    void *mem;

    ck_assert_int_eq(uring_device_add(u, &rig_disk, 4, &dev), 0);
    ck_assert_int_eq(uring_backend(u)->ops->bounce_alloc(uring_backend(u), MIB, &b, &mem), 0);
    struct io_blk good = {.op = IO_BLK_READ, .dev = dev, .len_bytes = 4096, .buf = b};
    struct io_blk bad = good;
    bad.dev = 31;
    ck_assert_int_eq(rig_do_blk(u, bad), -ENODEV);
    bad = good, bad.len_bytes = 0;
    ck_assert_int_eq(rig_do_blk(u, bad), -EINVAL);
    bad = good, bad.len_bytes = 100;
    ck_assert_int_eq(rig_do_blk(u, bad), -EINVAL);
    bad = good, bad.buf.off = MIB;
    ck_assert_int_eq(rig_do_blk(u, bad), -EINVAL);
    bad = good, bad.buf.off = UINT64_MAX - 4095;
    ck_assert_int_eq(rig_do_blk(u, bad), -EINVAL);
    bad = good, bad.buf.region = IO_REGION_NONE;
    ck_assert_int_eq(rig_do_blk(u, bad), -EINVAL);
    bad = good, bad.op = 77;
    ck_assert_int_eq(rig_do_blk(u, bad), -EINVAL);
    ck_assert_int_eq(rig_do_blk(u, good), 4096);
    /* At the end of the file a read is short, and after it empty. */
    bad = good, bad.off_bytes = RIG_DISK_BYTES - 4096, bad.len_bytes = 8192;
    ck_assert_int_eq(rig_do_blk(u, bad), 4096);
    bad.off_bytes = RIG_DISK_BYTES;
    ck_assert_int_eq(rig_do_blk(u, bad), 0);
    ck_assert_uint_eq(rig_stat(u).shorts, 2);
    ck_assert_uint_eq(rig_stat(u).errors, 7);
    /* Somebody truncates the file: what is gone reads as nothing, not as zeros. */
    ck_assert_int_eq(truncate(rig_path, MIB), 0);
    bad = good, bad.off_bytes = 2 * MIB;
    ck_assert_int_eq(rig_do_blk(u, bad), 0);
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
    struct uring *u = rig_make();
    struct io_blk blks[40];
    struct io_buf b;
    uint16_t dev;
    void *mem;
    bool is_first = true;

    n_order = 0;
    ck_assert_int_eq(uring_device_add(u, &rig_disk, 1, &dev), 0); /* one at a time: the order is ours */
    ck_assert_int_eq(uring_backend(u)->ops->bounce_alloc(uring_backend(u), MIB, &b, &mem), 0);
    for (uint32_t i = 0; i < ARRAY_LEN(blks); i++) {
        blks[i] = (struct io_blk){.op = IO_BLK_READ,
                                  .urgent = i >= 10,
                                  .dev = dev,
                                  .off_bytes = i * UINT64_C(4096),
                                  .buf = b,
                                  .len_bytes = 4096,
                                  .done = blk_done_in_order};
        uring_backend(u)->ops->blk_submit(uring_backend(u), &blks[i]);
    }
    ck_assert_int_eq(uring_device_remove(u, dev), -EBUSY);
    ck_assert(!uring_is_idle(u));
    while (n_order < ARRAY_LEN(blks)) {
        ck_assert_int_ge(uring_run(u, 10 * SECOND_NS), 0);
        ck_assert_uint_le(rig_stat(u).blks_in_flight, 1);
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

/* A write beside a read that a client waits for: a part of it is done, which is no failure of the device. */
START_TEST(test_a_large_write_goes_in_parts_beside_a_read)
{
    struct uring *u = rig_make();
    struct io_blk blks[2];
    struct io_buf b;
    uint16_t dev;
    void *mem;

    ck_assert_int_eq(uring_device_add(u, &rig_disk, 0, &dev), 0);
    ck_assert_int_eq(uring_backend(u)->ops->bounce_alloc(uring_backend(u), MIB, &b, &mem), 0);
    memset(mem, 7, MIB);
    blks[0] = (struct io_blk){.op = IO_BLK_WRITE, .dev = dev, .buf = b, .len_bytes = MIB};
    rig_submit(u, &blks[0]);
    rig_run_until(u, &rig_done, 1);
    ck_assert_int_eq(blks[0].result, (int32_t)MIB); /* nobody reads */
    blks[1] = (struct io_blk){.op = IO_BLK_READ, .urgent = 1, .dev = dev, .buf = b, .len_bytes = 512 * KIB};
    blks[1].buf.off += 512 * KIB;
    memset(mem, 9, MIB);
    rig_submit(u, &blks[0]);
    rig_submit(u, &blks[1]);
    rig_run_until(u, &rig_done, 3);
    ck_assert_int_eq(blks[0].result, (int32_t)DEVICE_PART_BYTES);
    ck_assert_int_eq(blks[1].result, 512 * (int32_t)KIB);
    ck_assert_uint_eq(rig_stat(u).shorts, 0);
    ck_assert_int_eq(uring_backend(u)->ops->blk_now(uring_backend(u), IO_BLK_READ, dev, 0, mem, MIB), 0);
    for (uint64_t i = 0; i < MIB; i += 4096)
        ck_assert_int_eq(((uint8_t *)mem)[i], i < DEVICE_PART_BYTES ? 9 : 7);
    ck_assert(uring_is_idle(u));
    uring_free(u);
}
END_TEST

/* More than the ring, the slots and the depth can hold at once. */
START_TEST(test_more_than_fits)
{
    struct uring *u = rig_make_with((struct uring_config){.entries = 8, .polls_max = 4});
    static struct io_blk blks[1000];
    struct io_buf b;
    uint16_t dev;
    void *mem;

    ck_assert_int_eq(uring_start(u), 0);
    ck_assert_int_eq(uring_device_add(u, &rig_disk, 500, &dev), 0);
    ck_assert_int_eq(uring_backend(u)->ops->bounce_alloc(uring_backend(u), MIB, &b, &mem), 0);
    for (uint32_t i = 0; i < ARRAY_LEN(blks); i++) {
        blks[i] = (struct io_blk){.op = i % 10 == 0 ? IO_BLK_FLUSH : IO_BLK_READ,
                                  .dev = dev,
                                  .buf = b,
                                  .len_bytes = 4096,
                                  .off_bytes = i * UINT64_C(4096)};
        rig_submit(u, &blks[i]);
    }
    rig_run_until(u, &rig_done, ARRAY_LEN(blks));
    for (uint32_t i = 0; i < ARRAY_LEN(blks); i++)
        ck_assert_int_eq(blks[i].result, i % 10 == 0 ? 0 : 4096);
    struct uring_stat stat = rig_stat(u);
    ck_assert_uint_eq(stat.reads_done + stat.flushes_done, ARRAY_LEN(blks));
    ck_assert_uint_lt(stat.batches, ARRAY_LEN(blks)); /* batched */
    ck_assert(uring_is_idle(u));
    uring_free(u);
}
END_TEST

START_TEST(test_polls)
{
    struct uring *u = rig_make();
    int pair[2];
    uint64_t poll = 0, other = 0;
    char byte;

    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    ck_assert_int_eq(uring_poll_arm(u, pair[0], 0x1234, &poll), 0);
    ck_assert_uint_ne(poll, 0);
    ck_assert_int_eq(uring_run(u, 0), 0);
    ck_assert_uint_eq(rig_polled, 0);
    ck_assert(!uring_peek(u));
    ck_assert_int_eq(send(pair[1], "x", 1, 0), 1);
    ck_assert(uring_peek(u));
    rig_run_until(u, &rig_polled, 1);
    ck_assert(!uring_peek(u));
    ck_assert_uint_eq(rig_token, 0x1234);
    ck_assert_uint_eq(rig_revents & POLLIN, POLLIN);
    uring_poll_cancel(u, poll); /* used up: nothing happens */
    ck_assert_int_eq(uring_run(u, 0), 0);
    ck_assert_uint_eq(rig_polled, 1); /* one shot, though the byte is still there */
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
    ck_assert_uint_eq(rig_polled, 1);
    ck_assert_int_eq(recv(pair[0], &byte, 1, 0), 1);

    ck_assert_int_eq(uring_poll_arm(u, pair[0], 3, &poll), 0); /* the peer goes */
    close(pair[1]);
    rig_run_until(u, &rig_polled, 2);
    ck_assert_uint_eq(rig_token, 3);
    ck_assert_uint_ne(rig_revents & (POLLHUP | POLLIN), 0);
    close(pair[0]);
    ck_assert_int_eq(uring_poll_arm(u, pair[0], 4, &poll), 0); /* no descriptor at all */
    rig_run_until(u, &rig_polled, 3);
    ck_assert_uint_eq(rig_revents, POLLERR);
    rig_stat(u);
    uring_free(u);
}
END_TEST

START_TEST(test_polls_are_bounded)
{
    struct uring *u = rig_make_with((struct uring_config){.entries = 8, .polls_max = 100});
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
    ck_assert_uint_eq(rig_polled, 0);
    rig_stat(u);
    close(pair[0]);
    close(pair[1]);
    uring_free(u);
}
END_TEST
/* An extent never crosses a window, but if one did, the transfer would still be right. */
START_TEST(test_windows)
{
    struct memory_limits limits;
    struct uring *u = rig_make();
    uint16_t dev;

    memory_limits_read(&limits);
    if (limits.available_bytes < 3 * GIB) {
        printf("SKIP: two windows (less than 3 GiB of memory)\n");
        uring_free(u);
        return;
    }
    ck_assert_int_eq(uring_device_add(u, &rig_disk, 0, &dev), 0);
    struct io_chunk chunk = rig_request_chunk(u, WINDOW_BYTES + 2 * MIB, IO_CHUNK_PRIVATE);
    ck_assert_int_eq(chunk.result, 0);
    char *mem = uring_address(u, (struct io_buf){.region = chunk.region}, chunk.size_bytes);
    if (!uring_caps(u)->degraded_memlock)
        ck_assert_uint_eq(rig_stat(u).windows_used, 2);
    for (uint64_t off = WINDOW_BYTES - MIB; off <= WINDOW_BYTES + MIB; off += MIB / 2) {
        memset(mem + off, (int)(off >> 19 & 0xff), MIB);
        ck_assert_int_eq(rig_do_blk(u, (struct io_blk){.op = IO_BLK_WRITE,
                                                       .dev = dev,
                                                       .len_bytes = MIB,
                                                       .buf = {.region = chunk.region, .off = off}}),
                         MIB);
        memset(mem + off, 0xee, MIB);
        ck_assert_int_eq(rig_do_blk(u, (struct io_blk){.op = IO_BLK_READ,
                                                       .dev = dev,
                                                       .len_bytes = MIB,
                                                       .buf = {.region = chunk.region, .off = off}}),
                         MIB);
        ck_assert_int_eq(mem[off], (char)(off >> 19 & 0xff));
        ck_assert_int_eq(mem[off + MIB - 1], (char)(off >> 19 & 0xff));
    }
    if (!uring_caps(u)->degraded_memlock)
        ck_assert_uint_eq(rig_stat(u).unregistered, 2); /* the one place that crosses, there and back */
    uring_free(u);
}
END_TEST

/* --- Memory that somebody else still has ------------------------------------------------------------------------- */

static uint32_t n_looks, n_looks_short, n_waits; /* atomic: the grower looks */
static uint64_t fake_total_bytes;

/* Nothing is there for the first looks. */
static void fake_room(uint32_t node, enum memory_pages pages, struct memory_room *ret_room)
{
    bool is_short = __atomic_fetch_add(&n_looks, 1, __ATOMIC_RELAXED) < load_relaxed(&n_looks_short);

    (void)node;
    (void)pages;
    *ret_room =
        (struct memory_room){.available_bytes = is_short ? 0 : fake_total_bytes, .total_bytes = fake_total_bytes};
}

static void on_chunk_wait(void *ctx, uint64_t size_bytes, uint32_t node)
{
    (void)ctx;
    ck_assert_uint_eq(size_bytes, 4 * MIB);
    ck_assert_uint_eq(node, MEMORY_NODE_ANY);
    n_waits++;
}

static uint32_t n_chunks_done;

static void chunk_is_done(struct io_chunk *chunk)
{
    (void)chunk;
    n_chunks_done++;
}

static struct uring *make_short(uint32_t looks, uint64_t total_bytes)
{
    struct uring *u = rig_make_with((struct uring_config){
        .entries = 64, .chunk.room = fake_room, .chunk.pages = MEMORY_PAGES_SMALL, .on_chunk_wait = on_chunk_wait});

    n_looks = n_waits = 0;
    n_looks_short = looks;
    fake_total_bytes = total_bytes;
    ck_assert_int_eq(uring_start(u), 0);
    return u;
}

/* The last owner has ended, but the kernel is not through with its ring. */
START_TEST(test_memory_that_comes_back_is_waited_for)
{
    struct uring *u = make_short(5, GIB);
    struct io_chunk chunk = rig_request_chunk(u, 4 * MIB, IO_CHUNK_TRUSTED);

    ck_assert_int_eq(chunk.result, 0);
    ck_assert_uint_eq(n_waits, 1);
    ck_assert_int_eq(rig_request_chunk(u, 4 * MIB, IO_CHUNK_TRUSTED).result, 0);
    ck_assert_uint_eq(n_waits, 1);
    uring_free(u);
}
END_TEST

START_TEST(test_memory_that_does_not_come_is_refused)
{
    struct uring *u = make_short(UINT32_MAX, GIB);

    ck_assert_int_eq(rig_request_chunk(u, 4 * MIB, IO_CHUNK_TRUSTED).result, -ENOMEM);
    ck_assert_uint_eq(n_waits, 1);
    /* Having waited in vain, it refuses the next ones at once. */
    uint32_t before = n_looks;
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(rig_request_chunk(u, 4 * MIB, IO_CHUNK_TRUSTED).result, -ENOMEM);
    ck_assert_uint_eq(n_waits, 1);
    ck_assert_uint_le(n_looks - before, 3 * 2);
    uring_free(u);
}
END_TEST

/* No machine of that size: why wait? */
START_TEST(test_memory_that_cannot_come_is_refused_at_once)
{
    struct uring *u = make_short(UINT32_MAX, 3 * MIB);

    ck_assert_int_eq(rig_request_chunk(u, 4 * MIB, IO_CHUNK_TRUSTED).result, -ENOMEM);
    ck_assert_uint_eq(n_waits, 0);
    uring_free(u);
}
END_TEST

static char *given_back_mem; /* there is room when its page is gone */
static bool is_given_back;   /* atomic: the grower has been told */

static void room_given_back(uint32_t node, enum memory_pages pages, struct memory_room *ret_room)
{
    fake_room(node, pages, ret_room);
    if (!given_back_mem || load_relaxed(&n_looks) == 1)
        return;
    while (!__atomic_load_n(&is_given_back, __ATOMIC_ACQUIRE))
        sched_yield();
    ret_room->available_bytes = __atomic_load_n(given_back_mem, __ATOMIC_RELAXED) == 0 ? fake_total_bytes : 0;
}

/* It may be the very memory that is waited for. */
START_TEST(test_what_we_give_back_passes_who_waits)
{
    struct uring *u = rig_make_with((struct uring_config){.entries = 64,
                                                          .chunk.room = room_given_back,
                                                          .chunk.pages = MEMORY_PAGES_SMALL,
                                                          .on_chunk_wait = on_chunk_wait});
    struct io_chunk next = {.size_bytes = 4 * MIB, .node = MEMORY_NODE_ANY, .done = chunk_is_done};

    ck_assert_int_eq(uring_start(u), 0);
    n_looks = n_looks_short = n_waits = 0;
    fake_total_bytes = GIB;
    struct io_chunk chunk = rig_request_chunk(u, 4 * MIB, IO_CHUNK_TRUSTED);
    struct memory_chunk *memory = memory_chunk_ref(uring_region_chunk(u, chunk.region));
    given_back_mem = memory->mem;
    given_back_mem[0] = 1;
    n_looks = 0;
    n_looks_short = 1;
    uring_backend(u)->ops->chunk_request(uring_backend(u), &next);
    rig_run_until(u, &n_waits, 1);
    uring_backend(u)->ops->chunk_close(uring_backend(u), chunk.region);
    __atomic_store_n(&is_given_back, true, __ATOMIC_RELEASE);
    rig_run_until(u, &n_chunks_done, 1);
    ck_assert_int_eq(next.result, 0);
    memory_chunk_unref(memory);
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
    CHILD_ASSERT(rig_stat(u).windows_used == 0);
    CHILD_ASSERT(uring_device_add(u, &rig_disk, 0, &dev) == 0);
    rig_round_trip(u, dev, region);
    CHILD_ASSERT(rig_stat(u).unregistered == 2);
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
    tcase_add_checked_fixture(t, rig_setup, rig_teardown);
    tcase_add_test(t, test_reads_and_writes_in_every_mode);
    tcase_add_test(t, test_bad_requests_fail_later_and_alone);
    tcase_add_test(t, test_depth_and_urgency);
    tcase_add_test(t, test_a_large_write_goes_in_parts_beside_a_read);
    tcase_add_test(t, test_more_than_fits);
    tcase_add_test(t, test_polls);
    tcase_add_test(t, test_polls_are_bounded);
    tcase_add_test(t, test_windows);
    tcase_add_test(t, test_memory_that_comes_back_is_waited_for);
    tcase_add_test(t, test_memory_that_does_not_come_is_refused);
    tcase_add_test(t, test_memory_that_cannot_come_is_refused_at_once);
    tcase_add_test(t, test_what_we_give_back_passes_who_waits);
    tcase_add_test(t, test_bad_configs);
    tcase_add_test(t, test_without_lockable_memory_it_works_degraded);
    suite_add_tcase(s, t);
    srunner_run_all(sr, CK_NORMAL);
    int n_failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return n_failed == 0 ? 0 : 1;
}
