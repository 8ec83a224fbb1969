/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control socket: finding the daemon, the handshake, one request at a time with a deadline.
 *
 * A reply is believed only if it answers our request, has exactly the announced size, and brings exactly the expected
 * descriptors; anything else ends the session. A reply that comes after its request timed out is recognised by its
 * number and thrown away, descriptors included. The lock is held from the request to its reply: this is the slow path.
 */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "client/lib/client.h"
#include "include/base/socket.h"
#include "include/base/user_dir.h"

#define SOCKET_SYSTEM "/run/spillway/spillwayd.sock"
#define TIMEOUT_MS_DEFAULT 5000
#define LOOK_MS 100 /* at whether the session was closed */
#define PATH_BYTES sizeof(((struct sockaddr_un *)0)->sun_path)
#define FDS_MAX 8 /* room for more than any reply brings, so that surplus ones are seen and closed */

struct reply {
    union {
        struct spw_msg msg;
        struct spw_msg_error error;
        uint8_t bytes[512];
    };
    size_t size_bytes;
    int fds[FDS_MAX];
    unsigned n_fds;
};

static void fds_close(int *fds, unsigned n_fds)
{
    for (unsigned i = 0; i < n_fds; i++)
        close(steal_fd(&fds[i]));
}

/* One message, into `iov`. -ETIMEDOUT at the deadline, -ENOTCONN if the daemon has gone. */
static int receive(int socket, uint64_t deadline_ms, struct iovec iov, struct reply *ret)
{
    union {
        struct cmsghdr align;
        uint8_t bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
    } control;

    for (;;) {
        uint64_t now = client_now_ms();
        struct pollfd pfd = {.fd = socket, .events = POLLIN};
        int r = poll(&pfd, 1, now < deadline_ms ? (int)(deadline_ms - now) : 0);
        if (r < 0 && errno != EINTR)
            return -errno;
        if (r == 0)
            return -ETIMEDOUT;
        if (r < 0)
            continue;
        struct msghdr hdr = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
        ssize_t n = recvmsg(socket, &hdr, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0)
            return -ENOTCONN;
        ret->n_fds = socket_take_fds(&hdr, ret->fds, FDS_MAX);
        ret->size_bytes = (size_t)n;
        if (n == 0) { /* the end; or an empty message, which may bring descriptors all the same */
            fds_close(ret->fds, ret->n_fds);
            return -ENOTCONN;
        }
        if (hdr.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
            fds_close(ret->fds, ret->n_fds);
            return -EPROTO;
        }
        return 0;
    }
}

static int transmit(int socket, const void *bytes, size_t size_bytes)
{
    ssize_t n;

    do
        n = send(socket, bytes, size_bytes, MSG_NOSIGNAL); /* SO_SNDTIMEO bounds it */
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN)
        return -ETIMEDOUT;
    if (n < 0 && errno == EMSGSIZE)
        return -EMSGSIZE;
    return n < 0 ? -ENOTCONN : 0;
}

static void request_fill(spw_session *session, uint16_t type, struct spw_msg *request, size_t request_bytes)
{
    request->magic = SPW_ABI_MAGIC;
    request->type = type;
    request->version = SPW_ABI_VERSION;
    request->size_bytes = (uint32_t)request_bytes;
    request->request = ++session->next_request;
    request->status = 0;
    request->detail = 0;
}

static void away_note(spw_session *session, const struct spw_msg *msg, size_t size_bytes)
{
    struct spw_msg_away away;

    if (size_bytes == sizeof(away)) {
        memcpy(&away, msg, sizeof(away));
        session->away_ms = away.reattach_ms;
    }
}

/* Receives until the reply to this request comes. The header was checked when it returns 0. */
static int reply_wait(spw_session *session, int fd, const struct spw_msg *request, uint64_t deadline_ms,
                      struct iovec iov, struct reply *ret)
{
    const struct spw_msg *msg = iov.iov_base;

    for (;;) {
        int r = receive(fd, deadline_ms, iov, ret);
        if (r < 0)
            return r;
        bool sane = ret->size_bytes >= sizeof(*msg) && msg->magic == SPW_ABI_MAGIC &&
                    msg->size_bytes == ret->size_bytes && msg->status <= 0 && msg->status >= -4095;
        if (sane && msg->request == request->request && msg->type == (request->type | SPW_MSG_REPLY))
            return 0;
        fds_close(ret->fds, ret->n_fds);
        if (sane && msg->type == (SPW_MSG_AWAY | SPW_MSG_REPLY)) {
            away_note(session, msg, ret->size_bytes);
            continue;
        }
        if (!sane || msg->request - request->request < UINT32_MAX / 2) /* from the future, or of another type */
            return -EPROTO;
    }
}

