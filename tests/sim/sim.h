/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulator: the real tiering and store on a simulated disk and clock, simulated sessions doing random things, and
 * a naive model that says what every read may return. One thread; a seed gives the same run, which a hash of all
 * events proves.
 *
 *   search.c    arguments, seeds one after the other or side by side, the shortest prefix of one that fails
 *   spillsim.c  one seed; what must have happened at least once
 *   world.c     disk, engine, clock; opening, crashing, stopping, waiting until all is quiet
 *   faults.c    what goes wrong
 *   points.c    named points in the code under test
 *   balance.c   what must add up after every step
 *   payload.c   bytes as a function of what they belong to
 *   model.c     blocks: which versions may be there
 *   model_tensor.c  tensors: which contents may be there, and that a SYNC is all or nothing
 *   session.c   sessions: what they hold and wait for, and how waits end
 *   ops.c       what sessions do to blocks
 *   ops_tensor.c  what sessions do to tensors, and SYNC
 *   ring*.c     clients of the request path (ring.h)
 *   ops_gpu.c   blocks to and from a GPU's staging memory
 *   hot.c       crashes that memory survives
 */
#pragma once

#include "include/base/base.h"
#include "tests/unit/support/simdisk.h"
#include "tiering/tiering.h"

#define SIM_PIECE_BYTES ((uint32_t)(128 * KIB))
#define SIM_CELLS (SIM_PIECE_BYTES / SECTOR_BYTES)
#define SIM_USER(session) ((session) % 2) /* whose it is */
#define SIM_PIECES_MAX 3
#define SIM_PARTS_MAX 3
#define SIM_OBJECTS_MAX 2048
#define SIM_SESSIONS 6
#define SIM_WAITS 96
#define SIM_LEASES 192
#define SIM_MAX_LEASES 512
#define SIM_GHOSTS_MAX 2048 /* so few that policies forget, and a start is cheap */
#define SIM_SYNCS 6
#define SIM_TENSORS_MAX 28 /* the first objects */
#define SIM_HISTORY 512
#define SIM_STORES_MAX 3
#define SIM_DMAS 8
#define SIM_DMA_LEASES 6
#define SIM_LANES 2 /* by pool */
#define SIM_SLOTS 3
#define SIM_SLOT_BYTES (4 * SIM_PIECE_BYTES)

enum sim_space {
    SPACE_TENSOR_DURABLE,
    SPACE_TENSOR_SCRATCH,
    SPACE_TENSOR_CACHE,
    SPACE_TENSOR_SHARED, /* scratch, in the shared pool */
    SPACE_ARENA,         /* scratch tensors that blocks are put from and got to */
    SPACE_CACHE,         /* blocks in the trusted pool */
    SPACE_DURABLE,
    SPACE_SCRATCH,
    SPACE_SHARED_CACHE, /* blocks in the shared pool */
    SPACE_SHARED_DURABLE,
    SIM_SPACES,
};

enum block_state {
    BLOCK_ABSENT,
    BLOCK_BUILDING, /* some of its pieces are reserved or committed */
    BLOCK_PRESENT,
    BLOCK_UNKNOWN, /* after a restart, until it is looked at */
};

/* What a write to a tensor's piece covered: its cells [from, to). */
struct write {
    uint8_t from, to;
};

/* A piece of a tensor: version n is its content after the n-th write that was released; 0: zeros. */
struct tensor_piece {
    uint32_t n;
    uint32_t cell[SIM_CELLS]; /* version of each cell at version n */
    struct write history[SIM_HISTORY];
    uint32_t busy;                   /* bit set: cells that a writer holds */
    uint32_t durable_lo, durable_hi; /* the acknowledged SYNC wrote a version in this range */
    uint8_t n_writers;
    bool publishing; /* shared: a write becomes version n + 1, or (without a writer) may have become it */
    struct write publication;
    bool maybe_torn, torn; /* EBADMSG may be the answer; has been the answer */
};

