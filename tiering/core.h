/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to tiering/: the state of one engine's tiering, and the functions that its files share.
 *
 *   tiering.c   start, stop, tick, configuration of pools
 *   object.c    births and deaths of records; groups of parts and pieces
 *   dirty.c     what a SYNC of a whole space must look at
 *   room.c      memory for a piece: extents, the queue of those who wait for room; private memory of sessions
 *   chunk.c     the pools' memory: asking for it, and giving it back
 *   evict.c     who has to go: eviction, and writing ahead of need
 *   migrate.c   from one memory extent to another: demotion, promotion, evacuation
 *   move.c      transfers: load, spill, copy; one step function
 *   urge.c      transfers that a client has come to wait for
 *   place.c     which device takes a piece; write budgets
 *   chain.c     what requests name, for the policies
 *   plan.c      the order of accesses that a session declares, for the policies
 *   sizing.c    what leases would take, by arithmetic alone
 *   lease.c     leases and admission; sessions' ends
 *   ops.c       the operations that sessions ask for: new blocks, tensors, lookup, deletion
 *   access.c    the same: leases on what is there
 *   advice.c    the same: pins, scores, uses that are left
 *   extent.c    extents that are held for themselves
 *   publish.c   tensors that are written in shared pools: private copies, and their way back
 *   range.c     blocks to and from a tensor's range
 *   gpu.c       leases whose bytes a GPU's copy engine reads or writes
 *   sync.c      durability of a set
 *   recover.c   stores: replay, adoption, checkpoints
 *   truth.c     the layout of memory that outlives the process
 *   warm.c      a new process over it: what is derived is derived again
 *   reconcile.c the same: what the devices' logs say beside the records
 *   evacuate.c  the emptying of segments
 *   drain.c     what is written back before a stop
 *   relocate.c  from one segment to another, through a buffer
 *   stat.c      numbers and the self-check
 */
#pragma once

#include "include/base/base.h"
#include "include/base/list.h"
#include "io/store.h"
#include "tiering/arena.h"
#include "tiering/budget.h"
#include "tiering/policy.h"
#include "tiering/record.h"
#include "tiering/tiering.h"
#include "tiering/truth.h"

#define MOVE_NONE UINT32_MAX
#define STORE_NONE UINT8_MAX
/* Writes ahead of need: how many spills may be in flight (SPILLS_FEW of any size; more while they are small, and half of
 * the moves are free), how far ahead of the next victim to look, and after how many loads it is worth looking again: it
 * takes hundreds of records. */
#define SPILLS_FEW 64
#define SPILLS_MAX 256
#define SPILLS_BYTES_MAX (16 * MIB)
#define CLEAN_AHEAD 256
#define KNOWN_AHEAD 4 /* accesses, where a policy knows them */
#define LOOK_EVERY 16
/* Steps of background work in one tick. */
#define TICK_STEPS 64
/* Of one pool: pieces on their way from one extent to another, and those in CXL memory that wait for their promotion. */
#define MIGRATIONS_MAX 32
#define PROMOTIONS_MAX 64

/* Index of what a pool has for each kind of memory. MEM_PRIVATE: of a session, no tier of the pool. */
enum mem_tier { MEM_DRAM, MEM_CXL, MEM_TIERS, MEM_PRIVATE = MEM_TIERS };

enum lease_mode { LEASE_FREE, LEASE_READ, LEASE_WRITE, LEASE_RESERVE };

/*
 * It lies in memory that outlives the process (truth.h): all but what is marked as derived is the truth. `mode` is
 * stored last when one is made, and first when it ends.
 */
struct lease {
    uint32_t generation; /* first: lease_new() */
    uint32_t object;
    uint32_t next, prev; /* derived. Of the session's; `next` also links free ones */
    uint32_t off_bytes, len_bytes;
    struct tiering_session *session; /* derived. NULL: that has ended, or did not come back yet */
    uint64_t number;                 /* the session's */
    uint64_t request;                /* the owner's: what it was granted for; 0: not said yet */
    uint32_t sector;                 /* with `region`: where the extent is that it is on */
    uint16_t region;
    uint8_t mode;
    uint8_t tier;      /* derived. enum mem_tier: where the bytes are */
    bool is_own : 1;   /* the extent is a writer's own, in private memory */
    bool holds : 1;    /* derived. It holds its extent (extent.c) */
    bool in_move : 1;  /* derived. It ends with the move that copies what it covers: nobody else can use it */
    bool in_dma : 1;   /* derived. gpu.c */
    bool in_spill : 1; /* in a transfer that writes its bytes, or, of a process that has died, was */
    bool spilled : 1;  /* its bytes were written */
    bool torn : 1;     /* and not to the end */
    uint16_t user;     /* derived. user.c: on whose account it is */
    uint32_t next_dma; /* derived */
};
static_assert(sizeof(struct lease) == TIERING_LEASE_BYTES, "a cache line");

enum move_kind {
    MOVE_RESERVE,  /* a new piece waits for room */
    MOVE_LOAD,     /* from a device, or zeros, into memory */
    MOVE_SPILL,    /* from memory to a device */
    MOVE_COMMIT,   /* from private to shared memory */
    MOVE_GET,      /* from a device or memory into a leased tensor range */
    MOVE_PUT,      /* from a leased tensor range into new memory, then committed */
    MOVE_MIGRATE,  /* from one extent of the pool's memory to another */
    MOVE_FILL,     /* a tensor's range in a shared pool to its writer's private memory */
    MOVE_PUBLISH,  /* and back, with the rest of the piece, to new shared memory */
    MOVE_RELOCATE, /* from one segment to another, through the relocations' buffer */
};

/*
 *   IDLE ──▶ ROOM ──▶ BUSY ──▶ IDLE      wants memory, transfers, is done
 *     └───────────────▶┘                 got memory at once, or needs none
 * move_set_phase() is the one place that assigns it.
 */
enum move_phase { MOVE_IDLE, MOVE_ROOM, MOVE_BUSY };

enum move_io { MOVE_IO_NONE, MOVE_IO_GET, MOVE_IO_PUT };

