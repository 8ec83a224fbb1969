/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the blocks may be. A block's content is a function of its key and its version; a version is built from parts and
 * pieces and becomes visible when all are committed.
 *
 * While nothing restarts, a block is exactly what was committed last, or, if it is `cache`, gone. After a restart it may
 * be any version that was ever visible, from the one that the last acknowledged SYNC saw on; and it must be there if a
 * SYNC acknowledged it and nobody deleted it since.
 */
#include <errno.h>
#include <string.h>

#include "tests/sim/sim.h"

static const uint8_t durabilities[SIM_SPACES] = {
    [SPACE_TENSOR_DURABLE] = STORE_DURABLE, [SPACE_TENSOR_SCRATCH] = STORE_SCRATCH, [SPACE_TENSOR_CACHE] = STORE_CACHE,
    [SPACE_TENSOR_SHARED] = STORE_SCRATCH,  [SPACE_ARENA] = STORE_SCRATCH,          [SPACE_CACHE] = STORE_CACHE,
    [SPACE_DURABLE] = STORE_DURABLE,        [SPACE_SCRATCH] = STORE_SCRATCH,        [SPACE_SHARED_CACHE] = STORE_CACHE,
    [SPACE_SHARED_DURABLE] = STORE_DURABLE};

bool object_is_tensor(const struct object *o)
{
    return o->space <= SPACE_ARENA;
}

uint8_t object_durability(const struct object *o)
{
    return durabilities[o->space];
}

uint32_t object_piece_bytes(const struct object *o, uint32_t piece)
{
    uint64_t left = o->object_bytes - (uint64_t)piece * SIM_PIECE_BYTES;

    return (uint32_t)MIN(left, (uint64_t)SIM_PIECE_BYTES);
}

struct tiering_id object_piece_id(const struct sim *sim, const struct object *o, uint32_t part, uint32_t piece)
{
    struct tiering_id id = o->id;

    id.space = sim->spaces[o->space].index;
    id.part = (uint16_t)part;
    id.piece = piece;
    return id;
}

bool object_may_be_bad(const struct sim *sim, const struct object *o)
{
    return sim->flipped || (sim->unclean && object_durability(o) == STORE_CACHE);
}

uint32_t object_all_bits(const struct object *o)
{
    uint32_t bits = 0;

    for (uint32_t part = 0; part < o->n_parts; part++) {
        for (uint32_t piece = 0; piece < o->n_pieces; piece++)
            bits |= object_bit(part, piece);
    }
    return bits;
}

/* --- Making ------------------------------------------------------------------------------------------------------- */

static uint64_t random_size(struct sim *sim)
{
    static const uint32_t sizes[] = {64, 64, 64, 16, 4, 128}; /* KiB: few sizes, as in practice */

    switch (sim_below(sim, 10)) {
    case 0:
        return 512 + sim_below(sim, 60000); /* odd sizes */
    case 1:
        return SIM_PIECE_BYTES + 4096 + sim_below(sim, 2 * SIM_PIECE_BYTES - 8192); /* several pieces */
    default:
        return sizes[sim_below(sim, ARRAY_LEN(sizes))] * KIB;
    }
}

static void object_make(struct sim *sim, uint8_t space)
{
    uint32_t number = sim->n_objects++;
    struct object *o = &sim->objects[number];

    *o = (struct object){.space = space, .n_parts = 1};
    o->object_bytes = random_size(sim);
    if (space < SPACE_ARENA)
        o->object_bytes = SECTOR_BYTES * (1 + sim_below(sim, SIM_CELLS * SIM_PIECES_MAX));
    if (space == SPACE_ARENA)
        o->object_bytes = SIM_PIECE_BYTES;
    o->n_pieces = (uint8_t)div_round_up(o->object_bytes, SIM_PIECE_BYTES);
    if (!object_is_tensor(o) && sim_percent(sim, 10))
        o->n_parts = (uint8_t)(2 + sim_below(sim, SIM_PARTS_MAX - 1));
    o->id.n_parts = o->n_parts;
    o->id.group = (uint32_t)sim_below(sim, 2);
    o->id.key_len = (uint8_t)(4 + sim_below(sim, KEY_BYTES_MAX - 3));
    memcpy(o->id.key, &number, sizeof(number));
    for (uint32_t i = 4; i < o->id.key_len; i++)
        o->id.key[i] = (uint8_t)sim_random(sim);
}

