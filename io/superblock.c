/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fixed places of a device: superblock, its copy, and each partition's pair of headers. Owns no state; called by
 * the thread that opens, formats or identifies.
 *
 * Two copies of everything: the superblock in the first and the last sector, so that a flipped bit (or somebody's
 * partition table) does not cost the device; headers in turn, so that a torn write leaves the older one. All other
 * places follow from the superblock by geometry_of(): there is no second truth about the layout that could disagree.
 */
#include "io/superblock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/cleanup.h"
#include "include/base/kill_point.h"
#include "io/checksum.h"

/* 0: no room for anything. */
static uint64_t stride_of(const struct store_format *format)
{
    if (format->segment_bytes == 0 || format->partitions == 0)
        return 0;
    uint64_t end = format->device_bytes / format->segment_bytes * format->segment_bytes;

    if (end < FORMAT_FIRST_BYTES + format->segment_bytes)
        return 0;
    return (end - SECTOR_BYTES - FORMAT_FIRST_BYTES) / format->partitions / FORMAT_PARTITION_ALIGN_BYTES *
           FORMAT_PARTITION_ALIGN_BYTES;
}

uint64_t store_log_bytes(const struct store_format *format, uint64_t object_bytes)
{
    uint64_t objects = stride_of(format) / (object_bytes ? object_bytes : FORMAT_OBJECT_BYTES_DEFAULT);

    return round_up(MAX(objects * FORMAT_LOG_BYTES_PER_OBJECT, FORMAT_LOG_BYTES_MIN), FORMAT_PARTITION_ALIGN_BYTES);
}

int geometry_of(const struct store_format *format, uint32_t partition, struct geometry *ret_geometry)
{
    uint32_t seg = format->segment_bytes;

    if (!is_pow2(seg) || seg < SEGMENT_BYTES_MIN || seg > SEGMENT_BYTES_MAX || format->partitions == 0 ||
        format->partitions > PARTITIONS_MAX || partition >= format->partitions)
        return -EINVAL;
    uint64_t stride = stride_of(format);
    uint64_t base = FORMAT_FIRST_BYTES + partition * stride;
    uint64_t log_bytes = format->log_bytes ? format->log_bytes : store_log_bytes(format, 0);
    uint64_t around = FORMAT_HEADER_SECTORS * SECTOR_BYTES + FORMAT_PARTITION_ALIGN_BYTES;
    if (log_bytes < FORMAT_LOG_BYTES_MIN || log_bytes % FORMAT_PARTITION_ALIGN_BYTES != 0 || stride <= around ||
        log_bytes >= stride - around)
        return -EINVAL;
    uint64_t head = around + log_bytes;
    uint64_t n = (stride - head) / (seg + SECTOR_BYTES);
    if (n < FORMAT_SEGMENTS_MIN || n >= STORE_SEGMENT_NONE)
        return -EINVAL;

    struct geometry g = {
        .header_off_bytes = {base + FORMAT_HEADER_A_SECTOR * SECTOR_BYTES,
                             base + FORMAT_HEADER_B_SECTOR * SECTOR_BYTES},
        .log_off_bytes = base + FORMAT_HEADER_SECTORS * SECTOR_BYTES,
        .log_sectors = log_bytes / SECTOR_BYTES,
        .segment_bytes = seg,
        .segment_sectors = seg / SECTOR_BYTES,
        .n_segments = (uint32_t)n,
        .slots = seg / SECTOR_BYTES / FORMAT_SLOT_SECTORS,
    };
    g.sums_off_bytes = g.log_off_bytes + log_bytes;
    g.segments_off_bytes = round_up(g.sums_off_bytes + n * SECTOR_BYTES, FORMAT_PARTITION_ALIGN_BYTES);
    const uint64_t identity[3] = {format->uuid[0], format->uuid[1], partition};
    g.seed = checksum_bytes(identity, sizeof(identity), FORMAT_PARTITION_MAGIC);
    assert(g.segments_off_bytes + n * seg <= base + stride);
    *ret_geometry = g;
    return 0;
}

