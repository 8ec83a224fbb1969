/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns what the control thread asks of an engine. Each call is a pair: the public function, on the control thread,
 * posts it; the static one runs on the engine's thread. The same message carries the answer, so a call needs no memory
 * but its own, and cannot fail on the way.
 */
#include <errno.h>

#include "daemon/engine.h"
#include "include/base/kill_point.h"

static void call_at_control(struct engine_msg *msg)
{
    struct call *call = container_of(msg, struct call, msg);

    call->at_control(call);
}

void engine_call_answer(struct call *call)
{
    call->msg.run = call_at_control;
    engine_queue_post(call->engine->config.control, &call->msg);
}

static void call_at_engine(struct engine_msg *msg)
{
    struct call *call = container_of(msg, struct call, msg);

    call->deferred = false;
    call->at_engine(call);
    if (!call->deferred)
        engine_call_answer(call);
}

void engine_call(struct engine *engine, struct call *call)
{
    call->engine = engine;
    call->msg.run = call_at_engine;
    engine_queue_post(uring_queue(engine->uring), &call->msg);
}

static void call_to(struct engine *engine, struct call *call, void (*at_engine)(struct call *call))
{
    call->at_engine = at_engine;
    engine_call(engine, call);
}

/* --- Sessions ---------------------------------------------------------------------------------------------------- */

static void peer_add_at_engine(struct call *base)
{
    struct peer_add_call *call = container_of(base, struct peer_add_call, call);

    kill_point("engine.peer_add");
    requests_peer_add(base->engine->requests, &call->peer->peer, call->session, call->owner, call->max_leases);
    requests_peer_user(base->engine->requests, &call->peer->peer, call->uid);
    call->peer->peer.may_retry = call->is_reattached;
}

void engine_peer_add(struct engine *engine, struct peer_add_call *call)
{
    call->peer->engine = engine;
    call_to(engine, &call->call, peer_add_at_engine);
}

void engine_peer_restore(struct engine *engine, struct peer_add_call *call)
{
    call->call.engine = call->peer->engine = engine;
    peer_add_at_engine(&call->call);
}

static void ring_forget_poll(struct engine *engine, struct ring *ring)
{
    if (ring->poll != 0)
        uring_poll_cancel(engine->uring, ring->poll);
    ring->poll = 0;
}

static void peer_silence_at_engine(struct call *base)
{
    struct engine_peer *peer = container_of(base, struct engine_peer, end_call);

    list_for_each (l, &peer->peer.rings)
        ring_forget_poll(base->engine, list_entry(l, struct ring, link));
    requests_peer_silence(base->engine->requests, &peer->peer);
}

void engine_peer_silence(struct engine_peer *peer)
{
    call_to(peer->engine, &peer->end_call, peer_silence_at_engine);
}

static void peer_end_at_engine(struct call *base)
{
    struct engine_peer *peer = container_of(base, struct engine_peer, end_call);

    list_for_each (l, &peer->peer.rings)
        ring_forget_poll(base->engine, list_entry(l, struct ring, link));
    kill_point("engine.peer_end");
    requests_peer_remove(base->engine->requests, &peer->peer, peer->leaves);
    kill_point("engine.peer_gone");
}

void engine_peer_end(struct engine_peer *peer)
{
    call_to(peer->engine, &peer->end_call, peer_end_at_engine);
}

static void space_open_at_engine(struct call *base)
{
    struct space_call *call = container_of(base, struct space_call, call);

    kill_point("engine.space_open");
    call->result = tiering_space_open(base->engine->tiering, &call->spec, &call->info);
    if (call->result == 0)
        call->result =
            requests_space_add(base->engine->requests, &call->peer->peer, &call->info, call->weight, &call->handle);
}

void engine_space_open(struct engine *engine, struct space_call *call)
{
    call_to(engine, &call->call, space_open_at_engine);
}

static void ring_add_at_engine(struct call *base)
{
    struct ring_call *call = container_of(base, struct ring_call, call);
    struct requests_stat stat;

    requests_stat(base->engine->requests, &stat);
    if (stat.rings >= ENGINE_RINGS_MAX) {
        call->result = -ENOSPC;
        return;
    }
    kill_point("engine.ring_add");
    requests_ring_add(base->engine->requests, &call->peer->peer, call->ring);
    call->result = 0;
}

void engine_ring_add(struct engine *engine, struct ring_call *call)
{
    call_to(engine, &call->call, ring_add_at_engine);
}

static void ring_remove_at_engine(struct call *base)
{
    struct ring_call *call = container_of(base, struct ring_call, call);

    ring_forget_poll(base->engine, call->ring);
    requests_ring_remove(base->engine->requests, call->ring);
    call->result = 0;
}

void engine_ring_remove(struct engine *engine, struct ring_call *call)
{
    call_to(engine, &call->call, ring_remove_at_engine);
}

