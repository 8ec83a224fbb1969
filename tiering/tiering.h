/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One engine's decisions: which objects exist, where they live, what must move, who waits. What daemon/ sees of
 * tiering/.
 *
 * Pure: no system calls, no clock, no threads; effects go through io/backend.h and the stores built on it. One
 * instance belongs to one engine thread.
 *
 * The unit is the piece: an object up to piece_bytes is one piece; a larger one is several, each placed, moved and
 * leased by itself. The caller splits ranges into pieces.
 *
 * Calls that may have to wait take a `struct tiering_wait`. They return
 *     0               done at once; *ret_grant is filled, the wait was not used
 *     TIERING_WAIT    done() will be called, from tiering_tick() or a completion, with the grant in wait->grant; the
 *                     wait must stay where it is until then, or until tiering_wait_cancel()
 *     negative errno  refused; grant.limit says which limit (SPW_LIMIT_… values; 0: none)
 * With wait == NULL they never wait: -EAGAIN instead.
 *
 * No list can deadlock another: a caller first reserves lease bytes for its whole list (tiering_admit); leases never
 * exceed what was admitted, and admission stops at the pool's lease limit, so there is always something to evict.
 */
#pragma once

#include "include/base/base.h"
#include "include/base/limits.h"
#include "include/base/list.h"
#include "io/backend.h"
#include "io/store.h"
#include "tiering/policy.h"

#define TIERING_WAIT 1
#define TIERING_CLASSES 5
#define TIERING_LEASE_NONE UINT64_C(0)
#define TIERING_FOREVER UINT64_MAX

struct tiering;

enum tiering_tier { TIERING_NONE = 0, TIERING_DRAM = 2, TIERING_CXL = 3, TIERING_NVME = 4 }; /* as in the ABI */
enum tiering_kind { TIERING_BLOCK, TIERING_TENSOR };

/* Values of the ABI's enum spw_limit that tiering reports. */
enum tiering_limit {
    TIERING_LIMIT_NONE = 0,
    TIERING_LIMIT_POOL_DRAM = 1,
    TIERING_LIMIT_POOL_NVME = 2,
    TIERING_LIMIT_POOL_LEASES = 3,
    TIERING_LIMIT_SESSION_LEASES = 4,
    TIERING_LIMIT_SESSION_BYTES = 5,
    TIERING_LIMIT_OBJECTS = 6,
    TIERING_LIMIT_REQUESTS = 7,
    TIERING_LIMIT_OBJECT_BYTES = 13,
    TIERING_LIMIT_DEVICE_FAILED = 16,
    TIERING_LIMIT_HINTS = 18,
    TIERING_LIMIT_DEVICE_BYTES = 22,
    TIERING_LIMIT_DEVICE_LOG = 23,
    TIERING_LIMIT_UID_LEASES = 24,
};

struct tiering_pool_config {
    char name[NAME_BYTES_MAX + 1];
    bool trusted;
    uint64_t dram_bytes, cxl_bytes, nvme_bytes; /* this engine's share of the budgets */
    uint64_t session_bytes;                     /* that one session may have reserved or leased for writing */
    uint32_t weight;
    uint32_t max_leases_percent;  /* of the memory budget */
    uint32_t user_leases_percent; /* of that, for the sessions of one user; 0: all of it */
    uint64_t write_budget_bytes;  /* to devices, in each write_budget_ns; 0: no limit */
    uint64_t write_budget_ns;
    uint64_t prefetch_bytes; /* that are loaded ahead of use where the order is known; 0: nothing is */
};

/* What can be said of a store while it is open. */
struct tiering_store_config {
    uint32_t weight;             /* at least 1: its share of new data, against the other stores */
    uint64_t write_budget_bytes; /* in each write_budget_ns; 0: no limit */
    uint64_t write_budget_ns;
};

/* Where a class's bytes go when DRAM is short and there is CXL memory. */
enum tiering_placement {
    TIERING_PLACE_ANY,  /* new ones to DRAM: what is coldest there moves to CXL memory */
    TIERING_PLACE_DMA,  /* only DMA touches them: new ones to CXL memory at once */
    TIERING_PLACE_DRAM, /* the CPU touches them all the time: the last to be moved to CXL memory */
};

struct tiering_class_config {
    const struct policy_ops *policy;
    uint8_t durability; /* enum store_durability: the default of the class */
    uint8_t placement;  /* enum tiering_placement */
    uint32_t weight;    /* share of a pool's memory when classes compete */
};

