/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opens, locks, measures and fills devices. Stateless; each device belongs to its opener.
 *
 * The descriptor is always opened afresh, never inherited or duplicated: the flock hangs on the open file, and the
 * kernel drops it only with the last in-flight request of a dead owner. Whoever gets the lock knows that no write of
 * the past is still under way.
 */
#include "io/device.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "include/base/cleanup.h"
#include "include/base/limits.h"

#define FILE_BLOCK_BYTES 512 /* unit of st_blocks */

static int fail(int r, const char *why, const char **ret_why)
{
    *ret_why = why;
    return r;
}

static const char *open_failure(int error)
{
    switch (error) {
    case ENOENT:
        return "there is no such file or device";
    case EACCES:
    case EPERM:
        return "the daemon's user may not open it for reading and writing";
    case EBUSY:
        return "the block device is mounted, or part of something else, or in use by another daemon";
    case EISDIR:
        return "it is a directory";
    case ELOOP:
        return "it is a symbolic link that leads nowhere";
    case EROFS:
        return "it is on a read-only file system";
    case EEXIST:
        return "it exists already";
    default:
        return "it cannot be opened";
    }
}

/* O_EXCL on a block device (only there does it mean anything without O_CREAT) keeps mounts and other users out. */
static int open_direct(const char *path, int flags, mode_t mode, bool *ret_is_direct)
{
    flags |= O_CLOEXEC | O_NONBLOCK;
    int fd = open(path, flags | O_DIRECT, mode);

    *ret_is_direct = fd >= 0;
    if (fd < 0 && errno == EINVAL) { /* tmpfs before Linux 6.6, some network file systems */
        if (flags & O_CREAT)
            (void)unlink(path); /* O_DIRECT is refused after the creation, and O_EXCL says that it was ours */
        fd = open(path, flags, mode);
    }
    return fd < 0 ? -errno : fd; // cppcheck-suppress resourceLeak; it is the caller's
}

/* -1 if the kernel does not say, as on file systems without a device of their own. */
static int8_t read_rotational(dev_t dev)
{
    static const char *const disks[] = {"", "../"}; /* the second for a partition */
    char path[96];

    for (size_t i = 0; i < ARRAY_LEN(disks); i++) {
        snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%squeue/rotational", major(dev), minor(dev), disks[i]);
        cleanup_fclose FILE *f = fopen(path, "re");
        int c = f ? fgetc(f) : EOF;
        if (c == '0' || c == '1')
            return (int8_t)(c - '0');
    }
    return -1;
}

static int identify_block(struct device *d, const struct stat *st, const char **ret_why)
{
    uint64_t size_bytes;
    int logical_bytes;

    if (ioctl(d->fd, BLKGETSIZE64, &size_bytes) < 0 || ioctl(d->fd, BLKSSZGET, &logical_bytes) < 0)
        return fail(-errno, "the block device does not tell its size", ret_why);
    d->is_block = true;
    d->size_bytes = size_bytes;
    d->logical_block_bytes = (uint32_t)logical_bytes;
    d->memory_align_bytes = d->logical_block_bytes;
    d->is_rotational = read_rotational(st->st_rdev);
    return 0;
}

static int identify_file(struct device *d, const struct stat *st, bool sparse_ok, const char **ret_why)
{
    struct statx sx = {0};

    if (!sparse_ok && (uint64_t)st->st_blocks * FILE_BLOCK_BYTES < (uint64_t)st->st_size)
        return fail(-EINVAL, "the file has holes: fill it first (spillctl device format)", ret_why);
    d->size_bytes = (uint64_t)st->st_size;
    d->logical_block_bytes = FILE_BLOCK_BYTES;
    d->memory_align_bytes = FILE_BLOCK_BYTES;
    d->is_rotational = read_rotational(st->st_dev);
    /* Linux 6.1 and later, not on every file system: 0 means that it does not say. */
    if (statx(d->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) == 0 && (sx.stx_mask & STATX_DIOALIGN) &&
        sx.stx_dio_offset_align != 0) {
        d->logical_block_bytes = sx.stx_dio_offset_align;
        d->memory_align_bytes = sx.stx_dio_mem_align;
    }
    return 0;
}

static int identify(struct device *d, bool sparse_ok, const char **ret_why)
{
    struct stat st;
    int r;

    if (fstat(d->fd, &st) < 0)
        return fail(-errno, "it cannot be examined", ret_why);
    if (S_ISBLK(st.st_mode))
        r = identify_block(d, &st, ret_why);
    else if (S_ISREG(st.st_mode))
        r = identify_file(d, &st, sparse_ok, ret_why);
    else
        r = fail(-EINVAL, "it is neither a file nor a block device", ret_why);
    if (r < 0)
        return r;
    if (d->logical_block_bytes > SECTOR_BYTES || d->memory_align_bytes > SECTOR_BYTES)
        return fail(-EINVAL, "its blocks are larger than 4 KiB", ret_why);
    d->size_bytes &= ~((uint64_t)SECTOR_BYTES - 1);
    if (d->size_bytes == 0)
        return fail(-ENOSPC, "it is smaller than one sector of 4 KiB", ret_why);
    return 0;
}

