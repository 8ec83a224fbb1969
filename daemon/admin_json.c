/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes the objects that spillctl shows. docs/admin-json.md says what each member means: names are part of the
 * interface, bytes are whole numbers, times are in the unit that the name ends in. Nothing here changes anything.
 */
#include <string.h>
#include <unistd.h>

#include "daemon/admin.h"
#include "daemon/control.h"
#include "daemon/json.h"
#include "daemon/session.h"
#include "daemon/session_kept.h"
#include "io/sandbox.h"

#define NS_PER_S UINT64_C(1000000000)

typedef struct json_object json;

/* --- status ------------------------------------------------------------------------------------------------------ */

static const char *state_name(enum control_state state)
{
    switch (state) {
    case CONTROL_STARTING:
        return "starting";
    case CONTROL_READY:
        return "ready";
    case CONTROL_DRAINING:
        return "draining";
    case CONTROL_STOPPING:
    case CONTROL_GONE:
        break;
    }
    return "stopping";
}

static const char *mode_name(enum uring_mode mode)
{
    switch (mode) {
    case URING_MODE_DEFER:
        return "defer_taskrun";
    case URING_MODE_COOP:
        return "coop_taskrun";
    case URING_MODE_PLAIN:
        break;
    }
    return "plain";
}

static void put_engine(json *o, const struct engine_report *r)
{
    json_put_u64(o, "number", r->call.engine->config.number);
    json_put_u64(o, "turns", r->heartbeat);
    json_put_bool(o, "ready", r->is_ready);
    json_put_u64(o, "recovery_ns", r->recovery_ns);
    json_put_u64(o, "memory_bytes", r->have_bytes);
    json_put_u64(o, "memory_wanted_bytes", r->want_bytes);
    json_put_u64(o, "memory_missing_bytes", r->missing_bytes);
    json_put_text(o, "io_uring_mode", mode_name(r->caps.mode));
    json_put_bool(o, "io_uring_restricted", r->caps.restricted);
    json_put_bool(o, "degraded_memlock", r->caps.degraded_memlock);
    json_put_text(o, "note", r->caps.note);
    json_put_u64(o, "peers", r->requests.peers);
    json_put_u64(o, "rings", r->requests.rings);
    json_put_u64(o, "rings_hot", r->requests.rings_hot);
    json_put_u64(o, "requests", r->requests.requests);
    json_put_u64(o, "requests_max", r->requests.requests_max);
    json_put_u64(o, "waits", r->requests.waits);
    json_put_u64(o, "waits_max", r->requests.waits_max);
    json_put_u64(o, "sqes", r->requests.sqes);
    json_put_u64(o, "cqes", r->requests.cqes);
    json_put_u64(o, "items", r->requests.items);
    json_put_u64(o, "stalls", r->requests.stalls);
    json_put_u64(o, "timeouts", r->requests.timeouts);
    json_put_u64(o, "cancels", r->requests.cancels);
    json_put_u64(o, "violations", r->requests.violations);
}

static void put_sandbox(json *o)
{
    static const char *const modes[] = {[SANDBOX_OFF] = "off", [SANDBOX_LOG] = "log", [SANDBOX_ON] = "on"};
    struct sandbox_stat stat;

    sandbox_stat(&stat);
    json_put_text(o, "seccomp", modes[stat.mode]);
    json_put_u64(o, "seccomp_threads", stat.threads);
    json_put_u64(o, "seccomp_refused", stat.refused);
    json_put_text(o, "seccomp_call", stat.call);
    json_put_text(o, "seccomp_thread", stat.where);
}

json *admin_status(const struct control *control, const struct admin_reports *reports)
{
    json *o = json_begin();
    json *engines;

    json_put_text(o, "version", SPILLWAY_VERSION);
    json_put_u64(o, "pid", (uint64_t)getpid());
    json_put_u64(o, "uid", control->uid);
    json_put_bool(o, "user_mode", control->user_mode);
    json_put_text(o, "state", state_name(control->state));
    json_put_u64(o, "uptime_s", (loop_now_ns() - control->started_ns) / NS_PER_S);
    json_put_text(o, "config", control->config_path);
    json_put_text(o, "socket", control->listener.path[0] ? control->listener.path : "systemd");
    json_put_u64(o, "sessions", control->n_sessions);
    json_put_u64(o, "sessions_max", control->config->daemon.max_sessions);
    json_put_u64(o, "sessions_ever", kept_sessions_ever(control->kept));
    json_put_u64(o, "owners", control->n_owners);
    json_put_u64(o, "spaces", spaces_count(control->spaces));
    put_sandbox(o);
    engines = json_put_array(o, "engines");
    for (uint32_t i = 0; i < reports->n; i++)
        put_engine(json_add_object(engines), reports->at[i]);
    return o;
}

