/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The commands that print what the daemon says: a question or two, then tables. What the JSON means is told in
 * docs/admin-json.md; the tables below choose from it.
 */
#include <stdio.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "client/ctl/table.h"
#include "include/base/units.h"

static const struct column status_rows[] = {
    {"state", "state", COLUMN_TEXT},
    {"version", "version", COLUMN_TEXT},
    {"pid", "pid", COLUMN_COUNT},
    {"user", "uid", COLUMN_COUNT},
    {"up for", "uptime_s", COLUMN_SECONDS},
    {"config", "config", COLUMN_TEXT},
    {"socket", "socket", COLUMN_TEXT},
    {"sessions", "sessions", COLUMN_COUNT},
    {"sessions ever", "sessions_ever", COLUMN_COUNT},
    {"owners", "owners", COLUMN_COUNT},
    {"spaces", "spaces", COLUMN_COUNT},
};
static const struct column metadata_rows[] = {
    {"objects", "objects", COLUMN_COUNT},
    {"objects, at most", "objects_max", COLUMN_COUNT},
    {"leases", "leases", COLUMN_COUNT},
    {"record of an object", "object_record_bytes", COLUMN_SIZE},
    {"hash index", "index_bytes", COLUMN_SIZE},
    {"ghosts of policies", "ghost_bytes", COLUMN_SIZE},
    {"leases' records", "lease_bytes", COLUMN_SIZE},
    {"payload copied, all", "copied_bytes", COLUMN_SIZE},
    {"moved within memory", "migrated_bytes", COLUMN_SIZE},
    {"into bounce segments", "bounced_bytes", COLUMN_SIZE},
};
static const struct column engine_columns[] = {
    {"ENGINE", "number", COLUMN_COUNT},         {"READY", "ready", COLUMN_YES},
    {"MEMORY", "memory_bytes", COLUMN_SIZE},    {"WANTED", "memory_wanted_bytes", COLUMN_SIZE},
    {"IO_URING", "io_uring_mode", COLUMN_TEXT}, {"RINGS", "rings", COLUMN_COUNT},
    {"REQUESTS", "requests", COLUMN_COUNT},     {"WAITS", "waits", COLUMN_COUNT},
    {"SERVED", "cqes", COLUMN_COUNT},           {"KEYS", "items", COLUMN_COUNT},
    {"TIMEOUTS", "timeouts", COLUMN_COUNT},     {"VIOLATIONS", "violations", COLUMN_COUNT},
};
static const struct column pool_columns[] = {
    {"POOL", "name", COLUMN_TEXT},
    {"TRUSTED", "trusted", COLUMN_YES},
    {"DRAM", "dram.budget_bytes", COLUMN_SIZE},
    {"USED", "dram.used_bytes", COLUMN_SIZE},
    {"LEASED", "dram.leased_bytes", COLUMN_SIZE},
    {"DIRTY", "dram.dirty_bytes", COLUMN_SIZE},
    {"CXL", "cxl.budget_bytes", COLUMN_SIZE},
    {"USED", "cxl.used_bytes", COLUMN_SIZE},
    {"NVME", "nvme.budget_bytes", COLUMN_SIZE},
    {"USED", "nvme.used_bytes", COLUMN_SIZE},
    {"GPU", "gpu.budget_bytes", COLUMN_SIZE},
    {"USED", "gpu.used_bytes", COLUMN_SIZE},
    {"OBJECTS", "objects", COLUMN_COUNT},
    {"IN MEMORY", "objects_resident", COLUMN_COUNT},
    {"HITS DRAM", "hits_dram", COLUMN_COUNT},
    {"CXL", "hits_cxl", COLUMN_COUNT},
    {"NVME", "hits_nvme", COLUMN_COUNT},
    {"MISSES", "misses", COLUMN_COUNT},
    {"WAITING", "waiting", COLUMN_COUNT},
    {"WRITTEN", "writes.used_bytes", COLUMN_SIZE},
    {"DAY'S BUDGET", "writes.budget_day_bytes", COLUMN_SIZE},
    {"OVER IT", "writes.over_bytes", COLUMN_SIZE},
    {"DROPPED", "writes.dropped_bytes", COLUMN_SIZE},
};
static const struct column share_columns[] = {
    {"ENGINE", "number", COLUMN_COUNT},         {"DRAM", "dram_budget_bytes", COLUMN_SIZE},
    {"TAKEN", "dram_chunk_bytes", COLUMN_SIZE}, {"USED", "dram_used_bytes", COLUMN_SIZE},
    {"CXL", "cxl_budget_bytes", COLUMN_SIZE},   {"TAKEN", "cxl_chunk_bytes", COLUMN_SIZE},
    {"USED", "cxl_used_bytes", COLUMN_SIZE},    {"NVME", "nvme_budget_bytes", COLUMN_SIZE},
    {"USED", "nvme_used_bytes", COLUMN_SIZE},
};
static const struct column tier_columns[] = {
    {"TIER", "tier", COLUMN_TEXT},
    {"SIZE", "size_bytes", COLUMN_SIZE},
    {"TAKEN", "allocated_bytes", COLUMN_SIZE},
    {"USED", "used_bytes", COLUMN_SIZE},
    {"PAYLOAD", "payload_bytes", COLUMN_SIZE},
};
static const struct column node_columns[] = {
    {"NODE", "node", COLUMN_COUNT},
    {"TAKEN", "allocated_bytes", COLUMN_SIZE},
    {"HUGEPAGES", "hugepage_bytes", COLUMN_SIZE},
    {"LOCKED", "locked_bytes", COLUMN_SIZE},
    {"LOOKED UP", "pages_sampled", COLUMN_COUNT},
    {"ON NODE", "pages_on_node", COLUMN_COUNT},
};
static const struct column session_columns[] = {
    {"SESSION", "session", COLUMN_COUNT},   {"NAME", "name", COLUMN_TEXT},      {"UID", "uid", COLUMN_COUNT},
    {"PID", "pid", COLUMN_COUNT},           {"AGE", "age_s", COLUMN_SECONDS},   {"STATE", "state", COLUMN_TEXT},
    {"RINGS", "rings", COLUMN_COUNT},       {"SPACES", "spaces", COLUMN_COUNT}, {"LEASES", "leases", COLUMN_COUNT},
    {"REQUESTS", "requests", COLUMN_COUNT}, {"OWNER", "owner", COLUMN_COUNT},   {"POOLS", "pools", COLUMN_LIST},
};
static const struct column user_columns[] = {
    {"UID", "uid", COLUMN_COUNT},
    {"SESSIONS", "sessions", COLUMN_COUNT},
    {"OF", "sessions_max", COLUMN_COUNT},
    {"DESCRIPTORS", "descriptors", COLUMN_COUNT},
    {"OF", "descriptors_max", COLUMN_COUNT},
    {"REQUESTS", "requests", COLUMN_COUNT},
    {"OF", "requests_max", COLUMN_COUNT},
    {"WAITS", "waits", COLUMN_COUNT},
    {"OF", "waits_max", COLUMN_COUNT},
    {"SCRATCH", "scratch_bytes", COLUMN_SIZE},
    {"LEASED", "leased_bytes", COLUMN_SIZE},
    {"% OF LIMIT", "leases_percent", COLUMN_COUNT},
    {"PRIVATE", "private_bytes", COLUMN_SIZE},
};
static const struct column gpu_columns[] = {
    {"GPU", "uuid", COLUMN_TEXT},
    {"NAME", "name", COLUMN_TEXT},
    {"STATE", "state", COLUMN_TEXT},
    {"PID", "pid", COLUMN_COUNT},
    {"RESTARTS", "restarts", COLUMN_COUNT},
    {"LANES", "lanes", COLUMN_COUNT},
    {"STAGING", "staging_bytes", COLUMN_SIZE},
    {"ALLOCATED", "allocated_bytes", COLUMN_SIZE},
    {"MEMORY", "memory_bytes", COLUMN_SIZE},
    {"FREE", "memory_free_bytes", COLUMN_SIZE},
    {"REGISTERED", "registered_bytes", COLUMN_SIZE},
    {"SPILLED", "spilled_bytes", COLUMN_SIZE},
    {"FETCHED", "fetched_bytes", COLUMN_SIZE},
    {"LAST ERROR", "last_error", COLUMN_TEXT},
};

