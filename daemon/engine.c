/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns one engine's thread and everything that it composes: requests above tiering above the uring. Set up on the
 * control thread, and the engine's alone from engine_run() on.
 *
 * The loop has one place to sleep: uring_run(), which wakes on completions, doorbells (one-shot polls), messages, and
 * after the shortest of the timeouts that requests and tiering ask for; if they ask for none, there is none. A turn is
 * bounded: a quantum a session, what has completed, and tiering's steps.
 *
 * While rings are hot the engine spins. What waits for it then is a client that counts nanoseconds, so a turn that found
 * nothing ends with a look at the tails of the hot rings, again and again for a bounded while (engine_spin()), and what
 * comes is served at once. The rest of a turn then runs while the client is busy with its answer.
 */
#include "daemon/engine.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "daemon/log.h"
#include "include/base/kill_point.h"
#include "include/base/units.h"
#include "io/sandbox.h"

#define NS_PER_S UINT64_C(1000000000)
#define DRAIN_STEP_NS UINT64_C(2000000)
#define SPIN_LOOKS 256U    /* at a hot ring, between two turns: about a microsecond */
#define SPIN_LOOKS_ASIDE 8 /* looks at rings for one at completions and messages */
#define CHUNKS_LOOK_NS NS_PER_S

static uint64_t engine_clock_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* --- Lines for the log ------------------------------------------------------------------------------------------- */

static void notice_at_control(struct engine_msg *msg)
{
    struct engine_notice *notice = container_of(msg, struct engine_notice, msg);

    void (*print)(enum log_level level, const char *fmt, ...) = notice->is_limited ? log_print_limited : log_print;

    print((enum log_level)notice->level, "engine %u: %s", notice->engine->config.number, notice->text);
    store_release(&notice->in_use, 0); /* pairs with the acquire in notice_new() */
}

static struct engine_notice *notice_new(struct engine *engine)
{
    for (uint32_t i = 0; i < ENGINE_NOTICES; i++)
        if (load_acquire(&engine->notices[i].in_use) == 0)
            return &engine->notices[i];
    engine->notices_lost++;
    return NULL;
}

static void notice_vpost(struct engine *engine, int level, bool is_limited, const char *fmt, va_list args)
{
    struct engine_notice *notice = notice_new(engine);

    if (!notice)
        return;
    vsnprintf(notice->text, sizeof(notice->text), fmt, args);
    notice->engine = engine;
    notice->level = level;
    notice->is_limited = is_limited;
    notice->msg.run = notice_at_control;
    store_relaxed(&notice->in_use, 1);
    engine_queue_post(engine->config.control, &notice->msg);
}

void engine_notice(struct engine *engine, int level, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    notice_vpost(engine, level, false, fmt, args);
    va_end(args);
}

/* For what a client can cause as often as it likes. */
static printf_like(3, 4) void notice_limited(struct engine *engine, int level, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    notice_vpost(engine, level, true, fmt, args);
    va_end(args);
}

/* --- What tiering, the uring and the requests tell --------------------------------------------------------------- */

static void on_chunk_new(void *ctx, uint32_t region, uint32_t epoch, uint32_t pool, enum io_chunk_kind kind,
                         uint64_t session)
{
    struct engine *engine = ctx;

    if (region >= CHUNKS_MAX)
        return;
    struct engine_chunk *entry = &engine->chunks[region];

    engine->n_chunks = MAX(engine->n_chunks, region + 1);
    entry->session = session;
    entry->epoch = epoch;
    entry->pool = pool;
    entry->kind = (uint8_t)kind;
    entry->is_live = true;
    entry->said_poisoned = false;
    engine_chunk_keep(engine, region);
    kill_point("engine.chunk");
    engine_chunk_changed(engine, region);
}

static void on_chunk_gone(void *ctx, uint32_t region, uint32_t epoch)
{
    struct engine *engine = ctx;

    if (region >= CHUNKS_MAX || engine->chunks[region].epoch != epoch)
        return;
    engine->chunks[region].is_live = false;
    engine_chunk_forget(engine, region);
    engine_chunk_changed(engine, region);
}

static void on_notice(void *ctx, const char *text, uint32_t pool, int status)
{
    struct engine *engine = ctx;
    const char *name = pool < engine->config.tiering.n_pools ? engine->config.tiering.pools[pool].name : "-";

    if (status < 0)
        engine_notice(engine, LOG_LEVEL_WARNING, "pool %s: %s: %s", name, text, log_errno(status));
    else
        engine_notice(engine, LOG_LEVEL_INFO, "pool %s: %s", name, text);
}

