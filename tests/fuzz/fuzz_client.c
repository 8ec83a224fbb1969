/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A daemon that lies to libspillway: replies and descriptors of every shape, rings whose indices, completions and results are
 * what the input says, memory that changes while the library reads it. The caller is honest: he connects, puts and gets.
 *
 * There is no second process: the library's system calls come here (the linker's --wrap), and the daemon answers before they
 * return. So a run is the same each time, and whoever waits for what never comes is told that the daemon has gone.
 *
 * What must hold: no byte outside of what the caller gave is touched, no call waits for ever, and in the end no descriptor
 * is left.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "client/lib/client.h"
#include "include/base/atomic.h"
#include "include/base/limits.h"
#include "include/base/socket.h"
#include "include/spillway/spillway.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/support/changing.h"

#define ENTRIES 8
#define RING_BYTES 4096
#define SCRATCH_BYTES (64 * KIB)
#define CHUNK_BYTES (256 * KIB)
#define PIECE_BYTES 16384
#define CALLS_MAX 24
#define SLEEPS_MAX 4 /* in a row, before the daemon goes */
#define FD_FIRST 3   /* descriptors are counted from here */
#define FD_LAST 64

int __real_poll(struct pollfd *fds, nfds_t n, int timeout_ms);
int __wrap_poll(struct pollfd *fds, nfds_t n, int timeout_ms);
int __wrap_connect(int fd, const struct sockaddr *addr, socklen_t len);
ssize_t __real_send(int fd, const void *bytes, size_t size, int flags);
ssize_t __wrap_send(int fd, const void *bytes, size_t size, int flags);
long __wrap_syscall(long number, ...);
void *__real_mmap(void *at, size_t size, int protection, int flags, int fd, off_t off);
void *__wrap_mmap(void *at, size_t size, int protection, int flags, int fd, off_t off);
int __real_munmap(void *at, size_t size);
int __wrap_munmap(void *at, size_t size);

struct memory {
    int fd;
    uint8_t *base;
};

static struct {
    struct fuzz *f;
    int client_fd, fd; /* of the socket; ours */
    int doorbell[2];
    bool has_ring;
    struct memory ring, scratch, chunk, unsealed;
    uint32_t sq_head, cq_tail, n_sleeps;
    bool is_gone;
    void *unmapped[1024];
    uint32_t n_unmapped;
} d;

/* --- Descriptors ----------------------------------------------------------------------------------------------------- */

static struct memory memory_new(size_t size_bytes, bool is_sealed)
{
    struct memory m = {.fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING)};

    fuzz_check(m.fd >= 0 && ftruncate(m.fd, (off_t)size_bytes) == 0);
    if (is_sealed)
        fuzz_check(fcntl(m.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
    m.base = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, m.fd, 0);
    fuzz_check(m.base != MAP_FAILED);
    return m;
}

