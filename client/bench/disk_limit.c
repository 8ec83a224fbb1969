/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Beside io/uring.c the one file that knows liburing: what a device can do is what the kernel's own interface gets of it, and
 * nothing of ours may stand between. Buffers that may not be locked are used unregistered. One thread.
 */
#include "client/bench/disk_limit.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <string.h>

#include "client/bench/memory.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define DEPTH_MAX 64

struct run {
    const struct disk_limit *limit;
    struct io_uring ring;
    char *memory; /* a block for each request */
    bool is_fixed;
    int fd;
    uint64_t n_blocks; /* of the file */
    unsigned n_free;
    unsigned free[DEPTH_MAX];
};

static uint64_t block_of(const struct run *run, uint64_t number)
{
    uint64_t half = run->n_blocks / 2;

    return run->limit->is_both ? number % 2 * half + number / 2 % half : number % run->n_blocks;
}

static void ask(struct run *run, uint64_t number)
{
    const struct disk_limit *l = run->limit;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&run->ring);
    unsigned slot = run->free[--run->n_free];
    char *block = run->memory + slot * l->block_bytes;
    bool is_write = l->is_both ? number % 2 : l->is_write;
    uint64_t offset = block_of(run, number) * l->block_bytes;
    unsigned len_bytes = (unsigned)l->block_bytes;

    if (is_write && run->is_fixed)
        io_uring_prep_write_fixed(sqe, 0, block, len_bytes, offset, 0);
    else if (is_write)
        io_uring_prep_write(sqe, 0, block, len_bytes, offset);
    else if (run->is_fixed)
        io_uring_prep_read_fixed(sqe, 0, block, len_bytes, offset, 0);
    else
        io_uring_prep_read(sqe, 0, block, len_bytes, offset);
    sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data64(sqe, slot);
}

static int move_all(struct run *run)
{
    uint64_t n = run->limit->bytes / run->limit->block_bytes, asked = 0, done = 0;
    int r = 0;

    while (done < n && r >= 0) {
        struct io_uring_cqe *cqe;
        unsigned head, n_seen = 0;

        while (run->n_free > 0 && asked < n)
            ask(run, asked++);
        r = io_uring_submit_and_wait(&run->ring, 1);
        if (r == -EINTR)
            r = 0;
        io_uring_for_each_cqe(&run->ring, head, cqe)
        {
            if (cqe->res != (int)run->limit->block_bytes)
                r = cqe->res < 0 ? cqe->res : -EIO;
            run->free[run->n_free++] = (unsigned)cqe->user_data;
            n_seen++;
        }
        io_uring_cq_advance(&run->ring, n_seen);
        done += n_seen;
    }
    return MIN(r, 0);
}

static int ring_open(struct run *run)
{
    const struct iovec buffers = {.iov_base = run->memory, .iov_len = run->limit->depth * run->limit->block_bytes};
    int r = io_uring_queue_init(DEPTH_MAX, &run->ring, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);

    if (r == -EINVAL) /* before Linux 6.1 */
        r = io_uring_queue_init(DEPTH_MAX, &run->ring, 0);
    if (r < 0)
        return r;
    r = io_uring_register_files(&run->ring, &run->fd, 1);
    run->is_fixed = r == 0 && io_uring_register_buffers(&run->ring, &buffers, 1) == 0;
    if (r < 0)
        io_uring_queue_exit(&run->ring);
    return r;
}

int disk_limit_run(const struct disk_limit *l, double *ret_bytes_a_s)
{
    struct run run = {.limit = l, .n_blocks = l->file_bytes / l->block_bytes, .n_free = l->depth};
    uint64_t memory_bytes = l->depth * l->block_bytes;
    cleanup_close int fd = open(l->path, (l->is_write || l->is_both ? O_RDWR : O_RDONLY) | O_DIRECT | O_CLOEXEC);
    int r = fd < 0 ? -errno : 0;

    assert(l->depth <= DEPTH_MAX && run.n_blocks > l->is_both);
    run.fd = fd;
    run.memory = r == 0 ? memory_map(memory_bytes, MEMORY_HUGE) : NULL;
    if (r == 0 && !run.memory)
        r = -ENOMEM;
    if (r == 0) {
        memset(run.memory, 0x5a, memory_bytes);
        for (unsigned i = 0; i < l->depth; i++)
            run.free[i] = i;
        r = ring_open(&run);
    }
    if (r == 0) {
        uint64_t start_ns = now_ns();

        r = move_all(&run);
        *ret_bytes_a_s = (double)l->bytes / seconds_since(start_ns);
        io_uring_queue_exit(&run.ring);
    }
    memory_unmap(run.memory, memory_bytes);
    if (r < 0)
        fprintf(stderr, "spillbench: %s: %s\n", l->path, strerrordesc_np(-r));
    return r;
}