struct move {
    struct list link;    /* pool's room queue, spills or migrations, or free list */
    struct list waiters; /* struct tiering_wait */
    struct tiering *t;
    uint32_t object;
    uint32_t pool;
    struct arena_chunk *chunk; /* where the bytes go (MOVE_COMMIT, MOVE_LOAD, MOVE_MIGRATE) */
    uint32_t sector;
    struct list syncs;  /* MOVE_SPILL: struct sync_ref */
    uint32_t lease;     /* MOVE_COMMIT, MOVE_PUBLISH: it ends with the move */
    uint32_t other;     /* MOVE_GET, MOVE_PUT: the tensor's piece; MOVE_RELOCATE: its slot in the ring */
    struct io_buf from; /* MOVE_PUT: where its bytes are */
    /* MOVE_FILL, MOVE_PUBLISH: the range in the piece. */
    uint32_t off_bytes, len_bytes;
    /* An extent that it holds (extent.c), if `held`. MOVE_GET, MOVE_PUT: the lease's; MOVE_FILL: the piece's;
     * MOVE_PUBLISH: the writer's. */
    uint32_t held_sector;
    uint16_t held_region;
    bool held;
    uint8_t step; /* MOVE_PUBLISH: copies done */
    struct tiering_session *session;
    uint8_t kind, phase, store;
    uint8_t io;       /* enum move_io: what is in flight at a store */
    bool leaves_dram; /* MOVE_MIGRATE: for CXL memory */
    bool is_asked;    /* MOVE_LOAD: its policy knows that somebody wants it now */
    union {
        struct store_put put;
        struct store_get get;
        struct io_work work;
    };
};

/* Where a policy sits: the context of its find(). */
struct policy_seat {
    const struct tiering *tiering;
    uint32_t pool;
    uint8_t class_id;
};

/* The list that tiering_chain_begin() began. */
struct chain_naming {
    struct policy_ref *refs; /* LIST_ITEMS_MAX */
    uint32_t n;
    struct tiering_session *session;
    struct policy *policy;
    enum policy_use use;
};

/* The order that tiering_plan_begin() began. */
struct plan_telling {
    uint32_t *hashes; /* lower halves; PLAN_ACCESSES_MAX */
    uint32_t n_accesses, space;
    uint64_t n_items;                      /* of the lists so far */
    const struct tiering_session *session; /* whose next list goes on; NULL: nobody's */
};

/* Is what a policy gives no hope worth a device's room? Of lately; see evict.c. */
struct hopes {
    uint32_t offered, found;     /* dirty pieces that left memory; loads of what was not tried */
    uint32_t tried, tried_found; /* pieces without hope that were written all the same; loads of them */
};

/* A tier of which no node gave more: the pool goes on with what it has, and asks again. */
struct shortage {
    bool is_on;
    bool asks;                     /* it has asked again, and knows no answer yet */
    uint64_t retry_ns, backoff_ns; /* the next time; from that to the one after it */
};

struct tpool {
    struct tiering_pool_config config;
    struct arena arenas[MEM_TIERS];
    struct policy *policies[TIERING_CLASSES];     /* of what is in DRAM */
    struct policy *cxl_policies[TIERING_CLASSES]; /* of what is in CXL memory; NULL on a machine without */
    struct policy_seat seats[TIERING_CLASSES];    /* of policies */
    uint64_t class_sectors[MEM_TIERS][TIERING_CLASSES];
    struct list room;       /* moves that wait for memory, first come first served */
    struct list spills;     /* MOVE_SPILL in flight */
    struct list migrations; /* MOVE_MIGRATE in flight */
    uint64_t want_chunks[MEM_TIERS], asked_chunks[MEM_TIERS];
    uint64_t refused_nodes[MEM_TIERS]; /* bit set: that of the tier's nodes gave no memory */
    struct shortage shortage[MEM_TIERS];
    uint64_t admitted_bytes;
    uint64_t leased_bytes[MEM_TIERS];
    uint64_t pressure[MEM_TIERS];     /* how often room was wanted and there was none */
    uint64_t leaving_sectors;         /* of migrations out of DRAM */
    uint64_t migrate_ns;              /* not before: a copy has failed */
    uint64_t promote_bytes;           /* that may still be promoted until the next slow tick */
    uint32_t promote[PROMOTIONS_MAX]; /* records that may deserve it, a ring */
    uint32_t promote_first, n_promote;
    uint32_t migrating;
    uint64_t evictions_seen; /* at the last look for what to clean */
    uint64_t unsynced_bytes; /* changed pieces of durable tensors: only a SYNC can let them go */
    uint32_t spilling;
    uint64_t spilling_bytes;
    uint32_t n_unlooked;              /* loads since look_ahead was last set by one */
    uint32_t stuck_object[MEM_TIERS]; /* evicting did not help it: other sizes, or leases, are in the way */
    bool look_ahead;
    struct hopes hopes;
    uint32_t stuck;   /* enum tiering_limit: why the last victim could not be written; 0: nothing is in the way */
    uint64_t vain_ns; /* since then nobody got room, as what has it is a failed device's; 0: it is not like that */
    struct budget writes;
    struct tiering_pool_stat stat;
};

/* What a SYNC of a whole space must look at, and how far one has come; see dirty.c. */
struct dirty {
    uint32_t head;               /* record, or RECORD_NONE */
    uint32_t n;                  /* in the ring */
    uint32_t n_torn;             /* COMMITTED and RECORD_TORN, in the ring or not */
    uint32_t next;               /* the walk's: the first that it has not seen, or RECORD_NONE */
    uint32_t n_left;             /* of those, so many may have been there when it began */
    struct tiering_sync *walker; /* NULL: no walk */
};
#define DIRTY_INIT ((struct dirty){.head = RECORD_NONE, .next = RECORD_NONE})

struct space {
    struct tiering_space_info info;
    char pool_name[NAME_BYTES_MAX + 1]; /* also of a pool that is no longer configured */
    uint64_t n_objects;
    struct dirty dirty;            /* of a durable space */
    struct tiering_sync *txn_sync; /* the one SYNC that writes tensors of this space now */
    uint8_t home;                  /* durable: the one store that has its pieces, or STORE_NONE */
    bool known_to_store[DEVICES_MAX];
};

/*
 * What lies in a segment: a ring of records and one of shadows. While it is being emptied, those that were not looked at
 * come first; see evacuate.c.
 */
struct tsegment {
    uint32_t head;    /* record, or RECORD_NONE */
    uint32_t seen;    /* the first that is on its way out, or busy: it and all that follow are. RECORD_NONE: none */
    uint32_t shadows; /* slot of the first shadow whose entry lies in it, SHADOW_NONE: none */
};

/* The store empties a few segments of each pool, and of the whole, at once; more wait in the store. */
#define EVACUATIONS_MAX (STORE_EVACUATIONS_MAX * (POOLS_MAX + 1))

