/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns every mapping of the io layer, and the calls that make them: memfd_create, mmap, mbind, madvise, mlock,
 * move_pages. The neighbours compute, this file calls: memory_populate.c runs the threads that touch pages,
 * memory_system.c reads what the kernel tells in files, memory_room.c judges by it whether a chunk fits, memory_guard.c
 * survives pages that went away.
 *
 * Invariants: a chunk's size never changes (sealed before anybody else can have the descriptor); its mode is 0600, so
 * a read-only descriptor cannot be reopened for writing by another uid; all its pages were touched before it is used,
 * so a page that is missing later was taken away, and is not merely late.
 *
 * A chunk is made by trying kinds of pages from the best to 4 KiB. Each attempt stands alone and leaves nothing
 * behind, because hugepages run out at any step: at mmap (reservation), or as late as the last page touched.
 */
#include "io/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <numa.h>
#include <numaif.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "io/memory_private.h"

#ifndef MFD_NOEXEC_SEAL /* Linux 6.3; where vm.memfd_noexec is 2 nothing else is allowed */
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21U << 26)
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define SAMPLES_MAX 256

/* --- Nodes ------------------------------------------------------------------------------------------------------- */

/* Not from libnuma, which does not look whether it got memory for its masks. */
static bool node_has_cpus(int node)
{
    char path[64];

    snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/cpulist", node);
    cleanup_fclose FILE *f = fopen(path, "re");
    int first = f ? fgetc(f) : EOF;

    return first >= '0' && first <= '9';
}

static void node_read(int id, struct memory_node *ret_node)
{
    long long free_bytes = 0, total_bytes = numa_node_size64(id, &free_bytes);

    *ret_node = (struct memory_node){
        .id = (uint32_t)id,
        .has_cpus = node_has_cpus(id),
        .total_bytes = total_bytes > 0 ? (uint64_t)total_bytes : 0,
        .free_bytes = free_bytes > 0 ? (uint64_t)free_bytes : 0,
        .free_huge_bytes = memory_free_huge_bytes((uint32_t)id),
        .huge_bytes = memory_huge_bytes((uint32_t)id),
    };
}

int memory_nodes_read(struct memory_nodes *ret_nodes)
{
    struct memory_nodes nodes = {.is_numa = numa_available() >= 0};

    if (nodes.is_numa) {
        for (int id = 0; id <= numa_max_node() && nodes.n < NODES_MAX; id++) {
            if (!numa_bitmask_isbitset(numa_all_nodes_ptr, (unsigned)id))
                continue;
            node_read(id, &nodes.node[nodes.n]);
            nodes.n += nodes.node[nodes.n].total_bytes > 0;
        }
    }
    if (nodes.n == 0) {
        struct memory_limits limits;
        long n_pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);

        memory_limits_read(&limits);
        nodes.is_numa = false;
        nodes.n = 1;
        nodes.node[0] = (struct memory_node){
            .has_cpus = true,
            .total_bytes = n_pages > 0 && page_bytes > 0 ? (uint64_t)n_pages * (uint64_t)page_bytes : 0,
            .free_bytes = limits.available_bytes,
            .free_huge_bytes = memory_free_huge_bytes(MEMORY_NODE_ANY),
            .huge_bytes = memory_huge_bytes(MEMORY_NODE_ANY),
        };
    }
    *ret_nodes = nodes;
    return 0;
}

static bool node_exists(uint32_t node)
{
    if (numa_available() < 0)
        return node == 0;
    return node <= (uint32_t)numa_max_node() && numa_bitmask_isbitset(numa_all_nodes_ptr, node);
}

/* Binds the range, and through it the memfd's pages. 0 or a negative errno. */
static int bind_to_node(void *mem, uint64_t size_bytes, uint32_t node)
{
    unsigned long mask[(NUMA_NUM_NODES + 63) / 64] = {0};

    if (node == MEMORY_NODE_ANY || numa_available() < 0)
        return 0;
    mask[node / 64] |= 1UL << (node % 64);
    return mbind(mem, size_bytes, MPOL_BIND, mask, NUMA_NUM_NODES + 1, 0) < 0 ? -errno : 0;
}

