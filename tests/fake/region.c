/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The addresses that the device knows: its own memory, reserved address space with memory mapped into it, and host memory
 * that was allocated or registered. Everything that the device touches is looked up here. The addresses of device memory
 * are inaccessible to the CPU; the bytes lie elsewhere. There are few regions, so a list is enough.
 */
#include <stdlib.h>

#include "tests/fake/fake.h"

static bool holds(const struct fake_region *region, uint64_t address, size_t size_bytes)
{
    return address >= region->base && size_bytes <= region->size_bytes &&
           address - region->base <= region->size_bytes - size_bytes;
}

static bool is_accessible(const struct fake_region *region, uint64_t address, size_t size_bytes, bool for_write)
{
    uint8_t wanted = GRANULE_MAPPED | GRANULE_READABLE | (for_write ? GRANULE_WRITABLE : 0);

    if (for_write && region->read_only)
        return false;
    if (region->kind != FAKE_RESERVED)
        return true;
    for (uint64_t i = (address - region->base) / FAKE_CUDA_GRANULARITY;
         i * FAKE_CUDA_GRANULARITY < address - region->base + size_bytes; i++)
        if ((region->granules[i] & wanted) != wanted)
            return false;
    return true;
}

struct fake_region *fake_region_find(uint64_t address, size_t size_bytes, bool for_write)
{
    for (struct list *l = fake.regions.next; l != &fake.regions; l = l->next) {
        struct fake_region *region = container_of(l, struct fake_region, link);

        if (holds(region, address, size_bytes))
            return is_accessible(region, address, size_bytes, for_write) ? region : NULL;
    }
    return NULL;
}

bool fake_region_overlaps(uint64_t address, size_t size_bytes)
{
    for (struct list *l = fake.regions.next; l != &fake.regions; l = l->next) {
        const struct fake_region *region = container_of(l, struct fake_region, link);

        if (address < region->base + region->size_bytes && region->base < address + size_bytes)
            return true;
    }
    return false;
}

struct fake_region *fake_region_at(uint64_t base, enum fake_kind kind)
{
    for (struct list *l = fake.regions.next; l != &fake.regions; l = l->next) {
        struct fake_region *region = container_of(l, struct fake_region, link);

        if (region->base == base && region->kind == kind)
            return region;
    }
    return NULL;
}

void fake_region_add(struct fake_region *region)
{
    list_push_tail(&fake.regions, &region->link);
}

void fake_region_remove(struct fake_region *region)
{
    list_unlink(&region->link);
    while (region->n_users > 0)
        fake_wait();
}

struct fake_region *fake_region_get(uint64_t address, size_t size_bytes, bool for_write)
{
    struct fake_region *region;

    pthread_mutex_lock(&fake.lock);
    region = fake_region_find(address, size_bytes, for_write);
    if (region)
        region->n_users++;
    pthread_mutex_unlock(&fake.lock);
    return region;
}

void fake_region_put(struct fake_region *region)
{
    if (!region)
        return;
    pthread_mutex_lock(&fake.lock);
    region->n_users--;
    pthread_cond_broadcast(&fake.progress);
    pthread_mutex_unlock(&fake.lock);
}

char *fake_space(size_t size_bytes, size_t alignment)
{
    char *aligned,
        *space = mmap(NULL, size_bytes + alignment, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    size_t before;

    if (space == MAP_FAILED)
        return NULL;
    before = (size_t)(round_up((uintptr_t)space, alignment) - (uintptr_t)space);
    aligned = space + before;
    munmap(aligned + size_bytes, alignment - before);
    if (before > 0)
        munmap(space, before);
    return aligned;
}
