/* SPDX-License-Identifier: Apache-2.0 */
/* Device memory by cuMemAlloc, and host memory that is allocated or registered. */
#include <stdlib.h>

#include "tests/fake/fake.h"

#define PAGE_BYTES UINT64_C(4096)
#define ALLOC_ALIGN (UINT64_C(2) << 20)

static struct fake_region *region_new(enum fake_kind kind, uint64_t base, size_t size_bytes, char *memory)
{
    struct fake_region *region = calloc(1, sizeof(*region));

    if (!region)
        return NULL;
    *region = (struct fake_region){.kind = kind,
                                   .ctx = fake_context(),
                                   .device = fake_context()->device,
                                   .base = base,
                                   .size_bytes = size_bytes,
                                   .memory = memory};
    pthread_mutex_lock(&fake.lock);
    fake_region_add(region);
    pthread_mutex_unlock(&fake.lock);
    return region;
}

/* With the lock: it is no region any more. */
static void region_free(struct fake_region *region)
{
    fake_region_remove(region);
    switch (region->kind) {
    case FAKE_DEVICE:
        munmap(region->memory, region->size_bytes);
        munmap((void *)(uintptr_t)region->base, region->size_bytes);
        fake_charge(region->device, -(int64_t)region->size_bytes);
        GAUGE(n_allocations, -1);
        break;
    case FAKE_HOST:
        munmap(region->memory, region->size_bytes);
        GAUGE(n_host_allocations, -1);
        break;
    case FAKE_REGISTERED:
        GAUGE(registered_bytes, -(int64_t)region->size_bytes);
        GAUGE(n_registrations, -1);
        break;
    case FAKE_RESERVED: /* belongs to no context: see virtual.c */
        assert(!"a reservation");
    }
    free(region);
}

void fake_memory_reclaim(struct CUctx_st *ctx)
{
    struct list *next;

    for (struct list *l = fake.regions.next; l != &fake.regions; l = next) {
        struct fake_region *region = container_of(l, struct fake_region, link);

        next = l->next;
        if (region->ctx != ctx)
            continue;
        COUNT(n_reclaimed, 1);
        region_free(region);
        next = fake.regions.next; /* the lock was perhaps free meanwhile */
    }
}

int cuMemGetInfo_v2(size_t *ret_free_bytes, size_t *ret_total_bytes)
{
    ENTER("cuMemGetInfo", FAKE_CONTEXT);
    *ret_free_bytes = fake_hbm_free(fake_context()->device);
    *ret_total_bytes = fake.hbm_bytes;
    return NV_SUCCESS;
}

int cuMemAlloc_v2(uint64_t *ret_ptr, size_t size_bytes)
{
    char *space, *memory;

    ENTER("cuMemAlloc", FAKE_CONTEXT);
    if (size_bytes == 0)
        return NV_ERROR_INVALID_VALUE;
    size_bytes = round_up(size_bytes, PAGE_BYTES);
    if (!fake_charge(fake_context()->device, (int64_t)size_bytes))
        return NV_ERROR_OUT_OF_MEMORY;
    space = fake_space(size_bytes, ALLOC_ALIGN);
    memory = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!space || memory == MAP_FAILED || !region_new(FAKE_DEVICE, (uintptr_t)space, size_bytes, memory)) {
        fprintf(stderr, "fake libcuda: no memory for %zu bytes of HBM\n", size_bytes);
        abort();
    }
    GAUGE(n_allocations, 1);
    *ret_ptr = (uintptr_t)space;
    return NV_SUCCESS;
}

/* Waits for all that was given to the device, as the real one does. */
int cuMemFree_v2(uint64_t ptr)
{
    struct fake_region *region;
    int r = NV_SUCCESS;

    ENTER("cuMemFree", FAKE_CONTEXT);
    if (ptr == 0)
        return NV_SUCCESS;
    pthread_mutex_lock(&fake.lock);
    region = fake_region_at(ptr, FAKE_DEVICE);
    if (!region)
        r = NV_ERROR_INVALID_VALUE;
    else if ((r = fake_drain(region->ctx)) == NV_SUCCESS)
        region_free(region);
    pthread_mutex_unlock(&fake.lock);
    return r;
}

