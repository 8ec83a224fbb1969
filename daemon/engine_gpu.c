/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns what the control thread asks of an engine about GPUs, and what it is told of chunks. Calls are as in engine_call.c:
 * the public function runs on the control thread, the static one on the engine's.
 *
 * Notes of chunks must not be lost, and memory for them may not be had when they are due. So each region has one note, and
 * beside it what the control thread knows. What changes while the note is on its way is told when it is back, at the latest
 * with the next ping: the end of what was told, then what is there now.
 */
#include <errno.h>

#include "daemon/engine.h"

static void call_to(struct engine *engine, struct call *call, void (*at_engine)(struct call *call))
{
    call->at_engine = at_engine;
    engine_call(engine, call);
}

/* --- GPUs and lanes ---------------------------------------------------------------------------------------------- */

static void gpu_add_at_engine(struct call *base)
{
    struct gpu_call *call = container_of(base, struct gpu_call, call);

    call->result = uring_gpu_add(base->engine->uring, call->gpu, call->ring_mem, call->entries, call->doorbell_fd);
}

void engine_gpu_add(struct engine *engine, struct gpu_call *call)
{
    call_to(engine, &call->call, gpu_add_at_engine);
}

static void gpu_remove_at_engine(struct call *base)
{
    struct gpu_call *call = container_of(base, struct gpu_call, call);

    uring_gpu_remove(base->engine->uring, call->gpu);
    requests_gpu_gone(base->engine->requests, call->gpu);
    call->result = 0;
}

void engine_gpu_remove(struct engine *engine, struct gpu_call *call)
{
    call_to(engine, &call->call, gpu_remove_at_engine);
}

static void lane_add_at_engine(struct call *base)
{
    struct lane_call *call = container_of(base, struct lane_call, call);
    struct lane_spec spec = {.lane = call->lane,
                             .gpu = call->gpu,
                             .pool = call->pool,
                             .slots = call->slots,
                             .slot_bytes = call->slot_bytes,
                             .alloc_bytes = call->alloc_bytes,
                             .fences = call->fences};

    call->result = uring_gpu_is_there(base->engine->uring, call->gpu)
                       ? requests_lane_add(base->engine->requests, &call->peer->peer, &spec)
                       : -ENODEV;
}

void engine_lane_add(struct engine *engine, struct lane_call *call)
{
    call_to(engine, &call->call, lane_add_at_engine);
}

static void lane_remove_at_engine(struct call *base)
{
    struct lane_call *call = container_of(base, struct lane_call, call);

    call->result = 0;
    base->deferred = !requests_lane_remove(base->engine->requests, &call->peer->peer, call->lane, call);
}

void engine_lane_remove(struct engine *engine, struct lane_call *call)
{
    call_to(engine, &call->call, lane_remove_at_engine);
}

void engine_lane_gone(void *ctx, void *removal)
{
    struct lane_call *call = removal;

    (void)ctx;
    engine_call_answer(&call->call);
}

/* --- Chunks ------------------------------------------------------------------------------------------------------ */

static void note_at_control(struct engine_msg *msg)
{
    struct engine_chunk_note *note = container_of(msg, struct engine_chunk_note, msg);

    note->owner->config.chunk_note(note->owner->config.chunk_note_ctx, note);
    store_release(&note->in_use, 0); /* pairs with the acquire in chunk_tell() */
}

static void note_send(struct engine *engine, uint32_t region, bool is_new)
{
    struct engine_chunk *entry = &engine->chunks[region];
    struct engine_chunk_note *note = &engine->chunk_notes[region];
    struct memory_chunk *chunk = is_new ? uring_region_chunk(engine->uring, region) : NULL;

    *note = (struct engine_chunk_note){.msg.run = note_at_control,
                                       .owner = engine,
                                       .in_use = 1,
                                       .engine = engine->config.number,
                                       .region = region,
                                       .epoch = is_new ? entry->epoch : entry->told_epoch,
                                       .pool = entry->pool,
                                       .is_new = is_new,
                                       .kind = entry->kind,
                                       .chunk = chunk ? memory_chunk_ref(chunk) : NULL};
    entry->told_live = is_new;
    entry->told_epoch = note->epoch;
    engine_queue_post(engine->config.control, &note->msg);
}

/* True: the control thread knows, or will; nothing is left to be sent. */
static bool chunk_tell(struct engine *engine, uint32_t region)
{
    const struct engine_chunk *entry = &engine->chunks[region];
    bool is_told = entry->told_live && entry->is_live && entry->told_epoch == entry->epoch;

    if (is_told || (!entry->told_live && !entry->is_live))
        return true;
    if (load_acquire(&engine->chunk_notes[region].in_use))
        return false;
    if (!entry->told_live) {
        note_send(engine, region, true);
        return true;
    }
    note_send(engine, region, false);
    return !entry->is_live;
}

void engine_chunk_changed(struct engine *engine, uint32_t region)
{
    struct engine_chunk *entry = &engine->chunks[region];

    if (!engine->chunk_notes || entry->is_waiting || chunk_tell(engine, region))
        return;
    entry->is_waiting = true;
    engine->n_chunks_waiting++;
}

void engine_chunks_tell(struct engine *engine)
{
    for (uint32_t i = 0; i < engine->n_chunks; i++) {
        if (!engine->chunks[i].is_waiting || !chunk_tell(engine, i))
            continue;
        engine->chunks[i].is_waiting = false;
        engine->n_chunks_waiting--;
    }
}
