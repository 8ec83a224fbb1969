/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of libspillway. One file a row; each may call those below it.
 *
 *   op.c tensor.c transfer*.c           the API: blocking calls, put and get
 *   gpu*.c                              the API: blocks in a GPU's memory (gpu.h)
 *   adam*.c workers.c                   the API: what training computes (train.h)
 *   queue.c submit.c small_get.c        the API: jobs
 *   build.c                             the API's arguments → a call
 *   thread.c                            the calling thread's own rings
 *   call.c                              one list operation: elements → items, results → elements
 *   ring.c ring_new.c ring_renew.c      submission, completion, waiting; making a ring, and making it anew
 *   scratch.c                           room for lists
 *   chunk.c                             where a result's bytes are
 *   manifest.c                          what leases would take of a pool
 *   session.c control.c link.c          handles; the socket; restarts of the daemon
 *   copy.c stream.c                     copy threads; memcpy past the caches
 *   map.c sync.c error.c                mappings and forks; threads and waits; words
 *
 * Locks, in the order in which they may be taken (each file says what its lock guards):
 *   gpu.lock → queue.lock → session.chunk_lock → session.control_lock → session.lock;
 *   copy.lock, session.lock, session.link_lock and thread.c's lock are leaves, and so are those of training.
 */
#pragma once

#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "include/base/atomic.h"
#include "include/base/base.h"
#include "include/base/cleanup.h"
#include "include/base/limits.h"
#include "include/base/list.h"
#include "include/spillway/spillway.h"

/* --- error.c ------------------------------------------------------------------------------------------------------ */

/* Records the calling thread's error in words; the limit's words and knob are added. */
void client_error_set(unsigned limit, const char *format, ...) printf_like(2, 3);
/* For words that name the limit already. */
void client_error_set_limit(unsigned limit);
/* Records words, and gives r: a macro, so that the compiler sees a negative constant where there is one. */
#define client_error(r, limit, ...)                                                                                    \
    ({                                                                                                                 \
        int error_r_ = (r);                                                                                            \
        client_error_set((limit), __VA_ARGS__);                                                                        \
        error_r_;                                                                                                      \
    })

/* --- Time --------------------------------------------------------------------------------------------------------- */

/* For how long; no time of day. */
static inline uint64_t client_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static inline uint64_t client_now_ms(void)
{
    return client_now_ns() / 1000000;
}

/* The same to a few ms, for next to nothing. */
static inline uint64_t client_now_coarse_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* --- sync.c ------------------------------------------------------------------------------------------------------- */

int client_thread_start(void *(*run)(void *arg), void *arg, pthread_t *ret_thread) must_check;
/* For client_cond_wait(). */
void client_cond_init(pthread_cond_t *cond);
/* Until somebody tells, so long, or a second. */
void client_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t left_ns);

/* --- map.c -------------------------------------------------------------------------------------------------------- */

struct client_map {
    void *base; /* NULL: nothing is mapped */
    size_t size_bytes;
    size_t place_bytes; /* of addresses that are its, size_bytes at least */
    bool is_writable;
};

/* Maps a whole memfd that the daemon made. -EPROTO unless it has exactly that size and cannot shrink. */
int client_map_open(int fd, uint64_t size_bytes, bool writable, struct client_map *ret_map) must_check;
/* The same in place of an old one, whose addresses stay mapped whatever comes: what is not the new one's reads as zeros.
 * *ret_is_there: the new one lies where the old one was, and has its addresses. On failure the old one is as it was. */
int client_map_replace(int fd, uint64_t size_bytes, bool writable, const struct client_map *old,
                       struct client_map *ret_map, bool *ret_is_there) must_check;
void client_map_close(struct client_map *map);
/* A number for this process, other than those of its ancestors. Callers serialise. */
int client_fork_mark(uint32_t *ret_mark) must_check;
/* Is this still the process that got that mark? */
bool client_fork_is(uint32_t mark);