/* What tiering tells its owner. On the engine's thread. */
struct tiering_events {
    /* A chunk exists from now on: sessions of `pool` (all of them; for IO_CHUNK_PRIVATE only `session`) may get it. */
    void (*chunk_new)(void *ctx, uint32_t region, uint32_t epoch, uint32_t pool, enum io_chunk_kind kind,
                      uint64_t session);
    void (*chunk_gone)(void *ctx, uint32_t region, uint32_t epoch);
    /* Something that an admin wants to know; text is static. status: 0 or a negative errno. */
    void (*notice)(void *ctx, const char *text, uint32_t pool, int status);
    /* A flush of this device failed: who else writes there is to be told (tiering_device_distrust()). NULL: nobody does. */
    void (*flush_failed)(void *ctx, uint16_t dev, int why);
    /* What a device has of this piece is not what was put: each time that it is read. store: how many came before its own
     * with tiering_store_add(); pool: UINT32_MAX if its space has gone. NULL: nobody wants to know. */
    void (*damaged)(void *ctx, uint32_t store, uint32_t pool, const struct store_entry *entry);
};

struct tiering_config {
    struct io_backend *backend;
    const struct tiering_pool_config *pools;
    uint32_t n_pools;
    struct tiering_class_config classes[TIERING_CLASSES]; /* by SPW_CLASS_… */
    uint32_t node;                                        /* NUMA node of this engine's DRAM, UINT32_MAX: any */
    /* These are copied. */
    const uint32_t *dram_nodes; /* where to look when `node` has nothing left; may name it, too */
    uint32_t n_dram_nodes;
    const uint32_t *cxl_nodes;
    const uint64_t *cxl_weights; /* of cxl_nodes: their sizes, say; NULL: all alike */
    uint32_t n_cxl_nodes;
    /* Borrowed: tiering_records_bytes(), at a page's beginning. Zeroed; or, if `survived`, what an engine that ended in any
     * way has left there: then what it knew is there again, if the backend still has its chunks. */
    void *records;
    bool survived;
    uint32_t max_objects;
    uint32_t max_leases;
    uint32_t max_moves; /* transfers and waits for room in flight; default 4096 */
    uint32_t clean_percent;
    bool memory_on_demand;    /* chunks are asked for when objects need them, not at start */
    uint64_t chunk_bytes_max; /* 0: no cap but the geometric growth; for tests */
    uint64_t chunk_cap_min;   /* a chunk has at most 1/8 of its pool's memory, or this if it is more; 0: no such cap */
    uint32_t ghosts_max;      /* of a policy: 0: no cap but the policy's own; for tests */
    uint32_t piece_bytes;     /* 0: PIECE_BYTES_MAX; never more, nor more than a segment of the first device */
    uint64_t parts_deadline_ns; /* an object whose parts are not all committed by then goes */
    uint64_t hash_seed;         /* random: clients choose the keys */
    const struct tiering_events *events;
    void *ctx;
};

#define TIERING_RECORD_BYTES 96
#define TIERING_OBJECT_BYTES 128 /* the record, and what is derived beside it */
#define TIERING_RECORD_HEADER_BYTES 4096
#define TIERING_LEASE_BYTES 64

uint64_t tiering_records_bytes(uint32_t max_objects, uint32_t max_leases);

/*
 * Memory that an engine has left, before one is made over it: the sizes to make it with. -EPROTONOSUPPORT, and *ret_why in
 * words, static: it cannot be used.
 */
struct tiering_survivor {
    uint32_t max_objects, max_leases;
};
must_check int tiering_survivor_look(const void *memory, uint64_t size_bytes, struct tiering_survivor *ret_survivor,
                                     const char **ret_why);
/* False: it had no chunk of this number. */
struct tiering_survivor_chunk {
    uint64_t size_bytes;
    uint32_t epoch, node;
    enum io_chunk_kind kind;
};
bool tiering_survivor_chunk(const void *memory, uint32_t region, struct tiering_survivor_chunk *ret_chunk);

must_check int tiering_new(const struct tiering_config *config, struct tiering **ret_tiering);
/* The owner has ended all sessions and waited for all I/O (tiering_idle()). NULL is fine. */
void tiering_free(struct tiering *t);

/* Is it what an engine before has left? Else why not, static; NULL if nothing was left. */
bool tiering_is_warm(const struct tiering *t, const char **ret_why);
/* What came back with it, once it has started. */
struct tiering_warm_counts {
    uint64_t objects, leases, leases_ended; /* ended: their sessions did not come back */
    uint64_t memory_bytes;                  /* of pools and sessions */
    uint64_t redone;                        /* pieces whose way to a device was cut off: dirty again, or logged again */
    uint64_t lost;                          /* pieces whose memory did not come back, and that are nowhere else */
    uint64_t forgotten;                     /* pieces that devices still had, but that were deleted or replaced */
};
void tiering_warm_counts(const struct tiering *t, struct tiering_warm_counts *ret_counts);

