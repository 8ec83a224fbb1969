/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the store share. Nobody else includes it.
 *
 *   store.c          ticks, reclaim, drops, transactions, closing, statistics
 *   store_open.c     opening, recovery, adopting
 *   store_put.c      placing and writing
 *   store_get.c      reading and verifying
 *   store_commit.c   the log's writer: sums, flushes, blocks, checkpoints, syncs
 */
#pragma once

#include "io/log.h"
#include "io/segment.h"
#include "io/store.h"
#include "io/superblock.h"

#define STORE_BATCH_BYTES (256 * KIB)
#define STORE_BATCHES 16
#define STORE_BATCHES_BUSY 4 /* so many on their way, and one that is not full waits even if it is urgent */
#define STORE_SUMS_BUFFERS 16
#define STORE_BATCH_WAIT_NS UINT64_C(1000000)
#define STORE_SMALL_BYTES (48 * KIB) /* smaller pieces are copied into batches: a copy costs less than a request */

/*
 * FREE -> FILLING   pieces join: each reserves consecutive sectors and is copied by a worker
 * FILLING -> CLOSED full, waited long enough, urgent, or a sync wants it; copies may still run
 * CLOSED -> WRITING the last copy is done
 * WRITING -> FREE
 */
enum batch_state { BATCH_FREE, BATCH_FILLING, BATCH_CLOSED, BATCH_WRITING };

struct batch {
    struct list link; /* of store.batches_free */
    struct store *store;
    struct stream *stream; /* while FILLING */
    struct list puts;
    uint8_t state;
    uint8_t urgent;
    uint8_t evacuating;
    uint32_t segment;
    uint32_t sector, n_sectors, max_sectors;
    uint32_t n_copying;
    uint32_t moved_bytes;
    uint64_t deadline_ns;
    struct io_buf buf;
    uint8_t *mem;
    struct io_blk blk;
};

/* An open segment, and the sector in it that comes next: for large pieces and for regions. */
struct filling {
    uint32_t segment, next;
};

/*
 * The open segments of one pool, durability, and "evacuating or not": the one that was opened last, and one before it
 * that lacked room for a piece and has some for others.
 */
struct stream {
    struct filling fillings[2];
    uint32_t region_segment;          /* one of them, or none */
    uint32_t region_next, region_end; /* sectors set aside for batches, which want to be contiguous */
    struct batch *batch;              /* FILLING, in the region; or NULL */
};
#define STORE_STREAMS_POOL 6

struct sums_buffer {
    struct list link; /* of store.sums_free */
    struct store *store;
    struct store_get *get; /* for whom it reads, or NULL if it writes */
    uint32_t segment;
    struct io_buf buf;
    uint64_t *mem;
    struct io_blk blk;
};

struct store_txn {
    uint32_t number; /* 0: free */
    bool has_mark;
    struct log_mark mark; /* no entry of it lies before this */
};

/*
 * One cycle of the log's writer. Steps without work are passed over.
 *   IDLE -> SUMS          a block was composed, or a sync wants sums or a flush
 *   SUMS -> PRE_FLUSH     sums of granules are written
 *   PRE_FLUSH -> BLOCK    durable data and their sums are on stable storage
 *   BLOCK -> POST_FLUSH, IDLE   somebody waits for it, or too much is unflushed
 *   POST_FLUSH -> HEADER, IDLE  a sweep is complete
 *   HEADER -> HEADER_FLUSH -> IDLE  its tail counts
 */
enum commit_state {
    COMMIT_IDLE,
    COMMIT_SUMS,
    COMMIT_PRE_FLUSH,
    COMMIT_BLOCK,
    COMMIT_POST_FLUSH,
    COMMIT_HEADER,
    COMMIT_HEADER_FLUSH,
};

struct commit {
    uint8_t state;
    bool pending;                    /* an I/O of this step is in flight */
    bool entered;                    /* this step's I/O has been begun */
    uint64_t started, flushed_cycle; /* numbers of cycles */
    uint64_t last_ns;
    uint64_t flushed_seq; /* the queue up to here is on stable storage */
    uint64_t flushed_ns;
    /* Deletions in the queue's stream that no flush has covered: a first one (0: none), and the last. */
    uint64_t delete_first_seq, delete_last_seq;
    uint64_t block_lsn;
    uint32_t block_bytes;           /* of the block of this cycle, 0 if it has none */
    uint32_t io_bytes, moved_bytes; /* of the I/O in flight */
    uint32_t unflushed;             /* blocks */
    uint32_t *writing;              /* segments whose sums this cycle writes */
    uint32_t n_writing, n_issued, n_in_flight;
    struct io_blk blk;
};