static void flush_note_at_control(struct engine_msg *msg)
{
    const struct engine_flush_note *note = container_of(msg, struct engine_flush_note, msg);
    const struct engine_config *config = &note->owner->config;

    config->flush_failed(config->flush_failed_ctx, config->number, note->device, note->why);
}

static void on_flush_failed(void *ctx, uint16_t dev, int why)
{
    struct engine *engine = ctx;
    uint32_t i = 0;

    while (i < engine->n_stores && engine->store_at[i].dev != dev)
        i++;
    if (i == engine->n_stores || engine->flush_notes[i].why)
        return;
    engine->flush_notes[i] = (struct engine_flush_note){
        .msg.run = flush_note_at_control, .owner = engine, .device = engine->store_at[i].device, .why = why};
    engine_queue_post(engine->config.control, &engine->flush_notes[i].msg);
}

/* In the words of `spillctl fsck --data`. Of `cache` a crash may have cut off some bytes: nothing is wrong then. */
static void on_damaged(void *ctx, uint32_t store, uint32_t pool, const struct store_entry *entry)
{
    struct engine *engine = ctx;
    const struct engine_store *at = &engine->store_at[store];
    const struct store_id *id = &entry->id;
    char key[STORE_KEY_TEXT_BYTES];

    store_key_print(id, key);
    notice_limited(engine, entry->durability == STORE_CACHE ? LOG_LEVEL_NOTICE : LOG_LEVEL_WARNING,
                   "pool %s: a checksum does not match on [device %s]: %s, space %016llx, key %s, group %u, part %u, "
                   "piece %u; partition %u, segment %u, offset %llu, %u bytes",
                   pool < engine->config.tiering.n_pools ? engine->config.tiering.pools[pool].name : "-", at->name,
                   store_durability_name(entry->durability), (unsigned long long)id->space, key, id->group, id->part,
                   id->piece, at->partition, entry->loc.segment, (unsigned long long)entry->loc.sector * SECTOR_BYTES,
                   entry->size_bytes);
}

static const struct tiering_events tiering_events = {
    .chunk_new = on_chunk_new,
    .chunk_gone = on_chunk_gone,
    .notice = on_notice,
    .flush_failed = on_flush_failed,
    .damaged = on_damaged,
};

static void notice_memlock(struct engine *engine)
{
    const struct uring_caps *caps = uring_caps(engine->uring);
    char limit[UNITS_TEXT_BYTES];

    engine_notice(engine, LOG_LEVEL_WARNING,
                  "memory is not locked: the limit is %s; raise it with `ulimit -l` or LimitMEMLOCK= "
                  "(until then I/O is slower, and pages can be swapped out)",
                  size_print(caps->memlock_limit_bytes, limit));
}

static void notice_node(struct engine *engine, const struct memory_chunk *chunk)
{
    const struct memory_report *report = &chunk->report;
    char size[UNITS_TEXT_BYTES];

    if (report->bind_error < 0)
        engine_notice(engine, LOG_LEVEL_WARNING, "%s of memory cannot be bound to node %u (%s): it lies anywhere",
                      size_print(chunk->size_bytes, size), chunk->node, log_errno(report->bind_error));
    else if (report->n_on_node < report->n_sampled)
        engine_notice(engine, LOG_LEVEL_WARNING, "of %u pages looked up, only %u lie on node %u", report->n_sampled,
                      report->n_on_node, chunk->node);
}

/* The first chunk tells what the others will be like; after it only what is worse is worth a line. */
static void on_chunk(void *ctx, uint32_t region, const struct memory_chunk *chunk)
{
    struct engine *engine = ctx;
    const struct memory_report *report = &chunk->report;
    char size[UNITS_TEXT_BYTES];

    (void)region;
    char where[32] = "";

    if (chunk->node != MEMORY_NODE_ANY)
        snprintf(where, sizeof(where), " on node %u", chunk->node);
    engine_notice(engine, engine->said_memory ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO, "%s of memory%s in %s%s%s%s",
                  size_print(chunk->size_bytes, size), where, memory_pages_name(report->pages), report->why ? " (" : "",
                  report->why ? report->why : "", report->why ? ")" : "");
    notice_node(engine, chunk);
    if (report->lock_error < 0 || uring_caps(engine->uring)->degraded_memlock) {
        if (!load_relaxed(&engine->is_degraded))
            notice_memlock(engine);
        store_relaxed(&engine->is_degraded, 1);
    }
    engine->said_memory = true;
}