/*
 * Opens a partition and brings back what it holds. Before tiering_start(). ret_why as store_open(). If the engine is warm
 * its records are the truth, and what the log has beside them is forgotten. -ESTALE: then it must be the stores that there
 * were before, in the same order; without the memory that was left it can be opened.
 */
must_check int tiering_store_add(struct tiering *t, uint16_t dev, uint16_t partition, uint64_t device_bytes,
                                 const char **ret_why);
/* A flush of the device failed elsewhere (why: negative errno): all stores on it serve only reads from now on, as if it had been
 * theirs. */
void tiering_device_distrust(struct tiering *t, uint16_t dev, int why);
/* Asks for the pools' memory. Progress: bytes that are there, of bytes wanted. Ready when equal (or memory ran out),
 * or at once if memory comes on demand. */
must_check int tiering_start(struct tiering *t);
bool tiering_ready(const struct tiering *t, uint64_t *ret_have_bytes, uint64_t *ret_want_bytes);

/* Timeouts, write-back, room, the stores' own tick. Returns ns until it wants to be called again. */
uint64_t tiering_tick(struct tiering *t, uint64_t now_ns);

/* Towards a clean stop, when no session is left: writes back what may be kept (cache and durable), as far as there is room
 * for it. Tick on until it is true: nothing is left to write that was not tried. */
bool tiering_drain(struct tiering *t);
/* What found no room on a device, or could not be written: it goes with the memory. After tiering_drain(); none where there is no
 * device. */
struct tiering_left {
    uint64_t durable_pieces, durable_bytes; /* that no SYNC has acknowledged */
    uint64_t cache_pieces, cache_bytes;
};
void tiering_drain_left(const struct tiering *t, struct tiering_left *ret_left);
/* Nothing new is begun in the background from now on. Tick on until tiering_idle(). */
void tiering_stop(struct tiering *t);
/* Nothing of it is in flight in the backend. */
bool tiering_idle(const struct tiering *t);
/* Blocking: closes the stores cleanly; after tiering_stop(), when idle. The first error, but tries all. */
must_check int tiering_close_clean(struct tiering *t);

/* Live changes of a pool's numbers (name and trust stay). Less memory takes effect as what is in it moves or goes; what was
 * refused is asked for again. */
void tiering_pool_update(struct tiering *t, uint32_t pool, const struct tiering_pool_config *config);
/* Stores are numbered in the order of tiering_store_add(). */
void tiering_store_update(struct tiering *t, uint32_t store, const struct tiering_store_config *config);
/* class_weights: by SPW_CLASS_…. */
void tiering_update(struct tiering *t, uint32_t clean_percent, const uint32_t class_weights[static TIERING_CLASSES]);

/* What is budgeted. */
enum tiering_budget { TIERING_BUDGET_DRAM, TIERING_BUDGET_CXL, TIERING_BUDGET_NVME, TIERING_BUDGETS };

/* Only the budgets. */
void tiering_pool_budget(struct tiering *t, uint32_t pool, const uint64_t bytes[TIERING_BUDGETS]);

/* What a trade of budgets goes by; cheap. */
struct tiering_pool_memory {
    uint64_t held[TIERING_BUDGETS]; /* bytes taken, or asked for; on devices: used */
    uint64_t used[TIERING_BUDGETS];
    uint64_t pressure[TIERING_BUDGETS]; /* how often room was wanted and there was none */
    uint64_t leased;
    uint64_t uses; /* hits and misses, and what was committed */
    uint64_t waiting;
};
void tiering_pool_memory(const struct tiering *t, uint32_t pool, struct tiering_pool_memory *ret_memory);

/* --- Spaces ------------------------------------------------------------------------------------------------------ */

struct tiering_space_info {
    uint64_t id;
    uint64_t item_bytes;
    uint8_t digest[32];
    uint32_t index; /* handle within this engine */
    uint32_t pool;
    uint32_t piece_bytes;
    uint8_t class_id;
    uint8_t durability; /* enum store_durability, resolved */
};

struct tiering_space_spec {
    uint32_t pool;
    uint64_t item_bytes;
    uint8_t digest[32];
    uint8_t class_id;
    uint8_t durability; /* 0: the class's default, else enum store_durability + 1 */
    bool must_exist;
};

