/* SPDX-License-Identifier: Apache-2.0 */
/* See rawclient.h. Written against abi.h alone, so it shares no mistake with libspillway. */
#include "tests/system/support/rawclient.h"

#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "include/base/atomic.h"

#define load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void sleep_ms(int ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = (ms % 1000) * 1000000L}, NULL);
}

/* --- The daemon -------------------------------------------------------------------------------------------------- */

static void daemon_exec(const struct raw_daemon *d)
{
    const char *bin = getenv("SPILLWAY_BIN");
    char program[512], config[128];
    int log = open(d->log, O_WRONLY | O_CREAT | O_APPEND, 0600);

    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves nothing behind */
    dup2(log, STDERR_FILENO);
    dup2(log, STDOUT_FILENO);
    snprintf(program, sizeof(program), "%s/spillwayd", bin ? bin : ".");
    snprintf(config, sizeof(config), "%s/conf", d->dir);
    execl(program, program, "--user", "--config", config, (char *)NULL);
    perror(program);
    _exit(127);
}

/* It listens before it is ready: a HELLO is answered when it is. */
static bool daemon_answers(const struct raw_daemon *d)
{
    struct spw_msg_hello hello = {.version_min = 1, .version_max = SPW_ABI_VERSION};
    struct spw_msg_welcome welcome;
    int fd = raw_connect(d);

    if (fd < 0)
        return false;
    long n = raw_request(fd, SPW_MSG_HELLO, &hello, sizeof(hello), &welcome, sizeof(welcome), NULL, NULL);

    close(fd);
    return n == sizeof(welcome) && welcome.msg.status == 0;
}

void raw_daemon_restart(struct raw_daemon *d)
{
    d->pid = fork();
    ck_assert_int_ge(d->pid, 0);
    if (d->pid == 0)
        daemon_exec(d);
    for (int64_t end = now_ms() + 30000; now_ms() < end; sleep_ms(10)) {
        int status;

        if (daemon_answers(d))
            return;
        ck_assert_msg(waitpid(d->pid, &status, WNOHANG) == 0, "spillwayd ended at once: see %s", d->log);
    }
    ck_abort_msg("spillwayd does not listen: see %s", d->log);
}