/* --- stream.c, copy.c --------------------------------------------------------------------------------------------- */

/* memcpy; beyond CLIENT_STREAM_BYTES with stores that go past the caches, and past a store_release too. */
void client_stream_copy(void *to, const void *from, size_t size_bytes);
/* What was copied so far comes before what is stored from now on. It waits for memory: once for many copies. */
void client_stream_fence(void);

struct client_copy_op {
    void *to;
    const void *from;
    size_t size_bytes;
};

/* Copies that belong together, none of them empty. The owner sets `ops` and `n_ops`, and keeps both in place until the
 * batch is finished. */
struct client_copy_batch {
    const struct client_copy_op *ops;
    size_t n_ops;
    struct list link; /* of client_copy.batches, while there is something to be taken */
    size_t at_op, at_bytes;
    uint64_t left_bytes;   /* to be taken */
    uint32_t n_unfinished; /* atomic: slices that somebody copies */
    bool is_posted;
};

/* Something for a copy thread to run: a put job, or a large get job. */
struct client_task {
    struct list link;
    void (*run)(struct client_task *task);
};

struct client_copy;
int client_copy_new(uint32_t threads, struct client_copy **ret_copy) must_check;
/* Ends the threads; tasks that have not begun are run first. */
void client_copy_free(struct client_copy *copy);
/* A transfer of so much begins. Returns whether it is large enough for another thread to help, which is then woken. */
bool client_copy_wake(struct client_copy *copy, uint64_t total_bytes);
/* Sets the batch up. If it is shared, others may begin. */
void client_copy_begin(struct client_copy *copy, struct client_copy_batch *batch, bool is_shared);
/* Copies until no more than keep_bytes are left to be taken. */
void client_copy_work(struct client_copy *copy, struct client_copy_batch *batch, uint64_t keep_bytes);
/* Copies what is left, and waits for what others took. */
void client_copy_finish(struct client_copy *copy, struct client_copy_batch *batch);
/* A negative errno if there is no thread to run it. */
int client_copy_post(struct client_copy *copy, struct client_task *task) must_check;

/* --- session.c, control.c ----------------------------------------------------------------------------------------- */

/* The chunks of one engine, by number. Slots are read without a lock; chunk.c tells how they change. */
struct client_chunk;
struct client_chunks {
    struct client_chunk *slots[CHUNKS_MAX];
};

struct spw_session {
    struct list link; /* thread.c: living sessions */
    uint64_t serial;  /* never used again, unlike an address */
    uint32_t refs;    /* thread.c: under its lock */
    uint32_t fork_mark;
    uint32_t dead;           /* 0, or the errno that every call returns from now on */
    uint32_t era;            /* even: of the connection; odd: there is none. link.c has its transitions */
    const char *dead_reason; /* words for -EPROTO, or NULL */

    int socket;
    uint32_t timeout_ms;
    uint32_t next_request;
    pthread_mutex_t control_lock; /* one request at a time */

    char path[108]; /* where the daemon is */
    uint8_t token[SPW_TOKEN_BYTES];
    uint64_t number, memory_id;
    uint32_t reattach_ms;   /* for which the daemon's next process waits for us; 0: not at all */
    uint32_t away_ms;       /* with control_lock: the same as its last words had it */
    uint64_t lost_until_ms; /* watcher: when it gives up */
    uint32_t has_watcher;   /* link.c's thread */
    uint32_t next_ring;     /* of ours, not the daemon's */
    pthread_t watcher;
    pthread_mutex_t link_lock; /* for whom link_changed is */
    pthread_cond_t link_changed;

    uint32_t engines, ring_entries, list_max;
    uint32_t spin_ns_max; /* 0: never */
    uint64_t scratch_bytes;
    uint8_t owner_token[SPW_TOKEN_BYTES];

