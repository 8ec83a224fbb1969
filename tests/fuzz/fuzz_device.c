/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device that says anything. The input is a program that writes a log (spaces, puts, deletions, freed segments, commits)
 * and the pieces that it names, then changes entries, headers and bytes, before the checksums are made or after. Tiering
 * opens it, serves reads from whatever it found, takes new objects, closes, and opens it again.
 *
 * Whatever it was, nothing crashes, counts agree, and a read that succeeds returns bytes that were once put under that very
 * name: a piece's bytes follow from its identity, so that needs no copy.
 */
#include <errno.h>

#include "io/checksum.h"
#include "io/log.h"
#include "io/superblock.h"
#include "tests/fuzz/support/snapshot.h"
#include "tests/fuzz/support/world.h"

#define PIECES_MAX 64 /* as many as a program has steps */

/* --- What is on the device ----------------------------------------------------------------------------------------- */

struct planted {
    struct store_entry entry;
    uint32_t space;
};

static struct {
    struct store_format format;
    struct geometry g;
    struct format_partition header;
    struct log log; /* for its checksums and encoding */
    struct store_space spaces[4];
    struct planted planted[PIECES_MAX];
    uint32_t n_planted;
    uint64_t lsn, prev;
    _Alignas(8) uint8_t block[FORMAT_BLOCK_BYTES_MAX];
    uint32_t entries, entry_bytes, last; /* of the block under way; where its last entry begins */
} d;

static uint64_t name_hash(const struct store_id *id)
{
    uint64_t hash = id->space ^ ((uint64_t)id->group << 32) ^ ((uint64_t)id->piece << 20) ^ ((uint64_t)id->part << 8);

    return checksum_bytes(id->key, sizeof(id->key), hash ^ id->key_len);
}

/* Eight bytes at a time; the generation first, so that each put has bytes of its own. */
static void fill(uint8_t *bytes, uint32_t size_bytes, const struct store_id *id, uint64_t generation)
{
    uint64_t name = name_hash(id);

    for (uint32_t i = 0; i < size_bytes; i += 8) {
        uint64_t w = i == 0 ? generation : (name ^ generation) + i;

        memcpy(bytes + i, &w, MIN(size_bytes - i, 8U));
    }
}

static bool is_filled(const uint8_t *bytes, uint32_t size_bytes, const struct store_id *id, uint64_t generation)
{
    uint64_t name = name_hash(id);

    for (uint32_t i = 0; i < size_bytes; i += 8) {
        uint64_t w = i == 0 ? generation : (name ^ generation) + i;

        if (memcmp(bytes + i, &w, MIN(size_bytes - i, 8U)) != 0)
            return false;
    }
    return true;
}

static bool is_zero(const uint8_t *bytes, uint32_t size_bytes)
{
    return size_bytes == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, size_bytes - 1) == 0);
}

/* Its bytes and their sums, where the entry says; and the sum that goes into the entry. */
static void piece_write(struct store_entry *e)
{
    const struct checksum_identity identity = {.space = e->id.space,
                                               .generation = e->generation,
                                               .group = e->id.group,
                                               .piece = e->id.piece,
                                               .part = e->id.part,
                                               .key_len = e->id.key_len};
    struct checksum_identity whole = identity;
    uint64_t sums[WORLD_PIECE_BYTES / GRANULE_BYTES];
    uint32_t n = checksum_granule_count(e->size_bytes);
    uint8_t *at = disk_change(d.g.segments_off_bytes + (uint64_t)e->loc.segment * d.g.segment_bytes +
                                  (uint64_t)e->loc.sector * SECTOR_BYTES,
                              e->size_bytes);

    memcpy(whole.key, e->id.key, sizeof(whole.key));
    fill(at, e->size_bytes, &e->id, e->generation);
    uint64_t seed = checksum_seed(&whole);

    checksum_granules(seed, 0, at, e->size_bytes, sums);
    e->sum = checksum_of_sums(seed, sums, n);
    if (n > 1)
        memcpy(disk_change(d.g.sums_off_bytes + (uint64_t)e->loc.segment * SECTOR_BYTES +
                               div_round_up(e->loc.sector, FORMAT_SLOT_SECTORS) * sizeof(uint64_t),
                           n * sizeof(uint64_t)),
               sums, n * sizeof(uint64_t));
}

/* --- The log ------------------------------------------------------------------------------------------------------- */