static void super_from_format(const struct store_format *format, struct format_super *ret)
{
    *ret = (struct format_super){
        .magic = FORMAT_SUPER_MAGIC,
        .version = FORMAT_VERSION,
        .super_bytes = sizeof(*ret),
        .uuid = {format->uuid[0], format->uuid[1]},
        .device_bytes = format->device_bytes / format->segment_bytes * format->segment_bytes,
        .created_s = format->created_s,
        .segment_bytes = format->segment_bytes,
        .partitions = format->partitions,
        .log_bytes = format->log_bytes ? format->log_bytes : store_log_bytes(format, 0),
    };
    memcpy(ret->label, format->label, strnlen(format->label, NAME_BYTES_MAX));
    ret->checksum = checksum_bytes(ret, offsetof(struct format_super, checksum), 0);
}

static void super_to_format(const struct format_super *s, struct store_format *ret)
{
    *ret = (struct store_format){
        .device_bytes = s->device_bytes,
        .segment_bytes = s->segment_bytes,
        .partitions = s->partitions,
        .log_bytes = s->log_bytes,
        .uuid = {s->uuid[0], s->uuid[1]},
        .created_s = s->created_s,
    };
    memcpy(ret->label, s->label, NAME_BYTES_MAX);
}

/* What one sector is worth as a superblock, from nothing to all. */
enum super_worth { SUPER_FOREIGN, SUPER_DAMAGED, SUPER_OTHER_VERSION, SUPER_OTHER_FEATURE, SUPER_GOOD };

static enum super_worth super_judge(const struct format_super *s)
{
    if (s->magic != FORMAT_SUPER_MAGIC)
        return SUPER_FOREIGN;
    if (s->checksum != checksum_bytes(s, offsetof(struct format_super, checksum), 0))
        /* A version to come may keep its checksum elsewhere. Only both copies together can tell it from damage. */
        return SUPER_DAMAGED;
    if (s->version > FORMAT_VERSION || s->version < FORMAT_VERSION_OLDEST)
        return SUPER_OTHER_VERSION;
    if ((s->incompat & ~FORMAT_INCOMPAT_KNOWN) || (s->ro_compat & ~FORMAT_RO_COMPAT_KNOWN))
        return SUPER_OTHER_FEATURE;
    return SUPER_GOOD;
}

/* The copy lies in the last sector of the device rounded down to whole segments, of a size that is not yet known. */
static int super_read_copy(struct io_backend *be, uint32_t dev, uint64_t device_bytes, struct format_super *s,
                           enum super_worth *ret_worth)
{
    enum super_worth best = SUPER_FOREIGN;

    cleanup_free struct format_super *copy = aligned_alloc(SECTOR_BYTES, sizeof(*copy));
    if (!copy)
        return -ENOMEM;
    for (uint64_t seg = SEGMENT_BYTES_MIN; seg <= SEGMENT_BYTES_MAX; seg <<= 1) {
        uint64_t end = device_bytes / seg * seg;
        if (end < FORMAT_FIRST_BYTES ||
            be->ops->blk_now(be, IO_BLK_READ, dev, end - SECTOR_BYTES, copy, sizeof(*copy)) < 0)
            continue;
        enum super_worth worth = super_judge(copy);
        if (worth > best) {
            best = worth;
            *s = *copy;
        }
    }
    *ret_worth = best;
    return 0;
}

