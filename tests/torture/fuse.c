/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device that remembers: a file of a FUSE file system of our own, which is served by a process that logs each write
 * with its bytes and each flush, in the order in which they come and in which they are answered. It lies below the
 * daemon and the kernel's io_uring, so all of the daemon's own code runs as it does on any other file.
 *
 * Answers are held back for a while and given in another order, as a drive's are: so writes are on their way when a
 * flush comes, and a flush is not yet through when more writes come. What has been answered before a flush came is on
 * stable storage when that is answered; nothing else needs to be.
 *
 * The mount point is a file: the file system has that one node and no names. It takes root and /dev/fuse.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "include/base/atomic.h"
#include "tests/torture/power.h"

#define WRITE_BYTES_MAX MIB
#define REQUEST_BYTES (WRITE_BYTES_MAX + 4096 + sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))
#define HELD_MAX 24
#define HOLD_MS 2

struct held {
    uint64_t unique;
    uint32_t entry; /* in the log */
    uint32_t bytes; /* written */
};

struct server {
    int fd, image;
    uint64_t size_bytes;
    struct p_log *log;
    int data;
    struct t_oracle *oracle;
    struct t_random random;
    struct held held[HELD_MAX];
    uint32_t n_held;
    char *request, *bytes;
    int parent; /* ends when our parent does */
    const char *point;
};

static void answer(const struct server *s, uint64_t unique, int error, const void *body, size_t bytes)
{
    struct fuse_out_header out = {.len = (uint32_t)(sizeof(out) + bytes), .error = error, .unique = unique};
    struct iovec iov[] = {{&out, sizeof(out)}, {(void *)(uintptr_t)body, bytes}};

    (void)!writev(s->fd, iov, bytes ? 2 : 1); /* ENOENT: it was interrupted, nobody waits any more */
}

/* One more thing has happened. */
static uint64_t tick(struct server *s)
{
    uint64_t now = s->oracle->log_position + 1;

    store_release(&s->oracle->log_position, now); /* pairs with the acquire of the clients' journals */
    return now;
}

/* --- Held answers ------------------------------------------------------------------------------------------------------ */

static void release_one(struct server *s, uint32_t i)
{
    struct held h = s->held[i];
    struct fuse_write_out out = {.size = h.bytes};

    s->held[i] = s->held[--s->n_held];
    s->log->at[h.entry].answered = tick(s);
    answer(s, h.unique, 0, h.bytes ? &out : NULL, h.bytes ? sizeof(out) : 0);
}

static void hold(struct server *s, uint64_t unique, uint32_t entry, uint32_t bytes)
{
    s->held[s->n_held++] = (struct held){unique, entry, bytes};
    while (s->n_held == HELD_MAX || (s->n_held > 0 && random_percent(&s->random, 40)))
        release_one(s, (uint32_t)random_below(&s->random, s->n_held));
}

/* --- Requests ---------------------------------------------------------------------------------------------------------- */

static uint32_t log_entry(struct server *s, enum p_type type, uint64_t off_bytes, uint32_t len_bytes)
{
    uint32_t i = s->log->n;

    if (i == P_ENTRIES_MAX)
        torture_fail("the log of writes is full");
    s->log->at[i] = (struct p_entry){.type = type,
                                     .off_bytes = off_bytes,
                                     .len_bytes = len_bytes,
                                     .data_at = s->log->data_bytes,
                                     .arrived = tick(s),
                                     .answered = UINT64_MAX};
    s->log->data_bytes += len_bytes;
    s->log->n++;
    return i;
}

static void do_write(struct server *s, const struct fuse_in_header *in, const struct fuse_write_in *arg)
{
    const char *bytes = (const char *)(arg + 1);

    if (arg->offset + arg->size > s->size_bytes) {
        answer(s, in->unique, -EFBIG, NULL, 0);
        return;
    }
    uint32_t entry = log_entry(s, P_WRITE, arg->offset, arg->size);

    if (pwrite(s->data, bytes, arg->size, (off_t)s->log->at[entry].data_at) != (ssize_t)arg->size ||
        pwrite(s->image, bytes, arg->size, (off_t)arg->offset) != (ssize_t)arg->size)
        torture_fail("the log of writes: %s", strerror(errno));
    hold(s, in->unique, entry, arg->size);
}

static void do_read(struct server *s, const struct fuse_in_header *in, const struct fuse_read_in *arg)
{
    ssize_t n = pread(s->image, s->bytes, MIN(arg->size, (uint32_t)WRITE_BYTES_MAX), (off_t)arg->offset);

    answer(s, in->unique, n < 0 ? -errno : 0, s->bytes, n < 0 ? 0 : (size_t)n);
}

