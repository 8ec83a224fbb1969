/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answers what leases of these sizes take of a pool, and what one space can have of it: arithmetic on the configuration, which
 * asks no engine and sets nothing aside. Control thread.
 */
#include <errno.h>
#include <string.h>

#include "daemon/balance.h"
#include "daemon/control.h"
#include "daemon/session.h"

static_assert(SPW_MANIFEST_MAX == SIZING_ENTRIES_MAX, "as many as can be summed up");
static_assert((int)SPW_LIMIT_POOL_DRAM == TIERING_LIMIT_POOL_DRAM &&
                  (int)SPW_LIMIT_POOL_NVME == TIERING_LIMIT_POOL_NVME &&
                  (int)SPW_LIMIT_POOL_LEASES == TIERING_LIMIT_POOL_LEASES &&
                  (int)SPW_LIMIT_SESSION_LEASES == TIERING_LIMIT_SESSION_LEASES &&
                  (int)SPW_LIMIT_SESSION_BYTES == TIERING_LIMIT_SESSION_BYTES &&
                  (int)SPW_LIMIT_UID_LEASES == TIERING_LIMIT_UID_LEASES,
              "the same numbers");

/* Of devices a space has its engine's partitions. */
static uint64_t device_most_bytes(const struct control *control, uint64_t budget_bytes)
{
    uint64_t most = 0;

    for (uint32_t e = 0; e < control->n_engines; e++)
        most = MAX(most, control_nvme_of_engine(control, e, control_nvme_bytes(control)));
    return MIN(most, budget_bytes);
}

static struct tiering_sizing_limits limits_of(const struct control *control, uint32_t pool)
{
    const struct spillway_config *config = control->config;
    const struct config_pool *p = &config->pools[pool];
    uint64_t dram = config_pool_budget_bytes(config, pool, CONFIG_TIER_DRAM, config->dram.size_bytes),
             cxl = config_pool_budget_bytes(config, pool, CONFIG_TIER_CXL, config->cxl.size_bytes),
             nvme = config_pool_budget_bytes(config, pool, CONFIG_TIER_NVME, control_nvme_bytes(control));

    return (struct tiering_sizing_limits){
        .trusted = p->is_trusted,
        .memory_bytes = balance_most_bytes(dram, control->n_engines) + balance_most_bytes(cxl, control->n_engines),
        .device_bytes = device_most_bytes(control, nvme),
        .session_bytes = p->session_bytes ? p->session_bytes : UINT64_MAX,
        .max_leases_percent = p->max_leases_percent,
        .user_leases_percent = p->is_trusted ? 0 : p->uid_leases_percent,
        .session_leases = config->daemon.session_leases,
        .piece_bytes = PIECE_BYTES_MAX,
    };
}

/* True if all are what an entry may be. */
static bool entries_take(const void *from, uint32_t n, struct tiering_manifest_entry *ret_entries)
{
    for (uint32_t i = 0; i < n; i++) {
        struct spw_manifest_entry e;

        memcpy(&e, (const char *)from + i * sizeof(e), sizeof(e));
        if (e.size_bytes == 0 || e.size_bytes > OBJECT_BYTES_MAX || (e.flags & ~(uint32_t)SPW_MANIFEST_WRITE) != 0)
            return false;
        ret_entries[i] = (struct tiering_manifest_entry){.size_bytes = e.size_bytes,
                                                         .count = e.count,
                                                         .slots = e.slots,
                                                         .writes = (e.flags & SPW_MANIFEST_WRITE) != 0};
    }
    return true;
}

static void answer(struct session *session, const struct tiering_sizing_limits *l, const struct tiering_sizing *s)
{
    struct spw_msg_sizing reply = {.sizing = {.leased_bytes = s->leased_bytes,
                                              .leasable_bytes = s->leasable_bytes,
                                              .memory_bytes = s->memory_bytes,
                                              .memory_max_bytes = l->memory_bytes,
                                              .private_bytes = s->private_bytes,
                                              .private_max_bytes = l->trusted ? 0 : l->session_bytes,
                                              .leases = s->leases,
                                              .leases_max = l->session_leases,
                                              .stored_bytes = s->stored_bytes,
                                              .stored_max_bytes = l->memory_bytes + l->device_bytes,
                                              .limit = s->limit}};

    session_reply(session, &reply, sizeof(reply), NULL, 0);
}

void session_manifest(struct session *session, const void *message, size_t size)
{
    struct tiering_manifest_entry entries[SPW_MANIFEST_MAX];
    struct spw_msg_manifest told = {.n = UINT32_MAX};

    if (size >= sizeof(told))
        memcpy(&told, message, sizeof(told));
    if (told.n > SPW_MANIFEST_MAX || size != sizeof(told) + told.n * sizeof(struct spw_manifest_entry) ||
        told.reserved[0] != 0 || told.reserved[1] != 0) {
        session_end(session, "a MANIFEST of the wrong size, or with a reserved field that is not zero", true);
        return;
    }
    uint32_t pool = session_pool(session, told.pool);

    if (pool == POOLS_MAX) {
        session_reply_error(session, -EBADF, 0, "this session has not opened that pool");
        return;
    }
    if (!entries_take((const char *)message + sizeof(told), told.n, entries)) {
        session_reply_error(session, -EINVAL, 0, "an entry without a size, of one above 1 TiB, or with unknown flags");
        return;
    }
    struct tiering_sizing_limits limits = limits_of(session->control, pool);
    struct tiering_sizing sizing;
    int r = tiering_sizing(&limits, entries, told.n, &sizing);

    if (r < 0)
        session_reply_error(session, r, 0, "these objects are more than any machine has");
    else
        answer(session, &limits, &sizing);
}
