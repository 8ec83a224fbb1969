/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ceiling of a device where no fio is: io_uring, one registered file, registered buffers, O_DIRECT, so many requests
 * outstanding, one behind the other from the file's start.
 */
#pragma once

#include "include/base/base.h"

struct disk_limit {
    const char *path; /* file_bytes of it are used, again and again */
    uint64_t file_bytes, block_bytes;
    unsigned depth;
    bool is_write, is_both; /* is_both: reads of the file's first half and writes of its second, in turns */
    uint64_t bytes;         /* to move, both ways together */
};

/* Bytes a second; 0 or a negative errno (said). */
must_check int disk_limit_run(const struct disk_limit *limit, double *ret_bytes_a_s);
