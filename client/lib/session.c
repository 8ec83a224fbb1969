/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions, pools and spaces: the handles, and how a session lives and ends.
 *
 *   living ── hang-up without return, broken protocol ──▶ dead ── spw_close() ──▶ freed
 *
 * A dead session answers every call with the same errno; what it has mapped stays until it is closed, so that views can
 * still be read. `dead` is set once. A forked child finds the session with another process's mark, and touches none of
 * it: its locks may have been held, its mappings are not there. It only closes its copy of the socket.
 */
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>

#include "client/lib/client.h"

#define RING_ENTRIES_DEFAULT 256
#define SCRATCH_BYTES_DEFAULT (2 * MIB)
#define COPY_THREADS_DEFAULT 2

int client_session_check(const spw_session *session)
{
    if (unlikely(!client_fork_is(session->fork_mark)))
        return client_error(-ECHILD, 0, "the handle belongs to the parent process: connect anew after fork()");
    uint32_t dead = load_acquire(&session->dead); /* pairs with client_session_end() */
    if (likely(dead == 0))
        return 0;
    if (dead == EPROTO)
        return client_error(-EPROTO, 0, "the session has ended, the daemon broke the protocol: %s",
                            load_relaxed(&session->dead_reason));
    return client_error(-(int)dead, 0, "the daemon has ended the session, or is gone: connect anew");
}

