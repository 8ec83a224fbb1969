/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the mappings of the daemon's own memfds. A client may punch holes in what it was given to write, whatever the
 * seals; it then reads zeros there, and so do we, which the checks of rings and requests treat like any other content.
 */
#include "daemon/shm.h"

#include <errno.h>
#include <sys/mman.h>
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

int shm_records_new(uint64_t size_bytes, void **ret_mem)
{
    /* Not a memfd: few systems give hugepages to shared memory, but all to who asks for his own. */
    void *mem = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (mem == MAP_FAILED)
        return -errno;
    (void)madvise(mem, size_bytes, MADV_HUGEPAGE);
    *ret_mem = mem;
    return 0;
}

void shm_records_free(void *mem, uint64_t size_bytes)
{
    if (mem)
        (void)munmap(mem, size_bytes);
}