static void unanswered_at_engine(struct call *base)
{
    const struct unanswered_call *call = container_of(base, struct unanswered_call, call);

    requests_unanswered(base->engine->requests, &call->peer->peer, call->requests, call->n);
}

void engine_unanswered(struct engine *engine, struct unanswered_call *call)
{
    call_to(engine, &call->call, unanswered_at_engine);
}

/* --- Chunks ------------------------------------------------------------------------------------------------------ */

/* Names it by region and epoch, as the results that the client got. Rights to the pool are the control thread's. */
static void chunk_get_at_engine(struct call *base)
{
    struct chunk_call *call = container_of(base, struct chunk_call, call);
    const struct engine_chunk *entry;

    call->result = -ENOENT;
    if (call->region >= CHUNKS_MAX)
        return;
    entry = &base->engine->chunks[call->region];
    if (!entry->is_live || entry->epoch != call->epoch)
        return;
    if (entry->kind == IO_CHUNK_PRIVATE && entry->session != call->session) {
        call->result = -EACCES;
        return;
    }
    struct memory_chunk *chunk = uring_region_chunk(base->engine->uring, call->region);

    if (!chunk)
        return;
    kill_point("engine.chunk_get");
    call->chunk = memory_chunk_ref(chunk);
    call->pool = entry->pool;
    call->writable = entry->kind != IO_CHUNK_SHARED;
    call->result = 0;
}

void engine_chunk_get(struct engine *engine, struct chunk_call *call)
{
    call_to(engine, &call->call, chunk_get_at_engine);
}

/* --- The daemon's own -------------------------------------------------------------------------------------------- */

static void owner_end_at_engine(struct call *base)
{
    tiering_owner_end(base->engine->tiering, container_of(base, struct owner_call, call)->owner);
}

void engine_owner_end(struct engine *engine, struct owner_call *call)
{
    call_to(engine, &call->call, owner_end_at_engine);
}

static void tune_at_engine(struct call *base)
{
    engine_tune_now(base->engine, &container_of(base, struct tune_call, call)->tuning);
}

void engine_tune_now(struct engine *engine, const struct engine_tuning *tuning)
{
    uint32_t weights[POOLS_MAX];

    requests_set_spin(engine->requests, tuning->spin_ns);
    requests_set_user_percent(engine->requests, tuning->user_percent);
    tiering_update(engine->tiering, tuning->clean_percent, tuning->class_weights);
    for (uint32_t i = 0; i < tuning->n_pools; i++) {
        tiering_pool_update(engine->tiering, i, &tuning->pools[i]);
        uring_pool_weight(engine->uring, i, tuning->pools[i].weight);
        weights[i] = tuning->pools[i].weight;
    }
    kill_point("engine.tune");
    requests_set_weights(engine->requests, weights);
    for (uint32_t i = 0; i < tuning->n_stores; i++)
        tiering_store_update(engine->tiering, i, &tuning->stores[i]);
}

void engine_tune(struct engine *engine, struct tune_call *call)
{
    call_to(engine, &call->call, tune_at_engine);
}

static void budget_at_engine(struct call *base)
{
    struct budget_call *call = container_of(base, struct budget_call, call);

    kill_point("engine.budget");
    for (uint32_t i = 0; i < call->n_pools; i++) {
        tiering_pool_budget(base->engine->tiering, i, call->bytes[i]);
        tiering_pool_memory(base->engine->tiering, i, &call->memory[i]);
    }
}

void engine_budget(struct engine *engine, struct budget_call *call)
{
    call_to(engine, &call->call, budget_at_engine);
}

static uint64_t engine_dirty_bytes(const struct engine *engine)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < engine->config.tiering.n_pools; i++) {
        struct tiering_pool_stat stat;

        tiering_pool_stat(engine->tiering, i, &stat);
        bytes += stat.dirty;
    }
    return bytes;
}

static struct engine_node *report_node(struct engine_report *report, uint32_t node)
{
    for (uint32_t i = 0; i < report->n_nodes; i++)
        if (report->nodes[i].node == node)
            return &report->nodes[i];
    if (report->n_nodes == NODES_MAX)
        return NULL;
    report->nodes[report->n_nodes] = (struct engine_node){.node = node};
    return &report->nodes[report->n_nodes++];
}

static void report_nodes(const struct engine *engine, struct engine_report *report)
{
    report->n_nodes = 0;
    for (uint32_t i = 0; i < engine->n_chunks; i++) {
        const struct memory_chunk *chunk = engine->chunks[i].is_live ? uring_region_chunk(engine->uring, i) : NULL;
        struct engine_node *node = chunk ? report_node(report, chunk->node) : NULL;

        if (!node)
            continue;
        node->is_cxl = chunk->node != engine->config.tiering.node;
        node->bytes += chunk->size_bytes;
        node->huge_bytes += chunk->report.pages == MEMORY_PAGES_HUGE ? chunk->size_bytes : chunk->report.thp_bytes;
        node->locked_bytes += chunk->report.is_locked ? chunk->size_bytes : 0;
        node->n_sampled += chunk->report.n_sampled;
        node->n_on_node += chunk->report.n_on_node;
    }
}