/* The persistent id: the same space has the same on every device and after every restart. Pure. */
uint64_t tiering_space_id(const char *pool, const uint8_t *digest);
/* -ENOENT, -EINVAL (exists with other properties), -ENOSPC (SPACES_MAX). */
must_check int tiering_space_open(struct tiering *t, const struct tiering_space_spec *spec,
                                  struct tiering_space_info *ret_info);
/* For listing: the index-th space that exists, false at the end. */
bool tiering_space_at(const struct tiering *t, uint32_t index, struct tiering_space_info *ret_info);

/* --- Sessions and owners ----------------------------------------------------------------------------------------- */

/* Embedded in the daemon's session (one for each engine that it uses). Fields are tiering's own. */
struct tiering_session {
    struct list link;
    uint64_t number; /* of the session, for chunk_new() */
    uint64_t owner;
    uint32_t user;        /* row of its account */
    uint32_t first_lease; /* list through the lease table */
    uint32_t n_leases, max_leases;
    uint32_t ending;
    struct list arenas;                /* private memory */
    const struct policy *chain_policy; /* which `chain` is of */
    struct policy_chain chain;         /* the request that it is at */
};

/* Before a warm engine's tiering_start(): one with this number has come back, and has what it had. */
void tiering_session_init(struct tiering *t, struct tiering_session *s, uint64_t number, uint64_t owner,
                          uint32_t max_leases);
/* Right after that: whose it is. What the sessions of one user have is bounded together (user_leases_percent). */
void tiering_session_user(struct tiering *t, struct tiering_session *s, uint64_t name);
/* What the user of that session has here, in all pools; percent: of what it may have leased, where it has most. */
struct tiering_user_stat {
    uint64_t leased, private;
    uint32_t percent;
};
void tiering_user_stat(const struct tiering *t, const struct tiering_session *s, struct tiering_user_stat *ret_stat);
/* Releases and aborts everything; torn write leases revert. The daemon has cancelled the session's waits. Memory that
 * I/O still uses is freed when the I/O ends: the struct itself may go at once. */
void tiering_session_end(struct tiering *t, struct tiering_session *s);
/* Sessions leave from now on, for the engine that comes after this one. Before their waits are cancelled: what they were to
 * end is then left as it is. */
void tiering_leave(struct tiering *t);
/*
 * Instead of its end: its leases, and what it holds in private memory, are left to the engine that comes after this one. Of
 * this one there is only tiering_stop() and what follows it to come.
 */
void tiering_session_leave(struct tiering *t, struct tiering_session *s);
/* What the lease was granted for, in the owner's numbers (not 0); to be said before the client is told. */
void tiering_lease_request(struct tiering *t, struct tiering_session *s, uint64_t lease, uint64_t request);
/* Of a session that came back: ends the leases that were granted for these requests (in ascending order), as if they never
 * had been: its client has had no answer. Those of which no request was said have ended with the start. */
void tiering_session_lost(struct tiering *t, struct tiering_session *s, const uint64_t *requests, size_t n);
/* The owner's last session is gone and its linger time over: `scratch` objects go. */
void tiering_owner_end(struct tiering *t, uint64_t owner);

/* --- Objects ----------------------------------------------------------------------------------------------------- */

/* One piece of one object. */
struct tiering_id {
    uint8_t key[KEY_BYTES_MAX]; /* zero-padded */
    uint32_t space;             /* index */
    uint32_t group;
    uint32_t piece;
    uint16_t part;
    uint16_t n_parts; /* at least 1 */
    uint8_t key_len;
    uint64_t hash; /* 0, or what tiering_warm_index() found it to be; of all of the above but n_parts */
};

/*
 * For lists: memory is slow, and a list's objects lie anywhere in it. What finding an object will read is on its way to
 * the cache after these, so a caller warms the index for a few elements, then the records, and then serves them. Hints:
 * nothing depends on them. _index keeps the hash in *id; who changes the id afterwards sets that to 0.
 */
void tiering_warm_index(const struct tiering *t, struct tiering_id *id);
void tiering_warm_record(const struct tiering *t, const struct tiering_id *id);
void tiering_warm_neighbours(const struct tiering *t, const struct tiering_id *id);
/* The same for a lease's handle: the lease, then the record that it names. */
void tiering_warm_lease(const struct tiering *t, uint64_t lease);
void tiering_warm_leased(const struct tiering *t, uint64_t lease);

struct tiering_grant {
    uint64_t lease; /* handle, or TIERING_LEASE_NONE */
    uint32_t region, epoch;
    uint64_t offset_bytes;
    uint32_t length_bytes; /* of this extent (the requested range of the piece) */
    uint32_t limit;        /* enum tiering_limit, on failure */
    uint8_t tier;          /* enum tiering_tier: where it was found */
    bool fetched;
};

