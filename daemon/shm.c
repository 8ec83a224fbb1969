/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the mappings of the daemon's own memfds. A client may punch holes in what it was given to write, whatever the
 * seals; it then reads zeros there, and so do we, which the checks of rings and requests treat like any other content.
 */
#include "daemon/shm.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "include/base/cleanup.h"

int shm_client_new(const char *name, uint64_t size_bytes, struct memory_shared *ret_shared)
{
    struct memory_shared shared = MEMORY_SHARED_NONE;
    int r = memory_shared_create(name, size_bytes, MEMORY_SHARED_SEAL, &shared);

    if (r < 0)
        return r;
    (void)madvise(shared.mem, size_bytes, MADV_DONTDUMP);
    (void)madvise(shared.mem, size_bytes, MADV_DONTFORK);
    *ret_shared = shared;
    return 0;
}

int shm_own_new(const char *name, uint64_t size_bytes, struct memory_shared *ret_shared)
{
    return shm_client_new(name, size_bytes, ret_shared); /* the seals keep us, too, from mistakes */
}

int shm_own_adopt(int fd, uint64_t size_bytes, struct memory_shared *ret_shared)
{
    struct stat st;

    size_bytes = round_up(size_bytes, MEMORY_PAGE_BYTES);
    if (fstat(fd, &st) < 0)
        return -errno;
    if ((uint64_t)st.st_size != size_bytes)
        return -EINVAL;
    void *mem = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (mem == MAP_FAILED)
        return -errno;
    (void)madvise(mem, size_bytes, MADV_DONTDUMP);
    (void)madvise(mem, size_bytes, MADV_DONTFORK);
    *ret_shared = (struct memory_shared){.fd = fd, .mem = mem, .size_bytes = size_bytes};
    return 0;
}
