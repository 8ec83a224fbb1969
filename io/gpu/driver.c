/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every call to the CUDA driver. The context is the device's primary one, which in this process is ours alone. Copies of
 * one direction have a stream, and two streams never wait for each other; that of fetches has the higher priority, as
 * somebody waits for them. No kernel of ours is launched here: it would take turns with those of the clients.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "io/gpu/helper.h"

/* What a result is to us: words, an errno, and whether it was the end. */
static int result(struct helper *h, const char *what, int r)
{
    if (r == NV_SUCCESS)
        return 0;
    snprintf(h->text, sizeof(h->text), "%s: %s", what, cuda_error_name(r));
    if (cuda_is_fatal(r))
        helper_lose(h, what, cuda_error_name(r));
    return cuda_errno(r);
}

#define CALL(name, ...) result(h, "cu" #name, h->cu->name(__VA_ARGS__))

static int find_device(struct helper *h, const uint8_t uuid[static 16])
{
    struct cuda_uuid have, wanted;
    char text[CUDA_UUID_TEXT_BYTES];
    int n, device, r = CALL(DeviceGetCount, &n);

    memcpy(wanted.bytes, uuid, sizeof(wanted.bytes));
    for (int i = 0; r == 0 && i < n; i++) {
        r = CALL(DeviceGet, &device, i);
        if (r == 0)
            r = CALL(DeviceGetUuid, &have, device);
        if (r == 0 && memcmp(have.bytes, wanted.bytes, sizeof(have.bytes)) == 0) {
            h->device = device;
            return 0;
        }
    }
    if (r < 0)
        return r;
    snprintf(h->text, sizeof(h->text), "the driver sees %d devices, and none is %s", n, cuda_uuid_print(&wanted, text));
    return -ENODEV;
}

static int init(struct helper *h, const uint8_t uuid[static 16])
{
    int r = h->cu->Init(0);
    char text[CUDA_UUID_TEXT_BYTES];
    struct cuda_uuid wanted;

    if (r != NV_ERROR_NO_DEVICE)
        return result(h, "cuInit", r);
    memcpy(wanted.bytes, uuid, sizeof(wanted.bytes));
    snprintf(h->text, sizeof(h->text), "the driver shows nothing that is %s, or a MIG instance of that number",
             cuda_uuid_print(&wanted, text));
    return -ENODEV;
}

static int copier_new(struct helper *h, struct helper_copier *copier, int priority)
{
    int r = CALL(StreamCreateWithPriority, &copier->stream, NV_STREAM_NON_BLOCKING, priority);

    for (size_t i = 0; r == 0 && i < ARRAY_LEN(copier->events); i++)
        r = CALL(EventCreate, &copier->events[i], NV_EVENT_DISABLE_TIMING);
    return r;
}

static void copier_free(struct helper *h, struct helper_copier *copier)
{
    for (size_t i = 0; i < ARRAY_LEN(copier->events); i++) {
        if (copier->events[i])
            (void)CALL(EventDestroy, copier->events[i]);
        copier->events[i] = NULL;
    }
    if (copier->stream)
        (void)CALL(StreamDestroy, copier->stream);
    copier->stream = NULL;
}

/* What the context takes is what is used more than before; somebody else's allocation at that moment is counted too. */
static int make_context(struct helper *h)
{
    struct cuda_uuid uuid;
    size_t free_bytes = 0, total_bytes = 0;
    uint64_t before_bytes = 0, after_bytes = 0;
    bool is_known;
    int least = 0, greatest = 0, r = CALL(DeviceGetUuid, &uuid, h->device);

    if (r < 0)
        return r;
    is_known = helper_hbm_used(&uuid, &before_bytes);
    r = CALL(DevicePrimaryCtxRetain, &h->ctx, h->device);
    if (r == 0)
        r = CALL(CtxSetCurrent, h->ctx);
    if (r == 0)
        r = CALL(CtxGetStreamPriorityRange, &least, &greatest);
    if (r == 0)
        r = copier_new(h, &h->copiers[HELPER_SPILL], least);
    if (r == 0)
        r = copier_new(h, &h->copiers[HELPER_FETCH], greatest);
    if (r == 0)
        r = CALL(MemGetInfo, &free_bytes, &total_bytes);
    if (r < 0)
        return r;
    is_known = is_known && helper_hbm_used(&uuid, &after_bytes);
    if (is_known && after_bytes > before_bytes)
        h->stat.context_bytes = after_bytes - before_bytes;
    h->stat.hbm_bytes = total_bytes;
    h->stat.hbm_free_bytes = free_bytes;
    return 0;
}