/* --- pools ------------------------------------------------------------------------------------------------------- */

static void put_writes(json *o, const struct tiering_writes *w)
{
    json *writes = json_put_object(o, "writes");

    if (w->day_bytes > 0)
        json_put_u64(writes, "budget_day_bytes", w->day_bytes);
    else
        json_put_text(writes, "budget_day_bytes", NULL);
    json_put_u64(writes, "used_bytes", w->used_bytes);
    json_put_u64(writes, "over_bytes", w->over_bytes);
    json_put_u64(writes, "dropped", w->dropped);
    json_put_u64(writes, "dropped_bytes", w->dropped_bytes);
}

/* The members of both are all sums of the same kind. */
static void sum_add(void *sum, const void *part, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes / sizeof(uint64_t); i++)
        ((uint64_t *)sum)[i] += ((const uint64_t *)part)[i];
}
static_assert(sizeof(struct tiering_pool_stat) % sizeof(uint64_t) == 0 &&
                  sizeof(struct uring_lane_stat) % sizeof(uint64_t) == 0 &&
                  sizeof(struct tiering_writes) % sizeof(uint64_t) == 0,
              "nothing but sums");

static void pool_sum(const struct admin_reports *reports, uint32_t pool, struct tiering_pool_stat *ret_sum)
{
    memset(ret_sum, 0, sizeof(*ret_sum));
    for (uint32_t e = 0; e < reports->n; e++)
        sum_add(ret_sum, &reports->at[e]->pools[pool], sizeof(*ret_sum));
}

static void put_pool_io(json *o, const struct admin_reports *reports, uint32_t pool)
{
    struct uring_lane_stat sum = {0};
    json *io = json_put_object(o, "io");

    for (uint32_t e = 0; e < reports->n; e++)
        sum_add(&sum, &reports->at[e]->io[pool], sizeof(sum));
    json_put_u64(io, "reads", sum.reads);
    json_put_u64(io, "writes", sum.writes);
    json_put_u64(io, "read_bytes", sum.read_bytes);
    json_put_u64(io, "written_bytes", sum.written_bytes);
    json_put_u64(io, "queued", sum.queued);
    json_put_u64(io, "queued_bytes", sum.queued_bytes);
}

/* Engines trade budgets: what each may have now, and has. */
static void put_pool_engines(json *o, const struct admin_reports *reports, uint32_t pool)
{
    json *engines = json_put_array(o, "engines");

    for (uint32_t e = 0; e < reports->n; e++) {
        const struct tiering_pool_stat *s = &reports->at[e]->pools[pool];
        json *engine = json_add_object(engines);

        json_put_u64(engine, "number", reports->at[e]->call.engine->config.number);
        json_put_u64(engine, "dram_budget_bytes", s->dram_budget);
        json_put_u64(engine, "dram_chunk_bytes", s->dram_chunks);
        json_put_u64(engine, "dram_used_bytes", s->dram_used);
        json_put_u64(engine, "cxl_budget_bytes", s->cxl_budget);
        json_put_u64(engine, "cxl_chunk_bytes", s->cxl_chunks);
        json_put_u64(engine, "cxl_used_bytes", s->cxl_used);
        json_put_u64(engine, "nvme_budget_bytes", s->nvme_budget);
        json_put_u64(engine, "nvme_used_bytes", s->nvme_used);
    }
}