static uint64_t fds_open(void)
{
    uint64_t mask = 0;

    for (int fd = FD_FIRST; fd < FD_LAST; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            mask |= UINT64_C(1) << fd;
    return mask;
}

static void daemon_goes(void)
{
    if (!d.is_gone)
        (void)shutdown(d.fd, SHUT_RDWR);
    d.is_gone = true;
}

/* --- Replies --------------------------------------------------------------------------------------------------------- */

union message {
    struct spw_msg msg;
    struct spw_msg_error error;
    struct spw_msg_welcome welcome;
    struct spw_msg_pool pool;
    struct spw_msg_space space;
    struct spw_msg_ring ring;
    struct spw_msg_chunk chunk;
    struct spw_msg_sizing sizing;
    uint8_t bytes[512];
};

/* What an honest daemon would answer: its size, and how many descriptors come along. */
static size_t reply_make(const void *request, union message *ret, int ret_fds[static 3], uint32_t *ret_n_fds)
{
    const struct spw_msg *msg = request;
    const struct spw_msg_chunk_get *get = request;

    *ret_n_fds = 0;
    switch (msg->type) {
    case SPW_MSG_HELLO:
        ret->welcome = (struct spw_msg_welcome){.version = SPW_ABI_VERSION,
                                                .engines = 1,
                                                .rings_max = 4,
                                                .ring_entries_max = ENTRIES,
                                                .list_max = 16,
                                                .scratch_bytes_max = SCRATCH_BYTES};
        return sizeof(ret->welcome);
    case SPW_MSG_POOL_OPEN:
        ret->pool = (struct spw_msg_pool){.pool = 5, .flags = SPW_POOL_TRUSTED, .dram_bytes = CHUNK_BYTES};
        return sizeof(ret->pool);
    case SPW_MSG_SPACE_OPEN:
        ret->space = (struct spw_msg_space){.space = 6, .piece_bytes = PIECE_BYTES, .shards = 1};
        return sizeof(ret->space);
    case SPW_MSG_RING_NEW:
        ret->ring = (struct spw_msg_ring){.ring = 1,
                                          .sq_entries = ENTRIES,
                                          .cq_entries = ENTRIES,
                                          .sq_offset = sizeof(struct spw_ring),
                                          .cq_offset = sizeof(struct spw_ring) + ENTRIES * sizeof(struct spw_sqe),
                                          .ring_bytes = RING_BYTES,
                                          .scratch_bytes = SCRATCH_BYTES};
        ret_fds[0] = d.ring.fd, ret_fds[1] = d.scratch.fd, ret_fds[2] = d.doorbell[1];
        *ret_n_fds = 3;
        d.has_ring = true;
        return sizeof(ret->ring);
    case SPW_MSG_CHUNK_GET:
        ret->chunk = (struct spw_msg_chunk){.chunk = get->chunk,
                                            .epoch = get->epoch,
                                            .flags = fuzz_wrong(d.f) & 1 ? 0 : SPW_CHUNK_WRITABLE,
                                            .page_bytes = 4096,
                                            .size_bytes = CHUNK_BYTES};
        ret_fds[0] = d.chunk.fd;
        *ret_n_fds = 1;
        return sizeof(ret->chunk);
    case SPW_MSG_MANIFEST:
        ret->sizing = (struct spw_msg_sizing){.sizing.leases = ((const struct spw_msg_manifest *)request)->n};
        return sizeof(ret->sizing);
    default:
        return sizeof(ret->msg);
    }
}

/* Another number of descriptors, or others. */
static void fds_spoil(struct fuzz *f, int fds[static 3], uint32_t *n_fds)
{
    const int all[] = {d.unsealed.fd, d.chunk.fd, d.scratch.fd, d.doorbell[1]};
    uint8_t what = fuzz_u8(f);

    if (what & 1)
        *n_fds = (what >> 1) % 4;
    for (uint32_t i = 0; i < *n_fds && i < 3; i++)
        if (i == (what >> 3) % 4 || fds[i] < 0)
            fds[i] = all[(what >> 5) % ARRAY_LEN(all)];
}

static void reply(const void *request)
{
    const struct spw_msg *msg = request;
    struct fuzz *f = d.f;
    uint8_t how = fuzz_wrong(f);
    union message m = {0};
    int fds[3] = {-1, -1, -1};
    uint32_t n_fds;
    size_t size = reply_make(request, &m, fds, &n_fds);

    if (how & 1) {
        n_fds = 0;
        size = sizeof(m.error) - fuzz_u8(f) % 256;
        m.error = (struct spw_msg_error){.msg.status = -(int)fuzz_u8(f) - 1};
        fuzz_bytes(f, m.error.text, sizeof(m.error.text));
    }
    m.msg.magic = SPW_ABI_MAGIC;
    m.msg.type = msg->type | SPW_MSG_REPLY;
    m.msg.version = SPW_ABI_VERSION;
    m.msg.size_bytes = (uint32_t)size;
    m.msg.request = msg->request;
    if (how & 2)
        fuzz_patch(f, &m, size);
    if (how & 4)
        fds_spoil(f, fds, &n_fds);
    if (how & 8)
        size = fuzz_u8(f) % sizeof(m);
    if (how & 16) { /* one that comes too late, before it */
        m.msg.request--;
        (void)socket_send(d.fd, &m, size, fds, n_fds, MSG_DONTWAIT);
        m.msg.request++;
    }
    if (how & 32)
        daemon_goes();
    if (!(how & 64) || how & 128)
        (void)socket_send(d.fd, &m, size, fds, n_fds, MSG_DONTWAIT);
}

/* ADMIN: some parts of a text. */
static void reply_text(const struct spw_msg *msg)
{
    struct {
        struct spw_msg msg;
        char text[512];
    } m;
    struct fuzz *f = d.f;

    for (int i = 0; i < 4; i++) {
        uint8_t how = fuzz_wrong(f), bytes = fuzz_u8(f);

        m.msg = (struct spw_msg){.magic = SPW_ABI_MAGIC,
                                 .type = msg->type | SPW_MSG_REPLY,
                                 .version = SPW_ABI_VERSION,
                                 .size_bytes = (uint32_t)sizeof(m.msg) + bytes,
                                 .request = msg->request,
                                 .detail = how & 1 ? SPW_MSG_MORE : 0};
        fuzz_bytes(f, m.text, bytes);
        if (how & 2)
            fuzz_patch(f, &m, sizeof(m.msg));
        (void)socket_send(d.fd, &m, sizeof(m.msg) + bytes, NULL, 0, MSG_DONTWAIT);
        if (!(how & 1))
            break;
    }
}

/* --- The ring -------------------------------------------------------------------------------------------------------- */

static void result_make(struct fuzz *f, const struct spw_sqe *sqe, uint32_t i, uint8_t *at)
{
    struct spw_item item;
    struct spw_result r = {.lease = 100 + i, .chunk = 0, .epoch = 1, .tier = SPW_TIER_DRAM};

    memcpy(&item, d.scratch.base + sqe->items + i * sizeof(item), sizeof(item));
    r.length_bytes = item.length_bytes ? item.length_bytes : 100;
    r.offset_bytes = i * PIECE_BYTES;
    if (sqe->opcode == SPW_OP_COMMIT || sqe->opcode == SPW_OP_RELEASE || sqe->opcode == SPW_OP_ABORT)
        r = (struct spw_result){0};
    uint8_t how = fuzz_wrong(f);

    if (how & 1) {
        r.status = -(int)(how >> 1);
        r.detail = how >> 1 == ENOSPC ? fuzz_u8(f) % 8 : 0; /* leases are asked for again */
    } else if (how & 2)
        fuzz_patch(f, &r, sizeof(r));
    else if (how & 4)
        r.chunk = how >> 3, r.epoch = fuzz_u8(f);
    else if (how & 8)
        r.length_bytes = fuzz_number(f);
    memcpy(at, &r, sizeof(r));
}

/* One SQE is answered, or not, or twice. */
static void serve(struct fuzz *f, const struct spw_sqe *sqe)
{
    struct spw_ring *shared = (void *)d.ring.base;
    struct spw_cqe *cqes = (void *)(d.ring.base + sizeof(struct spw_ring) + ENTRIES * sizeof(struct spw_sqe));
    struct spw_cqe cqe = {.user_data = sqe->user_data, .value = sqe->n_items};
    uint8_t how = fuzz_wrong(f);

    if (sqe->results && sqe->results < SCRATCH_BYTES - 16 * sizeof(struct spw_result) &&
        sqe->items < SCRATCH_BYTES - 16 * sizeof(struct spw_item))
        for (uint32_t i = 0; i < MIN(sqe->n_items, 16U); i++)
            result_make(f, sqe, i, d.scratch.base + sqe->results + i * sizeof(struct spw_result));
    if (how & 1)
        return;
    if (how & 2)
        cqe.status = -(int)fuzz_u8(f);
    if (how & 4)
        fuzz_patch(f, &cqe, sizeof(cqe));
    for (int n = how & 8 ? 2 : 1; n > 0; n--)
        cqes[d.cq_tail++ % ENTRIES] = cqe;
    if (how & 16)
        d.cq_tail += (uint32_t)fuzz_number(f);
    if (how & 32)
        fuzz_patch(f, d.scratch.base, SCRATCH_BYTES);
    if (how & 64)
        fuzz_patch(f, d.ring.base, RING_BYTES);
    if (how & 128)
        changing_arm(f);
    store_release(&shared->daemon.cq_tail, d.cq_tail);
}

/* An engine's turn. False: there was nothing. */
static bool engine_turn(void)
{
    struct spw_ring *shared = (void *)d.ring.base;
    const struct spw_sqe *sqes = (const void *)(d.ring.base + sizeof(struct spw_ring));
    uint32_t n = 0;

    if (!d.has_ring)
        return false;
    for (; d.sq_head != load_acquire(&shared->client.sq_tail) && n < ENTRIES; n++) {
        struct spw_sqe sqe;

        copy_once(&sqe, &sqes[d.sq_head++ % ENTRIES], sizeof(sqe));
        serve(d.f, &sqe);
    }
    store_relaxed(&shared->daemon.sq_flags, SPW_RING_NEED_WAKEUP);
    return n > 0;
}

/* --- The library's system calls -------------------------------------------------------------------------------------- */

int __wrap_connect(int fd, const struct sockaddr *addr, socklen_t len)
{
    (void)addr;
    (void)len;
    if (d.fd >= 0) { /* on another thread; there is no next daemon */
        errno = ECONNREFUSED;
        return -1;
    }
    d.client_fd = fd; /* in the place of which it has one end of a pair */
    int pair[2];

    fuzz_check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
    fuzz_check(dup3(pair[0], fd, O_CLOEXEC) == fd);
    close(pair[0]);
    d.fd = pair[1];
    return 0;
}

ssize_t __wrap_send(int fd, const void *bytes, size_t size, int flags)
{
    const struct spw_msg *msg = bytes;

    (void)flags;
    d.n_sleeps = 0;
    if (fd != d.client_fd) { /* a doorbell */
        (void)engine_turn();
        return (ssize_t)size;
    }
    if (d.is_gone) {
        errno = EPIPE;
        return -1;
    }
    fuzz_check(size >= sizeof(*msg) && msg->size_bytes == size, "what the library sends");
    if (msg->type == SPW_MSG_ADMIN)
        reply_text(msg);
    else
        reply(bytes);
    return (ssize_t)size;
}

/* Nobody else will ever say anything: a wait that finds nothing is over. */
int __wrap_poll(struct pollfd *fds, nfds_t n, int timeout_ms)
{
    (void)timeout_ms;
    return __real_poll(fds, n, 0);
}

long __wrap_syscall(long number, ...)
{
    fuzz_check(number == SYS_futex, "a system call that nobody expects: %ld", number);
    if (!engine_turn() && ++d.n_sleeps == SLEEPS_MAX)
        daemon_goes();
    errno = ETIMEDOUT;
    return -1;
}

/* What is mapped here by their sizes are the ring's and the scratch memory. */
void *__wrap_mmap(void *at, size_t size, int protection, int flags, int fd, off_t off)
{
    void *mem = __real_mmap(at, size, protection, flags, fd, off);

    if (mem != MAP_FAILED && fd >= 0 && d.ring.base && size == RING_BYTES)
        changing_watch_as(mem, size, d.ring.base);
    if (mem != MAP_FAILED && fd >= 0 && d.scratch.base && size == SCRATCH_BYTES)
        changing_watch_as(mem, size, d.scratch.base);
    return mem;
}

/*
 * A chunk that the daemon has renewed is unmapped by the library: an honest daemon renews none that has leases. One that lies
 * can so take memory away from views that the caller has; the library does not keep count of those. It is known, and not
 * what is looked for: such mappings stay until the end of the run.
 */
int __wrap_munmap(void *at, size_t size)
{
    if (size != CHUNK_BYTES)
        return __real_munmap(at, size);
    fuzz_check(d.n_unmapped < ARRAY_LEN(d.unmapped));
    d.unmapped[d.n_unmapped++] = at;
    return 0;
}

/* --- The caller ------------------------------------------------------------------------------------------------------ */

static void keys_make(struct fuzz *f, struct spw_key *keys, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint8_t byte = fuzz_u8(f);

        fuzz_check(spw_key_init(&keys[i], &byte, 1, 0) == 0);
    }
}

