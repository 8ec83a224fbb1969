/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocking device access for the code that reads and writes superblocks, and under what fsck makes of it. Nothing else of
 * the table is ever called by it; a call would be our own bug. Direct I/O may want more alignment of memory than a sector has on few devices; callers allocate
 * whole aligned sectors.
 */
#include "client/ctl/device_backend.h"

#include <errno.h>
#include <unistd.h>

static int transfer(int fd, enum io_blk_op op, uint64_t off_bytes, char *mem, uint64_t len_bytes)
{
    while (len_bytes > 0) {
        ssize_t n = op == IO_BLK_READ ? pread(fd, mem, len_bytes, (off_t)off_bytes)
                                      : pwrite(fd, mem, len_bytes, (off_t)off_bytes);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        mem += n;
        off_bytes += (uint64_t)n;
        len_bytes -= (uint64_t)n;
    }
    return 0;
}

static int blk_now(struct io_backend *be, enum io_blk_op op, uint32_t dev, uint64_t off_bytes, void *mem,
                   uint64_t len_bytes)
{
    const struct device_backend *backend = container_of(be, struct device_backend, backend);

    (void)dev;
    if (op == IO_BLK_FLUSH)
        return fdatasync(backend->fd) < 0 ? -errno : 0;
    return transfer(backend->fd, op, off_bytes, mem, len_bytes);
}

void device_backend_init(struct device_backend *backend, int fd)
{
    static const struct io_backend_ops ops = {.blk_now = blk_now};

    *backend = (struct device_backend){.backend = {.ops = &ops}, .fd = fd};
}
