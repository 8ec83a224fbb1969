/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hash table with chains by index, so that it can grow by realloc(); each piece is also in the list of its segment,
 * because the end of a segment is one entry for all that lies in it.
 */
#include "client/ctl/fsck_pieces.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/checked.h"
#include "io/checksum.h"

#define BUCKETS_MIN 1024

/* ── printing ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static void print_id(const struct fsck_pieces *p, const char *what, const struct store_id *id, uint64_t generation)
{
    char key[STORE_KEY_TEXT_BYTES];

    store_key_print(id, key);
    printf("partition %u lsn %" PRIu64 " %-6s generation %" PRIu64 " space %016" PRIx64
           " group %u key %s part %u piece %u",
           p->partition, p->lsn, what, generation, id->space, id->group, key, id->part, id->piece);
}

static void print_put(const struct fsck_pieces *p, const struct store_entry *e)
{
    print_id(p, "PUT", &e->id, e->generation);
    printf(" of %u parts segment %u offset %" PRIu64 " size %u object %" PRIu64 " class %u %s kind %#x sum %016" PRIx64
           "\n",
           e->n_parts, e->loc.segment, (uint64_t)e->loc.sector * SECTOR_BYTES, e->size_bytes, e->object_bytes,
           e->class_id, store_durability_name(e->durability), e->kind, e->sum);
}

/* ── the table ──────────────────────────────────────────────────────────────────────────────────────────────────── */

static uint32_t *bucket_of(const struct fsck_pieces *p, const struct store_id *id)
{
    struct checksum_identity identity = {
        .space = id->space, .group = id->group, .piece = id->piece, .part = id->part, .key_len = id->key_len};

    memcpy(identity.key, id->key, sizeof(identity.key));
    return &p->buckets[checksum_seed(&identity) & (p->n_buckets - 1)];
}

static bool is_same(const struct store_id *a, const struct store_id *b)
{
    return a->space == b->space && a->group == b->group && a->piece == b->piece && a->part == b->part &&
           a->key_len == b->key_len && memcmp(a->key, b->key, sizeof(a->key)) == 0;
}

static uint32_t piece_find(const struct fsck_pieces *p, const struct store_id *id)
{
    uint32_t i = *bucket_of(p, id);

    while (i != FSCK_NONE && !is_same(&p->pieces[i].entry.id, id))
        i = p->pieces[i].bucket_next;
    return i;
}

static int buckets_grow(struct fsck_pieces *p)
{
    uint32_t n = p->n_buckets ? p->n_buckets * 2 : BUCKETS_MIN;
    uint32_t *buckets = malloc(n * sizeof(*buckets));

    if (!buckets)
        return -ENOMEM;
    memset(buckets, 0xff, n * sizeof(*buckets));
    free(p->buckets);
    p->buckets = buckets;
    p->n_buckets = n;
    for (uint32_t i = 0; i < p->high; i++) {
        if (p->pieces[i].entry.size_bytes == 0)
            continue;
        uint32_t *bucket = bucket_of(p, &p->pieces[i].entry.id);
        p->pieces[i].bucket_next = *bucket;
        *bucket = i;
    }
    return 0;
}

static int place_take(struct fsck_pieces *p, uint32_t *ret_index)
{
    if (p->n >= p->n_buckets) {
        int r = buckets_grow(p);
        if (r < 0)
            return r;
    }
    if (p->free == FSCK_NONE && p->high == p->room) {
        uint32_t room = p->room ? p->room * 2 : BUCKETS_MIN;
        struct fsck_piece *pieces = realloc(p->pieces, (size_t)room * sizeof(*pieces));

        if (!pieces)
            return -ENOMEM;
        p->pieces = pieces;
        p->room = room;
    }
    *ret_index = p->free != FSCK_NONE ? p->free : p->high++;
    if (p->free != FSCK_NONE)
        p->free = p->pieces[p->free].bucket_next;
    return 0;
}

static int piece_add(struct fsck_pieces *p, const struct store_entry *entry)
{
    uint32_t i = FSCK_NONE;
    int r = place_take(p, &i);

    if (r < 0)
        return r;
    uint32_t *bucket = bucket_of(p, &entry->id), *segment = &p->segments[entry->loc.segment];
    p->pieces[i] = (struct fsck_piece){
        .entry = *entry, .bucket_next = *bucket, .segment_prev = FSCK_NONE, .segment_next = *segment};
    if (*segment != FSCK_NONE)
        p->pieces[*segment].segment_prev = i;
    *bucket = i;
    *segment = i;
    p->n++;
    return 0;
}

