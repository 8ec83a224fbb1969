/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns what of an engine outlives the process: its records (with leases, spaces, and the table of chunks) under the name
 * `engine.E`, and its chunks, `chunk.E.R.P` for region R and epoch P. Before engine_run() on the control thread, and then
 * on the engine's.
 *
 * A chunk is kept before anything lies in it, and forgotten when its pages have gone. The table says which of those that
 * come back are good; what it does not know is closed with the rest that nobody takes.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/engine.h"
#include "daemon/fdstore.h"
#include "daemon/log.h"

static void records_name(const struct engine *engine, char ret_name[static STORED_NAME_BYTES_MAX + 1])
{
    snprintf(ret_name, STORED_NAME_BYTES_MAX + 1, "engine.%u", engine->config.number);
}

static void chunk_name(const struct engine *engine, uint32_t region, uint32_t epoch,
                       char ret_name[static STORED_NAME_BYTES_MAX + 1])
{
    snprintf(ret_name, STORED_NAME_BYTES_MAX + 1, "chunk.%u.%u.%u", engine->config.number, region, epoch);
}

/* --- Records ----------------------------------------------------------------------------------------------------- */

/* What was left decides the sizes, whatever the configuration says now. */
static bool records_adopt(struct engine *engine, const char *name)
{
    struct tiering_config *tiering = &engine->config.tiering;
    struct tiering_survivor survivor;
    const char *why = "it cannot be mapped";
    int fd = fdstore_take(engine->config.fdstore, name);

    if (fd < 0)
        return false;
    if (memory_records_adopt(fd, &engine->records) == 0 &&
        tiering_survivor_look(engine->records.mem, engine->records.size_bytes, &survivor, &why) == 0) {
        tiering->max_objects = survivor.max_objects;
        tiering->max_leases = survivor.max_leases;
        tiering->survived = true;
        return true;
    }
    log_warning("engine %u: what the last process had in memory is of no use: %s", engine->config.number, why);
    memory_shared_destroy(&engine->records);
    fdstore_forget(engine->config.fdstore, name);
    return false;
}

int engine_records_take(struct engine *engine)
{
    const struct tiering_config *tiering = &engine->config.tiering;
    char name[STORED_NAME_BYTES_MAX + 1];

    records_name(engine, name);
    engine->records = MEMORY_SHARED_NONE;
    if (records_adopt(engine, name))
        return 0;
    int r =
        memory_records_create(name, tiering_records_bytes(tiering->max_objects, tiering->max_leases), &engine->records);

    if (r < 0)
        return r;
    r = fdstore_keep(engine->config.fdstore, name, engine->records.fd);
    if (r < 0)
        log_warning("engine %u: what it knows is not kept for the next process: %s", engine->config.number,
                    log_errno(r));
    return 0;
}

/* --- Chunks ------------------------------------------------------------------------------------------------------ */

static void chunk_adopt(struct engine *engine, const char *name, uint32_t region, uint32_t epoch)
{
    struct tiering_survivor_chunk known;

    if (region >= CHUNKS_MAX || !tiering_survivor_chunk(engine->records.mem, region, &known) || known.epoch != epoch)
        return;
    int fd = fdstore_take(engine->config.fdstore, name);
    int r = uring_chunk_adopt(engine->uring, region, fd, known.node, known.kind);

    if (r < 0) {
        log_warning("engine %u: a chunk of the last process cannot be mapped: %s", engine->config.number, log_errno(r));
        fdstore_forget(engine->config.fdstore, name);
        return;
    }
    engine->chunks[region].kept_epoch = epoch;
    engine->chunks[region].is_kept = true;
}

void engine_chunks_adopt(struct engine *engine)
{
    char prefix[STORED_NAME_BYTES_MAX + 1];
    const char *name;
    uint32_t at = 0, region, epoch;

    snprintf(prefix, sizeof(prefix), "chunk.%u.", engine->config.number);
    while (engine->config.tiering.survived && (name = fdstore_next(engine->config.fdstore, prefix, &at)) != NULL) {
        char copy[STORED_NAME_BYTES_MAX + 1];

        snprintf(copy, sizeof(copy), "%s", name);
        if (sscanf(copy + strlen(prefix), "%u.%u", &region, &epoch) == 2)
            chunk_adopt(engine, copy, region, epoch);
    }
}

static void chunk_forget(struct engine *engine, uint32_t region)
{
    struct engine_chunk *entry = &engine->chunks[region];
    char name[STORED_NAME_BYTES_MAX + 1];

    if (!entry->is_kept)
        return;
    entry->is_kept = false;
    chunk_name(engine, region, entry->kept_epoch, name);
    fdstore_forget(engine->config.fdstore, name);
}

void engine_chunks_adopted(struct engine *engine)
{
    for (uint32_t i = 0; i < CHUNKS_MAX; i++)
        if (!engine->chunks[i].is_live)
            chunk_forget(engine, i);
}

void engine_chunk_keep(struct engine *engine, uint32_t region)
{
    struct engine_chunk *entry = &engine->chunks[region];
    const struct memory_chunk *chunk = uring_region_chunk(engine->uring, region);
    char name[STORED_NAME_BYTES_MAX + 1];

    if (entry->is_kept && entry->kept_epoch == entry->epoch) /* the last process did */
        return;
    chunk_forget(engine, region);
    if (!chunk)
        return;
    chunk_name(engine, region, entry->epoch, name);
    int r = fdstore_keep(engine->config.fdstore, name, chunk->fd);

    entry->is_kept = r != -ENOSPC;
    entry->kept_epoch = entry->epoch;
    if (r < 0)
        engine_notice(engine, LOG_LEVEL_WARNING, "%s is not kept for the next process: %s", name,
                      r == -ENOSPC ? "the service manager keeps no more: raise FileDescriptorStoreMax=" : log_errno(r));
}

void engine_chunk_forget(struct engine *engine, uint32_t region)
{
    if (!engine->stopped)
        chunk_forget(engine, region);
}
