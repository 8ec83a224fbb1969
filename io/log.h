/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log as a data structure: entries wait in a queue, blocks are composed from it, and the ring's room is kept. It
 * does no I/O while running (io/store_commit.c does) and reads the device only in log_recover().
 */
#pragma once

#include "include/base/base.h"
#include "io/backend.h"
#include "io/format.h"
#include "io/store.h"
#include "io/superblock.h"

/* One entry, decoded. */
struct log_record {
    uint8_t type; /* enum format_entry_type */
    union {
        struct store_space space;
        struct {
            struct store_entry entry;
            uint64_t txn;
        } put;
        struct {
            struct store_id id;
            uint64_t generation;
        } delete;
        struct {
            uint32_t segment;
            uint64_t generation;
        } segment_freed;
        uint64_t txn;
    };
};

/* A place between two blocks: what a reader needs to go on from there. */
struct log_mark {
    uint64_t lsn;
    uint64_t prev;
};

/* The sweep of a checkpoint: all that is alive is written again, so that the log before `start` can be forgotten. */
struct log_sweep {
    bool active;
    bool hurry;        /* somebody waits for its end: do not pace */
    bool ended;        /* the last block composed holds its last entry */
    bool in_spaces;    /* spaces first, then pieces */
    uint64_t unlogged; /* the value of log.unlogged that its end will have made good */
    uint64_t unlogged_bytes;
    uint64_t cursor;
    struct log_mark start;  /* the tail when it is done */
    uint64_t bound_sectors; /* it will not write more than this, plus what is born while it runs */
    uint64_t emitted_sectors;
    uint64_t appended_sectors; /* by others, while it ran */
    uint64_t space_bytes;      /* of spaces, as seen by this sweep */
};

struct log {
    uint64_t ring_sectors;
    uint32_t block_sectors_max; /* of this ring */
    uint16_t partition;
    uint32_t epoch;
    uint64_t seed;
    uint32_t n_segments, segment_sectors; /* bounds for what is read */

    struct log_mark tail; /* the oldest block that replay needs */
    struct log_mark head; /* the next block */
    uint64_t flushed_lsn;

    uint8_t *queue; /* a ring of encoded entries that are not in a block yet */
    uint32_t queue_bytes;
    uint64_t queue_in, queue_out; /* positions in the stream of all entries */
    uint32_t queue_reserved;

    uint64_t live_bytes;  /* of entries that a sweep would write for pieces */
    uint64_t space_bytes; /* the same for spaces; never too small */
    /*
     * What took effect without an entry. A sweep is its record if nothing that was put before remains in the log when it
     * is over: if its start, the tail then, is not before _lsn. That is known when the queue is composed up to _seq.
     */
    uint64_t unlogged, unlogged_done; /* counts */
    uint64_t unlogged_seq, unlogged_lsn;
    uint64_t unlogged_bytes; /* of live entries again, if it crashes before */

    struct log_sweep sweep;
    const struct store_events *events;
    void *ctx;
};

must_check int log_init(struct log *l, const struct geometry *g, uint32_t partition, const struct store_events *events,
                        void *ctx);
void log_deinit(struct log *l);

/* --- Encoding (also for tests and for a checker of devices) --- */
uint32_t log_put_bytes(uint8_t key_len);
uint32_t log_encode_put(uint8_t *out, const struct store_entry *entry, uint64_t txn);
uint32_t log_encode_delete(uint8_t *out, const struct store_id *id, uint64_t generation);
uint32_t log_encode_space(uint8_t *out, const struct store_space *space);
/* -EUCLEAN for anything that encoding would not have written: then *ret_record is anything. bytes_left is at least one byte. */
must_check int log_decode(const struct log *l, const uint8_t *in, uint32_t bytes_left, struct log_record *ret_record,
                          uint32_t *ret_bytes);

/* --- Appending --- */
/* Room in the queue that a later append will use: whoever will have to append must not find the queue full. */
bool log_reserve(struct log *l, uint32_t bytes);
void log_unreserve(struct log *l, uint32_t bytes);
void log_append_put(struct log *l, const struct store_entry *entry, uint64_t txn); /* uses its reservation */
/* Something took effect without an entry: what the next sweep writes will tell (see `unlogged`). After a crash before
 * that, entries of so many bytes count again. */
void log_leave_to_sweep(struct log *l, uint32_t back_bytes);
/* Without room they take effect all the same: the next sweep will be their record (see `unlogged`). */
void log_append_delete(struct log *l, const struct store_id *id, uint64_t generation);
void log_append_space(struct log *l, const struct store_space *space);
void log_append_txn_commit(struct log *l, uint64_t txn);
/* False without room: the caller tries again later. */
bool log_append_segment_freed(struct log *l, uint32_t segment, uint64_t generation);

/* Entries of live pieces take at most a fifth of the ring; evacuation may go a little beyond. */
bool log_live_room(const struct log *l, uint32_t bytes, bool evacuating);
/* The same, even if all comes back that was deleted without an entry. */
bool log_live_room_if_back(const struct log *l, uint32_t bytes);
uint64_t log_live_limit_bytes(const struct log *l);

/* --- Blocks and sweeps --- */
uint64_t log_used_sectors(const struct log *l);
/* Something took effect that only a sweep can make durable: no sync may be answered before. */
static inline bool log_has_unlogged(const struct log *l)
{
    return l->unlogged != l->unlogged_done;
}
/* False while normal entries must wait for a sweep to end. */
bool log_has_room(const struct log *l);
/* True if a sweep should begin now. `oldest` is the place before which nothing of an open transaction lies. */
bool log_sweep_due(const struct log *l, struct log_mark oldest);
void log_sweep_begin(struct log *l, struct log_mark oldest, bool hurry);
/* Its last block, and the header with the new tail, are on stable storage. */
void log_sweep_finish(struct log *l);

/*
 * Composes the next block from the queue and the sweep, advances head, and returns its sectors (0: nothing to write or
 * no room). It is to be written at log_place(*ret_lsn).
 */
uint32_t log_compose(struct log *l, uint8_t *block, uint64_t *ret_lsn);
uint64_t log_place(const struct log *l, uint64_t lsn); /* sector in the ring */

/* --- Recovery --- */
/* If log_recover() fails, what these were told is void: the log is not believed, and its owner begins anew. */
struct log_recovery {
    /* In the log's order, puts of a transaction where it was committed, and only then. */
    int (*record)(void *ctx, const struct log_record *record);
    void (*block)(void *ctx, const struct format_block *block); /* before its records; may be NULL */
    void (*warm)(void *ctx, struct log_record *record);         /* some records ahead, all of them; may be NULL */
    void *ctx;
};
/*
 * Reads the log from `header` on and leaves tail and head set. Blocking. -EUCLEAN if it is damaged in its middle,
 * else what record() or the device returned.
 */
must_check int log_recover(struct log *l, struct io_backend *be, uint32_t dev, const struct geometry *g,
                           const struct format_partition *header, const struct log_recovery *recovery);

/* Shared by log.c and log_read.c. */
uint64_t log_block_checksum(const struct log *l, const struct format_block *b);
