/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entries of the log, from structs to bytes and back. Pure functions.
 *
 * Decoding believes nothing: a block with a good checksum may still come from a newer or a broken writer, so lengths,
 * places and numbers are checked here once, and the rest of the store need not.
 */
#include <errno.h>
#include <string.h>

#include "include/base/checked.h"
#include "io/log.h"

static uint32_t key_room(uint8_t key_len)
{
    return (uint32_t)round_up(key_len, 8);
}

uint32_t log_put_bytes(uint8_t key_len)
{
    return (uint32_t)sizeof(struct format_put) + key_room(key_len);
}

uint32_t log_encode_put(uint8_t *out, const struct store_entry *entry, uint64_t txn)
{
    uint32_t bytes = log_put_bytes(entry->id.key_len);
    const struct format_put f = {
        .head = {.type = FORMAT_ENTRY_PUT, .key_len = entry->id.key_len, .entry_bytes = (uint16_t)bytes},
        .group = entry->id.group,
        .space = entry->id.space,
        .generation = entry->generation,
        .sum = entry->sum,
        .object_bytes = entry->object_bytes,
        .txn = txn,
        .piece = entry->id.piece,
        .size_bytes = entry->size_bytes,
        .segment = entry->loc.segment,
        .sector = entry->loc.sector,
        .part = entry->id.part,
        .n_parts = entry->n_parts,
        .class_id = entry->class_id,
        .durability = entry->durability,
        .kind = entry->kind,
    };

    memset(out, 0, bytes);
    memcpy(out, &f, sizeof(f));
    memcpy(out + sizeof(f), entry->id.key, entry->id.key_len);
    return bytes;
}

uint32_t log_encode_delete(uint8_t *out, const struct store_id *id, uint64_t generation)
{
    uint32_t bytes = (uint32_t)sizeof(struct format_delete) + key_room(id->key_len);
    const struct format_delete f = {
        .head = {.type = FORMAT_ENTRY_DELETE, .key_len = id->key_len, .entry_bytes = (uint16_t)bytes},
        .group = id->group,
        .space = id->space,
        .generation = generation,
        .piece = id->piece,
        .part = id->part,
    };

    memset(out, 0, bytes);
    memcpy(out, &f, sizeof(f));
    memcpy(out + sizeof(f), id->key, id->key_len);
    return bytes;
}

uint32_t log_encode_space(uint8_t *out, const struct store_space *space)
{
    struct format_space f = {
        .head = {.type = FORMAT_ENTRY_SPACE, .entry_bytes = sizeof(f)},
        .class_id = space->class_id,
        .durability = space->durability,
        .deleted = space->deleted != 0,
        .id = space->id,
        .item_bytes = space->item_bytes,
    };

    memcpy(f.digest, space->digest, sizeof(f.digest));
    memcpy(f.pool, space->pool, strnlen(space->pool, NAME_BYTES_MAX));
    memcpy(out, &f, sizeof(f));
    return sizeof(f);
}

/* A key with length, zero-padded to its 8 bytes, as encoding leaves it. */
static bool decode_key(const uint8_t *in, uint32_t fixed_bytes, const struct format_entry *head, struct store_id *id)
{
    if (head->key_len > KEY_BYTES_MAX || head->entry_bytes != fixed_bytes + key_room(head->key_len))
        return false;
    id->key_len = head->key_len;
    if (head->key_len == KEY_BYTES_MAX)
        memcpy(id->key, in + fixed_bytes, KEY_BYTES_MAX); /* most are, and then it is one instruction */
    else
        memcpy(id->key, in + fixed_bytes, head->key_len);
    return true;
}