/* Errors that no reply was. A hang-up may be a restart. */
static int control_broken(spw_session *session, uint32_t era, int r)
{
    if (r == -ETIMEDOUT)
        return client_error(r, 0, "the daemon did not answer within %u ms", session->timeout_ms);
    if (r == -EMSGSIZE)
        return client_error(r, 0, "the request is too large");
    if (r == -EPROTO)
        return client_session_end(session, "its reply makes no sense");
    r = client_session_hangup(session, era);
    return r < 0 ? r : -EAGAIN;
}

static int control_exchange(spw_session *session, int fd, struct spw_msg *request, size_t request_bytes,
                            struct reply *ret)
{
    struct iovec iov = {ret->bytes, sizeof(ret->bytes)};
    int r = transmit(fd, request, request_bytes);

    return r < 0 ? r : reply_wait(session, fd, request, client_now_ms() + session->timeout_ms, iov, ret);
}

/* Takes control_lock when there is a connection: *era, or any. Else it is not taken. */
static int control_lock(spw_session *session, uint32_t *era)
{
    for (;;) {
        int r = client_link_wait(session);
        if (r < 0)
            return r;
        pthread_mutex_lock(&session->control_lock);
        uint32_t now = load_acquire(&session->era);
        if (now % 2 == 0 && (*era == 0 || *era == now)) {
            *era = now;
            return 0;
        }
        pthread_mutex_unlock(&session->control_lock);
        if (*era != 0)
            return -ESTALE;
    }
}

/* The daemon refused: its words are the error's. */
static int reply_refused(const struct reply *reply)
{
    const struct spw_msg_error *error = &reply->error;
    size_t have = reply->size_bytes - sizeof(error->msg);
    int len = (int)strnlen(error->text, MIN(have, sizeof(error->text)));

    if (len > 0) { /* they name the limit already */
        client_error_set(SPW_LIMIT_NONE, "%.*s", len, error->text);
        client_error_set_limit(error->msg.detail);
    } else {
        client_error_set(error->msg.detail, "%s", strerrordesc_np(-error->msg.status));
    }
    return error->msg.status;
}

/* What a reply says, once it is believed to be one. */
static int reply_take(spw_session *session, struct reply *reply, struct spw_msg *ret_reply, size_t reply_bytes,
                      int *ret_fds, unsigned n_fds)
{
    if (reply->msg.status < 0) {
        fds_close(reply->fds, reply->n_fds);
        return reply_refused(reply);
    }
    if (reply->size_bytes != reply_bytes || reply->n_fds != n_fds) {
        fds_close(reply->fds, reply->n_fds);
        return client_session_end(session, "its reply has another size, or other descriptors, than expected");
    }
    memcpy(ret_reply, reply->bytes, reply_bytes);
    for (unsigned i = 0; i < n_fds; i++)
        ret_fds[i] = reply->fds[i];
    return 0;
}

int client_control_request_on(spw_session *session, uint32_t *era, uint16_t type, struct spw_msg *request,
                              size_t request_bytes, struct spw_msg *ret_reply, size_t reply_bytes, int *ret_fds,
                              unsigned n_fds)
{
    bool any = *era == 0;

    for (;;) {
        struct reply reply = {0};
        int r = client_session_check(session);

        if (r == 0)
            r = control_lock(session, era);
        if (r < 0)
            return r;
        request_fill(session, type, request, request_bytes);
        r = control_exchange(session, session->socket, request, request_bytes, &reply);
        pthread_mutex_unlock(&session->control_lock);
        if (r == 0)
            r = reply_take(session, &reply, ret_reply, reply_bytes, ret_fds, n_fds);
        else
            r = control_broken(session, *era, r);
        if (r != -EAGAIN || client_link_is_of(session, *era))
            return r;
        if (!any)
            return -ESTALE;
        *era = 0; /* once more, at the next process */
    }
}

int client_control_request(spw_session *session, uint16_t type, struct spw_msg *request, size_t request_bytes,
                           struct spw_msg *ret_reply, size_t reply_bytes, int *ret_fds, unsigned n_fds)
{
    uint32_t era = 0;

    return client_control_request_on(session, &era, type, request, request_bytes, ret_reply, reply_bytes, ret_fds,
                                     n_fds);
}

/* --- Administration ------------------------------------------------------------------------------------------------ */