struct store {
    struct io_backend *be;
    const struct store_events *events;
    void *ctx;
    uint16_t dev, partition;
    uint64_t interval_ns, now_ns;
    struct geometry g;
    struct format_partition header;
    struct log log;
    struct segment_table table;
    uint64_t next_generation;
    uint32_t next_txn;
    struct store_txn txns[STORE_TXNS_MAX];

    int failed;
    uint32_t write_failures; /* of data, one after the other */
    bool stopping;
    bool blocking; /* opening or closing: I/O is done on the spot */
    bool want_room, room;
    bool again_unlogged;    /* opening: what was adopted is not all in the queue */
    bool want_entries;      /* a put found the log full of live entries, and `cache` can be dropped */
    bool sums_unflushed;    /* sums were written since the last flush */
    bool durable_unflushed; /* data of durable pieces was written since the last flush */

    struct io_buf block_buf, header_buf;
    uint8_t *block_mem;
    struct format_partition *header_mem;
    struct list sums_free, sums_waiting; /* buffers; gets */
    struct sums_buffer sums_buffers[STORE_SUMS_BUFFERS];
    struct batch batches[STORE_BATCHES];
    struct list batches_free;
    struct stream *streams;

    uint32_t *dirty; /* segments whose sums the device lacks */
    uint32_t n_dirty;

    struct list puts;          /* in flight, in the order of their generation */
    struct list copies;        /* the same for what evacuation puts: a SYNC has the old copies */
    uint64_t urged_generation; /* puts before it are urgent: a SYNC waits for them */
    uint32_t n_gets;
    struct list syncs_puts, syncs_log; /* waiting for puts; for the log */
    struct commit commit;
    struct store_stat stat;
};

static inline struct segment *store_segment(struct store *s, uint32_t segment)
{
    return &s->table.segments[segment];
}

static inline uint64_t store_off(const struct store *s, uint32_t segment, uint32_t sector)
{
    return s->g.segments_off_bytes + (uint64_t)segment * s->g.segment_bytes + (uint64_t)sector * SECTOR_BYTES;
}

/* Whose share of the device a piece's transfers use. */
static inline uint16_t store_lane(const struct store *s, uint32_t segment, bool evacuating)
{
    return evacuating ? IO_LANE_OWN : io_lane_of(s->table.segments[segment].pool);
}

uint64_t store_seed(const struct store_entry *entry);
/* Nobody writes to it any more? Then it is sealed. Nothing lives in it and nobody reads it? Its end goes to the log. */
void store_segment_check(struct store *s, uint32_t segment);

/*
 * How every transfer ends: 0 all moved, -EAGAIN the rest was submitted again, else the error (an empty or odd result
 * is -EIO). *moved_bytes counts what was moved; blk keeps the range of the last submission.
 */
int store_blk_more(struct store *s, struct io_blk *blk, uint32_t *moved_bytes, uint32_t total_bytes);

/* store_put.c */
void put_batches_close(struct store *s, bool all);
uint64_t put_batches_deadline_ns(const struct store *s);
void put_stream_init(struct stream *t);
void put_streams_seal(struct store *s, uint32_t pool);
/* A SYNC waits for every put that is in flight. */
void put_urge_all(struct store *s);
struct store_txn *put_txn_find(struct store *s, uint32_t txn);

/* store_get.c */
void get_sums_done(struct sums_buffer *b); /* a read for a get ended */
void get_sums_load(struct sums_buffer *b, struct store_get *get);

/* store_commit.c */
void commit_run(struct store *s);
bool commit_is_wanted(const struct store *s);
void commit_syncs_advance(struct store *s);
void commit_sums_dirty(struct store *s, uint32_t segment, bool durable);
struct sums_buffer *commit_sums_take(struct store *s);
void commit_sums_release(struct store *s, struct sums_buffer *b);
struct log_mark commit_oldest(const struct store *s);