void raw_daemon_folder(struct raw_daemon *d)
{
    snprintf(d->dir, sizeof(d->dir), "/tmp/spillway-test-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(d->dir));
    chmod(d->dir, 0755);
}

void raw_daemon_format(const struct raw_daemon *d, const char *name, unsigned mib, unsigned partitions)
{
    const char *bin = getenv("SPILLWAY_BIN");
    char command[1024];

    snprintf(command, sizeof(command),
             "%s/spillctl device format --capacity %uM --segment 1M --partitions %u %s/%s >%s/format 2>&1",
             bin ? bin : ".", mib, partitions, d->dir, name, d->dir);
    ck_assert_msg(system(command) == 0, "%s", command);
}

void raw_daemon_start(struct raw_daemon *d, const char *daemon_keys, const char *sections)
{
    char path[128];

    if (d->dir[0] == '\0')
        raw_daemon_folder(d);
    snprintf(d->socket, sizeof(d->socket), "%s/socket", d->dir);
    snprintf(d->log, sizeof(d->log), "%s/log", d->dir);
    snprintf(path, sizeof(path), "%s/conf", d->dir);
    FILE *f = fopen(path, "w");

    ck_assert_ptr_nonnull(f);
    fprintf(f, "[daemon]\nsocket = %s\nlog_level = debug\n%s%s\n%s\n", d->socket,
            strstr(daemon_keys, "engines") ? "" : "engines = 1\n", daemon_keys, sections);
    fclose(f);
    raw_daemon_restart(d);
}

int raw_daemon_stop(struct raw_daemon *d)
{
    int status = 0;

    if (d->pid <= 0)
        return 0;
    kill(d->pid, SIGTERM);
    for (int64_t end = now_ms() + 60000; waitpid(d->pid, &status, WNOHANG) == 0; sleep_ms(5)) {
        if (now_ms() > end) {
            kill(d->pid, SIGKILL);
            waitpid(d->pid, &status, 0);
            ck_abort_msg("spillwayd does not stop: see %s", d->log);
        }
    }
    d->pid = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
    (void)st;
    (void)kind;
    (void)ftw;
    return remove(path);
}

static void remove_folder(const char *path)
{
    (void)nftw(path, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static bool file_has(const char *path, const char *text)
{
    static char buffer[1 << 20];
    FILE *f = fopen(path, "r");

    if (!f)
        return false;
    size_t n = fread(buffer, 1, sizeof(buffer) - 1, f);

    fclose(f);
    buffer[n] = '\0';
    return strstr(buffer, text) != NULL;
}

void raw_daemon_end(struct raw_daemon *d)
{
    int status = raw_daemon_stop(d);

    ck_assert_msg(status == 0, "spillwayd ended with %d: see %s", status, d->log);
    ck_assert_msg(!file_has(d->log, "refused the system call"), "see %s", d->log);
    remove_folder(d->dir);
    *d = (struct raw_daemon){0};
}

bool raw_daemon_logged(const struct raw_daemon *d, const char *text)
{
    for (int i = 0; i < 200; i++) {
        if (file_has(d->log, text))
            return true;
        sleep_ms(10);
    }
    return false;
}

unsigned raw_daemon_descriptors(const struct raw_daemon *d)
{
    struct dirent **names;
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/fd", d->pid);
    // cppcheck-suppress nullPointer
    int n = scandir(path, &names, NULL, NULL);

    ck_assert_int_gt(n, 2);
    for (int i = 0; i < n; i++)
        free(names[i]);
    free(names);
    return (unsigned)n - 2; /* . and .. */
}

/* --- The socket -------------------------------------------------------------------------------------------------- */

int raw_connect(const struct raw_daemon *d)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    memcpy(addr.sun_path, d->socket, strlen(d->socket) + 1);
    if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        int r = -errno;

        close(fd);
        return r;
    }
    return fd;
}

void raw_send(int fd, const void *message, size_t size, const int *fds, unsigned n_fds)
{
    static union {
        char bytes[CMSG_SPACE(253 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {.iov_base = (void *)(uintptr_t)message, .iov_len = size};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    if (n_fds > 0) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(cmsg), fds, n_fds * sizeof(int));
    }
    (void)!sendmsg(fd, &msg, MSG_NOSIGNAL);
}

long raw_receive(int fd, void *reply, size_t size, int *ret_fds, unsigned *ret_n_fds)
{
    union {
        char bytes[CMSG_SPACE(8 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {.iov_base = reply, .iov_len = size};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control)};
    struct pollfd p = {.fd = fd, .events = POLLIN};

    if (poll(&p, 1, 5000) <= 0)
        return -ETIMEDOUT;
    ssize_t n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);

    if (n < 0)
        return errno == ECONNRESET ? 0 : -errno;
    unsigned n_fds = 0;

    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg); cmsg; cmsg = CMSG_NXTHDR(&msg, cmsg)) {
        n_fds = (unsigned)((cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        if (ret_fds)
            memcpy(ret_fds, CMSG_DATA(cmsg), n_fds * sizeof(int));
    }
    if (ret_n_fds)
        *ret_n_fds = n_fds;
    return n;
}

long raw_request(int fd, uint16_t type, void *message, size_t size, void *reply, size_t reply_size, int *ret_fds,
                 unsigned *ret_n_fds)
{
    static uint32_t request;
    struct spw_msg *msg = message;

    *msg = (struct spw_msg){SPW_ABI_MAGIC, type, SPW_ABI_VERSION, (uint32_t)size, ++request, 0, 0};
    raw_send(fd, message, size, NULL, 0);
    return raw_receive(fd, reply, reply_size, ret_fds, ret_n_fds);
}

bool raw_is_closed(int fd, int timeout_ms)
{
    char buffer[4096];
    int64_t end = now_ms() + timeout_ms;

    for (;;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int64_t left = end - now_ms();

        if (poll(&p, 1, left > 0 ? (int)left : 0) <= 0)
            return false;
        if (recv(fd, buffer, sizeof(buffer), MSG_DONTWAIT) <= 0 && errno != EAGAIN)
            return true;
    }
}

/* --- A session --------------------------------------------------------------------------------------------------- */

int raw_session_try(struct raw_session *s, const struct raw_daemon *d)
{
    struct spw_msg_hello hello = {.version_min = 1, .version_max = SPW_ABI_VERSION, .name = "raw"};
    union {
        struct spw_msg msg;
        struct spw_msg_error error;
        struct spw_msg_welcome welcome;
    } reply;

    *s = (struct raw_session){.daemon = d};
    s->fd = raw_connect(d);
    ck_assert_int_ge(s->fd, 0);
    long n = raw_request(s->fd, SPW_MSG_HELLO, &hello, sizeof(hello), &reply, sizeof(reply), NULL, NULL);

    if (n < (long)sizeof(reply.msg))
        return n < 0 ? (int)n : -ENOTCONN;
    if (reply.msg.status == 0)
        s->welcome = reply.welcome;
    return reply.msg.status;
}

void raw_session_open(struct raw_session *s, const struct raw_daemon *d)
{
    ck_assert_int_eq(raw_session_try(s, d), 0);
}

int raw_pool_open(struct raw_session *s, const char *pool)
{
    struct spw_msg_pool_open open = {0};
    union {
        struct spw_msg msg;
        struct spw_msg_error error;
        struct spw_msg_pool pool;
    } reply;

    snprintf(open.name, sizeof(open.name), "%s", pool);
    ck_assert_int_ge(raw_request(s->fd, SPW_MSG_POOL_OPEN, &open, sizeof(open), &reply, sizeof(reply), NULL, NULL),
                     sizeof(reply.msg));
    if (reply.msg.status == 0)
        s->pool = reply.pool;
    return reply.msg.status;
}

int raw_space_open(struct raw_session *s, uint8_t digest, uint64_t item_bytes, uint8_t class_id, uint8_t durability)
{
    struct spw_msg_space_open open = {.pool = s->pool.pool,
                                      .item_bytes = item_bytes,
                                      .class_id = class_id,
                                      .durability = durability,
                                      .digest = {digest},
                                      .node = UINT32_MAX};
    union {
        struct spw_msg msg;
        struct spw_msg_error error;
        struct spw_msg_space space;
    } reply;

    ck_assert_int_ge(raw_request(s->fd, SPW_MSG_SPACE_OPEN, &open, sizeof(open), &reply, sizeof(reply), NULL, NULL),
                     sizeof(reply.msg));
    if (reply.msg.status == 0)
        s->space = reply.space;
    return reply.msg.status;
}

int raw_ring_new(struct raw_session *s, struct raw_ring *ring, uint32_t entries, uint64_t scratch_bytes)
{
    struct spw_msg_ring_new wanted = {
        .engine = s->space.engine, .sq_entries = entries, .cq_entries = entries, .scratch_bytes = scratch_bytes};
    union {
        struct spw_msg msg;
        struct spw_msg_error error;
        struct spw_msg_ring ring;
    } reply;
    int fds[8];
    unsigned n_fds = 0;

    ck_assert_int_ge(raw_request(s->fd, SPW_MSG_RING_NEW, &wanted, sizeof(wanted), &reply, sizeof(reply), fds, &n_fds),
                     sizeof(reply.msg));
    if (reply.msg.status != 0)
        return reply.msg.status;
    ck_assert_uint_eq(n_fds, 3);
    *ring = (struct raw_ring){.number = reply.ring.ring,
                              .ring_fd = fds[0],
                              .scratch_fd = fds[1],
                              .doorbell_fd = fds[2],
                              .ring_bytes = reply.ring.ring_bytes,
                              .scratch_bytes = reply.ring.scratch_bytes,
                              .sq_entries = reply.ring.sq_entries,
                              .cq_entries = reply.ring.cq_entries};
    char *mem = mmap(NULL, ring->ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
    char *scratch = mmap(NULL, ring->scratch_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fds[1], 0);

    ck_assert_ptr_ne(mem, MAP_FAILED);
    ck_assert_ptr_ne(scratch, MAP_FAILED);
    ring->shared = (void *)mem;
    ring->sqes = (void *)(mem + reply.ring.sq_offset);
    ring->cqes = (void *)(mem + reply.ring.cq_offset);
    ring->scratch = scratch;
    return 0;
}

void raw_ring_unmap(struct raw_ring *ring)
{
    munmap(ring->shared, ring->ring_bytes);
    munmap(ring->scratch, ring->scratch_bytes);
    close(ring->ring_fd);
    close(ring->scratch_fd);
    close(ring->doorbell_fd);
    *ring = (struct raw_ring){0};
}

void raw_session_full(struct raw_session *s, const struct raw_daemon *d, const char *pool, uint8_t digest,
                      uint64_t item_bytes)
{
    raw_session_open(s, d);
    ck_assert_int_eq(raw_pool_open(s, pool), 0);
    ck_assert_int_eq(raw_space_open(s, digest, item_bytes, SPW_CLASS_KV, SPW_DURABILITY_DEFAULT), 0);
    ck_assert_int_eq(raw_ring_new(s, &s->ring, 64, RAW_SCRATCH_BYTES), 0);
}

void raw_session_close(struct raw_session *s)
{
    if (s->ring.shared)
        raw_ring_unmap(&s->ring);
    close(s->fd);
    *s = (struct raw_session){.fd = -1};
}

void *raw_chunk_map(struct raw_session *s, const struct spw_result *result, int prot, uint64_t *ret_size_bytes)
{
    struct spw_msg_chunk_get wanted = {.engine = s->space.engine, .chunk = result->chunk, .epoch = result->epoch};
    union {
        struct spw_msg msg;
        struct spw_msg_error error;
        struct spw_msg_chunk chunk;
    } reply;
    int fds[8];
    unsigned n_fds = 0;

    ck_assert_int_ge(raw_request(s->fd, SPW_MSG_CHUNK_GET, &wanted, sizeof(wanted), &reply, sizeof(reply), fds, &n_fds),
                     sizeof(reply.msg));
    if (reply.msg.status != 0)
        return NULL;
    ck_assert_uint_eq(n_fds, 1);
    void *mem = mmap(NULL, reply.chunk.size_bytes, prot, MAP_SHARED, fds[0], 0);

    close(fds[0]);
    if (mem == MAP_FAILED)
        return NULL;
    *ret_size_bytes = reply.chunk.size_bytes;
    return mem;
}

void raw_chunk_unmap(void *mem, uint64_t size_bytes)
{
    munmap(mem, size_bytes);
}

/* --- Rings ------------------------------------------------------------------------------------------------------- */

void raw_submit(struct raw_ring *ring, const struct spw_sqe *sqe)
{
    ring->sqes[ring->sq_tail & (ring->sq_entries - 1)] = *sqe;
    ring->sq_tail++;
    __atomic_store_n(&ring->shared->client.sq_tail, ring->sq_tail, __ATOMIC_RELEASE);
    fence_full();
    if (load_acquire(&ring->shared->daemon.sq_flags) & SPW_RING_NEED_WAKEUP)
        (void)!send(ring->doorbell_fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

bool raw_wait(struct raw_ring *ring, struct spw_cqe *ret_cqe, int timeout_ms)
{
    int64_t end = now_ms() + timeout_ms;

    while (load_acquire(&ring->shared->daemon.cq_tail) == ring->cq_head) {
        struct pollfd p = {.fd = ring->doorbell_fd, .events = POLLIN};
        int64_t left = end - now_ms();
        char byte;

        if (left <= 0)
            return false;
        __atomic_store_n(&ring->shared->client.cq_flags, SPW_RING_WAKE_DOORBELL, __ATOMIC_RELAXED);
        fence_full();
        if (load_acquire(&ring->shared->daemon.cq_tail) == ring->cq_head && poll(&p, 1, (int)left) > 0 &&
            recv(ring->doorbell_fd, &byte, 1, MSG_DONTWAIT) == 0)
            return false;
        __atomic_store_n(&ring->shared->client.cq_flags, 0, __ATOMIC_RELAXED);
    }
    *ret_cqe = ring->cqes[ring->cq_head & (ring->cq_entries - 1)];
    ring->cq_head++;
    __atomic_store_n(&ring->shared->client.cq_head, ring->cq_head, __ATOMIC_RELEASE);
    return true;
}

struct spw_cqe raw_call(struct raw_ring *ring, const struct spw_sqe *sqe)
{
    struct spw_cqe cqe;

    raw_submit(ring, sqe);
    ck_assert_msg(raw_wait(ring, &cqe, 10000), "no CQE for opcode %u", sqe->opcode);
    ck_assert_uint_eq(cqe.user_data, sqe->user_data);
    return cqe;
}

struct spw_item *raw_items(struct raw_ring *ring)
{
    return (void *)(ring->scratch + RAW_ITEMS);
}

struct spw_handle *raw_handles(struct raw_ring *ring)
{
    return (void *)(ring->scratch + RAW_ITEMS);
}

struct spw_result *raw_results(struct raw_ring *ring)
{
    return (void *)(ring->scratch + RAW_RESULTS);
}

struct spw_item raw_item(uint64_t key, uint64_t length_bytes)
{
    struct spw_item item = {.key_len = 8, .length_bytes = length_bytes};

    memcpy(item.key, &key, sizeof(key));
    return item;
}

struct spw_sqe raw_sqe(const struct raw_session *s, uint8_t opcode, uint32_t n_items)
{
    static uint64_t last_user_data;
    uint64_t user_data = ++last_user_data;
    bool handles = opcode == SPW_OP_COMMIT || opcode == SPW_OP_ABORT || opcode == SPW_OP_RELEASE;
    bool bare = handles || opcode == SPW_OP_NOP || opcode == SPW_OP_CANCEL;

    return (struct spw_sqe){.opcode = opcode,
                            .space = bare ? 0 : s->space.space,
                            .user_data = user_data,
                            .items = RAW_ITEMS,
                            .n_items = n_items,
                            .results = RAW_RESULTS,
                            .timeout_ms = 5000};
}

int raw_put(struct raw_session *s, uint64_t key, uint32_t size_bytes, uint8_t fill)
{
    struct spw_sqe sqe = raw_sqe(s, SPW_OP_RESERVE, 1);
    uint64_t chunk_bytes;

    raw_items(&s->ring)[0] = raw_item(key, size_bytes);
    struct spw_cqe cqe = raw_call(&s->ring, &sqe);
    struct spw_result result = raw_results(&s->ring)[0];

    if (cqe.status < 0 || result.status < 0)
        return cqe.status < 0 ? cqe.status : result.status;
    char *mem = raw_chunk_map(s, &result, PROT_READ | PROT_WRITE, &chunk_bytes);

    ck_assert_ptr_nonnull(mem);
    memset(mem + result.offset_bytes, fill, size_bytes);
    raw_chunk_unmap(mem, chunk_bytes);
    sqe = raw_sqe(s, SPW_OP_COMMIT, 1);
    raw_handles(&s->ring)[0] = (struct spw_handle){.lease = result.lease};
    cqe = raw_call(&s->ring, &sqe);
    return cqe.status < 0 ? cqe.status : raw_results(&s->ring)[0].status;
}

int raw_get(struct raw_session *s, uint64_t key, uint32_t size_bytes, uint8_t fill)
{
    struct spw_sqe sqe = raw_sqe(s, SPW_OP_ACQUIRE, 1);
    uint64_t chunk_bytes;

    raw_items(&s->ring)[0] = raw_item(key, 0);
    struct spw_cqe cqe = raw_call(&s->ring, &sqe);
    struct spw_result result = raw_results(&s->ring)[0];

    if (cqe.status < 0 || result.status < 0)
        return cqe.status < 0 ? cqe.status : result.status;
    ck_assert_uint_eq(result.length_bytes, size_bytes);
    unsigned char *mem = raw_chunk_map(s, &result, PROT_READ, &chunk_bytes);

    ck_assert_ptr_nonnull(mem);
    uint32_t wrong = 0;

    for (uint32_t i = 0; i < size_bytes; i++)
        wrong += mem[result.offset_bytes + i] != fill;
    ck_assert_msg(wrong == 0, "%u wrong bytes in object %llu", wrong, (unsigned long long)key);
    raw_chunk_unmap(mem, chunk_bytes);
    sqe = raw_sqe(s, SPW_OP_RELEASE, 1);
    raw_handles(&s->ring)[0] = (struct spw_handle){.lease = result.lease};
    cqe = raw_call(&s->ring, &sqe);
    return cqe.status < 0 ? cqe.status : raw_results(&s->ring)[0].status;
}

/* --- What the daemon says about itself --------------------------------------------------------------------------- */

uint64_t raw_admin_number(const struct raw_daemon *d, const char *what, const char *member)
{
    static struct {
        struct spw_msg msg;
        char text[65536];
    } request, reply;
    char name[64];
    struct raw_session s;
    size_t len;

    raw_session_open(&s, d);
    len = (size_t)snprintf(request.text, sizeof(request.text), "{\"get\":\"%s\"}", what);
    long n =
        raw_request(s.fd, SPW_MSG_ADMIN, &request, sizeof(request.msg) + len, &reply, sizeof(reply) - 1, NULL, NULL);

    raw_session_close(&s);
    ck_assert_int_gt(n, (long)sizeof(reply.msg));
    ck_assert_int_eq(reply.msg.status, 0);
    ((char *)&reply)[n] = '\0';
    snprintf(name, sizeof(name), "\"%s\":", member);
    const char *at = strstr(reply.text, name);

    ck_assert_msg(at != NULL, "no %s in %s", member, reply.text);
    return strtoull(at + strlen(name), NULL, 10);
}

bool raw_admin_becomes(const struct raw_daemon *d, const char *what, const char *member, uint64_t wanted)
{
    for (int i = 0; i < 250; i++) {
        if (raw_admin_number(d, what, member) == wanted)
            return true;
        sleep_ms(20);
    }
    return false;
}