struct tstore {
    struct store *store;
    struct tiering *tiering;
    uint16_t dev; /* the backend's number of its device */
    uint8_t number;
    struct tsegment *segments;
    uint32_t n_segments;
    uint32_t evacuating[EVACUATIONS_MAX]; /* segments being emptied, first come first served */
    uint32_t n_evacuating;
    uint64_t evacuate_ns; /* not before: something there could not be moved */
    uint32_t weight;
    int64_t turn; /* what it has earned of new data, less what it took */
    struct budget writes;
    uint64_t log_charged_bytes;
    bool failed;
    bool room_wanted;               /* a put found no room; until the store says that there may be some */
    bool pool_waits[POOLS_MAX + 1]; /* whose */
};

/* Pieces and parts of an object whose reservation has begun and that is not complete. */
struct group {
    uint64_t hash; /* of the identity without part and piece; 0: free */
    uint64_t deadline_ns, object_bytes;
    uint32_t members, committed, wanted; /* records of it; of these committed; when it is whole */
    uint32_t space, group;
    uint16_t n_parts;
    uint8_t key_len, key[KEY_BYTES_MAX];
};
#define GROUPS_MAX 65536

/*
 * A piece of a durable tensor that is being changed. `entry` is what a crash would find: the last durable copy, which a
 * checkpoint writes. `pending` was written by a SYNC that has not committed: it takes entry's place then. Both are
 * dropped when a SYNC has made what came after them durable.
 */
struct shadow {
    struct store_entry entry, pending;
    uint32_t object;     /* number + 1; 0: free */
    uint32_t prev, next; /* has_entry: the ring of its segment; slots */
    uint8_t store;
    bool has_entry, has_pending;
    bool changed; /* a writer has released it dirty: the newest copy is older than what was released */
    bool seen;    /* by what empties its segment */
};
#define SHADOWS_MAX 16384
#define SHADOW_NONE UINT32_MAX

/* One piece of one SYNC: waits for room, then in its spill's list, then (tensors) in the SYNC's until all is durable. It
 * pins the piece: what would have to go back to an older copy must still be there. */
struct sync_ref {
    struct list link;
    struct tiering_sync *sync;
    uint32_t object;
};
#define SYNC_REFS_MAX 16384

struct timed_pin {
    uint32_t object;
    uint64_t until_ns;
};
#define TIMED_PINS_MAX 4096

/* An extent that is held for itself; see extent.c. */
struct extent {
    uint32_t sector;
    uint32_t object; /* whose it is, or was; the holders pin it */
    uint32_t holds;  /* 0: free */
    uint16_t region;
    bool orphan;   /* no piece has it any more */
    bool admitted; /* and it keeps an admission of the piece's size */
};

/* An object whose uses are counted down; see advice.c. */
struct uses {
    uint32_t object; /* number + 1; 0: free */
    uint32_t left;
};

/* Pieces that found no place on a device: the smallest, by the store that would take them; the last is for all stores. */
struct refused {
    uint32_t sectors[DEVICES_MAX + 1];
};

/* One search for a victim: how many pieces it has passed over because of their scores. */
struct victim_search {
    struct tiering *tiering;
    const struct refused *refused;
    uint32_t reprieves;
};

struct chunk_request {
    struct io_chunk io;
    struct tiering *t;
    struct list link;
    uint32_t pool;
    uint8_t tier; /* a private chunk: of `private_arena` */
    uint8_t node; /* of the tier's */
    struct session_arena *private_arena;
};

/* Private memory of one session in one pool. */
struct session_arena {
    struct list link;                /* session's, or t->orphans when the session is gone */
    struct tiering_session *session; /* NULL when it is gone, or did not come back yet */
    uint64_t number;                 /* its number */
    uint32_t pool;
    uint32_t user;          /* user.c: on whose account it is */
    uint64_t counted_bytes; /* there */
    uint64_t want_bytes, asked_bytes;
    struct arena arena;
};

/*
 *   FREE ──▶ READ ──▶ PUT ──▶ FREE
 *              └▶ WAIT ─▲              for room in the store
 */
enum relocation_phase { RELOCATION_FREE, RELOCATION_READ, RELOCATION_WAIT, RELOCATION_PUT };

/* A piece that leaves its segment, and its place in the buffer. */
struct relocation {
    struct store_entry old;
    uint32_t move;
    uint32_t sector;
    uint8_t phase;
};

/* A ring of bytes and of slots: what was begun first gives its room back first. */
struct relocations {
    struct io_buf buf;
    uint32_t n_sectors, next_sector;
    uint32_t first, n; /* slots, free ones behind the first included */
    uint64_t n_moved;  /* ended well, since the start */
    struct relocation slots[RELOCATIONS_MAX];
};

#define WARM_BUCKETS 4096

struct logged {
    struct store_entry entry;
    uint8_t store;
};

struct logged_end {
    uint64_t generation;
    uint8_t store;
};

/* What an engine that found its memory again knows until it has started; see warm.c, and for the logs reconcile.c. */
struct warm {
    uint32_t unclaimed[WARM_BUCKETS]; /* leases whose sessions did not come back yet, by session number */
    struct logged *logged;            /* entries of the logs that no record names */
    struct logged_end *ended;         /* deletions in the logs */
    size_t n_logged, logged_room, n_ended, ended_room;
    uint64_t *freed[DEVICES_MAX]; /* by segment: what is older went with it */
};

/* The walk of tiering_drain(): over the records from `at` on. */
struct drain {
    uint32_t at;
    uint64_t moved_ns; /* when last more was in flight than relocations, one of these ended well, or `at` moved */
    uint64_t n_relocated;
    bool active; /* so nothing else is written ahead of need */
    bool stuck;  /* no room came, although nothing was in flight: nobody waits for any again */
    bool begun;  /* this walk has begun a write */
    bool again;  /* not the first walk: `cache` had its turn */
};

#define SPACE_GUESSES 4096

#define TOUCHES_AHEAD 4

/* While a log is replayed: parts of the records' memory, behind the last one in use, that are touched beside that. */
struct touches {
    bool is_on;
    uint32_t first, n;
    struct io_ahead at[TOUCHES_AHEAD];
};