struct tiering_wait {
    struct list link;
    void (*done)(struct tiering_wait *wait, int status);
    struct tiering_grant grant;
    /* Tiering's own. */
    struct tiering_session *session_;
    uint32_t object_;
    uint32_t move_;
    uint32_t off_, len_;
    uint8_t mode_;
};

/* True: it will not be done; false: it was done already. */
bool tiering_wait_cancel(struct tiering *t, struct tiering_wait *wait);

/* Reserves (or, with give = true, returns) lease bytes in the pool for a list. -ENOSPC, *ret_limit says which limit. */
must_check int tiering_admit(struct tiering *t, struct tiering_session *s, uint32_t pool, uint64_t bytes,
                             uint32_t *ret_limit);
void tiering_unadmit(struct tiering *t, struct tiering_session *s, uint32_t pool, uint64_t bytes);
/* False: not even if nothing else were leased. */
bool tiering_may_admit(const struct tiering *t, const struct tiering_session *s, uint32_t pool, uint64_t bytes);

struct tiering_found {
    uint64_t object_bytes;
    uint32_t size_bytes; /* of the piece */
    uint8_t tier;
    uint8_t kind;
    bool pending; /* being written by someone, or being read */
};

/* 0, -ENOENT, -EINPROGRESS (reserved, not committed). Counts as no use. */
int tiering_lookup(const struct tiering *t, const struct tiering_id *id, struct tiering_found *ret_found);

/* Room for a new block's piece: size_bytes of an object of object_bytes. -EEXIST, -EINPROGRESS, -EINVAL (parts differ
 * from the first RESERVE's), -ENOSPC. */
int tiering_reserve(struct tiering *t, struct tiering_session *s, const struct tiering_id *id, uint64_t object_bytes,
                    uint32_t size_bytes, struct tiering_wait *wait, struct tiering_grant *ret_grant);
/* Publishes. -EBADF: not a reservation of this session. -EBUSY: see tiering_dma. -ENOSPC. 0 also if the object is complete only later (parts). */
int tiering_commit(struct tiering *t, struct tiering_session *s, uint64_t lease, struct tiering_wait *wait,
                   struct tiering_grant *ret_grant);
int tiering_abort(struct tiering *t, struct tiering_session *s, uint64_t lease);

enum { TIERING_WRITE = 1 << 0, TIERING_NO_FETCH = 1 << 1, TIERING_NOT_ADMITTED = 1 << 2 };
/*
 * A lease on [off, off + len) of the piece; len 0: all of it. -ENOENT, -EINPROGRESS, -EBADMSG, -EIO, -ENOSPC, -EROFS
 * (a block for writing), -EBUSY (too many write leases), -ERANGE.
 *
 * For writing in a shared pool the lease is on a copy of the range in private memory of the session's, which takes a
 * while; nobody else sees it before it is released dirty. Whoever reads the piece then goes on reading what it was.
 */
int tiering_acquire(struct tiering *t, struct tiering_session *s, const struct tiering_id *id, uint32_t off_bytes,
                    uint32_t len_bytes, unsigned flags, struct tiering_wait *wait, struct tiering_grant *ret_grant);
/* UNUSED: the lease came to nothing, and is no use of the object. */
enum { TIERING_DIRTY = 1 << 0, TIERING_DISCARD = 1 << 1, TIERING_UNUSED = 1 << 2 };
/*
 * Ends a lease. DIRTY in a shared pool publishes what was written, and has to wait for room and a copy (-EAGAIN without a
 * wait): then the lease has ended at once, and if the wait ends with an error (-ENOSPC, -EFAULT) the piece is what it was.
 * A wait that is cancelled leaves the one or the other. -EBUSY: see tiering_dma.
 */
int tiering_release(struct tiering *t, struct tiering_session *s, uint64_t lease, unsigned flags);
int tiering_release_wait(struct tiering *t, struct tiering_session *s, uint64_t lease, unsigned flags,
                         struct tiering_wait *wait, struct tiering_grant *ret_grant);
/* How many bytes a lease was admitted for; and the pool. -EBADF. */
int tiering_lease_info(const struct tiering *t, const struct tiering_session *s, uint64_t lease,
                       struct tiering_grant *ret_grant, uint32_t *ret_pool);