int client_session_end(spw_session *session, const char *reason)
{
    uint32_t living = 0;

    if (reason && load_relaxed(&session->dead) == 0) {
        const char *none = NULL;
        __atomic_compare_exchange_n(&session->dead_reason, &none, reason, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
    /* Release: whoever sees it dead sees the reason. */
    __atomic_compare_exchange_n(&session->dead, &living, reason ? EPROTO : ENOTCONN, false, __ATOMIC_ACQ_REL,
                                __ATOMIC_ACQUIRE);
    shutdown(session->socket, SHUT_RDWR); /* also wakes a thread that waits for a reply, and the watcher */
    return client_session_check(session);
}

int client_session_hangup(spw_session *session, uint32_t era)
{
    if (load_acquire(&session->has_watcher) == 0) /* pairs with client_link_watch() */
        return client_session_end(session, NULL);
    /* What could not be sent does not mean that the other end has gone: then nothing else would wake the watcher. If it was
     * awake, and has a connection by now, that one is lost, too, and there is a next. */
    if (client_link_lost(session, era))
        shutdown(session->socket, SHUT_RDWR);
    return client_session_check(session);
}

int client_session_probe(spw_session *session)
{
    struct pollfd pfd = {.fd = session->socket}; /* POLLHUP and POLLERR come unasked */
    uint32_t era = load_acquire(&session->era);

    if (era % 2 == 0 && load_relaxed(&session->dead) == 0 && poll(&pfd, 1, 0) > 0)
        return client_session_hangup(session, era);
    return client_session_check(session);
}

/* --- Beginning and end ---------------------------------------------------------------------------------------------- */

static spw_session *session_alloc(const struct spw_connect_options *options)
{
    spw_session *session = calloc(1, sizeof(*session));

    if (!session)
        return NULL;
    session->socket = -1;
    session->refs = 1;
    session->era = 2; /* 0: of no connection */
    session->ring_entries = options->ring_entries ? options->ring_entries : RING_ENTRIES_DEFAULT;
    session->scratch_bytes = options->scratch_bytes ? options->scratch_bytes : SCRATCH_BYTES_DEFAULT;
    session->spin_ns_max = options->spin_us ? options->spin_us * 1000 : CLIENT_SPIN_US_DEFAULT * 1000;
    if (options->spin_us == SPW_SPIN_NEVER)
        session->spin_ns_max = 0;
    pthread_mutex_init(&session->control_lock, NULL);
    pthread_mutex_init(&session->lock, NULL);
    pthread_mutex_init(&session->chunk_lock, NULL);
    pthread_mutex_init(&session->link_lock, NULL);
    client_cond_init(&session->link_changed);
    list_init(&session->link);
    list_init(&session->rings);
    list_init(&session->queues);
    list_init(&session->gpus_left);
    list_init(&session->gpu_windows);
    list_init(&session->gpu_mappers);
    list_init(&session->pools);
    list_init(&session->spaces);
    return session;
}

void client_session_destroy(spw_session *session)
{
    while (!list_is_empty(&session->rings))
        client_ring_destroy(list_entry(list_pop(&session->rings), struct client_ring, link));
    while (!list_is_empty(&session->spaces))
        free(list_entry(list_pop(&session->spaces), struct spw_space, link));
    while (!list_is_empty(&session->pools))
        free(list_entry(list_pop(&session->pools), struct spw_pool, link));
    client_chunks_deinit(session);
    if (session->copy)
        client_copy_free(session->copy);
    if (session->socket >= 0)
        close(session->socket);
    pthread_cond_destroy(&session->link_changed);
    pthread_mutex_destroy(&session->link_lock);
    pthread_mutex_destroy(&session->chunk_lock);
    pthread_mutex_destroy(&session->lock);
    pthread_mutex_destroy(&session->control_lock);
    free(session);
}
DEFINE_CLEANUP(spw_session *, client_session_destroy)

static int options_check(const struct spw_connect_options *options)
{
    if (options->spin_us > CLIENT_SPIN_US_MAX && options->spin_us != SPW_SPIN_NEVER)
        return client_error(-EINVAL, 0, "spw_connect: spin_us is at most %d, or SPW_SPIN_NEVER", CLIENT_SPIN_US_MAX);
    if (options->copy_threads > WORKERS_MAX)
        return client_error(-EINVAL, 0, "spw_connect: at most %d copy threads", WORKERS_MAX);
    if (options->ring_entries != 0 && (!is_pow2(options->ring_entries) || options->ring_entries < RING_ENTRIES_MIN ||
                                       options->ring_entries > RING_ENTRIES_MAX))
        return client_error(-EINVAL, 0, "spw_connect: ring_entries is a power of two from %d to %d", RING_ENTRIES_MIN,
                            RING_ENTRIES_MAX);
    if (options->scratch_bytes != 0 &&
        (options->scratch_bytes % SECTOR_BYTES != 0 || options->scratch_bytes < CLIENT_SCRATCH_BYTES_MIN ||
         options->scratch_bytes > SCRATCH_BYTES_MAX))
        return client_error(-EINVAL, 0, "spw_connect: scratch_bytes is a multiple of %lu from %llu to %llu",
                            SECTOR_BYTES, (unsigned long long)CLIENT_SCRATCH_BYTES_MIN,
                            (unsigned long long)SCRATCH_BYTES_MAX);
    return 0;
}

int spw_connect(const struct spw_connect_options *options, spw_session **ret_session)
{
    static const struct spw_connect_options defaults;

    if (!ret_session)
        return client_error(-EINVAL, 0, "spw_connect: ret_session is NULL");
    if (!options)
        options = &defaults;
    int r = options_check(options);
    if (r < 0)
        return r;
    cleanup_(client_session_destroyp) spw_session *session = session_alloc(options);
    if (!session)
        return client_error(-ENOMEM, 0, "spw_connect: out of memory");
    r = client_copy_new(options->copy_threads ? options->copy_threads : COPY_THREADS_DEFAULT, &session->copy);
    if (r < 0)
        return client_error(r, 0, "spw_connect: out of memory");
    r = client_thread_register(session);
    if (r < 0)
        return client_error(r, 0, "spw_connect: %s", strerrordesc_np(-r));
    r = client_control_connect(session, options);
    if (r < 0) {
        client_thread_unregister(steal_ptr(session));
        return r;
    }
    *ret_session = steal_ptr(session);
    return 0;
}

void spw_close(spw_session *session)
{
    if (!session)
        return;
    if (!client_fork_is(session->fork_mark)) { /* the rest is the parent's; leaking it in the child is safe */
        if (session->socket >= 0)
            close(steal_fd(&session->socket));
        return;
    }
    (void)client_session_end(session, NULL);
    client_link_unwatch(session);
    client_copy_free(steal_ptr(session->copy)); /* ends the jobs that its threads run, before their queues go */
    while (!list_is_empty(&session->queues))
        client_queue_destroy(list_entry(list_pop(&session->queues), struct spw_queue, link));
    client_gpu_left_free(session);
    client_thread_unregister(session);
}

void spw_owner_token(const spw_session *session, uint8_t *ret_token)
{
    if (session && ret_token)
        memcpy(ret_token, session->owner_token, SPW_TOKEN_BYTES);
}

/* --- Pools and spaces ----------------------------------------------------------------------------------------------- */

/* Of an element of either list. */
static void handle_drop(spw_session *session, struct list *link)
{
    pthread_mutex_lock(&session->lock);
    list_unlink(link);
    pthread_mutex_unlock(&session->lock);
}

int spw_pool_open(spw_session *session, const char *name, spw_pool **ret_pool)
{
    struct spw_msg_pool_open open = {0};
    struct spw_msg_pool reply = {0};
    uint32_t era;
    int r;

    if (!session || !name || !ret_pool)
        return client_error(-EINVAL, 0, "spw_pool_open: an argument is NULL");
    if (!*name || strlen(name) >= sizeof(open.name))
        return client_error(-EINVAL, 0, "spw_pool_open: a name has 1 to %zu characters", sizeof(open.name) - 1);
    memcpy(open.name, name, strlen(name));
    r = client_session_check(session);
    if (r < 0)
        return r;
    r = client_link_watch(session);
    struct spw_pool *pool = r == 0 ? calloc(1, sizeof(*pool)) : NULL;
    if (!pool)
        return client_error(r < 0 ? r : -ENOMEM, 0, "spw_pool_open: %s",
                            r < 0 ? "cannot start a thread" : "out of memory");
    pool->session = session;
    memcpy(pool->name, open.name, sizeof(pool->name));
    /* In the list first: then after a restart of the daemon it is opened there, whenever that comes. */
    pthread_mutex_lock(&session->lock);
    list_push_tail(&session->pools, &pool->link);
    pthread_mutex_unlock(&session->lock);
    do {
        era = 0;
        r = client_control_request_on(session, &era, SPW_MSG_POOL_OPEN, &open.msg, sizeof(open), &reply.msg,
                                      sizeof(reply), NULL, 0);
        store_relaxed(&pool->handle, reply.pool);
    } while (r == 0 && era != load_acquire(&session->era) && client_session_check(session) == 0);
    if (r < 0) {
        handle_drop(session, &pool->link);
        free(pool);
        return r;
    }
    pool->info = (struct spw_pool_info){.flags = reply.flags,
                                        .dram_bytes = reply.dram_bytes,
                                        .cxl_bytes = reply.cxl_bytes,
                                        .nvme_bytes = reply.nvme_bytes,
                                        .gpu_bytes = reply.gpu_bytes};
    *ret_pool = pool;
    return 0;
}

void spw_pool_info(const spw_pool *pool, struct spw_pool_info *ret_info)
{
    if (pool && ret_info)
        *ret_info = pool->info;
}

/* The NUMA node that the calling thread runs on. */
static uint32_t node_here(void)
{
    unsigned node;

    return getcpu(NULL, &node) == 0 ? node : UINT32_MAX;
}

static int space_options_check(const struct spw_space_options *options)
{
    for (size_t i = 0; i < sizeof(options->reserved); i++)
        if (options->reserved[i] != 0)
            return client_error(-EINVAL, 0, "spw_space_open: `reserved` must be 0");
    if (options->class_id >= SPW_CLASSES)
        return client_error(-EINVAL, 0, "spw_space_open: there is no class %u", options->class_id);
    if (options->durability > SPW_DURABLE)
        return client_error(-EINVAL, 0, "spw_space_open: there is no durability %u", options->durability);
    if (options->flags & ~(uint32_t)SPW_SPACE_MUST_EXIST)
        return client_error(-EINVAL, 0, "spw_space_open: unknown flags 0x%x", options->flags);
    if (options->item_bytes > OBJECT_BYTES_MAX)
        return client_error(-EINVAL, SPW_LIMIT_OBJECT_BYTES, "spw_space_open: item_bytes");
    return 0;
}

static int space_ask(struct spw_space *space, struct spw_msg_space *ret_reply)
{
    spw_session *session = space->session;
    uint32_t era;
    int r;

    do { /* until it is known by the name that it has on this connection */
        struct spw_msg_space_open ask = space->ask;

        era = 0;
        ask.pool = load_relaxed(&space->pool->handle);
        r = client_control_request_on(session, &era, SPW_MSG_SPACE_OPEN, &ask.msg, sizeof(ask), &ret_reply->msg,
                                      sizeof(*ret_reply), NULL, 0);
        store_relaxed(&space->handle, ret_reply->space);
    } while (era != load_acquire(&session->era) && (r == 0 || r == -EBADF) && client_link_wait(session) == 0);
    if (r == 0 && (ret_reply->engine >= session->engines || ret_reply->piece_bytes == 0))
        return client_session_end(session, "a space without an engine, or without a size of pieces");
    return r;
}

int spw_space_open(spw_pool *pool, const struct spw_space_options *options, spw_space **ret_space)
{
    struct spw_msg_space reply = {0};

    if (!pool || !options || !ret_space)
        return client_error(-EINVAL, 0, "spw_space_open: an argument is NULL");
    int r = space_options_check(options);
    if (r < 0)
        return r;
    spw_session *session = pool->session;
    struct spw_space *space = calloc(1, sizeof(*space));
    if (!space)
        return client_error(-ENOMEM, 0, "spw_space_open: out of memory");
    *space = (struct spw_space){.session = session,
                                .pool = pool,
                                .item_bytes = options->item_bytes,
                                .engine = UINT32_MAX,
                                .ask = {.flags = options->flags,
                                        .item_bytes = options->item_bytes,
                                        .class_id = options->class_id,
                                        .durability = options->durability,
                                        .node = options->node ? options->node - 1 : node_here()}};
    memcpy(space->ask.digest, options->digest, sizeof(space->ask.digest));
    pthread_mutex_lock(&session->lock);
    list_push_tail(&session->spaces, &space->link);
    pthread_mutex_unlock(&session->lock);
    r = space_ask(space, &reply);
    if (r < 0) {
        handle_drop(session, &space->link);
        free(space);
        return r;
    }
    space->piece_bytes = reply.piece_bytes;
    store_release(&space->engine, reply.engine); /* pairs with the acquire in control.c: from now on it is open */
    *ret_space = space;
    return 0;
}

uint32_t spw_space_piece_bytes(const spw_space *space)
{
    return space ? space->piece_bytes : 0;
}

int spw_key_init(struct spw_key *ret_key, const void *bytes, size_t len, uint32_t group)
{
    if (!ret_key || !bytes || len == 0 || len > SPW_KEY_BYTES)
        return client_error(-EINVAL, 0, "spw_key_init: a key has 1 to %d bytes", SPW_KEY_BYTES);
    *ret_key = (struct spw_key){.group = group, .len = (uint8_t)len};
    memcpy(ret_key->bytes, bytes, len);
    return 0;
}