struct tiering {
    struct tiering_config config;
    struct truth truth;
    struct warm *warm; /* until it has started; NULL: it began cold */
    bool is_warm;
    const char *distrust; /* why it did, though something was left */
    struct tiering_warm_counts warm_counts;
    struct record_table records;
    struct touches touches;
    struct tpool *pools; /* n_pools, and one more for spaces whose pool is no longer configured */
    uint32_t n_pools;
    struct space *spaces;
    uint32_t n_spaces;
    uint32_t space_guesses[SPACE_GUESSES]; /* by persistent id; whoever follows one has to look */
    struct tstore stores[DEVICES_MAX];
    uint32_t n_stores;
    struct arena_chunk *chunk_of[CHUNKS_MAX];
    struct lease *leases; /* truth.leases */
    uint32_t lease_free, n_leases;
    struct user *users; /* USERS_MAX */
    struct user_bytes *user_bytes;
    uint32_t n_users; /* rows that were ever in use */
    uint32_t n_dmas;  /* in flight */
    struct move *moves;
    struct list moves_free;
    uint32_t n_moves;
    struct group *groups;
    uint32_t n_groups;
    uint64_t walked;         /* tiering_walked() */
    uint64_t groups_next_ns; /* before this no group's time is over */
    struct timed_pin *pins;
    uint32_t n_pins;
    struct extent *extents;
    uint32_t n_extents;
    struct list publishing;      /* MOVE_PUBLISH that copy; one a piece */
    struct list publish_waiting; /* that have room, and wait for one that copies */
    struct uses *uses;
    uint32_t n_uses;
    struct shadow *shadows;
    uint32_t n_shadows;
    struct sync_ref *sync_refs;
    struct list sync_refs_free;
    struct list orphans;        /* session_arena */
    struct list chunk_requests; /* in flight */
    struct list syncs;          /* running */
    struct list sync_waiting;   /* struct sync_ref that found no room or no free move */
    struct io_buf zeros;        /* piece_bytes of zeros */
    struct relocations relocations;
    uint32_t nodes[MEM_TIERS][NODES_MAX]; /* the kernel's numbers */
    uint32_t n_nodes[MEM_TIERS];
    uint64_t cxl_weights[NODES_MAX];
    struct chain_naming chain;
    struct plan_telling plan;
    uint32_t forgets; /* it is deleted because its segment is emptied: the log need not be told. RECORD_NONE: none */
    uint32_t piece_bytes;
    uint32_t sync_number;
    uint64_t now_ns;
    uint64_t next_slow_ns;
    uint64_t next_retry_ns; /* UINT64_MAX: no pool is short of memory */
    int refused;            /* a store was, after part of its log was replayed, maybe: nothing here counts */
    bool recovering;        /* the logs are being replayed: no groups yet */
    bool was_clean;         /* all stores were closed cleanly */
    bool may_prune;         /* the logs have pieces of objects that have several, or of tensors */
    bool started;           /* memory has been asked for */
    bool closing;           /* some of it is being given back */
    bool stopping;
    bool leaving; /* sessions have left their leases to whoever comes after us */
    bool kicked;
    struct drain drain;
    struct tiering_stat stat;
};

static inline struct record_hot *hot_at(struct tiering *t, uint32_t object)
{
    return &t->records.objects[object].hot;
}

static inline struct space *space_of(struct tiering *t, const struct record *r)
{
    return &t->spaces[r->space];
}

static inline bool spills_are_enough(const struct tiering *t, const struct tpool *p)
{
    return p->spilling >= SPILLS_FEW &&
           (p->spilling >= SPILLS_MAX || p->spilling_bytes >= SPILLS_BYTES_MAX || t->n_moves > t->config.max_moves / 2);
}

static inline struct tpool *pool_of(struct tiering *t, const struct record *r)
{
    return &t->pools[t->spaces[r->space].info.pool];
}

static inline enum mem_tier tier_of_chunk(const struct tpool *p, const struct arena_chunk *chunk)
{
    return chunk->arena == &p->arenas[MEM_DRAM]  ? MEM_DRAM
           : chunk->arena == &p->arenas[MEM_CXL] ? MEM_CXL
                                                 : MEM_PRIVATE;
}

/* Of a record with memory. */
static inline enum mem_tier tier_of_mem(const struct tiering *t, const struct record *r)
{
    return tier_of_chunk(&t->pools[t->spaces[r->space].info.pool], t->chunk_of[r->mem_region]);
}

static inline bool pool_has_cxl(const struct tpool *p)
{
    return p->arenas[MEM_CXL].total_frames > 0;
}

static inline struct policy *policy_in(struct tpool *p, enum mem_tier tier, uint32_t class_id)
{
    return tier == MEM_CXL ? p->cxl_policies[class_id] : p->policies[class_id];
}

/* Its bytes are in memory only, and worth keeping. */
static inline bool record_is_dirty(const struct record *r)
{
    return r->state == RECORD_COMMITTED && (r->flags & RECORD_HAS_MEM) &&
           !(r->flags & (RECORD_HAS_DEV | RECORD_ZERO | RECORD_TORN));
}

static inline uint8_t durability_of(const struct tiering *t, const struct record *r)
{
    return t->spaces[r->space].info.durability;
}

/* Only a SYNC may write it: what a crash finds must be what a SYNC wrote. */
static inline bool record_waits_for_sync(const struct tiering *t, const struct record *r)
{
    return record_is_dirty(r) && (r->flags & RECORD_TENSOR) && durability_of(t, r) == STORE_DURABLE;
}

/* --- object.c --- */
/* The visible piece, or RECORD_NONE and *ret_status (-ENOENT, -EINPROGRESS). */
uint32_t object_find(const struct tiering *t, const struct tiering_id *id, int *ret_status);
int object_new(struct tiering *t, const struct tiering_id *id, uint64_t hash, uint64_t object_bytes,
               uint32_t size_bytes, uint64_t owner, uint32_t *ret_object, uint32_t *ret_limit);
/* It is committed and in memory: enters the policy; complete if its group is. */
void object_commit(struct tiering *t, uint32_t object);
/* Deletes this piece only: out of the index, its device copy dropped (logged), its memory freed when unpinned. */
void object_kill(struct tiering *t, uint32_t object);
/* Deletes the whole object that this is a piece or part of. */
void object_kill_all(struct tiering *t, uint32_t object);
/* The last pin may have gone: frees what was only kept for pins. */
void object_settle(struct tiering *t, uint32_t object);
void object_pin(struct tiering *t, uint32_t object);
void object_unpin(struct tiering *t, uint32_t object);
bool object_is_pinned(const struct tiering *t, uint32_t object);
/* For the policies; ctx is the tiering. */
enum policy_pin object_pin_state(void *ctx, uint32_t object);
void object_set_mem(struct tiering *t, uint32_t object, uint32_t region, uint32_t sector);
void object_drop_mem(struct tiering *t, uint32_t object);
/* Its bytes are in this extent now; the old one is free. */
void object_move_mem(struct tiering *t, uint32_t object, uint32_t region, uint32_t sector);
/* Its bytes are in another extent now; what becomes of the old one is the caller's business. */
void object_swap_mem(struct tiering *t, uint32_t object, uint32_t region, uint32_t sector);
/* Its device copy is this one; one that it had before is dropped (logged). */
void object_set_dev(struct tiering *t, uint32_t object, uint8_t store, const struct store_entry *entry);
/* It no longer has a device copy; whoever calls this knows what becomes of the bytes there. */
void object_detach_dev(struct tiering *t, uint32_t object);
/* A fresh record of what the log brought back: COMMITTED, on the device. -ENOSPC. */
must_check int object_recovered(struct tiering *t, const struct tiering_id *id, uint64_t hash, uint8_t store,
                                const struct store_entry *entry);