static void do_init(const struct server *s, const struct fuse_in_header *in)
{
    struct fuse_init_out out = {.major = FUSE_KERNEL_VERSION,
                                .minor = 31,
                                .flags = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ASYNC_DIO | FUSE_MAX_PAGES,
                                .max_background = 64,
                                .congestion_threshold = 64,
                                .max_write = WRITE_BYTES_MAX,
                                .time_gran = 1,
                                .max_pages = WRITE_BYTES_MAX / 4096};

    answer(s, in->unique, 0, &out, sizeof(out));
}

static void do_getattr(const struct server *s, const struct fuse_in_header *in)
{
    struct fuse_attr_out out = {.attr_valid = 3600,
                                .attr = {.ino = FUSE_ROOT_ID,
                                         .size = s->size_bytes,
                                         .blocks = s->size_bytes / 512,
                                         .mode = S_IFREG | 0666,
                                         .nlink = 1,
                                         .blksize = 4096}};

    answer(s, in->unique, 0, &out, sizeof(out));
}

/* False: it is unmounted. */
static bool serve(struct server *s)
{
    ssize_t n = read(s->fd, s->request, REQUEST_BYTES);
    const struct fuse_in_header *in = (const void *)s->request;
    const void *arg = in + 1;

    if (n < 0)
        return errno == EINTR || errno == EAGAIN || errno == ENOENT;
    switch (in->opcode) {
    case FUSE_INIT:
        do_init(s, in);
        break;
    case FUSE_GETATTR:
    case FUSE_SETATTR:
        do_getattr(s, in);
        break;
    case FUSE_OPEN:
        answer(s, in->unique, 0, &(struct fuse_open_out){.open_flags = FOPEN_DIRECT_IO}, sizeof(struct fuse_open_out));
        break;
    case FUSE_READ:
        do_read(s, in, arg);
        break;
    case FUSE_WRITE:
        do_write(s, in, arg);
        break;
    case FUSE_FSYNC:
        hold(s, in->unique, log_entry(s, P_FLUSH, 0, 0), 0);
        break;
    case FUSE_FLUSH:
    case FUSE_RELEASE:
        answer(s, in->unique, 0, NULL, 0);
        break;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
        break;
    case FUSE_DESTROY:
        return false;
    default:
        answer(s, in->unique, -ENOSYS, NULL, 0);
        break;
    }
    return true;
}

static void server_run(struct server *s) __attribute__((noreturn));
static void server_run(struct server *s)
{
    struct pollfd fds[] = {{.fd = s->fd, .events = POLLIN}, {.fd = s->parent, .events = POLLIN}};
    bool alive = true;

    (void)signal(SIGINT, SIG_IGN); /* we end after those whose file this is */
    while (alive) {
        int r = poll(fds, 2, s->n_held ? HOLD_MS : -1);

        if (r > 0 && (fds[1].revents || (fds[0].revents & (POLLERR | POLLHUP))))
            break;
        if (r > 0)
            alive = serve(s);
        else if (r == 0 && s->n_held)
            release_one(s, (uint32_t)random_below(&s->random, s->n_held));
    }
    (void)umount2(s->point, MNT_DETACH);
    (void)unlink(s->point);
    _exit(0);
}

/* --- Up and down --------------------------------------------------------------------------------------------------------- */

int device_mount(struct p_device *d, const char *point, int image, struct p_log *log, int data, struct t_oracle *oracle)
{
    char options[128];
    struct stat st;
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC), file = open(point, O_CREAT | O_WRONLY | O_CLOEXEC, 0666);

    if (file >= 0)
        close(file);
    if (fd < 0)
        return -errno;
    if (fstat(image, &st) < 0)
        return -errno;
    snprintf(options, sizeof(options), "fd=%d,rootmode=100666,user_id=0,group_id=0,allow_other", fd);
    if (mount("spilltorture", point, "fuse", MS_NOSUID | MS_NODEV, options) < 0) {
        int r = -errno;

        close(fd);
        return r;
    }
    if (pipe2(d->alive, O_CLOEXEC) < 0)
        return -errno;
    fflush(NULL);
    d->server = fork();
    if (d->server == 0) {
        struct server s = {.fd = fd,
                           .image = image,
                           .size_bytes = (uint64_t)st.st_size,
                           .log = log,
                           .data = data,
                           .oracle = oracle,
                           .random = random_for(oracle->seed, 3, 3),
                           .request = malloc(REQUEST_BYTES),
                           .bytes = malloc(WRITE_BYTES_MAX),
                           .parent = d->alive[0],
                           .point = point};

        close(d->alive[1]);
        server_run(&s);
    }
    close(fd);
    close(d->alive[0]);
    return d->server < 0 ? -errno : 0;
}

void device_unmount(struct p_device *d)
{
    close(d->alive[1]);
    (void)waitpid(d->server, NULL, 0);
    *d = (struct p_device){0};
}