static int super_refuse(enum super_worth worth, const struct format_super *first, const char **ret_why)
{
    switch (worth) {
    case SUPER_FOREIGN:
        *ret_why = "not a Spillway device";
        return -EMEDIUMTYPE;
    case SUPER_OTHER_VERSION:
        *ret_why = "formatted by another version of Spillway";
        return -EPROTONOSUPPORT;
    case SUPER_OTHER_FEATURE:
        *ret_why = "uses a feature that this version of Spillway does not know";
        return -EPROTONOSUPPORT;
    default:
        if (first->magic == FORMAT_SUPER_MAGIC && first->version != FORMAT_VERSION) {
            *ret_why = "formatted by another version of Spillway";
            return -EPROTONOSUPPORT;
        }
        *ret_why = "both superblocks are damaged";
        return -EUCLEAN;
    }
}

/* The one that counts. `first` is a sector of memory that I/O can reach; it is overwritten on failure, too. */
static int super_read(struct io_backend *be, uint32_t dev, uint64_t device_bytes, struct format_super *first,
                      const char **ret_why)
{
    enum super_worth copy_worth;
    struct store_format format;
    struct geometry g;

    cleanup_free struct format_super *copy = aligned_alloc(SECTOR_BYTES, sizeof(*copy));
    *ret_why = "the superblock cannot be read";
    if (!copy)
        return -ENOMEM;
    if (device_bytes < FORMAT_FIRST_BYTES) {
        *ret_why = "too small for a Spillway device";
        return -EMEDIUMTYPE;
    }
    int r = be->ops->blk_now(be, IO_BLK_READ, dev, 0, first, sizeof(*first));
    if (r < 0)
        memset(first, 0, sizeof(*first));
    enum super_worth worth = super_judge(first);
    if (worth < SUPER_GOOD) {
        int copied = super_read_copy(be, dev, device_bytes, copy, &copy_worth);
        if (copied < 0)
            return copied;
        if (copy_worth == SUPER_FOREIGN && r < 0)
            return r;
        worth = MAX(worth, copy_worth);
        if (worth < SUPER_GOOD)
            return super_refuse(worth, first, ret_why);
        *first = *copy;
    }
    super_to_format(first, &format);
    if (geometry_of(&format, 0, &g) < 0) {
        *ret_why = "the superblock names an impossible layout";
        return -EUCLEAN;
    }
    if (format.device_bytes > device_bytes) {
        *ret_why = "the device is smaller than when it was formatted";
        return -EUCLEAN;
    }
    return 0;
}

int superblock_read(struct io_backend *be, uint32_t dev, uint64_t device_bytes, struct store_format *ret_format,
                    uint32_t *ret_version, const char **ret_why)
{
    cleanup_free struct format_super *s = aligned_alloc(SECTOR_BYTES, sizeof(*s));

    *ret_why = "out of memory";
    if (!s)
        return -ENOMEM;
    int r = super_read(be, dev, device_bytes, s, ret_why);
    if (r < 0)
        return r;
    super_to_format(s, ret_format);
    *ret_version = s->version;
    return 0;
}

uint64_t superblock_header_fill(const struct geometry *g, uint32_t partition, struct format_partition *header)
{
    header->magic = FORMAT_PARTITION_MAGIC;
    header->partition = (uint16_t)partition;
    header->checksum = checksum_bytes(header, offsetof(struct format_partition, checksum), g->seed);
    kill_point("header.filled");
    return g->header_off_bytes[header->sequence & 1];
}

static bool header_is_possible(const struct format_partition *h)
{
    return h->sequence <= FORMAT_COUNT_MAX && h->tail_lsn <= FORMAT_COUNT_MAX && h->needed_lsn <= FORMAT_COUNT_MAX &&
           h->next_generation <= FORMAT_COUNT_MAX;
}

/* As superblock_header_read(), and which of the two are whole. */
static int header_read(struct io_backend *be, uint32_t dev, const struct geometry *g, uint32_t partition,
                       struct format_partition *ret_header, bool ret_whole[static 2])
{
    struct format_partition best = {0};
    bool found = false;
    int error = -EUCLEAN;

    ret_whole[0] = ret_whole[1] = false;