    pthread_mutex_t lock; /* guards the lists */
    struct list rings, queues, pools, spaces;
    struct list gpus_left; /* gpu.h */

    pthread_mutex_t chunk_lock; /* chunk.c */
    struct client_chunks *chunks[ENGINES_MAX];
    struct list gpu_windows, gpu_mappers; /* gpu_map.c: of the chunks, with their lock */

    struct client_copy *copy;
};

/* Handles change with the link. */
struct spw_pool {
    struct list link;
    spw_session *session;
    uint32_t handle;
    struct spw_pool_info info;
    char name[SPW_NAME_BYTES];
};

struct spw_space {
    struct list link;
    spw_session *session;
    const spw_pool *pool;
    struct spw_msg_space_open ask; /* but for the pool's handle */
    uint32_t handle, engine;
    uint32_t piece_bytes;
    uint64_t item_bytes;
};

/* gpu.c: what detaching had to leave, once all queues are gone. */
void client_gpu_left_free(spw_session *session);
/* gpu_map.c, with chunk_lock: a mapping goes, so no driver may know it any more. */
void client_gpu_map_drop(spw_session *session, const struct client_map *map);

/* 0; -ECHILD after a fork; else how the session ended. Sets the words. */
int client_session_check(const spw_session *session);
/* Ends the session for every thread: calls that wait return within a second. `reason` (a constant) makes it -EPROTO. */
int client_session_end(spw_session *session, const char *reason);
/* Has the other side hung up? Ends the session if so. Makes one system call. */
int client_session_probe(spw_session *session);
/* The connection of that era is gone: ends the session, or leaves it to the watcher. Then 0. */
int client_session_hangup(spw_session *session, uint32_t era);
/* Frees what is left; nobody uses it any more. */
void client_session_destroy(spw_session *session);

/* Connects the socket; the session's other fields are set by the handshake. */
int client_control_connect(spw_session *session, const struct spw_connect_options *options) must_check;
/* A new connection to where the daemon was. -EAGAIN: not now. */
int client_control_dial(spw_session *session, int *ret_fd) must_check;
/* Goes on with the session on that connection, pools and spaces too. -EAGAIN: the connection is gone again. With control_lock. */
int client_control_reattach(spw_session *session, int fd) must_check;
/* The connection has ended: what the daemon said last. With control_lock. */
void client_control_last_words(spw_session *session);
/*
 * One request and its reply. Fills in request->magic and its like. On success the reply has exactly reply_bytes and
 * n_fds descriptors came, which are the caller's. Errors of the daemon come back with the daemon's words.
 */
int client_control_request(spw_session *session, uint16_t type, struct spw_msg *request, size_t request_bytes,
                           struct spw_msg *ret_reply, size_t reply_bytes, int *ret_fds, unsigned n_fds) must_check;
/* The same on the connection *era, or on any if that is 0; then it is set. -ESTALE: that one is gone. */
int client_control_request_on(spw_session *session, uint32_t *era, uint16_t type, struct spw_msg *request,
                              size_t request_bytes, struct spw_msg *ret_reply, size_t reply_bytes, int *ret_fds,
                              unsigned n_fds) must_check;

/* However long a daemon says that its next process waits for us, in ms. Fuzzers set less: their daemons never come back. */
extern uint32_t client_reattach_max_ms;
/* From the first pool on somebody watches the connection. */
int client_link_watch(spw_session *session) must_check;
/* The session is dead. */
void client_link_unwatch(spw_session *session);
/* The connection of that era has ended. False: that was known. */
bool client_link_lost(spw_session *session, uint32_t era);
static inline bool client_link_is_up(const spw_session *session)
{
    return load_acquire(&session->era) % 2 == 0; /* pairs with link.c's release */
}
static inline bool client_link_is_of(const spw_session *session, uint32_t era)
{
    return load_acquire(&session->era) == era;
}
/* Until there is a connection; an error if there will be none. */
int client_link_wait(spw_session *session) must_check;