/* A text that grows, up to CLIENT_ADMIN_BYTES_MAX. */
static int text_append(char **text, size_t *len, const void *bytes, size_t n)
{
    if (n > CLIENT_ADMIN_BYTES_MAX - *len)
        return -E2BIG;
    char *grown = realloc(*text, *len + n + 1);
    if (!grown)
        return -ENOMEM;
    memcpy(grown + *len, bytes, n);
    *len += n;
    grown[*len] = '\0';
    *text = grown;
    return 0;
}

static int admin_exchange(spw_session *session, uint32_t era, struct spw_msg *request, size_t request_bytes,
                          struct spw_msg *part, char **ret_text)
{
    cleanup_free char *text = NULL;
    size_t len = 0;
    uint64_t deadline_ms = client_now_ms() + session->timeout_ms;
    int r = transmit(session->socket, request, request_bytes);

    if (r < 0)
        return control_broken(session, era, r);
    do {
        struct reply reply = {0};
        struct iovec iov = {part, CONTROL_MESSAGE_BYTES_MAX};
        r = reply_wait(session, session->socket, request, deadline_ms, iov, &reply);
        if (r < 0)
            return control_broken(session, era, r);
        fds_close(reply.fds, reply.n_fds);
        if (part->status < 0) {
            reply.size_bytes = MIN(reply.size_bytes, sizeof(reply.bytes));
            memcpy(reply.bytes, part, reply.size_bytes);
            return reply_refused(&reply);
        }
        r = text_append(&text, &len, part + 1, reply.size_bytes - sizeof(*part));
        if (r < 0) /* parts are still coming: the socket cannot be used any more */
            return client_session_end(session, "its reply is too large");
    } while (part->detail & SPW_MSG_MORE);
    *ret_text = steal_ptr(text);
    return 0;
}

int spw_admin(spw_session *session, const char *request_json, char **ret_json)
{
    if (!session || !request_json || !ret_json)
        return client_error(-EINVAL, 0, "spw_admin: an argument is NULL");
    size_t len = strnlen(request_json, CONTROL_MESSAGE_BYTES_MAX), size_bytes = sizeof(struct spw_msg) + len;
    if (size_bytes > CONTROL_MESSAGE_BYTES_MAX)
        return client_error(-E2BIG, 0, "spw_admin: the request is longer than %d bytes", CONTROL_MESSAGE_BYTES_MAX);
    int r = client_session_check(session);
    if (r < 0)
        return r;
    cleanup_free struct spw_msg *request = calloc(1, size_bytes);
    cleanup_free struct spw_msg *part = malloc(CONTROL_MESSAGE_BYTES_MAX);
    if (!request || !part)
        return client_error(-ENOMEM, 0, "spw_admin: out of memory");
    memcpy(request + 1, request_json, len);
    uint32_t era = 0;
    r = control_lock(session, &era);
    if (r < 0)
        return r;
    request_fill(session, SPW_MSG_ADMIN, request, size_bytes);
    r = admin_exchange(session, era, request, size_bytes, part, ret_json);
    pthread_mutex_unlock(&session->control_lock);
    return r == -EAGAIN && !client_link_is_of(session, era)
               ? client_error(-ENOTCONN, 0, "the daemon is being restarted")
               : r;
}

/* --- Connecting ---------------------------------------------------------------------------------------------------- */

static int socket_connect(const char *path, uint32_t timeout_ms, int *ret_socket)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct timeval timeout = {.tv_sec = timeout_ms / 1000, .tv_usec = (suseconds_t)(timeout_ms % 1000) * 1000};

    if (strlen(path) >= sizeof(addr.sun_path))
        return client_error(-ENAMETOOLONG, 0, "%s: the path of a socket has at most %zu characters", path,
                            sizeof(addr.sun_path) - 1);
    memcpy(addr.sun_path, path, strlen(path) + 1);
    cleanup_close int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout)) < 0)
        return client_error(-errno, 0, "cannot make a socket: %s", strerrordesc_np(errno));
    if (connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0) {
        int r = errno == EAGAIN ? -ETIMEDOUT : -errno;
        return client_error(r, 0, "%s: %s%s", path, strerrordesc_np(-r),
                            r == -ENOENT || r == -ECONNREFUSED ? ": no daemon runs there"
                            : r == -EACCES                     ? ": this user may not (is it in the socket's group?)"
                                                               : "");
    }
    *ret_socket = steal_fd(&fd);
    return 0;
}

/* Remembers which path it was. */
static int socket_connect_to(const char *path, uint32_t timeout_ms, char ret_path[static PATH_BYTES], int *ret_socket)
{
    int r = socket_connect(path, timeout_ms, ret_socket);

    if (r == 0)
        memcpy(ret_path, path, strlen(path) + 1);
    return r;
}

