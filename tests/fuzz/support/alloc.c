/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Large tables, cheaply. An engine is made anew for each input, and has tables of megabytes of which an input touches a few
 * pages; ASan would shade every byte of them, twice, which takes longer than all the rest. So calloc() and free() of the code
 * under test come here (the linker's --wrap): what is large is taken from mappings that are kept, emptied by giving the
 * touched pages back, and ends at a page that cannot be touched, so that an overrun is still seen. One thread at a time.
 *
 * And snapshots (alloc.h). Between two allocations of one lie bytes that ASan is told nobody may touch, and a small one that
 * was freed may not be touched either until the snapshot returns.
 */
#include "tests/fuzz/support/alloc.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define LARGE_BYTES (32 * KIB)
#define KEPT_MAX 512
#define PAGE_BYTES UINT64_C(4096)
#define SNAPSHOT_BYTES (1 * GIB) /* of which few are touched */
#define SNAPSHOT_OBJECTS_MAX 1024
#define SNAPSHOT_VARIABLES_MAX 4
#define GAP_BYTES 64

void __asan_poison_memory_region(const volatile void *mem, size_t size_bytes) __attribute__((weak));
void __asan_unpoison_memory_region(const volatile void *mem, size_t size_bytes) __attribute__((weak));
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

/* --- Snapshots ------------------------------------------------------------------------------------------------------- */

struct object {
    uint8_t *mem;
    size_t bytes;
    bool was_free, is_free;
};

struct variable {
    void *mem, *copy;
    size_t bytes;
};

struct snapshot {
    int fd;
    uint8_t *base;
    uint64_t used_bytes;
    struct object objects[SNAPSHOT_OBJECTS_MAX];
    uint32_t n_objects;
    struct variable variables[SNAPSHOT_VARIABLES_MAX];
    uint32_t n_variables;
};

static struct snapshot *making, *in_use;

static void poison(const void *mem, size_t bytes)
{
    if (__asan_poison_memory_region)
        __asan_poison_memory_region(mem, bytes);
}

static void unpoison(const void *mem, size_t bytes)
{
    if (__asan_unpoison_memory_region)
        __asan_unpoison_memory_region(mem, bytes);
}

void snapshot_begin(void)
{
    struct snapshot *s = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (making || s == MAP_FAILED)
        abort();
    s->fd = memfd_create("snapshot", MFD_CLOEXEC);
    if (s->fd < 0 || ftruncate(s->fd, SNAPSHOT_BYTES) < 0)
        abort();
    s->base = mmap(NULL, SNAPSHOT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, s->fd, 0);
    if (s->base == MAP_FAILED)
        abort();
    making = s;
}

bool snapshot_begun(void)
{
    return making;
}

void *snapshot_pages(uint64_t size_bytes)
{
    uint64_t at = round_up(making->used_bytes, PAGE_BYTES);

    if (size_bytes > SNAPSHOT_BYTES - at)
        abort();
    making->used_bytes = at + round_up(size_bytes, PAGE_BYTES);
    return making->base + at;
}

static void *snapshot_alloc(size_t bytes)
{
    struct snapshot *s = making;
    uint64_t at = round_up(s->used_bytes, GAP_BYTES), end = at + round_up(bytes, GAP_BYTES) + GAP_BYTES;

    if (end > SNAPSHOT_BYTES || s->n_objects == SNAPSHOT_OBJECTS_MAX)
        abort();
    s->objects[s->n_objects++] = (struct object){.mem = s->base + at, .bytes = bytes};
    s->used_bytes = end;
    poison(s->base + at + bytes, end - at - bytes);
    return s->base + at;
}

void snapshot_also(void *variable, size_t size_bytes)
{
    if (making->n_variables == SNAPSHOT_VARIABLES_MAX)
        abort();
    making->variables[making->n_variables++] = (struct variable){variable, NULL, size_bytes};
}

struct snapshot *snapshot_keep(void)
{
    struct snapshot *s = making;

    making = NULL;
    for (uint32_t i = 0; i < s->n_objects; i++)
        s->objects[i].was_free = s->objects[i].is_free;
    for (uint32_t i = 0; i < s->n_variables; i++) {
        struct variable *v = &s->variables[i];

        v->copy = mmap(NULL, v->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (v->copy == MAP_FAILED)
            abort();
        memcpy(v->copy, v->mem, v->bytes);
    }
    if (mmap(s->base, SNAPSHOT_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, s->fd, 0) !=
        s->base)
        abort();
    close(s->fd);
    return s;
}

void snapshot_return(struct snapshot *s)
{
    if (madvise(s->base, s->used_bytes, MADV_DONTNEED) < 0)
        abort();
    for (uint32_t i = 0; i < s->n_objects; i++) {
        struct object *o = &s->objects[i];

        if (o->is_free && !o->was_free)
            unpoison(o->mem, o->bytes);
        o->is_free = o->was_free;
    }
    for (uint32_t i = 0; i < s->n_variables; i++)
        memcpy(s->variables[i].mem, s->variables[i].copy, s->variables[i].bytes);
    in_use = s;
}

uint32_t snapshot_leaks(const struct snapshot *s)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < s->n_objects; i++)
        n += !s->objects[i].is_free;
    return n;
}

/* False: it is not of a snapshot. */
static bool snapshot_free(const void *ptr)
{
    struct snapshot *s = making ? making : in_use;

    if (!s || (uintptr_t)ptr - (uintptr_t)s->base >= s->used_bytes)
        return false;
    uint32_t first = 0, end = s->n_objects; /* they ascend */

    while (end - first > 1) {
        uint32_t half = first + (end - first) / 2;

        if ((const uint8_t *)ptr < s->objects[half].mem)
            end = half;
        else
            first = half;
    }
    struct object *o = &s->objects[first];

    if (o->mem != ptr || o->is_free)
        abort(); /* freed twice, or nobody's */
    o->is_free = true;
    if (o->bytes < LARGE_BYTES)
        poison(o->mem, o->bytes);
    return true;
}

/* --- What the linker puts in place of the C library's ---------------------------------------------------------------- */

void *__wrap_malloc(size_t size_bytes)
{
    return making ? snapshot_alloc(size_bytes) : __real_malloc(size_bytes);
}

void *__wrap_calloc(size_t n, size_t size_bytes)
{
    size_t bytes;

    if (making && !__builtin_mul_overflow(n, size_bytes, &bytes))
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
