/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log: a queue of entries, the blocks made from it, and the room in the ring. Belongs to one store.
 *
 * Positions count sectors since formatting and never wrap (lsn); lsn modulo the ring's size is the place. A block that
 * would cross the ring's end begins at the ring's start instead, and a reader that finds nothing at the end looks there.
 * Blocks are chained by checksum, so what a crash left lying after the true end can never be taken for its sequel.
 *
 * The room. tail <= head <= tail + ring at all times. A checkpoint frees room only when it is complete, so there must
 * always be enough left for it, and for another one after a crash in its middle. With
 *     B = the sectors that a sweep can take at most (live entries are limited to a fifth of the ring, and a little)
 *     E = what the running sweep may still write: its bound when it began, plus what others appended, less what it wrote
 * normal entries are composed only while   used + a block + (sweep ? E : B) + B <= ring.
 * After a sweep used is at most B, and B + 2 B <= ring leaves a quarter of the ring until the next one must begin: that
 * is why live entries get no more than a fifth. A sweep is begun at a quarter of the ring (or at half as much again as
 * it costs) and takes three sectors for each one of normal entries, so in practice the limit is never met.
 *
 * When the queue is full (its owner deletes faster than blocks are written), deletions are not queued but still take
 * effect: a sweep that begins later writes only what lives, and when it is complete the deleted is gone for good, unless
 * a transaction that is open keeps the tail before what was deleted: then it takes another sweep. Syncs wait for that.
 */
#include "io/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/kill_point.h"
#include "include/base/point.h"
#include "io/checksum.h"

#define QUEUE_BYTES_MAX MIB
#define QUEUE_SPARE_BYTES 2048 /* for entries without a reservation that must not be lost: commits, freed segments */
#define SWEEP_PACE 3           /* sectors of sweep for each sector of normal entries */

int log_init(struct log *l, const struct geometry *g, uint32_t partition, const struct store_events *events, void *ctx)
{
    *l = (struct log){
        .ring_sectors = g->log_sectors,
        .block_sectors_max = (uint32_t)MIN(g->log_sectors / 64, (uint64_t)FORMAT_BLOCK_SECTORS_MAX),
        .partition = (uint16_t)partition,
        .seed = g->seed,
        .n_segments = g->n_segments,
        .segment_sectors = g->segment_sectors,
        .queue_bytes = (uint32_t)MIN(g->log_sectors * SECTOR_BYTES / 16, QUEUE_BYTES_MAX),
        .events = events,
        .ctx = ctx,
    };
    l->queue = malloc(l->queue_bytes);
    return l->queue ? 0 : -ENOMEM;
}

void log_deinit(struct log *l)
{
    free(l->queue);
    l->queue = NULL;
}

/* --- The queue --- */

static uint32_t queue_room(const struct log *l)
{
    return l->queue_bytes - (uint32_t)(l->queue_in - l->queue_out) - l->queue_reserved;
}

static void queue_copy_in(struct log *l, const uint8_t *entry, uint32_t bytes)
{
    uint32_t at = (uint32_t)(l->queue_in % l->queue_bytes);
    uint32_t first = MIN(bytes, l->queue_bytes - at);

    memcpy(l->queue + at, entry, first);
    memcpy(l->queue, entry + first, bytes - first);
    l->queue_in += bytes;
}

static void queue_copy_out(struct log *l, uint8_t *out, uint32_t bytes)
{
    uint32_t at = (uint32_t)(l->queue_out % l->queue_bytes);
    uint32_t first = MIN(bytes, l->queue_bytes - at);

    memcpy(out, l->queue + at, first);
    memcpy(out + first, l->queue, bytes - first);
    l->queue_out += bytes;
}

/* Entries are multiples of 8 bytes and so is the queue: an entry's head never wraps. */
static uint32_t queue_next_bytes(const struct log *l)
{
    struct format_entry head;

    memcpy(&head, l->queue + l->queue_out % l->queue_bytes, sizeof(head));
    return head.entry_bytes;
}

bool log_reserve(struct log *l, uint32_t bytes)
{
    if (queue_room(l) < bytes + QUEUE_SPARE_BYTES ||
        (l->queue_in > l->queue_out && sim_point("log: no room for an entry")))
        return false;
    l->queue_reserved += bytes;
    return true;
}