/* Of the user's own daemon. False: there is no place for one. */
static bool user_path(char ret_path[static PATH_BYTES])
{
    const char *runtime_dir = secure_getenv("XDG_RUNTIME_DIR");
    char dir[USER_DIR_BYTES];
    int len;

    if (runtime_dir && *runtime_dir) {
        len = snprintf(ret_path, PATH_BYTES, "%s/spillway/spillwayd.sock", runtime_dir);
        return len > 0 && (size_t)len < PATH_BYTES;
    }
    user_dir_fallback(geteuid(), dir);
    len = snprintf(ret_path, PATH_BYTES, "%s/spillwayd.sock", dir);
    return len > 0 && (size_t)len < PATH_BYTES && user_dir_is_private(dir, geteuid());
}

/* The path that was asked for, or else the user's own daemon before the system's. */
static int socket_find(const char *path, uint32_t timeout_ms, char ret_path[static PATH_BYTES], int *ret_socket)
{
    char own_path[PATH_BYTES];

    if (!path)
        path = secure_getenv("SPILLWAY_SOCKET");
    if (path && *path)
        return socket_connect_to(path, timeout_ms, ret_path, ret_socket);
    if (user_path(own_path)) {
        int r = socket_connect_to(own_path, timeout_ms, ret_path, ret_socket);
        if (r != -ENOENT && r != -ECONNREFUSED)
            return r;
    }
    return socket_connect_to(SOCKET_SYSTEM, timeout_ms, ret_path, ret_socket);
}

static void hello_fill(struct spw_msg_hello *ret_hello, const char *name)
{
    *ret_hello = (struct spw_msg_hello){.version_min = SPW_ABI_VERSION, .version_max = SPW_ABI_VERSION};
    memcpy(ret_hello->name, name, strnlen(name, sizeof(ret_hello->name) - 1));
}

static int welcome_check(spw_session *session, const struct spw_msg_welcome *welcome)
{
    if (welcome->version != SPW_ABI_VERSION)
        return client_error(-EPROTONOSUPPORT, 0,
                            "the daemon speaks version %u of the protocol, this library version %d", welcome->version,
                            SPW_ABI_VERSION);
    if (welcome->engines == 0 || welcome->engines > ENGINES_MAX || welcome->list_max == 0 ||
        welcome->ring_entries_max < RING_ENTRIES_MIN || welcome->scratch_bytes_max < CLIENT_SCRATCH_BYTES_MIN)
        return client_session_end(session, "the limits in its welcome make no sense");
    session->engines = welcome->engines;
    session->list_max = MIN(welcome->list_max, (uint32_t)SPW_LIST_MAX);
    session->ring_entries = MIN(session->ring_entries, welcome->ring_entries_max); /* ours were checked already */
    session->scratch_bytes = MIN(session->scratch_bytes, welcome->scratch_bytes_max);
    memcpy(session->owner_token, welcome->owner_token, sizeof(session->owner_token));
    memcpy(session->token, welcome->session_token, sizeof(session->token));
    session->number = welcome->session;
    session->memory_id = welcome->memory_id;
    session->reattach_ms = welcome->reattach_ms;
    return 0;
}

int client_control_connect(spw_session *session, const struct spw_connect_options *options)
{
    struct spw_msg_hello hello;
    struct spw_msg_welcome welcome = {0};
    const char *name = options->name ? options->name : program_invocation_short_name;

    session->timeout_ms = options->timeout_ms ? options->timeout_ms : TIMEOUT_MS_DEFAULT;
    int r = socket_find(options->socket_path, session->timeout_ms, session->path, &session->socket);
    if (r < 0)
        return r;
    hello_fill(&hello, name);
    if (options->owner_token)
        memcpy(hello.owner_token, options->owner_token, sizeof(hello.owner_token));
    r = client_control_request(session, SPW_MSG_HELLO, &hello.msg, sizeof(hello), &welcome.msg, sizeof(welcome), NULL,
                               0);
    return r < 0 ? r : welcome_check(session, &welcome);
}

/* --- The daemon's next process -------------------------------------------------------------------------------------- */

int client_control_dial(spw_session *session, int *ret_fd)
{
    int r = socket_connect(session->path, session->timeout_ms, ret_fd);

    return r == -ENOENT || r == -ECONNREFUSED || r == -ETIMEDOUT || r == -ECONNRESET ? -EAGAIN : r;
}

/* A process that starts, or that hands over to the next one, lets us wait: as long as it is worth it, and nobody closes the
 * session meanwhile. */