static void report_at_engine(struct call *base)
{
    struct engine_report *report = container_of(base, struct engine_report, call);
    struct engine *engine = base->engine;

    report->is_ready = tiering_ready(engine->tiering, &report->have_bytes, &report->want_bytes);
    report->recovery_ns = engine->recovery_ns;
    report->heartbeat = engine->heartbeat;
    report->caps = *uring_caps(engine->uring);
    uring_stat(engine->uring, &report->uring);
    requests_stat(engine->requests, &report->requests);
    tiering_stat(engine->tiering, &report->tiering);
    report->dirty_bytes = engine_dirty_bytes(engine);
    report_nodes(engine, report);
    report->missing_bytes = 0;
    report->n_pools = engine->config.tiering.n_pools;
    for (uint32_t i = 0; i < report->n_pools; i++) {
        tiering_pool_stat(engine->tiering, i, &report->pools[i]);
        report->missing_bytes += report->pools[i].dram_missing + report->pools[i].cxl_missing;
        uring_pool_stat(engine->uring, i, &report->io[i]);
    }
    report->n_stores = engine->n_stores;
    for (uint32_t i = 0; i < report->n_stores; i++) {
        report->store_at[i] = engine->store_at[i];
        tiering_store_stat(engine->tiering, i, &report->stores[i]);
        tiering_store_writes(engine->tiering, i, &report->writes[i]);
    }
    report->n_peers = requests_peers(engine->requests, report->peers, report->max_peers);
}

void engine_report(struct engine *engine, struct engine_report *report)
{
    call_to(engine, &report->call, report_at_engine);
}

static void ping_at_engine(struct call *base)
{
    struct ping_call *call = container_of(base, struct ping_call, call);
    struct tiering_stat stat;

    call->is_ready = tiering_ready(base->engine->tiering, &call->have_bytes, &call->want_bytes);
    call->dirty_bytes = engine_dirty_bytes(base->engine);
    tiering_stat(base->engine->tiering, &stat);
    call->refused_bytes = stat.refused_bytes;
    call->gpus_bad = uring_gpus_bad(base->engine->uring, base->engine->now_ns);
}

void engine_ping(struct engine *engine, struct ping_call *call)
{
    call_to(engine, &call->call, ping_at_engine);
}

static int inject_add_at_engine(struct engine *engine, struct inject_rule *rule)
{
    for (uint32_t i = 0; i < engine->n_stores; i++) {
        if (engine->store_at[i].device != rule->device)
            continue;
        rule->dev = engine->store_at[i].dev;
        return inject_add(engine->inject, rule);
    }
    return 0;
}

static void inject_at_engine(struct call *base)
{
    struct inject_call *call = container_of(base, struct inject_call, call);
    struct inject *inject = base->engine->inject;

    call->result = inject ? 0 : -EPERM;
    call->n = 0;
    if (!inject)
        return;
    if (call->order == INJECT_ADD)
        call->result = inject_add_at_engine(base->engine, &call->rule);
    else if (call->order == INJECT_CLEAR)
        inject_clear(inject);
    call->n = inject_list(inject, call->rules);
}

void engine_inject(struct engine *engine, struct inject_call *call)
{
    call_to(engine, &call->call, inject_at_engine);
}

static void distrust_at_engine(struct call *base)
{
    const struct distrust_call *call = container_of(base, struct distrust_call, call);
    struct engine *engine = base->engine;

    for (uint32_t i = 0; i < engine->n_stores; i++)
        if (engine->store_at[i].device == call->device)
            tiering_device_distrust(engine->tiering, engine->store_at[i].dev, call->why);
}

void engine_device_distrust(struct engine *engine, struct distrust_call *call)
{
    call_to(engine, &call->call, distrust_at_engine);
}

static void drain_at_engine(struct call *base)
{
    kill_point("engine.drain");
    base->deferred = true;
    base->engine->draining = container_of(base, struct stop_call, call);
}

void engine_drain(struct engine *engine, struct stop_call *call)
{
    call_to(engine, &call->call, drain_at_engine);
}

static void stop_at_engine(struct call *base)
{
    base->deferred = true;
    kill_point("engine.stop");
    tiering_stop(base->engine->tiering);
    base->engine->stopping = container_of(base, struct stop_call, call);
}

void engine_stop(struct engine *engine, struct stop_call *call)
{
    call_to(engine, &call->call, stop_at_engine);
}
