/* SPDX-License-Identifier: Apache-2.0 */
/* The log's blocks as they lie in the ring, read in its order and ahead, where the backend can. */
#pragma once

#include "include/base/base.h"
#include "io/backend.h"
#include "io/log.h"

#define LOG_WINDOWS 4

/* As much as is read at once. */
struct log_window {
    struct io_ahead read;
    uint8_t *mem;
    uint64_t place, sectors;
};

struct log_reader {
    const struct log *l;
    struct io_backend *be;
    uint32_t dev;
    uint64_t ring_off_bytes;
    struct log_window windows[LOG_WINDOWS];
    uint32_t n_windows;    /* that there was memory for */
    uint32_t current;      /* window: the one that is looked at */
    uint32_t n_ahead;      /* windows behind it that are being read */
    uint32_t n_ahead_max;  /* for now: a short log is not read far beyond its end */
    uint64_t lead_sectors; /* of the window before, in front of the current one */
};

/* -ENOMEM if there is none for even one window; with less than for all, less is read ahead. */
must_check int log_reader_init(struct log_reader *r, const struct log *l, struct io_backend *be, uint32_t dev,
                               const struct geometry *g);
void log_reader_deinit(struct log_reader *r);

/* The block at lsn if it is whole, else NULL. It stays until the next call. Blocking. */
must_check int log_read_block(struct log_reader *r, uint64_t lsn, const struct format_block **ret);
/* The block that follows the mark, here or at the ring's start, else NULL. */
must_check int log_read_after(struct log_reader *r, struct log_mark at, const struct format_block **ret);