/* --- chunk.c ------------------------------------------------------------------------------------------------------ */

/* Where a result's bytes are. -EPROTO if they cannot be there, or are to be written and cannot be; other errors if the
 * chunk cannot be mapped. */
int client_chunk_resolve(spw_session *session, uint32_t engine, const struct spw_result *result, bool to_write,
                         void **ret_data) must_check;
/* The mapping that has all of these bytes, or NULL. With chunk_lock, as long as which it stays. */
const struct client_map *client_chunk_find_locked(const spw_session *session, const void *data, size_t size_bytes);
void client_chunks_deinit(spw_session *session);

/* --- scratch.c ---------------------------------------------------------------------------------------------------- */

/* Cells of a ring's scratch memory: first fit in a bitmap. */
struct client_scratch {
    uint8_t *base;
    uint64_t *used;
    uint32_t n_cells;
};

#define CLIENT_CELL_BYTES 1024

int client_scratch_init(struct client_scratch *scratch, void *base, uint64_t size_bytes) must_check;
void client_scratch_deinit(struct client_scratch *scratch);
/* Returns false if there is no room now. */
bool client_scratch_take(struct client_scratch *scratch, uint64_t size_bytes, uint32_t *ret_cell, uint32_t *ret_cells);
void client_scratch_give(struct client_scratch *scratch, uint32_t cell, uint32_t cells);

/* --- call.c ------------------------------------------------------------------------------------------------------- */

/* One operation on a list, in as many SQEs as it takes. The starter sets the first parts and keeps it in place until
 * `ended`; zero means "none" everywhere. */
struct client_call {
    const struct spw_space *space; /* NULL: NOP */
    const struct spw_key *keys;    /* elements are keys, */
    struct spw_view *handles;      /* or leases */
    size_t n;
    const uint64_t *sizes;   /* length of each item; NULL: the same for all */
    const uint64_t *offsets; /* where each begins; likewise */
    uint64_t offset_bytes, length_bytes;
    uint64_t arg[3];
    uint32_t timeout_ms;
    uint32_t handle_flags; /* SPW_RELEASE_… */
    uint64_t started_ms;   /* if it has a timeout */
    uint32_t era;          /* what it names is known on that connection only: -EPIPE on another one. 0: on any */
    uint8_t opcode, flags; /* of the SQE */
    bool whole;            /* one SQE or -E2BIG */
    bool no_results;       /* the CQE says all */
    bool no_data;          /* views are leases alone: nobody here reads the bytes */

    struct spw_hit *hits;   /* one an element */
    struct spw_view *views; /* one a result: an item of several pieces takes several */
    int32_t *statuses;      /* one an element */
    struct spw_stat *stat;

    void (*on_end)(struct client_call *call); /* only notes that it ended */

    /* Progress, for ring.c and call.c. */
    struct list link; /* of ring.waiting, while something is left to be sent */
    size_t n_sent, n_results_sent;
    uint32_t in_flight, n_served;
    bool all_sent, ended, cancel;
    int error;       /* of the first SQE that failed as a whole */
    unsigned detail; /* its limit */
    uint64_t value;  /* elements with status 0 */
    size_t prefix;   /* LOOKUP: leading hits */
};

/* A part of a call that goes into one SQE. */
struct client_slice {
    size_t first, n; /* elements */
    size_t first_result;
    uint32_t n_items, n_results;
    uint64_t items_bytes, size_bytes; /* in scratch, results after items */
};

/* Checks arguments that need no daemon; sets the words. */
int client_call_check(const char *name, const struct client_call *call) must_check;
/* What comes next, at most `budget_bytes` and `list_max` items; at least one item whatever its size. */
void client_call_slice(const struct client_call *call, uint32_t list_max, uint64_t budget_bytes,
                       struct client_slice *ret_slice);
