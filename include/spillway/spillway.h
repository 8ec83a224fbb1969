/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libspillway: the C client of spillwayd.
 *
 *     spw_session *s;  spw_pool *p;  spw_space *kv;
 *     spw_connect(NULL, &s);
 *     spw_pool_open(s, "default", &p);
 *     spw_space_open(p, &(struct spw_space_options){ .digest = …, .item_bytes = 65536, .class_id = SPW_CLASS_KV }, &kv);
 *     spw_acquire(kv, keys, n, SPW_CHAIN, 1000, views);      bytes in place: views[i].data, no copy
 *     spw_release(kv, views, n, 0);
 *
 * Errors. Functions return 0 (or a count) or a negative errno; outputs are untouched on failure. List functions return
 * 0 when the list was served: each element then has a `status` of its own. Where the list as a whole was refused, they
 * return its errno, which each element's status then has too. spw_error_text() tells, for the calling thread's last
 * failed call, what was wrong in words: which limit was met, and which knob raises it; spw_limit_text() does that for
 * an element's `detail`. Everywhere: -EINVAL for a wrong argument, -ENOTCONN, -ECHILD, -EPROTO (the daemon broke the
 * protocol: the session is over), -ENOMEM.
 *
 * Lists may be of any length: what does not fit into one request goes out as several. With SPW_ALL, and in spw_sync(),
 * that would not be one decision any more: -E2BIG above SPW_LIST_MAX elements.
 *
 * Threads. Every function may be called from any thread at any time, unless it says otherwise. Blocking calls use a
 * ring of the calling thread's own (made at its first call, freed when the thread ends). Do not cancel a thread that is
 * in a call (pthread_cancel), and do not call from signal handlers.
 *
 * Forks. After fork() the child's handles are dead: every call on them returns -ECHILD, and none touches the parent's
 * session. The child connects anew. Memory of a session is not inherited (MADV_DONTFORK).
 *
 * Daemon gone. Calls return -ENOTCONN, those that were waiting too, within a second. Views stay readable until they are
 * released or the session is closed.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "abi.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define SPW_VERSION_MAJOR 0
#define SPW_VERSION_MINOR 1

typedef struct spw_session spw_session;
typedef struct spw_pool spw_pool;
typedef struct spw_space spw_space;
typedef struct spw_queue spw_queue;
typedef struct spw_job spw_job;

/* The calling thread's last error in words; never NULL, valid until its next call into the library. */
const char *spw_error_text(void);
/* The same as a number: enum spw_limit, SPW_LIMIT_NONE if no limit was involved. */
unsigned spw_error_limit(void);
/* A limit (`detail` of a view, SPW_LIMIT_…) in words, with the knob that raises it; never NULL. */
const char *spw_limit_text(unsigned limit);

/* --- Sessions, pools, spaces ------------------------------------------------------------------------------------- */

struct spw_connect_options {
    const char *socket_path;    /* NULL: $SPILLWAY_SOCKET, else the user's daemon, else the system's */
    const char *name;           /* for `spillctl sessions`; NULL: the program's name */
    const uint8_t *owner_token; /* SPW_TOKEN_BYTES of the job to belong to; NULL: a new owner */
    uint32_t copy_threads;      /* for spw_put and spw_get; 0: 2 */
    uint32_t timeout_ms;        /* for the connection; 0: 5000 */
    uint32_t ring_entries;      /* of each thread's ring; 0: 256 */
    uint32_t spin_us;           /* how long a blocking call polls for its answer at most; 0: 100; SPW_SPIN_NEVER */
    uint64_t scratch_bytes;     /* of each ring; 0: 2 MiB */
};

/* A blocking call sleeps at once: no CPU time is used for waiting, and each call takes a wake-up longer. */
#define SPW_SPIN_NEVER UINT32_MAX

/* -ENOENT, -ECONNREFUSED: no daemon; -EACCES; -EPROTONOSUPPORT: versions differ; -EMFILE, -EUSERS: limits. */
int spw_connect(const struct spw_connect_options *options, spw_session **ret_session);
/* Ends the session: its leases are released, uncommitted reservations are dropped, its queues are freed (jobs of them
 * end first). NULL is fine. Views become invalid. The caller sees to it that no other thread is in a call with this
 * session, or with a queue or job of it. */