/* Writes to, or reads from, all that it was given. */
static void views_use(struct spw_view *views, size_t n, bool write)
{
    for (size_t i = 0; i < n; i++) {
        volatile uint8_t *bytes = views[i].data;

        if (views[i].status != 0 || !bytes || views[i].size_bytes == 0)
            continue;
        if (write)
            bytes[views[i].size_bytes - 1] = bytes[0] = 1;
        else
            (void)bytes[0], (void)bytes[views[i].size_bytes - 1];
    }
}

static void blocks(struct fuzz *f, spw_space *space, bool reserve)
{
    struct spw_key keys[6];
    struct spw_view views[ARRAY_LEN(keys)];
    uint64_t sizes[ARRAY_LEN(keys)];
    size_t n = 1 + fuzz_u8(f) % ARRAY_LEN(keys);
    unsigned flags = fuzz_u8(f) & (SPW_CHAIN | SPW_ALL);
    int r;

    keys_make(f, keys, n);
    for (size_t i = 0; i < n; i++)
        sizes[i] = 1 + (uint64_t)fuzz_u8(f) * 64;
    if (reserve)
        r = spw_reserve(space, keys, sizes, n, flags, 10, views);
    else
        r = spw_acquire(space, keys, n, flags, 10, views);
    if (r < 0)
        return;
    views_use(views, n, reserve);
    if (reserve)
        (void)spw_commit(space, views, n, 0);
    else
        (void)spw_release(space, views, n, 0);
}