/*
 * A list whose items are each the prefix of the next, before any of them is asked for: policies that live on requests
 * learn from it. begin() is false if the space's does not; else add each item with as many pieces as are meant, in order,
 * and end. Nothing else of tiering is called in between. LIST_ITEMS_MAX pieces count.
 */
bool tiering_chain_begin(struct tiering *t, struct tiering_session *s, uint32_t space, enum policy_use use);
void tiering_chain_add(struct tiering *t, const struct tiering_id *id, uint32_t n_pieces);
void tiering_chain_end(struct tiering *t);

/*
 * The order in which pieces of a space will be asked for, again and again, for a policy that plans; each space may have one,
 * which goes with the last of its pieces. It may come in several
 * lists: begin each with how many items came before it (-ESTALE: it was not so many of this session and space, as when another
 * session has begun one), add the pieces in order (-E2BIG: PLAN_ACCESSES_MAX), and pause, with how many items there are by
 * now, or end. Nothing else of tiering is called in between but lookups. A list that is neither paused nor ended was in vain,
 * and what came before it too.
 * end() returns how many accesses the policy follows from now on; 0 if it does not plan, or if no pieces were added: that takes
 * the order back. -E2BIG: the policy has no room for so many, and goes on as it did; -ENOSPC: PLANS_MAX spaces that are not
 * empty have one, likewise.
 */
int tiering_plan_begin(struct tiering *t, const struct tiering_session *s, uint32_t space, uint64_t items_before);
int tiering_plan_add(struct tiering *t, const struct tiering_id *id);
void tiering_plan_pause(struct tiering *t, const struct tiering_session *s, uint64_t items);
int tiering_plan_end(struct tiering *t);

/* --- Sizing: of what there is not yet; no engine is asked --- */

/* Objects of one size. */
struct tiering_manifest_entry {
    uint64_t size_bytes, count; /* of each, OBJECT_BYTES_MAX at most; how many there are */
    uint32_t slots;             /* leased at once */
    bool writes;                /* for writing */
};
struct tiering_sizing_limits {
    bool trusted;
    uint64_t memory_bytes, device_bytes; /* that one space may have of the pool */
    uint64_t session_bytes;
    uint32_t max_leases_percent, user_leases_percent, session_leases;
    uint32_t piece_bytes;
};
struct tiering_sizing {
    uint64_t leased_bytes;   /* all slots at once, pieces in whole sectors */
    uint64_t leasable_bytes; /* what one user may lease */
    uint64_t memory_bytes;   /* with so much of the pool's memory they may be leased, and slabs hold them */
    uint64_t private_bytes;  /* of a session, in a shared pool: what is written */
    uint64_t stored_bytes;   /* all objects */
    uint64_t leases;
    uint32_t limit; /* enum tiering_limit: the first that does not allow it */
};
/* n: SIZING_ENTRIES_MAX at most. -E2BIG: sums that no machine has. */
int tiering_sizing(const struct tiering_sizing_limits *limits, const struct tiering_manifest_entry *entries, uint32_t n,
                   struct tiering_sizing *ret_sizing);

int tiering_touch(struct tiering *t, const struct tiering_id *id);
/* Into memory; takes no lease. */
int tiering_prefetch(struct tiering *t, const struct tiering_id *id, struct tiering_wait *wait,
                     struct tiering_grant *ret_grant);
enum tiering_advice { TIERING_NOT_AGAIN = 1, TIERING_USES_LEFT = 2, TIERING_KEEP_UNTIL = 3, TIERING_SCORE = 4 };
/*
 * Hints: a bounded amount of work, and never more than a hint. -ENOSPC: TIMED_PINS_MAX, COUNTED_OBJECTS_MAX.
 *   NOT_AGAIN   leaves memory now, or as soon as nothing holds it, unless it is used before
 *   USES_LEFT   each lease and each tiering_get_to() from now on is a use; when value uses were had and nothing holds it,
 *               a `cache` or `scratch` object is freed, a `durable` one leaves memory. Each piece and part has its own
 *               count, and the last of them to be spent frees the object. Above UINT32_MAX: no longer counted
 *   KEEP_UNTIL  as tiering_pin(), for value ns from now on
 *   SCORE       the larger (by powers of two, up to 32), the more often the piece is passed over when the policy would
 *               evict it, each time once; 0: not at all
 */
int tiering_advise(struct tiering *t, const struct tiering_id *id, enum tiering_advice advice, uint64_t value,
                   uint64_t now_ns);
int tiering_pin(struct tiering *t, const struct tiering_id *id, uint64_t until_ns);
/* Parts and pieces that calls went over for the sake of another one of the object, ever: what a call takes grows with them. */
uint64_t tiering_walked(const struct tiering *t);
/* All parts and pieces of the object. Leases on it stay good until they are released. */
int tiering_delete(struct tiering *t, const struct tiering_id *id);

