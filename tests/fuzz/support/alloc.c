/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Large tables, cheaply. An engine is made anew for each input, and has tables of megabytes of which an input touches a few
 * pages; ASan would shade every byte of them, twice, which takes longer than all the rest. So calloc() and free() of the code
 * under test come here (the linker's --wrap): what is large is taken from mappings that are kept, emptied by giving the
 * touched pages back, and ends at a page that cannot be touched, so that an overrun is still seen. One thread at a time.
 *
 * While a snapshot is being made (snapshot.h) everything comes from that.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/fuzz/support/snapshot.h"

#define LARGE_BYTES (32 * KIB)
#define KEPT_MAX 512
#define PAGE_BYTES UINT64_C(4096)

void *__real_malloc(size_t size_bytes);
void *__wrap_malloc(size_t size_bytes);
void __lsan_register_root_region(const void *mem, size_t size_bytes) __attribute__((weak));
void *__real_calloc(size_t n, size_t size_bytes);
void __real_free(void *ptr);
void *__wrap_calloc(size_t n, size_t size_bytes);
void __wrap_free(void *ptr);

struct kept {
    uint8_t *base, *ptr; /* ptr is in its first page */
    size_t bytes;
    bool is_used;
};

static struct kept kept[KEPT_MAX];
static uint32_t n_kept;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* NULL: there are as many as are kept. */
static struct kept *kept_new(size_t bytes)
{
    if (n_kept == KEPT_MAX)
        return NULL;
    size_t pages = round_up(bytes, PAGE_BYTES);
    void *base = mmap(NULL, pages + PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (base == MAP_FAILED || mprotect((uint8_t *)base + pages, PAGE_BYTES, PROT_NONE) < 0)
        abort();
    if (__lsan_register_root_region)
        __lsan_register_root_region(base, pages);
    kept[n_kept] = (struct kept){.base = base, .ptr = (uint8_t *)base + (pages - bytes), .bytes = bytes};
    return &kept[n_kept++];
}

void *__wrap_malloc(size_t size_bytes)
{
    return snapshot_begun() ? snapshot_alloc(size_bytes) : __real_malloc(size_bytes);
}

void *__wrap_calloc(size_t n, size_t size_bytes)
{
    size_t bytes;

    if (snapshot_begun() && !__builtin_mul_overflow(n, size_bytes, &bytes))
        return snapshot_alloc(bytes);
    if (__builtin_mul_overflow(n, size_bytes, &bytes) || bytes < LARGE_BYTES)
        return __real_calloc(n, size_bytes);
    struct kept *k = NULL;

    bytes = round_up(bytes, 64);
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < n_kept && !k; i++)
        if (!kept[i].is_used && kept[i].bytes == bytes)
            k = &kept[i];
    if (!k)
        k = kept_new(bytes);
    if (k)
        k->is_used = true;
    pthread_mutex_unlock(&lock);
    return k ? k->ptr : __real_calloc(n, size_bytes);
}

void __wrap_free(void *ptr)
{
    struct kept *k = NULL;

    if (snapshot_free(ptr))
        return;
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < n_kept && !k; i++)
        if (kept[i].ptr == ptr)
            k = &kept[i];
    if (k) {
        if (!k->is_used || madvise(k->base, round_up(k->bytes, PAGE_BYTES), MADV_DONTNEED) < 0)
            abort(); /* freed twice */
        k->is_used = false;
    }
    pthread_mutex_unlock(&lock);
    if (!k)
        __real_free(ptr);
}
