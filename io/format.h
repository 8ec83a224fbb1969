/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What lies on a device, byte by byte. docs/format.md says the same in words, with the reasons.
 *
 * Everything is little-endian and naturally aligned; padding is explicit and zero. A struct here is never used for
 * anything but the device, and nothing else is ever written to a device's metadata.
 */
#pragma once

#include "include/base/base.h"
#include "include/base/limits.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "structs are written as they are");

#define FORMAT_VERSION 1
#define FORMAT_VERSION_OLDEST 1 /* version N reads N - 1; there is none before the first */

/* Features that this code knows. Compatible: ignore. Read-only compatible: do not write. Incompatible: keep off. */
#define FORMAT_COMPAT_KNOWN UINT64_C(0)
#define FORMAT_RO_COMPAT_KNOWN UINT64_C(0)
#define FORMAT_INCOMPAT_KNOWN UINT64_C(0)

#define FORMAT_SUPER_MAGIC UINT64_C(0x3159415750535753)     /* "SWSPWAY1" */
#define FORMAT_PARTITION_MAGIC UINT64_C(0x3154524150575053) /* "SPWPART1" */
#define FORMAT_BLOCK_MAGIC UINT32_C(0x474c5053)             /* "SPLG" */

/* Where things are. Partitions begin after FORMAT_FIRST_BYTES; each begins with its two headers. */
#define FORMAT_FIRST_BYTES MIB
#define FORMAT_PARTITION_ALIGN_BYTES (64 * KIB)
#define FORMAT_HEADER_A_SECTOR 0
#define FORMAT_HEADER_B_SECTOR 8
#define FORMAT_HEADER_SECTORS 16
#define FORMAT_LOG_BYTES_MIN MIB
/* Sizing a log: live entries may take a fifth of it, and a PUT with the longest key is the largest of them. */
#define FORMAT_LOG_BYTES_PER_OBJECT (UINT64_C(5) * (72 + KEY_BYTES_MAX))
#define FORMAT_OBJECT_BYTES_DEFAULT (64 * KIB)
#define FORMAT_SEGMENTS_MIN 8

/* One slot of granule checksums for each 32 KiB of a segment: a segment's sums never need more than one sector. */
#define FORMAT_SLOT_SECTORS 8
static_assert(SEGMENT_BYTES_MAX / SECTOR_BYTES / FORMAT_SLOT_SECTORS * 8 <= SECTOR_BYTES, "sums fit one sector");

struct format_super {
    uint64_t magic;
    uint32_t version;
    uint32_t super_bytes;
    uint64_t compat, ro_compat, incompat;
    uint64_t uuid[2];
    uint64_t device_bytes;
    uint64_t created_s;
    uint32_t segment_bytes;
    uint16_t partitions;
    uint16_t zero0;
    uint8_t label[NAME_BYTES_MAX + 1]; /* NUL-terminated, zero-padded */
    uint64_t log_bytes;                /* of each partition's log */
    uint8_t zero1[SECTOR_BYTES - 160];
    uint64_t checksum; /* of all before it, seed 0 */
};
static_assert(sizeof(struct format_super) == SECTOR_BYTES, "");
static_assert(offsetof(struct format_super, version) == 8, "fixed for all versions to come");
static_assert(offsetof(struct format_super, super_bytes) == 12, "");
static_assert(offsetof(struct format_super, compat) == 16, "");
static_assert(offsetof(struct format_super, ro_compat) == 24, "");
static_assert(offsetof(struct format_super, incompat) == 32, "");
static_assert(offsetof(struct format_super, uuid) == 40, "");
static_assert(offsetof(struct format_super, device_bytes) == 56, "");
static_assert(offsetof(struct format_super, created_s) == 64, "");
static_assert(offsetof(struct format_super, segment_bytes) == 72, "");
static_assert(offsetof(struct format_super, partitions) == 76, "");
static_assert(offsetof(struct format_super, zero0) == 78, "");
static_assert(offsetof(struct format_super, label) == 80, "");
static_assert(offsetof(struct format_super, log_bytes) == 144, "");
static_assert(offsetof(struct format_super, zero1) == 152, "");
static_assert(offsetof(struct format_super, checksum) == SECTOR_BYTES - 8, "");

/* Of what counts up and never wraps: sequences, positions in the log, generations. None gets as far: a device that says so is
 * damaged, and what follows from it must not be 0 again. */
#define FORMAT_COUNT_MAX (UINT64_MAX / 2)