void spw_close(spw_session *session);
/* The owner's token, SPW_TOKEN_BYTES, for other processes of the same job. */
void spw_owner_token(const spw_session *session, uint8_t *ret_token);

struct spw_pool_info {
    uint32_t flags; /* SPW_POOL_TRUSTED */
    uint32_t reserved;
    uint64_t dram_bytes, cxl_bytes, nvme_bytes, gpu_bytes;
};

/* -ENOENT: no such pool; -EACCES: not for this user. Pools and spaces live until spw_close(). */
int spw_pool_open(spw_session *session, const char *name, spw_pool **ret_pool);
void spw_pool_info(const spw_pool *pool, struct spw_pool_info *ret_info);
/* What it takes to lease so many objects of so many sizes at once, and whether the pool has that: before there are any, and
 * whoever else uses it. SPW_MANIFEST_MAX entries at most, in any order. It is an answer, not a promise: nothing is set aside.
 * ret_sizing->limit is the first limit that does not allow it, or 0. -EINVAL: an entry without a size, or of one above 1 TiB;
 * -E2BIG: more entries, or sums that no machine has. */
int spw_manifest(spw_pool *pool, const struct spw_manifest_entry *entries, size_t n, struct spw_sizing *ret_sizing);

struct spw_space_options {
    uint8_t digest[SPW_DIGEST_BYTES]; /* of what the bytes mean: model, revision, dtype, layout, tokens a block, … */
    uint64_t item_bytes;              /* size of its blocks, or 0: each has its own */
    uint8_t class_id;                 /* enum spw_class */
    uint8_t durability;               /* enum spw_durability */
    uint8_t reserved[6];
    uint32_t flags; /* SPW_SPACE_MUST_EXIST */
    uint32_t node;  /* preferred NUMA node + 1; 0: the calling thread's */
};

/* Finds or creates. -EINVAL: it exists with another size, class or durability; -ENOENT with SPW_SPACE_MUST_EXIST. */
int spw_space_open(spw_pool *pool, const struct spw_space_options *options, spw_space **ret_space);
/* Objects above this size are kept, and acquired, in pieces of this size (a view each). */
uint32_t spw_space_piece_bytes(const spw_space *space);

/* --- Keys and views ---------------------------------------------------------------------------------------------- */

/* An object's name within its space. Bytes past `len` must be zero. */
struct spw_key {
    uint8_t bytes[SPW_KEY_BYTES];
    uint32_t group;
    uint8_t len;
    uint8_t reserved0;
    uint16_t part;    /* of a block that several sessions commit together, */
    uint16_t n_parts; /* each its own part; 0: not in parts */
    uint16_t reserved1;
};

/* Makes a key of up to 32 bytes. -EINVAL if len is 0 or above. */
int spw_key_init(struct spw_key *ret_key, const void *bytes, size_t len, uint32_t group);

/* A lease on bytes, and where they are. `data` is NULL unless status is 0. */
struct spw_view {
    void *data;
    size_t size_bytes;
    uint64_t lease;
    int32_t status;  /* of this element */
    uint16_t detail; /* enum spw_limit */
    uint8_t tier;    /* enum spw_tier: where it was found */
    uint8_t flags;   /* SPW_RESULT_FETCHED */
};

struct spw_hit {
    uint64_t size_bytes;
    int32_t status; /* 0: there; -ENOENT; -EINPROGRESS: being written */
    uint8_t tier;   /* enum spw_tier */
    uint8_t flags;  /* SPW_RESULT_PENDING */
    uint16_t reserved;
};

/* Flags of list functions. */
enum {
    SPW_CHAIN = SPW_SQE_CHAIN,              /* each key is the prefix of the next */
    SPW_ALL = SPW_SQE_ALL,                  /* all or nothing */
    SPW_WRITE = SPW_SQE_WRITE,              /* acquire for writing (tensors) */
    SPW_NO_WAIT = SPW_SQE_NO_WAIT,          /* acquire only what is in memory */
    SPW_DIRTY = SPW_RELEASE_DIRTY << 8,     /* release: the bytes were changed */
    SPW_DISCARD = SPW_RELEASE_DISCARD << 8, /* release: forget the change */
};

#define SPW_FOREVER UINT32_MAX

/* --- Blocking calls ---------------------------------------------------------------------------------------------- */
/* timeout_ms bounds the wait for room or for a device; SPW_FOREVER: the daemon's own bound (60 s). */