/* The same before the segments' rings are there. */
void object_forget_dev(struct tiering *t, uint32_t object);
/* Forgets the device copy; logged if `log`, else the segment's end will be. */
void object_drop_dev(struct tiering *t, uint32_t object, bool log);
/* A block's piece that is reserved: it is COMMITTED, and its bytes are in this extent; the old one is free. */
void object_commit_at(struct tiering *t, uint32_t object, uint32_t region, uint32_t sector);
void object_set_flags(struct tiering *t, uint32_t object, uint8_t flags);
void object_clear_flags(struct tiering *t, uint32_t object, uint8_t flags);
/* After a replay, which does not account for what it does: each record once. */
void object_account_new(struct tiering *t, uint32_t object);
/* A tensor's piece that nobody has written yet: COMMITTED, reads as zeros. */
void object_commit_unwritten(struct tiering *t, uint32_t object);
void object_to_entry(const struct tiering *t, uint32_t object, struct store_entry *ret_entry);
void policy_enter(struct tiering *t, uint32_t object);
void policy_leave(struct tiering *t, uint32_t object, bool evicted);
uint32_t object_pieces(const struct tiering *t, uint64_t object_bytes);
void groups_expire(struct tiering *t);
/* All its pieces are COMMITTED: they are visible. */
void object_complete_all(struct tiering *t, uint32_t object);
/* The group of an object that was not whole when the process before this one ended: how many of its pieces there are. */
void group_recovered(struct tiering *t, uint32_t object, uint32_t members, uint32_t committed);

/* --- dirty.c --- */
/* Is the piece to be in its space's ring? What a record says; the caller compares before and after. */
struct dirty_place {
    bool listed, torn;
};
struct dirty_place dirty_place(const struct tiering *t, uint32_t object);
/* The record says something else now. */
void dirty_moved(struct tiering *t, uint32_t object, struct dirty_place before);
/* The SYNC's walk through its space begins, if no other SYNC's is under way: else false. True also if it has begun. */
bool dirty_walk_begin(struct dirty *d, struct tiering_sync *sync);
/* What comes next in the walk, or RECORD_NONE at its end; the walk goes past it. */
uint32_t dirty_walk_peek(const struct dirty *d);
void dirty_walk_step(struct tiering *t, struct dirty *d);
void dirty_walk_end(struct dirty *d, const struct tiering_sync *sync);
/* Pieces that had left the ring are back, and no more durable than before: the walk goes on to what is there now. */
void dirty_walk_farther(struct dirty *d);
const char *dirty_check(const struct tiering *t);

/* --- room.c --- */
/* An extent for the piece in its pool: 0, -EAGAIN (soon: something is under way), -ENOSPC (nothing can go). */
int room_take(struct tiering *t, uint32_t pool, uint32_t object, uint32_t sectors, struct arena_chunk **ret_chunk,
              uint32_t *ret_sector);
/* The same in one tier, by evicting from there if it must. */
int room_take_in(struct tiering *t, struct tpool *p, enum mem_tier tier, uint32_t object, uint32_t sectors,
                 struct arena_chunk **ret_chunk, uint32_t *ret_sector);
void room_give(struct tiering *t, uint32_t region, uint32_t sector);
void room_kick(struct tiering *t, uint32_t pool);
/* Private memory for one session in the pool; of none yet. NULL: out of memory. */
struct session_arena *room_arena_new(struct tiering *t, uint32_t pool);
/* Serves those who wait, in order, until one cannot be served. */
void room_serve(struct tiering *t, uint32_t pool);
/* What the tier has when all of its memory is there. */
uint64_t room_tier_sectors(const struct tpool *p, enum mem_tier tier);
/* True if more of the tier is free than is kept free ahead of need, and these bytes. */
bool room_is_ample(const struct tiering *t, const struct tpool *p, enum mem_tier tier, uint64_t sectors);
int room_take_private(struct tiering *t, struct tiering_session *s, uint32_t pool, uint32_t object, uint32_t sectors,
                      struct arena_chunk **ret_chunk, uint32_t *ret_sector, uint32_t *ret_limit);
void room_session_end(struct tiering *t, struct tiering_session *s);
void room_orphans(struct tiering *t);

/* --- chunk.c --- */
int chunk_start(struct tiering *t);
/* The pool's budgets have changed: asks for more memory, or begins to give some back. */
void chunk_budget(struct tiering *t, uint32_t pool);
/* The pool needs room: true if memory that it has not taken yet is on its way, so that nothing need go for it. */
bool chunk_grow_on_demand(struct tiering *t, uint32_t pool);
/* Bytes that the pool has of a tier, or has asked for; chunks that are closing are among them. */
uint64_t chunk_held_bytes(const struct tpool *p, enum mem_tier tier);
/* Empties closing chunks, a few steps, and gives back those that are empty. True while there are any. */
bool chunk_step(struct tiering *t, uint32_t pool);
/* Asks for one chunk more, unless one is on its way, or there is enough, or every node has refused. */
int chunk_grow(struct tiering *t, uint32_t pool, enum mem_tier tier);
int chunk_ask_private(struct tiering *t, struct session_arena *sa, uint64_t size_bytes);
void chunk_give_back(struct tiering *t, const struct arena_chunk *chunk);

/* --- shortage.c --- */
/* What the pool may have of a tier, in whole frames. */
uint64_t shortage_budget_bytes(const struct tiering *t, const struct tpool *p, enum mem_tier tier);
/* What is asked for; p->want_chunks is what is counted on. */
uint64_t shortage_goal_bytes(const struct tiering *t, const struct tpool *p, enum mem_tier tier);
/* Of the budget: what was refused. */
uint64_t shortage_missing_bytes(const struct tiering *t, const struct tpool *p, enum mem_tier tier);
/* Every node of the tier has refused. */
void shortage_begin(struct tiering *t, uint32_t pool, enum mem_tier tier, int status);
/* A chunk of that tier has come. */
void shortage_ease(struct tiering *t, struct tpool *p, enum mem_tier tier);
/* Looks whether anything is missing still. */
void shortage_end(struct tiering *t, uint32_t pool);
/* Asks again, where it is time. */
void shortage_retry(struct tiering *t);

