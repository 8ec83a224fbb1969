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

#define SOCKET_SYSTEM "/run/spillway/spillwayd.sock"
#define TIMEOUT_MS_DEFAULT 5000
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

/* Receives until the reply to this request comes. The header was checked when it returns 0. */
static int reply_wait(const spw_session *session, const struct spw_msg *request, uint64_t deadline_ms, struct iovec iov,
                      struct reply *ret)
{
    const struct spw_msg *msg = iov.iov_base;

    for (;;) {
        int r = receive(session->socket, deadline_ms, iov, ret);
        if (r < 0)
            return r;
        bool sane = ret->size_bytes >= sizeof(*msg) && msg->magic == SPW_ABI_MAGIC &&
                    msg->size_bytes == ret->size_bytes && msg->status <= 0 && msg->status >= -4095;
        if (sane && msg->request == request->request && msg->type == (request->type | SPW_MSG_REPLY))
            return 0;
        fds_close(ret->fds, ret->n_fds);
        if (!sane || msg->request - request->request < UINT32_MAX / 2) /* from the future, or of another type */
            return -EPROTO;
    }
}

/* Errors that no reply was. */
static int control_broken(spw_session *session, int r)
{
    if (r == -ETIMEDOUT)
        return client_error(r, 0, "the daemon did not answer within %u ms", session->timeout_ms);
    if (r == -EMSGSIZE)
        return client_error(r, 0, "the request is too large");
    return client_session_end(session, r == -EPROTO ? "its reply makes no sense" : NULL);
}

static int control_exchange(spw_session *session, struct spw_msg *request, size_t request_bytes, struct reply *ret)
{
    struct iovec iov = {ret->bytes, sizeof(ret->bytes)};
    int r = transmit(session->socket, request, request_bytes);

    if (r == 0)
        r = reply_wait(session, request, client_now_ms() + session->timeout_ms, iov, ret);
    return r < 0 ? control_broken(session, r) : 0;
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

int client_control_request(spw_session *session, uint16_t type, struct spw_msg *request, size_t request_bytes,
                           struct spw_msg *ret_reply, size_t reply_bytes, int *ret_fds, unsigned n_fds)
{
    struct reply reply = {0};
    int r = client_session_check(session);

    if (r < 0)
        return r;
    pthread_mutex_lock(&session->control_lock);
    request_fill(session, type, request, request_bytes);
    r = control_exchange(session, request, request_bytes, &reply);
    pthread_mutex_unlock(&session->control_lock);
    if (r < 0)
        return r;
    if (reply.msg.status < 0) {
        fds_close(reply.fds, reply.n_fds);
        return reply_refused(&reply);
    }
    if (reply.size_bytes != reply_bytes || reply.n_fds != n_fds) {
        fds_close(reply.fds, reply.n_fds);
        return client_session_end(session, "its reply has another size, or other descriptors, than expected");
    }
    memcpy(ret_reply, reply.bytes, reply_bytes);
    for (unsigned i = 0; i < n_fds; i++)
        ret_fds[i] = reply.fds[i];
    return 0;
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

static int admin_exchange(spw_session *session, struct spw_msg *request, size_t request_bytes, struct spw_msg *part,
                          char **ret_text)
{
    cleanup_free char *text = NULL;
    size_t len = 0;
    uint64_t deadline_ms = client_now_ms() + session->timeout_ms;
    int r = transmit(session->socket, request, request_bytes);

    if (r < 0)
        return control_broken(session, r);
    do {
        struct reply reply = {0};
        struct iovec iov = {part, CONTROL_MESSAGE_BYTES_MAX};
        r = reply_wait(session, request, deadline_ms, iov, &reply);
        if (r < 0)
            return control_broken(session, r);
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
    pthread_mutex_lock(&session->control_lock);
    request_fill(session, SPW_MSG_ADMIN, request, size_bytes);
    r = admin_exchange(session, request, size_bytes, part, ret_json);
    pthread_mutex_unlock(&session->control_lock);
    return r;
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

/* The path that was asked for, or else the user's own daemon before the system's. */
static int socket_find(const char *path, uint32_t timeout_ms, int *ret_socket)
{
    char user_path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    const char *runtime_dir = secure_getenv("XDG_RUNTIME_DIR");

    if (!path)
        path = secure_getenv("SPILLWAY_SOCKET");
    if (path && *path)
        return socket_connect(path, timeout_ms, ret_socket);
    if (runtime_dir && *runtime_dir) {
        int len = snprintf(user_path, sizeof(user_path), "%s/spillway/spillwayd.sock", runtime_dir);
        if (len > 0 && (size_t)len < sizeof(user_path)) {
            int r = socket_connect(user_path, timeout_ms, ret_socket);
            if (r != -ENOENT && r != -ECONNREFUSED)
                return r;
        }
    }
    return socket_connect(SOCKET_SYSTEM, timeout_ms, ret_socket);
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
    return 0;
}

int client_control_connect(spw_session *session, const struct spw_connect_options *options)
{
    struct spw_msg_hello hello = {.version_min = SPW_ABI_VERSION, .version_max = SPW_ABI_VERSION};
    struct spw_msg_welcome welcome = {0};
    const char *name = options->name ? options->name : program_invocation_short_name;

    session->timeout_ms = options->timeout_ms ? options->timeout_ms : TIMEOUT_MS_DEFAULT;
    int r = socket_find(options->socket_path, session->timeout_ms, &session->socket);
    if (r < 0)
        return r;
    memcpy(hello.name, name, strnlen(name, sizeof(hello.name) - 1));
    if (options->owner_token)
        memcpy(hello.owner_token, options->owner_token, sizeof(hello.owner_token));
    r = client_control_request(session, SPW_MSG_HELLO, &hello.msg, sizeof(hello), &welcome.msg, sizeof(welcome), NULL,
                               0);
    return r < 0 ? r : welcome_check(session, &welcome);
}
