/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See snapshot.h. Between two allocations lie bytes that ASan is told nobody may touch, and a small one that was freed may not be
 * touched either until the snapshot returns.
 */
#include "tests/fuzz/support/snapshot.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE_BYTES UINT64_C(4096)
#define SNAPSHOT_BYTES (1 * GIB) /* of which few are touched */
#define SNAPSHOT_OBJECTS_MAX 1024
#define SNAPSHOT_VARIABLES_MAX 4
#define GAP_BYTES 64
#define POISONED_BYTES_MAX (32 * KIB) /* of more it takes too long */

void __asan_poison_memory_region(const volatile void *mem, size_t size_bytes) __attribute__((weak));
void __asan_unpoison_memory_region(const volatile void *mem, size_t size_bytes) __attribute__((weak));

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

void *snapshot_alloc(size_t bytes)
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
    void *mem =
        mmap(s->base, SNAPSHOT_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, s->fd, 0);

    if (mem != s->base)
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

bool snapshot_free(const void *ptr)
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
    if (o->bytes < POISONED_BYTES_MAX)
        poison(o->mem, o->bytes);
    return true;
}
