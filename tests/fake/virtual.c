/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory apart from addresses: cuMemCreate makes memory (a memfd), which can be exported as a descriptor and imported by
 * another process; cuMemAddressReserve makes addresses; cuMemMap joins the two, and cuMemSetAccess lets the device at them.
 * Memory lives while a handle or a mapping does; none of it belongs to a context.
 */
#include <stdlib.h>
#include <sys/stat.h>

#include "tests/fake/fake.h"

#define MEMFD_NAME "fake-cuda-"

struct handle {
    struct list link;
    int fd;
    int device;
    size_t size_bytes;
    bool exportable, imported;
    unsigned n_refs; /* the handle itself, and mappings */
    bool released;
};

/* What lies where in a reservation. */
struct mapping {
    struct list link;
    struct fake_region *region;
    struct handle *handle;
    uint64_t base;
    size_t size_bytes;
};

static struct list mappings = LIST_INIT(mappings);

static struct handle *handle_find(uint64_t value)
{
    for (struct list *l = fake.handles.next; l != &fake.handles; l = l->next) {
        struct handle *handle = container_of(l, struct handle, link);

        if ((uintptr_t)handle == value && !handle->released)
            return handle;
    }
    return NULL;
}

static void handle_unref(struct handle *handle)
{
    if (--handle->n_refs > 0)
        return;
    list_unlink(&handle->link);
    close(handle->fd);
    if (!handle->imported)
        fake_charge(handle->device, -(int64_t)handle->size_bytes);
    free(handle);
}

static int handle_add(int fd, int device, size_t size_bytes, bool exportable, bool imported, uint64_t *ret_handle)
{
    struct handle *handle = calloc(1, sizeof(*handle));

    if (!handle)
        abort();
    *handle = (struct handle){.fd = fd,
                              .device = device,
                              .size_bytes = size_bytes,
                              .exportable = exportable,
                              .imported = imported,
                              .n_refs = 1};
    pthread_mutex_lock(&fake.lock);
    list_push_tail(&fake.handles, &handle->link);
    pthread_mutex_unlock(&fake.lock);
    GAUGE(n_handles, 1);
    *ret_handle = (uintptr_t)handle;
    return NV_SUCCESS;
}

static bool is_good_prop(const struct cuda_allocation_prop *prop)
{
    return prop && prop->type == NV_ALLOCATION_TYPE_PINNED && prop->location.type == NV_LOCATION_TYPE_DEVICE &&
           prop->location.id >= 0 && prop->location.id < fake.n_devices &&
           (prop->handle_types & ~NV_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) == 0;
}

static bool is_granular(uint64_t bytes)
{
    return bytes != 0 && bytes % FAKE_CUDA_GRANULARITY == 0;
}

int cuMemGetAllocationGranularity(size_t *ret_bytes, const struct cuda_allocation_prop *prop, int option)
{
    ENTER("cuMemGetAllocationGranularity", FAKE_INIT);
    if (!is_good_prop(prop) || (option != NV_GRANULARITY_MINIMUM && option != NV_GRANULARITY_RECOMMENDED))
        return NV_ERROR_INVALID_VALUE;
    *ret_bytes = FAKE_CUDA_GRANULARITY;
    return NV_SUCCESS;
}

/* What somebody else had there. */
static void leave_residue(int fd, size_t size_bytes)
{
    int byte = (int)load_relaxed(&fake.role->residue);

    if (byte == 0)
        return;
    void *mem = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (mem == MAP_FAILED)
        abort();
    memset(mem, byte, size_bytes);
    munmap(mem, size_bytes);
}

int cuMemCreate(uint64_t *ret_handle, size_t size_bytes, const struct cuda_allocation_prop *prop,
                unsigned long long flags)
{
    char name[32];
    int fd;

    ENTER("cuMemCreate", FAKE_CONTEXT);
    if (!is_good_prop(prop) || !is_granular(size_bytes) || flags != 0)
        return NV_ERROR_INVALID_VALUE;
    if (!fake_charge(prop->location.id, (int64_t)size_bytes))
        return NV_ERROR_OUT_OF_MEMORY;
    snprintf(name, sizeof(name), MEMFD_NAME "%d", prop->location.id);
    fd = memfd_create(name, MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)size_bytes) < 0)
        abort();
    leave_residue(fd, size_bytes);
    return handle_add(fd, prop->location.id, size_bytes, prop->handle_types & NV_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                      false, ret_handle);
}

int cuMemRelease(uint64_t value)
{
    struct handle *handle;

    ENTER("cuMemRelease", FAKE_INIT);
    pthread_mutex_lock(&fake.lock);
    handle = handle_find(value);
    if (handle) {
        handle->released = true;
        GAUGE(n_handles, -1);
        handle_unref(handle);
    }
    pthread_mutex_unlock(&fake.lock);
    return handle ? NV_SUCCESS : NV_ERROR_INVALID_VALUE;
}

