/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/support/uring_rig.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

char rig_path[256];
struct device rig_disk;
uint32_t rig_done, rig_polled, rig_chunks;
uint64_t rig_token;
uint32_t rig_revents;
static struct workers *workers;
static struct grower *grower;

void rig_setup(void)
{
    const char *tmp = getenv("TMPDIR"), *why = NULL;
    struct workers_config config = {.threads = 2};

    snprintf(rig_path, sizeof(rig_path), "%s/spillway-uring-%d", tmp ? tmp : "/tmp", getpid());
    (void)unlink(rig_path);
    ck_assert_int_eq(device_create(rig_path, RIG_DISK_BYTES, 0, &rig_disk, &why), 0);
    ck_assert_int_eq(device_fill(rig_disk.fd, RIG_DISK_BYTES, NULL, NULL), 0);
    ck_assert_int_eq(workers_new(&config, &workers), 0);
    ck_assert_int_eq(grower_new(&grower), 0);
    rig_polled = rig_done = rig_chunks = 0;
    rig_token = 0;
}

void rig_teardown(void)
{
    grower_free(grower);
    workers_free(workers);
    device_close(&rig_disk);
    (void)unlink(rig_path);
}

static void on_poll(void *ctx, uint64_t token, uint32_t revents)
{
    ck_assert_ptr_nonnull(ctx);
    rig_polled++;
    rig_token = token;
    rig_revents = revents;
}

static void on_chunk(void *ctx, uint32_t region, const struct memory_chunk *chunk)
{
    ck_assert_ptr_nonnull(ctx);
    ck_assert_uint_lt(region, CHUNKS_MAX);
    ck_assert_uint_gt(chunk->size_bytes, 0);
    rig_chunks++;
}

struct uring *rig_make_with(struct uring_config config)
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

struct uring *rig_make(void)
{
    struct uring *u = rig_make_with((struct uring_config){.entries = 64});

    ck_assert_int_eq(uring_start(u), 0);
    return u;
}

void rig_run_until(struct uring *u, const uint32_t *counter, uint32_t n)
{
    while (*counter < n)
        ck_assert_int_ge(uring_run(u, 10 * SECOND_NS), 0);
}

static void blk_done(struct io_blk *blk)
{
    (void)blk;
    rig_done++;
}

static void work_done(struct io_work *work)
{
    (void)work;
    rig_done++;
}

static void chunk_done(struct io_chunk *chunk)
{
    (void)chunk;
    rig_done++;
}

void rig_submit(struct uring *u, struct io_blk *blk)
{
    blk->done = blk_done;
    uring_backend(u)->ops->blk_submit(uring_backend(u), blk);
}

int32_t rig_do_blk(struct uring *u, struct io_blk blk)
{
    uint32_t before = rig_done;

    rig_submit(u, &blk);
    ck_assert_uint_eq(rig_done, before); /* never from within rig_submit */
    rig_run_until(u, &rig_done, before + 1);
    return blk.result;
}

struct uring_stat rig_stat(const struct uring *u)
{
    struct uring_stat stat;

    uring_stat(u, &stat);
    ck_assert_uint_eq(stat.bogus, 0);
    return stat;
}

/* Writes, flushes and reads back through the region; a second reader looks at the file itself. */
void rig_round_trip(struct uring *u, uint16_t dev, uint32_t region)
{
    char *mem = uring_address(u, (struct io_buf){.region = region}, 2 * MIB);
    char *seen = aligned_alloc(4096, MIB);

    ck_assert_ptr_nonnull(mem);
    for (uint32_t i = 0; i < MIB; i++)
        mem[i] = (char)(i * 7 + i / 4096);
    ck_assert_int_eq(rig_do_blk(u, (struct io_blk){.op = IO_BLK_WRITE,
                                                   .dev = dev,
                                                   .len_bytes = MIB,
                                                   .off_bytes = 3 * MIB,
                                                   .buf = {.region = region}}),
                     MIB);
    ck_assert_int_eq(rig_do_blk(u, (struct io_blk){.op = IO_BLK_FLUSH, .dev = dev}), 0);
    ck_assert_int_eq(uring_backend(u)->ops->blk_now(uring_backend(u), IO_BLK_READ, dev, 3 * MIB, seen, MIB), 0);
    ck_assert_mem_eq(seen, mem, MIB);
    ck_assert_int_eq(rig_do_blk(u, (struct io_blk){.op = IO_BLK_READ,
                                                   .dev = dev,
                                                   .len_bytes = MIB,
                                                   .off_bytes = 3 * MIB,
                                                   .buf = {.region = region, .off = MIB}}),
                     MIB);
    ck_assert_mem_eq(mem + MIB, mem, MIB);
    free(seen);
}

void rig_submit_work(struct uring *u, struct io_work *work)
{
    work->done = work_done;
    uring_backend(u)->ops->work_submit(uring_backend(u), work);
}

struct io_chunk rig_request_chunk(struct uring *u, uint64_t size_bytes, enum io_chunk_kind kind)
{
    struct io_chunk chunk = {
        .kind = kind, .node = UINT32_MAX, .size_bytes = size_bytes, .done = chunk_done, .region = IO_REGION_NONE};
    uint32_t before = rig_done;

    uring_backend(u)->ops->chunk_request(uring_backend(u), &chunk);
    ck_assert_uint_eq(rig_done, before);
    rig_run_until(u, &rig_done, before + 1);
    return chunk;
}