static void on_chunk_wait(void *ctx, uint64_t size_bytes, uint32_t node)
{
    struct engine *engine = ctx;
    char size[UNITS_TEXT_BYTES], where[32] = "";

    if (node != MEMORY_NODE_ANY)
        snprintf(where, sizeof(where), " on node %u", node);
    engine_notice(
        engine, engine->said_wait ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO,
        "%s of memory%s are not free: waiting %u ms for whoever gives them back (a daemon that has just ended?)",
        size_print(size_bytes, size), where, MEMORY_WAIT_MS);
    engine->said_wait = true;
}

static void broken_at_control(struct engine_msg *msg)
{
    struct engine_peer *peer = container_of(msg, struct engine_peer, broken_msg);

    peer->broken(peer, peer->broken_why);
}

static void on_broken(void *ctx, struct peer *peer, const char *why)
{
    struct engine *engine = ctx;
    struct engine_peer *seat = container_of(peer, struct engine_peer, peer);

    seat->broken_why = why;
    seat->broken_msg.run = broken_at_control;
    engine_queue_post(engine->config.control, &seat->broken_msg);
}

static int on_ring_cold(void *ctx, struct ring *ring)
{
    struct engine *engine = ctx;

    if (ring->doorbell_gone || ring->poll != 0)
        return 0;
    return uring_poll_arm(engine->uring, ring->doorbell_fd, (uintptr_t)ring, &ring->poll);
}

static const struct requests_events requests_events = {on_broken, on_ring_cold, engine_lane_gone};

/* A doorbell. uring_poll_cancel() ran before any ring went away, so the token is alive. It is emptied when the ring goes
 * cold again: the client waits now. */
static void on_poll(void *ctx, uint64_t token, uint32_t revents)
{
    struct engine *engine = ctx;
    struct ring *ring = (struct ring *)(uintptr_t)token;

    (void)revents;
    ring->poll = 0;
    requests_ring_hot(engine->requests, ring, engine->now_ns);
}

/*
 * Somebody punched holes into memory that it may write: the SIGBUS guard has put zeros there and marked the chunk. A
 * private chunk dies with its session; in a trusted pool the damage is the pool's own.
 */
static void engine_check_chunks(struct engine *engine)
{
    for (uint32_t i = 0; i < engine->n_chunks; i++) {
        struct engine_chunk *entry = &engine->chunks[i];
        const struct memory_chunk *chunk = entry->is_live ? uring_region_chunk(engine->uring, i) : NULL;

        if (!chunk || entry->said_poisoned || !memory_chunk_is_poisoned(chunk))
            continue;
        entry->said_poisoned = true;
        engine_notice(engine, LOG_LEVEL_WARNING, "pool %s: a client took pages out of a chunk; what lay there is gone",
                      engine->config.tiering.pools[entry->pool].name);
        if (entry->kind == IO_CHUNK_PRIVATE)
            (void)requests_break_session(engine->requests, entry->session, "it took pages out of its private memory");
    }
}

/* --- The loop ---------------------------------------------------------------------------------------------------- */

static void engine_step_stop(struct engine *engine)
{
    if (engine->draining && tiering_drain(engine->tiering)) {
        struct stop_call *call = engine->draining;

        kill_point("engine.drained");
        engine->draining = NULL;
        call->result = 0;
        engine_call_answer(&call->call);
    }
    if (engine->stopping && requests_is_idle(engine->requests) && tiering_idle(engine->tiering) &&
        uring_is_idle(engine->uring)) {
        struct stop_call *call = engine->stopping;

        engine->stopping = NULL;
        tiering_drain_left(engine->tiering, &call->left);
        call->result = tiering_close_clean(engine->tiering);
        kill_point("engine.closed");
        engine->stopped = true;
        engine_call_answer(&call->call);
    }
}

static uint64_t engine_timeout_ns(const struct engine *engine, uint32_t n_done, uint64_t tick_ns)
{
    uint64_t timeout_ns = tick_ns;

    if (n_done > 0 || requests_wants_spin(engine->requests))
        return 0;
    if (engine->chunks_due)
        timeout_ns = MIN(timeout_ns, engine->chunks_seen_ns + CHUNKS_LOOK_NS - engine->now_ns);
    if (engine->draining || engine->stopping)
        timeout_ns = MIN(timeout_ns, DRAIN_STEP_NS);
    if (engine->inject_next_ns > engine->now_ns)
        timeout_ns = MIN(timeout_ns, engine->inject_next_ns - engine->now_ns);
    uint64_t next_ns = requests_next_ns(engine->requests, engine->now_ns);

    if (next_ns != UINT64_MAX)
        timeout_ns = MIN(timeout_ns, next_ns > engine->now_ns ? next_ns - engine->now_ns : 0);
    return timeout_ns;
}

