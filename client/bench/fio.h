/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ceiling of a device: fio with io_uring, fixed buffers, registered files and O_DIRECT, where it is installed.
 */
#pragma once

#include "include/base/base.h"

#define FIO_FILES_MAX 2

struct fio_job {
    const char *files[FIO_FILES_MAX]; /* the second may be NULL; requests go to them in turns */
    uint64_t file_bytes, block_bytes;
    unsigned depth; /* over all files */
    bool is_write, is_random;
    double seconds;
};

struct fio_result {
    double bytes_a_s, p99_us, cpu_ms_a_gb;
};

/* -ENOENT: not installed; anything else it has said. */
must_check int fio_run(const struct fio_job *job, struct fio_result *ret_result);
/* Writes all of the job's files once. Errors as above. */
must_check int fio_fill(const struct fio_job *job);