/* Looks up where some pages, evenly spread, really are. */
static void sample_node(const struct memory_chunk *c, uint64_t page_bytes, struct memory_report *report)
{
    void *pages[SAMPLES_MAX];
    int status[SAMPLES_MAX];
    uint64_t n_pages = c->size_bytes / page_bytes;
    uint32_t n = (uint32_t)MIN(n_pages, (uint64_t)SAMPLES_MAX);

    if (c->node == MEMORY_NODE_ANY || numa_available() < 0)
        return;
    for (uint32_t i = 0; i < n; i++)
        pages[i] = (char *)c->mem + n_pages * i / n * page_bytes;
    if (move_pages(0, n, pages, NULL, status, 0) < 0)
        return;
    report->n_sampled = n;
    for (uint32_t i = 0; i < n; i++)
        report->n_on_node += status[i] == (int)c->node;
}

/* --- Mappings ---------------------------------------------------------------------------------------------------- */

int memory_touch(void *mem, uint64_t len_bytes)
{
    if (madvise(mem, len_bytes, MADV_POPULATE_WRITE) == 0)
        return 0;
    return errno == EINVAL ? -EOPNOTSUPP : -errno;
}

/*
 * `never` in shmem_enabled speaks of page faults; who asks gets hugepages nevertheless. A range needs one page to be
 * collapsed, and collapsing fills the rest with zeros at the same speed as touching does. Where it fails, because memory is
 * fragmented or the kernel older than 6.1, small pages are touched.
 */
int memory_touch_huge(void *mem, uint64_t len_bytes)
{
    char *bytes = mem;

    for (uint64_t off = 0; off + MEMORY_HUGE_BYTES <= len_bytes; off += MEMORY_HUGE_BYTES) {
        int r = memory_touch(bytes + off, MEMORY_PAGE_BYTES);
        if (r < 0)
            return r;
        (void)madvise(bytes + off, MEMORY_HUGE_BYTES, MADV_COLLAPSE);
    }
    return memory_touch(mem, len_bytes);
}