static void block_end(struct fuzz *f, uint16_t flags)
{
    struct format_block *b = (void *)d.block;
    uint32_t sectors = (uint32_t)div_round_up(sizeof(*b) + d.entry_bytes, SECTOR_BYTES);
    uint64_t place = d.lsn % d.g.log_sectors;

    if (d.entries == 0)
        return;
    if (place + sectors > d.g.log_sectors) { /* no block crosses the ring's end */
        d.lsn += d.g.log_sectors - place;
        place = 0;
    }
    *b = (struct format_block){.magic = FORMAT_BLOCK_MAGIC,
                               .epoch = d.header.epoch,
                               .lsn = d.lsn,
                               .prev = d.prev,
                               .flushed_lsn = d.lsn,
                               .sectors = sectors,
                               .entries = d.entries,
                               .entry_bytes = d.entry_bytes,
                               .flags = flags & FORMAT_BLOCK_SWEEP_ONLY};
    if (flags & 2)
        fuzz_patch(f, b, sizeof(*b));
    if (b->entry_bytes <= sizeof(d.block) - sizeof(*b)) /* else the checksum is of bytes that are not there */
        b->checksum = log_block_checksum(&d.log, b);
    memcpy(disk_change(d.g.log_off_bytes + place * SECTOR_BYTES, sectors * SECTOR_BYTES), d.block,
           sectors * SECTOR_BYTES);
    d.lsn += sectors;
    d.prev = b->checksum;
    memset(d.block, 0, sizeof(d.block));
    d.entries = d.entry_bytes = 0;
}

/* Room for one more entry. */
static uint8_t *entry_at(struct fuzz *f)
{
    if (sizeof(struct format_block) + d.entry_bytes + FORMAT_ENTRY_BYTES_MAX > sizeof(d.block))
        block_end(f, 0);
    d.last = (uint32_t)sizeof(struct format_block) + d.entry_bytes;
    return d.block + d.last;
}

static void entry_done(uint32_t bytes)
{
    d.entries++;
    d.entry_bytes += bytes;
}

static void id_make(struct fuzz *f, struct store_id *ret_id, uint32_t *ret_space)
{
    uint8_t what = fuzz_u8(f);

    *ret_space = what % ARRAY_LEN(d.spaces);
    *ret_id = (struct store_id){.space = d.spaces[*ret_space].id, .key = {(uint8_t)('a' + (what >> 2) % 4)}};
    ret_id->key_len = 1 + what / 128 * (KEY_BYTES_MAX - 1);
}

static void put_make(struct fuzz *f)
{
    struct planted *p = &d.planted[d.n_planted % PIECES_MAX];
    struct store_entry *e = &p->entry;
    uint8_t shape = fuzz_u8(f), where = fuzz_u8(f), how = fuzz_u8(f);
    uint64_t generation = 1 + fuzz_u8(f), object_bytes;

    *p = (struct planted){0};
    id_make(f, &e->id, &p->space);
    object_bytes = shape & 1 ? 100U + where : shape & 2 ? WORLD_PIECE_BYTES - 3000 : 2 * WORLD_PIECE_BYTES + 5000;
    if (shape & 64)
        object_bytes = fuzz_number(f);
    e->n_parts = shape & 4 ? 2 : 1;
    e->id.part = shape & 4 && shape & 8 ? 1 : 0;
    e->id.piece = object_bytes > WORLD_PIECE_BYTES ? (shape >> 4) % 3 : 0;
    uint64_t left = object_bytes - MIN(object_bytes, (uint64_t)e->id.piece * WORLD_PIECE_BYTES);

    e->size_bytes = (uint32_t)MAX(MIN(left, (uint64_t)WORLD_PIECE_BYTES), UINT64_C(1));
    e->generation = generation;
    e->object_bytes = object_bytes;
    e->class_id = d.spaces[p->space].class_id;
    e->durability = d.spaces[p->space].durability;
    e->kind = how & 1;
    e->loc.segment = where % d.g.n_segments;
    e->loc.sector = (uint16_t)(where / d.g.n_segments * 8 % (d.g.segment_sectors - WORLD_PIECE_BYTES / SECTOR_BYTES));
    piece_write(e);
    d.n_planted++;
    entry_done(log_encode_put(entry_at(f), e, how & 2 ? 1 + how / 64 : 0));
}