/* --- evict.c --- */
/* 0: its memory was freed; -EAGAIN: it is being written; -ENOSPC: it can neither be written nor dropped. */
/* A dirty piece was written to a device; a piece was found on one. */
void room_written(struct tiering *t, uint32_t object);
void room_found(struct tiering *t, uint32_t object);
int room_evict(struct tiering *t, uint32_t object);
/* room_evict() has said -ENOSPC; and whether it would say that again. */
void refused_note(struct tiering *t, struct refused *refused, uint32_t object);
bool refused_is(struct tiering *t, const struct refused *refused, uint32_t object);
#define CLASSES_ALL ((UINT32_C(1) << TIERING_CLASSES) - 1)
/* The victim is dirty, and as many as have to go are being written already: where a policy knows how many that are. */
bool room_may_wait(struct tiering *t, uint32_t victim);
/* Who goes next from a tier, of these classes (bits): RECORD_NONE if nobody can. `state` says who cannot. */
uint32_t room_victim(struct tiering *t, struct tpool *p, enum mem_tier tier, uint64_t incoming, policy_pin_fn state,
                     void *ctx, uint32_t classes);
/* Room for one extent of this size where other sizes are: empties the first run of frames that nobody leases. */
void room_clear_run(struct tiering *t, struct tpool *p, enum mem_tier tier, uint32_t sectors);
/* Starts spills of what will be evicted next, and demotions to keep some DRAM free. */
void room_clean_ahead(struct tiering *t, uint32_t pool);

/* --- prefetch.c --- */
/* Begins loads of what a policy knows to be used soon. */
void prefetch_go_on(struct tiering *t, uint32_t pool);

/* --- migrate.c --- */
/* Begins to move the piece to the tier; may_evict: by evicting others there if it must. 0; -EBUSY: it cannot move now;
 * -EAGAIN, -ENOSPC: there is no room. */
int migrate_begin(struct tiering *t, uint32_t object, enum mem_tier tier, bool may_evict);
/* Begins to move the coldest pieces from DRAM to CXL memory, until so much is on its way. 0, -EAGAIN, -ENOSPC. */
int migrate_demote(struct tiering *t, struct tpool *p, uint64_t sectors);
/* The piece was used where it is: it may deserve DRAM. */
void migrate_used(struct tiering *t, uint32_t object);
void migrate_promote(struct tiering *t, uint32_t pool);
/* The migration under way (HOT_MIGRATING). */
struct move *migrate_of(struct tiering *t, uint32_t object);

/* --- move.c --- */
struct move *move_new(struct tiering *t, enum move_kind kind, uint32_t object);
void move_free(struct move *m);
void move_set_phase(struct move *m, enum move_phase phase);
/* Ends all waits of the move with this status (leases are granted on 0), in order. */
void move_wake(struct move *m, int status);
int move_load(struct tiering *t, uint32_t object, bool urgent, struct move **ret_move);
/* Somebody wants what a load brings: the first one is an access for the policy. */
void move_load_asked(struct tiering *t, struct move *m);
/* txn: 0, or of the SYNC that it is for. ret_move may be NULL. */
int move_spill(struct tiering *t, uint32_t object, bool urgent, uint8_t store, uint32_t txn, bool evacuating,
               struct move **ret_move);
/* The move waits for room until room_serve() finds some. */
void move_queue(struct move *m);
/* The lease is the move's from now on. */
int move_commit(struct tiering *t, struct tiering_session *s, struct lease *l, struct move **ret_move);
/* Room was found for it (or it failed for good). Called by room_serve(). */
void move_go(struct move *m, struct arena_chunk *chunk, uint32_t sector);
void move_fail(struct move *m, int status);
/* Nobody waits for it any more. */
void move_cancel(struct move *m);
/* The move that loads this piece (HOT_LOADING), or that waits for its first room (RESERVED without memory). */
struct move *move_of(struct tiering *t, uint32_t object);
/* The spill under way (HOT_SPILLING). */
struct move *move_spill_of(struct tiering *t, uint32_t object);
/* The spill or migration under way, during which the bytes must not change. */
struct move *move_that_bars_writers(struct tiering *t, uint32_t object);
/* The piece is deleted: what is on its way to a device must not come back after a crash, so it is not logged. */
void move_put_cancel(struct tiering *t, uint32_t object);
void move_attach(struct tiering *t, struct move *m, struct tiering_wait *wait);

/* --- urge.c --- */
/* A client waits for this transfer: it goes before what nobody waits for. */
void move_urge(struct move *m);
/* Who waits for it, as io_user_of() says it; the first of them if there are several. */
uint8_t move_user(const struct move *m);
/* The same for as many of the pool's spills as will free this much, the oldest first. */
void spills_urge(struct tpool *p, uint64_t sectors);

/* --- range.c --- */
void range_put_go(struct move *m);
void range_put_end(struct move *m, int status);

/* --- gpu.c --- */
/* The session of a lease that is in a transfer ends. */
void dma_session_end(struct tiering *t, struct lease *l);
const char *dma_check(const struct tiering *t);

/* --- access.c --- */
/* The end of a lease that is no reservation and publishes nothing. flags: TIERING_DIRTY, TIERING_DISCARD. */
void release_end(struct tiering *t, struct lease *l, unsigned flags);
/* The bytes of a tensor's piece changed; whole: all of them. */
void piece_dirtied(struct tiering *t, uint32_t object, bool whole);
/* It was asked for: the policy hears of it. */
void object_used(struct tiering *t, uint32_t object);
/* enum tiering_tier: where its bytes are. */
uint8_t object_tier(const struct tiering *t, const struct record *r);
/* The move that brings it to memory: the one under way, or a new one. */
/* urgent: somebody has asked for it; else only said that he will. */
int acquire_move(struct tiering *t, uint32_t object, bool urgent, struct move **ret_move);
void wait_prepare(struct tiering_wait *w, struct tiering_session *s, enum lease_mode mode, uint32_t off_bytes,
                  uint32_t len_bytes);