void client_call_marshal(const struct client_call *call, const struct client_slice *slice, uint8_t *scratch);
/* Takes the results over. -EPROTO if they make no sense. */
int client_call_unmarshal(struct client_call *call, const struct client_slice *slice, const struct spw_cqe *cqe,
                          const uint8_t *scratch);
/* The slice got no results. */
void client_call_fail(struct client_call *call, const struct client_slice *slice, int error, unsigned detail);
/* How the call as a whole ended; no words. */
int client_call_status(const struct client_call *call);
/* Of its time; UINT32_MAX: it has no end. */
static inline uint32_t client_call_left_ms(const struct client_call *call, uint64_t now_ms)
{
    uint64_t end_ms = call->started_ms + call->timeout_ms;

    if (call->timeout_ms == 0)
        return UINT32_MAX;
    return now_ms < end_ms ? (uint32_t)(end_ms - now_ms) : 0;
}

/* --- ring.c, ring_new.c, ring_renew.c ------------------------------------------------------------------------------------------- */

enum client_slot_state { CLIENT_SLOT_FREE, CLIENT_SLOT_CALL, CLIENT_SLOT_CANCEL, CLIENT_SLOT_LOST };

/* One SQE in flight. Its user_data is the slot's name. */
struct client_slot {
    uint64_t name; /* from bit 0: its number, its ring's in this session, its generation */
    struct client_call *call;
    struct client_slice slice;
    uint32_t cell, n_cells;
    enum client_slot_state state;
    uint8_t opcode;
    bool cancel_sent;
};

#define CLIENT_SLOT_BITS 12 /* of a name, then as many for the ring as are left of 32 */
#define CLIENT_SLOT_GENERATION (UINT64_C(1) << 32)
static_assert(RING_ENTRIES_MAX <= 1 << CLIENT_SLOT_BITS, "a slot's number in its name");

struct client_ring {
    struct list link; /* of session.rings */
    spw_session *session;
    uint32_t engine, number;
    uint32_t era; /* the connection that it was made on */
    int doorbell;
    int poll_fd;      /* an epoll that has the doorbell; -1: none */
    bool is_unpolled; /* not any more, since the daemon has gone */
    bool has_sleeper; /* in client_ring_sleep(), while somebody else may use the ring */
    struct client_map memory, scratch_memory;
    struct client_scratch scratch;
    struct spw_ring *shared;
    struct spw_sqe *sqes;
    struct spw_cqe *cqes;
    uint32_t sq_entries, cq_entries;
    uint32_t sq_tail, sq_published; /* our private indices; never read back */
    uint32_t cq_head;
    uint32_t in_flight, n_slots, n_free;
    uint32_t *free_slots;
    struct client_slot *slots;
    struct list waiting; /* calls with something left to send, oldest first */
    uint32_t spin_ns, n_waits;
    uint32_t n_sleeps; /* of ours */
    uint32_t rung;     /* the engine's sleep that it was last woken from */
    bool must_rewake;  /* the engine could not be woken: try again before waiting */
};

int client_ring_new(spw_session *session, uint32_t engine, uint32_t entries, struct client_ring **ret_ring) must_check;
/* Unmaps it, and tells the daemon if the session lives. Nobody waits for what is in flight, or the session is over. */
void client_ring_free(struct client_ring *ring);
/* Unmaps only. */
void client_ring_destroy(struct client_ring *ring);
/* One that the session's list does not have; on connection *era as for client_control_request_on(). */
int client_ring_make(spw_session *session, uint32_t engine, uint32_t entries, uint64_t scratch_bytes, uint32_t *era,
                     struct client_ring **ret_ring) must_check;
