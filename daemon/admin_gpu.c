/* SPDX-License-Identifier: Apache-2.0 */
/* What the GPUs' helpers do, and what each pool has staged there (docs/admin-json.md). */
#include <json-c/json.h>

#include "daemon/admin.h"
#include "daemon/control.h"
#include "daemon/gpu.h"

/* Members of struct gpu_stat, as they come from the helper. */
static const struct {
    const char *name;
    size_t offset;
} members[] = {
    {"memory_bytes", offsetof(struct gpu_stat, hbm_bytes)},
    {"memory_free_bytes", offsetof(struct gpu_stat, hbm_free_bytes)},
    {"context_bytes", offsetof(struct gpu_stat, context_bytes)},
    {"staging_bytes", offsetof(struct gpu_stat, staging_bytes)},
    {"allocated_bytes", offsetof(struct gpu_stat, allocated_bytes)},
    {"chunk_bytes", offsetof(struct gpu_stat, chunk_bytes)},
    {"registered_bytes", offsetof(struct gpu_stat, registered_bytes)},
    {"register_ns", offsetof(struct gpu_stat, register_ns)},
    {"windows_failed", offsetof(struct gpu_stat, windows_failed)},
    {"spilled_bytes", offsetof(struct gpu_stat, spilled_bytes)},
    {"fetched_bytes", offsetof(struct gpu_stat, fetched_bytes)},
    {"copies", offsetof(struct gpu_stat, copies)},
    {"lanes_over", offsetof(struct gpu_stat, lanes_over)},
    {"cpu_ns", offsetof(struct gpu_stat, cpu_ns)},
    {"sleeps", offsetof(struct gpu_stat, sleeps)},
};

static void put_text(struct json_object *o, const char *name, const char *text)
{
    json_object_object_add(o, name, *text ? json_object_new_string(text) : NULL);
}

static void put_gpu(struct json_object *o, const struct gpu_info *info)
{
    put_text(o, "uuid", info->uuid);
    put_text(o, "name", info->name);
    put_text(o, "state", info->state);
    json_object_object_add(o, "listed", json_object_new_boolean(info->is_listed));
    json_object_object_add(o, "pid", info->pid > 0 ? json_object_new_int(info->pid) : NULL);
    json_object_object_add(o, "restarts", json_object_new_uint64(info->restarts));
    put_text(o, "last_error", info->error);
    json_object_object_add(o, "lanes", json_object_new_uint64(info->lanes));
    for (size_t i = 0; i < ARRAY_LEN(members); i++) {
        const uint64_t *value = (const void *)((const char *)&info->stat + members[i].offset);

        json_object_object_add(o, members[i].name, json_object_new_uint64(*value));
    }
}

struct json_object *admin_gpus(const struct control *control, const struct admin_reports *reports)
{
    struct json_object *o = json_object_new_object(), *gpus = json_object_new_array();
    struct gpu_info info;

    (void)reports;
    json_object_object_add(o, "gpus", gpus);
    for (uint32_t i = 0; gpus_at(control->gpus, i, &info); i++) {
        struct json_object *gpu = json_object_new_object();

        put_gpu(gpu, &info);
        json_object_array_add(gpus, gpu);
    }
    return o;
}

void admin_put_pool_gpu(struct json_object *pool, const struct control *control, uint32_t number)
{
    struct json_object *gpu = json_object_new_object();

    json_object_object_add(gpu, "budget_bytes", json_object_new_uint64(gpus_pool_budget(control->config, number)));
    json_object_object_add(gpu, "used_bytes", json_object_new_uint64(gpus_pool_used(control->gpus, number)));
    json_object_object_add(pool, "gpu", gpu);
}