/* What is in a hot ring is served at once, with the time of the turn that ends here. Whatever else comes is for the next
 * turn: that follows in any case. */
static void engine_spin(struct engine *engine)
{
    uint32_t n_rounds = SPIN_LOOKS / MAX(requests_hot_rings(engine->requests), 1U);

    for (uint32_t i = 0; i < n_rounds; i++) {
        if (requests_peek(engine->requests)) {
            (void)requests_run(engine->requests, engine->now_ns);
            return;
        }
        if (i % SPIN_LOOKS_ASIDE == 0 && uring_peek(engine->uring))
            return;
    }
}

static int engine_turn(struct engine *engine)
{
    engine->now_ns = engine_clock_ns();
    engine->heartbeat++;
    kill_point("engine.turn");
    if (engine->inject)
        engine->inject_next_ns = inject_tick(engine->inject, engine->now_ns);
    uint64_t tick_ns = tiering_tick(engine->tiering, engine->now_ns);
    uint32_t n_done = requests_run(engine->requests, engine->now_ns);

    if (engine->chunks_due && engine->now_ns - engine->chunks_seen_ns >= CHUNKS_LOOK_NS) {
        engine->chunks_seen_ns = engine->now_ns;
        engine->chunks_due = false;
        engine_check_chunks(engine);
    }
    if (engine->n_chunks_waiting > 0)
        engine_chunks_tell(engine);
    if (engine->draining || engine->stopping)
        engine_step_stop(engine);
    kill_point("engine.served");
    if (engine->stopped)
        return 0;
    uint64_t timeout_ns = engine_timeout_ns(engine, n_done, tick_ns);
    int r = uring_run(engine->uring, timeout_ns);

    engine->chunks_due |= n_done > 0 || r > 0;
    if (r == 0 && n_done == 0 && timeout_ns == 0 && tick_ns > 0)
        engine_spin(engine);
    return r;
}

/* A new process, which the service manager starts, does better than this one could. */
static void engine_broken_at_control(struct engine_msg *msg)
{
    const struct engine *engine = container_of(msg, struct engine, broken_msg);

    log_error("engine %u: io_uring failed for good: %s", engine->config.number, log_errno(engine->broken));
    _exit(EXIT_FAILURE);
}

static void *engine_main(void *arg)
{
    struct engine *engine = arg;
    char name[16];

    snprintf(name, sizeof(name), "engine-%u", engine->config.number);
    (void)pthread_setname_np(pthread_self(), name);
    int r = uring_start(engine->uring);

    (void)sandbox_enter(SANDBOX_ENGINE); /* sandbox_stat() tells of a failure */
    kill_point("engine.started");
    while (r >= 0 && !engine->stopped)
        r = engine_turn(engine);
    if (r < 0) { /* nothing can be served any more, nor be written back */
        engine->broken = r;
        engine->broken_msg.run = engine_broken_at_control;
        engine_queue_post(engine->config.control, &engine->broken_msg);
    }
    return NULL;
}

/* --- Setting up -------------------------------------------------------------------------------------------------- */

static void *engine_address(void *ctx, struct io_buf buf, uint64_t len_bytes)
{
    return uring_address(ctx, buf, len_bytes);
}

/* What tiering takes for the world. */
static int engine_backend(struct engine *engine, struct io_backend **ret_backend)
{
    *ret_backend = uring_backend(engine->uring);
    if (!engine->config.inject)
        return 0;
    int r = inject_new(*ret_backend, engine_address, engine->uring, engine->config.number, &engine->inject);

    if (r == 0)
        *ret_backend = inject_backend(engine->inject);
    return r;
}