/* Two of them in turn: the one with the larger `sequence` that is whole is the one that counts. */
struct format_partition {
    uint64_t magic;
    uint64_t sequence;        /* even: lies in A; odd: in B */
    uint64_t tail_lsn;        /* replay starts with the block here */
    uint64_t tail_prev;       /* and that block's `prev` must be this */
    uint64_t needed_lsn;      /* replay must get at least this far, or the log is damaged */
    uint64_t next_generation; /* a lower bound */
    uint32_t epoch;           /* counts openings */
    uint16_t partition;
    uint8_t clean; /* closed in order: the log ends exactly at needed_lsn */
    uint8_t zero0;
    uint8_t zero1[SECTOR_BYTES - 64];
    uint64_t checksum; /* of all before it, seed of the partition */
};
static_assert(sizeof(struct format_partition) == SECTOR_BYTES, "");
static_assert(offsetof(struct format_partition, sequence) == 8, "");
static_assert(offsetof(struct format_partition, tail_lsn) == 16, "");
static_assert(offsetof(struct format_partition, tail_prev) == 24, "");
static_assert(offsetof(struct format_partition, needed_lsn) == 32, "");
static_assert(offsetof(struct format_partition, next_generation) == 40, "");
static_assert(offsetof(struct format_partition, epoch) == 48, "");
static_assert(offsetof(struct format_partition, partition) == 52, "");
static_assert(offsetof(struct format_partition, clean) == 54, "");
static_assert(offsetof(struct format_partition, zero0) == 55, "");
static_assert(offsetof(struct format_partition, zero1) == 56, "");
static_assert(offsetof(struct format_partition, checksum) == SECTOR_BYTES - 8, "");

/* --- The log ----------------------------------------------------------------------------------------------------- */

#define FORMAT_BLOCK_BYTES_MAX (64 * KIB)
#define FORMAT_BLOCK_SECTORS_MAX ((uint32_t)(FORMAT_BLOCK_BYTES_MAX / SECTOR_BYTES))

/* Everything in it is a repetition of what the log says before it (a checkpoint's sweep and nothing else). */
#define FORMAT_BLOCK_SWEEP_ONLY 1

/* Entries follow it, each 8-byte aligned. All of a block counts or nothing. */
struct format_block {
    uint32_t magic;
    uint32_t epoch; /* of the opening that wrote it */
    uint64_t lsn;   /* position in sectors since formatting; its place in the ring is lsn mod the ring's sectors */
    uint64_t prev;  /* the checksum of the block before it */
    uint64_t flushed_lsn; /* all before this was on stable storage when this was written */
    uint32_t sectors;     /* 1 to FORMAT_BLOCK_SECTORS_MAX; the block never crosses the ring's end */
    uint32_t entries;
    uint32_t entry_bytes; /* of all entries */
    uint16_t partition;
    uint16_t flags;
    uint64_t zero0;
    uint64_t checksum; /* of the 56 bytes before, seeded with the checksum of the entries, seeded by the partition */
};
static_assert(sizeof(struct format_block) == 64, "");
static_assert(offsetof(struct format_block, magic) == 0, "");
static_assert(offsetof(struct format_block, epoch) == 4, "");
static_assert(offsetof(struct format_block, lsn) == 8, "");
static_assert(offsetof(struct format_block, prev) == 16, "");
static_assert(offsetof(struct format_block, flushed_lsn) == 24, "");
static_assert(offsetof(struct format_block, sectors) == 32, "");
static_assert(offsetof(struct format_block, entries) == 36, "");
static_assert(offsetof(struct format_block, entry_bytes) == 40, "");
static_assert(offsetof(struct format_block, partition) == 44, "");
static_assert(offsetof(struct format_block, flags) == 46, "");
static_assert(offsetof(struct format_block, zero0) == 48, "");
static_assert(offsetof(struct format_block, checksum) == 56, "");

enum format_entry_type {
    FORMAT_ENTRY_SPACE = 1,
    FORMAT_ENTRY_PUT = 2,
    FORMAT_ENTRY_DELETE = 3,
    FORMAT_ENTRY_SEGMENT_FREED = 4,
    FORMAT_ENTRY_TXN_COMMIT = 5,
};

/* How every entry begins. */
struct format_entry {
    uint8_t type;
    uint8_t key_len;      /* of the key behind it, zero-padded to 8; 0 if there is none */
    uint16_t entry_bytes; /* a multiple of 8, this header and the key included */
};
static_assert(sizeof(struct format_entry) == 4, "");
static_assert(offsetof(struct format_entry, key_len) == 1, "");
static_assert(offsetof(struct format_entry, entry_bytes) == 2, "");

