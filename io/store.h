/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One partition of one device: segments that hold pieces, and the log that remembers them.
 *
 * The store is mechanism: it places pieces into segments, writes, reads and verifies them, appends to the log, keeps
 * checkpoints, says which segment should be reclaimed, and replays the log at start. It does not know which objects
 * exist: tiering's object records are the one truth in memory, and the store asks for them through store_events.
 *
 * It is deterministic and pure: all effects go through io/backend.h, time is an argument. It belongs to one engine.
 *
 * Life of a piece on the device
 *   store_put()    place in the pool's open segment, hash by a worker, write; then append PUT to the log (in memory;
 *                  group-committed). done() with its location and checksum.
 *   store_get()    read a range in whole granules, verify each by a worker. -EBADMSG if a byte is not what was put.
 *   store_drop()   append DELETE to the log; the bytes are dead. Their segment can be reused only after the log up to
 *                  here is durable.
 *   store_sync()   everything put and dropped before is durable when done() comes; of what is `evacuating`, the old copy
 *                  or the new one.
 *
 * Order of flushes: data, flush, log, flush, acknowledge. A flush or a log write that failed is never trusted again:
 * the store turns `failed`, refuses puts and syncs with -EIO, and goes on serving reads. A write of data that failed
 * costs its puts alone; STORE_WRITE_FAILURES_MAX of them without a success between them, the store.
 */
#pragma once

#include "include/base/base.h"
#include "include/base/limits.h"
#include "io/backend.h"

struct store;

/* Where a piece lies: segment number in the partition, and offset in it in sectors. */
struct store_loc {
    uint32_t segment;
    uint16_t sector;
};
#define STORE_SEGMENT_NONE UINT32_MAX

/* In an entry's kind: the bytes were found damaged; they read as -EBADMSG for ever. The store itself does not look. */
#define STORE_KIND_DAMAGED 0x80

enum store_durability { STORE_CACHE, STORE_SCRATCH, STORE_DURABLE };

/* Identity of a piece within the machine; `space` is the persistent 64-bit id of a space. */
struct store_id {
    uint64_t space;
    uint8_t key[KEY_BYTES_MAX]; /* zero-padded */
    uint32_t group;
    uint32_t piece; /* 0 for an object of one piece */
    uint16_t part;
    uint8_t key_len;
};

/* A piece as the log has it. */
struct store_entry {
    struct store_id id;
    uint64_t generation;   /* unique in the partition; larger is newer */
    uint64_t sum;          /* see io/checksum.h */
    uint64_t object_bytes; /* of the whole object (part) that this is a piece of */
    uint32_t size_bytes;   /* of this piece, 1 to PIECE_BYTES_MAX */
    uint16_t n_parts;      /* 1 unless committed in parts */
    uint8_t class_id;
    uint8_t durability;
    uint8_t kind; /* 0 block, 1 tensor; opaque to the store */
    struct store_loc loc;
    uint64_t hint; /* in replay: what replay_warm() found out, else 0 */
};

/* As people read them. "?" for no durability; a key as hex digits. */
#define STORE_KEY_TEXT_BYTES (2 * KEY_BYTES_MAX + 1)
const char *store_durability_name(uint8_t durability);
void store_key_print(const struct store_id *id, char ret_hex[static STORE_KEY_TEXT_BYTES]);

/* A space as the log has it: enough to find and check it again after a restart. Opaque to the store but for `id`. */
struct store_space {
    uint64_t id;
    uint64_t item_bytes; /* fixed size of its blocks, or 0 */
    uint8_t digest[32];
    char pool[NAME_BYTES_MAX + 1];
    uint8_t class_id;
    uint8_t durability;
    uint8_t deleted;
};

#define STORE_LEFT_BEHIND 1

/*
 * What the store asks of its owner. Called on the engine's thread, from store_open(), store_tick() and completions.
 * The four `replay_` calls come in the order in which things took effect, during store_open(); a later call overrides
 * an earlier one, whatever the generations.
 */
