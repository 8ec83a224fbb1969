/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Power loss: what was written below a real daemon, in order, and what a loss at any time may leave of it.
 *
 *   fuse.c         the device that remembers
 *   power.c        `power`: a run, then its cuts
 *   power_cut.c    what a cut leaves: all that was flushed, and of the rest nothing, all, or a part
 *   power_look.c   the store and tiering open what is left; the oracle is asked about everything
 */
#pragma once

#include "tests/torture/torture.h"

#define P_ENTRIES_MAX 200000
#define P_DISK_BYTES (128 * MIB)

enum p_type { P_WRITE, P_FLUSH };

/* Times are ticks of the oracle's log_position: each arrival and each answer is one. */
struct p_entry {
    uint32_t type;
    uint32_t len_bytes;
    uint64_t off_bytes;
    uint64_t data_at; /* in the file of data */
    uint64_t arrived, answered;
};

struct p_log {
    uint32_t n;
    uint32_t reserved;
    uint64_t data_bytes;
    struct p_entry at[P_ENTRIES_MAX];
};

struct p_device {
    pid_t server;
    int alive[2]; /* a pipe: who serves ends with us, and takes the mount with him */
};

/* `image` is what is read and written through it. -ENOENT, -EACCES, -EPERM: not here. */
int device_mount(struct p_device *d, const char *point, int image, struct p_log *log, int data,
                 struct t_oracle *oracle);
void device_unmount(struct p_device *d);

/* --- What is left, and whether it may be so ------------------------------------------------------------------------------ */

struct look;

struct look *look_new(const struct t_place *p);
void look_free(struct look *l);
/* For good, or until look_undo(). */
void look_write(struct look *l, uint64_t off_bytes, const void *bytes, uint32_t len_bytes, bool for_good);
/* Opens what is there as a daemon would, and asks the oracle about everything. A failure ends the process; `what` says in
 * which cut. Returns how many things were looked at. */
uint64_t look_check(struct look *l, uint64_t cut, bool cache_too, const char *what);
/* As before the first look_write() that was not for good; what opening has written goes, too. */
void look_undo(struct look *l);

struct p_counts {
    uint64_t cuts, looked_at, lost, torn;
};
/* All prefixes if max is 0, else about so many cuts. */
void cut_all(struct look *l, const struct p_log *log, int data, uint64_t seed, uint64_t max,
             struct p_counts *ret_counts);
