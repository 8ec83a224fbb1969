/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The backend on which `spillctl fsck` runs the daemon's recovery: one device, one thread, no concurrency. Unless
 * `writes_through`, what is written stays in memory, and is what is read from then on: the device is as it was.
 *
 * Requests that are submitted wait for fsck_backend_run(), which does them and calls their done().
 */
#pragma once

#include "client/ctl/device_backend.h"
#include "include/base/list.h"
#include "io/backend.h"

#define FSCK_REGIONS_MAX 4
#define FSCK_AHEAD_BYTES (4 * MIB)

struct fsck_sector;

struct fsck_backend {
    struct io_backend backend;
    struct device_backend device;
    bool writes_through;
    uint64_t size_bytes; /* of the device */
    struct list blks, works;
    uint8_t *regions[FSCK_REGIONS_MAX];
    uint32_t n_regions;
    struct fsck_sector *sectors; /* written, and not on the device */
    size_t n_sectors, room_sectors;
    /* What was read ahead, for reads that follow one another; dropped by a write. */
    uint8_t *ahead;
    uint64_t ahead_off_bytes, ahead_bytes, read_end_bytes;
};

must_check int fsck_backend_init(struct fsck_backend *backend, int fd, uint64_t size_bytes, bool writes_through);
void fsck_backend_deinit(struct fsck_backend *backend);
/* Until nothing is left. */
void fsck_backend_run(struct fsck_backend *backend);