struct store_events {
    int (*replay_space)(void *ctx, const struct store_space *space);
    /* STORE_LEFT_BEHIND: not kept, and it must not come back at a later start either. Before that is sure, no sync is
     * answered and nothing new is put. */
    int (*replay_put)(void *ctx, const struct store_entry *entry);
    /* It will be put by and by, or will not: whatever is cheap now and saves a wait then; what is worth knowing then may go
     * into its hint. May be NULL. */
    void (*replay_warm)(void *ctx, struct store_entry *entry);
    /* The piece of exactly this generation was dropped. If another one is in its place by now, that one stays. */
    int (*replay_delete)(void *ctx, const struct store_id *id, uint64_t generation);
    /* The segment was freed: whatever still points into it is gone (entries with a smaller generation only). */
    int (*replay_segment_freed)(void *ctx, uint32_t segment, uint64_t generation);
    /* The calls that follow come from this block of the log; what a transaction put, from where it was committed. Of
     * interest to who examines a log: may be NULL. */
    void (*replay_block)(void *ctx, uint64_t lsn, uint32_t sectors, uint32_t entries);

    /*
     * Enumerates what is alive in this store, for a checkpoint: the first live piece at or after *cursor (an opaque
     * position that starts at 0); sets *cursor past it. False at the end. What changes behind the cursor while the
     * checkpoint runs is in the log anyway. Pieces of a transaction that is not committed are not alive.
     */
    bool (*next_entry)(void *ctx, uint64_t *cursor, struct store_entry *ret_entry);
    bool (*next_space)(void *ctx, uint64_t *cursor, struct store_space *ret_space);

    /*
     * Please empty this segment: for each piece in it either store_forget() (a `cache` piece: the freeing of the
     * segment tells its end to the log) or store_put() it elsewhere and store_drop() the old one. May take as long as
     * it takes; the segment is freed when its live bytes reach zero.
     */
    void (*evacuate)(void *ctx, uint32_t segment);
    /* Segments became free, or a pool's use went down: puts that got -EAGAIN may be tried again. */
    void (*room)(void *ctx);
    /* The store turned failed (why: negative errno). Once. */
    void (*failed)(void *ctx, int why);
    /* A flush failed, so what the device's other partitions wrote before it may be lost too, whatever their next flush says.
     * After failed(), whatever that was for. */
    void (*flush_failed)(void *ctx, int why);
    /* Before a get's done() with -EBADMSG. May be NULL. */
    void (*damaged)(void *ctx, const struct store_entry *entry);
};

struct store_config {
    struct io_backend *backend;
    uint16_t dev; /* the backend's number of the device */
    uint16_t partition;
    uint64_t device_bytes;
    const struct store_events *events;
    void *ctx;
    uint32_t n_pools;           /* pools are numbered 0 to n_pools - 1 */
    uint32_t flush_interval_ms; /* the log is written at least this often while it has something; default 1000 */
};

/*
 * Opens a formatted partition and replays its log through the events. Blocking (blk_now). Errors:
 * -EMEDIUMTYPE not a Spillway device; -EPROTONOSUPPORT another version or an unknown incompatible feature (ret_why
 * says which); -EUCLEAN damaged superblock or log; -EIO and so on from the device. ret_why points to a static text or
 * into the store module, never NULL on failure.
 */
must_check int store_open(const struct store_config *config, struct store **ret_store, const char **ret_why);

/*
 * After replay the owner names each piece that it kept, then says that it is done: segments without one are free.
 * -EINVAL for a location outside the partition or overlapping nothing that was put.
 */
must_check int store_adopt(struct store *s, uint32_t pool, const struct store_entry *entry);
/* Many of one pool in one segment at once. */
struct store_adoption {
    uint32_t segment, n;
    uint32_t sectors;    /* of all */
    uint32_t end_sector; /* of the last in the segment */
    uint64_t key_bytes;  /* of all, each rounded up to 8 */
    uint8_t durability;
};
must_check int store_adopt_many(struct store *s, uint32_t pool, const struct store_adoption *a);
/* The same for one that the log does not have, because it had not got so far: it is logged again. Its bytes are there. */
must_check int store_adopt_again(struct store *s, uint32_t pool, const struct store_entry *entry);
void store_adopt_done(struct store *s);
/* The log has it, and the owner does not: it must not come back. After store_adopt_done(). */
void store_delete_logged(struct store *s, const struct store_entry *entry);

/* The store turns failed (why: negative errno), if it has not yet: also for what failed on its device elsewhere. */
void store_fail(struct store *s, int why);

/* Before closing: nothing new is begun in the background. Tick on until nothing of the store's is in flight. */
void store_stop(struct store *s);
bool store_is_idle(const struct store *s);
/* Forgets everything without touching the device. No request is in flight, the store's own included. */
void store_free(struct store *s);
/* Blocking: seals what is open, writes the log and sums, marks the partition clean. -EBUSY if not idle. */
must_check int store_close_clean(struct store *s);

