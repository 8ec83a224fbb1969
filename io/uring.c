/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel's half of the engine's io_uring: set-up with fallbacks, restrictions, submission, sleeping, completions,
 * registered files and memory. The only file that includes liburing; nothing of it shows in uring_private.h.
 *
 * The ring is made disabled by the thread that sets up, and enabled by the engine's own: with SINGLE_ISSUER the kernel
 * binds it to the thread that enables it. From then on only the operations in use are allowed: whatever goes wrong in
 * this process later, the ring cannot open, connect, send or unlink.
 *
 * With DEFER_TASKRUN a completion happens only when its thread enters the kernel. TASKRUN_FLAG is what tells that one
 * is due, so that a spinning engine reads one word of shared memory and makes no system call. liburing's peek does
 * that.
 */
#include "io/uring.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/cleanup.h"
#include "io/uring_private.h"

struct uring_kernel {
    struct io_uring ring;
};

#define ENTRIES_MIN 8

/* SUBMIT_ALL: one bad request does not hold up those behind it. */
static const unsigned mode_flags[] = {
    [URING_MODE_DEFER] =
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
    [URING_MODE_COOP] = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
    [URING_MODE_PLAIN] = 0,
};

/* --- Set-up ------------------------------------------------------------------------------------------------------ */

static const char *setup_failure(int r)
{
    switch (r) {
    case -EPERM:
        return "io_uring is forbidden here (sysctl kernel.io_uring_disabled, or a seccomp filter)";
    case -ENOSYS:
        return "the kernel has no io_uring, or a seccomp filter hides it";
    case -ENOMEM:
        return "no memory for an io_uring: it counts against LimitMEMLOCK= (`ulimit -l`), which is used up";
    case -EMFILE:
    case -ENFILE:
        return "no descriptor left for an io_uring (LimitNOFILE)";
    default:
        return "the kernel's io_uring is too old: Linux 6.1 or later is needed";
    }
}

static int try_ring(struct io_uring *ring, uint32_t entries, uint32_t completions, enum uring_mode mode)
{
    const unsigned must_have = IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG;
    struct io_uring_params params = {
        .flags = mode_flags[mode] | IORING_SETUP_R_DISABLED | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
        .cq_entries = completions,
    };
    int r = io_uring_queue_init_params(entries, ring, &params);

    if (r == 0 && (params.features & must_have) != must_have) {
        io_uring_queue_exit(ring);
        return -ENOSYS;
    }
    return r;
}

/*
 * The best mode that the kernel accepts, from caps->mode on. Since Linux 6.14 the ring's own memory counts as locked:
 * an ordinary user whose limit is nearly used up gets a smaller ring (the queues before it do not shrink, it only
 * takes more submits).
 */
static int setup_ring(struct io_uring *ring, uint32_t entries, uint32_t completions, struct uring_caps *caps)
{
    int r = try_ring(ring, entries, completions, caps->mode);

    while (r == -EINVAL && caps->mode < URING_MODE_PLAIN)
        r = try_ring(ring, entries, completions, ++caps->mode);
    while (r == -ENOMEM && entries > ENTRIES_MIN) {
        entries /= 2, completions /= 2;
        r = try_ring(ring, entries, completions, caps->mode);
    }
    return r;
}

