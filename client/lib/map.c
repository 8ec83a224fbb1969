/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mappings. The only file of the library that maps memory: the daemon's memfds, and the page that tells a forked child
 * from its parent.
 *
 * A memfd is mapped only if it has the size that was announced and is sealed against shrinking: reading it can then
 * not end in SIGBUS. Nothing that is mapped here is inherited by a child (MADV_DONTFORK), so a child cannot keep the
 * daemon's memory alive, nor write through a lease that is its parent's.
 *
 * The fork page holds this process's mark, and the kernel empties it in every child (MADV_WIPEONFORK), however the child
 * was made: fork handlers miss clone() and _Fork(). The check costs one load.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "client/lib/client.h"

#define PAGE_BYTES 4096
#define HUGE_BYTES (2 * MIB)

static uint32_t *fork_page; /* set once, never unmapped */
static uint32_t fork_marks; /* given out; a child goes on counting where its parent was */

/* Large mappings begin at a multiple of 2 MiB: hugepages are then mapped as such, with one fault each. */
static void *map_aligned(int fd, uint64_t size_bytes, int protection)
{
    if (size_bytes < HUGE_BYTES)
        return mmap(NULL, size_bytes, protection, MAP_SHARED, fd, 0);
    char *space = mmap(NULL, size_bytes + HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (space == MAP_FAILED)
        return MAP_FAILED;
    uint64_t before_bytes = round_up((uintptr_t)space, HUGE_BYTES) - (uintptr_t)space;
    void *base = mmap(space + before_bytes, size_bytes, protection, MAP_SHARED | MAP_FIXED, fd, 0);
    if (base == MAP_FAILED) {
        int error = errno;
        munmap(space, size_bytes + HUGE_BYTES);
        errno = error;
        return MAP_FAILED;
    }
    if (before_bytes > 0)
        munmap(space, before_bytes);
    munmap(space + before_bytes + round_up(size_bytes, PAGE_BYTES), HUGE_BYTES - before_bytes);
    return base;
}

int client_map_open(int fd, uint64_t size_bytes, bool writable, struct client_map *ret_map)
{
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);

    if (seals < 0 || !(seals & F_SEAL_SHRINK))
        return client_error(-EPROTO, 0, "the daemon sent memory that is not sealed");
    if (fstat(fd, &st) < 0)
        return -errno;
    if (size_bytes == 0 || st.st_size < 0 || (uint64_t)st.st_size != size_bytes)
        return client_error(-EPROTO, 0, "the daemon sent memory of another size than it announced");

    void *base = map_aligned(fd, size_bytes, PROT_READ | (writable ? PROT_WRITE : 0));
    if (base == MAP_FAILED) {
        int r = -errno;
        return client_error(r, 0, "cannot map %llu bytes of the daemon's memory: %s", (unsigned long long)size_bytes,
                            strerrordesc_np(-r));
    }
    if (madvise(base, size_bytes, MADV_DONTFORK) < 0) {
        int r = -errno;
        munmap(base, size_bytes);
        return client_error(r, 0, "cannot keep the daemon's memory from being inherited: %s", strerrordesc_np(-r));
    }
    *ret_map = (struct client_map){base, size_bytes, writable};
    return 0;
}

void client_map_close(struct client_map *map)
{
    if (map->base)
        munmap(map->base, map->size_bytes);
    *map = (struct client_map){0};
}

int client_fork_mark(uint32_t *ret_mark)
{
    if (!fork_page) {
        void *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED)
            return -errno;
        if (madvise(page, PAGE_BYTES, MADV_WIPEONFORK) < 0) {
            int r = -errno;
            munmap(page, PAGE_BYTES);
            return r;
        }
        store_release(&fork_page, page);
    }
    if (load_relaxed(fork_page) == 0)
        store_relaxed(fork_page, ++fork_marks);
    *ret_mark = load_relaxed(fork_page);
    return 0;
}

bool client_fork_is(uint32_t mark)
{
    return load_relaxed(load_relaxed(&fork_page)) == mark;
}
