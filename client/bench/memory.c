/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one file of spillbench that maps memory by itself.
 */
#include "client/bench/memory.h"

#include <sys/mman.h>

#define HUGE_BYTES (2 * MIB)

void *memory_map(uint64_t size_bytes, enum memory_kind kind)
{
    int flags = MAP_ANONYMOUS | (kind == MEMORY_SHARED ? MAP_SHARED : MAP_PRIVATE);
    uint64_t more = kind == MEMORY_HUGE ? HUGE_BYTES : 0;
    char *mem = mmap(NULL, size_bytes + more, PROT_READ | PROT_WRITE, flags, -1, 0);

    if (mem == MAP_FAILED)
        return NULL;
    if (kind == MEMORY_HUGE) { /* what lies around the aligned part goes back */
        uint64_t before = -(uint64_t)(uintptr_t)mem & (HUGE_BYTES - 1), after = HUGE_BYTES - before;
        if (before > 0)
            (void)munmap(mem, before);
        mem += before;
        if (after > 0)
            (void)munmap(mem + round_up(size_bytes, SECTOR_BYTES), after);
    }
    if (kind != MEMORY_SHARED)
        (void)madvise(mem, size_bytes, kind == MEMORY_HUGE ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    return mem;
}

void memory_unmap(void *mem, uint64_t size_bytes)
{
    if (mem)
        (void)munmap(mem, size_bytes);
}