    cleanup_free struct format_partition *h = aligned_alloc(SECTOR_BYTES, sizeof(*h));
    if (!h)
        return -ENOMEM;
    for (uint32_t i = 0; i < 2; i++) {
        int r = be->ops->blk_now(be, IO_BLK_READ, dev, g->header_off_bytes[i], h, sizeof(*h));
        if (r < 0) {
            error = r;
            continue;
        }
        if (h->magic != FORMAT_PARTITION_MAGIC || h->partition != partition || (h->sequence & 1) != i ||
            h->checksum != checksum_bytes(h, offsetof(struct format_partition, checksum), g->seed) ||
            !header_is_possible(h))
            continue;
        if (!found || h->sequence > best.sequence)
            best = *h;
        found = true;
        ret_whole[i] = true;
    }
    if (!found)
        return error;
    kill_point("header.read");
    *ret_header = best;
    return 0;
}

int superblock_header_read(struct io_backend *be, uint32_t dev, const struct geometry *g, uint32_t partition,
                           struct format_partition *ret_header)
{
    bool whole[2];

    return header_read(be, dev, g, partition, ret_header, whole);
}

/* An empty log: the header says that replay starts at its beginning, and nothing there can be a block of this uuid. */
static int partition_format(struct io_backend *be, uint32_t dev, const struct store_format *format, uint32_t partition,
                            struct format_partition *h)
{
    struct geometry g;

    int r = geometry_of(format, partition, &g);
    if (r < 0)
        return r;
    for (uint64_t sequence = 0; sequence < 2; sequence++) {
        *h = (struct format_partition){.sequence = sequence, .tail_prev = g.seed, .next_generation = 1, .clean = 1};
        uint64_t off = superblock_header_fill(&g, partition, h);
        r = be->ops->blk_now(be, IO_BLK_WRITE, dev, off, h, sizeof(*h));
        if (r < 0)
            return r;
    }
    return 0;
}

/* Headers first, flushed, and the superblocks last: what is half formatted is not a Spillway device. */
int store_format_write(struct io_backend *be, uint16_t dev, const struct store_format *format)
{
    struct geometry g;

    int r = geometry_of(format, 0, &g);
    if (r < 0)
        return r;
    cleanup_free struct format_super *s = aligned_alloc(SECTOR_BYTES, sizeof(*s));
    cleanup_free struct format_partition *h = aligned_alloc(SECTOR_BYTES, sizeof(*h));
    if (!s || !h)
        return -ENOMEM;
    for (uint32_t i = 0; i < format->partitions; i++) {
        r = partition_format(be, dev, format, i, h);
        if (r < 0)
            return r;
    }
    r = be->ops->blk_now(be, IO_BLK_FLUSH, dev, 0, NULL, 0);
    if (r < 0)
        return r;
    super_from_format(format, s);
    r = be->ops->blk_now(be, IO_BLK_WRITE, dev, s->device_bytes - SECTOR_BYTES, s, sizeof(*s));
    if (r == 0)
        r = be->ops->blk_now(be, IO_BLK_WRITE, dev, 0, s, sizeof(*s));
    if (r == 0)
        r = be->ops->blk_now(be, IO_BLK_FLUSH, dev, 0, NULL, 0);
    return r;
}

int store_identify(struct io_backend *be, uint16_t dev, uint64_t device_bytes, struct store_identity *ret_identity,
                   const char **ret_why)
{
    struct store_identity id = {0};
    struct format_partition h = {0};
    struct geometry g;

    int r = superblock_read(be, dev, device_bytes, &id.format, &id.version, ret_why);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < id.format.partitions; i++) {
        r = geometry_of(&id.format, i, &g);
        if (r == 0)
            r = superblock_header_read(be, dev, &g, i, &h);
        if (r < 0) {
            *ret_why = "both headers of a partition are damaged";
            return r;
        }
        id.clean += h.clean != 0;
    }
    *ret_identity = id;
    return 0;
}