/* About twice as many bytes as the devices hold; of what cannot be dropped a third. */
void model_make(struct sim *sim)
{
    static const uint8_t percent[SIM_SPACES] = {[SPACE_CACHE] = 70,
                                                [SPACE_DURABLE] = 16,
                                                [SPACE_SCRATCH] = 8,
                                                [SPACE_SHARED_CACHE] = 90,
                                                [SPACE_SHARED_DURABLE] = 16};
    static const uint8_t tensors[SIM_SPACES] = {[SPACE_TENSOR_DURABLE] = 10,
                                                [SPACE_TENSOR_SCRATCH] = 6,
                                                [SPACE_TENSOR_CACHE] = 4,
                                                [SPACE_TENSOR_SHARED] = 4,
                                                [SPACE_ARENA] = 2};
    uint64_t total = 0;

    for (uint32_t i = 0; i < sim->n_devs; i++)
        total += sim->device_bytes[i];
    sim->n_objects = 0;
    for (uint8_t space = 0; space < SIM_SPACES; space++) {
        uint64_t bytes = total / 100 * percent[space], made = 0;

        sim->first[space] = sim->n_objects;
        for (uint32_t i = 0; i < tensors[space]; i++)
            object_make(sim, space);
        while (made < bytes && sim->n_objects < SIM_OBJECTS_MAX) {
            const struct object *o = &sim->objects[sim->n_objects];

            object_make(sim, space);
            made += o->object_bytes * o->n_parts;
        }
    }
    sim->first[SIM_SPACES] = sim->n_objects;
    assert(sim->first[SPACE_CACHE] <= SIM_TENSORS_MAX);
}

/* --- Blocks ------------------------------------------------------------------------------------------------------- */

static struct stamp block_stamp(const struct sim *sim, const struct object *o, uint32_t part, uint32_t piece,
                                uint32_t version)
{
    return (struct stamp){.object = (uint64_t)(o - sim->objects),
                          .version = version,
                          .part = (uint16_t)part,
                          .piece = (uint16_t)piece,
                          .magic = 0x5f10c6};
}

void block_fill(const struct sim *sim, const struct object *o, uint32_t part, uint32_t piece, uint32_t version,
                uint8_t *bytes)
{
    struct stamp stamp = block_stamp(sim, o, part, piece, version);

    payload_fill(bytes, &stamp, object_piece_bytes(o, piece));
}

void block_verify(struct sim *sim, struct object *o, uint32_t part, uint32_t piece, uint32_t version,
                  const uint8_t *bytes)
{
    struct stamp stamp = block_stamp(sim, o, part, piece, version), seen;

    sim->counts->bytes_verified += object_piece_bytes(o, piece);
    uint32_t bad = payload_check(bytes, &stamp, object_piece_bytes(o, piece));
    if (bad == PAYLOAD_GOOD)
        return;
    memcpy(&seen, bytes + (size_t)bad * SECTOR_BYTES, sizeof(seen));
    sim_fail(
        sim,
        "wrong bytes: block %u (space %u) part %u piece %u version %u sector %u of %u; the bytes say block %u part %u "
        "piece %u version %u sector %u",
        (uint32_t)(o - sim->objects), o->space, part, piece, version, bad, sectors_of(object_piece_bytes(o, piece)),
        (uint32_t)seen.object, seen.part, seen.piece, seen.version, seen.sector);
}

void block_gone(struct sim *sim, struct object *o, const char *how)
{
    if (o->state == BLOCK_PRESENT && object_durability(o) != STORE_CACHE && !o->counted)
        sim_fail(sim, "block %u of space %u is gone: %s", (uint32_t)(o - sim->objects), o->space, how);
    if (o->state == BLOCK_UNKNOWN && o->must)
        sim_fail(sim, "block %u of space %u was lost: %s", (uint32_t)(o - sim->objects), o->space, how);
    if (o->state == BLOCK_PRESENT || o->state == BLOCK_UNKNOWN) {
        sim_log(sim, "block %u is gone: %s", (uint32_t)(o - sim->objects), how);
        sim->counts->vanished++;
        o->state = BLOCK_ABSENT;
        o->deaths++;
        o->reserved = o->committed = o->damaged = 0;
    }
}

void block_seen(struct sim *sim, struct object *o)
{
    if (o->state == BLOCK_ABSENT)
        sim_fail(sim, "block %u of space %u is there, but was deleted", (uint32_t)(o - sim->objects), o->space);
    if (o->state == BLOCK_BUILDING)
        sim_fail(sim, "block %u of space %u is visible without all its pieces: %x of %x", (uint32_t)(o - sim->objects),
                 o->space, o->committed, object_all_bits(o));
}

/* A piece that is smaller than its stamp says only which versions it is not. True: it can be one alone. */
static bool block_resolve_small(struct sim *sim, struct object *o, uint32_t part, uint32_t piece, const uint8_t *bytes)
{
    uint32_t n = 0;

    for (uint32_t version = o->min; version <= o->published; version++) {
        struct stamp stamp = block_stamp(sim, o, part, piece, version);

        if (payload_check(bytes, &stamp, object_piece_bytes(o, piece)) != PAYLOAD_GOOD)
            continue;
        o->version = version; /* for who looks at these bytes */
        n++;
    }
    if (n == 0)
        sim_fail(sim, "block %u of space %u came back with other bytes; version %u to %u may be",
                 (uint32_t)(o - sim->objects), o->space, o->min, o->published);
    return n == 1;
}

