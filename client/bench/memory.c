/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one file of spillbench that maps memory by itself.
 */
#include "client/bench/memory.h"

#include <sys/mman.h>

#define HUGE_BYTES (2 * MIB)

static void *map(uint64_t size_bytes, int flags)
{
    void *mem = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);

    return mem == MAP_FAILED ? NULL : mem;
}

/* At a multiple of a hugepage: what lies around goes back. */
static void *map_aligned(uint64_t size_bytes)
{
    char *mem = map(size_bytes + HUGE_BYTES, MAP_PRIVATE);

    if (!mem)
        return NULL;
    uint64_t before = -(uint64_t)(uintptr_t)mem & (HUGE_BYTES - 1), after = HUGE_BYTES - before;
    char *aligned = mem + before;
    if (before > 0)
        (void)munmap(mem, before);
    (void)munmap(aligned + round_up(size_bytes, SECTOR_BYTES), after);
    return aligned;
}

void *memory_map(uint64_t size_bytes, enum memory_kind kind)
{
    void *mem = NULL;

    if (kind == MEMORY_SHARED_HUGE && size_bytes % HUGE_BYTES == 0)
        mem = map(size_bytes, MAP_SHARED | MAP_HUGETLB);
    if (mem)
        return mem;
    mem = kind == MEMORY_HUGE ? map_aligned(size_bytes) : map(size_bytes, MAP_SHARED);
    if (mem && kind != MEMORY_SHARED)
        (void)madvise(mem, size_bytes, MADV_HUGEPAGE);
    return mem;
}

void memory_unmap(void *mem, uint64_t size_bytes)
{
    if (mem)
        (void)munmap(mem, size_bytes);
}