int memory_map_zeros(void *mem, uint64_t len_bytes)
{
    void *p = mmap(mem, len_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

    return p == MAP_FAILED ? -errno : 0; // cppcheck-suppress memleak; it is the caller's range already
}

/* Maps at a multiple of 2 MiB, so that hugepages of either kind fit. fd -1: private zeros. */
static int map_aligned(int fd, uint64_t size_bytes, void **ret_mem)
{
    int flags = fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
    char *space =
        mmap(NULL, size_bytes + MEMORY_HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (space == MAP_FAILED)
        return -errno;
    uint64_t before_bytes = round_up((uintptr_t)space, MEMORY_HUGE_BYTES) - (uintptr_t)space;
    char *mem = space + before_bytes;
    // cppcheck-suppress leakReturnValNotUsed; MAP_FIXED: it is mem
    if (mmap(mem, size_bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0) == MAP_FAILED) {
        int r = -errno;

        munmap(space, size_bytes + MEMORY_HUGE_BYTES);
        return r;
    }
    if (before_bytes > 0)
        munmap(space, before_bytes);
    /* The rest of the reservation starts after the last page of the mapping, which may be a huge one. */
    munmap(mem + size_bytes, MEMORY_HUGE_BYTES - before_bytes);
    *ret_mem = mem;
    return 0;
}

static int memfd_create_sized(const char *name, uint64_t size_bytes, unsigned flags, bool seal, int *ret_fd)
{
    flags |= MFD_CLOEXEC | MFD_ALLOW_SEALING;
    cleanup_close int fd = memfd_create(name, flags | MFD_NOEXEC_SEAL);

    if (fd < 0 && errno == EINVAL)
        fd = memfd_create(name, flags);
    if (fd < 0)
        return -errno;
    if (fchmod(fd, 0600) < 0 || ftruncate(fd, (off_t)size_bytes) < 0)
        return -errno;
    if (seal && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return -errno;
    *ret_fd = steal_fd(&fd);
    return 0;
}

static int reopen_read_only(int fd, int *ret_fd)
{
    char path[32];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int ro = open(path, O_RDONLY | O_CLOEXEC);
    if (ro < 0)
        return -errno;
    *ret_fd = ro;
    return 0;
}

/* --- Chunks ------------------------------------------------------------------------------------------------------ */

static uint64_t page_bytes_of(enum memory_pages pages)
{
    return pages == MEMORY_PAGES_HUGE ? MEMORY_HUGE_BYTES : MEMORY_PAGE_BYTES;
}

static void lock_chunk(struct memory_chunk *c)
{
    struct memory_limits limits;

    if (c->report.pages == MEMORY_PAGES_HUGE) { /* never swapped */
        c->report.is_locked = true;
        return;
    }
    memory_limits_read(&limits);
    if (!limits.can_lock_all && c->size_bytes > limits.memlock_bytes)
        c->report.lock_error = -ENOMEM;
    else if (mlock(c->mem, c->size_bytes) < 0)
        c->report.lock_error = -errno;
    c->report.is_locked = c->report.lock_error == 0;
}

static int chunk_map(struct memory_chunk *c, const struct memory_chunk_config *config, enum memory_pages pages)
{
    unsigned flags = pages == MEMORY_PAGES_HUGE ? MFD_HUGETLB | MFD_HUGE_2MB : 0;
    int r = memfd_create_sized("spillway-chunk", c->size_bytes, flags, !config->unsealed, &c->fd);

    if (r == 0 && config->read_only_fd)
        r = reopen_read_only(c->fd, &c->read_only_fd);
    return r < 0 ? r : map_aligned(c->fd, c->size_bytes, &c->mem);
}

/* One attempt with one kind of pages. */
static int chunk_try(const struct memory_chunk_config *config, enum memory_pages pages, struct memory_chunk **ret_chunk)
{
    bool by_collapse = pages == MEMORY_PAGES_THP && memory_thp_read() == MEMORY_THP_ASKED;
    uint64_t page_bytes = page_bytes_of(pages);
    cleanup_(memory_chunk_unrefp) struct memory_chunk *c = calloc(1, sizeof(*c));

    if (!c)
        return -ENOMEM;
    *c = (struct memory_chunk){
        .refs = 1,
        .fd = -1,
        .read_only_fd = -1,
        .size_bytes = round_up(config->size_bytes, page_bytes),
        .node = config->node,
        .guard = UINT32_MAX,
        .report.pages = pages,
    };
    int r = chunk_map(c, config, pages);
    if (r < 0)
        return r;
    c->report.bind_error = bind_to_node(c->mem, c->size_bytes, c->node);
    (void)madvise(c->mem, c->size_bytes, MADV_DONTFORK); /* a forked helper must not keep memory alive */
    if (pages == MEMORY_PAGES_THP)
        (void)madvise(c->mem, c->size_bytes, MADV_HUGEPAGE); /* what came of it is in thp_bytes */
    r = memory_guard_add(c->mem, c->size_bytes, page_bytes, &c->poisoned, &c->guard);
    if (r < 0)
        return r;
    r = memory_populate(c->mem, c->size_bytes, by_collapse ? memory_touch_huge : memory_touch, config->threads,
                        config->progress, config->progress_ctx);
    if (r < 0)
        return r == -EFAULT ? -ENOMEM : r; /* EFAULT: the page could not be had, for instance no hugepage is left */
    if (config->lock)
        lock_chunk(c);
    if (pages == MEMORY_PAGES_THP)
        c->report.thp_bytes = memory_thp_mapped_bytes(c->mem, c->size_bytes);
    if (by_collapse && c->report.thp_bytes == 0) {
        c->report.pages = MEMORY_PAGES_SMALL;
        c->report.why = "the kernel gave none of the transparent hugepages that it was asked for";
    }
    sample_node(c, page_bytes, &c->report);
    *ret_chunk = steal_ptr(c);
    return 0;
}

/* In memfds st_blksize is what is hoped for, not what is there: the file system says which kind it is. */
static enum memory_pages pages_of(int fd)
{
    struct statfs fs;

    if (fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC)
        return MEMORY_PAGES_HUGE;
    return memory_thp_read() == MEMORY_THP_DENIED ? MEMORY_PAGES_SMALL : MEMORY_PAGES_THP;
}

/* Its pages are there, on whatever node they were put. */
int memory_chunk_adopt(int fd, uint32_t node, bool read_only_fd, struct memory_chunk **ret_chunk)
{
    struct stat st;
    cleanup_(memory_chunk_unrefp) struct memory_chunk *c = calloc(1, sizeof(*c));

    if (!c || fstat(fd, &st) < 0 || st.st_size <= 0) {
        close(fd);
        return c ? -EINVAL : -ENOMEM;
    }
    *c = (struct memory_chunk){
        .refs = 1,
        .fd = fd,
        .read_only_fd = -1,
        .size_bytes = (uint64_t)st.st_size,
        .node = node,
        .guard = UINT32_MAX,
        .report.pages = pages_of(fd),
    };
    int r = read_only_fd ? reopen_read_only(c->fd, &c->read_only_fd) : 0;
    if (r == 0)
        r = map_aligned(c->fd, c->size_bytes, &c->mem);
    if (r < 0)
        return r;
    (void)madvise(c->mem, c->size_bytes, MADV_DONTFORK);
    r = memory_guard_add(c->mem, c->size_bytes, page_bytes_of(c->report.pages), &c->poisoned, &c->guard);
    if (r < 0)
        return r;
    lock_chunk(c);
    if (c->report.pages == MEMORY_PAGES_THP) {
        (void)madvise(c->mem, c->size_bytes, MADV_HUGEPAGE);
        c->report.thp_bytes = memory_thp_mapped_bytes(c->mem, c->size_bytes);
    }
    *ret_chunk = steal_ptr(c);
    return 0;
}

static bool is_shortage(int r)
{
    return r == -ENOMEM || r == -ENOSYS || r == -EINVAL || r == -ENOSPC;
}

int memory_chunk_create(const struct memory_chunk_config *config, struct memory_chunk **ret_chunk)
{
    enum memory_pages pages = config->pages == MEMORY_PAGES_AUTO ? MEMORY_PAGES_HUGE : config->pages;
    const char *why = NULL;
    int r = -ENOMEM;

    if (config->size_bytes == 0 || config->size_bytes > INT64_MAX / 2 || pages > MEMORY_PAGES_SMALL)
        return -EINVAL;
    if (config->node != MEMORY_NODE_ANY && !node_exists(config->node))
        return -EINVAL;
    for (; pages <= MEMORY_PAGES_SMALL; pages++) {
        const char *unavailable = memory_pages_unavailable(config, pages);

        if (unavailable) {
            r = -ENOMEM;
        } else {
            r = memory_check_size(config, pages);
            if (r == 0)
                r = chunk_try(config, pages, ret_chunk);
            if (r == 0) {
                if (!(*ret_chunk)->report.why)
                    (*ret_chunk)->report.why = why;
                return 0;
            }
            unavailable = "hugepages ran out while they were touched";
        }
        if (!is_shortage(r) || config->no_fallback)
            return r;
        why = unavailable;
    }
    return r;
}

struct memory_chunk *memory_chunk_ref(struct memory_chunk *chunk)
{
    uint32_t refs = __atomic_fetch_add(&chunk->refs, 1, __ATOMIC_RELAXED);

    assert(refs > 0 && refs < UINT32_MAX);
    return chunk;
}

void memory_chunk_unref(struct memory_chunk *chunk)
{
    if (!chunk || __atomic_fetch_sub(&chunk->refs, 1, __ATOMIC_ACQ_REL) != 1)
        return;
    if (chunk->guard != UINT32_MAX)
        memory_guard_remove(chunk->guard);
    if (chunk->mem)
        munmap(chunk->mem, chunk->size_bytes);
    close_p(&chunk->read_only_fd);
    close_p(&chunk->fd);
    free(chunk);
}

int memory_chunk_discard(struct memory_chunk *chunk)
{
    int r = fallocate(chunk->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)chunk->size_bytes);

    return r < 0 ? -errno : 0;
}

const char *memory_pages_name(enum memory_pages pages)
{
    static const char *const names[] = {"auto", "2 MiB hugepages", "transparent hugepages", "4 KiB pages"};

    return pages < ARRAY_LEN(names) ? names[pages] : "?";
}

/* --- Other memory ------------------------------------------------------------------------------------------------ */

/* Where hugepages fit, and where the system gives them to memfds as pages are touched, they are taken. */
static int records_map(int fd, uint64_t size_bytes, void **ret_mem)
{
    int r = map_aligned(fd, size_bytes, ret_mem);

    if (r < 0)
        return r;
    (void)madvise(*ret_mem, size_bytes, MADV_DONTFORK);
    (void)madvise(*ret_mem, size_bytes, MADV_HUGEPAGE);
    return 0;
}

void memory_records_touch(void *mem, uint64_t size_bytes)
{
    (void)memory_touch_huge(mem, size_bytes); /* else page by page, as they are used */
}

bool memory_records_by_collapse(void)
{
    return memory_thp_read() == MEMORY_THP_ASKED;
}

int memory_records_create(const char *name, uint64_t size_bytes, struct memory_shared *ret_shared)
{
    cleanup_(memory_shared_destroy) struct memory_shared s = {.fd = -1};

    if (size_bytes == 0 || size_bytes > INT64_MAX / 2)
        return -EINVAL;
    size_bytes = round_up(size_bytes, MEMORY_HUGE_BYTES);
    int r = memfd_create_sized(name, size_bytes, 0, true, &s.fd);
    if (r == 0)
        r = records_map(s.fd, size_bytes, &s.mem);
    if (r < 0)
        return r;
    *ret_shared = (struct memory_shared){.fd = steal_fd(&s.fd), .mem = steal_ptr(s.mem), .size_bytes = size_bytes};
    return 0;
}

int memory_records_adopt(int fd, struct memory_shared *ret_shared)
{
    struct stat st;
    void *mem = NULL;

    if (fstat(fd, &st) < 0 || st.st_size <= 0 || records_map(fd, (uint64_t)st.st_size, &mem) < 0) {
        close(fd);
        return -EINVAL;
    }
    *ret_shared = (struct memory_shared){.fd = fd, .mem = mem, .size_bytes = (uint64_t)st.st_size};
    return 0;
}

int memory_shared_create(const char *name, uint64_t size_bytes, uint32_t flags, struct memory_shared *ret_shared)
{
    cleanup_(memory_shared_destroy) struct memory_shared s = {.fd = -1};

    if (size_bytes == 0 || size_bytes > INT64_MAX / 2)
        return -EINVAL;
    size_bytes = round_up(size_bytes, MEMORY_PAGE_BYTES);
    int r = memfd_create_sized(name, size_bytes, 0, flags & MEMORY_SHARED_SEAL, &s.fd);
    if (r < 0)
        return r;
    void *mem = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s.fd, 0);
    if (mem == MAP_FAILED)
        return -errno;
    s.mem = mem;
    s.size_bytes = size_bytes;
    (void)madvise(s.mem, size_bytes, MADV_DONTFORK);
    if (flags & MEMORY_SHARED_POPULATE)
        r = memory_populate(s.mem, size_bytes, memory_touch, 1, NULL, NULL);
    if (r < 0)
        return r;
    *ret_shared = (struct memory_shared){.fd = steal_fd(&s.fd), .mem = steal_ptr(s.mem), .size_bytes = s.size_bytes};
    return 0;
}

void memory_shared_destroy(struct memory_shared *shared)
{
    if (shared->mem)
        munmap(shared->mem, shared->size_bytes);
    close_p(&shared->fd);
    *shared = MEMORY_SHARED_NONE;
}

int memory_private_create(uint64_t size_bytes, uint32_t node, void **ret_mem)
{
    void *mem = NULL;

    if (size_bytes == 0 || size_bytes > INT64_MAX / 2)
        return -EINVAL;
    size_bytes = round_up(size_bytes, MEMORY_PAGE_BYTES);
    int r = map_aligned(-1, size_bytes, &mem);
    if (r < 0)
        return r;
    (void)bind_to_node(mem, size_bytes, node); /* nearer is faster, nothing more */
    (void)madvise(mem, size_bytes, MADV_HUGEPAGE);
    (void)madvise(mem, size_bytes, MADV_DONTDUMP);
    r = memory_populate(mem, size_bytes, memory_touch, 1, NULL, NULL);
    if (r < 0) {
        munmap(mem, size_bytes);
        return r;
    }
    *ret_mem = mem;
    return 0;
}

void memory_private_destroy(void *mem, uint64_t size_bytes)
{
    if (mem)
        munmap(mem, round_up(size_bytes, MEMORY_PAGE_BYTES));
}