static void put_pool(json *o, const struct config_pool *config, const struct tiering_pool_stat *s)
{
    json *tier;

    json_put_text(o, "name", config->section.name);
    json_put_bool(o, "trusted", config->is_trusted);
    json_put_u64(o, "weight", config->weight);
    tier = json_put_object(o, "dram");
    json_put_u64(tier, "budget_bytes", s->dram_budget);
    json_put_u64(tier, "chunk_bytes", s->dram_chunks);
    json_put_u64(tier, "closing_bytes", s->dram_closing);
    json_put_u64(tier, "missing_bytes", s->dram_missing);
    json_put_u64(tier, "used_bytes", s->dram_used);
    json_put_u64(tier, "payload_bytes", s->dram_used - s->dram_round_waste);
    json_put_u64(tier, "slab_bytes", s->dram_slabs);
    json_put_u64(tier, "tail_waste_bytes", s->dram_tail_waste);
    json_put_u64(tier, "round_waste_bytes", s->dram_round_waste);
    json_put_u64(tier, "leased_bytes", s->leased);
    json_put_u64(tier, "admitted_bytes", s->admitted);
    json_put_u64(tier, "dirty_bytes", s->dirty);
    tier = json_put_object(o, "cxl");
    json_put_u64(tier, "budget_bytes", s->cxl_budget);
    json_put_u64(tier, "chunk_bytes", s->cxl_chunks);
    json_put_u64(tier, "closing_bytes", s->cxl_closing);
    json_put_u64(tier, "missing_bytes", s->cxl_missing);
    json_put_u64(tier, "used_bytes", s->cxl_used);
    json_put_u64(tier, "payload_bytes", s->cxl_used - s->cxl_round_waste);
    tier = json_put_object(o, "nvme");
    json_put_u64(tier, "budget_bytes", s->nvme_budget);
    json_put_u64(tier, "used_bytes", s->nvme_used);
    json_put_u64(o, "objects", s->objects);
    json_put_u64(o, "objects_resident", s->resident);
    json_put_u64(o, "hits_dram", s->hits_dram);
    json_put_u64(o, "hits_cxl", s->hits_cxl);
    json_put_u64(o, "hits_nvme", s->hits_nvme);
    json_put_u64(o, "hits_loading", s->hits_loading);
    json_put_u64(o, "misses", s->misses);
    json_put_u64(o, "commits", s->commits);
    json_put_u64(o, "commit_bytes", s->commit_bytes);
    json_put_u64(o, "evictions", s->evictions);
    json_put_u64(o, "drops", s->drops);
    json_put_u64(o, "spills", s->spills);
    json_put_u64(o, "spill_bytes", s->spill_bytes);
    json_put_u64(o, "loads", s->loads);
    json_put_u64(o, "load_bytes", s->load_bytes);
    json_put_u64(o, "prefetches", s->prefetches);
    json_put_u64(o, "demotions", s->demotions);
    json_put_u64(o, "promotions", s->promotions);
    json_put_u64(o, "evacuations", s->evacuations);
    json_put_u64(o, "waiting", s->waiting);
    json_put_u64(o, "plan_accesses", s->plan_accesses);
    json_put_u64(o, "plans", s->plans);
    json_put_u64(o, "deviations", s->deviations);
    json_put_u64(o, "prefetched", s->prefetched);
    json_put_u64(o, "prefetched_used", s->prefetched_used);
    json_put_u64(o, "prefetched_wasted", s->prefetched_wasted);
    put_writes(o, &s->writes);
}

json *admin_pools(const struct control *control, const struct admin_reports *reports)
{
    json *o = json_begin();
    json *pools = json_put_array(o, "pools");

    for (uint32_t i = 0; i < control->config->n_pools; i++) {
        struct tiering_pool_stat sum;

        pool_sum(reports, i, &sum);
        json *pool = json_add_object(pools);

        put_pool(pool, &control->config->pools[i], &sum);
        admin_put_pool_gpu(pool, control, i);
        put_pool_engines(pool, reports, i);
        put_pool_io(pool, reports, i);
    }
    return o;
}

/* --- tiers ------------------------------------------------------------------------------------------------------- */

static json *put_tier(json *tiers, const char *name, uint64_t size, uint64_t chunks, uint64_t used, uint64_t payload)
{
    json *o = json_add_object(tiers);

    json_put_text(o, "tier", name);
    json_put_u64(o, "size_bytes", size);
    json_put_u64(o, "allocated_bytes", chunks);
    json_put_u64(o, "used_bytes", used);
    json_put_u64(o, "payload_bytes", payload);
    return o;
}