struct object {
    struct tiering_id id;
    uint64_t object_bytes;
    uint8_t space;
    uint8_t n_parts, n_pieces;
    /* Blocks. */
    enum block_state state;
    uint32_t version;   /* of the PRESENT block, or of the one that is being built */
    uint32_t last;      /* the highest that was ever given */
    uint32_t published; /* the highest that was ever visible */
    uint32_t min;       /* older ones never come back */
    uint32_t deaths;    /* counts deletions: who waited before one waits for something else */
    bool counted;       /* its uses are counted: it may go by itself */
    bool must;          /* an acknowledged SYNC says that it is there */
    /* Bits: part * SIM_PIECES_MAX + piece. damaged: EBADMSG was the answer, of the only copy; it stays. */
    uint32_t reserved, committed, damaged;
    uint64_t built_ns;
    /* Tensors. */
    bool exists;
    struct tensor_piece pieces[SIM_PIECES_MAX];
};

enum wait_kind { WAIT_RESERVE, WAIT_COMMIT, WAIT_ACQUIRE, WAIT_WRITE, WAIT_PREFETCH, WAIT_GET, WAIT_PUT, WAIT_RELEASE };

struct sim;

enum lease_kind { HELD_RESERVED, HELD_READ, HELD_WRITE };

struct sim_lease {
    bool used, filled;
    enum lease_kind kind;
    uint8_t session;
    uint16_t object;
    uint8_t part, piece;
    uint8_t from, to;  /* tensors: cells */
    uint8_t transfers; /* GETs and PUTs in flight on it */
    bool in_dma;
    bool passive;             /* a writer that writes nothing */
    bool cut_off;             /* its process died in a step while it was released: the piece may have its bytes */
    uint32_t version;         /* blocks */
    uint32_t cell[SIM_CELLS]; /* shared tensors: what the reader saw, and must go on seeing */
    struct tiering_grant grant;
    uint64_t handle;
};

struct sim_wait {
    struct tiering_wait wait;
    struct sim *sim;
    bool used, done;
    bool begun; /* its call has returned, and the model knows */
    bool left;  /* its client asks the next process for it */
    int status;
    enum wait_kind kind;
    uint8_t session;
    uint16_t object;
    uint8_t part, piece;
    uint16_t lease;        /* GET, PUT: the arena's */
    struct sim_lease held; /* COMMIT, RELEASE: what ends with it */
    uint8_t from, to;
    uint32_t version, deaths;
    uint32_t n; /* shared tensors: the piece's version when the wait began */
    uint64_t deadline_ns;
    uint64_t only_copy; /* world_only_copy() when it began */
    bool is_damaged;    /* EBADMSG, and what was read is all that there is of the piece */
};

/* What is known of a lease when its transfer begins: it may be gone when that ends. */
struct sim_dma_lease {
    uint16_t object, lease;
    uint8_t part, piece;
    uint32_t version;
    uint64_t handle;
};

struct sim_dma {
    struct tiering_dma dma;
    struct sim *sim;
    bool used, done;
    int status;
    uint8_t op, lane;
    uint64_t seq;
    uint32_t n;
    struct sim_dma_lease leases[SIM_DMA_LEASES];
};

struct sim_lane {
    uint64_t next_seq[2];
    uint32_t n_uses;
    bool is_over;
};

struct sim_session {
    struct tiering_session s;
    uint64_t number; /* never the same again */
    bool alive;
    bool ending;
    uint64_t stale; /* a lease that it had once */
};

struct sim_sync {
    struct tiering_sync sync;
    struct sim *sim;
    bool used,
        running; /* used and not running: failed, but perhaps written; counts until a later one is acknowledged */
    uint8_t space;
    int status;
    uint64_t began;                    /* serial */
    uint32_t version[SIM_OBJECTS_MAX]; /* blocks: PRESENT version when it began, 0: none */
    uint32_t next[SIM_OBJECTS_MAX];    /* the lowest version that may be published after it began */
    uint32_t lo[SIM_TENSORS_MAX][SIM_PIECES_MAX], hi[SIM_TENSORS_MAX][SIM_PIECES_MAX];
    bool covers[SIM_OBJECTS_MAX];
    bool covers_piece[SIM_TENSORS_MAX][SIM_PIECES_MAX];
};

/* A call without a wait, that a hot crash may cut off. */
struct doing {
    enum { DOING_NOTHING, DOING_DELETE, DOING_OPEN, DOING_ADVISE, DOING_RELEASE } kind;
    struct object *object;
    struct sim_lease *lease;
    int how; /* as of tensor_writer_gone() */
};