/* After a restart of the daemon. 0 also if it was not to be had this time; else the session is over. */
int client_ring_renew(struct client_ring *ring) must_check;
/* There is no daemon: ends what is late. */
void client_ring_expire(struct client_ring *ring);
/* Who sleeps on it wakes. With session.lock. */
void client_ring_rouse(struct client_ring *ring);
/* For ring_renew.c. */
static inline bool client_call_is_stale(const struct client_ring *ring, const struct client_call *call)
{
    return call->era != 0 && call->era != ring->era;
}
void client_ring_slot_lose(struct client_ring *ring, struct client_slot *slot, int error);
void client_ring_slot_free(struct client_ring *ring, struct client_slot *slot);
void client_ring_expire_waiting(struct client_ring *ring, uint64_t now_ms);
void client_ring_submit_again(struct client_ring *ring, const struct client_slot *slot, uint64_t now_ms);

/* Starts a call that was checked. */
int client_ring_start(struct client_ring *ring, struct client_call *call) must_check;
/* Gives leases back with the next flush, and does not wait for the answer, which tells nothing of use. Returns false if
 * there is no room to do it at once, or the session is over. The views keep their leases' numbers. */
bool client_ring_post_release(struct client_ring *ring, const struct spw_space *space, struct spw_view *views,
                              size_t n) must_check;
/* Publishes what was written, and wakes the engine if it sleeps. */
void client_ring_flush(struct client_ring *ring);
/* Wakes the engine if it sleeps, because something will be published in a moment: a sleeper takes as long to wake as a few
 * hundred KiB take to copy. Publishes what was written so far. */
void client_ring_wake_ahead(struct client_ring *ring);
/* Before waiting: wakes the engine if that failed. */
void client_ring_rewake(struct client_ring *ring);
/* Waits for what was posted, or for the session's end. */
void client_ring_drain(struct client_ring *ring);
/* Takes what has completed and sends what can be sent. A negative errno says that the session is over: every call of
 * the ring has then ended. */
int client_ring_turn(struct client_ring *ring);
/* Asks the daemon to cancel what is in flight of a call; what was not sent is not. */
void client_ring_cancel(struct client_ring *ring, struct client_call *call);
/* Has a completion come that was not taken? */
bool client_ring_has_completions(const struct client_ring *ring);
/* The same, looked at for a moment if the engine is awake and the session may spin. */
bool client_ring_look(const struct client_ring *ring);
/* S3 and the sleep, after ring_sleep_prepare(): until cq_tail is not `head`, at most a slice of time (100 ms). Looks for
 * a hang-up when nothing came. Needs no lock. */
void client_ring_sleep(struct client_ring *ring, uint32_t head, uint32_t timeout_ms);
/* Turns, spins and sleeps until the call has ended. For the ring's only user. */
void client_ring_wait(struct client_ring *ring, const struct client_call *call);

/* --- thread.c ----------------------------------------------------------------------------------------------------- */

int client_thread_register(spw_session *session) must_check;
/* client_fork_mark(), for who has no session. */
int client_thread_fork_mark(uint32_t *ret_mark) must_check;
/* The session is being closed: no thread finds it from now on. Frees it when the last thread lets go. */
void client_thread_unregister(spw_session *session);
/* The calling thread's ring at an engine. */
int client_thread_ring(spw_session *session, uint32_t engine, struct client_ring **ret_ring) must_check;

/* --- build.c ------------------------------------------------------------------------------------------------------ */

/* Each checks one function's arguments and fills in its call. */
int client_build_lookup(const char *name, struct client_call *ret_call, spw_space *space, const struct spw_key *keys,
                        size_t n, unsigned flags, struct spw_hit *hits) must_check;
int client_build_reserve(const char *name, struct client_call *ret_call, spw_space *space, const struct spw_key *keys,
                         const uint64_t *sizes, size_t n, unsigned flags, uint32_t timeout_ms,
                         struct spw_view *views) must_check;
int client_build_acquire(const char *name, struct client_call *ret_call, spw_space *space, const struct spw_key *keys,
                         size_t n, unsigned flags, uint32_t timeout_ms, struct spw_view *views) must_check;
