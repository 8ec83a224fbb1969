/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two rings in shared memory, and a child that sends back what it gets. The least that a ring can be: one producer, one
 * consumer, free-running indices, an entry that fills a cache line, no checks. Between measurements the child sleeps on
 * `order`, so that it takes no time from what is measured then. One thread on each side.
 */
#include "client/bench/ceiling_ring.h"

#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "client/bench/cpus.h"
#include "client/bench/memory.h"
#include "client/bench/process.h"
#include "include/base/atomic.h"
#include "include/base/cleanup.h"

#define ENTRIES 64
#define LOOKS_PER_CHECK 1000000 /* of a spinning side, between two looks whether the other one lives */

struct entry {
    _Alignas(64) uint64_t words[8];
};

/* What one side writes never shares a pair of cache lines with what the other writes. */
struct way {
    _Alignas(128) uint32_t head;
    _Alignas(128) uint32_t tail; /* a futex */
    _Alignas(128) struct entry entries[ENTRIES];
};

struct shared {
    struct way there, back;
    _Alignas(128) uint32_t order; /* a futex; changes when there is something to do */
    uint32_t n, wake;
};

struct ceiling_ring {
    struct shared *shared;
    int there_fd, back_fd; /* eventfds */
    pid_t pid;
};

static void futex(uint32_t *word, int op, uint32_t value)
{
    (void)syscall(SYS_futex, word, op, value, NULL, NULL, 0);
}

static void push(struct way *way, int fd, enum ceiling_wake wake, const struct entry *entry)
{
    uint32_t tail = load_relaxed(&way->tail);
    uint64_t one = 1;

    way->entries[tail % ENTRIES] = *entry;
    store_release(&way->tail, tail + 1); /* pairs with the acquire in pop() */
    if (wake == CEILING_FUTEX)
        futex(&way->tail, FUTEX_WAKE, 1);
    else if (wake == CEILING_EVENTFD && write(fd, &one, sizeof(one)) < 0)
        abort(); /* cannot be: the counter is far from full */
}

/* False if the other side has gone (pid 0: it ends with us). */
static bool pop(struct way *way, int fd, enum ceiling_wake wake, pid_t pid, struct entry *ret_entry)
{
    uint32_t head = load_relaxed(&way->head), looks = 0;
    uint64_t count;

    while (load_acquire(&way->tail) == head) {
        if (wake == CEILING_FUTEX)
            futex(&way->tail, FUTEX_WAIT, head);
        else if (wake == CEILING_EVENTFD && read(fd, &count, sizeof(count)) < 0)
            return false;
        cpu_relax();
        if (++looks % LOOKS_PER_CHECK == 0 && pid != 0 && waitpid(pid, NULL, WNOHANG) != 0)
            return false;
    }
    *ret_entry = way->entries[head % ENTRIES];
    store_release(&way->head, head + 1);
    return true;
}

static void echo(const struct ceiling_ring *ring)
{
    struct shared *s = ring->shared;
    uint32_t seen = 0;
    struct entry entry;

    for (;;) {
        while (load_acquire(&s->order) == seen)
            futex(&s->order, FUTEX_WAIT, seen);
        seen = load_acquire(&s->order);
        enum ceiling_wake wake = s->wake;
        for (uint32_t i = 0, n = s->n; i < n; i++) {
            if (!pop(&s->there, ring->there_fd, wake, 0, &entry))
                _exit(1);
            push(&s->back, ring->back_fd, wake, &entry);
        }
    }
}

int ceiling_ring_new(unsigned cpu, struct ceiling_ring **ret_ring)
{
    struct ceiling_ring *ring = calloc(1, sizeof(*ring));
    pid_t parent = getpid();

    if (!ring)
        return -ENOMEM;
    ring->there_fd = eventfd(0, EFD_CLOEXEC);
    ring->back_fd = eventfd(0, EFD_CLOEXEC);
    ring->shared = memory_map(sizeof(*ring->shared), MEMORY_SHARED);
    int r = ring->there_fd < 0 || ring->back_fd < 0 ? -EMFILE : !ring->shared ? -ENOMEM : 0;
    if (r == 0)
        ring->pid = fork();
    if (r == 0 && ring->pid < 0)
        r = -errno;
    if (r < 0) {
        ceiling_ring_free(ring);
        return r;
    }
    if (ring->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
        cpus_pin(cpu);
        echo(ring);
    }
    *ret_ring = ring;
    return 0;
}

void ceiling_ring_free(struct ceiling_ring *ring)
{
    if (!ring)
        return;
    if (ring->pid > 0) {
        kill(ring->pid, SIGKILL);
        (void)waitpid(ring->pid, NULL, 0);
    }
    close_p(&ring->there_fd);
    close_p(&ring->back_fd);
    memory_unmap(ring->shared, sizeof(*ring->shared));
    free(ring);
}

int ceiling_ring_trip_ns(struct ceiling_ring *ring, enum ceiling_wake wake, uint32_t n, double *ret_ns)
{
    struct shared *s = ring->shared;
    struct entry entry = {{0}};
    uint64_t start_ns = 0;

    s->n = n + 1; /* the first trip wakes the child from its sleep between measurements */
    s->wake = wake;
    store_release(&s->order, s->order + 1);
    futex(&s->order, FUTEX_WAKE, 1);
    for (uint32_t i = 0; i <= n; i++) {
        if (i == 1)
            start_ns = now_ns();
        entry.words[0] = i;
        push(&s->there, ring->there_fd, wake, &entry);
        if (!pop(&s->back, ring->back_fd, wake, ring->pid, &entry) || entry.words[0] != i) {
            fprintf(stderr, "spillbench: the raw ring's other side has gone\n");
            ring->pid = 0;
            return -ECHILD;
        }
    }
    *ret_ns = (double)(now_ns() - start_ns) / n;
    return 0;
}