/* budget_offset: of the budget in struct tiering_pool_stat. */
static void put_tier_engines(json *tier, const struct admin_reports *reports, uint32_t n_pools, size_t budget_offset)
{
    json *engines = json_put_array(tier, "engines");

    for (uint32_t e = 0; e < reports->n; e++) {
        json *engine = json_add_object(engines);
        uint64_t sum = 0;

        for (uint32_t i = 0; i < n_pools; i++)
            sum += *(const uint64_t *)(const void *)((const char *)&reports->at[e]->pools[i] + budget_offset);
        json_put_u64(engine, "number", reports->at[e]->call.engine->config.number);
        json_put_u64(engine, "budget_bytes", sum);
    }
}

/* Engines may share a node; the kernel numbers nodes as it likes. */
static uint32_t nodes_sum(const struct admin_reports *reports, bool is_cxl, struct engine_node ret_nodes[NODES_MAX])
{
    uint32_t n = 0;

    for (uint32_t e = 0; e < reports->n; e++) {
        for (uint32_t i = 0; i < reports->at[e]->n_nodes; i++) {
            const struct engine_node *from = &reports->at[e]->nodes[i];
            uint32_t k = 0;

            if (from->is_cxl != is_cxl)
                continue;
            while (k < n && ret_nodes[k].node != from->node)
                k++;
            if (k == NODES_MAX)
                continue;
            if (k == n)
                ret_nodes[n++] = (struct engine_node){.node = from->node, .is_cxl = is_cxl};
            ret_nodes[k].bytes += from->bytes;
            ret_nodes[k].huge_bytes += from->huge_bytes;
            ret_nodes[k].locked_bytes += from->locked_bytes;
            ret_nodes[k].n_sampled += from->n_sampled;
            ret_nodes[k].n_on_node += from->n_on_node;
        }
    }
    return n;
}

static void put_nodes(json *tier, const struct admin_reports *reports, bool is_cxl)
{
    struct engine_node nodes[NODES_MAX];
    uint32_t n = nodes_sum(reports, is_cxl, nodes);
    json *array = json_put_array(tier, "nodes");

    for (uint32_t i = 0; i < n; i++) {
        json *o = json_add_object(array);

        if (nodes[i].node == MEMORY_NODE_ANY)
            json_put_text(o, "node", NULL);
        else
            json_put_u64(o, "node", nodes[i].node);
        json_put_u64(o, "allocated_bytes", nodes[i].bytes);
        json_put_u64(o, "hugepage_bytes", nodes[i].huge_bytes);
        json_put_u64(o, "locked_bytes", nodes[i].locked_bytes);
        json_put_u64(o, "pages_sampled", nodes[i].n_sampled);
        json_put_u64(o, "pages_on_node", nodes[i].n_on_node);
    }
}