/* --- advice.c --- */
/* Ends the time-limited pin. */
void timed_pin_drop(struct tiering *t, uint32_t object);
void timed_pins_expire(struct tiering *t);
/* One use of it, if they are counted; taken back if it came to nothing. */
void uses_spend(struct tiering *t, uint32_t object);
void uses_give_back(struct tiering *t, uint32_t object);
void uses_forget(struct tiering *t, uint32_t object);
/* It is used, whatever was said. */
void rank_used(struct tiering *t, uint32_t object);
/* As object_pin_state(), for the search for a victim; ctx is a struct victim_search. Uses up credits. */
enum policy_pin victim_pin_state(void *ctx, uint32_t object);
/* Nothing holds it any more: does advice say what becomes of it? It may be gone afterwards. */
void advice_unpinned(struct tiering *t, uint32_t object);

/* --- chain.c --- */
/* For the policies; ctx is a policy_seat. */
uint32_t chain_find(void *ctx, uint32_t hash_low);

/* --- plan.c --- */
/* For the policies; ctx is a policy_seat. */
uint32_t plan_owner(void *ctx, uint32_t object);
void plan_space_empty(struct tiering *t, uint32_t space);
void plan_session_end(struct tiering *t, const struct tiering_session *s);

/* --- lease.c --- */
/* NULL: it is no lease that the session may use. */
static inline struct lease *lease_get(struct tiering *t, const struct tiering_session *s, uint64_t handle)
{
    uint32_t index = (uint32_t)handle;

    if (index >= t->config.max_leases)
        return NULL;
    struct lease *l = &t->leases[index];
    return l->mode != LEASE_FREE && l->generation == handle >> 32 && l->session == s && !l->in_move ? l : NULL;
}
int lease_grant(struct tiering *t, struct tiering_session *s, uint32_t object, enum lease_mode mode, uint32_t off_bytes,
                uint32_t len_bytes, struct tiering_grant *ret_grant);
/* A write lease on the session's own copy of the range, at this place: the lease frees it. */
int lease_grant_own(struct tiering *t, struct tiering_session *s, uint32_t object, uint32_t off_bytes,
                    uint32_t len_bytes, const struct arena_chunk *chunk, uint32_t sector,
                    struct tiering_grant *ret_grant);
/* Generation 0 is never used, so that no handle is 0 (TIERING_LEASE_NONE). */
static inline uint32_t lease_next_generation(const struct lease *l)
{
    return l->generation == UINT32_MAX ? 1 : l->generation + 1;
}
/* It ends as if it had never been granted: its session's client has not heard of it. */
void lease_lost(struct tiering *t, struct tiering_session *s, struct lease *l);
/* It is its session's from now on. */
void lease_join_session(struct tiering *t, struct tiering_session *s, uint32_t lease);
/* It is no longer its session's. */
void lease_leave_session(struct tiering *t, struct lease *l);
void lease_end(struct tiering *t, struct lease *l);
/* A lease on memory of this tier would leave too little that can go. */
static inline uint64_t pool_lease_limit(const struct tpool *p)
{
    uint64_t bytes = p->want_chunks[MEM_DRAM] + p->want_chunks[MEM_CXL]; /* on demand, not all of it is there yet */

    return bytes / 100 * p->config.max_leases_percent;
}
/* Admitted bytes are given back to the pool, and to whose account they were on. */
void lease_unadmit(struct tiering *t, uint32_t user, uint32_t pool, uint64_t bytes);
bool lease_tier_is_full(const struct tpool *p, enum mem_tier tier, uint64_t bytes);
/* Where its first byte is. */
struct io_buf lease_buf(const struct lease *l);

/* user.c */
must_check int users_new(struct tiering *t);
void users_free(struct tiering *t);
struct user_bytes {
    uint64_t admitted, private;
};
static inline struct user_bytes *user_bytes(const struct tiering *t, uint32_t user, uint32_t pool)
{
    return &t->user_bytes[(uint64_t)user * (t->n_pools + 1) + pool];
}
/* What one user may have of the pool, whose own limit that is. */
static inline uint64_t user_limit(const struct tpool *p, uint64_t pool_limit)
{
    uint32_t percent = p->config.user_leases_percent;

    return percent == 0 || percent >= 100 ? UINT64_MAX : pool_limit / 100 * percent;
}
/* False: together with what it has it would be more than that. */
static inline bool user_admit(struct tiering *t, uint32_t user, uint32_t pool, uint64_t pool_limit, uint64_t bytes)
{
    struct user_bytes *b = user_bytes(t, user, pool);

    if (user == 0)
        return true;
    if (b->admitted + bytes > user_limit(&t->pools[pool], pool_limit))
        return false;
    b->admitted += bytes;
    return true;
}
static inline void user_unadmit(struct tiering *t, uint32_t user, uint32_t pool, uint64_t bytes)
{
    struct user_bytes *b = user_bytes(t, user, pool);

    if (user == 0)
        return;
    assert(b->admitted >= bytes);
    b->admitted -= bytes;
}
/* So many bytes more of private memory. */
bool user_may_have_private(const struct tiering *t, const struct session_arena *sa, uint64_t bytes);
/* So many in all. */
void user_count_private(struct tiering *t, struct session_arena *sa, uint64_t bytes);
void user_session_end(struct tiering *t, struct tiering_session *s);
/* For tiering_check(). */
const char *users_check(const struct tiering *t);

/* --- extent.c --- */
uint64_t extent_table_bytes(const struct tiering *t);
/* Recounts: NULL, or what does not agree. */
const char *extent_check(const struct tiering *t);
/* Somebody uses the extent, and pins the object. Balanced by extent_release(). */
void extent_hold(struct tiering *t, uint32_t region, uint32_t sector, uint32_t object);
void extent_release(struct tiering *t, uint32_t region, uint32_t sector);
bool extent_is_orphan(const struct tiering *t, uint32_t region, uint32_t sector);
/* No piece has it any more: freed when nobody holds it. With it goes an admission of the piece's size, if `admitted`. */
void extent_orphan(struct tiering *t, uint32_t region, uint32_t sector, uint32_t object, bool admitted);

/* --- publish.c --- */
/* Writers have copies of their own: a tensor in a shared pool. */
bool piece_is_published(const struct tiering *t, const struct record *r);
/* A write lease on a piece that is in memory, for a prepared wait: TIERING_WAIT, -EBUSY, -ENOSPC, -EAGAIN. */
int fill_begin(struct tiering *t, uint32_t object, struct tiering_wait *wait, uint32_t *ret_limit);
void fill_go(struct move *m);
void fill_end(struct move *m, int status);
/* Ends the lease, and makes what was written there the piece's. */
int publish_begin(struct tiering *t, struct lease *l, struct tiering_wait *wait, uint32_t *ret_limit);
void publish_go(struct move *m);
void publish_end(struct move *m, int status);
/* Sectors that hold [off, off + len) of a piece, with the range at the same place in its first sector. */
uint32_t range_sectors(uint32_t off_bytes, uint32_t len_bytes);
/* How much room it waits for. */
uint32_t move_sectors(const struct move *m);

