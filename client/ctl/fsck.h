/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of `spillctl fsck` share.
 *
 *   fsck.c            options, the device, its fixed places, repairs, the status
 *   fsck_partition.c  one partition as a start of the daemon would find it
 *   fsck_data.c       reading the pieces that live
 *   fsck_print.c      the report for people
 *   fsck_pieces.c     what a log leaves alive
 *   fsck_backend.c    where recovery runs
 *
 * The report is the JSON object that `-o json` prints; docs/admin-json.md describes it.
 */
#pragma once

#include "client/ctl/ctl.h"
#include "client/ctl/fsck_backend.h"
#include "client/ctl/fsck_pieces.h"
#include "io/device.h"
#include "io/store.h"

/* Status of the process, as fsck(8) has it; EX_USAGE besides. */
#define FSCK_REPAIRED 1
#define FSCK_LEFT 4
#define FSCK_CANNOT 8

#define FSCK_DAMAGED_LINES 20 /* for people; JSON has all */

struct fsck {
    const char *path;
    bool data, repair, entries, json;
    struct device device;
    struct store_copies copies;
    struct json_object *report, *problems, *damaged; /* the last two are in the first */
    uint32_t n_refused;                              /* partitions that a start would refuse */
    /* Damaged pieces that a repair drops. */
    struct fsck_drop {
        uint16_t partition;
        struct store_entry entry;
    } * drops;
    size_t n_drops, room_drops;
};

/* partition < 0: of the device. A problem that repairs are made for gets "repaired" later. */
void fsck_problem(struct fsck *f, int partition, bool is_repairable, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void fsck_number(struct json_object *o, const char *name, uint64_t value);

/* Without its sums a piece can be read as a whole, but no part of it. */
enum fsck_damage { FSCK_WHOLE, FSCK_DAMAGED_BYTES, FSCK_DAMAGED_SUMS };

/* One partition while it is looked at. */
struct fsck_open {
    struct fsck_backend backend;
    struct fsck_pieces pieces;
    struct store *store;
    const struct store_entry **sorted; /* pieces.n of them, by their place */
    uint8_t *damage;                   /* with --data: enum fsck_damage of each of these */
};

/* Adds the partition to the report. An error is of this process or of the device: -ENOMEM, -EIO. */
must_check int fsck_partition(struct fsck *f, uint16_t partition);
/* On the device itself: drops f->drops of this partition. */
must_check int fsck_partition_drop(struct fsck *f, uint16_t partition);
/* Reads all live pieces of an open store, and marks those whose bytes are not what was put. */
must_check int fsck_data(struct fsck_open *o);
void fsck_print(const struct fsck *f);