json *admin_tiers(const struct control *control, const struct admin_reports *reports)
{
    json *o = json_begin();
    json *tiers = json_put_array(o, "tiers");
    struct tiering_pool_stat all = {0}, sum;
    struct tiering_stat metadata = {0};
    uint64_t segments = 0, live = 0;

    for (uint32_t i = 0; i < control->config->n_pools; i++) {
        pool_sum(reports, i, &sum);
        all.dram_chunks += sum.dram_chunks;
        all.dram_used += sum.dram_used;
        all.dram_round_waste += sum.dram_round_waste;
        all.cxl_chunks += sum.cxl_chunks;
        all.cxl_used += sum.cxl_used;
        all.cxl_round_waste += sum.cxl_round_waste;
    }
    for (uint32_t e = 0; e < reports->n; e++) {
        const struct engine_report *r = reports->at[e];

        metadata.objects += r->tiering.objects;
        metadata.objects_max += r->tiering.objects_max;
        metadata.leases += r->tiering.leases;
        metadata.leases_max += r->tiering.leases_max;
        metadata.record_bytes = r->tiering.record_bytes;
        metadata.index_bytes += r->tiering.index_bytes;
        metadata.ghost_bytes += r->tiering.ghost_bytes;
        metadata.lease_bytes += r->tiering.lease_bytes;
        metadata.copied_bytes += r->tiering.copied_bytes;
        metadata.migrated_bytes += r->tiering.migrated_bytes;
        metadata.bounced_bytes += r->tiering.bounced_bytes;
        for (uint32_t i = 0; i < r->n_stores; i++) {
            segments += (r->stores[i].segments - r->stores[i].segments_free) * r->stores[i].segment_bytes;
            live += r->stores[i].live_bytes;
        }
    }
    uint32_t n_pools = control->config->n_pools;
    json *tier = put_tier(tiers, "dram", control->config->dram.size_bytes, all.dram_chunks, all.dram_used,
                          all.dram_used - all.dram_round_waste);

    put_tier_engines(tier, reports, n_pools, offsetof(struct tiering_pool_stat, dram_budget));
    put_nodes(tier, reports, false);
    if (control->config->cxl.size_bytes > 0) {
        tier = put_tier(tiers, "cxl", control->config->cxl.size_bytes, all.cxl_chunks, all.cxl_used,
                        all.cxl_used - all.cxl_round_waste);
        put_tier_engines(tier, reports, n_pools, offsetof(struct tiering_pool_stat, cxl_budget));
        put_nodes(tier, reports, true);
    }
    if (control->config->n_devices > 0) {
        tier = put_tier(tiers, "nvme", control_nvme_bytes(control), segments, segments, live);
        put_tier_engines(tier, reports, n_pools, offsetof(struct tiering_pool_stat, nvme_budget));
    }
    json *m = json_put_object(o, "metadata");

    json_put_u64(m, "objects", metadata.objects);
    json_put_u64(m, "objects_max", metadata.objects_max);
    json_put_u64(m, "leases", metadata.leases);
    json_put_u64(m, "leases_max", metadata.leases_max);
    json_put_u64(m, "object_record_bytes", metadata.record_bytes);
    json_put_u64(m, "index_bytes", metadata.index_bytes);
    json_put_u64(m, "ghost_bytes", metadata.ghost_bytes);
    json_put_u64(m, "lease_bytes", metadata.lease_bytes);
    json_put_u64(m, "copied_bytes", metadata.copied_bytes);
    json_put_u64(m, "migrated_bytes", metadata.migrated_bytes);
    json_put_u64(m, "bounced_bytes", metadata.bounced_bytes);
    return o;
}

/* --- sessions ---------------------------------------------------------------------------------------------------- */

static void put_session(json *o, const struct session *session, const struct admin_reports *reports)
{
    const struct spillway_config *config = session->control->config;
    struct peer_stat sum = {0};
    json *pools;

    for (uint32_t e = 0; e < reports->n; e++) {
        for (uint32_t i = 0; i < reports->at[e]->n_peers; i++) {
            const struct peer_stat *peer = &reports->at[e]->peers[i];

            if (peer->session != session->number)
                continue;
            sum.leases += peer->leases;
            sum.requests += peer->requests;
            sum.waits += peer->waits;
            sum.spaces += peer->spaces;
        }
    }
    json_put_u64(o, "session", session->number);
    json_put_text(o, "name", session->name);
    json_put_u64(o, "uid", session->who.uid);
    json_put_u64(o, "pid", (uint64_t)session->who.pid);
    json_put_u64(o, "age_s", (loop_now_ns() - session->since_ns) / NS_PER_S);
    json_put_u64(o, "owner", session->owner ? session->owner->number : 0);
    json_put_text(o, "state",
                  session->state == SESSION_HELLO  ? "hello"
                  : session->state == SESSION_OPEN ? "open"
                  : session->state == SESSION_AWAY ? "away"
                                                   : "ending");
    json_put_u64(o, "rings", session->n_rings);
    json_put_u64(o, "scratch_bytes", session->scratch_bytes);
    json_put_u64(o, "spaces", sum.spaces);
    json_put_u64(o, "leases", sum.leases);
    json_put_u64(o, "requests", sum.requests);
    json_put_u64(o, "waits", sum.waits);
    pools = json_put_array(o, "pools");
    for (uint32_t i = 0; i < config->n_pools; i++)
        if (session->pools[i])
            json_add_text(pools, config->pools[i].section.name);
}

