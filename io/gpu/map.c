/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Maps what the daemon sends. Rings and fences are read and written by us, so that nobody may be able to make them smaller:
 * their seals are looked at. A client can punch holes in fences; it then reads zeros there, and so do we.
 *
 * Chunks are never touched by this process's own instructions: the driver pins their pages (get_user_pages) and copy
 * engines write them. A page that is poisoned or that cannot be allocated any more makes the registration fail with an
 * error, and one that is punched out later stays pinned where it was. So there is no SIGBUS here, and no handler for it.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "io/gpu/helper.h"

#ifndef F_SEAL_SHRINK /* Linux's, in headers that may not be included beside <fcntl.h> */
#define F_GET_SEALS 1034
#define F_SEAL_SHRINK 0x0002
#endif

static int check(int fd, uint64_t size_bytes, bool sealed)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return -errno;
    if (st.st_size < 0 || size_bytes == 0 || (uint64_t)st.st_size < size_bytes)
        return -EINVAL;
    if (!sealed)
        return 0;
    int seals = fcntl(fd, F_GET_SEALS);

    return seals >= 0 && (seals & F_SEAL_SHRINK) ? 0 : -EPERM;
}

int helper_map(int fd, uint64_t size_bytes, uint64_t page_bytes, bool sealed, void **ret_mem)
{
    int r = check(fd, size_bytes, sealed);

    if (r < 0)
        return r;
    if (!is_pow2(page_bytes) || size_bytes % page_bytes != 0 || size_bytes > UINT64_MAX / 4)
        return -EINVAL;
    /* First the addresses, some more than we need: a mapping that begins with a huge page is pinned in huge pages. */
    uint64_t space_bytes = size_bytes + page_bytes;
    char *space = mmap(NULL, space_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (space == MAP_FAILED)
        return -errno;
    char *at = space + (round_up((uintptr_t)space, page_bytes) - (uintptr_t)space);
    void *mem = mmap(at, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd, 0);

    if (mem == MAP_FAILED) {
        r = -errno;
        (void)munmap(space, space_bytes);
        return r;
    }
    if (at > space)
        (void)munmap(space, (size_t)(at - space));
    (void)munmap(at + size_bytes, (size_t)(space + page_bytes - at));
    (void)madvise(at, size_bytes, MADV_DONTFORK); /* the driver may start a program */
    (void)madvise(at, size_bytes, MADV_DONTDUMP);
    *ret_mem = mem;
    return 0;
}

void helper_unmap(void *mem, uint64_t size_bytes)
{
    if (mem)
        (void)munmap(mem, size_bytes);
}