/* A hot crash. */
struct hot {
    bool inside; /* a step */
    bool was_there[SIM_OBJECTS_MAX];
    bool returns[SIM_SESSIONS];
};

struct sim_counts {
    uint64_t ops, crashes, kills, clean_stops, failed_recoveries, torn_sectors, lost_sectors, flips, flips_detected;
    uint64_t evictions, drops, spills, loads, commits, reclaims, checkpoints, cancels, timeouts, session_deaths;
    uint64_t hits, bytes_verified, syncs, syncs_failed, sync_lost, parts_completed, parts_expired, limits, reverts,
        torn;
    uint64_t cache_found, durable_found, tensors_checked, half_syncs_new, half_syncs_old, store_failures, io_errors,
        short_counts, io_failures;
    uint64_t arena_gets, arena_puts, pins, counted, published, copied, bounced, relocated, vanished, restless;
    uint64_t demotions, promotions, evacuations, migrated, budgets, given_back;
    uint64_t laps, declared, prefetched, prefetched_used, prefetched_wasted;
    uint64_t gpu_spills, gpu_fetches, gpu_failures;
    uint64_t dead_devices, flipped_writes, misdirected_writes, lost_writes, late_writes, refused_chunks;
    uint64_t ring_calls, ring_hits, ring_commits, ring_deletes, ring_syncs, ring_plans, client_deaths, broken, cold;
    uint64_t hot_crashes, hot_inside, hot_in_recovery, hot_found, hot_leases, hot_ended, hot_retries, hot_redone,
        hot_forgotten, hot_stops, hot_left;
};

/* The same blocks in the same order, again and again. */
#define SIM_LAP_MAX 96
struct sim_lap {
    bool may_begin;
    uint32_t n, left; /* blocks; accesses that are still to come, 0: nobody is at it */
    uint16_t objects[SIM_LAP_MAX];
};

struct sim {
    uint64_t seed;
    uint64_t rng;
    uint64_t hash;
    uint64_t now_ns;
    uint64_t step, n_ops, serial;
    uint64_t last_session;
    bool verbose;
    bool dead;   /* the engine's memory is being thrown away */
    bool is_hot; /* it is being opened over what another one has left */

    /* World. */
    struct simdisk *disk;
    struct io_backend wire; /* in front of the disk's */
    int64_t cut_after;      /* blocking calls until the power goes, during recovery; negative: never */
    uint32_t n_devs;
    uint64_t device_bytes[SIM_STORES_MAX];
    uint64_t segments_off[SIM_STORES_MAX];
    uint16_t partitions[SIM_STORES_MAX];
    struct tiering *tiering;
    struct tiering_config config;
    struct tiering_pool_config pools[2];
    uint64_t budget[2][TIERING_BUDGETS]; /* what the engine was told last */
    uint64_t held[2][TIERING_BUDGETS];   /* what it had at the last look */
    void *records;
    uint32_t max_objects;
    struct tiering_space_info spaces[SIM_SPACES];
    bool harsh;   /* more faults, and more ends */
    bool crowded; /* most operations meet in a few objects, and more of them are of tensors */
    bool orderly; /* half of what memory survives are stops in order */
    bool flips_on, errors_on, budgets_on, refusals_on, bad_writes_on;
    bool calm;             /* nothing is provoked: a stop must come to its end */
    bool arena_late;       /* a block that nobody waits for any more may still come into an arena */
    bool flipped, unclean; /* since the start: a bit was flipped, the engine was not stopped in order */
    bool degraded;         /* since the last opening */
    uint32_t n_stores;
    bool slow;
    struct sim_counts *counts;

    /* Model. */
    struct object objects[SIM_OBJECTS_MAX];
    uint32_t n_objects;
    uint32_t first[SIM_SPACES + 1];
    struct sim_session sessions[SIM_SESSIONS];
    struct sim_wait waits[SIM_WAITS];
    struct sim_lease leases[SIM_LEASES];
    struct sim_sync syncs[SIM_SYNCS];
    struct sim_dma dmas[SIM_DMAS];
    struct sim_lane lanes[SIM_LANES];
    struct ring_world *rings;
    struct sim_lap lap;
    struct doing doing;
    struct hot hot;
};