void log_unreserve(struct log *l, uint32_t bytes)
{
    assert(l->queue_reserved >= bytes);
    l->queue_reserved -= bytes;
}

void log_append_put(struct log *l, const struct store_entry *entry, uint64_t txn)
{
    uint8_t out[FORMAT_ENTRY_BYTES_MAX];
    uint32_t bytes = log_encode_put(out, entry, txn);

    log_unreserve(l, bytes);
    queue_copy_in(l, out, bytes);
    kill_point("log.put");
}

void log_leave_to_sweep(struct log *l, uint32_t back_bytes)
{
    l->unlogged++;
    l->unlogged_bytes += back_bytes;
    l->unlogged_seq = l->queue_in;
    l->unlogged_lsn = l->queue_out == l->queue_in ? l->head.lsn : UINT64_MAX;
}

static void log_append_or_sweep(struct log *l, const uint8_t *entry, uint32_t bytes, uint32_t spare_bytes,
                                uint32_t back_bytes)
{
    bool is_left = spare_bytes > 0 && sim_point("log: a deletion is left to a sweep");

    if (queue_room(l) >= bytes + spare_bytes && !is_left)
        queue_copy_in(l, entry, bytes);
    else
        log_leave_to_sweep(l, back_bytes);
}

void log_append_delete(struct log *l, const struct store_id *id, uint64_t generation)
{
    uint8_t out[FORMAT_ENTRY_BYTES_MAX];

    kill_point("log.delete");
    log_append_or_sweep(l, out, log_encode_delete(out, id, generation), QUEUE_SPARE_BYTES, log_put_bytes(id->key_len));
}

void log_append_space(struct log *l, const struct store_space *space)
{
    uint8_t out[FORMAT_ENTRY_BYTES_MAX];
    uint32_t bytes = log_encode_space(out, space);

    kill_point("log.space");
    if (!space->deleted)
        l->space_bytes += bytes;
    log_append_or_sweep(l, out, bytes, QUEUE_SPARE_BYTES, space->deleted ? bytes : 0);
}

void log_append_txn_commit(struct log *l, uint64_t txn)
{
    const struct format_txn_commit f = {.head = {.type = FORMAT_ENTRY_TXN_COMMIT, .entry_bytes = sizeof(f)},
                                        .txn = txn};

    kill_point("log.txn_commit");
    /* If this finds no room, nor do the deletions of what it replaces, which come at once behind it and leave room for this:
     * so none of them is in the log without it. */
    log_append_or_sweep(l, (const uint8_t *)&f, sizeof(f), 0, 0);
}

bool log_append_segment_freed(struct log *l, uint32_t segment, uint64_t generation)
{
    const struct format_segment_freed f = {.head = {.type = FORMAT_ENTRY_SEGMENT_FREED, .entry_bytes = sizeof(f)},
                                           .segment = segment,
                                           .generation = generation};

    if (queue_room(l) < sizeof(f) + QUEUE_SPARE_BYTES / 2 ||
        (l->queue_in > l->queue_out && sim_point("log: no room for a segment's end")))
        return false;
    kill_point("log.segment_freed");
    queue_copy_in(l, (const uint8_t *)&f, sizeof(f));
    return true;
}

/* --- Room --- */

uint64_t log_live_limit_bytes(const struct log *l)
{
    return l->ring_sectors * SECTOR_BYTES / 5;
}

bool log_live_room(const struct log *l, uint32_t bytes, bool evacuating)
{
    uint64_t limit = log_live_limit_bytes(l);

    if (evacuating)
        limit += limit / 8;
    return l->live_bytes + l->space_bytes + l->queue_reserved + bytes <= limit;
}

bool log_live_room_if_back(const struct log *l, uint32_t bytes)
{
    return l->live_bytes + l->space_bytes + l->queue_reserved + l->unlogged_bytes + bytes <= log_live_limit_bytes(l);
}

uint64_t log_used_sectors(const struct log *l)
{
    return l->head.lsn - l->tail.lsn;
}

