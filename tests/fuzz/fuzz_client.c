/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A daemon that lies to libspillway: replies and descriptors of every shape, rings whose indices, completions and results are
 * what the input says, memory that changes while the library reads it. The caller is honest: he connects, puts and gets.
 *
 * There is no second process: the library's system calls come here (the linker's --wrap), and the daemon answers before they
 * return. So a run is the same each time, and whoever waits for what never comes is told that the daemon has gone.
 *
 * In some inputs another daemon comes after it, which lies as well, and the session goes on with that. It is the library's
 * own thread that asks for it; the caller waits meanwhile, as far as it gets here, so that even this is nearly always the same.
 *
 * What must hold: no byte outside of what the caller gave is touched, no call waits for ever, and in the end no descriptor
 * is left.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
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
#define SLEEPS_MAX 4   /* in a row, before the daemon goes */
#define LIVES 3        /* of daemons, one after the other */
#define REATTACH_MS 50 /* for which the library tries */
#define LINK_LOOKS 500 /* of the caller at what the library's thread does, 0.1 ms each */
#define FD_FIRST 3     /* descriptors are counted from here */
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
    struct fuzz *f;       /* the caller's alone, with or without the lock */
    struct fuzz beside;   /* what the library's thread reads of the input: it may do so at any time */
    pthread_mutex_t lock; /* of all the rest: the library's thread comes here, too */
    int fd;               /* of the socket: ours */
    int doorbell[2];
    bool has_ring;
    struct memory rings[LIVES], scratches[LIVES];
    struct memory ring, scratch; /* of this life */
    struct memory chunk, unsealed;
    uint32_t sq_head, cq_tail, n_sleeps;
    uint32_t life, last_life;
    spw_session *session; /* NULL: not connected yet */
    uint32_t era_gone;    /* the session's, when the daemon went */
    bool is_gone;
    void *unmapped[1024];
    uint32_t n_unmapped;
} d = {.lock = PTHREAD_MUTEX_INITIALIZER};

static __thread bool is_caller;

static struct fuzz *input(void)
{
    return is_caller ? d.f : &d.beside;
}

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
    struct spw_msg_away away = {.msg = {.magic = SPW_ABI_MAGIC,
                                        .type = SPW_MSG_AWAY | SPW_MSG_REPLY,
                                        .version = SPW_ABI_VERSION,
                                        .size_bytes = sizeof(away)},
                                .reattach_ms = REATTACH_MS};
    uint8_t how = d.life < d.last_life ? fuzz_u8(input()) : 0;

    if (d.is_gone)
        return;
    if (how & 2)
        fuzz_patch(input(), &away, sizeof(away));
    if (how & 1)
        (void)socket_send(d.fd, &away, sizeof(away), NULL, 0, MSG_DONTWAIT);
    (void)shutdown(d.fd, SHUT_RDWR);
    d.is_gone = true;
    d.era_gone = d.session ? load_acquire(&d.session->era) : 0;
}

/* Until the session has a daemon again, or is over. Nothing is held by the caller but what the library holds. */
static void link_wait(void)
{
    for (int i = 0; i < LINK_LOOKS && d.session && load_acquire(&d.session->dead) == 0; i++) {
        uint32_t era = load_acquire(&d.session->era);

        if (era != d.era_gone && era % 2 == 0)
            return;
        usleep(100);
    }
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
                                                .session = 9,
                                                .memory_id = 11,
                                                .reattach_ms = d.last_life > 0 ? REATTACH_MS : 0,
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
                                            .flags = fuzz_wrong(input()) & 1 ? 0 : SPW_CHUNK_WRITABLE,
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
    struct fuzz *f = input();
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
    struct fuzz *f = input();

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
        serve(input(), &sqe);
    }
    store_relaxed(&shared->daemon.sq_flags, SPW_RING_NEED_WAKEUP);
    return n > 0;
}

/* --- The library's system calls -------------------------------------------------------------------------------------- */

/* The next daemon, if there is one. */
static int daemon_comes(int fd)
{
    int pair[2];

    if (d.fd >= 0 && (!d.is_gone || d.life == d.last_life)) {
        errno = d.is_gone ? EACCES : ECONNREFUSED; /* never; not yet */
        return -1;
    }
    if (d.fd >= 0) {
        close(d.fd);
        d.life++;
    }
    fuzz_check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
    fuzz_check(dup3(pair[0], fd, O_CLOEXEC) == fd); /* in the place of the library's it has one end of a pair */
    close(pair[0]);
    d.fd = pair[1];
    d.ring = d.rings[d.life];
    d.scratch = d.scratches[d.life];
    d.sq_head = d.cq_tail = d.n_sleeps = 0;
    d.has_ring = d.is_gone = false;
    return 0;
}

int __wrap_connect(int fd, const struct sockaddr *addr, socklen_t len)
{
    (void)addr;
    (void)len;
    pthread_mutex_lock(&d.lock);
    int r = daemon_comes(fd);

    pthread_mutex_unlock(&d.lock);
    return r;
}