static int reattach_wait(const spw_session *session, int fd)
{
    struct pollfd pfd = {.fd = fd, .events = POLLIN};

    while (poll(&pfd, 1, LOOK_MS) <= 0) {
        if (load_acquire(&session->dead) != 0)
            return -ENOTCONN;
        if (client_now_ms() > session->lost_until_ms)
            return -EAGAIN;
    }
    return 0;
}

/* One request of the handshake. */
static int reattach_request(spw_session *session, int fd, uint16_t type, struct spw_msg *request, size_t request_bytes,
                            struct spw_msg *ret_reply, size_t reply_bytes)
{
    struct reply reply = {0};

    request_fill(session, type, request, request_bytes);
    struct iovec iov = {reply.bytes, sizeof(reply.bytes)};
    int r = transmit(fd, request, request_bytes);

    if (r == 0)
        r = reattach_wait(session, fd);
    if (r == 0)
        r = reply_wait(session, fd, request, client_now_ms() + session->timeout_ms, iov, &reply);
    if (r == -ENOTCONN || r == -ETIMEDOUT) /* it is gone again, or not ready yet */
        return -EAGAIN;
    return r < 0 ? r : reply_take(session, &reply, ret_reply, reply_bytes, NULL, 0);
}

static int reattach_hello(spw_session *session, int fd)
{
    struct spw_msg_hello hello;
    struct spw_msg_welcome welcome = {0};

    hello_fill(&hello, program_invocation_short_name); /* it keeps the name that it had */
    memcpy(hello.session_token, session->token, sizeof(hello.session_token));
    int r = reattach_request(session, fd, SPW_MSG_HELLO, &hello.msg, sizeof(hello), &welcome.msg, sizeof(welcome));

    if (r < 0)
        return r;
    if (welcome.session != session->number || welcome.engines != session->engines)
        return client_error(-EPROTO, 0, "the daemon goes on with another session");
    if (welcome.memory_id != session->memory_id)
        return client_error(-ENOTCONN, 0, "the daemon was restarted, and its memory was lost");
    session->reattach_ms = welcome.reattach_ms;
    return 0;
}

static int reattach_pool(struct spw_pool *pool, int fd)
{
    struct spw_msg_pool_open open = {0};
    struct spw_msg_pool reply = {0};

    memcpy(open.name, pool->name, sizeof(open.name));
    int r = reattach_request(pool->session, fd, SPW_MSG_POOL_OPEN, &open.msg, sizeof(open), &reply.msg, sizeof(reply));

    if (r == 0)
        store_relaxed(&pool->handle, reply.pool);
    return r;
}

static int reattach_space(struct spw_space *space, int fd)
{
    struct spw_msg_space_open open = space->ask;
    struct spw_msg_space reply = {0};
    uint32_t engine = load_relaxed(&space->engine);

    open.pool = load_relaxed(&space->pool->handle);
    int r =
        reattach_request(space->session, fd, SPW_MSG_SPACE_OPEN, &open.msg, sizeof(open), &reply.msg, sizeof(reply));

    if (r < 0)
        return r;
    if (engine != UINT32_MAX && (reply.engine != engine || reply.piece_bytes != space->piece_bytes))
        return client_error(-EPROTO, 0, "a space is served by another engine after a restart");
    store_relaxed(&space->handle, reply.space);
    return 0;
}

/* What is being opened at this moment may be refused: its opener will hear of that. */
static bool is_open(const struct spw_space *space)
{
    return load_acquire(&space->engine) != UINT32_MAX; /* pairs with spw_space_open() */
}

int client_control_reattach(spw_session *session, int fd)
{
    int r = reattach_hello(session, fd);

    pthread_mutex_lock(&session->lock);
    list_for_each (pos, &session->pools)
        if (r == 0)
            r = reattach_pool(list_entry(pos, struct spw_pool, link), fd);
    list_for_each (pos, &session->spaces)
        if (r == 0 && is_open(list_entry(pos, struct spw_space, link)))
            r = reattach_space(list_entry(pos, struct spw_space, link), fd);
    pthread_mutex_unlock(&session->lock);
    return r;
}

void client_control_last_words(spw_session *session)
{
    struct reply reply = {0};

    for (;;) {
        struct iovec iov = {reply.bytes, sizeof(reply.bytes)};

        if (receive(session->socket, 0, iov, &reply) < 0)
            return;
        fds_close(reply.fds, reply.n_fds);
        if (reply.size_bytes >= sizeof(reply.msg) && reply.msg.type == (SPW_MSG_AWAY | SPW_MSG_REPLY))
            away_note(session, &reply.msg, reply.size_bytes);
    }
}
