/* SPDX-License-Identifier: Apache-2.0 */
/* The report of `spillctl fsck` for people, out of the JSON that programs get. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "client/ctl/fsck.h"
#include "include/base/units.h"

static const char *size_of(struct json_object *from, const char *path, char text[static UNITS_TEXT_BYTES])
{
    return size_print((uint64_t)ctl_number(from, path), text);
}

static const char *whole(struct json_object *from, const char *path, size_t index)
{
    return json_object_get_boolean(json_object_array_get_idx(ctl_find(from, path), index)) ? "good" : "DAMAGED";
}

static void print_device(const struct fsck *f)
{
    const struct store_format *format = &f->copies.format;
    char size[UNITS_TEXT_BYTES], segment[UNITS_TEXT_BYTES], made[32] = "";
    time_t created = (time_t)format->created_s;
    struct tm tm;

    if (localtime_r(&created, &tm))
        strftime(made, sizeof(made), "%F %T", &tm);
    printf("%s: label '%s', %s in %u partition%s, segments of %s, format %u, made %s\n", f->path, format->label,
           size_print(format->device_bytes, size), format->partitions, format->partitions == 1 ? "" : "s",
           size_print(format->segment_bytes, segment), f->copies.version, made);
    printf("  superblocks  first %s, copy %s\n", whole(f->report, "superblocks_whole", 0),
           whole(f->report, "superblocks_whole", 1));
}

static void print_contents(struct json_object *row)
{
    char cache[UNITS_TEXT_BYTES], scratch[UNITS_TEXT_BYTES], durable[UNITS_TEXT_BYTES];

    printf("  log          %.0f entries in %.0f blocks, from lsn %.0f to %.0f\n", ctl_number(row, "log.entries"),
           ctl_number(row, "log.blocks"), ctl_number(row, "log.from_lsn"), ctl_number(row, "log.to_lsn"));
    printf("  pieces       %.0f cache (%s), %.0f scratch (%s), %.0f durable (%s), in %.0f spaces\n",
           ctl_number(row, "live.cache.pieces"), size_of(row, "live.cache.bytes", cache),
           ctl_number(row, "live.scratch.pieces"), size_of(row, "live.scratch.bytes", scratch),
           ctl_number(row, "live.durable.pieces"), size_of(row, "live.durable.bytes", durable),
           ctl_number(row, "spaces"));
    printf("  segments     %.0f of %.0f free\n", ctl_number(row, "segments.free"), ctl_number(row, "segments.all"));
    if (ctl_number(row, "damaged_before") > 0)
        printf("  damaged      found so by the daemon, of which reads fail with EBADMSG: %.0f\n",
               ctl_number(row, "damaged_before"));
    if (ctl_find(row, "damaged"))
        printf("  data         all of it was read; damaged pieces: %.0f\n", ctl_number(row, "damaged"));
    if (ctl_number(row, "missed") > 0)
        printf("               of these a crash may have cut off, so that they are misses: %.0f, all of cache\n",
               ctl_number(row, "missed"));
}

static void print_partition(struct json_object *row)
{
    char log[UNITS_TEXT_BYTES];
    bool is_clean = json_object_get_boolean(ctl_find(row, "clean")), is_open = ctl_find(row, "log") != NULL;

    printf("partition %.0f: ", ctl_number(row, "partition"));
    if (is_clean)
        printf("closed cleanly\n");
    else if (is_open)
        printf("not closed cleanly: the next start reads %s of log\n", size_of(row, "log.bytes", log));
    else
        printf("not closed cleanly\n");
    printf("  headers      %s, %s; opened %.0f times\n", whole(row, "headers_whole", 0), whole(row, "headers_whole", 1),
           ctl_number(row, "epoch"));
    if (is_open)
        print_contents(row);
}

static void print_damaged(struct json_object *damaged)
{
    size_t n = json_object_array_length(damaged);

    for (size_t i = 0; i < n && i < FSCK_DAMAGED_LINES; i++) {
        struct json_object *o = json_object_array_get_idx(damaged, i);

        printf("damaged: %s, space %s, key %s, group %.0f, part %.0f, piece %.0f; partition %.0f, segment %.0f, offset "
               "%.0f, "
               "%.0f bytes%s\n",
               ctl_text(o, "durability"), ctl_text(o, "space"), ctl_text(o, "key"), ctl_number(o, "group"),
               ctl_number(o, "part"), ctl_number(o, "piece"), ctl_number(o, "partition"), ctl_number(o, "segment"),
               ctl_number(o, "offset_bytes"), ctl_number(o, "size_bytes"),
               json_object_get_boolean(ctl_find(o, "bytes_whole")) ? ", only its sums" : "");
    }
    if (n > FSCK_DAMAGED_LINES)
        printf("damaged: and %zu more, which -o json lists\n", n - FSCK_DAMAGED_LINES);
}

static void print_problems(struct json_object *problems, bool repair)
{
    bool is_repairable = false;

    for (size_t i = 0; i < json_object_array_length(problems); i++) {
        struct json_object *o = json_object_array_get_idx(problems, i);
        bool is_repaired = json_object_get_boolean(ctl_find(o, "repaired"));

        is_repairable |= json_object_get_boolean(ctl_find(o, "repairable"));
        printf("%s: ", is_repaired ? "REPAIRED" : "ERROR");
        if (ctl_find(o, "partition"))
            printf("partition %.0f: ", ctl_number(o, "partition"));
        printf("%s\n", ctl_text(o, "what"));
    }
    if (is_repairable && !repair)
        printf("`spillctl fsck --repair` can repair some of it.\n");
}

void fsck_print(const struct fsck *f)
{
    struct json_object *partitions = ctl_find(f->report, "partitions");

    if (f->copies.format.partitions > 0)
        print_device(f);
    for (size_t i = 0; i < json_object_array_length(partitions); i++)
        print_partition(json_object_array_get_idx(partitions, i));
    print_damaged(f->damaged);
    print_problems(f->problems, f->repair);
    if (f->n_refused > 0)
        printf("The daemon refuses this device. What is on it cannot be repaired; `spillctl device format --force` "
               "makes it\n"
               "usable again, and all that is on it is lost. Copy it first if somebody should look.\n");
    if (json_object_array_length(f->problems) == 0)
        printf("%s: nothing is wrong\n", f->path);
}
