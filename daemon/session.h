/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client's connection, as the control thread sees it: the socket, who is behind it, and all that hangs off it.
 *
 *     HELLO ──▶ OPEN ──▶ ENDING ──▶ freed
 *     HELLO, AWAY ──▶ ENDING;  AWAY ──▶ OPEN ──▶ AWAY;  OPEN, AWAY ──▶ LEAVING ──▶ freed
 * session_set_state() is the one place that assigns it. ENDING begins with the socket's hang-up, the process's end
 * (pidfd), a violation, or the daemon's own end; it is over when every engine has let go. AWAY: the last process left it, and
 * its client has not come back yet. LEAVING: this process ends, and the next one is to go on with it.
 */
#pragma once

#include "daemon/access.h"
#include "daemon/engine.h"
#include "daemon/loop.h"
#include "daemon/owner.h"
#include "io/memory.h"

struct control;

enum session_state { SESSION_HELLO, SESSION_OPEN, SESSION_AWAY, SESSION_LEAVING, SESSION_ENDING };

/* A session's seat at one engine, and the call that takes it. */
struct seat {
    struct engine_peer peer;
    struct peer_add_call add;
};

/* A ring pair: the engine's part, and the memory below it. */
struct session_ring {
    struct list link;
    struct ring ring;
    struct engine_peer *peer;
    struct memory_shared ring_mem, scratch_mem;
    struct ring_geometry geometry;
    int doorbell_fd;   /* ours */
    int doorbell_peer; /* the client's, until it is sent */
    struct ring_call call;
};

/* One request of the client that an engine works on. */
union session_call {
    struct space_call space;
    struct chunk_call chunk;
    struct unanswered_call unanswered;
    struct session_ring *ring;
};

struct session {
    struct list link;
    struct control *control;
    uint64_t number;
    uint64_t since_ns;
    enum session_state state;
    struct loop_source socket, pidfd;
    struct loop_timer timer; /* for HELLO; then for a reply that the client does not read; AWAY: for the client */
    struct access who;
    struct account *account;
    struct owner *owner;
    char name[SPW_NAME_BYTES];
    uint8_t token[SPW_TOKEN_BYTES];
    struct kept_session *kept; /* what the next process is to know; NULL: nothing */
    bool is_reattached;        /* its client has been at another process of ours */
    bool is_confirmed;         /* and knows that it goes on here: it has said something since */
    int refusal;               /* HELLO is answered with this, and the session ends */
    uint32_t refusal_detail;

    uint32_t pool_generation;
    bool pools[POOLS_MAX]; /* opened */
    struct seat *seats[ENGINES_MAX];
    struct list rings;
    uint32_t n_rings, next_ring;
    uint64_t scratch_bytes;
    struct list lanes;                           /* to GPUs */
    void (*lanes_gone)(struct session *session); /* it ends, and waits for that */

    bool busy; /* a request is with an engine: the socket is not read */
    struct spw_msg request;
    union session_call call;
    char *out; /* ADMIN: what is left of a long reply */
    uint64_t out_bytes, out_done;

    uint32_t n_ending;          /* engines that have not let go yet */
    bool is_quiet;              /* LEAVING: no engine serves its rings any more */
    struct engine_msg free_msg; /* to ourselves: nobody up the stack uses the session any more when it runs */
};

/* Takes the descriptor on success. -EMFILE and so on: not taken. */
must_check int session_accept(struct control *control, int fd);
void session_set_state(struct session *session, enum session_state state);
/* The session stays in memory until the loop's next turn at least. why: for the log; NULL if there is nothing to say. Violations are warnings. */
void session_end(struct session *session, const char *why, bool violation);
/* Ends all of them; control_session_gone() tells when the last has gone. */
void sessions_end(struct control *control, const char *why);

/* Nobody listens to it, and the engines are letting go. */
static inline bool session_is_going(const struct session *session)
{
    return session->state == SESSION_ENDING || session->state == SESSION_LEAVING;
}
/* The beginning of a session that has no socket. NULL: no memory. */
struct session *session_alloc(struct control *control, uint64_t number);
void session_source_close(struct session *session, struct loop_source *source);
/* Puts the session's socket and its peer's pidfd under the loop's eyes; the descriptors are the session's. */
must_check int session_watch(struct session *session, int fd);
/* The timer is free again for what it is for in a session with a client. */
void session_timer_reset(struct session *session);
/* LEAVING: as ENDING, but its leases and its row in the table stay. */
void session_leave(struct session *session);

/* session_away.c: sessions that outlive the process. */
/* Before the engines run: sessions and owners of the last process. */
must_check int sessions_restore(struct control *control);
/* Clients are served from now on: the time runs for those that have not come back. */
void sessions_wait(struct control *control);
/* The session whose HELLO this was goes on as the one that has this token, which then answers. Else the message is answered, and the
 * session ends. */
struct session *session_reattach(struct session *session, const struct spw_msg_hello *hello);
/* The connection has ended. What was reattached a moment ago is away again: perhaps the client did not wait for the answer. */
void session_hung_up(struct session *session, const char *why);
/* All of them leave, or end where that cannot be; control_session_gone() tells when the last has gone. */
void sessions_leave(struct control *control);
/* For how long one waits, as clients are told. */
uint32_t session_reattach_ms(const struct control *control);

/* session_request.c: one message, complete and with a header that was checked. */
void session_handle(struct session *session, const void *message, size_t size);

/* Replies. fds are the caller's. The session may be ENDING afterwards. */
void session_reply(struct session *session, void *message, size_t size, const int *fds, unsigned n_fds);
void session_reply_error(struct session *session, int status, uint32_t detail, const char *fmt, ...) printf_like(4, 5);
/* The request that an engine worked on is answered, or its session ended meanwhile. */
bool session_call_over(struct session *session);
/* ADMIN: takes text, which malloc() made. */
void session_reply_text(struct session *session, char *text, uint64_t size);

/* The pool of a handle of this session's; POOLS_MAX: none. */
uint32_t session_pool(const struct session *session, uint32_t handle);

/* session_manifest.c: MANIFEST; any size. */
void session_manifest(struct session *session, const void *message, size_t size);

/* session_ring.c */
/* Its seat at that engine, taken if need be; NULL: no memory. */
struct seat *session_seat(struct session *session, uint32_t engine);
/* The same before the engines run. */
struct seat *session_seat_restore(struct session *session, uint32_t engine);
/* UNANSWERED; any size. */
void session_unanswered(struct session *session, const void *message, size_t size);
/* RING_NEW, RING_FREE. */
void session_ring_new(struct session *session, const void *message);
void session_ring_free_asked(struct session *session, const void *message);
/* No engine knows it any more. Takes NULL. */
struct session_ring *session_ring_free(struct session *session, struct session_ring *ring);
