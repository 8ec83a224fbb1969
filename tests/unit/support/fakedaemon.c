/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One thread polls everything: the listener, connections, doorbells, and a wake-up pipe of its own. The test's thread
 * talks to it by atomics and that pipe; everything else is the daemon thread's. Its side of the rings follows abi.h:
 * sq_flags before it sleeps, a full fence, another look; cq_tail, a full fence, cq_flags.
 *
 * Simple rather than fast: objects are an array, the chunk is filled from its start and never reused. It trusts its
 * client, which is our own; the real daemon does not.
 */
#include "tests/unit/support/fakedaemon.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "include/base/atomic.h"
#include "include/base/base.h"
#include "include/base/ring.h"
#include "include/spillway/abi.h"

#define CONNECTIONS 16
#define RINGS 64
#define OBJECTS 16384
#define LEASES 16384
#define HELD 256
#define CHUNK_BYTES (256 * MIB)
#define PAGE 4096

#define must(x)                                                                                                        \
    do {                                                                                                               \
        if (!(x)) {                                                                                                    \
            fprintf(stderr, "fakedaemon: %s:%d: %s: %s\n", __FILE__, __LINE__, #x, strerror(errno));                   \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

struct object {
    struct spw_item name;
    uint64_t size_bytes, offset_bytes;
    uint32_t pieces_left; /* to be committed */
    bool used, visible, tensor;
};

struct lease {
    struct object *object;
    bool used, reservation;
};

struct ring {
    struct connection *connection;
    bool used, scratch_writable;
    uint32_t number;
    int doorbell;
    struct spw_ring *shared;
    struct spw_sqe *sqes;
    struct spw_cqe *cqes;
    uint8_t *scratch;
    size_t ring_bytes, scratch_bytes;
    uint32_t entries, sq_head, cq_tail;
};

struct connection {
    int fd;
};

struct held {
    struct ring *ring;
    struct spw_sqe sqe;
};

struct fake {
    pthread_t thread;
    char path[108];
    int listener, pipe[2];
    int chunk_fd;
    uint32_t chunk_epoch;
    uint64_t chunk_used;
    uint32_t next_ring;
    struct connection connections[CONNECTIONS];
    struct ring rings[RINGS];
    struct object objects[OBJECTS];
    struct lease leases[LEASES];
    struct held held[HELD];
    uint32_t n_held;
    uint64_t plan_items; /* of a plan's lists so far */
    /* Between the threads. */
    uint32_t fault, stop, die, let_go, renew, n_held_seen, replace_in;
    uint64_t replace_bytes; /* set before */
    uint32_t n_leases, n_rings, n_sqes, n_chunk_gets, n_sleeps, n_wakes;
};

static enum fake_fault fault_of(struct fake *f)
{
    return (enum fake_fault)load_acquire(&f->fault);
}

static void count(uint32_t *counter, int by)
{
    __atomic_fetch_add(counter, (uint32_t)by, __ATOMIC_ACQ_REL);
}

static int memfd_new(const char *name, size_t size_bytes, bool sealed)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

    must(fd >= 0 && ftruncate(fd, (off_t)size_bytes) == 0);
    if (sealed)
        must(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
    return fd;
}

/* --- Control -------------------------------------------------------------------------------------------------------- */

static void reply(int fd, const struct spw_msg *request, void *message, size_t size_bytes, const int *fds, unsigned n)
{
    struct spw_msg *msg = message;
    struct iovec iov = {message, size_bytes};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(3 * sizeof(int))];
    } control = {0};
    struct msghdr hdr = {.msg_iov = &iov, .msg_iovlen = 1};

    msg->magic = SPW_ABI_MAGIC;
    msg->type = request->type | SPW_MSG_REPLY;
    msg->version = SPW_ABI_VERSION;
    msg->size_bytes = (uint32_t)size_bytes;
    msg->request = request->request;
    if (n > 0) {
        hdr.msg_control = &control;
        hdr.msg_controllen = CMSG_SPACE(n * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&hdr);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(n * sizeof(int));
        memcpy(CMSG_DATA(c), fds, n * sizeof(int));
    }
    (void)!sendmsg(fd, &hdr, MSG_NOSIGNAL);
}

static void refuse(int fd, const struct spw_msg *request, int status, uint32_t detail, const char *text)
{
    struct spw_msg_error error = {.msg = {.status = status, .detail = detail}};

    snprintf(error.text, sizeof(error.text), "%s", text);
    reply(fd, request, &error, sizeof(error), NULL, 0);
}

static void on_hello(struct fake *f, int fd, const struct spw_msg *msg)
{
    struct spw_msg_welcome welcome = {
        .version = fault_of(f) == FAKE_ODD_VERSION ? 9 : SPW_ABI_VERSION,
        .engines = 1,
        .session = 1,
        .rings_max = RINGS,
        .ring_entries_max = 256,
        .list_max = SPW_LIST_MAX,
        .scratch_bytes_max = 8 * MIB,
    };

    if (fault_of(f) == FAKE_WRONG_VERSION) {
        refuse(fd, msg, -EPROTONOSUPPORT, 0, "this daemon speaks version 7 to 8");
        return;
    }
    memset(welcome.owner_token, 0xab, sizeof(welcome.owner_token));
    reply(fd, msg, &welcome, sizeof(welcome), NULL, 0);
}

static void on_ring_new(struct fake *f, struct connection *c, const struct spw_msg_ring_new *ask)
{
    struct ring *r = NULL;
    int pair[2];

    for (unsigned i = 0; i < RINGS && !r; i++)
        r = f->rings[i].used ? NULL : &f->rings[i];
    if (!r || fault_of(f) == FAKE_RINGS_FULL) {
        refuse(c->fd, &ask->msg, -EMFILE, SPW_LIMIT_SESSION_RINGS, "");
        return;
    }
    *r = (struct ring){.connection = c, .used = true, .number = ++f->next_ring, .entries = ask->sq_entries};
    size_t cq_offset = sizeof(struct spw_ring) + (size_t)r->entries * sizeof(struct spw_sqe);
    r->ring_bytes = round_up(cq_offset + (size_t)r->entries * sizeof(struct spw_cqe), PAGE);
    r->scratch_bytes = ask->scratch_bytes;
    int ring_fd = memfd_new("ring", r->ring_bytes, fault_of(f) != FAKE_UNSEALED_RING);
    int scratch_fd = memfd_new("scratch", r->scratch_bytes, true);
    r->shared = mmap(NULL, r->ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring_fd, 0);
    r->scratch = mmap(NULL, r->scratch_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, scratch_fd, 0);
    must(r->shared != MAP_FAILED && r->scratch != MAP_FAILED);
    madvise(r->shared, r->ring_bytes, MADV_DONTFORK);
    r->sqes = (struct spw_sqe *)(void *)((uint8_t *)r->shared + sizeof(struct spw_ring));
    r->cqes = (struct spw_cqe *)(void *)((uint8_t *)r->shared + cq_offset);
    must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
    r->doorbell = pair[0];
    struct spw_msg_ring answer = {
        .ring = r->number,
        .sq_entries = r->entries,
        .cq_entries = r->entries,
        .sq_offset = sizeof(struct spw_ring),
        .cq_offset = fault_of(f) == FAKE_BAD_GEOMETRY ? (uint32_t)r->ring_bytes - 64 : (uint32_t)cq_offset,
        .ring_bytes = r->ring_bytes,
        .scratch_bytes = r->scratch_bytes,
    };
    int fds[3] = {ring_fd, scratch_fd, pair[1]};
    count(&f->n_rings, 1);
    reply(c->fd, &ask->msg, &answer, fault_of(f) == FAKE_SHORT_REPLY ? 40 : sizeof(answer), fds,
          fault_of(f) == FAKE_NO_DESCRIPTORS ? 0 : 3);
    for (unsigned i = 0; i < 3; i++)
        close(fds[i]);
}

static void ring_drop(struct fake *f, struct ring *r)
{
    munmap(r->shared, r->ring_bytes);
    munmap(r->scratch, r->scratch_bytes);
    close(r->doorbell);
    for (uint32_t i = 0; i < f->n_held; i++)
        if (f->held[i].ring == r)
            f->held[i] = f->held[--f->n_held];
    r->used = false;
    count(&f->n_rings, -1);
}

static void on_chunk_get(struct fake *f, int fd, const struct spw_msg_chunk_get *ask)
{
    struct spw_msg_chunk chunk = {.chunk = ask->chunk,
                                  .epoch = ask->epoch,
                                  .flags = SPW_CHUNK_WRITABLE,
                                  .page_bytes = PAGE,
                                  .size_bytes = CHUNK_BYTES};

    count(&f->n_chunk_gets, 1);
    if (ask->chunk != 0 || ask->epoch != f->chunk_epoch)
        refuse(fd, &ask->msg, -ESTALE, 0, "there is no such chunk");
    else
        reply(fd, &ask->msg, &chunk, sizeof(chunk), &f->chunk_fd, 1);
}

/* As many bytes as its entries say, and as many leases as there are entries. */
static void on_manifest(int fd, const struct spw_msg_manifest *told)
{
    const struct spw_manifest_entry *entries = (const void *)(told + 1);
    struct spw_msg_sizing sizing = {.sizing.leases = told->n};

    for (uint32_t i = 0; i < told->n; i++)
        sizing.sizing.leased_bytes += entries[i].slots * entries[i].size_bytes;
    if (told->pool != 5)
        refuse(fd, &told->msg, -EBADF, 0, "this session has not opened that pool");
    else
        reply(fd, &told->msg, &sizing, sizeof(sizing), NULL, 0);
}

static void on_message(struct fake *f, struct connection *c, void *bytes)
{
    struct spw_msg *msg = bytes;

    switch (msg->type) {
    case SPW_MSG_HELLO:
        on_hello(f, c->fd, msg);
        break;
    case SPW_MSG_POOL_OPEN:
        if (fault_of(f) == FAKE_REFUSE_POOL)
            refuse(c->fd, msg, -EACCES, 0, "pool `default` is not for uid 1000 (allow it by `uid` in [pool default])");
        else if (fault_of(f) != FAKE_SILENT)
            reply(c->fd, msg, &(struct spw_msg_pool){.pool = 5, .flags = SPW_POOL_TRUSTED, .dram_bytes = CHUNK_BYTES},
                  sizeof(struct spw_msg_pool), NULL, 0);
        break;
    case SPW_MSG_MANIFEST:
        on_manifest(c->fd, bytes);
        break;
    case SPW_MSG_SPACE_OPEN:
        reply(c->fd, msg, &(struct spw_msg_space){.space = 6, .space_id = 7, .piece_bytes = FAKE_PIECE_BYTES},
              sizeof(struct spw_msg_space), NULL, 0);
        break;
    case SPW_MSG_RING_NEW:
        on_ring_new(f, c, bytes);
        break;
    case SPW_MSG_RING_FREE:
        for (unsigned i = 0; i < RINGS; i++)
            if (f->rings[i].used && f->rings[i].number == ((struct spw_msg_ring_free *)bytes)->ring)
                ring_drop(f, &f->rings[i]);
        reply(c->fd, msg, &(struct spw_msg){0}, sizeof(struct spw_msg), NULL, 0);
        break;
    case SPW_MSG_CHUNK_GET:
        if (fault_of(f) == FAKE_NO_CHUNK)
            refuse(c->fd, msg, -ENFILE, 0, "no descriptors");
        else
            on_chunk_get(f, c->fd, bytes);
        break;
    case SPW_MSG_ADMIN: { /* two parts: `{"echo":` and the request and `}` */
        char part[sizeof(struct spw_msg) + 4096];
        size_t len = msg->size_bytes - sizeof(*msg);
        snprintf(part + sizeof(struct spw_msg), 4096, "%s", "{\"echo\":");
        *(struct spw_msg *)(void *)part = (struct spw_msg){.detail = SPW_MSG_MORE};
        reply(c->fd, msg, part, sizeof(struct spw_msg) + 8, NULL, 0);
        *(struct spw_msg *)(void *)part = (struct spw_msg){0};
        memcpy(part + sizeof(struct spw_msg), msg + 1, len);
        part[sizeof(struct spw_msg) + len] = '}';
        reply(c->fd, msg, part, sizeof(struct spw_msg) + len + 1, NULL, 0);
        break;
    }
    default:
        refuse(c->fd, msg, -EOPNOTSUPP, 0, "no such message");
    }
}

/* --- Objects -------------------------------------------------------------------------------------------------------- */

static struct object *object_find(struct fake *f, const struct spw_item *item, bool make)
{
    uint32_t hash = 2166136261;

    for (unsigned i = 0; i < sizeof(item->key); i++)
        hash = (hash ^ item->key[i]) * 16777619;
    hash ^= item->group * 31 + item->key_len;
    for (uint32_t i = 0; i < OBJECTS; i++) {
        struct object *o = &f->objects[(hash + i) % OBJECTS];
        if (!o->used) {
            if (!make)
                return NULL;
            *o = (struct object){.name = *item, .used = true};
            return o;
        }
        if (memcmp(o->name.key, item->key, sizeof(item->key)) == 0 && o->name.group == item->group &&
            o->name.key_len == item->key_len)
            return o;
    }
    abort();
}

static uint64_t lease_new(struct fake *f, struct object *o, bool reservation)
{
    for (uint32_t i = 0; i < LEASES; i++) {
        if (!f->leases[i].used) {
            f->leases[i] = (struct lease){o, true, reservation};
            count(&f->n_leases, 1);
            return i + 1;
        }
    }
    abort();
}

static struct spw_result *extent_results(struct fake *f, struct object *o, uint64_t offset, uint64_t length,
                                         bool reservation, struct spw_result *result)
{
    for (uint64_t at = offset, n; at < offset + length; at += n, result++) {
        n = MIN(offset + length - at, FAKE_PIECE_BYTES - at % FAKE_PIECE_BYTES);
        *result = (struct spw_result){.tier = SPW_TIER_DRAM,
                                      .lease = lease_new(f, o, reservation),
                                      .chunk = 0,
                                      .epoch = f->chunk_epoch,
                                      .offset_bytes = o->offset_bytes + at,
                                      .length_bytes = n};
        if (fault_of(f) == FAKE_RESULT_OUTSIDE)
            result->offset_bytes = CHUNK_BYTES - 1;
        if (fault_of(f) == FAKE_RESULT_LENGTH)
            result->length_bytes = n + 1;
        if (fault_of(f) == FAKE_RESULT_CHUNK)
            result->chunk = UINT32_MAX;
    }
    return result;
}

static struct spw_result *fail(struct spw_result *result, uint64_t n, int status)
{
    for (uint64_t i = 0; i < n; i++)
        result[i] =
            (struct spw_result){.status = status, .detail = status == -ENOSPC ? SPW_LIMIT_POOL_LEASES : SPW_LIMIT_NONE};
    return result + n;
}

static uint64_t pieces(uint64_t offset, uint64_t length)
{
    return length == 0 ? 1 : (offset + length - 1) / FAKE_PIECE_BYTES - offset / FAKE_PIECE_BYTES + 1;
}

static void object_place(struct fake *f, struct object *o, uint64_t size_bytes)
{
    o->size_bytes = size_bytes;
    o->offset_bytes = f->chunk_used;
    f->chunk_used = round_up(f->chunk_used + size_bytes, PAGE);
    must(f->chunk_used <= CHUNK_BYTES);
}

/* All of its bytes are 0xEE. Leases of the old one hold as they did. */
static void object_replace(struct fake *f, struct object *o, uint64_t size_bytes)
{
    static uint8_t bytes[FAKE_PIECE_BYTES];

    memset(bytes, FAKE_REPLACED_BYTE, sizeof(bytes));
    object_place(f, o, size_bytes);
    for (uint64_t at = 0; at < size_bytes; at += sizeof(bytes))
        must(pwrite(f->chunk_fd, bytes, MIN(size_bytes - at, sizeof(bytes)), (off_t)(o->offset_bytes + at)) > 0);
}

static struct spw_result *item_serve(struct fake *f, const struct spw_sqe *sqe, const struct spw_item *item,
                                     struct spw_result *result)
{
    must(item->flags == 0 && item->reserved0 == 0 && item->reserved1 == 0);
    struct object *o = object_find(f, item, false);
    uint64_t n = pieces(item->offset_bytes, item->length_bytes);

    if (o && load_acquire(&f->replace_in) > 0 && __atomic_sub_fetch(&f->replace_in, 1, __ATOMIC_ACQ_REL) == 0)
        object_replace(f, o, load_relaxed(&f->replace_bytes));
    switch (sqe->opcode) {
    case SPW_OP_RESERVE:
        if (o)
            return fail(result, n, o->visible ? -EEXIST : -EINPROGRESS);
        o = object_find(f, item, true);
        object_place(f, o, item->length_bytes);
        o->pieces_left = (uint32_t)n;
        return extent_results(f, o, 0, o->size_bytes, true, result);
    case SPW_OP_TENSOR:
        if (o)
            return fail(result, 1, o->size_bytes == item->length_bytes ? 0 : -EINVAL);
        o = object_find(f, item, true);
        object_place(f, o, item->length_bytes);
        o->visible = o->tensor = true;
        return fail(result, 1, 0);
    case SPW_OP_ACQUIRE:
        if (!o || !o->visible)
            return fail(result, n, -ENOENT);
        if (item->length_bytes == 0 && o->size_bytes > FAKE_PIECE_BYTES)
            return fail(result, 1, -EMSGSIZE);
        if (item->offset_bytes + item->length_bytes > o->size_bytes)
            return fail(result, n, -ERANGE);
        return extent_results(f, o, item->offset_bytes, item->length_bytes ? item->length_bytes : o->size_bytes, false,
                              result);
    case SPW_OP_LOOKUP:
        *result = (struct spw_result){.status = !o           ? -ENOENT
                                                : o->visible ? 0
                                                             : -EINPROGRESS,
                                      .tier = SPW_TIER_DRAM,
                                      .length_bytes = o ? o->size_bytes : 0};
        return result + 1;
    case SPW_OP_DELETE:
        if (o)
            o->visible = false;
        return fail(result, 1, o ? 0 : -ENOENT);
    default: /* TOUCH, PREFETCH, PIN, ADVISE, SYNC */
        return fail(result, 1, o ? 0 : -ENOENT);
    }
}

static int handle_serve(struct fake *f, const struct spw_sqe *sqe, const struct spw_handle *handle)
{
    struct lease *l = handle->lease - 1 < LEASES ? &f->leases[handle->lease - 1] : NULL;

    if (!l || !l->used || l->reservation != (sqe->opcode != SPW_OP_RELEASE))
        return -EBADF;
    l->used = false;
    count(&f->n_leases, -1);
    if (sqe->opcode == SPW_OP_COMMIT && --l->object->pieces_left == 0)
        l->object->visible = true;
    if (sqe->opcode == SPW_OP_ABORT)
        l->object->name.key_len = 0xff; /* a tombstone: no key is like it */
    return 0;
}

/* --- Rings ---------------------------------------------------------------------------------------------------------- */

static void cqe_publish(struct fake *f, struct ring *r, const struct spw_cqe *cqe)
{
    r->cqes[r->cq_tail++ & (r->entries - 1)] = *cqe;
    if (fault_of(f) == FAKE_CQ_TAIL_FAR)
        r->cq_tail += UINT32_C(1) << 31;
    if (fault_of(f) == FAKE_CQ_TAIL_BACK)
        r->cq_tail -= 2;
    uint32_t flags = ring_publish(&r->shared->daemon.cq_tail, r->cq_tail, &r->shared->client.cq_flags);
    if (flags != 0)
        count(&f->n_wakes, 1);
    if (flags & SPW_RING_WAKE_FUTEX)
        syscall(SYS_futex, &r->shared->daemon.cq_tail, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    if (flags & SPW_RING_WAKE_DOORBELL)
        (void)!send(r->doorbell, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void plan_serve(struct fake *f, const struct spw_sqe *sqe, uint64_t *ret_value)
{
    must(sqe->results == 0 && sqe->arg[0] == f->plan_items && sqe->arg[1] >= f->plan_items + sqe->n_items);
    f->plan_items += sqe->n_items;
    *ret_value = f->plan_items == sqe->arg[1] ? f->plan_items : 0;
    if (f->plan_items == sqe->arg[1])
        f->plan_items = 0;
}

static int list_serve(struct fake *f, struct ring *r, const struct spw_sqe *sqe, uint64_t *ret_value)
{
    struct spw_result *results = (struct spw_result *)(void *)(r->scratch + sqe->results), *result = results;
    struct spw_item *items = (struct spw_item *)(void *)(r->scratch + sqe->items);
    struct spw_handle *handles = (struct spw_handle *)(void *)(r->scratch + sqe->items);
    bool are_handles = sqe->opcode == SPW_OP_COMMIT || sqe->opcode == SPW_OP_ABORT || sqe->opcode == SPW_OP_RELEASE;
    bool prefix = true;

    *ret_value = 0;
    if (sqe->opcode == SPW_OP_PLAN) {
        plan_serve(f, sqe, ret_value);
        return 0;
    }
    for (uint32_t i = 0; i < sqe->n_items; i++) {
        struct spw_result *first = result;
        if (are_handles)
            result = fail(result, 1, handle_serve(f, sqe, &handles[i]));
        else if (fault_of(f) == FAKE_NO_SPACE)
            result = fail(result, pieces(items[i].offset_bytes, items[i].length_bytes), -ENOSPC);
        else
            result = item_serve(f, sqe, &items[i], result);
        if (first->status < 0)
            prefix = false;
        if (first->status == 0 && (prefix || sqe->opcode != SPW_OP_LOOKUP))
            ++*ret_value;
    }
    if (sqe->opcode == SPW_OP_STAT)
        *(struct spw_stat *)(void *)results = (struct spw_stat){.dram_budget = CHUNK_BYTES, .objects = 42};
    return 0;
}

static void sqe_answer(struct fake *f, struct ring *r, const struct spw_sqe *sqe, int status)
{
    struct spw_cqe cqe = {.user_data = sqe->user_data, .status = status};

    if (fault_of(f) == FAKE_REQUEST_FAILS) {
        cqe.status = -EAGAIN;
        cqe.detail = SPW_LIMIT_REQUESTS;
    } else if (status == 0) {
        (void)list_serve(f, r, sqe, &cqe.value);
    }
    if (fault_of(f) == FAKE_CQE_UNKNOWN)
        cqe.user_data ^= UINT64_C(1) << 40;
    cqe_publish(f, r, &cqe);
}

static void cancel_serve(struct fake *f, struct ring *r, const struct spw_sqe *sqe)
{
    for (uint32_t i = 0; i < f->n_held; i++) {
        if (f->held[i].ring == r && f->held[i].sqe.user_data == sqe->arg[0]) {
            struct held held = f->held[i];
            f->held[i] = f->held[--f->n_held];
            store_release(&f->n_held_seen, f->n_held);
            sqe_answer(f, r, &held.sqe, -ECANCELED);
            break;
        }
    }
    sqe_answer(f, r, sqe, 0);
}

static void sqe_serve(struct fake *f, struct ring *r, const struct spw_sqe *sqe)
{
    const struct spw_item *items = (const struct spw_item *)(const void *)(r->scratch + sqe->items);
    bool has_items = sqe->n_items > 0 && sqe->opcode != SPW_OP_COMMIT && sqe->opcode != SPW_OP_ABORT &&
                     sqe->opcode != SPW_OP_RELEASE;

    bool spaceless = sqe->opcode == SPW_OP_NOP || sqe->opcode == SPW_OP_CANCEL || (sqe->n_items > 0 && !has_items);

    must(sqe->space == (spaceless ? 0 : 6)); /* the real one refuses what must(…) does not let through here */
    must((sqe->flags & ~SPW_SQE_FLAGS) == 0 && sqe->reserved0 == 0 && sqe->reserved == 0);
    must(sqe->items % 64 == 0 && sqe->results % 64 == 0 && sqe->n_items <= SPW_LIST_MAX);
    must(sqe->items + sqe->n_items * sizeof(struct spw_item) <= r->scratch_bytes || spaceless);
    count(&f->n_sqes, 1);
    if (sqe->opcode == SPW_OP_CANCEL) {
        cancel_serve(f, r, sqe);
    } else if (has_items && items[0].group == FAKE_GROUP_HOLD && f->n_held < HELD) {
        f->held[f->n_held++] = (struct held){r, *sqe};
        store_release(&f->n_held_seen, f->n_held);
    } else {
        sqe_answer(f, r, sqe, 0);
    }
}

/* Returns whether there was anything. */
static bool rings_serve(struct fake *f)
{
    bool any = false;

    for (unsigned i = 0; i < RINGS; i++) {
        struct ring *r = &f->rings[i];
        while (r->used && load_acquire(&r->shared->client.sq_tail) != r->sq_head) {
            struct spw_sqe sqe = r->sqes[r->sq_head & (r->entries - 1)];
            store_release(&r->shared->daemon.sq_head, ++r->sq_head);
            any = true;
            if (fault_of(f) == FAKE_DIE_ON_REQUEST) {
                store_release(&f->die, 1);
                return true;
            }
            sqe_serve(f, r, &sqe);
        }
    }
    return any;
}

static void held_serve(struct fake *f)
{
    while (f->n_held > 0) {
        struct held held = f->held[--f->n_held];
        sqe_answer(f, held.ring, &held.sqe, 0);
    }
    store_release(&f->n_held_seen, 0);
}

/* --- The thread ----------------------------------------------------------------------------------------------------- */

static void connection_drop(struct fake *f, struct connection *c)
{
    for (unsigned i = 0; i < RINGS; i++)
        if (f->rings[i].used && f->rings[i].connection == c)
            ring_drop(f, &f->rings[i]);
    close(c->fd);
    c->fd = -1;
}

static void drop_all(struct fake *f)
{
    for (unsigned i = 0; i < CONNECTIONS; i++)
        if (f->connections[i].fd >= 0)
            connection_drop(f, &f->connections[i]);
    if (f->listener >= 0)
        close(f->listener);
    f->listener = -1;
}

static void connections_serve(struct fake *f)
{
    _Alignas(8) char bytes[65536];
    struct sockaddr peer;

    for (unsigned i = 0; i < CONNECTIONS; i++) {
        struct connection *c = &f->connections[i];
        ssize_t n;
        while (c->fd >= 0 && (n = recv(c->fd, bytes, sizeof(bytes), MSG_DONTWAIT)) >= 0) {
            if (n == 0)
                connection_drop(f, c);
            else
                on_message(f, c, bytes);
        }
        if (c->fd < 0 && f->listener >= 0)
            c->fd = accept4(f->listener, &peer, &(socklen_t){sizeof(peer)}, SOCK_CLOEXEC | SOCK_NONBLOCK);
    }
}

/* Sets NEED_WAKEUP everywhere, looks once more, sleeps in poll. */
static void engine_sleep(struct fake *f)
{
    struct pollfd fds[2 + CONNECTIONS + RINGS];
    unsigned n = 0;
    bool work = false;
    char drain[64];

    for (unsigned i = 0; i < RINGS; i++)
        if (f->rings[i].used)
            ring_sleep_prepare(&f->rings[i].shared->daemon.sq_flags, SPW_RING_NEED_WAKEUP);
    for (unsigned i = 0; i < RINGS; i++)
        if (f->rings[i].used)
            work |= load_acquire(&f->rings[i].shared->client.sq_tail) != f->rings[i].sq_head;
    if (!work) {
        fds[n++] = (struct pollfd){.fd = f->listener, .events = POLLIN};
        fds[n++] = (struct pollfd){.fd = f->pipe[0], .events = POLLIN};
        for (unsigned i = 0; i < CONNECTIONS; i++)
            fds[n++] = (struct pollfd){.fd = f->connections[i].fd, .events = POLLIN};
        for (unsigned i = 0; i < RINGS; i++)
            fds[n++] = (struct pollfd){.fd = f->rings[i].used ? f->rings[i].doorbell : -1, .events = POLLIN};
        count(&f->n_sleeps, 1);
        poll(fds, n, -1);
    }
    for (unsigned i = 0; i < RINGS; i++) {
        if (!f->rings[i].used)
            continue;
        ring_sleep_cancel(&f->rings[i].shared->daemon.sq_flags);
        while (recv(f->rings[i].doorbell, drain, sizeof(drain), MSG_DONTWAIT) > 0)
            ;
    }
    while (read(f->pipe[0], drain, sizeof(drain)) > 0)
        ;
}

static void *fake_main(void *arg)
{
    struct fake *f = arg;

    while (!load_acquire(&f->stop)) {
        connections_serve(f);
        bool any = rings_serve(f);
        if (__atomic_exchange_n(&f->die, 0, __ATOMIC_ACQ_REL))
            drop_all(f);
        if (load_acquire(&f->let_go)) {
            held_serve(f);
            store_release(&f->let_go, 0); /* whoever waits for it finds the answers */
        }
        if (__atomic_exchange_n(&f->renew, 0, __ATOMIC_ACQ_REL)) {
            close(f->chunk_fd);
            f->chunk_fd = memfd_new("chunk", CHUNK_BYTES, true);
            f->chunk_epoch++;
        }
        if (!any)
            engine_sleep(f);
    }
    drop_all(f);
    return NULL;
}

static void poke(struct fake *f)
{
    (void)!write(f->pipe[1], "", 1);
}

struct fake *fake_start(void)
{
    static uint32_t started;
    struct fake *f = calloc(1, sizeof(*f));
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    must(f);
    snprintf(f->path, sizeof(f->path), "/tmp/spillway-fake-%d-%u.sock", getpid(), ++started);
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", f->path);
    unlink(f->path);
    f->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    must(f->listener >= 0 && bind(f->listener, (struct sockaddr *)&addr, sizeof(addr)) == 0);
    must(listen(f->listener, 16) == 0 && pipe2(f->pipe, O_CLOEXEC | O_NONBLOCK) == 0);
    for (unsigned i = 0; i < CONNECTIONS; i++)
        f->connections[i].fd = -1;
    f->chunk_epoch = 1;
    f->chunk_fd = memfd_new("chunk", CHUNK_BYTES, true);
    must(pthread_create(&f->thread, NULL, fake_main, f) == 0);
    return f;
}

void fake_stop(struct fake *fake)
{
    store_release(&fake->stop, 1);
    poke(fake);
    pthread_join(fake->thread, NULL);
    close(fake->pipe[0]);
    close(fake->pipe[1]);
    close(fake->chunk_fd);
    unlink(fake->path);
    free(fake);
}

const char *fake_path(const struct fake *fake)
{
    return fake->path;
}

void fake_set_fault(struct fake *fake, enum fake_fault fault)
{
    store_release(&fake->fault, (uint32_t)fault);
}

void fake_die(struct fake *fake)
{
    store_release(&fake->die, 1);
    poke(fake);
}

void fake_let_go(struct fake *fake)
{
    store_release(&fake->let_go, 1);
    poke(fake);
    while (load_acquire(&fake->let_go))
        usleep(100);
}

void fake_wait_held(struct fake *fake, unsigned n)
{
    while (load_acquire(&fake->n_held_seen) != n)
        usleep(100);
}

void fake_renew_chunk(struct fake *fake)
{
    store_release(&fake->renew, 1);
    poke(fake);
    while (load_acquire(&fake->renew))
        usleep(100);
}

void fake_replace(struct fake *fake, unsigned n, uint64_t size_bytes)
{
    store_relaxed(&fake->replace_bytes, size_bytes); /* what was to be replaced before may be asked for still */
    store_release(&fake->replace_in, n);
}

unsigned fake_leases(struct fake *fake)
{
    return load_acquire(&fake->n_leases);
}

unsigned fake_rings(struct fake *fake)
{
    return load_acquire(&fake->n_rings);
}

unsigned fake_sqes(struct fake *fake)
{
    return load_acquire(&fake->n_sqes);
}

unsigned fake_chunk_gets(struct fake *fake)
{
    return load_acquire(&fake->n_chunk_gets);
}

unsigned fake_sleeps(struct fake *fake)
{
    return load_acquire(&fake->n_sleeps);
}

unsigned fake_wakes(struct fake *fake)
{
    return load_acquire(&fake->n_wakes);
}
