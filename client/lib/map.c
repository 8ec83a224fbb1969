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

static int map_check(int fd, uint64_t size_bytes)
{
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);

    if (seals < 0 || !(seals & F_SEAL_SHRINK))
        return client_error(-EPROTO, 0, "the daemon sent memory that is not sealed");
    if (fstat(fd, &st) < 0)
        return -errno;
    if (size_bytes == 0 || st.st_size < 0 || (uint64_t)st.st_size != size_bytes)
        return client_error(-EPROTO, 0, "the daemon sent memory of another size than it announced");
    return 0;
}

static int map_failed(uint64_t size_bytes)
{
    int r = -errno;

    return client_error(r, 0, "cannot map %llu bytes of the daemon's memory: %s", (unsigned long long)size_bytes,
                        strerrordesc_np(-r));
}

static int map_protection(bool writable)
{
    return PROT_READ | (writable ? PROT_WRITE : 0);
}

int client_map_open(int fd, uint64_t size_bytes, bool writable, struct client_map *ret_map)
{
    int checked = map_check(fd, size_bytes);
    if (checked < 0)
        return checked;
    void *base = map_aligned(fd, size_bytes, map_protection(writable));
    if (base == MAP_FAILED)
        return map_failed(size_bytes);
    if (madvise(base, size_bytes, MADV_DONTFORK) < 0) {
        int r = -errno;
        munmap(base, size_bytes);
        return client_error(r, 0, "cannot keep the daemon's memory from being inherited: %s", strerrordesc_np(-r));
    }
    *ret_map = (struct client_map){base, size_bytes, round_up(size_bytes, PAGE_BYTES), writable};
    return 0;
}

/* Memory of our own, of which nothing is taken before it is written to. */
static int map_blank(void *base, size_t size_bytes)
{
    if (size_bytes == 0)
        return 0;
    void *blank =
        mmap(base, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    return blank == MAP_FAILED ? map_failed(size_bytes) : 0;
}

int client_map_replace(int fd, uint64_t size_bytes, bool writable, const struct client_map *old,
                       struct client_map *ret_map, bool *ret_is_there)
{
    uint64_t used_bytes = round_up(size_bytes, PAGE_BYTES);
    bool fits = size_bytes <= old->place_bytes && writable == old->is_writable;
    int r = fits ? map_check(fd, size_bytes) : client_map_open(fd, size_bytes, writable, ret_map);

    if (r < 0)
        return r;
    if (!fits) {
        r = map_blank(old->base, old->place_bytes);
        if (r < 0)
            client_map_close(ret_map);
        *ret_is_there = false;
        return r;
    }
    void *there = mmap(old->base, size_bytes, map_protection(writable), MAP_SHARED | MAP_FIXED, fd, 0);
    if (there == MAP_FAILED)
        return map_failed(size_bytes);
    /* Here nothing may fail any more. An inherited mapping is the lesser evil. */
    (void)madvise(old->base, size_bytes, MADV_DONTFORK);
    (void)map_blank((char *)old->base + used_bytes, old->place_bytes - used_bytes);
    *ret_map = (struct client_map){old->base, size_bytes, old->place_bytes, writable};
    *ret_is_there = true;
    return 0;
}

void client_map_close(struct client_map *map)
{
    if (map->base)
        munmap(map->base, map->place_bytes);
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
