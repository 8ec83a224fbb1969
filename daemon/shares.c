/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the arithmetic between the configuration and the engines: which part of each number is whose by right: an even
 * part of memory, and of a device the partitions that it has. What they lend each other is balance.c's.
 */
#include "daemon/control.h"

#include <string.h>

#include "daemon/gpu.h"
#include "include/base/atomic.h"

#define DAY_NS UINT64_C(86400000000000)
#define STORE_WEIGHT_SCALE 1000 /* a device's weight is divided among its partitions */

uint64_t control_nvme_bytes(const struct control *control)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < control->config->n_devices; i++)
        bytes += control->devices[i].used_bytes;
    return bytes;
}

uint64_t control_nvme_of_engine(const struct control *control, uint32_t engine, uint64_t bytes)
{
    uint64_t total = control_nvme_bytes(control), own = 0;

    for (uint32_t i = 0; i < control->config->n_devices; i++) {
        const struct control_device *d = &control->devices[i];
        uint32_t n = d->identity.format.partitions;

        for (uint32_t p = engine; p < n; p += control->n_engines)
            own += d->used_bytes / n;
    }
    return total > 0 ? (uint64_t)((unsigned __int128)bytes * own / total) : 0;
}

void control_pool_config(const struct control *control, uint32_t engine, uint32_t pool,
                         struct tiering_pool_config *ret_config)
{
    const struct spillway_config *config = control->config;
    const struct config_pool *p = &config->pools[pool];
    uint64_t nvme_bytes = config_pool_budget_bytes(config, pool, CONFIG_TIER_NVME, control_nvme_bytes(control));
    uint32_t n = control->n_engines;

    *ret_config = (struct tiering_pool_config){
        .trusted = p->is_trusted,
        .dram_bytes = config_pool_budget_bytes(config, pool, CONFIG_TIER_DRAM, config->dram.size_bytes) / n,
        .cxl_bytes = config_pool_budget_bytes(config, pool, CONFIG_TIER_CXL, config->cxl.size_bytes) / n,
        .nvme_bytes = control_nvme_of_engine(control, engine, nvme_bytes),
        .session_bytes = p->session_bytes ? p->session_bytes : UINT64_MAX,
        .weight = p->weight,
        .max_leases_percent = p->max_leases_percent,
        .user_leases_percent = p->is_trusted ? 0 : p->uid_leases_percent, /* one user has it alone */
        .write_budget_bytes = control_nvme_of_engine(control, engine, p->write_budget.bytes),
        .write_budget_ns = p->write_budget.period_ns,
        .prefetch_bytes = p->prefetch_ahead / n,
    };
    memcpy(ret_config->name, p->section.name, sizeof(ret_config->name));
}

/* A store is one partition: of its device's weight it has what this engine's partitions of it share, of the budget of
 * writes what all partitions share. */
static void store_config(const struct control *control, const struct engine *engine, uint32_t store,
                         struct tiering_store_config *ret_config)
{
    uint32_t device = engine->store_at[store].device, n_here = 0;
    const struct control_device *d = &control->devices[device];
    const struct config_device *config = &control->config->devices[device];

    for (uint32_t i = 0; i < engine->n_stores; i++)
        n_here += engine->store_at[i].device == device;
    *ret_config = (struct tiering_store_config){
        .weight = config->weight * STORE_WEIGHT_SCALE / MAX(n_here, 1U),
        .write_budget_bytes = (uint64_t)((unsigned __int128)d->used_bytes * config->write_budget_milli / 1000 /
                                         d->identity.format.partitions),
        .write_budget_ns = DAY_NS,
    };
}

const struct config_class *control_class(const struct spillway_config *config, uint32_t spw_class)
{
    static const uint32_t index_of[TIERING_CLASSES] = {
        [SPW_CLASS_GENERIC] = CONFIG_CLASS_GENERIC,     [SPW_CLASS_KV] = CONFIG_CLASS_KV,
        [SPW_CLASS_WEIGHTS] = CONFIG_CLASS_WEIGHTS,     [SPW_CLASS_ACTIVATION] = CONFIG_CLASS_ACTIVATION,
        [SPW_CLASS_OPTIMIZER] = CONFIG_CLASS_OPTIMIZER,
    };

    static_assert(SPW_CLASSES == TIERING_CLASSES && (int)CONFIG_CLASSES == TIERING_CLASSES, "the same classes");
    return &config->classes[index_of[spw_class]];
}

void control_tuning(const struct control *control, uint32_t engine, struct engine_tuning *ret_tuning)
{
    const struct spillway_config *config = control->config;
    const struct engine *e = control->engines[engine];

    ret_tuning->spin_ns = config->daemon.spin_us * UINT64_C(1000);
    ret_tuning->user_percent = config->daemon.uid_requests_percent;
    ret_tuning->clean_percent = config->dram.clean_percent;
    for (uint32_t i = 0; i < TIERING_CLASSES; i++)
        ret_tuning->class_weights[i] = control_class(config, i)->weight;
    ret_tuning->n_pools = config->n_pools;
    for (uint32_t i = 0; i < config->n_pools; i++)
        control_pool_config(control, engine, i, &ret_tuning->pools[i]);
    ret_tuning->n_stores = e->n_stores;
    for (uint32_t i = 0; i < e->n_stores; i++)
        store_config(control, e, i, &ret_tuning->stores[i]);
}

void control_tell_gpus(struct control *control)
{
    for (uint32_t i = 0; i < control->config->n_pools; i++)
        store_relaxed(&control->pool_gpus[i].budget_bytes, gpus_pool_budget(control->config, i));
}