static int print_status(spw_session *session, struct json_object *reply)
{
    cleanup_json struct json_object *tiers = NULL;
    int status = ctl_ask(session, "tiers", &tiers);

    if (status != CTL_OK)
        return status;
    table_print_one(reply, status_rows, ARRAY_LEN(status_rows), stdout);
    fputc('\n', stdout);
    table_print(ctl_find(reply, "engines"), engine_columns, ARRAY_LEN(engine_columns), stdout);
    struct json_object *engines = ctl_find(reply, "engines");
    for (size_t i = 0; json_object_is_type(engines, json_type_array) && i < json_object_array_length(engines); i++) {
        struct json_object *e = json_object_array_get_idx(engines, i);
        char missing[UNITS_TEXT_BYTES];

        if (ctl_number(e, "memory_missing_bytes") > 0)
            printf("degraded: engine %.0f: %s of its memory were refused: free some, or lower `size` of [tier.dram] or "
                   "[tier.cxl] (see spillctl doctor)\n",
                   ctl_number(e, "number"), size_print((uint64_t)ctl_number(e, "memory_missing_bytes"), missing));
        if (json_object_get_boolean(ctl_find(e, "degraded_memlock")))
            printf("degraded: engine %.0f: memory is not locked (see spillctl doctor)\n", ctl_number(e, "number"));
        if (*ctl_text(e, "note"))
            printf("degraded: engine %.0f: %s\n", ctl_number(e, "number"), ctl_text(e, "note"));
    }
    fputc('\n', stdout);
    table_print_one(ctl_find(tiers, "metadata"), metadata_rows, ARRAY_LEN(metadata_rows), stdout);
    return CTL_OK;
}