/* Into buffers that end where ASan sees it. */
static void put_or_get(struct fuzz *f, spw_space *space, bool get)
{
    struct spw_key keys[4];
    struct spw_iovec to[ARRAY_LEN(keys)];
    int32_t status[ARRAY_LEN(keys)];
    void *mine[ARRAY_LEN(keys)];
    size_t n = 1 + fuzz_u8(f) % ARRAY_LEN(keys);

    keys_make(f, keys, n);
    for (size_t i = 0; i < n; i++) {
        uint8_t size = fuzz_u8(f);

        to[i].size_bytes = size & 128 ? (size & 127U) * 600U + 1 : size + 1U;
        mine[i] = to[i].data = malloc(to[i].size_bytes);
        fuzz_check(mine[i]);
        memset(mine[i], 7, to[i].size_bytes);
    }
    if (get)
        (void)spw_get(space, keys, to, n, 0, 10, status);
    else
        (void)spw_put(space, keys, to, n, 0, 10, status);
    for (size_t i = 0; i < n; i++)
        free(mine[i]);
}

static void tensor(struct fuzz *f, spw_space *space)
{
    struct spw_key key;
    uint64_t offset = fuzz_u8(f) * UINT64_C(300), bytes = 1 + fuzz_u8(f) * UINT64_C(200);
    uint8_t *mine = calloc(1, bytes);

    fuzz_check(mine);
    keys_make(f, &key, 1);
    (void)spw_tensor_open(space, &key, 100000);
    if (fuzz_u8(f) & 1)
        (void)spw_put_range(space, &key, offset, mine, bytes, 10);
    else
        (void)spw_get_range(space, &key, offset, mine, bytes, 10);
    free(mine);
}