/* All that the sessions of one user have, at all engines. An engine's account is in each of its peers' rows. */
static void user_sum(const struct control *control, uid_t uid, const struct admin_reports *reports,
                     struct peer_stat *ret_sum, uint32_t *ret_rings)
{
    *ret_sum = (struct peer_stat){0};
    *ret_rings = 0;
    for (uint32_t e = 0; e < reports->n; e++) {
        struct tiering_user_stat account = {0};

        list_for_each (l, &control->sessions) {
            const struct session *session = list_entry(l, struct session, link);

            for (uint32_t i = 0; session->who.uid == uid && i < reports->at[e]->n_peers; i++) {
                const struct peer_stat *peer = &reports->at[e]->peers[i];

                if (peer->session != session->number)
                    continue;
                account = peer->user;
                ret_sum->requests += peer->requests;
                ret_sum->waits += peer->waits;
                *ret_rings += peer->rings;
            }
        }
        ret_sum->user.leased += account.leased;
        ret_sum->user.private += account.private;
        ret_sum->user.percent = MAX(ret_sum->user.percent, account.percent);
    }
}

static void put_user(json *o, const struct control *control, const struct account *account,
                     const struct admin_reports *reports)
{
    const struct config_daemon *limits = &control->config->daemon;
    struct peer_stat sum;
    uint32_t rings;

    user_sum(control, account->uid, reports, &sum, &rings);
    json_put_u64(o, "uid", account->uid);
    json_put_u64(o, "sessions", account->n_sessions);
    json_put_u64(o, "sessions_max", limits->uid_sessions);
    json_put_u64(o, "descriptors", account->n_descriptors);
    json_put_u64(o, "descriptors_max", limits->uid_descriptors);
    json_put_u64(o, "rings", rings);
    json_put_u64(o, "scratch_bytes", account->scratch_bytes);
    json_put_u64(o, "scratch_bytes_max", UID_SCRATCH_BYTES_MAX);
    json_put_u64(o, "requests", sum.requests);
    json_put_u64(o, "requests_max", (uint64_t)DEFAULT_REQUESTS * limits->uid_requests_percent / 100 * reports->n);
    json_put_u64(o, "waits", sum.waits);
    json_put_u64(o, "waits_max", (uint64_t)DEFAULT_WAITS * limits->uid_requests_percent / 100 * reports->n);
    json_put_u64(o, "leased_bytes", sum.user.leased);
    json_put_u64(o, "private_bytes", sum.user.private);
    json_put_u64(o, "leases_percent", sum.user.percent);
}

json *admin_sessions(const struct control *control, const struct admin_reports *reports)
{
    json *o = json_begin();
    json *sessions = json_put_array(o, "sessions");

    list_for_each (l, &control->sessions)
        put_session(json_add_object(sessions), list_entry(l, struct session, link), reports);
    json *users = json_put_array(o, "users");

    list_for_each (l, &control->accounts)
        put_user(json_add_object(users), control, list_entry(l, struct account, link), reports);
    return o;
}

/* --- devices, iostat --------------------------------------------------------------------------------------------- */

static void put_store(json *o, const struct store_stat *s)
{
    json_put_u64(o, "segments", s->segments);
    json_put_u64(o, "segments_free", s->segments_free);
    json_put_u64(o, "segments_open", s->segments_open);
    json_put_u64(o, "segments_pending_free", s->segments_pending_free);
    json_put_u64(o, "segment_bytes", s->segment_bytes);
    json_put_u64(o, "live_bytes", s->live_bytes);
    json_put_u64(o, "written_bytes", s->written_bytes);
    json_put_u64(o, "written_log_bytes", s->written_log_bytes);
    json_put_u64(o, "put_bytes", s->put_bytes);
    json_put_u64(o, "got_bytes", s->got_bytes);
    json_put_u64(o, "bounced_bytes", s->bounced_bytes);
    json_put_u64(o, "checksum_errors", s->checksum_errors);
    json_put_u64(o, "write_errors", s->write_errors);
    json_put_u64(o, "log_bytes", s->log_bytes);
    json_put_u64(o, "log_live_bytes", s->log_live_bytes);
    json_put_u64(o, "log_used_bytes", s->log_used_bytes);
    json_put_u64(o, "checkpoints", s->checkpoints);
    json_put_u64(o, "reclaimed_segments", s->reclaimed_segments);
    json_put_u64(o, "flushes", s->flushes);
    json_put_u64(o, "recovered_pieces", s->recovered_pieces);
    json_put_u64(o, "recovered_log_bytes", s->recovered_log_bytes);
    json_put_int(o, "failed", s->failed);
}

