/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `spillctl device`: the daemon's devices, a line each, summed over their partitions. `spillctl device format` is in
 * device_format.c.
 */
#include <stdio.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "client/ctl/table.h"

static const struct column columns[] = {
    {"DEVICE", "name", COLUMN_TEXT},
    {"STATE", "state", COLUMN_TEXT},
    {"CAPACITY", "capacity_bytes", COLUMN_SIZE},
    {"LIVE", "sum.live_bytes", COLUMN_SIZE},
    {"FREE", "sum.free_bytes", COLUMN_SIZE},
    {"WRITTEN", "sum.written_bytes", COLUMN_SIZE},
    {"READ", "sum.got_bytes", COLUMN_SIZE},
    {"DAY'S BUDGET", "writes.budget_day_bytes", COLUMN_SIZE},
    {"OVER IT", "writes.over_bytes", COLUMN_SIZE},
    {"DROPPED", "writes.dropped_bytes", COLUMN_SIZE},
    {"LOG", "sum.log_percent", COLUMN_PERCENT},
    {"BAD SUMS", "sum.checksum_errors", COLUMN_COUNT},
    {"BAD WRITES", "sum.write_errors", COLUMN_COUNT},
    {"PATH", "path", COLUMN_TEXT},
};

static double sum(struct json_object *partitions, const char *name)
{
    double total = 0;

    for (size_t i = 0; json_object_is_type(partitions, json_type_array) && i < json_object_array_length(partitions);
         i++)
        total += ctl_number(json_object_array_get_idx(partitions, i), name);
    return total;
}

static const char *state_of(struct json_object *device, struct json_object *partitions)
{
    if (sum(partitions, "failed") != 0)
        return "FAILED";
    return json_object_get_boolean(ctl_find(device, "truncated")) ? "TRUNCATED" : "works";
}

/* Adds a member "sum", with what the table shows of all partitions. */
static void add_sums(struct json_object *device)
{
    static const char *const names[] = {"live_bytes", "written_bytes", "got_bytes", "checksum_errors", "write_errors"};
    struct json_object *partitions = ctl_find(device, "partitions"), *sums = json_object_new_object();
    double log_bytes = sum(partitions, "log_bytes"), free_bytes = 0;

    if (!sums)
        return;
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        json_object_object_add(sums, names[i], json_object_new_double(sum(partitions, names[i])));
    for (size_t i = 0; json_object_is_type(partitions, json_type_array) && i < json_object_array_length(partitions);
         i++) {
        struct json_object *p = json_object_array_get_idx(partitions, i);

        free_bytes += ctl_number(p, "segments_free") * ctl_number(p, "segment_bytes");
    }
    json_object_object_add(sums, "free_bytes", json_object_new_double(free_bytes));
    if (log_bytes > 0)
        json_object_object_add(sums, "log_percent",
                               json_object_new_double(100 * sum(partitions, "log_live_bytes") / log_bytes));
    json_object_object_add(device, "state", json_object_new_string(state_of(device, partitions)));
    json_object_object_add(device, "sum", sums);
}

int ctl_device(const struct ctl *ctl, int argc, char **argv)
{
    cleanup_json struct json_object *reply = NULL;

    if (argc >= 2 && strcmp(argv[1], "format") == 0)
        return ctl_device_format(ctl, argc - 1, argv + 1);
    if (argc > 2 || (argc == 2 && strcmp(argv[1], "list") != 0)) {
        fprintf(stderr, "spillctl: usage: spillctl device [list], or spillctl device format PATH …\n");
        return EX_USAGE;
    }
    int status = ctl_get(ctl, "devices", &reply);
    if (status != CTL_OK)
        return status;
    if (ctl->json)
        return ctl_print_json(reply);
    struct json_object *devices = ctl_find(reply, "devices");
    for (size_t i = 0; json_object_is_type(devices, json_type_array) && i < json_object_array_length(devices); i++)
        add_sums(json_object_array_get_idx(devices, i));
    table_print(devices, columns, ARRAY_LEN(columns), stdout);
    return CTL_OK;
}