void block_resolve(struct sim *sim, struct object *o, uint32_t part, uint32_t piece, const uint8_t *bytes)
{
    struct stamp seen;

    if (o->state != BLOCK_UNKNOWN)
        return;
    if (object_piece_bytes(o, piece) < sizeof(seen)) {
        if (!block_resolve_small(sim, o, part, piece, bytes))
            return;
        seen = block_stamp(sim, o, part, piece, o->version);
    } else {
        memcpy(&seen, bytes, sizeof(seen));
    }
    if (seen.object != (uint64_t)(o - sim->objects) || seen.version < o->min || seen.version > o->published)
        sim_fail(sim, "block %u of space %u came back as block %u version %u; %u to %u may be",
                 (uint32_t)(o - sim->objects), o->space, (uint32_t)seen.object, seen.version, o->min, o->published);
    o->state = BLOCK_PRESENT;
    o->version = seen.version;
    o->committed = object_all_bits(o);
    o->reserved = 0;
}

void block_published(struct sim *sim, struct object *o)
{
    o->state = BLOCK_PRESENT;
    o->published = o->version;
    o->damaged = 0;
    o->counted = false;
    if (o->n_parts > 1)
        sim->counts->parts_completed++;
}

void block_deleted(struct object *o)
{
    o->state = BLOCK_ABSENT;
    o->deaths++;
    o->must = false;
    o->reserved = o->committed = o->damaged = 0;
}

void block_unbuilt(struct sim *sim, struct object *o, uint32_t bit)
{
    (void)sim;
    o->reserved &= ~bit;
    o->committed &= ~bit;
    if (o->state == BLOCK_BUILDING && !o->reserved && !o->committed)
        o->state = BLOCK_ABSENT;
}

/* --- SYNC --------------------------------------------------------------------------------------------------------- */

void model_sync_began(struct sim *sim, struct sim_sync *y)
{
    y->began = ++sim->serial;
    for (uint32_t i = sim->first[SPACE_CACHE]; i < sim->n_objects; i++) {
        const struct object *o = &sim->objects[i];

        y->version[i] = o->state == BLOCK_PRESENT ? o->version : 0;
        y->next[i] = o->state == BLOCK_PRESENT ? o->version : o->state == BLOCK_UNKNOWN ? o->min : o->last + 1;
        if (o->state == BLOCK_BUILDING)
            y->next[i] = o->version;
    }
    tensor_sync_began(sim, y);
}

void model_sync_acked(struct sim *sim, struct sim_sync *y)
{
    for (uint32_t i = sim->first[SPACE_CACHE]; i < sim->n_objects; i++) {
        struct object *o = &sim->objects[i];

        if (o->space != y->space)
            continue;
        o->min = MAX(o->min, y->next[i]);
        if (y->covers[i] && y->version[i] && o->state == BLOCK_PRESENT && o->version == y->version[i])
            o->must = true;
    }
    tensor_sync_acked(sim, y);
}

/* --- Restarts ----------------------------------------------------------------------------------------------------- */

void model_restarted(struct sim *sim, bool clean)
{
    for (uint32_t i = 0; i < sim->n_objects; i++) {
        struct object *o = &sim->objects[i];

        if (object_is_tensor(o)) {
            tensor_restarted(sim, o, clean);
            continue;
        }
        if (clean && o->state == BLOCK_PRESENT)
            o->min = o->version;
        if (clean && (o->state == BLOCK_ABSENT || o->state == BLOCK_BUILDING))
            o->min = o->published + 1;
        if (!clean)
            o->damaged = 0; /* what did it may be undone: a stray write, or a move to there, not yet durable */
        o->state = BLOCK_UNKNOWN;
        o->reserved = o->committed = 0;
        if (o->min > o->published && !o->must)
            o->state = BLOCK_ABSENT; /* there is no version that may come back */
    }
    for (uint32_t i = 0; i < SIM_SYNCS; i++)
        sim->syncs[i].running = false;
}

/* Which blocks are there now? Their bytes are looked at when somebody reads them. */
void model_look_all(struct sim *sim)
{
    struct tiering_found found;

    for (uint32_t i = sim->first[SPACE_CACHE]; i < sim->n_objects; i++) {
        struct object *o = &sim->objects[i];
        bool scratch = object_durability(o) == STORE_SCRATCH;

        for (uint32_t part = 0; part < o->n_parts; part++) {
            for (uint32_t piece = 0; piece < o->n_pieces; piece++) {
                struct tiering_id id = object_piece_id(sim, o, part, piece);
                int r = tiering_lookup(sim->tiering, &id, &found);

                if (r == 0 && (part || piece) && o->state == BLOCK_ABSENT)
                    sim_fail(sim, "block %u came back in part", i);
                if (r == 0 && scratch)
                    sim_fail(sim, "scratch block %u outlived the engine", i);
                if (r == 0)
                    block_seen(sim, o);
                else if (o->state == BLOCK_UNKNOWN && (part || piece))
                    sim_fail(sim, "block %u came back without part %u piece %u", i, part, piece);
                else
                    block_gone(sim, o, "after a restart");
            }
        }
        if (o->state == BLOCK_UNKNOWN && object_durability(o) == STORE_CACHE)
            sim->counts->cache_found++;
        else if (o->state == BLOCK_UNKNOWN)
            sim->counts->durable_found++;
    }
}
