/* SPDX-License-Identifier: Apache-2.0 */
/* What the GPUs' helpers do, and what each pool has staged there (docs/admin-json.md). */
#include "daemon/admin.h"
#include "daemon/control.h"
#include "daemon/gpu.h"
#include "daemon/json.h"

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
    json_put_text(o, name, *text ? text : NULL);
}

static void put_gpu(struct json_object *o, const struct gpu_info *info)
{
    put_text(o, "uuid", info->uuid);
    put_text(o, "name", info->name);
    put_text(o, "state", info->state);
    json_put_bool(o, "listed", info->is_listed);
    if (info->pid > 0)
        json_put_int(o, "pid", info->pid);
    else
        json_put_text(o, "pid", NULL);
    json_put_u64(o, "restarts", info->restarts);
    put_text(o, "last_error", info->error);
    json_put_u64(o, "lanes", info->lanes);
    for (size_t i = 0; i < ARRAY_LEN(members); i++) {
        const uint64_t *value = (const void *)((const char *)&info->stat + members[i].offset);

        json_put_u64(o, members[i].name, *value);
    }
}

struct json_object *admin_gpus(const struct control *control, const struct admin_reports *reports)
{
    struct json_object *o = json_begin(), *gpus = json_put_array(o, "gpus");
    struct gpu_info info;

    (void)reports;
    for (uint32_t i = 0; gpus_at(control->gpus, i, &info); i++)
        put_gpu(json_add_object(gpus), &info);
    return o;
}

void admin_put_pool_gpu(struct json_object *pool, const struct control *control, uint32_t number)
{
    struct json_object *gpu = json_put_object(pool, "gpu");

    json_put_u64(gpu, "budget_bytes", gpus_pool_budget(control->config, number));
    json_put_u64(gpu, "used_bytes", gpus_pool_used(control->gpus, number));
}
