/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where bytes are: a result names a chunk by engine, number and epoch, and this file maps each at its first sight.
 *
 * Looked up on every result, so without a lock: a table of pointers an engine, each to an immutable record. A slot
 * changes, under session.chunk_lock, when the daemon uses the number for another chunk: the epoch then differs. The old
 * chunk has no leases any more (the daemon drops none that has), so its memory goes: otherwise we would keep a dead chunk's
 * pages alive. Its addresses stay, since nobody here counts the views that are in it, and a daemon that lies must not
 * make its clients read what was mapped there next: the new chunk takes them if it can. Its record stays until the end,
 * for a reader that has just loaded the pointer.
 */
#include "client/lib/client.h"

#include "include/base/checked.h"

struct client_chunk {
    struct client_chunk *older; /* records only */
    uint32_t epoch;
    bool is_replaced; /* its addresses are a newer one's */
    struct client_map map;
};

static int chunk_map(spw_session *session, uint32_t engine, uint32_t number, uint32_t epoch, struct client_chunk *old,
                     struct client_chunk *ret_chunk)
{
    struct spw_msg_chunk_get get = {.engine = engine, .chunk = number, .epoch = epoch};
    struct spw_msg_chunk reply = {0};
    cleanup_close int fd = -1;
    int r =
        client_control_request(session, SPW_MSG_CHUNK_GET, &get.msg, sizeof(get), &reply.msg, sizeof(reply), &fd, 1);

    if (r < 0)
        return r;
    if (reply.chunk != number || reply.epoch != epoch)
        return client_session_end(session, "it sent another chunk than was asked for");
    bool writable = reply.flags & SPW_CHUNK_WRITABLE;
    if (old)
        client_gpu_map_drop(session, &old->map);
    r = old ? client_map_replace(fd, reply.size_bytes, writable, &old->map, &ret_chunk->map, &old->is_replaced)
            : client_map_open(fd, reply.size_bytes, writable, &ret_chunk->map);
    if (r == -EPROTO)
        return client_session_end(session, "it sent a chunk that cannot be trusted");
    ret_chunk->epoch = epoch;
    return r;
}

/* The first sight of this epoch. */
static int chunk_get(spw_session *session, struct client_chunk **slot, uint32_t engine, const struct spw_result *result,
                     const struct client_chunk **ret_chunk)
{
    int r = 0;

    pthread_mutex_lock(&session->chunk_lock);
    struct client_chunk *current = *slot;
    if (!current || current->epoch != result->epoch) { /* else another thread was faster */
        struct client_chunk *chunk = calloc(1, sizeof(*chunk));
        r = chunk ? chunk_map(session, engine, result->chunk, result->epoch, current, chunk) : -ENOMEM;
        if (r < 0) {
            free(chunk);
        } else {
            chunk->older = current;
            store_release(slot, chunk); /* pairs with load_acquire in client_chunk_resolve() */
            current = chunk;
        }
    }
    pthread_mutex_unlock(&session->chunk_lock);
    if (r == 0)
        *ret_chunk = current;
    return r;
}

/* The engine's table, made when its first result comes. */
static int chunks_table(spw_session *session, uint32_t engine, struct client_chunks **ret_chunks)
{
    struct client_chunks *chunks = load_acquire(&session->chunks[engine]); /* pairs with store_release below */

    if (likely(chunks)) {
        *ret_chunks = chunks;
        return 0;
    }
    pthread_mutex_lock(&session->chunk_lock);
    chunks = session->chunks[engine];
    if (!chunks) {
        chunks = calloc(1, sizeof(*chunks));
        store_release(&session->chunks[engine], chunks);
    }
    pthread_mutex_unlock(&session->chunk_lock);
    if (!chunks)
        return -ENOMEM;
    *ret_chunks = chunks;
    return 0;
}

int client_chunk_resolve(spw_session *session, uint32_t engine, const struct spw_result *result, bool to_write,
                         void **ret_data)
{
    struct client_chunks *chunks;
    int r = chunks_table(session, engine, &chunks);

    if (r < 0)
        return r;
    if (result->chunk >= CHUNKS_MAX)
        return client_session_end(session, "a result names a chunk that cannot exist");
    const struct client_chunk *chunk = load_acquire(&chunks->slots[result->chunk]);
    if (unlikely(!chunk || chunk->epoch != result->epoch)) {
        r = chunk_get(session, &chunks->slots[result->chunk], engine, result, &chunk);
        if (r < 0)
            return r;
    }
    if (!range_ok(result->offset_bytes, result->length_bytes, chunk->map.size_bytes))
        return client_session_end(session, "a result lies outside of its chunk");
    if (to_write && !chunk->map.is_writable)
        return client_session_end(session, "a result that is to be written lies in memory that cannot be");
    *ret_data = (uint8_t *)chunk->map.base + result->offset_bytes;
    return 0;
}

const struct client_map *client_chunk_find_locked(const spw_session *session, const void *data, size_t size_bytes)
{
    for (uint32_t e = 0; e < ENGINES_MAX; e++)
        for (uint32_t i = 0; session->chunks[e] && i < CHUNKS_MAX; i++) {
            const struct client_chunk *chunk = session->chunks[e]->slots[i];

            if (chunk && range_within((uintptr_t)data, size_bytes, (uintptr_t)chunk->map.base, chunk->map.size_bytes))
                return &chunk->map;
        }
    return NULL;
}

void client_chunks_deinit(spw_session *session)
{
    for (uint32_t e = 0; e < ENGINES_MAX; e++) {
        struct client_chunks *chunks = steal_ptr(session->chunks[e]);
        for (uint32_t i = 0; chunks && i < CHUNKS_MAX; i++) {
            for (struct client_chunk *chunk = chunks->slots[i], *older; chunk; chunk = older) {
                older = chunk->older;
                if (!chunk->is_replaced)
                    client_map_close(&chunk->map);
                free(chunk);
            }
        }
        free(chunks);
    }
}