/* Returns the number of leading keys that are there (the longest prefix), or a negative errno. */
long spw_lookup(spw_space *space, const struct spw_key *keys, size_t n, unsigned flags, struct spw_hit *ret_hits);
/* Of a lookup's answer: the largest count m such that the last `window` of the first m keys are there (all m if m is
 * less). What a model with sliding-window attention can start from; 0 if even the first key is missing. Pure. */
size_t spw_window_length(const struct spw_hit *hits, size_t n, size_t window);

/* Room for n new blocks. sizes may be NULL if the space has a fixed size. Status: 0: write views[i].data, then commit;
 * -EEXIST: it is there already (a success for most callers); -EINPROGRESS: someone else is writing it; -ENOSPC. */
int spw_reserve(spw_space *space, const struct spw_key *keys, const uint64_t *sizes, size_t n, unsigned flags,
                uint32_t timeout_ms, struct spw_view *ret_views);
/* Publishes them; they are immutable from now on, and the views are no longer the caller's: data is NULL, lease 0. Views
 * without a lease are passed over (those whose status was not 0, as a rule), and keep their status. Status: 0 or
 * -EEXIST: it can be found now; -ESTALE: it went meanwhile (deleted, given up for room, or its other parts or pieces did not
 * come within a minute): reserve it anew. On failure the views that still have a lease are still the caller's. */
int spw_commit(spw_space *space, struct spw_view *views, size_t n, unsigned flags);
/* Gives reservations back unpublished. */
int spw_abort(spw_space *space, struct spw_view *views, size_t n);

/* Leases on the bytes of n blocks, fetched from a device where they are not in memory. Status: 0; -ENOENT; -EBADMSG:
 * a checksum failed (the object is gone); -EIO; -ENOSPC: no room in time (detail tells which); -EMSGSIZE: it has more
 * than one piece: use spw_acquire_range. */
int spw_acquire(spw_space *space, const struct spw_key *keys, size_t n, unsigned flags, uint32_t timeout_ms,
                struct spw_view *ret_views);
/* One object's range: a view for each piece touched, at most max_views; returns how many. -E2BIG if it is more. */
long spw_acquire_range(spw_space *space, const struct spw_key *key, uint64_t offset_bytes, uint64_t length_bytes,
                       unsigned flags, uint32_t timeout_ms, struct spw_view *ret_views, size_t max_views);
/* Gives leases back. flags: SPW_DIRTY or SPW_DISCARD for write leases. As with spw_commit(), views without a lease are
 * passed over. In a shared pool a dirty view is copied first, and its status says whether that went well; if not
 * (-ENOSPC, -EFAULT), the view has ended all the same, and the tensor is what it was. */
int spw_release(spw_space *space, struct spw_view *views, size_t n, unsigned flags);

/* From and to the caller's own memory, copied by the calling thread and the session's copy threads. ret_status (may be
 * NULL) has one errno an element: put: 0, -EEXIST (it is there already), or as spw_reserve(); get: 0, -ENOENT,
 * -EMSGSIZE: larger than the room, whose size_bytes then tells the object's size, or as spw_acquire(). Objects of any
 * size; a put reserves all of one object at once, a get of a large one goes through it in windows. What others have leased
 * is waited for, as room is, but for a timeout of 0. flags: SPW_CHAIN, SPW_NO_WAIT (get). */
struct spw_iovec {
    void *data;
    uint64_t size_bytes; /* get: room; set to the object's size */
};
int spw_put(spw_space *space, const struct spw_key *keys, const struct spw_iovec *from, size_t n, unsigned flags,
            uint32_t timeout_ms, int32_t *ret_status);
int spw_get(spw_space *space, const struct spw_key *keys, struct spw_iovec *to, size_t n, unsigned flags,
            uint32_t timeout_ms, int32_t *ret_status);

/* Tensors: mutable, named, fixed in size. Opens or creates; -EINVAL if it exists with another size. */
int spw_tensor_open(spw_space *space, const struct spw_key *name, uint64_t size_bytes);
int spw_put_range(spw_space *space, const struct spw_key *name, uint64_t offset_bytes, const void *from,
                  uint64_t length_bytes, uint32_t timeout_ms);
int spw_get_range(spw_space *space, const struct spw_key *name, uint64_t offset_bytes, void *to, uint64_t length_bytes,
                  uint32_t timeout_ms);