/* spillsim.c */
extern struct sim *sim_running;
/* Where a run is: in memory that whoever waits for its process sees. */
struct sim_progress {
    uint64_t seed, step;
};
extern struct sim_progress *sim_progress;
struct sim_run {
    uint64_t seed, n_ops;
    uint64_t until; /* the steps that are run of these */
    bool verbose;
};
/* One run from its seed. A hash of all that happened. */
uint64_t sim_run_seed(const struct sim_run *run, struct sim_counts *counts);
/* Between runs: nobody has a table of one that is over. */
void tables_forget(void);
void sim_catch_signals(void);
int sim_report(const struct sim_counts *counts, uint64_t n_ops);
void sim_counts_add(struct sim_counts *to, const struct sim_counts *counts);

/* points.c */
struct sim_point_count {
    uint64_t asked, fired;
};
void points_begin(uint64_t seed);
uint32_t points_count(void);
/* Of this process. */
void points_add_to(struct sim_point_count *counts);
int points_report(const struct sim_point_count *counts, uint64_t n_ops);

/* faults.c */
void faults_make(struct sim *sim);
/* Of a world that was opened; and none, before it is opened. */
void faults_begin(struct sim *sim);
void faults_end(struct sim *sim);
void faults_step(struct sim *sim);

/* ring_client.c: the request path, and its clients (ring.h) */
void rings_make(struct sim *sim);
void rings_open(struct sim *sim);
/* leaves: for the next process, which finds their leases. */
void rings_end_clients(struct sim *sim, bool leaves);
bool rings_are_idle(const struct sim *sim); /* no request is left */
void rings_close(struct sim *sim);
void rings_die(struct sim *sim);
void rings_free(struct sim *sim);
/* After a turn of tiering, that wants the next one in tick_ns. */
void rings_run(struct sim *sim, bool io_ended, uint64_t tick_ns);
/* One of the clients does something. */
void rings_step(struct sim *sim);
/* Do clients have anything, anywhere? */
bool rings_want(const struct sim *sim);
void rings_balance(struct sim *sim);
void ring_objects_restarted(struct sim *sim, bool clean);

/* lap.c */
/* If laps are being run: the step's share of it, and true. */
bool lap_step(struct sim *sim);

/* balance.c */
/* What must add up after every step. */
void balance_check(struct sim *sim);

_Noreturn void sim_fail(struct sim *sim, const char *format, ...) printf_like(2, 3);
void sim_log(struct sim *sim, const char *format, ...) printf_like(2, 3);
uint64_t sim_random(struct sim *sim);
uint64_t sim_below(struct sim *sim, uint64_t n);
/* One of n objects of the same kind: their number among them. In a crowded run mostly one of a few, others as time goes. */
uint32_t sim_pick(struct sim *sim, uint32_t n);
static inline bool sim_percent(struct sim *sim, uint32_t percent)
{
    return sim_below(sim, 100) < percent;
}
void sim_event(struct sim *sim, uint64_t a, uint64_t b);

/* world.c */
void world_make(struct sim *sim);
void world_open(struct sim *sim);
/* Power loss, or the process's death; then opening again. */
void world_crash(struct sim *sim, bool power);
void world_stop_clean(struct sim *sim);
bool world_is_quiet(const struct sim *sim); /* nothing is in flight */
/* The process's death, and what it had in memory is there for the next one. */
void world_hot_crash(struct sim *sim, bool inside);
/* A stop after which the next process finds this one's memory, and clients their leases. drains: all is written before. */
void world_stop_hot(struct sim *sim, bool drains);
void world_free(struct sim *sim);
/* Some I/O ends, time passes, the engine turns. */
void world_run(struct sim *sim, uint32_t io, uint64_t ns);
/* Until nothing is in flight. */
void world_settle(struct sim *sim);
/* Another budget for one of the pools. */
void world_change_budget(struct sim *sim);
void world_set_budget(struct sim *sim, uint32_t pool, uint64_t dram_bytes, uint64_t cxl_bytes);
void world_check(struct sim *sim);
void world_flip(struct sim *sim);
uint8_t *world_memory(struct sim *sim, const struct tiering_grant *grant);
/* The generation of a piece's copy on a device. 0: it has none, or perhaps another: in memory, or being read into it or into
 * the buffer of what moves to another segment. That one may be from before a bit was flipped. */
uint64_t world_only_copy(const struct sim *sim, const struct object *o, uint32_t part, uint32_t piece);