/*
 * Puts one piece. The caller sets the fields of the first part; buf holds sectors_of(size_bytes) sectors, whose bytes
 * past size_bytes do not matter. Returns 0 (done() will come), or at once:
 *   -EAGAIN   no room now; reclaim is under way, events->room() tells when to try again
 *   -ENOSPC   the pool's budget on this device is used up and nothing of it can be reclaimed; or the log is full of
 *             live entries (store_stat().log_live_bytes against log_bytes)
 *   -EIO      the store has failed
 *   -EINVAL   no such pool or transaction, or a size that no segment holds
 *
 * Puts take effect in the order of their done(), not of their generations. An object that is deleted or replaced while
 * a put of it is in flight: set `cancel`. Dropping the piece in done() instead would be too late, a crash between the
 * two entries would bring it back.
 */
struct store_put {
    struct store_id id;
    struct io_buf buf;
    uint64_t object_bytes;
    uint32_t size_bytes;
    uint32_t pool;
    uint16_t n_parts;
    uint8_t class_id;
    uint8_t durability;
    uint8_t kind;
    uint8_t urgent;
    uint8_t evacuating; /* made for events->evacuate(): may use the reserve, and go beyond the pool's budget */
    uint8_t cancel;     /* the owner may set it until done(): the piece is not logged, and done() gets -ECANCELED */
    uint32_t txn;       /* 0: takes effect by itself; else with store_txn_commit() of that number */
    void (*done)(struct store_put *put, int status); /* 0: entry is valid; else -EIO, -EFAULT, -ECANCELED */

    struct store_entry entry; /* out */

    /* The store's own. */
    struct store *store_;
    struct list link_, batch_link_;
    struct io_blk blk_;
    struct io_work work_;
    uint64_t sum_one_;
    uint32_t moved_;
};
int store_put(struct store *s, struct store_put *put);
/* A client waits for a put that is in flight: urgent from now on. */
void store_put_urge(struct store_put *put);

/*
 * Reads [off_bytes, off_bytes + len_bytes) of a piece into buf; both are multiples of GRANULE_BYTES except that the
 * range may end at the end of the piece. buf has room for sectors_of(len_bytes) sectors. Checksums of all granules read
 * are verified before done(): 0, -EBADMSG, -EIO, or -EFAULT (see io_work).
 */
struct store_get {
    struct store_entry entry;
    uint32_t off_bytes;
    uint32_t len_bytes;
    struct io_buf buf;
    uint8_t urgent;
    uint8_t user;       /* io_user_of() who waits for it */
    uint8_t evacuating; /* made for events->evacuate(): not the pool's share of the device */
    void (*done)(struct store_get *get, int status);

    /* The store's own. */
    struct store *store_;
    struct list link_;
    struct io_blk blk_;
    struct io_work work_;
    uint64_t sums_[PIECE_BYTES_MAX / GRANULE_BYTES];
    uint32_t moved_;
    uint8_t phase_;
};
void store_get(struct store *s, struct store_get *get);
/* A client waits for a get that is in flight, of that user (io_user_of()): urgent from now on. */
void store_get_urge(struct store_get *get, uint8_t user);

/* The piece is deleted (logged), or forgotten (its segment's end will be logged: `cache`, on evacuation only). */
void store_drop(struct store *s, const struct store_entry *entry);
void store_forget(struct store *s, const struct store_entry *entry);

/* Is the segment still to be emptied? A put that was in flight when evacuate() came may end up in it later. */
bool store_is_evacuating(const struct store *s, uint32_t segment);

/* Remembers a space (or its deletion) in the log. -ENOSPC if the log is full of live entries; -EIO. */
must_check int store_space_put(struct store *s, const struct store_space *space);
/* The same of one for which there was room once, and of which the log has not heard: while opening. */
void store_space_again(struct store *s, const struct store_space *space);

/*
 * Puts with this txn number take effect together, in the log's order. Durable after the next store_sync(). 0 if
 * STORE_TXNS_MAX are open. Until the commit next_entry() must not name its pieces; their done() has come before it.
 * An open transaction keeps the log from forgetting: a put of one that is too old gets -ENOSPC, and must be aborted.
 * After an abort the owner drops the pieces that were put.
 */
uint32_t store_txn_begin(struct store *s);
void store_txn_commit(struct store *s, uint32_t txn);
void store_txn_abort(struct store *s, uint32_t txn);