int cuMemExportToShareableHandle(void *ret_fd, uint64_t value, int handle_type, unsigned long long flags)
{
    const struct handle *handle;
    int fd = -1;

    ENTER("cuMemExportToShareableHandle", FAKE_INIT);
    if (handle_type != NV_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || flags != 0)
        return NV_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fake.lock);
    handle = handle_find(value);
    if (handle && handle->exportable)
        fd = fcntl(handle->fd, F_DUPFD_CLOEXEC, 3);
    pthread_mutex_unlock(&fake.lock);
    if (fd < 0)
        return NV_ERROR_INVALID_VALUE;
    *(int *)ret_fd = fd;
    return NV_SUCCESS;
}

/* The descriptor stays the caller's. That it is one of ours is told by its name. */
int cuMemImportFromShareableHandle(uint64_t *ret_handle, void *fd_as_pointer, int handle_type)
{
    int fd = (int)(intptr_t)fd_as_pointer, device;
    char link[64], target[128];
    struct stat st;
    ssize_t n;

    ENTER("cuMemImportFromShareableHandle", FAKE_INIT);
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    n = readlink(link, target, sizeof(target) - 1);
    if (handle_type != NV_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || n < 0)
        return NV_ERROR_INVALID_VALUE;
    target[n] = '\0';
    if (sscanf(target, "/memfd:" MEMFD_NAME "%d", &device) != 1 || device >= fake.n_devices || fstat(fd, &st) < 0)
        return NV_ERROR_INVALID_VALUE;
    fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (fd < 0)
        return NV_ERROR_OPERATING_SYSTEM;
    return handle_add(fd, device, (size_t)st.st_size, true, true, ret_handle);
}

int cuMemAddressReserve(uint64_t *ret_ptr, size_t size_bytes, size_t alignment, uint64_t wanted,
                        unsigned long long flags)
{
    struct fake_region *region;
    char *space, *memory;
    uint8_t *granules;

    (void)wanted; /* a hint */
    ENTER("cuMemAddressReserve", FAKE_INIT);
    if (!is_granular(size_bytes) || (alignment != 0 && !is_pow2(alignment)) || flags != 0)
        return NV_ERROR_INVALID_VALUE;
    space = fake_space(size_bytes, MAX(alignment, (size_t)FAKE_CUDA_GRANULARITY));
    memory = fake_space(size_bytes, FAKE_CUDA_GRANULARITY);
    region = calloc(1, sizeof(*region));
    granules = calloc(size_bytes / FAKE_CUDA_GRANULARITY, 1);
    if (!space || !memory || !region || !granules)
        abort();
    *region = (struct fake_region){.kind = FAKE_RESERVED,
                                   .base = (uintptr_t)space,
                                   .size_bytes = size_bytes,
                                   .memory = memory,
                                   .granules = granules};
    pthread_mutex_lock(&fake.lock);
    fake_region_add(region);
    pthread_mutex_unlock(&fake.lock);
    GAUGE(n_reservations, 1);
    *ret_ptr = region->base;
    return NV_SUCCESS;
}