/* hot.c */
/* Here the process may die, if it was said that it dies in a step. */
void hot_point(void);
/* Runs it. True if it died at one of so many points, and the engine must not be used any more. */
bool hot_dies_in(struct sim *sim, uint64_t points, void (*step)(struct sim *sim));
/* Before the end: what is there, and who will come back. */
void hot_look(struct sim *sim, bool inside);
void hot_look_again(struct sim *sim);
/* While the new engine is opened; and when it has started: what was unanswered is, and all of the rest is there. */
void hot_sessions_return(struct sim *sim);
void hot_resolve(struct sim *sim);

/* payload.c */
struct stamp {
    uint64_t object;
    uint32_t version;
    uint16_t part, piece;
    uint32_t sector;
    uint32_t magic;
};
void payload_fill(void *to, const struct stamp *stamp, uint32_t size_bytes);
/* The first sector that is wrong, or PAYLOAD_GOOD. */
#define PAYLOAD_GOOD UINT32_MAX
uint32_t payload_check(const void *bytes, const struct stamp *stamp, uint32_t size_bytes);
bool payload_is_zero(const void *bytes, uint32_t size_bytes);

/* model.c */
void model_make(struct sim *sim);
bool object_is_tensor(const struct object *o);
static inline bool object_is_published(const struct object *o)
{
    return o->space == SPACE_TENSOR_SHARED;
}
uint8_t object_durability(const struct object *o);
uint32_t object_piece_bytes(const struct object *o, uint32_t piece);
struct tiering_id object_piece_id(const struct sim *sim, const struct object *o, uint32_t part, uint32_t piece);
uint32_t object_all_bits(const struct object *o);
/* May reading it give EBADMSG? What is `cache` is not flushed before the log says that it is there. */
bool object_may_be_bad(const struct sim *sim, const struct object *o);
static inline uint32_t object_bit(uint32_t part, uint32_t piece)
{
    return UINT32_C(1) << (part * SIM_PIECES_MAX + piece);
}
/* The block is not there any more, as somebody saw. Fails if that may not be. */
void block_gone(struct sim *sim, struct object *o, const char *how);
/* It was seen to be there: in what version, its bytes must tell. */
void block_seen(struct sim *sim, struct object *o);
void block_verify(struct sim *sim, struct object *o, uint32_t part, uint32_t piece, uint32_t version,
                  const uint8_t *bytes);
void block_fill(const struct sim *sim, const struct object *o, uint32_t part, uint32_t piece, uint32_t version,
                uint8_t *bytes);
/* Resolves an UNKNOWN block by the bytes of a piece, if that is large enough to tell. */
void block_resolve(struct sim *sim, struct object *o, uint32_t part, uint32_t piece, const uint8_t *bytes);
void block_published(struct sim *sim, struct object *o);
void block_deleted(struct object *o);
/* A piece of a build is gone (aborted, expired). */
void block_unbuilt(struct sim *sim, struct object *o, uint32_t bit);
void commit_may_publish(const struct sim *sim, struct object *o, uint32_t version);
bool block_may_vanish_in_part(const struct sim *sim, const struct object *o); /* cache, or its time is over */
/* What a SYNC that began now would make durable; and that it did. */
void model_sync_began(struct sim *sim, struct sim_sync *y);
void model_sync_acked(struct sim *sim, struct sim_sync *y);
void model_restarted(struct sim *sim, bool clean);
void model_look_all(struct sim *sim);

/* model_tensor.c */
/* What a cell's bytes say of their version. */
uint32_t tensor_cell_seen(const uint8_t *bytes);
void tensor_verify(struct sim *sim, struct object *o, uint32_t piece, uint32_t from, uint32_t to, const uint8_t *bytes);
void tensor_fill(const struct sim *sim, const struct object *o, uint32_t piece, uint32_t from, uint32_t to,
                 uint32_t version, uint8_t *bytes);
/* A reader of a shared tensor: what it sees is the piece at one version, n or later; which. *ret_cell: each cell's. */
uint32_t tensor_look(struct sim *sim, const struct object *o, uint32_t piece, uint32_t from, uint32_t to, uint32_t n,
                     const uint8_t *bytes, uint32_t *ret_cell);