static int engine_setup(struct engine *engine, const char **ret_why)
{
    struct uring_config uring = engine->config.uring;
    struct tiering_config *tiering = &engine->config.tiering;

    uring.ctx = engine;
    uring.on_poll = on_poll;
    uring.on_chunk = on_chunk;
    uring.on_chunk_wait = on_chunk_wait;
    uring.polls_max = ENGINE_RINGS_MAX + GPUS_MAX;
    int r = uring_new(&uring, &engine->uring, ret_why);

    if (r < 0)
        return r;
    *ret_why = "no memory for the object records: lower max_objects";
    r = engine_records_take(engine);
    if (r < 0)
        return r;
    engine_chunks_adopt(engine);
    r = engine_backend(engine, &tiering->backend);
    if (r < 0)
        return r;
    tiering->records = engine->records.mem;
    tiering->events = &tiering_events;
    tiering->ctx = engine;
    kill_point("engine.records");
    *ret_why = "no memory for tiering: lower max_objects";
    const char *distrust;
    uint64_t start_ns = engine_clock_ns();
    r = tiering_new(tiering, &engine->tiering);
    if (r < 0)
        return r;
    if (tiering_is_warm(engine->tiering, &distrust))
        engine->recovery_ns = engine_clock_ns() - start_ns;
    engine_chunks_adopted(engine);
    struct requests_config requests = {
        .tiering = engine->tiering,
        .engine = engine->config.number,
        .max_requests = engine->config.max_requests,
        .max_waits = engine->config.max_waits,
        .spin_ns = engine->config.spin_ns,
        .user_percent = engine->config.user_percent,
        .gpus = engine->config.gpus,
        .events = &requests_events,
        .ctx = engine,
    };
    *ret_why = "no memory for requests";
    return requests_new(&requests, &engine->requests);
}

int engine_new(const struct engine_config *config, struct engine **ret_engine, const char **ret_why)
{
    struct engine *engine = calloc(1, sizeof(*engine));

    *ret_why = "out of memory";
    if (!engine)
        return -ENOMEM;
    engine->records = MEMORY_SHARED_NONE;
    engine->config = *config;
    engine->pools = calloc(config->tiering.n_pools, sizeof(*engine->pools));
    if (!engine->pools) {
        engine_free(engine);
        return -ENOMEM;
    }
    if (config->chunk_note) {
        engine->chunk_notes = calloc(CHUNKS_MAX, sizeof(*engine->chunk_notes));
        if (!engine->chunk_notes) {
            engine_free(engine);
            return -ENOMEM;
        }
    }
    memcpy(engine->pools, config->tiering.pools, config->tiering.n_pools * sizeof(*engine->pools));
    engine->config.tiering.pools = engine->pools;
    int r = engine_setup(engine, ret_why);

    if (r < 0) {
        engine_free(engine);
        return r;
    }
    *ret_engine = engine;
    return 0;
}

int engine_store_add(struct engine *engine, uint16_t dev, uint32_t device, const char *name, uint16_t partition,
                     uint64_t device_bytes, const char **ret_why)
{
    *ret_why = "more partitions than one engine can serve: raise engines";
    if (engine->n_stores == DEVICES_MAX)
        return -ENOSPC;
    kill_point("engine.store");
    uint64_t start_ns = engine_clock_ns();
    int r = tiering_store_add(engine->tiering, dev, partition, device_bytes, ret_why);
    uint64_t log_ns = engine_clock_ns() - start_ns;

    engine->recovery_ns += log_ns;
    if (r == 0) {
        struct engine_store *store = &engine->store_at[engine->n_stores++];

        *store = (struct engine_store){.device = device, .dev = dev, .partition = partition, .log_ns = log_ns};
        snprintf(store->name, sizeof(store->name), "%s", name);
    }
    return r;
}

int engine_begin(struct engine *engine)
{
    uint64_t start_ns = engine_clock_ns();
    int r = tiering_start(engine->tiering);

    engine->recovery_ns += engine_clock_ns() - start_ns;
    return r;
}

int engine_run(struct engine *engine)
{
    kill_point("engine.run");
    int r = pthread_create(&engine->thread, NULL, engine_main, engine);
    engine->has_thread = r == 0;
    return -r;
}

static void engine_end_now(struct engine_msg *msg)
{
    container_of(msg, struct engine, end_msg)->stopped = true;
}

void engine_end(struct engine *engine)
{
    if (!engine || !engine->has_thread)
        return;
    if (!engine->stopped) {
        engine->end_msg.run = engine_end_now;
        engine_queue_post(uring_queue(engine->uring), &engine->end_msg);
    }
    (void)pthread_join(engine->thread, NULL);
    engine->has_thread = false;
}

struct engine *engine_free(struct engine *engine)
{
    if (!engine)
        return NULL;
    engine_end(engine);
    requests_free(engine->requests);
    tiering_free(engine->tiering);
    engine->inject = inject_free(engine->inject);
    uring_free(engine->uring);
    memory_shared_destroy(&engine->records);
    free(engine->chunk_notes);
    free(engine->pools);
    free(engine);
    return NULL;
}
