/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Completions that are not what the kernel said: an error, or fewer bytes. They are changed in the ring before whoever entered
 * the kernel sees them; with DEFER_TASKRUN, which the daemon uses, the kernel puts none there at any other time. So the
 * request itself was carried out, as a disk may do that reports an error for what it has written.
 *
 * A site is an operation, and whether its descriptor is a registered one: that tells a device's reads from the wake-up's.
 */
#include <linux/io_uring.h>
#include <string.h>

#include "tests/fail/failcalls.h"

#define RINGS_MAX 64
#define REQUESTS_MAX 16384
#define SITE_FIXED_FILE 0x100U

struct request {
    uint64_t user_data;
    uint16_t site;
};

struct ring {
    int fd;
    struct io_sqring_offsets sq_off;
    struct io_cqring_offsets cq_off;
    uint32_t cq_entries;       /* 0: free */
    char *mem;                 /* both rings */
    struct io_uring_sqe *sqes; /* NULL: not mapped */
    uint32_t sq_seen, cq_seen;
    struct request requests[REQUESTS_MAX];
};

static struct ring rings[RINGS_MAX]; /* by descriptor */
static __thread struct ring *registered __attribute__((tls_model("initial-exec")));

static struct ring *ring_of(int fd, bool is_registered)
{
    if (is_registered)
        return registered;
    for (unsigned i = 0; i < RINGS_MAX; i++)
        if (rings[i].sqes && rings[i].fd == fd)
            return &rings[i];
    return NULL;
}

/* Rings are made and mapped by one thread, one after another. */
void completion_ring_made(int fd, const struct io_uring_params *params)
{
    struct ring *free_one = NULL;

    for (unsigned i = 0; i < RINGS_MAX; i++) {
        if (rings[i].cq_entries && rings[i].fd == fd)
            memset(&rings[i], 0, sizeof(rings[i])); /* the descriptor of one that is gone */
        if (!free_one && !rings[i].cq_entries)
            free_one = &rings[i];
    }
    if (!free_one)
        return;
    free_one->fd = fd;
    free_one->sq_off = params->sq_off;
    free_one->cq_off = params->cq_off;
    free_one->cq_entries = params->cq_entries;
}

void completion_ring_mapped(int fd, uint64_t offset, void *mem)
{
    for (unsigned i = 0; i < RINGS_MAX; i++) {
        if (!rings[i].cq_entries || rings[i].fd != fd)
            continue;
        if (offset == IORING_OFF_SQ_RING)
            rings[i].mem = mem;
        else if (offset == IORING_OFF_SQES && rings[i].mem)
            rings[i].sqes = mem;
    }
}

void completion_ring_registered(int fd, unsigned index)
{
    (void)index;
    registered = ring_of(fd, false);
}

static uint32_t word(const struct ring *ring, uint32_t offset)
{
    return __atomic_load_n((uint32_t *)(void *)(ring->mem + offset), __ATOMIC_ACQUIRE);
}

static struct request *request_of(struct ring *ring, uint64_t user_data)
{
    return &ring->requests[(user_data * UINT64_C(0x9e3779b97f4a7c15) >> 40) % REQUESTS_MAX];
}

void completion_entering(int fd, bool is_registered)
{
    struct ring *ring = ring_of(fd, is_registered);

    if (!ring)
        return;
    uint32_t mask = word(ring, ring->sq_off.ring_mask), tail = word(ring, ring->sq_off.tail);
    const uint32_t *array = (const uint32_t *)(const void *)(ring->mem + ring->sq_off.array);

    for (uint32_t at = ring->sq_seen; at != tail; at++) {
        const struct io_uring_sqe *sqe = &ring->sqes[array[at & mask]];
        uint16_t site = (uint16_t)(sqe->opcode | (sqe->flags & IOSQE_FIXED_FILE ? SITE_FIXED_FILE : 0U));

        *request_of(ring, sqe->user_data) = (struct request){sqe->user_data, site};
    }
    ring->sq_seen = tail;
}

void completion_entered(int fd, bool is_registered)
{
    struct ring *ring = ring_of(fd, is_registered);

    if (!ring)
        return;
    uint32_t mask = word(ring, ring->cq_off.ring_mask), tail = word(ring, ring->cq_off.tail);
    struct io_uring_cqe *cqes = (struct io_uring_cqe *)(void *)(ring->mem + ring->cq_off.cqes);

    for (uint32_t at = ring->cq_seen; at != tail; at++) {
        struct io_uring_cqe *cqe = &cqes[at & mask];
        const struct request *request = request_of(ring, cqe->user_data);
        int error;

        if (request->user_data != cqe->user_data || !fail_completion_now(request->site, &error))
            continue;
        if (error != FAIL_SHORT)
            cqe->res = -error;
        else if (cqe->res > 0)
            cqe->res = cqe->res / 2 & ~511;
    }
    ring->cq_seen = tail;
}