/* The same bytes as when it looked. */
void tensor_look_again(struct sim *sim, const struct object *o, uint32_t piece, uint32_t from, uint32_t to,
                       const uint32_t *cell, const uint8_t *bytes);
void tensor_written(struct tensor_piece *p, uint32_t from, uint32_t to);
/* It was deleted: it begins anew. */
void tensor_reset(struct object *o);
void tensor_vanished(struct sim *sim, struct object *o, const char *how);
void tensor_restarted(struct sim *sim, struct object *o, bool clean);
/* Reads all durable tensors back, and checks that SYNCs were all or nothing. */
void tensors_check_restart(struct sim *sim);
void tensor_sync_began(struct sim *sim, struct sim_sync *y);
void tensor_sync_acked(struct sim *sim, struct sim_sync *y);

/* session.c */
void sessions_begin(struct sim *sim);
void session_begin(struct sim *sim, uint32_t i);
void session_end(struct sim *sim, uint32_t i);
/* For the next process: see world_stop_hot(). */
void session_leave(struct sim *sim, uint32_t i);
struct sim_wait *wait_new(struct sim *sim, enum wait_kind kind, uint32_t session, struct object *o, uint32_t part,
                          uint32_t piece);
void wait_free(struct sim_wait *w);
void wait_cancel(struct sim *sim, struct sim_wait *w, bool timeout);
struct sim_lease *lease_new(struct sim *sim, uint32_t session, struct object *o, uint32_t part, uint32_t piece,
                            enum lease_kind kind, const struct tiering_grant *grant);
/* Ends the lease in one of the ways that its kind allows. */
void lease_finish(struct sim *sim, struct sim_lease *l);
struct sim_lease *lease_any(struct sim *sim, uint32_t session);
/* Deals with all waits that have ended. */
void waits_ended(struct sim *sim);
void waits_expire(struct sim *sim);

/* ops.c, ops_tensor.c */
/* One access to a block; what becomes of it is compared, and a lease may be kept. Patient: it waits where it must. */
void ops_acquire(struct sim *sim, uint32_t session, struct object *o, uint32_t part, uint32_t piece, bool patient);
void ops_client(struct sim *sim);
void block_reserve_result(struct sim *sim, struct object *o, uint32_t part, uint32_t piece, uint32_t session,
                          int status, const struct tiering_grant *grant);
void block_commit_result(struct sim *sim, struct object *o, uint32_t part, uint32_t piece, uint32_t version,
                         int status);
void block_acquire_result(struct sim *sim, struct object *o, uint32_t part, uint32_t piece, uint32_t session,
                          int status, const struct tiering_grant *grant);
/* The same of a wait that has ended. */
void block_acquire_ended(struct sim *sim, struct object *o, const struct sim_wait *w);
void lease_read_verify(struct sim *sim, const struct sim_lease *l);
void tensor_acquire_result(struct sim *sim, struct object *o, uint32_t piece, uint32_t session, bool write,
                           uint32_t version, uint32_t from, uint32_t to, uint32_t n, int status,
                           const struct tiering_grant *grant);
void tensor_writer_forgotten(struct object *o, uint32_t piece, uint32_t version, uint32_t from, uint32_t to);
void tensor_writer_gone(struct sim *sim, struct sim_lease *l, int how); /* 0 clean, 1 dirty, 2 discarded */
/* A dirty release in the shared pool has begun; has ended; was cancelled, and took effect or not. */
void tensor_release_begun(struct object *o, const struct sim_lease *l);
void tensor_release_ended(struct sim *sim, const struct sim_wait *w, int status);
void tensor_release_cancelled(struct sim *sim, const struct sim_wait *w);
void ops_tensor(struct sim *sim, uint32_t session);
void ops_arena(struct sim *sim, uint32_t session);
void ops_gpu(struct sim *sim, uint32_t session);
/* Deals with transfers that have ended; the world was opened: there are none, and the lanes are new. */
void gpu_ended(struct sim *sim);
void gpu_restarted(struct sim *sim);
/* Is it in a transfer? Then it must not end, and that is tried. */
bool gpu_has(struct sim *sim, struct sim_lease *l);
void ops_sync(struct sim *sim);
void ops_sync_tensors(struct sim *sim);
void ops_delete_tensor(struct sim *sim);
void arena_done(struct sim *sim, struct sim_wait *w);