/* A tensor as an arena: blocks of one piece go between the store and a leased view of it (for get: leased for writing),
 * without touching the caller's memory. Element i takes the bytes at arena_offset_bytes + the sizes of those before it.
 * sizes may be NULL if the space has a fixed size. Devices write there: sizes, the offset, and where the view begins in
 * its tensor are multiples of 4096. */
int spw_put_from_view(spw_space *space, const struct spw_key *keys, const uint64_t *sizes, size_t n,
                      const struct spw_view *arena, uint64_t arena_offset_bytes, uint32_t timeout_ms,
                      int32_t *ret_status);
int spw_get_to_view(spw_space *space, const struct spw_key *keys, const uint64_t *sizes, size_t n,
                    const struct spw_view *arena, uint64_t arena_offset_bytes, uint32_t timeout_ms,
                    int32_t *ret_status);

/* The same out of as many views as there are blocks, each the whole of its view, at once. Returns 0 if each block has its
 * status (ret_status may be NULL); else what went wrong with the first that has none. */
int spw_put_from_views(spw_space *space, const struct spw_key *keys, const struct spw_view *views, size_t n,
                       uint32_t timeout_ms, int32_t *ret_status);

/* The next four work on objects of one piece, each as a whole; larger ones are -EMSGSIZE. */
int spw_touch(spw_space *space, const struct spw_key *keys, size_t n, unsigned flags);
/* Into memory, by the deadline if possible; returns when they are there, or the deadline has passed. */
int spw_prefetch(spw_space *space, const struct spw_key *keys, size_t n, unsigned flags, uint32_t deadline_ms,
                 int32_t *ret_status);
/* Hints: enum spw_advice says what each means, and what `value` is. The daemon counts or pins a bounded number of objects
 * (SPW_LIMIT_HINTS): advice beyond that has no effect. -ERANGE: KEEP_UNTIL for more than a day. */
int spw_advise(spw_space *space, const struct spw_key *keys, size_t n, enum spw_advice advice, uint64_t value);
/* Not evicted for so long; 0 unpins. */
int spw_pin(spw_space *space, const struct spw_key *keys, size_t n, uint32_t duration_ms, int32_t *ret_status);
/* The order in which the space's objects will be asked for, again and again, from the next access on: each key stands for the
 * pieces of an object, one after the other, or for one access if it is not there yet; it may come more than once. A pool with
 * the policy `plan` for the space's class then evicts what is used farthest in the future, and reads ahead, from the first
 * period on, and not from the third. It is a hint: accesses that it does not foretell are counted, and if they are many it is
 * dropped. It is the space's, in the place of its last one, and beside those of other spaces; it outlives the session, but
 * neither the daemon nor the last object of the space. n = 0 takes it back.
 * Returns how many accesses are followed: 0 if the pool's policy makes no plans, or there are less than 8. -E2BIG: more than
 * 65536, or than the pool may have pieces in memory; -ENOSPC: 16 other spaces of the pool and the class have one
 * (SPW_LIMIT_PLANS); -ESTALE: another session declared a plan at the same time, or the daemon was restarted meanwhile:
 * declare it again. */
long spw_plan(spw_space *space, const struct spw_key *keys, size_t n);
int spw_delete(spw_space *space, const struct spw_key *keys, size_t n, int32_t *ret_status);
/* Durable, and atomically so: after a crash all of this list's versions are there or none is. n = 0: the space.
 * -EINVAL: the space is not SPW_DURABLE. */
int spw_sync(spw_space *space, const struct spw_key *keys, size_t n, uint32_t timeout_ms);
int spw_stat(spw_space *space, struct spw_stat *ret_stat);
int spw_nop(spw_space *space);

/* --- Asynchronous jobs ------------------------------------------------------------------------------------------- */
/*
 * A queue is a ring with a descriptor that becomes readable when jobs have ended, or can be ended by spw_queue_next().
 * Each spw_submit_… starts a job; the arrays that it names are the job's until it ends. Jobs of one queue may end in any
 * order, and but for those that copy threads run they end in spw_queue_next(), spw_queue_arm() and spw_job_wait() only:
 * spw_job_status() tells, but does not look.
 */