int cuMemHostAlloc(void **ret_memory, size_t size_bytes, unsigned flags)
{
    char *memory;

    (void)flags;
    ENTER("cuMemHostAlloc", FAKE_CONTEXT);
    if (size_bytes == 0)
        return NV_ERROR_INVALID_VALUE;
    size_bytes = round_up(size_bytes, PAGE_BYTES);
    memory = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return NV_ERROR_OUT_OF_MEMORY;
    if (!region_new(FAKE_HOST, (uintptr_t)memory, size_bytes, memory)) {
        munmap(memory, size_bytes);
        return NV_ERROR_OUT_OF_MEMORY;
    }
    GAUGE(n_host_allocations, 1);
    *ret_memory = memory;
    return NV_SUCCESS;
}

static int free_host(uint64_t base, enum fake_kind kind, int missing)
{
    struct fake_region *region;

    pthread_mutex_lock(&fake.lock);
    region = fake_region_at(base, kind);
    if (region)
        region_free(region);
    pthread_mutex_unlock(&fake.lock);
    return region ? NV_SUCCESS : missing;
}

int cuMemFreeHost(void *memory)
{
    ENTER("cuMemFreeHost", FAKE_CONTEXT);
    return free_host((uintptr_t)memory, FAKE_HOST, NV_ERROR_INVALID_VALUE);
}

/* Whether there is memory at all; the first and the last page tell enough. */
static bool is_mapped(char *memory, size_t size_bytes)
{
    uintptr_t first = (uintptr_t)memory & ~(PAGE_BYTES - 1);
    uintptr_t last = ((uintptr_t)memory + size_bytes - 1) & ~(PAGE_BYTES - 1);
    unsigned char resident;

    return mincore((void *)first, 1, &resident) == 0 && mincore((void *)last, 1, &resident) == 0;
}

/* Whether all of it may be written by this process, which the driver finds out when it pins the pages. */
static bool is_writable(const char *memory, size_t size_bytes)
{
    uintptr_t at = (uintptr_t)memory, end = at + size_bytes;
    FILE *f = fopen("/proc/self/maps", "re");
    char line[512], mode[5];
    unsigned long from, to;

    while (f && at < end && fgets(line, sizeof(line), f))
        if (sscanf(line, "%lx-%lx %4s", &from, &to, mode) == 3 && at >= from && at < to) {
            if (mode[1] != 'w')
                break;
            at = to;
        }
    if (f)
        fclose(f);
    return at >= end;
}

int cuMemHostRegister_v2(void *memory, size_t size_bytes, unsigned flags)
{
    struct fake_region *region;
    bool overlaps;

    ENTER("cuMemHostRegister", FAKE_CONTEXT);
    if (!memory || size_bytes == 0 || (flags & ~15u) != 0 || !is_mapped(memory, size_bytes))
        return NV_ERROR_INVALID_VALUE;
    if (!(flags & NV_HOST_REGISTER_READ_ONLY) && !is_writable(memory, size_bytes))
        return NV_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fake.lock);
    overlaps = fake_region_overlaps((uintptr_t)memory, size_bytes);
    pthread_mutex_unlock(&fake.lock);
    if (overlaps)
        return NV_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    while (load_acquire(&fake.role->hold)) {
        store_release(&fake.role->is_held, 1);
        (void)usleep(100);
    }
    region = region_new(FAKE_REGISTERED, (uintptr_t)memory, size_bytes, memory);
    if (!region)
        return NV_ERROR_OUT_OF_MEMORY;
    region->read_only = flags & NV_HOST_REGISTER_READ_ONLY;
    GAUGE(registered_bytes, size_bytes);
    GAUGE(n_registrations, 1);
    return NV_SUCCESS;
}