static void space_make(struct fuzz *f)
{
    uint8_t which = fuzz_u8(f);

    entry_done(log_encode_space(entry_at(f), &d.spaces[which % ARRAY_LEN(d.spaces)]));
}

static void delete_make(struct fuzz *f)
{
    const struct planted *p = &d.planted[fuzz_u8(f) % PIECES_MAX];

    entry_done(log_encode_delete(entry_at(f), &p->entry.id, p->entry.generation));
}

static void other_make(struct fuzz *f, uint8_t type)
{
    uint8_t *at = entry_at(f), what = fuzz_u8(f);
    const struct format_segment_freed freed = {
        .head = {.type = FORMAT_ENTRY_SEGMENT_FREED, .entry_bytes = sizeof(freed)},
        .segment = what % d.g.n_segments,
        .generation = what / d.g.n_segments * 4};
    const struct format_txn_commit commit = {.head = {.type = FORMAT_ENTRY_TXN_COMMIT, .entry_bytes = sizeof(commit)},
                                             .txn = 1 + what % 4};

    if (type == FORMAT_ENTRY_SEGMENT_FREED)
        memcpy(at, &freed, sizeof(freed));
    else
        memcpy(at, &commit, sizeof(commit));
    entry_done(sizeof(commit));
}

/* Blocks that say nothing new: the log is that much nearer to its end, and wants to be swept. */
static void log_fill(struct fuzz *f)
{
    for (uint32_t n = fuzz_u8(f); n > 0; n--) {
        block_end(f, 0);
        entry_done(log_encode_space(entry_at(f), &d.spaces[n % ARRAY_LEN(d.spaces)]));
    }
}

/* --- The device ---------------------------------------------------------------------------------------------------- */

static void spaces_make(void)
{
    for (uint8_t i = 0; i < ARRAY_LEN(d.spaces); i++) {
        d.spaces[i] = (struct store_space){.id = UINT64_C(77) + i, .class_id = i, .durability = i % 3};
        d.spaces[i].digest[0] = i;
        d.spaces[i].pool[0] = i < 3 ? 'a' : 'b';
    }
    d.spaces[1].durability = STORE_DURABLE;
}

static void device_make(struct fuzz *f)
{
    uint8_t how = fuzz_u8(f);

    const char *why;
    uint32_t version;

    fuzz_check(superblock_read(disk_backend(), 0, DISK_BYTES, &d.format, &version, &why) == 0);
    fuzz_check(geometry_of(&d.format, 0, &d.g) == 0);
    d.log = (struct log){.seed = d.g.seed, .n_segments = d.g.n_segments, .segment_sectors = d.g.segment_sectors};
    d.header = (struct format_partition){.sequence = 2 + (how & 1), .epoch = 3, .next_generation = 1};
    d.header.tail_lsn = how & 2 ? d.g.log_sectors - 1 - how / 32 : how & 4 ? d.g.log_sectors * 1000 : 0;
    d.header.tail_prev = d.g.seed;
    d.header.clean = (how >> 3) & 1;
    d.lsn = d.header.tail_lsn;
    d.prev = d.header.tail_prev;
    d.entries = d.entry_bytes = d.n_planted = 0;
    memset(d.block, 0, sizeof(d.block));
    memset(d.planted, 0, sizeof(d.planted));
    spaces_make();
    for (uint8_t i = 0; i < ARRAY_LEN(d.spaces) && !(how & 16); i++)
        entry_done(log_encode_space(entry_at(f), &d.spaces[i]));
}

static void header_end(struct fuzz *f, bool patched)
{
    uint64_t off;

    d.header.needed_lsn = d.lsn;
    if (patched)
        fuzz_patch(f, &d.header, 64);
    off = superblock_header_fill(&d.g, 0, &d.header);
    memcpy(disk_change(off, sizeof(d.header)), &d.header, sizeof(d.header));
}

static void super_patch(struct fuzz *f)
{
    struct format_super *s = (void *)disk_change(0, sizeof(*s));

    fuzz_patch(f, s, 160);
    s->checksum = checksum_bytes(s, offsetof(struct format_super, checksum), 0);
}