static int decode_put(const struct log *l, const uint8_t *in, const struct format_entry *head, struct log_record *ret)
{
    struct format_put f;

    if (head->entry_bytes < sizeof(f))
        return -EUCLEAN;
    memcpy(&f, in, sizeof(f));
    struct store_entry *e = &ret->put.entry;
    if (!decode_key(in, sizeof(f), head, &e->id) || f.size_bytes == 0 || f.size_bytes > PIECE_BYTES_MAX ||
        f.segment >= l->n_segments || !range_ok(f.sector, sectors_of(f.size_bytes), l->segment_sectors) ||
        f.durability > STORE_DURABLE || f.generation == 0 || f.generation > FORMAT_COUNT_MAX)
        return -EUCLEAN;
    e->id.space = f.space;
    e->id.group = f.group;
    e->id.piece = f.piece;
    e->id.part = f.part;
    e->generation = f.generation;
    e->sum = f.sum;
    e->object_bytes = f.object_bytes;
    e->size_bytes = f.size_bytes;
    e->n_parts = f.n_parts;
    e->class_id = f.class_id;
    e->durability = f.durability;
    e->kind = f.kind;
    e->loc = (struct store_loc){.segment = f.segment, .sector = f.sector};
    ret->put.txn = f.txn;
    return 0;
}

static int decode_delete(const uint8_t *in, const struct format_entry *head, struct log_record *ret)
{
    struct format_delete f;

    if (head->entry_bytes < sizeof(f))
        return -EUCLEAN;
    memcpy(&f, in, sizeof(f));
    struct store_id *id = &ret->delete.id;
    if (!decode_key(in, sizeof(f), head, id) || f.generation > FORMAT_COUNT_MAX)
        return -EUCLEAN;
    id->space = f.space;
    id->group = f.group;
    id->piece = f.piece;
    id->part = f.part;
    ret->delete.generation = f.generation;
    return 0;
}

static int decode_space(const uint8_t *in, const struct format_entry *head, struct log_record *ret)
{
    struct format_space f;

    if (head->entry_bytes != sizeof(f))
        return -EUCLEAN;
    memcpy(&f, in, sizeof(f));
    if (f.pool[NAME_BYTES_MAX] != '\0' || f.durability > STORE_DURABLE || f.deleted > 1)
        return -EUCLEAN;
    ret->space.id = f.id;
    ret->space.item_bytes = f.item_bytes;
    ret->space.class_id = f.class_id;
    ret->space.durability = f.durability;
    ret->space.deleted = f.deleted;
    memcpy(ret->space.digest, f.digest, sizeof(f.digest));
    memcpy(ret->space.pool, f.pool, sizeof(f.pool));
    return 0;
}

int log_decode(const struct log *l, const uint8_t *in, uint32_t bytes_left, struct log_record *ret_record,
               uint32_t *ret_bytes)
{
    struct format_entry head;
    struct format_segment_freed freed;
    struct format_txn_commit commit;
    int r = 0;

    if (bytes_left < sizeof(head))
        return -EUCLEAN;
    memcpy(&head, in, sizeof(head));
    if (head.entry_bytes > bytes_left || head.entry_bytes < 8 || head.entry_bytes % 8 != 0)
        return -EUCLEAN;
    memset(ret_record, 0, sizeof(*ret_record));
    ret_record->type = head.type;
    switch (head.type) {
    case FORMAT_ENTRY_SPACE:
        r = decode_space(in, &head, ret_record);
        break;
    case FORMAT_ENTRY_PUT:
        r = decode_put(l, in, &head, ret_record);
        break;
    case FORMAT_ENTRY_DELETE:
        r = decode_delete(in, &head, ret_record);
        break;
    case FORMAT_ENTRY_SEGMENT_FREED:
        if (head.entry_bytes != sizeof(freed))
            return -EUCLEAN;
        memcpy(&freed, in, sizeof(freed));
        ret_record->segment_freed.segment = freed.segment;
        ret_record->segment_freed.generation = freed.generation;
        r = freed.segment < l->n_segments && freed.generation <= FORMAT_COUNT_MAX ? 0 : -EUCLEAN;
        break;
    case FORMAT_ENTRY_TXN_COMMIT:
        if (head.entry_bytes != sizeof(commit))
            return -EUCLEAN;
        memcpy(&commit, in, sizeof(commit));
        ret_record->txn = commit.txn;
        r = commit.txn != 0 ? 0 : -EUCLEAN;
        break;
    default:
        r = -EUCLEAN;
    }
    if (r == 0)
        *ret_bytes = head.entry_bytes;
    return r;
}