struct format_put {
    struct format_entry head;
    uint32_t group;
    uint64_t space;
    uint64_t generation;
    uint64_t sum;
    uint64_t object_bytes;
    uint64_t txn; /* 0, or counts only if the log holds a TXN_COMMIT of this number */
    uint32_t piece;
    uint32_t size_bytes;
    uint32_t segment;
    uint16_t sector;
    uint16_t part;
    uint16_t n_parts;
    uint8_t class_id;
    uint8_t durability;
    uint8_t kind;
    uint8_t zero[3];
    /* key */
};
static_assert(sizeof(struct format_put) == 72, "FORMAT_LOG_BYTES_PER_OBJECT");
static_assert(offsetof(struct format_put, group) == 4, "");
static_assert(offsetof(struct format_put, space) == 8, "");
static_assert(offsetof(struct format_put, generation) == 16, "");
static_assert(offsetof(struct format_put, sum) == 24, "");
static_assert(offsetof(struct format_put, object_bytes) == 32, "");
static_assert(offsetof(struct format_put, txn) == 40, "");
static_assert(offsetof(struct format_put, piece) == 48, "");
static_assert(offsetof(struct format_put, size_bytes) == 52, "");
static_assert(offsetof(struct format_put, segment) == 56, "");
static_assert(offsetof(struct format_put, sector) == 60, "");
static_assert(offsetof(struct format_put, part) == 62, "");
static_assert(offsetof(struct format_put, n_parts) == 64, "");
static_assert(offsetof(struct format_put, class_id) == 66, "");
static_assert(offsetof(struct format_put, durability) == 67, "");
static_assert(offsetof(struct format_put, kind) == 68, "");
static_assert(offsetof(struct format_put, zero) == 69, "");

struct format_delete {
    struct format_entry head;
    uint32_t group;
    uint64_t space;
    uint64_t generation; /* of the piece that was dropped; another that has taken its place is not meant */
    uint32_t piece;
    uint16_t part;
    uint16_t zero;
    /* key */
};
static_assert(sizeof(struct format_delete) == 32, "");
static_assert(offsetof(struct format_delete, group) == 4, "");
static_assert(offsetof(struct format_delete, space) == 8, "");
static_assert(offsetof(struct format_delete, generation) == 16, "");
static_assert(offsetof(struct format_delete, piece) == 24, "");
static_assert(offsetof(struct format_delete, part) == 28, "");
static_assert(offsetof(struct format_delete, zero) == 30, "");

struct format_segment_freed {
    struct format_entry head;
    uint32_t segment;
    uint64_t generation; /* what lies in it with a smaller generation is gone */
};
static_assert(sizeof(struct format_segment_freed) == 16, "");
static_assert(offsetof(struct format_segment_freed, segment) == 4, "");
static_assert(offsetof(struct format_segment_freed, generation) == 8, "");

struct format_txn_commit {
    struct format_entry head;
    uint32_t zero;
    uint64_t txn;
};
static_assert(sizeof(struct format_txn_commit) == 16, "");
static_assert(offsetof(struct format_txn_commit, zero) == 4, "");
static_assert(offsetof(struct format_txn_commit, txn) == 8, "");

struct format_space {
    struct format_entry head;
    uint8_t class_id;
    uint8_t durability;
    uint8_t deleted;
    uint8_t zero;
    uint64_t id;
    uint64_t item_bytes;
    uint8_t digest[32];
    uint8_t pool[NAME_BYTES_MAX + 1]; /* NUL-terminated, zero-padded */
};
static_assert(sizeof(struct format_space) == 120, "");
static_assert(offsetof(struct format_space, class_id) == 4, "");
static_assert(offsetof(struct format_space, durability) == 5, "");
static_assert(offsetof(struct format_space, deleted) == 6, "");
static_assert(offsetof(struct format_space, zero) == 7, "");
static_assert(offsetof(struct format_space, id) == 8, "");
static_assert(offsetof(struct format_space, item_bytes) == 16, "");
static_assert(offsetof(struct format_space, digest) == 24, "");
static_assert(offsetof(struct format_space, pool) == 56, "");

#define FORMAT_ENTRY_BYTES_MAX 120
static_assert(sizeof(struct format_put) + KEY_BYTES_MAX <= FORMAT_ENTRY_BYTES_MAX, "");
static_assert(sizeof(struct format_space) <= FORMAT_ENTRY_BYTES_MAX, "");