/* O_NONBLOCK was for opening only: a FIFO under this name must not hang the daemon. */
static int lock_and_settle(int fd, const char **ret_why)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
        return fail(-errno, "its flags cannot be changed", ret_why);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK ? fail(-EBUSY, "in use by another daemon", ret_why)
                                    : fail(-errno, "it cannot be locked", ret_why);
    return 0;
}

int device_open(const char *path, uint32_t flags, struct device *ret_device, const char **ret_why)
{
    cleanup_(device_close) struct device d = DEVICE_NONE;
    int access = flags & DEVICE_READ_ONLY ? O_RDONLY : O_RDWR;
    struct stat st;

    if (stat(path, &st) < 0)
        return fail(-errno, open_failure(errno), ret_why);
    int fd = open_direct(path, access | (S_ISBLK(st.st_mode) ? O_EXCL : 0), 0, &d.is_direct);
    if (fd < 0)
        return fail(fd, open_failure(-fd), ret_why);
    d.fd = fd;
    int r = lock_and_settle(fd, ret_why);
    if (r == 0)
        r = identify(&d, flags & DEVICE_SPARSE, ret_why);
    if (r < 0)
        return r;
    *ret_device = d;
    d = DEVICE_NONE;
    return 0;
}

static int allocate(int fd, uint64_t size_bytes, bool sparse, const char **ret_why)
{
    int r = sparse ? (ftruncate(fd, (off_t)size_bytes) < 0 ? -errno : 0) : -posix_fallocate(fd, 0, (off_t)size_bytes);

    if (r < 0)
        *ret_why = r == -ENOSPC ? "the file system has not that much room" : "its space cannot be allocated";
    return r;
}

int device_create(const char *path, uint64_t size_bytes, uint32_t flags, struct device *ret_device,
                  const char **ret_why)
{
    cleanup_(device_close) struct device d = DEVICE_NONE;

    if (size_bytes == 0 || size_bytes % SECTOR_BYTES != 0 || size_bytes > INT64_MAX)
        return fail(-EINVAL, "the size is not a multiple of 4 KiB", ret_why);
    int fd = open_direct(path, O_RDWR | O_CREAT | O_EXCL, 0600, &d.is_direct);
    if (fd < 0)
        return fail(fd, open_failure(-fd), ret_why);
    d.fd = fd;
    int r = lock_and_settle(fd, ret_why);
    if (r == 0)
        r = allocate(fd, size_bytes, flags & DEVICE_SPARSE, ret_why);
    if (r == 0)
        r = identify(&d, true, ret_why);
    if (r < 0) {
        (void)unlink(path);
        return r;
    }
    *ret_device = d;
    d = DEVICE_NONE;
    return 0;
}

void device_close(struct device *device)
{
    close_p(&device->fd);
    *device = DEVICE_NONE;
}

static int write_all(int fd, const char *mem, uint64_t off_bytes, uint64_t len_bytes)
{
    while (len_bytes > 0) {
        ssize_t n = pwrite(fd, mem, len_bytes, (off_t)off_bytes);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        mem += n, off_bytes += (uint64_t)n, len_bytes -= (uint64_t)n;
    }
    return 0;
}

int device_fill(int fd, uint64_t size_bytes, device_progress progress, void *ctx)
{
    cleanup_free void *zeros = aligned_alloc(SECTOR_BYTES, DEVICE_FILL_BYTES);

    if (!zeros)
        return -ENOMEM;
    memset(zeros, 0, DEVICE_FILL_BYTES);
    for (uint64_t off = 0; off < size_bytes;) {
        uint64_t len_bytes = MIN(size_bytes - off, DEVICE_FILL_BYTES);

        if (progress && !progress(ctx, off, size_bytes))
            return -ECANCELED;
        int r = write_all(fd, zeros, off, len_bytes);
        if (r < 0)
            return r;
        off += len_bytes;
    }
    if (fdatasync(fd) < 0)
        return -errno;
    if (progress)
        (void)progress(ctx, size_bytes, size_bytes);
    return 0;
}

int device_size_now(const struct device *device, uint64_t *ret_size_bytes)
{
    struct stat st;
    uint64_t size_bytes;

    if (device->is_block) {
        if (ioctl(device->fd, BLKGETSIZE64, &size_bytes) < 0)
            return -errno;
    } else {
        if (fstat(device->fd, &st) < 0)
            return -errno;
        size_bytes = (uint64_t)st.st_size;
    }
    *ret_size_bytes = size_bytes;
    return 0;
}