static void manifest(spw_pool *pool, size_t n)
{
    struct spw_manifest_entry entries[5] = {{.size_bytes = 1}};
    struct spw_sizing sizing;

    assert(n <= ARRAY_LEN(entries));
    (void)spw_manifest(pool, entries, n, &sizing); /* whatever it says: it is for the caller alone */
}

static void others(struct fuzz *f, spw_session *session, spw_pool *pool, spw_space *space)
{
    struct spw_key keys[5];
    struct spw_hit hits[ARRAY_LEN(keys)];
    struct spw_stat stat;
    int32_t status[ARRAY_LEN(keys)];
    char *text = NULL;
    size_t n = 1 + fuzz_u8(f) % ARRAY_LEN(keys);

    keys_make(f, keys, n);
    switch (fuzz_u8(f) % 8) {
    case 0:
        fuzz_check(spw_lookup(space, keys, n, 0, hits) <= (long)n);
        break;
    case 1:
        (void)spw_stat(space, &stat);
        break;
    case 2:
        if (spw_admin(session, "{}", &text) == 0)
            free(text);
        break;
    case 3:
        (void)spw_delete(space, keys, n, status);
        break;
    case 4:
        (void)spw_sync(space, keys, n, 10);
        break;
    case 5:
        (void)spw_prefetch(space, keys, n, 0, 10, status);
        break;
    case 6:
        if (n % 2)
            (void)spw_nop(space);
        else
            manifest(pool, n);
        break;
    default:
        (void)spw_touch(space, keys, n, 0);
        break;
    }
}