/* Opens or creates a tensor of object_bytes; -EINVAL: it exists with another size, or is a block; -ENOSPC: there are not as many
 * records as it has pieces. */
int tiering_tensor(struct tiering *t, struct tiering_session *s, const struct tiering_id *id, uint64_t object_bytes);

/*
 * Makes a set of one space durable; of its tensors, atomically. Begin, add each piece (-ENOENT and so on), then run:
 * done() will be called. tiering_sync_add_space() adds every durable piece of the space. It fails with -EBUSY if a
 * write lease is held on a changed piece, -EBADMSG if one is torn; then nothing of it took effect.
 */
struct tiering_sync {
    void (*done)(struct tiering_sync *sync, int status);
    /* Tiering's own. */
    struct list link_;
    struct list refs_; /* of tensors' pieces that were written for it */
    struct tiering *t_;
    struct store_sync store_sync_;
    uint32_t pending_;
    uint32_t space_;
    uint32_t txn_;
    int status_;
    uint32_t limit_; /* met by the first piece that was refused with -ENOSPC */
    bool running_;
    bool walks_; /* it is for a whole space, and has not seen all of it */
};
void tiering_sync_begin(struct tiering *t, struct tiering_sync *sync, uint32_t space);
int tiering_sync_add(struct tiering *t, struct tiering_sync *sync, const struct tiering_id *id);
int tiering_sync_add_space(struct tiering *t, struct tiering_sync *sync);
void tiering_sync_run(struct tiering *t, struct tiering_sync *sync);

/*
 * Which limit it is, after -ENOSPC. Of room: TIERING_LIMIT_POOL_DRAM, or what the devices lack if that is why nothing
 * leaves the pool's memory. Of a SYNC: what the space's device lacked when it refused a piece.
 */
uint32_t tiering_room_limit(const struct tiering *t, uint32_t pool);
uint32_t tiering_sync_limit(const struct tiering_sync *sync);

/*
 * Between a block's piece and bytes of a write-leased (get) or leased (put) tensor range. No lease is taken on the
 * block; bytes move by workers, or straight from the device. dst/src is the lease's extent plus off_bytes.
 */
int tiering_get_to(struct tiering *t, struct tiering_session *s, const struct tiering_id *id, uint64_t lease,
                   uint64_t off_bytes, uint32_t len_bytes, struct tiering_wait *wait, struct tiering_grant *ret_grant);
int tiering_put_from(struct tiering *t, struct tiering_session *s, const struct tiering_id *id, uint64_t lease,
                     uint64_t off_bytes, uint32_t len_bytes, struct tiering_wait *wait,
                     struct tiering_grant *ret_grant);

/*
 * Between leases' bytes and a slot of a GPU's staging memory: the whole of each lease, in the order in which they were
 * added. Begin, add each lease, then run: done() will be called, or abandon. begin() and add() move nothing; a request that
 * is refused abandons.
 *
 * From add() to done() a lease cannot end: COMMIT, ABORT and RELEASE are -EBUSY. If its session ends meanwhile the lease
 * lives on without it: a reservation's piece is gone at once for everybody, and its bytes, like the other leases' pieces
 * and extents, stay where they are, and admitted, until done(); then the lease ends as it would have with the session.
 *
 * A spill writes what the lease is on. On a reservation that is the client's business: what it commits is what is there. A
 * write lease that was spilled into ends as if DIRTY, unless DISCARD, whatever RELEASE says. After a spill that failed
 * nobody knows the range: a RELEASE without DISCARD leaves the piece torn, until all of it is written; another spill into
 * the same lease that does not fail mends that. In shared pools reservations and write leases are on private memory: COMMIT
 * and a dirty RELEASE copy from there, what was spilled and not released dirty is nobody's, and a dirty RELEASE after a
 * spill that failed is -EIO, which has ended the lease and changed nothing.
 */
struct tiering_dma_spec {
    uint8_t op; /* IO_DMA_SPILL, IO_DMA_FETCH, or IO_DMA_CANCEL: run() without a lease */
    uint32_t gpu, lane;
    uint32_t pool;       /* the lane's */
    uint64_t slot_bytes; /* that there are for it */
    uint64_t base_bytes; /* where in the allocation of a direct lane it begins */
    uint64_t seq;
    uint64_t expires_ns;
};