/* Sectors that this many bytes of entries take at most: block heads, room at blocks' ends, one skip of the ring's end. */
static uint64_t sweep_sectors(const struct log *l, uint64_t bytes)
{
    uint64_t sectors = div_round_up(bytes, SECTOR_BYTES);

    return sectors + sectors / 16 + 2 * (uint64_t)l->block_sectors_max;
}

static uint64_t sweep_sectors_max(const struct log *l)
{
    return sweep_sectors(l, log_live_limit_bytes(l) / 8 * 9);
}

static uint64_t sweep_sectors_left(const struct log *l)
{
    const struct log_sweep *w = &l->sweep;
    uint64_t most = w->bound_sectors + w->appended_sectors;

    return most > w->emitted_sectors ? most - w->emitted_sectors : 0;
}

bool log_has_room(const struct log *l)
{
    uint64_t sweeps = (l->sweep.active ? sweep_sectors_left(l) : sweep_sectors_max(l)) + sweep_sectors_max(l);

    return log_used_sectors(l) + 2 * (uint64_t)l->block_sectors_max + sweeps <= l->ring_sectors;
}

/* --- Sweeps --- */

static bool sweep_is_record(const struct log *l, struct log_mark start)
{
    return start.lsn >= l->unlogged_lsn;
}

bool log_sweep_due(const struct log *l, struct log_mark oldest)
{
    if (l->sweep.active)
        return false;
    uint64_t cost = sweep_sectors(l, l->live_bytes + l->space_bytes);
    if (log_used_sectors(l) + cost > l->ring_sectors)
        return false;
    if (log_has_unlogged(l) && sweep_is_record(l, oldest))
        return true;
    bool wanted = log_used_sectors(l) >= MAX(l->ring_sectors / 4, cost + cost / 2) || !log_has_room(l) ||
                  sim_point("log: a sweep before its time");
    /* One that frees less than it writes, because an old transaction is still open, would only fill the ring. */
    return wanted && (oldest.lsn == l->head.lsn || oldest.lsn - l->tail.lsn >= cost);
}

void log_sweep_begin(struct log *l, struct log_mark oldest, bool hurry)
{
    bool is_record = sweep_is_record(l, oldest);

    l->sweep = (struct log_sweep){
        .active = true,
        .hurry = hurry || log_has_unlogged(l),
        .in_spaces = true,
        .unlogged = is_record ? l->unlogged : l->unlogged_done,
        .unlogged_bytes = is_record ? l->unlogged_bytes : 0,
        .start = oldest,
        .bound_sectors = sweep_sectors(l, l->live_bytes + l->space_bytes),
    };
    kill_point("log.sweep_begin");
    l->space_bytes = 0; /* counted anew: by this sweep, and by what is appended from now on */
}

void log_sweep_finish(struct log *l)
{
    l->tail = l->sweep.start;
    kill_point("log.sweep_finish");
    l->space_bytes += l->sweep.space_bytes;
    l->unlogged_done = l->sweep.unlogged;
    l->unlogged_bytes -= l->sweep.unlogged_bytes;
    l->sweep = (struct log_sweep){0};
}

/* One more live thing into `out`; 0 at the end. */
static uint32_t sweep_emit(struct log *l, uint8_t *out)
{
    struct log_sweep *w = &l->sweep;
    struct store_space space;
    struct store_entry entry;

    while (w->in_spaces) {
        if (!l->events->next_space(l->ctx, &w->cursor, &space)) {
            kill_point("log.sweep_spaces_over");
            w->in_spaces = false;
            w->cursor = 0;
        } else if (!space.deleted) {
            w->space_bytes += sizeof(struct format_space);
            return log_encode_space(out, &space);
        }
    }
    return l->events->next_entry(l->ctx, &w->cursor, &entry) ? log_encode_put(out, &entry, 0) : 0;
}

/* --- Blocks --- */

uint64_t log_block_checksum(const struct log *l, const struct format_block *b)
{
    uint64_t body = checksum_bytes((const uint8_t *)b + sizeof(*b), b->entry_bytes, l->seed);

    return checksum_bytes(b, offsetof(struct format_block, checksum), body);
}

