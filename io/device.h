/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices that objects are kept on: a fully written file, or a raw block device. Opened afresh, for direct I/O, and
 * locked; the kernel drops the lock with the last in-flight request of whoever held it.
 */
#pragma once

#include "include/base/base.h"

struct device {
    int fd;
    bool is_block;
    bool is_direct;       /* false: the file system has no O_DIRECT, and bytes go through the page cache */
    int8_t is_rotational; /* -1: unknown */
    uint32_t logical_block_bytes;
    uint32_t memory_align_bytes; /* of buffers */
    uint64_t size_bytes;         /* rounded down to SECTOR_BYTES */
};
#define DEVICE_NONE                                                                                                    \
    (struct device)                                                                                                    \
    {                                                                                                                  \
        .fd = -1                                                                                                       \
    }

enum device_flags {
    DEVICE_SPARSE = 1,    /* holes are fine: it will be filled next, or was asked for like that */
    DEVICE_READ_ONLY = 2, /* only looked at; still locked */
};

/*
 * On failure ret_why (static, never NULL) tells the reason in words. -EBUSY: another daemon, or the kernel, has it.
 * -EINVAL: neither file nor block device, has holes, or blocks above SECTOR_BYTES. -ENOSPC: smaller than one sector.
 */
must_check int device_open(const char *path, uint32_t flags, struct device *ret_device, const char **ret_why);
/*
 * Creates a file (mode 0600, must not exist) of that size, to be filled, or with DEVICE_SPARSE one hole; opened and locked
 * as above.
 */
must_check int device_create(const char *path, uint64_t size_bytes, uint32_t flags, struct device *ret_device,
                             const char **ret_why);
void device_close(struct device *device);

/* done of total bytes are written. False cancels. */
typedef bool (*device_progress)(void *ctx, uint64_t done_bytes, uint64_t total_bytes);

/* Writes zeros all over it, and flushes. -ECANCELED, -ENOSPC, -EIO. size_bytes is a multiple of SECTOR_BYTES. */
must_check int device_fill(int fd, uint64_t size_bytes, device_progress progress, void *ctx);

/* What it has now: less than device->size_bytes means that somebody truncated it. */
must_check int device_size_now(const struct device *device, uint64_t *ret_size_bytes);
