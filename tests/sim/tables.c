/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tables of many megabytes, of which a simulated process uses a few pages, taken and given back some thirty times a run.
 * The linker puts these in the place of calloc() and free(): a table's memory is used again, and only pages that somebody
 * touched are zeroed. To clear all of it costs a fifth of a run; to get fresh pages, more than that on a virtual machine.
 */
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "include/base/base.h"
#include "tests/sim/sim.h"
#include "tests/unit/support/zeroed.h"

#if ZEROED_ON_HEAP

void tables_forget(void)
{
}

#else

#define TABLE_BYTES_MIN (256 * KIB)
#define TABLE_BYTES_MAX (GIB)
#define TABLES_MAX 512 /* then there is the heap */

struct table {
    void *mem;
    size_t size_bytes;
    bool is_used;
};

static struct table tables[TABLES_MAX];
static uint32_t n_tables;

void *__real_calloc(size_t n, size_t size_bytes);
void *__wrap_calloc(size_t n, size_t size_bytes);
void __real_free(void *mem);
void __wrap_free(void *mem);

/* Sizes differ a little from run to run. */
static size_t size_class(size_t bytes)
{
    size_t step = TABLE_BYTES_MIN / 4;

    while (step * 8 < bytes)
        step *= 2;
    return round_up(bytes, step);
}

void *__wrap_calloc(size_t n, size_t size_bytes)
{
    size_t bytes = size_bytes && n > SIZE_MAX / size_bytes ? 0 : n * size_bytes;

    if (bytes < TABLE_BYTES_MIN || bytes > TABLE_BYTES_MAX)
        return __real_calloc(n, size_bytes);
    bytes = size_class(bytes);
    for (uint32_t i = 0; i < n_tables; i++) {
        if (tables[i].is_used || tables[i].size_bytes != bytes)
            continue;
        tables[i].is_used = true;
        zeroed_again(tables[i].mem, bytes);
        return tables[i].mem;
    }
    void *mem = n_tables < TABLES_MAX ? zeroed_alloc(bytes) : NULL;
    if (!mem)
        return __real_calloc(n, size_bytes);
    tables[n_tables++] = (struct table){.mem = mem, .size_bytes = bytes, .is_used = true};
    return mem;
}

/* What died in the middle of the run gave nothing back. */
void tables_forget(void)
{
    for (uint32_t i = 0; i < n_tables; i++)
        tables[i].is_used = false;
}

void __wrap_free(void *mem)
{
    bool may_be_table = ((uintptr_t)mem & (SECTOR_BYTES - 1)) == 0; /* the heap's are hardly ever so */

    for (uint32_t i = 0; i < n_tables && may_be_table && mem; i++) {
        if (tables[i].mem == mem && tables[i].is_used) {
            tables[i].is_used = false;
            return;
        }
    }
    __real_free(mem);
}

#endif