int cuMemHostUnregister(void *memory)
{
    ENTER("cuMemHostUnregister", FAKE_CONTEXT);
    return free_host((uintptr_t)memory, FAKE_REGISTERED, NV_ERROR_HOST_MEMORY_NOT_REGISTERED);
}

int cuMemHostGetDevicePointer_v2(uint64_t *ret_ptr, void *memory, unsigned flags)
{
    const struct fake_region *region;

    ENTER("cuMemHostGetDevicePointer", FAKE_CONTEXT);
    if (flags != 0)
        return NV_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fake.lock);
    region = fake_region_find((uintptr_t)memory, 1, false);
    bool is_host = region && !fake_region_is_device(region);
    pthread_mutex_unlock(&fake.lock);
    if (!is_host)
        return NV_ERROR_INVALID_VALUE;
    *ret_ptr = (uintptr_t)memory;
    return NV_SUCCESS;
}

int cuMemGetAddressRange_v2(uint64_t *ret_base, size_t *ret_bytes, uint64_t ptr)
{
    const struct fake_region *region;

    ENTER("cuMemGetAddressRange", FAKE_CONTEXT);
    pthread_mutex_lock(&fake.lock);
    region = fake_region_find(ptr, 1, false);
    if (region && ret_base)
        *ret_base = region->base;
    if (region && ret_bytes)
        *ret_bytes = region->size_bytes;
    pthread_mutex_unlock(&fake.lock);
    return region ? NV_SUCCESS : NV_ERROR_NOT_FOUND;
}

/* One attribute of an address; of one that nobody knows, what means that. */
static int attribute_of(const struct fake_region *region, uint64_t ptr, int attribute, void *ret_value)
{
    bool is_device = region && fake_region_is_device(region);

    switch (attribute) {
    case NV_POINTER_ATTRIBUTE_CONTEXT:
        *(struct CUctx_st **)ret_value = region ? region->ctx : NULL;
        return NV_SUCCESS;
    case NV_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *(unsigned *)ret_value = !region ? 0 : is_device ? NV_MEMORYTYPE_DEVICE : NV_MEMORYTYPE_HOST;
        return NV_SUCCESS;
    case NV_POINTER_ATTRIBUTE_DEVICE_POINTER:
        *(uint64_t *)ret_value = region ? ptr : 0;
        return NV_SUCCESS;
    case NV_POINTER_ATTRIBUTE_HOST_POINTER:
        *(uint64_t *)ret_value = region && !is_device ? ptr : 0;
        return NV_SUCCESS;
    case NV_POINTER_ATTRIBUTE_IS_MANAGED:
        *(unsigned *)ret_value = 0;
        return NV_SUCCESS;
    case NV_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        *(int *)ret_value = region ? region->device : -2;
        return NV_SUCCESS;
    case NV_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        *(uint64_t *)ret_value = region ? region->base : 0;
        return NV_SUCCESS;
    case NV_POINTER_ATTRIBUTE_RANGE_SIZE:
        *(size_t *)ret_value = region ? region->size_bytes : 0;
        return NV_SUCCESS;
    case NV_POINTER_ATTRIBUTE_MAPPED:
        *(unsigned *)ret_value = region != NULL;
        return NV_SUCCESS;
    default:
        return NV_ERROR_INVALID_VALUE;
    }
}

int cuPointerGetAttributes(unsigned n, int *attributes, void **ret_values, uint64_t ptr)
{
    const struct fake_region *region;
    int r = NV_SUCCESS;

    ENTER("cuPointerGetAttributes", FAKE_CONTEXT);
    pthread_mutex_lock(&fake.lock);
    region = fake_region_find(ptr, 1, false);
    for (unsigned i = 0; i < n && r == NV_SUCCESS; i++)
        r = attribute_of(region, ptr, attributes[i], ret_values[i]);
    pthread_mutex_unlock(&fake.lock);
    return r;
}
