/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The commands that print what the daemon says: one question each, then tables. What the JSON means is told in
 * docs/admin-json.md; the tables below choose from it.
 */
#include <stdio.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "client/ctl/table.h"

static const struct column status_rows[] = {
    {"state", "state", COLUMN_TEXT},
    {"degraded", "degraded", COLUMN_LIST},
    {"version", "version", COLUMN_TEXT},
    {"pid", "pid", COLUMN_COUNT},
    {"up since", "uptime_ns", COLUMN_TIME},
    {"socket", "socket", COLUMN_TEXT},
    {"config", "config", COLUMN_TEXT},
    {"engines", "engines", COLUMN_COUNT},
    {"sessions", "sessions", COLUMN_COUNT},
    {"objects", "objects", COLUMN_COUNT},
    {"objects at most", "objects_max", COLUMN_COUNT},
};
static const struct column pool_columns[] = {
    {"POOL", "name", COLUMN_TEXT},
    {"TRUSTED", "trusted", COLUMN_YES},
    {"DRAM", "dram_budget", COLUMN_SIZE},
    {"USED", "dram_used", COLUMN_SIZE},
    {"LEASED", "leased", COLUMN_SIZE},
    {"DIRTY", "dirty", COLUMN_SIZE},
    {"NVME", "nvme_budget", COLUMN_SIZE},
    {"USED", "nvme_used", COLUMN_SIZE},
    {"OBJECTS", "objects", COLUMN_COUNT},
    {"HITS DRAM", "hits_dram", COLUMN_COUNT},
    {"HITS NVME", "hits_nvme", COLUMN_COUNT},
    {"MISSES", "misses", COLUMN_COUNT},
    {"WAITING", "waiting", COLUMN_COUNT},
};
static const struct column tier_columns[] = {
    {"TIER", "name", COLUMN_TEXT},        {"SIZE", "size", COLUMN_SIZE}, {"USED", "used", COLUMN_SIZE},
    {"DIRTY", "dirty", COLUMN_SIZE},      {"WASTE", "waste", COLUMN_SIZE}, {"PAGES", "pages", COLUMN_TEXT},
    {"LOCKED", "locked", COLUMN_YES},
};
static const struct column session_columns[] = {
    {"SESSION", "session", COLUMN_COUNT}, {"NAME", "name", COLUMN_TEXT},     {"PID", "pid", COLUMN_COUNT},
    {"UID", "uid", COLUMN_COUNT},         {"RINGS", "rings", COLUMN_COUNT},  {"LEASES", "leases", COLUMN_COUNT},
    {"LEASED", "leased", COLUMN_SIZE},    {"AGE", "age_ns", COLUMN_TIME},
};

static int print_status(struct json_object *reply)
{
    table_print_one(reply, status_rows, ARRAY_LEN(status_rows), stdout);
    return CTL_OK;
}

static int print_config(struct json_object *reply)
{
    fputs(ctl_text(reply, "text"), stdout);
    return CTL_OK;
}

static const struct view {
    const char *command, *array;
    const struct column *columns;
    size_t n_columns;
    int (*print)(struct json_object *reply); /* instead of a table */
} views[] = {
    {"status", NULL, NULL, 0, print_status},
    {"pools", "pools", pool_columns, ARRAY_LEN(pool_columns), NULL},
    {"tiers", "tiers", tier_columns, ARRAY_LEN(tier_columns), NULL},
    {"sessions", "sessions", session_columns, ARRAY_LEN(session_columns), NULL},
    {"config", NULL, NULL, 0, print_config},
};

int ctl_show(const struct ctl *ctl, int argc, char **argv)
{
    cleanup_json struct json_object *reply = NULL;
    const struct view *view = views;
    bool config = strcmp(argv[0], "config") == 0;

    while (strcmp(view->command, argv[0]) != 0)
        view++; /* main.c sends us nothing else */
    if (config ? argc != 2 || strcmp(argv[1], "show") != 0 : argc != 1) {
        fprintf(stderr, "spillctl: usage: spillctl %s%s\n", argv[0], config ? " show" : "");
        return EX_USAGE;
    }
    int status = ctl_get(ctl, argv[0], &reply);
    if (status != CTL_OK)
        return status;
    if (ctl->json)
        return ctl_print_json(reply);
    if (view->print)
        return view->print(reply);
    table_print(ctl_find(reply, view->array), view->columns, view->n_columns, stdout);
    return CTL_OK;
}
