/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The layout of the memory that outlives the process, and the question whether to believe it. Engine thread only, or
 * whoever makes the engine.
 */
#include "tiering/truth.h"

#include <errno.h>
#include <string.h>

#include "include/base/atomic.h"
#include "tiering/core.h"

static_assert(sizeof(struct record) == 96 && sizeof(struct lease) == 64, "another size is another TRUTH_LAYOUT");

static uint64_t truth_spaces_off(void)
{
    return TIERING_RECORD_HEADER_BYTES;
}

static uint64_t truth_chunks_off(void)
{
    return truth_spaces_off() + (uint64_t)SPACES_MAX * sizeof(struct truth_space);
}

static uint64_t truth_leases_off(void)
{
    return truth_chunks_off() + (uint64_t)CHUNKS_MAX * sizeof(struct truth_chunk);
}

/* At a hugepage's beginning: the records are what is looked up all the time. */
static uint64_t truth_records_off(uint32_t max_leases)
{
    return round_up(truth_leases_off() + (uint64_t)max_leases * sizeof(struct lease), 2 * MIB);
}

uint64_t tiering_records_bytes(uint32_t max_objects, uint32_t max_leases)
{
    return truth_records_off(max_leases) + record_table_bytes(max_objects);
}

void truth_at(struct truth *ret_truth, void *memory, uint32_t max_leases)
{
    char *at = memory;

    *ret_truth = (struct truth){.header = memory,
                                .spaces = (void *)(at + truth_spaces_off()),
                                .chunks = (void *)(at + truth_chunks_off()),
                                .leases = (void *)(at + truth_leases_off()),
                                .records = at + truth_records_off(max_leases)};
}

/* The hugepages that hold these bytes. Outside of a memory that is aligned to them there are none. */
static void touch(struct tiering *t, const void *mem, uint64_t size_bytes)
{
    uintptr_t base = (uintptr_t)t->config.records, at = (uintptr_t)mem;
    uintptr_t from = at / RECORD_TOUCH_BYTES * RECORD_TOUCH_BYTES, to = round_up(at + size_bytes, RECORD_TOUCH_BYTES);

    if (base % RECORD_TOUCH_BYTES == 0)
        t->config.backend->ops->records_touch(t->config.backend, (char *)t->config.records + (from - base), to - from);
}

void truth_touch_ahead(struct tiering *t)
{
    t->touches.is_on = t->config.backend->ops->ahead_begin && (uintptr_t)t->config.records % RECORD_TOUCH_BYTES == 0;
}

static void touches_begin(struct tiering *t, char *from)
{
    const char *end = (const char *)&t->records.objects[t->records.max];
    struct touches *a = &t->touches;

    for (char *at = from + a->n * RECORD_TOUCH_BYTES; a->n < TOUCHES_AHEAD && at < end; at += RECORD_TOUCH_BYTES) {
        struct io_ahead *job = &a->at[(a->first + a->n++) % TOUCHES_AHEAD];

        *job = (struct io_ahead){.op = IO_AHEAD_TOUCH, .mem = at, .len_bytes = RECORD_TOUCH_BYTES};
        t->config.backend->ops->ahead_begin(t->config.backend, job);
    }
}

/* The first of them, which the caller is about to use. */
static void touches_take(struct tiering *t)
{
    struct touches *a = &t->touches;

    (void)t->config.backend->ops->ahead_wait(t->config.backend, &a->at[a->first]);
    a->first = (a->first + 1) % TOUCHES_AHEAD;
    a->n--;
}

void truth_touch_ahead_end(struct tiering *t)
{
    while (t->touches.n > 0)
        touches_take(t);
    t->touches.is_on = false;
}

/* Records come one after the other: so does their memory. */
void truth_touch(void *ctx, const void *mem)
{
    struct tiering *t = ctx;
    char *at = (char *)t->config.records +
               ((const char *)mem - (const char *)t->config.records) / RECORD_TOUCH_BYTES * RECORD_TOUCH_BYTES;

    assert(t->touches.n == 0 || t->touches.at[t->touches.first].mem == at);
    if (t->touches.n > 0)
        touches_take(t);
    else
        touch(t, mem, 1);
    if (t->touches.is_on)
        touches_begin(t, at + RECORD_TOUCH_BYTES);
}