static void unmap(struct mapping *mapping)
{
    struct fake_region *region = mapping->region;

    memset(region->granules + (mapping->base - region->base) / FAKE_CUDA_GRANULARITY, 0,
           mapping->size_bytes / FAKE_CUDA_GRANULARITY);
    while (region->n_users > 0) /* whoever comes now does not find it mapped */
        fake_wait();
    void *memory = mmap(fake_region_memory(region, mapping->base), mapping->size_bytes, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    if (memory == MAP_FAILED)
        abort();
    list_unlink(&mapping->link);
    GAUGE(n_mappings, -1);
    handle_unref(mapping->handle);
    free(mapping);
}

static struct mapping *mapping_in(const struct fake_region *region, uint64_t base, size_t size_bytes)
{
    for (struct list *l = mappings.next; l != &mappings; l = l->next) {
        struct mapping *mapping = container_of(l, struct mapping, link);

        if (mapping->region == region && mapping->base < base + size_bytes &&
            base < mapping->base + mapping->size_bytes)
            return mapping;
    }
    return NULL;
}

static void reservation_free(struct fake_region *region)
{
    fake_region_remove(region);
    munmap(region->memory, region->size_bytes);
    munmap((void *)(uintptr_t)region->base, region->size_bytes);
    free(region->granules);
    free(region);
    GAUGE(n_reservations, -1);
}

int cuMemAddressFree(uint64_t ptr, size_t size_bytes)
{
    struct fake_region *region;
    int r = NV_ERROR_INVALID_VALUE;

    ENTER("cuMemAddressFree", FAKE_INIT);
    pthread_mutex_lock(&fake.lock);
    region = fake_region_at(ptr, FAKE_RESERVED);
    if (region && region->size_bytes == size_bytes && !mapping_in(region, ptr, size_bytes)) {
        reservation_free(region);
        r = NV_SUCCESS;
    }
    pthread_mutex_unlock(&fake.lock);
    return r;
}

/* The reservation that holds the range, with the lock. */
static struct fake_region *reservation_of(uint64_t ptr, size_t size_bytes)
{
    for (struct list *l = fake.regions.next; l != &fake.regions; l = l->next) {
        struct fake_region *region = container_of(l, struct fake_region, link);

        if (region->kind == FAKE_RESERVED && ptr >= region->base && size_bytes <= region->size_bytes &&
            ptr - region->base <= region->size_bytes - size_bytes)
            return region;
    }
    return NULL;
}

static int map(uint64_t ptr, size_t size_bytes, uint64_t value)
{
    struct fake_region *region = reservation_of(ptr, size_bytes);
    struct handle *handle = handle_find(value);
    struct mapping *mapping;

    if (!region || !handle || size_bytes != handle->size_bytes)
        return NV_ERROR_INVALID_VALUE;
    if (mapping_in(region, ptr, size_bytes))
        return NV_ERROR_ALREADY_MAPPED;
    void *memory = mmap(fake_region_memory(region, ptr), size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                        handle->fd, 0);
    if (memory == MAP_FAILED)
        return NV_ERROR_OPERATING_SYSTEM;
    mapping = calloc(1, sizeof(*mapping));
    if (!mapping)
        abort();
    *mapping = (struct mapping){.region = region, .handle = handle, .base = ptr, .size_bytes = size_bytes};
    handle->n_refs++;
    region->device = handle->device;
    list_push_tail(&mappings, &mapping->link);
    memset(region->granules + (ptr - region->base) / FAKE_CUDA_GRANULARITY, GRANULE_MAPPED,
           size_bytes / FAKE_CUDA_GRANULARITY);
    GAUGE(n_mappings, 1);
    return NV_SUCCESS;
}

int cuMemMap(uint64_t ptr, size_t size_bytes, size_t offset, uint64_t handle, unsigned long long flags)
{
    int r;

    ENTER("cuMemMap", FAKE_INIT);
    if (!is_granular(size_bytes) || ptr % FAKE_CUDA_GRANULARITY != 0 || offset != 0 || flags != 0)
        return NV_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fake.lock);
    r = map(ptr, size_bytes, handle);
    pthread_mutex_unlock(&fake.lock);
    return r;
}

/* Whole mappings only. */
int cuMemUnmap(uint64_t ptr, size_t size_bytes)
{
    struct fake_region *region;
    struct mapping *mapping = NULL;

    ENTER("cuMemUnmap", FAKE_INIT);
    pthread_mutex_lock(&fake.lock);
    region = reservation_of(ptr, size_bytes);
    for (uint64_t at = ptr; region && at < ptr + size_bytes; at += mapping->size_bytes) {
        mapping = mapping_in(region, at, 1);
        if (!mapping || mapping->base != at || at + mapping->size_bytes > ptr + size_bytes)
            region = NULL;
        if (!mapping)
            break;
    }
    while (region && (mapping = mapping_in(region, ptr, size_bytes)))
        unmap(mapping);
    pthread_mutex_unlock(&fake.lock);
    return region ? NV_SUCCESS : NV_ERROR_INVALID_VALUE;
}

static int set_access(uint64_t ptr, size_t size_bytes, uint32_t access)
{
    struct fake_region *region = reservation_of(ptr, size_bytes);
    uint8_t *granules;

    if (!region)
        return NV_ERROR_INVALID_VALUE;
    granules = region->granules + (ptr - region->base) / FAKE_CUDA_GRANULARITY;
    for (size_t i = 0; i < size_bytes / FAKE_CUDA_GRANULARITY; i++)
        if (!(granules[i] & GRANULE_MAPPED))
            return NV_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < size_bytes / FAKE_CUDA_GRANULARITY; i++)
        granules[i] = GRANULE_MAPPED | (access & NV_ACCESS_PROT_READ ? GRANULE_READABLE : 0) |
                      (access == NV_ACCESS_PROT_READWRITE ? GRANULE_WRITABLE : 0);
    return NV_SUCCESS;
}

int cuMemSetAccess(uint64_t ptr, size_t size_bytes, const struct cuda_access_desc *desc, size_t n)
{
    int r = NV_SUCCESS;

    ENTER("cuMemSetAccess", FAKE_INIT);
    if (!is_granular(size_bytes) || ptr % FAKE_CUDA_GRANULARITY != 0 || n == 0)
        return NV_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fake.lock);
    for (size_t i = 0; i < n && r == NV_SUCCESS; i++)
        r = desc[i].location.type == NV_LOCATION_TYPE_DEVICE && desc[i].location.id >= 0 &&
                    desc[i].location.id < fake.n_devices
                ? set_access(ptr, size_bytes, desc[i].flags)
                : NV_ERROR_INVALID_VALUE;
    pthread_mutex_unlock(&fake.lock);
    return r;
}