int helper_driver_start(struct helper *h, const uint8_t uuid[static 16])
{
    int r = cuda_driver_load(&h->cu);

    if (r < 0) {
        snprintf(h->text, sizeof(h->text), "%s", cuda_driver_problem());
        return r;
    }
    r = init(h, uuid);
    if (r == 0)
        r = find_device(h, uuid);
    if (r == 0)
        r = make_context(h);
    if (r == 0)
        r = CALL(DeviceGetName, h->text, sizeof(h->text), h->device);
    if (r < 0)
        helper_driver_stop(h);
    return r;
}

void helper_driver_stop(struct helper *h)
{
    char text[GPU_TEXT_BYTES];

    memcpy(text, h->text, sizeof(text)); /* what is wrong is not what goes wrong now */
    if (h->ctx) {
        for (size_t d = 0; d < HELPER_DIRECTIONS; d++)
            copier_free(h, &h->copiers[d]);
        (void)CALL(CtxSetCurrent, NULL);
        (void)CALL(DevicePrimaryCtxRelease, h->device);
    }
    h->ctx = NULL;
    h->cu = NULL;
    memcpy(h->text, text, sizeof(text));
}

int helper_driver_register(struct helper *h, void *mem, uint64_t size_bytes)
{
    uint64_t start_ns = helper_now_ns();
    int r = CALL(MemHostRegister, mem, size_bytes, 0);

    h->stat.register_ns += helper_now_ns() - start_ns;
    return r;
}

int helper_driver_register_page(struct helper *h, void *mem, uint64_t *ret_ptr)
{
    int r = CALL(MemHostRegister, mem, SECTOR_BYTES, NV_HOST_REGISTER_DEVICEMAP);

    if (r < 0)
        return r;
    r = CALL(MemHostGetDevicePointer, ret_ptr, mem, 0);
    if (r < 0)
        helper_driver_unregister(h, mem);
    return r;
}

void helper_driver_unregister(struct helper *h, void *mem)
{
    (void)CALL(MemHostUnregister, mem);
}

/* Memory of the GPU is not cleared by the driver for sure, and this is for another user's process. */
static int memory_fill(struct helper *h, struct helper_memory *memory, const struct cuda_allocation_prop *prop)
{
    struct cuda_access_desc access = {.location = prop->location, .flags = NV_ACCESS_PROT_READWRITE};
    int r = CALL(MemAddressReserve, &memory->ptr, memory->size_bytes, 0, 0, 0);

    if (r < 0)
        return r;
    r = CALL(MemMap, memory->ptr, memory->size_bytes, 0, memory->handle, 0);
    if (r < 0) {
        (void)CALL(MemAddressFree, memory->ptr, memory->size_bytes);
        memory->ptr = 0;
        return r;
    }
    r = CALL(MemSetAccess, memory->ptr, memory->size_bytes, &access, 1);
    if (r == 0)
        r = CALL(MemsetD8, memory->ptr, 0, memory->size_bytes);
    if (r == 0)
        r = CALL(StreamSynchronize, NULL); /* only the call above is in it; ours do not wait for it */
    return r;
}

