/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Eviction policies behind one small interface.
 *
 * A policy orders the objects of one class of one pool that are resident in one memory tier. It never sees bytes, keys
 * or time: an object is an index, a 64-bit hash of its whole identity (for ghosts: objects that the policy remembers
 * but that are not resident), and a size in sectors of 4 KiB. The caller owns residency; the policy only says who
 * should go. One instance belongs to one engine thread.
 *
 * Sequence of calls for one object:
 *
 *   miss(owner, hash)               it was asked for and is not resident; adapts (ARC's p), remembers nothing else
 *   victim(hash of the newcomer)    until there is room: whom to evict; the caller then calls evict(), or skips it
 *   insert(obj)                     it became resident
 *   hit(obj)                        it was asked for and is resident
 *   evict(obj)                      it left for lack of room; may become a ghost
 *   remove(obj)                     it was deleted, or moved to another class: leaves no ghost
 *
 * A policy that lives on requests also has chain(): a request names its blocks in order, before any of them is asked for.
 * Whatever is asked for without having been named stands alone.
 *
 * Nothing depends on the calls coming in lockstep: any number of objects may be between miss() and insert(), evict() may
 * run ahead of need, and occupancy may float on either side of the capacity.
 *
 * Links and per-object state live in policy_nodes that the caller owns, one for each object index, where it likes (beside
 * what else it knows of the object: asking for one line is cheaper than for two), so a policy allocates nothing after new(). Sizes are bytes in units of sectors, so objects of any size mix.
 */
#pragma once

#include "include/base/base.h"

#define POLICY_NONE UINT32_MAX
#define POLICY_SOON (UINT32_MAX - 1) /* of victim(): who should go is busy, and nobody else is to go instead */

/* Zeroed by the caller before insert(); the policy's alone from insert() to evict() or remove(). */
struct policy_node {
    uint32_t prev, next;
    uint32_t state[3]; /* [0] sectors, [1] queue (0: in none) and counters, [2] the policy's own */
};
static_assert(sizeof(struct policy_node) == 20, "counted in the metadata of an object");

/* Of all objects: an array, or a member of the elements of one. */
struct policy_nodes {
    void *first;
    uint32_t stride_bytes;
};
#define POLICY_NODES(array) ((struct policy_nodes){.first = (array), .stride_bytes = sizeof(*(array))})

static inline struct policy_node *policy_node_at(struct policy_nodes nodes, uint32_t obj)
{
    return (struct policy_node *)(void *)((char *)nodes.first + (uint64_t)obj * nodes.stride_bytes);
}

struct policy_config {
    struct policy_nodes nodes; /* borrowed; indexed by object */
    uint32_t n_nodes;
    uint64_t capacity_sectors; /* of the tier's share that this policy orders; may change by resize() */
    /* Bound on remembered identities (ARC: and one more), all allocated by new(). Good: as many as there are objects. */
    uint32_t max_ghosts;
    /* May be NULL. A resident object of this policy whose hash has these lower 32 bits, or
     * POLICY_NONE. */
    uint32_t (*find)(void *ctx, uint32_t hash_low);
    /* Whose the object is: its space. NULL: all are one's, 0. */
    uint32_t (*owner)(void *ctx, uint32_t obj);
    void *ctx; /* for both */
};

/* A block of a request. */
struct policy_ref {
    uint64_t hash;
    uint32_t obj; /* POLICY_NONE: not resident in this policy */
};

/* What the list is that names the blocks. */
enum policy_use {
    POLICY_NAMED,  /* LOOKUP: the request as a whole; its uses follow */
    POLICY_USED,   /* ACQUIRE and its like */
    POLICY_STORED, /* RESERVE and its like: perhaps only what is new */
};

/*
 * The request that a session makes: zeroed at first, then the policy's alone. So that the lists that an engine sends for
 * one request count as one.
 */
struct policy_chain {
    uint32_t clock;   /* when it came; 0: none */
    uint32_t n;       /* blocks so far */
    uint32_t n_old;   /* of them, known before, in this conversation */
    uint32_t head;    /* the first hash's lower half */
    uint32_t tail[2]; /* the last two, deepest first */
    uint8_t turn;
    bool was_end;
    bool is_prefix; /* all its blocks were known: what is stored next may be its end */
};

/* Can the object go now? victim() and coldest() pass over it unless it is free. */
enum policy_pin {
    POLICY_FREE = 0,
    POLICY_BUSY, /* in the middle of I/O, free soon: keeps its place, for it is as cold as before */
    POLICY_HELD, /* leased, perhaps for long: in use, so victim() moves it to the warm end, out of the next one's way */
};
typedef enum policy_pin (*policy_pin_fn)(void *ctx, uint32_t obj);

/* Begins to bring the object whose hash has these lower 32 bits, before it is asked for; false: there is nothing to bring. */
typedef bool (*policy_fetch_fn)(void *ctx, uint32_t hash_low);

struct policy_stat {
    uint64_t resident; /* objects */
    uint64_t resident_sectors;
    uint64_t ghosts;      /* remembered identities */
    uint64_t ghost_bytes; /* memory allocated for them and for the policy itself */
    /* Of a policy that plans: */
    uint64_t plan_accesses; /* of the orders that it follows now; 0: none */
    uint64_t plans;         /* orders learned, or told, so far */
    uint64_t deviations;    /* accesses that an order had not foretold */
    /* Of those that fetch() has begun to bring: asked for since; or gone before, or given up with the order. */
    uint64_t prefetched_used, prefetched_wasted;
};

struct policy;

struct policy_ops {
    const char *name;    /* as written in the config: "lru", "s3-fifo", "arc", "chain", "plan" */
    uint32_t ghosts_min; /* fewer than that would be false thrift; 0: as many as there are objects are wanted */
    bool dram_only;      /* lives on all that its class is asked for, of which CXL memory sees a part: LRU is there */
    /* 0, -ENOMEM, or -EINVAL for too many ghosts. The config is copied; the nodes are borrowed. */
    int (*new)(const struct policy_config *config, struct policy **ret_policy);
    void (*free)(struct policy *p);
    void (*miss)(struct policy *p, uint32_t owner, uint64_t hash, uint32_t sectors);
    void (*insert)(struct policy *p, uint32_t obj, uint64_t hash, uint32_t sectors);
    void (*hit)(struct policy *p, uint32_t obj);
    /*
     * A request names n blocks, each of which is the prefix of the next; misses, insertions and hits of these blocks that
     * follow belong to it. A list that only repeats or continues what `open` has named is no new request. NULL: requests
     * mean nothing to this policy.
     */
    void (*chain)(struct policy *p, struct policy_chain *open, const struct policy_ref *refs, uint32_t n,
                  enum policy_use use);
    /*
     * The object to evict next, still in the policy, or POLICY_NONE. `incoming` is the hash of the object that needs the
     * room (0 if none). Passes over no more than POLICY_SCAN_MAX pinned objects on each list, so POLICY_NONE is final
     * only for a policy that holds no more than that. Else call again: held objects have been moved away by then; busy
     * ones are worth waiting for. POLICY_SOON: so much so that nobody is named.
     */
    uint32_t (*victim)(struct policy *p, uint64_t incoming, policy_pin_fn pin, void *ctx);
    void (*evict)(struct policy *p, uint32_t obj, uint64_t hash, uint32_t sectors);
    void (*remove)(struct policy *p, uint32_t obj, uint32_t sectors);
    /* An object that another policy looked after was evicted, after so many hits: as if it had been here. NULL: nothing. */
    void (*remember)(struct policy *p, uint64_t hash, uint32_t sectors, uint32_t hits);
    /*
     * Fills ret_objs with up to n objects in about the order in which victim() would name them, without changing
     * anything: what should be clean soon. Returns how many. Pinned ones are passed over; at most n + POLICY_SCAN_MAX
     * entries of each list are looked at. The first is what victim(0) would name, if nothing is pinned and no list is
     * longer than that.
     */
    uint32_t (*coldest)(const struct policy *p, uint32_t *ret_objs, uint32_t n, policy_pin_fn pin, void *ctx);
    /* True if the object will hardly ever be asked for again: it is not worth being written to a device. NULL: never. */
    bool (*is_hopeless)(const struct policy *p, uint32_t obj);
    /* Of the next n accesses, how many are of objects that are not resident: only so many need to go for them, and whoever
     * is written sooner may be changed again before it goes. UINT32_MAX: who knows. NULL: never known. */
    uint32_t (*misses_ahead)(const struct policy *p, uint32_t n);
    /* Calls `fetch` for those that are used soon and are not resident, the next one first, until `max` of them were brought,
     * or are on their way, and have not been used. NULL: never known. */
    void (*fetch)(struct policy *p, uint32_t max, policy_fetch_fn fetch, void *ctx);
    /* The order of all that is asked for of this owner's from now on, again and again, as the lower 32 bits of the hashes: as
     * if it had been learned, in the place of what was, but beside what other owners told. Returns how many are followed: all,
     * or 0 where so few are no order; -E2BIG: more than it has room for, and nothing has changed; -ENOSPC: PLANS_MAX others
     * have one, likewise. n = 0: it is no longer so. NULL: orders mean nothing to this policy. */
    int (*tell)(struct policy *p, uint32_t owner, const uint32_t *hashes, uint32_t n);
    /* Those who have gone: what they told holds no longer. May be called from within fetch(). NULL if tell() is. */
    void (*forget)(struct policy *p, bool (*is_gone)(const void *ctx, uint32_t owner), const void *ctx);
    void (*resize)(struct policy *p, uint64_t capacity_sectors);
    void (*stat)(const struct policy *p, struct policy_stat *ret_stat);
    /* Walks every list and compares it with its sums: slow, for tests and the simulator. 0 or -EUCLEAN. */
    int (*check)(const struct policy *p);
};

extern const struct policy_ops policy_lru;
extern const struct policy_ops policy_s3fifo;
extern const struct policy_ops policy_arc;
extern const struct policy_ops policy_chain_hazard;
extern const struct policy_ops policy_adaptive;
extern const struct policy_ops policy_plan;

/* The policy of that name, or NULL. policy_names() is a NULL-terminated list for error messages. */
const struct policy_ops *policy_by_name(const char *name);
const char *const *policy_names(void);

/* Every policy begins with its table, so that a `struct policy *` is enough to call it. */
struct policy {
    const struct policy_ops *ops;
};