static int restrict_ring(struct io_uring *ring)
{
    static const uint8_t ops[] = {IORING_OP_NOP,  IORING_OP_FSYNC, IORING_OP_READ_FIXED, IORING_OP_WRITE_FIXED,
                                  IORING_OP_READ, IORING_OP_WRITE, IORING_OP_POLL_ADD,   IORING_OP_POLL_REMOVE};
    static const uint8_t registers[] = {IORING_REGISTER_FILES_UPDATE, IORING_REGISTER_BUFFERS_UPDATE,
                                        IORING_REGISTER_RING_FDS, IORING_UNREGISTER_RING_FDS};
    struct io_uring_restriction all[ARRAY_LEN(ops) + ARRAY_LEN(registers) + 1];
    unsigned n = 0;

    memset(all, 0, sizeof(all));
    for (size_t i = 0; i < ARRAY_LEN(ops); i++, n++) {
        all[n].opcode = IORING_RESTRICTION_SQE_OP;
        all[n].sqe_op = ops[i];
    }
    for (size_t i = 0; i < ARRAY_LEN(registers); i++, n++) {
        all[n].opcode = IORING_RESTRICTION_REGISTER_OP;
        all[n].register_op = registers[i];
    }
    all[n].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
    all[n++].sqe_flags = IOSQE_FIXED_FILE;
    /* The two wrappers for this and for enabling are missing from the shared liburing 2.3. */
    return io_uring_register((unsigned)ring->ring_fd, IORING_REGISTER_RESTRICTIONS, all, n);
}

int uring_kernel_new(uint32_t entries, uint32_t completions, uint32_t files, uint32_t windows, struct uring_caps *caps,
                     struct uring_kernel **ret_kernel, const char **ret_why)
{
    cleanup_free struct uring_kernel *k = calloc(1, sizeof(*k));
    int r = k ? setup_ring(&k->ring, entries, completions, caps) : -ENOMEM;

    if (r < 0) {
        *ret_why = setup_failure(r);
        return r;
    }
    if (caps->mode != URING_MODE_DEFER)
        caps->note = "the kernel lacks IORING_SETUP_DEFER_TASKRUN (Linux 6.1): completions interrupt the engine";
    r = io_uring_register_files_sparse(&k->ring, files);
    if (r == 0) {
        int restricted = restrict_ring(&k->ring);

        caps->restricted = restricted == 0;
        if (restricted == -EINVAL || restricted == -ENOSYS || restricted == -EOPNOTSUPP)
            caps->note = "the kernel lacks IORING_REGISTER_RESTRICTIONS: the ring can do more than the engine needs";
        else
            r = restricted;
    }
    if (r < 0) {
        *ret_why = r == -EMFILE ? "more devices than LimitNOFILE allows" : setup_failure(r);
        io_uring_queue_exit(&k->ring);
        return r;
    }
    caps->windows = io_uring_register_buffers_sparse(&k->ring, windows) == 0;
    *ret_kernel = steal_ptr(k);
    return 0;
}

void uring_kernel_free(struct uring_kernel *k)
{
    if (!k)
        return;
    io_uring_queue_exit(&k->ring);
    free(k);
}

int uring_kernel_start(struct uring_kernel *k, struct uring_caps *caps)
{
    int r = io_uring_register((unsigned)k->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);

    if (r < 0)
        return r;
    caps->ring_fd_registered = io_uring_register_ring_fd(&k->ring) == 1; /* belongs to this thread */
    return 0;
}

/* --- Preparing --------------------------------------------------------------------------------------------------- */

bool uring_kernel_prep_blk(struct uring_kernel *k, const struct io_blk *blk, void *mem, uint32_t part_bytes,
                           uint32_t window, uint64_t user_data)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&k->ring);
    bool is_fixed = window != URING_WINDOW_NONE;

    if (!sqe)
        return false;
    switch ((enum io_blk_op)blk->op) {
    case IO_BLK_READ:
        if (is_fixed)
            io_uring_prep_read_fixed(sqe, blk->dev, mem, part_bytes, blk->off_bytes, (int)window);
        else
            io_uring_prep_read(sqe, blk->dev, mem, part_bytes, blk->off_bytes);
        break;
    case IO_BLK_WRITE:
        if (is_fixed)
            io_uring_prep_write_fixed(sqe, blk->dev, mem, part_bytes, blk->off_bytes, (int)window);
        else
            io_uring_prep_write(sqe, blk->dev, mem, part_bytes, blk->off_bytes);
        break;
    case IO_BLK_FLUSH:
        io_uring_prep_fsync(sqe, blk->dev, IORING_FSYNC_DATASYNC);
        break;
    }
    io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data64(sqe, user_data);
    return true;
}