/* Jobs that the calling thread ends itself. */
static void jobs(struct fuzz *f, spw_session *session, spw_space *space)
{
    struct spw_key keys[3];
    struct spw_view views[ARRAY_LEN(keys)];
    uint8_t bytes[ARRAY_LEN(keys)][100] = {0};
    struct spw_iovec to[ARRAY_LEN(keys)];
    int32_t status[ARRAY_LEN(keys)];
    spw_queue *queue;
    spw_job *job;
    size_t n = 1 + fuzz_u8(f) % ARRAY_LEN(keys);

    if (spw_queue_new(session, space, 4, &queue) < 0)
        return;
    keys_make(f, keys, n);
    for (size_t i = 0; i < n; i++)
        to[i] = (struct spw_iovec){bytes[i], sizeof(bytes[i])};
    int r = fuzz_u8(f) & 1 ? spw_submit_get(queue, space, keys, to, n, 0, 10, status, NULL, &job)
                           : spw_submit_acquire(queue, space, keys, n, 0, 10, views, NULL, &job);

    if (r == 0 && fuzz_u8(f) & 1)
        (void)spw_job_cancel(job);
    for (int i = 0; r == 0 && i < 4; i++) {
        (void)spw_queue_arm(queue);
        if (spw_queue_next(queue, &job) == 0) {
            spw_job_free(job);
            break;
        }
    }
    spw_queue_free(queue);
}

static void caller(struct fuzz *f)
{
    const struct spw_space_options options = {.class_id = SPW_CLASS_KV};
    const struct spw_connect_options connect = {.socket_path = "/fuzz",
                                                .name = "fuzz",
                                                .copy_threads = 1,
                                                .timeout_ms = 1000,
                                                .ring_entries = ENTRIES,
                                                .scratch_bytes = SCRATCH_BYTES,
                                                .spin_us = SPW_SPIN_NEVER};
    spw_session *session;
    spw_pool *pool;
    spw_space *space;

    if (spw_connect(&connect, &session) < 0)
        return;
    if (spw_pool_open(session, "default", &pool) == 0 && spw_space_open(pool, &options, &space) == 0)
        for (int i = 0; i < CALLS_MAX && fuzz_more(f); i++) {
            switch (fuzz_u8(f) % 8) {
            case 0:
                blocks(f, space, true);
                break;
            case 1:
                blocks(f, space, false);
                break;
            case 2:
                put_or_get(f, space, true);
                break;
            case 3:
                put_or_get(f, space, false);
                break;
            case 4:
                tensor(f, space);
                break;
            case 5:
                jobs(f, session, space);
                break;
            case 6:
                store_relaxed(&((struct spw_ring *)(void *)d.ring.base)->daemon.sq_flags, fuzz_u8(f));
                break;
            default:
                others(f, session, pool, space);
                break;
            }
        }
    spw_close(session);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz f = fuzz_of(data, size);

    client_reattach_max_ms = 2; /* nobody comes back here */
    if (!d.ring.base) {
        d.ring = memory_new(RING_BYTES, true);
        d.scratch = memory_new(SCRATCH_BYTES, true);
        d.chunk = memory_new(CHUNK_BYTES, true);
        d.unsealed = memory_new(RING_BYTES, false);
    }
    memset(d.ring.base, 0, RING_BYTES);
    memset(d.scratch.base, 0, SCRATCH_BYTES);
    d.f = &f;
    d.client_fd = d.fd = -1;
    d.sq_head = d.cq_tail = d.n_sleeps = 0;
    d.has_ring = d.is_gone = false;
    changing_reset();
    uint64_t before = fds_open();

    fuzz_check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, d.doorbell) == 0);
    caller(&f);
    close(d.doorbell[0]);
    close(d.doorbell[1]);
    if (d.fd >= 0)
        close(d.fd);
    while (d.n_unmapped > 0)
        fuzz_check(__real_munmap(d.unmapped[--d.n_unmapped], CHUNK_BYTES) == 0);
    fuzz_check(fds_open() == before, "a descriptor is left: %lx, before: %lx", fds_open(), before);
    return 0;
}