/* Bytes that are what they are: of pieces, sums, or anywhere. */
static void damage(struct fuzz *f)
{
    uint8_t what = fuzz_u8(f);
    const struct store_entry *e = &d.planted[what % PIECES_MAX].entry;
    uint64_t at = d.g.segments_off_bytes + (uint64_t)e->loc.segment * d.g.segment_bytes +
                  (uint64_t)e->loc.sector * SECTOR_BYTES + fuzz_u8(f);

    if (what >= 192)
        at = d.g.sums_off_bytes + (uint64_t)e->loc.segment * SECTOR_BYTES + fuzz_u8(f) * 2;
    else if (what >= 160)
        at = fuzz_u32(f) % DISK_BYTES;
    *disk_change(at, 1) ^= (uint8_t)(1 | fuzz_u8(f));
}

static bool program_step(struct fuzz *f)
{
    switch (fuzz_u8(f) % 20) {
    case 0:
    case 1:
    case 2:
    case 3:
    case 4:
    case 16:
    case 17:
        put_make(f);
        break;
    case 5:
        delete_make(f);
        break;
    case 6:
        other_make(f, FORMAT_ENTRY_SEGMENT_FREED);
        break;
    case 7:
        other_make(f, FORMAT_ENTRY_TXN_COMMIT);
        break;
    case 8:
        space_make(f);
        break;
    case 9:
        block_end(f, 0);
        break;
    case 10:
        block_end(f, FORMAT_BLOCK_SWEEP_ONLY);
        break;
    case 11:
        block_end(f, 2);
        break;
    case 12:
        if (d.entries > 0)
            fuzz_patch(f, d.block + d.last, FORMAT_ENTRY_BYTES_MAX);
        break;
    case 13:
        damage(f);
        break;
    case 14:
        super_patch(f);
        break;
    case 15:
        return false;
    default:
        log_fill(f);
        break;
    }
    return true;
}

/* --- What is done with it ------------------------------------------------------------------------------------------ */

static struct tiering_session session;

struct sync {
    struct tiering_sync sync;
    int status; /* 1: it runs */
};

static void sync_done(struct tiering_sync *sync, int status)
{
    container_of(sync, struct sync, sync)->status = status;
}

static bool was_planted(const struct tiering_space_info *space, const struct tiering_id *id, const uint8_t *bytes,
                        uint32_t size_bytes)
{
    for (uint32_t i = 0; i < PIECES_MAX; i++) {
        const struct store_entry *e = &d.planted[i].entry;

        if (e->id.space == space->id && e->id.group == id->group && e->id.piece == id->piece &&
            e->id.part == id->part && e->id.key_len == id->key_len && memcmp(e->id.key, id->key, KEY_BYTES_MAX) == 0 &&
            size_bytes <= e->size_bytes && is_filled(bytes, size_bytes, &e->id, e->generation))
            return true;
    }
    return false;
}

static void look_at(const struct tiering_space_info *space, const struct tiering_id *id)
{
    struct world_wait wait = WORLD_WAIT;
    struct tiering_found found;
    struct tiering_grant grant = {0};

    if (tiering_lookup(world.t, id, &found) < 0)
        return;
    int r = world_wait(&wait, tiering_acquire(world.t, &session, id, 0, 0, 0, &wait.wait, &grant), &grant);

    if (r < 0) {
        fuzz_check(r == -EBADMSG || r == -ENOENT || r == -ENOSPC || r == -EAGAIN || r == -ETIMEDOUT || r == -EIO ||
                       r == -EINPROGRESS,
                   "%d", r);
        return;
    }
    const uint8_t *bytes = disk_memory(grant.region) + grant.offset_bytes;

    fuzz_check(disk_has(grant.region, grant.offset_bytes, grant.length_bytes));
    fuzz_check(grant.length_bytes == found.size_bytes);
    fuzz_check(was_planted(space, id, bytes, grant.length_bytes) ||
                   (found.kind == TIERING_TENSOR && is_zero(bytes, grant.length_bytes)),
               "wrong bytes of '%c' %u.%u, %u bytes", id->key[0], id->part, id->piece, grant.length_bytes);
    fuzz_check(tiering_release(world.t, &session, grant.lease, 0) == 0);
}

static void look_at_all(void)
{
    for (uint32_t i = 0; i < PIECES_MAX && i < d.n_planted; i++) {
        const struct store_id *sid = &d.planted[i].entry.id;
        struct tiering_space_info space;
        struct tiering_id id = {
            .group = sid->group, .piece = sid->piece, .part = sid->part, .n_parts = 1, .key_len = sid->key_len};

        memcpy(id.key, sid->key, sizeof(id.key));
        for (uint32_t s = 0; tiering_space_at(world.t, s, &space); s++) {
            if (space.id != sid->space || space.pool >= 2)
                continue;
            id.space = space.index;
            look_at(&space, &id);
        }
    }
}