/* COMMIT, ABORT, RELEASE; `flags` as the API has them, of which `allowed` may be set. */
int client_build_handles(const char *name, struct client_call *ret_call, enum spw_op op, spw_space *space,
                         struct spw_view *views, size_t n, unsigned flags, unsigned allowed) must_check;
/* TOUCH, PREFETCH, ADVISE, PIN, PLAN, DELETE, SYNC. `statuses` may be NULL. */
int client_build_keys(const char *name, struct client_call *ret_call, enum spw_op op, spw_space *space,
                      const struct spw_key *keys, size_t n, unsigned flags, unsigned allowed,
                      int32_t *statuses) must_check;

/* --- op.c --------------------------------------------------------------------------------------------------------- */

/* Checks, starts and waits for a call on the calling thread's ring. `name` is for the words. */
int client_op_run(const char *name, struct client_call *call);
/* How an ended call went, with words. */
int client_op_finish(const char *name, const struct client_call *call);

/* --- transfer.c --------------------------------------------------------------------------------------------------- */

enum client_transfer_kind {
    CLIENT_PUT,       /* blocks: reserve, copy, commit */
    CLIENT_GET,       /* blocks: acquire, copy, release */
    CLIENT_PUT_RANGE, /* a tensor's range: acquire for writing, copy, release dirty */
    CLIENT_GET_RANGE,
};

struct client_transfer {
    enum client_transfer_kind kind;
    spw_space *space;
    const struct spw_key *keys;
    struct spw_iovec *memory; /* PUT kinds do not write it */
    size_t n;
    uint64_t offset_bytes; /* …_RANGE: where it begins */
    unsigned flags;
    uint32_t timeout_ms;
    int32_t *statuses; /* or NULL */
    uint32_t cancel;   /* set by another thread */
    uint64_t value;    /* elements with status 0 */
    unsigned detail;   /* enum spw_limit: of what failed first */
};

/* Whether what others have leased is waited for. */
static inline bool client_transfer_may_wait(const struct client_transfer *t)
{
    return t->timeout_ms != 0 && !(t->flags & SPW_NO_WAIT);
}
/* Was it refused for that? */
static inline bool client_view_lacks(const struct spw_view *view)
{
    return view->status == -ENOSPC && (view->detail == SPW_LIMIT_POOL_LEASES || view->detail == SPW_LIMIT_UID_LEASES);
}
int client_transfer_check(const char *name, const struct client_transfer *transfer) must_check;
/* How large an element is, or may be. */
uint64_t client_transfer_element_bytes(const struct client_transfer *transfer, size_t element);
/* Runs it on the calling thread. */
int client_transfer_run(const char *name, struct client_transfer *transfer);

/* --- queue.c ------------------------------------------------------------------------------------------------------ */

enum client_job_state { CLIENT_JOB_FREE, CLIENT_JOB_RUNS, CLIENT_JOB_ENDED, CLIENT_JOB_TAKEN };

enum client_job_kind {
    CLIENT_JOB_CALL,      /* on the queue's ring */
    CLIENT_JOB_TRANSFER,  /* run by a copy thread */
    CLIENT_JOB_SMALL_GET, /* on the queue's ring, and copied by whoever runs its turn */
};

/* Of a small get that runs; small_get.c has the transitions. */
enum client_get_state {
    CLIENT_GET_WAITS,
    CLIENT_GET_ASKED,
    CLIENT_GET_ANSWERED,
    CLIENT_GET_COPIED,
    CLIENT_GET_GIVEN,
    CLIENT_GET_SIZED,
    CLIENT_GET_ANSWERED_SIZE,
    CLIENT_GET_AGAIN,
    CLIENT_GET_ANSWERED_AGAIN,
};

