/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rings of the calling thread, one for each session and engine that it talks to, and the list of living sessions.
 *
 * A thread finds its ring in its own table, without a lock, by the session's serial number: that is never used again,
 * so a table may keep rows of sessions that were closed long ago; nobody asks for them. The end of a thread and the
 * close of a session may meet: the one that finds the session alive (under the lock) takes a reference, and the last
 * reference frees it. The lock is held for lists only, never for a request, and across fork(): a child starts with no
 * living session and a lock that nobody holds.
 */
#include <string.h>

#include "client/lib/client.h"

struct row {
    uint64_t serial;
    uint32_t engine;
    struct client_ring *ring;
};

struct table {
    uint32_t n;
    struct row rows[CLIENT_RINGS_MAX];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards what follows, and session.refs */
static struct list sessions = LIST_INIT(sessions);
static uint64_t serials;

static pthread_key_t key; /* its destructor sees threads end */
static bool has_key, has_atfork;
/* One pointer: it fits into what the C library keeps for libraries that are loaded later, and costs no call to find. */
static __thread struct table *table __attribute__((tls_model("initial-exec")));

static spw_session *session_find_locked(uint64_t serial)
{
    list_for_each (pos, &sessions) {
        spw_session *session = list_entry(pos, struct spw_session, link);
        if (session->serial == serial)
            return session;
    }
    return NULL;
}

static void session_unref(spw_session *session)
{
    pthread_mutex_lock(&lock);
    bool last = --session->refs == 0;
    pthread_mutex_unlock(&lock);
    if (last)
        client_session_destroy(session);
}

static void thread_ends(void *arg)
{
    struct table *mine = arg;

    for (uint32_t i = 0; i < mine->n; i++) {
        pthread_mutex_lock(&lock);
        spw_session *session = session_find_locked(mine->rows[i].serial);
        if (session)
            session->refs++;
        pthread_mutex_unlock(&lock);
        if (!session)
            continue; /* closed: the ring went with it */
        client_ring_free(mine->rows[i].ring);
        session_unref(session);
    }
    free(mine);
    table = NULL;
}

static void fork_prepare(void)
{
    pthread_mutex_lock(&lock);
}

static void fork_parent(void)
{
    pthread_mutex_unlock(&lock);
}

static void fork_child(void)
{
    list_init(&sessions); /* they are the parent's */
    pthread_mutex_unlock(&lock);
}

/* What the process needs once. What cannot be had now is asked for again by the next session. */
static int process_init_locked(void)
{
    int r = has_key ? 0 : -pthread_key_create(&key, thread_ends);

    has_key |= r == 0;
    if (r == 0 && !has_atfork) {
        r = -pthread_atfork(fork_prepare, fork_parent, fork_child);
        has_atfork = r == 0;
    }
    return r;
}

/* If the library is unloaded, no destructor of ours may run. */
__attribute__((destructor)) static void unload(void)
{
    if (has_key)
        pthread_key_delete(key);
}

int client_thread_register(spw_session *session)
{
    pthread_mutex_lock(&lock);
    int r = process_init_locked();
    if (r == 0)
        r = client_fork_mark(&session->fork_mark);
    if (r == 0) {
        session->serial = ++serials;
        list_push_tail(&sessions, &session->link);
    }
    pthread_mutex_unlock(&lock);
    return r;
}

int client_thread_fork_mark(uint32_t *ret_mark)
{
    pthread_mutex_lock(&lock);
    int r = process_init_locked();
    if (r == 0)
        r = client_fork_mark(ret_mark);
    pthread_mutex_unlock(&lock);
    return r;
}

void client_thread_unregister(spw_session *session)
{
    pthread_mutex_lock(&lock);
    list_unlink(&session->link);
    pthread_mutex_unlock(&lock);
    session_unref(session);
}

/* A row of its own for the calling thread, in place of one whose session is gone if there is such. */
static int row_new(struct row **ret_row)
{
    if (!table) {
        struct table *fresh = calloc(1, sizeof(*fresh));
        if (!fresh)
            return client_error(-ENOMEM, 0, "out of memory");
        int r = -pthread_setspecific(key, fresh);
        if (r < 0) {
            free(fresh);
            return client_error(r, 0, "cannot watch for the end of this thread: %s", strerrordesc_np(-r));
        }
        table = fresh;
    }
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < table->n;) {
        if (session_find_locked(table->rows[i].serial))
            i++;
        else
            table->rows[i] = table->rows[--table->n];
    }
    pthread_mutex_unlock(&lock);
    if (table->n == CLIENT_RINGS_MAX)
        return client_error(-EMFILE, 0, "this thread has %d rings already, one a session and engine", CLIENT_RINGS_MAX);
    *ret_row = &table->rows[table->n];
    return 0;
}

int client_thread_ring(spw_session *session, uint32_t engine, struct client_ring **ret_ring)
{
    struct client_ring *ring = NULL;
    struct row *row = NULL;

    for (uint32_t i = 0; table && i < table->n; i++) {
        if (table->rows[i].serial == session->serial && table->rows[i].engine == engine) {
            *ret_ring = table->rows[i].ring;
            return 0;
        }
    }
    int r = row_new(&row);
    if (r == 0)
        r = client_ring_new(session, engine, session->ring_entries, &ring);
    if (r < 0)
        return r;
    *row = (struct row){session->serial, engine, ring};
    table->n++;
    *ret_ring = ring;
    return 0;
}