/* New objects, into what room there is. */
static void put_some(struct fuzz *f)
{
    struct tiering_space_spec spec = {.class_id = 1, .durability = STORE_DURABLE + 1, .digest = {99}};
    struct tiering_space_info space;

    if (tiering_space_open(world.t, &spec, &space) < 0)
        return;
    for (uint8_t i = 0, n = fuzz_u8(f) % 8; i < n; i++) {
        struct world_wait wait = WORLD_WAIT;
        struct tiering_id id = {.key = {'n', i}, .space = space.index, .n_parts = 1, .key_len = 2};
        struct tiering_grant grant = {0};
        uint32_t size_bytes = 1 + fuzz_u16(f) % WORLD_PIECE_BYTES;
        int r = tiering_reserve(world.t, &session, &id, size_bytes, size_bytes, &wait.wait, &grant);

        if (world_wait(&wait, r, &grant) < 0)
            continue;
        memset(disk_memory(grant.region) + grant.offset_bytes, i, size_bytes);
        wait = WORLD_WAIT;
        r = tiering_commit(world.t, &session, grant.lease, &wait.wait, &grant);
        (void)world_wait(&wait, r, &grant);
    }
}

/* All of each durable space: 0, or why not. */
static void sync_all(void)
{
    struct tiering_space_info space;

    for (uint32_t s = 0; tiering_space_at(world.t, s, &space); s++) {
        struct sync sync = {.sync.done = sync_done, .status = 1};

        tiering_sync_begin(world.t, &sync.sync, space.index);
        int r = tiering_sync_add_space(world.t, &sync.sync);

        tiering_sync_run(world.t, &sync.sync);
        for (int i = 0; sync.status == 1; i++) {
            fuzz_check(i < WORLD_TURNS_MAX, "a SYNC never ends");
            world_turn(4, 20000000);
        }
        fuzz_check(r < 0 || sync.status == 0 || sync.status == -EIO || sync.status == -ENOSPC ||
                       sync.status == -EBADMSG,
                   "%d", sync.status);
    }
}

static void delete_some(struct fuzz *f)
{
    for (uint8_t n = fuzz_u8(f) % 8; n > 0; n--) {
        const struct planted *p = &d.planted[fuzz_u8(f) % PIECES_MAX];
        struct tiering_space_info space;
        struct tiering_id id = {.group = p->entry.id.group, .n_parts = 1, .key_len = p->entry.id.key_len};

        memcpy(id.key, p->entry.id.key, sizeof(id.key));
        for (uint32_t s = 0; tiering_space_at(world.t, s, &space); s++) {
            id.space = space.index;
            if (space.id == p->entry.id.space)
                (void)tiering_delete(world.t, &id);
        }
    }
}

/* Everything but the device is there, and that is formatted. */
static struct snapshot *world_empty(void)
{
    snapshot_begin();
    disk_snapshot();
    world_format();
    world_new(WORLD_DEVICE);
    return world_snapshot();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct snapshot *empty;
    struct fuzz f = fuzz_of(data, size);

    if (!empty)
        empty = world_empty();
    snapshot_return(empty);
    device_make(&f);
    uint8_t how = fuzz_u8(&f);

    for (int i = 0; i < PIECES_MAX && fuzz_more(&f) && program_step(&f); i++)
        ;
    block_end(&f, 0);
    header_end(&f, how & 1);
    int r = world_add();

    r = r < 0 ? r : world_start();
    if (r == 0) {
        tiering_session_init(world.t, &session, 1, 1, 32);
        look_at_all();
        if (how & 2)
            delete_some(&f);
        if (how & 4)
            put_some(&f);
        if (how & 16)
            sync_all();
        look_at_all();
        tiering_session_end(world.t, &session);
        r = world_close();
        world_forget();
        if (r == 0 && how & 8) {
            fuzz_check(world_open(WORLD_DEVICE) == 0, "what was closed cleanly cannot be opened");
            tiering_session_init(world.t, &session, 1, 1, 32);
            look_at_all();
            tiering_session_end(world.t, &session);
            (void)world_close();
        }
    }
    world_forget();
    fuzz_check(snapshot_leaks(empty) == 0);
    return 0;
}