void truth_touch_all(struct tiering *t)
{
    touch(t, t->truth.leases, (uint64_t)t->config.max_leases * sizeof(struct lease));
    touch(t, t->records.header, MAX((uint64_t)t->records.high * sizeof(struct record_object), UINT64_C(1)));
    touch(t, t->records.slots, record_index_bytes(&t->records));
}

static const char *header_distrust(const struct truth_header *h)
{
    if (h->magic != TRUTH_MAGIC)
        return "it was not complete when its process ended";
    if (h->layout != TRUTH_LAYOUT)
        return "another version has left it, with another layout";
    if (h->n_spaces > SPACES_MAX || h->n_stores > DEVICES_MAX || h->piece_bytes > PIECE_BYTES_MAX || !h->piece_bytes)
        return "its header is damaged";
    return NULL;
}

const char *truth_distrust(const void *memory, uint32_t max_objects, uint32_t max_leases)
{
    const struct truth_header *h = memory;
    const char *why = header_distrust(h);

    if (!why && (h->max_objects != max_objects || h->max_leases != max_leases))
        why = "it is for another number of objects or leases";
    return why;
}

void truth_space_set(struct tiering *t, uint32_t space)
{
    const struct space *from = &t->spaces[space];
    struct truth_space *to = &t->truth.spaces[space];

    *to = (struct truth_space){.id = from->info.id,
                               .item_bytes = from->info.item_bytes,
                               .class_id = from->info.class_id,
                               .durability = from->info.durability};
    memcpy(to->digest, from->info.digest, sizeof(to->digest));
    memcpy(to->pool, from->pool_name, sizeof(to->pool));
    fence_compiler();
    if (space >= t->truth.header->n_spaces)
        t->truth.header->n_spaces = space + 1;
}

void truth_chunk_set(struct tiering *t, const struct arena_chunk *chunk, uint32_t pool, const struct truth_chunk *what)
{
    struct truth_chunk *to = &t->truth.chunks[chunk->region];

    *to = *what;
    memcpy(to->pool, t->pools[pool].config.name, sizeof(to->pool));
    to->epoch = chunk->epoch;
    to->size_bytes = (uint64_t)chunk->n_frames * FRAME_BYTES;
    fence_compiler();
    to->is_used = 1;
}

int tiering_survivor_look(const void *memory, uint64_t size_bytes, struct tiering_survivor *ret_survivor,
                          const char **ret_why)
{
    const struct truth_header *h = memory;

    *ret_why = "it is too small";
    if (size_bytes < sizeof(*h))
        return -EPROTONOSUPPORT;
    *ret_why = header_distrust(h);
    if (*ret_why)
        return -EPROTONOSUPPORT;
    *ret_why = "its size is not what its header says";
    if (h->max_objects == 0 || h->max_objects >= RECORD_NONE / 2 ||
        size_bytes < tiering_records_bytes(h->max_objects, h->max_leases))
        return -EPROTONOSUPPORT;
    *ret_survivor = (struct tiering_survivor){.max_objects = h->max_objects, .max_leases = h->max_leases};
    return 0;
}

bool tiering_survivor_chunk(const void *memory, uint32_t region, struct tiering_survivor_chunk *ret_chunk)
{
    struct truth truth;

    if (region >= CHUNKS_MAX)
        return false;
    truth_at(&truth, (void *)(uintptr_t)memory, 0); /* nothing is written through it */
    const struct truth_chunk *c = &truth.chunks[region];
    if (!c->is_used)
        return false;
    *ret_chunk = (struct tiering_survivor_chunk){
        .epoch = c->epoch, .node = c->node, .size_bytes = c->size_bytes, .kind = (enum io_chunk_kind)c->kind};
    return true;
}