bool uring_kernel_prep_read(struct uring_kernel *k, int fd, void *mem, uint32_t len_bytes, uint64_t user_data)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&k->ring);

    if (!sqe)
        return false;
    io_uring_prep_read(sqe, fd, mem, len_bytes, 0);
    io_uring_sqe_set_data64(sqe, user_data);
    return true;
}

bool uring_kernel_prep_poll(struct uring_kernel *k, int fd, uint64_t user_data)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&k->ring);

    if (!sqe)
        return false;
    io_uring_prep_poll_add(sqe, fd, POLLIN);
    io_uring_sqe_set_data64(sqe, user_data);
    return true;
}

bool uring_kernel_prep_poll_remove(struct uring_kernel *k, uint64_t target, uint64_t user_data)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&k->ring);

    if (!sqe)
        return false;
    io_uring_prep_poll_remove(sqe, target);
    io_uring_sqe_set_data64(sqe, user_data);
    return true;
}

/* --- Submitting, sleeping, reaping ------------------------------------------------------------------------------- */

/* These pass: a signal, the timeout, memory or completion space short for a moment. The turn simply comes again. */
static int settle(int r)
{
    return r >= 0 || r == -EINTR || r == -ETIME || r == -EAGAIN || r == -EBUSY ? 0 : r;
}

uint32_t uring_kernel_unsubmitted(const struct uring_kernel *k)
{
    return io_uring_sq_ready(&k->ring);
}

int uring_kernel_submit(struct uring_kernel *k)
{
    return settle(io_uring_submit_and_get_events(&k->ring));
}

int uring_kernel_sleep(struct uring_kernel *k, uint64_t timeout_ns)
{
    struct __kernel_timespec ts = {
        .tv_sec = (long long)(timeout_ns / UINT64_C(1000000000)),
        .tv_nsec = (long long)(timeout_ns % UINT64_C(1000000000)),
    };
    struct io_uring_cqe *cqe;

    return settle(
        io_uring_submit_and_wait_timeout(&k->ring, &cqe, 1, timeout_ns == URING_SLEEP_FOR_EVER ? NULL : &ts, NULL));
}

static bool wants_entering(const struct uring_kernel *k)
{
    return (load_relaxed(k->ring.sq.kflags) & (IORING_SQ_CQ_OVERFLOW | IORING_SQ_TASKRUN)) != 0;
}

bool uring_kernel_is_due(const struct uring_kernel *k)
{
    return io_uring_cq_ready(&k->ring) > 0 || wants_entering(k);
}

uint32_t uring_kernel_reap(struct uring_kernel *k, struct uring_event *events, uint32_t n_max, bool *ret_entered)
{
    struct io_uring_cqe *cqes[64];
    bool must_enter = io_uring_cq_ready(&k->ring) == 0 && wants_entering(k);
    uint32_t n = io_uring_peek_batch_cqe(&k->ring, cqes, MIN(n_max, (uint32_t)ARRAY_LEN(cqes)));

    /* Copied out before any callback runs, so callbacks may submit, and the kernel has its room back. */
    for (uint32_t i = 0; i < n; i++)
        events[i] = (struct uring_event){.user_data = cqes[i]->user_data, .result = cqes[i]->res};
    io_uring_cq_advance(&k->ring, n);
    *ret_entered = must_enter;
    return n;
}

/* --- Registered things ------------------------------------------------------------------------------------------- */

int uring_kernel_set_file(struct uring_kernel *k, uint32_t index, int fd)
{
    int r = io_uring_register_files_update(&k->ring, index, &fd, 1);

    return r < 0 ? r : r == 1 ? 0 : -EIO;
}

int uring_kernel_set_window(struct uring_kernel *k, uint32_t index, void *mem, uint64_t len_bytes)
{
    struct iovec iov = {.iov_base = mem, .iov_len = len_bytes};
    __u64 tag = 0;
    int r = io_uring_register_buffers_update_tag(&k->ring, index, &iov, &tag, 1);

    return r < 0 ? r : r == 1 ? 0 : -EIO;
}