struct store_sync {
    void (*done)(struct store_sync *sync, int status);
    struct list link_; /* the store's own */
    uint64_t lsn_, cycle_;
};
void store_sync(struct store *s, struct store_sync *sync);

/* Drives group commit, checkpoints and reclaim; at each turn of the engine's loop. Returns ns until it wants to be
 * called again, UINT64_MAX if only a completion can change anything. */
uint64_t store_tick(struct store *s, uint64_t now_ns);

/* A pool's budget here, in bytes; it pays for whole segments. Lowering it starts reclaim. */
void store_pool_budget(struct store *s, uint32_t pool, uint64_t budget_bytes);
uint64_t store_pool_used_bytes(const struct store *s, uint32_t pool);
/* What is put for the pool next costs something else its place, now or soon. */
bool store_pool_is_full(const struct store *s, uint32_t pool);

/* What makes store_put() answer -ENOSPC for what is not `cache`; for a key of any length. */
enum store_lack { STORE_LACKS_NOTHING, STORE_LACKS_BUDGET, STORE_LACKS_SEGMENTS, STORE_LACKS_LOG };
enum store_lack store_lacks(const struct store *s, uint32_t pool);

struct store_stat {
    uint64_t segments, segments_free, segments_open, segments_pending_free;
    uint32_t segment_bytes;
    uint64_t live_bytes;    /* of pieces, in sectors' bytes */
    uint64_t written_bytes; /* to the device in all, log and sums included */
    uint64_t written_log_bytes;
    uint64_t put_bytes, got_bytes;
    uint64_t bounced_bytes; /* copied by the daemon on the way to the device */
    uint64_t checksum_errors;
    uint64_t write_errors; /* puts whose write failed */
    uint64_t log_bytes, log_live_bytes, log_used_bytes;
    uint64_t checkpoints, reclaimed_segments, flushes;
    uint64_t recovered_pieces,
        recovered_log_bytes; /* at opening: what its owner adopted, and the log that told of it */
    int failed;              /* 0 or the negative errno that ended it */
};
void store_stat(const struct store *s, struct store_stat *ret_stat);
/* The same number as in store_stat: for a look at each turn. */
uint64_t store_written_log_bytes(const struct store *s);

/* --- Formatting -------------------------------------------------------------------------------------------------- */

struct store_format {
    uint64_t device_bytes;  /* rounded down to whole segments */
    uint32_t segment_bytes; /* power of two, SEGMENT_BYTES_MIN to SEGMENT_BYTES_MAX */
    uint16_t partitions;
    uint64_t log_bytes; /* of each partition's log, a multiple of 64 KiB; 0: store_log_bytes() of the default size */
    uint64_t uuid[2];   /* random, by the caller: this code makes no system calls */
    uint64_t created_s; /* seconds since 1970 */
    char label[NAME_BYTES_MAX + 1];
};

/* What a device says about itself. */
struct store_identity {
    struct store_format format;
    uint32_t version;
    uint32_t clean; /* partitions that were closed cleanly */
};

/* The log that each partition needs so that objects of this mean size fill it before their entries fill the log; 0: 64 KiB. */
uint64_t store_log_bytes(const struct store_format *format, uint64_t object_bytes);
/* Writes superblocks and empty logs (not the segments: the caller fills a file). Blocking, through blk_now. */
must_check int store_format_write(struct io_backend *be, uint16_t dev, const struct store_format *format);
/* Errors as store_open(). */
must_check int store_identify(struct io_backend *be, uint16_t dev, uint64_t device_bytes,
                              struct store_identity *ret_identity, const char **ret_why);

/*
 * What each copy of a device's fixed places is worth by itself. A superblock that is whole but not as the one that counts
 * is not whole here; nor is a header that is missing because a write of it was torn. Either alone is enough to open.
 */
struct store_copies {
    struct store_format format;
    uint32_t version;
    bool super_whole[2];
    struct {
        bool header_whole[2];
        bool is_clean; /* closed in order; false if no header is whole */
        uint32_t epoch;
        uint64_t tail_lsn; /* where replay begins */
    } partition[PARTITIONS_MAX];
};
/* Errors as store_open(), but for headers. */
must_check int store_copies_read(struct io_backend *be, uint16_t dev, uint64_t device_bytes,
                                 struct store_copies *ret_copies, const char **ret_why);
/* Writes each copy that is not whole from the other one, and no other sector. */
must_check int store_copies_repair(struct io_backend *be, uint16_t dev, uint64_t device_bytes,
                                   const struct store_copies *copies);