struct spw_job {
    struct list link; /* of queue.free, .waiting, .due, .giving, or .ended */
    spw_queue *queue;
    void *user;
    enum client_job_state state;
    enum client_job_kind kind;
    int status;
    unsigned detail;
    uint64_t value;
    struct client_call call;
    struct client_transfer transfer; /* of both kinds that copy */
    struct client_task task;
    enum client_get_state get; /* from here on: a small get */
    struct spw_view *views;    /* CLIENT_SMALL_GET_VIEWS of queue.views */
    uint64_t room_bytes;       /* as which it counts, until its first leases are given back */
    bool is_again;             /* what is leased, or was, is one element, that was asked for again */
    struct spw_hit hit;
    size_t at; /* the element whose size is asked for, or that is asked for again */
};

struct spw_queue {
    struct list link; /* of session.queues */
    spw_session *session;
    struct client_ring *ring;
    int poll_fd;          /* epoll of the doorbell and of event_fd: what the user polls */
    int event_fd;         /* for ends that the daemon does not ring for */
    pthread_mutex_t lock; /* guards the rest, and the ring */
    pthread_cond_t changed;
    bool armed;         /* the user polls */
    bool signaled;      /* event_fd is readable, for what has ended */
    bool sleeper;       /* one thread sleeps on the ring; the others wait for `changed` */
    uint32_t is_roused; /* atomic: event_fd is readable because the daemon is back, or may be, as a read of it failed */
    struct list free, ended;
    /* Small gets: not asked for yet; to be gone on with by a turn; whose RELEASE has no room in the ring. */
    struct list waiting, due, giving;
    uint64_t small_bytes; /* of those that have leases, or asked for them */
    uint32_t n_jobs, n_running;
    struct spw_job *jobs;
    struct spw_view *views; /* of small gets */
};

/* What the spw_submit_… functions have in common: r is what building the call gave. */
int client_queue_submit(const char *name, spw_queue *queue, int r, const struct client_call *call, void *user,
                        spw_job **ret_job) must_check;
/* Takes whatever has ended off a queue whose owner asks each job. Who polls it is not disturbed. */
void client_queue_turn(spw_queue *queue);
/* Has it ended? For jobs that end in turns, and owners whose own lock is held in all of those. */
static inline bool client_job_is_over(const struct spw_job *job)
{
    return job->state != CLIENT_JOB_RUNS;
}
/* As spw_queue_arm(), but does not look for an answer first: for who waits for what takes long. */
int client_queue_arm(spw_queue *queue) must_check;
/* Who slept after that is awake: what rang is taken back. */
void client_queue_disarm(spw_queue *queue);
/* A thread may have to look again: one that waits for a job, and the user who polls. */
void client_queue_changed_locked(spw_queue *queue);
void client_job_end_locked(struct spw_job *job, int status, unsigned detail, uint64_t value);
/* How jobs end: a call's on_end, and a copy thread's task. */
void client_job_call_ended(struct client_call *call);
void client_job_transfer_run(struct client_task *task);
/* The session is over, or nothing runs; nobody uses the queue. */
void client_queue_destroy(spw_queue *queue);

/* --- small_get.c -------------------------------------------------------------------------------------------------- */

/* Is the transfer for here, and not for a copy thread? It was checked. *ret_bytes is as how much it counts. */
bool client_small_get_is(const struct client_transfer *transfer, uint64_t *ret_bytes);
/* Starts it. This and the rest with the queue's lock, which a step lets go while it copies. */
int client_small_get_start(struct spw_job *job) must_check;
/* Goes on with a job of queue.due. */
void client_small_get_step_locked(struct spw_job *job);
static inline bool client_small_get_is_due(const struct spw_job *job)
{
    return job->get == CLIENT_GET_ANSWERED || job->get == CLIENT_GET_ANSWERED_SIZE ||
           job->get == CLIENT_GET_ANSWERED_AGAIN;
}
/* Tries again to post the RELEASE of a job, and goes on. Returns false if there still is no room. */
bool client_small_get_give_locked(struct spw_job *job) must_check;
void client_small_get_cancel_locked(struct spw_job *job);