static void piece_remove(struct fsck_pieces *p, uint32_t i)
{
    struct fsck_piece *piece = &p->pieces[i];
    uint32_t *link = bucket_of(p, &piece->entry.id);

    while (*link != i)
        link = &p->pieces[*link].bucket_next;
    *link = piece->bucket_next;
    if (piece->segment_prev == FSCK_NONE)
        p->segments[piece->entry.loc.segment] = piece->segment_next;
    else
        p->pieces[piece->segment_prev].segment_next = piece->segment_next;
    if (piece->segment_next != FSCK_NONE)
        p->pieces[piece->segment_next].segment_prev = piece->segment_prev;
    piece->entry.size_bytes = 0;
    piece->bucket_next = p->free;
    p->free = i;
    p->n--;
}

/* ── what the store says ────────────────────────────────────────────────────────────────────────────────────────── */

static int contradict(struct fsck_pieces *p, const char *what)
{
    p->contradiction = what;
    return -EUCLEAN;
}

static void replay_block(void *ctx, uint64_t lsn, uint32_t sectors, uint32_t entries)
{
    struct fsck_pieces *p = ctx;

    p->blocks++;
    p->entries += entries;
    p->lsn = lsn;
    p->to_lsn = lsn + sectors;
}

static int replay_space(void *ctx, const struct store_space *space)
{
    struct fsck_pieces *p = ctx;
    uint32_t i = 0;

    if (p->prints)
        printf("partition %u lsn %" PRIu64 " SPACE  space %016" PRIx64 " pool %s item %" PRIu64 " class %u %s%s\n",
               p->partition, p->lsn, space->id, space->pool, space->item_bytes, space->class_id,
               store_durability_name(space->durability), space->deleted ? " deleted" : "");
    while (i < p->n_spaces && p->spaces[i].id != space->id)
        i++;
    if (i == p->room_spaces) {
        uint32_t room = p->room_spaces ? p->room_spaces * 2 : 64;
        struct store_space *spaces = realloc(p->spaces, room * sizeof(*spaces));

        if (!spaces)
            return -ENOMEM;
        p->spaces = spaces;
        p->room_spaces = room;
    }
    p->spaces[i] = *space;
    p->n_spaces = MAX(p->n_spaces, i + 1);
    return 0;
}

static int replay_put(void *ctx, const struct store_entry *e)
{
    struct fsck_pieces *p = ctx;

    if (p->prints)
        print_put(p, e);
    if (e->id.key_len == 0 || e->n_parts == 0 || e->n_parts > PARTS_MAX || e->id.part >= e->n_parts)
        return contradict(p, "a piece in the log has an impossible key or part");
    if (e->object_bytes > OBJECT_BYTES_MAX || e->size_bytes > e->object_bytes || e->size_bytes > PIECE_BYTES_MAX)
        return contradict(p, "a piece in the log has an impossible size");
    if (e->loc.segment >= p->n_segments)
        return contradict(p, "a piece in the log lies outside the device");
    if (p->n_buckets == 0) {
        int r = buckets_grow(p);
        if (r < 0)
            return r;
    }
    uint32_t i = piece_find(p, &e->id);
    if (i != FSCK_NONE) {
        if (p->pieces[i].entry.generation > e->generation)
            return 0; /* a checkpoint wrote down what was older than what the log had already */
        piece_remove(p, i);
    }
    return piece_add(p, e);
}

static int replay_delete(void *ctx, const struct store_id *id, uint64_t generation)
{
    struct fsck_pieces *p = ctx;

    if (p->prints) {
        print_id(p, "DELETE", id, generation);
        printf("\n");
    }
    uint32_t i = p->n_buckets ? piece_find(p, id) : FSCK_NONE;
    if (i != FSCK_NONE && p->pieces[i].entry.generation == generation)
        piece_remove(p, i);
    return 0;
}