/* Where there are several engines, each pool's budgets are spread over them, and change hands. */
static int print_pools(spw_session *session, struct json_object *reply)
{
    struct json_object *pools = ctl_find(reply, "pools");

    (void)session;
    table_print(pools, pool_columns, ARRAY_LEN(pool_columns), stdout);
    for (size_t i = 0; json_object_is_type(pools, json_type_array) && i < json_object_array_length(pools); i++) {
        struct json_object *pool = json_object_array_get_idx(pools, i);
        struct json_object *engines = ctl_find(pool, "engines");

        if (!json_object_is_type(engines, json_type_array) || json_object_array_length(engines) < 2)
            continue;
        printf("\nengines of pool %s:\n", ctl_text(pool, "name"));
        table_print(engines, share_columns, ARRAY_LEN(share_columns), stdout);
    }
    return CTL_OK;
}

static int print_tiers(spw_session *session, struct json_object *reply)
{
    struct json_object *tiers = ctl_find(reply, "tiers");

    (void)session;
    table_print(tiers, tier_columns, ARRAY_LEN(tier_columns), stdout);
    for (size_t i = 0; json_object_is_type(tiers, json_type_array) && i < json_object_array_length(tiers); i++) {
        struct json_object *tier = json_object_array_get_idx(tiers, i), *nodes = ctl_find(tier, "nodes");

        if (!json_object_is_type(nodes, json_type_array) || json_object_array_length(nodes) == 0)
            continue;
        printf("\n%s\n", ctl_text(tier, "tier"));
        table_print(nodes, node_columns, ARRAY_LEN(node_columns), stdout);
    }
    return CTL_OK;
}

static void print_sections(struct json_object *reply, const char *member, const char *what)
{
    struct json_object *titles = ctl_find(reply, member);

    for (size_t i = 0; json_object_is_type(titles, json_type_array) && i < json_object_array_length(titles); i++)
        printf("\n; [%s] %s\n", json_object_get_string(json_object_array_get_idx(titles, i)), what);
}

/* As a file that would give the same, with where each value comes from, and what becomes of it. */
static int print_sessions(spw_session *session, struct json_object *reply)
{
    (void)session;
    table_print(ctl_find(reply, "sessions"), session_columns, ARRAY_LEN(session_columns), stdout);
    fputc('\n', stdout);
    table_print(ctl_find(reply, "users"), user_columns, ARRAY_LEN(user_columns), stdout);
    return CTL_OK;
}

static int print_config(spw_session *session, struct json_object *reply)
{
    struct json_object *sections = ctl_find(reply, "sections");

    (void)session;
    if (!json_object_is_type(sections, json_type_object))
        return CTL_FAILED;
    printf("; %s\n; [R]: a reload changes it; the others need a restart\n",
           *ctl_text(reply, "file") ? ctl_text(reply, "file") : "no file: all is default");
    json_object_object_foreach(sections, title, keys)
    {
        printf("\n[%s]\n", title);
        json_object_object_foreach(keys, key, entry)
        {
            char line[320];

            snprintf(line, sizeof(line), "%s = %s", key, ctl_text(entry, "value"));
            printf("%-40s ; %s%s", line, ctl_text(entry, "from"),
                   json_object_get_boolean(ctl_find(entry, "reloads")) ? " [R]" : "");
            if (*ctl_text(entry, "after_restart"))
                printf("; after a restart: %s", ctl_text(entry, "after_restart"));
            putchar('\n');
        }
    }
    print_sections(reply, "added_after_restart", "comes with a restart");
    print_sections(reply, "gone_after_restart", "goes with a restart");
    return CTL_OK;
}

static const struct view {
    const char *command, *array;
    const struct column *columns;
    size_t n_columns;
    int (*print)(spw_session *session, struct json_object *reply); /* instead of a table */
} views[] = {
    {"status", NULL, NULL, 0, print_status},
    {"pools", NULL, NULL, 0, print_pools},
    {"tiers", NULL, NULL, 0, print_tiers},
    {"sessions", NULL, NULL, 0, print_sessions},
    {"gpus", "gpus", gpu_columns, ARRAY_LEN(gpu_columns), NULL},
    {"config", NULL, NULL, 0, print_config},
};

int ctl_show(const struct ctl *ctl, int argc, char **argv)
{
    cleanup_session spw_session *session = NULL;
    cleanup_json struct json_object *reply = NULL;
    const struct view *view = views;
    bool config = strcmp(argv[0], "config") == 0;

    while (strcmp(view->command, argv[0]) != 0)
        view++; /* main.c sends us nothing else */
    if (config ? argc != 2 || strcmp(argv[1], "show") != 0 : argc != 1) {
        fprintf(stderr, "spillctl: usage: spillctl %s%s\n", argv[0], config ? " show" : "");
        return EX_USAGE;
    }
    int status = ctl_connect(ctl, &session);
    if (status == CTL_OK)
        status = ctl_ask(session, argv[0], &reply);
    if (status != CTL_OK)
        return status;
    if (ctl->json)
        return ctl_print_json(reply);
    if (view->print)
        return view->print(session, reply);
    table_print(ctl_find(reply, view->array), view->columns, view->n_columns, stdout);
    return CTL_OK;
}
