/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Superblocks and partition headers: what a device says about itself, and where everything on it lies. Blocking, for
 * formatting and opening; the one header that is written while running goes through superblock_header_fill().
 */
#pragma once

#include "include/base/base.h"
#include "io/backend.h"
#include "io/format.h"
#include "io/store.h"

/* Where the areas of one partition lie. In bytes from the start of the device, unless named otherwise. */
struct geometry {
    uint64_t header_off_bytes[2];
    uint64_t log_off_bytes;
    uint64_t log_sectors;
    uint64_t sums_off_bytes; /* one sector a segment */
    uint64_t segments_off_bytes;
    uint32_t segment_bytes;
    uint32_t segment_sectors;
    uint32_t n_segments;
    uint32_t slots; /* of granule checksums, a segment */
    uint64_t seed;  /* of checksums of this partition's metadata */
};

/* -EINVAL if a format is out of bounds or too small for FORMAT_SEGMENTS_MIN segments; device_bytes is rounded first. */
must_check int geometry_of(const struct store_format *format, uint32_t partition, struct geometry *ret_geometry);

/* Reads and judges both superblocks. Errors and ret_why as store_open(). */
must_check int superblock_read(struct io_backend *be, uint32_t dev, uint64_t device_bytes,
                               struct store_format *ret_format, uint32_t *ret_version, const char **ret_why);

/* Reads both headers of a partition and returns the one that counts. -EUCLEAN if neither is whole. */
must_check int superblock_header_read(struct io_backend *be, uint32_t dev, const struct geometry *g, uint32_t partition,
                                      struct format_partition *ret_header);
/* Completes magic and checksum, and returns where it belongs by its sequence. */
uint64_t superblock_header_fill(const struct geometry *g, uint32_t partition, struct format_partition *header);