static int replay_segment_freed(void *ctx, uint32_t segment, uint64_t generation)
{
    struct fsck_pieces *p = ctx;

    if (p->prints)
        printf("partition %u lsn %" PRIu64 " FREED  generation %" PRIu64 " segment %u\n", p->partition, p->lsn,
               generation, segment);
    if (segment >= p->n_segments)
        return contradict(p, "the log frees a segment outside the device");
    for (uint32_t i = p->segments[segment], next; i != FSCK_NONE; i = next) {
        next = p->pieces[i].segment_next;
        if (p->pieces[i].entry.generation < generation)
            piece_remove(p, i);
    }
    return 0;
}

static bool next_entry(void *ctx, uint64_t *cursor, struct store_entry *ret_entry)
{
    const struct fsck_pieces *p = ctx;

    while (*cursor < p->high && p->pieces[*cursor].entry.size_bytes == 0)
        (*cursor)++;
    if (*cursor >= p->high)
        return false;
    *ret_entry = p->pieces[(*cursor)++].entry;
    return true;
}

static bool next_space(void *ctx, uint64_t *cursor, struct store_space *ret_space)
{
    const struct fsck_pieces *p = ctx;

    if (*cursor >= p->n_spaces)
        return false;
    *ret_space = p->spaces[(*cursor)++];
    return true;
}

static void nothing_to_empty(void *ctx, uint32_t segment)
{
    (void)ctx, (void)segment; /* a store that is stopping does not ask */
}

static void nothing_waits(void *ctx)
{
    (void)ctx;
}

static void has_failed(void *ctx, int why)
{
    struct fsck_pieces *p = ctx;

    p->failed = why;
}

const struct store_events fsck_pieces_events = {
    .replay_space = replay_space,
    .replay_put = replay_put,
    .replay_delete = replay_delete,
    .replay_segment_freed = replay_segment_freed,
    .replay_block = replay_block,
    .next_entry = next_entry,
    .next_space = next_space,
    .evacuate = nothing_to_empty,
    .room = nothing_waits,
    .failed = has_failed,
    .flush_failed = has_failed,
};

/* ── looking at it ──────────────────────────────────────────────────────────────────────────────────────────────── */

static int compare_places(const void *a, const void *b)
{
    const struct store_loc x = (*(const struct store_entry *const *)a)->loc,
                           y = (*(const struct store_entry *const *)b)->loc;
    uint64_t at_x = (uint64_t)x.segment << 16 | x.sector, at_y = (uint64_t)y.segment << 16 | y.sector;

    return at_x < at_y ? -1 : at_x > at_y;
}

int fsck_pieces_sort(const struct fsck_pieces *p, const struct store_entry ***ret_entries)
{
    const struct store_entry **entries = malloc(((size_t)p->n + 1) * sizeof(struct store_entry *));
    size_t n = 0;

    if (!entries)
        return -ENOMEM;
    for (uint32_t i = 0; i < p->high; i++)
        if (p->pieces[i].entry.size_bytes > 0)
            entries[n++] = &p->pieces[i].entry;
    qsort(entries, n, sizeof(struct store_entry *), compare_places);
    *ret_entries = entries;
    return 0;
}

uint64_t fsck_pieces_homeless(const struct fsck_pieces *p)
{
    uint64_t n = 0, last_space = 0;
    bool is_known = false;

    for (uint32_t i = 0; i < p->high; i++) {
        const struct store_entry *e = &p->pieces[i].entry;

        if (e->size_bytes == 0)
            continue;
        if (!is_known || e->id.space != last_space) {
            is_known = false;
            for (uint32_t k = 0; k < p->n_spaces && !is_known; k++)
                is_known = p->spaces[k].id == e->id.space;
            last_space = e->id.space;
        }
        n += !is_known;
    }
    return n;
}

int fsck_pieces_init(struct fsck_pieces *p, uint16_t partition, uint64_t n_segments, bool prints)
{
    uint32_t *segments = malloc(n_segments * sizeof(*segments));

    if (!segments)
        return -ENOMEM;
    memset(segments, 0xff, n_segments * sizeof(*segments));
    *p = (struct fsck_pieces){.partition = partition,
                              .prints = prints,
                              .n_segments = (uint32_t)n_segments,
                              .free = FSCK_NONE,
                              .segments = segments};
    return 0;
}

void fsck_pieces_deinit(struct fsck_pieces *p)
{
    free(p->pieces);
    free(p->buckets);
    free(p->segments);
    free(p->spaces);
}