static ssize_t daemon_hears(const void *bytes, size_t size)
{
    const struct spw_msg *msg = bytes;

    d.n_sleeps = 0;
    if (size < sizeof(*msg)) { /* a doorbell */
        (void)engine_turn();
        return (ssize_t)size;
    }
    if (d.is_gone) {
        errno = EPIPE;
        return -1;
    }
    fuzz_check(msg->size_bytes == size, "what the library sends");
    if (msg->type == SPW_MSG_ADMIN)
        reply_text(msg);
    else
        reply(bytes);
    return (ssize_t)size;
}

ssize_t __wrap_send(int fd, const void *bytes, size_t size, int flags)
{
    (void)fd;
    (void)flags;
    pthread_mutex_lock(&d.lock);
    ssize_t r = daemon_hears(bytes, size);

    pthread_mutex_unlock(&d.lock);
    return r;
}

/* Nobody else will ever say anything: a wait of the caller that finds nothing is over. The library's thread waits for a daemon's
 * end, or for its first answer: if that does not come it is to see that end. */
int __wrap_poll(struct pollfd *fds, nfds_t n, int timeout_ms)
{
    int r = __real_poll(fds, n, is_caller || timeout_ms > 0 ? 0 : timeout_ms);

    if (r != 0 || is_caller)
        return r;
    pthread_mutex_lock(&d.lock);
    daemon_goes();
    pthread_mutex_unlock(&d.lock);
    return __real_poll(fds, n, timeout_ms);
}

long __wrap_syscall(long number, ...)
{
    fuzz_check(number == SYS_futex, "a system call that nobody expects: %ld", number);
    pthread_mutex_lock(&d.lock);
    if (!engine_turn() && ++d.n_sleeps == SLEEPS_MAX)
        daemon_goes();
    bool waits = is_caller && d.is_gone && d.life < d.last_life;

    pthread_mutex_unlock(&d.lock);
    if (waits)
        link_wait();
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
    uint8_t shape = fuzz_u8(f);
    struct spw_key keys[6];
    struct spw_view views[ARRAY_LEN(keys)];
    uint64_t sizes[ARRAY_LEN(keys)];
    size_t n = 1 + shape % ARRAY_LEN(keys);
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
    if (reserve && shape & 128)
        (void)spw_abort(space, views, n);
    else if (reserve)
        (void)spw_commit(space, views, n, 0);
    else
        (void)spw_release(space, views, n, 0);
}

/* A lease on a tensor's range, and blocks out of it or into it. */
static void arena(struct fuzz *f, spw_space *space)
{
    struct spw_key keys[3];
    struct spw_view views[4] = {0};
    uint64_t sizes[ARRAY_LEN(keys)], offset = fuzz_number(f), length = fuzz_number(f);
    int32_t status[ARRAY_LEN(keys)];
    uint8_t shape = fuzz_u8(f);
    size_t n = 1 + shape % ARRAY_LEN(keys);

    keys_make(f, keys, n);
    for (size_t i = 0; i < n; i++)
        sizes[i] = fuzz_number(f);
    long n_views =
        spw_acquire_range(space, keys, offset, length, shape & 8 ? SPW_WRITE : 0, 10, views, ARRAY_LEN(views));

    if (n_views <= 0)
        return;
    views_use(views, (size_t)n_views, shape & 8);
    if (shape & 16)
        (void)spw_put_from_view(space, keys, sizes, n, views, fuzz_u8(f) * 64U, 10, status);
    else if (shape & 32)
        (void)spw_put_from_views(space, keys, views, MIN(n, (size_t)n_views), 10, status);
    else
        (void)spw_get_to_view(space, keys, sizes, n, views, fuzz_u8(f) * 64U, 10, status);
    (void)spw_release(space, views, (size_t)n_views, shape & 64 ? SPW_DIRTY : 0);
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
    switch (fuzz_u8(f) % 16) {
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
    case 7:
        (void)spw_advise(space, keys, n, (enum spw_advice)(fuzz_u8(f) % 6), n);
        break;
    case 8:
        (void)spw_pin(space, keys, n, fuzz_u8(f), status);
        break;
    case 9:
        (void)spw_plan(space, keys, n);
        break;
    case 10:
    case 11:
    case 12:
        arena(f, space);
        break;
    case 13:
        (void)spw_sync(space, NULL, 0, 10);
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
    d.session = session;
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
    d.session = NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz f = fuzz_of(data, size);

    is_caller = true;
    client_reattach_max_ms = REATTACH_MS;
    if (!d.chunk.base) {
        for (uint32_t i = 0; i < LIVES; i++) {
            d.rings[i] = memory_new(RING_BYTES, true);
            d.scratches[i] = memory_new(SCRATCH_BYTES, true);
        }
        d.chunk = memory_new(CHUNK_BYTES, true);
        d.unsealed = memory_new(RING_BYTES, false);
    }
    for (uint32_t i = 0; i < LIVES; i++) {
        memset(d.rings[i].base, 0, RING_BYTES);
        memset(d.scratches[i].base, 0, SCRATCH_BYTES);
    }
    d.f = &f;
    d.beside = fuzz_of(data + size / 2, size - size / 2);
    d.fd = -1;
    d.life = 0;
    d.last_life = fuzz_u8(&f) % 8; /* mostly the first */
    d.last_life = d.last_life < LIVES ? d.last_life : 0;
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