uint64_t log_place(const struct log *l, uint64_t lsn)
{
    return lsn % l->ring_sectors;
}

/* Entries of the queue, as many as fit into `limit` bytes of the block. */
static uint32_t compose_queue(struct log *l, uint8_t *block, uint32_t at, uint32_t limit, uint32_t *entries)
{
    while (l->queue_out < l->queue_in) {
        uint32_t bytes = queue_next_bytes(l);
        if (at + bytes > limit || (*entries > 0 && sim_point("log: a block ends early")))
            break;
        queue_copy_out(l, block + at, bytes);
        at += bytes;
        ++*entries;
    }
    return at;
}

/* An entry is asked for only when any would fit: it must not wait for the next block, it could be dead by then. */
static uint32_t compose_sweep(struct log *l, uint8_t *block, uint32_t at, uint32_t limit, uint32_t *entries)
{
    while (at + FORMAT_ENTRY_BYTES_MAX <= limit) {
        uint32_t bytes = sweep_emit(l, block + at);
        if (bytes == 0) {
            l->sweep.ended = true;
            kill_point("log.sweep_ended");
            break;
        }
        at += bytes;
        ++*entries;
    }
    return at;
}

static void compose_seal(struct log *l, uint8_t *block, uint32_t at, uint32_t entries, bool sweep_only)
{
    uint32_t sectors = sectors_of(at);
    uint64_t place = log_place(l, l->head.lsn);

    kill_point("log.seal");
    memset(block + at, 0, (size_t)sectors * SECTOR_BYTES - at);
    if (place + sectors > l->ring_sectors) {
        sim_reached("log: a block begins the ring anew");
        l->head.lsn += l->ring_sectors - place;
    }
    struct format_block *b = (struct format_block *)(void *)block;
    *b = (struct format_block){
        .magic = FORMAT_BLOCK_MAGIC,
        .epoch = l->epoch,
        .lsn = l->head.lsn,
        .prev = l->head.prev,
        .flushed_lsn = l->flushed_lsn,
        .sectors = sectors,
        .entries = entries,
        .entry_bytes = at - (uint32_t)sizeof(*b),
        .partition = l->partition,
        .flags = sweep_only ? FORMAT_BLOCK_SWEEP_ONLY : 0,
    };
    b->checksum = log_block_checksum(l, b);
    kill_point("log.sealed");
    l->head = (struct log_mark){.lsn = b->lsn + sectors, .prev = b->checksum};
    if (l->unlogged_lsn == UINT64_MAX && l->queue_out >= l->unlogged_seq)
        l->unlogged_lsn = l->head.lsn;
}

uint32_t log_compose(struct log *l, uint8_t *block, uint64_t *ret_lsn)
{
    const uint32_t cap = l->block_sectors_max * SECTOR_BYTES, head_bytes = sizeof(struct format_block);
    struct log_sweep *w = &l->sweep;
    uint32_t entries = 0, at = head_bytes;
    uint64_t before = l->head.lsn;

    if (log_used_sectors(l) + 2 * (uint64_t)l->block_sectors_max > l->ring_sectors)
        return 0; /* cannot be: see the room, above */
    if (log_has_room(l))
        at = compose_queue(l, block, at, w->active ? cap / (SWEEP_PACE + 1) : cap, &entries);
    kill_point("log.compose");
    uint32_t normal = entries > 0 ? sectors_of(at) : 0;
    if (w->active && !w->ended) {
        /* A turn without normal entries is time's turn, or a hurry: then a whole block. */
        uint64_t paced = SECTOR_BYTES * normal * (SWEEP_PACE + 1);
        uint32_t limit = normal > 0 && !w->hurry ? (uint32_t)MIN((uint64_t)cap, paced) : cap;
        at = compose_sweep(l, block, at, limit, &entries);
    }
    if (entries == 0)
        return 0;
    compose_seal(l, block, at, entries, normal == 0);
    kill_point("log.composed");
    if (w->active) {
        w->appended_sectors += normal;
        w->emitted_sectors += l->head.lsn - before - normal;
    }
    const struct format_block *b = (const struct format_block *)(const void *)block;
    *ret_lsn = b->lsn;
    return b->sectors;
}