static void put_stores(json *o, const struct admin_reports *reports, uint32_t device)
{
    json *stores = json_put_array(o, "partitions");

    for (uint32_t e = 0; e < reports->n; e++) {
        for (uint32_t i = 0; i < reports->at[e]->n_stores; i++) {
            if (reports->at[e]->store_at[i].device != device)
                continue;
            json *store = json_add_object(stores);

            json_put_u64(store, "partition", reports->at[e]->store_at[i].partition);
            json_put_u64(store, "engine", e);
            json_put_u64(store, "log_ns", reports->at[e]->store_at[i].log_ns);
            put_store(store, &reports->at[e]->stores[i]);
        }
    }
}

static void put_device_writes(json *o, const struct admin_reports *reports, uint32_t device)
{
    struct tiering_writes sum = {0};

    for (uint32_t e = 0; e < reports->n; e++)
        for (uint32_t i = 0; i < reports->at[e]->n_stores; i++)
            if (reports->at[e]->store_at[i].device == device)
                sum_add(&sum, &reports->at[e]->writes[i], sizeof(sum));
    put_writes(o, &sum);
}

json *admin_devices(const struct control *control, const struct admin_reports *reports)
{
    json *o = json_begin();
    json *devices = json_put_array(o, "devices");

    for (uint32_t i = 0; i < control->config->n_devices; i++) {
        const struct config_device *config = &control->config->devices[i];
        const struct control_device *device = &control->devices[i];
        json *d = json_add_object(devices);
        uint64_t size_now = 0;

        json_put_text(d, "name", config->section.name);
        json_put_text(d, "path", config->path);
        json_put_text(d, "label", device->identity.format.label);
        json_put_u64(d, "version", device->identity.version);
        json_put_u64(d, "formatted_bytes", device->identity.format.device_bytes);
        json_put_u64(d, "capacity_bytes", device->used_bytes);
        json_put_bool(d, "block_device", device->device.is_block);
        json_put_bool(d, "direct_io", device->device.is_direct);
        json_put_u64(d, "weight", config->weight);
        json_put_bool(d, "truncated",
                      device_size_now(&device->device, &size_now) == 0 &&
                          size_now < device->identity.format.device_bytes);
        put_device_writes(d, reports, i);
        put_stores(d, reports, i);
    }
    return o;
}

json *admin_iostat(const struct control *control, const struct admin_reports *reports)
{
    json *o = json_begin();
    json *engines = json_put_array(o, "engines");

    (void)control;
    json_put_u64(o, "time_ns", loop_now_ns());
    for (uint32_t e = 0; e < reports->n; e++) {
        const struct uring_stat *s = &reports->at[e]->uring;
        json *engine = json_add_object(engines);

        json_put_u64(engine, "number", e);
        json_put_u64(engine, "reads", s->reads_done);
        json_put_u64(engine, "writes", s->writes_done);
        json_put_u64(engine, "flushes", s->flushes_done);
        json_put_u64(engine, "read_bytes", s->read_bytes);
        json_put_u64(engine, "written_bytes", s->written_bytes);
        json_put_u64(engine, "errors", s->errors);
        json_put_u64(engine, "shorts", s->shorts);
        json_put_u64(engine, "unregistered", s->unregistered);
        json_put_u64(engine, "in_flight", s->blks_in_flight);
        json_put_u64(engine, "queued", s->blks_queued);
        json_put_u64(engine, "works", s->works);
        json_put_u64(engine, "enters", s->enters);
        json_put_u64(engine, "sleeps", s->sleeps);
        json_put_u64(engine, "items", reports->at[e]->requests.items);
        json_put_u64(engine, "cqes", reports->at[e]->requests.cqes);
    }
    return o;
}