/* For spaces of the same engine as this one (submitting for another is -EXDEV). entries: jobs that can be outstanding
 * or not yet freed, 0: 256; one more is -EAGAIN. */
int spw_queue_new(spw_session *session, spw_space *space, uint32_t entries, spw_queue **ret_queue);
/* Cancels what is outstanding, waits for it, frees it and every job of it. No other thread may be using them. */
void spw_queue_free(spw_queue *queue);
/* For poll(2). Call spw_queue_arm() before each poll; it returns 1 if there is something for spw_queue_next() already (do
 * not sleep). It can be that spw_queue_next() then has no ended job, since another thread took it or the job goes on. */
int spw_queue_fd(const spw_queue *queue);
int spw_queue_arm(spw_queue *queue);
/* Takes one ended job off the queue; 0 and *ret_job, or -EAGAIN. The job is freed by spw_job_free(). A job that was
 * freed without being taken comes no more. Of small gets whose bytes have come the calling thread copies one, if no job
 * has ended otherwise; other threads may use the queue meanwhile. */
int spw_queue_next(spw_queue *queue, spw_job **ret_job);

int spw_submit_lookup(spw_queue *q, spw_space *space, const struct spw_key *keys, size_t n, unsigned flags,
                      struct spw_hit *hits, void *user, spw_job **ret_job);
int spw_submit_reserve(spw_queue *q, spw_space *space, const struct spw_key *keys, const uint64_t *sizes, size_t n,
                       unsigned flags, uint32_t timeout_ms, struct spw_view *views, void *user, spw_job **ret_job);
int spw_submit_commit(spw_queue *q, spw_space *space, struct spw_view *views, size_t n, unsigned flags, void *user,
                      spw_job **ret_job);
int spw_submit_acquire(spw_queue *q, spw_space *space, const struct spw_key *keys, size_t n, unsigned flags,
                       uint32_t timeout_ms, struct spw_view *views, void *user, spw_job **ret_job);
int spw_submit_release(spw_queue *q, spw_space *space, struct spw_view *views, size_t n, unsigned flags, void *user,
                       spw_job **ret_job);
int spw_submit_prefetch(spw_queue *q, spw_space *space, const struct spw_key *keys, size_t n, unsigned flags,
                        uint32_t deadline_ms, int32_t *status, void *user, spw_job **ret_job);
int spw_submit_put(spw_queue *q, spw_space *space, const struct spw_key *keys, const struct spw_iovec *from, size_t n,
                   unsigned flags, uint32_t timeout_ms, int32_t *status, void *user, spw_job **ret_job);
/* A put, and a large get, is run by a copy thread of the session: so many at once as there are threads. A small get (at
 * most 16 elements, of one piece each, of at most 1 MiB together, counted by their room or their space's item_bytes) is
 * at the daemon at once, as are all others of the queue up to 16 MiB, and is copied by the thread that takes it:
 * spw_queue_next(), or spw_job_wait() for this job. It keeps leases until then: do not leave it for long.
 * timeout_ms begins when the daemon is asked. */
int spw_submit_get(spw_queue *q, spw_space *space, const struct spw_key *keys, struct spw_iovec *to, size_t n,
                   unsigned flags, uint32_t timeout_ms, int32_t *status, void *user, spw_job **ret_job);
int spw_submit_sync(spw_queue *q, spw_space *space, const struct spw_key *keys, size_t n, uint32_t timeout_ms,
                    void *user, spw_job **ret_job);

/* Waits until the job has ended: its status, or -ETIMEDOUT (it goes on). */
int spw_job_wait(spw_job *job, uint32_t timeout_ms);
/* -EINPROGRESS, or how it ended. */
int spw_job_status(const spw_job *job);
uint64_t spw_job_value(const spw_job *job); /* lookup: the longest prefix; else elements with status 0 */
void *spw_job_user(const spw_job *job);
/* A request: the job still has its one end, -ECANCELED if it took. Elements that were served before have their status,
 * and their leases. */
int spw_job_cancel(spw_job *job);
/* Only after its end; NULL is fine. Does not give back leases that the job got. */
void spw_job_free(spw_job *job);

/* --- Administration (spillctl) ----------------------------------------------------------------------------------- */
/* One JSON request, one JSON reply; free(*ret_json). -EACCES unless root, the daemon's user or in the admin group. */
int spw_admin(spw_session *session, const char *request_json, char **ret_json);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