struct tiering_dma {
    void (*done)(struct tiering_dma *dma, int status);
    uint64_t bytes; /* of all leases */
    uint32_t n_leases;
    /* Tiering's own. */
    struct io_dma io_;
    struct io_dma_run last_; /* the run that is being added to */
    struct tiering *t_;
    uint64_t slot_bytes_;
    uint32_t pool_;
    uint32_t first_lease_, last_lease_; /* a list through the lease table */
    uint32_t next_lease_;               /* whose bytes are told next */
};
/* Leaves `done` alone. */
void tiering_dma_begin(struct tiering *t, struct tiering_dma *dma, const struct tiering_dma_spec *spec);
/* -EBADF; -EXDEV: a lease in another pool; -EBUSY: it is in a transfer; -EROFS: a spill, and a lease to read; -EINVAL: more
 * than a slot has. At most LIST_ITEMS_MAX. */
must_check int tiering_dma_add(struct tiering *t, struct tiering_dma *dma, const struct tiering_session *s,
                               uint64_t lease);
void tiering_dma_abandon(struct tiering *t, struct tiering_dma *dma);
/* Of at least one lease, but for a CANCEL. */
void tiering_dma_run(struct tiering *t, struct tiering_dma *dma);

/* --- Numbers ----------------------------------------------------------------------------------------------------- */

/* A write budget, and what came of it. All of it sums. */
struct tiering_writes {
    uint64_t day_bytes; /* allowed in a day; 0: no limit */
    uint64_t used_bytes;
    uint64_t over_bytes;             /* of these, written though the budget was used up */
    uint64_t dropped, dropped_bytes; /* `cache` pieces that were not written because of it */
};

struct tiering_pool_stat {
    uint64_t dram_budget, dram_chunks, dram_used; /* used: extents in use, rounded to sectors */
    uint64_t dram_slabs, dram_tail_waste;         /* memory given to sizes, and what of it no extent can use */
    uint64_t dram_round_waste;                    /* extents in use, less what was asked for */
    uint64_t dram_closing;                        /* of dram_chunks: being emptied, to be given back */
    uint64_t cxl_budget, cxl_chunks, cxl_used, cxl_closing, cxl_round_waste;
    uint64_t dram_missing, cxl_missing; /* of the budget: refused, and asked for again now and then */
    uint64_t nvme_budget, nvme_used;
    uint64_t leased, admitted, dirty;
    uint64_t objects, resident;
    uint64_t hits_dram, hits_cxl, hits_nvme, misses;
    uint64_t hits_loading; /* of hits_nvme: the load had begun before they asked */
    uint64_t commits, commit_bytes;
    uint64_t evictions, drops, spills, spill_bytes, loads, load_bytes, prefetches;
    uint64_t demotions, promotions; /* from DRAM to CXL memory, and back */
    uint64_t evacuations;           /* out of memory that was given back */
    uint64_t waiting;               /* for room */
    uint64_t gpu_spilled_bytes, gpu_fetched_bytes;
    uint64_t plan_accesses, plans, deviations; /* of the orders that its classes follow: see struct policy_stat */
    uint64_t prefetched, prefetched_used, prefetched_wasted; /* loads begun for an order; used since; gone before */
    struct tiering_writes writes;
};
void tiering_pool_stat(const struct tiering *t, uint32_t pool, struct tiering_pool_stat *ret_stat);

struct tiering_stat {
    uint64_t objects, objects_max;
    uint64_t leases, leases_max;
    uint64_t moves, moves_max;
    uint64_t record_bytes, index_bytes, ghost_bytes, lease_bytes; /* metadata: an object's; in all; in all; in all */
    uint64_t copied_bytes;                                        /* by workers: what shared pools cost, and ranges */
    uint64_t migrated_bytes;                                      /* by workers, from memory to memory of one pool */
    uint64_t bounced_bytes;                                       /* into bounce segments */
    uint64_t evacuated, evacuated_looks; /* pieces that left segments that are emptied; how often one was looked at */
    uint64_t sync_looks;                 /* how often a SYNC of a whole space looked at a piece */
    uint64_t refused_bytes;              /* memory that could not be had when it was first asked for */
    uint32_t stores;
};
void tiering_stat(const struct tiering *t, struct tiering_stat *ret_stat);
void tiering_store_stat(const struct tiering *t, uint32_t store, struct store_stat *ret_stat);
void tiering_store_writes(const struct tiering *t, uint32_t store, struct tiering_writes *ret_writes);

/* For tests and the simulator: counts that must agree are recounted from the records. Returns 0, or -EUCLEAN with
 * *ret_what naming the first that does not. */
int tiering_check(const struct tiering *t, const char **ret_what);
