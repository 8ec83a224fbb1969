/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns a folder, files and the descriptors of loop devices. Between asking for a free loop device and taking it somebody
 * else may take it: a few tries. One thread.
 */
#include "client/bench/devices.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <sys/ioctl.h>

#include "client/bench/harness.h"
#include "include/base/cleanup.h"

#define TRIES 8

/* Returns the descriptor that holds the device, or a negative errno. */
static int loop_take(const char *file, char *ret_path, size_t room)
{
    cleanup_close int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    cleanup_close int backing = open(file, O_RDWR | O_DIRECT | O_CLOEXEC);
    int r = control < 0 || backing < 0 ? -errno : -EBUSY;

    for (int i = 0; r == -EBUSY && i < TRIES; i++) {
        struct loop_config config = {.fd = (uint32_t)backing,
                                     .block_size = SECTOR_BYTES,
                                     .info.lo_flags = LO_FLAGS_DIRECT_IO | LO_FLAGS_AUTOCLEAR};
        int n = ioctl(control, LOOP_CTL_GET_FREE);
        if (n < 0)
            return -errno;
        snprintf(ret_path, room, "/dev/loop%d", n);
        cleanup_close int device = open(ret_path, O_RDWR | O_CLOEXEC);
        if (device < 0)
            return -errno;
        if (ioctl(device, LOOP_CONFIGURE, &config) == 0)
            return steal_fd(&device);
        r = -errno;
    }
    return r;
}

static int file_make(const char *path, uint64_t size_bytes, bool is_sparse)
{
    cleanup_close int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    if (fd < 0 || (is_sparse && ftruncate(fd, (off_t)size_bytes) < 0))
        return -errno;
    return is_sparse ? 0 : -posix_fallocate(fd, 0, (off_t)size_bytes);
}

int devices_init(struct devices *d, enum devices_kind kind, uint32_t n, uint64_t size_bytes)
{
    char folder[64];
    int r = 0;

    assert(n <= DEVICES_FOR_A_WHILE_MAX);
    *d = (struct devices){.n = n};
    snprintf(folder, sizeof(folder), "%s/spillbench-disk-XXXXXX", harness_temporary());
    if (!mkdtemp(folder))
        return -errno;
    snprintf(d->folder, sizeof(d->folder), "%s", folder);
    for (uint32_t i = 0; r == 0 && i < n; i++) {
        snprintf(d->files[i], sizeof(d->files[i]), "%s/disk%u", folder, i);
        snprintf(d->paths[i], sizeof(d->paths[i]), "%s/disk%u", folder, i);
        r = file_make(d->files[i], size_bytes, kind == DEVICES_LOOPS_SPARSE);
        if (r < 0 || kind == DEVICES_FILES)
            continue;
        int fd = loop_take(d->files[i], d->paths[i], sizeof(d->paths[i]));
        d->fds[i] = MAX(fd, 0);
        r = fd < 0 ? -ENOTSUP : 0;
    }
    return r;
}

void devices_deinit(struct devices *d)
{
    for (uint32_t i = 0; i < d->n; i++) {
        if (d->fds[i] > 0)
            close(d->fds[i]);
        if (d->files[i][0])
            (void)unlink(d->files[i]);
    }
    if (d->folder[0])
        (void)rmdir(d->folder);
    *d = (struct devices){.n = 0};
}