int helper_driver_memory_new(struct helper *h, uint64_t size_bytes, struct helper_memory *ret_memory, int *ret_fd)
{
    struct cuda_allocation_prop prop = {.type = NV_ALLOCATION_TYPE_PINNED,
                                        .handle_types = NV_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                                        .location = {.type = NV_LOCATION_TYPE_DEVICE, .id = h->device}};
    struct helper_memory memory = {.handle = 0};
    size_t granularity = 0;
    int r, fd = -1;

    r = CALL(MemGetAllocationGranularity, &granularity, &prop, NV_GRANULARITY_RECOMMENDED);
    if (r < 0)
        return r;
    if (!is_pow2(granularity) || granularity > GIB)
        return -EIO;
    memory.size_bytes = round_up(size_bytes, granularity);
    r = CALL(MemCreate, &memory.handle, memory.size_bytes, &prop, 0);
    if (r < 0)
        return r;
    r = memory_fill(h, &memory, &prop);
    if (r == 0)
        r = CALL(MemExportToShareableHandle, &fd, memory.handle, NV_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
    if (r < 0) {
        char text[GPU_TEXT_BYTES];

        memcpy(text, h->text, sizeof(text));
        helper_driver_memory_free(h, &memory);
        memcpy(h->text, text, sizeof(text));
        return r;
    }
    *ret_memory = memory;
    *ret_fd = fd;
    h->hbm_seen_ns = 0;
    return 0;
}

/* The mapping first, then its addresses; the memory goes when the client's handle and mapping have gone too. */
void helper_driver_memory_free(struct helper *h, struct helper_memory *memory)
{
    if (memory->ptr) {
        (void)CALL(MemUnmap, memory->ptr, memory->size_bytes);
        (void)CALL(MemAddressFree, memory->ptr, memory->size_bytes);
    }
    (void)CALL(MemRelease, memory->handle);
    *memory = (struct helper_memory){.handle = 0};
    h->hbm_seen_ns = 0;
}

uint64_t helper_driver_free_bytes(struct helper *h)
{
    size_t free_bytes = 0, total_bytes;

    if (h->ctx && CALL(MemGetInfo, &free_bytes, &total_bytes) < 0)
        return 0;
    return free_bytes;
}

static int copy_one(struct helper *h, enum helper_direction d, uint64_t to, uint64_t from, size_t len_bytes)
{
    struct CUstream_st *stream = h->copiers[d].stream;

    return d == HELPER_SPILL ? CALL(MemcpyDtoHAsync, (void *)(uintptr_t)to, from, len_bytes, stream)
                             : CALL(MemcpyHtoDAsync, to, (const void *)(uintptr_t)from, len_bytes, stream);
}

/* In one call where the driver can: a call takes microseconds, as long as the copy of a small piece. */
int helper_driver_copy(struct helper *h, enum helper_direction d, struct helper_copies *copies)
{
    struct cuda_memcpy_attributes attributes = {.src_access_order = NV_MEMCPY_SRC_ACCESS_ORDER_STREAM};
    size_t failed, start = 0;
    int r = 0;

    if (copies->n > 1 && h->cu->MemcpyBatchAsync) {
        h->stat.copies++;
        return CALL(MemcpyBatchAsync, copies->to, copies->from, copies->len_bytes, copies->n, &attributes, &start, 1,
                    &failed, h->copiers[d].stream);
    }
    for (size_t i = 0; i < copies->n && r == 0; i++, h->stat.copies++)
        r = copy_one(h, d, copies->to[i], copies->from[i], copies->len_bytes[i]);
    return r;
}

int helper_driver_write(struct helper *h, struct helper_copier *copier, uint64_t ptr, uint64_t value)
{
    return CALL(StreamWriteValue64, copier->stream, ptr, value, NV_STREAM_WRITE_VALUE_DEFAULT);
}

/* Without a mark nobody can tell when memory is no longer written to. */
void helper_driver_mark(struct helper *h, struct helper_copier *copier, uint64_t number)
{
    if (CALL(EventRecord, copier->events[number % GPU_AHEAD_SLOTS], copier->stream) < 0)
        helper_lose(h, "cannot tell when copies end", h->text);
}

bool helper_driver_has_come_to(struct helper *h, struct helper_copier *copier, uint64_t number)
{
    int r = h->cu->EventQuery(copier->events[number % GPU_AHEAD_SLOTS]);

    if (r == NV_SUCCESS)
        return true;
    if (r != NV_ERROR_NOT_READY && result(h, "cuEventQuery", r) < 0)
        helper_lose(h, "cannot tell when copies end", h->text);
    return false;
}