/* --- Each copy by itself --- */

static uint64_t super_place(const struct format_super *s, uint32_t copy)
{
    return copy == 0 ? 0 : s->device_bytes - SECTOR_BYTES;
}

static int super_compare(struct io_backend *be, uint32_t dev, const struct format_super *s, bool ret_whole[static 2])
{
    cleanup_free struct format_super *copy = aligned_alloc(SECTOR_BYTES, sizeof(*copy));

    if (!copy)
        return -ENOMEM;
    for (uint32_t i = 0; i < 2; i++)
        ret_whole[i] = be->ops->blk_now(be, IO_BLK_READ, dev, super_place(s, i), copy, sizeof(*copy)) == 0 &&
                       memcmp(copy, s, sizeof(*s)) == 0;
    return 0;
}

int store_copies_read(struct io_backend *be, uint16_t dev, uint64_t device_bytes, struct store_copies *ret_copies,
                      const char **ret_why)
{
    struct store_copies c = {0};
    struct geometry g;

    cleanup_free struct format_super *s = aligned_alloc(SECTOR_BYTES, sizeof(*s));
    cleanup_free struct format_partition *h = calloc(1, sizeof(*h));
    *ret_why = "out of memory";
    if (!s || !h)
        return -ENOMEM;
    int r = super_read(be, dev, device_bytes, s, ret_why);
    if (r == 0)
        r = super_compare(be, dev, s, c.super_whole);
    if (r < 0)
        return r;
    super_to_format(s, &c.format);
    c.version = s->version;
    for (uint32_t i = 0; i < c.format.partitions; i++) {
        r = geometry_of(&c.format, i, &g);
        if (r == 0 && header_read(be, dev, &g, i, h, c.partition[i].header_whole) == 0) {
            c.partition[i].is_clean = h->clean != 0;
            c.partition[i].epoch = h->epoch;
            c.partition[i].tail_lsn = h->tail_lsn;
        }
    }
    *ret_copies = c;
    return 0;
}

/* The sequence says in which of the two places it belongs: the next one is the other's, whatever lies there. */
static int header_repair(struct io_backend *be, uint32_t dev, const struct store_format *format, uint32_t partition)
{
    struct geometry g;

    cleanup_free struct format_partition *h = aligned_alloc(SECTOR_BYTES, sizeof(*h));
    if (!h)
        return -ENOMEM;
    int r = geometry_of(format, partition, &g);
    if (r == 0)
        r = superblock_header_read(be, dev, &g, partition, h);
    if (r < 0)
        return r;
    h->sequence++;
    uint64_t off = superblock_header_fill(&g, partition, h);
    return be->ops->blk_now(be, IO_BLK_WRITE, dev, off, h, sizeof(*h));
}

static int super_repair(struct io_backend *be, uint32_t dev, uint64_t device_bytes, const bool whole[static 2])
{
    const char *why;

    cleanup_free struct format_super *s = aligned_alloc(SECTOR_BYTES, sizeof(*s));
    if (!s)
        return -ENOMEM;
    int r = super_read(be, dev, device_bytes, s, &why);
    for (uint32_t i = 0; i < 2 && r == 0; i++)
        if (!whole[i])
            r = be->ops->blk_now(be, IO_BLK_WRITE, dev, super_place(s, i), s, sizeof(*s));
    return r;
}

int store_copies_repair(struct io_backend *be, uint16_t dev, uint64_t device_bytes, const struct store_copies *copies)
{
    int r = super_repair(be, dev, device_bytes, copies->super_whole);

    for (uint32_t i = 0; i < copies->format.partitions && r == 0; i++) {
        const bool *whole = copies->partition[i].header_whole;

        if (whole[0] != whole[1])
            r = header_repair(be, dev, &copies->format, i);
    }
    return r < 0 ? r : be->ops->blk_now(be, IO_BLK_FLUSH, dev, 0, NULL, 0);
}
