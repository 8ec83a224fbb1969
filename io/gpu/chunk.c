/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chunks, and how much of them the driver knows. Registering takes 25 to 35 ms a GiB, and holds up every copy of this
 * process meanwhile: so it goes window by window, one a turn, when no copy is under way; or at once, when a use waits for
 * that very window. Windows that the driver refused are tried again only for a use that needs them.
 *
 * A command may be here before its chunk, which comes by another way (the daemon's control thread): it waits.
 */
#include <errno.h>
#include <stdlib.h>

#include "include/base/checked.h"
#include "io/gpu/helper.h"

static uint64_t window_bytes(const struct helper_chunk *chunk, uint32_t window)
{
    return MIN(GPU_WINDOW_BYTES, chunk->size_bytes - window * GPU_WINDOW_BYTES);
}

int helper_chunk_new(struct helper *h, struct helper_ring *ring, const struct gpu_msg *msg, int fd)
{
    struct helper_chunk *chunk;
    void *mem = NULL;
    int r;

    if (msg->region >= CHUNKS_MAX || ring->chunks[msg->region] || msg->bytes == 0 ||
        msg->bytes > WINDOWS_MAX * GPU_WINDOW_BYTES)
        return -EINVAL;
    r = helper_map(fd, msg->bytes, msg->page_bytes, false, &mem);
    if (r < 0)
        return r;
    uint32_t n_windows = (uint32_t)div_round_up(msg->bytes, GPU_WINDOW_BYTES);

    chunk = calloc(1, sizeof(*chunk) + n_windows);
    if (!chunk) {
        helper_unmap(mem, msg->bytes);
        return -ENOMEM;
    }
    chunk->region = msg->region;
    chunk->epoch = msg->epoch;
    chunk->size_bytes = msg->bytes;
    chunk->mem = mem;
    chunk->n_windows = n_windows;
    list_push_tail(&h->todo, &chunk->todo);
    ring->chunks[chunk->region] = chunk;
    h->stat.chunk_bytes += chunk->size_bytes;
    return 0;
}

int helper_chunk_gone(struct helper *h, struct helper_ring *ring, uint32_t region, uint32_t epoch)
{
    struct helper_chunk *chunk = region < CHUNKS_MAX ? ring->chunks[region] : NULL;

    if (!chunk || chunk->epoch != epoch)
        return -EINVAL;
    ring->chunks[region] = NULL;
    helper_chunk_free(h, chunk);
    return 0;
}

void helper_chunk_free(struct helper *h, struct helper_chunk *chunk)
{
    if (!chunk)
        return;
    for (uint32_t i = 0; i < chunk->n_windows; i++) {
        if (chunk->windows[i] != HELPER_WINDOW_REGISTERED)
            continue;
        helper_driver_unregister(h, chunk->mem + i * GPU_WINDOW_BYTES);
        h->stat.registered_bytes -= window_bytes(chunk, i);
    }
    if (h->urgent.chunk == chunk)
        h->urgent.chunk = NULL;
    h->stat.chunk_bytes -= chunk->size_bytes;
    list_unlink(&chunk->todo);
    helper_unmap(chunk->mem, chunk->size_bytes);
    free(chunk);
}

int helper_chunk_look(const struct helper_ring *ring, const struct helper_part *part, struct helper_chunk **ret_chunk,
                      uint32_t *ret_window)
{
    struct helper_chunk *chunk = part->region < CHUNKS_MAX ? ring->chunks[part->region] : NULL;

    *ret_chunk = NULL;
    if (part->region >= CHUNKS_MAX)
        return -ERANGE;
    if (!chunk || chunk->epoch != part->epoch)
        return 0;
    *ret_chunk = chunk;
    if (!range_ok(part->offset_bytes, part->len_bytes, chunk->size_bytes))
        return -ERANGE;
    for (uint64_t w = part->offset_bytes / GPU_WINDOW_BYTES;
         w * GPU_WINDOW_BYTES < part->offset_bytes + part->len_bytes; w++)
        if (chunk->windows[w] != HELPER_WINDOW_REGISTERED) {
            *ret_window = (uint32_t)w;
            return 0;
        }
    return 1;
}

static int register_window(struct helper *h, struct helper_chunk *chunk, uint32_t window)
{
    int r = helper_driver_register(h, chunk->mem + window * GPU_WINDOW_BYTES, window_bytes(chunk, window));

    chunk->windows[window] = r < 0 ? HELPER_WINDOW_FAILED : HELPER_WINDOW_REGISTERED;
    if (r < 0)
        h->stat.windows_failed++;
    else
        h->stat.registered_bytes += window_bytes(chunk, window);
    return r;
}

static bool register_urgent(struct helper *h)
{
    struct helper_chunk *chunk = h->urgent.chunk;

    h->urgent.chunk = NULL;
    if (register_window(h, chunk, h->urgent.window) < 0)
        helper_lane_fail_first(h, h->urgent.queue, -EIO);
    return true;
}

bool helper_chunk_register(struct helper *h)
{
    if (h->urgent.chunk)
        return register_urgent(h);
    if (helper_issue_is_busy(h))
        return false;
    while (!list_is_empty(&h->todo)) {
        struct helper_chunk *chunk = list_first_entry(&h->todo, struct helper_chunk, todo);

        if (chunk->next_window == chunk->n_windows) {
            list_unlink(&chunk->todo);
        } else if (chunk->windows[chunk->next_window++] == HELPER_WINDOW_NEW) {
            (void)register_window(h, chunk, chunk->next_window - 1); /* whoever needs it learns it */
            return true;
        }
    }
    return false;
}