/* --- sync.c --- */
/* A spill has ended: tells every SYNC that waits for it. */
void sync_spilled(struct move *m, int status);
/* SYNCs of whole spaces go on as transfers become free. */
void sync_step(struct tiering *t);
/* A writer comes: the copy on the device is set aside. -ENOSPC: too many pieces have changed since their last SYNC. */
int shadow_keep(struct tiering *t, uint32_t object);
struct shadow *shadow_of(const struct tiering *t, uint32_t object);
/* A writer came in a process before, which may have ended when the copy was not set aside yet, or was about to be the
 * current one again. */
int shadow_keep_again(struct tiering *t, uint32_t object);
/* The log has this copy of a piece that has changed since: a new shadow. -ENOSPC. */
int shadow_recovered(struct tiering *t, uint32_t object, uint8_t store, const struct store_entry *entry);
/* The old copies are no longer wanted. */
void shadow_drop(struct tiering *t, uint32_t object);
/* What was written to memory since is not wanted: true if the old copy is the current one again. */
bool shadow_restore(struct tiering *t, uint32_t object);
/* Its entry lies elsewhere now, and the old one is dropped. */
void shadow_moved(struct tiering *t, struct shadow *shadow, const struct store_entry *entry);
/* The first shadow of the segment that was not seen, or NULL; it was; it is to be looked at again. */
const struct shadow *shadow_unseen(const struct tiering *t, const struct tsegment *seg);
void shadow_saw(struct tiering *t, struct tsegment *seg);
void shadow_again(struct tiering *t, uint32_t object);
/* The engine stops: what waits for room or for a free transfer has waited in vain. */
void sync_stop(struct tiering *t);

/* --- recover.c --- */
extern const struct store_events recover_events;
uint32_t space_by_id(struct tiering *t, uint64_t id);             /* UINT32_MAX */
uint32_t pool_by_name(const struct tiering *t, const char *name); /* n_pools */
/* Where one of its pieces is, or was: what a SYNC writes must not lie in another log than what it takes the place of. */
void space_is_at_home(struct tiering *t, uint32_t space, uint8_t store);
void id_from_store(struct tiering_id *ret_id, const struct store_id *id, uint32_t space, uint16_t n_parts);
/* Every store was replayed: tensors are filled up with unwritten pieces; what is whole becomes visible. */
int recover_finish(struct tiering *t);
/* Accounts for all that is there, and tells the stores which pieces were kept. */
int recover_adopt(struct tiering *t);
/* What is not whole goes, and what may be older than what was there last. */
void recover_prune(struct tiering *t);
int store_know_space(struct tiering *t, uint8_t store, uint32_t space);
/* It knew the space before, and its log has not heard of it. */
void store_know_again(struct tiering *t, uint8_t store, uint32_t space);

/* --- truth.c --- */
/* The space is known from now on, or known better. */
void truth_space_set(struct tiering *t, uint32_t space);
/* The chunk is the pool's from now on; what is known of it beside. */
void truth_chunk_set(struct tiering *t, const struct arena_chunk *chunk, uint32_t pool, const struct truth_chunk *what);

/* For the record table: the backend gets to know which part of it is used. ctx is the tiering. */
void truth_touch(void *ctx, const void *mem);
/* At start: what of it is used at random. */
void truth_touch_all(struct tiering *t);
/* Many new records will come, one behind the other. */
void truth_touch_ahead(struct tiering *t);
void truth_touch_ahead_end(struct tiering *t);

/* --- warm.c --- */
/* Before the record table: is there anything to go on with? */
int warm_new(struct tiering *t);
/* When pools and tables are there. -EUCLEAN: what was left contradicts itself. */
int warm_open(struct tiering *t);
/* The session came back. */
void warm_claim(struct tiering *t, struct tiering_session *s);
/* All is there: what did not come back ends. */
void warm_end(struct tiering *t);
void warm_free(struct tiering *t);

/* --- reconcile.c --- */
/* What the logs say. */
int reconcile_put(struct tiering *t, uint8_t store, const struct store_entry *entry);
int reconcile_delete(struct tiering *t, uint8_t store, uint64_t generation);
int reconcile_segment_freed(struct tiering *t, uint8_t store, uint32_t segment, uint64_t generation);
/* They have been read. */
int reconcile(struct tiering *t);

/* --- place.c --- */
/* Where to write a piece, or STORE_NONE: every device has failed, or (`cache`) a write budget is used up. */
uint8_t store_pick(struct tiering *t, const struct record *r);
/* A piece is being written. */
void place_charge(struct tiering *t, uint32_t pool, uint8_t store, uint32_t size_bytes);
/* What the stores wrote of their own accord. */
void place_charge_logs(struct tiering *t);
/* What this store (or STORE_NONE) lacks for the pool's pieces that may not be dropped; TIERING_LIMIT_NONE: nothing. */
uint32_t place_limit(const struct tiering *t, uint8_t store, uint32_t pool);
/* A `cache` piece is about to be dropped that a device might have taken: counts it if a budget is why it did not. */
void place_dropped(struct tiering *t, const struct record *r);

/* --- evacuate.c --- */
/* Of the record's device copy, in the ring of its segment. */
void segment_link(struct tiering *t, uint32_t object);
void segment_unlink(struct tiering *t, uint32_t object);
void evacuate_add(struct tstore *ts, uint32_t segment);
void evacuate_step(struct tiering *t, struct tstore *ts);
/* Before an orderly end, when all is idle: what was forgotten of a segment ends with the segment, so all its `cache` goes. */
void evacuate_finish(struct tiering *t);
/* What kept it from leaving its segment has ended: HOT_PUT, HOT_LOADING. */
void evacuate_again(struct tiering *t, uint32_t object);
/* Something failed: not at once again. */
void evacuate_later(struct tstore *ts);
const char *evacuate_check(const struct tiering *t);

/* --- relocate.c --- */
/* Begins to move this copy (the current one, or a shadow's). False: not now, the buffer or all moves are in use. */
bool relocate(struct tiering *t, uint32_t object, uint8_t store, const struct store_entry *entry);
/* Those that found no room in the store. */
void relocate_step(struct tiering *t);
/* How many have begun and not ended. */
uint32_t relocations_running(const struct tiering *t);
/* The piece is deleted: see move_put_cancel(). */
void relocate_cancel(struct tiering *t, uint32_t object);
